//! `snapshots/ID/partitions/`: partitions and LVM volumes as files that are ranges of the image, and `partitions.json`.
//!
//! The table is read when something looks into the folder, and only then: it costs the first block of the disk and the first block
//! of each partition. So a snapshot's folder does not list `partitions`: `find` and `ls -R` over all snapshots would fetch blocks
//! of each of them. The name can always be looked up.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::attributes::held_bytes;
use super::contents::{Contents, Rendered};
use super::names::{self, DESCRIPTION, PARTITIONS};
use super::nodes::{Node, TreeSnapshot};
use super::{Attributes, FileKind, FolderEntry, LISTING_GRACE, Tree};
use crate::error::{Error, Kind, Result};
use crate::image::Image;
use crate::snapshot::SnapshotId;
use crate::volumes::{ByteRange, VolumeView, WHOLE_DISK, describe, locate, read_table};

/// Tables that are kept: some KB each, at most 1 MB.
const MOST_TABLES: usize = 32;
/// Tables that are read at once, each on a thread that waits for blocks.
const MOST_READS: usize = 4;
/// Ranges that one seek looks into; behind them data is reported, which may be a hole.
const MOST_SEEKS: usize = 64;

/// The partitions of one snapshot.
struct DiskTable {
    views: Vec<VolumeView>,
    /// `partitions.json`.
    description: Bytes,
}

/// A table being read, or read. The work continues when no caller waits for it.
type TableReading = Shared<BoxFuture<'static, Result<Arc<DiskTable>>>>;

/// The tables that are kept.
pub(super) struct KeptTables {
    tables: Mutex<LruCache<SnapshotId, TableReading>>,
    turns: Arc<Semaphore>,
}

impl KeptTables {
    pub(super) fn new() -> Self {
        Self {
            tables: Mutex::new(LruCache::unbounded()),
            turns: Arc::new(Semaphore::new(MOST_READS)),
        }
    }

    /// The table of a snapshot: kept, being read, or read from now on. One that could not be read is read again.
    fn of(&self, id: &SnapshotId, image: &Arc<Image>) -> TableReading {
        let mut tables = self.tables.lock();
        let known = tables
            .get(id)
            .filter(|known| !matches!(known.peek(), Some(Err(_))));
        if let Some(known) = known {
            return known.clone();
        }
        let reading = read(Arc::clone(image), Arc::clone(&self.turns));
        tables.put(id.clone(), reading.clone());
        while tables.len() > MOST_TABLES {
            tables.pop_lru();
        }
        reading
    }

    fn kept(&self, id: &SnapshotId) -> Option<Arc<DiskTable>> {
        match self.tables.lock().get(id)?.peek() {
            Some(Ok(table)) => Some(Arc::clone(table)),
            _ => None,
        }
    }
}

/// Reads a table on a thread of its own: the parser is no async code.
fn read(image: Arc<Image>, turns: Arc<Semaphore>) -> TableReading {
    let runtime = Handle::current();
    let work = async move {
        let stopped = |error| Error::with_source(Kind::Io, "stopped while reading a table", error);
        // Nothing closes it.
        let _turn = turns.acquire_owned().await.ok();
        let reading = tokio::task::spawn_blocking(move || table(&image, &runtime)).await;
        reading.map_err(stopped).flatten()
    };
    let task = tokio::spawn(work);
    async move {
        let stopped = |error| Error::with_source(Kind::Io, "stopped while reading a table", error);
        task.await.map_err(stopped).flatten()
    }
    .boxed()
    .shared()
}

fn table(image: &Image, runtime: &Handle) -> Result<Arc<DiskTable>> {
    let read = |offset: u64, len: usize| {
        let read = runtime.block_on(image.read_at(offset, len));
        read.map(|bytes| bytes.to_vec())
            .map_err(std::io::Error::other)
    };
    let layout = read_table(&read, image.size()).map_err(|error| {
        let own = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Error>());
        own.cloned()
            .unwrap_or_else(|| Error::with_source(Kind::Io, "cannot read a table", error))
    })?;
    let mut views = layout.views();
    // The whole disk is shown beside this folder.
    views.retain(|view| view.file != WHOLE_DISK);
    Ok(Arc::new(DiskTable {
        views,
        description: describe(&layout).into(),
    }))
}

/// A file of the folder.
pub(super) struct PartitionNode {
    pub(super) head: Arc<TreeSnapshot>,
    pub(super) name: String,
    kind: PartitionFile,
}

enum PartitionFile {
    Ranges(Arc<[ByteRange]>),
    Description(Bytes),
}

impl PartitionNode {
    pub(super) fn ino(&self) -> u64 {
        names::partition_inode(&self.head.id, &self.name)
    }

    /// Whether it shows bytes of the disk.
    pub(super) fn is_image(&self) -> bool {
        matches!(self.kind, PartitionFile::Ranges(_))
    }

    fn size(&self) -> u64 {
        match &self.kind {
            PartitionFile::Ranges(ranges) => ranges.iter().map(|range| range.size).sum(),
            PartitionFile::Description(text) => text.len() as u64,
        }
    }
}

