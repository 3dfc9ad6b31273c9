//! When cycles are due. Due times depend on the clock and the job alone, so that two proxies, and a new one, name the same cycles.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Kind, Result};

/// The shortest interval: a cycle makes a snapshot of each volume.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest interval and the longest jitter: times stay where every clock can show them.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// How much the clocks of EC2 and of this machine may differ where a snapshot is made right at a due time.
const CLOCKS: Duration = Duration::from_secs(60);
/// A cycle that was missed for longer begins at the present time: EC2 makes snapshots only in the time of their cycle, a day.
const CAUGHT_UP: Duration = Duration::from_secs(20 * 3600);

/// When the cycles of a job are due.
#[derive(Clone)]
pub(crate) struct Schedule {
    rule: DueRule,
    /// How much later than the rule says, always the same for one job.
    jitter: Duration,
}

#[derive(Clone)]
enum DueRule {
    /// At whole multiples of this since 1970.
    Every(Duration),
    /// At the times of a cron pattern in a time zone.
    Cron(Box<Cron>, Tz),
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule({self})")
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            DueRule::Every(interval) => {
                write!(f, "every {}", humantime::format_duration(*interval))
            }
            DueRule::Cron(cron, zone) => write!(f, "{} ({zone})", cron.as_str()),
        }
    }
}

impl Schedule {
    /// A cycle each `interval`.
    ///
    /// # Errors
    /// `Invalid` when the interval is below a second or beyond a year.
    pub(crate) fn every(interval: Duration) -> Result<Self> {
        if !(SHORTEST..=LONGEST).contains(&interval) {
            return Err(invalid("an interval must be from 1s to 366days"));
        }
        Ok(Self {
            rule: DueRule::Every(interval),
            jitter: Duration::ZERO,
        })
    }

    /// A cycle at the times of a pattern of five fields, by the clock of a time zone.
    ///
    /// # Errors
    /// `Invalid` when it is no pattern, or never due.
    pub(crate) fn cron(pattern: &str, zone: Tz) -> Result<Self> {
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let cron = parser.parse(pattern);
        let cron = cron.map_err(|error| {
            let what = format!("{pattern:?} is no cron pattern of five fields");
            Error::with_source(Kind::Invalid, what, error)
        })?;
        let epoch = DateTime::<Utc>::from(SystemTime::UNIX_EPOCH).with_timezone(&zone);
        if cron.find_next_occurrence(&epoch, true).is_err() {
            return Err(invalid(&format!(
                "{pattern:?} names a time that never comes"
            )));
        }
        Ok(Self {
            rule: DueRule::Cron(Box::new(cron), zone),
            jitter: Duration::ZERO,
        })
    }

    /// The same, later by a part of `most` that depends on the name of the job alone.
    ///
    /// # Errors
    /// `Invalid` when `most` is longer than the interval.
    pub(crate) fn with_jitter(mut self, most: Duration, job: &str) -> Result<Self> {
        let limit = match &self.rule {
            DueRule::Every(interval) => *interval,
            DueRule::Cron(..) => LONGEST,
        };
        if most > limit {
            return Err(invalid("the jitter must not be longer than the interval"));
        }
        let digest = Sha256::digest(job);
        let first: [u8; 8] = digest.first_chunk().copied().unwrap_or_default();
        let share = u128::from(u64::from_be_bytes(first));
        let nanos = (most.as_nanos() * share) >> 64;
        // To the second: a cycle's time is easy to read.
        self.jitter = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        if self.jitter > SHORTEST {
            self.jitter = Duration::from_secs(self.jitter.as_secs());
        }
        Ok(self)
    }

    /// The last due time that is not after `now`.
    pub(crate) fn last_due(&self, now: SystemTime) -> Option<SystemTime> {
        let ruled = now.checked_sub(self.jitter)?;
        let due = match &self.rule {
            DueRule::Every(interval) => multiple(ruled, *interval)?,
            DueRule::Cron(cron, zone) => {
                let at = DateTime::<Utc>::from(ruled).with_timezone(zone);
                SystemTime::from(cron.find_previous_occurrence(&at, true).ok()?)
            }
        };
        due.checked_add(self.jitter)
    }

