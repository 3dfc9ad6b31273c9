//! `ebsfs repository`: which snapshots a repository holds, whether they are whole, and which of them stay.

mod init;
mod instances;
mod ls;
mod pins;
mod prune;
mod stats;

mod check;

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::aws::AwsArgs;
use super::output;
use super::store::{NewObjectArgs, StoreArgs, StoreLine, StoreOptions, check_s3};
use crate::error::{Error, Kind, Result};
use crate::repository::{Address, Bandwidth, Manifest, ManifestName, RepositoryCatalog, pinned};
use check::CheckArgs;
use init::InitArgs;
use instances::InstancesArgs;
use ls::RepositoryLsArgs;
use pins::{OneArgs, PinArgs};
use prune::PruneArgs;
use stats::StatsArgs;

/// Names the repository where the command line does not.
const VARIABLE: &str = "EBSFS_REPOSITORY";

/// List, check, pin and prune snapshots in a repository
#[derive(Args, Debug)]
pub(super) struct RepositoryArgs {
    #[command(subcommand)]
    verb: RepositoryVerb,
}

#[derive(Debug, Subcommand)]
enum RepositoryVerb {
    /// Make a repository in an empty bucket, prefix or folder; nothing else makes one
    Init(InitArgs),
    /// List the snapshots of a repository, or the runs on record there
    Ls(RepositoryLsArgs),
    /// Print the metadata of a snapshot, REPOSITORY#SNAPSHOT, as JSON
    Show(ShowArgs),
    /// List the instances whose machines are kept beside their snapshots, for ebsfs restore, or add one
    Instances(Box<InstancesArgs>),
    /// Print the space that the snapshots of each volume use
    Stats(StatsArgs),
    /// Check that everything the snapshots need is there and whole; --repair restores what can be found
    Check(CheckArgs),
    /// Remove snapshots that a retention does not keep, and sweep what no snapshot needs
    Prune(Box<PruneArgs>),
    /// Keep a snapshot, REPOSITORY#SNAPSHOT, whatever the retention
    Pin(PinArgs),
    /// Remove the pin of a snapshot
    Unpin(OneArgs),
    /// Remove a snapshot; later prunes mark and then delete the data that only it needs, each step after --grace
    Rm(OneArgs),
    /// Restore a removed snapshot, REPOSITORY#SNAPSHOT by its id, until a prune removes its tombstone (older than --grace)
    Undelete(OneArgs),
}

#[derive(Args, Debug)]
struct Where {
    /// Repository: s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX or file:///FOLDER, followed by #SNAPSHOT where the
    /// verb takes a snapshot; #SNAPSHOT alone is one of $EBSFS_REPOSITORY
    #[arg(value_name = "REPOSITORY", env = VARIABLE)]
    address: String,
    /// Time without progress after which a request, with its retries, fails
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    aws: AwsArgs,
}

/// [`Where`] for a verb that writes to the repository.
#[derive(Args, Debug)]
struct WriteWhere {
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    new: NewObjectArgs,
}

#[derive(Args, Debug)]
struct ShowArgs {
    #[command(flatten)]
    place: Where,
}

impl RepositoryArgs {
    pub(super) fn run(self) -> Result<()> {
        let runtime = super::runtime()?;
        match self.verb {
            RepositoryVerb::Init(args) => runtime.block_on(args.run()),
            RepositoryVerb::Ls(args) => runtime.block_on(args.run()),
            RepositoryVerb::Show(args) => runtime.block_on(args.run()),
            RepositoryVerb::Check(args) => runtime.block_on(args.run()),
            RepositoryVerb::Prune(args) => runtime.block_on(args.run()),
            RepositoryVerb::Instances(args) => runtime.block_on(args.run()),
            RepositoryVerb::Stats(args) => runtime.block_on(args.run()),
            RepositoryVerb::Pin(args) => runtime.block_on(args.run()),
            RepositoryVerb::Unpin(args) => runtime.block_on(args.unpin()),
            RepositoryVerb::Rm(args) => runtime.block_on(args.remove()),
            RepositoryVerb::Undelete(args) => runtime.block_on(args.undelete()),
        }
    }
}