impl Tree {
    /// The table of a snapshot. A reader waits no longer than for any other request; the read continues, and the next reader joins
    /// it.
    async fn table_of(&self, head: &TreeSnapshot) -> Result<Arc<DiskTable>> {
        if let Some(table) = self.tables.kept(&head.id) {
            return Ok(table);
        }
        let work = async {
            let image = self.image_of(head).await?;
            self.tables.of(&head.id, &image).await
        };
        timeout(self.timeout + LISTING_GRACE, work)
            .await
            .unwrap_or_else(|_| {
                let id = &head.id;
                let what = format!(
                    "the partition table of {id} is still being read: try again, the read continues"
                );
                Err(Error::new(Kind::Pending, what))
            })
    }

    /// A file of the folder by its name.
    pub(super) async fn partition(
        &self,
        head: &Arc<TreeSnapshot>,
        name: &str,
    ) -> Result<Option<Node>> {
        let table = self.table_of(head).await?;
        let kind = if name == DESCRIPTION {
            PartitionFile::Description(table.description.clone())
        } else {
            let Some(view) = table.views.iter().find(|view| view.file == name) else {
                return Ok(None);
            };
            PartitionFile::Ranges(view.ranges.clone().into())
        };
        Ok(Some(Node::Partition(Arc::new(PartitionNode {
            head: Arc::clone(head),
            name: name.to_owned(),
            kind,
        }))))
    }

    /// The names in the folder.
    pub(super) async fn partition_lines(&self, head: &TreeSnapshot) -> Result<Vec<FolderEntry>> {
        let table = self.table_of(head).await?;
        let files = table.views.iter().map(|view| view.file.as_str());
        let names = files.chain([DESCRIPTION]);
        Ok(names
            .map(|name| {
                let ino = names::partition_inode(&head.id, name);
                FolderEntry::new(ino, FileKind::Regular, name)
            })
            .collect())
    }

    /// What `stat` shows of a file of the folder.
    pub(super) fn partition_attributes(&self, node: &PartitionNode) -> Attributes {
        let size = node.size();
        let held = match node.is_image() {
            true => held_bytes(size, None),
            false => size,
        };
        let start = self.known(&node.head).start_time;
        let (time, fixed) = (start.unwrap_or(self.mounted), start.is_some());
        Attributes::regular(node.ino(), self.ownership, (size, held), time, fixed)
    }

    pub(super) async fn partition_contents(&self, node: &PartitionNode) -> Result<Contents> {
        Ok(match &node.kind {
            PartitionFile::Description(text) => Contents::Rendered(Rendered::Whole(text.clone())),
            PartitionFile::Ranges(ranges) => Contents::Ranges(RangeImage {
                image: self.image_of(&node.head).await?,
                ranges: Arc::clone(ranges),
            }),
        })
    }
}

/// The path of the folder within that of the snapshot, for the log.
pub(super) fn path_of(node: &PartitionNode) -> String {
    format!("{}/{PARTITIONS}/{}", node.head.id, node.name)
}

/// Ranges of an image as one file. The blocks, and what is read ahead of a reader, are those of the image.
pub(in crate::fs) struct RangeImage {
    image: Arc<Image>,
    ranges: Arc<[ByteRange]>,
}

impl RangeImage {
    fn size(&self) -> u64 {
        self.ranges.iter().map(|range| range.size).sum()
    }

    /// The bytes from `offset`, `len` of them or as many as there are before the end.
    ///
    /// # Errors
    /// As for [`Image::read_at`].
    pub(super) async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let mut bytes = BytesMut::new();
        loop {
            let read = bytes.len();
            let place = locate(&self.ranges, offset.saturating_add(read as u64));
            let Some((at, left)) = place.filter(|_| read < len) else {
                return Ok(bytes.freeze());
            };
            let wanted = (len - read).min(usize::try_from(left).unwrap_or(usize::MAX));
            let piece = self.image.read_at(at, wanted).await?;
            if read == 0 && wanted == len {
                return Ok(piece);
            }
            // Each range lies within the image: no read of it is short.
            if piece.is_empty() {
                return Err(Error::new(
                    Kind::Corrupt,
                    "a range of the image is beyond its end",
                ));
            }
            bytes.extend_from_slice(&piece);
        }
    }

    /// The first byte at or after `offset` that is data, or is in a hole, as [`Image::seek_data`] and [`Image::seek_hole`] find it.
    ///
    /// # Errors
    /// Why it is unknown now.
    pub(super) async fn seek(&self, offset: u64, to_data: bool) -> Result<Option<u64>> {
        let mut at = offset;
        for _ in 0..MOST_SEEKS {
            let Some((place, left)) = locate(&self.ranges, at) else {
                break;
            };
            let found = match to_data {
                true => self.image.seek_data(place).await?,
                false => self.image.seek_hole(place).await?,
            };
            match found.and_then(|found| found.checked_sub(place)) {
                Some(skip) if skip < left => return Ok(Some(at + skip)),
                _ => at += left,
            }
        }
        let size = self.size();
        Ok(match to_data {
            true => (at < size).then_some(at),
            // The end of the file is a hole.
            false => (offset < size).then_some(at.min(size)),
        })
    }
}

#[cfg(test)]
mod tests;
