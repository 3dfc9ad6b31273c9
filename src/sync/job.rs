//! [`SyncJob`]: what the user asked for, as plain values. `cli` makes it from the arguments, once.

use std::path::PathBuf;

use crate::error::{Error, Remedy};
use crate::snapshot::SnapshotId;
use crate::target::{Base, Facts};

/// What happens when a block of the source is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnDamage {
    /// The copy fails.
    #[default]
    Fail,
    /// The block stays zero in the target, or is taken as zeroes in a digest, and is listed; the next run tries it again.
    Mark,
}

impl OnDamage {
    /// Whether a run continues after this error of a block. Only if the stored bytes of the block are wrong: a listing that
    /// contradicts itself is not damage of a block.
    pub(super) fn passes(self, error: &Error) -> bool {
        self == Self::Mark && error.remedy() == Some(&Remedy::MarkDamage)
    }
}

/// What the user asked for, the same for all targets of the sync.
#[derive(Clone, Debug)]
pub(crate) struct SyncJob {
    /// The base of the copy: only blocks changed since it are copied.
    pub(crate) base: Base,
    /// The snapshot that the targets hold, on the user's word.
    pub(crate) trust: Option<SnapshotId>,
    /// Targets of unknown content that may be overwritten: identities of devices, paths as given.
    pub(crate) overwrite: Vec<String>,
    /// Drop the progress of unfinished runs.
    pub(crate) restart: bool,
    /// Write over what something else has written to a target.
    pub(crate) discard_foreign_writes: bool,
    /// Allow an unencrypted copy of an encrypted source.
    pub(crate) allow_plaintext: bool,
    /// What happens when a block of the source is damaged.
    pub(crate) on_damage: OnDamage,
    /// Read each whole target back and compare.
    pub(crate) verify: bool,
    /// Read each whole target back for its SHA-256.
    pub(crate) digest: bool,
    /// Bytes to leave free where images are written.
    pub(crate) reserve: u64,
    /// Directory for stages: a delta for a target in place is fetched whole to local disk before it is applied.
    pub(crate) stage: Option<PathBuf>,
    /// Decide and plan, change nothing.
    pub(crate) dry_run: bool,
    /// Blocks that are read in a second, at most.
    pub(crate) rate: u32,
    /// Blocks in flight, at most.
    pub(crate) in_flight: usize,
}

impl SyncJob {
    /// Whether a person has named a target to be overwritten.
    pub(super) fn names(&self, facts: &Facts) -> bool {
        let tokens = || std::iter::once(&facts.token).chain(&facts.other_tokens);
        self.overwrite
            .iter()
            .any(|named| tokens().any(|token| token == named))
    }

    /// A full copy that overwrites nothing of unknown content.
    pub(crate) fn full() -> Self {
        Self {
            base: Base::None,
            trust: None,
            overwrite: Vec::new(),
            restart: false,
            discard_foreign_writes: false,
            allow_plaintext: false,
            on_damage: OnDamage::Fail,
            verify: false,
            digest: false,
            reserve: 0,
            stage: None,
            dry_run: false,
            rate: 1000,
            in_flight: 64,
        }
    }
}
