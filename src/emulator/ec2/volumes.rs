//! DescribeVolumes and DescribeInstances.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::super::reply::{Refusal, escape};
use super::super::{ACCOUNT, Emulator};
use super::machine::instance_fields;
use super::snapshots::{max_results, page_start};
use super::{INSTANCE, QueryForm, matches_pattern};

const GIB: u64 = 1 << 30;

/// A volume of the folder.
pub(super) struct FolderVolume {
    pub(super) id: String,
    bytes: u64,
    /// The instance that it is attached to.
    instance: Option<String>,
    pub(super) tags: BTreeMap<String, String>,
}

/// A volume's id and tags.
pub(in super::super) type TaggedVolume = (String, BTreeMap<String, String>);

/// The volumes of an instance, the first of them being its root.
pub(super) fn attached_to<'a>(
    volumes: &'a [FolderVolume],
    instance: &str,
) -> Vec<&'a FolderVolume> {
    let attached = volumes.iter();
    attached
        .filter(|volume| volume.instance.as_deref() == Some(instance))
        .collect()
}

impl Emulator {
    pub(super) fn volumes_here(&self, here: bool) -> Result<Vec<FolderVolume>, Refusal> {
        if !here {
            return Ok(Vec::new());
        }
        let store = self.store.lock();
        let volumes = store.volumes().map_err(|_| Refusal::internal())?;
        let described = volumes.into_iter().map(|(id, bytes)| {
            let record = store.volume_record(&id);
            let instance = record.instance.unwrap_or_else(|| INSTANCE.to_owned());
            FolderVolume {
                id,
                bytes,
                instance: Some(instance).filter(|id| !id.is_empty()),
                tags: record.tags,
            }
        });
        Ok(described.collect())
    }

    /// The volumes of an instance with their tags, its root first.
    pub(in super::super) fn volumes_of(
        &self,
        instance: &str,
    ) -> Result<Vec<TaggedVolume>, Refusal> {
        let volumes = self.volumes_here(true)?;
        let attached = attached_to(&volumes, instance).into_iter();
        Ok(attached
            .map(|volume| (volume.id.clone(), volume.tags.clone()))
            .collect())
    }

    pub(super) fn describe_volumes(&self, form: &QueryForm, here: bool) -> Result<String, Refusal> {
        let ids = form.list("VolumeId");
        let filters = form.filters();
        let max = max_results(form, !ids.is_empty())?;
        let skip = form.get("NextToken").map_or(Ok(0), page_start)?;
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let volumes = self.volumes_here(here)?;
        if let Some(id) = ids
            .iter()
            .find(|id| !volumes.iter().any(|volume| volume.id == **id))
        {
            let message = format!("The volume '{id}' does not exist.");
            return Err(Refusal::new(400, "InvalidVolume.NotFound", None, message));
        }
        let asked: Vec<&FolderVolume> = volumes
            .iter()
            .filter(|volume| ids.is_empty() || ids.contains(&volume.id.as_str()))
            .filter(|volume| {
                filters
                    .iter()
                    .all(|(name, values)| matches(volume, name, values))
            })
            .collect();
        let region = self.region();
        let mut text = String::from("<volumeSet>");
        for volume in asked.iter().skip(skip).take(max) {
            let id = &volume.id;
            let status = match volume.instance {
                Some(_) => "in-use",
                None => "available",
            };
            let _ = write!(
                text,
                "<item><volumeId>{id}</volumeId><size>{}</size><availabilityZone>{region}a</availabilityZone>\
                 <status>{status}</status><volumeType>gp3</volumeType><iops>3000</iops>\
                 <throughput>125</throughput><encrypted>false</encrypted><multiAttachEnabled>false</multiAttachEnabled><attachmentSet>",
                volume.bytes.div_ceil(GIB).max(1),
            );
            if let Some(instance) = &volume.instance {
                let on_instance = attached_to(&volumes, instance);
                let place = on_instance.iter().position(|other| other.id == *id);
                let _ = write!(
                    text,
                    "<item><volumeId>{id}</volumeId><instanceId>{instance}</instanceId><device>{}</device>\
                     <status>attached</status></item>",
                    device(place.unwrap_or_default())
                );
            }
            text.push_str("</attachmentSet>");
            if !volume.tags.is_empty() {
                text.push_str("<tagSet>");
                for (key, value) in &volume.tags {
                    let (key, value) = (escape(key), escape(value));
                    let _ = write!(text, "<item><key>{key}</key><value>{value}</value></item>");
                }
                text.push_str("</tagSet>");
            }
            text.push_str("</item>");
        }
        text.push_str("</volumeSet>");
        let next = skip.saturating_add(max);
        if next < asked.len() {
            let token = STANDARD.encode(format!("page {next}"));
            let _ = write!(text, "<nextToken>{token}</nextToken>");
        }
        Ok(text)
    }

    pub(super) fn describe_instances(
        &self,
        form: &QueryForm,
        here: bool,
    ) -> Result<String, Refusal> {
        let volumes = self.volumes_here(here)?;
        let known: BTreeSet<&str> = volumes
            .iter()
            .filter_map(|volume| volume.instance.as_deref())
            .collect();
        let ids = form.list("InstanceId");
        if let Some(id) = ids.iter().find(|id| !known.contains(*id)) {
            let message = format!("The instance ID '{id}' does not exist");
            return Err(Refusal::new(
                400,
                "InvalidInstanceID.NotFound",
                None,
                message,
            ));
        }
        let asked = known
            .iter()
            .filter(|id| ids.is_empty() || ids.contains(*id));
        let mut text = String::from("<reservationSet>");
        for instance in asked {
            let mut disks = String::new();
            for (n, volume) in attached_to(&volumes, instance).iter().enumerate() {
                let _ = write!(
                    disks,
                    "<item><deviceName>{}</deviceName><ebs><volumeId>{}</volumeId><status>attached</status>\
                     <deleteOnTermination>{}</deleteOnTermination></ebs></item>",
                    device(n),
                    volume.id,
                    n == 0
                );
            }
            let _ = write!(
                text,
                "<item><reservationId>r-{}</reservationId><ownerId>{ACCOUNT}</ownerId><instancesSet><item>\
                 <instanceId>{instance}</instanceId><instanceState><code>16</code><name>running</name></instanceState>\
                 <rootDeviceName>{}</rootDeviceName><blockDeviceMapping>{disks}</blockDeviceMapping>{}</item></instancesSet>\
                 </item>",
                instance.trim_start_matches("i-"),
                device(0),
                instance_fields(instance, &self.region())
            );
        }
        text.push_str("</reservationSet>");
        Ok(text)
    }
}

fn matches(volume: &FolderVolume, filter: &str, values: &[&str]) -> bool {
    let is = |text: &str| values.iter().any(|value| matches_pattern(value, text));
    match filter {
        "volume-id" => is(&volume.id),
        "attachment.instance-id" => volume.instance.as_deref().is_some_and(is),
        "tag-key" => volume.tags.keys().any(|key| is(key)),
        _ => filter
            .strip_prefix("tag:")
            .and_then(|key| volume.tags.get(key))
            .is_some_and(|value| is(value)),
    }
}

fn device(n: usize) -> String {
    let letter = (b'a'..=b'z').nth(n).unwrap_or(b'z');
    format!("/dev/xvd{}", char::from(letter))
}
