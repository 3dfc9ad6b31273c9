//! `ebsfs files`: every file as other readers of the same image see it, by a process that can do nothing else.

mod ahead;
mod broken;
mod corpus;
mod destinations;
mod ext;
mod fat;
mod ntfs;
mod restarts;
mod sandbox;
mod streams;
mod views;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::*;

/// A folder for the images of a test, and what it mounts.
struct Images {
    folder: TempDir,
    _held: Holders,
}

impl Images {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let held = Holders(folder.path().to_owned());
        Self {
            folder,
            _held: held,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs lines of bash there. After an umount, ntfs-3g still writes what it has, and holds its image.
    fn sh(&self, script: &str) -> String {
        sh(&format!(
            r#"cd {}
            umount() {{
                command umount "$@"
                for process in $(pgrep -x ntfs-3g); do
                    for _ in $(seq 1000); do
                        [[ $(ls -l /proc/$process/fd 2> /dev/null) == *"-> $PWD/"* ]] || break
                        sleep 0.02
                    done
                done
            }}
            {script}"#,
            self.folder.path().display()
        ))
    }

    /// `ebsfs files COMMAND`.
    fn files(&self, words: &[&str]) -> Command {
        let mut command = Command::new(EBSFS);
        command
            .arg("files")
            .args(words)
            .current_dir(self.folder.path())
            .env("EBSFS_STATE_DIR", self.at("state"))
            .env("AWS_SECRET_ACCESS_KEY", "must-not-be-seen");
        command
    }

    fn run(&self, words: &[&str]) -> Vec<u8> {
        let output = self.files(words).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {errors}");
        output.stdout
    }

    /// The lines of a command with `--json`, by path.
    fn json(&self, words: &[&str]) -> BTreeMap<Vec<u8>, Value> {
        let text = self.run(words);
        let lines = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let value: Value = serde_json::from_slice(line).unwrap();
                (path_of(&value), value)
            })
            .collect()
    }
}

/// The bytes of a path in JSON.
fn path_of(value: &Value) -> Vec<u8> {
    match value["path_hex"].as_str() {
        Some(digits) => digits
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect(),
        None => value["path"].as_str().unwrap().as_bytes().to_vec(),
    }
}

/// All paths below a folder, as `/a/b`, with the folder itself as `/`.
fn tree(folder: &Path) -> BTreeMap<Vec<u8>, PathBuf> {
    let mut found = BTreeMap::from([(b"/".to_vec(), folder.to_owned())]);
    let mut waiting = vec![folder.to_owned()];
    while let Some(at) = waiting.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            let below = path.strip_prefix(folder).unwrap().as_os_str().as_bytes();
            found.insert([b"/", below].concat(), path.clone());
            if path.symlink_metadata().unwrap().is_dir() {
                waiting.push(path);
            }
        }
    }
    found
}

/// Extended attributes of a file, not through a link.
fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let Ok(len) = rustix_list(path, &mut names) else {
        return BTreeMap::new();
    };
    let names = names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let name = OsString::from_vec(name.to_vec());
            let len = rustix::fs::lgetxattr(path, &*name, &mut value[..]).unwrap();
            value.truncate(len);
            (name, value)
        })
        .collect()
}

fn rustix_list(path: &Path, names: &mut [u8]) -> rustix::io::Result<usize> {
    rustix::fs::llistxattr(path, names)
}

/// What a copy must have kept of a file, one line for each member.
fn kept(path: &Path) -> String {
    let found = path.symlink_metadata().unwrap();
    let kind = found.file_type();
    let mut lines = vec![
        format!("mode {:o}", found.mode()),
        format!("owner {}:{}", found.uid(), found.gid()),
        format!("modified {}.{:09}", found.mtime(), found.mtime_nsec()),
    ];
    if kind.is_char_device() || kind.is_block_device() {
        lines.push(format!("device {}", found.rdev()));
    }
    if kind.is_symlink() {
        lines.push(format!("target {:?}", fs::read_link(path).unwrap()));
    }
    if kind.is_file() {
        lines.push(format!("size {} names {}", found.len(), found.nlink()));
    }
    if !kind.is_symlink() {
        lines.push(format!("xattrs {:?}", xattrs(path)));
    }
    lines.join("\n")
}

/// Asserts that two trees have the same files with the same bytes and metadata. Returns how many there are.
fn assert_same_tree(copy: &Path, oracle: &Path) -> usize {
    let (ours, theirs) = (tree(copy), tree(oracle));
    let names = |tree: &BTreeMap<Vec<u8>, PathBuf>| {
        tree.keys()
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&ours), names(&theirs));
    assert_eq!(
        ours.keys().collect::<Vec<_>>(),
        theirs.keys().collect::<Vec<_>>()
    );
    let mut numbers = BTreeMap::new();
    for (name, ours) in &ours {
        let theirs = &theirs[name];
        let shown = String::from_utf8_lossy(name);
        if name != b"/" {
            assert_eq!(kept(ours), kept(theirs), "{shown}");
        }
        let (one, other) = (
            ours.symlink_metadata().unwrap(),
            theirs.symlink_metadata().unwrap(),
        );
        if one.is_file() {
            // One has 5 GiB, nearly all of it holes.
            assert!(is_same(ours, theirs), "{shown}");
            // Names of one file there are names of one file here.
            let known = numbers.insert(other.ino(), one.ino());
            assert!(known.is_none_or(|known| known == one.ino()), "{shown}");
        }
    }
    ours.len()
}

/// Asserts that a find with `--json` says of each file what the kernel says.
fn assert_same_metadata(found: &BTreeMap<Vec<u8>, Value>, oracle: &Path) {
    let theirs = tree(oracle);
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        theirs.keys().collect::<Vec<_>>()
    );
    for (name, ours) in found {
        let path = &theirs[name];
        let theirs = path.symlink_metadata().unwrap();
        let shown = String::from_utf8_lossy(name);
        assert_eq!(
            ours["mode"].as_str().unwrap(),
            format!("{:04o}", theirs.mode() & 0o7777),
            "{shown}"
        );
        for (member, value) in [
            ("uid", u64::from(theirs.uid())),
            ("gid", theirs.gid().into()),
            ("links", theirs.nlink()),
            ("inode", theirs.ino()),
        ] {
            assert_eq!(ours[member].as_u64().unwrap(), value, "{member} of {shown}");
        }
        if !theirs.is_dir() {
            assert_eq!(ours["size"].as_u64().unwrap(), theirs.size(), "{shown}");
        }
        for (member, seconds, nanoseconds) in [
            ("modified", theirs.mtime(), theirs.mtime_nsec()),
            ("accessed", theirs.atime(), theirs.atime_nsec()),
            ("changed", theirs.ctime(), theirs.ctime_nsec()),
        ] {
            let expected = time_text(seconds, nanoseconds);
            assert_eq!(
                ours[member].as_str().unwrap(),
                expected,
                "{member} of {shown}"
            );
        }
        if let Ok(created) = theirs.created()
            && let Some(ours) = ours["created"].as_str()
        {
            let since = created.duration_since(std::time::UNIX_EPOCH).unwrap();
            let expected = time_text(since.as_secs() as i64, i64::from(since.subsec_nanos()));
            assert_eq!(ours, expected, "{shown}");
        }
    }
}

/// A time as `date` writes it.
fn time_text(seconds: i64, nanoseconds: i64) -> String {
    let date =
        chrono::DateTime::from_timestamp(seconds, u32::try_from(nanoseconds).unwrap()).unwrap();
    date.format("%Y-%m-%dT%H:%M:%S.%fZ").to_string()
}
