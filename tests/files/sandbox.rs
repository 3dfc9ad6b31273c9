//! What the parser can do besides answering: nothing.

use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Instant;

use super::*;

fn parser(word: &str) -> Command {
    let mut command = Command::new(EBSFS);
    command.arg0("ebsfs files-parser").arg(word).env_clear();
    command
}

#[test]
fn the_parser_opens_no_file_sends_nothing_and_starts_nothing() {
    // A descriptor that a careless shell left open.
    let open = open(Path::new("/etc/hostname"));
    rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap();
    let said = run(&mut parser("attempts"));
    drop(open);
    let lines: Vec<&str> = said.lines().collect();
    for what in [
        "read a file",
        "list a folder",
        "write a file",
        "connect by TCP",
        "send by UDP",
        "start a program",
        "start a thread",
    ] {
        let line = lines.iter().find(|line| line.starts_with(what));
        let line = line.unwrap_or_else(|| panic!("{what}: {said}"));
        assert!(line.contains("refused"), "{line}");
        // Not for want of descriptors: there is room for one.
        let is_file = what.contains("file") || what.contains("folder") || what.contains("TCP");
        assert!(!is_file || line.contains("Permission denied"), "{line}");
    }
    assert!(lines.contains(&"variables: 0"), "{said}");
    assert!(lines.contains(&"is root: false"), "{said}");
    assert!(!Path::new("/tmp/ebsfs-parser").exists());
}

#[test]
fn an_allocation_bomb_meets_its_limit() {
    let since = Instant::now();
    let output = parser("allocate").output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    assert!(since.elapsed().as_secs() < 20, "{:?}", since.elapsed());
}

#[test]
fn the_parser_ends_with_its_session() {
    let mut parser = parser("");
    let command = Command::new(EBSFS);
    drop(command);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut other = Command::new(EBSFS);
    other
        .arg0("ebsfs files-parser")
        .env_clear()
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    let mut child = other.spawn().unwrap();
    drop(other);
    drop(ours);
    assert!(child.wait().unwrap().success());
    // An unknown word is no way in.
    assert!(!parser.output().unwrap().status.success());
}
