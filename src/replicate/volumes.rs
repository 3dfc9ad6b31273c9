//! The volumes of a cycle: selected again each time, so that new disks join; those that are not there any more are reported.

use std::collections::{BTreeMap, BTreeSet};

use super::job::ReplicateJob;
use crate::error::{Error, Kind, Result};
use crate::snapshot::{SnapshotMaker, VolumeSelector};

/// What a job selects at present.
#[derive(Debug, Default)]
pub(super) struct VolumeSelection {
    /// The selectors that name something.
    pub select: Vec<VolumeSelector>,
    /// The volumes that they name, before any is left out, and the first instance that each is attached to.
    pub instances: BTreeMap<String, Option<String>>,
    /// Selectors that name nothing.
    pub failures: Vec<Error>,
}

/// Asks EC2 for the volumes of a job. A selector that names nothing does not hold up the others.
///
/// # Errors
/// Why EC2 could not be asked.
pub(super) async fn select(
    maker: &dyn SnapshotMaker,
    job: &ReplicateJob,
) -> Result<VolumeSelection> {
    let mut selection = VolumeSelection::default();
    for select in &job.select {
        let found = match maker.volumes(select).await {
            Err(error) if error.kind() == Kind::NotFound => {
                selection.failures.push(error);
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
            selection.failures.push(Error::new(Kind::NotFound, what));
            continue;
        }
        selection.select.push(select.clone());
        for volume in found {
            let named = match select {
                VolumeSelector::Instance(id) => Some(id.clone()),
                _ => volume.instances.iter().min().cloned(),
            };
            let known = selection.instances.entry(volume.id).or_default();
            if known.is_none() || matches!(select, VolumeSelector::Instance(_)) {
                *known = named;
            }
        }
    }
    Ok(selection)
}

/// The selectors without volumes that are being copied. Volumes that are named by their ids are selected by that alone; the others
/// are left out of the call.
pub(super) fn without_busy(
    selection: &VolumeSelection,
    busy: &BTreeSet<String>,
) -> (Vec<VolumeSelector>, Vec<String>) {
    let is_free = |select: &&VolumeSelector| match select {
        VolumeSelector::Volume(id) => !busy.contains(id),
        _ => true,
    };
    let select: Vec<_> = selection.select.iter().filter(is_free).cloned().collect();
    let known = selection.instances.keys();
    let without = known.filter(|id| busy.contains(*id)).cloned().collect();
    (select, without)
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

    #[test]
    fn volumes_that_are_being_copied_are_left_out_of_the_next_cycle() {
        let volume = |id: &str| VolumeSelector::Volume(id.into());
        let instance = VolumeSelector::Instance("i-1".into());
        let selection = VolumeSelection {
            select: vec![volume("vol-0a"), volume("vol-0b"), instance.clone()],
            instances: ["vol-0a", "vol-0b", "vol-0c"]
                .map(|id| (id.to_owned(), None))
                .into(),
            failures: Vec::new(),
        };
        for (busy, select, without) in [
            (&[][..], selection.select.clone(), &[][..]),
            (
                &["vol-0a"],
                vec![volume("vol-0b"), instance.clone()],
                &["vol-0a"],
            ),
            (&["vol-0c", "vol-0f"], selection.select.clone(), &["vol-0c"]),
        ] {
            let busy = busy.iter().map(|id| (*id).to_owned()).collect();
            let (found, left_out) = without_busy(&selection, &busy);
            assert_eq!(found, select, "{busy:?}");
            assert_eq!(left_out, without, "{busy:?}");
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
