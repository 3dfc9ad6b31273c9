//! /dev/fuse, the mountpoint, a full disk.

use super::*;

/// `ebsfs` in a mount namespace of its own, prepared by a line of the shell.
fn within(patient: &Patient, prepare: &str) -> Command {
    let mut command = patient.emulator.command("unshare");
    let script = format!("{prepare} && exec {EBSFS} \"$@\"");
    command.args(["--mount", "bash", "-euc", &script, "bash"]);
    command.env(
        "EBSFS_STATE_DIR",
        patient.emulator.folder.path().join("state"),
    );
    command
}

#[test]
fn a_machine_without_fuse_is_a_row_and_says_what_to_install() {
    let patient = Patient::new();
    let prepare = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3";
    let found = examined(within(&patient, prepare), &[], &patient.mount());
    found.fails("machine", "FUSE", "there is no /dev/fuse", "modprobe fuse");
    verb_says(
        within(&patient, prepare),
        &patient.mount(),
        1,
        "there is no /dev/fuse",
    );
}

#[test]
fn a_mountpoint_that_is_not_empty_is_a_row() {
    let patient = Patient::new();
    std::fs::write(patient.point.path().join("file"), "x").unwrap();
    let found = examined(patient.ebsfs(), &[], &patient.mount());
    found.fails("machine", "mountpoint", "it is not empty", "");
    verb_says(patient.ebsfs(), &patient.mount(), 1, "it is not empty");
}

#[test]
fn a_full_disk_is_a_row_for_the_state_directory_and_for_a_target() {
    let patient = Patient::new();
    let at = patient.point.path().to_str().unwrap().to_owned();
    let prepare = format!(
        "mount -t tmpfs -o size=64k none {at} && (head -c 1M /dev/zero > {at}/full || true) 2>/dev/null"
    );
    let image = format!("{at}/disk.raw");
    let sync = ["sync", &patient.snapshot, &image, "--progress", "none"];
    let found = examined(within(&patient, &prepare), &[], &sync);
    found.fails("machine", &image, "no space", "df -h");
    verb_says(within(&patient, &prepare), &sync, 9, "disk.raw");
    let state = format!("{at}/state");
    let elsewhere = patient.emulator.folder.path().join("disk.raw");
    let elsewhere = elsewhere.to_str().unwrap();
    let sync = ["sync", &patient.snapshot, elsewhere, "--state-dir", &state];
    let found = examined(within(&patient, &prepare), &[], &sync);
    found.fails("machine", "state directory", "no space", "df -h");
}
