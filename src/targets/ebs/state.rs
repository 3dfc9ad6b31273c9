//! [`EbsState`]: what a checkpoint keeps of an unfinished snapshot, and what is left of it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::ebs::NewSnapshot;
use crate::snapshot::{SnapshotId, SnapshotState};
use crate::target::{SinkBody, UnfinishedState};

use super::{EbsJob, YOUNG};

/// What is kept of a snapshot that is being made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EbsState {
    /// What was asked for.
    pub(super) job: EbsJob,
    /// What StartSnapshot is asked, with the client token of this attempt.
    pub(super) start: NewSnapshot,
    /// What the client tokens of all attempts are derived from.
    pub(super) seed: String,
    /// Counts the snapshots that were started with this seed and take no blocks any more.
    pub(super) attempt: u32,
    /// Once it is started.
    pub(super) snapshot: Option<SnapshotId>,
    /// When that was.
    pub(super) started: Option<SystemTime>,
    /// Whether zeroes must be put: an absent block reads as anything with encryption, and as the parent's block with a parent.
    pub(super) puts_zeroes: bool,
    /// Whether all that the plan leaves alone must be zeroed: it is encrypted and has no parent.
    pub(super) zero_the_rest: bool,
    /// Whether it carries its own id.
    pub(super) is_tagged: bool,
    /// Whether EBS refused to start it.
    pub(super) is_refused: bool,
}

impl SinkBody for EbsState {
    const KIND: &'static str = "ebs";
    const VERSION: u32 = 1;

    fn object(&self) -> Option<String> {
        self.snapshot.as_ref().map(ToString::to_string)
    }
}

impl EbsState {
    /// Whether it was started so recently that parts of EBS and EC2 may not list it.
    pub(super) fn is_young(&self) -> bool {
        self.started
            .is_some_and(|started| started.elapsed().unwrap_or_default() < YOUNG)
    }
}

/// What EC2 reports of an unfinished snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReportedSnapshot {
    /// Its state, if EC2 tells one.
    There(Option<SnapshotState>, Option<String>),
    /// EC2 does not know it.
    Absent,
    /// The permission to ask is missing.
    Denied,
}

/// What is left of an unfinished snapshot, and what a person should know about it.
pub(super) fn left(
    state: &EbsState,
    job: &EbsJob,
    seen: &ReportedSnapshot,
) -> (UnfinishedState, Option<String>) {
    let Some(id) = &state.snapshot else {
        // Started with the same token, EBS answers with the same snapshot if it has one.
        let is_wanted = state.job == *job && !state.is_refused;
        return (
            if is_wanted {
                UnfinishedState::Proven
            } else {
                UnfinishedState::Absent
            },
            None,
        );
    };
    let is_alive = match seen {
        ReportedSnapshot::There(Some(SnapshotState::Other(_)), _) => false,
        ReportedSnapshot::There(..) | ReportedSnapshot::Denied => true,
        ReportedSnapshot::Absent => state.is_young(),
    };
    if !is_alive {
        let why = match seen {
            ReportedSnapshot::There(Some(found), message) => {
                let message = message.as_deref().unwrap_or("without a reason");
                format!("it is in state {found} ({message})")
            }
            _ => "it does not exist any more".to_owned(),
        };
        let what = format!("{id} cannot be resumed: {why}; its progress is dropped");
        return (UnfinishedState::Absent, Some(what));
    }
    if state.job != *job {
        let what = format!(
            "{id} is left unfinished: it was started with another KMS key, parent, tag or description; EBS gives it up"
        );
        return (UnfinishedState::Absent, Some(what));
    }
    // Completing it twice does no harm: finishing is all that is left of a completed one.
    (UnfinishedState::Proven, None)
}
