//! [`RepositorySource`]: a snapshot of a repository, block by block. Neighbours in a pack that are wanted together are one
//! ranged GET.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::SEGMENT_BLOCKS;
use super::manifest::{Manifest, SegmentOf};
use super::pack::{Name, Spot, Stored};
use super::segment::{Segment, SegmentEntry, place_of};
use super::segments::{Segments, object};
use super::store::Store;
use crate::block::{Block, BlockIndex, BlockSet, Extent, Geometry};
use crate::digest::{DigestOutcome, Digester};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::blocking;
use crate::source::{BlockSource, Wanted, damaged_before, with_damaged};

/// The most bytes of one GET: several blocks, and still many GETs in parallel.
const MOST_AT_ONCE: u64 = 2 << 20;
/// How long a block without a waiting reader waits for requests of its neighbours, to be read with them.
const NEIGHBOUR_WAIT: Duration = Duration::from_millis(1);
/// After this time without an answer a HEAD asks for the size of the pack.
const SLOW: Duration = Duration::from_secs(1);
/// Truncated packs whose sizes are remembered.
const SHORT: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// How long a segment that cannot be read is not requested again.
const BROKEN_FOR: Duration = Duration::from_secs(60);

/// A snapshot of a repository.
pub(crate) struct RepositorySource {
    manifest: Manifest,
    geometry: Geometry,
    /// Blocks that are zero here because their source was damaged: they are held, and cannot be read.
    damaged: BlockSet,
    segments: Arc<Segments>,
    /// Segments that cannot be read, and until when they are not asked for again: each of their 65,536 blocks asks.
    broken: Mutex<HashMap<u32, (Instant, Error)>>,
    digester: Digester,
    packs: Arc<Packs>,
}

impl std::fmt::Debug for RepositorySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RepositorySource({})", self.manifest.snapshot)
    }
}

impl RepositorySource {
    pub(super) fn new(manifest: Manifest, segments: Arc<Segments>) -> Result<Self> {
        let store = Arc::clone(segments.store());
        let geometry = manifest.geometry()?;
        Ok(Self {
            geometry,
            damaged: BlockSet::of_pairs(&manifest.damaged, BlockIndex(geometry.block_count())),
            manifest,
            segments,
            broken: Mutex::default(),
            digester: Digester::new(),
            packs: Arc::new(Packs {
                store,
                wants: Mutex::default(),
                short: Mutex::new(LruCache::new(SHORT)),
            }),
        })
    }

    /// The same for a comparison with what was written: damaged blocks read as the zeroes that were stored.
    pub(super) fn into_stored(mut self) -> Self {
        self.damaged = BlockSet::new();
        self
    }

    /// Blocks that are zero here because their source was damaged.
    pub(super) fn damaged(&self) -> &BlockSet {
        &self.damaged
    }

