use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::*;
use crate::block::{BLOCK_SIZE, Change, Delta};
use crate::files::FileMark;
use crate::source::DiskSource;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// A source of a few blocks that can fail, hang and lie.
#[derive(Default)]
struct Fake {
    blocks: BTreeMap<u32, Vec<u8>>,
    size: u64,
    /// It fails here.
    bad: Option<u32>,
    /// It never answers here.
    hangs: Option<u32>,
    /// What it says of every extent, whatever is asked.
    lie: Option<Extent>,
    reads: AtomicU64,
}

impl Fake {
    fn new(size: u64, blocks: &[u32]) -> Self {
        let geometry = Geometry::new(size).unwrap();
        let bytes =
            |index: u32| vec![index.to_le_bytes()[0] | 1; geometry.block_len(BlockIndex(index))];
        let blocks = blocks.iter().map(|index| (*index, bytes(*index))).collect();
        Self {
            blocks,
            size,
            ..Self::default()
        }
    }

    fn digests(&self, path: &Path) -> Digests {
        let digests = Digests::create(path, "run", self.geometry(), true).unwrap();
        let of = |(index, bytes): (&u32, &Vec<u8>)| {
            let is_zero = bytes.iter().all(|byte| *byte == 0);
            let digest = (!is_zero).then(|| Sha256::digest(bytes).into());
            (BlockIndex(*index), digest)
        };
        digests
            .write(&self.blocks.iter().map(of).collect::<Vec<_>>())
            .unwrap();
        digests
    }
}

impl BlockSource for Fake {
    fn geometry(&self) -> Geometry {
        Geometry::new(self.size).unwrap()
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        async move {
            if self.hangs == Some(index.0) {
                std::future::pending::<()>().await;
            }
            if self.bad == Some(index.0) {
                return Err(Error::new(Kind::Io, "cannot read: bad sector"));
            }
            Ok(match self.blocks.get(&index.0) {
                None => Block::Zero,
                Some(bytes) => Block::Data(bytes.clone().into(), Sha256::digest(bytes).into()),
            })
        }
        .boxed()
    }

    fn next_extent(&self, from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        let next = self.blocks.range(from.0..).next();
        let found = next.map(|(index, _)| Extent::of(BlockIndex(*index)));
        std::future::ready(Ok(self.lie.or(found))).boxed()
    }

    fn is_known_zero(&self, _index: BlockIndex) -> bool {
        false
    }

    fn prefetch(&self, _blocks: &[BlockIndex]) -> usize {
        0
    }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("digests");
    (folder, path)
}

fn set(indexes: &[u32]) -> BlockSet {
    let mut set = BlockSet::new();
    for index in indexes {
        set.insert(BlockIndex(*index));
    }
    set
}

fn members(set: &BlockSet) -> Vec<u32> {
    let runs = set.runs_in(BlockIndex(0), BlockIndex(u32::MAX));
    runs.flat_map(Extent::blocks).map(|index| index.0).collect()
}

fn mark(size: u64) -> Mark {
    Mark::Image(FileMark {
        inode: 1,
        size,
        modified_ns: 0,
        changed_ns: 0,
        born_ns: None,
    })
}

/// Compares without a plan, a checkpoint or a stop.
async fn compare_plainly(reader: Arc<dyn BlockSource>, digests: &Digests) -> Compared {
    compare(reader, digests, &set(&[]), None, &|_| {}, &Stop::never())
        .await
        .unwrap()
}

