//! The bytes of the files that are copied. The walk runs ahead of the copy: each small file would wait for its block alone.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::ftruncate;

use super::super::view::{FileReading, FileView, SpanPage};
use super::super::walk::{TreeWalk, WalkItem};
use super::super::{FsData, FsNode, NodeKind};
use super::{TreeCopy, failed};
use crate::error::Result;

/// Blocks of files whose turn comes, at most: the cache has room for 64 that are not read yet.
const BLOCKS_AHEAD: usize = 48;
/// Such files and folders, at most. Many small files share a block.
const ITEMS_AHEAD: usize = 512;
/// Bytes of a file that is requested before its turn, at most. A larger one has enough to be requested at once.
const SMALL: u64 = 8 << 20;

/// What the walk has found. Of a small file: where its bytes are, which are on their way, or why that is unknown.
pub(super) struct ItemAhead {
    pub(super) item: WalkItem,
    pub(super) page: Option<Result<SpanPage>>,
    blocks: usize,
}

/// A walk that runs ahead of its reader.
pub(super) struct WalkAhead {
    walk: TreeWalk,
    found: VecDeque<ItemAhead>,
    blocks: usize,
    /// How the walk ended: with an error, which comes after all that was found before it.
    end: Option<Result<()>>,
}

impl WalkAhead {
    pub(super) fn new(walk: TreeWalk) -> Self {
        Self {
            walk,
            found: VecDeque::new(),
            blocks: 0,
            end: None,
        }
    }

    /// Passes over what is in a folder, the one that was returned last.
    pub(super) fn skip(&mut self, folder: &WalkItem) {
        if let Ok(node) = &folder.node {
            self.walk.leave(node.id);
        }
        while let Some(found) = self
            .found
            .pop_front_if(|found| found.item.depth > folder.depth)
        {
            self.blocks -= found.blocks;
        }
    }

    /// As [`TreeWalk::next`].
    pub(super) async fn next(&mut self, view: &mut FileView) -> Result<Option<ItemAhead>> {
        while self.end.is_none() && self.found.len() < ITEMS_AHEAD && self.blocks < BLOCKS_AHEAD {
            match self.walk.next(view).await {
                Ok(Some(item)) => {
                    let found = look_at(view, item).await;
                    self.blocks += found.blocks;
                    self.found.push_back(found);
                }
                Ok(None) => self.end = Some(Ok(())),
                Err(error) => self.end = Some(Err(error)),
            }
        }
        match self.found.pop_front() {
            Some(found) => {
                self.blocks -= found.blocks;
                Ok(Some(found))
            }
            None => self.end.take().unwrap_or(Ok(())).map(|()| None),
        }
    }
}

/// Requests the bytes of a small file.
async fn look_at(view: &mut FileView, item: WalkItem) -> ItemAhead {
    let is_small =
        |node: &&FsNode| node.kind == NodeKind::Regular && (1..=SMALL).contains(&node.size);
    let data = item.node.as_ref().ok().filter(is_small).map(FsNode::data);
    let page = match data {
        Some(data) => Some(view.spans(&data, 0).await),
        None => None,
    };
    let blocks = match &page {
        Some(Ok((spans, _))) => view.prefetch(spans, SMALL),
        _ => 0,
    };
    ItemAhead { item, page, blocks }
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
