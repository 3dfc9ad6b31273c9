//! `ebsfs files stat`.

use std::ffi::OsString;

use clap::Args;

use super::list::{name_of, size_text};
use super::out::{Lines, json_of};
use super::{ViewArgs, lookup};
use crate::browse::{FileView, mode_text, quoted, shown_time, utf8_or_hex};
use crate::cli::signals::only_read;
use crate::error::Result;
use crate::target::Stop;

/// Print all metadata of a file
#[derive(Args, Debug)]
pub(super) struct StatArgs {
    /// Snapshot id, volume id, tag:KEY=VALUE, snapshot of a repository, raw image or block device
    source: String,
    /// Path in the filesystem
    path: OsString,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    view: ViewArgs,
}

impl StatArgs {
    pub(super) fn run(self) -> Result<()> {
        let done = self
            .view
            .run(&self.source, async |view, stop| self.stat(view, stop).await);
        done.map_err(only_read)
    }

    async fn stat(&self, view: &mut FileView, stop: &Stop) -> Result<()> {
        let found = lookup(view, &self.path, stop).await?;
        let (xattrs, _) = stop.unless(view.xattrs(found.node.id)).await?;
        let streams = stop.unless(view.streams(&found.node)).await?;
        let (path, node) = (&found.path, &found.node);
        let mut lines = Lines::new();
        if self.json {
            let mut map = json_of(path, node, &streams);
            let named = xattrs.iter().map(|(name, value)| {
                let (name, _) = utf8_or_hex(name);
                (name, crate::block::hexadecimal(value).into())
            });
            map.insert(
                "xattrs_hex".into(),
                serde_json::Value::Object(named.collect()),
            );
            map.insert("filesystem".into(), view.filesystem().into());
            let partition = view.partition().map(|partition| partition.name.as_str());
            map.insert("partition".into(), partition.into());
            lines.put(format!("{}\n", serde_json::Value::Object(map)).as_bytes())?;
            return lines.finish();
        }
        let name = [
            b"path      ".to_vec(),
            name_of(&lines, path, node),
            b"\n".to_vec(),
        ]
        .concat();
        lines.put(&name)?;
        let times = &node.times;
        let mut rows = vec![
            ("type", node.kind.name().to_owned()),
            ("mode", format!("{:04o} {}", node.mode, mode_text(node))),
            ("owner", format!("{}:{}", node.uid, node.gid)),
            ("size", size_text(node)),
            ("links", node.links.to_string()),
            ("inode", node.id.to_string()),
        ];
        for (name, time) in [
            ("modified", times.modified),
            ("accessed", times.accessed),
            ("changed", times.changed),
            ("created", times.created),
        ] {
            rows.extend(time.map(|time| (name, shown_time(time, true))));
        }
        for (name, value) in rows {
            lines.put(format!("{name:10}{value}\n").as_bytes())?;
        }
        for stream in streams {
            let line = format!(
                "stream    {}, {} bytes\n",
                quoted(&stream.name),
                stream.size
            );
            lines.put(line.as_bytes())?;
        }
        for (name, value) in xattrs {
            let line = format!("xattr     {} = {}\n", quoted(&name), quoted(&value));
            lines.put(line.as_bytes())?;
        }
        lines.finish()
    }
}
