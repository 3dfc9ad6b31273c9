//! Observes a repository: whether it holds the source, the possible bases of a delta, the state of an unfinished run.

use std::pin::pin;

use futures_util::StreamExt;

use super::{RepositoryTarget, bytes_of, made_id, volume_of};
use crate::error::{Error, Kind, Result};
use crate::repository::check::is_damage;
use crate::repository::lease;
use crate::repository::manifest::{Manifest, ManifestName};
use crate::repository::pack::Name;
use crate::repository::presence::PackNeeds;
use crate::repository::run::{RunState, removed};
use crate::repository::segments::{self, object};
use crate::repository::settled::{Unsettled, is_on_record};
use crate::snapshot::SnapshotId;
use crate::target::{
    Base, Existence, Facts, ObserveRequest, Replica, SinkState, SourceInfo, UnfinishedState,
};

/// The newest snapshots of a volume that are examined as a base: one a day for two months. Each costs a GET of at most 250 KB.
const MOST_REPLICAS: usize = 64;

impl RepositoryTarget {
    pub(super) async fn facts(&self, ask: &ObserveRequest<'_>) -> Result<Facts> {
        let mut facts = Facts::of(&*self.name, Existence::Absent);
        let names = self.proven_names(ask).await?;
        if let Some(id) = ask.source.id()
            && let Some(manifest) = self
                .sound_manifest(&names, &id, ask.left, &mut facts.warnings)
                .await?
        {
            let damaged = manifest.damaged.iter();
            let damaged = damaged.map(|(first, end)| u64::from(end.saturating_sub(*first)));
            facts.held_damaged = damaged.sum();
            if facts.held_damaged > 0 {
                let what = format!(
                    "{id} in {} has blocks that are zero because their source was damaged",
                    self.name
                );
                facts.warnings.push(what);
            }
            facts.holds = Some(id);
        } else {
            let asked = names.iter().rev();
            let asked = match ask.base {
                Base::None => Vec::new(),
                Base::Snapshot(id) => asked.filter(|name| name.snapshot == *id).collect(),
                Base::Auto => of_volume(&names, ask.source),
            };
            if ask.source.has_changes {
                facts.replicas = self.replicas(asked, &mut facts.warnings).await?;
            }
            if let Base::Snapshot(id) = ask.base {
                facts.no_base = facts.replicas.is_empty().then(|| {
                    match names.iter().any(|name| name.snapshot == *id) {
                        _ if !ask.source.has_changes => {
                            format!("{} cannot tell what changed since {id}", ask.source.name)
                        }
                        true => format!("{id} in {} is damaged or being removed", self.name),
                        false => format!("{} does not hold {id}", self.name),
                    }
                });
            }
        }
        if let Some(left) = ask.left {
            facts.left = self.left(left, ask.source, &mut facts.warnings).await?;
        }
        Ok(facts)
    }

    /// The names of all manifests; proven complete for the volume where a delta starts from one of them.
    async fn proven_names(&self, ask: &ObserveRequest<'_>) -> Result<Vec<ManifestName>> {
        match ask.base {
            Base::None => self.catalog.names().await,
            _ => {
                self.catalog
                    .proven_names(Some(&ask.source.volume_key))
                    .await
            }
        }
    }

