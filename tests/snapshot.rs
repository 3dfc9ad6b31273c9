//! `ebsfs snapshot` against the emulator: sets, limits, lost replies, kills, commands before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::*;
use crate::sync::kill_until_done;

const FIRST: &str = "i-0123456789abcdef0";
const SECOND: &str = "i-0fedcba9876543210";

/// Two instances of two volumes.
fn account() -> Emulator {
    let emulator = Emulator::start();
    for id in ["vol-0a", "vol-0b", "vol-0c", "vol-0d"] {
        emulator.make_volume(id, 8, 0..4);
    }
    for id in ["vol-0c", "vol-0d"] {
        emulator.post(&format!("volumes/{id}?instance={SECOND}&tag=Backup%3Dyes"));
    }
    emulator.post("volumes/vol-0b?tag=Backup%3Dyes&tag=Name%3Ddata%20disk");
    emulator
}

fn snapshot(emulator: &Emulator, args: &[&str]) -> Command {
    let mut command = emulator.ebsfs(&["snapshot"]);
    command.args(args);
    command
}

/// Exit code, the JSON object, stderr.
fn report(emulator: &Emulator, args: &[&str]) -> (i32, Value, String) {
    let output = snapshot(emulator, args).arg("--json").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let object = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap_or(-1), object, said)
}

/// The snapshots of the account, as EC2 describes them.
fn described(emulator: &Emulator) -> Vec<Value> {
    let text = run(&mut emulator.ebsfs(&["ls", "--json"]));
    serde_json::from_str(&text).unwrap()
}

/// How many snapshots each volume has of a cycle.
fn per_volume(emulator: &Emulator, cycle: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for snapshot in described(emulator) {
        if snapshot["tags"]["ebsfs:cycle"] == cycle {
            let volume = snapshot["volume_id"].as_str().unwrap().to_owned();
            *counts.entry(volume).or_default() += 1;
        }
    }
    counts
}

fn ones(volumes: &[&str]) -> BTreeMap<String, usize> {
    volumes.iter().map(|id| ((*id).to_owned(), 1)).collect()
}

/// A cycle of the present time.
fn cycle(job: &str) -> String {
    let now = sh("date -u +%Y-%m-%dT%H:%M:%SZ");
    format!("{job}/{}", now.trim())
}

/// Ends a group of commands in a file: one line for each run of a command.
fn trace(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_set_has_one_start_time_and_a_line_for_each_snapshot() {
    let emulator = account();
    let said = run(&mut snapshot(
        &emulator,
        &[
            "--instance",
            FIRST,
            "--add-tag",
            "Job=x",
            "--description",
            "d",
        ],
    ));
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split(' ').collect()).collect();
    let volumes: Vec<&str> = lines.iter().map(|line| line[1]).collect();
    assert_eq!(volumes, ["vol-0a", "vol-0b"]);
    let made = described(&emulator);
    assert_eq!(made.len(), 2);
    let starts: BTreeSet<&str> = made
        .iter()
        .map(|m| m["start_time"].as_str().unwrap())
        .collect();
    assert_eq!(starts.len(), 1, "{starts:?}");
    for (line, made) in lines.iter().zip(&made) {
        let made = made.as_object().unwrap();
        assert!(
            lines
                .iter()
                .any(|line| line[0] == made["id"].as_str().unwrap())
        );
        assert_eq!(line[2][..19], made["start_time"].as_str().unwrap()[..19]);
        assert_eq!(made["tags"]["ebsfs:self"], made["id"]);
        let cycle = made["tags"]["ebsfs:cycle"].as_str().unwrap();
        assert!(cycle.starts_with("manual/20"), "{cycle}");
        assert_eq!(made["tags"]["Job"], "x");
        assert_eq!(made["description"], "d");
        let name = &made["tags"]["Name"];
        match made["volume_id"].as_str().unwrap() {
            "vol-0b" => assert_eq!(name, "data disk"),
            _ => assert!(name.is_null()),
        }
    }
    assert_eq!(
        (
            emulator.count("CreateSnapshots"),
            emulator.count("CreateSnapshot")
        ),
        (1, 0)
    );
}

