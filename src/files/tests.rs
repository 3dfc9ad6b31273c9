use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

#[test]
fn an_atomic_file_is_whole_or_not_there_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let mut file = AtomicFile::create(&path).unwrap();
    file.write_all(b"half").unwrap();
    assert!(!path.exists());
    drop(file);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    replace(&path, b"one").unwrap();
    replace(&path, b"two").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_device_a_fifo_and_a_link_are_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    std::fs::write(&target, b"mine").unwrap();
    let link = folder.path().join("link");
    symlink(&target, &link).unwrap();
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [&link, &fifo, Path::new("/dev/null")] {
        assert_eq!(replace(path, b"x").unwrap_err().kind(), Kind::Invalid);
    }
    assert_eq!(std::fs::read(&target).unwrap(), b"mine");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn output_goes_into_a_fifo_or_a_character_device_and_replaces_neither() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Nothing reads it: an error, and no hang.
    assert!(OutputFile::create(&fifo).is_err());
    let path = fifo.clone();
    let reader = std::thread::spawn(move || std::fs::read(path).unwrap());
    let mut output = loop {
        match OutputFile::create(&fifo) {
            Ok(output) => break output,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    };
    output.write_all(b"report").unwrap();
    output.commit().unwrap();
    assert_eq!(reader.join().unwrap(), b"report");
    assert!(std::fs::metadata(&fifo).unwrap().file_type().is_fifo());
    let mut null = OutputFile::create(Path::new("/dev/null")).unwrap();
    null.write_all(b"x").unwrap();
    null.commit().unwrap();
    assert!(
        std::fs::metadata("/dev/null")
            .unwrap()
            .file_type()
            .is_char_device()
    );
    // A link to a file stays one.
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    std::fs::write(&file, b"old").unwrap();
    symlink(&file, &link).unwrap();
    let mut output = OutputFile::create(&link).unwrap();
    output.write_all(b"new").unwrap();
    output.commit().unwrap();
    assert!(link.is_symlink());
    assert_eq!(std::fs::read(&file).unwrap(), b"new");
    for wrong in ["/dev/loop-control-none/x", "/"] {
        assert!(OutputFile::create(Path::new(wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn state_of_another_owner_a_link_or_a_fifo_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    assert!(read_ours(&path).unwrap().is_none());
    std::fs::write(&path, b"ours").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(read_ours(&path).unwrap().unwrap(), b"ours");
    for mode in [0o664, 0o646] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        assert!(read_ours(&path).unwrap().is_none(), "{mode:o}");
    }
    let zero = folder.path().join("zero");
    symlink("/dev/zero", &zero).unwrap();
    assert!(read_ours(&zero).unwrap().is_none());
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(read_ours(&fifo).unwrap().is_none());
    assert!(open_ours(&fifo, true).unwrap().is_none());
    if nix::unistd::geteuid().is_root() {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        assert!(read_ours(&path).unwrap().is_none());
    }
}

#[test]
fn a_mark_changes_with_a_write_whose_mtime_is_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, b"one").unwrap();
    let before = FileMark::flushed(&path).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(30));
    assert_eq!(FileMark::flushed(&path).unwrap(), before);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let times = file.metadata().unwrap().modified().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"two", 0).unwrap();
    file.set_modified(times).unwrap();
    let after = FileMark::flushed(&path).unwrap();
    assert_eq!(after.modified_ns, before.modified_ns);
    assert_ne!(after, before);
}
