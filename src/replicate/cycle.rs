//! [`CycleRun`]: one cycle, from its snapshots to what is retained on both sides.
//!
//! ```text
//! select    the volumes at present; those that are still being copied are left out
//! before    the command of the job
//! capture   adopts or makes the snapshots; from now on each volume has a copy under way, in the state
//! copy      volumes side by side: wait for the snapshot, open targets, changed blocks -> (stage ->) apply -> verify -> record
//! sets      the machines of instances whose disks have all arrived in a repository
//! retain    deletes snapshots at the source that no target needs; removes old ones at targets
//! after     the command of the job, or on_failure
//! ```
//! A job whose source is a repository captures nothing: [`super::gateway`] has its first part.
//!
//! Killed anywhere, it leaves what the next run continues: a cycle without snapshots is adopted by its tag, a copy under way is
//! continued with the same snapshot, and what a target holds is asked of the target.

mod capture;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::info;

use super::copy::{OpenTargets, VolumeWork};
use super::drills;
use super::hooks::{self, HookTime};
use super::job::{JobSource, ReplicateJob};
use super::live::LiveCopies;
use super::places::Places;
use super::report::{CycleReport, VolumeOutcome};
use super::schedule::DueCycle;
use super::state::{
    CopyUnderWay, CycleRequests, JobMemory, LastRun, RecoveryPoint, StateError, TargetState,
};
use super::template::{AssignedTarget, Assignment, CycleVolume, assign};
use super::totals::{RequestLedger, RunTotals};
use crate::capture::Cycle;
use crate::error::{Error, Kind};
use crate::target::Stop;

pub(crate) use capture::planned_cycle;

/// How often the rate is set to that of the time of day.
const RATE_EVERY: Duration = Duration::from_secs(5);

/// What a cycle runs with.
#[derive(Clone)]
pub(crate) struct CycleRun {
    /// The job.
    pub(crate) job: Arc<ReplicateJob>,
    /// What it is connected to.
    pub(crate) places: Arc<dyn Places>,
    /// What is remembered.
    pub(crate) memory: Arc<JobMemory>,
    /// Room for volumes that are copied at once; cycles that overlap share it.
    pub(crate) slots: Arc<Semaphore>,
    /// Until when copies are tried again whose failure can pass; none: they are not.
    pub(crate) retry_until: Option<SystemTime>,
    /// The first signal.
    pub(crate) stop: Stop,
    /// What the copies of all cycles do.
    pub(crate) live: Arc<LiveCopies>,
    pub(super) open: Arc<OpenTargets>,
    /// Volumes whose images or devices are drilled: cycles leave them out.
    pub(super) held: Arc<Mutex<BTreeSet<String>>>,
    /// The requests of `places` that are in the sums of the month: cycles that overlap count each once.
    accounted: Arc<RequestLedger>,
}

/// A cycle that has its snapshots, as far as they could be made.
#[derive(Debug)]
pub(crate) struct StartedCycle {
    report: CycleReport,
    copies: BTreeMap<String, CopyUnderWay>,
    since: Instant,
    requests: CycleRequests,
}

impl StartedCycle {
    fn of(cycle: String, run: &CycleRun, copies: BTreeMap<String, CopyUnderWay>) -> Self {
        Self {
            report: CycleReport::of(cycle, run.job.shard),
            copies,
            since: Instant::now(),
            requests: run.places.requests(),
        }
    }

    /// Whether there was nothing to copy, at a source that is only looked at.
    pub(crate) fn is_idle(&self) -> bool {
        self.report.is_idle
    }

    /// The volumes that are copied.
    pub(crate) fn volumes(&self) -> impl Iterator<Item = &str> {
        self.copies.keys().map(String::as_str)
    }
}

impl std::fmt::Debug for CycleRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CycleRun({})", self.job.name)
    }
}

