//! `ebsfs sync`: arguments become a job, a source and targets; [`crate::sync`] does the rest.

mod about;
mod doctor;
mod plans;
mod status;
pub(super) mod words;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::aws::AwsArgs;
use super::limits::{LimitArgs, bandwidth};
use super::metrics::{self, MetricsArgs};
use super::progress::{ProgressForm, Shown};
use super::signals::listen;
use super::source::{OpenedSource, SourceRequest, ToEbs, open};
use super::store::{
    LeaseArgs, NewObjectArgs, StoreArgs, StoreLine, StoreOptions, addresses, check_repositories,
    check_s3, end_reading,
};
use super::target::{self, TargetRequest, ToArgs};
use crate::block::BLOCK_SIZE;
use crate::ebs::{Client, Limits};
use crate::error::{Error, Kind, Result};
use crate::files::default_state_dir;
use crate::metrics::{KEPT, Metric, MetricsFile, SyncEnd, sync_end};
use crate::repository::{Address, Bandwidth, Lease};
use crate::snapshot::{Selector, SnapshotId};
use crate::sync::{
    self, Context, Ended, OnDamage, Progress, ReportFile, Source, SyncJob, TargetOutcome,
};
use crate::target::{Base, SourceInfo, Stop, VolumeKey};

use about::{about_run, about_this_program};
use plans::Terminal;

/// The longest that a block waits for its turn under `--bandwidth`: it limits the blocks in flight.
const TURN: Duration = Duration::from_secs(10);
/// Blocks in flight where packs take memory too. At 40 ms a block, 40 of them reach the 1,000 blocks a second of EBS.
const IN_FLIGHT_WITH_PACKS: u32 = 40;

