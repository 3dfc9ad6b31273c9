//! What must hold of every decision for an image or a device, whatever [`decide`] looks like.

use super::*;

/// A row of the product with its decision.
pub(super) struct Row<'a> {
    pub(super) state: &'a LocalState,
    pub(super) job: &'a SyncJob,
    pub(super) seen: &'a Observed,
    pub(super) source: &'a SourceInfo,
    pub(super) decided: &'a Decided,
    pub(super) broken: &'a Broken,
}

impl Row<'_> {
    fn must(&self, holds: bool, rule: &str) {
        let row = || format!("{:?}\n{:?}\n-> {:?}", self.state, self.job, self.decided);
        self.broken.must(holds, rule, row);
    }

    fn is_named(&self) -> bool {
        !self.job.overwrite.is_empty()
    }

    /// Whether a person has said that the content does not matter.
    fn is_given_up(&self) -> bool {
        self.is_named() && self.job.base == Base::None
    }

    /// Whether a person vouches for what is there, and nothing proves otherwise. A copy of all blocks asks for no such thing.
    fn trusts(&self, held: &str) -> bool {
        let state = self.state;
        let is_proven = state.holds().is_some()
            && state.marked == Marked::Matches
            && state.recorded != Recorded::OldFormat;
        let trusted = self.job.trust.as_ref().map(SnapshotId::as_str);
        trusted == Some(held) && self.job.base != Base::None && !is_proven
    }

    fn trusts_any(&self) -> bool {
        self.trusts(HELD) || self.trusts(OTHER)
    }

    fn is_discarded(&self) -> bool {
        self.state.compared == Compared::Foreign && self.job.discard_foreign_writes
    }

    pub(super) fn rules(&self) {
        let (state, job, decided) = (self.state, self.job, self.decided);
        let there = state.existence == Existence::There;
        match &decided.decision {
            Decision::Holds => {
                self.must(
                    there && !job.restart,
                    "what holds is there, and no restart copies it",
                );
                self.must(
                    state.proven() == Some(HEAD) && !state.is_image,
                    "a target holds only what is proven",
                );
                self.must(
                    !state.has_begun(),
                    "a target between two snapshots holds none",
                );
            }
            Decision::Delta(bases) => self.delta(bases),
            Decision::TakeOver(base) => self.take_over(base),
            Decision::TakeOverPart(other) => self.take_over_part(other),
            Decision::Resume => self.resume(),
            Decision::Full => self.full(),
            Decision::Compare => {
                self.must(
                    there && state.has_digests,
                    "digests are compared with what is there",
                );
                self.must(
                    state.compared == Compared::None,
                    "nothing is compared twice",
                );
                self.must(
                    state.marked != Marked::Matches,
                    "what is proven is not compared",
                );
                self.must(
                    !self.is_given_up(),
                    "content that does not matter is not compared",
                );
            }
            Decision::Refuse { kind, .. } => {
                self.must(*kind == Kind::Undecided, "a person must decide");
                self.refuse();
            }
        }
        self.always();
    }

    fn always(&self) {
        let (state, job, decided) = (self.state, self.job, self.decided);
        if state.compared == Compared::Foreign
            && !job.discard_foreign_writes
            && !self.is_given_up()
            && !self.trusts_any()
        {
            self.must(is_refused(decided), "foreign writes are not overwritten");
            let is_other = state.is_of_other_volume();
            self.must(
                is_other || remedy(decided) == Some(&Remedy::DiscardForeignWrites),
                "foreign writes are discarded only if that is asked for",
            );
        }
        if state.is_of_other_volume()
            && state.existence == Existence::There
            && !self.is_named()
            && !self.trusts_any()
        {
            let overwrite = Remedy::Overwrite(TOKEN.into());
            self.must(
                remedy(decided) == Some(&overwrite),
                "a replica of another volume must be named",
            );
        }
        let copies = matches!(
            decided.decision,
            Decision::Full | Decision::Delta(_) | Decision::Holds
        );
        self.must(
            !copies || decided.drops_unfinished == self.seen.unfinished.is_some(),
            "progress that is not used is dropped",
        );
        let is_kept = matches!(
            decided.decision,
            Decision::Resume | Decision::TakeOver(_) | Decision::TakeOverPart(_)
        );
        self.must(
            !is_kept || !decided.drops_unfinished,
            "progress that is used is kept",
        );
        self.must(
            !decided.confirms || self.is_named(),
            "nothing is asked of what was not named",
        );
        self.must(
            !decided.rewrites_foreign || self.is_discarded(),
            "foreign blocks are written only if that is asked for",
        );
        // What a part leaves behind stops nothing.
        if !state.task_is_in_place() && state.unfinished != Unfinished::None {
            let mut without = self.seen.clone();
            without.unfinished = None;
            without.facts.left = UnfinishedState::Absent;
            let without = decide(job, self.source, &without);
            self.must(
                is_refused(&without) || !is_refused(decided),
                "a stale part refuses nothing",
            );
        }
        let leads_on = remedies_lead_on(job, self.source, self.seen, decided);
        self.must(
            leads_on.is_ok(),
            leads_on.as_ref().err().map_or("", |why| why),
        );
    }

    fn delta(&self, bases: &[SnapshotId]) {
        let (state, job) = (self.state, self.job);
        let [base] = bases else {
            panic!("a target here has one base: {bases:?}");
        };
        let base = base.as_str();
        self.must(!state.is_image, "an image lists no changes");
        self.must(state.existence == Existence::There, "a delta has a base");
        self.must(
            !state.has_begun() || self.trusts(base),
            "what is between is no base",
        );
        let rewrites = self.is_discarded() && state.holds() == Some(base);
        self.must(
            self.decided.rewrites_foreign == (rewrites && !self.trusts(base)),
            "foreign blocks are part of the delta",
        );
        self.must(
            state.proven() == Some(base) || rewrites || self.trusts(base),
            "a base is proven, or a person vouches for it",
        );
        let is_asked = match &job.base {
            Base::None => false,
            Base::Auto => true,
            Base::Snapshot(asked) => asked.as_str() == base,
        };
        let is_repair = rewrites && base == HEAD;
        self.must(
            is_asked || is_repair,
            "a base is the one that was asked for",
        );
    }

    fn take_over(&self, base: &SnapshotId) {
        let (state, job) = (self.state, self.job);
        self.must(state.has_begun(), "what is taken over has begun");
        self.must(
            state.has_task_base && base.as_str() == HELD,
            "its base stays",
        );
        self.must(!state.is_image, "an image lists no changes");
        self.must(
            state.left == UnfinishedState::Proven
                || state.compared == Compared::Same
                || self.trusts(HELD)
                || (self.is_discarded() && self.decided.rewrites_foreign),
            "what is taken over is proven",
        );
        self.must(
            match &job.base {
                Base::None => false,
                Base::Auto => true,
                Base::Snapshot(asked) => asked == base,
            },
            "a base is the one that was asked for",
        );
        self.must(
            !state.is_same_command(job) || self.is_discarded(),
            "the same command resumes",
        );
    }

    fn resume(&self) {
        let (state, job) = (self.state, self.job);
        self.must(
            state.is_same_command(job),
            "the command that began a run resumes it",
        );
        if state.is_in_place() {
            self.must(state.has_begun(), "what was not begun is not resumed");
            self.must(
                state.left == UnfinishedState::Proven
                    || state.compared == Compared::Same
                    || (state.has_task_base && self.trusts(HELD)),
                "what is resumed in place is proven",
            );
            return;
        }
        self.must(
            state.left != UnfinishedState::Absent,
            "a part that is gone is not resumed",
        );
        self.must(
            state.left == UnfinishedState::Proven || state.is_whole,
            "a part is proven by its mark or by the digests of all its blocks",
        );
        self.replaces();
    }

    fn take_over_part(&self, other: &SnapshotId) {
        let (state, job) = (self.state, self.job);
        self.must(
            state.unfinished == Unfinished::OtherSource && other.as_str() == LATER,
            "a part of another snapshot of the volume is taken over",
        );
        self.must(
            !state.is_in_place() && !state.task_is_in_place(),
            "a part is taken over for an image that is replaced",
        );
        self.must(!state.is_image && !job.restart, "a snapshot takes over");
        self.must(
            state.left == UnfinishedState::Proven
                || (state.left == UnfinishedState::Unproven && state.is_whole),
            "a part that is taken over is proven by its mark or its digests",
        );
        let fits = match &job.base {
            Base::None => !state.has_task_base,
            Base::Auto => true,
            Base::Snapshot(id) => state.has_task_base && id.as_str() == HELD,
        };
        self.must(fits, "a part that is taken over rests on no other base");
        self.replaces();
    }

    /// What a part is to replace.
    fn replaces(&self) {
        let state = self.state;
        if state.existence != Existence::There {
            return;
        }
        self.must(
            state.recorded != Recorded::None || self.is_named() || self.trusts_any(),
            "what a part replaces is ours or named",
        );
        self.must(
            state.compared != Compared::None
                || !state.has_digests
                || state.marked == Marked::Matches
                || self.is_given_up()
                || self.trusts_any()
                || state.is_of_other_volume(),
            "what a part replaces is compared",
        );
    }

    fn full(&self) {
        let (state, job, named) = (self.state, self.job, self.is_named());
        self.must(
            !matches!(job.base, Base::Snapshot(_)) || (job.restart && self.holds_asked()),
            "a named base never becomes a full copy",
        );
        if state.existence != Existence::There {
            return;
        }
        self.must(
            state.recorded != Recorded::None || named,
            "what has no record must be named",
        );
        self.must(
            !state.is_of_other_volume() || named,
            "a replica of another volume must be named",
        );
        self.must(
            !state.has_digests
                || state.marked == Marked::Matches
                || state.compared != Compared::None
                || state.left == UnfinishedState::Proven
                || (state.is_of_other_volume() && named)
                || self.is_given_up()
                || (state.is_half_written() && !state.has_begun()),
            "what can be compared is not overwritten unseen",
        );
        let is_lost = matches!(
            state.recorded,
            Recorded::Between | Recorded::BetweenBefore | Recorded::BetweenOther
        ) && !state.has_begun();
        self.must(
            !is_lost || named || state.kind == TargetKind::Image,
            "what is between and has no checkpoint must be named",
        );
        self.must(
            state.recorded != Recorded::None || self.decided.confirms,
            "a person is asked before something unknown is overwritten",
        );
    }

    /// Whether what the target holds is the base that was named.
    fn holds_asked(&self) -> bool {
        let held = self.state.holds();
        matches!(&self.job.base, Base::Snapshot(asked) if held == Some(asked.as_str()))
    }

    fn refuse(&self) {
        let state = self.state;
        let there = state.existence == Existence::There;
        let is_named_base = matches!(self.job.base, Base::Snapshot(_));
        self.must(
            there || is_named_base,
            "where nothing is, everything is copied",
        );
        if is_named_base || !there {
            return;
        }
        let is_unknown = state.recorded == Recorded::None
            || (state.holds().is_none() && !state.has_begun() && state.is_in_place());
        self.must(
            (is_unknown && !self.is_named())
                || (state.is_of_other_volume() && !self.is_named())
                || (state.compared == Compared::Foreign && !self.job.discard_foreign_writes),
            "without a named base only unknown content and foreign writes are refused",
        );
        if let Some(held) = state.proven()
            && !state.has_begun()
        {
            self.must(held == FOREIGN, "what is proven needs no person");
        }
    }
}
