//! Sets that cycles add: the machines of instances beside the snapshots of their disks.

use super::*;

/// The sets of a repository: time and instance of each.
fn sets(repository: &str) -> Vec<(String, String)> {
    let listed = run(Command::new(EBSFS).args(["repository", "instances", repository]));
    let pairs = listed.lines().map(|line| line.split_once(' ').unwrap());
    pairs
        .map(|(time, instance)| (time.to_owned(), instance.to_owned()))
        .collect()
}

#[test]
fn a_cycle_keeps_the_machine_of_an_instance_and_restore_writes_its_disks() {
    let mut site = Site::new(fastrand::u64(..));
    let repository = format!("file://{}", site.at("repository").display());
    init_repository(&repository);
    let job = site.job(&format!(
        "name = 'web'\ninstances = ['{FIRST}', '{SECOND}']\n[[target]]\nto = '{repository}'\n\
         [[target]]\nto = '{}/{{volume}}.raw'",
        site.folder.path().display()
    ));
    site.write();
    let first = site.cycle(&job, "state");
    let kept = sets(&repository);
    assert_eq!(kept.len(), 2, "{kept:?}");
    let added = first["sets"].as_array().unwrap();
    assert_eq!(added.len(), 2, "{first}");
    for (instance, volumes) in [(FIRST, &VOLUMES[..2]), (SECOND, &VOLUMES[2..])] {
        let set = kept.iter().find(|(_, of)| of == instance);
        let name = format!("{repository}#{instance}@{}", set.unwrap().0);
        assert!(added.iter().any(|one| *one == *name), "{name}: {first}");
        let to = site.at(instance);
        let mut command = Command::new(EBSFS);
        let restore = command.args(["restore", &name, "--json", "--to"]).arg(&to);
        let restored: Value = serde_json::from_str(&run(restore)).unwrap();
        let disks = restored["disks"].as_array().unwrap();
        assert_eq!(disks.len(), 2, "{restored}");
        for (disk, volume) in disks.iter().zip(volumes) {
            assert_eq!(disk["volume"], *volume);
            assert_eq!(disk["snapshot"], *snapshot_of(&first, volume));
            let image = disk["result"]["target"].as_str().unwrap();
            assert_same(Path::new(image), &site.emulator.volume(volume));
        }
        let text = std::fs::read(to.join("instance.json")).unwrap();
        let inventory: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(inventory["instance"]["type"], "m5.large");
    }
    // An image fails: the disks in the repository are whole all the same.
    site.write();
    let blocked = site.at("vol-0c.raw");
    std::fs::write(&blocked, "foreign").unwrap();
    let (code, said) = ends(&mut site.once(&job, "state"));
    assert_eq!(code, 11, "{said}");
    assert_eq!(sets(&repository).len(), 4, "{said}");
}

#[test]
fn a_set_needs_all_disks_that_the_job_selects_and_no_others() {
    let mut site = Site::new(fastrand::u64(..));
    let repository = format!("file://{}", site.at("repository").display());
    init_repository(&repository);
    let text = |more: &str| {
        format!("name = 'web'\ninstances = ['{FIRST}']\n{more}\n[[target]]\nto = '{repository}'\n")
    };
    // The job wants none.
    site.cycle(&site.job(&text("inventory = false")), "state");
    assert!(sets(&repository).is_empty());
    assert_eq!(site.emulator.count("DescribeInstanceTypes"), 0);
    // One of the disks goes elsewhere: there will never be a whole set.
    let elsewhere = format!(
        "{}volumes = ['vol-0a']\n[[target]]\nto = '{}/{{volume}}.raw'",
        text(""),
        site.folder.path().display()
    );
    site.write();
    site.cycle(&site.job(&elsewhere), "state");
    assert!(sets(&repository).is_empty());
    // A disk that the job leaves out; what may not be described is said once.
    let job = site.job(&text("exclude = ['vol-0b']"));
    site.emulator.set("deny=ec2:DescribeInstanceTypes");
    for round in 0..2 {
        site.write();
        let output = site.once(&job, "state").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(
            said.contains("ec2:DescribeInstanceTypes"),
            round == 0,
            "{said}"
        );
    }
    assert_eq!(sets(&repository).len(), 2);
    let mut command = Command::new(EBSFS);
    let set = format!("{repository}#{FIRST}");
    let output = command.args(["restore", &set, "--to"]).arg(site.at("to"));
    let output = output.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("vol-0b was left out"),
        "{said}"
    );
    assert_same(&site.at("to/0-xvda.raw"), &site.emulator.volume("vol-0a"));
}

#[test]
fn an_instance_that_may_not_be_described_costs_no_recovery_point() {
    let mut site = Site::new(fastrand::u64(..));
    let repository = format!("file://{}", site.at("repository").display());
    init_repository(&repository);
    let job = site.job(&format!(
        "name = 'web'\ninstances = ['{FIRST}']\n[[target]]\nto = '{repository}'\n"
    ));
    site.write();
    // Stopped after its snapshots were made: the next run asks for no instance before its copies.
    site.emulator.set("pending_ms=2000");
    let mut command = site.once(&job, "state");
    command.stdout(std::process::Stdio::null());
    let mut process = command.spawn().unwrap();
    wait_for("the snapshots", || {
        let state = std::fs::read(site.at("state/job-web.json")).unwrap_or_default();
        let state: Value = serde_json::from_slice(&state).unwrap_or_default();
        !state["volumes"]["vol-0b"]["under_way"].is_null()
    });
    run(Command::new("kill").args(["-TERM", &process.id().to_string()]));
    assert_eq!(process.wait().unwrap().code(), Some(130));
    site.emulator.set("pending_ms=0&deny=ec2:DescribeInstances");
    let output = site.once(&job, "state").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let lines = said
        .matches("the machines of instances are not kept")
        .count();
    assert_eq!(lines, 1, "{said}");
    for volume in &VOLUMES[..2] {
        let held = held_in(&repository, volume).pop().unwrap();
        assert_in_repository(&repository, &held, &site.emulator.volume(volume));
    }
    assert!(sets(&repository).is_empty());
    // Allowed again: the next cycle keeps it.
    site.emulator.set("deny=");
    site.write();
    site.cycle(&job, "state");
    assert_eq!(sets(&repository).len(), 1);
}
