//! The file of an index: blocks sorted by digest in pages, so that a block is found with a few reads of 4 KiB and no page
//! is in memory; then which segments they are of, and the packs of each.
//!
//! ```text
//! page      56 blocks at most, ascending: SHA-256 (32), pack (32), offset (u32), length (u32); zeroes to 4,084; how many
//!           (u32); the first 8 bytes of the SHA-256 of the page's number (u64) and all before
//! segments  of each: its name (32), how many packs (u32), the first 16 bytes of the name of each
//! footer    pages (u64), segments (u64), SHA-256 of the segments and these two (32), "ebsfidx1"
//! ```

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

use crate::block::Digest;
use crate::repository::SEGMENT_BLOCKS;
use crate::repository::pack::{Name, Spot};

const MAGIC: &[u8; 8] = b"ebsfidx1";
const PAGE: usize = 4096;
pub(super) const ENTRY: usize = 72;
const PER_PAGE: usize = 56;
const COUNT_AT: usize = PAGE - 12;
const CHECK_AT: usize = PAGE - 8;
const FOOTER: usize = 56;
/// Bytes read at once of each sorted run.
pub(super) const RUN_BUFFER: usize = 64 << 10;

/// A block as it is in the file, which sorts by its digest.
pub(super) type IndexEntry = [u8; ENTRY];
/// A unique prefix of a pack's name.
type ShortName = [u8; 16];

pub(super) fn entry_of(digest: &Digest, pack: &Name, spot: Spot) -> IndexEntry {
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

pub(super) fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
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

/// The part of a digest that spreads digests evenly over the pages.
fn key_of(entry: &[u8]) -> u64 {
    u64::from_be_bytes(part(entry, 0))
}

fn check_of(number: u64, page: &[u8]) -> [u8; 8] {
    let mut hash = Sha256::new();
    hash.update(number.to_le_bytes());
    hash.update(page.get(..CHECK_AT).unwrap_or_default());
    part(&hash.finalize(), 0)
}

pub(super) fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The blocks of an index.
#[derive(Debug)]
pub(super) struct IndexTable {
    pub(super) file: File,
    pub(super) pages: u64,
    pub(super) segments: u64,
}

impl IndexTable {
    /// The table of an open file. Its pages are verified when they are read, all else now.
    pub(super) fn of(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let mut footer = [0; FOOTER];
        let end = length.checked_sub(FOOTER as u64);
        let end = end.ok_or_else(|| damaged("it is too short"))?;
        file.read_exact_at(&mut footer, end)?;
        let table = Self {
            file,
            pages: u64::from_le_bytes(part(&footer, 0)),
            segments: u64::from_le_bytes(part(&footer, 8)),
        };
        if part(&footer, 48) != *MAGIC {
            return Err(damaged("it is no index"));
        }
        let mut hash = Sha256::new();
        let start = table.pages.checked_mul(PAGE as u64);
        let start = start.filter(|start| *start <= end);
        let start = start.ok_or_else(|| damaged("it is cut short"))?;
        io::copy(
            &mut table.reader(start)?.take(end - start),
            &mut Hashed(&mut hash),
        )?;
        hash.update(part::<16>(&footer, 0));
        if *hash.finalize() != part::<32>(&footer, 16) {
            return Err(damaged("it is not what was written"));
        }
        Ok(table)
    }

    fn reader(&self, start: u64) -> io::Result<BufReader<&File>> {
        let mut reader = BufReader::with_capacity(RUN_BUFFER, &self.file);
        reader.seek(SeekFrom::Start(start))?;
        Ok(reader)
    }

    /// Its segments, with their packs.
    pub(super) fn records(&self) -> io::Result<impl Iterator<Item = io::Result<IndexedSegment>>> {
        let mut reader = self.reader(self.pages * PAGE as u64)?;
        Ok((0..self.segments).map(move |_| IndexedSegment::read(&mut reader)))
    }

    /// The blocks of a page, verified.
    pub(super) fn page(&self, number: u64) -> io::Result<Vec<u8>> {
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
            // Evenly spread digests never need this many reads.
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

/// Feeds a hash.
struct Hashed<'a>(&'a mut Sha256);

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A segment that the table has the blocks of, and the packs that they are in.
pub(super) struct IndexedSegment {
    pub(super) name: Name,
    pub(super) packs: Vec<ShortName>,
}

impl IndexedSegment {
    pub(super) fn read(reader: &mut impl Read) -> io::Result<Self> {
        let mut head = [0; 36];
        reader.read_exact(&mut head)?;
        let count = u32::from_le_bytes(part(&head, 32)) as usize;
        if count > SEGMENT_BLOCKS as usize {
            return Err(damaged("a segment of it has too many packs"));
        }
        let mut packs = vec![[0; 16]; count];
        reader.read_exact(packs.as_flattened_mut())?;
        let name = part(&head, 0);
        Ok(Self { name, packs })
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let count = u32::try_from(self.packs.len()).unwrap_or(0);
        [
            &self.name,
            &count.to_le_bytes()[..],
            self.packs.as_flattened(),
        ]
        .concat()
    }
}

/// A table being written: pages, then records, then the footer.
pub(super) struct Writer<'a> {
    out: BufWriter<&'a File>,
    page: Vec<u8>,
    pages: u64,
    segments: u64,
    hash: Sha256,
}

impl<'a> Writer<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Self {
            out: BufWriter::with_capacity(1 << 20, file),
            page: Vec::with_capacity(PAGE),
            pages: 0,
            segments: 0,
            hash: Sha256::new(),
        }
    }

    pub(super) fn push(&mut self, entry: &IndexEntry) -> io::Result<()> {
        self.page.extend_from_slice(entry);
        if self.page.len() == PER_PAGE * ENTRY {
            self.end_pages()?;
        }
        Ok(())
    }

    /// Writes the page that is being filled.
    pub(super) fn end_pages(&mut self) -> io::Result<()> {
        if self.page.is_empty() {
            return Ok(());
        }
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

    pub(super) fn record(&mut self, record: &IndexedSegment) -> io::Result<()> {
        self.segments += 1;
        self.hashed(&record.bytes())
    }

    fn hashed(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }

    /// How many pages and segments it has.
    pub(super) fn finish(mut self) -> io::Result<(u64, u64)> {
        self.hashed(&self.pages.to_le_bytes())?;
        self.hashed(&self.segments.to_le_bytes())?;
        let digest = self.hash.finalize();
        self.out.write_all(&digest)?;
        self.out.write_all(MAGIC)?;
        self.out.flush()?;
        Ok((self.pages, self.segments))
    }
}
