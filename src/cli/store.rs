//! How a repository is reached: its bucket's account, endpoint and style, by the options of AWS.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::aws::AwsArgs;
use crate::error::{Error, Result};
use crate::repository::{Address, BucketStyle, Connection, Store};

#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Repositories")]
pub(super) struct StoreArgs {
    /// Where the bucket's name goes in requests to s3://; else before the host for AWS itself, in the path elsewhere
    #[arg(long, value_enum, value_name = "STYLE")]
    bucket_style: Option<Style>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Style {
    /// `HOST/BUCKET/...`
    Path,
    /// `BUCKET.HOST/...`, as OBS and OSS want it
    Host,
}

impl StoreArgs {
    /// Reaches a repository; its folder is made if `make` says so and it is one.
    pub(super) async fn open(
        self,
        address: &Address,
        aws: &AwsArgs,
        timeout: Duration,
        make: bool,
    ) -> Result<Arc<Store>> {
        let style = self.bucket_style.map(|style| match style {
            Style::Path => BucketStyle::Path,
            Style::Host => BucketStyle::Host,
        });
        let mut connection = Connection {
            credentials: None,
            region: None,
            endpoint: None,
            ca_bundle: aws.ca_bundle(),
            style,
            timeout,
        };
        if address.is_s3() {
            let aws = aws.load_for_store().await?;
            connection.credentials = Some(aws.credentials().clone());
            connection.region = aws.region().map(str::to_owned);
            connection.ca_bundle = aws.ca_bundle();
            if let Some((url, is_chosen)) = aws.s3_url()? {
                // AWS itself has the bucket before the host, whatever the partition.
                if !is_chosen {
                    connection.style.get_or_insert(BucketStyle::Host);
                }
                connection.endpoint = Some(url);
            }
        }
        if let Some(folder) = address.folder().filter(|_| make) {
            // What is written there are disk images: nobody else reads them.
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
            std::fs::create_dir_all(folder)
                .map_err(|error| Error::of_file(folder, "cannot make", error))?;
        }
        Store::open(address, &connection).map(Arc::new)
    }
}
