//! [`decide`]: what is done for a target, by what is asked and what is observed. A pure function: no I/O, no clock.
//!
//! ```text
//! obstacles, size                                    -> Refuse
//! an unfinished run of the same command, proven      -> Resume
//! an unfinished run of another command, in place     -> TakeOver, or Full
//! a record whose mark matches                        -> Holds, Delta or Full by --base
//! a record whose mark differs, digests there         -> Compare, then as above or Refuse
//! a record whose mark differs, no digests            -> Full (Refuse where a base is named)
//! no record                                          -> Full where nothing is there or it is named, else Refuse
//! ```

use super::job::SyncJob;
use crate::error::{Error, Kind, Remedy};
use crate::source::SnapshotId;
use crate::target::{
    Base, Content, Existence, Facts, Left, Replica, SourceInfo, TargetKind, TargetRecord, Task,
};

/// What is known of a target before a run.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// What it is.
    pub kind: TargetKind,
    /// As a person writes it.
    pub name: String,
    /// [`crate::target::Target::id`].
    pub id: String,
    /// What can be seen of it.
    pub facts: Facts,
    /// What the last run on it recorded.
    pub record: Option<TargetRecord>,
    /// The run that its checkpoint speaks of, and how many blocks of it are done.
    pub unfinished: Option<(Task, u64)>,
    /// Whether the digests of every block of the target are there, of the run that wrote the record or that is unfinished.
    pub has_digests: bool,
    /// Whether the digests of the unfinished run speak of every block: only then can what it left be proven.
    pub unfinished_has_digests: bool,
    /// What a comparison with those digests found; none before there was one.
    pub compared: Option<Comparison>,
}

/// What a comparison of a target with its digests found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// No difference but in blocks that an unfinished run was about to write.
    Same,
    /// Something else has written the target.
    Foreign {
        /// So many blocks.
        blocks: u64,
        /// The first of them, for people.
        ranges: String,
    },
}

/// What is done for a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: it holds the source.
    Holds,
    /// All blocks are copied.
    Full,
    /// The blocks changed since the first of these snapshots that can be listed.
    Delta(Vec<SnapshotId>),
    /// The unfinished run goes on.
    Resume,
    /// A target between this base and another head is brought to the source: what changed since the base, and what the
    /// unfinished run may have written.
    TakeOver(SnapshotId),
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
pub struct Decided {
    /// What is done.
    pub decision: Decision,
    /// Whether an unfinished run's progress is dropped first.
    pub drops_unfinished: bool,
    /// Whether the blocks that a comparison found to be foreign are written too.
    pub rewrites_foreign: bool,
    /// Whether a person at a terminal is asked first: something of unknown content is overwritten.
    pub confirms: bool,
    /// What a person should know.
    pub warnings: Vec<String>,
}

impl Decided {
    /// Before anything was decided.
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
    pub fn refusal(&self) -> Option<Error> {
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
        Decision::Full | Decision::Delta(_) | Decision::TakeOver(_) | Decision::Resume
    )
}

