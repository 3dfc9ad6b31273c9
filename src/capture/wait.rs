//! Waits until EC2 has completed the snapshots: hours for the first one of a large volume.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use super::{CaptureJob, CaptureReport};
use crate::error::{Error, Kind};
use crate::snapshot::{Selector, Snapshot, SnapshotId, SnapshotMaker, SnapshotState, YOUNG};
use crate::target::Stop;

/// Pause between two requests, at first and at most.
const FIRST_LOOK: Duration = Duration::from_millis(250);
const LONGEST_LOOK: Duration = Duration::from_secs(30);
/// Time until the first line while waiting; it doubles, up to the longest.
const FIRST_LINE: Duration = Duration::from_secs(5);
const LONGEST_LINE: Duration = Duration::from_secs(60);

/// The state of a snapshot that is waited for.
#[derive(Debug)]
pub(super) enum Completion {
    Done,
    /// Its progress.
    Pending(String),
    Failed(Error),
}

/// Classifies a snapshot; `described` is EC2's description of it, `is_young` means that EC2 may not know it yet.
pub(super) fn completion(
    id: &SnapshotId,
    described: Option<&Snapshot>,
    is_young: bool,
) -> Completion {
    let failed = |kind, why: String| {
        let what = format!("cannot complete {id}: {why}");
        Completion::Failed(Error::new(kind, what))
    };
    match described {
        None if is_young => Completion::Pending("not shown yet".to_owned()),
        None => failed(Kind::NotFound, "it does not exist any more".to_owned()),
        Some(snapshot) => match &snapshot.state {
            Some(SnapshotState::Completed) => Completion::Done,
            Some(SnapshotState::Other(state)) => {
                let message = snapshot.state_message.as_deref();
                let message = message.unwrap_or("EC2 gives no reason");
                failed(
                    Kind::Denied,
                    format!(
                        "it is in state {state}: {}",
                        crate::aws::presentable(message)
                    ),
                )
            }
            Some(SnapshotState::Pending) | None => {
                let progress = snapshot.progress.as_deref();
                Completion::Pending(progress.unwrap_or("pending").to_owned())
            }
        },
    }
}

/// Waits until each snapshot is completed or has failed.
pub(super) async fn completed(
    maker: &dyn SnapshotMaker,
    job: &CaptureJob,
    stop: &Stop,
    report: &mut CaptureReport,
) {
    let since = Instant::now();
    let mut pause = FIRST_LOOK;
    let (mut say_at, mut say_after) = (since + FIRST_LINE, FIRST_LINE);
    let captured = report.snapshots.iter().map(|captured| &captured.snapshot);
    let all = captured.clone().count();
    let mut open: BTreeSet<SnapshotId> = captured
        .filter(|snapshot| snapshot.state != Some(SnapshotState::Completed))
        .map(|snapshot| snapshot.id.clone())
        .collect();
    while !open.is_empty() {
        let select: Vec<_> = open.iter().cloned().map(Selector::Snapshot).collect();
        let progress = match stop.unless(maker.describe(&select)).await {
            Ok(described) => {
                let is_young = since.elapsed() < YOUNG;
                look(&mut open, &described, is_young, report)
            }
            Err(error) => match error.kind() {
                Kind::Stopped => return report.failures.push(job.stopped()),
                Kind::Throttled | Kind::Unavailable => error.chain(),
                _ => {
                    let what = "cannot tell whether the snapshots are completed";
                    return report.failures.push(error.context(what));
                }
            },
        };
        if open.is_empty() {
            return;
        }
        let completed = all - open.len();
        debug!("{completed} of {all} snapshots are completed: {progress}");
        if Instant::now() >= say_at {
            say_after = say_after.saturating_mul(2).min(LONGEST_LINE);
            say_at = Instant::now() + say_after;
            info!("{completed} of {all} snapshots are completed: {progress}");
        }
        if since.elapsed() > job.timeout {
            let what = format!(
                "cannot complete {} of {all} snapshots within {:.0?}: {progress}",
                open.len(),
                since.elapsed()
            );
            let error = Error::new(Kind::Pending, what);
            return report.failures.push(job.again(error));
        }
        let slept = async {
            sleep(pause).await;
            Ok(())
        };
        if stop.unless(slept).await.is_err() {
            return report.failures.push(job.stopped());
        }
        pause = pause.mul_f64(1.5).min(LONGEST_LOOK);
    }
}

/// Removes from `open` what is completed or has failed by one answer. Returns the progress of the others, in words.
fn look(
    open: &mut BTreeSet<SnapshotId>,
    described: &[Snapshot],
    is_young: bool,
    report: &mut CaptureReport,
) -> String {
    let mut progress = Vec::new();
    for captured in &mut report.snapshots {
        let id = captured.snapshot.id.clone();
        if !open.contains(&id) {
            continue;
        }
        let found = described.iter().find(|snapshot| snapshot.id == id);
        if let Some(found) = found {
            captured.snapshot = found.clone();
        }
        match completion(&id, found, is_young) {
            Completion::Pending(how_far) => {
                progress.push(format!("{id} {how_far}"));
                continue;
            }
            Completion::Done => info!("{id} is completed"),
            Completion::Failed(error) => {
                captured.is_failed = true;
                report.failures.push(error);
            }
        }
        open.remove(&id);
    }
    progress.join(", ")
}
