//! The command line: one file for each verb, which turns arguments into a job and runs it. Concrete types are stacked only here.

mod attach;
mod aws;
mod background;
mod blocks;
mod cache;
mod changes;
mod demo;
mod digest;
mod doctor;
mod drill;
mod emulator;
mod evidence;
mod files;
mod help;
mod inventory;
mod limits;
mod log;
mod ls;
mod metrics;
mod mount;
mod mount_helper;
mod notify;
mod output;
mod policy;
mod progress;
mod reading;
mod record;
mod remedy;
mod replicate;
mod repository;
mod restore;
mod signals;
mod snapshot;
mod source;
mod status;
mod store;
mod sync;
mod target;
mod umount;
mod verify;
mod warm;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{FromArgMatches, Parser, Subcommand};
use tracing::Level;

use crate::error::{EXIT_CODES, Error, Kind, Result};
pub use help::command;
use log::LogFormat;

/// Use Amazon EBS snapshots as files
#[derive(Debug, Parser)]
#[command(version, after_help = exit_codes())]
struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Increase log detail (-v: retries, -vv: every request)
    #[arg(short, long, global = true, help_heading = "Log", action = clap::ArgAction::Count)]
    verbose: u8,
    /// Format of log lines
    #[arg(long, global = true, help_heading = "Log", value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Append the log to this file instead of stderr
    #[arg(long, global = true, help_heading = "Log", value_name = "PATH")]
    log_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Demo(demo::DemoArgs),
    Doctor(Box<doctor::DoctorArgs>),
    Mount(mount::MountArgs),
    Umount(umount::UmountArgs),
    Attach(Box<attach::AttachArgs>),
    Detach(attach::DetachArgs),
    Warm(warm::WarmArgs),
    Ls(ls::LsArgs),
    Snapshot(Box<snapshot::SnapshotArgs>),
    Inventory(Box<inventory::InventoryArgs>),
    Files(files::FilesArgs),
    Changes(changes::ChangesArgs),
    Blocks(blocks::BlocksArgs),
    Sync(Box<sync::SyncArgs>),
    Restore(Box<restore::RestoreArgs>),
    Drill(Box<drill::DrillArgs>),
    Replicate(Box<replicate::ReplicateArgs>),
    Status(status::StatusArgs),
    Verify(Box<verify::VerifyArgs>),
    Digest(Box<digest::DigestArgs>),
    Evidence(Box<evidence::EvidenceArgs>),
    Record(record::RecordArgs),
    Repository(repository::RepositoryArgs),
    Policy(Box<policy::PolicyArgs>),
    Emulator(emulator::EmulatorArgs),
}

/// The table of exit codes for people.
fn exit_codes() -> String {
    let codes = EXIT_CODES
        .iter()
        .map(|(code, what)| format!("{code} {what}"));
    format!("Exit codes: {}", codes.collect::<Vec<_>>().join(", "))
}

/// Runs the program: parses the command line, does what it says, prints one line if that fails.
pub fn main() -> ExitCode {
    let mut words = std::env::args_os();
    if let Some(program) = words.next() {
        if crate::browse::is_called(&program) {
            return crate::browse::parser_main(words);
        }
        if mount_helper::is_called(&program) {
            return mount_helper::main();
        }
    }
    let parsed = Args::from_arg_matches(&command().get_matches());
    let mut args = match parsed {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    let Some(verb) = args.verb.take() else {
        // Not 0: a script whose command is an empty variable must not look as if it had done its work.
        let printed = output::write(None, |out| out.write_all(help::overview().as_bytes()));
        return ExitCode::from(
            printed
                .map_or_else(|error| error.kind(), |()| Kind::Invalid)
                .exit_code(),
        );
    };
    let code = match run(verb, &args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log::say_last(&format!("ebsfs: {}", remedy::in_words(&error)));
            ExitCode::from(error.kind().exit_code())
        }
    };
    log::flush();
    code
}

/// The exit code, where there is no error to print: a mount in the background prints its own.
fn run(verb: Verb, args: &Args) -> Result<u8> {
    log::start_stderr(args.log_format)?;
    let goes_to_background = match &verb {
        Verb::Mount(mount) => mount.background.then(|| mount.check()),
        Verb::Attach(attach) => attach.background.then(|| attach.check()),
        _ => None,
    };
    if let Some(checked) = goes_to_background.filter(|_| !background::is_child()) {
        checked?;
        let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        return background::start(&arguments, &[]);
    }
    let file = args.log_file.as_deref();
    let is_quiet = file.is_none() && matches!(&verb, Verb::Sync(sync) if sync.is_quiet());
    let level = match args.verbose {
        0 if is_quiet => Level::WARN,
        0 => Level::INFO,
        1 => Level::DEBUG,
        _ => Level::TRACE,
    };
    log::start(level, args.log_format, file)?;
    match verb {
        Verb::Demo(demo) => demo.run(),
        Verb::Doctor(doctor) => doctor.run(),
        Verb::Mount(mount) => mount.run(),
        Verb::Umount(umount) => umount.run(),
        Verb::Attach(attach) => attach.run(),
        Verb::Detach(detach) => detach.run(),
        Verb::Warm(warm) => warm.run(),
        Verb::Ls(ls) => ls.run(),
        Verb::Snapshot(snapshot) => snapshot.run(),
        Verb::Inventory(inventory) => inventory.run(),
        Verb::Files(files) => files.run(),
        Verb::Changes(changes) => changes.run(),
        Verb::Blocks(blocks) => blocks.run(),
        Verb::Sync(sync) => sync.run(),
        Verb::Restore(restore) => restore.run(),
        Verb::Drill(drill) => drill.run(),
        Verb::Replicate(replicate) => replicate.run(),
        Verb::Status(status) => status.run(),
        Verb::Verify(verify) => verify.run(),
        Verb::Digest(digest) => digest.run(),
        Verb::Evidence(evidence) => evidence.run(),
        Verb::Record(record) => record.run(),
        Verb::Repository(repository) => repository.run(),
        Verb::Policy(policy) => policy.run(),
        Verb::Emulator(emulator) => emulator.run(),
    }
    .map(|()| 0)
}

/// A runtime of two threads: verification is what it computes, and a sync proxy has two processors.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::with_source(Kind::Io, "cannot start threads", error))
}

/// An option with its value, if it has one, as one word of a command line: a value may begin with a dash.
fn option_word(option: &str, value: Option<impl Into<OsString>>) -> Option<OsString> {
    let value = value?.into();
    let mut word = OsString::from(option);
    word.push("=");
    word.push(value);
    Some(word)
}

/// A text without control characters: a name can hold anything, and the terminal stays whole.
fn plain(text: &str) -> String {
    let chars = text.chars();
    chars
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// Columns as wide as their widest cell, the first line being the heads.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let cell = plain(cell);
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}
