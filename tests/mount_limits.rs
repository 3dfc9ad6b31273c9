//! Limits of a mount's process: a limit that is too low is an error before the mount; and the memory has a bound.

use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use nix::unistd::{Whence, lseek};

use crate::support::*;

/// Runs `ebsfs mount` under a limit of the shell; its exit code and message.
fn mount_under(limit: &str, options: &str) -> (i32, String) {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0]);
    let snapshot = emulator.snapshot("vol-0a");
    let point = tempfile::tempdir().unwrap();
    let line = format!(
        "{limit}; exec {EBSFS} mount {options} {} {snapshot}",
        point.path().display()
    );
    let mut shell = emulator.command("timeout");
    let found = ends(shell.args(["8", "bash", "-c", &line]));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(point.path().to_str().unwrap()), "{limit}");
    found
}

#[test]
fn too_few_descriptors_are_refused_before_anything_is_mounted() {
    for limit in ["ulimit -n 12", "ulimit -n 30"] {
        let (code, message) = mount_under(limit, "");
        assert_eq!(code, 1, "{limit}: {message}");
        assert!(message.contains("descriptors"), "{limit}: {message}");
    }
}

#[test]
fn too_little_memory_is_refused_before_anything_is_mounted() {
    // 8 GiB for blocks do not fit into 4 GiB; the stacks and heaps of threads, which come first, do.
    let (code, message) = mount_under("ulimit -v 4194304", "--memory 8GiB");
    assert_eq!(code, 1, "{message}");
    assert!(message.contains("memory"), "{message}");
}

#[test]
fn too_few_threads_are_refused_before_anything_is_mounted() {
    let group =
        std::path::Path::new("/sys/fs/cgroup").join(format!("ebsfs-test-{}", std::process::id()));
    if std::fs::create_dir(&group).is_err() || !group.join("pids.max").exists() {
        let _ = std::fs::remove_dir(&group);
        eprintln!("left out: no cgroup of version 2 with a pids controller");
        return;
    }
    std::fs::write(group.join("pids.max"), "8").unwrap();
    let (code, message) = mount_under(&format!("echo $$ > {}/cgroup.procs", group.display()), "");
    let _ = std::fs::remove_dir(&group);
    assert_eq!(code, 1, "{message}");
    assert!(message.contains("threads"), "{message}");
}

#[test]
fn asynchronous_direct_reads_are_all_in_flight_at_once() {
    const DEPTH: u64 = 16;
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..64);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    let disk = mount.disk(&snapshot);
    for mode in ["native", "io_uring"] {
        emulator.set("latency_ms=3000");
        emulator.reset();
        let mut qemu = Command::new("qemu-io");
        qemu.args(["-r", "-f", "raw", "-t", "none", "-i", mode]);
        // Every fourth block: no reader goes on from block to block.
        for number in 0..DEPTH {
            let block = if mode == "native" {
                number * 4
            } else {
                number * 4 + 2
            };
            qemu.args(["-c", &format!("aio_read {} 4096", block * BLOCK)]);
        }
        qemu.args(["-c", "aio_flush"])
            .arg(&disk)
            .stdout(Stdio::null());
        let mut reading = qemu.spawn().unwrap();
        // No answer can have come yet when the last one is asked for.
        wait_for("all requests", || {
            assert!(
                reading.try_wait().unwrap().is_none(),
                "{mode}: {} requests",
                emulator.gets()
            );
            emulator.gets() >= DEPTH
        });
        emulator.set("latency_ms=0");
        assert!(reading.wait().unwrap().success(), "{mode}");
    }
}

#[test]
fn the_maps_of_many_snapshots_have_one_bound() {
    const SNAPSHOTS: u64 = 16;
    const SEEKS: u64 = 1500;
    let mut args = Vec::new();
    let ids: Vec<String> = (0..SNAPSHOTS).map(|n| format!("snap-0a{n:x}")).collect();
    for id in &ids {
        args.extend(["--synthetic".to_owned(), format!("{id}:65536:20000")]);
    }
    // Describing one counts its blocks.
    args.extend(
        [
            "--set",
            "list_rps=100000",
            "--set",
            "deny=ec2:DescribeSnapshots",
        ]
        .map(str::to_owned),
    );
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let emulator = Emulator::with(&args);
    let mount = emulator.mount(&["--lazy", "--memory", "64MiB", "--max-list-rps", "10000"]);
    let read_some = &|id: &String| {
        let file = open(&mount.disk(id));
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..SEEKS {
            // Each seek lists a page around its place.
            let at = rng.u64(0..(60 << 40) / BLOCK) * BLOCK;
            lseek(&file, i64::try_from(at).unwrap(), Whence::SeekData).unwrap();
        }
        let mut tail = [0; 8];
        let data = lseek(&file, 1 << 40, Whence::SeekData)
            .unwrap()
            .cast_unsigned();
        file.read_exact_at(&mut tail, data + BLOCK - 8).unwrap();
        assert_eq!(tail, (data / BLOCK).to_le_bytes(), "{id}");
    };
    std::thread::scope(|scope| {
        for some in ids.chunks(4) {
            scope.spawn(move || some.iter().for_each(read_some));
        }
    });
    // What was forgotten is listed again.
    read_some(&ids[0]);
    let peak = mount.peak_memory() >> 20;
    println!("{SNAPSHOTS} snapshots of 64 TiB, {SEEKS} places each: {peak} MiB");
    assert!(peak < 64 + 200, "{peak} MiB");
}
