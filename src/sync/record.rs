//! The record of a target as a file: one JSON object beside an image, or in the state directory.
//!
//! A record alone proves nothing: something else may have written the target since. The target's mark, or a comparison with the
//! digests of the recorded run, proves that it still holds what the record says.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use crate::error::{Error, Kind, Result};
use crate::files::{read_ours, replace};
use crate::target::{Content, Mark, TargetRecord};

const VERSION: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Versioned {
    version: u32,
    #[serde(flatten)]
    record: TargetRecord,
}

/// Reads the record at `path`; none where it is missing, damaged or not ours. `now` is the target's mark. A record of version 1
/// has no change time in its mark: it takes `now` where inode, size and time of the last write agree.
///
/// # Errors
/// `Io` when it cannot be read.
pub(super) fn load(path: &Path, now: Option<&Mark>) -> Result<Option<TargetRecord>> {
    let Some(bytes) = read_ours(path)? else {
        return Ok(None);
    };
    let ignored = |why: &str| {
        warn!("ignoring the record {}: {why}", path.display());
        Ok(None)
    };
    let value: Value = match serde_json::from_slice(&bytes) {
        Ok(value) => value,
        Err(error) => return ignored(&error.to_string()),
    };
    match value.get("version").and_then(Value::as_u64) {
        None => Ok(version_1(&value, now)),
        Some(version) if version == u64::from(VERSION) => {
            match serde_json::from_value::<Versioned>(value) {
                Ok(versioned) => Ok(Some(versioned.record)),
                Err(error) => ignored(&error.to_string()),
            }
        }
        Some(version) => ignored(&format!("it is of version {version}, not {VERSION}")),
    }
}

/// Replaces the record at `path`.
///
/// # Errors
/// `Io` or `NoSpace`: then the old one remains.
pub(super) fn save(path: &Path, record: &TargetRecord) -> Result<()> {
    replace(path, &encode(record))
}

/// The record as its file has it, for `record export`.
pub(super) fn encode(record: &TargetRecord) -> Vec<u8> {
    let versioned = Versioned {
        version: VERSION,
        record: record.clone(),
    };
    // A record is plain data: nothing in it can fail to serialise.
    let mut json = serde_json::to_vec_pretty(&versioned).unwrap_or_default();
    json.push(b'\n');
    json
}

/// A record that was exported, for `record import`.
///
/// # Errors
/// `Invalid`, in words that follow "it", when these bytes are no record of this version.
pub(super) fn decode(bytes: &[u8]) -> Result<TargetRecord> {
    let wrong = |why: String| Error::new(Kind::Invalid, why);
    let no_record = |error: serde_json::Error| wrong(format!("it is no record: {error}"));
    let value: Value = serde_json::from_slice(bytes).map_err(no_record)?;
    match value.get("version").and_then(Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {
            let versioned = serde_json::from_value::<Versioned>(value).map_err(no_record)?;
            Ok(versioned.record)
        }
        Some(version) => Err(wrong(format!("it is of version {version}, not {VERSION}"))),
        None => Err(wrong(format!(
            "it has no version; version {VERSION} is read"
        ))),
    }
}

/// A record as the version before wrote it: `{run, target, content, mark: {inode, size, modified_ns}, report}`.
fn version_1(value: &Value, now: Option<&Mark>) -> Option<TargetRecord> {
    let content: Content = serde_json::from_value(value.get("content")?.clone()).ok()?;
    let report = value.get("report").cloned().unwrap_or_default();
    let text = |name: &str| value.get(name)?.as_str().map(str::to_owned);
    let mark = value.get("mark").and_then(|then| {
        let Some(Mark::Image(mark)) = now else {
            return None;
        };
        let is_same = then.get("inode")?.as_u64() == Some(mark.inode)
            && then.get("size")?.as_u64() == Some(mark.size)
            && then.get("modified_ns")?.as_i64() == Some(mark.modified_ns);
        is_same.then(|| Mark::Image(mark.clone()))
    });
    Some(TargetRecord {
        run: text("run")?,
        target: text("target")?,
        content,
        volume: None,
        volume_bytes: report
            .get("volume_bytes")
            .and_then(Value::as_u64)
            .unwrap_or(0),
        mark,
        time: None,
        replica: None,
        damaged: Vec::new(),
        damaged_in_source: 0,
        is_old_format: true,
        report,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::files::FileMark;

    fn record(mark: Mark) -> TargetRecord {
        TargetRecord {
            run: "1".into(),
            target: "file:/a".into(),
            content: Content::Holds("snap-b".into()),
            volume: Some("vol-1".into()),
            volume_bytes: 1,
            mark: Some(mark),
            time: None,
            replica: None,
            damaged: vec![(3, 5)],
            damaged_in_source: 0,
            is_old_format: false,
            report: Value::Null,
        }
    }

    #[test]
    fn a_record_is_read_as_written_and_a_damaged_one_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let (path, image) = (folder.path().join("record"), folder.path().join("image"));
        std::fs::write(&image, b"1").unwrap();
        let mark = Mark::Image(FileMark::flushed(&image).unwrap());
        assert_eq!(load(&path, None).unwrap(), None);
        save(&path, &record(mark.clone())).unwrap();
        assert_eq!(load(&path, None).unwrap(), Some(record(mark)));
        for bytes in ["{", "{\"version\": 3}", "{\"version\": 2}", "7"] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(load(&path, None).unwrap(), None, "{bytes}");
        }
    }

    #[test]
    fn a_record_of_version_1_is_taken_where_its_old_mark_matches() {
        let folder = tempfile::tempdir().unwrap();
        let (path, image) = (folder.path().join("record"), folder.path().join("image"));
        std::fs::write(&image, b"1").unwrap();
        let Ok(now) = FileMark::flushed(&image) else {
            panic!("no mark");
        };
        let old = |modified: i64| {
            json!({
                "run": "1", "target": "file:/a", "content": {"holds": "snap-b"},
                "mark": {"inode": now.inode, "size": now.size, "modified_ns": modified},
                "report": {"volume_bytes": 7},
            })
        };
        let mark = Mark::Image(now.clone());
        for (modified, matches) in [(now.modified_ns, true), (now.modified_ns - 1, false)] {
            std::fs::write(&path, old(modified).to_string()).unwrap();
            let read = load(&path, Some(&mark)).unwrap().unwrap();
            assert_eq!(read.mark.as_ref() == Some(&mark), matches);
            assert!(read.is_old_format);
            assert_eq!(read.held(), Some("snap-b"));
        }
        std::fs::write(
            &path,
            json!({"run": "1", "target": "x", "content": "unknown"}).to_string(),
        )
        .unwrap();
        assert_eq!(load(&path, Some(&mark)).unwrap(), None);
    }
}
