//! `ebsfs blocks`: which blocks a snapshot holds.

use std::sync::Arc;

use bytesize::ByteSize;
use clap::Args;

use super::aws::{self, AwsArgs};
use super::changes::FormArgs;
use super::limits::LimitArgs;
use crate::block::BLOCK_SIZE;
use crate::error::{Error, Result};
use crate::maps::{Map, title};
use crate::snapshot::{Selector, SnapshotId};
use crate::source::{Catalog, held};

/// Show which blocks a snapshot holds; all others read as zeroes
#[derive(Args, Debug)]
pub(super) struct BlocksArgs {
    /// Snapshot id, for example snap-0123456789abcdef0
    snapshot: SnapshotId,
    #[command(flatten)]
    form: FormArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    aws: AwsArgs,
}

impl BlocksArgs {
    pub(super) fn run(self) -> Result<()> {
        let id = &self.snapshot;
        let (geometry, held) = super::runtime()?.block_on(async {
            let config = self.aws.load_with_credentials().await?;
            let select = vec![Selector::Snapshot(id.clone())];
            let (_, catalog) = aws::catalog(&config, &self.limits.limits(), select)?;
            let (_, source) = catalog.open(id).await?;
            let held = held(&*source).await?;
            Ok::<_, Error>((source.geometry(), held))
        })?;
        let count = held.len();
        let map = Map::Blocks(geometry, Arc::new(held));
        let title = title(None, id.as_str());
        self.form.write(&map, &title, |out| {
            let bytes = count * u64::from(BLOCK_SIZE);
            let percent = count as f64 * 100.0 / f64::from(geometry.block_count());
            writeln!(out, "snapshot   {id}, {}", ByteSize::b(geometry.size()))?;
            writeln!(out, "held       {} blocks, {}", count, ByteSize::b(bytes))?;
            writeln!(out, "share      {percent:.3} % of the volume")
        })
    }
}
