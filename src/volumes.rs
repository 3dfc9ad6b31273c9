//! [`layout`]: the partitions of a disk, by its GPT or MBR; [`sniff`]: what a partition holds. A disk can hold anything: each table
//! has a limit of entries, each entry is compared with the disk's size, and no chain is followed for longer than
//! [`MOST_LOGICAL`].

mod sniff;

use std::io;

pub(crate) use sniff::{DiskContent, HEAD, sniff};
use sniff::{u32_at, u64_at};

/// Entries of a GPT, at most; it has 128.
const MOST_ENTRIES: u32 = 1024;
/// Logical partitions of an MBR, at most.
const MOST_LOGICAL: usize = 128;
/// Sizes of sectors that a GPT can count in.
const SECTORS: [u64; 2] = [512, 4096];
/// Sectors of an MBR.
const MBR_SECTOR: u64 = 512;
const PROTECTIVE: u8 = 0xee;
/// C12A7328-F81F-11D2-BA4B-00A0C93EC93B as a GPT stores it.
const EFI_SYSTEM: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];
const MBR_EFI_SYSTEM: u8 = 0xef;

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
    /// Bytes from the start of the disk.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// Whether the table calls it an EFI system partition.
    pub(crate) is_efi_system: bool,
}

/// The partitions of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskLayout {
    pub(crate) table: TableKind,
    pub(crate) partitions: Vec<DiskPartition>,
    /// What is wrong with the table: a sentence each.
    pub(crate) damage: Vec<String>,
    /// What is worth knowing and harms nothing: the first table is damaged, the second one is good.
    pub(crate) notes: Vec<String>,
}

/// Reads up to so many bytes at an offset; fewer only at the end of the disk.
pub(crate) type ReadDisk<'a> = &'a dyn Fn(u64, usize) -> io::Result<Vec<u8>>;

/// Finds the partitions of a disk of `size` bytes.
///
/// # Errors
/// What the disk cannot be read for.
pub(crate) fn layout(read: ReadDisk<'_>, size: u64) -> io::Result<DiskLayout> {
    let head = read(0, HEAD)?;
    let (mut has_gpt, is_protected) = (false, is_plausible_mbr(&head) && has_protective(&head));
    let mut found = None;
    let mut notes = Vec::new();
    for sector in SECTORS {
        let primary = read(sector, 512)?;
        has_gpt |= primary.starts_with(b"EFI PART");
        if let Some(entries) = gpt_entries(read, &primary, sector, size)? {
            found = Some((entries, sector));
            break;
        }
        let Some(last) = (size / sector).checked_sub(1) else {
            continue;
        };
        if !has_gpt && !is_protected {
            continue;
        }
        let backup = read(last * sector, 512)?;
        if let Some(entries) = gpt_entries(read, &backup, sector, size)? {
            notes.push("the primary GPT is damaged, its backup is good".to_owned());
            found = Some((entries, sector));
            break;
        }
    }
    if let Some((entries, sector)) = found {
        return Ok(DiskLayout {
            notes,
            ..gpt(&entries, sector, size)
        });
    }
    if has_gpt || is_protected {
        return Ok(DiskLayout {
            table: TableKind::Gpt,
            partitions: Vec::new(),
            damage: vec!["both copies of the GPT are damaged".to_owned()],
            notes,
        });
    }
    if is_plausible_mbr(&head) && !sniff(&head).is_in_first_sector() {
        return mbr(read, &head, size);
    }
    let whole = DiskPartition {
        number: 0,
        start: 0,
        size,
        is_efi_system: false,
    };
    Ok(DiskLayout {
        table: TableKind::Whole,
        partitions: vec![whole],
        damage: Vec::new(),
        notes,
    })
}

/// The entries of a GPT, with their length, if the header and their checksums are right.
fn gpt_entries(
    read: ReadDisk<'_>,
    header: &[u8],
    sector: u64,
    size: u64,
) -> io::Result<Option<Vec<Vec<u8>>>> {
    let length = u32_at(header, 12) as usize;
    if !header.starts_with(b"EFI PART") || !(92..=512).contains(&length) {
        return Ok(None);
    }
    let Some(covered) = header.get(..length) else {
        return Ok(None);
    };
    let mut covered = covered.to_vec();
    if let Some(sum) = covered.get_mut(16..20) {
        sum.fill(0);
    }
    let (count, width) = (u32_at(header, 80), u32_at(header, 84));
    let is_possible = count <= MOST_ENTRIES && (128..=1024).contains(&width) && width % 8 == 0;
    if crc32(&covered) != u32_at(header, 16) || !is_possible {
        return Ok(None);
    }
    let start = u64_at(header, 72)
        .checked_mul(sector)
        .filter(|start| *start < size);
    let Some(start) = start else {
        return Ok(None);
    };
    let bytes = read(start, count as usize * width as usize)?;
    if bytes.len() != count as usize * width as usize || crc32(&bytes) != u32_at(header, 88) {
        return Ok(None);
    }
    Ok(Some(
        bytes.chunks(width as usize).map(<[u8]>::to_vec).collect(),
    ))
}

