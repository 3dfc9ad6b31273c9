//! The EC2 query API, as far as snapshots need it. DescribeSnapshots is in [`snapshots`], an account with more of them
//! than the folder has in [`account`], volumes and instances are in [`volumes`], what makes snapshots in [`create`], the
//! surroundings of instances in [`machine`].
//!
//! One instance, `i-0123456789abcdef0`, has all volumes of the folder attached, the first of them as its root, unless the
//! control endpoint says that they are another's or none's.

mod account;
mod create;
mod machine;
mod snapshots;
mod volumes;

use std::collections::BTreeMap;

use super::caller::Caller;
use super::record::millis;
use super::reply::{Refusal, Reply, ec2_reply, request_id};
use super::{ACCOUNT, Emulator};
use snapshots::{snapshot_fields, unknown_snapshot};

const INSTANCE: &str = "i-0123456789abcdef0";
/// Tags of a resource (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html>).
const MOST_TAGS: usize = 50;

/// The form of a query call: `Filter.1.Value.2=x`.
pub(super) struct QueryForm(BTreeMap<String, String>);

impl QueryForm {
    pub(super) fn parse(body: &[u8]) -> Self {
        Self(form_urlencoded::parse(body).into_owned().collect())
    }

    /// The names of all parameters.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// `NAME.1`, `NAME.2` and so on.
    pub(super) fn list(&self, name: &str) -> Vec<&str> {
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
    pub(super) fn tags(&self) -> BTreeMap<String, String> {
        (1..)
            .map_while(|n| {
                let kind = self.get(&format!("TagSpecification.{n}.ResourceType"))?;
                Some((n, kind))
            })
            .filter(|(_, kind)| *kind == "snapshot")
            .flat_map(|(n, _)| self.tag_list(&format!("TagSpecification.{n}.Tag")))
            .collect()
    }

    pub(super) fn tag_list(&self, prefix: &str) -> Vec<(String, String)> {
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
    /// Performs one action, or says of a dry run that it is allowed. In another Region there is nothing.
    pub(super) fn ec2(
        &self,
        action: &str,
        body: &[u8],
        here: bool,
        caller: &Caller,
    ) -> Result<Reply, Refusal> {
        if action == "GetCallerIdentity" {
            return Ok(caller_identity(caller));
        }
        let form = QueryForm::parse(body);
        if action == "AssumeRole" {
            return self.assume_role(caller, &form);
        }
        if form.get("DryRun") == Some("true") {
            let message = "Request would have succeeded, but DryRun flag is set.";
            return Err(Refusal::new(412, "DryRunOperation", None, message));
        }
        let inner = match action {
            "DescribeSnapshots" => self.describe_snapshots(&form, here)?,
            "DescribeVolumes" => self.describe_volumes(&form, here)?,
            "DescribeInstances" => self.describe_instances(&form, here)?,
            "DescribeRegions" => {
                let region = self.region();
                format!(
                    "<regionInfo><item><regionName>{region}</regionName><regionEndpoint>ec2.{region}.amazonaws.com\
                     </regionEndpoint><optInStatus>opt-in-not-required</optInStatus></item></regionInfo>"
                )
            }
            "CreateSnapshot" => {
                let volume = form.get("VolumeId").unwrap_or_default();
                let description = form.get("Description").unwrap_or_default();
                let record = self.create_snapshot(volume, description, form.tags())?;
                snapshot_fields(&record, None, millis(self.now()))
            }
            "CreateSnapshots" => self.create_snapshots(&form, here)?,
            "CreateTags" => self.create_tags(&form, here)?,
            "DeleteSnapshot" => self.delete_snapshot(form.get("SnapshotId").unwrap_or_default())?,
            "GetEbsEncryptionByDefault" => format!(
                "<ebsEncryptionByDefault>{}</ebsEncryptionByDefault>",
                self.switches().encryption_by_default
            ),
            _ => match self.describe_surroundings(action, &form, here) {
                Some(described) => described?,
                None => {
                    let message = format!("The action {action} is not valid for this web service.");
                    return Err(Refusal::new(400, "InvalidAction", None, message));
                }
            },
        };
        let id = request_id();
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{action}Response \
             xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>{id}</requestId>{inner}</{action}Response>"
        );
        Ok(ec2_reply(200, &id, text))
    }

    /// Tags of all the resources or of none. A resource that is another account's is one that does not exist.
    fn create_tags(&self, form: &QueryForm, here: bool) -> Result<String, Refusal> {
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
        let now = millis(self.now());
        let mut store = self.store.lock();
        let mut tagged = Vec::new();
        for id in ids {
            let found = store.get(id).filter(|_| here);
            let found = found.filter(|found| found.record.owner == ACCOUNT);
            let Some(snapshot) = found.filter(|found| found.record.is_shown(now)) else {
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
            .filter(|snapshot| snapshot.record.owner == ACCOUNT && !snapshot.record.deleted)
            .ok_or_else(|| unknown_snapshot(id))?;
        let (image, locked) = (&snapshot.record.image, snapshot.record.locked);
        if !image.is_empty() {
            let message = format!("The snapshot {id} is currently in use by {image}");
            return Err(Refusal::new(400, "InvalidSnapshot.InUse", None, message));
        }
        if locked {
            let message = format!("The snapshot '{id}' is locked");
            return Err(Refusal::new(400, "SnapshotLocked", None, message));
        }
        // Its blocks stay for the snapshots that share them.
        snapshot.record.deleted = true;
        let record = snapshot.record.clone();
        store.save(&record).map_err(|_| Refusal::internal())?;
        Ok("<return>true</return>".into())
    }
}

/// The reply of STS.
fn caller_identity(caller: &Caller) -> Reply {
    let (id, arn) = (request_id(), caller.arn());
    let (unique, account) = (caller.unique_id(), caller.account());
    let text = format!(
        "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
         <Arn>{arn}</Arn><UserId>{unique}</UserId><Account>{account}</Account>\
         </GetCallerIdentityResult><ResponseMetadata><RequestId>{id}</RequestId></ResponseMetadata>\
         </GetCallerIdentityResponse>"
    );
    ec2_reply(200, &id, text)
}

/// Whether a value of a filter matches: `*` is any text and `?` any character, unless a backslash is before it
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html>).
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let mut rest = pattern.chars();
    let mut text_rest = text.chars();
    match rest.next() {
        None => text.is_empty(),
        Some('*') => {
            matches_pattern(rest.as_str(), text)
                || text_rest.next().is_some() && matches_pattern(pattern, text_rest.as_str())
        }
        Some('?') => {
            text_rest.next().is_some() && matches_pattern(rest.as_str(), text_rest.as_str())
        }
        Some(c) => {
            let literal = match c {
                '\\' => rest.next().unwrap_or(c),
                c => c,
            };
            text_rest.next() == Some(literal) && matches_pattern(rest.as_str(), text_rest.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_takes_wildcards_unless_they_are_escaped() {
        for (pattern, text, expected) in [
            ("web", "web", true),
            ("web", "web1", false),
            ("web*", "web1", true),
            ("*b?", "web1", true),
            ("w\\*", "w*", true),
            ("w\\*", "web", false),
            ("", "", true),
            ("*", "", true),
            ("?", "", false),
        ] {
            assert_eq!(matches_pattern(pattern, text), expected, "{pattern} {text}");
        }
    }
}
