//! [`ParserSession`]: the side of the process that has the credentials. It starts the parser, reads the image for it, and ends it.
//!
//! The parser may be broken or taken over by what it reads. So every frame has a limit, every value is checked, what it asks of the
//! image is within the image, and it is ended when an answer costs it too much processor time or it says nothing.

mod restart;

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::parser;
use super::view::ImageBytes;
use super::wire::{
    BrokenFrame, FRAME_LIMIT, FailureKind, FrameReader, FrameWriter, IMAGE_LIMIT, from_parser,
    to_parser,
};
use crate::error::{Error, Kind, Remedy, Result};
pub(crate) use restart::RestartLimit;
pub(super) use restart::{FsRequest, LastingSession, SessionStart};

/// Between two looks at a parser that says nothing.
const LOOK: Duration = Duration::from_millis(500);
/// Ticks a second that the kernel counts processor time in: it is 100 on every architecture.
const TICKS: u64 = 100;
/// Bytes of its last words that are kept.
const LAST_WORDS: u64 = 2048;
/// Warnings of a parser, at most.
const MOST_WARNINGS: u32 = 16;

/// What an answer may cost the parser.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionLimits {
    /// Processor time.
    pub(crate) processor: Duration,
    /// Time in which it says nothing.
    pub(crate) silence: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            processor: Duration::from_secs(5),
            silence: Duration::from_secs(60),
        }
    }
}

/// The process of the parser.
struct ParserProcess {
    child: Child,
    last_words: Arc<Mutex<Vec<u8>>>,
}

impl ParserProcess {
    /// Starts this program once more, with the socket for stdin and nothing else.
    fn start(socket: OwnedFd) -> std::io::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg0(parser::NAME)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(socket))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let last_words = Arc::new(Mutex::new(Vec::new()));
        if let Some(mut stderr) = child.stderr.take() {
            let kept = Arc::clone(&last_words);
            std::thread::Builder::new().spawn(move || {
                let mut piece = [0; 512];
                while let Ok(count) = stderr.read(&mut piece) {
                    if count == 0 {
                        break;
                    }
                    let mut kept = kept.lock();
                    if kept.len() as u64 <= LAST_WORDS {
                        kept.extend(piece.get(..count).unwrap_or_default());
                    }
                }
            })?;
        }
        Ok(Self { child, last_words })
    }

    /// Processor time so far; none when it has ended.
    fn processor_time(&self) -> Option<Duration> {
        let path = format!("/proc/{}/stat", self.child.id());
        let mut text = String::new();
        File::open(path)
            .ok()?
            .take(4096)
            .read_to_string(&mut text)
            .ok()?;
        processor_ticks(&text).map(|ticks| Duration::from_millis(ticks * 1000 / TICKS))
    }

    /// Whether the process is still there.
    fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it, and returns its last line.
    fn end(&mut self) -> String {
        let _ = self.child.kill();
        let status = self.child.wait();
        let words = String::from_utf8_lossy(&self.last_words.lock()).into_owned();
        let line = words.lines().last().unwrap_or_default();
        let line: String = line.chars().filter(|c| !c.is_control()).take(200).collect();
        match (line.is_empty(), status) {
            (false, _) => line,
            (true, Ok(status)) => status.to_string(),
            (true, Err(error)) => error.to_string(),
        }
    }
}

impl Drop for ParserProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sum of user and system time in the text of `/proc/PID/stat`: fields 14 and 15, counted behind the name in parentheses.
fn processor_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

/// A parser, and the image that it reads. It answers one request at a time.
pub(super) struct ParserSession {
    /// None in tests, where a thread plays the parser.
    process: Option<ParserProcess>,
    socket: UnixStream,
    received: Vec<u8>,
    image: Arc<ImageBytes>,
    limits: SessionLimits,
    warnings: u32,
    /// Why it answers nothing more.
    ended: Option<Error>,
}

