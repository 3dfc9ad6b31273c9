//! The file of an index: blocks sorted by digest in pages, so that a block is found with a few reads of 4 KiB and nothing of it
//! is in memory; then which segments they are of, and the packs of each.
//!
//! ```text
//! page      56 blocks at most, ascending: SHA-256 (32), pack (32), offset (u32), length (u32); zeroes to 4,084; how many
//!           (u32); the first 8 bytes of the SHA-256 of the page's number (u64) and all before
//! segments  of each: its name (32), how many packs (u32), the first 16 bytes of the name of each
//! footer    pages (u64), segments (u64), SHA-256 of the segments and these two (32), "ebsfidx1"
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::with;
use crate::block::Digest;
use crate::disk::remove_if_there;
use crate::error::{Error, Kind, Result};
use crate::repository::pack::{Name, Spot};
use crate::repository::segment::Segment;

const MAGIC: &[u8; 8] = b"ebsfidx1";
const PAGE: usize = 4096;
const ENTRY: usize = 72;
const PER_PAGE: usize = 56;
const COUNT_AT: usize = PAGE - 12;
const CHECK_AT: usize = PAGE - 8;
const FOOTER: usize = 56;
/// Blocks sorted in memory at once: 19 MB.
const SORTED: usize = 1 << 18;
/// Bytes read at once of each sorted run, of which 64 TiB have 512.
const RUN_BUFFER: usize = 64 << 10;

/// A block as it is in the file, which sorts by its digest.
type Entry = [u8; ENTRY];
/// So much of a pack's name tells it from all others.
type Short = [u8; 16];

fn entry_of(digest: &Digest, pack: &Name, spot: Spot) -> Entry {
    let mut entry = [0; ENTRY];
    let parts: [&[u8]; 4] = [
        digest,
        pack,
        &spot.offset.to_le_bytes(),
        &spot.length.to_le_bytes(),
    ];
    for (to, from) in entry.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    entry
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let part = bytes.get(at..).and_then(|rest| rest.first_chunk());
    part.copied().unwrap_or([0; N])
}

fn digest_of(entry: &[u8]) -> Digest {
    part(entry, 0)
}

fn pack_of(entry: &[u8]) -> Name {
    part(entry, 32)
}

fn spot_of(entry: &[u8]) -> Spot {
    Spot {
        offset: u32::from_le_bytes(part(entry, 64)),
        length: u32::from_le_bytes(part(entry, 68)),
    }
}

/// What digests are spread evenly by.
fn key_of(entry: &[u8]) -> u64 {
    u64::from_be_bytes(part(entry, 0))
}

