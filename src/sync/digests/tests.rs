use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::header::FIELDS;
use super::*;
use crate::block::BLOCK_SIZE;

const RUN: &str = "0123456789abcdef0123456789abcdef";

fn geometry(blocks: u64) -> Geometry {
    Geometry::new(blocks * u64::from(BLOCK_SIZE)).unwrap()
}

fn extent(start: u32, end: u32) -> Extent {
    Extent::new(BlockIndex(start), BlockIndex(end)).unwrap()
}

fn digest(index: u32) -> Digest {
    let mut digest = [1; 32];
    digest[..4].copy_from_slice(&index.to_le_bytes());
    digest
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state-digests");
    (folder, path)
}

#[test]
fn hole_zero_unknown_and_data_are_distinct_and_survive_reopening() {
    let (_folder, path) = folder();
    let new = Digests::create(&path, RUN, geometry(5000), true).unwrap();
    let mut expected = vec![DigestEntry::Hole; 5000];
    let entries: Vec<_> = [0, 1, 1023, 1024, 1025, 2047, 4999]
        .map(|index| (BlockIndex(index), Some(digest(index))))
        .into_iter()
        .chain([(BlockIndex(7), None), (BlockIndex(8), None)])
        .collect();
    new.write(&entries).unwrap();
    for (index, digest) in &entries {
        expected[index.0 as usize] = (*digest).into();
    }
    new.make_unknown(&[extent(100, 2000), extent(4000, u32::MAX)])
        .unwrap();
    expected[100..2000].fill(DigestEntry::Unknown);
    expected[4000..].fill(DigestEntry::Unknown);
    new.make_holes(&[extent(200, 1500), extent(6000, 7000)])
        .unwrap();
    expected[200..1500].fill(DigestEntry::Hole);
    new.write_entries(&[(BlockIndex(300), DigestEntry::Zero)])
        .unwrap();
    expected[300] = DigestEntry::Zero;
    drop(new);
    let digests = Digests::open(&path).unwrap().unwrap();
    assert_eq!((digests.run(), digests.is_whole()), (RUN, true));
    assert_eq!(digests.geometry(), geometry(5000));
    assert_eq!(digests.path(), path);
    assert!(digests.read(extent(0, 5000)).unwrap() == expected);
    let read: Vec<_> = digests
        .read_pieces(extent(3, 5000))
        .flat_map(|piece| piece.unwrap().1)
        .collect();
    assert!(read == expected[3..]);
    // Beyond the volume nothing is read or written.
    assert_eq!(
        digests.read(extent(4999, 5001)).unwrap(),
        [DigestEntry::Unknown, DigestEntry::Hole]
    );
    let beyond = [(BlockIndex(5000), None)];
    assert_eq!(digests.write(&beyond).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn digests_of_a_plan_are_read_back_and_a_missing_one_is_corrupt() {
    let (_folder, path) = folder();
    let digests = Digests::create(&path, RUN, geometry(4096), false).unwrap();
    assert!(!Digests::open(&path).unwrap().unwrap().is_whole());
    let mut plan = Delta::new(None, geometry(4096));
    let mut written = Vec::new();
    for index in 0..3000 {
        plan.insert(BlockIndex(index), Change::Write);
        written.push((BlockIndex(index), (index % 7 != 0).then_some(digest(index))));
    }
    digests.write(&written).unwrap();
    for index in 3500..3502 {
        plan.insert(BlockIndex(index), Change::Zero);
        written.push((BlockIndex(index), None));
    }
    let read: Result<Vec<_>> = digests.of_plan(Arc::new(plan.clone())).collect();
    assert!(read.unwrap() == written);
    digests.make_unknown(&[extent(3600, 3601)]).unwrap();
    for missing in [3001, 3600] {
        let mut plan = plan.clone();
        plan.insert(BlockIndex(missing), Change::Write);
        let read: Result<Vec<_>> = digests.of_plan(Arc::new(plan)).collect();
        let error = read.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert_eq!(error.remedy(), Some(&Remedy::Restart));
    }
}

#[test]
fn a_clone_holds_the_old_entries_cut_at_its_end_and_the_old_generation_stands() {
    let (folder, path) = folder();
    let old = Digests::create(&path, RUN, geometry(1_000_000), true).unwrap();
    let entries: Vec<_> = (0..1_000_000)
        .filter(|index| index % 333_333 < 2000)
        .map(|index| (BlockIndex(index), Some(digest(index))))
        .collect();
    old.write(&entries).unwrap();
    let next = folder.path().join("state-digests-next");
    for blocks in [400_000, 1_000_000, 1_500_000] {
        let new = Digests::clone_of(&old, &next, "next", geometry(blocks), &Stop::never());
        let new = new.unwrap();
        assert_eq!((new.run(), new.is_whole()), ("next", true));
        let kept = u32::try_from(blocks.min(1_000_000)).unwrap();
        assert!(new.read(extent(0, kept)).unwrap() == old.read(extent(0, kept)).unwrap());
        let rest = new.read(extent(kept, 1_600_000)).unwrap();
        assert!(rest.iter().all(|entry| *entry == DigestEntry::Hole));
        // Sparse: 32 MB apparent, some 200 KB used.
        assert!(std::fs::metadata(&next).unwrap().blocks() * 512 < 1 << 20);
        new.write(&[(BlockIndex(5), None)]).unwrap();
        assert_eq!(
            old.read(extent(5, 6)).unwrap(),
            [DigestEntry::Data(digest(5))]
        );
    }
    // A stopped clone leaves nothing, the generation under its name stands.
    let (sender, receiver) = tokio::sync::watch::channel(true);
    let stopped = Digests::clone_of(&old, &next, "x", geometry(9), &Stop::new(receiver));
    assert_eq!(stopped.unwrap_err().kind(), Kind::Stopped);
    drop(sender);
    assert_eq!(Digests::open(&next).unwrap().unwrap().run(), "next");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    // Published, it is the only one.
    let new = Digests::open(&next).unwrap().unwrap();
    let new = new.publish(&path).unwrap();
    assert_eq!(new.path(), path);
    assert_eq!(Digests::open(&path).unwrap().unwrap().run(), "next");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    Digests::remove(&path).unwrap();
    Digests::remove(&path).unwrap();
    assert!(Digests::open(&path).unwrap().is_none());
}

#[test]
fn a_last_block_whose_length_changes_is_unknown() {
    let (_folder, path) = folder();
    let size = |bytes| Geometry::new(bytes).unwrap();
    let block = u64::from(BLOCK_SIZE);
    let rows = [
        (
            size(2 * block + 5),
            size(2 * block + 5),
            DigestEntry::Data([9; 32]),
        ),
        (size(2 * block + 5), size(4 * block), DigestEntry::Unknown),
        (size(4 * block), size(2 * block + 5), DigestEntry::Unknown),
        (size(3 * block), size(4 * block), DigestEntry::Data([9; 32])),
    ];
    for (old, new, last) in rows {
        let old = Digests::create(&path, RUN, old, true).unwrap();
        old.write(&[(BlockIndex(2), Some([9; 32]))]).unwrap();
        let new = Digests::clone_of(&old, &path, RUN, new, &Stop::never()).unwrap();
        assert_eq!(new.read(extent(2, 3)).unwrap(), [last]);
    }
}

#[test]
fn a_truncated_file_reads_as_holes_and_a_longer_one_ends_with_its_volume() {
    let (_folder, path) = folder();
    let digests = Digests::create(&path, RUN, geometry(3000), true).unwrap();
    let all: Vec<_> = (0..3000)
        .map(|index| (BlockIndex(index), Some(digest(index))))
        .collect();
    digests.write(&all).unwrap();
    let raw = File::options().write(true).open(&path).unwrap();
    raw.set_len(HEADER + 1000 * ENTRY).unwrap();
    let digests = Digests::open(&path).unwrap().unwrap();
    let read = digests.read(extent(990, 3000)).unwrap();
    assert_eq!(read[9], DigestEntry::Data(digest(999)));
    assert!(read[10..].iter().all(|entry| *entry == DigestEntry::Hole));
    assert_eq!(digests.next_data(BlockIndex(1000)).unwrap(), None);
    // Endless.
    raw.set_len(1 << 42).unwrap();
    raw.write_all_at(&[7; 32], 1 << 41).unwrap();
    let digests = Digests::open(&path).unwrap().unwrap();
    assert_eq!(digests.read(extent(0, 3000)).unwrap().len(), 3000);
    assert_eq!(digests.next_data(BlockIndex(2000)).unwrap(), None);
    let first = digests.next_data(BlockIndex(0)).unwrap().unwrap();
    assert_eq!(first.start(), BlockIndex(0));
    assert!(first.end() >= BlockIndex(1000));
}

#[test]
fn a_damaged_foreign_or_special_file_is_not_used_and_never_written() {
    let (folder, path) = folder();
    assert!(Digests::open(&path).unwrap().is_none());
    drop(Digests::create(&path, RUN, geometry(10), true).unwrap());
    let good = std::fs::read(&path).unwrap();
    let mut damaged = vec![Vec::new(), good[..100].to_vec(), vec![0; 5000]];
    for at in [0, 8, 12, 76, 84, 88, 119] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        damaged.push(bytes);
    }
    for bytes in damaged {
        std::fs::write(&path, bytes).unwrap();
        assert!(Digests::open(&path).unwrap().is_none());
    }
    // A right SHA-256 over a volume that cannot be.
    let mut header = good[..FIELDS].to_vec();
    header[76..84].copy_from_slice(&u64::MAX.to_le_bytes());
    header.extend_from_slice(&Sha256::digest(&header));
    std::fs::write(&path, header).unwrap();
    assert!(Digests::open(&path).unwrap().is_none());
    // Others may write it.
    std::fs::write(&path, &good).unwrap();
    assert!(Digests::open(&path).unwrap().is_some());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(Digests::open(&path).unwrap().is_none());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(1234), None).unwrap();
        assert!(Digests::open(&path).unwrap().is_none());
    }
    // What is made in its place is ours.
    drop(Digests::create(&path, RUN, geometry(10), true).unwrap());
    assert!(Digests::open(&path).unwrap().is_some());
    let victim = folder.path().join("victim");
    std::fs::write(&victim, b"precious").unwrap();
    let link = folder.path().join("link");
    symlink(&victim, &link).unwrap();
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let zero = folder.path().join("zero");
    symlink("/dev/zero", &zero).unwrap();
    for special in [&link, &fifo, &zero] {
        assert!(Digests::open(special).unwrap().is_none());
        let made = Digests::create(special, RUN, geometry(10), true);
        assert_eq!(made.unwrap_err().kind(), Kind::Invalid);
        let ours = Digests::open(&path).unwrap().unwrap();
        assert_eq!(ours.publish(special).unwrap_err().kind(), Kind::Invalid);
    }
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 5);
    for run in ["", "a b", "\u{e4}", &"a".repeat(65)] {
        assert!(Digests::create(&path, run, geometry(10), true).is_err());
    }
    let longest = "a".repeat(64);
    drop(Digests::create(&path, &longest, geometry(10), true).unwrap());
    assert_eq!(Digests::open(&path).unwrap().unwrap().run(), longest);
}

#[test]
fn a_full_disk_is_no_space_and_leaves_nothing_behind() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        }
    }
    let (folder, path) = folder();
    let small = folder.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let size = Some("size=256k");
    mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), size).unwrap();
    let _mounted = Mounted(small.clone());
    let old = Digests::create(&path, RUN, geometry(100_000), true).unwrap();
    old.make_unknown(&[extent(0, 100_000)]).unwrap();
    let next = small.join("next");
    let cloned = Digests::clone_of(&old, &next, RUN, geometry(100_000), &Stop::never());
    assert_eq!(cloned.unwrap_err().kind(), Kind::NoSpace);
    assert_eq!(std::fs::read_dir(&small).unwrap().count(), 0);
    let new = Digests::create(&next, RUN, geometry(100_000), true).unwrap();
    let full = new.make_unknown(&[extent(0, 100_000)]);
    assert_eq!(full.unwrap_err().kind(), Kind::NoSpace);
}
