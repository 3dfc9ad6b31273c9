//! [`DiskCache`]: blocks on local disk, between memory and the source, which later runs use again.
//!
//! Each snapshot has two sparse files in one folder: block n lies at n x 512 KiB of the first, its digest at n x 32 bytes of the
//! second ([`slots`]). A block is written before its digest and compared with it when it is read, so a torn write or a flipped
//! bit is a miss. One thread writes and evicts ([`writer`]), behind a queue that drops blocks when it is full: no reader waits
//! for it. The cache answers only for snapshots that the caller may read: see [`decide`].

mod decide;
mod folder;
mod recency;
mod slots;
mod writer;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use crate::block::{Block, BlockIndex, Geometry, ZERO_BLOCK};
use crate::digest::{DigestOutcome, Digester};
use crate::error::{Error, Kind, Result};
use crate::files::blocking;
use crate::snapshot::SnapshotId;

use decide::{Permission, may_keep};
use folder::CacheFolder;
use slots::{Recorded, SlotFiles};
use writer::SlotQueue;

/// The least size of a cache in bytes: an eviction takes up to 64 MiB.
pub(crate) const MIN_DISK: u64 = 256 << 20;

/// Most snapshots whose permission is remembered.
const MOST_TIERS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Most threads that read the disk at once.
const READS: usize = 8;
/// Time limit for one block from disk; a slower disk turns the cache off.
const SLOW: Duration = Duration::from_secs(5);
/// How long a block waits for the request that proves that its snapshot may be read.
const ASKING: Duration = Duration::from_secs(5);

/// Threads of a disk cache, besides those of the memory cache.
pub(crate) const DISK_THREADS: usize = READS + 1;
/// Descriptors of a disk cache: the open files of snapshots, those of reads under way, the lock.
pub(crate) const DISK_DESCRIPTORS: u64 = 2 * (folder::MOST_OPEN as u64 + READS as u64) + 2;

/// Settings of a disk cache.
#[derive(Clone, Debug)]
pub(crate) struct DiskCacheConfig {
    /// The folder, made if it is absent.
    pub(crate) folder: PathBuf,
    /// The most bytes that its files may take on disk; at least [`MIN_DISK`].
    pub(crate) size: u64,
    /// Whether blocks of encrypted snapshots are kept too, as plain bytes.
    pub(crate) keep_encrypted: bool,
    /// Region and endpoint, or the repository: the same snapshot id elsewhere may be another snapshot.
    pub(crate) origin: String,
}

