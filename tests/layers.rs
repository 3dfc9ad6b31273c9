//! The layer rule of `src/lib.rs`: a row imports only rows above it.

use std::fs;
use std::path::{Path, PathBuf};

/// Module, its row, and modules of its own row or above that it must not know, blanks between.
const RULES: &[(&str, u8, &str)] = &[
    ("error", 0, "block"),
    ("block", 0, ""),
    ("histogram", 0, "error block time"),
    ("time", 0, "error block histogram"),
    ("files", 1, "block source target readahead digest maps aws"),
    (
        "sysfs",
        1,
        "block error files source target readahead digest maps aws",
    ),
    (
        "snapshot",
        1,
        "block files sysfs source target readahead digest maps cost aws",
    ),
    (
        "inventory",
        1,
        "block histogram files sysfs snapshot source target readahead digest maps cost progress aws",
    ),
    ("source", 1, "sysfs target readahead maps aws"),
    (
        "cost",
        1,
        "error block files sysfs snapshot source target readahead digest maps aws",
    ),
    (
        "progress",
        1,
        "error block files sysfs snapshot source target readahead digest maps cost aws",
    ),
    ("target", 1, "readahead digest maps aws"),
    ("digest", 1, "files source target readahead maps aws"),
    ("readahead", 1, "files source target maps aws"),
    ("aws", 1, "files source target readahead maps block"),
    ("maps", 1, "files source target readahead aws"),
    ("ebs", 2, "ec2 cache image compare target readahead"),
    ("ec2", 2, "ebs cache image compare target readahead block"),
    ("cache", 2, "ebs ec2 image compare target readahead aws"),
    ("image", 2, "ebs ec2 cache compare target aws"),
    (
        "volumes",
        2,
        "ebs ec2 cache image compare files sysfs snapshot inventory target readahead digest maps cost progress aws histogram time",
    ),
    (
        "formats",
        2,
        "ebs ec2 cache image compare target readahead maps aws",
    ),
    (
        "compare",
        2,
        "ebs ec2 cache image target readahead maps aws",
    ),
    (
        "browse",
        3,
        "capture targets repository ebs ec2 cache image compare readahead digest maps sysfs snapshot cost aws histogram inventory progress",
    ),
    (
        "capture",
        3,
        "targets repository ebs ec2 cache image compare readahead digest maps block files sysfs source cost",
    ),
    (
        "targets",
        3,
        "capture repository ec2 cache image compare readahead maps aws",
    ),
    (
        "repository",
        3,
        "capture targets ebs ec2 cache image compare readahead maps",
    ),
    (
        "fs",
        4,
        "capture repository targets ebs ec2 cache compare target sync aws readahead",
    ),
    (
        "sync",
        4,
        "capture repository targets ebs ec2 cache image compare fs aws readahead",
    ),
    (
        "metrics",
        5,
        "capture targets ebs ec2 cache image compare target source readahead digest maps block snapshot sysfs cost",
    ),
    (
        "attach",
        5,
        "capture targets repository ebs ec2 cache image compare sync metrics replicate inventory source readahead digest maps cost progress aws histogram",
    ),
    (
        "doctor",
        5,
        "ebs ec2 cache image compare formats volumes browse sync replicate drill attach metrics evidence capture readahead digest maps cost progress sysfs histogram inventory target",
    ),
    (
        "evidence",
        5,
        "capture targets repository ebs ec2 cache image compare readahead digest maps cost metrics replicate inventory sysfs histogram",
    ),
    (
        "drill",
        5,
        "attach capture targets repository ebs ec2 compare sync metrics replicate inventory readahead digest maps cost progress aws histogram",
    ),
    (
        "replicate",
        5,
        "attach doctor metrics drill targets ebs ec2 cache image compare fs readahead maps sysfs aws digest",
    ),
    (
        "policy",
        5,
        "error block histogram time files sysfs inventory snapshot source target readahead digest maps cost progress ebs ec2 cache image compare formats volumes browse targets repository capture fs sync attach drill replicate evidence metrics",
    ),
    ("cli", 6, ""),
];

/// Crates that one file, with its own modules, may name.
const ONLY: &[(&str, &str)] = &[
    ("fuser::", "fs/fuse"),
    ("aws_sdk_ebs::", "ebs/client"),
    ("aws_sdk_ec2::", "ec2"),
    ("moka::", "cache/memory"),
    // It panics beyond the year 9999. The emulator has its own times.
    ("humantime::format_rfc3339", "time"),
    ("object_store::", "repository/store"),
    ("aws_sdk_s3::", "repository/store"),
    ("prometheus_client::", "metrics/text"),
    ("use ntfs::", "browse/ntfs"),
    ("landlock::", "browse/sandbox"),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// The modules of the crate that a file names.
fn imports(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| {
            rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .next()
                .unwrap()
        })
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn no_import_climbs() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 30, "{files:?}");
    let row_of = |module: &str| RULES.iter().find(|rule| rule.0 == module);
    let mut wrong = Vec::new();
    for file in files {
        let path = file
            .strip_prefix(&src)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let text = fs::read_to_string(&file).unwrap();
        for (name, home) in ONLY {
            let is_emulators_own = path.starts_with("emulator") && *home == "time";
            if text.contains(name)
                && !is_emulators_own
                && !path.starts_with(&format!("{home}."))
                && !path.starts_with(&format!("{home}/"))
            {
                wrong.push(format!("{path} names {name}, which is for {home} alone"));
            }
        }
        let module = path.split(['/', '.']).next().unwrap();
        if ["lib", "main"].contains(&module) {
            continue;
        }
        for import in imports(&text) {
            if import == module {
                continue;
            }
            if module == "emulator" {
                if import != "error" {
                    wrong.push(format!(
                        "{path} imports {import}: the emulator knows no other side"
                    ));
                }
                continue;
            }
            let rule = row_of(module).unwrap_or_else(|| panic!("{path}: no rule for {module}"));
            let Some(imported) =
                row_of(import).or((import == "emulator").then_some(&("emulator", 6, "")))
            else {
                wrong.push(format!(
                    "{path} imports {import}, for which there is no rule"
                ));
                continue;
            };
            if imported.1 > rule.1 || rule.2.split(' ').any(|known| known == import) {
                wrong.push(format!(
                    "{path} (row {}) imports {import} (row {})",
                    rule.1, imported.1
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_have_one_subject() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches"] {
        sources(&root.join(folder), &mut files);
    }
    let long: Vec<_> = files
        .iter()
        .map(|file| (fs::read_to_string(file).unwrap().lines().count(), file))
        .filter(|(lines, _)| *lines > 600)
        .collect();
    assert!(long.is_empty(), "longer than 600 lines: {long:?}");
}

#[test]
fn everything_is_ascii() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = crate::readme::all_pages()
        .iter()
        .map(|page| root.join(page))
        .collect();
    files.push(root.join("Cargo.toml"));
    for folder in ["src", "tests", "benches"] {
        sources(&root.join(folder), &mut files);
    }
    for file in files {
        let text = fs::read(&file).unwrap();
        assert!(text.is_ascii(), "{}", file.display());
    }
}
