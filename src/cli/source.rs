//! Opens the source of a sync.

mod args;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tracing::info;

use super::aws::{self, AwsArgs};
use super::store::{StoreOptions, end_reading};
use super::target::local_target;
use crate::block::{BLOCK_SIZE, BlockIndex, BlockSet};
use crate::ebs::{Client, EbsCatalog, Limits};
use crate::error::{Error, Kind, Remedy, Result};
use crate::formats::ImageFormat;
use crate::repository::{Address, Lease, ManifestName, RepositoryCatalog};
use crate::snapshot::{Selector, Snapshot, SnapshotId, SnapshotState};
use crate::source::{BlockSource, Catalog, DamagedSource, DiskSource};
use crate::sync::{self, Source};
use crate::target::{Content, SourceInfo, Stop, VolumeKey};
use crate::targets::{mark_of, volume_key_of};

pub(super) use args::SourceArgs;

/// Between two looks at a snapshot that is pending, at first and at most.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const LONGEST_LOOK: Duration = Duration::from_secs(30);

/// What a person named as a source, and how it is reached.
pub(super) struct SourceRequest<'a> {
    /// A snapshot id, a volume id, `tag:KEY=VALUE`, a path, or a snapshot of a repository.
    pub(super) name: &'a str,
    pub(super) aws: &'a AwsArgs,
    pub(super) store: StoreOptions,
    pub(super) limits: Limits,
    /// How long a pending snapshot is waited for.
    pub(super) wait: Option<Duration>,
    /// Where the records of devices are: one that is not whole is no source.
    pub(super) state_dir: &'a Path,
    /// Which of its targets are new EBS snapshots.
    pub(super) to_ebs: ToEbs,
}

/// Which targets of a source are new EBS snapshots: these take whole blocks only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToEbs {
    None,
    Some,
    All,
}

/// A source, and what is known of it.
pub(super) struct OpenedSource {
    pub(super) source: Source,
    /// Fetches it, if it is read from EBS.
    pub(super) client: Option<Arc<Client>>,
    /// Members of the report.
    pub(super) about: Value,
    /// Keeps what is read of a repository from being swept.
    pub(super) lease: Option<Lease>,
}

impl OpenedSource {
    /// A source that an earlier run staged on this machine.
    pub(super) fn staged(source: Source) -> Self {
        Self {
            source,
            client: None,
            about: json!({"staged": true}),
            lease: None,
        }
    }
}

/// Opens what a person named, unless the stop comes. A lease that has started is ended then.
pub(super) async fn open(request: &SourceRequest<'_>, stop: &Stop) -> Result<OpenedSource> {
    let name = request.name;
    if Address::looks_like(name) {
        return repository(request, &name.parse()?, stop).await;
    }
    // A name that selects a snapshot is never read as a file's.
    match name.parse::<Selector>() {
        Ok(selector) => stop.unless(snapshot(request, selector)).await,
        Err(_) => disk(request),
    }
}

async fn snapshot(request: &SourceRequest<'_>, selector: Selector) -> Result<OpenedSource> {
    let config = request.aws.load_with_credentials().await?;
    let (client, catalog) = aws::catalog(&config, &request.limits, vec![selector.clone()])?;
    let id = match selector {
        Selector::Snapshot(id) => id,
        _ => newest(&catalog, request).await?,
    };
    let (snapshot, blocks) = completed(&catalog, &id, request.wait).await?;
    let about = json!({
        "snapshot": snapshot,
        "account": snapshot.owner_id,
        "region": config.region(),
        "endpoint": client.endpoint(),
    });
    Ok(OpenedSource {
        source: of_snapshot(snapshot, blocks, catalog),
        client: Some(client),
        about,
        lease: None,
    })
}

