//! The first part of a cycle whose source is EC2: selects the volumes, runs the command before, adopts or makes the snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::capture::{CaptureJob, Commands, Cycle, capture, planned_calls};
use crate::error::{Error, Kind, Result};
use crate::replicate::cycle::CycleRun;
use crate::replicate::hooks::{self, HookTime};
use crate::replicate::job::{Ec2Volumes, ReplicateJob};
use crate::replicate::report::CycleReport;
use crate::replicate::state::CopyUnderWay;
use crate::replicate::volumes::{self, VolumeSelection, vanished};
use crate::snapshot::{NewSnapshots, SnapshotMaker, VolumeSelector};

impl CycleRun {
    /// The copies of a cycle: selects the volumes, runs the command before, adopts or makes the snapshots.
    pub(super) async fn capture(
        &self,
        volumes: &Ec2Volumes,
        cycle: &Cycle,
        is_new: bool,
        busy: &BTreeSet<String>,
        report: &mut CycleReport,
    ) -> Result<BTreeMap<String, CopyUnderWay>> {
        let maker = self.places.maker()?;
        let shard = self.job.shard;
        let selected = volumes::select(&*maker, volumes, shard);
        let selected = self.stop.unless(selected).await;
        let selected = selected.map_err(|error| {
            error.context(format!(
                "cannot select the volumes of the job {}",
                self.job.name
            ))
        })?;
        let others = selected.of_others(shard);
        let known = selected.instances.keys();
        let not_now: BTreeSet<String> = known
            .filter(|id| busy.contains(*id) && !others.contains(*id))
            .cloned()
            .collect();
        for volume in &not_now {
            report.warn(format!(
                "{volume} is not in the cycle {cycle}: {} of it is under way",
                if self.held.lock().contains(volume) {
                    "a drill"
                } else {
                    "an earlier copy"
                }
            ));
        }
        let blocked = not_now.union(&others).cloned().collect();
        let (select, left_out) = selected.without(&blocked);
        report.failures.extend(selected.failures.iter().cloned());
        if select.is_empty() {
            self.memory.update(|state| state.under_way = None);
            if not_now.is_empty() {
                self.record_selection(&BTreeSet::new(), &others, report);
            }
            return Ok(BTreeMap::new());
        }
        let before = hooks::run(
            &self.job.hooks,
            HookTime::Before,
            &self.job.name,
            report,
            &self.stop,
        );
        if let Err(error) = before.await {
            if error.kind() != Kind::Stopped {
                self.memory.update(|state| state.under_way = None);
            }
            return Err(error);
        }
        let job = CaptureJob {
            // What this shard has may be what the job excludes.
            may_be_empty: !others.is_empty(),
            ..capture_job(
                &self.job, volumes, cycle, is_new, &select, left_out, &selected,
            )
        };
        let captured = capture(&*maker, &job, &self.stop).await?;
        report.warnings.extend(captured.warnings);
        let is_stopped = captured
            .failures
            .iter()
            .any(|error| error.kind() == Kind::Stopped);
        report.failures.extend(captured.failures);
        let mut copies = BTreeMap::new();
        for made in captured.snapshots.iter().filter(|made| !made.is_failed) {
            let Some(volume) = made.snapshot.volume_id.clone() else {
                continue;
            };
            let instance = made.instance.clone();
            let known = selected.instances.get(&volume).cloned().flatten();
            let copy = CopyUnderWay {
                cycle: cycle.to_string(),
                snapshot: made.snapshot.id.clone(),
                instance: instance.or(known),
                since: Some(SystemTime::now()),
                phase: None,
            };
            copies.insert(volume, copy);
        }
        self.memory.update(|state| {
            for (volume, copy) in &copies {
                let volume = state.volumes.entry(volume.clone()).or_default();
                volume.snapshots.insert(copy.snapshot.clone());
                volume.under_way = Some(copy.clone());
            }
            if !is_stopped {
                state.under_way = None;
            }
        });
        let mut all = captured.volumes;
        all.extend(not_now);
        self.record_selection(&all, &others, report);
        self.memory.update(|state| {
            for id in &all {
                let volume = state.volumes.entry(id.clone()).or_default();
                volume.instance = selected.instances.get(id).cloned().flatten();
            }
        });
        Ok(copies)
    }

