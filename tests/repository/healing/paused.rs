//! Repairs that are paused, as a suspended machine pauses them, while prunes delete what no snapshot needs.

use std::time::{Duration, Instant};

use super::*;

fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, signal).unwrap();
}

/// Pauses a repair once something is there, prunes without grace, and lets it continue: the exit codes of both, and what the
/// repair printed.
fn pruned_meanwhile(
    chain: &Chain,
    objects: &Objects,
    forgets: bool,
    step: usize,
) -> (i32, i32, String) {
    let emulator = &chain.emulator;
    harm("short", &shared_pack(objects));
    let count = |folder: &str| objects.objects(folder).len();
    let before = [count("packs"), count("segments")];
    emulator.set("latency_ms=20");
    let args = ["check", "--repair", "--from", &chain.snapshots[0]];
    let said = tempfile::NamedTempFile::new().unwrap();
    let mut child = objects
        .look(emulator, &args)
        .stdout(Stdio::null())
        .stderr(said.reopen().unwrap())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    let is_there = || match step {
        0 => count("packs") > before[0],
        1 => count("segments") > before[1],
        _ => count("removed") > step - 2,
    };
    // The next steps come within milliseconds.
    while !is_there() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "no step {step}");
        std::thread::sleep(Duration::from_micros(300));
    }
    signal(&child, nix::sys::signal::Signal::SIGSTOP);
    emulator.set("latency_ms=0");
    // The prune's now must be later than what the repair has written.
    std::thread::sleep(Duration::from_millis(50));
    let mut prune = vec!["prune".to_owned(), "--grace".into(), "0s".into()];
    let runs = objects.objects("runs");
    if let Some(path) = runs.first().filter(|_| forgets) {
        let run = path.file_name().unwrap().to_str().unwrap();
        prune.extend(["--forget-run".to_owned(), run.to_owned()]);
    }
    let prune: Vec<&str> = prune.iter().map(String::as_str).collect();
    let (pruned, _) = ends(&mut objects.look(emulator, &prune));
    signal(&child, nix::sys::signal::Signal::SIGCONT);
    let status = child.wait().unwrap();
    let said = fs::read_to_string(said.path()).unwrap();
    (pruned, status.code().unwrap(), said)
}

#[test]
fn a_prune_without_grace_deletes_nothing_that_a_paused_repair_has_written() {
    let objects = Objects::folder();
    let chain = three(&objects);
    let (_folder, restore) = keep(&objects);
    for step in [0, 2] {
        restore();
        let (pruned, repaired, said) = pruned_meanwhile(&chain, &objects, false, step);
        assert!(matches!(pruned, 0 | 10), "{pruned}");
        assert_eq!(repaired, 0, "{said}");
        assert_eq!(check_exit(&objects, &chain.emulator, &["--read-data"]).0, 0);
        assert_whole(&objects, &chain, 0..3);
    }
}

#[test]
fn a_repair_that_was_taken_for_dead_replaces_no_manifest_by_one_that_leads_to_nothing() {
    let objects = Objects::folder();
    let chain = three(&objects);
    let (_folder, restore) = keep(&objects);
    let mut codes = Vec::new();
    // A busy machine pauses a repair too late.
    for step in [0, 1, 3].into_iter().cycle().take(15) {
        if codes.len() >= 3 && codes.contains(&10) {
            break;
        }
        restore();
        let pack = shared_pack(&objects);
        let pack = text(pack.strip_prefix(objects.files()).unwrap()).to_owned();
        let (pruned, repaired, said) = pruned_meanwhile(&chain, &objects, true, step);
        assert!(matches!(pruned, 0 | 10), "{pruned}");
        assert!(matches!(repaired, 0 | 8 | 10), "{repaired}: {said}");
        codes.push(repaired);
        let check = ["check", "--read-data", "--json"];
        let output = objects.look(&chain.emulator, &check).output().unwrap();
        let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
        for damage in checked["damages"].as_array().unwrap() {
            assert_eq!(damage["object"], *pack, "{said}");
        }
        let from = ["--repair", "--from", &chain.snapshots[0]];
        let (code, said) = check_exit(&objects, &chain.emulator, &from);
        assert_eq!(code, 0, "{said}");
        assert_eq!(check_exit(&objects, &chain.emulator, &["--read-data"]).0, 0);
        assert_whole(&objects, &chain, 0..3);
    }
    assert!(codes.contains(&10), "{codes:?}");
}
