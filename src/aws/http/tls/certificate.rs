//! [`CertificateFacts`]: what a person needs to recognize a certificate: whose it is, who signed it, when it ends.
//!
//! It reads the few fields of RFC 5280 that it needs; nothing is believed of them, the handshake decides.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{NaiveDate, NaiveDateTime};

use crate::aws::classify::printable;

/// DER tags.
const INTEGER: u8 = 0x02;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERAL_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
/// The object ids 2.5.4.3 and 2.5.4.10.
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const ORGANIZATION: &[u8] = &[0x55, 4, 10];
/// The longest name that is shown.
const LONGEST_NAME: usize = 80;

/// A certificate as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateFacts {
    /// The common name of its owner, else the organization; can be empty.
    pub(crate) subject: String,
    /// The same of who signed it.
    pub(crate) issuer: String,
    /// Its last second.
    pub(crate) ends: Option<SystemTime>,
}

impl CertificateFacts {
    /// Reads a certificate; none where it is not one.
    pub(super) fn of(der: &[u8]) -> Option<Self> {
        let (certificate, _) = Der(der).take(SEQUENCE)?;
        let (mut fields, _) = certificate.take(SEQUENCE)?;
        // Version 1 has no version field.
        if let Some((_, rest)) = fields.take(VERSION) {
            fields = rest;
        }
        fields = fields.take(INTEGER)?.1;
        fields = fields.take(SEQUENCE)?.1;
        let (issuer, rest) = fields.take(SEQUENCE)?;
        let (validity, rest) = rest.take(SEQUENCE)?;
        let (subject, _) = rest.take(SEQUENCE)?;
        let ends = validity.next().and_then(|(_, _, rest)| rest.next());
        Some(Self {
            subject: name(subject),
            issuer: name(issuer),
            ends: ends.and_then(|(tag, text, _)| time(tag, text)),
        })
    }
}

/// The rest of a DER encoding.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element: its tag, its content, what follows it.
    fn next(self) -> Option<(u8, &'a [u8], Self)> {
        let (&[tag, first], rest) = self.0.split_first_chunk::<2>()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // A certificate has less than 16 MiB.
            0x81..=0x83 => {
                let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = digits
                    .iter()
                    .fold(0, |all, digit| (all << 8) | usize::from(*digit));
                (length, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        Some((tag, content, Self(rest)))
    }

    /// The next element, if it has this tag: its content, what follows it.
    fn take(self, tag: u8) -> Option<(Self, Self)> {
        let (found, content, rest) = self.next()?;
        (found == tag).then_some((Self(content), rest))
    }
}

/// The common name in a distinguished name, else the organization.
fn name(mut parts: Der<'_>) -> String {
    let mut found = [None, None];
    while let Some((set, rest)) = parts.take(SET) {
        parts = rest;
        let pair = set
            .take(SEQUENCE)
            .and_then(|(pair, _)| pair.take(OBJECT_ID));
        let Some((id, value)) = pair else {
            continue;
        };
        let place = match id.0 {
            COMMON_NAME => 0,
            ORGANIZATION => 1,
            _ => continue,
        };
        if let (Some(slot), Some((_, text, _))) = (found.get_mut(place), value.next()) {
            *slot = Some(printable(&String::from_utf8_lossy(text), LONGEST_NAME));
        }
    }
    let [common, organization] = found;
    common.or(organization).unwrap_or_default()
}

/// A time of RFC 5280: `YYMMDDHHMMSSZ`, or with four digits of the year.
fn time(tag: u8, text: &[u8]) -> Option<SystemTime> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u32>().ok();
    let (year, at) = match tag {
        UTC_TIME => {
            let year = i32::try_from(number(0, 2)?).ok()?;
            (if year < 50 { 2000 } else { 1900 } + year, 2)
        }
        GENERAL_TIME => (i32::try_from(number(0, 4)?).ok()?, 4),
        _ => return None,
    };
    let part = |index: usize| number(at + 2 * index, at + 2 * index + 2);
    let date = NaiveDate::from_ymd_opt(year, part(0)?, part(1)?)?;
    let time: NaiveDateTime = date.and_hms_opt(part(2)?, part(3)?, part(4)?)?;
    let seconds = u64::try_from(time.and_utc().timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, KeyPair, date_time_ymd};

    fn named(kind: DnType, name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(["h.example".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(kind, name);
        params
    }

    #[test]
    fn subject_issuer_and_end_of_a_certificate_are_read() {
        for (year, seconds) in [(2031, 1_925_078_400), (2061, 2_871_849_600)] {
            let authority = named(DnType::OrganizationName, "Corp Proxy");
            let issuer = Issuer::new(authority, KeyPair::generate().unwrap());
            let mut params = named(DnType::CommonName, "h\u{1b}[2J");
            params.not_after = date_time_ymd(year, 1, 2);
            let key = KeyPair::generate().unwrap();
            let made = params.signed_by(&key, &issuer).unwrap();
            let facts = CertificateFacts::of(made.der()).unwrap();
            assert_eq!(facts.issuer, "Corp Proxy");
            assert_eq!(facts.subject, "h\\u{1b}[2J");
            let since = facts.ends.unwrap().duration_since(UNIX_EPOCH).unwrap();
            assert_eq!(since.as_secs(), seconds, "{year}");
        }
    }

    #[test]
    fn what_is_cut_or_changed_never_panics() {
        let params = named(DnType::CommonName, "h.example");
        let key = KeyPair::generate().unwrap();
        let whole = params.self_signed(&key).unwrap().der().to_vec();
        for end in 0..whole.len() {
            let _ = CertificateFacts::of(&whole[..end]);
        }
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..2000 {
            let mut damaged = whole.clone();
            let at = random.usize(..damaged.len());
            damaged[at] = random.u8(..);
            let _ = CertificateFacts::of(&damaged);
        }
        assert!(CertificateFacts::of(&whole).is_some());
    }
}
