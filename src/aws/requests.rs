//! [`RequestCounts`]: requests to AWS by the IAM action that each needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::histogram::Histogram;

/// Counts of requests; clones count together. All clients of one command share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestCounts(Arc<Mutex<BTreeMap<&'static str, ActionCounts>>>);

/// Requests of one action since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ActionCounts {
    /// Requests sent, repeated ones included.
    pub(crate) sent: u64,
    /// Requests sent again after a failure.
    pub(crate) retries: u64,
    /// Requests sent a second time because the first was slow.
    pub(crate) hedges: u64,
    /// Requests that the service refused because there were too many.
    pub(crate) throttles: u64,
    /// How long the answers took that were no failures, from the request to the end of the body.
    pub(crate) answers: Histogram,
}

impl RequestCounts {
    /// The counts so far, by action: `ebs:GetSnapshotBlock`.
    pub(crate) fn by_action(&self) -> BTreeMap<&'static str, ActionCounts> {
        self.0.lock().clone()
    }

    /// A request is sent.
    pub(crate) fn send(&self, action: &'static str) -> SentRequest<'_> {
        self.change(action, |counts| counts.sent += 1);
        SentRequest {
            counts: self,
            action,
            since: Instant::now(),
        }
    }

    /// A request will be sent again.
    pub(crate) fn retry(&self, action: &'static str) {
        self.change(action, |counts| counts.retries += 1);
    }

    /// A request will be sent a second time.
    pub(crate) fn hedge(&self, action: &'static str) {
        self.change(action, |counts| counts.hedges += 1);
    }

    /// A request was refused because there were too many.
    pub(crate) fn throttle(&self, action: &'static str) {
        self.change(action, |counts| counts.throttles += 1);
    }

    fn change(&self, action: &'static str, change: impl FnOnce(&mut ActionCounts)) {
        change(self.0.lock().entry(action).or_default());
    }
}

/// A request whose answer has not come yet.
#[derive(Debug)]
pub(crate) struct SentRequest<'a> {
    counts: &'a RequestCounts,
    action: &'static str,
    since: Instant,
}

impl SentRequest<'_> {
    /// Its answer has come whole, and is no failure.
    pub(crate) fn answered(self) {
        let took = self.since.elapsed();
        let observe = |counts: &mut ActionCounts| counts.answers.observe(took);
        self.counts.change(self.action, observe);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_count_together_and_each_action_by_itself() {
        let counts = RequestCounts::default();
        let other = counts.clone();
        counts.send("a:B").answered();
        let _unanswered = other.send("a:B");
        other.retry("a:B");
        other.throttle("c:D");
        let found = counts.by_action();
        assert_eq!(found.len(), 2);
        let of = |action| found.get(action).copied().unwrap_or_default();
        assert_eq!((of("a:B").sent, of("a:B").retries), (2, 1));
        assert_eq!(of("a:B").answers.count(), 1);
        assert_eq!((of("c:D").sent, of("c:D").throttles), (0, 1));
    }
}
