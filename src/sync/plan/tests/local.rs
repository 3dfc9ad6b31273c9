//! Images and devices of this machine: the full product.

mod rules;

use super::*;
use rules::Row;

/// What the record says.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Recorded {
    None,
    Source,
    Held,
    OtherVolume,
    /// Between by the run that the checkpoint speaks of.
    Between,
    /// Between by the run that it took over.
    BetweenBefore,
    /// Between by a run of which there is no checkpoint.
    BetweenOther,
    /// Holds the older snapshot; written by the version before.
    OldFormat,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Marked {
    Matches,
    Differs,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Compared {
    None,
    Same,
    Foreign,
}

/// The run that a checkpoint speaks of, against the job.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Unfinished {
    None,
    Same,
    OtherMark,
    OtherSource,
    OtherVolume,
    /// A part where the image itself is to be written, or the other way round.
    OtherWay,
    /// Recorded; only the checkpoint is left over.
    Ended,
}

/// What is observed, and how it came about.
#[derive(Clone, Copy, Debug)]
struct LocalState {
    kind: TargetKind,
    existence: Existence,
    recorded: Recorded,
    marked: Marked,
    has_digests: bool,
    compared: Compared,
    unfinished: Unfinished,
    left: UnfinishedState,
    /// Whether the digests of the unfinished run speak of every block.
    is_whole: bool,
    /// Whether the unfinished run is a delta of the older snapshot.
    has_task_base: bool,
    is_image: bool,
}

impl LocalState {
    fn is_in_place(&self) -> bool {
        self.kind.is_in_place()
    }

