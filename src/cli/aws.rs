//! The options of AWS, and the settings that they make. What they mean is [`crate::aws`]'s.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::option_word;
use crate::aws::{
    Aws, Given, Http, Observer, Proxies, RequestCounts, Service, ServiceConfig, Settings,
};
use crate::ebs::{Client, EbsCatalog, Limits};
use crate::error::{Error, Kind, Remedy, Result};
use crate::inventory::DescribeMachine;
use crate::snapshot::{Descriptions, Selector, SnapshotMaker};

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "AWS")]
pub(super) struct AwsArgs {
    /// Region of the snapshots [env: AWS_REGION, AWS_DEFAULT_REGION; else the profile's]
    #[arg(long)]
    region: Option<String>,
    /// Profile in ~/.aws/config and ~/.aws/credentials [env: AWS_PROFILE]
    #[arg(long)]
    profile: Option<String>,
    /// URL of EBS and EC2, or of an object store [env: AWS_ENDPOINT_URL; else the profile's]
    #[arg(long, value_name = "URL")]
    endpoint_url: Option<String>,
    /// URL of the EBS direct APIs alone [env: AWS_ENDPOINT_URL_EBS]
    #[arg(long, value_name = "URL")]
    ebs_endpoint: Option<String>,
    /// URL of EC2 alone [env: AWS_ENDPOINT_URL_EC2]
    #[arg(long, value_name = "URL")]
    ec2_endpoint: Option<String>,
    /// URL of S3 alone [env: AWS_ENDPOINT_URL_S3]
    #[arg(long, value_name = "URL")]
    s3_endpoint: Option<String>,
    /// URL of STS, which gives roles [env: AWS_ENDPOINT_URL_STS]
    #[arg(long, value_name = "URL")]
    sts_endpoint: Option<String>,
    /// Use FIPS endpoints only [env: AWS_USE_FIPS_ENDPOINT]
    #[arg(long)]
    use_fips: bool,
    /// Use endpoints that have IPv6 addresses too [env: AWS_USE_DUALSTACK_ENDPOINT]
    #[arg(long)]
    use_dualstack: bool,
    /// Certificate authorities to trust instead of the system's, in PEM [env: AWS_CA_BUNDLE]
    #[arg(long, value_name = "FILE")]
    ca_bundle: Option<PathBuf>,
    /// What an option of a target says instead.
    #[arg(skip)]
    target: TargetAws,
    /// Counts the requests of all clients that are made from these options.
    #[arg(skip)]
    pub(super) requests: RequestCounts,
    /// Receives each request of them.
    #[arg(skip)]
    pub(super) observer: Observer,
}

/// The account and Region of a target, as options other than those of the source name them.
#[derive(Clone, Debug, Default)]
pub(super) struct TargetAws {
    /// Whether settings are those of a target.
    pub(super) is_target: bool,
    /// What its options begin with; `to` where it is empty.
    pub(super) role: &'static str,
    pub(super) profile: Option<String>,
    /// The Region, and what named it.
    pub(super) region: Option<Given<String>>,
    pub(super) endpoint_url: Option<String>,
    pub(super) ca_bundle: Option<PathBuf>,
}

impl AwsArgs {
    /// The same for the account or Region of a target: what is not given is as here, except for the endpoints of another
    /// Region.
    pub(super) fn for_target(&self, target: TargetAws, same_region: bool) -> Self {
        let mut other = self.clone();
        if !same_region || target.endpoint_url.is_some() {
            other.endpoint_url = None;
            other.ebs_endpoint = None;
            other.ec2_endpoint = None;
        }
        if target.endpoint_url.is_some() {
            other.s3_endpoint = None;
        }
        other.target = TargetAws {
            is_target: true,
            ..target
        };
        other
    }

    /// The options that give the same settings to another process of this program, as settings of its source.
    pub(super) fn words(&self) -> Vec<OsString> {
        let target = &self.target;
        let region = target.region.as_ref().map(|region| &region.value);
        let mut words = Vec::new();
        for (option, value) in [
            ("--region", region.or(self.region.as_ref())),
            (
                "--profile",
                target.profile.as_ref().or(self.profile.as_ref()),
            ),
            (
                "--endpoint-url",
                target.endpoint_url.as_ref().or(self.endpoint_url.as_ref()),
            ),
            ("--ebs-endpoint", self.ebs_endpoint.as_ref()),
            ("--ec2-endpoint", self.ec2_endpoint.as_ref()),
            ("--s3-endpoint", self.s3_endpoint.as_ref()),
            ("--sts-endpoint", self.sts_endpoint.as_ref()),
        ] {
            words.extend(option_word(option, value));
        }
        let bundle = target.ca_bundle.as_ref().or(self.ca_bundle.as_ref());
        words.extend(option_word("--ca-bundle", bundle));
        words.extend(self.use_fips.then(|| "--use-fips".into()));
        words.extend(self.use_dualstack.then(|| "--use-dualstack".into()));
        words
    }

