//! Disk formats of hypervisors and other clouds, around the bytes of an image: fixed VHD ([`vhd`]), flat VMDK ([`vmdk`]),
//! qcow2 version 3 ([`qcow2`]).
//!
//! A layout is a pure function of sizes and sets of blocks. It says for each byte of the file whether it is computed or is a
//! byte of the image ([`Piece`]), and where a block of the image is in the file. So a mount shows such a file without keeping it,
//! and a copy writes blocks in any order and resumes without tables of its own. A layout of 64 TiB takes two bitmaps of at most
//! 16 MiB and 512 KiB more; tables are computed where they are read.
//!
//! ```text
//! VHD    image | zeroes to a whole MiB | footer, 512 bytes
//! VMDK   a text file that names the image's file
//! qcow2  header | refcount table | refcount blocks | L1 | L2 tables | the blocks that are written, in their order
//! ```

mod qcow2;
mod vhd;
mod vmdk;

use std::path::Path;

use bytes::Bytes;

pub(crate) use qcow2::{Backing, PackedQcow2, Qcow2Layout, Qcow2Source};
pub(crate) use vhd::{MOST_VHD_BYTES, VhdLayout};
pub(crate) use vmdk::{check_extent_name, vmdk_descriptor};

/// Bytes of a sector in all of these formats.
const SECTOR: u64 = 512;

/// The format of an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ImageFormat {
    /// The bytes of the volume and nothing else.
    Raw,
    /// A fixed VHD: the bytes and a footer.
    Vhd,
    /// A text file, and the bytes in a second file.
    Vmdk,
    /// The blocks that are held, and tables.
    Qcow2,
}

impl ImageFormat {
    /// The format that the ending of a file's name stands for, in any case: `.vhd`, `.vmdk`, `.qcow2`; raw for all others.
    pub(crate) fn of(path: &Path) -> Self {
        let ending = path.extension().and_then(|ending| ending.to_str());
        let is = |format: Self| ending.is_some_and(|e| e.eq_ignore_ascii_case(format.name()));
        let formats = [Self::Vhd, Self::Vmdk, Self::Qcow2];
        formats
            .into_iter()
            .find(|format| is(*format))
            .unwrap_or(Self::Raw)
    }

    /// Its name, which is also the ending of its files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::Vmdk => "vmdk",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// A run of bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// These bytes.
    Bytes(Bytes),
    /// Bytes of the image. What lies behind its end reads as zeroes.
    Image {
        /// The first byte in the image.
        offset: u64,
        /// How many bytes.
        len: usize,
    },
}

impl Piece {
    /// How many bytes of the file it is.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Image { len, .. } => *len,
        }
    }
}

/// A file around the bytes of an image.
#[derive(Clone, Debug)]
pub(crate) enum FileLayout {
    /// A fixed VHD.
    Vhd(VhdLayout),
    /// A qcow2 image.
    Qcow2(std::sync::Arc<Qcow2Layout>),
}

impl FileLayout {
    /// Bytes of the file.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Vhd(layout) => layout.size(),
            Self::Qcow2(layout) => layout.size(),
        }
    }

    /// The first piece at `offset`, of at most `len` bytes; none at the end of the file or without a length.
    pub(crate) fn piece(&self, offset: u64, len: usize) -> Option<Piece> {
        let rest = self.size().checked_sub(offset)?;
        let len = usize::try_from(rest).map_or(len, |rest| rest.min(len));
        if len == 0 {
            return None;
        }
        Some(match self {
            Self::Vhd(layout) => layout.piece(offset, len),
            Self::Qcow2(layout) => layout.piece(offset, len),
        })
    }

    /// The pieces of a range of the file, in order; fewer bytes at its end.
    pub(crate) fn pieces(&self, offset: u64, len: usize) -> impl Iterator<Item = Piece> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let piece = self.piece(offset.checked_add(done as u64)?, len.checked_sub(done)?)?;
            done += piece.len();
            Some(piece)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_of_a_name_is_its_format() {
        for (name, format) in [
            ("disk.raw", ImageFormat::Raw),
            ("disk", ImageFormat::Raw),
            ("disk.qcow2.raw", ImageFormat::Raw),
            (".vhd", ImageFormat::Raw),
            ("disk.vhdx", ImageFormat::Raw),
            ("/a.vmdk/disk", ImageFormat::Raw),
            ("disk.vhd", ImageFormat::Vhd),
            ("disk.VHD", ImageFormat::Vhd),
            ("/srv/a b.vmdk", ImageFormat::Vmdk),
            ("disk.raw.qcow2", ImageFormat::Qcow2),
        ] {
            assert_eq!(ImageFormat::of(Path::new(name)), format, "{name}");
        }
    }
}