    fn holds(&self) -> Option<&'static str> {
        match self.recorded {
            Recorded::Source => Some(if self.is_image {
                "/srv/source.raw"
            } else {
                HEAD
            }),
            Recorded::Held | Recorded::OldFormat => Some(HELD),
            Recorded::OtherVolume => Some(FOREIGN),
            _ => None,
        }
    }

    /// Whether the unfinished run writes or wrote the target itself.
    fn task_is_in_place(&self) -> bool {
        self.is_in_place() != (self.unfinished == Unfinished::OtherWay)
    }

    fn is_half_written(&self) -> bool {
        self.unfinished != Unfinished::None
            && self.is_in_place()
            && matches!(
                self.recorded,
                Recorded::Between | Recorded::BetweenBefore | Recorded::BetweenOther
            )
    }

    /// Why there is no such state.
    fn impossible(&self) -> Option<&'static str> {
        let there = self.existence == Existence::There;
        let none = self.unfinished == Unfinished::None;
        let (kind, left) = (self.kind, self.left);
        let is_between = matches!(
            self.recorded,
            Recorded::Between | Recorded::BetweenBefore | Recorded::BetweenOther
        );
        let rows = [
            (kind == TargetKind::Device && !there, "a device has bytes"),
            (
                kind == TargetKind::ImageInPlace && self.existence == Existence::Absent,
                "an image that is not there is not changed in place",
            ),
            (
                self.recorded == Recorded::OtherVolume && self.is_image,
                "an image is of no volume",
            ),
            (
                self.holds().is_none() && self.marked != Marked::None,
                "a record that holds nothing has no mark",
            ),
            (
                self.existence == Existence::Absent && self.marked == Marked::Matches,
                "what is not there has no mark",
            ),
            (
                self.existence == Existence::Empty && self.marked == Marked::Matches,
                "no volume is empty",
            ),
            (
                self.recorded == Recorded::OldFormat
                    && (self.marked == Marked::Differs || kind == TargetKind::Device),
                "an old mark that does not match is dropped; a device's is none",
            ),
            (
                self.has_digests && self.holds().is_none() && !self.is_half_written(),
                "digests are those of what a record says, or of a run in place",
            ),
            (
                self.has_digests && self.recorded == Recorded::OldFormat,
                "the version before kept no digests",
            ),
            (
                self.is_half_written() && self.has_digests != self.is_whole,
                "digests of a target between two snapshots are its run's",
            ),
            (
                self.compared != Compared::None && !self.has_digests,
                "nothing to compare with",
            ),
            (
                self.compared != Compared::None && !there,
                "nothing to compare",
            ),
            (
                self.compared != Compared::None && self.marked == Marked::Matches,
                "what has not changed is not compared",
            ),
            (
                self.compared != Compared::None
                    && self.is_half_written()
                    && left == UnfinishedState::Proven,
                "what is proven is not compared",
            ),
            (
                self.compared != Compared::None && self.is_half_written() && !self.has_begun(),
                "what the run has not begun to write is not compared with its digests",
            ),
            (
                self.compared != Compared::None && self.is_of_other_volume(),
                "a replica of another volume is not compared",
            ),
            (none && left != UnfinishedState::Absent, "nothing was left"),
            (none && self.is_whole, "no run has digests"),
            (none && self.has_task_base, "no run has a base"),
            (
                none && matches!(self.recorded, Recorded::Between | Recorded::BetweenBefore),
                "between by a run that is not there",
            ),
            (
                self.unfinished == Unfinished::OtherMark && !self.is_image,
                "a snapshot has no mark",
            ),
            (
                self.unfinished == Unfinished::OtherVolume && self.is_image,
                "an image is of no volume",
            ),
            (
                self.unfinished == Unfinished::Ended && self.holds().is_none(),
                "a run that has ended has left a record",
            ),
            (
                self.unfinished == Unfinished::OtherWay && kind == TargetKind::Device,
                "a device is written in one way",
            ),
            (
                matches!(self.recorded, Recorded::Between | Recorded::BetweenBefore)
                    && !self.task_is_in_place(),
                "a part leaves the record alone",
            ),
            (
                self.recorded == Recorded::BetweenBefore && !self.has_task_base,
                "only a delta takes over",
            ),
            (
                is_between && self.kind == TargetKind::Device && self.existence != Existence::There,
                "a device has bytes",
            ),
            (
                !none && kind == TargetKind::Device && left == UnfinishedState::Absent,
                "a device does not go",
            ),
            (
                !none
                    && kind == TargetKind::Image
                    && self.task_is_in_place()
                    && matches!(left, UnfinishedState::Proven | UnfinishedState::Unproven),
                "an image is not its own part",
            ),
            (
                kind == TargetKind::ImageInPlace && !there && left == UnfinishedState::Proven,
                "an image that was written is not empty",
            ),
        ];
        rows.iter().find(|(is, _)| *is).map(|(_, why)| *why)
    }

    fn source(&self) -> SourceInfo {
        match self.is_image {
            true => image(),
            false => snapshot(Some(false)),
        }
    }

    fn task(&self) -> Option<Task> {
        let base = self.has_task_base.then_some(HELD);
        let mut task = task(&self.source(), self.task_is_in_place(), base);
        match self.unfinished {
            Unfinished::None => return None,
            Unfinished::OtherMark => task.source_mark = Some(mark(101)),
            Unfinished::OtherSource => task.source = LATER.into(),
            Unfinished::OtherVolume => {
                task.source = FOREIGN.into();
                task.volume = Some("vol-2".into());
            }
            Unfinished::Same | Unfinished::OtherWay | Unfinished::Ended => {}
        }
        if self.recorded == Recorded::BetweenBefore {
            task.after = Some("before".into());
        }
        Some(task)
    }

    fn observed(&self) -> Observed {
        let mut seen = seen(self.kind, self.existence);
        let task = self.task();
        let ours = (!self.is_image).then_some(VOLUME);
        let its = match self.marked {
            Marked::Matches => Some(mark(1)),
            Marked::Differs => Some(mark(2)),
            Marked::None => None,
        };
        let between = |run: &str| {
            let base = task.as_ref().and_then(|task| task.base.clone());
            let head = task.as_ref().map_or(LATER, |task| &task.source).to_owned();
            let volume = task.as_ref().map_or(ours, |task| task.volume.as_deref());
            record(run, Content::Between { base, head }, volume, None)
        };
        seen.record = match self.recorded {
            Recorded::None => None,
            Recorded::Source | Recorded::Held => self.holds().map(|held| holds(held, ours, its)),
            Recorded::OtherVolume => Some(holds(FOREIGN, Some("vol-2"), its)),
            Recorded::OldFormat => Some(TargetRecord {
                is_old_format: true,
                ..holds(HELD, None, its)
            }),
            Recorded::Between => Some(between(RUN)),
            Recorded::BetweenBefore => Some(between("before")),
            Recorded::BetweenOther => Some(between("other")),
        };
        if self.unfinished == Unfinished::Ended
            && let Some(record) = &mut seen.record
        {
            record.run = RUN.into();
        }
        seen.unfinished = task.map(|task| (task, 7));
        seen.facts.left = self.left;
        seen.has_digests = self.has_digests;
        seen.unfinished_has_digests = self.is_whole;
        seen.compared = match self.compared {
            Compared::None => None,
            Compared::Same => Some(Comparison::Same),
            Compared::Foreign => Some(foreign()),
        };
        seen
    }

    /// Whether the run in place that the checkpoint names has begun to write, on what is there.
    fn has_begun(&self) -> bool {
        let is_alive = !matches!(self.unfinished, Unfinished::None | Unfinished::Ended);
        let is_its = matches!(self.recorded, Recorded::Between | Recorded::BetweenBefore);
        let is_there = self.existence == Existence::There && self.left != UnfinishedState::Absent;
        is_alive && is_its && self.is_in_place() && is_there
    }

    fn is_same_command(&self, job: &SyncJob) -> bool {
        let base = match &job.base {
            Base::None => !self.has_task_base,
            Base::Auto => true,
            Base::Snapshot(base) => self.has_task_base && base.as_str() == HELD,
        };
        self.unfinished == Unfinished::Same && base && !job.restart
    }

    /// What the whole target is proven to hold.
    fn proven(&self) -> Option<&'static str> {
        let is = self.marked == Marked::Matches || self.compared == Compared::Same;
        self.holds().filter(|_| is)
    }

    fn is_of_other_volume(&self) -> bool {
        let half = self.has_begun() || self.holds().is_none();
        match self.recorded {
            Recorded::None => false,
            _ if half && self.unfinished == Unfinished::OtherVolume => true,
            recorded => recorded == Recorded::OtherVolume,
        }
    }
}

