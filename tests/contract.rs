//! What every `BlockSource` and every `Catalog` must do: one suite for each trait, over every implementation.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use ebsfs::aws::ServiceConfig;
use ebsfs::block::{Block, BlockIndex, BlockSet, Change};
use ebsfs::cache::{Cache, CachedCatalog};
use ebsfs::ebs::{Client, EbsCatalog, Limits};
use ebsfs::error::Kind;
use ebsfs::repository::{Connection, RepositoryCatalog, Store};
use ebsfs::snapshot::{Descriptions, Snapshot, SnapshotId};
use ebsfs::source::{BlockSource, Catalog, DamagedSource, DeltaSource, DiskSource, Wanted};
use futures_util::future::join_all;
use sha2::{Digest as _, Sha256};

use crate::support::*;

/// Blocks of the volume: 1 GiB.
const BLOCKS: u32 = 2048;
/// What the first snapshot holds.
const FIRST: [u64; 7] = [0, 5, 6, 7, 9, 1000, 2047];

/// Two snapshots of one volume, in EBS and in a repository, and the volume's bytes at both times.
struct Place {
    emulator: Emulator,
    models: [Model; 2],
    ids: [SnapshotId; 2],
    repository: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let emulator = Emulator::start();
        let volume = emulator.make_volume("vol-0a", BLOCKS.into(), FIRST);
        let first = emulator.snapshot("vol-0a");
        let held = FIRST.map(|index| (index as u32, content("vol-0a", index)));
        let before = Model::of(BLOCKS, held);
        let (file, mut after) = (writable(&volume), before.clone());
        file.write_all_at(&vec![0; BLOCK as usize], 9 * BLOCK)
            .unwrap();
        after.blocks.remove(&9);
        for index in [6, 100] {
            let bytes = content("later", index);
            file.write_all_at(&bytes, index * BLOCK).unwrap();
            after.blocks.insert(index as u32, Some(bytes));
        }
        let second = emulator.snapshot("vol-0a");
        let repository = tempfile::tempdir().unwrap();
        let address = format!("file://{}", repository.path().display());
        init_repository(&address);
        let state = emulator.folder.path().join("state");
        for id in [&first, &second] {
            let mut sync = emulator.ebsfs(&["sync", "--progress", "none", id, &address]);
            run(sync.arg("--state-dir").arg(&state));
        }
        Self {
            emulator,
            models: [before, after],
            ids: [first, second].map(|id| id.parse().unwrap()),
            repository,
        }
    }

    async fn ebs(&self, with_ec2: bool) -> Arc<EbsCatalog> {
        let (id, secret) = self.emulator.keys();
        let url = self.emulator.url();
        let service = ServiceConfig::fixed(&url, "us-east-1", &id, &secret).unwrap();
        let client = Arc::new(Client::new(&service, &Limits::default()));
        let ec2: Arc<dyn Descriptions> = Arc::new(ebsfs::ec2::Ec2::new(&service));
        let select = match with_ec2 {
            true => Vec::new(),
            false => self
                .ids
                .iter()
                .map(|id| id.as_str().parse().unwrap())
                .collect(),
        };
        let ec2 = with_ec2.then_some(ec2);
        Arc::new(EbsCatalog::new(client, ec2, select))
    }

    async fn repository(&self) -> Arc<RepositoryCatalog> {
        let address = format!("file://{}", self.repository.path().display());
        let connection = Connection::new(Duration::from_secs(10));
        let store = Store::open(&address.parse().unwrap(), &connection).unwrap();
        Arc::new(RepositoryCatalog::open(Arc::new(store)).await.unwrap())
    }

    /// Every catalog, with its name.
    async fn catalogs(&self) -> Vec<(&'static str, Arc<dyn Catalog>)> {
        let cached = |catalog| -> Arc<dyn Catalog> {
            let cache = Cache::new(ByteSize::mib(64), 16).unwrap();
            Arc::new(CachedCatalog::new(cache, catalog))
        };
        vec![
            ("EBS", self.ebs(true).await),
            ("EBS without EC2", self.ebs(false).await),
            ("a repository", self.repository().await),
            ("EBS, cached", cached(self.ebs(true).await)),
            ("a repository, cached", cached(self.repository().await)),
        ]
    }
}

/// What a source must answer: its blocks that are not zero, none for one that is damaged.
#[derive(Clone)]
struct Model {
    count: u32,
    blocks: BTreeMap<u32, Option<Vec<u8>>>,
}

impl Model {
    fn of(count: u32, blocks: impl IntoIterator<Item = (u32, Vec<u8>)>) -> Self {
        let blocks = blocks
            .into_iter()
            .map(|(index, bytes)| (index, Some(bytes)));
        Self {
            count,
            blocks: blocks.collect(),
        }
    }

    /// The block's bytes if it is not damaged: no bytes for one that is zero.
    fn get(&self, index: u32) -> Option<&[u8]> {
        self.blocks.get(&index).map_or(Some(&[]), Option::as_deref)
    }

