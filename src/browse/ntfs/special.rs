//! Links, and the special files of Interix.

use super::super::NodeKind;
use super::super::fat::utf8_of;
use super::super::reader::{le16, le32, le64};

const SYMBOLIC_LINK: u32 = 0xa000_000c;
const MOUNT_POINT: u32 = 0xa000_0003;
const LINUX_LINK: u32 = 0xa000_001d;
/// Bytes of the largest special file of Interix: a link of 4,096 characters.
pub(super) const MOST_INTERIX: usize = 8 + 2 * 4096;

/// The target of a link in a reparse point, if it is one.
pub(super) fn target_of(reparse: &[u8]) -> Option<Vec<u8>> {
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
    // The print name, or without one the substitute name.
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
pub(super) fn interix(data: &[u8]) -> Option<(NodeKind, Vec<u8>, (u32, u32))> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_has_its_print_name() {
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
        assert_eq!(found(&link(0x8000_0017, 0, 0)), None);
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
