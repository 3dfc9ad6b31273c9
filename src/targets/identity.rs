//! [`identity`]: tells a block device from others, whatever its path. [`device_mark`]: proves that nothing has written it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::files::FileMark;
use crate::source::size_of;
use crate::sysfs::{BlockDevice, Sysfs};
use crate::target::DeviceMark;

/// Files of a disk's folder that tell it from others, the best first.
const STABLE: &[&str] = &[
    "wwid",
    "device/wwid",
    "device/serial",
    "serial",
    "dm/uuid",
    "md/uuid",
];

/// How often counters are read until two readings agree: a sibling partition may be in use.
const READINGS: usize = 20;

/// Which block device one is. It never depends on the content: a copy has the same content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// As records keep it: WWN, serial number, UUID or backing file, where in it this is, and the size.
    pub(crate) id: String,
    /// What names it on a command line, never empty, the first one preferred.
    pub(crate) tokens: Vec<String>,
    /// Whether the id is the same tomorrow and no other device's: false where only the path tells the device from others.
    pub(crate) is_stable: bool,
}

/// The identity of the device at `path`.
///
/// # Errors
/// `Invalid` when it is no block device; the system's error.
pub(crate) fn identity(path: &Path) -> Result<Identity> {
    let file = OpenOptions::new()
        .read(true)
        // A FIFO without a writer, a drive without a medium.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|error| Error::of_file(path, "cannot look at", error))?;
    identity_of(path, &file)
}

/// The identity of an open device: of what was opened, not of what the path names now.
///
/// # Errors
/// As for [`identity`].
pub(crate) fn identity_of(path: &Path, file: &File) -> Result<Identity> {
    let metadata = file
        .metadata()
        .map_err(|error| Error::of_file(path, "cannot look at", error))?;
    if !metadata.file_type().is_block_device() {
        let what = format!("cannot use {}: it is not a block device", path.display());
        return Err(Error::new(Kind::Invalid, what));
    }
    let size = size_of(path, file)?;
    let sysfs = Sysfs::system();
    let node = sysfs.node(metadata.rdev());
    Ok(identity_in(&sysfs, node.as_ref(), path, size))
}

/// The identity of a device by a sysfs tree.
fn identity_in(sysfs: &Sysfs, node: Option<&BlockDevice>, path: &Path, size: u64) -> Identity {
    let path = path.display().to_string();
    let part = node.and_then(|node| {
        let start = node.read("start").unwrap_or_default();
        Some((node.partition()?, start))
    });
    let place = part
        .as_ref()
        .map(|(n, at)| format!(":partition={n}:start={at}"));
    let place = place.unwrap_or_default();
    let identity = |name: &str, tokens: Vec<String>, is_stable| Identity {
        id: format!("device:{name}{place}:size={size}"),
        tokens,
        is_stable,
    };
    let by_path = |path: String| identity(&format!("path={path}"), vec![path], false);
    let Some(disk) = node.map(BlockDevice::disk) else {
        return by_path(path);
    };
    if let Some(name) = loop_file(&disk) {
        return identity(&name, vec![path], true);
    }
    let mut others = sysfs.disks();
    // A hidden disk is a path to another one (NVMe multipath).
    others.retain(|other| *other != disk && other.read("hidden").is_none_or(|is| is == "0"));
    match name_of(&disk) {
        // A serial number that two virtual disks share distinguishes neither.
        Some(name)
            if !others
                .iter()
                .any(|other| name_of(other).as_ref() == Some(&name)) =>
        {
            let taken: Vec<_> = others.iter().flat_map(tokens_of).collect();
            let mut tokens = tokens_of(&disk);
            tokens.retain(|token| !taken.contains(token));
            for token in &mut tokens {
                if let Some((number, _)) = &part {
                    // As udev names partitions in /dev/disk/by-id.
                    token.push_str(&format!("-part{number}"));
                }
            }
            if tokens.is_empty() {
                tokens.push(path);
            }
            identity(&name, tokens, true)
        }
        _ => by_path(path),
    }
}

/// What tells a disk from others, with the file that says so.
fn name_of(disk: &BlockDevice) -> Option<String> {
    let found = |file: &&str| Some(format!("{file}={}", value_of(disk, file)?));
    STABLE.iter().find_map(found)
}

/// An identifying value; none where it is a placeholder or no text.
fn value_of(disk: &BlockDevice, file: &str) -> Option<String> {
    let value = disk.read(file)?;
    let prefixes = ["naa.", "eui.", "uuid.", "0x"];
    let digits = prefixes
        .iter()
        .find_map(|prefix| value.strip_prefix(prefix));
    let is_blank = digits.unwrap_or(&value).chars().all(|c| "0-. ".contains(c));
    (!is_blank && !value.chars().any(char::is_control)).then_some(value)
}

