//! docs/troubleshooting.md lists the messages of the program, and no others.
//!
//! A message is a string of `src/` that begins as messages and their reasons do, or that an `Error` is made of. Its text
//! between the placeholders must stand in one row of the page, in order. What a row shows must be such strings.

use std::path::{Path, PathBuf};

use super::{page, root};

const PAGE: &str = "docs/troubleshooting.md";

/// How messages and reasons begin.
const BEGINNINGS: &[&str] = &[
    "cannot ",
    "no AWS ",
    "it ",
    "its ",
    "the credentials",
    "the caller needs",
    "stopped",
];

/// Messages that users do not meet: answers to requests that no kernel sends, and steps of the log.
const INTERNAL: &[&str] = &[
    "not an open file",
    "not a link",
    "no image",
    "nothing to draw",
    "no partition is open",
    "no path",
    "a position before the start",
    "cannot read byte {offset} of the image: it ends before that",
    "the parser was interrupted",
    "the manifest's volume",
    "cannot set up guest memory",
    "the credentials were refused: loading them again",
];

/// A string of a source file, and the code before it.
struct Literal {
    text: String,
    before: String,
}

/// The source files whose messages people meet.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        // The emulator plays the other side; contract and hostile are tests.
        if ["tests", "emulator", "contract", "hostile"].contains(&name) {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// The strings of a source file, without those of its tests and comments.
fn literals(code: &str) -> Vec<Literal> {
    let code = code.split("#[cfg(test)]\nmod ").next().unwrap();
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code: Vec<char> = lines.collect::<Vec<_>>().join("\n").chars().collect();
    let mut found = Vec::new();
    let (mut at, mut end) = (0, 0);
    while at < code.len() {
        let is_char = code[at] == '\'' && code.get(at + 2) == Some(&'\'');
        if is_char || code[at] == '\\' {
            // A quote that is a character.
            at += if is_char { 3 } else { 2 };
            continue;
        }
        if code[at] != '"' {
            at += 1;
            continue;
        }
        let before: String = code[end..at].iter().collect();
        let mut text = String::new();
        at += 1;
        while let Some(&c) = code.get(at).filter(|c| **c != '"') {
            match (c, code.get(at + 1)) {
                ('\\', Some('\n')) => {
                    at += 1;
                    while code.get(at + 1).is_some_and(|c| c.is_whitespace()) {
                        at += 1;
                    }
                }
                ('\\', Some(&escaped)) => {
                    text.push(escaped);
                    at += 1;
                }
                _ => text.push(c),
            }
            at += 1;
        }
        at += 1;
        end = at;
        found.push(Literal { text, before });
    }
    found
}

impl Literal {
    /// Whether an `Error` is made of it: `Error::new(kind, "...")`, `Error::new(kind, format!("..."`.
    fn makes_an_error(&self) -> bool {
        let before = self.before.trim_end();
        let before = before.strip_suffix("format!(").unwrap_or(before).trim_end();
        let Some(before) = before.strip_suffix(',') else {
            return false;
        };
        let makers = ["Error::new(", "Error::with_source("];
        let kinds = makers.iter().filter_map(|maker| before.rsplit_once(maker));
        kinds.map(|(_, kind)| kind).any(|kind| {
            kind.chars()
                .all(|c| c.is_alphanumeric() || "_:.()".contains(c) || c.is_whitespace())
        })
    }

    fn is_message(&self) -> bool {
        let text = self.text.as_str();
        text.contains(' ')
            && (BEGINNINGS.iter().any(|begin| text.starts_with(begin)) || self.makes_an_error())
            && !INTERNAL.contains(&text)
    }

    /// Its texts between placeholders, as far as they are words.
    fn fragments(&self) -> Vec<String> {
        let text = self.text.replace("{{", "\u{1}").replace("}}", "\u{2}");
        let mut fragments = Vec::new();
        for (number, part) in text.split('{').enumerate() {
            let part = match number {
                0 => part,
                _ => part.split_once('}').map_or(part, |(_, rest)| rest),
            };
            let part = part.replace('\u{1}', "{").replace('\u{2}', "}");
            if part.chars().filter(char::is_ascii_alphabetic).count() >= 3 {
                fragments.push(part.trim().to_owned());
            }
        }
        fragments
    }
}

/// Where the fragments stand in a text, one behind the other; none if one is missing.
fn places(fragments: &[String], text: &str) -> Option<Vec<(usize, usize)>> {
    let mut from = 0;
    let place = |fragment: &String| {
        let start = from + text[from..].find(fragment.as_str())?;
        from = start + fragment.len();
        Some((start, from))
    };
    fragments.iter().map(place).collect()
}

fn all_literals() -> Vec<(PathBuf, Literal)> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let read = |file: PathBuf| {
        let found = literals(&std::fs::read_to_string(&file).unwrap());
        found.into_iter().map(move |one| (file.clone(), one))
    };
    files.into_iter().flat_map(read).collect()
}

