//! `--bandwidth` and `--max-in-flight` hold for repositories, as what is written and as what is read; options go to the side that has
//! a use for them, and are refused where none has.

use std::time::{Duration, Instant};

use super::proxy::Proxy;
use super::*;
use crate::support::s3::S3Server;

const MIB: usize = 1 << 20;

/// A file that cannot be compressed.
fn random_image(folder: &Path, name: &str, bytes: usize) -> PathBuf {
    let path = folder.join(name);
    let content: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
        .take(bytes)
        .collect();
    fs::write(&path, content).unwrap();
    path
}

/// An S3 server behind a proxy that counts.
fn counted() -> (Objects, Proxy, Emulator) {
    let mut objects = Objects::s3();
    let proxy = Proxy::before(&objects.server.as_ref().unwrap().1);
    objects.front = Some(format!("http://{}", proxy.address));
    (objects, proxy, Emulator::start())
}

#[test]
fn bandwidth_limits_uploads_to_a_store_and_downloads_from_it() {
    let (objects, proxy, emulator) = counted();
    let image = random_image(emulator.folder.path(), "image.raw", 2 * MIB);
    let started = Instant::now();
    let args = [text(&image), "--volume", "v", "--bandwidth", "1MiB"];
    run(&mut objects.bring(&emulator, &args));
    let took = started.elapsed();
    assert!(took > Duration::from_millis(1800), "{took:?}");
    let sent = proxy.traffic();
    let all: usize = sent.up.iter().map(|(_, bytes)| bytes).sum();
    // Bodies are limited, headers are not.
    let most = sent.most_up_in_a_second();
    assert!(all > 2 * MIB && most < MIB + MIB / 4, "{all} {most}");
    let back = emulator.folder.path().join("back.raw");
    let started = Instant::now();
    let args = [text(&back), "--bandwidth", "1MiB"];
    run(&mut objects.take(&emulator, "latest", &args));
    let took = started.elapsed();
    assert!(took > Duration::from_millis(1800), "{took:?}");
    assert_same(&back, &image);
}

#[test]
fn bandwidth_can_be_less_than_a_block_a_second_where_ebs_has_no_part() {
    for objects in [Objects::s3(), Objects::folder()] {
        let emulator = Emulator::start();
        fs::create_dir_all(objects.files()).unwrap();
        let image = random_image(emulator.folder.path(), "image.raw", 64_000);
        let args = [text(&image), "--volume", "v", "--bandwidth", "64KB"];
        let started = Instant::now();
        run(&mut objects.bring(&emulator, &args));
        let took = started.elapsed();
        assert!(took > Duration::from_millis(850), "{took:?}");
        let back = emulator.folder.path().join("back.raw");
        let started = Instant::now();
        let args = [text(&back), "--bandwidth", "64KB"];
        run(&mut objects.take(&emulator, "latest", &args));
        let took = started.elapsed();
        assert!(took > Duration::from_millis(850), "{took:?}");
        assert_same(&back, &image);
        for args in [["snap-0a", text(&back)], [text(&image), "ebs:"]] {
            let args = [&args[..], &["--bandwidth", "64KB"]].concat();
            let (code, said) = ends(&mut objects.sync(&emulator, &args));
            assert!(code == 2 && said.contains("512KiB"), "{said}");
        }
        let args = [text(&image), text(&back), "--bandwidth", "1MiB"];
        let (code, said) = ends(&mut objects.sync(&emulator, &args));
        assert!(code == 2 && said.contains("--bandwidth"), "{said}");
    }
}

#[test]
fn requests_to_a_store_stay_within_max_in_flight() {
    let (objects, proxy, emulator) = counted();
    let image = random_image(emulator.folder.path(), "image.raw", 20 * MIB);
    proxy.hold(Duration::from_millis(20));
    let few = ["--max-in-flight", "2"];
    let args = [&[text(&image), "--volume", "v"], &few[..]].concat();
    run(&mut objects.bring(&emulator, &args));
    assert!(proxy.traffic().most <= 2);
    let one = format!("{}#latest", objects.url());
    let digest = |few: &[&str]| {
        let mut command = objects.ebsfs(&emulator, &["digest", &one]);
        run(command.args(few).args(objects.from()))
    };
    let whole = digest(&[]);
    assert!(proxy.traffic().most > 2);
    assert_eq!(digest(&few), whole);
    assert!(proxy.traffic().most <= 2);
    let back = emulator.folder.path().join("back.raw");
    let args = [&[text(&back)], &few[..]].concat();
    run(&mut objects.take(&emulator, "latest", &args));
    assert!(proxy.traffic().most <= 2);
    let mut verify = objects.ebsfs(&emulator, &["verify", text(&back), &one, "--fetch"]);
    run(verify.args(few).args(objects.from()));
    assert!(proxy.traffic().most <= 2);
    let check = ["check", "--read-data", "--max-in-flight", "1"];
    run(&mut objects.look(&emulator, &check));
    assert_eq!(proxy.traffic().most, 1);
    let mut mount = objects.ebsfs(&emulator, &["mount"]);
    mount.args(few);
    let mount = objects.mount_by(mount);
    let snapshot = objects.look_json(&emulator, &["ls"])[0]["snapshot"].clone();
    proxy.traffic();
    assert_same(&mount.disk(snapshot.as_str().unwrap()), &image);
    assert!(proxy.traffic().most <= 2);
}

