use std::io::Write;

use super::*;
use crate::block::{Block, Change, Extent, MAX_VOLUME_SIZE};
use crate::formats::FileLayout;
use crate::source::BlockSource;

/// A delta of random runs: written, zeroed and untouched blocks.
fn random_delta(random: &mut fastrand::Rng, size: u64, blocks: &[u32]) -> Delta {
    let mut delta = Delta::new(None, Geometry::new(size).unwrap());
    for index in blocks {
        match random.u8(..3) {
            0 => delta.insert(BlockIndex(*index), Change::Write),
            1 => delta.insert(BlockIndex(*index), Change::Zero),
            _ => {}
        }
    }
    delta
}

/// The bytes of a block of the image: no two blocks are alike.
fn content(index: BlockIndex, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(u64::from(index.0) + 1).fill(&mut bytes);
    bytes
}

/// Bytes of an image of a geometry; zeroes behind its end.
fn image_bytes(geometry: Geometry, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in geometry.split(offset, len) {
        let block = content(part.index, geometry.block_len(part.index));
        bytes.extend_from_slice(&block[part.start..part.end]);
    }
    bytes.resize(len, 0);
    bytes
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Bytes of the file, by its pieces.
fn bytes(layout: &FileLayout, geometry: Geometry, offset: u64, len: usize) -> Vec<u8> {
    let pieces = layout.pieces(offset, len).map(|piece| match piece {
        Piece::Bytes(bytes) => bytes.to_vec(),
        Piece::Image { offset, len } => image_bytes(geometry, offset, len),
    });
    pieces.collect::<Vec<_>>().concat()
}

/// The volume sizes and the blocks that can change: a short end, and two L2 tables with one between them that is empty.
fn volumes() -> [(u64, Vec<u32>); 2] {
    let far = 2 * ENTRIES;
    [
        (7 * CLUSTER + 5000, (0..8).collect()),
        (
            u64::from(far + 4) * CLUSTER,
            (0..4).chain(far - 2..far + 4).collect(),
        ),
    ]
}

#[test]
fn a_file_made_of_its_pieces_reads_back_block_by_block() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let runtime = runtime();
    for (size, blocks) in volumes() {
        let delta = random_delta(&mut random, size, &blocks);
        let (geometry, written) = (delta.head(), delta.write().clone());
        let layout = Qcow2Layout::new(&delta, None);
        let tables = layout.tables_size();
        let offsets: Vec<_> = written
            .runs()
            .flat_map(Extent::blocks)
            .map(|index| layout.offset_of(index).unwrap())
            .collect();
        let expected: Vec<_> = (0..written.len()).map(|n| tables + n * CLUSTER).collect();
        assert_eq!(offsets, expected, "blocks follow each other");
        let file = FileLayout::Qcow2(layout.into());
        let mut saved = tempfile::NamedTempFile::new().unwrap();
        let len = usize::try_from(file.size()).unwrap();
        let whole = bytes(&file, geometry, 0, len + 100);
        assert_eq!(whole.len(), len);
        saved.write_all(&whole).unwrap();
        for _ in 0..200 {
            let offset = random.usize(..len);
            let some = random.usize(..2000).min(len - offset);
            let part = bytes(&file, geometry, offset as u64, some);
            assert!(part == whole[offset..offset + some], "{some} at {offset}");
        }
        let source = Qcow2Source::open_past_cache(saved.path(), geometry).unwrap();
        for index in blocks.iter().map(|index| BlockIndex(*index)) {
            let read = runtime.block_on(source.read_block(index)).unwrap();
            match read {
                Block::Zero => assert!(!written.contains(index), "{index}"),
                Block::Data(bytes, _) => {
                    assert!(written.contains(index), "{index}");
                    assert!(bytes == content(index, geometry.block_len(index)));
                }
            }
        }
        let mut found = BlockSet::new();
        let mut at = BlockIndex(0);
        while let Some(run) = runtime.block_on(source.next_extent(at)).unwrap() {
            found.insert_extent(run);
            at = run.end();
        }
        let runs = |set: &BlockSet| set.runs().collect::<Vec<_>>();
        assert_eq!(runs(&found), runs(&written));
        let beyond = BlockIndex(geometry.block_count());
        assert!(runtime.block_on(source.read_block(beyond)).is_err());
    }
}

