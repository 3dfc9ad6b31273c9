//! Searches the bytes of lost blocks: in other packs, in the sound parts of damaged ones, in the source.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::pin::pin;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use super::{Repair, RepairOrigin};
use crate::block::{Block, BlockIndex, Digest, Extent};
use crate::error::Result;
use crate::files::blocking;
use crate::repository::check::is_damage;
use crate::repository::pack::{Name, Spot, Stored};
use crate::repository::segments::{self, object};
use crate::repository::store::Store;

/// Blocks read at once, of packs and of the source.
const READS: usize = 16;
/// Scans for other copies: each one after the first leaves out packs that the one before found damaged.
const SCANS: usize = 3;

/// The lost blocks of segments.
#[derive(Default)]
pub(super) struct LostDigests {
    pub(super) digests: HashSet<Digest>,
    /// The entries of segments about damaged packs.
    pub(super) claims: HashMap<Name, Vec<(Digest, Spot)>>,
    /// Where in volumes they belong.
    pub(super) indexes: BTreeSet<(u32, Digest)>,
}

/// Whether the bytes at a spot are a block of this digest.
async fn is_sound(stored: Stored, digest: Digest) -> Result<bool> {
    blocking(move || {
        let opened = stored.open();
        Ok(opened.is_some_and(|block| *Sha256::digest(&block) == digest))
    })
    .await
}

/// Reads a block and verifies it; false when it is damaged.
async fn is_there(store: &Store, digest: Digest, pack: Name, spot: Spot) -> Result<bool> {
    let range = u64::from(spot.offset)..spot.end();
    match store.get_range(&object("packs", &pack), range).await {
        Err(error) if is_damage(&error) => Ok(false),
        bytes => is_sound(Stored::read(bytes?, spot), digest).await,
    }
}

