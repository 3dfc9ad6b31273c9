//! The signature of a statement: SSHSIG, made and checked by `ssh-keygen -Y`. The key may be a file, in an agent or in a hardware
//! token; anybody can check it without this program.
//!
//! ssh-keygen is another program, and its output is bounded, its time limited, and its environment has none of our AWS credentials. It
//! keeps the terminal: a key may ask for its passphrase there.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::folder::SIGNATURE;
use crate::drill::find_program;
use crate::error::{Error, Kind, Remedy, Result};
use crate::target::Stop;

/// What the signature is for: one that was made for something else is not taken.
pub(super) const NAMESPACE: &str = "ebsfs-evidence";
/// The largest signature that is read: one of an RSA key of 16,384 bits takes 6 KB.
pub(super) const LARGEST: u64 = 64 << 10;
/// The program.
const KEYGEN: &str = "ssh-keygen";
/// How a signature begins.
const ARMOR: &[u8] = b"-----BEGIN SSH SIGNATURE-----\n";
/// How long ssh-keygen may take to sign: a person types a passphrase or touches a token.
const SIGNING: Duration = Duration::from_secs(120);
/// How long it may take to check.
const CHECKING: Duration = Duration::from_secs(30);
/// Bytes of its output that are read, of each of both.
const MOST_OUTPUT: u64 = LARGEST;
/// Characters of its last line in a message.
const LONGEST_REASON: usize = 200;

/// The key to sign with, as ssh-keygen takes it: a private key, or the public key of one in an agent.
#[derive(Clone, Debug)]
pub(crate) struct KeyFile(PathBuf);

impl KeyFile {
    /// Checks that there is a file, and a program to sign with.
    ///
    /// # Errors
    /// `NotFound` and `Denied` as the system says; `Io` without ssh-keygen.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        keygen()?;
        let failed = |error| Error::of_file(path, "cannot read", error);
        let found = File::open(path).and_then(|file| file.metadata());
        if !found.map_err(failed)?.is_file() {
            let what = format!("cannot read {}: it is no regular file", path.display());
            return Err(Error::new(Kind::Invalid, what));
        }
        path.canonicalize().map(Self).map_err(failed)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Signs a statement.
    ///
    /// # Errors
    /// `Io` when ssh-keygen does not sign it, or takes too long; `Stopped`.
    pub(super) async fn sign(&self, statement: &[u8], stop: &Stop) -> Result<Vec<u8>> {
        let words: Vec<OsString> = vec![
            "-Y".into(),
            "sign".into(),
            "-n".into(),
            NAMESPACE.into(),
            "-f".into(),
            self.0.clone().into(),
        ];
        let ended = run(&words, statement, SIGNING, stop).await?;
        if !ended.is_success || !ended.out.starts_with(ARMOR) {
            let what = format!(
                "cannot sign with {}: ssh-keygen says {:?}",
                self.0.display(),
                ended.reason()
            );
            return Err(Error::new(Kind::Io, what));
        }
        // It is what others will check: checked once here.
        check_alone(statement, &ended.out, stop).await?;
        Ok(ended.out)
    }
}

/// Who must have signed.
#[derive(Clone, Debug, Default)]
pub(crate) struct SignerRequest {
    /// A file of allowed signers (ssh-keygen(1), ALLOWED SIGNERS).
    pub(crate) allowed: Option<PathBuf>,
    /// The signer's name in it; the one that it has for the key, if this is not given.
    pub(crate) signer: Option<String>,
}

/// What is known of the signature of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SignatureState {
    /// There is none, and none was to be.
    Absent,
    /// It was made over this statement by this key. Whose key it is, is not known.
    Valid(String),
    /// The same, and the file of allowed signers has the key for this name.
    Trusted {
        /// The key: `SHA256:...`.
        key: String,
        /// The name.
        signer: String,
    },
}

