//! HTTPS, and which authorities are trusted.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::support::*;

/// An emulator that serves HTTPS, and what a shell would export for it.
pub struct Secure {
    process: Child,
    folder: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

impl Secure {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Command::new(EBSFS)
            .arg("emulator")
            .arg(folder.path())
            .args(["--listen", "127.0.0.1:0", "--tls", "--synthetic", SYNTHETIC])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = process.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let words = line.strip_prefix("export ").unwrap().split_whitespace();
        let pair = |word: &str| {
            let (name, value) = word.split_once('=').unwrap();
            (name.to_owned(), value.trim_matches('\'').to_owned())
        };
        Self {
            process,
            folder,
            environment: words.map(pair).collect(),
        }
    }

    /// Where it listens.
    #[cfg(feature = "ec2")]
    pub fn url(&self) -> String {
        let mut found = self.environment.iter();
        found
            .find(|(name, _)| name == "AWS_ENDPOINT_URL")
            .unwrap()
            .1
            .clone()
    }

    /// `ebsfs` with what the emulator says to export, but for this one.
    pub fn ebsfs_without(&self, left_out: &str) -> Command {
        let mut command = Command::new(EBSFS);
        for (name, value) in &self.environment {
            if name != left_out {
                command.env(name, value);
            }
        }
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        command
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const SYNTHETIC: &str = "snap-0a:1:100000";

#[test]
fn a_mount_over_https_that_trusts_only_its_own_authority_reads_the_same_bytes() {
    let (plain, secure) = (Emulator::with(&["--synthetic", SYNTHETIC]), Secure::start());
    let expected = plain.mount(&["snap-0a"]);
    let mut command = secure.ebsfs_without("");
    command.arg("mount");
    let mount = Mount::start(command, &["snap-0a"]);
    assert_same(&expected.disk("snap-0a"), &mount.disk("snap-0a"));
}

#[test]
fn an_authority_that_is_not_trusted_or_is_none_is_refused_in_one_line() {
    let secure = Secure::start();
    let point = tempfile::tempdir().unwrap();
    let mount = |bundle: Option<&str>| {
        let mut command = secure.ebsfs_without("AWS_CA_BUNDLE");
        command.arg("mount").arg(point.path()).arg("snap-0a");
        command.args(["--timeout", "2s"]);
        if let Some(bundle) = bundle {
            command.args(["--ca-bundle", bundle]);
        }
        ends(&mut command)
    };
    let (code, said) = mount(None);
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("certificate"), "{said}");
    let file = secure.folder.path().join("bundle.pem");
    for (text, why) in [
        ("no certificate", "there is no certificate in it"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "bundle.pem",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let (code, said) = mount(Some(file.to_str().unwrap()));
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("--ca-bundle") && said.contains(why), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let (code, said) = mount(Some("/nonexistent"));
    assert_eq!(code, 2, "{said}");
}
