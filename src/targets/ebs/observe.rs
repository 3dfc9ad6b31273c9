//! What EC2 reports of an account, as [`Facts`].

use crate::block::Geometry;
use crate::error::{Error, Kind, Result};
use crate::snapshot::{Selector, Snapshot, SnapshotId, sort_by_time};
use crate::target::{Base, Existence, Facts, ObserveRequest, UnfinishedState};

use super::evidence::{Offer, ReplicaQuery, SOURCE_TAG, VOLUME_TAG, has_tag, is_made, offer};
use super::state::{EbsState, ReportedSnapshot, left};
use super::{EbsTarget, volume_of};

/// A tag that candidates must have: key and value.
type TagPair<'a> = (&'static str, &'a str);

impl EbsTarget {
    pub(super) async fn look(&self, ask: &ObserveRequest<'_>) -> Result<Facts> {
        let mut facts = Facts::of(self.id.clone(), Existence::Absent);
        let parent = self.named_parent().await?;
        let by_default = self.encrypts_by_default().await?;
        let has_key = self.job.kms_key.is_some();
        facts.encrypts = match &parent {
            Some(parent) => parent.encrypted,
            None => has_key.then_some(true).or(by_default),
        };
        if let Some(state) = ask.left {
            match state.open::<EbsState>() {
                Ok(state) => {
                    let (what, why) = self.look_at_left(&state).await?;
                    facts.left = what;
                    facts.warnings.extend(why);
                }
                Err(error) => {
                    facts.left = UnfinishedState::Absent;
                    facts.warnings.push(error.chain());
                }
            }
        }
        let own = ask.source.id();
        let base_tag = base_tag(ask);
        let found = match self.tagged(own.as_ref(), base_tag).await {
            Ok(found) => found,
            Err(error) if error.kind() == Kind::Denied => {
                not_allowed(&mut facts, ask.base, &error);
                return Ok(facts);
            }
            Err(error) => return Err(error),
        };
        if let Some(own) = &own {
            let made = |found: &&Snapshot| is_made(found, own, &self.job, ask.replica);
            facts.holds = found.iter().find(made).map(|found| found.id.clone());
        }
        *self.held.lock() = facts.holds.clone();
        let wanted = ReplicaQuery {
            recorded: ask.replica,
            kms_key: self.job.kms_key.as_deref(),
            volume_bytes: ask
                .source
                .geometry
                .rounded_to_gib()
                .map_or(u64::MAX, Geometry::size),
            encrypts: by_default,
        };
        if *ask.base != Base::None {
            match &parent {
                Some(parent) => offer_parent(&mut facts, parent, base_tag, &wanted),
                None => self.offer_found(&mut facts, &found, ask.base, base_tag, &wanted),
            }
        }
        Ok(facts)
    }

    async fn look_at_left(&self, state: &EbsState) -> Result<(UnfinishedState, Option<String>)> {
        let seen = match &state.snapshot {
            None => ReportedSnapshot::Absent,
            Some(id) => match self.describe(id).await {
                Ok(Some(found)) => ReportedSnapshot::There(found.state, found.state_message),
                Ok(None) => ReportedSnapshot::Absent,
                Err(error) if error.kind() == Kind::Denied => ReportedSnapshot::Denied,
                Err(error) => return Err(error),
            },
        };
        Ok(left(state, &self.job, &seen))
    }

    /// The snapshots of the account that are tagged as replicas of the source, or as the base; newest first.
    async fn tagged(
        &self,
        own: Option<&SnapshotId>,
        base: Option<TagPair<'_>>,
    ) -> Result<Vec<Snapshot>> {
        let own = own.map(|own| (SOURCE_TAG, own.as_str()));
        let tags: Vec<TagPair<'_>> = own.into_iter().chain(base).collect();
        if tags.is_empty() {
            // Without a selector all snapshots of the account would be described.
            return Ok(Vec::new());
        }
        let select: Vec<Selector> = tags
            .iter()
            .map(|(key, value)| Selector::Tag {
                key: (*key).to_owned(),
                value: (*value).to_owned(),
            })
            .collect();
        let mut found = self.place.descriptions.describe(&select).await?;
        sort_by_time(&mut found);
        found.reverse();
        Ok(found)
    }

    /// Offers every usable replica among the snapshots that have the base's tag.
    fn offer_found(
        &self,
        facts: &mut Facts,
        found: &[Snapshot],
        base: &Base,
        tag: Option<TagPair<'_>>,
        wanted: &ReplicaQuery<'_>,
    ) {
        let Some((key, value)) = tag else {
            return;
        };
        let (mut unproven, mut unusable) = (0u32, Vec::new());
        for snapshot in found.iter().filter(|found| has_tag(found, key, value)) {
            match offer(snapshot, wanted) {
                Offer::Base(replica) => facts.replicas.push(replica),
                Offer::Unfinished => {}
                Offer::Unproven => unproven += 1,
                Offer::Unusable(why) => unusable.push(why),
            }
        }
        if !facts.replicas.is_empty() {
            return;
        }
        let region = &self.place.region;
        let mut why = Vec::new();
        if unproven > 0 {
            why.push(format!(
                "{unproven} tagged {key}={value} {} not proven to be one: tags can be copied",
                if unproven == 1 { "is" } else { "are" }
            ));
        }
        why.extend(unusable);
        match base {
            Base::Snapshot(id) => {
                let mut what =
                    format!("no completed snapshot in {region} is a usable replica of {id}");
                if !why.is_empty() {
                    what = format!("{what} ({})", why.join("; "));
                }
                facts.no_base = Some(what);
            }
            _ if !why.is_empty() => facts.warnings.push(format!(
                "no replica of {value} in {region} is usable as a base: {}",
                why.join("; ")
            )),
            _ => {}
        }
    }
}

/// The tag of every snapshot that can be a base.
fn base_tag<'a>(ask: &'a ObserveRequest<'_>) -> Option<TagPair<'a>> {
    match ask.base {
        Base::None => None,
        Base::Auto => volume_of(ask.source).map(|volume| (VOLUME_TAG, volume)),
        Base::Snapshot(id) => Some((SOURCE_TAG, id.as_str())),
    }
}

/// Offers the parent that the job names, if it is proven to hold the base.
fn offer_parent(
    facts: &mut Facts,
    parent: &Snapshot,
    tag: Option<TagPair<'_>>,
    wanted: &ReplicaQuery<'_>,
) {
    let id = &parent.id;
    let is_tagged = tag.is_some_and(|(key, value)| has_tag(parent, key, value));
    let offered = match offer(parent, wanted) {
        _ if !is_tagged => Offer::Unproven,
        offered => offered,
    };
    match offered {
        Offer::Base(replica) => facts.replicas.push(replica),
        Offer::Unusable(why) => facts.no_base = Some(why),
        Offer::Unfinished | Offer::Unproven => {
            let what = match tag {
                Some((key, value)) => {
                    format!("{id} is not proven to be a replica with the tag {key}={value}")
                }
                None => {
                    format!("{id} is not proven to be a replica: the source's volume is unknown")
                }
            };
            facts.no_base = Some(what);
        }
    }
}

/// What is not known without ec2:DescribeSnapshots.
fn not_allowed(facts: &mut Facts, base: &Base, error: &Error) {
    let why = error.chain();
    if let Base::Snapshot(id) = base {
        facts.no_base = Some(format!("replicas of {id} cannot be listed: {why}"));
    }
    facts.warnings.push(format!(
        "cannot list replicas, and will not see when a new snapshot is completed: {why}"
    ));
}
