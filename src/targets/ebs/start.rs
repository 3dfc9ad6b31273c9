//! StartSnapshot until it answers with a snapshot that takes blocks.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::ebs::StartedSnapshot;
use crate::error::{Error, Kind, Remedy, Result};
use crate::snapshot::{SELF_TAG, SnapshotId, SnapshotState, tag_with_own_id};
use crate::target::{Opened, Opening, SinkState};

use super::request::{Seed, body, seed, token};
use super::sink::EbsSink;
use super::state::EbsState;
use super::{EbsTarget, YOUNG, no_replica};

/// Snapshots that one command starts, at most, where each one before was completed, deleted or given up.
pub(super) const MOST_ATTEMPTS: u32 = 16;
/// The least time that EC2 gets to list a snapshot, even one that is old by its start time: this clock may be wrong.
const LEAST_VISIBILITY_WAIT: Duration = Duration::from_secs(10);
/// Between two requests for a snapshot that EC2 does not list yet.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl EbsTarget {
    pub(super) async fn start(&self, opening: Opening<'_>) -> Result<Opened> {
        let stop = opening.stop;
        let mut state = match opening.resume {
            Some(state) => state.open::<EbsState>()?,
            None => self.begin(&opening)?,
        };
        // The client token is saved first: after a crash, EBS answers it with the same snapshot.
        (opening.name)(&SinkState::of(&state))?;
        let id = match state.snapshot.clone() {
            Some(id) => id,
            None => self.start_one(&mut state, &opening).await?,
        };
        if !state.is_tagged {
            state.is_tagged = stop.unless(self.tag_itself(&id, state.is_young())).await?;
            (opening.name)(&SinkState::of(&state))?;
        }
        // A snapshot that has taken blocks is known to all parts of EBS.
        let young_since = state.started.filter(|_| opening.done == 0);
        let sink = EbsSink::new(self.place.clone(), id, &state, opening.source, young_since);
        Ok(Opened {
            sink: Arc::new(sink),
            zero_the_rest: state.zero_the_rest,
            state: SinkState::of(&state),
        })
    }

    /// The state of a run that begins.
    fn begin(&self, opening: &Opening<'_>) -> Result<EbsState> {
        let (source, plan) = (opening.source, opening.plan);
        let base = match plan.base() {
            Some(_) => Some(opening.base.ok_or_else(no_replica)?),
            None => None,
        };
        let parent = base.map(|base| &base.id).or(self.job.parent.as_ref());
        let mut start = body(source, &self.job, parent, plan)?;
        // The path of an image does not identify its bytes, so each run makes its own snapshot.
        let is_own = opening.restart || source.snapshot.is_none();
        let seed = seed(
            &Seed {
                source: &source.name,
                target: &self.id,
                base: base.map(|base| base.source.as_str()),
                run: is_own.then_some(&opening.task.run),
            },
            &start,
            plan,
        );
        start.client_token = token(&seed, 0);
        Ok(EbsState {
            job: self.job.clone(),
            start,
            seed,
            attempt: 0,
            snapshot: None,
            started: None,
            puts_zeroes: false,
            zero_the_rest: false,
            is_tagged: false,
            is_refused: false,
        })
    }

    async fn start_one(&self, state: &mut EbsState, opening: &Opening<'_>) -> Result<SnapshotId> {
        let (stop, region) = (opening.stop, &self.place.region);
        let mut unlisted: Option<SnapshotId> = None;
        while state.attempt < MOST_ATTEMPTS {
            let asked = stop.unless(self.place.client.start_snapshot(&state.start));
            let answer = match asked.await {
                Ok(answer) => answer,
                Err(error) => {
                    if matches!(error.kind(), Kind::Denied | Kind::Invalid | Kind::NotFound) {
                        // EBS refused the request: the next run has nothing to resume.
                        state.is_refused = true;
                        (opening.name)(&SinkState::of(state))?;
                    }
                    return Err(error.context(format!("cannot start a snapshot in {region}")));
                }
            };
            let why = match answer {
                None => "its client token was used for another request".to_owned(),
                Some(started) => {
                    let age = started.start_time.and_then(|time| time.elapsed().ok());
                    let age = age.unwrap_or_default();
                    let fate = stop.unless(self.fate(&started, age)).await?;
                    if fate == Fate::TakesBlocks {
                        accept(state, &started);
                        (opening.name)(&SinkState::of(state))?;
                        info!("started {} in {region}", started.id);
                        return Ok(started.id);
                    }
                    let before = unlisted.take();
                    if fate == Fate::Unlisted && age < YOUNG {
                        if let Some(before) = before {
                            return Err(never_listed(region, &before, &started.id));
                        }
                        unlisted = Some(started.id.clone());
                    }
                    format!("{} {fate}", started.id)
                }
            };
            info!(
                "the same command started a snapshot in {region} before, and {why}: starting another"
            );
            state.attempt += 1;
            state.start.client_token = token(&state.seed, state.attempt);
            (opening.name)(&SinkState::of(state))?;
        }
        let what = format!(
            "cannot start a snapshot in {region}: the same command has started {MOST_ATTEMPTS} that are completed, deleted or \
             given up"
        );
        Err(Error::new(Kind::Undecided, what).with_remedy(Remedy::Restart))
    }

    /// What became of the snapshot that EBS answers with, `age` after its start. EBS repeats the answer of the first request
    /// whatever the state of the snapshot is now: only EC2 reports that.
    async fn fate(&self, started: &StartedSnapshot, age: Duration) -> Result<Fate> {
        if !started.is_pending {
            return Ok(Fate::Ended);
        }
        let until = Instant::now() + visibility_wait(age);
        let mut is_said = false;
        loop {
            match self.describe(&started.id).await {
                Ok(Some(found)) => {
                    return Ok(match found.state {
                        Some(state @ (SnapshotState::Completed | SnapshotState::Other(_))) => {
                            Fate::InState(state)
                        }
                        _ => Fate::TakesBlocks,
                    });
                }
                Ok(None) if Instant::now() >= until => return Ok(Fate::Unlisted),
                Ok(None) => {
                    if !std::mem::replace(&mut is_said, true) {
                        let rest = until.saturating_duration_since(Instant::now()).as_secs();
                        info!(
                            "EBS started {}, and EC2 does not list it yet: waiting up to {rest} s",
                            started.id
                        );
                    }
                    sleep(LOOK_EVERY).await;
                }
                Err(error) if error.kind() == Kind::Denied => return Ok(Fate::TakesBlocks),
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives a snapshot the tag that proves where it is from; false where that is not allowed.
    async fn tag_itself(&self, id: &SnapshotId, is_young: bool) -> Result<bool> {
        let retry_for = if is_young { YOUNG } else { Duration::ZERO };
        let descriptions = &*self.place.descriptions;
        let Err(error) = tag_with_own_id(descriptions, id, &[], retry_for).await else {
            return Ok(true);
        };
        match error.kind() {
            Kind::Denied | Kind::Invalid | Kind::NotFound => {
                warn!(
                    "cannot tag {id} {SELF_TAG}: only the record of this machine will prove that it is a replica: {}",
                    error.chain()
                );
                Ok(false)
            }
            _ => Err(error.context(format!("cannot tag {id} {SELF_TAG}"))),
        }
    }
}

/// What became of a snapshot that EBS started.
#[derive(PartialEq, Eq)]
enum Fate {
    TakesBlocks,
    /// EBS itself says that it is not pending.
    Ended,
    InState(SnapshotState),
    /// EC2 does not list it: it is deleted, or EC2 is that of another account or Region.
    Unlisted,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TakesBlocks => f.write_str("takes blocks"),
            Self::Ended => f.write_str("is not pending any more"),
            Self::InState(state) => write!(f, "is in state {state}"),
            Self::Unlisted => f.write_str("does not exist any more"),
        }
    }
}

/// One new snapshot that EC2 does not list may have been deleted. Two in a row were not: each further one would stay pending and
/// unlisted too.
fn never_listed(region: &str, first: &SnapshotId, second: &SnapshotId) -> Error {
    let what = format!(
        "cannot start a snapshot in {region}: EBS started {first} and {second}, and EC2 lists neither. The endpoints of EBS and EC2 \
         are those of different accounts or Regions: compare AWS_ENDPOINT_URL_EBS and AWS_ENDPOINT_URL_EC2, and endpoint_url in \
         the profile"
    );
    Error::new(Kind::Undecided, what)
}

/// How long EC2 may take to list a snapshot of this age before the snapshot counts as deleted.
pub(super) fn visibility_wait(age: Duration) -> Duration {
    YOUNG.saturating_sub(age).max(LEAST_VISIBILITY_WAIT)
}

/// Notes what was started.
fn accept(state: &mut EbsState, started: &StartedSnapshot) {
    let has_parent = state.start.parent.is_some();
    state.snapshot = Some(started.id.clone());
    state.started = Some(SystemTime::now());
    state.puts_zeroes = started.is_encrypted || has_parent;
    state.zero_the_rest = started.is_encrypted && !has_parent;
}
