//! How many requests things cost.

use std::thread;
use std::time::Duration;

use crate::support::*;

#[test]
fn a_full_read_costs_one_get_a_held_block_and_a_second_one_none() {
    let emulator = Emulator::start();
    let held = (0..230).chain(1000..1010).chain([2047]);
    let volume = emulator.make_volume("vol-0a", 2048, held);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    for _ in 0..2 {
        assert_same(&volume, &mount.disk(&snapshot));
        assert_eq!(emulator.gets(), 241);
    }
    // From memory, without the kernel's pages.
    sh("sync; echo 1 > /proc/sys/vm/drop_caches");
    assert_same(&volume, &mount.disk(&snapshot));
    assert_eq!(emulator.gets(), 241);
    assert!(emulator.lists() <= 3, "{}", emulator.lists());
}

#[test]
fn with_16_mib_of_memory_a_sequential_read_still_costs_one_get_a_block() {
    let emulator = Emulator::with(&["--set", "latency_ms=2"]);
    let volume = emulator.make_volume("vol-0a", 2048, 0..400);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&["--memory", "16MiB", &snapshot]);
    assert_same(&volume, &mount.disk(&snapshot));
    assert_eq!(emulator.gets(), 400);
}

#[test]
fn mounting_costs_one_list_a_named_snapshot_and_nothing_when_lazy() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0, 7]);
    let (a, b) = (emulator.snapshot("vol-0a"), emulator.snapshot("vol-0a"));
    let mount = emulator.mount(&[&a, &b]);
    assert_eq!((emulator.lists(), emulator.gets()), (2, 0));
    drop(mount);
    emulator.reset();
    let mount = emulator.mount(&["--lazy", &a, &b]);
    let calls = emulator.lists() + emulator.gets() + emulator.count("DescribeSnapshots");
    assert_eq!(calls, 0);
    assert_eq!(
        read_at(&mount.disk(&a), 7 * BLOCK, 1),
        content("vol-0a", 7)[..1]
    );
    assert_eq!((emulator.lists(), emulator.gets()), (1, 1), "one byte");
}

#[test]
fn sixty_four_readers_of_one_block_cost_one_get() {
    let emulator = Emulator::with(&["--set", "latency_ms=100"]);
    emulator.make_volume("vol-0a", 2048, 0..64);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    let disk = mount.disk(&snapshot);
    thread::scope(|scope| {
        for reader in 0..64u64 {
            let disk = &disk;
            scope.spawn(move || {
                let offset = 20 * BLOCK + reader * 8192;
                let start = (reader * 8192) as usize;
                assert_eq!(
                    read_at(disk, offset, 4096),
                    content("vol-0a", 20)[start..start + 4096]
                );
            });
        }
    });
    assert_eq!(emulator.gets(), 1);
}

#[test]
fn holes_cost_no_get_and_seeking_over_them_none() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 4096, []);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    assert_same(&volume, &mount.disk(&snapshot));
    let map = sh(&format!(
        "qemu-img map --output=json {}",
        mount.disk(&snapshot).display()
    ));
    assert!(
        map.contains("\"data\": false") && !map.contains("\"data\": true"),
        "{map}"
    );
    // An empty page, and one that proves its end.
    assert_eq!((emulator.gets(), emulator.lists()), (0, 2));
}

#[test]
fn at_least_16_blocks_are_in_flight_for_a_sequential_reader() {
    let emulator = Emulator::with(&["--set", "latency_ms=50"]);
    emulator.make_volume("vol-0a", 2048, 0..512);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    emulator.reset();
    sh(&format!(
        "dd if={} of=/dev/null bs=1M count=256 status=none",
        mount.disk(&snapshot).display()
    ));
    let most = emulator.count("most_at_once");
    assert!(most >= 16, "{most}");
    assert_eq!(emulator.gets(), 512);
}

#[test]
fn slow_blocks_are_requested_twice_only_with_the_option_and_counted_separately() {
    let emulator = Emulator::with(&["--set", "latency_ms=5", "--set", "slow=0.005"]);
    let volume = emulator.make_volume("vol-0a", 2048, 0..2000);
    let (plain, hedged) = (emulator.snapshot("vol-0a"), emulator.snapshot("vol-0a"));
    emulator.set("get_rps=100000&get_rps_snapshot=100000");
    let fast = ["--max-rps", "100000", "--max-snapshot-rps", "100000"];
    let mount = emulator.mount(&[&fast[..], &[&plain]].concat());
    assert_same(&volume, &mount.disk(&plain));
    assert_eq!(emulator.gets(), 2000, "one a block");
    drop(mount);
    emulator.reset();
    let mut mount = emulator.mount(&[&fast[..], &["--hedge", &hedged]].concat());
    assert_same(&volume, &mount.disk(&hedged));
    assert!((2001..=2040).contains(&emulator.gets()), "at most 2 % more");
    mount.signal("TERM");
    mount.wait(Duration::from_secs(20));
    wait_for("the counts", || mount.log().contains(" of them hedges"));
    let log = mount.log();
    let number = |after: &str| {
        let words = log.split_once(after).unwrap().0.split_whitespace();
        words.last().unwrap().parse::<u64>().unwrap()
    };
    // One that was answered before its second left is counted here and not there.
    let (gets, hedges) = (number(" GetSnapshotBlock and"), number(" of them hedges"));
    assert_eq!(gets - hedges, 2000);
    assert!(gets >= emulator.gets() && hedges <= 40, "{log}");
}

#[test]
fn an_image_scanned_from_the_same_place_again_and_again_answers_every_time() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, 0..64);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    let disk = mount.disk(&snapshot);
    for start in [0, 1 << 20] {
        for _ in 0..8 {
            // Past the kernel's pages, or only the first scan would come here.
            sh(&format!(
                "cmp <(dd if={} bs=512k count=32 iflag=direct,skip_bytes skip={start} status=none) \
                 <(dd if={} bs=512k count=32 iflag=skip_bytes skip={start} status=none)",
                disk.display(),
                volume.display()
            ));
        }
    }
    assert!(emulator.gets() <= 64, "none twice");
}
