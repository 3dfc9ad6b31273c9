//! Named streams of NTFS: ntfs-3g writes them; each is listed with its size, read whole, and kept or named by a copy.

use std::time::Duration;

use super::*;

/// A volume whose files have streams, and the bytes of each in `content/FILE:STREAM`.
fn make_volume(images: &Images) {
    images.sh("truncate -s 60M image.raw
         mkfs.ntfs -q -F -f image.raw > /dev/null
         mkdir mounted content
         ntfs-3g -o streams_interface=windows,compression image.raw mounted
         cd mounted
         echo hello > file; mkdir folder; echo x > many; mkdir packed
         setfattr -h -n system.ntfs_attrib_be -v 0x00000810 packed
         seq 1000 > packed/text
         put() { cat > ../content/$1; cp ../content/$1 $1; }
         echo small | put file:small
         : | put file:empty
         head -c 100000 /dev/urandom | put file:large
         head -c 3000000 /dev/urandom | put file:huge
         head -c 70000 /dev/urandom | put folder:inner
         touch -d '2001-02-03T04:05:06Z' file
         for n in $(seq 300); do echo $n > many:stream-$n; done
         mkdir ../content/packed; seq 20000 | put packed/text:packed
         cd ..; umount mounted");
}

/// The names of all streams but those of `many`, with their sizes.
fn expected(images: &Images) -> BTreeMap<String, u64> {
    let found = tree(&images.at("content")).into_iter();
    let streams = found.filter(|(name, _)| name.contains(&b':'));
    let sized = streams.map(|(name, path)| {
        let name = String::from_utf8(name).unwrap();
        (name, path.metadata().unwrap().len())
    });
    sized.collect()
}

/// The streams of files in JSON, by path and name.
fn streams_of(found: &BTreeMap<Vec<u8>, Value>) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for file in found.values() {
        for stream in file["streams"].as_array().unwrap_or(&Vec::new()) {
            let (path, name) = (&file["path"], &stream["name"]);
            let name = format!("{}:{}", path.as_str().unwrap(), name.as_str().unwrap());
            all.insert(name, stream["size"].as_u64().unwrap());
        }
    }
    all
}

#[test]
fn each_stream_is_listed_read_and_copied_or_named() {
    let images = Images::new();
    make_volume(&images);
    let text = |words: &[&str]| String::from_utf8(images.run(words)).unwrap();
    let expected = expected(&images);
    assert_eq!(expected.len(), 6);

    // Listings.
    let mut found = streams_of(&images.json(&["find", "image.raw", "--json"]));
    let many: BTreeMap<_, _> = found
        .extract_if(.., |name, _| name.starts_with("/many:"))
        .collect();
    assert_eq!(found, expected);
    let each = (1..=300).map(|n| (format!("/many:stream-{n}"), n.to_string().len() as u64 + 1));
    assert_eq!(many, each.collect());
    let long = text(&["ls", "image.raw", "/", "--long"]);
    let line = |name: &str| long.lines().find(|line| line.ends_with(name)).unwrap();
    assert!(line(" file:huge").contains(" 3000000 "), "{long}");
    assert!(line(" folder:inner").contains(" 70000 "), "{long}");
    assert_eq!(
        text(&["ls", "image.raw", "/"]),
        "file\nfolder\nmany\npacked\n"
    );
    let stat = text(&["stat", "image.raw", "/file"]);
    for line in [
        "stream    huge, 3000000 bytes\n",
        "stream    empty, 0 bytes\n",
    ] {
        assert!(stat.contains(line), "{stat}");
    }
    let body = text(&["timeline", "image.raw", "/file"]);
    assert!(body.lines().any(|line| {
        let cells: Vec<&str> = line.split('|').collect();
        (cells[1], cells[6]) == ("/file:large", "100000")
    }));

    // Bytes.
    for name in expected.keys() {
        let bytes = fs::read(images.at(&format!("content{name}"))).unwrap();
        assert!(images.run(&["cat", "image.raw", name]) == bytes, "{name}");
    }
    let same = images.run(&["cat", "image.raw", "file:small:$DATA"]);
    assert_eq!(same, b"small\n");
    assert_eq!(
        images.run(&["cat", "image.raw", "many:stream-300"]),
        b"300\n"
    );
    for (name, why) in [
        (
            "/file:none",
            "cannot open /file:none: /file has no such stream",
        ),
        (
            "/none:small",
            "cannot open /none:small: there is no such file",
        ),
    ] {
        let (code, said) = ends(&mut images.files(&["cat", "image.raw", name]));
        assert_eq!(code, 3, "{said}");
        assert!(said.contains(why), "{said}");
    }

    // Copies: as attributes where they fit, else named, and the exit code says so.
    images.sh("mkdir attributes files");
    let (code, said) = ends(&mut images.files(&["cp", "image.raw", "/file", "attributes"]));
    assert_eq!(code, 1, "{said}");
    for line in [
        "not copied: /file:huge: 3000000 bytes, and an attribute holds at most 65536",
        "not copied: /file:large: 100000 bytes",
        "cannot keep 2 streams of the files",
        "--streams writes each one as a file NAME:STREAM",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let kept = xattrs(&images.at("attributes/file"));
    let kept: Vec<_> = kept
        .iter()
        .map(|(name, value)| (name.to_str().unwrap(), &value[..]))
        .collect();
    assert_eq!(kept, [("user.empty", &b""[..]), ("user.small", b"small\n")]);

    // As files, whatever their sizes are.
    // Hundreds of files: a busy machine takes longer.
    let mut all = images.files(&["cp", "image.raw", "/", "files", "--streams"]);
    let (code, said) = ends_within(Duration::from_secs(60), &mut all);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("copied 3 files, 2 folders, 0 links and others, 306 streams"),
        "{said}"
    );
    for (name, size) in &expected {
        let (ours, theirs) = (
            images.at(&format!("files{name}")),
            images.at(&format!("content{name}")),
        );
        assert_same(&ours, &theirs);
        assert_eq!(ours.metadata().unwrap().len(), *size);
    }
    assert_eq!(
        fs::read(images.at("files/many:stream-77")).unwrap(),
        b"77\n"
    );
    let time = |name: &str| images.at(name).metadata().unwrap().mtime();
    assert_eq!(time("files/file:small"), time("files/file"));
    assert!(xattrs(&images.at("files/file")).is_empty());
    let again = ["cp", "image.raw", "/file", "files", "--streams"];
    let (code, said) = ends(&mut images.files(&again));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("--overwrite replaces files"), "{said}");
    images.run(&[&again[..], &["--overwrite"]].concat());
}

#[test]
fn a_stream_never_replaces_a_file_of_the_same_copy() {
    let images = Images::new();
    images.sh("truncate -s 20M image.raw
         mkfs.ntfs -q -F -f image.raw > /dev/null
         mkdir mounted out
         ntfs-3g -o streams_interface=xattr image.raw mounted
         cd mounted
         echo file > a; setfattr -n user.b -v stream a; echo other > a:b
         cd ..; umount mounted");
    for more in [&[][..], &["--overwrite"]] {
        let words = [&["cp", "image.raw", "/", "out", "--streams"], more].concat();
        let (code, said) = ends(&mut images.files(&words));
        assert_eq!(code, 1, "{said}");
        assert_eq!(fs::read(images.at("out/a:b")).unwrap(), b"other\n");
    }
    let said = images.sh("ls out");
    assert_eq!(said, "a\na:b\n");
}
