//! The volumes of a cycle: selected again each time, so that new disks join; those that are not there any more are reported. A shard
//! takes those of its units.

use std::collections::{BTreeMap, BTreeSet};

use super::job::Ec2Volumes;
use super::shard::Shard;
use crate::error::{Error, Kind, Result};
use crate::snapshot::{SnapshotMaker, VolumeSelector};

/// What a job selects at present.
#[derive(Debug, Default)]
pub(super) struct VolumeSelection {
    /// The selectors that name something, and the volumes that each names.
    pub(crate) select: Vec<(VolumeSelector, BTreeSet<String>)>,
    /// All of these volumes, before any is left out, and the instance whose set each is in.
    pub(crate) instances: BTreeMap<String, Option<String>>,
    /// Selectors that name nothing. One shard reports each.
    pub(crate) failures: Vec<Error>,
}

/// Asks EC2 for the volumes of a job. A selector that names nothing does not hold up the others.
///
/// # Errors
/// Why EC2 could not be asked.
pub(super) async fn select(
    maker: &dyn SnapshotMaker,
    volumes: &Ec2Volumes,
    shard: Shard,
) -> Result<VolumeSelection> {
    let mut selection = VolumeSelection::default();
    for select in &volumes.select {
        let found = match maker.volumes(select).await {
            Err(error) if error.kind() == Kind::NotFound => {
                selection.fail(select, shard, error);
                continue;
            }
            found => found?,
        };
        if found.is_empty() {
            let what = match select {
                VolumeSelector::Volume(id) => format!("cannot replicate {id}: it does not exist"),
                VolumeSelector::Instance(id) => {
                    format!("cannot replicate {id}: no volume is attached to it")
                }
                VolumeSelector::Tag { key, value } => {
                    format!("cannot replicate volumes with the tag {key}={value}: there is none")
                }
            };
            selection.fail(select, shard, Error::new(Kind::NotFound, what));
            continue;
        }
        let ids = found.iter().map(|volume| volume.id.clone()).collect();
        selection.select.push((select.clone(), ids));
        for volume in found {
            // As [`crate::capture`] puts volumes into sets: by the first instance that is named, else the first of all.
            let named = volume
                .instances
                .iter()
                .filter(|id| is_named(volumes, id))
                .min();
            let first = named.or(volume.instances.iter().min()).cloned();
            selection.instances.insert(volume.id, first);
        }
    }
    Ok(selection)
}

fn is_named(volumes: &Ec2Volumes, instance: &str) -> bool {
    let mut selectors = volumes.select.iter();
    selectors.any(|select| matches!(select, VolumeSelector::Instance(id) if id == instance))
}

impl VolumeSelection {
    fn fail(&mut self, select: &VolumeSelector, shard: Shard, error: Error) {
        let unit = match select {
            VolumeSelector::Volume(id) | VolumeSelector::Instance(id) => id.clone(),
            VolumeSelector::Tag { key, value } => format!("{key}={value}"),
        };
        if shard.has(&unit) {
            self.failures.push(error);
        }
    }

    /// The volumes that other shards take.
    pub(super) fn of_others(&self, shard: Shard) -> BTreeSet<String> {
        let volumes = self.instances.iter();
        let of_others = volumes.filter(|(id, instance)| {
            let unit = instance.as_ref().unwrap_or(id);
            !shard.has(unit)
        });
        of_others.map(|(id, _)| id.clone()).collect()
    }

    /// The selectors that name a free volume, and the volumes that the call must leave out.
    pub(super) fn without(&self, blocked: &BTreeSet<String>) -> (Vec<VolumeSelector>, Vec<String>) {
        let has_free = |(_, ids): &&(VolumeSelector, BTreeSet<String>)| !ids.is_subset(blocked);
        let free: Vec<_> = self.select.iter().filter(has_free).collect();
        let named: BTreeSet<&String> = free.iter().flat_map(|(_, ids)| ids).collect();
        let left_out = named.into_iter().filter(|id| blocked.contains(*id));
        let left_out = left_out.cloned().collect();
        let select = free.into_iter().map(|(select, _)| select.clone());
        (select.collect(), left_out)
    }
}

