//! The drill of a recovery point of a job: a process `ebsfs drill` of its own. It needs a mount namespace that no thread of this process
//! is in, works for hours, and must not take a cycle with it when it fails.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{debug, warn};

use super::places::AwsPlaces;
use crate::cli::drill::ENDS_WITH_STDIN;
use crate::cli::status::local_content;
use crate::cli::{option_word, plain};
use crate::drill::DRILL_VERSION;
use crate::error::{Error, Kind, Result};
use crate::files::blocking;
use crate::replicate::{DrillBoot, DrillFindings, DrillRequest, DrillUnit, LocalContent};
use crate::target::{Content, Stop};

/// The largest report: a disk has at most some hundred partitions, each with 32 KiB of lines.
const LARGEST_REPORT: usize = 32 << 20;
/// The longest line of its log that is read.
const LONGEST_LINE: usize = 4096;
/// How long the process may give no sign of work. It ends silent programs of its own after 10 minutes.
const SILENCE: Duration = Duration::from_secs(30 * 60);
/// How often a sign of work is looked for.
const LOOK: Duration = Duration::from_secs(5);
/// How long it has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// How long its output is read after its end.
const REST: Duration = Duration::from_secs(2);

/// The report, as far as it is needed.
#[derive(Debug, Deserialize)]
struct ReportText {
    version: u32,
    disks: Vec<DiskText>,
    boot: Option<BootText>,
}

#[derive(Debug, Deserialize)]
struct DiskText {
    partitions: Vec<PartitionText>,
}

#[derive(Debug, Deserialize)]
struct PartitionText {
    result: String,
}

#[derive(Debug, Deserialize)]
struct BootText {
    booted: bool,
}

/// How the process ended.
#[derive(Debug)]
struct DrillEnd {
    status: ExitStatus,
    /// How long it gave no sign of work, if it was ended for that.
    silence: Option<Duration>,
    report: Vec<u8>,
    /// The last line of its log.
    last_line: String,
}

impl AwsPlaces {
    /// Drills a recovery point.
    pub(super) async fn drill_one(
        &self,
        request: &DrillRequest<'_>,
        stop: &Stop,
    ) -> Result<DrillFindings> {
        stop.check()?;
        let unit = request.unit;
        self.check_whole(unit).await?;
        let words = [self.words_of(request), drill_words(request)].concat();
        let limit = SILENCE.saturating_add(self.limits().timeout);
        let end = run(&words, &unit.source, limit, stop).await?;
        let found = findings(&unit.source, &end)?;
        // A copy by another program would make damage of nothing.
        self.check_whole(unit).await?;
        Ok(found)
    }

    /// Refuses an image or a device that does not hold the recovery point by its record.
    async fn check_whole(&self, unit: &DrillUnit) -> Result<()> {
        if unit.is_fixed {
            return Ok(());
        }
        let (name, state_dir) = (unit.target.name.clone(), self.state_dir().to_owned());
        let content = blocking(move || Ok(local_content(&name, &state_dir))).await?;
        let why = match content {
            LocalContent::Recorded(Content::Holds(held)) if held == unit.point => return Ok(()),
            LocalContent::Recorded(Content::Holds(held)) => format!("it holds {held} now"),
            LocalContent::Recorded(Content::Between { head, .. }) => {
                format!("a copy of {head} to it is unfinished")
            }
            LocalContent::Absent(why) => why,
            LocalContent::Unrecorded { .. } => "no record says what it holds".to_owned(),
        };
        let what = format!("cannot drill {} as {}: {why}", unit.source, unit.point);
        Err(Error::new(Kind::Busy, what))
    }
}

