//! Limits of the requests to the service: requests in flight, requests a second, seconds a block.
//!
//! Requests in flight follow the service: from [`FIRST`] they double with each round trip while half of them are in use, and
//! from the first sign of congestion on they grow by one a round trip. Signs of congestion are a throttle, no whole answer, and
//! a block that took longer than [`SLOW`], which is a link with a queue: places go down by a fifth. After a throttle the rate
//! goes down too, by a tenth, and comes back slowly: others may use the account's quota.
//!
//! Requests of waiting readers go before readahead, in both queues.

mod lists;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use self::lists::{ListGate, ListSlot};
use crate::error::{Error, Kind, Result};
use crate::snapshot::SnapshotId;
use crate::source::Wanted;

/// The share of a quota that is used: the service's clock and ours do not cut seconds alike.
const BELOW_QUOTA: f64 = 0.985;
/// Places at the start.
const FIRST: f64 = 16.0;
/// The least places and the least share of the rate that congestion leaves.
const LEAST: f64 = 4.0;
const LEAST_RATE: f64 = 0.05;
/// The factor of the places at a sign of congestion, and of the rate at a throttle.
const PLACES_LEFT: f64 = 0.8;
const RATE_LEFT: f64 = 0.9;
/// Signs of congestion within this time are one.
const ONE_SIGN: Duration = Duration::from_millis(100);
/// The share of the full rate that comes back in a second.
const RATE_BACK: f64 = 0.02;
/// A block that takes longer has waited in a queue: of the link, or of the service. Answers take 10 to 100 ms.
const SLOW: Duration = Duration::from_secs(1);

/// What a person can set.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests in flight at once.
    pub max_in_flight: u32,
    /// GetSnapshotBlock requests a second; the quota of an account is 1,000, adjustable.
    pub max_rps: u32,
    /// The same for one snapshot; its quota is 1,000, not adjustable.
    pub max_snapshot_rps: u32,
    /// List requests a second. An account has 50 for all its programs together, not adjustable:
    /// <https://docs.aws.amazon.com/ebs/latest/userguide/ebs-resource-quotas.html>.
    pub max_list_rps: u32,
    /// Whether a slow GetSnapshotBlock is sent a second time.
    pub hedge: bool,
    /// How long a block may take, all its attempts together.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_in_flight: 128,
            max_rps: 1000,
            max_snapshot_rps: 1000,
            max_list_rps: 49,
            hedge: false,
            timeout: Duration::from_secs(90),
        }
    }
}

impl Limits {
    /// The share of one of `parts` programs of an account: of what all of them may request a second. A snapshot is read by one
    /// program, so its limit is not divided.
    #[must_use]
    pub(crate) fn divided(self, parts: u32) -> Self {
        let share = |limit: u32| (limit / parts.max(1)).max(1);
        Self {
            max_rps: share(self.max_rps),
            max_list_rps: share(self.max_list_rps),
            ..self
        }
    }
}

/// Holds requests back until the limits allow them.
#[derive(Debug)]
pub(super) struct Limiter {
    gate: Shared,
    lists: ListGate,
}

type Shared = Arc<Mutex<Gate>>;

impl Limiter {
    pub(super) fn new(limits: &Limits) -> Self {
        let max = f64::from(limits.max_in_flight.max(1));
        let gate = Gate {
            max,
            places: FIRST.min(max),
            taken: 0,
            doubling: true,
            rate: 1.0,
            last_sign: None,
            rated: None,
            account: Pace::new(limits.max_rps),
            snapshots: HashMap::new(),
            snapshot_rps: limits.max_snapshot_rps,
            waiting: VecDeque::new(),
            awaited: None,
        };
        Self {
            gate: Arc::new(Mutex::new(gate)),
            lists: ListGate::new(limits.max_list_rps),
        }
    }

    /// Changes how many block requests may be sent a second.
    pub(super) fn set_max_rps(&self, max_rps: u32) {
        self.gate.lock().account.set(max_rps);
        let_requests_go(&self.gate);
    }

    /// Waits for a place and for the turn of one GetSnapshotBlock or PutSnapshotBlock: their quotas are alike, and a client
    /// does one of the two at a time.
    pub(super) async fn block(
        &self,
        snapshot: &SnapshotId,
        wanted: &Wanted,
    ) -> Result<RequestSlot> {
        self.place(Some(snapshot.clone()), wanted.clone()).await
    }

