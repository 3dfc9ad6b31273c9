//! `ebsfs repository ls`: the snapshots of a repository, or the runs that are on record there.

use bytesize::ByteSize;
use clap::Args;
use serde_json::{Value, json};
use tracing::warn;

use super::{Where, described, print_json, time};
use crate::block::BLOCK_SIZE;
use crate::cli::{output, table};
use crate::error::{Kind, Result};
use crate::repository::{LastCheck, LeaseKind, Manifest, RunOnRecord, pinned, runs};
use crate::time::rfc3339_seconds;

#[derive(Args, Debug)]
pub(super) struct RepositoryLsArgs {
    /// List the runs on record instead: those that have not ended
    #[arg(long)]
    runs: bool,
    /// Print one JSON array instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Where,
}

impl RepositoryLsArgs {
    pub(super) async fn run(self) -> Result<()> {
        match self.runs {
            true => self.list_runs().await,
            false => self.list_snapshots().await,
        }
    }

    async fn list_snapshots(self) -> Result<()> {
        let catalog = self.place.open().await?;
        let (mut manifests, mut damaged) = (Vec::new(), Ok(()));
        let read = catalog.manifests(catalog.names().await?, |manifest| manifest);
        for (_, manifest) in read.await? {
            match manifest {
                Ok(manifest) => manifests.push(manifest),
                // The others are listed all the same.
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => {
                    damaged = Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        let last = LastCheck::read(catalog.store()).await?;
        for manifest in &manifests {
            if last.is_damaged(manifest) {
                let (id, when) = (&manifest.snapshot, &last.when);
                warn!("{id} is damaged by the check of {when}: ebsfs repository check --repair");
            }
        }
        let pins = pinned(catalog.store()).await?;
        let is_pinned = |manifest: &Manifest| pins.contains(&manifest.name().to_string());
        if self.json {
            let all = manifests.iter();
            let all = all.map(|manifest| {
                let mut shown = described(manifest, is_pinned(manifest));
                if let Some(shown) = shown.as_object_mut() {
                    shown.insert("is_damaged".into(), last.is_damaged(manifest).into());
                }
                shown
            });
            print_json(&all.collect::<Vec<_>>())?;
            return damaged;
        }
        let head = [
            "SNAPSHOT", "VOLUME", "TIME", "SIZE", "HELD", "SENT", "STORED", "PINNED",
        ];
        let rows = manifests.iter();
        let rows = rows.map(|manifest| row(manifest, is_pinned(manifest)));
        let rows: Vec<_> = std::iter::once(head.map(str::to_owned))
            .chain(rows)
            .collect();
        output::write(None, |out| out.write_all(table(&rows).as_bytes()))?;
        damaged
    }

    async fn list_runs(self) -> Result<()> {
        let catalog = self.place.open().await?;
        let runs = runs(catalog.store()).await?;
        if self.json {
            return print_json(&runs.iter().map(run_described).collect::<Vec<_>>());
        }
        let head = ["RUN", "KIND", "HOLDER", "STARTED", "RENEWED", "SNAPSHOT"];
        let rows = std::iter::once(head.map(str::to_owned)).chain(runs.iter().map(run_row));
        let table = table(&rows.collect::<Vec<_>>());
        output::write(None, |out| out.write_all(table.as_bytes()))
    }
}

/// A volume for people: its key, and what it is called where it comes from.
fn volume(manifest: &Manifest) -> String {
    let key = &manifest.volume_key;
    match &manifest.volume {
        Some(text) if text != key.as_str() => format!("{key} ({text})"),
        _ => key.to_string(),
    }
}

fn row(manifest: &Manifest, is_pinned: bool) -> [String; 8] {
    let size = |bytes: u64| ByteSize::b(bytes).to_string();
    [
        manifest.snapshot.to_string(),
        volume(manifest),
        time(manifest),
        size(manifest.volume_bytes),
        size(manifest.blocks * u64::from(BLOCK_SIZE)),
        size(manifest.sent_bytes),
        size(manifest.stored_bytes),
        if is_pinned {
            "pinned".into()
        } else {
            String::new()
        },
    ]
}

fn run_described(run: &RunOnRecord) -> Value {
    json!({
        "id": run.id,
        "kind": run.kind,
        "snapshot": run.what,
        "holder": run.holder,
        "started": rfc3339_seconds(run.started),
        "renewed": rfc3339_seconds(run.renewed),
        "lease_seconds": run.lease.as_secs(),
    })
}

fn run_row(run: &RunOnRecord) -> [String; 6] {
    [
        run.id.clone(),
        run.kind.map_or("unknown", LeaseKind::name).to_owned(),
        run.holder.clone(),
        rfc3339_seconds(run.started),
        rfc3339_seconds(run.renewed),
        run.what.clone(),
    ]
}
