//! What a newcomer meets: `ebsfs` alone, `ebsfs demo`, and errors that name the package or the setting that is missing.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::readme::{blocks, commands, page};
use crate::support::*;

/// A user other than root.
const USER: u32 = 65534;

/// A folder that every user can enter and write.
fn public_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mode = std::fs::Permissions::from_mode(0o1777);
    std::fs::set_permissions(folder.path(), mode).unwrap();
    folder
}

/// The program where every user can run it. A link, not a copy of 200 MB, where the filesystem is the same.
fn public_program(folder: &Path) -> PathBuf {
    let program = folder.join("ebsfs");
    if std::fs::hard_link(EBSFS, &program).is_err() {
        std::fs::copy(EBSFS, &program).unwrap();
    }
    program
}

/// Makes a command run as [`USER`].
fn as_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={USER}"))
        .arg(format!("--regid={USER}"))
        .arg("--clear-groups")
        .arg(program);
    command
}

/// A demo that runs. Dropping it kills it and detaches its mount.
struct Demo {
    process: Child,
    /// What it has printed.
    text: String,
}

impl Demo {
    fn start(mut command: Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap());
        let mut text = String::new();
        while !text.contains("Ctrl-C ends the demo") {
            assert!(lines.read_line(&mut text).unwrap() > 0, "{text}");
        }
        Self { process, text }
    }

    /// The value behind a word at the beginning of a line.
    fn value(&self, word: &str) -> &str {
        let mut lines = self.text.lines();
        let line = lines.find_map(|line| line.strip_prefix(word));
        line.unwrap_or_else(|| panic!("{word}: {}", self.text))
            .trim()
    }

    fn folder(&self) -> PathBuf {
        self.value("files").into()
    }

    fn mountpoint(&self) -> PathBuf {
        self.value("mounted at").into()
    }

    /// The commands that it says to try.
    fn commands(&self) -> String {
        let (_, rest) = self.text.split_once("another terminal:\n").unwrap();
        rest.split("\n\n").next().unwrap().to_owned()
    }

    /// Ends it by a signal; its exit code.
    fn end(&mut self, signal: &str) -> Option<i32> {
        let pid = self.process.id().to_string();
        run(Command::new("kill").args([signal, &pid]));
        self.process.wait().unwrap().code()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap().is_none() {
            let _ = self.process.kill();
            let _ = self.process.wait();
            let mut command = Command::new("umount");
            let _ = command.arg("--lazy").arg(self.mountpoint()).status();
        }
    }
}

fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    table.contains(path.to_str().unwrap())
}

#[test]
fn ebsfs_alone_prints_five_commands_and_is_no_success() {
    let output = Command::new(EBSFS).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stderr.is_empty());
    let commands = text.lines().filter(|line| line.starts_with("  ebsfs "));
    assert_eq!(commands.count(), 5, "{text}");
    assert!(
        text.contains("ebsfs demo") && text.contains("--help"),
        "{text}"
    );
}

