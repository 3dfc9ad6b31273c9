//! [`DataStream`]: the data of a file: its runs of clusters, up to where it was written, and its compression.

use std::num::NonZero;

use ntfs::Ntfs;
use ntfs::attribute_value::NtfsAttributeValue;

use super::super::reader::{
    DiskWindow, FsFailure, FsPage, FsResult, SPAN_PAGE, WindowStream, le16, le64,
};
use super::super::wire::IMAGE_LIMIT;
use super::super::{FsSpan, SpanPlace};
use super::attributes::{AttributePart, value_of};
use super::lznt1;

/// Runs of a file, at most: 24 bytes each.
const MOST_RUNS: usize = 1 << 20;
/// Bytes of a record of the MFT, at most.
const MOST_RECORD: usize = 64 << 10;
/// Bytes of a unit of compression, at most: 16 clusters of 4 KiB are what Windows makes.
const MOST_UNIT: u64 = 1 << 20;

/// A run of clusters, in bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ClusterRun {
    start: u64,
    len: u64,
    /// The byte of the volume; none: not allocated.
    at: Option<u64>,
}

/// The data of a file.
#[derive(Debug, Default)]
pub(super) struct DataStream {
    /// The data itself, in the record of the file.
    resident: Option<Vec<u8>>,
    size: u64,
    /// Bytes that were written; behind them the file reads as zeroes, whatever its clusters hold.
    written: u64,
    /// Bytes of a unit of compression.
    unit: Option<u64>,
    is_encrypted: bool,
    runs: Vec<ClusterRun>,
}

impl DataStream {
    /// Bytes of the stream.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Adds an attribute of the file's data; they come in order.
    pub(super) fn add(
        &mut self,
        ntfs: &Ntfs,
        stream: &mut WindowStream,
        window: &DiskWindow,
        part: &AttributePart<'_, '_>,
    ) -> FsResult<()> {
        let wrong = || FsFailure::damaged("the data runs of a file are damaged");
        let attribute = &part.attribute;
        // Data in a record is whole: a second attribute of the name would hide the first.
        if self.resident.is_some() {
            return Err(wrong());
        }
        let value = match attribute.value(stream)? {
            NtfsAttributeValue::Resident(_) => {
                if !self.runs.is_empty() {
                    return Err(wrong());
                }
                let bytes = value_of(attribute, stream, MOST_RECORD)?;
                self.size = bytes.len() as u64;
                self.resident = Some(bytes);
                return Ok(());
            }
            NtfsAttributeValue::NonResident(value) => value,
            NtfsAttributeValue::AttributeListNonResident(_) => return Err(wrong()),
        };
        let cluster = u64::from(ntfs.cluster_size());
        let end = self.runs.last().map_or(0, |last| last.start + last.len);
        let first = u64::try_from(part.first_cluster).map_err(|_| wrong())?;
        if first.checked_mul(cluster) != Some(end) {
            return Err(wrong());
        }
        if end == 0 {
            self.describe(ntfs, window, part)?;
        }
        let mut start = end;
        for run in value.data_runs() {
            let run = run?;
            let len = run.allocated_size();
            let at = run.data_position().value().map(NonZero::get);
            let is_within = at.is_none_or(|at| at.saturating_add(len) <= ntfs.size());
            if self.runs.len() >= MOST_RUNS || len == 0 || !is_within {
                return Err(wrong());
            }
            self.runs.push(ClusterRun { start, len, at });
            start = start.checked_add(len).ok_or_else(wrong)?;
        }
        Ok(())
    }

