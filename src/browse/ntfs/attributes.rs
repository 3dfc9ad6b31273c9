//! The attributes of a file: those in its record, and those in other records.

use ntfs::structured_values::NtfsAttributeList;
use ntfs::{Ntfs, NtfsAttribute, NtfsAttributeType, NtfsFile, NtfsReadSeek};

use super::super::fat::utf8_of;
use super::super::reader::{DiskWindow, FsFailure, FsResult, WindowStream, le32};
use super::REPARSE_LIMIT;
use super::record::check_part;

/// Attributes of a file that are looked at, at most: a file of 2^32 clusters in as many pieces has them in records of 1 KiB.
const MOST_ATTRIBUTES: usize = 65_536;
/// Data that lies elsewhere: compressed by CompactOS, deduplicated.
const ELSEWHERE: [u32; 2] = [0x8000_0017, 0x8000_0013];
/// A program of the app store: a file without data.
const APP_LINK: u32 = 0x8000_001b;
/// The attributes of a file whose data is fetched from elsewhere when it is read: offline, recall on access of data.
const IS_ELSEWHERE: u32 = 0x1000 | 0x40_0000;

/// An attribute, the record that it is in, and the cluster of the file where it begins.
pub(super) struct AttributePart<'n, 'f> {
    pub(super) file: &'f NtfsFile<'n>,
    pub(super) attribute: NtfsAttribute<'n, 'f>,
    pub(super) first_cluster: i64,
}

/// Visits the attributes of a file: those of its record, and those of other records, which its attribute list names. With `only`,
/// it reads of those records only the ones that have the data with this name.
pub(super) fn visit(
    ntfs: &Ntfs,
    stream: &mut WindowStream,
    window: &DiskWindow,
    file: &NtfsFile<'_>,
    only: Option<&[u8]>,
    each: &mut dyn FnMut(&AttributePart<'_, '_>, &mut WindowStream) -> FsResult<()>,
) -> FsResult<()> {
    let mut list = None;
    for attribute in file.attributes_raw() {
        let attribute = attribute?;
        if attribute.ty().ok() == Some(NtfsAttributeType::AttributeList) {
            list = Some(attribute);
            continue;
        }
        // The first cluster is a field of non-resident attributes: one here begins at 0 unless the list says otherwise.
        let part = AttributePart {
            file,
            attribute,
            first_cluster: 0,
        };
        each(&part, stream)?;
    }
    let Some(list) = list else {
        return Ok(());
    };
    let list = list.structured_value::<_, NtfsAttributeList<'_, '_>>(stream)?;
    let mut entries = list.entries();
    for _ in 0..MOST_ATTRIBUTES {
        let Some(entry) = entries.next(stream) else {
            return Ok(());
        };
        let entry = entry?;
        if entry.list_entry_length() == 0 {
            return Err(FsFailure::damaged("a list of attributes is damaged"));
        }
        let record = entry.base_file_reference().file_record_number();
        if record == file.file_record_number() {
            continue;
        }
        if let Some(name) = only {
            let units: Vec<u16> = entry.name().u16_iter().collect();
            if entry.ty().ok() != Some(NtfsAttributeType::Data) || utf8_of(&units) != name {
                continue;
            }
        }
        let other = entry.to_file(ntfs, stream)?;
        check_part(ntfs, &other, window, file.file_record_number())?;
        let part = AttributePart {
            file: &other,
            attribute: entry.to_attribute(&other)?,
            first_cluster: entry.lowest_vcn().value(),
        };
        each(&part, stream)?;
    }
    Err(FsFailure::damaged("a list of attributes does not end"))
}

/// Whether an attribute says that the data of the file is not in it: holes would be read instead.
///
/// # Errors
/// `Unsupported`.
pub(super) fn check_place(part: &AttributePart<'_, '_>, stream: &mut WindowStream) -> FsResult<()> {
    let what = match part.attribute.ty().ok() {
        Some(NtfsAttributeType::ReparsePoint) => {
            match le32(&value_of(&part.attribute, stream, REPARSE_LIMIT)?, 0) {
                APP_LINK => return Ok(()),
                tag if ELSEWHERE.contains(&tag) => {
                    "the file is compressed by CompactOS or deduplicated".to_owned()
                }
                tag => format!("the data of the file is elsewhere (reparse tag {tag:#010x})"),
            }
        }
        Some(NtfsAttributeType::StandardInformation) => {
            // The crate leaves out flags that it does not know.
            match le32(&value_of(&part.attribute, stream, 64)?, 32) & IS_ELSEWHERE {
                0 => return Ok(()),
                flags => format!("the data of the file is elsewhere (attributes {flags:#x})"),
            }
        }
        _ => return Ok(()),
    };
    Err(FsFailure::unsupported(what))
}

/// The name of a data attribute, empty for the data of the file itself. None for an attribute of another type.
fn data_name(attribute: &NtfsAttribute<'_, '_>) -> Option<Vec<u8>> {
    if attribute.ty().ok() != Some(NtfsAttributeType::Data) {
        return None;
    }
    let units: Vec<u16> = attribute.name().ok()?.u16_iter().collect();
    Some(utf8_of(&units))
}

/// Whether an attribute has the data, or is of the stream of this name.
pub(super) fn is_data(attribute: &NtfsAttribute<'_, '_>, name: &[u8]) -> bool {
    data_name(attribute).is_some_and(|found| found == name)
}

/// The name of the stream that begins with this attribute.
///
/// # Errors
/// When the name is damaged: a stream must not be left out silently.
pub(super) fn begins_stream(part: &AttributePart<'_, '_>) -> FsResult<Option<Vec<u8>>> {
    if part.attribute.ty().ok() != Some(NtfsAttributeType::Data) || part.first_cluster != 0 {
        return Ok(None);
    }
    part.attribute.name()?;
    Ok(data_name(&part.attribute).filter(|name| !name.is_empty()))
}

/// Whether an attribute has this name.
pub(super) fn is_named(attribute: &NtfsAttribute<'_, '_>, name: &[u16]) -> bool {
    attribute
        .name()
        .is_ok_and(|found| found.u16_iter().eq(name.iter().copied()))
}

/// The first bytes of an attribute.
pub(super) fn value_of(
    attribute: &NtfsAttribute<'_, '_>,
    stream: &mut WindowStream,
    limit: usize,
) -> FsResult<Vec<u8>> {
    let len = usize::try_from(attribute.value_length()).unwrap_or(usize::MAX);
    let mut value = attribute.value(stream)?;
    let mut bytes = vec![0; len.min(limit)];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match value.read(stream, rest)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