    /// The snapshot's manifest.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(super) async fn entry(&self, index: BlockIndex) -> Result<Option<SegmentEntry>> {
        let (number, within) = place_of(index);
        match self.manifest.segment(number) {
            None => Ok(None),
            Some(of) => Ok(self.segment(of).await?.get(within)),
        }
    }

    /// A segment. Damage is remembered for a while.
    async fn segment(&self, of: &SegmentOf) -> Result<Arc<Segment>> {
        let remembered = self.broken.lock().get(&of.number).cloned();
        if let Some((until, error)) = remembered
            && Instant::now() < until
        {
            return Err(error);
        }
        let segment = self.segments.load(&of.name).await;
        if let Err(error) = &segment
            && error.kind() == Kind::Corrupt
        {
            let until = Instant::now() + BROKEN_FOR;
            self.broken.lock().insert(of.number, (until, error.clone()));
        }
        segment
    }

    async fn fetch(&self, index: BlockIndex, wanted: Wanted) -> Result<Block> {
        if index.0 >= self.geometry.block_count() {
            let what = format!("{} has no block {index}", self.manifest.snapshot);
            return Err(Error::new(Kind::Invalid, what));
        }
        if self.damaged.contains(index) {
            let to = format!("to {}", self.segments.store().address());
            return Err(damaged_before(index, self.manifest.snapshot.as_str(), &to));
        }
        let Some(entry) = self.entry(index).await? else {
            return Ok(Block::Zero);
        };
        let is_wanted = wanted.is_wanted();
        let stored = self.packs.read(entry.pack, entry.spot, is_wanted).await?;
        let stored = Stored::read(stored, entry.spot);
        let opened = blocking(move || Ok(stored.open())).await?;
        let len = self.geometry.block_len(index);
        if let Some(bytes) = opened.filter(|bytes| bytes.len() == len) {
            match self.digester.check(&bytes, &entry.digest, is_wanted).await {
                DigestOutcome::Good => return Ok(Block::Data(bytes, entry.digest)),
                DigestOutcome::Zero => return Ok(Block::Zero),
                DigestOutcome::Wrong(_) => {}
            }
        }
        let (store, pack) = (self.segments.store(), object("packs", &entry.pack));
        let what = format!(
            "{} block {index}: {}/{pack} is damaged (ebsfs repository check)",
            self.manifest.snapshot,
            store.address()
        );
        Err(Error::new(Kind::Corrupt, what).with_remedy(Remedy::MarkDamage))
    }

    async fn run_from(&self, from: BlockIndex) -> Result<Option<Extent>> {
        let (first, within) = place_of(from);
        let segments = self
            .manifest
            .segments
            .iter()
            .filter(|of| of.number >= first);
        for of in segments {
            let within = if of.number == first { within } else { 0 };
            let base = of.number.saturating_mul(SEGMENT_BLOCKS);
            let run = match self.segment(of).await {
                // Each of its blocks may be held, and is damaged.
                Err(error) if error.kind() == Kind::Corrupt => {
                    let rest = self.geometry.block_count().saturating_sub(base);
                    let end = rest.min(SEGMENT_BLOCKS);
                    (u32::from(within) < end).then_some((u32::from(within), end))
                }
                segment => segment?.next_run(within),
            };
            if let Some((start, end)) = run {
                return Ok(Extent::new(
                    BlockIndex(base.saturating_add(start)),
                    BlockIndex(base.saturating_add(end)),
                ));
            }
        }
        Ok(None)
    }
}

impl BlockSource for RepositorySource {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        self.read_ahead(index, Wanted::already())
    }

    fn read_ahead(&self, index: BlockIndex, wanted: Wanted) -> BoxFuture<'_, Result<Block>> {
        self.fetch(index, wanted).boxed()
    }

    fn next_extent(&self, from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        async move {
            let stored = self.run_from(from).await?;
            Ok(with_damaged(stored, &self.damaged, from))
        }
        .boxed()
    }

    fn is_known_zero(&self, index: BlockIndex) -> bool {
        let (number, within) = place_of(index);
        let is_beyond = index.0 >= self.geometry().block_count();
        match self.manifest.segment(number) {
            _ if is_beyond || self.damaged.contains(index) => false,
            None => true,
            Some(of) => {
                let segment = self.segments.at_hand(&of.name);
                segment.is_some_and(|segment| segment.get(within).is_none())
            }
        }
    }

    fn prefetch(&self, _blocks: &[BlockIndex]) -> usize {
        // Nothing is kept here: the cache above fetches ahead with `read_ahead`.
        0
    }
}

/// Reads spots of packs, neighbours together.
struct Packs {
    store: Arc<Store>,
    /// Of each pack the wanted spots that are not requested yet.
    wants: Mutex<HashMap<Name, Vec<WantedSpot>>>,
    /// Packs that were found cut short, and their bytes.
    short: Mutex<LruCache<Name, u64>>,
}

struct WantedSpot {
    spot: Spot,
    answer: oneshot::Sender<Result<Bytes>>,
}

impl Packs {
    async fn read(self: &Arc<Self>, pack: Name, spot: Spot, is_wanted: bool) -> Result<Bytes> {
        let (answer, came) = oneshot::channel();
        let is_first = {
            let mut wants = self.wants.lock();
            let wants = wants.entry(pack).or_default();
            wants.push(WantedSpot { spot, answer });
            wants.len() == 1
        };
        if is_first {
            let packs = Arc::clone(self);
            tokio::spawn(async move {
                if is_wanted {
                    tokio::task::yield_now().await;
                } else {
                    sleep(NEIGHBOUR_WAIT).await;
                }
                packs.get(pack);
            });
        }
        came.await
            .map_err(|error| Error::with_source(Kind::Io, "stopped", error))?
    }

