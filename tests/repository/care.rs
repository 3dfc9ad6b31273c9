//! check, prune, rm: damage is found and named, garbage goes when its time has come, and nothing else does.

use super::*;

/// A repository of three snapshots of one volume.
pub(super) fn three(objects: &Objects) -> Chain {
    let chain = Chain::new();
    for id in &chain.snapshots[..3] {
        run(&mut objects.bring(&chain.emulator, &[id, "--base", "auto"]));
    }
    chain
}

/// What is in a manifest: JSON between a header of 32 bytes and a SHA-256.
pub(super) fn manifest_at(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap();
    serde_json::from_slice(&bytes[32..bytes.len() - 32]).unwrap()
}

pub(super) fn damaged(objects: &Objects, emulator: &Emulator, args: &[&str]) -> Vec<Value> {
    let mut command = objects.look(emulator, &[&["check"], args, &["--json"]].concat());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(8));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    shown["damages"].as_array().unwrap().clone()
}

#[test]
fn damage_is_found_and_the_snapshots_that_suffer_are_named_and_no_wrong_byte_is_read() {
    let objects = Objects::folder();
    let chain = three(&objects);
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let folder = tempfile::tempdir().unwrap();
    let keep = folder.path().join("keep");
    let files = objects.files();
    sh(&format!("cp -a {} {}", files.display(), keep.display()));
    let restore = || {
        sh(&format!(
            "rm -rf {0} && cp -a {1} {0}",
            files.display(),
            keep.display()
        ))
    };
    let names = |damage: &Value| damage["snapshots"].to_string();

    // A flipped byte in the largest pack. Which snapshots need its block depends on how large packs became.
    let sizes = |path: &PathBuf| fs::metadata(path).unwrap().len();
    let pack = objects
        .objects("packs")
        .into_iter()
        .max_by_key(sizes)
        .unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, &bytes).unwrap();
    assert_eq!(
        objects.look_json(emulator, &["check"])["damages"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    let found = damaged(&objects, emulator, &["--read-data"]);
    assert_eq!(found.len(), 1, "{found:?}");
    let image = folder.path().join("image.raw");
    let mount = objects.mount(emulator);
    let mut suffering = 0;
    for id in &ids[..3] {
        let image = folder.path().join(format!("{id}.raw"));
        let (code, said) = ends(&mut objects.take(emulator, id, &[text(&image)]));
        if !names(&found[0]).contains(&**id) {
            assert_eq!(code, 0, "{said}");
            continue;
        }
        suffering += 1;
        assert_eq!(code, 8, "{said}");
        assert!(said.contains("is damaged") && !image.exists(), "{said}");
        let read = fs::read(mount.disk(id)).unwrap_err();
        assert_eq!(read.raw_os_error(), Some(libc::EIO));
    }
    assert!(suffering > 0, "{found:?}");
    drop(mount);
    restore();

    // A pack that is gone.
    fs::remove_file(&pack).unwrap();
    let found = damaged(&objects, emulator, &[]);
    assert!(
        found[0]["what"].to_string().contains("missing") && names(&found[0]) != "[]",
        "{found:?}"
    );
    restore();

    // A segment cut short: of one snapshot, for each has changed it.
    let segment = objects.objects("segments")[0].clone();
    let bytes = fs::read(&segment).unwrap();
    fs::write(&segment, &bytes[..bytes.len() - 9]).unwrap();
    let found = damaged(&objects, emulator, &[]);
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0]["snapshots"].as_array().unwrap().len(),
        1,
        "{found:?}"
    );
    restore();

    // A manifest that is damaged: the others are there.
    let manifest = objects.objects("snapshots")[1].clone();
    let mut bytes = fs::read(&manifest).unwrap();
    bytes[30] ^= 1;
    fs::write(&manifest, &bytes).unwrap();
    let found = damaged(&objects, emulator, &[]);
    assert!(
        found[0]["object"].to_string().contains("snapshots/"),
        "{found:?}"
    );
    let (code, _) = ends(&mut objects.look(emulator, &["prune"]));
    assert_eq!(code, 8, "nothing is swept while a manifest cannot be read");
    let (code, said) = ends(&mut objects.take(emulator, &ids[1], &[text(&image)]));
    assert!(code == 8 && said.contains("damaged"), "{said}");
    restore();

    // A manifest that is missing is a snapshot that is not there, and named; what it alone needs is unused.
    fs::remove_file(&manifest).unwrap();
    let check = ["check", "--read-data", "--json"];
    let output = objects.look(emulator, &check).output().unwrap();
    assert_eq!(output.status.code(), Some(11));
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (
            &checked["snapshots"],
            checked["missing"].as_array().unwrap().len()
        ),
        (&2.into(), 1)
    );
    assert!(checked["unused"].as_u64().unwrap() > 0);
    // No repository at all.
    fs::remove_file(files.join("ebsfs-repository.json")).unwrap();
    let (code, said) = ends(&mut objects.look(emulator, &["ls"]));
    assert!(code == 3 && said.contains("is no repository"), "{said}");
}

