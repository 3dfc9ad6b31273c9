//! The custody log of a mount: who opened which image when, and which blocks were read; each line has the SHA-256 of the line before.
//!
//! ```text
//! {"seq":0,"previous":"000...","at":"...","event":"mount","mountpoint":"/mnt/ebs","source":"...","host":"...","user":"...","uid":0}
//! {"seq":1,"previous":"9f2...","at":"...","event":"open","opening":1,"image":"snap-...","uid":0,"pid":7,"command":"sha256sum"}
//! {"seq":2,"previous":"41c...","at":"...","event":"close","opening":1,"bytes":4096,"reads":1,"seconds":0.1,"blocks":[[0,1]],"merged":false}
//! {"seq":3,"previous":"b07...","at":"...","event":"unmount"}
//! ```
//! A line is on the disk before the opening that it tells of is answered; where it cannot be written, the opening fails. The chain
//! shows each changed, added or removed line but for the last ones: these need the last digest, which the mount logs, kept elsewhere.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::facts::HostFacts;
use crate::block::{BlockSet, hexadecimal};
use crate::error::{Error, Kind, Remedy, Result};
use crate::fs::{Custodian, ImageRead, ImageReader};
use crate::time::rfc3339_millis;

/// Runs of blocks in a line. Of more, the runs that are nearest to each other are merged.
const MOST_RUNS: usize = 1000;
/// Longer than any line: a run takes up to 21 characters.
const LONGEST_LINE: u64 = 64 << 10;
/// What the first line has for the digest of the line before.
const NO_LINE: [u8; 32] = [0; 32];

/// A custody log that is written.
#[derive(Debug)]
pub(crate) struct CustodyLog {
    path: PathBuf,
    chain: Mutex<Chain>,
}

#[derive(Debug)]
struct Chain {
    file: File,
    seq: u64,
    previous: String,
    openings: u64,
}

impl CustodyLog {
    /// Creates or continues a log, and appends the start of a mount.
    ///
    /// # Errors
    /// `Invalid` when it is no regular file; `Corrupt` when its chain is broken; `Busy` when another mount writes it; the system's error.
    pub(crate) fn begin(path: &Path, mountpoint: &Path, place: &str) -> Result<Self> {
        let failed = |error| Error::of_file(path, "cannot write", error);
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        // O_NONBLOCK: a FIFO without a reader would hang here.
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            let what = format!("cannot write {}: it is no regular file", path.display());
            return Err(Error::new(Kind::Invalid, what));
        }
        if file.try_lock().is_err() {
            let what = format!("cannot write {}: another mount writes it", path.display());
            return Err(Error::new(Kind::Busy, what));
        }
        let so_far = read_chain(path, &file)?;
        let log = Self {
            path: path.to_owned(),
            chain: Mutex::new(Chain {
                file,
                seq: so_far.lines,
                previous: so_far.last,
                openings: so_far.openings,
            }),
        };
        let host = HostFacts::of_this();
        log.add(json!({
            "event": "mount",
            "mountpoint": mountpoint,
            "source": place,
            "host": host.host,
            "user": host.user,
            "uid": host.uid,
            "program": concat!("ebsfs ", env!("CARGO_PKG_VERSION")),
        }))?;
        Ok(log)
    }

    /// Writes that the mount has ended; the digest of this last line.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn end(&self) -> Result<String> {
        self.add(json!({"event": "unmount"}))?;
        Ok(self.chain.lock().previous.clone())
    }

    /// Appends a line; it is on the disk when this returns.
    fn add(&self, event: Value) -> Result<()> {
        let mut chain = self.chain.lock();
        add_to(&mut chain, event).map_err(|error| Error::of_file(&self.path, "cannot write", error))
    }
}

fn add_to(chain: &mut Chain, event: Value) -> std::io::Result<()> {
    let mut line = json!({
        "seq": chain.seq,
        "previous": chain.previous,
        "at": rfc3339_millis(SystemTime::now()),
    });
    if let (Some(line), Value::Object(event)) = (line.as_object_mut(), event) {
        line.extend(event);
    }
    let text = format!("{line}\n");
    let length = chain.file.metadata()?.len();
    let written = chain.file.write_all(text.as_bytes());
    if let Err(error) = written.and_then(|()| chain.file.sync_data()) {
        // No half line stays: the next one begins where this one did.
        let _ = chain.file.set_len(length);
        return Err(error);
    }
    chain.seq += 1;
    chain.previous = hexadecimal(&Sha256::digest(text.as_bytes()));
    Ok(())
}

impl Custodian for CustodyLog {
    fn opened(&self, image: &str, reader: &ImageReader) -> Result<u64> {
        let mut chain = self.chain.lock();
        let opening = chain.openings + 1;
        let event = json!({
            "event": "open",
            "opening": opening,
            "image": image,
            "uid": reader.uid,
            "pid": reader.pid,
            "command": reader.command(),
        });
        add_to(&mut chain, event)
            .map_err(|error| Error::of_file(&self.path, "cannot write", error))?;
        chain.openings = opening;
        Ok(opening)
    }