#[test]
fn the_largest_volume_takes_little_memory_and_its_tables_are_computed() {
    let geometry = Geometry::new(MAX_VOLUME_SIZE).unwrap();
    let blocks = geometry.block_count();
    // All blocks but one of each 65,536, so that no chunk of the set is full.
    let mut held = BlockSet::new();
    for start in (0..blocks).step_by(ENTRIES as usize) {
        let run = Extent::new(BlockIndex(start), BlockIndex(start + ENTRIES - 1));
        held.insert_extent(run.unwrap());
    }
    let mut delta = Delta::full(geometry, &held, false);
    delta.insert(BlockIndex(blocks - 1), Change::Zero);
    let layout = Qcow2Layout::new(&delta, None);
    assert!(layout.memory() < 20 << 20, "{}", layout.memory());
    assert_eq!(layout.tables.len(), 2048);
    // A refcount block counts 2^18 clusters: 2^27 of data, those of the tables, and their own.
    assert_eq!(layout.refcount_blocks, 513);
    let data = u64::from(blocks) - 2048;
    assert_eq!(layout.size(), (2 + 513 + 1 + 2048 + data) * CLUSTER);
    assert!(layout.tables_size() < 2 << 30);
    let last = layout.size() - CLUSTER;
    assert_eq!(layout.offset_of(BlockIndex(blocks - 2)), Some(last));
    assert_eq!(layout.offset_of(BlockIndex(blocks - 1)), None);
    let image = geometry.offset(BlockIndex(blocks - 2));
    let piece = Piece::Image {
        offset: image + 7,
        len: 9,
    };
    assert_eq!(layout.piece(last + 7, 9), piece);
    // The last entries of the last L2 table: the last data cluster, and zeroes.
    let end = layout.piece(layout.tables_size() - 16, 16);
    let expected = [(last | ONCE).to_be_bytes(), ZERO.to_be_bytes()].concat();
    assert_eq!(end, Piece::Bytes(expected.into()));
    // The last refcounts that are in use, and the first that is not.
    let used = layout.clusters() % REFCOUNTS;
    let at = (REFCOUNT_BLOCKS + 512) * CLUSTER + used * 2;
    let expected = vec![0, 1, 0, 0];
    assert_eq!(layout.piece(at - 2, 4), Piece::Bytes(expected.into()));
}

#[test]
fn a_backing_file_is_named_as_a_path_with_its_format() {
    let mut delta = Delta::new(None, Geometry::new(3 * CLUSTER).unwrap());
    delta.insert(BlockIndex(1), Change::Zero);
    let path = "../../snapshots/snap-1/disk.raw";
    let backing = Backing::raw(path.into()).unwrap();
    let layout = Qcow2Layout::new(&delta, Some(&backing));
    let Piece::Bytes(header) = layout.piece(0, 512) else {
        panic!("no header");
    };
    let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
    let at = usize::try_from(number(12)).unwrap();
    assert_eq!(&header[at..at + path.len()], path.as_bytes());
    assert_eq!(number(16) as usize, path.len());
    assert_eq!((number(104), number(108)), (BACKING_FORMAT, 3));
    assert_eq!(&header[112..115], b"raw");
    assert_eq!((number(120), number(124)), (0, 0), "the last extension");
    assert_eq!(at, 128);
    // QEMU would take these for a protocol, or for something else than they are.
    let long = format!("./{}", "a".repeat(1022));
    for wrong in ["json:{}", "nbd://x", "a.raw", "", "fat:.", "./a\0b", &long] {
        assert!(Backing::raw(wrong.into()).is_err(), "{wrong:?}");
    }
    for right in ["./a,b:c\"d", "../json:{}", "/a b"] {
        assert!(Backing::raw(right.into()).is_ok(), "{right:?}");
    }
}

