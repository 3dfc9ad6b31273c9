//! Turns the options of verbs into [`StoreOptions`]: how a repository is reached and written. One verb can have two stores, a source
//! and a target, each with options of its own.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::aws::AwsArgs;
use super::option_word;
use crate::aws::Service;
use crate::ebs::Limits;
use crate::error::{Error, Kind, Result};
use crate::repository::{
    Address, Bandwidth, BucketStyle, Connection, LEASE, Lease, RepositoryCatalog, S3Options, Store,
    StoreTraffic,
};

/// Ends the lease of what a verb has read. A lease that cannot be ended expires.
pub(super) async fn end_reading(lease: Option<Lease>) {
    if let Some(lease) = lease
        && let Err(error) = lease.end().await
    {
        tracing::warn!("{}", error.chain());
    }
}

/// How requests to a bucket look: options of every verb that reaches a repository.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Repositories")]
pub(super) struct StoreArgs {
    /// Place of the bucket's name in requests to s3:// [default: before the host for AWS itself, in the path elsewhere]
    #[arg(long, value_enum, value_name = "STYLE")]
    bucket_style: Option<Style>,
    /// Version of ListObjects to ask s3:// for [default: 2, and 1 where the store answers so]
    #[arg(long, value_name = "VERSION", value_parser = list_version())]
    list_version: Option<u8>,
    /// Counts the operations of all stores that are reached by these options.
    #[arg(skip)]
    pub(super) traffic: StoreTraffic,
}

/// What new objects are: options of the verbs that write to a repository.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Repositories")]
pub(super) struct NewObjectArgs {
    /// Encryption of new objects in s3:// by the store: AES256, aws:kms, aws:kms:KEY or aws:kms:dsse [default: the bucket's]
    #[arg(long, value_name = "ALGORITHM", value_parser = encryption)]
    sse: Option<Encryption>,
    /// Storage class of new objects in s3://, for example STANDARD_IA [default: the bucket's]
    #[arg(long, value_name = "CLASS", value_parser = storage_class)]
    storage_class: Option<String>,
}

/// How long a record of a run or reader holds: an option of the verbs that write one.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Repositories")]
pub(super) struct LeaseArgs {
    /// Time after the last renewal of its record for which prune treats this run or reader as alive, from 1s to 1day [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = lease)]
    lease: Option<Duration>,
}

/// The version of ListObjects.
pub(super) fn list_version() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(1..=2)
}

