//! [`Execution`]: opens, copies and finishes the planned targets. One that fails does not stop the others.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tracing::{info, warn};

use super::checkpoint::Checkpoint;
use super::copy::{CopyCounts, CopyTarget, Rules, copy};
use super::digests::Digests;
use super::finish::half_way;
use super::job::SyncJob;
use super::observe::Candidate;
use super::plan::Decision;
use super::planner::{NewRun, Planned, Work};
use super::report::ReportFile;
use super::source::Source;
use super::stage::{Stage, is_same, is_same_plan};
use super::verify::CompareCheckpoint;
use super::{Context, Ended, TargetOutcome, record};
use crate::block::Delta;
use crate::error::{Error, Kind, Result};
use crate::files::blocking;
use crate::source::BlockSource;
use crate::target::{
    Content, Opening, Replica, Sink, SinkState, Stop, TargetKind, TargetRecord, Task,
    UnfinishedState,
};

/// The run after its plans.
pub(super) struct Execution<'a> {
    pub(super) job: &'a SyncJob,
    pub(super) source: &'a Source,
    pub(super) context: &'a Context<'a>,
    /// The source by the tokens of the listings that were made.
    pub(super) blocks: Arc<dyn BlockSource>,
    pub(super) started: SystemTime,
}

/// A target that is open, besides what is copied to it.
pub(super) struct OpenTarget {
    pub(super) candidate: Candidate,
    pub(super) warnings: Vec<String>,
}

/// Open targets that are copied to from one source.
struct Group {
    blocks: Arc<dyn BlockSource>,
    targets: Vec<CopyTarget>,
    open: Vec<OpenTarget>,
}

impl Group {
    fn over(blocks: Arc<dyn BlockSource>) -> Self {
        Self {
            blocks,
            targets: Vec::new(),
            open: Vec::new(),
        }
    }

    fn push(&mut self, target: CopyTarget, opened: OpenTarget) {
        self.targets.push(target);
        self.open.push(opened);
    }
}