/// Checks the signature of a statement. `is_stated`: the statement says that it is signed.
///
/// # Errors
/// `Corrupt` when it is missing, not of this statement, or not of an allowed signer; `NotFound` without the file of allowed signers;
/// `Io` without ssh-keygen; `Stopped`.
pub(super) async fn check(
    statement: &[u8],
    signature: Option<&[u8]>,
    is_stated: bool,
    asked: &SignerRequest,
    stop: &Stop,
) -> Result<SignatureState> {
    let Some(signature) = signature else {
        let why = match (is_stated, &asked.allowed) {
            (true, _) => "it says that it is signed, and there is no signature",
            (false, Some(_)) => "it is not signed",
            (false, None) => return Ok(SignatureState::Absent),
        };
        return Err(untrusted(why));
    };
    let key = check_alone(statement, signature, stop).await?;
    let Some(allowed) = &asked.allowed else {
        return Ok(SignatureState::Valid(key));
    };
    let failed = |error| Error::of_file(allowed, "cannot read", error);
    let allowed = allowed.canonicalize().map_err(failed)?;
    if !allowed.metadata().map_err(failed)?.is_file() {
        let what = format!("cannot read {}: it is no regular file", allowed.display());
        return Err(Error::new(Kind::Invalid, what));
    }
    let signer = match &asked.signer {
        Some(signer) => signer.clone(),
        None => find_signer(signature, &allowed, stop).await?,
    };
    let copy = in_memory(signature)?;
    let words: Vec<OsString> = vec![
        "-Y".into(),
        "verify".into(),
        "-n".into(),
        NAMESPACE.into(),
        "-s".into(),
        path_of(&copy),
        "-f".into(),
        allowed.into(),
        "-I".into(),
        signer.clone().into(),
    ];
    let ended = run(&words, statement, CHECKING, stop).await?;
    if !ended.is_success {
        let why = format!(
            "it is not signed by {signer:?}: ssh-keygen says {:?}",
            ended.reason()
        );
        return Err(untrusted(&why));
    }
    Ok(SignatureState::Trusted { key, signer })
}

fn untrusted(why: &str) -> Error {
    Error::new(Kind::Corrupt, format!("cannot trust evidence.json: {why}"))
}

/// Checks that a signature was made over a statement; the key that made it.
async fn check_alone(statement: &[u8], signature: &[u8], stop: &Stop) -> Result<String> {
    let copy = in_memory(signature)?;
    let words: Vec<OsString> = vec![
        "-Y".into(),
        "check-novalidate".into(),
        "-n".into(),
        NAMESPACE.into(),
        "-s".into(),
        path_of(&copy),
    ];
    let ended = run(&words, statement, CHECKING, stop).await?;
    let said = String::from_utf8_lossy(&ended.out).into_owned();
    let key = said.split_whitespace().find(|word| is_fingerprint(word));
    match key.filter(|_| ended.is_success) {
        Some(key) => Ok(key.to_owned()),
        None => Err(untrusted(&format!(
            "its signature is wrong: ssh-keygen says {:?}",
            ended.reason()
        ))),
    }
}

/// Whether a word is a key's fingerprint.
fn is_fingerprint(word: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '+' || c == '/';
    let digits = word.strip_prefix("SHA256:");
    digits.is_some_and(|digits| digits.len() <= 64 && digits.chars().all(is_part))
}

/// The name that a file of allowed signers has for the key of a signature.
async fn find_signer(signature: &[u8], allowed: &Path, stop: &Stop) -> Result<String> {
    let copy = in_memory(signature)?;
    let words: Vec<OsString> = vec![
        "-Y".into(),
        "find-principals".into(),
        "-s".into(),
        path_of(&copy),
        "-f".into(),
        allowed.into(),
    ];
    let ended = run(&words, &[], CHECKING, stop).await?;
    let said = String::from_utf8_lossy(&ended.out).into_owned();
    // A line can hold several names, and patterns, which name no one signer.
    let names = said.lines().flat_map(|line| line.split(','));
    let is_name = |name: &&str| !name.is_empty() && !name.contains(['*', '?', '!']);
    match names.map(str::trim).find(is_name) {
        Some(name) if ended.is_success => Ok(name.to_owned()),
        _ if ended.is_success => {
            let error = untrusted("the allowed signers have only patterns for its key");
            Err(error.with_remedy(Remedy::Do("name the signer".into())))
        }
        _ => Err(untrusted("the allowed signers do not have its key")),
    }
}

