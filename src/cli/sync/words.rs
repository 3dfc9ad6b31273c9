//! Outcomes and decisions in words.

use serde_json::{Value, json};

use crate::cli::remedy;
use crate::error::{Error, Kind, Remedy, Result};
use crate::repository::Address;
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
pub(in crate::cli) fn json(outcome: &TargetOutcome) -> Value {
    let mut record = json!({"version": REPORT_VERSION, "target": outcome.target});
    let more = match &outcome.ended {
        Ok(Ended::Planned) => json!({"status": "planned"}),
        Ok(Ended::Held {
            verified,
            damaged,
            damaged_in_source,
            image_sha256,
            snapshot,
        }) => json!({
            "status": "already",
            "verified": verified,
            "damaged_blocks": damaged,
            "damaged_in_source": damaged_in_source,
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

/// What a person must know of a copy that is done and not whole.
fn marked(target: &str, ended: &Ended) -> Option<Error> {
    let is_repository = Address::looks_like(target);
    let (left_zero, held, in_source, snapshot) = match ended {
        Ended::Planned => return None,
        Ended::Held {
            damaged,
            damaged_in_source,
            snapshot,
            ..
        } => (0, *damaged, *damaged_in_source, snapshot.as_deref()),
        Ended::Copied(report) => {
            let damaged = report.damaged.iter();
            let damaged = damaged.map(|(first, end)| u64::from(end.saturating_sub(*first)));
            let snapshot = report.snapshot.as_deref();
            (damaged.sum(), 0, report.damaged_in_source, snapshot)
        }
    };
    let snapshot = snapshot.unwrap_or(target);
    let remove = Remedy::Do(format!(
        "after `ebsfs repository rm '{snapshot}'` a new run copies it again"
    ));
    let marked = |what: String| Error::new(Kind::Marked, what);
    if left_zero > 0 {
        let error = marked(format!("{left_zero} damaged blocks were left zero"));
        let next = Remedy::Do("the next run tries them again".into());
        return Some(error.with_remedy(if is_repository { remove } else { next }));
    }
    if held > 0 {
        let error = marked(format!(
            "it holds the source already, but {held} of its blocks were damaged when it was copied, and are zero"
        ));
        let again = Remedy::Do("--restart copies it again".into());
        return Some(error.with_remedy(if is_repository { remove } else { again }));
    }
    (in_source > 0).then(|| {
        marked(format!(
            "{in_source} of its blocks are zero because the source of its source was damaged; no list says which"
        ))
    })
}

/// The error that gives the exit code; the others are printed. Marked damage counts as one.
pub(in crate::cli) fn result(outcomes: &[TargetOutcome]) -> Result<()> {
    let is_one = outcomes.len() == 1;
    let mut errors: Vec<Error> = Vec::new();
    for outcome in outcomes {
        let error = match &outcome.ended {
            Err(error) => Some(error.clone()),
            Ok(ended) => marked(&outcome.target, ended),
        };
        // Most messages name the target already.
        errors.extend(error.map(
            |error| match is_one || error.chain().contains(&outcome.target) {
                true => error,
                false => error.context(outcome.target.clone()),
            },
        ));
    }
    remedy::all_of(errors)
}
