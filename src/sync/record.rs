//! What a target holds, for the next run and for people: one JSON file beside an image, or in the state folder for what
//! has no beside.
//!
//! It says that a target holds a snapshot only together with a mark of the target (an image's inode, size and time of change,
//! how much was written to a device): what was written by anything else since holds nobody knows what.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::checkpoint::{Task, replace};
use crate::error::{Error, Kind, Result};

/// What a target holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Exactly this snapshot or image.
    Holds(String),
    /// Neither of the two: some blocks are the one's, some the other's. Not usable.
    Between {
        /// What it was; none when nobody knows.
        base: Option<String>,
        /// What it is becoming.
        head: String,
    },
    /// Nobody knows.
    Unknown,
}

/// The record of one target.
pub struct Record {
    path: PathBuf,
    /// What tells whether anything else has written the target since; none when nothing does.
    mark: Box<dyn Fn() -> Option<Value> + Send + Sync>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Written {
    target: String,
    content: Content,
    /// Of the target, while nothing else has written it.
    mark: Option<Value>,
    report: Option<Report>,
}

/// What a run did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// What was copied where.
    pub task: Task,
    /// When the run that ended it began and ended.
    #[serde(with = "rfc3339")]
    pub started: SystemTime,
    /// When it ended.
    #[serde(with = "rfc3339")]
    pub ended: SystemTime,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// Blocks of the plan that were to be written, and to be zeroed.
    pub blocks_written: u64,
    /// See above.
    pub blocks_zeroed: u64,
    /// Bytes fetched by the run that ended it.
    pub bytes_fetched: u64,
    /// GetSnapshotBlock and list requests of that run, those sent again, and those throttled.
    pub requests: Requests,
    /// SHA-256 over the SHA-256 of all blocks written, by index, as CompleteSnapshot's linear checksum.
    pub linear_sha256: String,
    /// Whether the target was read back and compared.
    pub verified: bool,
    /// SHA-256 of the whole image, holes included, if it was asked for.
    pub image_sha256: Option<String>,
}

/// Requests of a run.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Requests {
    /// GetSnapshotBlock.
    pub gets: u64,
    /// ListSnapshotBlocks and ListChangedBlocks.
    pub lists: u64,
    /// Sent again.
    pub retries: u64,
    /// Refused because there were too many.
    pub throttled: u64,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Record({})", self.path.display())
    }
}

impl Record {
    /// The record kept at `path`; `mark` changes whenever anything writes the target.
    pub fn at(path: PathBuf, mark: impl Fn() -> Option<Value> + Send + Sync + 'static) -> Self {
        Self {
            path,
            mark: Box::new(mark),
        }
    }

    /// What the target holds.
    ///
    /// # Errors
    /// `Corrupt` when the record is damaged, `Io` when it cannot be read.
    pub fn content(&self) -> Result<Content> {
        let Some(written) = self.read()? else {
            return Ok(Content::Unknown);
        };
        let is_as_left = match &written.content {
            Content::Holds(_) => written.mark.is_some() && written.mark == (self.mark)(),
            _ => true,
        };
        Ok(if is_as_left {
            written.content
        } else {
            Content::Unknown
        })
    }

    /// What the last whole run did, as JSON.
    ///
    /// # Errors
    /// As for [`Record::content`].
    pub fn report(&self) -> Result<Option<Report>> {
        Ok(self.read()?.and_then(|written| written.report))
    }

    fn read(&self) -> Result<Option<Written>> {
        let bytes = match std::fs::read(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(|error| Error::of_file(&self.path, "cannot read", error))?,
        };
        let written = serde_json::from_slice(&bytes).map_err(|error| {
            let what = format!("{} is damaged", self.path.display());
            Error::with_source(Kind::Corrupt, what, error)
        })?;
        Ok(Some(written))
    }

    /// Before its first block is written in place: from now on it is neither of the two.
    ///
    /// # Errors
    /// `Io` or `NoSpace`: then nothing may be written.
    pub fn begin(&self, task: &Task) -> Result<()> {
        self.write(&Written {
            target: task.target.clone(),
            content: Content::Between {
                base: task.base.clone(),
                head: task.source.clone(),
            },
            mark: None,
            report: None,
        })
    }

    /// It holds what the task was to bring.
    ///
    /// # Errors
    /// `Io` or `NoSpace`: then the next run does not know it.
    pub fn end(&self, report: &Report) -> Result<()> {
        self.write(&Written {
            target: report.task.target.clone(),
            content: Content::Holds(report.task.source.clone()),
            mark: (self.mark)(),
            report: Some(report.clone()),
        })
    }

    fn write(&self, written: &Written) -> Result<()> {
        // Nothing in it can fail to serialise.
        let mut json = serde_json::to_vec_pretty(written).unwrap_or_default();
        json.push(b'\n');
        replace(&self.path, &json)
    }
}

/// Times as people and other programs write them.
mod rfc3339 {
    use super::SystemTime;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_rfc3339_millis(*time))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_was_written_since_holds_nobody_knows_what() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("a.raw");
        std::fs::write(&image, b"1").unwrap();
        let marked = image.clone();
        let mark = move || serde_json::to_value(super::super::Mark::of(&marked)?).ok();
        let record = Record::at(folder.path().join("record"), mark);
        assert_eq!(record.content().unwrap(), Content::Unknown);
        let task = Task {
            mode: super::super::Mode::InPlace,
            source_mark: None,
            source: "snap-b".into(),
            base: Some("snap-a".into()),
            target: "file:/a".into(),
        };
        record.begin(&task).unwrap();
        let between = Content::Between {
            base: Some("snap-a".into()),
            head: "snap-b".into(),
        };
        assert_eq!(record.content().unwrap(), between);
        let report = Report {
            task,
            started: SystemTime::UNIX_EPOCH,
            ended: SystemTime::UNIX_EPOCH,
            volume_bytes: 1,
            blocks_written: 1,
            blocks_zeroed: 0,
            bytes_fetched: 1,
            requests: Requests::default(),
            linear_sha256: String::new(),
            verified: false,
            image_sha256: None,
        };
        record.end(&report).unwrap();
        assert_eq!(record.content().unwrap(), Content::Holds("snap-b".into()));
        assert!(record.report().unwrap().is_some());
        std::fs::write(&image, b"2").unwrap();
        assert_eq!(record.content().unwrap(), Content::Unknown);
        std::fs::write(folder.path().join("record"), b"{").unwrap();
        assert_eq!(record.content().unwrap_err().kind(), Kind::Corrupt);
    }
}
