//! When a slow GetSnapshotBlock is sent a second time: the first answer wins.
//!
//! Each request is billed, so this is an option. A request is slow if it takes longer than 99 of 100 did in the last
//! minute; at most one in fifty is sent twice, none within a minute of a throttle or near the rate that is allowed: there a
//! second request takes the place of another one's first.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What is remembered, in slots of a sixth.
const MINUTE: Duration = Duration::from_secs(60);
const SLOT: Duration = Duration::from_secs(10);
const SLOTS: usize = 6;
/// Requests that must be remembered before one is called slow.
const ENOUGH: u64 = 100;
/// One request in this many counts as slow, and one in this many may be sent twice.
const SLOW_ONE_IN: u64 = 100;
const TWICE_ONE_IN: u64 = 50;
/// The share of the allowed rate from which on nothing is sent twice.
const NEAR: f64 = 0.9;
/// Bounds of times grow by a tenth, from 1 ms to more than an hour.
const BOUNDS: usize = 160;
const GROWTH: f64 = 1.1;

/// Decides it for all requests of a client.
#[derive(Debug)]
pub(super) struct Hedge {
    max_rps: f64,
    inner: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    slots: [TimeSlot; SLOTS],
    current: usize,
    since: Instant,
    throttled: Option<Instant>,
}

#[derive(Clone, Debug)]
struct TimeSlot {
    times: [u32; BOUNDS],
    answers: u64,
    twice: u64,
}

impl TimeSlot {
    const EMPTY: Self = Self {
        times: [0; BOUNDS],
        answers: 0,
        twice: 0,
    };
}

impl Hedge {
    /// Nothing is known yet; `max_rps` is what is allowed.
    pub(super) fn new(max_rps: u32) -> Self {
        Self {
            max_rps: f64::from(max_rps),
            inner: Mutex::new(Window {
                slots: [TimeSlot::EMPTY; SLOTS],
                current: 0,
                since: Instant::now(),
                throttled: None,
            }),
        }
    }

    /// Records how long an answer took.
    pub(super) fn answered(&self, took: Duration, now: Instant) {
        let mut inner = self.inner.lock();
        inner.turn(now);
        let current = inner.current;
        if let Some(slot) = inner.slots.get_mut(current) {
            slot.answers += 1;
            if let Some(times) = slot.times.get_mut(bound_of(took)) {
                *times += 1;
            }
        }
    }

    /// A request was refused because there were too many.
    pub(super) fn throttled(&self, now: Instant) {
        self.inner.lock().throttled = Some(now);
    }

    /// How long a request that starts now may take before it is slow; none while nothing is sent twice.
    pub(super) fn delay(&self, now: Instant) -> Option<Duration> {
        let mut inner = self.inner.lock();
        inner.turn(now);
        if inner.throttled.is_some_and(|at| now < at + MINUTE)
            || inner.rate(now) > NEAR * self.max_rps
        {
            return None;
        }
        let answers = inner.sum(|slot| slot.answers);
        if answers < ENOUGH {
            return None;
        }
        let mut slower = answers;
        for bound in 0..BOUNDS {
            slower -= inner.sum(|slot| slot.times.get(bound).copied().unwrap_or(0).into());
            if slower * SLOW_ONE_IN <= answers {
                let millis = GROWTH.powi(i32::try_from(bound + 1).unwrap_or(i32::MAX));
                return Some(Duration::from_secs_f64(millis / 1000.0));
            }
        }
        None
    }

    /// Whether a slow request may be sent a second time; it counts as sent.
    pub(super) fn may_send_twice(&self, now: Instant) -> bool {
        if self.delay(now).is_none() {
            return false;
        }
        let mut inner = self.inner.lock();
        let (answers, twice) = (inner.sum(|slot| slot.answers), inner.sum(|slot| slot.twice));
        if (twice + 1) * TWICE_ONE_IN > answers {
            return false;
        }
        let current = inner.current;
        if let Some(slot) = inner.slots.get_mut(current) {
            slot.twice += 1;
        }
        true
    }
}

impl Window {
    /// Empties the slots whose time is over.
    fn turn(&mut self, now: Instant) {
        for _ in 0..SLOTS {
            if now < self.since + SLOT {
                return;
            }
            self.since += SLOT;
            self.current = (self.current + 1) % SLOTS;
            if let Some(slot) = self.slots.get_mut(self.current) {
                *slot = TimeSlot::EMPTY;
            }
        }
        // No request was made within the remembered time.
        self.since = now;
    }

    fn sum(&self, of: impl Fn(&TimeSlot) -> u64) -> u64 {
        self.slots.iter().map(of).sum()
    }

    /// Answers a second, in the current slot or the one before, whichever had more.
    fn rate(&self, now: Instant) -> f64 {
        let answers = |at: usize| self.slots.get(at).map_or(0.0, |slot| slot.answers as f64);
        let elapsed = (now - self.since).as_secs_f64().max(1.0);
        let before = answers((self.current + SLOTS - 1) % SLOTS) / SLOT.as_secs_f64();
        before.max(answers(self.current) / elapsed)
    }
}

/// The first bound that is not shorter.
fn bound_of(took: Duration) -> usize {
    let mut bound = GROWTH / 1000.0;
    for at in 0..BOUNDS {
        if took.as_secs_f64() <= bound {
            return at;
        }
        bound *= GROWTH;
    }
    BOUNDS - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn after(answers: u32, took: Duration, start: Instant) -> (Hedge, Instant) {
        let hedge = Hedge::new(1000);
        let mut now = start;
        for n in 0..answers {
            now += 5 * MS;
            hedge.answered(if n % 200 == 0 { 50 * took } else { took }, now);
        }
        (hedge, now)
    }

    #[test]
    fn a_request_is_slow_when_it_takes_longer_than_99_of_100() {
        let start = Instant::now();
        let (hedge, now) = after(99, 20 * MS, start);
        assert_eq!(hedge.delay(now), None, "too few to tell");
        let (hedge, now) = after(1000, 20 * MS, start);
        let delay = hedge.delay(now).unwrap();
        assert!((20 * MS..=23 * MS).contains(&delay), "{delay:?}");
        assert_eq!(hedge.delay(now + 2 * MINUTE), None, "long ago");
    }

    #[test]
    fn at_most_one_in_fifty_is_sent_twice() {
        let (hedge, now) = after(1000, 20 * MS, Instant::now());
        let twice = (0..100).filter(|_| hedge.may_send_twice(now)).count();
        assert_eq!(twice, 20);
    }

    #[test]
    fn none_is_sent_twice_within_a_minute_of_a_throttle_or_near_the_limit() {
        let (hedge, now) = after(1000, 20 * MS, Instant::now());
        hedge.throttled(now);
        assert!(!hedge.may_send_twice(now));
        for n in 0..200 {
            hedge.answered(20 * MS, now + MINUTE + n * 5 * MS);
        }
        assert!(hedge.may_send_twice(now + MINUTE + 1000 * MS));
        for n in 0..9500 {
            hedge.answered(20 * MS, now + MINUTE + 1000 * MS + n * MS);
        }
        assert!(!hedge.may_send_twice(now + MINUTE + 10_500 * MS));
    }
}
