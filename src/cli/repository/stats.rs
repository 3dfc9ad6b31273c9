//! `ebsfs repository stats`: what the snapshots of each volume take.

use std::sync::Arc;

use bytesize::ByteSize;
use clap::Args;

use super::{Where, print_json};
use crate::cli::progress::{ProgressForm, Shown};
use crate::cli::{output, table};
use crate::error::Result;
use crate::progress::Progress;
use crate::repository::{Growth, Usage, stats};

#[derive(Args, Debug)]
pub(super) struct StatsArgs {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Form of the progress on stderr
    #[arg(long, value_name = "FORM", value_enum, default_value_t = ProgressForm::Auto)]
    progress: ProgressForm,
    #[command(flatten)]
    place: Where,
}

impl StatsArgs {
    pub(super) async fn run(self) -> Result<()> {
        let catalog = self.place.open().await?;
        let progress = Arc::new(Progress::default());
        let shown = Shown::start(self.progress, Arc::clone(&progress));
        let found = stats(&catalog, &progress).await;
        drop(shown);
        let found = found?;
        if self.json {
            return print_json(&found);
        }
        let head = [
            "VOLUME",
            "SNAPSHOTS",
            "SIZE",
            "HELD",
            "UNIQUE",
            "DEDUP",
            "COMPRESSION",
            "GROWTH",
        ];
        let mut rows = vec![head.map(str::to_owned)];
        let volumes = found.volumes.iter();
        rows.extend(volumes.map(|(key, usage)| row(key.as_str(), usage)));
        if found.volumes.len() > 1 {
            rows.push(row("all", &found.total));
        }
        output::write(None, |out| {
            out.write_all(table(&rows).as_bytes())?;
            match found.unreadable {
                0 => Ok(()),
                count => writeln!(
                    out,
                    "{count} manifests and segments cannot be read: ebsfs repository check names them"
                ),
            }
        })
    }
}

fn row(volume: &str, usage: &Usage) -> [String; 8] {
    let size = |bytes: u64| ByteSize::b(bytes).to_string();
    [
        volume.to_owned(),
        usage.snapshots.to_string(),
        size(usage.volume_bytes),
        size(usage.held_bytes),
        size(usage.stored_bytes),
        format!("{:.2}", usage.dedup_ratio),
        format!("{:.2}", usage.compression_ratio),
        growth(&usage.growth).map_or("-".to_owned(), size),
    ]
}

/// Bytes stored for each snapshot after the first one, on average.
fn growth(all: &[Growth]) -> Option<u64> {
    let (_, later) = all.split_first()?;
    let sum: u64 = later.iter().map(|one| one.stored_bytes).sum();
    sum.checked_div(later.len() as u64)
}
