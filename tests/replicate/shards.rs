//! One job on several machines: each volume is of one shard, and a division that changes costs double work at most.

use std::process::{Child, Stdio};

use super::*;

/// Volumes that are attached to nothing. Of four shards each has at least one of them, of three and of two too.
pub const LOOSE: [&str; 8] = [
    "vol-0a", "vol-0b", "vol-0c", "vol-0f", "vol-10", "vol-13", "vol-14", "vol-16",
];

/// A site with those, and a job of all of them into images; `more` follows its names.
pub fn loose_site(more: &str) -> (Site, PathBuf) {
    let site = Site::new(fastrand::u64(..));
    for id in LOOSE {
        site.emulator.make_volume(id, BLOCKS, [1, 7]);
        site.emulator.post(&format!("volumes/{id}?instance="));
    }
    let job = site.job(&format!(
        "name = 'web'\nvolumes = {LOOSE:?}\nlook_again = '300ms'\n{more}\n[[target]]\nto = '{}/{{volume}}.raw'",
        site.folder.path().display()
    ));
    (site, job)
}

/// One cycle of a shard, with a state folder that all shards share.
fn shard(site: &Site, job: &Path, shard: &str) -> Command {
    let mut command = site.once(job, "state");
    command.args(["--shard", shard]);
    command
}

