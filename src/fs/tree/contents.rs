//! What a file reads as.

use std::sync::Arc;

use bytes::Bytes;

use super::formatted::FormattedImage;
use super::partitions::RangeImage;
use crate::error::Result;
use crate::image::Image;
use crate::maps::Text;

/// What a file reads as.
pub(in crate::fs) enum Contents {
    Image(Arc<Image>),
    /// Parts of an image.
    Ranges(RangeImage),
    Formatted(FormattedImage),
    Rendered(Rendered),
    /// Its bytes can differ at the next opening.
    Description(String),
}

impl Contents {
    /// Whether the bytes stay as they are.
    pub(in crate::fs) fn is_fixed(&self) -> bool {
        !matches!(self, Self::Description(_))
    }

    pub(in crate::fs) async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        match self {
            Self::Image(image) => image.read_at(offset, len).await,
            Self::Ranges(ranges) => ranges.read_at(offset, len).await,
            Self::Formatted(file) => file.read_at(offset, len).await,
            Self::Rendered(rendered) => Ok(rendered.read_at(offset, len)),
            Self::Description(text) => {
                Ok(Rendered::Whole(Bytes::from(text.clone())).read_at(offset, len))
            }
        }
    }

    /// The first byte at or after `offset` that is data, or is in a hole; the end of a file counts as a hole.
    pub(in crate::fs) async fn seek(&self, offset: u64, to_data: bool) -> Result<Option<u64>> {
        let size = match self {
            Self::Image(image) if to_data => return image.seek_data(offset).await,
            Self::Image(image) => return image.seek_hole(offset).await,
            Self::Ranges(ranges) => return ranges.seek(offset, to_data).await,
            Self::Formatted(file) => return file.seek(offset, to_data).await,
            Self::Rendered(rendered) => rendered.size(),
            Self::Description(text) => text.len() as u64,
        };
        let found = if to_data { offset } else { size };
        Ok((offset < size).then_some(found))
    }
}

/// A map, drawn.
#[derive(Clone)]
pub(in crate::fs) enum Rendered {
    /// Generated while it is read.
    Text(Arc<Text>),
    /// Small, whatever the volume's size.
    Whole(Bytes),
}

impl Rendered {
    /// Bytes of memory that it takes besides the map.
    pub(in crate::fs) fn memory(&self) -> usize {
        match self {
            Self::Text(text) => text.memory(),
            Self::Whole(bytes) => bytes.len(),
        }
    }

    pub(in crate::fs) fn size(&self) -> u64 {
        match self {
            Self::Text(text) => text.size(),
            Self::Whole(bytes) => bytes.len() as u64,
        }
    }

    pub(in crate::fs) fn read_at(&self, offset: u64, len: usize) -> Bytes {
        match self {
            Self::Text(text) => text.read_at(offset, len),
            Self::Whole(bytes) => {
                let at = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
                let start = at(offset).min(bytes.len());
                bytes.slice(start..start.saturating_add(len).min(bytes.len()))
            }
        }
    }
}