async fn compare_all(reader: Fake, digests: &Digests, in_plan: &BlockSet) -> Result<Compared> {
    let reader = Arc::new(reader);
    compare(reader, digests, in_plan, None, &|_| {}, &Stop::never()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_entry_matches_its_own_content_and_no_other() {
    let (_folder, path) = folder();
    let zeroes = vec![0; BLOCK_SIZE as usize];
    let data = vec![7; BLOCK_SIZE as usize];
    let digest = DigestEntry::Data(Sha256::digest(&data).into());
    let other = DigestEntry::Data([5; 32]);
    let zero_digest = DigestEntry::Data(ZERO_BLOCK);
    // DigestEntry, whether it agrees with: a hole, a block of zeroes that is held, data.
    let rows = [
        (DigestEntry::Hole, [true, true, false]),
        (DigestEntry::Zero, [true, true, false]),
        (DigestEntry::Unknown, [true, true, true]),
        (digest, [false, false, true]),
        (other, [false, false, false]),
        (zero_digest, [true, true, false]),
    ];
    let size = rows.len() as u64 * 3 * BLOCK + 1000;
    let mut fake = Fake::new(size, &[]);
    let digests = Digests::create(&path, "run", fake.geometry(), true).unwrap();
    let mut expected = Vec::new();
    let mut index = 0;
    for (entry, agrees) in rows {
        for (agrees, bytes) in agrees.into_iter().zip([None, Some(&zeroes), Some(&data)]) {
            digests
                .write_entries(&[(BlockIndex(index), entry)])
                .unwrap();
            if let Some(bytes) = bytes {
                fake.blocks.insert(index, bytes.clone());
            }
            if !agrees {
                expected.push(index);
            }
            index += 1;
        }
    }
    // The short last block: the digest of its zeroes is another one.
    let short = DigestEntry::Data(Sha256::digest(&zeroes[..1000]).into());
    digests
        .write_entries(&[(BlockIndex(index), short)])
        .unwrap();
    let skip = set(&[expected[0], expected[1], expected[4], 0]);
    let compared = compare_all(fake, &digests, &skip).await.unwrap();
    assert_eq!(
        members(&compared.in_plan),
        [expected[0], expected[1], expected[4]]
    );
    expected.retain(|index| !skip.contains(BlockIndex(*index)));
    assert_eq!(members(&compared.differing), expected);
    assert_eq!((compared.unknown, compared.blocks), (3, 19));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_anywhere_in_a_sparse_image_is_found() {
    let (folder, path) = folder();
    let image = folder.path().join("image");
    let file = File::create_new(&image).unwrap();
    let size = 200 * BLOCK + 777;
    file.set_len(size).unwrap();
    fastrand::seed(14);
    let blocks: Vec<u32> = (0..201)
        .filter(|index| index % 50 < 20 || *index == 200)
        .collect();
    let geometry = Geometry::new(size).unwrap();
    let mut written = Vec::new();
    for index in blocks.iter().copied().map(BlockIndex) {
        let bytes: Vec<u8> = (0..geometry.block_len(index))
            .map(|_| fastrand::u8(..))
            .collect();
        file.write_all_at(&bytes, geometry.offset(index)).unwrap();
        written.push((index, Some(Digest::from(Sha256::digest(&bytes)))));
    }
    let digests = Digests::create(&path, "run", geometry, true).unwrap();
    digests.write(&written).unwrap();
    let compare_image = || async {
        let reader = Arc::new(DiskSource::open_past_cache(&image, geometry).unwrap());
        members(&compare_plainly(reader, &digests).await.differing)
    };
    assert_eq!(compare_image().await, [0; 0]);
    let mut flips = vec![0, size - 1, 199 * BLOCK, 20 * BLOCK, 20 * BLOCK - 1];
    flips.extend((0..10).map(|_| fastrand::u64(..size)));
    for at in flips {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        let index = geometry.block_at(at).unwrap().0;
        assert_eq!(compare_image().await, [index], "byte {at}");
        file.write_all_at(&byte, at).unwrap();
    }
    // Lost bytes, and a hole that was filled with zeroes.
    file.write_all_at(&vec![0; 1 << 20], 30 * BLOCK).unwrap();
    assert_eq!(compare_image().await, [0; 0]);
    file.set_len(100 * BLOCK).unwrap();
    file.set_len(size).unwrap();
    let lost: Vec<u32> = blocks.into_iter().filter(|index| *index >= 100).collect();
    assert_eq!(compare_image().await, lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_of_a_huge_volume_are_not_read() {
    let (_folder, path) = folder();
    let blocks = [0, 70_000, (1 << 27) - 1];
    let fake = Fake::new(64 << 40, &blocks);
    let digests = fake.digests(&path);
    // Held by the digests alone.
    digests
        .write(&[(BlockIndex(1 << 26), Some([1; 32])), (BlockIndex(9), None)])
        .unwrap();
    let fake = Arc::new(fake);
    let seen = Mutex::new(Vec::new());
    let progress = |blocks| seen.lock().unwrap().push(blocks);
    let reader = Arc::clone(&fake) as Arc<dyn BlockSource>;
    let (none, never) = (set(&[]), Stop::never());
    let compared = compare(reader, &digests, &none, None, &progress, &never);
    assert_eq!(members(&compared.await.unwrap().differing), [1 << 26]);
    assert_eq!(fake.reads.load(Ordering::Relaxed), 3);
    let seen = seen.into_inner().unwrap();
    assert!(seen.is_sorted());
    assert_eq!((seen.first(), seen.last()), (Some(&0), Some(&(1 << 27))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_comparison_finds_the_same_as_a_whole_one() {
    let (folder, path) = folder();
    let size = 1000 * BLOCK;
    let all: Vec<u32> = (0..1000).filter(|index| index % 3 != 0).collect();
    let digests = Fake::new(size, &all).digests(&path);
    let wrong = [1, 2, 299, 500, 998];
    let changed = |hangs| {
        let mut fake = Fake::new(size, &all);
        for index in wrong {
            fake.blocks.insert(index, vec![200; BLOCK_SIZE as usize]);
        }
        fake.hangs = hangs;
        Arc::new(fake)
    };
    let saved = folder.path().join("compare");
    let (before, after) = (mark(1), mark(2));
    let resumable = |mark| Some(Resumable { path: &saved, mark });
    let (skip, never) = (set(&[500]), Stop::never());
    // It hangs at block 500 and is stopped there.
    let (sender, receiver) = watch::channel(false);
    let stop = Stop::new(receiver);
    let reader = changed(Some(500));
    let start = Instant::now();
    let progress = |blocks| {
        if blocks == 500 {
            sender.send(true).unwrap();
        }
    };
    let stopped = compare(
        reader,
        &digests,
        &skip,
        resumable(&before),
        &progress,
        &stop,
    )
    .await;
    assert_eq!(stopped.unwrap_err().kind(), Kind::Stopped);
    assert!(start.elapsed() < Duration::from_secs(20));
    // Another mark, other digests, a damaged file: from the start. The same: from there. Finished: without a read.
    let other_path = folder.path().join("other");
    let other = Digests::clone_of(
        &digests,
        &other_path,
        "other",
        digests.geometry(),
        &Stop::never(),
    )
    .unwrap();
    let state = std::fs::read(&saved).unwrap();
    let rows = [
        (&after, &digests, state.clone(), 666),
        (&before, &other, state.clone(), 666),
        (&before, &digests, state[..state.len() / 2].to_vec(), 666),
        (&before, &digests, Vec::new(), 666),
        (&before, &digests, state.clone(), 333),
    ];
    for (mark, digests, state, reads) in rows {
        std::fs::write(&saved, state).unwrap();
        for reads in [reads, 0] {
            let reader = changed(None);
            let source = Arc::clone(&reader) as Arc<dyn BlockSource>;
            let resumable = resumable(mark);
            let compared = compare(source, digests, &skip, resumable, &|_| {}, &never);
            let compared = compared.await.unwrap();
            assert_eq!(members(&compared.differing), [1, 2, 299, 998]);
            assert_eq!(members(&compared.in_plan), [500]);
            assert_eq!(compared.blocks, 1000);
            assert_eq!(reader.reads.load(Ordering::Relaxed), reads);
        }
    }
    CompareCheckpoint::remove(&saved).unwrap();
    CompareCheckpoint::remove(&saved).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_block_is_an_error_and_an_endless_listing_ends() {
    let (_folder, path) = folder();
    let all: Vec<u32> = (0..20).collect();
    let digests = Fake::new(20 * BLOCK, &all).digests(&path);
    let mut bad = Fake::new(20 * BLOCK, &all);
    bad.bad = Some(7);
    let failed = compare_all(bad, &digests, &set(&[7])).await;
    assert_eq!(failed.unwrap_err().kind(), Kind::Io);
    let small = compare_all(Fake::new(19 * BLOCK, &all[..19]), &digests, &set(&[])).await;
    assert_eq!(small.unwrap_err().kind(), Kind::Invalid);
    for (start, end) in [(0, 1), (0, 10), (0, u32::MAX)] {
        let mut liar = Fake::new(20 * BLOCK, &all);
        liar.lie = Extent::new(BlockIndex(start), BlockIndex(end));
        let compared = compare_all(liar, &digests, &set(&[])).await.unwrap();
        assert!(compared.differing.is_empty());
    }
    // A source that reports only holes differs.
    let mut liar = Fake::new(20 * BLOCK, &all);
    liar.lie = Extent::new(BlockIndex(20), BlockIndex(21));
    let compared = compare_all(liar, &digests, &set(&[])).await.unwrap();
    assert_eq!(compared.differing.len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn written_blocks_are_verified_and_differing_ranges_are_named() {
    let (_folder, path) = folder();
    let all: Vec<u32> = (0..600).collect();
    let good = Fake::new(1000 * BLOCK, &all);
    let digests = good.digests(&path);
    let mut plan = Delta::new(None, good.geometry());
    for index in 0..600 {
        plan.insert(BlockIndex(index), Change::Write);
    }
    plan.insert(BlockIndex(700), Change::Zero);
    let plan = Arc::new(plan);
    let written = || -> Written { Box::new(digests.of_plan(Arc::clone(&plan))) };
    let done = AtomicU64::new(0);
    let progress = |blocks| done.store(blocks, Ordering::Relaxed);
    let never = Stop::never();
    verify_plan(written(), &good, "x.raw", &progress, &never)
        .await
        .unwrap();
    assert_eq!(done.load(Ordering::Relaxed), 601);
    let mut bad = Fake::new(1000 * BLOCK, &all);
    bad.blocks.remove(&12);
    for index in [13, 14, 700, 701] {
        bad.blocks.insert(index, vec![99; BLOCK_SIZE as usize]);
    }
    let error = verify_plan(written(), &bad, "x.raw", &progress, &never)
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.remedy()),
        (Kind::Corrupt, Some(&Remedy::Restart))
    );
    assert_eq!(
        error.to_string(),
        "cannot verify x.raw: blocks 12-14, 700 (2.0 MiB) read back as something else than was written"
    );
    bad.hangs = Some(300);
    let (sender, receiver) = watch::channel(false);
    let stop = Stop::new(receiver);
    let progress = |blocks| {
        if blocks == 300 {
            sender.send(true).unwrap();
        }
    };
    let stopped = verify_plan(written(), &bad, "x.raw", &progress, &stop).await;
    assert_eq!(stopped.unwrap_err().kind(), Kind::Stopped);
    // The digest over digests, and what it is over.
    let mut hasher = Sha256::new();
    for index in 0..600 {
        hasher.update(Sha256::digest(&good.blocks[&index]));
    }
    let expected = crate::block::hexadecimal(&hasher.finalize());
    assert_eq!(linear_digest(written(), &never).await.unwrap(), expected);
    let failed = linear_digest(written(), &stop).await;
    assert_eq!(failed.unwrap_err().kind(), Kind::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_image_is_digested_with_its_holes() {
    let never = Stop::never();
    for (size, held) in [
        (40 * BLOCK + 100, vec![3, 4, 39, 40]),
        (40 * BLOCK, vec![0]),
        (1, vec![]),
    ] {
        let fake = Fake::new(size, &held);
        let mut bytes = vec![0; usize::try_from(size).unwrap()];
        for (index, block) in &fake.blocks {
            let at = *index as usize * BLOCK_SIZE as usize;
            bytes[at..at + block.len()].copy_from_slice(block);
        }
        let done = AtomicU64::new(0);
        let progress = |blocks| done.store(blocks, Ordering::Relaxed);
        for with_md5 in [true, false] {
            let digests = image_digest(&fake, with_md5, &progress, &never);
            let digests = digests.await.unwrap();
            assert_eq!(digests.sha256, *Sha256::digest(&bytes));
            let md5 = with_md5.then(|| md5::Md5::digest(&bytes).into());
            assert_eq!(digests.md5, md5);
        }
        assert_eq!(done.load(Ordering::Relaxed), size.div_ceil(BLOCK));
    }
    let mut bad = Fake::new(40 * BLOCK, &[3]);
    bad.bad = Some(3);
    let failed = image_digest(&bad, true, &|_| {}, &Stop::never()).await;
    assert_eq!(failed.unwrap_err().kind(), Kind::Io);
    // 64 TiB of zeroes take hours, and are stopped at once.
    let huge = Fake::new(64 << 40, &[]);
    let (sender, receiver) = watch::channel(false);
    let stop = Stop::new(receiver);
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        sender.send(true).unwrap();
        Instant::now()
    };
    let digest = image_digest(&huge, true, &|_| {}, &stop);
    let (stopped, at) = futures_util::join!(digest, stopping);
    assert_eq!(stopped.unwrap_err().kind(), Kind::Stopped);
    assert!(at.elapsed() < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_is_compared_with_a_snapshot_where_either_holds_something() {
    let snapshot = Fake::new(300 * BLOCK, &[1, 2, 100, 250]);
    let mut target = Fake::new(300 * BLOCK, &[1, 2, 250, 299]);
    target.blocks.insert(2, vec![77; BLOCK_SIZE as usize]);
    target.blocks.insert(50, vec![0; BLOCK_SIZE as usize]);
    let last = AtomicU64::new(0);
    let progress = |blocks| last.store(blocks, Ordering::Relaxed);
    let (target, snapshot) = (Arc::new(target), Arc::new(snapshot));
    let source = |fake: &Arc<Fake>| Arc::clone(fake) as Arc<dyn BlockSource>;
    let never = Stop::never();
    let differing = compare_sources(source(&target), source(&snapshot), &progress, &never);
    assert_eq!(members(&differing.await.unwrap()), [2, 100, 299]);
    assert_eq!(last.load(Ordering::Relaxed), 300);
    assert_eq!(snapshot.reads.load(Ordering::Relaxed), 6);
    let other = Arc::new(Fake::new(299 * BLOCK, &[1])) as Arc<dyn BlockSource>;
    let failed = compare_sources(other, source(&snapshot), &progress, &never).await;
    assert_eq!(failed.unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn comparisons_can_be_spawned() {
    fn is_send<T: Send>(_: T) {}
    let (_folder, path) = folder();
    let fake = Arc::new(Fake::new(BLOCK, &[0]));
    let digests = fake.digests(&path);
    let (set, stop) = (BlockSet::new(), Stop::never());
    let source = || Arc::clone(&fake) as Arc<dyn BlockSource>;
    is_send(compare(source(), &digests, &set, None, &|_| {}, &stop));
    is_send(compare_sources(source(), source(), &|_| {}, &stop));
    is_send(image_digest(&*fake, true, &|_| {}, &stop));
    let written: Written = Box::new(std::iter::empty());
    is_send(verify_plan(written, &*fake, "x", &|_| {}, &stop));
}

/// `EBSFS_BENCH_IMAGE=FILE cargo test --release -- --ignored --nocapture speed_of_comparing`: seconds and GiB/s.
#[test]
#[ignore = "a measurement"]
fn speed_of_comparing_an_image() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let image = PathBuf::from(std::env::var_os("EBSFS_BENCH_IMAGE").unwrap());
    let (_folder, path) = folder();
    let geometry = DiskSource::open(&image).unwrap().geometry();
    let digests = Digests::create(&path, "run", geometry, true).unwrap();
    let count = geometry.block_count();
    digests
        .make_unknown(&[Extent::new(BlockIndex(0), BlockIndex(count)).unwrap()])
        .unwrap();
    for past_cache in [false, true] {
        let reader: Arc<dyn BlockSource> = Arc::new(match past_cache {
            false => DiskSource::open(&image).unwrap(),
            true => DiskSource::open_past_cache(&image, geometry).unwrap(),
        });
        let start = Instant::now();
        let stop = Stop::never();
        let set = BlockSet::new();
        let compared = compare(reader, &digests, &set, None, &|_| {}, &stop);
        let compared = runtime.block_on(compared).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        let speed = geometry.size() as f64 / f64::from(1 << 30) / seconds;
        println!("past_cache {past_cache}: {seconds:.2} s, {speed:.2} GiB/s, {compared:?}");
    }
}
