//! A job whose source is a repository: it makes no snapshots. Another job, on a machine beside the volumes, fills the repository, and a
//! cycle here copies the newest snapshot of each volume of which a target is known to hold an older one, or nothing.
//!
//! ```text
//! look      one listing of the manifests; where it shows nothing new, the cycle ends here
//! prove     where something is to be done, a listing that is proven to lack none of the manifests that must be there
//! before    the command of the job
//! ```
//! What is seen in a listing exists. What is missing in it may exist: so the first listing only decides that nothing is to be done, and
//! a target that holds a newer snapshot than the newest one listed is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use tracing::debug;

use super::cycle::CycleRun;
use super::hooks::{self, HookTime};
use super::job::{GatewaySource, JobTarget};
use super::report::CycleReport;
use super::shard::Shard;
use super::state::{CopyUnderWay, JobState, TargetState, VolumeState};
use super::template::{Assignment, CycleVolume, assign};
use super::volumes::vanished;
use crate::capture::Cycle;
use crate::error::{Error, Kind, Result};
use crate::repository::ManifestName;

/// The newest snapshots of the volumes of a job.
#[derive(Debug, Default, PartialEq, Eq)]
struct NewestSnapshots {
    /// By volume.
    found: BTreeMap<String, ManifestName>,
    /// Volumes that the job names and that have none.
    absent: BTreeSet<String>,
}

impl NewestSnapshots {
    /// All volumes that the job has.
    fn volumes(&self) -> BTreeSet<String> {
        self.found.keys().chain(&self.absent).cloned().collect()
    }

    /// The targets of all volumes, of those too that have no snapshot yet.
    fn assignment(&self, targets: &[JobTarget]) -> Assignment {
        let volumes = self.volumes().into_iter();
        let volumes = volumes.map(|id| CycleVolume { id, instance: None });
        assign(targets, &volumes.collect())
    }

    /// Whether a complete listing may show something else that matters: a volume has none, or has none any more.
    fn lacks_some(&self, state: &JobState) -> bool {
        let known = state.volumes.iter();
        let known = known.filter(|(_, volume)| volume.is_selected);
        !self.absent.is_empty() || !vanished(known.map(|(id, _)| id), &self.volumes()).is_empty()
    }
}

/// Selects the newest snapshot of each volume of a shard of a job; its unit is the volume. Snapshots of unknown volumes may be of several, and are left out.
fn newest(names: &[ManifestName], from: &GatewaySource, shard: Shard) -> NewestSnapshots {
    let is_its = |id: &str| {
        let is_named = from.volumes.is_empty() || from.volumes.contains(id);
        is_named && !from.without.contains(id) && shard.has(id)
    };
    let mut found: BTreeMap<String, ManifestName> = BTreeMap::new();
    for name in names.iter().filter(|name| !name.volume.is_unknown()) {
        let id = name.volume.as_str();
        if is_its(id) && found.get(id).is_none_or(|newest| newest < name) {
            found.insert(id.to_owned(), name.clone());
        }
    }
    let named = from.volumes.iter();
    let absent = named.filter(|id| is_its(id) && !found.contains_key(*id));
    NewestSnapshots {
        absent: absent.cloned().collect(),
        found,
    }
}

/// Whether a target is to become the newest snapshot. One that holds a newer one is left alone: the newest of the repository was removed
/// meanwhile.
fn is_behind(target: Option<&TargetState>, newest: &ManifestName) -> bool {
    let Some(target) = target else {
        return true;
    };
    match &target.recovery_point {
        None => true,
        Some(point) if point.snapshot == newest.snapshot => target.error.is_some(),
        Some(point) => point.time.is_none_or(|time| time < newest.time),
    }
}

