//! `ebsfs sync`: a snapshot, or what changed since another, into images and devices; resumed by saying it again.

mod plan;
mod show;
mod target;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::aws::{self, AwsArgs};
use super::limits::LimitArgs;
use crate::block::BLOCK_SIZE;
use crate::disk::DiskSource;
use crate::ebs::{Client, EbsCatalog};
use crate::error::{Error, Kind, Result};
use crate::source::{BlockSource, Catalog, Selector, SnapshotId};
use crate::sync::{self, Checkpoint, Content, Mark, Progress, Report, Requests, Target};

use plan::{Base, Choice};
use show::{ProgressForm, Shown};
use target::Place;

/// The longest that a block waits for its turn under `--bandwidth`: so few are asked for at once.
const TURN: Duration = Duration::from_secs(10);

/// Replicate a snapshot, or only its changes, and survive anything
#[derive(Args, Debug)]
#[command(
    long_about = "Replicate a snapshot, or only its changes, into raw images and block devices.\n\n\
    The same command again goes on where it was stopped or killed. A new image appears whole or not at all; a device, or an \
    image with --in-place, is recorded as unusable until it is whole."
)]
pub(super) struct SyncArgs {
    /// A snapshot id, or a raw image or block device of this machine
    #[arg(required_unless_present = "status")]
    source: Option<String>,
    /// Images to make or to replace, block devices to overwrite
    #[arg(required_unless_present = "status")]
    targets: Vec<PathBuf>,
    /// Copy only what changed since this snapshot, which the targets must hold; auto: since the one that each of them holds,
    /// or all of it where that is not known
    #[arg(long, value_name = "SNAPSHOT | auto")]
    base: Option<Base>,
    /// Change an image itself, not a copy of it that replaces it in the end
    #[arg(long)]
    in_place: bool,
    /// Forget what an unfinished run has done for the targets
    #[arg(long)]
    restart: bool,
    /// Print what is to be done and what it costs, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Overwrite devices, and images that ebsfs has not written, without asking
    #[arg(long)]
    yes: bool,
    /// Read the targets back, past the page cache, and compare
    #[arg(long)]
    verify: bool,
    /// Read the targets back and print the SHA-256 of each whole image, holes included
    #[arg(long)]
    digest: bool,
    /// Write what was done to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// How to show how far it is
    #[arg(long, value_enum, default_value_t = ProgressForm::Auto)]
    progress: ProgressForm,
    /// What a target holds, and do nothing
    #[arg(long, value_name = "TARGET", conflicts_with_all = ["source", "targets", "base"])]
    status: Option<PathBuf>,
    /// Where it is kept what devices hold, and how far they are
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/ebsfs")]
    state_dir: PathBuf,
    /// Bytes to fetch in a second, at most
    #[arg(long, value_name = "SIZE")]
    bandwidth: Option<ByteSize>,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    aws: AwsArgs,
}

/// What is copied from.
struct Source {
    /// What records call it.
    name: String,
    /// As it is now, if it is of this machine and can change.
    mark: Option<Mark>,
    blocks: Arc<dyn BlockSource>,
    /// Where it is from, if it is a snapshot.
    ebs: Option<(SnapshotId, Arc<EbsCatalog>, Arc<Client>)>,
}

impl SyncArgs {
    pub(super) fn run(self) -> Result<()> {
        if let Some(target) = &self.status {
            return self.tell_status(target);
        }
        let runtime = super::runtime()?;
        let done = runtime.block_on(self.sync());
        runtime.shutdown_timeout(Duration::from_millis(200));
        done
    }

    fn tell_status(&self, target: &std::path::Path) -> Result<()> {
        let place = Place::of(target, &self.state_dir, self.in_place)?;
        let begun = place.checkpoint()?;
        match place.record().content()? {
            Content::Holds(source) => println!("holds {source}"),
            Content::Unknown => println!("unknown"),
            Content::Between { base, head } => println!(
                "between {} and {head}: not usable; go on with: ebsfs sync {head} {} --base auto{}",
                base.as_deref().unwrap_or("something unknown"),
                target.display(),
                if place.is_device() { "" } else { " --in-place" }
            ),
        }
        if let Some(begun) = begun {
            let plan = begun.plan();
            println!(
                "begun: {}, {} of {} blocks",
                begun.task().source,
                begun.done(),
                plan.write().len() + plan.zero().len()
            );
        }
        Ok(())
    }

