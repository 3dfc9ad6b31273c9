//! `ebsfs mount --custody`: who read what, in a chain that shows each change.

use super::interrupted::SmallDisk;
use super::*;

/// The events of a log.
fn events(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

fn check(log: &Path) -> (i32, String, String) {
    verify(&["--custody", text(log)])
}

#[test]
fn openings_are_recorded_with_their_blocks_and_each_missing_or_changed_line_is_found() {
    let case = Case::of_snapshot();
    let log = case.at("custody.jsonl");
    let args = [case.source.as_str(), "--custody", text(&log)];
    let mut mount = case.emulator().mount(&args);
    let disk = mount.disk(&case.source);
    sh(&format!(
        "dd if={} of=/dev/null bs=512K skip=3 count=1 iflag=direct status=none",
        disk.display()
    ));
    // The kernel answers a close before it tells of it.
    let closed = |lines| wait_for("the closing", || events(&log).len() == lines);
    closed(3);
    // What the kernel has in its page cache is read again by each opening.
    for lines in [5, 7] {
        sh(&format!("head -c 1 {} > /dev/null", disk.display()));
        closed(lines);
    }
    // It has one writer.
    let point = case.at("other");
    std::fs::create_dir(&point).unwrap();
    let words = ["mount", text(&point), &case.source, "--custody", text(&log)];
    let (code, errors) = ends(&mut case.emulator().ebsfs(&words));
    assert_eq!(code, 10, "{errors}");
    // The same bytes under another name are recorded too.
    let vhd = disk.with_file_name("disk.vhd");
    sh(&format!("head -c 10 {} > /dev/null", vhd.display()));
    closed(9);
    let (code, said, _) = check(&log);
    assert_eq!(code, 11, "{said}");
    mount.signal("INT");
    let limit = std::time::Duration::from_secs(20);
    assert_eq!(mount.wait(limit), Some(0));
    let (code, said, errors) = check(&log);
    assert_eq!(code, 0, "{said}{errors}");
    let last = sum("sha256sum", &{
        let path = case.at("last");
        sh(&format!("tail -n 1 {} > {}", log.display(), path.display()));
        path
    });
    assert!(said.contains(&format!("last line  {last}\n")), "{said}");
    assert!(mount.log().contains(&last), "{}", mount.log());

    let all = events(&log);
    let names: Vec<&str> = all.iter().map(|e| e["event"].as_str().unwrap()).collect();
    let openings = ["open", "close"].repeat(4);
    assert_eq!(names, [&["mount"], &openings[..], &["unmount"]].concat());
    for close in [&all[4], &all[6]] {
        assert_eq!(close["blocks"][0][0], 0, "{close}");
        assert!(close["bytes"].as_u64().unwrap() > 0, "{close}");
    }
    assert!(all[7]["image"].as_str().unwrap().contains("disk.vhd"));
    assert_eq!(
        (&all[1]["uid"], &all[1]["command"]),
        (&0.into(), &"dd".into())
    );
    assert!(all[1]["image"].as_str().unwrap().contains(&case.source));
    assert_eq!(all[2]["blocks"], serde_json::json!([[3, 1]]));
    assert_eq!(
        (&all[2]["bytes"], &all[2]["merged"]),
        (&BLOCK.into(), &false.into())
    );

    let whole = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let mut less = lines.clone();
    less.remove(1);
    let changed = whole.replace("\"uid\":0,", "\"uid\":7,");
    for (what, text_of) in [("removed", less.concat()), ("changed", changed)] {
        std::fs::write(&log, text_of).unwrap();
        let (code, _, errors) = check(&log);
        assert_eq!(code, 8, "{what}: {errors}");
        assert!(errors.contains("does not follow"), "{errors}");
        let (code, errors) = ends(&mut case.emulator().ebsfs(&words));
        assert_eq!(code, 8, "a broken chain is not continued: {errors}");
    }
    // A killed mount closes nothing, and the next one appends.
    std::fs::write(&log, &whole).unwrap();
    let mut mount = case.emulator().mount(&args);
    let file = open(&mount.disk(&case.source));
    mount.process.kill().unwrap();
    mount.process.wait().unwrap();
    drop(file);
    run(Command::new("umount").arg("--lazy").arg(mount.point.path()));
    let (code, said, _) = check(&log);
    assert_eq!(code, 11, "{said}");
    assert!(said.contains("openings   5, 1 not closed"), "{said}");
    drop(mount);
    drop(case.emulator().mount(&args));
    let text_of = std::fs::read_to_string(&log).unwrap();
    assert!(text_of.starts_with(&whole));
    assert_ne!(check(&log).0, 8, "{text_of}");
}

#[test]
fn a_mount_that_fails_leaves_no_log_without_an_end() {
    let case = Case::of_snapshot();
    let (log, cache, point) = (case.at("custody.jsonl"), case.at("cache"), case.at("point"));
    for folder in [&cache, &point] {
        std::fs::create_dir(folder).unwrap();
    }
    let _mount = case
        .emulator()
        .mount(&[&case.source, "--cache-dir", text(&cache)]);
    // One process for each cache directory.
    let words = ["mount", text(&point), &case.source, "--custody", text(&log)];
    let mut second = case.emulator().ebsfs(&words);
    let (code, errors) = ends(second.arg("--cache-dir").arg(&cache));
    assert_eq!(code, 10, "{errors}");
    assert!(!log.exists(), "{:?}", events(&log));
}

#[test]
fn no_image_is_opened_that_cannot_be_recorded_and_no_half_line_stays() {
    let case = Case::of_snapshot();
    let small = SmallDisk::new("4k");
    let log = small.0.path().join("custody.jsonl");
    let mount = case
        .emulator()
        .mount(&[&case.source, "--custody", text(&log)]);
    let disk = mount.disk(&case.source);
    let opened = (0..100).take_while(|_| std::fs::File::open(&disk).is_ok());
    let opened = opened.count();
    assert!((1..20).contains(&opened), "{opened} openings in 4 KiB");
    let (code, said, errors) = check(&log);
    assert_eq!(code, 11, "{said}{errors}");
    let openings = format!("openings   {opened}, ");
    assert!(said.contains(&openings), "{said}");
    drop(mount);
}
