//! Turns volumes and instances into calls. One call makes the snapshots of all volumes of an instance, at one instant.

use std::collections::{BTreeMap, BTreeSet};

use super::CaptureJob;
use super::cycle::CYCLE_TAG;
use crate::error::{Error, Kind, Result};
use crate::snapshot::{
    InstanceInfo, NewSnapshots, SnapshotMaker, SnapshotsOf, VolumeInfo, VolumeSelector,
};

/// The most volumes that a call for an instance leaves out besides the one that it boots from
/// (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_InstanceSpecification.html>).
const MOST_WITHOUT: usize = 40;
/// Tags of a resource (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html>).
const MOST_TAGS: usize = 50;
/// The tags that ebsfs gives itself: the cycle and the snapshot's own id.
const OWN_TAGS: usize = 2;
/// The most tags that a job gives.
pub(super) const MOST_GIVEN_TAGS: usize = 40;

/// The volumes and instances that a job selects, as EC2 describes them.
#[derive(Debug, Default)]
pub(super) struct SelectedVolumes {
    /// Each selector with its volumes.
    pub(super) selected: Vec<(VolumeSelector, Vec<VolumeInfo>)>,
    /// The instances that a plan needs.
    pub(super) instances: Vec<InstanceInfo>,
}

/// The calls of a cycle.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CapturePlan {
    pub(super) calls: Vec<PlannedCall>,
    pub(super) warnings: Vec<String>,
}

/// One call, and the volumes whose snapshots it makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlannedCall {
    pub(super) set: Option<InstanceSet>,
    pub(super) volumes: BTreeMap<String, VolumeInfo>,
}

/// Volumes of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InstanceSet {
    pub(super) instance: String,
    /// The volume that it boots from.
    boot: Option<String>,
    without_boot: bool,
    without: BTreeSet<String>,
}

/// Asks EC2 for the volumes and instances that a job selects.
pub(super) async fn observe(
    maker: &dyn SnapshotMaker,
    job: &CaptureJob,
) -> Result<SelectedVolumes> {
    let mut selection = SelectedVolumes::default();
    for select in &job.select {
        let volumes = maker.volumes(select).await?;
        selection.selected.push((select.clone(), volumes));
    }
    let needed: Vec<_> = needed_instances(&selection.selected, job.without_boot)
        .into_iter()
        .collect();
    // Calls of a size that EC2 answers without pages.
    for ids in needed.chunks(100) {
        selection.instances.extend(maker.instances(ids).await?);
    }
    Ok(selection)
}

/// The instances whose volumes must be known: those that are named, and those of which several volumes are selected.
fn needed_instances(
    selected: &[(VolumeSelector, Vec<VolumeInfo>)],
    without_boot: bool,
) -> BTreeSet<String> {
    let named = named_instances(selected);
    let mut homes: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for volume in selected.iter().flat_map(|(_, volumes)| volumes) {
        if let Some(home) = home(volume, &named) {
            homes.entry(home.to_owned()).or_default().insert(&volume.id);
        }
    }
    let several = homes
        .iter()
        .filter(|(_, volumes)| without_boot || volumes.len() > 1);
    let several = several.map(|(home, _)| home.clone());
    named.iter().cloned().chain(several).collect()
}

fn named_instances(selected: &[(VolumeSelector, Vec<VolumeInfo>)]) -> BTreeSet<String> {
    let named = selected.iter().filter_map(|(select, _)| match select {
        VolumeSelector::Instance(id) => Some(id.clone()),
        _ => None,
    });
    named.collect()
}

/// The instance whose set a volume belongs to: the first of those that are named, else the first that it is attached to.
fn home<'a>(volume: &'a VolumeInfo, named: &BTreeSet<String>) -> Option<&'a str> {
    let its = volume.instances.iter();
    let named = its.filter(|id| named.contains(*id)).min();
    named.or(volume.instances.iter().min()).map(String::as_str)
}

