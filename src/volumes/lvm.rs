//! LVM2: the volumes of a physical volume that are byte ranges of it. The label names the metadata areas, the newest metadata of an
//! area is a text ([`text`]), and the text says where the extents of each volume are.
//!
//! The on-disk format is that of `lib/format_text/layout.h` of LVM2. Nothing here activates a volume or needs device-mapper.

mod text;

use std::collections::HashMap;
use std::io;

use super::{ByteRange, DiskFilesystem, ReadDisk, clean, crc32, text_of, u32_at, u64_at};
use text::{LvmSection, parse};

/// The sum that LVM begins a CRC-32 with.
const CRC_START: u32 = 0xf597_a6cf;
/// The label is in one of the first four sectors of 512 bytes.
const LABEL_SECTORS: u64 = 4;
const SECTOR: u64 = 512;
/// Bytes of the label.
const LABEL: usize = 512;
/// Areas of data or of metadata that a label names, at most.
const MOST_AREAS: usize = 8;
/// The header of a metadata area, and what it begins with after its checksum.
const AREA_HEADER: usize = 512;
const AREA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";
/// Bytes of metadata, at most: a group with a thousand volumes takes some 500 KB.
const MOST_TEXT: u64 = 4 << 20;
/// Volumes and segments of a group, at most.
const MOST_VOLUMES: usize = 512;
const MOST_SEGMENTS: usize = 8192;

/// A logical volume, as far as this disk has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogicalVolume {
    /// The partition that is its physical volume; 0: the whole disk.
    pub(crate) partition: u32,
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) uuid: Option<String>,
    /// Bytes.
    pub(crate) size: u64,
    /// Where it is on the disk; or why it cannot be shown as a file.
    pub(crate) ranges: Result<Vec<ByteRange>, String>,
    /// What it holds; none before its contents are read, or it cannot be shown.
    pub(crate) filesystem: Option<DiskFilesystem>,
}

/// What a physical volume says of its group.
#[derive(Debug, Default)]
pub(super) struct PhysicalVolume {
    /// The metadata; none if there is none, or it is damaged.
    pub(super) metadata: Option<GroupMetadata>,
    pub(super) notes: Vec<String>,
}

/// The metadata of a group, and which physical volume it was read from.
#[derive(Debug)]
pub(super) struct GroupMetadata {
    uuid: String,
    root: LvmSection,
}

/// Reads the label and the metadata of the physical volume in a range.
///
/// # Errors
/// Why the disk cannot be read.
pub(super) fn read_group(read: ReadDisk<'_>, range: ByteRange) -> io::Result<PhysicalVolume> {
    let mut found = PhysicalVolume::default();
    let read = |at: u64, len: usize| match range.size.checked_sub(at) {
        Some(left) => read(
            range.start + at,
            len.min(usize::try_from(left).unwrap_or(len)),
        ),
        None => Ok(Vec::new()),
    };
    let Some(label) = read_label(&read)? else {
        found.notes.push("the label of LVM is damaged".to_owned());
        return Ok(found);
    };
    for area in &label.areas {
        match read_area(&read, *area)? {
            Ok(root) => {
                let uuid = label.uuid;
                found.metadata = Some(GroupMetadata { uuid, root });
                return Ok(found);
            }
            Err(why) => found.notes.push(format!("an area of LVM metadata {why}")),
        }
    }
    if label.areas.is_empty() {
        let note = "the physical volume of LVM has no metadata: it is on another one of its group";
        found.notes.push(note.to_owned());
    }
    Ok(found)
}

/// What a label says.
struct PvLabel {
    uuid: String,
    /// Areas of metadata: start and size in bytes.
    areas: Vec<(u64, u64)>,
}

type ReadRange<'a> = &'a dyn Fn(u64, usize) -> io::Result<Vec<u8>>;

