//! A hostile API: list replies of the emulator, damaged at random or always in the same way, in front of the real program.
//!
//! Whatever the replies say: the right bytes with exit 0, or another exit code; never other bytes with exit 0, never longer
//! than a bound. A run is named by its seed; `EBSFS_HOSTILE_SEED=7 EBSFS_HOSTILE_RUNS=1` repeats run 7.

mod damage;
mod relay;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use crate::support::*;
use damage::{Damage, Plan};
use relay::Relay;

/// Blocks of a page: a listing of the base has 7 pages, of the head 10, of what changed 6.
const PAGE: &str = "page_blocks=5";
/// No command may take longer. `--timeout` is for one block or listing; a command has several.
const BOUND: Duration = Duration::from_secs(40);

/// A pair of snapshots whose images are known, and what `ebsfs changes` says of them when nothing is damaged.
struct Pair {
    emulator: Emulator,
    base: String,
    head: String,
    base_image: PathBuf,
    head_image: PathBuf,
    changes: String,
}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Changes,
    Full,
    Delta,
}

const VERBS: [Verb; 3] = [Verb::Changes, Verb::Full, Verb::Delta];

impl Pair {
    fn new() -> Self {
        let emulator = Emulator::with(&["--set", PAGE]);
        let volume = emulator.make_volume("vol-0a", 2048, (0..30).chain([700, 701, 2047]));
        let base = emulator.snapshot("vol-0a");
        let base_image = emulator.folder.path().join("base.raw");
        run(Command::new("cp")
            .arg("--sparse=always")
            .args([&volume, &base_image]));
        let file = writable(&volume);
        // Each page of the delta has more new blocks than rewritten ones: pages that are lost change the counts.
        let changed = (10..12).chain(100..118).chain(900..908).chain([2047]);
        for index in changed {
            file.write_all_at(&content("head", index), index * BLOCK)
                .unwrap();
        }
        let free = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, free, (20 * BLOCK) as i64, BLOCK as i64).unwrap();
        let head = emulator.snapshot("vol-0a");
        let head_image = emulator.folder.path().join("head.raw");
        run(Command::new("cp")
            .arg("--sparse=always")
            .args([&volume, &head_image]));
        let mut pair = Self {
            emulator,
            base,
            head,
            base_image,
            head_image,
            changes: String::new(),
        };
        pair.changes = run(&mut pair.command(Verb::Changes, Path::new("/nonexistent"), None));
        assert_eq!(pair.changes.lines().count(), 6, "{}", pair.changes);
        pair
    }

    /// The command of a verb, through a relay or straight.
    fn command(&self, verb: Verb, folder: &Path, relay: Option<&Relay>) -> Command {
        let image = folder.join("image.raw");
        let state = folder.join("state");
        let (image, state) = (image.to_string_lossy(), state.to_string_lossy());
        let args: Vec<&str> = match verb {
            Verb::Changes => vec!["changes", &self.base, &self.head, "--format", "csv"],
            Verb::Full => vec!["sync", &self.head, &image],
            Verb::Delta => vec!["sync", &self.head, &image, "--base", "auto"],
        };
        let mut command = self.emulator.ebsfs(&args);
        if verb != Verb::Changes {
            command.args(["--progress", "none", "--state-dir", &state]);
        }
        command.args(["--timeout", "3s"]);
        if let Some(relay) = relay {
            command.env("AWS_ENDPOINT_URL", relay.url());
        }
        command
    }

    /// Runs a verb through a relay with this damage. `None`: nothing is wrong; else what is.
    fn try_verb(&self, verb: Verb, relay: &Relay, plan: impl FnOnce() -> Plan) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image.raw");
        if verb == Verb::Delta {
            relay.set(None);
            let full = self.command(Verb::Full, folder.path(), Some(relay));
            run(&mut replaced(&full, &self.head, &self.base));
            assert!(same(&image, &self.base_image));
        }
        relay.set(Some(plan()));
        let ended = limited(self.command(verb, folder.path(), Some(relay)));
        relay.set(None);
        let (code, out, err) = match ended {
            Ok(ended) => ended,
            Err(said) => return Some(format!("still running after {BOUND:?}: {said}")),
        };
        let signalled = code.is_none();
        if signalled || code == Some(101) || err.contains("panicked") {
            return Some(format!("ended with {code:?}: {err}"));
        }
        if code != Some(0) {
            return None;
        }
        let right = match verb {
            Verb::Changes => out == self.changes,
            Verb::Full | Verb::Delta => same(&image, &self.head_image),
        };
        (!right).then(|| format!("exit 0 and wrong: {out}{err}"))
    }
}

/// The same command with one argument replaced.
fn replaced(command: &Command, from: &str, to: &str) -> Command {
    let mut other = Command::new(command.get_program());
    for arg in command.get_args() {
        other.arg(if arg == from { to.as_ref() } else { arg });
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => other.env(name, value),
            None => other.env_remove(name),
        };
    }
    other
}

/// Whether two sparse files hold the same bytes; where both have holes nothing is read.
fn same(a: &Path, b: &Path) -> bool {
    let (a, b) = (open(a), open(b));
    let length = a.metadata().unwrap().len();
    if length != b.metadata().unwrap().len() {
        return false;
    }
    let data = |file: &std::fs::File, at: u64| {
        let next = lseek(file, at as i64, Whence::SeekData);
        next.map_or(length, |next| next.cast_unsigned() / BLOCK * BLOCK)
    };
    let (mut from_a, mut from_b) = (vec![0; BLOCK as usize], vec![0; BLOCK as usize]);
    let mut at = 0;
    loop {
        at = data(&a, at).min(data(&b, at));
        if at >= length {
            return true;
        }
        a.read_exact_at(&mut from_a, at).unwrap();
        b.read_exact_at(&mut from_b, at).unwrap();
        if from_a != from_b {
            return false;
        }
        at += BLOCK;
    }
}

