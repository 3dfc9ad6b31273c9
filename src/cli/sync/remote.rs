//! The account and Region that a new EBS snapshot is made in: how to reach it, what the snapshot begins as, what is kept to
//! go on with it.

use std::sync::Arc;
use std::time::SystemTime;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::info;

use super::Source;
use super::plan::Base;
use crate::block::{BlockSet, Delta, Geometry};
use crate::cli::aws::{self, AwsArgs};
use crate::ebs::{Client, Limits, NewSnapshot};
use crate::error::{Error, Kind, Result};
use crate::sink::Sink;
use crate::sinks::{SnapshotSink, SnapshotTarget};
use crate::source::{Selector, Snapshot, SnapshotId, State, held, sort_by_time};
use crate::sync::{Checkpoint, Task};

/// Which snapshot, and of which volume, one that ebsfs made is a replica of; its bytes before they were rounded up to GiB.
const SOURCE_TAG: &str = "ebsfs:source";
const VOLUME_TAG: &str = "ebsfs:volume";
const SIZE_TAG: &str = "ebsfs:size";
/// Characters of a tag (API_Tag of the EBS direct APIs).
const LONGEST_KEY: usize = 127;
const LONGEST_VALUE: usize = 255;
/// EBS gives up what nothing was put into for so long: a day for whoever resumes, at most three.
const LEAST_TIMEOUT: u64 = 1440;
const MOST_TIMEOUT: u64 = 4320;

#[derive(Args, Debug)]
#[command(next_help_heading = "New EBS snapshots and repositories")]
pub(super) struct ToArgs {
    /// The profile of the account that the snapshot or the bucket is in; else that of the source
    #[arg(long, value_name = "PROFILE")]
    to_profile: Option<String>,
    /// The Region that it is in, as ebs:REGION; else that of the source
    #[arg(long, value_name = "REGION")]
    to_region: Option<String>,
    /// The URL of EBS and EC2 there, else that of the source if the Region is the same; or of the object store
    #[arg(long, value_name = "URL")]
    to_endpoint_url: Option<String>,
    /// The certificate authorities to trust there; else those of the source
    #[arg(long, value_name = "FILE")]
    to_ca_bundle: Option<std::path::PathBuf>,
    /// The ARN of the KMS key to encrypt it with; a child has its parent's
    #[arg(long, value_name = "ARN", conflicts_with = "parent")]
    kms_key: Option<String>,
    /// The completed snapshot that it is a child of; with --base one that holds that base, found by its tag if it is not named
    #[arg(long, value_name = "SNAPSHOT")]
    parent: Option<SnapshotId>,
    /// A tag of it, besides those that ebsfs gives it
    #[arg(long, value_name = "KEY=VALUE", value_parser = tag)]
    tag: Vec<(String, String)>,
    /// What it is described as
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Make a snapshot that is not encrypted of one that is
    #[arg(long)]
    allow_plaintext: bool,
}