/// Copy a snapshot, or only the blocks changed since another one, to one or more targets
#[derive(Args, Debug)]
#[command(
    long_about = "Copy a snapshot, or only the blocks changed since another one, to images, block devices, new EBS snapshots \
    and repositories in object stores.\n\n\
    The same command again resumes where it was stopped or killed. A new image appears whole or not at all. A device, or an image \
    with --in-place, is recorded as unusable until it is whole.\n\n\
    A target is believed to hold a snapshot only where that is proven: nothing has written it since, or a comparison with its \
    kept digests finds no difference. What something else has written is never overwritten without --discard-foreign-writes."
)]
pub(super) struct SyncArgs {
    /// Source to copy: a snapshot id; a volume id or tag:KEY=VALUE for its newest completed snapshot; a raw image or block device;
    /// or a snapshot of a repository, s3://BUCKET/PREFIX#SNAPSHOT, #latest, #VOLUME or #VOLUME@TIME
    #[arg(required_unless_present = "status")]
    source: Option<String>,
    /// Targets to write: images (raw, or in the format of the ending .qcow2, .vhd or .vmdk), block devices, `ebs:` or ebs:REGION for a
    /// new EBS snapshot, s3://BUCKET/PREFIX (az://, gs://, file:///FOLDER) for a repository
    #[arg(required_unless_present = "status", value_name = "TARGET")]
    targets: Vec<String>,
    /// Copy only the blocks changed since SNAPSHOT, which the targets must be proven to hold; auto: since the snapshot that each
    /// target is proven to hold, or all blocks where there is none
    #[arg(long, value_name = "SNAPSHOT | auto", value_parser = base)]
    base: Option<Base>,
    /// Vouch that the targets hold SNAPSHOT, without evidence
    #[arg(long, value_name = "SNAPSHOT")]
    trust: Option<SnapshotId>,
    /// Overwrite this target, whose content is unknown; repeat for several. TOKEN is what the refusal prints: a device's WWN,
    /// serial number or UUID, else the path as given
    #[arg(long, value_name = "TOKEN")]
    overwrite: Vec<String>,
    /// Overwrite blocks that something else has written to a target since the last run
    #[arg(long)]
    discard_foreign_writes: bool,
    /// Do not ask on a terminal before overwriting a target of unknown content
    #[arg(long)]
    yes: bool,
    /// Send a repository only blocks that none of its snapshots holds; keeps an index in the state directory
    #[arg(long)]
    dedup: bool,
    /// Compress the blocks of .qcow2 targets with zstd, which QEMU reads since version 5.1
    #[arg(long)]
    compress: bool,
    /// Name of the source's volume in repositories [default: the volume's id; of a disk a name made of its WWN or NVMe id, else of
    /// this machine's id and the path]
    #[arg(long, value_name = "NAME", value_parser = VolumeKey::named)]
    volume: Option<VolumeKey>,
    /// Write an existing image in place; the default writes a new image that replaces it at the end
    #[arg(long)]
    in_place: bool,
    /// Assume that other hosts can write the target devices, and compare them with their digests before each delta
    #[arg(long)]
    shared: bool,
    /// Fetch all changes for devices and --in-place images to DIRECTORY before applying them; applying, and resuming it with
    /// the same command, then needs no call to AWS
    #[arg(long, value_name = "DIRECTORY")]
    stage: Option<PathBuf>,
    /// Drop the progress of unfinished runs and copy from the start
    #[arg(long)]
    restart: bool,
    /// Action for a damaged block of the source; mark: leave it zero, list it, end with exit code 12
    #[arg(long, value_name = "ACTION", value_enum, default_value_t = OnDamageArg::Fail)]
    on_damage: OnDamageArg,
    /// Allow an unencrypted copy of an encrypted source (ebs:, repositories)
    #[arg(long)]
    allow_plaintext: bool,
    /// Space to leave free on the filesystem of image targets, for example 20GiB
    #[arg(long, value_name = "SIZE", default_value = "0")]
    reserve: ByteSize,
    /// Wait for a source snapshot that is still pending, at most TIME (default 1day)
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "1day", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    /// Print the plan and its cost, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Read each whole target back, past the page cache, and compare it with what was copied
    #[arg(long)]
    verify: bool,
    /// Read the targets back and print the SHA-256 of each whole image, holes included
    #[arg(long)]
    digest: bool,
    /// Write a JSON report to FILE, with the SHA-256 of each block
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Form of the progress on stderr
    #[arg(long, value_name = "FORM", value_enum, default_value_t = ProgressForm::Auto)]
    progress: ProgressForm,
    /// Print the result of each target as a line of JSON on stdout; with --dry-run the plans, with --status the state
    #[arg(long)]
    json: bool,
    /// Print what TARGET holds and which runs are unfinished, change nothing
    #[arg(long, value_name = "TARGET", conflicts_with_all = ["source", "targets", "base", "metrics"])]
    status: Option<String>,
    /// Directory for checkpoints and records of devices, `ebs:` and repository targets [env: EBSFS_STATE_DIR; default: /var/lib/ebsfs for root, else
    /// $XDG_STATE_HOME/ebsfs]
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
    /// Maximum bytes per second to fetch, and to send: each direction has the whole rate, for example 100MiB or 32KB. A block of EBS
    /// counts 512KiB, the least rate there; a block of a repository counts as stored, after compression [default: unlimited]
    #[arg(long, value_name = "SIZE", value_parser = bandwidth)]
    bandwidth: Option<ByteSize>,
    /// Write the metrics of the run and its result to FILE.prom at its end, for the textfile collector of node_exporter
    #[arg(long, value_name = "FILE.prom", conflicts_with_all = ["dry_run", "status"])]
    metrics_file: Option<PathBuf>,
    #[command(flatten)]
    metrics: MetricsArgs,
    #[command(flatten)]
    to: ToArgs,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OnDamageArg {
    /// End with exit code 8
    Fail,
    /// Leave the block zero and list it
    Mark,
}

impl From<OnDamageArg> for OnDamage {
    fn from(arg: OnDamageArg) -> Self {
        match arg {
            OnDamageArg::Fail => Self::Fail,
            OnDamageArg::Mark => Self::Mark,
        }
    }
}

fn base(text: &str) -> std::result::Result<Base, String> {
    match text {
        "auto" => Ok(Base::Auto),
        id => id
            .parse()
            .map(Base::Snapshot)
            .map_err(|error: Error| error.chain()),
    }
}

impl SyncArgs {
    pub(super) fn run(self) -> Result<()> {
        if let Some(target) = &self.status {
            return status::print(target, &self.state_dir(), self.in_place, self.json);
        }
        let runtime = super::runtime()?;
        let done = runtime.block_on(self.sync());
        runtime.shutdown_timeout(Duration::from_millis(200));
        done
    }

