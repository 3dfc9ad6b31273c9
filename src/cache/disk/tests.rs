use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::AtomicUsize;

use bytesize::ByteSize;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all, ready};
use sha2::{Digest as _, Sha256};

use super::super::{Cache, CachedSource};
use super::*;
use crate::block::{BLOCK_SIZE, Extent};
use crate::source::BlockSource;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// A volume whose last block is short; it counts reads and may deny them.
struct Volume {
    reads: AtomicUsize,
    denies: AtomicBool,
}

fn geometry() -> Geometry {
    Geometry::new(20_000 * BLOCK + 1000).unwrap()
}

fn content(index: BlockIndex) -> Block {
    if index.0 % 10 == 9 {
        return Block::Zero;
    }
    let words = geometry().block_len(index) / 4;
    let bytes = Bytes::from((index.0 + 1).to_le_bytes().repeat(words));
    let digest = Sha256::digest(&bytes).into();
    Block::Data(bytes, digest)
}

impl Volume {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            reads: AtomicUsize::new(0),
            denies: AtomicBool::new(false),
        })
    }

    /// Reads since the last call.
    fn take_reads(&self) -> usize {
        self.reads.swap(0, Ordering::SeqCst)
    }
}

impl BlockSource for Volume {
    fn geometry(&self) -> Geometry {
        geometry()
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        async move {
            self.reads.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(1)).await;
            match self.denies.load(Ordering::SeqCst) {
                true => Err(Error::new(Kind::Denied, "no")),
                false => Ok(content(index)),
            }
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

fn config(folder: &Path, size: u64) -> DiskCacheConfig {
    DiskCacheConfig {
        folder: folder.to_owned(),
        size,
        keep_encrypted: false,
        origin: "here".into(),
    }
}

/// Opens a cache; the writer of the one before may still be ending.
fn open(config: &DiskCacheConfig) -> Arc<DiskCache> {
    for _ in 0..500 {
        match DiskCache::open_with(config.clone(), false) {
            Err(error) if error.kind() == Kind::Busy => {
                std::thread::sleep(Duration::from_millis(10));
            }
            opened => return opened.unwrap(),
        }
    }
    panic!("the folder stays locked");
}

fn id() -> SnapshotId {
    "snap-0a".parse().unwrap()
}

/// A source over an empty memory cache.
fn source_of(disk: &DiskCache, volume: &Arc<Volume>, encrypted: Option<bool>) -> CachedSource {
    let cache = Cache::new(ByteSize::mib(64), 128).unwrap();
    let mut source = cache.wrap(Arc::clone(volume) as Arc<dyn BlockSource>);
    source.disk = Some(disk.tier(&id(), geometry(), encrypted));
    source
}

/// Reads blocks one after another, so that the writer keeps up.
async fn fill(disk: &DiskCache, source: &CachedSource, blocks: impl IntoIterator<Item = u32>) {
    for index in blocks.into_iter().map(BlockIndex) {
        assert_eq!(source.read_block(index).await.unwrap(), content(index));
        disk.finish().unwrap();
    }
}

fn files(folder: &Path, ending: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_named = |path: &std::path::PathBuf| path.extension().is_some_and(|e| e == ending);
    paths.filter(is_named).collect()
}

/// Bytes that the files of a folder take.
fn allocated(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap();
    let blocks = entries.map(|entry| entry.unwrap().metadata().unwrap().blocks());
    blocks.sum::<u64>() * 512
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_run_asks_for_one_block_and_reads_the_others_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), 1 << 30);
    let volume = Volume::new();
    let blocks = || (0..40).chain([20_000]);
    let disk = open(&config);
    fill(&disk, &source_of(&disk, &volume, Some(false)), blocks()).await;
    assert_eq!((volume.take_reads(), disk.hits()), (41, 0));
    drop(disk);

