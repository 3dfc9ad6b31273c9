//! [`decide`]: chooses the action for a target from the job, the source and the observed state. A pure function: no I/O, no clock.
//!
//! ```text
//! obstacles, size                                    -> Refuse
//! an unfinished run of the same command, proven      -> Resume
//! an unfinished run of another command, in place     -> TakeOver, or Full
//! an unfinished part of another snapshot, proven     -> TakeOverPart
//! a record whose mark matches                        -> Holds, Delta or Full by --base
//! a record whose mark differs, digests there         -> Compare, then as above or Refuse
//! a record whose mark differs, no digests            -> Full (Refuse where a base is named)
//! no record                                          -> Full where nothing is there or it is named, else Refuse
//! ```

mod new;
mod recorded;
mod room;
mod unfinished;

use super::job::SyncJob;
use crate::error::{Error, Kind, Remedy};
use crate::snapshot::SnapshotId;
use crate::target::{Base, Facts, SourceInfo, TargetKind, TargetRecord, Task};
pub(super) use new::usable_replicas;
pub(super) use room::room;

/// What is known of a target before a run.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// What it is.
    pub(crate) kind: TargetKind,
    /// As a person writes it.
    pub(crate) name: String,
    /// [`crate::target::Target::id`].
    pub(crate) id: String,
    /// What [`crate::target::Target::observe`] found.
    pub(crate) facts: Facts,
    /// What the last run on it recorded.
    pub(crate) record: Option<TargetRecord>,
    /// The run of its checkpoint, and how many blocks of it are done.
    pub(crate) unfinished: Option<(Task, u64)>,
    /// Whether the digests of every block of the target are there, of the run that wrote the record or that is unfinished.
    pub(crate) has_digests: bool,
    /// Whether the digests of the unfinished run speak of every block: only then can what it left be proven.
    pub(crate) unfinished_has_digests: bool,
    /// What a comparison with those digests found; none before there was one.
    pub(crate) compared: Option<Comparison>,
}

impl Observed {
    /// Whether its mark proves that nothing has written the target since the record.
    pub(super) fn is_unchanged(&self, record: &TargetRecord) -> bool {
        record.mark.is_some() && record.mark == self.facts.mark
    }

    /// Whether the differences of the target from the record's digests are known: none, or the blocks that a comparison found.
    pub(super) fn is_proven(&self, record: &TargetRecord) -> bool {
        self.compared.is_some() || self.is_unchanged(record)
    }
}

/// What a comparison of a target with its digests found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// No difference but in blocks that an unfinished run was about to write.
    Same,
    /// Something else has written the target.
    Foreign {
        /// How many blocks differ.
        blocks: u64,
        /// The first of them, for people.
        ranges: String,
    },
}

/// The action for a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing: it holds the source.
    Holds,
    /// All blocks are copied.
    Full,
    /// The blocks changed since the first of these snapshots that can be listed.
    Delta(Vec<SnapshotId>),
    /// The unfinished run continues.
    Resume,
    /// A target between this base and another head is brought to the source: what changed since the base, and what the
    /// unfinished run may have written, is written.
    TakeOver(SnapshotId),
    /// The part of an unfinished copy of this other snapshot becomes a copy of the source: what it has, compared with its digests,
    /// and has not changed since, stays.
    TakeOverPart(SnapshotId),
    /// The target is compared with its digests; then the decision is made again.
    Compare,
    /// Nothing: a person must change something first.
    Refuse {
        /// The kind of the error, which gives the exit code.
        kind: Kind,
        /// One line.
        reason: String,
        /// What can be done.
        remedy: Option<Remedy>,
    },
}

/// A decision and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decided {
    /// What is done.
    pub(crate) decision: Decision,
    /// Whether an unfinished run's progress is dropped first.
    pub(crate) drops_unfinished: bool,
    /// Whether the blocks that a comparison found to be foreign are written too.
    pub(crate) rewrites_foreign: bool,
    /// Whether a person at a terminal is asked first: something of unknown content is overwritten.
    pub(crate) confirms: bool,
    /// What a person should know.
    pub(crate) warnings: Vec<String>,
}

