//! `ebsfs repository pin | unpin | rm | undelete`: what happens to one snapshot by its name.

use clap::Args;

use super::Where;
use crate::cli::output;
use crate::error::{Error, Kind, Result};
use crate::repository::{Deleted, pin, remove, undelete, unpin};

#[derive(Args, Debug)]
pub(super) struct PinArgs {
    /// Reason for the pin, stored with it
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    #[command(flatten)]
    place: Where,
}

/// The options of a verb that takes one snapshot.
#[derive(Args, Debug)]
pub(super) struct OneArgs {
    #[command(flatten)]
    place: Where,
}

impl PinArgs {
    pub(super) async fn run(self) -> Result<()> {
        let (catalog, name) = self.place.one().await?;
        pin(&catalog, &name, self.note.as_deref()).await?;
        output::write(None, |out| writeln!(out, "pinned {name}"))
    }
}

impl OneArgs {
    pub(super) async fn unpin(self) -> Result<()> {
        let (catalog, name) = self.place.one().await?;
        unpin(&catalog, &name).await?;
        output::write(None, |out| writeln!(out, "unpinned {name}"))
    }

    pub(super) async fn remove(self) -> Result<()> {
        let (catalog, name) = self.place.one().await?;
        if let Deleted::Locked(why) = remove(catalog.store(), &name).await? {
            let what = format!("cannot remove {name}: the store has locked it: {why}");
            return Err(Error::new(Kind::Denied, what));
        }
        output::write(None, |out| writeln!(out, "removed {name}"))
    }

    pub(super) async fn undelete(self) -> Result<()> {
        let (catalog, select) = self.place.selected().await?;
        let name = undelete(&catalog, &select).await?;
        output::write(None, |out| writeln!(out, "undeleted {name}"))
    }
}
