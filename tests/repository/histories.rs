//! Random histories of a repository: syncs, some of them killed, removals, prunes of any age beside them, undeletes and checks. A model
//! knows which snapshots there must be, and what they hold. `EBSFS_HISTORIES` makes so many (8); `EBSFS_SEED` repeats one.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::*;

/// Blocks of a volume.
const BLOCKS: u64 = 6;
/// Operations of a history.
const STEPS: usize = 14;

struct History<'a> {
    emulator: &'a Emulator,
    objects: Objects,
    rng: fastrand::Rng,
    /// What each snapshot must hold.
    there: BTreeMap<String, Vec<u8>>,
    removed: BTreeMap<String, Vec<u8>>,
    /// What killed runs may have published.
    pending: Vec<Vec<u8>>,
}

impl History<'_> {
    fn image(&self, volume: usize) -> PathBuf {
        self.objects.folder.path().join(format!("volume-{volume}"))
    }

    /// Writes to a volume, and the sync of it.
    fn next_sync(&mut self) -> (Command, Vec<u8>) {
        let volume = self.rng.usize(0..2);
        let image = self.image(volume);
        let file = writable(&image);
        for _ in 0..self.rng.usize(1..4) {
            let bytes: Vec<u8> = (0..BLOCK).map(|_| self.rng.u8(..4)).collect();
            file.write_all_at(&bytes, self.rng.u64(0..BLOCKS) * BLOCK)
                .unwrap();
        }
        drop(file);
        let name = format!("volume-{volume}");
        let mut args = vec![text(&image), "--volume", &name];
        args.extend(self.rng.bool().then_some("--dedup"));
        args.extend(self.rng.bool().then_some("--verify"));
        let command = self.objects.bring(self.emulator, &args);
        (command, fs::read(&image).unwrap())
    }

    fn published(&mut self, stdout: &[u8], bytes: Vec<u8>) {
        let said = String::from_utf8_lossy(stdout);
        let (_, id) = said
            .trim()
            .rsplit_once('#')
            .unwrap_or_else(|| panic!("{said:?}"));
        self.there.insert(id.to_owned(), bytes);
    }

    fn age(&mut self) {
        if self.rng.bool() {
            for folder in ["garbage", "removed"] {
                for object in self.objects.objects(folder) {
                    sh(&format!("touch -d '8 days ago' {}", text(&object)));
                }
            }
        }
    }

    fn prune(&mut self) -> Command {
        let keep = ["--keep-last", "3"];
        let grace = ["--grace", "0s"];
        let mut args = vec!["prune", "--json"];
        args.extend(self.rng.bool().then_some(keep).into_iter().flatten());
        args.extend(
            (self.rng.u8(..4) == 0)
                .then_some(grace)
                .into_iter()
                .flatten(),
        );
        self.objects.look(self.emulator, &args)
    }

    fn pruned(&mut self, output: &std::process::Output) {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 10 | 11)), "{code:?} {said}");
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        for name in shown["removed"].as_array().unwrap() {
            let id = name.as_str().unwrap().rsplit('.').next().unwrap();
            let bytes = self.there.remove(id).unwrap();
            self.removed.insert(id.to_owned(), bytes);
        }
    }

    fn any(&mut self, removed: bool) -> Option<String> {
        let ids = if removed { &self.removed } else { &self.there };
        let ids: Vec<&String> = ids.keys().collect();
        (!ids.is_empty()).then(|| ids[self.rng.usize(0..ids.len())].clone())
    }

    fn step(&mut self) {
        let step = self.rng.u8(0..12);
        match step {
            0..=3 => {
                let (mut command, bytes) = self.next_sync();
                let said = run(&mut command);
                self.published(said.as_bytes(), bytes);
            }
            4 | 5 => {
                let (mut command, bytes) = self.next_sync();
                let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
                let mut child = quiet.spawn().unwrap();
                std::thread::sleep(Duration::from_millis(self.rng.u64(1..90)));
                child.kill().unwrap();
                child.wait().unwrap();
                self.pending.push(bytes);
            }
            6 => {
                if let Some(id) = self.any(false) {
                    self.objects.remove(self.emulator, &id);
                    let bytes = self.there.remove(&id).unwrap();
                    self.removed.insert(id, bytes);
                }
            }
            7 | 8 => {
                self.age();
                let output = self.prune().output().unwrap();
                self.pruned(&output);
            }
            9 => {
                if let Some(id) = self.any(true) {
                    let one = format!("{}#{id}", self.objects.url());
                    let mut command = self
                        .objects
                        .ebsfs(self.emulator, &["repository", "undelete", &one]);
                    let (code, said) = ends(command.args(self.objects.from()));
                    assert!(matches!(code, 0 | 2 | 3), "{code} {said}");
                    let bytes = self.removed.remove(&id).unwrap();
                    if code == 0 {
                        self.there.insert(id, bytes);
                    }
                }
            }
            _ => {
                // A sync and a prune at once.
                let (mut sync, bytes) = self.next_sync();
                self.age();
                let sync = sync
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                std::thread::sleep(Duration::from_millis(self.rng.u64(0..40)));
                let output = self.prune().output().unwrap();
                let synced = sync.wait_with_output().unwrap();
                let said = String::from_utf8_lossy(&synced.stderr).into_owned();
                assert!(synced.status.success(), "{said}");
                self.published(&synced.stdout, bytes);
                self.pruned(&output);
            }
        }
        self.compare();
    }

    /// The repository lists what the model knows, and a run that was killed may have published its own.
    fn compare(&mut self) {
        let listed = self.objects.look_json(self.emulator, &["ls"]);
        let listed = listed.as_array().unwrap().iter();
        let listed: Vec<String> = listed
            .map(|one| one["snapshot"].as_str().unwrap().to_owned())
            .collect();
        for id in self.there.keys() {
            assert!(listed.contains(id), "{id} is gone");
        }
        for id in &listed {
            if !self.there.contains_key(id) {
                let bytes = self.restore(id);
                assert!(self.pending.contains(&bytes), "{id} is of no run");
                self.there.insert(id.clone(), bytes);
            }
        }
    }

    fn restore(&self, id: &str) -> Vec<u8> {
        let image = self.objects.folder.path().join("restored");
        run(&mut self.objects.take(
            self.emulator,
            id,
            &[text(&image), "--overwrite", text(&image)],
        ));
        fs::read(&image).unwrap()
    }

    fn end(&self) {
        let checked = self
            .objects
            .look_json(self.emulator, &["check", "--read-data"]);
        assert_eq!(checked["snapshots"], self.there.len());
        for (id, bytes) in &self.there {
            assert!(self.restore(id) == *bytes, "{id} holds other bytes");
        }
    }
}

/// Half of the histories: two tests run side by side.
fn half_of_the_histories() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let emulator = Emulator::start();
    for _ in 0..number("EBSFS_HISTORIES").unwrap_or(8u64).div_ceil(2) {
        let seed = number("EBSFS_SEED").unwrap_or_else(|| fastrand::u64(..));
        println!("EBSFS_SEED={seed}");
        let mut history = History {
            emulator: &emulator,
            objects: Objects::folder(),
            rng: fastrand::Rng::with_seed(seed),
            there: BTreeMap::new(),
            removed: BTreeMap::new(),
            pending: Vec::new(),
        };
        history.objects.init();
        for volume in 0..2 {
            fs::write(history.image(volume), vec![7; (BLOCKS * BLOCK) as usize]).unwrap();
        }
        for _ in 0..STEPS {
            history.step();
        }
        history.end();
    }
}

#[test]
fn whatever_runs_side_by_side_every_listed_snapshot_holds_its_bytes() {
    half_of_the_histories();
}

#[test]
fn whatever_is_killed_or_removed_every_other_snapshot_holds_its_bytes() {
    half_of_the_histories();
}
