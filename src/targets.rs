//! The places of this machine and of EBS that a volume can be written to, each a [`Target`](crate::target::Target):
//! an image, a block device, a new EBS snapshot. (A repository is one too: [`crate::repository`].)

mod clone;
mod device;
mod ebs;
mod holders;
mod identity;
mod image;
mod raw;

pub use ebs::{EbsJob, EbsPlace, EbsTarget};