/// An EBS snapshot as a source.
pub(super) fn of_snapshot(
    snapshot: Snapshot,
    blocks: Arc<dyn BlockSource>,
    catalog: Arc<dyn Catalog>,
) -> Source {
    // Copies, and what the direct APIs made, have this for a volume.
    let volume = snapshot.volume_id.clone();
    let info = SourceInfo {
        name: snapshot.id.to_string(),
        geometry: blocks.geometry(),
        size: None,
        mark: None,
        volume_key: volume
            .as_deref()
            .map_or_else(VolumeKey::unknown, VolumeKey::of_volume),
        volume: volume.filter(|volume| volume != "vol-ffffffff"),
        encrypted: snapshot.encrypted,
        snapshot: Some(snapshot),
        has_changes: true,
        damaged_in_source: 0,
    };
    Source {
        info,
        blocks,
        catalog: Some(catalog),
        mark: None,
        is_staged: false,
    }
}

/// The newest snapshot that a volume or a tag selects: a completed one, or with `--wait` one that is pending too.
async fn newest(catalog: &EbsCatalog, request: &SourceRequest<'_>) -> Result<SnapshotId> {
    let mut found = catalog.list().await?;
    found.retain(|snapshot| match &snapshot.state {
        Some(SnapshotState::Completed) | None => true,
        Some(SnapshotState::Pending) => request.wait.is_some(),
        Some(SnapshotState::Other(_)) => false,
    });
    let name = request.name;
    let newest = found.pop().ok_or_else(|| {
        let what = format!("cannot read {name}: it has no completed snapshot");
        Error::new(Kind::NotFound, what)
    })?;
    info!("the newest snapshot of {name} is {}", newest.id);
    Ok(newest.id.clone())
}

pub(super) type OpenSnapshot = (Snapshot, Arc<dyn BlockSource>);

/// Opens a snapshot; with `wait`, waits so long for one that is pending.
pub(super) async fn completed(
    catalog: &EbsCatalog,
    id: &SnapshotId,
    wait: Option<Duration>,
) -> Result<OpenSnapshot> {
    let since = Instant::now();
    let mut pause = FIRST_LOOK;
    loop {
        match catalog.open(id).await {
            Err(error) if error.kind() == Kind::Pending => {
                let Some(limit) = wait else {
                    return Err(error.with_remedy(Remedy::Do("--wait waits for it".into())));
                };
                if since.elapsed() > limit {
                    return Err(error);
                }
                info!("waiting: {}", error.chain());
            }
            opened => return opened,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_LOOK);
    }
}

async fn repository(
    request: &SourceRequest<'_>,
    address: &Address,
    stop: &Stop,
) -> Result<OpenedSource> {
    let select = address.select.as_deref().ok_or_else(|| {
        let what = format!(
            "cannot read {address}: it names no snapshot; use {address}#SNAPSHOT or #latest"
        );
        Error::new(Kind::Invalid, what)
    })?;
    let store = request.store.repository(address, request.aws);
    let catalog = stop.unless(store).await?;
    let lease = stop.unless(catalog.begin_reading(select)).await?;
    let opened = repository_snapshot(request, address, select, catalog);
    match stop.unless(opened).await {
        Ok(opened) => Ok(OpenedSource { lease, ..opened }),
        Err(error) => {
            end_reading(lease).await;
            Err(error)
        }
    }
}

async fn repository_snapshot(
    request: &SourceRequest<'_>,
    address: &Address,
    select: &str,
    catalog: RepositoryCatalog,
) -> Result<OpenedSource> {
    let name = catalog.find(select).await?;
    let source = of_repository(catalog, &name).await?;
    if request.to_ebs != ToEbs::None {
        check_whole_blocks(&source.info)?;
    }
    let about = json!({"snapshot": source.info.snapshot, "endpoint": address.to_string()});
    Ok(OpenedSource {
        source,
        client: None,
        about,
        lease: None,
    })
}

/// Refuses a source for `ebs:` that ends within a block.
pub(super) fn check_whole_blocks(source: &SourceInfo) -> Result<()> {
    if source.geometry.size().is_multiple_of(u64::from(BLOCK_SIZE)) {
        return Ok(());
    }
    let what = format!(
        "cannot copy {} to ebs: it is no whole number of 512 KiB blocks",
        source.name
    );
    Err(Error::new(Kind::Invalid, what))
}