fn read_label(read: ReadRange<'_>) -> io::Result<Option<PvLabel>> {
    for sector in 0..LABEL_SECTORS {
        let bytes = read(sector * SECTOR, LABEL)?;
        let is_label = bytes.starts_with(b"LABELONE")
            && bytes.get(24..32) == Some(b"LVM2 001")
            && u64_at(&bytes, 8) == sector
            && bytes.len() == LABEL;
        let covered = bytes.get(20..).unwrap_or_default();
        if !is_label || crc32(CRC_START, covered) != u32_at(&bytes, 16) {
            continue;
        }
        let header = bytes.get(u32_at(&bytes, 20) as usize..).unwrap_or_default();
        let uuid = text_of(header.get(..32).unwrap_or_default());
        // Two lists of offset and size, each ended by zeroes: data, then metadata.
        let mut at = 40;
        let mut lists = [Vec::new(), Vec::new()];
        for list in &mut lists {
            while header.len() >= at + 16 {
                let (start, size) = (u64_at(header, at), u64_at(header, at + 8));
                at += 16;
                if start == 0 {
                    break;
                }
                if list.len() < MOST_AREAS {
                    list.push((start, size));
                }
            }
        }
        let [_, areas] = lists;
        return Ok(Some(PvLabel { uuid, areas }));
    }
    Ok(None)
}

/// The newest metadata of an area, or what is wrong with it.
fn read_area(
    read: ReadRange<'_>,
    (start, size): (u64, u64),
) -> io::Result<Result<LvmSection, &'static str>> {
    let header = read(start, AREA_HEADER)?;
    let is_whole = header.len() == AREA_HEADER
        && header.get(4..20) == Some(AREA_MAGIC)
        && header
            .get(4..)
            .is_some_and(|covered| crc32(CRC_START, covered) == u32_at(&header, 0));
    if !is_whole || u64_at(&header, 24) != start {
        return Ok(Err("is damaged"));
    }
    let (offset, len) = (u64_at(&header, 40), u64_at(&header, 48));
    let (sum, flags) = (u32_at(&header, 56), u32_at(&header, 60));
    if flags & 1 == 1 || offset == 0 {
        return Ok(Err("is not used"));
    }
    let first = AREA_HEADER as u64;
    if len > MOST_TEXT || offset < first || offset >= size || len > size.saturating_sub(first) {
        return Ok(Err("is damaged"));
    }
    // The text goes on at the start of the area where it reaches the end of it.
    let before_end = len.min(size - offset);
    let mut bytes = read(
        start.saturating_add(offset),
        usize::try_from(before_end).unwrap_or(0),
    )?;
    let rest = usize::try_from(len - before_end).unwrap_or(0);
    if rest > 0 {
        bytes.extend(read(start.saturating_add(first), rest)?);
    }
    if bytes.len() as u64 != len || crc32(CRC_START, &bytes) != sum {
        return Ok(Err("has a wrong checksum"));
    }
    Ok(parse(&bytes).ok_or("cannot be parsed"))
}

/// The visible volumes of a group.
pub(super) fn volumes(
    partition: u32,
    range: ByteRange,
    metadata: Option<&GroupMetadata>,
) -> Vec<LogicalVolume> {
    let Some(metadata) = metadata else {
        return Vec::new();
    };
    // One section of the text is the group; what follows it is about the text.
    let Some((group, section)) = metadata.root.sections().next() else {
        return Vec::new();
    };
    let Some(place) = PvPlace::of(section, &metadata.uuid, range) else {
        return Vec::new();
    };
    let listed = section.section("logical_volumes");
    // Segments of hidden volumes name the volumes that hold the changed blocks of a snapshot.
    let segments_of_all = listed
        .into_iter()
        .flat_map(LvmSection::sections)
        .flat_map(|(_, volume)| volume.sections());
    let stores: HashMap<&str, &str> = segments_of_all
        .filter_map(|(_, segment)| Some((segment.text("cow_store")?, segment.text("origin")?)))
        .collect();
    let mut segments = 0;
    let mut found = Vec::new();
    for (name, volume) in listed.into_iter().flat_map(LvmSection::sections) {
        let is_visible = volume.texts("status").contains(&"VISIBLE");
        if !is_visible || found.len() == MOST_VOLUMES {
            continue;
        }
        let (size, mut ranges) = place.ranges(volume, &mut segments);
        if let Some(origin) = stores.get(name) {
            ranges = Err(format!(
                "it holds the changes of a snapshot of {}, which needs device-mapper",
                clean(origin)
            ));
        }
        found.push(LogicalVolume {
            partition,
            group: clean(group),
            name: clean(name),
            uuid: volume.text("id").map(clean),
            size,
            ranges,
            filesystem: None,
        });
    }
    found
}

