//! `ebsfs snapshot`: makes snapshots of volumes.

use std::time::{Duration, SystemTime};

use clap::{ArgGroup, Args};
use serde_json::{Value, json};

use super::aws::{self, AwsArgs};
use super::{log, output, remedy, signals};
use crate::capture::{CaptureJob, CaptureReport, Commands, Cycle, capture};
use crate::error::{Error, Result};
use crate::snapshot::{VolumeSelector, instance_id, volume_id};
use crate::time::{rfc3339_millis, rfc3339_seconds};

/// The version of the JSON that `--json` prints.
const JSON_VERSION: u32 = 1;
/// The job's name in a cycle that no option names.
const MANUAL: &str = "manual";

/// Make EBS snapshots of volumes; the volumes of one instance share one instant
#[derive(Args, Debug)]
#[command(
    group(ArgGroup::new("what").args(["instance", "volume", "tag"]).required(true).multiple(true)),
    long_about = "Make EBS snapshots of volumes; the volumes of one instance share one instant.\n\n\
    Prints a line for each snapshot: its id, its volume, the time whose bytes it holds. The tags of a volume are copied to its \
    snapshots."
)]
pub(super) struct SnapshotArgs {
    /// All volumes of this instance, for example i-0123456789abcdef0; can be given several times
    #[arg(long, value_name = "INSTANCE", value_parser = instance_id)]
    instance: Vec<String>,
    /// This volume, for example vol-0123456789abcdef0; can be given several times
    #[arg(long, value_name = "VOLUME", value_parser = volume_id)]
    volume: Vec<String>,
    /// All volumes with this tag, for example Backup=yes; can be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = tag)]
    tag: Vec<(String, String)>,
    /// Leave out the volumes that instances boot from, except those that --volume names
    #[arg(long)]
    exclude_boot: bool,
    /// Leave out this volume; can be given several times
    #[arg(long, value_name = "VOLUME", value_parser = volume_id)]
    exclude: Vec<String>,
    /// Description of the snapshots, at most 255 characters
    #[arg(long, value_name = "TEXT", value_parser = description)]
    description: Option<String>,
    /// Give the snapshots this tag too, for example Keep=yes; can be given up to 40 times
    #[arg(long, value_name = "KEY=VALUE", value_parser = tag)]
    add_tag: Vec<(String, String)>,
    /// Cycle of the snapshots: a volume gets one snapshot per cycle, however often the command is run, one run at a time, for example
    /// nightly/2026-06-30T12:00:00Z [default: manual/ and the present time]
    #[arg(long, value_name = "JOB/TIME")]
    cycle: Option<Cycle>,
    /// Time to look for snapshots that an earlier run of the cycle may have made, before new ones are made
    #[arg(long, value_name = "TIME", default_value = "2m", requires = "cycle", value_parser = humantime::parse_duration)]
    look_again: Duration,
    /// Shell command to run before the snapshots are made; they are made only if it ends with 0
    #[arg(long, value_name = "COMMAND")]
    pre: Option<String>,
    /// Shell command to run after the snapshots are made, also when making them or --pre has failed
    #[arg(long, value_name = "COMMAND")]
    post: Option<String>,
    /// Time that --pre and --post may take each, before ebsfs ends them
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    hook_timeout: Duration,
    /// End when the snapshots are made, without waiting until EC2 has completed them
    #[arg(long)]
    no_wait: bool,
    /// Time to wait for limits of the account, and then for EC2 to complete the snapshots
    #[arg(long, value_name = "TIME", default_value = "2days", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    aws: AwsArgs,
}

