//! [`ViewPartition`], and which of them is opened.

use super::super::lines::quoted;
use crate::error::{Error, Kind, Remedy, Result};

/// A partition, as the parser found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ViewPartition {
    /// Its number, `0` for the whole disk, or GROUP/VOLUME of LVM.
    pub(crate) name: String,
    /// Bytes from the start of the image.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// What it holds: `ext4`, `vfat`, `xfs`, `empty`.
    pub(crate) content: String,
    /// Whether it is for the firmware: it is opened only when it is named, or alone.
    pub(crate) is_efi: bool,
}

impl ViewPartition {
    /// Whether the parser reads what it holds.
    pub(crate) fn is_readable(&self) -> bool {
        ["ext2", "ext3", "ext4", "vfat", "ntfs"].contains(&self.content.as_str())
    }
}

/// The partition that is opened: a pure function.
pub(super) fn choose(partitions: &[ViewPartition], name: Option<&str>) -> Result<ViewPartition> {
    let listed = || {
        let all = partitions.iter().filter(|found| found.content != "empty");
        let all: Vec<String> = all
            .map(|found| {
                let (name, content) = (found.name.as_bytes(), found.content.as_bytes());
                format!("{} ({})", quoted(name), quoted(content))
            })
            .collect();
        match all.is_empty() {
            true => "it has none".to_owned(),
            false => format!("it has {}", all.join(", ")),
        }
    };
    let chosen = match name {
        Some(name) => {
            let found = partitions.iter().find(|found| found.name == name);
            found.ok_or_else(|| {
                let what = format!(
                    "cannot open partition {name}: the disk does not have it; {}",
                    listed()
                );
                Error::new(Kind::NotFound, what)
            })?
        }
        None => {
            let readable = partitions.iter().filter(|found| found.is_readable());
            let usual: Vec<_> = readable.clone().filter(|found| !found.is_efi).collect();
            let all: Vec<_> = readable.collect();
            match (usual.as_slice(), all.as_slice(), partitions) {
                ([only], ..) | ([], [only], _) => *only,
                ([], [], [only]) => only,
                ([], [], _) => {
                    let what = format!(
                        "cannot find a filesystem that is read without the kernel: {}",
                        listed()
                    );
                    let remedy = Remedy::Do("ebsfs attach mounts others, as root".into());
                    return Err(Error::new(Kind::NotFound, what).with_remedy(remedy));
                }
                _ => {
                    let what = format!("cannot choose a partition of the disk: {}", listed());
                    let error = Error::new(Kind::Undecided, what);
                    return Err(error.with_remedy(Remedy::NamePartition));
                }
            }
        }
    };
    if chosen.is_readable() {
        return Ok(chosen.clone());
    }
    let content = quoted(chosen.content.as_bytes());
    let what = format!("cannot read {content} without the kernel");
    let remedy = match chosen.content.as_str() {
        "xfs" | "btrfs" => "ebsfs attach mounts it, as root",
        "lvm" => "name one of its volumes as GROUP/VOLUME",
        "luks" | "bitlocker" => {
            "it is encrypted: open it with cryptsetup on ebsfs mount's disk.raw"
        }
        _ => "ebsfs mount shows the disk as a file for other programs",
    };
    Err(Error::new(Kind::Invalid, what).with_remedy(Remedy::Do(remedy.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: u32, content: &str) -> ViewPartition {
        let (content, is_efi) = match content.strip_prefix("efi ") {
            Some(content) => (content, true),
            None => (content, false),
        };
        ViewPartition {
            name: number.to_string(),
            start: 0,
            size: 1,
            content: content.to_owned(),
            is_efi,
        }
    }

    #[test]
    fn the_only_readable_partition_is_opened_and_of_several_none() {
        let disk = |contents: &[&str]| {
            let numbered = (1..).zip(contents);
            numbered
                .map(|(number, content)| partition(number, content))
                .collect::<Vec<_>>()
        };
        for (contents, name, expected) in [
            (&["vfat", "xfs"][..], None, Ok("1")),
            (&["xfs", "ext4", "empty"], None, Ok("2")),
            (&["vfat", "ext4"], None, Err(Kind::Undecided)),
            (&["efi vfat", "ext4"], None, Ok("2")),
            (&["efi vfat", "xfs"], None, Ok("1")),
            (&["efi vfat", "efi vfat"], None, Err(Kind::Undecided)),
            (&["vfat", "ext4"], Some("2"), Ok("2")),
            (&["vfat", "ext4"], Some("3"), Err(Kind::NotFound)),
            (&["xfs"], None, Err(Kind::Invalid)),
            (&["xfs", "ext4"], Some("1"), Err(Kind::Invalid)),
            (&["xfs", "btrfs"], None, Err(Kind::NotFound)),
            (&[], None, Err(Kind::NotFound)),
        ] {
            let found = choose(&disk(contents), name);
            let found = found.map(|found| found.name).map_err(|error| error.kind());
            let expected = expected.map(str::to_owned);
            assert_eq!(found, expected, "{contents:?} {name:?}");
        }
        let error = choose(&disk(&["vfat", "ext4"]), None).unwrap_err();
        assert!(error.chain().contains("1 (vfat), 2 (ext4)"), "{error:?}");
    }
}
