//! [`TreeChanges`]: which files differ between two snapshots of a volume.
//!
//! The folders of both are walked side by side, and metadata is compared. A file's bytes are compared too, and read only where they can
//! differ: where the file lies elsewhere than before, or in a block of the image that changed. So the answer is exact, and costs the
//! metadata of both and the changed blocks of files.

use std::collections::{BTreeMap, HashSet};

use super::view::{FileView, PIECE};
use super::walk::join;
use super::{FsNode, FsSpan, MOST_DEPTH, NodeKind, SpanPlace};
use crate::block::{BLOCK_SIZE, BlockIndex, Delta};
use crate::error::{Error, Kind, Result};
use crate::target::Stop;

/// Names of one folder, at most: all of them are in memory while it is compared.
const MOST_NAMES: usize = 1 << 22;

/// How a file differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    /// Only the head has it.
    Added,
    /// Only the base has it.
    Removed,
    /// Its bytes, its type or its target differ.
    Changed,
    /// Only metadata differs.
    Metadata,
    /// It could not be compared.
    Unknown,
}

impl ChangeKind {
    /// Its letter in a list, and its name in JSON.
    pub(crate) fn words(self) -> (char, &'static str) {
        match self {
            Self::Added => ('A', "added"),
            Self::Removed => ('R', "removed"),
            Self::Changed => ('C', "changed"),
            Self::Metadata => ('M', "metadata"),
            Self::Unknown => ('?', "unknown"),
        }
    }
}

/// A file that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileChange {
    pub(crate) kind: ChangeKind,
    pub(crate) path: Vec<u8>,
    /// Its metadata in the head, or in the base where it was removed.
    pub(crate) node: Option<FsNode>,
    /// Why it could not be compared.
    pub(crate) problem: Option<String>,
}

/// Two views that are compared.
pub(crate) struct TreeChanges<'a> {
    pub(crate) base: &'a mut FileView,
    pub(crate) head: &'a mut FileView,
    /// Blocks of the image that changed; none: it is unknown, so every file is read.
    pub(crate) delta: Option<&'a Delta>,
}

/// Names of a folder with what they are.
type Names = BTreeMap<Vec<u8>, std::result::Result<FsNode, String>>;

