//! What a hit costs: a block in memory, a hole, and the parts of an image's read.
//!
//! `cargo bench --bench reads`. Whole mounts are measured by other means: this is the path inside the process.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use bytesize::ByteSize;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ebsfs::block::{BLOCK_SIZE, Block, BlockIndex, BlockSet, Extent, Geometry};
use ebsfs::cache::Cache;
use ebsfs::error::Result;
use ebsfs::image::{Image, ReadaheadBudget};
use ebsfs::source::BlockSource;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use sha2::{Digest, Sha256};

/// Even blocks hold data, odd ones are holes.
struct Source(Bytes);

impl BlockSource for Source {
    fn geometry(&self) -> Geometry {
        Geometry::new(1 << 30).unwrap_or_else(|error| unreachable!("{error}"))
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        let block = if self.is_known_zero(index) {
            Block::Zero
        } else {
            Block::Data(self.0.clone())
        };
        ready(Ok(block)).boxed()
    }

    fn next_extent(&self, from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        ready(Ok(Extent::new(from, BlockIndex(from.0 + 1)))).boxed()
    }

    fn is_known_zero(&self, index: BlockIndex) -> bool {
        index.0 % 2 == 1
    }

    fn prefetch(&self, _blocks: &[BlockIndex]) -> usize {
        0
    }
}

fn reads(criterion: &mut Criterion) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else {
        return;
    };
    let _context = runtime.enter();
    let Ok(cache) = Cache::new(ByteSize::mib(64), 128) else {
        return;
    };
    let source = Arc::new(Source(Bytes::from(vec![7; BLOCK_SIZE as usize])));
    let image = Image::new(
        Arc::new(cache.wrap(source)),
        ReadaheadBudget::new(cache.max_readahead()),
    );
    let mut group = criterion.benchmark_group("read");
    for (name, offset) in [("hit", 0u64), ("hole", u64::from(BLOCK_SIZE))] {
        for len in [4096usize, 128 * 1024] {
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(format!("{name} of {len} bytes"), |bencher| {
                bencher.iter(|| runtime.block_on(image.read_at(black_box(offset), len)));
            });
        }
    }
    group.finish();
}

fn presence(criterion: &mut Criterion) {
    let mut set = BlockSet::new();
    for index in (0..1 << 20).step_by(3) {
        set.insert(BlockIndex(index));
    }
    criterion.bench_function("presence of a block", |bencher| {
        let mut at = 0u32;
        bencher.iter(|| {
            at = at.wrapping_mul(2_654_435_761).wrapping_add(1) % (1 << 20);
            black_box(set.contains(BlockIndex(at)))
        });
    });
}

fn digest(criterion: &mut Criterion) {
    let block = vec![7; BLOCK_SIZE as usize];
    let mut group = criterion.benchmark_group("verify");
    group.throughput(Throughput::Bytes(u64::from(BLOCK_SIZE)));
    group.bench_function("SHA-256 of a block", |bencher| {
        bencher.iter(|| Sha256::digest(black_box(&block)));
    });
    group.finish();
}

criterion_group!(benches, reads, presence, digest);
criterion_main!(benches);
