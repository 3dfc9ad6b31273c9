//! Drills of a job's own recovery points: which are drilled, and when (pure). [`mod@run`] carries them out.
//!
//! ```text
//! units     what is drilled: the newest set of each instance, else the newest snapshot of each volume, else its image or device
//! is_due    a pure function of the schedule, the last drill, the present recovery point and the time
//! refresh   notes in the state when drills are due and overdue, for people
//! ```
//! A set and a snapshot of a repository stay as they are, so cycles run beside their drills. An image or a device is
//! changed or replaced by the next copy: while it is drilled, cycles leave its volume out. A drill begins when no volume of it is being copied; one of a
//! repository begins all the same once it is overdue, because copies can follow each other without a pause.

mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use super::job::{JobDrill, JobSource, ReplicateJob};
use super::schedule::Schedule;
use super::sets::key;
use super::state::{DrillMemory, JobState, LastDrill, StateError, UnitDrills};
use super::template::{AssignedTarget, Assignment, CycleVolume, assign};
use crate::error::Kind;
use crate::repository::Address;
use crate::snapshot::VolumeSelector;

pub(crate) use run::{DrillFindings, DrillOutcome, DrillRequest};

/// When a drill that came to no result is tried again.
const NEXT_TRY: Duration = Duration::from_secs(3600);
/// When the drill after a failed one is due at the latest: a person waits for it.
const AFTER_FAILURE: Duration = Duration::from_secs(24 * 3600);

/// What one drill is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DrillUnit {
    /// The id of an instance, or of a volume.
    pub(crate) id: String,
    /// The target that holds the recovery point.
    pub(crate) target: AssignedTarget,
    /// What is drilled, as `ebsfs drill` names it.
    pub(crate) source: String,
    /// What the target holds: the snapshot, or the instant of the set.
    pub(crate) point: String,
    /// The instant whose bytes it holds.
    pub(crate) time: Option<SystemTime>,
    /// Its volumes.
    pub(crate) volumes: BTreeSet<String>,
    /// Whether it is a machine, which can be started: a set, or a volume that is not one of several of an instance of the job.
    pub(crate) is_machine: bool,
    /// Whether the target is a repository: what it holds stays as it is.
    pub(crate) is_fixed: bool,
}

/// What the job drills at present. Volumes without a recovery point that can be drilled have no unit.
pub(super) fn units(job: &ReplicateJob, drill: &JobDrill, state: &JobState) -> Vec<DrillUnit> {
    let volumes = state
        .volumes
        .iter()
        .filter(|(_, volume)| volume.is_selected);
    let volumes: BTreeSet<CycleVolume> = volumes
        .map(|(id, volume)| CycleVolume {
            id: id.clone(),
            instance: volume.instance.clone(),
        })
        .collect();
    let assignment = assign(&job.targets, &volumes);
    let instances = instances(job);
    let mut units = Vec::new();
    let mut covered = BTreeSet::new();
    for instance in &instances {
        let its = volumes.iter();
        let its = its.filter(|volume| volume.instance.as_ref() == Some(instance));
        let its: BTreeSet<String> = its.map(|volume| volume.id.clone()).collect();
        if let Some(unit) = unit_of_set(job, drill, state, &assignment, instance, &its) {
            covered.extend(its);
            units.push(unit);
        }
    }
    for volume in volumes
        .iter()
        .filter(|volume| !covered.contains(&volume.id))
    {
        let instance = volume.instance.as_ref();
        let is_machine = instance.is_none_or(|instance| !instances.contains(instance));
        units.extend(unit_of_volume(
            job,
            drill,
            state,
            &assignment,
            &volume.id,
            is_machine,
        ));
    }
    units
}

/// The instances whose sets the job keeps.
fn instances(job: &ReplicateJob) -> BTreeSet<String> {
    let JobSource::Ec2(volumes) = &job.source else {
        return BTreeSet::new();
    };
    let selectors = volumes.select.iter().filter(|_| job.keeps_machines());
    selectors
        .filter_map(|select| match select {
            VolumeSelector::Instance(id) => Some(id.clone()),
            _ => None,
        })
        .collect()
}

/// The newest set of an instance, in the first repository that has one.
fn unit_of_set(
    job: &ReplicateJob,
    drill: &JobDrill,
    state: &JobState,
    assignment: &Assignment,
    instance: &str,
    volumes: &BTreeSet<String>,
) -> Option<DrillUnit> {
    // All of its disks are in one repository: the first one names it.
    let targets = assignment.volumes.get(volumes.first()?)?;
    targets.iter().find_map(|target| {
        let its_job = job.targets.get(target.number)?;
        if !drill.includes(its_job) || !Address::looks_like(&target.name) {
            return None;
        }
        let instant = state.sets.get(&key(&target.name, instance))?;
        Some(DrillUnit {
            id: instance.to_owned(),
            target: target.clone(),
            source: format!("{}#{instance}@{instant}", target.name),
            point: instant.clone(),
            time: humantime::parse_rfc3339(instant).ok(),
            volumes: volumes.clone(),
            is_machine: true,
            is_fixed: true,
        })
    })
}

