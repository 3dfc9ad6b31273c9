//! What a run did: for its record, for people, and as the file of `--report`.

use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::block::{BlockSet, hexadecimal};
use crate::error::{Error, Kind, Result};
use crate::files::OutputFile;
use crate::target::{Task, Written};

/// Version of the reports and of the JSON lines; `docs/sync.md` describes it.
pub(crate) const REPORT_VERSION: u32 = 1;

/// What a run did for one target.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// What was copied where.
    pub(crate) task: Task,
    /// When the run that ended it began.
    #[serde(serialize_with = "rfc3339")]
    pub(crate) started: SystemTime,
    /// When it ended.
    #[serde(serialize_with = "rfc3339")]
    pub(crate) ended: SystemTime,
    /// The snapshot that was made, if that was the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot: Option<String>,
    /// Bytes of the volume.
    pub(crate) volume_bytes: u64,
    /// Blocks of the plan that were to be written.
    pub(crate) blocks_written: u64,
    /// Blocks of the plan that were to be zeroed.
    pub(crate) blocks_zeroed: u64,
    /// Runs of blocks (first, end) that are zero because their source is damaged.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) damaged: Vec<(u32, u32)>,
    /// Blocks that are zero because they are so in the source, whose own source was damaged.
    #[serde(skip_serializing_if = "is_none")]
    pub(crate) damaged_in_source: u64,
    /// SHA-256 over the SHA-256 of all blocks written, by index, as CompleteSnapshot's linear checksum; none where there was no
    /// room for the digests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) linear_sha256: Option<String>,
    /// Whether the target was read back and compared.
    pub(crate) verified: bool,
    /// SHA-256 of the whole image, holes included, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image_sha256: Option<String>,
    /// What a person should know: a count that disagrees, a copy that is not encrypted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) warnings: Vec<String>,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

/// Runs of a set as pairs (first, end).
pub(super) fn pairs(set: &BlockSet) -> Vec<(u32, u32)> {
    let runs = set.runs();
    runs.map(|run| (run.start().0, run.end().0)).collect()
}

/// The report of a run as a file: one JSON object, written during the run, that appears whole or not at all.
#[derive(Debug)]
pub(crate) struct ReportFile {
    file: OutputFile,
    is_first: bool,
}

impl ReportFile {
    /// Creates the file, so that a path that cannot be written fails at the start. `about` has program, host and user.
    ///
    /// # Errors
    /// `Invalid` when something else than a regular file is at `path`; the system's error.
    pub(crate) fn begin(
        path: &Path,
        source: &str,
        started: SystemTime,
        about: &Value,
    ) -> Result<Self> {
        let mut report = Self {
            file: OutputFile::create(path)?,
            is_first: true,
        };
        let mut head = json!({
            "version": REPORT_VERSION,
            "source": source,
            "started": time(started),
            "digests": {
                "blocks": "SHA-256 of each block's bytes; null: all zeroes",
                "linear_sha256": "SHA-256 over the 32-byte SHA-256 of all blocks written, by index",
                "image_sha256": "SHA-256 of the whole image, holes included",
            },
        });
        if let (Some(head), Some(about)) = (head.as_object_mut(), about.as_object()) {
            head.extend(about.clone());
        }
        let head = head.to_string();
        let open = head.strip_suffix('}').unwrap_or(&head).to_owned();
        report.write(|out| write!(out, "{open}, \"targets\": ["))?;
        Ok(report)
    }

    /// A target that was copied, with the digest of each block of its plan: null for zeroes. Without `written` there is no list.
    ///
    /// # Errors
    /// The system's error; `Corrupt` when a digest is missing.
    pub(super) fn done(
        &mut self,
        target: &str,
        report: &Report,
        written: Option<Written>,
    ) -> Result<()> {
        let mut value = serde_json::to_value(report).unwrap_or_default();
        if let Some(members) = value.as_object_mut() {
            members.insert("target".into(), target.into());
            members.insert("status".into(), "done".into());
        }
        let Some(written) = written else {
            return self.next(|out| write!(out, "{value}"));
        };
        let text = value.to_string();
        let open = text.strip_suffix('}').unwrap_or(&text).to_owned();
        self.next(|out| write!(out, "{open},\n\"blocks\": ["))?;
        for (number, block) in written.enumerate() {
            let (index, digest) = block?;
            let digest = digest.map_or(Value::Null, |digest| hexadecimal(&digest).into());
            let comma = if number == 0 { "" } else { "," };
            self.write(|out| write!(out, "{comma}\n[{index}, {digest}]"))?;
        }
        self.write(|out| write!(out, "]}}"))
    }

    /// A target that held the source already.
    pub(super) fn held(
        &mut self,
        target: &str,
        source: &str,
        verified: bool,
        damaged: u64,
    ) -> Result<()> {
        let value = json!({
            "target": target,
            "status": "already",
            "source": source,
            "verified": verified,
            "damaged_blocks": damaged,
        });
        self.next(|out| write!(out, "{value}"))
    }

    /// Adds a target that failed.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn failed(&mut self, target: &str, error: &Error) -> Result<()> {
        let value = json!({
            "target": target,
            "status": "failed",
            "error": error.chain(),
            "exit_code": error.kind().exit_code(),
        });
        self.next(|out| write!(out, "{value}"))
    }

    /// Completes the file and renames it into place. `about` has counts, requests and the source's description.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn end(mut self, about: &Value) -> Result<()> {
        let mut tail = json!({"ended": time(SystemTime::now())});
        if let (Some(tail), Some(about)) = (tail.as_object_mut(), about.as_object()) {
            tail.extend(about.clone());
        }
        let tail = tail.to_string();
        let members = tail.strip_prefix('{').unwrap_or(&tail).to_owned();
        self.write(|out| writeln!(out, "],\n{members}"))?;
        self.file.commit()
    }

    fn next(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let comma = if self.is_first { "\n" } else { ",\n" };
        self.is_first = false;
        self.write(|out| {
            write!(out, "{comma}")?;
            write(out)
        })
    }

    fn write(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        write(&mut self.file)
            .map_err(|error| Error::with_source(Kind::Io, "cannot write the report", error))
    }
}

/// A time as people and other programs write it.
fn time(time: SystemTime) -> String {
    crate::time::rfc3339_millis(time)
}

fn rfc3339<S: Serializer>(at: &SystemTime, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.collect_str(&time(*at))
}
