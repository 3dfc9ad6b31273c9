//! A job whose source is a repository: a proxy copies snapshots into it, a gateway applies them, without credentials and without a call
//! to AWS.

mod broken;
mod bucket;

use std::net::TcpListener;
use std::os::unix::fs::symlink;

use super::*;
use crate::sync::{Loop, kill_until_done};

/// An endpoint that must not be asked.
pub struct UnaskedEndpoint(TcpListener);

impl UnaskedEndpoint {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }

    pub fn assert_unasked(&self) {
        assert!(self.0.accept().is_err(), "AWS was asked");
    }
}

/// A proxy that fills a repository, and what gateways need.
struct ProxyAndGateway {
    site: Site,
    repository: String,
    aws: UnaskedEndpoint,
    proxy: PathBuf,
}

impl ProxyAndGateway {
    /// `keep` snapshots stay in the repository.
    fn new(keep: usize) -> Self {
        let site = Site::new(fastrand::u64(..));
        let repository = format!("file://{}", site.at("repository").display());
        init_repository(&repository);
        let proxy = site.job(&format!(
            "name = 'web'\ninstances = ['{FIRST}']\n[[target]]\nto = '{repository}'\nkeep = {{ last = {keep} }}"
        ));
        Self {
            site,
            repository,
            aws: UnaskedEndpoint::new(),
            proxy,
        }
    }

    /// The proxy copies what the volumes hold now.
    fn run_proxy(&self) -> Value {
        self.site.cycle(&self.proxy, "proxy")
    }

    /// A job file of a gateway; `keys` are those before the targets, `targets` the tables. `{0}` is the folder.
    fn gateway(&self, keys: &str, targets: &str) -> PathBuf {
        let folder = self.site.folder.path().display().to_string();
        let path = self.site.at("gateway.toml");
        let text = format!(
            "name = 'standby'\nfrom = '{}'\n{keys}\n{targets}",
            self.repository
        );
        std::fs::write(&path, text.replace("{0}", &folder)).unwrap();
        path
    }

    /// `ebsfs` with nothing of AWS but an endpoint that must not be asked.
    fn without_aws(&self, args: &[&str]) -> Command {
        let mut command = Command::new(EBSFS);
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ENDPOINT_URL", self.aws.url());
        command
    }

    fn once(&self, job: &Path) -> Command {
        let mut command = self.without_aws(&["replicate", "--once", "--json"]);
        command.arg(job);
        command.args(["--state-dir", self.site.at("gateway").to_str().unwrap()]);
        command
    }

    /// A cycle of the gateway that must succeed; its report.
    fn apply(&self, job: &Path) -> Value {
        let report = serde_json::from_str(&run(&mut self.once(job))).unwrap();
        self.aws.assert_unasked();
        report
    }

    /// Changes these blocks of a volume.
    fn change(&mut self, volume: &str, blocks: impl IntoIterator<Item = u64>) {
        let disk = writable(&self.site.emulator.volume(volume));
        for index in blocks {
            let bytes = content(&self.site.random.u64(..).to_string(), index);
            disk.write_all_at(&bytes, index * BLOCK).unwrap();
        }
    }

    /// Makes a block of a volume zeroes.
    fn zero(&self, volume: &str, index: u64) {
        let disk = writable(&self.site.emulator.volume(volume));
        disk.write_all_at(&vec![0; BLOCK as usize], index * BLOCK)
            .unwrap();
    }

    fn disk(&self, volume: &str) -> PathBuf {
        self.site.emulator.volume(volume)
    }