#[test]
fn every_message_is_explained() {
    let text = page(PAGE);
    // A row is a line, other text a paragraph.
    let paragraphs = text.split("\n\n").map(|text| text.replace('\n', " "));
    let rows: Vec<String> = text.lines().map(str::to_owned).chain(paragraphs).collect();
    let mut count = 0;
    let mut missing = Vec::new();
    for (file, literal) in all_literals() {
        if !literal.is_message() {
            continue;
        }
        count += 1;
        let fragments = literal.fragments();
        if !rows.iter().any(|row| places(&fragments, row).is_some()) {
            missing.push(format!("{}: {}", file.display(), literal.text));
        }
    }
    assert!(
        missing.is_empty(),
        "{PAGE} does not explain these: give each a row, or a line in INTERNAL of {}\n{}",
        file!(),
        missing.join("\n")
    );
    assert!(count > 400, "only {count} messages were found");
}

#[test]
fn every_explained_message_exists() {
    let known: Vec<Vec<String>> = all_literals()
        .iter()
        .map(|(_, literal)| literal.fragments())
        .filter(|fragments| !fragments.is_empty())
        .collect();
    let text = page(PAGE);
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    let shown = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let mut stale = Vec::new();
    for message in shown.filter(|text| text.split(' ').count() > 2 && !text.contains('{')) {
        let mut is_known = vec![false; message.len()];
        for found in known
            .iter()
            .filter_map(|fragments| places(fragments, message))
        {
            for (start, end) in found {
                is_known[start..end].fill(true);
            }
        }
        // Words in capitals stand for names.
        let letters = message.bytes().zip(is_known);
        let letters: Vec<bool> = letters
            .filter(|(byte, _)| byte.is_ascii_lowercase())
            .map(|(_, is_known)| is_known)
            .collect();
        let unknown = letters.iter().filter(|is_known| !**is_known).count();
        if unknown * 4 > letters.len() {
            stale.push(message);
        }
    }
    assert!(
        stale.is_empty(),
        "{PAGE} explains what no source says: {stale:#?}"
    );
}

#[test]
fn strings_of_a_source_are_found() {
    let code = "// \"no\"\nlet a = '\"';\nError::new(\n    Kind::Io,\n    format!(\"cannot {verb} {}: it \\\n        is \\\"x\\\"\", 1),\n);\nfoo(\"bar baz\");\n";
    let found = literals(code);
    let texts: Vec<&str> = found.iter().map(|one| one.text.as_str()).collect();
    assert_eq!(texts, ["cannot {verb} {}: it is \"x\"", "bar baz"]);
    assert!(found[0].makes_an_error() && !found[1].makes_an_error());
    assert_eq!(found[0].fragments(), ["cannot", ": it is \"x\""]);
    assert_eq!(
        places(&["b".into(), "a".into()], "abcab"),
        Some(vec![(1, 2), (3, 4)])
    );
    assert_eq!(places(&["c".into(), "bc".into()], "abcab"), None);
}
