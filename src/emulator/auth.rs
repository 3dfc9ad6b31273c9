//! Signature Version 4, checked: only requests signed with a key of the emulator's folder are answered.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hmac::{Hmac, KeyInit, Mac};
use hyper::http::request::Parts;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};

use super::caller::{Caller, EmulatedIdentity, UserId};
use super::reply::Refusal;

/// All but the unreserved characters of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// All but those and the slash.
const PATH_ENCODED: &AsciiSet = &ENCODED.remove(b'/');
/// How far a request's time may be off.
const SKEW: Duration = Duration::from_secs(300);

/// The profile that the emulator itself makes.
const FIRST: &str = "default";

/// The secret of a key, and who signs with it.
pub(super) struct SigningKey {
    pub(super) secret: String,
    pub(super) identity: EmulatedIdentity,
}

/// A user's access key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AccessKey {
    pub(super) user: String,
    pub(super) id: String,
    pub(super) secret: String,
}

impl AccessKey {
    /// The user, in the emulator's own account.
    pub(super) fn user(&self) -> UserId {
        UserId::own(&self.user)
    }

    /// Makes the key of a user and adds it to the folder's `credentials` file.
    pub(super) fn add(folder: &Path, user: &str) -> io::Result<Self> {
        let random = std::iter::repeat_with(fastrand::alphanumeric);
        let id = format!("AKIAEMU{:020}", fastrand::u64(..));
        let key = Self {
            user: user.to_owned(),
            id: id.chars().take(20).collect(),
            secret: random.take(40).collect(),
        };
        let path = folder.join("credentials");
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let start = if file.metadata()?.len() > 0 { "\n" } else { "" };
        // In one write: a client may read the file at the same time.
        let text = format!(
            "{start}[{user}]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            key.id, key.secret
        );
        file.write_all(text.as_bytes())?;
        Ok(key)
    }
}

/// Reads the keys of the folder's `credentials` file, or makes the first one. That of the profile `default` comes first.
pub(super) fn credentials(folder: &Path) -> io::Result<Vec<AccessKey>> {
    let text = match std::fs::read_to_string(folder.join("credentials")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(vec![AccessKey::add(folder, FIRST)?]);
        }
        read => read?,
    };
    let mut keys = parse_credentials(&text);
    keys.sort_by_key(|key| key.user != FIRST);
    match keys.first().is_some_and(|first| first.user == FIRST) {
        true => Ok(keys),
        false => Err(io::Error::other("the credentials file holds no key")),
    }
}

/// The profiles of a credentials file that have a key. Lines before the first profile are of `default`.
fn parse_credentials(text: &str) -> Vec<AccessKey> {
    let mut keys: Vec<AccessKey> = Vec::new();
    let mut user = FIRST;
    for line in text.lines() {
        let line = line.trim();
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            user = name.trim();
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            continue;
        };
        let at = keys.iter().position(|key| key.user == user);
        let at = at.unwrap_or_else(|| {
            keys.push(AccessKey {
                user: user.to_owned(),
                id: String::new(),
                secret: String::new(),
            });
            keys.len() - 1
        });
        if let Some(key) = keys.get_mut(at) {
            match name.trim() {
                "aws_access_key_id" => key.id = value.trim().to_owned(),
                "aws_secret_access_key" => key.secret = value.trim().to_owned(),
                _ => {}
            }
        }
    }
    keys.retain(|key| !key.id.is_empty() && !key.secret.is_empty());
    keys
}

/// Checks a request's signature against the key that it names, which `find` looks up by its id.
pub(super) fn verify(
    request: &Parts,
    body: &[u8],
    find: impl Fn(&str) -> Option<SigningKey>,
    now: SystemTime,
) -> Result<Caller, Refusal> {
    let header = |name: &str| {
        request
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let Some(authorization) = header("authorization") else {
        return Err(Refusal::new(
            403,
            "MissingAuthenticationTokenException",
            None,
            "Missing Authentication Token",
        ));
    };
    let refuse = |what: &str| Refusal::new(403, "InvalidSignatureException", None, what.to_owned());
    let field = |name: &str| {
        authorization
            .strip_prefix("AWS4-HMAC-SHA256")?
            .split(',')
            .find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='))
    };
    let parts = field("Credential")
        .zip(field("SignedHeaders"))
        .zip(field("Signature"));
    let Some(((credential, signed), signature)) = parts else {
        return Err(refuse("the Authorization header is incomplete"));
    };
    let scope: Vec<&str> = credential.split('/').collect();
    let [key, date, region, service, "aws4_request"] = scope[..] else {
        return Err(refuse("the credential scope is malformed"));
    };
    let Some(access) = find(key) else {
        return Err(Refusal::new(
            403,
            "UnrecognizedClientException",
            None,
            "The security token included in the request is invalid.",
        ));
    };
    let time = header("x-amz-date").unwrap_or_default();
    let off = parse_time(time).map(|at| match now.duration_since(at) {
        Ok(late) => late,
        Err(early) => early.duration(),
    });
    if off.is_none_or(|off| off > SKEW) {
        return Err(refuse(&format!(
            "Signature expired or not yet valid: {time}"
        )));
    }
    let stated = header("x-amz-content-sha256");
    let body_hash = match stated {
        Some(unsigned @ "UNSIGNED-PAYLOAD") => unsigned.to_owned(),
        _ => hex(&Sha256::digest(body)),
    };
    let promised = stated.unwrap_or(&body_hash);
    if promised != body_hash {
        return Err(refuse("the body does not match x-amz-content-sha256"));
    }
    let mut canonical = format!(
        "{}\n{}\n{}\n",
        request.method,
        utf8_percent_encode(request.uri.path(), PATH_ENCODED),
        canonical_query(request.uri.query().unwrap_or_default())
    );
    for name in signed.split(';') {
        let values: Vec<String> = request
            .headers
            .get_all(name)
            .iter()
            .map(|value| {
                let text = String::from_utf8_lossy(value.as_bytes());
                text.split_whitespace().collect::<Vec<_>>().join(" ")
            })
            .collect();
        let _ = writeln!(canonical, "{name}:{}", values.join(","));
    }
    let _ = write!(canonical, "\n{signed}\n{promised}");
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{time}\n{date}/{region}/{service}/aws4_request\n{}",
        hex(&Sha256::digest(canonical))
    );
    let mut signing = hmac(format!("AWS4{}", access.secret).as_bytes(), date);
    for step in [region, service, "aws4_request"] {
        signing = hmac(&signing, step);
    }
    if hex(&hmac(&signing, &to_sign)) != signature {
        return Err(refuse(
            "The request signature we calculated does not match the signature you provided.",
        ));
    }
    Ok(Caller {
        region: region.to_owned(),
        service: service.to_owned(),
        identity: access.identity,
    })
}

