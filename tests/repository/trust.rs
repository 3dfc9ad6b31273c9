//! A repository as the only copy: listings that lack something, prunes in two steps, runs that were paused, users that may not
//! delete or write. Nothing that a snapshot needs is deleted, and nothing ends with exit code 0 that is not right.

use std::time::Duration;

use super::proxy::{Fate, Proxy};
use super::*;

/// A repository of two snapshots of a volume, and their ids.
fn two(objects: &Objects) -> Chain {
    let chain = Chain::new();
    for id in &chain.snapshots[..2] {
        run(&mut objects.bring(&chain.emulator, &[id, "--base", "auto"]));
    }
    chain
}

/// Objects beside fences, in all folders that a snapshot needs.
fn data(objects: &Objects) -> Vec<PathBuf> {
    let folders = ["packs", "segments", "snapshots", "removed"];
    folders.map(|folder| objects.objects(folder)).concat()
}

/// Lets every object of a folder be older.
fn age(objects: &Objects, folder: &str, by: &str) {
    for object in objects.objects(folder) {
        sh(&format!("touch -d '{by} ago' {}", text(&object)));
    }
}

fn pause() {
    std::thread::sleep(Duration::from_millis(1100));
}

#[test]
fn only_init_makes_a_repository_and_only_once() {
    let objects = Objects::folder();
    let (emulator, id) = three_blocks();
    fs::create_dir_all(objects.files()).unwrap();
    let (code, said) = ends(&mut objects.sync(&emulator, &[&id, &objects.url()]));
    assert!(
        code == 3 && said.contains("ebsfs repository init file://"),
        "{said}"
    );
    assert_eq!(fs::read_dir(objects.files()).unwrap().count(), 0);
    objects.init();
    let (code, said) = ends(&mut objects.look(&emulator, &["init"]));
    assert!(code == 2 && said.contains("is one"), "{said}");
    run(&mut objects.bring(&emulator, &[&id]));
    let header = objects.files().join("ebsfs-repository.json");
    let sound = fs::read_to_string(&header).unwrap();
    for (written, words) in [
        (sound.replace("\"format\":2", "\"format\":1"), "format 1"),
        (sound.replace("\"format\":2", "\"format\":3"), "format 3"),
        (sound.replace("none", "aes"), "\"aes\""),
        ("<html>".into(), "not what ebsfs writes"),
    ] {
        fs::write(&header, written).unwrap();
        let (code, said) = ends(&mut objects.look(&emulator, &["ls"]));
        assert!(code == 2 && said.contains(words), "{said}");
        assert_eq!(said.trim().lines().count(), 1, "{said}");
    }
}

#[test]
fn a_listing_without_its_fences_is_no_listing() {
    let objects = Objects::folder();
    let chain = two(&objects);
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let before = data(&objects);
    let image = objects.folder.path().join("image.raw");
    let fences = |folder: &str, end: &str| {
        let mut found = Vec::new();
        walk(&objects.files().join(folder), &mut found);
        found.retain(|path| text(path).contains(end));
        found
    };
    for end in ["0-fence-", "zz-fence-"] {
        let [fence] = &fences("snapshots", end)[..] else {
            panic!("one fence");
        };
        let aside = objects.folder.path().join("fence");
        fs::rename(fence, &aside).unwrap();
        for (code, said) in [
            ends(&mut objects.look(emulator, &["ls"])),
            ends(&mut objects.look(emulator, &["check"])),
            ends(&mut objects.bring(emulator, &[&ids[2], "--base", "auto"])),
            ends(&mut objects.take(emulator, "latest", &[text(&image)])),
        ] {
            assert!(
                code == 8 && said.contains("fence is not in it"),
                "{code} {said}"
            );
        }
        fs::rename(aside, fence).unwrap();
    }
    assert!(!image.exists());
    assert_eq!(data(&objects), before);
    // A prune brings its own pair, so that it sees the present: a copy of an older folder lacks it.
    run(&mut objects.look(emulator, &["prune"]));
    assert_eq!(fences("snapshots", "-fence-").len(), 4);
}

