//! Random histories in a hostile store: syncs, removals, prunes, undeletes, checks and repairs, some of them in parallel,
//! stopped for days or killed. A model knows the required snapshots. `EBSFS_HOSTILE` is the number of histories; `EBSFS_SEED`
//! repeats one.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Operations of a history.
const STEPS: usize = 25;
const VOLUMES: u8 = 2;
/// Snapshots that a retention keeps of each volume.
const KEEP: usize = 3;

/// The model's state of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It was published, and nothing has removed it.
    There,
    /// A run that failed or was killed may have published it, or a removal that failed may have removed it.
    Unknown,
    /// It was removed.
    Removed,
}

/// An operation of a process.
#[derive(Clone, Debug)]
enum Act {
    Sync {
        made: Made,
        dedup: bool,
        delta: bool,
    },
    Remove(Made),
    Prune {
        grace: Duration,
        last: Option<usize>,
    },
    Undelete(Made),
    Check,
    Repair(Option<Made>),
    Read(Made),
}

/// The outcome of an act.
enum Done {
    Nothing,
    Pruned(Box<Pruned>),
    Read(Held),
}

async fn act(process: Process, act: Act, known: Vec<Made>) -> Result<Done> {
    match act {
        Act::Sync { made, dedup, delta } => {
            let known = if delta { known } else { Vec::new() };
            process.sync(&made, dedup, &known).await?;
        }
        Act::Remove(made) => process.remove(&made).await?,
        Act::Prune { grace, last } => {
            return Ok(Done::Pruned(process.prune(grace, last).await?.into()));
        }
        Act::Undelete(made) => {
            undelete(&process.catalog().await?, made.id().as_str()).await?;
        }
        Act::Check => {
            check(
                &process.catalog().await?,
                ReadData::None,
                &Progress::default(),
            )
            .await?;
        }
        Act::Repair(made) => {
            process.repair(made.as_ref()).await?;
        }
        Act::Read(made) => return Ok(Done::Read(process.read(&made).await?)),
    }
    Ok(Done::Nothing)
}

struct History {
    store: Arc<HostileStore>,
    lies: Lies,
    rng: fastrand::Rng,
    snapshots: BTreeMap<SnapshotId, (Made, Fate)>,
    number: u32,
    /// Prunes under way that keep the newest ones alone.
    keeping: usize,
    /// Snapshots that were not listed when an object was damaged: an undelete does not read the bytes of packs.
    doubtful: BTreeSet<SnapshotId>,
    log: Vec<String>,
}