    fn closed(&self, opening: u64, read: &ImageRead) {
        let (runs, merged) = merged_runs(&read.blocks);
        let written = self.add(json!({
            "event": "close",
            "opening": opening,
            "bytes": read.bytes,
            "reads": read.reads,
            "seconds": read.seconds,
            "blocks": runs,
            "merged": merged,
        }));
        if let Err(error) = written {
            warn!("{}", error.chain());
        }
    }
}

/// The runs of a set as (first, count), at most [`MOST_RUNS`], and whether gaps were closed for that.
fn merged_runs(blocks: &BlockSet) -> (Vec<(u32, u32)>, bool) {
    let mut gap = 0;
    loop {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for run in blocks.runs() {
            let (start, end) = (run.start().0, run.end().0);
            match runs.last_mut() {
                Some((first, count)) if start - (*first + *count) <= gap => *count = end - *first,
                _ => runs.push((start, run.count())),
            }
            if runs.len() > MOST_RUNS {
                break;
            }
        }
        if runs.len() <= MOST_RUNS {
            return (runs, gap > 0);
        }
        gap = if gap == 0 { 1 } else { gap * 2 };
    }
}

/// What a custody log tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CustodyReport {
    /// Its lines.
    pub(crate) lines: u64,
    /// Openings of images.
    pub(crate) openings: u64,
    /// Openings whose closing it does not have.
    pub(crate) unclosed: u64,
    /// Mounts that started or continued it.
    pub(crate) mounts: u64,
    /// Mounts whose end it does not have.
    pub(crate) unended: u64,
    /// Whether the last of them has ended.
    pub(crate) is_ended: bool,
    /// SHA-256 of its last line, in hexadecimal.
    pub(crate) last: String,
}

impl CustodyReport {
    /// What the check ends with.
    ///
    /// # Errors
    /// `Undecided` when the end of a mount or the closing of an image is missing, anywhere in the log: the lines that a killed mount
    /// did not write and lines that were cut off before a later mount look alike.
    pub(crate) fn result(&self, path: &Path) -> Result<()> {
        let (unended, unclosed) = (self.unended, self.unclosed);
        if self.is_ended && unended == 0 && unclosed == 0 {
            return Ok(());
        }
        let what = format!(
            "cannot tell whether {} is whole: mounts that did not end: {unended}, openings that were not closed: {unclosed}",
            path.display()
        );
        let remedy = "compare the digest of its last line with one that was kept elsewhere";
        Err(Error::new(Kind::Undecided, what).with_remedy(Remedy::Do(remedy.into())))
    }
}

/// Checks the chain of a custody log that anybody may have written.
///
/// # Errors
/// `Corrupt` with the first line that does not fit; `NotFound`; the system's error.
pub(crate) fn check_custody(path: &Path) -> Result<CustodyReport> {
    let failed = |error| Error::of_file(path, "cannot read", error);
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        let what = format!("cannot read {}: it is no regular file", path.display());
        return Err(Error::new(Kind::Corrupt, what));
    }
    read_chain(path, &file)
}

fn read_chain(path: &Path, file: &File) -> Result<CustodyReport> {
    let mut report = CustodyReport {
        lines: 0,
        openings: 0,
        unclosed: 0,
        mounts: 0,
        unended: 0,
        is_ended: false,
        last: hexadecimal(&NO_LINE),
    };
    let mut from = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut from).take(LONGEST_LINE).read_until(b'\n', &mut line);
        let read = read.map_err(|error| Error::of_file(path, "cannot read", error))?;
        if read == 0 {
            return Ok(report);
        }
        if !report.add(&line) {
            let what = format!(
                "cannot rely on {}: line {} does not follow the one before: one of them was changed, added or removed",
                path.display(),
                report.lines + 1
            );
            return Err(Error::new(Kind::Corrupt, what));
        }
    }
}

impl CustodyReport {
    /// Takes a line, if it follows the one before.
    fn add(&mut self, line: &[u8]) -> bool {
        if line.last() != Some(&b'\n') {
            return false;
        }
        let Ok(Value::Object(event)) = serde_json::from_slice(line) else {
            return false;
        };
        let text = |name: &str| event.get(name).and_then(Value::as_str);
        let number = |name: &str| event.get(name).and_then(Value::as_u64);
        if number("seq") != Some(self.lines) || text("previous") != Some(&self.last) {
            return false;
        }
        match text("event") {
            Some("mount") if self.lines == 0 || number("opening").is_none() => {
                self.mounts += 1;
                self.unended += 1;
                self.is_ended = false;
            }
            Some("open") if number("opening") == Some(self.openings + 1) => {
                self.openings += 1;
                self.unclosed += 1;
            }
            Some("close") if number("opening").is_some_and(|n| n >= 1 && n <= self.openings) => {
                self.unclosed = self.unclosed.saturating_sub(1);
            }
            // Of the last mount: the end of an earlier one is not written later, as a log has one writer.
            Some("unmount") if !self.is_ended && self.mounts > 0 => {
                self.unended = self.unended.saturating_sub(1);
                self.is_ended = true;
            }
            _ => return false,
        }
        self.lines += 1;
        self.last = hexadecimal(&Sha256::digest(line));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockIndex, Extent};

