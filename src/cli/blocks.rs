//! `ebsfs blocks`: which blocks a snapshot holds.

use bytesize::ByteSize;
use clap::Args;

use super::aws::{self, AwsArgs};
use super::changes::FormArgs;
use crate::block::{BLOCK_SIZE, BlockIndex, BlockSet};
use crate::ebs::Limits;
use crate::error::{Error, Result};
use crate::maps::Map;
use crate::source::{Catalog, Selector, SnapshotId};

/// Show which blocks a snapshot holds; all others read as zeroes
#[derive(Args, Debug)]
pub(super) struct BlocksArgs {
    #[command(flatten)]
    aws: AwsArgs,
    /// The snapshot
    snapshot: SnapshotId,
    #[command(flatten)]
    form: FormArgs,
}

impl BlocksArgs {
    pub(super) fn run(self) -> Result<()> {
        let id = &self.snapshot;
        let (geometry, held) = super::runtime()?.block_on(async {
            let config = self.aws.load_with_credentials().await?;
            let select = vec![Selector::Snapshot(id.clone())];
            let (_, catalog) = aws::catalog(&config, &Limits::default(), select);
            let (_, source) = catalog.open(id).await?;
            let mut held = BlockSet::new();
            let mut at = BlockIndex(0);
            while let Some(extent) = source.next_extent(at).await? {
                held.insert_extent(extent);
                at = extent.end();
            }
            Ok::<_, Error>((source.geometry(), held))
        })?;
        self.form.write(Map::Blocks(geometry, &held), |out| {
            let bytes = held.len() * u64::from(BLOCK_SIZE);
            let percent = held.len() as f64 * 100.0 / f64::from(geometry.block_count());
            writeln!(out, "snapshot   {id}, {}", ByteSize::b(geometry.size()))?;
            writeln!(
                out,
                "held       {} blocks, {}",
                held.len(),
                ByteSize::b(bytes)
            )?;
            writeln!(out, "share      {percent:.3} % of the volume")
        })
    }
}
