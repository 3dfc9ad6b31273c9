//! Opens the targets of a sync by their names, and refuses targets that are the source or each other.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::aws::{self, AwsArgs, TargetAws};
use super::store::{StoreArgs, StoreOptions, Style, list_version};
use crate::aws::{Aws, Given};
use crate::ebs::{Client, Limits};
use crate::error::{Error, Kind, Result};
use crate::files::folder_of;
use crate::formats::ImageFormat;
use crate::replicate::TargetAccess;
use crate::repository::{Address, RepositoryTarget};
use crate::snapshot::{SnapshotId, SnapshotMaker};
use crate::sync::overlaps;
use crate::target::{SourceInfo, Target, TargetKind};
use crate::targets::{DeviceTarget, EbsAccount, EbsJob, EbsTarget, ImageTarget, mounted_twins};

/// Characters of a tag (API_Tag of the EBS direct APIs).
const LONGEST_KEY: usize = 127;
const LONGEST_VALUE: usize = 255;

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "New EBS snapshots and repositories")]
pub(super) struct ToArgs {
    /// AWS profile for the new snapshot or the bucket [default: the source's]
    #[arg(long, value_name = "PROFILE")]
    to_profile: Option<String>,
    /// Region of the new snapshot or the bucket; ebs:REGION goes before it [default: the source's]
    #[arg(long, value_name = "REGION")]
    to_region: Option<String>,
    /// URL of EBS and EC2 for the target [default: the source's, if the Region is the same], or of the object store
    #[arg(long, value_name = "URL")]
    to_endpoint_url: Option<String>,
    /// Certificate authorities to trust for the target [default: the source's]
    #[arg(long, value_name = "FILE")]
    to_ca_bundle: Option<PathBuf>,
    /// Place of the target bucket's name in requests to s3:// [default: as --bucket-style]
    #[arg(long, value_enum, value_name = "STYLE")]
    to_bucket_style: Option<Style>,
    /// Version of ListObjects to ask a target in s3:// for [default: as --list-version]
    #[arg(long, value_name = "VERSION", value_parser = list_version())]
    to_list_version: Option<u8>,
    /// Encrypt the new snapshot with the KMS key of this ARN; a child of another snapshot must have its parent's key
    #[arg(long, value_name = "ARN", conflicts_with = "parent")]
    kms_key: Option<String>,
    /// Make the new snapshot a child of this completed one; with --base it must be proven to hold that base
    #[arg(long, value_name = "SNAPSHOT")]
    parent: Option<SnapshotId>,
    /// Tag of the new snapshot, besides those of ebsfs; repeat for several
    #[arg(long, value_name = "KEY=VALUE", value_parser = tag)]
    tag: Vec<(String, String)>,
    /// Description of the new snapshot, cut at 255 characters
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

fn tag(text: &str) -> std::result::Result<(String, String), String> {
    let tag = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = tag.ok_or_else(|| "must be KEY=VALUE".to_owned())?;
    if key.chars().count() > LONGEST_KEY || value.chars().count() > LONGEST_VALUE {
        return Err(format!(
            "a key has at most {LONGEST_KEY} characters, a value {LONGEST_VALUE}"
        ));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// An image or a device.
pub(super) fn local_target(
    name: &str,
    in_place: bool,
    is_shared: bool,
    state_dir: &Path,
) -> Result<Arc<dyn Target>> {
    let path = Path::new(name);
    let found = std::fs::metadata(path);
    Ok(match found {
        Ok(found) if found.file_type().is_block_device() => {
            let device = DeviceTarget::new(path, state_dir)?;
            Arc::new(if is_shared { device.shared() } else { device })
        }
        _ => Arc::new(ImageTarget::new(path, in_place)?),
    })
}

/// An image or a device that must be there already.
pub(super) fn existing_target(name: &str, state_dir: &Path) -> Result<Arc<dyn Target>> {
    if name.starts_with("ebs:") || Address::looks_like(name) {
        let what =
            format!("cannot use {name}: it is neither an image nor a device of this machine");
        return Err(Error::new(Kind::Invalid, what));
    }
    let path = Path::new(name);
    std::fs::metadata(path).map_err(|error| Error::of_file(path, "cannot find", error))?;
    local_target(name, false, false, state_dir)
}

/// What records call the source of this name: a snapshot's id, or the whole path of an image or device.
pub(super) fn recorded_name(name: &str) -> Result<String> {
    if Address::looks_like(name) {
        let address: Address = name.parse()?;
        return Ok(address.select.unwrap_or_else(|| name.to_owned()));
    }
    if name.parse::<SnapshotId>().is_ok() {
        return Ok(name.to_owned());
    }
    let path = Path::new(name).canonicalize();
    Ok(path.map_or_else(|_| name.to_owned(), |path| path.display().to_string()))
}

/// How targets are reached and written, the same for all of a run.
pub(super) struct TargetRequest<'a> {
    pub(super) to: &'a ToArgs,
    pub(super) aws: &'a AwsArgs,
    pub(super) store: StoreOptions,
    pub(super) limits: Limits,
    pub(super) state_dir: &'a Path,
    /// Whether images are changed themselves.
    pub(super) in_place: bool,
    /// Whether other hosts can write the devices.
    pub(super) is_shared: bool,
    pub(super) dedup: bool,
    /// Whether new qcow2 images are compressed.
    pub(super) compress: bool,
}

/// Opens the target of a name. It makes nothing.
pub(super) async fn connect(
    args: &TargetRequest<'_>,
    name: &str,
    source: &SourceInfo,
    clients: &mut Vec<Arc<Client>>,
) -> Result<Arc<dyn Target>> {
    let state_dir = args.state_dir;
    if let Some(region) = name.strip_prefix("ebs:") {
        let place = args.to.place(region, args).await?;
        clients.push(Arc::clone(&place.client));
        return Ok(Arc::new(EbsTarget::new(
            place,
            args.to.job(),
            source,
            state_dir,
        )?));
    }
    if !Address::looks_like(name) && args.compress && is_qcow2(name) {
        let target = ImageTarget::new(Path::new(name), args.in_place)?;
        return Ok(Arc::new(target.compressed()));
    }
    if !Address::looks_like(name) {
        return local_target(name, args.in_place, args.is_shared, state_dir);
    }
    let address: Address = name.parse()?;
    address.names_no_snapshot()?;
    let aws = args.to.account(args.aws);
    let catalog = args.store.repository(&address, &aws).await?;
    Ok(Arc::new(RepositoryTarget::new(
        catalog, args.dedup, source, state_dir,
    )))
}

/// Refuses a target that is another one of the run, the source itself, or within either.
pub(super) fn check(
    others: &[Arc<dyn Target>],
    target: &dyn Target,
    source: &SourceInfo,
) -> Result<()> {
    let name = target.name();
    let refused = |what: String| Err(Error::new(Kind::Invalid, what));
    if others.iter().any(|other| other.id() == target.id()) {
        return refused(format!("cannot write {name}: it is named twice"));
    }
    // A snapshot's name is no path.
    if target.kind().is_new() || source.snapshot.is_some() {
        return Ok(());
    }
    if source.name == name {
        return refused(format!("cannot write {name}: it is the source itself"));
    }
    if overlaps(Path::new(&source.name), Path::new(name))? {
        return refused(format!(
            "cannot write {name}: it and the source {} are on one disk or file, one within the other",
            source.name
        ));
    }
    Ok(())
}

fn is_qcow2(name: &str) -> bool {
    ImageFormat::of(Path::new(name)) == ImageFormat::Qcow2
}

/// Refuses `--compress` where no target is a qcow2 image.
pub(super) fn check_compress(compress: bool, targets: &[String]) -> Result<()> {
    if !compress || targets.iter().any(|name| is_qcow2(name)) {
        return Ok(());
    }
    let what = "cannot use --compress: none of the targets is a .qcow2 file";
    Err(Error::new(Kind::Invalid, what))
}

/// Refuses `--dedup` where no target is a repository.
pub(super) fn check_dedup(dedup: bool, targets: &[Arc<dyn Target>]) -> Result<()> {
    let is_repository = |target: &Arc<dyn Target>| target.kind() == TargetKind::Repository;
    if !dedup || targets.is_empty() || targets.iter().any(is_repository) {
        return Ok(());
    }
    let what = "cannot use --dedup: none of the targets is a repository";
    Err(Error::new(Kind::Invalid, what))
}

/// Refuses a report in the place of a target or of the source: it would replace what is there.
pub(super) fn check_report<'a>(
    report: &Path,
    names: impl IntoIterator<Item = &'a String>,
) -> Result<()> {
    let place = place_of(report);
    for name in names {
        if place.is_some() && place == place_of(Path::new(name)) {
            let what = format!(
                "cannot write the report to {}: {name} is the same file",
                report.display()
            );
            return Err(Error::new(Kind::Invalid, what));
        }
    }
    Ok(())
}

/// What tells a file from others: its inode, or where it will be.
#[derive(PartialEq, Eq)]
enum FileIdentity {
    There { device: u64, inode: u64 },
    Absent(PathBuf),
}

fn place_of(path: &Path) -> Option<FileIdentity> {
    if let Ok(found) = std::fs::metadata(path) {
        return Some(FileIdentity::There {
            device: found.dev(),
            inode: found.ino(),
        });
    }
    let folder = folder_of(path).canonicalize().ok()?;
    Some(FileIdentity::Absent(folder.join(path.file_name()?)))
}

/// Warns of target devices with the UUID of a filesystem or disk that is mounted here: the machine cannot tell them apart.
pub(super) async fn warn_of_twins(targets: &[String]) {
    for target in targets {
        let path = Path::new(target);
        let found = std::fs::metadata(path);
        if found.is_ok_and(|found| found.file_type().is_block_device()) {
            for twin in mounted_twins(path).await {
                tracing::warn!("{target}: {twin}");
            }
        }
    }
}

impl ToArgs {
    /// The options of a target of a job.
    pub(super) fn of_job(access: &TargetAccess, tags: Vec<(String, String)>) -> Self {
        Self {
            to_profile: access.profile.clone(),
            to_region: access.region.clone(),
            to_endpoint_url: access.endpoint_url.clone(),
            to_ca_bundle: access.ca_bundle.clone(),
            kms_key: access.kms_key.clone(),
            tag: tags,
            ..Self::default()
        }
    }

