//! Carries out drills: locks, holds the volumes that must not be written meanwhile, notes the result, runs `on_failure`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tracing::info;

use super::{DrillUnit, is_due, is_ready, note, refresh, units};
use crate::error::{Error, Kind, Result};
use crate::replicate::cycle::CycleRun;
use crate::replicate::hooks::{self, HookTime};
use crate::replicate::job::{JobDrill, JobTarget, ReplicateJob};
use crate::replicate::report::CycleReport;
use crate::replicate::state::DrillLock;
use crate::target::Stop;
use crate::time::rfc3339_millis;

/// A drill to carry out.
#[derive(Debug)]
pub(crate) struct DrillRequest<'a> {
    /// The recovery point.
    pub(crate) unit: &'a DrillUnit,
    /// The target of the job that it is at.
    pub(crate) target: &'a JobTarget,
    /// The settings of the drill.
    pub(crate) drill: &'a JobDrill,
    /// Bytes a second that may be read from a repository; none: unlimited.
    pub(crate) rate: Option<u64>,
}

/// What a drill found.
#[derive(Debug)]
pub(crate) struct DrillFindings {
    /// Partitions by their result: `clean`, `replayed`, `repaired`, `damaged`, `not_checked`.
    pub(crate) partitions: BTreeMap<String, u64>,
    /// Whether the machine booted; none: it was not started.
    pub(crate) booted: Option<bool>,
    /// Why it failed: `Corrupt` or `Undecided`; none: it was passed.
    pub(crate) failure: Option<Error>,
}

impl DrillFindings {
    /// What was found, in words: `1 clean, 2 replayed, booted`.
    pub(crate) fn in_words(partitions: &BTreeMap<String, u64>, booted: Option<bool>) -> String {
        let counts = partitions.iter();
        let counts = counts.map(|(name, count)| format!("{count} {}", name.replace('_', " ")));
        let booted = booted.map(|booted| if booted { "booted" } else { "not booted" });
        let parts: Vec<String> = counts.chain(booted.map(str::to_owned)).collect();
        match parts.is_empty() {
            true => "nothing found".to_owned(),
            false => parts.join(", "),
        }
    }
}

/// How a drill ended.
#[derive(Debug)]
pub(crate) struct DrillOutcome {
    /// What was drilled.
    pub(crate) unit: DrillUnit,
    /// What it found, or why it came to no result.
    pub(crate) found: Result<DrillFindings>,
    /// How long it took.
    pub(crate) took: Duration,
}

impl DrillOutcome {
    /// Why it failed or came to no result.
    pub(crate) fn failure(&self) -> Option<&Error> {
        match &self.found {
            Ok(found) => found.failure.as_ref(),
            Err(error) => Some(error),
        }
    }

    /// What hooks read.
    pub(in crate::replicate) fn to_json(&self) -> Value {
        let found = self.found.as_ref().ok();
        let result = match &self.found {
            Ok(found) if found.failure.is_none() => "passed",
            Ok(_) => "failed",
            Err(_) => "not_done",
        };
        let failure = self.failure();
        json!({
            "unit": self.unit.id,
            "source": self.unit.source,
            "point": self.unit.point,
            "time": self.unit.time.map(rfc3339_millis),
            "result": result,
            "partitions": found.map(|found| &found.partitions),
            "booted": found.and_then(|found| found.booted),
            "error": failure.map(Error::chain),
            "exit_code": failure.map_or(0, |error| error.kind().exit_code()),
            "seconds": self.took.as_secs_f64(),
        })
    }
}

/// Volumes that cycles leave out until this is dropped.
#[derive(Debug)]
struct HeldVolumes {
    all: Arc<Mutex<BTreeSet<String>>>,
    own: BTreeSet<String>,
}

impl Drop for HeldVolumes {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        all.retain(|id| !self.own.contains(id));
    }
}

/// A drill that can begin: no other process drills the job, and nothing is written meanwhile to what it reads.
#[derive(Debug)]
pub(crate) struct StartedDrill {
    unit: DrillUnit,
    job: Arc<ReplicateJob>,
    held: HeldVolumes,
    _lock: DrillLock,
}

impl StartedDrill {
    /// Whether cycles must leave volumes out meanwhile: what is drilled is an image or a device, which the next copy changes or replaces.
    pub(crate) fn holds_volumes(&self) -> bool {
        !self.held.own.is_empty()
    }
}

