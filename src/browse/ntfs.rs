//! NTFS, read only, by the crate `ntfs`; what it lacks is here: compressed files, sizes up to which a file was written, links.
//!
//! Owners and permissions of NTFS are security descriptors: they are not shown, all belongs to root. Named streams are listed and read
//! whole; those that Linux can hold are extended attributes `user.NAME` too, as ntfs-3g shows them. Files of the filesystem itself
//! ($MFT, $LogFile) are not listed, and found by name.

mod attributes;
mod index;
mod lznt1;
mod record;
mod special;
mod stream;

use ntfs::structured_values::NtfsStandardInformation;
use ntfs::{Ntfs, NtfsAttributeType, NtfsError, NtfsTime};

use super::fat::utf8_of;
use super::reader::{
    DiskWindow, FoundValues, FsFailure, FsPage, FsReader, FsResult, NamedValue, STREAM_PAGE,
    WindowStream, cut_off, entry_of, le32, missing_names, no_stream,
};
use super::wire::{FailureKind, TARGET_LIMIT, VALUE_LIMIT};
use super::{FsEntry, FsNode, FsRemarks, FsSpan, FsStream, FsTime, NodeKind, NodeTimes};
use attributes::{begins_stream, check_place, is_data, value_of, visit};
use index::FolderIndex;
use record::{check_mft, open_file};
use special::{MOST_INTERIX, interix, target_of};
use stream::DataStream;

/// The record of the root folder, and the first one that is not the filesystem's own.
const ROOT: u64 = 5;
const FIRST_USER: u64 = 24;
/// Bits of a record's number in an id; its sequence number is above them.
const RECORD: u64 = (1 << 48) - 1;
/// Entries of a page of a folder: it ends with the block of the index that has so many.
const PAGE: usize = 4096;
/// Streams of a file that are shown as extended attributes, at most.
const MOST_VALUES: usize = 64;
/// Bytes of a reparse point, at most: what Windows allows.
const REPARSE_LIMIT: usize = 16 << 10;
/// Seconds from 1601 to 1970.
const EPOCH: i64 = 11_644_473_600;

/// The attribute that special files of Interix have.
const IS_SYSTEM: u32 = 0x4;
/// Special files of WSL: a socket, a pipe, two kinds of device.
const WSL_SOCKET: u32 = 0x8000_0023;
const WSL_PIPE: u32 = 0x8000_0024;
const WSL_DEVICES: [u32; 2] = [0x8000_0025, 0x8000_0026];

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
    /// The data or named stream of the last request.
    last: Option<(u64, Vec<u8>, DataStream)>,
}

/// What the attributes of a file say.
#[derive(Default)]
struct NtfsSummary {
    size: Option<u64>,
    streams: u32,
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
        check_mft(&ntfs, &window)?;
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

    /// The data of a file, or the stream of this name if the name is not empty.
    fn data(&mut self, id: u64, name: &[u8]) -> FsResult<&DataStream> {
        let is_it =
            |(known, stream, _): &(u64, Vec<u8>, DataStream)| *known == id && stream == name;
        if !self.last.as_ref().is_some_and(is_it) {
            let (ntfs, stream) = (&self.ntfs, &mut self.stream);
            let window = &self.window;
            let file = open_file(ntfs, stream, window, id)?;
            let mut found = DataStream::default();
            // A file may have no data, but a stream that was requested must exist.
            let mut is_there = name.is_empty();
            let only = (!name.is_empty()).then_some(name);
            visit(ntfs, stream, window, &file, only, &mut |part, stream| {
                if name.is_empty() {
                    check_place(part, stream)?;
                }
                match is_data(&part.attribute, name) {
                    true => {
                        is_there = true;
                        found.add(ntfs, stream, window, part)
                    }
                    false => Ok(()),
                }
            })?;
            if !is_there {
                return Err(no_stream());
            }
            self.last = Some((id, name.to_vec(), found));
        }
        match &self.last {
            Some((.., found)) => Ok(found),
            None => Err(FsFailure::damaged("the file has no data")),
        }
    }
}

fn time_of(time: NtfsTime) -> FsTime {
    let ticks = time.nt_timestamp();
    let seconds = i64::try_from(ticks / 10_000_000).unwrap_or(i64::MAX);
    FsTime {
        seconds: seconds - EPOCH,
        nanoseconds: u32::try_from(ticks % 10_000_000 * 100).unwrap_or(0),
    }
}

