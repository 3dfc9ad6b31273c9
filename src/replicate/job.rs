//! [`ReplicateJob`]: what is replicated where and when, as plain values. [`mod@file`] reads it from TOML.

mod drill;
mod file;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::schedule::Schedule;
use super::shard::Shard;
use super::template::{check, is_for_each};
use super::window::Rates;
use crate::capture::Cycle;
use crate::error::{Error, Kind, Remedy, Result};
use crate::repository::{Address, Retention};
use crate::snapshot::VolumeSelector;

pub(crate) use drill::{DrillBoot, JobDrill};
pub(crate) use file::read;

/// The least rate: EBS sends and takes whole blocks.
pub(crate) const LEAST_RATE: u64 = 512 << 10;
/// The most volumes that are copied at once.
const MOST_AT_ONCE: usize = 64;

/// A job.
#[derive(Clone, Debug)]
pub(crate) struct ReplicateJob {
    /// Its name, which its snapshots carry.
    pub(crate) name: String,
    /// Where its snapshots come from.
    pub(crate) source: JobSource,
    /// When cycles are due; none: only when they are asked for.
    pub(crate) schedule: Option<Schedule>,
    /// Where the volumes go.
    pub(crate) targets: Vec<JobTarget>,
    /// How many completed snapshots of each volume stay at the source, at least one.
    pub(crate) keep: usize,
    /// Bytes a second.
    pub(crate) rates: Rates,
    /// How many volumes are copied at once.
    pub(crate) at_once: usize,
    /// Whether whole targets are read back after each copy.
    pub(crate) verify: bool,
    /// Where deltas for targets in place are kept whole before they are applied.
    pub(crate) stage: Option<PathBuf>,
    /// Allow unencrypted copies of encrypted volumes.
    pub(crate) allow_plaintext: bool,
    /// Targets of unknown content that may be overwritten, by their tokens.
    pub(crate) overwrite: Vec<String>,
    /// Bytes to leave free where images are written.
    pub(crate) reserve: u64,
    /// Whether the machines of its instances are kept beside the snapshots of their disks in repositories; none: where it selects
    /// instances and has a repository.
    pub(crate) inventory: Option<bool>,
    /// Tags of all snapshots, besides those of their volumes.
    pub(crate) snapshot_tags: Vec<(String, String)>,
    /// How and when its recovery points are drilled; none: never.
    pub(crate) drill: Option<JobDrill>,
    /// Commands.
    pub(crate) hooks: JobHooks,
    /// How long a cycle that was started before looks for its snapshots before it makes them.
    pub(crate) look_again: Duration,
    /// How long EC2 may take to complete a snapshot.
    pub(crate) timeout: Duration,
    /// Which of its volumes this process takes.
    pub(crate) shard: Shard,
}

/// Where the snapshots of a job come from.
#[derive(Clone, Debug)]
pub(crate) enum JobSource {
    /// Volumes in EC2: each cycle makes snapshots of them.
    Ec2(Ec2Volumes),
    /// A repository that another job fills: each cycle takes the newest snapshots.
    Repository(GatewaySource),
}

/// Which volumes a job makes snapshots of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ec2Volumes {
    /// What selects them, in each cycle again.
    pub(crate) select: Vec<VolumeSelector>,
    /// Leave out the volumes that instances boot from, unless they are named by their ids.
    pub(crate) without_boot: bool,
    /// Leave out these volumes.
    pub(crate) without: Vec<String>,
}

/// A repository as the source of a job, and which of its volumes are copied.
#[derive(Clone, Debug)]
pub(crate) struct GatewaySource {
    /// The repository.
    pub(crate) address: Address,
    /// The volumes; none: all.
    pub(crate) volumes: BTreeSet<String>,
    /// Leave out these volumes.
    pub(crate) without: BTreeSet<String>,
    /// How the store is reached; what is not given is as on the command line.
    pub(crate) access: TargetAccess,
}