/// The volumes that the last cycle had and that are not selected any more.
pub(super) fn vanished<'a>(
    before: impl IntoIterator<Item = &'a String>,
    selected: &BTreeSet<String>,
) -> Vec<String> {
    let before = before.into_iter();
    before
        .filter(|id| !selected.contains(*id))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(
        selectors: &[(VolumeSelector, &[&str])],
        homes: &[(&str, &str)],
    ) -> VolumeSelection {
        let ids = |all: &[&str]| all.iter().map(|id| (*id).to_owned()).collect();
        let select = selectors.iter();
        let select = select.map(|(select, all)| (select.clone(), ids(all)));
        let instances = homes.iter().map(|(id, home)| {
            let home = (!home.is_empty()).then(|| (*home).to_owned());
            ((*id).to_owned(), home)
        });
        VolumeSelection {
            select: select.collect(),
            instances: instances.collect(),
            failures: Vec::new(),
        }
    }

    fn volume(id: &str) -> VolumeSelector {
        VolumeSelector::Volume(id.into())
    }

    #[test]
    fn volumes_that_are_being_copied_are_left_out_of_the_next_cycle() {
        let instance = VolumeSelector::Instance("i-1".into());
        let all = [volume("vol-0a"), volume("vol-0b"), instance.clone()];
        let found = selection(
            &[
                (all[0].clone(), &["vol-0a"]),
                (all[1].clone(), &["vol-0b"]),
                (instance.clone(), &["vol-0a", "vol-0c"]),
            ],
            &[("vol-0a", "i-1"), ("vol-0b", ""), ("vol-0c", "i-1")],
        );
        for (busy, select, without) in [
            (&[][..], all.to_vec(), &[][..]),
            (
                &["vol-0a"],
                vec![volume("vol-0b"), instance.clone()],
                &["vol-0a"],
            ),
            // Nothing is left out of what no call names.
            (&["vol-0b"], vec![volume("vol-0a"), instance.clone()], &[]),
            (&["vol-0c", "vol-0f"], all.to_vec(), &["vol-0c"]),
            (&["vol-0a", "vol-0c"], vec![volume("vol-0b")], &[]),
            (&["vol-0a", "vol-0b", "vol-0c"], vec![], &[]),
        ] {
            let busy = busy.iter().map(|id| (*id).to_owned()).collect();
            let (kept, left_out) = found.without(&busy);
            assert_eq!(kept, select, "{busy:?}");
            assert_eq!(left_out, without, "{busy:?}");
        }
    }

    #[test]
    fn the_volumes_of_an_instance_are_of_one_shard_and_each_volume_is_of_one() {
        let homes: Vec<(String, String)> = (0..60)
            .map(|number| {
                let home = match number % 3 {
                    0 => String::new(),
                    _ => format!("i-{:x}", number / 6),
                };
                (format!("vol-{number:02x}"), home)
            })
            .collect();
        let homes: Vec<(&str, &str)> = homes.iter().map(|(id, home)| (&**id, &**home)).collect();
        let found = selection(&[], &homes);
        let mut owners: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
        let mut taken = Vec::new();
        for index in 0..4 {
            let others = found.of_others(Shard::new(index, 4).unwrap());
            let own = homes.iter().filter(|(id, _)| !others.contains(*id));
            for (id, home) in own {
                taken.push(*id);
                if !home.is_empty() {
                    owners.entry(home).or_default().insert(index);
                }
            }
        }
        taken.sort_unstable();
        assert_eq!(taken, homes.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        assert!(
            owners.values().all(|shards| shards.len() == 1),
            "{owners:?}"
        );
        let shards: BTreeSet<u64> = owners.values().flatten().copied().collect();
        assert!(shards.len() > 1, "{owners:?}");
        assert!(found.of_others(Shard::WHOLE).is_empty());
    }

    #[test]
    fn one_shard_reports_a_selector_that_names_nothing() {
        for select in [
            volume("vol-0a"),
            VolumeSelector::Instance("i-1".into()),
            VolumeSelector::Tag {
                key: "Backup".into(),
                value: "yes".into(),
            },
        ] {
            let reports = (0..4).map(|index| {
                let mut found = VolumeSelection::default();
                let error = Error::new(Kind::NotFound, "why");
                found.fail(&select, Shard::new(index, 4).unwrap(), error);
                found.failures.len()
            });
            assert_eq!(reports.sum::<usize>(), 1, "{select:?}");
        }
    }

    #[test]
    fn what_was_selected_before_and_is_not_now_has_vanished() {
        let before = ["vol-0a".to_owned(), "vol-0b".to_owned()];
        let now = ["vol-0b".to_owned(), "vol-0c".to_owned()].into();
        assert_eq!(vanished(&before, &now), ["vol-0a"]);
        assert!(vanished(&before, &before.iter().cloned().collect()).is_empty());
    }
}