    let disk = open(&config);
    let source = source_of(&disk, &volume, Some(false));
    // All at once, the first one a block of data: they wait for its answer.
    let reads = blocks().map(|index| source.read_block(BlockIndex(index)));
    for (index, block) in blocks().zip(join_all(reads).await) {
        assert_eq!(block.unwrap(), content(BlockIndex(index)));
    }
    // Blocks of zeroes do not wait: each may have been asked for.
    let reads = volume.take_reads();
    assert!((1..=5).contains(&reads), "{reads}");
    assert_eq!(disk.hits() + reads as u64, 41);
    // The same process, its memory empty.
    fill(&disk, &source_of(&disk, &volume, Some(false)), blocks()).await;
    assert_eq!(volume.take_reads(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_origin_of_the_same_id_is_another_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), 1 << 30);
    let volume = Volume::new();
    let disk = open(&config);
    fill(&disk, &source_of(&disk, &volume, Some(false)), 0..4).await;
    drop(disk);
    config.origin = "elsewhere".into();
    let disk = open(&config);
    fill(&disk, &source_of(&disk, &volume, Some(false)), 0..4).await;
    assert_eq!((volume.take_reads(), disk.hits()), (8, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_bits_anywhere_are_never_wrong_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(&config(folder.path(), 1 << 30));
    let volume = Volume::new();
    // The block of zeroes too: it has only a digest.
    const BLOCKS: std::ops::Range<u32> = 7..11;
    fill(&disk, &source_of(&disk, &volume, Some(false)), BLOCKS).await;
    let writable = |ending| {
        let path = &files(folder.path(), ending)[0];
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap()
    };
    let (blocks, digests) = (writable("blocks"), writable("digests"));
    let flip = |file: &std::fs::File, at: u64, bit: u8| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
    };
    // A bit of every byte of the digests, and bits of every part of the blocks.
    let of_digests = (7 * 32..11 * 32).map(|at| (true, at, (at % 8) as u8));
    let of_blocks = (0..4).flat_map(|block| {
        let places = [0, 1, 4095, 4096, BLOCK / 2, BLOCK - 4096, BLOCK - 1];
        places.map(|place| (false, (7 + block) * BLOCK + place, (place % 8) as u8))
    });
    let of_blocks = of_blocks.filter(|(_, at, _)| at / BLOCK != 9);
    let (mut cases, mut refetched) = (0, 0);
    volume.take_reads();
    for (is_digest, at, bit) in of_digests.chain(of_blocks) {
        flip(if is_digest { &digests } else { &blocks }, at, bit);
        let index = u32::try_from(at / if is_digest { 32 } else { BLOCK }).unwrap();
        fill(&disk, &source_of(&disk, &volume, Some(false)), [index]).await;
        cases += 1;
        refetched += volume.take_reads();
        // What was fetched again is whole again.
        fill(&disk, &source_of(&disk, &volume, Some(false)), [index]).await;
        assert_eq!(volume.take_reads(), 0, "{at}");
    }
    assert_eq!(cases, refetched);
    // A slot, digest and all, that a fault shows at another place.
    let (mut bytes, mut digest) = (vec![0; BLOCK_SIZE as usize], [0; 32]);
    blocks.read_exact_at(&mut bytes, 7 * BLOCK).unwrap();
    blocks.write_all_at(&bytes, 8 * BLOCK).unwrap();
    digests.read_exact_at(&mut digest, 7 * 32).unwrap();
    digests.write_all_at(&digest, 8 * 32).unwrap();
    // Files that end early.
    blocks.set_len(10 * BLOCK + 5).unwrap();
    fill(&disk, &source_of(&disk, &volume, Some(false)), BLOCKS).await;
    assert_eq!(volume.take_reads(), 2);
    digests.set_len(8 * 32 + 1).unwrap();
    fill(&disk, &source_of(&disk, &volume, Some(false)), BLOCKS).await;
    assert_eq!(volume.take_reads(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_files_keep_the_size_and_the_blocks_used_last() {
    const SIZE: u64 = 8 << 20;
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::new();
    let disk = open(&config(folder.path(), SIZE));
    let source = source_of(&disk, &volume, Some(false));
    // Each in a segment of its own, then many of one.
    for index in (0..60).map(|n| n * 128).chain(10_000..10_060) {
        fill(&disk, &source, [index]).await;
        assert!(allocated(folder.path()) <= SIZE, "block {index}");
    }
    // One used again and again stays, whatever comes.
    fill(&disk, &source, [5]).await;
    volume.take_reads();
    for index in (0..60).map(|n| (n + 70) * 128) {
        fill(&disk, &source_of(&disk, &volume, Some(false)), [5]).await;
        fill(&disk, &source, [index]).await;
    }
    assert_eq!(volume.take_reads(), 60, "block 5 was evicted");
    let hits = disk.hits();
    assert_eq!(hits, 60);
    drop((source, disk));
    // What an earlier run left is evicted by a smaller one.
    let disk = open(&config(folder.path(), SIZE / 2));
    disk.finish().unwrap();
    assert!(allocated(folder.path()) <= SIZE / 2);
    fill(
        &disk,
        &source_of(&disk, &volume, Some(false)),
        (0..20).map(|n| n * 128),
    )
    .await;
    assert!(allocated(folder.path()) <= SIZE / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_waiter_asks_after_a_request_that_was_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), 1 << 30);
    let disk = open(&config);
    let volume = Volume::new();
    fill(&disk, &source_of(&disk, &volume, Some(false)), 0..8).await;
    drop(disk);
    let disk = open(&config);
    let tier = disk.tier(&id(), geometry(), Some(false));
    let OnDisk::Miss(given_up) = tier.find(BlockIndex(0), false).await else {
        panic!("a hit without permission");
    };
    assert!(given_up.is_awaited());
    let waiters = (1..8).map(|index| {
        let (tier, index) = (Arc::clone(&tier), BlockIndex(index));
        tokio::spawn(async move {
            match tier.find(index, true).await {
                OnDisk::Hit(_) => (1, 0),
                OnDisk::Miss(asker) => {
                    tier.learn(index, &Ok(content(index)), asker);
                    (0, 1)
                }
            }
        })
    });
    let waiters: Vec<_> = waiters.collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(given_up);
    let mut found = (0, 0);
    for waiter in waiters {
        let (hits, misses) = waiter.await.unwrap();
        found = (found.0 + hits, found.1 + misses);
    }
    assert_eq!(found, (6, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_reader_gets_nothing_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), 1 << 30);
    let volume = Volume::new();
    let disk = open(&config);
    fill(&disk, &source_of(&disk, &volume, Some(false)), 0..8).await;
    drop(disk);
    let disk = open(&config);
    volume.denies.store(true, Ordering::SeqCst);
    let source = source_of(&disk, &volume, Some(false));
    let reads = (0..8).map(|index| source.read_block(BlockIndex(index)));
    for read in join_all(reads).await {
        assert_eq!(read.unwrap_err().kind(), Kind::Denied);
    }
    assert_eq!(disk.hits(), 0);
    volume.denies.store(false, Ordering::SeqCst);
    fill(&disk, &source_of(&disk, &volume, Some(false)), 0..8).await;
    assert_eq!(disk.hits(), 7);
    // A block that is not on disk is denied: from then on those that are, too.
    volume.denies.store(true, Ordering::SeqCst);
    let source = source_of(&disk, &volume, Some(false));
    for index in [100, 1, 2] {
        let read = source.read_block(BlockIndex(index)).await;
        assert_eq!(read.unwrap_err().kind(), Kind::Denied);
    }
    assert_eq!(disk.hits(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_of_encrypted_snapshots_are_kept_only_when_they_may_be() {
    for (encrypted, keep_encrypted, kept) in [
        (Some(true), false, 0),
        (None, false, 0),
        (Some(false), false, 1),
        (Some(true), true, 1),
        (None, true, 1),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path(), 1 << 30);
        config.keep_encrypted = keep_encrypted;
        let disk = open(&config);
        let volume = Volume::new();
        fill(&disk, &source_of(&disk, &volume, encrypted), 0..3).await;
        assert_eq!(files(folder.path(), "blocks").len(), kept, "{encrypted:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_files_are_private_and_an_orphan_is_removed() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("made/here");
    let volume = Volume::new();
    let disk = open(&config(&folder, 1 << 30));
    fill(&disk, &source_of(&disk, &volume, Some(false)), 0..3).await;
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&folder), 0o700);
    for entry in std::fs::read_dir(&folder).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
    drop(disk);
    std::fs::remove_file(&files(&folder, "digests")[0]).unwrap();
    std::fs::write(folder.join("notes.blocks"), "not ours").unwrap();
    let disk = open(&config(&folder, 1 << 30));
    assert_eq!(files(&folder, "blocks"), [folder.join("notes.blocks")]);
    fill(&disk, &source_of(&disk, &volume, Some(false)), 0..3).await;
    assert_eq!((volume.take_reads(), disk.hits()), (6, 0));
}

#[tokio::test]
async fn a_folder_in_use_or_of_others_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), MIN_DISK);
    let refused = |config: &DiskCacheConfig| DiskCache::open(config.clone()).unwrap_err();
    let disk = open(&config);
    let error = refused(&config);
    assert_eq!(error.kind(), Kind::Busy, "{error:?}");
    drop(disk);
    drop(open(&config));
    for mode in [0o770, 0o707, 0o702] {
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(mode)).unwrap();
        let error = refused(&config);
        assert_eq!(error.kind(), Kind::Invalid, "{mode:o} {error:?}");
    }
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(folder.path(), Some(1), None).unwrap();
        assert_eq!(refused(&config).kind(), Kind::Invalid);
    }
    let mut small = config;
    small.size = MIN_DISK - 1;
    assert_eq!(refused(&small).kind(), Kind::Invalid);
}