    /// How a target's bucket is asked.
    pub(super) fn store(&self, source: &StoreArgs) -> StoreArgs {
        source.for_target(self.to_bucket_style, self.to_list_version)
    }

    /// Which options of s3:// were given.
    pub(super) fn given(&self) -> [(&'static str, bool); 2] {
        [
            ("--to-bucket-style", self.to_bucket_style.is_some()),
            ("--to-list-version", self.to_list_version.is_some()),
        ]
    }

    /// The first option that was given of those that belong to one new snapshot, or to a bucket.
    pub(super) fn of_one_snapshot(&self) -> Option<&'static str> {
        let parent = [("--parent", self.parent.is_some())];
        let given = parent.into_iter().chain(self.given());
        given
            .into_iter()
            .find_map(|(name, is_given)| is_given.then_some(name))
    }

    /// The first option that was given.
    pub(super) fn first_given(&self) -> Option<&'static str> {
        let others = [
            ("--to-profile", self.to_profile.is_some()),
            ("--to-region", self.to_region.is_some()),
            ("--to-endpoint-url", self.to_endpoint_url.is_some()),
            ("--to-ca-bundle", self.to_ca_bundle.is_some()),
            ("--kms-key", self.kms_key.is_some()),
            ("--tag", !self.tag.is_empty()),
            ("--description", self.description.is_some()),
        ];
        let mut others = others.into_iter();
        let other = others.find_map(|(name, is_given)| is_given.then_some(name));
        self.of_one_snapshot().or(other)
    }

