//! What a run prints and where, what it takes as a source, and where it keeps its state.

use std::os::unix::fs::FileExt;

use super::*;

/// stdout and stderr of a command that must succeed.
fn printed(command: &mut Command) -> (String, String) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    (String::from_utf8_lossy(&output.stdout).into_owned(), said)
}

#[test]
fn without_progress_nothing_is_printed_and_off_a_terminal_only_text_is() {
    let chain = Chain::new();
    let ids = &chain.snapshots;
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    for more in [
        &[&*ids[0]][..],
        &[&ids[0]],
        &[&ids[1], "--base", "auto", "--verify"],
        &[&ids[1], "--verify"],
    ] {
        let args = [more, &[text(&image)]].concat();
        let (out, said) = printed(&mut sync(&chain.emulator, &args));
        assert_eq!((out.as_str(), said.as_str()), ("", ""), "{args:?}");
    }
    let other = folder.path().join("other.raw");
    let mut command = chain.emulator.ebsfs(&["sync", &ids[0], text(&other)]);
    let (out, said) = printed(&mut command);
    assert_eq!(out, "");
    assert!(said.contains(text(&other)), "the plan: {said}");
    assert!(!said.contains('{'), "{said}");
}

#[test]
fn each_target_has_a_closing_record_on_stdout_if_json_is_asked_for() {
    let chain = Chain::new();
    let id = &chain.snapshots[0];
    let folder = tempfile::tempdir().unwrap();
    let (image, held, mine) = (
        folder.path().join("image.raw"),
        folder.path().join("held.raw"),
        folder.path().join("mine.raw"),
    );
    run(&mut sync(&chain.emulator, &[id, text(&held)]));
    fs::write(&mine, b"mine").unwrap();
    let args = [id, text(&image), text(&held), text(&mine), "--json"];
    let output = sync(&chain.emulator, &args).output().unwrap();
    assert_eq!(output.status.code(), Some(11));
    let said = String::from_utf8(output.stdout).unwrap();
    let mut records: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    records.sort_by_key(|record| record["target"].as_str().unwrap().to_owned());
    let shown: Vec<_> = records
        .iter()
        .map(|record| {
            (
                record["target"].as_str().unwrap(),
                record["status"].as_str().unwrap(),
            )
        })
        .collect();
    let wanted = [
        (text(&held), "already"),
        (text(&image), "done"),
        (text(&mine), "failed"),
    ];
    assert_eq!(shown, wanted, "{said}");
    assert!(
        records.iter().all(|record| record["version"].is_u64()),
        "{said}"
    );
    assert_eq!(records[2]["exit_code"], 11);
    assert!(records[1]["linear_sha256"].is_string(), "{said}");
    // A source that is not there has one too.
    let args = ["snap-0123456789abcdef0", text(&image), "--json"];
    let output = sync(&chain.emulator, &args).output().unwrap();
    let record: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (record["status"].as_str(), record["exit_code"].as_u64()),
        (Some("failed"), Some(3))
    );
}

#[test]
fn a_target_without_a_record_is_reported_in_one_line() {
    let emulator = Emulator::start();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    for target in [
        "ebs:",
        "ebs:eu-west-1",
        "s3://bucket/replicas",
        "file:///not/there",
        text(&image),
    ] {
        let said = status(&emulator, target);
        assert_eq!(said.lines().count(), 1, "{said}");
        let said = run(&mut sync(&emulator, &["--status", target, "--json"]));
        let shown: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(shown["target"], target, "{said}");
    }
}

