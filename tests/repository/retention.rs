//! Volumes, retention, pins: what stays, what is refused, and what comes back.

use super::*;

/// `ebsfs repository VERB REPOSITORY#SNAPSHOT`.
fn one(objects: &Objects, emulator: &Emulator, verb: &[&str], snapshot: &str) -> Command {
    let mut command = objects.ebsfs(emulator, &["repository"]);
    command.args(verb);
    command.arg(format!("{}#{snapshot}", objects.url()));
    command.args(objects.from());
    command
}

fn snapshots(objects: &Objects, emulator: &Emulator) -> Vec<Value> {
    let listed = objects.look_json(emulator, &["ls"]);
    listed.as_array().unwrap().clone()
}

fn ids(objects: &Objects, emulator: &Emulator) -> Vec<String> {
    let listed = snapshots(objects, emulator);
    let ids = listed.iter().map(|one| one["snapshot"].as_str().unwrap());
    ids.map(str::to_owned).collect()
}

fn id_of(printed: &str) -> String {
    printed.trim().rsplit_once('#').unwrap().1.to_owned()
}

/// An image of random bytes.
fn image(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    sh(&format!("head -c 3M /dev/urandom > {}", path.display()));
    path
}

#[test]
fn a_volume_is_never_a_path_alone_and_latest_needs_one_where_there_are_several() {
    let (emulator, first) = three_blocks();
    let objects = Objects::folder();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.raw");
    run(&mut objects.bring(&emulator, &[&first]));
    run(&mut objects.take(&emulator, "latest", &[text(&out)]));
    let source = image(folder.path(), "source.raw");
    let by_path = id_of(&run(&mut objects.bring(&emulator, &[text(&source)])));
    let named = [text(&source), "--volume", "web"];
    let by_name = id_of(&run(&mut objects.bring(&emulator, &named)));
    let key = |id: &str| {
        let all = snapshots(&objects, &emulator);
        let one = all.iter().find(|one| one["snapshot"] == *id).unwrap();
        one["volume_key"].as_str().unwrap().to_owned()
    };
    assert_eq!((&*key(&first), &*key(&by_name)), ("vol-0a", "web"));
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    if machine.trim().len() == 32 {
        assert!(key(&by_path).starts_with("disk-"), "{}", key(&by_path));
        let digest = sh(&format!("printf %s {} | sha256sum", text(&source)));
        assert_ne!(key(&by_path), format!("disk-{}", &digest[..16]));
    }
    let (code, said) = ends(&mut objects.take(&emulator, "latest", &[text(&out)]));
    assert_eq!(code, 2, "{said}");
    for volume in [&*key(&first), &*key(&by_path), "web"] {
        assert!(said.contains(&format!("#{volume}")), "{said}");
    }
    // By its key; by its path where that means one volume.
    let restored = folder.path().join("restored.raw");
    run(&mut objects.take(&emulator, "web", &[text(&restored)]));
    assert_same(&restored, &source);
    let (code, said) = ends(&mut objects.take(&emulator, text(&source), &[text(&out)]));
    assert!(code == 2 && said.contains("several volumes"), "{said}");
    // The key stays with the snapshot in another repository.
    let other = Objects::folder();
    let copy = format!("{}#web", objects.url());
    run(&mut other.bring(&emulator, &[&copy, "--allow-plaintext"]));
    assert_eq!(snapshots(&other, &emulator)[0]["volume_key"], "web");
    let again = folder.path().join("again.raw");
    run(&mut other.take(&emulator, text(&source), &[text(&again)]));
    assert_same(&again, &source);
    // A name that is none, and one that no target takes.
    for (args, words) in [
        (
            vec![&*first, "--volume", "latest", &*other.url()],
            "another meaning",
        ),
        (
            vec![&*first, "--volume", "a/b", &*other.url()],
            "letters, digits",
        ),
        (
            vec![&*first, "--volume", "web", text(&out)],
            "cannot use --volume",
        ),
    ] {
        let (code, said) = ends(&mut objects.sync(&emulator, &args));
        assert!(code == 2 && said.contains(words), "{args:?}: {code} {said}");
    }
}