impl Execution<'_> {
    /// Runs every planned target; each has an outcome.
    pub(super) async fn run(
        &self,
        planned: Vec<Planned>,
        report: &mut Option<ReportFile>,
    ) -> Vec<TargetOutcome> {
        let mut outcomes = Vec::new();
        // Each block is fetched once for all of these; a stage is read for its own target alone.
        let mut together = Group::over(Arc::clone(&self.blocks));
        for plan in planned {
            let name = plan.name().to_owned();
            self.context.progress.begin(format!("opening {name}"), 0);
            let ended = match plan.work {
                Work::Nothing => self.held(&plan.candidate, report).await,
                work => match self.ready(plan.candidate, work, plan.warnings).await {
                    Ok((Some(blocks), target, opened)) => {
                        // At once: from when it is opened until it is whole it is between two snapshots.
                        let mut group = Group::over(blocks);
                        group.push(target, opened);
                        outcomes.extend(self.copy(group, CopyCounts::Written, report).await);
                        continue;
                    }
                    Ok((None, target, opened)) => {
                        together.push(target, opened);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            outcomes.push(outcome(&name, ended, report));
        }
        let counts = match self.source.is_staged {
            true => CopyCounts::Written,
            false => CopyCounts::Both,
        };
        outcomes.extend(self.copy(together, counts, report).await);
        outcomes
    }

    /// Copies a group of targets from one source, and finishes each.
    async fn copy(
        &self,
        group: Group,
        counts: CopyCounts,
        report: &mut Option<ReportFile>,
    ) -> Vec<TargetOutcome> {
        if group.targets.is_empty() {
            return Vec::new();
        }
        let copied = self
            .fill(group.blocks, group.targets, counts, "copying")
            .await;
        let mut outcomes = Vec::new();
        for ((target, copied), opened) in copied.into_iter().zip(group.open) {
            let name = target.name.clone();
            let ended = match copied {
                Ok(()) => self.finish(target, opened, report).await,
                Err(error) => Err(explain(&opened, error)),
            };
            outcomes.push(outcome(&name, ended, report));
        }
        outcomes
    }

    /// Copies what is missing to open targets.
    async fn fill(
        &self,
        blocks: Arc<dyn BlockSource>,
        targets: Vec<CopyTarget>,
        counts: CopyCounts,
        what: &str,
    ) -> Vec<(CopyTarget, Result<()>)> {
        let left = targets
            .iter()
            .map(|target| target.checkpoint.missing().len());
        let (progress, source) = (&self.context.progress, &self.source.info.name);
        // One fetch serves all targets, so each block counts once.
        progress.begin(format!("{what} {source}"), left.max().unwrap_or(0));
        let rules = Rules {
            in_flight: self.job.in_flight,
            on_damage: self.job.on_damage,
            progress,
            counts,
            stop: &self.context.stop,
        };
        copy(blocks, targets, &rules).await
    }

    /// Stages the delta if the job asks for it, then opens the target.
    async fn ready(
        &self,
        candidate: Candidate,
        work: Work,
        warnings: Vec<String>,
    ) -> Result<(Option<Arc<dyn BlockSource>>, CopyTarget, OpenTarget)> {
        let staged = self.stage(&candidate, &work).await?;
        let (target, opened) = self.open(candidate, work, warnings).await?;
        Ok((staged, target, opened))
    }

    /// The blocks of a delta for what is written in place, once they are all on local disk, if that is asked for.
    async fn stage(
        &self,
        candidate: &Candidate,
        work: &Work,
    ) -> Result<Option<Arc<dyn BlockSource>>> {
        let Some(stage) = self.stage_of(candidate) else {
            return Ok(None);
        };
        let task = match work {
            Work::New(run) if self.source.is_staged => &run.task,
            Work::New(run) if run.plan.base().is_some() => {
                let target = stage.open(&run.task, &run.plan).await?;
                let filled = self
                    .fill(
                        Arc::clone(&self.blocks),
                        vec![target],
                        CopyCounts::Fetched,
                        "staging",
                    )
                    .await;
                for (_, ended) in filled {
                    ended?;
                }
                stage.finish(&self.source.info)?;
                &run.task
            }
            Work::Resumed(checkpoint) => checkpoint.task(),
            _ => return Ok(None),
        };
        let fits = |staged: &Task, staged_plan: &Delta| {
            let has_all = match work {
                Work::New(run) => is_same_plan(staged_plan, &run.plan),
                Work::Resumed(checkpoint) => {
                    let missing = checkpoint.missing();
                    let missing = missing.without(staged_plan.zero());
                    missing.without(staged_plan.write()).is_empty()
                }
                _ => false,
            };
            is_same(staged, task) && has_all
        };
        let blocks = stage.complete(fits)?;
        Ok(blocks.map(|blocks| Arc::new(blocks) as Arc<dyn BlockSource>))
    }

    /// Where a target's delta is staged, if that is asked for.
    pub(super) fn stage_of(&self, candidate: &Candidate) -> Option<Stage> {
        let directory = self.job.stage.as_ref()?;
        let target = &candidate.target;
        let is_staged = target.kind().is_in_place();
        is_staged.then(|| Stage::of(directory, target.id()))
    }

    /// Opens a target, and names it on disk before it is touched.
    async fn open(
        &self,
        mut candidate: Candidate,
        work: Work,
        warnings: Vec<String>,
    ) -> Result<(CopyTarget, OpenTarget)> {
        if candidate.decided.confirms {
            self.context.ui.confirm(candidate.target.name())?;
        }
        for warning in &warnings {
            warn!("{warning}");
        }
        let is_resumed = matches!(work, Work::Resumed(_));
        let (checkpoint, replica) = match work {
            Work::New(run) => {
                let NewRun {
                    task,
                    plan,
                    replica,
                } = *run;
                self.drop_unfinished(&mut candidate).await?;
                let digests = new_digests(&candidate, &task, &plan, &self.context.stop).await?;
                let path = candidate.files.checkpoint();
                let mut checkpoint = Checkpoint::new(&path, task, plan, digests);
                let decided = &candidate.decided;
                if matches!(decided.decision, Decision::Delta(_)) && !decided.rewrites_foreign {
                    checkpoint.begins_as_base();
                }
                (checkpoint, replica)
            }
            Work::Resumed(checkpoint) => (*checkpoint, None),
            Work::Nothing | Work::Compare => {
                let what = format!(
                    "cannot open {}: nothing is to be written",
                    candidate.target.name()
                );
                return Err(Error::new(Kind::Invalid, what));
            }
        };
        let mut checkpoint = checkpoint;
        if candidate.target.kind().is_new() {
            // The published object is made of the digests.
            checkpoint.need_digests();
        }
        let (sink, checkpoint) = self
            .open_sink(&candidate, checkpoint, replica.as_ref())
            .await?;
        let is_unproven = candidate.seen.facts.left == UnfinishedState::Unproven;
        let recheck =
            match is_resumed && is_unproven && candidate.target.kind() == TargetKind::Image {
                true => sink.read_back().await?,
                false => None,
            };
        let target = CopyTarget {
            name: candidate.target.name().to_owned(),
            sink,
            checkpoint,
            recheck,
        };
        let opened = OpenTarget {
            candidate,
            warnings,
        };
        Ok((target, opened))
    }

    async fn open_sink(
        &self,
        candidate: &Candidate,
        checkpoint: Checkpoint,
        replica: Option<&Replica>,
    ) -> Result<(Arc<dyn Sink>, Checkpoint)> {
        let (task, plan) = (checkpoint.task().clone(), Arc::clone(checkpoint.plan()));
        let (done, resume) = (checkpoint.done(), checkpoint.state().cloned());
        let is_fresh = resume.is_none();
        let between = between(candidate, &task, &plan);
        let record = candidate.files.record();
        let cell = Mutex::new(checkpoint);
        // The checkpoint first: when the record says "between", a checkpoint exists that can resume.
        let name = |state: &SinkState| {
            let mut checkpoint = cell.lock();
            checkpoint.set_state(state.clone());
            checkpoint.make_room(|checkpoint| {
                checkpoint.encode().write()?;
                match &between {
                    Some(between) => record::save(&record, between),
                    None => Ok(()),
                }
            })
        };
        let opened = candidate
            .target
            .open(Opening {
                task: &task,
                plan: &plan,
                done,
                source: &self.source.info,
                resume: resume.as_ref(),
                base: replica,
                mark: candidate.seen.facts.mark.as_ref(),
                name: &name,
                files: candidate.files.sink(),
                restart: self.job.restart,
                rate: self.job.rate,
                stop: &self.context.stop,
            })
            .await;
        let mut checkpoint = cell.into_inner();
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let is_final =
                    matches!(error.kind(), Kind::Denied | Kind::Invalid | Kind::NotFound);
                if is_fresh && is_final && candidate.target.kind().is_new() {
                    // The service refused the request: there is nothing to resume.
                    discard(candidate)?;
                }
                return Err(error);
            }
        };
        if opened.zero_the_rest {
            checkpoint.zero_the_rest();
        }
        checkpoint.set_state(opened.state);
        checkpoint.make_room(|checkpoint| checkpoint.encode().write())?;
        Ok((opened.sink, checkpoint))
    }

    /// Drops what an unfinished run has left. In place, its checkpoint stays until the new one replaces it: it lists the blocks
    /// that may be half written.
    async fn drop_unfinished(&self, candidate: &mut Candidate) -> Result<()> {
        let left = candidate
            .checkpoint
            .as_ref()
            .and_then(Checkpoint::state)
            .cloned();
        if let Some(left) = left {
            candidate.target.discard(&left).await?;
        }
        if !candidate.target.kind().is_in_place() {
            candidate.checkpoint = None;
            discard(candidate)?;
        }
        Ok(())
    }

    /// A target that holds the source: verifies it if the job asks for that, and updates its record.
    async fn held(&self, candidate: &Candidate, report: &mut Option<ReportFile>) -> Result<Ended> {
        let (name, facts) = (candidate.target.name(), &candidate.seen.facts);
        for warning in &candidate.decided.warnings {
            warn!("{warning}");
        }
        // While the state of a killed run is there: if this fails, the next run comes here again.
        candidate.target.repair()?;
        let left = candidate.checkpoint.as_ref().and_then(Checkpoint::state);
        if let Some(left) = left {
            candidate.target.discard(left).await?;
        }
        discard(candidate)?;
        let damaged = candidate.held_damaged();
        let image_sha256 = self.prove_held(candidate).await?;
        // Saves the new mark, so that the next run need not compare again.
        if let Some(record) = &candidate.seen.record
            && record.held() == Some(&self.source.info.name)
            && (record.mark != facts.mark || record.is_old_format)
            && !candidate.target.kind().is_new()
        {
            let record = TargetRecord {
                mark: facts.mark.clone().filter(|_| facts.mark_proves),
                ..record.clone()
            };
            record::save(&candidate.files.record(), &record)?;
            CompareCheckpoint::remove(&candidate.files.compare())?;
        }
        info!("{name} holds {} already", self.source.info.name);
        if let Some(file) = report {
            file.held(name, &self.source.info.name, self.job.verify, damaged)?;
        }
        let held = facts.holds.as_ref();
        Ok(Ended::Held {
            verified: self.job.verify,
            damaged,
            damaged_in_source: candidate.damaged_in_source(&self.source.info),
            image_sha256,
            snapshot: held.map(|id| match candidate.target.kind() {
                TargetKind::Repository => format!("{name}#{id}"),
                _ => id.to_string(),
            }),
        })
    }
}

