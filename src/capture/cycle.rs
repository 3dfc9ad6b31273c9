//! [`Cycle`]: the job and the time that all snapshots of a cycle carry as a tag.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use crate::error::{Error, Kind};
use crate::time::{rfc3339_millis, rfc3339_seconds};

/// The tag of all snapshots of a cycle: `JOB/TIME`.
pub(crate) const CYCLE_TAG: &str = "ebsfs:cycle";

/// The most characters of a job's name.
const MOST_NAME: usize = 100;
/// How much earlier than the time of its cycle a snapshot may have started. The start is of EC2's clock, the cycle of this machine's,
/// which can be wrong: signatures are corrected by the service's time.
const EARLIER: Duration = Duration::from_secs(3600);
/// How much later: limits are waited out, and a missed cycle is caught up.
const LATER: Duration = Duration::from_secs(24 * 3600);

/// One cycle of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cycle {
    job: String,
    time: SystemTime,
}

impl Cycle {
    /// A cycle of a job, at this time to the millisecond.
    ///
    /// # Errors
    /// `Invalid` when `job` is no valid name of a job.
    pub(crate) fn new(job: &str, time: SystemTime) -> Result<Self, Error> {
        format!("{job}/{}", rfc3339_millis(time)).parse()
    }

    /// The job's name.
    pub(crate) fn job(&self) -> &str {
        &self.job
    }

    /// Its time.
    pub(crate) fn time(&self) -> SystemTime {
        self.time
    }

    /// Whether a snapshot that started then can be of this cycle: from an hour before its time until a day after.
    pub(crate) fn agrees_with(&self, start: SystemTime) -> bool {
        match start.duration_since(self.time) {
            Ok(later) => later <= LATER,
            Err(earlier) => earlier.duration() <= EARLIER,
        }
    }
}

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, exact) = (rfc3339_seconds(self.time), rfc3339_millis(self.time));
        let time = match exact.strip_suffix(".000Z") {
            Some(_) => whole,
            None => exact,
        };
        write!(f, "{}/{time}", self.job)
    }
}

impl FromStr for Cycle {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || {
            let what = format!(
                "{text:?} is no cycle: it must look like nightly/2026-06-30T12:00:00Z, a name of at most {MOST_NAME} letters, \
                 digits, dots, dashes and underscores, and a time in UTC"
            );
            Error::new(Kind::Invalid, what)
        };
        let (job, time) = text.split_once('/').ok_or_else(invalid)?;
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if job.is_empty() || job.len() > MOST_NAME || !job.bytes().all(is_plain) {
            return Err(invalid());
        }
        let exact = humantime::parse_rfc3339(time).map_err(|_| invalid())?;
        // To the millisecond, as it is written.
        let since = exact.duration_since(SystemTime::UNIX_EPOCH);
        let since = since.map_err(|_| invalid())?;
        let millis = u64::try_from(since.as_millis()).map_err(|_| invalid())?;
        Ok(Self {
            job: job.to_owned(),
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(millis),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_is_a_job_and_a_time_and_has_one_form() {
        for (text, written) in [
            ("nightly/2026-06-30T12:00:00Z", None),
            ("a.b-c_1/2026-06-30T12:00:00.250Z", None),
            (
                "nightly/2026-06-30T12:00:00.000Z",
                Some("nightly/2026-06-30T12:00:00Z"),
            ),
            (
                "nightly/2026-06-30T12:00:00.250999Z",
                Some("nightly/2026-06-30T12:00:00.250Z"),
            ),
        ] {
            let cycle: Cycle = text.parse().unwrap();
            assert_eq!(cycle.to_string(), written.unwrap_or(text));
            assert_eq!(cycle.to_string().parse::<Cycle>().unwrap(), cycle);
        }
        let long = format!("{}/2026-06-30T12:00:00Z", "a".repeat(101));
        for wrong in [
            "",
            "nightly",
            "nightly/",
            "nightly/now",
            "/2026-06-30T12:00:00Z",
            "a/b/2026-06-30T12:00:00Z",
            "a*/2026-06-30T12:00:00Z",
            "nightly/2026-06-30",
            "nightly/1969-06-30T12:00:00Z",
            &long,
        ] {
            assert_eq!(wrong.parse::<Cycle>().unwrap_err().kind(), Kind::Invalid);
        }
    }

    #[test]
    fn a_snapshot_is_of_a_cycle_from_an_hour_before_until_a_day_after() {
        let cycle: Cycle = "nightly/2026-06-30T12:00:00Z".parse().unwrap();
        for (time, agrees) in [
            ("2026-06-30T10:59:59Z", false),
            ("2026-06-30T11:00:00Z", true),
            ("2026-06-30T12:00:00Z", true),
            ("2026-07-01T12:00:00Z", true),
            ("2026-07-01T12:00:01Z", false),
            ("1970-01-01T00:00:00Z", false),
        ] {
            let time = humantime::parse_rfc3339(time).unwrap();
            assert_eq!(cycle.agrees_with(time), agrees, "{time:?}");
        }
    }
}