    fn extent(start: u32, end: u32) -> Extent {
        Extent::new(BlockIndex(start), BlockIndex(end)).unwrap()
    }

    fn written(path: &Path) -> String {
        let log = CustodyLog::begin(path, Path::new("/mnt"), "here").unwrap();
        let reader = ImageReader { uid: 7, pid: 0 };
        let mut read = ImageRead::default();
        read.blocks.insert_extent(extent(3, 9));
        read.bytes = 5;
        for image in ["snap-1", "snap-2"] {
            let opening = log.opened(image, &reader).unwrap();
            log.closed(opening, &read);
        }
        let last = log.end().unwrap();
        let report = check_custody(path).unwrap();
        assert_eq!(
            (report.is_ended, report.unclosed, &report.last),
            (true, 0, &last)
        );
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn each_changed_added_and_removed_line_is_found_and_a_log_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("custody");
        let text = written(&path);
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        assert_eq!(lines.len(), 6);
        assert!(lines[2].contains("\"blocks\":[[3,6]]"), "{text}");
        let check = |lines: &[&str]| {
            std::fs::write(&path, lines.concat()).unwrap();
            check_custody(&path)
        };
        for at in 0..lines.len() {
            let mut less = lines.clone();
            less.remove(at);
            let found = check(&less);
            // Without its last line it is a log whose mount has not ended.
            match at {
                5 => assert!(!found.unwrap().is_ended),
                _ => assert_eq!(found.unwrap_err().kind(), Kind::Corrupt, "{at}"),
            }
            let mut twice = lines.clone();
            twice.insert(at, lines[at]);
            assert!(check(&twice).is_err(), "{at}");
            let changed = lines[at].replacen("\"at\":\"2", "\"at\":\"3", 1);
            let mut other = lines.clone();
            other[at] = &changed;
            // Nothing follows the last line; its digest shows it.
            match at {
                5 => assert_ne!(check(&other).unwrap().last, check(&lines).unwrap().last),
                _ => assert!(check(&other).is_err(), "{at}"),
            }
        }
        for half in [1, 70, text.len() - 1] {
            assert!(check(&[&text[..half]]).is_err(), "{half}");
            assert!(CustodyLog::begin(&path, Path::new("/mnt"), "here").is_err());
        }
        check(&lines).unwrap();
        let more = written(&path);
        assert!(more.starts_with(&text));
        let report = check_custody(&path).unwrap();
        assert_eq!((report.lines, report.openings), (12, 4));
        report.result(&path).unwrap();
    }

    #[test]
    fn lines_that_are_missing_before_a_later_mount_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("custody");
        let text = written(&path);
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        for (kept, unended, unclosed) in [(5, 1, 0), (4, 1, 1), (3, 1, 0), (2, 1, 1), (6, 0, 0)] {
            std::fs::write(&path, lines[..kept].concat()).unwrap();
            let log = CustodyLog::begin(&path, Path::new("/mnt"), "here").unwrap();
            log.end().unwrap();
            let report = check_custody(&path).unwrap();
            let found = (report.mounts, report.unended, report.unclosed);
            assert_eq!(found, (2, unended, unclosed), "{kept}");
            let result = report.result(&path).map_err(|error| error.kind());
            let expected = if kept == 6 {
                Ok(())
            } else {
                Err(Kind::Undecided)
            };
            assert_eq!(result, expected, "{kept}");
        }
    }

    #[test]
    fn a_log_has_one_writer_and_is_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("custody");
        let begin = |path: &Path| CustodyLog::begin(path, Path::new("/mnt"), "here");
        let _log = begin(&path).unwrap();
        assert_eq!(begin(&path).unwrap_err().kind(), Kind::Busy);
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(begin(&fifo).is_err() && check_custody(&fifo).is_err());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(begin(&link).is_err());
    }

    #[test]
    fn scattered_reads_are_merged_and_no_block_is_lost() {
        let mut blocks = BlockSet::new();
        for n in 0..50_000 {
            blocks.insert_extent(extent(n * 7, n * 7 + 2));
        }
        let (runs, merged) = merged_runs(&blocks);
        assert!(merged && runs.len() <= MOST_RUNS, "{}", runs.len());
        for n in [0, 1, 777, 49_999] {
            let covers =
                |(first, count): &(u32, u32)| (*first..first + count).contains(&(n * 7 + 1));
            assert!(runs.iter().any(covers), "{n}");
        }
        let mut few = BlockSet::new();
        few.insert_extent(extent(1, 2));
        few.insert_extent(extent(3, 4));
        assert_eq!(merged_runs(&few), (vec![(1, 1), (3, 1)], false));
    }
}
