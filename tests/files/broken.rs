//! Images that were damaged at random, through the real processes: each run ends soon, and never by a signal.
//!
//! `EBSFS_FUZZ=10000` runs so many of each filesystem.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::*;

/// Small images of each filesystem, as they are in use.
fn originals(images: &Images) -> Vec<PathBuf> {
    images.sh(
        "mkdir -p content/a/b many; echo hello > content/hello; ln -s hello content/link; head -c 100000 /dev/urandom > content/a/b/data
         for n in $(seq 60); do echo $n > content/a/file-$n; done
         for n in $(seq 0 7); do dd if=content/hello of=content/pieces bs=1024 seek=$((n * 5)) conv=notrunc status=none; done
         truncate -s 4M ext4.raw; mkfs.ext4 -q -b 1024 -d content ext4.raw
         truncate -s 4M ext2.raw; mkfs.ext2 -q -b 1024 -d content ext2.raw
         truncate -s 6M dirty.raw; mkfs.ext4 -q -b 1024 -J size=1 -d content dirty.raw
         mkdir mounted; mount -o loop,data=journal dirty.raw mounted; cp -r content/a mounted/again; sync -f mounted
         cp dirty.raw journal.raw; umount mounted; mv journal.raw dirty.raw
         truncate -s 2M fat.raw; mkfs.fat -F 12 fat.raw > /dev/null
         truncate -s 8M ntfs.raw; mkfs.ntfs -q -F -f ntfs.raw > /dev/null
         ntfs-3g -o compression ntfs.raw mounted; cp -r content/a content/hello mounted
         setfattr -h -n system.ntfs_attrib_be -v 0x00000810 mounted/a; seq 20000 > mounted/a/packed; umount mounted",
    );
    let names = ["ext4.raw", "ext2.raw", "dirty.raw", "fat.raw", "ntfs.raw"];
    let found: Vec<_> = names.iter().map(|name| images.at(name)).collect();
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(&found[3])
        .unwrap();
    let volume = fatfs::FileSystem::new(file, fatfs::FsOptions::new()).unwrap();
    let root = volume.root_dir();
    root.create_dir("folder").unwrap();
    for number in 0..20 {
        use std::io::Write;
        let mut file = root
            .create_file(&format!("folder/a long name of a file {number}"))
            .unwrap();
        file.write_all(&vec![number; 3000]).unwrap();
    }
    found
}

/// Places of an image that are not zero, in 16 bytes: damage elsewhere changes nothing.
fn used(bytes: &[u8]) -> Vec<usize> {
    let chunks = bytes.chunks(16).enumerate();
    chunks
        .filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0))
        .map(|(n, _)| n * 16)
        .collect()
}

#[test]
fn damaged_images_end_soon_and_never_by_a_signal() {
    let cases: u64 = match std::env::var("EBSFS_FUZZ") {
        Ok(count) => count.parse().unwrap(),
        Err(_) => 8,
    };
    let images = Images::new();
    let originals = originals(&images);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let broken = images.at("broken.raw");
    let mut slowest = Duration::ZERO;
    for original in &originals {
        let bytes = fs::read(original).unwrap();
        // Most damage is where metadata is: the first part of the image has most of it.
        let used = used(&bytes);
        fs::copy(original, &broken).unwrap();
        for case in 0..cases {
            let file = fs::File::options().write(true).open(&broken).unwrap();
            let mut damaged = Vec::new();
            for _ in 0..random.usize(1..20) {
                let near = if random.bool() {
                    used.len().min(600)
                } else {
                    used.len()
                };
                let at = used[random.usize(..near)] + random.usize(..16);
                let value = match random.u8(..4) {
                    0 => 0xff,
                    1 => 0,
                    2 => bytes[at] ^ 1 << random.u8(..8),
                    _ => random.u8(..),
                };
                file.write_all_at(&[value], at as u64).unwrap();
                damaged.push(at);
            }
            let words: &[&str] = match random.u8(..3) {
                0 => &["find", "broken.raw", "--json"],
                1 => &["timeline", "broken.raw"],
                _ => &["cp", "broken.raw", "/", "copy"],
            };
            let since = Instant::now();
            let output = images.files(words).output().unwrap();
            let took = since.elapsed();
            let said = String::from_utf8_lossy(&output.stderr);
            let what = format!(
                "{} case {case}: {words:?}: {damaged:?}: {said}",
                original.display()
            );
            assert!(output.status.code().is_some(), "{what}");
            // 5 s of work for one answer, then it is ended.
            assert!(took < Duration::from_secs(30), "{took:?}: {what}");
            if said.contains("its parser") || said.contains("panicked") {
                println!("{what}");
            }
            slowest = slowest.max(took);
            let _ = fs::remove_dir_all(images.at("copy"));
            for at in damaged {
                file.write_all_at(&bytes[at..=at], at as u64).unwrap();
            }
        }
        assert_eq!(fs::read(&broken).unwrap(), bytes);
    }
    println!("slowest {slowest:?}");
}
