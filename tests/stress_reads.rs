//! Random reads in every way that the kernel has, at once: each byte is compared with the raw file, or by fio with the
//! checksum that fio wrote into the volume.
//!
//! `EBSFS_STRESS_SECONDS` (4) is the time to read; `EBSFS_STRESS_SEED` repeats a run.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, SpliceFFlags, posix_fadvise, splice};
use nix::sys::sendfile::sendfile;

use crate::stress::Random;
use crate::support::*;

const BLOCKS: u64 = 2048;
const SIZE: u64 = BLOCKS * BLOCK;
/// The longest read: more than one FUSE request takes, whatever the kernel's limit.
const LONGEST: usize = 1_300_000;
/// What fio reads: 64 MiB at the beginning, all held.
const FIO_SIZE: &str = "64m";

/// One way to read: fills the buffer from a place in the file, and gives how many bytes there were.
type Way = fn(&File, u64, &mut [u8]) -> usize;

fn pread(image: &File, at: u64, buffer: &mut [u8]) -> usize {
    image.read_at(buffer, at).unwrap()
}

/// As `pread`, with pages of the kernel's cache dropped first.
fn pread_cold(image: &File, at: u64, buffer: &mut [u8]) -> usize {
    let (from, len) = (i64::try_from(at).unwrap(), buffer.len() as i64);
    posix_fadvise(image, from, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    pread(image, at, buffer)
}

/// Past the page cache, in sectors, into memory that begins with a page.
fn direct(image: &File, at: u64, buffer: &mut [u8]) -> usize {
    let len = buffer.len().next_multiple_of(512);
    let (start, skip) = (at / 512 * 512, (at % 512) as usize);
    let mut pages = vec![0u8; len + 512 + 4096];
    let first = pages.as_ptr().align_offset(4096);
    let sectors = &mut pages[first..first + len + 512];
    let read = image.read_at(sectors, start).unwrap();
    let got = read.saturating_sub(skip).min(buffer.len());
    buffer[..got].copy_from_slice(&sectors[skip..skip + got]);
    got
}

/// Through a pipe, which takes pages of the cache as they are.
fn spliced(image: &File, at: u64, buffer: &mut [u8]) -> usize {
    let (mut out, into) = std::io::pipe().unwrap();
    let (mut from, mut got) = (i64::try_from(at).unwrap(), 0);
    while got < buffer.len() {
        let want = (buffer.len() - got).min(64 * 1024);
        let moved = splice(
            image,
            Some(&mut from),
            into.as_fd(),
            None,
            want,
            SpliceFFlags::empty(),
        );
        let moved = moved.unwrap();
        if moved == 0 {
            break;
        }
        out.read_exact(&mut buffer[got..got + moved]).unwrap();
        got += moved;
    }
    got
}

/// Into another file, as a web server sends one.
fn sent(image: &File, at: u64, buffer: &mut [u8]) -> usize {
    let into = tempfile::tempfile().unwrap();
    let (mut from, mut got) = (i64::try_from(at).unwrap(), 0);
    while got < buffer.len() {
        match sendfile(&into, image, Some(&mut from), buffer.len() - got).unwrap() {
            0 => break,
            moved => got += moved,
        }
    }
    into.read_exact_at(&mut buffer[..got], 0).unwrap();
    got
}

/// Compares random ranges until the time is over, the end of the file and holes among them; gives how many.
fn compare(raw: &File, image: &File, way: Way, seed: u64, until: Instant) -> u64 {
    let mut random = Random(seed);
    let (mut expected, mut got) = (vec![0; LONGEST], vec![0; LONGEST]);
    let mut reads = 0;
    while Instant::now() < until {
        let at = match random.below(16) {
            0 => SIZE - 1 - random.below(100_000),
            1 => random.below(BLOCKS) * BLOCK,
            2..5 => random.below(SIZE),
            // Mostly where others read too.
            _ => random.below(96 << 20),
        };
        let len = match random.below(8) {
            0 => 1 + random.below(LONGEST as u64) as usize,
            1 => 4096,
            _ => 1 + random.below(10_000) as usize,
        };
        let read = way(image, at, &mut got[..len]);
        let there = len.min((SIZE - at) as usize);
        assert_eq!(read, there, "seed {seed}: bytes read at {at}");
        raw.read_exact_at(&mut expected[..there], at).unwrap();
        assert!(
            got[..there] == expected[..there],
            "seed {seed}: {len} bytes at {at}"
        );
        reads += 1;
    }
    reads
}

/// fio on a file, which is killed after a minute more than it may take.
fn fio(seconds: u64) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &(seconds + 60).to_string(), "fio"]);
    command.args(["--bs=4k", "--size", FIO_SIZE, "--verify=crc32c"]);
    command.args(["--verify_state_save=0", "--minimal"]);
    command.stdout(Stdio::null());
    command
}