/// What an outcome is, and its line in the report.
fn outcome(name: &str, ended: Result<Ended>, report: &mut Option<ReportFile>) -> TargetOutcome {
    let ended = match (ended, report) {
        (Err(error), Some(file)) => match file.failed(name, &error) {
            Ok(()) => Err(error),
            Err(other) => Err(error.context(other.chain())),
        },
        (ended, _) => ended,
    };
    TargetOutcome {
        target: name.to_owned(),
        ended,
    }
}

/// Removes the checkpoint of a target and the digests of its run.
pub(super) fn discard(candidate: &Candidate) -> Result<()> {
    for digests in candidate.files.next_digests() {
        Checkpoint::discard(&candidate.files.checkpoint(), &digests)?;
    }
    CompareCheckpoint::remove(&candidate.files.compare())
}

/// What the record says from the first change on of a target that is written in place.
fn between(candidate: &Candidate, task: &Task, plan: &Delta) -> Option<TargetRecord> {
    let is_recorded = task.in_place && candidate.seen.facts.has_identity;
    is_recorded.then(|| TargetRecord {
        run: task.run.clone(),
        target: task.target.clone(),
        content: Content::Between {
            base: task.base.clone(),
            head: task.source.clone(),
        },
        volume: task.volume.clone(),
        volume_bytes: plan.head().size(),
        mark: None,
        time: candidate
            .seen
            .record
            .as_ref()
            .and_then(|record| record.time),
        replica: None,
        damaged: Vec::new(),
        damaged_in_source: 0,
        is_old_format: false,
        report: serde_json::Value::Null,
    })
}

