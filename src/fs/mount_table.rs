//! The kernel's mount table, and which mount a path leads to. Reading it touches no mounted filesystem, which may not answer.
//!
//! <https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html>. `statx` returns a mount's id only since Linux 5.8.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use crate::error::{Error, Kind, Result};
use crate::sysfs::unescaped;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountLine {
    /// Unique among the present mounts; the kernel gives it to a later mount again.
    pub(super) id: u64,
    /// The mount that it is mounted on.
    parent: u64,
    /// Device number of the filesystem, as text: `0:52`. No other filesystem has it while this one exists.
    pub(super) device: String,
    /// Where it is mounted, as this process sees it.
    pub(super) mountpoint: PathBuf,
    /// Whether ebsfs mounted it.
    pub(super) is_ours: bool,
    /// What was mounted, as its driver tells it: a device, or any word.
    source: PathBuf,
}

impl MountLine {
    /// Whether a block device is mounted there. A filesystem such as btrfs has a device number of its own and is known by its source.
    pub(crate) fn is_of(&self, block_device: &Path) -> bool {
        let number = std::fs::metadata(block_device).map(|found| {
            let number = found.rdev();
            format!("{}:{}", major(number), minor(number))
        });
        self.source == block_device || number.is_ok_and(|number| self.device == number)
    }

    /// What identifies the mount from now on.
    pub(crate) fn identity(&self) -> MountIdentity {
        MountIdentity {
            id: self.id,
            device: self.device.clone(),
        }
    }
}

/// The mounts of a namespace, as a process of it sees them.
#[derive(Debug)]
pub(crate) struct MountTable(Vec<MountLine>);

/// Identifies a mount: the id is unique among the present mounts, the device while the filesystem exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountIdentity {
    pub(crate) id: u64,
    pub(crate) device: String,
}

/// Where a mount is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MountLocation {
    /// This path leads to it.
    Reachable(PathBuf),
    /// Something else is mounted over this path.
    Covered(PathBuf),
    /// It is not in this mount namespace.
    Absent,
}

impl MountTable {
    /// The table of this process.
    ///
    /// # Errors
    /// `Io` without /proc.
    pub(crate) fn read() -> Result<Self> {
        let path = "/proc/self/mountinfo";
        let text = std::fs::read(path)
            .map_err(|error| Error::with_source(Kind::Io, format!("cannot read {path}"), error))?;
        Ok(Self::parse(&text))
    }

    /// Parses a table; malformed lines are left out.
    pub(crate) fn parse(text: &[u8]) -> Self {
        Self(text.split(|byte| *byte == b'\n').filter_map(line).collect())
    }

    /// The mount that contains an absolute path without links and dots. Like the kernel it goes down from the root, and at each
    /// name takes the topmost mount.
    pub(super) fn at(&self, path: &Path) -> Option<&MountLine> {
        let mut names: Vec<&Path> = path.ancestors().collect();
        names.reverse();
        let mut mount = None;
        for name in names {
            while let Some(upper) = self.mounted_on(mount, name) {
                mount = Some(upper);
            }
        }
        mount
    }

    /// The mount at a path directly on `lower`. `None` is the mount that the table leaves out: the parent of `/`, or the one
    /// that contains the root of a process whose root (chroot) is not a mount.
    fn mounted_on(&self, lower: Option<&MountLine>, at: &Path) -> Option<&MountLine> {
        let is_known = |id| self.0.iter().any(|line| line.id == id);
        let is_on_it = |line: &MountLine| match lower {
            Some(lower) => line.parent == lower.id && line.id != lower.id,
            None => line.parent == line.id || !is_known(line.parent),
        };
        let mut lines = self.0.iter();
        lines.find(|line| line.mountpoint == at && is_on_it(line))
    }

    /// The mount whose root a path is.
    pub(crate) fn mounted_at(&self, path: &Path) -> Option<&MountLine> {
        self.at(path).filter(|mount| mount.mountpoint == path)
    }

    /// The present place of a mount.
    pub(crate) fn place(&self, identity: &MountIdentity) -> MountLocation {
        let ours = |line: &&MountLine| line.id == identity.id && line.device == identity.device;
        let Some(line) = self.0.iter().find(ours) else {
            return MountLocation::Absent;
        };
        let path = line.mountpoint.clone();
        match self.at(&path) {
            Some(top) if top.id == line.id => MountLocation::Reachable(path),
            _ => MountLocation::Covered(path),
        }
    }

    /// Whether a filesystem is mounted anywhere in the namespace.
    pub(super) fn has_device(&self, device: &str) -> bool {
        self.0.iter().any(|line| line.device == device)
    }
}

