//! [`Planner`]: turns a decision into a plan of blocks. Each listing is made once for all targets.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::checkpoint::Checkpoint;
use super::digests::Digests;
use super::job::SyncJob;
use super::observe::Candidate;
use super::plan::{Decision, decide, usable_replicas};
use super::source::{Listings, Source};
use super::{Context, PlanReport};
use crate::block::{Delta, random_id};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::blocking;
use crate::snapshot::{DAMAGED_TAG, SnapshotId};
use crate::source::BlockSource;
use crate::target::{Base, Replica, Task};

/// A run that begins.
pub(super) struct NewRun {
    pub(super) task: Task,
    pub(super) plan: Arc<Delta>,
    /// What the plan is a delta of, where the target keeps several snapshots.
    pub(super) replica: Option<Replica>,
}

/// The work of a target.
pub(super) enum Work {
    /// Nothing: it holds the source.
    Nothing,
    /// A comparison comes first; only a dry run ends here.
    Compare,
    /// A new run.
    New(Box<NewRun>),
    /// One that is resumed.
    Resumed(Box<Checkpoint>),
}

/// A target with its plan.
pub(super) struct Planned {
    pub(super) candidate: Candidate,
    pub(super) work: Work,
    pub(super) warnings: Vec<String>,
    room: Option<String>,
    compare_time: Option<Duration>,
}

/// Plans one target after the other.
pub(super) struct Planner<'a> {
    job: &'a SyncJob,
    source: &'a Source,
    context: &'a Context<'a>,
    listings: Listings<'a>,
    /// Whether the base that was looked at last has no history in common with the source.
    is_unrelated: bool,
}

impl<'a> Planner<'a> {
    pub(super) fn new(job: &'a SyncJob, source: &'a Source, context: &'a Context<'a>) -> Self {
        Self {
            job,
            source,
            context,
            listings: Listings::new(source),
            is_unrelated: false,
        }
    }

    /// The source, read by the tokens of a listing that was made.
    pub(super) fn blocks(&self) -> Arc<dyn BlockSource> {
        self.listings.blocks()
    }

    pub(super) async fn plan(&mut self, mut candidate: Candidate) -> Result<Planned> {
        let name = &self.source.info.name;
        self.context.progress.begin(format!("listing {name}"), 0);
        let work = self.work(&mut candidate).await?;
        let damaged = self.source.info.damaged_blocks();
        if damaged > 0 {
            let by = match self.source.info.snapshot {
                Some(_) => format!("tag {DAMAGED_TAG}"),
                None => "its record".to_owned(),
            };
            candidate.decided.warnings.push(format!(
                "{name}: {damaged} of its blocks are zero because its own source was damaged ({by}); no list says which"
            ));
        }
        let mut warnings = candidate.decided.warnings.clone();
        let room = self.room(&candidate, &work)?;
        if candidate.decided.rewrites_foreign {
            warnings.push(format!(
                "{}: {} blocks that something else has written are overwritten",
                candidate.target.name(),
                candidate.foreign.len()
            ));
        }
        let verify = self.job.verify;
        let compare_time = candidate.compare_time(verify, &self.context.stop).await?;
        Ok(Planned {
            candidate,
            work,
            warnings,
            room,
            compare_time,
        })
    }

    async fn work(&mut self, candidate: &mut Candidate) -> Result<Work> {
        match candidate.decided.decision.clone() {
            Decision::Holds => Ok(Work::Nothing),
            Decision::Compare => Ok(Work::Compare),
            Decision::Full => self.full(candidate).await,
            Decision::Delta(bases) => self.delta(candidate, bases).await,
            Decision::TakeOverPart(other) => self.take_over_part(candidate, &other).await,
            Decision::TakeOver(base) => self.take_over(candidate, &base).await,
            Decision::Resume => self.resume(candidate).await,
            Decision::Refuse { kind, reason, .. } => Err(Error::new(kind, reason)),
        }
    }

    async fn resume(&mut self, candidate: &mut Candidate) -> Result<Work> {
        let Some(checkpoint) = candidate.checkpoint.take() else {
            return self.full(candidate).await;
        };
        // Listing changes again is cheaper than listing the snapshot around each of them.
        if let Some(base) = &checkpoint.task().base
            && let Ok(base) = base.parse()
            && let Err(error) = self.listings.delta(&base, &self.context.stop).await
        {
            if error.kind() == Kind::Stopped {
                return Err(error);
            }
            info!("resuming by the earlier plan: {}", error.chain());
        }
        Ok(Work::Resumed(Box::new(checkpoint)))
    }

    async fn full(&mut self, candidate: &Candidate) -> Result<Work> {
        let held = self.listings.held(&self.context.stop).await?;
        let plan = Delta::full(self.source.info.geometry, &held, false);
        let run = self.new_run(candidate, plan, None, None).await?;
        Ok(Work::New(Box::new(run)))
    }

