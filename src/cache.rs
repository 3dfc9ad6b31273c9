//! [`CachedSource`]: a [`BlockSource`] over a [`BlockSource`] that fetches each block once.
//!
//! A block is absent, present in [`memory`], or in flight ([`fetches`]); an absent one may have [`failed`] lately. Snapshots
//! never change, so there is no dirty state, no expiry and no invalidation. All sources of a process share one [`Cache`] and
//! its budget. A [`DiskCache`] may lie between memory and the sources.

mod disk;
mod failed;
mod fetches;
mod memory;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytesize::ByteSize;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::block::{BLOCK_SIZE, Block, BlockIndex, Extent, Geometry};
use crate::error::{Error, Kind, Result};
use crate::snapshot::{Snapshot, SnapshotId};
use crate::source::{BlockSource, Catalog, Changes, Wanted};

pub(crate) use disk::{DISK_DESCRIPTORS, DISK_THREADS, DiskCache, DiskCacheConfig};

use disk::{Asker, OnDisk, SnapshotTier};
use failed::FailedBlocks;
use fetches::{FetchPriority, Fetches};
use memory::Memory;

/// The least memory that keeps a sequential reader at one fetch a block: 16 blocks.
pub(crate) const MIN_MEMORY: ByteSize = ByteSize::mib(8);

/// The most blocks read ahead: at 1,000 blocks a second and 100 ms each, twice as many as are in flight.
const MOST_AHEAD: u64 = 256;

/// Snapshots whose blocks are found again when they are opened again.
const MOST_NUMBERS: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// Which source, and which of its blocks.
type Key = (u32, BlockIndex);

/// The block cache of a process: a budget in bytes for cached and in-flight blocks together.
#[derive(Debug)]
pub struct Cache {
    memory: Memory,
    fetches: Fetches,
    failed: Mutex<FailedBlocks>,
    /// One permit a block being fetched. Fetches and [`Memory`] split the budget, so that their sum keeps it.
    in_flight: Semaphore,
    /// The smaller budget of blocks without a reader yet: readers always find some of `in_flight` free.
    prefetching: Arc<Semaphore>,
    /// One permit a block read ahead and not read yet, in flight or kept, for all streams of all sources together.
    unread: Arc<Semaphore>,
    max_readahead: u32,
    sources: AtomicU32,
    hits: AtomicU64,
    fetched: AtomicU64,
}

impl Cache {
    /// A cache that holds at most `budget` bytes, cached and in flight together, and fetches at most `max_in_flight`
    /// blocks at once.
    ///
    /// # Errors
    /// `Invalid` below [`MIN_MEMORY`].
    pub fn new(budget: ByteSize, max_in_flight: u32) -> Result<Arc<Self>> {
        if budget < MIN_MEMORY {
            return Err(Error::new(
                Kind::Invalid,
                format!("{budget} of memory is too little: the least is {MIN_MEMORY}"),
            ));
        }
        let blocks = budget.as_u64() / u64::from(BLOCK_SIZE);
        let in_flight = usize::try_from((blocks / 4).min(max_in_flight.max(2).into())).unwrap_or(2);
        let prefetching = in_flight - in_flight.div_ceil(8);
        let cached = blocks - in_flight as u64;
        let ahead = (cached / 3).min(MOST_AHEAD);
        let unread = usize::try_from(ahead)
            .unwrap_or(usize::MAX)
            .min(Semaphore::MAX_PERMITS);
        let max_readahead = u32::try_from(unread).unwrap_or(u32::MAX);
        Ok(Arc::new(Self {
            memory: Memory::new(cached - ahead, ahead),
            fetches: Fetches::default(),
            failed: Mutex::default(),
            in_flight: Semaphore::new(in_flight),
            prefetching: Arc::new(Semaphore::new(prefetching)),
            unread: Arc::new(Semaphore::new(unread)),
            max_readahead,
            sources: AtomicU32::new(0),
            hits: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
        }))
    }

    /// How many blocks the sequential readers of all images may be ahead together.
    pub fn max_readahead(&self) -> u32 {
        self.max_readahead
    }

