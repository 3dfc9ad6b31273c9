//! `ebsfs doctor`: one thing is broken at a time; the row of that thing is the first one that fails, with its fix, and the verb
//! says the same in one line.

mod clouds;
mod credentials;
mod machine;
mod network;
mod quotas;
mod store;
mod tls;

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::*;

/// A snapshot, and a folder to mount it at.
pub struct DoctorSite {
    pub emulator: Emulator,
    pub point: tempfile::TempDir,
    pub snapshot: String,
}

impl DoctorSite {
    pub fn new() -> Self {
        let emulator = Emulator::start();
        emulator.make_volume("vol-0a", 2048, 0..8);
        let snapshot = emulator.snapshot("vol-0a");
        let point = tempfile::tempdir().unwrap();
        Self {
            emulator,
            point,
            snapshot,
        }
    }

    /// A command for this emulator.
    pub fn ebsfs(&self) -> Command {
        let mut command = self.emulator.command(EBSFS);
        for (name, _) in std::env::vars() {
            let lower = name.to_lowercase();
            if lower.ends_with("_proxy")
                || lower == "aws_ca_bundle"
                || lower.starts_with("ssl_cert")
            {
                command.env_remove(name);
            }
        }
        command.env("EBSFS_STATE_DIR", self.emulator.folder.path().join("state"));
        command
    }

    /// The arguments of a mount of the snapshot.
    pub fn mount(&self) -> Vec<String> {
        let point = self.point.path().to_str().unwrap();
        let words = ["mount", point, &self.snapshot, "--timeout", "2s"];
        words.map(str::to_owned).to_vec()
    }
}

/// What doctor has found.
pub struct Examined {
    pub code: i32,
    pub report: Value,
    pub said: String,
}

/// Runs a verb under doctor.
pub fn examined<S: AsRef<str>>(mut command: Command, options: &[&str], verb: &[S]) -> Examined {
    command
        .args(["doctor", "--json", "--sample", "0s"])
        .args(options);
    command.args(verb.iter().map(AsRef::as_ref));
    let start = std::time::Instant::now();
    let output = command.output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(17), "{command:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(report["version"], 1);
    Examined {
        code: output.status.code().unwrap(),
        report,
        said,
    }
}

impl Examined {
    pub fn rows(&self) -> &[Value] {
        self.report["rows"].as_array().unwrap()
    }

    fn shown(&self) -> String {
        let rows = self.rows().iter();
        rows.map(|row| format!("{row}\n")).collect::<String>() + &self.said
    }

    /// The only row of this check whose object contains this.
    #[track_caller]
    pub fn row(&self, check: &str, object: &str) -> &Value {
        let rows = self.rows().iter();
        let found: Vec<&Value> = rows
            .filter(|row| row["check"] == check && row["object"].as_str().unwrap().contains(object))
            .collect();
        assert_eq!(found.len(), 1, "{check} {object}\n{}", self.shown());
        found[0]
    }

    /// Nothing has failed.
    #[track_caller]
    pub fn has_no_failed_row(&self) {
        assert_eq!(
            (self.code, &self.report["failed"]),
            (0, &0.into()),
            "{}",
            self.shown()
        );
    }

    /// The first row that failed is this one, it says this, and advises this.
    #[track_caller]
    pub fn fails(&self, check: &str, object: &str, seen: &str, fix: &str) {
        let shown = self.shown();
        assert_eq!(self.code, 11, "{shown}");
        let first = self
            .rows()
            .iter()
            .find(|row| row["state"] == "failed")
            .unwrap();
        assert_eq!(first["check"], check, "{shown}");
        self.says(first, object, seen, fix);
        let summary = format!("the first is {check} ");
        assert!(self.said.contains(&summary), "{shown}");
    }

    /// A row warns, says this, and advises this.
    #[track_caller]
    pub fn warns(&self, check: &str, object: &str, seen: &str, fix: &str) {
        let row = self.row(check, object);
        assert_eq!(row["state"], "warning", "{}", self.shown());
        self.says(row, object, seen, fix);
    }

    #[track_caller]
    fn says(&self, row: &Value, object: &str, seen: &str, fix: &str) {
        for (member, words) in [("object", object), ("seen", seen), ("fix", fix)] {
            let text = row[member].as_str().unwrap_or_default();
            assert!(
                text.contains(words),
                "{member}: {words:?}\n{}",
                self.shown()
            );
        }
        assert!(row["milliseconds"].is_u64());
    }
}

/// The verb itself ends with this code and one line with these words.
#[track_caller]
pub fn verb_says<S: AsRef<str>>(mut command: Command, verb: &[S], code: i32, words: &str) {
    command.args(verb.iter().map(AsRef::as_ref));
    let (got, said) = ends_within(Duration::from_secs(25), &mut command);
    assert_eq!(got, code, "{said}");
    let lines = said.lines().filter(|line| line.starts_with("ebsfs: "));
    let lines: Vec<&str> = lines.collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(lines[0].contains(words), "{words:?}: {said}");
}