    /// The changes since the first of several bases that can still be listed.
    async fn delta(&mut self, candidate: &mut Candidate, bases: Vec<SnapshotId>) -> Result<Work> {
        self.is_unrelated = false;
        for base in bases {
            let replicas = usable_replicas(self.job, &self.source.info, &candidate.seen.facts);
            let replica = replicas.into_iter().find(|replica| replica.source == base);
            let replica = replica.cloned();
            let digests = candidate.proven_digests(self.job);
            let Some(delta) = self.listable_delta(&base, digests.as_ref()).await? else {
                continue;
            };
            let mut plan = (*delta).clone();
            if candidate.decided.rewrites_foreign {
                plan.write_too(&candidate.foreign);
            }
            plan.write_too(&candidate.damaged());
            plan.cover_short_end();
            let run = self.new_run(candidate, plan, Some(base), replica).await?;
            return Ok(Work::New(Box::new(run)));
        }
        if self.is_unrelated
            && !candidate.target.kind().is_new()
            && !self.job.names(&candidate.seen.facts)
        {
            let what = format!(
                "cannot write {}: it holds a snapshot that {} has no history in common with",
                candidate.target.name(),
                self.source.info.name
            );
            let token = candidate.seen.facts.token.clone();
            return Err(Error::new(Kind::Undecided, what).with_remedy(Remedy::Overwrite(token)));
        }
        // No base can be listed: decide again, since a full copy may need other permission.
        candidate.seen.facts.replicas.clear();
        let mut job = self.job.clone();
        if !candidate.target.kind().is_new() {
            job.base = Base::None;
        }
        let decided = decide(&job, &self.source.info, &candidate.seen);
        if let Some(error) = decided.refusal() {
            return Err(error);
        }
        candidate.decided.decision = Decision::Full;
        candidate.decided.rewrites_foreign = false;
        self.full(candidate).await
    }

    async fn take_over(&mut self, candidate: &mut Candidate, base: &SnapshotId) -> Result<Work> {
        // What the unfinished run touched is written in any case: its digests do not matter there.
        let digests = candidate.proven_digests(self.job);
        let Some(delta) = self.listable_delta(base, digests.as_ref()).await? else {
            candidate.decided.decision = Decision::Full;
            candidate.decided.rewrites_foreign = false;
            return self.full(candidate).await;
        };
        let mut plan = (*delta).clone();
        if let Some(unfinished) = &candidate.checkpoint {
            plan.rewrite_touched(unfinished.plan());
            plan.write_too(unfinished.damaged());
        }
        if candidate.decided.rewrites_foreign {
            plan.write_too(&candidate.foreign);
        }
        plan.write_too(&candidate.damaged());
        plan.cover_short_end();
        let run = self
            .new_run(candidate, plan, Some(base.clone()), None)
            .await?;
        Ok(Work::New(Box::new(run)))
    }

