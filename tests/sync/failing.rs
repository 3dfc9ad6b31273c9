//! Targets, services and networks that fail, and signals.

use super::*;

#[test]
fn a_target_that_fails_is_named_and_does_not_stop_the_others_and_can_be_resumed() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, 0..400);
    let id = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let small = Tmpfs::at(folder.path().join("small"), "50M");
    let (full, good) = (small.0.join("full.raw"), folder.path().join("good.raw"));
    let (code, said) = ends(&mut sync(&emulator, &[&id, text(&full), text(&good)]));
    let there = full.exists();
    small.resize("500M");
    let again = ends(&mut sync(&emulator, &[&id, text(&full)]));
    let same = full.exists() && fs::read(&full).unwrap() == fs::read(&volume).unwrap();
    assert_eq!(code, 9, "{said}");
    assert!(said.contains("full.raw"), "{said}");
    assert!(!there, "published half written");
    assert_same(&good, &volume);
    assert_eq!(again.0, 0, "{}", again.1);
    assert!(same);
}

#[test]
fn faults_while_syncing_change_nothing_and_a_lost_page_is_no_zeroes() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let ids = &chain.snapshots;
    chain.emulator.set(
        "error_5xx=0.02&reset=0.02&truncate=0.02&corrupt=0.02&empty_page=0.3&nulls=0.5&short_page=0.2&bare_last_page=1",
    );
    run(&mut sync(
        &chain.emulator,
        &[&ids[0], text(&image), "--verify"],
    ));
    assert_same(&image, &chain.image(0));
    run(&mut sync(
        &chain.emulator,
        &[&ids[4], text(&image), "--base", "auto", "--verify"],
    ));
    assert_same(&image, &chain.image(4));
    chain
        .emulator
        .set("error_5xx=0&reset=0&truncate=0&corrupt=0&empty_page=0&nulls=0&short_page=0");
    chain.emulator.set("null_list=1");
    let other = folder.path().join("other.raw");
    let (code, said) = ends(&mut sync(&chain.emulator, &[&ids[0], text(&other)]));
    assert_eq!(code, 8, "{said}");
    assert!(!other.exists() && left_beside(&other).is_empty());
}

#[test]
fn a_signal_stops_at_a_checkpoint_and_the_same_command_resumes() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let mut child = sync(&emulator, &["snap-0a", text(&image)])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("blocks", || emulator.gets() > 500);
    run(Command::new("kill").args(["-INT", &child.id().to_string()]));
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let before = emulator.gets();
    let said = self::status(&emulator, text(&image));
    let kept: u64 = said
        .lines()
        .find_map(|line| {
            line.strip_prefix("unfinished: snap-0a, ")?
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or_else(|| panic!("{said}"));
    assert_eq!(kept, before, "all that was fetched is kept: {said}");
    let (_mount, disk) = mounted(&emulator, "snap-0a");
    emulator.reset();
    run(&mut sync(&emulator, &["snap-0a", text(&image)]));
    assert_eq!(emulator.gets(), held(&disk) - before);
    assert_same(&image, &disk);
}

/// A tmpfs of its own, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn at(point: PathBuf, size: &str) -> Self {
        fs::create_dir(&point).unwrap();
        sh(&format!(
            "mount -t tmpfs -o size={size} tmpfs {}",
            point.display()
        ));
        Self(point)
    }

    fn resize(&self, size: &str) {
        sh(&format!(
            "mount -o remount,size={size} {}",
            self.0.display()
        ));
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_failed_device_is_named_and_the_same_command_resumes_after_repair() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, 0..400);
    let id = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    // Its backing file cannot grow: writes end in EIO.
    let small = Tmpfs::at(folder.path().join("small"), "50M");
    let file = small.0.join("disk");
    fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
    let device = Loop::over(&file);
    let (code, said) = ends(&mut sync(
        &emulator,
        &[&id, &device.0, "--overwrite", &device.0],
    ));
    // As the kernel passes it on.
    assert!([1, 9].contains(&code), "{code} {said}");
    assert!(said.contains(&device.0), "{said}");
    let shown = status(&emulator, &device.0);
    assert!(
        shown.starts_with(&format!("between something unknown and {id}: not usable")),
        "{shown}"
    );
    small.resize("1200M");
    run(&mut sync(&emulator, &[&id, &device.0, "--verify"]));
    assert_same(Path::new(&device.0), &volume);
    assert_eq!(status(&emulator, &device.0), format!("holds {id}\n"));
    drop(device);
}

