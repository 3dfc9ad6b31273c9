//! `ebsfs changes`: what differs between two snapshots, or along the chain of a volume's.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use tracing::info;

use super::aws::{self, AwsArgs};
use super::limits::LimitArgs;
use super::output;
use crate::block::{Delta, Geometry};
use crate::compare;
use crate::cost;
use crate::ebs::EbsCatalog;
use crate::error::{Error, Kind, Result};
use crate::maps::{Format, Map, Totals, title};
use crate::snapshot::{Selector, SnapshotId, SnapshotState};
use crate::source::Catalog;

/// Show what differs between two snapshots
#[derive(Args, Debug)]
#[command(
    long_about = "Show what differs between two snapshots, in blocks of 512 KiB. A changed block is written (it has data in HEAD) or \
    zeroed (it reads as zeroes in HEAD). The listing costs at least one request per 10,000 blocks. Blocks are read only with \
    --exact or --unrelated compare.\n\n\
    A rewrite with the same bytes counts as written: AWS lists writes, not differences. --exact reads both and compares."
)]
pub(super) struct ChangesArgs {
    /// Snapshot to start from: the base
    #[arg(required_unless_present = "volume", requires = "head")]
    base: Option<SnapshotId>,
    /// Snapshot to end with: the head
    head: Option<SnapshotId>,
    /// Show each step along the snapshots of this volume, oldest first, for example vol-0123456789abcdef0
    #[arg(long, value_name = "VOLUME", conflicts_with_all = ["base", "format", "output", "exact", "unrelated"])]
    volume: Option<String>,
    /// Leave out blocks that were rewritten with the same bytes; reads each changed block from both snapshots
    #[arg(long)]
    exact: bool,
    /// Action for snapshots without a common history
    #[arg(long, value_name = "ACTION", value_enum, default_value_t = Unrelated::Refuse)]
    unrelated: Unrelated,
    #[command(flatten)]
    form: FormArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    aws: AwsArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Unrelated {
    /// End with exit code 2
    Refuse,
    /// List both, read the blocks that both hold, and compare them
    Compare,
}

#[derive(Args, Debug)]
pub(super) struct FormArgs {
    /// Format of the result
    #[arg(long, value_enum, default_value_t = Form::Table)]
    format: Form,
    /// Write the result to FILE, which appears whole or not at all [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Totals for people
    Table,
    /// As qemu-img map --output=json
    Json,
    /// First block, offset, length and state of each run
    Csv,
    /// For bmaptool copy --bmap
    Bmap,
    /// For ddrescue --domain-mapfile
    Mapfile,
    /// A picture of the volume
    Svg,
    /// As nbdinfo --map
    Nbdinfo,
}

impl FormArgs {
    /// Writes the map as it was asked for, or the table.
    pub(super) fn write(
        &self,
        map: &Map,
        title: &str,
        table: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<()> {
        let format = match self.format {
            Form::Table => return output::write(self.output.as_deref(), table),
            Form::Svg => {
                return output::write(self.output.as_deref(), |out| {
                    out.write_all(map.heatmap(title).as_bytes())
                });
            }
            Form::Json => Format::Json,
            Form::Csv => Format::Csv,
            Form::Bmap => Format::Bmap,
            Form::Mapfile => Format::Mapfile,
            Form::Nbdinfo => Format::Nbdinfo,
        };
        output::write(self.output.as_deref(), |out| map.write(format, out))
    }
}

impl ChangesArgs {
    pub(super) fn run(self) -> Result<()> {
        let runtime = super::runtime()?;
        if let Some(volume) = &self.volume {
            return runtime.block_on(self.chain(volume));
        }
        let (Some(base), Some(head)) = (&self.base, &self.head) else {
            return Err(Error::new(Kind::Invalid, "name two snapshots, or --volume"));
        };
        let (delta, lists, gets) = runtime.block_on(async {
            let config = self.aws.load_with_credentials().await?;
            let select = vec![
                Selector::Snapshot(base.clone()),
                Selector::Snapshot(head.clone()),
            ];
            let (client, catalog) = aws::catalog(&config, &self.limits.limits(), select)?;
            let delta = self.delta(&catalog, base, head).await?;
            let counts = client.counts();
            Ok::<_, Error>((delta, counts.lists, counts.gets))
        })?;
        let totals = Totals::of(&delta);
        let title = title(Some(base.as_str()), head.as_str());
        let base_size = delta.base().map_or(0, Geometry::size);
        let head_size = delta.head().size();
        self.form.write(&Map::Changes(delta), &title, |out| {
            let size = |size: u64| ByteSize::b(size).to_string();
            writeln!(out, "base       {base}, {}", size(base_size))?;
            writeln!(out, "head       {head}, {}", size(head_size))?;
            let written = totals.written;
            writeln!(out, "written    {written} blocks, {}", size(totals.bytes))?;
            writeln!(out, "zeroed     {} blocks", totals.zeroed)?;
            writeln!(
                out,
                "changed    {:.3} % of the volume",
                totals.share * 100.0
            )?;
            let cost = cost::of_lists(lists);
            writeln!(out, "listing    {lists} requests, ${cost:.4}")?;
            if gets > 0 {
                let cost = cost::of_gets(gets);
                writeln!(out, "comparing  {gets} requests, ${cost:.4}")?;
            }
            let cost = cost::of_gets(totals.written);
            writeln!(out, "reading    {written} requests, ${cost:.4}")
        })
    }

