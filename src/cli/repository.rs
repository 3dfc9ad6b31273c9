//! `ebsfs repository`: which snapshots a repository holds, whether they are whole, and how they go.

mod check;

use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use serde_json::json;
use tracing::warn;

use self::check::CheckArgs;
use super::aws::AwsArgs;
use super::output;
use super::store::StoreArgs;
use crate::block::BLOCK_SIZE;
use crate::error::{Error, Kind, Result};
use crate::repository::{
    Address, LastCheck, Manifest, ManifestName, RepositoryCatalog, forget_run, prune, remove,
};

/// List, check and prune snapshots in a repository
#[derive(Args, Debug)]
pub(super) struct RepositoryArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List its snapshots
    Ls(LsArgs),
    /// Tell all that is known of one of its snapshots, as JSON
    Show(ShowArgs),
    /// Check that everything its snapshots need is there and whole; --repair restores what can be found
    Check(CheckArgs),
    /// Remove old snapshots, and sweep what no snapshot needs
    Prune(PruneArgs),
    /// Remove a snapshot; what it alone needs is swept by prune when the grace is over
    Rm(RmArgs),
}

#[derive(Args, Debug)]
struct Where {
    /// s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX or file:///FOLDER
    #[arg(value_name = "REPOSITORY")]
    address: String,
    /// How long an object may take, all attempts together, before it is given up
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    aws: AwsArgs,
}

#[derive(Args, Debug)]
struct LsArgs {
    /// One JSON array instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Where,
}

#[derive(Args, Debug)]
struct ShowArgs {
    #[command(flatten)]
    place: Where,
}

#[derive(Args, Debug)]
struct PruneArgs {
    /// Keep so many snapshots of each volume, the newest; without it all are kept, and only garbage is swept
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// Sweep nothing that was written or removed since then; nor since the oldest unfinished run began
    #[arg(long, value_name = "TIME", default_value = "1day", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// An unfinished run that nobody goes on with: what it brought is garbage
    #[arg(long, value_name = "RUN")]
    forget_run: Vec<String>,
    /// Tell what would be done, and do nothing
    #[arg(long, conflicts_with = "forget_run")]
    dry_run: bool,
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Where,
}

#[derive(Args, Debug)]
struct RmArgs {
    #[command(flatten)]
    place: Where,
}

impl RepositoryArgs {
    pub(super) fn run(self) -> Result<()> {
        let runtime = super::runtime()?;
        match self.verb {
            Verb::Ls(args) => runtime.block_on(args.run()),
            Verb::Show(args) => runtime.block_on(args.run()),
            Verb::Check(args) => runtime.block_on(args.run()),
            Verb::Prune(args) => runtime.block_on(args.run()),
            Verb::Rm(args) => runtime.block_on(args.run()),
        }
    }
}

impl Where {
    async fn open(&self) -> Result<RepositoryCatalog> {
        let address: Address = self.address.parse()?;
        address.names_no_snapshot()?;
        self.reach(&address).await
    }

    async fn reach(&self, address: &Address) -> Result<RepositoryCatalog> {
        let store = self
            .store
            .open(address, &self.aws, self.timeout, false)
            .await?;
        RepositoryCatalog::open(store, false).await
    }
}

