//! EBS accounts and repositories: the full product.

use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Replicas {
    None,
    Encrypted,
    Plain,
    /// The newest is encrypted, an older one is not.
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Unfinished {
    None,
    Same,
    OtherMark,
    OtherSource,
    Ended,
}

#[derive(Clone, Debug)]
struct Row {
    kind: TargetKind,
    is_held: bool,
    replicas: Replicas,
    has_no_base: bool,
    encrypts: Option<bool>,
    unfinished: Unfinished,
    left: UnfinishedState,
    has_task_base: bool,
    is_image: bool,
    encrypted: Option<bool>,
    base: Base,
    restart: bool,
    allows: bool,
}

impl Row {
    fn impossible(&self) -> Option<&'static str> {
        let none = self.unfinished == Unfinished::None;
        let is_repository = self.kind == TargetKind::Repository;
        let rows = [
            (
                is_repository && self.encrypts != Some(false),
                "a repository is not encrypted",
            ),
            (
                is_repository && matches!(self.replicas, Replicas::Encrypted | Replicas::Both),
                "a repository is not encrypted",
            ),
            (
                self.base == Base::None && (self.replicas != Replicas::None || self.has_no_base),
                "no base is looked for",
            ),
            (
                self.replicas != Replicas::None && self.has_no_base,
                "there is a base",
            ),
            (
                self.replicas == Replicas::None
                    && !self.has_no_base
                    && !self.is_held
                    && matches!(self.base, Base::Snapshot(_)),
                "a named base that is not there is said to be none",
            ),
            (self.is_held && self.is_image, "an image has no id"),
            (
                self.is_image && self.encrypted != Some(false),
                "an image is plain",
            ),
            (
                none && self.left != UnfinishedState::Absent,
                "nothing was left",
            ),
            (none && self.has_task_base, "no run has a base"),
            (
                self.left == UnfinishedState::Unproven,
                "what was left there is there or gone",
            ),
            (
                self.unfinished == Unfinished::OtherMark && !self.is_image,
                "a snapshot has no mark",
            ),
        ];
        rows.iter().find(|(is, _)| *is).map(|(_, why)| *why)
    }

    fn source(&self) -> SourceInfo {
        match self.is_image {
            true => image(),
            false => snapshot(self.encrypted),
        }
    }

    fn job(&self) -> SyncJob {
        SyncJob {
            restart: self.restart,
            allow_plaintext: self.allows,
            ..job(self.base.clone())
        }
    }

    fn observed(&self) -> Observed {
        let mut seen = seen(self.kind, Existence::Absent);
        let facts = &mut seen.facts;
        let of = |source: &str, encrypted| Replica {
            source: id(source),
            id: id("snap-99"),
            volume_bytes: Some(SIZE),
            encrypted: Some(encrypted),
        };
        facts.replicas = match self.replicas {
            Replicas::None => Vec::new(),
            Replicas::Encrypted => vec![of(HELD, true)],
            Replicas::Plain => vec![of(HELD, false)],
            Replicas::Both => vec![of(HELD, true), of(HELD, false), of(OTHER, false)],
        };
        if let Base::Snapshot(base) = &self.base {
            facts.replicas.retain(|replica| replica.source == *base);
        }
        facts.holds = self.is_held.then(|| id("snap-98"));
        facts.no_base = self.has_no_base.then(|| "it is archived".into());
        facts.encrypts = self.encrypts;
        facts.left = self.left;
        let mut task = task(&self.source(), false, self.has_task_base.then_some(HELD));
        match self.unfinished {
            Unfinished::None => return seen,
            Unfinished::OtherMark => task.source_mark = Some(mark(101)),
            Unfinished::OtherSource => task.source = LATER.into(),
            Unfinished::Ended => {
                seen.record = Some(record(RUN, Content::Holds(HELD.into()), None, None));
            }
            Unfinished::Same => {}
        }
        seen.unfinished = Some((task, 7));
        seen
    }

    fn is_same_command(&self) -> bool {
        let base = match &self.base {
            Base::None => !self.has_task_base,
            Base::Auto => true,
            Base::Snapshot(base) => self.has_task_base && base.as_str() == HELD,
        };
        self.unfinished == Unfinished::Same && base && !self.restart
    }

    fn rules(&self, broken: &Broken) {
        let (job, source, seen) = (self.job(), self.source(), self.observed());
        let decided = decide(&job, &source, &seen);
        let must = |holds: bool, rule: &str| {
            broken.must(holds, rule, || format!("{self:?}\n-> {decided:?}"));
        };
        let holds = self.is_held && !self.restart;
        must(
            (decided.decision == Decision::Holds) == holds,
            "what is held is not made twice, but by a restart",
        );
        let is_resumed = decided.decision == Decision::Resume;
        if is_resumed {
            must(
                self.is_same_command() && self.left == UnfinishedState::Proven,
                "the same command resumes what is there",
            );
        } else if self.is_same_command() && self.left == UnfinishedState::Proven && !holds {
            must(
                is_refused(&decided),
                "the same command resumes what is there",
            );
        }
        match &decided.decision {
            Decision::Compare | Decision::TakeOver(_) | Decision::TakeOverPart(_) => {
                must(false, "new objects are not compared");
            }
            Decision::Delta(bases) => {
                must(!bases.is_empty() && !self.is_image, "a delta has a base");
                let is_asked = |base: &SnapshotId| match &self.base {
                    Base::None => false,
                    Base::Auto => true,
                    Base::Snapshot(asked) => asked == base,
                };
                must(
                    bases.iter().all(is_asked),
                    "a base is one that was asked for",
                );
            }
            Decision::Full => must(
                !matches!(self.base, Base::Snapshot(_)),
                "a named base never becomes a full copy",
            ),
            Decision::Refuse { kind, .. } => {
                must(*kind == Kind::Undecided, "a person must decide");
                must(
                    matches!(self.base, Base::Snapshot(_))
                        || self.encrypted == Some(true)
                        || (self.is_held && self.kind == TargetKind::Repository),
                    "nothing else is refused",
                );
            }
            _ => {}
        }
        self.plaintext(&decided, broken);
        must(
            !decided.confirms && !decided.rewrites_foreign,
            "nothing is overwritten",
        );
        let drops = seen.unfinished.is_some() && !is_resumed;
        must(
            is_refused(&decided) || decided.drops_unfinished == drops,
            "progress that is not used is dropped",
        );
        let leads_on = remedies_lead_on(&job, &source, &seen, &decided);
        must(
            leads_on.is_ok(),
            leads_on.as_ref().err().map_or("", |why| why),
        );
    }

    /// Whether the copy is known to be encrypted, whatever replica becomes its base.
    fn plaintext(&self, decided: &Decided, broken: &Broken) {
        let must = |holds: bool, rule: &str| {
            broken.must(holds, rule, || format!("{self:?}\n-> {decided:?}"));
        };
        let is_encrypted = match &decided.decision {
            // The planner takes the first of these that can be listed; a plain one of the same snapshot only where no other is.
            Decision::Delta(bases) => match self.replicas {
                Replicas::Encrypted => true,
                Replicas::Both => {
                    let is_named = matches!(self.base, Base::Snapshot(_));
                    assert!(is_named || bases.contains(&id(HELD)));
                    !self.allows && !bases.contains(&id(OTHER))
                }
                _ => false,
            },
            Decision::Full => self.encrypts == Some(true),
            Decision::Resume => match (self.has_task_base, self.replicas) {
                (true, Replicas::Encrypted | Replicas::Both) => true,
                (true, Replicas::Plain) => false,
                (true, Replicas::None) => return,
                (false, _) => match self.encrypts {
                    Some(encrypts) => encrypts,
                    None => return,
                },
            },
            _ => return,
        };
        if is_encrypted {
            return;
        }
        must(
            self.encrypted != Some(true) || self.allows,
            "what is encrypted becomes plain only if that is allowed",
        );
        let says = decided
            .warnings
            .iter()
            .any(|warning| warning.contains("encrypted"));
        must(
            self.encrypted == Some(false) || says,
            "a plain copy of what is or may be encrypted is warned of",
        );
    }
}

