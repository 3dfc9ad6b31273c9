//! `ebsfs files ls`, `tree`, `find` and `timeline`.

use std::ffi::OsString;

use clap::{Args, ValueEnum};
use tracing::warn;

use super::out::{Lines, json_of, time_text};
use super::{ViewArgs, lookup, path_bytes};
use crate::browse::{
    FileView, FsNode, FsStream, NodeKind, TreeWalk, WalkItem, body_line, mode_text, quoted,
    stream_path,
};
use crate::cli::signals::only_read;
use crate::error::{Error, Kind, Result};
use crate::target::Stop;

/// Names of a folder that are sorted in memory, at most.
const MOST_NAMES: usize = 1 << 22;

/// List a folder
#[derive(Args, Debug)]
pub(super) struct LsFilesArgs {
    /// Snapshot id, volume id, tag:KEY=VALUE, snapshot of a repository, raw image or block device
    source: String,
    /// Path in the filesystem
    #[arg(default_value = "/")]
    path: OsString,
    /// Print mode, links, owner, group, size and time of each file, and of each named stream of NTFS
    #[arg(short, long)]
    long: bool,
    /// Print one JSON object a line
    #[arg(long, conflicts_with = "long")]
    json: bool,
    #[command(flatten)]
    view: ViewArgs,
}

/// Print all files below a folder as a tree
#[derive(Args, Debug)]
pub(super) struct TreeArgs {
    /// Snapshot id, volume id, tag:KEY=VALUE, snapshot of a repository, raw image or block device
    source: String,
    /// Path in the filesystem
    #[arg(default_value = "/")]
    path: OsString,
    /// Print at most N levels of folders [default: all]
    #[arg(long, value_name = "N")]
    depth: Option<usize>,
    #[command(flatten)]
    view: ViewArgs,
}

/// Print the paths of all files below a folder
#[derive(Args, Debug)]
pub(super) struct FindArgs {
    /// Snapshot id, volume id, tag:KEY=VALUE, snapshot of a repository, raw image or block device
    source: String,
    /// Path in the filesystem
    #[arg(default_value = "/")]
    path: OsString,
    /// Print only paths whose last name matches PATTERN: * stands for any characters, ? for one
    #[arg(long, value_name = "PATTERN")]
    name: Option<OsString>,
    /// Print only entries of this type
    #[arg(long = "type", value_name = "TYPE", value_enum)]
    kind: Option<KindArg>,
    /// End each path with a NUL instead of a line break
    #[arg(short = '0', long)]
    null: bool,
    /// Print one JSON object a line
    #[arg(long, conflicts_with = "null")]
    json: bool,
    #[command(flatten)]
    view: ViewArgs,
}

/// Print the times of all files as a body file, for mactime of the Sleuth Kit
#[derive(Args, Debug)]
pub(super) struct TimelineArgs {
    /// Snapshot id, volume id, tag:KEY=VALUE, snapshot of a repository, raw image or block device
    source: String,
    /// Path in the filesystem
    #[arg(default_value = "/")]
    path: OsString,
    #[command(flatten)]
    view: ViewArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KindArg {
    #[value(alias = "f")]
    File,
    #[value(alias = "d")]
    Directory,
    #[value(alias = "l")]
    Symlink,
    /// Devices, pipes and sockets
    Other,
}

impl KindArg {
    fn is_of(self, kind: NodeKind) -> bool {
        let own = match kind {
            NodeKind::Regular => Self::File,
            NodeKind::Folder => Self::Directory,
            NodeKind::Link => Self::Symlink,
            _ => Self::Other,
        };
        own == self
    }
}

/// Counts what could not be read: the exit code says that the list has gaps.
#[derive(Default)]
struct Gaps(u64);

impl Gaps {
    fn add(&mut self, path: &[u8], problem: &str) {
        self.0 += 1;
        warn!("{}: {}", quoted(path), crate::cli::plain(problem));
    }

