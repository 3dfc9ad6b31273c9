//! [`LastCheck`]: the result of the last check, kept in the repository for runs and listings.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Damage, RepositoryCheck};
use crate::error::{Kind, Result};
use crate::repository::manifest::Manifest;
use crate::repository::store::Store;

const OBJECT: &str = "checks/last";
const FORMAT: u32 = 1;
/// Damaged objects that are listed, and snapshots of each: some 2 MB of names at most.
const MOST_DAMAGES: usize = 1000;
const MOST_OF_EACH: usize = 20;
/// Snapshots that are listed as damaged.
const MOST_SNAPSHOTS: usize = 10_000;

/// What the last check found. Damage in the bytes of a pack is recorded only here until the pack is read again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastCheck {
    format: u32,
    /// When it ended, as text; empty when there was none.
    pub(crate) when: String,
    /// Which packs were read: `none`, `all`, or a part such as `3/30`.
    pub(crate) read: String,
    /// How many packs that were.
    pub(crate) read_packs: u64,
    /// Damaged objects, sorted by name; of each some of the snapshots that need it.
    pub(crate) damages: Vec<Damage>,
    /// How many more are damaged.
    pub(crate) more: u64,
    /// Damaged snapshots: the name of the manifest, a dot, and its run.
    snapshots: BTreeSet<String>,
}

fn key(manifest: &Manifest) -> String {
    format!("{}.{}", manifest.name(), manifest.run)
}

impl LastCheck {
    /// The record of a check that ended now. `suffering` are the manifests that lead to damage.
    pub(super) fn of<'a>(
        checked: &RepositoryCheck,
        suffering: impl IntoIterator<Item = &'a Manifest>,
    ) -> Self {
        let listed = checked.damages.iter().take(MOST_DAMAGES).cloned();
        let damages: Vec<Damage> = listed
            .map(|mut damage| {
                damage.snapshots.truncate(MOST_OF_EACH);
                damage
            })
            .collect();
        let suffering = suffering.into_iter().take(MOST_SNAPSHOTS);
        Self {
            format: FORMAT,
            when: crate::time::rfc3339_seconds(std::time::SystemTime::now()),
            read: checked.read.clone(),
            read_packs: checked.read_packs,
            more: checked.damages.len().saturating_sub(damages.len()) as u64,
            damages,
            snapshots: suffering.map(key).collect(),
        }
    }

    /// Reads it. A record that is missing, cannot be read by permission, or is damaged is like that of a check without damage.
    ///
    /// # Errors
    /// Why the repository cannot be reached.
    pub(crate) async fn read(store: &Store) -> Result<Self> {
        let bytes = match store.get(OBJECT).await {
            Err(error) if error.kind() == Kind::NotFound => return Ok(Self::default()),
            Err(error) if error.kind() == Kind::Denied => {
                warn!(
                    "cannot read the result of the last check: {}",
                    error.chain()
                );
                return Ok(Self::default());
            }
            bytes => bytes?,
        };
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(last) if last.format == FORMAT => Ok(last),
            _ => {
                let address = store.address();
                warn!("ignoring {address}/{OBJECT}: it is not what this ebsfs writes");
                Ok(Self::default())
            }
        }
    }

    /// Writes it. A check is complete without it: a failure is one warning.
    pub(in crate::repository) async fn write(&self, store: &Store) {
        let json = serde_json::to_vec(self).unwrap_or_default();
        if let Err(error) = store.put(OBJECT, &[json.into()]).await {
            warn!("cannot keep the result of this check: {}", error.chain());
        }
    }

    /// The result of a check after a repair: the packs were read before it.
    pub(in crate::repository) fn after(mut self, checked: &RepositoryCheck) -> Self {
        self.read.clone_from(&checked.read);
        self.read_packs = checked.read_packs;
        self
    }

    /// Adds packs that were found damaged meanwhile.
    pub(in crate::repository) fn add(&mut self, packs: impl IntoIterator<Item = String>) {
        let damages = packs.into_iter().map(|object| Damage {
            object,
            what: "a block in it is not what it should be".into(),
            in_data: true,
            snapshots: Vec::new(),
        });
        self.damages.extend(damages);
        self.damages.sort_by(|a, b| a.object.cmp(&b.object));
        self.damages.dedup_by(|a, b| a.object == b.object);
    }

    /// Whether the check found a snapshot damaged; not after it was written again.
    pub(crate) fn is_damaged(&self, manifest: &Manifest) -> bool {
        self.snapshots.contains(&key(manifest))
    }

    /// Damage of an object that only reading all of its bytes can find.
    pub(in crate::repository) fn in_data(&self, object: &str) -> Option<&Damage> {
        let damages = &self.damages;
        let at = damages.binary_search_by(|damage| (*damage.object).cmp(object));
        let damage = damages.get(at.ok()?)?;
        damage.in_data.then_some(damage)
    }

    /// Whether any object is known to have such damage.
    pub(in crate::repository) fn has_damage_in_data(&self) -> bool {
        self.damages.iter().any(|damage| damage.in_data)
    }
}
