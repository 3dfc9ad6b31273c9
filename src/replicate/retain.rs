//! Which snapshots of a volume a job may delete at the source. Ownership is decided before ([`crate::capture::standing`]): only
//! snapshots that are the job's own come here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

use crate::block::hexadecimal;
use crate::snapshot::{Snapshot, SnapshotId};

/// A snapshot of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnSnapshot {
    /// Its id.
    pub(crate) id: SnapshotId,
    /// The instant whose bytes it holds; none: it stays.
    pub(crate) time: Option<SystemTime>,
    /// Whether it is completed.
    pub(crate) is_completed: bool,
    /// Whether EC2 could not complete it.
    pub(crate) is_failed: bool,
}

/// The snapshots that the targets of a volume need as bases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NeededBases {
    /// These: what each target holds, and what an unfinished copy comes from and leads to.
    These(BTreeSet<SnapshotId>),
    /// A target could not be asked: any snapshot may be its base.
    Unknown,
}

impl NeededBases {
    /// Adds what another target needs; none: it could not be asked.
    pub(crate) fn add(&mut self, more: Option<BTreeSet<SnapshotId>>) {
        match (&mut *self, more) {
            (Self::These(ids), Some(more)) => ids.extend(more),
            _ => *self = Self::Unknown,
        }
    }
}

/// What the tag begins with that claims a snapshot for images and devices of a machine: no other machine can ask these. The claimant
/// follows.
pub(super) const CLAIM_TAG: &str = "ebsfs:needed-";
/// The claim of a copy that is under way.
pub(super) const COPYING: &str = "copying";
/// The claim of a copy that has ended: the claimant needs no older snapshot.
pub(super) const HOLDS: &str = "holds";
/// A claim on a snapshot that is so much older than the newest one is of a machine that does not run the job any more.
const CLAIM_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Who claims a snapshot for these images and devices of a machine: digits of the SHA-256 of its id and their names. A new state
/// directory, or another order of the targets, makes no new claimant.
pub(super) fn claimant<'a>(machine: &str, targets: impl Iterator<Item = &'a str>) -> String {
    let names: BTreeSet<&str> = targets.collect();
    let names: Vec<&str> = names.into_iter().collect();
    let digest = hexadecimal(&Sha256::digest(format!("{machine}\n{}", names.join("\n"))));
    digest.get(..16).unwrap_or(&digest).to_owned()
}

/// The snapshots of a volume that other claimants than `own` need: of each the newest that it holds, and all newer ones that it
/// copies; where it holds none, all that it copies.
pub(super) fn claimed_elsewhere(snapshots: &[&Snapshot], own: &str) -> BTreeSet<SnapshotId> {
    let mut sorted = snapshots.to_vec();
    sorted.sort_by(|a, b| (b.start_time, &b.id).cmp(&(a.start_time, &a.id)));
    let newest = sorted.first().and_then(|snapshot| snapshot.start_time);
    let oldest = newest.and_then(|newest| newest.checked_sub(CLAIM_LIFE));
    // Claimants whose newest held snapshot was found.
    let mut settled: BTreeMap<&str, bool> = BTreeMap::new();
    let mut claimed = BTreeSet::new();
    for snapshot in sorted {
        if snapshot.start_time < oldest {
            continue;
        }
        for (key, value) in &snapshot.tags {
            let Some(other) = key.strip_prefix(CLAIM_TAG).filter(|other| *other != own) else {
                continue;
            };
            let is_settled = settled.entry(other).or_default();
            if !*is_settled {
                claimed.insert(snapshot.id.clone());
                *is_settled = value == HOLDS;
            }
        }
    }
    claimed
}

