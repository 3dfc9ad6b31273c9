//! What is copied from.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::SyncArgs;
use super::target::Place;
use crate::block::BLOCK_SIZE;
use crate::cli::aws;
use crate::disk::DiskSource;
use crate::ebs::Client;
use crate::error::{Error, Kind, Result};
use crate::repository::{Address, RepositoryCatalog};
use crate::sinks::mark_of;
use crate::source::{BlockSource, Catalog, Selector, Snapshot, SnapshotId};
use crate::sync::Content;

/// A snapshot, or an image or device of this machine.
pub(super) struct Source {
    /// What records call it.
    pub(super) name: String,
    /// As it is now, if it is of this machine and can change.
    pub(super) mark: Option<Value>,
    /// Its bytes, if they are not those of a whole volume.
    pub(super) size: Option<u64>,
    pub(super) blocks: Arc<dyn BlockSource>,
    snapshot: Option<(Snapshot, Arc<dyn Catalog>)>,
    client: Option<Arc<Client>>,
}

impl Source {
    /// Opens what a person named.
    pub(super) async fn open(args: &SyncArgs) -> Result<Self> {
        let name = args.source.as_deref().unwrap_or_default();
        if Address::looks_like(name) {
            return Self::repository(args, &name.parse()?).await;
        }
        match name.parse::<SnapshotId>() {
            Ok(id) => Self::snapshot(args, &id).await,
            Err(_) => Self::disk(args, name),
        }
    }

    async fn snapshot(args: &SyncArgs, id: &SnapshotId) -> Result<Self> {
        let config = args.aws.load_with_credentials().await?;
        let select = vec![Selector::Snapshot(id.clone())];
        let (client, catalog) = aws::catalog(&config, &args.limits(), select);
        let (snapshot, blocks) = catalog.open(id).await?;
        Ok(Self {
            name: id.to_string(),
            mark: None,
            size: None,
            blocks,
            snapshot: Some((snapshot, catalog)),
            client: Some(client),
        })
    }

    async fn repository(args: &SyncArgs, address: &Address) -> Result<Self> {
        let select = address.select.as_deref().ok_or_else(|| {
            let what = format!("which snapshot of {address}: say {address}#SNAPSHOT or #latest");
            Error::new(Kind::Invalid, what)
        })?;
        let store = args
            .store
            .open(address, &args.aws, args.limits.timeout, false)
            .await?;
        let catalog = RepositoryCatalog::open(store, false).await?;
        let name = catalog.find(select).await?;
        let (snapshot, blocks) = catalog.open(&name.snapshot).await?;
        let size = blocks.geometry().size();
        if size % u64::from(BLOCK_SIZE) > 0 && args.targets.iter().any(|to| to.starts_with("ebs:"))
        {
            let what = format!(
                "{} has no whole number of 512 KiB blocks: EBS takes no others",
                snapshot.id
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        Ok(Self {
            name: snapshot.id.to_string(),
            mark: None,
            size: None,
            blocks,
            snapshot: Some((snapshot, Arc::new(catalog))),
            client: None,
        })
    }

    fn disk(args: &SyncArgs, name: &str) -> Result<Self> {
        if matches!(&args.base, Some(super::Base::Snapshot(_))) || args.bandwidth.is_some() {
            let what =
                format!("{name:?} is no snapshot: --base SNAPSHOT and --bandwidth are for those");
            return Err(Error::new(Kind::Invalid, what));
        }
        let mut disk = DiskSource::open(name.as_ref())?;
        let size = disk.geometry().size();
        if size % u64::from(BLOCK_SIZE) > 0 {
            // Blocks go to all targets alike, and EBS takes whole ones only.
            let to_ebs = args.targets.iter().filter(|to| to.starts_with("ebs:"));
            match to_ebs.count() {
                0 => {}
                n if n == args.targets.len() => disk = disk.padded_to_gib()?,
                _ => {
                    let what = format!(
                        "{name} is no whole number of 512 KiB blocks: copy it to ebs: and to other targets in two runs"
                    );
                    return Err(Error::new(Kind::Invalid, what));
                }
            }
        }
        // What ebsfs itself has left half way is no volume.
        if let Ok(place) = Place::of(name.as_ref(), &args.state_dir, true)
            && let Content::Between { head, .. } = place.record().content()?
        {
            let what = format!("{name} is not whole: a copy of {head} to it is unfinished");
            return Err(Error::new(Kind::Invalid, what));
        }
        let path = Path::new(name)
            .canonicalize()
            .map_err(|error| Error::of_file(name.as_ref(), "cannot find", error))?;
        Ok(Self {
            name: path.display().to_string(),
            mark: mark_of(&path),
            size: Some(size),
            blocks: Arc::new(disk),
            snapshot: None,
            client: None,
        })
    }

    /// Where it is from, if it is a snapshot.
    pub(super) fn catalog(&self) -> Option<(&SnapshotId, &dyn Catalog)> {
        let (snapshot, catalog) = self.snapshot.as_ref()?;
        Some((&snapshot.id, &**catalog))
    }

    /// What is told of it there.
    pub(super) fn told(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref().map(|(snapshot, _)| snapshot)
    }

    /// Who fetches it from EBS.
    pub(super) fn client(&self) -> Option<&Arc<Client>> {
        self.client.as_ref()
    }

    /// The volume that it is of, if that is known and one.
    pub(super) fn volume(&self) -> Option<&str> {
        let (snapshot, _) = self.snapshot.as_ref()?;
        // Copies and what the direct APIs made show this for a volume.
        let volume = snapshot.volume_id.as_deref();
        volume.filter(|volume| *volume != "vol-ffffffff")
    }

    /// Whether it is encrypted where it is, if that is known.
    pub(super) fn is_encrypted(&self) -> Option<bool> {
        match &self.snapshot {
            Some((snapshot, _)) => snapshot.encrypted,
            None => Some(false),
        }
    }

    /// Whether a source of this machine is as it was when it was opened.
    pub(super) fn check(&self) -> Result<()> {
        if self.mark.is_none() || self.mark == mark_of(self.name.as_ref()) {
            return Ok(());
        }
        let what = format!(
            "{} was written while it was copied: the copy is neither the one nor the other",
            self.name
        );
        Err(Error::new(Kind::Corrupt, what))
    }
}