    fn result(&self) -> Result<()> {
        match self.0 {
            0 => Ok(()),
            count => {
                let what = format!("cannot read {count} of the files: the filesystem is damaged");
                Err(Error::new(Kind::Corrupt, what))
            }
        }
    }
}

/// Lists the streams of a file. Damaged streams count as a gap.
async fn streams_of(
    view: &mut FileView,
    path: &[u8],
    node: &FsNode,
    gaps: &mut Gaps,
    stop: &Stop,
) -> Result<Vec<FsStream>> {
    match stop.unless(view.streams(node)).await {
        Err(error) if error.kind() == Kind::Corrupt && view.is_alive() => {
            gaps.add(path, &error.to_string());
            Ok(Vec::new())
        }
        done => done,
    }
}

/// What a walk shows.
#[derive(Clone, Copy)]
struct WalkOptions {
    /// Levels of folders; none: all.
    depth: Option<usize>,
    /// Whether streams are listed.
    streams: bool,
}

/// Visits all files below a path.
async fn walk(
    view: &mut FileView,
    path: &OsString,
    stop: &Stop,
    options: WalkOptions,
    mut each: impl FnMut(&WalkItem, &FsNode, &[FsStream], &mut Lines) -> Result<()>,
) -> Result<()> {
    let found = lookup(view, path, stop).await?;
    let mut walk = TreeWalk::new(&found.path, found.node);
    if options.depth.is_none() {
        walk = walk.reading_ahead();
    }
    let (mut lines, mut gaps) = (Lines::new(), Gaps::default());
    while let Some(item) = stop.unless(walk.next(view)).await? {
        if options.depth.is_some_and(|depth| item.depth >= depth) {
            walk.skip();
        }
        match &item.node {
            Ok(node) => {
                let streams = match options.streams {
                    true => streams_of(view, &item.path, node, &mut gaps, stop).await?,
                    false => Vec::new(),
                };
                each(&item, node, &streams, &mut lines)?;
            }
            Err(problem) => gaps.add(&item.path, problem),
        }
        if lines.is_closed() {
            return Ok(());
        }
    }
    lines.finish()?;
    gaps.result()
}

/// A name, and the target of a link.
pub(super) fn name_of(lines: &Lines, name: &[u8], node: &FsNode) -> Vec<u8> {
    let name = lines.name(name);
    match node.kind {
        NodeKind::Link => [name, b" -> ".to_vec(), lines.name(&node.target)].concat(),
        _ => name,
    }
}

fn json_line(path: &[u8], node: &FsNode, streams: &[FsStream]) -> Vec<u8> {
    let mut line = serde_json::Value::Object(json_of(path, node, streams)).to_string();
    line.push('\n');
    line.into_bytes()
}

impl LsFilesArgs {
    pub(super) fn run(self) -> Result<()> {
        let done = self
            .view
            .run(&self.source, async |view, stop| self.list(view, stop).await);
        done.map_err(only_read)
    }

