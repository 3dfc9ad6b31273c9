//! What a hit costs: a block in memory, a hole, and the parts of an image's read; what listing and verifying cost.
//!
//! `cargo bench --bench reads`. Whole mounts are measured by other means: this is the path inside the process.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bytesize::ByteSize;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ebsfs::aws::ServiceConfig;
use ebsfs::block::{BLOCK_SIZE, Block, BlockIndex, BlockSet, Extent, Geometry};
use ebsfs::cache::Cache;
use ebsfs::ebs::{Client, EbsCatalog, Limits};
use ebsfs::emulator::Emulator;
use ebsfs::error::Result;
use ebsfs::image::{Image, ReadaheadBudget};
use ebsfs::snapshot::SnapshotId;
use ebsfs::source::{BlockSource, Catalog};
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
            Block::Data(self.0.clone(), [0; 32])
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

/// A catalog over an emulator in this process, with one snapshot of 16 GiB, half of it holes.
async fn listed(folder: &Path) -> Option<(EbsCatalog, SnapshotId)> {
    let quota = "list_rps=100000".to_owned();
    let emulator = Emulator::open(folder, &[quota]).ok()?;
    emulator.add_synthetic("snap-0a", 16, 500_000, 1).ok()?;
    let keys = std::fs::read_to_string(emulator.credentials_file()).ok()?;
    let key = |name: &str| {
        let line = keys.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim_start_matches([' ', '=']).to_owned())
    };
    let (id, secret) = (key("aws_access_key_id")?, key("aws_secret_access_key")?);
    let listener = Emulator::listen(([127, 0, 0, 1], 0).into()).await.ok()?;
    let url = format!("http://{}", listener.local_addr().ok()?);
    tokio::spawn(emulator.serve(listener, None));
    let service = ServiceConfig::fixed(&url, "us-east-1", &id, &secret).ok()?;
    let limits = Limits {
        max_in_flight: 128,
        max_rps: 100_000,
        max_snapshot_rps: 100_000,
        max_list_rps: 10_000,
        hedge: false,
        timeout: Duration::from_secs(30),
    };
    let client = Arc::new(Client::new(&service, &limits));
    let catalog = EbsCatalog::new(client, None, Vec::new());
    Some((catalog, "snap-0a".parse().ok()?))
}

fn map(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let Ok(runtime) = runtime else {
        return;
    };
    let Ok(folder) = tempfile::tempdir() else {
        return;
    };
    let Some((catalog, id)) = runtime.block_on(listed(folder.path())) else {
        return;
    };
    let Ok((_, source)) = runtime.block_on(catalog.open(&id)) else {
        return;
    };
    let walk = async {
        let (mut at, mut blocks) = (BlockIndex(0), 0);
        while let Ok(Some(run)) = source.next_extent(at).await {
            blocks += run.count();
            at = run.end();
        }
        blocks
    };
    // Once, by HTTP and JSON from the emulator in this very process, at the 49 listings a second of an account.
    let start = Instant::now();
    let blocks = runtime.block_on(walk);
    println!(
        "block map: {blocks} blocks listed, decoded and kept in {:.1?}",
        start.elapsed()
    );
    criterion.bench_function("block map, whether a block is a hole", |bencher| {
        let mut at = 0u32;
        bencher.iter(|| {
            at = at.wrapping_mul(2_654_435_761).wrapping_add(1) % (1 << 15);
            black_box(source.is_known_zero(BlockIndex(at)))
        });
    });
    criterion.bench_function("block map, the next run of held blocks", |bencher| {
        let mut at = 0u32;
        bencher.iter(|| {
            at = at.wrapping_mul(2_654_435_761).wrapping_add(1) % (1 << 15);
            runtime.block_on(source.next_extent(BlockIndex(at)))
        });
    });
}

fn digest(criterion: &mut Criterion) {
    let blocks = vec![vec![7; BLOCK_SIZE as usize]; 8];
    let mut group = criterion.benchmark_group("verify");
    group.throughput(Throughput::Bytes(8 * u64::from(BLOCK_SIZE)));
    group.bench_function("SHA-256 of 8 blocks, one by one", |bencher| {
        bencher.iter(|| {
            for block in &blocks {
                black_box(Sha256::digest(black_box(block)));
            }
        });
    });
    let messages: Vec<&[u8]> = blocks.iter().map(|block| &block[..]).collect();
    let mut digests = vec![[0; 32]; blocks.len()];
    group.bench_function(
        format!(
            "SHA-256 of 8 blocks, side by side ({})",
            tape_sha256::backend()
        ),
        |bencher| bencher.iter(|| tape_sha256::hash_many(black_box(&messages), &mut digests)),
    );
    group.finish();
}

criterion_group!(benches, reads, presence, map, digest);
criterion_main!(benches);
