//! A sync: a snapshot, or its changes, copied into one or several targets, and proven there.
//!
//! ```text
//! run      per target: lock -> observe -> decide (-> compare -> decide again) -> plan
//!          all plans shown, what overwrites is confirmed
//! open     the checkpoint names the target, and for what is written in place the record says "between", before its first change
//! copy     zero, then fetch each block once for all targets that want it; flush, digests, checkpoint: in that order
//! verify   the target read back past the page cache and compared with the digests, if it is asked for
//! publish  rename, CompleteSnapshot, manifest (an EBS snapshot is verified after it)
//! record   what the target holds now, with its mark; its digests stay for the next run; the checkpoint goes
//! ```
//! A target is believed to hold a snapshot only where that is proven: by its mark ([`crate::target::Mark`]), or by a comparison with
//! the digests of the run that wrote it. [`plan::decide`] is that rule, as a pure function.

mod check;
mod checkpoint;
mod copy;
mod digests;
mod execute;
mod files;
mod finish;
mod job;
mod lock;
mod needs;
mod observe;
mod plan;
mod planner;
mod record;
mod report;
mod source;
mod stage;
mod status;
mod transfer;
mod verify;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub(crate) use check::source_digest;
pub(crate) use check::{CheckBasis, CheckReport, TargetCheck};

pub(crate) use crate::progress::Progress;
pub(crate) use job::{OnDamage, SyncJob};
pub(crate) use lock::overlaps;
pub(crate) use needs::needed_bases;
pub(crate) use plan::Decision;
pub(crate) use report::{REPORT_VERSION, Report, ReportFile};
pub(crate) use source::Source;
pub(crate) use stage::staged_source;
pub(crate) use status::{Status, Unfinished, recorded, status, unfinished};
pub(crate) use transfer::{RecordImport, RecordView, export_record, import_record, view_record};
pub(crate) use verify::{
    DigestRequest, HeldBlock, ImageDigests, describe, digest_of_zeroes, digest_with, ranges,
};

use crate::error::{Error, Result};
use crate::target::{Stop, Target, TargetKind};
use execute::Execution;
use observe::Candidate;
use planner::{Planned, Planner};

/// What a run needs besides its job.
pub(crate) struct Context<'a> {
    /// Shows plans, and asks before overwriting.
    pub(crate) ui: &'a dyn Ui,
    /// Counts blocks and bytes.
    pub(crate) progress: Arc<Progress>,
    /// The first signal.
    pub(crate) stop: Stop,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Context")
    }
}

/// The user interface of a run.
pub(crate) trait Ui: Send + Sync {
    /// The plans of all targets, before anything is changed.
    ///
    /// # Errors
    /// In a dry run, why they cannot be printed.
    fn plans(&self, plans: &[PlanReport]) -> Result<()>;

    /// Asks a person at a terminal whether a target of unknown content is to be overwritten.
    ///
    /// # Errors
    /// `Undecided` when the answer is no.
    fn confirm(&self, target: &str) -> Result<()>;
}

/// The plan of one target, for people and as JSON.
#[derive(Clone, Debug)]
pub(crate) struct PlanReport {
    /// The target as a person writes it.
    pub(crate) target: String,
    /// What kind of target it is.
    pub(crate) kind: TargetKind,
    /// What is done.
    pub(crate) decision: Decision,
    /// What is copied.
    pub(crate) source: String,
    /// The base snapshot, if only changes are copied.
    pub(crate) base: Option<String>,
    /// Blocks to write.
    pub(crate) write: u64,
    /// Blocks to zero.
    pub(crate) zero: u64,
    /// Blocks of these two that an earlier run has done.
    pub(crate) done: u64,
    /// Bytes that a clone of the old image takes.
    pub(crate) clone_bytes: u64,
    /// Bytes of the target to compare before the decision, or to read back for verify where it holds the source already.
    pub(crate) compare_bytes: u64,
    /// How long that takes, by a measurement of its first 64 MiB; none where it is not known.
    pub(crate) compare_time: Option<Duration>,
    /// A warning when the free space may not be enough.
    pub(crate) room: Option<String>,
    /// What a person should know.
    pub(crate) warnings: Vec<String>,
}

/// The result of one target.
#[derive(Clone, Debug)]
pub(crate) struct TargetOutcome {
    /// The target as a person writes it.
    pub(crate) target: String,
    /// How it ended.
    pub(crate) ended: Result<Ended>,
}

/// The result of a target that did not fail.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// A dry run: only its plan was made.
    Planned,
    /// It held the source already; with the SHA-256 of the image, if that was asked for.
    Held {
        /// Whether all of it was read back and compared.
        verified: bool,
        /// Blocks that are zero there because the source was damaged when it was copied.
        damaged: u64,
        /// Blocks that are zero in the source, because its own source was damaged.
        damaged_in_source: u64,
        /// SHA-256 of the whole image.
        image_sha256: Option<String>,
        /// The name of the snapshot that holds it, where the target keeps several.
        snapshot: Option<String>,
    },
    /// It was copied.
    Copied(Box<Report>),
}

/// Copies a source to targets. One that fails does not stop the others; every one has an outcome.
pub(crate) async fn run(
    job: &SyncJob,
    source: &Source,
    targets: Vec<Arc<dyn Target>>,
    context: &Context<'_>,
    report: &mut Option<ReportFile>,
) -> Vec<TargetOutcome> {
    let started = SystemTime::now();
    let mut outcomes = Vec::new();
    let mut failed = |target: &str, error: Error, report: &mut Option<ReportFile>| {
        let error = match report.as_mut().map(|file| file.failed(target, &error)) {
            Some(Err(other)) => error.context(format!("{} (and: {})", target, other.chain())),
            _ => error,
        };
        outcomes.push(TargetOutcome {
            target: target.to_owned(),
            ended: Err(error),
        });
    };
    let mut planner = Planner::new(job, source, context);
    let mut planned: Vec<Planned> = Vec::new();
    for target in targets {
        let name = target.name().to_owned();
        let plan = async {
            let candidate = Candidate::observe(job, source, target, context).await?;
            planner.plan(candidate).await
        };
        match plan.await {
            Ok(plan) => planned.push(plan),
            Err(error) => failed(&name, error, report),
        }
    }
    let plans: Vec<PlanReport> = planned
        .iter()
        .map(|plan| plan.report(job, source))
        .collect();
    if let Err(error) = context.ui.plans(&plans) {
        for plan in &planned {
            failed(plan.name(), error.clone(), report);
        }
        return outcomes;
    }
    if job.dry_run {
        outcomes.extend(planned.iter().map(|plan| TargetOutcome {
            target: plan.name().to_owned(),
            ended: Ok(Ended::Planned),
        }));
        return outcomes;
    }
    let execution = Execution {
        job,
        source,
        context,
        blocks: planner.blocks(),
        started,
    };
    let mut done = execution.run(planned, report).await;
    outcomes.append(&mut done);
    outcomes
}
