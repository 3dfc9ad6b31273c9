//! `ebsfs repository instances`: lists the instances whose machines are kept beside their snapshots, and adds one.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::{WriteWhere, print_json};
use crate::cli::output;
use crate::error::{Error, Kind, Result};
use crate::inventory::Inventory;
use crate::repository::SetName;
use crate::snapshot::volume_id;
use crate::time::rfc3339_millis;

/// Bytes of an inventory, at most: 1,000 rules of security groups are some 200 KB.
const MOST_BYTES: u64 = 4 << 20;

#[derive(Args, Debug)]
pub(super) struct InstancesArgs {
    /// Keep the inventory in FILE (-: stdin), as ebsfs inventory prints it, beside the newest instant of which the repository has a
    /// snapshot of each of its disks
    #[arg(long, value_name = "FILE")]
    add: Option<PathBuf>,
    /// Leave this volume out of the set that is added; can be given several times
    #[arg(long, value_name = "VOLUME", value_parser = volume_id, requires = "add")]
    without: Vec<String>,
    /// Print JSON instead of lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: WriteWhere,
}

impl InstancesArgs {
    pub(super) async fn run(self) -> Result<()> {
        let added = self.add.as_deref().map(read).transpose()?;
        let catalog = self.place.open().await?;
        let names = match added {
            Some(inventory) => vec![catalog.add_set(inventory, &self.without).await?.name()],
            None => catalog.sets().await?,
        };
        if self.json {
            let sets = names.iter().map(|name| {
                json!({"set": name.to_string(), "instance": name.instance, "time": rfc3339_millis(name.time)})
            });
            return print_json(&sets.collect::<Vec<_>>());
        }
        output::write(None, |out| {
            names.iter().try_for_each(|SetName { time, instance }| {
                writeln!(out, "{} {instance}", rfc3339_millis(*time))
            })
        })
    }
}

/// Reads an inventory.
fn read(path: &Path) -> Result<Inventory> {
    let failed = |error| Error::of_file(path, "cannot read", error);
    let mut bytes = Vec::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin()
            .take(MOST_BYTES + 1)
            .read_to_end(&mut bytes),
        false => {
            let file = std::fs::File::open(path).map_err(failed)?;
            file.take(MOST_BYTES + 1).read_to_end(&mut bytes)
        }
    };
    read.map_err(failed)?;
    if bytes.len() as u64 > MOST_BYTES {
        let what = format!("cannot read {}: it is no inventory", path.display());
        return Err(Error::new(Kind::Invalid, what));
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        let what = format!("cannot read {}: it is no inventory", path.display());
        Error::with_source(Kind::Invalid, what, error)
    })
}
