//! [`Checkpoint`]: what a run needs to resume after it was killed. One file, replaced whole, saved only after the data that it
//! names is flushed.
//!
//! ```text
//! "ebsfsync" version(u32) length(u32) JSON: what is copied where, what the sink needs
//! plan: a Delta   done: a BlockSet, of all blocks of the plan that are written or zeroed and flushed
//! damaged: a BlockSet, of those that are zero because their source is damaged
//! SHA-256 of all that
//! ```
//! Digests of the blocks are in a file beside it ([`super::digests`]), fsynced first. Where there was no room for that file, the
//! JSON says so, and the run has no digests.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::digests::Digests;
use crate::block::{BlockIndex, BlockSet, Delta, Extent};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::{read_ours, remove_if_there, replace, sync_folder};
use crate::target::{SinkState, Task, Written};

const MAGIC: &[u8; 8] = b"ebsfsync";
const VERSION: u32 = 2;

/// What a person should know of a copy without digests.
pub(super) const WITHOUT_DIGESTS: &str =
    "no room for the digests, so the next run cannot compare it and may copy all blocks";

#[derive(Debug, Serialize, Deserialize)]
struct CheckpointHeader {
    task: Task,
    state: Option<SinkState>,
    /// There was no room for the digests.
    #[serde(default)]
    without_digests: bool,
    #[serde(default)]
    began_as_base: bool,
}

/// The checkpoint of one target.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    path: PathBuf,
    task: Task,
    plan: Arc<Delta>,
    done: BlockSet,
    damaged: BlockSet,
    state: Option<SinkState>,
    digests: Option<Digests>,
    /// Whether every block was what the digests of the base say when the run began.
    began_as_base: bool,
    /// Whether the copy is of no use without its digests.
    needs_digests: bool,
    /// The file of the digests that were given up. It is removed once the saved checkpoint has none.
    given_up: Option<PathBuf>,
}

impl Checkpoint {
    /// The checkpoint of a run that begins, not saved yet; without digests where there is no room for them.
    pub(super) fn new(path: &Path, task: Task, plan: Arc<Delta>, digests: Option<Digests>) -> Self {
        Self {
            path: path.to_owned(),
            task,
            plan,
            done: BlockSet::new(),
            damaged: BlockSet::new(),
            state: None,
            digests,
            began_as_base: false,
            needs_digests: false,
            given_up: None,
        }
    }

    /// The checkpoint that an earlier run left, with its digests at one of `digests`; none where there is none, or where what is
    /// there is not ours, of an older version, or of another run than the digests.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged, `Io` when it cannot be read.
    pub(super) fn load(path: &Path, digests: &[PathBuf]) -> Result<Option<Self>> {
        let Some(bytes) = read_ours(path)? else {
            return Ok(None);
        };
        let damaged = || {
            let what = format!(
                "cannot use the checkpoint {}: it is damaged",
                path.display()
            );
            Error::new(Kind::Corrupt, what).with_remedy(Remedy::Restart)
        };
        let Some(version) = version_of(&bytes) else {
            return Err(damaged());
        };
        if version != VERSION {
            let path = path.display();
            warn!(
                "the checkpoint {path} is of version {version}, not {VERSION}: its progress is dropped"
            );
            return Ok(None);
        }
        let (header, plan, done, marked) = decode(&bytes).ok_or_else(damaged)?;
        let mut found = None;
        for path in digests {
            let is_its = |digests: &Digests| digests.run() == header.task.run;
            found = found.or(Digests::open(path)?.filter(is_its));
        }
        if found.is_none() && !header.without_digests {
            let path = path.display();
            warn!("the digests of the checkpoint {path} are missing: its progress is dropped");
            return Ok(None);
        }
        Ok(Some(Self {
            path: path.to_owned(),
            task: header.task,
            plan: Arc::new(plan),
            done,
            damaged: marked,
            state: header.state,
            digests: found.filter(|_| !header.without_digests),
            began_as_base: header.began_as_base,
            needs_digests: false,
            given_up: None,
        }))
    }

    /// What is copied where.
    pub(super) fn task(&self) -> &Task {
        &self.task
    }