    /// Whether only warnings and errors are printed to stderr.
    pub(super) fn is_quiet(&self) -> bool {
        self.progress == ProgressForm::None
    }

    fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(default_state_dir)
    }

    /// The limits of the command line; the bandwidth limits requests to at least one block per second.
    fn limits(&self) -> Limits {
        let mut limits = self.limits.limits();
        limits.max_rps = limits.max_rps.min(self.blocks_a_second());
        limits
    }

    fn blocks_a_second(&self) -> u32 {
        self.bandwidth.map_or(u32::MAX, |bandwidth| {
            let blocks = bandwidth.as_u64() / u64::from(BLOCK_SIZE);
            u32::try_from(blocks).unwrap_or(u32::MAX).max(1)
        })
    }

    /// The options of the source's store, and of the targets' stores.
    fn stores(&self) -> (StoreOptions, StoreOptions) {
        let bandwidth = self.bandwidth.map(|bandwidth| bandwidth.as_u64());
        let bandwidth = bandwidth.map_or_else(Bandwidth::default, Bandwidth::of);
        let line = StoreLine::of(&self.limits.limits(), bandwidth);
        let lease = self.lease.lease();
        let source = self.store.options(line.clone()).with_lease(lease);
        let target = self.to.store(&self.store).options(line).with_lease(lease);
        (source, target.writing(&self.new))
    }