    /// The first due time after `now`.
    pub(crate) fn next_due(&self, now: SystemTime) -> Option<SystemTime> {
        let ruled = now.checked_sub(self.jitter)?;
        let due = match &self.rule {
            DueRule::Every(interval) => multiple(ruled, *interval)?.checked_add(*interval)?,
            DueRule::Cron(cron, zone) => {
                let at = DateTime::<Utc>::from(ruled).with_timezone(zone);
                SystemTime::from(cron.find_next_occurrence(&at, false).ok()?)
            }
        };
        due.checked_add(self.jitter)
    }

    /// When a recovery point of `time` is late: at the second due time after it. The copy of the first one has had a whole interval
    /// then.
    pub(crate) fn late_at(&self, time: SystemTime) -> Option<SystemTime> {
        let first = self.next_due(time)?;
        let interval = self.next_due(first)?.duration_since(first).ok()?;
        // EC2's clock may say that the snapshot of a cycle is from just before its due time.
        let skew = CLOCKS.min(interval / 2);
        let first = self.next_due(time.checked_add(skew)?)?;
        self.next_due(first)
    }
}

/// The last multiple of an interval since 1970 that is not after `time`.
fn multiple(time: SystemTime, interval: Duration) -> Option<SystemTime> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let rest = since.as_nanos() % interval.as_nanos();
    let rest = Duration::from_nanos(u64::try_from(rest).ok()?);
    time.checked_sub(rest)
}

fn invalid(what: &str) -> Error {
    Error::new(Kind::Invalid, what)
}

/// A time zone by its IANA name.
///
/// # Errors
/// `Invalid` when there is none of this name.
pub(crate) fn time_zone(name: &str) -> Result<Tz> {
    Tz::from_str(name).map_err(|_| {
        invalid(&format!(
            "{name:?} is no time zone: it must look like Europe/Berlin or UTC"
        ))
    })
}

/// The cycle to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DueCycle {
    /// Its time.
    pub(crate) time: SystemTime,
    /// Whether this machine has not started it before.
    pub(crate) is_new: bool,
}

/// What is known of the cycles that this machine has run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CycleHistory {
    /// The cycle that was started and does not have its snapshots yet.
    pub(crate) under_way: Option<SystemTime>,
    /// The last one that was started.
    pub(crate) last: Option<SystemTime>,
}

/// The cycle that a schedule wants now; none before the next one is due. Intervals that were missed are caught up by one cycle.
pub(crate) fn due_cycle(
    schedule: &Schedule,
    history: &CycleHistory,
    now: SystemTime,
) -> Option<DueCycle> {
    if let Some(unfinished) = unfinished(history, now) {
        return Some(unfinished);
    }
    let due = schedule.last_due(now)?;
    if history.last.is_some_and(|last| last >= due && last <= now) {
        return None;
    }
    Some(DueCycle {
        time: not_too_old(due, now),
        is_new: true,
    })
}

/// The cycle of a run that a person or another scheduler has started: the one without its snapshots, else a new one. On a machine
/// that knows of no cycle the time is that of the schedule, so that it adopts what another machine has started.
pub(crate) fn wanted_cycle(
    schedule: Option<&Schedule>,
    history: &CycleHistory,
    now: SystemTime,
) -> DueCycle {
    if let Some(unfinished) = unfinished(history, now) {
        return unfinished;
    }
    let due = schedule.filter(|_| history.last.is_none());
    let due = due.and_then(|schedule| schedule.last_due(now));
    DueCycle {
        time: due.map_or(now, |due| not_too_old(due, now)),
        is_new: true,
    }
}

/// The cycle without its snapshots. It is given up when none could be made in its name.
fn unfinished(history: &CycleHistory, now: SystemTime) -> Option<DueCycle> {
    let time = history.under_way?;
    (not_too_old(time, now) == time).then_some(DueCycle {
        time,
        is_new: false,
    })
}

fn not_too_old(due: SystemTime, now: SystemTime) -> SystemTime {
    match now.duration_since(due) {
        Ok(age) if age <= CAUGHT_UP => due,
        _ => now,
    }
}

#[cfg(test)]
mod tests;
