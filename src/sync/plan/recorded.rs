//! Images and devices by their records: what they are proven to hold, and whether they may be overwritten.

use super::{Comparison, Decided, Decider, Decision};
use crate::error::Remedy;
use crate::snapshot::SnapshotId;
use crate::target::{Base, Content, Existence, TargetKind, TargetRecord};

impl Decider<'_> {
    pub(super) fn foreign(&self, blocks: u64, ranges: &str) -> Decided {
        let why = format!(
            "something else has written {blocks} of its blocks since the last run ({ranges})"
        );
        self.refuse(&why, Remedy::DiscardForeignWrites)
    }

    /// A target that no unfinished run speaks of.
    pub(super) fn by_record(&self) -> Decided {
        let facts = &self.seen.facts;
        if facts.existence != Existence::There {
            return match &self.job.base {
                Base::Snapshot(id) => self.refuse(
                    &format!("it is not there, so it does not hold {id}"),
                    Remedy::CopyAll,
                ),
                _ => Decided::of(Decision::Full),
            };
        }
        let record = self
            .seen
            .record
            .as_ref()
            .filter(|record| facts.has_identity && record.target == self.seen.id);
        let is_proven = |record: &TargetRecord| {
            record.held().is_some() && !record.is_old_format && self.is_unchanged(record)
        };
        // A person's word outranks a record that proves nothing, never one that is proven. For a copy of all blocks
        // it does not matter what the target holds, but whether it may be overwritten.
        if let Some(trusted) = &self.job.trust
            && !record.is_some_and(is_proven)
        {
            let decided = self.holding(trusted.as_str(), false);
            if decided.decision != Decision::Full {
                return decided;
            }
        }
        let Some(record) = record else {
            return self.unknown("content unknown (no record)");
        };
        let held = match &record.content {
            Content::Holds(held) => held,
            Content::Between { head, .. } => head,
        };
        if let Some(decided) = self.other_volume(record.volume.as_deref(), held) {
            return decided;
        }
        match &record.content {
            Content::Between { base, head } => {
                let base = base.as_deref().unwrap_or("something unknown");
                let why = format!("it is between {base} and {head}, and its checkpoint is lost");
                // An image that a new one replaces keeps nothing that is usable.
                match (&self.job.base, self.seen.kind) {
                    (Base::None | Base::Auto, TargetKind::Image) => Decided::of(Decision::Full),
                    _ => self.unknown(&why),
                }
            }
            Content::Holds(held) => self.recorded(record, held),
        }
    }

    /// Whether its mark proves that nothing has written the target since the record.
    pub(super) fn is_unchanged(&self, record: &TargetRecord) -> bool {
        self.seen.is_unchanged(record)
    }

    /// A target of which nothing is known.
    pub(super) fn unknown(&self, why: &str) -> Decided {
        if let Base::Snapshot(id) = &self.job.base {
            let why = format!("{why}, so nothing proves that it holds {id}");
            return self.refuse(&why, Remedy::Trust(id.to_string()));
        }
        if !self.is_named() {
            let token = self.seen.facts.token.clone();
            return self.refuse(why, Remedy::Overwrite(token));
        }
        let decided = Decided {
            confirms: true,
            ..Decided::of(Decision::Full)
        };
        match self.seen.facts.has_identity {
            true => decided,
            false => decided.warn(format!(
                "{} has no WWN, serial number or UUID: no record is kept, and --base will not work",
                self.name()
            )),
        }
    }

    /// A target whose record says that it holds something.
    pub(super) fn recorded(&self, record: &TargetRecord, held: &str) -> Decided {
        if self.is_unchanged(record) {
            let decided = self.holding(held, false);
            return match record.is_old_format {
                false => decided,
                true => decided.warn(format!(
                    "the record of {} has no change time (an older version wrote it): taken this once",
                    self.name()
                )),
            };
        }
        if self.is_overwritten() {
            return Decided {
                confirms: true,
                ..Decided::of(Decision::Full)
            };
        }
        match &self.seen.compared {
            Some(Comparison::Same) => self.holding(held, false),
            Some(Comparison::Foreign { .. }) if self.job.discard_foreign_writes => {
                self.holding(held, true)
            }
            Some(Comparison::Foreign { blocks, ranges }) => self.foreign(*blocks, ranges),
            None if self.seen.has_digests => Decided::of(Decision::Compare),
            None => match &self.job.base {
                Base::Snapshot(id) if id.as_str() != held => {
                    self.refuse(&format!("it held {held}, not {id}"), Remedy::BaseAuto)
                }
                Base::Snapshot(id) => {
                    let why = format!(
                        "it was written since it held {held}, and there are no digests to compare it with"
                    );
                    self.refuse(&why, Remedy::Trust(id.to_string()))
                }
                _ => Decided::of(Decision::Full).warn(format!(
                    "{}: content unknown (its mark has changed, no digests): copying all blocks",
                    self.name()
                )),
            },
        }
    }

    /// A target that is proven to hold `held`, but for foreign writes that are to be discarded.
    pub(super) fn holding(&self, held: &str, rewrites: bool) -> Decided {
        let snapshot = held.parse::<SnapshotId>().ok();
        let takes_deltas = self.source.has_changes && !self.seen.facts.takes_no_delta;
        let snapshot = snapshot.filter(|_| takes_deltas);
        let record = self.seen.record.as_ref();
        // Blocks that were left zero are tried again.
        let retries = rewrites || record.is_some_and(|record| !record.damaged.is_empty());
        let decision = if held == self.source.name && self.source.mark.is_none() {
            match (self.job.restart, retries, snapshot, &self.job.base) {
                (true, _, _, Base::Snapshot(id)) if id.as_str() != held => {
                    return self.refuse(&format!("it holds {held}, not {id}"), Remedy::CopyAll);
                }
                (true, ..) | (_, true, None, _) => Decision::Full,
                (false, true, Some(base), _) => Decision::Delta(vec![base]),
                (false, false, ..) => Decision::Holds,
            }
        } else {
            match (&self.job.base, snapshot) {
                (Base::None, _) | (Base::Auto, None) => Decision::Full,
                (Base::Auto, Some(base)) => Decision::Delta(vec![base]),
                (Base::Snapshot(id), Some(base)) if *id == base => Decision::Delta(vec![base]),
                (Base::Snapshot(_), _) if self.seen.facts.takes_no_delta => {
                    let why = "an image of its format takes all blocks, not what changed";
                    return self.refuse(why, Remedy::CopyAll);
                }
                (Base::Snapshot(id), _) => {
                    return self.refuse(&format!("it holds {held}, not {id}"), Remedy::BaseAuto);
                }
            }
        };
        Decided {
            rewrites_foreign: rewrites && matches!(decision, Decision::Delta(_)),
            ..Decided::of(decision)
        }
    }

    /// The decision where the target is of another volume than the source.
    pub(super) fn other_volume(&self, its: Option<&str>, held: &str) -> Option<Decided> {
        let ours = self.source.volume.as_deref()?;
        let its = its.filter(|its| *its != ours)?;
        let why = format!(
            "it is a replica of {its} (it holds {held}), and {} is of {ours}",
            self.source.name
        );
        Some(match (&self.job.base, self.is_named()) {
            (_, false) => self.refuse(&why, Remedy::Overwrite(self.seen.facts.token.clone())),
            (Base::Snapshot(_), true) => self.refuse(&why, Remedy::CopyAll),
            (_, true) => Decided {
                confirms: true,
                ..Decided::of(Decision::Full)
            },
        })
    }

    /// Whether a person has said that the target's content does not matter.
    pub(super) fn is_overwritten(&self) -> bool {
        self.is_named() && self.job.base == Base::None
    }
}
