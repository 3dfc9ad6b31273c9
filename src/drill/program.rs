//! Programs of other projects: found, run with a time-out by silence, and ended with all that they have started. Their output has a
//! limit, their environment nothing of ours.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::debug;

use crate::error::{Error, Kind, Result};

/// Bytes of a program's output that are kept of its beginning, and of its end.
const KEPT_OUTPUT: usize = 16 << 10;
/// Characters of a line in reports.
const LONGEST_LINE: usize = 200;
/// How long a program may run that is never silent: a disk can send a checker in circles.
const LONGEST_RUN: Duration = Duration::from_secs(24 * 3600);
/// How long the output of a program that has ended is waited for.
const REST: Duration = Duration::from_secs(2);
/// How long a program has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(10);
/// How often the output of a program that has ended is looked at, and the pause between.
const LAST_WORDS_TRIES: u32 = 20;
const LAST_WORDS_PAUSE: Duration = Duration::from_millis(10);
/// Where checkers are, also for users whose PATH lacks it.
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// How a program ended.
#[derive(Clone, Debug)]
pub(crate) struct ProgramEnd {
    /// Its exit code; none: a signal ended it.
    pub(crate) code: Option<i32>,
    /// Whether it was ended because nothing was heard of it.
    pub(crate) was_silent: bool,
    /// Whether it was ended after [`LONGEST_RUN`].
    pub(crate) ran_too_long: bool,
    /// What it printed: lines without control characters.
    pub(crate) lines: Vec<String>,
}

impl ProgramEnd {
    /// Its last line, for a message.
    pub(crate) fn last_line(&self) -> String {
        let last = self.lines.last().cloned();
        last.unwrap_or_else(|| "it printed nothing".to_owned())
    }
}

/// The path of a program, in PATH or in the folders of the system.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
    let mut folders = folders.chain(SYSTEM_FOLDERS.iter().map(PathBuf::from));
    folders.find_map(|folder| {
        let path = folder.join(name);
        let found = std::fs::metadata(&path).ok()?;
        let is_program = found.is_file() && found.permissions().mode() & 0o111 != 0;
        is_program.then_some(path)
    })
}

/// A program that runs. Dropping it ends its process group.
#[derive(Debug)]
pub(super) struct RunningProgram {
    name: String,
    pub(super) child: Child,
    group: Option<Pid>,
}

