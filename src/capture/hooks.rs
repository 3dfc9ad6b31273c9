//! The commands before and after the calls: they hold the writes of a database or a filesystem while its snapshots are made.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};
use tracing::info;

use crate::error::{Error, Kind, Result};
use crate::target::Stop;

/// How long a command that must end has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// Command lines for `sh`.
#[derive(Clone, Debug, Default)]
pub struct Commands {
    /// Before the calls that make snapshots. They are made only if it ends with 0.
    pub before: Option<String>,
    /// After them, whenever the one before was started: also if it failed, if the calls did, and if the run is stopped.
    pub after: Option<String>,
    /// How long each may take.
    pub timeout: Duration,
}

/// What a command can read in its environment: `EBSFS_CYCLE`, `EBSFS_VOLUMES`, `EBSFS_SNAPSHOTS`.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    pub(super) cycle: String,
    pub(super) volumes: Vec<String>,
    /// The snapshots that were made, for the command after.
    pub(super) snapshots: Vec<String>,
}

/// One run of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandRun {
    /// `before` or `after`.
    pub when: &'static str,
    /// Its exit code, unless a signal ended it.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// How long it took.
    pub took: Duration,
    /// Whether ebsfs ended it after [`Commands::timeout`].
    pub is_late: bool,
}

impl CommandRun {
    /// Why it counts as failed.
    pub(super) fn failure(&self) -> Option<Error> {
        let why = match (self.exit_code, self.signal) {
            (Some(0), _) if !self.is_late => return None,
            _ if self.is_late => format!("was ended after {:.1?}", self.took),
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
        };
        let what = match self.when {
            "before" => format!("cannot make snapshots: the command before them {why}"),
            _ => format!("cannot run the command after the snapshots: it {why}"),
        };
        Some(Error::new(Kind::Io, what))
    }
}

impl Commands {
    /// Whether there is a command.
    pub(super) fn are_any(&self) -> bool {
        self.before.is_some() || self.after.is_some()
    }

    /// Runs the command before, if there is one. A stop ends it.
    ///
    /// # Errors
    /// `Io` when it cannot be started.
    pub(super) async fn before(&self, moment: &Moment, stop: &Stop) -> Result<Option<CommandRun>> {
        match &self.before {
            Some(command) => self.run("before", command, moment, stop).await.map(Some),
            None => Ok(None),
        }
    }

    /// Runs the command after, if there is one. A stop does not end it.
    ///
    /// # Errors
    /// `Io` when it cannot be started.
    pub(super) async fn after(&self, moment: &Moment) -> Result<Option<CommandRun>> {
        match &self.after {
            Some(command) => self
                .run("after", command, moment, &Stop::never())
                .await
                .map(Some),
            None => Ok(None),
        }
    }

    async fn run(
        &self,
        when: &'static str,
        command: &str,
        moment: &Moment,
        stop: &Stop,
    ) -> Result<CommandRun> {
        let failed = |error| {
            let what = format!("cannot run the command {when} the snapshots");
            Error::with_source(Kind::Io, what, error)
        };
        let began = Instant::now();
        let mut child = start(command, moment).map_err(failed)?;
        let mut is_late = false;
        let ended = tokio::select! {
            ended = timeout(self.timeout, child.wait()) => ended.ok(),
            () = stop.stopped() => None,
        };
        let status = match ended {
            Some(status) => status,
            None => {
                is_late = !stop.is_stopped();
                end(&mut child).await
            }
        };
        let status: ExitStatus = status.map_err(failed)?;
        let run = CommandRun {
            when,
            exit_code: status.code(),
            signal: status.signal(),
            took: began.elapsed(),
            is_late,
        };
        info!(
            "the command {when} the snapshots ended after {:.1?}: {status}",
            run.took
        );
        Ok(run)
    }
}

/// Starts a command line in a process group of its own, which Ctrl-C on the terminal does not reach. Its output goes to stderr:
/// stdout is for results.
fn start(command: &str, moment: &Moment) -> io::Result<Child> {
    let printed = io::stderr().as_fd().try_clone_to_owned()?;
    Command::new("sh")
        .args(["-c", command])
        .env("EBSFS_CYCLE", &moment.cycle)
        .env("EBSFS_VOLUMES", moment.volumes.join(" "))
        .env("EBSFS_SNAPSHOTS", moment.snapshots.join(" "))
        .stdin(Stdio::null())
        .stdout(printed)
        .process_group(0)
        .spawn()
}

/// Ends a command and what it has started: SIGTERM, then SIGKILL.
async fn end(child: &mut Child) -> io::Result<ExitStatus> {
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    let send = |signal| {
        if let Some(group) = group {
            // It may have ended meanwhile.
            let _ = killpg(Pid::from_raw(group), signal);
        }
    };
    send(Signal::SIGTERM);
    if let Ok(status) = timeout(GRACE, child.wait()).await {
        // Its children must not outlive it: the command after undoes what it did.
        send(Signal::SIGKILL);
        return status;
    }
    send(Signal::SIGKILL);
    child.wait().await
}
