//! [`DrillMemory`]: what a job remembers of the drills of its recovery points.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{StateError, time_text};

/// What is remembered of the drills of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DrillMemory {
    /// When drills are due, in words.
    pub(crate) schedule: String,
    /// When the next ones are due.
    #[serde(with = "time_text")]
    pub(crate) next: Option<SystemTime>,
    /// By the id of an instance whose set is drilled, or of a volume.
    pub(crate) units: BTreeMap<String, UnitDrills>,
}

/// What is remembered of the drills of an instance or a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnitDrills {
    /// Since when it has a recovery point that can be drilled.
    #[serde(with = "time_text")]
    pub(crate) since: Option<SystemTime>,
    /// When its next drill is overdue; none: its newest recovery point was drilled.
    #[serde(with = "time_text")]
    pub(crate) overdue_at: Option<SystemTime>,
    /// The last drill that came to a result.
    pub(crate) last: Option<LastDrill>,
    /// Why a later drill came to none.
    pub(crate) failure: Option<StateError>,
}

/// Keeps a second process from drills of the same job while this lives. Cycles are not kept from running.
#[derive(Debug)]
pub(crate) struct DrillLock {
    _file: File,
}

impl DrillLock {
    pub(super) fn new(file: File) -> Self {
        Self { _file: file }
    }
}

/// A drill that came to a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastDrill {
    /// What was drilled, as `ebsfs drill` names it.
    pub(crate) source: String,
    /// The snapshot, or the instant of the set.
    pub(crate) point: String,
    /// The instant whose bytes it holds.
    #[serde(with = "time_text")]
    pub(crate) time: Option<SystemTime>,
    /// When the drill began.
    #[serde(with = "time_text")]
    pub(crate) started: Option<SystemTime>,
    /// When it ended.
    #[serde(with = "time_text")]
    pub(crate) ended: Option<SystemTime>,
    /// Its partitions by their result: `clean`, `replayed`, `repaired`, `damaged`, `not_checked`.
    pub(crate) partitions: BTreeMap<String, u64>,
    /// Whether the machine booted; none: it was not started.
    pub(crate) booted: Option<bool>,
    /// Why it failed; none: it was passed.
    pub(crate) error: Option<StateError>,
}