    /// The manifest of a snapshot, if it is there, sound, and of a run that has ended. Another one is replaced by the next run.
    async fn sound_manifest(
        &self,
        names: &[ManifestName],
        id: &SnapshotId,
        left: Option<&SinkState>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Manifest>> {
        let left = left.and_then(|left| left.open::<RunState>().ok());
        for name in names.iter().rev().filter(|name| name.snapshot == *id) {
            match self.catalog.manifest(name).await {
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => {
                    warnings.push(format!("copying {id} again: {}", error.chain()));
                }
                Err(error) => return Err(error),
                // It may be withdrawn.
                Ok(manifest) if is_on_record(self.store(), &manifest.run).await? => {
                    if left.as_ref().is_none_or(|left| left.run != manifest.run) {
                        warnings.push(format!("copying {id} again: its run has not ended"));
                        *self.replaces.lock() = Some(manifest.run);
                    }
                }
                Ok(manifest) => match self.prove(&manifest).await {
                    Err(error) if is_damage(&error) => {
                        warnings.push(format!("copying {id} again: {}", error.chain()));
                        *self.replaces.lock() = Some(manifest.run);
                    }
                    Err(error) => return Err(error),
                    // Read again: a run that withdraws what it has published does so before it ends.
                    Ok(()) => match self.catalog.manifest(name).await {
                        Ok(still) if still.run == manifest.run => return Ok(Some(manifest)),
                        Ok(_) => {}
                        Err(error) if is_damage(&error) => {}
                        Err(error) => return Err(error),
                    },
                },
            }
        }
        Ok(None)
    }

    /// The snapshots that a delta can start from, in the order of `names`: the first is proven to its last segment, older
    /// ones by their manifests.
    async fn replicas(
        &self,
        names: Vec<&ManifestName>,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Replica>> {
        let mut replicas = Vec::new();
        for manifest in self.usable_manifests(names, warnings).await? {
            if replicas.is_empty() && !self.is_sound(&manifest, warnings).await? {
                continue;
            }
            replicas.push(Replica {
                source: manifest.snapshot.clone(),
                id: manifest.snapshot,
                volume_bytes: Some(manifest.volume_bytes),
                encrypted: Some(false),
            });
        }
        Ok(replicas)
    }

    /// The manifests of these names that can be read and relied on.
    pub(super) async fn usable_manifests(
        &self,
        names: Vec<&ManifestName>,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Manifest>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let names = names.into_iter().take(MOST_REPLICAS).cloned().collect();
        let mut manifests = Vec::new();
        for (name, manifest) in self.catalog.manifests(names, |manifest| manifest).await? {
            match manifest {
                Ok(manifest) => manifests.push(manifest),
                Err(error) if is_damage(&error) => warnings.push(skipped(&name, &error)),
                Err(error) => return Err(error),
            }
        }
        let unsettled = Unsettled::among(self.store(), &manifests).await?;
        manifests.retain(|manifest| {
            let why = unsettled.why(manifest);
            let id = &manifest.snapshot;
            warnings.extend(why.map(|why| format!("cannot use {id} as a base: {why}")));
            why.is_none()
        });
        Ok(manifests)
    }

    /// Whether all segments of a manifest are there and sound.
    pub(super) async fn is_sound(
        &self,
        manifest: &Manifest,
        warnings: &mut Vec<String>,
    ) -> Result<bool> {
        match self.prove(manifest).await {
            Err(error) if is_damage(&error) => {
                warnings.push(skipped(&manifest.name(), &error));
                Ok(false)
            }
            proven => proven.map(|()| true),
        }
    }

    /// Reads the segments of a manifest that was not proven before, and checks that their packs are there.
    pub(super) async fn prove(&self, manifest: &Manifest) -> Result<()> {
        let id = removed(&manifest.name().to_string(), &manifest.run);
        if self.proven.lock().contains(&id) {
            return Ok(());
        }
        let (store, last) = (self.store(), self.last_check().await?);
        let swept = self.swept().await?;
        let known = |kind: &str, name: &Name| {
            if swept.has(name) {
                let (address, object) = (store.address(), object(kind, name));
                let what = format!("a prune is deleting {address}/{object}");
                return Some(Error::new(Kind::Corrupt, what));
            }
            let damage = last.has_damage_in_data().then(|| object(kind, name));
            let damage = last.in_data(&damage?)?;
            let (address, when) = (store.address(), &last.when);
            let what = format!(
                "the check of {when} found {address}/{} damaged",
                damage.object
            );
            Some(Error::new(Kind::Corrupt, what))
        };
        let names: Vec<Name> = manifest.segments.iter().map(|of| of.name).collect();
        let mut needs = PackNeeds::default();
        let mut read = pin!(segments::read_all(store, names.clone()));
        while let Some((name, segment)) = read.next().await {
            let segment = segment?;
            let packs = segment.packs().iter().map(|pack| known("packs", pack));
            if let Some(error) = packs.chain([known("segments", &name)]).flatten().next() {
                return Err(error);
            }
            needs.add(&segment);
        }
        needs.prove(store, names).await?;
        self.proven.lock().insert(id);
        Ok(())
    }

    /// The state of an unfinished run: it is on record in the store, with a sound parent, or its snapshot is published.
    async fn left(
        &self,
        left: &SinkState,
        source: &SourceInfo,
        warnings: &mut Vec<String>,
    ) -> Result<UnfinishedState> {
        let Ok(state) = left.open::<RunState>() else {
            return Ok(UnfinishedState::Absent);
        };
        if !is_of(&state, source) {
            return Ok(UnfinishedState::Absent);
        }
        let store = self.store();
        match lease::read(store, &state.run).await {
            Ok(_) => {}
            Err(error) if error.kind() == Kind::NotFound => {
                return match state.published(store).await {
                    // Its run can have ended because its data was swept.
                    Ok(Some(manifest)) if self.is_sound(&manifest, warnings).await? => {
                        Ok(UnfinishedState::Proven)
                    }
                    Ok(_) => Ok(UnfinishedState::Absent),
                    Err(error) if is_damage(&error) => Ok(UnfinishedState::Absent),
                    Err(error) => Err(error),
                };
            }
            Err(error) => return Err(error),
        }
        let Some(parent) = &state.parent else {
            return Ok(UnfinishedState::Proven);
        };
        let is_sound = match parent.read(store, false).await {
            Ok(manifest) => self.is_sound(&manifest, warnings).await?,
            Err(error) if is_damage(&error) => {
                warnings.push(format!("cannot resume the run: {}", error.chain()));
                false
            }
            Err(error) => return Err(error),
        };
        Ok(if is_sound {
            UnfinishedState::Proven
        } else {
            UnfinishedState::Absent
        })
    }
}

/// The names of the volume's other snapshots, newest first.
pub(super) fn of_volume<'a>(
    names: &'a [ManifestName],
    source: &SourceInfo,
) -> Vec<&'a ManifestName> {
    let (key, itself) = (&source.volume_key, source.id());
    // Two snapshots of unknown volumes may be of different volumes.
    if key.is_unknown() {
        return Vec::new();
    }
    let others = names.iter().rev().filter(|name| name.volume == *key);
    others
        .filter(|name| itself.as_ref() != Some(&name.snapshot))
        .collect()
}

/// Whether a run is one of this source.
fn is_of(state: &RunState, source: &SourceInfo) -> bool {
    let is_same = match source.id() {
        Some(id) => id == state.snapshot,
        None => {
            // A disk that is known can be at another path now.
            let is_its =
                !source.volume_key.is_unknown() || state.volume.as_deref() == volume_of(source);
            is_its && made_id(&state.run).is_ok_and(|id| id == state.snapshot)
        }
    };
    is_same && state.volume_key == source.volume_key && state.volume_bytes == bytes_of(source)
}

fn skipped(name: &ManifestName, error: &Error) -> String {
    format!("cannot use {} as a base: {}", name.snapshot, error.chain())
}
