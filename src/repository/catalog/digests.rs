//! What differs between a volume that is known by its digests and a snapshot: segments have the digests of all blocks, so that nothing
//! is read but them. It is for a base that was removed from the repository, where another one still holds it.

use std::sync::Arc;

use super::{RepositoryCatalog, delta_of_damage};
use crate::block::{BlockIndex, Delta, Extent};
use crate::error::Result;
use crate::repository::SEGMENT_BLOCKS;
use crate::repository::segment::place_of;
use crate::snapshot::SnapshotId;
use crate::source::{BlockSource, Changes, HeldDigest, HeldDigests};

/// Blocks whose digests are asked for at once.
const PIECE: u32 = 4096;

impl RepositoryCatalog {
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
