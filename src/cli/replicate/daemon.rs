//! The job as a service: cycles when they are due, until a signal. A cycle whose copies take longer than the interval goes on beside
//! the next one, which leaves its volumes out.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::{JoinSet, LocalSet};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::places::AwsPlaces;
use super::{ReplicateArgs, words};
use crate::cli::notify::Notifier;
use crate::cli::signals;
use crate::error::{Kind, Result};
use crate::replicate::{CycleReport, CycleRun, JobState, ReplicateJob, due_cycle};
use crate::target::Stop;
use crate::time::rfc3339_seconds;

/// The pause after a cycle that could not get its snapshots: the first and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// The longest sleep: the clock of the machine can be set.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Runs a job until a signal.
pub(super) async fn run(args: &ReplicateArgs, job: Arc<ReplicateJob>) -> Result<()> {
    // As in a sync, one thread copies and others hash, read and write files.
    LocalSet::new().run_until(serve(args, job)).await
}

async fn serve(args: &ReplicateArgs, job: Arc<ReplicateJob>) -> Result<()> {
    let notifier = Notifier::from_environment();
    let (stop, mut hang_up) = signals::listen_for_reloads()?;
    let server = args.metrics.bind().await?;
    let memory = args.memory(&job)?;
    let places = stop.unless(AwsPlaces::open(args, &job)).await?;
    let run = CycleRun::new(job, Arc::new(places), memory, stop.clone());
    // From now on there is a state to show.
    let (schedule, of_snapshots) = (run.job.schedule.as_ref(), run.job.snapshot_schedule());
    run.memory
        .update(|state| state.set_schedule(schedule, of_snapshots));
    run.note_drills();
    let _served = server.map(|server| args.serve_metrics(server, &run));
    let mut service = JobService {
        args,
        run,
        stop,
        notifier: &notifier,
        cycles: JoinSet::new(),
        drills: JoinSet::new(),
        not_before: SystemTime::UNIX_EPOCH,
        pause: PAUSES.0,
    };
    notifier.ready();
    if !service.run.unfinished().is_empty() {
        let started = service.run.resume();
        let run = service.run.clone();
        service
            .cycles
            .spawn_local(async move { run.finish(started).await });
    }
    tokio::select! {
        () = service.serve(&mut hang_up) => {}
        () = notifier.keep_alive() => {}
    }
    Ok(())
}

struct JobService<'a> {
    args: &'a ReplicateArgs,
    run: CycleRun,
    stop: Stop,
    notifier: &'a Notifier,
    /// Cycles that have their snapshots.
    cycles: JoinSet<CycleReport>,
    /// The drill that runs beside them: one at most.
    drills: JoinSet<CycleReport>,
    /// When the next cycle may begin after one that could not get its snapshots.
    not_before: SystemTime,
    pause: Duration,
}

