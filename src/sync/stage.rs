//! [`Stage`]: a delta for a target in place, fetched whole to local disk before it is applied. So the target is between two
//! snapshots only as long as local disks need, and never waits for AWS.
//!
//! ```text
//! DIRECTORY/HEX.ebsfs-stage               a sparse file of the volume's size: each block to write, at its own offset
//! DIRECTORY/HEX.ebsfs-stage-checkpoint    the task, the plan, how much of it is there (a Checkpoint)
//! DIRECTORY/HEX.ebsfs-stage-digests       the digest of each block
//! DIRECTORY/HEX.ebsfs-stage.json          the source; written when all blocks are flushed, so it marks a complete stage
//! ```
//! HEX are the first 32 digits of the SHA-256 of the target's id. Each block read from a stage is compared with its digest.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::checkpoint::Checkpoint;
use super::copy::CopyTarget;
use super::digests::{DigestEntry, Digests};
use super::files::StateFiles;
use super::record;
use super::source::Source;
use crate::block::{Block, BlockIndex, BlockSet, Delta, Digest, Extent, Geometry};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::{
    self, blocking, make_folder_of, open_ours, read_ours, remove_if_there, replace, with_ending,
};
use crate::snapshot::{Snapshot, SnapshotId};
use crate::source::{BlockSource, Catalog, Changes, DiskSource};
use crate::target::{
    Published, Sink, SinkBody, SinkState, SourceInfo, Target, TargetRecord, Task, Written, stem_in,
};

/// The files of one target's stage.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    stem: PathBuf,
}

/// What the source of a complete stage is.
#[derive(Debug, Serialize, Deserialize)]
struct Staged {
    version: u32,
    source: String,
    volume: Option<String>,
    encrypted: Option<bool>,
    #[serde(default)]
    snapshot_time: Option<std::time::SystemTime>,
    #[serde(default)]
    damaged_in_source: u64,
}

const VERSION: u32 = 1;

/// A stage's sink keeps nothing: its file is all.
#[derive(Serialize, Deserialize)]
struct StageState;

impl SinkBody for StageState {
    const KIND: &'static str = "stage";
    const VERSION: u32 = 1;
}

impl Stage {
    /// The stage of a target in a directory.
    pub(super) fn of(directory: &Path, target: &str) -> Self {
        Self {
            stem: stem_in(directory, target),
        }
    }

    fn data(&self) -> PathBuf {
        with_ending(&self.stem, ".ebsfs-stage")
    }

    fn checkpoint(&self) -> PathBuf {
        with_ending(&self.stem, ".ebsfs-stage-checkpoint")
    }

    fn digests(&self) -> PathBuf {
        with_ending(&self.stem, ".ebsfs-stage-digests")
    }

    fn about(&self) -> PathBuf {
        with_ending(&self.stem, ".ebsfs-stage.json")
    }

    /// Removes a stage that was applied or cannot be used.
    pub(super) fn remove(&self) -> Result<()> {
        // The file that marks it complete goes first.
        remove_if_there(&self.about())?;
        Checkpoint::discard(&self.checkpoint(), &self.digests())?;
        remove_if_there(&self.data())
    }

    fn load(&self) -> Result<Option<Checkpoint>> {
        match Checkpoint::load(&self.checkpoint(), &[self.digests()]) {
            // It can be fetched again.
            Err(error) if error.kind() == Kind::Corrupt => Ok(None),
            loaded => loaded,
        }
    }

    /// The complete stage that is wanted, by its task and its plan, if there is one.
    pub(super) fn complete(
        &self,
        wanted: impl Fn(&Task, &Delta) -> bool,
    ) -> Result<Option<StagedBlocks>> {
        if read_ours(&self.about())?.is_none() {
            return Ok(None);
        }
        let is_wanted = |found: &Checkpoint| wanted(found.task(), found.plan());
        let Some(checkpoint) = self.load()?.filter(is_wanted) else {
            return Ok(None);
        };
        if !checkpoint.missing().is_empty() || open_ours(&self.data(), false)?.is_none() {
            return Ok(None);
        }
        let Some(digests) = checkpoint.digests() else {
            return Ok(None);
        };
        let geometry = checkpoint.plan().head();
        Ok(Some(StagedBlocks {
            disk: DiskSource::open(&self.data())?,
            geometry,
            plan: Arc::clone(checkpoint.plan()),
            damaged: checkpoint.damaged().clone(),
            digests,
            task: checkpoint.task().clone(),
        }))
    }

