//! `ebsfs record`: what is recorded of a target, shown, exported and imported.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output;
use super::signals::{listen, only_read};
use super::target::{existing_target, local_target};
use crate::error::{Error, Kind, Result};
use crate::files::default_state_dir;
use crate::repository::Address;
use crate::sync::{
    REPORT_VERSION, RecordImport, RecordView, export_record, import_record, view_record,
};
use crate::target::{Content, Target, TargetRecord};

/// Show, export and import what is recorded of an image or device
#[derive(Args, Debug)]
pub(super) struct RecordArgs {
    #[command(subcommand)]
    verb: RecordVerb,
}

#[derive(Debug, Subcommand)]
enum RecordVerb {
    /// Print the record of TARGET: what it holds, since when, and what proves it
    Show(RecordShowArgs),
    /// Write the record of TARGET as JSON, to keep it elsewhere
    Export(ExportArgs),
    /// Take over an exported record for TARGET, whose own is lost; the next copy to TARGET compares it with the digests first
    Import(ImportArgs),
}

#[derive(Args, Debug)]
struct TargetArgs {
    /// Image or block device
    target: String,
    /// Directory for the records and digests of devices [env: EBSFS_STATE_DIR; default: /var/lib/ebsfs for root, else $XDG_STATE_HOME/ebsfs]
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct RecordShowArgs {
    #[command(flatten)]
    of: TargetArgs,
    /// Print the record as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct ExportArgs {
    #[command(flatten)]
    of: TargetArgs,
    /// Write the record to FILE, which appears whole or not at all [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Copy the digests of the blocks to FILE, 32 bytes a block
    #[arg(long, value_name = "FILE")]
    digests: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct ImportArgs {
    #[command(flatten)]
    of: TargetArgs,
    /// Record that `ebsfs record export` wrote. A device must be the same one; an image may have been moved
    #[arg(value_name = "RECORD")]
    record: PathBuf,
    /// Digests that `ebsfs record export --digests` wrote at the same time
    #[arg(long, value_name = "FILE")]
    digests: Option<PathBuf>,
    /// Replace the record that TARGET has
    #[arg(long)]
    replace: bool,
}

impl RecordArgs {
    pub(super) fn run(self) -> Result<()> {
        let runtime = super::runtime()?;
        let done = runtime.block_on(async {
            match &self.verb {
                RecordVerb::Show(show) => show.run(),
                RecordVerb::Export(export) => export.run(),
                RecordVerb::Import(import) => import.run().await,
            }
        });
        runtime.shutdown_timeout(Duration::from_millis(200));
        done.map_err(only_read)
    }
}

impl TargetArgs {
    /// The target, which may be lost while its record is not.
    fn open(&self) -> Result<Arc<dyn Target>> {
        let name = &self.target;
        if name.starts_with("ebs:") || Address::looks_like(name) {
            let what =
                format!("cannot use {name}: images and devices of this machine have records");
            return Err(Error::new(Kind::Invalid, what));
        }
        local_target(name, false, false, &self.state_dir())
    }

    fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(default_state_dir)
    }
}

impl RecordShowArgs {
    fn run(&self) -> Result<()> {
        let target = self.of.open()?;
        let view = view_record(&*target)?;
        output::write(None, |out| match self.json {
            true => {
                let record: Value = serde_json::from_slice(&view.encoded()).unwrap_or_default();
                let value = json!({
                    "version": REPORT_VERSION,
                    "target": target.name(),
                    "record": record,
                    "proven": view.is_proven,
                    "digests": view.whole_digests.map(|whole| if whole { "whole" } else { "plan" }),
                });
                writeln!(out, "{value}")
            }
            false => write!(out, "{}", in_words(target.name(), &view)),
        })
    }
}

impl ExportArgs {
    fn run(&self) -> Result<()> {
        let stop = listen()?;
        let target = self.of.open()?;
        let record = export_record(&*target, self.digests.as_deref(), &stop)?;
        output::write(self.output.as_deref(), |out| out.write_all(&record))
    }
}

impl ImportArgs {
    async fn run(&self) -> Result<()> {
        let stop = listen()?;
        let target = existing_target(&self.of.target, &self.of.state_dir())?;
        let import = RecordImport {
            record: self.record.clone(),
            digests: self.digests.clone(),
            replaces: self.replace,
        };
        let record = import_record(&*target, &import, &stop).await?;
        let name = target.name();
        output::write(None, |out| writeln!(out, "{name}: {}", held(&record)))
    }
}

/// What a target holds by a record.
fn held(record: &TargetRecord) -> String {
    match &record.content {
        Content::Holds(snapshot) => format!("holds {snapshot}"),
        Content::Between { base, head } => {
            let base = base.as_deref().unwrap_or("something unknown");
            format!("between {base} and {head}: not usable")
        }
    }
}

fn in_words(name: &str, view: &RecordView) -> String {
    let record = &view.record;
    let volume = record.volume.as_deref().unwrap_or("volume unknown");
    let mut lines = vec![
        format!("target     {name}"),
        format!("id         {}", record.target),
        format!("content    {}", held(record)),
        format!("volume     {volume}, {}", ByteSize::b(record.volume_bytes)),
    ];
    if let Some(time) = record.time {
        let time = crate::time::rfc3339_seconds(time);
        lines.push(format!("time       {time}"));
    }
    let evidence = match (view.is_proven, view.whole_digests) {
        (true, _) => "nothing has written the target since (its mark matches)",
        (false, Some(true)) => "none: the next copy compares the target with its digests",
        (false, _) => "none: its mark does not match, and there are no digests of all blocks",
    };
    lines.push(format!("evidence   {evidence}"));
    let digests = match view.whole_digests {
        Some(true) => "of every block",
        Some(false) => "of the changed blocks alone",
        None => "none",
    };
    lines.push(format!("digests    {digests}"));
    let damaged = record.damaged.iter();
    let damaged: u64 = damaged
        .map(|(first, end)| u64::from(end.saturating_sub(*first)))
        .sum();
    if damaged > 0 {
        lines.push(format!("damaged    {damaged} blocks left zero"));
    }
    if record.damaged_in_source > 0 {
        let blocks = record.damaged_in_source;
        lines.push(format!(
            "damaged    {blocks} blocks are zero in the source; no list says which"
        ));
    }
    lines.push(format!("run        {}", record.run));
    lines.push(String::new());
    lines.join("\n")
}
