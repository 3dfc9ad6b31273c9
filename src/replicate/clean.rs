//! Carries out the retention of a cycle: at the source what [`super::retain`] decides, at repositories and `ebs:` targets what
//! [`Retention`] does. A refused deletion is reported once, and is no failure: nothing is lost by a snapshot too many.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use tracing::{debug, info};

use super::cycle::CycleRun;
use super::job::{JobSource, JobTarget};
use super::report::CycleReport;
use super::retain::{OwnSnapshot, claimed_elsewhere, removable};
use super::shard::Shard;
use crate::capture::{CYCLE_TAG, Claim, Cycle, Standing, standing};
use crate::error::{Kind, Result};
use crate::progress::Progress;
use crate::repository::{
    Address, Deleted, ManifestName, PruneRequest, RepositoryCatalog, Retention, RetentionCandidate,
    pinned, prune, remove,
};
use crate::snapshot::{
    Deletion, REPLICA_VOLUME_TAG, Selector, Snapshot, SnapshotId, SnapshotMaker, SnapshotState,
    carries_own_id, has_tag,
};
use crate::target::VolumeKey;

/// The tag of what a job made at a target, EBS snapshots and those that it copied from a repository to another one: the job's name.
pub(crate) const JOB_TAG: &str = "ebsfs:job";
/// The volume of a snapshot that was made of none.
const NO_VOLUME: &str = "vol-ffffffff";
/// Between two sweeps of a repository, which list all of its objects.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How long what no snapshot needs stays in a repository.
const GRACE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Whether a shard sweeps a repository: one that several shards write is swept by the first one.
fn sweeps(shard: Shard, template: &str) -> bool {
    // A template with an instance or a volume makes a repository of one unit.
    shard.index() == 0 || template.contains('{')
}

impl CycleRun {
    /// Retains on both sides. Failures are warnings: the copies are made.
    pub(super) async fn retain(&self, report: &mut CycleReport) {
        if matches!(self.job.source, JobSource::Ec2(_))
            && let Err(error) = self.stop.unless(self.retain_source(report)).await
        {
            report.warn(format!("cannot delete old snapshots: {}", error.chain()));
        }
        let mut names: BTreeMap<String, (&JobTarget, BTreeSet<String>)> = BTreeMap::new();
        for volume in &report.volumes {
            for copy in volume.targets.iter().filter(|copy| copy.held.is_ok()) {
                let target = self.job.targets.get(copy.target.number);
                let Some(target) = target.filter(|target| target.keep.is_some()) else {
                    continue;
                };
                let entry = names.entry(copy.target.name.clone());
                let (_, volumes) = entry.or_insert((target, BTreeSet::new()));
                volumes.insert(volume.volume.clone());
            }
        }
        self.sweep_for_others(&names, report).await;
        for (name, (target, volumes)) in names {
            let retained = async {
                match Address::looks_like(&name) {
                    true => {
                        self.retain_repository(target, &name, &volumes, report)
                            .await
                    }
                    false => self.retain_replicas(target, &name, &volumes, report).await,
                }
            };
            if let Err(error) = self.stop.unless(retained).await {
                report.warn(format!(
                    "cannot remove old snapshots from {name}: {}",
                    error.chain()
                ));
            }
        }
    }

    /// Says something once.
    pub(super) fn say_once(&self, key: &str, what: String, report: &mut CycleReport) {
        if self.memory.update(|state| state.says(key)) {
            report.warn(what);
        }
    }

