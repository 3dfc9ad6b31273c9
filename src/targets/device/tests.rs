use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::block::{BLOCK_SIZE, Block, Change};
use crate::error::Remedy;
use crate::sysfs::tests::LoopDevice;
use crate::target::{Base, SourceInfo, Stop, Task};

const BLOCK: usize = BLOCK_SIZE as usize;

fn volume(blocks: usize) -> Geometry {
    Geometry::new((blocks * BLOCK) as u64).unwrap()
}

fn source(geometry: Geometry) -> SourceInfo {
    SourceInfo {
        name: "snap-1".into(),
        geometry,
        size: None,
        mark: None,
        volume: None,
        volume_key: crate::target::VolumeKey::default(),
        encrypted: None,
        snapshot: None,
        has_changes: false,
        damaged_in_source: 0,
    }
}

async fn observe(target: &DeviceTarget, left: Option<&SinkState>) -> Facts {
    let source = source(volume(1));
    let ask = ObserveRequest {
        source: &source,
        base: &Base::None,
        left,
        replica: None,
    };
    target.observe(&ask).await.unwrap()
}

type NameFn<'a> = &'a (dyn Fn(&SinkState) -> Result<()> + Send + Sync);

async fn open(target: &DeviceTarget, plan: &Delta, name: NameFn<'_>) -> Result<Opened> {
    let source = source(plan.head());
    let task = Task {
        run: "run".into(),
        after: None,
        in_place: true,
        source: "snap-1".into(),
        source_mark: None,
        volume: None,
        base: None,
        target: target.id().into(),
        target_name: String::new(),
    };
    let opening = Opening {
        task: &task,
        plan,
        done: 0,
        source: &source,
        resume: None,
        base: None,
        mark: None,
        name,
        files: target.state().stem,
        restart: false,
        rate: 1000,
        stop: &Stop::never(),
    };
    target.open(opening).await
}

fn bytes(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut File::open(path).unwrap(), &mut bytes).unwrap();
    bytes
}

fn write(path: &Path, bytes: &[u8], at: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.sync_all().unwrap();
}

/// Writes block 0, zeroes block 2, and publishes.
async fn copy(sink: &dyn Sink) -> Published {
    let block = Bytes::from(vec![9; BLOCK]);
    sink.write_block(BlockIndex(0), block, [0; 32])
        .await
        .unwrap();
    sink.write_zeroes(Extent::of(BlockIndex(2))).await.unwrap();
    let none = Box::new(std::iter::empty());
    sink.publish(none, &BlockSet::new()).await.unwrap()
}

#[tokio::test]
async fn a_full_copy_zeroes_what_it_does_not_write_and_a_delta_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let Some(device) = LoopDevice::new(&image, 4 << 20, &[]) else {
        return;
    };
    let target = DeviceTarget::new(device.path(), folder.path()).unwrap();
    let mut full = Delta::new(None, volume(4));
    full.insert(BlockIndex(1), Change::Write);
    let adapted = target.adapt(Arc::new(full), None).await.unwrap();
    assert_eq!((adapted.write().len(), adapted.zero().len()), (1, 3));
    let delta = Arc::new(Delta::new(Some(volume(4)), volume(4)));
    let adapted = target.adapt(Arc::clone(&delta), None).await.unwrap();
    assert!(Arc::ptr_eq(&adapted, &delta));
}

