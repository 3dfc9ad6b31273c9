//! Several proxies on one job.

use super::*;

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