fn states() -> impl Iterator<Item = LocalState> {
    use Existence::{Absent, Empty, There};
    let kinds = [
        TargetKind::Image,
        TargetKind::ImageInPlace,
        TargetKind::Device,
    ];
    let records = [
        Recorded::None,
        Recorded::Source,
        Recorded::Held,
        Recorded::OtherVolume,
        Recorded::Between,
        Recorded::BetweenBefore,
        Recorded::BetweenOther,
        Recorded::OldFormat,
    ];
    let runs = [
        Unfinished::None,
        Unfinished::Same,
        Unfinished::OtherMark,
        Unfinished::OtherSource,
        Unfinished::OtherVolume,
        Unfinished::OtherWay,
        Unfinished::Ended,
    ];
    let two = [false, true];
    let targets = product4(
        &kinds,
        &[Absent, Empty, There],
        &records,
        &[Marked::Matches, Marked::Differs, Marked::None],
    );
    let evidence = product2(&two, &[Compared::None, Compared::Same, Compared::Foreign]);
    let lefts = [
        UnfinishedState::Absent,
        UnfinishedState::Proven,
        UnfinishedState::Unproven,
    ];
    let unfinished = product4(&runs, &lefts, &two, &product2(&two, &two));
    let rest = product2(&evidence, &unfinished);
    targets.into_iter().flat_map(move |target| {
        let (kind, existence, recorded, marked) = target;
        rest.clone().into_iter().map(move |(evidence, run)| {
            let (has_digests, compared) = evidence;
            let (unfinished, left, is_whole, (has_task_base, is_image)) = run;
            LocalState {
                kind,
                existence,
                recorded,
                marked,
                has_digests,
                compared,
                unfinished,
                left,
                is_whole,
                has_task_base,
                is_image,
            }
        })
    })
}

