//! /dev/fuse, the mountpoint, a full disk.

use super::*;

/// `ebsfs` in a mount namespace of its own, prepared by a line of the shell.
fn within(site: &DoctorSite, prepare: &str) -> Command {
    let mut command = site.emulator.command("unshare");
    let script = format!("{prepare} && exec {EBSFS} \"$@\"");
    command.args(["--mount", "bash", "-euc", &script, "bash"]);
    command.env("EBSFS_STATE_DIR", site.emulator.folder.path().join("state"));
    command
}

#[test]
fn a_machine_without_fuse_is_a_row_and_says_what_to_install() {
    let site = DoctorSite::new();
    let prepare = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3";
    let found = examined(within(&site, prepare), &[], &site.mount());
    found.fails("machine", "FUSE", "there is no /dev/fuse", "modprobe fuse");
    verb_says(
        within(&site, prepare),
        &site.mount(),
        1,
        "there is no /dev/fuse",
    );
}

#[test]
fn a_mountpoint_that_is_not_empty_is_a_row() {
    let site = DoctorSite::new();
    std::fs::write(site.point.path().join("file"), "x").unwrap();
    let found = examined(site.ebsfs(), &[], &site.mount());
    found.fails("machine", "mountpoint", "it is not empty", "");
    verb_says(site.ebsfs(), &site.mount(), 1, "it is not empty");
}

#[test]
fn a_full_disk_is_a_row_for_the_state_directory_and_for_a_target() {
    let site = DoctorSite::new();
    let at = site.point.path().to_str().unwrap().to_owned();
    let prepare = format!(
        "mount -t tmpfs -o size=64k none {at} && (head -c 1M /dev/zero > {at}/full || true) 2>/dev/null"
    );
    let image = format!("{at}/disk.raw");
    let sync = ["sync", &site.snapshot, &image, "--progress", "none"];
    let found = examined(within(&site, &prepare), &[], &sync);
    found.fails("machine", &image, "no space", "df -h");
    verb_says(within(&site, &prepare), &sync, 9, "disk.raw");
    let state = format!("{at}/state");
    let elsewhere = site.emulator.folder.path().join("disk.raw");
    let elsewhere = elsewhere.to_str().unwrap();
    let sync = ["sync", &site.snapshot, elsewhere, "--state-dir", &state];
    let found = examined(within(&site, &prepare), &[], &sync);
    found.fails("machine", "state directory", "no space", "df -h");
}
