//! Keeps the machine of an instance beside the snapshots of its disks, in each repository where the disks of one instant have all
//! arrived: [`crate::repository::MachineSet`]. A failure is a warning: the copies are made.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{debug, info};

use super::cycle::CycleRun;
use super::job::{JobSource, JobTarget};
use super::report::CycleReport;
use super::state::JobState;
use crate::error::{Kind, Result};
use crate::inventory::{Inventory, OmissionReason};
use crate::repository::Address;
use crate::snapshot::VolumeSelector;
use crate::time::rfc3339_millis;

/// The report, made once, that inventories may not be read.
const DENIED: &str = "inventory denied";

/// The disks of an instance that have arrived in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ArrivedDisks {
    /// The instant whose bytes they hold, to the millisecond.
    instant: String,
    /// The volumes.
    volumes: BTreeSet<String>,
}

/// The disks of an instance, if a repository holds all those that the job selects, of one instant.
fn arrived(state: &JobState, instance: &str, repository: &str) -> Option<ArrivedDisks> {
    let mut instants = BTreeSet::new();
    let mut volumes = BTreeSet::new();
    for (id, volume) in &state.volumes {
        if !volume.is_selected || volume.instance.as_deref() != Some(instance) {
            continue;
        }
        let target = volume.targets.get(repository)?;
        let time = target.recovery_point.as_ref()?.time?;
        instants.insert(rfc3339_millis(time));
        volumes.insert(id.clone());
    }
    // Volumes that were captured one by one have instants of their own.
    let is_one = instants.len() == 1;
    let instant = instants.pop_first().filter(|_| is_one)?;
    Some(ArrivedDisks { instant, volumes })
}

impl CycleRun {
    /// Adds the sets that are complete and were not added before.
    pub(super) async fn add_sets(&self, report: &mut CycleReport) {
        let JobSource::Ec2(volumes) = &self.job.source else {
            return;
        };
        if !self.job.keeps_machines() {
            return;
        }
        let mut repositories: BTreeMap<String, &JobTarget> = BTreeMap::new();
        let copies = report.volumes.iter().flat_map(|volume| &volume.targets);
        for copy in copies.filter(|copy| copy.held.is_ok()) {
            let name = &copy.target.name;
            if let Some(target) = self.job.targets.get(copy.target.number)
                && Address::looks_like(name)
            {
                repositories.insert(name.clone(), target);
            }
        }
        for select in &volumes.select {
            let VolumeSelector::Instance(instance) = select else {
                continue;
            };
            let complete: Vec<_> = self.memory.look(|state| {
                let each = repositories.iter().filter_map(|(name, target)| {
                    let disks = arrived(state, instance, name)?;
                    let known = state.sets.get(&key(name, instance));
                    (known != Some(&disks.instant)).then(|| (name.clone(), *target, disks))
                });
                each.collect()
            });
            if complete.is_empty() {
                continue;
            }
            let Some(inventory) = self.inventory(instance, report).await else {
                continue;
            };
            for (name, target, disks) in complete {
                let added = self.add_set(target, &name, &inventory, &disks, report);
                if let Err(error) = self.stop.unless(added).await
                    && error.kind() != Kind::Stopped
                {
                    report.warn(format!(
                        "cannot keep the machine {instance} in {name}: {}",
                        error.chain()
                    ));
                }
            }
        }
    }

    /// The inventory of an instance. A refusal is reported once.
    async fn inventory(&self, instance: &str, report: &mut CycleReport) -> Option<Inventory> {
        let asked = self.places.inventory(instance);
        match self.stop.unless(asked).await {
            Ok(inventory) => {
                self.memory.update(|state| state.said.remove(DENIED));
                let omitted = inventory.omitted.iter();
                for part in omitted.filter(|part| part.reason == OmissionReason::Denied) {
                    let (part, action) = (&part.part, &part.action);
                    let what = format!(
                        "the inventories have no {part}: the caller needs the permission {action}"
                    );
                    self.say_once(&format!("inventory {action}"), what, report);
                }
                Some(inventory)
            }
            Err(error) if error.kind() == Kind::Stopped => None,
            Err(error) if error.kind() == Kind::Denied => {
                let what = format!(
                    "the machines of instances are not kept: {}; inventory = false in the job leaves them out",
                    error.chain()
                );
                self.say_once(DENIED, what, report);
                None
            }
            Err(error) => {
                report.warn(format!(
                    "cannot keep the machine {instance}: {}",
                    error.chain()
                ));
                None
            }
        }
    }