/// Exit code, stdout and stderr of a command; what it wrote so far when it exceeds the bound.
fn limited(mut command: Command) -> Result<(Option<i32>, String, String), String> {
    let folder = tempfile::tempdir().unwrap();
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(std::fs::File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let end = Instant::now() + BOUND;
    let read = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Ok((status.code(), read(&out), read(&err)));
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            return Err(read(&err));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn number(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(default, |text| text.parse().unwrap())
}

#[test]
fn random_damage_gives_the_right_bytes_or_an_error() {
    let runs = number("EBSFS_HOSTILE_RUNS", 200);
    let first = number("EBSFS_HOSTILE_SEED", 0);
    let next = std::sync::atomic::AtomicU64::new(first);
    let wrong = std::sync::Mutex::new(Vec::new());
    let right = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        // Most of a run is waiting for what does not come.
        for _ in 0..4 {
            scope.spawn(|| {
                let pair = Pair::new();
                let relay = Relay::start(&pair.emulator.url());
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= first + runs {
                        return;
                    }
                    let verb = VERBS[(seed % 3) as usize];
                    let shown = Plan::random(seed).to_string();
                    let start = Instant::now();
                    let fault = pair.try_verb(verb, &relay, || Plan::random(seed));
                    let took = start.elapsed().as_millis();
                    match fault {
                        None => {
                            right.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        }
                        Some(what) => {
                            let line =
                                format!("seed {seed}: {verb:?} with {shown}, {took} ms: {what}");
                            eprintln!("{line}");
                            wrong.lock().unwrap().push(line);
                        }
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    eprintln!(
        "{} of {runs} runs were right or an error",
        right.into_inner()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs the verbs with one kind of damage in every reply that it fits.
#[track_caller]
fn always(damage: Damage, verbs: &[Verb]) {
    let pair = Pair::new();
    let relay = Relay::start(&pair.emulator.url());
    let wrong: Vec<String> = verbs
        .iter()
        .filter_map(|verb| {
            let what = pair.try_verb(*verb, &relay, || Plan::always(damage))?;
            Some(format!("{verb:?}: {what}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same with switches of the emulator.
#[track_caller]
fn switched(switches: &str, verbs: &[Verb]) {
    let pair = Pair::new();
    let relay = Relay::start(&pair.emulator.url());
    let reset: Vec<String> = switches
        .split('&')
        .map(|switch| {
            let (name, _) = switch.split_once('=').unwrap();
            let unset = if name == "lose_token_at" { "" } else { "0" };
            format!("{name}={unset}")
        })
        .collect();
    let wrong: Vec<String> = verbs
        .iter()
        .filter_map(|verb| {
            let plan = || Plan::switches(&pair.emulator, switches, &reset.join("&"));
            let what = pair.try_verb(*verb, &relay, plan)?;
            Some(format!("{verb:?}: {what}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_list_that_is_always_missing_is_never_an_empty_one() {
    always(Damage::LoseList, &VERBS);
}

#[test]
fn an_empty_body_is_never_an_empty_list() {
    always(Damage::EmptyBody, &VERBS);
}

#[test]
fn an_empty_object_is_never_an_empty_list() {
    always(Damage::EmptyObject, &VERBS);
}

#[test]
fn status_204_is_never_an_empty_list() {
    always(Damage::NoContent, &VERBS);
}

#[test]
fn an_error_with_status_200_is_never_an_empty_list() {
    always(Damage::Error200, &VERBS);
}

#[test]
fn a_page_with_an_error_status_is_not_read() {
    always(Damage::WrongStatus, &VERBS);
}

#[test]
fn a_list_that_is_null_does_not_pass_for_a_snapshot_of_holes() {
    always(Damage::NullList, &VERBS);
}

#[test]
fn a_body_that_is_cut_is_not_read() {
    always(Damage::CutBody, &VERBS);
}

#[test]
fn a_body_that_never_ends_is_given_up() {
    always(Damage::EndlessBody, &VERBS);
}

#[test]
fn page_tokens_in_a_circle_end_in_an_error() {
    always(Damage::CyclingToken, &VERBS);
}

#[test]
fn every_page_token_lost_is_not_the_end_of_every_page() {
    always(Damage::LostToken, &VERBS);
}

#[test]
fn a_page_that_is_sent_again_is_not_the_next_one() {
    always(Damage::RepeatedPage, &VERBS);
}

#[test]
fn a_block_without_its_token_is_not_a_hole() {
    always(Damage::LostBlockToken, &VERBS);
}

#[test]
fn blocks_out_of_order_are_not_believed() {
    always(Damage::Disorder, &VERBS);
}

#[test]
fn the_token_of_each_page_that_is_always_lost() {
    for page in 1..=7 {
        switched(&format!("lose_token_at={page}"), &VERBS);
    }
}

#[test]
fn half_pages_that_end_the_listing_are_not_its_end() {
    switched("lost_next=1", &VERBS);
}

#[test]
fn empty_pages_that_lead_in_a_circle_end_in_an_error() {
    switched("cycle=1", &VERBS);
}

#[test]
fn empty_pages_that_never_end_are_given_up() {
    switched("empty_page=1", &VERBS);
}

#[test]
fn dropped_and_doubled_pages_contradict_the_listing() {
    switched("drop_page=1", &VERBS);
    switched("double_page=1", &VERBS);
}

#[test]
fn replies_that_trickle_are_read_or_given_up() {
    switched("list_body_bps=400", &VERBS);
}
