//! The commands of the README and of pages in docs/, run as they stand there: all ```sh blocks of a page in one shell, in order.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::*;

/// What the examples call a demo snapshot, a later one and their volume.
const SNAPSHOT: &str = "snap-0123456789abcdef0";
const LATER: &str = "snap-0fedcba9876543210";
const VOLUME: &str = "vol-0123456789abcdef0";

/// The text of a page of the project.
pub fn page(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The commands of a page, a block each.
pub fn blocks(page: &str) -> Vec<&str> {
    page.split("\n```sh\n")
        .skip(1)
        .map(|rest| rest.split("\n```").next().unwrap())
        .collect()
}

/// A bash that runs the commands of a page in `folder`, with these snapshots of vol-0a, for ten minutes at most.
pub fn commands(emulator: &Emulator, page: &str, ids: [&str; 2], folder: &Path) -> Command {
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let script = blocks(page)
        .join("\n")
        .replace(SNAPSHOT, ids[0])
        .replace(LATER, ids[1])
        .replace(VOLUME, "vol-0a")
        .replace("/mnt/ebs", &at("ebs"))
        .replace("/mnt/files", &at("files"))
        .replace("/srv/replicas", &at("replicas"));
    let path = format!(
        "{}:{}:/usr/sbin:/sbin",
        Path::new(EBSFS).parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let mut command = emulator.command("timeout");
    command
        .args(["--kill-after=10", "600", "bash"])
        .args(["-euo", "pipefail", "-c", &script])
        .env("PATH", path)
        .env("EBSFS_STATE_DIR", at("state"))
        .current_dir(folder);
    command
}

/// Four partitions, each with a file that says hello.
fn make_disk(path: &str) {
    sh(&format!(
        "truncate -s 2G {path}
         printf 'label: gpt\\nsize=400M\\nsize=400M\\nsize=400M\\nsize=100M\\n' | sfdisk --quiet {path}
         scratch=$(mktemp -d)
         number=0
         for make in 'mkfs.ext4 -q' 'mkfs.xfs -q' 'mkfs.btrfs -q' 'mkntfs -q -Q -F'; do
             number=$((number + 1))
             read -r start size < <(partx -rgbo START,SIZE --nr $number {path})
             device=$(losetup --find --show --offset $((start * 512)) --sizelimit $size {path})
             $make $device > /dev/null
             if [ $number = 4 ]; then ntfs-3g $device $scratch; else mount $device $scratch; fi
             echo \"hello from partition $number\" > $scratch/hello.txt
             umount $scratch
             sync
             losetup --detach $device
         done
         rmdir $scratch"
    ));
}

#[test]
fn every_command_of_the_readme_works_as_it_stands_there() {
    let emulator = Emulator::start();
    make_disk(emulator.volume("vol-0a").to_str().unwrap());
    let snapshot = emulator.snapshot("vol-0a");
    let disk = writable(&emulator.volume("vol-0a"));
    for index in 4090..4093 {
        disk.write_all_at(&content("vol-0a", index), index * BLOCK)
            .unwrap();
    }
    let later = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let readme = page("README.md");
    assert!(blocks(&readme).len() >= 8);
    let output = commands(&emulator, &readme, [&snapshot, &later], folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let _ = Command::new("fusermount3")
            .arg("-uzq")
            .arg(folder.path().join("ebs"))
            .status();
        panic!("{said}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    for number in 1..=4 {
        assert!(
            said.contains(&format!("hello from partition {number}")),
            "{said}"
        );
    }
    let sums: Vec<&str> = said
        .lines()
        .filter(|line| line.ends_with(".raw") && line.len() > 66)
        .filter(|line| !line.contains("volumes") && !line.contains("replica"))
        .filter_map(|line| line.split("  ").next())
        .filter(|sum| sum.len() == 64)
        .collect();
    assert_eq!(sums.len(), 3, "{said}");
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{said}");
    assert!(said.contains("Images are identical."), "{said}");
    assert!(said.contains(&format!("holds {later}\n")), "{said}");
    assert!(said.contains("2 snapshots, 2 segments"), "{said}");
}

#[test]
fn every_command_of_the_sync_page_works_as_it_stands_there() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0, 3, 4, 2047]);
    let snapshot = emulator.snapshot("vol-0a");
    let disk = writable(&emulator.volume("vol-0a"));
    for index in 3..6 {
        disk.write_all_at(&content("later", index), index * BLOCK)
            .unwrap();
    }
    let later = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let text = page("docs/sync.md");
    assert!(blocks(&text).len() >= 6);
    let output = commands(&emulator, &text, [&snapshot, &later], folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.contains(&format!("holds {later}\n")), "{said}");
    assert!(
        said.contains(&format!("held {later} when it was recorded")),
        "{said}"
    );
    assert!(errors.contains("--overwrite old.raw"), "{errors}");
    assert!(errors.contains("--discard-foreign-writes"), "{errors}");
    // What was written last: the digest that a person computes, and the report's.
    let sums: Vec<&str> = said.lines().rev().take(2).collect();
    assert_eq!(sums[1].split_whitespace().next(), Some(sums[0]), "{said}");
    let volume = emulator.volume("vol-0a");
    let at = |name: &str| folder.path().join(name);
    assert_same(&at("replica.raw"), &volume);
    let len = std::fs::metadata(&volume).unwrap().len().to_string();
    run(Command::new("cmp")
        .args(["-n", &len])
        .args([at("disk.raw"), volume]));
    for index in [0, 3, 4, 2047] {
        for name in ["old.raw", "copy.raw"] {
            let found = read_at(&at(name), index * BLOCK, BLOCK as usize);
            assert!(found == content("vol-0a", index), "{name} {index}");
        }
    }
}