#[test]
fn volumes_with_a_tag_are_a_set_for_each_instance_and_single_ones() {
    let emulator = account();
    let (code, found, said) = report(&emulator, &["--tag", "Backup=yes"]);
    assert_eq!(code, 0, "{said}");
    let place = |volume: &str| {
        let all = found["snapshots"].as_array().unwrap().iter();
        let found: Vec<_> = all.filter(|made| made["volume"] == volume).collect();
        assert_eq!(found.len(), 1, "{volume}");
        (found[0]["instance"].clone(), found[0]["start_time"].clone())
    };
    assert_eq!(found["snapshots"].as_array().unwrap().len(), 3);
    assert_eq!(place("vol-0b").0, Value::Null);
    assert_eq!(place("vol-0c").0, SECOND);
    assert_eq!(place("vol-0c"), place("vol-0d"));
    let made = described(&emulator);
    let b = made.iter().find(|made| made["volume_id"] == "vol-0b");
    assert_eq!(b.unwrap()["tags"]["Name"], "data disk");
    for (args, volumes) in [
        (
            &["--instance", SECOND, "--exclude-boot"][..],
            &["vol-0d"][..],
        ),
        (&["--instance", SECOND, "--exclude", "vol-0d"], &["vol-0c"]),
        (&["--instance", SECOND, "--exclude", "vol-0c"], &["vol-0d"]),
        (
            &["--volume", "vol-0a", "--volume", "vol-0d"],
            &["vol-0a", "vol-0d"],
        ),
        (
            &["--volume", "vol-0a", "--instance", FIRST],
            &["vol-0a", "vol-0b"],
        ),
    ] {
        let (code, found, said) = report(&emulator, args);
        assert_eq!(code, 0, "{said}");
        let made: BTreeSet<&str> = found["snapshots"]
            .as_array()
            .unwrap()
            .iter()
            .map(|made| made["volume"].as_str().unwrap())
            .collect();
        assert_eq!(made, volumes.iter().copied().collect(), "{args:?}");
    }
    for (args, code) in [
        (&["--instance", "i-0a"][..], 3),
        (&["--volume", "vol-0f"], 3),
        (&["--tag", "Backup=no"], 3),
        (&["--tag", "Backup=*"], 3),
        (&["--volume", "vol-0a", "--exclude", "vol-0a"], 2),
        (&["--volume", "vol-0a", "--add-tag", "ebsfs:self=x"], 2),
        (
            &[
                "--volume",
                "vol-0a",
                "--cycle",
                "old/2020-01-01T00:00:00Z",
                "--look-again",
                "0s",
            ],
            2,
        ),
        (&[], 2),
    ] {
        let (found, said) = ends(&mut snapshot(&emulator, args));
        assert_eq!(found, code, "{args:?}: {said}");
    }
}

#[test]
fn a_volume_whose_tags_are_those_of_a_snapshot_does_not_pass_them_on() {
    let emulator = account();
    let copied = "tag=ebsfs%3Aself%3Dsnap-0a&tag=ebsfs%3Acycle%3Dother%2F2026-06-30T12%3A00%3A00Z";
    emulator.post(&format!("volumes/vol-0b?{copied}"));
    let cycle = cycle("nightly");
    let args = ["--instance", FIRST, "--cycle", &cycle, "--look-again", "0s"];
    run(&mut snapshot(&emulator, &args));
    assert_eq!(per_volume(&emulator, &cycle), ones(&["vol-0a", "vol-0b"]));
    for made in described(&emulator) {
        assert_eq!(made["tags"]["ebsfs:self"], made["id"]);
        if made["volume_id"] == "vol-0b" {
            assert_eq!(made["tags"]["Name"], "data disk");
        }
    }
}

#[test]
fn a_cycle_is_adopted_and_foreign_snapshots_with_its_tags_are_not() {
    let emulator = account();
    let cycle = cycle("nightly");
    let args = ["--instance", FIRST, "--cycle", &cycle, "--look-again", "0s"];
    let first = run(&mut snapshot(&emulator, &args));
    let (code, again, said) = report(&emulator, &args);
    assert_eq!(code, 0, "{said}");
    for made in again["snapshots"].as_array().unwrap() {
        assert_eq!(made["adopted"], true);
        assert!(first.contains(made["id"].as_str().unwrap()));
    }
    // In error: made again. With an id that is another's: made again.
    let made = described(&emulator);
    for snapshot in &made {
        emulator.post(&format!(
            "snapshots/{}?state=error",
            snapshot["id"].as_str().unwrap()
        ));
    }
    let (code, third, said) = report(&emulator, &args);
    assert_eq!(code, 0, "{said}");
    let third = third["snapshots"].as_array().unwrap();
    assert!(third.iter().all(|made| made["adopted"] == false));
    assert_eq!(described(&emulator).len(), 4);
}

