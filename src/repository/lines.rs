//! Lists of names as objects: one name a line, then the SHA-256 of these lines in hexadecimal. A truncated list is never used.

use sha2::{Digest as _, Sha256};

use crate::block::hexadecimal;

/// The list as it is stored.
pub(super) fn encode(names: impl IntoIterator<Item = impl std::fmt::Display>) -> Vec<u8> {
    let lines: String = names.into_iter().map(|name| format!("{name}\n")).collect();
    let digest = hexadecimal(&Sha256::digest(&lines));
    format!("{lines}{digest}\n").into_bytes()
}

/// The lines of a list; none when it is damaged.
pub(super) fn decode(bytes: &[u8]) -> Option<std::str::Lines<'_>> {
    let text = str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    let start = text.rfind('\n').map_or(0, |end| end + 1);
    let (lines, digest) = text.split_at_checked(start)?;
    (hexadecimal(&Sha256::digest(lines)) == digest).then(|| lines.lines())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_written_and_a_truncated_one_is_refused() {
        for names in [&[][..], &["a"], &["a", "b"]] {
            let bytes = encode(names);
            assert_eq!(decode(&bytes).unwrap().collect::<Vec<_>>(), names);
            for cut in 0..bytes.len() {
                assert!(decode(&bytes[..cut]).is_none(), "{cut}");
            }
        }
        assert!(decode(b"<html></html>\n").is_none());
    }
}
