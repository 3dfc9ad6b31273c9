//! The run: plan for each target, open, copy, prove, publish, record. A target that fails does not stop the others.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::choice::Choice;
use super::plan::Planner;
use super::remote::snapshot_of;
use super::report::ReportFile;
use super::repository::{Repository, bringing_of};
use super::show::{Plans, Shown, say};
use super::target::Place;
use super::{Source, SyncArgs};
use crate::block::Geometry;
use crate::disk::DiskSource;
use crate::ebs::Client;
use crate::error::{Error, Kind, Result};
use crate::repository::Address;
use crate::source::BlockSource;
use crate::sync::{self, Checkpoint, Content, Progress, Report, Target};

type Stop = watch::Receiver<bool>;

/// What became of the targets that did not come to their end.
#[derive(Default)]
struct Failed(Vec<(String, Error)>);

impl Failed {
    fn note(&mut self, target: &str, error: Error) {
        self.0.push((target.to_owned(), error));
    }

    /// The first is the run's; the others are told at once.
    fn into_result(self) -> Result<()> {
        let is_one = self.0.len() == 1;
        let mut failed = self.0.into_iter().map(|(target, error)| match is_one {
            true => error,
            false => error.context(target),
        });
        let first = failed.next();
        for error in failed {
            say(&format!("ebsfs: {}", error.chain()));
        }
        first.map_or(Ok(()), Err)
    }
}

impl SyncArgs {
    pub(super) async fn sync(&self) -> Result<()> {
        let started = SystemTime::now();
        let (stop, stopped) = watch::channel(false);
        listen(stop)?;
        let source = Source::open(self)
            .await
            .map_err(|error| self.explain(error))?;
        let mut report = match &self.report {
            Some(path) if !self.dry_run => Some(ReportFile::begin(path, &source, started)?),
            _ => None,
        };
        let places = self.places(&source).await?;
        let mut failed = Failed::default();
        let mut planner = Planner::new(&source, self);
        let mut choices = Vec::new();
        for place in places {
            let shown = place.shown();
            match self.choose(&mut planner, place).await {
                Ok(choice) => choices.push(choice),
                Err(error) => failed.note(&shown, error),
            }
        }
        let blocks = planner.into_blocks();
        let plans = Plans {
            choices: &choices,
            rate: self.rate(),
            is_ebs: source.client().is_some(),
            form: self.progress,
        };
        if self.dry_run {
            plans.print(std::io::stdout())?;
            return failed.into_result();
        }
        plans.print(std::io::stderr())?;

        let mut locks = Vec::new();
        let mut targets = Vec::new();
        let mut opened = Vec::new();
        for mut choice in choices {
            let place = choice.place.clone();
            locks.extend(choice.lock.take());
            if choice.is_done() {
                let (_, plan, _) = choice.plan();
                if let Err(error) = self.prove_held(&place, plan.head(), &stopped).await {
                    failed.note(&place.shown(), error);
                } else if let Some(report) = &mut report {
                    report.already(&place.shown(), &source.name)?;
                }
                continue;
            }
            let ready = async {
                // What an earlier run has begun was asked for then.
                place.confirm(self.yes || choice.goes_on_with_image())?;
                choice.open(&stopped).await
            };
            match ready.await {
                Ok(target) => {
                    targets.push(target);
                    opened.push(place);
                }
                Err(error) => failed.note(&place.shown(), error),
            }
        }
        let clients = clients(&source, &opened);
        let progress = Arc::new(Progress::default());
        let shown = Shown::start(
            self.progress,
            &targets,
            Arc::clone(&progress),
            clients.clone(),
        );
        let in_flight = self.in_flight();
        let copied = sync::copy(blocks, targets, in_flight, &progress, stopped.clone()).await;
        drop(shown);
        for ((target, copied), place) in copied.into_iter().zip(opened) {
            let finished = match copied {
                Ok(()) => {
                    let finished = self.finish(&source, &target, &place, started, &stopped);
                    finished.await
                }
                Err(error) => Err(place.explain(error)),
            };
            let ended = finished.and_then(|done| {
                if let Some(report) = &mut report {
                    report.done(&place.shown(), &done, target.checkpoint.written())?;
                }
                // What is reported is read from beside the checkpoint: only now it may go.
                Checkpoint::discard(target.checkpoint.path())?;
                print_result(&place, &done);
                Ok(())
            });
            if let Err(error) = ended {
                failed.note(&place.shown(), error);
            }
        }
        if let Some(mut report) = report {
            let told = failed.0.iter();
            let told = told.map(|(target, error)| report.failed(target, error));
            let told = told.collect::<Result<Vec<()>>>();
            let ended = told.and_then(|_| report.end(progress.bytes(), &requests(&clients)));
            if let Err(error) = ended {
                failed.note("--report", error);
            }
        }
        failed.into_result()
    }

    /// The targets by their names; none twice, none the source.
    async fn places(&self, source: &Source) -> Result<Vec<Place>> {
        let mut places: Vec<Place> = Vec::new();
        for target in &self.targets {
            let place = if let Some(region) = target.strip_prefix("ebs:") {
                let remote = self.to.connect(region, &self.aws, &self.limits()).await?;
                Place::snapshot(remote, &source.name, &self.state_dir)
            } else if Address::looks_like(target) {
                let repository = Repository::connect(target, self).await?;
                Place::repository(repository, &source.name, &self.state_dir)
            } else {
                Place::of(target.as_ref(), &self.state_dir, self.in_place)?
            };
            if places.iter().any(|other| other.id() == place.id()) {
                return Err(Error::new(
                    Kind::Invalid,
                    format!("{target} is named twice"),
                ));
            }
            if place.path() == Some(Path::new(&source.name)) {
                let what = format!("{target} is the source itself");
                return Err(Error::new(Kind::Invalid, what));
            }
            places.push(place);
        }
        if self.dedup && places.iter().all(|place| place.vault().is_none()) {
            let what = "--dedup is for repositories: none of the targets is one";
            return Err(Error::new(Kind::Invalid, what));
        }
        Ok(places)
    }