fn tag(text: &str) -> std::result::Result<(String, String), String> {
    let tag = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = tag.ok_or_else(|| "must be KEY=VALUE".to_owned())?;
    if key.chars().count() > LONGEST_KEY || value.chars().count() > LONGEST_VALUE {
        return Err(format!(
            "a key has at most {LONGEST_KEY} characters, a value {LONGEST_VALUE}"
        ));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Where a new snapshot is made.
pub(super) struct Remote {
    region: String,
    /// As far as this machine knows it: the endpoint, and the profile if one was named.
    account: String,
    target: Arc<SnapshotTarget>,
    client: Arc<Client>,
    encrypts_by_default: Option<bool>,
    kms_key: Option<String>,
    parent: Option<SnapshotId>,
    tags: Vec<(String, String)>,
    description: Option<String>,
    allow_plaintext: bool,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({})", self.region)
    }
}

impl ToArgs {
    /// The account of an object store.
    pub(super) fn account(&self, source: &AwsArgs) -> AwsArgs {
        source.elsewhere(
            self.to_profile.clone(),
            self.to_region.clone(),
            self.to_endpoint_url.clone(),
            self.to_ca_bundle.clone(),
            false,
        )
    }

    /// Reaches the account and Region of `ebs:REGION`; nothing is made.
    pub(super) async fn connect(
        &self,
        region: &str,
        source: &AwsArgs,
        limits: &Limits,
    ) -> Result<Remote> {
        let region = (!region.is_empty())
            .then(|| region.to_owned())
            .or_else(|| self.to_region.clone());
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if let Some(wrong) = region
            .as_ref()
            .filter(|region| !region.chars().all(is_name))
        {
            let what = format!("ebs:{wrong}: {wrong:?} is no Region");
            return Err(Error::new(Kind::Invalid, what));
        }
        let here = source.load().await.ok();
        let here = here.and_then(|config| Some(config.region()?.to_string()));
        let same_region = region.is_none() || region == here;
        if let Some(key) = self.kms_key.as_ref().filter(|key| !key.starts_with("arn:")) {
            let what = format!("--kms-key {key}: must be an ARN (arn:aws:kms:...)");
            return Err(Error::new(Kind::Invalid, what));
        }
        let to = source.elsewhere(
            self.to_profile.clone(),
            region,
            self.to_endpoint_url.clone(),
            self.to_ca_bundle.clone(),
            same_region,
        );
        let config = to.load_with_credentials().await?;
        let region = config.region().map_or("", |region| region.as_ref());
        let descriptions = aws::descriptions(&config).ok_or_else(|| {
            let what = "this build has no EC2 in it, which tells when a new snapshot is completed";
            Error::new(Kind::Invalid, what)
        })?;
        // Without the permission StartSnapshot's answer tells it.
        let encrypts_by_default = match descriptions.encrypts_by_default().await {
            Ok(encrypts) => Some(encrypts),
            Err(error) if error.kind() == Kind::Denied => None,
            Err(error) => return Err(error),
        };
        let (client, catalog) = aws::catalog(&config, limits, Vec::new());
        let target = SnapshotTarget {
            client: Arc::clone(&client),
            descriptions,
            catalog,
        };
        Ok(Remote {
            region: region.to_owned(),
            account: match &self.to_profile {
                Some(profile) => format!("{}, {profile}", client.endpoint()),
                None => client.endpoint().to_owned(),
            },
            target: Arc::new(target),
            client,
            encrypts_by_default,
            kms_key: self.kms_key.clone(),
            parent: self.parent.clone(),
            tags: self.tag.clone(),
            description: self.description.clone(),
            allow_plaintext: self.allow_plaintext,
        })
    }
}

/// What a snapshot is to begin as.
pub(super) struct Beginning {
    /// The snapshot in the target's account.
    parent: Option<Snapshot>,
    /// What that holds, as a snapshot of the source: only what changed since is put.
    pub(super) base: Option<SnapshotId>,
}

impl Beginning {
    /// Whether the parent's volume goes on behind the end of another.
    pub(super) fn is_larger_than(&self, geometry: Geometry) -> bool {
        let parent = self.parent.as_ref().and_then(|parent| parent.volume_size);
        let own = geometry.rounded_to_gib().map_or(u64::MAX, Geometry::size);
        parent.is_some_and(|parent| parent > own)
    }
}

/// What is kept of a snapshot that is being made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Begun {
    start: NewSnapshot,
    /// Once it is started.
    snapshot: Option<SnapshotId>,
    /// When that was: parts of EBS may not know it for a while.
    started: Option<SystemTime>,
    puts_zeroes: bool,
}

impl Remote {
    pub(super) fn region(&self) -> &str {
        &self.region
    }

    /// Which account's EBS this is, as far as this machine knows.
    pub(super) fn id(&self) -> String {
        format!("ebs:{} ({})", self.region, self.account)
    }

    pub(super) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Finds out what the snapshot begins as.
    pub(super) async fn beginning(
        &self,
        base: Option<&Base>,
        source: &Source,
    ) -> Result<Beginning> {
        let found = match (&self.parent, base) {
            (Some(parent), _) => Some(self.describe(parent).await?),
            (None, None) => None,
            (None, Some(Base::Snapshot(id))) => {
                let replica = self.newest(SOURCE_TAG, id.as_str()).await?;
                Some(replica.ok_or_else(|| {
                    let what = format!(
                        "no completed snapshot in {} is tagged {SOURCE_TAG}={id}: without --base all of it is copied",
                        self.region
                    );
                    Error::new(Kind::NotFound, what)
                })?)
            }
            (None, Some(Base::Auto)) => match source.volume() {
                Some(volume) => self.newest(VOLUME_TAG, volume).await?,
                None => None,
            },
        };
        let holds = |parent: &Snapshot| parent.tags.get(SOURCE_TAG)?.parse::<SnapshotId>().ok();
        let held = found.as_ref().and_then(holds);
        let base = match (base, &found) {
            (Some(Base::Snapshot(id)), Some(parent)) if held.as_ref() != Some(id) => {
                let what = format!(
                    "{} is not tagged {SOURCE_TAG}={id}: nobody knows that it holds {id}; without --base all blocks are put",
                    parent.id
                );
                return Err(Error::new(Kind::Invalid, what));
            }
            (Some(_), _) => held,
            (None, _) => None,
        };
        if let (Some(Base::Auto), None) = (base.as_ref().map(|_| Base::Auto), &found) {
            info!("no replica of this volume is known in {}", self.region);
        }
        Ok(Beginning {
            parent: found,
            base,
        })
    }