#[test]
fn prune_removes_old_snapshots_and_sweeps_unneeded_data_after_the_grace() {
    for objects in [Objects::folder(), Objects::s3()] {
        let chain = three(&objects);
        let (emulator, ids) = (&chain.emulator, &chain.snapshots);
        let all = objects.objects("packs").len() + objects.objects("segments").len();
        let dry = objects.look_json(
            emulator,
            &["prune", "--keep", "1", "--grace", "0s", "--dry-run"],
        );
        assert_eq!(dry["removed"].as_array().unwrap().len(), 2);
        assert_eq!(objects.objects("snapshots").len(), 3);
        // Within the grace nothing is deleted, and a removed snapshot can be copied again.
        let shown = objects.look_json(emulator, &["prune", "--keep", "1"]);
        assert_eq!(
            (&shown["swept"], objects.objects("removed").len()),
            (&0.into(), 2)
        );
        assert_eq!(
            objects.objects("packs").len() + objects.objects("segments").len(),
            all
        );
        let unused = objects.look_json(emulator, &["check"])["unused"].clone();
        assert!(unused.as_u64() >= Some(2), "{unused}");
        std::thread::sleep(std::time::Duration::from_millis(2100));
        let shown = objects.look_json(emulator, &["prune", "--grace", "1s"]);
        // The segments of two, and perhaps a pack whose blocks the third has all rewritten.
        assert_eq!(shown["swept"], unused, "{shown}");
        assert!(objects.objects("removed").is_empty());
        let checked = objects.look_json(emulator, &["check", "--read-data"]);
        assert_eq!(
            (&checked["snapshots"], &checked["unused"]),
            (&1.into(), &0.into())
        );
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image.raw");
        run(&mut objects.take(emulator, "latest", &[text(&image)]));
        assert_same(&image, &chain.image(2));
        // The last one goes by name, and with it all that there is.
        objects.remove(emulator, &ids[2]);
        std::thread::sleep(std::time::Duration::from_millis(2100));
        run(&mut objects.look(emulator, &["prune", "--grace", "1s"]));
        assert_eq!(
            objects.objects("packs").len() + objects.objects("segments").len(),
            0
        );
    }
}

