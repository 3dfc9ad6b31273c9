use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::watch;

use super::*;

/// Counts reads, holds them at a gate, fails the chosen ones.
struct Counting {
    reads: AtomicUsize,
    concurrent: AtomicUsize,
    most_concurrent: AtomicUsize,
    gate: watch::Receiver<bool>,
    failing: AtomicUsize,
}

impl Counting {
    fn new(open: bool) -> (Arc<Self>, watch::Sender<bool>) {
        let (sender, gate) = watch::channel(open);
        let source = Self {
            reads: AtomicUsize::new(0),
            concurrent: AtomicUsize::new(0),
            most_concurrent: AtomicUsize::new(0),
            gate,
            failing: AtomicUsize::new(0),
        };
        (Arc::new(source), sender)
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }
}

fn content(index: BlockIndex) -> Bytes {
    Bytes::from(index.0.to_le_bytes().repeat(BLOCK_SIZE as usize / 4))
}

impl BlockSource for Counting {
    fn geometry(&self) -> Geometry {
        Geometry::new(10_000 * u64::from(BLOCK_SIZE)).unwrap()
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        async move {
            self.reads.fetch_add(1, Ordering::SeqCst);
            let now = self.concurrent.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_concurrent.fetch_max(now, Ordering::SeqCst);
            let _ = self.gate.clone().wait_for(|open| *open).await;
            tokio::task::yield_now().await;
            self.concurrent.fetch_sub(1, Ordering::SeqCst);
            if self
                .failing
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok()
            {
                return Err(Error::new(Kind::Throttled, "made to fail"));
            }
            Ok(if index.0 % 10 == 9 {
                Block::Zero
            } else {
                Block::Data(content(index), [0; 32])
            })
        }
        .boxed()
    }

    fn next_extent(&self, _from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        ready(Ok(None)).boxed()
    }

    fn is_known_zero(&self, _index: BlockIndex) -> bool {
        false
    }

    fn prefetch(&self, _blocks: &[BlockIndex]) -> usize {
        0
    }
}

