//! The log: lines go through a bounded queue to one thread for each output, so an undrained pipe or a full disk stops neither a
//! mount nor a copy.
//!
//! All log lines, progress and errors on stderr take this way. Lines that do not fit into the queue are dropped and counted
//! ([`queue`]). At its end the program waits a short time for the queue, then exits without the rest.

mod queue;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use serde_json::json;
use tracing::{Level, info, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::error::{Error, Kind, Result};
use crate::time::rfc3339_millis;
use queue::{LineQueue, LineWriter};

/// At its end the program stops waiting for an output that takes no line for this long.
const STALLED: Duration = Duration::from_millis(500);
/// The longest wait at the end for an output that takes lines slowly.
const MOST_FLUSH: Duration = Duration::from_secs(3);

/// The queue to stderr, from the start of the program on.
static STDERR: OnceLock<Arc<LineQueue>> = OnceLock::new();
/// The queue to `--log-file`.
static FILE: OnceLock<LogFile> = OnceLock::new();

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

struct LogFile {
    queue: Arc<LineQueue>,
    path: PathBuf,
    /// The program runs in the background: its stderr is the log file.
    is_stderr: Arc<AtomicBool>,
}

/// Starts the thread that writes to stderr.
///
/// # Errors
/// `Io` where no thread can be started.
pub(super) fn start_stderr(format: LogFormat) -> Result<()> {
    let queue = start_thread("stderr", Stderr, format)?;
    let _ = STDERR.set(queue);
    Ok(())
}

/// Starts the log, which goes to stderr or to a file. It shows this crate only: the SDK's own lines can hold tokens.
///
/// # Errors
/// `Io` where the file cannot be opened or no thread can be started.
pub(super) fn start(level: Level, format: LogFormat, file: Option<&Path>) -> Result<()> {
    let (colour, queue) = match file {
        None => (io::stderr().is_terminal(), STDERR.get().cloned()),
        Some(path) => (false, Some(start_file(path, format)?)),
    };
    let writer = match queue {
        Some(queue) => BoxMakeWriter::new(move || QueuedLine(Arc::clone(&queue))),
        None => BoxMakeWriter::new(io::stderr),
    };
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(colour)
        .with_target(false);
    let layer = match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().boxed(),
    };
    let filter = Targets::new().with_target("ebsfs", level);
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .init();
    Ok(())
}

fn start_file(path: &Path, format: LogFormat) -> Result<Arc<LineQueue>> {
    // The background process changes to the folder `/`, and opens the file again there.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let is_stderr = Arc::new(AtomicBool::new(false));
    let writer = FileWriter {
        file: open(&path)?,
        path: path.clone(),
        is_stderr: Arc::clone(&is_stderr),
    };
    let queue = start_thread("log", writer, format)?;
    let _ = FILE.set(LogFile {
        queue: Arc::clone(&queue),
        path,
        is_stderr,
    });
    Ok(queue)
}

fn start_thread(name: &str, writer: impl LineWriter, format: LogFormat) -> Result<Arc<LineQueue>> {
    let queue = Arc::new(LineQueue::default());
    let lines = Arc::clone(&queue);
    let spawned = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || lines.write_to(writer, |dropped| notice(format, dropped)));
    match spawned {
        Ok(_) => Ok(queue),
        Err(error) => Err(Error::with_source(
            Kind::Io,
            "cannot start the thread that writes the log",
            error,
        )),
    }
}

fn open(path: &Path) -> Result<File> {
    let opened = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        // A FIFO without a reader is an error and not a wait.
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let waits = |file: File| {
        rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::APPEND)?;
        Ok(file)
    };
    opened.and_then(waits).map_err(|error| {
        let what = format!("cannot open the log file {}", path.display());
        Error::with_source(Kind::Io, what, error)
    })
}

/// The line that reports how many lines are missing before it.
fn notice(format: LogFormat, dropped: u64) -> String {
    let time = rfc3339_millis(SystemTime::now());
    let what = format!("{dropped} lines were dropped here: they could not be written in time");
    match format {
        LogFormat::Text => format!("{time}  WARN {what}\n"),
        LogFormat::Json => {
            let line = json!({"timestamp": time, "level": "WARN", "fields": {"message": what}});
            format!("{line}\n")
        }
    }
}

/// Writes a line to stderr; it may be dropped if stderr is not drained.
pub(super) fn say(line: &str) {
    match STDERR.get() {
        Some(queue) => queue.push(format!("{line}\n").into_bytes()),
        None => write_at_once(&format!("{line}\n")),
    }
}

/// Writes an error to stderr. It is never dropped while the program runs: there are few errors.
pub(super) fn say_error(line: &str) {
    write_always(&format!("{line}\n"));
}

/// Shows a question on stderr, after all that was written before.
pub(super) fn ask(question: &str) {
    write_always(question);
    flush();
}

fn write_always(text: &str) {
    match STDERR.get() {
        Some(queue) => queue.push_always(text.to_owned().into_bytes()),
        None => write_at_once(text),
    }
}

/// Writes to stderr while there is no queue yet.
fn write_at_once(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Writes the error that ends the program, after the log lines. If stderr is too slow for the log lines, they are dropped.
pub(super) fn say_last(line: &str) {
    if let Some(queue) = STDERR.get()
        && !queue.flush(STALLED, MOST_FLUSH)
    {
        queue.drop_all();
    }
    say_error(line);
}

/// Waits a short time until all lines are written.
pub(super) fn flush() {
    let queues = [FILE.get().map(|file| &file.queue), STDERR.get()];
    for queue in queues.into_iter().flatten() {
        queue.flush(STALLED, MOST_FLUSH);
    }
}

/// Opens the log file by its name again, after a program like logrotate moved it.
pub(super) fn reopen() {
    if let Some(file) = FILE.get() {
        file.queue.reopen();
    }
}

/// Releases the caller's stderr. Later output to stderr goes to the log file, or is lost without one.
///
/// # Errors
/// `Io` where the log file or /dev/null cannot be opened.
pub(super) fn leave_stderr() -> Result<()> {
    let failed = |error| Error::with_source(Kind::Io, "cannot leave stderr", error);
    let file = match FILE.get() {
        Some(log) => {
            log.is_stderr.store(true, Ordering::Relaxed);
            // The message of a panic goes to the log file too.
            open(&log.path)?
        }
        None => {
            let null = OpenOptions::new().write(true).open("/dev/null");
            null.map_err(failed)?
        }
    };
    nix::unistd::dup2_stderr(&file).map_err(|error| failed(error.into()))
}

/// The writer of the log's formatter: it queues each line.
struct QueuedLine(Arc<LineQueue>);

impl Write for QueuedLine {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line.to_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Stderr without the lock of the standard library: a writer that is stuck must not hold it.
struct Stderr;

impl LineWriter for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(io::stderr(), bytes)?)
    }

    fn reopen(&mut self) {}
}

struct FileWriter {
    file: File,
    path: PathBuf,
    is_stderr: Arc<AtomicBool>,
}

impl LineWriter for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn reopen(&mut self) {
        let file = match open(&self.path) {
            Ok(file) => file,
            Err(error) => {
                warn!("{}; the log stays in the old file", error.chain());
                return;
            }
        };
        if self.is_stderr.load(Ordering::Relaxed)
            && let Err(error) = nix::unistd::dup2_stderr(&file)
        {
            warn!("cannot move stderr to the new log file: {error}");
        }
        self.file = file;
        info!("opened the log file {} again", self.path.display());
    }
}
