//! Pins: snapshots that no retention removes. A pin is a small object in `pins/`, of the name of the snapshot's manifest.

use std::collections::HashSet;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::catalog::RepositoryCatalog;
use super::listing;
use super::manifest::{ManifestName, manifest_object};
use super::store::Store;
use crate::error::{Error, Kind, Remedy, Result};

/// The content of a pin, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pin {
    /// When it was made, by the clock of the machine that made it.
    pub(crate) when: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
}

fn object(name: &ManifestName) -> String {
    format!("pins/{name}")
}

/// Pins a snapshot.
///
/// # Errors
/// `NotFound` when it was removed meanwhile; else why the pin could not be written.
pub(crate) async fn pin(
    catalog: &RepositoryCatalog,
    name: &ManifestName,
    note: Option<&str>,
) -> Result<()> {
    let store = catalog.store();
    let pin = Pin {
        when: crate::time::rfc3339_seconds(SystemTime::now()),
        note: note.map(str::to_owned),
    };
    let json = serde_json::to_vec(&pin).unwrap_or_default();
    store.put(&object(name), &[json.into()]).await?;
    // A prune that did not see the pin has removed the manifest by now, or sees the pin before it does.
    if let Err(error) = store.head(&manifest_object(name)).await {
        if error.kind() == Kind::NotFound {
            store.delete(&object(name)).await?;
            let what = format!("cannot pin {name}: it was removed meanwhile");
            return Err(Error::new(Kind::NotFound, what));
        }
        return Err(error);
    }
    Ok(())
}

/// Removes the pin of a snapshot.
///
/// # Errors
/// `NotFound` when it has none; else why the pin could not be removed.
pub(crate) async fn unpin(catalog: &RepositoryCatalog, name: &ManifestName) -> Result<()> {
    let store = catalog.store();
    if !is_pinned(store, name).await? {
        let what = format!("cannot unpin {name}: it is not pinned");
        return Err(Error::new(Kind::NotFound, what));
    }
    store.delete(&object(name)).await.map(drop)
}

/// The names of the manifests of all pinned snapshots.
///
/// # Errors
/// Why the pins could not be listed.
pub(crate) async fn pinned(store: &Store) -> Result<HashSet<String>> {
    let pins = listing::list(store, "pins", None)
        .await?
        .objects
        .into_iter();
    let names = pins.filter_map(|pin| Some(pin.name.rsplit_once('/')?.1.to_owned()));
    Ok(names.collect())
}

/// Whether a snapshot is pinned.
pub(super) async fn is_pinned(store: &Store, name: &ManifestName) -> Result<bool> {
    match store.head(&object(name)).await {
        Err(error) if error.kind() == Kind::NotFound => Ok(false),
        found => found.map(|_| true),
    }
}

/// Refuses to remove a pinned snapshot.
pub(super) async fn refuse_pinned(store: &Store, name: &ManifestName) -> Result<()> {
    if !is_pinned(store, name).await? {
        return Ok(());
    }
    let what = format!("cannot remove {name}: it is pinned");
    let snapshot = format!("{}#{}", store.address(), name.snapshot);
    Err(Error::new(Kind::Undecided, what).with_remedy(Remedy::Unpin(snapshot)))
}
