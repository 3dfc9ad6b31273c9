//! What every [`Target`] and [`Sink`] must do, as tests over any of them: a [`ContractFixture`] makes one, and breaks it.

use std::pin::pin;
use std::time::Duration;

use futures_util::poll;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use std::task::Poll;

use super::*;
use crate::block::{Block, Change, ZEROES, random_id};
use crate::error::Kind;

/// What the suite runs over: makes a target, and breaks it.
pub(crate) trait ContractFixture: Send + Sync {
    /// The target as a new process has it.
    fn target(&self) -> BoxFuture<'_, Arc<dyn Target>>;

    /// What is copied to it.
    fn source(&self) -> SourceInfo;

    /// Writes bytes into the published target as something else would, with the time of the last write set back. False where
    /// nothing else can.
    fn write(&self, _at: u64, _bytes: &[u8]) -> bool {
        false
    }

    /// Whether what is written can be read back before it is published.
    fn reads_back(&self) -> bool {
        true
    }

    /// Restores the first state: garbage, or nothing. So no bytes of an earlier run can make the next one pass.
    fn renew(&self);
}

/// A run of the suite: what a checkpoint keeps of it, and what is to be copied.
pub(crate) struct ContractRun {
    source: SourceInfo,
    task: Task,
    plan: Arc<Delta>,
    /// As a checkpoint on disk has it.
    state: Mutex<Option<SinkState>>,
    /// How often it was saved.
    named: Mutex<usize>,
    /// What was flushed.
    done: Mutex<BlockSet>,
}

/// A call of a copy, in its order.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ContractStep {
    Open,
    Zero(u32, u32),
    Write(u32),
    Flush,
    Publish,
}

/// The blocks that the source holds.
const HELD: [u32; 4] = [0, 2, 3, 6];

/// A block of the source: no two are alike, and none can be compressed.
fn content(index: u32, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(index.into()).fill(&mut bytes);
    bytes.into()
}

impl ContractRun {
    pub(crate) async fn new(place: &dyn ContractFixture, target: &dyn Target) -> Self {
        let source = place.source();
        let mut held = BlockSet::new();
        HELD.iter()
            .for_each(|index| held.insert(BlockIndex(*index)));
        let plan = Arc::new(Delta::full(source.geometry, &held, false));
        let plan = target.adapt(plan, None).await.unwrap();
        let task = Task {
            run: random_id(),
            after: None,
            in_place: target.kind().is_in_place(),
            source: source.name.clone(),
            source_mark: None,
            volume: source.volume.clone(),
            base: None,
            target: target.id().into(),
            target_name: target.name().into(),
        };
        Self {
            source,
            task,
            plan,
            state: Mutex::new(None),
            named: Mutex::new(0),
            done: Mutex::new(BlockSet::new()),
        }
    }

    pub(crate) async fn observe(&self, target: &dyn Target) -> Facts {
        let left = self.state.lock().clone();
        let ask = ObserveRequest {
            source: &self.source,
            base: &Base::None,
            left: left.as_ref(),
            replica: None,
        };
        target.observe(&ask).await.unwrap()
    }

    /// Opens a target with these facts.
    pub(crate) async fn open(&self, target: &dyn Target, facts: &Facts) -> Result<Opened> {
        let resume = self.state.lock().clone();
        let name = |state: &SinkState| {
            *self.state.lock() = Some(state.clone());
            *self.named.lock() += 1;
            Ok(())
        };
        let done = self.done.lock().len();
        let opening = Opening {
            task: &self.task,
            plan: &self.plan,
            done,
            source: &self.source,
            resume: resume.as_ref(),
            base: None,
            mark: facts.mark.as_ref(),
            name: &name,
            files: crate::files::with_ending(&target.state().stem, ".sink"),
            restart: false,
            rate: 1000,
            stop: &Stop::never(),
        };
        target.open(opening).await
    }

    /// The calls of a whole copy, without those that were done.
    fn steps(&self) -> Vec<ContractStep> {
        let done = self.done.lock().clone();
        let mut steps = vec![ContractStep::Open];
        for (extent, change) in self.plan.runs() {
            if change == Change::Zero && !done.covers(extent) {
                steps.push(ContractStep::Zero(extent.start().0, extent.end().0));
            }
        }
        for index in HELD {
            if !done.contains(BlockIndex(index)) {
                steps.extend([ContractStep::Write(index), ContractStep::Flush]);
            }
        }
        steps.push(ContractStep::Publish);
        steps
    }

