//! Paths in a filesystem, and the streams that are named behind them.

use super::super::lines::quoted;
use super::super::wire::NAME_LIMIT;
use super::super::{FsData, FsNode, FsStream, MOST_DEPTH, NodeKind};
use super::FileView;
use crate::error::{Error, Kind, Result};

/// The filesystem that has streams.
const WITH_STREAMS: &str = "ntfs";

/// A path that was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundPath {
    /// The path from the root, `/` alone for the root.
    pub(crate) path: Vec<u8>,
    pub(crate) node: FsNode,
    /// The stream of it that was named.
    pub(crate) stream: Option<FsStream>,
}

impl FoundPath {
    /// What is read of it.
    pub(crate) fn data(&self) -> FsData {
        match &self.stream {
            Some(stream) => self.node.data_of(stream),
            None => self.node.data(),
        }
    }
}

impl FileView {
    /// Looks up a path from the root. `.` is the folder, `..` the one above; links are not followed.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a path through something that is no folder; as for [`FileView::list`].
    pub(crate) async fn lookup(&mut self, path: &[u8]) -> Result<FoundPath> {
        let mut found = vec![(Vec::new(), self.root()?)];
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => {
                    found.truncate((found.len() - 1).max(1));
                    continue;
                }
                _ => {}
            }
            let Some((above, folder)) = found.last() else {
                break;
            };
            let shown = quoted(path);
            if folder.kind == NodeKind::Link {
                let target = quoted(&folder.target);
                let what = format!(
                    "cannot open {shown}: {} is a link to {target}, and links are not followed",
                    quoted(above)
                );
                return Err(Error::new(Kind::Invalid, what));
            }
            if folder.kind != NodeKind::Folder {
                let what = format!("cannot open {shown}: {} is no folder", quoted(above));
                return Err(Error::new(Kind::Invalid, what));
            }
            if found.len() > MOST_DEPTH || name.len() > NAME_LIMIT {
                let what = format!("cannot open {shown}: the path is too long");
                return Err(Error::new(Kind::Invalid, what));
            }
            let (id, inner) = (folder.id, [above, &b"/"[..], name].concat());
            let node = self.find(id, name).await?.ok_or_else(|| {
                Error::new(
                    Kind::NotFound,
                    format!("cannot open {shown}: there is no such file"),
                )
            })?;
            found.push((inner, node));
        }
        let last = found.pop();
        let (path, node) = last.ok_or_else(|| Error::new(Kind::Invalid, "no path"))?;
        let path = if path.is_empty() { b"/".to_vec() } else { path };
        Ok(FoundPath {
            path,
            node,
            stream: None,
        })
    }

    /// Looks up a path, or a stream: `PATH:STREAM` if no file has this name. A `:$DATA` at the end is ignored.
    ///
    /// # Errors
    /// `NotFound` when there is neither; as for [`FileView::lookup`].
    pub(crate) async fn lookup_data(&mut self, path: &[u8]) -> Result<FoundPath> {
        let found = self.lookup(path).await;
        let is_missing = matches!(&found, Err(error) if error.kind() == Kind::NotFound);
        if !is_missing || self.filesystem() != WITH_STREAMS {
            return found;
        }
        let Some((file, name)) = split_stream(path) else {
            return found;
        };
        let Ok(file) = self.lookup(file).await else {
            return found;
        };
        let streams = self.streams(&file.node).await?;
        match streams.into_iter().find(|stream| stream.name == name) {
            Some(stream) => Ok(FoundPath {
                stream: Some(stream),
                ..file
            }),
            None => {
                let (shown, file) = (quoted(path), quoted(&file.path));
                let what = format!("cannot open {shown}: {file} has no such stream");
                Err(Error::new(Kind::NotFound, what))
            }
        }
    }
}

/// The path of a stream: `FILE:STREAM`.
pub(crate) fn stream_path(file: &[u8], stream: &FsStream) -> Vec<u8> {
    [file, b":", &stream.name].concat()
}

/// Splits a path at the first colon of its last name into a file and a stream: Windows allows no colon in a name.
fn split_stream(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = path.iter().rposition(|byte| *byte == b'/');
    let start = start.map_or(0, |slash| slash + 1);
    let name = path.get(start..)?;
    let colon = name.iter().position(|byte| *byte == b':')?;
    let (file, stream) = (path.get(..start + colon)?, name.get(colon + 1..)?);
    let stream = stream.strip_suffix(b":$DATA").unwrap_or(stream);
    (!stream.is_empty()).then_some((file, stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_behind_the_first_colon_of_the_last_name() {
        for (path, expected) in [
            ("/a:b", Some(("/a", "b"))),
            ("a:b", Some(("a", "b"))),
            ("/d/a:b:$DATA", Some(("/d/a", "b"))),
            ("/a:b:c", Some(("/a", "b:c"))),
            ("/:b", Some(("/", "b"))),
            ("/d:x/a", None),
            ("/a:", None),
            ("/a::$DATA", None),
            ("/a", None),
            ("", None),
        ] {
            let found = split_stream(path.as_bytes());
            let expected = expected.map(|(file, name)| (file.as_bytes(), name.as_bytes()));
            assert_eq!(found, expected, "{path}");
        }
    }
}