impl History {
    async fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let store = HostileStore::new();
        Process::honest(&store).init().await;
        let gaps = ["snapshots", "packs", "segments", "runs", "latest"];
        Self {
            store,
            lies: Lies {
                per_mille: [0, 2, 10, 40][rng.usize(..4)],
                gaps_in: rng.bool().then(|| gaps[rng.usize(..gaps.len())]),
                wrong_ranges: rng.bool(),
                ..Lies::default()
            },
            rng,
            snapshots: BTreeMap::new(),
            number: 0,
            keeping: 0,
            doubtful: BTreeSet::new(),
            log: Vec::new(),
        }
    }

    fn known(&self) -> Vec<Made> {
        self.snapshots
            .values()
            .map(|(made, _)| made.clone())
            .collect()
    }

    fn any(&mut self, fate: Fate) -> Option<Made> {
        let fitting = self.snapshots.values().filter(|(_, is)| *is == fate);
        let fitting: Vec<Made> = fitting.map(|(made, _)| made.clone()).collect();
        (!fitting.is_empty()).then(|| fitting[self.rng.usize(..fitting.len())].clone())
    }

    fn set(&mut self, made: &Made, fate: Fate) {
        self.snapshots.insert(made.id(), (made.clone(), fate));
    }

    /// The next version of a volume, or one that was copied before.
    fn next_made(&mut self) -> Made {
        let volume = self.rng.u8(..VOLUMES);
        let latest = self
            .snapshots
            .values()
            .filter(|(made, _)| made.volume == volume);
        let latest = latest
            .map(|(made, _)| made)
            .max_by_key(|made| made.number)
            .cloned();
        if let Some(latest) = latest.as_ref().filter(|_| self.rng.u8(..6) == 0) {
            return latest.clone();
        }
        let mut content = latest.map_or([9; BLOCKS as usize], |latest| latest.content);
        for _ in 0..self.rng.usize(1..4) {
            content[self.rng.usize(..BLOCKS as usize)] = self.rng.u8(..12);
        }
        self.number += 1;
        Made {
            volume,
            number: self.number,
            content,
        }
    }

    fn next_act(&mut self) -> Act {
        let prune = |rng: &mut fastrand::Rng| Act::Prune {
            grace: [Duration::ZERO, GRACE, GRACE][rng.usize(..3)],
            last: rng.bool().then_some(KEEP),
        };
        let act = match self.rng.u8(..20) {
            0..=8 => None,
            9..=12 => Some(prune(&mut self.rng)),
            13 | 14 => self.any(Fate::There).map(Act::Remove),
            15 => self.any(Fate::Removed).map(Act::Undelete),
            16 => Some(Act::Check),
            17 => {
                let made = self.any(Fate::There);
                Some(Act::Repair(made.filter(|_| self.rng.bool())))
            }
            _ => self.any(Fate::There).map(Act::Read),
        };
        act.unwrap_or_else(|| Act::Sync {
            made: self.next_made(),
            dedup: self.rng.bool(),
            delta: self.rng.bool(),
        })
    }

    /// Records the possible effects of an act before it ends.
    fn start(&mut self, act: &Act) {
        match act {
            Act::Sync { made, .. } | Act::Undelete(made) => {
                let is_there = self
                    .snapshots
                    .get(&made.id())
                    .is_some_and(|(_, fate)| *fate == Fate::There);
                if !is_there {
                    self.set(made, Fate::Unknown);
                }
            }
            Act::Remove(made) => self.set(made, Fate::Unknown),
            Act::Prune { last: Some(_), .. } => self.keeping += 1,
            _ => {}
        }
        self.may_lose();
    }

    /// A prune under way that keeps the newest ones may remove the others.
    fn may_lose(&mut self) {
        if self.keeping == 0 {
            return;
        }
        for volume in 0..VOLUMES {
            let of = self
                .snapshots
                .values_mut()
                .filter(|(made, fate)| made.volume == volume && *fate != Fate::Removed);
            let mut of: Vec<_> = of.collect();
            of.sort_by_key(|(made, _)| std::cmp::Reverse(made.number));
            of.into_iter()
                .skip(KEEP)
                .for_each(|(_, fate)| *fate = Fate::Unknown);
        }
    }

    /// Records the effects of an act, or its possible effects.
    fn ended(&mut self, act: &Act, done: Option<Result<Done>>) {
        let text = match &done {
            None => "killed".to_owned(),
            Some(Ok(_)) => "done".to_owned(),
            Some(Err(error)) => error.chain(),
        };
        self.log.push(format!("{act:?}: {text}"));
        match (act, done) {
            (Act::Sync { made, .. } | Act::Undelete(made), Some(Ok(_))) => {
                self.set(made, Fate::There);
            }
            (Act::Remove(made), Some(Ok(_))) => self.set(made, Fate::Removed),
            (Act::Prune { .. }, Some(Ok(Done::Pruned(pruned)))) => {
                for name in &pruned.removed {
                    let name: ManifestName = name.parse().unwrap();
                    let (_, fate) = self.snapshots.get_mut(&name.snapshot).unwrap();
                    assert_ne!(*fate, Fate::There, "{name} is one of the newest");
                    *fate = Fate::Removed;
                }
            }
            (Act::Read(made), Some(Ok(Done::Read(Held::Whole(content))))) => {
                assert_eq!(content, made.content, "{}", made.id());
            }
            _ => {}
        }
        self.may_lose();
        if let Act::Prune { last: Some(_), .. } = act {
            self.keeping -= 1;
        }
    }

    fn process(&self) -> Process {
        Process::new(&self.store, self.lies.clone())
    }

    async fn pass(&mut self) {
        let minutes = [1, 40, 90, 60 * 24, 60 * 24 * 8, 60 * 24 * 30][self.rng.usize(..6)];
        self.log.push(format!("{minutes} minutes"));
        tokio::time::sleep(Duration::from_secs(60 * minutes)).await;
    }

    async fn alone(&mut self, one: Act) {
        self.start(&one);
        let done = act(self.process(), one.clone(), self.known()).await;
        self.ended(&one, Some(done));
    }

    /// Two acts on different snapshots at once.
    async fn together(&mut self) {
        let (one, other) = (self.next_act(), self.next_act());
        self.start(&one);
        self.start(&other);
        let (of_one, of_other) = (
            act(self.process(), one.clone(), self.known()),
            act(self.process(), other.clone(), self.known()),
        );
        let (of_one, of_other) = tokio::join!(of_one, of_other);
        self.ended_together(vec![(one, Some(of_one)), (other, Some(of_other))]);
    }

    /// Records concurrent acts: one of them can restore a snapshot that the other removes, in either order.
    fn ended_together(&mut self, acts: Vec<(Act, Option<Result<Done>>)>) {
        let mut seen: BTreeMap<SnapshotId, (Made, Fate)> = BTreeMap::new();
        let mut before = self.snapshots.clone();
        for (one, done) in acts {
            self.ended(&one, done);
            for (id, (made, fate)) in &self.snapshots {
                if before.get(id).is_none_or(|(_, before)| before != fate) {
                    let both = match seen.get(id) {
                        Some((_, other)) if other != fate => Fate::Unknown,
                        _ => *fate,
                    };
                    seen.insert(id.clone(), (made.clone(), both));
                }
            }
            before.clone_from(&self.snapshots);
        }
        self.snapshots.extend(seen);
    }

    /// Stops one act for some time while others run; then continues or kills it.
    async fn interrupted(&mut self) {
        let one = self.next_act();
        self.start(&one);
        let process = self.process();
        let moment = if self.rng.bool() {
            StopPoint::Before
        } else {
            StopPoint::After
        };
        process.client.stop_at(self.rng.u64(..120), moment);
        let mut task = tokio::spawn(act(process.clone(), one.clone(), self.known()));
        let done = tokio::select! {
            done = &mut task => Some(done.unwrap()),
            () = process.client.stopped() => None,
        };
        if let Some(done) = done {
            self.ended(&one, Some(done));
            return;
        }
        self.log.push(format!("stopped: {one:?}"));
        let mut acts = Vec::new();
        for _ in 0..self.rng.usize(..4) {
            self.pass().await;
            let other = self.next_act();
            self.start(&other);
            let done = act(self.process(), other.clone(), self.known()).await;
            acts.push((other, Some(done)));
        }
        let done = match self.rng.bool() {
            true => {
                task.abort();
                let _ = task.await;
                None
            }
            false => {
                process.client.resume();
                Some(task.await.unwrap())
            }
        };
        acts.push((one, done));
        self.ended_together(acts);
    }

    /// Checks that an honest store shows what the model knows.
    async fn compare(&mut self) {
        let process = Process::honest(&self.store);
        self.rewrite_lists().await;
        let checked = process.check().await.unwrap();
        let names = process.names().await.unwrap();
        let is_listed = |made: &Made| names.iter().any(|name| name.snapshot == made.id());
        let is_named = |made: &Made| {
            let mut damaged = checked.damages.iter().flat_map(|damage| &damage.snapshots);
            damaged.any(|name| name.ends_with(made.id().as_str()))
        };
        for (made, fate) in self.snapshots.values_mut() {
            let id = made.id();
            if !is_listed(made) {
                assert_ne!(*fate, Fate::There, "{id} is gone");
                *fate = Fate::Removed;
                continue;
            }
            match process.read(made).await.unwrap() {
                Held::Whole(content) => {
                    assert_eq!(content, made.content, "{id} holds other bytes");
                    if *fate != Fate::Removed {
                        *fate = Fate::There;
                    }
                }
                // A run that was killed between its two checks: reported, never silent.
                Held::Damaged => {
                    let may_be = *fate == Fate::Unknown || self.doubtful.contains(&id);
                    assert!(may_be, "{id} is damaged");
                    assert!(is_named(made), "{id} is damaged, and check does not say so");
                }
            }
        }
        for name in &names {
            assert!(
                self.snapshots.contains_key(&name.snapshot),
                "{name} is of no run"
            );
        }
    }

    /// An object is lost or damaged; a check names the damaged snapshots, and the sources repair all of them.
    async fn lose(&mut self) {
        let process = Process::honest(&self.store);
        self.rewrite_lists().await;
        self.mend().await;
        let folder = ["packs/", "segments/"][self.rng.usize(..2)];
        let names = self.store.names(folder);
        if names.is_empty() {
            return;
        }
        let name = &names[self.rng.usize(..names.len())];
        self.log.push(format!("lost: {name}"));
        match self.rng.bool() {
            true => self.store.lose(name),
            false => self.store.damage(name),
        }
        let checked = process.check().await.unwrap();
        let listed = process.names().await.unwrap();
        let is_listed = |id: &SnapshotId| listed.iter().any(|name| name.snapshot == *id);
        let unlisted = self.snapshots.keys().filter(|id| !is_listed(id));
        self.doubtful.extend(unlisted.cloned());
        for (made, _) in self.snapshots.values() {
            let Some(name) = listed.iter().find(|name| name.snapshot == made.id()) else {
                continue;
            };
            let is_named = checked
                .damages
                .iter()
                .any(|damage| damage.snapshots.contains(&name.to_string()));
            // Bytes of a pack between its blocks count as damage too.
            let held = process.read(made).await.unwrap();
            assert!(held != Held::Damaged || is_named, "{name}: {checked:?}");
        }
        self.mend().await;
    }

    /// Repairs the lists of required snapshots that a fault has cut: until then a listing is refused and a check names them.
    async fn rewrite_lists(&mut self) {
        let process = Process::honest(&self.store);
        let is_list = |damage: &Damage| {
            damage.object.starts_with("latest/") || damage.object == "prune/manifests"
        };
        let checked = process.check().await.unwrap();
        if checked.damages.iter().any(is_list) {
            self.log.push(format!("repaired: {:?}", checked.damages));
            let refused = process.catalog().await.unwrap().proven_names(None).await;
            assert_eq!(refused.unwrap_err().kind(), Kind::Corrupt);
            process.repair(None).await.unwrap();
            let checked = process.check().await.unwrap();
            assert!(!checked.damages.iter().any(is_list), "{checked:?}");
        }
    }

    /// Repairs all that is damaged, each with its source.
    async fn mend(&mut self) {
        let process = Process::honest(&self.store);
        for (made, _) in self.snapshots.clone().values() {
            let checked = process.check().await.unwrap();
            let is_listed = process.name_of(made).await.is_ok();
            if is_listed
                && (!checked.damages.is_empty()
                    || process.read(made).await.unwrap() == Held::Damaged)
            {
                process.repair(Some(made)).await.unwrap();
            }
        }
        let checked = process.check().await.unwrap();
        assert!(checked.damages.is_empty(), "{checked:?}");
    }

    async fn run(&mut self) {
        for _ in 0..STEPS {
            match self.rng.u8(..10) {
                0..=3 => {
                    let one = self.next_act();
                    self.alone(one).await;
                }
                4 | 5 => self.together().await,
                6 | 7 => self.interrupted().await,
                8 => self.pass().await,
                _ => {
                    self.compare().await;
                    if self.rng.u8(..3) == 0 {
                        self.lose().await;
                    }
                }
            }
        }
        self.compare().await;
        self.mend().await;
        let process = Process::honest(&self.store);
        for grace in [Duration::ZERO, GRACE] {
            tokio::time::sleep(8 * DAY).await;
            process.prune(grace, None).await.unwrap();
        }
        self.compare().await;
        let checked = process.check().await.unwrap();
        assert!(checked.damages.is_empty(), "{checked:?}");
        assert_eq!(checked.runs, 0, "{checked:?}");
    }
}

#[test]
fn in_a_hostile_store_no_published_snapshot_loses_a_byte() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    for _ in 0..number("EBSFS_HOSTILE").unwrap_or(50u64) {
        let seed = number("EBSFS_SEED").unwrap_or_else(|| fastrand::u64(..));
        println!("EBSFS_SEED={seed}");
        with_seed(seed, async {
            let mut history = History::new(seed).await;
            let log = std::panic::AssertUnwindSafe(history.run())
                .catch_unwind()
                .await;
            if log.is_err() {
                panic!("{:?}\n{}", history.lies, history.log.join("\n"));
            }
        });
        fastrand::seed(seed ^ 0x5555);
    }
}
