//! Writes what a package installs for people: `manual DIRECTORY`.
//!
//! | file | made from |
//! | --- | --- |
//! | `man1/ebsfs.1`, `man1/ebsfs-VERB.1`, `man1/ebsfs-VERB-VERB.1` | the definition of the command line |
//! | `man5/ebsfs-job.5`, `man5/ebsfs-repository.5` | `docs/man` |
//! | `completions/bash/ebsfs`, `completions/zsh/_ebsfs`, `completions/fish/ebsfs.fish` | the definition of the command line |
//!
//! The date of the man pages is `SOURCE_DATE_EPOCH` (seconds since 1970), or else today: two builds of one source are alike.

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Command;
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use ebsfs::error::EXIT_CODES;

/// Man pages that are written by hand.
const BY_HAND: [(&str, &str); 2] = [
    ("ebsfs-job.5", include_str!("../docs/man/ebsfs-job.5")),
    (
        "ebsfs-repository.5",
        include_str!("../docs/man/ebsfs-repository.5"),
    ),
];
/// What each section that is rendered by itself begins with; a page needs it once.
const PREAMBLE_LINES: usize = 2;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(folder), None) = (arguments.next(), arguments.next()) else {
        return failed("usage: manual DIRECTORY", 2);
    };
    match write_all(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error.to_string(), 1),
    }
}

fn failed(why: &str, code: u8) -> ExitCode {
    // Without a stderr the exit code remains.
    let _ = writeln!(io::stderr(), "manual: {why}");
    ExitCode::from(code)
}

fn write_all(folder: &Path) -> Result<(), Box<dyn Error>> {
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all);
        let written = made.and_then(|()| fs::write(&path, bytes));
        written.map_err(|error| format!("cannot write {}: {error}", path.display()))
    };
    // `ebsfs help` has no page: each verb has its own.
    let mut command = ebsfs::cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add_pages(&command, &date()?, &mut pages)?;
    for (name, page) in pages {
        write(&format!("man1/{name}"), page.as_bytes())?;
    }
    for (name, page) in BY_HAND {
        write(&format!("man5/{name}"), page.as_bytes())?;
    }
    for (shell, name) in [
        (Shell::Bash, "bash/ebsfs"),
        (Shell::Zsh, "zsh/_ebsfs"),
        (Shell::Fish, "fish/ebsfs.fish"),
    ] {
        let mut script = Vec::new();
        generate(shell, &mut ebsfs::cli::command(), "ebsfs", &mut script);
        write(&format!("completions/{name}"), &script)?;
    }
    Ok(())
}

/// The date of the pages, `2026-06-30`.
fn date() -> Result<String, Box<dyn Error>> {
    let time = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => {
            let since = Duration::from_secs(text.parse()?);
            UNIX_EPOCH
                .checked_add(since)
                .ok_or("SOURCE_DATE_EPOCH is too late")?
        }
        Err(_) => SystemTime::now(),
    };
    let text = humantime::format_rfc3339_seconds(time).to_string();
    Ok(text.chars().take_while(|c| *c != 'T').collect())
}

/// Adds the page of a verb and those of the verbs below it.
fn add_pages(verb: &Command, date: &str, pages: &mut Vec<(String, String)>) -> io::Result<()> {
    let man = Man::new(verb.clone())
        .date(date)
        .source(format!("ebsfs {}", env!("CARGO_PKG_VERSION")))
        .manual("ebsfs manual");
    pages.push((man.get_filename(), page(verb, &man)?));
    verb.get_subcommands()
        .try_for_each(|below| add_pages(below, date, pages))
}

fn page(verb: &Command, man: &Man) -> io::Result<String> {
    let mut text = section(|out| man.render_title(out), 0)?;
    text += &section(|out| man.render_name_section(out), PREAMBLE_LINES)?;
    text += &synopsis(verb);
    text += &section(|out| man.render_description_section(out), PREAMBLE_LINES)?;
    text += &section(|out| man.render_options_section(out), PREAMBLE_LINES)?;
    if verb.has_subcommands() {
        text += &section(|out| man.render_subcommands_section(out), PREAMBLE_LINES)?;
    }
    text += &exit_status();
    text += &examples(verb);
    text += &see_also(verb);
    Ok(text)
}

/// A section without the first lines of what renders it.
fn section(
    render: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    without: usize,
) -> io::Result<String> {
    let mut bytes = Vec::new();
    render(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(io::Error::other)?;
    let lines = text.split_inclusive('\n').skip(without);
    // Before a list of values it breaks the line, leaves one empty and breaks it again, which formatters warn of.
    Ok(lines.collect::<String>().replace(".br\n\n.br\n", ".sp\n"))
}

/// A section of our own.
fn own_section(heading: &str, fill: impl FnOnce(&mut Roff)) -> String {
    let mut roff = Roff::new();
    roff.control("SH", [heading]);
    fill(&mut roff);
    let lines = roff.render();
    lines.split_inclusive('\n').skip(PREAMBLE_LINES).collect()
}

/// The usage as `--help` has it: with all options a synopsis is a page.
fn synopsis(verb: &Command) -> String {
    let usage = verb.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    own_section("SYNOPSIS", |roff| {
        for (number, line) in usage.lines().enumerate() {
            if number > 0 {
                roff.control("br", []);
            }
            roff.text([roman(line.trim())]);
        }
    })
}

fn exit_status() -> String {
    own_section("EXIT STATUS", |roff| {
        for (code, what) in EXIT_CODES {
            roff.control("TP", ["6"]);
            roff.text([bold(code.to_string())]);
            roff.text([roman(*what)]);
        }
    })
}

/// The examples, which `--help` has at its end.
fn examples(verb: &Command) -> String {
    let text = verb.get_after_long_help().map(ToString::to_string);
    let Some((_, examples)) = text
        .as_deref()
        .and_then(|text| text.split_once("Examples:\n"))
    else {
        return String::new();
    };
    own_section("EXAMPLES", |roff| {
        roff.control("EX", []);
        for line in examples.lines() {
            roff.text([roman(line.trim_start())]);
        }
        roff.control("EE", []);
    })
}

fn see_also(verb: &Command) -> String {
    let name = verb.get_display_name().unwrap_or("ebsfs");
    let mut pages = vec!["ebsfs(1)"];
    if ["ebsfs", "ebsfs-replicate", "ebsfs-status"].contains(&name) {
        pages.push("ebsfs-job(5)");
    }
    if ["ebsfs", "ebsfs-sync", "ebsfs-restore"].contains(&name)
        || name.starts_with("ebsfs-repository")
    {
        pages.push("ebsfs-repository(5)");
    }
    pages.retain(|page| *page != format!("{name}(1)"));
    own_section("SEE ALSO", |roff| {
        roff.text([roman(pages.join(", "))]);
    })
}
