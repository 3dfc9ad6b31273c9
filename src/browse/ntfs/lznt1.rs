//! LZNT1, the compression of NTFS.
//!
//! <https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-xca/94164d22-2928-4417-876e-d193766c4db6>

/// Bytes that a chunk becomes, at most.
const CHUNK: usize = 4096;

/// The `size` bytes of a unit; what is missing at its end reads as zeroes. None where it is damaged.
pub(super) fn decompress(packed: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(size);
    let mut rest = packed;
    while out.len() < size {
        let Some((head, after)) = rest.split_first_chunk::<2>() else {
            break;
        };
        let head = u16::from_le_bytes(*head);
        if head == 0 {
            break;
        }
        let len = usize::from(head & 0xfff) + 1;
        let (chunk, after) = after.split_at_checked(len)?;
        rest = after;
        let start = out.len();
        match head & 0x8000 {
            0 => out.extend(chunk),
            _ => unpack(chunk, &mut out)?,
        }
        // A chunk that is not the last one fills its 4 KiB.
        let end = start + CHUNK;
        if out.len() > end {
            return None;
        }
        if rest.len() >= 2 {
            out.resize(end, 0);
        }
    }
    out.resize(size, 0);
    Some(out)
}

/// A compressed chunk: flags for eight items each, an item is a byte or a copy of earlier bytes of the chunk.
fn unpack(chunk: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    let mut bytes = chunk.iter().copied();
    while let Some(flags) = bytes.next() {
        for bit in 0..8 {
            let Some(first) = bytes.next() else {
                return Some(());
            };
            if flags >> bit & 1 == 0 {
                out.push(first);
            } else {
                let pair = u16::from_le_bytes([first, bytes.next()?]);
                let position = out.len() - start;
                // The further into the chunk, the more bits for the distance.
                let mut shift = 12;
                while shift > 4 && position > 1 << (16 - shift) {
                    shift -= 1;
                }
                let distance = usize::from(pair >> shift) + 1;
                let len = usize::from(pair & ((1 << shift) - 1)) + 3;
                if distance > position {
                    return None;
                }
                for _ in 0..len {
                    let byte = *out.get(out.len() - distance)?;
                    out.push(byte);
                }
            }
            if out.len() - start > CHUNK {
                return None;
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_may_overlap_what_it_makes() {
        let packed = [
            0x0b,
            0xb0, // compressed, 12 bytes
            0b0000_1000,
            b'a',
            b'b',
            b'c',
            0x03,
            0x20,
            b'd',
            b'e',
            b'f',
            b'g',
            0x00,
            b'h',
        ];
        // a b c, then 6 bytes from 3 back, then d e f g, then a byte of flags and one more.
        let out = decompress(&packed, 4096).unwrap();
        assert_eq!(&out[..14], b"abcabcabcdefgh");
        assert!(out[14..].iter().all(|byte| *byte == 0) && out.len() == 4096);
    }

    #[test]
    fn a_chunk_that_is_not_compressed_is_copied() {
        let mut packed = vec![0xff, 0x3f];
        packed.extend((0..4096_u32).map(|n| n.to_le_bytes()[0]));
        let out = decompress(&packed, 65_536).unwrap();
        assert_eq!(out[..4096], packed[2..]);
        assert_eq!(out.len(), 65_536);
    }

    #[test]
    fn any_bytes_are_unpacked_or_refused() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..3_000 {
            let len = random.usize(..300);
            let packed: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
            if let Some(out) = decompress(&packed, 65_536) {
                assert_eq!(out.len(), 65_536);
            }
        }
    }
}
