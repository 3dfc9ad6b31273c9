//! A service and a network that fail: the same bytes, or an error; never other bytes.

use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::support::*;

#[test]
fn a_full_read_through_every_fault_at_once_is_identical_and_no_reader_sees_an_error() {
    let emulator = Emulator::start();
    let held = (0..400).chain((500..1500).step_by(3)).chain([2047]);
    let volume = emulator.make_volume("vol-0a", 2048, held);
    let (first, second) = (emulator.snapshot("vol-0a"), emulator.snapshot("vol-0a"));
    let mount = emulator.mount(&["-vv", &first, &second]);
    let read_and_expire = |snapshot: &str| {
        emulator.reset();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| assert_same(&volume, &mount.disk(snapshot)));
            wait_for("the middle", || emulator.gets() > 300);
            emulator.post("expire-tokens");
            let gets = emulator.gets();
            reader.join().unwrap();
            assert!(gets < emulator.gets(), "tokens expired in the middle");
        });
    };
    let throttle = "get_rps=200&get_rps_snapshot=200";
    emulator.set(&format!(
        "error_5xx=0.02&reset=0.02&stall=0.02&truncate=0.02&corrupt=0.02&empty_page=0.3&nulls=0.5\
         &bare_last_page=0.5&latency_ms=3&{throttle}",
    ));
    read_and_expire(&first);
    // Without stalls, which are slow, the limit is reached.
    emulator.set("stall=0&latency_ms=0");
    read_and_expire(&second);
    assert!(emulator.count("throttled") > 0);
    let log = mount.log();
    assert!(
        log.contains(&format!("TRACE ebs:GetSnapshotBlock {first} block 7")),
        "each request is in the log of -vv: {log}"
    );
    assert!(log.contains("SHA-256 is"), "corruption was met: {log}");
    assert!(
        log.contains("listing again"),
        "expired tokens were met: {log}"
    );
    // Tokens are 95 characters without a blank: none may be in the log, however much it says.
    let long = log.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'));
    assert!(
        long.map(str::len).max().unwrap_or(0) < 80,
        "a token in the log: {log}"
    );
}

/// Reads the image to its end and says whether it could, checking every byte that it got.
fn read_all(volume: &std::path::Path, disk: &std::path::Path) -> Result<(), i32> {
    let (volume, disk) = (open(volume), open(disk));
    let mut expected = vec![0; 1 << 20];
    let mut got = vec![0; 1 << 20];
    for offset in (0..volume.metadata().unwrap().len()).step_by(1 << 20) {
        volume.read_exact_at(&mut expected, offset).unwrap();
        disk.read_exact_at(&mut got, offset)
            .map_err(|error| error.raw_os_error().unwrap_or(0))?;
        assert!(got == expected, "wrong bytes in the mebibyte at {offset}");
    }
    Ok(())
}

#[test]
fn a_dropped_or_doubled_page_of_a_listing_is_an_error_and_never_zeroes() {
    for fault in ["drop_page=1", "double_page=1"] {
        let emulator = Emulator::start();
        let volume = emulator.make_volume("vol-0a", 2048, 0..500);
        let snapshot = emulator.snapshot("vol-0a");
        let mount = emulator.mount(&[&snapshot]);
        emulator.set(fault);
        assert_eq!(
            read_all(&volume, &mount.disk(&snapshot)),
            Err(libc::EIO),
            "{fault}"
        );
        let log = mount.log();
        assert!(
            log.contains("the listing contradicts itself"),
            "{fault}: {log}"
        );
        // It stays an error: what was listed is not trusted any more.
        emulator.set(&fault.replace("=1", "=0"));
        let error = open(&mount.disk(&snapshot))
            .read_exact_at(&mut [0; 512], 450 * BLOCK)
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{fault}");
    }
}

#[test]
fn a_count_that_ec2_states_and_two_listings_refute_is_one_warning() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, 0..150);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&["--lazy", &snapshot]);
    // Two blocks fewer in the listing than in the description that the mount gets first.
    assert_eq!(
        std::fs::metadata(mount.disk(&snapshot)).unwrap().len(),
        1 << 30
    );
    let map = emulator
        .folder
        .path()
        .join("snapshots")
        .join(format!("{snapshot}.map"));
    let bytes = std::fs::read(&map).unwrap();
    std::fs::write(&map, &bytes[..bytes.len() - 80]).unwrap();
    emulator.post("reload");
    writable(&volume)
        .write_all_at(&vec![0; 2 * BLOCK as usize], 148 * BLOCK)
        .unwrap();
    assert_same(&volume, &mount.disk(&snapshot));
    let log = mount.log();
    let warning = "two listings agree on 148 blocks, EC2 states 150";
    assert_eq!(log.matches(warning).count(), 1, "{log}");
}

#[test]
fn a_block_whose_token_is_null_is_listed_again_and_not_taken_for_a_hole() {
    let emulator = Emulator::with(&[
        "--set",
        "null_token=0.7",
        "--set",
        "deny=ec2:DescribeSnapshots",
    ]);
    let volume = emulator.make_volume("vol-0a", 2048, (0..350).step_by(2));
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&["--lazy", &snapshot]);
    assert_same(&volume, &mount.disk(&snapshot));
}

#[test]
fn a_block_that_is_stored_wrong_is_an_error_at_once_and_its_neighbours_are_not() {
    let emulator = Emulator::with(&["--set", "rotten_block=5"]);
    emulator.make_volume("vol-0a", 2048, 0..10);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    let file = open(&mount.disk(&snapshot));
    let mut bytes = vec![0; BLOCK as usize];
    for index in [4, 6] {
        file.read_exact_at(&mut bytes, index * BLOCK).unwrap();
        assert_eq!(bytes, content("vol-0a", index));
    }
    let error = file.read_exact_at(&mut bytes, 5 * BLOCK).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let log = mount.log();
    assert!(log.contains("block 5: SHA-256 is"), "{log}");
    assert!(
        emulator.gets() < 60,
        "not tried for 90 seconds: {}",
        emulator.gets()
    );
}

