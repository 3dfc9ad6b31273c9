//! Lists, decides and makes, until each call has its snapshots or has failed.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::adopt::{CallDecision, decide};
use super::cycle::CYCLE_TAG;
use super::hooks::{CommandRun, HookContext};
use super::plan::PlannedCall;
use super::{CaptureJob, CaptureReport, CapturedSnapshot};
use crate::error::{Error, Kind, Result};
use crate::snapshot::{
    Creation, SELF_TAG, Selector, Snapshot, SnapshotMaker, YOUNG, carries_own_id, has_tag,
    tag_with_own_id,
};
use crate::target::Stop;

/// Concurrent calls that make snapshots.
const AT_ONCE: usize = 8;
/// Pause between two listings for snapshots that EC2 may not show yet: the first and the longest.
const LOOK_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Pause between two calls that a limit refuses: the first and the longest. EC2 asks for 15 s between two snapshots of a volume; a
/// limit of pending snapshots has room again when one is completed.
const LIMIT_PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Time between two log lines about waiting for a limit.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// How long a snapshot may still be given its id when the run is stopped.
const TAG_AFTER_STOP: Duration = Duration::from_secs(5);
/// Calls without an answer after which a cycle is given up.
const MOST_UNANSWERED: u32 = 3;

/// A call whose snapshots are not there yet.
struct OpenCall {
    planned: PlannedCall,
    /// A listing that starts at this time or later shows all that earlier calls have made.
    settled_from: Instant,
    /// When it may be made again after a limit refused it.
    not_before: Instant,
    limited: Option<Limited>,
    unanswered: u32,
}

/// A limit that is waited out.
struct Limited {
    since: Instant,
    said: Instant,
    times: u32,
}

/// Makes or adopts the snapshots of all calls, and gives each its own id.
pub(super) async fn take(
    maker: &dyn SnapshotMaker,
    job: &CaptureJob,
    calls: Vec<PlannedCall>,
    stop: &Stop,
    report: &mut CaptureReport,
) {
    let settling = match job.is_new_cycle {
        true => Duration::ZERO,
        false => job.look_again,
    };
    let now = Instant::now();
    let open = calls.into_iter().map(|planned| OpenCall {
        planned,
        settled_from: now + settling,
        not_before: now,
        limited: None,
        unanswered: 0,
    });
    let mut cycle = Taking {
        maker,
        job,
        stop,
        report,
        has_adopted: false,
    };
    cycle.run(open.collect()).await;
    if cycle.has_adopted && cycle.report.commands.is_empty() && job.commands.are_any() {
        info!("the snapshots of this cycle are there already: no command was run");
    }
}

struct Taking<'a> {
    maker: &'a dyn SnapshotMaker,
    job: &'a CaptureJob,
    stop: &'a Stop,
    report: &'a mut CaptureReport,
    has_adopted: bool,
}