#[test]
fn a_snapshot_named_in_latest_must_be_listed_or_accepted_as_missing() {
    let objects = Objects::folder();
    let chain = two(&objects);
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let image = objects.folder.path().join("image.raw");
    // A store that does not show its newest object.
    let newest = objects.objects("snapshots").pop().unwrap();
    let name = newest.file_name().unwrap().to_str().unwrap().to_owned();
    let aside = objects.folder.path().join("newest");
    fs::rename(&newest, &aside).unwrap();
    let before = data(&objects);
    pause();
    for (code, said) in [
        ends(&mut objects.look(emulator, &["prune", "--grace", "0s"])),
        ends(&mut objects.look(emulator, &["prune", "--grace", "0s", "--dry-run"])),
        ends(&mut objects.look(emulator, &["check"])),
        ends(&mut objects.take(emulator, "latest", &[text(&image)])),
        ends(&mut objects.bring(emulator, &[&ids[2], "--base", "auto"])),
    ] {
        let prune = format!("ebsfs repository prune {}", objects.url());
        let remedy = format!("{prune} --accept-missing {name}");
        assert!(code == 11 && said.contains(&remedy), "{code} {said}");
    }
    assert_eq!(data(&objects), before);
    // It is shown again: all is as it was.
    fs::rename(&aside, &newest).unwrap();
    run(&mut objects.take(emulator, "latest", &[text(&image)]));
    assert_same(&image, &chain.image(1));
    fs::remove_file(&newest).unwrap();
    let accept = ["prune", "--accept-missing", &name];
    run(&mut objects.look(emulator, &accept));
    // From now on it is not expected: what the prune kept is.
    fs::remove_file(&image).unwrap();
    fs::remove_file(format!("{}-records", image.display())).ok();
    let latest = objects.look_json(emulator, &["ls"]);
    assert_eq!(latest.as_array().unwrap().len(), 1);
    let oldest = objects.objects("snapshots").pop().unwrap();
    fs::rename(&oldest, &aside).unwrap();
    let (code, said) = ends(&mut objects.look(emulator, &["prune"]));
    assert!(code == 11 && said.contains(&ids[0]), "{said}");
}

#[test]
fn garbage_is_marked_and_deleted_by_a_later_prune_after_the_grace() {
    let objects = Objects::folder();
    let chain = two(&objects);
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    objects.remove(emulator, &ids[0]);
    let all = data(&objects);
    let swept = |args: &[&str]| {
        let reported = objects.look_json(emulator, &[&["prune"], args].concat());
        reported["swept"].as_u64().unwrap()
    };
    // The tombstone keeps all of it for a grace.
    assert_eq!(swept(&[]), 0);
    age(&objects, "removed", "8 days");
    // The tombstone goes, and what it kept is marked.
    assert_eq!(swept(&[]), 0);
    assert!(objects.objects("removed").is_empty());
    let left = data(&objects);
    assert_eq!(left.len(), all.len() - 1, "only the tombstone went");
    assert_eq!(swept(&[]), 0, "marks are new");
    age(&objects, "garbage", "6 days");
    assert_eq!(swept(&[]), 0, "marks are younger than the grace");
    age(&objects, "garbage", "8 days");
    let dry = swept(&["--dry-run"]);
    assert!(dry > 0);
    assert_eq!(data(&objects), left, "a dry run changes nothing");
    assert_eq!(swept(&[]), dry);
    let checked = objects.look_json(emulator, &["check", "--read-data"]);
    assert_eq!(
        (&checked["snapshots"], &checked["unused"]),
        (&1.into(), &0.into())
    );
    let mount = objects.mount(emulator);
    assert_same(&mount.disk(&ids[1]), &chain.image(1));
}

#[test]
fn a_run_paused_beyond_its_lease_never_publishes_swept_data() {
    let objects = Objects::folder();
    let emulator = crate::sync::large_pair();
    objects.init();
    emulator.set("latency_ms=300");
    let bring = ["snap-0a", "--max-in-flight", "8", "--lease", "1s"];
    let child = objects
        .bring(&emulator, &bring)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("packs", || objects.objects("packs").len() > 1);
    let process = child.id();
    sh(&format!("kill -STOP {process}"));
    pause();
    pause();
    // It is taken for dead, and a person may forget it; what it wrote is swept a grace later.
    let (code, said) = ends(&mut objects.look(&emulator, &["prune", "--grace", "0s"]));
    let remedy = format!("ebsfs repository prune {} --forget-run ", objects.url());
    assert!(code == 11 && said.contains(&remedy), "{code} {said}");
    let packs = objects.objects("packs").len();
    age(&objects, "garbage", "8 days");
    run(&mut objects.look(&emulator, &["prune"]));
    assert!(
        objects.objects("packs").len() < packs,
        "a dead run holds nothing for ever"
    );
    emulator.set("latency_ms=0");
    sh(&format!("kill -CONT {process}"));
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(10), "{said}");
    assert!(said.contains("a prune may have deleted data"), "{said}");
    assert!(objects.objects("snapshots").is_empty());
    // The same command starts from the beginning, and succeeds.
    run(&mut objects.bring(&emulator, &bring));
    let checked = objects.look_json(&emulator, &["check", "--read-data"]);
    assert_eq!(checked["snapshots"], 1);
    let (mount, disk) = crate::sync::mounted(&emulator, "snap-0a");
    let replica = objects.mount(&emulator);
    assert_same(&replica.disk("snap-0a"), &disk);
    drop((mount, replica));
}

/// A store behind a proxy that refuses requests of a verb.
fn without(objects: &mut Objects, verb: &'static str) -> Proxy {
    let (_, address) = objects.server.as_ref().unwrap();
    let proxy = Proxy::before(address);
    objects.front = Some(format!("http://{}", proxy.address));
    proxy.set(move |request| match request.starts_with(verb) {
        true => Fate::Say(403, "AccessDenied"),
        false => Fate::Pass,
    });
    proxy
}

