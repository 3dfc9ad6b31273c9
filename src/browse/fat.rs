//! FAT12, FAT16 and FAT32, read only.
//!
//! The crate `fatfs` opens a volume for writing, names no clusters (so that files could not be distinguished, nor read past
//! the parser), and maps names to an alphabet of its own; the tests compare it with this reader, as a second opinion.
//!
//! Times of FAT have no zone; they are taken as UTC. Owners and modes do not exist: all belongs to root, read-only files have 0444.

mod layout;
mod names;

use std::collections::HashSet;

use super::reader::{
    DiskWindow, FoundValues, FsFailure, FsPage, FsReader, FsResult, PAGE, SPAN_PAGE, cut_off,
    entry_of, le16, le32, missing_names,
};
use super::{FsEntry, FsNode, FsRemarks, FsSpan, FsTime, NodeKind, NodeTimes, SpanPlace};
use layout::{FatLayout, FatWidth};
pub(super) use names::utf8_of;
use names::{LongName, short_name};

/// Bytes of an entry of a folder.
const ENTRY: usize = 32;
/// Entries of a folder, at most: FAT allows 65,536.
const MOST_ENTRIES: u64 = 65_536;
/// Marks the id of a folder by its first cluster; a file has the place of its entry.
const FOLDER: u64 = 1 << 62;
/// The root folder.
const ROOT: u64 = FOLDER;

const READ_ONLY: u8 = 0x01;
const VOLUME: u8 = 0x08;
const IS_FOLDER: u8 = 0x10;
const LONG: u8 = 0x0f;

/// An entry of a folder.
struct FatEntry {
    name: Vec<u8>,
    node: FsNode,
}

/// A FAT filesystem.
pub(super) struct FatReader {
    window: DiskWindow,
    layout: FatLayout,
    is_dirty: bool,
}

impl FatReader {
    /// Reads the boot sector.
    ///
    /// # Errors
    /// When it is damaged.
    pub(super) fn open(window: DiskWindow) -> FsResult<Self> {
        let boot = window.bytes_at(0, 512)?;
        let layout =
            FatLayout::of(&boot).ok_or_else(|| FsFailure::damaged("the boot sector is damaged"))?;
        let state = if layout.width == FatWidth::Bits32 {
            0x41
        } else {
            0x25
        };
        let is_dirty = boot.get(state).is_some_and(|state| state & 1 == 1);
        Ok(Self {
            window,
            layout,
            is_dirty,
        })
    }

    /// The cluster behind one; none at the end of the chain.
    fn after(&self, number: u64) -> FsResult<Option<u64>> {
        let layout = &self.layout;
        let at = match layout.width {
            FatWidth::Bits12 => number + number / 2,
            FatWidth::Bits16 => number * 2,
            FatWidth::Bits32 => number * 4,
        };
        let bytes = if layout.width == FatWidth::Bits32 {
            4
        } else {
            2
        };
        if at + bytes > layout.fat_size {
            return Err(FsFailure::damaged("a chain of clusters leaves the FAT"));
        }
        let mut found = [0; 4];
        let wanted = found
            .get_mut(..usize::try_from(bytes).unwrap_or(4))
            .unwrap_or_default();
        self.window.read_at(layout.fat + at, wanted)?;
        let raw = u64::from(u32::from_le_bytes(found));
        let (next, end) = match layout.width {
            FatWidth::Bits12 if number % 2 == 1 => (raw >> 4, 0xff8),
            FatWidth::Bits12 => (raw & 0xfff, 0xff8),
            FatWidth::Bits16 => (raw, 0xfff8),
            FatWidth::Bits32 => (raw & 0x0fff_ffff, 0x0fff_fff8),
        };
        match next {
            next if next >= end => Ok(None),
            next if layout.cluster_at(next).is_some() => Ok(Some(next)),
            _ => Err(FsFailure::damaged("a chain of clusters is broken")),
        }
    }

