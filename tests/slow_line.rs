//! A line of 1 MB/s and 300 ms a round trip, one connection in a hundred cut: everything ends, and is right.

use std::process::Command;
use std::time::Duration;

use crate::support::line::{Line, LineFaults};
use crate::support::*;

/// A command of `ebsfs` over the line.
fn over(line: &Line, emulator: &Emulator, args: &[&str]) -> Command {
    let mut command = emulator.ebsfs(args);
    command.env("AWS_ENDPOINT_URL", line.url());
    command
}

fn slow_line(emulator: &Emulator) -> Line {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let faults = LineFaults {
        bytes_per_second: 1_000_000,
        delay: Duration::from_millis(150),
        cut_one_in: 100,
    };
    Line::to(emulator.address(), faults, seed)
}

#[test]
fn changes_of_fifty_thousand_blocks_are_listed_over_a_slow_line() {
    // 38 % of 131,072 blocks.
    let pair = [
        "--synthetic",
        "snap-0a:64:500000",
        "--synthetic-child",
        "snap-0b:snap-0a:381470",
    ];
    let emulator = Emulator::with(&pair);
    let line = slow_line(&emulator);
    let args = ["changes", "snap-0a", "snap-0b", "--format", "csv"];
    let over_the_line = run(&mut over(&line, &emulator, &args));
    assert_eq!(over_the_line, run(&mut emulator.ebsfs(&args)));
}

#[test]
fn twenty_mebibytes_are_read_over_a_slow_line() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, 0..40);
    let snapshot = emulator.snapshot("vol-0a");
    let line = slow_line(&emulator);
    let mount = Mount::start(over(&line, &emulator, &["mount"]), &[&snapshot]);
    let copy = emulator.folder.path().join("copy");
    run(Command::new("dd")
        .arg(format!("if={}", mount.disk(&snapshot).display()))
        .arg(format!("of={}", copy.display()))
        .args(["bs=1M", "count=20", "status=none"]));
    run(Command::new("cmp")
        .args(["-n", "20971520"])
        .arg(&volume)
        .arg(&copy));
}

#[test]
fn twenty_thousand_snapshots_are_listed_over_a_slow_line() {
    let emulator = Emulator::with(&["--set", "account_snapshots=20000"]);
    let line = slow_line(&emulator);
    let listed = run(&mut over(&line, &emulator, &["ls", "--json"]));
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 20_000);
}
