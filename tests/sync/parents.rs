//! Which snapshots a delta starts from: proven replicas, the newest that both sides have.

use super::evidence::sparse;
use super::*;

/// `ebsfs sync ARGS ebs:` into another account.
fn to_ebs(emulator: &Emulator, other: &Emulator, args: &[&str]) -> Command {
    let url = other.url();
    let to = ["ebs:", "--to-endpoint-url", &url];
    sync(emulator, &[args, &to].concat())
}

#[test]
fn a_snapshot_that_only_carries_the_tags_of_a_replica_is_no_parent() {
    let chain = Chain::new();
    let other = Emulator::beside(&chain.emulator);
    let ids = &chain.snapshots;
    run(&mut to_ebs(&chain.emulator, &other, &[&ids[0]]));
    let (real, _) = other.made().remove(0);
    // A volume that was made of the replica and written since, and its snapshot with all tags of the replica.
    let drifted = other.make_volume("vol-0d", 2048, [1, 2, 3]);
    let copied = other.snapshot("vol-0d");
    let record = |id: &str| other.folder.path().join(format!("snapshots/{id}.json"));
    let read =
        |id: &str| -> Value { serde_json::from_slice(&fs::read(record(id)).unwrap()).unwrap() };
    let mut forged = read(&copied);
    forged["tags"] = read(&real)["tags"].clone();
    assert_eq!(forged["tags"]["ebsfs:source"], ids[0].as_str());
    fs::write(record(&copied), forged.to_string()).unwrap();
    other.post("reload");
    // The replica is there too: it is the parent. Then only the forged one is.
    run(&mut to_ebs(
        &chain.emulator,
        &other,
        &[&ids[1], "--base", "auto"],
    ));
    let made = |ours: &str| {
        let mut made = other.made().into_iter().map(|(id, _)| id);
        made.rfind(|id| read(id)["tags"]["ebsfs:source"] == ours && *id != copied)
            .unwrap()
    };
    let (mount, disk) = mounted(&other, &made(&ids[1]));
    assert_same(&disk, &chain.image(1));
    drop(mount);
    for id in [real, made(&ids[1])] {
        other.post(&format!("snapshots/{id}?deleted=1"));
    }
    fs::remove_dir_all(chain.emulator.folder.path().join("state")).unwrap();
    let based = to_ebs(&chain.emulator, &other, &[&ids[2], "--base", &ids[0]]).output();
    assert_eq!(based.unwrap().status.code(), Some(11));
    run(&mut to_ebs(
        &chain.emulator,
        &other,
        &[&ids[2], "--base", "auto"],
    ));
    let (_mount, disk) = mounted(&other, &made(&ids[2]));
    assert_same(&disk, &chain.image(2));
    drop(drifted);
}

#[test]
fn the_same_command_to_an_account_makes_one_snapshot_and_a_key_allows_nightly_deltas() {
    let chain = Chain::new();
    let other = Emulator::beside(&chain.emulator);
    let ids = &chain.snapshots;
    let key = "arn:aws:kms:us-east-1:123456789012:key/mine";
    let nightly = |id: &str| {
        to_ebs(
            &chain.emulator,
            &other,
            &[id, "--base", "auto", "--kms-key", key],
        )
    };
    for (night, id) in ids.iter().take(3).enumerate() {
        chain.emulator.reset();
        for _ in 0..2 {
            run(&mut nightly(id));
        }
        assert_eq!(other.made().len(), night + 1, "one a night");
        if night > 0 {
            assert!(chain.emulator.gets() <= 24, "a delta");
        }
    }
    // Also on a machine that has no records of it.
    fs::remove_dir_all(chain.emulator.folder.path().join("state")).unwrap();
    run(&mut nightly(&ids[2]));
    assert_eq!(other.made().len(), 3);
    let said = run(&mut other.ebsfs(&["ls", "--json"]));
    let all: Value = serde_json::from_str(&said).unwrap();
    for snapshot in all.as_array().unwrap() {
        assert_eq!(snapshot["kms_key_id"], key, "{snapshot}");
    }
}

#[test]
fn a_base_deleted_at_aws_is_replaced_by_the_newest_common_one() {
    let chain = Chain::new();
    let emulator = &chain.emulator;
    let other = Emulator::beside(emulator);
    let ids = &chain.snapshots;
    let folder = tempfile::tempdir().unwrap();
    let (image, backing) = (folder.path().join("image.raw"), folder.path().join("disk"));
    sparse(&backing, 1);
    let device = Loop::over(&backing);
    let repository = format!("file://{}/replicas", folder.path().display());
    init_repository(&repository);
    for id in &ids[..2] {
        run(&mut to_ebs(emulator, &other, &[id, "--base", "auto"]));
        run(&mut sync(emulator, &[id, &repository, "--base", "auto"]));
    }
    run(&mut sync(emulator, &[&ids[1], text(&image)]));
    let named = [ids[1].as_str(), &device.0, "--overwrite", &device.0];
    run(&mut sync(emulator, &named));
    emulator.post(&format!("snapshots/{}?deleted=1", ids[1]));
    // 0..3: what 0..1 wrote and what was touched, but for the freed.
    let csv = chain.changes(0, 3, "csv");
    let written: u64 = csv
        .lines()
        .filter(|line| line.ends_with(",written"))
        .map(|line| line.split(',').nth(2).unwrap().parse::<u64>().unwrap() / BLOCK)
        .sum();
    assert!((20..40).contains(&written), "{csv}");
    emulator.reset();
    run(&mut to_ebs(emulator, &other, &[&ids[3], "--base", "auto"]));
    assert_eq!(emulator.gets(), written);
    let (newest, _) = other.made().pop().unwrap();
    let (_mount, disk) = mounted(&other, &newest);
    assert_same(&disk, &chain.image(3));
    emulator.reset();
    run(&mut sync(
        emulator,
        &[&ids[3], &repository, "--base", "auto"],
    ));
    assert_eq!(emulator.gets(), written);
    let restored = folder.path().join("restored.raw");
    run(&mut sync(
        emulator,
        &[&format!("{repository}#{}", ids[3]), text(&restored)],
    ));
    assert_same(&restored, &chain.image(3));
    // What holds one snapshot alone is copied whole, and right.
    for target in [text(&image), &device.0] {
        run(&mut sync(emulator, &[&ids[3], target, "--base", "auto"]));
        assert_same(Path::new(target), &chain.image(3));
    }
}
