//! Names of FAT as UTF-8: long ones from UTF-16, short ones from code page 437.

/// The upper half of code page 437, which DOS and Linux take for short names.
const UPPER: [u16; 128] = [
    0xc7, 0xfc, 0xe9, 0xe2, 0xe4, 0xe0, 0xe5, 0xe7, 0xea, 0xeb, 0xe8, 0xef, 0xee, 0xec, 0xc4, 0xc5,
    0xc9, 0xe6, 0xc6, 0xf4, 0xf6, 0xf2, 0xfb, 0xf9, 0xff, 0xd6, 0xdc, 0xa2, 0xa3, 0xa5, 0x20a7,
    0x192, 0xe1, 0xed, 0xf3, 0xfa, 0xf1, 0xd1, 0xaa, 0xba, 0xbf, 0x2310, 0xac, 0xbd, 0xbc, 0xa1,
    0xab, 0xbb, 0x2591, 0x2592, 0x2593, 0x2502, 0x2524, 0x2561, 0x2562, 0x2556, 0x2555, 0x2563,
    0x2551, 0x2557, 0x255d, 0x255c, 0x255b, 0x2510, 0x2514, 0x2534, 0x252c, 0x251c, 0x2500, 0x253c,
    0x255e, 0x255f, 0x255a, 0x2554, 0x2569, 0x2566, 0x2560, 0x2550, 0x256c, 0x2567, 0x2568, 0x2564,
    0x2565, 0x2559, 0x2558, 0x2552, 0x2553, 0x256b, 0x256a, 0x2518, 0x250c, 0x2588, 0x2584, 0x258c,
    0x2590, 0x2580, 0x3b1, 0xdf, 0x393, 0x3c0, 0x3a3, 0x3c3, 0xb5, 0x3c4, 0x3a6, 0x398, 0x3a9,
    0x3b4, 0x221e, 0x3c6, 0x3b5, 0x2229, 0x2261, 0xb1, 0x2265, 0x2264, 0x2320, 0x2321, 0xf7,
    0x2248, 0xb0, 0x2219, 0xb7, 0x221a, 0x207f, 0xb2, 0x25a0, 0xa0,
];
/// Where the 13 units of a part of a long name are in its entry.
const UNITS: [usize; 13] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/// Units of UTF-16 as UTF-8. A half of a surrogate pair alone becomes three bytes, so that no two names become one.
pub(in crate::browse) fn utf8_of(units: &[u16]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(units.len());
    for unit in char::decode_utf16(units.iter().copied()) {
        match unit {
            Ok(found) => bytes.extend(found.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(half) => {
                let half = half.unpaired_surrogate();
                let [high, low] = half.to_be_bytes();
                bytes.extend([
                    0xe0 | high >> 4,
                    0x80 | (high & 0xf) << 2 | low >> 6,
                    0x80 | low & 0x3f,
                ]);
            }
        }
    }
    bytes
}

/// The sum of a short name, by which the parts of its long name are known.
fn sum_of(short: &[u8]) -> u8 {
    let short = short.iter().take(11);
    short.fold(0, |sum: u8, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// A long name: its parts come before the short entry, the last one first.
#[derive(Debug, Default)]
pub(super) struct LongName {
    /// Parts, the last one first.
    parts: Vec<[u16; 13]>,
    /// The number of the next part; 0: complete.
    next: u8,
    sum: u8,
}

impl LongName {
    pub(super) fn add(&mut self, raw: &[u8; 32]) {
        let (order, sum) = (raw[0], raw[13]);
        let number = order & 0x1f;
        if order & 0x40 != 0 && (1..=20).contains(&number) {
            *self = Self {
                parts: Vec::new(),
                next: number,
                sum,
            };
        }
        if number == 0 || number != self.next || sum != self.sum {
            // A part that belongs to nothing: the short name is shown.
            *self = Self::default();
            return;
        }
        self.parts.push(UNITS.map(|at| {
            let unit = raw.get(at..).and_then(|rest| rest.first_chunk());
            unit.map_or(0, |unit| u16::from_le_bytes(*unit))
        }));
        self.next -= 1;
    }

    /// The name, if all its parts are there and belong to this short entry.
    pub(super) fn finish(self, short: &[u8; 32]) -> Option<Vec<u8>> {
        if self.parts.is_empty() || self.next != 0 || self.sum != sum_of(short) {
            return None;
        }
        let units: Vec<u16> = self.parts.into_iter().rev().flatten().collect();
        let end = units.iter().position(|unit| *unit == 0);
        let units = units.get(..end.unwrap_or(units.len()))?;
        (!units.is_empty()).then(|| utf8_of(units))
    }
}

/// The short name: eight and three characters. Two flags of Windows NT make their halves lower case.
pub(super) fn short_name(raw: &[u8; 32]) -> Vec<u8> {
    let half = |bytes: &[u8], is_lower: bool| {
        let end = bytes
            .iter()
            .rposition(|byte| *byte != b' ')
            .map_or(0, |last| last + 1);
        let units: Vec<u16> = bytes
            .iter()
            .take(end)
            .map(|byte| match byte {
                0x80.. => UPPER.get(usize::from(byte & 0x7f)).copied().unwrap_or(0x3f),
                byte if is_lower => byte.to_ascii_lowercase().into(),
                byte => (*byte).into(),
            })
            .collect();
        utf8_of(&units)
    };
    let mut stored = *raw;
    // 0xe5 marks a removed entry: a name that begins with it has 5 there.
    if stored[0] == 0x05 {
        stored[0] = 0xe5;
    }
    let mut name = half(&stored[..8], raw[12] & 0x08 != 0);
    let ending = half(&stored[8..11], raw[12] & 0x10 != 0);
    if !ending.is_empty() {
        name.push(b'.');
        name.extend(ending);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(name: &[u8; 11], flags: u8) -> [u8; 32] {
        let mut raw = [0; 32];
        raw[..11].copy_from_slice(name);
        raw[12] = flags;
        raw
    }

    #[test]
    fn short_names_have_a_dot_and_the_case_of_their_flags() {
        for (name, flags, expected) in [
            (b"README  TXT", 0, &b"README.TXT"[..]),
            (b"README  TXT", 0x18, b"readme.txt"),
            (b"README  TXT", 0x10, b"README.txt"),
            (b"NOENDING   ", 0, b"NOENDING"),
            (b".          ", 0, b"."),
            (b"\x05       X  ", 0, b"\xcf\x83.X"),
            (b"\x9a          ", 0, b"\xc3\x9c"),
        ] {
            let found = short_name(&short(name, flags));
            assert_eq!(found, expected, "{name:?}");
        }
    }

    #[test]
    fn a_long_name_needs_all_its_parts_and_the_sum_of_its_entry() {
        let entry = short(b"LONGNA~1TXT", 0);
        let sum = sum_of(&entry);
        let part = |order: u8, text: &str, sum: u8| {
            let mut raw = [0xff; 32];
            (raw[0], raw[11], raw[13]) = (order, 0x0f, sum);
            let mut units: Vec<u16> = text.encode_utf16().collect();
            if units.len() < 13 {
                units.push(0);
            }
            for (at, unit) in UNITS.iter().zip(units) {
                raw[*at..at + 2].copy_from_slice(&unit.to_le_bytes());
            }
            raw
        };
        let read = |parts: &[[u8; 32]]| {
            let mut name = LongName::default();
            parts.iter().for_each(|part| name.add(part));
            name.finish(&entry)
        };
        let (first, second) = (
            part(1, "a long name o", sum),
            part(0x42, "f two parts", sum),
        );
        assert_eq!(read(&[second, first]).unwrap(), b"a long name of two parts");
        assert_eq!(read(&[first]), None);
        assert_eq!(read(&[second]), None);
        assert_eq!(read(&[first, second]), None);
        let foreign = part(1, "a long name o", sum.wrapping_add(1));
        assert_eq!(read(&[second, foreign]), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn half_a_surrogate_pair_stays_a_name_of_its_own() {
        assert_eq!(utf8_of(&[0xd83d, 0xde00]), "\u{1f600}".as_bytes());
        assert_eq!(utf8_of(&[0xd83d]), [0xed, 0xa0, 0xbd]);
        assert_eq!(utf8_of(&[0xde00, 0x41]), [0xed, 0xb8, 0x80, 0x41]);
    }
}
