//! A GUID partition table: the header at either end of the disk whose checksums are right.

use std::io;

use super::kinds::{PartitionKind, guid};
use super::{
    DiskLayout, DiskPartition, ReadDisk, TableKind, add, crc32, mbr, text_of_utf16, u32_at, u64_at,
};

/// Entries, at most; there are 128.
const MOST_ENTRIES: u32 = 1024;
/// Sizes of sectors that it can count in.
const SECTORS: [u64; 2] = [512, 4096];
/// Where the primary header is, in sectors.
const PRIMARY: u64 = 1;
/// UTF-16 units of a name.
const NAME: usize = 36;

/// A header and its entries.
struct GptTable {
    id: String,
    /// Where the header says that it is, and that the other one is: in sectors.
    own: u64,
    other: u64,
    entries: Vec<Vec<u8>>,
}

/// The table of a disk; none where nothing shows that it has one.
///
/// # Errors
/// Why the disk cannot be read.
pub(super) fn find(read: ReadDisk<'_>, head: &[u8], size: u64) -> io::Result<Option<DiskLayout>> {
    let protective = mbr::protective_end(head);
    let mut has_magic = false;
    for sector in SECTORS {
        let primary = read(sector, 512)?;
        has_magic |= primary.starts_with(b"EFI PART");
        let last = (size / sector).saturating_sub(1);
        if let Some(table) = table_of(read, &primary, sector, size)? {
            let mut found = partitions(&table, sector, size);
            if table.own != PRIMARY {
                add(
                    &mut found.notes,
                    "the primary GPT states another place".into(),
                );
            }
            if table.other > last {
                let note = "the backup GPT is beyond the end of the disk";
                add(&mut found.notes, note.into());
            }
            return Ok(Some(found));
        }
        if !has_magic && protective.is_none() {
            continue;
        }
        // A volume that was enlarged has its backup where it ended before: the protective MBR and the damaged header name that place.
        let mut places = vec![last, u64_at(&primary, 32)];
        places.extend(protective);
        places.dedup();
        for place in places {
            let Some(start) = place.checked_mul(sector).filter(|start| *start < size) else {
                continue;
            };
            if place <= PRIMARY {
                continue;
            }
            let backup = read(start, 512)?;
            if let Some(table) = table_of(read, &backup, sector, size)? {
                let mut found = partitions(&table, sector, size);
                let note = "the primary GPT is damaged, its backup is good";
                add(&mut found.notes, note.into());
                return Ok(Some(found));
            }
        }
    }
    if !has_magic && protective.is_none() {
        return Ok(None);
    }
    let mut found = DiskLayout::new(TableKind::Gpt, size, 512);
    found
        .damage
        .push("both copies of the GPT are damaged".to_owned());
    Ok(Some(found))
}

/// The table of a header, if its checksums are right.
fn table_of(
    read: ReadDisk<'_>,
    header: &[u8],
    sector: u64,
    size: u64,
) -> io::Result<Option<GptTable>> {
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
    if !crc32(!0, &covered) != u32_at(header, 16) || !is_possible {
        return Ok(None);
    }
    let start = u64_at(header, 72)
        .checked_mul(sector)
        .filter(|start| *start < size);
    let Some(start) = start else {
        return Ok(None);
    };
    let len = count as usize * width as usize;
    let bytes = read(start, len)?;
    if bytes.len() != len || !crc32(!0, &bytes) != u32_at(header, 88) {
        return Ok(None);
    }
    Ok(Some(GptTable {
        id: guid(header.get(56..72).unwrap_or_default()),
        own: u64_at(header, 24),
        other: u64_at(header, 32),
        entries: bytes.chunks(width as usize).map(<[u8]>::to_vec).collect(),
    }))
}

fn partitions(table: &GptTable, sector: u64, size: u64) -> DiskLayout {
    let mut found = DiskLayout::new(TableKind::Gpt, size, sector);
    found.id = Some(table.id.clone());
    for (number, entry) in (1..).zip(&table.entries) {
        let kind = entry.get(..16).unwrap_or_default();
        if kind.iter().all(|byte| *byte == 0) {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let sectors = last.checked_sub(first).and_then(|more| more.checked_add(1));
        let length = sectors.and_then(|sectors| sectors.checked_mul(sector));
        found.push(DiskPartition {
            number,
            name: text_of_utf16(entry.get(56..56 + 2 * NAME).unwrap_or_default()),
            kind: PartitionKind::of_gpt(kind),
            uuid: Some(guid(entry.get(16..32).unwrap_or_default())),
            // What overflows is not within the disk.
            start: first.saturating_mul(sector),
            size: length.unwrap_or(u64::MAX),
            filesystem: None,
        });
    }
    found
}
