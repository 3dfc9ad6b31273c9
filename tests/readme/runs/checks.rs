//! What must come out of the commands of each page.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::PageRun;
use crate::readme::{fenced, members};
use crate::support::*;

/// The digests that lines of `sha256sum` and `ebsfs digest` begin with, of files whose names end so.
fn sums<'r>(run: &'r PageRun, ending: &str) -> Vec<&'r str> {
    let lines = run.said.lines().filter(|line| line.ends_with(ending));
    lines
        .filter_map(|line| line.split("  ").next())
        .filter(|sum| sum.len() == 64)
        .collect()
}

pub(super) fn of_a_disk(emulator: &Emulator, runs: &[PageRun]) {
    let volume = emulator.volume("vol-0a");
    let [readme, mount, changes, forensics] = runs else {
        panic!("there are four pages")
    };
    let hello = std::fs::read_to_string(readme.at("hello.txt")).unwrap();
    assert_eq!(hello, "hello from partition 1\n");
    readme.assert_says(&["\ncurrent ", "0-xvda.raw"]);
    assert_same(&readme.at("restored/0-xvda.raw"), &volume);
    assert_same(&readme.at("replica.raw"), &volume);
    run(Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "qcow2"])
        .args([&volume, &readme.at("disk.qcow2")]));

    for (number, content) in [(1, "ext4"), (2, "xfs"), (3, "btrfs"), (4, "ntfs")] {
        mount.assert_says(&[&format!("{number}\t{number}-linux.raw\t{content}\n")]);
        mount.assert_says(&[&format!("hello from partition {number}")]);
    }
    let found = sums(mount, ".raw");
    assert_eq!(found.len(), 3, "{}", mount.said);
    assert!(found.iter().all(|sum| *sum == found[0]), "{}", mount.said);
    mount.assert_says(&["Images are identical."]);

    for name in ["copy.raw", "again.raw", "third.raw"] {
        assert_same(&changes.at(name), &volume);
    }
    for name in ["heatmap.svg", "blocks.svg", "changes.json", "delta.qcow2"] {
        assert!(changes.at(name).metadata().unwrap().len() > 0, "{name}");
    }

    let first = sums(forensics, "disk.raw");
    assert_eq!(first.len(), 1, "{}", forensics.said);
    assert!(
        forensics.said.matches(first[0]).count() >= 3,
        "a digest differs: {}",
        forensics.said
    );
    forensics.assert_says(&["opened ", "closed ", "(sha256sum)"]);
    forensics.assert_says(&[
        "Good \"ebsfs-evidence\" signature for ann@example.com",
        "signature  by ann@example.com, key SHA256:",
        "result     equal",
        "each follows the one before",
        "case-7/blocks.csv: OK",
        "copy.raw: OK",
    ]);
}

pub(super) fn files(_: &Emulator, runs: &[PageRun]) {
    let page = &runs[0];
    page.assert_says(&["\n/hello.txt\n", " hello.txt\n"]);
    assert_eq!(page.said.matches("hello from partition 1\n").count(), 2);
    for name in ["hello.txt", "copy/hello.txt"] {
        let copied = std::fs::read_to_string(page.at(name)).unwrap();
        assert_eq!(copied, "hello from partition 1\n");
    }
    let body = std::fs::read_to_string(page.at("body")).unwrap();
    assert!(body.contains("0|/hello.txt|"), "{body}");
}

pub(super) fn sync(emulator: &Emulator, runs: &[PageRun]) {
    let page = &runs[0];
    let made = emulator.made();
    let later = &made[1].0;
    page.assert_says(&[
        &format!("holds {later}\n"),
        &format!("held {later} when it was recorded"),
    ]);
    let errors = &page.errors;
    assert!(errors.contains("--overwrite old.raw"), "{errors}");
    assert!(errors.contains("--discard-foreign-writes"), "{errors}");
    // What was written last: the digest that a person computes, and the report's.
    let sums: Vec<&str> = page.said.lines().rev().take(2).collect();
    assert_eq!(sums[1].split_whitespace().next(), Some(sums[0]));
    let volume = emulator.volume("vol-0a");
    assert_same(&page.at("replica.raw"), &volume);
    let len = std::fs::metadata(&volume).unwrap().len().to_string();
    run(Command::new("cmp")
        .args(["-n", &len])
        .args([page.at("disk.raw"), volume]));
    for index in [0, 3, 4, 2047] {
        for name in ["old.raw", "copy.raw"] {
            let found = read_at(&page.at(name), index * BLOCK, BLOCK as usize);
            assert!(found == content("vol-0a", index), "{name} {index}");
        }
    }
}

pub(super) fn convert(emulator: &Emulator, runs: &[PageRun]) {
    let page = &runs[0];
    let volume = emulator.volume("vol-0a");
    assert_eq!(page.said.matches("Images are identical.").count(), 2);
    assert!(page.said.contains("Image committed."), "{}", page.said);
    assert_same(&page.at("copy.raw"), &volume);
    for (name, format) in [
        ("packed.qcow2", "qcow2"),
        ("small.qcow2", "qcow2"),
        ("stream.vmdk", "vmdk"),
    ] {
        crate::formats::compare(&volume, format, &page.at(name));
    }
    // The first snapshot, which lacks what was written later.
    let said = run(Command::new("qemu-img")
        .args(["compare", "-f", "qcow2", "-F", "vpc"])
        .args([page.at("disk.qcow2"), page.at("disk.vhd")]));
    assert!(said.contains("Images are identical."), "{said}");
    let id = &emulator.made()[0].0;
    page.assert_says(&[&format!("holds {id}\n")]);
    run(Command::new("tar")
        .args(["--extract", "--file", "disk.tar.gz"])
        .current_dir(page.folder.path()));
    assert_same(&page.at("disk.raw"), &volume);
}