#[test]
fn a_snapshot_of_an_unknown_volume_is_announced_and_stays_until_a_person_removes_it() {
    let (emulator, first) = three_blocks();
    let (objects, other) = (Objects::folder(), Emulator::beside(&emulator));
    // What the direct APIs make has no volume.
    let url = other.url();
    let to_ebs = [
        &*first,
        "ebs:",
        "--to-endpoint-url",
        &url,
        "--to-profile",
        "default",
    ];
    let made = run(&mut objects.sync(&emulator, &to_ebs));
    let made = made.trim();
    let (code, said) = ends(&mut objects.bring(&other, &[made]));
    assert_eq!(code, 0, "{said}");
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("unknown"))
        .collect();
    assert!(
        lines.len() == 1 && lines[0].contains("--volume NAME"),
        "{said}"
    );
    assert_eq!(snapshots(&objects, &emulator)[0]["volume_key"], "unknown");
    assert!(run(&mut objects.look(&emulator, &["ls"])).contains("unknown"));
    let all = ["prune", "--keep", "0", "--remove-all"];
    let reported = run(&mut objects.look(&emulator, &all));
    assert!(
        reported.contains("1 snapshots stay: of unknown volumes"),
        "{reported}"
    );
    run(&mut one(&objects, &emulator, &["rm"], made));
    assert!(ids(&objects, &emulator).is_empty());
    let (_, said) = ends(&mut objects.bring(&other, &[made, "--volume", "vol-0a"]));
    assert!(!said.contains("unknown"), "{said}");
    assert_eq!(snapshots(&objects, &emulator)[0]["volume_key"], "vol-0a");
}

#[test]
fn prune_says_why_each_snapshot_stays_and_removes_the_rest() {
    let chain = Chain::new();
    let (emulator, all) = (&chain.emulator, &chain.snapshots[..3]);
    let objects = Objects::folder();
    let folder = tempfile::tempdir().unwrap();
    for id in all {
        run(&mut objects.bring(emulator, &[id, "--base", "auto"]));
    }
    let source = image(folder.path(), "source.raw");
    let web = [text(&source), "--volume", "web"];
    let web = id_of(&run(&mut objects.bring(emulator, &web)));
    run(&mut one(
        &objects,
        emulator,
        &["pin", "--note", "before the move"],
        &all[0],
    ));
    let pinned = snapshots(&objects, emulator);
    let pinned = pinned.iter().filter(|one| one["pinned"] == true);
    let pinned: Vec<&str> = pinned
        .map(|one| one["snapshot"].as_str().unwrap())
        .collect();
    assert_eq!(pinned, [&*all[0]]);
    let (code, said) = ends(&mut one(&objects, emulator, &["rm"], &all[0]));
    assert!(
        code == 11 && said.contains("ebsfs repository unpin '"),
        "{code} {said}"
    );
    // None of a volume would stay; vol-0a has a pinned one.
    for dry in [&[][..], &["--dry-run"]] {
        let none = [&["prune", "--keep", "0"], dry].concat();
        let (code, said) = ends(&mut objects.look(emulator, &none));
        assert!(code == 11 && said.contains("no snapshot of web"), "{said}");
        assert!(
            said.contains("--remove-all") && !said.contains("vol-0a"),
            "{said}"
        );
        assert_eq!(ids(&objects, emulator).len(), 4);
    }
    let dry = [
        "prune",
        "--keep-last",
        "1",
        "--keep-yearly",
        "1",
        "--dry-run",
    ];
    let table = run(&mut objects.look(emulator, &dry));
    let line = |id: &str| table.lines().find(|line| line.starts_with(id)).unwrap();
    assert!(line(&all[0]).ends_with("keep    pinned"), "{table}");
    assert!(line(&all[1]).ends_with("remove"), "{table}");
    assert!(line(&all[2]).contains("keep    last, yearly 20"), "{table}");
    assert!(table.contains("1 snapshots stay: pinned"), "{table}");
    let reported = objects.look_json(emulator, &dry);
    let decided = reported["snapshots"].as_array().unwrap();
    assert_eq!(decided.len(), 4, "{reported}");
    let of = |id: &str| decided.iter().find(|one| one["snapshot"] == *id).unwrap();
    assert_eq!(
        (&of(&all[1])["kept"], &of(&all[0])["reasons"][0]),
        (&false.into(), &"pinned".into())
    );
    assert_eq!(ids(&objects, emulator).len(), 4);
    // Narrowed to a volume, the others are counted.
    let narrow = ["prune", "--keep", "1", "--volume", "web"];
    let reported = run(&mut objects.look(emulator, &narrow));
    assert!(
        reported.contains("3 snapshots stay: not covered"),
        "{reported}"
    );
    for wrong in [
        &["prune", "--volume", "web"][..],
        &["prune", "--remove-all"],
    ] {
        let (code, said) = ends(&mut objects.look(emulator, wrong));
        assert!(code == 2 && said.contains("no --keep option"), "{said}");
    }
    run(&mut objects.look(emulator, &["prune", "--keep", "1"]));
    let mut left = [&*all[0], &*all[2], &*web];
    left.sort_unstable();
    let mut there = ids(&objects, emulator);
    there.sort();
    assert_eq!(there, left);
    // Unpinned it goes as any other.
    run(&mut one(&objects, emulator, &["unpin"], &all[0]));
    let (code, said) = ends(&mut one(&objects, emulator, &["unpin"], &all[0]));
    assert!(code == 3 && said.contains("it is not pinned"), "{said}");
    let none = ["prune", "--keep", "0", "--volume", "vol-0a", "--remove-all"];
    run(&mut objects.look(emulator, &none));
    assert_eq!(ids(&objects, emulator), [web]);
}