    /// Where the entry `index` of a folder is, when the ones before it were asked for in order.
    fn entries_of(&self, folder: u64) -> FsResult<EntryPlaces> {
        let layout = &self.layout;
        let first = folder & !FOLDER;
        if first == 0 && layout.width != FatWidth::Bits32 {
            return Ok(EntryPlaces {
                at: layout.root,
                left: layout.root_entries * ENTRY as u64,
                cluster: None,
            });
        }
        let first = if first == 0 {
            layout.root_cluster
        } else {
            first
        };
        let at = layout
            .cluster_at(first)
            .ok_or_else(|| FsFailure::damaged("a folder begins at an impossible cluster"))?;
        Ok(EntryPlaces {
            at,
            left: layout.cluster,
            cluster: Some(first),
        })
    }

    /// Entries of a folder, from the number `from` of an entry on. `is_full` ends it; returns the number of the next one.
    fn read_folder(
        &self,
        folder: u64,
        from: u64,
        visit: &mut dyn FnMut(FatEntry) -> bool,
    ) -> FsResult<Option<u64>> {
        if folder & FOLDER == 0 {
            return Err(FsFailure::damaged("this is no folder"));
        }
        let mut places = self.entries_of(folder)?;
        let mut long = LongName::default();
        let mut passed = HashSet::new();
        for number in 0..=MOST_ENTRIES {
            if places.left == 0 {
                let next = match places.cluster {
                    Some(cluster) => self.after(cluster)?,
                    None => None,
                };
                let Some(next) = next else {
                    return Ok(None);
                };
                passed.extend(places.cluster);
                if passed.contains(&next) {
                    return Err(circle());
                }
                let at = self.layout.cluster_at(next);
                places = EntryPlaces {
                    at: at.ok_or_else(|| FsFailure::damaged("a folder is broken"))?,
                    left: self.layout.cluster,
                    cluster: Some(next),
                };
            }
            if number == MOST_ENTRIES {
                break;
            }
            let at = places.at;
            places.at += ENTRY as u64;
            places.left -= ENTRY as u64;
            // What was on an earlier page is passed over without being read.
            if number < from {
                continue;
            }
            let mut raw = [0; ENTRY];
            self.window.read_at(at, &mut raw)?;
            match raw {
                [0, ..] => return Ok(None),
                [0xe5, ..] => long = LongName::default(),
                _ if raw[11] & 0x3f == LONG => long.add(&raw),
                _ if raw[11] & VOLUME != 0 => long = LongName::default(),
                _ => {
                    let name = std::mem::take(&mut long).finish(&raw);
                    let entry = FatEntry {
                        name: name.unwrap_or_else(|| short_name(&raw)),
                        node: self.node(&raw, at),
                    };
                    if entry.name != b"." && entry.name != b".." && !visit(entry) {
                        return Ok(Some(number + 1));
                    }
                }
            }
        }
        Err(FsFailure::damaged("a folder does not end"))
    }

    /// Whether a file of so many bytes, whose last cluster is `last`, has a cluster twice. What is wrong behind its end costs
    /// nothing.
    fn is_circle(
        &self,
        first: u64,
        last: Option<u64>,
        size: u64,
        mut watch: CircleWatch,
    ) -> FsResult<bool> {
        let after = |number: u64| match self.after(number) {
            Err(failure) if failure.is_damage() => Ok(None),
            next => next,
        };
        let mut cluster = last;
        while let Some(number) = cluster {
            cluster = after(number)?;
            let Some(period) = watch.pass(cluster) else {
                continue;
            };
            // Two clusters of a circle that are a period apart are the same one.
            let used = size.div_ceil(self.layout.cluster);
            let Some(before) = used.checked_sub(period + 1) else {
                return Ok(false);
            };
            let mut other = Some(first);
            for _ in 0..before {
                other = other.map(after).transpose()?.flatten();
            }
            return Ok(other == last);
        }
        Ok(false)
    }