    async fn list(&self, view: &mut FileView, stop: &Stop) -> Result<()> {
        let found = lookup(view, &self.path, stop).await?;
        let (mut files, mut gaps) = (Vec::new(), Gaps::default());
        if found.node.kind == NodeKind::Folder {
            let mut cursor = Some(0);
            while let Some(at) = cursor {
                let (entries, next) = stop.unless(view.list(found.node.id, at)).await?;
                for entry in entries {
                    match entry.node {
                        Ok(node) => files.push((entry.name, node)),
                        Err(problem) => gaps.add(&entry.name, &problem),
                    }
                }
                if files.len() > MOST_NAMES {
                    return Err(Error::new(Kind::Corrupt, "the folder has too many names"));
                }
                cursor = next;
            }
        } else {
            files.push((found.path, found.node));
        }
        files.sort_by(|one, other| one.0.cmp(&other.0));
        let mut listed = Vec::new();
        for (name, node) in files {
            let streams = match self.json || self.long {
                true => streams_of(view, &name, &node, &mut gaps, stop).await?,
                false => Vec::new(),
            };
            if self.json {
                listed.push((name, node, streams));
                continue;
            }
            // A stream has a line of its own, with its name behind that of the file.
            let rows = streams.iter().map(|stream| {
                let mut own = node.clone();
                (own.size, own.kind) = (stream.size, NodeKind::Regular);
                (stream_path(&name, stream), own, Vec::new())
            });
            let rows: Vec<_> = rows.collect();
            listed.push((name, node, Vec::new()));
            listed.extend(rows);
        }
        let mut lines = Lines::new();
        let width = |value: &dyn Fn(&FsNode) -> String| {
            let widths = listed.iter().map(|(_, node, _)| value(node).len());
            widths.max().unwrap_or(0)
        };
        let (links, uid, gid, size) = (
            width(&|node| node.links.to_string()),
            width(&|node| node.uid.to_string()),
            width(&|node| node.gid.to_string()),
            width(&size_text),
        );
        for (name, node, streams) in &listed {
            if self.json {
                lines.put(&json_line(name, node, streams))?;
                continue;
            }
            if !self.long {
                let name = lines.name(name);
                lines.put(&[&name, &b"\n"[..]].concat())?;
                continue;
            }
            let head = format!(
                "{} {:>links$} {:>uid$} {:>gid$} {:>size$} {:20} ",
                mode_text(node),
                node.links,
                node.uid,
                node.gid,
                size_text(node),
                time_text(node.times.modified),
            );
            let name = name_of(&lines, name, node);
            lines.put(&[head.as_bytes(), &name, b"\n"].concat())?;
        }
        lines.finish()?;
        gaps.result()
    }
}

/// The size of a file, or the numbers of a device.
pub(super) fn size_text(node: &FsNode) -> String {
    match node.kind {
        NodeKind::CharDevice | NodeKind::BlockDevice => {
            format!("{},{}", node.device.0, node.device.1)
        }
        _ => node.size.to_string(),
    }
}

impl TreeArgs {
    pub(super) fn run(self) -> Result<()> {
        let done = self.view.run(&self.source, async |view, stop| {
            let options = WalkOptions {
                depth: self.depth,
                streams: false,
            };
            walk(view, &self.path, stop, options, |item, node, _, lines| {
                let name = match item.depth {
                    0 => item.path.clone(),
                    _ => item
                        .path
                        .rsplit(|byte| *byte == b'/')
                        .next()
                        .unwrap_or_default()
                        .to_vec(),
                };
                let indent = "  ".repeat(item.depth);
                let mut line = [indent.as_bytes(), &name_of(lines, &name, node)].concat();
                if node.kind == NodeKind::Folder && name != b"/" {
                    line.push(b'/');
                }
                line.push(b'\n');
                lines.put(&line)
            })
            .await
        });
        done.map_err(only_read)
    }
}

impl FindArgs {
    pub(super) fn run(self) -> Result<()> {
        let done = self.view.run(&self.source, async |view, stop| {
            let options = WalkOptions {
                depth: None,
                streams: self.json,
            };
            walk(
                view,
                &self.path,
                stop,
                options,
                |item, node, streams, lines| {
                    let name = item
                        .path
                        .rsplit(|byte| *byte == b'/')
                        .next()
                        .unwrap_or_default();
                    let pattern = self.name.as_ref().map(|pattern| path_bytes(pattern));
                    let is_wanted = pattern.is_none_or(|pattern| matches(pattern, name))
                        && self.kind.is_none_or(|kind| kind.is_of(node.kind));
                    match (is_wanted, self.json, self.null) {
                        (false, ..) => Ok(()),
                        (true, true, _) => lines.put(&json_line(&item.path, node, streams)),
                        (true, false, true) => lines.put(&[&item.path, &b"\0"[..]].concat()),
                        (true, false, false) => {
                            let path = lines.name(&item.path);
                            lines.put(&[&path, &b"\n"[..]].concat())
                        }
                    }
                },
            )
            .await
        });
        done.map_err(only_read)
    }
}

impl TimelineArgs {
    pub(super) fn run(self) -> Result<()> {
        let done = self.view.run(&self.source, async |view, stop| {
            let options = WalkOptions {
                depth: None,
                streams: true,
            };
            walk(
                view,
                &self.path,
                stop,
                options,
                |item, node, streams, lines| {
                    let line = body_line(&item.path, node);
                    lines.put(&[line.as_bytes(), b"\n"].concat())?;
                    for stream in streams {
                        let mut own = node.clone();
                        (own.size, own.kind) = (stream.size, NodeKind::Regular);
                        let line = body_line(&stream_path(&item.path, stream), &own);
                        lines.put(&[line.as_bytes(), b"\n"].concat())?;
                    }
                    Ok(())
                },
            )
            .await
        });
        done.map_err(only_read)
    }
}

/// Whether a name matches a pattern: `*` stands for any bytes, `?` for one.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    // Where to continue when the last star takes one byte more.
    let mut retry = None;
    let (mut p, mut n) = (0, 0);
    loop {
        match (pattern.get(p), name.get(n)) {
            (Some(b'*'), _) => {
                retry = Some((p, n));
                p += 1;
            }
            (Some(wanted), Some(found)) if *wanted == b'?' || wanted == found => {
                p += 1;
                n += 1;
            }
            (None, None) => return true,
            _ => match retry {
                Some((star, taken)) if taken < name.len() => {
                    retry = Some((star, taken + 1));
                    (p, n) = (star + 1, taken + 1);
                }
                _ => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_stars_and_question_marks() {
        for (pattern, name, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "abc", true),
            ("*.txt", "a.txt", true),
            ("*.txt", "a.txt.gz", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "acb", false),
            ("?b", "ab", true),
            ("?b", "b", false),
            ("**a", "bba", true),
            ("a*", "b", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
        // Many stars do not make it slow.
        assert!(!matches(&b"*a".repeat(200), &[b'a'; 199]));
    }
}
