//! Records of targets shown, exported and imported: what a target holds outlives the loss of its state directory.
//!
//! An imported record has no mark. So the next run compares the target with its digests before it believes the record.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::digests::Digests;
use super::files::StateFiles;
use super::lock::Locks;
use super::observe::recorded_digests;
use super::record;
use crate::block::Geometry;
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::{STATE_LIMIT, blocking, make_folder_of};
use crate::target::{Mark, Stop, Target, TargetRecord};

/// What the ids of images begin with; the path follows.
const IMAGE: &str = "file:";

/// What is recorded of a target.
#[derive(Clone, Debug)]
pub(crate) struct RecordView {
    /// The record.
    pub(crate) record: TargetRecord,
    /// Whether its mark proves that nothing has written the target since.
    pub(crate) is_proven: bool,
    /// Whether there are digests of the same run, and whether they speak of every block.
    pub(crate) whole_digests: Option<bool>,
}

impl RecordView {
    /// The record as its file has it: JSON with a version.
    pub(crate) fn encoded(&self) -> Vec<u8> {
        record::encode(&self.record)
    }
}

/// The record of a target; nothing is changed.
///
/// # Errors
/// `NotFound` when there is none; the system's error.
pub(crate) fn view_record(target: &dyn Target) -> Result<RecordView> {
    let files = StateFiles::of(&target.state().stem);
    let mark = target.mark()?;
    let (record, digests) = recorded(target, &files, mark.as_ref())?;
    Ok(RecordView {
        is_proven: record.mark.is_some() && record.mark == mark,
        whole_digests: digests.as_ref().map(Digests::is_whole),
        record,
    })
}

fn recorded(
    target: &dyn Target,
    files: &StateFiles,
    mark: Option<&Mark>,
) -> Result<(TargetRecord, Option<Digests>)> {
    let record = record::load(&files.record(), mark)?;
    let record = record.filter(|record| record.target == target.id());
    let digests = recorded_digests(files, record.as_ref(), true)?;
    match record {
        Some(record) => Ok((record, digests)),
        None => {
            let what = format!("cannot read the record of {}: there is none", target.name());
            Err(Error::new(Kind::NotFound, what))
        }
    }
}

/// The record of a target as a JSON file has it, with a copy of its digests at `digests` if that is asked for. The target is
/// locked meanwhile, so that the two belong to each other.
///
/// # Errors
/// `NotFound` when there is no record, or no digests of its run; `Busy`; `Stopped`; `Invalid` when something else than a regular
/// file is at `digests`; the system's error.
pub(crate) fn export_record(
    target: &dyn Target,
    digests: Option<&Path>,
    stop: &Stop,
) -> Result<Vec<u8>> {
    let files = StateFiles::of(&target.state().stem);
    let _locks = Locks::take_to_read(&files.lock(), &target.locks()?, stop)?;
    let (record, its) = recorded(target, &files, target.mark()?.as_ref())?;
    if let Some(path) = digests {
        let its = its.ok_or_else(|| {
            let name = target.name();
            let what = format!("cannot export the digests of {name}: none were kept");
            Error::new(Kind::NotFound, what)
        })?;
        Digests::clone_of(&its, path, &record.run, its.geometry(), stop)?;
    }
    Ok(record::encode(&record))
}

/// What is imported.
#[derive(Clone, Debug)]
pub(crate) struct RecordImport {
    /// An exported record.
    pub(crate) record: PathBuf,
    /// An exported file of its digests.
    pub(crate) digests: Option<PathBuf>,
    /// Whether a record that is there is replaced.
    pub(crate) replaces: bool,
}

/// Takes over a record for a target whose own was lost. The target is not read: the next run compares it with the digests.
///
/// # Errors
/// `Invalid` when the record is none of this version, or the target has not its size; `Undecided` when it is another target's,
/// when there is a record already, or when the digests are of another run; `Busy`; `Stopped`; the system's error.
pub(crate) async fn import_record(
    target: &dyn Target,
    import: &RecordImport,
    stop: &Stop,
) -> Result<TargetRecord> {
    let name = target.name();
    let cannot = |error: Error| error.context(format!("cannot import {}", import.record.display()));
    let path = import.record.clone();
    // It may be a pipe whose writer is slow.
    let bytes = stop.unless(blocking(move || read(&path))).await?;
    let exported = record::decode(&bytes).map_err(cannot)?;
    let record = adopt(exported, name, target.id())?;
    let geometry = Geometry::new(record.volume_bytes).map_err(cannot)?;
    let files = StateFiles::of(&target.state().stem);
    make_folder_of(&files.record())?;
    let (lock, others, stopped) = (files.lock(), target.locks()?, stop.clone());
    let locks = blocking(move || Locks::take(&lock, &others, &stopped));
    let _locks = stop.unless(locks).await?;
    if !import.replaces && files.record().symlink_metadata().is_ok() {
        let what = format!("cannot import a record of {name}: it has one");
        return Err(Error::new(Kind::Undecided, what).with_remedy(Remedy::ReplaceRecord));
    }
    // Refuses a device that is smaller than the volume.
    let reader = target.reader(None, geometry);
    stop.unless(reader).await.map_err(cannot)?;
    if let Some(Mark::Image(image)) = target.mark()?
        && image.size != record.volume_bytes
    {
        let what = format!(
            "cannot import a record of {name}: it has {} bytes, the volume of the record {}",
            image.size, record.volume_bytes
        );
        return Err(Error::new(Kind::Invalid, what));
    }
    if let Some(path) = &import.digests {
        let digests = digests_of(path, &record)?;
        let (to, run, stopped) = (files.digests(), record.run.clone(), stop.clone());
        let copy = move || Digests::clone_of(&digests, &to, &run, geometry, &stopped);
        stop.unless(blocking(copy)).await?;
    }
    record::save(&files.record(), &record)?;
    Ok(record)
}

