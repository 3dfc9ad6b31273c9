//! The commands before and after the calls: they hold the writes of a database or a filesystem while its snapshots are made.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};
use tracing::info;

use crate::error::{Error, Kind, Result};
use crate::target::Stop;

/// How long a command that must end has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// Command lines for `sh`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Commands {
    /// Before the calls that make snapshots. They are made only if it ends with 0.
    pub(crate) before: Option<String>,
    /// After them, whenever the one before was started: also if it failed, if the calls did, and if the run is stopped.
    pub(crate) after: Option<String>,
    /// How long each may take.
    pub(crate) timeout: Duration,
}

/// What a command can read in its environment: `EBSFS_CYCLE`, `EBSFS_VOLUMES`, `EBSFS_SNAPSHOTS`.
#[derive(Clone, Debug)]
pub(super) struct HookContext {
    pub(super) cycle: String,
    pub(super) volumes: Vec<String>,
    /// The snapshots that were made, for the command after.
    pub(super) snapshots: Vec<String>,
}

/// One run of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandRun {
    /// When it was run: `before`, `after` and the like.
    pub(crate) when: &'static str,
    /// Its exit code, unless a signal ended it.
    pub(crate) exit_code: Option<i32>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// How long it took.
    pub(crate) took: Duration,
    /// Whether ebsfs ended it after [`Commands::timeout`].
    pub(crate) is_late: bool,
}

impl CommandRun {
    /// How it failed, in words that follow "it"; none if it ended with 0 in time.
    pub(crate) fn fault(&self) -> Option<String> {
        match (self.exit_code, self.signal) {
            (Some(0), _) if !self.is_late => None,
            _ if self.is_late => Some(format!("was ended after {:.1?}", self.took)),
            (Some(code), _) => Some(format!("ended with exit code {code}")),
            (None, signal) => Some(format!(
                "was ended by signal {}",
                signal.unwrap_or_default()
            )),
        }
    }

    /// Why it counts as failed.
    pub(super) fn failure(&self) -> Option<Error> {
        let why = self.fault()?;
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
    pub(super) async fn before(
        &self,
        moment: &HookContext,
        stop: &Stop,
    ) -> Result<Option<CommandRun>> {
        match &self.before {
            Some(command) => self.run("before", command, moment, stop).await.map(Some),
            None => Ok(None),
        }
    }

    /// Runs the command after, if there is one. A stop does not end it.
    ///
    /// # Errors
    /// `Io` when it cannot be started.
    pub(super) async fn after(&self, moment: &HookContext) -> Result<Option<CommandRun>> {
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
        moment: &HookContext,
        stop: &Stop,
    ) -> Result<CommandRun> {
        let call = CommandCall {
            when,
            what: format!("the command {when} the snapshots"),
            command,
            environment: vec![
                ("EBSFS_CYCLE", moment.cycle.clone()),
                ("EBSFS_VOLUMES", moment.volumes.join(" ")),
                ("EBSFS_SNAPSHOTS", moment.snapshots.join(" ")),
            ],
            input: Vec::new(),
            timeout: self.timeout,
        };
        call.run(stop).await
    }
}

/// A command line for `sh`, and what it can read.
#[derive(Debug)]
pub(crate) struct CommandCall<'a> {
    /// When it is run: a word.
    pub(crate) when: &'static str,
    /// What it is, for people.
    pub(crate) what: String,
    pub(crate) command: &'a str,
    pub(crate) environment: Vec<(&'static str, String)>,
    /// What it reads from its standard input.
    pub(crate) input: Vec<u8>,
    /// How long it may take.
    pub(crate) timeout: Duration,
}

impl CommandCall<'_> {
    /// Runs the command to its end. A stop ends it.
    ///
    /// # Errors
    /// `Io` when it cannot be started.
    pub(crate) async fn run(self, stop: &Stop) -> Result<CommandRun> {
        let failed =
            |error| Error::with_source(Kind::Io, format!("cannot run {}", self.what), error);
        let began = Instant::now();
        let mut child = self.start().map_err(failed)?;
        let input = child.stdin.take();
        let written = async {
            if let Some(mut input) = input {
                // A command need not read it.
                let _ = input.write_all(&self.input).await;
            }
        };
        let waited = async {
            // Side by side: a command can end before it has read all.
            let (ended, ()) = tokio::join!(child.wait(), written);
            ended
        };
        let mut is_late = false;
        let ended = tokio::select! {
            ended = timeout(self.timeout, waited) => ended.ok(),
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
            when: self.when,
            exit_code: status.code(),
            signal: status.signal(),
            took: began.elapsed(),
            is_late,
        };
        info!("{} ended after {:.1?}: {status}", self.what, run.took);
        Ok(run)
    }

    /// Starts the command in a process group of its own, which Ctrl-C on the terminal does not reach. Its output goes to stderr:
    /// stdout is for results.
    fn start(&self) -> io::Result<Child> {
        let printed = io::stderr().as_fd().try_clone_to_owned()?;
        let input = match self.input.is_empty() {
            true => Stdio::null(),
            false => Stdio::piped(),
        };
        Command::new("sh")
            .args(["-c", self.command])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(input)
            .stdout(printed)
            .process_group(0)
            .spawn()
    }
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
        // Its children must not outlive it: the command after the calls reverts their work.
        send(Signal::SIGKILL);
        return status;
    }
    send(Signal::SIGKILL);
    child.wait().await
}