    fn state(&self) -> Value {
        let path = self.site.at("gateway/job-standby.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }
}

/// Blocks that a cycle fetched of a volume, for all targets together.
pub fn fetched(report: &Value, volume: &str) -> u64 {
    let volumes = report["volumes"].as_array().unwrap();
    let its = volumes.iter().find(|one| one["volume"] == volume);
    its.unwrap()["bytes"].as_u64().unwrap() / BLOCK
}

/// Compares a device with a disk, byte for byte, as far as the disk goes.
fn assert_device(device: &str, disk: &Path) {
    run(Command::new("cmp").args([device, disk.to_str().unwrap()]));
}

/// A device of the size of a volume.
fn device(pair: &ProxyAndGateway, name: &str) -> Loop {
    let file = pair.site.at(name);
    let size = std::fs::metadata(pair.disk("vol-0a")).unwrap().len();
    std::fs::File::create(&file).unwrap().set_len(size).unwrap();
    Loop::over(&file)
}

#[test]
fn a_gateway_copies_new_snapshots_and_never_calls_aws() {
    let mut pair = ProxyAndGateway::new(3);
    let disk = device(&pair, "disk");
    let job = pair.gateway(
        &format!(
            "stage = '{{0}}/stage'\noverwrite = ['{0}']\n[hooks]\nbefore = 'echo before >> {{0}}/hooks'\nafter = 'echo after >> {{0}}/hooks'\non_failure = 'echo failed >> {{0}}/hooks'",
            disk.0
        ),
        &format!(
            "[[target]]\nto = '{{0}}/{{volume}}.raw'\n[[target]]\nto = '{}'\nvolumes = ['vol-0a']",
            disk.0
        ),
    );
    // Nothing is there yet: it waits.
    let report = pair.apply(&job);
    assert_eq!(report["volumes"].as_array().unwrap().len(), 0);
    for round in 0..3 {
        pair.change("vol-0a", [1, 7 + round, BLOCKS - 1]);
        pair.change("vol-0b", [4, 9 + round]);
        if round == 2 {
            pair.zero("vol-0b", 4);
        }
        let proxied = pair.run_proxy();
        pair.site.emulator.reset();
        let report = pair.apply(&job);
        let point = &report["volumes"][0]["targets"][0];
        assert!(point["published"].as_str().unwrap() <= point["arrived"].as_str().unwrap());
        for volume in &VOLUMES[..2] {
            assert_eq!(snapshot_of(&report, volume), snapshot_of(&proxied, volume));
            let image = pair.site.at(&format!("{volume}.raw"));
            assert_same(&image, &pair.disk(volume));
        }
        assert_device(&disk.0, &pair.disk("vol-0a"));
        if round > 0 {
            assert_eq!(fetched(&report, "vol-0b"), [0, 2, 1][round as usize]);
        }
        for call in ["GetSnapshotBlock", "ListChangedBlocks", "DescribeSnapshots"] {
            assert_eq!(pair.site.emulator.count(call), 0, "{call}");
        }
        // Nothing new: nothing is said, and no command is run.
        let report = pair.apply(&job);
        assert_eq!(report["volumes"].as_array().unwrap().len(), 0);
        assert_eq!(report["failures"].as_array().unwrap().len(), 0);
    }
    let hooks = std::fs::read_to_string(pair.site.at("hooks")).unwrap();
    assert_eq!(hooks, "before\nafter\n".repeat(3));
    // Readers leave no record behind.
    let runs = std::fs::read_dir(pair.site.at("repository/runs")).unwrap();
    let runs = runs.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = runs.filter(|name| !name.contains("-fence-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn one_volume_needs_no_job_file() {
    let mut pair = ProxyAndGateway::new(2);
    let image = pair.site.at("one.raw");
    let args = [
        "replicate",
        "--once",
        "--from",
        &pair.repository.clone(),
        "--volume",
        "vol-0b",
        "--to",
        image.to_str().unwrap(),
        "--state-dir",
        pair.site.at("gateway").to_str().unwrap(),
    ]
    .map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // The repository has no snapshot of it yet.
    let (code, said) = ends(&mut pair.without_aws(&args));
    assert!(
        code == 3 && said.contains("has no snapshot of it"),
        "{said}"
    );
    for _ in 0..2 {
        pair.change("vol-0b", [5, 6]);
        let proxied = pair.run_proxy();
        let said = run(&mut pair.without_aws(&args));
        let snapshot = snapshot_of(&proxied, "vol-0b");
        assert_eq!(said, format!("vol-0b {snapshot} {}\n", image.display()));
        assert_same(&image, &pair.disk("vol-0b"));
    }
    pair.aws.assert_unasked();
}

#[test]
fn a_base_that_the_repository_has_removed_costs_only_the_blocks_that_differ() {
    let mut pair = ProxyAndGateway::new(1);
    let other = Emulator::beside(&pair.site.emulator);
    let disk = device(&pair, "disk");
    let job = pair.gateway(
        &format!("volumes = ['vol-0a']\nallow_plaintext = true\noverwrite = ['{}']", disk.0),
        &format!(
            "[[target]]\nto = '{{0}}/{{volume}}.raw'\n[[target]]\nto = '{{0}}/{{volume}}-here.raw'\nin_place = true\n\
             [[target]]\nto = '{}'\n[[target]]\nto = 'ebs:us-east-1'\nendpoint_url = '{}'",
            disk.0,
            other.url()
        ),
    );
    // The new EBS snapshots need credentials.
    let apply = |pair: &ProxyAndGateway| -> Value {
        let mut command = pair.once(&job);
        let credentials = pair.site.emulator.folder.path().join("credentials");
        command
            .env("AWS_SHARED_CREDENTIALS_FILE", credentials)
            .env("AWS_REGION", "us-east-1");
        serde_json::from_str(&run(&mut command)).unwrap()
    };
    pair.change("vol-0a", 20..40);
    pair.run_proxy();
    apply(&pair);
    for round in 0..2 {
        // Two cycles of the proxy: what the gateway's targets hold is not in the repository any more.
        pair.change("vol-0a", [3, 20]);
        pair.run_proxy();
        pair.change("vol-0a", [21, 50 + round]);
        pair.zero("vol-0a", 22 + round);
        let proxied = pair.run_proxy();
        assert_eq!(held_in(&pair.repository, "vol-0a").len(), 1);
        other.reset();
        let report = apply(&pair);
        assert_eq!(fetched(&report, "vol-0a"), 4, "{report}");
        // A zeroed block is written too: there is no other way.
        assert_eq!(other.count("PutSnapshotBlock"), 5);
        assert_same(&pair.site.at("vol-0a.raw"), &pair.disk("vol-0a"));
        assert_same(&pair.site.at("vol-0a-here.raw"), &pair.disk("vol-0a"));
        assert_device(&disk.0, &pair.disk("vol-0a"));
        let copies = described(&other);
        let newest = copies["vol-ffffffff"].last().unwrap();
        assert_eq!(
            newest["tags"]["ebsfs:source"],
            snapshot_of(&proxied, "vol-0a")
        );
        let image = pair.site.at("of-account.raw");
        run(&mut other.ebsfs(&["sync", id(newest), image.to_str().unwrap()]));
        assert_same(&image, &pair.disk("vol-0a"));
        std::fs::remove_file(&image).unwrap();
    }
    pair.aws.assert_unasked();
}

#[test]
fn a_gateway_that_is_killed_at_any_moment_writes_no_wrong_byte() {
    let enough = std::env::var("EBSFS_KILLS").map_or(4, |kills| kills.parse().unwrap());
    let mut pair = ProxyAndGateway::new(1);
    let job = pair.gateway(
        "volumes = ['vol-0a', 'vol-0b']\nrate = '12MiB'\nstage = '{0}/stage'",
        "[[target]]\nto = '{0}/{volume}.raw'\nin_place = true\n[[target]]\nto = '{0}/{volume}-new.raw'",
    );
    pair.run_proxy();
    pair.apply(&job);
    let (mut kills, mut cycles) = (0, 0);
    while kills < enough {
        let blocks: Vec<u64> = (0..8).map(|_| pair.site.random.u64(0..60)).collect();
        pair.change("vol-0a", blocks.clone());
        pair.change("vol-0b", blocks.into_iter().take(3));
        pair.run_proxy();
        kills += kill_until_done(|| pair.once(&job), 900, || {});
        cycles += 1;
        for volume in &VOLUMES[..2] {
            for name in [format!("{volume}.raw"), format!("{volume}-new.raw")] {
                assert_same(&pair.site.at(&name), &pair.disk(volume));
            }
        }
    }
    println!("{kills} kills, {cycles} cycles");
}

#[test]
fn a_half_applied_snapshot_that_was_removed_becomes_the_newest_one_without_a_full_copy() {
    let mut pair = ProxyAndGateway::new(1);
    let job = pair.gateway(
        "volumes = ['vol-0a']\nrate = '4MiB'",
        "[[target]]\nto = '{0}/{volume}.raw'\nin_place = true",
    );
    pair.change("vol-0a", 100..140);
    pair.run_proxy();
    pair.apply(&job);
    let image = pair.site.at("vol-0a.raw");
    pair.change("vol-0a", 0..20);
    pair.run_proxy();
    let mut child = pair
        .once(&job)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the middle of a copy", || {
        assert!(child.try_wait().unwrap().is_none(), "it was to be killed");
        (0..20).any(|index| {
            let at = |path: &Path| read_at(path, index * BLOCK, 64);
            at(&image) == at(&pair.disk("vol-0a"))
        })
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!is_same(&image, &pair.disk("vol-0a")));
    // The base and the snapshot under way are both removed.
    pair.change("vol-0a", [2, 70]);
    pair.run_proxy();
    let (code, said) = ends(&mut pair.once(&job));
    assert!(code == 3 && said.contains("has no snapshot"), "{said}");
    let report = pair.apply(&job);
    // What the killed run may have written, and what differs.
    assert_eq!(fetched(&report, "vol-0a"), 21, "{report}");
    assert_same(&image, &pair.disk("vol-0a"));
}

#[test]
fn a_gateway_removes_from_a_repository_only_what_it_has_copied() {
    let mut pair = ProxyAndGateway::new(4);
    let second = format!("file://{}", pair.site.at("second").display());
    init_repository(&second);
    // A person's own copy of a snapshot of the same volume.
    pair.run_proxy();
    let own = held_in(&pair.repository, "vol-0a").pop().unwrap();
    let source = format!("{}#{own}", pair.repository);
    run(&mut pair.without_aws(&["sync", &source, &second]));
    let job = pair.gateway(
        "volumes = ['vol-0a']",
        &format!("[[target]]\nto = '{second}'\nkeep = {{ last = 2 }}"),
    );
    let mut proxied = Vec::new();
    for round in 0..4 {
        pair.change("vol-0a", [round]);
        let report = pair.run_proxy();
        proxied.push(snapshot_of(&report, "vol-0a"));
        let report = pair.apply(&job);
        assert_eq!(fetched(&report, "vol-0a"), 1, "round {round}");
    }
    let held = held_in(&second, "vol-0a");
    assert_eq!(held, [own, proxied[2].clone(), proxied[3].clone()]);
    // The source keeps what is the proxy's.
    assert_eq!(held_in(&pair.repository, "vol-0a").len(), 4);
    assert_in_repository(&second, &proxied[3], &pair.disk("vol-0a"));
}

#[test]
fn a_swapped_device_and_a_foreign_write_are_refused_and_the_others_are_served() {
    let mut pair = ProxyAndGateway::new(3);
    let (right, wrong) = (device(&pair, "right"), device(&pair, "wrong"));
    let link = pair.site.at("link");
    symlink(&right.0, &link).unwrap();
    let job = pair.gateway(
        &format!("volumes = ['vol-0a', 'vol-0b']\noverwrite = ['{}']", right.0),
        "[[target]]\nto = '{0}/{volume}.raw'\nin_place = true\n[[target]]\nto = '{0}/link'\nvolumes = ['vol-0a']",
    );
    pair.run_proxy();
    pair.apply(&job);
    std::fs::remove_file(&link).unwrap();
    symlink(&wrong.0, &link).unwrap();
    let foreign = pair.site.at("vol-0b.raw");
    writable(&foreign)
        .write_all_at(b"foreign", 77 * BLOCK)
        .unwrap();
    pair.change("vol-0a", [7]);
    pair.change("vol-0b", [8]);
    pair.run_proxy();
    let output = pair.once(&job).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(11), "{said}");
    assert!(
        said.contains("something else has written 1 of its blocks"),
        "{said}"
    );
    assert!(said.contains("content unknown"), "{said}");
    assert_eq!(read_at(&foreign, 77 * BLOCK, 7), b"foreign");
    let size = std::fs::metadata(pair.site.at("wrong")).unwrap().len();
    let untouched = pair.site.at("untouched");
    std::fs::File::create(&untouched)
        .unwrap()
        .set_len(size)
        .unwrap();
    assert_device(&wrong.0, &untouched);
    assert_same(&pair.site.at("vol-0a.raw"), &pair.disk("vol-0a"));
    // What failed is tried again, whether there is a new snapshot or not.
    std::fs::remove_file(&link).unwrap();
    symlink(&right.0, &link).unwrap();
    writable(&foreign)
        .write_all_at(&[0; 7], 77 * BLOCK)
        .unwrap();
    pair.apply(&job);
    assert_device(&right.0, &pair.disk("vol-0a"));
    assert_same(&foreign, &pair.disk("vol-0b"));
}
