//! [`ExtInode`]: an inode, from its bytes.

use super::super::reader::{FsFailure, FsResult, le16, le32};
use super::super::{FsNode, FsTime, NodeKind, NodeTimes};

const EXTENTS: u32 = 0x8_0000;
const INLINE: u32 = 0x1000_0000;
const ENCRYPTED: u32 = 0x800;
const VALUE: u32 = 0x20_0000;

/// An inode.
#[derive(Clone, Debug)]
pub(super) struct ExtInode {
    pub(super) number: u64,
    pub(super) size: u64,
    /// The root of the extent tree, the numbers of blocks, a short link, or data.
    pub(super) area: [u8; 60],
    /// The block of extended attributes; 0: none.
    pub(super) xattr_block: u64,
    /// All bytes of it: extended attributes are behind the fields.
    pub(super) raw: Vec<u8>,
    mode: u16,
    flags: u32,
}

impl ExtInode {
    /// `large_folders`: whether the size of a folder has its upper half.
    pub(super) fn of(number: u64, raw: &[u8], large_folders: bool) -> Self {
        let mode = le16(raw, 0);
        let has_high = mode >> 12 == 8 || (mode >> 12 == 4 && large_folders);
        let high = if has_high { le32(raw, 0x6c) } else { 0 };
        let area = raw.get(0x28..).and_then(|rest| rest.first_chunk());
        Self {
            number,
            size: u64::from(high) << 32 | u64::from(le32(raw, 4)),
            area: area.copied().unwrap_or([0; 60]),
            xattr_block: u64::from(le16(raw, 0x76)) << 32 | u64::from(le32(raw, 0x68)),
            raw: raw.to_vec(),
            mode,
            flags: le32(raw, 0x20),
        }
    }

    pub(super) fn has_extents(&self) -> bool {
        self.flags & EXTENTS != 0
    }

    pub(super) fn is_inline(&self) -> bool {
        self.flags & INLINE != 0
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.flags & ENCRYPTED != 0
    }

    /// Whether it is no file, but the value of an extended attribute.
    pub(super) fn is_value(&self) -> bool {
        self.flags & VALUE != 0
    }

    pub(super) fn is_folder(&self) -> bool {
        self.mode >> 12 == 4
    }

    /// Bytes of the fields: extended attributes begin behind them.
    pub(super) fn fields(&self) -> usize {
        match self.raw.len() > 128 {
            true => 128 + usize::from(le16(&self.raw, 0x80)),
            false => 128,
        }
    }

    /// A time, with the nanoseconds and the bits for the years after 2038 where the inode has room for them.
    fn time(&self, at: usize, extra: usize) -> FsTime {
        let seconds = i64::from(le32(&self.raw, at).cast_signed());
        let extra = match extra + 4 <= self.fields() {
            true => le32(&self.raw, extra),
            false => 0,
        };
        FsTime {
            seconds: seconds + (i64::from(extra & 3) << 32),
            // A damaged inode can have more than there are in a second.
            nanoseconds: (extra >> 2).min(999_999_999),
        }
    }

    fn device(&self) -> (u32, u32) {
        let (old, new) = (le32(&self.area, 0), le32(&self.area, 4));
        match old {
            0 => ((new >> 8) & 0xfff, (new & 0xff) | ((new >> 12) & 0xf_ff00)),
            old => ((old >> 8) & 0xff, old & 0xff),
        }
    }

    /// Its metadata, without the target of a link.
    ///
    /// # Errors
    /// When its type is none.
    pub(super) fn node(&self) -> FsResult<FsNode> {
        let kind = u8::try_from(self.mode >> 12).ok().and_then(NodeKind::of);
        let kind = kind.ok_or_else(|| {
            FsFailure::damaged(format!("inode {} has no known type", self.number))
        })?;
        let half = |low: usize, high: usize| {
            u32::from(le16(&self.raw, high)) << 16 | u32::from(le16(&self.raw, low))
        };
        let is_device = matches!(kind, NodeKind::CharDevice | NodeKind::BlockDevice);
        let has_created = 0x94 <= self.fields();
        Ok(FsNode {
            id: self.number,
            kind,
            mode: u32::from(self.mode & 0o7777),
            uid: half(0x2, 0x78),
            gid: half(0x18, 0x7a),
            links: le16(&self.raw, 0x1a).into(),
            streams: 0,
            size: match kind {
                NodeKind::Regular | NodeKind::Folder | NodeKind::Link => {
                    self.size.min(i64::MAX.unsigned_abs())
                }
                _ => 0,
            },
            device: if is_device { self.device() } else { (0, 0) },
            times: NodeTimes {
                modified: Some(self.time(0x10, 0x88)),
                accessed: Some(self.time(0x8, 0x8c)),
                changed: Some(self.time(0xc, 0x84)),
                created: has_created.then(|| self.time(0x90, 0x94)),
            },
            target: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(parts: &[(usize, u32)]) -> Vec<u8> {
        let mut raw = vec![0; 256];
        raw[0x80] = 32;
        for (at, value) in parts {
            raw[*at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        raw
    }

    #[test]
    fn times_reach_from_1901_to_2446_with_nanoseconds() {
        for (low, extra, seconds, nanoseconds) in [
            (0, 0, 0, 0),
            (0x8000_0000, 0, -(1 << 31), 0),
            (u32::MAX, 0, -1, 0),
            (0x8000_0000, 1, 1 << 31, 0),
            (0x7fff_ffff, 3, 0x3_7fff_ffff, 0),
            (5, 999_999_999 << 2, 5, 999_999_999),
            (5, u32::MAX, 5 + (3 << 32), 999_999_999),
        ] {
            let inode = ExtInode::of(1, &raw(&[(0x10, low), (0x88, extra)]), false);
            let expected = FsTime {
                seconds,
                nanoseconds,
            };
            assert_eq!(inode.time(0x10, 0x88), expected, "{low:#x} {extra:#x}");
        }
        // An inode of 128 bytes has seconds alone.
        let small = ExtInode::of(1, &raw(&[(0x10, 7)])[..128], false);
        assert_eq!(small.time(0x10, 0x88).seconds, 7);
    }

    #[test]
    fn both_encodings_of_device_numbers_are_read() {
        for (old, new, device) in [
            (0x0801, 0, (8, 1)),
            (0, 0x0010_3801, (0x38, 0x101)),
            (0, 0xfff0_00ff, (0, 0xf_ffff)),
        ] {
            let inode = ExtInode::of(1, &raw(&[(0x28, old), (0x2c, new)]), false);
            assert_eq!(inode.device(), device, "{old:#x} {new:#x}");
        }
    }

    #[test]
    fn only_files_have_64_bits_of_size() {
        for (mode, large, size) in [
            (0x8000, false, 0x1_0000_0005),
            (0x4000, false, 5),
            (0x4000, true, 0x1_0000_0005),
        ] {
            let inode = ExtInode::of(1, &raw(&[(0, mode), (4, 5), (0x6c, 1)]), large);
            assert_eq!(inode.size, size);
        }
    }
}
