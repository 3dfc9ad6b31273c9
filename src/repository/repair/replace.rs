//! Replacement manifests: of the same name, by the run of the repair, with the old one kept as a tombstone.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::time::SystemTime;

use futures_util::StreamExt;
use tracing::{info, warn};

use super::{Fixed, LostBlocks, Repair, RepairOrigin, pair};
use crate::block::{BlockIndex, BlockSet, Digest, Extent};
use crate::error::Result;
use crate::repository::SEGMENT_BLOCKS;
use crate::repository::check::is_damage;
use crate::repository::manifest::{FORMAT, Manifest, ManifestName, SegmentOf};
use crate::repository::pack::{Name, Spot};
use crate::repository::publish::{bring_back, check_data, publish};
use crate::repository::run::replace_manifest;
use crate::repository::segment::{SegmentEntry, place_of};
use crate::repository::segments;
use crate::source::held;

/// The blocks of a segment of this number in a volume of `end` blocks.
fn extent_of(number: u32, end: u32) -> Option<Extent> {
    let first = number.saturating_mul(SEGMENT_BLOCKS);
    let last = first.saturating_add(SEGMENT_BLOCKS).min(end);
    Extent::new(BlockIndex(first), BlockIndex(last))
}

impl Repair<'_> {
    /// Replaces every manifest that leads to a replaced segment, has a wrong count, or has marked blocks that the source
    /// has.
    pub(super) async fn replace_all(&mut self) -> Result<()> {
        let mut manifests = std::mem::take(&mut self.manifests);
        // The source's own snapshot first: its blocks of a lost segment are right for all snapshots that share the segment.
        manifests.sort_by_key(|manifest| self.origin_of(manifest).is_none());
        let (what, of) = ("repairing: replacing manifests", manifests.len() as u64);
        self.progress.begin_units(what, "manifests", of);
        for manifest in &manifests {
            self.progress.step(1);
            if let Some(new) = self.replacement(manifest).await? {
                self.publish(manifest, &new).await?;
            }
        }
        self.manifests = manifests;
        Ok(())
    }

    /// The source, if it is the very snapshot of a manifest.
    fn origin_of(&self, manifest: &Manifest) -> Option<&RepairOrigin> {
        self.origin.filter(|origin| {
            let id = origin.snapshot.as_ref().map(|snapshot| &snapshot.id);
            let is_same_size = manifest
                .geometry()
                .is_ok_and(|geometry| geometry == origin.blocks.geometry());
            id == Some(&manifest.snapshot) && is_same_size
        })
    }

    async fn replacement(&mut self, old: &Manifest) -> Result<Option<Manifest>> {
        let end = old.geometry()?.block_count();
        let marked = BlockSet::of_pairs(&old.damaged, BlockIndex(end));
        let mut damaged = marked.clone();
        let mut segments = Vec::new();
        for of in &old.segments {
            let Some(fixed) = self.fixed.get(&of.name) else {
                let blocks = self.counts.get(&of.name).copied().unwrap_or(of.blocks);
                segments.push(SegmentOf { blocks, ..*of });
                continue;
            };
            segments.extend(fixed.new.map(|(name, blocks)| SegmentOf {
                number: of.number,
                name,
                blocks,
            }));
            let first = of.number.saturating_mul(SEGMENT_BLOCKS);
            for (from, to) in &fixed.lost {
                let (from, to) = (first.saturating_add(*from), first.saturating_add(*to));
                if let Some(run) = Extent::new(BlockIndex(from), BlockIndex(to.min(end))) {
                    damaged.insert_extent(run);
                }
            }
        }
        if self.origin_of(old).is_some() && !damaged.is_empty() {
            self.refill(old, &mut segments, &mut damaged, &marked)
                .await?;
        }
        let lost = damaged.without(&marked).len();
        let blocks = segments.iter().map(|of| u64::from(of.blocks)).sum();
        let new = Manifest {
            run: self.run.clone(),
            written: SystemTime::now(),
            blocks,
            damaged: damaged.runs().map(pair).collect(),
            segments,
            ..old.clone()
        };
        let is_same =
            (&new.segments, &new.damaged, new.blocks) == (&old.segments, &old.damaged, old.blocks);
        if is_same {
            return Ok(None);
        }
        if lost > 0 {
            self.done.lost.push(LostBlocks {
                snapshot: old.name().to_string(),
                blocks: lost,
            });
        }
        Ok(Some(new))
    }

    /// Reads the damaged blocks of the source's own snapshot from it, segment by segment.
    async fn refill(
        &mut self,
        old: &Manifest,
        segments: &mut Vec<SegmentOf>,
        damaged: &mut BlockSet,
        marked: &BlockSet,
    ) -> Result<()> {
        let Some(origin) = self.origin else {
            return Ok(());
        };
        let end = origin.blocks.geometry().block_count();
        let mut still = BlockSet::new();
        for number in 0..end.div_ceil(SEGMENT_BLOCKS) {
            let Some(range) = extent_of(number, end) else {
                continue;
            };
            let extents: Vec<Extent> = damaged.runs_in(range.start(), range.end()).collect();
            if extents.is_empty() {
                continue;
            }
            let (mut missing, mut found) = (BlockSet::new(), BlockSet::new());
            extents.iter().for_each(|run| missing.insert_extent(*run));
            self.finds.forget_many();
            let known = self.known_at(number).await?;
            let read = self.read_origin(origin, extents, &known).await?;
            let at = segments.iter().position(|of| of.number == number);
            let mut blocks: BTreeMap<u16, SegmentEntry> = match at {
                Some(at) => {
                    let of = segments.remove(at);
                    segments::read(self.store, &of.name)
                        .await?
                        .entries()
                        .collect()
                }
                None => BTreeMap::new(),
            };
            for (index, digest) in read {
                if let Some(digest) = digest {
                    let Some((pack, spot)) = self.finds.place(&digest) else {
                        continue;
                    };
                    let entry = SegmentEntry { pack, spot, digest };
                    blocks.insert(place_of(index).1, entry);
                }
                found.insert(index);
            }
            missing = missing.without(&found);
            let is_whole = missing.is_empty();
            still.insert_all(&missing);
            let new = self.put_segment(blocks.into_iter().collect()).await?;
            segments.extend(new.map(|(name, blocks)| SegmentOf {
                number,
                name,
                blocks,
            }));
            segments.sort_by_key(|of| of.number);
            // Others that share the lost segment share what it held. Where blocks were marked before, it may have held less.
            let was_marked = marked.runs_in(range.start(), range.end()).next().is_some();
            if let Some(of) = old.segment(number).filter(|_| is_whole && !was_marked) {
                let lost = Vec::new();
                self.fixed.insert(of.name, Fixed { new, lost });
            }
        }
        *damaged = still;
        Ok(())
    }

    /// Where the blocks of all snapshots are that have the same place in their volumes: most of a lost segment is among them.
    async fn known_at(&self, number: u32) -> Result<HashMap<Digest, (Name, Spot)>> {
        /// Some 100 MB.
        const MOST: usize = 1 << 20;
        let mut known = HashMap::new();
        let is_there = |name: &&Name| {
            let numbers = self.numbers.get(*name);
            numbers.is_some_and(|numbers| numbers.contains(&number))
        };
        let names: Vec<Name> = self.lasting.iter().filter(is_there).copied().collect();
        let mut read = pin!(segments::read_all(self.store, names));
        while let Some((_, segment)) = read.next().await {
            let segment = match segment {
                Err(error) if is_damage(&error) => continue,
                segment => segment?,
            };
            let sound = segment.entries().filter(|(_, entry)| !self.is_bad(entry));
            known.extend(sound.map(|(_, entry)| (entry.digest, (entry.pack, entry.spot))));
            if known.len() > MOST {
                break;
            }
        }
        Ok(known)
    }

    /// Rebuilds the manifest of the source's own snapshot, of which only the name is known.
    pub(super) async fn make_again(&mut self, name: &ManifestName) -> Result<()> {
        let Some(origin) = self.origin else {
            return Ok(());
        };
        let Some(snapshot) = origin.snapshot.as_ref() else {
            return Ok(());
        };
        let Some(time) = snapshot.start_time else {
            return Ok(());
        };
        let empty = Manifest {
            format: FORMAT,
            run: self.run.clone(),
            snapshot: snapshot.id.clone(),
            volume: origin.volume.clone(),
            volume_key: name.volume.clone(),
            time,
            volume_bytes: origin.blocks.geometry().size(),
            base: None,
            description: snapshot.description.clone(),
            tags: snapshot.tags.clone(),
            written: SystemTime::now(),
            encrypted: snapshot.encrypted,
            blocks: 0,
            sent_blocks: 0,
            sent_bytes: 0,
            stored_bytes: 0,
            damaged: Vec::new(),
            segments: Vec::new(),
        };
        if empty.name().to_string() != name.to_string() {
            return Ok(());
        }
        info!("reading all of {}: its manifest is damaged", origin.name);
        let mut damaged = held(&*origin.blocks).await?;
        let mut segments = Vec::new();
        let marked = BlockSet::new();
        self.refill(&empty, &mut segments, &mut damaged, &marked)
            .await?;
        let new = Manifest {
            blocks: segments.iter().map(|of| u64::from(of.blocks)).sum(),
            damaged: damaged.runs().map(pair).collect(),
            segments,
            ..empty
        };
        let published = publish(self.store, &self.lease, new, None, None).await?;
        if published.run == self.run {
            self.done.replaced.push(name.to_string());
        }
        Ok(())
    }

    /// Replaces a manifest, unless it was replaced or removed meanwhile. When a prune may have deleted something that the new one
    /// needs, the old one comes back.
    async fn publish(&mut self, old: &Manifest, new: &Manifest) -> Result<()> {
        let name = old.name();
        check_data(self.store, &self.lease, new).await?;
        if !replace_manifest(self.store, &old.run, new).await? {
            warn!("not replacing {name}: it was replaced or removed meanwhile");
            let text = name.to_string();
            self.done.lost.retain(|lost| lost.snapshot != text);
            return Ok(());
        }
        if let Err(error) = check_data(self.store, &self.lease, new).await {
            bring_back(self.store, new, &old.run).await?;
            return Err(error);
        }
        self.done.replaced.push(name.to_string());
        Ok(())
    }
}