    /// The account of an object store.
    pub(super) fn account(&self, source: &AwsArgs) -> AwsArgs {
        source.for_target(self.options(self.region()), false)
    }

    fn region(&self) -> Option<Given<String>> {
        let region = self.to_region.clone();
        region.map(|region| Given::new(region, "--to-region"))
    }

    fn options(&self, region: Option<Given<String>>) -> TargetAws {
        TargetAws {
            role: "to",
            is_target: true,
            profile: self.to_profile.clone(),
            region,
            endpoint_url: self.to_endpoint_url.clone(),
            ca_bundle: self.to_ca_bundle.clone(),
        }
    }

    /// What the new snapshot is to be.
    pub(super) fn job(&self) -> EbsJob {
        EbsJob {
            kms_key: self.kms_key.clone(),
            parent: self.parent.clone(),
            tags: self.tag.clone(),
            description: self.description.clone(),
        }
    }

    /// The same, and what makes and deletes snapshots there.
    pub(super) async fn place_and_maker(
        &self,
        region: &str,
        account: &AwsArgs,
        limits: &Limits,
    ) -> Result<(EbsAccount, Arc<dyn SnapshotMaker>)> {
        let (place, config) = self.reach(region, account, limits).await?;
        Ok((place, aws::snapshot_maker(&config)?))
    }

