//! `ebsfs doctor`: the arguments of a verb become a [`DoctorJob`](crate::doctor::DoctorJob); [`crate::doctor`] checks it.

mod examination;

use std::ffi::OsString;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args as _, Command, FromArgMatches, Parser};
use serde_json::{Value, json};

use super::aws::AwsArgs;
use super::{Args, Verb, output, plain, remedy};
use crate::doctor::{DoctorRow, MachineNeeds, MountNeeds, RowState, WHOLE, examine};
use crate::ebs::Limits;
use crate::error::{Error, Kind, Result};
use crate::files::default_state_dir;
use crate::fs::Needs;
use crate::time::in_words;

pub(super) use examination::{Examination, ebs_services};

/// The version of the JSON.
const VERSION: u32 = 1;
/// What is in front of a fix.
const INDENT: usize = 23;
/// Resources of a mount without options.
const PLAIN_MOUNT: Needs = Needs {
    threads: 12,
    descriptors: 256,
    memory: 256 << 20,
};

/// Check whether a verb works here: network, credentials, permissions, stores, this machine
#[derive(clap::Args, Debug)]
#[command(
    long_about = "Check whether a verb works here, and print a fix for each failure: a row for each check, in the order in which \
    things break, with what was seen, how long it took and the fix.\n\n\
    Put `doctor` before the verb of a command that fails: ebsfs doctor sync SNAPSHOT TARGET. Without a verb it checks \
    EBS, EC2, STS, credentials, and whether this machine can mount.\n\n\
    Takes at most 15 seconds. Its requests change nothing without --write. Rows are good, warning, failed or unknown. Exit code \
    0: no row has failed; 11: one has, or had no result in time."
)]
pub(super) struct DoctorArgs {
    /// Verb to check, with its arguments: mount, sync or replicate
    #[arg(value_name = "VERB [ARGUMENTS]", trailing_var_arg = true)]
    verb: Vec<OsString>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Write, read and delete test objects in repositories [default: only read]
    #[arg(long)]
    write: bool,
    /// Duration of the sample that measures how fast a named snapshot is read, billed as reads; 0s: no sample
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    sample: Duration,
    #[command(flatten)]
    aws: AwsArgs,
}

/// A verb without its arguments.
#[derive(Debug, Parser)]
struct BareVerb {
    #[command(flatten)]
    aws: AwsArgs,
}

impl DoctorArgs {
    pub(super) fn run(self) -> Result<()> {
        let runtime = super::runtime()?;
        let checked = runtime.block_on(self.check());
        // A disk that hangs keeps its thread.
        runtime.shutdown_timeout(Duration::from_millis(200));
        let (verb, rows) = checked?;
        self.print(verb, &rows)?;
        result(&rows)
    }

    async fn check(&self) -> Result<(&'static str, Vec<DoctorRow>)> {
        let late = |_| {
            let what = format!(
                "cannot read the configuration: no result within {}",
                in_words(WHOLE)
            );
            Err(Error::new(Kind::Unavailable, what))
        };
        let of_verb = tokio::time::timeout(WHOLE, self.of_verb()).await;
        let mut examination = of_verb.unwrap_or_else(late)?;
        examination.job.writes = self.write;
        let rows = examine(&examination.job, &examination).await;
        Ok((examination.verb, rows))
    }

    async fn of_verb(&self) -> Result<Examination> {
        let Some(name) = self.verb.first() else {
            return Ok(without_arguments("", &self.aws, self.sample));
        };
        if !self.aws.words().is_empty() {
            let what = "cannot use options of AWS before the verb: they belong behind it";
            return Err(Error::new(Kind::Invalid, what));
        }
        let name = name.to_string_lossy().into_owned();
        if !["mount", "sync", "replicate"].contains(&name.as_str()) {
            let what = format!("cannot check {name:?}: the verbs are mount, sync and replicate");
            return Err(Error::new(Kind::Invalid, what));
        }
        let words = std::iter::once(OsString::from("ebsfs")).chain(self.verb.iter().cloned());
        let parsed = super::command().try_get_matches_from(words);
        let args = match parsed.and_then(|found| Args::from_arg_matches(&found)) {
            Ok(args) => args,
            Err(error) => return self.bare(&name, &error),
        };
        match args.verb {
            Some(Verb::Mount(mount)) => mount.examination(self.sample),
            Some(Verb::Sync(sync)) => sync.examination().await,
            Some(Verb::Replicate(replicate)) => replicate.examination().await,
            _ => Ok(without_arguments("", &self.aws, self.sample)),
        }
    }

