//! This machine: FUSE, limits, directories, images and devices.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use futures_util::future::{join_all, join3};
use nix::unistd::{AccessFlags, access};
use tokio::time::timeout;

use super::job::{MachineNeeds, MountNeeds};
use super::row::{CheckKind, RowBoard, RowFinding};
use crate::error::Result;
use crate::files::{blocking, folder_of};
use crate::targets::{mounted_twins, obstacles};
use crate::time::in_words;

/// A disk that takes longer hangs.
const DISK: Duration = Duration::from_secs(5);
/// Free space below this is none: a checkpoint needs some.
const LEAST_FREE: u64 = 1 << 20;

/// Checks this machine.
pub(super) async fn check(board: &RowBoard, needs: &MachineNeeds) {
    let mount = async {
        if let Some(mount) = &needs.mount {
            mounting(board, mount).await;
        }
    };
    let state = needs
        .state_dir
        .iter()
        .map(|path| folder(board, path, "state directory"));
    let others = needs
        .folders
        .iter()
        .map(|path| folder(board, path, "directory"));
    let targets = needs.targets.iter().map(|path| target(board, path));
    let folders = join_all(state.chain(others));
    join3(mount, folders, join_all(targets)).await;
}

/// Work on a disk that may hang, as a row.
async fn row(
    board: &RowBoard,
    object: String,
    work: impl FnOnce() -> Result<RowFinding> + Send + 'static,
) {
    let row = board.plan(CheckKind::Machine, object);
    let done = timeout(DISK, blocking(work)).await;
    board.fill(
        row,
        match done {
            Ok(Ok(finding)) => finding,
            Ok(Err(error)) => RowFinding::of_error(&error),
            Err(_) => RowFinding::failed(
                format!("no answer in {}: its filesystem hangs", in_words(DISK)),
                "look at its server or disk: dmesg, mount",
            ),
        },
    );
}

async fn mounting(board: &RowBoard, mount: &MountNeeds) {
    let allows_others = mount.allows_others;
    let fuse = row(board, "FUSE".into(), move || {
        crate::fs::check_mounting(allows_others)?;
        Ok(RowFinding::good("this process may mount"))
    });
    let point = async {
        if let Some(point) = mount.mountpoint.clone() {
            let object = format!("mountpoint {}", point.display());
            let look = move || {
                crate::fs::check_mountpoint(&point)?;
                Ok(RowFinding::good("an empty folder"))
            };
            row(board, object, look).await;
        }
    };
    let needs = mount.needs;
    let limits = row(board, "limits of this process".into(), move || {
        crate::fs::reserve(needs)?;
        Ok(RowFinding::good(format!(
            "{} threads, {} descriptors and {} of memory can be had",
            needs.threads,
            needs.descriptors,
            ByteSize(needs.memory)
        )))
    });
    join3(fuse, point, limits).await;
}

async fn folder(board: &RowBoard, path: &Path, what: &'static str) {
    let path = path.to_owned();
    row(board, format!("{what} {}", path.display()), move || {
        Ok(decide_folder(&FolderFacts::observe(&path)))
    })
    .await;
}

async fn target(board: &RowBoard, path: &Path) {
    let object = format!("target {}", path.display());
    let owned = path.to_owned();
    let looked = owned.clone();
    let look = blocking(move || {
        Ok(std::fs::metadata(looked).is_ok_and(|it| it.file_type().is_block_device()))
    });
    let is_device = matches!(timeout(DISK, look).await, Ok(Ok(true)));
    // A disk that hangs makes the row of the image fail.
    if !is_device {
        return image(board, object, owned).await;
    }
    let twins = mounted_twins(path).await;
    row(board, object, move || {
        Ok(decide_device(&obstacles(&owned), &twins))
    })
    .await;
}

async fn image(board: &RowBoard, object: String, path: PathBuf) {
    row(board, object, move || {
        let facts = FolderFacts::observe(folder_of(&path));
        Ok(decide_folder(&facts))
    })
    .await;
}

/// What is known of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FolderFacts {
    path: PathBuf,
    /// The nearest one above that exists; the path itself where it does.
    nearest: PathBuf,
    exists: bool,
    is_folder: bool,
    may_write: bool,
    /// Bytes and files that this user may still write.
    free: Option<(u64, u64)>,
}

