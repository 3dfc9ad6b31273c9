//! [`Period`]: hours, days, weeks, months and years of UTC.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::time::rfc3339_seconds;

const DAY: u64 = 86_400;

/// A part of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Period {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A week of ISO 8601, which begins on Monday.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hour => "hourly",
            Self::Day => "daily",
            Self::Week => "weekly",
            Self::Month => "monthly",
            Self::Year => "yearly",
        })
    }
}

impl Period {
    /// The name of the period that a time is in: `2026-06-30T12`, `2026-06-30`, `2026-W27`, `2026-06`, `2026`.
    pub(super) fn name_of(self, time: SystemTime) -> String {
        let length = match self {
            Self::Week => return week(time),
            Self::Hour => "2026-06-30T12".len(),
            Self::Day => "2026-06-30".len(),
            Self::Month => "2026-06".len(),
            Self::Year => "2026".len(),
        };
        let mut text = rfc3339_seconds(time);
        text.truncate(length);
        text
    }
}

/// The week that a time is in: of the year that its Thursday is in.
fn week(time: SystemTime) -> String {
    let epoch = SystemTime::UNIX_EPOCH;
    let days = time.duration_since(epoch).unwrap_or_default().as_secs() / DAY;
    // 1970-01-01 was a Thursday: three days after the Monday of its week.
    let thursday = (days + 3) / 7 * 7;
    let text = rfc3339_seconds(epoch + Duration::from_secs(thursday * DAY));
    let year = text.get(..4).unwrap_or_default();
    let first = humantime::parse_rfc3339(&format!("{year}-01-01T00:00:00Z")).unwrap_or(epoch);
    let first = first.duration_since(epoch).unwrap_or_default().as_secs() / DAY;
    let number = thursday.saturating_sub(first) / 7 + 1;
    format!("{year}-W{number:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_week_is_of_the_year_of_its_thursday() {
        // By `date +%G-W%V`.
        for (day, week) in [
            ("1970-01-01", "1970-W01"),
            ("2020-12-31", "2020-W53"),
            ("2021-01-03", "2020-W53"),
            ("2021-01-04", "2021-W01"),
            ("2024-12-30", "2025-W01"),
            ("2024-02-29", "2024-W09"),
            ("2026-06-30", "2026-W27"),
            ("2027-01-01", "2026-W53"),
        ] {
            for clock in ["00:00:00", "23:59:59"] {
                let time = humantime::parse_rfc3339(&format!("{day}T{clock}Z")).unwrap();
                assert_eq!(Period::Week.name_of(time), week, "{day} {clock}");
            }
        }
        let time = humantime::parse_rfc3339("2026-06-30T12:59:59Z").unwrap();
        let names = [Period::Hour, Period::Day, Period::Month, Period::Year];
        assert_eq!(
            names.map(|period| period.name_of(time)),
            ["2026-06-30T12", "2026-06-30", "2026-06", "2026"]
        );
    }
}
