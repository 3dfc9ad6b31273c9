//! [`plan`]: which driver mounts a filesystem, and with which options. A pure function.

use crate::error::{Error, Kind, Remedy, Result};
use crate::volumes::{DiskContent, VolumeView};

/// What mounts a filesystem: attempts, the first of which that this machine has is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AttachPlan {
    /// What the filesystem is called.
    pub(super) filesystem: &'static str,
    /// Drivers of the kernel and their options, besides `ro`.
    pub(super) attempts: Vec<(&'static str, &'static str)>,
    /// Whether ntfs-3g is tried where the kernel has no driver.
    pub(super) has_ntfs_3g: bool,
    /// Whether an overlay could help where the driver refuses.
    pub(super) can_replay: bool,
}

/// Decides how a partition is mounted. Without an overlay each driver is asked to replay nothing.
///
/// # Errors
/// `Invalid` for what is no filesystem, or one whose driver replays nothing in an overlay.
pub(super) fn plan(view: &VolumeView, overlay: bool) -> Result<AttachPlan> {
    let content = view.filesystem.as_ref().map(|held| &held.content);
    let content = content.unwrap_or(&DiskContent::Unknown);
    let refused = |why: String| {
        let what = format!("cannot attach {}: {why}", view.name);
        Err(Error::new(Kind::Invalid, what))
    };
    if let Some(advice) = content.advice() {
        return refused(advice.to_owned());
    }
    let (attempts, replays): (Vec<(&'static str, &'static str)>, bool) = match content {
        DiskContent::Ext { name, .. } => {
            let options = if overlay { "" } else { "noload" };
            (vec![("ext4", options), (name, options)], true)
        }
        DiskContent::Xfs => {
            let options = if overlay {
                "nouuid"
            } else {
                "norecovery,nouuid"
            };
            (vec![("xfs", options)], true)
        }
        // Linux before 5.9 has the second form.
        DiskContent::Btrfs { .. } if !overlay => (
            vec![("btrfs", "rescue=nologreplay"), ("btrfs", "nologreplay")],
            true,
        ),
        DiskContent::Btrfs { .. } => (vec![("btrfs", "")], true),
        DiskContent::Vfat { .. } => (vec![("vfat", "")], false),
        DiskContent::Other("ntfs") => (vec![("ntfs3", "")], false),
        DiskContent::Other("exfat") => (vec![("exfat", "")], false),
        DiskContent::Other("iso9660") => (vec![("iso9660", "")], false),
        DiskContent::Other("squashfs") => (vec![("squashfs", "")], false),
        DiskContent::Other("erofs") => (vec![("erofs", "")], false),
        DiskContent::Other("f2fs") => {
            let options = if overlay { "" } else { "norecovery" };
            (vec![("f2fs", options)], true)
        }
        DiskContent::Other(name) => return refused(format!("Linux has no driver for {name}")),
        DiskContent::Empty => return refused("it holds zeroes".to_owned()),
        DiskContent::Unknown => return refused("no filesystem that ebsfs knows".to_owned()),
    };
    if overlay && !replays {
        let what = format!(
            "cannot attach {} with an overlay: the driver of {} replays no journal",
            view.name,
            content.name()
        );
        return Err(Error::new(Kind::Invalid, what).with_remedy(Remedy::NoOverlay));
    }
    Ok(AttachPlan {
        filesystem: content.name(),
        attempts,
        has_ntfs_3g: *content == DiskContent::Other("ntfs"),
        can_replay: replays && !overlay,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::DiskFilesystem;

    fn view(content: DiskContent) -> VolumeView {
        let filesystem = DiskFilesystem {
            content,
            label: crate::volumes::FilesystemLabel::default(),
        };
        VolumeView::of_whole(filesystem)
    }

    #[test]
    fn each_filesystem_has_the_options_that_forbid_or_allow_a_replay() {
        let ext = |name| DiskContent::Ext {
            name,
            needs_replay: true,
        };
        let btrfs = |devices| DiskContent::Btrfs {
            devices,
            has_log: true,
        };
        let vfat = DiskContent::Vfat {
            dirty_at: 0x41,
            is_dirty: true,
        };
        let other = DiskContent::Other;
        for (content, plain, replayed) in [
            (
                ext("ext3"),
                Ok("ext4 noload|ext3 noload"),
                Ok("ext4 |ext3 "),
            ),
            (
                DiskContent::Xfs,
                Ok("xfs norecovery,nouuid"),
                Ok("xfs nouuid"),
            ),
            (
                btrfs(1),
                Ok("btrfs rescue=nologreplay|btrfs nologreplay"),
                Ok("btrfs "),
            ),
            (btrfs(2), Err("several devices"), Err("several devices")),
            (vfat, Ok("vfat "), Err("replays no journal")),
            (other("ntfs"), Ok("ntfs3 "), Err("replays no journal")),
            (other("f2fs"), Ok("f2fs norecovery"), Ok("f2fs ")),
            (
                other("luks"),
                Err("cryptsetup open"),
                Err("cryptsetup open"),
            ),
            (other("bitlocker"), Err("bitlk"), Err("bitlk")),
            (other("md raid"), Err("mdadm"), Err("mdadm")),
            (other("lvm"), Err("GROUP/VOLUME"), Err("GROUP/VOLUME")),
            (other("refs"), Err("no driver for refs"), Err("no driver")),
            (DiskContent::Empty, Err("zeroes"), Err("zeroes")),
            (
                DiskContent::Unknown,
                Err("no filesystem"),
                Err("no filesystem"),
            ),
        ] {
            let view = view(content);
            for (overlay, expected) in [(false, plain), (true, replayed)] {
                match (plan(&view, overlay), expected) {
                    (Ok(plan), Ok(attempts)) => {
                        let found = plan
                            .attempts
                            .iter()
                            .map(|(name, options)| format!("{name} {options}"));
                        assert_eq!(found.collect::<Vec<_>>().join("|"), attempts);
                        assert_eq!(plan.has_ntfs_3g, plan.filesystem == "ntfs");
                    }
                    (Err(error), Err(words)) => {
                        assert!(error.chain().contains(words), "{}", error.chain());
                        assert_eq!(error.kind(), Kind::Invalid);
                    }
                    (found, expected) => panic!("{found:?} and not {expected:?}"),
                }
            }
        }
    }
}
