//! Targets of this machine that need nothing of the source: it may be lost for good, and each must stay a recovery point.

use std::sync::Arc;
use std::time::SystemTime;

use tracing::{debug, info};

use super::{LogUi, sync_job};
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::replicate::copy::VolumeWork;
use crate::replicate::cycle::CycleRun;
use crate::replicate::report::VolumeOutcome;
use crate::replicate::state::RecoveryPoint;
use crate::replicate::template::{AssignedTarget, is_shared};
use crate::sync::{self, Context, Source, staged_source};
use crate::target::{Content, Target};

impl CycleRun {
    /// Brings the targets to the snapshot for which an earlier run has staged all of its changes. The source is not asked.
    pub(super) async fn apply_staged(
        &self,
        work: &VolumeWork,
        left: &[AssignedTarget],
        progress: &Arc<Progress>,
        outcome: &mut VolumeOutcome,
    ) {
        for assigned in left.iter().filter(|target| !is_shared(&target.name)) {
            let applied = match self.staged(work, assigned) {
                Ok(Some((target, source))) => {
                    info!(
                        "{}: the changes of {} for {} are staged: copying without the source",
                        work.volume, work.copy.snapshot, assigned.name
                    );
                    outcome.time = source.info.time().or(outcome.time);
                    self.apply(work, assigned, target, &source, progress).await
                }
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            match applied {
                Ok(point) => outcome.set(assigned, Ok(point)),
                // The copy from the source reports what is wrong with the target, and stages again what is wrong with the stage.
                Err(error) => debug!(
                    "the stage of {} is not applied: {}",
                    assigned.name,
                    error.chain()
                ),
            }
        }
    }

    /// A target and its complete stage.
    fn staged(
        &self,
        work: &VolumeWork,
        assigned: &AssignedTarget,
    ) -> Result<Option<(Arc<dyn Target>, Source)>> {
        let Some(directory) = &self.job.stage else {
            return Ok(None);
        };
        let target = self.local(assigned)?;
        let staged = staged_source(directory, work.copy.snapshot.as_str(), &*target)?;
        Ok(staged.map(|source| (target, source)))
    }

    async fn apply(
        &self,
        work: &VolumeWork,
        assigned: &AssignedTarget,
        target: Arc<dyn Target>,
        source: &Source,
        progress: &Arc<Progress>,
    ) -> Result<RecoveryPoint> {
        self.open.claim(&*target, &work.volume)?;
        let name = target.name().to_owned();
        let ui = LogUi {
            volume: &work.volume,
        };
        let context = Context {
            ui: &ui,
            progress: Arc::clone(progress),
            stop: self.stop.clone(),
        };
        let job = sync_job(&self.job);
        let results = sync::run(&job, source, vec![target], &context, &mut None).await;
        let result = results.iter().find(|result| result.target == name);
        self.held(work, &assigned.name, source, result)
    }

    /// Notes the images and devices that hold the snapshot already. For where the source cannot be opened: a run that was killed
    /// has copied it, and has not noted that.
    pub(super) fn note_held(
        &self,
        work: &VolumeWork,
        left: &[AssignedTarget],
        outcome: &mut VolumeOutcome,
    ) {
        for assigned in left.iter().filter(|target| !is_shared(&target.name)) {
            match self.recorded(work, assigned) {
                Ok(Some(point)) => {
                    outcome.time = point.time.or(outcome.time);
                    outcome.set(assigned, Ok(point));
                }
                Ok(None) => {}
                Err(error) => debug!("{} is not looked at: {}", assigned.name, error.chain()),
            }
        }
    }

    /// The snapshot of the cycle as a recovery point, if a record whose mark matches proves that a target holds it.
    fn recorded(
        &self,
        work: &VolumeWork,
        assigned: &AssignedTarget,
    ) -> Result<Option<RecoveryPoint>> {
        let status = sync::status(&*self.local(assigned)?)?;
        let id = &work.copy.snapshot;
        let is_held = status.content == Some(Content::Holds(id.as_str().to_owned()));
        Ok((is_held && status.is_proven).then(|| RecoveryPoint {
            snapshot: id.clone(),
            time: status.time,
            published: None,
            arrived: Some(SystemTime::now()),
            late_at: None,
            damaged_blocks: status.damaged_in_source
                + status
                    .damaged
                    .iter()
                    .map(|(first, end)| u64::from(end.saturating_sub(*first)))
                    .sum::<u64>(),
        }))
    }

    fn local(&self, assigned: &AssignedTarget) -> Result<Arc<dyn Target>> {
        let of_job = self.job.targets.get(assigned.number).ok_or_else(|| {
            let what = format!("the job has no target {}", assigned.name);
            Error::new(Kind::Invalid, what)
        })?;
        self.places.local_target(of_job, &assigned.name)
    }
}
