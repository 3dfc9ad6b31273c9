//! `ebsfs repository prune`: the options of a retention become a [`Retention`]; what it decides becomes a table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use super::{WriteWhere, print_json};
use crate::cli::progress::{ProgressForm, Shown};
use crate::cli::{output, table};
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::repository::{
    Period, PruneRequest, Pruned, Retention, RetentionDecision, forget_run, prune,
};
use crate::target::VolumeKey;

#[derive(Args, Debug)]
struct RetentionArgs {
    /// Keep the newest N snapshots of each volume; without any --keep option all are kept, and only garbage is swept
    #[arg(long = "keep-last", visible_alias = "keep", value_name = "N")]
    keep_last: Option<usize>,
    /// Keep the newest snapshot of each of the last N hours that have one (UTC), of each volume
    #[arg(long, value_name = "N")]
    keep_hourly: Option<usize>,
    /// Keep the newest snapshot of each of the last N days that have one
    #[arg(long, value_name = "N")]
    keep_daily: Option<usize>,
    /// Keep the newest snapshot of each of the last N weeks (from Monday) that have one
    #[arg(long, value_name = "N")]
    keep_weekly: Option<usize>,
    /// Keep the newest snapshot of each of the last N months that have one
    #[arg(long, value_name = "N")]
    keep_monthly: Option<usize>,
    /// Keep the newest snapshot of each of the last N years that have one
    #[arg(long, value_name = "N")]
    keep_yearly: Option<usize>,
    /// Keep all snapshots that are at most TIME older than the newest of their volume, for example 14days
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    keep_within: Option<Duration>,
    /// Remove only snapshots of this volume; repeat for several
    #[arg(long, value_name = "VOLUME", value_parser = VolumeKey::named)]
    volume: Vec<VolumeKey>,
    /// Remove only snapshots with this tag; repeat for several, of which a snapshot must have all
    #[arg(long, value_name = "KEY=VALUE", value_parser = tag)]
    tag: Vec<(String, String)>,
    /// Allow the removal of all snapshots of a volume
    #[arg(long)]
    remove_all: bool,
}

fn tag(text: &str) -> std::result::Result<(String, String), String> {
    let tag = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = tag.ok_or_else(|| "must be KEY=VALUE".to_owned())?;
    Ok((key.to_owned(), value.to_owned()))
}

#[derive(Args, Debug)]
pub(super) struct PruneArgs {
    #[command(flatten)]
    retention: RetentionArgs,
    /// Delete only what an earlier prune found unreferenced at least TIME ago; below 1h what is older than TIME is found and
    /// deleted in one run, if no other run or reader is on record
    #[arg(long, value_name = "TIME", default_value = "7days", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// Continue although the store's listing lacks this manifest; repeat for several
    #[arg(long, value_name = "MANIFEST")]
    accept_missing: Vec<String>,
    /// Drop an unfinished run that will not be resumed: what it sent is garbage
    #[arg(long, value_name = "RUN")]
    forget_run: Vec<String>,
    /// Print which snapshots would stay, why, and what would be swept; change nothing
    #[arg(long, conflicts_with = "forget_run")]
    dry_run: bool,
    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
    /// Form of the progress on stderr
    #[arg(long, value_name = "FORM", value_enum, default_value_t = ProgressForm::Auto)]
    progress: ProgressForm,
    #[command(flatten)]
    place: WriteWhere,
}

impl RetentionArgs {
    fn retention(&self) -> Result<Retention> {
        let periods = [
            (Period::Hour, self.keep_hourly),
            (Period::Day, self.keep_daily),
            (Period::Week, self.keep_weekly),
            (Period::Month, self.keep_monthly),
            (Period::Year, self.keep_yearly),
        ];
        let periods = periods.into_iter();
        let mut tags = BTreeMap::new();
        for (key, value) in &self.tag {
            if tags.insert(key.clone(), value.clone()).is_some() {
                let what = format!("cannot use --tag {key}={value}: {key} is given twice");
                return Err(Error::new(Kind::Invalid, what));
            }
        }
        let retention = Retention {
            last: self.keep_last,
            periods: periods
                .filter_map(|(period, n)| Some((period, n?)))
                .collect(),
            within: self.keep_within,
            volumes: self.volume.iter().cloned().collect(),
            tags,
            remove_all: self.remove_all,
        };
        let narrows = !retention.volumes.is_empty() || !retention.tags.is_empty();
        if !retention.has_rules() && (narrows || retention.remove_all) {
            let what = "cannot use --volume, --tag or --remove-all: no --keep option is given";
            return Err(Error::new(Kind::Invalid, what));
        }
        Ok(retention)
    }
}