#[test]
fn a_permission_revoked_during_a_sync_is_named_and_the_same_command_resumes() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let report = folder.path().join("report.json");
    let args = [
        "snap-0a",
        text(&image),
        "--report",
        text(&report),
        "--max-in-flight",
        "16",
    ];
    emulator.reset();
    let child = sync(&emulator, &args)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("blocks", || emulator.gets() > 600);
    emulator.set("deny=ebs:GetSnapshotBlock");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("ebs:GetSnapshotBlock"), "{said}");
    assert!(!image.exists());
    let shown: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!(shown["targets"][0]["status"], "failed");
    emulator.set("deny=");
    run(&mut sync(&emulator, &[&args[..], &["--verify"]].concat()));
    let gets = emulator.gets();
    let (_mount, disk) = mounted(&emulator, "snap-0a");
    assert_same(&image, &disk);
    // What was on its way when it ended was kept too; some were refused.
    assert!(gets < held(&disk) + 100, "{gets}");
    let shown: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    let target = &shown["targets"][0];
    assert_eq!(target["status"], "done");
    let blocks = target["blocks"].as_array().unwrap();
    assert_eq!(blocks.len() as u64, held(&disk));
    let (index, digest) = (
        blocks[7][0].as_u64().unwrap(),
        blocks[7][1].as_str().unwrap(),
    );
    let mut bytes = vec![0; BLOCK as usize];
    std::os::unix::fs::FileExt::read_exact_at(&open(&image), &mut bytes, index * BLOCK).unwrap();
    let block = folder.path().join("block");
    fs::write(&block, bytes).unwrap();
    assert_eq!(sha256(&block), digest);
}

#[test]
fn a_signal_while_an_image_is_read_back_ends_the_run_and_the_next_one_publishes_it() {
    let emulator = Emulator::start();
    let folder = tempfile::tempdir().unwrap();
    let (source, image) = (
        folder.path().join("source"),
        folder.path().join("image.raw"),
    );
    sh(&format!("head -c 800M /dev/urandom > {}", source.display()));
    let args = [text(&source), text(&image), "--digest", "--verify"];
    let mut child = sync(&emulator, &args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let whole = format!("unfinished: {}, 1600 of 1600 blocks", source.display());
    wait_for("the end of the copy", || {
        status(&emulator, text(&image)).contains(&whole)
    });
    run(Command::new("kill").args(["-TERM", &child.id().to_string()]));
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!image.exists());
    let said = run(&mut sync(&emulator, &args));
    assert!(said.starts_with(&sha256(&source)), "{said}");
    assert_same(&image, &source);
}

#[test]
fn stalls_and_tokens_that_expire_while_syncing_change_nothing() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let other = Emulator::beside(&emulator);
    let url = other.url();
    emulator.set("stall=0.003&latency_ms=20");
    let args = [
        "snap-0a",
        text(&image),
        "ebs:",
        "--to-endpoint-url",
        &url,
        "--max-in-flight",
        "16",
    ];
    let child = sync(&emulator, &args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("blocks", || emulator.gets() > 300);
    let lists = emulator.lists();
    emulator.post("expire-tokens");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(emulator.lists() > lists, "they were listed again");
    emulator.set("stall=0");
    let (_mount, disk) = mounted(&emulator, "snap-0a");
    assert_same(&image, &disk);
    let made = String::from_utf8(output.stdout).unwrap();
    let (_mount, copy) = mounted(&other, made.trim());
    assert_same(&copy, &disk);
}

#[test]
fn credentials_expired_during_a_sync_are_named_and_the_same_command_resumes_with_new_ones() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let args = ["snap-0a", text(&image), "--max-in-flight", "16"];
    let (id, secret) = emulator.keys();
    let with_session = |session: &str| {
        let mut command = sync(&emulator, &args);
        command
            .env("AWS_ACCESS_KEY_ID", &id)
            .env("AWS_SECRET_ACCESS_KEY", &secret)
            .env("AWS_SESSION_TOKEN", session);
        command
    };
    let child = with_session("first")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("blocks", || emulator.gets() > 300);
    emulator.set("expired_sessions=first");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("the credentials have expired"), "{said}");
    assert!(!image.exists());
    run(&mut with_session("second"));
    let gets = emulator.gets();
    let (_mount, disk) = mounted(&emulator, "snap-0a");
    assert_same(&image, &disk);
    assert!(gets < held(&disk) + 100, "{gets}");
}

#[test]
fn credentials_that_a_program_renews_in_the_middle_go_unnoticed() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let (given, program) = (folder.path().join("given"), folder.path().join("give"));
    let (id, secret) = emulator.keys();
    // Renewed in the last quarter of their life: after 3 s.
    let script = format!(
        "#!/bin/sh\necho >> {0}\nn=$(wc -l < {0})\n\
         echo \"{{\\\"Version\\\":1,\\\"AccessKeyId\\\":\\\"{id}\\\",\\\"SecretAccessKey\\\":\\\"{secret}\\\",\
         \\\"SessionToken\\\":\\\"session-$n\\\",\\\"Expiration\\\":\\\"$(date -u -d '+4 seconds' +%FT%TZ)\\\"}}\"\n",
        given.display()
    );
    fs::write(&program, script).unwrap();
    sh(&format!("chmod 700 {}", program.display()));
    let config = folder.path().join("config");
    let profile = format!("[default]\ncredential_process = {}\n", program.display());
    fs::write(&config, profile).unwrap();
    emulator.set("latency_ms=100");
    let child = sync(
        &emulator,
        &["snap-0a", text(&image), "--max-in-flight", "16"],
    )
    .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    .env("AWS_CONFIG_FILE", &config)
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let times = || fs::read_to_string(&given).map_or(0, |given| given.lines().count());
    wait_for("new credentials", || times() > 1);
    // Those signed with the old ones are answered for.
    std::thread::sleep(Duration::from_millis(500));
    emulator.set("expired_sessions=session-1");
    let before = emulator.gets();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(emulator.gets() > before, "it had ended before");
    let (_mount, disk) = mounted(&emulator, "snap-0a");
    assert_same(&image, &disk);
}

