//! AWS is lost for good while a delta is listed, fetched or applied. With a stage each target stays a recovery point, or becomes the next
//! one without AWS, and `ebsfs status` says which. EBSFS_KILLS=24 for as many moments.

use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::frozen::Frozen;
use super::status::{status, target};
use super::*;
use crate::repository::proxy::{Fate, Proxy};
use crate::sync::Loop;

const VOLUME: &str = "vol-0a";
/// Blocks that each delta changes.
const CHANGED: u64 = 12;
/// Both targets fetch their own.
const FETCHED: u64 = 2 * CHANGED;

/// When AWS is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The list of changes is asked for.
    Listing,
    /// So many blocks have been asked for, those of both targets counted.
    Block(u64),
    /// The delta of a target is staged. The run goes on.
    Staged,
    /// As `Staged`, and the run is killed so much later.
    Applying(Duration),
}

impl Moment {
    /// The first are those at the edges, the others are random.
    fn of(number: usize, random: &mut fastrand::Rng) -> Self {
        let edges = [
            Self::Listing,
            Self::Block(1),
            Self::Block(CHANGED + 1),
            Self::Block(FETCHED),
            Self::Staged,
            Self::Applying(Duration::ZERO),
        ];
        if let Some(edge) = edges.get(number) {
            return *edge;
        }
        match number % 3 {
            0 => Self::Block(random.u64(1..=FETCHED)),
            1 => Self::Staged,
            _ => Self::Applying(Duration::from_micros(random.u64(0..60_000))),
        }
    }
}

/// What a target holds, byte for byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Old,
    New,
    Neither,
}

/// A target as it is and as `ebsfs status` describes it.
#[derive(Debug)]
struct Look {
    holds: Holds,
    is_usable: bool,
}

/// Whether each target of the only volume is usable, by `ebsfs status`.
fn are_usable(state: &Path) -> Vec<bool> {
    let mut command = Command::new(EBSFS);
    let command = command.args(["status", "--json", "--state-dir"]).arg(state);
    let shown: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let targets = shown["jobs"][0]["volumes"][0]["targets"].as_array();
    let targets = targets.unwrap().iter();
    targets
        .map(|one| one["is_usable"].as_bool().unwrap())
        .collect()
}

/// A job with a device and an image that is changed in place, both with a stage.
struct Replica {
    site: Site,
    disk: PathBuf,
    device: Loop,
    job: PathBuf,
}

impl Replica {
    fn new(seed: u64) -> Self {
        let site = Site::new(seed);
        let disk = site.at("disk");
        let made = std::fs::File::create(&disk).unwrap();
        made.set_len(BLOCKS * BLOCK).unwrap();
        let device = Loop::over(&disk);
        let folder = site.folder.path().display();
        let text = format!(
            "name = 'web'\nlook_again = '300ms'\nvolumes = ['{VOLUME}']\nstage = '{folder}/stage'\noverwrite = ['{0}']\n\
             [[target]]\nto = '{folder}/{{volume}}.raw'\nin_place = true\n\
             [[target]]\nto = '{0}'\nvolumes = ['{VOLUME}']",
            device.0
        );
        let job = site.job(&text);
        Self {
            site,
            disk,
            device,
            job,
        }
    }

    fn image(&self) -> PathBuf {
        self.site.at(&format!("{VOLUME}.raw"))
    }

    fn once(&self) -> Command {
        let mut command = self.site.once(&self.job, "state");
        command.args(["--timeout", "1s"]);
        command
    }

    /// Changes blocks of the volume.
    fn change(&mut self) {
        let disk = writable(&self.site.emulator.volume(VOLUME));
        let mut blocks = BTreeSet::new();
        while blocks.len() < CHANGED as usize {
            blocks.insert(self.site.random.u64(0..BLOCKS));
        }
        for index in blocks {
            let bytes = content(&self.site.random.u64(..).to_string(), index);
            disk.write_all_at(&bytes, index * BLOCK).unwrap();
        }
    }

