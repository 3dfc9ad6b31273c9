//! Named streams of NTFS in a copy: extended attributes `user.NAME` where they fit, or files `NAME:STREAM`. The report lists a
//! stream that is neither.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{XattrFlags, fsetxattr};

use super::super::view::stream_path;
use super::super::walk::WalkItem;
use super::super::wire::{VALUE_LIMIT, is_name};
use super::super::{FsNode, FsStream, NodeKind};
use super::TreeCopy;
use super::made::NewName;
use crate::error::{Error, Kind, Result};

/// The bits of a mode that a stream can have: it is data, also that of a folder.
const STREAM_MODE: u32 = 0o666;

impl TreeCopy<'_> {
    /// Sets the streams of a file or folder as attributes.
    pub(super) async fn streams_as_attributes(
        &mut self,
        file: BorrowedFd<'_>,
        path: &[u8],
        node: &FsNode,
    ) -> Result<()> {
        for stream in self.streams_of(path, node).await? {
            let why = match self.stream_value(node, &stream).await? {
                Ok(value) => {
                    let name = [b"user.", &stream.name[..]].concat();
                    let name = OsStr::from_bytes(&name);
                    match fsetxattr(file, name, &value, XattrFlags::empty()) {
                        Ok(()) => continue,
                        Err(error) => format!("the destination holds no such attribute ({error})"),
                    }
                }
                Err(why) => why,
            };
            self.report
                .lose_streams(&stream_path(path, &stream), 1, &why);
        }
        Ok(())
    }

    /// The streams of a file. If they are damaged, all of them count as lost, and the file is still copied.
    async fn streams_of(&mut self, path: &[u8], node: &FsNode) -> Result<Vec<FsStream>> {
        match self.view.streams(node).await {
            Err(error) if self.is_of_the_file(&error) => {
                let why = format!("its streams cannot be listed: {error}");
                self.report.lose_streams(path, node.streams, &why);
                Ok(Vec::new())
            }
            done => done,
        }
    }

    /// The bytes of a stream, or why it cannot be an attribute.
    async fn stream_value(
        &mut self,
        node: &FsNode,
        stream: &FsStream,
    ) -> Result<std::result::Result<bytes::Bytes, String>> {
        if stream.size > VALUE_LIMIT as u64 {
            let size = stream.size;
            let why = format!("{size} bytes, and an attribute holds at most {VALUE_LIMIT}");
            return Ok(Err(why));
        }
        match self.view.read(&node.data_of(stream), 0, VALUE_LIMIT).await {
            Ok(bytes) => Ok(Ok(bytes)),
            Err(error) if self.is_of_the_file(&error) => Ok(Err(error.chain())),
            Err(error) => Err(error),
        }
    }

    /// Writes the streams of a copied file as files beside it, if the job asks for that. Else reports the streams of links and
    /// special files, which cannot be attributes.
    pub(super) async fn streams_beside(
        &mut self,
        item: &WalkItem,
        parent: &OwnedFd,
        name: &OsStr,
        node: &FsNode,
    ) -> Result<()> {
        if !self.options.streams {
            if !matches!(node.kind, NodeKind::Regular | NodeKind::Folder) {
                let why = "a link or special file has no attributes";
                self.report.lose_streams(&item.path, node.streams, why);
            }
            return Ok(());
        }
        for stream in self.streams_of(&item.path, node).await? {
            match self.stream_file(item, parent, name, node, &stream).await {
                Ok(()) => self.report.streams += 1,
                Err(error) if error.kind() == Kind::Stopped => return Err(error),
                Err(error) => {
                    self.report.fail(&stream_path(&item.path, &stream), &error);
                    self.check_view()?;
                }
            }
        }
        Ok(())
    }

    async fn stream_file(
        &mut self,
        item: &WalkItem,
        parent: &OwnedFd,
        name: &OsStr,
        node: &FsNode,
        stream: &FsStream,
    ) -> Result<()> {
        // The root folder has no name.
        let (folder, file) = match name.as_bytes() {
            b"." => (&item.path[..], &b""[..]),
            name => {
                let last = item.path.iter().rposition(|byte| *byte == b'/');
                (item.path.get(..last.unwrap_or(0)).unwrap_or_default(), name)
            }
        };
        let name = stream_path(file, stream);
        // With a second colon, it could be the file of another stream.
        if !is_name(&name) || stream.name.contains(&b':') {
            let what = "its name is not allowed on Linux";
            return Err(Error::new(Kind::Invalid, what));
        }
        match self.view.lookup(&[folder, b"/", &name].concat()).await {
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
            Ok(_) => {
                let what = "a file of this name is beside it";
                return Err(Error::new(Kind::Invalid, what));
            }
        }
        let new = NewName::new(parent, OsStr::from_bytes(&name), self.options.overwrite)?;
        let file = new.file()?;
        self.fill(&file, &node.data_of(stream), None).await?;
        let own = FsNode {
            mode: node.mode & STREAM_MODE,
            ..node.clone()
        };
        let mode = self.keep_file_owner(file.as_fd(), &own);
        self.keep_mode_and_times(file.as_fd(), &own, mode)?;
        new.commit()
    }

    /// Whether an error is about one file, and the next one can be read.
    fn is_of_the_file(&self, error: &Error) -> bool {
        let is_of_it = matches!(error.kind(), Kind::Corrupt | Kind::Invalid | Kind::NotFound);
        is_of_it && self.view.is_alive()
    }
}