/// The calls that a job needs.
///
/// # Errors
/// `Invalid` when the job contradicts itself or leaves nothing, `NotFound` when a selector has no volume.
pub(super) fn plan(selection: &SelectedVolumes, job: &CaptureJob) -> Result<CapturePlan> {
    let mut warnings = Vec::new();
    let named = named_instances(&selection.selected);
    let mut chosen: BTreeMap<&str, &VolumeInfo> = BTreeMap::new();
    let mut explicit: BTreeSet<&str> = BTreeSet::new();
    for (select, volumes) in &selection.selected {
        if volumes.is_empty() {
            let what = match select {
                VolumeSelector::Volume(id) => format!("there is no {id}"),
                VolumeSelector::Instance(id) => format!("{id} has no volume"),
                VolumeSelector::Tag { key, value } => {
                    format!("no volume has the tag {key}={value}")
                }
            };
            return Err(Error::new(Kind::NotFound, what));
        }
        for volume in volumes {
            chosen.insert(&volume.id, volume);
            if matches!(select, VolumeSelector::Volume(_)) {
                explicit.insert(&volume.id);
            }
        }
    }
    for id in &job.without {
        if explicit.contains(id.as_str()) {
            let what = format!("{id} is both selected and left out");
            return Err(Error::new(Kind::Invalid, what));
        }
        if chosen.remove(id.as_str()).is_none() {
            warnings.push(format!("{id} is left out, but nothing selects it"));
        }
    }
    if job.without_boot {
        let boots = selection
            .instances
            .iter()
            .filter_map(|i| i.boot_volume.as_deref());
        for boot in boots.filter(|boot| !explicit.contains(boot)) {
            chosen.remove(boot);
        }
    }
    if chosen.is_empty() && !job.may_be_empty {
        return Err(Error::new(
            Kind::Invalid,
            "every selected volume is left out",
        ));
    }
    let mut of_instances: BTreeMap<&str, Vec<&VolumeInfo>> = BTreeMap::new();
    let mut alone = Vec::new();
    for volume in chosen.values() {
        match home(volume, &named) {
            Some(home) => of_instances.entry(home).or_default().push(volume),
            None => alone.push(*volume),
        }
    }
    let mut calls = Vec::new();
    for (id, volumes) in of_instances {
        if volumes.len() == 1 && !named.contains(id) {
            alone.extend(volumes);
            continue;
        }
        let info = selection.instances.iter().find(|info| info.id == id);
        let info = info.ok_or_else(|| {
            let what = format!("there is no {id} in this Region and account");
            Error::new(Kind::NotFound, what)
        })?;
        calls.push(set_of(info, &volumes)?);
    }
    alone.sort_by(|a, b| a.id.cmp(&b.id));
    calls.extend(alone.into_iter().map(|volume| PlannedCall {
        set: None,
        volumes: [(volume.id.clone(), volume.clone())].into(),
    }));
    for call in &calls {
        warnings.extend(call.volumes.values().filter_map(|volume| {
            let dropped = copied(volume, job).1;
            (dropped > 0).then(|| {
                format!(
                    "{dropped} tags of {} are not copied: a snapshot has at most {MOST_TAGS}",
                    volume.id
                )
            })
        }));
    }
    Ok(CapturePlan { calls, warnings })
}

/// The call for these volumes of an instance.
fn set_of(info: &InstanceInfo, volumes: &[&VolumeInfo]) -> Result<PlannedCall> {
    let volumes: BTreeMap<_, _> = volumes
        .iter()
        .map(|volume| (volume.id.clone(), (*volume).clone()))
        .collect();
    let rest = info.volumes.iter().filter(|id| !volumes.contains_key(*id));
    let (boot, without): (BTreeSet<_>, BTreeSet<_>) = rest
        .cloned()
        .partition(|id| Some(id) == info.boot_volume.as_ref());
    let set = InstanceSet {
        instance: info.id.clone(),
        boot: info.boot_volume.clone(),
        without_boot: !boot.is_empty(),
        without,
    };
    set.check()?;
    Ok(PlannedCall {
        set: Some(set),
        volumes,
    })
}

