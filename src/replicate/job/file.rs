//! The job as a TOML file. An unknown key is an error, and each error of a value has its line.

mod drill;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use chrono::NaiveTime;
use chrono_tz::Tz;
use serde::de::{Deserialize, Deserializer, Error as _};

use drill::DrillValue;

use super::{
    Ec2Volumes, GatewaySource, JobHooks, JobSource, JobTarget, ReplicateJob, TargetAccess,
};
use crate::error::{Error, Kind, Result};
use crate::replicate::schedule::{Schedule, time_zone};
use crate::replicate::window::{RateWindow, Rates};
use crate::repository::{Address, Period, Retention};
use crate::snapshot::{VolumeSelector, instance_id, volume_id};

/// The largest job file: 1,000 targets with all keys are some 300 KiB.
const LARGEST_FILE: u64 = 1 << 20;

/// A value that is written as text, and how it is read.
#[derive(Debug)]
struct TextValue<T>(T);

/// How a value is read from text.
trait FromText: Sized {
    fn from_text(text: &str) -> std::result::Result<Self, String>;
}

impl<'de, T: FromText> Deserialize<'de> for TextValue<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        T::from_text(&text).map(Self).map_err(D::Error::custom)
    }
}

impl FromText for Duration {
    fn from_text(text: &str) -> std::result::Result<Self, String> {
        humantime::parse_duration(text)
            .map_err(|error| format!("{text:?} is no time such as 15m or 2days: {error}"))
    }
}

impl FromText for ByteSize {
    fn from_text(text: &str) -> std::result::Result<Self, String> {
        text.parse()
            .map_err(|error| format!("{text:?} is no size such as 50MiB: {error}"))
    }
}

impl FromText for NaiveTime {
    fn from_text(text: &str) -> std::result::Result<Self, String> {
        NaiveTime::parse_from_str(text, "%H:%M")
            .map_err(|_| format!("{text:?} is no time of day such as 08:00"))
    }
}

impl FromText for Tz {
    fn from_text(text: &str) -> std::result::Result<Self, String> {
        time_zone(text).map_err(|error| error.chain())
    }
}

/// An id of a volume.
#[derive(Debug)]
struct GivenVolume(String);

impl FromText for GivenVolume {
    fn from_text(text: &str) -> std::result::Result<Self, String> {
        volume_id(text).map(Self).map_err(|error| error.chain())
    }
}

/// An id of an instance.
#[derive(Debug)]
struct GivenInstance(String);

impl FromText for GivenInstance {
    fn from_text(text: &str) -> std::result::Result<Self, String> {
        instance_id(text).map(Self).map_err(|error| error.chain())
    }
}

