//! [`ListGate`]: how fast and how many list requests at once, and how many blocks each may ask for.
//!
//! A full page is up to 2.5 MB: on a slow line eight of them in parallel starve each other. A reply that took longer than
//! [`SLOW`], or did not come, halves the requests in flight, and at one in flight the page; quick replies bring both back.
//! After a throttle the rate falls by a tenth and comes back slowly: other programs may use the account's quota.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{LEAST_RATE, Pace, RATE_BACK, RATE_LEFT};

/// List requests in flight, at most: a full page takes megabytes while it is parsed.
const MOST_SLOTS: f64 = 8.0;
/// Blocks of a page, at most (the API's own limit) and at least.
const MOST_BLOCKS: u16 = 10_000;
const LEAST_BLOCKS: u16 = 500;
/// A reply that took longer is a sign of a slow line; one that took less than a quarter shows a quick one.
const SLOW: Duration = Duration::from_secs(6);
/// Signs of a slow line within this time are one.
const ONE_SIGN: Duration = Duration::from_secs(1);

/// Holds list requests back until they may be sent.
#[derive(Clone, Debug)]
pub(super) struct ListGate {
    state: Arc<Mutex<GateState>>,
    freed: Arc<Notify>,
}

#[derive(Debug)]
struct GateState {
    pace: Pace,
    /// The share of the full rate in use.
    rate: f64,
    rated: Option<Instant>,
    /// List requests that may be in flight.
    slots: f64,
    in_flight: u32,
    /// Blocks that a request may ask for.
    page: u16,
    last_sign: Option<Instant>,
}

/// One list request in flight.
#[derive(Debug)]
pub(super) struct ListSlot {
    gate: ListGate,
    since: Instant,
    page: u16,
}

impl ListGate {
    /// A gate for this many requests a second.
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            state: Arc::new(Mutex::new(GateState {
                pace: Pace::new(per_second),
                rate: 1.0,
                rated: None,
                slots: MOST_SLOTS,
                in_flight: 0,
                page: MOST_BLOCKS,
                last_sign: None,
            })),
            freed: Arc::default(),
        }
    }

    /// Waits for a slot and for the turn of one list request.
    pub(super) async fn enter(&self) -> ListSlot {
        let (mut slot, turn) = loop {
            let freed = self.freed.notified();
            if let Some(entered) = self.try_enter(Instant::now()) {
                break entered;
            }
            freed.await;
        };
        sleep_until(turn).await;
        slot.since = Instant::now();
        slot
    }

    fn try_enter(&self, now: Instant) -> Option<(ListSlot, Instant)> {
        let mut state = self.state.lock();
        if f64::from(state.in_flight) + 1.0 > state.slots.max(1.0) {
            return None;
        }
        state.in_flight += 1;
        if f64::from(state.in_flight) + 1.0 <= state.slots {
            // Two slots that were freed at once woke one waiter.
            self.freed.notify_one();
        }
        if let Some(last) = state.rated {
            state.rate = (state.rate + RATE_BACK * (now - last).as_secs_f64()).min(1.0);
        }
        state.rated = Some(now);
        let turn = state.pace.turn(now).max(now);
        let rate = state.rate;
        state.pace.take(turn, rate);
        let slot = ListSlot {
            gate: self.clone(),
            since: turn,
            page: state.page,
        };
        Some((slot, turn))
    }

    /// The service refused a list request because there were too many.
    pub(super) fn throttled(&self, now: Instant) {
        let mut state = self.state.lock();
        if state.is_new_sign(now) {
            state.rate = (state.rate * RATE_LEFT).max(LEAST_RATE);
        }
    }

    /// A reply did not come, or not whole, or slowly.
    pub(super) fn slow(&self, now: Instant) {
        let mut state = self.state.lock();
        if !state.is_new_sign(now) {
            return;
        }
        if state.slots > 1.0 {
            state.slots = (state.slots / 2.0).max(1.0);
        } else {
            state.page = (state.page / 2).max(LEAST_BLOCKS);
        }
    }

    fn quick(&self) {
        let mut state = self.state.lock();
        if state.page < MOST_BLOCKS {
            state.page = state.page.saturating_mul(2).min(MOST_BLOCKS);
        } else if state.slots < MOST_SLOTS {
            state.slots = (state.slots + 1.0 / state.slots).min(MOST_SLOTS);
            drop(state);
            self.freed.notify_one();
        }
    }
}

impl GateState {
    fn is_new_sign(&mut self, now: Instant) -> bool {
        let is_new = self.last_sign.is_none_or(|last| now >= last + ONE_SIGN);
        if is_new {
            self.last_sign = Some(now);
        }
        is_new
    }
}

impl ListSlot {
    /// Blocks to ask for, where `wanted` are wanted.
    pub(super) fn page(&self, wanted: u16) -> u16 {
        wanted.min(self.page)
    }

    /// The whole reply has come.
    pub(super) fn answered(&self, now: Instant) {
        let took = now - self.since;
        if took > SLOW {
            self.gate.slow(now);
        } else if took < SLOW / 4 {
            self.gate.quick();
        }
    }
}

impl Drop for ListSlot {
    fn drop(&mut self) {
        self.gate.state.lock().in_flight -= 1;
        self.gate.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn after(gate: &ListGate, took: Duration) -> u16 {
        let slot = gate.enter().await;
        tokio::time::advance(took).await;
        slot.answered(Instant::now());
        slot.page(10_000)
    }

    #[tokio::test(start_paused = true)]
    async fn slow_replies_leave_one_request_and_then_small_pages_and_quick_ones_bring_both_back() {
        let gate = ListGate::new(1000);
        for _ in 0..3 {
            assert_eq!(after(&gate, 2 * SLOW).await, 10_000);
        }
        let alone = gate.enter().await;
        assert!(gate.try_enter(Instant::now()).is_none());
        drop(alone);
        let pages: Vec<u16> = [
            after(&gate, 2 * SLOW).await,
            after(&gate, 2 * SLOW).await,
            after(&gate, 2 * SLOW).await,
        ]
        .into();
        assert_eq!(pages, [10_000, 5_000, 2_500]);
        for _ in 0..100 {
            after(&gate, SLOW / 10).await;
        }
        let slots: Vec<_> = (0..9)
            .map_while(|_| gate.try_enter(Instant::now()))
            .collect();
        assert_eq!(slots.len(), 8);
        assert_eq!(slots[0].0.page(10_000), 10_000);
        assert_eq!(slots[0].0.page(100), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttle_lowers_the_rate_for_a_while() {
        let gate = ListGate::new(50);
        let mut took = Vec::new();
        for round in 0..3 {
            let start = Instant::now();
            for _ in 0..100 {
                drop(gate.enter().await);
            }
            took.push(start.elapsed().as_secs_f64());
            if round == 0 {
                for _ in 0..5 {
                    tokio::time::advance(ONE_SIGN).await;
                    gate.throttled(Instant::now());
                }
            }
        }
        assert!(took[0] > 1.9 && took[0] < 2.1, "{took:?}");
        assert!(took[1] > 2.5, "{took:?}");
        assert!(took[2] < took[1], "{took:?}");
    }
}