    /// Requests all wanted spots of a pack, in as few GETs as possible.
    fn get(self: Arc<Self>, pack: Name) {
        let mut wants = self.wants.lock().remove(&pack).unwrap_or_default();
        wants.sort_by_key(|want| want.spot.offset);
        for group in grouped(wants) {
            let packs = Arc::clone(&self);
            tokio::spawn(async move { packs.get_group(&pack, group).await });
        }
    }

    async fn get_group(&self, pack: &Name, group: Vec<WantedSpot>) {
        let start = group.first().map_or(0, |want| want.spot.offset.into());
        let end = group.iter().map(|want| want.spot.end()).max().unwrap_or(0);
        let got = self.get_range(pack, start, end).await;
        if let Err(error) = &got
            && error.kind() == Kind::Corrupt
            && group.len() > 1
        {
            // The blocks of a truncated pack before the cut are good.
            for want in group {
                let start = want.spot.offset.into();
                let bytes = self.get_range(pack, start, want.spot.end()).await;
                let _ = want.answer.send(bytes);
            }
            return;
        }
        for want in group {
            let from = u64::from(want.spot.offset) - start;
            let range = usize::try_from(from)..usize::try_from(want.spot.end() - start);
            let bytes = got.clone().map(|bytes| match (range.start, range.end) {
                // A cached block must not keep its neighbours' bytes in memory.
                (Ok(start), Ok(end)) if end - start < bytes.len() => {
                    Bytes::copy_from_slice(bytes.get(start..end).unwrap_or_default())
                }
                _ => bytes,
            });
            // The waiter may have been dropped.
            let _ = want.answer.send(bytes);
        }
    }

    async fn get_range(&self, pack: &Name, start: u64, end: u64) -> Result<Bytes> {
        let _place = self.store.read_place().await;
        let name = object("packs", pack);
        let short = || {
            let what = format!("{}/{name} is cut short", self.store.address());
            Error::new(Kind::Corrupt, what).with_remedy(Remedy::MarkDamage)
        };
        if self.short.lock().get(pack).is_some_and(|size| *size < end) {
            return Err(short());
        }
        // Each store refuses a range behind the end differently, and some refusals would be retried until the deadline.
        let is_short = async {
            sleep(SLOW).await;
            match self.store.head(&name).await {
                Ok(found) if found.size < end => {
                    self.short.lock().put(*pack, found.size);
                }
                _ => std::future::pending().await,
            }
        };
        let got = tokio::select! {
            biased;
            got = self.store.get_range(&name, start..end) => got,
            () = is_short => return Err(short()),
        };
        let error = match got {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error,
        };
        Err(match error.kind() {
            // It is named: it must be there.
            Kind::NotFound => Error::with_source(Kind::Corrupt, "a pack is missing", error)
                .with_remedy(Remedy::MarkDamage),
            Kind::Corrupt => error.with_remedy(Remedy::MarkDamage),
            _ => match self.store.head(&name).await {
                Ok(found) if found.size < end => {
                    self.short.lock().put(*pack, found.size);
                    short()
                }
                _ => error,
            },
        })
    }
}

/// Joins neighbours: sorted, without gaps, of at most [`MOST_AT_ONCE`] bytes.
fn grouped(wants: Vec<WantedSpot>) -> Vec<Vec<WantedSpot>> {
    let mut groups: Vec<Vec<WantedSpot>> = Vec::new();
    let mut range = 0..0;
    for want in wants {
        let (start, end) = (u64::from(want.spot.offset), want.spot.end());
        match groups.last_mut() {
            Some(group)
                if start <= range.end && end.saturating_sub(range.start) <= MOST_AT_ONCE =>
            {
                group.push(want);
                range.end = range.end.max(end);
            }
            _ => {
                groups.push(vec![want]);
                range = start..end;
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_asked_for_together_and_gaps_are_not() {
        let want = |offset: u32, length: u32| WantedSpot {
            spot: Spot { offset, length },
            answer: oneshot::channel().0,
        };
        let mib = 1 << 20;
        let wants = [
            (8, 100),
            (8, 100),
            (108, 50),
            (200, 10),
            (300, 2 * mib),
            (300 + 2 * mib, 9),
        ];
        let groups = grouped(
            wants
                .iter()
                .map(|(offset, length)| want(*offset, *length))
                .collect(),
        );
        let sizes: Vec<_> = groups.iter().map(Vec::len).collect();
        assert_eq!(sizes, [3, 1, 1, 1]);
    }
}