#[test]
fn a_volume_or_a_tag_is_copied_by_its_newest_completed_snapshot() {
    let chain = Chain::new();
    let emulator = &chain.emulator;
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    emulator.post(&format!("snapshots/{}?state=error", chain.snapshots[4]));
    run(&mut sync(emulator, &["vol-0a", text(&image)]));
    assert_same(&image, &chain.image(3));
    let said = status(emulator, text(&image));
    assert_eq!(said, format!("holds {}\n", chain.snapshots[3]));
    let record = emulator
        .folder
        .path()
        .join(format!("snapshots/{}.json", chain.snapshots[1]));
    let mut shown: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    shown["tags"] = serde_json::json!({"Name": "the database"});
    fs::write(&record, shown.to_string()).unwrap();
    emulator.post("reload");
    run(&mut sync(
        emulator,
        &["tag:Name=the database", text(&image), "--base", "auto"],
    ));
    assert_same(&image, &chain.image(1));
    for (source, code) in [
        ("vol-0123456789abcdef0", 3),
        ("tag:Name=another", 3),
        ("vol-x y", 2),
    ] {
        let (ended, said) = ends(&mut sync(emulator, &[source, text(&image)]));
        assert_eq!(ended, code, "{said}");
        assert!(said.contains(source), "{said}");
    }
}

#[test]
fn a_pending_snapshot_is_waited_for_only_if_that_is_asked_for() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, [0, 7]);
    emulator.snapshot("vol-0a");
    writable(&volume).write_all_at(b"later", 0).unwrap();
    emulator.set("pending_ms=4000");
    let id = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let (code, said) = ends(&mut sync(&emulator, &[&id, text(&image)]));
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("--wait"), "{said}");
    let (code, said) = ends(&mut sync(&emulator, &[&id, text(&image), "--wait=1s"]));
    assert_eq!(code, 5, "{said}");
    assert!(!image.exists());
    run(&mut sync(&emulator, &["vol-0a", text(&image), "--wait"]));
    assert_same(&image, &volume);
}

#[test]
fn a_full_or_closed_stderr_changes_nothing() {
    let chain = Chain::new();
    let id = &chain.snapshots[0];
    let folder = tempfile::tempdir().unwrap();
    for (number, to) in ["2>/dev/full", "2>&-", "2> >(head -c 0)", "2>&1 | head -c 0"]
        .into_iter()
        .enumerate()
    {
        for form in ["auto", "bar", "json", "none"] {
            let image = folder.path().join(format!("{number}-{form}.raw"));
            let command = sync(&chain.emulator, &[]);
            let state = command.get_args().last().unwrap().to_str().unwrap();
            let line = format!(
                "sleep 0.1; {EBSFS} sync {id} {} -v --progress {form} --state-dir {state} {to}; exit ${{PIPESTATUS[0]}}",
                image.display()
            );
            let ended = chain
                .emulator
                .command("bash")
                .args(["-c", &line])
                .status()
                .unwrap();
            assert_eq!(ended.code(), Some(0), "{line}");
            assert_same(&image, &chain.image(0));
        }
        // An error keeps its exit code.
        let line = format!("{EBSFS} sync {id} /dev/null {to}; exit ${{PIPESTATUS[0]}}");
        let ended = chain
            .emulator
            .command("bash")
            .args(["-c", &line])
            .status()
            .unwrap();
        assert_eq!(ended.code(), Some(2), "{line}");
    }
}

#[test]
fn a_user_who_is_not_root_keeps_state_in_a_folder_of_their_own() {
    let chain = Chain::new();
    let id = &chain.snapshots[0];
    // For others to reach it.
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let (program, credentials) = (place("ebsfs"), place("credentials"));
    fs::copy(EBSFS, &program).unwrap();
    fs::copy(
        chain.emulator.folder.path().join("credentials"),
        &credentials,
    )
    .unwrap();
    sh(&format!(
        "chmod 755 {0} {0}/ebsfs; chmod 644 {0}/credentials; mkdir {0}/state {0}/home {0}/work; chown 65534:65534 {0}/*",
        folder.path().display()
    ));
    let repository = format!("file://{}/replicas", place("work").display());
    init_repository(&repository);
    sh(&format!("chown -R 65534:65534 {}", place("work").display()));
    let as_other = |home: &str, state: Option<&Path>, args: &[&str]| {
        let mut command = chain.emulator.command("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program)
            .args(["sync", "--progress", "none"])
            .args(args)
            .env("AWS_SHARED_CREDENTIALS_FILE", &credentials)
            .env("HOME", place(home))
            .env_remove("EBSFS_STATE_DIR")
            .env_remove("XDG_STATE_HOME");
        if let Some(state) = state {
            command.env("XDG_STATE_HOME", state);
        }
        command
    };
    let image = place("work/image.raw");
    run(&mut as_other(
        "home",
        Some(&place("state")),
        &[id, text(&image), &repository],
    ));
    assert_same(&image, &chain.image(0));
    assert!(place("state/ebsfs").is_dir());
    run(&mut as_other(
        "home",
        None,
        &[&chain.snapshots[1], &repository],
    ));
    assert!(place("home/.local/state/ebsfs").is_dir());
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(place("state/ebsfs")).unwrap());
    assert_eq!(mode & 0o077, 0, "for its owner alone");
}