#[tokio::test]
async fn a_copy_is_proven_until_something_else_writes_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let Some(device) = LoopDevice::new(&image, 4 << 20, &[]) else {
        return;
    };
    write(device.path(), &vec![7; 4 << 20], 0);
    let target = DeviceTarget::new(device.path(), folder.path()).unwrap();
    let named = AtomicU32::new(0);
    let plan = Delta::new(None, volume(4));
    let name = |_: &SinkState| {
        // Nothing is changed yet.
        assert_eq!(bytes(device.path()), vec![7; 4 << 20]);
        named.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let opened = open(&target, &plan, &name).await.unwrap();
    assert_eq!(named.load(Ordering::Relaxed), 1);
    assert!(!opened.zero_the_rest);
    assert_eq!(observe(&target, None).await.left, UnfinishedState::Absent);
    let facts = observe(&target, Some(&opened.state)).await;
    assert_eq!(
        (facts.left, facts.existence),
        (UnfinishedState::Proven, Existence::There)
    );
    let published = copy(&*opened.sink).await;
    let mut expected = vec![7; 4 << 20];
    expected[..BLOCK].fill(9);
    expected[2 * BLOCK..3 * BLOCK].fill(0);
    assert_eq!(bytes(device.path()), expected);
    let state = opened.sink.flush().await.unwrap();
    let read = opened.sink.read_back().await.unwrap().unwrap();
    assert!(matches!(
        read.read_block(BlockIndex(2)).await.unwrap(),
        Block::Zero
    ));
    drop((opened, read));
    let facts = observe(&target, Some(&state)).await;
    assert_eq!(facts.left, UnfinishedState::Proven);
    assert!(published.mark.is_some());
    assert_eq!(facts.mark, published.mark);
    assert_eq!(
        (facts.fixed_size, facts.has_identity),
        (Some(4 << 20), true)
    );
    assert_eq!(facts.token, device.path().display().to_string());
    assert_eq!(facts.obstacles, <[String; 0]>::default());
    write(device.path(), b"foreign", 3 << 20);
    let facts = observe(&target, Some(&state)).await;
    assert_eq!(facts.left, UnfinishedState::Unproven);
    assert_ne!(facts.mark, published.mark);
    let before = observe(&target, None).await.mark;
    // The file behind the device, with its time of write set back.
    let file = OpenOptions::new().write(true).open(&image).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(b"foreign", 0).unwrap();
    file.set_modified(time).unwrap();
    assert_ne!(observe(&target, None).await.mark, before);
    let reader = target.reader(None, volume(8)).await.unwrap();
    assert_eq!(reader.geometry(), volume(8));
    assert!(target.reader(None, volume(9)).await.is_err());
    let shared = target.shared();
    let facts = observe(&shared, Some(&state)).await;
    assert_eq!((facts.mark, facts.left), (None, UnfinishedState::Unproven));
}

#[tokio::test]
async fn a_device_that_is_in_use_too_small_or_another_one_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let (image, point) = (folder.path().join("image"), folder.path().join("point"));
    let Some(device) = LoopDevice::new(&image, 4 << 20, &[]) else {
        return;
    };
    let run = |program: &str, args: &[&Path]| {
        assert!(Command::new(program).args(args).status().unwrap().success());
    };
    let target = DeviceTarget::new(device.path(), folder.path()).unwrap();
    let never = |_: &SinkState| -> Result<()> { panic!("named") };
    let large = Delta::new(None, volume(9));
    let error = open(&target, &large, &never).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(
        error
            .to_string()
            .contains("it has 4.0 MiB, the volume 4.5 MiB")
    );
    let plan = Delta::new(None, volume(4));
    let other = DeviceTarget {
        identity: Identity {
            id: "device:serial=other:size=1".into(),
            ..target.identity.clone()
        },
        ..target.clone()
    };
    let error = open(&other, &plan, &never).await.unwrap_err();
    assert!(
        error.to_string().contains("it is another device"),
        "{error}"
    );
    let refused =
        |_: &SinkState| Err(Error::new(Kind::NoSpace, "full").with_remedy(Remedy::TryLater));
    let error = open(&target, &plan, &refused).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace);
    assert_eq!(bytes(device.path()), vec![0; 4 << 20]);
    run("mkfs.ext4", &[Path::new("-q"), device.path()]);
    std::fs::create_dir(&point).unwrap();
    run("mount", &[device.path(), &point]);
    let error = open(&target, &plan, &never).await;
    run("umount", &[&point]);
    let expected = format!(
        "cannot write {0}: it is in use: {0} is mounted at {1}",
        device.path().display(),
        point.display()
    );
    assert_eq!(error.unwrap_err().to_string(), expected);
    let held = target.open_for_writing().unwrap();
    let error = open(&target, &plan, &never).await.unwrap_err();
    assert!(
        error.to_string().ends_with("in another mount namespace"),
        "{error}"
    );
    drop(held);
    assert!(DeviceTarget::new(&image, folder.path()).is_err());
}

