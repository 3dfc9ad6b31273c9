//! What the checkers' exit codes and lines mean: pure functions. A code that no page of a checker explains is never a pass.

use super::program::ProgramEnd;
use super::report::CheckResult;

/// Lines of a checker in a report.
const MOST_DETAILS: usize = 20;

/// What is known of a filesystem after a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) result: CheckResult,
    pub(super) reason: Option<String>,
    /// Whether it can be checked, and was not.
    pub(super) is_missed: bool,
    pub(super) details: Vec<String>,
}

impl Finding {
    pub(super) fn of(result: CheckResult) -> Self {
        Self {
            result,
            reason: None,
            is_missed: false,
            details: Vec::new(),
        }
    }

    /// It has no checker here.
    pub(super) fn unknown(reason: impl Into<String>) -> Self {
        Self::of(CheckResult::NotChecked).because(reason)
    }

    /// It could be checked, and was not.
    pub(super) fn missed(reason: impl Into<String>) -> Self {
        Self {
            is_missed: true,
            ..Self::unknown(reason)
        }
    }

    pub(super) fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    fn with_lines<'a>(mut self, lines: impl IntoIterator<Item = &'a String>) -> Self {
        self.details = lines.into_iter().take(MOST_DETAILS).cloned().collect();
        self
    }
}

/// What follows from the end of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NextStep {
    /// Nothing: this is known.
    Done(Finding),
    /// `e2fsck -y` shows whether the damage can be repaired.
    Repair,
    /// The log has to be replayed, which only the kernel can do.
    ReplayLog,
}

/// A program that did not end by itself, or with a code that says nothing of the filesystem.
fn failed(name: &str, end: &ProgramEnd) -> Finding {
    let reason = match (end.was_silent, end.code) {
        (true, _) if end.ran_too_long => format!("{name} ran for 24 hours and was ended"),
        (true, _) => format!("{name} gave no sign of work and was ended"),
        (false, None) => format!("a signal ended {name}"),
        (false, Some(code)) => format!("{name} failed with exit code {code}: {}", end.last_line()),
    };
    Finding::missed(reason).with_lines(&end.lines)
}

/// `e2fsck -f -p`: it replays the journal, and repairs what a power cut explains and what is harmless. See e2fsck(8), EXIT CODE.
pub(super) fn ext_preened(end: &ProgramEnd, needs_replay: bool) -> NextStep {
    let Some(code) = end.code.filter(|_| !end.was_silent) else {
        return NextStep::Done(failed("e2fsck", end));
    };
    // 4: errors are left; 8: it could not be opened as a filesystem, although it has the signature of one.
    if code & 0x0c != 0 && code & !0x0f == 0 {
        return NextStep::Repair;
    }
    let consistent = match needs_replay {
        true => CheckResult::Replayed,
        false => CheckResult::Clean,
    };
    NextStep::Done(match code {
        0 => Finding::of(consistent),
        // 1: something was written. After a replay that is the replay itself, and files that were open without a name.
        1..=3 => {
            let repairs: Vec<&String> =
                end.lines.iter().filter(|line| !is_recovery(line)).collect();
            match repairs.is_empty() && needs_replay {
                true => Finding::of(CheckResult::Replayed),
                false => Finding::of(CheckResult::Repaired).with_lines(repairs),
            }
        }
        _ => failed("e2fsck", end),
    })
}

/// Whether a line of `e2fsck -p` is of a recovery after a power cut, or the summary.
fn is_recovery(line: &str) -> bool {
    let line = line.split_once(": ").map_or(line, |(_, rest)| rest);
    line.starts_with("recovering journal")
        || line.starts_with("Clearing orphaned inode")
        || line.starts_with("Truncating orphaned inode")
        || line.starts_with("clean, ")
        || (line.contains(" files (") && line.contains(" blocks"))
}

/// `e2fsck -f -y`, after `e2fsck -p` has refused.
pub(super) fn ext_repaired(end: &ProgramEnd) -> Finding {
    match end.code {
        Some(0..=3) if !end.was_silent => Finding::of(CheckResult::Repaired),
        Some(code) if !end.was_silent && code & !0x0f == 0 => Finding::of(CheckResult::Damaged),
        _ => return failed("e2fsck", end),
    }
    .with_lines(end.lines.iter().filter(|line| !is_pass(line)))
}

fn is_pass(line: &str) -> bool {
    line.starts_with("Pass ") || line.starts_with("e2fsck 1")
}

