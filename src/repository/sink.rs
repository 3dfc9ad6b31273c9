//! [`RepositorySink`]: a snapshot being written into a repository. Blocks go into packs as they arrive; the segments are made
//! at the end, from the parent's segments and from the locations that were noted on disk.

mod making;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, try_join};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::SEGMENT_BLOCKS;
use super::check::LastCheck;
use super::header::{Salt, salt_of_run};
use super::index::Index;
use super::known::KnownBlocks;
use super::lease::{Lease, LeaseKind};
use super::locations::{Location, Locations};
use super::manifest::{FORMAT, Manifest, SegmentOf};
use super::pace::{HELD, PackPace, SHARES};
use super::pack::{OpenPack, Packer};
use super::prune::new_sweeps;
use super::publish::publish;
use super::run::{RunState, forgotten};
use super::segment::place_of;
use super::segments::{Segments, object};
use super::source::RepositorySource;
use super::store::Store;
use super::swept::Swept;
use crate::block::{BlockIndex, BlockSet, Digest, Extent, Geometry};
use crate::error::{Error, Kind, Result};
use crate::files::blocking;
use crate::source::BlockSource;
use crate::target::{Published, Sink, SinkState, Written};

/// A snapshot being written.
pub(crate) struct RepositorySink {
    state: RunState,
    geometry: Geometry,
    parent: Option<Manifest>,
    segments: Arc<Segments>,
    locations: Arc<Locations>,
    known: Option<Arc<KnownBlocks>>,
    files: PathBuf,
    filling: Mutex<OpenPack>,
    /// Blocks compressed at once: no more than there are processors.
    packing: Semaphore,
    packers: Mutex<Vec<Packer>>,
    held: Arc<Semaphore>,
    sent: Mutex<Vec<JoinHandle<Result<()>>>>,
    /// Shares of the line, of which each upload takes as many as [`PackPace`] says.
    uploads: Arc<Semaphore>,
    packs: AtomicU32,
    counts: [AtomicU64; 3],
    /// Whether a segment of the parent could not be read.
    is_parent_damaged: AtomicBool,
    published: Mutex<Option<Arc<RepositorySource>>>,
    /// None once it has ended.
    lease: Mutex<Option<Lease>>,
}

impl std::fmt::Debug for RepositorySink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RepositorySink({})", self.state.snapshot)
    }
}

impl RepositorySink {
    /// The sink of a run, whose files on this machine begin with `files`. `done` is none for a new run, else how many
    /// blocks an earlier execution of it has done. A new run is put on record in the repository before it reads
    /// any object that it relies on. It relies on no object that is `swept`.
    ///
    /// # Errors
    /// `Invalid` when the run is resumed and the repository has no record of it; `Corrupt` when its files have changed since it left
    /// them; else why the repository cannot be reached.
    pub(super) async fn open(
        store: Arc<Store>,
        state: RunState,
        files: &Path,
        done: Option<u64>,
        lease: Duration,
        swept: &Swept,
    ) -> Result<Self> {
        let (of, run, what) = (Arc::clone(&store), &state.run, state.snapshot.as_str());
        let held = match done {
            None => Lease::begin(of, LeaseKind::Sync, run, what, lease, swept.sweeps()).await,
            Some(_) => Lease::resume(of, run, lease).await,
        };
        let mut published = None;
        let lease = match held {
            Err(error) if error.kind() == Kind::NotFound => {
                // The last execution was killed between publishing and the record on this machine.
                published = state.published(&store).await?;
                if published.is_none() {
                    return Err(forgotten(&store));
                }
                None
            }
            held => Some(held?),
        };
        let parent = match state.parent.as_ref().filter(|_| published.is_none()) {
            None => None,
            Some(parent) => Some(parent.read(&store, done.is_none()).await?),
        };
        let is_new = done.unwrap_or(0) == 0 || published.is_some();
        let locations = Locations::open(files, is_new)?;
        let counts = [state.sent_blocks, state.sent_bytes, state.stored_bytes];
        let segments = Arc::new(Segments::new(store));
        let published = published
            .map(|manifest| RepositorySource::new(manifest, Arc::clone(&segments)))
            .transpose()?
            .map(|source| Arc::new(source.into_stored()));
        Ok(Self {
            geometry: Geometry::new(state.volume_bytes)?,
            parent,
            segments,
            locations: Arc::new(locations),
            known: None,
            files: files.to_owned(),
            filling: Mutex::default(),
            packing: Semaphore::new(std::thread::available_parallelism().map_or(2, usize::from)),
            packers: Mutex::default(),
            held: Arc::new(Semaphore::new(HELD)),
            sent: Mutex::default(),
            uploads: Arc::new(Semaphore::new(SHARES as usize)),
            packs: AtomicU32::new(state.packs),
            counts: counts.map(AtomicU64::new),
            is_parent_damaged: AtomicBool::new(false),
            published: Mutex::new(published),
            lease: Mutex::new(lease),
            state,
        })
    }

