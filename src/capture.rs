//! Makes snapshots of volumes: a *cycle* of a job makes at most one snapshot per volume, however often it is run, one run at a time.
//!
//! | part | subject |
//! | --- | --- |
//! | [`mod@cycle`] | [`Cycle`]: the job and the time that all its snapshots carry as a tag (pure) |
//! | [`ownership`] | which snapshots are ours, which a run may adopt, which are foreign (pure) |
//! | [`plan`] | volumes and instances to calls: volumes of one instance are one set (pure) |
//! | [`adopt`] | whether a call adopts, lists again or makes snapshots, from those of the cycle that EC2 lists (pure) |
//! | [`take`] | lists, decides and makes, until each call has its snapshots or has failed |
//! | [`hooks`] | the commands before and after the calls |
//! | [`wait`] | waits until EC2 has completed the snapshots |
//!
//! # The rule of creation
//! CreateSnapshot and CreateSnapshots have no client token, so a call that was not answered may have made its snapshots, and
//! each further call makes others. Therefore all snapshots of a cycle carry the tag `ebsfs:cycle` from the call on, and:
//! 1. Before any call EC2 is asked for the snapshots with that tag. A volume that has one which is not in error gets no other.
//! 2. EC2 shows a new snapshot only after a while. Where an earlier run, or a call without an answer, may have made some, the
//!    listing is repeated for [`CaptureJob::look_again`] before anything is made. A cycle that this run has named itself
//!    ([`CaptureJob::is_new_cycle`]) needs one listing.
//! 3. A call is sent again without that wait only when EC2 itself has refused it.
//! 4. A set of which EC2 shows a part is looked for likewise; what is then still missing is made by a call of its own.
//!
//! Once they are made, each gets the tag `ebsfs:self`, its own id. Then EC2 may take hours to complete them.

mod adopt;
mod cycle;
mod hooks;
mod ownership;
mod plan;
mod take;
#[cfg(test)]
mod tests;
mod wait;

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::{info, warn};

use crate::error::{Error, Kind, Remedy, Result};
use crate::snapshot::{NewSnapshots, Snapshot, SnapshotMaker, VolumeSelector};
use crate::target::Stop;

pub(crate) use cycle::{CYCLE_TAG, Cycle};
pub(crate) use hooks::CommandCall;
pub(crate) use hooks::{CommandRun, Commands};
pub(crate) use ownership::{Claim, Standing, standing};

/// What to make snapshots of, and how.
#[derive(Clone, Debug)]
pub(crate) struct CaptureJob {
    /// The volumes; those that several selectors name are taken once.
    pub(crate) select: Vec<VolumeSelector>,
    /// Leave out the volumes that instances boot from, unless they are named by their ids.
    pub(crate) without_boot: bool,
    /// Leave out these volumes.
    pub(crate) without: Vec<String>,
    /// The cycle of the snapshots.
    pub(crate) cycle: Cycle,
    /// Whether no other run can have made snapshots of this cycle.
    pub(crate) is_new_cycle: bool,
    /// How long to look for snapshots of the cycle that EC2 may not show yet.
    pub(crate) look_again: Duration,
    /// The description of all snapshots.
    pub(crate) description: Option<String>,
    /// Tags of all snapshots, besides those of their volumes.
    pub(crate) tags: Vec<(String, String)>,
    /// Commands to run before and after.
    pub(crate) commands: Commands,
    /// Whether to wait until they are completed.
    pub(crate) waits: bool,
    /// How long to wait for limits, and then for EC2 to complete the snapshots.
    pub(crate) timeout: Duration,
    /// Whether nothing is wrong where every selected volume is left out: something else snapshots them.
    pub(crate) may_be_empty: bool,
}

/// A snapshot of a cycle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CapturedSnapshot {
    /// As EC2 described it last.
    pub(crate) snapshot: Snapshot,
    /// The instance whose set it is of; none for one of a volume alone.
    pub(crate) instance: Option<String>,
    /// Whether an earlier run, or a call without an answer, has made it.
    pub(crate) is_adopted: bool,
    /// Whether it carries its own id.
    pub(crate) is_tagged: bool,
    /// Whether EC2 could not complete it.
    pub(crate) is_failed: bool,
}