fn check_of(number: u64, page: &[u8]) -> [u8; 8] {
    let mut hash = Sha256::new();
    hash.update(number.to_le_bytes());
    hash.update(page.get(..CHECK_AT).unwrap_or_default());
    part(&hash.finalize(), 0)
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The blocks of an index.
#[derive(Debug)]
pub(super) struct Table {
    file: File,
    pages: u64,
}

impl Table {
    /// The table at a path, and of each of its segments the packs; none when there is none, or no whole one.
    fn open(path: &Path) -> io::Result<(Self, BTreeMap<Name, Vec<Short>>)> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        let length = file.metadata()?.len();
        let mut footer = [0; FOOTER];
        let end = length.checked_sub(FOOTER as u64);
        let end = end.ok_or_else(|| damaged("it is too short"))?;
        file.read_exact_at(&mut footer, end)?;
        let (pages, count) = (
            u64::from_le_bytes(part(&footer, 0)),
            u64::from_le_bytes(part(&footer, 8)),
        );
        let start = pages.checked_mul(PAGE as u64).filter(|start| *start <= end);
        let start = start.ok_or_else(|| damaged("it is cut short"))?;
        if part(&footer, 48) != *MAGIC {
            return Err(damaged("it is no index"));
        }
        let mut reader = BufReader::new(&file);
        reader.seek(SeekFrom::Start(start))?;
        let mut rest = reader.take(end - start);
        let mut hash = Sha256::new();
        let mut segments = BTreeMap::new();
        for _ in 0..count {
            let mut name = [0; 36];
            rest.read_exact(&mut name)?;
            hash.update(name);
            let packs = u32::from_le_bytes(part(&name, 32));
            let mut shorts = Vec::new();
            for _ in 0..packs {
                let mut short = [0; 16];
                rest.read_exact(&mut short)?;
                hash.update(short);
                shorts.push(short);
            }
            segments.insert(part(&name, 0), shorts);
        }
        hash.update(part::<16>(&footer, 0));
        if rest.limit() != 0 || *hash.finalize() != part::<32>(&footer, 16) {
            return Err(damaged("it is not what was written"));
        }
        Ok((Self { file, pages }, segments))
    }

    /// The blocks of a page, verified.
    fn page(&self, number: u64) -> io::Result<Vec<u8>> {
        let mut page = vec![0; PAGE];
        self.file.read_exact_at(&mut page, number * PAGE as u64)?;
        let count = u32::from_le_bytes(part(&page, COUNT_AT)) as usize;
        let is_right = part(&page, CHECK_AT) == check_of(number, &page);
        if !is_right || count == 0 || count > PER_PAGE {
            return Err(damaged("a page of it is not what was written"));
        }
        page.truncate(count * ENTRY);
        Ok(page)
    }

    /// Where a block of this digest is. Digests are spread evenly, so that the page is guessed, and guessed again between those
    /// that were read: some four reads, however many there are.
    pub(super) fn find(&self, digest: &Digest) -> io::Result<Option<(Name, Spot)>> {
        let key = key_of(digest);
        let (mut pages, mut keys) = (0..self.pages, 0..=u64::MAX);
        let mut tries = 0;
        while !pages.is_empty() {
            let span = u128::from(pages.end - pages.start);
            let offset =
                u128::from(key - keys.start()) * span / (u128::from(keys.end() - keys.start()) + 1);
            tries += 1;
            // Never so many, where they are spread evenly.
            let offset = if tries > 16 { span / 2 } else { offset };
            let at = pages.start + u64::try_from(offset).unwrap_or(0);
            let page = self.page(at)?;
            let (entries, _) = page.as_chunks::<ENTRY>();
            let [Some(first), Some(last)] = [entries.first(), entries.last()] else {
                return Ok(None);
            };
            if *digest < digest_of(first) {
                pages.end = at;
                keys = *keys.start()..=key_of(first).max(key);
            } else if *digest > digest_of(last) {
                pages.start = at + 1;
                keys = key_of(last).min(key)..=*keys.end();
            } else {
                let found = entries.binary_search_by_key(digest, |entry| digest_of(entry));
                let entry = found.ok().and_then(|at| entries.get(at));
                return Ok(entry.map(|entry| (pack_of(entry), spot_of(entry))));
            }
        }
        Ok(None)
    }
}

/// A table being brought up to date.
#[derive(Debug)]
pub(super) struct Builder {
    path: PathBuf,
    old: Option<Table>,
    /// Whether something is in the old one that is not wanted any more.
    is_stale: bool,
    known: BTreeMap<Name, Vec<Short>>,
    missing: Vec<Name>,
    sorting: Vec<Entry>,
    /// Sorted runs one after the other, in a file without a name, and how many blocks each has.
    runs: Option<(File, Vec<usize>)>,
}

