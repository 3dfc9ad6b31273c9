//! One log line for each failure that readers got, not one for each read that failed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::warn;

use crate::error::Error;

/// A failure is logged again after this time.
const AGAIN: Duration = Duration::from_secs(10);
/// Different failures logged in that time.
const MOST: usize = 20;

/// The failures logged lately.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    recent: Mutex<VecDeque<(Instant, String)>>,
}

impl FailureLog {
    /// Logs the failure, unless it or too many others were logged lately.
    pub(super) fn write(&self, error: &Error) {
        let line = error.chain();
        if self.is_news(&line, Instant::now()) {
            warn!("{line}");
        }
    }

    fn is_news(&self, line: &str, now: Instant) -> bool {
        let mut recent = self.recent.lock();
        while recent.front().is_some_and(|(at, _)| now >= *at + AGAIN) {
            recent.pop_front();
        }
        let news = recent.len() < MOST && recent.iter().all(|(_, other)| other != line);
        if news {
            recent.push_back((now, line.to_owned()));
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_is_logged_once_and_many_are_cut_off() {
        let log = FailureLog::default();
        let now = Instant::now();
        assert!(log.is_news("a", now));
        assert!(log.is_news("b", now));
        assert!(!log.is_news("a", now + AGAIN / 2));
        assert!(log.is_news("a", now + AGAIN));
        let many = (0..100)
            .filter(|n| log.is_news(&n.to_string(), now + AGAIN))
            .count();
        assert_eq!(many, MOST - 1);
    }
}
