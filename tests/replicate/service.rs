//! The job as a service: readiness, due cycles, reload, stop; hooks; bandwidth.

use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;

/// A running service, and what it has sent to its manager.
pub(super) struct Service {
    pub(super) process: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Service {
    pub(super) fn start(site: &Site, args: &[&str]) -> Self {
        let path = site.at("notify");
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&said);
        // It ends with the test.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length) = socket.recv(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                kept.lock().unwrap().push(text);
            }
        });
        let mut command = site.emulator.ebsfs(&["replicate"]);
        command
            .args(args)
            .args(["--state-dir", site.at("state").to_str().unwrap()])
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "200000")
            .stderr(Stdio::piped());
        Self {
            process: command.spawn().unwrap(),
            said,
        }
    }

    /// Whether it has sent this to its manager.
    pub(super) fn has_said(&self, words: &str) -> bool {
        let said = self.said.lock().unwrap();
        said.iter().any(|said| said.contains(words))
    }

    pub(super) fn signal(&self, name: &str) {
        run(Command::new("kill").args([&format!("-{name}"), &self.process.id().to_string()]));
    }

    /// Stops it; its exit code and its log.
    pub(super) fn stop(mut self) -> (Option<i32>, String) {
        self.signal("TERM");
        let began = Instant::now();
        let status = self.process.wait().unwrap();
        assert!(began.elapsed() < Duration::from_secs(10));
        let mut log = String::new();
        self.process
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        wait_for("the end", || self.has_said("STOPPING=1"));
        (status.code(), log)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(super) fn state(site: &Site) -> Value {
    let bytes = std::fs::read(site.at("state/job-web.json")).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or(Value::Null)
}

/// Whether the image is there and holds what the volume does.
pub(super) fn holds_newest(site: &Site) -> bool {
    let (image, disk) = (site.at("vol-0a.raw"), site.emulator.volume("vol-0a"));
    image.exists() && is_same(&image, &disk)
}

#[test]
fn a_service_runs_cycles_when_they_are_due_reloads_its_job_and_stops() {
    let mut site = Site::new(fastrand::u64(..));
    let text = |every: &str, more: &str| {
        format!(
            "name = 'web'\nvolumes = ['vol-0a']\nevery = '{every}'\n{more}\n[[target]]\nto = '{}/{{volume}}.raw'",
            site.folder.path().display()
        )
    };
    let (first, second) = (text("1s", ""), text("1h", "verify = true"));
    let job = site.job(&first);
    let service = Service::start(&site, &[job.to_str().unwrap()]);
    wait_for("readiness", || service.has_said("READY=1"));
    wait_for("the first cycle", || holds_newest(&site));
    site.write();
    wait_for("the next cycle", || holds_newest(&site));
    wait_for("the watchdog", || service.has_said("WATCHDOG=1"));
    // A bad file keeps the job.
    site.job("name = ");
    service.signal("HUP");
    site.write();
    wait_for("a cycle of the old job", || holds_newest(&site));
    site.job(&second);
    service.signal("HUP");
    wait_for("the new schedule", || {
        state(&site)["schedule"] == "every 1h"
    });
    let (code, log) = service.stop();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(log.matches("the job stays as it is").count(), 1, "{log}");
    assert!(log.contains("was read again"), "{log}");
    assert!(state(&site)["volumes"]["vol-0a"]["under_way"].is_null());
    // It may have been stopped between a snapshot and the deletion of the one before.
    assert!(site.snapshots()["vol-0a"].len() <= 2);
}

#[test]
fn a_gateway_waits_for_new_snapshots_and_says_nothing_while_there_are_none() {
    let mut site = Site::new(fastrand::u64(..));
    let repository = format!("file://{}", site.at("repository").display());
    init_repository(&repository);
    let proxy = site.at("proxy.toml");
    let text = format!("name = 'proxy'\nvolumes = ['vol-0a']\n[[target]]\nto = '{repository}'");
    std::fs::write(&proxy, text).unwrap();
    let job = site.job(&format!(
        "name = 'web'\nfrom = '{repository}'\nevery = '1s'\n[[target]]\nto = '{}/{{volume}}.raw'",
        site.folder.path().display()
    ));
    let service = Service::start(&site, &[job.to_str().unwrap()]);
    let looks = |site: &Site, times: usize| {
        let mut seen = BTreeSet::new();
        wait_for("cycles", || {
            seen.insert(state(site)["last_run"]["cycle"].to_string());
            seen.len() > times
        });
    };
    looks(&site, 2);
    // The state folder is locked for the gateway's job alone.
    run(&mut site.once(&proxy, "state"));
    wait_for("the first snapshot", || holds_newest(&site));
    looks(&site, 2);
    site.write();
    run(&mut site.once(&proxy, "state"));
    wait_for("the next snapshot", || holds_newest(&site));
    looks(&site, 2);
    let (code, log) = service.stop();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(log.matches(" ended after ").count(), 2, "{log}");
    assert_eq!(log.matches("cycle").count(), 2, "{log}");
}

#[test]
fn a_service_that_is_stopped_in_a_copy_continues_it_with_the_same_snapshot() {
    let site = Site::new(fastrand::u64(..));
    let volume = site.emulator.make_volume("vol-0a", BLOCKS, 0..600);
    let to = site.at("vol-0a.raw").display().to_string();
    let args = [
        "--volume", "vol-0a", "--to", &to, "--every", "1h", "--name", "web",
    ];
    site.emulator.set("latency_ms=100");
    let service = Service::start(&site, &args);
    wait_for("some blocks", || site.emulator.gets() > 50);
    let (code, log) = service.stop();
    assert_eq!(code, Some(0), "{log}");
    let under_way = state(&site)["volumes"]["vol-0a"]["under_way"].clone();
    assert!(!under_way.is_null(), "{log}");
    site.emulator.set("latency_ms=0");
    let service = Service::start(&site, &args);
    wait_for("the image", || holds_newest(&site));
    wait_for("its record", || {
        state(&site)["volumes"]["vol-0a"]["under_way"].is_null()
    });
    let (code, log) = service.stop();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(site.emulator.count("CreateSnapshot"), 1, "{log}");
    assert!(
        site.emulator.gets() < 600 + 600 / 2,
        "{}",
        site.emulator.gets()
    );
    assert_same(&site.at("vol-0a.raw"), &volume);
}

#[test]
fn hooks_read_what_the_cycle_did() {
    let site = Site::new(fastrand::u64(..));
    let trace = |name: &str| site.at(name).display().to_string();
    let hook = |name: &str| format!("'cat > {}'", trace(name));
    let text = format!(
        "[hooks]\nbefore = {}\nafter = {}\non_failure = {}\n\
         freeze = 'echo $EBSFS_VOLUMES > {}'\nthaw = 'echo $EBSFS_SNAPSHOTS > {}'",
        hook("before"),
        hook("after"),
        hook("failure"),
        trace("freeze"),
        trace("thaw"),
    );
    let job = site.image_job(&text);
    let report = site.cycle(&job, "state");
    let read = |site: &Site, name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(site.at(name)).unwrap()).unwrap()
    };
    let before = read(&site, "before");
    assert_eq!(
        (&before["when"], &before["job"]),
        (&"before".into(), &"web".into())
    );
    assert_eq!(before["cycle"], report["cycle"]);
    let after = read(&site, "after");
    assert_eq!(
        after["volumes"][0]["targets"][0]["snapshot"],
        report["volumes"][0]["snapshot"]
    );
    let thawed = std::fs::read_to_string(site.at("thaw")).unwrap();
    assert_eq!(thawed.trim(), snapshot_of(&report, "vol-0a"));
    assert!(!site.at("failure").exists());
    // A failure of the command before: no snapshot is made.
    let job = site.image_job(&text.replace(&hook("before"), "'exit 3'"));
    let (code, said) = ends(&mut site.once(&job, "state"));
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("the command before of the job web ended with exit code 3"),
        "{said}"
    );
    assert_eq!(site.emulator.count("CreateSnapshot"), 1);
    assert_eq!(
        read(&site, "failure")["failures"].as_array().unwrap().len(),
        1
    );
}

#[test]
fn a_rate_of_the_job_is_that_of_all_volumes_together() {
    let site = Site::new(fastrand::u64(..));
    for volume in ["vol-0a", "vol-0b"] {
        site.emulator.make_volume(volume, BLOCKS, 0..10);
    }
    let job = site.job(&format!(
        "name = 'web'\ninstances = ['{FIRST}']\nbandwidth = [{{ from = '00:00', to = '12:00', rate = '5MiB' }}, \
         {{ from = '12:00', to = '00:00', rate = '5MiB' }}]\n[[target]]\nto = '{}/{{volume}}.raw'",
        site.folder.path().display()
    ));
    let began = Instant::now();
    site.cycle(&job, "state");
    // 20 blocks at 10 a second; the first are sent at once.
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1500), "{took:?}");
    for volume in ["vol-0a", "vol-0b"] {
        assert_same(
            &site.at(&format!("{volume}.raw")),
            &site.emulator.volume(volume),
        );
    }
}