    /// Opens the stage of a task for a copy, and resumes what an earlier run staged for the same task.
    pub(super) async fn open(&self, task: &Task, plan: &Arc<Delta>) -> Result<CopyTarget> {
        make_folder_of(&self.data())?;
        remove_if_there(&self.about())?;
        let left = self.load()?;
        let left =
            left.filter(|found| is_same(found.task(), task) && is_same_plan(found.plan(), plan));
        let geometry = plan.head();
        let file = match &left {
            Some(_) => open_ours(&self.data(), true)?,
            None => None,
        };
        let (file, checkpoint) = match (file, left) {
            (Some(file), Some(left)) => (file, left),
            _ => {
                self.remove()?;
                let digests = Digests::create(&self.digests(), &task.run, geometry, true)?;
                let checkpoint = Checkpoint::new(
                    &self.checkpoint(),
                    task.clone(),
                    Arc::clone(plan),
                    Some(digests),
                );
                (self.create(geometry)?, checkpoint)
            }
        };
        let is_resumed = checkpoint.done() > 0;
        let sink = Arc::new(StageSink {
            file: Arc::new(file),
            path: self.data(),
            geometry,
        });
        let mut checkpoint = checkpoint;
        checkpoint.set_state(SinkState::of(&StageState));
        // A block that is read from the stage is compared with its digest.
        checkpoint.need_digests();
        checkpoint.encode().write()?;
        let recheck = match is_resumed {
            true => sink.read_back().await?,
            false => None,
        };
        Ok(CopyTarget {
            name: self.data().display().to_string(),
            sink,
            checkpoint,
            recheck,
        })
    }

    fn create(&self, geometry: Geometry) -> Result<File> {
        let path = self.data();
        let failed = |error| Error::of_file(&path, "cannot write", error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(failed)?;
        file.set_len(geometry.size()).map_err(failed)?;
        files::sync_folder(&path).map_err(failed)?;
        Ok(file)
    }

    /// Marks the stage complete. Every block must be written and flushed.
    pub(super) fn finish(&self, source: &SourceInfo) -> Result<()> {
        let staged = Staged {
            version: VERSION,
            source: source.name.clone(),
            volume: source.volume.clone(),
            encrypted: source.encrypted,
            snapshot_time: source.time(),
            damaged_in_source: source.damaged_blocks(),
        };
        // Plain data: nothing in it can fail to serialise.
        replace(
            &self.about(),
            &serde_json::to_vec(&staged).unwrap_or_default(),
        )
    }
}

/// Whether two runs bring one target from one base to one source.
pub(super) fn is_same(one: &Task, other: &Task) -> bool {
    (&one.source, &one.base, &one.target) == (&other.source, &other.base, &other.target)
}

/// Whether two plans are of the same blocks.
pub(super) fn is_same_plan(one: &Delta, other: &Delta) -> bool {
    one.head() == other.head() && one.runs().eq(other.runs())
}

/// The source of a sync whose one target has a complete stage of it that leads from what it holds, or continues where a run was
/// killed: no call to AWS is needed.
///
/// # Errors
/// The system's error.
pub(crate) fn staged_source(
    directory: &Path,
    source: &str,
    target: &dyn Target,
) -> Result<Option<Source>> {
    let Ok(id) = source.parse::<SnapshotId>() else {
        return Ok(None);
    };
    if !target.kind().is_in_place() {
        return Ok(None);
    }
    let files = StateFiles::of(&target.state().stem);
    let record = record::load(&files.record(), None)?;
    let held = record.as_ref().and_then(TargetRecord::held);
    let unfinished = Checkpoint::load(&files.checkpoint(), &files.next_digests())?;
    let fits = |task: &Task, plan: &Delta| {
        let is_its = task.source == source && task.target == target.id();
        let goes_on = unfinished
            .as_ref()
            .is_some_and(|run| is_same(run.task(), task) && is_same_plan(run.plan(), plan));
        is_its && (goes_on || (held.is_some() && held == task.base.as_deref()))
    };
    let stage = Stage::of(directory, target.id());
    let Some(blocks) = stage.complete(fits)? else {
        return Ok(None);
    };
    let first = Arc::new(blocks);
    let about = read_ours(&stage.about())?;
    let staged: Option<Staged> = about.and_then(|about| serde_json::from_slice(&about).ok());
    let Some(staged) = staged else {
        return Ok(None);
    };
    if staged.version != VERSION || staged.source != source {
        return Ok(None);
    }
    let geometry = first.geometry();
    let mut snapshot = Snapshot::unknown(id);
    snapshot.volume_id.clone_from(&staged.volume);
    snapshot.encrypted = staged.encrypted;
    snapshot.start_time = staged.snapshot_time;
    let info = SourceInfo {
        name: source.to_owned(),
        geometry,
        size: None,
        mark: None,
        volume: staged.volume,
        volume_key: crate::target::VolumeKey::default(),
        encrypted: staged.encrypted,
        snapshot: Some(snapshot),
        has_changes: true,
        damaged_in_source: staged.damaged_in_source,
    };
    Ok(Some(Source {
        info,
        blocks: Arc::clone(&first) as _,
        catalog: Some(Arc::new(StagedCatalog(first))),
        mark: None,
        is_staged: true,
    }))
}

/// The blocks of a complete stage; it has no others.
#[derive(Debug)]
pub(super) struct StagedBlocks {
    disk: DiskSource,
    geometry: Geometry,
    plan: Arc<Delta>,
    damaged: BlockSet,
    digests: Digests,
    task: Task,
}

impl StagedBlocks {
    async fn read(&self, index: BlockIndex) -> Result<Block> {
        if self.damaged.contains(index) {
            let what = format!("cannot read block {index}: it was damaged when it was staged");
            return Err(Error::new(Kind::Corrupt, what));
        }
        if !self.plan.write().contains(index) {
            let what = format!("cannot read block {index}: it is not staged");
            return Err(Error::new(Kind::Invalid, what));
        }
        let digests = self.digests.clone();
        let wanted = blocking(move || digests.read(Extent::of(index))).await?;
        let found = match wanted.first() {
            Some(DigestEntry::Zero) => return Ok(Block::Zero),
            Some(DigestEntry::Data(digest)) => (self.disk.read_block(index).await?, digest),
            _ => (Block::Zero, &[0; 32]),
        };
        match found {
            (Block::Data(bytes, digest), wanted) if digest == *wanted => {
                Ok(Block::Data(bytes, digest))
            }
            _ => {
                let what = format!("cannot use the stage: block {index} does not match its digest");
                Err(Error::new(Kind::Corrupt, what).with_remedy(Remedy::Restart))
            }
        }
    }
}

impl BlockSource for StagedBlocks {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        self.read(index).boxed()
    }

