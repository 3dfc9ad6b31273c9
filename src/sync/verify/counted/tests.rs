use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;
use crate::block::Geometry;
use crate::source::DiskSource;

const BLOCKS: u32 = 16;

fn bytes(of: u8) -> Vec<u8> {
    vec![of; BYTES]
}

fn image(path: &Path, blocks: impl Fn(u32) -> u8) {
    let all: Vec<u8> = (0..BLOCKS).flat_map(|index| bytes(blocks(index))).collect();
    std::fs::write(path, all).unwrap();
}

fn digests(path: &Path, run: &str, blocks: impl Fn(u32) -> u8) -> Digests {
    let file = Digests::create(path, run, geometry(), true).unwrap();
    let entries = (0..BLOCKS).map(|index| {
        let digest = <sha2::Sha256 as sha2::Digest>::digest(bytes(blocks(index)));
        (BlockIndex(index), Some(digest.into()))
    });
    file.write(&entries.collect::<Vec<_>>()).unwrap();
    file
}

fn geometry() -> Geometry {
    Geometry::new(u64::from(BLOCKS) * u64::from(BLOCK_SIZE)).unwrap()
}

fn set(blocks: &[u32]) -> BlockSet {
    let mut set = BlockSet::new();
    for index in blocks {
        set.insert(BlockIndex(*index));
    }
    set
}

/// In the base a block has the bytes 1; in the head those of the plan, 0 to 7, have 2, but for block 6, which is the same in both.
fn head(index: u32) -> u8 {
    if index < 8 && index != 6 { 2 } else { 1 }
}

#[test]
fn only_equal_counts_prove_anything() {
    for (kernel, ours, proves) in [(0, 0, true), (7, 7, true), (8, 7, false), (6, 7, false)] {
        assert_eq!(proves_untouched(kernel, ours), proves);
    }
}

#[tokio::test]
async fn the_blocks_of_a_killed_run_are_known_if_the_kernel_counted_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    image(&at("head"), head);
    let source = DiskSource::open(&at("head")).unwrap();
    let base = digests(&at("base"), "old", |_| 1);
    let whole = |name: &str| digests(&at(name), "run", |index| if index < 2 { 2 } else { 1 });
    // Blocks that the device has beside those that are done, what else is in it, sectors counted, blocks found.
    type Row<'a> = (&'a str, &'a [(u32, u8)], u64, Option<&'a [u32]>);
    let block = SECTORS;
    let rows: [Row<'_>; 9] = [
        ("nothing after the checkpoint", &[], 2 * block, Some(&[])),
        ("two blocks", &[(2, 2), (4, 2)], 4 * block, Some(&[2, 4])),
        (
            "and one that is the same in both",
            &[(2, 2)],
            4 * block,
            None,
        ),
        (
            "a foreign write elsewhere",
            &[(2, 2), (12, 9)],
            4 * block,
            None,
        ),
        (
            "... that was not done by the run",
            &[(12, 9)],
            3 * block,
            None,
        ),
        ("a foreign write into the plan", &[(3, 9)], 3 * block, None),
        (
            "sectors of a part of a block",
            &[(2, 2)],
            3 * block + 8,
            None,
        ),
        ("fewer than were written", &[], block, None),
        ("more than a run writes", &[(2, 2)], 99 * block, None),
    ];
    for (what, written, kernel_sectors, expected) in rows {
        let device = at("device");
        image(&device, |index| if index < 2 { 2 } else { 1 });
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(&device)
            .unwrap();
        for (index, of) in written {
            let offset = u64::from(*index) * u64::from(BLOCK_SIZE);
            file.write_all_at(&bytes(*of), offset).unwrap();
        }
        let run = KilledRun {
            done: &set(&[0, 1]),
            writes: &set(&[2, 3, 4, 5, 6, 7]),
            interval: 6,
            zeroes: &set(&[]),
            zero_interval: 6,
            counts_zeroes: false,
            digests: &whole("run"),
            base: &base,
            kernel_sectors,
        };
        let reader = Arc::new(DiskSource::open_past_cache(&device, geometry()).unwrap());
        let found = written_by_run(reader, &source, &run, &Stop::never())
            .await
            .unwrap();
        let found = found.map(|found| found.iter().map(|(index, _)| index.0).collect::<Vec<_>>());
        assert_eq!(found.as_deref(), expected, "{what}");
    }
}

#[tokio::test]
async fn digests_that_do_not_speak_of_every_block_prove_nothing_nor_do_zeroes_that_are_not_counted()
{
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    image(&at("head"), head);
    image(&at("device"), |index| if index < 2 { 2 } else { 1 });
    let source = DiskSource::open(&at("head")).unwrap();
    let base = digests(&at("base"), "old", |_| 1);
    let run = digests(&at("run"), "run", |index| if index < 2 { 2 } else { 1 });
    let part = Digests::create(&at("part"), "run", geometry(), false).unwrap();
    let zeroed = digests(&at("zeroed"), "run", |_| 2);
    zeroed.write(&[(BlockIndex(1), None)]).unwrap();
    for (digests, base, counts_zeroes, proves) in [
        (&run, &base, false, true),
        (&part, &base, false, false),
        (&run, &part, false, false),
        (&zeroed, &base, false, false),
        (&zeroed, &base, true, true),
    ] {
        let run = KilledRun {
            done: &set(&[0, 1]),
            writes: &set(&[2, 3]),
            interval: 6,
            zeroes: &set(&[]),
            zero_interval: 6,
            counts_zeroes,
            digests,
            base,
            kernel_sectors: 2 * SECTORS,
        };
        let reader = DiskSource::open_past_cache(&at("device"), geometry()).unwrap();
        let found = written_by_run(Arc::new(reader), &source, &run, &Stop::never()).await;
        assert_eq!(found.unwrap().is_some(), proves, "{:?}", digests.path());
    }
}

#[tokio::test]
async fn zeroed_blocks_are_the_runs_where_the_device_zeroes_them_whole() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    image(&at("head"), |index| if index == 5 { 0 } else { 1 });
    let source = DiskSource::open(&at("head")).unwrap();
    let base = digests(&at("base"), "old", |_| 1);
    let run = digests(&at("run"), "run", |_| 1);
    for (now, counts_zeroes, expected) in [
        (0, true, Some(vec![(BlockIndex(5), None)])),
        (0, false, None),
        (9, true, None),
    ] {
        image(&at("device"), |index| if index == 5 { now } else { 1 });
        let run = KilledRun {
            done: &set(&[]),
            writes: &set(&[6]),
            interval: 6,
            zeroes: &set(&[5]),
            zero_interval: 6,
            counts_zeroes,
            digests: &run,
            base: &base,
            kernel_sectors: SECTORS,
        };
        let reader = DiskSource::open_past_cache(&at("device"), geometry()).unwrap();
        let found = written_by_run(Arc::new(reader), &source, &run, &Stop::never()).await;
        assert_eq!(found.unwrap(), expected, "{now} {counts_zeroes}");
    }
}
