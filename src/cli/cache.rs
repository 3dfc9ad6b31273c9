//! The options of a block cache on disk.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;

use crate::cache::DiskCacheConfig;

#[derive(Args, Debug)]
#[command(next_help_heading = "Cache on disk")]
pub(super) struct DiskCacheArgs {
    /// Keep blocks in this folder too, for later runs; one process at a time [default: off]
    #[arg(long, value_name = "DIRECTORY")]
    cache_dir: Option<PathBuf>,
    /// Most bytes that --cache-dir may take; the blocks that were not used for longest make room
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "16GiB",
        requires = "cache_dir"
    )]
    cache_size: ByteSize,
    /// Keep blocks of encrypted snapshots too, decrypted, and of those of which EC2 does not tell
    #[arg(long, requires = "cache_dir")]
    cache_encrypted: bool,
}

impl DiskCacheArgs {
    /// The cache that is asked for, for the blocks of this account's service or repository.
    pub(super) fn config(&self, origin: &str) -> Option<DiskCacheConfig> {
        self.cache_dir.as_ref().map(|folder| DiskCacheConfig {
            folder: folder.clone(),
            size: self.cache_size.as_u64(),
            keep_encrypted: self.cache_encrypted,
            origin: origin.to_owned(),
        })
    }
}
