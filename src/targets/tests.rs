//! The contract of targets and sinks over images and devices.

mod formatted;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tempfile::TempDir;

use super::*;
use crate::block::{BLOCK_SIZE, Geometry};
use crate::sysfs::tests::LoopDevice;
use crate::target::contract::{self, ContractFixture, ContractRun};
use crate::target::{SourceInfo, Target, UnfinishedState};

/// Eight blocks, the last one of two pages.
const SIZE: u64 = 7 * BLOCK_SIZE as u64 + 8192;

fn source() -> SourceInfo {
    SourceInfo {
        name: "snap-1".into(),
        geometry: Geometry::new(SIZE).unwrap(),
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

/// Writes as something that sets the time of the last write back.
fn write(path: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.sync_all().unwrap();
    let _ = file.set_modified(time);
    file.sync_all().unwrap();
}

struct Image {
    folder: TempDir,
    is_in_place: bool,
}

impl Image {
    /// An image of garbage.
    fn new(is_in_place: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = Self {
            folder,
            is_in_place,
        };
        image.renew();
        image
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn names(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.folder.path()).unwrap();
        let name = |file: std::io::Result<std::fs::DirEntry>| file.unwrap().file_name();
        let mut names: Vec<_> = files
            .map(|file| name(file).into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl ContractFixture for Image {
    fn target(&self) -> BoxFuture<'_, Arc<dyn Target>> {
        let target = ImageTarget::new(&self.path(), self.is_in_place).unwrap();
        std::future::ready(Arc::new(target) as Arc<dyn Target>).boxed()
    }

    fn source(&self) -> SourceInfo {
        source()
    }

    fn write(&self, at: u64, bytes: &[u8]) -> bool {
        write(&self.path(), at, bytes);
        true
    }

    fn renew(&self) {
        std::fs::write(self.path(), vec![0xa5; 5 << 20]).unwrap();
    }
}

struct Device {
    folder: TempDir,
    device: LoopDevice,
}

impl Device {
    /// A device of garbage; none where there are no loop devices for this user.
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let device = LoopDevice::new(&image, 4 << 20, &[])?;
        let place = Self { folder, device };
        place.renew();
        Some(place)
    }
}

impl ContractFixture for Device {
    fn target(&self) -> BoxFuture<'_, Arc<dyn Target>> {
        let target = DeviceTarget::new(self.device.path(), self.folder.path()).unwrap();
        std::future::ready(Arc::new(target) as Arc<dyn Target>).boxed()
    }

    fn source(&self) -> SourceInfo {
        source()
    }

    fn write(&self, at: u64, bytes: &[u8]) -> bool {
        write(self.device.path(), at, bytes);
        true
    }

    fn renew(&self) {
        write(self.device.path(), 0, &vec![0xa5; 4 << 20]);
    }
}

/// A test of the contract over an image that a new one replaces, one in place, and a loop device.
macro_rules! contract {
    ($($rule:ident),* $(,)?) => {$(
        #[test]
        fn $rule() {
            contract::run(async {
                contract::$rule(&Image::new(false)).await;
                contract::$rule(&Image::new(true)).await;
                if let Some(device) = Device::new() {
                    contract::$rule(&device).await;
                }
            });
        }
    )*};
}

contract![
    names_first_and_publishes_every_byte,
    survives_a_crash_between_any_two_calls,
    resumes_after_a_drop_at_any_await,
    publishes_twice_with_a_mark_that_tells_foreign_writes,
    refuses_what_was_written_after_the_decision,
    zeroes_what_was_written,
];

/// A filesystem in memory of few bytes.
struct Small(TempDir);

impl Small {
    fn new(bytes: u64) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(folder.path())
            .status();
        mount.unwrap().success().then_some(Self(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

struct In<'a>(&'a Path, bool);

impl ContractFixture for In<'_> {
    fn target(&self) -> BoxFuture<'_, Arc<dyn Target>> {
        let target = ImageTarget::new(self.0, self.1).unwrap();
        std::future::ready(Arc::new(target) as Arc<dyn Target>).boxed()
    }

    fn source(&self) -> SourceInfo {
        source()
    }

    fn renew(&self) {}
}

#[tokio::test]
async fn without_room_an_image_is_not_published_and_the_old_one_stands() {
    let Some(small) = Small::new(1 << 20) else {
        return;
    };
    let path = small.0.path().join("image");
    std::fs::write(&path, b"old").unwrap();
    contract::fails_before_it_is_published(&In(&path, false), &[crate::error::Kind::NoSpace]).await;
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(small.0.path()).unwrap().count(), 1);
    contract::fails_before_it_is_published(&In(&path, true), &[crate::error::Kind::NoSpace]).await;
}

#[tokio::test]
async fn a_device_whose_disk_fails_is_not_published() {
    let Some(small) = Small::new(1 << 20) else {
        return;
    };
    let image = small.0.path().join("image");
    File::create(&image).unwrap().set_len(4 << 20).unwrap();
    let Some(device) = LoopDevice::new(&image, 4 << 20, &[]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let place = Device { folder, device };
    let kinds = [crate::error::Kind::Io, crate::error::Kind::NoSpace];
    contract::fails_before_it_is_published(&place, &kinds).await;
    drop(place);
}

#[tokio::test]
async fn discard_removes_the_part_and_nothing_else() {
    let image = Image::new(false);
    std::fs::write(image.folder.path().join("other"), b"1").unwrap();
    let before = std::fs::read(image.path()).unwrap();
    let target = image.target().await;
    let run = ContractRun::new(&image, &*target).await;
    let facts = run.observe(&*target).await;
    let opened = run.open(&*target, &facts).await.unwrap();
    let state = opened.state.clone();
    assert_eq!(image.names(), ["image", "image.ebsfs-part", "other"]);
    drop(opened);
    for _ in 0..2 {
        target.discard(&state).await.unwrap();
        assert_eq!(image.names(), ["image", "other"]);
        assert_eq!(std::fs::read(image.path()).unwrap(), before);
    }
    assert_eq!(run.observe(&*target).await.left, UnfinishedState::Absent);
}

#[tokio::test]
async fn another_file_in_the_place_of_a_part_or_an_image_is_not_taken_for_it() {
    let image = Image::new(false);
    let target = image.target().await;
    let run = ContractRun::new(&image, &*target).await;
    let facts = run.observe(&*target).await;
    drop(run.open(&*target, &facts).await.unwrap());
    let part = image.folder.path().join("image.ebsfs-part");
    std::fs::remove_file(&part).unwrap();
    std::fs::remove_file(image.path()).unwrap();
    // Filesystems give the number of a removed inode to the next file.
    for number in 0..20 {
        std::fs::write(image.folder.path().join(format!("new-{number}")), b"").unwrap();
    }
    for number in 0..20 {
        let new = image.folder.path().join(format!("new-{number}"));
        let file = OpenOptions::new().write(true).open(&new).unwrap();
        file.set_len(SIZE).unwrap();
        std::fs::rename(&new, image.path()).unwrap();
        let left = run.observe(&*target).await.left;
        assert_eq!(left, UnfinishedState::Absent, "file {number}");
    }
}

#[tokio::test]
async fn an_image_that_came_after_the_decision_is_not_replaced() {
    let image = Image::new(false);
    std::fs::remove_file(image.path()).unwrap();
    let target = image.target().await;
    let run = ContractRun::new(&image, &*target).await;
    let facts = run.observe(&*target).await;
    std::fs::write(image.path(), b"new").unwrap();
    let refused = run.open(&*target, &facts).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Undecided);
    assert_eq!(image.names(), ["image"]);
    assert_eq!(std::fs::read(image.path()).unwrap(), b"new");
}