#[tokio::test]
async fn zeroes_leave_the_file_behind_a_device_sparse() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let Some(device) = LoopDevice::new(&image, 64 << 20, &[]) else {
        return;
    };
    write(device.path(), &vec![7; 8 << 20], 0);
    let target = DeviceTarget::new(device.path(), folder.path()).unwrap();
    let plan = Delta::new(None, volume(128));
    let name = |_: &SinkState| Ok(());
    let opened = open(&target, &plan, &name).await.unwrap();
    let all = Extent::new(BlockIndex(0), BlockIndex(128)).unwrap();
    opened.sink.write_zeroes(all).await.unwrap();
    let written = |state: &SinkState| state.open::<DeviceState>().unwrap().mark.unwrap().written;
    let before = written(&opened.state);
    // A hole counts as sectors written: how many is known.
    let state = opened.sink.flush().await.unwrap();
    assert_eq!(written(&state) - before, (64 << 20) / 512);
    assert_eq!(bytes(device.path()), vec![0; 64 << 20]);
    assert!(std::fs::metadata(&image).unwrap().blocks() * 512 < 1 << 20);
}

#[tokio::test]
async fn a_partial_last_sector_is_zeroed_and_later_bytes_stay() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let Some(device) = LoopDevice::new(&image, 4 << 20, &["--sector-size", "4096"]) else {
        return;
    };
    write(device.path(), &vec![7; 4 << 20], 0);
    let target = DeviceTarget::new(device.path(), folder.path()).unwrap();
    let size = (4 << 20) - 512;
    let plan = Delta::new(None, Geometry::new(size).unwrap());
    let opened = open(&target, &plan, &|_| Ok(())).await.unwrap();
    // The kernel refuses a hole of such a length.
    let last = Extent::of(BlockIndex(7));
    opened.sink.write_zeroes(last).await.unwrap();
    opened.sink.flush().await.unwrap();
    let mut expected = vec![7; 4 << 20];
    expected[7 * BLOCK..(4 << 20) - 512].fill(0);
    assert_eq!(bytes(device.path()), expected);
    let facts = observe(&target, None).await;
    assert!(facts.warnings[0].contains("has sectors of 4096 bytes"));
}

#[tokio::test]
async fn a_partition_locks_its_disk_and_keeps_its_own_mark() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let Some(device) = LoopDevice::partitioned(&image) else {
        return;
    };
    let (one, disk) = (device.partition(1), device.path());
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&one, &link).unwrap();
    let part = DeviceTarget::new(&link, folder.path()).unwrap();
    let whole = DeviceTarget::new(disk, folder.path()).unwrap();
    let expected = [lock(disk, true), lock(&one, false), lock(&image, true)];
    assert_eq!(part.locks().unwrap(), expected);
    let expected = [lock(disk, false), lock(&image, false)];
    assert_eq!(whole.locks().unwrap(), expected);
    assert_ne!(part.state(), whole.state());
    let same = DeviceTarget::new(&one, folder.path()).unwrap();
    assert_eq!((part.id(), part.state()), (same.id(), same.state()));
    let facts = observe(&part, None).await;
    assert_eq!(facts.token, link.display().to_string());
    assert_eq!(facts.other_tokens, [one.display().to_string()]);
    assert_eq!(facts.fixed_size, Some(1 << 20));
    // Only the partition is written.
    let plan = Delta::new(None, volume(2));
    let before = bytes(disk);
    let opened = open(&part, &plan, &|_| Ok(())).await.unwrap();
    assert_eq!(
        open(&whole, &plan, &|_| Ok(())).await.unwrap_err().kind(),
        Kind::Io
    );
    let block = Bytes::from(vec![9; BLOCK]);
    opened
        .sink
        .write_block(BlockIndex(1), block, [0; 32])
        .await
        .unwrap();
    opened.sink.flush().await.unwrap();
    drop(opened);
    let mut expected = before;
    let start = (1 << 20) + BLOCK;
    expected[start..start + BLOCK].fill(9);
    let read = DiskSource::open_past_cache(disk, volume(8)).unwrap();
    for (index, piece) in (0..).zip(expected.chunks(BLOCK)) {
        let piece_is_zero = piece.iter().all(|byte| *byte == 0);
        match read.read_block(BlockIndex(index)).await.unwrap() {
            Block::Zero => assert!(piece_is_zero, "{index}"),
            Block::Data(bytes, _) => assert_eq!(&bytes[..], piece, "{index}"),
        }
    }
}