    /// Reads the header of the first attribute, of which the crate does not show all fields.
    fn describe(
        &mut self,
        ntfs: &Ntfs,
        window: &DiskWindow,
        part: &AttributePart<'_, '_>,
    ) -> FsResult<()> {
        let wrong = || FsFailure::damaged("the record of a file is damaged");
        let flags = part.attribute.flags();
        self.size = part.attribute.value_length().min(i64::MAX.unsigned_abs());
        self.is_encrypted = flags.contains(ntfs::NtfsAttributeFlags::ENCRYPTED);
        let start = part.file.position().value().ok_or_else(wrong)?.get();
        let at = part.attribute.position().value().ok_or_else(wrong)?.get();
        let record_size = (ntfs.file_record_size() as usize).min(MOST_RECORD);
        let mut record = window.bytes_at(start, record_size)?;
        fix_up(&mut record, b"FILE").ok_or_else(wrong)?;
        let header = at
            .checked_sub(start)
            .and_then(|at| usize::try_from(at).ok());
        let header = header.and_then(|at| record.get(at..)).ok_or_else(wrong)?;
        self.written = le64(header, 0x38).min(self.size);
        let exponent = le16(header, 0x22) & 0xff;
        if flags.contains(ntfs::NtfsAttributeFlags::COMPRESSED) {
            let unit = u64::from(ntfs.cluster_size()) << exponent.min(32);
            if exponent == 0 || unit > MOST_UNIT {
                return Err(wrong());
            }
            self.unit = Some(unit);
        }
        Ok(())
    }

    /// The runs from a byte of the file on.
    fn runs_from(&self, offset: u64) -> &[ClusterRun] {
        let first = self
            .runs
            .partition_point(|run| run.start + run.len <= offset);
        self.runs.get(first..).unwrap_or_default()
    }

    pub(super) fn spans(&self, window: &DiskWindow, offset: u64) -> FsResult<FsPage<FsSpan>> {
        if offset >= self.size {
            return Ok((Vec::new(), None));
        }
        if self.is_encrypted {
            return Err(FsFailure::unsupported("the file is encrypted"));
        }
        let mut found = Vec::new();
        let mut at = offset;
        let mut push = |until: u64, place: SpanPlace| {
            if until > at {
                found.push(FsSpan {
                    offset: at,
                    len: until - at,
                    place,
                });
                at = until;
            }
            (found.len() >= SPAN_PAGE).then_some(at)
        };
        if self.resident.is_some() {
            push(self.size, SpanPlace::Parser);
            return Ok((found, None));
        }
        // Holes have runs too: what has none is lost, and no zeroes.
        if self.runs.last().map_or(0, |last| last.start + last.len) < self.written {
            return Err(FsFailure::damaged("a file is longer than its clusters"));
        }
        if self.unit.is_some() {
            push(self.written, SpanPlace::Parser);
            push(self.size, SpanPlace::Hole);
            return Ok((found, None));
        }
        for run in self.runs_from(offset) {
            let until = (run.start + run.len).min(self.written);
            let begin = run.start.max(offset);
            let next = match run.at {
                _ if until <= begin => break,
                None => push(until, SpanPlace::Hole),
                Some(place) => {
                    let place = place.checked_add(begin - run.start);
                    let place = place.and_then(|place| window.in_image(place, until - begin));
                    let place = place.ok_or_else(|| {
                        FsFailure::damaged("a file has clusters outside the volume")
                    })?;
                    push(until, SpanPlace::Image(place))
                }
            };
            if next.is_some_and(|next| next < self.size) {
                return Ok((found, next));
            }
        }
        push(self.size, SpanPlace::Hole);
        Ok((found, None))
    }

