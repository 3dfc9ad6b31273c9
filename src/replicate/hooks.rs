//! The commands of a job around a cycle. Each reads a JSON object: the report of the cycle so far.

use super::job::JobHooks;
use super::report::CycleReport;
use crate::capture::CommandCall;
use crate::error::{Error, Kind, Result};
use crate::target::Stop;

/// When a command is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HookTime {
    Before,
    After,
    OnFailure,
}

impl HookTime {
    fn word(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
            Self::OnFailure => "on_failure",
        }
    }

    fn command(self, hooks: &JobHooks) -> Option<&str> {
        match self {
            Self::Before => hooks.before.as_deref(),
            Self::After => hooks.after.as_deref(),
            Self::OnFailure => hooks.on_failure.as_deref(),
        }
    }
}

/// Runs a command of a job, if there is one.
///
/// # Errors
/// `Io` when it cannot be started, does not end with 0, or is ended because it takes too long.
pub(super) async fn run(
    hooks: &JobHooks,
    time: HookTime,
    job: &str,
    report: &CycleReport,
    stop: &Stop,
) -> Result<()> {
    let Some(command) = time.command(hooks) else {
        return Ok(());
    };
    let word = time.word();
    let mut input = report.to_json(job);
    if let Some(members) = input.as_object_mut() {
        members.insert("when".into(), word.into());
    }
    let call = CommandCall {
        when: word,
        what: format!("the command {word} of the job {job}"),
        command,
        environment: vec![
            ("EBSFS_JOB", job.to_owned()),
            ("EBSFS_CYCLE", report.cycle.clone()),
            ("EBSFS_SHARD", report.shard.to_string()),
        ],
        input: format!("{input}\n").into_bytes(),
        timeout: hooks.timeout,
    };
    let ended = call.run(stop).await?;
    stop.check()?;
    match ended.fault() {
        None => Ok(()),
        Some(why) => {
            let what = format!("the command {word} of the job {job} {why}");
            Err(Error::new(Kind::Io, what))
        }
    }
}