    /// Waits for a place and for the turn of one list request.
    pub(super) async fn list(&self) -> Result<ListPermit> {
        let slot = self.lists.enter().await;
        let place = self.place(None, Wanted::already()).await?;
        Ok(ListPermit {
            slot,
            _place: place,
        })
    }

    /// A list request was refused because there were too many.
    pub(super) fn list_throttled(&self) {
        self.lists.throttled(Instant::now());
    }

    /// A list request was not answered, or not whole.
    pub(super) fn list_unanswered(&self) {
        self.lists.slow(Instant::now());
    }

    /// A request was refused because there were too many.
    pub(super) fn throttled(&self) {
        let now = Instant::now();
        let mut gate = self.gate.lock();
        if gate.too_much(now) {
            gate.rate = (gate.rate * RATE_LEFT).max(LEAST_RATE);
        }
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> u32 {
        self.gate.lock().taken
    }

    /// A request was not answered, or not whole.
    pub(super) fn unanswered(&self) {
        self.gate.lock().too_much(Instant::now());
    }

    async fn place(&self, snapshot: Option<SnapshotId>, wanted: Wanted) -> Result<RequestSlot> {
        let (grant, granted) = oneshot::channel();
        self.gate.lock().waiting.push_back(QueuedRequest {
            snapshot,
            wanted,
            go: grant,
        });
        let_requests_go(&self.gate);
        granted.await.map_err(|_| closed())
    }
}

fn closed() -> Error {
    Error::new(Kind::Unavailable, "shutting down")
}

/// One list request that may be sent; dropping it makes room for the next one.
#[derive(Debug)]
pub(super) struct ListPermit {
    slot: ListSlot,
    _place: RequestSlot,
}

impl ListPermit {
    /// Blocks to ask for, where `wanted` are wanted: fewer on a slow line.
    pub(super) fn page(&self, wanted: u16) -> u16 {
        self.slot.page(wanted)
    }

    /// The whole reply has come.
    pub(super) fn answered(&self) {
        self.slot.answered(Instant::now());
    }
}

/// The place of one request, given back when it is dropped.
#[derive(Debug)]
pub(super) struct RequestSlot {
    gate: Shared,
    since: Instant,
}

impl RequestSlot {
    /// Returns the place after a good answer, and records how long that took.
    pub(super) fn served(self) -> Duration {
        let now = Instant::now();
        let took = now - self.since;
        let mut gate = self.gate.lock();
        if took > SLOW {
            gate.too_much(now);
        } else if 2.0 * f64::from(gate.taken) >= gate.places {
            let more = if gate.doubling {
                1.0
            } else {
                1.0 / gate.places
            };
            gate.places = (gate.places + more).min(gate.max);
        }
        took
    }
}

impl Drop for RequestSlot {
    fn drop(&mut self) {
        self.gate.lock().taken -= 1;
        let_requests_go(&self.gate);
    }
}

#[derive(Debug)]
struct Gate {
    max: f64,
    /// How many may be in flight now.
    places: f64,
    taken: u32,
    doubling: bool,
    /// The share of the full rate that is used now.
    rate: f64,
    rated: Option<Instant>,
    last_sign: Option<Instant>,
    account: Pace,
    snapshots: HashMap<SnapshotId, Pace>,
    snapshot_rps: u32,
    waiting: VecDeque<QueuedRequest>,
    /// When a task will check again.
    awaited: Option<Instant>,
}

#[derive(Debug)]
struct QueuedRequest {
    /// The snapshot of a GetSnapshotBlock; a list call has its own pace.
    snapshot: Option<SnapshotId>,
    wanted: Wanted,
    go: oneshot::Sender<RequestSlot>,
}

impl Gate {
    /// Records a sign of congestion; false when it belongs to the last one.
    fn too_much(&mut self, now: Instant) -> bool {
        if self.last_sign.is_some_and(|last| now < last + ONE_SIGN) {
            return false;
        }
        self.last_sign = Some(now);
        self.doubling = false;
        let in_use = self.places.min(f64::from(self.taken) + 1.0);
        self.places = (in_use * PLACES_LEFT).max(LEAST.min(self.max));
        true
    }