impl GatewaySource {
    /// All volumes of a repository.
    pub(crate) fn new(address: Address) -> Self {
        Self {
            address,
            volumes: BTreeSet::new(),
            without: BTreeSet::new(),
            access: TargetAccess::default(),
        }
    }

    fn check(&self, targets: &[JobTarget]) -> Result<()> {
        let invalid = |what: String| Err(Error::new(Kind::Invalid, what));
        self.address.names_no_snapshot()?;
        let access = &self.access;
        let (is_s3, is_folder) = (self.address.is_s3(), self.address.is_folder());
        for (key, is_given, fits) in [
            ("profile", access.profile.is_some(), is_s3),
            ("region", access.region.is_some(), is_s3),
            ("endpoint_url", access.endpoint_url.is_some(), is_s3),
            ("ca_bundle", access.ca_bundle.is_some(), !is_folder),
        ] {
            if is_given && !fits {
                return invalid(format!("cannot use {key} with the source {}", self.address));
            }
        }
        for target in targets {
            if target.to.contains("{instance}") {
                return invalid(format!(
                    "cannot use the target {}: a repository does not say which instance a volume is attached to",
                    target.to
                ));
            }
            let address = target.to.parse::<Address>();
            if address.is_ok_and(|address| address == self.address) {
                return invalid(format!(
                    "cannot use the target {}: it is the source",
                    target.to
                ));
            }
        }
        Ok(())
    }
}

/// A target of a job: a template, and how what it names is reached and written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JobTarget {
    /// Its name; `{volume}` and `{instance}` stand for ids.
    pub(crate) to: String,
    /// The volumes that it is for; none: for all.
    pub(crate) volumes: BTreeSet<String>,
    /// Which snapshots stay there, where it keeps several; none: all.
    pub(crate) keep: Option<Retention>,
    /// Whether an image is changed itself.
    pub(crate) in_place: bool,
    /// Whether other hosts can write the device.
    pub(crate) shared: bool,
    /// Whether a repository is sent only blocks that none of its snapshots holds.
    pub(crate) dedup: bool,
    /// How its account is reached.
    pub(crate) access: TargetAccess,
}

/// How the account of a target is reached; what is not given is as for the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TargetAccess {
    /// AWS profile.
    pub(crate) profile: Option<String>,
    /// Region.
    pub(crate) region: Option<String>,
    /// URL of the service.
    pub(crate) endpoint_url: Option<String>,
    /// Certificate authorities to trust.
    pub(crate) ca_bundle: Option<PathBuf>,
    /// KMS key of new EBS snapshots.
    pub(crate) kms_key: Option<String>,
}

/// Command lines for `sh`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct JobHooks {
    /// Before a cycle. The cycle fails if it fails.
    pub(crate) before: Option<String>,
    /// After a cycle without failures.
    pub(crate) after: Option<String>,
    /// After a cycle with failures.
    pub(crate) on_failure: Option<String>,
    /// Right before the calls that make snapshots.
    pub(crate) freeze: Option<String>,
    /// Right after them, whatever their outcome.
    pub(crate) thaw: Option<String>,
    /// How long each may take.
    pub(crate) timeout: Duration,
}

impl JobTarget {
    /// A target of which only the name is given.
    pub(crate) fn new(to: &str) -> Self {
        Self {
            to: to.to_owned(),
            volumes: BTreeSet::new(),
            keep: None,
            in_place: false,
            shared: false,
            dedup: false,
            access: TargetAccess::default(),
        }
    }

