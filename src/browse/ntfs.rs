//! NTFS, read only, by the crate `ntfs`; what it lacks is here: compressed files, sizes up to which a file was written, links.
//!
//! Owners and permissions of NTFS are security descriptors: they are not shown, all belongs to root. Alternate streams are extended
//! attributes `user.NAME`, as ntfs-3g shows them. Files of the filesystem itself ($MFT, $LogFile) are not listed, and found by name.

mod lznt1;
mod stream;

use ntfs::attribute_value::NtfsAttributeValue;
use ntfs::structured_values::{NtfsAttributeList, NtfsFileNamespace, NtfsStandardInformation};
use ntfs::{
    Ntfs, NtfsAttribute, NtfsAttributeType, NtfsError, NtfsFile, NtfsFileFlags, NtfsReadSeek,
    NtfsTime,
};

use super::fat::utf8_of;
use super::reader::{
    DiskWindow, FoundValues, FsFailure, FsPage, FsReader, FsResult, NamedValue, WindowStream,
    entry_of, le16, le32, le64,
};
use super::wire::{TARGET_LIMIT, VALUE_LIMIT};
use super::{FsEntry, FsNode, FsSpan, FsTime, NodeKind, NodeTimes};
use stream::DataStream;

/// The record of the root folder, and the first one that is not the filesystem's own.
const ROOT: u64 = 5;
const FIRST_USER: u64 = 24;
/// Bits of a record's number in an id; its sequence number is above them.
const RECORD: u64 = (1 << 48) - 1;
/// Entries of a page of a folder: each page walks the index from its start.
const PAGE: usize = 4096;
/// Attributes of a file that are looked at, at most: a file of 2^32 clusters in as many pieces has them in records of 1 KiB.
const MOST_ATTRIBUTES: usize = 65_536;
/// Alternate streams that are shown of a file, at most.
const MOST_STREAMS: usize = 64;
/// Bytes of a reparse point, at most: what Windows allows.
const REPARSE_LIMIT: usize = 16 << 10;
/// Seconds from 1601 to 1970.
const EPOCH: i64 = 11_644_473_600;

const SYMBOLIC_LINK: u32 = 0xa000_000c;
const MOUNT_POINT: u32 = 0xa000_0003;
const LINUX_LINK: u32 = 0xa000_001d;
/// Bytes of the largest special file of Interix: a link of 4,096 characters.
const MOST_INTERIX: usize = 8 + 2 * 4096;
/// The attribute that special files of Interix have.
const IS_SYSTEM: u32 = 0x4;
/// Data that lies elsewhere: compressed by CompactOS, deduplicated.
const ELSEWHERE: [u32; 2] = [0x8000_0017, 0x8000_0013];
/// A program of the app store: a file without data.
const APP_LINK: u32 = 0x8000_001b;
/// Special files of WSL: a socket, a pipe, two kinds of device.
const WSL_SOCKET: u32 = 0x8000_0023;
const WSL_PIPE: u32 = 0x8000_0024;
const WSL_DEVICES: [u32; 2] = [0x8000_0025, 0x8000_0026];
/// The attributes of a file whose data is fetched from elsewhere when it is read: offline, recall on access of data.
const IS_ELSEWHERE: u32 = 0x1000 | 0x40_0000;

impl From<NtfsError> for FsFailure {
    fn from(error: NtfsError) -> Self {
        match error {
            NtfsError::Io(error) => error.into(),
            other => Self::damaged(other.to_string()),
        }
    }
}

/// An NTFS volume.
pub(super) struct NtfsReader {
    ntfs: Ntfs,
    window: DiskWindow,
    stream: WindowStream,
    is_dirty: bool,
    /// The data of the file that was asked for last.
    last: Option<(u64, DataStream)>,
}

/// What the attributes of a file say.
#[derive(Default)]
struct NtfsSummary {
    size: Option<u64>,
    reparse: Option<Vec<u8>>,
    /// The data of a file that can be a special one of Interix.
    interix: Option<Vec<u8>>,
}

impl NtfsReader {
    /// Reads the boot sector and the state of the volume.
    ///
    /// # Errors
    /// When it is damaged.
    pub(super) fn open(window: DiskWindow) -> FsResult<Self> {
        let mut stream = WindowStream::new(window.clone());
        let ntfs = Ntfs::new(&mut stream)?;
        let is_dirty = ntfs
            .volume_info(&mut stream)
            .is_ok_and(|info| info.flags().bits() & 1 != 0);
        Ok(Self {
            ntfs,
            window,
            stream,
            is_dirty,
            last: None,
        })
    }

