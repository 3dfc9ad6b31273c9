//! Which snapshots of the source a target needs: those that a next run may start from. Everything that deletes snapshots asks
//! this first.

use std::collections::BTreeSet;

use super::checkpoint::Checkpoint;
use super::files::StateFiles;
use super::record;
use crate::error::Result;
use crate::target::{Base, Content, ObserveRequest, SourceInfo, Target};

/// The names of the snapshots that a target holds, and of those that its unfinished run comes from and leads to. It changes nothing.
///
/// # Errors
/// Why the target could not be asked: then it may need any snapshot.
pub(crate) async fn needed_bases(
    target: &dyn Target,
    source: &SourceInfo,
) -> Result<BTreeSet<String>> {
    let files = StateFiles::of(&target.state().stem);
    let checkpoint = Checkpoint::load(&files.checkpoint(), &files.next_digests())?;
    let mut needed = BTreeSet::new();
    if let Some(checkpoint) = &checkpoint {
        let task = checkpoint.task();
        needed.insert(task.source.clone());
        needed.extend(task.base.clone());
    }
    let mark = target.mark()?;
    let record = record::load(&files.record(), mark.as_ref())?;
    let record = record.filter(|record| record.target == target.id());
    match record.as_ref().map(|record| &record.content) {
        Some(Content::Holds(held)) => {
            needed.insert(held.clone());
        }
        Some(Content::Between { base, head }) => {
            needed.insert(head.clone());
            needed.extend(base.clone());
        }
        None => {}
    }
    if target.kind().is_new() {
        let replica = record.as_ref().and_then(|record| record.replica.as_deref());
        let ask = ObserveRequest {
            source,
            base: &Base::Auto,
            left: checkpoint.as_ref().and_then(Checkpoint::state),
            replica,
        };
        let facts = target.observe(&ask).await?;
        if facts.holds.is_some() {
            needed.insert(source.name.clone());
        }
        let replicas = facts.replicas.into_iter();
        needed.extend(replicas.map(|replica| replica.source.to_string()));
    }
    Ok(needed)
}
