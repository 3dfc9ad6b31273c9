//! Which block device one is, whatever it is called today, and whether anything has written it.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use serde_json::{Value, json};

use crate::disk::{Mark, size_of};
use crate::error::{Error, Kind, Result};

/// Which device this is: its WWN, serial number, UUID or backing file, where in it this is, and its size.
///
/// # Errors
/// `Invalid` when it is no block device or nothing tells it from others.
pub fn identity(path: &Path) -> Result<String> {
    let file = File::open(path).map_err(|error| Error::of_file(path, "cannot look at", error))?;
    of_open(path, &file)
}

/// What changes whenever anything writes an image, its [`Mark`], or a device of this machine; none where nothing tells.
pub fn mark_of(path: &Path) -> Option<Value> {
    let metadata = std::fs::metadata(path).ok()?;
    if metadata.file_type().is_block_device() {
        return written_so_far(path, &metadata);
    }
    serde_json::to_value(Mark::from(metadata)).ok()
}

/// How much was written to a device and discarded since the machine was started (`boot`), on the whole disk for a
/// partition. Of two starts of the machine nobody knows what came between. None where the kernel does not count. What
/// another machine writes to a shared disk nothing tells.
fn written_so_far(path: &Path, metadata: &Metadata) -> Option<Value> {
    let folder = sysfs(metadata)?;
    // A partition's folder is within that of its disk, which counts what is written past it.
    let disk = match read(&folder, "partition") {
        Some(_) => folder.parent()?.to_owned(),
        None => folder,
    };
    if read(&disk, "queue/iostats")? == "0" {
        return None;
    }
    // What somebody wrote and the page cache still has is counted when it is written back.
    File::open(path).and_then(|file| file.sync_all()).ok()?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    // Sectors written and sectors discarded, fields 7 and 14 (kernel.org, block/stat): the flush above counts as a write.
    let stat = read(&disk, "stat")?;
    let fields: Vec<&str> = stat.split_whitespace().collect();
    let written: Option<Vec<&str>> = [6, 13]
        .iter()
        .map(|field| fields.get(*field).copied())
        .collect();
    let backing = read(&disk, "loop/backing_file").and_then(|file| Mark::of(Path::new(&file)));
    Some(json!({
        "boot": boot.trim(),
        "diskseq": read(&disk, "diskseq"),
        "written": written?,
        "backing": serde_json::to_value(backing).ok()?,
    }))
}

/// The folder of a device in sysfs.
fn sysfs(metadata: &Metadata) -> Option<PathBuf> {
    let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
    let folder = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    folder.canonicalize().ok()
}

pub(super) fn of_open(path: &Path, file: &File) -> Result<String> {
    let failed = |error| Error::of_file(path, "cannot look at", error);
    let wrong = |what: &str| {
        Err(Error::new(
            Kind::Invalid,
            format!("{} {what}", path.display()),
        ))
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.file_type().is_block_device() {
        return wrong("is no block device");
    }
    let size = size_of(path, file)?;
    let Some(folder) = sysfs(&metadata) else {
        return wrong("is not known to the system");
    };
    // A partition's folder is within that of its disk.
    let (disk, part) = match (read(&folder, "partition"), folder.parent()) {
        (Some(number), Some(disk)) => {
            let start = read(&folder, "start").unwrap_or_default();
            (disk, format!(":partition={number}:start={start}"))
        }
        _ => (&*folder, String::new()),
    };
    let stable = [
        "wwid",
        "device/wwid",
        "device/serial",
        "serial",
        "dm/uuid",
        "md/uuid",
    ];
    let name = stable
        .iter()
        .find_map(|file| Some(format!("{file}={}", read(disk, file)?)))
        .or_else(|| loop_file(disk));
    match name {
        Some(name) => Ok(format!("device:{name}{part}:size={size}")),
        None => wrong(
            "has no WWN, serial number or UUID: nothing tells it from another device tomorrow",
        ),
    }
}

/// A loop device's backing file: which one it is, and where in it the device begins.
fn loop_file(disk: &Path) -> Option<String> {
    let file = read(disk, "loop/backing_file")?;
    let metadata = std::fs::metadata(&file).ok()?;
    let offset = read(disk, "loop/offset").unwrap_or_default();
    let (device, inode) = (metadata.dev(), metadata.ino());
    Some(format!(
        "loop={file}:inode={device}.{inode}:offset={offset}"
    ))
}

/// A line of sysfs; none when there is no such file or nothing in it.
fn read(folder: &Path, file: &str) -> Option<String> {
    let text = std::fs::read_to_string(folder.join(file)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
