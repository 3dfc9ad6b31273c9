use serde::{Deserialize, Serialize};

use super::*;
use crate::block::{Change, Geometry};
use crate::target::SinkBody;

#[derive(Serialize, Deserialize)]
struct Body(u32);

impl SinkBody for Body {
    const KIND: &'static str = "test";
    const VERSION: u32 = 1;
}

fn task() -> Task {
    Task {
        run: "1".into(),
        after: None,
        in_place: false,
        source_mark: None,
        source: "snap-b".into(),
        volume: None,
        base: Some("snap-a".into()),
        target: "file".into(),
        target_name: "file".into(),
    }
}

fn geometry() -> Geometry {
    Geometry::new(1 << 30).unwrap()
}

fn plan() -> Arc<Delta> {
    let mut plan = Delta::new(None, geometry());
    for index in [1, 2, 3, 900] {
        plan.insert(BlockIndex(index), Change::Write);
    }
    for index in 10..20 {
        plan.insert(BlockIndex(index), Change::Zero);
    }
    Arc::new(plan)
}

fn extent(start: u32, end: u32) -> Extent {
    Extent::new(BlockIndex(start), BlockIndex(end)).unwrap()
}

fn new(folder: &Path) -> (Checkpoint, PathBuf, PathBuf) {
    let (path, digests) = (folder.join("checkpoint"), folder.join("digests"));
    let file = Digests::create(&digests, "1", geometry(), true).unwrap();
    let checkpoint = Checkpoint::new(&path, task(), plan(), Some(file));
    (checkpoint, path, digests)
}

#[test]
fn a_crash_loses_only_unsaved_progress() {
    let folder = tempfile::tempdir().unwrap();
    let (mut checkpoint, path, digests) = new(folder.path());
    assert!(
        Checkpoint::load(&path, std::slice::from_ref(&digests))
            .unwrap()
            .is_none()
    );
    assert_eq!(checkpoint.next_zero(BlockIndex(0), 4), Some(extent(10, 14)));
    let state = SinkState::of(&Body(7));
    let done = [extent(2, 3), extent(10, 14), extent(16, 17)];
    checkpoint.mark(done, state.clone());
    checkpoint.mark_damaged(BlockIndex(2));
    let entries = [(BlockIndex(2), Some([7; 32])), (BlockIndex(1), None)];
    checkpoint.digests().unwrap().write(&entries).unwrap();
    checkpoint.encode().write().unwrap();
    checkpoint.mark([extent(1, 2)], state.clone());
    drop(checkpoint);

    let mut loaded = Checkpoint::load(&path, std::slice::from_ref(&digests))
        .unwrap()
        .unwrap();
    assert_eq!(*loaded.task(), task());
    assert_eq!(loaded.state(), Some(&state));
    assert_eq!(loaded.done(), 6);
    assert!(loaded.damaged().contains(BlockIndex(2)));
    assert_eq!(loaded.missing().len(), 14 - 6);
    let writes: Vec<_> = std::iter::successors(loaded.next_write(BlockIndex(0)), |at| {
        loaded.next_write(BlockIndex(at.0 + 1))
    })
    .map(|index| index.0)
    .collect();
    assert_eq!(writes, [1, 3, 900]);
    assert_eq!(loaded.next_zero(BlockIndex(0), 4), Some(extent(14, 16)));
    assert_eq!(loaded.next_zero(BlockIndex(16), 4), Some(extent(17, 20)));
    assert_eq!(loaded.next_zero(BlockIndex(20), 4), None);
    // Not all of it was done.
    assert!(loaded.written().unwrap().any(|block| block.is_err()));
    // A block that was done, one to be zeroed and one outside the plan are all to be written.
    let mut again = BlockSet::new();
    for index in [2, 11, 500] {
        again.insert(BlockIndex(index));
    }
    loaded.write_again(&again);
    assert_eq!(loaded.done(), 4);
    assert_eq!(loaded.next_write(BlockIndex(2)), Some(BlockIndex(2)));
    assert_eq!(loaded.next_write(BlockIndex(4)), Some(BlockIndex(11)));
    assert_eq!(loaded.next_write(BlockIndex(12)), Some(BlockIndex(500)));
    Checkpoint::discard(&path, &digests).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_damaged_checkpoint_is_an_error_and_nothing_panics() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, path, digests) = new(folder.path());
    checkpoint.encode().write().unwrap();
    let good = std::fs::read(&path).unwrap();
    for cut in 0..good.len() {
        std::fs::write(&path, &good[..cut]).unwrap();
        assert_eq!(
            Checkpoint::load(&path, std::slice::from_ref(&digests))
                .unwrap_err()
                .kind(),
            Kind::Corrupt
        );
    }
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        // A flipped version is one that is not known.
        match Checkpoint::load(&path, std::slice::from_ref(&digests)) {
            Ok(None) => assert!((8..12).contains(&at)),
            loaded => assert_eq!(loaded.unwrap_err().kind(), Kind::Corrupt),
        }
    }
}

#[test]
fn a_checkpoint_of_another_version_or_without_its_digests_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, path, digests) = new(folder.path());
    checkpoint.encode().write().unwrap();
    Digests::create(&digests, "2", geometry(), true).unwrap();
    assert!(
        Checkpoint::load(&path, std::slice::from_ref(&digests))
            .unwrap()
            .is_none()
    );
    Digests::remove(&digests).unwrap();
    assert!(
        Checkpoint::load(&path, std::slice::from_ref(&digests))
            .unwrap()
            .is_none()
    );
    let mut old = std::fs::read(&path).unwrap();
    old[8] = 1;
    std::fs::write(&path, old).unwrap();
    assert!(
        Checkpoint::load(&path, std::slice::from_ref(&digests))
            .unwrap()
            .is_none()
    );
}

#[test]
fn digests_are_given_up_only_for_space_and_where_the_copy_is_of_use_without_them() {
    let full = || Error::new(Kind::NoSpace, "full");
    let folder = tempfile::tempdir().unwrap();
    let (mut checkpoint, path, digests) = new(folder.path());
    let other = checkpoint.give_up_digests(Error::new(Kind::Io, "broken"));
    assert_eq!(other.unwrap_err().kind(), Kind::Io);
    assert!(checkpoint.digests().is_some());
    checkpoint.mark([extent(1, 3)], SinkState::of(&Body(7)));
    checkpoint.give_up_digests(full()).unwrap();
    assert!(checkpoint.digests().is_none() && checkpoint.written().is_none());
    // The checkpoint that has them stands until the new one is saved.
    assert!(digests.exists());
    checkpoint.encode().write().unwrap();
    assert!(!digests.exists());
    assert_eq!(
        checkpoint.give_up_digests(full()).unwrap_err().kind(),
        Kind::NoSpace
    );
    let loaded = Checkpoint::load(&path, std::slice::from_ref(&digests));
    let loaded = loaded.unwrap().unwrap();
    assert_eq!(loaded.done(), 2);
    assert!(loaded.digests().is_none());

    let (mut needed, ..) = new(folder.path());
    needed.need_digests();
    assert!(needed.give_up_digests(full()).is_err());
    assert!(needed.digests().is_some());
}
