//! The options of a block cache on disk.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;

use crate::cache::DiskCacheConfig;

#[derive(Args, Debug)]
#[command(next_help_heading = "Cache on disk")]
pub(super) struct DiskCacheArgs {
    /// Keep blocks in this directory too, for later runs; only one process can use it at a time [default: off]
    #[arg(long, value_name = "DIRECTORY")]
    cache_dir: Option<PathBuf>,
    /// Most disk space of --cache-dir, at least 256MiB; the least recently used blocks are evicted
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "16GiB",
        requires = "cache_dir"
    )]
    cache_size: ByteSize,
    /// Keep blocks of encrypted snapshots too, decrypted, and of snapshots whose encryption is unknown
    #[arg(long, requires = "cache_dir")]
    cache_encrypted: bool,
}

impl DiskCacheArgs {
    /// The settings of the cache, if --cache-dir is given. `origin` is the Region and endpoint, or the repository.
    pub(super) fn config(&self, origin: &str) -> Option<DiskCacheConfig> {
        self.cache_dir.as_ref().map(|folder| DiskCacheConfig {
            folder: folder.clone(),
            size: self.cache_size.as_u64(),
            keep_encrypted: self.cache_encrypted,
            origin: origin.to_owned(),
        })
    }
}
