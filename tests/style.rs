//! The language of the code and the docs: no word of the old dialect, and one meaning per type name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Banned words and phrases of an old dialect of this project.
const DIALECT: &[&str] = &[
    "told",
    "anew",
    "nobody",
    "somebody",
    "whoever",
    "bringing",
    "vault",
    "as kept",
    "going on with",
];

fn files(folder: &Path) -> Vec<PathBuf> {
    // There may be no docs/.
    let entries = fs::read_dir(folder).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

/// The Rust files of `src/`.
fn sources() -> Vec<PathBuf> {
    let mut found = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    found.retain(|path| path.extension().is_some_and(|ending| ending == "rs"));
    assert!(found.len() > 30, "{found:?}");
    found
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}

/// The name of the type that a line declares at the top level of its file, where unit tests are indented.
fn declared(line: &str) -> Option<&str> {
    let limited = line.strip_prefix("pub(").and_then(|l| l.split_once(") "));
    let line = limited.map_or(line, |(_, rest)| rest);
    let (kind, rest) = line.strip_prefix("pub ").unwrap_or(line).split_once(' ')?;
    let name = rest.split(|c: char| !c.is_alphanumeric()).next()?;
    ["struct", "enum", "trait", "type"]
        .contains(&kind)
        .then_some(name)
}

#[test]
fn no_word_of_the_dialect_is_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = files(&root.join("docs"));
    let mut found = Vec::new();
    for path in [sources(), pages, vec![root.join("README.md")]].concat() {
        // Words of identifiers count too, and phrases across lines.
        let text = read(&path).to_ascii_lowercase();
        let words: Vec<&str> = text
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
            .collect();
        for banned in DIALECT {
            let banned_words: Vec<&str> = banned.split(' ').collect();
            let has_it = words
                .windows(banned_words.len())
                .any(|window| window == banned_words);
            if has_it {
                found.push(format!("`{banned}` in {}", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "use plain words instead: {found:#?}");
}

#[test]
fn type_names_are_unique() {
    let mut modules: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    for path in sources() {
        if path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests") {
            continue;
        }
        for name in read(&path).lines().filter_map(declared) {
            modules
                .entry(name.to_owned())
                .or_default()
                .insert(path.clone());
        }
    }
    for (name, modules) in modules {
        assert!(
            modules.len() == 1,
            "`{name}` is declared in {modules:?}: rename one to a compound of its words"
        );
    }
}
