//! Who holds a device or an image, each as a sentence that names the holder: mounts, swap, device-mapper, LVM, md, loop
//! devices, qemu; and what a person should know of a target before it is written.
//!
//! The kernel decides (`O_EXCL`); this explains its refusal, and guards images, which the kernel does not.

mod twins;

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::makedev;

use crate::sysfs::{BlockDevice, Sysfs, unescaped};

pub(crate) use twins::mounted_twins;

/// The bytes of a file that qemu locks: 100 and on for what it does, 200 and on for what it lets others do (qemu,
/// `block/file-posix.c`, `RAW_LOCK_PERM_BASE` and `RAW_LOCK_SHARED_BASE`), five of each at most.
const QEMU_LOCKS: std::ops::Range<i64> = 100..205;

/// Mounts of one device that are named; containers bind one to hundreds of places.
const NAMED_MOUNTS: usize = 3;

/// Why a device cannot be written; empty where no holder is found.
pub(crate) fn obstacles(path: &Path) -> Vec<String> {
    let Ok(metadata) = std::fs::metadata(path) else {
        return Vec::new();
    };
    let sysfs = Sysfs::system();
    let Some(node) = sysfs.node(metadata.rdev()) else {
        return Vec::new();
    };
    let nodes = node.sharing();
    let (mut found, mut is_mounted) = (Vec::new(), false);
    for node in &nodes {
        let name = name_of(node);
        if let Some(rdev) = node.rdev() {
            let is_it = |m: &Metadata| m.file_type().is_block_device() && m.rdev() == rdev;
            let mounts = mounts(&name, |mount| {
                mount.dev == Some(rdev) || mount.source_device().is_some_and(|m| is_it(&m))
            });
            is_mounted |= !mounts.is_empty();
            found.extend(mounts);
            found.extend(swaps(&name, is_it));
        }
        found.extend(node.holders().iter().map(|holder| held_by(&name, holder)));
        if node.read("ro").is_some_and(|ro| ro != "0") {
            found.push(format!("{name} is read-only"));
        }
    }
    let members = sysfs.btrfs_members();
    if !is_mounted && let Some(member) = nodes.iter().find(|node| members.contains(node)) {
        found.push(format!(
            "{} belongs to a mounted btrfs filesystem",
            name_of(member)
        ));
    }
    if let Some(file) = node.backing_file() {
        let others = loops_on(&sysfs, &file);
        let others = others.into_iter().filter(|other| *other != node.disk());
        found.extend(others.map(|other| attached_at(&file.display().to_string(), &other)));
    }
    found.extend(qemu_lock(path));
    found.dedup();
    found
}

/// Why an image should not be written: who uses it.
pub(crate) fn image_obstacles(path: &Path) -> Vec<String> {
    let Ok(metadata) = std::fs::metadata(path) else {
        return Vec::new();
    };
    let name = path.display().to_string();
    let is_it = |m: &Metadata| (m.dev(), m.ino()) == (metadata.dev(), metadata.ino());
    let mut found: Vec<String> = loops_on(&Sysfs::system(), path)
        .iter()
        .map(|device| attached_at(&name, device))
        .collect();
    // Some filesystems are mounted from a file without a loop device (erofs, FUSE). A stat(2) of other mount sources could hang
    // on an unreachable server, so only their paths are compared.
    let real = path.canonicalize().unwrap_or_default();
    found.extend(mounts(&name, |mount| mount.source == real));
    found.extend(swaps(&name, is_it));
    found.extend(qemu_lock(path));
    found
}

fn name_of(node: &BlockDevice) -> String {
    node.path().display().to_string()
}

fn attached_at(file: &str, device: &BlockDevice) -> String {
    let how = match device.read("ro").as_deref() {
        Some("1") => ", read-only",
        _ => "",
    };
    format!("{file} is attached as {}{how}", name_of(device))
}

/// The loop devices over a file, whatever it is called there.
fn loops_on(sysfs: &Sysfs, file: &Path) -> Vec<BlockDevice> {
    let id = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let Some(wanted) = id(file) else {
        return Vec::new();
    };
    let mut disks = sysfs.disks();
    disks.retain(|disk| {
        let backing = disk.backing_file();
        backing.and_then(|backing| id(&backing)) == Some(wanted)
    });
    disks
}

