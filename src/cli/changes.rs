//! `ebsfs changes`: what differs between two snapshots, or along the chain of a volume's.

use std::io::{self, Write};
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};

use super::aws::{self, AwsArgs};
use super::output;
use crate::block::{BLOCK_SIZE, Delta, Geometry};
use crate::ebs::Limits;
use crate::error::{Error, Kind, Result};
use crate::maps::{Format, Map};
use crate::source::{Catalog, Selector, SnapshotId, State};

/// Dollars a request, us-east-1: <https://aws.amazon.com/ebs/pricing/>, EBS direct APIs.
const GET_PRICE: f64 = 0.003 / 1000.0;
const LIST_PRICE: f64 = 0.0006 / 1000.0;

/// Show what differs between two snapshots
#[derive(Args, Debug)]
#[command(
    long_about = "Show what differs between two snapshots: blocks of 512 KiB that were written, and blocks that are gone \
    (they read as zeroes in HEAD). The listing costs one request for 10,000 blocks; no block is read.\n\n\
    A rewrite with the same bytes counts as written: AWS lists writes, not differences."
)]
pub(super) struct ChangesArgs {
    #[command(flatten)]
    aws: AwsArgs,
    /// The snapshot to start from
    #[arg(required_unless_present = "volume", requires = "head")]
    base: Option<SnapshotId>,
    /// The snapshot to end with
    head: Option<SnapshotId>,
    /// Each step along the snapshots of this volume, oldest first
    #[arg(long, value_name = "VOLUME", conflicts_with_all = ["base", "format", "output"])]
    volume: Option<String>,
    #[command(flatten)]
    form: FormArgs,
}

#[derive(Args, Debug)]
pub(super) struct FormArgs {
    /// How to show it
    #[arg(long, value_enum, default_value_t = Form::Table)]
    format: Form,
    /// Write to this file, which appears whole or not at all
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
    /// As nbdinfo --map
    Nbdinfo,
}

impl FormArgs {
    /// Writes the map as it was asked for, or the table.
    pub(super) fn write(
        &self,
        map: Map<'_>,
        table: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<()> {
        let format = match self.format {
            Form::Table => return output::write(self.output.as_deref(), table),
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
        let (delta, lists) = runtime.block_on(async {
            let config = self.aws.load_with_credentials().await?;
            let select = vec![
                Selector::Snapshot(base.clone()),
                Selector::Snapshot(head.clone()),
            ];
            let (client, catalog) = aws::catalog(&config, &Limits::default(), select);
            let delta = catalog.delta(base, head).await?;
            Ok::<_, Error>((delta, client.counts().lists))
        })?;
        let totals = Totals::of(&delta, lists);
        self.form.write(Map::Changes(&delta), |out| {
            let size = |size: u64| ByteSize::b(size).to_string();
            let base_size = delta.base().map_or(0, Geometry::size);
            writeln!(out, "base       {base}, {}", size(base_size))?;
            writeln!(out, "head       {head}, {}", size(delta.head().size()))?;
            writeln!(
                out,
                "written    {} blocks, {}",
                totals.written,
                size(totals.bytes)
            )?;
            writeln!(out, "gone       {} blocks", totals.gone)?;
            writeln!(out, "changed    {:.3} % of the volume", totals.percent)?;
            writeln!(
                out,
                "listing    {} requests, ${:.4}",
                totals.lists,
                totals.list_cost()
            )?;
            writeln!(
                out,
                "reading    {} requests, ${:.4}",
                totals.written,
                totals.get_cost()
            )
        })
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
        let (client, catalog) = aws::catalog(&config, &Limits::default(), vec![select]);
        let mut snapshots = catalog.list().await?;
        snapshots.retain(|snapshot| snapshot.state == Some(State::Completed));
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
                "GONE",
                "CHANGED",
                "READING IT",
            ]
            .map(str::to_owned),
        ];
        for pair in snapshots.windows(2) {
            let [base, head] = pair else { continue };
            let before = client.counts().lists;
            let delta = catalog.delta(&base.id, &head.id).await?;
            let totals = Totals::of(&delta, client.counts().lists - before);
            lines.push([
                base.id.to_string(),
                head.id.to_string(),
                totals.written.to_string(),
                ByteSize::b(totals.bytes).to_string(),
                totals.gone.to_string(),
                format!("{:.3} %", totals.percent),
                format!("${:.4}", totals.get_cost()),
            ]);
        }
        output::write(None, |out| out.write_all(super::table(&lines).as_bytes()))
    }
}

/// What a delta comes to.
struct Totals {
    written: u64,
    gone: u64,
    bytes: u64,
    percent: f64,
    lists: u64,
}

impl Totals {
    fn of(delta: &Delta, lists: u64) -> Self {
        let (written, gone) = (delta.write().len(), delta.zero().len());
        Self {
            written,
            gone,
            bytes: written * u64::from(BLOCK_SIZE),
            percent: (written + gone) as f64 * 100.0 / f64::from(delta.head().block_count()),
            lists,
        }
    }

    fn get_cost(&self) -> f64 {
        self.written as f64 * GET_PRICE
    }

    fn list_cost(&self) -> f64 {
        self.lists as f64 * LIST_PRICE
    }
}
