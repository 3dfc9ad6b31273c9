//! Outcomes and decisions in words.

use std::io::Write as _;

use serde_json::{Value, json};

use crate::cli::remedy;
use crate::error::{Error, Kind, Result};
use crate::sync::{Decision, Ended, REPORT_VERSION, TargetOutcome};
use crate::target::TargetKind;

/// What is done for a target.
pub(super) fn decision(decision: &Decision, kind: TargetKind) -> &'static str {
    use TargetKind::{Device, Ebs, Image, ImageInPlace, Repository};
    match (decision, kind) {
        (Decision::Holds, _) => "holds it already",
        (Decision::Compare, _) => "compare with its digests, then decide",
        (Decision::Refuse { .. }, _) => "refused",
        (Decision::Resume, Image) => "an image, resumed",
        (Decision::Resume, ImageInPlace) => "an image changed in place, resumed",
        (Decision::Resume, Device) => "a device, resumed",
        (Decision::Resume, Ebs) => "a new EBS snapshot, resumed",
        (Decision::Resume, Repository) => "a snapshot in a repository, resumed",
        (Decision::TakeOverPart(_), _) => "an image, taken over from an unfinished run",
        (Decision::TakeOver(_), Device) => "a device, taken over from an unfinished run",
        (Decision::TakeOver(_), Image) => "a new image, taken over from an unfinished run",
        (Decision::TakeOver(_), _) => {
            "an image changed in place, taken over from an unfinished run"
        }
        (Decision::Full, Image) => "a new image",
        (Decision::Delta(_), Image) => "an image, replaced by a changed copy",
        (_, ImageInPlace) => "an image changed in place",
        (_, Device) => "a device",
        (_, Ebs) => "a new EBS snapshot",
        (_, Repository) => "a snapshot in a repository",
    }
}

/// The closing record of a target.
pub(super) fn json(outcome: &TargetOutcome) -> Value {
    let mut record = json!({"version": REPORT_VERSION, "target": outcome.target});
    let more = match &outcome.ended {
        Ok(Ended::Planned) => json!({"status": "planned"}),
        Ok(Ended::Held {
            verified,
            image_sha256,
            snapshot,
        }) => json!({
            "status": "already",
            "verified": verified,
            "image_sha256": image_sha256,
            "snapshot": snapshot,
        }),
        Ok(Ended::Copied(report)) => {
            let mut value = serde_json::to_value(report).unwrap_or_default();
            if let Some(members) = value.as_object_mut() {
                members.insert("status".into(), "done".into());
            }
            value
        }
        Err(error) => json!({
            "status": "failed",
            "error": remedy::in_words(error),
            "exit_code": error.kind().exit_code(),
        }),
    };
    if let (Some(record), Some(more)) = (record.as_object_mut(), more.as_object()) {
        record.extend(more.clone());
    }
    record
}

/// The error that gives the exit code; the others are printed. Marked damage counts as one.
pub(super) fn result(outcomes: &[TargetOutcome]) -> Result<()> {
    let is_one = outcomes.len() == 1;
    let mut errors: Vec<Error> = Vec::new();
    for outcome in outcomes {
        let error = match &outcome.ended {
            Err(error) => Some(error.clone()),
            Ok(Ended::Copied(report)) if !report.damaged.is_empty() => {
                let blocks: u64 = report
                    .damaged
                    .iter()
                    .map(|(first, end)| u64::from(end.saturating_sub(*first)))
                    .sum();
                let what = format!(
                    "{blocks} damaged blocks were left zero: the next run tries them again"
                );
                Some(Error::new(Kind::Marked, what))
            }
            Ok(_) => None,
        };
        errors.extend(error.map(|error| match is_one {
            true => error,
            false => error.context(outcome.target.clone()),
        }));
    }
    // The first of the lowest rank: a stable sort.
    errors.sort_by_key(|error| error.kind().rank());
    let mut errors = errors.into_iter();
    let first = errors.next();
    for error in errors {
        let _ = writeln!(std::io::stderr(), "ebsfs: {}", remedy::in_words(&error));
    }
    first.map_or(Ok(()), Err)
}