fn jobs() -> Vec<SyncJob> {
    let two = [false, true];
    let trusts = [None, Some(id(HELD)), Some(id(OTHER))];
    let flags = product4(&two, &two, &two, &trusts);
    let all = product2(&bases(), &flags).into_iter();
    all.map(|(base, (restart, named, discards, trust))| SyncJob {
        restart,
        overwrite: named.then(|| TOKEN.to_owned()).into_iter().collect(),
        discard_foreign_writes: discards,
        trust,
        ..job(base)
    })
    .collect()
}

#[test]
fn every_combination_of_a_local_target_is_decided_by_the_rules_or_impossible() {
    let (jobs, broken) = (jobs(), Broken::default());
    let (mut decided_rows, mut impossible) = (0u64, BTreeMap::<&str, u64>::new());
    let mut decisions = BTreeMap::<&str, u64>::new();
    for state in states() {
        if let Some(why) = state.impossible() {
            *impossible.entry(why).or_default() += jobs.len() as u64;
            continue;
        }
        let (source, seen) = (state.source(), state.observed());
        for job in &jobs {
            let decided = decide(job, &source, &seen);
            let row = Row {
                state: &state,
                job,
                seen: &seen,
                source: &source,
                decided: &decided,
                broken: &broken,
            };
            row.rules();
            decided_rows += 1;
            *decisions.entry(name(&decided.decision)).or_default() += 1;
        }
    }
    let none: u64 = impossible.values().sum();
    broken.check();
    println!("{decided_rows} rows decided, {none} impossible\n{decisions:#?}\n{impossible:#?}");
    assert_eq!(decisions.len(), 8, "every decision occurs");
    assert_eq!((decided_rows, none), (1_125_120, 19_776_768));
}

fn name(decision: &Decision) -> &'static str {
    match decision {
        Decision::Holds => "holds",
        Decision::Full => "full",
        Decision::Delta(_) => "delta",
        Decision::Resume => "resume",
        Decision::TakeOver(_) => "take over",
        Decision::TakeOverPart(_) => "take over a part",
        Decision::Compare => "compare",
        Decision::Refuse { .. } => "refuse",
    }
}

/// Encryption of the source changes no decision for a target of this machine: there it is a warning.
#[test]
fn a_local_copy_of_an_encrypted_source_is_warned_of_and_decided_like_any_other() {
    let mut rows = 0;
    for (kind, encrypted, allows, base) in product4(
        &[
            TargetKind::Image,
            TargetKind::ImageInPlace,
            TargetKind::Device,
        ],
        &[Some(true), Some(false), None],
        &[false, true],
        &bases(),
    ) {
        for held in [None, Some(HELD), Some(HEAD)] {
            let mut seen = seen(kind, Existence::There);
            seen.record = held.map(|held| holds(held, Some(VOLUME), Some(mark(1))));
            let job = SyncJob {
                allow_plaintext: allows,
                overwrite: vec![TOKEN.into()],
                ..job(base.clone())
            };
            let plain = decide(&job, &snapshot(Some(false)), &seen);
            let decided = decide(&job, &snapshot(encrypted), &seen);
            assert_eq!(decided.decision, plain.decision);
            let warns = encrypted != Some(false) && writes(&decided.decision);
            let more = decided.warnings.len() - plain.warnings.len();
            assert_eq!(more, usize::from(warns), "{decided:?}");
            if warns && encrypted.is_none() {
                let said = decided.warnings.last().unwrap();
                assert!(said.contains("ec2:DescribeSnapshots"), "{said}");
            }
            rows += 1;
        }
    }
    assert_eq!(rows, 216);
}
