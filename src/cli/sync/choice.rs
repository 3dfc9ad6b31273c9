//! What was decided for a target, and how it is opened for that.

use std::sync::Arc;

use tokio::sync::watch;
use tracing::debug;

use super::remote::Begun;
use super::target::Place;
use crate::block::Delta;
use crate::error::{Error, Kind, Result};
use crate::repository::Bringing;
use crate::sink::Sink;
use crate::sinks::FileSink;
use crate::sync::{self, Checkpoint, Content, Lock, Target, Task};

/// What is to be done for one target.
pub(super) struct Choice {
    pub(super) place: Place,
    /// Held to the end of the run.
    pub(super) lock: Option<Lock>,
    pub(super) work: Work,
    pub(super) how: How,
    /// What may be in the way.
    pub(super) room: Option<String>,
}

/// What there is to do.
pub(super) enum Work {
    /// A run that begins.
    New(Task, Arc<Delta>),
    /// One that goes on.
    Resumed(Checkpoint),
}

#[derive(Clone, Debug)]
pub(super) enum How {
    /// A new part, which becomes the image.
    New,
    /// A copy of the image, which becomes it.
    Cloned,
    /// The part that is there.
    Resumed,
    /// Nothing is left but to say so.
    Published,
    /// It holds the source.
    Already,
    InPlace,
    /// A snapshot to be started, or one that is.
    Snapshot(Option<Box<Begun>>),
    /// A snapshot to be brought into a repository, or one that is.
    Repository(Option<Box<Bringing>>),
}

impl Choice {
    /// What there is to do in all, and how much of it is done.
    pub(super) fn plan(&self) -> (&Task, &Delta, u64) {
        match &self.work {
            Work::New(task, plan) => (task, plan, 0),
            Work::Resumed(checkpoint) => (checkpoint.task(), checkpoint.plan(), checkpoint.done()),
        }
    }

    /// Whether an earlier run has begun this image.
    pub(super) fn goes_on_with_image(&self) -> bool {
        matches!(self.work, Work::Resumed(_)) && !self.place.is_device()
    }

    /// Whether nothing is to be done.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.how, How::Already)
    }

    /// In words.
    pub(super) fn what(&self) -> &'static str {
        match (&self.how, self.place.is_device()) {
            (How::New, _) => "an image, made anew",
            (How::Cloned, _) => "an image, replaced by a changed copy",
            (How::Resumed, _) => "an image, gone on with",
            (How::Published, _) => "an image, there already",
            (How::Already, _) => "holds it already",
            (How::InPlace, true) => "a device",
            (How::InPlace, false) => "an image, changed in place",
            (How::Snapshot(Some(_)), _) => "a new EBS snapshot",
            (How::Snapshot(None), _) => "a new EBS snapshot, gone on with",
            (How::Repository(Some(_)), _) => "a snapshot in a repository",
            (How::Repository(None), _) => "a snapshot in a repository, gone on with",
        }
    }

    /// Opens the target, and names it on disk before it is touched.
    pub(super) async fn open(self, stop: &watch::Receiver<bool>) -> Result<Target> {
        let place = self.place;
        let mut checkpoint = match self.work {
            Work::New(task, plan) => {
                if let Some(vault) = place.vault() {
                    vault.forget_left(&place).await?;
                }
                if !place.is_in_place() {
                    // Before the part that it speaks of is made anew. In place it is replaced, for it knows what was begun.
                    Checkpoint::discard(&place.checkpoint_path())?;
                }
                Checkpoint::new(&place.checkpoint_path(), task, plan)?
            }
            Work::Resumed(checkpoint) => checkpoint,
        };
        let geometry = checkpoint.plan().head();
        let part = place.part();
        let sink: Arc<dyn Sink> = match self.how {
            How::New => Arc::new(FileSink::new_part(&part, geometry)?),
            How::Cloned => clone(&place, &mut checkpoint, stop).await?,
            How::Resumed => Arc::new(FileSink::resumed_part(&part, geometry)?),
            How::Published => Arc::new(FileSink::published(&part, geometry)?),
            How::InPlace => {
                if !place.is_device() {
                    part.remove()?;
                }
                // The record after the checkpoint: whatever it says, the checkpoint knows how to go on.
                place.open_in_place(geometry, |state| {
                    checkpoint.mark([], state);
                    checkpoint.encode().write()?;
                    place.record().begin(checkpoint.task())
                })?
            }
            How::Already => {
                let what = format!("{} needs nothing", place.shown());
                return Err(Error::new(Kind::Invalid, what));
            }
            How::Repository(bringing) => {
                if let Some(bringing) = bringing {
                    checkpoint.mark([], serde_json::to_value(bringing).unwrap_or_default());
                }
                let Some(vault) = place.vault() else {
                    return Err(Error::new(Kind::Invalid, "it is no repository"));
                };
                // Before the repository knows of the run: what is there of it can be found.
                checkpoint.encode().write()?;
                vault.open(&checkpoint).await?
            }
            How::Snapshot(begun) => {
                if let Some(begun) = begun {
                    checkpoint.mark([], serde_json::to_value(begun).unwrap_or_default());
                }
                let Some(remote) = place.remote() else {
                    return Err(Error::new(Kind::Invalid, "no snapshot is made here"));
                };
                remote.open(&mut checkpoint).await?
            }
        };
        Ok(Target { sink, checkpoint })
    }
}

/// Gives a part what the image holds, or the rest of it.
async fn clone(
    place: &Place,
    checkpoint: &mut Checkpoint,
    stop: &watch::Receiver<bool>,
) -> Result<Arc<dyn Sink>> {
    let (geometry, part) = (checkpoint.plan().head(), place.part());
    let base = checkpoint.task().base.clone().map(Content::Holds);
    let mut next = FileSink::cloned(checkpoint.state(), geometry);
    let sink = match next {
        Some(_) => FileSink::resumed_part(&part, geometry)?,
        None => FileSink::new_part(&part, geometry)?,
    };
    next = next.or(Some(0));
    while let Some(from) = next {
        if *stop.borrow() {
            return Err(sync::stopped());
        }
        let state = sink.clone_some(from).await?;
        next = FileSink::cloned(&state, geometry);
        if next.is_none() && Some(place.record().content()?) != base {
            let what = format!("{} was written while it was cloned", place.shown());
            return Err(Error::new(Kind::Corrupt, what));
        }
        checkpoint.mark([], state);
        checkpoint.encode().write()?;
        debug!("cloned {from} bytes of {}", place.shown());
    }
    Ok(Arc::new(sink))
}
