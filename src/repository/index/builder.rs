//! [`Builder`]: updates the table of an index: the rows of the old one that are still wanted, merged with the blocks of new
//! segments, which are sorted on disk.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::table::{
    ENTRY, IndexEntry, IndexTable, IndexedSegment, RUN_BUFFER, Writer, damaged, entry_of, part,
};
use crate::error::{Error, Kind, Result};
use crate::files::{create_ours, open_ours, remove_if_there, with_ending};
use crate::repository::pack::Name;
use crate::repository::segment::Segment;
use crate::target::Stop;

/// Blocks sorted in memory at once: 19 MB.
const SORTED: usize = 1 << 18;
/// Sorted runs that become one.
const MOST_RUNS: usize = 64;

/// Rows between two checks of the stop: some milliseconds.
const STOP_EVERY: u64 = 1 << 14;

/// A table being updated. It keeps on disk what grows with the repository. In memory are only the names of segments and, when
/// some segments are removed, the packs of the others.
#[derive(Debug)]
pub(super) struct Builder {
    path: PathBuf,
    stop: Stop,
    old: Option<IndexTable>,
    /// Segments of the old one that are still wanted.
    known: BTreeSet<Name>,
    /// Whether others are in it.
    is_stale: bool,
    sorting: Vec<IndexEntry>,
    /// Sorted runs one after the other, in a file without a name, and how many blocks each has.
    runs: Option<(File, Vec<u64>)>,
    /// The records of segments that were added, and how many.
    added: Option<(File, u64)>,
}

impl Builder {
    /// Begins from the table at `path` if that is whole and ours; also the wanted segments that it lacks. The caller holds the
    /// lock of the index until the builder has finished.
    pub(super) fn open(
        path: &Path,
        wanted: &BTreeSet<Name>,
        stop: Stop,
    ) -> Result<(Self, Vec<Name>)> {
        let names = |old: &IndexTable| {
            let names = old.records()?.map(|record| Ok(record?.name));
            names.collect::<io::Result<BTreeSet<Name>>>()
        };
        let opened = open_ours(path, false)?.map(|file| {
            let old = IndexTable::of(file)?;
            Ok((names(&old)?, Some(old)))
        });
        let opened = opened.unwrap_or_else(|| Ok((BTreeSet::new(), None)));
        let (mut known, old) = opened.unwrap_or_else(|error: io::Error| {
            tracing::warn!("making a new {}: {error}", path.display());
            (BTreeSet::new(), None)
        });
        let before = known.len();
        known.retain(|name| wanted.contains(name));
        let missing = wanted.difference(&known).copied().collect();
        let builder = Self {
            path: path.to_owned(),
            stop,
            old,
            is_stale: known.len() < before,
            known,
            sorting: Vec::new(),
            runs: None,
            added: None,
        };
        Ok((builder, missing))
    }