/// The replicas that a delta can start from. A child is encrypted as its parent is: where one is, those that would make a plain copy
/// of an encrypted source are left out.
pub(super) fn usable_replicas<'a>(
    job: &SyncJob,
    source: &SourceInfo,
    facts: &'a Facts,
) -> Vec<&'a Replica> {
    let is_base = |replica: &&Replica| match &job.base {
        Base::None => false,
        Base::Auto => true,
        Base::Snapshot(id) => replica.source == *id,
    };
    let mut replicas: Vec<_> = facts.replicas.iter().filter(is_base).collect();
    let is_encrypted = |replica: &Replica| replica.encrypted == Some(true);
    if source.encrypted == Some(true)
        && !job.allow_plaintext
        && replicas.iter().any(|replica| is_encrypted(replica))
    {
        replicas.retain(|replica| is_encrypted(replica));
    }
    replicas
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

    /// Whether a person has named the target to be overwritten.
    fn is_named(&self) -> bool {
        let facts = &self.seen.facts;
        let tokens = || std::iter::once(&facts.token).chain(&facts.other_tokens);
        self.job
            .overwrite
            .iter()
            .any(|named| tokens().any(|token| token == named))
    }

    fn refuse(&self, reason: &str, remedy: Remedy) -> Decided {
        let reason = format!("cannot write {}: {reason}", self.name());
        Decided::refuse(Kind::Undecided, reason, remedy)
    }

    /// The unfinished run, unless it came to its end and only its checkpoint is left over.
    fn unfinished(&self) -> Option<&Task> {
        let (task, _) = self.seen.unfinished.as_ref()?;
        let has_ended = self
            .seen
            .record
            .as_ref()
            .is_some_and(|record| record.run == task.run && record.held().is_some());
        (!has_ended && task.target == self.seen.id).then_some(task)
    }

    /// Whether the command is the one that an unfinished run was begun by.
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

    /// A target that keeps what it held: an EBS account, a repository.
    fn new_object(&self) -> Decided {
        let facts = &self.seen.facts;
        let unfinished = self.unfinished();
        let drops = self.seen.unfinished.is_some();
        if facts.holds.is_some() && !self.job.restart {
            return Decided {
                drops_unfinished: drops,
                ..Decided::of(Decision::Holds)
            };
        }
        if facts.holds.is_some() && self.seen.kind == TargetKind::Repository {
            let what = format!(
                "remove it first: ebsfs repository rm '{}#{}'",
                self.name(),
                self.source.name
            );
            return self.refuse("it holds the source already", Remedy::Do(what));
        }
        if let Some(task) = unfinished
            && self.is_same_command(task)
            && facts.left != Left::Gone
        {
            return Decided::of(Decision::Resume);
        }
        let replicas = usable_replicas(self.job, self.source, facts);
        let bases = || replicas.iter().map(|replica| replica.source.clone());
        let decided = match (&self.job.base, &facts.no_base) {
            (Base::Snapshot(_), Some(why)) => return self.refuse(why, Remedy::CopyAll),
            (Base::Snapshot(id), None) if replicas.is_empty() => {
                let why = format!("it holds no replica of {id}");
                return self.refuse(&why, Remedy::CopyAll);
            }
            (Base::Snapshot(_) | Base::Auto, _)
                if self.source.has_changes && !replicas.is_empty() =>
            {
                Decided::of(Decision::Delta(bases().collect()))
            }
            (Base::Snapshot(id), None) => {
                let why = format!("{} cannot tell what changed since {id}", self.source.name);
                return self.refuse(&why, Remedy::CopyAll);
            }
            (Base::Auto, _) => Decided::of(Decision::Full).warn(format!(
                "{} holds no proven replica of this volume: copying all blocks",
                self.name()
            )),
            _ => Decided::of(Decision::Full),
        };
        Decided {
            drops_unfinished: drops,
            ..decided
        }
    }

    /// An image or a device of this machine.
    fn local(&self) -> Decided {
        let Some(task) = self.unfinished() else {
            return Decided {
                drops_unfinished: self.seen.unfinished.is_some(),
                ..self.by_record()
            };
        };
        if !self.seen.kind.is_in_place() || !task.in_place {
            return self.part(task);
        }
        let is_there =
            self.seen.facts.existence == Existence::There && self.seen.facts.left != Left::Gone;
        if self.has_begun(task) && is_there && !self.is_overwritten() {
            return self.half_written(task);
        }
        Decided {
            drops_unfinished: true,
            ..self.by_record()
        }
    }

    /// A part beside an image, or one that has become the image: worth something to the command that began it alone.
    fn part(&self, task: &Task) -> Decided {
        let is_provable = match self.seen.facts.left {
            Left::Gone => false,
            Left::Proven => true,
            Left::Unproven | Left::Published => self.seen.unfinished_has_digests,
        };
        let is_resumed = is_provable && self.is_same_command(task);
        // Written in place, the image is what it was before.
        let is_published = self.seen.facts.left == Left::Published && !task.in_place;
        if is_resumed && is_published {
            return Decided::of(Decision::Resume);
        }
        let dropped = |decided| Decided {
            drops_unfinished: true,
            ..decided
        };
        if is_published {
            return dropped(self.published(task));
        }
        if !is_resumed {
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
                ..Decided::of(Decision::Resume)
            },
        }
    }

    /// An image that a run of another command has published, and not recorded: the record and its digests are not of it.
    fn published(&self, task: &Task) -> Decided {
        if let Some(refused) = self.other_volume(task.volume.as_deref(), &task.source) {
            return refused;
        }
        match (&self.job.base, &self.job.trust) {
            (Base::Snapshot(_) | Base::Auto, Some(trusted)) => {
                self.holding(trusted.as_str(), false)
            }
            (Base::Snapshot(_), None) => {
                let why = format!(
                    "it became {} in a run that was killed before it was recorded",
                    task.source
                );
                match task.source.parse::<SnapshotId>() {
                    Ok(held) => self.refuse(&why, Remedy::Trust(held.to_string())),
                    Err(_) => self.refuse(&why, Remedy::CopyAll),
                }
            }
            _ => Decided::of(Decision::Full).warn(format!(
                "{}: content unknown (a run was killed before it recorded {}): copying all blocks",
                self.name(),
                task.source
            )),
        }
    }

    /// What is decided where the target is of another volume than the source.
    fn other_volume(&self, its: Option<&str>, held: &str) -> Option<Decided> {
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

    /// Whether the record says that this run, or the one it took over, has begun to write in place.
    fn has_begun(&self, task: &Task) -> bool {
        self.seen.record.as_ref().is_some_and(|record| {
            let is_its = record.run == task.run || Some(&record.run) == task.after.as_ref();
            is_its && record.held().is_none()
        })
    }

    /// Whether a person has said that the target's content does not matter.
    fn is_overwritten(&self) -> bool {
        self.is_named() && self.job.base == Base::None
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
        // A copy of all blocks needs nobody to vouch for anything.
        let needs_base = self.job.base != Base::None && self.source.has_changes;
        let trusted = self.job.trust.as_ref().filter(|trusted| {
            needs_base && !(self.job.restart && trusted.as_str() == self.source.name)
        });
        match (self.seen.facts.left, &self.seen.compared, trusted) {
            (Left::Proven | Left::Published, ..) | (_, Some(Comparison::Same), _) => {}
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

    fn foreign(&self, blocks: u64, ranges: &str) -> Decided {
        let why = format!(
            "something else has written {blocks} of its blocks since the last run ({ranges})"
        );
        self.refuse(&why, Remedy::DiscardForeignWrites)
    }

    /// A target that no unfinished run speaks of.
    fn by_record(&self) -> Decided {
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
        // A person may know more than a record that proves nothing, and never more than one that does. For a copy of all blocks
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
    fn is_unchanged(&self, record: &TargetRecord) -> bool {
        record.mark.is_some() && record.mark == self.seen.facts.mark
    }

    /// A target of which nothing is known.
    fn unknown(&self, why: &str) -> Decided {
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
    fn recorded(&self, record: &TargetRecord, held: &str) -> Decided {
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
    fn holding(&self, held: &str, rewrites: bool) -> Decided {
        let snapshot = held.parse::<SnapshotId>().ok();
        let snapshot = snapshot.filter(|_| self.source.has_changes);
        let decision = if held == self.source.name && self.source.mark.is_none() {
            match (self.job.restart, rewrites, snapshot, &self.job.base) {
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

    /// Refuses, or warns of, a copy that is not encrypted of what is.
    fn plaintext(&self, decided: Decided) -> Decided {
        let facts = &self.seen.facts;
        let begun = self.unfinished().and_then(|task| task.base.as_deref());
        let encrypts = match &decided.decision {
            _ if !self.seen.kind.is_new() => Some(false),
            Decision::Delta(_) => {
                let mut all = usable_replicas(self.job, self.source, facts).into_iter();
                match all.next().map(|replica| replica.encrypted) {
                    // Any of them may become the base.
                    Some(Some(true)) => all
                        .find_map(|other| {
                            (other.encrypted != Some(true)).then_some(other.encrypted)
                        })
                        .unwrap_or(Some(true)),
                    first => first.flatten(),
                }
            }
            // What it began with was decided then: only what is known to be plain by now stops it.
            Decision::Resume => {
                let of_base = |base: &str| {
                    let mut replicas = facts.replicas.iter();
                    replicas
                        .find(|replica| replica.source.as_str() == base)
                        .and_then(|replica| replica.encrypted)
                };
                match begun.map_or(facts.encrypts, of_base) {
                    None => return decided,
                    known => known,
                }
            }
            _ => facts.encrypts,
        };
        if encrypts == Some(true) {
            return decided;
        }
        match self.source.encrypted {
            Some(false) => decided,
            Some(true) if self.seen.kind.is_new() && !self.job.allow_plaintext => {
                let how = match encrypts {
                    None => "may not be encrypted (ec2:GetEbsEncryptionByDefault is not allowed)",
                    Some(_) => "would not be encrypted",
                };
                let why = format!("{} is encrypted, and the copy {how}", self.source.name);
                self.refuse(&why, Remedy::AllowPlaintext)
            }
            Some(true) => decided.warn(format!(
                "{} is encrypted, and {} is not",
                self.source.name,
                self.name()
            )),
            None => decided.warn(format!(
                "{} may be encrypted (ec2:DescribeSnapshots would tell), and {} is not",
                self.source.name,
                self.name()
            )),
        }
    }
}

/// Whether an image fits where `free` bytes are free: an error if it cannot, a sentence if it may not (a block that is held may be
/// all zeroes and take no room).
///
/// # Errors
/// `NoSpace` when the clone and the reserve alone do not fit.
pub(super) fn room(
    name: &str,
    free: u64,
    clone: u64,
    blocks: u64,
    reserve: u64,
) -> crate::error::Result<Option<String>> {
    let size = bytesize::ByteSize::b;
    if free < clone.saturating_add(reserve) {
        let why = match (clone, reserve) {
            (0, reserve) => format!("{} are to stay free", size(reserve)),
            (clone, 0) => format!("a copy of the old image takes {}", size(clone)),
            (clone, reserve) => format!(
                "a copy of the old image takes {}, and {} are to stay free",
                size(clone),
                size(reserve)
            ),
        };
        let what = format!(
            "cannot write {name}: {} are free there, and {why}",
            size(free)
        );
        return Err(Error::new(Kind::NoSpace, what));
    }
    let wanted = blocks
        .saturating_mul(u64::from(crate::block::BLOCK_SIZE))
        .saturating_add(clone)
        .saturating_add(reserve);
    Ok((free < wanted).then(|| {
        format!(
            "{} are free there, up to {} are wanted: it may not fit",
            size(free),
            size(wanted)
        )
    }))
}

#[cfg(test)]
mod tests;