    fn check(&self) -> Result<()> {
        check(&self.to)?;
        let is_ebs = self.to.starts_with("ebs:");
        let is_repository = Address::looks_like(&self.to);
        let is_local = !is_ebs && !is_repository;
        for (key, is_given, fits) in [
            ("keep", self.keep.is_some(), !is_local),
            ("dedup", self.dedup, is_repository),
            ("in_place", self.in_place, is_local),
            ("shared", self.shared, is_local),
            ("kms_key", self.access.kms_key.is_some(), is_ebs),
            ("profile", self.access.profile.is_some(), !is_local),
            ("region", self.access.region.is_some(), !is_local),
            (
                "endpoint_url",
                self.access.endpoint_url.is_some(),
                !is_local,
            ),
            ("ca_bundle", self.access.ca_bundle.is_some(), !is_local),
        ] {
            if is_given && !fits {
                let what = format!("cannot use {key} with the target {}", self.to);
                return Err(Error::new(Kind::Invalid, what));
            }
        }
        Ok(())
    }
}

impl ReplicateJob {
    /// A job with this source, these targets and every other value at its default.
    pub(crate) fn new(name: &str, source: JobSource, targets: Vec<JobTarget>) -> Self {
        Self {
            name: name.to_owned(),
            source,
            schedule: None,
            targets,
            keep: 1,
            rates: Rates::unlimited(),
            at_once: 4,
            verify: false,
            stage: None,
            allow_plaintext: false,
            overwrite: Vec::new(),
            reserve: 0,
            inventory: None,
            snapshot_tags: Vec::new(),
            drill: None,
            hooks: JobHooks {
                timeout: Duration::from_secs(60),
                ..JobHooks::default()
            },
            look_again: Duration::from_secs(120),
            timeout: Duration::from_secs(2 * 24 * 3600),
            shard: Shard::WHOLE,
        }
    }

