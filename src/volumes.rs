//! What is on a disk: partitions (GPT, MBR), filesystems by their signatures, and LVM volumes that are ranges of this one disk.
//!
//! ```text
//!  read_table   partitions, their filesystems and LVM volumes of a disk -> DiskLayout
//!  layout       the partition table alone: gpt, mbr, or none
//!  sniff        what a range holds, by its first 128 KiB; label: its label and UUID
//!  lvm          the text metadata of a physical volume -> the byte ranges of its linear volumes
//!  view         what can be shown as a file: a name that is safe, and ranges; selection by number, name or VG/LV
//!  describe     partitions.json
//! ```
//!
//! # Foreign disks
//! A disk can hold anything, so each table has limits: of entries, of links that are followed, of bytes that are read. Each range is
//! compared with the size of the disk before anything uses it. A contradiction is a note or damage of the [`DiskLayout`], never an
//! error: an error means that the disk could not be read. The parsers allocate no more than they were given bytes times a constant.
//! The crates gptman 3.1 and mbrman 0.6 are not used: gptman allocates the count of entries that the header states (2^32 entries)
//! and asserts sizes that it was given; mbrman follows an ascending chain of any length and refuses chains that Linux accepts.
//!
//! # Names
//! *Physical volume*, *volume group*, *logical volume*: as in LVM. *Linear*: its blocks lie on the disk in the same order, in one or
//! more ranges. Such a volume needs no device-mapper: the ranges are the volume.

mod describe;
mod gpt;
mod kinds;
mod label;
mod lvm;
mod mbr;
mod sniff;
mod view;

use std::io;

pub(crate) use describe::describe;
pub(crate) use kinds::PartitionKind;
pub(crate) use label::FilesystemLabel;
pub(crate) use lvm::LogicalVolume;
pub(crate) use sniff::{DiskContent, HEAD, sniff};
pub(crate) use view::{ByteRange, VolumeView, WHOLE_DISK, locate};

/// Partitions of a table, at most.
const MOST_PARTITIONS: usize = 1024;
/// Partitions and volumes whose contents are looked at, at most: each costs a block.
const MOST_LOOKS: usize = 256;
/// Notes about one disk, at most.
const MOST_NOTES: usize = 32;

/// How a disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableKind {
    Gpt,
    Mbr,
    /// One filesystem, or anything else, on the whole disk.
    Whole,
}

impl TableKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gpt => "gpt",
            Self::Mbr => "mbr",
            Self::Whole => "none",
        }
    }
}

/// A partition; the whole disk has the number 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskPartition {
    pub(crate) number: u32,
    /// Its name in a GPT, without control characters; empty if it has none.
    pub(crate) name: String,
    /// What the table says that it is for.
    pub(crate) kind: PartitionKind,
    /// `PARTUUID`, as Linux writes it.
    pub(crate) uuid: Option<String>,
    /// Bytes from the start of the disk.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// What it holds; none before its contents are read.
    pub(crate) filesystem: Option<DiskFilesystem>,
}

impl DiskPartition {
    /// Whether the table calls it an EFI system partition.
    pub(crate) fn is_efi_system(&self) -> bool {
        self.kind.name == kinds::EFI_SYSTEM
    }

    /// The bytes of the disk that it is.
    pub(crate) fn range(&self) -> ByteRange {
        ByteRange {
            start: self.start,
            size: self.size,
        }
    }
}

/// What a partition or a volume holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskFilesystem {
    pub(crate) content: DiskContent,
    pub(crate) label: FilesystemLabel,
}

impl DiskFilesystem {
    /// Recognises what begins with these bytes.
    pub(crate) fn of(head: &[u8]) -> Self {
        let content = sniff(head);
        let label = label::label_of(&content, head);
        Self { content, label }
    }
}

/// The partitions and volumes of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskLayout {
    /// Bytes of the disk.
    pub(crate) size: u64,
    pub(crate) table: TableKind,
    /// Bytes of the sectors that the table counts in.
    pub(crate) sector: u64,
    /// The GUID of a GPT, the signature of an MBR.
    pub(crate) id: Option<String>,
    /// By number.
    pub(crate) partitions: Vec<DiskPartition>,
    /// LVM volumes; empty if nothing has looked.
    pub(crate) volumes: Vec<LogicalVolume>,
    /// What is wrong with the table: a sentence each.
    pub(crate) damage: Vec<String>,
    /// What is worth knowing and harms nothing: the first table is damaged, the second one is good.
    pub(crate) notes: Vec<String>,
}

