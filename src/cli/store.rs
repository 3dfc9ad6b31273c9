//! How a repository is reached: its bucket's account, endpoint and style, by the options of AWS.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::aws::AwsArgs;
use crate::aws::Service;
use crate::error::{Error, Kind, Result};
use crate::repository::{
    Address, BucketStyle, Connection, LEASE, Lease, RepositoryCatalog, S3Options, Store,
};

/// Ends the lease of what a verb has read. A lease that cannot be ended expires.
pub(super) async fn end_reading(lease: Option<Lease>) {
    if let Some(lease) = lease
        && let Err(error) = lease.end().await
    {
        tracing::warn!("{}", error.chain());
    }
}

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Repositories")]
pub(super) struct StoreArgs {
    /// Where the bucket's name goes in requests to s3://; else before the host for AWS itself, in the path elsewhere
    #[arg(long, value_enum, value_name = "STYLE")]
    bucket_style: Option<Style>,
    /// Version of ListObjects to ask s3:// for; else 2, and 1 where the store answers so
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u8).range(1..=2))]
    list_version: Option<u8>,
    /// Encryption of new objects in s3:// by the store: AES256, aws:kms or aws:kms:KEY [default: the bucket's]
    #[arg(long, value_name = "ALGORITHM", value_parser = encryption)]
    sse: Option<Encryption>,
    /// Storage class of new objects in s3://, e.g. STANDARD_IA [default: the bucket's]
    #[arg(long, value_name = "CLASS", value_parser = storage_class)]
    storage_class: Option<String>,
    /// Time after its last renewal for which prune takes a run or reader for alive, from 1s to 1day
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = lease)]
    lease: Lasting,
}

/// How long a lease holds.
#[derive(Clone, Copy, Debug)]
struct Lasting(Duration);

impl Default for Lasting {
    fn default() -> Self {
        Self(LEASE)
    }
}

fn lease(text: &str) -> std::result::Result<Lasting, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let (least, most) = (Duration::from_secs(1), 24 * LEASE);
    match (least..=most).contains(&time) {
        true => Ok(Lasting(time)),
        false => Err("it must be from 1s to 1day".into()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Style {
    /// `HOST/BUCKET/...`
    Path,
    /// `BUCKET.HOST/...`, as OBS and OSS want it
    Host,
}

/// A server-side encryption.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Encryption {
    algorithm: String,
    key: Option<String>,
}

/// Reads `AES256`, `aws:kms`, `aws:kms:KEY` or `aws:kms:dsse`.
fn encryption(text: &str) -> std::result::Result<Encryption, String> {
    let (algorithm, key) = match text.strip_prefix("aws:kms:") {
        Some("dsse") => (text, None),
        Some("") => return Err("it names no key behind aws:kms:".into()),
        Some(key) => ("aws:kms", Some(key.to_owned())),
        None => (text, None),
    };
    match algorithm {
        "AES256" | "aws:kms" | "aws:kms:dsse" => Ok(Encryption {
            algorithm: algorithm.to_owned(),
            key,
        }),
        _ => Err("it must be AES256, aws:kms or aws:kms:KEY".into()),
    }
}

/// Reads a storage class whose objects can be read at once: those of archives would lock the repository away.
fn storage_class(text: &str) -> std::result::Result<String, String> {
    match text {
        "GLACIER" | "DEEP_ARCHIVE" => Err(
            "its objects must be restored before each read: a repository cannot be in it".into(),
        ),
        "" => Err("it is empty".into()),
        _ => Ok(text.to_owned()),
    }
}

impl StoreArgs {
    /// Opens the repository at an address; its leases last as long as these options say.
    pub(super) async fn repository(
        &self,
        address: &Address,
        aws: &AwsArgs,
        timeout: Duration,
    ) -> Result<RepositoryCatalog> {
        let store = self.open(address, aws, timeout, false).await?;
        let catalog = RepositoryCatalog::open(store).await?;
        Ok(catalog.with_lease(self.lease.0))
    }

    /// What only s3:// has.
    fn s3_options(&self) -> S3Options {
        let encryption = self.sse.as_ref();
        S3Options {
            encryption: encryption.map(|sse| sse.algorithm.clone()),
            kms_key: encryption.and_then(|sse| sse.key.clone()),
            storage_class: self.storage_class.clone(),
            is_list_version_1: self.list_version == Some(1),
        }
    }

    /// Fails when an option of s3:// is given for another kind of store.
    fn check(&self, address: &Address) -> Result<()> {
        let given = [
            ("--list-version", self.list_version.is_some()),
            ("--sse", self.sse.is_some()),
            ("--storage-class", self.storage_class.is_some()),
        ];
        match given.iter().find(|(_, is_given)| *is_given) {
            Some((option, _)) if !address.is_s3() => {
                let what = format!("cannot use {option} with {address}: it is for s3:// alone");
                Err(Error::new(Kind::Invalid, what))
            }
            _ => Ok(()),
        }
    }

    /// Reaches a repository; its folder is made if `make` says so and it is one.
    pub(super) async fn open(
        &self,
        address: &Address,
        aws: &AwsArgs,
        timeout: Duration,
        make: bool,
    ) -> Result<Arc<Store>> {
        self.check(address)?;
        let mut connection = Connection {
            s3_options: self.s3_options(),
            ca_bundle: aws.ca_bundle(),
            style: self.bucket_style.map(|style| match style {
                Style::Path => BucketStyle::Path,
                Style::Host => BucketStyle::Host,
            }),
            ..Connection::new(timeout)
        };
        if address.is_s3() {
            connection.s3 = Some(aws.load_for_store().await?.service(Service::S3)?);
        }
        if let Some(folder) = address.folder().filter(|_| make) {
            // What is written there are disk images: no other user reads them.
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
            std::fs::create_dir_all(folder)
                .map_err(|error| Error::of_file(folder, "cannot make", error))?;
        }
        Store::open(address, &connection).map(Arc::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encryption_names_its_algorithm_and_key() {
        let arn = "arn:aws:kms:eu-west-1:111122223333:key/0a";
        for (text, algorithm, key) in [
            ("AES256", "AES256", None),
            ("aws:kms", "aws:kms", None),
            ("aws:kms:alias/x", "aws:kms", Some("alias/x")),
            (&format!("aws:kms:{arn}"), "aws:kms", Some(arn)),
            ("aws:kms:dsse", "aws:kms:dsse", None),
        ] {
            let read = encryption(text).unwrap();
            assert_eq!((&*read.algorithm, read.key.as_deref()), (algorithm, key));
        }
        for wrong in ["", "aes256", "aws:kms:", "none"] {
            assert!(encryption(wrong).is_err(), "{wrong}");
        }
        assert!(storage_class("DEEP_ARCHIVE").is_err());
        assert!(storage_class("GLACIER_IR").is_ok());
    }

    #[test]
    fn options_of_s3_are_refused_elsewhere() {
        let args = StoreArgs {
            list_version: Some(1),
            ..StoreArgs::default()
        };
        assert!(args.check(&"s3://b/p".parse().unwrap()).is_ok());
        let refused = args.check(&"file:///b".parse().unwrap()).unwrap_err();
        assert!(refused.chain().contains("--list-version"));
    }
}
