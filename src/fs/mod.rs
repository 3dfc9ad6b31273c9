//! A catalog as a filesystem: [`tree`] decides (inodes, names, sizes), [`fuse`] translates (the kernel's requests,
//! errnos, mounting), [`log`] tells of failures without repeating itself.

mod fuse;
mod log;
mod tree;

pub use fuse::{Access, Mounted, mount, unmount};
pub use tree::{Ownership, Tree};
