//! What `ebsfs files` prints: names as they are, quoted for a terminal; JSON, one object a line.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use serde_json::{Map, Value, json};

use crate::block::ZEROES;
use crate::browse::{
    FileReading, FileView, FoundPath, FsNode, FsStream, FsTime, NodeKind, quoted, shown_time,
    utf8_or_hex,
};
use crate::error::{Error, Kind, Result};
use crate::target::Stop;

/// stdout. A reader that has seen enough (`| head`) ends the output, and is no error.
pub(super) struct Lines {
    out: BufWriter<Stdout>,
    is_terminal: bool,
    is_closed: bool,
}

impl Lines {
    pub(super) fn new() -> Self {
        let out = io::stdout();
        Self {
            is_terminal: out.is_terminal(),
            out: BufWriter::new(out),
            is_closed: false,
        }
    }

    /// Whether nothing more is read.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Writes bytes as they are.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.check(|out| out.write_all(bytes))
    }

    fn check(
        &mut self,
        write: impl FnOnce(&mut BufWriter<Stdout>) -> io::Result<()>,
    ) -> Result<()> {
        if self.is_closed {
            return Ok(());
        }
        match write(&mut self.out) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(())
            }
            done => done.map_err(|error| Error::with_source(Kind::Io, "stdout", error)),
        }
    }

    /// A name as stdout shows it.
    pub(super) fn name(&self, name: &[u8]) -> Vec<u8> {
        match self.is_terminal {
            true => quoted(name).into_bytes(),
            false => name.to_vec(),
        }
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.check(Write::flush)
    }
}

/// A file as JSON, with the streams that are known of it.
pub(super) fn json_of(path: &[u8], node: &FsNode, streams: &[FsStream]) -> Map<String, Value> {
    let mut map = Map::new();
    let (text, bytes) = utf8_or_hex(path);
    map.insert("path".into(), text.into());
    if let Some(bytes) = bytes {
        map.insert("path_hex".into(), bytes.into());
    }
    map.insert("type".into(), node.kind.name().into());
    map.insert("mode".into(), format!("{:04o}", node.mode).into());
    map.insert("uid".into(), node.uid.into());
    map.insert("gid".into(), node.gid.into());
    map.insert("size".into(), node.size.into());
    map.insert("links".into(), node.links.into());
    map.insert("inode".into(), node.id.into());
    let times = &node.times;
    for (name, time) in [
        ("modified", times.modified),
        ("accessed", times.accessed),
        ("changed", times.changed),
        ("created", times.created),
    ] {
        map.insert(name.into(), time.map(|time| shown_time(time, true)).into());
    }
    if node.kind == NodeKind::Link {
        let (text, bytes) = utf8_or_hex(&node.target);
        map.insert("target".into(), text.into());
        if let Some(bytes) = bytes {
            map.insert("target_hex".into(), bytes.into());
        }
    }
    if matches!(node.kind, NodeKind::CharDevice | NodeKind::BlockDevice) {
        map.insert("device".into(), json!([node.device.0, node.device.1]));
    }
    if !streams.is_empty() {
        let streams = streams.iter().map(|stream| {
            let (name, bytes) = utf8_or_hex(&stream.name);
            let mut map = Map::from_iter([
                ("name".to_owned(), name.into()),
                ("size".to_owned(), stream.size.into()),
            ]);
            if let Some(bytes) = bytes {
                map.insert("name_hex".into(), bytes.into());
            }
            Value::Object(map)
        });
        map.insert("streams".into(), streams.collect());
    }
    map
}

/// A time in a column.
pub(super) fn time_text(time: Option<FsTime>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| shown_time(time, false))
}

/// Prints the bytes of a file or stream.
pub(super) async fn cat(view: &mut FileView, found: &FoundPath, stop: &Stop) -> Result<()> {
    let node = &found.node;
    if node.kind != NodeKind::Regular && found.stream.is_none() {
        let what = format!(
            "cannot print {}: it is no regular file ({})",
            quoted(&found.path),
            node.kind.name()
        );
        return Err(Error::new(Kind::Invalid, what));
    }
    let mut reading = FileReading::new(found.data());
    let mut lines = Lines::new();
    while let Some(piece) = stop.unless(reading.next(view)).await? {
        match piece.bytes {
            Some(bytes) => lines.put(&bytes)?,
            None => {
                let mut left = piece.len;
                while left > 0 && !lines.is_closed() {
                    stop.check()?;
                    let len =
                        usize::try_from(left).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
                    lines.put(ZEROES.get(..len).unwrap_or_default())?;
                    left -= len as u64;
                }
            }
        }
        if lines.is_closed() {
            return Ok(());
        }
    }
    lines.finish()
}
