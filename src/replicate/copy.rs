//! The copies of one volume: its snapshot into all of its targets, each from the base that the target is proven to hold.

mod local;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::clean::JOB_TAG;
use super::cycle::CycleRun;
use super::job::{JobSource, LEAST_RATE, ReplicateJob};
use super::places::OpenedSnapshot;
use super::report::{CopyOutcome, VolumeOutcome};
use super::retain::{CLAIM_TAG, COPYING, HOLDS, NeededBases, claimant};
use super::state::{CopyUnderWay, RecoveryPoint};
use super::template::{AssignedTarget, is_shared};
use crate::error::{Error, Kind, Result};
use crate::files::machine_id;
use crate::repository::Address;
use crate::snapshot::{SnapshotId, YOUNG, tag_with_own_id};
use crate::sync::{
    self, Context, Ended, OnDamage, PlanReport, Progress, Source, SyncJob, TargetOutcome, Ui,
    needed_bases,
};
use crate::target::{Base, Stop, Target};

/// The first pause before a failed copy is tried again, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// How long the first copy of a volume is tried again: the progress of a copy to a repository is lost with its snapshot.
const FIRST_COPY: Duration = Duration::from_secs(24 * 3600);
/// The longest that a block waits for its turn under a rate, behind those of all volumes: it limits the blocks in flight.
const TURN_SECONDS: u64 = 10;
/// How often a copy notes what it does.
const NOTE_EVERY: Duration = Duration::from_secs(2);
/// Blocks in flight of a volume; with packs they take memory twice.
const IN_FLIGHT: u64 = 64;
const IN_FLIGHT_WITH_PACKS: u64 = 40;

/// A volume with its snapshot and its targets.
#[derive(Clone, Debug)]
pub(super) struct VolumeWork {
    pub(super) volume: String,
    pub(super) copy: CopyUnderWay,
    pub(super) targets: Vec<AssignedTarget>,
    /// Whether one of its targets was left out.
    pub(super) is_incomplete: bool,
}

/// Which volume each open target is of: no two volumes are written to one object, whatever its names are.
#[derive(Debug, Default)]
pub(super) struct OpenTargets(Mutex<BTreeMap<String, String>>);

impl OpenTargets {
    fn claim(&self, target: &dyn Target, volume: &str) -> Result<()> {
        let mut open = self.0.lock();
        let owner = open
            .entry(target.id().to_owned())
            .or_insert_with(|| volume.to_owned());
        if owner == volume {
            return Ok(());
        }
        let what = format!(
            "cannot replicate {volume} to {}: {owner} is replicated to it",
            target.name()
        );
        Err(Error::new(Kind::Invalid, what))
    }

    pub(super) fn release(&self, volume: &str) {
        self.0.lock().retain(|_, owner| owner != volume);
    }
}

/// Shows the plans of a volume in the log.
struct LogUi<'a> {
    volume: &'a str,
}

impl Ui for LogUi<'_> {
    fn plans(&self, plans: &[PlanReport]) -> Result<()> {
        for plan in plans {
            let since = plan.base.as_deref().unwrap_or("nothing");
            info!(
                "{}: {} to {}, changes since {since}: {} blocks to write, {} to zero",
                self.volume, plan.source, plan.target, plan.write, plan.zero
            );
            // The run itself logs the other warnings.
            if let Some(room) = &plan.room {
                warn!("{room}");
            }
        }
        Ok(())
    }

    /// The job names what may be overwritten.
    fn confirm(&self, _target: &str) -> Result<()> {
        Ok(())
    }
}

