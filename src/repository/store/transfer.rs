//! [`Transfer`]: the bytes that one attempt has moved. An attempt ends after silence, never because of its duration: 32 MiB on
//! a line of 256 kbit/s take a quarter of an hour.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

use super::bandwidth::{Bandwidth, Direction};

/// An attempt is given up when no byte has moved for this time.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// Bytes that this machine can have taken from an upload without sending them: the largest socket buffer of Linux
/// (`tcp_wmem`, 4 MiB) and hyper's own buffer.
const BUFFERED: u64 = (4 << 20) + (512 << 10);
/// The slowest line on which an upload must succeed, in bytes a second: 256 kbit/s.
const SLOWEST: u64 = 32_000;
/// Uploads below this size do not measure the line.
const LEAST_SAMPLE: u64 = 256 << 10;
/// The highest rate that is recorded, in bytes per second.
const MOST_RATE: u64 = 1 << 50;
/// The most bytes that an attempt with a small answer moves, in one request.
const SMALL: u64 = 16 << 10;

/// How fast uploads of this store go, in bytes a second; 0 is unknown.
#[derive(Debug, Default)]
pub(super) struct UploadRate {
    /// The rate of one upload.
    one: AtomicU64,
    /// The rate of all concurrent uploads together.
    all: AtomicU64,
    under_way: AtomicU64,
}

