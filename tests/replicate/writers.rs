//! Cycles over volumes that keep writing. EBSFS_CYCLES=50 makes them more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::frozen::Frozen;
use super::gateway::fetched;
use super::standby::Standby;
use super::*;
use crate::repository::Objects;

/// Writes blocks of volumes until it is dropped.
pub struct Writer {
    has_ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Somewhere in the first blocks of each volume, about 50 blocks a second.
    pub fn start(emulator: &Emulator, volumes: &[&str], seed: u64) -> Self {
        let disks: Vec<_> = volumes
            .iter()
            .map(|id| writable(&emulator.volume(id)))
            .collect();
        let has_ended = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&has_ended);
        let thread = std::thread::spawn(move || {
            let mut random = fastrand::Rng::with_seed(seed);
            while !ends.load(Ordering::Relaxed) {
                let index = random.u64(0..12);
                let bytes = content(&random.u64(..).to_string(), index);
                let disk = &disks[random.usize(0..disks.len())];
                disk.write_all_at(&bytes, index * BLOCK).unwrap();
                // Its rate, and no wait for anything.
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self {
            has_ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

#[test]
fn every_cycle_of_volumes_that_keep_writing_copies_its_snapshots_to_every_kind_of_target() {
    let cycles = std::env::var("EBSFS_CYCLES").map_or(5, |cycles| cycles.parse().unwrap());
    let seed = fastrand::u64(..);
    let site = Site::new(seed);
    let other = Emulator::beside(&site.emulator);
    let store = Objects::s3();
    store.init();
    let job = site.job(&format!(
        r#"
        name = "web"
        instances = ["{FIRST}", "{SECOND}"]
        keep = 2
        allow_plaintext = true

        [[target]]
        to = "{}/{{volume}}.raw"

        [[target]]
        to = "{}"
        endpoint_url = "{}"
        profile = "store"
        keep = {{ last = 3 }}

        [[target]]
        to = "ebs:us-east-1"
        endpoint_url = "{}"
        keep = {{ last = 2 }}
        "#,
        site.folder.path().display(),
        store.url(),
        store.to()[1],
        other.url(),
    ));
    let standby = Standby::of(&site, &store);
    let writer = Writer::start(&site.emulator, &VOLUMES, seed);
    for round in 1..=cycles {
        site.emulator.reset();
        other.reset();
        let mut command = site.once(&job, "state");
        command.env(
            "AWS_SHARED_CREDENTIALS_FILE",
            store.credentials(&site.emulator),
        );
        let report: Value = serde_json::from_str(&run(&mut command)).unwrap();
        assert_eq!(report["failures"].as_array().unwrap().len(), 0, "{report}");
        let snapshots: BTreeMap<&str, String> = VOLUMES
            .map(|volume| (volume, snapshot_of(&report, volume)))
            .into();
        let frozen: BTreeMap<&str, Frozen> = snapshots
            .iter()
            .map(|(volume, snapshot)| (*volume, Frozen::read(&site.emulator, snapshot)))
            .collect();
        // Each changed block is fetched once, for three targets.
        let changed: u64 = frozen.values().map(|one| one.changed).sum();
        assert!(changed > 0);
        assert_eq!(site.emulator.gets(), changed, "round {round}");
        assert_eq!(other.count("PutSnapshotBlock"), changed, "round {round}");
        let applied = standby.apply();
        assert_eq!(site.emulator.gets(), changed, "round {round}");
        let source = site.snapshots();
        for set in [&VOLUMES[..2], &VOLUMES[2..]] {
            let starts: BTreeSet<String> = set
                .iter()
                .map(|volume| source[*volume].last().unwrap()["start_time"].to_string())
                .collect();
            assert_eq!(starts.len(), 1, "{starts:?}");
        }
        let copies = described(&other);
        let all: Vec<&str> = copies["vol-ffffffff"].iter().map(id).collect();
        let held = store.mount(&site.emulator);
        let replicas = other.mount(&all);
        for volume in VOLUMES {
            let (snapshot, frozen) = (&snapshots[volume], &frozen[volume]);
            let its: Vec<&str> = source[volume].iter().map(id).collect();
            assert_eq!(its.last(), Some(&&**snapshot));
            assert_eq!(its.len(), round.min(2), "{its:?}");
            frozen.assert_same(&site.at(&format!("{volume}.raw")));
            let kept = held_in(&format!("file://{}", store.files().display()), volume);
            assert_eq!(kept.len(), round.min(3), "{kept:?}");
            assert_eq!(kept.last(), Some(snapshot));
            frozen.assert_same(&held.disk(snapshot));
            let its: Vec<&Value> = copies["vol-ffffffff"]
                .iter()
                .filter(|one| one["tags"]["ebsfs:volume"] == volume)
                .collect();
            assert_eq!(its.len(), round.min(2), "{its:?}");
            let newest = its
                .iter()
                .find(|one| one["tags"]["ebsfs:source"] == **snapshot);
            frozen.assert_same(&replicas.disk(id(newest.unwrap())));
            // The gateway too fetches each changed block once.
            assert_eq!(snapshot_of(&applied, volume), *snapshot);
            assert_eq!(fetched(&applied, volume), frozen.changed, "round {round}");
            assert_eq!(standby.difference(volume, frozen), None, "round {round}");
        }
    }
    drop(writer);
    println!("{cycles} cycles");
}