    /// Refuses options that would do nothing with this source and these targets.
    fn check(&self) -> Result<()> {
        let targets = self.targets.iter().map(String::as_str);
        let written = addresses(targets.clone());
        let all = addresses(targets.chain(self.source.as_deref()));
        check_s3(&self.new.given(), &written)?;
        check_s3(&self.to.given(), &written)?;
        check_s3(&self.store.given(), &all)?;
        check_repositories(&self.lease.given(), &all)?;
        target::check_compress(self.compress, &self.targets)?;
        if self.volume.is_some() && written.is_empty() {
            let what = "cannot use --volume: none of the targets is a repository";
            return Err(Error::new(Kind::Invalid, what));
        }
        let Some(bandwidth) = self.bandwidth else {
            return Ok(());
        };
        let source = self.source.as_deref().unwrap_or_default();
        let is_from_ebs = !Address::looks_like(source) && source.parse::<Selector>().is_ok();
        let has_ebs = is_from_ebs || self.to_ebs() != ToEbs::None;
        if has_ebs && bandwidth.as_u64() < u64::from(BLOCK_SIZE) {
            let what = format!(
                "cannot use --bandwidth {bandwidth}: EBS sends and takes whole blocks, at least 512KiB a second"
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        if !has_ebs && all.is_empty() {
            let what = "cannot use --bandwidth: source and targets are files of this machine";
            return Err(Error::new(Kind::Invalid, what));
        }
        Ok(())
    }

    fn has_repository(&self) -> bool {
        let mut targets = self.targets.iter();
        targets.any(|target| Address::looks_like(target))
    }

    fn to_ebs(&self) -> ToEbs {
        let to_ebs = self.targets.iter().filter(|to| to.starts_with("ebs:"));
        match to_ebs.count() {
            0 => ToEbs::None,
            n if n == self.targets.len() => ToEbs::All,
            _ => ToEbs::Some,
        }
    }

    fn job(&self) -> SyncJob {
        let limits = self.limits();
        let turn = u32::try_from(TURN.as_secs()).unwrap_or(1);
        let most = self.blocks_a_second().saturating_mul(turn);
        let most = match self.has_repository() {
            true => most.min(IN_FLIGHT_WITH_PACKS),
            false => most,
        };
        SyncJob {
            base: self.base.clone().unwrap_or(Base::None),
            trust: self.trust.clone(),
            overwrite: self.overwrite.clone(),
            restart: self.restart,
            discard_foreign_writes: self.discard_foreign_writes,
            allow_plaintext: self.allow_plaintext,
            on_damage: self.on_damage.into(),
            verify: self.verify,
            digest: self.digest,
            reserve: self.reserve.as_u64(),
            stage: self.stage.clone(),
            dry_run: self.dry_run,
            rate: limits.max_rps.min(limits.max_snapshot_rps),
            in_flight: self.limits.max_in_flight.min(most).max(2) as usize,
        }
    }

    async fn sync(&self) -> Result<()> {
        self.check()?;
        let (stop, started) = (listen()?, SystemTime::now());
        let server = self.metrics.bind().await?;
        let metrics_file = self.metrics_file.as_deref().map(MetricsFile::new);
        let metrics_file = metrics_file.transpose()?;
        let name = self.source.as_deref().unwrap_or_default();
        let mut report = match &self.report {
            Some(path) if !self.dry_run => {
                let names = self.source.iter().chain(&self.targets);
                target::check_report(path, names)?;
                let about = about_this_program();
                Some(ReportFile::begin(path, name, started, &about)?)
            }
            _ => None,
        };
        let progress = Arc::new(Progress::default());
        let _served = server.map(|server| server.serve(self.counts(&progress)));
        let form = if self.dry_run {
            ProgressForm::None
        } else {
            self.progress
        };
        let shown = Shown::start(form, Arc::clone(&progress));
        let (mut clients, mut lease) = (Vec::new(), None);
        let outcomes = self
            .outcomes(
                &stop,
                &progress,
                &shown,
                &mut report,
                &mut clients,
                &mut lease,
            )
            .await;
        end_reading(lease).await;
        drop(shown);
        let (about, source_time, outcomes) = match outcomes {
            Ok(done) => done,
            Err(error) => {
                if let Some(file) = &mut report {
                    file.failed(name, &error)?;
                }
                (json!({}), None, vec![failed(name, error)])
            }
        };
        let mut result = self.print(&outcomes);
        if let Some(report) = report {
            let ended = report.end(&about_run(&about, &progress, &clients));
            result = result.and(ended);
        }
        if let Some(file) = metrics_file {
            let end = SyncEnd {
                started,
                ended: SystemTime::now(),
                outcomes: &outcomes,
                result: &result,
                source_time,
            };
            let kept = file.earlier(&KEPT);
            let mut metrics = self.counts(&progress)();
            metrics.extend(sync_end(&end, &kept));
            let written = file.write(metrics);
            result = result.and(written);
        }
        result
    }

    /// Reads the counts of the run.
    fn counts(&self, progress: &Arc<Progress>) -> impl Fn() -> Vec<Metric> + Send + Sync + use<> {
        let progress = Arc::clone(progress);
        let traffic = metrics::traffic(&self.aws, &self.store);
        move || {
            let mut found = crate::metrics::sync(&progress);
            found.extend(traffic());
            found
        }
    }

    /// The source, if an earlier run staged it whole for the one target.
    fn staged(&self, state_dir: &Path) -> Result<Option<Source>> {
        let (Some(directory), Some(source)) = (&self.stage, &self.source) else {
            return Ok(None);
        };
        let [name] = &*self.targets else {
            return Ok(None);
        };
        if self.restart || name.starts_with("ebs:") || Address::looks_like(name) {
            return Ok(None);
        }
        // What is wrong with it is reported when it is connected.
        let Ok(target) = target::local_target(name, self.in_place, self.shared, state_dir) else {
            return Ok(None);
        };
        let staged = sync::staged_source(directory, source, &*target)?;
        if staged.is_some() {
            let directory = directory.display();
            tracing::info!("{source} is staged in {directory}: nothing is asked of AWS");
        }
        Ok(staged)
    }

    /// Gives the source's volume the name of the command line; warns where a repository gets a snapshot of an unknown one.
    fn name_volume(&self, source: &mut SourceInfo) {
        if let Some(key) = &self.volume {
            source.volume_key = key.clone();
        }
        if source.volume_key.is_unknown() && self.has_repository() {
            tracing::warn!(
                "the volume of {} is unknown: copying all blocks, and no retention will remove the copy; --volume NAME names it",
                source.name
            );
        }
    }

    /// Opens source and targets, and copies: members of the report, the time whose bytes the source holds, and the results.
    async fn outcomes(
        &self,
        stop: &Stop,
        progress: &Arc<Progress>,
        shown: &Shown,
        report: &mut Option<ReportFile>,
        clients: &mut Vec<Arc<Client>>,
        lease: &mut Option<Lease>,
    ) -> Result<(Value, Option<SystemTime>, Vec<TargetOutcome>)> {
        let state_dir = self.state_dir();
        let (source_store, target_store) = self.stores();
        let request = SourceRequest {
            name: self.source.as_deref().unwrap_or_default(),
            aws: &self.aws,
            store: source_store,
            limits: self.limits(),
            wait: self.wait,
            state_dir: &state_dir,
            to_ebs: self.to_ebs(),
        };
        let OpenedSource {
            mut source,
            client,
            about,
            lease: started,
        } = match self.staged(&state_dir)? {
            Some(source) => OpenedSource::staged(source),
            None => open(&request, stop).await?,
        };
        *lease = started;
        let needs_snapshot = matches!(&self.base, Some(Base::Snapshot(_)));
        if source.info.snapshot.is_none() && needs_snapshot {
            let what = format!(
                "cannot use --base SNAPSHOT: {:?} is no snapshot",
                request.name
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        self.name_volume(&mut source.info);
        clients.extend(client.clone());
        let mut outcomes = Vec::new();
        let mut targets = Vec::new();
        let request = TargetRequest {
            to: &self.to,
            aws: &self.aws,
            store: target_store,
            limits: self.limits(),
            state_dir: &state_dir,
            in_place: self.in_place,
            is_shared: self.shared,
            dedup: self.dedup,
            compress: self.compress,
        };
        for name in &self.targets {
            let connected = async {
                let target = target::connect(&request, name, &source.info, clients).await?;
                target::check(&targets, &*target, &source.info)?;
                Ok(target)
            };
            match stop.unless(connected).await {
                Ok(target) => targets.push(target),
                Err(error) => {
                    if let Some(file) = report {
                        file.failed(name, &error)?;
                    }
                    outcomes.push(failed(name, error));
                }
            }
        }
        target::check_dedup(self.dedup, &targets)?;
        let names: Vec<String> = targets
            .iter()
            .map(|target| target.name().to_owned())
            .collect();
        shown.count(clients);
        let job = self.job();
        let ui = Terminal {
            form: self.progress,
            json: self.json,
            dry_run: self.dry_run,
            yes: self.yes,
            is_ebs: client.is_some(),
            rate: job.rate,
            shown,
        };
        let context = Context {
            ui: &ui,
            progress: Arc::clone(progress),
            stop: stop.clone(),
        };
        outcomes.extend(sync::run(&job, &source, targets, &context, report).await);
        if !self.dry_run {
            target::warn_of_twins(&names).await;
        }
        Ok((about, source.info.time(), outcomes))
    }

    /// Prints results to stdout; a closed stdout is no error. Returns the error that gives the exit code and prints the others.
    fn print(&self, outcomes: &[TargetOutcome]) -> Result<()> {
        let mut out = std::io::stdout();
        for outcome in outcomes {
            if self.json {
                let _ = writeln!(out, "{}", words::json(outcome));
                continue;
            }
            let (snapshot, digest) = match &outcome.ended {
                Ok(Ended::Copied(report)) => (report.snapshot.clone(), report.image_sha256.clone()),
                Ok(Ended::Held {
                    image_sha256,
                    snapshot,
                    ..
                }) => (snapshot.clone(), image_sha256.clone()),
                _ => (None, None),
            };
            if let Some(snapshot) = snapshot {
                let _ = writeln!(out, "{snapshot}");
            }
            if let Some(digest) = digest {
                let _ = writeln!(out, "{digest}  {}", outcome.target);
            }
        }
        words::result(outcomes)
    }
}

fn failed(target: &str, error: Error) -> TargetOutcome {
    TargetOutcome {
        target: target.to_owned(),
        ended: Err(error),
    }
}

#[cfg(test)]
mod tests;