    fn data(&mut self, id: u64) -> FsResult<&DataStream> {
        if self.last.as_ref().is_none_or(|(known, _)| *known != id) {
            let (ntfs, stream) = (&self.ntfs, &mut self.stream);
            let file = open_file(ntfs, stream, id)?;
            let mut found = DataStream::default();
            let window = &self.window;
            visit(ntfs, stream, &file, &mut |part, stream| {
                check_place(part, stream)?;
                match is_data(&part.attribute, &[]) {
                    true => found.add(ntfs, stream, window, part),
                    false => Ok(()),
                }
            })?;
            self.last = Some((id, found));
        }
        match &self.last {
            Some((_, found)) => Ok(found),
            None => Err(FsFailure::damaged("the file has no data")),
        }
    }
}

/// An attribute, the record that it is in, and the cluster of the file where it begins.
struct AttributePart<'n, 'f> {
    file: &'f NtfsFile<'n>,
    attribute: NtfsAttribute<'n, 'f>,
    first_cluster: i64,
}

/// Visits all attributes of a file: those of its record, and those that its list of attributes names in others.
fn visit(
    ntfs: &Ntfs,
    stream: &mut WindowStream,
    file: &NtfsFile<'_>,
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
        let other = entry.to_file(ntfs, stream)?;
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
fn check_place(part: &AttributePart<'_, '_>, stream: &mut WindowStream) -> FsResult<()> {
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

/// Whether an attribute is the data stream of this name.
fn is_data(attribute: &NtfsAttribute<'_, '_>, name: &[u16]) -> bool {
    let is_named = attribute
        .name()
        .is_ok_and(|found| found.u16_iter().eq(name.iter().copied()));
    attribute.ty().ok() == Some(NtfsAttributeType::Data) && is_named
}

/// The first bytes of an attribute.
fn value_of(
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

/// Opens a file by its id.
fn open_file<'n>(ntfs: &'n Ntfs, stream: &mut WindowStream, id: u64) -> FsResult<NtfsFile<'n>> {
    let file = ntfs.file(stream, id & RECORD)?;
    if !file.flags().contains(NtfsFileFlags::IN_USE) {
        return Err(FsFailure::damaged("the record of a file is not in use"));
    }
    let sequence = u16::try_from(id >> 48).unwrap_or(0);
    // The filesystem's own files are named without one.
    if sequence != 0 && sequence != file.sequence_number() {
        return Err(FsFailure::damaged("the record of a file was used again"));
    }
    Ok(file)
}

fn time_of(time: NtfsTime) -> FsTime {
    let ticks = time.nt_timestamp();
    let seconds = i64::try_from(ticks / 10_000_000).unwrap_or(i64::MAX);
    FsTime {
        seconds: seconds - EPOCH,
        nanoseconds: u32::try_from(ticks % 10_000_000 * 100).unwrap_or(0),
    }
}

/// The target of a link in a reparse point, if it is one.
fn target_of(reparse: &[u8]) -> Option<Vec<u8>> {
    let tag = le32(reparse, 0);
    let data = reparse.get(8..)?;
    if tag == LINUX_LINK {
        return data.get(4..).map(<[u8]>::to_vec);
    }
    let names = match tag {
        SYMBOLIC_LINK => 12,
        MOUNT_POINT => 8,
        _ => return None,
    };
    // The name for people, and without one the name that is resolved.
    let part = |at: usize| {
        let (offset, len) = (usize::from(le16(data, at)), usize::from(le16(data, at + 2)));
        let bytes = data.get(names + offset..)?.get(..len)?;
        let pairs = bytes.chunks_exact(2);
        let units: Vec<u16> = pairs
            .map(|pair| le16(pair, 0))
            .take_while(|unit| *unit != 0)
            .collect();
        (!units.is_empty()).then(|| utf8_of(&units))
    };
    part(4).or_else(|| part(0))
}

/// A special file of Interix, as ntfs-3g makes and reads them: a link, or a device.
fn interix(data: &[u8]) -> Option<(NodeKind, Vec<u8>, (u32, u32))> {
    let (mark, rest) = data.split_first_chunk::<8>()?;
    let device = || {
        let number = |at: usize| u32::try_from(le64(rest, at)).ok();
        Some((number(0)?, number(8)?)).filter(|_| rest.len() == 16)
    };
    match mark {
        b"IntxLNK\x01" => {
            let units: Vec<u16> = rest.chunks_exact(2).map(|pair| le16(pair, 0)).collect();
            Some((NodeKind::Link, utf8_of(&units), (0, 0)))
        }
        b"IntxCHR\0" => Some((NodeKind::CharDevice, Vec::new(), device()?)),
        b"IntxBLK\0" => Some((NodeKind::BlockDevice, Vec::new(), device()?)),
        _ => None,
    }
}

/// The metadata of a file.
fn node_of(ntfs: &Ntfs, stream: &mut WindowStream, id: u64) -> FsResult<FsNode> {
    let file = open_file(ntfs, stream, id)?;
    let info: NtfsStandardInformation = file.info()?;
    let attributes = info.file_attributes().bits();
    let mut summary = NtfsSummary::default();
    visit(ntfs, stream, &file, &mut |part, stream| {
        if is_data(&part.attribute, &[]) && summary.size.is_none() {
            let size = part.attribute.value_length();
            summary.size = Some(size);
            if attributes & IS_SYSTEM != 0 && (9..=MOST_INTERIX as u64).contains(&size) {
                summary.interix = Some(value_of(&part.attribute, stream, MOST_INTERIX)?);
            }
        }
        if part.attribute.ty().ok() == Some(NtfsAttributeType::ReparsePoint) {
            summary.reparse = Some(value_of(&part.attribute, stream, REPARSE_LIMIT)?);
        }
        Ok(())
    })?;
    let special = summary.interix.as_deref().and_then(interix);
    let target = summary.reparse.as_deref().and_then(target_of);
    let (kind, target, device) = match (special, target, file.is_directory()) {
        (_, Some(target), _) => (NodeKind::Link, target, (0, 0)),
        (_, None, true) => (NodeKind::Folder, Vec::new(), (0, 0)),
        (Some(special), None, false) => special,
        (None, None, false) => {
            let tag = summary.reparse.as_deref().map_or(0, |value| le32(value, 0));
            let kind = match tag {
                WSL_SOCKET => NodeKind::Socket,
                WSL_PIPE => NodeKind::Fifo,
                tag if WSL_DEVICES.contains(&tag) => {
                    return Err(FsFailure::unsupported("it is a device of WSL"));
                }
                _ => NodeKind::Regular,
            };
            (kind, Vec::new(), (0, 0))
        }
    };
    if target.len() > TARGET_LIMIT {
        return Err(FsFailure::damaged("the target of a link is too long"));
    }
    let is_read_only = attributes & 1 != 0;
    Ok(FsNode {
        id: file.file_record_number() | u64::from(file.sequence_number()) << 48,
        kind,
        mode: match (kind, is_read_only) {
            (NodeKind::Link, _) => 0o777,
            (NodeKind::Folder, _) => 0o755,
            (_, true) => 0o444,
            (_, false) => 0o644,
        },
        uid: 0,
        gid: 0,
        // A short name of DOS is counted there too, and is no name here: without it one is left.
        links: 1.max(file.hard_link_count().into()),
        size: match kind {
            NodeKind::Link => target.len() as u64,
            NodeKind::Regular => summary.size.unwrap_or(0).min(i64::MAX.unsigned_abs()),
            _ => 0,
        },
        device,
        times: NodeTimes {
            modified: Some(time_of(info.modification_time())),
            accessed: Some(time_of(info.access_time())),
            changed: Some(time_of(info.mft_record_modification_time())),
            created: Some(time_of(info.creation_time())),
        },
        target: target.into_iter().filter(|byte| *byte != 0).collect(),
    })
}

impl NtfsReader {
    /// Names of a folder, from the one of this number on: with their ids, at most `most`.
    fn names(
        &mut self,
        folder: u64,
        from: u64,
        most: usize,
        is_wanted: impl Fn(&[u8]) -> bool,
    ) -> FsResult<FsPage<(Vec<u8>, u64)>> {
        let (ntfs, stream) = (&self.ntfs, &mut self.stream);
        let file = open_file(ntfs, stream, folder)?;
        let index = file.directory_index(stream)?;
        let mut entries = index.entries();
        let mut found = Vec::new();
        let mut number = 0;
        while let Some(entry) = entries.next(stream) {
            let entry = entry?;
            number += 1;
            if number <= from {
                continue;
            }
            let Some(key) = entry.key() else {
                continue;
            };
            let key = key?;
            if key.namespace() == NtfsFileNamespace::Dos {
                continue;
            }
            let units: Vec<u16> = key.name().u16_iter().collect();
            let name = utf8_of(&units);
            if name == b"." || name == b".." || !is_wanted(&name) {
                continue;
            }
            let reference = entry.file_reference();
            let id = reference.file_record_number() | u64::from(reference.sequence_number()) << 48;
            found.push((name, id));
            if found.len() >= most {
                return Ok((found, Some(number)));
            }
        }
        Ok((found, None))
    }
}

impl FsReader for NtfsReader {
    fn name(&self) -> &'static str {
        "ntfs"
    }

    fn notes(&self) -> Vec<String> {
        match self.is_dirty {
            true => vec!["it was in use: its log was not replayed".to_owned()],
            false => Vec::new(),
        }
    }

    fn root(&mut self) -> FsResult<FsNode> {
        node_of(&self.ntfs, &mut self.stream, ROOT)
    }

    fn list(&mut self, folder: u64, cursor: u64) -> FsResult<FsPage<FsEntry>> {
        let (names, next) = self.names(folder, cursor, PAGE, |_| true)?;
        let names = names
            .into_iter()
            .filter(|(_, id)| id & RECORD >= FIRST_USER);
        let (ntfs, stream) = (&self.ntfs, &mut self.stream);
        let entries = names.map(|(name, id)| entry_of(&name, || node_of(ntfs, stream, id)));
        Ok((entries.collect(), next))
    }

    fn find(&mut self, folder: u64, name: &[u8]) -> FsResult<Option<FsNode>> {
        let (found, _) = self.names(folder, 0, 1, |known| known == name)?;
        let found = found.into_iter().next();
        found
            .map(|(_, id)| node_of(&self.ntfs, &mut self.stream, id))
            .transpose()
    }

    fn spans(&mut self, file: u64, offset: u64) -> FsResult<FsPage<FsSpan>> {
        let window = self.window.clone();
        self.data(file)?.spans(&window, offset)
    }

    fn content(&mut self, file: u64, offset: u64, len: usize) -> FsResult<Vec<u8>> {
        let window = self.window.clone();
        self.data(file)?.content(&window, offset, len)
    }

    fn xattrs(&mut self, file: u64) -> FsResult<FoundValues> {
        let (ntfs, stream) = (&self.ntfs, &mut self.stream);
        let file = open_file(ntfs, stream, file)?;
        let (mut found, mut dropped): (Vec<NamedValue>, u64) = (Vec::new(), 0);
        visit(ntfs, stream, &file, &mut |part, stream| {
            if part.attribute.ty().ok() != Some(NtfsAttributeType::Data) || part.first_cluster != 0
            {
                return Ok(());
            }
            let units: Vec<u16> = part.attribute.name()?.u16_iter().collect();
            let len = part.attribute.value_length();
            if units.is_empty() {
                return Ok(());
            }
            let name = [b"user.".to_vec(), utf8_of(&units)].concat();
            let value = part.attribute.value(stream)?;
            let is_in_pieces = matches!(value, NtfsAttributeValue::AttributeListNonResident(_));
            // Larger ones are no attributes of Linux.
            if is_in_pieces || len > VALUE_LIMIT as u64 || found.len() >= MOST_STREAMS {
                dropped += 1;
                return Ok(());
            }
            found.push((name, value_of(&part.attribute, stream, VALUE_LIMIT)?));
            Ok(())
        })?;
        Ok((found, dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_has_the_name_for_people() {
        let text = |text: &str| {
            text.encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect::<Vec<u8>>()
        };
        let (real, shown) = (text(r"\??\C:\x"), text(r"C:\x"));
        let link = |tag: u32, gap: usize, shown_len: usize| {
            let mut bytes = tag.to_le_bytes().to_vec();
            bytes.extend([0; 4]);
            for value in [0, real.len(), real.len(), shown_len] {
                bytes.extend(u16::try_from(value).unwrap().to_le_bytes());
            }
            bytes.extend(vec![0; gap]);
            bytes.extend(&real);
            bytes.extend(&shown);
            bytes
        };
        let found = |bytes: &[u8]| target_of(bytes).map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!(
            found(&link(SYMBOLIC_LINK, 4, shown.len())).unwrap(),
            r"C:\x"
        );
        assert_eq!(found(&link(MOUNT_POINT, 0, shown.len())).unwrap(), r"C:\x");
        assert_eq!(found(&link(MOUNT_POINT, 0, 0)).unwrap(), r"\??\C:\x");
        assert_eq!(found(&link(ELSEWHERE[0], 0, 0)), None);
        let whole = link(SYMBOLIC_LINK, 4, shown.len());
        for len in 0..whole.len() {
            let _ = target_of(&whole[..len]);
        }
        let linux = [
            &LINUX_LINK.to_le_bytes()[..],
            &[0; 4],
            &[2, 0, 0, 0],
            b"../a",
        ]
        .concat();
        assert_eq!(found(&linux).unwrap(), "../a");
    }
}
