//! Members of JSON objects, and exit codes, that pages must explain.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use super::page;
use crate::support::*;

/// The names of all members of an object and of the objects in it.
pub fn members(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                found.insert(name.clone());
                members(value, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| members(value, found)),
        _ => {}
    }
}

#[test]
fn the_sync_page_explains_every_json_member() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..300);
    let snapshot = emulator.snapshot("vol-0a");
    let later = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let (image, report) = (image.to_str().unwrap(), folder.path().join("report"));
    let (state, report) = (folder.path().join("state"), report.to_str().unwrap());
    let mut found = BTreeSet::new();
    for (args, code) in [
        // At 60 blocks a second it takes 5 seconds: a line of progress.
        (
            vec![
                &*snapshot,
                image,
                "--json",
                "--digest",
                "--report",
                report,
                "--progress",
                "json",
                "--bandwidth",
                "30MiB",
            ],
            0,
        ),
        (
            vec![&*later, image, "--base", "auto", "--dry-run", "--json"],
            0,
        ),
        (vec![&*snapshot, image, "--json"], 0),
        (vec![&*snapshot, "ebs:", "--json"], 0),
        (vec!["--status", image, "--json"], 0),
        (vec![&*later, image, "--base", "snap-0123", "--json"], 11),
    ] {
        let mut command = emulator.ebsfs(&["sync"]);
        let output = command
            .args(&args)
            .env("EBSFS_STATE_DIR", &state)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
        let printed = [output.stdout.as_slice(), &output.stderr].concat();
        for line in String::from_utf8(printed).unwrap().lines() {
            if let Ok(value @ Value::Object(_)) = serde_json::from_str(line) {
                assert_eq!(value["version"], 1, "{line}");
                members(&value, &mut found);
            }
        }
    }
    for args in [
        &["verify", image, "--json"][..],
        &["digest", &snapshot, "--json", "--md5"],
    ] {
        let printed = run(&mut emulator.ebsfs(args));
        members(&serde_json::from_str(&printed).unwrap(), &mut found);
    }
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(report["version"], 1);
    members(&report, &mut found);
    for name in [
        "phase",
        "plan",
        "task",
        "exit_code",
        "unfinished",
        "md5",
        "equal",
    ] {
        assert!(found.contains(name), "no {name} was printed: {found:?}");
    }
    let text = page("docs/sync.md");
    // A mark's own members are nothing for people.
    found.remove("image");
    let unexplained: Vec<_> = found
        .iter()
        .filter(|name| {
            !text.contains(&format!("`{name}`")) && !text.contains(&format!("\"{name}\""))
        })
        .collect();
    assert!(
        unexplained.is_empty(),
        "docs/sync.md does not explain {unexplained:?}"
    );
}

#[test]
fn pages_and_help_have_the_same_exit_codes() {
    let pages = [page("docs/troubleshooting.md"), page("docs/sync.md")];
    let help = run(Command::new(EBSFS).arg("--help"));
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for (code, words) in [
        (1, "this machine"),
        (2, "wrong arguments"),
        (3, "not found"),
        (4, "not allowed"),
        (5, "not ready yet"),
        (6, "throttled"),
        (7, "no answer from the service"),
        (8, "corrupt"),
        (9, "no room on the target"),
        (10, "busy"),
        (11, "a person must decide"),
        (12, "done, with damaged blocks marked"),
        (13, "a recovery point is missing, late or not usable"),
        (130, "stopped"),
    ] {
        for page in &pages {
            assert!(
                page.contains(&format!("| {code} | {words}")),
                "{code} {words}: {page}"
            );
        }
        assert!(
            help.contains(&format!("{code} {words}")),
            "help: {code} {words}: {help}"
        );
    }
}