#[test]
fn prune_keeps_the_data_of_an_unfinished_run_until_it_is_forgotten() {
    let objects = Objects::folder();
    let emulator = crate::sync::large_pair();
    run(&mut objects.bring(&emulator, &["snap-0a"]));
    emulator.set("latency_ms=600");
    let mut child = objects
        .bring(
            &emulator,
            &["snap-0b", "--base", "snap-0a", "--max-in-flight", "8"],
        )
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("packs that no manifest leads to", || {
        objects.look_json(&emulator, &["check"])["unused"].as_u64() > Some(0)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    emulator.set("latency_ms=0");
    // Its parent goes, and garbage is swept without any grace: it goes on all the same.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let all = ["prune", "--keep", "0", "--remove-all", "--grace", "0s"];
    let output = objects
        .look(&emulator, &[&all[..], &["--json"]].concat())
        .output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(10), "it may be alive");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&shown["swept"], shown["runs"].as_array().unwrap().len()),
        (&0.into(), 1)
    );
    run(&mut objects.bring(&emulator, &["snap-0b", "--base", "snap-0a"]));
    let checked = objects.look_json(&emulator, &["check", "--read-data"]);
    assert_eq!(
        (&checked["snapshots"], &checked["runs"]),
        (&1.into(), &0.into())
    );
    let (mount, disk) = crate::sync::mounted(&emulator, "snap-0b");
    let replica = objects.mount(&emulator);
    assert_same(&replica.disk("snap-0b"), &disk);
    drop((mount, replica));
    // A run that is forgotten is not resumed: all of it is copied, without a question.
    emulator.set("latency_ms=20");
    run(&mut objects.bring(&emulator, &["snap-0a"]));
    run(&mut objects.look(&emulator, &all));
    emulator.reset();
    let mut child = objects
        .bring(&emulator, &["snap-0a", "--max-in-flight", "4"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("blocks", || emulator.gets() > 300);
    child.kill().unwrap();
    child.wait().unwrap();
    let runs = objects.look_json(&emulator, &["ls", "--runs"]);
    let id = runs[0]["id"].as_str().unwrap().to_owned();
    run(&mut objects.look(&emulator, &["prune", "--grace", "0s", "--forget-run", &id]));
    assert!(objects.objects("packs").is_empty());
    emulator.reset();
    run(&mut objects.bring(&emulator, &["snap-0a"]));
    let gets = emulator.gets();
    let (mount, disk) = crate::sync::mounted(&emulator, "snap-0a");
    assert_eq!(gets, crate::sync::held(&disk), "nothing is counted on");
    let replica = objects.mount(&emulator);
    assert_same(&replica.disk("snap-0a"), &disk);
    drop((mount, replica));
    let checked = objects.look_json(&emulator, &["check", "--read-data"]);
    assert_eq!(
        (&checked["unused"], &checked["runs"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn a_snapshot_copied_and_removed_twice_leaves_two_tombstones_and_then_nothing() {
    let objects = Objects::folder();
    let (emulator, id) = three_blocks();
    for times in 1..=2 {
        run(&mut objects.bring(&emulator, &[&id]));
        objects.remove(&emulator, &id);
        // Two runs write no object of the same name, though their blocks are the same.
        assert_eq!(objects.objects("removed").len(), times);
        assert!(objects.objects("packs").len() >= times);
        assert_eq!(objects.objects("segments").len(), times);
    }
    let (code, said) = ends(&mut objects.take(&emulator, &id, &["/nonexistent/image"]));
    assert!(code == 3 && said.contains("has no snapshot"), "{said}");
    std::thread::sleep(std::time::Duration::from_millis(20));
    run(&mut objects.look(&emulator, &["prune", "--grace", "0s"]));
    for folder in ["removed", "packs", "segments", "snapshots"] {
        assert!(objects.objects(folder).is_empty(), "{folder}");
    }
}

#[test]
fn prune_ignores_foreign_objects_and_a_run_does_not_rely_on_objects_being_removed() {
    let objects = Objects::folder();
    let chain = three(&objects);
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let files = objects.files();
    let prune = ["prune", "--grace", "0s"];
    // A manifest of another name than ebsfs gives is none. A foreign file in the folder stays.
    let odd = files.join("snapshots/20270101-vol-0a");
    fs::copy(&objects.objects("snapshots")[0], &odd).unwrap();
    let (code, said) = ends(&mut objects.look(emulator, &prune));
    assert!(code == 0 && said.contains("ignoring 1 objects"), "{said}");
    // Under another manifest's name it is damaged, and can be removed.
    let name = objects.objects("snapshots")[0].with_file_name("20270101T000000000Z.vol-0a.snap-0f");
    fs::rename(&odd, &name).unwrap();
    let (code, said) = ends(&mut objects.look(emulator, &prune));
    assert!(code == 8 && said.contains("is the manifest of"), "{said}");
    fs::write(&name, "damaged").unwrap();
    objects.remove(emulator, "snap-0f");
    let (kept, left) = (files.join("packs/notes#1.txt"), files.join("packs/abc#1"));
    for file in [&kept, &left] {
        fs::write(file, "x").unwrap();
        sh(&format!("touch -d '1 hour ago' {}", text(file)));
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
    let shown = objects.look_json(emulator, &prune);
    assert_eq!(
        (&shown["swept"], kept.exists(), left.exists()),
        (&0.into(), true, false)
    );
    let one = format!("{}#snap-0f", objects.url());
    let (code, said) = ends(&mut objects.ebsfs(emulator, &["repository", "ls", &one]));
    assert!(code == 2 && said.contains("leave out #snap-0f"), "{said}");
    // Killed between the two steps of a removal: the next snapshot is brought without it.
    let last = objects.objects("snapshots")[2].clone();
    let manifest = manifest_at(&last);
    let aside = format!(
        "{}.{}",
        last.file_name().unwrap().to_str().unwrap(),
        manifest["run"].as_str().unwrap()
    );
    fs::create_dir_all(files.join("removed")).unwrap();
    fs::copy(&last, files.join("removed").join(aside)).unwrap();
    run(&mut objects.bring(emulator, &[&ids[4], "--base", "auto"]));
    run(&mut objects.look(emulator, &["prune", "--keep", "1", "--grace", "0s"]));
    std::thread::sleep(std::time::Duration::from_millis(20));
    run(&mut objects.look(emulator, &prune));
    let checked = objects.look_json(emulator, &["check", "--read-data"]);
    assert_eq!(
        (&checked["snapshots"], &checked["unused"]),
        (&1.into(), &0.into())
    );
    let mount = objects.mount(emulator);
    assert_same(&mount.disk(&ids[4]), &chain.image(4));
    let (code, said) = ends(&mut objects.bring(emulator, &[&ids[4], "--restart"]));
    assert!(
        code == 11 && said.contains("remove it first: ebsfs repository rm"),
        "{said}"
    );
}