#[test]
fn every_combination_of_a_new_object_is_decided_by_the_rules_or_impossible() {
    let two = [false, true];
    let encryption = [Some(true), Some(false), None];
    let lefts = [
        UnfinishedState::Absent,
        UnfinishedState::Proven,
        UnfinishedState::Unproven,
    ];
    let replicas = [
        Replicas::None,
        Replicas::Encrypted,
        Replicas::Plain,
        Replicas::Both,
    ];
    let runs = [
        Unfinished::None,
        Unfinished::Same,
        Unfinished::OtherMark,
        Unfinished::OtherSource,
        Unfinished::Ended,
    ];
    let kinds = [TargetKind::Ebs, TargetKind::Repository];
    let facts = product4(&kinds, &two, &replicas, &product2(&two, &encryption));
    let lefts = product4(&runs, &lefts, &two, &two);
    let jobs = product4(&encryption, &bases(), &two, &two);
    let broken = Broken::default();
    let (mut rows, mut impossible) = (0u64, BTreeMap::<&str, u64>::new());
    for ((kind, is_held, replicas, (has_no_base, encrypts)), (run, job)) in
        product2(&facts, &product2(&lefts, &jobs))
    {
        let (unfinished, left, has_task_base, is_image) = run;
        let (encrypted, base, restart, allows) = job;
        let row = Row {
            kind,
            is_held,
            replicas,
            has_no_base,
            encrypts,
            unfinished,
            left,
            has_task_base,
            is_image,
            encrypted,
            base,
            restart,
            allows,
        };
        match row.impossible() {
            Some(why) => *impossible.entry(why).or_default() += 1,
            None => {
                row.rules(&broken);
                rows += 1;
            }
        }
    }
    let none: u64 = impossible.values().sum();
    broken.check();
    println!("{rows} rows decided, {none} impossible\n{impossible:#?}");
    assert_eq!((rows, none), (20_248, 256_232));
}