/// The options of the drill itself.
fn drill_words(request: &DrillRequest<'_>) -> Vec<OsString> {
    let drill = request.drill;
    let mut words: Vec<OsString> = vec!["--json".into()];
    let mut add = |option: &str, value: OsString| words.extend(option_word(option, Some(value)));
    if let Some(scratch) = &drill.scratch {
        add("--scratch", scratch.into());
    }
    if let Some(bytes) = drill.overlay_limit {
        add("--overlay-limit", bytes.to_string().into());
    }
    if let Some(rate) = request.rate.filter(|_| request.unit.is_fixed) {
        add("--bandwidth", rate.to_string().into());
    }
    if let Some(boot) = drill.boot.as_ref().filter(|_| request.unit.is_machine) {
        let DrillBoot {
            wait_for,
            timeout,
            memory,
        } = boot;
        if let Some(text) = wait_for {
            add("--wait-for", text.into());
        }
        if let Some(time) = timeout {
            let time = humantime::format_duration(*time).to_string();
            add("--boot-timeout", time.into());
        }
        if let Some(bytes) = memory {
            add("--memory", bytes.to_string().into());
        }
        words.push("--boot".into());
    }
    if drill.replays_xfs {
        words.push("--replay-xfs".into());
    }
    // The name may begin with a dash.
    words.extend(["--".into(), request.unit.source.as_str().into()]);
    words
}

/// Turns the exit code and the report into findings.
///
/// # Errors
/// Why the drill came to no result.
fn findings(source: &str, end: &DrillEnd) -> Result<DrillFindings> {
    let not_done = |kind: Kind, why: &str| {
        let what = format!("cannot drill {source}: {why}");
        Err(Error::new(kind, what))
    };
    if let Some(silence) = end.silence {
        let silence = humantime::format_duration(silence);
        return not_done(Kind::Io, &format!("it gave no sign of work for {silence}"));
    }
    let Some(code) = end.status.code() else {
        let signal = end.status.signal().unwrap_or_default();
        return not_done(
            Kind::Io,
            &format!("its process was ended by signal {signal}"),
        );
    };
    let line = end.last_line.strip_prefix("ebsfs: ");
    let line = line.unwrap_or(&end.last_line);
    let report = serde_json::from_slice::<ReportText>(&end.report);
    let report = report.ok().filter(|report| report.version == DRILL_VERSION);
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| i32::from(kind.exit_code()) == code);
    let (report, failure) = match (report, code, kind) {
        (Some(report), 0, _) => (report, None),
        (Some(report), _, Some(kind @ (Kind::Corrupt | Kind::Undecided))) => {
            let what = format!("cannot confirm {source}: {line}");
            (report, Some(Error::new(kind, what)))
        }
        (None, 0, _) => return not_done(Kind::Io, "it has left no report"),
        // Ended by something else: this process was not stopped.
        (_, _, None | Some(Kind::Stopped)) => {
            return not_done(Kind::Io, &format!("it ended with exit code {code}: {line}"));
        }
        (_, _, Some(kind)) => return not_done(kind, line),
    };
    let mut partitions = BTreeMap::new();
    for found in report.disks.into_iter().flat_map(|disk| disk.partitions) {
        *partitions.entry(found.result).or_default() += 1;
    }
    Ok(DrillFindings {
        partitions,
        booted: report.boot.map(|boot| boot.booted),
        failure,
    })
}

/// Runs the process to its end. A stop, or silence, ends it.
async fn run(words: &[OsString], name: &str, limit: Duration, stop: &Stop) -> Result<DrillEnd> {
    let failed = |error| Error::with_source(Kind::Io, format!("cannot drill {name}"), error);
    debug!("ebsfs drill {words:?}");
    let mut child = start(words).map_err(failed)?;
    // Waiting for it would close this.
    let _open = child.stdin.take();
    let report = read_report(child.stdout.take());
    let log = follow_log(child.stderr.take(), name.to_owned());
    // Both read while it runs, so that it never waits for a reader.
    let (report, log) = (tokio::spawn(report), tokio::spawn(log));
    let (process, mut silence) = (child.id(), None);
    let status = tokio::select! {
        status = child.wait() => status,
        () = silent(process, limit, LOOK) => {
            silence = Some(limit);
            end(&mut child).await
        }
        () = stop.stopped() => {
            let ended = end(&mut child).await;
            debug!("the drill of {name} was stopped: {ended:?}");
            return Err(Stop::error());
        }
    };
    let status = status.map_err(failed)?;
    // What it has started could keep the pipes open.
    let read = timeout(REST, async { (report.await, log.await) }).await;
    let (report, log) = read.unwrap_or((Ok(Vec::new()), Ok(String::new())));
    Ok(DrillEnd {
        status,
        silence,
        report: report.unwrap_or_default(),
        last_line: log.unwrap_or_default(),
    })
}

