//! How much is asked of the service at once: requests in flight, requests a second, seconds a block.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until};

use crate::error::{Error, Kind, Result};

/// List calls a second that an account has for all its programs together, not adjustable; one less than that.
///
/// <https://docs.aws.amazon.com/ebs/latest/userguide/ebs-resource-quotas.html>
const LISTS_PER_SECOND: u32 = 49;
/// List calls on their way at once.
const LISTINGS: usize = 8;

/// What a person can set.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests on their way at once.
    pub max_in_flight: u32,
    /// GetSnapshotBlock requests a second; the quota of a snapshot and of an account is 1,000.
    pub max_rps: u32,
    /// How long a block may take, all its attempts together.
    pub timeout: Duration,
}

/// Holds requests back until the limits allow them.
#[derive(Debug)]
pub(super) struct Limiter {
    in_flight: Semaphore,
    /// A large page takes megabytes while it is decoded.
    listings: Semaphore,
    gets: Pace,
    lists: Pace,
}

impl Limiter {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            in_flight: Semaphore::new(limits.max_in_flight.max(1) as usize),
            listings: Semaphore::new(LISTINGS),
            gets: Pace::new(limits.max_rps),
            lists: Pace::new(LISTS_PER_SECOND),
        }
    }

    /// Waits for a place and for the turn of one GetSnapshotBlock.
    pub(super) async fn get(&self) -> Result<SemaphorePermit<'_>> {
        let place = place(&self.in_flight).await?;
        self.gets.turn().await;
        Ok(place)
    }

    /// Waits for a place and for the turn of one list call.
    pub(super) async fn list(&self) -> Result<(SemaphorePermit<'_>, SemaphorePermit<'_>)> {
        let listing = place(&self.listings).await?;
        let place = place(&self.in_flight).await?;
        self.lists.turn().await;
        Ok((listing, place))
    }
}

async fn place(places: &Semaphore) -> Result<SemaphorePermit<'_>> {
    let place = places.acquire().await;
    place.map_err(|_| Error::new(Kind::Unavailable, "shutting down"))
}

/// Turns at an even pace. What was not used is lost but for a twentieth of a second.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    const BURST: Duration = Duration::from_millis(50);

    fn new(per_second: u32) -> Self {
        Self {
            interval: Duration::from_secs(1) / per_second.max(1),
            next: Mutex::new(None),
        }
    }

    async fn turn(&self) {
        let now = Instant::now();
        let turn = {
            let mut next = self.next.lock();
            let earliest = now.checked_sub(Self::BURST).unwrap_or(now);
            let turn = next.map_or(now, |next| next.max(earliest));
            *next = Some(turn + self.interval);
            turn
        };
        if turn > now {
            sleep_until(turn).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_a_second_are_kept_to_and_idle_time_is_not_saved_up() {
        let limits = Limits {
            max_in_flight: 8,
            max_rps: 200,
            timeout: Duration::from_secs(90),
        };
        let limiter = Limiter::new(&limits);
        drop(limiter.get().await.unwrap());
        tokio::time::sleep(Duration::from_millis(300)).await;
        let start = Instant::now();
        for _ in 0..50 {
            drop(limiter.get().await.unwrap());
        }
        // 50 at 200 a second, less the burst of 50 ms that idling leaves.
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(190), "{took:?}");
    }

    #[tokio::test]
    async fn requests_in_flight_are_kept_to() {
        let limits = Limits {
            max_in_flight: 2,
            max_rps: 1_000_000,
            timeout: Duration::from_secs(90),
        };
        let limiter = Limiter::new(&limits);
        let (_one, _two) = (limiter.get().await.unwrap(), limiter.list().await.unwrap());
        let third = tokio::time::timeout(Duration::from_millis(20), limiter.get()).await;
        assert!(third.is_err());
    }
}
