use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use super::*;
use crate::block::{BLOCK_SIZE, Block, Geometry};
use crate::repository::check::check;
use crate::repository::manifest::{FORMAT, SegmentOf, manifest_object};
use crate::repository::pack::{OpenPack, Packer, Spot};
use crate::repository::store::Connection;
use crate::source::Catalog;
use crate::target::VolumeKey;

/// Segments of the volume; its blocks are in as many packs.
const SEGMENTS: u32 = 4;
/// The content of a block that each segment has.
const SHARED: u8 = 100;
/// The content of a block that another snapshot has as well.
const ELSEWHERE: u8 = 22;

/// The blocks of a segment by their places within it: two of its own and the shared one.
fn content(number: u32) -> [(u16, u8); 3] {
    let own = u8::try_from(number * 10).unwrap();
    [(1, own + 1), (7, own + 2), (9, SHARED)]
}

fn geometry() -> Geometry {
    let blocks = SEGMENTS * SEGMENT_BLOCKS;
    Geometry::new(u64::from(blocks) * u64::from(BLOCK_SIZE)).unwrap()
}

fn block(content: u8) -> (Bytes, crate::block::Digest) {
    let bytes = Bytes::from(vec![content; BLOCK_SIZE as usize]);
    let digest = Sha256::digest(&bytes).into();
    (bytes, digest)
}

/// A source that holds these blocks.
struct Blocks(BTreeMap<u32, u8>);

impl BlockSource for Blocks {
    fn geometry(&self) -> Geometry {
        geometry()
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        let block = match self.0.get(&index.0) {
            None => Block::Zero,
            Some(content) => {
                let (bytes, digest) = block(*content);
                Block::Data(bytes, digest)
            }
        };
        std::future::ready(Ok(block)).boxed()
    }

    fn next_extent(&self, from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        let next = self.0.range(from.0..).next();
        let found = next.map(|(index, _)| Extent::of(BlockIndex(*index)));
        std::future::ready(Ok(found)).boxed()
    }

    fn is_known_zero(&self, index: BlockIndex) -> bool {
        !self.0.contains_key(&index.0)
    }

    fn prefetch(&self, _blocks: &[BlockIndex]) -> usize {
        0
    }
}

async fn put_segment(store: &Store, number: u32, blocks: &[(u16, u8)]) -> (SegmentOf, Name) {
    let places = Arc::new(Semaphore::new(blocks.len()));
    let (mut filling, mut packer) = (OpenPack::default(), Packer::new().unwrap());
    for (within, content) in blocks {
        let (bytes, digest) = block(*content);
        let place = Arc::clone(&places).try_acquire_owned().unwrap();
        let stored = packer.pack(bytes);
        filling.push(BlockIndex((*within).into()), digest, stored, place);
    }
    let packed = filling.pack(&[u8::try_from(number).unwrap(); 16]);
    let pack = object("packs", &packed.name);
    store.put(&pack, &packed.pieces).await.unwrap();
    let entry = |(_, digest, spot): &(BlockIndex, _, Spot)| SegmentEntry {
        pack: packed.name,
        spot: *spot,
        digest: *digest,
    };
    let entries = packed.spots.iter().map(entry);
    let segment = Segment::of(blocks.iter().map(|(within, _)| *within).zip(entries));
    let stored = segment.encode(&[0; 16]).unwrap();
    let of = SegmentOf {
        number,
        name: Sha256::digest(&stored).into(),
        blocks: u32::try_from(blocks.len()).unwrap(),
    };
    let name = object("segments", &of.name);
    store.put(&name, &[stored]).await.unwrap();
    (of, packed.name)
}

async fn put_manifest(store: &Store, snapshot: &str, segments: Vec<SegmentOf>) {
    let manifest = Manifest {
        format: FORMAT,
        run: "run".into(),
        snapshot: snapshot.parse().unwrap(),
        volume: Some("vol-0a".into()),
        volume_key: VolumeKey::of_volume("vol-0a"),
        time: std::time::SystemTime::UNIX_EPOCH,
        volume_bytes: geometry().size(),
        base: None,
        description: None,
        tags: BTreeMap::new(),
        written: std::time::SystemTime::UNIX_EPOCH,
        encrypted: None,
        blocks: segments.iter().map(|of| u64::from(of.blocks)).sum(),
        sent_blocks: 0,
        sent_bytes: 0,
        stored_bytes: 0,
        damaged: Vec::new(),
        segments,
    };
    let name = manifest_object(&manifest.name());
    store.put(&name, &[manifest.encode().into()]).await.unwrap();
}

