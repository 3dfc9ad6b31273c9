//! temp
pub mod error;
pub mod block;
pub mod source;
pub mod readahead;
pub mod aws;
pub mod ebs;
#[cfg(feature = "ec2")]
pub mod ec2;
pub mod cache;
pub mod image;
pub mod fs;
pub mod emulator;
pub mod cli;
