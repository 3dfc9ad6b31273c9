//! What other users and programs put in the way: state files, names that lead elsewhere, pipes, and signals that must be heard.

use std::os::unix::fs::{FileTypeExt, symlink};
use std::time::Instant;

use super::evidence::stamp;
use super::*;

/// An account that is not ours.
const OTHER_USER: &str = "65534:65534";

#[test]
fn the_first_signal_ends_every_phase_within_a_second() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..100);
    let id = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let (source, image, old) = (
        folder.path().join("source.raw"),
        folder.path().join("image.raw"),
        folder.path().join("old.raw"),
    );
    sh(&format!(
        "head -c 1600M /dev/urandom > {}",
        source.display()
    ));
    run(&mut sync(&emulator, &[&id, text(&old)]));
    emulator.make_volume("vol-0a", 2048, 0..101);
    let next = emulator.snapshot("vol-0a");
    let repository = format!("file://{}/replicas", folder.path().display());
    init_repository(&repository);
    let new = folder.path().join("new.raw");
    // What is under way, once so much time has passed; the phase of the last two lasts for seconds.
    for (what, switches, args, after) in [
        (
            "describing",
            "silent=true",
            vec![id.as_str(), text(&new)],
            300,
        ),
        ("listing", "latency_ms=60000", vec![&id, text(&new)], 1500),
        (
            "listing changes",
            "latency_ms=1500",
            vec![&next, text(&old), "--base", "auto"],
            2200,
        ),
        (
            "reading a repository's source",
            "latency_ms=60000",
            vec![&id, &repository],
            1500,
        ),
        (
            "verifying",
            "latency_ms=0",
            vec![text(&source), text(&image), "--verify", "--digest"],
            3000,
        ),
    ] {
        emulator.set(switches);
        let mut child = sync(&emulator, &args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(after));
        assert!(child.try_wait().unwrap().is_none(), "{what} has ended");
        let since = Instant::now();
        run(Command::new("kill").args(["-INT", &child.id().to_string()]));
        let code = child.wait().unwrap().code();
        let took = since.elapsed();
        assert_eq!(code, Some(130), "{what}");
        // A second, on a machine that does other things as well.
        assert!(took < Duration::from_secs(3), "{what}: {took:?}");
        emulator.set("silent=false&latency_ms=0");
    }
    run(&mut sync(&emulator, &[&next, text(&old), "--base", "auto"]));
    assert_same(&old, &emulator.volume("vol-0a"));
}

#[test]
fn a_signal_while_an_image_is_cloned_or_compared_is_heard_at_once_and_leaves_the_old_one() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 4096, []);
    sh(&format!(
        "head -c 1500M /dev/urandom | dd of={} bs=1M iflag=fullblock conv=notrunc status=none",
        volume.display()
    ));
    let id = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    run(&mut sync(&emulator, &[&id, text(&image)]));
    let next = emulator.snapshot("vol-0a");
    let args = [next.as_str(), text(&image), "--base", "auto"];
    for phase in ["opening", "comparing"] {
        if phase == "comparing" {
            sh(&format!("touch {}", image.display()));
        }
        let before = stamp(&image);
        let mut child = sync(&emulator, &args)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let part = folder.path().join("image.raw.ebsfs-part");
        match phase {
            "opening" => wait_for("a part", || {
                part.exists() || child.try_wait().unwrap().is_some()
            }),
            _ => std::thread::sleep(Duration::from_millis(400)),
        }
        let since = Instant::now();
        run(Command::new("kill").args(["-INT", &child.id().to_string()]));
        let code = child.wait().unwrap().code();
        let took = since.elapsed();
        assert_eq!(code, Some(130), "{phase}");
        assert!(took < Duration::from_secs(4), "{phase}: {took:?}");
        assert_eq!(stamp(&image), before, "{phase}");
    }
    run(&mut sync(&emulator, &args));
    assert_same(&image, &volume);
}

#[test]
fn a_fifo_or_a_socket_is_neither_source_nor_target() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0]);
    let id = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let (fifo, socket, image) = (
        folder.path().join("fifo"),
        folder.path().join("socket"),
        folder.path().join("image.raw"),
    );
    sh(&format!("mkfifo {}", fifo.display()));
    let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for what in [&fifo, &socket] {
        for args in [[text(what), text(&image)], [id.as_str(), text(what)]] {
            let (code, said) = ends(&mut sync(&emulator, &args));
            assert!([1, 2].contains(&code), "{code} {said}");
            assert!(said.contains(text(what)), "{said}");
        }
        assert!(!image.exists());
    }
}

