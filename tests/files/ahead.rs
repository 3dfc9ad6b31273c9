//! What is requested before it is read: the bytes of files in order, and nothing else.

use std::os::unix::fs::FileExt;
use std::process::Stdio;

use super::*;

/// Blocks that hold the files of [`Site`], about: 30 MB of small files, 18 MB of tiny ones, 60 MB of a large one; and metadata.
const SMALL: u64 = 58;
const TINY: u64 = 36;
const LARGE: u64 = 115;
const METADATA: u64 = 20;

/// A snapshot of an ext4 with 50 files of 600 KB, 300 of 60 KB and one of 60 MB, 100 ms away.
struct Site {
    emulator: Emulator,
    images: Images,
    snapshot: String,
}

impl Site {
    fn new() -> Self {
        let emulator = Emulator::start();
        let images = Images::new();
        images.sh(&format!(
            "mkdir -p content/small/below content/z/below
             echo first > content/small/below/file; echo last > content/z/below/file
             for n in $(seq 50); do head -c 600000 /dev/urandom > content/small/$n; done
             mkdir content/tiny; head -c 18000000 /dev/urandom | split -a 4 -b 60000 - content/tiny/
             head -c 60000000 /dev/urandom > content/large
             truncate -s 400M {disk}; mkfs.ext4 -q -d content {disk}",
            disk = emulator.volume("vol-0a").display()
        ));
        let snapshot = emulator.snapshot("vol-0a");
        emulator.set("latency_ms=100");
        Self {
            emulator,
            images,
            snapshot,
        }
    }

    /// `ebsfs files COMMAND SNAPSHOT WORDS`.
    fn files(&self, command: &str, words: &[&str]) -> Command {
        let mut files = self
            .emulator
            .ebsfs(&[&["files", command, &self.snapshot], words].concat());
        files.current_dir(self.images.at(""));
        files
    }

    /// Runs something. Returns the blocks that it fetched, and the most requests at once.
    fn cost(&self, work: impl FnOnce()) -> (u64, u64) {
        self.emulator.reset();
        work();
        (self.emulator.gets(), self.emulator.count("most_at_once"))
    }
}

#[test]
fn files_are_fetched_side_by_side_and_each_block_once() {
    let site = Site::new();
    fs::create_dir(site.images.at("copy")).unwrap();
    let (gets, at_once) = site.cost(|| drop(run(&mut site.files("cp", &["/small", "copy"]))));
    assert!(gets <= SMALL + METADATA, "{gets}");
    // One after the other, each of two blocks, they were never more than two.
    assert!(at_once >= 16, "{at_once}");
    for number in 1..=50 {
        let name = format!("small/{number}");
        let copy = fs::read(site.images.at(&format!("copy/{name}"))).unwrap();
        assert!(copy == fs::read(site.images.at(&format!("content/{name}"))).unwrap());
    }
    let (gets, at_once) = site.cost(|| drop(run(&mut site.files("cp", &["/tiny", "copy"]))));
    assert!(gets <= TINY + METADATA, "{gets}");
    // If each file counted as a block, there were 48 files: 6 blocks.
    assert!(at_once >= 12, "{at_once}");
    for (name, path) in tree(&site.images.at("content/tiny")) {
        let copy = site
            .images
            .at("copy/tiny")
            .join(String::from_utf8(name[1..].to_vec()).unwrap());
        assert!(path.is_dir() || fs::read(copy).unwrap() == fs::read(path).unwrap());
    }
    let mut bytes = Vec::new();
    let (gets, at_once) = site.cost(|| {
        let output = site.files("cat", &["/large"]).output().unwrap();
        bytes = output.stdout;
    });
    assert!(gets <= LARGE + METADATA, "{gets}");
    assert!(at_once >= 24, "{at_once}");
    assert!(bytes == fs::read(site.images.at("content/large")).unwrap());
}

#[test]
fn folders_are_requested_before_they_are_entered() {
    let emulator = Emulator::start();
    let images = Images::new();
    // The blocks of each folder lie between files.
    images.sh(&format!(
        "for n in $(seq 100); do mkdir -p content/$n; head -c 600000 /dev/urandom > content/$n/file; done
         truncate -s 300M {disk}; mkfs.ext4 -q -d content {disk}",
        disk = emulator.volume("vol-0a").display()
    ));
    let snapshot = emulator.snapshot("vol-0a");
    emulator.set("latency_ms=100");
    emulator.reset();
    let mut find = emulator.ebsfs(&["files", "find", &snapshot]);
    let running = find.stdout(Stdio::piped()).spawn().unwrap();
    wait_for("half of the blocks", || emulator.gets() > 60);
    let first = emulator.gets();
    // Not only the first ones.
    emulator.reset();
    let output = running.wait_with_output().unwrap();
    let found = String::from_utf8(output.stdout).unwrap();
    assert_eq!(found.lines().count(), 2 + 200);
    // 60 MB are 115 blocks.
    let (gets, at_once) = (emulator.gets(), emulator.count("most_at_once"));
    assert!(first + gets <= 115 + METADATA, "{first} and {gets}");
    assert!(at_once >= 8, "{at_once}");
}

#[test]
fn a_folder_that_cannot_be_made_is_passed_over_with_all_that_is_in_it() {
    let site = Site::new();
    fs::create_dir(site.images.at("copy")).unwrap();
    fs::write(site.images.at("copy/small"), "a file of another kind").unwrap();
    let output = site.files("cp", &["/", "copy"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/small: "), "{said}");
    assert!(!said.contains("/small/"), "{said}");
    let names = tree(&site.images.at("copy")).into_keys();
    let mut names = names.filter(|name| !name.starts_with(b"/tiny/"));
    let expected = [
        "/",
        "/large",
        "/lost+found",
        "/small",
        "/tiny",
        "/z",
        "/z/below",
        "/z/below/file",
    ];
    assert!(
        names
            .by_ref()
            .eq(expected.map(|name| name.as_bytes().to_vec()))
    );
    let last = fs::read(site.images.at("copy/z/below/file")).unwrap();
    assert_eq!(last, b"last\n");
}

#[test]
fn a_mount_reads_ahead_of_reads_in_order_and_of_no_others() {
    let site = Site::new();
    let folder = tempfile::tempdir().unwrap();
    let point = folder.path().to_owned();
    let _mount = Mount::start_at(folder, site.files("mount", &[]), &[]);
    let content = fs::read(site.images.at("content/large")).unwrap();
    let large = fs::File::open(point.join("large")).unwrap();
    rustix::fs::fadvise(&large, 0, None, rustix::fs::Advice::Random).unwrap();
    let (gets, _) = site.cost(|| {
        for number in (0..20_usize).rev() {
            let offset = number * 3_000_000;
            let mut bytes = [0; 4096];
            large.read_exact_at(&mut bytes, offset as u64).unwrap();
            assert!(bytes == content[offset..offset + 4096], "{offset}");
        }
    });
    assert!(gets <= 20 + METADATA, "{gets}");
    drop(large);
    let (gets, at_once) = site.cost(|| {
        assert!(fs::read(point.join("large")).unwrap() == content);
    });
    assert!(gets <= LARGE, "{gets}");
    assert!(at_once >= 8, "{at_once}");
}
