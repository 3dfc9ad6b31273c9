//! `ebsfs repository check`: finds damage, and with `--repair` restores what can be found.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use serde_json::json;

use super::{WriteWhere, print_json};
use crate::aws::Given;
use crate::cli::aws::TargetAws;
use crate::cli::limits::bandwidth;
use crate::cli::output;
use crate::cli::progress::{ProgressForm, Shown};
use crate::cli::source::{self, SourceRequest, ToEbs};
use crate::cli::store::{StoreOptions, end_reading, lease};
use crate::ebs::Limits;
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::default_state_dir;
use crate::progress::Progress;
use crate::repository::{
    Bandwidth, Damage, LEASE, Lease, ReadData, RepairOrigin, Repaired, RepositoryCatalog,
    RepositoryCheck, check, repair,
};
use crate::target::Stop;

#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// Read every byte of every pack; without it a check asks whether the packs are there and long enough
    #[arg(long, conflicts_with = "read_data_subset")]
    read_data: bool,
    /// Read part N of M of the packs, for example 1/30: which packs these are depends on their names, so that M checks read all
    #[arg(long, value_name = "N/M", value_parser = subset)]
    read_data_subset: Option<ReadData>,
    /// Restore what is damaged: find lost blocks in other snapshots, in the rest of damaged packs and in --from; mark those that are
    /// not found, and end with exit code 12
    #[arg(long)]
    repair: bool,
    /// Source of lost blocks: a snapshot id, an image or device, or REPOSITORY#SNAPSHOT. The snapshot itself restores
    /// segments, marked blocks and its manifest too
    #[arg(long, value_name = "SOURCE", requires = "repair")]
    from: Option<String>,
    /// AWS profile for --from [default: the repository's]
    #[arg(long, value_name = "PROFILE", requires = "from")]
    from_profile: Option<String>,
    /// Region of --from [default: the repository's]
    #[arg(long, value_name = "REGION", requires = "from")]
    from_region: Option<String>,
    /// Endpoint of --from [default: the repository's]
    #[arg(long, value_name = "URL", requires = "from")]
    from_endpoint_url: Option<String>,
    /// Time after the last renewal of its record for which prune treats this repair, or its reading of --from, as alive, from 1s to
    /// 1day [default: 1h]
    #[arg(long, value_name = "TIME", requires = "repair", value_parser = lease)]
    lease: Option<Duration>,
    /// Maximum bytes per second to read from stores, and to write to them: each direction has the whole rate, for example 4MiB
    /// [default: unlimited]
    #[arg(long, value_name = "SIZE", value_parser = bandwidth)]
    bandwidth: Option<ByteSize>,
    /// Concurrent requests to each store, and to EBS for --from [default: 64; for EBS 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_in_flight: Option<u32>,
    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
    /// Form of the progress on stderr
    #[arg(long, value_name = "FORM", value_enum, default_value_t = ProgressForm::Auto)]
    progress: ProgressForm,
    #[command(flatten)]
    to: WriteWhere,
}

fn subset(text: &str) -> std::result::Result<ReadData, String> {
    let numbers = text.split_once('/').and_then(|(part, of)| {
        let (part, of) = (part.parse::<u32>().ok()?, of.parse::<u32>().ok()?);
        (1..=of).contains(&part).then_some(ReadData::Part(part, of))
    });
    numbers.ok_or_else(|| "must be N/M with N from 1 to M, for example 1/30".to_owned())
}

impl CheckArgs {
    pub(super) async fn run(self) -> Result<()> {
        // The store of `--from` shares these limits; EBS has only the requests in flight.
        let options = self.options()?;
        let catalog = self.to.place.open_with(&options).await?;
        let progress = Arc::new(Progress::default());
        let read = match self.read_data_subset {
            Some(part) => part,
            None if self.read_data => ReadData::All,
            None => ReadData::None,
        };
        // A source that cannot be opened must not cost a check first.
        let (origin, lease) = match &self.from {
            Some(name) => {
                let (origin, lease) = self.origin(name, options).await?;
                (Some(origin), lease)
            }
            None => (None, None),
        };
        let shown = Shown::start(self.progress, Arc::clone(&progress));
        let done = self.check(&catalog, read, origin.as_ref(), &progress).await;
        drop(shown);
        // The lease holds until here, so that no prune of that repository removes what this run reads.
        end_reading(lease).await;
        let (checked, repaired) = done?;
        self.print(&checked, repaired.as_ref())?;
        self.ended(&checked, repaired.as_ref())
    }

    async fn check(
        &self,
        catalog: &RepositoryCatalog,
        read: ReadData,
        origin: Option<&RepairOrigin>,
        progress: &Progress,
    ) -> Result<(RepositoryCheck, Option<Repaired>)> {
        let checked = check(catalog, read, progress).await?;
        if !self.repair || (checked.damages.is_empty() && origin.is_none()) {
            return Ok((checked, None));
        }
        let repaired = repair(catalog, &checked, origin, progress).await?;
        Ok((checked, Some(repaired)))
    }