impl PruneArgs {
    pub(super) async fn run(self) -> Result<()> {
        let retention = self.retention.retention()?;
        let catalog = self.place.open().await?;
        for run in &self.forget_run {
            forget_run(catalog.store(), run).await?;
        }
        let request = PruneRequest {
            retention: retention.clone(),
            grace: self.grace,
            dry_run: self.dry_run,
            accept_missing: self.accept_missing.clone(),
        };
        let progress = Arc::new(Progress::default());
        let shown = Shown::start(self.progress, Arc::clone(&progress));
        let pruned = prune(&catalog, &request, &progress).await;
        drop(shown);
        let pruned = pruned?;
        self.warn_of_absent(&retention, &pruned);
        if self.json {
            print_json(&pruned)?;
        } else {
            self.print(&retention, &pruned)?;
        }
        pruned.decisions.check(&retention)?;
        pruned.ended()
    }

    /// Warns of volumes that have no snapshot: the name may be wrong.
    fn warn_of_absent(&self, retention: &Retention, pruned: &Pruned) {
        let snapshots = pruned.decisions.snapshots.iter();
        let there: BTreeSet<&VolumeKey> = snapshots.map(|one| &one.name.volume).collect();
        for volume in &retention.volumes {
            if !there.contains(volume) {
                tracing::warn!("no snapshot is of the volume {volume}");
            }
        }
    }

    fn print(&self, retention: &Retention, pruned: &Pruned) -> Result<()> {
        let (removes, sweeps) = match self.dry_run {
            true => ("would remove", "would sweep"),
            false => ("removed", "swept"),
        };
        let decisions = &pruned.decisions;
        output::write(None, |out| {
            if self.dry_run {
                let head = ["SNAPSHOT", "VOLUME", "TIME", "ACTION", "WHY"].map(str::to_owned);
                let rows = decisions.snapshots.iter().map(row);
                let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
                out.write_all(table(&rows).as_bytes())?;
            }
            for name in &pruned.removed {
                writeln!(out, "{removes} {name}")?;
            }
            if retention.has_rules() {
                for (count, what) in [
                    (decisions.pinned, "pinned"),
                    (decisions.unknown, "of unknown volumes"),
                    (decisions.not_covered, "not covered by --volume and --tag"),
                ] {
                    if count > 0 {
                        writeln!(out, "{count} snapshots stay: {what}")?;
                    }
                }
            }
            let bytes = ByteSize::b(pruned.swept_bytes);
            writeln!(out, "{sweeps} {} objects of {bytes}", pruned.swept)?;
            if pruned.waiting > 0 {
                let bytes = ByteSize::b(pruned.waiting_bytes);
                writeln!(
                    out,
                    "{} objects of {bytes} wait: marked less than --grace ago, or needed by a run or reader",
                    pruned.waiting
                )?;
            }
            if let Some(why) = &pruned.locked_why {
                writeln!(
                    out,
                    "{} objects stay, for they are locked: {why}",
                    pruned.locked
                )?;
            }
            for run in &pruned.runs {
                let lease = if run.is_alive {
                    "alive"
                } else {
                    "its lease is over"
                };
                writeln!(
                    out,
                    "run {} of {} is on record since {}, renewed {}: {lease}",
                    run.run, run.holder, run.started, run.renewed
                )?;
            }
            Ok(())
        })
    }
}

fn row(decision: &RetentionDecision) -> [String; 5] {
    let name = &decision.name;
    let reasons: Vec<String> = decision.reasons.iter().map(ToString::to_string).collect();
    [
        name.snapshot.to_string(),
        name.volume.to_string(),
        crate::time::rfc3339_seconds(name.time),
        if decision.is_kept() { "keep" } else { "remove" }.to_owned(),
        reasons.join(", "),
    ]
}