#[test]
fn an_encrypted_snapshot_becomes_plaintext_only_with_a_word_or_a_warning() {
    let chain = Chain::new();
    let emulator = &chain.emulator;
    let other = Emulator::beside(emulator);
    let id = &chain.snapshots[0];
    emulator.post(&format!("snapshots/{id}?encrypted=1"));
    let folder = tempfile::tempdir().unwrap();
    let (image, report) = (
        folder.path().join("image.raw"),
        folder.path().join("report.json"),
    );
    let repository = format!("file://{}/replicas", folder.path().display());
    init_repository(&repository);
    let url = other.url();
    let ebs = ["ebs:", "--to-endpoint-url", &url];
    for target in [&[repository.as_str()][..], &ebs] {
        let args = [&[id.as_str()], target].concat();
        let (code, said) = ends(&mut sync(emulator, &args));
        assert_eq!(code, 11, "{said}");
        assert!(said.contains("--allow-plaintext"), "{said}");
    }
    assert!(other.made().is_empty());
    for target in [&[repository.as_str()][..], &ebs] {
        run(&mut sync(
            emulator,
            &[&[id.as_str(), "--allow-plaintext"], target].concat(),
        ));
    }
    let args = [id, text(&image), "--report", text(&report)];
    let (_, said) = printed(&mut sync(emulator, &args));
    assert_eq!(said.matches("is encrypted, and").count(), 1, "{said}");
    let shown: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    let warnings = shown["targets"][0]["warnings"].to_string();
    assert!(warnings.contains("is encrypted, and"), "{shown}");
    // Whether it is encrypted is not known: what would tell is said.
    emulator.set("deny=ec2:DescribeSnapshots");
    let unknown = folder.path().join("unknown.raw");
    let (_, said) = printed(&mut sync(emulator, &[&chain.snapshots[1], text(&unknown)]));
    assert!(said.contains("ec2:DescribeSnapshots"), "{said}");
}

#[test]
fn the_plan_of_a_comparison_says_how_much_is_read_and_how_long_that_takes() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let (first, second) = (&*chain.snapshots[0], &*chain.snapshots[1]);
    run(&mut sync(&chain.emulator, &[first, text(&image)]));
    let plan = |source: &str, more: &[&str]| {
        let args = [&[source, text(&image), "--base", "auto", "--dry-run"], more].concat();
        run(&mut sync(&chain.emulator, &args))
    };
    let json = |source: &str, more: &[&str]| {
        let said = plan(source, &[more, &["--json"]].concat());
        let value: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        value["plan"].clone()
    };
    // Nothing is compared where the mark proves it.
    assert!(json(second, &[])["compare_seconds"].is_null());
    run(Command::new("touch").arg(&image));
    chain.emulator.reset();
    let of_delta = json(second, &[]);
    let size = fs::metadata(&image).unwrap().len();
    assert_eq!(of_delta["compare_bytes"], size, "{of_delta}");
    assert!(
        of_delta["compare_seconds"].as_u64().unwrap() > 0,
        "{of_delta}"
    );
    let text = plan(second, &[]);
    assert!(
        text.contains("compare ") && text.contains(", about "),
        "{text}"
    );
    assert_eq!(chain.emulator.gets(), 0);
    assert_eq!(left_beside(&image), KEPT);
    // What `--verify` reads of a target that holds the source is in the plan too.
    run(&mut sync(&chain.emulator, &[first, super::text(&image)]));
    assert!(
        json(first, &["--verify"])["compare_seconds"]
            .as_u64()
            .unwrap()
            > 0
    );
}