fn line(text: &[u8]) -> Option<MountLine> {
    let fields: Vec<&[u8]> = text.split(|byte| *byte == b' ').collect();
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    // Optional fields end at a lone dash; type and source follow.
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let (kind, source) = (*fields.get(dash + 1)?, *fields.get(dash + 2)?);
    Some(MountLine {
        id: number(fields.first()?)?,
        parent: number(fields.get(1)?)?,
        device: String::from_utf8(fields.get(2)?.to_vec()).ok()?,
        mountpoint: unescaped(fields.get(4)?),
        is_ours: kind == b"fuse.ebsfs" || (kind == b"fuse" && source == b"ebsfs"),
        source: unescaped(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line: id, parent, device, mountpoint, type.
    fn table(lines: &[(u64, u64, &str, &str, &str)]) -> MountTable {
        let text: String = lines
            .iter()
            .map(|(id, parent, device, at, kind)| {
                let source = if kind.starts_with("fuse") {
                    "ebsfs"
                } else {
                    "none"
                };
                format!("{id} {parent} {device} / {at} rw,nosuid shared:1 - {kind} {source} rw\n")
            })
            .collect();
        MountTable::parse(text.as_bytes())
    }

    fn identity(id: u64, device: &str) -> MountIdentity {
        MountIdentity {
            id,
            device: device.into(),
        }
    }

    const BASE: [(u64, u64, &str, &str, &str); 2] = [
        (20, 1, "8:1", "/", "ext4"),
        (30, 20, "0:5", "/mnt", "tmpfs"),
    ];

    #[test]
    fn a_mount_is_found_by_its_id_and_its_device() {
        let mut lines = BASE.to_vec();
        lines.push((40, 30, "0:52", "/mnt/a\\040b", "fuse.ebsfs"));
        let table = table(&lines);
        let path = PathBuf::from("/mnt/a b");
        assert!(table.mounted_at(&path).unwrap().is_ours);
        assert_eq!(
            table.place(&identity(40, "0:52")),
            MountLocation::Reachable(path)
        );
        assert_eq!(table.place(&identity(40, "0:53")), MountLocation::Absent);
        assert_eq!(table.place(&identity(41, "0:52")), MountLocation::Absent);
        assert_eq!(table.mounted_at(Path::new("/mnt/a")), None);
        assert_eq!(table.at(Path::new("/mnt/c/d")).unwrap().id, 30);
    }

    #[test]
    fn a_mount_that_another_one_covers_is_not_reachable() {
        let path = PathBuf::from("/mnt/e");
        for (what, cover) in [
            ("over it", (50, 40, "0:60", "/mnt/e", "tmpfs")),
            ("over the folder above", (50, 30, "0:60", "/mnt", "tmpfs")),
            ("over the root", (50, 20, "0:60", "/", "tmpfs")),
        ] {
            let mut lines = BASE.to_vec();
            lines.push((40, 30, "0:52", "/mnt/e", "fuse"));
            let place = |lines: &[_]| table(lines).place(&identity(40, "0:52"));
            assert_eq!(
                place(&lines),
                MountLocation::Reachable(path.clone()),
                "{what}"
            );
            lines.push(cover);
            assert_eq!(
                place(&lines),
                MountLocation::Covered(path.clone()),
                "{what}"
            );
        }
        // Below it, nothing is covered.
        let mut lines = BASE.to_vec();
        lines.push((40, 30, "0:52", "/mnt/e", "fuse"));
        lines.push((50, 40, "0:60", "/mnt/e/snapshots", "tmpfs"));
        let table = table(&lines);
        assert_eq!(
            table.place(&identity(40, "0:52")),
            MountLocation::Reachable(path)
        );
    }

    #[test]
    fn a_mount_of_ebsfs_is_known_by_its_type_whatever_its_source() {
        for (kind, source, is_ours) in [
            ("fuse.ebsfs", "ebsfs", true),
            ("fuse.ebsfs", "snap-0123456789abcdef0", true),
            ("fuse.ebsfs", "tag:a\\040b=c", true),
            // As fusermount names it to a kernel that knows no subtypes.
            ("fuse", "ebsfs", true),
            ("fuse", "sshfs", false),
            ("fuse.sshfs", "ebsfs", false),
            ("ext4", "ebsfs", false),
        ] {
            let text = format!("40 30 0:52 / /mnt ro shared:1 - {kind} {source} ro\n");
            let table = MountTable::parse(text.as_bytes());
            let found = table.mounted_at(Path::new("/mnt")).unwrap();
            assert_eq!(found.is_ours, is_ours, "{kind} {source}");
        }
    }

    #[test]
    fn a_root_that_is_no_mount_holds_mounts() {
        let lines = [
            (40, 20, "0:52", "/mnt", "fuse.ebsfs"),
            (50, 40, "0:60", "/mnt/e", "tmpfs"),
        ];
        let table = table(&lines);
        assert_eq!(table.at(Path::new("/")), None);
        assert_eq!(table.at(Path::new("/mnt/e/f")).unwrap().id, 50);
        let path = PathBuf::from("/mnt");
        assert!(table.mounted_at(&path).unwrap().is_ours);
        assert_eq!(
            table.place(&identity(40, "0:52")),
            MountLocation::Reachable(path)
        );
    }

    #[test]
    fn malformed_lines_are_left_out() {
        for text in [
            "",
            "x",
            "1 2 0:1 / /",
            "1 2 0:1 / / rw",
            "a b 0:1 / / rw - ext4 x rw",
            "\u{0}\n\n",
        ] {
            assert_eq!(
                MountTable::parse(text.as_bytes()).at(Path::new("/")),
                None,
                "{text:?}"
            );
        }
        assert_eq!(unescaped(b"a\\134b\\9\\"), Path::new("a\\b\\9\\"));
    }
}