    /// Deletes snapshots of the source that are the job's own, and that neither a target nor a rule needs.
    async fn retain_source(&self, report: &mut CycleReport) -> Result<()> {
        let volumes: BTreeSet<String> = report
            .volumes
            .iter()
            .map(|one| one.volume.clone())
            .collect();
        if volumes.is_empty() {
            return Ok(());
        }
        let maker = self.places.maker()?;
        let select: Vec<_> = volumes.iter().cloned().map(Selector::Volume).collect();
        let listed = maker.describe(&select).await?;
        let recorded = self.memory.look(super::state::JobState::recorded);
        let claim = Claim {
            job: &self.job.name,
            volumes: &volumes,
            recorded: &recorded,
        };
        let mut removed = Vec::new();
        for volume in &report.volumes {
            let is_its = |snapshot: &&Snapshot| {
                snapshot.volume_id.as_deref() == Some(volume.volume.as_str())
                    && standing(snapshot, &claim) == Standing::Ours
            };
            let own: Vec<_> = listed.iter().filter(is_its).map(own_snapshot).collect();
            let of_volume = listed.iter().filter(is_its).collect::<Vec<_>>();
            let mut needed = volume.needed.clone();
            let claimant = volume.claimant.as_deref().unwrap_or_default();
            needed.add(Some(claimed_elsewhere(&of_volume, claimant)));
            let old = removable(&own, &volume.snapshot, &needed, self.job.keep);
            removed.extend(old.into_iter().map(|id| (volume.volume.clone(), id)));
        }
        for (volume, id) in removed {
            match maker.delete(&id).await? {
                Deletion::Deleted => {
                    info!("deleted {id} of {volume}: no target needs it");
                    self.memory.update(|state| {
                        state.said.remove("denied");
                        let volume = state.volumes.entry(volume).or_default();
                        volume.snapshots.remove(&id);
                    });
                    report.deleted.push(id);
                }
                Deletion::Denied(error) => {
                    let what = format!("old snapshots stay: {}", error.chain());
                    self.say_once("denied", what, report);
                    break;
                }
                Deletion::Refused(error) => {
                    let what = format!("{id} of {volume} stays: {}", error.chain());
                    self.say_once(id.as_str(), what, report);
                }
            }
        }
        self.forget(&listed);
        Ok(())
    }

    /// Forgets what was remembered of snapshots that EC2 does not list any more.
    fn forget(&self, listed: &[Snapshot]) {
        let known: BTreeSet<&str> = listed.iter().map(|snapshot| snapshot.id.as_str()).collect();
        let is_known = |id: &SnapshotId| known.contains(id.as_str());
        self.memory.update(|state| {
            state
                .said
                .retain(|what| !what.starts_with("snap-") || known.contains(what.as_str()));
            for volume in state.volumes.values_mut() {
                let points = volume.targets.values();
                let held: BTreeSet<SnapshotId> = points
                    .filter_map(|target| Some(target.recovery_point.as_ref()?.snapshot.clone()))
                    .collect();
                let under_way = volume.under_way.as_ref().map(|copy| copy.snapshot.clone());
                // EC2 may not show the newest yet.
                volume.snapshots.retain(|id| {
                    is_known(id) || held.contains(id) || under_way.as_ref() == Some(id)
                });
            }
        });
    }