    /// The complete stages.
    fn staged(&self) -> usize {
        let Ok(entries) = std::fs::read_dir(self.site.at("stage")) else {
            return 0;
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.ends_with(".ebsfs-stage.json"))
            .count()
    }

    /// A cycle during which AWS is lost.
    ///
    /// Returns whether each target was usable when AWS was lost, and how the run ended.
    fn run_until_lost(&mut self, moment: Moment) -> (Vec<bool>, Output) {
        let proxy = Proxy::before(&self.site.emulator.address().to_string());
        let emulator = self.site.emulator.id().to_string();
        let usable = Arc::new(Mutex::new(Vec::new()));
        let (seen, state) = (Arc::clone(&usable), self.site.at("state"));
        let mut asked = 0;
        proxy.set(move |line| {
            asked += u64::from(line.contains("/blocks/"));
            let is_now = match moment {
                Moment::Listing => line.contains("/changedblocks"),
                Moment::Block(number) => asked == number && line.contains("/blocks/"),
                Moment::Staged | Moment::Applying(_) => false,
            };
            if is_now {
                let mut seen = seen.lock().unwrap();
                // Requests are sent again.
                if seen.is_empty() {
                    seen.extend(are_usable(&state));
                }
                let _ = Command::new("kill").args(["-KILL", &emulator]).status();
                return Fate::Drop;
            }
            Fate::Pass
        });
        let mut command = self.once();
        let command = command.env("AWS_ENDPOINT_URL", format!("http://{}", proxy.address));
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        if matches!(moment, Moment::Staged | Moment::Applying(_)) {
            let end = Instant::now() + Duration::from_secs(60);
            while self.staged() == 0 {
                assert!(Instant::now() < end, "nothing is staged");
                assert!(process.try_wait().unwrap().is_none(), "it did not stage");
                std::thread::sleep(Duration::from_micros(200));
            }
            if let Moment::Applying(time) = moment {
                std::thread::sleep(time);
                let _ = process.kill();
            }
            self.site.emulator.kill();
        }
        let output = process.wait_with_output().unwrap();
        // AWS is lost, whatever the run has done.
        self.site.emulator.kill();
        let usable = std::mem::take(&mut *usable.lock().unwrap());
        (usable, output)
    }

    /// Looks at both targets. What `ebsfs status` says of them must be true.
    fn look(&self, old: &(String, Frozen), new: &(String, Frozen)) -> Vec<Look> {
        let (code, job, said) = status(&self.site, &[]);
        let device = |frozen: &Frozen| frozen.difference_of_device(&self.device.0, &self.disk);
        let image = |frozen: &Frozen| frozen.difference(&self.image());
        let name = self.image().display().to_string();
        let differences: [(&str, Option<String>, Option<String>); 2] = [
            (&name, image(&old.1), image(&new.1)),
            (&self.device.0, device(&old.1), device(&new.1)),
        ];
        let looks = differences.map(|(name, from_old, from_new)| {
            let holds = match (from_old, from_new) {
                (None, _) => Holds::Old,
                (_, None) => Holds::New,
                _ => Holds::Neither,
            };
            let point = target(&job, name);
            let is_usable = point["is_usable"].as_bool().unwrap();
            // Where both are whole, the state may still name the older one.
            let named = &point["recovery_point"]["snapshot"];
            assert!(*named == *old.0 || *named == *new.0, "{point}");
            assert!(
                !is_usable || holds != Holds::Neither,
                "called usable, and neither the one nor the other: {point}"
            );
            assert!(*named != *new.0 || holds == Holds::New, "{point}");
            assert!(is_usable || code == 13, "exit code {code}: {said}");
            Look { holds, is_usable }
        });
        looks.into()
    }
}

/// How a moment ended: complete stages after it, and targets with the new snapshot after it and after a run without AWS.
#[derive(Debug)]
struct Ended {
    moment: Moment,
    staged: usize,
    had: usize,
    has: usize,
}