    /// The part of the job that a shard runs, at its share of the rates.
    ///
    /// # Errors
    /// `Invalid` when a share of a rate is too small, or when a target is for the only volume of the job: no shard can know that its
    /// volume is the only one.
    pub(crate) fn for_shard(self, shard: Shard) -> Result<Self> {
        let count = shard.count();
        let rates = self.rates.divided(count);
        if rates.least().is_some_and(|rate| rate < LEAST_RATE) {
            let what = format!(
                "cannot divide the rate of the job {} among {count} shards: each needs at least 512KiB a second",
                self.name
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        let is_open = |target: &&JobTarget| target.volumes.is_empty() && !is_for_each(&target.to);
        if let Some(target) = self
            .targets
            .iter()
            .find(is_open)
            .filter(|_| !shard.is_whole())
        {
            let what = format!(
                "cannot divide the job {} into shards: the target {} can hold one volume and does not say which",
                self.name, target.to
            );
            let remedy = Remedy::Do("give it volumes, or {volume} in its path".into());
            return Err(Error::new(Kind::Invalid, what).with_remedy(remedy));
        }
        Ok(Self {
            rates,
            shard,
            ..self
        })
    }

    /// The name of its state: its own, or that of its shard.
    pub(crate) fn state_name(&self) -> String {
        self.shard.state_name(&self.name)
    }

    /// The schedule by which its snapshots are made; none where it has none, or where another job makes them.
    pub(crate) fn snapshot_schedule(&self) -> Option<&Schedule> {
        match self.source {
            JobSource::Ec2(_) => self.schedule.as_ref(),
            JobSource::Repository(_) => None,
        }
    }

    /// Whether it keeps the machines of its instances in repositories.
    pub(crate) fn keeps_machines(&self) -> bool {
        self.inventory.unwrap_or(true) && self.can_keep_machines()
    }

    fn can_keep_machines(&self) -> bool {
        let is_instance = |select: &VolumeSelector| matches!(select, VolumeSelector::Instance(_));
        let is_repository = |target: &JobTarget| Address::looks_like(&target.to);
        let JobSource::Ec2(volumes) = &self.source else {
            return false;
        };
        volumes.select.iter().any(is_instance) && self.targets.iter().any(is_repository)
    }

    /// Refuses a job that contradicts itself.
    ///
    /// # Errors
    /// `Invalid`, which says what is wrong.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |what: String| Err(Error::new(Kind::Invalid, what));
        // The name is a part of a tag.
        Cycle::new(&self.name, SystemTime::UNIX_EPOCH).map_err(|_| {
            let what = format!(
                "cannot use {:?} as the name of a job: it must have 1 to 100 letters, digits, dots, dashes and underscores",
                self.name
            );
            Error::new(Kind::Invalid, what)
        })?;
        match &self.source {
            JobSource::Ec2(volumes) if volumes.select.is_empty() => {
                return invalid(
                    "the job selects no volume: it needs instances, volumes or tags".into(),
                );
            }
            JobSource::Ec2(_) => {}
            JobSource::Repository(from) => from.check(&self.targets)?,
        }
        if self.targets.is_empty() {
            return invalid("the job has no target".into());
        }
        self.targets.iter().try_for_each(JobTarget::check)?;
        if self.inventory.is_some() && !self.can_keep_machines() {
            return invalid(
                "inventory is for jobs with instances and a repository as a target".into(),
            );
        }
        if self.keep == 0 {
            return invalid(
                "keep must be 1 or more: the next cycle needs the last snapshot".into(),
            );
        }
        if !(1..=MOST_AT_ONCE).contains(&self.at_once) {
            return invalid(format!("volumes_at_once must be from 1 to {MOST_AT_ONCE}"));
        }
        if self.rates.least().is_some_and(|rate| rate < LEAST_RATE) {
            return invalid(
                "a rate must be at least 512KiB a second: EBS sends and takes whole blocks".into(),
            );
        }
        match &self.drill {
            Some(drill) => drill.check(self),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replicate::window::RateWindow;

    fn job(to: &str, volumes: &[&str]) -> ReplicateJob {
        let target = JobTarget {
            volumes: volumes.iter().map(|id| (*id).to_owned()).collect(),
            ..JobTarget::new(to)
        };
        let volumes = Ec2Volumes {
            select: vec![VolumeSelector::Instance("i-0a".into())],
            ..Ec2Volumes::default()
        };
        ReplicateJob::new("web", JobSource::Ec2(volumes), vec![target])
    }

    fn of(index: u64, count: u64) -> Shard {
        Shard::new(index, count).unwrap()
    }

    #[test]
    fn a_shard_has_its_share_of_every_rate() {
        let mut whole = job("file:///r", &[]);
        whole.rates.usual = Some(8 << 20);
        whole.rates.windows.push(RateWindow {
            from: "08:00".parse().unwrap(),
            to: "18:00".parse().unwrap(),
            rate: 2 << 20,
        });
        let part = whole.clone().for_shard(of(3, 4)).unwrap();
        assert_eq!(part.shard, of(3, 4));
        assert_eq!(part.rates.usual, Some(2 << 20));
        assert_eq!(part.rates.least(), Some(512 << 10));
        let error = whole.clone().for_shard(of(0, 5)).unwrap_err();
        assert!(error.chain().contains("among 5 shards"), "{error}");
        let same = whole.clone().for_shard(Shard::WHOLE).unwrap();
        assert_eq!(same.rates, whole.rates);
        assert_eq!(
            job("file:///r", &[])
                .for_shard(of(0, 9))
                .unwrap()
                .rates
                .least(),
            None
        );
    }

    #[test]
    fn no_shard_takes_its_volume_for_the_only_one_of_the_job() {
        for (to, volumes, is_allowed) in [
            ("/srv/disk.raw", &[][..], false),
            ("/srv/{instance}.raw", &[], false),
            ("/srv/disk.raw", &["vol-0a"], true),
            ("/srv/{volume}.raw", &[], true),
            ("file:///r", &[], true),
            ("ebs:eu-west-2", &[], true),
        ] {
            let part = job(to, volumes).for_shard(of(0, 2));
            assert_eq!(part.is_ok(), is_allowed, "{to}");
            assert!(job(to, volumes).for_shard(Shard::WHOLE).is_ok());
        }
    }
}
