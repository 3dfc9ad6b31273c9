//! What a person reads before the first success: the overview of `ebsfs` alone, and the examples at the end of each `--help`.

mod examples;

use clap::{Command, CommandFactory};

use super::Args;
use examples::EXAMPLES;

/// The five most useful commands: what each does, and the command.
const USEFUL: [(&str, &str); 5] = [
    (
        "try it on this machine, without an AWS account",
        "ebsfs demo",
    ),
    ("list the snapshots of the account", "ebsfs ls"),
    (
        "show snapshots as disk images, fetched as they are read",
        "ebsfs mount /mnt/ebs",
    ),
    (
        "copy a snapshot to an image, device, Region or repository",
        "ebsfs sync snap-0123456789abcdef0 disk.raw",
    ),
    (
        "snapshot volumes on a schedule and copy what changed",
        "ebsfs replicate job.toml",
    ),
];

/// The definition of the command line, with the examples of each verb. Man pages, completions and the parser are made of it.
pub fn command() -> Command {
    with_examples(Args::command(), "")
}

/// Adds the examples to a verb and the verbs below it. `path` names the verb without the program: `repository check`.
fn with_examples(command: Command, path: &str) -> Command {
    let below: Vec<String> = command
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .collect();
    let command = below.into_iter().fold(command, |command, name| {
        let path = format!("{path} {name}");
        command.mut_subcommand(name, |verb| with_examples(verb, path.trim_start()))
    });
    let Some((_, examples)) = EXAMPLES.iter().find(|(verb, _)| *verb == path) else {
        return command;
    };
    // The long help shows this instead of what the short help ends with.
    let before = command.get_after_help().map(|text| format!("{text}\n\n"));
    let text = before.unwrap_or_default() + &in_lines(examples);
    command.after_long_help(text)
}

/// Examples as lines: a comment and a command each.
fn in_lines(examples: &[(&str, &str)]) -> String {
    let examples = examples
        .iter()
        .map(|(what, line)| format!("\n  # {what}\n  {line}"));
    format!("Examples:{}", examples.collect::<String>())
}

/// The overview that `ebsfs` without a verb prints.
pub(super) fn overview() -> String {
    let width = USEFUL.iter().map(|(_, line)| line.len()).max();
    let width = width.unwrap_or_default();
    let useful = USEFUL.iter();
    let useful: String = useful
        .map(|(what, line)| format!("  {line:width$}  {what}\n"))
        .collect();
    format!(
        "ebsfs {}: use Amazon EBS snapshots as files\n\n{useful}\n\
         All commands: ebsfs --help. One of them, with examples: ebsfs COMMAND --help, or man ebsfs-COMMAND.\n\
         AWS is reached as by the AWS CLI: its profiles, variables and roles; --profile and --region choose others.\n",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests;