/// The result of a run.
#[derive(Debug)]
pub(crate) struct CaptureReport {
    /// The volumes that are selected.
    pub(crate) volumes: BTreeSet<String>,
    /// The snapshots that were made or adopted.
    pub(crate) snapshots: Vec<CapturedSnapshot>,
    /// The commands that were run, in order.
    pub(crate) commands: Vec<CommandRun>,
    /// What a person should know.
    pub(crate) warnings: Vec<String>,
    /// What failed.
    pub(crate) failures: Vec<Error>,
}

impl CaptureReport {
    fn warn(&mut self, what: String) {
        warn!("{what}");
        self.warnings.push(what);
    }

    /// The failure that gives the exit code: the first of those with the lowest rank.
    pub(crate) fn failure(&self) -> Option<&Error> {
        let ranked = self.failures.iter();
        ranked.min_by_key(|error| error.kind().rank())
    }
}

/// The calls that [`capture`] would make now if no snapshot of the cycle exists. Nothing is made.
///
/// # Errors
/// As for [`capture`].
pub(crate) async fn planned_calls(
    maker: &dyn SnapshotMaker,
    job: &CaptureJob,
) -> Result<Vec<NewSnapshots>> {
    job.check()?;
    let selection = plan::observe(maker, job).await?;
    let planned = plan::plan(&selection, job)?;
    Ok(planned.calls.iter().map(|call| call.request(job)).collect())
}

/// Makes the snapshots of a cycle, or adopts those that there are.
///
/// # Errors
/// Nothing was made: `Invalid` when the job contradicts itself, `NotFound` when EC2 does not know what it names, or has nothing
/// there. Later failures are in the report.
pub(crate) async fn capture(
    maker: &dyn SnapshotMaker,
    job: &CaptureJob,
    stop: &Stop,
) -> Result<CaptureReport> {
    job.check()?;
    let planned = stop.unless(plan::observe(maker, job)).await;
    let planned = planned.and_then(|selection| plan::plan(&selection, job));
    let planned =
        planned.map_err(|error| error.context(format!("cannot make snapshots of {}", job.of())))?;
    let ids = planned.calls.iter().flat_map(plan::PlannedCall::ids);
    let mut report = CaptureReport {
        volumes: ids.collect(),
        snapshots: Vec::new(),
        commands: Vec::new(),
        warnings: Vec::new(),
        failures: Vec::new(),
    };
    for warning in planned.warnings {
        report.warn(warning);
    }
    info!("cycle {}", job.cycle);
    take::take(maker, job, planned.calls, stop, &mut report).await;
    if job.waits {
        wait::completed(maker, job, stop, &mut report).await;
    }
    Ok(report)
}

impl CaptureJob {
    fn check(&self) -> Result<()> {
        let invalid = |what: String| Err(Error::new(Kind::Invalid, what));
        if self.select.is_empty() {
            return invalid("cannot make snapshots: no volume is selected".into());
        }
        for (n, (key, value)) in self.tags.iter().enumerate() {
            let is_own = ["aws:", "ebsfs:"].iter().any(|own| key.starts_with(own));
            if is_own || key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256
            {
                return invalid(format!(
                    "cannot tag snapshots {key}={value}: keys of aws: and ebsfs: are taken, a key has 1 to 128 characters and a \
                     value 256"
                ));
            }
            if self.tags.iter().take(n).any(|(other, _)| other == key) {
                return invalid(format!("cannot tag snapshots {key} twice"));
            }
        }
        if self.tags.len() > plan::MOST_GIVEN_TAGS {
            let most = plan::MOST_GIVEN_TAGS;
            return invalid(format!("cannot give snapshots more than {most} tags"));
        }
        Ok(())
    }

    /// What it selects, in words.
    fn of(&self) -> String {
        let words = self.select.iter().map(|select| match select {
            VolumeSelector::Volume(id) | VolumeSelector::Instance(id) => id.clone(),
            VolumeSelector::Tag { key, value } => format!("volumes with the tag {key}={value}"),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// Adds the remedy to a failure that can pass: the same cycle, run again, adopts what was made.
    fn again(&self, error: Error) -> Error {
        match error.kind() {
            Kind::Stopped | Kind::Unavailable | Kind::Throttled | Kind::Pending | Kind::Io => {
                error.with_remedy(Remedy::AdoptCycle(self.cycle.to_string()))
            }
            _ => error,
        }
    }

    /// The error of a run that is stopped.
    fn stopped(&self) -> Error {
        self.again(Error::new(Kind::Stopped, "stopped"))
    }
}
