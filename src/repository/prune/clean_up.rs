//! The end of a prune: tombstones, withdrawn manifests, records of runs, marks and fences that no later prune uses.

use std::collections::{BTreeSet, HashSet};

use super::{OLD, Prune, SLACK, before, marks, sweep};
use crate::error::{Kind, Result};
use crate::repository::catalog::read_manifest;
use crate::repository::latest;
use crate::repository::lease;
use crate::repository::listing::{self, Fence};
use crate::repository::manifest::{Manifest, ManifestName, manifest_object};
use crate::repository::run::removed;
use crate::repository::sets;
use crate::repository::store::Object;

impl Prune<'_> {
    /// Removes objects that later prunes do not use. Without the permission they stay.
    pub(super) async fn clean_up(
        &mut self,
        tombstones: &[Object],
        manifests: &[Manifest],
        mut old_fences: Vec<(&'static str, Fence)>,
    ) -> Result<()> {
        let store = self.store;
        let mut names_of: Vec<String> = Vec::new();
        // As long as a manifest can be read where it was, its removal has not ended.
        let there = manifests.iter();
        let there: HashSet<String> = there
            .map(|manifest| removed(&manifest.name().to_string(), &manifest.run))
            .collect();
        let is_there = |name: &ManifestName| manifests.iter().any(|one| one.name() == *name);
        let old = tombstones
            .iter()
            .filter(|tombstone| !there.contains(&tombstone.name));
        for tombstone in old {
            let name = tombstone.name.strip_prefix("removed/");
            let name = name.and_then(|name| name.rsplit_once('.')?.0.parse().ok());
            if let Some(name) = name.filter(|name| !is_there(name)) {
                latest::retreat(store, &name).await?;
            }
            names_of.push(tombstone.name.clone());
        }
        for name in &self.withdrawn {
            let object = manifest_object(name);
            // Another run may have published it again meanwhile: no request comes between the check and the deletion.
            if read_manifest(store, &object)
                .await
                .is_err_and(|error| error.kind() == Kind::NotFound)
            {
                let (one, pruned) = (vec![object], &mut self.pruned);
                sweep::delete_all(store, one, self.deadline, pruned, self.progress).await?;
            }
        }
        let dead = self
            .runs
            .iter()
            .filter(|run| run.has_ended || run.expired(self.now) > self.request.grace.max(OLD));
        names_of.extend(dead.map(|run| lease::run_object(&run.id)));
        names_of.extend(latest::old_swept(store, self.now).await?);
        names_of.extend(marks::old(store, self.now, self.request.grace).await?);
        names_of.extend(self.old_sets(manifests).await?);
        for folder in ["snapshots", "latest", "removed", "pins", "garbage"] {
            let ends = listing::list(store, folder, self.fence.as_ref())
                .await?
                .ends;
            old_fences.extend(ends.old_fences.into_iter().map(|fence| (folder, fence)));
        }
        for (folder, fence) in old_fences {
            let time = fence.time(store, folder).await;
            if time.is_ok_and(|time| time < before(self.now, OLD)) {
                names_of.extend(fence.names(folder));
            }
        }
        let pruned = &mut self.pruned;
        sweep::delete_all(store, names_of, self.deadline, pruned, self.progress).await?;
        let slack = before(self.now, SLACK);
        store.sweep_unfinished(self.buried_before().min(slack))
    }

    /// Sets whose snapshots were all deleted permanently: a snapshot with a tombstone can be restored.
    async fn old_sets(&self, manifests: &[Manifest]) -> Result<Vec<String>> {
        let listed = listing::list(self.store, "removed", self.fence.as_ref()).await?;
        let buried = listed.objects.iter().filter_map(|object| {
            let name = object.name.strip_prefix("removed/")?.rsplit_once('.')?.0;
            name.parse::<ManifestName>().ok()
        });
        let there = manifests.iter().map(Manifest::name);
        let kept: BTreeSet<_> = there.chain(buried).map(|name| name.time).collect();
        sets::unneeded(self.store, &kept).await
    }
}
