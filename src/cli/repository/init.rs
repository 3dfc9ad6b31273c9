//! `ebsfs repository init`: makes a repository.

use clap::Args;

use super::Where;
use crate::cli::output;
use crate::error::Result;
use crate::repository::RepositoryCatalog;

#[derive(Args, Debug)]
pub(super) struct InitArgs {
    #[command(flatten)]
    place: Where,
}

impl InitArgs {
    pub(super) async fn run(self) -> Result<()> {
        let address = self.place.address()?;
        address.names_no_snapshot()?;
        let place = &self.place;
        let store = place.store.open(&address, &place.aws, place.timeout, true);
        let catalog = RepositoryCatalog::init(store.await?).await?;
        output::write(None, |out| {
            writeln!(out, "made the repository {} at {address}", catalog.id())
        })
    }
}
