//! The delta from a removed base: by its tombstone, and by the digests of a volume that holds it.

use super::*;
use crate::source::{Catalog, HeldDigest, HeldDigests};

/// A volume of this many blocks that holds the content of a snapshot up to the shorter end.
struct HeldVolume {
    content: Content,
    blocks: u32,
    /// Blocks with unknown digests.
    unknown: Vec<u32>,
    /// How many digests are answered at most.
    answered: u32,
}

impl HeldVolume {
    fn of(made: &Made) -> Self {
        Self {
            content: made.content,
            blocks: BLOCKS,
            unknown: Vec::new(),
            answered: BLOCKS,
        }
    }
}

impl HeldDigests for HeldVolume {
    fn geometry(&self) -> Geometry {
        Geometry::new(u64::from(self.blocks * BLOCK_SIZE)).unwrap()
    }

    fn held_digests(&self, extent: Extent) -> BoxFuture<'_, Result<Vec<HeldDigest>>> {
        let answered = extent.blocks().filter(|index| index.0 < self.answered);
        let digests = answered.map(|index| {
            let content = self.content[index.0 as usize];
            match content {
                _ if self.unknown.contains(&index.0) => HeldDigest::Unknown,
                content if content > 0 && index.0 < self.blocks => {
                    HeldDigest::Data(bytes(content).1)
                }
                _ => HeldDigest::Zero,
            }
        });
        std::future::ready(Ok(digests.collect())).boxed()
    }
}

/// `4w 5z`: the changes of a delta.
fn shown(delta: &Delta) -> String {
    let blocks = (0..BLOCKS).filter_map(|index| {
        Some(match delta.change(BlockIndex(index))? {
            Change::Write => format!("{index}w"),
            Change::Zero => format!("{index}z"),
        })
    });
    blocks.collect::<Vec<_>>().join(" ")
}

async fn by_digests(catalog: &RepositoryCatalog, held: &HeldVolume, head: &Made) -> String {
    let found = catalog.delta_of_digests(held, &head.id()).await.unwrap();
    shown(&found.unwrap().0)
}

#[test]
fn a_removed_base_differs_in_the_same_blocks_as_before_by_its_tombstone_and_by_its_digests() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    with_seed(seed, async {
        let store = HostileStore::new();
        let process = Process::honest(&store);
        process.init().await;
        for volume in 0..12 {
            let made = |number, content| Made {
                volume,
                number,
                content,
            };
            // Few values: some blocks are the same.
            let random = || std::array::from_fn(|_| fastrand::u8(0..4));
            let (base, head) = (made(1, random()), made(2, random()));
            process.sync(&base, false, &[]).await.unwrap();
            process.sync(&head, false, &[]).await.unwrap();
            let catalog = process.catalog().await.unwrap();
            let (before, _) = catalog.delta(&base.id(), &head.id()).await.unwrap();
            let before = shown(&before);
            process.remove(&base).await.unwrap();
            let catalog = process.catalog().await.unwrap();
            let absent = catalog.delta(&base.id(), &head.id()).await.err().unwrap();
            assert_eq!(absent.kind(), Kind::NotFound);
            let (removed, _) = catalog
                .delta_of_removed(&base.id(), &head.id())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(shown(&removed), before, "{base:?} {head:?}");
            let held = HeldVolume::of(&base);
            assert_eq!(by_digests(&catalog, &held, &head).await, before);
        }
        let catalog = process.catalog().await.unwrap();
        let never = "snap-0777".parse().unwrap();
        let head = Made {
            volume: 0,
            number: 2,
            content: [0; BLOCKS as usize],
        };
        let found = catalog.delta_of_removed(&never, &head.id()).await.unwrap();
        assert!(found.is_none());
    });
}

#[test]
fn blocks_with_unknown_digests_are_written_or_zeroed() {
    with_seed(7, async {
        let store = HostileStore::new();
        let process = Process::honest(&store);
        process.init().await;
        process.sync(&B, false, &[]).await.unwrap();
        let catalog = process.catalog().await.unwrap();
        let same = HeldVolume::of(&B);
        assert_eq!(by_digests(&catalog, &same, &B).await, "");
        let unknown = HeldVolume {
            unknown: vec![1, 5],
            ..HeldVolume::of(&B)
        };
        assert_eq!(by_digests(&catalog, &unknown, &B).await, "1w 5z");
        let short = HeldVolume {
            answered: 5,
            ..HeldVolume::of(&B)
        };
        assert_eq!(by_digests(&catalog, &short, &B).await, "5z 6w 7w");
        // Blocks behind the end of the volume are zeroed, unless they are written.
        let mut small = HeldVolume::of(&B);
        small.blocks = 4;
        assert_eq!(by_digests(&catalog, &small, &B).await, "4w 5z 6w 7w");
    });
}
