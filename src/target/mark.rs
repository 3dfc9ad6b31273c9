//! [`Mark`]: what the kernel tells of a target's last change.

use serde::{Deserialize, Serialize};

use crate::files::FileMark;

/// What the kernel tells of a target's last change. Two equal marks prove that nothing wrote the target in between; two
/// different ones prove nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// Of an image.
    Image(FileMark),
    /// Of a block device.
    Device(DeviceMark),
}

/// How much was written to a block device of this machine since the machine was started. What another machine writes to a
/// shared disk it does not tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMark {
    /// The start of the machine (`/proc/sys/kernel/random/boot_id`): the counters begin again with each.
    pub boot: String,
    /// The kernel's number of this attachment of the disk; none before Linux 5.15.
    pub diskseq: Option<String>,
    /// Sectors of 512 bytes written (kernel.org, block/stat, field 7): of a partition its disk's less its siblings', so that
    /// what is written past the partition table counts too.
    pub written: u64,
    /// Sectors discarded (field 14), likewise.
    pub discarded: u64,
    /// Of a loop device the mark of its backing file.
    pub backing: Option<FileMark>,
}