/// Starts this program, as it runs, in a process group of its own, which Ctrl-C does not reach. Its stdin is open as long as this
/// process lives: it stops at the end of it, also when this process is killed.
fn start(words: &[OsString]) -> std::io::Result<Child> {
    // Not by its path, where another version can be by now.
    Command::new(format!("/proc/{}/exe", std::process::id()))
        .arg("drill")
        .args(words)
        .env(ENDS_WITH_STDIN, "1")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Ends the process: SIGTERM, on which it removes what it has made, then SIGKILL.
async fn end(child: &mut Child) -> std::io::Result<ExitStatus> {
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    let send = |signal| {
        if let Some(group) = group {
            // It may have ended meanwhile.
            let _ = killpg(Pid::from_raw(group), signal);
        }
    };
    send(Signal::SIGTERM);
    if let Ok(status) = timeout(GRACE, child.wait()).await {
        return status;
    }
    send(Signal::SIGKILL);
    child.wait().await
}

/// Waits until a process gives no sign of work for so long.
async fn silent(process: Option<u32>, limit: Duration, look: Duration) {
    let Some(process) = process else {
        return std::future::pending().await;
    };
    let (mut heard, mut last) = (Instant::now(), work_of(process));
    let mut ticks = interval(look);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while heard.elapsed() <= limit {
        ticks.tick().await;
        let now = work_of(process);
        if now != last {
            (heard, last) = (Instant::now(), now);
        }
    }
}

/// What a process has read, written and computed so far, as the kernel counts it.
fn work_of(process: u32) -> (Option<String>, Option<String>) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{process}/{name}")).ok();
    (read("io"), read("stat"))
}

/// Reads the report. One that is too large is none: it is read to its end and dropped.
async fn read_report(pipe: Option<ChildStdout>) -> Vec<u8> {
    let (mut report, mut buffer, mut is_whole) = (Vec::new(), vec![0; 64 << 10], true);
    let Some(mut pipe) = pipe else {
        return report;
    };
    while let Some(bytes) = next_bytes(&mut pipe, &mut buffer).await {
        is_whole &= report.len() + bytes.len() <= LARGEST_REPORT;
        if is_whole {
            report.extend_from_slice(bytes);
        }
    }
    if is_whole { report } else { Vec::new() }
}

/// Passes its log on: warnings as warnings, the rest for `-v`. Returns the last line.
async fn follow_log(pipe: Option<ChildStderr>, name: String) -> String {
    let (mut line, mut last, mut buffer) = (Vec::new(), String::new(), vec![0; 4096]);
    let Some(mut pipe) = pipe else {
        return last;
    };
    let mut pass = |line: &mut Vec<u8>| {
        let text = plain(&String::from_utf8_lossy(line));
        line.clear();
        match text.split_once(" WARN ") {
            Some((_, what)) => warn!("drill of {name}: {}", what.trim()),
            None => debug!("drill of {name}: {text}"),
        }
        if !text.trim().is_empty() {
            last = text;
        }
    };
    while let Some(bytes) = next_bytes(&mut pipe, &mut buffer).await {
        for byte in bytes {
            match byte {
                b'\n' => pass(&mut line),
                _ if line.len() < LONGEST_LINE => line.push(*byte),
                // The rest of a line of any length is left out.
                _ => {}
            }
        }
    }
    if !line.is_empty() {
        pass(&mut line);
    }
    last
}

async fn next_bytes<'a>(
    pipe: &mut (impl AsyncRead + Unpin),
    buffer: &'a mut [u8],
) -> Option<&'a [u8]> {
    let count = pipe.read(buffer).await.ok().filter(|count| *count > 0)?;
    buffer.get(..count)
}

#[cfg(test)]
mod tests;