impl RunningProgram {
    /// Starts a program, the first word, in a process group of its own, with stdout and stderr in pipes.
    ///
    /// # Errors
    /// `Io` when it cannot be started.
    pub(super) fn start(name: &str, words: &[OsString]) -> Result<Self> {
        debug!("running {words:?}");
        let Some((program, args)) = words.split_first() else {
            return Err(Error::new(
                Kind::Io,
                format!("cannot run {name}: it has no path"),
            ));
        };
        let child = Command::new(program)
            .args(args)
            .env_clear()
            .env("PATH", SYSTEM_FOLDERS.join(":"))
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Error::with_source(Kind::Io, format!("cannot run {name}"), error))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok());
        Ok(Self {
            name: name.to_owned(),
            child,
            group: group.map(Pid::from_raw),
        })
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // It may have ended meanwhile.
            let _ = killpg(group, signal);
        }
    }

    /// Its process id, unless it has ended.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Reads what it prints from now on in the background, so that it never waits for a reader.
    pub(super) fn drain(&mut self) -> Arc<Mutex<BoundedOutput>> {
        let output = Arc::<Mutex<BoundedOutput>>::default();
        let pipes = [
            self.child.stdout.take().map(Pipe::Out),
            self.child.stderr.take().map(Pipe::Err),
        ];
        for mut pipe in pipes {
            let output = Arc::clone(&output);
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Some(bytes) = read_next(&mut pipe, &mut buffer).await {
                    output.lock().push(bytes);
                }
            });
        }
        output
    }

    /// Ends it: SIGTERM, and SIGKILL if that is not enough. Whether SIGTERM was enough.
    pub(super) async fn end(&mut self) -> bool {
        self.signal(Signal::SIGTERM);
        let has_ended = timeout(GRACE, self.child.wait()).await.is_ok();
        if !has_ended {
            self.signal(Signal::SIGKILL);
            let _ = timeout(GRACE, self.child.wait()).await;
        }
        self.group = None;
        has_ended
    }

    /// Runs it to its end, or ends it after `silence` without a line, and without a change of what `activity` returns.
    ///
    /// # Errors
    /// `Io` when it cannot be waited for.
    pub(super) async fn finish(
        mut self,
        silence: Duration,
        activity: impl Fn() -> Option<u64>,
    ) -> Result<ProgramEnd> {
        let (mut out, mut err) = (self.child.stdout.take(), self.child.stderr.take());
        let (mut printed, mut failed) = (vec![0; 4096], vec![0; 4096]);
        let mut output = BoundedOutput::default();
        let began = Instant::now();
        let (mut heard, mut last) = (began, activity());
        let mut tick =
            interval((silence / 4).clamp(Duration::from_millis(20), Duration::from_secs(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let status = loop {
            tokio::select! {
                bytes = read_some(&mut out, &mut printed) => {
                    output.push(bytes);
                    heard = Instant::now();
                }
                bytes = read_some(&mut err, &mut failed) => {
                    output.push(bytes);
                    heard = Instant::now();
                }
                status = self.child.wait() => break Some(status),
                _ = tick.tick() => {
                    let now = activity();
                    if now != last {
                        (heard, last) = (Instant::now(), now);
                    }
                    if heard.elapsed() > silence || began.elapsed() > LONGEST_RUN {
                        break None;
                    }
                }
            }
        };
        let was_silent = status.is_none();
        let ran_too_long = was_silent && began.elapsed() > LONGEST_RUN;
        let status = match status {
            Some(status) => status,
            None => {
                self.end().await;
                self.child.wait().await
            }
        };
        self.group = None;
        let rest = async {
            for pipe in [&mut out.map(Pipe::Out), &mut err.map(Pipe::Err)] {
                while let Some(bytes) = read_next(pipe, &mut printed).await {
                    output.push(bytes);
                }
            }
        };
        // What it has started may keep the pipes open.
        let _ = timeout(REST, rest).await;
        let status = status.map_err(|error| {
            Error::with_source(Kind::Io, format!("cannot wait for {}", self.name), error)
        })?;
        debug!("{} ended: {status}", self.name);
        Ok(ProgramEnd {
            code: status.code(),
            was_silent,
            ran_too_long,
            lines: output.lines(),
        })
    }
}

impl Drop for RunningProgram {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// Runs a program to its end, with a time-out by silence.
///
/// # Errors
/// `Io` when it cannot be started.
pub(crate) async fn run_program(
    name: &str,
    words: &[OsString],
    silence: Duration,
    activity: impl Fn() -> Option<u64>,
) -> Result<ProgramEnd> {
    RunningProgram::start(name, words)?
        .finish(silence, activity)
        .await
}

/// Bytes that a process has read and written by system calls, as the kernel counts them.
pub(super) fn bytes_moved(process: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/io")).ok()?;
    let moved = text.lines().filter_map(|line| {
        let (name, count) = line.split_once(": ")?;
        ["rchar", "wchar", "syscr", "syscw"]
            .contains(&name)
            .then_some(count.parse::<u64>().ok()?)
    });
    Some(moved.fold(0, u64::wrapping_add))
}

enum Pipe {
    Out(tokio::process::ChildStdout),
    Err(tokio::process::ChildStderr),
}

/// The next bytes of a pipe; none at its end.
async fn read_next<'a>(pipe: &mut Option<Pipe>, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let read = match pipe.as_mut()? {
        Pipe::Out(out) => out.read(buffer).await,
        Pipe::Err(err) => err.read(buffer).await,
    };
    let count = read.ok().filter(|count| *count > 0)?;
    buffer.get(..count)
}

/// The next bytes of a pipe. At its end it waits for ever.
async fn read_some<'a>(
    pipe: &mut Option<impl AsyncRead + Unpin>,
    buffer: &'a mut [u8],
) -> &'a [u8] {
    let count = match pipe {
        Some(open) => open.read(buffer).await.unwrap_or(0),
        None => 0,
    };
    if count == 0 {
        *pipe = None;
        return std::future::pending().await;
    }
    buffer.get(..count).unwrap_or_default()
}

