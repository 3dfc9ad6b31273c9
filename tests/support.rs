//! What tests stand on: an emulator in a folder of its own, the mounted program, commands that must succeed.

mod holders;
pub mod line;
#[cfg(feature = "ec2")]
pub mod namespaces;
pub mod s3;

pub use holders::Holders;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::unistd::Whence;
use serde_json::Value;
use tempfile::TempDir;

pub const BLOCK: u64 = 512 * 1024;
pub const EBSFS: &str = env!("CARGO_BIN_EXE_ebsfs");

/// An emulator of its own process: its CPU and memory are not those of the test.
pub struct Emulator {
    pub folder: TempDir,
    address: SocketAddr,
    process: Child,
}

impl Emulator {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Quotas out of the way, unless `args` sets them.
    pub fn with(args: &[&str]) -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), args)
    }

    /// Another account's EBS, which takes the same credentials.
    pub fn beside(other: &Self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let credentials = other.folder.path().join("credentials");
        std::fs::copy(credentials, folder.path().join("credentials")).unwrap();
        Self::in_folder(folder, &[])
    }

    /// The snapshots that there are, oldest first, with their states.
    pub fn made(&self) -> Vec<(String, String)> {
        let listed: Value = serde_json::from_str(&run(&mut self.ebsfs(&["ls", "--json"]))).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let listed = listed.as_array().unwrap().iter();
        listed
            .map(|snapshot| (text(&snapshot["id"]), text(&snapshot["state"])))
            .collect()
    }

    fn in_folder(folder: TempDir, args: &[&str]) -> Self {
        let (process, address) = Self::serve(folder.path(), args);
        Self {
            folder,
            address,
            process,
        }
    }

    /// Kills it: from now on its address refuses connections.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Serves the same folder at another address, after [`Self::kill`].
    #[cfg(feature = "ec2")]
    pub fn start_again(&mut self) {
        self.kill();
        (self.process, self.address) = Self::serve(self.folder.path(), &[]);
    }

    /// Its process.
    #[cfg(feature = "ec2")]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    fn serve(folder: &Path, args: &[&str]) -> (Child, SocketAddr) {
        let mut process = Command::new(EBSFS)
            .arg("emulator")
            .arg(folder)
            .args(["--listen", "127.0.0.1:0"])
            .args([
                "--set",
                "get_rps=100000",
                "--set",
                "get_rps_snapshot=100000",
            ])
            .args([
                "--set",
                "put_rps=100000",
                "--set",
                "put_rps_snapshot=100000",
            ])
            .args(["--set", "list_rps=1000"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .split_once("http://")
            .and_then(|(_, rest)| rest.split_once(' '))
            .unwrap_or_else(|| panic!("emulator said {line:?}"))
            .0;
        (process, address.parse().unwrap())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where a volume's file is; a test writes it as it likes.
    pub fn volume(&self, id: &str) -> PathBuf {
        self.folder.path().join("volumes").join(format!("{id}.raw"))
    }

    /// A volume of so many blocks, these of them filled with bytes that tell their place.
    pub fn make_volume(
        &self,
        id: &str,
        blocks: u64,
        filled: impl IntoIterator<Item = u64>,
    ) -> PathBuf {
        let path = self.volume(id);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(blocks * BLOCK).unwrap();
        for index in filled {
            file.write_all_at(&content(id, index), index * BLOCK)
                .unwrap();
        }
        path
    }

    /// CreateSnapshot of a volume.
    pub fn snapshot(&self, volume: &str) -> String {
        let reply = self.post(&format!("volumes/{volume}/snapshot"));
        reply["snapshot_id"].as_str().unwrap().to_owned()
    }

    /// Sets switches: `latency_ms=15&reset=0.02`.
    pub fn set(&self, switches: &str) {
        self.post(&format!("switches?{switches}"));
    }

    pub fn post(&self, path: &str) -> Value {
        self.ask("POST", path)
    }

    fn ask(&self, method: &str, path: &str) -> Value {
        self.control().ask(method, path)
    }

    /// What sets its switches, for those that outlive a borrow.
    pub fn control(&self) -> Control {
        Control(self.address)
    }

    /// Calls of this name since the last [`Self::reset`].
    pub fn count(&self, call: &str) -> u64 {
        self.ask("GET", "counters")[call].as_u64().unwrap_or(0)
    }

    pub fn gets(&self) -> u64 {
        self.count("GetSnapshotBlock")
    }

    pub fn lists(&self) -> u64 {
        self.count("ListSnapshotBlocks")
    }

    pub fn reset(&self) {
        self.post("counters/reset");
    }

    /// A command with the emulator's endpoint and credentials and nothing else of AWS.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("AWS_ENDPOINT_URL", self.url())
            .env("AWS_REGION", "us-east-1")
            .env(
                "AWS_SHARED_CREDENTIALS_FILE",
                self.folder.path().join("credentials"),
            )
            .env("AWS_CONFIG_FILE", "/nonexistent")
            .env("AWS_EC2_METADATA_DISABLED", "true");
        command
    }

    /// The id and the secret of its one access key.
    pub fn keys(&self) -> (String, String) {
        let shown = std::fs::read_to_string(self.folder.path().join("credentials")).unwrap();
        let value = |name: &str| {
            let line = shown.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim_start_matches([' ', '=']).to_owned()
        };
        (value("aws_access_key_id"), value("aws_secret_access_key"))
    }

    /// `ebsfs` with these arguments.
    pub fn ebsfs(&self, args: &[&str]) -> Command {
        let mut command = self.command(EBSFS);
        command.args(args);
        command
    }

    pub fn mount(&self, args: &[&str]) -> Mount {
        Mount::start(self.ebsfs(&["mount"]), args)
    }
}

