//! New EBS snapshots, in another account: from snapshots, their changes and images.

use super::*;

/// `ebsfs sync` to a new snapshot in `other`; its id.
fn replicate(emulator: &Emulator, other: &Emulator, args: &[&str]) -> String {
    let url = other.url();
    let to = ["ebs:", "--to-endpoint-url", &url];
    let said = run(&mut sync(emulator, &[args, &to].concat()));
    said.lines().next().unwrap().to_owned()
}

fn refused(emulator: &Emulator, other: &Emulator, args: &[&str], words: &str) -> i32 {
    let url = other.url();
    let to = ["ebs:", "--to-endpoint-url", &url];
    let (code, said) = ends(&mut sync(emulator, &[args, &to].concat()));
    assert!(code != 0 && said.contains(words), "{code}: {said}");
    code
}

fn described(other: &Emulator, id: &str) -> Value {
    let said = run(&mut other.ebsfs(&["ls", "--json", id]));
    let all: Value = serde_json::from_str(&said).unwrap();
    all[0].clone()
}

fn assert_holds(other: &Emulator, id: &str, image: &Path) {
    let mount = other.mount(&[id]);
    assert_same(&mount.disk(id), image);
}

#[test]
fn a_chain_arrives_in_another_account_as_children_and_only_changed_blocks_are_put() {
    let chain = Chain::new();
    let other = Emulator::beside(&chain.emulator);
    let ids = &chain.snapshots;
    let first = replicate(&chain.emulator, &other, &[&ids[0], "--verify"]);
    assert_eq!(other.count("PutSnapshotBlock"), 50);
    assert_holds(&other, &first, &chain.image(0));
    let shown = described(&other, &first);
    assert_eq!(shown["tags"]["ebsfs:source"], ids[0].as_str());
    assert_eq!(shown["tags"]["ebsfs:volume"], "vol-0a");
    assert_eq!(shown["state"], "completed");
    for (base, head) in [(0, 1), (1, 2), (2, 3), (3, 4)] {
        chain.emulator.reset();
        other.reset();
        let base_arg = if head == 2 { &ids[base] } else { "auto" };
        let args = [
            ids[head].as_str(),
            "--base",
            base_arg,
            "--verify",
            "--tag",
            "a=b",
        ];
        let made = replicate(&chain.emulator, &other, &args);
        assert_holds(&other, &made, &chain.image(head));
        assert_eq!(described(&other, &made)["tags"]["a"], "b");
        let csv = chain.changes(base, head, "csv");
        let count = |what: &str, behind: u64| -> u64 {
            let lines = csv.lines().filter(|line| line.ends_with(what));
            let number = |line: &str, n: usize| {
                line.split(',').nth(n).unwrap().parse::<u64>().unwrap() / BLOCK
            };
            // What the volume has grown by needs no zeroes.
            lines
                .filter(|line| number(line, 1) < behind)
                .map(|line| number(line, 2))
                .sum()
        };
        let size = fs::metadata(chain.image(base)).unwrap().len() / BLOCK;
        let (written, zeroed) = (count(",written", u64::MAX), count(",zeroed", size));
        assert_eq!(chain.emulator.gets(), written, "{base}..{head}");
        assert_eq!(
            other.count("PutSnapshotBlock"),
            written + zeroed,
            "{base}..{head}"
        );
    }
    // Its parent is of another volume state: all that differs is put, and what only the parent holds is zeroed.
    let newest = other.made().last().unwrap().0.clone();
    let made = replicate(
        &chain.emulator,
        &other,
        &[&ids[3], "--parent", &newest, "--verify"],
    );
    let (_mount, disk) = mounted(&other, &made);
    let len = fs::metadata(chain.image(3)).unwrap().len();
    run(Command::new("cmp")
        .args(["-n", &len.to_string()])
        .args([&disk, &chain.image(3)]));
    sh(&format!(
        "cmp <(tail -c +{} {}) <(head -c 1G /dev/zero)",
        len + 1,
        disk.display()
    ));
}

