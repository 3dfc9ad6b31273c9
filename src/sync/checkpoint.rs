//! What a run must know to go on after it was killed: one file, replaced whole, always behind the data that it speaks of.
//!
//! ```text
//! "ebsfsync" version(u32) length(u32) JSON: source, base, target, what the sink needs
//! plan: a Delta   done: a BlockSet, of all blocks of the plan that are written or zeroed and flushed
//! SHA-256 of all that
//! ```
//! It is written to a temporary name, fsynced, renamed, and the folder fsynced: after a crash there is the old one or the
//! new one. Digests of the blocks fetched are in a file beside it, 32 bytes a block at 32 times its index, fsynced first.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::digests::Digests;
use crate::block::{BlockIndex, BlockSet, Change, Delta, Digest, Extent};
use crate::disk::{remove_if_there, sync_folder, with_ending};
use crate::error::{Error, Kind, Result};
use crate::sink::Written;

const MAGIC: &[u8; 8] = b"ebsfsync";
const VERSION: u32 = 1;

/// How a target is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A part beside it, which becomes it.
    Part,
    /// A thing that comes to be with the run, a new EBS snapshot.
    New,
    /// Itself.
    InPlace,
}

/// What is copied where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Which run began it: checkpoint and record of one target belong together by this.
    pub run: String,
    /// The run whose unfinished work in place this one has taken over.
    #[serde(default)]
    pub after: Option<String>,
    /// How it is written: what one way has done is nothing to go on from the other way.
    pub mode: Mode,
    /// The source as it was, if it is an image of this machine.
    pub source_mark: Option<Value>,
    /// What the target becomes: a snapshot's id, or the path of an image.
    pub source: String,
    /// What the target held before; none for a full copy.
    pub base: Option<String>,
    /// [`crate::sink::Sink::id`].
    pub target: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    task: Task,
    state: Value,
}

/// The checkpoint of one target.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    task: Task,
    plan: Arc<Delta>,
    done: BlockSet,
    state: Value,
    digests: Digests,
}

impl Checkpoint {
    /// A checkpoint of a run that begins, not saved yet. It and the digests (`path` with `-digests` behind it) are for the
    /// owner alone.
    ///
    /// # Errors
    /// `Io` when the files cannot be made.
    pub fn new(path: &Path, task: Task, plan: Arc<Delta>) -> Result<Self> {
        // Not emptied: an old checkpoint may still speak of them until this one is saved. What is done is written anew.
        let digests = Digests::create(path)?;
        Ok(Self {
            path: path.to_owned(),
            task,
            plan,
            done: BlockSet::new(),
            state: Value::Null,
            digests,
        })
    }

