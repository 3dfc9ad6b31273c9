//! Records of the MFT, which are checked before the crate `ntfs` reads them: it panics at an attribute whose header is cut, and it
//! takes the record of another file for a part of this one.

use ntfs::{Ntfs, NtfsFile, NtfsFileFlags};

use super::super::reader::{DiskWindow, FsFailure, FsResult, WindowStream, le16, le32, le64};
use super::RECORD;
use super::stream::fix_up;

/// Bytes of a record, at most.
const MOST_RECORD: usize = 64 << 10;
/// The type behind the last attribute.
const END: u32 = 0xffff_ffff;
/// Bytes of the header of an attribute: in the record, and outside of it.
const HEADERS: [usize; 2] = [24, 64];

/// Opens a file by its id.
///
/// # Errors
/// When its record is damaged, not in use, of another file or a part of one.
pub(super) fn open_file<'n>(
    ntfs: &'n Ntfs,
    stream: &mut WindowStream,
    window: &DiskWindow,
    id: u64,
) -> FsResult<NtfsFile<'n>> {
    let file = ntfs.file(stream, id & RECORD)?;
    if !file.flags().contains(NtfsFileFlags::IN_USE) {
        return Err(FsFailure::damaged("the record of a file is not in use"));
    }
    let sequence = u16::try_from(id >> 48).unwrap_or(0);
    // The filesystem's own files are named without one.
    if sequence != 0 && sequence != file.sequence_number() {
        return Err(FsFailure::damaged("the record of a file was used again"));
    }
    check_part(ntfs, &file, window, 0)?;
    Ok(file)
}

/// Checks a record, and that it is a part of the file with this number; 0: the record is a file.
///
/// # Errors
/// When it is damaged.
pub(super) fn check_part(
    ntfs: &Ntfs,
    file: &NtfsFile<'_>,
    window: &DiskWindow,
    of: u64,
) -> FsResult<()> {
    let at = file.position().value().ok_or_else(wrong)?.get();
    let record = read(window, at, ntfs.file_record_size())?;
    match le64(&record, 32) & RECORD == of {
        true => Ok(()),
        false => Err(FsFailure::damaged("a record is a part of another file")),
    }
}

/// Checks the record of the MFT itself.
///
/// # Errors
/// When it is damaged: no file can be found.
pub(super) fn check_mft(ntfs: &Ntfs, window: &DiskWindow) -> FsResult<()> {
    let at = ntfs.mft_position().value().ok_or_else(wrong)?.get();
    match read(window, at, ntfs.file_record_size()) {
        Err(failure) if failure == wrong() => {
            Err(FsFailure::damaged("the record of the MFT is damaged"))
        }
        read => read.map(drop),
    }
}

fn wrong() -> FsFailure {
    FsFailure::damaged("the record of a file is damaged")
}

/// Reads a record, and checks its attributes.
fn read(window: &DiskWindow, at: u64, len: u32) -> FsResult<Vec<u8>> {
    let mut record = window.bytes_at(at, (len as usize).min(MOST_RECORD))?;
    fix_up(&mut record, b"FILE").ok_or_else(wrong)?;
    check(&record).ok_or_else(wrong)?;
    Ok(record)
}

/// Whether each attribute of a record is within it, and the last one is followed by the mark of the end.
fn check(record: &[u8]) -> Option<()> {
    let used = record.get(..le32(record, 24) as usize)?;
    let mut at = usize::from(le16(used, 20));
    loop {
        let rest = used.get(at..).filter(|rest| rest.len() >= 4)?;
        if le32(rest, 0) == END {
            return Some(());
        }
        let attribute = rest.get(..le32(rest, 4) as usize)?;
        let within = |start: usize, len: usize| attribute.get(start..start.checked_add(len)?);
        let outside = usize::from(*attribute.get(8)?);
        let header = HEADERS.get(outside).copied()?;
        within(0, header)?;
        let name_len = usize::from(*attribute.get(9)?) * 2;
        if name_len > 0 {
            within(usize::from(le16(attribute, 10)), name_len)?;
        }
        match outside {
            0 => within(
                usize::from(le16(attribute, 20)),
                le32(attribute, 16) as usize,
            )?,
            _ => within(usize::from(le16(attribute, 32)), 0)?,
        };
        at += attribute.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record with one attribute of these bytes at 56.
    fn record(attribute: &[u8]) -> Vec<u8> {
        let mut record = vec![0; 1024];
        record[20] = 56;
        let end = 56 + attribute.len();
        record[56..end].copy_from_slice(attribute);
        record[end..end + 4].copy_from_slice(&END.to_le_bytes());
        record[24..28].copy_from_slice(&u32::try_from(end + 8).unwrap().to_le_bytes());
        record
    }

    /// An attribute of a length, in the record or outside, with name, value or runs at these places.
    fn attribute(len: usize, outside: u8, name: (u8, u16), value: (u32, u16)) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[0] = 0x80;
        bytes[4..8].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
        (bytes[8], bytes[9]) = (outside, name.0);
        bytes[10..12].copy_from_slice(&name.1.to_le_bytes());
        if outside == 0 && len >= 22 {
            bytes[16..20].copy_from_slice(&value.0.to_le_bytes());
            bytes[20..22].copy_from_slice(&value.1.to_le_bytes());
        } else if len >= 34 {
            bytes[32..34].copy_from_slice(&value.1.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_record_is_read_only_if_each_attribute_is_within_it() {
        for (len, outside, name, value, is_good) in [
            (32, 0, (0, 0), (8, 24), true),
            (32, 0, (0, 0), (9, 24), false),
            (32, 0, (0, 0), (u32::MAX, 24), false),
            (32, 0, (0, 0), (0, 33), false),
            (40, 0, (4, 24), (8, 32), true),
            (40, 0, (9, 24), (0, 32), false),
            (16, 0, (0, 0), (0, 0), false),
            (72, 1, (0, 0), (0, 64), true),
            (72, 1, (0, 0), (0, 73), false),
            (63, 1, (0, 0), (0, 0), false),
            (32, 2, (0, 0), (8, 24), false),
        ] {
            let found = check(&record(&attribute(len, outside, name, value)));
            assert_eq!(
                found.is_some(),
                is_good,
                "{len} {outside} {name:?} {value:?}"
            );
        }
        let good = record(&attribute(32, 0, (0, 0), (8, 24)));
        for used in 0..95_u32 {
            let mut cut = good.clone();
            cut[24..28].copy_from_slice(&used.to_le_bytes());
            assert_eq!(check(&cut).is_some(), used >= 92, "{used}");
        }
        let mut endless = good;
        endless[60..64].fill(0);
        assert_eq!(check(&endless), None);
    }
}