impl Builder {
    /// From what is at a path already, if it is any good. Nobody else may write there meanwhile.
    pub(super) fn open(path: &Path, wanted: &BTreeSet<Name>) -> Result<Self> {
        let (old, mut known) = match Table::open(path) {
            Ok((old, known)) => (Some(old), known),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, BTreeMap::new()),
            Err(error) => {
                tracing::warn!("{} is made anew: {error}", path.display());
                (None, BTreeMap::new())
            }
        };
        let before = known.len();
        known.retain(|name, _| wanted.contains(name));
        let is_new = |name: &&Name| !known.contains_key(*name);
        Ok(Self {
            path: path.to_owned(),
            old,
            is_stale: known.len() < before,
            missing: wanted.iter().filter(is_new).copied().collect(),
            known,
            sorting: Vec::new(),
            runs: None,
        })
    }

    /// The segments that it is to be told of.
    pub(super) fn missing(&self) -> Vec<Name> {
        self.missing.clone()
    }

    /// Takes the blocks of a segment.
    pub(super) fn add(&mut self, name: Name, segment: &Segment) -> Result<()> {
        let shorts = segment.packs().iter().map(|pack| part(pack, 0));
        self.known.insert(name, shorts.collect());
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
        let path = with(&self.path, "-runs");
        let failed = |error| Error::of_file(&path, "cannot write", error);
        let (file, runs) = match &mut self.runs {
            Some(runs) => runs,
            None => self.runs.insert((scratch(&path)?, Vec::new())),
        };
        file.write_all(self.sorting.as_flattened())
            .map_err(failed)?;
        runs.push(self.sorting.len());
        self.sorting.clear();
        Ok(())
    }

    /// The table, written anew if anything is to be said that the old one does not say.
    pub(super) fn finish(mut self) -> Result<Table> {
        let has_news = self
            .missing
            .iter()
            .any(|name| self.known.contains_key(name));
        if let Some(old) = self.old.take_if(|_| !self.is_stale && !has_news) {
            return Ok(old);
        }
        self.sorting.sort_unstable();
        let new = with(&self.path, "-new");
        remove_if_there(&new)?;
        let file = open_new(&new)?;
        let written = self.write(&file).and_then(|pages| {
            // Before its name is: what a crash leaves is the one or the other.
            file.sync_data()?;
            Ok(pages)
        });
        let pages = written.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => {
                let what = format!("{} is damaged", self.path.display());
                Error::with_source(Kind::Corrupt, what, error)
            }
            _ => Error::of_file(&new, "cannot write", error),
        })?;
        std::fs::rename(&new, &self.path)
            .map_err(|error| Error::of_file(&self.path, "cannot replace", error))?;
        Ok(Table { file, pages })
    }

    /// Merges what is still wanted of the old one with the sorted runs.
    fn write(&self, file: &File) -> io::Result<u64> {
        let live: HashSet<Short> = self.known.values().flatten().copied().collect();
        let mut sources: Vec<Box<dyn Iterator<Item = io::Result<Entry>> + '_>> = Vec::new();
        if let Some(old) = &self.old {
            let entries = (0..old.pages).flat_map(|number| match old.page(number) {
                Ok(page) => {
                    let (entries, _) = page.as_chunks::<ENTRY>();
                    entries.iter().copied().map(Ok).collect()
                }
                Err(error) => vec![Err(error)],
            });
            sources.push(Box::new(entries.filter(move |entry| {
                entry
                    .as_ref()
                    .map_or(true, |entry| live.contains(&part(entry, 32)))
            })));
        }
        if let Some((runs, counts)) = &self.runs {
            let mut at = 0;
            for count in counts {
                let bytes = *count as u64 * ENTRY as u64;
                sources.push(Box::new(run_of(runs, at..at + bytes)));
                at += bytes;
            }
        }
        sources.push(Box::new(self.sorting.iter().copied().map(Ok)));
        let mut writer = Writer::new(file);
        let mut heap = BinaryHeap::new();
        for (number, source) in sources.iter_mut().enumerate() {
            if let Some(entry) = source.next() {
                heap.push(Reverse((entry?, number)));
            }
        }
        while let Some(Reverse((entry, number))) = heap.pop() {
            writer.push(&entry)?;
            if let Some(next) = sources.get_mut(number).and_then(Iterator::next) {
                heap.push(Reverse((next?, number)));
            }
        }
        writer.finish(&self.known)
    }
}

