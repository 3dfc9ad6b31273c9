//! What a package installs for people: help, man pages, completions.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::first_run::names;
use crate::support::*;

/// Words and phrases that help avoids.
const BANNED: [&str; 10] = [
    "told",
    "anew",
    "nobody",
    "somebody",
    "whoever",
    "vault",
    "bringing",
    "as kept",
    "is said",
    "going on with",
];

/// What is wrong with a help line, if anything is.
fn fault(help: &str) -> Option<&'static str> {
    let lower = help.to_ascii_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).collect();
    let is_banned = |banned: &&str| {
        let banned: Vec<&str> = banned.split(' ').collect();
        words.windows(banned.len()).any(|window| *window == banned)
    };
    let weak = [
        "what", "how", "where", "whether", "who", "it", "the", "which",
    ];
    if help.trim().is_empty() {
        return Some("it is empty");
    }
    if help.ends_with('.') {
        return Some("it ends with a period");
    }
    if !help.starts_with(|c: char| c.is_uppercase()) {
        return Some("it does not begin with a capital letter");
    }
    if weak.contains(&words[0]) {
        return Some("it begins neither with a verb nor with the thing");
    }
    if BANNED.iter().any(is_banned) {
        return Some("it has a banned word");
    }
    None
}

/// The faults of the help of a verb, of its options and of the verbs below it.
fn faults(path: &str, verb: &clap::Command) -> Vec<String> {
    let mut lines = vec![(
        "about".to_owned(),
        verb.get_about().map(ToString::to_string),
    )];
    lines.extend(verb.get_arguments().map(|arg| {
        let help = arg.get_help().map(ToString::to_string);
        (arg.get_id().to_string(), help)
    }));
    let found = lines.into_iter().filter_map(|(name, help)| {
        let help = help.unwrap_or_default();
        fault(&help).map(|fault| format!("{path} {name}: {fault}: {help}"))
    });
    let below = verb
        .get_subcommands()
        .filter(|verb| verb.get_name() != "help");
    let below = below.flat_map(|verb| faults(&format!("{path} {}", verb.get_name()), verb));
    found.chain(below).collect()
}

#[test]
fn every_help_line_reads_alone() {
    let mut command = ebsfs::cli::command();
    command.build();
    let faults = faults("ebsfs", &command);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    for (help, is_good) in [
        ("Memory for blocks, at least 8MiB", true),
        ("", false),
        ("What to list", false),
        ("Memory for blocks.", false),
        ("memory", false),
        ("Say that nobody reads it", false),
    ] {
        assert_eq!(fault(help).is_none(), is_good, "{help}");
    }
}

/// Where the man pages and completions are, made now.
fn manual() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(EBSFS).with_file_name("examples").join("manual");
    run(Command::new(program)
        .arg(folder.path())
        .env("SOURCE_DATE_EPOCH", "1782820800"));
    folder
}

#[test]
fn every_verb_has_a_man_page_that_formatters_take_without_a_warning() {
    let folder = manual();
    let pages = names(&folder.path().join("man1"));
    assert!(pages.len() > 30, "{pages:?}");
    for page in [
        "ebsfs.1",
        "ebsfs-mount.1",
        "ebsfs-demo.1",
        "ebsfs-repository-check.1",
        "ebsfs-record-import.1",
    ] {
        assert!(pages.iter().any(|name| name == page), "{page}: {pages:?}");
    }
    assert_eq!(
        names(&folder.path().join("man5")),
        ["ebsfs-job.5", "ebsfs-repository.5"]
    );
    let linted = sh(&format!(
        "mandoc -T lint -W warning {0}/man1/*.1 {0}/man5/*.5 2>&1 || true",
        folder.path().display()
    ));
    assert_eq!(linted, "");
    for page in ["man1/ebsfs-sync.1", "man1/ebsfs.1", "man5/ebsfs-job.5"] {
        let mut command = Command::new("man");
        command
            .args(["-l", "--warnings", "-E", "UTF-8"])
            .arg(folder.path().join(page))
            .env("MANWIDTH", "100");
        let output = command.output().unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        let text = String::from_utf8(output.stdout).unwrap();
        if page.ends_with("sync.1") {
            for heading in [
                "SYNOPSIS",
                "OPTIONS",
                "AWS",
                "LOG",
                "EXIT STATUS",
                "EXAMPLES",
            ] {
                assert!(text.contains(heading), "{heading}: {text}");
            }
            assert!(
                text.contains("ebsfs sync snap-0123456789abcdef0 disk.raw"),
                "{text}"
            );
            assert!(text.contains("--base"), "{text}");
        }
    }
    // Two runs are alike.
    let again = manual();
    let read = |folder: &TempDir| {
        std::fs::read_to_string(folder.path().join("man1/ebsfs-mount.1")).unwrap()
    };
    assert_eq!(read(&folder), read(&again));
    assert!(read(&folder).contains("2026-06-30"));
}

#[test]
fn bash_completes_verbs_and_options() {
    let folder = manual();
    let script = folder.path().join("completions/bash/ebsfs");
    let complete = |words: &[&str]| {
        let line = words.join(" ");
        let last = words.len() - 1;
        let (word, before) = (words[last], words[last - 1]);
        sh(&format!(
            "source {}; complete -p ebsfs > /dev/null; COMP_WORDS=({line}) COMP_CWORD={last}; \
             _ebsfs ebsfs '{word}' '{before}'; echo \"${{COMPREPLY[@]}}\"",
            script.display()
        ))
    };
    assert_eq!(complete(&["ebsfs", "repl"]).trim(), "replicate");
    assert_eq!(complete(&["ebsfs", "repository", "unp"]).trim(), "unpin");
    assert_eq!(
        complete(&["ebsfs", "mount", "--backg"]).trim(),
        "--background"
    );
    for (shell, words) in [
        ("zsh/_ebsfs", "#compdef ebsfs"),
        ("fish/ebsfs.fish", "complete -c ebsfs"),
    ] {
        let text = std::fs::read_to_string(folder.path().join("completions").join(shell)).unwrap();
        assert!(
            text.contains(words) && text.contains("repository"),
            "{shell}"
        );
    }
}
