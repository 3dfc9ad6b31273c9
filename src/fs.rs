//! A catalog as a filesystem: [`tree`] decides (inodes, names, sizes), [`fuse`] translates (the kernel's requests,
//! errnos, mounting), [`log`] tells of failures without repeating itself.

mod fuse;
mod log;
mod mounted;
mod tree;
mod unmount;

pub use fuse::{Access, mount};
pub use mounted::Mounted;
pub use tree::{Ownership, Tree};
pub use unmount::unmount;