    async fn add_set(
        &self,
        target: &JobTarget,
        name: &str,
        inventory: &Inventory,
        disks: &ArrivedDisks,
        report: &mut CycleReport,
    ) -> Result<()> {
        let instance = &inventory.instance.id;
        // Disks that the job leaves out, and those that were attached after the snapshots.
        let all = inventory.disks.iter().map(|disk| disk.volume.clone());
        let (with, without): (Vec<String>, Vec<String>) =
            all.partition(|volume| disks.volumes.contains(volume));
        if with.is_empty() {
            debug!("{instance} has none of the disks any more that were copied");
            return Ok(());
        }
        let catalog = self.places.repository(target, name).await?;
        let set = catalog.add_set(inventory.clone(), &without).await?;
        let time = rfc3339_millis(set.time);
        info!("the machine {instance} is kept in {name}, with its disks of {time}");
        report.sets.push(format!("{name}#{instance}@{time}"));
        let instant = disks.instant.clone();
        self.memory
            .update(|state| state.sets.insert(key(name, instance), instant));
        Ok(())
    }
}

/// What names the sets of an instance in a repository.
pub(super) fn key(repository: &str, instance: &str) -> String {
    format!("{repository}#{instance}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    use crate::replicate::state::{RecoveryPoint, TargetState};

    const REPOSITORY: &str = "file:///r";

    /// Volumes: the instance, whether it is selected, and the time of its recovery point in the repository; 0: none, none: no target.
    fn state(volumes: &[(&str, bool, Option<u64>)]) -> JobState {
        let mut state = JobState::new("web");
        for (number, (instance, is_selected, time)) in volumes.iter().enumerate() {
            let volume = state.volumes.entry(format!("vol-{number}")).or_default();
            volume.instance = Some((*instance).to_owned()).filter(|id| !id.is_empty());
            volume.is_selected = *is_selected;
            let Some(time) = time else {
                continue;
            };
            let point = |time: u64| RecoveryPoint {
                snapshot: "snap-0a".parse().unwrap(),
                time: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(time)),
                published: None,
                arrived: None,
                late_at: None,
                damaged_blocks: 0,
            };
            let target = TargetState {
                recovery_point: (*time > 0).then(|| point(*time)),
                error: None,
            };
            volume.targets.insert(REPOSITORY.into(), target);
        }
        state
    }

    #[test]
    fn a_set_is_complete_when_all_selected_disks_of_one_instant_have_arrived() {
        for (volumes, expected) in [
            (
                &[("i-1", true, Some(9)), ("i-1", true, Some(9))][..],
                Some(&[0, 1][..]),
            ),
            // Other instances, and what is not selected any more, do not count.
            (
                &[
                    ("i-1", true, Some(9)),
                    ("i-2", true, Some(7)),
                    ("", true, None),
                    ("i-1", false, Some(3)),
                ],
                Some(&[0]),
            ),
            // One is behind, one has never arrived, one goes elsewhere.
            (&[("i-1", true, Some(9)), ("i-1", true, Some(8))], None),
            (&[("i-1", true, Some(9)), ("i-1", true, Some(0))], None),
            (&[("i-1", true, Some(9)), ("i-1", true, None)], None),
            (&[("i-2", true, Some(9))], None),
            (&[], None),
        ] {
            let found = arrived(&state(volumes), "i-1", REPOSITORY);
            let expected = expected.map(|numbers| ArrivedDisks {
                instant: "1970-01-01T00:00:09.000Z".into(),
                volumes: numbers
                    .iter()
                    .map(|number| format!("vol-{number}"))
                    .collect(),
            });
            assert_eq!(found, expected, "{volumes:?}");
        }
    }
}
