//! `ebsfs replicate`: a job file, or arguments, become a [`ReplicateJob`]; [`crate::replicate`] does the rest.

mod daemon;
mod doctor;
mod drill;
mod metrics;
mod places;
mod words;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use tokio::time::sleep;
use tracing::info;

use super::aws::AwsArgs;
use super::limits::LimitArgs;
use super::metrics::MetricsArgs;
use super::signals;
use super::store::{LeaseArgs, NewObjectArgs, StoreArgs};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::default_state_dir;
use crate::metrics::{MetricsFile, MetricsServer};
use crate::replicate::{
    CycleReport, CycleRun, Ec2Volumes, GatewaySource, JobMemory, JobSource, JobTarget,
    ReplicateJob, Schedule, Shard, is_shared, read, shard_of_engine, wanted_cycle,
};
use crate::snapshot::{VolumeSelector, volume_id};
use crate::target::Stop;
use places::AwsPlaces;

/// How often a run that has drilled looks whether another one has ended its cycle, and for how long: a service never ends.
const TAKE_BACK: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3600));

/// Snapshot volumes on a schedule, copy what changed to other places, prove the copies, remove old ones
#[derive(Args, Debug)]
#[command(
    long_about = "Snapshot volumes on a schedule, copy what changed to images, devices, repositories and other accounts or Regions, \
    prove the copies, and remove old snapshots on both sides. A job with `from` takes the snapshots of a repository that another job \
    fills: docs/gateway.md.\n\n\
    Runs until SIGTERM or SIGINT; SIGHUP reads the job file again. With --once it runs one cycle, for cron and timers. What is stopped \
    or killed is continued by the next run. docs/replicate.md describes the job file."
)]
pub(super) struct ReplicateArgs {
    /// Job file, in TOML
    #[arg(value_name = "JOB", required_unless_present = "volume")]
    job: Option<PathBuf>,
    /// Replicate this volume, without a job file, for example vol-0123456789abcdef0
    #[arg(long, value_name = "VOLUME", requires = "to", conflicts_with = "job", value_parser = volume_id)]
    volume: Option<String>,
    /// Repository to take --volume from, which another job fills, instead of snapshots in EC2
    #[arg(
        long,
        value_name = "REPOSITORY",
        requires = "volume",
        conflicts_with = "keep"
    )]
    from: Option<String>,
    /// Target of --volume: an image, a device, `ebs:REGION` or a repository; can be given several times
    #[arg(long, value_name = "TARGET", requires = "volume")]
    to: Vec<String>,
    /// Interval of the cycles of --volume, for example 15m; without it --once is needed
    #[arg(long, value_name = "TIME", requires = "volume", value_parser = humantime::parse_duration)]
    every: Option<Duration>,
    /// Completed snapshots of --volume that stay at the source
    #[arg(long, value_name = "N", requires = "volume", default_value_t = 1)]
    keep: usize,
    /// Name of the job of --volume, which its snapshots carry [default: the volume's id]
    #[arg(long, value_name = "NAME", requires = "volume")]
    name: Option<String>,
    /// Run one cycle and end: the one that was not ended, else a new one
    #[arg(long)]
    once: bool,
    /// With --once, print one JSON object instead of lines
    #[arg(long, requires = "once")]
    json: bool,
    /// Run one of N parts of the job, for example 0/4 (I is from 0 to N-1); auto takes it from AWS Batch, a Kubernetes Job with
    /// EBSFS_SHARDS, Slurm or Cloud Run. Rates of the job and limits of the account are divided by N; needs a job file
    #[arg(long, value_name = "I/N|auto", conflicts_with = "volume", value_parser = shard_choice)]
    shard: Option<ShardChoice>,
    /// Directory for the state of jobs, and for checkpoints and records of devices, `ebs:` and repository targets
    /// [env: EBSFS_STATE_DIR; default: /var/lib/ebsfs for root, else $XDG_STATE_HOME/ebsfs]
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
    /// With --once, write metrics to FILE.prom at the end of the run, for the textfile collector of node_exporter
    #[arg(long, value_name = "FILE.prom", requires = "once")]
    metrics_file: Option<PathBuf>,
    #[command(flatten)]
    metrics: MetricsArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    new: NewObjectArgs,
    #[command(flatten)]
    lease: LeaseArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    aws: AwsArgs,
}

/// What `--shard` names.
#[derive(Clone, Copy, Debug)]
enum ShardChoice {
    Given(Shard),
    /// What the engine that has started this process says.
    Auto,
}

fn shard_choice(text: &str) -> std::result::Result<ShardChoice, String> {
    match text {
        "auto" => Ok(ShardChoice::Auto),
        _ => text
            .parse()
            .map(ShardChoice::Given)
            .map_err(|error: Error| error.chain()),
    }
}