impl LsArgs {
    async fn run(self) -> Result<()> {
        let catalog = self.place.open().await?;
        let (mut manifests, mut damaged) = (Vec::new(), Ok(()));
        let read = catalog.manifests(catalog.names().await?, |manifest| manifest);
        for (_, manifest) in read.await? {
            match manifest {
                Ok(manifest) => manifests.push(manifest),
                // The others are told all the same.
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => {
                    damaged = Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        let last = LastCheck::read(catalog.store()).await?;
        for manifest in manifests
            .iter()
            .filter(|manifest| last.is_damaged(manifest))
        {
            let (id, when) = (&manifest.snapshot, &last.when);
            warn!("{id} is damaged by the check of {when}: ebsfs repository check --repair");
        }
        if self.json {
            let listed = manifests.iter().map(|manifest| {
                let mut listed = told(manifest);
                listed["is_damaged"] = last.is_damaged(manifest).into();
                listed
            });
            print_json(&listed.collect::<Vec<_>>())?;
            return damaged;
        }
        let head = [
            "SNAPSHOT", "VOLUME", "TIME", "SIZE", "HELD", "SENT", "STORED",
        ];
        let rows = std::iter::once(head.map(str::to_owned)).chain(manifests.iter().map(row));
        let table = super::table(&rows.collect::<Vec<_>>());
        output::write(None, |out| out.write_all(table.as_bytes()))?;
        damaged
    }
}

impl Where {
    /// The one snapshot that stands behind `#`.
    async fn one(&self) -> Result<(RepositoryCatalog, ManifestName)> {
        let address: Address = self.address.parse()?;
        let catalog = self.reach(&address).await?;
        let select = address.select.clone().ok_or_else(|| {
            let what = format!("which snapshot: say {}#SNAPSHOT or #latest", self.address);
            Error::new(Kind::Invalid, what)
        })?;
        let name = catalog.find(&select).await?;
        Ok((catalog, name))
    }
}

impl ShowArgs {
    async fn run(self) -> Result<()> {
        let (catalog, name) = self.place.one().await?;
        let manifest = catalog.manifest(&name).await?;
        print_json(&told(&manifest))
    }
}

impl RmArgs {
    async fn run(self) -> Result<()> {
        let (catalog, name) = self.place.one().await?;
        remove(catalog.store(), &name).await?;
        output::write(None, |out| writeln!(out, "removed {name}"))
    }
}

impl PruneArgs {
    async fn run(self) -> Result<()> {
        let catalog = self.place.open().await?;
        for run in &self.forget_run {
            forget_run(catalog.store(), run).await?;
        }
        let pruned = prune(&catalog, self.keep, self.grace, self.dry_run).await?;
        if self.json {
            return print_json(&pruned);
        }
        let (removes, sweeps) = match self.dry_run {
            true => ("would remove", "would sweep"),
            false => ("removed", "swept"),
        };
        output::write(None, |out| {
            for name in &pruned.removed {
                writeln!(out, "{removes} {name}")?;
            }
            let bytes = ByteSize::b(pruned.swept_bytes);
            writeln!(out, "{sweeps} {} objects of {bytes}", pruned.swept)?;
            if pruned.waiting > 0 {
                let bytes = ByteSize::b(pruned.waiting_bytes);
                writeln!(
                    out,
                    "{} objects of {bytes} are not old enough yet",
                    pruned.waiting
                )?;
            }
            for (run, since) in &pruned.runs {
                writeln!(
                    out,
                    "run {run} is unfinished since {since}: finish it, or --forget-run {run}"
                )?;
            }
            Ok(())
        })
    }
}

fn print_json(told: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(told);
    let text = text.map_err(|error| Error::with_source(Kind::Io, "JSON", error))?;
    output::write(None, |out| writeln!(out, "{text}"))
}

fn time(manifest: &Manifest) -> String {
    crate::time::rfc3339_seconds(manifest.time)
}

fn row(manifest: &Manifest) -> [String; 7] {
    let size = |bytes: u64| ByteSize::b(bytes).to_string();
    [
        manifest.snapshot.to_string(),
        manifest.volume.clone().unwrap_or("-".into()),
        time(manifest),
        size(manifest.volume_bytes),
        size(manifest.blocks * u64::from(BLOCK_SIZE)),
        size(manifest.sent_bytes),
        size(manifest.stored_bytes),
    ]
}

fn told(manifest: &Manifest) -> serde_json::Value {
    json!({
        "snapshot": manifest.snapshot,
        "volume": manifest.volume,
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