impl Taking<'_> {
    async fn run(&mut self, mut open: Vec<OpenCall>) {
        let mut looks = 0;
        while !open.is_empty() {
            let asked = Instant::now();
            let found = match self.stop.unless(self.look()).await {
                Ok(found) => found,
                Err(error) if error.kind() == Kind::Stopped => return self.stopped(),
                Err(error) => {
                    let what = format!("cannot list the snapshots of the cycle {}", self.job.cycle);
                    return self.fail(error.context(what));
                }
            };
            looks += 1;
            let (mut ready, mut rest) = (Vec::new(), Vec::new());
            for call in open {
                self.decide(call, &found, asked, &mut ready, &mut rest)
                    .await;
            }
            if !ready.is_empty() {
                match self.make(ready).await {
                    Ok(again) => rest.extend(again),
                    Err(error) if error.kind() == Kind::Stopped => return self.stopped(),
                    Err(error) => return self.fail(error),
                }
                looks = 0;
            }
            open = rest;
            let Some(until) = open.iter().map(|call| call.next(asked, looks)).min() else {
                return;
            };
            let pause = async {
                sleep_until(until).await;
                Ok(())
            };
            if self.stop.unless(pause).await.is_err() {
                return self.stopped();
            }
        }
    }

    fn stopped(&mut self) {
        self.report.failures.push(self.job.stopped());
    }

    fn fail(&mut self, error: Error) {
        self.report.failures.push(self.job.again(error));
    }

    /// The snapshots of the cycle that EC2 shows.
    async fn look(&self) -> Result<Vec<Snapshot>> {
        let select = [Selector::Tag {
            key: CYCLE_TAG.to_owned(),
            value: self.job.cycle.to_string(),
        }];
        self.maker.describe(&select).await
    }

    /// Adopts the snapshots of a call, or adds the call to `ready`, to be made, or to `rest`, to be looked at again.
    async fn decide(
        &mut self,
        mut call: OpenCall,
        found: &[Snapshot],
        asked: Instant,
        ready: &mut Vec<OpenCall>,
        rest: &mut Vec<OpenCall>,
    ) {
        let volumes = call.planned.ids();
        let is_settled = asked >= call.settled_from;
        match decide(&volumes, found, &self.job.cycle, is_settled) {
            CallDecision::Adopt(snapshots) => {
                self.has_adopted = true;
                self.accept(&call.planned, snapshots, true).await;
            }
            CallDecision::Part(snapshots) => {
                self.has_adopted = true;
                let made: BTreeSet<String> = snapshots
                    .iter()
                    .filter_map(|made| made.volume_id.clone())
                    .collect();
                let missing: Vec<String> = volumes.difference(&made).cloned().collect();
                self.report.warn(format!(
                    "making snapshots of {} at a later instant than those of their set that the cycle {} has already",
                    missing.join(", "),
                    self.job.cycle
                ));
                self.accept(&call.planned, snapshots, true).await;
                match call.planned.without(&made) {
                    Ok(planned) => {
                        call.planned = planned;
                        self.admit(call, ready);
                    }
                    Err(error) => self.fail(error),
                }
            }
            CallDecision::LookAgain => rest.push(call),
            CallDecision::Create if asked < call.not_before => rest.push(call),
            CallDecision::Create => self.admit(call, ready),
        }
    }

    /// Adds a call to those to be made, if its snapshots would start in the time of the cycle.
    fn admit(&mut self, call: OpenCall, ready: &mut Vec<OpenCall>) {
        let cycle = &self.job.cycle;
        if cycle.agrees_with(SystemTime::now()) {
            ready.push(call);
            return;
        }
        let what = format!(
            "cannot make snapshots of the cycle {cycle}: they would start more than an hour before its time or a day after it"
        );
        // A limit that lasted this long is not the command's mistake.
        let kind = match call.limited {
            Some(_) => Kind::Throttled,
            None => Kind::Invalid,
        };
        self.report.failures.push(Error::new(kind, what));
    }

    /// Makes each call once, between the two commands. Returns those that must be made or looked for again.
    ///
    /// # Errors
    /// The command before failed or the run was stopped, and no call was made.
    async fn make(&mut self, calls: Vec<OpenCall>) -> Result<Vec<OpenCall>> {
        let (job, maker) = (self.job, self.maker);
        self.stop.check()?;
        let volumes: Vec<String> = calls.iter().flat_map(|call| call.planned.ids()).collect();
        let mut moment = HookContext {
            cycle: job.cycle.to_string(),
            volumes,
            snapshots: Vec::new(),
        };
        let before = job.commands.before(&moment, self.stop).await?;
        let mut refused = before.as_ref().and_then(CommandRun::failure);
        self.report.commands.extend(before);
        if self.stop.is_stopped() {
            refused = Some(Stop::error());
        }
        let mut outcomes = Vec::new();
        if refused.is_none() {
            // A call that is under way is not dropped when a stop comes: its answer says what it made.
            let made = stream::iter(calls).map(|call| async move {
                let outcome = maker.create(&call.planned.request(job)).await;
                (call, outcome)
            });
            outcomes = made.buffer_unordered(AT_ONCE).collect().await;
        }
        for (_, outcome) in &outcomes {
            if let Ok(Creation::Made(snapshots)) = outcome {
                let ids = snapshots.iter().map(|snapshot| snapshot.id.to_string());
                moment.snapshots.extend(ids);
            }
        }
        match job.commands.after(&moment).await {
            Ok(after) => {
                if let Some(error) = after.as_ref().and_then(CommandRun::failure) {
                    self.report.failures.push(error);
                }
                self.report.commands.extend(after);
            }
            Err(error) => self.report.failures.push(error),
        }
        if let Some(error) = refused {
            return Err(error);
        }
        let mut again = Vec::new();
        for (call, outcome) in outcomes {
            again.extend(self.settle(call, outcome).await);
        }
        Ok(again)
    }

    /// Records the outcome of a call. Returns the call if it must be made or looked for again.
    async fn settle(&mut self, mut call: OpenCall, outcome: Result<Creation>) -> Option<OpenCall> {
        let now = Instant::now();
        match outcome {
            Ok(Creation::Made(snapshots)) => {
                self.accept(&call.planned, snapshots, false).await;
                None
            }
            Ok(Creation::Limited(error)) => {
                let limited = call.limited.get_or_insert(Limited {
                    since: now,
                    said: now,
                    times: 0,
                });
                limited.times += 1;
                if limited.since.elapsed() > self.job.timeout {
                    let waited = limited.since.elapsed();
                    let what = format!("cannot make snapshots within {waited:.0?}");
                    self.fail(error.context(what));
                    return None;
                }
                let (first, longest) = LIMIT_PAUSES;
                let step = first.saturating_mul(1 << limited.times.saturating_sub(1).min(10));
                let pause = crate::time::jittered(step.min(longest));
                if limited.times == 1 || limited.said.elapsed() >= SAY_EVERY {
                    limited.said = now;
                    warn!(
                        "waiting for a limit of EC2 since {:.0?}, again in {pause:.1?}: {}",
                        limited.since.elapsed(),
                        error.chain()
                    );
                }
                call.not_before = now + pause;
                Some(call)
            }
            Ok(Creation::Unknown(error)) => {
                call.unanswered += 1;
                if call.unanswered >= MOST_UNANSWERED {
                    let what =
                        format!("cannot make snapshots: no answer to {MOST_UNANSWERED} calls");
                    self.fail(error.context(what));
                    return None;
                }
                let wait = self.job.look_again.max(YOUNG);
                warn!(
                    "a call was not answered: looking for its snapshots for {wait:.0?} before it is made again: {}",
                    error.chain()
                );
                call.settled_from = now + wait;
                Some(call)
            }
            Err(error) => {
                self.fail(error.context("cannot make snapshots"));
                None
            }
        }
    }

    /// Records the snapshots of a call, and gives each its own id as a tag.
    async fn accept(&mut self, planned: &PlannedCall, snapshots: Vec<Snapshot>, is_adopted: bool) {
        let starts: BTreeSet<_> = snapshots.iter().map(|made| made.start_time).collect();
        if starts.len() > 1 {
            let volumes: Vec<_> = planned.ids().into_iter().collect();
            self.report.warn(format!(
                "the snapshots of {} are not of one instant",
                volumes.join(", ")
            ));
        }
        let mut missing = planned.ids();
        for snapshot in snapshots {
            let volume = snapshot.volume_id.clone().unwrap_or_default();
            missing.remove(&volume);
            let start = snapshot.start_time;
            if !start.is_some_and(|start| self.job.cycle.agrees_with(start)) {
                self.report.warn(format!(
                    "{} did not start in the time of the cycle {}: check the clock of this machine",
                    snapshot.id, self.job.cycle
                ));
            }
            let how = if is_adopted { "adopted" } else { "made" };
            info!("{how} {} of {volume}", snapshot.id);
            let is_tagged = carries_own_id(&snapshot) || self.tag(planned, &snapshot).await;
            self.report.snapshots.push(CapturedSnapshot {
                snapshot,
                instance: planned.set.as_ref().map(|set| set.instance.clone()),
                is_adopted,
                is_tagged,
                is_failed: false,
            });
        }
        for volume in missing.into_iter().filter(|_| !is_adopted) {
            let what = format!(
                "cannot make a snapshot of {volume}: EC2 made none of it with its instance's other volumes"
            );
            self.report.failures.push(Error::new(Kind::NotFound, what));
        }
    }

    /// Gives a snapshot its own id as a tag. Returns whether it carries it.
    async fn tag(&mut self, planned: &PlannedCall, snapshot: &Snapshot) -> bool {
        let volume = snapshot.volume_id.as_deref().unwrap_or_default();
        let mut others = planned.tags_after(volume, self.job);
        // A policy can forbid to set the tags that limit what is deleted, except while a snapshot is made.
        others.retain(|(key, value)| !has_tag(snapshot, key, value));
        let tagged = tag_with_own_id(self.maker, &snapshot.id, &others, YOUNG);
        let stopped = async {
            self.stop.stopped().await;
            sleep(TAG_AFTER_STOP).await;
        };
        let tagged = tokio::select! {
            tagged = tagged => tagged,
            () = stopped => Err(Stop::error()),
        };
        match tagged {
            Ok(()) => true,
            Err(error) => {
                self.report.warn(format!(
                    "cannot tag {} {SELF_TAG}, the proof that ebsfs made it: {}",
                    snapshot.id,
                    error.chain()
                ));
                false
            }
        }
    }
}

impl OpenCall {
    /// When to look again.
    fn next(&self, asked: Instant, looks: u32) -> Instant {
        let (first, longest) = LOOK_PAUSES;
        let pause = first.saturating_mul(1 << looks.min(10)).min(longest);
        let look = asked + pause;
        if asked < self.settled_from {
            look.min(self.settled_from)
        } else {
            self.not_before.max(asked)
        }
    }
}
