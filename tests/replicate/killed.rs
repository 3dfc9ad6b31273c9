//! Runs that are killed at random moments while all else fails in turn. EBSFS_KILLS=100 makes the first go on until it has killed so often.

use std::process::Stdio;
use std::time::Duration;

use super::frozen::Frozen;
use super::writers::Writer;
use super::*;
use crate::repository::Objects;
use crate::repository::proxy::{Fate, Proxy};
use crate::sync::kill_some;

/// Snapshots of others: as many as an account with several backup programs has of a few volumes.
const FOREIGN: usize = 200;

/// What fails while runs are killed.
#[derive(Clone, Copy, Debug)]
enum Failing {
    /// EBS and EC2: errors, closed connections, lost replies, throttles.
    Aws,
    /// The object store: errors, cut and lost answers.
    Store,
    /// The disk of the images is full.
    Disk,
}

/// How long a run has while something fails. One that has lost a reply of EC2 waits for two minutes before it calls again.
const FAILING_FOR: Duration = Duration::from_secs(10);
/// How long a run has when nothing fails.
const HEALTHY: Duration = Duration::from_secs(300);

const IN_TURN: [Failing; 3] = [Failing::Aws, Failing::Store, Failing::Disk];

/// A job of three volumes that keep writing, into images that are changed in place, on a disk of their own, and a store that can fail.
struct Killing {
    site: Site,
    disk: SmallDisk,
    store: Objects,
    proxy: Proxy,
    job: PathBuf,
    foreign: BTreeSet<String>,
}