pub(super) fn repository(emulator: &Emulator, runs: &[PageRun]) {
    let page = &runs[0];
    page.assert_says(&["2 snapshots, 2 segments", "read all "]);
    for name in ["replica.raw", "disk.raw"] {
        assert_same(&page.at(name), &emulator.volume("vol-0a"));
    }
}

pub(super) fn retention(emulator: &Emulator, runs: &[PageRun]) {
    let page = &runs[0];
    page.assert_says(&["keep    last, daily 20", "undeleted 20", "\nweb-root "]);
    assert_same(&page.at("replica.raw"), &emulator.volume("vol-0a"));
}

pub(super) fn emulator(_: &Emulator, runs: &[PageRun]) {
    runs[0].assert_says(&["snap-", "vol-0a", "{\"reader\":{\"ec2:DescribeSnapshots\":"]);
}

pub(super) fn permissions(_: &Emulator, runs: &[PageRun]) {
    let page = &runs[0];
    page.assert_says(&["ebs:PutSnapshotBlock", "WITHOUT IT", "web/*"]);
    for (file, action) in [
        ("ebs.json", "ebs:StartSnapshot"),
        ("bucket.json", "s3:GetObject"),
        ("key.json", "kms:Decrypt"),
    ] {
        let text = std::fs::read_to_string(page.at(file)).unwrap();
        let policy: Value = serde_json::from_str(&text).unwrap();
        assert!(policy["Statement"][0]["Principal"] != Value::Null, "{file}");
        assert!(text.contains(action), "{file}: {text}");
    }
}

pub(super) fn snapshot(emulator: &Emulator, runs: &[PageRun]) {
    let page = &runs[0];
    assert!(page.errors.contains("\nfreeze\n") && page.errors.contains("\nthaw\n"));
    // A set of three, one that was not left out, one volume, one with the tag, one with commands.
    assert_eq!(emulator.made().len(), 7);
    let mut found = BTreeSet::new();
    let object =
        run(&mut emulator.ebsfs(&["snapshot", "--volume", "vol-0a", "--json", "--pre", "true"]));
    members(&serde_json::from_str(&object).unwrap(), &mut found);
    for name in found {
        assert!(page.text.contains(&format!("`{name}`")), "{name}");
    }
}

/// Runs this text as a job, with the state of the page.
fn run_job(emulator: &Emulator, page: &PageRun, text: &str) -> (i32, String) {
    let job = page.at("job.toml");
    std::fs::write(&job, text).unwrap();
    let mut command = emulator.ebsfs(&["replicate", "--once", job.to_str().unwrap()]);
    command.env("EBSFS_STATE_DIR", page.at("state"));
    ends(&mut command)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub(super) fn replicate(emulator: &Emulator, runs: &[PageRun]) {
    let page = &runs[0];
    // Two volumes to two targets, then one to one.
    let lines = page.said.lines().filter(|line| line.starts_with("vol-0"));
    assert_eq!(lines.count(), 5, "{}", page.said);
    assert_same(&page.at("replicas/vol-0a.raw"), &emulator.volume("vol-0a"));
    emulator.set("deny=ec2:DescribeVolumes");
    let (code, said) = run_job(emulator, page, fenced(&page.text, "toml")[0]);
    assert_eq!(code, 4, "the whole job file is read: {said}");
    let state = json(&page.at("state/job-web.json"));
    for name in ["schedule", "next_run", "under_way", "last_run", "volumes"] {
        assert!(
            state.get(name).is_some() && page.text.contains(&format!("`{name}`")),
            "{name}"
        );
    }
}

pub(super) fn status(_: &Emulator, runs: &[PageRun]) {
    let page = &runs[0];
    let current = page
        .said
        .lines()
        .filter(|line| line.starts_with("current "));
    assert_eq!(current.count(), 4, "{}", page.said);
    assert_eq!(page.said.matches("\tcurrent\t").count(), 2, "{}", page.said);
    // A failure, a copy under way and a job that cannot be read have members of their own.
    let path = page.at("state/job-single.json");
    let mut known = json(&path);
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
    std::fs::copy(&path, page.at("state/job-other.json")).unwrap();
    let mut command = Command::new(EBSFS);
    let output = command
        .args(["status", "--json", "--state-dir"])
        .arg(page.at("state"));
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
        assert!(page.text.contains(&format!("`{name}`")), "{name}");
    }
}

pub(super) fn gateway(emulator: &Emulator, runs: &[PageRun]) {
    let page = &runs[0];
    for name in ["replicas/vol-0a.raw", "replicas/one.raw"] {
        assert_same(&page.at(name), &emulator.volume("vol-0a"));
    }
    // The whole job file is read: only then its store is missed.
    let job = fenced(&page.text, "toml")[0].replace("s3://dr-bucket", "file:///nonexistent");
    let (code, said) = run_job(emulator, page, &job);
    assert!(code == 2 && said.contains("cannot use profile"), "{said}");
    let (before, after) = job.split_once("\n[source]").unwrap();
    let (_, targets) = after.split_once("[[target]]\n").unwrap();
    let (code, said) = run_job(emulator, page, &format!("{before}\n[[target]]\n{targets}"));
    assert!(code == 3 && said.contains("/nonexistent"), "{said}");
}