impl CycleRun {
    /// Notes in the state when the drills of the job are due.
    pub(crate) fn note_drills(&self) {
        let is_known = self.memory.look(|state| state.drills.is_some());
        if is_known || self.job.drill.is_some() {
            self.memory
                .update(|state| refresh(state, &self.job, SystemTime::now()));
        }
    }

    /// The drills that are due and can begin now.
    pub(crate) fn due_drills(&self) -> Vec<DrillUnit> {
        let Some(drill) = &self.job.drill else {
            return Vec::new();
        };
        let now = SystemTime::now();
        self.memory.look(|state| {
            let known = state.drills.as_ref().map(|drills| &drills.units);
            let mut due = units(&self.job, drill, state);
            due.retain(|unit| {
                let known = known.and_then(|units| units.get(&unit.id));
                is_due(&drill.schedule, known, unit, now) && is_ready(state, unit, now)
            });
            due
        })
    }

    /// Begins a drill; none: another process drills the job. No cycle may begin meanwhile.
    ///
    /// # Errors
    /// Why the drills cannot be locked.
    pub(crate) fn begin_drill(&self, unit: DrillUnit) -> Result<Option<StartedDrill>> {
        let Some(lock) = self.memory.lock_drills()? else {
            return Ok(None);
        };
        let own = match unit.is_fixed {
            true => BTreeSet::new(),
            false => unit.volumes.clone(),
        };
        self.held.lock().extend(own.iter().cloned());
        Ok(Some(StartedDrill {
            unit,
            job: Arc::clone(&self.job),
            held: HeldVolumes {
                all: Arc::clone(&self.held),
                own,
            },
            _lock: lock,
        }))
    }

    /// Drills. A stop ends it.
    pub(crate) async fn carry_out(&self, started: &StartedDrill) -> DrillOutcome {
        let (unit, began) = (&started.unit, Instant::now());
        let job = &started.job;
        info!("drilling {}", unit.source);
        let found = match (&job.drill, job.targets.get(unit.target.number)) {
            (Some(drill), Some(target)) => {
                let request = DrillRequest {
                    unit,
                    target,
                    drill,
                    rate: job.rates.least(),
                };
                self.places.drill(&request, &self.stop).await
            }
            _ => {
                let what = format!("cannot drill {}: the job has no drill", unit.source);
                Err(Error::new(Kind::Invalid, what))
            }
        };
        let took = began.elapsed();
        match &found {
            Ok(found) => {
                let words = DrillFindings::in_words(&found.partitions, found.booted);
                let passed = match found.failure {
                    None => "passed",
                    Some(_) => "failed",
                };
                info!(
                    "the drill of {} {passed} after {took:.1?}: {words}",
                    unit.source
                );
            }
            Err(error) => info!(
                "the drill of {} came to no result after {took:.1?}: {}",
                unit.source,
                error.chain()
            ),
        }
        DrillOutcome {
            unit: unit.clone(),
            found,
            took,
        }
    }

    /// Notes how a drill ended, and runs `on_failure` if it was not passed. A stopped one is not noted: it is still due.
    pub(crate) async fn end_drill(
        &self,
        started: StartedDrill,
        outcome: DrillOutcome,
    ) -> CycleReport {
        let cycle = self.memory.look(|state| {
            let last = state.last_run.as_ref();
            last.map_or_else(|| state.job.clone(), |last| last.cycle.clone())
        });
        let mut report = CycleReport::of(cycle, self.job.shard);
        report.took = outcome.took;
        let kind = outcome.failure().map(Error::kind);
        let now = SystemTime::now();
        if kind != Some(Kind::Stopped) {
            self.memory.update(|state| {
                note(state, &started.unit, &outcome, now);
                refresh(state, &self.job, now);
            });
        }
        drop(started);
        report.drills.push(outcome);
        if kind.is_some_and(|kind| kind != Kind::Stopped) {
            let (job, hooks) = (&self.job.name, &self.job.hooks);
            // As after a cycle: a stop does not end it.
            let never = Stop::never();
            let ended = hooks::run(hooks, HookTime::OnFailure, job, &report, &never).await;
            report.failures.extend(ended.err());
        }
        report
    }
}