#[test]
fn where_new_snapshots_are_encrypted_every_block_is_put_and_plaintext_has_to_be_allowed() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, [0, 7, 2047]);
    let plain = emulator.snapshot("vol-0a");
    let other = Emulator::beside(&emulator);
    other.set("encryption_by_default=true");
    let made = replicate(&emulator, &other, &[&plain, "--verify"]);
    assert_eq!(other.count("PutSnapshotBlock"), 2048);
    assert_eq!(described(&other, &made)["encrypted"], true);
    assert_holds(&other, &made, &volume);
    // StartSnapshot reports what could not be known before.
    other.set("deny=ec2:GetEbsEncryptionByDefault");
    other.reset();
    assert_eq!(replicate(&emulator, &other, &[&plain]), made);
    assert_eq!(
        other.count("PutSnapshotBlock"),
        0,
        "the same command twice makes one snapshot"
    );
    replicate(&emulator, &other, &[&plain, "--restart"]);
    assert_eq!(other.count("PutSnapshotBlock"), 2048);
    other.set("deny=&encryption_by_default=false");
    other.reset();
    let key = "arn:aws:kms:us-east-1:123456789012:key/mine";
    let made = replicate(&emulator, &other, &[&plain, "--kms-key", key]);
    assert_eq!(described(&other, &made)["kms_key_id"], key);
    assert_eq!(other.count("PutSnapshotBlock"), 2048);

    // From there back: an encrypted source.
    let back = Emulator::beside(&emulator);
    assert_eq!(refused(&other, &back, &[&made], "--allow-plaintext"), 11);
    assert!(back.made().is_empty());
    let plain = replicate(&other, &back, &[&made, "--allow-plaintext"]);
    assert_holds(&back, &plain, &volume);
    let again = replicate(&other, &back, &[&made, "--kms-key", key]);
    assert_holds(&back, &again, &volume);
}

#[test]
fn an_image_of_any_size_becomes_a_snapshot_and_comes_back() {
    let emulator = Emulator::start();
    let folder = tempfile::tempdir().unwrap();
    let image = emulator.make_volume("vol-0a", 100, [0, 3, 50]);
    fs::OpenOptions::new()
        .append(true)
        .open(&image)
        .and_then(|mut file| std::io::Write::write_all(&mut file, &[7; 1234]))
        .unwrap();
    let said = run(&mut sync(
        &emulator,
        &[text(&image), "ebs:", "--verify", "--digest"],
    ));
    let mut lines = said.lines();
    let (made, digest) = (lines.next().unwrap(), lines.next().unwrap());
    let shown = described(&emulator, made);
    assert_eq!(
        shown["tags"]["ebsfs:size"],
        (100 * BLOCK + 1234).to_string()
    );
    assert_eq!(shown["volume_size"], 1 << 30);
    let padded = folder.path().join("padded.raw");
    fs::copy(&image, &padded).unwrap();
    writable(&padded).set_len(1 << 30).unwrap();
    assert_eq!(digest.split(' ').next(), Some(sha256(&padded).as_str()));
    assert_holds(&emulator, made, &padded);
    let copy = folder.path().join("copy.raw");
    run(&mut sync(&emulator, &[made, text(&copy), "--verify"]));
    assert_same(&copy, &padded);
    // An image that was written, as a child: only the rest is there.
    writable(&image).set_len(3 * BLOCK).unwrap();
    let child = run(&mut sync(
        &emulator,
        &[text(&image), "ebs:", "--parent", made, "--verify"],
    ));
    writable(&padded).set_len(3 * BLOCK).unwrap();
    writable(&padded).set_len(1 << 30).unwrap();
    assert_holds(&emulator, child.trim(), &padded);
}