/// The volumes with a target that is behind, each with the snapshot to copy. Those with a copy under way are left out.
fn to_copy(
    newest: &NewestSnapshots,
    assignment: &Assignment,
    known: &BTreeMap<String, VolumeState>,
    cycle: &Cycle,
    busy: &BTreeSet<String>,
) -> BTreeMap<String, CopyUnderWay> {
    let mut copies = BTreeMap::new();
    for (id, name) in newest.found.iter().filter(|(id, _)| !busy.contains(*id)) {
        let its = assignment.volumes.get(id).into_iter().flatten();
        let states = known.get(id).map(|volume| &volume.targets);
        let mut states =
            its.map(|target| states.and_then(|states| states.get(target.name.as_str())));
        if states.any(|state| is_behind(state, name)) {
            let copy = CopyUnderWay {
                cycle: cycle.to_string(),
                snapshot: name.snapshot.clone(),
                instance: None,
                since: None,
                phase: None,
            };
            copies.insert(id.clone(), copy);
        }
    }
    copies
}

impl CycleRun {
    /// The copies of a cycle. It is idle where there is none and nothing failed.
    ///
    /// # Errors
    /// Why the repository cannot be listed; `Undecided` when it lacks manifests that must be there; why the command before failed.
    pub(super) async fn plan_copies(
        &self,
        from: &GatewaySource,
        cycle: &Cycle,
        busy: &BTreeSet<String>,
        report: &mut CycleReport,
    ) -> Result<BTreeMap<String, CopyUnderWay>> {
        let looked = self.find_newest(from, cycle, busy);
        let found = self.stop.unless(looked).await;
        let found = found.map_err(|error| {
            let what = format!("cannot look for new snapshots in {}", from.address);
            error.context(what)
        })?;
        for id in &found.absent {
            let what = format!(
                "cannot replicate {id}: {} has no snapshot of it",
                from.address
            );
            report.failures.push(Error::new(Kind::NotFound, what));
        }
        self.record_selection(&found.volumes(), &BTreeSet::new(), report);
        let assignment = found.assignment(&self.job.targets);
        let copies = self
            .memory
            .look(|state| to_copy(&found, &assignment, &state.volumes, cycle, busy));
        // Those of volumes that are copied are reported with the copies.
        let problems = assignment.problems.into_iter().filter(|problem| {
            let mut its = problem.volumes.iter();
            let is_absent = problem.volumes.is_subset(&found.absent);
            !is_absent && !its.any(|id| copies.contains_key(id))
        });
        report
            .failures
            .extend(problems.map(|problem| problem.error));
        if copies.is_empty() {
            report.is_idle = report.failures.is_empty();
            debug!("nothing new in {}", from.address);
            self.memory.update(|state| state.under_way = None);
            return Ok(copies);
        }
        let (job, hooks) = (&self.job.name, &self.job.hooks);
        let before = hooks::run(hooks, HookTime::Before, job, report, &self.stop);
        if let Err(error) = before.await {
            if error.kind() != Kind::Stopped {
                self.memory.update(|state| state.under_way = None);
            }
            return Err(error);
        }
        self.memory.update(|state| {
            for (volume, copy) in &copies {
                let volume = state.volumes.entry(volume.clone()).or_default();
                volume.under_way = Some(CopyUnderWay {
                    since: Some(SystemTime::now()),
                    ..copy.clone()
                });
            }
            state.under_way = None;
        });
        Ok(copies)
    }

    /// Lists the newest snapshots: cheaply where nothing is to be done, else with proof.
    async fn find_newest(
        &self,
        from: &GatewaySource,
        cycle: &Cycle,
        busy: &BTreeSet<String>,
    ) -> Result<NewestSnapshots> {
        let catalog = self.places.source_repository().await?;
        let found = newest(&catalog.names().await?, from, self.job.shard);
        let assignment = found.assignment(&self.job.targets);
        let is_quiet = self.memory.look(|state| {
            let copies = to_copy(&found, &assignment, &state.volumes, cycle, busy);
            copies.is_empty() && !found.lacks_some(state)
        });
        if is_quiet {
            return Ok(found);
        }
        let names = catalog.proven_names(None).await?;
        Ok(newest(&names, from, self.job.shard))
    }
}

#[cfg(test)]
mod tests;