#[test]
fn options_of_s3_go_to_the_sides_that_are_s3() {
    let emulator = Emulator::start();
    let image = random_image(emulator.folder.path(), "image.raw", 1000);
    let folder = Objects::folder();
    fs::create_dir_all(folder.files()).unwrap();
    run(&mut folder.bring(&emulator, &[text(&image), "--volume", "v"]));
    let source = format!("{}#latest", folder.url());
    let server = S3Server::start();
    let s3 = |args: &[&str]| {
        let mut command = folder.ebsfs(&emulator, args);
        command.args(["--s3-endpoint", &server.url]);
        command
    };
    run(&mut s3(&["repository", "init", "s3://bucket/p"]));
    // To S3: encryption and version are the target's.
    let mut command = s3(&["sync", "--progress", "none", &source, "s3://bucket/p"]);
    server.seen();
    run(command
        .args(["--sse", "AES256", "--list-version", "1", "--state-dir"])
        .arg(folder.folder.path()));
    let seen = server.seen();
    let mut puts = seen.iter().filter(|request| request.method == "PUT");
    assert!(puts.all(|put| put.header("x-amz-server-side-encryption") == Some("AES256")));
    assert!(seen.iter().any(|request| request.method == "PUT"));
    let mut lists = seen.iter().filter(|request| request.is_list());
    assert!(lists.all(|list| !list.query.contains_key("list-type")));
    // A target's own version goes before that of the source.
    let other = "s3://bucket/q";
    run(&mut s3(&["repository", "init", other]));
    server.seen();
    let mut command = s3(&["sync", "--progress", "none", "s3://bucket/p#latest", other]);
    command.args([
        "--list-version",
        "1",
        "--to-list-version",
        "2",
        "--storage-class",
        "STANDARD_IA",
    ]);
    run(command.arg("--state-dir").arg(folder.folder.path()));
    for request in server.seen() {
        let is_target = request.key.starts_with("q/")
            || request
                .query
                .get("prefix")
                .is_some_and(|prefix| prefix.starts_with("q/"));
        if request.is_list() {
            assert_eq!(
                request.query.contains_key("list-type"),
                is_target,
                "{request:?}"
            );
        }
        let class = request.header("x-amz-storage-class");
        assert_eq!(
            class.is_some(),
            request.method == "PUT" && is_target,
            "{request:?}"
        );
    }
    // From S3 into a folder: how the source is asked, and nothing of new objects.
    let back = folder.url();
    let mut command = s3(&["sync", "--progress", "none", "s3://bucket/p#latest", &back]);
    run(command
        .args(["--bucket-style", "path", "--state-dir"])
        .arg(folder.folder.path()));
    for (source, options) in [
        ("s3://bucket/p#latest", ["--sse", "AES256"]),
        ("s3://bucket/p#latest", ["--storage-class", "STANDARD_IA"]),
        ("s3://bucket/p#latest", ["--to-list-version", "1"]),
        ("s3://bucket/p#latest", ["--to-bucket-style", "path"]),
        (&source, ["--list-version", "1"]),
        (&source, ["--bucket-style", "path"]),
    ] {
        let (code, said) = ends(s3(&["sync", source, &back]).args(options));
        assert!(code == 2 && said.contains(options[0]), "{options:?} {said}");
    }
    let out = emulator.folder.path().join("out.raw");
    let args = ["sync", text(&image), text(&out), "--lease", "1h"];
    let (code, said) = ends(&mut s3(&args));
    assert!(code == 2 && said.contains("--lease"), "{said}");
}

#[test]
fn verbs_have_no_option_that_does_nothing() {
    let objects = Objects::folder();
    let emulator = Emulator::start();
    for verb in [
        "init", "ls", "show", "stats", "prune", "pin", "unpin", "rm", "undelete",
    ] {
        let (code, said) = ends(&mut objects.look(&emulator, &[verb, "--lease", "1h"]));
        assert!(
            code == 2 && said.contains("unexpected argument"),
            "{verb}: {said}"
        );
    }
    for verb in ["ls", "show", "stats"] {
        for option in [["--sse", "AES256"], ["--storage-class", "STANDARD_IA"]] {
            let (code, said) = ends(&mut objects.look(&emulator, &[&[verb], &option[..]].concat()));
            assert!(
                code == 2 && said.contains("unexpected argument"),
                "{verb}: {said}"
            );
        }
    }
    let (code, said) = ends(&mut objects.look(&emulator, &["check", "--lease", "1h"]));
    assert!(code == 2 && said.contains("--repair"), "{said}");
}

#[test]
fn a_check_shows_its_phase_and_json_stays_alone_on_stdout() {
    let objects = Objects::folder();
    let emulator = Emulator::start();
    let image = random_image(emulator.folder.path(), "image.raw", 2 * MIB);
    let made = {
        let url = format!("file://{}", objects.files().display());
        let made = run(Command::new(EBSFS).args(["repository", "init", "--json", &url]));
        serde_json::from_str::<Value>(&made).unwrap()
    };
    assert!(made["id"].is_string());
    run(&mut objects.bring(&emulator, &[text(&image), "--volume", "v"]));
    let check = ["check", "--read-data", "--json", "--bandwidth", "1MiB"];
    let child = objects
        .look(&emulator, &check)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(1200));
    sh(&format!("kill -USR1 {}", child.id()));
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("reading packs: "), "{said}");
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(checked["read_packs"], checked["packs"]);
    for (verb, phase) in [
        (&["stats", "--json"][..], "starting"),
        (&["prune", "--json"], "starting"),
        (&["check", "--json"], "starting"),
    ] {
        let mut command = objects.look(&emulator, verb);
        let output = command.args(["--progress", "bar"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said} {phase}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap();
    }
    let one = format!("{}#latest", objects.url());
    for (verb, done) in [("pin", "pinned"), ("unpin", "unpinned"), ("rm", "removed")] {
        let said = run(&mut objects.ebsfs(&emulator, &["repository", verb, "--json", &one]));
        let said: Value = serde_json::from_str(&said).unwrap();
        assert!(said[done].is_string(), "{said}");
    }
}