/// What a device of device-mapper, md or another kind does with the one that it is made of.
fn held_by(name: &str, holder: &BlockDevice) -> String {
    let device = name_of(holder);
    let dm = holder.read("dm/name");
    match (dm, holder.read("dm/uuid")) {
        (Some(dm), Some(uuid)) if uuid.starts_with("LVM-") => {
            format!("{name} holds the LVM volume {} ({device})", lvm_name(&dm))
        }
        (Some(dm), Some(uuid)) if uuid.starts_with("CRYPT-") => {
            format!("{name} holds the encrypted volume {dm} ({device})")
        }
        (Some(dm), Some(uuid)) if uuid.starts_with("mpath-") => {
            format!("{name} is a path of the multipath device {dm} ({device})")
        }
        (Some(dm), _) => format!("{name} holds the device-mapper volume {dm} ({device})"),
        (None, _) if holder.name().starts_with("md") => {
            format!("{name} is a member of the RAID array {device}")
        }
        _ => format!("{name} is held by {device}"),
    }
}

/// VG/LV of a device-mapper name: LVM writes them with one hyphen between, and doubles those within.
fn lvm_name(dm: &str) -> String {
    let plain = dm.replace("--", "\0");
    let name = match plain.split_once('-') {
        Some((group, volume)) => format!("{group}/{volume}"),
        None => plain,
    };
    name.replace('\0', "-")
}

/// A line of mountinfo (kernel.org, `filesystems/proc.rst`).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    /// The device number of its files; not a device's for btrfs and others.
    dev: Option<u64>,
    point: PathBuf,
    source: PathBuf,
}

impl Mount {
    /// What is mounted, if it is a device.
    fn source_device(&self) -> Option<Metadata> {
        let is_device = self.source.starts_with("/dev");
        is_device.then(|| std::fs::metadata(&self.source).ok())?
    }
}

fn mounts(name: &str, is_it: impl Fn(&Mount) -> bool) -> Vec<String> {
    let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let all = mounts_in(&text);
    let points: Vec<_> = all.iter().filter(|mount| is_it(mount)).collect();
    let more = points.len().saturating_sub(NAMED_MOUNTS);
    let named = points.iter().take(NAMED_MOUNTS);
    let mut found: Vec<_> = named
        .map(|mount| format!("{name} is mounted at {}", mount.point.display()))
        .collect();
    if more > 0 {
        found.push(format!("{name} is mounted at {more} other places"));
    }
    found
}

fn mounts_in(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
            let dash = fields.iter().position(|field| *field == b"-")?;
            let dev = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':');
            let number = |text: &str| text.parse::<u64>().ok();
            Some(Mount {
                dev: dev.and_then(|(major, minor)| Some(makedev(number(major)?, number(minor)?))),
                point: unescaped(fields.get(4)?),
                source: unescaped(fields.get(dash + 2)?),
            })
        })
        .collect()
}

fn swaps(name: &str, is_it: impl Fn(&Metadata) -> bool) -> Option<String> {
    let text = std::fs::read("/proc/swaps").unwrap_or_default();
    let is_swap = swaps_in(&text)
        .iter()
        .any(|path| std::fs::metadata(path).is_ok_and(|found| is_it(&found)));
    is_swap.then(|| format!("{name} is in use as swap"))
}

fn swaps_in(text: &[u8]) -> Vec<PathBuf> {
    let lines = text.split(|byte| *byte == b'\n').skip(1);
    lines
        .filter_map(|line| line.split(u8::is_ascii_whitespace).next())
        .filter(|path| path.starts_with(b"/"))
        .map(unescaped)
        .collect()
}

/// Whether qemu, or what locks as it does, has the file or device open.
fn qemu_lock(path: &Path) -> Option<String> {
    let file = open_to_look(path)?;
    let mut lock = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).ok()?,
        l_whence: i16::try_from(libc::SEEK_SET).ok()?,
        l_start: QEMU_LOCKS.start,
        l_len: QEMU_LOCKS.end - QEMU_LOCKS.start,
        l_pid: 0,
    };
    // Asks only; the answer is the first lock in the way, or F_UNLCK.
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).ok()?;
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return None;
    }
    let by = match lock.l_pid {
        pid if pid > 0 => format!(", by process {pid}"),
        _ => String::new(),
    };
    Some(format!("{} is locked as qemu does it{by}", path.display()))
}

fn open_to_look(path: &Path) -> Option<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .ok()
}

/// Bytes of a device's logical sectors; none of what is no device.
pub(crate) fn sector_size(path: &Path) -> Option<u32> {
    let metadata = std::fs::metadata(path).ok()?;
    let is_device = metadata.file_type().is_block_device();
    let node = is_device.then(|| Sysfs::system().node(metadata.rdev()))??;
    node.disk().read("queue/logical_block_size")?.parse().ok()
}

/// What a person should know of a device's sectors; none where they are those of EBS volumes.
pub(crate) fn sector_warning(name: &str, sector_size: Option<u32>) -> Option<String> {
    let size = sector_size.filter(|size| *size > 512)?;
    Some(format!(
        "{name} has sectors of {size} bytes: an image of 512-byte sectors does not boot there, and its partition table is not found"
    ))
}

#[cfg(test)]
mod tests;
