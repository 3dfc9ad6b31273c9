//! What can be read: [`BlockSource`] (a volume's blocks), [`Catalog`] (which snapshots there are), and their contracts.

mod damaged;
mod delta;
mod digests;
mod disk;
mod held;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;

use crate::block::{Block, BlockIndex, Delta, Extent, Geometry};
use crate::error::Result;
use crate::snapshot::{Snapshot, SnapshotId};

pub use damaged::DamagedSource;
pub(crate) use damaged::{damaged_before, with_damaged};
pub use delta::DeltaSource;
pub(crate) use digests::{HeldDigest, HeldDigests};
pub use disk::{DiskSource, size_of};
pub(crate) use held::held;

/// The blocks of one volume at one instant. They never change.
pub trait BlockSource: Send + Sync {
    /// The volume's size.
    fn geometry(&self) -> Geometry;

    /// The block's bytes, verified: exactly [`Geometry::block_len`] of them, or [`Block::Zero`].
    ///
    /// # Errors
    /// `Invalid` for an index at or beyond the geometry; otherwise why the block cannot be read now.
    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>>;

    /// The first run of blocks that are held at or after `from`; `None` when there is none up to the end.
    /// The run may be cut short, never too long; its start is exact.
    ///
    /// # Errors
    /// Why it is unknown now.
    fn next_extent(&self, from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>>;

    /// Whether the block is known, without any I/O or waiting, to read as zeroes; never of one beyond the geometry.
    fn is_known_zero(&self, index: BlockIndex) -> bool;

    /// Like [`BlockSource::read_block`], at low priority until `wanted` is set.
    ///
    /// # Errors
    /// As for [`BlockSource::read_block`].
    fn read_ahead(&self, index: BlockIndex, wanted: Wanted) -> BoxFuture<'_, Result<Block>> {
        let _ = wanted;
        self.read_block(index)
    }

    /// Prefetches these blocks, the nearest first, within a budget of its own. Returns how many of them,
    /// from the first on, were taken.
    fn prefetch(&self, blocks: &[BlockIndex]) -> usize;
}

/// Whether a reader waits for a block that is being prefetched.
#[derive(Clone, Debug, Default)]
pub struct Wanted(Arc<AtomicBool>);

impl Wanted {
    /// A reader waits from the start.
    pub(crate) fn already() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// From now on a reader waits.
    pub(crate) fn want(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether a reader waits.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A delta, and its head to read it from.
pub(crate) type Changes = (Arc<Delta>, Arc<dyn BlockSource>);

/// Which snapshots there are, and how to read one.
pub trait Catalog: Send + Sync {
    /// The snapshots selected, oldest first. Callers at the same time may share one listing; where it is long, it continues
    /// when they are dropped.
    ///
    /// # Errors
    /// `Denied` without the permission to list.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Arc<Snapshot>>>>;

    /// What is known of a snapshot now, if it can change after [`Catalog::open`]: a description that came later. It does not
    /// wait.
    fn known(&self, id: &SnapshotId) -> Option<Arc<Snapshot>> {
        let _ = id;
        None
    }

    /// One snapshot, selected or not, opened for reading. Opening twice gives the same source.
    ///
    /// # Errors
    /// `NotFound`, `Denied` or `Pending` when it cannot be read; else why the request failed.
    fn open<'a>(
        &'a self,
        id: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<(Snapshot, Arc<dyn BlockSource>)>>;

    /// What differs between two snapshots: what `base` needs to become `head`, from a new listing; and the head, to read just
    /// that from.
    ///
    /// Dropping the future stops the listing; the next call continues from there.
    ///
    /// # Errors
    /// `Unrelated` when they have no history in common; `Corrupt` when the listing contradicts itself; else as for
    /// [`Catalog::open`].
    fn delta<'a>(
        &'a self,
        base: &'a SnapshotId,
        head: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<Changes>>;

    /// What changed since a base that was removed; none where nothing is left of it. Only digests of it are needed, no block.
    ///
    /// # Errors
    /// As for [`Catalog::delta`].
    fn delta_of_removed<'a>(
        &'a self,
        base: &'a SnapshotId,
        head: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<Option<Changes>>> {
        let _ = (base, head);
        Box::pin(std::future::ready(Ok(None)))
    }

    /// What a volume with these digests needs to become `head`, for a base that the catalog does not have any more; none where the
    /// catalog does not know the digests of a snapshot without reading its blocks.
    ///
    /// # Errors
    /// As for [`Catalog::open`]; why the digests cannot be read.
    fn delta_of_digests<'a>(
        &'a self,
        held: &'a dyn HeldDigests,
        head: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<Option<Changes>>> {
        let _ = (held, head);
        Box::pin(std::future::ready(Ok(None)))
    }
}