#[test]
fn only_a_state_with_the_same_mark_proves_anything() {
    let mark = |written| DeviceMark {
        boot: "boot".into(),
        diskseq: Some("1".into()),
        written,
        discarded: 0,
        backing: None,
    };
    let state = |mark: Option<DeviceMark>| SinkState::of(&DeviceState { mark, began: None });
    #[derive(Serialize, Deserialize)]
    struct Other {}
    impl SinkBody for Other {
        const KIND: &'static str = "device";
        const VERSION: u32 = 99;
    }
    let one = mark(1);
    let rows = [
        (None, None, UnfinishedState::Absent),
        (None, Some(&one), UnfinishedState::Absent),
        (Some(state(None)), None, UnfinishedState::Unproven),
        (Some(state(None)), Some(&one), UnfinishedState::Unproven),
        (Some(state(Some(mark(1)))), None, UnfinishedState::Unproven),
        (
            Some(state(Some(mark(1)))),
            Some(&one),
            UnfinishedState::Proven,
        ),
        (
            Some(state(Some(mark(2)))),
            Some(&one),
            UnfinishedState::Unproven,
        ),
        (
            Some(SinkState::of(&Other {})),
            Some(&one),
            UnfinishedState::Unproven,
        ),
    ];
    for (state, mark, expected) in rows {
        assert_eq!(
            left_by(state.as_ref(), mark),
            expected,
            "{state:?} {mark:?}"
        );
    }
}

/// A compressed disk in memory: no WWN, no serial number, no UUID.
struct Zram(String);

impl Zram {
    fn new() -> Option<Self> {
        let number = std::fs::read_to_string("/sys/class/zram-control/hot_add").ok()?;
        let zram = Self(number.trim().to_owned());
        let size = format!("/sys/block/zram{}/disksize", zram.0);
        std::fs::write(size, "4M").unwrap();
        Some(zram)
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let _ = std::fs::write(format!("/sys/block/zram{}/reset", self.0), "1");
        let _ = std::fs::write("/sys/class/zram-control/hot_remove", &self.0);
    }
}

#[tokio::test]
async fn a_device_without_identity_is_copied_and_proves_nothing() {
    let Some(zram) = Zram::new() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = PathBuf::from(format!("/dev/zram{}", zram.0));
    write(&path, &vec![7; 4 << 20], 0);
    let target = DeviceTarget::new(&path, folder.path()).unwrap();
    let name = path.display().to_string();
    assert_eq!(target.id(), format!("device:path={name}:size=4194304"));
    let plan = Delta::new(None, volume(4));
    let opened = open(&target, &plan, &|_| Ok(())).await.unwrap();
    let published = copy(&*opened.sink).await;
    assert_eq!(published.mark, None);
    let mut expected = vec![7; 4 << 20];
    expected[..BLOCK].fill(9);
    expected[2 * BLOCK..3 * BLOCK].fill(0);
    assert_eq!(bytes(&path), expected);
    let facts = observe(&target, Some(&opened.state)).await;
    assert_eq!((facts.left, facts.mark), (UnfinishedState::Unproven, None));
    assert_eq!((facts.token, facts.has_identity), (name.clone(), false));
    let warnings = facts.warnings;
    assert!(warnings[0].starts_with(&format!("{name} has no WWN")));
    // Its sectors are pages.
    assert!(warnings[1].contains("has sectors of 4096 bytes"));
}
