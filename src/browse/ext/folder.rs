//! Folders: the names in their blocks, read one after another. Index blocks of large folders look like unused entries there.

use std::ops::ControlFlow;

use super::super::FsEntry;
use super::super::reader::{FsFailure, FsPage, FsResult, PAGE, entry_of, le16, le32};
use super::inode::ExtInode;
use super::{ExtReader, feature};

/// Blocks of a folder that one answer reads, at most.
const MOST_BLOCKS: usize = 512;

impl ExtReader {
    /// Names of a folder from a block of it on: each with its inode. `visit` ends it. Returns the next block, none at the end.
    fn names(
        &self,
        inode: &ExtInode,
        from: u64,
        visit: &mut dyn FnMut(&[u8], u64) -> ControlFlow<()>,
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
        let mut at = from;
        let mut read = 0;
        while at < end {
            let (runs, _) = self.runs(inode, at, 1)?;
            let Some(run) = runs.first().filter(|run| run.logical < end) else {
                return Ok(None);
            };
            at = at.max(run.logical);
            while let Some(physical) = run.physical_at(at).filter(|_| at < end) {
                if is_full() || read >= MOST_BLOCKS {
                    return Ok(Some(at));
                }
                read += 1;
                at += 1;
                let block = self.block(physical)?;
                if self.names_in(inode, &block, visit)?.is_break() {
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    /// Names in a block, or in an inode.
    fn names_in(
        &self,
        inode: &ExtInode,
        block: &[u8],
        visit: &mut dyn FnMut(&[u8], u64) -> ControlFlow<()>,
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
            if is_entry && visit(name, number).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            rest = rest.get(len..).unwrap_or_default();
        }
        Ok(ControlFlow::Continue(()))
    }

    /// A small folder is in its inode: the number of its parent, entries, and more of them in an extended attribute.
    fn inline_names(
        &self,
        inode: &ExtInode,
        visit: &mut dyn FnMut(&[u8], u64) -> ControlFlow<()>,
    ) -> FsResult<()> {
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
        let found = std::cell::RefCell::new(Vec::new());
        let mut visit = |name: &[u8], number: u64| {
            found.borrow_mut().push((name.to_vec(), number));
            ControlFlow::Continue(())
        };
        let next = self.names(&inode, cursor, &mut visit, || found.borrow().len() >= PAGE)?;
        let entries = found
            .into_inner()
            .into_iter()
            .map(|(name, number)| entry_of(&name, || self.node(number)));
        Ok((entries.collect(), next))
    }

    /// The inode of a name in a folder.
    pub(super) fn find_name(&self, folder: u64, wanted: &[u8]) -> FsResult<Option<u64>> {
        let inode = self.inode(folder)?;
        let mut found = None;
        let mut from = 0;
        loop {
            let mut visit = |name: &[u8], number: u64| match name == wanted {
                true => {
                    found = Some(number);
                    ControlFlow::Break(())
                }
                false => ControlFlow::Continue(()),
            };
            match self.names(&inode, from, &mut visit, || false)? {
                Some(next) => from = next,
                None => return Ok(found),
            }
        }
    }
}