fn cached(budget: ByteSize, inner: &Arc<Counting>) -> Arc<CachedSource> {
    let cache = Cache::new(budget, 128).unwrap();
    Arc::new(cache.wrap(Arc::clone(inner) as Arc<dyn BlockSource>))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_readers_of_one_block_are_one_fetch() {
    let (inner, gate) = Counting::new(false);
    let source = cached(ByteSize::mib(64), &inner);
    let readers: Vec<_> = (0..64)
        .map(|_| {
            let source = Arc::clone(&source);
            tokio::spawn(async move { source.read_block(BlockIndex(7)).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    gate.send_replace(true);
    for answer in join_all(readers).await {
        assert_eq!(
            answer.unwrap().unwrap(),
            Block::Data(content(BlockIndex(7)), [0; 32])
        );
    }
    assert_eq!(inner.reads(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_fetch_gives_all_its_waiters_one_error_and_leaves_nothing_behind() {
    let (inner, gate) = Counting::new(false);
    inner.failing.store(1, Ordering::SeqCst);
    let source = cached(ByteSize::mib(64), &inner);
    let waiting = join_all((0..8).map(|_| source.read_block(BlockIndex(3))));
    gate.send_replace(true);
    for answer in waiting.await {
        assert_eq!(answer.unwrap_err().kind(), Kind::Throttled);
    }
    assert_eq!(inner.reads(), 1);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(source.read_block(BlockIndex(3)).await.is_ok());
    assert_eq!(inner.reads(), 2, "the fetch was not kept");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_answered_again_without_a_request_until_it_has_rested() {
    let (inner, _gate) = Counting::new(true);
    let source = cached(ByteSize::mib(64), &inner);
    for (rest, reads) in [(1, 1), (2, 3)] {
        inner.failing.store(1, Ordering::SeqCst);
        for _ in 0..128 {
            let failed = source.read_block(BlockIndex(3)).await;
            assert_eq!(failed.unwrap_err().kind(), Kind::Throttled);
            assert_eq!(source.prefetch(&[BlockIndex(3)]), 1, "it is left out");
            tokio::task::yield_now().await;
        }
        assert_eq!(inner.reads(), reads);
        assert!(source.read_block(BlockIndex(4)).await.is_ok());
        tokio::time::advance(Duration::from_secs(rest)).await;
    }
    assert!(source.read_block(BlockIndex(3)).await.is_ok());
    assert_eq!(inner.reads(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_reader_after_a_prefetch_that_got_no_answer_has_an_attempt_of_its_own() {
    let (inner, _gate) = Counting::new(true);
    inner.failing.store(1, Ordering::SeqCst);
    let source = cached(ByteSize::mib(64), &inner);
    source.prefetch(&[BlockIndex(3)]);
    while inner.reads() == 0 || source.cache.is_near((0, BlockIndex(3))) {
        tokio::task::yield_now().await;
    }
    assert!(source.read_block(BlockIndex(3)).await.is_ok());
    assert_eq!(inner.reads(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_joins_late_has_all_of_its_own_time() {
    let (inner, gate) = Counting::new(false);
    inner.failing.store(1, Ordering::SeqCst);
    let source = cached(ByteSize::mib(64), &inner);
    let first = source.read_block(BlockIndex(3));
    tokio::time::advance(Duration::from_secs(2)).await;
    let late = source.read_block(BlockIndex(3));
    gate.send_replace(true);
    assert_eq!(first.await.unwrap_err().kind(), Kind::Throttled);
    assert!(late.await.is_ok());
    assert_eq!(inner.reads(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_finishes_after_its_reader_is_dropped() {
    let (inner, gate) = Counting::new(false);
    let source = cached(ByteSize::mib(64), &inner);
    drop(source.read_block(BlockIndex(5)));
    gate.send_replace(true);
    assert!(source.read_block(BlockIndex(5)).await.is_ok());
    assert_eq!(inner.reads(), 1);
}

#[tokio::test(start_paused = true)]
async fn cached_and_in_flight_bytes_together_keep_the_budget() {
    let (inner, _gate) = Counting::new(true);
    let budget = ByteSize::mib(16);
    let source = cached(budget, &inner);
    for start in (0..2000).step_by(100) {
        let reads = (start..start + 100).map(|i| source.read_block(BlockIndex(i)));
        for (index, block) in (start..).zip(join_all(reads).await) {
            let expected = if index % 10 == 9 {
                Block::Zero
            } else {
                Block::Data(content(BlockIndex(index)), [0; 32])
            };
            assert_eq!(block.unwrap(), expected);
        }
        let in_flight = inner.most_concurrent.load(Ordering::SeqCst) as u64;
        let total = source.cache.memory.weight() + in_flight * u64::from(BLOCK_SIZE);
        assert!(total <= budget.as_u64(), "{total}");
    }
    assert_eq!(inner.reads(), 2000);
}

#[tokio::test(start_paused = true)]
async fn prefetches_leave_room_for_readers_who_join_them() {
    let (inner, gate) = Counting::new(false);
    let source = cached(ByteSize::mib(64), &inner);
    let ahead: Vec<_> = (0..1000).map(BlockIndex).collect();
    let taken = source.prefetch(&ahead);
    assert_eq!(taken, 28, "it says how many were taken");
    tokio::task::yield_now().await;
    let prefetched = inner.concurrent.load(Ordering::SeqCst);
    assert_eq!(prefetched, 28, "an eighth of the blocks in flight is left");
    let reader = source.read_block(BlockIndex(9000));
    let joined = source.read_block(BlockIndex(0));
    tokio::task::yield_now().await;
    assert_eq!(
        inner.concurrent.load(Ordering::SeqCst),
        29,
        "the reader did not wait"
    );
    gate.send_replace(true);
    reader.await.unwrap();
    joined.await.unwrap();
    assert_eq!(inner.reads(), 29);
}

#[tokio::test(start_paused = true)]
async fn blocks_read_ahead_by_any_number_of_streams_are_read_before_they_are_evicted() {
    let (inner, _gate) = Counting::new(true);
    let cache = Cache::new(ByteSize::mib(32), 128).unwrap();
    let sources: Vec<_> = (0..6)
        .map(|_| cache.wrap(Arc::clone(&inner) as Arc<dyn BlockSource>))
        .collect();
    let mut ahead = [0; 6];
    for index in 0..300 {
        for (source, ahead) in sources.iter().zip(&mut ahead) {
            let from = index.max(*ahead);
            let blocks: Vec<_> = (from..index + 12).map(BlockIndex).collect();
            *ahead = from + u32::try_from(source.prefetch(&blocks)).unwrap();
            // Each block is read in parts.
            for _ in 0..4 {
                source.read_block(BlockIndex(index)).await.unwrap();
            }
        }
    }
    for source in &sources {
        for index in 300..312 {
            source.read_block(BlockIndex(index)).await.unwrap();
        }
    }
    assert_eq!(inner.reads(), 6 * 312, "one fetch a block");
}

#[test]
fn too_little_memory_is_refused() {
    assert_eq!(
        Cache::new(ByteSize::mib(7), 128).unwrap_err().kind(),
        Kind::Invalid
    );
    assert!(Cache::new(MIN_MEMORY, 128).is_ok());
}