/// Options that were given, and whether each was.
type GivenOptions = [(&'static str, bool)];

/// Refuses options of s3:// unless one of these addresses is one.
pub(super) fn check_s3(given: &GivenOptions, places: &[Address]) -> Result<()> {
    refuse(given, places.iter().any(Address::is_s3), "s3://")
}

/// Refuses options of repositories unless one of these addresses is one.
pub(super) fn check_repositories(given: &GivenOptions, places: &[Address]) -> Result<()> {
    refuse(given, !places.is_empty(), "repositories")
}

fn refuse(given: &GivenOptions, is_there: bool, what_for: &str) -> Result<()> {
    match given.iter().find(|(_, is_given)| *is_given && !is_there) {
        Some((option, _)) => {
            let what = format!("cannot use {option}: it is for {what_for} alone");
            Err(Error::new(Kind::Invalid, what))
        }
        None => Ok(()),
    }
}

/// Those of some names that are addresses of repositories.
pub(super) fn addresses<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Address> {
    let names = names.into_iter().filter(|name| Address::looks_like(name));
    // Opening a malformed one reports what is wrong with it.
    names.filter_map(|name| name.parse().ok()).collect()
}

pub(super) fn lease(text: &str) -> std::result::Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let (least, most) = (Duration::from_secs(1), 24 * LEASE);
    match (least..=most).contains(&time) {
        true => Ok(time),
        false => Err("it must be from 1s to 1day".into()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Style {
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
    /// How a store is reached that is only read.
    pub(super) fn options(&self, line: StoreLine) -> StoreOptions {
        StoreOptions {
            s3: S3Options {
                is_list_version_1: self.list_version == Some(1),
                ..S3Options::default()
            },
            style: self.bucket_style.map(BucketStyle::from),
            lease: LEASE,
            line,
            traffic: self.traffic.clone(),
        }
    }

    /// Which options were given.
    pub(super) fn given(&self) -> [(&'static str, bool); 2] {
        [
            ("--bucket-style", self.bucket_style.is_some()),
            ("--list-version", self.list_version.is_some()),
        ]
    }

    /// The options, for another process of this program.
    pub(super) fn words(&self) -> Vec<OsString> {
        let style = self.bucket_style.as_ref().map(|style| match style {
            Style::Path => "path",
            Style::Host => "host",
        });
        let version = self.list_version.map(|version| version.to_string());
        let style = option_word("--bucket-style", style).into_iter();
        style
            .chain(option_word("--list-version", version))
            .collect()
    }

    /// The same for a target, by its own options where these are given.
    pub(super) fn for_target(&self, style: Option<Style>, list_version: Option<u8>) -> Self {
        Self {
            bucket_style: style.or(self.bucket_style),
            list_version: list_version.or(self.list_version),
            traffic: self.traffic.clone(),
        }
    }
}

impl NewObjectArgs {
    /// The options, for another process of this program.
    pub(super) fn words(&self) -> Vec<OsString> {
        let sse = self.sse.as_ref().map(|sse| match &sse.key {
            Some(key) => format!("{}:{key}", sse.algorithm),
            None => sse.algorithm.clone(),
        });
        let class = option_word("--storage-class", self.storage_class.as_ref());
        option_word("--sse", sse).into_iter().chain(class).collect()
    }

    /// Which options were given.
    pub(super) fn given(&self) -> [(&'static str, bool); 2] {
        [
            ("--sse", self.sse.is_some()),
            ("--storage-class", self.storage_class.is_some()),
        ]
    }
}

impl LeaseArgs {
    /// The option, for another process of this program.
    pub(super) fn words(&self) -> Vec<OsString> {
        let time = self.lease.map(humantime::format_duration);
        let time = time.map(|time| time.to_string());
        option_word("--lease", time).into_iter().collect()
    }

    /// How long a record holds.
    pub(super) fn lease(&self) -> Duration {
        self.lease.unwrap_or(LEASE)
    }

    /// Whether the option was given.
    pub(super) fn given(&self) -> [(&'static str, bool); 1] {
        [("--lease", self.lease.is_some())]
    }
}

impl From<Style> for BucketStyle {
    fn from(style: Style) -> Self {
        match style {
            Style::Path => Self::Path,
            Style::Host => Self::Host,
        }
    }
}

/// What the line to a store may carry.
#[derive(Clone, Debug)]
pub(super) struct StoreLine {
    /// How long a request is tried again without progress.
    pub(super) timeout: Duration,
    /// Concurrent requests; `None` is the default of [`Connection`].
    pub(super) in_flight: Option<u32>,
    pub(super) bandwidth: Bandwidth,
}

impl StoreLine {
    /// Requests are limited as those to EBS are.
    pub(super) fn of(limits: &Limits, bandwidth: Bandwidth) -> Self {
        Self {
            timeout: limits.timeout,
            in_flight: Some(limits.max_in_flight),
            bandwidth,
        }
    }
}

/// How the store of a repository is reached and written.
#[derive(Clone, Debug)]
pub(super) struct StoreOptions {
    s3: S3Options,
    style: Option<BucketStyle>,
    lease: Duration,
    line: StoreLine,
    traffic: StoreTraffic,
}

impl StoreOptions {
    /// The same, with what new objects are.
    pub(super) fn writing(mut self, new: &NewObjectArgs) -> Self {
        let encryption = new.sse.as_ref();
        self.s3.encryption = encryption.map(|sse| sse.algorithm.clone());
        self.s3.kms_key = encryption.and_then(|sse| sse.key.clone());
        self.s3.storage_class = new.storage_class.clone();
        self
    }

    /// The same, with records that hold for this time.
    pub(super) fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// The same, with this many requests at once and this bandwidth.
    pub(super) fn with_line(mut self, in_flight: Option<u32>, bandwidth: Bandwidth) -> Self {
        self.line.in_flight = in_flight;
        self.line.bandwidth = bandwidth;
        self
    }

    /// Opens the repository at an address.
    pub(super) async fn repository(
        &self,
        address: &Address,
        aws: &AwsArgs,
    ) -> Result<RepositoryCatalog> {
        let store = self.open(address, aws, false).await?;
        self.catalog(store).await
    }

    /// Opens the repository in a store.
    pub(super) async fn catalog(&self, store: Arc<Store>) -> Result<RepositoryCatalog> {
        let catalog = RepositoryCatalog::open(store).await?;
        Ok(catalog.with_lease(self.lease))
    }

    /// Opens a store, and with `make` creates its folder, if it is one. Options of s3:// have no effect elsewhere.
    pub(super) async fn open(
        &self,
        address: &Address,
        aws: &AwsArgs,
        make: bool,
    ) -> Result<Arc<Store>> {
        let mut connection = Connection {
            bandwidth: self.line.bandwidth.clone(),
            traffic: self.traffic.clone(),
            ..Connection::new(self.line.timeout)
        };
        if let Some(in_flight) = self.line.in_flight {
            connection.in_flight = usize::try_from(in_flight).unwrap_or(usize::MAX);
        }
        if !address.is_s3() && !address.is_folder() {
            connection.http = Some(aws.http()?);
        }
        if address.is_s3() {
            connection.s3 = Some(aws.load_for_store().await?.service(Service::S3)?);
            connection.s3_options = self.s3.clone();
            connection.style = self.style;
        }
        if let Some(folder) = address.folder().filter(|_| make) {
            // The blocks are those of disks: no other user may read them.
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
    fn the_words_of_options_are_read_as_the_same_options() {
        use clap::Parser;

        #[derive(Debug, Parser)]
        struct CommandLine {
            #[command(flatten)]
            store: StoreArgs,
            #[command(flatten)]
            new: NewObjectArgs,
            #[command(flatten)]
            lease: LeaseArgs,
        }

        for (line, options) in [
            ("", 0),
            (
                "--bucket-style path --list-version 1 --sse aws:kms:alias/x --storage-class STANDARD_IA",
                4,
            ),
            ("--bucket-style host --sse aws:kms:dsse --lease 90s", 3),
            ("--sse AES256", 1),
        ] {
            let words = std::iter::once("ebsfs").chain(line.split_whitespace());
            let read = CommandLine::try_parse_from(words).unwrap();
            let words = [read.store.words(), read.new.words(), read.lease.words()].concat();
            assert_eq!(words.len(), options, "{line}");
            let again = std::iter::once("ebsfs".into()).chain(words);
            let again = CommandLine::try_parse_from(again).unwrap();
            assert_eq!(again.store.given(), read.store.given());
            assert_eq!(again.store.bucket_style, read.store.bucket_style);
            assert_eq!(again.new.sse, read.new.sse);
            assert_eq!(again.new.storage_class, read.new.storage_class);
            assert_eq!(again.lease.lease(), read.lease.lease());
        }
    }

    #[test]
    fn options_are_refused_where_they_would_do_nothing() {
        let given = [("--sse", false), ("--list-version", true)];
        for (names, is_s3, is_repository) in [
            (&["s3://b/p"][..], true, true),
            (&["file:///b", "s3://b/p#latest"], true, true),
            (&["file:///b", "disk.raw"], false, true),
            (&["snap-0a", "disk.raw", "ebs:"], false, false),
            (&[], false, false),
        ] {
            let places = addresses(names.iter().copied());
            let of_s3 = check_s3(&given, &places);
            assert_eq!(of_s3.is_ok(), is_s3, "{names:?}");
            if let Err(refused) = of_s3 {
                assert!(refused.chain().contains("--list-version"));
            }
            let of_repositories = check_repositories(&[("--lease", true)], &places);
            assert_eq!(of_repositories.is_ok(), is_repository, "{names:?}");
            assert!(check_s3(&[("--sse", false)], &places).is_ok());
        }
    }
}
