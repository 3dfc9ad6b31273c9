//! [`SyncJob`]: what is asked of a sync, as plain values. `cli` makes it of arguments, once.

use std::path::PathBuf;

use crate::source::SnapshotId;
use crate::target::Base;

/// What happens when a block of the source is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDamage {
    /// The copy fails.
    #[default]
    Fail,
    /// The block stays zero in the target and is listed; the next run tries it again.
    Mark,
}

/// What is asked of a sync, the same for all its targets.
#[derive(Clone, Debug)]
pub struct SyncJob {
    /// Since what only the changes are copied.
    pub base: Base,
    /// The snapshot that a person vouches for that the targets hold.
    pub trust: Option<SnapshotId>,
    /// Targets of unknown content that may be overwritten: identities of devices, paths as given.
    pub overwrite: Vec<String>,
    /// Drop the progress of unfinished runs.
    pub restart: bool,
    /// Write over what something else has written to a target.
    pub discard_foreign_writes: bool,
    /// Let what is encrypted at its source become a target that is not.
    pub allow_plaintext: bool,
    /// What happens when a block of the source is damaged.
    pub on_damage: OnDamage,
    /// Read each whole target back and compare.
    pub verify: bool,
    /// Read each whole target back for its SHA-256.
    pub digest: bool,
    /// Bytes to leave free where images are written.
    pub reserve: u64,
    /// Directory where a delta for what is written in place is kept whole before it is applied.
    pub stage: Option<PathBuf>,
    /// Decide and plan, change nothing.
    pub dry_run: bool,
    /// Blocks that are read in a second, at most.
    pub rate: u32,
    /// Blocks in flight, at most.
    pub in_flight: usize,
}

impl SyncJob {
    /// A full copy with nothing allowed.
    pub fn full() -> Self {
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
