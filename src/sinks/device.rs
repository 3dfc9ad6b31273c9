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
    /// Which device this is, whatever it is called today: its WWN, serial number, UUID or backing file, where in it this is,
    /// and its size.
    ///
    /// # Errors
    /// `Invalid` when it is no block device or nothing tells it from others.
    pub fn identity(path: &Path) -> Result<String> {
        let file =
            File::open(path).map_err(|error| Error::of_file(path, "cannot look at", error))?;
        identity_of(path, &file)
    }

    /// What changes whenever anything is written to it, as far as the kernel tells: how much was written since the machine
    /// was started. After a start nobody knows.
    pub fn written_so_far(path: &Path) -> Option<String> {
        let metadata = std::fs::metadata(path).ok()?;
        let folder = sysfs(&metadata)?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        // Fields 5 and 7 of stat: writes, sectors written (kernel.org, block/stat); discards and flushes follow.
        let stat = read(&folder, "stat")?;
        let written: Vec<&str> = stat.split_whitespace().skip(4).take(3).step_by(2).collect();
        let number = read(&folder, "diskseq").or_else(|| read(folder.parent()?, "diskseq"));
        let number = number.unwrap_or_default();
        Some(format!("{} {number} {}", boot.trim(), written.join(" ")))
    }

    /// Opens a device for this run alone.
    ///
    /// # Errors
    /// `Io` when it is mounted or in use, `Invalid` when it is too small or cannot be told from others.
    pub fn open(path: &Path, geometry: Geometry) -> Result<Self> {
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
        let id = identity_of(path, &file)?;
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
            let disk = DiskSource::open_past_cache(self.raw.path(), self.raw.geometry())?;
            Ok(Arc::new(disk) as Arc<dyn BlockSource>)
        }
        .boxed()
    }

    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        self.raw.flush().boxed()
    }
}

/// The folder of a device in sysfs.
fn sysfs(metadata: &std::fs::Metadata) -> Option<PathBuf> {
    let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
    let folder = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    folder.canonicalize().ok()
}

fn identity_of(path: &Path, file: &File) -> Result<String> {
    let failed = |error| Error::of_file(path, "cannot look at", error);
    let wrong = |what: &str| {
        Err(Error::new(
            Kind::Invalid,
            format!("{} {what}", path.display()),
        ))
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.file_type().is_block_device() {
        return wrong("is no block device");
    }
    let size = size_of(path, file)?;
    let Some(folder) = sysfs(&metadata) else {
        return wrong("is not known to the system");
    };
    // A partition's folder is within that of its disk.
    let (disk, part) = match (read(&folder, "partition"), folder.parent()) {
        (Some(number), Some(disk)) => {
            let start = read(&folder, "start").unwrap_or_default();
            (disk, format!(":partition={number}:start={start}"))
        }
        _ => (&*folder, String::new()),
    };
    let stable = [
        "wwid",
        "device/wwid",
        "device/serial",
        "serial",
        "dm/uuid",
        "md/uuid",
    ];
    let name = stable
        .iter()
        .find_map(|file| Some(format!("{file}={}", read(disk, file)?)))
        .or_else(|| loop_file(disk));
    match name {
        Some(name) => Ok(format!("device:{name}{part}:size={size}")),
        None => wrong(
            "has no WWN, serial number or UUID: nothing tells it from another device tomorrow",
        ),
    }
}

/// A loop device's backing file: which one it is, and where in it the device begins.
fn loop_file(disk: &Path) -> Option<String> {
    let file = read(disk, "loop/backing_file")?;
    let metadata = std::fs::metadata(&file).ok()?;
    let offset = read(disk, "loop/offset").unwrap_or_default();
    let (device, inode) = (metadata.dev(), metadata.ino());
    Some(format!(
        "loop={file}:inode={device}.{inode}:offset={offset}"
    ))
}

/// A line of sysfs; none when there is no such file or nothing in it.
fn read(folder: &Path, file: &str) -> Option<String> {
    let text = std::fs::read_to_string(folder.join(file)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