impl FolderFacts {
    fn observe(path: &Path) -> Self {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let nearest = path.ancestors().find(|above| above.exists());
        let nearest = nearest.unwrap_or(Path::new("/")).to_owned();
        let found = std::fs::metadata(&nearest).ok();
        let space = rustix::fs::statvfs(&nearest).ok();
        // A filesystem without inodes counts none.
        let files = |total: u64, free: u64| if total == 0 { u64::MAX } else { free };
        Self {
            exists: nearest == path,
            is_folder: found.is_some_and(|found| found.is_dir()),
            may_write: access(&nearest, AccessFlags::W_OK | AccessFlags::X_OK).is_ok(),
            free: space.map(|space| {
                let bytes = space.f_bavail.saturating_mul(space.f_frsize);
                (bytes, files(space.f_files, space.f_favail))
            }),
            path,
            nearest,
        }
    }
}

/// The row of a directory that is written.
fn decide_folder(facts: &FolderFacts) -> RowFinding {
    let at = facts.nearest.display();
    let made = match facts.exists {
        true => String::new(),
        false => format!(", {} will be made in {at}", facts.path.display()),
    };
    if !facts.is_folder {
        let fix = format!("name another directory, or move {at} away");
        return RowFinding::failed(format!("{at} is no directory"), fix);
    }
    if !facts.may_write {
        let fix = format!("chown USER {at}, or run ebsfs as the user that may write there");
        return RowFinding::failed(format!("this user may not write to {at}{made}"), fix);
    }
    let Some((bytes, files)) = facts.free else {
        return RowFinding::unknown(format!("{at} does not tell its free space"));
    };
    if bytes < LEAST_FREE || files == 0 {
        let seen = format!(
            "no space: {} and {files} files are free at {at}",
            ByteSize(bytes)
        );
        return RowFinding::failed(
            seen,
            format!("df -h {at}; df -i {at}; free space there, or name another directory"),
        );
    }
    RowFinding::good(format!("writable, {} free{made}", ByteSize(bytes)))
}

/// The row of a device that is written: who holds it, and what of this machine has its UUIDs.
fn decide_device(holders: &[String], twins: &[String]) -> RowFinding {
    if !holders.is_empty() {
        return RowFinding::failed(
            holders.join("; "),
            "release it: umount, swapoff, vgchange -an, mdadm --stop, losetup -d",
        );
    }
    if !twins.is_empty() {
        return RowFinding::warning(
            twins.join("; "),
            "this machine could boot or mount the copy instead: detach one of them before a reboot, or give the copy new UUIDs",
        );
    }
    RowFinding::good("no program holds it, and nothing of this machine has its UUIDs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::row::RowState;

    #[test]
    fn a_directory_is_good_when_it_can_be_written_and_has_room() {
        let good = FolderFacts {
            path: "/a/b".into(),
            nearest: "/a/b".into(),
            exists: true,
            is_folder: true,
            may_write: true,
            free: Some((5 << 30, 1000)),
        };
        let missing = FolderFacts {
            nearest: "/a".into(),
            exists: false,
            ..good.clone()
        };
        for (facts, state, words) in [
            (good.clone(), RowState::Good, "5.0 GiB free"),
            (missing.clone(), RowState::Good, "/a/b will be made in /a"),
            (
                FolderFacts {
                    may_write: false,
                    ..missing.clone()
                },
                RowState::Failed,
                "may not write to /a",
            ),
            (
                FolderFacts {
                    is_folder: false,
                    ..good.clone()
                },
                RowState::Failed,
                "no directory",
            ),
            (
                FolderFacts {
                    free: Some((0, 1000)),
                    ..good.clone()
                },
                RowState::Failed,
                "no space",
            ),
            (
                FolderFacts {
                    free: Some((5 << 30, 0)),
                    ..good.clone()
                },
                RowState::Failed,
                "0 files",
            ),
            (
                FolderFacts {
                    free: None,
                    ..good.clone()
                },
                RowState::Unknown,
                "does not tell",
            ),
        ] {
            let found = decide_folder(&facts);
            assert_eq!(found.state, state, "{facts:?}");
            assert!(found.seen.contains(words), "{found:?}");
        }
    }

    #[test]
    fn a_device_that_is_held_fails_and_a_twin_of_this_machine_warns() {
        let one = ["x".to_owned()];
        assert_eq!(decide_device(&one, &one).state, RowState::Failed);
        assert_eq!(decide_device(&[], &one).state, RowState::Warning);
        assert_eq!(decide_device(&[], &[]).state, RowState::Good);
    }
}
