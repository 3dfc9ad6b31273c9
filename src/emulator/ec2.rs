//! The EC2 query API, as far as snapshots need it. DescribeSnapshots is in [`snapshots`], an account with more of them
//! than the folder has in [`account`].
//!
//! One instance, `i-0123456789abcdef0`, has all volumes of the folder attached, the first of them as its root.

mod account;
mod snapshots;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::record::{Record, millis};
use super::reply::{Refusal, Reply, ec2_reply, request_id};
use super::store::is_volume_id;
use super::{ACCOUNT, Emulator, REGION};
use snapshots::{snapshot_fields, unknown_snapshot};

const INSTANCE: &str = "i-0123456789abcdef0";
const GIB: u64 = 1 << 30;
/// Tags of a resource (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html>).
const MOST_TAGS: usize = 50;

/// The form of a query call: `Filter.1.Value.2=x`.
struct Form(BTreeMap<String, String>);

impl Form {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// `NAME.1`, `NAME.2` and so on.
    fn list(&self, name: &str) -> Vec<&str> {
        (1..)
            .map_while(|n| self.get(&format!("{name}.{n}")))
            .collect()
    }

    /// Filters: names and the values of which one must match.
    fn filters(&self) -> Vec<(&str, Vec<&str>)> {
        (1..)
            .map_while(|n| {
                let name = self.get(&format!("Filter.{n}.Name"))?;
                Some((name, self.list(&format!("Filter.{n}.Value"))))
            })
            .collect()
    }

    /// Tags of `TagSpecification.N` for snapshots.
    fn tags(&self) -> BTreeMap<String, String> {
        (1..)
            .map_while(|n| {
                let kind = self.get(&format!("TagSpecification.{n}.ResourceType"))?;
                Some((n, kind))
            })
            .filter(|(_, kind)| *kind == "snapshot")
            .flat_map(|(n, _)| self.tag_list(&format!("TagSpecification.{n}.Tag")))
            .collect()
    }

    fn tag_list(&self, prefix: &str) -> Vec<(String, String)> {
        (1..)
            .map_while(|n| {
                let key = self.get(&format!("{prefix}.{n}.Key"))?;
                let value = self.get(&format!("{prefix}.{n}.Value")).unwrap_or_default();
                Some((key.to_owned(), value.to_owned()))
            })
            .collect()
    }
}

