//! The parsers of this program over damaged images, within the test: nothing hangs, nothing panics, no span leaves its file.
//!
//! `EBSFS_FUZZ=1000000` runs so many cases of each filesystem. tests/files/broken.rs does it through the real processes.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use super::ext::ExtReader;
use super::fat::FatReader;
use super::ntfs::NtfsReader;
use super::reader::{DiskWindow, FsReader, FsResult};
use super::remote::RemoteImage;
use super::wire::{FrameReader, FrameWriter, from_parser, to_parser};
use super::{FsData, NodeKind, SpanPlace};

/// Steps of a walk over a damaged image, at most.
const STEPS: usize = 2_000;

/// A session that has the image in memory.
struct MemoryLine {
    image: Rc<Vec<u8>>,
    sent: Vec<u8>,
    replies: VecDeque<u8>,
}

impl Write for MemoryLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sent.extend(bytes);
        if let Some(body) = self.sent.get(4..).filter(|body| !body.is_empty()) {
            let mut frame = FrameReader::new(body);
            assert_eq!(frame.u8(), Ok(from_parser::READ));
            let at = usize::try_from(frame.u64().unwrap()).unwrap();
            let len = frame.u32().unwrap() as usize;
            let mut reply = FrameWriter::new(to_parser::BYTES);
            reply.raw(&self.image[at..at + len]);
            self.replies.extend(reply.finish());
            self.sent.clear();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for MemoryLine {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.replies.read(buffer)
    }
}

type Opener = fn(DiskWindow) -> FsResult<Box<dyn FsReader>>;

