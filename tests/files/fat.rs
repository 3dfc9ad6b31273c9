//! FAT12, FAT16 and FAT32: the crate fatfs writes and reads the same volume, and QEMU writes one.

use std::io::{Read, Write};

use fatfs::{Date, DateTime, FileSystem, FsOptions, Time, TimeProvider};

use super::*;

/// The time of all files: without the crate chrono the default of fatfs is a date that FAT does not have.
#[derive(Debug)]
struct FixedTime;

impl TimeProvider for FixedTime {
    fn get_current_date(&self) -> Date {
        Date {
            year: 2021,
            month: 2,
            day: 3,
        }
    }

    fn get_current_date_time(&self) -> DateTime {
        let time = Time {
            hour: 4,
            min: 5,
            sec: 6,
            millis: 780,
        };
        DateTime {
            date: self.get_current_date(),
            time,
        }
    }
}

/// Writes files by the crate. Removed files leave gaps, so that clusters of others do not follow each other.
fn write_files(image: &Path) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(image)
        .unwrap();
    let options = FsOptions::new().update_accessed_date(true);
    let volume = FileSystem::new(file, options.time_provider(&FixedTime)).unwrap();
    let root = volume.root_dir();
    let put = |name: &str, bytes: &[u8]| {
        let mut file = root.create_file(name).unwrap();
        file.truncate().unwrap();
        file.write_all(bytes).unwrap();
    };
    put("README.TXT", b"hello");
    put("empty", b"");
    put(
        "A long name with blanks and more than thirteen characters.text",
        b"long",
    );
    put("\u{fc}ml\u{e4}ut \u{416}.txt", b"not ascii");
    root.create_dir("folder").unwrap();
    for number in 0..60 {
        put(
            &format!("folder/file-{number}-with-a-name-of-several-entries"),
            &vec![number; 3000],
        );
    }
    for number in (0..60).step_by(2) {
        root.remove(&format!(
            "folder/file-{number}-with-a-name-of-several-entries"
        ))
        .unwrap();
    }
    root.create_dir("folder/deep").unwrap();
    root.create_dir("folder/deep/er").unwrap();
    let large: Vec<u8> = (0..900_000_u32)
        .flat_map(u32::to_le_bytes)
        .take(900_000)
        .collect();
    put("folder/deep/er/large.bin", &large);
}

/// All files of the volume, as the crate reads them.
fn read_files(image: &Path) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
    fn visit<T: fatfs::ReadWriteSeek>(
        folder: &fatfs::Dir<'_, T>,
        path: &str,
        found: &mut BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    ) {
        for entry in folder.iter() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            if name == "." || name == ".." {
                continue;
            }
            let full = format!("{path}/{name}");
            if entry.is_dir() {
                found.insert(full.clone().into_bytes(), None);
                visit(&entry.to_dir(), &full, found);
            } else {
                let mut bytes = Vec::new();
                entry.to_file().read_to_end(&mut bytes).unwrap();
                found.insert(full.into_bytes(), Some(bytes));
            }
        }
    }
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(image)
        .unwrap();
    let volume = FileSystem::new(file, FsOptions::new()).unwrap();
    let mut found = BTreeMap::new();
    visit(&volume.root_dir(), "", &mut found);
    found
}

#[test]
fn every_file_of_each_width_of_fat_is_as_another_reader_sees_it() {
    for (width, size, more) in [(12, "4M", ""), (16, "40M", ""), (32, "80M", "-s 1")] {
        let images = Images::new();
        let image = images.at("image.raw");
        images.sh(&format!(
            "truncate -s {size} image.raw; mkfs.fat -F {width} {more} image.raw"
        ));
        write_files(&image);
        let theirs = read_files(&image);
        assert!(theirs.len() > 35);
        let found = images.json(&["find", "image.raw", "--json"]);
        let names: Vec<_> = found.keys().filter(|name| *name != b"/").collect();
        assert_eq!(names, theirs.keys().collect::<Vec<_>>(), "FAT{width}");
        images.sh("mkdir copy");
        images.run(&["cp", "image.raw", "/", "copy"]);
        for (name, path) in tree(&images.at("copy")) {
            if let Some(Some(bytes)) = theirs.get(&name) {
                assert_eq!(
                    &fs::read(path).unwrap(),
                    bytes,
                    "{}",
                    String::from_utf8_lossy(&name)
                );
            }
        }
        let folder = &found[&b"/folder"[..]];
        assert_eq!(folder["type"], "directory");
        let time = folder["modified"].as_str().unwrap();
        assert!(time.starts_with("2021-02-03T04:05:06"), "{time}");
    }
}

#[test]
fn a_volume_that_qemu_made_is_copied_whole() {
    let images = Images::new();
    images.sh("mkdir -p from/folder/deep
         echo hi > from/UPPER.TXT; echo lo > 'from/a long name with blanks.text'; : > from/empty
         head -c 300000 /dev/urandom > from/folder/deep/blob
         for n in $(seq 30); do echo $n > \"from/folder/file number $n of many.txt\"; done
         qemu-img convert -O raw fat:16:from image.raw
         mkdir to");
    images.run(&["cp", "image.raw", "/", "to"]);
    images.sh("diff -r from to");
}
