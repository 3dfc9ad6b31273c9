//! What is to be done for each target: all of the source, what changed, or what an earlier run left.

use std::str::FromStr;
use std::sync::Arc;

use tracing::{info, warn};

use super::Source;
use super::target::Place;
use crate::block::{BlockSet, Delta};
use crate::error::{Error, Kind, Result};
use crate::sink::Sink;
use crate::sinks::FileSink;
use crate::source::{BlockSource, Catalog, SnapshotId, held};
use crate::sync::{Checkpoint, Content, Lock, Mode, Target, Task};

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

/// What is to be done for all targets.
pub(super) struct Planned {
    pub(super) choices: Vec<Choice>,
    /// The source, by the cheapest tokens.
    pub(super) blocks: Arc<dyn BlockSource>,
}

/// What is to be done for one target.
pub(super) struct Choice {
    pub(super) place: Place,
    /// Held to the end of the run.
    pub(super) lock: Option<Lock>,
    pub(super) checkpoint: Work,
    how: How,
}

/// What there is to do.
pub(super) enum Work {
    /// A run that begins.
    New(Task, Arc<Delta>),
    /// One that goes on.
    Resumed(Checkpoint),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// A new part, which becomes the image.
    New,
    /// A copy of the image, which becomes it.
    Cloned,
    /// The part that is there.
    Resumed,
    /// Nothing is left but to say so.
    Published,
    InPlace,
}

impl Choice {
    /// What there is to do in all, and how much of it is done.
    pub(super) fn plan(&self) -> (&Task, &Delta, u64) {
        match &self.checkpoint {
            Work::New(task, plan) => (task, plan, 0),
            Work::Resumed(checkpoint) => (checkpoint.task(), checkpoint.plan(), checkpoint.done()),
        }
    }

    /// In words.
    pub(super) fn what(&self) -> &'static str {
        match (self.how, self.place.is_device()) {
            (How::New, _) => "an image, made anew",
            (How::Cloned, _) => "an image, replaced by a changed copy",
            (How::Resumed, _) => "an image, gone on with",
            (How::Published, _) => "an image, there already",
            (How::InPlace, true) => "a device",
            (How::InPlace, false) => "an image, changed in place",
        }
    }

    /// Opens the target, and names it on disk before it is touched.
    pub(super) fn open(self) -> Result<Target> {
        let place = self.place;
        let geometry = match &self.checkpoint {
            Work::New(_, plan) => plan.head(),
            Work::Resumed(checkpoint) => checkpoint.plan().head(),
        };
        let mut checkpoint = match self.checkpoint {
            Work::New(task, plan) => {
                if !place.is_in_place() {
                    // Before the part that it speaks of is made anew. In place it is replaced, for it knows what was begun.
                    Checkpoint::discard(&place.checkpoint_path())?;
                }
                Checkpoint::new(&place.checkpoint_path(), task, plan)?
            }
            Work::Resumed(checkpoint) => checkpoint,
        };
        let part = place.part();
        let sink: Arc<dyn Sink> = match self.how {
            How::New => Arc::new(FileSink::new_part(&part, geometry)?),
            How::Cloned => {
                let from = FileSink::cloned(checkpoint.state(), geometry).unwrap_or(0);
                let keep = |state| {
                    checkpoint.mark([], state);
                    checkpoint.encode().write()
                };
                Arc::new(FileSink::cloned_part(&part, geometry, from, keep)?)
            }
            How::Resumed => Arc::new(FileSink::resumed_part(&part, geometry)?),
            How::Published => Arc::new(FileSink::in_place(place.path(), geometry)?),
            How::InPlace => place.open_in_place(geometry)?.into(),
        };
        if place.is_in_place() {
            // In this order: whatever the record says, the checkpoint knows how to go on.
            checkpoint.encode().write()?;
            place.record().begin(checkpoint.task())?;
        }
        Ok(Target { sink, checkpoint })
    }
}

