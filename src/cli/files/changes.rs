//! `ebsfs files changes`: which files differ between two snapshots.

use std::ffi::OsString;

use clap::Args;
use tracing::info;

use super::out::{Lines, json_of};
use super::{OpenView, ViewArgs, path_bytes};
use crate::block::Delta;
use crate::browse::{ChangeKind, FileChange, TreeChanges, quoted, utf8_or_hex};
use crate::cli::signals::{listen, only_read};
use crate::cli::store::end_reading;
use crate::error::{Error, Kind, Result};
use crate::target::Stop;
use std::sync::Arc;
use std::time::Duration;

/// List the files that differ between two snapshots
#[derive(Args, Debug)]
#[command(
    long_about = "List the files that differ between two snapshots of a volume: A added, R removed, C changed bytes, M changed metadata \
    alone. The metadata of both is read, and of files only the changed blocks."
)]
pub(super) struct FileChangesArgs {
    /// Older snapshot, as any source of `ebsfs files`
    base: String,
    /// Newer snapshot
    head: String,
    /// Path in the filesystem
    #[arg(default_value = "/")]
    path: OsString,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    view: ViewArgs,
}

impl FileChangesArgs {
    pub(super) fn run(self) -> Result<()> {
        self.view.check(&[&self.base, &self.head])?;
        let runtime = crate::cli::runtime()?;
        let done = runtime.block_on(async {
            let stop = listen()?;
            let mut base = self.view.open(&self.base, &stop).await?;
            let opened = self.view.open(&self.head, &stop).await;
            let mut head = match opened {
                Ok(head) => head,
                Err(error) => {
                    end_reading(base.lease).await;
                    return Err(error);
                }
            };
            let done = self.compare(&mut base, &mut head, &stop).await;
            end_reading(base.lease).await;
            end_reading(head.lease).await;
            done
        });
        runtime.shutdown_timeout(Duration::from_millis(200));
        done.map_err(only_read)
    }

    async fn compare(&self, base: &mut OpenView, head: &mut OpenView, stop: &Stop) -> Result<()> {
        let delta = stop.unless(delta(base, head)).await?;
        let (mut lines, mut unknown) = (Lines::new(), 0_u64);
        let mut changes = TreeChanges {
            base: &mut base.view,
            head: &mut head.view,
            delta: delta.as_deref(),
        };
        let mut each = |change: FileChange| {
            unknown += u64::from(change.kind == ChangeKind::Unknown);
            self.show(&mut lines, &change)
        };
        changes
            .compare(path_bytes(&self.path), stop, &mut each)
            .await?;
        lines.finish()?;
        match unknown {
            0 => Ok(()),
            count => {
                let what = format!("cannot compare {count} of the files");
                Err(Error::new(Kind::Corrupt, what))
            }
        }
    }

    fn show(&self, lines: &mut Lines, change: &FileChange) -> Result<()> {
        let (letter, name) = change.kind.words();
        if !self.json {
            let problem = change
                .problem
                .as_deref()
                .map(|why| format!(": {}", quoted(why.as_bytes())));
            let path = lines.name(&change.path);
            let end = problem.unwrap_or_default() + "\n";
            return lines.put(&[format!("{letter} ").as_bytes(), &path, end.as_bytes()].concat());
        }
        let mut map = match &change.node {
            Some(node) => json_of(&change.path, node, &[]),
            None => {
                let mut map = serde_json::Map::new();
                map.insert("path".into(), utf8_or_hex(&change.path).0.into());
                map
            }
        };
        map.insert("change".into(), name.into());
        if let Some(problem) = &change.problem {
            map.insert("problem".into(), problem.clone().into());
        }
        lines.put(format!("{}\n", serde_json::Value::Object(map)).as_bytes())
    }
}

/// The blocks that differ, where a catalog knows them.
async fn delta(base: &OpenView, head: &OpenView) -> Result<Option<Arc<Delta>>> {
    let (old, new) = (base.source.info.id(), head.source.info.id());
    if let (Some(catalog), Some(old), Some(new)) = (&head.source.catalog, old, new)
        && base.source.catalog.is_some()
    {
        match catalog.delta(&old, &new).await {
            Ok((delta, _)) => return Ok(Some(delta)),
            Err(error) if matches!(error.kind(), Kind::Unrelated | Kind::NotFound) => {
                info!("{}", error.chain());
            }
            Err(error) => return Err(error),
        }
    }
    info!("it is unknown which blocks changed: all files are compared");
    Ok(None)
}
