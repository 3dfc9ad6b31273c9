//! `ebsfs repository init`: makes a repository.

use clap::Args;
use serde_json::json;

use super::{WriteWhere, print_json};
use crate::cli::output;
use crate::cli::store::check_s3;
use crate::error::Result;
use crate::repository::RepositoryCatalog;

#[derive(Args, Debug)]
pub(super) struct InitArgs {
    /// Print one JSON object instead of a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    to: WriteWhere,
}

impl InitArgs {
    pub(super) async fn run(self) -> Result<()> {
        let place = &self.to.place;
        let address = place.address()?;
        address.names_no_snapshot()?;
        check_s3(&place.store.given(), std::slice::from_ref(&address))?;
        let options = self.to.options()?;
        let store = options.open(&address, &place.aws, true).await?;
        let catalog = RepositoryCatalog::init(store).await?;
        if self.json {
            return print_json(&json!({"made": address.to_string(), "id": catalog.id()}));
        }
        output::write(None, |out| {
            writeln!(out, "made the repository {} at {address}", catalog.id())
        })
    }
}
