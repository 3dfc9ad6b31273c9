//! `drill` in a job: what it finds is in the report, the state, the status and the hook, and nothing of it holds up cycles.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::service::{Service, holds_newest, state};
use super::*;

/// The interval of drills that are looked at: one is overdue after two of them, which a loaded machine must not need for a command.
const EVERY: Duration = Duration::from_secs(4);

/// Processes of the programs of drills with this folder for overlays.
fn programs(site: &Site) -> usize {
    let scratch = format!("{}/ebsfs-drill-", site.at("scratch").display());
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let words = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    words
        .filter(|words| String::from_utf8_lossy(words).contains(&scratch))
        .count()
}

/// Whether a drill has started its machine.
fn has_machine(site: &Site) -> bool {
    let mut entries = std::fs::read_dir("/proc").unwrap().flatten();
    let scratch = format!("{}/ebsfs-drill-", site.at("scratch").display());
    entries.any(|entry| {
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let is_qemu = read("comm").starts_with(b"qemu-system");
        is_qemu && String::from_utf8_lossy(&read("cmdline")).contains(&scratch)
    })
}

/// Nothing is left of a drill: no file, no process.
fn left_nothing(site: &Site) -> bool {
    let files = std::fs::read_dir(site.at("scratch")).unwrap().count();
    files == 0 && programs(site) == 0
}

fn site() -> Site {
    let site = Site::new(fastrand::u64(..));
    std::fs::create_dir(site.at("scratch")).unwrap();
    // The user of the checkers goes through it.
    let folder = site.folder.path().display();
    sh(&format!("chmod 711 {folder} {folder}/scratch"));
    site
}

/// Exit code and only job of `ebsfs status`, and its words.
fn status(site: &Site) -> (i32, Value, String) {
    let mut command = Command::new(EBSFS);
    command.args(["status", "--json", "--state-dir"]);
    let output = command.arg(site.at("state")).output().unwrap();
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), all["jobs"][0].clone(), said)
}

/// Exit code, report and log of a cycle.
fn cycle(site: &Site, job: &Path) -> (i32, Value, String) {
    let output = site.once(job, "state").output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), report, log)
}

#[test]
fn a_job_drills_its_recovery_points_and_damage_fails_the_run_and_the_status() {
    let site = site();
    let repository = format!("file://{}", site.at("repository").display());
    init_repository(&repository);
    let (folder, disk) = (
        site.folder.path().display().to_string(),
        site.emulator.volume("vol-0a"),
    );
    let image = site.at("vol-0a.raw");
    let text = |drill: &str| {
        format!(
            "name = 'web'\nvolumes = ['vol-0a']\nrate = '500MiB'\n\
             drill = {{ every = '{EVERY:?}', scratch = '{folder}/scratch', {drill} }}\n\
             [hooks]\non_failure = 'cat > {folder}/failed'\n\
             [[target]]\nto = '{folder}/{{volume}}.raw'\nin_place = true\n[[target]]\nto = '{repository}'\n"
        )
    };
    let job = site.job(&text(""));
    let disk_name = disk.display();
    // As after a power cut: its journal has to be replayed.
    sh(&format!(
        "mkfs.ext4 -q -F {disk_name}; debugfs -w -R 'feature needs_recovery' {disk_name} 2> /dev/null"
    ));
    let (code, report, log) = cycle(&site, &job);
    assert_eq!(code, 0, "{log}");
    let drill = &report["drills"][0];
    let snapshot = snapshot_of(&report, "vol-0a");
    assert_eq!(
        drill["source"],
        format!("{repository}#{snapshot}"),
        "{drill}"
    );
    assert_eq!(
        (&drill["result"], &drill["unit"]),
        (&"passed".into(), &"vol-0a".into())
    );
    assert_eq!(drill["partitions"], serde_json::json!({"replayed": 1}));
    // What was drilled is as it was, byte for byte.
    assert_in_repository(&repository, &snapshot, &disk);
    let kept = &state(&site)["drills"]["units"]["vol-0a"]["last"];
    assert_eq!(kept["partitions"]["replayed"], 1, "{kept}");
    let (code, found, said) = status(&site);
    assert_eq!(code, 0, "{said}");
    let unit = &found["drills"]["units"][0];
    assert_eq!(
        (&unit["state"], &unit["is_overdue"]),
        (&"passed".into(), &false.into())
    );
    assert_eq!(unit["last"]["point"], *snapshot);
    assert!(left_nothing(&site) && !site.at("failed").exists());

    sh(&format!(
        "debugfs -w -R 'clri <2>' {disk_name} 2> /dev/null"
    ));
    std::thread::sleep(EVERY);
    let (code, report, log) = cycle(&site, &job);
    assert_eq!(code, 8, "{log}");
    assert!(log.contains("cannot confirm"), "{log}");
    assert!(log.contains("found damage"), "{log}");
    assert_eq!(report["drills"][0]["result"], "failed");
    let hooked: Value = serde_json::from_slice(&std::fs::read(site.at("failed")).unwrap()).unwrap();
    assert_eq!(hooked["when"], "on_failure");
    assert_eq!(hooked["drills"][0]["exit_code"], 8);
    assert_eq!(hooked["failures"].as_array().unwrap().len(), 1);
    let (code, found, said) = status(&site);
    assert_eq!(code, 11, "{said}");
    assert_eq!(found["drills"]["units"][0]["state"], "failed");
    // The copies are whole: only the status of the drill is bad.
    let targets = found["volumes"][0]["targets"].as_array().unwrap();
    assert!(
        targets.iter().all(|target| target["state"] == "current"),
        "{found}"
    );
    assert_same(&image, &disk);

    // The next cycle goes on, and its recovery point is good: now that of the image, which no drill changes.
    sh(&format!("mkfs.ext4 -q -F {disk_name}"));
    let job = site.job(&text(&format!("target = '{folder}/{{volume}}.raw'")));
    std::thread::sleep(EVERY);
    let (code, report, log) = cycle(&site, &job);
    assert_eq!(code, 0, "{log}");
    assert_eq!(report["drills"][0]["source"], image.display().to_string());
    assert_eq!(
        report["drills"][0]["partitions"],
        serde_json::json!({"clean": 1})
    );
    assert_same(&image, &disk);
    assert_eq!(status(&site).0, 0);
    assert!(left_nothing(&site));
    // The job has no drill any more, nor has its state.
    site.image_job("in_place = true");
    assert_eq!(cycle(&site, &job).0, 0);
    assert!(state(&site)["drills"].is_null());
}