    async fn sync(self) -> Result<()> {
        let started = SystemTime::now();
        let (stop, stopped) = watch::channel(false);
        listen(stop)?;
        let source = self.open_source().await?;
        let planned = self.plan(&source).await?;
        if self.dry_run {
            return show::plans(&planned.choices, &self.speed(), std::io::stdout());
        }
        show::plans(&planned.choices, &self.speed(), std::io::stderr())?;
        for choice in &planned.choices {
            choice.place.confirm(self.yes)?;
        }
        let mut targets = Vec::new();
        let mut places = Vec::new();
        let mut failed = Vec::new();
        let mut locks = Vec::new();
        for mut choice in planned.choices {
            let target = choice.place.clone();
            locks.extend(choice.lock.take());
            match choice.open() {
                Ok(ready) => {
                    targets.push(ready);
                    places.push(target);
                }
                Err(error) => failed.push(error),
            }
        }
        let progress = Arc::new(Progress::default());
        let client = source.ebs.as_ref().map(|(_, _, client)| Arc::clone(client));
        let shown = Shown::start(
            self.progress,
            &targets,
            Arc::clone(&progress),
            client.clone(),
        );
        let copied = sync::copy(
            planned.blocks,
            targets,
            self.in_flight(),
            &progress,
            stopped,
        )
        .await;
        drop(shown);
        let requests = client.map_or_else(Requests::default, |client| {
            let counts = client.counts();
            Requests {
                gets: counts.gets,
                lists: counts.lists,
                retries: counts.retries,
                throttled: counts.throttles,
            }
        });
        let mut reports = Vec::new();
        for ((target, done), place) in copied.into_iter().zip(places) {
            let finished = match done {
                Ok(()) => {
                    self.finish(
                        &source,
                        &target,
                        &place,
                        started,
                        progress.bytes(),
                        requests,
                    )
                    .await
                }
                Err(error) => Err(place.explain(error)),
            };
            match finished {
                Ok(report) => reports.push(report),
                Err(error) => failed.push(error),
            }
        }
        if let Some(file) = &self.report {
            let written = super::output::write(Some(file), |out| {
                serde_json::to_writer_pretty(&mut *out, &reports)?;
                writeln!(out)
            });
            failed.extend(written.err());
        }
        let mut failed = failed.into_iter();
        let Some(first) = failed.next() else {
            return Ok(());
        };
        for error in failed {
            eprintln!("ebsfs: {}", error.chain());
        }
        Err(first)
    }

    /// Verifies, publishes, records.
    async fn finish(
        &self,
        source: &Source,
        target: &Target,
        place: &Place,
        started: SystemTime,
        bytes_fetched: u64,
        requests: Requests,
    ) -> Result<Report> {
        self.check_source(source)?;
        if self.verify {
            sync::verify(target).await?;
        }
        let image_sha256 = match self.digest {
            true => Some(sync::image_digest(&*target.sink.read_back().await?).await?),
            false => None,
        };
        target.sink.finish().await?;
        let plan = target.checkpoint.plan();
        let report = Report {
            task: target.checkpoint.task().clone(),
            started,
            ended: SystemTime::now(),
            volume_bytes: plan.head().size(),
            blocks_written: plan.write().len(),
            blocks_zeroed: plan.zero().len(),
            bytes_fetched,
            requests,
            linear_sha256: sync::linear_digest(&target.checkpoint)?,
            verified: self.verify,
            image_sha256,
        };
        place.record().end(&report)?;
        Checkpoint::discard(target.checkpoint.path())?;
        if let Some(digest) = &report.image_sha256 {
            // Who reads it may have gone: the copy is done all the same.
            let _ = writeln!(std::io::stdout(), "{digest}  {}", place.path().display());
        }
        Ok(report)
    }

