//! Repairs killed at any moment: each snapshot is as it was or replaced, and a repair that comes to its end restores all of them.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use super::*;
use crate::repository::care::{manifest_at, three};
use crate::repository::healing::{assert_whole, cut, flip, shared_pack, stored_runs};

/// A repository of three snapshots with three kinds of damage: the pack that all of them share is cut short, the segment of the
/// second one is missing, and the manifest of the third one cannot be read.
struct Damaged {
    objects: Objects,
    chain: Chain,
    /// Its files before any repair.
    kept: TempDir,
    /// The names of the damaged objects.
    wrong: BTreeSet<String>,
}

impl Damaged {
    fn new(mut objects: Objects) -> Self {
        let chain = three(&objects);
        let (files, manifests) = (objects.files(), objects.objects("snapshots"));
        let pack = shared_pack(&objects);
        let address = objects.server.is_some().then(|| objects.stop());
        cut(&pack, fs::metadata(&pack).unwrap().len() / 2);
        let name = &manifest_at(&manifests[1])["segments"][0]["name"];
        let name = name.as_str().unwrap();
        let segment = files.join("segments").join(&name[..2]).join(name);
        fs::remove_file(&segment).unwrap();
        flip(&manifests[2], 40);
        let wrong = [&pack, &segment, &manifests[2]];
        let wrong = wrong.map(|path| text(path.strip_prefix(&files).unwrap()).to_owned());
        let kept = tempfile::tempdir().unwrap();
        sh(&format!("cp -a {}/. {}", text(&files), text(kept.path())));
        if let Some(address) = address {
            objects.serve(&address);
        }
        Self {
            objects,
            chain,
            kept,
            wrong: wrong.into(),
        }
    }

    fn restore(&mut self) {
        let (files, kept) = (self.objects.files(), text(self.kept.path()));
        // A server remembers what it has served.
        let address = self.objects.server.is_some().then(|| self.objects.stop());
        let files = text(&files);
        sh(&format!(
            "rm -rf {files} && mkdir {files} && cp -a {kept}/. {files}"
        ));
        if let Some(address) = address {
            self.objects.serve(&address);
        }
    }

    /// A repair with the help of one of the snapshots, or of none.
    fn repair(&self, from: Option<usize>) -> Command {
        let mut args = vec!["check", "--repair"];
        args.extend(fastrand::bool().then_some("--read-data"));
        let url = self.chain.emulator.url();
        if let Some(number) = from {
            args.extend(["--from", &self.chain.snapshots[number]]);
            if self.objects.server.is_some() {
                args.extend(["--from-profile", "default", "--from-endpoint-url", &url]);
            }
        }
        self.objects.look(&self.chain.emulator, &args)
    }

    /// A killed repair has added no damage, and each snapshot has the manifest that it had, or one that leads to nothing wrong.
    fn look(&self) {
        settle();
        let check = ["check", "--read-data", "--json"];
        let output = self.objects.look(&self.chain.emulator, &check).output();
        let output = output.unwrap();
        let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut suffering = BTreeSet::new();
        for damage in checked["damages"].as_array().unwrap() {
            let object = damage["object"].as_str().unwrap();
            assert!(self.wrong.contains(object), "{damage}");
            for name in damage["snapshots"].as_array().unwrap() {
                suffering.insert(name.as_str().unwrap().to_owned());
            }
        }
        let manifests = self.objects.objects("snapshots");
        assert_eq!(manifests.len(), 3);
        for (number, path) in manifests.iter().enumerate() {
            let name = path.file_name().unwrap().to_str().unwrap();
            let before = self.kept.path().join("snapshots").join(name);
            let is_replaced = fs::read(path).unwrap() != fs::read(&before).unwrap();
            // The damage of those that have their own manifest was found, and is the damage that they had.
            if !is_replaced {
                continue;
            }
            assert!(!suffering.contains(name), "{checked}");
            // The third one cannot be kept as a tombstone: not even its run can be read.
            if number < 2 {
                let run = manifest_at(&before)["run"].as_str().unwrap().to_owned();
                let removed = self.objects.files().join("removed");
                let tombstone = removed.join(format!("{name}.{run}"));
                assert_eq!(fs::read(tombstone).unwrap(), fs::read(&before).unwrap());
            }
            self.compare(number, &manifest_at(path));
        }
    }