    /// The same sink, which sends no block that is in the index and in a pack that neither `last` calls damaged nor a sweep names.
    /// The index must be updated after the sink was opened.
    #[must_use]
    pub(super) fn with_index(mut self, index: Index, last: LastCheck, swept: Arc<Swept>) -> Self {
        self.known = Some(Arc::new(KnownBlocks::new(index, last, swept)));
        self
    }

    /// Removes the run's record in the repository, then its files on this machine: as long as the record is there, the next execution
    /// resumes the run, and needs them.
    async fn end(&self) -> Result<()> {
        let lease = self.lease.lock().take();
        if let Some(lease) = lease {
            lease.end().await?;
        }
        Locations::remove(&self.files)
    }

    fn store(&self) -> &Arc<Store> {
        self.segments.store()
    }

    async fn put(&self, index: BlockIndex, bytes: Bytes, digest: Digest) -> Result<()> {
        if self.is_as_parent(index, &digest).await? {
            return self.locations.note(index, &digest, Location::AsParent);
        }
        if let Some(known) = &self.known {
            let number = || self.packs.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(location) = known
                .find(digest, self.store(), &self.locations, number)
                .await?
            {
                return self.locations.note(index, &digest, location);
            }
        }
        let stopped = |error| Error::with_source(Kind::Io, "stopped", error);
        let place = Arc::clone(&self.held)
            .acquire_owned()
            .await
            .map_err(stopped)?;
        let len = bytes.len() as u64;
        let stored = {
            let _packing = self.packing.acquire().await.map_err(stopped)?;
            let idle = self.packers.lock().pop();
            let packed = blocking(move || {
                let failed = |error| Error::with_source(Kind::Io, "cannot compress", error);
                let mut packer = idle.map_or_else(Packer::new, Ok).map_err(failed)?;
                let stored = packer.pack(bytes);
                Ok((packer, stored))
            });
            let (packer, stored) = packed.await?;
            self.packers.lock().push(packer);
            stored
        };
        let [blocks, sent, kept] = &self.counts;
        blocks.fetch_add(1, Ordering::Relaxed);
        sent.fetch_add(len, Ordering::Relaxed);
        kept.fetch_add(stored.bytes.len() as u64, Ordering::Relaxed);
        // Sent before a flush can see that it is no longer being filled.
        let mut filling = self.filling.lock();
        filling.push(index, digest, stored, place);
        if filling.is_full(PackPace::of(self.store().line()).most_bytes) {
            self.send(std::mem::take(&mut *filling));
        }
        Ok(())
    }

    /// Starts to send a pack; a flush waits for it.
    fn send(&self, filling: OpenPack) {
        let number = self.packs.fetch_add(1, Ordering::Relaxed) + 1;
        let (store, locations) = (Arc::clone(self.store()), Arc::clone(&self.locations));
        let (salt, known) = (self.salt(), self.known.clone());
        let uploads = Arc::clone(&self.uploads);
        let upload = async move {
            let shares = PackPace::of(store.line()).shares();
            let stopped = |error| Error::with_source(Kind::Io, "stopped", error);
            let _shares = uploads.acquire_many_owned(shares).await.map_err(stopped)?;
            let packed = blocking(move || Ok(filling.pack(&salt))).await?;
            let name = object("packs", &packed.name);
            store.put(&name, &packed.pieces).await?;
            blocking(move || {
                locations.name(number, &packed.name)?;
                for (index, digest, spot) in packed.spots {
                    locations.note(index, &digest, Location::Pack(number, spot))?;
                    if let Some(known) = &known {
                        known.wrote(digest, index);
                    }
                }
                Ok(())
            })
            .await
        };
        self.sent.lock().push(tokio::spawn(upload));
    }

    fn salt(&self) -> Salt {
        salt_of_run(&self.state.run)
    }

    async fn flush_all(&self) -> Result<RunState> {
        let sent = {
            let mut filling = self.filling.lock();
            if !filling.is_empty() {
                self.send(std::mem::take(&mut *filling));
            }
            std::mem::take(&mut *self.sent.lock())
        };
        let mut first = Ok(());
        for upload in sent {
            let done = upload.await;
            let done = done.map_err(|error| Error::with_source(Kind::Io, "stopped", error));
            first = first.and(done.and_then(|done| done));
        }
        first?;
        let locations = Arc::clone(&self.locations);
        blocking(move || locations.flush()).await?;
        let [blocks, sent, kept] = &self.counts;
        Ok(RunState {
            packs: self.packs.load(Ordering::Relaxed),
            sent_blocks: blocks.load(Ordering::Relaxed),
            sent_bytes: sent.load(Ordering::Relaxed),
            stored_bytes: kept.load(Ordering::Relaxed),
            ..self.state.clone()
        })
    }

