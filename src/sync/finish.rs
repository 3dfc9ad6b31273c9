//! The end of a copy: verify, publish, record.

use std::sync::Arc;
use std::time::SystemTime;

use super::checkpoint::{Checkpoint, WITHOUT_DIGESTS};
use super::copy::CopyTarget;
use super::digests::Digests;
use super::execute::{Execution, OpenTarget, discard};
use super::observe::Candidate;
use super::report::{Report, ReportFile, pairs};
use super::verify::{self, CompareCheckpoint};
use super::{Ended, record};
use crate::block::{BlockSet, hexadecimal};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::remove_if_there;
use crate::source::BlockSource;
use crate::target::{Content, Published, TargetRecord, Written};

impl Execution<'_> {
    /// Verifies the copy if the job asks for it, publishes it and records it.
    pub(super) async fn finish(
        &self,
        mut target: CopyTarget,
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
        let linear_sha256 = match checkpoint.written() {
            Some(written) => Some(verify::linear_digest(written, &self.context.stop).await?),
            None => None,
        };
        progress.begin(format!("publishing {}", target.name), 0);
        let publish = target.sink.publish(
            written_to(checkpoint, &opened.candidate)?,
            checkpoint.damaged(),
        );
        // A rename takes an instant and is not interrupted; EBS may take hours.
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
        let mut done = Report {
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
        let record =
            |checkpoint: &Checkpoint| self.record(checkpoint, &opened.candidate, &published, &done);
        target.checkpoint.make_room(record)?;
        if target.checkpoint.digests().is_none() {
            done.warnings
                .push(format!("{}: {WITHOUT_DIGESTS}", target.name));
        }
        if let Some(file) = report {
            file.done(&target.name, &done, target.checkpoint.written())?;
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
        checkpoint: &Checkpoint,
        candidate: &Candidate,
        published: &Published,
        report: &Report,
    ) -> Result<()> {
        let path = candidate.files.record();
        if !candidate.seen.facts.has_identity {
            return remove_if_there(&path);
        }
        let task = checkpoint.task();
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
            damaged_in_source: report.damaged_in_source,
            is_old_format: false,
            report: serde_json::to_value(report).unwrap_or_default(),
        };
        record::save(&path, &record)
    }

    /// The digests of the run become those of the record, and the checkpoint goes.
    fn keep_digests(&self, target: &CopyTarget, candidate: &Candidate) -> Result<()> {
        let keeps = !candidate.target.kind().is_new() && candidate.seen.facts.has_identity;
        if keeps {
            remove_if_there(&candidate.files.checkpoint())?;
            match target.checkpoint.digests() {
                Some(digests) => drop(digests.publish(&candidate.files.digests())?),
                // Those of the run before are of no use.
                None => remove_if_there(&candidate.files.digests())?,
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
            let stop = &self.context.stop;
            let whole = target.checkpoint.digests().filter(Digests::is_whole);
            match (whole, target.checkpoint.written()) {
                (Some(digests), _) => {
                    let none = BlockSet::new();
                    let back = Arc::clone(&back);
                    let compared = verify::compare(back, &digests, &none, None, &reach, stop);
                    differs(&target.name, &compared.await?.differing, geometry)?;
                }
                (None, Some(written)) => {
                    verify::verify_plan(written, &*back, &target.name, &reach, stop).await?;
                }
                (None, None) => {
                    let (back, source) = (Arc::clone(&back), Arc::clone(&self.source.blocks));
                    let compared = verify::compare_sources(back, source, &reach, stop);
                    differs(&target.name, &compared.await?, geometry)?;
                }
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

/// What was written, for the sink: only images and devices, which do not look at it, are copied without digests.
fn written_to(checkpoint: &Checkpoint, candidate: &Candidate) -> Result<Written> {
    match checkpoint.written() {
        Some(written) => Ok(written),
        None if !candidate.target.kind().is_new() => Ok(Box::new(std::iter::empty())),
        None => {
            let name = candidate.target.name();
            let what = format!("cannot publish {name}: the digests of its blocks are missing");
            Err(Error::new(Kind::Corrupt, what).with_remedy(Remedy::Restart))
        }
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

/// The error of a target in place that stays between two snapshots. Only a source that does not exist is replaced by another
/// one: a permission can be granted and credentials renewed, and then the same command resumes.
pub(super) fn half_way(name: &str, error: Error) -> Error {
    match error.kind() {
        Kind::NotFound => error
            .context(format!(
                "cannot finish {name}: its source cannot be read; copy another snapshot to it"
            ))
            .with_remedy(Remedy::BaseAuto),
        Kind::Denied => error.context(format!(
            "cannot finish {name}, which the same command resumes"
        )),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_source_that_does_not_exist_is_replaced_by_another() {
        for (kind, advises_another, names_target) in [
            (Kind::NotFound, true, true),
            (Kind::Denied, false, true),
            (Kind::Unavailable, false, false),
            (Kind::Corrupt, false, false),
        ] {
            let remedy = Remedy::Do("aws sso login".into());
            let error = Error::new(kind, "why").with_remedy(remedy.clone());
            let error = half_way("/dev/x", error);
            assert_eq!(error.kind(), kind);
            let said = error.chain();
            assert_eq!(said.contains("another snapshot"), advises_another, "{said}");
            assert_eq!(said.contains("/dev/x"), names_target, "{said}");
            assert_eq!(error.remedy() == Some(&remedy), !advises_another, "{said}");
        }
    }
}
