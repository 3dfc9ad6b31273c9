//! The pages of the project: their commands run as they stand there, their links, messages, policies and members exist.

mod links;
mod members;
mod messages;
#[cfg(feature = "ec2")]
mod policies;
#[cfg(feature = "ec2")]
mod runs;

use std::path::{Path, PathBuf};
use std::process::Command;

pub use members::members;

use crate::support::*;

/// What the examples call a demo snapshot, a later one and their volume.
const SNAPSHOT: &str = "snap-0123456789abcdef0";
const LATER: &str = "snap-0fedcba9876543210";
const VOLUME: &str = "vol-0123456789abcdef0";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a page of the project.
pub fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// The pages of the project, by their paths.
pub fn all_pages() -> Vec<String> {
    let tops = [
        "README.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ];
    let mut found: Vec<String> = tops.iter().map(|&name| name.to_owned()).collect();
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            found.push(format!("docs/{name}"));
        }
    }
    found.sort();
    found
}

/// The commands of a page, a block each.
pub fn blocks(page: &str) -> Vec<&str> {
    fenced(page, "sh")
}

/// The blocks of a page with this label.
fn fenced<'p>(page: &'p str, label: &str) -> Vec<&'p str> {
    page.split(&format!("\n```{label}\n"))
        .skip(1)
        .map(|rest| rest.split("\n```").next().unwrap())
        .collect()
}

/// A bash that runs the commands of a page in `folder`, with these snapshots of vol-0a, for ten minutes at most.
pub fn commands(emulator: &Emulator, page: &str, ids: [&str; 2], folder: &Path) -> Command {
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let script = blocks(page)
        .join("\n")
        .replace(SNAPSHOT, ids[0])
        .replace(LATER, ids[1])
        .replace(VOLUME, "vol-0a")
        .replace("/mnt/ebs", &at("ebs"))
        .replace("/mnt/files", &at("files"))
        .replace("/srv/replicas", &at("replicas"));
    let path = format!(
        "{}:{}:/usr/sbin:/sbin",
        Path::new(EBSFS).parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let mut command = emulator.command("timeout");
    command
        .args(["--kill-after=10", "600", "bash"])
        .args(["-euo", "pipefail", "-c", &script])
        .env("PATH", path)
        .env("EBSFS_STATE_DIR", at("state"))
        .current_dir(folder);
    command
}
