//! The image of a snapshot or of a delta in the formats of hypervisors and other clouds: computed around the image while they
//! are read, so they share its cache and its readahead.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;

use super::Tree;
use super::contents::Rendered;
use super::names::File;
use super::nodes::Subject;
use crate::error::{Error, Kind, Result};
use crate::formats::{FileLayout, MOST_VHD_BYTES, Piece, VhdLayout, vmdk_descriptor};
use crate::image::Image;

/// The name that the descriptor has for the image beside it.
const DISK: &str = "disk.raw";

/// A file around the bytes of an image.
pub(in crate::fs) struct FormattedImage {
    image: Arc<Image>,
    layout: FileLayout,
}

impl FormattedImage {
    /// Bytes of the file.
    pub(super) fn size(&self) -> u64 {
        self.layout.size()
    }

    /// The bytes from `offset`, `len` of them or as many as there are before the end.
    pub(super) async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let pieces = self.layout.pieces(offset, len);
        let mut parts = try_join_all(pieces.map(|piece| self.read(piece))).await?;
        if parts.len() == 1
            && let Some(only) = parts.pop()
        {
            return Ok(only);
        }
        let mut bytes = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        Ok(bytes.freeze())
    }

    async fn read(&self, piece: Piece) -> Result<Bytes> {
        let (offset, len) = match piece {
            Piece::Bytes(bytes) => return Ok(bytes),
            Piece::Image { offset, len } => (offset, len),
        };
        let bytes = match offset < self.image.size() {
            true => self.image.read_at(offset, len).await?,
            false => Bytes::new(),
        };
        if bytes.len() == len {
            return Ok(bytes);
        }
        // What lies behind the image reads as zeroes.
        let mut padded = BytesMut::from(&bytes[..]);
        padded.resize(len, 0);
        Ok(padded.freeze())
    }

    /// The first byte at or after `offset` that is data, or is in a hole; the end of the file counts as a hole.
    pub(super) async fn seek(&self, offset: u64, to_data: bool) -> Result<Option<u64>> {
        let end = self.size();
        if offset >= end {
            return Ok(None);
        }
        // All clusters of a qcow2 file are in use.
        let (image, footer) = match &self.layout {
            FileLayout::Qcow2(_) => (0, 0),
            FileLayout::Vhd(layout) => (layout.image_size(), layout.footer_offset()),
        };
        let found = match (offset < image, to_data) {
            (true, true) => self.image.seek_data(offset).await?,
            (true, false) => {
                let hole = self.image.seek_hole(offset).await?;
                hole.filter(|hole| *hole < image)
            }
            (false, _) => None,
        };
        // From the end of the image to the footer is a hole, if there is room for one.
        Ok(Some(match (found, to_data) {
            (Some(found), _) => found,
            (None, true) => offset.max(footer),
            (None, false) if offset < footer && image < footer => offset.max(image),
            (None, false) => end,
        }))
    }
}

impl Tree {
    /// Whether a folder has the file: a VHD has a largest size.
    pub(super) async fn is_there(&self, subject: &Subject, file: File) -> Result<bool> {
        if file != File::Vhd {
            return Ok(true);
        }
        let (size, _) = self.disk_size(subject, subject.ino()).await?;
        Ok(size <= MOST_VHD_BYTES)
    }

    /// Whether a folder lists the file. It makes no request: where the size is not known, the file is listed, and a lookup tells.
    pub(super) fn is_listed(&self, subject: &Subject, file: File) -> bool {
        let size = self.known(&subject.head).volume_size;
        file != File::Vhd || size.is_none_or(|size| size <= MOST_VHD_BYTES)
    }

    /// Bytes of a VHD or of a VMDK descriptor, and how many of them are held.
    pub(super) async fn formatted_size(&self, subject: &Subject, file: File) -> Result<(u64, u64)> {
        let (size, held) = self.disk_size(subject, subject.ino()).await?;
        if file == File::Vmdk {
            let len = vmdk_descriptor(size, DISK)?.len() as u64;
            return Ok((len, len));
        }
        let layout = VhdLayout::new(size, subject.head.id.as_str())?;
        Ok((layout.size(), held + layout.footer().len() as u64))
    }

    /// The VHD of a snapshot.
    pub(super) async fn vhd_file(&self, subject: &Subject) -> Result<FormattedImage> {
        let image = self.image_of(&subject.head).await?;
        let layout = VhdLayout::new(image.size(), subject.head.id.as_str())?;
        Ok(FormattedImage {
            image,
            layout: FileLayout::Vhd(layout),
        })
    }

    /// The VMDK descriptor of a snapshot.
    pub(super) async fn vmdk_file(&self, subject: &Subject) -> Result<Rendered> {
        let (size, _) = self.disk_size(subject, subject.ino()).await?;
        Ok(Rendered::Whole(vmdk_descriptor(size, DISK)?.into()))
    }

    /// The changed blocks of a pair over the image of its base.
    pub(super) async fn overlay(&self, subject: &Subject) -> Result<FormattedImage> {
        let drawn = self.drawn(subject).await?;
        let layout = self.drawings.overlay(&drawn);
        let layout = self.in_time(subject, layout).await?;
        let image = drawn.image();
        Ok(FormattedImage {
            image: image.ok_or_else(|| Error::new(Kind::Invalid, "no image"))?,
            layout: FileLayout::Qcow2(layout),
        })
    }
}
