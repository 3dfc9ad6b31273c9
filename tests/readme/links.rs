//! Links of pages lead somewhere, on the forge as in the site, and the summary of the site has every page.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use super::{all_pages, page, root};

/// Pages beside README.md: the only files outside docs/ that a page may link, because `scripts/site` makes pages of them.
const TOPS: &[&str] = &[
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
];

/// The longest README that a newcomer reads.
const README_LINES: usize = 180;

/// The lines of a page outside its blocks, without what is between backticks.
fn prose(text: &str) -> Vec<String> {
    let mut is_code = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") && !line.starts_with("````") {
            is_code = !is_code;
        } else if !is_code {
            lines.push(without_code(line));
        }
    }
    lines
}

fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// What the links of a page lead to.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text).join("\n");
    let rest = prose.split("](").skip(1);
    rest.map(|link| link.split(')').next().unwrap().to_owned())
        .collect()
}

/// The anchors of a page's headings, as forges and mdbook make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut is_code = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with("```") && !line.starts_with("````") {
            is_code = !is_code;
        }
        let Some((marks, title)) = line.split_once(' ').filter(|_| !is_code) else {
            continue;
        };
        if marks.is_empty() || !marks.bytes().all(|byte| byte == b'#') {
            continue;
        }
        let kept = title.chars().filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
            _ => None,
        });
        let anchor: String = kept.collect();
        let count = seen.entry(anchor.clone()).or_default();
        found.insert(match *count {
            0 => anchor,
            n => format!("{anchor}-{n}"),
        });
        *count += 1;
    }
    found
}

/// A path without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => assert!(plain.pop(), "{}", path.display()),
            part => plain.push(part),
        }
    }
    plain
}

#[test]
fn every_link_and_anchor_of_a_page_exists() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for name in all_pages() {
        let text = page(&name);
        for link in links(&text) {
            if link.starts_with("https://") {
                continue;
            }
            count += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let folder = Path::new(&name).parent().unwrap();
            let file = match path {
                "" => PathBuf::from(&name),
                path => plain(&folder.join(path)),
            };
            let is_top = file.to_str().is_some_and(|file| TOPS.contains(&file));
            if !is_top && !file.starts_with("docs") {
                wrong.push(format!("{name}: {link} is not in the site"));
            } else if !root().join(&file).is_file() {
                wrong.push(format!("{name}: {link} does not exist"));
            } else if !anchor.is_empty() && !anchors(&page(file.to_str().unwrap())).contains(anchor)
            {
                wrong.push(format!("{name}: {link} has no such heading"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 100, "{count} links were found");
}

#[test]
fn links_and_anchors_are_found_as_a_browser_finds_them() {
    let text = "# A `b` page\n\n[one](x.md#y), `[no](z.md)`\n[two](../A.md)\n\n```sh\n# [no](n.md)\n```\n## A page: it's\n## Again\n## Again\n";
    assert_eq!(links(text), ["x.md#y", "../A.md"]);
    let found: Vec<String> = anchors(text).into_iter().collect();
    assert_eq!(found, ["a-b-page", "a-page-its", "again", "again-1"]);
    assert_eq!(plain(Path::new("docs/../A.md")), Path::new("A.md"));
}

#[test]
fn the_summary_of_the_site_has_every_page_once() {
    let mut listed: Vec<PathBuf> = links(&page("docs/SUMMARY.md"))
        .iter()
        .map(|link| plain(&Path::new("docs").join(link)))
        .collect();
    listed.sort();
    let mut pages: Vec<PathBuf> = all_pages().iter().map(PathBuf::from).collect();
    pages.retain(|page| page != Path::new("docs/SUMMARY.md"));
    pages.sort();
    assert_eq!(listed, pages);
    let readme = links(&page("README.md"));
    for page in pages {
        let link = page.to_str().unwrap();
        assert!(
            link == "README.md" || readme.iter().any(|found| found.starts_with(link)),
            "README.md does not link {link}"
        );
    }
}

#[test]
fn the_readme_is_short() {
    let lines = page("README.md").lines().count();
    assert!(lines <= README_LINES, "{lines} lines");
}