    /// Reaches the account and Region of `ebs:REGION`; nothing is made.
    async fn place(&self, region: &str, args: &TargetRequest<'_>) -> Result<EbsAccount> {
        let (place, _) = self.reach(region, args.aws, &args.limits).await?;
        Ok(place)
    }

    /// The options of the account and Region where new EBS snapshots are made.
    pub(super) async fn ebs_account(
        &self,
        region: Option<Given<String>>,
        account: &AwsArgs,
    ) -> AwsArgs {
        let here = account.load().await.ok();
        let here = here.and_then(|here| here.region().map(str::to_owned));
        let wanted = region.as_ref().map(|given| given.value.clone());
        let same_region = wanted.is_none() || wanted == here;
        account.for_target(self.options(region), same_region)
    }

    /// The Region of `ebs:REGION`, or the one of the options.
    pub(super) fn ebs_region(&self, region: &str) -> Option<Given<String>> {
        (!region.is_empty())
            .then(|| Given::new(region.to_owned(), "ebs:REGION"))
            .or_else(|| self.region())
    }

    async fn reach(
        &self,
        region: &str,
        account: &AwsArgs,
        limits: &Limits,
    ) -> Result<(EbsAccount, Aws)> {
        let region = self.ebs_region(region);
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let wrong = region.as_ref().map(|given| &given.value);
        if let Some(wrong) = wrong.filter(|region| !region.chars().all(is_name)) {
            let what = format!("cannot use ebs:{wrong}: {wrong:?} is not the name of a Region");
            return Err(Error::new(Kind::Invalid, what));
        }
        if let Some(key) = self.kms_key.as_ref().filter(|key| !key.starts_with("arn:")) {
            let what = format!("cannot use --kms-key {key}: it must be an ARN (arn:aws:kms:...)");
            return Err(Error::new(Kind::Invalid, what));
        }
        let to = self.ebs_account(region, account).await;
        let config = to.load_with_credentials().await?;
        let region = config.region().unwrap_or_default();
        let descriptions = aws::needed_descriptions(&config, "cannot use an ebs: target")?;
        let (client, catalog) = aws::catalog(&config, limits, Vec::new())?;
        let place = EbsAccount {
            region: region.to_owned(),
            account: match &self.to_profile {
                Some(profile) => format!("{}, {profile}", client.endpoint()),
                None => client.endpoint().to_owned(),
            },
            client,
            descriptions,
            catalog,
        };
        Ok((place, config))
    }
}
