//! A catalog as a filesystem: [`tree`] decides (inodes, names, sizes), [`fuse`] translates (the kernel's requests, errnos).
//! [`resources`] checks the limits of the process, [`mounting`] mounts, [`mount_table`] finds the mount, and [`mod@unmount`] ends it.
//! [`log`] writes the failures that readers got, [`opened`] who read which image; [`activity`] counts requests.

mod activity;
mod fuse;
mod log;
mod mount_table;
mod mounted;
mod mounting;
mod mountpoint;
mod opened;
mod resources;
mod server;
mod tree;
mod unmount;

pub(crate) use activity::ActivityCounts;
pub(crate) use fuse::{Access, mount, mount_view};
pub(crate) use mount_table::{MountIdentity, MountLine, MountLocation, MountTable};
pub(crate) use mounted::Mounted;
pub(crate) use mounting::check_mounting;
pub(crate) use mountpoint::{absolute, check_mountpoint, is_dead_mount};
pub(crate) use opened::{Custodian, ImageRead, ImageReader};
pub(crate) use resources::{Needs, reserve};
pub(crate) use server::{UnmountReport, unmount_at};
pub(crate) use tree::{Ownership, Provenance, Tree};
pub(crate) use unmount::{Unmounted, unmount};
