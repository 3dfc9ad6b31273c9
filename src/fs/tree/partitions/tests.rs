use std::time::Duration;

use futures_util::future::ready;
use tokio::sync::watch;

use super::*;
use crate::block::{BLOCK_SIZE, Block, BlockIndex, Extent, Geometry};
use crate::fs::tree::{Ownership, Provenance};
use crate::image::ReadaheadBudget;
use crate::snapshot::Snapshot;
use crate::source::{BlockSource, Catalog, Changes};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// A volume of eight blocks, of which each second one is held. Blocks come when the gate is open.
#[derive(Clone)]
struct Stripes {
    gate: watch::Receiver<bool>,
}

fn is_held(block: u64) -> bool {
    block % 2 == 1
}

fn byte(offset: u64) -> u8 {
    match is_held(offset / BLOCK) {
        true => u8::try_from(offset % 251).unwrap(),
        false => 0,
    }
}

impl BlockSource for Stripes {
    fn geometry(&self) -> Geometry {
        Geometry::new(8 * BLOCK).unwrap()
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        let start = u64::from(index.0) * BLOCK;
        let bytes: Vec<u8> = (start..start + BLOCK).map(byte).collect();
        let block = match is_held(index.0.into()) {
            true => Block::Data(bytes.into(), [0; 32]),
            false => Block::Zero,
        };
        let mut gate = self.gate.clone();
        async move {
            gate.wait_for(|is_open| *is_open).await.unwrap();
            Ok(block)
        }
        .boxed()
    }

    fn next_extent(&self, from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        let next = from.0 | 1;
        ready(Ok((next < 8).then(|| Extent::of(BlockIndex(next))))).boxed()
    }

    fn is_known_zero(&self, _: BlockIndex) -> bool {
        false
    }

    fn prefetch(&self, _: &[BlockIndex]) -> usize {
        0
    }
}

impl Catalog for Stripes {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Arc<Snapshot>>>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn open<'a>(
        &'a self,
        id: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<(Snapshot, Arc<dyn BlockSource>)>> {
        let source: Arc<dyn BlockSource> = Arc::new(self.clone());
        ready(Ok((Snapshot::unknown(id.clone()), source))).boxed()
    }

    fn delta<'a>(&'a self, _: &'a SnapshotId, _: &'a SnapshotId) -> BoxFuture<'a, Result<Changes>> {
        ready(Err(Error::new(Kind::Unrelated, "one volume"))).boxed()
    }
}

#[tokio::test]
async fn ranges_of_an_image_are_one_file_with_its_bytes_and_holes() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (_open, gate) = watch::channel(true);
    let image = Image::new(Arc::new(Stripes { gate }), ReadaheadBudget::new(4));
    let image = Arc::new(image);
    for _ in 0..4 {
        let ranges: Vec<ByteRange> = (0..random.usize(1..4))
            .map(|_| {
                let start = random.u64(..7 * BLOCK);
                let size = random.u64(1..=(8 * BLOCK - start).min(3 * BLOCK));
                ByteRange { start, size }
            })
            .collect();
        let places: Vec<u64> = ranges
            .iter()
            .flat_map(|range| range.start..range.start + range.size)
            .collect();
        let size = places.len() as u64;
        let file = RangeImage {
            image: Arc::clone(&image),
            ranges: ranges.into(),
        };
        assert_eq!(file.size(), size);
        for _ in 0..8 {
            let offset = random.u64(..=size + 10);
            let len = random.usize(..2 * BLOCK_SIZE as usize);
            let start = usize::try_from(offset).unwrap().min(places.len());
            let end = (start + len).min(places.len());
            let expected: Vec<u8> = places[start..end].iter().map(|at| byte(*at)).collect();
            assert!(file.read_at(offset, len).await.unwrap() == expected);
            for to_data in [true, false] {
                let kind = |at: &u64| is_held(at / BLOCK) == to_data;
                let next = places[start..].iter().position(kind);
                let next = next.map(|next| (start + next) as u64);
                // The end of the file is a hole.
                let next = match to_data {
                    true => next,
                    false => (offset < size).then(|| next.unwrap_or(size)),
                };
                assert_eq!(file.seek(offset, to_data).await.unwrap(), next);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_does_not_come_is_an_error_in_time_and_the_read_continues() {
    let (open, gate) = watch::channel(false);
    let tree = Tree::new(
        Arc::new(Stripes { gate }),
        Ownership {
            uid: 0,
            gid: 0,
            mode: 0o400,
        },
        ReadaheadBudget::new(4),
        Duration::from_millis(10),
        Provenance::default(),
    );
    let id: SnapshotId = "snap-0a".parse().unwrap();
    let head = tree.entry(&id).await.unwrap();
    let listed = tree.partition_lines(&head).await;
    assert_eq!(listed.unwrap_err().kind(), Kind::Pending);
    open.send_replace(true);
    let lines = tree.partition_lines(&head).await.unwrap();
    let names: Vec<_> = lines.iter().map(|line| line.name.as_str()).collect();
    assert_eq!(names, [DESCRIPTION]);
}
