//! [`Candidate`]: a locked and observed target, and the decision for it.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::Context;
use super::checkpoint::{Checkpoint, WITHOUT_DIGESTS};
use super::copy::{INTERVAL, ZERO_STEP};
use super::digests::Digests;
use super::files::StateFiles;
use super::job::SyncJob;
use super::lock::Locks;
use super::plan::{Comparison, Decided, Decision, Observed, decide};
use super::record;
use super::source::Source;
use super::verify;
use crate::block::{BlockIndex, BlockSet, Extent, Geometry};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::{make_folder_of, remove_if_there};
use crate::snapshot::SnapshotId;
use crate::target::{
    Content, ObserveRequest, SourceInfo, Stop, Target, TargetRecord, UnfinishedState,
};

/// A target of a run, until it is opened.
pub(super) struct Candidate {
    pub(super) target: Arc<dyn Target>,
    pub(super) files: StateFiles,
    /// Held to the end of the run; none in a dry run.
    pub(super) _locks: Option<Locks>,
    pub(super) seen: Observed,
    pub(super) decided: Decided,
    /// What an unfinished run left.
    pub(super) checkpoint: Option<Checkpoint>,
    /// The digests of what the record says.
    pub(super) digests: Option<Digests>,
    /// Blocks that a comparison found to be foreign.
    pub(super) foreign: BlockSet,
}

impl Candidate {
    /// Locks, observes and decides; compares if the decision is to compare.
    pub(super) async fn observe(
        job: &SyncJob,
        source: &Source,
        target: Arc<dyn Target>,
        context: &Context<'_>,
    ) -> Result<Self> {
        let files = StateFiles::of(&target.state().stem);
        context
            .progress
            .begin(format!("observing {}", target.name()), 0);
        let locks = match job.dry_run {
            true => None,
            false => Some(take_locks(&*target, &files, context).await?),
        };
        if locks.is_some() {
            files.remove_temporary();
        }
        let mut checkpoint = load_checkpoint(&files, job)?;
        let mut seen = look(job, source, &*target, &files, checkpoint.as_ref(), context).await?;
        let mut digests = recorded_digests(&files, seen.record.as_ref(), job.dry_run)?;
        if let Some((record, its)) = published(checkpoint.as_ref(), &seen) {
            digests = its;
            seen.record = Some(record);
            seen.unfinished = None;
            if let (Some(record), false) = (&seen.record, job.dry_run) {
                record::save(&files.record(), record)?;
                digests = recorded_digests(&files, Some(record), false)?;
                remove_if_there(&files.checkpoint())?;
            }
            checkpoint = None;
        }
        let mut candidate = Self {
            decided: Decided::undecided(),
            target,
            files,
            _locks: locks,
            seen,
            checkpoint,
            digests,
            foreign: BlockSet::new(),
        };
        candidate.seen.has_digests = candidate.evidence().is_some();
        let unfinished = candidate.checkpoint.as_ref().and_then(Checkpoint::digests);
        candidate.seen.unfinished_has_digests =
            unfinished.is_some_and(|digests| digests.is_whole());
        candidate.decided = decide(job, &source.info, &candidate.seen);
        if candidate.decided.decision == Decision::Compare && !job.dry_run {
            candidate.count_sectors(source, context).await?;
            candidate.decided = decide(job, &source.info, &candidate.seen);
        }
        if candidate.decided.decision == Decision::Compare && !job.dry_run {
            candidate.compare(job, source, context).await?;
        }
        match candidate.decided.refusal() {
            Some(error) => Err(error),
            None => Ok(candidate),
        }
    }

    /// Whether an unfinished run has begun to write the target itself.
    fn is_half_written(&self) -> bool {
        let record = self.seen.record.as_ref();
        let is_between = record.is_some_and(|record| record.held().is_none());
        self.checkpoint.is_some() && is_between && self.target.kind().is_in_place()
    }

    /// The whole digests that the target should match: the unfinished run's where it is half written, else the record's.
    fn evidence(&self) -> Option<Digests> {
        let half = self.checkpoint.as_ref().filter(|_| self.is_half_written());
        let digests = match half {
            Some(checkpoint) => checkpoint.digests(),
            None => self.digests.clone(),
        };
        digests.filter(Digests::is_whole)
    }