impl InstanceSet {
    fn check(&self) -> Result<()> {
        let count = self.without.len();
        if count > MOST_WITHOUT {
            let what = format!(
                "{count} volumes of {} would have to be left out, and EC2 leaves out {MOST_WITHOUT} at most",
                self.instance
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        Ok(())
    }
}

impl PlannedCall {
    /// The ids of its volumes.
    pub(super) fn ids(&self) -> BTreeSet<String> {
        self.volumes.keys().cloned().collect()
    }

    /// The same call without volumes that have their snapshots.
    ///
    /// # Errors
    /// `Invalid` when they are too many to be left out.
    pub(super) fn without(mut self, made: &BTreeSet<String>) -> Result<Self> {
        self.volumes.retain(|id, _| !made.contains(id));
        if let Some(set) = &mut self.set {
            for id in made {
                if set.boot.as_ref() == Some(id) {
                    set.without_boot = true;
                } else {
                    set.without.insert(id.clone());
                }
            }
            set.check()?;
        }
        Ok(self)
    }

    /// Whether EC2 itself can copy the tags of the volumes: all of them have room, and none has a key that ebsfs sets. A volume that
    /// is made of a snapshot can have such a key.
    fn copies_tags(&self, job: &CaptureJob) -> bool {
        self.set.is_some()
            && self.volumes.values().all(|volume| {
                let tags = volume.tags.keys().filter(|key| !key.starts_with("aws:"));
                copied(volume, job).0.len() == tags.count()
            })
    }

    /// The request to EC2.
    pub(super) fn request(&self, job: &CaptureJob) -> NewSnapshots {
        let mut tags = vec![(CYCLE_TAG.to_owned(), job.cycle.to_string())];
        tags.extend_from_slice(&job.tags);
        let of = match &self.set {
            Some(set) => SnapshotsOf::Instance {
                id: set.instance.clone(),
                without_boot: set.without_boot,
                without: set.without.iter().cloned().collect(),
                copies_tags: self.copies_tags(job),
            },
            None => {
                for volume in self.volumes.values() {
                    tags.extend(copied(volume, job).0);
                }
                SnapshotsOf::Volume(self.volumes.keys().cloned().collect())
            }
        };
        NewSnapshots {
            of,
            description: job.description.clone(),
            tags,
        }
    }

    /// The tags that a snapshot of this volume gets after it is made, besides its own id: the cycle again, over one that was
    /// copied, and those of the volume where EC2 does not copy them.
    pub(super) fn tags_after(&self, volume: &str, job: &CaptureJob) -> Vec<(String, String)> {
        let mut tags = vec![(CYCLE_TAG.to_owned(), job.cycle.to_string())];
        let info = self.volumes.get(volume).filter(|_| self.set.is_some());
        if let Some(info) = info.filter(|_| !self.copies_tags(job)) {
            tags.extend(copied(info, job).0);
        }
        tags
    }
}

/// The tags of a volume that its snapshot gets, and how many others have no room.
fn copied(volume: &VolumeInfo, job: &CaptureJob) -> (Vec<(String, String)>, usize) {
    let is_given = |key: &str| job.tags.iter().any(|(given, _)| given == key);
    let is_taken = |key: &str| ["aws:", "ebsfs:"].iter().any(|own| key.starts_with(own));
    let wanted = volume
        .tags
        .iter()
        .filter(|(key, _)| !is_given(key) && !is_taken(key));
    let mut tags: Vec<_> = wanted
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let room = MOST_TAGS - OWN_TAGS - job.tags.len().min(MOST_GIVEN_TAGS);
    let dropped = tags.len().saturating_sub(room);
    tags.truncate(room);
    (tags, dropped)
}
