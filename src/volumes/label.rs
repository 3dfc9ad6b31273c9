//! [`FilesystemLabel`]: the label and the UUID of a filesystem, from its first bytes, as blkid shows them.

use super::sniff::{BTRFS, EXT};
use super::{DiskContent, text_of, text_of_utf16, u32_at, u64_at};

/// How a filesystem is named by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FilesystemLabel {
    /// Its label, without control characters.
    pub(crate) label: Option<String>,
    /// Its UUID, or what stands for one (a serial number).
    pub(crate) uuid: Option<String>,
}

/// The label of a content that begins with these bytes.
pub(super) fn label_of(content: &DiskContent, head: &[u8]) -> FilesystemLabel {
    let bytes = |at: usize, len: usize| head.get(at..at + len).unwrap_or_default();
    let text = |at, len| Some(text_of(bytes(at, len))).filter(|text| !text.is_empty());
    let id = |at| uuid(bytes(at, 16));
    let serial = |at| {
        let number = u32_at(head, at);
        (number != 0).then(|| format!("{:04X}-{:04X}", number >> 16, number & 0xffff))
    };
    let (label, uuid) = match content {
        DiskContent::Ext { .. } => (text(EXT + 0x78, 16), id(EXT + 0x68)),
        DiskContent::Xfs => (text(108, 12), id(32)),
        DiskContent::Btrfs { .. } => (text(BTRFS + 0x12b, 256), id(BTRFS + 0x20)),
        DiskContent::Vfat { dirty_at: 0x41, .. } => (text(0x47, 11), serial(0x43)),
        DiskContent::Vfat { .. } => (text(0x2b, 11), serial(0x27)),
        DiskContent::Other("ntfs") => {
            let number = u64_at(head, 0x48);
            (None, (number != 0).then(|| format!("{number:016X}")))
        }
        DiskContent::Other("exfat") => (None, serial(100)),
        DiskContent::Other("luks") => (text(24, 48).filter(|_| is_luks2(head)), text(168, 40)),
        DiskContent::Other("swap") => (text(1052, 16), id(1036)),
        DiskContent::Other("f2fs") => {
            let label = text_of_utf16(bytes(1024 + 124, 512));
            (Some(label).filter(|text| !text.is_empty()), id(1024 + 108))
        }
        DiskContent::Other("erofs") => (text(1024 + 64, 16), id(1024 + 48)),
        DiskContent::Other("iso9660") => (text(0x8028, 32), None),
        DiskContent::Other("md raid") => {
            let at = if bytes(0, 4) == [0xfc, 0x4e, 0x2b, 0xa9] {
                0
            } else {
                4096
            };
            (text(at + 32, 32), id(at + 16))
        }
        _ => (None, None),
    };
    // A FAT without a label has this text.
    let label = label.filter(|label| label != "NO NAME");
    FilesystemLabel { label, uuid }
}

fn is_luks2(head: &[u8]) -> bool {
    head.get(6..8) == Some(&[0, 2])
}

/// A UUID whose fields are big-endian; none of zeroes.
fn uuid(bytes: &[u8]) -> Option<String> {
    if bytes.len() != 16 || bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    let mut text = crate::block::hexadecimal(bytes);
    for at in [20, 16, 12, 8] {
        text.insert(at, '-');
    }
    Some(text)
}