/// A mount whose clock is what the file says, whatever the machine's is.
fn mount_with_clock(emulator: &Emulator, snapshot: &str) -> (Mount, std::path::PathBuf) {
    let library = sh("dpkg -L libfaketime | grep -m1 'libfaketime.so.1$'");
    let clock = emulator.folder.path().join("clock");
    std::fs::write(&clock, "+0").unwrap();
    let mut command = emulator.ebsfs(&["mount"]);
    command
        .env("LD_PRELOAD", library.trim())
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    (Mount::start(command, &[snapshot]), clock)
}

#[test]
fn a_clock_that_jumps_a_day_renews_tokens_before_they_are_refused() {
    let emulator = Emulator::with(&["--set", "token_life_s=90000"]);
    emulator.make_volume("vol-0a", 2048, 0..300);
    let snapshot = emulator.snapshot("vol-0a");
    let (mount, clock) = mount_with_clock(&emulator, &snapshot);
    let read = |index| {
        let bytes = read_at(&mount.disk(&snapshot), index * BLOCK, 8);
        assert_eq!(bytes, content("vol-0a", index)[..8]);
    };
    read(50);
    assert_eq!((emulator.lists(), emulator.gets()), (1, 1));
    std::fs::write(&clock, "+1d").unwrap();
    emulator.post("clock?ahead_s=86400");
    read(60);
    assert_eq!(emulator.lists(), 2, "listed again");
    assert_eq!(emulator.gets(), 2, "before the old token was tried");
}

#[test]
fn a_clock_that_jumps_away_from_the_service_s_costs_a_retry_and_no_error() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..300);
    let snapshot = emulator.snapshot("vol-0a");
    let (mount, clock) = mount_with_clock(&emulator, &snapshot);
    for (index, ahead) in [(10, "+0"), (20, "+1d"), (30, "-2d"), (40, "+0")] {
        std::fs::write(&clock, ahead).unwrap();
        let bytes = read_at(&mount.disk(&snapshot), index * BLOCK, 8);
        assert_eq!(
            bytes,
            content("vol-0a", index)[..8],
            "{ahead}: {}",
            mount.log()
        );
    }
}

#[test]
fn page_tokens_that_expire_between_empty_pages_do_not_stop_a_listing() {
    let emulator = Emulator::with(&["--set", "page_token_life_s=0", "--set", "empty_page=0.5"]);
    let volume = emulator.make_volume("vol-0a", 2048, (0..600).step_by(2));
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    assert_same(&volume, &mount.disk(&snapshot));
}

#[test]
fn sizes_that_no_reply_tells_are_an_error_and_not_a_guess() {
    let emulator = Emulator::with(&[
        "--set",
        "deny=ec2:DescribeSnapshots",
        "--set",
        "bare_last_page=1",
    ]);
    emulator.make_volume("vol-0a", 2048, [0]);
    let snapshot = emulator.snapshot("vol-0a");
    let point = tempfile::tempdir().unwrap();
    let (code, said) =
        ends(&mut emulator.ebsfs(&["mount", point.path().to_str().unwrap(), &snapshot]));
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("does not state the volume's size"), "{said}");
}

#[test]
fn volumes_whose_last_blocks_are_holes_and_volumes_of_one_block_are_read_whole() {
    let emulator = Emulator::start();
    let tail = emulator.make_volume("vol-0a", 2048, [0]);
    // A volume is whole gibibytes to EBS: a file of one block is the start of one.
    let one = emulator.make_volume("vol-0b", 1, [0]);
    let (a, b) = (emulator.snapshot("vol-0a"), emulator.snapshot("vol-0b"));
    let mount = emulator.mount(&[&a, &b]);
    assert_same(&tail, &mount.disk(&a));
    run(Command::new("cmp")
        .args(["-n", &BLOCK.to_string()])
        .arg(&one)
        .arg(mount.disk(&b)));
    assert_eq!(std::fs::metadata(mount.disk(&b)).unwrap().len(), 1 << 30);
    let end = read_at(&mount.disk(&b), (1 << 30) - 4096, 4096);
    assert!(end.iter().all(|byte| *byte == 0));
    let mut beyond = [0; 16];
    assert_eq!(
        open(&mount.disk(&b)).read_at(&mut beyond, 1 << 30).unwrap(),
        0
    );
    assert_eq!(emulator.gets(), 2);
}

#[test]
fn a_rescue_of_a_damaged_block_costs_few_requests() {
    let emulator = Emulator::with(&["--set", "rotten_block=5"]);
    let volume = emulator.make_volume("vol-0a", 16, 0..16);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    emulator.reset();
    let folder = tempfile::tempdir().unwrap();
    let rescued = folder.path().join("rescued.raw");
    // Each of its sectors is tried by itself.
    run(Command::new("ddrescue")
        .args(["--quiet", "--sector-size=4096", "--size=8388608"])
        .arg(mount.disk(&snapshot))
        .arg(&rescued)
        .arg(folder.path().join("map")));
    let damaged = emulator.gets() - 15;
    assert!(damaged <= 4, "{damaged} requests for one block");
    let (expected, mut rescued) = (
        std::fs::read(&volume).unwrap(),
        std::fs::read(&rescued).unwrap(),
    );
    let block = BLOCK as usize;
    rescued[5 * block..6 * block].copy_from_slice(&expected[5 * block..6 * block]);
    assert!(rescued == expected[..16 * block], "the others are whole");
}
