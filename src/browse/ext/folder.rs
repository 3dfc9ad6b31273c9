//! Folders: the names in their blocks, read one after another. Index blocks of large folders look like unused entries there.

use std::cell::RefCell;
use std::ops::ControlFlow;

use super::super::FsEntry;
use super::super::reader::{
    FsFailure, FsPage, FsResult, PAGE, entry_of, le16, le32, missing_names,
};
use super::inode::ExtInode;
use super::{ExtReader, feature};

/// Blocks of a folder that one answer reads, at most.
const MOST_BLOCKS: usize = 512;

/// What a folder has.
enum FolderItem<'a> {
    /// A name, and its inode.
    Name(&'a [u8], u64),
    /// Why names of it are missing.
    Missing(FsFailure),
}

/// Takes what a folder has, until it breaks.
type FolderVisit<'v> = dyn FnMut(FolderItem<'_>) -> ControlFlow<()> + 'v;

impl ExtReader {
    /// Visits what a folder has, from a block of it on. Returns the next block, none at the end. A damaged block costs the names in
    /// it: one item of a page stands for all of them.
    fn names(
        &self,
        inode: &ExtInode,
        from: u64,
        visit: &mut FolderVisit<'_>,
        mut is_full: impl FnMut() -> bool,
    ) -> FsResult<Option<u64>> {
        if !inode.is_folder() {
            return Err(FsFailure::damaged(format!(
                "inode {} is no folder",
                inode.number
            )));
        }
        if inode.is_inline() {
            self.inline_names(inode, visit)?;
            return Ok(None);
        }
        let end = inode.size.div_ceil(self.layout.block_size);
        let (mut at, mut read, mut missing) = (from, 0, None);
        while at < end {
            if is_full() || read >= MOST_BLOCKS {
                return Ok(ended(missing, Some(at), visit));
            }
            read += 1;
            let (runs, next) = self.runs(inode, at, 1)?;
            let run = runs.first().filter(|run| run.logical < end);
            let start = run.map_or(next.unwrap_or(end), |run| run.logical);
            if start > at {
                let what = format!("the folder of inode {} has a hole", inode.number);
                missing.get_or_insert(FsFailure::damaged(what));
                at = start;
            }
            while let Some(physical) = run.and_then(|run| run.physical_at(at)) {
                if at >= end || is_full() || read >= MOST_BLOCKS {
                    break;
                }
                read += 1;
                at += 1;
                let block = self.block(physical).map_err(FsFailure::from);
                match block.and_then(|block| self.names_in(inode, &block, visit)) {
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(())) => return Ok(None),
                    Err(failure) if failure.is_damage() => {
                        missing.get_or_insert(failure);
                    }
                    Err(failure) => return Err(failure),
                }
            }
        }
        Ok(ended(missing, None, visit))
    }

    /// Names in a block, or in an inode.
    fn names_in(
        &self,
        inode: &ExtInode,
        block: &[u8],
        visit: &mut FolderVisit<'_>,
    ) -> FsResult<ControlFlow<()>> {
        let has_types = self.layout.incompatible & feature::FILE_TYPE != 0;
        let mut rest = block;
        while rest.len() >= 8 {
            let number = u64::from(le32(rest, 0));
            let len = match usize::from(le16(rest, 4)) {
                // 65,536 does not fit.
                0 | 0xffff if block.len() >= 1 << 16 => block.len(),
                len => (len & 0xfffc) | (len & 3) << 16,
            };
            let name_len = match has_types {
                true => usize::from(rest.get(6).copied().unwrap_or(0)),
                false => usize::from(le16(rest, 6)),
            };
            if len < 8 || len > rest.len() || (number != 0 && name_len + 8 > len) {
                let what = format!("the folder of inode {} is damaged", inode.number);
                return Err(FsFailure::damaged(what));
            }
            let name = rest.get(8..8 + name_len).unwrap_or_default();
            let is_entry = number != 0 && name != b"." && name != b"..";
            if is_entry && visit(FolderItem::Name(name, number)).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            rest = rest.get(len..).unwrap_or_default();
        }
        Ok(ControlFlow::Continue(()))
    }

    /// A small folder is in its inode: the number of its parent, entries, and more of them in an extended attribute.
    fn inline_names(&self, inode: &ExtInode, visit: &mut FolderVisit<'_>) -> FsResult<()> {
        let all = self.inline_bytes(inode)?;
        let first = all.get(4..60).unwrap_or_default();
        if self.names_in(inode, first, visit)?.is_continue() {
            let more = all.get(60..).unwrap_or_default();
            let _ = self.names_in(inode, more, visit)?;
        }
        Ok(())
    }

    pub(super) fn list_page(&self, folder: u64, cursor: u64) -> FsResult<FsPage<FsEntry>> {
        let inode = self.inode(folder)?;
        let found = RefCell::new(Vec::new());
        let mut missing = None;
        let mut visit = |item: FolderItem<'_>| {
            match item {
                FolderItem::Name(name, number) => found.borrow_mut().push((name.to_vec(), number)),
                FolderItem::Missing(failure) => missing = Some(missing_names(&failure)),
            }
            ControlFlow::Continue(())
        };
        let next = self.names(&inode, cursor, &mut visit, || found.borrow().len() >= PAGE)?;
        let entries = found
            .into_inner()
            .into_iter()
            .map(|(name, number)| entry_of(&name, || self.node(number)));
        Ok((entries.chain(missing).collect(), next))
    }

    /// The inode of a name in a folder.
    ///
    /// # Errors
    /// When it is not there, and other names are missing.
    pub(super) fn find_name(&self, folder: u64, wanted: &[u8]) -> FsResult<Option<u64>> {
        let inode = self.inode(folder)?;
        let (mut found, mut missing) = (None, None);
        let mut from = Some(0);
        while let Some(at) = from.filter(|_| found.is_none()) {
            let mut visit = |item: FolderItem<'_>| match item {
                FolderItem::Name(name, number) if name == wanted => {
                    found = Some(number);
                    ControlFlow::Break(())
                }
                FolderItem::Name(..) => ControlFlow::Continue(()),
                FolderItem::Missing(failure) => {
                    missing = Some(failure);
                    ControlFlow::Continue(())
                }
            };
            from = self.names(&inode, at, &mut visit, || false)?;
        }
        match (found, missing) {
            (None, Some(failure)) => Err(failure),
            _ => Ok(found),
        }
    }
}

/// Visits what is missing of a page, at its end. Returns the next page.
fn ended(
    missing: Option<FsFailure>,
    next: Option<u64>,
    visit: &mut FolderVisit<'_>,
) -> Option<u64> {
    match missing.map(FolderItem::Missing).map(visit) {
        Some(ControlFlow::Break(())) => None,
        _ => next,
    }
}
