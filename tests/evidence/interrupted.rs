//! Runs that end before their time leave nothing that looks like evidence.

use std::time::Duration;

use super::*;

/// A run that takes its time, once it has read a block.
fn slow_run(case: &Case, folder: &Path) -> std::process::Child {
    case.emulator().set("latency_ms=300");
    let mut command = case.command(folder, &["--image", "--max-in-flight", "1"]);
    let child = command.spawn().unwrap();
    let part = folder.join("disk.raw.part");
    wait_for("a block", || {
        let written = part.metadata();
        written.is_ok_and(|part| std::os::unix::fs::MetadataExt::blocks(&part) > 0)
    });
    child
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn a_stopped_run_leaves_nothing_and_a_killed_one_no_statement() {
    let case = Case::of_snapshot();
    let folder = case.at("case");
    let mut child = slow_run(&case, &folder);
    run(Command::new("kill").args(["-INT", &child.id().to_string()]));
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!folder.exists(), "{:?}", names(&folder));

    let mut child = slow_run(&case, &folder);
    child.kill().unwrap();
    child.wait().unwrap();
    let left = names(&folder);
    let is_finished =
        |name: &String| ["evidence.json", "disk.raw", "blocks.csv"].contains(&&**name);
    assert!(
        !left.is_empty() && !left.iter().any(is_finished),
        "{left:?}"
    );
    let (code, _, errors) = verify(&[text(&folder)]);
    assert_eq!(code, 3, "{errors}");
    case.emulator().set("latency_ms=0");
    let (code, errors) = ends(&mut case.command(&folder, &[]));
    assert_eq!(code, 2, "{errors}");
    assert!(
        errors.contains("not empty") && errors.contains("interrupted"),
        "{errors}"
    );
}

/// A small filesystem.
pub struct SmallDisk(pub TempDir);

impl SmallDisk {
    pub fn new(size: &str) -> Self {
        let point = tempfile::tempdir().unwrap();
        sh(&format!(
            "mount -t tmpfs -o size={size},mode=700 none {}",
            point.path().display()
        ));
        Self(point)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_ends_the_run_with_its_own_code_and_leaves_nothing() {
    let case = Case::of_image();
    let disk = SmallDisk::new("1m");
    let folder = disk.0.path().join("case");
    let mut command = case.command(&folder, &["--image"]);
    let (code, errors) = ends_within(Duration::from_secs(20), &mut command);
    assert_eq!(code, 9, "{errors}");
    assert!(errors.contains("copy of the image"), "{errors}");
    assert!(!folder.exists(), "{:?}", names(&folder));
    // Room for nothing but the beginning of the lists.
    drop(disk);
    let disk = SmallDisk::new("4k");
    let folder = disk.0.path().join("case");
    let (code, errors) = ends(&mut case.command(&folder, &[]));
    assert_eq!(code, 9, "{errors}");
    assert!(!folder.exists(), "{:?}", names(&folder));
}

#[test]
fn a_folder_that_is_not_ours_alone_and_a_missing_one_are_refused() {
    let case = Case::of_image();
    let full = case.at("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("x"), "").unwrap();
    let link = case.at("link");
    std::os::unix::fs::symlink(case.at("elsewhere"), &link).unwrap();
    for (folder, words) in [
        (full, "not empty"),
        (link, "no directory of this user"),
        (case.at("x/y"), "cannot use"),
        ("/proc".into(), "cannot write evidence"),
    ] {
        let (code, errors) = ends(&mut case.command(&folder, &[]));
        assert!(
            code != 0 && errors.contains(words),
            "{folder:?}: {code} {errors}"
        );
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
}
