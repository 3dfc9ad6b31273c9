//! What is to be done for each target: all of the source, what changed, or what an earlier run left.

use std::str::FromStr;
use std::sync::Arc;

use tracing::{info, warn};

use super::choice::{Choice, How, Work};
use super::remote::{Remote, snapshot_of};
use super::repository::{Repository, bringing_of};
use super::target::Place;
use super::{Source, SyncArgs};
use crate::block::{BLOCK_SIZE, BlockSet, Delta};
use crate::error::{Error, Kind, Result};
use crate::sinks::FileSink;
use crate::source::{BlockSource, SnapshotId, held};
use crate::sync::{Checkpoint, Content, Lock, Mode, Task};

/// `--base`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// What the target holds.
    Auto,
    Snapshot(SnapshotId),
}

impl FromStr for Base {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            id => id.parse().map(Self::Snapshot),
        }
    }
}

/// Decides, listing no more than once what several targets need.
pub(super) struct Planner<'a> {
    source: &'a Source,
    base: Option<&'a Base>,
    restart: bool,
    verify: bool,
    /// Blocks a second.
    rate: u32,
    held: Option<BlockSet>,
    deltas: Vec<(SnapshotId, Arc<Delta>)>,
    /// The source by the tokens of a listing of changes.
    blocks: Option<Arc<dyn BlockSource>>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(source: &'a Source, args: &'a SyncArgs) -> Self {
        Self {
            source,
            base: args.base.as_ref(),
            restart: args.restart,
            verify: args.verify,
            rate: args.rate(),
            held: None,
            deltas: Vec::new(),
            blocks: None,
        }
    }

    pub(super) fn into_blocks(self) -> Arc<dyn BlockSource> {
        self.blocks
            .unwrap_or_else(|| Arc::clone(&self.source.blocks))
    }

    /// Decides for one target, which is locked unless it is only looked at.
    pub(super) async fn choose(&mut self, place: Place, lock: Option<Lock>) -> Result<Choice> {
        if let Some(vault) = place.vault().cloned()
            && vault.holds(self.source).await?
        {
            if self.restart {
                let what = format!(
                    "{} holds {} already: ebsfs repository rm it first",
                    place.shown(),
                    self.source.name
                );
                return Err(Error::new(Kind::Invalid, what));
            }
            if self.verify {
                let at = place.shown();
                warn!(
                    "{at} holds it already and is not read: ebsfs repository check {at} --read-data does that"
                );
            }
            if lock.is_some() {
                // Left by a run that was killed when all was there, or that another one has overtaken.
                vault.forget_left(&place).await?;
                Checkpoint::discard(&place.checkpoint_path())?;
            }
            let choice = self.already(place);
            return Ok(Choice { lock, ..choice });
        }
        let begun = self.begun(&place)?;
        let choice = self.choose_by(place, begun).await?;
        let (_, plan, _) = choice.plan();
        let bytes = plan.write().len() * u64::from(BLOCK_SIZE);
        let room = choice.place.room(plan.head(), bytes)?;
        Ok(Choice {
            lock,
            room,
            ..choice
        })
    }

    /// What an earlier run left, unless it had come to its end.
    fn begun(&self, place: &Place) -> Result<Option<Checkpoint>> {
        let begun = match place.checkpoint() {
            Err(error) if self.restart && error.kind() == Kind::Corrupt => {
                warn!("{}", error.chain());
                None
            }
            begun => begun?,
        };
        match begun {
            Some(begun) if place.record().has_ended(begun.task())? => Ok(None),
            begun => Ok(begun),
        }
    }

    async fn choose_by(&mut self, place: Place, begun: Option<Checkpoint>) -> Result<Choice> {
        match begun {
            Some(begun) if begun.task().target != place.id() => {
                let what = format!(
                    "{} is not the target that its checkpoint speaks of ({}): remove {} if you know better",
                    place.shown(),
                    begun.task().target,
                    place.checkpoint_path().display()
                );
                Err(Error::new(Kind::Invalid, what))
            }
            Some(begun) if !self.restart && self.is_same(begun.task(), place.mode()) => {
                self.resume(place, begun).await
            }
            Some(begun) if place.is_in_place() && begun.task().mode == Mode::InPlace => {
                self.take_over(place, begun).await
            }
            Some(begun)
                if begun.task().source == self.source.name
                    && begun.task().source_mark != self.source.mark
                    && !self.restart =>
            {
                let what = format!(
                    "{} was written since an unfinished copy of it to {} was begun: --restart copies it anew",
                    self.source.name,
                    place.shown()
                );
                Err(Error::new(Kind::Invalid, what))
            }
            Some(begun) if !self.restart => {
                let what = format!(
                    "{} has an unfinished copy of {}: say the same command to finish it, or --restart to drop it",
                    place.shown(),
                    described(begun.task())
                );
                Err(Error::new(Kind::Invalid, what))
            }
            begun => {
                if let Some(left) = begun.and_then(|begun| snapshot_of(begun.state())) {
                    warn!("{left} is left unfinished; EBS gives it up, or delete it");
                }
                self.begin(place).await
            }
        }
    }

    /// Whether the command is the one that a run was begun by.
    fn is_same(&self, task: &Task, mode: Mode) -> bool {
        let same_base = match self.base {
            None => task.base.is_none(),
            Some(Base::Auto) => true,
            Some(Base::Snapshot(id)) => task.base.as_deref() == Some(id.as_str()),
        };
        task.source == self.source.name
            && task.source_mark == self.source.mark
            && task.mode == mode
            && same_base
    }

    async fn resume(&mut self, place: Place, mut begun: Checkpoint) -> Result<Choice> {
        let how = if place.vault().is_some() {
            match bringing_of(begun.state()) {
                Some(_) if begun.done() > 0 => How::Repository(None),
                _ => return self.begin(place).await,
            }
        } else if let Some(remote) = place.remote().cloned() {
            match remote.goes_on_with(begun.state(), begun.task())? {
                true => How::Snapshot(None),
                false => return self.begin_snapshot(place, &remote).await,
            }
        } else if place.is_in_place() {
            if !place.record().has_begun(begun.task())? {
                // Named, and not touched yet: it is what the record says.
                return self.begin(place).await;
            }
            if !place.is_as_left(&mut begun).await? {
                warn!(
                    "{} is not as the unfinished run left it: all of it is copied",
                    place.shown()
                );
                return self.full(place).await;
            }
            How::InPlace
        } else if place.part().is_left(begun.state()) {
            let is_cloning = FileSink::cloned(begun.state(), begun.plan().head()).is_some();
            let base = begun.task().base.clone().map(Content::Holds);
            match is_cloning {
                // What is copied must still be what it was.
                true if Some(place.record().content()?) != base => return self.begin(place).await,
                true => How::Cloned,
                false => How::Resumed,
            }
        } else if place.part().is_published(begun.state()) {
            How::Published
        } else {
            if begun.done() > 0 {
                warn!(
                    "what was copied of {} is gone: from the start",
                    place.shown()
                );
            }
            return self.begin(place).await;
        };
        self.use_tokens(begun.task()).await;
        Ok(Choice {
            place,
            lock: None,
            room: None,
            work: Work::Resumed(begun),
            how,
        })
    }

    /// Listing changes once more is cheaper than listing the snapshot around each of them.
    async fn use_tokens(&mut self, task: &Task) {
        if let Some(base) = task.base.as_deref().and_then(|base| base.parse().ok())
            && let Err(error) = self.delta(&base).await
        {
            info!("going on by the plan of before: {}", error.chain());
        }
    }

    /// A target that is neither what it was nor what it was to become is brought to the source.
    async fn take_over(&mut self, place: Place, mut begun: Checkpoint) -> Result<Choice> {
        let task = &begun.task().clone();
        if !place.record().has_begun(task)? {
            return self.begin(place).await;
        }
        let run = place.record().last_run()?;
        if !place.is_as_left(&mut begun).await? {
            return self.full(place).await;
        }
        let base = match (self.base, task.base.as_deref()) {
            (None, _) | (Some(Base::Auto), None) => return self.full(place).await,
            (Some(Base::Auto), Some(base)) => base.parse::<SnapshotId>()?,
            (Some(Base::Snapshot(id)), Some(base)) if id.as_str() == base => id.clone(),
            (Some(Base::Snapshot(id)), _) => {
                let what = format!(
                    "{} is between {} and {}: --base {id} is neither; use --base auto, or no base to copy it all",
                    place.shown(),
                    task.base.as_deref().unwrap_or("something unknown"),
                    task.source
                );
                return Err(Error::new(Kind::Invalid, what));
            }
        };
        let Some(delta) = self.delta_unless_gone(&base).await? else {
            return self.full(place).await;
        };
        let mut plan = (*delta).clone();
        plan.overtake(begun.plan());
        let mut choice = self.new_choice(place, Some(base), Arc::new(plan), How::InPlace);
        if let Work::New(task, _) = &mut choice.work {
            task.after = run;
        }
        Ok(choice)
    }

    /// A target that no run has begun.
    async fn begin(&mut self, place: Place) -> Result<Choice> {
        if let Some(remote) = place.remote().cloned() {
            return self.begin_snapshot(place, &remote).await;
        }
        if let Some(vault) = place.vault().cloned() {
            return self.begin_bringing(place, &vault).await;
        }
        let content = place.record().content()?;
        // What a target holds is not written again, unless all of it is to be proved.
        let is_held = content == Content::Holds(self.source.name.clone())
            && self.source.mark.is_none()
            && !self.restart;
        if is_held && !(self.verify && self.base.is_none()) {
            return Ok(self.already(place));
        }
        let base = match (self.base, content) {
            (None, _) => return self.full(place).await,
            (Some(Base::Auto), Content::Holds(source)) => match source.parse::<SnapshotId>() {
                Ok(base) => base,
                Err(_) => return self.full(place).await,
            },
            (Some(Base::Auto), content) => {
                info!("{} {}: copying it all", place.shown(), in_words(&content));
                return self.full(place).await;
            }
            (Some(Base::Snapshot(id)), Content::Holds(source)) if source == id.as_str() => {
                id.clone()
            }
            (Some(Base::Snapshot(id)), Content::Held(source)) if source == id.as_str() => {
                warn!(
                    "the machine was started since {} was written: nothing can tell whether something else has written it; \
                     it is taken to hold {id}, as --base says",
                    place.shown()
                );
                id.clone()
            }
            (Some(Base::Snapshot(id)), content) => {
                let what = format!(
                    "{} {}, not {id}: use --base auto, or no base to copy it all",
                    place.shown(),
                    in_words(&content)
                );
                return Err(Error::new(Kind::Invalid, what));
            }
        };
        let Some(plan) = self.delta_unless_gone(&base).await? else {
            return self.full(place).await;
        };
        let how = if place.is_in_place() {
            How::InPlace
        } else {
            How::Cloned
        };
        Ok(self.new_choice(place, Some(base), plan, how))
    }

    /// A target that holds the source.
    fn already(&self, place: Place) -> Choice {
        let head = self.source.blocks.geometry();
        let nothing = Arc::new(Delta::new(Some(head), head));
        self.new_choice(place, None, nothing, How::Already)
    }

    /// A snapshot that no run has begun to bring into a repository.
    async fn begin_bringing(&mut self, place: Place, vault: &Repository) -> Result<Choice> {
        let mut beginning = vault.beginning(self.base, self.source).await?;
        let delta = match beginning.base.clone() {
            Some(base) => self.delta_unless_gone(&base).await?,
            None => None,
        };
        let plan = match delta {
            // What is not spoken of is a hole there.
            Some(delta) => Arc::new(delta.without_growth()),
            None => {
                beginning.base = None;
                let geometry = self.source.blocks.geometry();
                Arc::new(Delta::full(geometry, self.held().await?, false))
            }
        };
        let base = beginning.base.clone();
        let mut choice = self.new_choice(place, base, plan, How::Repository(None));
        let (task, _, _) = choice.plan();
        let bringing = vault.begin(&beginning, task, self.source)?;
        choice.how = How::Repository(Some(Box::new(bringing)));
        Ok(choice)
    }

    /// A snapshot that no run has begun.
    async fn begin_snapshot(&mut self, place: Place, remote: &Remote) -> Result<Choice> {
        let mut beginning = remote.beginning(self.base, self.source).await?;
        if beginning.is_larger_than(self.source.blocks.geometry()) {
            warn!("the parent's volume is larger: all blocks are put");
            beginning.base = None;
        }
        let delta = match beginning.base.clone() {
            Some(base) => self.delta_unless_gone(&base).await?,
            None => None,
        };
        let plan = match delta {
            Some(delta) => remote.changes(&delta, &beginning),
            None => {
                beginning.base = None;
                let geometry = self.source.blocks.geometry();
                let held = self.held().await?;
                Arc::new(remote.full(geometry, held, &beginning).await?)
            }
        };
        let base = beginning.base.clone();
        let mut choice = self.new_choice(place, base, plan, How::Snapshot(None));
        let (task, plan, _) = choice.plan();
        let begun = remote.begin(&beginning, task, plan, self.source, self.rate)?;
        choice.how = How::Snapshot(Some(Box::new(begun)));
        Ok(choice)
    }

    /// What changed since a base; none when `--base auto` chose one that no longer exists.
    async fn delta_unless_gone(&mut self, base: &SnapshotId) -> Result<Option<Arc<Delta>>> {
        match self.delta(base).await {
            Err(error)
                if self.base == Some(&Base::Auto)
                    && matches!(error.kind(), Kind::NotFound | Kind::Unrelated) =>
            {
                warn!("copying it all: {}", error.chain());
                Ok(None)
            }
            delta => delta.map(Some),
        }
    }

    async fn held(&mut self) -> Result<&BlockSet> {
        if self.held.is_none() {
            self.held = Some(held(&*self.source.blocks).await?);
        }
        Ok(self.held.get_or_insert_default())
    }

    async fn full(&mut self, place: Place) -> Result<Choice> {
        let how = if place.is_in_place() {
            How::InPlace
        } else {
            How::New
        };
        let geometry = self.source.blocks.geometry();
        let is_in_place = place.is_in_place();
        let plan = Arc::new(Delta::full(geometry, self.held().await?, is_in_place));
        Ok(self.new_choice(place, None, plan, how))
    }

    fn new_choice(
        &self,
        place: Place,
        base: Option<SnapshotId>,
        plan: Arc<Delta>,
        how: How,
    ) -> Choice {
        let task = Task {
            run: format!("{:032x}", fastrand::u128(..)),
            after: None,
            mode: place.mode(),
            source_mark: self.source.mark.clone(),
            source: self.source.name.clone(),
            base: base.map(|base| base.to_string()),
            target: place.id().to_owned(),
        };
        Choice {
            place,
            lock: None,
            room: None,
            work: Work::New(task, plan),
            how,
        }
    }

    async fn delta(&mut self, base: &SnapshotId) -> Result<Arc<Delta>> {
        if let Some((_, delta)) = self.deltas.iter().find(|(known, _)| known == base) {
            return Ok(Arc::clone(delta));
        }
        let Some((head, catalog)) = self.source.catalog() else {
            return Err(Error::new(Kind::Invalid, "only snapshots have changes"));
        };
        let (delta, blocks) = catalog.delta(base, head).await?;
        self.deltas.push((base.clone(), Arc::clone(&delta)));
        self.blocks.get_or_insert(blocks);
        Ok(delta)
    }
}

fn described(task: &Task) -> String {
    match &task.base {
        Some(base) => format!("{} (changes since {base})", task.source),
        None => task.source.clone(),
    }
}

fn in_words(content: &Content) -> String {
    match content {
        Content::Holds(source) => format!("holds {source}"),
        Content::Held(source) => {
            format!("held {source} before the machine was started, and nobody knows what now")
        }
        Content::Between { .. } => "holds neither one snapshot nor another".into(),
        Content::Unknown => "holds nobody knows what".into(),
    }
}