#[test]
fn a_parent_that_does_not_hold_the_base_is_refused_with_the_reason() {
    let chain = Chain::new();
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let other = Emulator::beside(emulator);
    assert_eq!(
        refused(
            emulator,
            &other,
            &[&ids[1], "--base", &ids[0]],
            "no completed snapshot"
        ),
        11
    );
    let first = replicate(emulator, &other, &[&ids[0]]);
    let wrong = [ids[2].as_str(), "--base", &ids[1], "--parent", &first];
    assert_eq!(
        refused(emulator, &other, &wrong, "is not proven to be a replica"),
        11
    );
    let nothing = [ids[2].as_str(), "--parent", "snap-0123456789abcdef0"];
    assert_eq!(refused(emulator, &other, &nothing, "does not exist"), 11);
    other.set("deny=ebs:StartSnapshot");
    assert_eq!(
        refused(emulator, &other, &[&ids[1]], "ebs:StartSnapshot"),
        4
    );
    // Nothing was begun, and the same command resumes.
    other.set("deny=ebs:PutSnapshotBlock");
    assert_eq!(
        refused(emulator, &other, &[&ids[1]], "ebs:PutSnapshotBlock"),
        4
    );
    assert!(
        status(emulator, "ebs:").contains("0 of 71 blocks"),
        "{}",
        status(emulator, "ebs:")
    );
    other.set("deny=");
    let begun = other.made().remove(1);
    assert_eq!(begun.1, "pending");
    let made = replicate(emulator, &other, &[&ids[1], "--verify"]);
    assert_eq!(made, begun.0);
    assert_holds(&other, &made, &chain.image(1));
    assert_eq!(other.made().len(), 2);
    // Another copy than the one that is unfinished is another snapshot.
    other.set("deny=ebs:PutSnapshotBlock");
    assert_eq!(
        refused(emulator, &other, &[&ids[4]], "ebs:PutSnapshotBlock"),
        4
    );
    other.set("deny=");
    let unfinished = other.made().remove(2).0;
    let made = replicate(emulator, &other, &[&ids[3], "--base", &ids[1], "--verify"]);
    assert_ne!(made, unfinished);
    assert_holds(&other, &made, &chain.image(3));
    assert_eq!(other.made()[2], (unfinished, "pending".to_owned()));
    assert_eq!(other.made().len(), 4);
    // auto, where the base is gone.
    emulator.set("deny=ebs:ListChangedBlocks");
    let auto = [ids[2].as_str(), "--base", "auto"];
    assert_eq!(refused(emulator, &other, &auto, "ebs:ListChangedBlocks"), 4);
    emulator.set("deny=");
    run(&mut emulator.ebsfs(&["sync", "--help"]));
}

#[test]
fn a_given_up_snapshot_is_reported_and_restart_starts_another() {
    let emulator = large_pair();
    let other = Emulator::beside(&emulator);
    let url = other.url();
    let args = ["snap-0a", "ebs:", "--to-endpoint-url", &url];
    let mut child = sync(&emulator, &args)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("blocks", || other.count("PutSnapshotBlock") > 600);
    run(Command::new("kill").args(["-INT", &child.id().to_string()]));
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let begun = other.made().remove(0);
    assert_eq!(begun.1, "pending");
    assert!(status(&emulator, "ebs:").contains(&begun.0));
    other.post(&format!("snapshots/{}?deleted=1", begun.0));
    let (code, said) = ends(&mut sync(&emulator, &args));
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("--restart"), "{said}");
    emulator.set("latency_ms=0");
    let said = run(&mut sync(
        &emulator,
        &[&args[..], &["--restart", "--verify"]].concat(),
    ));
    let (_mount, disk) = mounted(&emulator, "snap-0a");
    assert_holds(&other, said.trim(), &disk);
}

#[test]
fn an_unfinished_snapshot_is_resumed_only_with_the_same_request_and_in_time() {
    let emulator = large_pair();
    let key = "arn:aws:kms:us-east-1:123456789012:key/mine";
    let begin = |switches: &str| {
        let other = Emulator::beside(&emulator);
        other.set(&format!("deny=ebs:PutSnapshotBlock{switches}"));
        assert_eq!(
            refused(&emulator, &other, &["snap-0a"], "ebs:PutSnapshotBlock"),
            4
        );
        other.set("deny=");
        let begun = other.made().remove(0);
        assert_eq!(begun.1, "pending");
        (other, begun.0)
    };
    for (option, value, member) in [
        ("--kms-key", key, "kms_key_id"),
        ("--tag", "a=mine", "tags"),
        ("--description", "mine", "description"),
    ] {
        let (other, begun) = begin("");
        let made = replicate(&emulator, &other, &["snap-0a", option, value]);
        assert_ne!(made, begun);
        let shown = described(&other, &made)[member].to_string();
        assert!(shown.contains("mine"), "{shown}");
        let (_mount, disk) = mounted(&emulator, "snap-0a");
        assert_holds(&other, &made, &disk);
        // The stale one is left to EBS, and blocks no run.
        assert_eq!(
            other.made(),
            [
                (begun, "pending".to_owned()),
                (made, "completed".to_owned())
            ]
        );
    }
    // Not known everywhere yet: waited for.
    let (other, begun) = begin("&visible_ms=5000");
    let made = replicate(&emulator, &other, &["snap-0a"]);
    assert_eq!(made, begun);
    assert_eq!(other.made(), [(made, "completed".to_owned())]);
    // What StartSnapshot refused is nothing to resume.
    other.set("deny=ebs:StartSnapshot");
    assert_eq!(
        refused(&emulator, &other, &["snap-0b"], "ebs:StartSnapshot"),
        4
    );
    assert_eq!(
        status(&emulator, "ebs:"),
        "no unfinished run on this machine\n"
    );
    other.set("deny=");
    let made = replicate(&emulator, &other, &["snap-0b", "--kms-key", key]);
    assert_eq!(described(&other, &made)["encrypted"], true);
}