    /// Decides for one target, which is locked before anything is read that another run could change.
    async fn choose(&self, planner: &mut Planner<'_>, place: Place) -> Result<Choice> {
        let lock = if self.dry_run {
            None
        } else {
            Some(place.lock()?)
        };
        planner.choose(place, lock).await
    }

    /// A source that is gone leaves targets that are not usable: what to do with them.
    fn explain(&self, error: Error) -> Error {
        let places = self
            .targets
            .iter()
            .filter_map(|target| Place::of(target.as_ref(), &self.state_dir, self.in_place).ok());
        let is_between =
            |place: &Place| matches!(place.record().content(), Ok(Content::Between { .. }));
        match places.into_iter().find(is_between) {
            Some(place) => place.explain(error),
            None => error,
        }
    }

    /// What is asked to be proved of a target that holds the source already.
    async fn prove_held(&self, place: &Place, geometry: Geometry, stop: &Stop) -> Result<()> {
        let Some(path) = place.path().filter(|_| self.digest) else {
            return Ok(());
        };
        let back = DiskSource::open_past_cache(path, geometry)?;
        let digest = until_stopped(stop, sync::image_digest(&back)).await?;
        let _ = writeln!(std::io::stdout(), "{digest}  {}", place.shown());
        Ok(())
    }

    /// Verifies, publishes, records.
    async fn finish(
        &self,
        source: &Source,
        target: &Target,
        place: &Place,
        started: SystemTime,
        stop: &Stop,
    ) -> Result<Report> {
        source.check()?;
        let proves = self.verify || self.digest;
        let before = match proves {
            true => target.sink.read_back().await?,
            false => None,
        };
        let mut image_sha256 = self.prove(target, before.as_deref(), stop).await?;
        let written = target.checkpoint.written();
        if place.path().is_none() {
            until_stopped(stop, target.sink.finish(written)).await?;
        } else {
            target.sink.finish(written).await?;
        }
        if proves && before.is_none() {
            let after = target.sink.read_back().await?;
            image_sha256 = self.prove(target, after.as_deref(), stop).await?;
        }
        let plan = target.checkpoint.plan();
        let report = Report {
            task: target.checkpoint.task().clone(),
            started,
            ended: SystemTime::now(),
            snapshot: made_of(target, place),
            volume_bytes: plan.head().size(),
            blocks_written: plan.write().len(),
            blocks_zeroed: plan.zero().len(),
            linear_sha256: sync::linear_digest(&target.checkpoint)?,
            verified: self.verify,
            image_sha256,
        };
        place.record().end(&report)?;
        Ok(report)
    }

    /// What is asked to be proved of a target, by its bytes read back.
    async fn prove(
        &self,
        target: &Target,
        back: Option<&dyn BlockSource>,
        stop: &Stop,
    ) -> Result<Option<String>> {
        let Some(back) = back else { return Ok(None) };
        if self.verify {
            until_stopped(stop, sync::verify(target, back)).await?;
        }
        if !self.digest {
            return Ok(None);
        }
        until_stopped(stop, sync::image_digest(back))
            .await
            .map(Some)
    }
}

/// Does something that may be given up at any moment, until somebody says so.
async fn until_stopped<T>(stop: &Stop, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut stop = stop.clone();
    tokio::select! {
        done = work => done,
        Ok(_) = stop.wait_for(|stop| *stop) => Err(sync::stopped()),
    }
}

/// What was made, by the name that it is found by.
fn made_of(target: &Target, place: &Place) -> Option<String> {
    let state = target.checkpoint.state();
    match place.vault() {
        Some(vault) => bringing_of(state).map(|bringing| vault.name_of(&bringing.snapshot)),
        None => snapshot_of(state).map(|id| id.to_string()),
    }
}

/// What programs want to know goes to stdout. Who reads it may have gone: the copy is done all the same.
fn print_result(place: &Place, report: &Report) {
    let mut out = std::io::stdout();
    if let Some(snapshot) = &report.snapshot {
        let _ = writeln!(out, "{snapshot}");
    }
    if let Some(digest) = &report.image_sha256 {
        let _ = writeln!(out, "{digest}  {}", place.shown());
    }
}

/// All that make requests.
fn clients(source: &Source, places: &[Place]) -> Vec<Arc<Client>> {
    let remotes = places.iter().filter_map(Place::remote);
    let remotes = remotes.map(|remote| Arc::clone(remote.client()));
    source
        .client()
        .cloned()
        .into_iter()
        .chain(remotes)
        .collect()
}

fn requests(clients: &[Arc<Client>]) -> Value {
    let sum = |count: fn(crate::ebs::Counts) -> u64| -> u64 {
        clients.iter().map(|client| count(client.counts())).sum()
    };
    json!({
        "gets": sum(|counts| counts.gets),
        "puts": sum(|counts| counts.puts),
        "lists": sum(|counts| counts.lists),
        "retries": sum(|counts| counts.retries),
        "throttled": sum(|counts| counts.throttles),
    })
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
                std::process::exit(crate::cli::exit_code(Kind::Stopped).into());
            }
            tracing::info!("stopping at a checkpoint; a second signal ends it at once");
        }
    });
    Ok(())
}