    /// Puts all segments that differ from the parent's.
    async fn put_segments(&self, written: Written, damaged: &BlockSet) -> Result<Vec<SegmentOf>> {
        let mut written = written.peekable();
        let mut segments = Vec::new();
        for number in 0..self.geometry.block_count().div_ceil(SEGMENT_BLOCKS) {
            let (rest, blocks) = blocking(move || {
                let mut blocks = Vec::new();
                let is_its = |block: &Result<(BlockIndex, Option<Digest>)>| {
                    block
                        .as_ref()
                        .map_or(true, |(index, _)| place_of(*index).0 <= number)
                };
                while let Some(block) = written.next_if(is_its) {
                    blocks.push(block?);
                }
                Ok((written, blocks))
            })
            .await?;
            written = rest;
            let first = number.saturating_mul(SEGMENT_BLOCKS);
            let end = first.saturating_add(SEGMENT_BLOCKS);
            let damaged = damaged.runs_in(BlockIndex(first), BlockIndex(end));
            let damaged = damaged.flat_map(Extent::blocks).collect();
            segments.extend(self.segment(number, blocks, damaged).await?);
        }
        Ok(segments)
    }

    async fn publish_all(
        &self,
        written: Written,
        damaged: &BlockSet,
    ) -> Result<Arc<RepositorySource>> {
        let published = self.published.lock().clone();
        if let Some(published) = published {
            self.end().await?;
            return Ok(published);
        }
        // A first listing of sweeps, while the last packs and the segments are in flight; a second one follows when the
        // manifest is there.
        let known = self.lease.lock().as_ref().map(Lease::known_sweeps);
        let known = known.ok_or_else(|| forgotten(self.store()))?;
        let put = async {
            let state = self.flush_all().await?;
            Ok((state, self.put_segments(written, damaged).await?))
        };
        let ((state, segments), swept) = try_join(put, new_sweeps(self.store(), &known)).await?;
        let all = BlockIndex(self.geometry.block_count());
        let damaged = damaged.runs_in(BlockIndex(0), all);
        let damaged = damaged.map(|run| (run.start().0, run.end().0)).collect();
        let manifest = Manifest {
            format: FORMAT,
            run: state.run.clone(),
            snapshot: state.snapshot,
            volume: state.volume,
            volume_key: state.volume_key,
            time: state.time,
            volume_bytes: state.volume_bytes,
            base: state.base,
            encrypted: state.encrypted,
            description: state.description,
            tags: state.tags,
            written: SystemTime::now(),
            blocks: segments.iter().map(|of| u64::from(of.blocks)).sum(),
            sent_blocks: state.sent_blocks,
            sent_bytes: state.sent_bytes,
            stored_bytes: state.stored_bytes,
            damaged,
            segments,
        };
        let manifest = self.publish_manifest(manifest, swept).await?;
        let source = RepositorySource::new(manifest, Arc::clone(&self.segments))?;
        let source = Arc::new(source.into_stored());
        *self.published.lock() = Some(Arc::clone(&source));
        self.end().await?;
        Ok(source)
    }

    /// Publishes a manifest; returns the one that is there now.
    async fn publish_manifest(&self, manifest: Manifest, swept: HashSet<u64>) -> Result<Manifest> {
        let lease = self.lease.lock().take();
        let Some(lease) = lease else {
            return Err(forgotten(self.store()));
        };
        let replaces = self.state.replaces.as_deref();
        let published = publish(self.store(), &lease, manifest, replaces, Some(swept)).await;
        let is_swept = matches!(&published, Err(error) if error.kind() == Kind::Busy);
        *self.lease.lock() = Some(lease);
        if is_swept {
            // The next execution starts from the beginning: it finds no record.
            self.end().await?;
        }
        published
    }
}

impl Sink for RepositorySink {
    fn write_block(
        &self,
        index: BlockIndex,
        bytes: Bytes,
        digest: Digest,
    ) -> BoxFuture<'_, Result<()>> {
        self.put(index, bytes, digest).boxed()
    }

    /// A block that no segment names is a hole.
    fn write_zeroes(&self, _extent: Extent) -> BoxFuture<'_, Result<()>> {
        std::future::ready(Ok(())).boxed()
    }

    fn flush(&self) -> BoxFuture<'_, Result<SinkState>> {
        async { Ok(SinkState::of(&self.flush_all().await?)) }.boxed()
    }

    fn read_back(&self) -> BoxFuture<'_, Result<Option<Arc<dyn BlockSource>>>> {
        let published = self.published.lock().clone();
        std::future::ready(Ok(published.map(|source| source as Arc<dyn BlockSource>))).boxed()
    }

    fn publish<'a>(
        &'a self,
        written: Written,
        damaged: &'a BlockSet,
    ) -> BoxFuture<'a, Result<Published>> {
        async {
            let source = self.publish_all(written, damaged).await?;
            let snapshot = source.manifest().snapshot.clone();
            Ok(Published {
                mark: None,
                snapshot: Some(format!("{}#{snapshot}", self.store().address())),
                replica: Some(snapshot),
            })
        }
        .boxed()
    }
}
