//! Fixed VHD: the bytes of the image, and a footer of 512 bytes (Virtual Hard Disk Image Format Specification 1.0).
//!
//! The size is a multiple of 1 MiB, as Azure requires of page blobs; what is added reads as zeroes.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{Piece, SECTOR};
use crate::error::{Error, Kind, Remedy, Result};

/// The largest VHD, 2,040 GiB: QEMU, Hyper-V and Azure take no larger one.
pub(crate) const MOST_VHD_BYTES: u64 = 2040 << 30;

/// Azure takes only sizes that are a multiple of it.
const UNIT: u64 = 1 << 20;

const FOOTER: usize = 512;
/// Where the checksum is in the footer.
const CHECKSUM: usize = 64;

/// A fixed VHD of an image.
#[derive(Clone, Debug)]
pub(crate) struct VhdLayout {
    /// Bytes of the image.
    image: u64,
    /// Bytes of the disk: those of the image and zeroes to a whole MiB.
    disk: u64,
    footer: Bytes,
}

impl VhdLayout {
    /// The VHD of an image of `size` bytes. `name` is what its unique id is made of: the same snapshot gives the same file.
    ///
    /// # Errors
    /// `Invalid` above [`MOST_VHD_BYTES`].
    pub(crate) fn new(size: u64, name: &str) -> Result<Self> {
        let disk = size.next_multiple_of(UNIT);
        if disk > MOST_VHD_BYTES {
            let what = format!("a VHD has at most 2040 GiB, the volume has {size} bytes");
            let remedy = "copy it to a .qcow2, .vmdk or raw image".into();
            return Err(Error::new(Kind::Invalid, what).with_remedy(Remedy::Do(remedy)));
        }
        Ok(Self {
            image: size,
            disk,
            footer: footer(disk, name).to_vec().into(),
        })
    }

    /// Bytes of the file.
    pub(crate) fn size(&self) -> u64 {
        self.disk + FOOTER as u64
    }

    /// Where the footer begins.
    pub(crate) fn footer_offset(&self) -> u64 {
        self.disk
    }

    /// Bytes of the image, with which the file begins.
    pub(crate) fn image_size(&self) -> u64 {
        self.image
    }

    /// The footer.
    pub(crate) fn footer(&self) -> &Bytes {
        &self.footer
    }

    /// The first piece at `offset`, which is in the file, of at most `len` bytes.
    pub(super) fn piece(&self, offset: u64, len: usize) -> Piece {
        match offset.checked_sub(self.disk) {
            None => {
                let rest = usize::try_from(self.disk - offset).unwrap_or(usize::MAX);
                let len = len.min(rest);
                Piece::Image { offset, len }
            }
            Some(at) => {
                let at = usize::try_from(at).map_or(FOOTER, |at| at.min(FOOTER));
                Piece::Bytes(self.footer.slice(at..at.saturating_add(len).min(FOOTER)))
            }
        }
    }
}

/// The footer of a disk of `size` bytes.
fn footer(size: u64, name: &str) -> [u8; FOOTER] {
    let id = Sha256::digest(format!("ebsfs VHD of {name}"));
    let (cylinders, heads, sectors) = geometry(size / SECTOR);
    let mut footer = [0; FOOTER];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        if let Some(place) = footer.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        at += bytes.len();
    };
    put(b"conectix");
    // A reserved bit that is always set.
    put(&2u32.to_be_bytes());
    put(&0x0001_0000u32.to_be_bytes());
    // No dynamic header follows.
    put(&u64::MAX.to_be_bytes());
    // No time: the same snapshot gives the same bytes.
    put(&0u32.to_be_bytes());
    // QEMU takes the size from the footer only if it knows the creator, and else from the geometry, which is rounded. This is
    // the one that Hyper-V and the tools of Azure write.
    put(b"win ");
    put(&0x0006_0003u32.to_be_bytes());
    put(b"Wi2k");
    put(&size.to_be_bytes());
    put(&size.to_be_bytes());
    put(&cylinders.to_be_bytes());
    put(&[heads, sectors]);
    // A fixed disk.
    put(&2u32.to_be_bytes());
    // The checksum, filled in below.
    put(&[0; 4]);
    put(id.get(..16).unwrap_or_default());
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    if let Some(place) = footer.get_mut(CHECKSUM..CHECKSUM + 4) {
        place.copy_from_slice(&(!sum).to_be_bytes());
    }
    footer
}