impl DiskLayout {
    fn new(table: TableKind, size: u64, sector: u64) -> Self {
        Self {
            size,
            table,
            sector,
            id: None,
            partitions: Vec::new(),
            volumes: Vec::new(),
            damage: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a partition of the table, if it lies on the disk.
    fn push(&mut self, partition: DiskPartition) {
        let number = partition.number;
        let end = partition.start.checked_add(partition.size);
        if partition.size == 0 || end.is_none_or(|end| end > self.size) {
            add(
                &mut self.damage,
                format!("partition {number} is not within the disk"),
            );
        } else if self.partitions.len() == MOST_PARTITIONS {
            add(
                &mut self.notes,
                format!("only the first {MOST_PARTITIONS} partitions are read"),
            );
        } else {
            self.partitions.push(partition);
        }
    }

    /// Notes which partitions share bytes.
    fn note_overlaps(&mut self) {
        let mut ranges: Vec<_> = self.partitions.iter().collect();
        ranges.sort_by_key(|partition| (partition.start, partition.number));
        let mut notes = Vec::new();
        let mut last: Option<&DiskPartition> = None;
        for partition in ranges {
            // No sum overflows: `push` has compared each with the disk.
            if let Some(before) = last
                && before.start + before.size > partition.start
            {
                let (one, other) = (before.number, partition.number);
                notes.push(format!("partitions {one} and {other} overlap"));
            }
            if last.is_none_or(|last| last.start + last.size < partition.start + partition.size) {
                last = Some(partition);
            }
        }
        for note in notes {
            add(&mut self.notes, note);
        }
    }
}

/// Adds a sentence, if it is new and there is room.
fn add(sentences: &mut Vec<String>, sentence: String) {
    if sentences.len() < MOST_NOTES && !sentences.contains(&sentence) {
        sentences.push(sentence);
    }
}

/// Reads up to so many bytes at an offset; fewer only at the end of the disk.
pub(crate) type ReadDisk<'a> = &'a dyn Fn(u64, usize) -> io::Result<Vec<u8>>;

/// Finds the partitions of a disk of `size` bytes, what each holds, and its LVM volumes. Reads the table, the first 128 KiB of each
/// partition and the metadata of LVM.
///
/// # Errors
/// Why the disk cannot be read.
pub(crate) fn read_table(read: ReadDisk<'_>, size: u64) -> io::Result<DiskLayout> {
    let mut found = layout(read, size)?;
    let (mut volumes, mut notes) = (Vec::new(), Vec::new());
    if found.partitions.len() > MOST_LOOKS {
        notes.push(format!(
            "only the contents of the first {MOST_LOOKS} partitions are known"
        ));
    }
    for partition in found.partitions.iter_mut().take(MOST_LOOKS) {
        let held = look(read, &[partition.range()])?;
        if held.content == DiskContent::Other("lvm") {
            let number = partition.number;
            let (range, group) = (partition.range(), lvm::read_group(read, partition.range())?);
            for note in group.notes {
                notes.push(match number {
                    0 => note,
                    number => format!("partition {number}: {note}"),
                });
            }
            volumes.extend(lvm::volumes(number, range, group.metadata.as_ref()));
        }
        partition.filesystem = Some(held);
    }
    if volumes.len() > MOST_LOOKS {
        volumes.truncate(MOST_LOOKS);
        notes.push(format!(
            "only the first {MOST_LOOKS} volumes of LVM are shown"
        ));
    }
    for volume in &mut volumes {
        if let Ok(ranges) = &volume.ranges {
            volume.filesystem = Some(look(read, ranges)?);
        }
    }
    found.volumes = volumes;
    for note in notes {
        add(&mut found.notes, note);
    }
    Ok(found)
}

/// What ranges of a disk hold.
fn look(read: ReadDisk<'_>, ranges: &[ByteRange]) -> io::Result<DiskFilesystem> {
    Ok(DiskFilesystem::of(&view::read_view(read, ranges, 0, HEAD)?))
}

/// Finds the partitions of a disk of `size` bytes.
///
/// # Errors
/// Why the disk cannot be read.
pub(crate) fn layout(read: ReadDisk<'_>, size: u64) -> io::Result<DiskLayout> {
    let head = read(0, HEAD)?;
    let mut found = match gpt::find(read, &head, size)? {
        Some(found) => found,
        None if mbr::is_plausible(&head) && !sniff(&head).is_in_first_sector() => {
            mbr::read(read, &head, size)?
        }
        None => {
            let mut whole = DiskLayout::new(TableKind::Whole, size, 512);
            whole.partitions.push(DiskPartition {
                number: 0,
                name: String::new(),
                kind: PartitionKind::whole(),
                uuid: None,
                start: 0,
                size,
                filesystem: None,
            });
            whole
        }
    };
    found.partitions.sort_by_key(|partition| partition.number);
    found.note_overlaps();
    Ok(found)
}

/// A little-endian number; 0 beyond the end.
fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    let found = bytes.get(offset..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

/// A little-endian number; 0 beyond the end.
fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let found = bytes.get(offset..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// A little-endian number; 0 beyond the end.
fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let found = bytes.get(offset..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// CRC-32 of IEEE 802.3 without its last inversion, from a sum: a GPT inverts it, LVM does not.
fn crc32(sum: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(sum, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

/// A text from a disk: up to its first zero, without blanks around it. What is no UTF-8, control characters and those that change
/// the direction of text are shown as U+FFFD.
fn text_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    let bytes = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    clean(&String::from_utf8_lossy(bytes))
}

/// A text from a disk in UTF-16, little-endian: see [`text_of`].
fn text_of_utf16(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|pair| u16_at(pair, 0));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    clean(&String::from_utf16_lossy(&units))
}

fn clean(text: &str) -> String {
    let is_hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let shown = text.trim_matches(|c: char| c == ' ' || c == '\0');
    shown
        .chars()
        .map(|c| if is_hidden(c) { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests;