#[test]
fn every_command_of_the_retention_page_works_as_it_stands_there() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, [0, 3, 2047]);
    let snapshot = emulator.snapshot("vol-0a");
    writable(&volume)
        .write_all_at(&content("later", 3), 3 * BLOCK)
        .unwrap();
    let later = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let text = page("docs/retention.md");
    assert_eq!(blocks(&text).len(), 4);
    let output = commands(&emulator, &text, [&snapshot, &later], folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    for words in ["keep    last, daily 20", "undeleted 20", "\nweb-root "] {
        assert!(said.contains(words), "{words}: {said}\n{errors}");
    }
    assert_same(&folder.path().join("replica.raw"), &volume);
}

#[cfg(feature = "ec2")]
#[test]
fn every_command_of_the_snapshot_page_works_as_it_stands_there() {
    let emulator = Emulator::start();
    for id in ["vol-0a", "vol-0b", "vol-0c"] {
        emulator.make_volume(id, 8, 0..3);
    }
    emulator.post("volumes/vol-0b?tag=Backup%3Dyes");
    let folder = tempfile::tempdir().unwrap();
    let text = page("docs/snapshot.md");
    assert_eq!(blocks(&text).len(), 1);
    let output = commands(&emulator, &text, [SNAPSHOT, LATER], folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(errors.contains("\nfreeze\n") && errors.contains("\nthaw\n"));
    // A set of three, one that was not left out, one volume, one with the tag, one with commands.
    assert_eq!(emulator.made().len(), 7);
    let mut found = BTreeSet::new();
    let object =
        run(&mut emulator.ebsfs(&["snapshot", "--volume", "vol-0a", "--json", "--pre", "true"]));
    members(&serde_json::from_str(&object).unwrap(), &mut found);
    for name in found {
        assert!(text.contains(&format!("`{name}`")), "{name}");
    }
}

#[cfg(feature = "ec2")]
#[test]
fn every_command_of_the_replicate_page_works_as_it_stands_there() {
    let emulator = Emulator::start();
    for id in ["vol-0a", "vol-0b"] {
        emulator.make_volume(id, 2048, 0..3);
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("replicas")).unwrap();
    let text = page("docs/replicate.md");
    assert_eq!(blocks(&text).len(), 2);
    let output = commands(&emulator, &text, [SNAPSHOT, LATER], folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    // Two volumes to two targets, then one to one.
    let lines = said.lines().filter(|line| line.starts_with("vol-0"));
    assert_eq!(lines.count(), 5, "{said}");
    let replicas = folder.path().join("replicas");
    assert_same(&replicas.join("vol-0a.raw"), &emulator.volume("vol-0a"));
    let job = folder.path().join("job.toml");
    let whole = text.split("\n```toml\n").nth(1).unwrap();
    let whole = whole.split("\n```").next().unwrap();
    std::fs::write(&job, whole).unwrap();
    emulator.set("deny=ec2:DescribeVolumes");
    let mut command = emulator.ebsfs(&["replicate", "--once", job.to_str().unwrap()]);
    command.env("EBSFS_STATE_DIR", folder.path().join("state"));
    let (code, said) = ends(&mut command);
    assert_eq!(code, 4, "the whole job file is read: {said}");
    let state = std::fs::read(folder.path().join("state/job-web.json")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    for name in ["schedule", "next_run", "under_way", "last_run", "volumes"] {
        assert!(
            state.get(name).is_some() && text.contains(&format!("`{name}`")),
            "{name}"
        );
    }
}

#[cfg(feature = "ec2")]
#[test]
fn the_status_page_works_as_it_stands_there_and_explains_every_member() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..3);
    let folder = tempfile::tempdir().unwrap();
    let text = page("docs/status.md");
    assert_eq!(blocks(&text).len(), 1);
    let output = commands(&emulator, &text, [SNAPSHOT, LATER], folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    let current = said.lines().filter(|line| line.starts_with("current "));
    assert_eq!(current.count(), 4, "{said}");
    assert_eq!(said.matches("\tcurrent\t").count(), 2, "{said}");
    // A failure, a copy under way and a job that cannot be read have members of their own.
    let state = folder.path().join("state");
    let path = state.join("job-single.json");
    let mut known: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let error = serde_json::json!({"message": "why", "exit_code": 4, "when": null});
    let volume = &mut known["volumes"]["vol-0a"];
    volume["under_way"] = serde_json::json!({
        "cycle": "single/2026-06-30T12:00:00Z", "snapshot": "snap-0a", "instance": null,
        "phase": {"what": "copying snap-0a", "unit": "blocks", "done": 1, "of": 2, "bytes": 3},
    });
    for target in volume["targets"].as_object_mut().unwrap().values_mut() {
        target["error"] = error.clone();
    }
    known["drills"] = serde_json::json!({"schedule": "every 7days", "next": null, "units": {"vol-0a": {
        "since": null, "overdue_at": null, "failure": error,
        "last": {"source": "/a.raw", "point": "snap-0a", "time": null, "started": null, "ended": null,
            "partitions": {"clean": 1}, "booted": null, "error": error},
    }}});
    known["last_run"]["error"] = error;
    std::fs::write(&path, known.to_string()).unwrap();
    std::fs::copy(&path, state.join("job-other.json")).unwrap();
    let mut command = Command::new(EBSFS);
    let output = command
        .args(["status", "--json", "--state-dir"])
        .arg(&state);
    let output = output.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut found = BTreeSet::new();
    members(&shown, &mut found);
    for name in [
        "why_unusable",
        "phase",
        "late_at",
        "failures",
        "message",
        "is_overdue",
    ] {
        assert!(found.contains(name), "no {name}: {shown}");
    }
    for name in found {
        assert!(text.contains(&format!("`{name}`")), "{name}");
    }
}

#[cfg(feature = "ec2")]
#[test]
fn every_command_of_the_gateway_page_works_as_it_stands_there() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..3);
    let folder = tempfile::tempdir().unwrap();
    let replicas = folder.path().join("replicas");
    std::fs::create_dir(&replicas).unwrap();
    let text = page("docs/gateway.md");
    assert_eq!(blocks(&text).len(), 2);
    let output = commands(&emulator, &text, [SNAPSHOT, LATER], folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    for name in ["vol-0a.raw", "one.raw"] {
        assert_same(&replicas.join(name), &emulator.volume("vol-0a"));
    }
    // The whole job file is read: only then its store is missed.
    let job = folder.path().join("job.toml");
    let whole = text.split("\n```toml\n").nth(1).unwrap();
    let whole = whole.split("\n```").next().unwrap();
    std::fs::write(&job, whole.replace("s3://dr-bucket", "file:///nonexistent")).unwrap();
    let mut command = emulator.ebsfs(&["replicate", "--once", job.to_str().unwrap()]);
    command.env("EBSFS_STATE_DIR", folder.path().join("state"));
    let (code, said) = ends(&mut command);
    assert!(code == 2 && said.contains("cannot use profile"), "{said}");
    let without = whole.split("\n[source]").next().unwrap().to_owned()
        + "\n[[target]]\n"
        + whole.split_once("[[target]]\n").unwrap().1;
    std::fs::write(
        &job,
        without.replace("s3://dr-bucket", "file:///nonexistent"),
    )
    .unwrap();
    let (code, said) = ends(&mut command);
    assert!(code == 3 && said.contains("/nonexistent"), "{said}");
}

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
fn readme_sync_page_and_help_have_the_same_exit_codes() {
    let pages = [page("README.md"), page("docs/sync.md")];
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
