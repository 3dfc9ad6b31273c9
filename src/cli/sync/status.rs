//! `ebsfs sync --status TARGET`: what a target holds and how far it is.

use std::path::Path;

use super::remote::snapshot_of;
use super::repository::bringing_of;
use super::target::Place;
use crate::cli::output;
use crate::error::{Error, Kind, Result};
use crate::repository::Address;
use crate::sync::{Checkpoint, Content};

/// Prints it; nothing is changed, nothing asked of AWS.
pub(super) fn tell(target: &str, state_dir: &Path, in_place: bool) -> Result<()> {
    let lines = if target.starts_with("ebs:") {
        unfinished(state_dir, "snapshot")?
    } else if Address::looks_like(target) {
        let address = format!("{}, ", target.parse::<Address>()?);
        let mut lines = unfinished(state_dir, "repository")?;
        lines.retain(|line| line.starts_with(&address) || !line.contains(", begun: "));
        lines
    } else {
        let place = Place::of(target.as_ref(), state_dir, in_place)?;
        let begun = place.checkpoint()?.map(|begun| in_words(&begun));
        let holds = told(target, &place)?;
        std::iter::once(holds).chain(begun).collect()
    };
    output::write(None, |out| {
        lines.iter().try_for_each(|line| writeln!(out, "{line}"))
    })
}

fn told(target: &str, place: &Place) -> Result<String> {
    Ok(match place.record().content()? {
        Content::Holds(source) => format!("holds {source}"),
        Content::Held(source) => format!(
            "held {source} when it was written; the machine was started since, and nothing can tell whether it was \
             written: --base {source} takes it as it was, --base auto copies it all"
        ),
        Content::Unknown => "unknown".to_owned(),
        Content::Between { base, head } => format!(
            "between {} and {head}: not usable; go on with: ebsfs sync {head} {target} --base auto{}",
            base.as_deref().unwrap_or("something unknown"),
            place.in_place_option()
        ),
    })
}

/// The snapshots that are not finished, in accounts or in repositories.
fn unfinished(state_dir: &Path, kind: &str) -> Result<Vec<String>> {
    let failed = |error| Error::of_file(state_dir, "cannot read", error);
    let folders = match std::fs::read_dir(state_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        folders => folders.map_err(failed)?,
    };
    let mut lines = Vec::new();
    for folder in folders {
        let path = folder.map_err(failed)?.path();
        match Checkpoint::load(&path.join(format!("{kind}.ebsfs-checkpoint"))) {
            Ok(None) => {}
            Ok(Some(begun)) => {
                let target = &begun.task().target;
                let told = match bringing_of(begun.state()) {
                    Some(bringing) => bringing.address,
                    None => {
                        let snapshot = snapshot_of(begun.state());
                        let snapshot = snapshot.map(|id| id.to_string());
                        let snapshot = snapshot.as_deref().unwrap_or("not started");
                        format!("{target}: {snapshot}")
                    }
                };
                lines.push(format!("{told}, {}", in_words(&begun)));
            }
            Err(error) if error.kind() == Kind::Corrupt => lines.push(error.chain()),
            Err(error) => return Err(error),
        }
    }
    Ok(lines)
}

fn in_words(begun: &Checkpoint) -> String {
    let plan = begun.plan();
    format!(
        "begun: {}, {} of {} blocks",
        begun.task().source,
        begun.done(),
        plan.write().len() + plan.zero().len()
    )
}
