//! [`Retention`]: which snapshots stay. A pure function of the snapshots and the policy: it reads no clock and no store.
//!
//! Each rule reads the snapshots of a volume from the newest to the oldest. `last` keeps that many snapshots; `hourly` to
//! `yearly` keep the newest snapshot of each of that many periods, those without a snapshot not counted; `within` keeps those
//! that are at most that much older than the newest snapshot of the volume. A snapshot that any rule keeps stays. Periods are
//! those of UTC, weeks those of ISO 8601.

mod calendar;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::manifest::ManifestName;
use crate::error::{Error, Kind, Remedy, Result};
use crate::target::VolumeKey;
pub(crate) use calendar::Period;

/// Which snapshots stay. Without a rule all of them do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retention {
    /// How many of the newest snapshots of each volume to keep.
    pub(crate) last: Option<usize>,
    /// For how many periods of each kind to keep the newest snapshot of each volume.
    pub(crate) periods: BTreeMap<Period, usize>,
    /// The most time before the volume's newest snapshot.
    pub(crate) within: Option<Duration>,
    /// Only snapshots of these volumes are removed; none: of all volumes.
    pub(crate) volumes: BTreeSet<VolumeKey>,
    /// Only snapshots that have all of these tags are removed.
    pub(crate) tags: BTreeMap<String, String>,
    /// A volume may lose all of its snapshots.
    pub(crate) remove_all: bool,
}

/// A snapshot that a retention decides on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RetentionCandidate {
    /// Its manifest's name.
    pub(crate) name: ManifestName,
    /// Its tags; only a retention with tags reads them.
    pub(crate) tags: BTreeMap<String, String>,
    /// Whether it is pinned.
    pub(crate) is_pinned: bool,
}

/// Why a snapshot stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// There is no rule.
    NoRule,
    /// It is pinned.
    Pinned,
    /// Its volume is unknown: no other snapshot is a newer version of it.
    UnknownVolume,
    /// The rules are for other volumes or tags.
    NotCovered,
    /// It is one of the newest.
    Last,
    /// It is the newest of a period, which has this name.
    Newest(Period, String),
    /// It is not old.
    Within,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRule => "no rule",
            Self::Pinned => "pinned",
            Self::UnknownVolume => "unknown volume",
            Self::NotCovered => "not covered",
            Self::Last => "last",
            Self::Newest(period, name) => return write!(f, "{period} {name}"),
            Self::Within => "within",
        })
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The decision on a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RetentionDecision {
    /// Its manifest's name.
    pub(crate) name: ManifestName,
    /// Why it stays; empty if it is removed.
    pub(crate) reasons: Vec<Reason>,
}

impl Serialize for RetentionDecision {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut shown = serializer.serialize_struct("RetentionDecision", 6)?;
        shown.serialize_field("name", &self.name.to_string())?;
        shown.serialize_field("snapshot", &self.name.snapshot)?;
        shown.serialize_field("volume", &self.name.volume)?;
        shown.serialize_field("time", &crate::time::rfc3339_seconds(self.name.time))?;
        shown.serialize_field("kept", &self.is_kept())?;
        shown.serialize_field("reasons", &self.reasons)?;
        shown.end()
    }
}

impl RetentionDecision {
    /// Whether the snapshot stays.
    pub(crate) fn is_kept(&self) -> bool {
        !self.reasons.is_empty()
    }
}

/// The decisions on all snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Decisions {
    /// Each snapshot, by volume, the newest first.
    pub(crate) snapshots: Vec<RetentionDecision>,
    /// Volumes that would lose all of their snapshots.
    pub(crate) emptied: Vec<VolumeKey>,
    /// Pinned snapshots.
    pub(crate) pinned: usize,
    /// Snapshots of unknown volumes, which no rule covers.
    pub(crate) unknown: usize,
    /// Snapshots of other volumes or tags than the rules are for.
    pub(crate) not_covered: usize,
}

impl Decisions {
    /// The snapshots to remove, the oldest of a volume first.
    pub(crate) fn removed(&self) -> impl Iterator<Item = &ManifestName> {
        let removed = self.snapshots.iter().rev();
        removed.filter(|one| !one.is_kept()).map(|one| &one.name)
    }