    /// The whole plan, done or not.
    pub(super) fn plan(&self) -> &Arc<Delta> {
        &self.plan
    }

    /// What the sink needs to resume, as of its last flush; none before the target was named.
    pub(super) fn state(&self) -> Option<&SinkState> {
        self.state.as_ref()
    }

    /// Blocks that are left zero because their source is damaged.
    pub(super) fn damaged(&self) -> &BlockSet {
        &self.damaged
    }

    /// Blocks of the plan that are not done.
    pub(super) fn missing(&self) -> BlockSet {
        let mut all = self.plan.write().clone();
        all.insert_all(self.plan.zero());
        all.without(&self.done)
    }

    /// Every block is what the digests of the base say: nothing foreign is in the plan.
    pub(super) fn begins_as_base(&mut self) {
        self.began_as_base = true;
    }

    /// Whether every block was what the digests of the base say when the run began.
    pub(super) fn began_as_base(&self) -> bool {
        self.began_as_base
    }

    /// The blocks of the plan that are done.
    pub(super) fn done_blocks(&self) -> &BlockSet {
        &self.done
    }

    /// How many blocks of the plan are done.
    pub(super) fn done(&self) -> u64 {
        self.done.len()
    }

    /// The first block at or after `from` that is to be written and is not.
    pub(super) fn next_write(&self, from: BlockIndex) -> Option<BlockIndex> {
        next_missing(self.plan.write(), &self.done, from)
    }

    /// The first run at or after `from`, of at most `most` blocks, that is to be zeroed and is not.
    pub(super) fn next_zero(&self, from: BlockIndex, most: u32) -> Option<Extent> {
        let zero = self.plan.zero();
        let start = next_missing(zero, &self.done, from)?;
        let end = zero
            .next_out(start)
            .min(BlockIndex(start.0.saturating_add(most)));
        let stop = self.done.next_in(start).map_or(end, |done| done.min(end));
        Extent::new(start, stop)
    }

    /// The digests of the run; none where there was no room for them. They are written before a saved checkpoint names their
    /// blocks.
    pub(super) fn digests(&self) -> Option<Digests> {
        self.digests.clone()
    }

    /// What was written, when all is done; none without digests.
    pub(super) fn written(&self) -> Option<Written> {
        let digests = self.digests.as_ref()?;
        Some(Box::new(digests.of_plan(Arc::clone(&self.plan))))
    }

    /// The copy is of no use without its digests: no room for them is an error.
    pub(super) fn need_digests(&mut self) {
        self.needs_digests = true;
    }

    /// Gives up the digests if `error` says that there is no room: the run continues without evidence. The next save removes
    /// their file, so that the checkpoint and the record have room.
    ///
    /// # Errors
    /// `error` where it is another one, there are no digests, or the copy needs them.
    pub(super) fn give_up_digests(&mut self, error: Error) -> Result<()> {
        if error.kind() != Kind::NoSpace || self.needs_digests {
            return Err(error);
        }
        let Some(digests) = self.digests.take() else {
            return Err(error);
        };
        self.given_up = Some(digests.path().to_owned());
        warn!(
            "{}: {WITHOUT_DIGESTS}: {}",
            self.task.target_name,
            error.chain()
        );
        Ok(())
    }

    /// Marks blocks as done. Their data and digests must be flushed.
    pub(super) fn mark(&mut self, blocks: impl IntoIterator<Item = Extent>, state: SinkState) {
        for extent in blocks {
            self.done.insert_extent(extent);
        }
        self.state = Some(state);
    }

    /// Keeps what the sink needs.
    pub(super) fn set_state(&mut self, state: SinkState) {
        self.state = Some(state);
    }

    /// Lists a block as left zero; it is done like any other.
    pub(super) fn mark_damaged(&mut self, index: BlockIndex) {
        self.damaged.insert(index);
    }

    /// Plans to write these blocks again, even those that are done.
    pub(super) fn write_again(&mut self, blocks: &BlockSet) {
        self.done = self.done.without(blocks);
        Arc::make_mut(&mut self.plan).write_too(blocks);
    }

