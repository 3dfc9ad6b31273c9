//! [`JobStatus`]: to which point in time the volumes of a job can be restored, judged by its state and by the records of its images
//! and devices (pure).
//!
//! A snapshot in a repository or at an `ebs:` target is usable once it is there: nothing changes it. An image or a device can be half
//! way between two snapshots: its record says so ([`crate::sync::recorded`]), and [`LocalContent`] carries that.

mod drills;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::state::{
    CopyPhase, CopyUnderWay, CycleRequests, JobState, LastRun, RecoveryPoint, StateError,
    TargetState, time_text,
};
use super::totals::MonthTotals;
use crate::error::Kind;
use crate::target::Content;

pub(crate) use drills::{DrillState, DrillsStatus, UnitStatus};

/// Version of the JSON of [`JobStatus`]; `docs/status.md` describes it.
pub(crate) const STATUS_VERSION: u32 = 1;
/// How much a recovery point may be of the future: AWS takes requests of clocks that are wrong by so much.
const CLOCKS: Duration = Duration::from_secs(300);
/// A process that copies saves its state more often.
const SILENT: Duration = Duration::from_secs(120);

/// What the record of an image or a device of this machine says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LocalContent {
    /// It is not there, or cannot be looked at: why.
    Absent(String),
    /// There is no record of it.
    Unrecorded {
        /// Whether it is a device: it is written in place.
        is_device: bool,
    },
    /// What it holds.
    Recorded(Content),
}

/// The state of a recovery point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PointState {
    /// Usable, young enough, and the last copy did not fail.
    Current,
    /// Usable and young enough, but the last copy failed.
    Failed,
    /// Older than it may be.
    Late,
    /// Of the future: a clock is wrong, and its age is not known.
    Future,
    /// The target is between two snapshots, or not there.
    Unusable,
    /// There is none yet.
    Missing,
    /// The last copy failed, and a person must decide.
    Undecided,
}

impl PointState {
    /// All states.
    pub(crate) const ALL: [Self; 7] = [
        Self::Current,
        Self::Failed,
        Self::Late,
        Self::Future,
        Self::Unusable,
        Self::Missing,
        Self::Undecided,
    ];

    /// Its name, as in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Failed => "failed",
            Self::Late => "late",
            Self::Future => "future",
            Self::Unusable => "unusable",
            Self::Missing => "missing",
            Self::Undecided => "undecided",
        }
    }
}

/// The input of [`JobStatus::of`] besides the state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatusRequest<'a> {
    /// The present time.
    pub(crate) now: SystemTime,
    /// How old a recovery point may be; none: as the schedule says.
    pub(crate) max_age: Option<Duration>,
    /// What the images and devices of this machine hold, by their names.
    pub(crate) local: &'a BTreeMap<String, LocalContent>,
}

/// The status of a job.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct JobStatus {
    /// Its name.
    pub(crate) job: String,
    /// The part of the job, such as `0/4`; none: the whole job.
    pub(crate) shard: Option<String>,
    /// When its cycles are due, in words.
    pub(crate) schedule: Option<String>,
    /// When the next cycle is due.
    #[serde(serialize_with = "time_text::serialize")]
    pub(crate) next_run: Option<SystemTime>,
    /// When a process that runs the job last saved its state.
    #[serde(serialize_with = "time_text::serialize")]
    pub(crate) saved: Option<SystemTime>,
    /// The cycle whose snapshots are not made yet.
    #[serde(serialize_with = "time_text::serialize")]
    pub(crate) starting: Option<SystemTime>,
    /// The last cycle that ended.
    pub(crate) last_run: Option<RunStatus>,
    /// When the last cycle without failures ended.
    #[serde(serialize_with = "time_text::serialize")]
    pub(crate) last_success: Option<SystemTime>,
    /// The sums of this month.
    pub(crate) month: MonthStatus,
    /// Its drills; none: it has none.
    pub(crate) drills: Option<DrillsStatus>,
    /// Its volumes.
    pub(crate) volumes: Vec<VolumeStatus>,
}

/// A cycle that ended, with its cost.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RunStatus {
    /// What was recorded.
    #[serde(flatten)]
    pub(crate) run: LastRun,
    /// What its requests to EBS cost.
    pub(crate) dollars: f64,
}

/// The sums of a month, with their cost.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MonthStatus {
    /// What was recorded.
    #[serde(flatten)]
    pub(crate) totals: MonthTotals,
    /// What the requests to EBS cost.
    pub(crate) dollars: f64,
}

/// The status of a volume.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct VolumeStatus {
    /// Its id.
    pub(crate) volume: String,
    /// The instance that it was attached to.
    pub(crate) instance: Option<String>,
    /// Whether the last cycle selected it. Others do not count.
    pub(crate) is_selected: bool,
    /// The copy under way.
    pub(crate) under_way: Option<CopyStatus>,
    /// Bytes fetched by its last copy.
    pub(crate) last_bytes: u64,
    /// Bytes fetched in this month.
    pub(crate) month_bytes: u64,
    /// Its targets; none: the job gives it none, or its first snapshot could not be made.
    pub(crate) targets: Vec<TargetStatus>,
}