/// A record as that of a target, without a mark.
fn adopt(exported: TargetRecord, name: &str, id: &str) -> Result<TargetRecord> {
    // An image may have been moved; a device is what it is.
    let are_images = id.starts_with(IMAGE) && exported.target.starts_with(IMAGE);
    if !are_images && exported.target != id {
        let what = format!(
            "cannot import a record of {name}: the record is of {}, and this is {id}",
            exported.target
        );
        return Err(Error::new(Kind::Undecided, what));
    }
    Ok(TargetRecord {
        target: id.to_owned(),
        mark: None,
        is_old_format: false,
        ..exported
    })
}

fn digests_of(path: &Path, record: &TargetRecord) -> Result<Digests> {
    let cannot = |kind, why: String| {
        let what = format!("cannot import {}: {why}", path.display());
        Error::new(kind, what)
    };
    if !path.exists() {
        return Err(cannot(Kind::NotFound, "there is no such file".into()));
    }
    let digests = Digests::open(path)?;
    let digests = digests.ok_or_else(|| {
        let why = "it is no file of digests of our own user's, or it is damaged";
        cannot(Kind::Invalid, why.into())
    })?;
    if digests.run() != record.run {
        let why = format!(
            "it is of run {}, and the record of run {}",
            digests.run(),
            record.run
        );
        return Err(cannot(Kind::Undecided, why));
    }
    if digests.volume_bytes() != record.volume_bytes {
        let why = format!(
            "it is of {} bytes, and the record of {}",
            digests.volume_bytes(),
            record.volume_bytes
        );
        return Err(cannot(Kind::Undecided, why));
    }
    Ok(digests)
}

/// A file that a person names, as long as a state file can be.
fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |error| Error::of_file(path, "cannot read", error);
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(STATE_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::FileMark;
    use crate::target::Content;

    #[test]
    fn a_record_is_adopted_by_its_own_device_or_by_any_image_and_loses_its_mark() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        std::fs::write(&image, b"1").unwrap();
        let record = |target: &str| TargetRecord {
            run: "1".into(),
            target: target.into(),
            content: Content::Holds("snap-b".into()),
            volume: None,
            volume_bytes: 1,
            mark: Some(Mark::Image(FileMark::flushed(&image).unwrap())),
            time: None,
            replica: None,
            damaged: vec![(3, 5)],
            damaged_in_source: 0,
            is_old_format: true,
            report: serde_json::Value::Null,
        };
        for (of, id, is_adopted) in [
            ("file:/a", "file:/a", true),
            ("file:/a", "file:/b", true),
            ("device:wwid=1:size=1", "device:wwid=1:size=1", true),
            ("device:wwid=1:size=1", "device:wwid=1:size=2", false),
            ("device:wwid=1:size=1", "file:/a", false),
            ("file:/a", "device:wwid=1:size=1", false),
        ] {
            let adopted = adopt(record(of), "x", id);
            assert_eq!(adopted.is_ok(), is_adopted, "{of} {id}");
            if let Ok(adopted) = adopted {
                assert_eq!((adopted.target.as_str(), adopted.mark), (id, None));
                assert_eq!(adopted.damaged, [(3, 5)]);
            }
        }
    }

    #[test]
    fn a_record_of_another_version_or_none_is_refused_with_a_reason() {
        for (bytes, words) in [
            ("{", "no record"),
            ("{\"version\": 3}", "version 3"),
            ("{\"version\": 2}", "no record"),
            ("{\"run\": \"1\"}", "no version"),
        ] {
            let error = record::decode(bytes.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.chain().contains(words), "{error:?}");
        }
    }
}
