//! `ebsfs repository pin | unpin | rm | undelete`: what happens to one snapshot by its name.

use clap::Args;
use serde_json::json;

use super::{WriteWhere, print_json};
use crate::cli::output;
use crate::error::{Error, Kind, Result};
use crate::repository::{Deleted, ManifestName, pin, remove, undelete, unpin};

#[derive(Args, Debug)]
pub(super) struct PinArgs {
    /// Reason for the pin, stored with it
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    #[command(flatten)]
    one: OneArgs,
}

/// The options of a verb that takes one snapshot.
#[derive(Args, Debug)]
pub(super) struct OneArgs {
    /// Print one JSON object instead of a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: WriteWhere,
}

impl PinArgs {
    pub(super) async fn run(self) -> Result<()> {
        let (catalog, name) = self.one.place.one().await?;
        pin(&catalog, &name, self.note.as_deref()).await?;
        self.one.print("pinned", &name)
    }
}

impl OneArgs {
    pub(super) async fn unpin(self) -> Result<()> {
        let (catalog, name) = self.place.one().await?;
        unpin(&catalog, &name).await?;
        self.print("unpinned", &name)
    }

    pub(super) async fn remove(self) -> Result<()> {
        let (catalog, name) = self.place.one().await?;
        if let Deleted::Locked(why) = remove(catalog.store(), &name).await? {
            let what = format!("cannot remove {name}: the store has locked it: {why}");
            return Err(Error::new(Kind::Denied, what));
        }
        self.print("removed", &name)
    }

    pub(super) async fn undelete(self) -> Result<()> {
        let (catalog, select) = self.place.selected().await?;
        let name = undelete(&catalog, &select).await?;
        self.print("undeleted", &name)
    }

    fn print(&self, done: &str, name: &ManifestName) -> Result<()> {
        if self.json {
            let name_text = name.to_string();
            return print_json(&json!({done: name_text, "snapshot": name.snapshot}));
        }
        output::write(None, |out| writeln!(out, "{done} {name}"))
    }
}
