//! A repository: snapshots kept in an object store, each block's content once, readable without AWS.
//!
//! # Terms
//! *block*: 512 KiB of a volume. *pack*: up to [`pack::MOST_BLOCKS`] blocks in one object. *segment*: where
//! [`SEGMENT_BLOCKS`] consecutive blocks of a snapshot are. *manifest*: the root object of a snapshot, which lists its
//! segments. *run*: a sync that has started and not ended. *set*: the machine around the disks of an instance at one instant.
//! *garbage*: packs and segments that no manifest leads to.
//!
//! The format is on a page of its own, docs/format.md: layout, every byte of a pack, a segment and a manifest, what makes a
//! snapshot visible, what a crash can leave, and versions. In short: packs hold blocks, segments say which block is in which
//! pack, a manifest says which segments a snapshot has. All of them are verified before something names them; the
//! manifest is last.

mod catalog;
mod check;
mod header;
mod index;
mod known;
mod latest;
mod lease;
mod lines;
mod listing;
mod locations;
mod manifest;
mod pace;
mod pack;
mod pins;
mod presence;
mod prune;
mod publish;
mod repair;
mod retention;
mod run;
mod segment;
mod segments;
mod select;
mod sets;
mod settled;
mod sink;
mod source;
mod stats;
mod store;
mod swept;
mod target;
mod undelete;

#[cfg(test)]
mod tests;

pub use catalog::RepositoryCatalog;
pub use check::{Damage, LastCheck, ReadData, RepositoryCheck, check};
pub use index::Index;
pub use lease::{LEASE, Lease, LeaseKind, RunOnRecord, runs};
pub use manifest::{Manifest, ManifestName};
pub use pins::{Pin, pin, pinned, unpin};
pub use prune::{Denied, PruneRequest, Pruned, PrunedRun, forget_run, prune, remove};
pub use repair::{LostBlocks, RepairOrigin, Repaired, repair};
pub use retention::{Decisions, Period, Reason, Retention, RetentionCandidate, RetentionDecision};
pub use run::{Parent, RunState};
pub use sets::{MachineSet, SetDisk, SetName};
pub use sink::RepositorySink;
pub use source::RepositorySource;
pub use stats::{Growth, Stats, Usage, stats};
pub use store::{
    Address, Bandwidth, BucketStyle, Connection, Deleted, KnownLine, OperationCounts, S3Options,
    Store, StoreTraffic, TrafficCounts,
};
pub use target::RepositoryTarget;
pub use undelete::undelete;

/// Blocks of a segment: 32 GiB of a volume.
pub const SEGMENT_BLOCKS: u32 = 1 << 16;
