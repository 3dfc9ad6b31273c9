//! Which program made the evidence, on which machine, for which user.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::block::hexadecimal;
use crate::error::{Error, Result};
use crate::files::{blocking, host_name, user_name};

/// The running program, whatever its path holds by now.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// Bytes of it read at once.
const READ: usize = 1 << 20;

/// The program that made the evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProgramFacts {
    /// `ebsfs`.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// Where it was.
    pub(crate) path: Option<String>,
    /// SHA-256 of its file, in hexadecimal.
    pub(crate) sha256: String,
}

impl ProgramFacts {
    /// Those of this program; its file is read whole.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) async fn of_this() -> Result<Self> {
        let sha256 = blocking(|| {
            let failed = |error| Error::of_file(Path::new(THIS_PROGRAM), "cannot read", error);
            digest_of(File::open(THIS_PROGRAM).map_err(failed)?).map_err(failed)
        });
        let path = std::env::current_exe().ok();
        Ok(Self {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            path: path.map(|path| path.display().to_string()),
            sha256: sha256.await?,
        })
    }
}

fn digest_of(mut file: File) -> io::Result<String> {
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; READ];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hexadecimal(&sha256.finalize()));
        }
        sha256.update(buffer.get(..read).unwrap_or_default());
    }
}

/// The machine and the user, as the kernel and the user database state them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostFacts {
    /// The host's name.
    pub(crate) host: Option<String>,
    /// The user's name.
    pub(crate) user: Option<String>,
    /// The user's number.
    pub(crate) uid: u32,
    /// The kernel: its name, release and version.
    pub(crate) kernel: String,
    /// The processor architecture that the program was built for.
    pub(crate) architecture: String,
}

impl HostFacts {
    /// Those of this machine.
    pub(crate) fn of_this() -> Self {
        let kernel = ["ostype", "osrelease", "version"].map(|name| {
            let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}"));
            text.unwrap_or_default().trim().to_owned()
        });
        Self {
            host: host_name(),
            user: user_name(),
            uid: nix::unistd::geteuid().as_raw(),
            kernel: kernel.join(" ").trim().to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_program_is_known_by_the_digest_of_its_file() {
        let facts = ProgramFacts::of_this().await.unwrap();
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(facts.sha256, hexadecimal(&Sha256::digest(&bytes)));
        let machine = HostFacts::of_this();
        assert!(machine.kernel.starts_with("Linux "), "{machine:?}");
    }
}
