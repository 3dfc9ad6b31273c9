//! [`OpenFile`]: the contents of an open file, and for an image the two log lines that record its reader and the bytes read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use tracing::debug;

use super::tree::Contents;
use crate::error::Result;

/// Who opened a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    pub(super) uid: u32,
    /// Process id; 0 for a process in a PID namespace that this process does not see.
    pub(super) pid: u32,
}

impl std::fmt::Display for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", self.pid));
        // Any process chooses its own name.
        let command = comm.map_or("unknown".into(), |name| {
            name.trim_end().escape_default().to_string()
        });
        write!(f, "uid {}, pid {} ({command})", self.uid, self.pid)
    }
}

/// Data for the line that the log gets when an image is closed.
#[derive(Debug)]
struct OpenRecord {
    image: String,
    reader: String,
    opened: Instant,
    bytes: AtomicU64,
    reads: AtomicU64,
}

/// An open file. It keeps its contents while caches drop theirs.
pub(super) struct OpenFile {
    pub(super) contents: Contents,
    record: Option<OpenRecord>,
}

impl OpenFile {
    /// Logs the opening of an image at debug level; `provenance` is called only if the log shows that level.
    pub(super) fn new(
        contents: Contents,
        reader: Reader,
        provenance: impl FnOnce() -> Option<String>,
    ) -> Self {
        let shown = tracing::enabled!(tracing::Level::DEBUG);
        let record = shown.then(provenance).flatten().map(|image| {
            let reader = reader.to_string();
            debug!("opened {image} by {reader}");
            OpenRecord {
                image,
                reader,
                opened: Instant::now(),
                bytes: AtomicU64::new(0),
                reads: AtomicU64::new(0),
            }
        });
        Self { contents, record }
    }

    pub(super) async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let bytes = self.contents.read_at(offset, len).await?;
        if let Some(record) = &self.record {
            record.reads.fetch_add(1, Ordering::Relaxed);
            let read = bytes.len() as u64;
            record.bytes.fetch_add(read, Ordering::Relaxed);
        }
        Ok(bytes)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(record) = &self.record {
            debug!(
                "closed {} by {}: {} bytes in {} reads of the kernel, open for {:.1} s",
                record.image,
                record.reader,
                record.bytes.load(Ordering::Relaxed),
                record.reads.load(Ordering::Relaxed),
                record.opened.elapsed().as_secs_f64()
            );
        }
    }
}