/// A file without a name that holds these bytes: ssh-keygen reads a signature by its path, and this one cannot change.
fn in_memory(bytes: &[u8]) -> Result<File> {
    let failed = |error| Error::with_source(Kind::Io, "cannot make a file in memory", error);
    let memory = memfd_create("signature", MemfdFlags::CLOEXEC);
    let mut file = File::from(memory.map_err(|error| failed(error.into()))?);
    file.write_all(bytes).map_err(failed)?;
    Ok(file)
}

/// Where another process of this user opens it.
fn path_of(file: &File) -> OsString {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// How ssh-keygen ended.
#[derive(Debug)]
struct KeygenEnd {
    is_success: bool,
    out: Vec<u8>,
    err: Vec<u8>,
}

impl KeygenEnd {
    /// Its last line, without control characters.
    fn reason(&self) -> String {
        let texts = [&self.err, &self.out].map(|text| String::from_utf8_lossy(text).into_owned());
        let line = texts.iter().find_map(|text| {
            let line = text.lines().rfind(|line| !line.trim().is_empty())?;
            let plain = line.chars().filter(|c| !c.is_control());
            Some(plain.take(LONGEST_REASON).collect::<String>())
        });
        line.unwrap_or_else(|| "nothing".to_owned())
    }
}

fn keygen() -> Result<PathBuf> {
    find_program(KEYGEN).ok_or_else(|| {
        let error = Error::new(Kind::Io, "cannot sign or check a signature: no ssh-keygen");
        error.with_remedy(Remedy::Do(
            "install it (Debian: openssh-client, Fedora: openssh)".into(),
        ))
    })
}

/// Runs ssh-keygen to its end. Dropping the future ends it.
async fn run(words: &[OsString], input: &[u8], limit: Duration, stop: &Stop) -> Result<KeygenEnd> {
    let mut command = Command::new(keygen()?);
    command
        .args(words)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // The agent and what asks for a passphrase need the others.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    let failed = |error| Error::with_source(Kind::Io, "cannot run ssh-keygen", error);
    let mut child = command.spawn().map_err(failed)?;
    let (stdin, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // It can end before it has read all, and then says why.
            let _ = stdin.write_all(input).await;
        }
    };
    let work = async {
        let (ended, (), out, err) = tokio::join!(child.wait(), write, all(out), all(err));
        let status = ended.map_err(failed)?;
        Ok(KeygenEnd {
            is_success: status.success(),
            out,
            err,
        })
    };
    let late = || {
        let what = format!("cannot run ssh-keygen: no answer in {limit:?}");
        Error::new(Kind::Io, what)
    };
    let limited = async { timeout(limit, work).await.map_err(|_| late())? };
    stop.unless(limited).await
}

/// What a pipe gives, up to [`MOST_OUTPUT`]. A program that says more waits for a reader, and is ended when its time is over.
async fn all(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        let _ = pipe.take(MOST_OUTPUT).read_to_end(&mut bytes).await;
    }
    bytes
}

/// The command that signs a statement by hand.
pub(super) fn command_by_hand(key: &KeyFile, folder: &Path) -> String {
    let statement = folder.join(super::folder::STATEMENT);
    format!(
        "ssh-keygen -Y sign -n {NAMESPACE} -f {} {} makes {SIGNATURE}",
        key.path().display(),
        statement.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_failure_is_one_plain_line() {
        let end = |out: &str, err: &str| KeygenEnd {
            is_success: false,
            out: out.into(),
            err: err.into(),
        };
        let long = "x".repeat(1000);
        for (out, err, reason) in [
            ("", "", "nothing"),
            ("a\nb\n", "", "b"),
            ("a", "first\nlast\r\n\n", "last"),
            ("", "\x1b[31mred\x07", "[31mred"),
            ("", &long, &long[..LONGEST_REASON]),
        ] {
            assert_eq!(end(out, err).reason(), reason);
        }
        assert!(is_fingerprint("SHA256:ab+/9"));
        assert!(!is_fingerprint("SHA256:a\u{1b}") && !is_fingerprint("key"));
    }
}
