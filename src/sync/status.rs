//! What is recorded of targets, for people and for other jobs.

use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use super::checkpoint::Checkpoint;
use super::digests::Digests;
use super::files::StateFiles;
use super::record;
use crate::error::{Error, Kind, Result};
use crate::target::{Content, SinkState, Target};

/// What is recorded of a target of this machine.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Status {
    /// What it holds by its record; none without one.
    pub(crate) content: Option<Content>,
    /// Whether its mark proves that nothing has written it since.
    pub(crate) is_proven: bool,
    /// Whether there are digests of all its blocks to compare it with.
    pub(crate) has_digests: bool,
    /// When its content was taken; of a target between two snapshots when its last usable content was.
    #[serde(serialize_with = "rfc3339")]
    pub(crate) time: Option<SystemTime>,
    /// Runs of blocks (first, end) that are zero because their source is damaged.
    pub(crate) damaged: Vec<(u32, u32)>,
    /// How many more are zero because they are so in the source. No list says which.
    pub(crate) damaged_in_source: u64,
    /// The run that is not finished.
    pub(crate) unfinished: Option<Unfinished>,
}

/// A run that is not finished.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Unfinished {
    /// The target as a person writes it.
    pub(crate) target: String,
    /// What is copied to it.
    pub(crate) source: String,
    /// The snapshot that is being made, where the target keeps several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot: Option<String>,
    /// Blocks that are done.
    pub(crate) done: u64,
    /// Blocks of the plan.
    pub(crate) blocks: u64,
}

fn rfc3339<S: serde::Serializer>(
    time: &Option<SystemTime>,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    time.map(crate::time::rfc3339_millis).serialize(to)
}

/// Reads what is recorded of a target. It changes nothing and makes no call outside this machine.
///
/// # Errors
/// The system's error; `Corrupt` when its checkpoint is damaged.
pub(crate) fn status(target: &dyn Target) -> Result<Status> {
    let files = StateFiles::of(&target.state().stem);
    let mark = target.mark()?;
    let record = record::load(&files.record(), mark.as_ref())?;
    let record = record.filter(|record| record.target == target.id());
    let digests = match &record {
        Some(record) => Digests::open(&files.digests())?
            .is_some_and(|digests| digests.run() == record.run && digests.is_whole()),
        None => false,
    };
    Ok(Status {
        is_proven: record
            .as_ref()
            .is_some_and(|record| record.mark.is_some() && record.mark == mark),
        has_digests: digests,
        time: record.as_ref().and_then(|record| record.time),
        damaged: record
            .as_ref()
            .map(|record| record.damaged.clone())
            .unwrap_or_default(),
        damaged_in_source: record.as_ref().map_or(0, |record| record.damaged_in_source),
        content: record.map(|record| record.content),
        unfinished: unfinished_of(&files)?,
    })
}

/// What a target holds by its record; none without one. The record names what is half written before its first change, and says so
/// until it is whole. The target itself is not looked at.
///
/// # Errors
/// The system's error.
pub(crate) fn recorded(target: &dyn Target) -> Result<Option<Content>> {
    let files = StateFiles::of(&target.state().stem);
    let record = record::load(&files.record(), None)?;
    let record = record.filter(|record| record.target == target.id());
    Ok(record.map(|record| record.content))
}

fn unfinished_of(files: &StateFiles) -> Result<Option<Unfinished>> {
    let found = Checkpoint::load(&files.checkpoint(), &files.next_digests())?;
    Ok(found.map(|found| Unfinished {
        target: found.task().target_name.clone(),
        source: found.task().source.clone(),
        snapshot: found.state().and_then(SinkState::object).map(str::to_owned),
        done: found.done(),
        blocks: found.plan().write().len() + found.plan().zero().len(),
    }))
}

/// The unfinished runs in a state directory of `ebs:` and repository targets whose name begins with `target`.
///
/// # Errors
/// The system's error.
pub(crate) fn unfinished(state_dir: &Path, target: &str) -> Result<Vec<Unfinished>> {
    let failed = |error| Error::of_file(state_dir, "cannot read", error);
    let entries = match std::fs::read_dir(state_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.to_string_lossy();
        let Some(stem) = name.strip_suffix(".ebsfs-checkpoint") else {
            continue;
        };
        match unfinished_of(&StateFiles::of(Path::new(stem))) {
            Ok(run) => found.extend(run.filter(|run| run.target.starts_with(target))),
            Err(error) if error.kind() == Kind::Corrupt => tracing::warn!("{}", error.chain()),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