    /// Writes state files. Gives up the digests and tries again if there is no room.
    ///
    /// # Errors
    /// As for [`Checkpoint::give_up_digests`]; what `write` returns then.
    pub(super) fn make_room(&mut self, write: impl Fn(&Self) -> Result<()>) -> Result<()> {
        write(self).or_else(|error| {
            self.give_up_digests(error)?;
            self.encode().write()?;
            write(self)
        })
    }

    /// The checkpoint of a run that takes over from this one. A block stays done if it was written undamaged, `changed`
    /// does not name it, and `plan` writes it. `digests` are a clone of this one's, if there are any.
    pub(super) fn taken_over(
        &self,
        task: Task,
        plan: Arc<Delta>,
        changed: &Delta,
        digests: Option<Digests>,
    ) -> Self {
        let mut stale = changed.write().clone();
        stale.insert_all(changed.zero());
        stale.insert_all(&self.damaged);
        let written = |set: &BlockSet, within: &BlockSet| set.without(&set.without(within));
        let done = written(&self.done.without(&stale), self.plan.write());
        Self {
            path: self.path.clone(),
            task,
            done: written(&done, plan.write()),
            plan,
            damaged: BlockSet::new(),
            state: self.state.clone(),
            digests,
            began_as_base: false,
            needs_digests: false,
            given_up: None,
        }
    }

    /// In a full copy, plans to zero all blocks that it does not write: on this target an absent block does not read as zeroes.
    pub(super) fn zero_the_rest(&mut self) {
        Arc::make_mut(&mut self.plan).zero_what_grew();
    }

    /// Encodes the checkpoint, so that a blocking thread can write it.
    pub(super) fn encode(&self) -> Saved {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let header = CheckpointHeader {
            task: self.task.clone(),
            state: self.state.clone(),
            without_digests: self.digests.is_none(),
            began_as_base: self.began_as_base,
        };
        // Nothing in it can fail to serialise.
        let json = serde_json::to_vec(&header).unwrap_or_default();
        bytes.extend_from_slice(&u32::try_from(json.len()).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&json);
        self.plan.encode(&mut bytes);
        self.done.encode(&mut bytes);
        self.damaged.encode(&mut bytes);
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        Saved {
            path: self.path.clone(),
            bytes,
            given_up: self.given_up.clone(),
        }
    }

    /// Removes a checkpoint and the digests of its run, if there are any: there is nothing to resume.
    ///
    /// # Errors
    /// `Io` when they cannot be removed.
    pub(super) fn discard(path: &Path, digests: &Path) -> Result<()> {
        // In this order: digests without a checkpoint are harmless, a checkpoint without its digests would be wrong.
        remove_if_there(path)?;
        // The folder of a stage is made with its first file.
        if let Err(error) = sync_folder(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(Error::of_file(path, "cannot flush the folder of", error));
        }
        Digests::remove(digests)
    }
}

/// A checkpoint to be written.
#[derive(Debug)]
pub(super) struct Saved {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Digests to remove.
    given_up: Option<PathBuf>,
}

impl Saved {
    /// Replaces what is there, whole or not at all.
    ///
    /// # Errors
    /// `Io` or `NoSpace`: then the old one remains.
    pub(super) fn write(&self) -> Result<()> {
        let saved = replace(&self.path, &self.bytes);
        let Some(given_up) = &self.given_up else {
            return saved;
        };
        match saved {
            // A kill between these two costs the progress: a checkpoint whose digests are missing is dropped.
            Err(error) if error.kind() == Kind::NoSpace => {
                Digests::remove(given_up)?;
                replace(&self.path, &self.bytes)
            }
            saved => saved.and_then(|()| Digests::remove(given_up)),
        }
    }
}

/// The version that a file of this magic says it has.
fn version_of(bytes: &[u8]) -> Option<u32> {
    let (version, _) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
    Some(u32::from_le_bytes(*version))
}

fn decode(bytes: &[u8]) -> Option<(CheckpointHeader, Delta, BlockSet, BlockSet)> {
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
    let damaged = BlockSet::decode(&mut rest)?;
    rest.is_empty().then_some((header, plan, done, damaged))
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
mod tests;