/// Decides, listing no more than once what several targets need.
pub(super) struct Planner<'a> {
    source: &'a Source,
    base: Option<&'a Base>,
    restart: bool,
    held: Option<BlockSet>,
    deltas: Vec<(SnapshotId, Arc<Delta>)>,
    /// The source by the tokens of a listing of changes.
    blocks: Option<Arc<dyn BlockSource>>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(source: &'a Source, base: Option<&'a Base>, restart: bool) -> Self {
        Self {
            source,
            base,
            restart,
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
        let begun = self.begun(&place)?;
        let choice = self.choose_by(place, begun).await?;
        Ok(Choice { lock, ..choice })
    }

    /// What an earlier run left, unless it had come to its end: then the record knows better.
    fn begun(&self, place: &Place) -> Result<Option<Checkpoint>> {
        let begun = place.checkpoint()?;
        Ok(match (begun, place.record().content()?) {
            (Some(begun), Content::Holds(source)) if source == begun.task().source => None,
            (begun, _) => begun,
        })
    }

    async fn choose_by(&mut self, place: Place, begun: Option<Checkpoint>) -> Result<Choice> {
        match begun {
            Some(begun) if begun.task().target != place.id() => {
                let what = format!(
                    "{} is not the target that its checkpoint speaks of ({}): remove {} if you know better",
                    place.path().display(),
                    begun.task().target,
                    place.checkpoint_path().display()
                );
                Err(Error::new(Kind::Invalid, what))
            }
            Some(begun) if !self.restart && self.is_same(begun.task(), place.mode()) => {
                self.resume(place, begun).await
            }
            Some(begun) if place.is_in_place() && begun.task().mode == Mode::InPlace => {
                self.take_over(place, &begun).await
            }
            Some(begun) if !self.restart => {
                let what = format!(
                    "{} has an unfinished copy of {}: say the same command to finish it, or --restart to drop it",
                    place.path().display(),
                    described(begun.task())
                );
                Err(Error::new(Kind::Invalid, what))
            }
            _ => self.begin(place).await,
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

    async fn resume(&mut self, place: Place, begun: Checkpoint) -> Result<Choice> {
        let how = if place.is_in_place() {
            if !place.is_as_left(begun.state()) {
                warn!(
                    "{} is another file than before: all of it is copied",
                    place.path().display()
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
                    place.path().display()
                );
            }
            return self.begin(place).await;
        };
        self.use_tokens(begun.task()).await;
        Ok(Choice {
            place,
            lock: None,
            checkpoint: Work::Resumed(begun),
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
    async fn take_over(&mut self, place: Place, begun: &Checkpoint) -> Result<Choice> {
        let task = begun.task();
        if !place.is_as_left(begun.state()) {
            return self.full(place).await;
        }
        let base = match (self.base, task.base.as_deref()) {
            (None, _) | (Some(Base::Auto), None) => return self.full(place).await,
            (Some(Base::Auto), Some(base)) => base.parse::<SnapshotId>()?,
            (Some(Base::Snapshot(id)), Some(base)) if id.as_str() == base => id.clone(),
            (Some(Base::Snapshot(id)), _) => {
                let what = format!(
                    "{} is between {} and {}: --base {id} is neither; use --base auto, or no base to copy it all",
                    place.path().display(),
                    task.base.as_deref().unwrap_or("something unknown"),
                    task.source
                );
                return Err(Error::new(Kind::Invalid, what));
            }
        };
        let mut plan = (*self.delta(&base).await?).clone();
        plan.overtake(begun.plan());
        Ok(self.new_choice(place, Some(base), Arc::new(plan), How::InPlace))
    }

    /// A target that no run has begun.
    async fn begin(&mut self, place: Place) -> Result<Choice> {
        let content = place.record().content()?;
        let base = match (self.base, content) {
            (None, _) => return self.full(place).await,
            (Some(Base::Auto), Content::Holds(source)) => match source.parse::<SnapshotId>() {
                Ok(base) => base,
                Err(_) => return self.full(place).await,
            },
            (Some(Base::Auto), _) => {
                info!(
                    "it is not known what {} holds: copying it all",
                    place.path().display()
                );
                return self.full(place).await;
            }
            (Some(Base::Snapshot(id)), Content::Holds(source)) if source == id.as_str() => {
                id.clone()
            }
            (Some(Base::Snapshot(id)), content) => {
                let holds = match content {
                    Content::Holds(source) => format!("holds {source}"),
                    Content::Between { .. } => "holds neither one snapshot nor another".into(),
                    Content::Unknown => "holds nobody knows what".into(),
                };
                let what = format!(
                    "{} {holds}, not {id}: use --base auto, or no base to copy it all",
                    place.path().display()
                );
                return Err(Error::new(Kind::Invalid, what));
            }
        };
        let plan = self.delta(&base).await?;
        let how = if place.is_in_place() {
            How::InPlace
        } else {
            How::Cloned
        };
        Ok(self.new_choice(place, Some(base), plan, how))
    }

    async fn full(&mut self, place: Place) -> Result<Choice> {
        let blocks = &self.source.blocks;
        let held = match &self.held {
            Some(held) => held,
            None => self.held.insert(held(&**blocks).await?),
        };
        let how = if place.is_in_place() {
            How::InPlace
        } else {
            How::New
        };
        let plan = Arc::new(Delta::full(blocks.geometry(), held, place.is_in_place()));
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
            mode: place.mode(),
            source_mark: self.source.mark.clone(),
            source: self.source.name.clone(),
            base: base.map(|base| base.to_string()),
            target: place.id().to_owned(),
        };
        Choice {
            place,
            lock: None,
            checkpoint: Work::New(task, plan),
            how,
        }
    }

    async fn delta(&mut self, base: &SnapshotId) -> Result<Arc<Delta>> {
        if let Some((_, delta)) = self.deltas.iter().find(|(known, _)| known == base) {
            return Ok(Arc::clone(delta));
        }
        let Some((head, catalog, _)) = &self.source.ebs else {
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
