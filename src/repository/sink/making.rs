//! The segments of a snapshot, made of the parent's and of the locations of the blocks that were written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::RepositorySink;
use crate::block::{BlockIndex, Digest};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::blocking;
use crate::repository::SEGMENT_BLOCKS;
use crate::repository::locations::Location;
use crate::repository::manifest::SegmentOf;
use crate::repository::segment::{Segment, SegmentEntry, place_of};
use crate::repository::segments::object;

impl RepositorySink {
    /// Whether the parent has the same block at this index.
    pub(super) async fn is_as_parent(&self, index: BlockIndex, digest: &Digest) -> Result<bool> {
        let (number, within) = place_of(index);
        let parent = self.parent.as_ref();
        let Some(of) = parent.and_then(|parent| parent.segment(number)) else {
            return Ok(false);
        };
        let segment = self.parent_segment(of).await?;
        let entry = segment.and_then(|segment| segment.get(within));
        Ok(entry.is_some_and(|entry| entry.digest == *digest))
    }

    /// Reads a segment of the parent. A full copy needs it only to save work and ignores a damaged one.
    async fn parent_segment(&self, of: &SegmentOf) -> Result<Option<Arc<Segment>>> {
        match self.segments.load(&of.name).await {
            Err(error) if error.kind() == Kind::Corrupt && self.state.base.is_none() => {
                if !self.is_parent_damaged.swap(true, Ordering::Relaxed) {
                    warn!("sending all of its blocks: {}", error.chain());
                }
                Ok(None)
            }
            segment => segment.map(Some),
        }
    }

    /// The segment of a number, with the blocks that were written and without those that are damaged; none when it holds
    /// nothing.
    pub(super) async fn segment(
        &self,
        number: u32,
        written: Vec<(BlockIndex, Option<Digest>)>,
        damaged: BTreeSet<BlockIndex>,
    ) -> Result<Option<SegmentOf>> {
        let before = self
            .parent
            .as_ref()
            .and_then(|parent| parent.segment(number));
        let is_delta = self.state.base.is_some();
        let first = u64::from(number) * u64::from(SEGMENT_BLOCKS);
        let end = u64::from(self.geometry.block_count()).saturating_sub(first);
        let may_be_cut = end < u64::from(SEGMENT_BLOCKS);
        if is_delta && written.is_empty() && damaged.is_empty() && !may_be_cut {
            return Ok(before.copied());
        }
        let old = match before {
            Some(before) => self.parent_segment(before).await?,
            None => None,
        };
        let (locations, salt) = (Arc::clone(&self.locations), self.salt());
        let same = before.copied();
        let made = blocking(move || {
            let mut blocks = BTreeMap::new();
            if let Some(old) = old.as_ref().filter(|_| is_delta) {
                blocks.extend(old.entries().filter(|(index, _)| u64::from(*index) < end));
            }
            for (index, digest) in written {
                let (_, within) = place_of(index);
                let Some(digest) = digest.filter(|_| !damaged.contains(&index)) else {
                    blocks.remove(&within);
                    continue;
                };
                let entry = match locations.of(index, &digest)? {
                    Location::AsParent => old.as_ref().and_then(|old| old.get(within)),
                    Location::Pack(pack, spot) => Some(SegmentEntry {
                        pack: locations.pack(pack)?,
                        spot,
                        digest,
                    }),
                };
                let entry = entry
                    .filter(|entry| entry.digest == digest)
                    .ok_or_else(|| {
                        let what =
                            format!("cannot publish: block {index} of the parent has changed");
                        Error::new(Kind::Corrupt, what).with_remedy(Remedy::Restart)
                    })?;
                blocks.insert(within, entry);
            }
            for index in damaged {
                blocks.remove(&place_of(index).1);
            }
            if blocks.is_empty() {
                return Ok(None);
            }
            let segment = Segment::of(blocks);
            if let Some(same) = same.filter(|_| old.as_deref() == Some(&segment)) {
                return Ok(Some((None, same)));
            }
            let stored = segment.encode(&salt);
            let stored = stored
                .map_err(|error| Error::with_source(Kind::Io, "cannot make a segment", error))?;
            let name: Digest = Sha256::digest(&stored).into();
            let count = u32::try_from(segment.len()).unwrap_or(SEGMENT_BLOCKS);
            let of = SegmentOf {
                number,
                name,
                blocks: count,
            };
            Ok(Some((Some(stored), of)))
        });
        let Some((stored, of)) = made.await? else {
            return Ok(None);
        };
        if let Some(stored) = stored {
            let name = object("segments", &of.name);
            self.store().put(&name, &[stored]).await?;
        }
        Ok(Some(of))
    }
}
