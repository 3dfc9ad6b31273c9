//! What is brought into a repository comes out of it again, every way.

use super::*;

#[test]
fn a_chain_of_five_is_restored_unchanged_to_every_target() {
    let chain = Chain::new();
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let other = Emulator::beside(emulator);
    let out = tempfile::tempdir().unwrap();
    let disk = out.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(2 << 30).unwrap();
    for objects in [Objects::folder(), Objects::s3()] {
        for id in ids {
            let said = run(&mut objects.bring(emulator, &[id, "--base", "auto", "--verify"]));
            assert_eq!(said, format!("{}#{id}\n", objects.url()));
        }
        // As much as changed: of those rewritten alike none, and zeroes are nothing.
        assert_eq!(sent(&objects, emulator), [50, 24, 0, 0, 5]);
        let _ = fs::remove_file(out.path().join("image.raw"));
        let device = sh(&format!("losetup --find --show {}", disk.display()));
        let device = device.trim();
        for (number, id) in ids.iter().enumerate() {
            // Each by what changed since the one before.
            let image = out.path().join("image.raw");
            run(&mut objects.take(emulator, id, &[text(&image), "--base", "auto"]));
            assert_same(&image, &chain.image(number));
            // The first one is of unknown content.
            let more: &[&str] = match number {
                0 => &["--overwrite", device],
                _ => &[],
            };
            let to_device = [&[device, "--base", "auto"], more].concat();
            run(&mut objects.take(emulator, id, &to_device));
            let size = fs::metadata(&image).unwrap().len();
            sh(&format!("cmp -n {size} {} {device}", image.display()));
            let url = other.url();
            let to_ebs = ["ebs:", "--to-endpoint-url", &url, "--to-profile", "default"];
            let made = run(&mut objects.take(emulator, id, &to_ebs));
            let mount = other.mount(&[made.trim()]);
            assert_same(&mount.disk(made.trim()), &image);
        }
        sh(&format!("losetup --detach {device}"));
        let mount = objects.mount(emulator);
        for (number, id) in ids.iter().enumerate() {
            assert_same(&mount.disk(id), &chain.image(number));
        }
        let pair = mount.pair(&ids[0], &ids[4]);
        let delta = fs::read_to_string(pair.join("changes.csv")).unwrap();
        assert!(delta.lines().count() > 5, "{delta}");
        // A copy of a snapshot that is there costs nothing.
        let puts = objects.objects("packs").len();
        run(&mut objects.bring(emulator, &[&ids[2]]));
        assert_eq!(objects.objects("packs").len(), puts);
        assert_eq!(objects.objects("runs").len(), 1, "the mount reads");
        // What was rewritten alike shares its segment with the one before.
        assert_eq!(objects.objects("segments").len(), 4);
        drop(mount);
        assert!(objects.objects("runs").is_empty());
        let checked = objects.look_json(emulator, &["check", "--read-data"]);
        assert_eq!(checked["snapshots"], 5);
        assert_eq!(checked["unused"], 0);
    }
}