impl CycleRun {
    /// Cycles of a job. Clones share the volumes that are copied at once.
    pub(crate) fn new(
        job: Arc<ReplicateJob>,
        places: Arc<dyn Places>,
        memory: Arc<JobMemory>,
        stop: Stop,
    ) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(job.at_once)),
            job,
            places,
            memory,
            retry_until: None,
            stop,
            live: Arc::default(),
            open: Arc::default(),
            held: Arc::default(),
            accounted: Arc::default(),
        }
    }

    /// Connects the next cycles to other places, whose requests begin at zero.
    pub(crate) fn connect_to(&mut self, places: Arc<dyn Places>) {
        self.places = places;
        self.accounted = Arc::default();
    }

    /// The volumes with a copy under way.
    pub(crate) fn unfinished(&self) -> BTreeSet<String> {
        self.memory.look(|state| {
            let volumes = state.volumes.iter();
            let unfinished = volumes.filter(|(_, volume)| volume.under_way.is_some());
            unfinished.map(|(id, _)| id.clone()).collect()
        })
    }

    /// The same with another job, from the next cycle on.
    #[must_use]
    pub(crate) fn with_job(&self, job: Arc<ReplicateJob>) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(job.at_once)),
            job,
            ..self.clone()
        }
    }

    /// The copies under way, with the snapshots that they have.
    pub(crate) fn resume(&self) -> StartedCycle {
        let copies: BTreeMap<String, CopyUnderWay> = self.memory.look(|state| {
            let volumes = state.volumes.iter();
            let copies =
                volumes.filter_map(|(id, volume)| Some((id.clone(), volume.under_way.clone()?)));
            copies.collect()
        });
        let cycle = copies.values().map(|copy| copy.cycle.clone()).max();
        let started = StartedCycle::of(cycle.unwrap_or_default(), self, copies);
        info!(
            "continuing {} copies of the cycle {}",
            started.copies.len(),
            started.report.cycle
        );
        started
    }

    /// Begins a cycle: adopts or makes the snapshots of all volumes but those that are still being copied.
    pub(crate) async fn begin(&self, due: DueCycle) -> StartedCycle {
        let cycle = match Cycle::new(&self.job.name, due.time) {
            Ok(cycle) => cycle,
            Err(error) => {
                let mut started = StartedCycle::of(self.job.name.clone(), self, BTreeMap::new());
                started.report.failures.push(error);
                return started;
            }
        };
        let mut started = StartedCycle::of(cycle.to_string(), self, BTreeMap::new());
        let mut busy = self.unfinished();
        busy.extend(self.held.lock().iter().cloned());
        self.memory.update(|state| {
            state.under_way = Some(due.time);
            state.last = Some(due.time);
            state.set_schedule(self.job.schedule.as_ref(), self.job.snapshot_schedule());
        });
        let report = &mut started.report;
        let copies = match &self.job.source {
            JobSource::Ec2(volumes) => {
                self.capture(volumes, &cycle, due.is_new, &busy, report)
                    .await
            }
            JobSource::Repository(from) => self.plan_copies(from, &cycle, &busy, report).await,
        };
        match copies {
            Ok(copies) => started.copies = copies,
            Err(error) => started.report.failures.push(error),
        }
        started
    }

    /// Copies what a cycle has snapshots of, and ends it.
    pub(crate) async fn finish(&self, started: StartedCycle) -> CycleReport {
        let StartedCycle {
            mut report,
            copies,
            since,
            requests,
        } = started;
        self.with_rates(self.copy_and_retain(copies, &mut report))
            .await;
        report.took = since.elapsed();
        report.requests = self.places.requests().since(requests);
        self.end(&mut report).await;
        report
    }

    /// Runs work at the rates of the job.
    async fn with_rates(&self, work: impl Future<Output = ()>) {
        let rates = &self.job.rates;
        let follow = async {
            loop {
                self.places.set_rate(rates.at(SystemTime::now()));
                match rates.windows.is_empty() {
                    true => std::future::pending().await,
                    false => sleep(RATE_EVERY).await,
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = follow => {}
        }
    }

    /// The targets of all volumes that the job selects and of those that are copied: a fixed path is for the only volume of the job,
    /// whatever a cycle copies.
    pub(super) fn assignment(&self, copies: &BTreeMap<String, CopyUnderWay>) -> Assignment {
        let copied = copies.iter().map(|(id, copy)| CycleVolume {
            id: id.clone(),
            instance: copy.instance.clone(),
        });
        let selected: Vec<String> = self.memory.look(|state| {
            let volumes = state.volumes.iter();
            let selected = volumes.filter(|(_, volume)| volume.is_selected);
            selected.map(|(id, _)| id.clone()).collect()
        });
        let others = selected.into_iter().filter(|id| !copies.contains_key(id));
        let others = others.map(|id| CycleVolume { id, instance: None });
        assign(&self.job.targets, &copied.chain(others).collect())
    }

    /// Copies all volumes, then retains.
    async fn copy_and_retain(
        &self,
        copies: BTreeMap<String, CopyUnderWay>,
        report: &mut CycleReport,
    ) {
        let Assignment {
            volumes,
            problems,
            incomplete,
        } = self.assignment(&copies);
        let problems = problems.into_iter();
        let problems = problems.filter(|problem| {
            let mut its = problem.volumes.iter();
            its.any(|id| copies.contains_key(id))
        });
        report
            .failures
            .extend(problems.map(|problem| problem.error));
        let works = copies.into_iter().map(|(volume, copy)| VolumeWork {
            targets: volumes.get(&volume).cloned().unwrap_or_default(),
            is_incomplete: incomplete.contains(&volume),
            volume,
            copy,
        });
        let works: Vec<VolumeWork> = works.collect();
        self.memory.update(|state| {
            for work in &works {
                let names = work.targets.iter().map(|target| target.name.as_str());
                state.set_targets(&work.volume, &names.collect(), !work.is_incomplete);
            }
        });
        // The slots are the limit.
        let works = works.into_iter();
        let each: FuturesUnordered<_> = works.map(|work| self.copy_one(work)).collect();
        let mut outcomes: Vec<VolumeOutcome> = each.filter_map(std::future::ready).collect().await;
        outcomes.sort_by(|a, b| a.volume.cmp(&b.volume));
        report.volumes = outcomes;
        if !self.stop.is_stopped() {
            self.add_sets(report).await;
            self.retain(report).await;
        }
    }

    /// Copies a volume when there is room for it. None when the program ends.
    async fn copy_one(&self, work: VolumeWork) -> Option<VolumeOutcome> {
        let _slot = self.slots.acquire().await.ok()?;
        let outcome = self.copy_volume(&work).await;
        self.open.release(&work.volume);
        self.remember(&work, &outcome);
        Some(outcome)
    }

    /// Records how the copies of a volume ended. A stopped one is still under way.
    fn remember(&self, work: &VolumeWork, outcome: &VolumeOutcome) {
        let now = SystemTime::now();
        let is_stopped = outcome
            .failures()
            .any(|error| error.kind() == Kind::Stopped);
        self.memory.update(|state| {
            let volume = state.volumes.entry(work.volume.clone()).or_default();
            if !is_stopped {
                volume.under_way = None;
            }
            for copy in &outcome.targets {
                let target = volume.targets.entry(copy.target.name.clone()).or_default();
                match &copy.held {
                    Ok(point) => {
                        let schedule = self.job.snapshot_schedule().zip(point.time);
                        let late_at = schedule.and_then(|(rule, time)| rule.late_at(time));
                        let point = RecoveryPoint {
                            late_at,
                            ..point.clone()
                        };
                        *target = TargetState {
                            recovery_point: Some(point),
                            error: None,
                        }
                    }
                    // It is under way, and no failure.
                    Err(_) if is_stopped => {}
                    Err(error) => target.error = Some(StateError::of(error, now)),
                }
            }
            let Some(error) = outcome.failure.as_ref().filter(|_| !is_stopped) else {
                return;
            };
            // A target that holds the snapshot has not failed.
            let holds = |assigned: &&AssignedTarget| outcome.holds(assigned);
            for assigned in work.targets.iter().filter(|one| !holds(one)) {
                let target = volume.targets.entry(assigned.name.clone()).or_default();
                target.error = Some(StateError::of(error, now));
            }
        });
        for copy in outcome.targets.iter().filter(|copy| copy.held.is_ok()) {
            info!(
                "{}: {} holds {}",
                work.volume, copy.target.name, outcome.snapshot
            );
        }
    }

    /// Runs the last command and records how the cycle ended.
    async fn end(&self, report: &mut CycleReport) {
        let is_stopped = report.failures().any(|error| error.kind() == Kind::Stopped);
        if !is_stopped && !report.is_idle {
            let time = match report.failure() {
                None => HookTime::After,
                Some(_) => HookTime::OnFailure,
            };
            // It may tell a person what failed: a stop that comes now does not end it.
            let never = Stop::never();
            let ended = hooks::run(&self.job.hooks, time, &self.job.name, report, &never).await;
            report.failures.extend(ended.err());
        }
        let now = SystemTime::now();
        let run = LastRun {
            cycle: report.cycle.clone(),
            started: now.checked_sub(report.took),
            ended: Some(now),
            error: report
                .failure()
                .map(|error: &Error| StateError::of(error, now)),
            bytes: report.bytes(),
            requests: report.requests,
        };
        let is_failed = (!is_stopped).then_some(run.error.is_some());
        let volumes = report.volumes.iter();
        let totals = RunTotals {
            bytes: report.bytes(),
            requests: self.accounted.take(self.places.requests()),
            is_failed,
            volumes: volumes.map(|one| (one.volume.clone(), one.bytes)).collect(),
        };
        let schedule = self.job.schedule.as_ref();
        self.memory.update(|state| {
            if is_failed == Some(false) {
                state.last_success = Some(now);
            }
            if !is_stopped {
                state.last_run = Some(run);
            }
            state.account(now, &totals);
            state.set_schedule(schedule, self.job.snapshot_schedule());
            drills::refresh(state, &self.job, now);
        });
        // A scrape that sees the count sees the state of it too.
        if let Some(is_failed) = is_failed {
            self.live.count(is_failed);
        }
    }
}
