//! `ebsfs emulator`: the EBS direct APIs on loopback, to try things and to test.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use tokio::signal::unix::SignalKind;

use super::signals::take;
use crate::emulator::{Emulator, PROFILE, REPETITIVE};
use crate::error::{Error, Kind, Result};

/// Serve the EBS direct APIs and EC2's snapshot calls from a folder of disk images, on loopback
#[derive(Args, Debug)]
#[command(
    long_about = "Serve the EBS direct APIs and EC2's snapshot calls from a folder of disk images, on loopback.\n\n\
    FOLDER/volumes/vol-*.raw are ordinary sparse files; CreateSnapshot takes them as they stand. Requests must be signed \
    with the key in FOLDER/credentials. http://ADDRESS/_emulator/ shows counters and sets latency, limits and faults; it \
    answers programs of this machine, not web pages. The environment to use it is printed."
)]
pub(super) struct EmulatorArgs {
    /// Folder of the volumes and snapshots; made if it does not exist
    folder: PathBuf,
    /// Address to listen on, loopback only; port 0 takes a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4566")]
    listen: SocketAddr,
    /// Serve HTTPS; the authority to trust is written to FOLDER/ca.pem
    #[arg(long)]
    tls: bool,
    /// Set a switch, as POST /_emulator/switches does, for example latency_ms=15; repeat for several
    #[arg(long = "set", value_name = "SWITCH=VALUE")]
    settings: Vec<String>,
    /// Enforce the policies of users, roles, KMS keys and endpoints in this JSON file (docs/emulator.md) [default: allow all requests]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Add a snapshot whose bytes are computed; DENSITY is blocks held in a million, for example snap-0a:65536:10000
    #[arg(long, value_name = "ID:GIB:DENSITY")]
    synthetic: Vec<Synthetic>,
    /// Serve blocks at /_emulator/blocks/SNAPSHOT/INDEX without a signature, to any program of this machine: for benchmarks
    #[arg(long)]
    unsigned_blocks: bool,
    /// Repeat one page in each block of synthetic snapshots, so that they can be compressed
    #[arg(long)]
    repetitive: bool,
    /// Add a later snapshot of a synthetic one's volume; CHANGED is blocks in a million that differ, for example snap-0b:snap-0a:10000
    #[arg(long, value_name = "ID:PARENT:CHANGED")]
    synthetic_child: Vec<SyntheticChild>,
}

/// Variables that would win over those that the emulator has exported: keys over the profile, the endpoints of single
/// services and the kinds of endpoint over the URL.
const OVERRIDES: [&str; 9] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL_EBS",
    "AWS_ENDPOINT_URL_EC2",
    "AWS_ENDPOINT_URL_STS",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
];

/// What a shell needs to use an emulator, ready to be evaluated. `authority` is the file with the authority to trust.
pub(super) fn environment(
    url: &str,
    region: &str,
    credentials: &Path,
    authority: Option<&Path>,
) -> String {
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
    let trust = authority.map(|file| format!(" AWS_CA_BUNDLE={}", quoted(file)));
    format!(
        "export AWS_ENDPOINT_URL={url} AWS_REGION={region} AWS_DEFAULT_REGION={region} AWS_PROFILE={PROFILE} \
         AWS_SHARED_CREDENTIALS_FILE={}{}\nunset {}\n",
        quoted(credentials),
        trust.unwrap_or_default(),
        OVERRIDES.join(" ")
    )
}

#[derive(Clone, Debug)]
struct SyntheticChild {
    id: String,
    parent: String,
    changed: u32,
}

impl FromStr for SyntheticChild {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let [id, parent, changed] = parts[..] else {
            return Err("must look like snap-0b:snap-0a:10000".into());
        };
        Ok(Self {
            id: id.to_owned(),
            parent: parent.to_owned(),
            changed: changed
                .parse()
                .map_err(|error| format!("{changed:?}: {error}"))?,
        })
    }
}

#[derive(Clone, Debug)]
struct Synthetic {
    id: String,
    gib: u32,
    density: u32,
}

impl FromStr for Synthetic {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let [id, gib, density] = parts[..] else {
            return Err("must look like snap-0a:65536:10000".into());
        };
        let number = |text: &str| text.parse().map_err(|error| format!("{text:?}: {error}"));
        Ok(Self {
            id: id.to_owned(),
            gib: number(gib)?,
            density: number(density)?,
        })
    }
}

impl EmulatorArgs {
    pub(super) fn run(self) -> Result<()> {
        super::runtime()?.block_on(async {
            let listener = Emulator::listen(self.listen).await?;
            let emulator = Emulator::open(&self.folder, &self.settings)?;
            if let Some(file) = &self.policy {
                emulator.load_policies(file)?;
            }
            if self.unsigned_blocks {
                emulator.serve_unsigned_blocks();
            }
            let first = 1 | if self.repetitive { REPETITIVE } else { 0 };
            for (synthetic, seed) in self.synthetic.iter().zip(first..) {
                emulator.add_synthetic(&synthetic.id, synthetic.gib, synthetic.density, seed)?;
            }
            for child in &self.synthetic_child {
                emulator.add_synthetic_child(&child.id, &child.parent, child.changed)?;
            }
            let failed = |error| Error::with_source(Kind::Io, "emulator", error);
            let address = listener.local_addr().map_err(failed)?;
            let tls = self.tls.then(|| Emulator::tls(&self.folder)).transpose()?;
            let scheme = if tls.is_some() { "https" } else { "http" };
            let authority = tls.as_ref().map(|tls| std::path::absolute(tls.authority()));
            let authority = authority.transpose().map_err(failed)?;
            let credentials = std::path::absolute(emulator.credentials_file()).map_err(failed)?;
            let environment = environment(
                &format!("{scheme}://{address}"),
                &emulator.region(),
                &credentials,
                authority.as_deref(),
            );
            // In one write: a reader may leave after the first line.
            std::io::stdout()
                .write_all(environment.as_bytes())
                .map_err(failed)?;
            let stop = async {
                let mut interrupt = take(SignalKind::interrupt())?;
                let mut terminate = take(SignalKind::terminate())?;
                tokio::select! {
                    () = interrupt.received() => {}
                    () = terminate.received() => {}
                }
                Ok(())
            };
            tokio::select! {
                served = emulator.serve(listener, tls) => served,
                stopped = stop => stopped,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read_by_a_shell_as_it_was_written() {
        let (keys, ca) = (
            Path::new("/tmp/it's a/credentials"),
            Path::new("/a b/ca.pem"),
        );
        let text = environment("https://127.0.0.1:1", "eu-west-1", keys, Some(ca));
        let show = "printf '%s|' \"$AWS_ENDPOINT_URL\" \"$AWS_SHARED_CREDENTIALS_FILE\" \"$AWS_CA_BUNDLE\" \"$AWS_PROFILE\"";
        let output = std::process::Command::new("sh")
            .args(["-euc", &format!("{text}{show}")])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let expected = "https://127.0.0.1:1|/tmp/it's a/credentials|/a b/ca.pem|default|";
        assert_eq!(
            said,
            expected,
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!environment("http://a", "eu-west-1", keys, None).contains("AWS_CA_BUNDLE"));
    }
}
