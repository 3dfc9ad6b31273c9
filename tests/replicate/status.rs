//! `ebsfs status` over real cycles: exit codes and members for each state of a recovery point.

use std::process::Stdio;

use super::*;

/// Exit code, the status of the only job as JSON, and stderr. Nothing of AWS is in the environment.
pub fn status(site: &Site, args: &[&str]) -> (i32, Value, String) {
    let state = site.at("state");
    let mut command = Command::new(EBSFS);
    let command = command.args(["status", "--json", "--state-dir"]);
    let output = command.arg(state).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let all: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let job = all["jobs"][0].clone();
    (output.status.code().unwrap(), job, said)
}

/// A target of the only volume.
pub fn target<'a>(job: &'a Value, name: &str) -> &'a Value {
    let targets = job["volumes"][0]["targets"].as_array().unwrap();
    let found = targets.iter().find(|one| one["target"] == name);
    found.unwrap_or_else(|| panic!("{name}: {job}"))
}

#[test]
fn a_status_says_to_which_point_each_target_can_be_restored() {
    let mut site = Site::new(fastrand::u64(..));
    let repository = format!("file://{}", site.at("repository").display());
    init_repository(&repository);
    let image = site.at("vol-0a.raw").display().to_string();
    let more = format!("[[target]]\nto = '{repository}'");
    let job = site.image_job(&more);
    let (code, _, said) = status(&site, &[]);
    assert!(
        code == 3 && said.contains("has no state of a job"),
        "{said}"
    );
    let (code, _, said) = status(&site, &["web"]);
    assert!(code == 3 && said.contains("there is no such job"), "{said}");
    site.emulator.reset();
    let report = site.cycle(&job, "state");
    let gets = site.emulator.gets();
    let (code, found, said) = status(&site, &["web"]);
    assert!(code == 0 && said.is_empty(), "{code} {said}");
    for name in [&*image, &repository] {
        let point = target(&found, name);
        assert_eq!(
            (&point["state"], &point["is_usable"]),
            (&"current".into(), &true.into())
        );
        let snapshot = &point["recovery_point"]["snapshot"];
        assert_eq!(*snapshot, *snapshot_of(&report, "vol-0a"));
        assert!(point["lag_seconds"].as_u64().unwrap() < 600, "{point}");
    }
    let last = &found["last_run"];
    assert_eq!(last["requests"]["gets"].as_u64(), Some(gets));
    assert_eq!(last["bytes"].as_u64(), Some(gets * BLOCK));
    let dollars = gets as f64 * 0.003 / 1000.0;
    assert!((last["dollars"].as_f64().unwrap() - dollars) < 0.001);
    assert_eq!(
        (&found["month"]["runs"], &found["exit_code"]),
        (&1.into(), &0.into())
    );
    // By its file; too old; an age that is given counts, whatever the schedule.
    let (code, ..) = status(&site, &[job.to_str().unwrap(), "--max-age", "1h"]);
    assert_eq!(code, 0);
    let (code, found, said) = status(&site, &["--max-age", "0s"]);
    assert_eq!(code, 13, "{said}");
    assert_eq!(target(&found, &image)["state"], "late");
    assert!(
        said.contains("cannot rely on the 2 recovery points"),
        "{said}"
    );
    // A failure that passes: the recovery point stays.
    site.write();
    site.emulator.set("deny=ebs:GetSnapshotBlock");
    assert_eq!(ends(&mut site.once(&job, "state")).0, 4);
    site.emulator.set("deny=");
    let (code, found, _) = status(&site, &[]);
    assert_eq!(code, 13);
    let point = target(&found, &image);
    assert_eq!(
        (&point["state"], &point["error"]["exit_code"]),
        (&"failed".into(), &4.into())
    );
    assert_eq!(
        point["recovery_point"]["snapshot"],
        *snapshot_of(&report, "vol-0a")
    );
    assert_eq!(
        (&found["month"]["runs"], &found["month"]["failed"]),
        (&2.into(), &1.into())
    );
    // One that a person must settle.
    writable(Path::new(&image))
        .write_all_at(b"foreign", 7 * BLOCK)
        .unwrap();
    assert_eq!(ends(&mut site.once(&job, "state")).0, 11);
    let (code, found, _) = status(&site, &[]);
    assert_eq!(code, 11);
    assert_eq!(target(&found, &image)["state"], "undecided");
    assert_eq!(target(&found, &repository)["state"], "current");
    // An image that is not there any more.
    writable(Path::new(&image))
        .write_all_at(&[0; 7], 7 * BLOCK)
        .unwrap();
    site.cycle(&job, "state");
    assert_eq!(status(&site, &[]).0, 0);
    std::fs::rename(&image, site.at("elsewhere.raw")).unwrap();
    let (code, found, _) = status(&site, &[]);
    assert_eq!(
        (code, &target(&found, &image)["state"]),
        (13, &"unusable".into())
    );
    std::fs::rename(site.at("elsewhere.raw"), &image).unwrap();
    assert_eq!(status(&site, &[]).0, 0);
    // As text.
    let mut command = Command::new(EBSFS);
    let said = run(command
        .arg("status")
        .arg("--state-dir")
        .arg(site.at("state")));
    for words in [
        "job web: without a schedule\n",
        &image,
        &repository,
        "current",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // A target that the job has no more is not missed.
    let job = site.image_job("");
    site.cycle(&job, "state");
    let (code, found, _) = status(&site, &[]);
    let targets = found["volumes"][0]["targets"].as_array().unwrap();
    assert_eq!((code, targets.len()), (0, 1));
}

#[test]
fn a_target_between_two_snapshots_is_not_usable_until_it_is_whole() {
    let mut site = Site::new(fastrand::u64(..));
    let (held, disk) = (site.at("vol-0a.raw"), site.emulator.volume("vol-0a"));
    let other = site.at("other.raw").display().to_string();
    let job = site.image_job(&format!("in_place = true\n[[target]]\nto = '{other}'"));
    let image = held.display().to_string();
    let first = site.cycle(&job, "state");
    for index in 100..300 {
        let bytes = content("later", index);
        writable(&disk).write_all_at(&bytes, index * BLOCK).unwrap();
    }
    site.write();
    site.emulator.set("latency_ms=700");
    let mut command = site.once(&job, "state");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = command.spawn().unwrap();
    let mut found = Value::Null;
    wait_for("the delta", || {
        found = status(&site, &[]).1;
        target(&found, &image)["state"] == "unusable"
    });
    let why = target(&found, &image)["why_unusable"].as_str().unwrap();
    assert!(why.contains("it is between snap-"), "{why}");
    // The other image appears by a rename: the old one is whole.
    let point = target(&found, &other);
    assert_eq!(
        (&point["state"], &point["is_usable"]),
        (&"current".into(), &true.into())
    );
    assert_eq!(
        point["recovery_point"]["snapshot"],
        *snapshot_of(&first, "vol-0a")
    );
    let copy = &found["volumes"][0]["under_way"];
    assert_ne!(copy["snapshot"], *snapshot_of(&first, "vol-0a"));
    assert_eq!(copy["is_interrupted"], false);
    wait_for("what it does", || {
        found = status(&site, &[]).1;
        let phase = &found["volumes"][0]["under_way"]["phase"];
        phase["what"]
            .as_str()
            .is_some_and(|what| what.contains("snap-"))
    });
    // Killed: it stays so, until the next run.
    process.kill().unwrap();
    process.wait().unwrap();
    let (code, found, said) = status(&site, &[]);
    assert_eq!(code, 13, "{said}");
    assert_eq!(target(&found, &image)["is_usable"], false);
    assert_eq!(target(&found, &other)["is_usable"], true);
    site.emulator.set("latency_ms=0");
    let report = site.cycle(&job, "state");
    let (code, found, said) = status(&site, &[]);
    assert_eq!(code, 0, "{said}");
    let snapshot = &target(&found, &image)["recovery_point"]["snapshot"];
    assert_eq!(*snapshot, *snapshot_of(&report, "vol-0a"));
    assert!(found["volumes"][0]["under_way"].is_null());
    assert_same(&held, &disk);
}

#[test]
fn a_first_copy_that_is_under_way_is_no_recovery_point() {
    let site = Site::new(fastrand::u64(..));
    let job = site.image_job("");
    let image = site.at("vol-0a.raw").display().to_string();
    site.emulator.set("pending_ms=3600000");
    let mut command = site.once(&job, "state");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = command.spawn().unwrap();
    let mut found = (0, Value::Null);
    wait_for("the snapshot", || {
        let (code, job, _) = status(&site, &[]);
        found = (code, job);
        !found.1["volumes"][0]["targets"][0].is_null()
    });
    process.kill().unwrap();
    process.wait().unwrap();
    let (code, found) = found;
    assert_eq!(
        (code, &target(&found, &image)["state"]),
        (13, &"missing".into())
    );
    assert!(target(&found, &image)["recovery_point"].is_null());
    assert_eq!(found["volumes"][0]["is_selected"], true);
}

#[test]
fn a_state_that_cannot_be_read_does_not_hide_the_other_jobs() {
    let site = Site::new(fastrand::u64(..));
    site.cycle(&site.image_job(""), "state");
    let damaged = site.at("state/job-other.json");
    std::fs::write(&damaged, "{\"version\": 1, \"job\": \"other\"").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&damaged, mode).unwrap();
    let (code, found, said) = status(&site, &[]);
    assert_eq!((code, &found["job"]), (8, &"web".into()), "{said}");
    assert!(
        said.lines().count() == 1 && said.contains("job-other.json is damaged"),
        "{said}"
    );
    std::fs::write(&damaged, "{\"version\": 2, \"job\": \"other\"}").unwrap();
    let (code, _, said) = status(&site, &["other"]);
    assert!(
        code == 2 && said.contains("is of version 2"),
        "{code} {said}"
    );
    assert_eq!(status(&site, &["web"]).0, 0);
}
