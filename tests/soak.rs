//! A mount that lives for weeks, in fast motion: credentials that expire, tokens that expire, connections that vanish.

use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::*;

/// Seconds of the run; a release is soaked for hours.
fn duration() -> Duration {
    let seconds = std::env::var("EBSFS_SOAK_SECONDS");
    Duration::from_secs(seconds.map_or(120, |seconds| seconds.parse().unwrap()))
}

/// Resident memory of a process, in bytes.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib * 1024
}

#[test]
fn readers_see_no_error_while_sessions_tokens_and_connections_expire_and_memory_stays_flat() {
    const HELD: u64 = 300;
    let emulator = Emulator::with(&["--set", "token_life_s=60"]);
    emulator.make_volume("vol-0a", 2048, 0..HELD);
    let snapshot = emulator.snapshot("vol-0a");
    let folder = emulator.folder.path();
    let (id, secret) = emulator.keys();
    // Each run of the program is a new session, whose end it does not announce.
    let program = folder.join("session");
    let script = format!(
        "#!/bin/sh\necho '{{\"Version\":1,\"AccessKeyId\":\"{id}\",\"SecretAccessKey\":\"{secret}\",\"SessionToken\":\"'$(date +%s%N)'\"}}'\n"
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).unwrap();
    let config = folder.join("config");
    let profile = format!(
        "[profile soak]\nregion = us-east-1\ncredential_process = {}\n",
        program.display()
    );
    std::fs::write(&config, profile).unwrap();
    emulator.set("session_life_s=20&close_idle_s=30");
    let mut command = emulator.ebsfs(&["mount"]);
    command
        .env("AWS_CONFIG_FILE", &config)
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        .env("AWS_PROFILE", "soak");
    let mount = Mount::start(command, &["--memory", "16MiB", &snapshot]);
    let disk = mount.disk(&snapshot);
    let (start, end) = (Instant::now(), Instant::now() + duration());
    let reads = AtomicU64::new(0);
    let mut early = 0;
    thread::scope(|scope| {
        for reader in 0..4u64 {
            let (disk, reads) = (&disk, &reads);
            scope.spawn(move || {
                let file = std::fs::OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_DIRECT)
                    .open(disk)
                    .unwrap();
                let mut random = fastrand::Rng::with_seed(reader);
                let mut page = vec![0; 8192];
                // O_DIRECT wants an aligned buffer: a page inside of this one.
                let skip = page.as_ptr().align_offset(4096);
                while Instant::now() < end {
                    let index = random.u64(..HELD);
                    let at = random.u64(..BLOCK / 4096) * 4096;
                    let page = &mut page[skip..skip + 4096];
                    let read = file.read_at(page, index * BLOCK + at);
                    let since = start.elapsed();
                    assert!(matches!(read, Ok(4096)), "after {since:?}: {read:?}");
                    let expected = &content("vol-0a", index)[at as usize..at as usize + 4096];
                    assert!(*page == *expected, "block {index} at {at}");
                    reads.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(100));
                }
            });
        }
        thread::sleep(duration() / 5);
        early = resident(mount.process.id());
    });
    let (late, reads) = (resident(mount.process.id()), reads.into_inner());
    let lists = emulator.lists();
    println!("{reads} reads, {lists} listings, {early} bytes resident early and {late} late");
    assert!(lists > duration().as_secs() / 60, "tokens were renewed");
    assert!(late < early + (16 << 20), "{early} bytes grew to {late}");
}