    fn description_of(&self, task: &Task) -> String {
        let description = self.description.clone();
        let description =
            description.unwrap_or_else(|| format!("ebsfs: replica of {}", task.source));
        // At most 255 characters (API_StartSnapshot).
        description.chars().take(255).collect()
    }

    /// Whether an unfinished snapshot is the one that the command asks for; false when it asks for another one and none was
    /// started.
    pub(super) fn goes_on_with(&self, state: &Value, task: &Task) -> Result<bool> {
        let Ok(begun) = serde_json::from_value::<Begun>(state.clone()) else {
            return Ok(false);
        };
        let start = &begun.start;
        let is_own =
            |tag: &&(String, String)| [SOURCE_TAG, VOLUME_TAG, SIZE_TAG].contains(&tag.0.as_str());
        let is_same = self.kms_key == start.kms_key
            && (self.parent.is_none() || self.parent == start.parent)
            && self.description_of(task) == start.description
            && start
                .tags
                .iter()
                .filter(|tag| !is_own(tag))
                .eq(self.tags.iter());
        match begun.snapshot {
            Some(id) if !is_same => {
                let what = format!(
                    "{id} is unfinished and was begun with another --kms-key, --parent, --tag or --description: say the same \
                     as then, or --restart to begin another"
                );
                Err(Error::new(Kind::Invalid, what))
            }
            _ => Ok(is_same),
        }
    }

    async fn describe(&self, id: &SnapshotId) -> Result<Snapshot> {
        let select = [Selector::Snapshot(id.clone())];
        let found = self.target.descriptions.describe(&select).await?;
        let found = found.into_iter().next().ok_or_else(|| {
            let what = format!("--parent {id} does not exist in {}", self.region);
            Error::new(Kind::NotFound, what)
        })?;
        found.readable()?;
        Ok(found)
    }

    /// The newest completed snapshot with a tag.
    async fn newest(&self, key: &str, value: &str) -> Result<Option<Snapshot>> {
        let select = [Selector::Tag {
            key: key.to_owned(),
            value: value.to_owned(),
        }];
        let mut found = self.target.descriptions.describe(&select).await?;
        found.retain(|snapshot| snapshot.state == Some(State::Completed));
        sort_by_time(&mut found);
        Ok(found.pop())
    }

    /// The volume: whole GiB, and not less than the parent's.
    pub(super) fn geometry(&self, source: Geometry, beginning: &Beginning) -> Result<Geometry> {
        let parent = beginning
            .parent
            .as_ref()
            .and_then(|parent| parent.volume_size);
        Geometry::new(source.rounded_to_gib()?.size().max(parent.unwrap_or(0)))
    }

    /// What changed since the beginning's base: an encrypted parent that ebsfs made has no absent block, and a child must
    /// have none either.
    pub(super) fn changes(&self, delta: &Arc<Delta>, beginning: &Beginning) -> Arc<Delta> {
        if self.is_encrypted(beginning) == Some(false) {
            return Arc::new(delta.without_growth());
        }
        Arc::clone(delta)
    }

    /// A full copy: with a parent, what that holds and the source does not is zeroed; encrypted, all that the source does not
    /// hold is.
    pub(super) async fn full(
        &self,
        source: Geometry,
        blocks: &BlockSet,
        beginning: &Beginning,
    ) -> Result<Delta> {
        let geometry = self.geometry(source, beginning)?;
        let is_encrypted = self.is_encrypted(beginning) == Some(true);
        let mut plan = Delta::full(geometry, blocks, is_encrypted);
        if let Some(parent) = beginning.parent.as_ref().filter(|_| !is_encrypted) {
            let (_, parent) = self.target.catalog.open(&parent.id).await?;
            plan.zero_where_held(&held(&*parent).await?);
        }
        Ok(plan)
    }

    /// Whether the new snapshot will be encrypted, if that can be told before.
    fn is_encrypted(&self, beginning: &Beginning) -> Option<bool> {
        match &beginning.parent {
            Some(parent) => parent.encrypted,
            None if self.kms_key.is_some() => Some(true),
            None => self.encrypts_by_default,
        }
    }