#[test]
fn a_possibly_encrypted_source_gets_a_warning_and_the_named_profile_is_used() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0, 7]);
    let id = emulator.snapshot("vol-0a");
    let other = Emulator::beside(&emulator);
    emulator.set("deny=ec2:DescribeSnapshots");
    let url = other.url();
    let to = [id.as_str(), "ebs:", "--to-endpoint-url", &url];
    let (code, said) = ends(&mut sync(&emulator, &to));
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("may be encrypted (ec2:DescribeSnapshots would tell)"),
        "{said}"
    );
    emulator.set("deny=");
    let credentials = emulator.folder.path().join("credentials");
    let mut text = fs::read_to_string(&credentials).unwrap();
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once('=').unwrap().1.trim().to_owned()
    };
    let keys = (value("aws_access_key_id"), value("aws_secret_access_key"));
    text += "\n[wrong]\naws_access_key_id = AKIAWRONG\naws_secret_access_key = wrong\n";
    fs::write(&credentials, text).unwrap();
    let to = [
        id.as_str(),
        "ebs:",
        "--to-endpoint-url",
        &url,
        "--to-profile",
        "wrong",
    ];
    let (code, said) = ends(
        sync(&emulator, &to)
            .env("AWS_ACCESS_KEY_ID", keys.0)
            .env("AWS_SECRET_ACCESS_KEY", keys.1),
    );
    assert_eq!(code, 4, "{said}");
    assert_eq!(other.made().len(), 1);
}

#[test]
fn a_replica_of_a_larger_volume_is_no_base_but_can_be_named_as_the_parent() {
    let chain = Chain::new();
    let other = Emulator::beside(&chain.emulator);
    let ids = &chain.snapshots;
    replicate(&chain.emulator, &other, &[&ids[4]]);
    let made = replicate(
        &chain.emulator,
        &other,
        &[&ids[1], "--base", "auto", "--verify"],
    );
    assert_holds(&other, &made, &chain.image(1));
    let larger = other.made().remove(0).0;
    let named = [ids[0].as_str(), "--parent", &larger, "--verify"];
    let made = replicate(&chain.emulator, &other, &named);
    let (_mount, disk) = mounted(&other, &made);
    let padded = chain.images.path().join("padded");
    fs::copy(chain.image(0), &padded).unwrap();
    writable(&padded).set_len(2 << 30).unwrap();
    assert_same(&disk, &padded);
}

#[test]
fn faults_of_both_services_change_nothing() {
    let chain = Chain::new();
    let other = Emulator::beside(&chain.emulator);
    let faults = "error_5xx=0.05&reset=0.05&truncate=0.05";
    chain
        .emulator
        .set(&format!("{faults}&corrupt=0.05&empty_page=0.3&nulls=0.5"));
    other.set(&format!(
        "{faults}&visible_ms=1500&complete_ms=1500&put_rps=200"
    ));
    let first = replicate(&chain.emulator, &other, &[&chain.snapshots[0]]);
    let second = replicate(
        &chain.emulator,
        &other,
        &[&chain.snapshots[4], "--base", "auto", "--verify"],
    );
    chain
        .emulator
        .set("error_5xx=0&reset=0&truncate=0&corrupt=0&empty_page=0");
    other.set("error_5xx=0&reset=0&truncate=0");
    assert_holds(&other, &first, &chain.image(0));
    assert_holds(&other, &second, &chain.image(4));
    assert_eq!(other.made().len(), 2);
}
