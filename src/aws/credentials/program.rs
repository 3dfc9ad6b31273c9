//! `credential_process`: a program that prints credentials
//! (<https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html>).

use std::io::IsTerminal;
use std::process::Stdio;
use std::time::Duration;

use aws_credential_types::Credentials as Keys;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::error::{Error, Kind, Result};

/// How long a program may take: a person touches a key or signs in with a browser.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The most bytes that are read of it; a session token has some kilobytes.
const MAX_OUTPUT: u64 = 256 << 10;

/// What a program prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    version: Option<u32>,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    session_token: Option<String>,
    expiration: Option<String>,
}

/// Runs a line of a profile in the shell. The program has the terminal, if there is one, and its stderr is shown.
///
/// # Errors
/// `Unavailable` when it fails or takes longer than 60 s: it may do better the next time. `Denied` when it prints no
/// credentials. The line is never printed: it can hold secrets.
pub(super) async fn run(command: &str, profile: &str) -> Result<Keys> {
    let error = |kind, why: &str| {
        let what = format!(
            "no AWS credentials: the program of the profile {profile:?} (credential_process) {why}"
        );
        Error::new(kind, what)
    };
    let failed = |why: String| error(Kind::Unavailable, &why);
    // A pipe is this program's own input.
    let input = match std::io::stdin().is_terminal() {
        true => Stdio::inherit(),
        false => Stdio::null(),
    };
    let child = Command::new("sh")
        .args(["-c", command])
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn();
    let mut child = child.map_err(|error| failed(format!("cannot be started: {error}")))?;
    let mut printed = Vec::new();
    let stdout = child.stdout.take();
    let ended = tokio::time::timeout(TIMEOUT, async {
        if let Some(stdout) = stdout {
            stdout.take(MAX_OUTPUT).read_to_end(&mut printed).await?;
        }
        child.wait().await
    });
    let status = ended
        .await
        .map_err(|_| failed(format!("took longer than {TIMEOUT:?}")))?
        .map_err(|error| failed(format!("cannot be read: {error}")))?;
    if !status.success() {
        return Err(failed(format!("failed ({status})")));
    }
    parse(&printed).map_err(|why| error(Kind::Denied, why))
}

fn parse(printed: &[u8]) -> std::result::Result<Keys, &'static str> {
    // The parser's own words could quote a secret.
    let printed: Printed =
        serde_json::from_slice(printed).map_err(|_| "printed no JSON with credentials")?;
    if printed.version != Some(1) {
        return Err("printed another Version than 1");
    }
    let (Some(id), Some(secret)) = (printed.access_key_id, printed.secret_access_key) else {
        return Err("printed no AccessKeyId or no SecretAccessKey");
    };
    let expiry = match printed.expiration.as_deref() {
        None | Some("") => None,
        Some(text) => {
            let time = DateTime::from_str(text, Format::DateTimeWithOffset);
            let time = time.map_err(|_| "printed an Expiration that is no time")?;
            Some(
                time.try_into()
                    .map_err(|_| "printed an Expiration out of range")?,
            )
        }
    };
    let token = printed.session_token.filter(|token| !token.is_empty());
    Ok(Keys::new(id, secret, token, expiry, "program"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_parsed_or_refused_without_their_text() {
        let parsed = |text: &str| parse(text.as_bytes());
        let keys = r#"{"Version":1,"AccessKeyId":"id","SecretAccessKey":"s","SessionToken":"t","Expiration":"2030-01-01T01:00:00+01:00"}"#;
        let keys = parsed(keys).unwrap();
        assert_eq!(keys.access_key_id(), "id");
        assert_eq!(keys.session_token(), Some("t"));
        let expiry = humantime::parse_rfc3339("2030-01-01T00:00:00Z").unwrap();
        assert_eq!(keys.expiry(), Some(expiry));
        let lasting = r#"{"Version":1,"AccessKeyId":"id","SecretAccessKey":"s","SessionToken":""}"#;
        let lasting = parsed(lasting).unwrap();
        assert_eq!((lasting.session_token(), lasting.expiry()), (None, None));
        for (text, why) in [
            ("", "no JSON"),
            (
                r#"{"Version":2,"AccessKeyId":"id","SecretAccessKey":"s"}"#,
                "Version",
            ),
            (r#"{"AccessKeyId":"id","SecretAccessKey":"s"}"#, "Version"),
            (r#"{"Version":1,"AccessKeyId":"id"}"#, "SecretAccessKey"),
            (
                r#"{"Version":1,"AccessKeyId":"id","SecretAccessKey":"s","Expiration":"soon"}"#,
                "no time",
            ),
        ] {
            assert!(parsed(text).unwrap_err().contains(why), "{text}");
        }
    }

    #[tokio::test]
    async fn a_program_that_fails_is_named_by_its_profile_alone() {
        for (command, kind, why) in [
            ("exit 3 # hush", Kind::Unavailable, "exit status: 3"),
            ("echo hush", Kind::Denied, "no JSON"),
            ("true", Kind::Denied, "no JSON"),
        ] {
            let error = run(command, "p").await.unwrap_err();
            assert_eq!(error.kind(), kind);
            let said = error.chain();
            assert!(said.contains(why) && said.contains("\"p\""), "{said}");
            assert!(!said.contains("hush"), "{said}");
        }
    }
}