/// A filesystem in memory that can be filled.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=192m", "ebsfs-test"])
            .arg(folder.path()));
        Self(folder)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let file = std::fs::File::create(self.at("filler")).unwrap();
        let bytes = vec![1; 1 << 20];
        let mut at = 0;
        let mut size = bytes.len();
        while size >= 4096 {
            match file.write_at(&bytes[..size], at) {
                Ok(written) => at += written as u64,
                Err(_) => size /= 2,
            }
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.at("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}

impl Killing {
    const VOLUMES: [&str; 3] = ["vol-0a", "vol-0b", "vol-0c"];

    fn new(seed: u64) -> Self {
        let site = Site::new(seed);
        let disk = SmallDisk::new();
        let store = Objects::s3();
        store.init();
        let proxy = Proxy::before(store.to()[1].trim_start_matches("http://"));
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
            to = "{1}"
            endpoint_url = "http://{2}"
            profile = "store"
            keep = {{ last = 2 }}
            "#,
            disk.0.path().display(),
            store.url(),
            proxy.address,
        ));
        Self {
            site,
            disk,
            store,
            proxy,
            job,
            foreign: BTreeSet::new(),
        }
    }

    /// Makes snapshots of others: of volumes of the job and of another one, with copies of the tags of `own`, some of them images.
    fn make_foreign(&mut self, own: &Value) {
        let tag = |key: &str| own["tags"][key].as_str().unwrap().replace('/', "%2F");
        let (cycle, itself) = (tag("ebsfs:cycle"), tag("ebsfs:self"));
        let random = &mut self.site.random;
        for number in 0..FOREIGN {
            let volume = VOLUMES[random.usize(0..VOLUMES.len())];
            let made = self.site.emulator.snapshot(volume);
            let mut tags = match random.u8(0..4) {
                // All tags of ours, as a backup program copies them.
                0 => format!("tag=ebsfs%3Acycle%3D{cycle}&tag=ebsfs%3Aself%3D{itself}"),
                // Only the cycle: a run that ended before it could set the id may have made it.
                1 => format!("tag=ebsfs%3Acycle%3D{cycle}"),
                // Its own id, and another job's cycle.
                2 => format!(
                    "tag=ebsfs%3Acycle%3Dother%2F2026-06-30T12%3A00%3A00Z&tag=ebsfs%3Aself%3D{made}"
                ),
                _ => "tag=Name%3Dbackup".to_owned(),
            };
            if random.bool() {
                tags += &format!("&image=ami-{number:08x}");
            }
            self.site.emulator.post(&format!("snapshots/{made}?{tags}"));
            self.foreign.insert(made);
        }
    }

    fn once(&self, timeout: &str) -> Command {
        let mut command = self.site.once(&self.job, "state");
        command.args(["--timeout", timeout]).env(
            "AWS_SHARED_CREDENTIALS_FILE",
            self.store.credentials(&self.site.emulator),
        );
        command
    }

    fn set(&self, failing: Failing, seed: u64) {
        match failing {
            Failing::Aws => self.site.emulator.set(
                "error_5xx=0.1&reset=0.1&lose_reply=0.3&ec2_throttle=0.2&stall=0.02&truncate=0.05",
            ),
            Failing::Store => {
                let mut random = fastrand::Rng::with_seed(seed);
                self.proxy.set(move |_| match random.u8(0..10) {
                    0 => Fate::Say(503, "SlowDown"),
                    1 => Fate::Say(500, "InternalError"),
                    2 => Fate::Drop,
                    3 => Fate::Cut,
                    _ => Fate::Pass,
                });
            }
            Failing::Disk => self.disk.fill(),
        }
    }

    fn heal(&self, failing: Failing) {
        match failing {
            Failing::Aws => self
                .site
                .emulator
                .set("error_5xx=0&reset=0&lose_reply=0&ec2_throttle=0&stall=0&truncate=0"),
            Failing::Store => self.proxy.set(|_| Fate::Pass),
            Failing::Disk => self.disk.empty(),
        }
    }

    /// The recovery points that the state names, by volume and target.
    fn points(&self) -> Vec<(String, String, String)> {
        let state = std::fs::read(self.site.at("state/job-web.json")).unwrap();
        let state: Value = serde_json::from_slice(&state).unwrap();
        let mut points = Vec::new();
        for volume in Self::VOLUMES {
            for (name, target) in state["volumes"][volume]["targets"].as_object().unwrap() {
                let held = target["recovery_point"]["snapshot"].as_str().unwrap();
                points.push((volume.to_owned(), name.clone(), held.to_owned()));
            }
        }
        points
    }

    /// Asserts what holds at every moment: no snapshot of others is deleted, no base is lost, and the store has a whole recovery point.
    fn assert_nothing_lost(&self) {
        let points = self.points();
        let source = self.site.snapshots();
        let listed: BTreeSet<&str> = source.values().flatten().map(id).collect();
        let missing: Vec<&String> = self
            .foreign
            .iter()
            .filter(|one| !listed.contains(&***one))
            .collect();
        assert!(missing.is_empty(), "deleted and not ours: {missing:?}");
        let files = format!("file://{}", self.store.files().display());
        for (volume, name, held) in points {
            assert!(
                listed.contains(&*held),
                "{volume}: {name} holds {held}, which is lost"
            );
            if name.starts_with("s3:") {
                // Rclone removes an object for a moment when it is put again, as by a slow request that was repeated. What is lost stays lost.
                wait_for(&format!("{volume}: {held} in the store"), || {
                    held_in(&files, &volume).contains(&held)
                });
            }
        }
    }

    /// Asserts that each target holds its recovery point, byte for byte.
    fn assert_bytes(&self) {
        let points = self.points();
        assert_eq!(points.len(), 2 * Self::VOLUMES.len(), "{points:?}");
        let mount = self.store.mount(&self.site.emulator);
        for (_, name, held) in points {
            let frozen = Frozen::read(&self.site.emulator, &held);
            match name.starts_with("s3:") {
                true => frozen.assert_same(&mount.disk(&held)),
                false => frozen.assert_same(Path::new(&name)),
            }
        }
    }
}