    fn options(&self) -> Result<StoreOptions> {
        let options = self.to.options()?.with_lease(self.lease.unwrap_or(LEASE));
        let bandwidth = self.bandwidth.map(|bandwidth| bandwidth.as_u64());
        let bandwidth = bandwidth.map_or_else(Bandwidth::default, Bandwidth::of);
        Ok(options.with_line(self.max_in_flight, bandwidth))
    }

    /// Opens the source of `--from`, and the lease under which it is read where it is in a repository.
    async fn origin(
        &self,
        name: &str,
        options: StoreOptions,
    ) -> Result<(RepairOrigin, Option<Lease>)> {
        let from = TargetAws {
            role: "from",
            profile: self.from_profile.clone(),
            region: self
                .from_region
                .clone()
                .map(|region| Given::new(region, "--from-region")),
            endpoint_url: self.from_endpoint_url.clone(),
            ..TargetAws::default()
        };
        let aws = self
            .to
            .place
            .aws
            .for_target(from, self.from_region.is_none());
        let request = SourceRequest {
            name,
            aws: &aws,
            store: options,
            limits: Limits {
                timeout: self.to.place.timeout,
                max_in_flight: self
                    .max_in_flight
                    .unwrap_or(Limits::default().max_in_flight),
                ..Limits::default()
            },
            wait: None,
            state_dir: &default_state_dir(),
            to_ebs: ToEbs::None,
        };
        let opened = source::open(&request, &Stop::never()).await?;
        let source = opened.source;
        let origin = RepairOrigin {
            name: source.info.name.clone(),
            blocks: source.blocks,
            snapshot: source.info.snapshot,
            volume: source.info.volume,
        };
        Ok((origin, opened.lease))
    }

    fn print(&self, checked: &RepositoryCheck, repaired: Option<&Repaired>) -> Result<()> {
        if self.json {
            let mut text = json!(checked);
            if let (Some(text), Some(repaired)) = (text.as_object_mut(), repaired) {
                text.insert("repaired".into(), json!(repaired));
            }
            return print_json(&text);
        }
        let size = |bytes: u64| ByteSize::b(bytes);
        output::write(None, |out| {
            for Damage {
                object,
                what,
                snapshots,
                ..
            } in &checked.damages
            {
                writeln!(out, "damaged  {object}: {what}")?;
                for snapshot in snapshots {
                    writeln!(out, "         {snapshot} cannot be read whole")?;
                }
            }
            writeln!(
                out,
                "{} snapshots, {} segments, {} packs of {}",
                checked.snapshots,
                checked.segments,
                checked.packs,
                size(checked.packed_bytes)
            )?;
            writeln!(
                out,
                "{} objects of {} that no snapshot needs, {} runs and readers on record",
                checked.unused,
                size(checked.unused_bytes),
                checked.runs
            )?;
            let bytes = size(checked.read_bytes);
            match &*checked.read {
                "none" => writeln!(out, "read no pack: --read-data reads them")?,
                "all" => writeln!(out, "read all {} packs, {bytes}", checked.read_packs)?,
                part => writeln!(
                    out,
                    "read {} of {} packs, {bytes}: part {part}",
                    checked.read_packs, checked.packs
                )?,
            }
            let Some(repaired) = repaired else {
                return Ok(());
            };
            for name in &repaired.replaced {
                writeln!(out, "repaired {name}")?;
            }
            writeln!(out, "{} blocks in new packs", repaired.written_blocks)?;
            for lost in &repaired.lost {
                let (name, blocks) = (&lost.snapshot, lost.blocks);
                writeln!(
                    out,
                    "lost     {name}: {blocks} blocks were not found: they are zero and marked"
                )?;
            }
            for damage in &repaired.left {
                writeln!(out, "left     {}: {}", damage.object, damage.what)?;
            }
            Ok(())
        })
    }

    fn ended(&self, checked: &RepositoryCheck, repaired: Option<&Repaired>) -> Result<()> {
        let address = &self.to.place.address;
        let (damaged, missing, lost) = match repaired {
            None => (checked.damages.len(), &checked.missing, 0),
            Some(repaired) => (repaired.left.len(), &repaired.missing, repaired.lost.len()),
        };
        // Nothing else is wrong: a person must say whether that snapshot is lost.
        if let Some(name) = missing.first().filter(|_| missing.len() == damaged) {
            let what = format!("{damaged} snapshots of {address} are neither listed nor removed");
            let (repository, manifest) = (address.to_string(), name.clone());
            let remedy = Remedy::AcceptMissing {
                repository,
                manifest,
            };
            return Err(Error::new(Kind::Undecided, what).with_remedy(remedy));
        }
        if damaged > 0 {
            let still = if repaired.is_some() { "still " } else { "" };
            let what = format!("{damaged} objects of {address} are {still}damaged or missing");
            return Err(Error::new(Kind::Corrupt, what));
        }
        if lost > 0 {
            let what = format!("{lost} snapshots of {address} have blocks that were not found");
            return Err(Error::new(Kind::Marked, what));
        }
        Ok(())
    }
}