/// A repository of which all packs of one snapshot are lost; another snapshot has one of the blocks.
async fn damaged(folder: &std::path::Path) -> RepositoryCatalog {
    let connection = Connection::new(Duration::from_secs(5));
    let address = format!("file://{}", folder.display()).parse().unwrap();
    let store = Arc::new(Store::open(&address, &connection).unwrap());
    let catalog = RepositoryCatalog::init(Arc::clone(&store)).await.unwrap();
    let mut segments = Vec::new();
    for number in 0..SEGMENTS {
        let (of, pack) = put_segment(&store, number, &content(number)).await;
        store.delete(&object("packs", &pack)).await.unwrap();
        segments.push(of);
    }
    put_manifest(&store, "snap-0a", segments).await;
    let (of, _) = put_segment(&store, SEGMENTS, &[(3, ELSEWHERE)]).await;
    put_manifest(&store, "snap-0b", vec![SegmentOf { number: 0, ..of }]).await;
    catalog
}

/// The blocks of the snapshot that was damaged; none for a marked one.
async fn contents(catalog: &RepositoryCatalog) -> BTreeMap<u32, Option<u8>> {
    let (_, source) = catalog.open(&"snap-0a".parse().unwrap()).await.unwrap();
    let mut contents = BTreeMap::new();
    for number in 0..SEGMENTS {
        for (within, _) in content(number) {
            let index = number * SEGMENT_BLOCKS + u32::from(within);
            let read = match source.read_block(BlockIndex(index)).await {
                Ok(Block::Data(bytes, _)) => bytes.first().copied(),
                Ok(Block::Zero) => panic!("block {index} reads as zeroes"),
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Corrupt);
                    None
                }
            };
            contents.insert(index, read);
        }
    }
    contents
}

fn all() -> BTreeMap<u32, u8> {
    let blocks = (0..SEGMENTS).flat_map(|number| {
        let at = move |within: u16| number * SEGMENT_BLOCKS + u32::from(within);
        content(number).map(|(within, content)| (at(within), content))
    });
    blocks.collect()
}

/// Repairs with the help of a source of these blocks.
async fn repair_from(
    blocks: BTreeMap<u32, u8>,
    catalog: &RepositoryCatalog,
    checked: &RepositoryCheck,
    limits: RepairLimits,
) -> Repaired {
    let origin = RepairOrigin {
        name: "blocks".into(),
        blocks: Arc::new(Blocks(blocks)),
        snapshot: None,
        volume: None,
    };
    let progress = Progress::default();
    let repaired = repair_within(catalog, checked, Some(&origin), limits, &progress).await;
    repaired.unwrap()
}

#[tokio::test]
async fn a_repair_of_many_rounds_finds_the_same_blocks_as_a_single_round() {
    let many = RepairLimits {
        round: 1,
        places: 0,
    };
    // Blocks written: the shared one once in a round.
    for (limits, written) in [(LIMITS, 8), (many, 11)] {
        let folder = tempfile::tempdir().unwrap();
        let catalog = damaged(folder.path()).await;
        let checked = check(&catalog, ReadData::None, &Progress::default())
            .await
            .unwrap();
        assert_eq!(checked.damages.len(), SEGMENTS as usize);
        // Its blocks are not where they belong.
        let elsewhere = all().into_iter().filter(|(_, it)| *it != ELSEWHERE);
        let blocks = elsewhere.map(|(index, content)| (index + 20, content));
        let repaired = repair_from(blocks.collect(), &catalog, &checked, limits).await;
        assert_eq!(repaired.replaced, ["19700101T000000000Z.vol-0a.snap-0a"]);
        assert!(repaired.lost.is_empty() && repaired.left.is_empty());
        assert_eq!(repaired.written_blocks, written);
        let checked = check(&catalog, ReadData::All, &Progress::default())
            .await
            .unwrap();
        assert!(checked.damages.is_empty(), "{checked:?}");
        let there = contents(&catalog).await.into_iter();
        let there: BTreeMap<u32, u8> = there.map(|(at, it)| (at, it.unwrap())).collect();
        assert_eq!(there, all());
    }
}

#[tokio::test]
async fn a_repair_of_many_rounds_marks_blocks_that_no_round_finds() {
    let many = RepairLimits {
        round: 1,
        places: 0,
    };
    for limits in [LIMITS, many] {
        let folder = tempfile::tempdir().unwrap();
        let catalog = damaged(folder.path()).await;
        let checked = check(&catalog, ReadData::None, &Progress::default())
            .await
            .unwrap();
        // The source has the shared block and one of the last segment.
        let last = (SEGMENTS - 1) * SEGMENT_BLOCKS + 1;
        let mut blocks = BTreeMap::from([(9, SHARED)]);
        blocks.extend(all().get_key_value(&last));
        let repaired = repair_from(blocks, &catalog, &checked, limits).await;
        assert!(repaired.left.is_empty(), "{repaired:?}");
        // All but four shared ones, one of the source and one of the other snapshot.
        assert_eq!(repaired.lost[0].blocks, 6);
        let checked = check(&catalog, ReadData::All, &Progress::default())
            .await
            .unwrap();
        assert!(checked.damages.is_empty(), "{checked:?}");
        for (index, content) in contents(&catalog).await {
            let right = all().get(&index).copied();
            let is_found = matches!(right, Some(SHARED | ELSEWHERE)) || index == last;
            assert_eq!(content, right.filter(|_| is_found), "{index}");
        }
    }
}
