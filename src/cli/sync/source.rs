//! What is copied from, opened.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tracing::info;

use super::SyncArgs;
use super::place::local_target;
use crate::block::BLOCK_SIZE;
use crate::cli::aws;
use crate::ebs::{Client, EbsCatalog};
use crate::error::{Error, Kind, Remedy, Result};
use crate::repository::{Address, RepositoryCatalog};
use crate::source::{BlockSource, Catalog, DiskSource, Selector, Snapshot, SnapshotId, State};
use crate::sync::{Source, staged_source};
use crate::target::{Base, SourceInfo};
use crate::targets::mark_of;

/// Between two looks at a snapshot that is pending, at first and at most.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const LONGEST_LOOK: Duration = Duration::from_secs(30);

/// A source, and what is told of it.
pub(super) struct Opened {
    pub(super) source: Source,
    /// Fetches it, if it is read from EBS.
    pub(super) client: Option<Arc<Client>>,
    /// Members of the report.
    pub(super) about: Value,
}

/// Opens what a person named.
pub(super) async fn open(args: &SyncArgs) -> Result<Opened> {
    let name = args.source.as_deref().unwrap_or_default();
    if let Some(directory) = &args.stage
        && let Some(source) = staged(args, directory, name)?
    {
        info!(
            "{name} is staged in {}: nothing is asked of AWS",
            directory.display()
        );
        return Ok(Opened {
            source,
            client: None,
            about: json!({"staged": true}),
        });
    }
    if Address::looks_like(name) {
        return repository(args, &name.parse()?).await;
    }
    // A file of that name goes first only where the name selects no snapshot.
    match name.parse::<Selector>() {
        Ok(selector) => snapshot(args, selector).await,
        Err(_) => disk(args, name),
    }
}

/// What an earlier run staged of a snapshot for every one of the targets.
fn staged(args: &SyncArgs, directory: &Path, name: &str) -> Result<Option<Source>> {
    let mut targets = Vec::new();
    for target in &args.targets {
        if target.starts_with("ebs:") || Address::looks_like(target) {
            return Ok(None);
        }
        match local_target(target, args.in_place, args.shared, &args.state_dir()) {
            Ok(target) => targets.push(target),
            // It is reported when it is opened.
            Err(_) => return Ok(None),
        }
    }
    staged_source(directory, name, &targets)
}

async fn snapshot(args: &SyncArgs, selector: Selector) -> Result<Opened> {
    let config = args.aws.load_with_credentials().await?;
    let (client, catalog) = aws::catalog(&config, &args.limits(), vec![selector.clone()]);
    let id = match selector {
        Selector::Snapshot(id) => id,
        _ => newest(&catalog, args).await?,
    };
    let (snapshot, blocks) = completed(&catalog, &id, args.wait).await?;
    let about = json!({
        "snapshot": snapshot,
        "account": snapshot.owner_id,
        "region": config.region().map(ToString::to_string),
        "endpoint": client.endpoint(),
    });
    // Copies, and what the direct APIs made, have this for a volume.
    let volume = snapshot.volume_id.clone();
    let info = SourceInfo {
        name: id.to_string(),
        geometry: blocks.geometry(),
        size: None,
        mark: None,
        volume: volume.filter(|volume| volume != "vol-ffffffff"),
        encrypted: snapshot.encrypted,
        snapshot: Some(snapshot),
        has_changes: true,
    };
    let source = Source {
        info,
        blocks,
        catalog: Some(catalog),
        mark: None,
        is_staged: false,
    };
    Ok(Opened {
        source,
        client: Some(client),
        about,
    })
}

/// The newest snapshot that a volume or a tag selects: a completed one, or with `--wait` one that is pending too.
async fn newest(catalog: &EbsCatalog, args: &SyncArgs) -> Result<SnapshotId> {
    let mut found = catalog.list().await?;
    found.retain(|snapshot| match &snapshot.state {
        Some(State::Completed) | None => true,
        Some(State::Pending) => args.wait.is_some(),
        Some(State::Other(_)) => false,
    });
    let name = args.source.as_deref().unwrap_or_default();
    let newest = found.pop().ok_or_else(|| {
        let what = format!("cannot copy {name}: it has no completed snapshot");
        Error::new(Kind::NotFound, what)
    })?;
    info!("the newest snapshot of {name} is {}", newest.id);
    Ok(newest.id)
}

