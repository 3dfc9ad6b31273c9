//! Sums of what the runs of a job did: of one run, and of a calendar month (pure).

use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::state::CycleRequests;
use crate::cost;
use crate::time::rfc3339_seconds;

/// What a run adds to the sums of its month.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RunTotals {
    /// Bytes fetched.
    pub(crate) bytes: u64,
    /// Requests to EBS.
    pub(crate) requests: CycleRequests,
    /// Whether it failed; none: it was stopped, and is no run of its own.
    pub(crate) is_failed: Option<bool>,
    /// Bytes fetched of each volume.
    pub(crate) volumes: Vec<(String, u64)>,
}

/// The sums of a calendar month, in UTC. A run that is killed adds nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MonthTotals {
    /// The month: `2026-06`.
    pub(crate) month: String,
    /// Cycles that ended.
    pub(crate) runs: u64,
    /// Those among them with a failure.
    pub(crate) failed: u64,
    /// Bytes fetched.
    pub(crate) bytes: u64,
    /// Requests to EBS.
    pub(crate) requests: CycleRequests,
}

impl MonthTotals {
    /// The month of a time, without a run.
    pub(crate) fn of(time: SystemTime) -> Self {
        let text = rfc3339_seconds(time);
        Self {
            month: text.get(..7).unwrap_or_default().to_owned(),
            ..Self::default()
        }
    }

    /// Adds a run.
    pub(super) fn add(&mut self, run: &RunTotals) {
        self.runs = self.runs.saturating_add(run.is_failed.map_or(0, |_| 1));
        let failed = u64::from(run.is_failed == Some(true));
        self.failed = self.failed.saturating_add(failed);
        self.bytes = self.bytes.saturating_add(run.bytes);
        self.requests = self.requests.and(run.requests);
    }
}

/// The requests that are in the sums already: cycles that overlap use one client, and each request counts once.
#[derive(Debug, Default)]
pub(super) struct RequestLedger(Mutex<CycleRequests>);

impl RequestLedger {
    /// What was added to `all` since the last call.
    pub(super) fn take(&self, all: CycleRequests) -> CycleRequests {
        let mut taken = self.0.lock();
        let more = all.since(*taken);
        *taken = all;
        more
    }
}

impl CycleRequests {
    /// These and others.
    #[must_use]
    pub(crate) fn and(self, more: Self) -> Self {
        Self {
            gets: self.gets.saturating_add(more.gets),
            puts: self.puts.saturating_add(more.puts),
            lists: self.lists.saturating_add(more.lists),
        }
    }

    /// What they cost, in dollars, by [`cost::PRICES`].
    pub(crate) fn dollars(self) -> f64 {
        cost::of_gets(self.gets) + cost::of_puts(self.puts) + cost::of_lists(self.lists)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_cycles_that_overlap_count_once() {
        let requests = |gets| CycleRequests {
            gets,
            puts: 2 * gets,
            lists: 3 * gets,
        };
        let ledger = RequestLedger::default();
        // A cycle that ends, a longer one that began before it, and one without a request.
        for (all, expected) in [(5, 5), (12, 7), (12, 0)] {
            assert_eq!(ledger.take(requests(all)), requests(expected));
        }
    }
}