    fn node(&self, raw: &[u8; ENTRY], at: u64) -> FsNode {
        let is_folder = raw[11] & IS_FOLDER != 0;
        let first = self.first_cluster(raw);
        FsNode {
            // A folder whose first cluster is 0 is the root, which a folder can be in only by damage.
            id: if is_folder { FOLDER | first } else { at },
            kind: if is_folder {
                NodeKind::Folder
            } else {
                NodeKind::Regular
            },
            mode: match (is_folder, raw[11] & READ_ONLY != 0) {
                (true, _) => 0o755,
                (false, true) => 0o444,
                (false, false) => 0o644,
            },
            uid: 0,
            gid: 0,
            links: 1,
            streams: 0,
            size: if is_folder { 0 } else { le32(raw, 28).into() },
            device: (0, 0),
            times: NodeTimes {
                modified: fat_time(le16(raw, 24), le16(raw, 22), 0),
                accessed: fat_time(le16(raw, 18), 0, 0),
                changed: None,
                created: fat_time(le16(raw, 16), le16(raw, 14), raw[13]),
            },
            target: Vec::new(),
        }
    }

    fn first_cluster(&self, raw: &[u8]) -> u64 {
        let high = match self.layout.width {
            FatWidth::Bits32 => le16(raw, 20),
            _ => 0,
        };
        u64::from(high) << 16 | u64::from(le16(raw, 26))
    }
}

/// Where entries of a folder are.
struct EntryPlaces {
    at: u64,
    left: u64,
    /// None: the root folder of FAT12 and FAT16.
    cluster: Option<u64>,
}

/// Notices a chain that comes back to a cluster, by the algorithm of Brent: in a constant amount of memory, after at most three
/// times the clusters that the chain has.
struct CircleWatch {
    mark: Option<u64>,
    steps: u64,
    until: u64,
}

impl CircleWatch {
    fn new(first: u64) -> Self {
        Self {
            mark: Some(first),
            steps: 0,
            until: 1,
        }
    }

    /// The clusters of the circle, when the chain is one.
    fn pass(&mut self, next: Option<u64>) -> Option<u64> {
        self.steps += 1;
        if next.is_some() && next == self.mark {
            return Some(self.steps);
        }
        if self.steps == self.until {
            *self = Self {
                mark: next,
                steps: 0,
                until: self.until.saturating_mul(2),
            };
        }
        None
    }
}

fn circle() -> FsFailure {
    FsFailure::damaged("a chain of clusters is a circle")
}

/// A date and a time of day, with hundredths of a second; none where there is no date.
fn fat_time(date: u16, time: u16, hundredths: u8) -> Option<FsTime> {
    let (year, month, day) = (
        1980 + i64::from(date >> 9),
        i64::from(date >> 5 & 0xf),
        i64::from(date & 0x1f),
    );
    if !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    // Days since 1970 by Howard Hinnant's algorithm: years begin in March.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = i64::from(time >> 11) * 3600
        + i64::from(time >> 5 & 0x3f) * 60
        + i64::from(time & 0x1f) * 2;
    let hundredths = u32::from(hundredths.min(199));
    Some(FsTime {
        seconds: days * 86_400 + seconds + i64::from(hundredths / 100),
        nanoseconds: hundredths % 100 * 10_000_000,
    })
}

