//! [`ImageLayout`]: where the blocks of a volume are in the file of an image, and what else is in it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::super::raw::BlockPlaces;
use crate::block::{BLOCK_SIZE, Delta, Geometry};
use crate::error::{Error, Kind, Result};
use crate::files::blocking;
use crate::formats::{
    FileLayout, ImageFormat, PackedQcow2, Piece, Qcow2Layout, Qcow2Source, VhdLayout,
};
use crate::source::{BlockSource, DiskSource};
use crate::target::SourceInfo;

/// Bytes of a sector: a flat VMDK has whole ones.
const SECTOR: u64 = 512;

/// The file of an image.
#[derive(Clone, Debug)]
pub(super) struct ImageLayout {
    format: ImageFormat,
    geometry: Geometry,
    /// What is in the file besides the volume; none of a raw or flat file.
    file: Option<FileLayout>,
    /// The compressed blocks of a qcow2 image.
    packed: Option<Arc<PackedQcow2>>,
}

/// Whether blocks are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockPacking {
    /// Not compressed.
    None,
    /// Compressed. A resumed run appends at this offset of the file; a new image has none.
    From(Option<u64>),
}

impl ImageLayout {
    /// The layout of a plan's image.
    ///
    /// # Errors
    /// `Invalid` where the format cannot hold it: a volume that is too large, a delta.
    pub(super) fn of(
        format: ImageFormat,
        packing: BlockPacking,
        plan: &Delta,
        source: &SourceInfo,
    ) -> Result<Self> {
        let geometry = plan.head();
        let mut packed = None;
        let file = match format {
            ImageFormat::Raw | ImageFormat::Vmdk => None,
            ImageFormat::Vhd => {
                let layout = VhdLayout::new(geometry.size(), &source.name)?;
                Some(FileLayout::Vhd(layout))
            }
            ImageFormat::Qcow2 if plan.base().is_some() => {
                let what = "a qcow2 image takes all blocks, not what changed";
                return Err(Error::new(Kind::Invalid, what));
            }
            ImageFormat::Qcow2 => Some(FileLayout::Qcow2(match packing {
                BlockPacking::None => Arc::new(Qcow2Layout::new(plan, None)),
                BlockPacking::From(end) => {
                    let layout = Arc::new(Qcow2Layout::packed(plan));
                    packed = Some(Arc::new(PackedQcow2::new(Arc::clone(&layout), end)));
                    layout
                }
            })),
        };
        Ok(Self {
            format,
            geometry,
            file,
            packed,
        })
    }

    /// Bytes of the file.
    pub(super) fn file_size(&self) -> u64 {
        if let Some(packed) = &self.packed {
            return packed.size();
        }
        match (&self.file, self.format) {
            (Some(file), _) => file.size(),
            (None, ImageFormat::Vmdk) => self.geometry.size().next_multiple_of(SECTOR),
            (None, _) => self.geometry.size(),
        }
    }

    /// Bytes at the start of a file of the same format that are those of the volume of a base: a delta starts from them.
    pub(super) fn clone_size(&self, base: Geometry) -> u64 {
        match self.format {
            ImageFormat::Raw => self.geometry.size(),
            // Behind the volume are zeroes, and of a VHD the footer.
            _ => self.geometry.size().min(base.size()),
        }
    }

    /// Where blocks are in the file.
    pub(super) fn places(&self) -> BlockPlaces {
        match (&self.file, &self.packed) {
            (_, Some(packed)) => BlockPlaces::Packed(Arc::clone(packed)),
            (Some(FileLayout::Qcow2(layout)), None) => BlockPlaces::Qcow2(Arc::clone(layout)),
            _ => BlockPlaces::Own,
        }
    }

    /// Writes what the file has besides the volume, where it is not there yet, and flushes it. It follows from the plan alone, so
    /// it is written before the blocks and never again.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn write_tables(&self, path: &Path, file: &File) -> Result<()> {
        let Some(layout) = &self.file else {
            return Ok(());
        };
        let ranges = match layout {
            FileLayout::Vhd(vhd) => std::iter::once(vhd.footer_offset()..vhd.size()).collect(),
            FileLayout::Qcow2(qcow2) => qcow2.fixed(),
        };
        let failed = |error| Error::of_file(path, "cannot write", error);
        let mut wrote = false;
        let mut there = vec![0; BLOCK_SIZE as usize];
        for range in ranges {
            let mut at = range.start;
            while at < range.end {
                let len = usize::try_from(range.end - at).unwrap_or(usize::MAX);
                let Some(Piece::Bytes(bytes)) = layout.piece(at, len.min(there.len())) else {
                    break;
                };
                let there = there.get_mut(..bytes.len()).unwrap_or_default();
                file.read_exact_at(there, at).map_err(failed)?;
                // A hole stays one.
                if there != &bytes[..] {
                    file.write_all_at(&bytes, at).map_err(failed)?;
                    wrote = true;
                }
                at += bytes.len() as u64;
            }
        }
        match wrote {
            true => file.sync_data().map_err(failed),
            false => Ok(()),
        }
    }
}

/// How an image is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImageReading {
    /// A block whose place is wrong is an error.
    Strict,
    /// Such a block reads as something that no block is.
    HalfWritten,
}

/// The volume in an image of this machine, by the tables of its format, past every cache.
///
/// # Errors
/// Why it cannot be read.
pub(super) async fn read_image(
    format: ImageFormat,
    reading: ImageReading,
    path: &Path,
    geometry: Geometry,
) -> Result<Arc<dyn BlockSource>> {
    let path = path.to_owned();
    blocking(move || {
        Ok(match format {
            ImageFormat::Qcow2 => {
                let source = Qcow2Source::open_past_cache(&path, geometry)?;
                Arc::new(match reading {
                    ImageReading::Strict => source,
                    ImageReading::HalfWritten => source.half_written(),
                }) as Arc<dyn BlockSource>
            }
            _ => Arc::new(DiskSource::open_past_cache(&path, geometry)?),
        })
    })
    .await
}