    pub(super) fn content(
        &self,
        window: &DiskWindow,
        offset: u64,
        len: usize,
    ) -> FsResult<Vec<u8>> {
        if self.is_encrypted {
            return Err(FsFailure::unsupported("the file is encrypted"));
        }
        let end = offset.saturating_add(len as u64).min(self.size);
        if let Some(bytes) = &self.resident {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let end = usize::try_from(end).unwrap_or(usize::MAX);
            return Ok(bytes.get(start..end).unwrap_or_default().to_vec());
        }
        let unit = self.unit.unwrap_or(u64::from(IMAGE_LIMIT));
        let mut bytes = Vec::new();
        let mut at = offset;
        while at < end {
            let start = at - at % unit;
            let mut decoded = match self.unit {
                Some(unit) => self.unit_at(window, start, unit)?,
                None => self.raw_at(window, start, (end - start).min(unit))?.0,
            };
            // What was never written reads as zeroes.
            let written = usize::try_from(self.written.saturating_sub(start)).unwrap_or(usize::MAX);
            if let Some(rest) = decoded.get_mut(written..) {
                rest.fill(0);
            }
            let from = usize::try_from(at - start).unwrap_or(usize::MAX);
            let until = usize::try_from(end - start)
                .unwrap_or(usize::MAX)
                .min(decoded.len());
            let there = decoded.get(from..until).unwrap_or_default();
            if there.is_empty() {
                return Err(FsFailure::damaged("a file is longer than its clusters"));
            }
            bytes.extend(there);
            at += there.len() as u64;
        }
        Ok(bytes)
    }

    /// Bytes of the clusters of a range, unallocated ones as zeroes, and how many bytes are allocated before the first that is not.
    fn raw_at(&self, window: &DiskWindow, start: u64, len: u64) -> FsResult<(Vec<u8>, usize)> {
        let mut bytes = Vec::new();
        let mut allocated = None;
        let mut at = start;
        for run in self.runs_from(start) {
            if at >= start + len {
                break;
            }
            let until = (run.start + run.len).min(start + len);
            let count = usize::try_from(until.saturating_sub(at)).unwrap_or(0);
            match run.at {
                Some(place) => bytes.extend(window.bytes_at(place + (at - run.start), count)?),
                None => {
                    allocated.get_or_insert(bytes.len());
                    bytes.resize(bytes.len() + count, 0);
                }
            }
            at = until;
        }
        let allocated = allocated.unwrap_or(bytes.len());
        Ok((bytes, allocated))
    }

    /// A unit of a compressed file: all clusters there: as it is; some: compressed; none: zeroes.
    fn unit_at(&self, window: &DiskWindow, start: u64, unit: u64) -> FsResult<Vec<u8>> {
        let (mut bytes, allocated) = self.raw_at(window, start, unit)?;
        let unit = usize::try_from(unit).unwrap_or(0);
        if allocated == 0 || allocated >= unit {
            bytes.resize(unit, 0);
            return Ok(bytes);
        }
        bytes.truncate(allocated);
        lznt1::decompress(&bytes, unit)
            .ok_or_else(|| FsFailure::damaged("a compressed file is damaged"))
    }
}

/// Restores the last two bytes of each 512 of a record, which its header keeps. The record must begin with `signature`.
pub(super) fn fix_up(record: &mut [u8], signature: &[u8; 4]) -> Option<()> {
    let (at, count) = (usize::from(le16(record, 4)), usize::from(le16(record, 6)));
    let kept = record.get(at..at + count * 2)?.to_vec();
    let (mark, kept) = kept.split_first_chunk::<2>()?;
    for (sector, bytes) in record.chunks_exact_mut(512).zip(kept.chunks_exact(2)) {
        let end = sector.last_chunk_mut::<2>()?;
        if end != mark {
            return None;
        }
        end.copy_from_slice(bytes);
    }
    record.starts_with(signature).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_record_is_refused() {
        let mut record = vec![0; 1024];
        record[..4].copy_from_slice(b"FILE");
        record[4..8].copy_from_slice(&[0x30, 0, 3, 0]);
        record[0x30..0x36].copy_from_slice(&[7, 7, 1, 2, 3, 4]);
        for end in [510, 1022] {
            record[end..end + 2].copy_from_slice(&[7, 7]);
        }
        let mut good = record.clone();
        assert_eq!(fix_up(&mut good, b"FILE"), Some(()));
        assert_eq!((good[510], good[511], good[1022], good[1023]), (1, 2, 3, 4));
        record[1023] = 8;
        assert_eq!(fix_up(&mut record, b"FILE"), None);
        assert_eq!(fix_up(&mut [0; 10], b"FILE"), None);
    }
}