/// A job whose drill starts a machine that never prints what is waited for.
fn endless(site: &Site, more: &str) -> PathBuf {
    let folder = site.folder.path().display();
    site.job(&format!(
        "name = 'web'\nvolumes = ['vol-0a']\nevery = '1s'\n\
         drill = {{ every = '1s', scratch = '{folder}/scratch', boot = true, wait_for = 'never', boot_timeout = '1h' }}\n\
         [[target]]\nto = '{folder}/{{volume}}.raw'\n{more}"
    ))
}

/// Sends SIGTERM, and waits for an end in time.
fn stop(mut process: Child) -> Option<i32> {
    run(Command::new("kill").args(["-TERM", &process.id().to_string()]));
    let began = Instant::now();
    let code = process.wait().unwrap().code();
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    code
}

#[test]
fn cycles_run_beside_a_drill_and_a_stop_or_a_kill_ends_it() {
    let mut site = site();
    let repository = format!("file://{}", site.at("repository").display());
    init_repository(&repository);
    // The repository is drilled, the image shows the cycles.
    let job = endless(&site, &format!("[[target]]\nto = '{repository}'"));
    // Another run does the next cycles while one drills.
    let mut command = site.once(&job, "state");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let drilling = command.spawn().unwrap();
    wait_for("the machine", || has_machine(&site));
    site.write();
    let (code, report, log) = cycle(&site, &job);
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("another process drills the job web"), "{log}");
    assert_eq!(report["drills"], serde_json::json!([]));
    assert!(holds_newest(&site));
    assert_eq!(stop(drilling), Some(130));
    assert!(left_nothing(&site));
    // A stopped drill is still due.
    assert!(state(&site)["drills"]["units"]["vol-0a"]["last"].is_null());

    let mut service = Service::start(&site, &[job.to_str().unwrap()]);
    wait_for("the machine", || has_machine(&site));
    site.write();
    wait_for("a cycle beside it", || holds_newest(&site));
    service.process.kill().unwrap();
    service.process.wait().unwrap();
    wait_for("the end of the drill", || left_nothing(&site));
}

#[test]
fn an_image_waits_for_its_drill() {
    let mut site = site();
    let job = endless(&site, "");
    let service = Service::start(&site, &[job.to_str().unwrap()]);
    wait_for("the machine", || has_machine(&site));
    let before = site.at("before.raw");
    std::fs::copy(site.at("vol-0a.raw"), &before).unwrap();
    site.write();
    let ended = || state(&site)["last_run"]["cycle"].clone();
    for _ in 0..2 {
        let last = ended();
        wait_for("a cycle", || ended() != last);
    }
    assert_same(&site.at("vol-0a.raw"), &before);
    let (code, log) = service.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("a drill of it is under way"), "{log}");
    assert!(left_nothing(&site));
}