/// A copy under way.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CopyStatus {
    /// The cycle, as its snapshots carry it.
    pub(crate) cycle: String,
    /// The snapshot.
    pub(crate) snapshot: String,
    /// Since when.
    #[serde(serialize_with = "time_text::serialize")]
    pub(crate) since: Option<SystemTime>,
    /// What it did when the state was saved.
    pub(crate) phase: Option<CopyPhase>,
    /// Whether no process seems to copy it: the state is not saved any more. The next run continues it.
    pub(crate) is_interrupted: bool,
}

/// The status of one target of a volume.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TargetStatus {
    /// Its name.
    pub(crate) target: String,
    /// How its recovery point is.
    pub(crate) state: PointState,
    /// The recovery point.
    pub(crate) recovery_point: Option<RecoveryPoint>,
    /// Seconds from the time of the recovery point until now.
    pub(crate) lag_seconds: Option<u64>,
    /// Whether the volume can be restored from it now.
    pub(crate) is_usable: bool,
    /// Why it is not usable.
    pub(crate) why_unusable: Option<String>,
    /// Why the last copy failed.
    pub(crate) error: Option<StateError>,
}

impl TargetStatus {
    /// The time from the recovery point until now.
    pub(crate) fn lag(&self) -> Option<Duration> {
        self.lag_seconds.map(Duration::from_secs)
    }
}

impl JobStatus {
    /// Judges a state.
    pub(crate) fn of(state: &JobState, request: &StatusRequest<'_>) -> Self {
        let present = MonthTotals::of(request.now);
        let totals = state.month.clone();
        let totals = totals.filter(|known| known.month == present.month);
        let is_this_month = totals.is_some();
        let volumes = state.volumes.iter().map(|(id, volume)| {
            let under_way = volume.under_way.as_ref();
            let targets = volume.targets.iter();
            VolumeStatus {
                volume: id.clone(),
                instance: volume.instance.clone(),
                is_selected: volume.is_selected,
                under_way: under_way.map(|copy| CopyStatus::of(copy, state.saved, request.now)),
                last_bytes: volume.last_bytes,
                month_bytes: if is_this_month { volume.month_bytes } else { 0 },
                targets: targets
                    .map(|(name, target)| target_status(name, target, under_way, request))
                    .collect(),
            }
        });
        Self {
            job: state.job.clone(),
            shard: state.shard.clone(),
            schedule: state.schedule.clone(),
            next_run: state.next_run,
            saved: state.saved,
            starting: state.under_way,
            last_run: state.last_run.clone().map(|run| RunStatus {
                dollars: run.requests.dollars(),
                run,
            }),
            last_success: state.last_success,
            month: MonthStatus::of(totals.unwrap_or(present)),
            drills: state
                .drills
                .as_ref()
                .map(|drills| DrillsStatus::of(drills, request.now)),
            volumes: volumes.collect(),
        }
    }

    /// The volumes that the last cycle selected.
    pub(crate) fn selected(&self) -> impl Iterator<Item = &VolumeStatus> {
        self.volumes.iter().filter(|volume| volume.is_selected)
    }

    /// The states of all recovery points of the volumes that count. A volume without a target has one that is missing.
    pub(crate) fn points(&self) -> impl Iterator<Item = PointState> {
        self.selected().flat_map(|volume| {
            let states: Vec<PointState> = match &*volume.targets {
                [] => vec![PointState::Missing],
                targets => targets.iter().map(|target| target.state).collect(),
            };
            states
        })
    }

    /// How many recovery points have a state.
    pub(crate) fn count(&self, state: PointState) -> usize {
        self.points().filter(|point| *point == state).count()
    }

    /// The time of the oldest recovery point of the volumes that count.
    pub(crate) fn oldest(&self) -> Option<SystemTime> {
        let targets = self.selected().flat_map(|volume| &volume.targets);
        let points = targets.filter_map(|target| target.recovery_point.as_ref());
        points.filter_map(|point| point.time).min()
    }

    /// The exit code of the last cycle.
    pub(crate) fn exit_code(&self) -> u8 {
        let last = self.last_run.as_ref();
        let error = last.and_then(|last| last.run.error.as_ref());
        error.map_or(0, |error| error.exit_code)
    }

    /// Whether it has no recovery point to show yet. A shard that has run may have no volume.
    pub(crate) fn lacks_volumes(&self) -> bool {
        self.points().next().is_none() && (self.shard.is_none() || self.last_run.is_none())
    }

    /// How many of its instances and volumes have drills in a state.
    pub(crate) fn drills_in(&self, state: DrillState) -> usize {
        self.drills.as_ref().map_or(0, |drills| drills.count(state))
    }

