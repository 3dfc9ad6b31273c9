//! Snapshots of the repository that are damaged or removed, and listings that lack some.

use super::*;
use crate::support::sh;

/// The objects of a folder of the repository, the newest last.
fn objects(pair: &ProxyAndGateway, folder: &str) -> BTreeSet<PathBuf> {
    let listed = sh(&format!(
        "find {} -type f",
        pair.site.at("repository").join(folder).display()
    ));
    listed.lines().map(PathBuf::from).collect()
}

#[test]
fn a_damaged_snapshot_fails_its_volume_and_the_next_one_is_taken() {
    let mut pair = ProxyAndGateway::new(3);
    let job = pair.gateway(
        "stage = '{0}/stage'",
        "[[target]]\nto = '{0}/{volume}.raw'\n[[target]]\nto = '{0}/{volume}-here.raw'\nin_place = true",
    );
    pair.run_proxy();
    pair.apply(&job);
    let old = pair.site.at("old.raw");
    std::fs::copy(pair.disk("vol-0a"), &old).unwrap();
    let before = pair.state()["volumes"]["vol-0a"]["targets"].clone();
    let packs = objects(&pair, "packs");
    pair.change("vol-0a", [11, 12]);
    let proxied = pair.run_proxy();
    // All that the new snapshot of vol-0a has sent is lost.
    for pack in objects(&pair, "packs").difference(&packs) {
        std::fs::remove_file(pack).unwrap();
    }
    let output = pair.once(&job).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{said}");
    // A line for each target.
    let lines = said
        .lines()
        .filter(|line| line.contains("a pack is missing"));
    assert_eq!(lines.count(), 2, "{said}");
    let other = &pair.state()["volumes"]["vol-0b"]["targets"];
    for target in other.as_object().unwrap().values() {
        let point = &target["recovery_point"]["snapshot"];
        assert_eq!(*point, snapshot_of(&proxied, "vol-0b"));
    }
    // What was there before stays usable, and is still the recovery point.
    assert_same(&pair.site.at("vol-0a.raw"), &old);
    assert_same(&pair.site.at("vol-0a-here.raw"), &old);
    let after = pair.state()["volumes"]["vol-0a"]["targets"].clone();
    for (name, target) in before.as_object().unwrap() {
        assert_eq!(after[name]["recovery_point"], target["recovery_point"]);
        assert_eq!(after[name]["error"]["exit_code"], 8, "{name}");
    }
    pair.change("vol-0a", [11, 12]);
    pair.change("vol-0b", [13]);
    pair.run_proxy();
    let report = pair.apply(&job);
    assert_eq!(report["failures"].as_array().unwrap().len(), 0);
    for name in ["vol-0a.raw", "vol-0a-here.raw"] {
        assert_same(&pair.site.at(name), &pair.disk("vol-0a"));
    }
    assert_same(&pair.site.at("vol-0b.raw"), &pair.disk("vol-0b"));
}

#[test]
fn a_target_never_goes_back_where_the_newest_snapshot_was_removed() {
    let mut pair = ProxyAndGateway::new(3);
    let job = pair.gateway(
        "volumes = ['vol-0a']",
        "[[target]]\nto = '{0}/{volume}.raw'",
    );
    pair.run_proxy();
    pair.change("vol-0a", [1]);
    let newest = snapshot_of(&pair.run_proxy(), "vol-0a");
    pair.apply(&job);
    let held = format!("{}#{newest}", pair.repository);
    run(&mut pair.without_aws(&["repository", "rm", &held]));
    let report = pair.apply(&job);
    assert_eq!(report["volumes"].as_array().unwrap().len(), 0);
    assert_same(&pair.site.at("vol-0a.raw"), &pair.disk("vol-0a"));
}

#[test]
fn a_fixed_path_is_not_for_a_volume_that_another_one_joins_later() {
    let pair = ProxyAndGateway::new(3);
    let job = pair.gateway(
        "volumes = ['vol-0a', 'vol-0e']",
        "[[target]]\nto = '{0}/{volume}.raw'\n[[target]]\nto = '{0}/fixed.raw'",
    );
    pair.run_proxy();
    let (code, said) = ends(&mut pair.once(&job));
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("cannot replicate vol-0e"), "{said}");
    assert_same(&pair.site.at("vol-0a.raw"), &pair.disk("vol-0a"));
    assert!(!pair.site.at("fixed.raw").exists());
}

#[test]
fn a_listing_that_lacks_a_snapshot_is_never_believed() {
    let mut pair = ProxyAndGateway::new(3);
    let job = pair.gateway("", "[[target]]\nto = '{0}/{volume}.raw'");
    pair.run_proxy();
    pair.apply(&job);
    let old = pair.site.at("old.raw");
    std::fs::copy(pair.site.at("vol-0a.raw"), &old).unwrap();
    pair.change("vol-0a", [1]);
    pair.change("vol-0b", [2]);
    let hidden = snapshot_of(&pair.run_proxy(), "vol-0a");
    // The store leaves out the newest manifest of one volume, and the other one has something new.
    let manifests = objects(&pair, "snapshots").into_iter();
    let mut manifests = manifests.filter(|path| path.display().to_string().ends_with(&hidden));
    let manifest = manifests.next().unwrap();
    let aside = pair.site.at("aside");
    std::fs::rename(&manifest, &aside).unwrap();
    let (code, said) = ends(&mut pair.once(&job));
    assert_eq!(code, 11, "{said}");
    assert!(said.contains("neither in it nor removed"), "{said}");
    assert_same(&pair.site.at("vol-0a.raw"), &old);
    std::fs::rename(&aside, &manifest).unwrap();
    pair.apply(&job);
    for volume in &VOLUMES[..2] {
        let image = pair.site.at(&format!("{volume}.raw"));
        assert_same(&image, &pair.disk(volume));
    }
}
