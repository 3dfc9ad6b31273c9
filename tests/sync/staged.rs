//! Deltas that are kept whole on local disk before they are applied.

use super::*;

/// A chain whose first snapshot a device holds.
struct Replica {
    chain: Chain,
    folder: tempfile::TempDir,
    device: Loop,
}

impl Replica {
    fn new() -> Self {
        let chain = Chain::new();
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        fs::File::create(&disk).unwrap().set_len(2 << 30).unwrap();
        let device = Loop::over(&disk);
        let args = [
            chain.snapshots[0].as_str(),
            &device.0,
            "--overwrite",
            &device.0,
        ];
        run(&mut sync(&chain.emulator, &args));
        Self {
            chain,
            folder,
            device,
        }
    }

    fn stage(&self) -> PathBuf {
        self.folder.path().join("stage")
    }

    fn nightly(&self, n: usize) -> Command {
        let stage = self.stage();
        let id = self.chain.snapshots[n].as_str();
        let args = [
            id,
            &self.device.0,
            "--base",
            "auto",
            "--stage",
            text(&stage),
        ];
        sync(&self.chain.emulator, &args)
    }

    fn assert_holds(&self, n: usize) {
        let image = self.chain.image(n);
        let len = fs::metadata(&image).unwrap().len();
        run(Command::new("cmp")
            .args(["-n", &len.to_string()])
            .args([Path::new(&self.device.0), &image]));
        let id = &self.chain.snapshots[n];
        assert_eq!(
            status(&self.chain.emulator, &self.device.0),
            format!("holds {id}\n")
        );
    }

    fn is_staged(&self) -> bool {
        let Ok(entries) = fs::read_dir(self.stage()) else {
            return false;
        };
        let mut names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.any(|name| name.ends_with(".ebsfs-stage.json"))
    }
}

#[test]
fn a_staged_delta_is_applied_and_leaves_nothing_in_the_stage() {
    let replica = Replica::new();
    for n in [1, 4, 2] {
        run(&mut replica.nightly(n));
        replica.assert_holds(n);
        assert_eq!(fs::read_dir(replica.stage()).unwrap().count(), 0);
    }
}

#[test]
fn once_a_delta_is_staged_no_call_to_aws_is_needed_however_often_the_run_is_killed() {
    let replica = Replica::new();
    // EBSFS_KILLS=20 for as many moments.
    let moments = std::env::var("EBSFS_KILLS").map_or(3, |kills| kills.parse().unwrap());
    for moment in 0..moments {
        let (from, to) = if moment % 2 == 0 { (0, 4) } else { (4, 0) };
        let mut child = replica.nightly(to).stderr(Stdio::null()).spawn().unwrap();
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while !replica.is_staged() {
            assert!(std::time::Instant::now() < end, "it is never staged");
            assert!(
                child.try_wait().unwrap().is_none(),
                "it was to be staged first"
            );
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..30_000)));
        let _ = child.kill();
        child.wait().unwrap();
        let said = status(&replica.chain.emulator, &replica.device.0);
        let holds = format!("holds {}\n", replica.chain.snapshots[from]);
        println!("moment {moment}: {said}");
        // Every call is refused from now on.
        replica.chain.emulator.set("error_5xx=1");
        run(&mut replica.nightly(to));
        replica.chain.emulator.set("error_5xx=0");
        replica.assert_holds(to);
        assert!(said != holds || !replica.is_staged());
    }
}

#[test]
fn a_stage_that_was_changed_is_not_applied() {
    let replica = Replica::new();
    replica.chain.emulator.set("latency_ms=2000");
    let mut child = replica.nightly(4).stderr(Stdio::null()).spawn().unwrap();
    // Named on the device only after all is staged: killed before that.
    wait_for("a stage", || {
        fs::read_dir(replica.stage()).is_ok_and(|mut entries| entries.next().is_some())
    });
    std::thread::sleep(Duration::from_millis(2500));
    child.kill().unwrap();
    child.wait().unwrap();
    replica.chain.emulator.set("latency_ms=0");
    for entry in fs::read_dir(replica.stage()).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().ends_with(".ebsfs-stage") {
            let file = writable(&path);
            for index in 0..200 {
                let at = index * BLOCK + 3;
                std::os::unix::fs::FileExt::write_all_at(&file, b"else", at).unwrap();
            }
        }
    }
    // What is not as it was staged is fetched again.
    run(&mut replica.nightly(4));
    replica.assert_holds(4);
}
