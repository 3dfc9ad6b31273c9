//! `drill` of a job file: a time such as `"weekly"`, or a table.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use chrono_tz::Tz;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::{FromText, TextValue, invalid};
use crate::error::{Error, Result};
use crate::replicate::job::{DrillBoot, JobDrill};
use crate::replicate::schedule::Schedule;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The first of each month, and the part of a month that is in all months.
const MONTHLY: &str = "0 0 1 * *";
const MONTH: Duration = Duration::from_secs(27 * 24 * 3600);

/// How often drills are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DrillEvery {
    Monthly,
    Interval(Duration),
}

/// What `drill` says.
#[derive(Debug)]
pub(super) enum DrillValue {
    /// When alone.
    Due(DrillDue),
    Table(Box<DrillTable>),
}

/// When drills are due.
#[derive(Debug)]
pub(super) enum DrillDue {
    Every(DrillEvery),
    Cron(String),
}

/// `[drill]`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DrillTable {
    every: Option<TextValue<DrillEvery>>,
    cron: Option<String>,
    target: Option<String>,
    #[serde(default)]
    boot: bool,
    wait_for: Option<String>,
    boot_timeout: Option<TextValue<Duration>>,
    memory: Option<TextValue<ByteSize>>,
    scratch: Option<PathBuf>,
    overlay_limit: Option<TextValue<ByteSize>>,
    #[serde(default)]
    replay_xfs: bool,
}

impl FromText for DrillEvery {
    fn from_text(text: &str) -> std::result::Result<Self, String> {
        let interval = match text {
            "daily" => DAY,
            "weekly" => 7 * DAY,
            "monthly" => return Ok(Self::Monthly),
            _ => humantime::parse_duration(text).map_err(|_| {
                format!("{text:?} is no time such as daily, weekly, monthly or 10days")
            })?,
        };
        Ok(Self::Interval(interval))
    }
}

impl FromText for DrillDue {
    fn from_text(text: &str) -> std::result::Result<Self, String> {
        let has_five_fields = text.split_whitespace().count() == 5;
        match DrillEvery::from_text(text) {
            Ok(every) => Ok(Self::Every(every)),
            Err(_) if has_five_fields => Ok(Self::Cron(text.to_owned())),
            Err(why) => Err(why),
        }
    }
}

impl<'de> Deserialize<'de> for DrillValue {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct DrillVisitor;

        impl<'de> Visitor<'de> for DrillVisitor {
            type Value = DrillValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time such as \"weekly\", or a table")
            }

            fn visit_str<E: serde::de::Error>(
                self,
                text: &str,
            ) -> std::result::Result<DrillValue, E> {
                DrillDue::from_text(text)
                    .map(DrillValue::Due)
                    .map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                map: A,
            ) -> std::result::Result<DrillValue, A::Error> {
                // Its errors have their lines.
                DrillTable::deserialize(MapAccessDeserializer::new(map))
                    .map(|table| DrillValue::Table(Box::new(table)))
            }
        }

        from.deserialize_any(DrillVisitor)
    }
}

impl DrillValue {
    /// Whether its times are by the clock of a time zone.
    pub(super) fn needs_zone(&self) -> bool {
        let is_monthly = |every: &DrillEvery| *every == DrillEvery::Monthly;
        match self {
            Self::Due(DrillDue::Cron(_)) => true,
            Self::Due(DrillDue::Every(every)) => is_monthly(every),
            Self::Table(table) => {
                let every = table.every.as_ref();
                table.cron.is_some() || every.is_some_and(|every| is_monthly(&every.0))
            }
        }
    }

    /// The drill of a job of this name.
    pub(super) fn drill(self, job: &str, zone: Tz) -> Result<JobDrill> {
        let table = match self {
            Self::Due(due) => {
                return Ok(JobDrill {
                    schedule: due.schedule(job, zone)?,
                    target: None,
                    boot: None,
                    scratch: None,
                    overlay_limit: None,
                    replays_xfs: false,
                });
            }
            Self::Table(table) => *table,
        };
        let due = match (table.every, table.cron) {
            (Some(every), None) => DrillDue::Every(every.0),
            (None, Some(cron)) => DrillDue::Cron(cron),
            (Some(_), Some(_)) => {
                return Err(invalid("every and cron of drill exclude each other"));
            }
            (None, None) => return Err(invalid("drill needs every or cron")),
        };
        for (key, is_given) in [
            ("wait_for", table.wait_for.is_some()),
            ("boot_timeout", table.boot_timeout.is_some()),
            ("memory", table.memory.is_some()),
        ] {
            if is_given && !table.boot {
                return Err(invalid(&format!("{key} of drill is for boot = true")));
            }
        }
        Ok(JobDrill {
            schedule: due.schedule(job, zone)?,
            target: table.target,
            boot: table.boot.then(|| DrillBoot {
                wait_for: table.wait_for,
                timeout: table.boot_timeout.map(|time| time.0),
                memory: table.memory.map(|size| size.0.as_u64()),
            }),
            scratch: table.scratch,
            overlay_limit: table.overlay_limit.map(|size| size.0.as_u64()),
            replays_xfs: table.replay_xfs,
        })
    }
}

impl DrillDue {
    /// Intervals of an hour and more are shifted by a part of their length that depends on the name of the job alone: the drills of
    /// many jobs do not begin at once.
    fn schedule(self, job: &str, zone: Tz) -> Result<Schedule> {
        let schedule = match self {
            Self::Cron(pattern) => Schedule::cron(&pattern, zone),
            Self::Every(DrillEvery::Monthly) => {
                Schedule::cron(MONTHLY, zone).and_then(|rule| rule.with_jitter(MONTH, job))
            }
            Self::Every(DrillEvery::Interval(interval)) if interval < HOUR => {
                Schedule::every(interval)
            }
            Self::Every(DrillEvery::Interval(interval)) => {
                Schedule::every(interval).and_then(|rule| rule.with_jitter(interval, job))
            }
        };
        schedule.map_err(|error: Error| invalid(&format!("drill: {}", error.chain())))
    }
}

#[cfg(test)]
mod tests;