impl ShardChoice {
    fn shard(self) -> Result<Shard> {
        match self {
            Self::Given(shard) => Ok(shard),
            Self::Auto => shard_of_engine(|name| {
                // What is no UTF-8 is no number either.
                std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
            }),
        }
    }
}

impl ReplicateArgs {
    pub(super) fn run(self) -> Result<()> {
        let job = Arc::new(self.job()?);
        let runtime = super::runtime()?;
        let done = match self.once {
            true => runtime.block_on(self.once(job)),
            false => runtime.block_on(daemon::run(&self, job)),
        };
        runtime.shutdown_timeout(Duration::from_millis(200));
        done
    }

    /// The job of the file, or of the arguments.
    fn job(&self) -> Result<ReplicateJob> {
        let job: ReplicateJob = match (&self.job, &self.volume) {
            (Some(path), _) => read(path)?,
            (None, Some(volume)) => self.job_of(volume)?,
            (None, None) => return Err(Error::new(Kind::Invalid, "no job is named")),
        };
        if job.schedule.is_none() && !self.once {
            let what = format!("cannot run the job {} on a schedule: it has none", job.name);
            let remedy = Remedy::Do("give it every or cron, or use --once".into());
            return Err(Error::new(Kind::Invalid, what).with_remedy(remedy));
        }
        match self.shard {
            Some(choice) => job.for_shard(choice.shard()?),
            None => Ok(job),
        }
    }

    fn job_of(&self, volume: &str) -> Result<ReplicateJob> {
        let targets = self.to.iter().map(|to| {
            let path = match is_shared(to) {
                true => return Ok(JobTarget::new(to)),
                false => std::path::absolute(to),
            };
            let path = path.map_err(|error| Error::of_file(Path::new(to), "cannot find", error))?;
            Ok(JobTarget::new(&path.display().to_string()))
        });
        let source = match &self.from {
            None => JobSource::Ec2(Ec2Volumes {
                select: vec![VolumeSelector::Volume(volume.to_owned())],
                ..Ec2Volumes::default()
            }),
            Some(from) => JobSource::Repository(GatewaySource {
                volumes: [volume.to_owned()].into(),
                ..GatewaySource::new(from.parse()?)
            }),
        };
        let name = self.name.as_deref().unwrap_or(volume);
        let job = ReplicateJob {
            schedule: self.every.map(Schedule::every).transpose()?,
            keep: self.keep,
            ..ReplicateJob::new(name, source, targets.collect::<Result<_>>()?)
        };
        job.check()?;
        Ok(job)
    }

    fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(default_state_dir)
    }

    /// Opens the state of a job.
    fn memory(&self, job: &ReplicateJob) -> Result<Arc<JobMemory>> {
        JobMemory::open(&self.state_dir(), &job.name, job.shard).map(Arc::new)
    }

    /// One cycle, and its metrics.
    async fn once(&self, job: Arc<ReplicateJob>) -> Result<()> {
        let stop = signals::listen()?;
        let server = self.metrics.bind().await?;
        let file = self.metrics_file.as_deref().map(MetricsFile::new);
        let file = file.transpose()?;
        let name = job.state_name();
        let result = self.cycle(job, stop, server).await;
        match file {
            None => result,
            Some(file) => {
                let written = self.write_metrics(&file, &name, &result).await;
                result.and(written)
            }
        }
    }

    async fn cycle(
        &self,
        job: Arc<ReplicateJob>,
        stop: Stop,
        server: Option<MetricsServer>,
    ) -> Result<()> {
        let memory = self.memory(&job)?;
        let places = Arc::new(stop.unless(AwsPlaces::open(self, &job)).await?);
        let run = CycleRun::new(Arc::clone(&job), places, memory, stop);
        let _served = server.map(|server| self.serve_metrics(server, &run));
        let started = match run.unfinished().is_empty() {
            false => run.resume(),
            true => {
                let history = run.memory.look(crate::replicate::JobState::history);
                let now = SystemTime::now();
                let due = wanted_cycle(job.schedule.as_ref(), &history, now);
                run.begin(due).await
            }
        };
        let mut report = run.finish(started).await;
        drills_of_run(&run, &mut report).await;
        words::print(&job.name, &report, self.json)
    }
}