impl UploadRate {
    /// The rate of one upload.
    pub(super) fn get(&self) -> Option<u64> {
        Some(self.one.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// The rate of all uploads together.
    pub(super) fn of_all(&self) -> Option<u64> {
        Some(self.all.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// Mixes a measured rate in; the last four samples have most of the weight.
    fn sample(&self, bytes: u64, took: Duration, beside: u64) {
        let micros = took.as_micros().max(1);
        let rate = u128::from(bytes) * 1_000_000 / micros;
        let rate = u64::try_from(rate).unwrap_or(MOST_RATE);
        let rate = rate.clamp(1, MOST_RATE);
        let mix = |known: &AtomicU64, rate: u64| {
            let old = known.load(Ordering::Relaxed);
            let new = match old {
                0 => rate,
                old => old - old / 4 + rate / 4,
            };
            known.store(new.max(1), Ordering::Relaxed);
        };
        mix(&self.one, rate);
        mix(&self.all, rate.saturating_mul(beside.max(1)).min(MOST_RATE));
    }

    /// An upload fell silent: the line is slower than the recorded rates.
    fn lower(&self) {
        for rate in [&self.one, &self.all] {
            let old = rate.load(Ordering::Relaxed);
            if old > 0 {
                rate.store((old / 8).max(1), Ordering::Relaxed);
            }
        }
    }
}

/// The shortest time that a small answer took, in microseconds plus one; 0 is unknown. The shortest, since connecting, waiting in a
/// queue and a busy store make it longer.
#[derive(Debug, Default)]
pub(super) struct Latency(AtomicU64);

impl Latency {
    pub(super) fn get(&self) -> Option<Duration> {
        let micros = self.0.load(Ordering::Relaxed);
        Some(Duration::from_micros(micros.checked_sub(1)?))
    }

    /// Learns from an attempt that was one request and moved few bytes.
    pub(super) fn sample(&self, transfer: &Transfer) {
        let Some(took) = transfer.small_answer() else {
            return;
        };
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX - 1) + 1;
        let shorter = |known| (known == 0 || micros < known).then_some(micros);
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, shorter);
    }
}

/// Bytes that one attempt has moved, and when the last of them.
#[derive(Debug)]
pub(super) struct Transfer {
    rate: Arc<UploadRate>,
    bandwidth: Bandwidth,
    started: Instant,
    moved: Mutex<Moved>,
}

#[derive(Debug)]
struct Moved {
    /// When the last byte moved; while one waits for its turn under a limit, the time of that turn.
    last: Instant,
    /// All bytes of the attempt.
    total: u64,
    /// The request under way: its first byte, and the bytes that the connection has taken.
    begun: Option<Instant>,
    sent: u64,
    /// How long bytes have waited for their turns: since the request began, and in the whole attempt.
    waited: Duration,
    all_waited: Duration,
    /// Whether bytes cannot be counted while they move: `sent` is the whole body from the start.
    is_opaque: bool,
    /// The number of reply heads that arrived, and when the first one did.
    answers: u32,
    answered: Option<Instant>,
}

impl Transfer {
    pub(super) fn new(rate: &Arc<UploadRate>, bandwidth: &Bandwidth) -> Arc<Self> {
        Arc::new(Self {
            rate: Arc::clone(rate),
            bandwidth: bandwidth.clone(),
            started: Instant::now(),
            moved: Mutex::new(Moved {
                last: Instant::now(),
                total: 0,
                begun: None,
                sent: 0,
                waited: Duration::ZERO,
                all_waited: Duration::ZERO,
                is_opaque: false,
                answers: 0,
                answered: None,
            }),
        })
    }

    /// Reserves a turn for bytes and returns its end. Until then the transfer does not count as silent.
    fn turn(&self, direction: Direction, bytes: u64) -> Option<Instant> {
        let ends = self.bandwidth.turn(direction, bytes)?;
        let mut moved = self.moved.lock();
        let waits = ends.saturating_duration_since(Instant::now());
        moved.last = moved.last.max(ends);
        moved.all_waited += waits;
        if moved.begun.is_some() {
            moved.waited += waits;
        }
        Some(ends)
    }

    /// Waits until `bytes` may have moved: for bodies that cannot be held back while they move.
    pub(super) async fn pay(&self, direction: Direction, bytes: u64) {
        let piece = self.bandwidth.piece() as u64;
        let mut left = bytes;
        while left > 0 {
            let part = left.min(piece);
            let Some(ends) = self.turn(direction, part) else {
                return;
            };
            sleep_until(ends).await;
            left -= part;
        }
    }

    /// How long bytes have waited for their turns under a limit.
    pub(super) fn waited_in_all(&self) -> Duration {
        self.moved.lock().all_waited
    }

    /// The connection took bytes of a request's body.
    fn sent(&self, bytes: usize) {
        let mut moved = self.moved.lock();
        moved.last = Instant::now();
        if moved.begun.is_none() {
            moved.begun = Some(moved.last);
            self.rate.under_way.fetch_add(1, Ordering::Relaxed);
        }
        moved.sent += bytes as u64;
        moved.total += bytes as u64;
    }

    /// Records that a body of this many bytes is being sent without visible progress.
    pub(super) fn opaque(&self, bytes: u64) {
        let mut moved = self.moved.lock();
        let now = Instant::now();
        moved.last = now;
        if moved.begun.replace(now).is_none() {
            self.rate.under_way.fetch_add(1, Ordering::Relaxed);
        }
        // Such a request does not measure the latency.
        moved.answers += 1;
        moved.waited = Duration::ZERO;
        moved.sent = bytes;
        moved.is_opaque = true;
    }

    /// Bytes of a reply arrived.
    pub(super) fn received(&self, bytes: usize) {
        let mut moved = self.moved.lock();
        moved.last = Instant::now();
        moved.total += bytes as u64;
    }

    /// The head of a reply arrived; the next request of the attempt counts for itself.
    pub(super) fn answered(&self, is_success: bool) {
        let mut moved = self.moved.lock();
        let now = Instant::now();
        moved.last = now;
        moved.answers += 1;
        moved.answered.get_or_insert(now);
        let begun = moved.begun.take();
        let beside = match begun {
            Some(_) => self.rate.under_way.fetch_sub(1, Ordering::Relaxed),
            None => 0,
        };
        let waited = std::mem::take(&mut moved.waited);
        if let Some(begun) = begun.filter(|_| is_success && moved.sent >= LEAST_SAMPLE) {
            let took = moved.last - begun;
            // Bytes that waited for their turns measure the limit and not the line.
            if waited < took / 4 || waited.is_zero() {
                let took = took.saturating_sub(waited);
                self.rate.sample(moved.sent, took, beside);
            }
        }
        moved.sent = 0;
        moved.is_opaque = false;
    }

    /// How long the answer took, if the attempt was one request with a tiny body and a small answer.
    fn small_answer(&self) -> Option<Duration> {
        let moved = self.moved.lock();
        let is_small = moved.answers == 1 && moved.total <= SMALL && moved.all_waited.is_zero();
        let took = moved.answered?.checked_duration_since(self.started)?;
        is_small.then_some(took)
    }

    /// All bytes that moved.
    pub(super) fn total(&self) -> u64 {
        self.moved.lock().total
    }

    /// When the attempt is given up unless bytes move. What this machine has buffered moves unseen: it has the time that it
    /// needs at the known rate, or else on the slowest line.
    fn limit(&self, silence: Duration) -> Instant {
        let moved = self.moved.lock();
        let buffered = match moved.is_opaque {
            true => moved.sent,
            false => moved.sent.min(BUFFERED),
        };
        let own = moved.begun.map_or(0, |begun| {
            let micros = (moved.last - begun).as_micros().max(1);
            let left = moved.sent.saturating_sub(BUFFERED);
            u64::try_from(u128::from(left) * 1_000_000 / micros).unwrap_or(u64::MAX)
        });
        let known = self.rate.get().unwrap_or_default() / 4;
        let rate = known
            .max(if moved.is_opaque { 0 } else { own })
            .max(SLOWEST);
        moved.last + silence + Duration::from_micros(buffered * 1_000_000 / rate)
    }

    /// Work that is given up after silence.
    pub(super) async fn unless_silent<T>(
        &self,
        silence: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        loop {
            let limit = self.limit(silence);
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = sleep_until(limit) => {
                    if Instant::now() >= self.limit(silence) {
                        if self.moved.lock().sent > 0 {
                            self.rate.lower();
                        }
                        return None;
                    }
                }
            }
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if self.moved.get_mut().begun.is_some() {
            self.rate.under_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The body of an upload; the pieces are not copied. Each frame that the connection takes counts as progress.
pub(super) struct UploadBody {
    pieces: VecDeque<Bytes>,
    left: u64,
    transfer: Arc<Transfer>,
    /// The turn of the next frame, once it is taken.
    turn: Option<Option<Pin<Box<Sleep>>>>,
}

impl UploadBody {
    pub(super) fn new(pieces: &[Bytes], transfer: &Arc<Transfer>) -> Self {
        let pieces = pieces.iter().filter(|piece| !piece.is_empty());
        let pieces: VecDeque<Bytes> = pieces.cloned().collect();
        Self {
            left: pieces.iter().map(|piece| piece.len() as u64).sum(),
            pieces,
            transfer: Arc::clone(transfer),
            turn: None,
        }
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let Some(piece) = this.pieces.front_mut() else {
            return Poll::Ready(None);
        };
        let len = piece.len().min(this.transfer.bandwidth.piece());
        let turn = this.turn.get_or_insert_with(|| {
            let turn = this.transfer.turn(Direction::Up, len as u64);
            turn.map(|ends| Box::pin(sleep_until(ends)))
        });
        if let Some(ends) = turn {
            ready!(ends.as_mut().poll(context));
        }
        this.turn = None;
        let frame = piece.split_to(len);
        if piece.is_empty() {
            this.pieces.pop_front();
        }
        this.left -= frame.len() as u64;
        this.transfer.sent(frame.len());
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// The body of a reply, whose bytes are counted. Under a limit each frame waits for its turn; meanwhile no more is read, so that
/// the store stops sending.
pub(super) struct ReplyBody<B> {
    inner: Pin<Box<B>>,
    transfer: Arc<Transfer>,
    /// A frame, and when its turn ends.
    held: Option<(Frame<Bytes>, Pin<Box<Sleep>>)>,
}

impl<B> ReplyBody<B> {
    pub(super) fn new(inner: B, transfer: &Arc<Transfer>) -> Self {
        Self {
            inner: Box::pin(inner),
            transfer: Arc::clone(transfer),
            held: None,
        }
    }
}

impl<B: Body<Data = Bytes>> Body for ReplyBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if this.held.is_none() {
            let frame = match ready!(this.inner.as_mut().poll_frame(context)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            let len = frame.data_ref().map_or(0, Bytes::len);
            this.transfer.received(len);
            let Some(ends) = this.transfer.turn(Direction::Down, len as u64) else {
                return Poll::Ready(Some(Ok(frame)));
            };
            this.held = Some((frame, Box::pin(sleep_until(ends))));
        }
        if let Some((_, ends)) = &mut this.held {
            ready!(ends.as_mut().poll(context));
        }
        let frame = this.held.take().map(|(frame, _)| Ok(frame));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.inner.is_end_stream()
    }
}

#[cfg(test)]
mod tests;
