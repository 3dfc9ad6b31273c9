//! `ebsfs warm`: reads every block of snapshots into a block cache on disk, before a mount uses it.

use std::sync::Arc;

use clap::Args;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::aws::{self, AwsArgs};
use super::cache::DiskCacheArgs;
use super::limits::LimitArgs;
use super::output;
use crate::block::BlockIndex;
use crate::cache::{Cache, CachedCatalog, DiskCache, MIN_MEMORY};
use crate::error::{Error, Kind, Remedy, Result};
use crate::snapshot::{Selector, SnapshotId};
use crate::source::Catalog;

/// Read all blocks of snapshots into the cache in --cache-dir, for mounts that use it later
#[derive(Args, Debug)]
pub(super) struct WarmArgs {
    /// Ids of EBS snapshots, for example snap-0123456789abcdef0
    #[arg(required = true)]
    snapshots: Vec<SnapshotId>,
    #[command(flatten)]
    disk: DiskCacheArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    aws: AwsArgs,
}

impl WarmArgs {
    pub(super) fn run(self) -> Result<()> {
        super::runtime()?.block_on(self.warm())
    }

    async fn warm(&self) -> Result<()> {
        let config = self.aws.load_with_credentials().await?;
        let Some(disk) = self.disk.config(&aws::place(&config)?) else {
            let error = Error::new(Kind::Invalid, "cannot warm a cache: no directory is given");
            return Err(error.with_remedy(Remedy::Do("name it with --cache-dir".into())));
        };
        let disk = DiskCache::open_patient(disk)?;
        let select = self.snapshots.iter().cloned().map(Selector::Snapshot);
        let limits = self.limits.limits();
        let (_, catalog) = aws::catalog(&config, &limits, select.collect())?;
        // No block is read twice: memory holds only blocks in flight.
        let memory = MIN_MEMORY.max(bytesize::ByteSize::mib(
            4 * u64::from(self.limits.max_in_flight),
        ));
        let cache = Cache::new(memory, self.limits.max_in_flight)?;
        let catalog = CachedCatalog::new(cache, catalog).with_disk(Some(Arc::clone(&disk)));
        for id in &self.snapshots {
            let before = disk.hits();
            let read = self.read_all(&catalog, &disk, id).await?;
            let found = disk.hits() - before;
            output::write(None, |out| {
                writeln!(
                    out,
                    "{id}: {read} blocks, {found} of them in the cache already"
                )
            })?;
        }
        tokio::task::block_in_place(|| disk.finish())
    }

    /// Reads all blocks that a snapshot holds, and returns their number.
    async fn read_all(
        &self,
        catalog: &CachedCatalog,
        disk: &DiskCache,
        id: &SnapshotId,
    ) -> Result<u64> {
        let (snapshot, source) = catalog.open(id).await?;
        if !disk.keeps(snapshot.encrypted) {
            let why = match snapshot.encrypted {
                Some(_) => "it is encrypted",
                None => "its encryption is unknown (ec2:DescribeSnapshots tells it)",
            };
            let remedy = Remedy::Do("allow that with --cache-encrypted".into());
            let error = Error::new(Kind::Invalid, format!("cannot cache {id} on disk: {why}"));
            return Err(error.with_remedy(remedy));
        }
        let (mut from, mut read) = (BlockIndex(0), 0);
        while let Some(extent) = source.next_extent(from).await? {
            let blocks = stream::iter(extent.blocks().map(|index| source.read_block(index)));
            blocks
                .buffer_unordered(self.limits.max_in_flight as usize)
                .try_for_each(|_| async { disk.check_on() })
                .await?;
            read += u64::from(extent.count());
            from = extent.end();
        }
        Ok(read)
    }
}
