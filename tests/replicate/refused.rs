//! What must not be deleted, and deletions that are refused.

use super::*;

/// Exit code and stderr of one cycle.
fn said(site: &Site, job: &Path) -> String {
    let (code, said) = ends(&mut site.once(job, "state"));
    assert_eq!(code, 0, "{said}");
    said
}

#[test]
fn foreign_snapshots_with_copied_tags_are_never_deleted() {
    let mut site = Site::new(fastrand::u64(..));
    let job = site.image_job("");
    site.cycle(&job, "state");
    let own = site.snapshots()["vol-0a"][0].clone();
    let tag = |key: &str| own["tags"][key].as_str().unwrap().replace('/', "%2F");
    let (cycle, itself) = (tag("ebsfs:cycle"), tag("ebsfs:self"));
    let mut foreign = BTreeSet::new();
    for number in 0..40 {
        let volume = VOLUMES[number % 2];
        let made = site.emulator.snapshot(volume);
        let tags = match number % 4 {
            // All tags of ours, as a backup program copies them.
            0 | 1 => format!("tag=ebsfs%3Acycle%3D{cycle}&tag=ebsfs%3Aself%3D{itself}"),
            // Only the cycle: a run that ended before it could set the id may have made it.
            2 => format!("tag=ebsfs%3Acycle%3D{cycle}"),
            // Its own id, and another job's cycle.
            _ => format!(
                "tag=ebsfs%3Acycle%3Dother%2F2026-06-30T12%3A00%3A00Z&tag=ebsfs%3Aself%3D{made}"
            ),
        };
        site.emulator.post(&format!("snapshots/{made}?{tags}"));
        foreign.insert(made);
    }
    for _ in 0..2 {
        site.write();
        site.cycle(&job, "state");
    }
    // Also by a proxy that knows nothing but the tags.
    site.write();
    site.cycle(&job, "new");
    let left = site.snapshots();
    let left: BTreeSet<String> = left
        .values()
        .flatten()
        .map(|one| id(one).to_owned())
        .collect();
    assert!(
        left.is_superset(&foreign),
        "{:?}",
        foreign.difference(&left)
    );
    assert_eq!(left.len(), foreign.len() + 1);
    assert!(!left.contains(id(&own)));
    assert_same(&site.at("vol-0a.raw"), &site.emulator.volume("vol-0a"));
}

#[test]
fn a_denied_deletion_is_said_once_and_the_cycle_succeeds() {
    let mut site = Site::new(fastrand::u64(..));
    let job = site.image_job("");
    said(&site, &job);
    site.emulator.set("deny=ec2:DeleteSnapshot");
    site.write();
    let first = said(&site, &job);
    assert!(
        first.contains("old snapshots stay") && first.contains("ec2:DeleteSnapshot"),
        "{first}"
    );
    site.write();
    let second = said(&site, &job);
    assert!(!second.contains("old snapshots stay"), "{second}");
    assert_eq!(site.snapshots()["vol-0a"].len(), 3);
    // Allowed again: all of them go.
    site.emulator.set("deny=");
    site.write();
    said(&site, &job);
    assert_eq!(site.snapshots()["vol-0a"].len(), 1);
}

#[test]
fn a_snapshot_that_is_locked_or_that_an_image_uses_is_said_once_and_the_others_go() {
    let mut site = Site::new(fastrand::u64(..));
    let job = site.image_job("");
    site.emulator.set("deny=ec2:DeleteSnapshot");
    for _ in 0..3 {
        site.write();
        said(&site, &job);
    }
    let made: Vec<String> = site.snapshots()["vol-0a"]
        .iter()
        .map(|one| id(one).to_owned())
        .collect();
    site.emulator
        .post(&format!("snapshots/{}?image=ami-0123", made[0]));
    site.emulator
        .post(&format!("snapshots/{}?locked=1", made[1]));
    site.emulator.set("deny=");
    site.write();
    let first = said(&site, &job);
    for (snapshot, why) in [(&made[0], "ami-0123"), (&made[1], "locked")] {
        let line = format!("{snapshot} of vol-0a stays");
        assert!(first.contains(&line) && first.contains(why), "{first}");
    }
    site.write();
    let second = said(&site, &job);
    assert!(!second.contains("stays"), "{second}");
    let left: Vec<String> = site.snapshots()["vol-0a"]
        .iter()
        .map(|one| id(one).to_owned())
        .collect();
    assert_eq!(left.len(), 3, "{left:?}");
    assert_eq!(left[..2], made[..2]);
}

#[test]
fn a_target_that_fails_keeps_its_base_and_the_others_are_served() {
    let mut site = Site::new(fastrand::u64(..));
    let repository = format!("file://{}", site.at("repository").display());
    init_repository(&repository);
    let job = site.image_job(&format!("[[target]]\nto = '{repository}'"));
    site.cycle(&job, "state");
    let base = id(&site.snapshots()["vol-0a"][0]).to_owned();
    // Something else has written the image: nothing of it is overwritten, and its base stays.
    let image = site.at("vol-0a.raw");
    writable(&image)
        .write_all_at(b"foreign", 7 * BLOCK)
        .unwrap();
    for round in 0..3 {
        site.write();
        let (code, said) = ends(&mut site.once(&job, "state"));
        assert_eq!(code, 11, "{said}");
        assert!(said.contains("something else has written"), "{said}");
        let its: Vec<String> = site.snapshots()["vol-0a"]
            .iter()
            .map(|one| id(one).to_owned())
            .collect();
        assert_eq!(its.len(), 2, "round {round}: {its:?}");
        assert_eq!(its[0], base);
        assert_in_repository(&repository, &its[1], &site.emulator.volume("vol-0a"));
    }
    assert_eq!(read_at(&image, 7 * BLOCK, 7), b"foreign");
    // Settled by a person: the next cycle starts from the base.
    writable(&image).write_all_at(&[0; 7], 7 * BLOCK).unwrap();
    site.emulator.reset();
    let (code, said) = ends(&mut site.once(&job, "state"));
    assert_eq!(code, 0, "{said}");
    assert!(site.emulator.gets() < 20, "{}", site.emulator.gets());
    assert_same(&image, &site.emulator.volume("vol-0a"));
    assert_eq!(site.snapshots()["vol-0a"].len(), 1);
}
