//! [`DemoDisk`]: a volume of 1 GiB, nearly all of it holes. With the tools of Linux it has a GPT and one ext4 partition with a few
//! files; without them a pattern.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::drill::find_program;
use crate::error::{Error, Kind, Result};
use crate::files::copy_data;

/// The id of the demo volume.
pub(super) const VOLUME: &str = "vol-0de30";
/// Bytes of the volume: the smallest volume of EBS.
const SIZE: u64 = 1 << 30;
/// Where the partition begins.
pub(super) const PARTITION: u64 = 1 << 20;
/// KiB of the filesystem; the last MiB of the volume holds the second partition table.
const FILESYSTEM_KIB: u64 = (SIZE - PARTITION - (1 << 20)) >> 10;
/// How long a tool may take. Each takes less than a second.
const LONGEST: Duration = Duration::from_secs(60);
/// Bytes of a tool's messages that are looked at.
const MOST_MESSAGES: u64 = 4096;
/// Bytes of a block of the pattern: a block of EBS.
const BLOCK: usize = 512 << 10;
/// Blocks of the pattern.
const PATTERN: u64 = 32;

/// The tools that make a filesystem in a file, also for users other than root.
#[derive(Debug)]
struct DiskTools {
    sfdisk: PathBuf,
    mkfs: PathBuf,
    debugfs: PathBuf,
}

/// The demo volume.
#[derive(Debug)]
pub(super) struct DemoDisk {
    path: PathBuf,
    tools: Option<DiskTools>,
}

impl DiskTools {
    fn find() -> Option<Self> {
        Some(Self {
            sfdisk: find_program("sfdisk")?,
            mkfs: find_program("mkfs.ext4")?,
            debugfs: find_program("debugfs")?,
        })
    }
}

impl DemoDisk {
    /// Makes the volume where the emulator of `folder` looks for it.
    ///
    /// # Errors
    /// What the system or a tool says.
    pub(super) async fn make(folder: &Path) -> Result<Self> {
        let path = folder.join(format!("emulator/volumes/{VOLUME}.raw"));
        let disk = Self {
            path,
            tools: DiskTools::find(),
        };
        let made = File::create_new(&disk.path).and_then(|file| {
            file.set_len(SIZE)?;
            Ok(file)
        });
        let file = made.map_err(|error| Error::of_file(&disk.path, "cannot make", error))?;
        match &disk.tools {
            Some(tools) => disk.fill_with_files(tools, folder).await?,
            None => disk.fill_with_pattern(&file)?,
        }
        Ok(disk)
    }

    /// Whether it holds a filesystem.
    pub(super) fn has_filesystem(&self) -> bool {
        self.tools.is_some()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the volume, with its holes.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn keep(&self, copy: &Path) -> Result<()> {
        let from = File::open(&self.path)
            .map_err(|error| Error::of_file(&self.path, "cannot read", error))?;
        let to = File::create_new(copy).and_then(|to| {
            to.set_len(SIZE)?;
            Ok(to)
        });
        let to = to.map_err(|error| Error::of_file(copy, "cannot make", error))?;
        copy_data(&from, &self.path, &to, copy, 0..SIZE, &|| Ok(()))
    }

    /// Changes the volume: files are written, rewritten and deleted.
    ///
    /// # Errors
    /// What the system or a tool says.
    pub(super) async fn change(&self, folder: &Path) -> Result<()> {
        let Some(tools) = &self.tools else {
            return self.change_pattern();
        };
        put(folder, "news", b"A second line, a day later.\n")?;
        put(folder, "second", &bytes(2, 6 << 20))?;
        let commands = "write news home/news.txt\nwrite second home/second.bin\nrm home/old.bin\n";
        let device = format!("{}?offset={PARTITION}", self.name());
        let arguments = ["-w", "-f", "-", &device];
        run(&tools.debugfs, &arguments, commands, folder).await?;
        for file in ["news", "second"] {
            remove(&folder.join(file))?;
        }
        Ok(())
    }

    /// The volume as tools in the demo's folder name it: their arguments have no strange characters then.
    fn name(&self) -> String {
        format!("emulator/volumes/{VOLUME}.raw")
    }

    async fn fill_with_files(&self, tools: &DiskTools, folder: &Path) -> Result<()> {
        for inside in ["tree/etc", "tree/home"] {
            let path = folder.join(inside);
            fs::create_dir_all(&path)
                .map_err(|error| Error::of_file(&path, "cannot make", error))?;
        }
        put(folder, "tree/etc/hostname", b"demo\n")?;
        let hello = b"Hello from inside an EBS snapshot.\n";
        put(folder, "tree/home/hello.txt", hello)?;
        put(folder, "tree/home/first.bin", &bytes(1, 16 << 20))?;
        put(folder, "tree/home/old.bin", &bytes(3, 4 << 20))?;
        let numbers: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
        put(folder, "tree/home/numbers.txt", numbers.as_bytes())?;
        let name = self.name();
        let table = "label: gpt\nstart=2048, type=linux, name=root\n";
        run(&tools.sfdisk, &["--quiet", &name], table, folder).await?;
        let offset = format!("offset={PARTITION}");
        let size = format!("{FILESYSTEM_KIB}K");
        #[rustfmt::skip]
        let arguments = ["-q", "-F", "-L", "demo", "-d", "tree", "-E", &offset, &name, &size];
        run(&tools.mkfs, &arguments, "", folder).await?;
        let tree = folder.join("tree");
        fs::remove_dir_all(&tree).map_err(|error| Error::of_file(&tree, "cannot remove", error))
    }

    fn fill_with_pattern(&self, file: &File) -> Result<()> {
        (0..PATTERN).try_for_each(|index| self.write_block(file, index, "first"))
    }

    fn change_pattern(&self) -> Result<()> {
        let file = OpenOptions::new().write(true).open(&self.path);
        let file = file.map_err(|error| Error::of_file(&self.path, "cannot open", error))?;
        [3, 17, 100]
            .into_iter()
            .try_for_each(|index| self.write_block(&file, index, "second"))
    }

    /// Writes a block: a line that a person can read, then bytes that do not compress.
    fn write_block(&self, file: &File, index: u64, when: &str) -> Result<()> {
        let mut block = bytes(index, BLOCK);
        let line = format!("block {index} of the demo volume, the {when} time\n");
        for (byte, from) in block.iter_mut().zip(line.bytes()) {
            *byte = from;
        }
        file.write_all_at(&block, index * BLOCK as u64)
            .map_err(|error| Error::of_file(&self.path, "cannot write", error))
    }
}

/// Bytes that depend on `seed` alone.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

fn put(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, bytes).map_err(|error| Error::of_file(&path, "cannot write", error))
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(|error| Error::of_file(path, "cannot remove", error))
}