/// The snapshots to delete, the oldest first. All of `own` are of one volume; `newest` is the one of this cycle. What stays:
/// 1. everything where a target could not be asked;
/// 2. what a target needs;
/// 3. this cycle's snapshot and what is newer: a later cycle may adopt it;
/// 4. the newest `keep` that are completed;
/// 5. what is pending, or of an unknown time.
pub(super) fn removable(
    own: &[OwnSnapshot],
    newest: &SnapshotId,
    needed: &NeededBases,
    keep: usize,
) -> Vec<SnapshotId> {
    let NeededBases::These(needed) = needed else {
        return Vec::new();
    };
    // Without this cycle's snapshot among them nothing tells which are older.
    let Some(limit) = own
        .iter()
        .find(|one| one.id == *newest)
        .and_then(|one| one.time)
    else {
        return Vec::new();
    };
    let mut sorted: Vec<&OwnSnapshot> = own.iter().collect();
    sorted.sort_by(|a, b| (b.time, &b.id).cmp(&(a.time, &a.id)));
    let mut kept = 0;
    let mut removed = Vec::new();
    for one in sorted {
        let is_counted = one.is_completed && kept < keep.max(1);
        kept += usize::from(is_counted);
        let is_old = one.time.is_some_and(|time| time < limit);
        let has_ended = one.is_completed || one.is_failed;
        if !is_counted && is_old && has_ended && !needed.contains(&one.id) {
            removed.push(one.id.clone());
        }
    }
    removed.reverse();
    removed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn id(name: &str) -> SnapshotId {
        format!("snap-{name}").parse().unwrap()
    }

    /// `c1`: completed at 1; `p`: pending; `e`: in error; `c-`: without a time.
    fn own(names: &[&str]) -> Vec<OwnSnapshot> {
        let one = |name: &&str| OwnSnapshot {
            id: id(name.get(1..).unwrap().replace('-', "f").as_str()),
            time: name
                .get(1..)
                .unwrap()
                .parse()
                .ok()
                .map(|at| SystemTime::UNIX_EPOCH + Duration::from_secs(at)),
            is_completed: name.starts_with('c'),
            is_failed: name.starts_with('e'),
        };
        names.iter().map(one).collect()
    }

    fn these(ids: &[&str]) -> NeededBases {
        NeededBases::These(ids.iter().map(|name| id(name)).collect())
    }

    #[test]
    fn only_what_no_target_needs_and_no_rule_keeps_is_deleted() {
        for (names, newest, needed, keep, removed) in [
            // All targets hold the newest.
            (
                &["c1", "c2", "c3"][..],
                "3",
                these(&["3"]),
                1,
                &["1", "2"][..],
            ),
            (&["c3", "c1", "c2"], "3", these(&["3"]), 2, &["1"]),
            (&["c1", "c2", "c3"], "3", these(&["3"]), 0, &["1", "2"]),
            // A target is behind: its base stays, and what its unfinished copy leads to.
            (
                &["c1", "c2", "c3", "c4"],
                "4",
                these(&["1", "3", "4"]),
                1,
                &["2"],
            ),
            // A target could not be asked.
            (&["c1", "c2", "c3"], "3", NeededBases::Unknown, 1, &[]),
            // Another proxy is ahead.
            (&["c1", "c2", "c3"], "2", these(&["2"]), 1, &["1"]),
            (&["c1", "c2", "c3", "c4"], "2", these(&["2"]), 1, &["1"]),
            // Pending ones stay, failed ones do not and are not counted.
            (&["p1", "e2", "c3"], "3", these(&["3"]), 1, &["2"]),
            (&["c1", "e2", "c3"], "3", these(&["3"]), 2, &["2"]),
            // This cycle's snapshot is pending: the newest completed one stays.
            (&["c1", "c2", "p3"], "3", these(&[]), 1, &["1"]),
            // Unknown times.
            (&["c-", "c1", "c2"], "2", these(&["2"]), 1, &["1"]),
            (&["c1", "c2"], "9", these(&["2"]), 1, &[]),
            (&[], "1", these(&[]), 1, &[]),
        ] {
            let expected: Vec<_> = removed.iter().map(|name| id(name)).collect();
            let found = removable(&own(names), &id(newest), &needed, keep);
            assert_eq!(found, expected, "{names:?} {newest} {needed:?} {keep}");
        }
    }

    #[test]
    fn a_claimant_is_a_machine_and_its_targets() {
        let of = |machine, targets: &[&str]| claimant(machine, targets.iter().copied());
        assert_eq!(of("m", &["/a", "/b"]), of("m", &["/b", "/a"]));
        let all: BTreeSet<_> = [
            ("m", &["/a"][..]),
            ("n", &["/a"]),
            ("m", &["/b"]),
            ("m", &["/a", "/b"]),
        ]
        .map(|(machine, targets)| of(machine, targets))
        .into();
        assert_eq!(all.len(), 4);
    }

    #[test]
    fn what_other_machines_claim_is_the_newest_that_they_hold_and_what_they_copy() {
        let day = 24 * 3600;
        let snapshot = |at: u64, claims: &str| {
            let mut snapshot = Snapshot::unknown(id(&at.to_string()));
            snapshot.start_time = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(at * day));
            let claims = claims.split_whitespace().map(|claim| {
                let (proxy, value) = claim.split_once('=').unwrap();
                (format!("{CLAIM_TAG}{proxy}"), value.to_owned())
            });
            snapshot.tags = claims.collect();
            snapshot
        };
        for (claims, claimed) in [
            (&[(1, ""), (2, "")][..], &[][..]),
            // Its own claims are not asked: it asks its targets.
            (&[(1, "me=holds"), (2, "me=copying")], &[]),
            (&[(1, "a=holds"), (2, "a=holds"), (3, "")], &[2]),
            (
                &[(1, "a=holds"), (2, "a=copying"), (3, "a=copying")],
                &[1, 2, 3],
            ),
            (&[(1, "a=copying"), (2, "a=copying")], &[1, 2]),
            (&[(1, "a=copying"), (2, "a=holds")], &[2]),
            (
                &[(1, "a=holds b=holds"), (2, "b=holds"), (3, "me=holds")],
                &[1, 2],
            ),
            // It has not run for a month.
            (&[(1, "a=holds"), (40, "me=holds")], &[]),
            (&[(11, "a=holds"), (40, "me=holds")], &[11]),
        ] {
            let all: Vec<Snapshot> = claims
                .iter()
                .map(|(at, text)| snapshot(*at, text))
                .collect();
            let found = claimed_elsewhere(&all.iter().collect::<Vec<_>>(), "me");
            let expected = claimed.iter().map(|at: &u64| id(&at.to_string())).collect();
            assert_eq!(found, expected, "{claims:?}");
        }
    }

    #[test]
    fn a_target_that_cannot_be_asked_makes_all_unknown() {
        let mut needed = these(&["1"]);
        needed.add(Some([id("2")].into()));
        assert_eq!(needed, these(&["1", "2"]));
        needed.add(None);
        needed.add(Some([id("3")].into()));
        assert_eq!(needed, NeededBases::Unknown);
    }
}
