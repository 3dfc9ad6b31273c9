//! A parser that ends: only the request in flight fails, until the parser has ended too often.

use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::*;

/// The process id of the parser that a process has started.
fn parser_of(process: u32) -> u32 {
    let mut found = None;
    wait_for("a parser", || {
        let of = format!("pgrep -P {process} -f 'ebsfs files-parser' || true");
        found = sh(&of).trim().parse().ok();
        found.is_some()
    });
    found.unwrap()
}

fn signal(process: u32, name: &str) {
    run(Command::new("kill").args([&format!("-{name}"), &process.to_string()]));
}

/// Kills a parser, and waits until it has ended.
fn kill(parser: u32) {
    signal(parser, "KILL");
    wait_for("the parser to end", || {
        let stat = fs::read_to_string(format!("/proc/{parser}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
    });
}

#[test]
fn a_parser_that_ends_fails_only_the_request_in_flight() {
    let images = Images::new();
    images.sh(
        "mkdir -p content/folder
         for name in hostile kept folder/other; do head -c 1000000 /dev/urandom > content/$name; done
         truncate -s 32M image.raw; mkfs.ext4 -q -d content image.raw",
    );
    let point = tempfile::tempdir().unwrap();
    let at = point.path().to_owned();
    let mut mount = Mount::start_at(point, images.files(&["mount", "image.raw"]), &[]);
    let expected = |name: &str| fs::read(images.at("content").join(name)).unwrap();
    let first = parser_of(mount.process.id());
    let (kept, hostile) = (open(&at.join("kept")), open(&at.join("hostile")));
    let number = kept.metadata().unwrap().ino();
    let mut start = [0; 100];
    kept.read_exact_at(&mut start, 0).unwrap();

    // The parser hangs at one file, and is killed before it answers.
    signal(first, "STOP");
    let reader = std::thread::spawn(move || {
        let read = hostile.read_at(&mut [0; 100], 0);
        (hostile, read.unwrap_err().raw_os_error())
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(!reader.is_finished());
    kill(first);
    let (hostile, error) = reader.join().unwrap();
    assert_eq!(error, Some(libc::EIO));

    // Open files and inode numbers stay valid.
    let mut end = vec![0; 500_000];
    kept.read_exact_at(&mut end, 500_000).unwrap();
    assert_eq!(start, expected("kept")[..100]);
    assert_eq!(end, expected("kept")[500_000..]);
    assert_eq!(at.join("kept").metadata().unwrap().ino(), number);
    assert_eq!(
        fs::read(at.join("folder/other")).unwrap(),
        expected("folder/other")
    );
    assert_eq!(
        tree(&at).len(),
        tree(&images.at("content")).len() + 1,
        "and lost+found"
    );
    let second = parser_of(mount.process.id());
    assert_ne!(first, second);

    // The request that ended it is not sent again.
    for _ in 0..2 {
        let error = hostile.read_at(&mut [0; 100], 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    assert_eq!(parser_of(mount.process.id()), second);
    let log = mount.log();
    assert!(
        log.contains("its parser ended (signal: 9 (SIGKILL))"),
        "{log}"
    );
    assert!(
        log.contains("was started again (1 of 10 times in 60 s)"),
        "{log}"
    );

    // If the parser ends between requests, no request fails: nine more times.
    let since = Instant::now();
    let look = |name: String| at.join(name).metadata().unwrap_err().raw_os_error();
    for time in 0..9 {
        kill(parser_of(mount.process.id()));
        assert_eq!(look(format!("no-such-{time}")), Some(libc::ENOENT));
    }
    kill(parser_of(mount.process.id()));
    for time in 0..3 {
        assert_eq!(
            look(format!("failed-{time}")),
            Some(libc::EIO),
            "{:?}",
            since.elapsed()
        );
    }
    let log = mount.log();
    let what = "cannot read the filesystem any more: its parser ended 11 times within 60 s";
    assert!(log.contains(what), "{log}");
    drop((kept, hostile));
    mount.signal("TERM");
    assert_eq!(mount.wait(Duration::from_secs(10)), Some(0));
}

/// A snapshot of 300 files that takes 6 s to copy, and its copy that runs.
struct SlowCopy {
    images: Images,
    running: Child,
    _emulator: Emulator,
}

impl SlowCopy {
    fn start() -> Self {
        let emulator = Emulator::start();
        let images = Images::new();
        images.sh(&format!(
            "mkdir -p content; for n in $(seq 300); do head -c 200000 /dev/urandom > content/$n; done
             truncate -s 400M {disk}; mkfs.ext4 -q -d content {disk}; mkdir copy",
            disk = emulator.volume("vol-0a").display()
        ));
        let snapshot = emulator.snapshot("vol-0a");
        emulator.set("get_rps=20&get_rps_snapshot=20");
        let mut command = emulator.ebsfs(&["files", "cp", &snapshot, "/", "copy"]);
        let command = command.current_dir(images.at("")).stderr(Stdio::piped());
        Self {
            running: command.spawn().unwrap(),
            images,
            _emulator: emulator,
        }
    }

    fn copied(&self) -> usize {
        fs::read_dir(self.images.at("copy")).unwrap().count()
    }

    /// Its exit code, and what it said.
    fn end(self) -> (Images, Option<i32>, String) {
        let output = self.running.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (self.images, output.status.code(), said)
    }
}

#[test]
fn a_copy_goes_on_behind_a_parser_that_ends() {
    let copy = SlowCopy::start();
    let mut kills = 0;
    wait_for("half of the copy", || {
        if copy.copied() > 60 * (kills + 1) {
            kill(parser_of(copy.running.id()));
            kills += 1;
        }
        kills == 2
    });
    let (images, code, said) = copy.end();
    assert!(said.contains("was started again"), "{said}");
    let mut missing = 0;
    for number in 1..=300 {
        let name = number.to_string();
        match fs::read(images.at("copy").join(&name)) {
            Ok(copy) => assert!(copy == fs::read(images.at("content").join(&name)).unwrap()),
            Err(_) => {
                missing += 1;
                assert!(said.contains(&format!("/{name}: ")), "{name} of {said}");
            }
        }
    }
    // What was in flight, if anything was.
    assert!(missing <= kills, "{missing}: {said}");
    assert_eq!(code, Some(i32::from(missing > 0)), "{said}");
}

#[test]
fn a_copy_whose_parsers_all_end_says_so_and_ends() {
    let mut copy = SlowCopy::start();
    let parsers = format!(
        "pkill -KILL -P {} -f 'ebsfs files-parser' || true",
        copy.running.id()
    );
    wait_for("the copy to begin", || copy.copied() > 10);
    wait_for("the copy to end", || {
        sh(&parsers);
        copy.running.try_wait().unwrap().is_some()
    });
    let (_, code, said) = copy.end();
    assert_eq!(code, Some(8), "{said}");
    let what = "cannot read the filesystem any more: its parser ended 11 times";
    assert!(said.contains(what), "{said}");
}
