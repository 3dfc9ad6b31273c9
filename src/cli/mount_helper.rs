//! `mount.ebsfs`: the program that mount(8) runs for `mount -t ebsfs SOURCE DIRECTORY` and for lines of /etc/fstab. It is a link to
//! `ebsfs`. Its arguments become those of `ebsfs mount --background`, and its exit codes are those of mount(8).
//!
//! Each long option of `ebsfs mount` is an option behind `-o`, with `-` or `_` between its words. So a new option of `ebsfs mount`
//! is one of `mount.ebsfs` too.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgAction, Command, CommandFactory, FromArgMatches, Parser};

use super::{Args, Verb, background, log, remedy};
use crate::error::{Error, Kind, Result};
use crate::repository::Address;

/// The name that mount(8) gives the program.
const NAME: &str = "mount.ebsfs";
/// A source that selects nothing: all snapshots of the account. It is also the source that the kernel shows for such a mount.
const ALL: &str = "ebsfs";

/// Options that say what a mount of ebsfs is in any case, or that are for other programs than this one: mount(8), systemd,
/// udisks. mount(8) passes `rw` where a line says neither `rw` nor `ro`.
const WITHOUT_EFFECT: &[&str] = &[
    "_netdev",
    "async",
    "auto",
    "comment",
    "defaults",
    "group",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "noexec",
    "nofail",
    "nosuid",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "ro",
    "rw",
    "silent",
    "uhelper",
    "user",
    "users",
];
/// Options that ask for what a mount of ebsfs never gives.
const REFUSED: &[(&str, &str)] = &[
    ("dev", "its files are never devices"),
    ("exec", "its files are never executable"),
    ("suid", "its files are never executable"),
    (
        "remount",
        "a mount of ebsfs does not change: unmount it (umount DIRECTORY) and mount it",
    ),
    (
        "background",
        "mount.ebsfs always returns when the mount answers",
    ),
    ("help", "see ebsfs mount --help"),
];
/// Options that become variables of the environment, which a line of /etc/fstab cannot set.
const VARIABLES: &[(&str, &str)] = &[
    ("config-file", "AWS_CONFIG_FILE"),
    ("credentials-file", CREDENTIALS),
];
const CREDENTIALS: &str = "AWS_SHARED_CREDENTIALS_FILE";

/// Mount EBS snapshots or a repository, for mount(8)
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    after_help = "Each long option of ebsfs mount is one behind -o: -o region=eu-central-1,allow_other. Exit codes: 0 mounted, \
    1 wrong arguments, 8 stopped by a signal, 32 not mounted."
)]
struct MountHelperArgs {
    /// A snapshot id, a volume id, tag:KEY=VALUE, the URL of a repository, or ebsfs: all snapshots of the account
    source: OsString,
    /// Empty folder to mount at
    directory: PathBuf,
    /// Ignore options behind -o that are unknown
    #[arg(short = 's')]
    is_sloppy: bool,
    /// Check the arguments and the folder, and do not mount
    #[arg(short = 'f')]
    is_fake: bool,
    /// Ignored: there is no /etc/mtab
    #[arg(short = 'n')]
    _no_mtab: bool,
    /// Increase log detail
    #[arg(short = 'v', action = ArgAction::Count)]
    verbose: u8,
    /// Refused: mount namespace
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<OsString>,
    /// Options, with commas between them
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// The type, ebsfs
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
}

/// What mount(8) asked for, as `ebsfs` takes it.
#[derive(Debug, PartialEq, Eq)]
struct MountCall {
    /// The arguments behind the program's name.
    arguments: Vec<OsString>,
    /// Variables of the environment.
    variables: Vec<(&'static str, String)>,
}

/// Whether the program was started by the helper's name.
pub(super) fn is_called(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new(NAME))
}

/// Mounts as the arguments of the process say.
pub(super) fn main() -> ExitCode {
    let helper = match MountHelperArgs::try_parse() {
        Ok(helper) => helper,
        Err(error) => {
            // Without a stderr the exit code remains.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 1 } else { 0 });
        }
    };
    let code = match log::start_stderr(log::LogFormat::Text).and_then(|()| mount(&helper)) {
        Ok(code) => code,
        Err(error) => {
            log::say_last(&format!("{NAME}: {}", remedy::in_words(&error)));
            error.kind().exit_code()
        }
    };
    log::flush();
    ExitCode::from(mount_code(code))
}

/// The exit code of `ebsfs` as that of mount(8): wrong arguments, an interrupt, or a failed mount.
fn mount_code(code: u8) -> u8 {
    match code {
        0 => 0,
        2 => 1,
        130 => 8,
        _ => 32,
    }
}

/// Starts the mount and waits until it answers. Returns the exit code of `ebsfs mount`.
fn mount(helper: &MountHelperArgs) -> Result<u8> {
    let command = Args::command();
    let call = call(helper, &command)?;
    let program = OsString::from("ebsfs");
    let given = std::iter::once(program).chain(call.arguments.iter().cloned());
    let args = command
        .try_get_matches_from(given)
        .and_then(|matches| Args::from_arg_matches(&matches))
        .map_err(|error| cannot(helper, &first_line(&error)))?;
    if let Some(Verb::Mount(mount)) = &args.verb {
        mount.check()?;
    }
    // The SDK takes a missing file as an empty one: its error would be a missing profile.
    let named = call.variables.iter();
    for (_, path) in named.filter(|(name, _)| *name == CREDENTIALS) {
        // The file is not opened here: it can be a FIFO, which has one reader.
        let readable = rustix::fs::access(path.as_str(), rustix::fs::Access::READ_OK);
        readable.map_err(|error| Error::of_file(Path::new(path), "cannot read", error.into()))?;
    }
    if helper.is_fake {
        return Ok(0);
    }
    let mut variables: Vec<(&str, OsString)> = Vec::new();
    // Services of systemd have no HOME, which is where the files of AWS are.
    if std::env::var_os("HOME").is_none()
        && let Ok(Some(user)) = nix::unistd::User::from_uid(nix::unistd::geteuid())
    {
        variables.push(("HOME", user.dir.into()));
    }
    let named = call.variables.into_iter();
    variables.extend(named.map(|(name, value)| (name, value.into())));
    background::start(&call.arguments, &variables)
}