    /// A verb of which only options of AWS are named; else the error of its arguments.
    fn bare(&self, name: &str, error: &clap::Error) -> Result<Examination> {
        if error.kind() == ErrorKind::MissingRequiredArgument {
            let command = BareVerb::augment_args(Command::new("ebsfs"));
            let found = command.try_get_matches_from(&self.verb);
            if let Ok(bare) = found.and_then(|found| BareVerb::from_arg_matches(&found)) {
                return Ok(without_arguments(name, &bare.aws, self.sample));
            }
        }
        error.exit()
    }

    fn print(&self, verb: &str, rows: &[DoctorRow]) -> Result<()> {
        let text = if self.json {
            let all = json!({
                "version": VERSION,
                "verb": verb,
                "failed": failed(rows).count(),
                "rows": rows.iter().map(row_json).collect::<Vec<_>>(),
            });
            let text = serde_json::to_string_pretty(&all);
            text.map_err(|error| Error::with_source(Kind::Io, "cannot write JSON", error))? + "\n"
        } else {
            text(rows)
        };
        output::write(None, |out| out.write_all(text.as_bytes()))
    }
}

/// The checks of a verb, or of none, without arguments.
fn without_arguments(verb: &str, aws: &AwsArgs, sample: Duration) -> Examination {
    let verb = match verb {
        "mount" => "mount",
        "sync" => "sync",
        "replicate" => "replicate",
        _ => "",
    };
    let mut examination = Examination::new(verb, Limits::default());
    examination.read("source", aws, ebs_services(true), Vec::new(), sample);
    let mount = MountNeeds {
        mountpoint: None,
        allows_others: false,
        needs: PLAIN_MOUNT,
    };
    examination.job.machine = MachineNeeds {
        mount: matches!(verb, "" | "mount").then_some(mount),
        state_dir: (verb != "mount").then(default_state_dir),
        ..MachineNeeds::default()
    };
    examination
}

fn failed(rows: &[DoctorRow]) -> impl Iterator<Item = &DoctorRow> {
    let rows = rows.iter();
    rows.filter(|row| row.finding.state == RowState::Failed)
}

/// An error where a row has failed, or had no result in time.
fn result(rows: &[DoctorRow]) -> Result<()> {
    let Some(first) = failed(rows).next() else {
        let mut late = rows.iter().filter(|row| row.is_late);
        let Some(first) = late.next() else {
            return Ok(());
        };
        let what = format!(
            "{} of {} checks had no result in time, the first is {} {}",
            late.count() + 1,
            rows.len(),
            first.check.name(),
            first.object
        );
        return Err(Error::new(Kind::Undecided, what));
    };
    let what = format!(
        "{} of {} checks failed, the first is {} {}",
        failed(rows).count(),
        rows.len(),
        first.check.name(),
        first.object
    );
    Err(Error::new(Kind::Undecided, what))
}

fn row_json(row: &DoctorRow) -> Value {
    json!({
        "check": row.check.name(),
        "object": row.object,
        "state": row.finding.state.name(),
        "seen": row.finding.seen,
        "milliseconds": u64::try_from(row.took.as_millis()).unwrap_or(u64::MAX),
        "fix": row.finding.fix.as_ref().map(remedy::option),
    })
}

/// A line for each row and its fix; what was left out for the same reason shares one.
fn text(rows: &[DoctorRow]) -> String {
    let mut text: String = rows
        .iter()
        .filter(|row| !row.is_skipped)
        .map(row_text)
        .collect();
    let mut skipped: Vec<(&str, Vec<&str>)> = Vec::new();
    for row in rows.iter().filter(|row| row.is_skipped) {
        let (seen, name) = (row.finding.seen.as_str(), row.check.name());
        match skipped.iter_mut().find(|(known, _)| *known == seen) {
            Some((_, names)) if names.last() == Some(&name) => {}
            Some((_, names)) => names.push(name),
            None => skipped.push((seen, vec![name])),
        }
    }
    for (seen, names) in skipped {
        let names = names.join(", ");
        text.push_str(&format!("{:<8} {names}: {}\n", "unknown", plain(seen)));
    }
    text
}

fn row_text(row: &DoctorRow) -> String {
    let took = match row.took {
        Duration::ZERO => String::new(),
        took => format!(", {}", in_words(took)),
    };
    let state = match row.finding.state {
        RowState::Failed => "FAILED",
        state => state.name(),
    };
    let mut text = format!(
        "{state:<8} {:<13} {}: {}{took}\n",
        row.check.name(),
        plain(&row.object),
        plain(&row.finding.seen)
    );
    if let Some(fix) = &row.finding.fix {
        let fix = plain(&remedy::option(fix));
        text.push_str(&format!("{:INDENT$}fix: {fix}\n", ""));
    }
    text
}
