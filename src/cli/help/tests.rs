use std::collections::BTreeSet;

use super::*;

/// All verbs with their paths: `""`, `mount`, `repository check`.
fn verbs() -> Vec<(String, Command)> {
    fn add(path: &str, command: &Command, all: &mut Vec<(String, Command)>) {
        all.push((path.to_owned(), command.clone()));
        for verb in command.get_subcommands() {
            if verb.get_name() != "help" {
                let path = format!("{path} {}", verb.get_name());
                add(path.trim_start(), verb, all);
            }
        }
    }
    let mut root = command();
    root.build();
    let mut all = Vec::new();
    add("", &root, &mut all);
    assert!(all.len() > 30, "{}", all.len());
    all
}

/// The words of a command as a shell splits them, with '...' as the only quotes.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = vec![];
    let mut open: Option<String> = None;
    let mut is_quoted = false;
    for c in line.chars() {
        match c {
            '\'' => {
                is_quoted = !is_quoted;
                open.get_or_insert_default();
            }
            ' ' if !is_quoted => words.extend(open.take()),
            c => open.get_or_insert_default().push(c),
        }
    }
    assert!(!is_quoted, "{line}");
    words.extend(open);
    words
}

#[test]
fn every_example_is_a_command_that_the_verb_takes() {
    for (path, examples) in EXAMPLES {
        assert!((1..=4).contains(&examples.len()), "{path}");
        for (what, line) in *examples {
            let words = shell_words(line);
            command()
                .try_get_matches_from(&words)
                .unwrap_or_else(|error| panic!("{line}: {error}"));
            let start = format!("ebsfs {path}");
            assert!(line.starts_with(start.trim_end()), "{path}: {line}");
            assert!(
                what.starts_with(char::is_uppercase) && !what.ends_with('.'),
                "{what}"
            );
            // A narrow terminal.
            assert!(line.len() <= 105 && what.len() <= 75, "{line}");
        }
    }
    for (_, line) in USEFUL {
        command().try_get_matches_from(shell_words(line)).unwrap();
    }
}

#[test]
fn every_verb_has_examples_and_no_example_lacks_its_verb() {
    let verbs: BTreeSet<String> = verbs().into_iter().map(|(path, _)| path).collect();
    let exampled: BTreeSet<String> = EXAMPLES
        .iter()
        .map(|(path, _)| (*path).to_owned())
        .collect();
    assert_eq!(verbs, exampled);
    assert_eq!(EXAMPLES.len(), exampled.len());
}

/// The headings of a verb's options in the order of `--help`; `""` is its own options.
fn headings(verb: &Command) -> Vec<&str> {
    let mut found = vec![""];
    for arg in verb.get_arguments() {
        let heading = arg.get_help_heading().unwrap_or_default();
        if !found.contains(&heading) {
            found.push(heading);
        }
    }
    found
}

#[test]
fn own_options_come_first_then_groups_then_aws_then_the_log() {
    for (path, verb) in verbs() {
        let headings = headings(&verb);
        let at = |name: &str| headings.iter().position(|heading| *heading == name);
        let last = headings.len() - 1;
        assert_eq!(at("Log"), Some(last), "{path}: {headings:?}");
        if let Some(aws) = at("AWS") {
            assert_eq!(aws, last - 1, "{path}: {headings:?}");
        }
        for own in ["json", "state_dir", "progress", "timeout", "verify"] {
            if let Some(arg) = verb.get_arguments().find(|arg| arg.get_id() == own) {
                let is_limit = own == "timeout" && arg.get_help_heading() == Some("Limits");
                assert!(arg.get_help_heading().is_none() || is_limit, "{path} {own}");
            }
        }
        let help = verb.clone().render_long_help().to_string();
        let examples = help.find("Examples:").unwrap();
        assert!(
            examples > help.find("--log-file").unwrap(),
            "{path}: {help}"
        );
        if let Some(aws) = help.find("\nAWS:") {
            assert!(aws < help.find("\nLog:").unwrap());
            assert!(help.find("\nOptions:").unwrap() < aws);
        }
        // -h is short: it has no examples.
        assert!(!verb.clone().render_help().to_string().contains("Examples:"));
    }
}

#[test]
fn the_overview_names_five_commands_in_few_short_lines() {
    let text = overview();
    for (_, line) in USEFUL {
        assert!(text.contains(line), "{text}");
    }
    assert!(
        text.lines().count() <= 12 && text.lines().all(|line| line.len() <= 120),
        "{text}"
    );
}