/// Makes the digests of a new run: whole for a full copy, and where the base's digests are whole. For a new object, and in all
/// other cases, they are of the plan's blocks only.
async fn new_digests(
    candidate: &Candidate,
    task: &Task,
    plan: &Delta,
    stop: &Stop,
) -> Result<Option<Digests>> {
    let unfinished = candidate.checkpoint.as_ref().and_then(Checkpoint::digests);
    // The digests of a run that is taken over keep their name until the new ones are complete.
    let path = candidate.files.free_digests(unfinished.as_ref());
    let head = plan.head();
    let create = |is_whole| candidate.if_room(Digests::create(&path, &task.run, head, is_whole));
    if candidate.target.kind().is_new() {
        return create(false);
    }
    if plan.base().is_none() {
        return create(true);
    }
    let old = match candidate.decided.decision {
        Decision::TakeOver(_) => unfinished,
        // The digests of content that a person vouches for are unknown.
        _ => candidate.digests.clone().filter(|_| {
            let record = candidate.seen.record.as_ref();
            record.is_some_and(|record| {
                record.held() == task.base.as_deref() && candidate.seen.is_proven(record)
            })
        }),
    };
    let Some(old) = old.filter(Digests::is_whole) else {
        return create(false);
    };
    let (run, to, stop) = (task.run.clone(), path.clone(), stop.clone());
    let cloned = blocking(move || Digests::clone_of(&old, &to, &run, head, &stop));
    match candidate.if_room(cloned.await)? {
        // There may be room for those of the plan's blocks.
        None => create(false),
        cloned => Ok(cloned),
    }
}

/// Adds a remedy to the error of a target that stays between two snapshots because its source cannot be read.
fn explain(opened: &OpenTarget, error: Error) -> Error {
    let target = &opened.candidate.target;
    match target.kind().is_in_place() {
        true => half_way(target.name(), error),
        false => error,
    }
}
