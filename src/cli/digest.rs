//! `ebsfs digest`: the digests of a whole image without a copy of it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::output;
use super::reading::ReadArgs;
use super::signals::{listen, only_read};
use super::store::end_reading;
use crate::block::hexadecimal;
use crate::error::{Error, Result};
use crate::files::OutputFile;
use crate::repository::Address;
use crate::sync::{
    DigestRequest, HeldBlock, ImageDigests, OnDamage, Progress, REPORT_VERSION, source_digest,
};

/// Print the SHA-256 of a whole snapshot, image or device, holes included
#[derive(Args, Debug)]
#[command(
    long_about = "Print the SHA-256 of a whole snapshot, image or device, holes included, as sha256sum prints it of an image file. \
    No copy is made; each block that is held is fetched once."
)]
pub(super) struct DigestArgs {
    /// Snapshot id; volume id or tag:KEY=VALUE for its newest completed snapshot; raw image or block device; or a snapshot of a
    /// repository, s3://BUCKET/PREFIX#SNAPSHOT
    source: String,
    /// Write a line of CSV for each block that is held to FILE: index, state (data or zero), SHA-256. Blocks without a line are
    /// holes, which read as zeroes
    #[arg(long, value_name = "FILE")]
    blocks: Option<PathBuf>,
    /// Print the MD5 too, on a second line, as md5sum prints it
    #[arg(long)]
    md5: bool,
    #[command(flatten)]
    reading: ReadArgs,
}

/// What was read.
struct DigestResult {
    name: String,
    bytes: u64,
    held_blocks: u64,
    digests: ImageDigests,
}

impl DigestArgs {
    pub(super) fn run(self) -> Result<()> {
        let runtime = super::runtime()?;
        let done = runtime.block_on(self.digest());
        runtime.shutdown_timeout(Duration::from_millis(200));
        let done = done.map_err(only_read)?;
        let md5 = done.digests.md5.map(|md5| hexadecimal(&md5));
        let sha256 = hexadecimal(&done.digests.sha256);
        output::write(None, |out| {
            if self.reading.json {
                let value = json!({
                    "version": REPORT_VERSION,
                    "source": done.name,
                    "bytes": done.bytes,
                    "held_blocks": done.held_blocks,
                    "sha256": sha256,
                    "md5": md5,
                });
                return writeln!(out, "{value}");
            }
            for digest in std::iter::once(&sha256).chain(&md5) {
                writeln!(out, "{}", sum_line(digest, &done.name))?;
            }
            Ok(())
        })
    }

    async fn digest(&self) -> Result<DigestResult> {
        self.reading.check(Some(&self.source))?;
        let stop = listen()?;
        let mut lines = self.blocks.as_deref().map(BlockLines::begin).transpose()?;
        let progress = Arc::new(Progress::default());
        let shown = self.reading.show(&progress);
        let opened = self.reading.open(&self.source, &shown, &stop).await?;
        let source = &opened.source;
        let mut held_blocks = 0;
        let mut on_block = |block: HeldBlock| {
            held_blocks += 1;
            lines.as_mut().map_or(Ok(()), |lines| lines.add(block))
        };
        let asked = DigestRequest {
            with_md5: self.md5,
            with_sha1: false,
            in_flight: self.reading.in_flight(),
            on_damage: OnDamage::Fail,
            on_block: Some(&mut on_block),
            copy: None,
        };
        let digests = source_digest(source, asked, &progress, &stop).await;
        end_reading(opened.lease).await;
        let digests = digests?;
        lines.map_or(Ok(()), BlockLines::end)?;
        let id = source.info.id();
        let name = match id.filter(|_| !Path::new(&self.source).exists()) {
            Some(id) if Address::looks_like(&self.source) => {
                format!("{}#{id}", self.source.parse::<Address>()?)
            }
            Some(id) => id.to_string(),
            None => self.source.clone(),
        };
        Ok(DigestResult {
            name,
            bytes: source.info.geometry.size(),
            held_blocks,
            digests,
        })
    }
}

/// The file of `--blocks`.
struct BlockLines {
    path: PathBuf,
    file: OutputFile,
}

impl BlockLines {
    fn begin(path: &Path) -> Result<Self> {
        let mut lines = Self {
            path: path.to_owned(),
            file: OutputFile::create(path)?,
        };
        lines.write("index,state,sha256\n")?;
        Ok(lines)
    }

    fn add(&mut self, block: HeldBlock) -> Result<()> {
        let state = if block.is_zero { "zero" } else { "data" };
        let sha256 = hexadecimal(&block.sha256);
        self.write(&format!("{},{state},{sha256}\n", block.index))
    }

    fn write(&mut self, text: &str) -> Result<()> {
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|error| Error::of_file(&self.path, "cannot write", error))
    }

    fn end(self) -> Result<()> {
        self.file.commit()
    }
}

/// A line as sha256sum prints it: a backslash in front says that the name has escapes.
fn sum_line(digest: &str, name: &str) -> String {
    if !name.contains(['\\', '\n', '\r']) {
        return format!("{digest}  {name}");
    }
    let name = name.replace('\\', "\\\\");
    let name = name.replace('\n', "\\n").replace('\r', "\\r");
    format!("\\{digest}  {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_as_sha256sum_prints_it() {
        assert_eq!(sum_line("00", "a b"), "00  a b");
        assert_eq!(sum_line("00", "a\\b\nc"), "\\00  a\\\\b\\nc");
    }
}