fn canonical_query(query: &str) -> String {
    let encode = |text: &str| {
        let plain = percent_decode_str(text).decode_utf8_lossy();
        utf8_percent_encode(&plain, ENCODED).to_string()
    };
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (encode(name), encode(value))
        })
        .collect();
    pairs.sort();
    let pairs: Vec<String> = pairs
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}

/// `20261122T101112Z`.
fn parse_time(text: &str) -> Option<SystemTime> {
    let at = |range| text.get(range);
    let iso = format!(
        "{}-{}-{}T{}:{}:{}Z",
        at(0..4)?,
        at(4..6)?,
        at(6..8)?,
        at(9..11)?,
        at(11..13)?,
        at(13..15)?
    );
    humantime::parse_rfc3339(&iso).ok()
}

pub(super) fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    // HMAC takes a key of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return Vec::new();
    };
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    /// The example of the AWS documents (ListUsers of IAM, 2015-08-30), whose signature they print.
    fn example() -> Parts {
        Request::builder()
            .uri("/?Action=ListUsers&Version=2010-05-08")
            .header(
                "content-type",
                "application/x-www-form-urlencoded; charset=utf-8",
            )
            .header("host", "iam.amazonaws.com")
            .header("x-amz-date", "20150830T123600Z")
            .header(
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date, \
                 Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
            )
            .body(())
            .unwrap()
            .into_parts()
            .0
    }

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn keys(id: &str, secret: &str) -> impl Fn(&str) -> Option<SigningKey> {
        let known = [("default", "AKIDFIRST", "first"), ("web", id, secret)];
        let known = known.map(|one| (one.0.to_owned(), one.1.to_owned(), one.2.to_owned()));
        move |id| {
            let (user, _, secret) = known.iter().find(|one| one.1 == id)?;
            Some(SigningKey {
                secret: secret.clone(),
                identity: EmulatedIdentity::User(UserId::own(user)),
            })
        }
    }

    fn at(text: &str) -> SystemTime {
        parse_time(text).unwrap()
    }

    #[test]
    fn the_documented_example_passes_and_a_changed_one_does_not() {
        let now = at("20150830T123700Z");
        let caller = verify(&example(), b"", keys("AKIDEXAMPLE", SECRET), now).unwrap();
        assert_eq!(
            (caller.region.as_str(), caller.service.as_str()),
            ("us-east-1", "iam")
        );
        assert_eq!(caller.arn(), "arn:aws:iam::111122223333:user/web");
        let code = |result: Result<Caller, Refusal>| result.unwrap_err().code;
        assert_eq!(
            code(verify(&example(), b"x", keys("AKIDEXAMPLE", SECRET), now)),
            "InvalidSignatureException"
        );
        assert_eq!(
            code(verify(&example(), b"", keys("AKIDEXAMPLE", "other"), now)),
            "InvalidSignatureException"
        );
        assert_eq!(
            code(verify(&example(), b"", keys("AKIDOTHER", SECRET), now)),
            "UnrecognizedClientException"
        );
        let late = at("20150830T124300Z");
        assert_eq!(
            code(verify(&example(), b"", keys("AKIDEXAMPLE", SECRET), late)),
            "InvalidSignatureException"
        );
    }

    #[test]
    fn each_profile_of_a_credentials_file_is_a_user() {
        let folder = tempfile::tempdir().unwrap();
        let first = credentials(folder.path()).unwrap();
        let added = AccessKey::add(folder.path(), "web").unwrap();
        assert_eq!(
            credentials(folder.path()).unwrap(),
            [first[0].clone(), added]
        );
        let text =
            "aws_access_key_id=A\naws_secret_access_key = B\n[half]\naws_access_key_id = C\n";
        let parsed = parse_credentials(text);
        assert_eq!(parsed.len(), 1);
        assert_eq!(
            (parsed[0].user.as_str(), parsed[0].id.as_str()),
            ("default", "A")
        );
    }
}