/// Where the extents of a physical volume are.
struct PvPlace<'a> {
    /// The name of the physical volume in the text.
    name: &'a str,
    /// The names of the others, as people know them.
    others: HashMap<&'a str, &'a str>,
    /// Bytes of an extent.
    extent: u64,
    /// Where the first extent begins, from the start of the disk.
    first: u64,
    /// The end of the physical volume on the disk.
    end: u64,
}

impl<'a> PvPlace<'a> {
    fn of(group: &'a LvmSection, uuid: &str, range: ByteRange) -> Option<Self> {
        let volumes = group.section("physical_volumes")?;
        let is_own = |section: &LvmSection| {
            let id = section.text("id").unwrap_or_default();
            id.chars().filter(|c| *c != '-').eq(uuid.chars())
        };
        let (name, own) = volumes.sections().find(|(_, section)| is_own(section))?;
        let others = volumes.sections().filter(|(other, _)| *other != name);
        Some(Self {
            name,
            others: others
                .map(|(other, section)| (other, section.text("device").unwrap_or(other)))
                .collect(),
            extent: group.number("extent_size")?.checked_mul(SECTOR)?,
            first: own
                .number("pe_start")?
                .checked_mul(SECTOR)?
                .checked_add(range.start)?,
            end: range.start.checked_add(range.size)?,
        })
    }

    /// Bytes of a volume, and where they are; or why it is no list of ranges of this physical volume.
    fn ranges(
        &self,
        volume: &LvmSection,
        segments: &mut usize,
    ) -> (u64, Result<Vec<ByteRange>, String>) {
        let mut parts: Vec<_> = volume
            .sections()
            .filter_map(|(_, segment)| Some((segment.number("start_extent")?, segment)))
            .collect();
        parts.sort_by_key(|(start, _)| *start);
        *segments += parts.len();
        let (mut size, mut why) = (0_u64, None);
        let mut ranges: Vec<ByteRange> = Vec::new();
        if *segments > MOST_SEGMENTS {
            why = Some("the group has too many segments".to_owned());
            parts.clear();
        }
        for (start, segment) in parts {
            let found = self.segment(segment, start.checked_mul(self.extent) == Some(size));
            let bytes = segment
                .number("extent_count")
                .unwrap_or(0)
                .saturating_mul(self.extent);
            size = size.saturating_add(bytes);
            match found {
                Ok(range) => match ranges.last_mut() {
                    Some(last) if last.start + last.size == range.start => last.size += range.size,
                    _ => ranges.push(range),
                },
                Err(reason) => why = why.or(Some(reason)),
            }
        }
        match why {
            None if ranges.is_empty() => (size, Err("it has no segments".to_owned())),
            None => (size, Ok(ranges)),
            Some(why) => (size, Err(why)),
        }
    }

    fn segment(&self, segment: &LvmSection, follows: bool) -> Result<ByteRange, String> {
        let kind = segment.text("type").unwrap_or("unknown");
        if !["striped", "linear"].contains(&kind) {
            let kind = clean(kind);
            return Err(format!(
                "it is of the type {kind}, which needs device-mapper"
            ));
        }
        let stripes = segment.number("stripe_count").unwrap_or(0);
        if stripes != 1 {
            return Err(format!(
                "it is striped over {stripes} physical volumes, which needs device-mapper"
            ));
        }
        let (device, first) = segment.pair("stripes").ok_or("its segments are damaged")?;
        if device != self.name {
            let other = self.others.get(device).copied().unwrap_or(device);
            return Err(format!(
                "a part of it is on another physical volume ({})",
                clean(other)
            ));
        }
        let start = first
            .checked_mul(self.extent)
            .and_then(|at| at.checked_add(self.first));
        let size = segment
            .number("extent_count")
            .and_then(|count| count.checked_mul(self.extent));
        let range = start.zip(size).filter(|(start, size)| {
            let end = start.checked_add(*size);
            follows && *size > 0 && end.is_some_and(|end| end <= self.end)
        });
        let (start, size) = range.ok_or("its segments are damaged")?;
        Ok(ByteRange { start, size })
    }
}