    /// How many of its instances and volumes have a drill that is overdue.
    pub(crate) fn overdue_drills(&self) -> usize {
        self.drills.as_ref().map_or(0, DrillsStatus::overdue)
    }

    /// What is wrong; none: each volume that counts has a current recovery point on each of its targets, the last cycle had no
    /// failure, no drill failed or came to no result, and none is overdue. `Undecided` goes before `Late`: it does not pass by itself.
    pub(crate) fn verdict(&self) -> Option<Kind> {
        let code = self.exit_code();
        let is_undecided = self.count(PointState::Undecided) > 0
            || code == Kind::Undecided.exit_code()
            || self.drills_in(DrillState::Failed) > 0;
        if is_undecided {
            return Some(Kind::Undecided);
        }
        let is_drilled = self.drills_in(DrillState::NotDone) + self.overdue_drills() == 0;
        let (all, current) = (self.points().count(), self.count(PointState::Current));
        let is_good = is_drilled && current == all && code == 0 && !self.lacks_volumes();
        (!is_good).then_some(Kind::Late)
    }
}

impl MonthStatus {
    fn of(totals: MonthTotals) -> Self {
        Self {
            dollars: CycleRequests::dollars(totals.requests),
            totals,
        }
    }
}

impl CopyStatus {
    fn of(copy: &CopyUnderWay, saved: Option<SystemTime>, now: SystemTime) -> Self {
        let silent = saved.and_then(|saved| now.duration_since(saved).ok());
        Self {
            cycle: copy.cycle.clone(),
            snapshot: copy.snapshot.to_string(),
            since: copy.since,
            phase: copy.phase.clone(),
            is_interrupted: saved.is_none() || silent.is_some_and(|silent| silent > SILENT),
        }
    }
}

fn target_status(
    name: &str,
    target: &TargetState,
    under_way: Option<&CopyUnderWay>,
    request: &StatusRequest<'_>,
) -> TargetStatus {
    let point = target.recovery_point.as_ref();
    let why = point.and_then(|point| unusable(point, under_way, request.local.get(name)));
    let time = point.and_then(|point| point.time);
    // A clock that is a little behind makes no negative age.
    let lag = time.map(|time| request.now.duration_since(time).unwrap_or_default());
    TargetStatus {
        target: name.to_owned(),
        state: point_state(target, why.is_some(), request),
        recovery_point: target.recovery_point.clone(),
        lag_seconds: lag.map(|lag| lag.as_secs()),
        is_usable: point.is_some() && why.is_none(),
        why_unusable: why,
        error: target.error.clone(),
    }
}

/// How a recovery point is: the worst that holds.
fn point_state(target: &TargetState, is_unusable: bool, request: &StatusRequest<'_>) -> PointState {
    let error = target.error.as_ref();
    if error.is_some_and(|error| error.exit_code == Kind::Undecided.exit_code()) {
        return PointState::Undecided;
    }
    let Some(point) = &target.recovery_point else {
        return PointState::Missing;
    };
    if is_unusable {
        return PointState::Unusable;
    }
    let now = request.now;
    let ahead = point.time.and_then(|time| time.duration_since(now).ok());
    if ahead.is_some_and(|ahead| ahead > CLOCKS) {
        return PointState::Future;
    }
    let is_late = match (request.max_age, point.time) {
        (None, _) => point.late_at.is_some_and(|late| late <= now),
        (Some(most), Some(time)) => now.duration_since(time).is_ok_and(|age| age > most),
        // Its age is not known.
        (Some(_), None) => true,
    };
    match (is_late, error) {
        (true, _) => PointState::Late,
        (false, Some(_)) => PointState::Failed,
        (false, None) => PointState::Current,
    }
}

/// Why a recovery point cannot be restored from now; none: it can be. `local` is none for what several volumes share: what is there
/// stays as it is.
fn unusable(
    point: &RecoveryPoint,
    under_way: Option<&CopyUnderWay>,
    local: Option<&LocalContent>,
) -> Option<String> {
    match local? {
        LocalContent::Absent(why) => Some(why.clone()),
        LocalContent::Unrecorded { is_device } => {
            is_device.then(|| "no record says what this device holds".to_owned())
        }
        LocalContent::Recorded(Content::Between { base, head }) => {
            let base = base.as_deref().unwrap_or("something unknown");
            Some(format!("it is between {base} and {head}"))
        }
        LocalContent::Recorded(Content::Holds(held)) => {
            // A copy that has ended at this target while others go on is not in the state yet.
            let copied = under_way.map(|copy| copy.snapshot.as_str());
            let is_known = *held == point.snapshot.as_str() || copied == Some(held);
            (!is_known).then(|| format!("it holds {held}, by its record"))
        }
    }
}

#[cfg(test)]
mod tests;