/// What a person may call a disk: its WWN, its serial number, its UUID.
fn tokens_of(disk: &BlockDevice) -> Vec<String> {
    let values = |files: &[&str]| -> Vec<String> {
        let found = files.iter().filter_map(|file| value_of(disk, file));
        found.collect()
    };
    let wwids = values(&["wwid", "device/wwid"]);
    let mut tokens = Vec::new();
    for wwid in &wwids {
        if let Some(hex) = wwid.strip_prefix("naa.") {
            tokens.extend([format!("wwn-0x{hex}"), format!("0x{hex}"), hex.to_owned()]);
        } else if wwid.starts_with("eui.") || wwid.starts_with("uuid.") {
            tokens.extend([wwid.clone(), format!("nvme-{wwid}")]);
        }
    }
    tokens.extend(values(&["device/serial", "serial", "dm/uuid", "md/uuid"]));
    tokens.extend(wwids);
    let mut once: Vec<String> = Vec::new();
    for token in tokens {
        if !once.contains(&token) {
            once.push(token);
        }
    }
    once
}

/// A loop device's backing file: which one it is, and where in it the device begins.
fn loop_file(disk: &BlockDevice) -> Option<String> {
    let file = disk.backing_file()?;
    let metadata = std::fs::metadata(&file).ok()?;
    let offset = disk.read("loop/offset").unwrap_or_default();
    // Not the number of the filesystem's device: on btrfs and NFS that is another one after each mount.
    let inode = metadata.ino();
    Some(format!(
        "loop={}:inode={inode}:offset={offset}",
        file.display()
    ))
}

/// The mark of an open device, once what the page caches hold for it is on it; none where the kernel does not count, or
/// where anything that it depends on cannot be read.
pub(crate) fn device_mark(file: &File) -> Option<DeviceMark> {
    let node = flush_all(file)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let backing = match node.is_loop() {
        true => Some(backing_mark(&node)?),
        false => None,
    };
    let (written, discarded) = counters(&node)?;
    Some(DeviceMark {
        boot: boot.trim().to_owned(),
        diskseq: node.disk().read("diskseq"),
        written,
        discarded,
        backing,
    })
}

/// Writes back what the page caches hold for an open device. A disk and its partitions have a page cache each, and all of them
/// end on the same sectors.
pub(super) fn flush_all(file: &File) -> Option<BlockDevice> {
    let node = Sysfs::system().node(file.metadata().ok()?.rdev())?;
    file.sync_all().ok()?;
    for other in node.sharing().iter().filter(|other| **other != node) {
        open_node(other)?.sync_all().ok()?;
    }
    Some(node)
}

/// The device that a folder of sysfs is of, at its default path.
fn open_node(node: &BlockDevice) -> Option<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(node.path())
        .ok()?;
    let metadata = file.metadata().ok()?;
    let is_it = metadata.file_type().is_block_device() && Some(metadata.rdev()) == node.rdev();
    is_it.then_some(file)
}

/// The mark of a loop device's backing file; none where that is deleted or is a device, whose node shows no writes.
fn backing_mark(node: &BlockDevice) -> Option<FileMark> {
    let path = node.backing_file()?;
    let is_file = std::fs::metadata(&path).is_ok_and(|found| found.is_file());
    if !is_file {
        return None;
    }
    let mark = FileMark::flushed(&path).ok()?;
    mark.proves_at(&path).then_some(mark)
}

/// Sectors written to a device and sectors discarded: of a partition its disk's without those of the other partitions, so
/// that what is written past the partition table counts too.
fn counters(node: &BlockDevice) -> Option<(u64, u64)> {
    let disk = node.disk();
    // What is written to the devices under a mapped one does not show on it.
    if !disk.parts().is_empty() {
        return None;
    }
    let is_on = |file: &str| disk.read(file).is_some_and(|on| on != "0");
    // A filesystem on persistent memory writes past every counter.
    if !is_on("queue/iostats") || is_on("queue/dax") {
        return None;
    }
    let mut siblings = disk.partitions();
    siblings.retain(|sibling| node.partition().is_some() && !sibling.overlaps(node));
    let read = || {
        let [read, written, discarded] = stat(&disk)?;
        // Some drivers count nothing; one that counts has counted the reading of the partition table.
        if read == 0 && written == 0 {
            return None;
        }
        siblings
            .iter()
            .try_fold((written, discarded), |rest, sibling| {
                let [_, written, discarded] = stat(sibling)?;
                Some((rest.0.checked_sub(written)?, rest.1.checked_sub(discarded)?))
            })
    };
    // The files are not read at one moment: two readings that agree are of a moment at which nothing was written.
    let mut last = read();
    for _ in 0..READINGS {
        let next = read();
        if next.is_some() && next == last {
            return next;
        }
        last = next;
    }
    None
}

/// Sectors of 512 bytes read, written and discarded: fields 3, 7 and 14 (kernel.org, `Documentation/block/stat.rst`).
/// A flush counts none.
fn stat(node: &BlockDevice) -> Option<[u64; 3]> {
    let text = node.read("stat")?;
    let fields: Vec<&str> = text.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 1)?.parse::<u64>().ok();
    Some([field(3)?, field(7)?, field(14)?])
}

#[cfg(test)]
mod tests;