    /// Compares a snapshot with what it must hold. Only blocks that the new manifest marks may be zero.
    fn compare(&self, number: usize, new: &Value) {
        let out = tempfile::tempdir().unwrap();
        let image = out.path().join("image.raw");
        let id = &self.chain.snapshots[number];
        let mark = [text(&image), "--on-damage", "mark"];
        let mut command = self.objects.take(&self.chain.emulator, id, &mark);
        let (code, said) = finishes(&mut command);
        assert!(matches!(code, 0 | 12), "{code}: {said}");
        let whole = self.chain.image(number);
        let files = [&image, &whole].map(|path| open(path));
        let may_be_zero = |block: u64| {
            let runs = new["damaged"].as_array();
            runs.into_iter().flatten().any(|run| {
                let [first, end] = [0, 1].map(|at| run[at].as_u64().unwrap());
                (first..end).contains(&block)
            })
        };
        let stored = files.iter().flat_map(stored_runs);
        let blocks = stored.flat_map(|run| run.start / BLOCK..run.end.div_ceil(BLOCK));
        for block in blocks.collect::<BTreeSet<u64>>() {
            let [mine, its] = [0, 1].map(|at: usize| {
                let mut bytes = vec![0; BLOCK as usize];
                let offset = block * BLOCK;
                files[at].read_exact_at(&mut bytes, offset).unwrap();
                bytes
            });
            let is_zero = || mine.iter().all(|byte| *byte == 0);
            assert!(
                mine == its || is_zero() && may_be_zero(block),
                "block {block} of {id} is wrong"
            );
        }
    }

    /// Repairs that are not killed: what no source has is marked, and with each snapshot as a source everything is whole.
    fn is_restored(&self) {
        let emulator = &self.chain.emulator;
        emulator.set("latency_ms=0");
        if fastrand::bool() {
            let (code, said) = finishes(&mut self.repair(None));
            assert!(matches!(code, 0 | 8 | 12), "{code}: {said}");
            self.look();
        }
        for number in 0..3 {
            let (code, said) = finishes(&mut self.repair(Some(number)));
            let is_last = number == 2;
            assert!(code == 0 || !is_last && matches!(code, 8 | 12), "{said}");
        }
        let checked = self.objects.look_json(emulator, &["check", "--read-data"]);
        assert_eq!(checked["damages"], Value::Array(Vec::new()));
        assert_eq!(checked["snapshots"], 3);
        for manifest in self.objects.objects("snapshots") {
            assert!(manifest_at(&manifest).get("damaged").is_none());
        }
        assert_whole(&self.objects, &self.chain, 0..3);
    }
}

fn a_repair_is_killed(objects: Objects, most_ms: u64) {
    let mut damaged = Damaged::new(objects);
    let (mut kills, mut repairs) = (0, 0);
    while kills < enough() {
        if repairs > 0 {
            damaged.restore();
        }
        damaged.chain.emulator.set("latency_ms=20");
        let command = || damaged.repair([None, Some(0), Some(1), Some(2)][fastrand::usize(..4)]);
        let (killed, code, said) = kill_until_ended(command, most_ms, || damaged.look());
        assert!(matches!(code, Some(0 | 8 | 12)), "{code:?}: {said}");
        damaged.look();
        kills += killed;
        repairs += 1;
        damaged.is_restored();
        println!(
            "{}: {kills} kills of {repairs} repairs",
            damaged.objects.url()
        );
    }
}

#[test]
fn a_killed_repair_of_a_folder_leaves_each_snapshot_unchanged_or_replaced() {
    a_repair_is_killed(Objects::folder(), 700);
}

#[test]
fn a_killed_repair_of_a_store_leaves_each_snapshot_unchanged_or_replaced() {
    a_repair_is_killed(Objects::s3(), 1000);
}