impl FsReader for FatReader {
    fn name(&self) -> &'static str {
        "vfat"
    }

    fn remarks(&self) -> FsRemarks {
        let notes = match self.is_dirty {
            true => vec!["it was in use: its last changes may be incomplete".to_owned()],
            false => Vec::new(),
        };
        let damage = cut_off(self.layout.size(), &self.window);
        FsRemarks { notes, damage }
    }

    fn root(&mut self) -> FsResult<FsNode> {
        Ok(FsNode {
            id: ROOT,
            kind: NodeKind::Folder,
            mode: 0o755,
            uid: 0,
            gid: 0,
            links: 1,
            streams: 0,
            size: 0,
            device: (0, 0),
            times: NodeTimes::default(),
            target: Vec::new(),
        })
    }

    fn list(&mut self, folder: u64, cursor: u64) -> FsResult<FsPage<FsEntry>> {
        let mut found = Vec::new();
        let next = self.read_folder(folder, cursor, &mut |entry| {
            found.push(entry_of(&entry.name, || Ok(entry.node)));
            found.len() < PAGE
        });
        match next {
            // The names before the damage are good.
            Err(failure) if failure.is_damage() && !found.is_empty() => {
                found.push(missing_names(&failure));
                Ok((found, None))
            }
            next => Ok((found, next?)),
        }
    }

    fn spans(&mut self, file: u64, offset: u64) -> FsResult<FsPage<FsSpan>> {
        if file & FOLDER != 0 {
            return Err(FsFailure::damaged("a folder has no bytes"));
        }
        let raw = self.window.bytes_at(file, ENTRY)?;
        let size = u64::from(le32(&raw, 28));
        let mut found: Vec<FsSpan> = Vec::new();
        let first = self.first_cluster(&raw);
        let (mut at, mut cluster) = (0, Some(first));
        let mut watch = CircleWatch::new(first);
        while at < size {
            let place = cluster.and_then(|number| self.layout.cluster_at(number));
            let (Some(number), Some(place)) = (cluster, place) else {
                return Err(FsFailure::damaged(
                    "a file is longer than its chain of clusters",
                ));
            };
            let len = self.layout.cluster.min(size - at);
            if at + len > offset {
                let within = offset.saturating_sub(at);
                let image = self.window.in_image(place + within, len - within);
                let image = image.ok_or_else(|| FsFailure::damaged("a cluster is outside"))?;
                let follows = |last: &&mut FsSpan| {
                    last.place.follows(last.len, image) && last.offset + last.len == at
                };
                if let Some(last) = found.last_mut().filter(follows) {
                    last.len += len - within;
                } else if found.len() >= SPAN_PAGE {
                    return Ok((found, Some(at)));
                } else {
                    found.push(FsSpan {
                        offset: at + within,
                        len: len - within,
                        place: SpanPlace::Image(image),
                    });
                }
            }
            at += len;
            if at < size {
                cluster = self.after(number)?;
                if watch.pass(cluster).is_some() {
                    return Err(circle());
                }
            }
        }
        match size > 0 && self.is_circle(first, cluster, size, watch)? {
            true => Err(circle()),
            false => Ok((found, None)),
        }
    }

    fn content(&mut self, _file: u64, _offset: u64, _len: usize) -> FsResult<Vec<u8>> {
        Err(FsFailure::damaged("all bytes of a file are in the image"))
    }

    fn xattrs(&mut self, _file: u64) -> FsResult<FoundValues> {
        Ok((Vec::new(), 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_days_since_1980_and_two_seconds() {
        for (date, time, hundredths, expected) in [
            (0x0021, 0, 0, Some((315_532_800, 0))),
            // 2024-02-29 23:59:58 and 199 hundredths.
            (0x585d, 0xbf7d, 199, Some((1_709_251_199, 990_000_000))),
            (0, 0, 0, None),
            (0x0020, 0, 0, None),
            (0x01e1, 0, 0, None),
        ] {
            let found = fat_time(date, time, hundredths).map(|t| (t.seconds, t.nanoseconds));
            assert_eq!(found, expected, "{date:#x} {time:#x}");
        }
    }

    #[test]
    fn each_circle_is_noticed_within_three_times_its_clusters() {
        for before in 0..20 {
            for circle in 1..20 {
                let mut watch = CircleWatch::new(0);
                let (mut at, mut period) = (0, None);
                let steps = (1..).find(|_| {
                    at = if at + 1 == before + circle {
                        before
                    } else {
                        at + 1
                    };
                    period = watch.pass(Some(at));
                    period.is_some()
                });
                assert_eq!(period, Some(circle));
                assert!(steps.unwrap() <= 3 * (before + circle), "{before} {circle}");
            }
        }
        let mut watch = CircleWatch::new(0);
        assert!((1..100_000).all(|at| watch.pass(Some(at)).is_none()));
        assert_eq!(watch.pass(None), None);
    }
}