    /// Takes the blocks of a segment.
    pub(super) fn add(&mut self, name: Name, segment: &Segment) -> Result<()> {
        let packs = segment.packs().iter().map(|pack| part(pack, 0));
        let packs = packs.collect();
        let path = with_ending(&self.path, "-added");
        let (file, count) = match &mut self.added {
            Some(added) => added,
            None => self.added.insert((scratch(&path)?, 0)),
        };
        file.write_all(&IndexedSegment { name, packs }.bytes())
            .map_err(|error| Error::of_file(&path, "cannot write", error))?;
        *count += 1;
        for (_, entry) in segment.entries() {
            self.sorting
                .push(entry_of(&entry.digest, &entry.pack, entry.spot));
            if self.sorting.len() >= SORTED {
                self.spill()?;
            }
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        self.sorting.sort_unstable();
        let path = with_ending(&self.path, "-runs");
        let failed = |error| Error::of_file(&path, "cannot write", error);
        let (mut file, mut runs) = match self.runs.take() {
            Some(runs) => runs,
            None => (scratch(&path)?, Vec::new()),
        };
        file.write_all(self.sorting.as_flattened())
            .map_err(failed)?;
        runs.push(self.sorting.len() as u64);
        self.sorting.clear();
        if runs.len() >= MOST_RUNS {
            // Many snapshots have the same rows: one of each is kept.
            let merged = scratch(&path)?;
            let mut out = BufWriter::with_capacity(1 << 20, &merged);
            let mut count = 0;
            let write = |entry: &IndexEntry| {
                count += 1;
                out.write_all(entry)
            };
            let done = merge(runs_of(&file, &runs), &self.stop, write);
            done.map_err(|error| self.stop.check().err().unwrap_or_else(|| failed(error)))?;
            out.flush().map_err(failed)?;
            drop(out);
            (file, runs) = (merged, vec![count]);
        }
        self.runs = Some((file, runs));
        Ok(())
    }

    /// The table: the old one if it is still right, else a new one in its place.
    pub(super) fn finish(mut self) -> Result<IndexTable> {
        let is_same = !self.is_stale && self.added.is_none();
        if let Some(old) = self.old.take_if(|_| is_same) {
            return Ok(old);
        }
        self.sorting.sort_unstable();
        let new = with_ending(&self.path, "-new");
        let file = create_ours(&new)?;
        let written = self.write(&file).and_then(|counts| {
            // The bytes before the name: a crash leaves the old table or the new one.
            file.sync_data()?;
            std::fs::rename(&new, &self.path)?;
            Ok(counts)
        });
        match written {
            Ok((pages, segments)) => Ok(IndexTable {
                file,
                pages,
                segments,
            }),
            Err(error) => {
                remove_if_there(&new)?;
                self.stop.check()?;
                Err(match error.kind() {
                    io::ErrorKind::InvalidData => {
                        let what = format!("{} is damaged", self.path.display());
                        Error::with_source(Kind::Corrupt, what, error)
                    }
                    _ => Error::of_file(&new, "cannot write", error),
                })
            }
        }
    }

    /// Merges what is still wanted of the old one with the sorted runs.
    fn write(&self, file: &File) -> io::Result<(u64, u64)> {
        let unreadable = |error: io::Error| damaged(&error.to_string());
        let is_known = |record: &io::Result<IndexedSegment>| {
            let known = |record: &IndexedSegment| self.known.contains(&record.name);
            record.as_ref().map_or(true, known)
        };
        let mut live = HashSet::new();
        if let Some(old) = self.old.as_ref().filter(|_| self.is_stale) {
            for record in old.records()?.filter(is_known) {
                live.extend(record.map_err(unreadable)?.packs);
            }
        }
        let mut sources: Vec<Entries<'_>> = Vec::new();
        if let Some(old) = &self.old {
            let entries = (0..old.pages).flat_map(|number| match old.page(number) {
                Ok(page) => {
                    let (entries, _) = page.as_chunks::<ENTRY>();
                    entries.iter().copied().map(Ok).collect()
                }
                Err(error) => vec![Err(unreadable(error))],
            });
            let is_live = |entry: &io::Result<IndexEntry>| {
                let is_live = |entry: &IndexEntry| live.contains(&part::<16>(entry, 32));
                !self.is_stale || entry.as_ref().map_or(true, is_live)
            };
            sources.push(Box::new(entries.filter(is_live)));
        }
        if let Some((runs, counts)) = &self.runs {
            sources.extend(runs_of(runs, counts));
        }
        sources.push(Box::new(self.sorting.iter().copied().map(Ok)));
        let mut writer = Writer::new(file);
        merge(sources, &self.stop, |entry| writer.push(entry))?;
        writer.end_pages()?;
        if let Some(old) = &self.old {
            for record in old.records()?.filter(is_known) {
                writer.record(&record.map_err(unreadable)?)?;
            }
        }
        if let Some((added, count)) = &self.added {
            let mut reader = BufReader::with_capacity(RUN_BUFFER, added);
            reader.rewind()?;
            for _ in 0..*count {
                writer.record(&IndexedSegment::read(&mut reader)?)?;
            }
        }
        writer.finish()
    }
}

type Entries<'a> = Box<dyn Iterator<Item = io::Result<IndexEntry>> + 'a>;

/// Passes sorted blocks on in order, only the first of those with the same digest in the same pack; an error once it is
/// stopped.
fn merge(
    mut sources: Vec<Entries<'_>>,
    stop: &Stop,
    mut take: impl FnMut(&IndexEntry) -> io::Result<()>,
) -> io::Result<()> {
    let mut heap = BinaryHeap::new();
    for (number, source) in sources.iter_mut().enumerate() {
        if let Some(entry) = source.next() {
            heap.push(Reverse((entry?, number)));
        }
    }
    let mut last = None;
    let mut count = 0_u64;
    while let Some(Reverse((entry, number))) = heap.pop() {
        count += 1;
        if count.is_multiple_of(STOP_EVERY) && stop.is_stopped() {
            return Err(io::Error::other("stopped"));
        }
        let block = Some(part::<64>(&entry, 0));
        if last != block {
            take(&entry)?;
            last = block;
        }
        if let Some(next) = sources.get_mut(number).and_then(Iterator::next) {
            heap.push(Reverse((next?, number)));
        }
    }
    Ok(())
}

/// The sorted runs of a file, one after the other in it.
fn runs_of<'a>(file: &'a File, counts: &[u64]) -> Vec<Entries<'a>> {
    let mut at = 0;
    let runs = counts.iter().map(|count| {
        let start = at;
        at += count * ENTRY as u64;
        Box::new(run_of(file, start..at)) as Entries<'a>
    });
    runs.collect()
}