impl FromText for Address {
    fn from_text(text: &str) -> std::result::Result<Self, String> {
        text.parse().map_err(|error: Error| error.chain())
    }
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct JobTable {
    name: String,
    from: Option<TextValue<Address>>,
    source: Option<SourceTable>,
    #[serde(default)]
    instances: Vec<TextValue<GivenInstance>>,
    #[serde(default)]
    volumes: Vec<TextValue<GivenVolume>>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    exclude: Vec<TextValue<GivenVolume>>,
    #[serde(default)]
    exclude_boot: bool,
    every: Option<TextValue<Duration>>,
    cron: Option<String>,
    time_zone: Option<TextValue<Tz>>,
    jitter: Option<TextValue<Duration>>,
    keep: Option<usize>,
    rate: Option<TextValue<ByteSize>>,
    #[serde(default)]
    bandwidth: Vec<WindowTable>,
    volumes_at_once: Option<usize>,
    #[serde(default)]
    verify: bool,
    stage: Option<PathBuf>,
    #[serde(default)]
    allow_plaintext: bool,
    #[serde(default)]
    overwrite: Vec<String>,
    reserve: Option<TextValue<ByteSize>>,
    inventory: Option<bool>,
    #[serde(default)]
    snapshot_tags: BTreeMap<String, String>,
    look_again: Option<TextValue<Duration>>,
    snapshot_timeout: Option<TextValue<Duration>>,
    drill: Option<DrillValue>,
    #[serde(default)]
    hooks: HooksTable,
    #[serde(default)]
    target: Vec<TargetTable>,
}

/// How the repository that is the source is reached.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceTable {
    profile: Option<String>,
    region: Option<String>,
    endpoint_url: Option<String>,
    ca_bundle: Option<PathBuf>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct WindowTable {
    from: TextValue<NaiveTime>,
    to: TextValue<NaiveTime>,
    rate: TextValue<ByteSize>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct HooksTable {
    before: Option<String>,
    after: Option<String>,
    on_failure: Option<String>,
    freeze: Option<String>,
    thaw: Option<String>,
    timeout: Option<TextValue<Duration>>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetTable {
    to: String,
    #[serde(default)]
    volumes: Vec<TextValue<GivenVolume>>,
    keep: Option<KeepTable>,
    #[serde(default)]
    in_place: bool,
    #[serde(default)]
    shared: bool,
    #[serde(default)]
    dedup: bool,
    profile: Option<String>,
    region: Option<String>,
    endpoint_url: Option<String>,
    ca_bundle: Option<PathBuf>,
    kms_key: Option<String>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct KeepTable {
    last: Option<usize>,
    hourly: Option<usize>,
    daily: Option<usize>,
    weekly: Option<usize>,
    monthly: Option<usize>,
    yearly: Option<usize>,
    within: Option<TextValue<Duration>>,
}

/// Reads a job from its file.
///
/// # Errors
/// `Invalid` when it is too large or no job, in one line; what the system says.
pub(crate) fn read(path: &Path) -> Result<ReplicateJob> {
    let failed = |error| Error::of_file(path, "cannot read", error);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LARGEST_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let wrong = |why: String| {
        let what = format!("cannot use the job {}: {why}", path.display());
        Error::new(Kind::Invalid, what)
    };
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(wrong(format!("it is larger than {LARGEST_FILE} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8".into()))?;
    parse(&text).map_err(|error| wrong(error.chain()))
}

/// Reads a job from the text of its file.
///
/// # Errors
/// `Invalid`, in one line.
fn parse(text: &str) -> Result<ReplicateJob> {
    let table: JobTable = toml::from_str(text).map_err(|error| {
        let message = error.message().replace('\n', " ");
        let what = match error.span().and_then(|span| text.get(..span.start)) {
            Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
            None => message,
        };
        Error::new(Kind::Invalid, what)
    })?;
    let job = table.job()?;
    job.check()?;
    Ok(job)
}

impl JobTable {
    fn job(mut self) -> Result<ReplicateJob> {
        let source = self.take_source()?;
        let zone = self.time_zone.map(|zone| zone.0);
        let is_drilled_by_zone = self.drill.as_ref().is_some_and(DrillValue::needs_zone);
        let needs_zone = self.cron.is_some() || !self.bandwidth.is_empty() || is_drilled_by_zone;
        if zone.is_some() && !needs_zone {
            return Err(invalid(
                "time_zone is for cron, bandwidth and a drill by cron or monthly",
            ));
        }
        let zone = zone.unwrap_or(Tz::UTC);
        let schedule = match (self.every, self.cron) {
            (Some(_), Some(_)) => return Err(invalid("every and cron exclude each other")),
            (Some(every), None) => Some(Schedule::every(every.0)?),
            (None, Some(cron)) => Some(Schedule::cron(&cron, zone)?),
            (None, None) => None,
        };
        let schedule = match (schedule, self.jitter) {
            (Some(schedule), Some(most)) => Some(schedule.with_jitter(most.0, &self.name)?),
            (None, Some(_)) => return Err(invalid("jitter is for every and cron")),
            (schedule, None) => schedule,
        };
        let drill = self.drill.map(|value| value.drill(&self.name, zone));
        let targets = self.target.into_iter().map(TargetTable::target);
        let plain = ReplicateJob::new(&self.name, source, targets.collect::<Result<_>>()?);
        let windows = self.bandwidth.into_iter().map(WindowTable::window);
        Ok(ReplicateJob {
            schedule,
            keep: self.keep.unwrap_or(plain.keep),
            rates: Rates {
                usual: self.rate.map(|rate| rate.0.as_u64()),
                windows: windows.collect::<Result<_>>()?,
                zone,
            },
            at_once: self.volumes_at_once.unwrap_or(plain.at_once),
            verify: self.verify,
            stage: self.stage,
            allow_plaintext: self.allow_plaintext,
            overwrite: self.overwrite,
            reserve: self.reserve.map_or(0, |size| size.0.as_u64()),
            inventory: self.inventory,
            snapshot_tags: self.snapshot_tags.into_iter().collect(),
            drill: drill.transpose()?,
            hooks: self.hooks.hooks(plain.hooks.timeout),
            look_again: self.look_again.map_or(plain.look_again, |time| time.0),
            timeout: self.snapshot_timeout.map_or(plain.timeout, |time| time.0),
            ..plain
        })
    }

    /// Takes the keys that say where the snapshots come from.
    fn take_source(&mut self) -> Result<JobSource> {
        let volumes = std::mem::take(&mut self.volumes).into_iter();
        let volumes = volumes.map(|id| id.0.0);
        let without = std::mem::take(&mut self.exclude).into_iter();
        let without = without.map(|id| id.0.0);
        let (from, source) = (self.from.take(), self.source.take());
        let Some(from) = from else {
            if source.is_some() {
                return Err(invalid("[source] is for jobs with from"));
            }
            let instances = std::mem::take(&mut self.instances).into_iter();
            let instances = instances.map(|id| VolumeSelector::Instance(id.0.0));
            let volumes = volumes.map(VolumeSelector::Volume);
            let tags = std::mem::take(&mut self.tags).into_iter();
            let tags = tags.map(|(key, value)| VolumeSelector::Tag { key, value });
            return Ok(JobSource::Ec2(Ec2Volumes {
                select: instances.chain(volumes).chain(tags).collect(),
                without_boot: self.exclude_boot,
                without: without.collect(),
            }));
        };
        self.refuse_keys_of_ec2()?;
        let source = source.unwrap_or_default();
        Ok(JobSource::Repository(GatewaySource {
            volumes: volumes.collect(),
            without: without.collect(),
            access: TargetAccess {
                profile: source.profile,
                region: source.region,
                endpoint_url: source.endpoint_url,
                ca_bundle: source.ca_bundle,
                kms_key: None,
            },
            ..GatewaySource::new(from.0)
        }))
    }

    /// Refuses what makes, tags or deletes snapshots in EC2, where the snapshots come from a repository.
    fn refuse_keys_of_ec2(&self) -> Result<()> {
        for (key, is_given) in [
            ("instances", !self.instances.is_empty()),
            ("tags", !self.tags.is_empty()),
            ("exclude_boot", self.exclude_boot),
            ("keep", self.keep.is_some()),
            ("snapshot_tags", !self.snapshot_tags.is_empty()),
            ("look_again", self.look_again.is_some()),
            ("snapshot_timeout", self.snapshot_timeout.is_some()),
            ("hooks.freeze", self.hooks.freeze.is_some()),
            ("hooks.thaw", self.hooks.thaw.is_some()),
        ] {
            if is_given {
                let what = format!(
                    "cannot use {key} with from: a job whose source is a repository makes no snapshots in EC2 and deletes none"
                );
                return Err(invalid(&what));
            }
        }
        Ok(())
    }
}

impl WindowTable {
    fn window(self) -> Result<RateWindow> {
        if self.from.0 == self.to.0 {
            return Err(invalid(
                "a window of bandwidth ends when it begins: use rate for the whole day",
            ));
        }
        Ok(RateWindow {
            from: self.from.0,
            to: self.to.0,
            rate: self.rate.0.as_u64(),
        })
    }
}

impl HooksTable {
    fn hooks(self, timeout: Duration) -> JobHooks {
        JobHooks {
            before: self.before,
            after: self.after,
            on_failure: self.on_failure,
            freeze: self.freeze,
            thaw: self.thaw,
            timeout: self.timeout.map_or(timeout, |time| time.0),
        }
    }
}

impl TargetTable {
    fn target(self) -> Result<JobTarget> {
        Ok(JobTarget {
            to: self.to,
            volumes: self
                .volumes
                .into_iter()
                .map(|id| id.0.0)
                .collect::<BTreeSet<_>>(),
            keep: self.keep.map(KeepTable::retention).transpose()?,
            in_place: self.in_place,
            shared: self.shared,
            dedup: self.dedup,
            access: TargetAccess {
                profile: self.profile,
                region: self.region,
                endpoint_url: self.endpoint_url,
                ca_bundle: self.ca_bundle,
                kms_key: self.kms_key,
            },
        })
    }
}

impl KeepTable {
    fn retention(self) -> Result<Retention> {
        let periods = [
            (Period::Hour, self.hourly),
            (Period::Day, self.daily),
            (Period::Week, self.weekly),
            (Period::Month, self.monthly),
            (Period::Year, self.yearly),
        ];
        let periods = periods.into_iter();
        let retention = Retention {
            last: self.last,
            periods: periods
                .filter_map(|(period, count)| Some((period, count?)))
                .collect(),
            within: self.within.map(|time| time.0),
            ..Retention::default()
        };
        if !retention.has_rules() {
            return Err(invalid(
                "keep of a target has no rule: last, hourly, daily, weekly, monthly, yearly or within",
            ));
        }
        Ok(Retention {
            // The next cycle starts from the newest one.
            last: Some(retention.last.unwrap_or(1).max(1)),
            ..retention
        })
    }
}

fn invalid(what: &str) -> Error {
    Error::new(Kind::Invalid, what)
}

#[cfg(test)]
mod tests;