    /// The digests of all that an image or device is proven to hold. None where a person vouches for the content: its digests may be of
    /// something else.
    pub(super) fn proven_digests(&self, job: &SyncJob) -> Option<Digests> {
        let is_proven = job.trust.is_none() && !self.target.kind().is_new();
        self.evidence().filter(|_| is_proven)
    }

    /// Checks whether the kernel's count of sectors proves that only the unfinished run has written the target: then nothing
    /// need be compared.
    async fn count_sectors(&mut self, source: &Source, context: &Context<'_>) -> Result<()> {
        let base = Digests::open(&self.files.digests())?;
        let half = self.checkpoint.as_ref().filter(|_| self.is_half_written());
        let (Some(checkpoint), Some(base), Some(kernel_sectors)) =
            (half, base, self.seen.facts.written_since)
        else {
            return Ok(());
        };
        let task = checkpoint.task();
        let is_its_source = task.source == source.info.name && task.source_mark == source.info.mark;
        let Some(digests) = checkpoint
            .digests()
            .filter(|_| is_its_source && checkpoint.began_as_base())
        else {
            return Ok(());
        };
        let name = self.target.name();
        context
            .progress
            .begin(format!("counting the sectors of {name}"), 0);
        let reader = self.target.reader(None, digests.geometry()).await?;
        let run = verify::KilledRun {
            done: checkpoint.done_blocks(),
            writes: &checkpoint.plan().write().without(checkpoint.done_blocks()),
            interval: INTERVAL,
            zeroes: &checkpoint.plan().zero().without(checkpoint.done_blocks()),
            zero_interval: ZERO_STEP as usize,
            counts_zeroes: self.seen.facts.counts_zeroes,
            digests: &digests,
            base: &base,
            kernel_sectors,
        };
        let found = verify::written_by_run(reader, &*source.blocks, &run, &context.stop).await?;
        let target = Arc::clone(&self.target);
        let mark = crate::files::blocking(move || target.mark()).await?;
        let Some(written) = found.filter(|_| mark == self.seen.facts.mark) else {
            return Ok(());
        };
        info!(
            "{name}: the kernel counted the sectors of {} blocks since the unfinished run began, and no others",
            checkpoint.done() + written.len() as u64
        );
        digests.write(&written)?;
        let Some(checkpoint) = &mut self.checkpoint else {
            return Ok(());
        };
        if let Some(state) = checkpoint.state().cloned() {
            checkpoint.mark(written.iter().map(|(index, _)| Extent::of(*index)), state);
        }
        self.seen.unfinished = Some((checkpoint.task().clone(), checkpoint.done()));
        self.seen.facts.left = UnfinishedState::Proven;
        Ok(())
    }

    /// Reads the target past every cache, compares it with its digests, and decides again.
    async fn compare(
        &mut self,
        job: &SyncJob,
        source: &Source,
        context: &Context<'_>,
    ) -> Result<()> {
        let Some(digests) = self.evidence() else {
            return Ok(());
        };
        let name = self.target.name().to_owned();
        let geometry = digests.geometry();
        let half = self.checkpoint.as_ref().filter(|_| self.is_half_written());
        let skip = half.map(Checkpoint::missing).unwrap_or_default();
        info!(
            "{name}: its mark has changed or proves nothing: comparing {} with its digests",
            bytesize::ByteSize::b(geometry.size())
        );
        let blocks = u64::from(geometry.block_count());
        context.progress.begin(format!("comparing {name}"), blocks);
        let reader = self.target.reader(None, geometry).await?;
        let before = self.seen.facts.mark.clone();
        let path = self.files.compare();
        let resumable = before
            .as_ref()
            .map(|mark| verify::Resumable { path: &path, mark });
        let reach = |blocks| context.progress.reach(blocks);
        let compared =
            verify::compare(reader, &digests, &skip, resumable, &reach, &context.stop).await?;
        let again = look(
            job,
            source,
            &*self.target,
            &self.files,
            self.checkpoint.as_ref(),
            context,
        )
        .await?;
        if again.facts.mark != before {
            let what =
                format!("cannot write {name}: something else wrote it while it was compared");
            return Err(Error::new(Kind::Undecided, what).with_remedy(Remedy::TryLater));
        }
        info!(
            "{name}: {} blocks compared, {} differ, {} of those are the unfinished run's",
            compared.blocks,
            compared.differing.len() + compared.in_plan.len(),
            compared.in_plan.len()
        );
        if compared.unknown > 0 {
            // Digests with unknown entries prove nothing about the whole target.
            self.seen.has_digests = false;
        } else {
            self.seen.compared = Some(match compared.differing.is_empty() {
                true => Comparison::Same,
                false => Comparison::Foreign {
                    blocks: compared.differing.len(),
                    ranges: verify::describe(&compared.differing, geometry),
                },
            });
        }
        self.foreign = compared.differing;
        self.decided = decide(job, &source.info, &self.seen);
        Ok(())
    }

