//! `ebsfs replicate` against the emulator: cycles to all kinds of targets, retention on both sides, kills, refusals, new proxies.

mod drills;
mod frozen;
mod gateway;
mod killed;
mod lost;
mod proxies;
mod refused;
mod service;
mod sets;
mod shards;
mod slurm;
mod standby;
mod status;
mod writers;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::*;

pub const FIRST: &str = "i-0123456789abcdef0";
pub const SECOND: &str = "i-0fedcba9876543210";
pub const VOLUMES: [&str; 4] = ["vol-0a", "vol-0b", "vol-0c", "vol-0d"];
/// Blocks of a volume: a GiB, as EC2 counts.
const BLOCKS: u64 = 2048;

/// Two instances of two volumes, a folder for targets and states.
pub struct Site {
    pub emulator: Emulator,
    pub folder: TempDir,
    random: fastrand::Rng,
}

impl Site {
    pub fn new(seed: u64) -> Self {
        let emulator = Emulator::start();
        for (number, id) in (0..).zip(VOLUMES) {
            emulator.make_volume(id, BLOCKS, [0, 3 + number, BLOCKS - 1]);
        }
        for id in ["vol-0c", "vol-0d"] {
            emulator.post(&format!("volumes/{id}?instance={SECOND}"));
        }
        println!("seed {seed}");
        Self {
            emulator,
            folder: tempfile::tempdir().unwrap(),
            random: fastrand::Rng::with_seed(seed),
        }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes some blocks of each volume. Returns how many differ from before, of all volumes together.
    pub fn write(&mut self) -> u64 {
        self.write_to(&VOLUMES)
    }

    /// Writes some blocks of each of these volumes. Returns how many differ from before.
    pub fn write_to(&mut self, volumes: &[&str]) -> u64 {
        let mut changed = 0;
        for id in volumes {
            let disk = writable(&self.emulator.volume(id));
            let blocks: BTreeSet<u64> = (0..3).map(|_| self.random.u64(0..BLOCKS)).collect();
            for index in &blocks {
                let bytes = content(&format!("{id}-{}", self.random.u64(..)), *index);
                disk.write_all_at(&bytes, index * BLOCK).unwrap();
            }
            changed += blocks.len() as u64;
        }
        changed
    }

    /// Writes a job file.
    pub fn job(&self, text: &str) -> PathBuf {
        let path = self.at("job.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A job of one volume to an image; `more` follows that target.
    pub fn image_job(&self, more: &str) -> PathBuf {
        self.job(&format!(
            "name = 'web'\nvolumes = ['vol-0a']\n[[target]]\nto = '{}/{{volume}}.raw'\n{more}",
            self.folder.path().display()
        ))
    }

    /// One cycle, by the proxy with this state folder.
    pub fn once(&self, job: &Path, state: &str) -> Command {
        let mut command = self.emulator.ebsfs(&["replicate", "--once", "--json"]);
        command.arg(job);
        command.args(["--state-dir", self.at(state).to_str().unwrap()]);
        command
    }

    /// One cycle that must succeed; its report.
    pub fn cycle(&self, job: &Path, state: &str) -> Value {
        serde_json::from_str(&run(&mut self.once(job, state))).unwrap()
    }

    /// The snapshots of the source that are there, by volume, the oldest first.
    pub fn snapshots(&self) -> BTreeMap<String, Vec<Value>> {
        described(&self.emulator)
    }
}

/// The snapshots of an account, by volume, the oldest first.
pub fn described(emulator: &Emulator) -> BTreeMap<String, Vec<Value>> {
    let text = run(&mut emulator.ebsfs(&["ls", "--json"]));
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut volumes: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for snapshot in all {
        let volume = snapshot["volume_id"].as_str().unwrap().to_owned();
        volumes.entry(volume).or_default().push(snapshot);
    }
    volumes
}

/// The id of a snapshot.
pub fn id(snapshot: &Value) -> &str {
    snapshot["id"].as_str().unwrap()
}

/// The snapshot of a volume in the report of a cycle.
pub fn snapshot_of(report: &Value, volume: &str) -> String {
    let volumes = report["volumes"].as_array().unwrap();
    let its = volumes.iter().find(|one| one["volume"] == volume);
    its.unwrap()["snapshot"].as_str().unwrap().to_owned()
}

/// The snapshots that a repository holds of a volume, the oldest first.
pub fn held_in(repository: &str, volume: &str) -> Vec<String> {
    let listed = run(Command::new(EBSFS).args(["repository", "ls", repository, "--json"]));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let all = listed.as_array().unwrap().iter();
    all.filter(|one| one["volume_key"] == volume)
        .map(|one| one["snapshot"].as_str().unwrap().to_owned())
        .collect()
}

/// Compares a snapshot in a repository with a disk, byte for byte.
pub fn assert_in_repository(repository: &str, snapshot: &str, disk: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let source = format!("{repository}#{snapshot}");
    run(Command::new(EBSFS).args(["sync", &source, image.to_str().unwrap()]));
    assert_same(&image, disk);
}

#[test]
fn a_comparison_sees_a_byte_in_what_is_a_hole_of_the_other_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["a", "b"] {
        std::fs::File::create(at(name))
            .unwrap()
            .set_len(64 << 20)
            .unwrap();
    }
    assert!(is_same(&at("a"), &at("b")));
    writable(&at("b")).write_all_at(b"x", 40 << 20).unwrap();
    assert!(!is_same(&at("a"), &at("b")) && !is_same(&at("b"), &at("a")));
    writable(&at("a")).write_all_at(b"x", 40 << 20).unwrap();
    assert!(is_same(&at("a"), &at("b")));
    writable(&at("a")).set_len(65 << 20).unwrap();
    assert!(!is_same(&at("a"), &at("b")));
}

#[test]
fn replicas_that_exist_are_not_copied_again_and_the_state_lists_them() {
    let mut site = Site::new(fastrand::u64(..));
    site.write();
    let job = site.job(&format!(
        "name = 'web'\nvolumes = ['vol-0a']\nverify = true\n[[target]]\nto = '{}/{{volume}}.raw'\nin_place = true\n[hooks]\nfreeze = 'true'",
        site.folder.path().display()
    ));
    site.cycle(&job, "state");
    let state = |site: &Site| -> Value {
        serde_json::from_slice(&std::fs::read(site.at("state/job-web.json")).unwrap()).unwrap()
    };
    let target = site.at("vol-0a.raw").display().to_string();
    let first = state(&site);
    let point = &first["volumes"]["vol-0a"]["targets"][&target]["recovery_point"];
    assert_eq!(
        point["snapshot"],
        id(site.snapshots()["vol-0a"].last().unwrap())
    );
    assert!(first["last_run"]["error"].is_null(), "{first}");
    assert!(first["last_run"]["requests"]["gets"].as_u64().unwrap() > 0);
    assert!(first["under_way"].is_null() && first["volumes"]["vol-0a"]["under_way"].is_null());
    // Nothing was written since: a new snapshot, no block.
    site.emulator.reset();
    site.cycle(&job, "state");
    assert_eq!(site.emulator.gets(), 0);
    assert_same(&site.at("vol-0a.raw"), &site.emulator.volume("vol-0a"));
}

#[test]
fn a_new_proxy_with_an_empty_state_continues_from_what_the_targets_hold() {
    let mut site = Site::new(fastrand::u64(..));
    let repository = format!("file://{}", site.at("repository").display());
    init_repository(&repository);
    let job = site.job(&format!(
        r#"
        name = "web"
        instances = ["{FIRST}"]
        [[target]]
        to = "{repository}"
        [[target]]
        to = "{}/{{volume}}.raw"
        "#,
        site.folder.path().display(),
    ));
    for (round, state) in ["one", "one", "two", "three"].into_iter().enumerate() {
        site.write();
        site.emulator.reset();
        let report = site.cycle(&job, state);
        if round > 0 {
            // Of two of the four volumes.
            let gets = site.emulator.gets();
            assert!((2..=6).contains(&gets), "{gets} Gets in round {round}");
        }
        let source = site.snapshots();
        for volume in &VOLUMES[..2] {
            let disk = site.emulator.volume(volume);
            let snapshot = snapshot_of(&report, volume);
            assert_same(&site.at(&format!("{volume}.raw")), &disk);
            assert_in_repository(&repository, &snapshot, &disk);
            let its: Vec<&str> = source[*volume].iter().map(id).collect();
            assert_eq!(
                its,
                [&*snapshot],
                "the one before is deleted, whoever made it"
            );
        }
    }
}

#[test]
fn new_disks_join_and_vanished_ones_are_reported() {
    let mut site = Site::new(fastrand::u64(..));
    site.write();
    let job = site.job(&format!(
        "name = 'web'\ninstances = ['{SECOND}']\nvolumes = ['vol-0f']\n[[target]]\nto = '{}/{{volume}}.raw'",
        site.folder.path().display()
    ));
    // A volume that does not exist does not hold up the others.
    let (code, said) = ends(&mut site.once(&job, "state"));
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("vol-0f"), "{said}");
    assert_same(&site.at("vol-0c.raw"), &site.emulator.volume("vol-0c"));
    site.emulator
        .post(&format!("volumes/vol-0b?instance={SECOND}"));
    site.emulator.post("volumes/vol-0d?instance=");
    site.emulator.make_volume("vol-0f", BLOCKS, [1]);
    site.emulator.post("volumes/vol-0f?instance=");
    let output = site.once(&job, "state").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("vol-0d is not selected any more"), "{said}");
    for volume in ["vol-0b", "vol-0c", "vol-0f"] {
        assert_same(
            &site.at(&format!("{volume}.raw")),
            &site.emulator.volume(volume),
        );
    }
    assert_eq!(site.snapshots()["vol-0d"].len(), 1, "its snapshot stays");
    let output = site.once(&job, "state").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("not selected any more"), "{said}");
}