#[test]
fn what_something_else_made_of_an_image_is_an_error_and_no_block() {
    let mut delta = Delta::new(None, Geometry::new(4 * CLUSTER).unwrap());
    delta.insert(BlockIndex(1), Change::Write);
    let geometry = delta.head();
    let file = FileLayout::Qcow2(Qcow2Layout::new(&delta, None).into());
    let len = usize::try_from(file.size()).unwrap();
    let good = bytes(&file, geometry, 0, len);
    let runtime = runtime();
    let read = |bytes: &[u8]| {
        let mut saved = tempfile::NamedTempFile::new().unwrap();
        saved.write_all(bytes).unwrap();
        let source = Qcow2Source::open_past_cache(saved.path(), geometry)?;
        runtime.block_on(source.read_block(BlockIndex(1)))
    };
    assert!(matches!(read(&good), Ok(Block::Data(..))));
    let l2 = usize::try_from(4 * CLUSTER).unwrap() + 8;
    let l1 = usize::try_from(3 * CLUSTER).unwrap();
    let entry = |value: u64| value.to_be_bytes().to_vec();
    for (at, bytes, why) in [
        (0, b"QFI\0".to_vec(), "magic"),
        (7, vec![2], "version"),
        (15, vec![9], "backing file"),
        (23, vec![16], "cluster size"),
        (35, vec![1], "encryption"),
        (40, vec![0xff], "L1 table"),
        (63, vec![1], "snapshots"),
        (79, vec![1], "an incompatible feature"),
        (99, vec![5], "refcounts"),
        (l1, entry(ONCE | (1 << 40)), "L2 table outside of the file"),
        (
            l1,
            entry(ONCE | (4 * CLUSTER + 512)),
            "L2 table at no cluster",
        ),
        (l2, entry(ONCE | (1 << 40)), "data outside of the file"),
        (l2, entry(ONCE | (CLUSTER + 512)), "data at no cluster"),
        (l2, entry(COMPRESSED | CLUSTER), "compressed"),
        (79, vec![8], "another compression"),
        (l2, entry(ONCE | (1 << 57) | CLUSTER), "reserved bit"),
    ] {
        let mut wrong = good.clone();
        wrong[at..at + bytes.len()].copy_from_slice(&bytes);
        let refused = read(&wrong).unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid, "{why}");
    }
    for short in [0, 50, 103, 104, 4096, len - 1] {
        assert!(read(&good[..short]).is_err(), "{short} bytes");
    }
    for zero in [0, ZERO, ZERO | ONCE | (5 * CLUSTER)] {
        let mut zeroed = good.clone();
        zeroed[l2..l2 + 8].copy_from_slice(&zero.to_be_bytes());
        assert!(matches!(read(&zeroed), Ok(Block::Zero)), "{zero:x}");
    }
}

/// The blocks of an image, each compressible or not.
fn half_random(index: BlockIndex, len: usize) -> Vec<u8> {
    let mut bytes = content(index, len);
    if !index.0.is_multiple_of(3) {
        bytes[len / 4..].fill(7);
    }
    bytes
}