/// The blocks of a sorted run.
fn run_of(
    file: &File,
    mut range: std::ops::Range<u64>,
) -> impl Iterator<Item = io::Result<IndexEntry>> {
    let mut buffer: Vec<u8> = Vec::new();
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == buffer.len() {
            let most = RUN_BUFFER as u64 / ENTRY as u64 * ENTRY as u64;
            let len = most.min(range.end - range.start);
            if len == 0 {
                return None;
            }
            buffer.resize(usize::try_from(len).unwrap_or(RUN_BUFFER), 0);
            if let Err(error) = file.read_exact_at(&mut buffer, range.start) {
                range.start = range.end;
                buffer.clear();
                at = 0;
                return Some(Err(error));
            }
            range.start += len;
            at = 0;
        }
        let entry = part(&buffer, at);
        at += ENTRY;
        Some(Ok(entry))
    })
}

/// A file that has no name: it goes with the process.
fn scratch(path: &Path) -> Result<File> {
    let file = create_ours(path)?;
    remove_if_there(path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::block::Digest;
    use crate::repository::pack::Spot;
    use crate::repository::segment::SegmentEntry as Block;

    fn digest(number: u64) -> Digest {
        Sha256::digest(number.to_le_bytes()).into()
    }

    /// A segment of blocks of these numbers, 64 in a pack.
    fn segment(numbers: std::ops::Range<u64>) -> (Name, Segment) {
        let blocks = numbers.clone().map(|number| {
            let block = Block {
                pack: digest((1 << 40) + number / 64),
                spot: Spot {
                    offset: 24 + u32::try_from(number % 64).unwrap() * 1000,
                    length: 1000,
                },
                digest: digest(number),
            };
            (u16::try_from(number - numbers.start).unwrap(), block)
        });
        (digest((1 << 41) + numbers.start), Segment::of(blocks))
    }

    fn made(path: &Path, segments: &[(Name, Segment)]) -> (IndexTable, usize) {
        let wanted = segments.iter().map(|(name, _)| *name).collect();
        let (mut builder, missing) = Builder::open(path, &wanted, Stop::never()).unwrap();
        for (name, segment) in segments {
            if missing.contains(name) {
                builder.add(*name, segment).unwrap();
            }
        }
        (builder.finish().unwrap(), missing.len())
    }

    fn holds(table: &IndexTable, number: u64) -> bool {
        let found = table.find(&digest(number)).unwrap();
        if let Some((pack, spot)) = found {
            assert_eq!(pack, digest((1 << 40) + number / 64));
            assert_eq!(u64::from(spot.offset), 24 + number % 64 * 1000);
        }
        found.is_some()
    }

    #[test]
    fn the_index_finds_blocks_of_segments_and_forgets_removed_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let (empty, _) = made(&path, &[]);
        assert!(!holds(&empty, 0));
        // More than are sorted at once, and some of them twice.
        let parts: Vec<_> = (0..6)
            .map(|part| segment(part * 57_600..part * 57_600 + 64_000))
            .collect();
        let all = 5 * 57_600 + 64_000;
        let (table, missing) = made(&path, &parts);
        assert_eq!(missing, 6);
        assert!(all > SORTED as u64);
        assert!((0..all).all(|number| holds(&table, number)));
        assert!(!(all..all + 10_000).any(|number| holds(&table, number)));
        // As it is, with one more, and without some.
        let (table, missing) = made(&path, &parts);
        assert!(missing == 0 && holds(&table, 7));
        let more = [&parts[..], &[segment(1_000_000..1_000_001)]].concat();
        let (table, missing) = made(&path, &more);
        assert!(missing == 1 && holds(&table, 1_000_000) && holds(&table, 7));
        let (table, missing) = made(&path, &more[5..]);
        assert_eq!(missing, 0);
        assert!(!(0..5 * 57_600).any(|number| holds(&table, number)));
        assert!((5 * 57_600..all).all(|number| holds(&table, number)));
        assert!(holds(&table, 1_000_000));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_stopped_update_leaves_the_old_index_and_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        drop(made(&path, &[segment(0..10)]));
        let before = std::fs::read(&path).unwrap();
        let (name, more) = segment(100..100 + 2 * STOP_EVERY);
        let stop = Stop::new(tokio::sync::watch::channel(true).1);
        let (mut builder, _) = Builder::open(&path, &[name].into(), stop).unwrap();
        builder.add(name, &more).unwrap();
        assert_eq!(builder.finish().unwrap_err().kind(), Kind::Stopped);
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_index_of_another_user_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let parts = [segment(0..10)];
        drop(made(&path, &parts));
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        let (table, missing) = made(&path, &parts);
        assert!(missing == 1 && holds(&table, 7));
    }

    #[test]
    fn a_damaged_index_is_never_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let parts = [segment(0..2000)];
        drop(made(&path, &parts));
        let whole = std::fs::read(&path).unwrap();
        for _ in 0..300 {
            let mut bytes = whole.clone();
            let at = fastrand::usize(..bytes.len());
            if fastrand::bool() {
                bytes[at] ^= 1 << fastrand::u8(..8);
            } else {
                bytes.truncate(at);
            }
            std::fs::write(&path, &bytes).unwrap();
            let Ok(table) = IndexTable::of(std::fs::File::open(&path).unwrap()) else {
                continue;
            };
            for number in 0..2100 {
                match table.find(&digest(number)) {
                    Ok(Some((pack, _))) => assert_eq!(pack, digest((1 << 40) + number / 64)),
                    Ok(None) => assert!(number >= 2000),
                    Err(_) => {}
                }
            }
            // And what is made of it is right, or not made.
            let wanted = [parts[0].0, digest(5)].into();
            let (mut builder, _) = Builder::open(&path, &wanted, Stop::never()).unwrap();
            builder.add(digest(5), &segment(5000..5001).1).unwrap();
            match builder.finish() {
                Ok(table) => assert!((0..2000).all(|number| holds(&table, number))),
                Err(error) => assert_eq!(error.kind(), Kind::Corrupt),
            }
        }
    }
}