impl Repair<'_> {
    /// Finds as many of these blocks as possible.
    pub(super) async fn search(&mut self, lost: &LostDigests) -> Result<()> {
        self.search_packs(&lost.digests).await?;
        self.count_found(lost);
        self.salvage(&lost.claims).await?;
        self.count_found(lost);
        self.finds.flush(self.store).await?;
        if let Some(origin) = self.origin
            && !self.has_all(lost)
        {
            self.search_origin(origin, lost).await?;
            self.finds.flush(self.store).await?;
        }
        Ok(())
    }

    fn count_found(&self, lost: &LostDigests) {
        let found = lost.digests.iter();
        let found = found.filter(|digest| self.finds.has(digest)).count();
        self.progress.reach(found as u64);
    }

    fn has_all(&self, lost: &LostDigests) -> bool {
        lost.digests.iter().all(|digest| self.finds.has(digest))
    }

    /// Searches the packs of all snapshots. Each block that is found there is read and verified.
    async fn search_packs(&mut self, wanted: &HashSet<Digest>) -> Result<()> {
        let store = self.store;
        for _ in 0..SCANS {
            let mut candidates: HashMap<Digest, (Name, Spot)> = HashMap::new();
            let names = self.lasting.iter().copied();
            let mut read = pin!(segments::read_all(store, names));
            while let Some((_, segment)) = read.next().await {
                let segment = match segment {
                    Err(error) if is_damage(&error) => continue,
                    segment => segment?,
                };
                for (_, entry) in segment.entries() {
                    let digest = entry.digest;
                    if wanted.contains(&digest) && !self.finds.has(&digest) && !self.is_bad(&entry)
                    {
                        candidates.insert(digest, (entry.pack, entry.spot));
                    }
                }
            }
            let reads = stream::iter(candidates).map(|(digest, (pack, spot))| async move {
                (
                    digest,
                    pack,
                    spot,
                    is_there(store, digest, pack, spot).await,
                )
            });
            let mut reads = pin!(reads.buffer_unordered(READS));
            let mut failed = false;
            while let Some((digest, pack, spot, is_there)) = reads.next().await {
                match is_there? {
                    true => self.finds.found(digest, pack, spot),
                    false => {
                        failed = true;
                        if self.suspects.packs.insert(pack) {
                            let object = object("packs", &pack);
                            warn!("{}/{object} is damaged as well", store.address());
                            self.also.insert(object);
                        }
                    }
                }
            }
            if !failed {
                break;
            }
        }
        Ok(())
    }

    /// Moves the blocks of damaged packs that are still good.
    async fn salvage(&mut self, claims: &HashMap<Name, Vec<(Digest, Spot)>>) -> Result<()> {
        for (pack, spots) in claims {
            if spots.iter().all(|(digest, _)| self.finds.has(digest)) {
                continue;
            }
            let bytes = match self.store.get(&object("packs", pack)).await {
                Err(error) if is_damage(&error) => continue,
                bytes => bytes?,
            };
            for (digest, spot) in spots {
                let end = usize::try_from(spot.end()).unwrap_or(usize::MAX);
                if self.finds.has(digest) || end > bytes.len() {
                    continue;
                }
                // A copy: a pack that is being filled does not keep whole damaged ones in memory.
                let part = bytes.get(spot.offset as usize..end).unwrap_or_default();
                let stored = Stored::read(Bytes::copy_from_slice(part), *spot);
                if is_sound(stored.clone(), *digest).await? {
                    self.finds.write_stored(self.store, *digest, stored).await?;
                }
            }
        }
        Ok(())
    }

    /// Reads the source where the blocks belong, then all of it.
    async fn search_origin(&mut self, origin: &RepairOrigin, lost: &LostDigests) -> Result<()> {
        let count = origin.blocks.geometry().block_count();
        let missing = lost
            .indexes
            .iter()
            .filter(|(_, digest)| !self.finds.has(digest));
        let near = missing.map(|(index, _)| *index);
        let near: BTreeSet<u32> = near.filter(|index| *index < count).collect();
        self.try_blocks(origin, lost, near.iter().copied().collect())
            .await?;
        if self.has_all(lost) {
            return Ok(());
        }
        info!("reading all of {} for lost blocks", origin.name);
        let mut at = BlockIndex(0);
        while let Some(extent) = origin.blocks.next_extent(at).await? {
            at = extent.end();
            let others = extent.blocks().map(|index| index.0);
            let others = others.filter(|index| !near.contains(index));
            self.try_blocks(origin, lost, others.collect()).await?;
            if at.0 >= count || self.has_all(lost) {
                break;
            }
        }
        Ok(())
    }

    /// Takes those of the source's blocks that are lost.
    async fn try_blocks(
        &mut self,
        origin: &RepairOrigin,
        lost: &LostDigests,
        indexes: Vec<u32>,
    ) -> Result<()> {
        let source = &origin.blocks;
        let reads = stream::iter(indexes)
            .map(|index| async move { source.read_block(BlockIndex(index)).await });
        let mut reads = pin!(reads.buffered(READS));
        let mut missing = lost
            .digests
            .iter()
            .filter(|digest| !self.finds.has(digest))
            .count();
        while missing > 0 {
            match reads.next().await {
                None => break,
                Some(Err(error)) if is_damage(&error) => {}
                Some(block) => {
                    if let Block::Data(bytes, digest) = block?
                        && lost.digests.contains(&digest)
                        && !self.finds.has(&digest)
                    {
                        self.finds.write(self.store, digest, bytes).await?;
                        self.progress.step(1);
                        missing -= 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads blocks of the source with unknown digests; `known` finds blocks of the repository. Returns each
    /// block that could be read, and `None` for zeroes.
    pub(super) async fn read_origin(
        &mut self,
        origin: &RepairOrigin,
        extents: Vec<Extent>,
        known: &HashMap<Digest, (Name, Spot)>,
    ) -> Result<Vec<(BlockIndex, Option<Digest>)>> {
        let source = &origin.blocks;
        let reads = stream::iter(extents.into_iter().flat_map(Extent::blocks))
            .map(|index| async move { (index, source.read_block(index).await) });
        let mut reads = pin!(reads.buffered(READS));
        let mut read = Vec::new();
        while let Some((index, block)) = reads.next().await {
            match block {
                Err(error) if is_damage(&error) => {
                    warn!("block {index} stays lost: {}", error.chain());
                }
                Err(error) => return Err(error),
                Ok(Block::Zero) => read.push((index, None)),
                Ok(Block::Data(bytes, digest)) => {
                    match known.get(&digest) {
                        _ if self.finds.has(&digest) => {}
                        Some((pack, spot)) => self.finds.found(digest, *pack, *spot),
                        None => self.finds.write(self.store, digest, bytes).await?,
                    }
                    read.push((index, Some(digest)));
                }
            }
        }
        self.finds.flush(self.store).await?;
        Ok(read)
    }
}