#[test]
fn undelete_restores_a_whole_snapshot_only_while_its_data_exists() {
    for objects in [Objects::folder(), Objects::s3()] {
        let chain = Chain::new();
        let (emulator, all) = (&chain.emulator, &chain.snapshots[..2]);
        let out = tempfile::tempdir().unwrap();
        for id in all {
            run(&mut objects.bring(emulator, &[id, "--base", "auto"]));
        }
        let undelete = |id: &str| one(&objects, emulator, &["undelete"], id);
        let (code, said) = ends(&mut undelete(&all[0]));
        assert!(code == 3 && said.contains("no removed snapshot"), "{said}");
        objects.remove(emulator, &all[0]);
        let tombstone = objects.objects("removed")[0].clone();
        let kept = fs::read(&tombstone).unwrap();
        run(&mut undelete(&all[0]));
        assert_eq!(ids(&objects, emulator), all);
        // The tombstone stays: a removal that is still under way could take the snapshot again.
        assert_eq!(fs::read(&tombstone).unwrap(), kept);
        let (code, said) = ends(&mut undelete(&all[0]));
        assert!(code == 2 && said.contains("or undeleted"), "{said}");
        let restored = out.path().join("restored.raw");
        run(&mut objects.take(emulator, &all[0], &[text(&restored)]));
        assert_same(&restored, &chain.image(0));
        objects.look_json(emulator, &["check", "--read-data"]);
        // Copied again since: that one stays.
        objects.remove(emulator, &all[0]);
        run(&mut objects.bring(emulator, &[&all[0]]));
        let (code, said) = ends(&mut undelete(&all[0]));
        assert!(
            code == 2 && said.contains("it was copied again since"),
            "{said}"
        );
        assert_eq!(ids(&objects, emulator), all);
        // A server remembers what it has served.
        if objects.server.is_some() {
            continue;
        }
        // Packs that it needs are not there any more: nothing comes back.
        objects.remove(emulator, &all[1]);
        let packs = objects.objects("packs");
        let newest = packs
            .iter()
            .max_by_key(|pack| fs::metadata(pack).unwrap().modified().unwrap());
        let both = objects.objects("packs").len();
        for pack in packs.iter().filter(|pack| Some(*pack) != newest) {
            fs::remove_file(pack).unwrap();
        }
        assert!(both > 1);
        let (code, said) = ends(&mut undelete(&all[1]));
        assert!(code == 3 && said.contains("was swept"), "{said}");
        assert_eq!(ids(&objects, emulator), all[..1]);
        assert_eq!(objects.objects("removed").len(), 3);
    }
}