impl Decided {
    /// A placeholder until [`decide`] has run.
    pub(super) fn undecided() -> Self {
        Self::of(Decision::Compare)
    }

    fn of(decision: Decision) -> Self {
        Self {
            decision,
            drops_unfinished: false,
            rewrites_foreign: false,
            confirms: false,
            warnings: Vec::new(),
        }
    }

    fn refuse(kind: Kind, reason: String, remedy: Remedy) -> Self {
        Self::of(Decision::Refuse {
            kind,
            reason,
            remedy: Some(remedy),
        })
    }

    fn warn(mut self, warning: String) -> Self {
        self.warnings.push(warning);
        self
    }

    /// The refusal as an error.
    pub(crate) fn refusal(&self) -> Option<Error> {
        let Decision::Refuse {
            kind,
            reason,
            remedy,
        } = &self.decision
        else {
            return None;
        };
        let error = Error::new(*kind, reason.clone());
        Some(match remedy {
            Some(remedy) => error.with_remedy(remedy.clone()),
            None => error,
        })
    }
}

/// Decides for one target. Called again with [`Observed::compared`] when the answer was [`Decision::Compare`].
pub(super) fn decide(job: &SyncJob, source: &SourceInfo, seen: &Observed) -> Decided {
    let name = &seen.name;
    if !seen.facts.obstacles.is_empty() {
        let why = seen.facts.obstacles.join("; ");
        return Decided::refuse(
            Kind::Io,
            format!("cannot write {name}: {why}"),
            Remedy::TryLater,
        );
    }
    if let Some(size) = seen.facts.fixed_size
        && size < source.geometry.size()
    {
        let volume = source.geometry.size();
        return Decided::of(Decision::Refuse {
            kind: Kind::Invalid,
            reason: format!(
                "cannot write {name}: it has {size} bytes, the volume {volume}: it does not fit"
            ),
            remedy: None,
        });
    }
    let decider = Decider { job, source, seen };
    let mut decided = match seen.kind.is_new() {
        true => decider.new_object(),
        false => decider.local(),
    };
    decided
        .warnings
        .splice(0..0, seen.facts.warnings.iter().cloned());
    if writes(&decided.decision) {
        decided = decider.plaintext(decided);
    }
    decided
}
/// Whether a decision writes blocks.
fn writes(decision: &Decision) -> bool {
    matches!(
        decision,
        Decision::Full
            | Decision::Delta(_)
            | Decision::TakeOver(_)
            | Decision::TakeOverPart(_)
            | Decision::Resume
    )
}

struct Decider<'a> {
    job: &'a SyncJob,
    source: &'a SourceInfo,
    seen: &'a Observed,
}

impl Decider<'_> {
    fn name(&self) -> &str {
        &self.seen.name
    }

    /// Whether the job names the target as one to overwrite.
    fn is_named(&self) -> bool {
        self.job.names(&self.seen.facts)
    }

    fn refuse(&self, reason: &str, remedy: Remedy) -> Decided {
        let reason = format!("cannot write {}: {reason}", self.name());
        Decided::refuse(Kind::Undecided, reason, remedy)
    }

    /// The unfinished run; none where it has ended and only its checkpoint is left.
    fn unfinished(&self) -> Option<&Task> {
        let (task, _) = self.seen.unfinished.as_ref()?;
        let has_ended = self
            .seen
            .record
            .as_ref()
            .is_some_and(|record| record.run == task.run && record.held().is_some());
        (!has_ended && task.target == self.seen.id).then_some(task)
    }

    /// Whether the job is the one of the unfinished run.
    fn is_same_command(&self, task: &Task) -> bool {
        let is_same_base = match &self.job.base {
            Base::None => task.base.is_none(),
            Base::Auto => true,
            Base::Snapshot(id) => task.base.as_deref() == Some(id.as_str()),
        };
        !self.job.restart
            && is_same_base
            && task.source == self.source.name
            && task.source_mark == self.source.mark
            && task.in_place == self.seen.kind.is_in_place()
    }
}

#[cfg(test)]
mod tests;