#[test]
fn each_row_that_is_tried_is_good_for_a_healthy_mount() {
    let site = DoctorSite::new();
    site.emulator.reset();
    let mut command = site.ebsfs();
    command
        .args(["doctor", "--json", "--sample", "300ms"])
        .args(site.mount());
    let report: Value = serde_json::from_str(&run(&mut command)).unwrap();
    let rows = report["rows"].as_array().unwrap();
    for row in rows {
        // The emulator has no quotas.
        let is_tried =
            row["object"] != "ebs:ListChangedBlocks of source" && row["check"] != "quota";
        let expected = if is_tried { "good" } else { "unknown" };
        assert_eq!(row["state"], expected, "{row}");
    }
    assert_eq!(
        (&report["verb"], &report["failed"]),
        (&"mount".into(), &0.into())
    );
    let order: Vec<&str> = rows
        .iter()
        .map(|row| row["check"].as_str().unwrap())
        .collect();
    let mut names = order.clone();
    names.dedup();
    assert_eq!(
        names,
        [
            "configuration",
            "endpoint",
            "connection",
            "answer",
            "packets",
            "clock",
            "credentials",
            "identity",
            "permission",
            "quota",
            "rate",
            "machine"
        ]
    );
    let rate = rows.iter().find(|row| row["check"] == "rate").unwrap();
    let seen = rate["seen"].as_str().unwrap();
    assert!(
        seen.contains("MiB/s") && seen.contains("99 % within"),
        "{seen}"
    );
    assert!(site.emulator.gets() > 8, "{}", site.emulator.gets());
    // Nothing is made, and the mountpoint is left as it was.
    assert_eq!(site.emulator.count("CreateSnapshot"), 0);
    assert_eq!(std::fs::read_dir(site.point.path()).unwrap().count(), 0);
}

#[test]
fn a_verb_without_arguments_and_no_verb_at_all_are_checked() {
    let site = DoctorSite::new();
    for verb in [&[][..], &["mount"], &["replicate", "--region", "us-east-1"]] {
        let found = examined(site.ebsfs(), &[], verb);
        found.has_no_failed_row();
        let row = found.row("permission", "ebs:GetSnapshotBlock");
        assert_eq!(row["state"], "unknown", "{row}");
    }
    // A snapshot alone, without a mountpoint.
    let found = examined(site.ebsfs(), &[], &["mount", &site.snapshot]);
    found.has_no_failed_row();
    assert_eq!(
        found.row("permission", "ebs:GetSnapshotBlock")["state"],
        "good"
    );
}

#[test]
fn text_has_a_line_for_each_row_and_one_for_its_fix() {
    let site = DoctorSite::new();
    site.emulator.set("deny=ebs:GetSnapshotBlock");
    let mut command = site.ebsfs();
    command.args(["doctor", "--sample", "0s", "mount", &site.snapshot]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(11), "{text}");
    let line = text
        .lines()
        .position(|line| line.starts_with("FAILED   permission"));
    let fix = text.lines().nth(line.unwrap() + 1).unwrap();
    assert!(fix.trim_start().starts_with("fix: "), "{text}");
    let (id, secret) = site.emulator.keys();
    assert!(!text.contains(&secret) && !text.contains(&id), "{text}");
}

#[test]
fn other_verbs_and_misplaced_options_are_refused() {
    let site = DoctorSite::new();
    for (args, words) in [
        (&["ls"][..], "the verbs are mount, sync and replicate"),
        (&["--region", "us-east-1", "mount"], "they belong behind it"),
        (&["sync", "snap-0a"], "TARGET"),
    ] {
        let (code, said) = ends(site.ebsfs().arg("doctor").args(args));
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn the_commands_of_the_page_run_and_it_explains_the_json() {
    let site = DoctorSite::new();
    let page = crate::readme::page("docs/doctor.md");
    let folder = tempfile::tempdir().unwrap();
    let ids = [site.snapshot.as_str(); 2];
    let said = run(&mut crate::readme::commands(
        &site.emulator,
        &page,
        ids,
        folder.path(),
    ));
    assert!(said.contains("rate") && !said.contains("FAILED"), "{said}");
    assert!(!folder.path().join("replica.raw").exists());
    let mut names = std::collections::BTreeSet::new();
    let found = examined(site.ebsfs(), &[], &site.mount());
    crate::readme::members(&found.report, &mut names);
    assert_eq!(names.len(), 10, "{names:?}");
    for name in names {
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
    for row in found.rows() {
        let check = row["check"].as_str().unwrap();
        assert!(page.contains(&format!("| `{check}` |")), "{check}");
    }
}