    /// New digests; none, with a warning, where there is no room for them and the copy is of use without.
    ///
    /// # Errors
    /// Any other error of `made`.
    pub(super) fn if_room(&self, made: Result<Digests>) -> Result<Option<Digests>> {
        match made {
            Err(error) if error.kind() == Kind::NoSpace && !self.target.kind().is_new() => {
                let name = self.target.name();
                warn!("{name}: {WITHOUT_DIGESTS}: {}", error.chain());
                Ok(None)
            }
            made => made.map(Some),
        }
    }

    /// Bytes that a comparison would read.
    pub(super) fn compare_bytes(&self) -> u64 {
        self.evidence()
            .map_or(0, |digests| digests.geometry().size())
    }

    /// How long the comparison takes that was decided for a dry run, or that `verify` asks for, by a short measurement; none where
    /// there is none, or the target cannot be measured.
    ///
    /// # Errors
    /// `Stopped`.
    pub(super) async fn compare_time(&self, verify: bool, stop: &Stop) -> Result<Option<Duration>> {
        let digests = match self.decided.decision {
            Decision::Compare => self.evidence(),
            Decision::Holds if verify => self.digests.clone().filter(Digests::is_whole),
            _ => None,
        };
        let Some(digests) = digests.filter(|_| !self.target.kind().is_new()) else {
            return Ok(None);
        };
        let measured = async {
            let reader = self.target.reader(None, digests.geometry()).await?;
            verify::estimate(reader, &digests, stop).await
        };
        match measured.await {
            Err(error) if error.kind() == Kind::Stopped => Err(error),
            Err(error) => {
                let name = self.target.name();
                debug!("{name}: cannot measure its speed: {}", error.chain());
                Ok(None)
            }
            Ok(time) => Ok(Some(time)),
        }
    }

    /// The volume that the record speaks of.
    pub(super) fn recorded_geometry(&self) -> Option<Geometry> {
        let record = self.seen.record.as_ref()?;
        Geometry::new(record.volume_bytes).ok()
    }

    /// The blocks that the record lists as damaged.
    pub(super) fn damaged(&self) -> BlockSet {
        let record = self.seen.record.as_ref();
        record
            .map(|record| BlockSet::of_pairs(&record.damaged, BlockIndex(u32::MAX)))
            .unwrap_or_default()
    }

    /// Blocks that are zero in the source that the target holds, which no list names: the tag may not be readable any more.
    pub(super) fn damaged_in_source(&self, source: &SourceInfo) -> u64 {
        let is_its = |record: &&TargetRecord| record.held() == Some(&source.name);
        let record = self.seen.record.as_ref().filter(is_its);
        let recorded = record.map_or(0, |record| record.damaged_in_source);
        source.damaged_blocks().max(recorded)
    }