    /// Blocks answered from memory, and blocks fetched, since the start.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (
            self.hits.load(Ordering::Relaxed),
            self.fetched.load(Ordering::Relaxed),
        )
    }

    /// Whether the block is kept, or in flight.
    fn is_near(&self, key: Key) -> bool {
        self.memory.contains(key) || self.fetches.contains(key)
    }

    /// The remembered failure of a block, which answers its reads for now.
    fn failure(&self, key: Key) -> Option<Error> {
        self.failed.lock().get(key, Instant::now())
    }

    /// Remembers the failure of a fetch, or forgets those before a success.
    fn remember(&self, key: Key, is_ahead: bool, fetched: &Result<Block>) {
        match fetched {
            Ok(_) => self.failed.lock().forget(key),
            // A later reader gets its whole own timeout.
            Err(error) if is_ahead && is_worth_another(error) => {}
            Err(error) => self.failed.lock().insert(key, error, Instant::now()),
        }
    }

    /// A source whose blocks are kept in this cache.
    pub fn wrap(self: &Arc<Self>, inner: Arc<dyn BlockSource>) -> CachedSource {
        let number = self.new_number();
        CachedSource {
            cache: Arc::clone(self),
            number,
            failures: number,
            disk: None,
            inner,
        }
    }

    fn new_number(&self) -> u32 {
        self.sources.fetch_add(1, Ordering::Relaxed)
    }
}

/// What a prefetch of a block holds.
struct PrefetchGuard {
    /// Held until the block is read.
    unread: OwnedSemaphorePermit,
    wanted: Wanted,
}

/// A source whose blocks are kept: one fetch for each block, for any number of readers.
pub struct CachedSource {
    cache: Arc<Cache>,
    number: u32,
    /// The number under which failures are remembered. A delta reads the head's blocks by its own tokens, which can fail alone.
    failures: u32,
    disk: Option<Arc<SnapshotTier>>,
    inner: Arc<dyn BlockSource>,
}

impl std::fmt::Debug for CachedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CachedSource({})", self.number)
    }
}

impl CachedSource {
    /// The one fetch of a block: a permit, the disk or the source, then memory.
    fn fetch(
        &self,
        index: BlockIndex,
        ahead: Option<PrefetchGuard>,
    ) -> BoxFuture<'static, Result<Block>> {
        let (cache, inner) = (Arc::clone(&self.cache), Arc::clone(&self.inner));
        let disk = self.disk.clone();
        let key = (self.number, index);
        let failure = (self.failures, index);
        Box::pin(async move {
            let _permit = cache.in_flight.acquire().await.map_err(|_| closed())?;
            let is_ahead = ahead.is_some();
            let (wanted, unread) = ahead.map(|ahead| (ahead.wanted, ahead.unread)).unzip();
            let on_disk = match &disk {
                Some(disk) => disk.find(index, !is_ahead).await,
                None => OnDisk::Miss(Asker::default()),
            };
            let block = match on_disk {
                OnDisk::Hit(block) => block,
                OnDisk::Miss(asker) => {
                    let fetched = match wanted {
                        Some(wanted) if !asker.is_awaited() => {
                            inner.read_ahead(index, wanted).await
                        }
                        _ => inner.read_block(index).await,
                    };
                    if let Some(disk) = &disk {
                        disk.learn(index, &fetched, asker);
                    }
                    cache.remember(failure, is_ahead, &fetched);
                    let block = fetched?;
                    cache.fetched.fetch_add(1, Ordering::Relaxed);
                    block
                }
            };
            cache.memory.insert(key, block.clone(), unread);
            Ok(block)
        })
    }
}

impl BlockSource for CachedSource {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        let key = (self.number, index);
        if let Some(block) = self.cache.memory.get(key) {
            self.cache.hits.fetch_add(1, Ordering::Relaxed);
            return ready(Ok(block)).boxed();
        }
        if self.inner.is_known_zero(index) {
            return ready(Ok(Block::Zero)).boxed();
        }
        if let Some(error) = self.cache.failure((self.failures, index)) {
            return ready(Err(error)).boxed();
        }
        let join = move || {
            let cached = || self.cache.memory.get(key);
            let fetch = |_| self.fetch(index, None);
            self.cache
                .fetches
                .join(key, FetchPriority::Now, cached, fetch)
        };
        let ends_early = self.cache.fetches.ends_before_a_reader(key);
        let fetch = join();
        async move {
            let block = match fetch.await {
                // The fetch began before its reader came: the reader has all of its own time.
                Err(error) if ends_early && is_worth_another(&error) => join().await?,
                block => block?,
            };
            // A fetch that started as a prefetch has kept the block as unread.
            self.cache.memory.get(key);
            Ok(block)
        }
        .boxed()
    }

    fn next_extent(&self, from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        self.inner.next_extent(from)
    }

    fn is_known_zero(&self, index: BlockIndex) -> bool {
        self.inner.is_known_zero(index)
    }

    fn prefetch(&self, blocks: &[BlockIndex]) -> usize {
        for (taken, index) in blocks.iter().copied().enumerate() {
            let key = (self.number, index);
            let is_needless = self.inner.is_known_zero(index)
                || self.cache.is_near(key)
                || self.cache.failure((self.failures, index)).is_some();
            if is_needless {
                continue;
            }
            if self.cache.unread.available_permits() == 0 {
                self.cache.memory.give_up_abandoned();
            }
            let take = |budget: &Arc<Semaphore>| Arc::clone(budget).try_acquire_owned();
            let (Ok(prefetching), Ok(unread)) =
                (take(&self.cache.prefetching), take(&self.cache.unread))
            else {
                return taken;
            };
            let cached = || self.cache.memory.get(key);
            // The answer is not awaited: the fetch itself keeps the block, and a reader may join it.
            drop(
                self.cache
                    .fetches
                    .join(key, FetchPriority::Ahead, cached, |wanted| {
                        let fetch = self.fetch(index, Some(PrefetchGuard { unread, wanted }));
                        async move {
                            let block = fetch.await;
                            drop(prefetching);
                            block
                        }
                        .boxed()
                    }),
            );
        }
        blocks.len()
    }
}

