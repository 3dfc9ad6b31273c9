//! [`runs`]: the runs that are on record in a repository.

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::store::Store;
use crate::error::{Kind, Result};

/// A run on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOnRecord {
    /// Its id.
    pub id: String,
    /// When its record was written last, by the store's clock.
    pub renewed: SystemTime,
    /// What the record says: any of `kind`, `host`, `user`, `pid`, `started`, `snapshot`.
    pub about: Map<String, Value>,
}

/// The runs that have not ended, by their records.
///
/// # Errors
/// Why the records cannot be listed or read.
pub async fn runs(store: &Store) -> Result<Vec<RunOnRecord>> {
    let mut runs = Vec::new();
    for object in store.list("runs").await? {
        let id = object.name.rsplit('/').next().unwrap_or_default();
        let bytes = match store.get(&object.name).await {
            // It has ended since.
            Err(error) if error.kind() == Kind::NotFound => continue,
            bytes => bytes?,
        };
        runs.push(RunOnRecord {
            id: id.to_owned(),
            renewed: object.modified,
            about: about(&bytes),
        });
    }
    runs.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(runs)
}

/// What a record says; one that is no JSON is the snapshot's id.
fn about(bytes: &[u8]) -> Map<String, Value> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(about)) => about,
        _ => {
            let snapshot = String::from_utf8_lossy(bytes).into_owned();
            Map::from_iter([("snapshot".to_owned(), Value::String(snapshot))])
        }
    }
}
