//! How names, modes and times are shown: pure functions.

use super::{FsNode, FsTime, NodeKind};

/// A name for a terminal: as it is where it is plain text, else with escapes. A backslash is doubled, so that it can be read back.
pub(crate) fn quoted(name: &[u8]) -> String {
    let mut text = String::new();
    for part in name.utf8_chunks() {
        for c in part.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                c if c.is_control() || is_direction(c) => {
                    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                        text.push_str(&format!("\\x{byte:02x}"));
                    }
                }
                c => text.push(c),
            }
        }
        for byte in part.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Whether a character changes the direction of the text around it.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A name for JSON: the text, or the bytes in hexadecimal where it is none.
pub(crate) fn utf8_or_hex(name: &[u8]) -> (String, Option<String>) {
    match std::str::from_utf8(name) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (
            String::from_utf8_lossy(name).into_owned(),
            Some(crate::block::hexadecimal(name)),
        ),
    }
}

/// The nine letters of permissions, with set-user-id, set-group-id and sticky.
fn permissions(mode: u32) -> String {
    let mut letters = String::new();
    for (shift, special, set, alone) in [
        (6, 0o4000, 's', 'S'),
        (3, 0o2000, 's', 'S'),
        (0, 0o1000, 't', 'T'),
    ] {
        let bits = mode >> shift;
        letters.push(if bits & 4 != 0 { 'r' } else { '-' });
        letters.push(if bits & 2 != 0 { 'w' } else { '-' });
        letters.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => set,
            (true, false) => alone,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    letters
}

/// A mode as `ls -l` shows it.
pub(crate) fn mode_text(node: &FsNode) -> String {
    format!("{}{}", node.kind.letter(), permissions(node.mode))
}

/// An instant as `2026-01-31T12:00:00Z`; with nanoseconds where they are asked for. Years of more or fewer than four digits are
/// seconds since 1970.
pub(crate) fn shown_time(time: FsTime, with_fraction: bool) -> String {
    let days = time.seconds.div_euclid(86_400);
    let second = time.seconds.rem_euclid(86_400);
    // The date of a day since 1970 by Howard Hinnant's algorithm: eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (
        day - (153 * month + 2) / 5 + 1,
        if month < 10 { month + 3 } else { month - 9 },
    );
    let year = era * 400 + year + i64::from(month <= 2);
    if !(0..=9999).contains(&year) {
        return format!("@{}", time.seconds);
    }
    let fraction = match with_fraction {
        true => format!(".{:09}", time.nanoseconds),
        false => String::new(),
    };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// A line of a body file, for mactime of the Sleuth Kit: MD5, name, inode, mode, user, group, size, times of access, modification,
/// change and creation in seconds; 0: unknown. What would break the line is escaped.
///
/// <https://wiki.sleuthkit.org/index.php?title=Body_file>
pub(crate) fn body_line(path: &[u8], node: &FsNode) -> String {
    let escaped = |name: &[u8]| quoted(name).replace('|', "\\x7c");
    let mut name = escaped(path);
    if node.kind == NodeKind::Link {
        name.push_str(" -> ");
        name.push_str(&escaped(&node.target));
    }
    let seconds = |time: Option<FsTime>| time.map_or(0, |time| time.seconds);
    let letter = match node.kind {
        NodeKind::Regular => 'r',
        other => other.letter(),
    };
    let times = &node.times;
    format!(
        "0|{name}|{}|{letter}/{letter}{}|{}|{}|{}|{}|{}|{}|{}",
        node.id,
        permissions(node.mode),
        node.uid,
        node.gid,
        node.size,
        seconds(times.accessed),
        seconds(times.modified),
        seconds(times.changed),
        seconds(times.created),
    )
}

#[cfg(test)]
mod tests {
    use super::super::NodeTimes;
    use super::*;

    fn node(kind: NodeKind, mode: u32) -> FsNode {
        FsNode {
            id: 12,
            kind,
            mode,
            uid: 1000,
            gid: 100,
            links: 1,
            streams: 0,
            size: 5,
            device: (0, 0),
            times: NodeTimes::default(),
            target: b"a|b".to_vec(),
        }
    }

    #[test]
    fn names_are_quoted_only_where_a_terminal_needs_it() {
        for (name, shown) in [
            (&b"plain name"[..], "plain name"),
            ("\u{fc}mlaut".as_bytes(), "\u{fc}mlaut"),
            (b"a\xffb", "a\\xffb"),
            (b"a\x1b[31m", "a\\x1b[31m"),
            (b"back\\slash\n", "back\\\\slash\\n"),
            ("x\u{202e}y".as_bytes(), "x\\xe2\\x80\\xaey"),
            ("c1\u{9b}".as_bytes(), "c1\\xc2\\x9b"),
        ] {
            assert_eq!(quoted(name), shown);
        }
    }

    #[test]
    fn modes_are_as_ls_shows_them() {
        for (kind, mode, shown) in [
            (NodeKind::Regular, 0o644, "-rw-r--r--"),
            (NodeKind::Regular, 0o4755, "-rwsr-xr-x"),
            (NodeKind::Regular, 0o6644, "-rwSr-Sr--"),
            (NodeKind::Folder, 0o1777, "drwxrwxrwt"),
            (NodeKind::Folder, 0o1770, "drwxrwx--T"),
            (NodeKind::Link, 0o777, "lrwxrwxrwx"),
            (NodeKind::CharDevice, 0o600, "crw-------"),
            (NodeKind::BlockDevice, 0o660, "brw-rw----"),
            (NodeKind::Fifo, 0, "p---------"),
            (NodeKind::Socket, 0o777, "srwxrwxrwx"),
        ] {
            assert_eq!(mode_text(&node(kind, mode)), shown);
        }
    }

    #[test]
    fn times_are_shown_from_year_0_to_9999() {
        for (seconds, shown) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (-11_644_473_600, "1601-01-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
            (253_402_300_800, "@253402300800"),
            (i64::MIN / 2, "@-4611686018427387904"),
        ] {
            let time = FsTime {
                seconds,
                nanoseconds: 5,
            };
            assert_eq!(shown_time(time, false), shown);
        }
        let time = FsTime {
            seconds: 0,
            nanoseconds: 5,
        };
        assert_eq!(shown_time(time, true), "1970-01-01T00:00:00.000000005Z");
    }

    #[test]
    fn a_line_of_a_body_file_has_eleven_fields_whatever_the_names_are() {
        let mut file = node(NodeKind::Regular, 0o4755);
        file.times.modified = Some(FsTime {
            seconds: 7,
            nanoseconds: 0,
        });
        assert_eq!(
            body_line(b"/a", &file),
            "0|/a|12|r/rrwsr-xr-x|1000|100|5|0|7|0|0"
        );
        let line = body_line(b"/a|\n", &node(NodeKind::Link, 0o777));
        assert_eq!(line.split('|').count(), 11);
        assert!(line.contains("/a\\x7c\\n -> a\\x7cb|"), "{line}");
    }
}
