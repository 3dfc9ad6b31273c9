//! The border to AWS: who calls, by which way, and what happens when that changes. Stand-ins play STS, SSO, the metadata
//! services and proxies; moto, which others wrote, plays STS and EC2.

mod endpoints;
mod idle;
mod moto;
mod network;
mod proxy;
mod rotation;
pub mod server;
mod sources;

use std::path::PathBuf;
use std::process::Command;

use crate::support::*;

use server::{Server, Stand};

/// A person with profiles of their own: an emulator, the stand-ins, and two files of profiles.
pub struct Person {
    pub emulator: Emulator,
    pub home: tempfile::TempDir,
    pub stand: Stand,
    pub snapshot: String,
}

impl Person {
    pub fn new() -> Self {
        let emulator = Emulator::start();
        emulator.make_volume("vol-0a", 2048, [0, 5]);
        let snapshot = emulator.snapshot("vol-0a");
        let stand = Stand::new(emulator.keys());
        let home = tempfile::tempdir().unwrap();
        Self {
            emulator,
            home,
            stand,
            snapshot,
        }
    }

    /// A file in the home folder.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A profile with the emulator's keys.
    pub fn keys_profile(&self, name: &str) -> String {
        let (id, secret) = self.emulator.keys();
        format!("[profile {name}]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n")
    }

    /// `ebsfs` with EBS and EC2 of the emulator, everything else of the stand-ins, and no credentials but those in the files.
    pub fn ebsfs(&self, args: &[&str]) -> Command {
        let mut command = Command::new(EBSFS);
        for (name, _) in std::env::vars() {
            let lower = name.to_lowercase();
            if lower.starts_with("aws_") || lower.ends_with("_proxy") {
                command.env_remove(name);
            }
        }
        command
            .args(args)
            .env("HOME", self.home.path())
            .env("EBSFS_STATE_DIR", self.home.path().join("state"))
            .env("AWS_ENDPOINT_URL_EBS", self.emulator.url())
            .env("AWS_ENDPOINT_URL_EC2", self.emulator.url())
            .env("AWS_ENDPOINT_URL_STS", self.stand.url())
            .env("AWS_ENDPOINT_URL_SSO", self.stand.url())
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", self.stand.url())
            .env("AWS_REGION", "us-east-1");
        command
    }
}
