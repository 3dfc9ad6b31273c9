//! [`DeviceSink`]: a block device, which nothing else may use meanwhile.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use bytesize::ByteSize;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::sys::stat::{major, minor};
use serde_json::Value;

use super::raw::Raw;
use crate::block::{BlockIndex, Digest, Extent, Geometry};
use crate::disk::{DiskSource, size_of};
use crate::error::{Error, Kind, Result};
use crate::sink::Sink;
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
    /// Which device this is, whatever it is called today: its WWN, serial number, UUID or backing file, its partition and
    /// its size.
    ///
    /// # Errors
    /// `Invalid` when it is no block device or nothing tells it from others.
    pub fn identity(path: &Path) -> Result<String> {
        let failed = |error| Error::of_file(path, "cannot look at", error);
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.file_type().is_block_device() {
            let what = format!("{} is no block device", path.display());
            return Err(Error::new(Kind::Invalid, what));
        }
        let size = size_of(path, &File::open(path).map_err(failed)?)?;
        let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
        let folder = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let folder = folder.canonicalize().map_err(failed)?;
        let partition = read(&folder, "partition");
        // A partition's folder is within that of its disk.
        let disk = match (&partition, folder.parent()) {
            (Some(_), Some(disk)) => disk,
            _ => &folder,
        };
        let name = [
            "wwid",
            "device/wwid",
            "device/serial",
            "serial",
            "dm/uuid",
            "md/uuid",
            "loop/backing_file",
        ]
        .iter()
        .find_map(|file| Some(format!("{file}={}", read(disk, file)?)));
        let Some(name) = name else {
            let what = format!(
                "{} has no WWN, serial number or UUID: nothing tells it from another device tomorrow",
                path.display()
            );
            return Err(Error::new(Kind::Invalid, what));
        };
        let partition = partition.map_or(String::new(), |number| format!(":partition={number}"));
        Ok(format!("device:{name}{partition}:size={size}"))
    }

    /// Opens a device for this run alone.
    ///
    /// # Errors
    /// `Io` when it is mounted or in use, `Invalid` when it is too small or cannot be told from others.
    pub fn open(path: &Path, geometry: Geometry) -> Result<Self> {
        let id = Self::identity(path)?;
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
        let size = size_of(path, &file)?;
        if size < geometry.size() {
            let what = format!(
                "{} has {}, the volume {}: it does not fit",
                path.display(),
                ByteSize::b(size),
                ByteSize::b(geometry.size())
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        Ok(Self {
            id,
            raw: Raw::device(path, file, geometry),
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
            Ok(Value::Null)
        }
        .boxed()
    }

    fn read_back(&self) -> BoxFuture<'_, Result<Arc<dyn BlockSource>>> {
        async {
            let disk = DiskSource::open_past_cache(self.raw.path())?;
            Ok(Arc::new(disk) as Arc<dyn BlockSource>)
        }
        .boxed()
    }

    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        self.raw.flush().boxed()
    }
}

/// A line of sysfs; none when there is no such file or nothing in it.
fn read(folder: &Path, file: &str) -> Option<String> {
    let text = std::fs::read_to_string(folder.join(file)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