    /// What is asked of EBS and kept until it is done. Refuses to make plain what is encrypted.
    pub(super) fn begin(
        &self,
        beginning: &Beginning,
        task: &Task,
        plan: &Delta,
        source: &Source,
        rate: u32,
    ) -> Result<Begun> {
        if !self.allow_plaintext {
            let from = match source.is_encrypted() {
                Some(false) => None,
                Some(true) => Some("is encrypted"),
                None => Some("may be encrypted (EC2 does not describe it)"),
            };
            let to = match self.is_encrypted(beginning) {
                Some(true) => None,
                Some(false) => Some("would not be"),
                None => Some("may not be (ec2:GetEbsEncryptionByDefault is not allowed)"),
            };
            if let Some((from, to)) = from.zip(to) {
                let what = format!(
                    "{} {from} and the new snapshot {to}: use --kms-key, or --allow-plaintext",
                    source.name
                );
                return Err(Error::new(Kind::Invalid, what));
            }
        }
        let size = source.blocks.geometry().size();
        let gib = u32::try_from(plan.head().size() >> 30).unwrap_or(u32::MAX);
        let name = source.name.chars().take(LONGEST_VALUE).collect();
        let mut tags = vec![
            (SOURCE_TAG.to_owned(), name),
            (SIZE_TAG.to_owned(), source.size.unwrap_or(size).to_string()),
        ];
        if let Some(volume) = source.volume() {
            tags.push((VOLUME_TAG.to_owned(), volume.to_owned()));
        }
        tags.extend(self.tags.iter().cloned());
        let blocks = plan.write().len() + plan.zero().len();
        let minutes = blocks / u64::from(rate.max(1)) / 60 * 2;
        let timeout = minutes.clamp(LEAST_TIMEOUT, MOST_TIMEOUT);
        Ok(Begun {
            start: NewSnapshot {
                volume_gib: gib,
                parent: beginning.parent.as_ref().map(|parent| parent.id.clone()),
                tags,
                description: self.description_of(task),
                kms_key: self.kms_key.clone(),
                client_token: format!("ebsfs-{}", task.run),
                timeout_minutes: u16::try_from(timeout).unwrap_or(u16::MAX),
            },
            snapshot: None,
            started: None,
            puts_zeroes: false,
        })
    }

    /// Starts the snapshot, or goes on with the one that was started; `checkpoint` knows it before anything is put.
    pub(super) async fn open(&self, checkpoint: &mut Checkpoint) -> Result<Arc<dyn Sink>> {
        let unusable = |error| {
            let what = "the checkpoint tells of no snapshot: --restart begins another";
            Error::with_source(Kind::Corrupt, what, error)
        };
        let mut begun: Begun =
            serde_json::from_value(checkpoint.state().clone()).map_err(unusable)?;
        let snapshot = match begun.snapshot.clone() {
            Some(snapshot) => snapshot,
            None => {
                // Kept first: asked again after a crash, EBS answers with the same snapshot.
                checkpoint.encode().write()?;
                let started = match self.client.start_snapshot(&begun.start).await {
                    Ok(started) => started,
                    Err(error) => {
                        if matches!(error.kind(), Kind::Denied | Kind::Invalid | Kind::NotFound) {
                            // Refused for good: there is nothing to go on with.
                            Checkpoint::discard(checkpoint.path())?;
                        }
                        return Err(error);
                    }
                };
                info!("started {} in {}", started.id, self.region);
                if started.is_encrypted && begun.start.parent.is_none() {
                    checkpoint.zero_the_rest();
                }
                begun.puts_zeroes = started.is_encrypted || begun.start.parent.is_some();
                begun.snapshot = Some(started.id.clone());
                begun.started = Some(SystemTime::now());
                let state = serde_json::to_value(&begun).map_err(unusable)?;
                checkpoint.mark([], state);
                started.id
            }
        };
        Ok(Arc::new(SnapshotSink::new(
            checkpoint.task().target.clone(),
            snapshot,
            Arc::clone(&self.target),
            begun.puts_zeroes,
            // What has taken blocks is known.
            begun.started.filter(|_| checkpoint.done() == 0),
            checkpoint.state().clone(),
        )))
    }
}

/// The snapshot that a checkpoint tells of, once it is started.
pub(super) fn snapshot_of(state: &Value) -> Option<SnapshotId> {
    serde_json::from_value::<Begun>(state.clone())
        .ok()?
        .snapshot
}