#[test]
fn a_cycle_that_is_killed_at_any_moment_while_all_else_fails_in_turn_loses_nothing() {
    let enough = std::env::var("EBSFS_KILLS").map_or(5, |kills| kills.parse().unwrap());
    let seed = fastrand::u64(..);
    let mut killing = Killing::new(seed);
    killing.site.write_to(&Killing::VOLUMES);
    run(&mut killing.once("90s"));
    let own = killing.site.snapshots()["vol-0a"][0].clone();
    killing.make_foreign(&own);
    killing
        .site
        .emulator
        .set("latency_ms=5&shown_ms=100&pending_ms=150");
    let writer = Writer::start(&killing.site.emulator, &Killing::VOLUMES, seed);
    let (mut kills, mut cycles) = (0, 0);
    let mut failed = BTreeMap::new();
    // Of a small number each run has some; of a large one a run must still come to its end.
    let most = (enough / 8).clamp(1, 6);
    while kills < enough || cycles < IN_TURN.len() {
        let failing = IN_TURN[cycles % IN_TURN.len()];
        killing.set(failing, seed.wrapping_add(cycles as u64));
        let look = || killing.assert_nothing_lost();
        let (killed, code, said) =
            kill_some(most + 1, FAILING_FOR, || killing.once("2s"), 900, look);
        kills += killed;
        killing.heal(failing);
        killing.assert_nothing_lost();
        // A disk that is full is no wrong byte, and no success.
        assert!(
            !matches!(failing, Failing::Disk) || code != Some(0),
            "{said}"
        );
        *failed.entry(format!("{failing:?} {code:?}")).or_insert(0) += 1;
        let (killed, code, said) = kill_some(most, HEALTHY, || killing.once("90s"), 900, look);
        assert_eq!(code, Some(0), "{failing:?}: {said}");
        kills += killed;
        cycles += 1;
        killing.assert_nothing_lost();
        killing.assert_bytes();
    }
    drop(writer);
    println!("{kills} kills, {cycles} cycles, runs by what failed and exit code: {failed:?}");
    // Deltas all along: the targets never had to be filled again.
    killing
        .site
        .emulator
        .set("latency_ms=0&shown_ms=0&pending_ms=0");
    run(&mut killing.once("90s"));
    killing.site.write_to(&Killing::VOLUMES);
    killing.site.emulator.reset();
    run(&mut killing.once("90s"));
    // What is staged is fetched by itself.
    assert!(
        killing.site.emulator.gets() <= 18,
        "{}",
        killing.site.emulator.gets()
    );
    killing.assert_bytes();
    // What kills have left is deleted by the next cycle, and nothing else.
    killing.assert_nothing_lost();
    let source = killing.site.snapshots();
    for volume in Killing::VOLUMES {
        let own = source[volume]
            .iter()
            .filter(|one| !killing.foreign.contains(id(one)));
        let own: Vec<&Value> = own.collect();
        assert_eq!(own.len(), 1, "{volume}: {own:?}");
    }
}

#[test]
fn a_delta_that_aws_does_not_deliver_whole_changes_no_image() {
    let mut killing = Killing::new(fastrand::u64(..));
    killing.site.write_to(&Killing::VOLUMES);
    run(&mut killing.once("90s"));
    // The first copy makes the images, the second one changes them.
    killing.site.write_to(&Killing::VOLUMES);
    run(&mut killing.once("90s"));
    let before = killing.points();
    for id in Killing::VOLUMES {
        let disk = writable(&killing.site.emulator.volume(id));
        for index in 100..140 {
            disk.write_all_at(&content("late", index), index * BLOCK)
                .unwrap();
        }
    }
    killing.site.emulator.reset();
    killing.site.emulator.set("get_rps=30&latency_ms=5");
    let mut command = killing.once("2s");
    let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
    let running = command.spawn().unwrap();
    wait_for("a part of the delta", || killing.site.emulator.gets() >= 20);
    // From now on AWS does not answer.
    killing.site.emulator.set("silent=true");
    let output = running.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert_eq!(killing.points(), before);
    // Each target is what it was: a recovery point that needs nothing of AWS.
    killing.assert_bytes();
    killing
        .site
        .emulator
        .set("silent=false&get_rps=100000&latency_ms=0");
    run(&mut killing.once("90s"));
    assert_ne!(killing.points(), before);
    killing.assert_bytes();
}