/// What a copy is asked to do.
pub(super) fn sync_job(job: &ReplicateJob) -> SyncJob {
    let has_packs = job
        .targets
        .iter()
        .any(|target| Address::looks_like(&target.to));
    let most = match has_packs {
        true => IN_FLIGHT_WITH_PACKS,
        false => IN_FLIGHT,
    };
    let rate = job.rates.least().map(|rate| (rate / LEAST_RATE).max(1));
    let volumes = u64::try_from(job.at_once).unwrap_or(1).max(1);
    let in_turn = rate.map_or(most, |rate| rate.saturating_mul(TURN_SECONDS) / volumes);
    let plain = SyncJob::full();
    SyncJob {
        base: Base::Auto,
        overwrite: job.overwrite.clone(),
        allow_plaintext: job.allow_plaintext,
        on_damage: OnDamage::Fail,
        verify: job.verify,
        reserve: job.reserve,
        stage: job.stage.clone(),
        rate: rate.map_or(plain.rate, |rate| {
            u32::try_from(rate).unwrap_or(u32::MAX).min(plain.rate)
        }),
        in_flight: usize::try_from(most.min(in_turn).max(2)).unwrap_or(2),
        ..plain
    }
}

/// The machine's id, or its name where it has none.
fn machine() -> String {
    machine_id().unwrap_or_else(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
        name.unwrap_or_default().trim().to_owned()
    })
}

/// Whether a failure can pass by itself.
fn can_pass(error: &Error) -> bool {
    matches!(
        error.kind(),
        Kind::Throttled | Kind::Unavailable | Kind::Pending | Kind::Busy
    )
}

impl VolumeOutcome {
    /// Those of these targets that do not hold the snapshot, as far as is known.
    fn without_snapshot(&self, targets: &[AssignedTarget]) -> Vec<AssignedTarget> {
        let without = targets.iter().filter(|target| !self.holds(target));
        without.cloned().collect()
    }

    /// Sets how the copy to a target ended, in place of an earlier attempt.
    fn set(&mut self, target: &AssignedTarget, held: Result<RecoveryPoint>) {
        self.targets.retain(|copy| copy.target != *target);
        self.targets.push(CopyOutcome {
            target: target.clone(),
            held,
        });
    }
}

impl CycleRun {
    /// Copies a volume. For images and devices it claims the snapshot before, and what it holds after: other machines cannot ask these.
    pub(super) async fn copy_volume(&self, work: &VolumeWork) -> VolumeOutcome {
        let is_local = |target: &&AssignedTarget| !is_shared(&target.name);
        let local = || work.targets.iter().filter(is_local);
        let names = local().map(|target| target.name.as_str());
        let is_of_ec2 = matches!(self.job.source, JobSource::Ec2(_));
        let mut local_names = names.peekable();
        let claims = is_of_ec2 && local_names.peek().is_some();
        let claimant = claims.then(|| claimant(&machine(), local_names));
        if let Some(claimant) = &claimant {
            self.claim(work, claimant, COPYING).await;
        }
        let mut outcome = tokio::select! {
            outcome = self.copy_with_retries(work) => outcome,
            never = self.note_progress(&work.volume) => match never {},
        };
        if work.is_incomplete {
            outcome.needed.add(None);
        }
        let mut copies = outcome.targets.iter();
        let is_held = copies.all(|copy| copy.held.is_ok() || !is_local(&&copy.target));
        if let Some(claimant) = claimant
            .as_ref()
            .filter(|_| is_held && outcome.failure.is_none())
        {
            self.claim(work, claimant, HOLDS).await;
        }
        outcome.claimant = claimant;
        outcome
    }

    /// Notes what the copy of a volume does, for [`super::status`]; for ever.
    async fn note_progress(&self, volume: &str) -> Infallible {
        loop {
            sleep(NOTE_EVERY).await;
            let phase = self.live.phase(volume);
            self.memory.update_lazily(|state| {
                let known = state.volumes.get_mut(volume);
                if let Some(copy) = known.and_then(|known| known.under_way.as_mut()) {
                    copy.phase = phase;
                }
            });
        }
    }

    /// Tags the snapshot of a volume with a claim.
    async fn claim(&self, work: &VolumeWork, claimant: &str, what: &str) {
        let tag = (format!("{CLAIM_TAG}{claimant}"), what.to_owned());
        let (id, tags) = (&work.copy.snapshot, [tag]);
        let tagged = async {
            let maker = self.places.maker()?;
            tag_with_own_id(&*maker, id, &tags, YOUNG).await
        };
        if let Err(error) = self.stop.unless(tagged).await
            && error.kind() != Kind::Stopped
            && self.memory.update(|state| state.says("claim"))
        {
            warn!(
                "another machine with this job may delete the snapshots that images and devices here need: {}",
                error.chain()
            );
        }
    }