/// The last line of a program that has ended, which may still be on its way.
pub(super) async fn last_words(output: &Mutex<BoundedOutput>) -> Option<String> {
    for _ in 0..LAST_WORDS_TRIES {
        let last = output.lock().lines().pop();
        if last.is_some() {
            return last;
        }
        sleep(LAST_WORDS_PAUSE).await;
    }
    None
}

/// The beginning and the end of an output of any length.
#[derive(Debug, Default)]
pub(super) struct BoundedOutput {
    first: Vec<u8>,
    last: VecDeque<u8>,
    dropped: u64,
}

impl BoundedOutput {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let room = KEPT_OUTPUT - self.first.len();
        let (head, tail) = bytes.split_at(room.min(bytes.len()));
        self.first.extend_from_slice(head);
        self.last.extend(tail);
        let more = self.last.len().saturating_sub(KEPT_OUTPUT);
        self.last.drain(..more);
        self.dropped += more as u64;
    }

    /// Lines for people, without control characters and empty lines.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut text = String::from_utf8_lossy(&self.first).into_owned();
        if self.dropped > 0 {
            text.push_str(&format!("\n[{} bytes left out]\n", self.dropped));
        }
        let last: Vec<u8> = self.last.iter().copied().collect();
        text.push_str(&String::from_utf8_lossy(&last));
        let lines = text.split(['\n', '\r']).map(|line| {
            let plain = without_escapes(line);
            let plain = plain.chars().filter(|c| !c.is_control());
            let line: String = plain.take(LONGEST_LINE).collect();
            line.trim().to_owned()
        });
        lines.filter(|line| !line.is_empty()).collect()
    }
}

/// A line without the colours and movements of a terminal: ESC, `[`, parameters, a letter.
fn without_escapes(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_digit() && !";?".contains(c));
        let rest = end.map(|end| part.split_at(end).1);
        plain.extend(rest.unwrap_or_default().chars().skip(1));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Vec<OsString> {
        ["/bin/sh", "-c", script].map(OsString::from).to_vec()
    }

    async fn run(script: &str, silence_ms: u64, activity: impl Fn() -> Option<u64>) -> ProgramEnd {
        let silence = Duration::from_millis(silence_ms);
        run_program("sh", &sh(script), silence, activity)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_program_has_no_environment_of_ours_and_its_output_is_kept() {
        let end = run("echo one; env | sort >&2; exit 3", 5000, || None).await;
        assert_eq!((end.code, end.was_silent), (Some(3), false));
        let has = |text: &str| end.lines.iter().any(|line| line.starts_with(text));
        assert!(has("one") && has("LC_ALL=C"), "{:?}", end.lines);
        assert!(!has("HOME=") && !has("CARGO"), "{:?}", end.lines);
    }

    #[tokio::test]
    async fn a_silent_program_is_ended_with_what_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("alive");
        let script = format!("(sleep 1; echo late > {}) & wait", file.display());
        let began = Instant::now();
        let end = run(&script, 200, || None).await;
        assert!(end.was_silent && end.code.is_none(), "{end:?}");
        assert!(began.elapsed() < Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(!file.exists(), "its child went on");
    }

    #[tokio::test]
    async fn a_program_that_works_or_prints_is_not_silent() {
        let count = std::sync::atomic::AtomicU64::new(0);
        let works = || Some(count.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let end = run("sleep 0.8", 200, works).await;
        assert_eq!((end.code, end.was_silent), (Some(0), false));
        let end = run(
            "for n in 1 2 3 4 5 6 7 8; do echo $n; sleep 0.1; done",
            400,
            || None,
        )
        .await;
        assert_eq!((end.code, end.lines.len()), (Some(0), 8));
    }

    #[test]
    fn an_output_of_any_length_takes_a_bounded_place() {
        let mut output = BoundedOutput::default();
        output.push(b"first\x1b[0;31m \x1b[?25hsecond\x1b[0m\x07\x1b[\r\n\n");
        for _ in 0..10_000 {
            output.push(b"0123456789 and more of it\n");
        }
        output.push(b"last");
        assert!(output.first.len() + output.last.len() <= 2 * KEPT_OUTPUT);
        let lines = output.lines();
        assert_eq!(lines.first().map(String::as_str), Some("first second"));
        assert_eq!(lines.last().map(String::as_str), Some("last"));
        assert!(lines.iter().any(|line| line.ends_with("bytes left out]")));
    }
}