/// `KEY=VALUE`.
fn tag(text: &str) -> std::result::Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must look like KEY=VALUE")?;
    if key.is_empty() {
        return Err("must look like KEY=VALUE".into());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// At most 255 characters, as EC2 takes.
fn description(text: &str) -> std::result::Result<String, String> {
    match text.chars().count() {
        0..=255 => Ok(text.to_owned()),
        count => Err(format!("has {count} characters, and EC2 takes 255")),
    }
}

impl SnapshotArgs {
    pub(super) fn run(self) -> Result<()> {
        let is_json = self.json;
        let (cycle, report) = super::runtime()?.block_on(async {
            let stop = signals::listen()?;
            let config = stop.unless(self.aws.load_with_credentials()).await?;
            let maker = aws::snapshot_maker(&config)?;
            let job = self.job(SystemTime::now())?;
            let report = capture(&*maker, &job, &stop).await?;
            Result::Ok((job.cycle, report))
        })?;
        let text = match is_json {
            true => format!("{:#}\n", to_json(&cycle, &report)),
            false => lines(&report),
        };
        output::write(None, |out| out.write_all(text.as_bytes()))?;
        finish(&report)
    }

    /// What the arguments ask for.
    fn job(self, now: SystemTime) -> Result<CaptureJob> {
        let instances = self.instance.into_iter().map(VolumeSelector::Instance);
        let volumes = self.volume.into_iter().map(VolumeSelector::Volume);
        let tags = self.tag.into_iter();
        let tags = tags.map(|(key, value)| VolumeSelector::Tag { key, value });
        let is_new_cycle = self.cycle.is_none();
        Ok(CaptureJob {
            select: instances.chain(volumes).chain(tags).collect(),
            without_boot: self.exclude_boot,
            without: self.exclude,
            cycle: match self.cycle {
                Some(cycle) => cycle,
                None => Cycle::new(MANUAL, now)?,
            },
            is_new_cycle,
            look_again: self.look_again,
            description: self.description,
            tags: self.add_tag,
            commands: Commands {
                before: self.pre,
                after: self.post,
                timeout: self.hook_timeout,
            },
            waits: !self.no_wait,
            timeout: self.timeout,
            may_be_empty: false,
        })
    }
}

/// A line for each snapshot that has not failed.
fn lines(report: &CaptureReport) -> String {
    let good = report
        .snapshots
        .iter()
        .filter(|captured| !captured.is_failed);
    let lines = good.map(|captured| {
        let snapshot = &captured.snapshot;
        let start = snapshot.start_time.map(rfc3339_seconds);
        format!(
            "{} {} {}\n",
            snapshot.id,
            snapshot.volume_id.as_deref().unwrap_or("-"),
            start.as_deref().unwrap_or("-")
        )
    });
    lines.collect()
}

fn to_json(cycle: &Cycle, report: &CaptureReport) -> Value {
    let snapshots = report.snapshots.iter().map(|captured| {
        let snapshot = &captured.snapshot;
        json!({
            "id": snapshot.id,
            "volume": snapshot.volume_id,
            "instance": captured.instance,
            "start_time": snapshot.start_time.map(rfc3339_millis),
            "state": snapshot.state,
            "state_message": snapshot.state_message,
            "adopted": captured.is_adopted,
            "tagged": captured.is_tagged,
        })
    });
    let commands = report.commands.iter().map(|run| {
        json!({
            "when": run.when,
            "exit_code": run.exit_code,
            "signal": run.signal,
            "seconds": run.took.as_secs_f64(),
            "late": run.is_late,
        })
    });
    let failures = report.failures.iter().map(
        |error| json!({"error": remedy::in_words(error), "exit_code": error.kind().exit_code()}),
    );
    json!({
        "version": JSON_VERSION,
        "cycle": cycle.to_string(),
        "snapshots": snapshots.collect::<Vec<_>>(),
        "commands": commands.collect::<Vec<_>>(),
        "warnings": report.warnings,
        "failures": failures.collect::<Vec<_>>(),
    })
}

/// The failure that gives the exit code; the others are printed.
fn finish(report: &CaptureReport) -> Result<()> {
    let Some(first) = report.failure() else {
        return Ok(());
    };
    for other in &report.failures {
        if !std::ptr::eq(first, other) {
            log::say_error(&format!("ebsfs: {}", remedy::in_words(other)));
        }
    }
    Err(Error::clone(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use crate::error::Kind;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: SnapshotArgs,
    }

    fn job(line: &str) -> std::result::Result<CaptureJob, String> {
        let parsed = Line::try_parse_from(line.split_whitespace());
        let parsed = parsed.map_err(|error| error.to_string())?;
        Ok(parsed.args.job(SystemTime::UNIX_EPOCH).unwrap())
    }

    #[test]
    fn arguments_become_a_job() {
        let own = job("snapshot --instance i-0a --volume vol-0b --tag Backup=a=b").unwrap();
        assert_eq!(own.select.len(), 3);
        assert!(own.is_new_cycle && own.waits);
        assert_eq!(own.cycle.to_string(), "manual/1970-01-01T00:00:00Z");
        let named = "snapshot --volume vol-0b --cycle a/2026-06-30T12:00:00Z --look-again 5s --no-wait --pre x";
        let named = job(named).unwrap();
        assert!(!named.is_new_cycle && !named.waits);
        assert_eq!(named.look_again, Duration::from_secs(5));
        assert_eq!(named.commands.before.as_deref(), Some("x"));
        for wrong in [
            "snapshot",
            "snapshot --volume i-0a",
            "snapshot --instance vol-0a",
            "snapshot --tag Backup",
            "snapshot --tag =yes",
            "snapshot --volume vol-0a --cycle now",
            "snapshot --volume vol-0a --look-again 5s",
        ] {
            assert!(job(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_failure_with_the_lowest_rank_gives_the_exit_code() {
        let failed = |kind| Error::new(kind, "why");
        let mut report = CaptureReport {
            volumes: BTreeSet::new(),
            snapshots: Vec::new(),
            commands: Vec::new(),
            warnings: Vec::new(),
            failures: Vec::new(),
        };
        assert!(finish(&report).is_ok());
        report.failures = vec![
            failed(Kind::Denied),
            failed(Kind::Io),
            failed(Kind::Stopped),
        ];
        assert_eq!(finish(&report).unwrap_err().kind(), Kind::Stopped);
        report.failures.pop();
        assert_eq!(finish(&report).unwrap_err().kind(), Kind::Denied);
    }
}