#[test]
fn a_snapshot_or_image_is_found_by_each_of_its_names() {
    let chain = Chain::new();
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let objects = Objects::folder();
    let folder = tempfile::tempdir().unwrap();
    for id in &ids[..2] {
        run(&mut objects.bring(emulator, &[id]));
    }
    let image = folder.path().join("image.raw");
    for (select, number) in [
        ("latest", 1),
        ("vol-0a", 1),
        ("vol-0a@2100-01-01", 1),
        (&*ids[0], 0),
    ] {
        run(&mut objects.take(emulator, select, &[text(&image)]));
        assert_same(&image, &chain.image(number));
    }
    for (select, words) in [
        ("vol-0b", "no snapshot"),
        ("vol-0a@2001-01-01T00:00Z", "no snapshot"),
        ("vol-0a@soon", "is no time"),
        ("", "names no snapshot"),
    ] {
        let (code, said) = ends(&mut objects.take(emulator, select, &[text(&image)]));
        assert!(code != 0 && said.contains(words), "{select}: {code} {said}");
    }
    // An image of odd size, twice: the second one sends what changed.
    let source = folder.path().join("source.raw");
    sh(&format!(
        "head -c 3000001 /dev/urandom > {}",
        source.display()
    ));
    let said = run(&mut objects.bring(emulator, &[text(&source)]));
    let (_, first) = said.trim().split_once('#').unwrap();
    std::os::unix::fs::FileExt::write_all_at(&writable(&source), b"changed", 600_000).unwrap();
    run(&mut objects.bring(emulator, &[text(&source)]));
    assert_eq!(sent(&objects, emulator)[2..], [6, 1]);
    // The image is a replica of another volume.
    let latest = [text(&image)];
    let (code, said) = ends(&mut objects.take(emulator, text(&source), &latest));
    assert!(
        code == 11 && said.contains("it is a replica of vol-0a"),
        "{code} {said}"
    );
    assert_same(&image, &chain.image(0));
    let named = [text(&image), "--overwrite", text(&image)];
    run(&mut objects.take(emulator, text(&source), &named));
    assert_same(&image, &source);
    let (code, said) = ends(&mut objects.take(emulator, first, &["ebs:", "--allow-plaintext"]));
    assert!(code == 2 && said.contains("512 KiB"), "{code} {said}");
    // No other user reads it.
    use std::os::unix::fs::PermissionsExt;
    for path in objects.objects("") {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", path.display());
    }
}

#[test]
fn a_random_read_of_a_mount_is_one_ranged_get_of_one_block_and_neighbours_are_read_together() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, 0..512);
    let id = emulator.snapshot("vol-0a");
    let objects = Objects::s3();
    run(&mut objects.bring(&emulator, &[&id]));
    let mount = objects.mount_by(objects.ebsfs(&emulator, &["-vv", "mount"]));
    let gets = || {
        let log = mount.log();
        let gets = log.lines().filter(|line| line.contains("TRACE GET"));
        gets.filter(|line| line.contains("/packs/")).count()
    };
    assert_eq!(
        read_at(&mount.disk(&id), 300 * BLOCK + 5000, 4096).len(),
        4096
    );
    assert_eq!(gets(), 1);
    assert_same(&mount.disk(&id), &volume);
    assert!(gets() < 300, "{} GETs for 512 blocks", gets());
}

#[test]
fn two_machines_that_bring_one_volume_at_once_both_finish_and_nothing_is_damaged() {
    for objects in [Objects::folder(), Objects::s3()] {
        let emulator = crate::sync::large_pair();
        objects.init();
        let at_once = |what: [&[&str]; 2]| {
            let running = [0, 1].map(|machine| {
                let state = emulator.folder.path().join(format!("machine-{machine}"));
                let sync = ["sync", "--progress", "none", "--state-dir", text(&state)];
                let mut command = objects.ebsfs(&emulator, &sync);
                command.args(what[machine]).arg(objects.url());
                command.args(objects.to()).stdout(Stdio::null());
                command.stderr(Stdio::null()).spawn().unwrap()
            });
            for mut child in running {
                assert!(child.wait().unwrap().success());
            }
        };
        at_once([&["snap-0a"], &["snap-0a"]]);
        at_once([&["snap-0b", "--base", "auto"], &["snap-0b"]]);
        // The one finds that the other has it, and what it wrote itself is garbage.
        let checked = objects.look_json(&emulator, &["check", "--read-data"]);
        assert_eq!(
            (&checked["snapshots"], &checked["runs"]),
            (&2.into(), &0.into())
        );
        assert!(checked["unused"].as_u64() > Some(0), "{checked}");
        let (mount, disk) = crate::sync::mounted(&emulator, "snap-0b");
        let replica = objects.mount(&emulator);
        assert_same(&replica.disk("snap-0b"), &disk);
        drop((mount, replica));
    }
}
