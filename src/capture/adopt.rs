//! Decides about a call from the snapshots of its cycle that EC2 lists.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use super::cycle::{CYCLE_TAG, Cycle};
use super::ownership::{Claim, Standing, standing};
use crate::snapshot::{Snapshot, SnapshotState, has_tag};

/// What to do about the volumes of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallDecision {
    /// Each has its snapshot.
    Adopt(Vec<Snapshot>),
    /// EC2 may not show all of them yet.
    LookAgain,
    /// None has one: make them.
    Create,
    /// Only some have one, and no others will appear: adopt these and make the rest by a call of its own.
    Part(Vec<Snapshot>),
}

/// Decides about a call for `volumes`. `found` are the snapshots that EC2 lists by the cycle's tag; `is_settled` means that EC2
/// has had enough time to list all of them.
pub(super) fn decide(
    volumes: &BTreeSet<String>,
    found: &[Snapshot],
    cycle: &Cycle,
    is_settled: bool,
) -> CallDecision {
    let claim = Claim {
        job: cycle.job(),
        volumes,
        recorded: &BTreeSet::new(),
    };
    let tag = cycle.to_string();
    let usable = found.iter().filter(|snapshot| {
        // A filter of EC2 can match more than one value. One in error, or in the Recycle Bin, does not count.
        has_tag(snapshot, CYCLE_TAG, &tag)
            && matches!(
                snapshot.state,
                Some(SnapshotState::Pending | SnapshotState::Completed)
            )
            && !matches!(standing(snapshot, &claim), Standing::Foreign(_))
    });
    let mut candidates: BTreeMap<&str, Vec<&Snapshot>> = BTreeMap::new();
    for snapshot in usable {
        let volume = snapshot.volume_id.as_deref().unwrap_or_default();
        candidates.entry(volume).or_default().push(snapshot);
    }
    let Some(instant) = common_start(&candidates) else {
        return match is_settled {
            true => CallDecision::Create,
            false => CallDecision::LookAgain,
        };
    };
    let adopted: Vec<Snapshot> = candidates
        .into_values()
        .filter_map(|of_volume| {
            let of_set = |snapshot: &&&Snapshot| snapshot.start_time == Some(instant);
            let set = of_volume.iter().find(of_set);
            let oldest = of_volume
                .iter()
                .min_by_key(|found| (found.start_time, &found.id));
            set.or(oldest).map(|snapshot| (*snapshot).clone())
        })
        .collect();
    if adopted.len() == volumes.len() {
        CallDecision::Adopt(adopted)
    } else if is_settled {
        CallDecision::Part(adopted)
    } else {
        CallDecision::LookAgain
    }
}

/// The start time that most volumes have a snapshot of, the earliest of several: two concurrent runs make two sets.
fn common_start(candidates: &BTreeMap<&str, Vec<&Snapshot>>) -> Option<SystemTime> {
    let mut counts: BTreeMap<SystemTime, usize> = BTreeMap::new();
    for of_volume in candidates.values() {
        let starts: BTreeSet<_> = of_volume
            .iter()
            .filter_map(|found| found.start_time)
            .collect();
        for start in starts {
            *counts.entry(start).or_default() += 1;
        }
    }
    let most = counts.values().max()?;
    let first = counts.iter().find(|(_, count)| *count == most);
    first.map(|(start, _)| *start)
}