type Found = (Snapshot, Arc<dyn BlockSource>);

/// Opens a snapshot; one that is pending is waited for, if that is asked for.
async fn completed(catalog: &EbsCatalog, id: &SnapshotId, wait: Option<Duration>) -> Result<Found> {
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

async fn repository(args: &SyncArgs, address: &Address) -> Result<Opened> {
    let select = address.select.as_deref().ok_or_else(|| {
        let what = format!(
            "cannot copy {address}: it names no snapshot; use {address}#SNAPSHOT or #latest"
        );
        Error::new(Kind::Invalid, what)
    })?;
    let store = args
        .store
        .open(address, &args.aws, args.limits.timeout, false)
        .await?;
    let catalog = RepositoryCatalog::open(store, false).await?;
    let name = catalog.find(select).await?;
    let (snapshot, blocks) = catalog.open(&name.snapshot).await?;
    let geometry = blocks.geometry();
    let is_whole = geometry.size() % u64::from(BLOCK_SIZE) == 0;
    if !is_whole && args.targets.iter().any(|to| to.starts_with("ebs:")) {
        let what = format!(
            "cannot copy {} to ebs: it is no whole number of 512 KiB blocks",
            snapshot.id
        );
        return Err(Error::new(Kind::Invalid, what));
    }
    let about = json!({"snapshot": snapshot, "endpoint": address.to_string()});
    let info = SourceInfo {
        name: snapshot.id.to_string(),
        geometry,
        size: None,
        mark: None,
        volume: snapshot
            .volume_id
            .clone()
            .filter(|volume| volume != "vol-ffffffff"),
        encrypted: snapshot.encrypted,
        snapshot: Some(snapshot),
        has_changes: true,
    };
    let source = Source {
        info,
        blocks,
        catalog: Some(Arc::new(catalog)),
        mark: None,
        is_staged: false,
    };
    Ok(Opened {
        source,
        client: None,
        about,
    })
}

fn disk(args: &SyncArgs, name: &str) -> Result<Opened> {
    if matches!(&args.base, Some(Base::Snapshot(_))) || args.bandwidth.is_some() {
        let what = format!("cannot use --base SNAPSHOT or --bandwidth: {name:?} is no snapshot");
        return Err(Error::new(Kind::Invalid, what));
    }
    if let Some(found) = looks_like_aws(name).filter(|_| !Path::new(name).exists()) {
        let what = format!("cannot copy {name:?}: it is no {found} and no file");
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
                    "cannot copy {name} to ebs: and to other targets in one run: it is no whole number of 512 KiB blocks"
                );
                return Err(Error::new(Kind::Invalid, what));
            }
        }
    }
    let path = Path::new(name)
        .canonicalize()
        .map_err(|error| Error::of_file(name.as_ref(), "cannot find", error))?;
    if let Some(head) = super::status::half_written(&path, &args.state_dir())? {
        let what =
            format!("cannot copy {name}: it is not whole, a copy of {head} to it is unfinished");
        return Err(Error::new(Kind::Invalid, what));
    }
    let info = SourceInfo {
        name: path.display().to_string(),
        geometry: disk.geometry(),
        size: Some(size),
        mark: mark_of(&path),
        volume: None,
        encrypted: Some(false),
        snapshot: None,
        has_changes: false,
    };
    let source = Source {
        info,
        blocks: Arc::new(disk),
        catalog: None,
        mark: Some(Box::new(move || mark_of(&path))),
        is_staged: false,
    };
    Ok(Opened {
        source,
        client: None,
        about: json!({}),
    })
}

/// What a name was meant to be that is none of it.
fn looks_like_aws(name: &str) -> Option<&'static str> {
    [
        ("snap-", "snapshot id"),
        ("vol-", "volume id"),
        ("tag:", "tag:KEY=VALUE"),
    ]
    .into_iter()
    .find_map(|(prefix, what)| name.starts_with(prefix).then_some(what))
}
