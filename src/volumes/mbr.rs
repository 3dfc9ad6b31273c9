//! A master boot record: four primary partitions, and a chain of logical ones, numbered as Linux numbers them
//! (`block/partitions/msdos.c`). Its sectors have 512 bytes.

use std::io;

use super::kinds::PartitionKind;
use super::{DiskLayout, DiskPartition, ReadDisk, TableKind, add, u32_at};

/// Logical partitions, and links of their chain, at most.
const MOST_LOGICAL: usize = 128;
const SECTOR: u64 = 512;
const PROTECTIVE: u8 = 0xee;
/// The number of the first logical partition.
const FIRST_LOGICAL: u32 = 5;

/// An entry of the table.
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

fn entries(sector: &[u8]) -> [MbrEntry; 4] {
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
pub(super) fn is_plausible(sector: &[u8]) -> bool {
    let entries = entries(sector);
    has_signature(sector)
        && entries.iter().all(|entry| [0, 0x80].contains(&entry.flag))
        && entries
            .iter()
            .any(|entry| entry.is_used() && entry.first > 0)
}

/// The last sector of the disk by the entry that protects a GPT; none without such an entry.
pub(super) fn protective_end(sector: &[u8]) -> Option<u64> {
    let entries = entries(sector);
    let found = entries.iter().find(|entry| entry.kind == PROTECTIVE);
    // Sectors have 32 bits: no sum of two overflows.
    found
        .filter(|_| is_plausible(sector))
        .map(|entry| (entry.first + entry.count).saturating_sub(1))
}

/// The partitions of a disk.
///
/// # Errors
/// Why the disk cannot be read.
pub(super) fn read(read: ReadDisk<'_>, head: &[u8], size: u64) -> io::Result<DiskLayout> {
    let mut found = DiskLayout::new(TableKind::Mbr, size, SECTOR);
    found.id = Some(format!("{:08x}", u32_at(head, 440)));
    let mut chains = 0;
    for (number, entry) in (1..).zip(entries(head)) {
        if !entry.is_used() {
            continue;
        }
        if !entry.is_extended() {
            found.push_entry(number, entry.first, &entry);
        } else if chains == 0 {
            chains += 1;
            logical(read, entry.first, &mut found)?;
        } else {
            let note = "there is more than one extended partition; only the first one is read";
            add(&mut found.notes, note.into());
        }
    }
    Ok(found)
}

/// Follows the chain of logical partitions.
fn logical(read: ReadDisk<'_>, extended: u64, found: &mut DiskLayout) -> io::Result<()> {
    let (mut at, mut number) = (extended, FIRST_LOGICAL);
    let mut seen = Vec::new();
    loop {
        if seen.contains(&at) || seen.len() == MOST_LOGICAL {
            let damage = "the chain of logical partitions does not end";
            add(&mut found.damage, damage.into());
            return Ok(());
        }
        seen.push(at);
        let sector = match at * SECTOR < found.size {
            true => read(at * SECTOR, 512)?,
            false => Vec::new(),
        };
        if !has_signature(&sector) {
            let damage = format!("the table of partition {number} is damaged");
            add(&mut found.damage, damage);
            return Ok(());
        }
        let entries = entries(&sector);
        // The last two entries of such a table can be garbage.
        for own in entries.iter().take(2) {
            if own.is_used() && !own.is_extended() {
                found.push_entry(number, at + own.first, own);
                number += 1;
            }
        }
        let next = entries
            .iter()
            .find(|next| next.is_used() && next.is_extended());
        let Some(next) = next else {
            return Ok(());
        };
        at = extended + next.first;
    }
}

impl DiskLayout {
    fn push_entry(&mut self, number: u32, first: u64, entry: &MbrEntry) {
        let uuid = self.id.as_ref().map(|id| format!("{id}-{number:02x}"));
        self.push(DiskPartition {
            number,
            name: String::new(),
            kind: PartitionKind::of_mbr(entry.kind),
            uuid,
            // Sectors have 32 bits, and a sum of three of them overflows nothing.
            start: first * SECTOR,
            size: entry.count * SECTOR,
            filesystem: None,
        });
    }
}
