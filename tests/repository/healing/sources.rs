//! Sources of a repair that are elsewhere: snapshots of other repositories, in other stores, of other accounts.

use super::*;

/// The segment of one of the chain's snapshots.
fn segment_of(objects: &Objects, number: usize) -> PathBuf {
    let name = &manifest_at(&objects.objects("snapshots")[number])["segments"][0]["name"];
    let name = name.as_str().unwrap();
    let folder = objects.files().join("segments");
    folder.join(&name[..2]).join(name)
}

#[test]
fn a_repair_reads_a_snapshot_of_another_repository_with_credentials_and_endpoint_of_its_own() {
    let objects = Objects::folder();
    let chain = three(&objects);
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let other = Objects::s3();
    for id in &ids[..2] {
        run(&mut other.bring(emulator, &[id, "--base", "auto"]));
    }
    let (_, address) = other.server.as_ref().unwrap();
    let url = format!("http://{address}");
    let profile = ["--from-profile", "store", "--from-region", "us-east-1"];
    let options = [&profile[..], &["--from-endpoint-url", &url]].concat();
    let repair = |snapshot: &str, options: &[&str]| {
        let from = format!("{}#{snapshot}", other.url());
        let args = [&["--repair", "--from", &from], options].concat();
        check_exit(&objects, emulator, &args)
    };
    fs::remove_file(segment_of(&objects, 1)).unwrap();
    for pack in objects.objects("packs") {
        fs::remove_file(pack).unwrap();
    }
    // What cannot be opened changes nothing.
    let unknown = options
        .iter()
        .map(|option| option.replace("store", "other"));
    let unknown: Vec<String> = unknown.collect();
    let unknown: Vec<&str> = unknown.iter().map(String::as_str).collect();
    let (code, said) = repair(&ids[1], &unknown);
    assert!(code != 0 && said.contains("other"), "{code}: {said}");
    let (code, said) = repair("snap-0fedcba9876543210", &options);
    assert!(code == 3 && said.contains("has no snapshot"), "{said}");
    assert!(objects.objects("removed").is_empty());
    // The second snapshot has its own segment, and all blocks of the first but the three that it has overwritten.
    emulator.reset();
    let (code, said) = repair(&ids[1], &options);
    assert_eq!(code, 12, "{said}");
    assert_eq!(said.matches("3 blocks were not found").count(), 1, "{said}");
    assert_whole(&objects, &chain, 1..3);
    let (code, said) = repair(&ids[0], &options);
    assert_eq!(code, 0, "{said}");
    // Not a block comes from EBS.
    assert_eq!((emulator.gets(), emulator.lists()), (0, 0));
    assert_eq!(check_exit(&objects, emulator, &["--read-data"]).0, 0);
    assert_whole(&objects, &chain, 0..3);
}

#[test]
fn a_repair_reads_its_own_repository_and_a_newest_snapshot_by_name() {
    let objects = Objects::folder();
    let chain = three(&objects);
    let emulator = &chain.emulator;
    let copy = tempfile::tempdir().unwrap();
    let files = copy.path().join("copy");
    sh(&format!(
        "cp -a {} {}",
        text(&objects.files()),
        text(&files)
    ));
    fs::remove_file(segment_of(&objects, 2)).unwrap();
    // A damaged snapshot is no help to itself, and no harm.
    let itself = format!("{}#{}", objects.url(), chain.snapshots[2]);
    let (code, said) = check_exit(&objects, emulator, &["--repair", "--from", &itself]);
    assert_eq!(code, 12, "{said}");
    assert_eq!(check_exit(&objects, emulator, &["--read-data"]).0, 0);
    assert_whole(&objects, &chain, 0..2);
    let latest = format!("file://{}#latest", text(&files));
    let (code, said) = check_exit(&objects, emulator, &["--repair", "--from", &latest]);
    assert_eq!(code, 0, "{said}");
    assert_whole(&objects, &chain, 0..3);
    // Neither the repair nor the reader of its source stays on record.
    for folder in [objects.files(), files.clone()] {
        let mut left = Vec::new();
        walk(&folder.join("runs"), &mut left);
        left.retain(|path| !text(path).contains("-fence-"));
        assert!(left.is_empty(), "{left:?}");
    }
}