    /// Blocks that are zero in the copy of the source that the target holds already, because the source was damaged.
    pub(super) fn held_damaged(&self) -> u64 {
        let (facts, record) = (&self.seen.facts, self.seen.record.as_ref());
        let holds = facts.holds.as_ref().map(SnapshotId::as_str);
        let is_its = |record: &&TargetRecord| record.replica.as_deref() == holds;
        let recorded = match record.filter(is_its) {
            Some(_) => self.damaged().len(),
            None => 0,
        };
        facts.held_damaged.max(recorded)
    }
}

/// An image that a run published and was killed before it recorded that: what the record must say, and its digests, if they speak
/// of every block. Its mark is not known, so that the image is compared before anything is built on it. None where not all was
/// written: it is some other file.
fn published(
    checkpoint: Option<&Checkpoint>,
    seen: &Observed,
) -> Option<(TargetRecord, Option<Digests>)> {
    let checkpoint = checkpoint.filter(|_| seen.facts.is_published)?;
    let task = checkpoint.task();
    let digests = checkpoint.digests().filter(Digests::is_whole);
    let is_whole = checkpoint.missing().is_empty();
    let is_its = task.target == seen.id && !task.in_place;
    let record = TargetRecord {
        run: task.run.clone(),
        target: task.target.clone(),
        content: Content::Holds(task.source.clone()),
        volume: task.volume.clone(),
        volume_bytes: checkpoint.plan().head().size(),
        mark: None,
        time: None,
        replica: None,
        damaged: super::report::pairs(checkpoint.damaged()),
        damaged_in_source: 0,
        is_old_format: false,
        report: serde_json::Value::Null,
    };
    (is_whole && is_its).then_some((record, digests))
}

async fn take_locks(
    target: &dyn Target,
    files: &StateFiles,
    context: &Context<'_>,
) -> Result<Locks> {
    let (name, others) = (files.lock(), target.locks()?);
    make_folder_of(&name)?;
    let stop = context.stop.clone();
    crate::files::blocking(move || Locks::take(&name, &others, &stop)).await
}

fn load_checkpoint(files: &StateFiles, job: &SyncJob) -> Result<Option<Checkpoint>> {
    match Checkpoint::load(&files.checkpoint(), &files.next_digests()) {
        Err(error) if job.restart && error.kind() == Kind::Corrupt => {
            warn!("{}", error.chain());
            Ok(None)
        }
        loaded => loaded,
    }
}

async fn look(
    job: &SyncJob,
    source: &Source,
    target: &dyn Target,
    files: &StateFiles,
    checkpoint: Option<&Checkpoint>,
    context: &Context<'_>,
) -> Result<Observed> {
    let known = record::load(&files.record(), None)?;
    let replica = known.as_ref().and_then(|record| record.replica.as_deref());
    let ask = ObserveRequest {
        source: &source.info,
        base: &job.base,
        left: checkpoint.and_then(Checkpoint::state),
        replica,
    };
    let facts = context.stop.unless(target.observe(&ask)).await?;
    // A record of version 1 is matched with the mark as it is now.
    let record = record::load(&files.record(), facts.mark.as_ref())?;
    Ok(Observed {
        kind: target.kind(),
        name: target.name().to_owned(),
        id: target.id().to_owned(),
        facts,
        record,
        unfinished: checkpoint.map(|checkpoint| (checkpoint.task().clone(), checkpoint.done())),
        has_digests: false,
        unfinished_has_digests: false,
        compared: None,
    })
}

/// The digests of the run that wrote the record. A run that was killed between its record and the rename of its digests left them
/// under another name.
pub(super) fn recorded_digests(
    files: &StateFiles,
    record: Option<&TargetRecord>,
    dry_run: bool,
) -> Result<Option<Digests>> {
    let Some(record) = record.filter(|record| record.held().is_some()) else {
        return Ok(None);
    };
    let is_its = |digests: &Digests| digests.run() == record.run;
    if let Some(digests) = Digests::open(&files.digests())?.filter(is_its) {
        return Ok(Some(digests));
    }
    for path in files.next_digests() {
        if let Some(digests) = Digests::open(&path)?.filter(is_its) {
            return match dry_run {
                true => Ok(Some(digests)),
                false => digests.publish(&files.digests()).map(Some),
            };
        }
    }
    Ok(None)
}