    /// A stage holds only a delta: the other blocks of the volume are unknown.
    fn next_extent(&self, _from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        let what = "cannot list the volume: only its changes are staged";
        std::future::ready(Err(
            Error::new(Kind::Invalid, what).with_remedy(Remedy::Restart)
        ))
        .boxed()
    }

    fn is_known_zero(&self, _index: BlockIndex) -> bool {
        false
    }

    fn prefetch(&self, _blocks: &[BlockIndex]) -> usize {
        0
    }
}

/// The changes that are staged.
struct StagedCatalog(Arc<StagedBlocks>);

impl Catalog for StagedCatalog {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Arc<Snapshot>>>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    fn open<'a>(
        &'a self,
        id: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<(Snapshot, Arc<dyn BlockSource>)>> {
        let what = format!("cannot open {id}: only its changes are staged");
        std::future::ready(Err(Error::new(Kind::Invalid, what))).boxed()
    }

    fn delta<'a>(
        &'a self,
        base: &'a SnapshotId,
        head: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<Changes>> {
        let staged = &self.0;
        let task = &staged.task;
        let is_it = task.base.as_deref() == Some(base.as_str()) && task.source == head.as_str();
        let found = is_it.then(|| {
            let blocks: Arc<dyn BlockSource> = Arc::clone(staged) as _;
            (Arc::clone(&staged.plan), blocks)
        });
        std::future::ready(found.ok_or_else(|| {
            let what =
                format!("cannot list the changes from {base} to {head}: they are not staged");
            Error::new(Kind::Invalid, what).with_remedy(Remedy::Restart)
        }))
        .boxed()
    }
}

/// The file of a stage being filled.
struct StageSink {
    file: Arc<File>,
    path: PathBuf,
    geometry: Geometry,
}

impl StageSink {
    async fn with(
        &self,
        what: &'static str,
        work: impl FnOnce(&File) -> std::io::Result<()> + Send + 'static,
    ) -> Result<()> {
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        blocking(move || work(&file).map_err(|error| Error::of_file(&path, what, error))).await
    }
}

impl Sink for StageSink {
    fn write_block(
        &self,
        index: BlockIndex,
        bytes: Bytes,
        _digest: Digest,
    ) -> BoxFuture<'_, Result<()>> {
        let offset = self.geometry.offset(index);
        self.with("cannot write", move |file| {
            file.write_all_at(&bytes, offset)
        })
        .boxed()
    }

    /// Its digest says that it is zero: no byte of it is ever read.
    fn write_zeroes(&self, _extent: Extent) -> BoxFuture<'_, Result<()>> {
        std::future::ready(Ok(())).boxed()
    }

    fn flush(&self) -> BoxFuture<'_, Result<SinkState>> {
        async {
            self.with("cannot flush", File::sync_data).await?;
            Ok(SinkState::of(&StageState))
        }
        .boxed()
    }

    fn read_back(&self) -> BoxFuture<'_, Result<Option<Arc<dyn BlockSource>>>> {
        async {
            let (path, geometry) = (self.path.clone(), self.geometry);
            let disk = blocking(move || DiskSource::open_past_cache(&path, geometry)).await?;
            Ok(Some(Arc::new(disk) as Arc<dyn BlockSource>))
        }
        .boxed()
    }

    fn publish<'a>(
        &'a self,
        _written: Written,
        _damaged: &'a BlockSet,
    ) -> BoxFuture<'a, Result<Published>> {
        std::future::ready(Ok(Published::default())).boxed()
    }
}
