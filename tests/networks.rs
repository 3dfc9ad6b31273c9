//! The recipes of docs/network.md, in networks made of namespaces by `scripts/networks`.

use std::path::Path;
use std::process::Command;

use crate::support::{EBSFS, run};

/// The recipes that are run here; with `EBSFS_NETWORKS=all` all of them are.
const RECIPES: [&str; 3] = [
    "private-dns",
    "http-proxy-with-a-private-ca",
    "vpn-with-split-dns",
];

fn repository_file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Titles below `## Recipes`, as the script names them.
fn titles() -> Vec<String> {
    let page = repository_file("docs/network.md");
    let (_, recipes) = page.split_once("\n## Recipes\n").unwrap();
    let recipes = recipes.split("\n## ").next().unwrap();
    let titles = recipes.lines().filter_map(|line| line.strip_prefix("### "));
    titles
        .map(|title| title.to_lowercase().replace(' ', "-"))
        .collect()
}

#[test]
fn the_script_runs_every_recipe_of_the_page() {
    let script = repository_file("scripts/networks");
    let (_, list) = script.split_once("\nall=(").unwrap();
    let list = list.split(')').next().unwrap();
    let listed: Vec<&str> = list.split_whitespace().collect();
    assert_eq!(listed, titles());
}

#[test]
fn a_job_replicates_in_networks_without_internet_by_the_recipes_of_the_page() {
    let is_all = std::env::var("EBSFS_NETWORKS").is_ok_and(|value| value == "all");
    let recipes: Vec<String> = match is_all {
        true => titles(),
        false => RECIPES.map(str::to_owned).to_vec(),
    };
    let clients = Path::new(EBSFS)
        .parent()
        .unwrap()
        .with_file_name("clients/bin");
    let path = format!("{}:{}", clients.display(), std::env::var("PATH").unwrap());
    // A script that hangs removes its network at the signal.
    let mut script = Command::new("timeout");
    let printed = run(script
        .args(["--kill-after=30", "1800"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/networks"))
        .args(["--program", EBSFS])
        .args(&recipes)
        .env("PATH", path));
    for recipe in &recipes {
        let (_, its) = printed.split_once(&format!("== {recipe} (")).unwrap();
        let its = its.split("\n== ").next().unwrap();
        // The doctor's row before the recipe, and two cycles after it.
        assert!(its.contains("  before: FAILED"), "{its}");
        assert_eq!(
            its.matches("the replica is equal to the volume").count(),
            2,
            "{its}"
        );
    }
}
