//! Foreign writes at random places and moments. EBSFS_FOREIGN_WRITES=1000 makes so many; EBSFS_SEED repeats a run.

use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use super::*;

/// When something else writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// Between two runs.
    Between,
    /// After a run was killed, before the next one.
    AfterKill,
    /// During a run that verifies.
    During,
}

/// A target, and how it is named on the command line.
struct Victim {
    name: &'static str,
    path: String,
    args: Vec<String>,
    /// The file that holds its bytes.
    image: PathBuf,
    device: Option<Loop>,
}

impl Victim {
    /// Whether every byte is the same. A GiB is read in milliseconds where most of it is a hole.
    fn is_same(&self, volume: &Path) -> bool {
        if self.device.is_some() {
            run(Command::new("blockdev").args(["--flushbufs", &self.path]));
        }
        is_same(&self.image, volume)
    }
}

fn victims(folder: &Path) -> Vec<Victim> {
    let image = |name: &'static str, args: &[&str]| Victim {
        name,
        path: text(&folder.join(name)).to_owned(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        image: folder.join(name),
        device: None,
    };
    let disk = folder.join("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 30).unwrap();
    let device = Loop::over(&disk);
    let on_device = Victim {
        name: "device",
        path: device.0.clone(),
        args: Vec::new(),
        image: disk,
        device: Some(device),
    };
    let in_place = image("in-place.raw", &["--in-place"]);
    fs::File::create(&in_place.path).unwrap();
    vec![image("image.raw", &[]), in_place, on_device]
}

/// Writes some bytes anywhere, and may put the time of the last write back.
fn write(path: &str, size: u64, rng: &mut fastrand::Rng) -> (u64, usize) {
    let path = Path::new(path);
    let (offset, len) = (rng.u64(0..size - 5000), rng.usize(1..5000));
    let bytes: Vec<u8> = (0..len).map(|_| rng.u8(1..)).collect();
    let file = writable(path);
    let before = file.metadata().unwrap();
    file.write_all_at(&bytes, offset).unwrap();
    if rng.bool() {
        file.set_modified(before.modified().unwrap()).unwrap();
    }
    if rng.bool() {
        file.sync_all().unwrap();
    }
    (offset, len)
}

#[test]
fn a_foreign_write_is_refused_or_the_bytes_are_right() {
    let count = std::env::var("EBSFS_FOREIGN_WRITES").map_or(6, |count| count.parse().unwrap());
    let seed = std::env::var("EBSFS_SEED").map_or_else(
        |_| {
            SystemTime::UNIX_EPOCH
                .elapsed()
                .unwrap()
                .subsec_nanos()
                .into()
        },
        |seed| seed.parse().unwrap(),
    );
    println!("EBSFS_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, (0..40).map(|n| n * 50));
    let first = emulator.snapshot("vol-0a");
    let copies = tempfile::tempdir().unwrap();
    let old = copies.path().join("old");
    run(Command::new("cp").args(["--sparse=always", text(&volume), text(&old)]));
    let file = writable(&volume);
    for n in 0..30 {
        file.write_all_at(&content("other", n), n * 66 * BLOCK)
            .unwrap();
    }
    drop(file);
    let second = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let victims = victims(folder.path());
    let mut counts = std::collections::BTreeMap::<_, u64>::new();
    for number in 0..count {
        let victim = rng.choice(&victims).unwrap();
        let moment = rng
            .choice([Moment::Between, Moment::AfterKill, Moment::During])
            .unwrap();
        let nightly = |more: &[&str]| {
            let mut command = sync(&emulator, &[&second, &victim.path, "--base", "auto"]);
            command.args(&victim.args).args(more);
            command
        };
        // Whatever was left: a full copy of the first.
        emulator.set("latency_ms=0");
        let mut begin = sync(
            &emulator,
            &[&first, &victim.path, "--overwrite", &victim.path],
        );
        run(begin.args(&victim.args).arg("--restart"));
        assert!(victim.is_same(&old), "a full copy of the first");
        let wrote = |rng: &mut fastrand::Rng| write(&victim.path, 1 << 30, rng);
        let (code, place) = match moment {
            Moment::Between => {
                let place = wrote(&mut rng);
                (nightly(&[]).output().unwrap().status.code(), place)
            }
            Moment::AfterKill => {
                emulator.set("latency_ms=10");
                let mut command = nightly(&["--max-in-flight", "2"]);
                let mut child = command.stderr(Stdio::null()).spawn().unwrap();
                std::thread::sleep(Duration::from_millis(rng.u64(0..400)));
                child.kill().unwrap();
                child.wait().unwrap();
                emulator.set("latency_ms=0");
                let place = wrote(&mut rng);
                (nightly(&[]).output().unwrap().status.code(), place)
            }
            Moment::During => {
                emulator.set("latency_ms=10");
                let mut command = nightly(&["--max-in-flight", "2", "--verify"]);
                let mut child = command
                    .stderr(Stdio::null())
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap();
                std::thread::sleep(Duration::from_millis(rng.u64(0..300)));
                let place = wrote(&mut rng);
                let code = child.wait().unwrap().code();
                // Written after it was verified: the next run's comparison finds it.
                let later = nightly(&["--verify"]).output().unwrap().status.code();
                (if code == Some(0) { later } else { code }, place)
            }
        };
        let is_right = victim.is_same(&volume);
        let what = format!(
            "EBSFS_SEED={seed} number {number}: {moment:?} {} at {place:?}",
            victim.name
        );
        match code {
            Some(0) => assert!(is_right, "{what}: exit 0 with other bytes"),
            Some(8 | 11) => {}
            code => panic!("{what}: exit {code:?}"),
        }
        *counts
            .entry((victim.name, moment, code.unwrap()))
            .or_default() += 1;
    }
    for ((name, moment, code), count) in counts {
        println!("{name:14} {moment:?}: exit {code}: {count}");
    }
}