/// Drills what is due after the only cycle of a run. Other runs can do cycles of the job meanwhile, unless they would write what is
/// drilled.
async fn drills_of_run(run: &CycleRun, report: &mut CycleReport) {
    let mut drilled = BTreeSet::new();
    // Asked again each time: meanwhile another run can have copied a newer recovery point, or drilled it.
    while let Some(unit) = run
        .due_drills()
        .into_iter()
        .find(|unit| !drilled.contains(&unit.id))
    {
        if run.stop.is_stopped() {
            return;
        }
        drilled.insert(unit.id.clone());
        let started = match run.begin_drill(unit) {
            Ok(Some(started)) => started,
            Ok(None) => return info!("another process drills the job {}", run.job.name),
            Err(error) => return report.failures.push(error),
        };
        let is_released = !started.holds_volumes();
        if is_released && let Err(error) = run.memory.release() {
            return report.failures.push(error);
        }
        let outcome = run.carry_out(&started).await;
        let taken = match is_released {
            true => take_back(run).await,
            false => Ok(()),
        };
        if let Err(error) = taken {
            let what = format!("cannot note the drill of {}", outcome.unit.source);
            report.failures.extend(outcome.found.err());
            return report.failures.push(error.context(what));
        }
        let ended = run.end_drill(started, outcome).await;
        report.drills.extend(ended.drills);
        report.failures.extend(ended.failures);
    }
}

/// Waits until no other process runs cycles of the job.
async fn take_back(run: &CycleRun) -> Result<()> {
    let (pause, limit) = TAKE_BACK;
    let began = Instant::now();
    let mut is_first = true;
    loop {
        match run.memory.take_back() {
            Err(error)
                if error.kind() == Kind::Busy
                    && !run.stop.is_stopped()
                    && began.elapsed() < limit =>
            {
                if std::mem::take(&mut is_first) {
                    info!("waiting to note the drill: {}", error.chain());
                }
            }
            taken => return taken,
        }
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        args: ReplicateArgs,
    }

    fn job(line: &str) -> std::result::Result<ReplicateJob, String> {
        let parsed = CommandLine::try_parse_from(line.split_whitespace());
        let parsed = parsed.map_err(|error| error.to_string())?;
        parsed.args.job().map_err(|error| error.chain())
    }

    #[test]
    fn arguments_of_one_volume_become_a_job() {
        let line = "replicate --volume vol-0a --to file:///r --to a.raw --every 15m --keep 3";
        let whole = job(line).unwrap();
        assert_eq!(
            (&*whole.name, whole.keep, whole.targets.len()),
            ("vol-0a", 3, 2)
        );
        assert_eq!(whole.schedule.unwrap().to_string(), "every 15m");
        assert!(Path::new(&whole.targets.get(1).unwrap().to).is_absolute());
        assert!(job("replicate --volume vol-0a --to a.raw --once").is_ok());
        let line = "replicate --from s3://b/p --volume vol-0a --to a.raw --once";
        let JobSource::Repository(from) = job(line).unwrap().source else {
            panic!("{line}")
        };
        assert_eq!(from.address.to_string(), "s3://b/p");
        assert!(from.volumes.contains("vol-0a"));
        for wrong in [
            "replicate --from s3://b/p --to a.raw --once",
            "replicate --from a.raw --volume vol-0a --to a.raw --once",
            "replicate --from s3://b/p#latest --volume vol-0a --to a.raw --once",
            "replicate --from s3://b/p --volume vol-0a --to s3://b/p --once",
            "replicate --from s3://b/p --volume vol-0a --to a.raw --once --keep 1",
            "replicate",
            "replicate --volume vol-0a",
            "replicate --volume vol-0a --to a.raw",
            "replicate --volume i-0a --to a.raw --once",
            "replicate --volume vol-0a --to a.raw --once --keep 0",
            "replicate job.toml --every 15m",
            "replicate job.toml --volume vol-0a --to a.raw",
            "replicate --volume vol-0a --to a.raw --every 15m --json",
            "replicate --volume vol-0a --to a{b}.raw --once",
            "replicate /nonexistent/job.toml --once",
            "replicate --volume vol-0a --to a.raw --once --shard 0/1",
        ] {
            assert!(job(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_shard_of_a_job_has_its_share_of_the_rate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.toml");
        let text =
            "name = 'web'\nvolumes = ['vol-0a']\nrate = '4MiB'\n[[target]]\nto = 'file:///r'";
        std::fs::write(&path, text).unwrap();
        let line = |shard: &str| format!("replicate --once {} --shard {shard}", path.display());
        let part = job(&line("3/4")).unwrap();
        assert_eq!(part.shard.to_string(), "3/4");
        assert_eq!(part.rates.usual, Some(1 << 20));
        for (wrong, why) in [
            ("4/4", "counted from 0 to 3"),
            ("4", "it must look like 0/4"),
            ("Auto", "it must look like 0/4"),
            ("0/9", "512KiB a second"),
            // The tests run in no array.
            ("auto", "SLURM_ARRAY_TASK_ID"),
        ] {
            let error = job(&line(wrong)).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }
}
