//! Repositories: in a folder, and in an S3 server that this project did not write (rclone's).

mod care;
mod copies;
mod dedup;
mod failing;
mod faults;
mod filesystems;
mod healing;
mod histories;
mod killed;
mod limits;
pub mod proxy;
mod reach;
mod retention;
mod stores;
mod trust;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::changes::Chain;
use crate::support::*;

const KEY: &str = "EXAMPLEKEYID";
const SECRET: &str = "example/secret/of/a/test";

/// A store that a repository is in; a folder of this machine, served or not, so that it can be looked into and damaged.
pub struct Objects {
    folder: TempDir,
    server: Option<(Child, String)>,
    /// The URL that it is asked at, if not where it serves.
    front: Option<String>,
    /// More options of the server.
    options: Vec<String>,
}

impl Objects {
    fn folder() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            server: None,
            front: None,
            options: Vec::new(),
        }
    }

    pub fn s3() -> Self {
        Self::s3_with(Vec::new())
    }

    fn s3_with(options: Vec<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("bucket/replicas")).unwrap();
        let mut objects = Self {
            folder,
            server: None,
            front: None,
            options,
        };
        objects.serve("127.0.0.1:0");
        objects
    }

    fn serve(&mut self, address: &str) {
        let mut process = Command::new(rclone())
            .args(["serve", "s3", "--config", "/dev/null", "--auth-key"])
            .arg(format!("{KEY},{SECRET}"))
            .args(["--addr", address])
            .args(&self.options)
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let shown = lines.find_map(|line| {
            let line = line.unwrap();
            let (_, rest) = line.split_once("://")?;
            Some(rest.split(['/', ']']).next()?.to_owned())
        });
        // Else it stops at a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        self.server = Some((process, shown.unwrap()));
    }

    /// Stops the server; the answer starts it again at the same place.
    fn stop(&mut self) -> String {
        let (mut process, address) = self.server.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        address
    }

    pub fn url(&self) -> String {
        match &self.server {
            Some(_) => "s3://bucket/replicas".into(),
            None => format!("file://{}", self.files().display()),
        }
    }

    /// Where its objects are.
    pub fn files(&self) -> PathBuf {
        let inner = match &self.server {
            Some(_) => "bucket/replicas",
            None => "replicas",
        };
        self.folder.path().join(inner)
    }

    /// Options that reach it as a target.
    pub fn to(&self) -> Vec<String> {
        let Some((_, address)) = &self.server else {
            return Vec::new();
        };
        let url = self.front.clone();
        let url = url.unwrap_or_else(|| format!("http://{address}"));
        let [endpoint, profile, name] = ["--to-endpoint-url", "--to-profile", "store"];
        vec![endpoint.into(), url, profile.into(), name.into()]
    }

    /// Options that reach it as what is read.
    fn from(&self) -> Vec<String> {
        let options = self.to().into_iter();
        options
            .map(|option| option.replace("--to-", "--"))
            .collect()
    }

    /// The emulator's credentials and the store's, each as a profile.
    pub fn credentials(&self, emulator: &Emulator) -> PathBuf {
        let (id, secret) = emulator.keys();
        let path = self.folder.path().join("credentials");
        let text = format!(
            "[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n\
             [store]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
        );
        // Another command may be reading it.
        let new = self
            .folder
            .path()
            .join(format!("credentials-{}", fastrand::u64(..)));
        fs::write(&new, text).unwrap();
        fs::rename(new, &path).unwrap();
        path
    }

    fn ebsfs(&self, emulator: &Emulator, args: &[&str]) -> Command {
        let mut command = emulator.ebsfs(args);
        command.env("AWS_SHARED_CREDENTIALS_FILE", self.credentials(emulator));
        command
    }

    fn sync(&self, emulator: &Emulator, args: &[&str]) -> Command {
        let mut command = self.ebsfs(emulator, &["sync", "--progress", "none"]);
        let state = emulator.folder.path().join("state");
        command.arg("--state-dir").arg(state).args(args);
        command
    }

    /// Makes it a repository, if it is none: in its folder, whatever serves that.
    pub fn init(&self) {
        if !self.files().join("ebsfs-repository.json").exists() {
            init_repository(&format!("file://{}", self.files().display()));
        }
    }

    /// Brings a snapshot into it; it is made a repository first.
    fn bring(&self, emulator: &Emulator, args: &[&str]) -> Command {
        self.init();
        let mut command = self.sync(emulator, args);
        command.arg(self.url()).args(self.to());
        command
    }

    /// Takes a snapshot out of it.
    fn take(&self, emulator: &Emulator, snapshot: &str, args: &[&str]) -> Command {
        let source = format!("{}#{snapshot}", self.url());
        let mut command = self.sync(emulator, &[&source]);
        command.args(args).args(self.from());
        command
    }

    /// `ebsfs repository VERB` on it.
    fn look(&self, emulator: &Emulator, verb: &[&str]) -> Command {
        let mut command = self.ebsfs(emulator, &["repository"]);
        command.args(verb).arg(self.url()).args(self.from());
        command
    }

    fn look_json(&self, emulator: &Emulator, verb: &[&str]) -> Value {
        let said = run(&mut self.look(emulator, &[verb, &["--json"]].concat()));
        serde_json::from_str(&said).unwrap()
    }

    fn remove(&self, emulator: &Emulator, snapshot: &str) {
        let one = format!("{}#{snapshot}", self.url());
        let mut command = self.ebsfs(emulator, &["repository", "rm", &one]);
        run(command.args(self.from()));
    }

    /// Removes all snapshots and sweeps: nothing is left.
    fn empty(&self, emulator: &Emulator) {
        let all = ["prune", "--keep", "0", "--remove-all", "--grace", "0s"];
        run(&mut self.look(emulator, &all));
        // The times of a store are whole seconds.
        std::thread::sleep(std::time::Duration::from_millis(2100));
        run(&mut self.look(emulator, &["prune", "--grace", "0s"]));
        let left = [self.objects("packs"), self.objects("segments")].concat();
        assert!(left.is_empty(), "{left:?}");
    }

    pub fn mount(&self, emulator: &Emulator) -> Mount {
        self.mount_by(self.ebsfs(emulator, &["mount"]))
    }

    fn mount_by(&self, mut command: Command) -> Mount {
        command.arg(self.url()).args(self.from());
        Mount::start(command, &[])
    }

    /// The objects of a folder of the repository, by their paths.
    fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.files().join(folder), &mut found);
        // What is on its way into a folder.
        found.retain(|path| !text(path).contains('#') && !text(path).contains("-fence-"));
        found.sort();
        found
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        if let Some((process, _)) = &mut self.server {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// The program that scripts/test installs, or the one on the path.
fn rclone() -> PathBuf {
    let release = Path::new(EBSFS).parent().unwrap();
    let own = release.with_file_name("clients").join("bin/rclone");
    if own.exists() { own } else { "rclone".into() }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An emulator, and a snapshot of three blocks in it.
fn three_blocks() -> (Emulator, String) {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..3);
    let id = emulator.snapshot("vol-0a");
    (emulator, id)
}

/// Blocks that the newest snapshots of a repository have sent, oldest first.
fn sent(objects: &Objects, emulator: &Emulator) -> Vec<u64> {
    let shown = objects.look_json(emulator, &["ls"]);
    let snapshots = shown.as_array().unwrap().iter();
    snapshots
        .map(|snapshot| snapshot["sent_blocks"].as_u64().unwrap())
        .collect()
}