#[test]
fn stats_count_each_block_once_and_runs_on_record_are_listed() {
    let chain = Chain::new();
    let (emulator, all) = (&chain.emulator, &chain.snapshots[..2]);
    let objects = Objects::folder();
    for id in all {
        run(&mut objects.bring(emulator, &[id, "--base", "auto"]));
    }
    let reported = objects.look_json(emulator, &["stats"]);
    let volume = &reported["volumes"]["vol-0a"];
    assert_eq!(
        (&volume["snapshots"], &volume["unique_blocks"]),
        (&2.into(), &74.into())
    );
    assert_eq!(volume["volume_bytes"], 1 << 30);
    assert_eq!(volume["all_held_bytes"], (50 + 71) * BLOCK);
    assert_eq!(volume["growth"].as_array().unwrap().len(), 2);
    assert_eq!(reported["total"]["unique_blocks"], 74);
    let checked = objects.look_json(emulator, &["check"]);
    let (stored, packed) = (&volume["stored_bytes"], &checked["packed_bytes"]);
    assert!(
        stored.as_u64() < packed.as_u64() && stored.as_u64() > Some(0),
        "{reported}"
    );
    // Another volume of the same blocks: each counts them, all together count them once.
    let image = chain.image(1);
    run(&mut objects.bring(emulator, &[text(&image), "--volume", "twin", "--dedup"]));
    let reported = objects.look_json(emulator, &["stats"]);
    assert_eq!(
        reported["volumes"]["twin"]["unique_blocks"], 71,
        "{reported}"
    );
    assert_eq!(reported["total"]["unique_blocks"], 74, "{reported}");
    assert_eq!(reported["total"]["snapshots"], 3);
    let table = run(&mut objects.look(emulator, &["stats"]));
    assert!(
        table.lines().count() == 4 && table.contains("\nall "),
        "{table}"
    );
    // The repository of the environment.
    let mut command = objects.ebsfs(emulator, &["repository", "show", "#twin"]);
    let shown = run(command.env("EBSFS_REPOSITORY", objects.url()));
    assert!(shown.contains("\"volume_key\": \"twin\""), "{shown}");
    let mut command = objects.ebsfs(emulator, &["repository", "ls"]);
    let listed = run(command.env("EBSFS_REPOSITORY", objects.url()));
    assert!(
        listed.contains(&format!("twin ({})", text(&image))),
        "{listed}"
    );
    let mut command = objects.ebsfs(emulator, &["repository", "show", "#twin"]);
    let (code, said) = ends(command.env_remove("EBSFS_REPOSITORY"));
    assert!(code == 2 && said.contains("names no repository"), "{said}");
    let runs = objects.files().join("runs");
    fs::create_dir_all(&runs).unwrap();
    let record = |what: &str, has_ended: bool| {
        format!(
            r#"{{"kind":"sync","what":"{what}","host":"proxy-1","user":"root","pid":7,"lease_seconds":60,
                "started":1782820800,"was_paused":false,"has_ended":{has_ended}}}"#
        )
    };
    fs::write(runs.join("0a"), record("snap-0c", false)).unwrap();
    fs::write(runs.join("0b"), "no record").unwrap();
    fs::write(runs.join("0c"), record("snap-0d", true)).unwrap();
    let table = run(&mut objects.look(emulator, &["ls", "--runs"]));
    assert!(
        table.contains("root@proxy-1, process 7")
            && table.contains("snap-0c")
            && table.lines().count() == 3,
        "{table}"
    );
    let reported: Value = serde_json::from_str(&run(
        &mut objects.look(emulator, &["ls", "--runs", "--json"])
    ))
    .unwrap();
    assert_eq!(
        (&reported[0]["id"], &reported[0]["kind"]),
        (&"0a".into(), &"sync".into())
    );
}