/// `xfs_repair -e`: see xfs_repair(8), EXIT STATUS. `is_replayed`: the kernel has replayed the log.
pub(super) fn xfs_repaired(end: &ProgramEnd, is_replayed: bool) -> NextStep {
    let finding = match end.code.filter(|_| !end.was_silent) {
        Some(0) if is_replayed => Finding::of(CheckResult::Replayed),
        Some(0) => Finding::of(CheckResult::Clean),
        Some(1) => Finding::of(CheckResult::Damaged).with_lines(&end.lines),
        Some(2) if !is_replayed => return NextStep::ReplayLog,
        Some(2) => Finding::of(CheckResult::Damaged)
            .because("its log is still not empty after a replay")
            .with_lines(&end.lines),
        Some(4) => {
            let found = end.lines.iter();
            let lines = found.filter(|line| !line.starts_with("Phase ") && !line.starts_with("- "));
            Finding::of(CheckResult::Repaired).with_lines(lines)
        }
        _ => failed("xfs_repair", end),
    };
    NextStep::Done(finding)
}

/// `mount` of a filesystem with a log. None: the kernel has replayed it.
pub(super) fn log_replayed(end: &ProgramEnd) -> Option<Finding> {
    match end.code.filter(|_| !end.was_silent) {
        Some(0) => None,
        Some(32) if end.lines.iter().any(|line| is_kernels_refusal(line)) => {
            let found = Finding::of(CheckResult::Damaged);
            Some(
                found
                    .because("the kernel could not replay its log")
                    .with_lines(&end.lines),
            )
        }
        _ => Some(failed("mount", end)),
    }
}

/// Whether a line of `mount` is of a filesystem that the kernel has read and refused: EUCLEAN, or its superblock.
fn is_kernels_refusal(line: &str) -> bool {
    line.contains("Structure needs cleaning") || line.contains("can't read superblock")
}

/// `btrfs check --readonly`: 0, or 1 for errors.
pub(super) fn btrfs_checked(end: &ProgramEnd, has_log: bool) -> Finding {
    match end.code.filter(|_| !end.was_silent) {
        Some(0) if has_log => Finding::of(CheckResult::Clean).because(
            "its last commit was checked; its log tree, which only a mount replays, was not",
        ),
        Some(0) => Finding::of(CheckResult::Clean),
        Some(1) => Finding::of(CheckResult::Damaged).with_lines(&end.lines),
        _ => failed("btrfs check", end),
    }
}

/// `fsck.vfat -n`: 0, or 1 for errors, after the dirty bit was cleared.
pub(super) fn vfat_checked(end: &ProgramEnd, was_dirty: bool) -> Finding {
    match end.code.filter(|_| !end.was_silent) {
        Some(0) if was_dirty => {
            Finding::of(CheckResult::Clean).because("it was mounted (dirty bit)")
        }
        Some(0) => Finding::of(CheckResult::Clean),
        Some(1) => Finding::of(CheckResult::Damaged).with_lines(&end.lines),
        _ => failed("fsck.vfat", end),
    }
}

/// An overlay after a check.
#[derive(Clone, Copy, Debug)]
pub(super) struct OverlayState {
    /// Whether the program that shows it ran to the end.
    pub(super) daemon_ran: bool,
    /// Bytes of its file.
    pub(super) bytes: u64,
    /// The most that they may be.
    pub(super) limit: u64,
    /// Bytes that are free beside it.
    pub(super) free: u64,
}

/// Free bytes, and bytes below the limit, under which a write may have failed: QEMU writes clusters of 64 KiB and tables.
const MARGIN: u64 = 256 << 10;

/// Why an overlay may have refused a write.
pub(super) fn overlay_fault(state: &OverlayState) -> Option<&'static str> {
    if state.bytes.saturating_add(MARGIN) > state.limit {
        return Some("its overlay reached the limit");
    }
    if state.free < MARGIN {
        return Some("its overlay has no space left");
    }
    (!state.daemon_ran).then_some("the program that shows its overlay ended")
}

#[cfg(test)]
mod tests {
    use super::*;
    use CheckResult::{Clean, Damaged, NotChecked, Repaired, Replayed};