/// A catalog whose sources are all kept in one cache.
pub struct CachedCatalog {
    cache: Arc<Cache>,
    disk: Option<Arc<DiskCache>>,
    inner: Arc<dyn Catalog>,
    /// The number of each snapshot that was opened lately, and its source while it is in use.
    open: Mutex<LruCache<SnapshotId, (u32, Weak<CachedSource>)>>,
}

impl std::fmt::Debug for CachedCatalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CachedCatalog")
    }
}

impl CachedCatalog {
    /// The catalog `inner`, its blocks kept in `cache`.
    pub fn new(cache: Arc<Cache>, inner: Arc<dyn Catalog>) -> Self {
        Self {
            cache,
            disk: None,
            inner,
            open: Mutex::new(LruCache::new(MOST_NUMBERS)),
        }
    }

    /// Keeps blocks on disk too, if `disk` is there.
    #[must_use]
    pub(crate) fn with_disk(mut self, disk: Option<Arc<DiskCache>>) -> Self {
        self.disk = disk;
        self
    }

    /// The one cached source of a snapshot.
    fn cached(&self, snapshot: &Snapshot, source: Arc<dyn BlockSource>) -> Arc<CachedSource> {
        let id = &snapshot.id;
        // Also for a source in use: the description of the snapshot may be newer.
        let disk = self.disk.as_ref();
        let disk = disk.map(|disk| disk.tier(id, source.geometry(), snapshot.encrypted));
        let mut open = self.open.lock();
        let new = || (self.cache.new_number(), Weak::new());
        let (number, in_use) = open.get_or_insert_mut(id.clone(), new);
        if let Some(cached) = in_use.upgrade() {
            return cached;
        }
        // Under the same number it finds the blocks that are kept from before.
        let cached = Arc::new(CachedSource {
            cache: Arc::clone(&self.cache),
            number: *number,
            failures: *number,
            disk,
            inner: source,
        });
        *in_use = Arc::downgrade(&cached);
        cached
    }
}

impl Catalog for CachedCatalog {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Arc<Snapshot>>>> {
        self.inner.list()
    }

    fn known(&self, id: &SnapshotId) -> Option<Arc<Snapshot>> {
        self.inner.known(id)
    }

    fn open<'a>(
        &'a self,
        id: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<(Snapshot, Arc<dyn BlockSource>)>> {
        async move {
            let (snapshot, source) = self.inner.open(id).await?;
            let cached = self.cached(&snapshot, source);
            Ok((snapshot, cached as Arc<dyn BlockSource>))
        }
        .boxed()
    }

    fn delta<'a>(
        &'a self,
        base: &'a SnapshotId,
        head: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<Changes>> {
        async move {
            let (delta, inner) = self.inner.delta(base, head).await?;
            let (snapshot, plain) = self.inner.open(head).await?;
            let plain = self.cached(&snapshot, plain);
            // Other tokens return the same bytes: cache and fetches are shared with the head's own.
            let source = CachedSource {
                cache: Arc::clone(&self.cache),
                number: plain.number,
                failures: self.cache.new_number(),
                disk: plain.disk.clone(),
                inner,
            };
            Ok((delta, Arc::new(source) as Arc<dyn BlockSource>))
        }
        .boxed()
    }
}

/// Whether the failed fetch can succeed with more time.
fn is_worth_another(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unavailable | Kind::Throttled)
}

/// The error for waiters when the process stops before their block arrives.
fn closed() -> Error {
    Error::new(Kind::Unavailable, "stopped before the block arrived")
}

#[cfg(test)]
mod tests;
