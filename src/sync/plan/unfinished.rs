//! Images and devices that a checkpoint speaks of: resumed, taken over, or dropped.

use super::{Comparison, Decided, Decider, Decision};
use crate::error::Remedy;
use crate::snapshot::SnapshotId;
use crate::sync::SyncJob;
use crate::target::{Base, Existence, Task, UnfinishedState};

impl Decider<'_> {
    /// An image or a device of this machine.
    pub(super) fn local(&self) -> Decided {
        let Some(task) = self.unfinished() else {
            return Decided {
                drops_unfinished: self.seen.unfinished.is_some(),
                ..self.by_record()
            };
        };
        if !self.seen.kind.is_in_place() || !task.in_place {
            return self.part(task);
        }
        let is_there = self.seen.facts.existence == Existence::There
            && self.seen.facts.left != UnfinishedState::Absent;
        if self.has_begun(task) && is_there && !self.is_overwritten() {
            return self.half_written(task);
        }
        Decided {
            drops_unfinished: true,
            ..self.by_record()
        }
    }

    /// A part beside an image: usable by the command that began it, and by one that takes it over.
    pub(super) fn part(&self, task: &Task) -> Decided {
        let is_provable = match self.seen.facts.left {
            UnfinishedState::Absent => false,
            UnfinishedState::Proven => true,
            UnfinishedState::Unproven => self.seen.unfinished_has_digests,
        };
        let is_resumed = is_provable && self.is_same_command(task);
        let dropped = |decided| Decided {
            drops_unfinished: true,
            ..decided
        };
        let other = self
            .part_of_other(task)
            .filter(|_| is_provable && !is_resumed);
        if !is_resumed && other.is_none() {
            return dropped(self.by_record());
        }
        // The part needs no base any more. What it replaces may have been written since it was begun.
        let job = SyncJob {
            base: match self.job.base {
                Base::None => Base::None,
                _ => Base::Auto,
            },
            ..self.job.clone()
        };
        let replaced = Decider { job: &job, ..*self }.by_record();
        match replaced.decision {
            Decision::Refuse { .. } | Decision::Compare => replaced,
            Decision::Holds => dropped(replaced),
            _ => Decided {
                confirms: replaced.confirms,
                ..Decided::of(other.map_or(Decision::Resume, Decision::TakeOverPart))
            },
        }
    }

    /// The snapshot of the same volume that a part is an unfinished copy of, if the command wants another one of it.
    fn part_of_other(&self, task: &Task) -> Option<SnapshotId> {
        let is_part =
            !task.in_place && !self.seen.kind.is_in_place() && !self.seen.facts.keeps_no_part;
        let is_there = matches!(
            self.seen.facts.left,
            UnfinishedState::Proven | UnfinishedState::Unproven
        );
        let is_same_volume = task.volume.is_some() && task.volume == self.source.volume;
        // A copy of all blocks rests on no base that another run was given.
        let fits_base = match &self.job.base {
            Base::None => task.base.is_none(),
            Base::Auto => true,
            Base::Snapshot(id) => task.base.as_deref() == Some(id.as_str()),
        };
        let is_other = task.source != self.source.name && !self.job.restart;
        let is_usable = is_part && is_there && is_same_volume && fits_base && is_other;
        (is_usable && self.source.has_changes)
            .then(|| task.source.parse().ok())
            .flatten()
    }

    /// Whether the record says that this run, or the one it took over, has begun to write in place.
    fn has_begun(&self, task: &Task) -> bool {
        self.seen.record.as_ref().is_some_and(|record| {
            let is_its = record.run == task.run || Some(&record.run) == task.after.as_ref();
            is_its && record.held().is_none()
        })
    }

    /// A target in place that an unfinished run has begun to write.
    fn half_written(&self, task: &Task) -> Decided {
        let base = task.base.as_deref().unwrap_or("something unknown");
        let between = format!("it is between {base} and {}", task.source);
        let dropped = |decision| Decided {
            drops_unfinished: true,
            ..Decided::of(decision)
        };
        if let Some(decided) = self.other_volume(task.volume.as_deref(), &task.source) {
            return Decided {
                drops_unfinished: true,
                ..decided
            };
        }
        let task_base = task.base.as_ref().and_then(|base| base.parse().ok());
        let mut rewrites = false;
        // A copy of all blocks needs no proof of what the target holds.
        let needs_base = self.job.base != Base::None && self.source.has_changes;
        let trusted = self.job.trust.as_ref().filter(|trusted| {
            needs_base && !(self.job.restart && trusted.as_str() == self.source.name)
        });
        match (self.seen.facts.left, &self.seen.compared, trusted) {
            (UnfinishedState::Proven, ..) | (_, Some(Comparison::Same), _) => {}
            // What the run may have written is written again, and a person vouches for the rest.
            (_, _, Some(trusted)) if Some(trusted) == task_base.as_ref() => {}
            (_, _, Some(trusted)) => {
                return Decided {
                    drops_unfinished: true,
                    ..self.holding(trusted.as_str(), false)
                };
            }
            (_, Some(Comparison::Foreign { blocks, ranges }), _) => {
                if !self.job.discard_foreign_writes {
                    return self.foreign(*blocks, ranges);
                }
                rewrites = true;
            }
            _ if self.seen.has_digests => return Decided::of(Decision::Compare),
            _ => {
                if let Base::Snapshot(id) = &self.job.base {
                    let why = format!("{between}, and nothing proves what else was written to it");
                    return match self.source.has_changes {
                        true => self.refuse(&why, Remedy::Trust(id.to_string())),
                        false => self.refuse(&why, Remedy::CopyAll),
                    };
                }
                return dropped(Decision::Full).warn(format!(
                    "{}: {between}, content unknown (no digests): copying all blocks",
                    self.name()
                ));
            }
        }
        if !rewrites && self.is_same_command(task) {
            return Decided::of(Decision::Resume);
        }
        match (
            &self.job.base,
            task_base.filter(|_| self.source.has_changes),
        ) {
            (Base::Snapshot(id), base) if base.as_ref() != Some(id) => {
                self.refuse(&format!("{between}, not {id}"), Remedy::BaseAuto)
            }
            (Base::Auto | Base::Snapshot(_), Some(base)) => Decided {
                rewrites_foreign: rewrites,
                ..Decided::of(Decision::TakeOver(base))
            },
            _ => dropped(Decision::Full),
        }
    }
}