/// A snapshot of a repository as a source.
pub(super) async fn of_repository(
    catalog: RepositoryCatalog,
    name: &ManifestName,
) -> Result<Source> {
    let (snapshot, blocks) = catalog.open(&name.snapshot).await?;
    let info = SourceInfo {
        name: snapshot.id.to_string(),
        geometry: blocks.geometry(),
        size: None,
        mark: None,
        volume: snapshot
            .volume_id
            .clone()
            .filter(|volume| volume != "vol-ffffffff"),
        volume_key: name.volume.clone(),
        encrypted: snapshot.encrypted,
        snapshot: Some(snapshot),
        has_changes: true,
        damaged_in_source: 0,
    };
    Ok(Source {
        info,
        blocks,
        catalog: Some(Arc::new(catalog)),
        mark: None,
        is_staged: false,
    })
}

fn disk(request: &SourceRequest<'_>) -> Result<OpenedSource> {
    let name = request.name;
    if let Some(found) = looks_like_aws(name).filter(|_| !Path::new(name).exists()) {
        let what = format!("cannot read {name:?}: it is no {found} and no file");
        return Err(Error::new(Kind::Invalid, what));
    }
    let mut disk = DiskSource::open(name.as_ref())?;
    let size = disk.geometry().size();
    if size % u64::from(BLOCK_SIZE) > 0 {
        // Blocks go to all targets alike, and EBS takes whole ones only.
        match request.to_ebs {
            ToEbs::None => {}
            ToEbs::All => disk = disk.padded_to_gib()?,
            ToEbs::Some => {
                let what = format!(
                    "cannot copy {name} to ebs: and to other targets in one run: it is no whole number of 512 KiB blocks"
                );
                return Err(Error::new(Kind::Invalid, what));
            }
        }
    }
    let path = Path::new(name)
        .canonicalize()
        .map_err(|error| Error::of_file(name.as_ref(), "cannot find", error))?;
    let format = ImageFormat::of(&path);
    if format != ImageFormat::Raw {
        let what = format!(
            "cannot read {name}: a source is a raw image, not a .{} file",
            format.name()
        );
        let remedy = "make a raw image of it: qemu-img convert -O raw";
        return Err(Error::new(Kind::Invalid, what).with_remedy(Remedy::Do(remedy.into())));
    }
    let display = path.display().to_string();
    let recorded = sync::status(&*local_target(&display, true, false, request.state_dir)?)?;
    if let Some(Content::Between { head, .. }) = recorded.content {
        let what =
            format!("cannot read {name}: it is not whole, a copy of {head} to it is unfinished");
        return Err(Error::new(Kind::Invalid, what));
    }
    let geometry = disk.geometry();
    let end = BlockIndex(geometry.block_count());
    let damaged = BlockSet::of_pairs(&recorded.damaged, end);
    let mut blocks: Arc<dyn BlockSource> = Arc::new(disk);
    if !damaged.is_empty() {
        blocks = Arc::new(DamagedSource::new(blocks, damaged, &display));
    }
    let info = SourceInfo {
        name: display,
        geometry,
        size: Some(size),
        mark: mark_of(&path),
        volume: None,
        volume_key: volume_key_of(&path),
        encrypted: Some(false),
        snapshot: None,
        has_changes: false,
        damaged_in_source: recorded.damaged_in_source,
    };
    let source = Source {
        info,
        blocks,
        catalog: None,
        mark: Some(Box::new(move || mark_of(&path))),
        is_staged: false,
    };
    Ok(OpenedSource {
        source,
        client: None,
        about: json!({}),
        lease: None,
    })
}

/// What a name looks like that is neither a snapshot selector nor a file.
fn looks_like_aws(name: &str) -> Option<&'static str> {
    [
        ("snap-", "snapshot id"),
        ("vol-", "volume id"),
        ("tag:", "tag:KEY=VALUE"),
    ]
    .into_iter()
    .find_map(|(prefix, what)| name.starts_with(prefix).then_some(what))
}