/// What a volume has at the best of its targets: a repository, else an image that each copy replaces, else what is written in place.
fn unit_of_volume(
    job: &ReplicateJob,
    drill: &JobDrill,
    state: &JobState,
    assignment: &Assignment,
    id: &str,
    is_machine: bool,
) -> Option<DrillUnit> {
    let known = state.volumes.get(id)?;
    let targets = assignment.volumes.get(id)?.iter();
    let found = targets.filter_map(|target| {
        let its_job = job.targets.get(target.number)?;
        let held = known.targets.get(&target.name)?;
        let point = held.recovery_point.as_ref()?;
        let is_fixed = Address::looks_like(&target.name);
        // What a copy has left in an image or a device after a failure is not always the recovery point.
        if !drill.includes(its_job) || !is_fixed && held.error.is_some() {
            return None;
        }
        let rank = match is_fixed {
            true => 0,
            false if !its_job.in_place && !target.name.starts_with("/dev/") => 1,
            false => 2,
        };
        let source = match is_fixed {
            true => format!("{}#{}", target.name, point.snapshot),
            false => target.name.clone(),
        };
        let unit = DrillUnit {
            id: id.to_owned(),
            target: target.clone(),
            source,
            point: point.snapshot.to_string(),
            time: point.time,
            volumes: [id.to_owned()].into(),
            is_machine,
            is_fixed,
        };
        Some((rank, unit))
    });
    found.min_by_key(|(rank, _)| *rank).map(|(_, unit)| unit)
}

/// Whether a drill is due. Intervals that were missed are caught up by one drill; a recovery point that was drilled with success is
/// not drilled again.
pub(super) fn is_due(
    schedule: &Schedule,
    known: Option<&UnitDrills>,
    unit: &DrillUnit,
    now: SystemTime,
) -> bool {
    let is_scheduled_since = |time: Option<SystemTime>| {
        // A clock that was set back must not put it off.
        let time = time.filter(|time| *time <= now);
        time.is_none_or(|time| schedule.last_due(now).is_some_and(|due| due > time))
    };
    let is_past = |time: Option<SystemTime>, pause: Duration| {
        let end = time.and_then(|time| time.checked_add(pause));
        end.is_none_or(|end| end <= now)
    };
    let failure = known.and_then(|known| known.failure.as_ref());
    if let Some(failure) = failure
        && !is_scheduled_since(failure.when)
        && !is_past(failure.when, NEXT_TRY)
    {
        return false;
    }
    let Some(last) = known.and_then(|known| known.last.as_ref()) else {
        return true;
    };
    let is_scheduled = is_scheduled_since(last.started);
    match &last.error {
        None => is_scheduled && is_newer(last, unit),
        Some(error) => {
            let is_next = is_scheduled || is_past(last.started, AFTER_FAILURE);
            // Damage stays. What could not be checked can be checked once the program for it is there.
            let is_damage = error.exit_code == Kind::Corrupt.exit_code();
            is_next && (is_newer(last, unit) || !is_damage)
        }
    }
}

/// Whether a recovery point is another one than that of the last drill.
fn is_newer(last: &LastDrill, unit: &DrillUnit) -> bool {
    last.source != unit.source || last.point != unit.point
}

/// Whether a drill that is due can begin now.
pub(super) fn is_ready(state: &JobState, unit: &DrillUnit, now: SystemTime) -> bool {
    let mut volumes = unit.volumes.iter().filter_map(|id| state.volumes.get(id));
    let is_copied = volumes.any(|volume| volume.under_way.is_some());
    let known = state
        .drills
        .as_ref()
        .and_then(|drills| drills.units.get(&unit.id));
    let is_overdue = known
        .and_then(|known| known.overdue_at)
        .is_some_and(|time| time <= now);
    !is_copied || unit.is_fixed && is_overdue
}

/// Notes when the drills of the job are due, and when the next one of each unit is overdue: at the second due time after the last.
/// Drops units that no longer exist.
pub(super) fn refresh(state: &mut JobState, job: &ReplicateJob, now: SystemTime) {
    let Some(drill) = &job.drill else {
        state.drills = None;
        return;
    };
    let mut known = state.drills.take().unwrap_or_default().units;
    let mut present = BTreeMap::new();
    for unit in units(job, drill, state) {
        let mut drills = known.remove(&unit.id).unwrap_or_default();
        let since = *drills.since.get_or_insert(now);
        let last = drills.last.as_ref();
        let is_wanted = last.is_none_or(|last| is_newer(last, &unit));
        let from = last.and_then(|last| last.started).unwrap_or(since);
        let overdue_at = drill.schedule.late_at(from);
        drills.overdue_at = overdue_at.filter(|_| is_wanted);
        present.insert(unit.id, drills);
    }
    state.drills = Some(DrillMemory {
        schedule: drill.schedule.to_string(),
        next: drill.schedule.next_due(now),
        units: present,
    });
}

/// Notes how a drill ended.
pub(super) fn note(
    state: &mut JobState,
    unit: &DrillUnit,
    outcome: &DrillOutcome,
    now: SystemTime,
) {
    let drills = state.drills.get_or_insert_default();
    let known = drills.units.entry(unit.id.clone()).or_default();
    match &outcome.found {
        Err(error) => known.failure = Some(StateError::of(error, now)),
        Ok(found) => {
            let error = found.failure.as_ref();
            known.failure = None;
            known.last = Some(LastDrill {
                source: unit.source.clone(),
                point: unit.point.clone(),
                time: unit.time,
                started: now.checked_sub(outcome.took),
                ended: Some(now),
                partitions: found.partitions.clone(),
                booted: found.booted,
                error: error.map(|error| StateError::of(error, now)),
            });
        }
    }
}

#[cfg(test)]
mod tests;