    /// Refuses to remove all snapshots of a volume.
    ///
    /// # Errors
    /// `Undecided` when a volume would lose all, and the retention does not allow that.
    pub(crate) fn check(&self, retention: &Retention) -> Result<()> {
        if self.emptied.is_empty() || retention.remove_all {
            return Ok(());
        }
        let keys: Vec<&str> = self.emptied.iter().map(VolumeKey::as_str).collect();
        let what = format!(
            "cannot prune: no snapshot of {} would stay",
            keys.join(", ")
        );
        Err(Error::new(Kind::Undecided, what).with_remedy(Remedy::RemoveAll))
    }
}

impl Retention {
    /// Whether it has a rule: without one nothing is removed.
    pub(crate) fn has_rules(&self) -> bool {
        self.last.is_some() || self.within.is_some() || !self.periods.is_empty()
    }

    /// Decides which of the snapshots stay. They come in any order.
    pub(crate) fn decide(&self, candidates: &[RetentionCandidate]) -> Decisions {
        let mut volumes: BTreeMap<&VolumeKey, Vec<&RetentionCandidate>> = BTreeMap::new();
        for candidate in candidates {
            let its = volumes.entry(&candidate.name.volume).or_default();
            its.push(candidate);
        }
        let mut decisions = Decisions::default();
        for (volume, mut its) in volumes {
            its.sort_by(|a, b| b.name.cmp(&a.name));
            let decided = self.decide_volume(volume, &its);
            if !decided.iter().any(RetentionDecision::is_kept) {
                decisions.emptied.push(volume.clone());
            }
            let count = |reason| {
                let has = decided.iter().filter(|one| one.reasons.contains(&reason));
                has.count()
            };
            decisions.pinned += count(Reason::Pinned);
            decisions.unknown += count(Reason::UnknownVolume);
            decisions.not_covered += count(Reason::NotCovered);
            decisions.snapshots.extend(decided);
        }
        decisions
    }

    /// Decides on the snapshots of one volume, the newest first.
    fn decide_volume(
        &self,
        volume: &VolumeKey,
        its: &[&RetentionCandidate],
    ) -> Vec<RetentionDecision> {
        let mut rules = RuleProgress::of(self, its.first().map(|newest| &newest.name));
        let decide = |candidate: &&RetentionCandidate| {
            let mut reasons = Vec::new();
            if candidate.is_pinned {
                reasons.push(Reason::Pinned);
            }
            if !self.has_rules() {
                reasons.push(Reason::NoRule);
            } else if volume.is_unknown() {
                reasons.push(Reason::UnknownVolume);
            } else if !self.covers(candidate) {
                reasons.push(Reason::NotCovered);
            } else {
                reasons.extend(rules.next(&candidate.name));
            }
            RetentionDecision {
                name: candidate.name.clone(),
                reasons,
            }
        };
        its.iter().map(decide).collect()
    }

    fn covers(&self, candidate: &RetentionCandidate) -> bool {
        let has_volume = self.volumes.is_empty() || self.volumes.contains(&candidate.name.volume);
        let has = |(key, value): (&String, &String)| candidate.tags.get(key) == Some(value);
        has_volume && self.tags.iter().all(has)
    }
}

/// The state of the rules while they pass over the covered snapshots of a volume.
struct RuleProgress<'a> {
    last: usize,
    within: Option<(Duration, &'a ManifestName)>,
    /// Periods still to keep, and the one that was kept last.
    periods: Vec<(Period, usize, Option<String>)>,
}

impl<'a> RuleProgress<'a> {
    fn of(retention: &Retention, newest: Option<&'a ManifestName>) -> Self {
        let periods = retention.periods.iter();
        Self {
            last: retention.last.unwrap_or(0),
            within: retention.within.zip(newest),
            periods: periods.map(|(period, n)| (*period, *n, None)).collect(),
        }
    }

    /// Why the next older snapshot stays.
    fn next(&mut self, name: &ManifestName) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if let Some(left) = self.last.checked_sub(1) {
            self.last = left;
            reasons.push(Reason::Last);
        }
        if let Some((within, newest)) = self.within {
            // Sorted: the newest is no older.
            let age = newest.time.duration_since(name.time).unwrap_or_default();
            if age <= within {
                reasons.push(Reason::Within);
            }
        }
        for (period, left, kept) in &mut self.periods {
            let its = period.name_of(name.time);
            if *left > 0 && kept.as_ref() != Some(&its) {
                *left -= 1;
                reasons.push(Reason::Newest(*period, its.clone()));
                *kept = Some(its);
            }
        }
        reasons
    }
}

#[cfg(test)]
mod tests;
