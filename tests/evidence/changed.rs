//! Evidence that somebody has changed.

use super::*;

/// Replaces the bytes of a file.
fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn each_changed_file_is_refused_with_its_name() {
    let case = Case::of_image();
    let folder = case.collect("case", &["--image"]);
    assert_eq!(verify(&[text(&folder)]).0, 0);
    type Change = fn(&Path);
    let rows: [(&str, Change, i32, &str); 15] = [
        (
            "a digest in the block list",
            |at| {
                edit(&at.join("blocks.csv"), |bytes| {
                    let last = bytes.len() - 60;
                    bytes[last] = if bytes[last] == b'0' { b'1' } else { b'0' };
                });
            },
            8,
            "blocks.csv: its SHA-256",
        ),
        (
            "a block list of another volume",
            |at| {
                let text = "first_block,blocks,state,sha256,ebs_checksum\n0,40,hole,,\n";
                std::fs::write(at.join("blocks.csv"), text).unwrap();
            },
            8,
            "blocks.csv: it has",
        ),
        (
            "a truncated block list",
            |at| {
                edit(&at.join("blocks.csv"), |bytes| {
                    bytes.truncate(bytes.len() - 1);
                });
            },
            8,
            "blocks.csv: it has",
        ),
        (
            "a byte of the image",
            |at| edit(&at.join("disk.raw"), |bytes| bytes[12_345] ^= 1),
            8,
            "disk.raw: its SHA-256",
        ),
        (
            "a request that was not made",
            |at| edit(&at.join("requests.jsonl"), |bytes| bytes.extend(b"{}\n")),
            8,
            "requests.jsonl: it has",
        ),
        (
            "an extra member",
            |at| {
                edit(&at.join("evidence.json"), |bytes| {
                    bytes.splice(1..1, b"\"note\":1,".iter().copied());
                });
            },
            8,
            "evidence.json: it is malformed",
        ),
        (
            "a later version",
            |at| sed(at, "s/\"version\": 1,/\"version\": 2,/"),
            2,
            "version 2",
        ),
        (
            "another digest of the image",
            |at| sed(at, "s/\"md5\": \"./\"md5\": \"x/"),
            8,
            "malformed digest",
        ),
        (
            "a truncated statement",
            |at| edit(&at.join("evidence.json"), |bytes| bytes.truncate(500)),
            8,
            "no JSON object",
        ),
        (
            "an endless statement",
            |at| {
                let file = writable(&at.join("evidence.json"));
                file.set_len(1 << 40).unwrap();
            },
            8,
            "larger than",
        ),
        (
            "a missing file",
            |at| std::fs::remove_file(at.join("requests.jsonl")).unwrap(),
            8,
            "requests.jsonl: evidence.json names it",
        ),
        (
            "a link",
            |at| {
                replace(at, "blocks.csv", |path| {
                    std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
                });
            },
            8,
            "no regular file",
        ),
        (
            "a FIFO",
            |at| {
                replace(at, "requests.jsonl", |path| {
                    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
                });
            },
            8,
            "no regular file",
        ),
        (
            "a FIFO as the statement",
            |at| {
                replace(at, "evidence.json", |path| {
                    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
                });
            },
            8,
            "no regular file",
        ),
        (
            "no statement",
            |at| std::fs::remove_file(at.join("evidence.json")).unwrap(),
            3,
            "no finished evidence",
        ),
    ];
    for (what, change, expected, words) in rows {
        let copy = case.copy(&folder, "changed");
        change(&copy);
        let (code, said, errors) = verify(&[text(&copy)]);
        assert_eq!(code, expected, "{what}: {said}{errors}");
        assert!(errors.contains(words), "{what}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{what}: {errors}");
    }
    // Nothing covers what is not listed, and that is said.
    let copy = case.copy(&folder, "changed");
    std::fs::write(copy.join("note.txt"), "x").unwrap();
    let (code, said, _) = verify(&[text(&copy)]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("not listed note.txt"), "{said}");
    assert_eq!(verify(&["/nonexistent"]).0, 3);
}

fn sed(folder: &Path, script: &str) {
    run(Command::new("sed").args(["-i", script, text(&folder.join("evidence.json"))]));
}

fn replace(folder: &Path, name: &str, make: impl FnOnce(&Path)) {
    let path = folder.join(name);
    std::fs::remove_file(&path).unwrap();
    make(&path);
}