    /// Removes snapshots from a repository by the rules of the target, and sweeps it once a day.
    async fn retain_repository(
        &self,
        target: &JobTarget,
        name: &str,
        volumes: &BTreeSet<String>,
        report: &mut CycleReport,
    ) -> Result<()> {
        let Some(keep) = &target.keep else {
            return Ok(());
        };
        let catalog = self.places.repository(target, name).await?;
        let store = catalog.store();
        let keys: BTreeSet<VolumeKey> = volumes.iter().map(|id| VolumeKey::of_volume(id)).collect();
        let names = catalog.proven_names(None).await?;
        let names = names.into_iter().filter(|name| keys.contains(&name.volume));
        let pins = pinned(store).await?;
        let candidates: Vec<_> = names
            .map(|name| RetentionCandidate {
                is_pinned: pins.contains(&name.to_string()),
                name,
                tags: BTreeMap::new(),
            })
            .collect();
        let retention = Retention {
            volumes: keys,
            ..keep.clone()
        };
        let decisions = retention.decide(&candidates);
        decisions.check(&retention)?;
        for old in decisions.removed() {
            self.stop.check()?;
            if !self.is_of_job(&catalog, old).await? {
                continue;
            }
            match remove(store, old).await {
                Ok(Deleted::Locked(why)) => {
                    let what = format!("{old} stays in {name}: it is locked: {why}");
                    self.say_once(&format!("{name} {old}"), what, report);
                }
                Ok(_) => {
                    info!("removed {old} from {name}");
                    report.removed.push(format!("{name}#{}", old.snapshot));
                }
                Err(error) if error.kind() == Kind::Denied => {
                    let what = format!("old snapshots stay in {name}: {}", error.chain());
                    self.say_once(&format!("{name} denied"), what, report);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        match sweeps(self.job.shard, &target.to) {
            true => self.sweep(&catalog, name, report).await,
            false => Ok(()),
        }
    }

    /// Sweeps the repositories that only other shards have written in this cycle. Failures are warnings.
    async fn sweep_for_others(
        &self,
        written: &BTreeMap<String, (&JobTarget, BTreeSet<String>)>,
        report: &mut CycleReport,
    ) {
        if self.job.shard.is_whole() || self.job.shard.index() != 0 {
            return;
        }
        let is_theirs = |target: &&JobTarget| {
            let has_one_name = Address::looks_like(&target.to) && !target.to.contains('{');
            has_one_name && target.keep.is_some() && !written.contains_key(&target.to)
        };
        for target in self.job.targets.iter().filter(is_theirs) {
            let name = &target.to;
            if !self.is_sweep_due(name, SystemTime::now()) {
                continue;
            }
            let swept = async {
                let catalog = self.places.repository(target, name).await?;
                self.sweep(&catalog, name, report).await
            };
            if let Err(error) = self.stop.unless(swept).await {
                report.warn(format!("cannot sweep {name}: {}", error.chain()));
            }
        }
    }

    fn is_sweep_due(&self, name: &str, now: SystemTime) -> bool {
        let last = self.memory.look(|state| state.swept.get(name).cloned());
        let last = last.and_then(|text| humantime::parse_rfc3339(&text).ok());
        let is_old = |last| {
            now.duration_since(last)
                .map_or(true, |age| age >= SWEEP_EVERY)
        };
        last.is_none_or(is_old)
    }

    /// Whether a snapshot of a repository is one that this job captured, or copied there from the repository that is its source: others
    /// of its volumes are not its to remove.
    async fn is_of_job(&self, catalog: &RepositoryCatalog, name: &ManifestName) -> Result<bool> {
        match catalog.manifest(name).await {
            Ok(manifest) => {
                let tags = &manifest.tags;
                Ok(match self.job.source {
                    JobSource::Repository(_) => tags.get(JOB_TAG) == Some(&self.job.name),
                    JobSource::Ec2(_) => {
                        let cycle = tags.get(CYCLE_TAG);
                        let cycle = cycle.and_then(|text| text.parse::<Cycle>().ok());
                        cycle.is_some_and(|cycle| cycle.job() == self.job.name)
                    }
                })
            }
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => {
                debug!("{name} stays: {}", error.chain());
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes what no snapshot of a repository needs, once a day.
    async fn sweep(
        &self,
        catalog: &RepositoryCatalog,
        name: &str,
        report: &mut CycleReport,
    ) -> Result<()> {
        let now = SystemTime::now();
        if !self.is_sweep_due(name, now) {
            return Ok(());
        }
        let request = PruneRequest {
            // Nothing more is removed than by the rules of the target.
            retention: Retention::default(),
            grace: GRACE,
            dry_run: false,
            accept_missing: Vec::new(),
        };
        let swept = prune(catalog, &request, &Progress::default()).await?;
        if let Err(error) = swept.ended() {
            let what = format!("cannot sweep {name}: {}", error.chain());
            self.say_once(&format!("{name} sweep"), what, report);
        }
        let when = crate::time::rfc3339_seconds(now);
        self.memory
            .update(|state| state.swept.insert(name.to_owned(), when));
        Ok(())
    }

    /// Deletes EBS snapshots that the job made at a target, by the rules of the target.
    async fn retain_replicas(
        &self,
        target: &JobTarget,
        name: &str,
        volumes: &BTreeSet<String>,
        report: &mut CycleReport,
    ) -> Result<()> {
        let Some(keep) = &target.keep else {
            return Ok(());
        };
        let account = self.places.account(target, name).await?;
        let select: Vec<_> = volumes
            .iter()
            .map(|id| Selector::Tag {
                key: REPLICA_VOLUME_TAG.to_owned(),
                value: id.clone(),
            })
            .collect();
        let listed = account.describe(&select).await?;
        let candidates: Vec<_> = listed
            .iter()
            .filter_map(|snapshot| self.replica(snapshot, volumes))
            .collect();
        let decisions = keep.decide(&candidates);
        decisions.check(keep)?;
        for old in decisions.removed() {
            self.stop.check()?;
            if !self
                .delete_replica(&*account, name, &old.snapshot, report)
                .await?
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Deletes a replica. Returns whether others may be tried.
    async fn delete_replica(
        &self,
        account: &dyn SnapshotMaker,
        name: &str,
        id: &SnapshotId,
        report: &mut CycleReport,
    ) -> Result<bool> {
        match account.delete(id).await? {
            Deletion::Deleted => {
                info!("deleted {id} of {name}");
                report.removed.push(format!("{name} {id}"));
                Ok(true)
            }
            Deletion::Denied(error) => {
                let what = format!("old snapshots stay in {name}: {}", error.chain());
                self.say_once(&format!("{name} denied"), what, report);
                Ok(false)
            }
            Deletion::Refused(error) => {
                let what = format!("{id} stays in {name}: {}", error.chain());
                self.say_once(&format!("{name} {id}"), what, report);
                Ok(true)
            }
        }
    }

    /// A snapshot at an `ebs:` target as a candidate, if this job has made it and it is whole: it carries its own id, so its tags are
    /// no copies.
    fn replica(
        &self,
        snapshot: &Snapshot,
        volumes: &BTreeSet<String>,
    ) -> Option<RetentionCandidate> {
        let volume = snapshot.tags.get(REPLICA_VOLUME_TAG)?;
        let is_own = snapshot.volume_id.as_deref() == Some(NO_VOLUME)
            && carries_own_id(snapshot)
            && has_tag(snapshot, JOB_TAG, &self.job.name)
            && snapshot.state == Some(SnapshotState::Completed)
            && volumes.contains(volume);
        is_own.then_some(())?;
        Some(RetentionCandidate {
            name: ManifestName {
                time: snapshot.start_time?,
                volume: VolumeKey::of_volume(volume),
                snapshot: snapshot.id.clone(),
            },
            tags: BTreeMap::new(),
            is_pinned: false,
        })
    }
}

fn own_snapshot(snapshot: &Snapshot) -> OwnSnapshot {
    OwnSnapshot {
        id: snapshot.id.clone(),
        time: snapshot.start_time,
        is_completed: snapshot.state == Some(SnapshotState::Completed),
        is_failed: matches!(&snapshot.state, Some(SnapshotState::Other(state)) if state == "error"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_of_all_shards_is_swept_by_the_first_and_one_of_a_unit_by_its_own() {
        for (shard, template, is_swept) in [
            ("0/1", "s3://bucket/dr", true),
            ("0/4", "s3://bucket/dr", true),
            ("1/4", "s3://bucket/dr", false),
            ("3/4", "s3://bucket/{instance}", true),
            ("3/4", "file:///srv/{volume}", true),
        ] {
            assert_eq!(
                sweeps(shard.parse().unwrap(), template),
                is_swept,
                "{shard} {template}"
            );
        }
    }
}
