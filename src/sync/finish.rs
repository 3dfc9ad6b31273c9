//! The end of a copy: verify, publish, record.

use std::sync::Arc;
use std::time::SystemTime;

use super::copy::CopyTarget;
use super::execute::{Execution, OpenTarget, discard};
use super::observe::Candidate;
use super::report::{Report, ReportFile, pairs};
use super::verify::{self, CompareCheckpoint};
use super::{Ended, record};
use crate::block::{BlockSet, hexadecimal};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::remove_if_there;
use crate::source::BlockSource;
use crate::target::{Content, Published, TargetRecord};

impl Execution<'_> {
    /// Verifies the copy if the job asks for it, publishes it and records it.
    pub(super) async fn finish(
        &self,
        target: CopyTarget,
        opened: OpenTarget,
        report: &mut Option<ReportFile>,
    ) -> Result<Ended> {
        self.source.check()?;
        let proves = self.job.verify || self.job.digest;
        let before = match proves {
            true => target.sink.read_back().await?,
            false => None,
        };
        let mut image_sha256 = match before.clone() {
            Some(back) => self.prove(&target, back).await?,
            None => None,
        };
        let checkpoint = &target.checkpoint;
        let progress = &self.context.progress;
        // Before it is published: from then on nothing may stop the run until that is recorded.
        let linear_sha256 = verify::linear_digest(checkpoint.written(), &self.context.stop).await?;
        progress.begin(format!("publishing {}", target.name), 0);
        let publish = target
            .sink
            .publish(checkpoint.written(), checkpoint.damaged());
        // A rename takes an instant and is not stopped half way; EBS may take hours.
        let published = match opened.candidate.target.kind().is_new() {
            true => self.context.stop.unless(publish).await?,
            false => publish.await?,
        };
        if proves
            && before.is_none()
            && let Some(after) = target.sink.read_back().await?
        {
            image_sha256 = self.prove(&target, after).await?;
        }
        let plan = checkpoint.plan();
        let damaged = pairs(checkpoint.damaged());
        let done = Report {
            task: checkpoint.task().clone(),
            started: self.started,
            ended: SystemTime::now(),
            snapshot: published.snapshot.clone(),
            volume_bytes: plan.head().size(),
            blocks_written: plan.write().len(),
            blocks_zeroed: plan.zero().len(),
            damaged,
            damaged_in_source: self.source.info.damaged_blocks(),
            linear_sha256,
            verified: self.job.verify,
            image_sha256,
            warnings: opened.warnings.clone(),
        };
        self.record(&target, &opened.candidate, &published, &done)?;
        if let Some(file) = report {
            file.done(&target.name, &done, checkpoint.written())?;
        }
        // The report reads the digests of the run: only now they may be renamed and the checkpoint removed.
        self.keep_digests(&target, &opened.candidate)?;
        if let Some(stage) = self.stage_of(&opened.candidate) {
            stage.remove()?;
        }
        Ok(Ended::Copied(Box::new(done)))
    }

    /// The record says what the target holds from now on.
    fn record(
        &self,
        target: &CopyTarget,
        candidate: &Candidate,
        published: &Published,
        report: &Report,
    ) -> Result<()> {
        let path = candidate.files.record();
        if !candidate.seen.facts.has_identity {
            return remove_if_there(&path);
        }
        let task = target.checkpoint.task();
        let record = TargetRecord {
            run: task.run.clone(),
            target: task.target.clone(),
            content: Content::Holds(task.source.clone()),
            volume: task.volume.clone(),
            volume_bytes: report.volume_bytes,
            mark: published.mark.clone(),
            time: self.source.info.time().or(Some(report.ended)),
            replica: published.replica.as_ref().map(ToString::to_string),
            damaged: report.damaged.clone(),
            is_old_format: false,
            report: serde_json::to_value(report).unwrap_or_default(),
        };
        record::save(&path, &record)
    }

    /// The digests of the run become those of the record, and the checkpoint goes.
    fn keep_digests(&self, target: &CopyTarget, candidate: &Candidate) -> Result<()> {
        let keeps = !candidate.target.kind().is_new() && candidate.seen.facts.has_identity;
        if keeps {
            let digests = target.checkpoint.digests();
            let is_whole = digests.is_whole();
            remove_if_there(&candidate.files.checkpoint())?;
            digests.publish(&candidate.files.digests())?;
            if !is_whole {
                tracing::debug!(
                    "{}: the digests kept are of the changed blocks alone",
                    target.name
                );
            }
        }
        discard(candidate)?;
        CompareCheckpoint::remove(&candidate.files.compare())
    }

    /// Reads a target back: compares it if the job asks for verify, and returns its SHA-256 if the job asks for a digest.
    async fn prove(
        &self,
        target: &CopyTarget,
        back: Arc<dyn BlockSource>,
    ) -> Result<Option<String>> {
        let progress = &self.context.progress;
        let reach = |blocks| progress.reach(blocks);
        if self.job.verify {
            let geometry = back.geometry();
            progress.begin(
                format!("verifying {}", target.name),
                geometry.block_count().into(),
            );
            let digests = target.checkpoint.digests();
            if digests.is_whole() {
                let none = BlockSet::new();
                let compared = verify::compare(
                    Arc::clone(&back),
                    &digests,
                    &none,
                    None,
                    &reach,
                    &self.context.stop,
                );
                differs(&target.name, &compared.await?.differing, geometry)?;
            } else {
                let written = target.checkpoint.written();
                verify::verify_plan(written, &*back, &target.name, &reach, &self.context.stop)
                    .await?;
            }
        }
        self.image_digest(&target.name, &*back).await
    }

    async fn image_digest(&self, name: &str, back: &dyn BlockSource) -> Result<Option<String>> {
        if !self.job.digest {
            return Ok(None);
        }
        let progress = &self.context.progress;
        let blocks = back.geometry().block_count();
        progress.begin(format!("reading {name} for its digest"), blocks.into());
        let reach = |blocks| progress.reach(blocks);
        let digests = verify::image_digest(back, false, &reach, &self.context.stop).await?;
        Ok(Some(hexadecimal(&digests.sha256)))
    }

    /// Like [`Self::prove`], for a target that holds the source already: compares it with its whole digests, else with the source.
    pub(super) async fn prove_held(&self, candidate: &Candidate) -> Result<Option<String>> {
        if !self.job.verify && !self.job.digest {
            return Ok(None);
        }
        let (name, source) = (candidate.target.name(), &self.source.blocks);
        let geometry = candidate
            .recorded_geometry()
            .unwrap_or_else(|| source.geometry());
        let held = candidate.seen.facts.holds.as_ref();
        let replica = held.map(crate::snapshot::SnapshotId::as_str);
        let back = candidate.target.reader(replica, geometry).await?;
        let progress = &self.context.progress;
        let reach = |blocks| progress.reach(blocks);
        if self.job.verify {
            let blocks = back.geometry().block_count();
            progress.begin(format!("verifying {name}"), blocks.into());
            let digests = candidate
                .digests
                .as_ref()
                .filter(|digests| digests.is_whole());
            let stop = &self.context.stop;
            let differing = match digests {
                Some(digests) => {
                    let none = BlockSet::new();
                    let back = Arc::clone(&back);
                    verify::compare(back, digests, &none, None, &reach, stop)
                        .await?
                        .differing
                }
                None => {
                    let (back, source) = (Arc::clone(&back), Arc::clone(source));
                    verify::compare_sources(back, source, &reach, stop).await?
                }
            };
            differs(name, &differing, geometry)?;
        }
        self.image_digest(name, &*back).await
    }
}

fn differs(name: &str, differing: &BlockSet, geometry: crate::block::Geometry) -> Result<()> {
    if differing.is_empty() {
        return Ok(());
    }
    let what = format!(
        "cannot verify {name}: {} do not read back as they were written",
        verify::describe(differing, geometry)
    );
    Err(Error::new(Kind::Corrupt, what).with_remedy(Remedy::Restart))
}
