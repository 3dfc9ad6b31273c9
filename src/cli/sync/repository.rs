//! A repository as a target: what of the source it holds already, what a run is to bring, how it is opened for that.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;
use tracing::{info, warn};

use super::plan::Base;
use super::target::{Place, beside_in};
use super::{Source, SyncArgs};
use crate::error::{Error, Kind, Result};
use crate::repository::{
    Address, Bringing, Index, Parent, RepositoryCatalog, RepositorySink, RootName,
};
use crate::sink::Sink;
use crate::source::SnapshotId;
use crate::sync::{Checkpoint, Task};

/// A repository that a snapshot is brought into.
#[derive(Debug)]
pub(super) struct Repository {
    catalog: RepositoryCatalog,
    /// Where the index is by which no content is sent twice, if one is used.
    index: Option<PathBuf>,
}

/// What a run begins from.
pub(super) struct Beginning {
    /// The newest snapshot of the volume, whose blocks are not sent again.
    parent: Option<Parent>,
    /// The same as a snapshot of the source, if only what changed since it is to be read.
    pub(super) base: Option<SnapshotId>,
}

impl Repository {
    /// Reaches it, and makes it one if there is none, unless it is only looked at.
    pub(super) async fn connect(address: &str, args: &SyncArgs) -> Result<Self> {
        let address: Address = address.parse()?;
        address.names_no_snapshot()?;
        let aws = args.to.account(&args.aws);
        let make = !args.dry_run;
        let store = args
            .store
            .open(&address, &aws, args.limits.timeout, make)
            .await?;
        let catalog = match make {
            true => RepositoryCatalog::open(store, true).await?,
            false => RepositoryCatalog::look(store).await?,
        };
        let id = format!("repository {}", catalog.id());
        let index = || beside_in(&args.state_dir, &id, "index");
        Ok(Self {
            index: args.dedup.then(index),
            catalog,
        })
    }

    /// As a person writes it.
    pub(super) fn shown(&self) -> String {
        self.catalog.store().address().to_string()
    }

    /// What tells it from others, wherever it is.
    pub(super) fn id(&self) -> &str {
        self.catalog.id()
    }

    /// Whether it holds the source.
    pub(super) async fn holds(&self, source: &Source) -> Result<bool> {
        let Ok(id) = source.name.parse::<SnapshotId>() else {
            return Ok(false);
        };
        let names = self.catalog.names().await?;
        let Some(name) = names.iter().find(|name| name.snapshot == id) else {
            return Ok(false);
        };
        match self.catalog.root(name).await {
            // Brought once more it is whole again.
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => Ok(false),
            root => root.map(|_| true),
        }
    }

    /// Finds out what a run begins from.
    pub(super) async fn beginning(
        &self,
        base: Option<&Base>,
        source: &Source,
    ) -> Result<Beginning> {
        let names = self.catalog.names().await?;
        let parent = match base {
            Some(Base::Snapshot(id)) => {
                let found = names.iter().rfind(|name| name.snapshot == *id);
                Some(found.ok_or_else(|| {
                    let what = format!(
                        "{} does not hold {id}: use --base auto, or no base to read it all",
                        self.shown()
                    );
                    Error::new(Kind::Invalid, what)
                })?)
            }
            _ => {
                let volume = volume_of(source);
                let key = RootName::volume_key(volume);
                names.iter().rfind(|name| {
                    let is_itself = name.snapshot.as_str() == source.name;
                    volume.is_some() && name.volume == key && !is_itself
                })
            }
        };
        if base == Some(&Base::Auto) && parent.is_none() {
            info!(
                "no snapshot of this volume is known in {}: copying it all",
                self.shown()
            );
        }
        // Of an image nobody tells what changed.
        let is_base = base.is_some() && source.catalog().is_some();
        let counted = match parent {
            Some(name) => self.catalog.parent(name).await?,
            None => None,
        };
        let base = parent.filter(|_| is_base && counted.is_some());
        Ok(Beginning {
            base: base.map(|name| name.snapshot.clone()),
            parent: counted,
        })
    }

    /// What a run is to bring.
    pub(super) fn begin(
        &self,
        beginning: &Beginning,
        task: &Task,
        source: &Source,
    ) -> Result<Bringing> {
        let snapshot = match source.name.parse() {
            Ok(id) => id,
            Err(_) => format!("snap-{}", task.run.get(..17).unwrap_or_default()).parse()?,
        };
        let told = source.told();
        Ok(Bringing {
            run: task.run.clone(),
            address: self.shown(),
            snapshot,
            volume: volume_of(source).map(str::to_owned),
            time: told
                .and_then(|told| told.start_time)
                .unwrap_or_else(SystemTime::now),
            volume_bytes: source.size.unwrap_or(source.blocks.geometry().size()),
            base: beginning.base.clone(),
            parent: beginning.parent.clone(),
            encrypted: source.is_encrypted(),
            description: told.and_then(|told| told.description.clone()),
            tags: told.map(|told| told.tags.clone()).unwrap_or_default(),
            packs: 0,
            sent_blocks: 0,
            sent_bytes: 0,
            stored_bytes: 0,
        })
    }

    /// Goes on record in the repository, or on with what is.
    pub(super) async fn open(&self, checkpoint: &Checkpoint) -> Result<Arc<dyn Sink>> {
        let bringing = bringing_of(checkpoint.state()).ok_or_else(|| {
            let what = "the checkpoint tells of no run: --restart begins anew";
            Error::new(Kind::Corrupt, what)
        })?;
        let anew = checkpoint.done() == 0;
        let id = checkpoint.task().target.clone();
        let store = Arc::clone(self.catalog.store());
        let sink = RepositorySink::open(id, store, bringing, checkpoint.path(), anew).await?;
        let Some(path) = &self.index else {
            return Ok(Arc::new(sink));
        };
        match Index::update(&self.catalog, path).await {
            Ok(index) => Ok(Arc::new(sink.with_index(index))),
            // Without it more is sent, and nothing is wrong.
            Err(error) if matches!(error.kind(), Kind::Io | Kind::NoSpace | Kind::Corrupt) => {
                warn!("going on without --dedup: {}", error.chain());
                Ok(Arc::new(sink))
            }
            Err(error) => Err(error),
        }
    }

    /// Forgets what an unfinished run left that is not gone on with.
    pub(super) async fn forget_left(&self, place: &Place) -> Result<()> {
        // A damaged one tells of no run.
        let left = place.checkpoint().ok().flatten();
        let Some(left) = left.and_then(|left| bringing_of(left.state())) else {
            return Ok(());
        };
        RepositorySink::forget(self.catalog.store(), &left.run, &place.checkpoint_path()).await
    }

    /// What names a snapshot of it.
    pub(super) fn name_of(&self, snapshot: &SnapshotId) -> String {
        format!("{}#{snapshot}", self.shown())
    }
}

/// The volume, of an image or a device its path.
fn volume_of(source: &Source) -> Option<&str> {
    let path = source.catalog().is_none().then_some(&*source.name);
    source.volume().or(path)
}

/// What a checkpoint tells of a run that brings a snapshot into a repository.
pub(super) fn bringing_of(state: &Value) -> Option<Bringing> {
    serde_json::from_value(state.clone()).ok()
}