/// One cycle of all shards at the same time, which must succeed; their reports.
fn all_shards(site: &Site, job: &Path, count: u64) -> Vec<Value> {
    let running: Vec<Child> = (0..count)
        .map(|index| {
            let mut command = shard(site, job, &format!("{index}/{count}"));
            let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let ended = running.into_iter().map(|process| {
        let output = process.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        serde_json::from_slice(&output.stdout).unwrap()
    });
    ended.collect()
}

/// The volumes of a report.
fn volumes_of(report: &Value) -> Vec<String> {
    let volumes = report["volumes"].as_array().unwrap().iter();
    let ids = volumes.map(|one| one["volume"].as_str().unwrap().to_owned());
    ids.collect()
}

/// Asserts that each volume is in one report.
fn assert_each_once(reports: &[Value], volumes: &[&str]) {
    let mut taken: Vec<String> = reports.iter().flat_map(volumes_of).collect();
    taken.sort_unstable();
    assert_eq!(taken, volumes);
}

/// Asserts that each image is its volume, and that one snapshot of each volume is left.
pub fn assert_images(site: &Site, volumes: &[&str]) {
    let source = site.snapshots();
    for volume in volumes {
        let image = site.at(&format!("{volume}.raw"));
        assert_same(&image, &site.emulator.volume(volume));
        assert_eq!(source[*volume].len(), 1, "snapshots of {volume}");
    }
}

#[test]
fn shards_take_each_instance_as_one_set_and_each_volume_once() {
    let mut site = Site::new(fastrand::u64(..));
    let repository = format!("file://{}", site.at("repository").display());
    init_repository(&repository);
    let loose = ["vol-10", "vol-13"];
    for id in loose {
        site.emulator.make_volume(id, BLOCKS, [2]);
        site.emulator
            .post(&format!("volumes/{id}?instance=&tag=Backup%3Dyes"));
    }
    let volumes = [&VOLUMES[..], &loose].concat();
    let folder = site.folder.path().display().to_string();
    let text = |instances: &[&str], more: &str| {
        format!(
            "name = 'web'\ninstances = {instances:?}\nvolumes = ['vol-0a'{more}]\ntags = {{ Backup = 'yes' }}\n\
             [[target]]\nto = '{folder}/{{volume}}.raw'\n[[target]]\nto = '{repository}'\nkeep = {{ last = 1 }}"
        )
    };
    let job = site.job(&text(&[FIRST, SECOND], ""));
    for round in 0..2 {
        let changed = site.write_to(&volumes);
        site.emulator.reset();
        let reports = all_shards(&site, &job, 3);
        assert_each_once(&reports, &volumes);
        for (index, report) in reports.iter().enumerate() {
            assert_eq!(report["shard"], format!("{index}/3"));
        }
        if round > 0 {
            assert_eq!(site.emulator.gets(), changed);
        }
        assert_eq!(site.emulator.count("CreateSnapshots"), 2, "one call a set");
        assert_eq!(site.emulator.count("CreateSnapshot"), 2);
        assert_images(&site, &volumes);
        let source = site.snapshots();
        for set in [&VOLUMES[..2], &VOLUMES[2..]] {
            let starts: BTreeSet<String> = set
                .iter()
                .map(|volume| source[*volume][0]["start_time"].to_string())
                .collect();
            assert_eq!(starts.len(), 1, "{starts:?}");
        }
        for volume in &volumes {
            let held = held_in(&repository, volume);
            assert_eq!(held, [id(&source[*volume][0])]);
            assert_in_repository(&repository, &held[0], &site.emulator.volume(volume));
        }
    }
    // A volume that is attached now goes to the shard of its instance; nothing is copied again.
    site.emulator
        .post(&format!("volumes/vol-10?instance={FIRST}"));
    let changed = site.write_to(&volumes);
    site.emulator.reset();
    let reports = all_shards(&site, &job, 3);
    assert_each_once(&reports, &volumes);
    for report in &reports {
        assert_eq!(report["warnings"], Value::Array(Vec::new()));
    }
    assert!(volumes_of(&reports[2]).contains(&"vol-10".to_owned()));
    assert_eq!(site.emulator.gets(), changed);
    assert_eq!(site.emulator.count("CreateSnapshot"), 1, "vol-13");
    assert_images(&site, &volumes);
    // What names nothing is reported by one shard, and a volume that has vanished by the one that had it. A shard of which every volume
    // is excluded has nothing to do.
    let text = text(&[FIRST], ", 'vol-0e'");
    let job = site.job(&text.replacen('\n', "\nexclude = ['vol-13']\n", 1));
    let mut said = String::new();
    let mut codes = BTreeSet::new();
    for index in 0..3 {
        let output = shard(&site, &job, &format!("{index}/3")).output().unwrap();
        said += &String::from_utf8_lossy(&output.stderr);
        codes.insert(output.status.code().unwrap());
    }
    for volume in ["vol-0c", "vol-0d", "vol-13"] {
        let line = format!("{volume} is not selected any more");
        assert_eq!(said.matches(&line).count(), 1, "{said}");
    }
    assert_eq!(
        said.matches("is not selected any more").count(),
        3,
        "{said}"
    );
    assert_eq!(said.matches("'vol-0e' does not exist").count(), 1, "{said}");
    assert_eq!(codes, [0, 3].into(), "{said}");
}

#[test]
fn another_number_of_shards_continues_from_what_the_targets_hold() {
    let (mut site, job) = loose_site("");
    assert_each_once(&all_shards(&site, &job, 2), &LOOSE);
    for count in [3, 4, 1, 2] {
        let changed = site.write_to(&LOOSE);
        site.emulator.reset();
        assert_each_once(&all_shards(&site, &job, count), &LOOSE);
        assert_eq!(site.emulator.gets(), changed, "{count} shards");
        assert_eq!(site.emulator.count("CreateSnapshot"), 8);
        assert_images(&site, &LOOSE);
    }
}

#[test]
fn a_copy_that_another_number_of_shards_has_overtaken_is_not_continued() {
    let (mut site, job) = loose_site("");
    all_shards(&site, &job, 2);
    site.write_to(&LOOSE);
    site.emulator.set("latency_ms=200");
    let mut killed = shard(&site, &job, "0/2");
    let mut killed = killed.stdout(Stdio::null()).spawn().unwrap();
    let state = site.at("state/job-web@0-of-2.json");
    let under_way = || {
        let state: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
        let volumes = state["volumes"].as_object().unwrap().values();
        volumes.filter(|one| !one["under_way"].is_null()).count()
    };
    wait_for("copies under way", || under_way() > 0);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(under_way() > 0);
    site.emulator.set("latency_ms=0");
    site.write_to(&LOOSE);
    assert_each_once(&all_shards(&site, &job, 3), &LOOSE);
    assert_images(&site, &LOOSE);
    // Back: what the killed one had under way is older than what the images hold now.
    site.write_to(&LOOSE);
    site.emulator.reset();
    assert_each_once(&all_shards(&site, &job, 2), &LOOSE);
    assert_eq!(site.emulator.count("CreateSnapshot"), 8);
    assert_images(&site, &LOOSE);
}

#[test]
fn the_first_shard_sweeps_the_repository_also_where_it_has_no_volume() {
    let site = Site::new(fastrand::u64(..));
    let repository = format!("file://{}", site.at("repository").display());
    init_repository(&repository);
    site.emulator.post("volumes/vol-0a?instance=");
    let job = site.job(&format!(
        "name = 'web'\nvolumes = ['vol-0a']\n[[target]]\nto = '{repository}'\nkeep = {{ last = 1 }}"
    ));
    let reports = all_shards(&site, &job, 2);
    let taken: Vec<_> = reports.iter().map(volumes_of).collect();
    assert_eq!(taken, [vec![], vec!["vol-0a".to_owned()]]);
    let swept = |index: u32| -> Value {
        let path = site.at(&format!("state/job-web@{index}-of-2.json"));
        let state: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        state["swept"].clone()
    };
    assert!(swept(0)[&repository].is_string(), "{}", swept(0));
    assert!(swept(1).as_object().unwrap().is_empty(), "{}", swept(1));
}

#[test]
fn a_shard_comes_from_the_engine_or_is_refused() {
    let (site, job) = loose_site("");
    let auto = |variables: &[(&str, &str)]| {
        let mut command = shard(&site, &job, "auto");
        command.envs(variables.iter().copied());
        command
    };
    for (variables, words) in [
        (&[][..], "no task of an array"),
        (&[("JOB_COMPLETION_INDEX", "1")], "EBSFS_SHARDS is not"),
        (
            &[
                ("CLOUD_RUN_TASK_INDEX", "1"),
                ("CLOUD_RUN_TASK_COUNT", "2"),
                ("JOB_COMPLETION_INDEX", "0"),
                ("EBSFS_SHARDS", "2"),
            ],
            "says 1/2",
        ),
    ] {
        let (code, said) = ends(&mut auto(variables));
        assert_eq!((code, said.lines().count()), (2, 1), "{said}");
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(site.emulator.count("DescribeVolumes"), 0);
    let mut taken = Vec::new();
    for index in ["0", "1"] {
        let variables = [
            ("CLOUD_RUN_TASK_INDEX", index),
            ("CLOUD_RUN_TASK_COUNT", "2"),
        ];
        taken.push(serde_json::from_str(&run(&mut auto(&variables))).unwrap());
    }
    assert_each_once(&taken, &LOOSE);
}