    /// What differs, by listing and, where that was asked for, by comparing.
    async fn delta(
        &self,
        catalog: &EbsCatalog,
        base: &SnapshotId,
        head: &SnapshotId,
    ) -> Result<Arc<Delta>> {
        let (delta, new) = match catalog.delta(base, head).await {
            Err(error)
                if error.kind() == Kind::Unrelated && self.unrelated == Unrelated::Compare =>
            {
                info!("{base} and {head} have no history in common: comparing their blocks");
                let (_, old) = catalog.open(base).await?;
                let (_, new) = catalog.open(head).await?;
                return compare::unrelated(&*old, &*new).await.map(Arc::new);
            }
            listed => listed?,
        };
        if !self.exact {
            return Ok(delta);
        }
        // Listed the other way round it brings the tokens of the base's blocks.
        let (_, old) = catalog.delta(head, base).await?;
        compare::exact(&delta, &*old, &*new).await.map(Arc::new)
    }

    /// A line for each pair of neighbours on the volume.
    async fn chain(&self, volume: &str) -> Result<()> {
        let config = self.aws.load_with_credentials().await?;
        let select: Selector = volume.parse()?;
        if !matches!(select, Selector::Volume(_)) {
            let what =
                format!("--volume {volume} is no volume: it must look like vol-0123456789abcdef0");
            return Err(Error::new(Kind::Invalid, what));
        }
        let (client, catalog) = aws::catalog(&config, &self.limits.limits(), vec![select])?;
        let mut snapshots = catalog.list().await?;
        snapshots.retain(|snapshot| snapshot.state == Some(SnapshotState::Completed));
        if snapshots.len() < 2 {
            let what = format!(
                "{volume} has {} completed snapshots: changes need two",
                snapshots.len()
            );
            return Err(Error::new(Kind::NotFound, what));
        }
        let mut lines = vec![
            [
                "BASE",
                "HEAD",
                "WRITTEN",
                "BYTES",
                "ZEROED",
                "CHANGED",
                "READING IT",
            ]
            .map(str::to_owned),
        ];
        for pair in snapshots.windows(2) {
            let [base, head] = pair else { continue };
            let before = client.counts().lists;
            let (delta, _) = catalog.delta(&base.id, &head.id).await?;
            let totals = Totals::of(&delta);
            let cost =
                cost::of_lists(client.counts().lists - before) + cost::of_gets(totals.written);
            lines.push([
                base.id.to_string(),
                head.id.to_string(),
                totals.written.to_string(),
                ByteSize::b(totals.bytes).to_string(),
                totals.zeroed.to_string(),
                format!("{:.3} %", totals.share * 100.0),
                format!("${cost:.4}"),
            ]);
        }
        output::write(None, |out| out.write_all(super::table(&lines).as_bytes()))
    }
}