/// The metadata of a file.
fn node_of(
    ntfs: &Ntfs,
    stream: &mut WindowStream,
    window: &DiskWindow,
    id: u64,
) -> FsResult<FsNode> {
    let file = open_file(ntfs, stream, window, id)?;
    let info: NtfsStandardInformation = file.info()?;
    let attributes = info.file_attributes().bits();
    let mut summary = NtfsSummary::default();
    visit(ntfs, stream, window, &file, None, &mut |part, stream| {
        if is_data(&part.attribute, b"") && summary.size.is_none() {
            let size = part.attribute.value_length();
            summary.size = Some(size);
            if attributes & IS_SYSTEM != 0 && (9..=MOST_INTERIX as u64).contains(&size) {
                summary.interix = Some(value_of(&part.attribute, stream, MOST_INTERIX)?);
            }
        }
        // A stream with a damaged name counts too: listing the streams then fails.
        summary.streams += u32::from(!matches!(begins_stream(part), Ok(None)));
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
        streams: summary.streams,
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

/// Names of parts of a folder.
struct FoundNames {
    /// Names with the ids of their files.
    names: Vec<(Vec<u8>, u64)>,
    /// Why the names of other parts are missing.
    missing: Option<FsFailure>,
    /// The number of the next part.
    next: Option<u64>,
}

impl NtfsReader {
    /// Names of a folder, from the part of its index with this number on, until `most` are found. A damaged part costs its own
    /// names.
    fn names(
        &mut self,
        folder: u64,
        from: u64,
        most: usize,
        is_wanted: impl Fn(&[u8]) -> bool,
    ) -> FsResult<FoundNames> {
        let (ntfs, stream) = (&self.ntfs, &mut self.stream);
        let file = open_file(ntfs, stream, &self.window, folder)?;
        let index = FolderIndex::open(ntfs, stream, &self.window, &file)?;
        let mut found = FoundNames {
            names: Vec::new(),
            missing: None,
            next: Some(from),
        };
        while let Some(number) = found.next.filter(|_| found.names.len() < most) {
            found.next = index.after(number);
            let (entries, are_all) = match index.part(&self.window, number) {
                Err(failure) if failure.is_damage() => {
                    found.missing.get_or_insert(failure);
                    continue;
                }
                part => part?,
            };
            if !are_all {
                found.missing.get_or_insert_with(index::wrong);
            }
            for entry in entries {
                let name = utf8_of(&entry.name);
                if name != b"." && name != b".." && is_wanted(&name) {
                    found.names.push((name, entry.id));
                }
            }
        }
        Ok(found)
    }
}

impl FsReader for NtfsReader {
    fn name(&self) -> &'static str {
        "ntfs"
    }

    fn remarks(&self) -> FsRemarks {
        let notes = match self.is_dirty {
            true => vec!["it was in use: its log was not replayed".to_owned()],
            false => Vec::new(),
        };
        let damage = cut_off(self.ntfs.size(), &self.window);
        FsRemarks { notes, damage }
    }

    fn root(&mut self) -> FsResult<FsNode> {
        node_of(&self.ntfs, &mut self.stream, &self.window, ROOT)
    }

    fn list(&mut self, folder: u64, cursor: u64) -> FsResult<FsPage<FsEntry>> {
        let found = self.names(folder, cursor, PAGE, |_| true)?;
        let names = found.names.into_iter();
        let names = names.filter(|(_, id)| id & RECORD >= FIRST_USER);
        let (ntfs, stream, window) = (&self.ntfs, &mut self.stream, &self.window);
        let entries = names.map(|(name, id)| entry_of(&name, || node_of(ntfs, stream, window, id)));
        let missing = found.missing.as_ref().map(missing_names);
        Ok((entries.chain(missing).collect(), found.next))
    }

    fn find(&mut self, folder: u64, name: &[u8]) -> FsResult<Option<FsNode>> {
        let found = self.names(folder, 0, 1, |known| known == name)?;
        match (found.names.first(), found.missing) {
            (Some((_, id)), _) => {
                node_of(&self.ntfs, &mut self.stream, &self.window, *id).map(Some)
            }
            (None, Some(failure)) => Err(failure),
            (None, None) => Ok(None),
        }
    }

    fn spans(&mut self, file: u64, offset: u64) -> FsResult<FsPage<FsSpan>> {
        let window = self.window.clone();
        self.data(file, b"")?.spans(&window, offset)
    }

    fn content(&mut self, file: u64, offset: u64, len: usize) -> FsResult<Vec<u8>> {
        let window = self.window.clone();
        self.data(file, b"")?.content(&window, offset, len)
    }

    fn streams(&mut self, file: u64, cursor: u64) -> FsResult<FsPage<FsStream>> {
        let (ntfs, stream, window) = (&self.ntfs, &mut self.stream, &self.window);
        let file = open_file(ntfs, stream, window, file)?;
        let (mut found, mut number): (Vec<FsStream>, u64) = (Vec::new(), 0);
        visit(ntfs, stream, window, &file, None, &mut |part, _| {
            let Some(name) = begins_stream(part)? else {
                return Ok(());
            };
            number += 1;
            if number > cursor && found.len() < STREAM_PAGE {
                let size = part.attribute.value_length();
                let size = size.min(i64::MAX.unsigned_abs());
                found.push(FsStream { name, size });
            }
            Ok(())
        })?;
        let next = cursor + found.len() as u64;
        Ok((found, (number > next).then_some(next)))
    }

    fn stream_spans(&mut self, file: u64, name: &[u8], at: u64) -> FsResult<FsPage<FsSpan>> {
        let window = self.window.clone();
        self.data(file, name)?.spans(&window, at)
    }

    fn stream_content(
        &mut self,
        file: u64,
        name: &[u8],
        offset: u64,
        len: usize,
    ) -> FsResult<Vec<u8>> {
        let window = self.window.clone();
        self.data(file, name)?.content(&window, offset, len)
    }

    fn xattrs(&mut self, file: u64) -> FsResult<FoundValues> {
        let (streams, next) = self.streams(file, 0)?;
        let more = u64::from(next.is_some());
        let (mut found, mut dropped): (Vec<NamedValue>, u64) = (Vec::new(), more);
        for stream in streams {
            // Larger ones are no attributes of Linux.
            if stream.size > VALUE_LIMIT as u64 || found.len() >= MOST_VALUES {
                dropped += 1;
                continue;
            }
            let window = self.window.clone();
            let data = self.data(file, &stream.name)?;
            match data.content(&window, 0, VALUE_LIMIT) {
                Ok(value) => found.push(([b"user.", &stream.name[..]].concat(), value)),
                Err(failure) if failure.kind == FailureKind::Unsupported => dropped += 1,
                Err(failure) => return Err(failure),
            }
        }
        Ok((found, dropped))
    }
}