    /// Notes which volumes this shard of the job has, and reports those that no shard has any more.
    pub(in crate::replicate) fn record_selection(
        &self,
        all: &BTreeSet<String>,
        others: &BTreeSet<String>,
        report: &mut CycleReport,
    ) {
        let selected = all.union(others).cloned().collect();
        let lost = self.memory.update(|state| {
            let before = state.volumes.iter();
            let before = before.filter(|(_, volume)| volume.is_selected);
            let lost = vanished(before.map(|(id, _)| id), &selected);
            // Those that have no snapshot yet are known too: a status shows that they have no recovery point.
            for id in all {
                state.volumes.entry(id.clone()).or_default();
            }
            for (id, volume) in &mut state.volumes {
                volume.is_selected = all.contains(id);
            }
            lost
        });
        for volume in lost {
            report.warn(format!(
                "{volume} is not selected any more: its snapshots and its targets stay as they are"
            ));
        }
    }
}

/// The snapshots that a job makes in this cycle: those of these selectors, without the volumes that are left out.
fn capture_job(
    job: &ReplicateJob,
    volumes: &Ec2Volumes,
    cycle: &Cycle,
    is_new: bool,
    select: &[VolumeSelector],
    mut without: Vec<String>,
    selected: &VolumeSelection,
) -> CaptureJob {
    // Only those that something selects: another one would be a warning in each cycle.
    let is_selected = |id: &&String| {
        let mut named = selected.select.iter();
        named.any(|(one, ids)| select.contains(one) && ids.contains(*id))
    };
    without.extend(volumes.without.iter().filter(is_selected).cloned());
    without.sort_unstable();
    without.dedup();
    CaptureJob {
        select: select.to_vec(),
        without_boot: volumes.without_boot,
        without,
        cycle: cycle.clone(),
        is_new_cycle: is_new,
        look_again: job.look_again,
        description: Some(format!("ebsfs replicate {cycle}")),
        tags: job.snapshot_tags.clone(),
        commands: Commands {
            before: job.hooks.freeze.clone(),
            after: job.hooks.thaw.clone(),
            timeout: job.hooks.timeout,
        },
        // Each volume waits for its own snapshot.
        waits: false,
        timeout: job.timeout,
        may_be_empty: false,
    }
}

/// The calls that the next cycle of a job would make.
#[derive(Debug)]
pub(crate) struct PlannedCycle {
    /// How many volumes are selected.
    pub(crate) volumes: usize,
    /// The calls that make their snapshots.
    pub(crate) calls: Vec<NewSnapshots>,
    /// Selectors that name nothing.
    pub(crate) failures: Vec<Error>,
}

/// What a job would ask EC2 for if a cycle began now. Nothing is made.
///
/// # Errors
/// Why EC2 could not be asked; `Invalid` when the job contradicts itself.
pub(crate) async fn planned_cycle(
    job: &ReplicateJob,
    volumes: &Ec2Volumes,
    maker: &dyn SnapshotMaker,
    now: SystemTime,
) -> Result<PlannedCycle> {
    let selected = volumes::select(maker, volumes, job.shard).await?;
    let others = selected.of_others(job.shard);
    let (select, left_out) = selected.without(&others);
    let mut planned = PlannedCycle {
        volumes: selected.instances.len(),
        calls: Vec::new(),
        failures: selected.failures.clone(),
    };
    if !select.is_empty() {
        let cycle = Cycle::new(&job.name, now)?;
        let capture = CaptureJob {
            may_be_empty: !others.is_empty(),
            ..capture_job(job, volumes, &cycle, true, &select, left_out, &selected)
        };
        planned.calls = planned_calls(maker, &capture).await?;
    }
    Ok(planned)
}
