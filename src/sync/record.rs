//! What a target holds, for the next run and for people: one JSON file beside an image, or in the state folder for what
//! has no beside.
//!
//! It says that a target holds a snapshot only together with a mark of the target (an image's inode, size and time of change,
//! how much was written to a device): what was written by anything else since holds nobody knows what.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use super::checkpoint::{Task, replace};
use super::report::Report;
use crate::error::{Error, Result};

/// What a target holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Exactly this snapshot or image.
    Holds(String),
    /// This one, when it was written; whether anything has written it since cannot be told, for the machine was started
    /// again.
    Held(String),
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
    /// The run that wrote this.
    run: String,
    target: String,
    content: Content,
    /// Of the target, while nothing else has written it.
    mark: Option<Value>,
    /// What the run that ended it did, for people.
    report: Value,
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
    /// `Io` when the record cannot be read.
    pub fn content(&self) -> Result<Content> {
        let Some(written) = self.read()? else {
            return Ok(Content::Unknown);
        };
        let Content::Holds(source) = &written.content else {
            return Ok(written.content);
        };
        let now = (self.mark)();
        Ok(match (&written.mark, &now) {
            (Some(then), Some(now)) if then == now => written.content,
            // Counts of writes begin anew with each start of the machine.
            (Some(then), Some(now)) if then.get("boot") != now.get("boot") => {
                Content::Held(source.clone())
            }
            _ => Content::Unknown,
        })
    }

    /// Whether the run of a checkpoint came to its end, so that the checkpoint is only left over.
    ///
    /// # Errors
    /// As for [`Record::content`].
    pub fn has_ended(&self, task: &Task) -> Result<bool> {
        let written = self.read()?;
        Ok(written.is_some_and(|written| {
            written.run == task.run && matches!(written.content, Content::Holds(_))
        }))
    }

    /// Whether the run of a checkpoint, or the one that it took over, has begun to write in place, and is the last that has.
    ///
    /// # Errors
    /// As for [`Record::content`].
    pub fn has_begun(&self, task: &Task) -> Result<bool> {
        let written = self.read()?;
        Ok(written.is_some_and(|written| {
            let is_its = written.run == task.run || Some(written.run) == task.after;
            is_its && matches!(written.content, Content::Between { .. })
        }))
    }

    /// The run that wrote it last.
    ///
    /// # Errors
    /// As for [`Record::content`].
    pub fn last_run(&self) -> Result<Option<String>> {
        Ok(self.read()?.map(|written| written.run))
    }

    fn read(&self) -> Result<Option<Written>> {
        let bytes = match std::fs::read(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(|error| Error::of_file(&self.path, "cannot read", error))?,
        };
        match serde_json::from_slice(&bytes) {
            Ok(written) => Ok(Some(written)),
            // As if there were none: then all is copied.
            Err(error) => {
                warn!(
                    "{} is damaged and not believed: {error}",
                    self.path.display()
                );
                Ok(None)
            }
        }
    }

    /// Before its first block is written in place: from now on it is neither of the two.
    ///
    /// # Errors
    /// `Io` or `NoSpace`: then nothing may be written.
    pub fn begin(&self, task: &Task) -> Result<()> {
        self.write(&Written {
            run: task.run.clone(),
            target: task.target.clone(),
            content: Content::Between {
                base: task.base.clone(),
                head: task.source.clone(),
            },
            mark: None,
            report: Value::Null,
        })
    }

    /// It holds what the task was to bring.
    ///
    /// # Errors
    /// `Io` or `NoSpace`: then the next run does not know it.
    pub fn end(&self, report: &Report) -> Result<()> {
        self.write(&Written {
            run: report.task.run.clone(),
            target: report.task.target.clone(),
            content: Content::Holds(report.task.source.clone()),
            mark: (self.mark)(),
            report: serde_json::to_value(report).unwrap_or_default(),
        })
    }

    fn write(&self, written: &Written) -> Result<()> {
        // Nothing in it can fail to serialise.
        let mut json = serde_json::to_vec_pretty(written).unwrap_or_default();
        json.push(b'\n');
        replace(&self.path, &json)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::json;

    use crate::disk::Mark;

    use super::super::checkpoint::Mode;
    use super::*;

    fn task(run: &str) -> Task {
        Task {
            run: run.into(),
            after: None,
            mode: Mode::InPlace,
            source_mark: None,
            source: "snap-b".into(),
            base: Some("snap-a".into()),
            target: "file:/a".into(),
        }
    }

    fn report(run: &str) -> Report {
        Report {
            task: task(run),
            started: SystemTime::UNIX_EPOCH,
            ended: SystemTime::UNIX_EPOCH,
            snapshot: None,
            volume_bytes: 1,
            blocks_written: 1,
            blocks_zeroed: 0,
            linear_sha256: String::new(),
            verified: false,
            image_sha256: None,
        }
    }

    #[test]
    fn an_image_that_was_written_since_holds_nobody_knows_what() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("a.raw");
        std::fs::write(&image, b"1").unwrap();
        let marked = image.clone();
        let mark = move || serde_json::to_value(Mark::of(&marked)?).ok();
        let record = Record::at(folder.path().join("record"), mark);
        assert_eq!(record.content().unwrap(), Content::Unknown);
        record.begin(&task("1")).unwrap();
        let between = Content::Between {
            base: Some("snap-a".into()),
            head: "snap-b".into(),
        };
        assert_eq!(record.content().unwrap(), between);
        assert!(!record.has_ended(&task("1")).unwrap());
        assert!(record.has_begun(&task("1")).unwrap());
        assert!(!record.has_begun(&task("2")).unwrap());
        record.end(&report("1")).unwrap();
        assert_eq!(record.content().unwrap(), Content::Holds("snap-b".into()));
        assert!(record.has_ended(&task("1")).unwrap());
        assert!(!record.has_begun(&task("1")).unwrap());
        assert!(!record.has_ended(&task("2")).unwrap());
        std::fs::write(&image, b"22").unwrap();
        assert_eq!(record.content().unwrap(), Content::Unknown);
        std::fs::write(folder.path().join("record"), b"{").unwrap();
        assert_eq!(record.content().unwrap(), Content::Unknown);
    }

    #[test]
    fn a_device_that_was_written_is_unknown_and_one_of_another_start_only_held_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        let at = |boot: &str, written: u32| {
            let mark = json!({"boot": boot, "written": written});
            Record::at(path.clone(), move || Some(mark.clone()))
        };
        at("a", 7).end(&report("1")).unwrap();
        assert_eq!(
            at("a", 7).content().unwrap(),
            Content::Holds("snap-b".into())
        );
        assert_eq!(at("a", 8).content().unwrap(), Content::Unknown);
        assert_eq!(
            at("b", 7).content().unwrap(),
            Content::Held("snap-b".into())
        );
    }
}