    /// The checkpoint that an earlier run left; none when there is none.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged, `Io` when it cannot be read.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let mut bytes = Vec::new();
        match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file
                .and_then(|mut file| file.read_to_end(&mut bytes))
                .map_err(|error| Error::of_file(path, "cannot read", error))?,
        };
        let (header, plan, done) = decode(&bytes).ok_or_else(|| {
            let what = format!(
                "the checkpoint {} is damaged: --restart syncs the target from the start",
                path.display()
            );
            Error::new(Kind::Corrupt, what)
        })?;
        Ok(Some(Self {
            path: path.to_owned(),
            task: header.task,
            plan: Arc::new(plan),
            done,
            state: header.state,
            digests: Digests::open(path)?,
        }))
    }

    /// What is copied where.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// All that there is to do, done or not.
    pub fn plan(&self) -> &Arc<Delta> {
        &self.plan
    }

    /// What the sink needs to go on, as of its last flush.
    pub fn state(&self) -> &Value {
        &self.state
    }

    /// How many blocks of the plan are done.
    pub fn done(&self) -> u64 {
        self.done.len()
    }

    /// The first block at or after `from` that is to be written and is not.
    pub fn next_write(&self, from: BlockIndex) -> Option<BlockIndex> {
        next_missing(self.plan.write(), &self.done, from)
    }

    /// The first run at or after `from`, of at most `most` blocks, that is to be zeroed and is not.
    pub fn next_zero(&self, from: BlockIndex, most: u32) -> Option<Extent> {
        let zero = self.plan.zero();
        let start = next_missing(zero, &self.done, from)?;
        let end = zero
            .next_out(start)
            .min(BlockIndex(start.0.saturating_add(most)));
        let stop = self.done.next_in(start).map_or(end, |done| done.min(end));
        Extent::new(start, stop)
    }

    /// The file of digests, to be written before a saved checkpoint speaks of the blocks.
    pub fn digests(&self) -> Digests {
        self.digests.clone()
    }

    /// At most so many of the written blocks that are done, all over the volume, each with its digest.
    pub(super) fn sample(&self, most: usize) -> Vec<Result<(BlockIndex, Option<Digest>)>> {
        let zeroed = self
            .plan
            .zero()
            .runs_in(BlockIndex(0), BlockIndex(u32::MAX));
        let zeroed: u64 = zeroed.map(|run| u64::from(self.done.count_in(run))).sum();
        let count = self.done.len().saturating_sub(zeroed);
        let step = usize::try_from(count).unwrap_or(most).div_ceil(most).max(1);
        let runs = self
            .plan
            .runs()
            .filter(|(_, change)| *change == Change::Write);
        let blocks = runs.flat_map(|(extent, _)| extent.blocks());
        let done = blocks.filter(|index| self.done.contains(*index));
        done.step_by(step)
            .map(|index| Ok((index, self.digests.read_one(index)?)))
            .collect()
    }

    /// Zeroes again what was zeroed: that is cheap, and comparing it is not.
    pub fn forget_zeroed(&mut self) {
        let mut done = BlockSet::new();
        let written = self
            .plan
            .write()
            .runs_in(BlockIndex(0), BlockIndex(u32::MAX));
        for written in written {
            for run in self.done.runs_in(written.start(), written.end()) {
                done.insert_extent(run);
            }
        }
        self.done = done;
    }

    /// What was written, when all is done.
    pub fn written(&self) -> Written {
        Box::new(self.digests.of(Arc::clone(&self.plan)))
    }

    /// Takes blocks as done, their data and digests being flushed.
    pub fn mark(&mut self, blocks: impl IntoIterator<Item = Extent>, state: Value) {
        for extent in blocks {
            self.done.insert_extent(extent);
        }
        self.state = state;
    }

    /// Plans to zero all that is not to be written, in a full copy: the target turned out to be one where absence is no
    /// zero.
    pub fn zero_the_rest(&mut self) {
        Arc::make_mut(&mut self.plan).zero_what_grew();
    }

    /// The checkpoint as it is now, ready to be written by a thread that may wait.
    pub fn encode(&self) -> Saved {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let header = Header {
            task: self.task.clone(),
            state: self.state.clone(),
        };
        // Nothing in it can fail to serialise.
        let json = serde_json::to_vec(&header).unwrap_or_default();
        bytes.extend_from_slice(&u32::try_from(json.len()).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&json);
        self.plan.encode(&mut bytes);
        self.done.encode(&mut bytes);
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        Saved {
            path: self.path.clone(),
            bytes,
        }
    }

    /// Removes checkpoint and digests, if there are any: nothing is to be gone on with.
    ///
    /// # Errors
    /// `Io` when they cannot be removed.
    pub fn discard(path: &Path) -> Result<()> {
        // In this order: digests without a checkpoint say nothing, a checkpoint without its digests would be wrong.
        remove_if_there(path)?;
        sync_folder(path)
            .map_err(|error| Error::of_file(path, "cannot flush the folder of", error))?;
        Digests::remove(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A checkpoint to be written.
#[derive(Debug)]
pub struct Saved {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Saved {
    /// Replaces what is there, whole or not at all.
    ///
    /// # Errors
    /// `Io` or `NoSpace`: then the old one still stands.
    pub fn write(&self) -> Result<()> {
        replace(&self.path, &self.bytes)
    }
}

/// Replaces a file whole or not at all, and for good: a temporary name, fsync, rename, fsync of the folder.
///
/// # Errors
/// `Io` or `NoSpace`.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = with_ending(path, ".new");
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&new)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&new, path))
        .and_then(|()| sync_folder(path));
    written.map_err(|error| Error::of_file(path, "cannot write", error))
}

