//! A replication job: on a schedule it snapshots volumes, or takes the newest snapshots of a repository, copies what changed to other
//! places, proves the copies, and forgets what is no longer needed. It stacks [`crate::capture`] and [`crate::sync`] and adds only decisions about time and retention.
//!
//! | part | subject |
//! | --- | --- |
//! | [`mod@job`] | [`ReplicateJob`], and its TOML file |
//! | [`schedule`] | when cycles are due, and which cycle is next (pure) |
//! | [`window`] | bytes a second, by the time of day (pure) |
//! | [`mod@shard`] | which volumes one of several machines takes (pure) |
//! | [`volumes`] | the volumes of a cycle |
//! | [`mod@gateway`] | cycles of a job whose source is a repository |
//! | [`template`] | which target belongs to which volume (pure) |
//! | [`retain`] | which snapshots of the source may be deleted (pure) |
//! | [`state`] | the state file of a job |
//! | [`totals`] | sums of a run and of a month (pure) |
//! | [`status`] | to which point in time volumes can be restored (pure) |
//! | [`live`] | what the copies of this process do now |
//! | [`places`] | what a cycle is connected to |
//! | [`cycle`] | one cycle, from its snapshots to retention |
//! | [`copy`] | the copies of one volume |
//! | [`drills`] | which recovery points are drilled, and when (pure); drills them |
//! | [`sets`] | keeps the machines of the instances beside the snapshots of their disks |
//! | [`clean`] | carries out retention on both sides |
//! | [`hooks`] | the commands of a job |
//! | [`report`] | how a cycle ended |
//!
//! # Terms
//! *job*: what is replicated where and when. *cycle*: one run of a job's schedule; all of its snapshots carry its time. *recovery
//! point*: the snapshot that a target is proven to hold. *copy under way*: a volume whose cycle has not ended; it keeps its snapshot
//! until all of its targets were tried, and later cycles leave the volume out. *shard*: the part of a job that one of several machines
//! runs; *unit*: what a shard takes as a whole.
//!
//! # What makes it safe
//! 1. Nothing is remembered that cannot be found again. The state file saves work after a crash. Bases are asked of the targets.
//! 2. A snapshot of the source is deleted only if it is the job's own by [`crate::capture::standing`], is older than this cycle's,
//!    and no target holds it or has an unfinished copy from or to it. A target that cannot be asked keeps all of them.
//!    A job whose source is a repository deletes nothing there.
//! 3. Two volumes never have one image or device: by name here, by identity when they are opened, by lock in [`crate::sync`].

mod clean;
mod copy;
mod cycle;
mod drills;
mod gateway;
mod hooks;
mod job;
mod live;
mod places;
mod report;
mod retain;
mod schedule;
mod sets;
mod shard;
mod state;
mod status;
mod template;
mod totals;
mod volumes;
mod window;

pub(crate) use clean::JOB_TAG;
pub(crate) use cycle::{CycleRun, planned_cycle};
pub(crate) use drills::{DrillFindings, DrillRequest, DrillUnit};
pub(crate) use job::{
    DrillBoot, Ec2Volumes, GatewaySource, JobSource, JobTarget, LEAST_RATE, ReplicateJob,
    TargetAccess, read,
};
pub(crate) use live::LiveCounts;
pub(crate) use places::{OpenedSnapshot, Places};
pub(crate) use report::CycleReport;
pub(crate) use schedule::{Schedule, due_cycle, wanted_cycle};
pub(crate) use shard::{Shard, shard_of_engine};
pub(crate) use state::{
    CycleRequests, JobMemory, JobState, StateError, present_divisions, read_state, state_names,
};
pub(crate) use status::{
    CopyStatus, DrillState, DrillsStatus, JobStatus, LocalContent, MonthStatus, PointState,
    RunStatus, STATUS_VERSION, StatusRequest, TargetStatus, UnitStatus, VolumeStatus,
};
pub(crate) use template::is_shared;

// What a job and its state hold, for the tests of those who show them.
#[cfg(test)]
pub(crate) use {
    job::JobDrill,
    state::{
        CopyPhase, CopyUnderWay, DrillMemory, LastDrill, LastRun, RecoveryPoint, TargetState,
        UnitDrills,
    },
    template::AssignedTarget,
    totals::MonthTotals,
};
