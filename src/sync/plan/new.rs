//! New EBS snapshots and repositories: what a delta starts from, and whether a copy of what is encrypted may be plain.

use super::{Decided, Decider, Decision};
use crate::error::Remedy;
use crate::sync::SyncJob;
use crate::target::{Base, Facts, Replica, SourceInfo, TargetKind, UnfinishedState};

/// The replicas that a delta can start from. A child is encrypted as its parent is: where one is, those that would make a plain copy
/// of an encrypted source are left out.
pub(in crate::sync) fn usable_replicas<'a>(
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

impl Decider<'_> {
    /// A target that keeps what it held: an EBS account, a repository.
    pub(super) fn new_object(&self) -> Decided {
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
            && facts.left != UnfinishedState::Absent
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

    /// Refuses, or warns of, a copy that is not encrypted of what is.
    pub(super) fn plaintext(&self, decided: Decided) -> Decided {
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
            // The run's first decision stands: only a copy that is now known to be plain stops it.
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
