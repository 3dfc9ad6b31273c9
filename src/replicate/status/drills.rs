//! [`DrillsStatus`]: how the drills of a job are (pure).

use std::time::SystemTime;

use serde::Serialize;

use crate::replicate::state::{DrillMemory, LastDrill, StateError, UnitDrills, time_text};

/// How the drills of an instance or a volume are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DrillState {
    /// The last one was passed.
    Passed,
    /// The last one failed.
    Failed,
    /// A later one than the last, or the first, came to no result.
    NotDone,
    /// There was none yet.
    Missing,
}

impl DrillState {
    /// All states.
    pub(crate) const ALL: [Self; 4] = [Self::Passed, Self::Failed, Self::NotDone, Self::Missing];

    /// Its name, as in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::NotDone => "not_done",
            Self::Missing => "missing",
        }
    }

    fn of(drills: &UnitDrills) -> Self {
        let last = drills.last.as_ref();
        match (last, &drills.failure) {
            // A later one without a result does not make up for it.
            (Some(last), _) if last.error.is_some() => Self::Failed,
            (_, Some(_)) => Self::NotDone,
            (Some(_), None) => Self::Passed,
            (None, None) => Self::Missing,
        }
    }
}

/// The status of the drills of a job.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DrillsStatus {
    /// When drills are due, in words.
    pub(crate) schedule: String,
    /// When the next ones are due.
    #[serde(serialize_with = "time_text::serialize")]
    pub(crate) next: Option<SystemTime>,
    /// The instances and volumes.
    pub(crate) units: Vec<UnitStatus>,
}

/// The status of the drills of an instance or a volume.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct UnitStatus {
    /// The id of an instance whose set is drilled, or of a volume.
    pub(crate) unit: String,
    /// How they are.
    pub(crate) state: DrillState,
    /// Whether the next one should have been done.
    pub(crate) is_overdue: bool,
    /// The last drill that came to a result.
    pub(crate) last: Option<LastDrill>,
    /// Why a later one came to none.
    pub(crate) failure: Option<StateError>,
}

impl DrillsStatus {
    pub(super) fn of(memory: &DrillMemory, now: SystemTime) -> Self {
        let units = memory.units.iter().map(|(id, drills)| UnitStatus {
            unit: id.clone(),
            state: DrillState::of(drills),
            is_overdue: drills.overdue_at.is_some_and(|time| time <= now),
            last: drills.last.clone(),
            failure: drills.failure.clone(),
        });
        Self {
            schedule: memory.schedule.clone(),
            next: memory.next,
            units: units.collect(),
        }
    }

    /// How many units are in a state.
    pub(crate) fn count(&self, state: DrillState) -> usize {
        let units = self.units.iter();
        units.filter(|unit| unit.state == state).count()
    }

    /// How many units have a drill that is overdue.
    pub(crate) fn overdue(&self) -> usize {
        self.units.iter().filter(|unit| unit.is_overdue).count()
    }

    /// When the drill ended that is the oldest among the last ones of the units; none before the first.
    pub(crate) fn oldest(&self) -> Option<SystemTime> {
        let last = self.units.iter().filter_map(|unit| unit.last.as_ref());
        last.filter_map(|last| last.ended).min()
    }
}
