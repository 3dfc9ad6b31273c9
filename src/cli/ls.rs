//! `ebsfs ls`: which snapshots there are.

use bytesize::ByteSize;
use clap::Args;

use super::aws::{self, AwsArgs};
use super::output;
use crate::error::{Error, Kind, Result};
use crate::snapshot::{Selector, Snapshot, sort_by_time};

/// List EBS snapshots: id, volume, start, size, state, name
#[derive(Args, Debug)]
pub(super) struct LsArgs {
    /// Snapshots to list: snapshot ids, volume ids, tag:KEY=VALUE [default: all snapshots of the account]
    #[arg(value_name = "SNAPSHOT | VOLUME | tag:KEY=VALUE")]
    select: Vec<Selector>,
    /// Print one JSON array instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    aws: AwsArgs,
}

impl LsArgs {
    pub(super) fn run(self) -> Result<()> {
        let mut snapshots = super::runtime()?.block_on(async {
            let config = self.aws.load_with_credentials().await?;
            let descriptions = aws::needed_descriptions(&config, "cannot list snapshots")?;
            descriptions.describe(&self.select).await
        })?;
        sort_by_time(&mut snapshots);
        for selector in &self.select {
            if let Selector::Snapshot(id) = selector
                && !snapshots.iter().any(|snapshot| snapshot.id == *id)
            {
                let what = format!("there is no {id} in this Region and account");
                return Err(Error::new(Kind::NotFound, what));
            }
        }
        let text = if self.json {
            let text = serde_json::to_string_pretty(&snapshots);
            text.map_err(|error| Error::with_source(Kind::Io, "JSON", error))? + "\n"
        } else {
            table(&snapshots)
        };
        output::write(None, |out| out.write_all(text.as_bytes()))
    }
}

fn table(snapshots: &[Snapshot]) -> String {
    let size =
        |bytes: Option<u64>| bytes.map_or("-".into(), |bytes| ByteSize::b(bytes).to_string());
    let mut rows = vec![
        [
            "SNAPSHOT",
            "VOLUME",
            "STARTED",
            "SIZE",
            "HELD",
            "STATE",
            "ENCRYPTED",
            "NAME",
        ]
        .map(str::to_owned),
    ];
    for snapshot in snapshots {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let started = snapshot
            .start_time
            .map_or("-".into(), crate::time::rfc3339_seconds);
        let state = match (&snapshot.state, &snapshot.progress, &snapshot.storage_tier) {
            (_, _, Some(tier)) if tier == "archive" => "archived".into(),
            (Some(crate::snapshot::SnapshotState::Pending), Some(progress), _) => {
                format!("pending {progress}")
            }
            (state, _, _) => state.as_ref().map_or("-".into(), ToString::to_string),
        };
        rows.push([
            snapshot.id.to_string(),
            text(&snapshot.volume_id),
            started,
            size(snapshot.volume_size),
            size(snapshot.full_size),
            state,
            snapshot
                .encrypted
                .map_or("-".into(), |yes| if yes { "yes" } else { "no" }.into()),
            text(
                &snapshot
                    .tags
                    .get("Name")
                    .cloned()
                    .or_else(|| snapshot.description.clone()),
            ),
        ]);
    }
    super::table(&rows)
}