impl Emulator {
    /// Performs one action. In another Region there is nothing.
    pub(super) fn ec2(&self, action: &str, body: &[u8], here: bool) -> Result<Reply, Refusal> {
        let form = Form(form_urlencoded::parse(body).into_owned().collect());
        let inner = match action {
            "DescribeSnapshots" => self.describe_snapshots(&form, here)?,
            "DescribeVolumes" => self.describe_volumes(&form, here)?,
            "DescribeInstances" => self.describe_instances(here)?,
            "DescribeRegions" => format!(
                "<regionInfo><item><regionName>{REGION}</regionName><regionEndpoint>ec2.{REGION}.amazonaws.com\
                 </regionEndpoint><optInStatus>opt-in-not-required</optInStatus></item></regionInfo>"
            ),
            "CreateSnapshot" => {
                let volume = form.get("VolumeId").unwrap_or_default();
                let description = form.get("Description").unwrap_or_default();
                let record = self.create_snapshot(volume, description, form.tags())?;
                snapshot_fields(&record, None, millis(self.now()))
            }
            "CreateSnapshots" => self.create_snapshots(&form)?,
            "CreateTags" => self.create_tags(&form, here)?,
            "DeleteSnapshot" => self.delete_snapshot(form.get("SnapshotId").unwrap_or_default())?,
            "GetEbsEncryptionByDefault" => format!(
                "<ebsEncryptionByDefault>{}</ebsEncryptionByDefault>",
                self.switches().encryption_by_default
            ),
            _ => {
                let message = format!("The action {action} is not valid for this web service.");
                return Err(Refusal::new(400, "InvalidAction", None, message));
            }
        };
        let id = request_id();
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{action}Response \
             xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>{id}</requestId>{inner}</{action}Response>"
        );
        Ok(ec2_reply(200, &id, text))
    }

    fn volumes_here(&self, here: bool) -> Result<Vec<(String, u64)>, Refusal> {
        if !here {
            return Ok(Vec::new());
        }
        self.store.lock().volumes().map_err(|_| Refusal::internal())
    }

    fn describe_volumes(&self, form: &Form, here: bool) -> Result<String, Refusal> {
        let ids = form.list("VolumeId");
        let volumes = self.volumes_here(here)?;
        if let Some(id) = ids
            .iter()
            .find(|id| !volumes.iter().any(|(volume, _)| volume == *id))
        {
            let message = format!("The volume '{id}' does not exist.");
            return Err(Refusal::new(400, "InvalidVolume.NotFound", None, message));
        }
        let mut text = String::from("<volumeSet>");
        for (n, (id, bytes)) in volumes.iter().enumerate() {
            if ids.is_empty() || ids.contains(&id.as_str()) {
                let _ = write!(
                    text,
                    "<item><volumeId>{id}</volumeId><size>{}</size><availabilityZone>{REGION}a</availabilityZone>\
                     <status>in-use</status><volumeType>gp3</volumeType><encrypted>false</encrypted><attachmentSet>\
                     <item><volumeId>{id}</volumeId><instanceId>{INSTANCE}</instanceId><device>{}</device>\
                     <status>attached</status></item></attachmentSet></item>",
                    bytes.div_ceil(GIB).max(1),
                    device(n)
                );
            }
        }
        text.push_str("</volumeSet>");
        Ok(text)
    }

    fn describe_instances(&self, here: bool) -> Result<String, Refusal> {
        let volumes = self.volumes_here(here)?;
        if volumes.is_empty() {
            return Ok("<reservationSet/>".into());
        }
        let mut disks = String::new();
        for (n, (id, _)) in volumes.iter().enumerate() {
            let _ = write!(
                disks,
                "<item><deviceName>{}</deviceName><ebs><volumeId>{id}</volumeId><status>attached</status></ebs></item>",
                device(n)
            );
        }
        Ok(format!(
            "<reservationSet><item><reservationId>r-0123456789abcdef0</reservationId><ownerId>{ACCOUNT}</ownerId>\
             <instancesSet><item><instanceId>{INSTANCE}</instanceId><instanceState><code>16</code><name>running</name>\
             </instanceState><rootDeviceName>{}</rootDeviceName><blockDeviceMapping>{disks}</blockDeviceMapping>\
             </item></instancesSet></item></reservationSet>",
            device(0)
        ))
    }

    pub(super) fn create_snapshot(
        &self,
        volume: &str,
        description: &str,
        tags: BTreeMap<String, String>,
    ) -> Result<Record, Refusal> {
        if !is_volume_id(volume) {
            let message =
                format!("Value ({volume}) for parameter volumeId is invalid. Expected: 'vol-...'.");
            return Err(Refusal::new(400, "InvalidParameterValue", None, message));
        }
        let now = self.now();
        let settles = now + Duration::from_millis(self.switches().pending_ms);
        let created = self
            .store
            .lock()
            .create(volume, description, tags, now, settles);
        created.map_err(|_| Refusal::internal())?.ok_or_else(|| {
            let message = format!("The volume '{volume}' does not exist.");
            Refusal::new(400, "InvalidVolume.NotFound", None, message)
        })
    }

    fn create_snapshots(&self, form: &Form) -> Result<String, Refusal> {
        let instance = form
            .get("InstanceSpecification.InstanceId")
            .unwrap_or_default();
        if instance != INSTANCE {
            let message = format!("The instance ID '{instance}' does not exist");
            return Err(Refusal::new(
                400,
                "InvalidInstanceID.NotFound",
                None,
                message,
            ));
        }
        let no_boot = form.get("InstanceSpecification.ExcludeBootVolume") == Some("true");
        let excluded = form.list("InstanceSpecification.ExcludeDataVolumeId");
        let volumes = self.volumes_here(true)?;
        let chosen = volumes.iter().enumerate().filter(|(n, (id, _))| {
            if *n == 0 {
                !no_boot
            } else {
                !excluded.contains(&id.as_str())
            }
        });
        let description = form.get("Description").unwrap_or_default();
        let mut text = String::from("<snapshotSet>");
        for (_, (id, _)) in chosen {
            let record = self.create_snapshot(id, description, form.tags())?;
            let fields = snapshot_fields(&record, None, millis(self.now()));
            let _ = write!(text, "<item>{fields}</item>");
        }
        text.push_str("</snapshotSet>");
        Ok(text)
    }

    /// Tags of all the resources or of none. A resource that is another account's is one that does not exist.
    fn create_tags(&self, form: &Form, here: bool) -> Result<String, Refusal> {
        let ids = form.list("ResourceId");
        let tags = form.tag_list("Tag");
        if ids.is_empty() || tags.is_empty() {
            let message = "The request must contain the parameters resourceIdSet and tagSet";
            return Err(Refusal::new(400, "MissingParameter", None, message));
        }
        if let Some((key, _)) = tags.iter().find(|(key, _)| key.starts_with("aws:")) {
            let message = format!("Tag keys starting with 'aws:' are reserved: {key}");
            return Err(Refusal::new(400, "InvalidParameterValue", None, message));
        }
        let mut store = self.store.lock();
        let mut tagged = Vec::new();
        for id in ids {
            let found = store.get(id).filter(|_| here);
            let Some(snapshot) = found.filter(|found| found.record.owner == ACCOUNT) else {
                return Err(unknown_snapshot(id));
            };
            let mut record = snapshot.record.clone();
            record.tags.extend(tags.iter().cloned());
            if record.tags.len() > MOST_TAGS {
                let message = format!("More than {MOST_TAGS} tags on '{id}'");
                return Err(Refusal::new(400, "TagLimitExceeded", None, message));
            }
            tagged.push(record);
        }
        for record in tagged {
            store.save(&record).map_err(|_| Refusal::internal())?;
            if let Some(snapshot) = store.get_mut(&record.id) {
                snapshot.record = record;
            }
        }
        Ok("<return>true</return>".into())
    }

    fn delete_snapshot(&self, id: &str) -> Result<String, Refusal> {
        let mut store = self.store.lock();
        let snapshot = store
            .get_mut(id)
            .filter(|snapshot| snapshot.record.owner == ACCOUNT)
            .ok_or_else(|| unknown_snapshot(id))?;
        // Its blocks stay for the snapshots that share them.
        snapshot.record.deleted = true;
        let record = snapshot.record.clone();
        store.save(&record).map_err(|_| Refusal::internal())?;
        Ok("<return>true</return>".into())
    }
}

fn device(n: usize) -> String {
    let letter = (b'a'..=b'z').nth(n).unwrap_or(b'z');
    format!("/dev/xvd{}", char::from(letter))
}
