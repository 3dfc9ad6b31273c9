use super::*;
use crate::block::BLOCK_SIZE;
use crate::evidence::folder::{BLOCKS, NewFolder};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// The block list of a volume that ends within a block: holes, zeroes, data, a short last block.
fn written(is_of_ebs: bool) -> (Vec<u8>, FileFacts, BlockCounts, Geometry) {
    let scratch = tempfile::tempdir().unwrap();
    let folder = NewFolder::create(&scratch.path().join("e")).unwrap();
    let geometry = Geometry::new(9 * BLOCK + 100).unwrap();
    let file = folder.file(BLOCKS).unwrap();
    let mut writer = BlockListWriter::begin(file, geometry, is_of_ebs).unwrap();
    for (index, is_zero) in [(2, false), (3, true), (5, true), (9, false)] {
        let block = HeldBlock {
            index: BlockIndex(index),
            is_zero,
            sha256: match is_zero {
                true => digest_of_zeroes(BLOCK_SIZE as usize),
                false => [u8::try_from(index).unwrap(); 32],
            },
            is_damaged: index == 5,
        };
        writer.add(&block).unwrap();
    }
    let (facts, counts) = writer.end().unwrap();
    let text = std::fs::read(folder.path().join(BLOCKS)).unwrap();
    (text, facts, counts, geometry)
}

fn read(text: &[u8], geometry: Geometry) -> Result<(Vec<ListedRun>, (String, u64, BlockCounts))> {
    let mut reader = BlockListReader::begin(text, geometry)?;
    let mut runs = Vec::new();
    while let Some(run) = reader.next_run()? {
        runs.push(run);
    }
    Ok((runs, reader.end()))
}

#[test]
fn a_block_list_covers_the_volume_and_reads_as_it_was_written() {
    for is_of_ebs in [true, false] {
        let (text, facts, counts, geometry) = written(is_of_ebs);
        let (runs, (sha256, bytes, read_counts)) = read(&text, geometry).unwrap();
        let shape: Vec<_> = runs
            .iter()
            .map(|run| (run.extent.start().0, run.extent.count(), run.state))
            .collect();
        assert_eq!(
            shape,
            [
                (0, 2, BlockState::Hole),
                (2, 1, BlockState::Data([2; 32])),
                (3, 1, BlockState::Zero),
                (4, 1, BlockState::Hole),
                (5, 1, BlockState::Damaged),
                (6, 3, BlockState::Hole),
                (9, 1, BlockState::Data([9; 32])),
            ]
        );
        assert_eq!((sha256, bytes), (facts.sha256, facts.bytes));
        assert_eq!(counts, read_counts);
        let of_each = (counts.data, counts.zero, counts.hole, counts.damaged);
        assert_eq!(of_each, (2, 1, 6, 1));
        let text = String::from_utf8(text).unwrap();
        let checksum = STANDARD.encode([2; 32]);
        assert_eq!(text.contains(&checksum), is_of_ebs, "{text}");
        assert!(
            text.contains("\n4,1,hole,,\n5,1,damaged,,\n6,3,hole,,\n"),
            "{text}"
        );
    }
}

#[test]
fn every_byte_counts_and_no_text_panics() {
    let (text, .., geometry) = written(true);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    fastrand::seed(seed);
    let good = read(&text, geometry).unwrap();
    for at in 0..text.len() {
        let mut changed = text.clone();
        changed[at] = changed[at].wrapping_add(fastrand::u8(1..));
        if let Ok(found) = read(&changed, geometry) {
            panic!("byte {at}: {:?} as {:?}", found.0, good.0);
        }
        assert!(read(&text[..at], geometry).is_err(), "cut at {at}");
    }
    let more = |tail: &str| [text.as_slice(), tail.as_bytes()].concat();
    for tail in ["\n", "10,1,hole,,\n", "x"] {
        assert!(read(&more(tail), geometry).is_err(), "{tail:?}");
    }
    let of = |lines: &str| [HEAD, lines].concat();
    for lines in [
        "0,10,hole,,",
        "00,10,hole,,\n",
        "+0,10,hole,,\n",
        "0,11,hole,,\n",
        "0,0,hole,,\n",
        "1,9,hole,,\n",
        "0,4294967295,hole,,\n",
        "4294967295,4294967295,hole,,\n",
        "0,10,hole,,\r\n",
        "0,10,zero,,\n",
        "0,10,damaged,,\n",
        "0,5,hole,,\n0,5,hole,,\n",
        "0,5,hole,,\n5,5,hole,,\n5,5,hole,,\n",
        &"9".repeat(100_000),
    ] {
        let error = read(of(lines).as_bytes(), geometry).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{lines}");
    }
    assert!(read(of("0,10,hole,,\n").as_bytes(), geometry).is_ok());
    assert!(read(of("0,5,hole,,\n5,5,hole,,\n").as_bytes(), geometry).is_ok());
}