/// The control endpoint of an emulator.
#[derive(Clone, Copy)]
pub struct Control(SocketAddr);

impl Control {
    /// Sets switches: `latency_ms=15&reset=0.02`.
    pub fn set(&self, switches: &str) {
        self.ask("POST", &format!("switches?{switches}"));
    }

    fn ask(&self, method: &str, path: &str) -> Value {
        let mut stream = TcpStream::connect(self.0).unwrap();
        write!(
            stream,
            "{method} /_emulator/{path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        )
        .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {reply}");
        serde_json::from_str(body).unwrap()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The mounted program; dropping it unmounts and, if it comes to that, kills.
pub struct Mount {
    pub point: TempDir,
    pub process: Child,
    log: Arc<Mutex<String>>,
}

impl Mount {
    /// Runs `command MOUNTPOINT ARGS` and waits until it says that it has mounted.
    pub fn start(command: Command, args: &[&str]) -> Self {
        Self::start_at(tempfile::tempdir().unwrap(), command, args)
    }

    /// As `start`, at this mountpoint.
    pub fn start_at(point: TempDir, mut command: Command, args: &[&str]) -> Self {
        let mut process = command
            .arg(point.path())
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut line = String::new();
            while stderr.read_line(&mut line).is_ok_and(|n| n > 0) {
                kept.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        let mut mount = Self {
            point,
            process,
            log,
        };
        wait_for("the mount", || {
            let ended = mount.process.try_wait().unwrap();
            ended.is_some() || mount.log_so_far().contains("mounted at")
        });
        // The last lines of one that has ended are still on their way.
        if mount.process.try_wait().unwrap().is_some() {
            std::thread::sleep(Duration::from_millis(200));
        }
        assert!(mount.log().contains("mounted at"), "{}", mount.log());
        mount
    }

    /// The log so far. Lines come by a thread of the program and one of this test: those of what just happened get a moment.
    pub fn log(&self) -> String {
        std::thread::sleep(Duration::from_millis(100));
        self.log_so_far()
    }

    fn log_so_far(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The image of a snapshot.
    pub fn disk(&self, snapshot: &str) -> PathBuf {
        self.point
            .path()
            .join("snapshots")
            .join(snapshot)
            .join("disk.raw")
    }

    /// The folder of what differs between two snapshots.
    pub fn pair(&self, base: &str, head: &str) -> PathBuf {
        self.point
            .path()
            .join("changes")
            .join(format!("{base}..{head}"))
    }

    pub fn signal(&self, name: &str) {
        run(Command::new("kill").args([&format!("-{name}"), &self.process.id().to_string()]));
    }

    /// Waits for the program to end and gives its exit code.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > end {
                panic!("still running after {limit:?}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The most memory that the process has had, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = Command::new("fusermount3")
                .arg("-uzq")
                .arg(self.point.path())
                .status();
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the mount:\n{}", self.log());
        }
    }
}

/// The bytes of a block that tell volume and place: no two blocks are alike, no two words of a block.
pub fn content(volume: &str, index: u64) -> Vec<u8> {
    let mut state = volume.bytes().fold(
        index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3),
    );
    let mut bytes = Vec::with_capacity(BLOCK as usize);
    while bytes.len() < BLOCK as usize {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Asserts that two files are the same, byte for byte. Of a mount and of a device every byte is read, holes too.
pub fn assert_same(a: &Path, b: &Path) {
    match is_plain(a) && is_plain(b) {
        true => assert!(is_same(a, b), "{} and {} differ", a.display(), b.display()),
        false => drop(run(Command::new("cmp").arg(a).arg(b))),
    }
}

/// Whether a file is of a filesystem of the kernel: it knows its holes.
fn is_plain(path: &Path) -> bool {
    let on = nix::sys::statfs::statfs(path).unwrap().filesystem_type();
    path.metadata().unwrap().is_file() && on != nix::sys::statfs::FUSE_SUPER_MAGIC
}

/// Compares two files byte for byte. What is a hole in both is not read.
pub fn is_same(a: &Path, b: &Path) -> bool {
    let (one, two) = (open(a), open(b));
    let length = one.metadata().unwrap().len();
    if length != two.metadata().unwrap().len() {
        return false;
    }
    let data_after = |file: &std::fs::File, at: u64| {
        nix::unistd::lseek(file, at.cast_signed(), Whence::SeekData)
            .map_or(length, i64::cast_unsigned)
    };
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        at = data_after(&one, at).min(data_after(&two, at));
        let size = left.len().min((length - at) as usize);
        if size == 0 {
            return true;
        }
        one.read_exact_at(&mut left[..size], at).unwrap();
        two.read_exact_at(&mut right[..size], at).unwrap();
        if left[..size] != right[..size] {
            return false;
        }
        at += size as u64;
    }
}

/// Makes a repository in a folder.
pub fn init_repository(url: &str) {
    run(Command::new(EBSFS).args(["repository", "init", url]));
}

/// Runs a command that must succeed; its standard output.
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a shell line that must succeed.
pub fn sh(line: &str) -> String {
    run(Command::new("bash").args(["-euo", "pipefail", "-c", line]))
}

/// Exit code and stderr of a command that must end within 10 seconds.
pub fn ends(command: &mut Command) -> (i32, String) {
    ends_within(Duration::from_secs(10), command)
}

/// Exit code and stderr of a command that must end in this time.
pub fn ends_within(limit: Duration, command: &mut Command) -> (i32, String) {
    let start = Instant::now();
    let output: Output = command.output().unwrap();
    let took = start.elapsed();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(took < limit, "{command:?} took {took:?}: {said}");
    (output.status.code().unwrap_or(-1), said)
}

/// Waits up to a minute for something to become true: a reader can meet several silent requests in a row, 6 seconds each.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A file opened for reading.
pub fn open(path: &Path) -> std::fs::File {
    std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A file opened to be written into.
pub fn writable(path: &Path) -> std::fs::File {
    let file = std::fs::OpenOptions::new().write(true).open(path);
    file.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Reads exactly so many bytes at a place.
pub fn read_at(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    open(path).read_exact_at(&mut bytes, offset).unwrap();
    bytes
}