    /// The settings, each with the option that gives it.
    pub(super) fn settings(&self) -> Settings {
        let given = |value: &Option<String>, option: &str| {
            let value = value.clone();
            value.map(|value| Given::new(value, option))
        };
        let flag = |is_set: bool, option: &str| is_set.then(|| Given::new(true, option));
        let target = &self.target;
        let path = |path: &Option<PathBuf>, option: &str| {
            let path = path.clone();
            path.map(|path| Given::new(path, option))
        };
        let role = if target.role.is_empty() {
            "to"
        } else {
            target.role
        };
        let its = |option: &str| format!("--{role}-{option}");
        let (profile_option, region_option) = match target.is_target {
            true => (its("profile"), its("region")),
            false => ("--profile".to_owned(), "--region".to_owned()),
        };
        let target_region = target.region.clone();
        Settings {
            region: target_region.or_else(|| given(&self.region, "--region")),
            profile: given(&target.profile, &its("profile"))
                .or_else(|| given(&self.profile, "--profile")),
            endpoint_url: given(&target.endpoint_url, &its("endpoint-url"))
                .or_else(|| given(&self.endpoint_url, "--endpoint-url")),
            ebs_endpoint: given(&self.ebs_endpoint, "--ebs-endpoint"),
            ec2_endpoint: given(&self.ec2_endpoint, "--ec2-endpoint"),
            s3_endpoint: given(&self.s3_endpoint, "--s3-endpoint"),
            sts_endpoint: given(&self.sts_endpoint, "--sts-endpoint"),
            ca_bundle: path(&target.ca_bundle, &its("ca-bundle"))
                .or_else(|| path(&self.ca_bundle, "--ca-bundle")),
            use_fips: flag(self.use_fips, "--use-fips"),
            use_dual_stack: flag(self.use_dualstack, "--use-dualstack"),
            profile_option,
            region_option,
            requests: self.requests.clone(),
            observer: self.observer.clone(),
        }
    }

    /// AWS with a Region, its credentials loaded once.
    pub(super) async fn load_with_credentials(&self) -> Result<Aws> {
        let aws = self.load().await?;
        aws.check_credentials().await?;
        Ok(aws)
    }

    /// AWS with a Region; credentials are loaded by the first call.
    pub(super) async fn load(&self) -> Result<Aws> {
        self.settings().load().await?.with_region()
    }

    /// AWS for an object store, which may have no Region; its credentials loaded once.
    pub(super) async fn load_for_store(&self) -> Result<Aws> {
        let aws = self.settings().load().await?;
        aws.check_credentials().await?;
        Ok(aws)
    }

    /// Connections to a store that is not one of AWS's, with the proxies and certificate authorities of the environment.
    ///
    /// # Errors
    /// `Invalid` for a proxy or a bundle that cannot be used.
    pub(super) fn http(&self) -> Result<Http> {
        let settings = self.settings();
        let given = settings.ca_bundle.map(|given| given.value);
        let variable = || std::env::var_os("AWS_CA_BUNDLE").map(PathBuf::from);
        let found = given.or_else(variable);
        let bundle = found.filter(|file| !file.as_os_str().is_empty());
        let proxies = Proxies::of_variables(|name| {
            std::env::var(name).ok().filter(|value| !value.is_empty())
        })?;
        Ok(Http::new(proxies, bundle.as_deref())?.observed_by(self.observer.clone()))
    }
}

/// The client and the catalog over it, with what EC2 tells where that is built in.
pub(super) fn catalog(
    aws: &Aws,
    limits: &Limits,
    select: Vec<Selector>,
) -> Result<(Arc<Client>, Arc<EbsCatalog>)> {
    let client = Arc::new(Client::new(&aws.service(Service::Ebs)?, limits));
    let catalog = EbsCatalog::new(Arc::clone(&client), descriptions(aws)?, select);
    Ok((client, Arc::new(catalog)))
}