/// `ebsfs sync` with its state in a folder that holds `size` bytes.
fn sync_with_state(emulator: &Emulator, state: &Tmpfs, args: &[&str]) -> Command {
    let mut command = emulator.ebsfs(&["sync", "--progress", "none", "--state-dir"]);
    command.arg(&state.0).args(args);
    command
}

#[test]
fn a_full_copy_without_room_for_its_digests_warns_and_is_recorded_without_evidence() {
    let emulator = large_pair();
    emulator.set("latency_ms=0");
    let folder = tempfile::tempdir().unwrap();
    // The digests of 1 GiB take 16 pages. Record and checkpoint take a page each, and one more while they are replaced.
    let state = Tmpfs::at(folder.path().join("state"), "48K");
    let file = folder.path().join("disk");
    fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
    let device = Loop::over(&file);
    let report = folder.path().join("report.json");
    let (_first_mount, first) = mounted(&emulator, "snap-0a");
    let (_second_mount, second) = mounted(&emulator, "snap-0b");
    let sync = |args: &[&str]| {
        let mut command = sync_with_state(&emulator, &state, &[args[0], &device.0]);
        command.args(&args[1..]);
        command
    };
    emulator.reset();
    let copy = [
        "snap-0a",
        "--overwrite",
        &device.0,
        "--report",
        text(&report),
    ];
    let (code, said) = decides(&mut sync(&copy));
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("no room for the digests"), "{said}");
    assert_eq!(emulator.gets(), held(&first));
    assert_same(Path::new(&device.0), &first);
    let left: Vec<_> = fs::read_dir(&state.0)
        .unwrap()
        .map(|entry| entry.unwrap().path().extension().unwrap().to_owned())
        .collect();
    assert!(!left.iter().any(|name| name == "ebsfs-digests"), "{left:?}");
    let report: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    let target = &report["targets"][0];
    assert_eq!(target["status"], "done");
    let warning = target["warnings"].to_string();
    assert!(warning.contains("no room for the digests"), "{warning}");
    assert!(target.get("blocks").is_none() && target.get("linear_sha256").is_none());
    let status: Value = serde_json::from_str(&run(&mut sync(&["--status", "--json"]))).unwrap();
    let status = &status["status"];
    assert_eq!(status["content"]["holds"], "snap-0a", "{status}");
    assert_eq!(
        (&status["is_proven"], &status["has_digests"]),
        (&true.into(), &false.into())
    );

    // The mark proves what it holds, until something else writes it. Then nothing does.
    emulator.reset();
    let delta = ["snap-0b", "--base", "auto"];
    let (code, said) = decides(&mut sync(&delta));
    assert_eq!(code, 0, "{said}");
    let changed = emulator.gets();
    assert!(changed < held(&second), "{changed}");
    assert_same(Path::new(&device.0), &second);
    std::os::unix::fs::FileExt::write_all_at(&writable(Path::new(&device.0)), b"drill", 7).unwrap();
    let named = ["snap-0a", "--base", "snap-0b"];
    let (code, said) = decides(&mut sync(&named));
    assert_eq!(code, 11, "{said}");
    assert!(said.contains("--trust"), "{said}");
    // Without digests it is verified by the source itself.
    emulator.reset();
    let (code, said) = decides(&mut sync(&["snap-0a", "--base", "auto", "--verify"]));
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("copying all blocks"), "{said}");
    assert_eq!(emulator.gets(), 2 * held(&first));
    assert_same(Path::new(&device.0), &first);
}

#[test]
fn a_killed_copy_without_room_for_digests_becomes_whole() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let state = Tmpfs::at(folder.path().join("state"), "48K");
    let file = folder.path().join("disk");
    fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
    let device = Loop::over(&file);
    let args = ["snap-0a", &device.0, "--overwrite", &device.0];
    let kills = kill_until_done(|| sync_with_state(&emulator, &state, &args), 1500, || {});
    println!("{kills} kills");
    let (_mount, disk) = mounted(&emulator, "snap-0a");
    assert_same(Path::new(&device.0), &disk);
}