impl TreeChanges<'_> {
    /// Compares the folders at a path, and gives each difference to `each`. What is in an added or removed folder is given too.
    ///
    /// # Errors
    /// `Stopped`; `NotFound` when neither has the path; what ends a view.
    pub(crate) async fn compare(
        &mut self,
        path: &[u8],
        stop: &Stop,
        each: &mut (dyn FnMut(FileChange) -> Result<()> + Send),
    ) -> Result<()> {
        let (base, head) = (
            optional(self.base.lookup(path).await)?,
            optional(self.head.lookup(path).await)?,
        );
        if base.is_none() && head.is_none() {
            let shown = super::lines::quoted(path);
            return Err(Error::new(
                Kind::NotFound,
                format!("cannot compare {shown}: neither snapshot has it"),
            ));
        }
        let start = head
            .as_ref()
            .or(base.as_ref())
            .map(|found| found.path.clone());
        let mut waiting = vec![(
            start.unwrap_or_default(),
            base.map(|found| found.node),
            head.map(|found| found.node),
            0,
        )];
        let mut entered = HashSet::new();
        while let Some((path, base, head, depth)) = waiting.pop() {
            stop.check()?;
            if let Some(change) = stop
                .unless(self.pair(&path, base.as_ref(), head.as_ref()))
                .await?
            {
                each(change)?;
            }
            let folder = |node: Option<FsNode>| node.filter(|node| node.kind == NodeKind::Folder);
            let (base, head) = (folder(base), folder(head));
            if base.is_none() && head.is_none() {
                continue;
            }
            let ids = |node: &Option<FsNode>| node.as_ref().map(|node| node.id);
            if depth >= MOST_DEPTH || !entered.insert((ids(&base), ids(&head))) {
                each(unknown(path, "the folder is too deep, or within itself"))?;
                continue;
            }
            let old = names(self.base, base.as_ref(), stop).await;
            let new = names(self.head, head.as_ref(), stop).await;
            let (mut old, new) = match (old, new) {
                (Ok(old), Ok(new)) => (old, new),
                (Err(error), _) | (_, Err(error)) => {
                    if error.kind() != Kind::Corrupt
                        || !self.base.is_alive()
                        || !self.head.is_alive()
                    {
                        return Err(error);
                    }
                    each(unknown(path, &error.to_string()))?;
                    continue;
                }
            };
            // The last one pushed is compared first.
            let mut below = Vec::new();
            for (name, node) in new {
                let full = join(&path, &name);
                match (old.remove(&name).transpose(), node) {
                    (Ok(base), Ok(head)) => below.push((full, base, Some(head), depth + 1)),
                    (Err(problem), _) | (_, Err(problem)) => each(unknown(full, &problem))?,
                }
            }
            for (name, node) in old {
                let full = join(&path, &name);
                match node {
                    Ok(base) => below.push((full, Some(base), None, depth + 1)),
                    Err(problem) => each(unknown(full, &problem))?,
                }
            }
            below.sort_by(|one, other| other.0.cmp(&one.0));
            waiting.append(&mut below);
        }
        Ok(())
    }

    /// Compares one name of both.
    async fn pair(
        &mut self,
        path: &[u8],
        base: Option<&FsNode>,
        head: Option<&FsNode>,
    ) -> Result<Option<FileChange>> {
        let change = |kind, node: &FsNode| {
            Some(FileChange {
                kind,
                path: path.to_vec(),
                node: Some(node.clone()),
                problem: None,
            })
        };
        let (base, head) = match (base, head) {
            (Some(base), Some(head)) => (base, head),
            (None, Some(head)) => return Ok(change(ChangeKind::Added, head)),
            (Some(base), None) => return Ok(change(ChangeKind::Removed, base)),
            (None, None) => return Ok(None),
        };
        if !is_same_thing(base, head) {
            return Ok(change(ChangeKind::Changed, head));
        }
        if head.kind == NodeKind::Regular {
            match self.has_same_bytes(base, head).await {
                Ok(true) => {}
                Ok(false) => return Ok(change(ChangeKind::Changed, head)),
                Err(error)
                    if is_about_the_file(&error)
                        && self.base.is_alive()
                        && self.head.is_alive() =>
                {
                    return Ok(Some(unknown(path.to_vec(), &error.to_string())));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(match has_same_metadata(base, head) {
            true => None,
            false => change(ChangeKind::Metadata, head),
        })
    }

    /// Whether two files of the same size have the same bytes.
    async fn has_same_bytes(&mut self, base: &FsNode, head: &FsNode) -> Result<bool> {
        let (base, head) = (base.data(), head.data());
        let mut at = 0;
        while at < head.size {
            let (old, _) = self.base.spans(&base, at).await?;
            let (new, _) = self.head.spans(&head, at).await?;
            let (mut old, mut new) = (old.into_iter(), new.into_iter());
            let (mut one, mut other) = (old.next(), new.next());
            while let (Some(a), Some(b)) = (one, other) {
                let len = a.len.min(b.len).min(PIECE);
                let cut = |span: FsSpan| FsSpan { len, ..span };
                let step = match self.can_differ(&cut(a), &cut(b)) {
                    false => len,
                    true => {
                        let (x, y) = (
                            self.base.bytes(&base, &cut(a)).await?,
                            self.head.bytes(&head, &cut(b)).await?,
                        );
                        let len = x.len().min(y.len());
                        if x.get(..len) != y.get(..len) {
                            return Ok(false);
                        }
                        len as u64
                    }
                };
                at += step;
                let behind = |span: FsSpan| Some(span.behind(step)).filter(|rest| rest.len > 0);
                one = behind(a).or_else(|| old.next());
                other = behind(b).or_else(|| new.next());
            }
        }
        Ok(true)
    }

    /// Whether the same bytes of two files, of the same length, can differ.
    fn can_differ(&self, base: &FsSpan, head: &FsSpan) -> bool {
        match (base.place, head.place) {
            (SpanPlace::Hole, SpanPlace::Hole) => false,
            (SpanPlace::Image(a), SpanPlace::Image(b)) if a == b => {
                self.delta.is_none_or(|delta| touches(delta, a, head.len))
            }
            _ => true,
        }
    }
}

/// Whether a range of bytes has a changed block.
fn touches(delta: &Delta, start: u64, len: u64) -> bool {
    let block = u64::from(BLOCK_SIZE);
    let number = |byte: u64| u32::try_from(byte / block).unwrap_or(u32::MAX);
    let (first, last) = (number(start), number(start + len.saturating_sub(1)));
    (first..=last).any(|index| delta.change(BlockIndex(index)).is_some())
}

/// Whether an error is about one file, and the next one can be read.
fn is_about_the_file(error: &Error) -> bool {
    matches!(error.kind(), Kind::Corrupt | Kind::Invalid | Kind::NotFound)
}

/// Whether two nodes can differ in bytes and metadata alone.
fn is_same_thing(base: &FsNode, head: &FsNode) -> bool {
    base.kind == head.kind
        && base.target == head.target
        && base.device == head.device
        && (base.kind != NodeKind::Regular || base.size == head.size)
}

/// Whether all metadata is the same, but for times of access and the size of folders.
fn has_same_metadata(base: &FsNode, head: &FsNode) -> bool {
    let of = |node: &FsNode| {
        let times = &node.times;
        (
            node.id,
            node.mode,
            node.uid,
            node.gid,
            node.links,
            node.streams,
            times.modified,
            times.changed,
            times.created,
        )
    };
    of(base) == of(head)
}

fn unknown(path: Vec<u8>, problem: &str) -> FileChange {
    FileChange {
        kind: ChangeKind::Unknown,
        path,
        node: None,
        problem: Some(problem.to_owned()),
    }
}

/// What was found, or nothing where there is nothing.
fn optional<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// All names of a folder; of none, none.
async fn names(view: &mut FileView, folder: Option<&FsNode>, stop: &Stop) -> Result<Names> {
    let mut found = Names::new();
    let Some(folder) = folder else {
        return Ok(found);
    };
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        let (entries, next) = stop.unless(view.list(folder.id, at)).await?;
        found.extend(entries.into_iter().map(|entry| (entry.name, entry.node)));
        if found.len() > MOST_NAMES {
            return Err(Error::new(Kind::Corrupt, "the folder has too many names"));
        }
        cursor = next;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Change, Geometry};

    #[test]
    fn a_range_touches_the_blocks_of_its_first_and_last_byte() {
        let block = u64::from(BLOCK_SIZE);
        let geometry = Geometry::new(10 * block).unwrap();
        let mut delta = Delta::new(Some(geometry), geometry);
        delta.insert(BlockIndex(3), Change::Write);
        delta.insert(BlockIndex(5), Change::Zero);
        for (start, len, expected) in [
            (0, 3 * block, false),
            (0, 3 * block + 1, true),
            (4 * block - 1, 1, true),
            (4 * block, block, false),
            (4 * block, block + 1, true),
            (6 * block, 4 * block, false),
            (2 * block, 8 * block, true),
        ] {
            assert_eq!(touches(&delta, start, len), expected, "{start} {len}");
        }
    }
}
