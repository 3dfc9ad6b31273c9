//! [`Rates`]: how many bytes a second a job may move, by the time of day in its time zone.

use std::time::SystemTime;

use chrono::{DateTime, NaiveTime, Utc};
use chrono_tz::Tz;

/// A part of each day with a rate of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RateWindow {
    /// When it begins.
    pub(crate) from: NaiveTime,
    /// When it ends, the next day if that is not after its begin.
    pub(crate) to: NaiveTime,
    /// Bytes a second.
    pub(crate) rate: u64,
}

impl RateWindow {
    fn contains(&self, time: NaiveTime) -> bool {
        match self.from < self.to {
            true => (self.from..self.to).contains(&time),
            false => time >= self.from || time < self.to,
        }
    }
}

/// The rates of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rates {
    /// Bytes a second outside all windows; none: unlimited.
    pub(crate) usual: Option<u64>,
    /// Windows; where several overlap the least rate counts.
    pub(crate) windows: Vec<RateWindow>,
    /// Whose clock the windows are of.
    pub(crate) zone: Tz,
}

impl Rates {
    /// No limit at any time.
    pub(crate) fn unlimited() -> Self {
        Self {
            usual: None,
            windows: Vec::new(),
            zone: Tz::UTC,
        }
    }

    /// Bytes a second at this time; none: unlimited.
    pub(crate) fn at(&self, now: SystemTime) -> Option<u64> {
        let time = DateTime::<Utc>::from(now).with_timezone(&self.zone).time();
        let open = self.windows.iter().filter(|window| window.contains(time));
        open.map(|window| window.rate).min().or(self.usual)
    }

    /// The share of one of so many.
    #[must_use]
    pub(super) fn divided(&self, parts: u32) -> Self {
        let share = |rate: u64| rate / u64::from(parts.max(1));
        let windows = self.windows.iter().map(|window| RateWindow {
            rate: share(window.rate),
            ..*window
        });
        Self {
            usual: self.usual.map(share),
            windows: windows.collect(),
            zone: self.zone,
        }
    }

    /// The least of all rates: what is in flight must be done in time at this one too.
    pub(crate) fn least(&self) -> Option<u64> {
        let windows = self.windows.iter().map(|window| window.rate);
        windows.chain(self.usual).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(from: &str, to: &str, rate: u64) -> RateWindow {
        RateWindow {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            rate,
        }
    }

    #[test]
    fn the_least_rate_of_the_open_windows_counts_by_the_clock_of_the_time_zone() {
        let rates = Rates {
            usual: Some(100),
            windows: vec![
                window("08:00:00", "18:00:00", 50),
                window("12:00:00", "13:00:00", 20),
                window("22:00:00", "02:00:00", 70),
            ],
            zone: "Europe/Berlin".parse().unwrap(),
        };
        // Berlin is two hours ahead in summer and one in winter.
        for (time, rate) in [
            ("2026-06-30T05:59:59Z", 100),
            ("2026-06-30T06:00:00Z", 50),
            ("2026-06-30T10:30:00Z", 20),
            ("2026-06-30T15:59:59Z", 50),
            ("2026-06-30T16:00:00Z", 100),
            ("2026-06-30T20:00:00Z", 70),
            ("2026-06-30T23:59:59Z", 70),
            ("2026-07-01T00:00:00Z", 100),
            ("2026-01-15T06:30:00Z", 100),
            ("2026-01-15T07:00:00Z", 50),
        ] {
            let now = humantime::parse_rfc3339(time).unwrap();
            assert_eq!(rates.at(now), Some(rate), "{time}");
        }
        assert_eq!(rates.least(), Some(20));
        assert_eq!(Rates::unlimited().at(SystemTime::now()), None);
        assert_eq!(Rates::unlimited().least(), None);
    }
}
