//! [`DeviceSink`]: a block device, which nothing else may use meanwhile.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use bytesize::ByteSize;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::identity;
use super::raw::{self, Raw};
use crate::block::{BlockIndex, Digest, Extent, Geometry};
use crate::disk::{DiskSource, size_of};
use crate::error::{Error, Kind, Result};
use crate::sink::{Sink, Written};
use crate::source::BlockSource;

/// A block device being written.
pub struct DeviceSink {
    id: String,
    raw: Raw,
}

impl std::fmt::Debug for DeviceSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceSink({})", self.id)
    }
}

impl DeviceSink {
    /// Whether a volume fits; the device is only looked at.
    ///
    /// # Errors
    /// `Invalid` when it does not.
    pub fn check_size(path: &Path, geometry: Geometry) -> Result<()> {
        let failed = |error| Error::of_file(path, "cannot look at", error);
        fits(path, &File::open(path).map_err(failed)?, geometry)
    }

    /// Opens a device for this run alone, and has `name` put on record that it is going to be changed. Nothing is written yet.
    ///
    /// # Errors
    /// `Io` when it is mounted or in use, `Invalid` when it is too small or cannot be told from others.
    pub fn open(
        path: &Path,
        geometry: Geometry,
        name: impl FnOnce(&str, Value) -> Result<()>,
    ) -> Result<Self> {
        // O_EXCL on a block device without O_CREAT: EBUSY if it is mounted or held by anything (open(2)).
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_EXCL)
            .open(path)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::ResourceBusy => {
                    let what = format!("{} is mounted or in use", path.display());
                    Error::with_source(Kind::Io, what, error)
                }
                _ => Error::of_file(path, "cannot write", error),
            })?;
        // Of what was opened, not of what the name says now.
        let id = identity::of_open(path, &file)?;
        fits(path, &file, geometry)?;
        name(&id, state(path))?;
        Ok(Self {
            id,
            raw: Raw::new(path, file, geometry, raw::Kind::Device),
        })
    }
}

impl Sink for DeviceSink {
    fn id(&self) -> &str {
        &self.id
    }

    fn write_block(
        &self,
        index: BlockIndex,
        bytes: Bytes,
        _digest: Digest,
    ) -> BoxFuture<'_, Result<()>> {
        self.raw.write_block(index, bytes).boxed()
    }

    fn write_zeroes(&self, extent: Extent) -> BoxFuture<'_, Result<()>> {
        self.raw.write_zeroes(extent).boxed()
    }

    fn flush(&self) -> BoxFuture<'_, Result<Value>> {
        async {
            self.raw.flush().await?;
            Ok(state(self.raw.path()))
        }
        .boxed()
    }

    fn read_back(&self) -> BoxFuture<'_, Result<Option<Arc<dyn BlockSource>>>> {
        async {
            let disk = DiskSource::open_past_cache(self.raw.path(), self.raw.geometry())?;
            Ok(Some(Arc::new(disk) as Arc<dyn BlockSource>))
        }
        .boxed()
    }

    fn finish(&self, _written: Written) -> BoxFuture<'_, Result<()>> {
        self.raw.flush().boxed()
    }
}

/// What tells whether it was written since.
fn state(path: &Path) -> Value {
    json!({"mark": identity::mark_of(path)})
}

fn fits(path: &Path, file: &File, geometry: Geometry) -> Result<()> {
    let size = size_of(path, file)?;
    if size < geometry.size() {
        let what = format!(
            "{} has {}, the volume {}: it does not fit",
            path.display(),
            ByteSize::b(size),
            ByteSize::b(geometry.size())
        );
        return Err(Error::new(Kind::Invalid, what));
    }
    Ok(())
}
