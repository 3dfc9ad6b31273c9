//! Servers that stop, refuse or lose.

use std::time::Duration;

use super::*;
use crate::sync::{large_pair, mounted};

#[test]
fn a_short_outage_of_the_server_is_waited_out_and_a_long_one_is_an_error() {
    let mut objects = Objects::s3();
    let emulator = large_pair();
    let mut child = objects
        .bring(&emulator, &["snap-0a", "--max-in-flight", "8"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("blocks", || emulator.gets() > 200);
    let files = objects.files();
    let address = objects.stop();
    std::thread::sleep(Duration::from_secs(4));
    objects.serve(&address);
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let checked = objects.look_json(&emulator, &["check", "--read-data"]);
    assert_eq!(
        (&checked["snapshots"], &checked["damages"]),
        (&1.into(), &Value::Array(Vec::new()))
    );
    // For good.
    emulator.reset();
    child = objects
        .bring(
            &emulator,
            &["snap-0b", "--timeout", "3s", "--max-in-flight", "8"],
        )
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("blocks", || emulator.gets() > 200);
    let address = objects.stop();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("gave up"), "{said}");
    assert_eq!(
        said.lines()
            .filter(|line| line.starts_with("ebsfs:"))
            .count(),
        1,
        "{said}"
    );
    objects.serve(&address);
    let before = emulator.gets();
    run(&mut objects.bring(&emulator, &["snap-0b"]));
    assert!(emulator.gets() > before);
    let (mount, disk) = mounted(&emulator, "snap-0b");
    let replica = objects.mount(&emulator);
    assert_same(&replica.disk("snap-0b"), &disk);
    drop((mount, replica, files));
}

#[test]
fn a_refusal_of_the_store_is_one_clear_line() {
    let objects = Objects::s3();
    let (emulator, id) = three_blocks();
    let to = objects.to();
    let endpoint = &to[1];
    for (url, more, code, words) in [
        (
            "s3://nobucket/x",
            &["--to-profile", "store"][..],
            3,
            "make the bucket first",
        ),
        (
            "s3://bucket/x",
            &["--to-profile", "default"],
            4,
            "credentials",
        ),
        (
            "s3://bucket/x",
            &["--to-profile", "none"],
            4,
            "no AWS credentials",
        ),
        ("file://relative", &[], 2, "file:///FOLDER"),
        ("s3://", &[], 2, "names no bucket"),
    ] {
        let args = [
            &[&*id, url, "--to-endpoint-url", endpoint, "--timeout", "2s"],
            more,
        ]
        .concat();
        let (got, said) = ends(&mut objects.sync(&emulator, &args));
        assert_eq!(got, code, "{url}: {said}");
        assert!(said.contains(words), "{url}: {said}");
        assert_eq!(said.trim().lines().count(), 1, "{url}: {said}");
        assert!(!said.contains(SECRET), "{said}");
    }
}

#[test]
fn an_object_that_a_store_loses_after_it_was_read_back_is_found_by_check() {
    let objects = Objects::folder();
    let emulator = large_pair();
    emulator.reset();
    let child = objects
        .bring(&emulator, &["snap-0a", "--max-in-flight", "4"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // At most two are being put at once, so that the oldest of four has been read back.
    wait_for("four packs", || objects.objects("packs").len() >= 4);
    let made = |pack: &PathBuf| fs::metadata(pack).unwrap().modified().unwrap();
    let oldest = objects.objects("packs").into_iter().min_by_key(made);
    fs::remove_file(oldest.unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let (code, said) = ends(&mut objects.look(&emulator, &["check"]));
    assert!(code == 8 && said.contains("damaged or missing"), "{said}");
}

#[test]
fn a_run_with_damaged_files_publishes_nothing_and_restarts_on_request() {
    let objects = Objects::folder();
    let emulator = large_pair();
    emulator.set("latency_ms=20");
    let bring = ["snap-0a", "--max-in-flight", "8"];
    let mut child = objects
        .bring(&emulator, &bring)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("blocks", || emulator.gets() > 300);
    sh(&format!("kill -INT {}", child.id()));
    assert!(!child.wait().unwrap().success());
    emulator.set("latency_ms=0");
    let mut files = Vec::new();
    walk(&emulator.folder.path().join("state"), &mut files);
    let kept = |path: &&PathBuf| text(path).ends_with("-locations");
    let locations = files.iter().find(kept).unwrap();
    // One bit of each entry that there is.
    let mut bytes = fs::read(locations).unwrap();
    for entry in bytes.chunks_exact_mut(16) {
        entry[6] ^= 8;
    }
    fs::write(locations, bytes).unwrap();
    let (code, said) = ends(&mut objects.bring(&emulator, &bring));
    assert_eq!(code, 8, "{said}");
    assert!(said.contains("--restart"), "{said}");
    let checked = objects.look_json(&emulator, &["check", "--read-data"]);
    assert_eq!(checked["snapshots"], 0);
    run(&mut objects.bring(&emulator, &["snap-0a", "--restart"]));
    let (mount, disk) = mounted(&emulator, "snap-0a");
    let replica = objects.mount(&emulator);
    assert_same(&replica.disk("snap-0a"), &disk);
    drop((mount, replica));
}
