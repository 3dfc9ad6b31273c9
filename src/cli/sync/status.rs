//! `ebsfs sync --status TARGET`: what a target holds and which runs are unfinished.

use std::path::Path;

use serde_json::json;

use crate::cli::output;
use crate::cli::target::local_target;
use crate::error::Result;
use crate::repository::Address;
use crate::sync::{self, Status, Unfinished};
use crate::target::Content;

/// Prints the status of a target. It changes nothing and makes no call to AWS.
pub(super) fn print(target: &str, state_dir: &Path, in_place: bool, as_json: bool) -> Result<()> {
    let (status, unfinished) = if target.starts_with("ebs:") || Address::looks_like(target) {
        (None, sync::unfinished(state_dir, target)?)
    } else {
        let status = sync::status(&*local_target(target, in_place, false, state_dir)?)?;
        let unfinished = status.unfinished.clone().into_iter().collect();
        (Some(status), unfinished)
    };
    output::write(None, |out| {
        if as_json {
            let value = json!({
                "version": sync::REPORT_VERSION,
                "target": target,
                "status": status,
                "unfinished": unfinished,
            });
            return writeln!(out, "{value}");
        }
        if let Some(status) = &status {
            writeln!(out, "{}", in_words(status))?;
        }
        for run in &unfinished {
            writeln!(out, "{}", unfinished_in_words(run, status.is_none()))?;
        }
        if status.is_none() && unfinished.is_empty() {
            writeln!(out, "no unfinished run on this machine")?;
        }
        Ok(())
    })
}

fn in_words(status: &Status) -> String {
    let since = status.time.map(crate::time::rfc3339_seconds);
    match &status.content {
        None => "unknown".to_owned(),
        Some(Content::Holds(source)) if status.is_proven => format!("holds {source}"),
        Some(Content::Holds(source)) => {
            let next = match status.has_digests {
                true => "the next run compares it with its digests",
                false => "there are no digests to compare it with",
            };
            format!("held {source} when it was recorded; its mark has changed since: {next}")
        }
        Some(Content::Between { base, head }) => {
            let base = base.as_deref().unwrap_or("something unknown");
            let since = match since {
                Some(time) => format!("no usable recovery point since {time}"),
                None => "no usable recovery point".to_owned(),
            };
            format!(
                "between {base} and {head}: not usable; {since}; --base auto updates it to any snapshot"
            )
        }
    }
}

fn unfinished_in_words(run: &Unfinished, with_target: bool) -> String {
    let target = match with_target {
        true => format!("{}, ", run.target),
        false => String::new(),
    };
    let snapshot = match &run.snapshot {
        Some(snapshot) => format!(", snapshot {snapshot}"),
        None => String::new(),
    };
    format!(
        "{target}unfinished: {}, {} of {} blocks{snapshot}",
        run.source, run.done, run.blocks
    )
}