/// A filesystem of this kind with some files, and what opens it.
fn originals(folder: &Path) -> Vec<(&'static str, Vec<u8>, Opener)> {
    let script = "cd \"$1\"; mkdir -p content/a/b; echo hello > content/hello; ln content/hello content/a/hard; ln -s hello content/link
        head -c 90000 /dev/urandom > content/a/b/data; for n in $(seq 40); do echo $n > content/a/file-$n; done
        for n in $(seq 0 7); do dd if=content/hello of=content/pieces bs=1024 seek=$((n * 5)) conv=notrunc status=none; done
        truncate -s 2M ext4.raw; mkfs.ext4 -q -b 1024 -I 256 -O inline_data -d content ext4.raw
        truncate -s 2M ext2.raw; mkfs.ext2 -q -b 1024 -d content ext2.raw
        truncate -s 4M ntfs.raw; mkfs.ntfs -q -F -f ntfs.raw > /dev/null 2>&1
        ntfscp -f ntfs.raw content/a/b/data data > /dev/null 2>&1; ntfscp -f ntfs.raw content/hello hello > /dev/null 2>&1
        ntfscp -f -N large ntfs.raw content/a/b/data hello > /dev/null 2>&1; ntfscp -f -N small ntfs.raw content/hello hello > /dev/null 2>&1
        truncate -s 1M fat.raw; mkfs.fat -F 12 fat.raw > /dev/null";
    let done = Command::new("bash")
        .args(["-euc", script, "bash"])
        .arg(folder)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let fat = folder.join("fat.raw");
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(fat)
        .unwrap();
    let volume = fatfs::FileSystem::new(file, fatfs::FsOptions::new()).unwrap();
    volume.root_dir().create_dir("folder").unwrap();
    for number in 0..20 {
        let name = format!("folder/a long name of a file {number}");
        let mut file = volume.root_dir().create_file(&name).unwrap();
        file.write_all(&vec![number; 3000]).unwrap();
    }
    drop(volume);
    let openers: [(&'static str, Opener); 4] = [
        ("ext4", |window| Ok(Box::new(ExtReader::open(window)?))),
        ("ext2", |window| Ok(Box::new(ExtReader::open(window)?))),
        ("fat", |window| Ok(Box::new(FatReader::open(window)?))),
        ("ntfs", |window| Ok(Box::new(NtfsReader::open(window)?))),
    ];
    let read = |(name, open): (&'static str, Opener)| {
        let image = std::fs::read(folder.join(format!("{name}.raw"))).unwrap();
        (name, image, open)
    };
    openers.into_iter().map(read).collect()
}

fn open(image: Vec<u8>, open: Opener) -> FsResult<Box<dyn FsReader>> {
    let size = image.len() as u64;
    let line = MemoryLine {
        image: Rc::new(image),
        sent: Vec::new(),
        replies: VecDeque::new(),
    };
    let mut image = RemoteImage::new(Box::new(line));
    image.set_size(size);
    open(DiskWindow::new(Rc::new(RefCell::new(image)), 0, size))
}

/// Reads all of a file or stream that can be read.
fn visit_file(reader: &mut dyn FsReader, data: &FsData, size: u64) -> FsResult<u64> {
    let mut at = 0;
    for _ in 0..20 {
        let (spans, next) = match data.stream.is_empty() {
            true => reader.spans(data.file, at)?,
            false => reader.stream_spans(data.file, &data.stream, at)?,
        };
        for span in spans {
            assert_eq!(span.offset, at);
            assert!(span.len > 0 && at + span.len <= data.size);
            if let SpanPlace::Image(place) = span.place {
                assert!(place + span.len <= size);
            }
            if span.place == SpanPlace::Parser {
                let len = span.len.min(1 << 16);
                let bytes = match data.stream.is_empty() {
                    true => reader.content(data.file, at, len as usize)?,
                    false => reader.stream_content(data.file, &data.stream, at, len as usize)?,
                };
                assert!(bytes.len() as u64 <= len);
            }
            at += span.len;
        }
        match next {
            Some(next) => assert_eq!(next, at),
            None => return Ok(at),
        }
    }
    Ok(at)
}

/// Visits all that can be reached. Returns how many files were read whole.
fn visit_all(reader: &mut dyn FsReader, size: u64) -> FsResult<usize> {
    let root = reader.root()?;
    let (mut waiting, mut seen, mut whole) = (vec![root.id], HashSet::new(), 0);
    let mut steps = 0;
    while let Some(folder) = waiting.pop() {
        let mut cursor = 0;
        while let Ok((entries, next)) = reader.list(folder, cursor) {
            for entry in entries {
                steps += 1;
                let Ok(node) = entry.node else { continue };
                if steps > STEPS || !seen.insert(node.id) {
                    continue;
                }
                let _ = reader.xattrs(node.id);
                if let Ok((streams, _)) = reader.streams(node.id, 0) {
                    for stream in streams.iter().take(4) {
                        let read = visit_file(reader, &node.data_of(stream), size);
                        whole += usize::from(read.is_ok_and(|read| read == stream.size));
                    }
                }
                match node.kind {
                    NodeKind::Folder => waiting.push(node.id),
                    NodeKind::Regular => {
                        let read = visit_file(reader, &node.data(), size);
                        whole += usize::from(read.is_ok_and(|read| read == node.size));
                    }
                    _ => {}
                }
            }
            steps += 1;
            match next {
                Some(next) if next > cursor && steps < STEPS => cursor = next,
                _ => break,
            }
        }
    }
    Ok(whole)
}

#[test]
fn damaged_filesystems_are_read_or_refused() {
    let cases = std::env::var("EBSFS_FUZZ").map_or(60, |count| count.parse().unwrap());
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    for (name, image, opener) in originals(folder.path()) {
        let size = image.len() as u64;
        let whole = visit_all(&mut *open(image.clone(), opener).unwrap(), size).unwrap();
        assert!(
            whole >= if name == "ntfs" { 4 } else { 2 },
            "{name} {whole}"
        );
        let used: Vec<usize> = (0..image.len()).filter(|at| image[*at] != 0).collect();
        for _ in 0..cases {
            let mut damaged = image.clone();
            for _ in 0..random.usize(1..16) {
                let near = if random.bool() {
                    used.len().min(3_000)
                } else {
                    used.len()
                };
                let at = (used[random.usize(..near)] + random.usize(..4)).min(image.len() - 1);
                damaged[at] = match random.u8(..4) {
                    0 => 0xff,
                    1 => 0,
                    2 => damaged[at] ^ 1 << random.u8(..8),
                    _ => random.u8(..),
                };
            }
            let visit =
                || open(damaged, opener).and_then(|mut reader| visit_all(&mut *reader, size));
            if name == "ntfs" {
                // A crate may panic: the parser makes an answer of it.
                let _ = std::panic::catch_unwind(visit);
            } else {
                let _ = visit();
            }
        }
    }
}