fn decode(bytes: &[u8]) -> Option<(Header, Delta, BlockSet)> {
    let (body, digest) = bytes.split_last_chunk::<32>()?;
    if Sha256::digest(body).as_slice() != digest {
        return None;
    }
    let rest = body.strip_prefix(MAGIC)?;
    let (version, rest) = rest.split_first_chunk()?;
    if u32::from_le_bytes(*version) != VERSION {
        return None;
    }
    let (len, rest) = rest.split_first_chunk()?;
    let (json, mut rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    let header = serde_json::from_slice(json).ok()?;
    let plan = Delta::decode(&mut rest)?;
    let done = BlockSet::decode(&mut rest)?;
    rest.is_empty().then_some((header, plan, done))
}

fn next_missing(wanted: &BlockSet, done: &BlockSet, from: BlockIndex) -> Option<BlockIndex> {
    let mut at = from;
    loop {
        let next = wanted.next_in(at)?;
        if !done.contains(next) {
            return Some(next);
        }
        at = done.next_out(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Geometry;

    fn task() -> Task {
        Task {
            run: "1".into(),
            after: None,
            mode: Mode::Part,
            source_mark: None,
            source: "snap-b".into(),
            base: Some("snap-a".into()),
            target: "file".into(),
        }
    }

    fn plan() -> Arc<Delta> {
        let mut plan = Delta::new(None, Geometry::new(1 << 30).unwrap());
        for index in [1, 2, 3, 900] {
            plan.insert(BlockIndex(index), Change::Write);
        }
        for index in 10..20 {
            plan.insert(BlockIndex(index), Change::Zero);
        }
        Arc::new(plan)
    }

    fn extent(start: u32, end: u32) -> Extent {
        Extent::new(BlockIndex(start), BlockIndex(end)).unwrap()
    }

    #[test]
    fn what_is_left_after_a_crash_is_what_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        assert!(Checkpoint::load(&path).unwrap().is_none());
        let mut checkpoint = Checkpoint::new(&path, task(), plan()).unwrap();
        assert_eq!(checkpoint.next_zero(BlockIndex(0), 4), Some(extent(10, 14)));
        checkpoint.mark(
            [extent(2, 3), extent(10, 14), extent(16, 17)],
            Value::from("s"),
        );
        let digest = [7; 32];
        let digests = [(BlockIndex(2), Some(digest)), (BlockIndex(1), None)];
        checkpoint.digests().write(&digests).unwrap();
        checkpoint.encode().write().unwrap();
        checkpoint.mark([extent(1, 2)], Value::Null);
        drop(checkpoint);

        let loaded = Checkpoint::load(&path).unwrap().unwrap();
        assert_eq!(*loaded.task(), task());
        assert_eq!(*loaded.state(), "s");
        assert_eq!(loaded.done(), 6);
        let writes: Vec<_> = std::iter::successors(loaded.next_write(BlockIndex(0)), |at| {
            loaded.next_write(BlockIndex(at.0 + 1))
        })
        .map(|index| index.0)
        .collect();
        assert_eq!(writes, [1, 3, 900]);
        assert_eq!(loaded.next_zero(BlockIndex(0), 4), Some(extent(14, 16)));
        assert_eq!(loaded.next_zero(BlockIndex(16), 4), Some(extent(17, 20)));
        assert_eq!(loaded.next_zero(BlockIndex(20), 4), None);
        // Not all of it was done.
        assert!(loaded.written().any(|block| block.is_err()));
        Checkpoint::discard(loaded.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_checkpoint_is_told_and_nothing_panics() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        Checkpoint::new(&path, task(), plan())
            .unwrap()
            .encode()
            .write()
            .unwrap();
        let good = std::fs::read(&path).unwrap();
        for cut in 0..good.len() {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert_eq!(Checkpoint::load(&path).unwrap_err().kind(), Kind::Corrupt);
        }
        for at in (0..good.len()).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(Checkpoint::load(&path).unwrap_err().kind(), Kind::Corrupt);
        }
    }
}