#[test]
fn a_lost_reply_is_looked_for_and_never_makes_a_second_snapshot() {
    let emulator = account();
    emulator.set("lose_reply=1&shown_ms=400");
    let (code, found, said) = report(&emulator, &["--instance", FIRST]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("was not answered"), "{said}");
    let cycle = found["cycle"].as_str().unwrap();
    assert_eq!(per_volume(&emulator, cycle), ones(&["vol-0a", "vol-0b"]));
    assert_eq!(emulator.count("CreateSnapshots"), 1);
    for made in found["snapshots"].as_array().unwrap() {
        assert_eq!(
            (&made["adopted"], &made["tagged"]),
            (&true.into(), &true.into())
        );
    }
}

#[test]
fn a_run_that_is_killed_at_random_moments_never_makes_two_snapshots_of_a_cycle() {
    let emulator = account();
    emulator.set("latency_ms=5&shown_ms=150&pending_ms=100");
    let enough = std::env::var("EBSFS_KILLS").map_or(6, |kills| kills.parse().unwrap());
    let (mut kills, mut cycles) = (0, 0);
    while kills < enough {
        let cycle = cycle(&format!("killed{cycles}"));
        let args = [
            "--instance",
            SECOND,
            "--volume",
            "vol-0a",
            "--cycle",
            &cycle,
            "--look-again",
            "450ms",
        ];
        cycles += 1;
        kills += kill_until_done(|| snapshot(&emulator, &args), 700, || {});
        assert_eq!(
            per_volume(&emulator, &cycle),
            ones(&["vol-0a", "vol-0c", "vol-0d"])
        );
        for made in described(&emulator) {
            assert_eq!(made["tags"]["ebsfs:self"], made["id"]);
        }
    }
    println!("{kills} kills, {cycles} cycles");
}

