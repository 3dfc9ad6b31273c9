//! The result of a cycle in words. Remedies are worded as keys of the job, which has no options.

use crate::cli::{log, output, remedy};
use crate::error::{Error, Remedy, Result};
use crate::replicate::CycleReport;

/// What a person can do about an error, if it has a remedy.
fn advice(remedy: &Remedy) -> String {
    match remedy {
        Remedy::Overwrite(token) => {
            format!("overwrite = [{token:?}] in the job allows to overwrite it")
        }
        Remedy::AllowPlaintext => "use kms_key (ebs:) or allow_plaintext = true in the job".into(),
        Remedy::AdoptCycle(_) => "the next run adopts what was made".into(),
        Remedy::TryLater => "the next cycle tries again".into(),
        Remedy::DiscardForeignWrites | Remedy::Restart | Remedy::Trust(_) | Remedy::CopyAll => {
            let option = remedy::in_words(
                &Error::new(crate::error::Kind::Invalid, "").with_remedy(remedy.clone()),
            );
            format!("an `ebsfs sync` of the snapshot to this target settles it{option}")
        }
        other => remedy::in_words(
            &Error::new(crate::error::Kind::Invalid, "").with_remedy(other.clone()),
        )
        .trim_start_matches(": ")
        .to_owned(),
    }
}

/// An error and what can be done about it, on one line.
pub(super) fn in_words(error: &Error) -> String {
    match error.remedy() {
        Some(remedy) => format!("{}: {}", error.chain(), advice(remedy)),
        None => error.chain(),
    }
}

/// Prints the result of a cycle: a line for each target that holds its snapshot, or one JSON object. Returns the failure that gives the
/// exit code; the others are printed to stderr.
pub(super) fn print(job: &str, report: &CycleReport, is_json: bool) -> Result<()> {
    let text = match is_json {
        true => format!("{:#}\n", report.to_json(job)),
        false => lines(report),
    };
    output::write(None, |out| out.write_all(text.as_bytes()))?;
    let Some(first) = report.failure() else {
        return Ok(());
    };
    for other in report
        .failures()
        .filter(|other| !std::ptr::eq(*other, first))
    {
        log::say_error(&format!("ebsfs: {}", in_words(other)));
    }
    let error = Error::clone(first);
    Err(match error.remedy() {
        Some(remedy) => {
            let advice = advice(remedy);
            error.with_remedy(Remedy::Do(advice))
        }
        None => error,
    })
}

/// `VOLUME SNAPSHOT TARGET` for each target that holds its snapshot.
fn lines(report: &CycleReport) -> String {
    let mut text = String::new();
    for volume in &report.volumes {
        for copy in volume.targets.iter().filter(|copy| copy.held.is_ok()) {
            let (id, snapshot, name) = (&volume.volume, &volume.snapshot, &copy.target.name);
            text.push_str(&format!("{id} {snapshot} {name}\n"));
        }
    }
    text
}