fn cannot(helper: &MountHelperArgs, why: &str) -> Error {
    let at = helper.directory.display();
    Error::new(Kind::Invalid, format!("cannot mount at {at}: {why}"))
}

/// What is wrong, without the usage of `ebsfs mount`, whose options look different here.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// Turns the arguments of mount(8) into those of `ebsfs`, whose definition is `command`.
///
/// # Errors
/// `Invalid` for an option that is unknown or not possible, and for one without its value or with a value that it does not take.
fn call(helper: &MountHelperArgs, command: &Command) -> Result<MountCall> {
    if let Some(kind) = helper.kind.as_ref().filter(|kind| *kind != "ebsfs") {
        return Err(cannot(
            helper,
            &format!("{NAME} mounts the type ebsfs, not {kind}"),
        ));
    }
    if helper.namespace.is_some() {
        let why =
            "-N is not possible: run mount in the other namespace (nsenter --mount=FILE mount ...)";
        return Err(cannot(helper, why));
    }
    let mut call = MountCall {
        arguments: vec!["mount".into(), "--background".into()],
        variables: Vec::new(),
    };
    for _ in 0..helper.verbose {
        call.arguments.push("--verbose".into());
    }
    for text in &helper.options {
        for (name, value) in options(text).map_err(|why| cannot(helper, &why))? {
            add(&mut call, command, &name, value, helper.is_sloppy)
                .map_err(|why| cannot(helper, &why))?;
        }
    }
    call.arguments.push("--".into());
    let source = helper.source.clone();
    let directory = helper.directory.clone().into_os_string();
    if source.to_str().is_some_and(Address::looks_like) {
        call.arguments.extend([source, directory]);
    } else if source == ALL {
        call.arguments.push(directory);
    } else {
        call.arguments.extend([directory, source]);
    }
    Ok(call)
}

/// Adds one option; the error is its reason.
fn add(
    call: &mut MountCall,
    command: &Command,
    name: &str,
    value: Option<String>,
    is_sloppy: bool,
) -> std::result::Result<(), String> {
    if WITHOUT_EFFECT.contains(&name) || name.starts_with("x-") || name.starts_with("X-") {
        return Ok(());
    }
    if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        return Err(format!("the option {name} is not possible: {why}"));
    }
    let needed = || format!("the option {name} needs a value: {name}=VALUE");
    let long = name.replace('_', "-");
    if let Some((_, variable)) = VARIABLES.iter().find(|(option, _)| *option == long) {
        call.variables.push((variable, value.ok_or_else(needed)?));
        return Ok(());
    }
    let Some(takes_value) = takes_value(command, &long) else {
        return match is_sloppy {
            true => Ok(()),
            false => Err(format!(
                "the option {name} is unknown (ebsfs mount --help lists all)"
            )),
        };
    };
    let word = match (takes_value, value) {
        (true, Some(value)) => format!("--{long}={value}"),
        (true, None) => return Err(needed()),
        (false, None) => format!("--{long}"),
        (false, Some(_)) => return Err(format!("the option {name} takes no value")),
    };
    // mount(8) joins the options of /etc/fstab and its own: the last one holds.
    if long != "verbose" {
        let name = word.split('=').next().unwrap_or_default();
        call.arguments.retain(|earlier| {
            let earlier = earlier.to_string_lossy();
            earlier.split('=').next() != Some(name)
        });
    }
    call.arguments.push(word.into());
    Ok(())
}

/// Whether a long option of `ebsfs mount` takes a value; `None` if there is no such option.
fn takes_value(command: &Command, long: &str) -> Option<bool> {
    let mount = command.find_subcommand("mount")?;
    let mut all = mount.get_arguments().chain(command.get_arguments());
    let found = all.find(|arg| arg.get_long() == Some(long))?;
    Some(found.get_action().takes_values())
}

/// Splits options at commas. In double quotes a comma is part of a value, and behind a backslash any character is; the quotes and
/// the backslash are not.
fn options(text: &str) -> std::result::Result<Vec<(String, Option<String>)>, String> {
    let mut found = Vec::new();
    let (mut name, mut value) = (String::new(), None::<String>);
    let mut is_quoted = false;
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => found.push((std::mem::take(&mut name), value.take())),
            '=' if !is_quoted && value.is_none() => value = Some(String::new()),
            '\\' => {
                let literal = chars.next().unwrap_or('\\');
                value.as_mut().unwrap_or(&mut name).push(literal);
            }
            other => value.as_mut().unwrap_or(&mut name).push(other),
        }
    }
    if is_quoted {
        return Err(format!("a quotation mark is missing in the options {text}"));
    }
    found.push((name, value));
    found.retain(|(name, value)| !name.is_empty() || value.is_some());
    match found.iter().any(|(name, _)| name.is_empty()) {
        true => Err(format!("a name is missing in the options {text}")),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests;