    /// What fails and can pass is tried again until the next cycle is due.
    async fn copy_with_retries(&self, work: &VolumeWork) -> VolumeOutcome {
        let mut outcome = VolumeOutcome {
            volume: work.volume.clone(),
            snapshot: work.copy.snapshot.clone(),
            time: None,
            targets: Vec::new(),
            failure: None,
            needed: NeededBases::These([work.copy.snapshot.clone()].into()),
            claimant: None,
            bytes: 0,
        };
        let began = SystemTime::now();
        let mut pause = PAUSES.0;
        let mut left: Vec<AssignedTarget> = work.targets.clone();
        loop {
            outcome.failure = None;
            let progress = self.live.begin(&work.volume);
            let done = self.attempt(work, &left, &progress, &mut outcome).await;
            self.live.end(&work.volume);
            if let Err(error) = done {
                outcome.needed = NeededBases::Unknown;
                outcome.failure = Some(error);
            }
            // Where the snapshot could not be opened, no target has been tried.
            left = outcome.without_snapshot(&work.targets);
            let may_pass = outcome.failures().any(can_pass) && !self.stop.is_stopped();
            let until = self.retries_until(work, &outcome, began);
            if left.is_empty() || !may_pass || SystemTime::now() + pause > until {
                return outcome;
            }
            for error in outcome.failures() {
                info!(
                    "{}: trying again in {pause:.0?}: {}",
                    work.volume,
                    error.chain()
                );
            }
            let waited = async {
                sleep(pause).await;
                Ok(())
            };
            if self.stop.unless(waited).await.is_err() {
                outcome.failure = Some(Stop::error());
                return outcome;
            }
            pause = pause.saturating_mul(2).min(PAUSES.1);
        }
    }

    /// Until when failed copies are tried again. A volume that has no recovery point yet misses nothing by it.
    fn retries_until(
        &self,
        work: &VolumeWork,
        outcome: &VolumeOutcome,
        began: SystemTime,
    ) -> SystemTime {
        let Some(next) = self.retry_until else {
            return began;
        };
        let has_point = self.memory.look(|state| {
            let volume = state.volumes.get(&work.volume);
            let mut targets = volume
                .into_iter()
                .flat_map(|volume| volume.targets.values());
            targets.any(|target| target.recovery_point.is_some())
        });
        match has_point || outcome.targets.iter().any(|copy| copy.held.is_ok()) {
            true => next,
            false => next.max(began + FIRST_COPY),
        }
    }