    async fn step(&self, step: ContractStep, sink: &dyn Sink, since: &mut BlockSet) -> Result<()> {
        match step {
            ContractStep::Open => {}
            ContractStep::Zero(start, end) => {
                let extent = Extent::new(BlockIndex(start), BlockIndex(end)).unwrap();
                sink.write_zeroes(extent).await?;
                since.insert_extent(extent);
            }
            ContractStep::Write(index) => {
                let block = BlockIndex(index);
                let bytes = content(index, self.source.geometry.block_len(block));
                let digest = Sha256::digest(&bytes).into();
                sink.write_block(block, bytes, digest).await?;
                since.insert(block);
            }
            ContractStep::Flush => {
                let state = sink.flush().await?;
                *self.state.lock() = Some(state);
                self.done.lock().insert_all(since);
                *since = BlockSet::new();
            }
            ContractStep::Publish => {
                self.publish(sink).await?;
            }
        }
        Ok(())
    }

    async fn publish(&self, sink: &dyn Sink) -> Result<Published> {
        let geometry = self.source.geometry;
        let mut written = Vec::new();
        for (extent, change) in self.plan.runs() {
            for block in extent.blocks() {
                let bytes = content(block.0, geometry.block_len(block));
                let digest = (change == Change::Write).then(|| Sha256::digest(&bytes).into());
                written.push(Ok((block, digest)));
            }
        }
        let none = BlockSet::new();
        sink.publish(Box::new(written.into_iter()), &none).await
    }

    /// Opens and does all that is not done, to the end.
    async fn finish(&self, place: &dyn ContractFixture) -> Published {
        let target = place.target().await;
        let facts = self.observe(&*target).await;
        let opened = self.open(&*target, &facts).await.unwrap();
        let mut since = BlockSet::new();
        for step in self.steps() {
            if step != ContractStep::Publish {
                self.step(step, &*opened.sink, &mut since).await.unwrap();
            }
        }
        opened.sink.flush().await.unwrap();
        self.publish(&*opened.sink).await.unwrap()
    }

    /// Every byte of the published target, against the source.
    async fn check(&self, place: &dyn ContractFixture, at: &str) {
        let target = place.target().await;
        let geometry = self.source.geometry;
        let held = self.observe(&*target).await.holds;
        let held = held.as_ref().map(SnapshotId::as_str);
        let reader = target.reader(held, geometry).await.unwrap();
        for index in 0..geometry.block_count() {
            let holds = HELD.contains(&index);
            self.is_as_copied(&*reader, index, holds, at).await;
        }
    }

    async fn is_as_copied(&self, reader: &dyn BlockSource, index: u32, holds: bool, at: &str) {
        let len = self.source.geometry.block_len(BlockIndex(index));
        let read = match reader.read_block(BlockIndex(index)).await.unwrap() {
            Block::Zero if !holds => return,
            Block::Zero => Bytes::from_static(&ZEROES).slice(..len),
            Block::Data(bytes, _) => bytes,
        };
        let expected = match holds {
            true => content(index, len),
            false => Bytes::from_static(&ZEROES).slice(..len),
        };
        assert!(read.get(..len) == Some(&expected[..]), "block {index} {at}");
    }

    /// What was flushed is there, for a target that reads back.
    async fn check_flushed(&self, place: &dyn ContractFixture, sink: &dyn Sink, at: &str) {
        let reader = sink.read_back().await.unwrap();
        assert!(reader.is_some() || !place.reads_back());
        let Some(reader) = reader else {
            return;
        };
        let done = self.done.lock().clone();
        for index in done.runs().flat_map(Extent::blocks) {
            let holds = HELD.contains(&index.0);
            self.is_as_copied(&*reader, index.0, holds, at).await;
        }
    }
}