/// Loses AWS at this moment, and asserts what holds then, after a run without AWS, and after one with it.
fn lose(moment: Moment, seed: u64) -> Ended {
    let mut replica = Replica::new(seed);
    // The first copy makes the image, the second one changes it.
    for _ in 0..2 {
        replica.site.cycle(&replica.job, "state");
    }
    let old = Frozen::newest(&replica.site.emulator, VOLUME);
    replica.change();
    let (usable, output) = replica.run_until_lost(moment);
    let said = String::from_utf8_lossy(&output.stderr);
    let new = Frozen::newest(&replica.site.emulator, VOLUME);
    assert_ne!(old.0, new.0);
    let first = replica.look(&old, &new);
    let staged = replica.staged();
    if matches!(moment, Moment::Listing | Moment::Block(_)) {
        assert_eq!(output.status.code(), Some(7), "{moment:?}: {said}");
        assert_eq!(status(&replica.site, &[]).0, 13);
        assert!(
            first.iter().all(|one| one.is_usable),
            "{moment:?}: {first:?}"
        );
        assert_eq!(staged, 0, "a complete stage is applied");
        // What is staged is applied at once: it does not wait for AWS half way.
        assert_eq!(usable, [true, true], "{moment:?}");
    }
    if moment == Moment::Listing {
        assert!(first.iter().all(|one| one.holds == Holds::Old), "{first:?}");
    }
    // The next run, and there is no AWS.
    let output = replica.once().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let second = replica.look(&old, &new);
    println!("{moment:?}: {first:?}, {staged} staged, then {second:?}");
    for (before, after) in first.iter().zip(&second) {
        assert!(after.is_usable, "{moment:?}: {before:?}, {after:?}: {said}");
        let is_new = before.holds == Holds::New || !before.is_usable;
        assert!(!is_new || after.holds == Holds::New, "{moment:?}: {said}");
    }
    let is_new = |look: &&Look| look.holds == Holds::New;
    let (had, has) = (
        first.iter().filter(is_new).count(),
        second.iter().filter(is_new).count(),
    );
    // What was staged whole for a target that held the old one is applied.
    assert!(has >= staged.max(had), "{moment:?}: {said}");
    // A run that was killed is continued, and misses nothing then.
    if has == second.len() && matches!(moment, Moment::Applying(_)) {
        assert_eq!(output.status.code(), Some(0), "{moment:?}: {said}");
        assert_eq!(status(&replica.site, &[]).0, 0);
    }
    // Another account of the same volumes: the targets are as good as ever.
    replica.site.emulator.start_again();
    replica.site.cycle(&replica.job, "state");
    assert_eq!(replica.staged(), 0, "{moment:?}");
    let (_, last) = Frozen::newest(&replica.site.emulator, VOLUME);
    last.assert_same(&replica.image());
    let differs = last.difference_of_device(&replica.device.0, &replica.disk);
    assert_eq!(differs, None, "{moment:?}");
    Ended {
        moment,
        staged,
        had,
        has,
    }
}

#[test]
fn with_a_stage_a_recovery_point_remains_wherever_aws_is_lost_for_good() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let count = std::env::var("EBSFS_KILLS").map_or(6, |kills| kills.parse().unwrap());
    let moments: Vec<Moment> = (0..count).map(|n| Moment::of(n, &mut random)).collect();
    let mut seen: Vec<Ended> = Vec::new();
    // Runs wait for EC2 for some seconds before they give up: at the same time.
    for some in moments.chunks(6) {
        std::thread::scope(|scope| {
            let lost = some.iter().map(|moment| {
                let seed = random.u64(..);
                scope.spawn(move || lose(*moment, seed))
            });
            let lost: Vec<_> = lost.collect();
            let ended = lost.into_iter().map(std::thread::ScopedJoinHandle::join);
            seen.extend(
                ended.map(|one| one.unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
            );
        });
    }
    // It is not only the edges where nothing happens.
    let is_continued = |one: &Ended| {
        matches!(one.moment, Moment::Applying(_)) && one.staged > 0 && one.had < one.has
    };
    assert!(seen.iter().any(is_continued), "{seen:?}");
    println!("{} moments: {seen:?}", seen.len());
}
