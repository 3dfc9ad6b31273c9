//! What differs between a snapshot and a base that was removed from the repository. Segments have the digests of all blocks, and nothing
//! is read but them. The base is known by its tombstone, or by the digests of a volume elsewhere that holds it.

use std::sync::Arc;

use tracing::debug;

use super::{RepositoryCatalog, delta_of_damage};
use crate::block::{BlockIndex, Delta, Extent};
use crate::error::{Kind, Result};
use crate::repository::SEGMENT_BLOCKS;
use crate::repository::check::is_damage;
use crate::repository::segment::place_of;
use crate::repository::source::RepositorySource;
use crate::repository::undelete::removed_manifest;
use crate::snapshot::SnapshotId;
use crate::source::{BlockSource, Changes, HeldDigest, HeldDigests};

/// Blocks whose digests are asked for at once.
const PIECE: u32 = 4096;

impl RepositoryCatalog {
    /// What changed since a snapshot that was removed; none without its tombstone, which stays for the grace of a prune.
    pub(super) async fn difference_of_removed(
        &self,
        base: &SnapshotId,
        head: &SnapshotId,
    ) -> Result<Option<Changes>> {
        let old = match removed_manifest(self.store(), base.as_str()).await {
            // A user who may read snapshots may lack the permission to read tombstones.
            Err(error)
                if matches!(error.kind(), Kind::Denied | Kind::NotFound) || is_damage(&error) =>
            {
                debug!("nothing is known of {base}: {}", error.chain());
                return Ok(None);
            }
            manifest => RepositorySource::new(manifest?, Arc::clone(&self.segments))?,
        };
        let new = self.source(head).await?;
        self.difference_of(&old, new).await.map(Some)
    }

    pub(super) async fn difference_of_digests(
        &self,
        held: &dyn HeldDigests,
        head: &SnapshotId,
    ) -> Result<Changes> {
        let new = self.source(head).await?;
        let mut delta = Delta::new(Some(held.geometry()), new.geometry());
        let end = new.geometry().block_count();
        for number in 0..end.div_ceil(SEGMENT_BLOCKS) {
            let segment = match new.manifest().segment(number) {
                Some(of) => self.segment_if_sound(&of.name, head).await?,
                None => Some(Arc::default()),
            };
            let Some(segment) = segment else {
                delta_of_damage(&mut delta, number, None);
                continue;
            };
            let first = number.saturating_mul(SEGMENT_BLOCKS);
            let stop = first.saturating_add(SEGMENT_BLOCKS).min(end);
            let mut at = first;
            while let Some(piece) = Extent::new(
                BlockIndex(at),
                BlockIndex(at.saturating_add(PIECE).min(stop)),
            ) {
                at = piece.end().0;
                let known = held.held_digests(piece).await?.into_iter();
                let known = known.chain(std::iter::repeat(HeldDigest::Unknown));
                for (index, known) in piece.blocks().zip(known) {
                    let wanted = segment.get(place_of(index).1).map(|entry| entry.digest);
                    if let Some(change) = known.change_to(wanted) {
                        delta.insert(index, change);
                    }
                }
            }
        }
        delta.write_too(new.damaged());
        delta.zero_what_grew();
        Ok((Arc::new(delta), new))
    }
}
