//! [`TreeWalk`]: all files below a folder, a page of each open folder in memory.

use std::collections::{HashMap, HashSet, VecDeque};

use super::view::{BlocksAhead, FileView};
use super::{FsEntry, FsNode, MOST_DEPTH, NodeKind};
use crate::error::{Kind, Result};

/// Folders of one walk, at most: 8 bytes each are remembered, so that none is entered twice.
const MOST_FOLDERS: usize = 1 << 23;

/// Folders that are requested before they are entered, at most, and their blocks.
const FOLDERS_AHEAD: usize = 256;
const FOLDER_BLOCKS_AHEAD: usize = 16;
/// Bytes of such a folder, at most.
const FOLDER_START: u64 = 1 << 20;

/// A file of a walk.
#[derive(Clone, Debug)]
pub(crate) struct WalkItem {
    /// The path from the root of the filesystem.
    pub(crate) path: Vec<u8>,
    /// Folders between it and the start of the walk; 0: it is the start.
    pub(crate) depth: usize,
    /// Its metadata, or what is wrong with it.
    pub(crate) node: std::result::Result<FsNode, String>,
}

/// A folder that is being read.
struct OpenFolder {
    id: u64,
    path: Vec<u8>,
    page: VecDeque<FsEntry>,
    /// Entries of the page, from its start on, that were looked at ahead.
    seen: usize,
    /// Where the next page begins; none: this was the last.
    next: Option<u64>,
}

/// Folders that a walk comes to next, by id, with how many blocks each has that the one before it does not have.
#[derive(Default)]
struct FoldersAhead {
    requested: HashMap<u64, usize>,
    blocks: BlocksAhead,
}

/// A walk: a folder comes before what is in it.
pub(crate) struct TreeWalk {
    start: Option<WalkItem>,
    open: Vec<OpenFolder>,
    entered: HashSet<u64>,
    /// Whether the folder that was returned last is entered next.
    into: Option<(u64, Vec<u8>)>,
    ahead: Option<FoldersAhead>,
}

impl TreeWalk {
    /// A walk from a file or folder on.
    pub(crate) fn new(path: &[u8], node: FsNode) -> Self {
        Self {
            start: Some(WalkItem {
                path: path.to_vec(),
                depth: 0,
                node: Ok(node),
            }),
            open: Vec::new(),
            entered: HashSet::new(),
            into: None,
            ahead: None,
        }
    }

    /// Requests folders before they are entered: of a walk that enters all of them. Else each of them is waited for.
    pub(crate) fn reading_ahead(mut self) -> Self {
        self.ahead = Some(FoldersAhead::default());
        self
    }

    /// Passes over what is in the folder that was returned last.
    pub(crate) fn skip(&mut self) {
        self.into = None;
    }

    /// Passes over what is left of a folder, wherever the walk is in it.
    pub(super) fn leave(&mut self, folder: u64) {
        self.into.take_if(|(id, _)| *id == folder);
        if let Some(at) = self.open.iter().position(|open| open.id == folder) {
            self.open.truncate(at);
            self.into = None;
        }
        // What was requested of it does not come.
        self.ahead = self.ahead.take().map(|_| FoldersAhead::default());
    }

    /// Requests folders that come next in the one that is being read, where the filesystem says where they are.
    async fn look_ahead(&mut self, view: &mut FileView) {
        let (Some(ahead), Some(folder)) = (&mut self.ahead, self.open.last_mut()) else {
            return;
        };
        while ahead.requested.len() < FOLDERS_AHEAD && ahead.blocks.count() < FOLDER_BLOCKS_AHEAD {
            let Some(entry) = folder.page.get(folder.seen) else {
                return;
            };
            folder.seen += 1;
            if let Ok(node) = &entry.node
                && node.kind == NodeKind::Folder
                && node.size > 0
                && !ahead.requested.contains_key(&node.id)
            {
                let (_, blocks) = view
                    .request(&node.data(), FOLDER_START, &mut ahead.blocks)
                    .await;
                ahead.requested.insert(node.id, blocks);
            }
        }
    }

    /// The next file. A folder that cannot be read is an item with a problem, and the walk goes on behind it.
    ///
    /// # Errors
    /// What ends the whole walk: the image cannot be read, the parser ended.
    pub(crate) async fn next(&mut self, view: &mut FileView) -> Result<Option<WalkItem>> {
        if let Some(start) = self.start.take() {
            self.prepare(&start);
            return Ok(Some(start));
        }
        // Before a folder is entered, the one that it is in is read.
        self.look_ahead(view).await;
        if let Some((id, path)) = self.into.take() {
            self.open.push(OpenFolder {
                id,
                path,
                page: VecDeque::new(),
                seen: 0,
                next: Some(0),
            });
        }
        loop {
            let depth = self.open.len();
            let Some(folder) = self.open.last_mut() else {
                return Ok(None);
            };
            if let Some(entry) = folder.page.pop_front() {
                folder.seen = folder.seen.saturating_sub(1);
                let item = WalkItem {
                    path: join(&folder.path, &entry.name),
                    depth,
                    node: entry.node,
                };
                let item = self.checked(item);
                self.prepare(&item);
                return Ok(Some(item));
            }
            let Some(cursor) = folder.next.take() else {
                self.open.pop();
                continue;
            };
            match view.list(folder.id, cursor).await {
                Ok((entries, next)) => {
                    folder.page = entries.into();
                    folder.next = next;
                    self.look_ahead(view).await;
                }
                Err(error) if error.kind() == Kind::Corrupt && view.is_alive() => {
                    let item = WalkItem {
                        path: folder.path.clone(),
                        depth: depth - 1,
                        node: Err(error.to_string()),
                    };
                    return Ok(Some(item));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes a folder that must not be entered an item with a problem.
    fn checked(&self, item: WalkItem) -> WalkItem {
        let problem = match &item.node {
            Ok(node) if node.kind == NodeKind::Folder => {
                if self.entered.contains(&node.id) {
                    Some("the folder is in two places, or within itself")
                } else if item.depth >= MOST_DEPTH {
                    Some("the folder is too deep: 512 are above it")
                } else if self.entered.len() >= MOST_FOLDERS {
                    Some("there are too many folders")
                } else {
                    None
                }
            }
            _ => None,
        };
        match problem {
            Some(problem) => WalkItem {
                node: Err(problem.to_owned()),
                ..item
            },
            None => item,
        }
    }

    fn prepare(&mut self, item: &WalkItem) {
        self.into = None;
        if let Ok(node) = &item.node
            && node.kind == NodeKind::Folder
        {
            self.entered.insert(node.id);
            if let Some(ahead) = &mut self.ahead
                && let Some(blocks) = ahead.requested.remove(&node.id)
            {
                ahead.blocks.remove(blocks);
            }
            self.into = Some((node.id, item.path.clone()));
        }
    }
}

/// The path of a name in a folder.
pub(super) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    match folder {
        b"/" => [b"/", name].concat(),
        folder => [folder, b"/", name].concat(),
    }
}