/// Polls work this many times, then drops it. Returns the result if the work has ended by then.
async fn drop_after<T>(polls: usize, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    for _ in 0..polls {
        if let Poll::Ready(done) = poll!(&mut work) {
            return Some(done);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    None
}

/// The target is named before its first change, and what is published is what was copied, over whatever was there.
pub(crate) async fn names_first_and_publishes_every_byte(place: &dyn ContractFixture) {
    let target = place.target().await;
    let run = ContractRun::new(place, &*target).await;
    let facts = run.observe(&*target).await;
    assert_eq!(facts.left, UnfinishedState::Absent);
    // A name that cannot be kept: nothing is changed.
    let before = target.mark().unwrap();
    let refuse = |_: &SinkState| Err(crate::error::Error::new(Kind::NoSpace, "full"));
    let opening = Opening {
        task: &run.task,
        plan: &run.plan,
        done: 0,
        source: &run.source,
        resume: None,
        base: None,
        mark: facts.mark.as_ref(),
        name: &refuse,
        files: crate::files::with_ending(&target.state().stem, ".sink"),
        restart: false,
        rate: 1000,
        stop: &Stop::never(),
    };
    let refused = target.open(opening).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::NoSpace);
    assert_eq!(
        target.mark().unwrap(),
        before,
        "changed before it was named"
    );
    run.finish(place).await;
    assert!(*run.named.lock() >= 1);
    run.check(place, "at the end").await;
}

/// A crash between any two calls loses nothing that was flushed, and the run ends, also one that has ended already.
pub(crate) async fn survives_a_crash_between_any_two_calls(place: &dyn ContractFixture) {
    let target = place.target().await;
    let count = ContractRun::new(place, &*target).await.steps().len();
    drop(target);
    for crash in 0..=count {
        let at = format!("after a crash before call {crash} of {count}");
        place.renew();
        let target = place.target().await;
        let run = ContractRun::new(place, &*target).await;
        let facts = run.observe(&*target).await;
        let mut since = BlockSet::new();
        let mut opened = None;
        let mut last = None;
        for step in run.steps().into_iter().take(crash) {
            if step == ContractStep::Open {
                opened = Some(run.open(&*target, &facts).await.unwrap());
            }
            let sink = &opened.as_ref().unwrap().sink;
            run.step(step, &**sink, &mut since).await.unwrap();
            last = Some(step);
        }
        drop((opened, target));
        let target = place.target().await;
        let facts = run.observe(&*target).await;
        let left = match last {
            None => vec![UnfinishedState::Absent],
            Some(ContractStep::Open | ContractStep::Flush) => vec![UnfinishedState::Proven],
            // An image in place may have been cut to its size.
            Some(ContractStep::Publish) if target.kind() == TargetKind::ImageInPlace => {
                vec![UnfinishedState::Proven, UnfinishedState::Unproven]
            }
            Some(ContractStep::Publish) if target.kind() == TargetKind::Image => {
                assert!(facts.is_published, "{at}");
                vec![UnfinishedState::Absent]
            }
            Some(ContractStep::Publish) => vec![UnfinishedState::Proven],
            Some(_) => vec![UnfinishedState::Unproven, UnfinishedState::Proven],
        };
        assert!(left.contains(&facts.left), "{:?} {at}", facts.left);
        let opened = run.open(&*target, &facts).await.unwrap();
        run.check_flushed(place, &*opened.sink, &at).await;
        drop((opened, target));
        run.finish(place).await;
        run.check(place, &at).await;
        place_is_clean(place, &run).await;
    }
}

/// What the next run begins with: nothing of this one.
async fn place_is_clean(place: &dyn ContractFixture, run: &ContractRun) {
    let target = place.target().await;
    let state = run.state.lock().clone().unwrap();
    target.discard(&state).await.unwrap();
}

/// Runs a test of the contract with one thread for blocking work, which does one thing after the other.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test);
}

/// Work that is dropped at any await can be done again by another process.
pub(crate) async fn resumes_after_a_drop_at_any_await(place: &dyn ContractFixture) {
    let target = place.target().await;
    let steps = ContractRun::new(place, &*target).await.steps();
    drop(target);
    // One call of each kind, the first and the last.
    let kind = std::mem::discriminant::<ContractStep>;
    let is_first = |at: usize| {
        !steps[..at]
            .iter()
            .any(|step| kind(step) == kind(&steps[at]))
    };
    let is_last = |at: usize| steps[at] == ContractStep::Write(HELD[3]);
    let count = steps.len();
    let chosen = (0..count).filter(|at| is_first(*at) || is_last(*at));
    for (at, polls) in chosen.flat_map(|at| [1, 3].map(|polls| (at, polls))) {
        let text = format!("call {at} of {count} dropped after {polls} polls");
        place.renew();
        let target = place.target().await;
        let run = ContractRun::new(place, &*target).await;
        let facts = run.observe(&*target).await;
        let mut since = BlockSet::new();
        let mut opened = None;
        for (number, step) in run.steps().into_iter().take(at + 1).enumerate() {
            if step == ContractStep::Open {
                let open = run.open(&*target, &facts);
                opened = match number == at {
                    true => drop_after(polls, open).await.map(Result::unwrap),
                    false => Some(open.await.unwrap()),
                };
                continue;
            }
            let sink = &opened.as_ref().unwrap().sink;
            let work = run.step(step, &**sink, &mut since);
            if number == at {
                drop_after(polls, work).await.map(Result::unwrap);
            } else {
                work.await.unwrap();
            }
        }
        drop((opened, target));
        // The one thread for blocking work ends: a killed process has none.
        crate::files::blocking(|| Ok(())).await.unwrap();
        run.finish(place).await;
        run.check(place, &text).await;
        place_is_clean(place, &run).await;
    }
}