/// The states of an unfinished copy to an image that are put out of the way, beside it.
fn half_an_image(emulator: &Emulator, image: &Path) {
    emulator.set("latency_ms=300");
    let mut child = sync(emulator, &["snap-0a", text(image), "--max-in-flight", "4"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("kept blocks", || {
        let said = status(emulator, text(image));
        let mut lines = said.lines();
        lines.any(|line| line.starts_with("unfinished: ") && !line.contains(", 0 of"))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    emulator.set("latency_ms=0");
}

#[test]
fn an_unfinished_copy_of_another_user_is_not_believed() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let mount = emulator.mount(&["snap-0a"]);
    let disk = mount.disk("snap-0a");
    for (number, line) in [
        "chown OTHER {}.ebsfs-*",
        "chown OTHER {}.ebsfs-part",
        "chmod 666 {}.ebsfs-part",
        "chown OTHER {}.ebsfs-checkpoint",
        "chmod 622 {}.ebsfs-checkpoint",
        "mv {}.ebsfs-part {}.moved; ln -s {}.moved {}.ebsfs-part",
        "mv {}.ebsfs-checkpoint {}.moved; ln -s {}.moved {}.ebsfs-checkpoint",
    ]
    .into_iter()
    .enumerate()
    {
        let image = folder.path().join(format!("{number}.raw"));
        half_an_image(&emulator, &image);
        let part = folder.path().join(format!("{number}.raw.ebsfs-part"));
        // The forged block of the other user: one that is done.
        fs::write(folder.path().join("forged"), vec![1; BLOCK as usize]).unwrap();
        sh(&format!(
            "at=$(filefrag -v {0} | awk '$1 == \"0:\" {{ split($2, a, /\\./); print a[1] }}'); \
             dd if={1} of={0} bs=4096 seek=${{at:-0}} conv=notrunc status=none",
            part.display(),
            folder.path().join("forged").display()
        ));
        sh(&line
            .replace("{}", text(&image))
            .replace("OTHER", OTHER_USER));
        let output = sync(&emulator, &["snap-0a", text(&image)])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // Refused, or from the start: never the other user's bytes, and never the other user's file.
        if output.status.success() {
            assert_same(&image, &disk);
            let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&image).unwrap());
            assert_eq!(owner, 0, "{line}");
            assert!(
                !fs::symlink_metadata(&image).unwrap().is_symlink(),
                "{line}"
            );
        } else {
            assert!(!image.exists(), "{line}: {said}");
            run(&mut sync(
                &emulator,
                &["snap-0a", text(&image), "--restart"],
            ));
            assert_same(&image, &disk);
        }
        sh(&format!("rm -rf {}*", image.display()));
    }
}

#[test]
fn a_record_of_another_user_proves_nothing() {
    let chain = Chain::new();
    let ids = &chain.snapshots;
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    for line in [
        "chown OTHER {}.ebsfs.json",
        "chmod 666 {}.ebsfs.json",
        "mv {}.ebsfs.json {}.moved; ln -s {}.moved {}.ebsfs.json",
    ] {
        run(&mut sync(&chain.emulator, &[&ids[0], text(&image)]));
        sh(&line
            .replace("{}", text(&image))
            .replace("OTHER", OTHER_USER));
        let before = stamp(&image);
        for args in [
            &[ids[1].as_str(), text(&image), "--base", "auto"][..],
            &[&ids[1], text(&image), "--base", &ids[0]],
            &[&ids[1], text(&image)],
        ] {
            let (code, said) = ends(&mut sync(&chain.emulator, args));
            assert_eq!(code, 11, "{line}: {said}");
        }
        assert_eq!(stamp(&image), before);
        sh(&format!("rm -f {}*", image.display()));
    }
}

#[test]
fn state_files_that_never_end_or_never_answer_hold_nothing_up() {
    let chain = Chain::new();
    let ids = &chain.snapshots;
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    for ending in [
        ".ebsfs.json",
        ".ebsfs-checkpoint",
        ".ebsfs-part",
        ".ebsfs-lock",
    ] {
        for line in [
            "mkfifo {}",
            "ln -s /dev/zero {}",
            "mknod {} c 1 5",
            "truncate -s 100G {}",
            "mkdir {}",
        ] {
            run(&mut sync(&chain.emulator, &[&ids[0], text(&image)]));
            let state = folder.path().join(format!("image.raw{ending}"));
            sh(&format!(
                "rm -rf {0}; {1}",
                state.display(),
                line.replace("{}", text(&state))
            ));
            let before = stamp(&image);
            // So little memory that /dev/zero cannot be read into it.
            let command = sync(&chain.emulator, &[&ids[1], text(&image), "--base", "auto"]);
            let mut limited = Command::new("prlimit");
            limited.arg("--data=2000000000").arg(command.get_program());
            limited.args(command.get_args());
            for (name, value) in command.get_envs() {
                limited.env(name, value.unwrap_or_default());
            }
            let (code, said) = ends(&mut limited);
            assert!(
                [0, 1, 2, 8, 11].contains(&code),
                "{ending} {line}: {code} {said}"
            );
            match code {
                0 => assert_same(&image, &chain.image(1)),
                _ => assert_eq!(stamp(&image), before, "{ending} {line}"),
            }
            assert!(
                fs::symlink_metadata("/dev/zero")
                    .unwrap()
                    .file_type()
                    .is_char_device()
            );
            sh(&format!("rm -rf {}*", image.display()));
        }
    }
}

#[test]
fn a_result_goes_into_a_device_or_fifo_and_never_replaces_a_target() {
    let chain = Chain::new();
    let ids = &chain.snapshots;
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let (image, fifo, null, link, kept) = (
        place("image.raw"),
        place("fifo"),
        place("null"),
        place("link"),
        place("kept"),
    );
    fs::write(&kept, b"kept").unwrap();
    symlink(&kept, &link).unwrap();
    sh(&format!(
        "mkfifo {}; mknod {} c 1 3",
        fifo.display(),
        null.display()
    ));
    // A FIFO that nothing reads holds nothing up.
    let report = [ids[0].as_str(), text(&image), "--report", text(&fifo)];
    let (code, said) = ends(&mut sync(&chain.emulator, &report));
    assert_eq!(code, 1, "{said}");
    assert!(!image.exists(), "refused before anything is copied");
    for into in [&null, &link] {
        let before = fs::symlink_metadata(into).unwrap();
        let changes = ["changes", &ids[0], &ids[1], "--output", text(into)];
        run(&mut chain.emulator.ebsfs(&changes));
        let after = fs::symlink_metadata(into).unwrap();
        assert_eq!(before.file_type(), after.file_type());
    }
    assert!(
        fs::read(&kept).unwrap().len() > 4,
        "written through the link"
    );
    let said =
        run(sync(&chain.emulator, &[&ids[0], text(&place("x.raw"))])
            .args(["--report", "/dev/stdout"]));
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["targets"][0]["status"], "done");
    assert!(
        fs::symlink_metadata("/dev/null")
            .unwrap()
            .file_type()
            .is_char_device()
    );
    // The target and the source, new and old, by their names and by another one.
    let other = place("other-name.raw");
    let onto = |target: &Path, report: &Path| {
        let args = [ids[0].as_str(), text(target), "--report", text(report)];
        let (code, said) = ends(&mut sync(&chain.emulator, &args));
        assert_eq!(code, 2, "{said}");
    };
    onto(&image, &image);
    assert!(!image.exists());
    onto(
        &image,
        &place("../image.raw")
            .parent()
            .unwrap()
            .join(folder.path())
            .join("image.raw"),
    );
    run(&mut sync(&chain.emulator, &[&ids[0], text(&image)]));
    onto(&image, &image);
    fs::hard_link(&image, &other).unwrap();
    onto(&image, &other);
    let copy = place("copy.raw");
    let args = [text(&image), text(&copy), "--report", text(&image)];
    let (code, said) = ends(&mut sync(&chain.emulator, &args));
    assert_eq!(code, 2, "{said}");
    for one in [&image, &other] {
        assert_same(one, &chain.image(0));
    }
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
