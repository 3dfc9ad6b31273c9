//! The one thread that writes blocks to disk and evicts others for them, and its queue.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;
use tracing::trace;

use super::DiskShared;
use super::recency::{Recency, SegmentKey};
use super::slots::{Recorded, SLOT_BYTES, SlotFiles, segment_of};
use crate::block::{Block, BlockIndex, Geometry, ZERO_BLOCK};
use crate::error::{Error, Kind, Result};

/// Most blocks that wait to be written: 16 MiB beyond the budget of memory.
const WAITING: usize = 32;

/// An order to the writer.
#[derive(Debug)]
enum Order {
    Keep(u32, Geometry, BlockIndex, Block),
    Flush(SyncSender<()>),
}

/// Sends orders to the writer. `keep` blocks its thread only if the queue is patient.
#[derive(Clone, Debug)]
pub(super) struct SlotQueue {
    is_patient: bool,
    orders: SyncSender<Order>,
    recency: Arc<Mutex<Recency>>,
}

impl SlotQueue {
    /// Starts the thread; it ends with the last queue.
    pub(super) fn start(shared: Arc<DiskShared>, size: u64, is_patient: bool) -> Result<Self> {
        let (orders, taken) = sync_channel(WAITING);
        let recency = Arc::new(Mutex::new(Recency::new()));
        let writer = SlotWriter {
            shared,
            recency: Arc::clone(&recency),
            size,
            allocated: HashMap::new(),
            used: 0,
            sweep: Some((0, 0)),
        };
        std::thread::Builder::new()
            .name("disk-cache".into())
            .spawn(move || writer.run(&taken))
            .map_err(|error| Error::with_source(Kind::Io, "cannot start a thread", error))?;
        Ok(Self {
            is_patient,
            orders,
            recency,
        })
    }

    /// Queues a block. If the queue is full it drops the block, or waits if it is patient.
    pub(super) fn keep(&self, file: u32, geometry: Geometry, index: BlockIndex, block: &Block) {
        let order = Order::Keep(file, geometry, index, block.clone());
        if self.is_patient {
            let _ = tokio::task::block_in_place(|| self.orders.send(order));
        } else if self.orders.try_send(order).is_err() {
            trace!("the disk cache is behind: block {index} is not kept");
        }
    }

    /// Marks a block as used now.
    pub(super) fn touch(&self, file: u32, index: BlockIndex) {
        self.recency.lock().touch((file, segment_of(index)));
    }

    /// Waits until everything is written.
    pub(super) fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        if self.orders.send(Order::Flush(done)).is_ok() {
            let _ = is_done.recv();
        }
    }
}

struct SlotWriter {
    shared: Arc<DiskShared>,
    recency: Arc<Mutex<Recency>>,
    size: u64,
    /// Disk bytes of each measured file pair.
    allocated: HashMap<u32, u64>,
    /// The sum of `allocated`.
    used: u64,
    /// Where the search for segments of unknown use continues; `None` when there are none.
    sweep: Option<SegmentKey>,
}

impl SlotWriter {
    fn run(mut self, orders: &Receiver<Order>) {
        if let Err(error) = self.measure_all() {
            self.shared.failed(error);
        }
        for order in orders {
            match order {
                Order::Keep(file, geometry, index, block) => {
                    if self.shared.is_off() {
                        continue;
                    }
                    if let Err(error) = self.keep(file, geometry, index, &block) {
                        self.shared.failed(error);
                    }
                }
                Order::Flush(done) => {
                    let _ = done.send(());
                }
            }
        }
    }

    /// Measures the files of earlier runs, and evicts down to the size of this run.
    fn measure_all(&mut self) -> io::Result<()> {
        for file in 0..self.shared.folder.count() {
            if let Some(files) = self.shared.folder.existing(file)? {
                self.measure(file, &files)?;
            }
        }
        self.make_room(0).map(drop)
    }

    fn measure(&mut self, file: u32, files: &SlotFiles) -> io::Result<()> {
        let now = files.allocated()?;
        let before = self.allocated.insert(file, now).unwrap_or(0);
        self.used = self.used.saturating_sub(before).saturating_add(now);
        Ok(())
    }

    fn keep(
        &mut self,
        file: u32,
        geometry: Geometry,
        index: BlockIndex,
        block: &Block,
    ) -> io::Result<()> {
        let (bytes, digest) = match block {
            Block::Data(bytes, digest) => (&bytes[..], *digest),
            // A snapshot without blocks needs no files.
            Block::Zero if !self.shared.folder.has(file) => return Ok(()),
            Block::Zero => (&[][..], ZERO_BLOCK),
        };
        if let Some(files) = self.shared.folder.existing(file)? {
            let wanted = match block {
                Block::Data(..) => Recorded::Data(digest),
                Block::Zero => Recorded::Zero,
            };
            if files.recorded(index)? == wanted {
                return Ok(());
            }
        }
        if !self.make_room(SLOT_BYTES)? {
            return Ok(());
        }
        let files = self.shared.folder.make(file, geometry)?;
        let written = files.write(index, digest, bytes);
        // A partial write takes space too.
        self.measure(file, &files)?;
        written?;
        self.recency.lock().touch((file, segment_of(index)));
        Ok(())
    }

    /// Evicts until `more` bytes fit; false when there is nothing left to evict.
    fn make_room(&mut self, more: u64) -> io::Result<bool> {
        while self.used.saturating_add(more) > self.size {
            let Some((file, segment)) = self.next_victim()? else {
                return Ok(false);
            };
            if let Some(files) = self.shared.folder.existing(file)? {
                files.evict(segment)?;
                self.measure(file, &files)?;
            }
        }
        Ok(true)
    }

    /// First segments of earlier runs that this run has not used, the oldest files first; then the least recently used.
    fn next_victim(&mut self) -> io::Result<Option<SegmentKey>> {
        if self.recency.lock().take_overflow() && self.sweep.is_none() {
            self.sweep = Some((0, 0));
        }
        while let Some((file, from)) = self.sweep {
            if file >= self.shared.folder.count() {
                self.sweep = None;
                break;
            }
            let files = self.shared.folder.existing(file)?;
            let segment = files.map_or(Ok(None), |files| files.next_segment(from))?;
            let Some(segment) = segment else {
                self.sweep = Some((file + 1, 0));
                continue;
            };
            self.sweep = Some((file, segment + 1));
            if !self.recency.lock().contains((file, segment)) {
                return Ok(Some((file, segment)));
            }
        }
        Ok(self.recency.lock().pop_oldest())
    }
}