/// Publishing again changes nothing, and what is published has a mark that is the same later on, until something writes it.
pub(crate) async fn publishes_twice_with_a_mark_that_tells_foreign_writes(
    place: &dyn ContractFixture,
) {
    let target = place.target().await;
    let run = ContractRun::new(place, &*target).await;
    let first = run.finish(place).await;
    run.check(place, "published").await;
    let second = run.finish(place).await;
    run.check(place, "published twice").await;
    assert_eq!(first.snapshot, second.snapshot);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let facts = run.observe(&*target).await;
    assert_eq!(facts.mark, second.mark, "nothing has written it");
    if !place.write(3, b"foreign") {
        assert_eq!(second.mark, None);
        return;
    }
    assert!(second.mark.is_some());
    let later = run.observe(&*target).await;
    assert_ne!(
        later.mark, second.mark,
        "the time of the last write was set back"
    );
}

/// A target that was written after it was decided what to do is not opened, named or changed.
pub(crate) async fn refuses_what_was_written_after_the_decision(place: &dyn ContractFixture) {
    let target = place.target().await;
    let run = ContractRun::new(place, &*target).await;
    let facts = run.observe(&*target).await;
    assert!(place.write(3, b"foreign"));
    let refused = run.open(&*target, &facts).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Undecided);
    assert!(refused.remedy().is_some());
    assert_eq!(*run.named.lock(), 0);
    let facts = run.observe(&*target).await;
    let opened = run.open(&*target, &facts).await.unwrap();
    // The same of a run that is resumed.
    let flushed = opened.sink.flush().await.unwrap();
    *run.state.lock() = Some(flushed);
    drop(opened);
    let facts = run.observe(&*target).await;
    assert!(place.write(4, b"foreign"));
    let refused = run.open(&*target, &facts).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Undecided);
    place_is_clean(place, &run).await;
}

/// Zeroes over garbage read as zeroes, and its neighbours stay.
pub(crate) async fn zeroes_what_was_written(place: &dyn ContractFixture) {
    let target = place.target().await;
    let run = ContractRun::new(place, &*target).await;
    let facts = run.observe(&*target).await;
    let opened = run.open(&*target, &facts).await.unwrap();
    let mut since = BlockSet::new();
    for step in [
        ContractStep::Write(2),
        ContractStep::Write(3),
        ContractStep::Write(6),
        ContractStep::Flush,
        ContractStep::Zero(3, 5),
        ContractStep::Flush,
    ] {
        run.step(step, &*opened.sink, &mut since).await.unwrap();
    }
    let back = opened.sink.read_back().await.unwrap().unwrap();
    for (index, holds) in [(2, true), (3, false), (4, false), (6, true)] {
        run.is_as_copied(&*back, index, holds, "zeroed").await;
    }
    drop(opened);
    place_is_clean(place, &run).await;
}

/// A target without room, or whose disk fails, ends with an error before it is published.
pub(crate) async fn fails_before_it_is_published(place: &dyn ContractFixture, kinds: &[Kind]) {
    let target = place.target().await;
    let run = ContractRun::new(place, &*target).await;
    let facts = run.observe(&*target).await;
    let opened = match run.open(&*target, &facts).await {
        Ok(opened) => opened,
        Err(error) => {
            assert!(kinds.contains(&error.kind()), "{}", error.chain());
            return;
        }
    };
    let mut since = BlockSet::new();
    for step in run.steps() {
        assert_ne!(step, ContractStep::Publish, "all was written and flushed");
        if let Err(error) = run.step(step, &*opened.sink, &mut since).await {
            assert!(kinds.contains(&error.kind()), "{}", error.chain());
            break;
        }
    }
    drop(opened);
    place_is_clean(place, &run).await;
}
