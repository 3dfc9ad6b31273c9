//! A catalog as a filesystem: [`tree`] decides (inodes, names, sizes), [`fuse`] translates (the kernel's requests, errnos). A mount
//! is made by [`mounting`], found again in the [`mount_table`] and undone by [`unmount`]; [`resources`] looks first whether the
//! process can serve one. [`log`] and [`opened`] write what a reader met and read.

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

pub use fuse::{Access, mount};
pub use mounted::Mounted;
pub use mountpoint::check_mountpoint;
pub use resources::{Needs, reserve};
pub use server::{UnmountReport, unmount_at};
pub use tree::{Ownership, Provenance, Tree};
pub use unmount::Unmounted;