impl JobService<'_> {
    async fn serve(&mut self, hang_up: &mut signals::TakenSignal) {
        while !self.stop.is_stopped() {
            let wake = self.begin_due().await;
            if self.stop.is_stopped() {
                break;
            }
            self.begin_drill();
            tokio::select! {
                () = sleep(wake) => {}
                () = self.stop.stopped() => {}
                () = hang_up.received() => self.reload(),
                Some(ended) = self.cycles.join_next() => self.ended(ended),
                Some(ended) = self.drills.join_next() => self.drill_ended(ended),
            }
        }
        self.notifier.stopping();
        // It ends at once; cycles stop at their next checkpoints.
        while let Some(ended) = self.drills.join_next().await {
            self.drill_ended(ended);
        }
        while let Some(ended) = self.cycles.join_next().await {
            self.ended(ended);
        }
        info!(
            "stopped: the next run continues the job {}",
            self.run.job.name
        );
    }

    /// Begins the cycle that is due. Returns how long to sleep.
    async fn begin_due(&mut self) -> Duration {
        let now = SystemTime::now();
        if let Ok(wait) = self.not_before.duration_since(now) {
            return wait.min(LONGEST_SLEEP);
        }
        let job = Arc::clone(&self.run.job);
        let Some(schedule) = &job.schedule else {
            return LONGEST_SLEEP;
        };
        let history = self.run.memory.look(JobState::history);
        let next = schedule.next_due(now);
        let Some(due) = due_cycle(schedule, &history, now) else {
            let wait = next.and_then(|next| next.duration_since(now).ok());
            self.show_waiting(next);
            return wait.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP);
        };
        if let Err(error) = self.connect_again().await {
            warn!("cannot begin a cycle: {}", words::in_words(&error));
            self.hold_back();
            return self.pause;
        }
        self.run.retry_until = next;
        let started = self.run.begin(due).await;
        match self.run.memory.look(JobState::history).under_way {
            // EC2 could not be asked: the same cycle is tried again.
            Some(_) => self.hold_back(),
            None => self.pause = PAUSES.0,
        }
        if !started.is_idle() {
            let count = started.volumes().count();
            self.notifier.status(&format!("copying {count} volumes"));
        }
        let run = self.run.clone();
        self.cycles
            .spawn_local(async move { run.finish(started).await });
        Duration::ZERO
    }

    /// Begins the first drill that is due, when none runs. It runs beside cycles.
    fn begin_drill(&mut self) {
        if !self.drills.is_empty() {
            return;
        }
        let Some(unit) = self.run.due_drills().into_iter().next() else {
            return;
        };
        match self.run.begin_drill(unit) {
            Ok(Some(started)) => {
                let run = self.run.clone();
                self.drills.spawn_local(async move {
                    let outcome = run.carry_out(&started).await;
                    run.end_drill(started, outcome).await
                });
            }
            Ok(None) => debug!("another process drills the job {}", self.run.job.name),
            Err(error) => warn!("{}", words::in_words(&error)),
        }
    }

    fn drill_ended(&self, ended: std::result::Result<CycleReport, tokio::task::JoinError>) {
        match ended {
            Ok(report) => {
                let failures = report.failures();
                for failure in failures.filter(|failure| failure.kind() != Kind::Stopped) {
                    warn!("{}", words::in_words(failure));
                }
            }
            Err(error) => warn!("a drill has ended without a report: {error}"),
        }
        // The job may have been read again meanwhile.
        self.run.note_drills();
    }

    fn hold_back(&mut self) {
        self.not_before = SystemTime::now() + self.pause;
        self.pause = self.pause.saturating_mul(2).min(PAUSES.1);
    }

    fn show_waiting(&self, next: Option<SystemTime>) {
        if let Some(next) = next.filter(|_| self.cycles.is_empty()) {
            let next = rfc3339_seconds(next);
            self.notifier
                .status(&format!("waiting: the next cycle is due {next}"));
        }
    }

    /// Connects again where no cycle uses the connections: credentials and settings may have changed.
    async fn connect_again(&mut self) -> Result<()> {
        if self.cycles.is_empty() {
            let places = AwsPlaces::open(self.args, &self.run.job);
            let places = self.stop.unless(places).await?;
            self.run.connect_to(Arc::new(places));
        }
        Ok(())
    }

    /// Reads the job file again; a bad one leaves the job as it is.
    fn reload(&mut self) {
        match self.args.job() {
            Ok(job) if job.name != self.run.job.name => warn!(
                "the job stays as it is: its file names it {}, and it runs as {}; restart it",
                job.name, self.run.job.name
            ),
            Ok(job) => {
                info!(
                    "the job {} was read again: in effect from the next cycle on",
                    job.name
                );
                let job = Arc::new(job);
                self.run = self.run.with_job(Arc::clone(&job));
                self.run.memory.update(|state| {
                    state.set_schedule(job.schedule.as_ref(), job.snapshot_schedule());
                });
                self.run.note_drills();
            }
            Err(error) => warn!("the job stays as it is: {}", words::in_words(&error)),
        }
    }

    fn ended(&self, ended: std::result::Result<CycleReport, tokio::task::JoinError>) {
        let report = match ended {
            Ok(report) => report,
            Err(error) => return warn!("a cycle has ended without a report: {error}"),
        };
        for failure in report.failures() {
            warn!("{}", words::in_words(failure));
        }
        if report.is_idle {
            return debug!("the cycle {} had nothing to copy", report.cycle);
        }
        info!(
            "the cycle {} ended after {:.1?}: {} volumes, {} failures, {} bytes fetched",
            report.cycle,
            report.took,
            report.volumes.len(),
            report.failures().count(),
            report.bytes()
        );
    }
}
