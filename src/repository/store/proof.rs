//! Whether a store holds the bytes that were put, by its own metadata: the ETag where that is their MD5, else a checksum
//! that it computed (AWS computes CRC-64/NVME of every object, also of those whose ETag is no MD5 because of SSE-KMS).

use aws_smithy_checksums::ChecksumAlgorithm;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::backend::{ObjectHead, Upload};
use crate::block::hexadecimal;

/// What has proven that a store holds the bytes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ObjectProof {
    /// Its ETag, the MD5 of the bytes.
    Etag,
    /// A checksum of this name that the store computed; the ETag is no MD5.
    Checksum(&'static str),
    /// Its bytes: they were read back, because neither is there.
    Bytes,
}

/// Whether the ETag is the MD5 of the bytes; servers write it in either case and with or without quotes.
pub(super) fn is_tagged(head: &ObjectHead, upload: &Upload) -> bool {
    let (Some(md5), Some(tag)) = (&upload.md5, &head.etag) else {
        return false;
    };
    let tag = tag.trim().trim_matches('"');
    tag.eq_ignore_ascii_case(&hexadecimal(md5))
}

/// Compares the bytes with a checksum of the store: its name, and whether it is right. None where it has no checksum of a known
/// kind.
pub(super) fn checksum_says(head: &ObjectHead, upload: &Upload) -> Option<(&'static str, bool)> {
    let (name, value) = head.checksums.first()?;
    let mut sum = name.parse::<ChecksumAlgorithm>().ok()?.into_impl();
    upload.pieces.iter().for_each(|piece| sum.update(piece));
    Some((name, BASE64_STANDARD.encode(sum.finalize()) == *value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(etag: Option<&str>, checksums: Vec<(&'static str, String)>) -> ObjectHead {
        ObjectHead {
            size: None,
            modified: None,
            etag: etag.map(str::to_owned),
            checksums,
        }
    }

    #[tokio::test]
    async fn an_etag_is_compared_without_case_and_quotes() {
        let pieces = ["1234", "56789"].map(bytes::Bytes::from);
        let upload = Upload::new(&pieces, true).await.unwrap();
        let md5 = "25f9e794323b453885f5181f1b624d0b";
        for (tag, is_right) in [
            (Some(md5.to_owned()), true),
            (Some(format!("\"{}\"", md5.to_ascii_uppercase())), true),
            (Some(format!("\"{md5}-1\"")), false),
            (Some(String::new()), false),
            (None, false),
        ] {
            let head = head(tag.as_deref(), Vec::new());
            assert_eq!(is_tagged(&head, &upload), is_right, "{tag:?}");
        }
    }

    #[tokio::test]
    async fn a_checksum_of_the_store_proves_or_refutes() {
        let upload = Upload::new(&[bytes::Bytes::from("123456789")], true)
            .await
            .unwrap();
        // The check values of the CRC catalogue.
        for (name, value) in [
            ("crc64nvme", &0xae8b_1486_0a79_9888_u64.to_be_bytes()[..]),
            ("crc32c", &0xe306_9283_u32.to_be_bytes()[..]),
            ("crc32", &0xcbf4_3926_u32.to_be_bytes()[..]),
        ] {
            let right = head(None, vec![(name, BASE64_STANDARD.encode(value))]);
            assert_eq!(checksum_says(&right, &upload), Some((name, true)));
            let wrong = head(None, vec![(name, "AAAA".into())]);
            assert_eq!(checksum_says(&wrong, &upload), Some((name, false)));
        }
        assert_eq!(checksum_says(&head(None, Vec::new()), &upload), None);
    }
}