impl Where {
    /// Where the repository is, and which snapshot of it is meant, if one is.
    fn address(&self) -> Result<Address> {
        if !self.address.starts_with('#') {
            return self.address.parse();
        }
        let repository = std::env::var(VARIABLE).unwrap_or_default();
        if repository.is_empty() || repository.contains('#') {
            let what = format!(
                "cannot use {}: {VARIABLE} names no repository",
                self.address
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        format!("{repository}{}", self.address).parse()
    }

    fn options(&self) -> StoreOptions {
        self.store.options(StoreLine {
            timeout: self.timeout,
            in_flight: None,
            bandwidth: Bandwidth::default(),
        })
    }

    async fn open(&self) -> Result<RepositoryCatalog> {
        self.open_with(&self.options()).await
    }

    async fn open_with(&self, options: &StoreOptions) -> Result<RepositoryCatalog> {
        let address = self.address()?;
        address.names_no_snapshot()?;
        self.reach(&address, options).await
    }

    async fn reach(&self, address: &Address, options: &StoreOptions) -> Result<RepositoryCatalog> {
        check_s3(&self.store.given(), std::slice::from_ref(address))?;
        options.repository(address, &self.aws).await
    }

    /// What stands behind `#`.
    async fn selected(&self, options: &StoreOptions) -> Result<(RepositoryCatalog, String)> {
        let address = self.address()?;
        let select = address.select.clone().ok_or_else(|| {
            let what = format!("cannot select a snapshot: none is named; use {address}#SNAPSHOT");
            Error::new(Kind::Invalid, what)
        })?;
        Ok((self.reach(&address, options).await?, select))
    }

    /// The one snapshot that stands behind `#`.
    async fn one(&self, options: &StoreOptions) -> Result<(RepositoryCatalog, ManifestName)> {
        let (catalog, select) = self.selected(options).await?;
        let name = catalog.find(&select).await?;
        Ok((catalog, name))
    }
}

impl WriteWhere {
    fn options(&self) -> Result<StoreOptions> {
        check_s3(&self.new.given(), &[self.place.address()?])?;
        Ok(self.place.options().writing(&self.new))
    }

    async fn open(&self) -> Result<RepositoryCatalog> {
        self.place.open_with(&self.options()?).await
    }

    async fn selected(&self) -> Result<(RepositoryCatalog, String)> {
        self.place.selected(&self.options()?).await
    }

    async fn one(&self) -> Result<(RepositoryCatalog, ManifestName)> {
        self.place.one(&self.options()?).await
    }
}

impl ShowArgs {
    async fn run(self) -> Result<()> {
        let (catalog, name) = self.place.one(&self.place.options()).await?;
        let manifest = catalog.manifest(&name).await?;
        let is_pinned = pinned(catalog.store()).await?.contains(&name.to_string());
        print_json(&described(&manifest, is_pinned))
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|error| Error::with_source(Kind::Io, "JSON", error))?;
    output::write(None, |out| writeln!(out, "{text}"))
}

fn time(manifest: &Manifest) -> String {
    crate::time::rfc3339_seconds(manifest.time)
}

/// A snapshot, as JSON.
fn described(manifest: &Manifest, is_pinned: bool) -> serde_json::Value {
    json!({
        "snapshot": manifest.snapshot,
        "volume": manifest.volume,
        "volume_key": manifest.volume_key,
        "pinned": is_pinned,
        "time": time(manifest),
        "volume_bytes": manifest.volume_bytes,
        "blocks": manifest.blocks,
        "base": manifest.base,
        "sent_blocks": manifest.sent_blocks,
        "sent_bytes": manifest.sent_bytes,
        "stored_bytes": manifest.stored_bytes,
        "encrypted": manifest.encrypted,
        "description": manifest.description,
        "tags": manifest.tags,
    })
}
