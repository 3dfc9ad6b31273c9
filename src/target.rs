//! Where a volume can be written: [`Target`] (what is observed and opened), [`Sink`] (the open target that takes writes), their
//! contracts, and the plain values that a decision is made of.
//!
//! ```text
//! observe   Target::observe -> Facts; nothing is changed
//! open      Target::open -> Opened: the unfinished target is named on disk (`Opening::name`) before its first change
//! write     Sink::write_block, Sink::write_zeroes, Sink::flush -> SinkState, which the checkpoint keeps
//! publish   Sink::publish: from now on the target is there under its name
//! ```
//! A target knows only its own object. Records, checkpoints and digests are files of [`crate::sync`].

#[cfg(test)]
pub(crate) mod contract;
mod facts;
mod mark;
mod record;
mod state;
mod stop;
mod volume;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};

pub use facts::{Base, Existence, Facts, ObserveRequest, Replica, SourceInfo, UnfinishedState};
pub(crate) use mark::{DeviceMark, Mark};
pub use record::{Content, TargetRecord, Task};
pub use state::{SinkBody, SinkState};
pub use stop::Stop;
pub use volume::VolumeKey;

use crate::block::{BlockIndex, BlockSet, Delta, Digest, Extent, Geometry, hexadecimal};
use crate::error::Result;
use crate::snapshot::SnapshotId;
use crate::source::BlockSource;

/// What a run has written: each block of its plan, by index, with the SHA-256 of its bytes; none for zeroes.
pub type Written = Box<dyn Iterator<Item = Result<(BlockIndex, Option<Digest>)>> + Send>;

/// What a target is. It decides how a target is written, and what can be known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetKind {
    /// A raw image that a new one replaces when that is whole.
    Image,
    /// A raw image that is changed itself.
    ImageInPlace,
    /// A block device.
    Device,
    /// A new EBS snapshot in an account and Region.
    Ebs,
    /// A snapshot of a repository.
    Repository,
}

impl TargetKind {
    /// Whether writes show at once, so that the target is between two snapshots during a run.
    pub(crate) fn is_in_place(self) -> bool {
        matches!(self, Self::ImageInPlace | Self::Device)
    }

    /// Whether a run makes a new object and changes no existing one.
    pub(crate) fn is_new(self) -> bool {
        matches!(self, Self::Ebs | Self::Repository)
    }
}

/// Where the state files of a target are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePaths {
    /// What the names of the state files begin with: the image's own path, or a name in the state directory.
    pub(crate) stem: PathBuf,
}

/// What the names of the files of an object begin with in a directory: the first 32 digits of the SHA-256 of its id.
pub(crate) fn stem_in(directory: &Path, id: &str) -> PathBuf {
    let digest = hexadecimal(&Sha256::digest(id));
    directory.join(digest.get(..32).unwrap_or(&digest))
}

/// Locks that two targets share when they are one object: an image with two names, a disk and its partition, two loop devices
/// over one file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockPath {
    /// An existing file or device node, locked with flock(2) on its inode.
    pub(crate) path: PathBuf,
    /// Whether a run waits a minute for it: the disk of a sibling partition.
    pub(crate) waits: bool,
}

/// One target of a sync.
pub trait Target: Send + Sync {
    /// As a person writes it.
    fn name(&self) -> &str;

    /// Which object it is, kept in records: the same target has the same id, another one never.
    fn id(&self) -> &str;

    /// What it is.
    fn kind(&self) -> TargetKind;

    /// Whether its bytes are those of the volume and nothing else, so that its size tells what is too much or missing.
    fn is_raw(&self) -> bool {
        true
    }

    /// Where its state files are.
    fn state(&self) -> StatePaths;

    /// What is locked besides the state files, in this order.
    ///
    /// # Errors
    /// The system's error.
    fn locks(&self) -> Result<Vec<LockPath>>;

    /// Flushes the page cache and returns the mark; none where the target has no mark.
    ///
    /// # Errors
    /// Why it cannot be looked at.
    fn mark(&self) -> Result<Option<Mark>> {
        Ok(None)
    }