/// Cylinders, heads and sectors of a track, as the appendix of the specification computes them.
fn geometry(sectors: u64) -> (u16, u8, u8) {
    let total = sectors.min(65_535 * 16 * 255);
    let (heads, track, tracks) = if total >= 65_535 * 16 * 63 {
        (16, 255, total / 255)
    } else {
        let tracks = total / 17;
        let heads = tracks.div_ceil(1024).max(4);
        if tracks < heads * 1024 && heads <= 16 {
            (heads, 17, tracks)
        } else if total / 31 < 16 * 1024 {
            (16, 31, total / 31)
        } else {
            (16, 63, total / 63)
        }
    };
    let cylinders = u16::try_from(tracks / heads).unwrap_or(u16::MAX);
    let small = |number: u64| u8::try_from(number).unwrap_or(u8::MAX);
    (cylinders, small(heads), small(track))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vhd_has_at_most_2040_gib() {
        let largest = VhdLayout::new(MOST_VHD_BYTES, "snap-1").unwrap();
        assert_eq!(largest.size(), MOST_VHD_BYTES + 512);
        // One byte less is padded to the same size, one byte more is one MiB too many.
        let less = VhdLayout::new(MOST_VHD_BYTES - 1, "snap-1").unwrap();
        assert_eq!(less.size(), largest.size());
        for size in [MOST_VHD_BYTES + 1, 64 << 40] {
            let refused = VhdLayout::new(size, "snap-1").unwrap_err();
            assert_eq!(refused.kind(), Kind::Invalid);
            assert!(refused.chain().contains("2040 GiB"));
        }
    }

    #[test]
    fn the_footer_has_the_padded_size_and_its_checksum() {
        let layout = VhdLayout::new((5 << 20) + 1, "snap-1").unwrap();
        assert_eq!(layout.size(), (6 << 20) + 512);
        let footer = layout.footer().clone();
        assert_eq!(footer.len(), 512);
        assert_eq!(footer[..8], *b"conectix");
        assert_eq!(footer[40..56], [(6u64 << 20).to_be_bytes(); 2].concat());
        assert_eq!(footer[60..64], [0, 0, 0, 2]);
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let without = sum(&footer[..64]) + sum(&footer[68..]);
        assert_eq!(footer[64..68], (!without).to_be_bytes());
        // Another snapshot has another id, the same one the same file.
        let other = VhdLayout::new((5 << 20) + 1, "snap-2").unwrap();
        assert_ne!(other.footer()[68..84], footer[68..84]);
        let again = VhdLayout::new((5 << 20) + 1, "snap-1").unwrap();
        assert_eq!(*again.footer(), footer);
    }

    #[test]
    fn geometries_are_those_of_the_specification() {
        for (sectors, expected) in [
            (0, (0, 4, 17)),
            (17 * 4, (1, 4, 17)),
            (64 << 11, (963, 8, 17)),
            (1 << 21, (2080, 16, 63)),
            (40 << 21, (20_560, 16, 255)),
            (127 << 21, (65_278, 16, 255)),
            (2040 << 21, (65_535, 16, 255)),
        ] {
            assert_eq!(geometry(sectors), expected, "{sectors} sectors");
        }
    }

    #[test]
    fn pieces_are_the_image_and_then_the_footer() {
        let layout = VhdLayout::new((1 << 20) + 100, "snap-1").unwrap();
        let disk = 2 << 20;
        assert_eq!(layout.piece(5, 10), Piece::Image { offset: 5, len: 10 });
        // What lies behind the image belongs to it, and reads as zeroes.
        let end = Piece::Image {
            offset: disk - 1,
            len: 1,
        };
        assert_eq!(layout.piece(disk - 1, 700), end);
        let footer = layout.footer();
        assert_eq!(layout.piece(disk, 8), Piece::Bytes(footer.slice(..8)));
        assert_eq!(
            layout.piece(disk + 500, 99),
            Piece::Bytes(footer.slice(500..))
        );
    }
}
