//! [`Mark`]: what the kernel reports about a target's last change.

use serde::{Deserialize, Serialize};

use crate::files::FileMark;

/// What the kernel reports about a target's last change. Two equal marks prove that nothing wrote the target in between; two
/// different ones prove nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// Of an image.
    Image(FileMark),
    /// Of a block device.
    Device(DeviceMark),
}

/// How much was written to a block device of this machine since the machine was started. The counters do not include what
/// another machine writes to a shared disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMark {
    /// The start of the machine (`/proc/sys/kernel/random/boot_id`): the counters begin again with each.
    pub(crate) boot: String,
    /// The kernel's number of this attachment of the disk; none before Linux 5.15.
    pub(crate) diskseq: Option<String>,
    /// Sectors of 512 bytes written (kernel.org, block/stat, field 7): of a partition its disk's less its siblings', so that
    /// what is written past the partition table counts too.
    pub(crate) written: u64,
    /// Sectors discarded (field 14), likewise.
    pub(crate) discarded: u64,
    /// Of a loop device the mark of its backing file.
    pub(crate) backing: Option<FileMark>,
}

impl DeviceMark {
    /// Sectors of 512 bytes written since `earlier`; none where the counters do not show it: after another start of the machine
    /// or another attachment, where sectors were discarded, and of a loop device, whose backing file can be written past it.
    pub(crate) fn sectors_since(&self, earlier: &Self) -> Option<u64> {
        let is_same_count = self.boot == earlier.boot
            && self.diskseq.is_some()
            && self.diskseq == earlier.diskseq
            && self.discarded == earlier.discarded;
        let is_own = self.backing.is_none() && earlier.backing.is_none();
        let written = self.written.checked_sub(earlier.written)?;
        (is_same_count && is_own).then_some(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_are_counted_within_one_attachment_of_a_device_of_its_own() {
        let backing = || {
            Some(FileMark {
                inode: 1,
                size: 1,
                modified_ns: 1,
                changed_ns: 1,
                born_ns: None,
            })
        };
        let mark = |boot: &str, diskseq: Option<&str>, written, discarded, backing| DeviceMark {
            boot: boot.into(),
            diskseq: diskseq.map(str::to_owned),
            written,
            discarded,
            backing,
        };
        let earlier = mark("a", Some("1"), 100, 7, None);
        let rows = [
            (mark("a", Some("1"), 130, 7, None), Some(30)),
            (earlier.clone(), Some(0)),
            (mark("b", Some("1"), 130, 7, None), None),
            (mark("a", Some("2"), 130, 7, None), None),
            (mark("a", None, 130, 7, None), None),
            (mark("a", Some("1"), 130, 8, None), None),
            (mark("a", Some("1"), 99, 7, None), None),
            (mark("a", Some("1"), 130, 7, backing()), None),
        ];
        for (now, expected) in rows {
            assert_eq!(now.sectors_since(&earlier), expected, "{now:?}");
        }
        let uncounted = mark("a", None, 1, 0, None);
        assert_eq!(uncounted.sectors_since(&uncounted), None);
    }
}
