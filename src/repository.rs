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
pub(crate) use check::{Damage, LastCheck, ReadData, RepositoryCheck, check};
pub(crate) use lease::{LEASE, Lease, LeaseKind, RunOnRecord, runs};
pub(crate) use manifest::{Manifest, ManifestName};
pub(crate) use pins::{pin, pinned, unpin};
pub(crate) use prune::{PruneRequest, Pruned, forget_run, prune, remove};
pub(crate) use repair::{RepairOrigin, Repaired, repair};
pub(crate) use retention::{Period, Retention, RetentionCandidate, RetentionDecision};
pub(crate) use sets::{MachineSet, SetDisk, SetName};
pub(crate) use stats::{Growth, Usage, stats};
pub(crate) use store::{
    Address, Bandwidth, BucketVersions, LifecycleEffects, ObjectLock, ObjectProof, OperationCounts,
    StoreCloud, StoreOrigin, StoreTraffic, s3_url, store_origin,
};
pub use store::{BucketStyle, Connection, Deleted, S3Options, Store};
pub(crate) use target::RepositoryTarget;
pub(crate) use undelete::undelete;

/// Blocks of a segment: 32 GiB of a volume.
pub(crate) const SEGMENT_BLOCKS: u32 = 1 << 16;