#[test]
fn a_demo_shows_two_snapshots_whose_commands_work_and_leaves_nothing() {
    let (temporary, point) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut command = Command::new(EBSFS);
    command.arg("demo").arg(point.path());
    command.env("TMPDIR", temporary.path());
    let mut demo = Demo::start(command);
    assert_eq!(demo.mountpoint(), point.path());
    let work = tempfile::tempdir().unwrap();
    let said = sh(&format!(
        "cd {}\n{}",
        work.path().display(),
        demo.commands()
    ));
    assert!(said.contains("A second line, a day later."), "{said}");
    assert!(said.contains("vol-0de30"), "{said}");
    // Independent of the emulator: what the volume was, and what it is.
    let variables = "echo $demo_first $demo_second $demo_before $demo_volume";
    let folder = demo.folder();
    let said = sh(&format!(". {}/environment\n{variables}", folder.display()));
    let words: Vec<&str> = said.split_whitespace().collect();
    let image = |id: &str| point.path().join("snapshots").join(id).join("disk.raw");
    assert_same(&image(words[0]), Path::new(words[2]));
    assert_same(&image(words[1]), Path::new(words[3]));
    assert!(!is_same(Path::new(words[2]), Path::new(words[3])));
    assert_same(&work.path().join("copy.raw"), Path::new(words[3]));
    assert_eq!(demo.end("-TERM"), Some(0));
    assert!(!is_mounted(point.path()) && !folder.exists());
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
fn a_user_other_than_root_sees_the_demo_in_a_private_folder() {
    let folder = public_folder();
    let program = public_program(folder.path());
    let temporary = folder.path().join("temporary files");
    std::fs::create_dir(&temporary).unwrap();
    std::os::unix::fs::chown(&temporary, Some(USER), Some(USER)).unwrap();
    let mut command = as_user(&program);
    command.arg("demo").env("TMPDIR", &temporary);
    let mut demo = Demo::start(command);
    assert!(demo.mountpoint().starts_with(&temporary));
    let mut command = as_user(Path::new("bash"));
    let work = temporary.join("work");
    std::fs::create_dir(&work).unwrap();
    std::os::unix::fs::chown(&work, Some(USER), Some(USER)).unwrap();
    command
        .args(["-euo", "pipefail", "-c", &demo.commands()])
        .current_dir(&work);
    let said = run(&mut command);
    assert!(said.contains("A second line, a day later."), "{said}");
    let mode = demo.folder().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let path = demo.folder();
    assert_eq!(demo.end("-INT"), Some(0));
    assert!(!path.exists());
}

#[test]
fn nothing_is_made_where_another_user_can_replace_it() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let open = folder.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let of_user = folder.path().join("of a user");
    std::fs::create_dir(&of_user).unwrap();
    std::os::unix::fs::chown(&of_user, Some(USER), Some(USER)).unwrap();
    for place in [&open, &of_user] {
        let mut demo = Command::new(EBSFS);
        demo.arg("demo").env("TMPDIR", place);
        let mut drill = Command::new(EBSFS);
        drill.arg("drill").arg(&image).arg("--scratch").arg(place);
        for command in [&mut demo, &mut drill] {
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains("cannot make private files in"), "{said}");
        }
        assert_eq!(std::fs::read_dir(place).unwrap().count(), 0);
    }
}

#[test]
fn a_killed_demo_does_not_hinder_the_next_one() {
    let (temporary, point) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = || {
        let mut command = Command::new(EBSFS);
        command.arg("demo").arg(point.path());
        command.env("TMPDIR", temporary.path());
        Demo::start(command)
    };
    let mut killed = start();
    killed.end("-KILL");
    let mut next = start();
    assert_ne!(killed.folder(), next.folder());
    let shown = std::fs::read_dir(point.path().join("snapshots")).unwrap();
    assert!(shown.count() >= 2);
    assert_eq!(next.end("-TERM"), Some(0));
    assert!(!is_mounted(point.path()));
}

#[test]
fn every_command_of_the_demo_page_works_as_it_stands_there() {
    let emulator = Emulator::start();
    let folder = tempfile::tempdir().unwrap();
    let text = page("docs/demo.md");
    assert_eq!(blocks(&text).len(), 1);
    let mut command = commands(&emulator, &text, ["", ""], folder.path());
    command.env("TMPDIR", folder.path());
    let said = run(&mut command);
    assert!(said.contains("A second line, a day later."), "{said}");
    assert_eq!(names(folder.path()), ["demo.txt"]);
}

#[test]
fn a_demo_does_not_mount_over_files() {
    let point = tempfile::tempdir().unwrap();
    std::fs::write(point.path().join("a"), "a").unwrap();
    let (code, said) = ends(Command::new(EBSFS).arg("demo").arg(point.path()));
    assert!(code == 1 && said.contains("is not empty"), "{code}: {said}");
}

/// One line on stderr that begins with `ebsfs: ` and has these words.
#[track_caller]
fn says(command: &mut Command, code: i32, words: &[&str]) {
    let (got, said) = ends_within(Duration::from_secs(20), command);
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("ebsfs: "))
        .collect();
    assert_eq!((got, lines.len()), (code, 1), "{said}");
    for word in words {
        assert!(lines[0].contains(word), "{word}: {said}");
    }
}

