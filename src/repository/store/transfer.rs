//! [`Transfer`]: the bytes that one attempt has moved. An attempt ends after silence, never because of its duration: 32 MiB on
//! a line of 256 kbit/s take a quarter of an hour.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// An attempt is given up when no byte has moved for this time.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// Bytes that this machine can have taken from an upload without sending them: the largest socket buffer of Linux
/// (`tcp_wmem`, 4 MiB) and hyper's own buffer.
const BUFFERED: u64 = (4 << 20) + (512 << 10);
/// The slowest line on which an upload must succeed, in bytes a second: 256 kbit/s.
const SLOWEST: u64 = 32_000;
/// Uploads below this size say nothing of the line.
const LEAST_SAMPLE: u64 = 256 << 10;
/// A frame of a request body: each one that the connection takes counts as progress.
const FRAME: usize = 64 << 10;

/// How fast one upload of this store goes, in bytes a second; 0 is unknown.
#[derive(Debug, Default)]
pub(super) struct UploadRate(AtomicU64);

impl UploadRate {
    pub(super) fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// Mixes a measured rate in; the last four samples have most of the weight.
    fn sample(&self, bytes: u64, took: Duration) {
        let micros = took.as_micros().max(1);
        let rate = u128::from(bytes) * 1_000_000 / micros;
        let rate = u64::try_from(rate).unwrap_or(u64::MAX / 4).max(1);
        let old = self.0.load(Ordering::Relaxed);
        let new = if old == 0 {
            rate
        } else {
            old - old / 4 + rate / 4
        };
        self.0.store(new.max(1), Ordering::Relaxed);
    }

    /// An upload fell silent: the line is slower than the rate says.
    fn lower(&self) {
        let old = self.0.load(Ordering::Relaxed);
        if old > 0 {
            self.0.store((old / 8).max(1), Ordering::Relaxed);
        }
    }
}

/// Bytes that one attempt has moved, and when the last of them.
#[derive(Debug)]
pub(super) struct Transfer {
    rate: Arc<UploadRate>,
    moved: Mutex<Moved>,
}

#[derive(Debug)]
struct Moved {
    last: Instant,
    /// All bytes of the attempt.
    total: u64,
    /// The request under way: its first byte, and the bytes that the connection has taken.
    begun: Option<Instant>,
    sent: u64,
    /// Whether bytes cannot be counted while they move: `sent` is the whole body from the start.
    is_opaque: bool,
}

impl Transfer {
    pub(super) fn new(rate: &Arc<UploadRate>) -> Arc<Self> {
        Arc::new(Self {
            rate: Arc::clone(rate),
            moved: Mutex::new(Moved {
                last: Instant::now(),
                total: 0,
                begun: None,
                sent: 0,
                is_opaque: false,
            }),
        })
    }

    /// The connection took bytes of a request's body.
    fn sent(&self, bytes: usize) {
        let mut moved = self.moved.lock();
        moved.last = Instant::now();
        let last = moved.last;
        moved.begun.get_or_insert(last);
        moved.sent += bytes as u64;
        moved.total += bytes as u64;
    }

    /// A body of so many bytes is under way, and nothing tells how far it is.
    pub(super) fn opaque(&self, bytes: u64) {
        let mut moved = self.moved.lock();
        moved.last = Instant::now();
        moved.begun = Some(moved.last);
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
        moved.last = Instant::now();
        let begun = moved.begun.take();
        if let Some(begun) = begun.filter(|_| is_success && moved.sent >= LEAST_SAMPLE) {
            self.rate.sample(moved.sent, moved.last - begun);
        }
        moved.sent = 0;
        moved.is_opaque = false;
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

/// The body of an upload; the pieces are not copied.
pub(super) struct UploadBody {
    pieces: VecDeque<Bytes>,
    left: u64,
    transfer: Arc<Transfer>,
}

impl UploadBody {
    pub(super) fn new(pieces: &[Bytes], transfer: &Arc<Transfer>) -> Self {
        Self {
            pieces: pieces.iter().cloned().collect(),
            left: pieces.iter().map(|piece| piece.len() as u64).sum(),
            transfer: Arc::clone(transfer),
        }
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        while let Some(piece) = self.pieces.front_mut() {
            let frame = piece.split_to(piece.len().min(FRAME));
            if piece.is_empty() {
                self.pieces.pop_front();
            }
            if frame.is_empty() {
                continue;
            }
            self.left -= frame.len() as u64;
            self.transfer.sent(frame.len());
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer() -> (Arc<UploadRate>, Arc<Transfer>) {
        let rate = Arc::new(UploadRate::default());
        let transfer = Transfer::new(&rate);
        (rate, transfer)
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_ends_after_silence_and_not_while_bytes_move() {
        let (_, moving) = transfer();
        let slow = async {
            for _ in 0..100 {
                tokio::time::sleep(SILENCE / 2).await;
                moving.received(1);
            }
        };
        assert!(moving.unless_silent(SILENCE, slow).await.is_some());
        assert_eq!(moving.total(), 100);
        let begun = Instant::now();
        let (_, silent) = transfer();
        let never = std::future::pending::<()>();
        assert!(silent.unless_silent(SILENCE, never).await.is_none());
        assert_eq!(begun.elapsed().as_secs(), SILENCE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_buffered_has_the_time_of_the_slowest_line_or_of_the_known_one() {
        let upload = |transfer: Arc<Transfer>| async move {
            let body = UploadBody::new(&[Bytes::from(vec![0; 4 << 20])], &transfer);
            let frames = http_body_util::BodyExt::collect(body).await.unwrap();
            assert_eq!(frames.to_bytes().len(), 4 << 20);
            // The reply comes when all of it has left at 256 kbit/s.
            tokio::time::sleep(Duration::from_secs(131)).await;
            transfer.answered(true);
        };
        let (rate, first) = transfer();
        let done = first.unless_silent(SILENCE, upload(Arc::clone(&first)));
        assert!(done.await.is_some());
        let known = rate.get().unwrap();
        assert!((31_000..34_000).contains(&known), "{known}");
        // On a fast line a dead connection is seen soon.
        rate.0.store(100 << 20, Ordering::Relaxed);
        let second = Transfer::new(&rate);
        let begun = Instant::now();
        let done = second.unless_silent(SILENCE, upload(Arc::clone(&second)));
        assert!(done.await.is_none());
        assert!(begun.elapsed() < SILENCE + Duration::from_secs(1));
        assert!(rate.get().unwrap() < 100 << 20);
    }

    #[test]
    fn a_rate_follows_the_line() {
        let rate = UploadRate::default();
        assert_eq!(rate.get(), None);
        rate.sample(1 << 20, Duration::from_secs(1));
        assert_eq!(rate.get(), Some(1 << 20));
        for _ in 0..30 {
            rate.sample(1 << 10, Duration::from_secs(1));
        }
        assert!(rate.get().unwrap() < 2 << 10);
    }
}