    /// When a waiting request may go, by its paces.
    fn turn(&self, waiting: &QueuedRequest, now: Instant) -> Instant {
        let Some(snapshot) = &waiting.snapshot else {
            return now;
        };
        let account = self.account.turn(now);
        match self.snapshots.get(snapshot) {
            Some(pace) => account.max(pace.turn(now)),
            None => account,
        }
    }

    /// The next request to go, or when to check again.
    fn next(
        &mut self,
        now: Instant,
    ) -> std::result::Result<oneshot::Sender<RequestSlot>, Option<Instant>> {
        // A dropped waiter takes no turn.
        self.waiting.retain(|waiting| !waiting.go.is_closed());
        if f64::from(self.taken) + 1.0 > self.places.max(1.0) {
            // The guard that returns a place calls this again.
            return Err(None);
        }
        let mut earliest = None;
        let mut found = None;
        for (at, waiting) in self.waiting.iter().enumerate() {
            let turn = self.turn(waiting, now);
            if turn > now {
                earliest = Some(earliest.map_or(turn, |earliest: Instant| earliest.min(turn)));
            } else if waiting.wanted.is_wanted() {
                found = Some(at);
                break;
            } else {
                found = found.or(Some(at));
            }
        }
        let next = found
            .and_then(|at| self.waiting.remove(at))
            .ok_or(earliest)?;
        if let Some(snapshot) = next.snapshot {
            if let Some(last) = self.rated {
                self.rate = (self.rate + RATE_BACK * (now - last).as_secs_f64()).min(1.0);
            }
            self.rated = Some(now);
            self.account.take(now, self.rate);
            let pace = self.snapshots.entry(snapshot);
            let pace = pace.or_insert_with(|| Pace::new(self.snapshot_rps));
            pace.take(now, self.rate);
        }
        self.taken += 1;
        Ok(next.go)
    }
}

/// Releases every request that may go, and schedules the next check for when another one may.
fn let_requests_go(gate: &Shared) {
    let turn = loop {
        let now = Instant::now();
        let go = {
            let mut gate = gate.lock();
            match gate.next(now) {
                Ok(go) => go,
                Err(earliest) => {
                    let Some(turn) = earliest else { return };
                    if gate.awaited.is_some_and(|awaited| awaited <= turn) {
                        return;
                    }
                    gate.awaited = Some(turn);
                    break turn;
                }
            }
        };
        let place = RequestSlot {
            gate: Arc::clone(gate),
            since: now,
        };
        // The waiter may have given up: dropping the place returns it, and that calls this again.
        if go.send(place).is_err() {
            return;
        }
    };
    let gate = Arc::clone(gate);
    tokio::spawn(async move {
        sleep_until(turn).await;
        {
            let mut gate = gate.lock();
            // An earlier turn was scheduled since: its own task calls this again.
            if gate.awaited != Some(turn) {
                return;
            }
            gate.awaited = None;
        }
        let_requests_go(&gate);
    });
}

/// Turns at an even pace. What was not used is lost but for [`Pace::BURST`].
#[derive(Debug)]
struct Pace {
    interval: Duration,
    next: Option<Instant>,
}

impl Pace {
    const BURST: Duration = Duration::from_millis(50);

    fn new(per_second: u32) -> Self {
        Self {
            interval: Duration::from_secs(1).div_f64(f64::from(per_second.max(1)) * BELOW_QUOTA),
            next: None,
        }
    }

    /// Changes the pace. A turn that was given out stays.
    fn set(&mut self, per_second: u32) {
        self.interval = Self::new(per_second).interval;
    }

    /// When the next may go; not after `now` when it may now.
    fn turn(&self, now: Instant) -> Instant {
        self.next.unwrap_or(now)
    }

    /// One goes, at this share of the pace.
    fn take(&mut self, now: Instant, share: f64) {
        let earliest = now.checked_sub(Self::BURST).unwrap_or(now);
        let turn = self.next.map_or(now, |next| next.max(earliest));
        self.next = Some(turn + self.interval.div_f64(share));
    }
}

#[cfg(test)]
mod tests;