#[test]
fn snapshots_of_a_killed_run_are_adopted_although_ec2_lists_them_late() {
    let emulator = account();
    emulator.set("shown_ms=500");
    let cycle = cycle("killed");
    let args = |look_again| {
        let of = ["--instance", SECOND, "--volume", "vol-0a", "--cycle"];
        [&of[..], &[&cycle, "--look-again", look_again]].concat()
    };
    let mut child = snapshot(&emulator, &args("0s"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("both calls", || {
        ["CreateSnapshot", "CreateSnapshots"]
            .iter()
            .all(|call| emulator.count(call) == 1)
    });
    std::thread::sleep(Duration::from_millis(20));
    child.kill().unwrap();
    child.wait().unwrap();
    let (code, found, said) = report(&emulator, &args("1500ms"));
    assert_eq!(code, 0, "{said}");
    assert!(found["warnings"].as_array().unwrap().is_empty(), "{said}");
    let volumes = ones(&["vol-0a", "vol-0c", "vol-0d"]);
    assert_eq!(per_volume(&emulator, &cycle), volumes);
    let made = found["snapshots"].as_array().unwrap();
    assert!(made.iter().all(|made| made["adopted"] == true), "{made:?}");
    for made in described(&emulator) {
        assert_eq!(made["tags"]["ebsfs:self"], made["id"]);
    }
}

#[test]
fn limits_are_waited_out_with_a_line() {
    for (switches, undone, line) in [
        (
            "volume_interval_ms=600000",
            "volume_interval_ms=0",
            "request rate has been exceeded",
        ),
        (
            "max_pending_volume=1&pending_ms=600000",
            "max_pending_volume=5",
            "in-progress snapshots",
        ),
        (
            "max_pending_snapshots=1&pending_ms=600000",
            "max_pending_snapshots=100",
            "pending snapshots",
        ),
    ] {
        let emulator = account();
        emulator.set(switches);
        let args = ["--volume", "vol-0a", "--no-wait"];
        run(&mut snapshot(&emulator, &args));
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let child = snapshot(&emulator, &args)
            .arg("--json")
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let said = || std::fs::read_to_string(&log).unwrap();
        wait_for("the line about the limit", || {
            said().contains("waiting for a limit")
        });
        emulator.set(undone);
        let output = child.wait_with_output().unwrap();
        let said = said();
        assert!(output.status.success(), "{said}");
        assert!(said.contains(line), "{said}");
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            found["snapshots"][0]["state"],
            if switches.contains("pending") {
                "pending"
            } else {
                "completed"
            }
        );
    }
    let emulator = account();
    emulator.set("volume_interval_ms=600000");
    run(&mut snapshot(
        &emulator,
        &["--volume", "vol-0a", "--no-wait"],
    ));
    let (code, said) = ends(&mut snapshot(
        &emulator,
        &["--volume", "vol-0a", "--timeout", "200ms"],
    ));
    assert_eq!(code, 6, "{said}");
    assert!(said.contains("--cycle manual/"), "{said}");
}

#[test]
fn it_waits_with_progress_and_an_error_state_ends_with_its_message() {
    let emulator = account();
    emulator.set("pending_ms=1300");
    let began = Instant::now();
    let (code, found, said) = report(&emulator, &["--volume", "vol-0a", "-v"]);
    assert_eq!(code, 0, "{said}");
    assert!(began.elapsed() >= Duration::from_millis(1300));
    assert_eq!(found["snapshots"][0]["state"], "completed");
    assert!(said.contains("0 of 1 snapshots are completed"), "{said}");
    assert!(said.contains('%'), "{said}");
    let (code, said) = ends(&mut snapshot(
        &emulator,
        &["--volume", "vol-0a", "--timeout", "200ms"],
    ));
    assert_eq!(code, 5, "{said}");
    emulator.set("pending_ms=300&snapshot_error=The%20key%20is%20disabled.");
    let (code, found, said) = report(&emulator, &["--instance", SECOND]);
    assert_eq!(code, 4, "{said}");
    assert_eq!(said.matches("The key is disabled.").count(), 2, "{said}");
    assert_eq!(found["failures"].as_array().unwrap().len(), 2);
    assert_eq!(
        found["snapshots"][0]["state_message"],
        "The key is disabled."
    );
    // A snapshot that has failed gets no line.
    let output = snapshot(&emulator, &["--volume", "vol-0a"])
        .output()
        .unwrap();
    assert!(output.stdout.is_empty());
}

#[test]
fn the_command_after_runs_whenever_the_one_before_did() {
    let emulator = account();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let at = log.display();
    let pre = format!("echo pre $EBSFS_VOLUMES >> {at}");
    let post = format!("echo post $EBSFS_SNAPSHOTS >> {at}; echo printed");
    let with = |pre: &str, post: &str, more: &[&str]| {
        let _ = std::fs::remove_file(&log);
        let args = [
            &["--instance", FIRST, "--pre", pre, "--post", post][..],
            more,
        ]
        .concat();
        let (code, found, said) = report(&emulator, &args);
        (code, found, said, trace(&log))
    };
    let (code, found, said, lines) = with(&pre, &post, &[]);
    assert_eq!(code, 0, "{said}");
    let ids: Vec<&str> = found["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|made| made["id"].as_str().unwrap())
        .collect();
    assert_eq!(
        lines,
        [
            "pre vol-0a vol-0b".to_owned(),
            format!("post {}", ids.join(" "))
        ]
    );
    assert!(said.contains("printed"), "{said}");
    let codes = |found: &Value| -> Vec<Option<i64>> {
        let commands = found["commands"].as_array().unwrap().iter();
        commands.map(|run| run["exit_code"].as_i64()).collect()
    };
    assert_eq!(codes(&found), [Some(0), Some(0)]);

    let before = described(&emulator).len();
    let (code, found, said, lines) = with(&format!("{pre}; exit 7"), &post, &[]);
    assert_eq!((code, codes(&found)), (1, vec![Some(7), Some(0)]), "{said}");
    assert!(said.contains("exit code 7"), "{said}");
    assert_eq!(lines, ["pre vol-0a vol-0b", "post"]);
    let (code, found, said, lines) = with(
        &format!("{pre}; sleep 60"),
        &post,
        &["--hook-timeout", "300ms"],
    );
    assert_eq!(
        (code, &found["commands"][0]["late"]),
        (1, &true.into()),
        "{said}"
    );
    assert_eq!(lines, ["pre vol-0a vol-0b", "post"]);
    assert_eq!(described(&emulator).len(), before, "no snapshot was made");

    let (code, found, said, _) = with(&pre, &format!("{post}; exit 3"), &[]);
    assert_eq!((code, codes(&found)), (1, vec![Some(0), Some(3)]), "{said}");
    assert_eq!(found["snapshots"].as_array().unwrap().len(), 2);
    emulator.set("deny=ec2:CreateSnapshots");
    let (code, _, said, lines) = with(&pre, &post, &[]);
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("permission ec2:CreateSnapshots"), "{said}");
    assert_eq!(lines, ["pre vol-0a vol-0b", "post"]);
}

#[test]
fn a_signal_ends_the_command_before_and_the_one_after_still_runs() {
    let emulator = account();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let at = log.display();
    let (pre, post) = (
        format!("echo pre >> {at}; sleep 60"),
        format!("sleep 0.3; echo post >> {at}"),
    );
    for signal in ["-TERM", "-INT", "-HUP"] {
        let _ = std::fs::remove_file(&log);
        let child = snapshot(
            &emulator,
            &["--volume", "vol-0a", "--pre", &pre, "--post", &post],
        )
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
        wait_for("the first command", || !trace(&log).is_empty());
        run(Command::new("kill").args([signal, &child.id().to_string()]));
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{signal}: {said}");
        assert_eq!(trace(&log), ["pre", "post"], "{signal}");
    }
    assert_eq!(emulator.count("CreateSnapshot"), 0);
}

#[test]
fn nothing_is_held_while_a_limit_is_waited_out() {
    let emulator = account();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let at = log.display();
    emulator.set("volume_interval_ms=1000");
    run(&mut snapshot(&emulator, &["--volume", "vol-0a"]));
    let (pre, post) = (format!("echo pre >> {at}"), format!("echo post >> {at}"));
    run(&mut snapshot(
        &emulator,
        &["--volume", "vol-0a", "--pre", &pre, "--post", &post],
    ));
    let lines = trace(&log);
    assert!(lines.len() >= 4, "{lines:?}");
    assert!(
        lines.chunks(2).all(|pair| pair == ["pre", "post"]),
        "{lines:?}"
    );
}

#[test]
fn it_needs_few_permissions_and_names_the_one_that_is_missing() {
    let emulator = account();
    let all = [
        "DescribeSnapshots",
        "DescribeVolumes",
        "DescribeInstances",
        "CreateSnapshot",
        "CreateSnapshots",
        "CreateTags",
    ];
    let volume: &[&str] = &["--volume", "vol-0a"];
    let instance: &[&str] = &["--instance", FIRST];
    for (args, needed) in [
        (
            volume,
            &["DescribeSnapshots", "DescribeVolumes", "CreateSnapshot"][..],
        ),
        (
            instance,
            &[
                "DescribeSnapshots",
                "DescribeVolumes",
                "DescribeInstances",
                "CreateSnapshots",
            ],
        ),
    ] {
        let others: Vec<String> = all
            .iter()
            .filter(|action| !needed.contains(action) && **action != "CreateTags")
            .map(|action| format!("ec2:{action}"))
            .collect();
        emulator.set(&format!("deny={}", others.join(",")));
        let (code, _, said) = report(&emulator, args);
        assert_eq!(code, 0, "{said}");
        for action in needed {
            emulator.set(&format!("deny=ec2:{action}"));
            let before = emulator.count("CreateSnapshot") + emulator.count("CreateSnapshots");
            let (code, said) = ends(&mut snapshot(&emulator, args));
            assert_eq!(code, 4, "{said}");
            assert!(said.contains(&format!("permission ec2:{action}")), "{said}");
            let after = emulator.count("CreateSnapshot") + emulator.count("CreateSnapshots");
            let is_create = action.starts_with("Create");
            assert_eq!(after - before, u64::from(is_create), "{action}");
        }
    }
    // Without its own id a snapshot is made all the same, and said to be unproven.
    emulator.set("deny=ec2:CreateTags");
    let (code, found, said) = report(&emulator, volume);
    assert_eq!(code, 0, "{said}");
    assert_eq!(found["snapshots"][0]["tagged"], false);
    assert!(said.contains("ec2:CreateTags"), "{said}");
    assert_eq!(found["warnings"].as_array().unwrap().len(), 1);
}