    fn end(code: i32, lines: &[&str]) -> ProgramEnd {
        ProgramEnd {
            code: Some(code),
            was_silent: false,
            ran_too_long: false,
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    fn result(step: &NextStep) -> Option<CheckResult> {
        match step {
            NextStep::Done(finding) => Some(finding.result),
            _ => None,
        }
    }

    #[test]
    fn e2fsck_passes_a_replay_and_no_repair() {
        let recovered = [
            "part.raw: recovering journal",
            "part.raw: Clearing orphaned inode 62 (uid=0, gid=0, mode=0100644, size=0)",
            "part.raw: 62/16384 files (0.0% non-contiguous), 9564/65536 blocks",
        ];
        let wrong = ["part.raw: Inode 12, i_blocks is 8, should be 2.  FIXED."];
        for (code, lines, needs_replay, expected) in [
            (0, &recovered[2..], false, Some(Clean)),
            (0, &recovered[..], true, Some(Replayed)),
            (1, &recovered[..], true, Some(Replayed)),
            (3, &recovered[..], true, Some(Replayed)),
            // Nothing had to be replayed, and something was written.
            (1, &recovered[1..], false, Some(Repaired)),
            (1, &wrong, true, Some(Repaired)),
            (16, &[], false, Some(NotChecked)),
            (32, &[], false, Some(NotChecked)),
            (127, &[], true, Some(NotChecked)),
            (-1, &[], true, Some(NotChecked)),
            (4, &wrong, true, None),
            (5, &wrong, true, None),
            (8, &[], false, None),
            (12, &[], false, None),
        ] {
            let step = ext_preened(&end(code, lines), needs_replay);
            assert_eq!(result(&step), expected, "{code} {lines:?}");
            assert!(expected.is_some() || step == NextStep::Repair);
        }
        let repairs = ext_preened(&end(1, &[recovered[0], wrong[0]]), true);
        assert!(matches!(repairs, NextStep::Done(found) if found.details == wrong));
        for (code, expected) in [
            (0, Repaired),
            (1, Repaired),
            (2, Repaired),
            (4, Damaged),
            (5, Damaged),
            (8, Damaged),
            (9, Damaged),
            (16, NotChecked),
            (128, NotChecked),
        ] {
            assert_eq!(ext_repaired(&end(code, &[])).result, expected, "{code}");
        }
    }

    #[test]
    fn the_codes_of_other_checkers_are_those_of_their_pages() {
        for (code, is_replayed, expected) in [
            (0, false, Some(Clean)),
            (0, true, Some(Replayed)),
            (1, false, Some(Damaged)),
            (2, false, None),
            (2, true, Some(Damaged)),
            (4, false, Some(Repaired)),
            (4, true, Some(Repaired)),
            (3, false, Some(NotChecked)),
        ] {
            let step = xfs_repaired(&end(code, &[]), is_replayed);
            assert_eq!(result(&step), expected, "{code} {is_replayed}");
            assert!(expected.is_some() || step == NextStep::ReplayLog);
        }
        for (code, has_log, expected) in [
            (0, false, Clean),
            (0, true, Clean),
            (1, true, Damaged),
            (2, false, NotChecked),
        ] {
            let found = btrfs_checked(&end(code, &[]), has_log);
            assert_eq!(found.result, expected);
            assert_eq!(found.reason.is_some(), code == 2 || (code == 0 && has_log));
        }
        for (line, expected) in [
            ("mount: /m: unknown filesystem type 'xfs'.", NotChecked),
            ("mount: /m: failed to setup loop device for /p.", NotChecked),
            (
                "mount: /m: mount(2) system call failed: Structure needs cleaning.",
                Damaged,
            ),
            ("mount: /m: can't read superblock on /dev/loop0.", Damaged),
        ] {
            let found = log_replayed(&end(32, &[line, "dmesg(1) may have more."]));
            assert_eq!(found.map(|found| found.result), Some(expected), "{line}");
        }
        assert_eq!(log_replayed(&end(0, &[])), None);
        for (code, expected) in [(0, Clean), (1, Damaged), (2, NotChecked)] {
            assert_eq!(vfat_checked(&end(code, &[]), true).result, expected);
        }
    }

    #[test]
    fn an_overlay_that_may_have_refused_a_write_proves_nothing() {
        let good = OverlayState {
            daemon_ran: true,
            bytes: 1 << 20,
            limit: 1 << 30,
            free: 1 << 30,
        };
        let ended = OverlayState {
            daemon_ran: false,
            ..good
        };
        let full = OverlayState { free: 0, ..good };
        let large = OverlayState {
            bytes: good.limit,
            ..ended
        };
        for (state, fault) in [
            (good, None),
            (ended, Some("ended")),
            (full, Some("no space left")),
            (large, Some("limit")),
        ] {
            let found = overlay_fault(&state);
            assert_eq!(found.is_some(), fault.is_some(), "{state:?}");
            assert!(
                found
                    .unwrap_or_default()
                    .contains(fault.unwrap_or_default())
            );
        }
    }

    #[test]
    fn a_checker_that_was_ended_has_checked_nothing() {
        for (code, was_silent) in [(Some(0), true), (None, true), (None, false)] {
            let ended = ProgramEnd {
                code,
                was_silent,
                ran_too_long: false,
                lines: Vec::new(),
            };
            let xfs = xfs_repaired(&ended, true);
            let ext = ext_preened(&ended, true);
            let found = [
                ext_repaired(&ended),
                btrfs_checked(&ended, false),
                vfat_checked(&ended, false),
            ];
            let steps = [ext, xfs].into_iter().filter_map(|step| match step {
                NextStep::Done(found) => Some(found),
                _ => None,
            });
            let all: Vec<Finding> = found.into_iter().chain(steps).collect();
            assert_eq!(all.len(), 5);
            assert!(
                all.iter()
                    .all(|one| one.result == NotChecked && one.is_missed),
                "{all:?}"
            );
        }
    }
}