    /// What can be seen of the target; nothing is changed.
    ///
    /// # Errors
    /// Why it cannot be looked at.
    fn observe<'a>(&'a self, ask: &'a ObserveRequest<'a>) -> BoxFuture<'a, Result<Facts>>;

    /// Fits a plan to the target: adds blocks to zero where an absent block does not read as zeroes, and sets the size that the
    /// target needs. A plan without [`Delta::base`] is a full copy. `base` is the replica that a delta starts from, where the
    /// target keeps several.
    ///
    /// # Errors
    /// Why the target cannot take such a plan, or does not answer.
    fn adapt<'a>(
        &'a self,
        plan: Arc<Delta>,
        base: Option<&'a Replica>,
    ) -> BoxFuture<'a, Result<Arc<Delta>>>;

    /// Opens the target for writing. The first change to it comes after [`Opening::name`] has returned.
    ///
    /// # Errors
    /// Why it cannot be opened; `Stopped` by the first signal.
    fn open<'a>(&'a self, opening: Opening<'a>) -> BoxFuture<'a, Result<Opened>>;

    /// Opens the target for reading, past every cache. A target that keeps several snapshots reads `replica`, or the one of
    /// [`Facts::holds`].
    ///
    /// # Errors
    /// Why it cannot be read.
    fn reader<'a>(
        &'a self,
        replica: Option<&'a str>,
        geometry: Geometry,
    ) -> BoxFuture<'a, Result<Arc<dyn BlockSource>>>;

    /// Makes again what a target that holds its snapshot has besides the bytes of the volume, if that is missing or wrong.
    ///
    /// # Errors
    /// Why it cannot be written.
    fn repair(&self) -> Result<()> {
        Ok(())
    }

    /// Removes what an unfinished run has left besides the state files: a part, a run on record. Nothing published is touched.
    ///
    /// # Errors
    /// Why it cannot be removed.
    fn discard<'a>(&'a self, left: &'a SinkState) -> BoxFuture<'a, Result<()>>;
}

/// How a target is opened.
pub struct Opening<'a> {
    /// What is copied where.
    pub task: &'a Task,
    /// The whole plan.
    pub plan: &'a Delta,
    /// How many blocks of it are done by an earlier run.
    pub done: u64,
    /// What is known of the source.
    pub source: &'a SourceInfo,
    /// What an earlier run left; none for a run that begins.
    pub resume: Option<&'a SinkState>,
    /// What the plan is a delta of, for a run that begins, where the target keeps several snapshots.
    pub base: Option<&'a Replica>,
    /// The mark that the decision was made with. A target with another mark has changed since, and `open` refuses it.
    pub mark: Option<&'a Mark>,
    /// Saves the checkpoint with this state and, for a target in place, the record "between". `open` calls it before the first
    /// change, and again whenever the state has changed.
    pub name: &'a (dyn Fn(&SinkState) -> Result<()> + Send + Sync),
    /// State files of the sink's own begin with this.
    pub files: PathBuf,
    /// Whether the user asked for a new object, instead of the one that the same command made or started before.
    pub restart: bool,
    /// Blocks that are read in a second, at most.
    pub rate: u32,
    /// The first signal.
    pub stop: &'a Stop,
}

impl std::fmt::Debug for Opening<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opening({:?})", self.task)
    }
}

/// An open target.
pub struct Opened {
    /// Takes the writes.
    pub sink: Arc<dyn Sink>,
    /// As last given to [`Opening::name`].
    pub state: SinkState,
    /// Whether blocks outside the plan must be zeroed: here an absent block does not read as zeroes.
    pub zero_the_rest: bool,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opened({:?})", self.state)
    }
}

/// An open target that takes writes. Blocks come in any order, several at once. A block can come again: after a crash if it was
/// not flushed, and in a run that rechecks what an earlier one has written.
pub trait Sink: Send + Sync {
    /// Writes a block.
    ///
    /// # Errors
    /// Why it could not be written; the target may hold any part of it.
    fn write_block(
        &self,
        index: BlockIndex,
        bytes: Bytes,
        digest: Digest,
    ) -> BoxFuture<'_, Result<()>>;

    /// Makes blocks read as zeroes, whatever was there.
    ///
    /// # Errors
    /// As for [`Sink::write_block`].
    fn write_zeroes(&self, extent: Extent) -> BoxFuture<'_, Result<()>>;

    /// Makes all earlier writes survive a crash of the machine. Returns the state that a resumed run needs.
    ///
    /// # Errors
    /// `Io` when it may not survive: then none of it counts as written.
    fn flush(&self) -> BoxFuture<'_, Result<SinkState>>;

    /// Reads back what was written, past every cache; none where the target can be read only after it is published.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn read_back(&self) -> BoxFuture<'_, Result<Option<Arc<dyn BlockSource>>>>;

    /// Publishes: from now on the target is there under its name. `damaged` are blocks that were left zero.
    ///
    /// # Errors
    /// Why it could not be published; it can be tried again.
    fn publish<'a>(
        &'a self,
        written: Written,
        damaged: &'a BlockSet,
    ) -> BoxFuture<'a, Result<Published>>;
}

/// What is known of a published target.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Its mark after the last write, if nothing changed it for two clock ticks since.
    pub(crate) mark: Option<Mark>,
    /// The name of a snapshot that was made: an EBS snapshot's id, or `s3://BUCKET/PREFIX#SNAPSHOT`.
    pub snapshot: Option<String>,
    /// That snapshot's id, where the target keeps several.
    pub replica: Option<SnapshotId>,
}