    async fn open_source(&self) -> Result<Source> {
        let name = self.source.as_deref().unwrap_or_default();
        if let Ok(id) = name.parse::<SnapshotId>() {
            let config = self.aws.load_with_credentials().await?;
            let mut limits = self.limits.limits();
            if let Some(rate) = self.blocks_a_second() {
                limits.max_rps = limits.max_rps.min(rate);
            }
            let select = vec![Selector::Snapshot(id.clone())];
            let (client, catalog) = aws::catalog(&config, &limits, select);
            let (_, blocks) = catalog.open(&id).await?;
            return Ok(Source {
                name: name.to_owned(),
                mark: None,
                blocks,
                ebs: Some((id, catalog, client)),
            });
        }
        if self.base.is_some() || self.bandwidth.is_some() {
            let what = format!("{name:?} is no snapshot: --base and --bandwidth are for snapshots");
            return Err(Error::new(Kind::Invalid, what));
        }
        let disk = DiskSource::open(name.as_ref())?;
        let path = std::path::Path::new(name)
            .canonicalize()
            .map_err(|error| Error::of_file(name.as_ref(), "cannot find", error))?;
        Ok(Source {
            name: path.display().to_string(),
            mark: Mark::of(&path),
            blocks: Arc::new(disk),
            ebs: None,
        })
    }

    /// Whether a source of this machine is as it was when it was opened.
    fn check_source(&self, source: &Source) -> Result<()> {
        if source.mark.is_none() || source.mark == Mark::of(source.name.as_ref()) {
            return Ok(());
        }
        let what = format!(
            "{} was written while it was copied: the copy is neither the one nor the other",
            source.name
        );
        Err(Error::new(Kind::Corrupt, what))
    }

    /// Decides for each target; the plans share their listings.
    async fn plan(&self, source: &Source) -> Result<plan::Planned> {
        let mut planner = plan::Planner::new(source, self.base.as_ref(), self.restart);
        let mut choices: Vec<Choice> = Vec::new();
        for target in &self.targets {
            let place = Place::of(target, &self.state_dir, self.in_place)?;
            if choices.iter().any(|choice| choice.place.id() == place.id()) {
                let what = format!("{} is named twice", target.display());
                return Err(Error::new(Kind::Invalid, what));
            }
            if place.path() == std::path::Path::new(&source.name) {
                let what = format!("{} is the source itself", target.display());
                return Err(Error::new(Kind::Invalid, what));
            }
            // Before anything is read that another run could change.
            let lock = if self.dry_run {
                None
            } else {
                Some(place.lock()?)
            };
            choices.push(planner.choose(place, lock).await?);
        }
        Ok(plan::Planned {
            choices,
            blocks: planner.into_blocks(),
        })
    }

    fn blocks_a_second(&self) -> Option<u32> {
        let bytes = self.bandwidth?.as_u64();
        Some(
            u32::try_from(bytes / u64::from(BLOCK_SIZE))
                .unwrap_or(u32::MAX)
                .max(1),
        )
    }

    /// Blocks that may be fetched in a second.
    fn speed(&self) -> show::Speed {
        let limits = self.limits.limits();
        let rate = limits.max_rps.min(limits.max_snapshot_rps);
        show::Speed(rate.min(self.blocks_a_second().unwrap_or(u32::MAX)))
    }

    fn in_flight(&self) -> usize {
        let turn = u32::try_from(TURN.as_secs()).unwrap_or(1);
        let most = self
            .blocks_a_second()
            .map_or(u32::MAX, |rate| rate.saturating_mul(turn));
        self.limits.max_in_flight.min(most).max(2) as usize
    }
}

/// The first SIGINT or SIGTERM stops at a checkpoint; the second ends the program.
fn listen(stop: watch::Sender<bool>) -> Result<()> {
    let failed = |error| Error::with_source(Kind::Io, "cannot take signals", error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    // Asked how far it is before that can be told: no reason to end.
    let asked = signal(SignalKind::user_defined1()).map_err(failed)?;
    tokio::spawn(async move {
        let _asked = asked;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.send_replace(true) {
                std::process::exit(super::exit_code(Kind::Stopped).into());
            }
            tracing::info!("stopping at a checkpoint; a second signal ends it at once");
        }
    });
    Ok(())
}