#[test]
fn without_permission_to_delete_all_else_is_done_and_without_permission_to_put_all_can_be_read() {
    let mut objects = Objects::s3();
    let chain = Chain::new();
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    objects.init();
    let proxy = without(&mut objects, "DELETE ");
    for id in &ids[..2] {
        run(&mut objects.bring(emulator, &[id, "--base", "auto"]));
    }
    let runs = objects.look_json(emulator, &["ls", "--runs"]);
    assert_eq!(
        runs,
        Value::Array(Vec::new()),
        "their records say that they have ended"
    );
    pause();
    let begun = std::time::Instant::now();
    let prune = ["prune", "--keep-last", "1", "--grace", "0s"];
    let (code, said) = ends(&mut objects.look(emulator, &prune));
    assert_eq!(code, 4, "{said}");
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "it is not tried again"
    );
    drop(proxy);
    let proxy = without(&mut objects, "PUT ");
    let image = objects.folder.path().join("image.raw");
    let source = format!("{}#{}", objects.url(), ids[1]);
    let mut restore = objects.sync(emulator, &[&source, text(&image)]);
    run(restore.args(objects.from()));
    assert_same(&image, &chain.image(1));
    let mount = objects.mount(emulator);
    assert_same(&mount.disk(&ids[1]), &chain.image(1));
    drop((mount, proxy));
}

#[test]
fn a_program_written_from_the_format_page_reads_every_byte() {
    let objects = Objects::folder();
    let chain = Chain::new();
    let emulator = &chain.emulator;
    for id in &chain.snapshots[..3] {
        run(&mut objects.bring(emulator, &[id, "--base", "auto"]));
    }
    let python = rclone().with_file_name("python");
    let python = if python.exists() {
        python
    } else {
        "python3".into()
    };
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/read-repository.py");
    let read = |args: &[&str]| {
        let mut command = Command::new(&python);
        run(command.arg(&reader).arg(objects.files()).args(args))
    };
    let names = read(&[]);
    let image = objects.folder.path().join("image.raw");
    for (number, name) in names.lines().enumerate() {
        read(&[name, text(&image)]);
        assert_same(&image, &chain.image(number));
    }
    assert_eq!(names.lines().count(), 3);
}

/// An object of `garbage/` of these names.
fn put_sweep(objects: &Objects, names: &[String]) {
    let lines: String = names.iter().map(|name| format!("{name}\n")).collect();
    let path = objects.files().join("garbage/00aa-sweep");
    fs::write(&path, &lines).unwrap();
    let digest = run(Command::new("sha256sum").arg(&path));
    fs::write(
        &path,
        format!("{lines}{}\n", digest.split(' ').next().unwrap()),
    )
    .unwrap();
}

#[test]
fn a_sweep_that_names_data_of_a_run_ends_it_and_the_clock_of_the_sweep_does_not_count() {
    let objects = Objects::folder();
    let emulator = crate::sync::large_pair();
    objects.init();
    emulator.set("latency_ms=300");
    let bring = ["snap-0a", "--max-in-flight", "8"];
    let mut command = objects.bring(&emulator, &bring);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    wait_for("packs", || objects.objects("packs").len() > 1);
    let pack = objects.objects("packs")[0].clone();
    let name = pack.strip_prefix(objects.files()).unwrap();
    put_sweep(&objects, &[text(name).to_owned()]);
    age(&objects, "garbage", "8 days");
    emulator.set("latency_ms=0");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(10), "{said}");
    assert!(objects.objects("snapshots").is_empty());
    // A sweep that was there before a run began names nothing that it relies on.
    run(&mut objects.bring(&emulator, &bring));
    let checked = objects.look_json(&emulator, &["check", "--read-data"]);
    assert_eq!(checked["snapshots"], 1);
}

#[test]
fn a_lost_snapshot_stops_its_volume_alone_until_it_is_accepted() {
    let objects = Objects::folder();
    let chain = two(&objects);
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let image = objects.folder.path().join("image.raw");
    run(&mut objects.take(emulator, "latest", &[text(&image)]));
    run(&mut objects.bring(emulator, &[text(&image), "--volume", "other"]));
    // Not the newest one: what was published since the last prune is expected too.
    let oldest = objects.objects("snapshots")[0].clone();
    let name = oldest.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(name.contains(&*ids[0]));
    fs::remove_file(&oldest).unwrap();
    for (select, code) in [("vol-0a", 11), ("other", 0), (&*ids[1], 0), (&*ids[0], 3)] {
        let restored = objects
            .folder
            .path()
            .join(format!("restored-{code}-{select}"));
        let (ended, said) = ends(&mut objects.take(emulator, select, &[text(&restored)]));
        assert_eq!(ended, code, "{select}: {said}");
    }
    for verb in ["prune", "check"] {
        let (code, said) = ends(&mut objects.look(emulator, &[verb]));
        assert!(code == 11 && said.contains(&name), "{said}");
    }
    run(&mut objects.look(emulator, &["prune", "--accept-missing", &name]));
    run(&mut objects.look(emulator, &["prune"]));
    run(&mut objects.look(emulator, &["check"]));
    run(&mut objects.take(
        emulator,
        "vol-0a",
        &[text(&image), "--overwrite", text(&image)],
    ));
}
