//! [`Bandwidth`]: the limit of bytes per second to and from stores. Each direction has the whole rate, and all stores of a run
//! share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How late a turn may begin without a loss of rate: timers are exact to a millisecond, and tasks wait for a processor.
const CREDIT: Duration = Duration::from_millis(100);
/// The most and the least bytes that take one turn.
const MOST_PIECE: u64 = 64 << 10;
const LEAST_PIECE: u64 = 1 << 10;
/// Turns per second, unless the size of a piece is at its limit.
const TURNS: u64 = 20;
/// Bytes that a connection takes in before they are read: Linux begins with a receive buffer of 128 KiB, and lets it grow only
/// for a reader that is fast.
const RECEIVE_BUFFER: u64 = 128 << 10;

/// The direction of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// To the store.
    Up,
    /// From the store.
    Down,
}

/// A limit of bytes per second to and from stores, which clones share. The default is unlimited.
#[derive(Clone, Debug, Default)]
pub struct Bandwidth(Option<Arc<Directions>>);

#[derive(Debug)]
struct Directions {
    /// `u64::MAX`: unlimited for now.
    bytes_a_second: AtomicU64,
    /// When the next turn of each direction begins.
    up: Mutex<Instant>,
    down: Mutex<Instant>,
}

impl Bandwidth {
    /// At most `bytes_a_second` in each direction.
    pub(crate) fn of(bytes_a_second: u64) -> Self {
        let now = Instant::now();
        Self(Some(Arc::new(Directions {
            bytes_a_second: AtomicU64::new(bytes_a_second.max(1)),
            up: Mutex::new(now),
            down: Mutex::new(now),
        })))
    }

    /// A limit that [`Self::set`] changes while it is used; unlimited until then.
    pub(crate) fn adjustable() -> Self {
        Self::of(u64::MAX)
    }

    /// Changes the limit for all that share it; none: unlimited. Without effect on one made without a limit.
    pub(crate) fn set(&self, bytes_a_second: Option<u64>) {
        if let Some(both) = &self.0 {
            let rate = bytes_a_second.map_or(u64::MAX, |rate| rate.max(1));
            both.bytes_a_second.store(rate, Ordering::Relaxed);
        }
    }

    /// The limit.
    pub(crate) fn bytes_a_second(&self) -> Option<u64> {
        let rate = self.0.as_ref()?.bytes_a_second.load(Ordering::Relaxed);
        (rate < u64::MAX).then_some(rate)
    }

    /// Bytes that take one turn: few enough that streams in parallel get the same.
    pub(super) fn piece(&self) -> usize {
        let rate = self.bytes_a_second().unwrap_or(u64::MAX);
        let piece = (rate / TURNS).clamp(LEAST_PIECE, MOST_PIECE);
        usize::try_from(piece).unwrap_or(usize::MAX)
    }

    /// Reserves the next turn for `bytes`. Returns its end, by which the bytes may have moved; `None` without a limit.
    pub(super) fn turn(&self, direction: Direction, bytes: u64) -> Option<Instant> {
        let both = self.0.as_ref()?;
        let rate = self.bytes_a_second()?;
        let mut next = match direction {
            Direction::Up => both.up.lock(),
            Direction::Down => both.down.lock(),
        };
        *next = begin(*next, Instant::now()) + cost(bytes, rate);
        Some(*next)
    }

    /// How many of `in_flight` requests may receive replies at once: their receive buffers hold about a second's worth of bytes.
    pub(super) fn replies(&self, in_flight: usize) -> usize {
        match self.bytes_a_second() {
            None => in_flight,
            Some(rate) => {
                let most = usize::try_from(rate / RECEIVE_BUFFER).unwrap_or(usize::MAX);
                in_flight.min(most.max(1))
            }
        }
    }
}

/// When a turn begins: after the one before it. Unused time is lost, except for [`CREDIT`].
fn begin(next: Instant, now: Instant) -> Instant {
    now.checked_sub(CREDIT)
        .map_or(next, |since| next.max(since))
}

fn cost(bytes: u64, bytes_a_second: u64) -> Duration {
    let micros = u128::from(bytes) * 1_000_000 / u128::from(bytes_a_second);
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_begins_after_the_one_before_and_time_that_was_not_used_is_lost() {
        let now = Instant::now() + Duration::from_secs(100);
        let ms = Duration::from_millis;
        for (next, begins) in [
            (now, now),
            (now + ms(70), now + ms(70)),
            (now - ms(70), now - ms(70)),
            (now - ms(5000), now - CREDIT),
        ] {
            assert_eq!(begin(next, now), begins);
        }
    }

    #[test]
    fn a_turn_costs_its_bytes_at_the_rate() {
        for (bytes, rate, micros) in [
            (0, 1, 0),
            (32_000, 32_000, 1_000_000),
            (1600, 32_000, 50_000),
            (64 << 10, 100 << 20, 625),
            (u64::MAX, 1, u64::MAX),
        ] {
            assert_eq!(
                cost(bytes, rate),
                Duration::from_micros(micros),
                "{bytes} {rate}"
            );
        }
    }

    #[test]
    fn pieces_and_replies_follow_the_rate() {
        for (rate, piece, replies) in [
            (1, 1 << 10, 1),
            (32_000, 1600, 1),
            (1 << 20, 52_428, 8),
            (100 << 20, 64 << 10, 64),
        ] {
            let bandwidth = Bandwidth::of(rate);
            assert_eq!(
                (bandwidth.piece(), bandwidth.replies(64)),
                (piece, replies),
                "{rate}"
            );
        }
        let unlimited = Bandwidth::default();
        assert_eq!((unlimited.piece(), unlimited.replies(64)), (64 << 10, 64));
        assert_eq!(unlimited.turn(Direction::Up, 1), None);
    }

    #[test]
    fn setting_a_rate_changes_all_clones() {
        let bandwidth = Bandwidth::adjustable();
        let clone = bandwidth.clone();
        assert_eq!(bandwidth.bytes_a_second(), None);
        assert_eq!(bandwidth.turn(Direction::Up, 1 << 20), None);
        bandwidth.set(Some(1 << 20));
        assert_eq!(clone.bytes_a_second(), Some(1 << 20));
        assert!(clone.turn(Direction::Up, 1 << 20).is_some());
        clone.set(None);
        assert_eq!(bandwidth.turn(Direction::Up, 1 << 20), None);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_side_by_side_share_the_rate_and_directions_do_not() {
        let bandwidth = Bandwidth::of(100_000);
        let started = Instant::now();
        let stream = |direction, pieces: u32| {
            let bandwidth = bandwidth.clone();
            async move {
                for _ in 0..pieces {
                    let ends = bandwidth.turn(direction, 5000).unwrap();
                    tokio::time::sleep_until(ends).await;
                }
                started.elapsed().as_millis()
            }
        };
        let (one, two, down) = tokio::join!(
            stream(Direction::Up, 20),
            stream(Direction::Up, 20),
            stream(Direction::Down, 20)
        );
        // Each of two has half: 200,000 bytes take two seconds, less the credit.
        for took in [one, two] {
            assert!((1850..=2000).contains(&took), "{took}");
        }
        assert!((900..=1000).contains(&down), "{down}");
    }
}
