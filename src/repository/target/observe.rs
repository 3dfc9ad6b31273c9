//! Observes a repository: whether it holds the source, what a delta can start from, what an unfinished run left.

use std::collections::HashSet;
use std::pin::pin;

use futures_util::StreamExt;

use super::{RepositoryTarget, bytes_of, made_id, volume_of};
use crate::error::{Error, Kind, Result};
use crate::repository::check::is_damage;
use crate::repository::pack::Name;
use crate::repository::root::{Root, RootName};
use crate::repository::run::{RunState, removed, run_object};
use crate::repository::segments;
use crate::snapshot::SnapshotId;
use crate::target::{Ask, Base, Existence, Facts, Left, Replica, SinkState, SourceInfo};

/// The newest snapshots of a volume that are looked at as a base: one a day for two months. Each costs a GET of at most 250 KB.
const MOST_REPLICAS: usize = 64;

impl RepositoryTarget {
    pub(super) async fn facts(&self, ask: &Ask<'_>) -> Result<Facts> {
        let mut facts = Facts::of(&*self.name, Existence::Absent);
        let names = self.catalog.names().await?;
        if let Some(id) = ask.source.id()
            && let Some(root) = self.held(&names, &id, &mut facts.warnings).await?
        {
            let damaged = root.damaged.iter();
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

    /// The root of a snapshot, if it is there and can be read. A damaged one is written again by the next run.
    async fn held(
        &self,
        names: &[RootName],
        id: &SnapshotId,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Root>> {
        for name in names.iter().rev().filter(|name| name.snapshot == *id) {
            match self.catalog.root(name).await {
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => {
                    warnings.push(format!("copying {id} again: {}", error.chain()));
                }
                root => return root.map(Some),
            }
        }
        Ok(None)
    }

    /// The snapshots that a delta can start from, in the order of `names`: the first is proven to its last segment, older
    /// ones by their roots.
    async fn replicas(
        &self,
        names: Vec<&RootName>,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Replica>> {
        let mut replicas = Vec::new();
        for root in self.usable_roots(names, warnings).await? {
            if replicas.is_empty() && !self.is_sound(&root, warnings).await? {
                continue;
            }
            replicas.push(Replica {
                source: root.snapshot.clone(),
                id: root.snapshot,
                volume_bytes: Some(root.volume_bytes),
                encrypted: Some(false),
            });
        }
        Ok(replicas)
    }

    /// The roots of these names that can be read and are not being removed.
    pub(super) async fn usable_roots(
        &self,
        names: Vec<&RootName>,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Root>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let names = names.into_iter().take(MOST_REPLICAS).cloned().collect();
        let mut roots = Vec::new();
        for (name, root) in self.catalog.roots(names, |root| root).await? {
            match root {
                Ok(root) => roots.push(root),
                Err(error) if is_damage(&error) => warnings.push(skipped(&name, &error)),
                Err(error) => return Err(error),
            }
        }
        // Listed after the roots were read: `prune` keeps a root that is removed later for every run on record by then.
        let tombstones = self.store().list("removed").await?;
        let tombstones: HashSet<String> =
            tombstones.into_iter().map(|object| object.name).collect();
        roots.retain(|root| !tombstones.contains(&removed(&root.name().to_string(), &root.run)));
        Ok(roots)
    }

    /// Whether all segments of a root are there and sound.
    pub(super) async fn is_sound(&self, root: &Root, warnings: &mut Vec<String>) -> Result<bool> {
        match self.prove(root).await {
            Err(error) if is_damage(&error) => {
                warnings.push(skipped(&root.name(), &error));
                Ok(false)
            }
            proven => proven.map(|()| true),
        }
    }

    /// Reads the segments of a root that were not read before.
    pub(super) async fn prove(&self, root: &Root) -> Result<()> {
        let names: Vec<Name> = {
            let proven = self.proven.lock();
            let names = root.segments.iter().map(|of| of.name);
            names.filter(|name| !proven.contains(name)).collect()
        };
        let mut read = pin!(segments::read_all(self.store(), names));
        while let Some((name, segment)) = read.next().await {
            segment?;
            self.proven.lock().insert(name);
        }
        Ok(())
    }

    /// What an unfinished run left: a run that is on record in the store, with a sound parent, or whose snapshot is published.
    async fn left(
        &self,
        left: &SinkState,
        source: &SourceInfo,
        warnings: &mut Vec<String>,
    ) -> Result<Left> {
        let Ok(state) = left.open::<RunState>() else {
            return Ok(Left::Gone);
        };
        if !is_of(&state, source) {
            return Ok(Left::Gone);
        }
        let store = self.store();
        match store.head(&run_object(&state.run)).await {
            Ok(_) => {}
            Err(error) if error.kind() == Kind::NotFound => {
                return match state.published(store).await {
                    Ok(Some(_)) => Ok(Left::Proven),
                    Ok(None) => Ok(Left::Gone),
                    Err(error) if is_damage(&error) => Ok(Left::Gone),
                    Err(error) => Err(error),
                };
            }
            Err(error) => return Err(error),
        }
        let Some(parent) = &state.parent else {
            return Ok(Left::Proven);
        };
        let is_sound = match parent.read(store, false).await {
            Ok(root) => self.is_sound(&root, warnings).await?,
            Err(error) if is_damage(&error) => {
                warnings.push(format!("cannot resume the run: {}", error.chain()));
                false
            }
            Err(error) => return Err(error),
        };
        Ok(if is_sound { Left::Proven } else { Left::Gone })
    }
}

/// The names of the volume's other snapshots, newest first.
pub(super) fn of_volume<'a>(names: &'a [RootName], source: &SourceInfo) -> Vec<&'a RootName> {
    let Some(volume) = volume_of(source) else {
        return Vec::new();
    };
    let (key, itself) = (RootName::volume_key(Some(volume)), source.id());
    let others = names.iter().rev().filter(|name| name.volume == key);
    others
        .filter(|name| itself.as_ref() != Some(&name.snapshot))
        .collect()
}

/// Whether a run is one of this source.
fn is_of(state: &RunState, source: &SourceInfo) -> bool {
    let is_same = match source.id() {
        Some(id) => id == state.snapshot,
        None => {
            state.volume.as_deref() == volume_of(source)
                && made_id(&state.run).is_ok_and(|id| id == state.snapshot)
        }
    };
    is_same && state.volume_bytes == bytes_of(source)
}

fn skipped(name: &RootName, error: &Error) -> String {
    format!("cannot use {} as a base: {}", name.snapshot, error.chain())
}