#[test]
fn compressed_blocks_read_back_and_take_less_and_damage_is_an_error() {
    let size = 30 * CLUSTER + 5000;
    let geometry = Geometry::new(size).unwrap();
    let mut delta = Delta::new(None, geometry);
    for index in (0..31).filter(|index| index % 5 != 4) {
        delta.insert(BlockIndex(index), Change::Write);
    }
    let layout = std::sync::Arc::new(Qcow2Layout::packed(&delta));
    let saved = tempfile::NamedTempFile::new().unwrap();
    let file = saved.as_file();
    file.set_len(layout.tables_size()).unwrap();
    let tables = FileLayout::Qcow2(std::sync::Arc::clone(&layout));
    for range in layout.fixed() {
        let len = usize::try_from(range.end - range.start).unwrap();
        let bytes = bytes(&tables, geometry, range.start, len);
        std::os::unix::fs::FileExt::write_all_at(file, &bytes, range.start).unwrap();
    }
    let blocks: Vec<_> = delta.write().runs().flat_map(Extent::blocks).collect();
    let packed = PackedQcow2::new(std::sync::Arc::clone(&layout), None);
    let (first, rest) = blocks.split_at(10);
    for index in first.iter().rev() {
        let bytes = half_random(*index, geometry.block_len(*index));
        packed.write(file, *index, &bytes).unwrap();
    }
    packed.extend(file).unwrap();
    // Another process goes on, and writes a block again.
    let packed = PackedQcow2::new(std::sync::Arc::clone(&layout), Some(packed.size()));
    for index in rest.iter().chain(&first[3..5]) {
        let bytes = half_random(*index, geometry.block_len(*index));
        packed.write(file, *index, &bytes).unwrap();
    }
    packed.zero(file, Extent::of(BlockIndex(1))).unwrap();
    packed.finish(file).unwrap();
    let len = file.metadata().unwrap().len();
    assert_eq!(len, packed.size());
    let uncompressed = Qcow2Layout::new(&delta, None).size();
    assert!(len < uncompressed * 3 / 4, "{len} of {uncompressed}");

    let runtime = runtime();
    let read = |index| {
        let source = Qcow2Source::open_past_cache(saved.path(), geometry)?;
        runtime.block_on(source.read_block(BlockIndex(index)))
    };
    for index in 0..31 {
        let is_written = index % 5 != 4 && index != 1;
        match read(index).unwrap() {
            Block::Zero => assert!(!is_written, "{index}"),
            Block::Data(bytes, _) => {
                let len = geometry.block_len(BlockIndex(index));
                assert!(is_written && bytes == half_random(BlockIndex(index), len));
            }
        }
    }
    let refused = packed.write(file, BlockIndex(4), b"not in the plan");
    assert!(refused.is_err());
    // A frame that is damaged, or another one.
    let at = layout.entry_offset(BlockIndex(2)).unwrap();
    let mut entry = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut entry, at).unwrap();
    let entry = u64::from_be_bytes(entry);
    assert_ne!(entry & COMPRESSED, 0);
    let write = |bytes: &[u8], at| {
        std::os::unix::fs::FileExt::write_all_at(file, bytes, at).unwrap();
    };
    for wrong in [
        entry + 512,
        entry | ONCE,
        entry | (0x7ff << 51),
        entry - 512,
    ] {
        write(&wrong.to_be_bytes(), at);
        assert_eq!(read(2).unwrap_err().kind(), Kind::Invalid, "{wrong:x}");
    }
    write(&entry.to_be_bytes(), at);
    assert!(read(2).is_ok());
    write(&[0; 64], entry & ((1 << 51) - 1));
    assert_eq!(read(2).unwrap_err().kind(), Kind::Invalid);
    let half = Qcow2Source::open_past_cache(saved.path(), geometry).unwrap();
    let half = half.half_written();
    let found = runtime.block_on(half.read_block(BlockIndex(2))).unwrap();
    assert!(matches!(found, Block::Data(_, digest) if digest == [0xdb; 32]));
    assert!(runtime.block_on(half.read_block(BlockIndex(3))).is_ok());
}

#[test]
fn frames_and_clusters_never_overlap_and_take_no_more_clusters_than_blocks() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut delta = Delta::new(None, Geometry::new(40 * CLUSTER).unwrap());
    (0..40).for_each(|index| delta.insert(BlockIndex(index), Change::Write));
    let layout = std::sync::Arc::new(Qcow2Layout::packed(&delta));
    let packed = PackedQcow2::new(std::sync::Arc::clone(&layout), None);
    let file = tempfile::tempfile().unwrap();
    file.set_len(layout.tables_size()).unwrap();
    let mut taken = Vec::new();
    for index in (0..40).map(BlockIndex) {
        let mut block = content(index, BLOCK_SIZE as usize);
        let random_bytes = random.usize(..block.len() * 4 / 3).min(block.len());
        block[random_bytes..].fill(0);
        packed.write(&file, index, &block).unwrap();
        let mut entry = [0; 8];
        let at = layout.entry_offset(index).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut entry, at).unwrap();
        let entry = u64::from_be_bytes(entry);
        taken.push(match entry & COMPRESSED {
            0 => (entry & OFFSET, CLUSTER),
            _ => packed::packed_place(entry),
        });
    }
    taken.sort_unstable();
    let mut at = layout.tables_size();
    for (start, len) in taken {
        assert!(start >= at && start % 512 == 0, "{start} overlaps");
        assert!(len < CLUSTER || start % CLUSTER == 0);
        at = start + len;
    }
    assert!(at <= packed.size() && packed.size().is_multiple_of(CLUSTER));
    assert!(packed.size() <= layout.tables_size() + 40 * CLUSTER);
}
