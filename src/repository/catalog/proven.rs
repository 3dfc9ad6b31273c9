//! Listings of manifests that are proven by what they must show: see [`latest`].

use super::RepositoryCatalog;
use crate::error::Result;
use crate::repository::latest;
use crate::repository::listing::{self, Fence};
use crate::repository::manifest::ManifestName;
use crate::repository::store::Object;
use crate::target::VolumeKey;

/// A complete listing of manifests, oldest first.
#[derive(Debug)]
pub(in crate::repository) struct ListedManifests {
    pub(in crate::repository) named: Vec<(ManifestName, Object)>,
    /// Those that must be there, were not removed, and are not.
    pub(in crate::repository) missing: Vec<ManifestName>,
    /// The lists of what must be there that are damaged: more may be missing.
    pub(in crate::repository) damaged_lists: Vec<String>,
}

impl RepositoryCatalog {
    /// The names of all manifests, proven complete for one volume, or for all. Every decision that depends on an absent
    /// manifest uses this.
    ///
    /// # Errors
    /// `Undecided` when one is missing; `Corrupt` when a list of what must be there is damaged; else as for [`RepositoryCatalog::names`].
    pub(crate) async fn proven_names(
        &self,
        volume: Option<&VolumeKey>,
    ) -> Result<Vec<ManifestName>> {
        let proven = self.list_proven(volume, None, &[]).await?;
        Ok(proven.into_iter().map(|(name, _)| name).collect())
    }

    /// Lists the manifests, and proves that none is missing but those of `accept`.
    pub(in crate::repository) async fn list_proven(
        &self,
        volume: Option<&VolumeKey>,
        fence: Option<&Fence>,
        accept: &[String],
    ) -> Result<Vec<(ManifestName, Object)>> {
        let listed = self.list_with_missing(volume, fence).await?;
        if let Some(object) = listed.damaged_lists.first() {
            return Err(latest::damaged(self.store(), object));
        }
        let mut missing = listed.missing.iter();
        match missing.find(|name| !accept.contains(&name.to_string())) {
            None => Ok(listed.named),
            Some(name) => Err(latest::lacks(self.store(), name)),
        }
    }

    /// Lists the manifests, and finds those that are missing.
    pub(in crate::repository) async fn list_with_missing(
        &self,
        volume: Option<&VolumeKey>,
        fence: Option<&Fence>,
    ) -> Result<ListedManifests> {
        let first = self.list_once(volume, fence).await?;
        match first.missing.is_empty() {
            true => Ok(first),
            // A removal may have been undone between its listings.
            false => self.list_once(volume, fence).await,
        }
    }

    async fn list_once(
        &self,
        volume: Option<&VolumeKey>,
        fence: Option<&Fence>,
    ) -> Result<ListedManifests> {
        // Before the listing: a manifest published meanwhile may be in the listing alone.
        let expected = latest::expected(self.store(), volume).await?;
        let (named, _) = self.list_manifests(fence).await?;
        let is_listed = |name: &ManifestName| {
            let found = named.binary_search_by(|(listed, _)| listed.cmp(name));
            found.is_ok()
        };
        let absent = expected.names.into_iter().filter(|name| !is_listed(name));
        let absent: Vec<ManifestName> = absent.collect();
        let mut missing = Vec::new();
        if !absent.is_empty() {
            let removed = listing::list(self.store(), "removed", None).await?.objects;
            for name in absent {
                let start = format!("removed/{name}.");
                let is_removed = removed.iter().any(|object| object.name.starts_with(&start));
                if !is_removed && !latest::is_swept(self.store(), &name).await? {
                    missing.push(name);
                }
            }
        }
        Ok(ListedManifests {
            named,
            missing,
            damaged_lists: expected.damaged,
        })
    }
}
