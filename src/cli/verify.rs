//! `ebsfs verify`: a whole target against its digests, or against a snapshot.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use serde_json::{Value, json};

use super::output;
use super::reading::ReadArgs;
use super::signals::{listen, only_read};
use super::store::end_reading;
use super::target::{existing_target, recorded_name};
use crate::error::Result;
use crate::sync::{CheckBasis, CheckReport, Progress, REPORT_VERSION, TargetCheck};

/// Read a whole image or device and compare it with the digests of its last copy, or with a snapshot
#[derive(Args, Debug)]
#[command(
    long_about = "Read a whole image or device, past the page cache, and compare it with the digests that its last copy kept. That \
    asks nothing of AWS. With --fetch compare it with the snapshot itself.\n\n\
    Prints each differing range, in blocks of 512 KiB, and ends with exit code 8 if there is one. Ends with exit code 11 if \
    nothing tells what the target holds. Changes neither the target nor its record; a copy to it must wait until this ends."
)]
pub(super) struct VerifyArgs {
    /// Image or block device to read
    target: String,
    /// Snapshot that the target must hold, as its record says [default: the one that the record names]; with --fetch also an
    /// image or a snapshot of a repository, s3://BUCKET/PREFIX#SNAPSHOT
    snapshot: Option<String>,
    /// Compare with the blocks of the snapshot, one request to EBS or the repository each, instead of the kept digests
    #[arg(long)]
    fetch: bool,
    #[command(flatten)]
    reading: ReadArgs,
}

impl VerifyArgs {
    pub(super) fn run(self) -> Result<()> {
        let runtime = super::runtime()?;
        let done = runtime.block_on(self.verify());
        runtime.shutdown_timeout(Duration::from_millis(200));
        let report = done.map_err(only_read)?;
        output::write(None, |out| match self.reading.json {
            true => json_report(&report, out),
            false => text_report(&report, out),
        })?;
        report.result()
    }

    async fn verify(&self) -> Result<CheckReport> {
        self.reading.check(self.snapshot.as_deref())?;
        let stop = listen()?;
        let target = existing_target(&self.target, &self.reading.state_dir())?;
        let asked = self.snapshot.as_deref();
        let recorded = asked.map(recorded_name).transpose()?;
        let progress = Arc::new(Progress::default());
        let shown = self.reading.show(&progress);
        let check = TargetCheck::begin(target, progress, stop.clone()).await?;
        let name = match check.basis(recorded.as_deref(), self.fetch)? {
            CheckBasis::Digests => return check.with_digests().await,
            CheckBasis::Source(name) => name,
        };
        let name = asked.unwrap_or(&name);
        let opened = self.reading.open(name, &shown, &stop).await?;
        let report = check.with_source(&opened.source).await;
        end_reading(opened.lease).await;
        report
    }
}

fn text_report(report: &CheckReport, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    let with = match report.by_digests {
        true => "the digests of ",
        false => "",
    };
    writeln!(out, "target     {}", report.target)?;
    let size = ByteSize::b(report.bytes);
    writeln!(out, "compared   {size} with {with}{}", report.snapshot)?;
    if report.damaged_blocks > 0 {
        let blocks = report.damaged_blocks;
        writeln!(
            out,
            "damaged    {blocks} blocks left zero by the last copy: their source is damaged"
        )?;
    }
    if report.damaged_in_source > 0 {
        let blocks = report.damaged_in_source;
        writeln!(
            out,
            "damaged    {blocks} blocks are zero in the source; no list says which"
        )?;
    }
    for (offset, length) in report.ranges() {
        writeln!(out, "differs    offset {offset}, {length} bytes")?;
    }
    if report.is_equal() {
        writeln!(out, "result     equal")?;
    }
    Ok(())
}

fn json_report(report: &CheckReport, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    let head = json!({
        "version": REPORT_VERSION,
        "target": report.target,
        "snapshot": report.snapshot,
        "compared_with": if report.by_digests { "digests" } else { "snapshot" },
        "bytes": report.bytes,
        "equal": report.is_equal(),
        "damaged_blocks": report.damaged_blocks,
        "damaged_in_source": report.damaged_in_source,
        "differing_blocks": report.differing_blocks(),
    });
    with_ranges(&head, report.ranges(), out)
}

/// A JSON object on a line, with ranges of bytes as its last member.
pub(super) fn with_ranges(
    head: &Value,
    ranges: impl Iterator<Item = (u64, u64)>,
    out: &mut dyn std::io::Write,
) -> std::io::Result<()> {
    let head = head.to_string();
    // There can be millions: one at a time.
    write!(
        out,
        "{},\"differing\":[",
        head.strip_suffix('}').unwrap_or(&head)
    )?;
    for (number, (offset, length)) in ranges.enumerate() {
        let comma = if number == 0 { "" } else { "," };
        write!(
            out,
            "{comma}{}",
            json!({"offset": offset, "length": length})
        )?;
    }
    writeln!(out, "]}}")
}
