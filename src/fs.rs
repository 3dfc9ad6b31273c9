//! A catalog as a filesystem: [`tree`] decides (inodes, names, sizes), [`fuse`] translates (the kernel's requests, errnos).
//! [`resources`] checks the limits of the process, [`mounting`] mounts, [`mount_table`] finds the mount, and [`unmount`] ends it.
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

pub use activity::{Activity, ActivityCounts};
pub use fuse::{Access, mount};
pub use mounted::Mounted;
pub use mountpoint::{check_mountpoint, is_dead_mount};
pub use resources::{Needs, reserve};
pub use server::{UnmountReport, unmount_at};
pub use tree::{Ownership, Provenance, Tree};
pub use unmount::Unmounted;