/// Where the snapshots are: Region and endpoint.
pub(super) fn place(aws: &Aws) -> Result<String> {
    let endpoint = aws.service(Service::Ebs)?.endpoint("EBS");
    let region = aws.region().unwrap_or("none");
    Ok(format!("Region {region}, endpoint {endpoint}"))
}

/// What EC2 tells, where that is built in.
pub(super) fn descriptions(aws: &Aws) -> Result<Option<Arc<dyn Descriptions>>> {
    Ok(descriptions_by(&aws.service(Service::Ec2)?))
}

/// The same by the settings of a client.
#[cfg(feature = "ec2")]
pub(super) fn descriptions_by(config: &ServiceConfig) -> Option<Arc<dyn Descriptions>> {
    Some(Arc::new(crate::ec2::Ec2::new(config)))
}

/// Nothing: EC2 is not built in.
#[cfg(not(feature = "ec2"))]
pub(super) fn descriptions_by(_config: &ServiceConfig) -> Option<Arc<dyn Descriptions>> {
    None
}

/// What makes snapshots of volumes.
#[cfg(feature = "ec2")]
pub(super) fn snapshot_maker(aws: &Aws) -> Result<Arc<dyn SnapshotMaker>> {
    let config = aws.service(Service::Ec2)?;
    Ok(Arc::new(crate::ec2::Ec2::new(&config)))
}

/// An error: EC2 is not built in.
#[cfg(not(feature = "ec2"))]
pub(super) fn snapshot_maker(_aws: &Aws) -> Result<Arc<dyn SnapshotMaker>> {
    let what = "cannot make snapshots: this build has no EC2 client";
    let error = Error::new(Kind::Invalid, what);
    Err(error.with_remedy(Remedy::Do("build ebsfs with its feature ec2".into())))
}

/// What describes instances.
#[cfg(feature = "ec2")]
pub(super) fn machines(aws: &Aws) -> Result<Arc<dyn DescribeMachine>> {
    let config = aws.service(Service::Ec2)?;
    Ok(Arc::new(crate::ec2::Ec2::new(&config)))
}

/// An error: EC2 is not built in.
#[cfg(not(feature = "ec2"))]
pub(super) fn machines(_aws: &Aws) -> Result<Arc<dyn DescribeMachine>> {
    let what = "cannot describe instances: this build has no EC2 client";
    let error = Error::new(Kind::Invalid, what);
    Err(error.with_remedy(Remedy::Do("build ebsfs with its feature ec2".into())))
}

/// What EC2 tells, for a command that is nothing without it.
pub(super) fn needed_descriptions(aws: &Aws, what: &str) -> Result<Arc<dyn Descriptions>> {
    descriptions(aws)?.ok_or_else(|| {
        let error = Error::new(
            Kind::Invalid,
            format!("{what}: this build has no EC2 client"),
        );
        error.with_remedy(Remedy::Do("name snapshots by their ids".into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        aws: AwsArgs,
    }

    fn parsed(words: impl IntoIterator<Item = OsString>) -> AwsArgs {
        let words = std::iter::once("ebsfs".into()).chain(words);
        CommandLine::try_parse_from(words).unwrap().aws
    }

    #[test]
    fn the_words_of_options_are_read_as_the_same_options() {
        let line = "--region eu-west-1 --profile p --endpoint-url http://a --ebs-endpoint http://b --ec2-endpoint http://c \
            --s3-endpoint http://d --sts-endpoint http://e --ca-bundle /ca.pem --use-fips --use-dualstack";
        let given: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let whole = parsed(given.clone());
        // Ten options, one word each.
        assert_eq!(whole.words().len(), 10);
        assert_eq!(parsed(whole.words()).words(), whole.words());
        let none: [OsString; 0] = [];
        assert_eq!(parsed(none.clone()).words(), none);
        // What a target says goes before; endpoints of the source are not those of another Region.
        let its = TargetAws {
            profile: Some("dr".into()),
            region: Some(Given::new("us-east-1".to_owned(), "region")),
            ca_bundle: Some("/dr.pem".into()),
            ..TargetAws::default()
        };
        let words = whole.for_target(its, false).words();
        let line: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(
            line.join(" "),
            "--region=us-east-1 --profile=dr --s3-endpoint=http://d --sts-endpoint=http://e --ca-bundle=/dr.pem --use-fips \
             --use-dualstack"
        );
    }
}