    /// Applies what is staged, then opens the snapshot and the targets that are left, and copies. Outcomes of targets replace those of
    /// an earlier attempt.
    async fn attempt(
        &self,
        work: &VolumeWork,
        left: &[AssignedTarget],
        progress: &Arc<Progress>,
        outcome: &mut VolumeOutcome,
    ) -> Result<()> {
        let id = &work.copy.snapshot;
        self.apply_staged(work, left, progress, outcome).await;
        let left = &*outcome.without_snapshot(left);
        if left.is_empty() {
            outcome.needed = NeededBases::These([id.clone()].into());
            return Ok(());
        }
        progress.begin(format!("waiting for {id}"), 0);
        let opened = self.places.source(id, self.job.timeout);
        let opened = self.stop.unless(opened).await;
        if opened.is_err() {
            self.note_held(work, left, outcome);
            if outcome.without_snapshot(left).is_empty() {
                outcome.needed = NeededBases::These([id.clone()].into());
                return Ok(());
            }
        }
        let OpenedSnapshot {
            mut source,
            published,
            lease,
        } = opened.map_err(|error| error.context(format!("cannot replicate {}", work.volume)))?;
        if let (JobSource::Repository(_), Some(snapshot)) =
            (&self.job.source, &mut source.info.snapshot)
        {
            // A repository keeps the tags of a snapshot: this one tells which of them the job may remove.
            let name = self.job.name.clone();
            snapshot.tags.insert(JOB_TAG.to_owned(), name);
        }
        outcome.time = source.info.time();
        // What an earlier attempt found is asked again.
        outcome.needed = NeededBases::These([id.clone()].into());
        let mut targets = Vec::new();
        for assigned in left {
            match self.connect(work, assigned, &source).await {
                Ok(target) => targets.push((assigned, target)),
                Err(error) => {
                    outcome.needed.add(None);
                    outcome.set(assigned, Err(error));
                }
            }
        }
        let ui = LogUi {
            volume: &work.volume,
        };
        let context = Context {
            ui: &ui,
            progress: Arc::clone(progress),
            stop: self.stop.clone(),
        };
        let opened = targets
            .iter()
            .map(|(_, target)| Arc::clone(target))
            .collect();
        let job = sync_job(&self.job);
        let results = sync::run(&job, &source, opened, &context, &mut None).await;
        outcome.bytes += progress.bytes();
        for (assigned, target) in targets {
            let result = results.iter().find(|result| result.target == target.name());
            let held = self.held(work, &assigned.name, &source, result);
            let held = held.map(|point| RecoveryPoint { published, ..point });
            if held.is_err() {
                outcome.needed.add(self.needed(&*target, &source).await);
            }
            outcome.set(assigned, held);
        }
        if let Some(lease) = lease
            && let Err(error) = lease.end().await
        {
            // It expires.
            warn!("{}", error.chain());
        }
        Ok(())
    }

    async fn connect(
        &self,
        work: &VolumeWork,
        assigned: &AssignedTarget,
        source: &Source,
    ) -> Result<Arc<dyn Target>> {
        let of_job = self.job.targets.get(assigned.number).ok_or_else(|| {
            Error::new(
                Kind::Invalid,
                format!("the job has no target {}", assigned.name),
            )
        })?;
        let opened = self.places.target(of_job, &assigned.name, &source.info);
        let opened = self.stop.unless(opened).await?;
        self.open.claim(&*opened, &work.volume)?;
        Ok(opened)
    }

    /// What a target holds now.
    fn held(
        &self,
        work: &VolumeWork,
        name: &str,
        source: &Source,
        result: Option<&TargetOutcome>,
    ) -> Result<RecoveryPoint> {
        let result = result
            .ok_or_else(|| Error::new(Kind::Io, format!("the copy to {name} has no outcome")))?;
        let ended = result.ended.as_ref().map_err(|error| {
            error
                .clone()
                .context(format!("cannot replicate {} to {name}", work.volume))
        })?;
        let mut point = RecoveryPoint {
            snapshot: work.copy.snapshot.clone(),
            time: source.info.time(),
            published: None,
            arrived: Some(SystemTime::now()),
            late_at: None,
            damaged_blocks: 0,
        };
        match ended {
            Ended::Copied(report) => {
                point.arrived = Some(report.ended);
                point.damaged_blocks = report.damaged_in_source;
            }
            Ended::Held {
                damaged,
                damaged_in_source,
                ..
            } => {
                point.damaged_blocks = damaged + damaged_in_source;
                // It arrived in an earlier run.
                let known = self.memory.look(|state| {
                    let volume = state.volumes.get(&work.volume)?;
                    volume.targets.get(name)?.recovery_point.clone()
                });
                let known = known.filter(|known| known.snapshot == point.snapshot);
                point.arrived = known.map_or(point.arrived, |known| known.arrived);
            }
            Ended::Planned => {}
        }
        Ok(point)
    }

    /// The snapshots that a target needs that does not hold this cycle's; none: it could not be asked.
    async fn needed(&self, target: &dyn Target, source: &Source) -> Option<BTreeSet<SnapshotId>> {
        let needed = self.stop.unless(needed_bases(target, &source.info)).await;
        match needed {
            // A name that is no snapshot's is an image's: nothing to keep.
            Ok(names) => Some(names.iter().filter_map(|name| name.parse().ok()).collect()),
            Err(error) => {
                debug!("all snapshots stay: {}", error.chain());
                None
            }
        }
    }
}