    fn is_zero(&self, index: u32) -> bool {
        self.get(index).is_some_and(<[u8]>::is_empty)
    }
}

/// The block is what the model has.
#[track_caller]
fn compare(name: &str, index: u32, read: ebsfs::error::Result<Block>, expected: Option<&[u8]>) {
    match (read, expected) {
        (Ok(Block::Zero), Some(bytes)) => {
            assert!(bytes.is_empty(), "{name}: block {index} is not zero");
        }
        (Ok(Block::Data(read, _)), Some([])) => {
            let is_zero = read.iter().all(|byte| *byte == 0);
            assert!(is_zero, "{name}: block {index} is not zero");
        }
        (Ok(Block::Data(read, digest)), Some(bytes)) => {
            assert!(read[..] == *bytes, "{name}: other bytes in block {index}");
            let expected = Sha256::digest(bytes);
            assert_eq!(digest[..], expected[..], "{name}: digest of block {index}");
        }
        (Err(error), None) => assert_eq!(error.kind(), Kind::Corrupt, "{name}: block {index}"),
        (read, _) => panic!(
            "{name}: block {index}: {:?}",
            read.map(|_| "read").map_err(|e| e.chain())
        ),
    }
}

/// The contract of [`BlockSource`].
async fn keeps_the_contract_of_a_source(name: &str, source: &dyn BlockSource, model: &Model) {
    let geometry = source.geometry();
    let count = geometry.block_count();
    assert_eq!(count, model.count, "{name}");
    let not_zero = model.blocks.keys().copied();
    let interesting: BTreeSet<u32> = not_zero.chain([0, 1, 8, 9, count / 2, count - 1]).collect();

    // Runs of what is held: exact starts, ascending, never beyond the end; what no run has reads as zeroes.
    let (mut at, mut held) = (BlockIndex(0), BTreeSet::new());
    while let Some(run) = source.next_extent(at).await.unwrap() {
        assert!(
            run.start() >= at && run.end() > run.start(),
            "{name}: {run:?} from {at:?}"
        );
        assert!(run.end().0 <= count, "{name}: {run:?}");
        held.extend(run.blocks().map(|block| block.0));
        // From the middle of a run it begins there.
        let middle = BlockIndex(run.start().0 + run.count() / 2);
        let from_middle = source.next_extent(middle).await.unwrap().unwrap();
        assert_eq!(from_middle.start(), middle, "{name}");
        at = run.end();
    }
    for index in interesting.iter().filter(|index| !held.contains(index)) {
        assert!(model.is_zero(*index), "{name}: block {index} is not held");
    }
    assert_eq!(
        source.next_extent(BlockIndex(count)).await.unwrap(),
        None,
        "{name}"
    );

    // Bytes, whichever way and however often; a wish changes nothing.
    let wish: Vec<BlockIndex> = interesting.iter().map(|index| BlockIndex(*index)).collect();
    assert_eq!(source.prefetch(&[]), 0, "{name}");
    assert!(source.prefetch(&wish) <= wish.len(), "{name}");
    for index in interesting {
        let block = BlockIndex(index);
        if source.is_known_zero(block) {
            assert!(
                model.is_zero(index),
                "{name}: block {index} is known to be zero"
            );
        }
        // One that is dropped hurts no other.
        drop(source.read_block(block));
        let dropped = tokio::time::timeout(Duration::from_micros(50), source.read_block(block));
        drop(dropped.await);
        for read in join_all((0..3).map(|_| source.read_block(block))).await {
            compare(name, index, read, model.get(index));
        }
        let ahead = source.read_ahead(block, Wanted::default()).await;
        compare(name, index, ahead, model.get(index));
        compare(
            name,
            index,
            source.read_block(block).await,
            model.get(index),
        );
    }

    // Beyond the end there is nothing.
    for beyond in [count, count + 1, u32::MAX] {
        let is_zero = source.is_known_zero(BlockIndex(beyond));
        assert!(!is_zero, "{name}: block {beyond} is known to be zero");
        let read = source.read_block(BlockIndex(beyond)).await;
        let kind = read.as_ref().map_err(ebsfs::error::Error::kind).err();
        assert_eq!(
            kind,
            Some(Kind::Invalid),
            "{name}: block {beyond}: {read:?}"
        );
    }
}