/// Runs a tool in `folder` with `input` as its standard input.
async fn run(tool: &Path, arguments: &[&str], input: &str, folder: &Path) -> Result<()> {
    let name = tool.display();
    let failed = |error| Error::with_source(Kind::Io, format!("cannot run {name}"), error);
    let messages = folder.join("messages");
    let log = File::create(&messages)
        .map_err(|error| Error::of_file(&messages, "cannot write", error))?;
    let mut child = Command::new(tool)
        .args(arguments)
        .env("LC_ALL", "C")
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        // Ctrl-C is for the demo, which then ends the tool.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let ended = timeout(LONGEST, async {
        if let Some(mut stdin) = stdin {
            // A tool that ends early reports why by its exit code.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait().await
    });
    let Ok(status) = ended.await else {
        let what = format!("cannot make the demo volume: {name} takes longer than {LONGEST:?}");
        return Err(Error::new(Kind::Io, what));
    };
    let status = status.map_err(failed)?;
    if !status.success() {
        let said = last_line(&messages);
        let what = format!("cannot make the demo volume: {name} ended with {status}: {said}");
        return Err(Error::new(Kind::Io, what));
    }
    remove(&messages)
}

/// The last line of a tool's messages, without control characters.
fn last_line(messages: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(messages).and_then(|mut file| {
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(MOST_MESSAGES)))?;
        file.take(MOST_MESSAGES).read_to_end(&mut bytes)
    });
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rfind(|line| !line.trim().is_empty());
    match (read, line) {
        (Ok(_), Some(line)) => crate::cli::plain(line.trim()),
        _ => "it printed nothing".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("emulator/volumes")).unwrap();
        folder
    }

    #[tokio::test]
    async fn a_tool_that_fails_is_named_with_its_last_words() {
        let folder = folder();
        let arguments = ["-c", "echo first >&2; echo no room >&2; exit 3"];
        let failed = run(Path::new("/bin/sh"), &arguments, "", folder.path()).await;
        let said = failed.unwrap_err().chain();
        assert!(
            said.contains("/bin/sh") && said.ends_with("no room"),
            "{said}"
        );
        let absent = run(Path::new("/absent"), &[], "", folder.path()).await;
        assert!(absent.is_err());
    }

    #[tokio::test]
    async fn without_tools_the_volume_is_a_pattern_that_changes_in_three_blocks() {
        let folder = folder();
        let path = folder.path().join("emulator/volumes/vol-0de30.raw");
        let disk = DemoDisk { path, tools: None };
        let file = File::create_new(&disk.path).unwrap();
        file.set_len(SIZE).unwrap();
        disk.fill_with_pattern(&file).unwrap();
        let before = folder.path().join("before.raw");
        disk.keep(&before).unwrap();
        disk.change(folder.path()).await.unwrap();
        let (old, new) = (
            File::open(&before).unwrap(),
            File::open(&disk.path).unwrap(),
        );
        let read = |file: &File, index: u64| {
            let mut block = vec![0; BLOCK];
            file.read_exact_at(&mut block, index * BLOCK as u64)
                .unwrap();
            block
        };
        let differ =
            (0..SIZE / BLOCK as u64).filter(|index| read(&old, *index) != read(&new, *index));
        assert_eq!(differ.collect::<Vec<_>>(), [3, 17, 100]);
        assert!(read(&new, 17).starts_with(b"block 17 of the demo volume, the second time\n"));
    }
}
