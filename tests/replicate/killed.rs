//! Runs killed at random moments, and two proxies on one job. EBSFS_KILLS=100 makes the first go on until it has killed so often.

use super::*;
use crate::sync::kill_until_done;

#[test]
fn a_cycle_that_is_killed_at_any_moment_loses_no_base_and_writes_no_wrong_byte() {
    let enough = std::env::var("EBSFS_KILLS").map_or(5, |kills| kills.parse().unwrap());
    let mut site = Site::new(fastrand::u64(..));
    let repository = format!("file://{}", site.at("repository").display());
    init_repository(&repository);
    let job = site.job(&format!(
        r#"
        name = "web"
        instances = ["{FIRST}"]
        volumes = ["vol-0c"]
        look_again = "300ms"
        stage = "{0}/stage"
        [[target]]
        to = "{0}/{{volume}}.raw"
        in_place = true
        [[target]]
        to = "{repository}"
        keep = {{ last = 2 }}
        "#,
        site.folder.path().display()
    ));
    let volumes = ["vol-0a", "vol-0b", "vol-0c"];
    site.cycle(&job, "state");
    // Not the job's: it has the tags of one that is.
    let own = site.snapshots()["vol-0a"][0].clone();
    let cycle = own["tags"]["ebsfs:cycle"]
        .as_str()
        .unwrap()
        .replace('/', "%2F");
    let foreign = site.emulator.snapshot("vol-0a");
    site.emulator.post(&format!(
        "snapshots/{foreign}?tag=ebsfs%3Acycle%3D{cycle}&tag=ebsfs%3Aself%3D{}",
        id(&own)
    ));
    site.emulator
        .set("latency_ms=5&shown_ms=100&pending_ms=150");
    let (mut kills, mut cycles) = (0, 0);
    while kills < enough {
        site.write();
        kills += kill_until_done(|| site.once(&job, "state"), 900, || {});
        cycles += 1;
        let source = site.snapshots();
        let listed: BTreeSet<&str> = source.values().flatten().map(id).collect();
        assert!(listed.contains(&*foreign));
        for volume in volumes {
            let state = std::fs::read(site.at("state/job-web.json")).unwrap();
            let state: Value = serde_json::from_slice(&state).unwrap();
            let image = site.at(&format!("{volume}.raw"));
            let targets = &state["volumes"][volume]["targets"];
            for name in [image.to_str().unwrap(), &repository] {
                let held = targets[name]["recovery_point"]["snapshot"]
                    .as_str()
                    .unwrap();
                assert!(
                    listed.contains(held),
                    "{volume}: {name} holds {held}, which is lost"
                );
            }
            let disk = site.emulator.volume(volume);
            assert_same(&image, &disk);
            let held = targets[&*repository]["recovery_point"]["snapshot"]
                .as_str()
                .unwrap();
            assert_in_repository(&repository, held, &disk);
        }
    }
    println!("{kills} kills, {cycles} cycles");
    // Deltas all along: the targets never had to be filled again.
    site.emulator.set("latency_ms=0&shown_ms=0&pending_ms=0");
    site.write();
    site.emulator.reset();
    site.cycle(&job, "state");
    // What is staged is fetched by itself.
    assert!(site.emulator.gets() <= 18, "{}", site.emulator.gets());
    // What kills have left is deleted by the next cycle, and nothing else.
    let source = site.snapshots();
    for volume in volumes {
        let own = source[volume].iter().filter(|one| id(one) != foreign);
        assert_eq!(own.count(), 1, "{volume}");
    }
    assert!(source["vol-0a"].iter().any(|one| id(one) == foreign));
}

#[test]
fn two_proxies_on_one_job_write_no_wrong_byte_and_lose_no_base() {
    let mut site = Site::new(fastrand::u64(..));
    let repository = format!("file://{}", site.at("repository").display());
    init_repository(&repository);
    let job = site.job(&format!(
        "name = 'web'\ninstances = ['{FIRST}']\n[[target]]\nto = '{repository}'\nkeep = {{ last = 3 }}"
    ));
    site.cycle(&job, "one");
    site.emulator.set("latency_ms=3&shown_ms=50&pending_ms=50");
    for _ in 0..3 {
        site.write();
        site.emulator.reset();
        let proxies: Vec<_> = ["one", "two"]
            .map(|state| {
                let mut command = site.once(&job, state);
                command.stdout(std::process::Stdio::null());
                command.stderr(std::process::Stdio::piped());
                command.spawn().unwrap()
            })
            .into();
        for proxy in proxies {
            let output = proxy.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            // The other one may have the repository's snapshot under way, or have deleted what this one has listed.
            assert!(matches!(output.status.code(), Some(0..=10)), "{said}");
        }
        // At most twice the work of one.
        assert!(site.emulator.gets() <= 12, "{}", site.emulator.gets());
        site.emulator.reset();
        site.cycle(&job, "one");
        assert!(
            site.emulator.gets() <= 6,
            "a base was lost: {}",
            site.emulator.gets()
        );
        let source = site.snapshots();
        for volume in &VOLUMES[..2] {
            let newest = held_in(&repository, volume).pop().unwrap();
            assert!(
                source[*volume].iter().any(|one| id(one) == newest),
                "{newest} is lost"
            );
            assert_in_repository(&repository, &newest, &site.emulator.volume(volume));
        }
    }
}

#[test]
fn two_proxies_with_images_of_their_own_leave_each_other_their_bases() {
    let mut site = Site::new(fastrand::u64(..));
    let job = |name: &str| {
        let path = site.at(&format!("{name}.toml"));
        let text = format!(
            "name = 'web'\nvolumes = ['vol-0a']\n[[target]]\nto = '{}/{name}.raw'",
            site.folder.path().display()
        );
        std::fs::write(&path, text).unwrap();
        path
    };
    let (quick, slow) = (job("quick"), job("slow"));
    let volume = site.emulator.volume("vol-0a");
    site.cycle(&quick, "quick");
    site.cycle(&slow, "slow");
    for _ in 0..2 {
        for _ in 0..3 {
            site.write();
            site.cycle(&quick, "quick");
            assert_same(&site.at("quick.raw"), &volume);
            // That of the slow one's image, and the newest.
            assert_eq!(site.snapshots()["vol-0a"].len(), 2);
        }
        site.emulator.reset();
        site.cycle(&slow, "slow");
        assert!(
            site.emulator.gets() <= 9,
            "its base was deleted: {}",
            site.emulator.gets()
        );
        assert_same(&site.at("slow.raw"), &volume);
    }
    site.cycle(&quick, "quick");
    assert_eq!(site.snapshots()["vol-0a"].len(), 2);
}

#[test]
fn a_second_process_of_one_state_folder_is_refused() {
    let mut site = Site::new(fastrand::u64(..));
    site.write();
    let job = site.image_job("");
    site.emulator.set("pending_ms=1500");
    let mut first = site
        .once(&job, "state")
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the first snapshot", || {
        site.emulator.count("CreateSnapshot") == 1
    });
    let (code, said) = ends(&mut site.once(&job, "state"));
    assert_eq!(code, 10, "{said}");
    assert!(first.wait().unwrap().success());
    assert_eq!(site.emulator.count("CreateSnapshot"), 1);
}