#[test]
fn random_reads_of_every_kind_at_once_equal_the_raw_file() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seconds = number("EBSFS_STRESS_SECONDS").unwrap_or(4);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let seed = number("EBSFS_STRESS_SEED").unwrap_or(u64::from(now.subsec_nanos()));
    println!("EBSFS_STRESS_SEED={seed}");

    let emulator = Emulator::start();
    let held = (128..BLOCKS).filter(|block| block % 16 < 3);
    let volume = emulator.make_volume("vol-0a", BLOCKS, held);
    run(fio(60)
        .args(["--name=fill", "--rw=write", "--do_verify=0", "--filename"])
        .arg(&volume));
    let snapshot = emulator.snapshot("vol-0a");
    // Less memory than the volume takes: blocks are dropped and fetched again all the time.
    let mount = emulator.mount(&["--memory", "32MiB", &snapshot]);
    let disk = mount.disk(&snapshot);

    let ways: [(&str, i32, Way); 8] = [
        ("pread", 0, pread),
        ("pread", 0, pread),
        ("pread, cold", 0, pread_cold),
        ("O_DIRECT", libc::O_DIRECT, direct),
        ("O_DIRECT", libc::O_DIRECT, direct),
        ("splice", 0, spliced),
        ("sendfile", 0, sent),
        ("splice, O_DIRECT", libc::O_DIRECT, spliced),
    ];
    let mut verified = fio(seconds);
    verified
        .args(["--readonly", "--rw=randread", "--time_based", "--filename"])
        .arg(&disk)
        .args([format!("--runtime={seconds}"), format!("--randseed={seed}")]);
    for (name, args) in [
        ("mmap", &["--ioengine=mmap"][..]),
        ("uring", &["--ioengine=io_uring", "--iodepth=8"]),
        (
            "uring-direct",
            &["--ioengine=io_uring", "--iodepth=16", "--direct=1"],
        ),
        (
            "aio-direct",
            &["--ioengine=libaio", "--iodepth=16", "--direct=1"],
        ),
        ("preadv2", &["--ioengine=pvsync2"]),
    ] {
        verified
            .args([&format!("--name={name}"), "--thread"])
            .args(args);
    }
    let until = Instant::now() + Duration::from_secs(seconds);
    thread::scope(|scope| {
        let by_fio = scope.spawn(|| run(&mut verified));
        let ours: Vec<_> = (1u64..)
            .zip(ways)
            .map(|(thread, (name, flags, way))| {
                let (volume, disk) = (&volume, &disk);
                let reading = scope.spawn(move || {
                    let mut options = File::options();
                    let image = options.read(true).custom_flags(flags).open(disk).unwrap();
                    let seed = seed.wrapping_mul(31).wrapping_add(thread);
                    compare(&open(volume), &image, way, seed, until)
                });
                (name, reading)
            })
            .collect();
        for (name, reading) in ours {
            let reads = reading.join().unwrap();
            println!("{name}: {reads} reads");
            assert!(reads > 0, "{name}");
        }
        by_fio.join().unwrap();
    });
    println!("{} gets", emulator.gets());
}
