//! Block devices as the kernel shows them in sysfs (kernel.org, `Documentation/ABI/stable/sysfs-block`), and paths as it writes
//! them in `/proc`.
//!
//! The root is a parameter, so that tests read a tree of their own.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, makedev, minor};

/// Bytes of a sysfs file that are read: an attribute is at most a page.
const ATTRIBUTE: u64 = 4096;

/// A tree like `/sys`.
#[derive(Clone, Debug)]
pub(crate) struct Sysfs {
    root: PathBuf,
}

impl Sysfs {
    /// The tree of this machine.
    pub(crate) fn system() -> Self {
        Self::at(Path::new("/sys"))
    }

    /// The tree at `root`.
    pub(crate) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The device of a number (`st_rdev`); none if there is none, or no sysfs.
    pub(crate) fn node(&self, rdev: u64) -> Option<BlockDevice> {
        let name = format!("dev/block/{}:{}", major(rdev), minor(rdev));
        BlockDevice::at(&self.root.join(name))
    }

    /// Every whole disk, loop devices and device-mapper included.
    pub(crate) fn disks(&self) -> Vec<BlockDevice> {
        nodes_in(&self.root.join("block"))
    }

    /// Every device of every mounted btrfs filesystem: a mount names only one of them.
    pub(crate) fn btrfs_members(&self) -> Vec<BlockDevice> {
        let mounted = std::fs::read_dir(self.root.join("fs/btrfs"));
        let folders = mounted.into_iter().flatten().flatten();
        folders
            .flat_map(|folder| nodes_in(&folder.path().join("devices")))
            .collect()
    }
}

/// A disk or a partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlockDevice {
    /// Its folder, without links.
    folder: PathBuf,
}

impl BlockDevice {
    fn at(path: &Path) -> Option<Self> {
        let folder = path.canonicalize().ok()?;
        Some(Self { folder })
    }

    /// A line of one of its files, trimmed; none when there is no such file or nothing in it.
    pub(crate) fn read(&self, file: &str) -> Option<String> {
        let mut text = String::new();
        let opened = File::open(self.folder.join(file)).ok()?;
        opened.take(ATTRIBUTE).read_to_string(&mut text).ok()?;
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// The kernel's name of it (`sda1`).
    pub(crate) fn name(&self) -> String {
        let name = self.folder.file_name().unwrap_or_default();
        name.to_string_lossy().replace('!', "/")
    }

    /// Where its device node is by default.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/dev").join(self.name())
    }

    /// Its number, as `st_rdev` has it.
    pub(crate) fn rdev(&self) -> Option<u64> {
        let text = self.read("dev")?;
        let (major, minor) = text.split_once(':')?;
        Some(makedev(major.parse().ok()?, minor.parse().ok()?))
    }

    /// The number of the partition that it is; none of a whole disk.
    pub(crate) fn partition(&self) -> Option<String> {
        self.read("partition")
    }

    /// The whole disk that it is on, or is.
    pub(crate) fn disk(&self) -> Self {
        match (self.partition(), self.folder.parent()) {
            // A partition's folder is within that of its disk.
            (Some(_), Some(disk)) => Self {
                folder: disk.to_owned(),
            },
            _ => self.clone(),
        }
    }

    /// The partitions of a disk.
    pub(crate) fn partitions(&self) -> Vec<Self> {
        let mut nodes = nodes_in(&self.folder);
        nodes.retain(|node| {
            node.folder.parent() == Some(&self.folder) && node.partition().is_some()
        });
        nodes
    }

    /// The sectors of 512 bytes of its disk that it is; all of them of a disk.
    pub(crate) fn sectors(&self) -> Range<u64> {
        let number = |file| self.read(file).and_then(|text| text.parse::<u64>().ok());
        if self.partition().is_none() {
            return 0..u64::MAX;
        }
        // Unreadable: it counts as the whole disk.
        match (number("start"), number("size")) {
            (Some(start), Some(size)) => start..start.saturating_add(size),
            _ => 0..u64::MAX,
        }
    }

    /// Whether the two share bytes of one disk.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.sectors(), other.sectors());
        self.disk() == other.disk() && a.start < b.end && b.start < a.end
    }

    /// Its disk and every partition there that shares bytes with it, itself included.
    pub(crate) fn sharing(&self) -> Vec<Self> {
        let disk = self.disk();
        let mut nodes = disk.partitions();
        nodes.push(disk);
        nodes.retain(|node| node.overlaps(self));
        nodes
    }

    /// Devices that are made of it: device-mapper, md, bcache.
    pub(crate) fn holders(&self) -> Vec<Self> {
        nodes_in(&self.folder.join("holders"))
    }

    /// Devices that it is made of.
    pub(crate) fn parts(&self) -> Vec<Self> {
        nodes_in(&self.folder.join("slaves"))
    }

    /// Of a loop device its backing file's path; none when that is deleted, for the name may be another file's by now.
    pub(crate) fn backing_file(&self) -> Option<PathBuf> {
        let path = self.disk().read("loop/backing_file")?;
        (!path.ends_with(" (deleted)")).then(|| path.into())
    }

    /// Whether it is a loop device with a backing file, or a partition of one.
    pub(crate) fn is_loop(&self) -> bool {
        self.disk().read("loop/backing_file").is_some()
    }
}

/// The devices that a folder has links to or folders of, by name.
fn nodes_in(folder: &Path) -> Vec<BlockDevice> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut nodes: Vec<_> = entries
        .filter_map(|entry| BlockDevice::at(&entry.path()))
        .filter(|node| node.folder.join("dev").is_file())
        .collect();
    nodes.sort();
    nodes
}

/// A path of `/proc`, where blanks and backslashes are written as three octal digits.
pub(crate) fn unescaped(text: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let code = match (first, tail.get(..3)) {
            (b'\\', Some(digits)) => std::str::from_utf8(digits)
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 8).ok()),
            _ => None,
        };
        path.push(code.unwrap_or(*first));
        rest = match code {
            Some(_) => tail.get(3..).unwrap_or_default(),
            None => tail,
        };
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
pub(crate) mod tests;