fn gpt(entries: &[Vec<u8>], sector: u64, size: u64) -> DiskLayout {
    let (mut partitions, mut damage) = (Vec::new(), Vec::new());
    for (number, entry) in (1..).zip(entries) {
        let kind = entry.get(..16).unwrap_or_default();
        if kind.iter().all(|byte| *byte == 0) {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let sectors = last.checked_sub(first).and_then(|more| more.checked_add(1));
        let start = first.checked_mul(sector);
        let length = sectors.and_then(|sectors| sectors.checked_mul(sector));
        let end = start
            .zip(length)
            .and_then(|(start, length)| start.checked_add(length));
        match (start, length, end) {
            (Some(start), Some(length), Some(end)) if end <= size => {
                partitions.push(DiskPartition {
                    number,
                    start,
                    size: length,
                    is_efi_system: kind == EFI_SYSTEM,
                });
            }
            _ => damage.push(format!("partition {number} is not within the disk")),
        }
    }
    DiskLayout {
        table: TableKind::Gpt,
        partitions,
        damage,
        notes: Vec::new(),
    }
}

/// An entry of an MBR.
#[derive(Clone, Copy)]
struct MbrEntry {
    flag: u8,
    kind: u8,
    /// Sectors.
    first: u64,
    count: u64,
}

impl MbrEntry {
    fn is_used(&self) -> bool {
        self.kind != 0 && self.count != 0
    }

    fn is_extended(&self) -> bool {
        [0x05, 0x0f, 0x85].contains(&self.kind)
    }
}

fn mbr_entries(sector: &[u8]) -> [MbrEntry; 4] {
    [446, 462, 478, 494].map(|at| MbrEntry {
        flag: sector.get(at).copied().unwrap_or_default(),
        kind: sector.get(at + 4).copied().unwrap_or_default(),
        first: u32_at(sector, at + 8).into(),
        count: u32_at(sector, at + 12).into(),
    })
}

fn has_signature(sector: &[u8]) -> bool {
    sector.get(510..512) == Some(&[0x55, 0xaa])
}

/// Whether a first sector is that of a partitioned disk: text of a boot sector's program in the place of the table is not.
fn is_plausible_mbr(sector: &[u8]) -> bool {
    let entries = mbr_entries(sector);
    has_signature(sector)
        && entries.iter().all(|entry| [0, 0x80].contains(&entry.flag))
        && entries
            .iter()
            .any(|entry| entry.is_used() && entry.first > 0)
}

fn has_protective(sector: &[u8]) -> bool {
    mbr_entries(sector)
        .iter()
        .any(|entry| entry.kind == PROTECTIVE)
}

fn mbr(read: ReadDisk<'_>, head: &[u8], size: u64) -> io::Result<DiskLayout> {
    let mut found = DiskLayout {
        table: TableKind::Mbr,
        partitions: Vec::new(),
        damage: Vec::new(),
        notes: Vec::new(),
    };
    for (number, entry) in (1..).zip(mbr_entries(head)) {
        if !entry.is_used() {
            continue;
        }
        if entry.is_extended() {
            logical(read, entry.first, size, &mut found)?;
        } else {
            found.push(number, entry.first, &entry, size);
        }
    }
    found.partitions.sort_by_key(|partition| partition.number);
    Ok(found)
}

/// Follows the chain of logical partitions, whose first number is 5.
fn logical(read: ReadDisk<'_>, extended: u64, size: u64, found: &mut DiskLayout) -> io::Result<()> {
    let mut at = extended;
    for number in (5..).take(MOST_LOGICAL) {
        let sector = read(at * MBR_SECTOR, 512)?;
        if !has_signature(&sector) {
            found
                .damage
                .push(format!("the table of partition {number} is damaged"));
            return Ok(());
        }
        let [own, next, ..] = mbr_entries(&sector);
        if own.is_used() {
            found.push(number, at + own.first, &own, size);
        }
        if !next.is_used() {
            return Ok(());
        }
        at = extended + next.first;
    }
    found
        .damage
        .push("the chain of logical partitions does not end".to_owned());
    Ok(())
}

impl DiskLayout {
    fn push(&mut self, number: u32, first: u64, entry: &MbrEntry, disk: u64) {
        // Sectors have 32 bits: no sum of these overflows.
        let (start, size) = (first * MBR_SECTOR, entry.count * MBR_SECTOR);
        if start + size > disk {
            self.damage
                .push(format!("partition {number} is not within the disk"));
            return;
        }
        self.partitions.push(DiskPartition {
            number,
            start,
            size,
            is_efi_system: entry.kind == MBR_EFI_SYSTEM,
        });
    }
}

/// CRC-32 of IEEE 802.3, as a GPT has it.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    };
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests;
