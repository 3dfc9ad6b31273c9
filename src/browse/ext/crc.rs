//! CRC-32C, by which the journal's blocks are checked.

/// The sum continued over more bytes, as the kernel's `crc32c`: without an inversion at either end. Only blocks of a journal are
/// summed, so a table is not worth its lines.
pub(super) fn crc32c(sum: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(sum, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_check_value_of_the_catalogue() {
        // https://reveng.sourceforge.io/crc-catalogue/17plus.htm#crc.cat.crc-32-iscsi
        assert_eq!(!super::crc32c(!0, b"123456789"), 0xe306_9283);
    }
}