#[test]
fn without_fusermount3_the_package_is_named() {
    let folder = public_folder();
    let program = public_program(folder.path());
    let point = folder.path().join("point");
    std::fs::create_dir(&point).unwrap();
    std::os::unix::fs::chown(&point, Some(USER), Some(USER)).unwrap();
    let emulator = Emulator::start();
    let mut command = emulator.command("setpriv");
    command
        .arg(format!("--reuid={USER}"))
        .arg(format!("--regid={USER}"))
        .arg("--clear-groups")
        .args(["env", "PATH=/nonexistent"])
        .arg(&program)
        .arg("mount")
        .arg("--lazy")
        .arg(&point);
    says(
        &mut command,
        1,
        &["there is no fusermount3", "package fuse3"],
    );
}

#[test]
fn without_a_driver_behind_dev_fuse_the_module_is_named() {
    let emulator = Emulator::start();
    let point = tempfile::tempdir().unwrap();
    // A device number that no driver has.
    let script = format!(
        "mount -t tmpfs none /dev && mknod -m 666 /dev/fuse c 10 77 && mknod -m 666 /dev/null c 1 3 && \
         exec {EBSFS} mount --lazy {}",
        point.path().display()
    );
    let mut command = emulator.command("unshare");
    command.args(["--mount", "--propagation=private", "sh", "-c", &script]);
    says(
        &mut command,
        1,
        &[
            "/dev/fuse has no driver",
            "modprobe fuse",
            "--device /dev/fuse",
        ],
    );
}

#[test]
fn without_the_right_to_mount_the_option_of_the_container_is_named() {
    let emulator = Emulator::start();
    let point = tempfile::tempdir().unwrap();
    let mut command = emulator.command("setpriv");
    command
        .args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", EBSFS])
        .args(["mount", "--lazy"])
        .arg(point.path());
    says(&mut command, 1, &["--cap-add SYS_ADMIN"]);
}

/// The program with nothing in its environment but these variables.
fn bare(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(EBSFS);
    command
        .args(args)
        .env_clear()
        .env("HOME", home)
        .env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

#[test]
fn without_a_region_or_credentials_all_ways_to_give_them_are_named() {
    let home = tempfile::tempdir().unwrap();
    let words = [
        "no AWS Region",
        "--region",
        "AWS_REGION",
        "~/.aws/config",
        "ebsfs demo",
    ];
    says(&mut bare(home.path(), &["ls"]), 2, &words);
    let words = [
        "no AWS credentials",
        "--profile",
        "AWS_PROFILE",
        "AWS_ACCESS_KEY_ID",
        "aws sso login",
        "role",
        "ebsfs demo",
    ];
    let mut command = bare(home.path(), &["ls", "--region", "us-east-1"]);
    says(&mut command, 4, &words);
}

#[test]
fn without_certificate_authorities_the_package_and_the_setting_are_named() {
    let home = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut emulator = Command::new(EBSFS)
        .arg("emulator")
        .arg(folder.path())
        .args(["--listen", "127.0.0.1:0", "--tls"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut lines = BufReader::new(emulator.stdout.take().unwrap());
    lines.read_line(&mut line).unwrap();
    let (_, url) = line.split_once("AWS_ENDPOINT_URL=").unwrap();
    let url = url.split(' ').next().unwrap();
    assert!(url.starts_with("https://"), "{line}");
    let mut command = bare(home.path(), &["ls", "--region", "us-east-1"]);
    command
        .args(["--endpoint-url", url])
        .env(
            "AWS_SHARED_CREDENTIALS_FILE",
            folder.path().join("credentials"),
        )
        .env("SSL_CERT_FILE", "/dev/null")
        .env("SSL_CERT_DIR", "/nonexistent");
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        says(
            &mut command,
            7,
            &["package ca-certificates", "AWS_CA_BUNDLE"],
        );
    }));
    emulator.kill().unwrap();
    emulator.wait().unwrap();
    ended.unwrap();
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}
