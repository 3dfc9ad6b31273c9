//! The bytes of the files that are copied. The walk runs ahead of the copy: each small file would wait for its block alone.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::ftruncate;

use super::super::view::{BlocksAhead, FileReading, FileView, SpanPage};
use super::super::walk::{TreeWalk, WalkItem};
use super::super::{FsData, FsNode, FsSpan, NodeKind};
use super::{TreeCopy, failed};
use crate::error::Result;

/// Blocks of files whose turn comes, at most: the cache has room for 64 that are not read yet.
const BLOCKS_AHEAD: usize = 48;
/// Such files and folders, at most: 4 KiB each are 16 blocks.
const ITEMS_AHEAD: usize = 2048;
/// Bytes of what is known of them, at most.
const BYTES_AHEAD: usize = 16 << 20;
/// Bytes of a file that is requested before its turn, at most. A larger one has enough to be requested at once.
const SMALL: u64 = 8 << 20;

/// What the walk has found. Of a small file: where its bytes are, which are on their way, or why that is unknown.
pub(super) struct ItemAhead {
    pub(super) item: WalkItem,
    pub(super) page: Option<Result<SpanPage>>,
    /// Its blocks that the file before it does not have.
    blocks: usize,
}

impl ItemAhead {
    /// Whether it has all the room for itself: the walk waits until its turn.
    fn is_large(&self) -> bool {
        let is_large = |node: &FsNode| node.kind == NodeKind::Regular && node.size > SMALL;
        self.item.node.as_ref().is_ok_and(is_large)
    }

    /// Memory that it takes, about.
    fn bytes(&self) -> usize {
        let spans = match &self.page {
            Some(Ok((spans, _))) => spans.len() * size_of::<FsSpan>(),
            _ => 0,
        };
        self.item.path.len() + spans
    }
}

/// A walk that runs ahead of its reader.
pub(super) struct WalkAhead {
    walk: TreeWalk,
    found: VecDeque<ItemAhead>,
    blocks: BlocksAhead,
    bytes: usize,
    /// How the walk ended: with an error, which comes after all that was found before it.
    end: Option<Result<()>>,
}

impl WalkAhead {
    pub(super) fn new(walk: TreeWalk) -> Self {
        Self {
            walk,
            found: VecDeque::new(),
            blocks: BlocksAhead::default(),
            bytes: 0,
            end: None,
        }
    }

    /// Passes over what is in a folder, the one that was returned last.
    pub(super) fn skip(&mut self, folder: &WalkItem) {
        if let Ok(node) = &folder.node
            && node.kind == NodeKind::Folder
        {
            self.walk.leave(node.id);
        }
        while self
            .found
            .front()
            .is_some_and(|found| found.item.depth > folder.depth)
        {
            self.pop();
        }
    }

    /// As [`TreeWalk::next`].
    pub(super) async fn next(&mut self, view: &mut FileView) -> Result<Option<ItemAhead>> {
        while self.end.is_none() && self.has_room() {
            match self.walk.next(view).await {
                Ok(Some(item)) => {
                    let found = self.look_at(view, item).await;
                    self.bytes += found.bytes();
                    self.found.push_back(found);
                }
                Ok(None) => self.end = Some(Ok(())),
                Err(error) => self.end = Some(Err(error)),
            }
        }
        match self.pop() {
            Some(found) => Ok(Some(found)),
            None => self.end.take().unwrap_or(Ok(())).map(|()| None),
        }
    }

    fn has_room(&self) -> bool {
        let is_behind_large = self.found.back().is_some_and(ItemAhead::is_large);
        !is_behind_large
            && self.found.len() < ITEMS_AHEAD
            && self.blocks.count() < BLOCKS_AHEAD
            && self.bytes < BYTES_AHEAD
    }

    fn pop(&mut self) -> Option<ItemAhead> {
        let found = self.found.pop_front()?;
        self.blocks.remove(found.blocks);
        self.bytes -= found.bytes();
        Some(found)
    }

    /// Requests the bytes of a small file.
    async fn look_at(&mut self, view: &mut FileView, item: WalkItem) -> ItemAhead {
        let file = item.node.as_ref().ok();
        let is_small =
            |node: &&FsNode| node.kind == NodeKind::Regular && (1..=SMALL).contains(&node.size);
        let (page, blocks) = match file.filter(is_small).map(FsNode::data) {
            Some(data) => {
                let (page, blocks) = view.request(&data, SMALL, &mut self.blocks).await;
                (Some(page), blocks)
            }
            None => (None, 0),
        };
        ItemAhead { item, page, blocks }
    }
}

impl TreeCopy<'_> {
    /// Writes the bytes of a file or stream.
    pub(super) async fn fill(
        &mut self,
        file: &File,
        data: &FsData,
        page: Option<SpanPage>,
    ) -> Result<()> {
        let mut reading = match page {
            Some(page) => FileReading::with_page(data.clone(), page),
            None => FileReading::new(data.clone()),
        };
        while let Some(piece) = reading.next(self.view).await? {
            if let Some(bytes) = piece.bytes {
                file.write_all_at(&bytes, piece.offset)
                    .map_err(|error| failed("cannot write it", error))?;
                self.report.bytes += piece.len;
            }
        }
        // A hole at the end.
        ftruncate(file, data.size).map_err(|error| failed("cannot set its size", error))
    }
}