/// The contract of [`Catalog`].
async fn keeps_the_contract_of_a_catalog(name: &str, catalog: &dyn Catalog, place: &Place) {
    let ids = |listed: &[Arc<Snapshot>]| -> Vec<SnapshotId> {
        listed.iter().map(|snapshot| snapshot.id.clone()).collect()
    };
    let is_described = name != "EBS without EC2";

    // Oldest first, each once; a caller that is dropped, or others at the same time, change nothing.
    drop(tokio::time::timeout(Duration::from_millis(1), catalog.list()).await);
    for listed in join_all((0..3).map(|_| catalog.list())).await {
        assert_eq!(ids(&listed.unwrap()), place.ids, "{name}");
    }

    // A snapshot opened twice is the same source.
    for (id, model) in place.ids.iter().zip(&place.models) {
        let (snapshot, source) = catalog.open(id).await.unwrap();
        assert_eq!(snapshot.id, *id, "{name}");
        assert_eq!(
            snapshot.volume_size,
            Some(source.geometry().size()),
            "{name}"
        );
        assert_eq!(snapshot.volume_id.is_some(), is_described, "{name}");
        assert!(
            catalog.known(id).is_none_or(|known| known.id == *id),
            "{name}"
        );
        let (_, again) = catalog.open(id).await.unwrap();
        assert!(
            std::ptr::addr_eq(Arc::as_ptr(&source), Arc::as_ptr(&again)),
            "{name}"
        );
        keeps_the_contract_of_a_source(name, &*source, model).await;
    }

    // One that is not there is not found, now and again.
    let absent: SnapshotId = "snap-0123".parse().unwrap();
    let [first, _] = &place.ids;
    for _ in 0..2 {
        let error = catalog.open(&absent).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{name}: {error:?}");
        let error = catalog.delta(first, &absent).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{name}: {error:?}");
    }

    // A delta makes the head of the base, either way round, also after one that was dropped.
    let models = &place.models;
    for (base, head) in [(0, 1), (1, 0), (0, 0)] {
        let (base_id, head_id) = (&place.ids[base], &place.ids[head]);
        drop(
            tokio::time::timeout(Duration::from_micros(200), catalog.delta(base_id, head_id)).await,
        );
        let (delta, source) = catalog.delta(base_id, head_id).await.unwrap();
        let name = format!("{name}, {base_id}..{head_id}");
        for index in 0..BLOCKS {
            let (old, new) = (models[base].get(index), models[head].get(index));
            let block = BlockIndex(index);
            match delta.change(block) {
                None => assert!(old == new, "{name}: block {index} differs"),
                Some(Change::Zero) => assert_eq!(new, Some(&[][..]), "{name}: block {index}"),
                Some(Change::Write) => compare(&name, index, source.read_block(block).await, new),
            }
        }
        assert_eq!(delta.runs().next().is_none(), base == head, "{name}");
        keeps_the_contract_of_a_source(&name, &*source, &models[head]).await;
        // As a volume of its own.
        let (name, mut of_delta) = (format!("{name} alone"), models[head].clone());
        let is_written = |index: u32| delta.change(BlockIndex(index)) == Some(Change::Write);
        of_delta.blocks.retain(|index, _| is_written(*index));
        let alone = DeltaSource::new(delta, source);
        keeps_the_contract_of_a_source(&name, &alone, &of_delta).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_catalog_and_its_sources_keep_their_contracts() {
    let place = Place::new();
    for (name, catalog) in place.catalogs().await {
        keeps_the_contract_of_a_catalog(name, &*catalog, &place).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_of_disks_keep_their_contract() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk.raw");
    // The last block is cut, and damaged ones are zero.
    let made = std::fs::File::create(&file).unwrap();
    for index in [0, 1, 4, 20] {
        made.write_all_at(&content("disk", index), index * BLOCK)
            .unwrap();
    }
    made.set_len(21 * BLOCK - 4096).unwrap();
    let mut last = content("disk", 20);
    last.truncate(BLOCK as usize - 4096);
    let held = [0, 1, 4].map(|index| (index as u32, content("disk", index)));
    let model = Model::of(21, held.into_iter().chain([(20, last)]));
    let disk = || Arc::new(DiskSource::open(&file).unwrap());
    keeps_the_contract_of_a_source("a disk", &*disk(), &model).await;
    let past_cache = DiskSource::open_past_cache(&file, disk().geometry()).unwrap();
    keeps_the_contract_of_a_source("a disk, past the page cache", &past_cache, &model).await;
    // What the record calls damaged and holds data was written since.
    let damaged = BlockSet::of_pairs(&[(1, 3), (12, 14)], BlockIndex(21));
    let mut lost = model.clone();
    for index in [2, 12, 13] {
        lost.blocks.insert(index, None);
    }
    let source = DamagedSource::new(disk(), damaged, "disk.raw");
    keeps_the_contract_of_a_source("a damaged disk", &source, &lost).await;
    let cache = Cache::new(ByteSize::mib(16), 4).unwrap();
    let cached = cache.wrap(Arc::new(source));
    keeps_the_contract_of_a_source("a damaged disk, cached", &cached, &lost).await;
    let loop_device = sh(&format!(
        "losetup --find --show --read-only {}",
        file.display()
    ));
    let device = DiskSource::open(Path::new(loop_device.trim()));
    let device = device.map(Arc::new);
    let checked = match &device {
        Ok(device) => Some(
            tokio::spawn({
                let (device, model) = (Arc::clone(device), model.clone());
                async move { keeps_the_contract_of_a_source("a device", &*device, &model).await }
            })
            .await,
        ),
        Err(_) => None,
    };
    drop(device);
    sh(&format!("losetup --detach {loop_device}"));
    checked.expect("a device can be opened").unwrap();
}
