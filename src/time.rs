//! Times and durations as text, times as ISO 8601 in UTC for any [`SystemTime`]; pauses between attempts.

use std::time::{Duration, SystemTime};

/// 9999-12-31T23:59:59.999Z in milliseconds since 1970: the last instant that four digits of a year can write.
pub(crate) const LAST: Duration = Duration::from_millis(253_402_300_799_999);

/// `2026-06-30T12:00:00Z`. A time before 1970 or beyond the year 9999 is written as the nearest one between.
pub(crate) fn rfc3339_seconds(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(writable(time)).to_string()
}

/// `2026-06-30T12:00:00.000Z`, else like [`rfc3339_seconds`].
pub(crate) fn rfc3339_millis(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(writable(time)).to_string()
}

/// A duration for people: `300 ms`, `4 s`, `1.5 s`.
pub(crate) fn in_words(time: Duration) -> String {
    match (time.as_secs(), time.subsec_millis()) {
        (0, millis) => format!("{millis} ms"),
        (seconds, 0) => format!("{seconds} s"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

/// A random pause of a quarter of `step` to all of it: callers that failed together do not retry together, nor at once.
pub(crate) fn jittered(step: Duration) -> Duration {
    step.mul_f64(0.25 + 0.75 * fastrand::f64())
}

/// The formatter of `humantime` panics outside these years, and servers and filesystems can answer with any time.
fn writable(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    SystemTime::UNIX_EPOCH + since.unwrap_or_default().min(LAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_its_unit_and_no_more_digits_than_it_needs() {
        for (millis, words) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1000, "1 s"),
            (1500, "1.5 s"),
            (4003, "4.0 s"),
            (90_000, "90 s"),
        ] {
            assert_eq!(in_words(Duration::from_millis(millis)), words);
        }
    }

    #[test]
    fn a_pause_is_a_quarter_of_its_step_at_least_and_all_of_it_at_most() {
        let step = Duration::from_secs(4);
        let pauses: Vec<_> = (0..1000).map(|_| jittered(step)).collect();
        let (least, most) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
        assert!(*least >= step / 4 && *most <= step, "{least:?} {most:?}");
        assert!(*most - *least > step / 2, "{least:?} {most:?}");
        assert_eq!(jittered(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn a_time_that_has_no_four_digit_year_is_written_as_the_nearest_that_has() {
        let epoch = SystemTime::UNIX_EPOCH;
        let far = Duration::from_secs(1 << 53);
        for (time, written) in [
            (epoch, "1970-01-01T00:00:00.000Z"),
            (epoch - Duration::from_millis(1), "1970-01-01T00:00:00.000Z"),
            (epoch - far, "1970-01-01T00:00:00.000Z"),
            (
                epoch + Duration::from_millis(1_782_820_800_007),
                "2026-06-30T12:00:00.007Z",
            ),
            (epoch + LAST, "9999-12-31T23:59:59.999Z"),
            (
                epoch + LAST + Duration::from_millis(1),
                "9999-12-31T23:59:59.999Z",
            ),
            (epoch + far, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339_millis(time), written);
            assert_eq!(rfc3339_seconds(time), format!("{}Z", &written[..19]));
        }
    }
}
