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

/// Starts a parser with one end of a socket as its stdin, by a shell that waits for it. Returns the shell, the parser's number, and the
/// other end, once the parser has given up its rights.
fn started(shell: &mut Command) -> (std::process::Child, i32, std::os::unix::net::UnixStream) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let script = "(exec -a 'ebsfs files-parser' \"$0\") <&0 & echo $!; wait";
    let mut child = shell
        .args(["bash", "-c", script, EBSFS])
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    let parser = line.trim().parse().unwrap();
    // The last limit that it sets.
    wait_for("the parser to give up its rights", || {
        let limits = fs::read_to_string(format!("/proc/{parser}/limits")).unwrap_or_default();
        let mut lines = limits.lines();
        lines.any(|line| line.starts_with("Max processes             0 "))
    });
    (child, parser, ours)
}

fn status_of(parser: i32, member: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{parser}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(member));
    line.unwrap_or_default().trim().to_owned()
}

#[test]
fn root_is_dropped_also_without_the_right_to_make_a_namespace() {
    let set = "--bounding-set=-sys_admin";
    for words in [&["env"][..], &["setpriv", set, "--inh-caps=-sys_admin"]] {
        let mut shell = Command::new(words[0]);
        shell.args(&words[1..]);
        let (mut shell, parser, ours) = started(&mut shell);
        // As this machine sees it, not the namespace.
        let ids = status_of(parser, "Uid:");
        assert!(
            !ids.split_whitespace().any(|id| id == "0"),
            "{words:?}: {ids}"
        );
        let ids = status_of(parser, "Gid:");
        assert!(
            !ids.split_whitespace().any(|id| id == "0"),
            "{words:?}: {ids}"
        );
        drop(ours);
        shell.wait().unwrap();
    }
}

#[test]
fn the_parser_ends_when_its_parent_is_killed() {
    let (mut shell, parser, ours) = started(&mut Command::new("env"));
    shell.kill().unwrap();
    shell.wait().unwrap();
    wait_for("the parser to end", || {
        let state = status_of(parser, "State:");
        state.is_empty() || state.starts_with('Z')
    });
    drop(ours);
}