impl DiskCacheConfig {
    /// Checks the settings without access to the disk.
    ///
    /// # Errors
    /// `Invalid` for a size below [`MIN_DISK`].
    pub(crate) fn check(&self) -> Result<()> {
        if self.size < MIN_DISK {
            let what = format!(
                "cannot use a block cache of {} bytes on disk: the least is {} MiB",
                self.size,
                MIN_DISK >> 20
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        Ok(())
    }
}

/// The blocks on disk.
#[derive(Debug)]
pub(crate) struct DiskCache {
    shared: Arc<DiskShared>,
    keep_encrypted: bool,
    origin: String,
    queue: SlotQueue,
    tiers: Mutex<LruCache<SnapshotId, Arc<SnapshotTier>>>,
}

/// What readers and the writer have in common.
#[derive(Debug)]
struct DiskShared {
    folder: CacheFolder,
    digester: Digester,
    reads: Arc<Semaphore>,
    /// Why the cache is off for the rest of the process.
    off: OnceLock<Error>,
    hits: AtomicU64,
}

impl DiskShared {
    fn is_off(&self) -> bool {
        self.off.get().is_some()
    }

    /// Turns the cache off for the rest of the process, with one warning.
    fn turn_off(&self, why: Error) {
        let chain = why.chain();
        if self.off.set(why).is_ok() {
            warn!("the block cache on disk is off until the next start: {chain}");
        }
    }

    /// Handles an I/O error of a cache file.
    fn failed(&self, error: std::io::Error) {
        if decide::turns_off(&error) {
            let what = "cannot keep blocks in";
            self.turn_off(Error::of_file(self.folder.path(), what, error));
        } else {
            debug!("a block is not cached on disk: {error}");
        }
    }

    /// Turns the cache off: the disk did not answer within [`SLOW`].
    fn hangs(&self) {
        let folder = self.folder.path().display();
        let what = format!("cannot read blocks in {folder}: the disk does not answer");
        self.turn_off(Error::new(Kind::Io, what));
    }
}

impl DiskCache {
    /// Opens the folder and locks it against other processes.
    ///
    /// # Errors
    /// `Invalid` when the size is below [`MIN_DISK`], the folder belongs to another user, others can write it, or its filesystem
    /// cannot free a part of a file; `Busy` when another process uses it; `Io` or `NoSpace` for a failure of the system.
    pub(crate) fn open(config: DiskCacheConfig) -> Result<Arc<Self>> {
        config.check()?;
        Self::open_with(config, false)
    }

    /// Like [`DiskCache::open`], for a caller that fills the cache: a fetched block waits for room in the queue.
    ///
    /// # Errors
    /// As for [`DiskCache::open`].
    pub(crate) fn open_patient(config: DiskCacheConfig) -> Result<Arc<Self>> {
        config.check()?;
        Self::open_with(config, true)
    }

    fn open_with(config: DiskCacheConfig, is_patient: bool) -> Result<Arc<Self>> {
        let shared = Arc::new(DiskShared {
            folder: CacheFolder::open(&config.folder)?,
            digester: Digester::new(),
            reads: Arc::new(Semaphore::new(READS)),
            off: OnceLock::new(),
            hits: AtomicU64::new(0),
        });
        let queue = SlotQueue::start(Arc::clone(&shared), config.size, is_patient)?;
        Ok(Arc::new(Self {
            shared,
            keep_encrypted: config.keep_encrypted,
            origin: config.origin,
            queue,
            tiers: Mutex::new(LruCache::new(MOST_TIERS)),
        }))
    }

    /// Blocks answered from disk since the start.
    pub(crate) fn hits(&self) -> u64 {
        self.shared.hits.load(Ordering::Relaxed)
    }

    /// The blocks of one snapshot. `encrypted` is what EC2 states; `None` if it is unknown.
    pub(super) fn tier(
        &self,
        id: &SnapshotId,
        geometry: Geometry,
        encrypted: Option<bool>,
    ) -> Arc<SnapshotTier> {
        let mut tiers = self.tiers.lock();
        let tier = tiers.get_or_insert(id.clone(), || {
            Arc::new(SnapshotTier {
                shared: Arc::clone(&self.shared),
                queue: self.queue.clone(),
                file: self.shared.folder.number(id, &self.origin),
                id: id.clone(),
                geometry,
                is_kept: AtomicBool::new(true),
                permission: Mutex::default(),
                asking: Arc::default(),
                answers: AtomicU64::new(0),
                is_damage_logged: AtomicBool::new(false),
            })
        });
        // The description can arrive after the first opening.
        let is_kept = may_keep(encrypted, self.keep_encrypted);
        if tier.is_kept.swap(is_kept, Ordering::Relaxed) && !is_kept {
            let why = match encrypted {
                Some(_) => "it is encrypted",
                None => "its encryption is unknown (ec2:DescribeSnapshots tells it)",
            };
            info!("blocks of {id} are not cached on disk: {why}");
        }
        Arc::clone(tier)
    }

    /// Whether blocks of a snapshot are kept. `encrypted` is what EC2 states; `None` if it is unknown.
    pub(crate) fn keeps(&self, encrypted: Option<bool>) -> bool {
        may_keep(encrypted, self.keep_encrypted)
    }

    /// Checks that the cache is still on.
    ///
    /// # Errors
    /// Why it is off.
    pub(crate) fn check_on(&self) -> Result<()> {
        self.shared.off.get().cloned().map_or(Ok(()), Err)
    }

    /// Waits until the queued blocks are written. It blocks the calling thread.
    ///
    /// # Errors
    /// Why the cache is off.
    pub(crate) fn finish(&self) -> Result<()> {
        self.queue.flush();
        self.check_on()
    }
}

/// The blocks on disk of one snapshot.
#[derive(Debug)]
pub(super) struct SnapshotTier {
    shared: Arc<DiskShared>,
    queue: SlotQueue,
    file: u32,
    id: SnapshotId,
    geometry: Geometry,
    is_kept: AtomicBool,
    permission: Mutex<Permission>,
    /// Held by the one request that asks whether the snapshot may be read; its other blocks wait for it.
    asking: Arc<AsyncMutex<()>>,
    /// How many of these requests had an answer. A request that is given up, such as a prefetch, has none.
    answers: AtomicU64,
    is_damage_logged: AtomicBool,
}

/// What the disk holds of a block.
#[derive(Debug)]
pub(super) enum OnDisk {
    /// The block, compared with its digest.
    Hit(Block),
    /// The caller fetches the block from the source.
    Miss(Asker),
}

/// A request to the source; [`SnapshotTier::learn`] takes its answer.
#[derive(Debug, Default)]
pub(super) struct Asker {
    /// Held by the request that the snapshot's other blocks wait for.
    turn: Option<OwnedMutexGuard<()>>,
}

impl Asker {
    /// Whether other blocks wait for the answer.
    pub(super) fn is_awaited(&self) -> bool {
        self.turn.is_some()
    }
}

impl SnapshotTier {
    fn is_on(&self) -> bool {
        self.is_kept.load(Ordering::Relaxed) && !self.shared.is_off()
    }

    fn may_serve(&self) -> bool {
        self.permission.lock().may_serve(Instant::now())
    }

    /// Looks for a block. Every failure is a miss.
    pub(super) async fn find(&self, index: BlockIndex, is_wanted: bool) -> OnDisk {
        let miss = OnDisk::Miss(Asker::default());
        if !self.is_on() || !self.shared.folder.has(self.file) {
            return miss;
        }
        // With a time limit: a disk can hang.
        match timeout(SLOW, self.recorded(index)).await {
            Ok(Recorded::Nothing) => return miss,
            Ok(Recorded::Zero) if self.may_serve() => return self.hit(index, Block::Zero),
            // Its fetch proves no permission, since it may be a hole: no other block waits for it.
            Ok(Recorded::Zero) => return miss,
            Ok(Recorded::Data(_)) => {}
            Err(_) => {
                self.shared.hangs();
                return miss;
            }
        }
        if !self.may_serve() {
            let answers = self.answers.load(Ordering::Relaxed);
            // Waits for the end of a request for another block, also a failure, but not for a slow one.
            let asking = timeout(ASKING, Arc::clone(&self.asking).lock_owned());
            if let Ok(turn) = asking.await
                && !self.may_serve()
                && self.answers.load(Ordering::Relaxed) == answers
            {
                // This is the first request, or the one before was given up: one of the waiters asks now.
                return OnDisk::Miss(Asker { turn: Some(turn) });
            }
            if !self.may_serve() {
                return miss;
            }
        }
        match timeout(SLOW, self.read(index, is_wanted)).await {
            Ok(Some(block)) => self.hit(index, block),
            Ok(None) => miss,
            Err(_) => {
                self.shared.hangs();
                miss
            }
        }
    }

    fn hit(&self, index: BlockIndex, block: Block) -> OnDisk {
        self.shared.hits.fetch_add(1, Ordering::Relaxed);
        self.queue.touch(self.file, index);
        OnDisk::Hit(block)
    }

    /// Takes the source's answer after a miss: it updates the permission, and queues the block to be written.
    pub(super) fn learn(&self, index: BlockIndex, fetched: &Result<Block>, asker: Asker) {
        self.permission.lock().learn(fetched, Instant::now());
        if asker.is_awaited() {
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
        drop(asker);
        if let Ok(block) = fetched
            && self.is_on()
        {
            self.queue.keep(self.file, self.geometry, index, block);
        }
    }

    /// Runs `work` with the files of the snapshot, on one of a few threads.
    async fn with_files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&SlotFiles) -> std::io::Result<T> + Send + 'static,
    ) -> Option<T> {
        let permit = Arc::clone(&self.shared.reads).acquire_owned().await.ok()?;
        let (shared, file) = (Arc::clone(&self.shared), self.file);
        let done = blocking(move || {
            let _permit = permit;
            let done = match shared.folder.existing(file) {
                Ok(None) => return Ok(None),
                Ok(Some(files)) => work(&files),
                Err(error) => Err(error),
            };
            Ok(done.map_err(|error| shared.failed(error)).ok())
        });
        done.await.ok().flatten()
    }

    async fn recorded(&self, index: BlockIndex) -> Recorded {
        let found = self.with_files(move |files| files.recorded(index)).await;
        found.unwrap_or(Recorded::Nothing)
    }

    /// The block, if its bytes match their digest; else its slot is dropped.
    async fn read(&self, index: BlockIndex, is_wanted: bool) -> Option<Block> {
        let len = self.geometry.block_len(index);
        // Two attempts: an eviction or a write can happen between digest and bytes.
        for _ in 0..2 {
            let read = move |files: &SlotFiles| files.read(index, len);
            let (promised, bytes) = match self.with_files(read).await?? {
                (promised, _) if promised == ZERO_BLOCK => return Some(Block::Zero),
                (promised, bytes) => (promised, Bytes::from(bytes)),
            };
            let checked = self.shared.digester.check(&bytes, &promised, is_wanted);
            match checked.await {
                DigestOutcome::Good => return Some(Block::Data(bytes, promised)),
                DigestOutcome::Zero => return Some(Block::Zero),
                DigestOutcome::Wrong(_) => {}
            }
        }
        self.with_files(move |files| files.forget(index)).await;
        let what = format!(
            "block {index} of {} is damaged in the block cache, and fetched again",
            self.id
        );
        match self.is_damage_logged.swap(true, Ordering::Relaxed) {
            false => warn!("{what}"),
            true => debug!("{what}"),
        }
        None
    }
}

#[cfg(test)]
mod tests;