impl ParserSession {
    /// Starts a parser for an image.
    ///
    /// # Errors
    /// `Io` when the system does not start a process.
    pub(super) fn start(image: Arc<ImageBytes>, limits: SessionLimits) -> Result<Self> {
        let cannot = |error| Error::with_source(Kind::Io, "cannot start the parser", error);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(cannot)?;
        let process = ParserProcess::start(theirs.into()).map_err(cannot)?;
        Self::over(ours, Some(process), image, limits).map_err(cannot)
    }

    fn over(
        socket: std::os::unix::net::UnixStream,
        process: Option<ParserProcess>,
        image: Arc<ImageBytes>,
        limits: SessionLimits,
    ) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            process,
            socket: UnixStream::from_std(socket)?,
            received: Vec::new(),
            image,
            limits,
            warnings: 0,
            ended: None,
        })
    }

    /// Sends a request, and reads the answer by `read`.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt` or `Invalid` as the parser says; why the image cannot be read; `Corrupt` when the parser broke the rules,
    /// ended or took too long: then it answers nothing more.
    pub(super) async fn ask<T>(
        &mut self,
        request: FrameWriter,
        read: impl FnOnce(&mut FrameReader<'_>) -> std::result::Result<T, BrokenFrame>,
    ) -> Result<T> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        // A request whose future is dropped leaves half an answer in the socket.
        let interrupted = Error::new(Kind::Io, "the parser was interrupted");
        self.ended = Some(interrupted);
        match self.exchange(request).await {
            Ok(Ok(body)) => {
                let mut reader = FrameReader::new(&body);
                let done = read(&mut reader).and_then(|done| reader.end().map(|()| done));
                match done {
                    Ok(done) => {
                        self.ended = None;
                        Ok(done)
                    }
                    Err(BrokenFrame(what)) => Err(self.end(what)),
                }
            }
            Ok(Err(failed)) => {
                self.ended = None;
                Err(failed)
            }
            Err(what) => Err(self.end(&what)),
        }
    }

    /// Whether it answers further requests.
    pub(super) fn is_alive(&self) -> bool {
        self.ended.is_none()
    }

    /// Whether it answers further requests, and its process still runs.
    fn is_running(&mut self) -> bool {
        let process = self.process.as_mut();
        self.ended.is_none() && process.is_none_or(ParserProcess::is_running)
    }

    /// Ends the parser for good.
    fn end(&mut self, what: &str) -> Error {
        let words = self.process.as_mut().map(ParserProcess::end);
        let words = words.map(|words| format!(" ({words})")).unwrap_or_default();
        let text = format!("cannot read the filesystem: {what}{words}");
        let remedy = "for a disk that you trust: ebsfs attach, as root";
        let error = Error::new(Kind::Corrupt, text).with_remedy(Remedy::Do(remedy.into()));
        self.ended = Some(error.clone());
        error
    }

    /// The outer error ends the parser; the inner one is an answer.
    async fn exchange(
        &mut self,
        request: FrameWriter,
    ) -> std::result::Result<Result<Vec<u8>>, String> {
        self.send(&request.finish()).await?;
        let mut image_error = None;
        let started = self.processor_time();
        // Time that the parser takes; that of the image is not its own.
        let mut own = Duration::ZERO;
        let mut looked = Duration::ZERO;
        loop {
            let since = Instant::now();
            let frame = loop {
                match timeout(LOOK, self.receive()).await {
                    Ok(frame) => break frame?,
                    Err(_) => self.check(started, own + since.elapsed(), since.elapsed())?,
                }
            };
            own += since.elapsed();
            if own > looked + LOOK {
                looked = own;
                self.check(started, own, Duration::ZERO)?;
            }
            let broken = |BrokenFrame(what)| what.to_owned();
            let mut reader = FrameReader::new(&frame);
            match reader.u8().map_err(broken)? {
                from_parser::READ => {
                    let (offset, len) =
                        (reader.u64().map_err(broken)?, reader.u32().map_err(broken)?);
                    let is_inside = offset
                        .checked_add(len.into())
                        .is_some_and(|end| end <= self.image.size());
                    if len == 0 || len > IMAGE_LIMIT || !is_inside {
                        return Err("the parser asked for bytes outside of the image".to_owned());
                    }
                    let reply = match self.image.read(offset, len as usize).await {
                        Ok(bytes) => {
                            let mut reply = FrameWriter::new(to_parser::BYTES);
                            reply.raw(&bytes);
                            reply
                        }
                        Err(error) => {
                            image_error = Some(error);
                            FrameWriter::new(to_parser::UNREADABLE)
                        }
                    }
                    .finish();
                    self.send(&reply).await?;
                }
                from_parser::ANSWER => {
                    // Made without bytes that could not be read: what it says of the filesystem is not known to be true.
                    return Ok(match image_error {
                        Some(error) => Err(error),
                        None => Ok(reader.rest().to_vec()),
                    });
                }
                from_parser::FAILED => {
                    let kind = FailureKind::of(reader.u8().map_err(broken)?);
                    let text = reader.text().map_err(broken)?;
                    return Ok(Err(failure(kind, &text, image_error)));
                }
                from_parser::WARNING if self.warnings < MOST_WARNINGS => {
                    self.warnings += 1;
                    let text = reader.text().map_err(broken)?;
                    warn!("{}", printable(&text));
                }
                _ => return Err("the parser sent an unknown frame".to_owned()),
            }
        }
    }

    fn processor_time(&self) -> Duration {
        let process = self.process.as_ref();
        process
            .and_then(ParserProcess::processor_time)
            .unwrap_or_default()
    }

    /// Whether an answer has cost too much.
    fn check(
        &self,
        started: Duration,
        own: Duration,
        silent: Duration,
    ) -> std::result::Result<(), String> {
        let used = self.processor_time().saturating_sub(started);
        debug!("the parser has worked for {used:?} in {own:?}");
        if used > self.limits.processor {
            let limit = self.limits.processor.as_secs();
            return Err(format!(
                "its parser was ended: more than {limit} s of work for one answer"
            ));
        }
        if silent > self.limits.silence {
            let limit = self.limits.silence.as_secs();
            return Err(format!("its parser was ended: it was silent for {limit} s"));
        }
        Ok(())
    }

    async fn send(&mut self, frame: &[u8]) -> std::result::Result<(), String> {
        // A parser that reads nothing is silent.
        match timeout(self.limits.silence, self.socket.write_all(frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("its parser ended".to_owned()),
            Err(_) => Err("its parser was ended: it stopped reading requests".to_owned()),
        }
    }

    /// The next frame. Cancel-safe: what has arrived is kept.
    async fn receive(&mut self) -> std::result::Result<Bytes, String> {
        loop {
            if let Some(head) = self.received.first_chunk::<4>() {
                let len = u32::from_le_bytes(*head) as usize;
                if len > FRAME_LIMIT {
                    return Err("the parser sent a frame that is too long".to_owned());
                }
                if self.received.len() >= 4 + len {
                    let rest = self.received.split_off(4 + len);
                    let frame = std::mem::replace(&mut self.received, rest);
                    return Ok(Bytes::from(frame).slice(4..));
                }
            }
            match self.socket.read_buf(&mut self.received).await {
                Ok(0) | Err(_) => return Err("its parser ended".to_owned()),
                Ok(_) => {}
            }
        }
    }
}

/// A text of the parser without characters that a terminal acts on.
fn printable(text: &str) -> String {
    let chars = text.chars();
    chars
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// The error that an answer is.
fn failure(kind: Option<FailureKind>, text: &str, image: Option<Error>) -> Error {
    let text = printable(text);
    match (kind, image) {
        // Whatever the parser makes of it: the filesystem is not to blame.
        (_, Some(error)) => error,
        (Some(FailureKind::NotFound), _) => Error::new(Kind::NotFound, text),
        (Some(FailureKind::Unsupported), _) => Error::new(Kind::Invalid, text),
        _ => Error::new(Kind::Corrupt, text),
    }
}

#[cfg(test)]
mod tests;