/// Pages being written.
struct Writer<'a> {
    out: BufWriter<&'a File>,
    page: Vec<u8>,
    pages: u64,
    last: Option<Digest>,
}

impl<'a> Writer<'a> {
    fn new(file: &'a File) -> Self {
        Self {
            out: BufWriter::with_capacity(1 << 20, file),
            page: Vec::with_capacity(PAGE),
            pages: 0,
            last: None,
        }
    }

    /// Of blocks that hold the same the first is enough.
    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        let digest = Some(digest_of(entry));
        if self.last == digest {
            return Ok(());
        }
        self.last = digest;
        self.page.extend_from_slice(entry);
        if self.page.len() == PER_PAGE * ENTRY {
            self.end_page()?;
        }
        Ok(())
    }

    fn end_page(&mut self) -> io::Result<()> {
        let count = u32::try_from(self.page.len() / ENTRY).unwrap_or(0);
        self.page.resize(COUNT_AT, 0);
        self.page.extend_from_slice(&count.to_le_bytes());
        let check = check_of(self.pages, &self.page);
        self.page.extend_from_slice(&check);
        self.out.write_all(&self.page)?;
        self.page.clear();
        self.pages += 1;
        Ok(())
    }

    fn finish(mut self, segments: &BTreeMap<Name, Vec<Short>>) -> io::Result<u64> {
        if !self.page.is_empty() {
            self.end_page()?;
        }
        let mut hash = Sha256::new();
        let mut write = |bytes: &[u8]| {
            hash.update(bytes);
            self.out.write_all(bytes)
        };
        for (name, packs) in segments {
            write(name)?;
            write(&u32::try_from(packs.len()).unwrap_or(0).to_le_bytes())?;
            write(packs.as_flattened())?;
        }
        write(&self.pages.to_le_bytes())?;
        write(&(segments.len() as u64).to_le_bytes())?;
        let digest = hash.finalize();
        self.out.write_all(&digest)?;
        self.out.write_all(MAGIC)?;
        self.out.flush()?;
        Ok(self.pages)
    }
}

/// The blocks of a sorted run.
fn run_of(file: &File, mut range: std::ops::Range<u64>) -> impl Iterator<Item = io::Result<Entry>> {
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

fn open_new(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.custom_flags(libc::O_NOFOLLOW).open(path);
    file.map_err(|error| Error::of_file(path, "cannot make", error))
}

/// A file that has no name: it goes with the process.
fn scratch(path: &Path) -> Result<File> {
    remove_if_there(path)?;
    let file = open_new(path)?;
    remove_if_there(path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::segment::Entry as Block;

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

    fn made(path: &Path, segments: &[(Name, Segment)]) -> (Table, usize) {
        let wanted = segments.iter().map(|(name, _)| *name).collect();
        let mut builder = Builder::open(path, &wanted).unwrap();
        let missing = builder.missing();
        for (name, segment) in segments {
            if missing.contains(name) {
                builder.add(*name, segment).unwrap();
            }
        }
        (builder.finish().unwrap(), missing.len())
    }

    fn holds(table: &Table, number: u64) -> bool {
        let found = table.find(&digest(number)).unwrap();
        if let Some((pack, spot)) = found {
            assert_eq!(pack, digest((1 << 40) + number / 64));
            assert_eq!(u64::from(spot.offset), 24 + number % 64 * 1000);
        }
        found.is_some()
    }

    #[test]
    fn what_segments_hold_is_found_and_what_no_segment_holds_any_more_is_not() {
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
            let Ok((table, _)) = Table::open(&path) else {
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
            let mut builder = Builder::open(&path, &wanted).unwrap();
            builder.add(digest(5), &segment(5000..5001).1).unwrap();
            match builder.finish() {
                Ok(table) => assert!((0..2000).all(|number| holds(&table, number))),
                Err(error) => assert_eq!(error.kind(), Kind::Corrupt),
            }
        }
    }
}
