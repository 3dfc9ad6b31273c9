use std::os::unix::fs::MetadataExt;

use super::*;

/// A file of `pattern` bytes, and one of holes but for a page.
fn files(folder: &Path, size: usize) -> (File, File) {
    let open = |name: &str| {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        options.open(folder.join(name)).unwrap()
    };
    let (full, sparse) = (open("full"), open("sparse"));
    full.write_all_at(&vec![7; size], 0).unwrap();
    sparse.set_len(size as u64).unwrap();
    sparse.write_all_at(&[7; PIECE], 1 << 20).unwrap();
    (full, sparse)
}

fn bytes(file: &File) -> Vec<u8> {
    let mut bytes = vec![1; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn runs_that_are_not_zero_are_found_in_pieces() {
    let mut bytes = vec![0; 5 * PIECE + 10];
    assert!(not_zero(&bytes).is_empty());
    for at in [PIECE, 2 * PIECE + 5, 4 * PIECE - 1, 5 * PIECE + 9] {
        bytes[at] = 1;
    }
    assert_eq!(
        not_zero(&bytes),
        [(PIECE, 4 * PIECE), (5 * PIECE, 5 * PIECE + 10)]
    );
    bytes[3 * PIECE..4 * PIECE].fill(0);
    bytes[0] = 1;
    let expected = [(0, 3 * PIECE), (5 * PIECE, 5 * PIECE + 10)];
    assert_eq!(not_zero(&bytes), expected);
    assert!(not_zero(&[]).is_empty());
}

#[test]
fn overwriting_leaves_zeroes_unallocated() {
    let folder = tempfile::tempdir().unwrap();
    let size = 3 << 20;
    let (full, sparse) = files(folder.path(), size);
    for file in [&full, &sparse] {
        // Neither end is a multiple of anything.
        overwrite(file, 5, size as u64 - 12).unwrap();
    }
    let mut expected = vec![0; size];
    assert_eq!(bytes(&sparse), expected);
    expected[..5].fill(7);
    expected[size - 7..].fill(7);
    assert_eq!(bytes(&full), expected);
    sparse.sync_all().unwrap();
    assert!(sparse.metadata().unwrap().blocks() * 512 <= 64 << 10);
    // Shorter than it should be: an error, not a hole.
    assert!(overwrite(&full, size as u64 - 5, 10).is_err());
}

#[tokio::test]
async fn zeroes_are_holes_and_neighbours_stand() {
    let folder = tempfile::tempdir().unwrap();
    let size = 3 * BLOCK_SIZE as usize + 100;
    let (full, _) = files(folder.path(), size);
    let before = full.metadata().unwrap().blocks();
    let geometry = Geometry::new(size as u64).unwrap();
    let raw = Raw::new(&folder.path().join("full"), full, geometry, RawKind::File);
    raw.write_zeroes(Extent::of(BlockIndex(1))).await.unwrap();
    raw.write_zeroes(Extent::of(BlockIndex(3))).await.unwrap();
    raw.write_zeroes(Extent::of(BlockIndex(9))).await.unwrap();
    let block = Bytes::from(vec![9; BLOCK_SIZE as usize]);
    raw.write_block(BlockIndex(2), block).await.unwrap();
    raw.flush().await.unwrap();
    let mut expected = vec![7; size];
    let block = BLOCK_SIZE as usize;
    expected[block..2 * block].fill(0);
    expected[2 * block..3 * block].fill(9);
    expected[3 * block..].fill(0);
    assert_eq!(bytes(&raw.file), expected);
    assert!(raw.file.metadata().unwrap().blocks() < before);
}