    /// An unfinished copy of another snapshot becomes one of the source, or is dropped where what changed since cannot be listed.
    async fn take_over_part(
        &mut self,
        candidate: &mut Candidate,
        other: &SnapshotId,
    ) -> Result<Work> {
        let taken = match candidate.checkpoint.take() {
            Some(unfinished) => self.taken_over(candidate, unfinished, other).await,
            None => Ok(None),
        };
        match taken {
            Ok(Some(checkpoint)) => return Ok(Work::Resumed(Box::new(checkpoint))),
            Ok(None) => {}
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unrelated) => {
                info!("dropping the unfinished copy of {other}: {}", error.chain());
            }
            Err(error) => return Err(error),
        }
        candidate.seen.unfinished = None;
        candidate.decided = decide(self.job, &self.source.info, &candidate.seen);
        match candidate.decided.refusal() {
            Some(error) => Err(error),
            // Without an unfinished run nothing is taken over.
            None => Box::pin(self.work(candidate)).await,
        }
    }

    async fn taken_over(
        &mut self,
        candidate: &mut Candidate,
        unfinished: Checkpoint,
        other: &SnapshotId,
    ) -> Result<Option<Checkpoint>> {
        let stop = &self.context.stop;
        let changed = self.listings.delta(other, stop).await?;
        let base: Option<SnapshotId> = match &unfinished.task().base {
            Some(base) => Some(base.parse()?),
            None => None,
        };
        let mut plan = match &base {
            Some(base) => (*self.listings.delta(base, stop).await?).clone(),
            None => {
                let held = self.listings.held(stop).await?;
                Delta::full(self.source.info.geometry, &held, false)
            }
        };
        plan.rewrite_touched(unfinished.plan());
        let NewRun { task, plan, .. } = self.new_run(candidate, plan, base, None).await?;
        let digests = match unfinished.digests() {
            Some(old) if !self.job.dry_run => {
                let path = candidate.files.free_digests(Some(&old));
                let (run, stop, head) = (task.run.clone(), stop.clone(), plan.head());
                let cloned = blocking(move || Digests::clone_of(&old, &path, &run, head, &stop));
                candidate.if_room(cloned.await)?
            }
            old => old,
        };
        info!(
            "{}: taking over the unfinished copy of {other}",
            candidate.target.name()
        );
        Ok(Some(unfinished.taken_over(task, plan, &changed, digests)))
    }

    /// The changes since a base; none where the base was chosen automatically and cannot be listed any more. Before that, what is known
    /// of a base that was removed is asked: digests of what the target holds, or what the source still has of it.
    async fn listable_delta(
        &mut self,
        base: &SnapshotId,
        digests: Option<&Digests>,
    ) -> Result<Option<Arc<Delta>>> {
        match self.listings.delta(base, &self.context.stop).await {
            Err(error)
                if self.job.base == Base::Auto
                    && matches!(error.kind(), Kind::NotFound | Kind::Unrelated) =>
            {
                let stop = &self.context.stop;
                let delta = match digests {
                    _ if error.kind() != Kind::NotFound => None,
                    Some(digests) => self.listings.delta_of_digests(digests, stop).await?,
                    None => self.listings.delta_of_removed(base, stop).await?,
                };
                if let Some(delta) = delta {
                    info!(
                        "comparing digests for the changes since {base}: {}",
                        error.chain()
                    );
                    return Ok(Some(delta));
                }
                self.is_unrelated |= error.kind() == Kind::Unrelated;
                warn!(
                    "cannot copy only the changes since {base}: {}",
                    error.chain()
                );
                Ok(None)
            }
            delta => delta.map(Some),
        }
    }

    async fn new_run(
        &self,
        candidate: &Candidate,
        plan: Delta,
        base: Option<SnapshotId>,
        replica: Option<Replica>,
    ) -> Result<NewRun> {
        let target = &candidate.target;
        let plan = target.adapt(Arc::new(plan), replica.as_ref());
        let plan = self.context.stop.unless(plan).await?;
        // `adapt` may have turned the delta into a full copy.
        let base = base.filter(|_| plan.base().is_some());
        let source = &self.source.info;
        let task = Task {
            run: random_id(),
            // The run that the record says has begun to write in place: a kill before the next record loses nothing.
            after: candidate
                .seen
                .record
                .as_ref()
                .filter(|record| record.held().is_none())
                .map(|record| record.run.clone()),
            in_place: target.kind().is_in_place(),
            source: source.name.clone(),
            source_mark: source.mark.clone(),
            volume: source.volume.clone(),
            base: base.map(|base| base.to_string()),
            target: target.id().to_owned(),
            target_name: target.name().to_owned(),
        };
        Ok(NewRun {
            task,
            plan,
            replica,
        })
    }

    /// Checks the free space of an image target: an error when the image cannot fit, a warning when it may not.
    fn room(&self, candidate: &Candidate, work: &Work) -> Result<Option<String>> {
        let facts = &candidate.seen.facts;
        let Some(free) = facts.free else {
            return Ok(None);
        };
        let (blocks, clone) = match work {
            Work::Nothing | Work::Compare => return Ok(None),
            Work::New(run) => {
                let plan = &run.plan;
                let is_clone = plan.base().is_some();
                (
                    plan.write().len(),
                    if is_clone { facts.clone_bytes } else { 0 },
                )
            }
            Work::Resumed(checkpoint) => {
                let left = checkpoint.missing();
                (left.len(), 0)
            }
        };
        super::plan::room(
            candidate.target.name(),
            free,
            clone,
            blocks,
            self.job.reserve,
        )
    }
}

impl Planned {
    pub(super) fn name(&self) -> &str {
        self.candidate.target.name()
    }

    pub(super) fn report(&self, job: &SyncJob, source: &Source) -> PlanReport {
        let (task, plan, done) = match &self.work {
            Work::Nothing | Work::Compare => (None, None, 0),
            Work::New(run) => (Some(&run.task), Some(&run.plan), 0),
            Work::Resumed(checkpoint) => (
                Some(checkpoint.task()),
                Some(checkpoint.plan()),
                checkpoint.done(),
            ),
        };
        let candidate = &self.candidate;
        let is_delta = plan.is_some_and(|plan| plan.base().is_some());
        let compare_bytes = match &self.work {
            Work::Compare => candidate.compare_bytes(),
            Work::Nothing if job.verify => {
                let geometry = candidate.recorded_geometry();
                geometry.map_or(0, crate::block::Geometry::size)
            }
            _ => 0,
        };
        PlanReport {
            target: self.name().to_owned(),
            kind: candidate.target.kind(),
            decision: candidate.decided.decision.clone(),
            source: source.info.name.clone(),
            base: task.and_then(|task| task.base.clone()),
            write: plan.map_or(0, |plan| plan.write().len()),
            zero: plan.map_or(0, |plan| plan.zero().len()),
            done,
            clone_bytes: if is_delta {
                candidate.seen.facts.clone_bytes
            } else {
                0
            },
            compare_bytes,
            compare_time: self.compare_time,
            room: self.room.clone(),
            warnings: self.warnings.clone(),
        }
    }
}
