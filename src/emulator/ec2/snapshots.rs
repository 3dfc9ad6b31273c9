//! DescribeSnapshots: ids, filters, pages, and how a snapshot is described.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::super::record::{SnapshotRecord, iso8601, millis};
use super::super::reply::{Refusal, escape};
use super::super::store::StoredSnapshot;
use super::super::{ACCOUNT, BLOCK, Emulator};
use super::{QueryForm, account, matches_pattern};

/// Results of a page when the call sets none.
const PAGE: usize = 1000;

impl Emulator {
    pub(super) fn describe_snapshots(
        &self,
        form: &QueryForm,
        here: bool,
    ) -> Result<String, Refusal> {
        let now = millis(self.now());
        let ids = form.list("SnapshotId");
        let owners = form.list("Owner");
        let filters = form.filters();
        let max = max_results(form, !ids.is_empty())?;
        let skip = form.get("NextToken").map_or(Ok(0), page_start)?;
        let more = match here {
            true => self.switches().account_snapshots,
            false => 0,
        };
        let store = self.store.lock();
        for id in &ids {
            match store.snapshots.get(*id) {
                Some(snapshot)
                    if here && !snapshot.record.deleted && snapshot.record.is_shown(now) => {}
                // EC2 knows the ids that it has given out once.
                Some(_) => return Err(no_snapshot(id)),
                None if account::position(id, more).is_some() => {}
                None => return Err(unknown_snapshot(id)),
            }
        }
        let is_asked_for = |record: &SnapshotRecord| {
            !record.deleted
                && record.is_shown(now)
                && (ids.is_empty() || ids.contains(&record.id.as_str()))
                && (owners.is_empty()
                    || owners.iter().any(|owner| {
                        *owner == record.owner || *owner == "self" && record.owner == ACCOUNT
                    }))
                && filters
                    .iter()
                    .all(|(name, values)| matches(record, name, values, now))
        };
        let mut matching: Vec<&StoredSnapshot> = store
            .snapshots
            .values()
            .filter(|snapshot| here && is_asked_for(&snapshot.record))
            .collect();
        // No order is documented: by number is one that no client should count on.
        matching.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.record.number));
        let mut text = String::from("<snapshotSet>");
        let mut described = 0;
        let mut item = |record: &SnapshotRecord, held| {
            let fields = snapshot_fields(record, Some(held), now);
            let _ = write!(text, "<item>{fields}</item>");
            described += 1;
            described >= max
        };
        // Positions: those of the folder first, then those of the account beyond it.
        let of_folder = matching.len() as u64;
        let mut next = None;
        for (position, snapshot) in (0..)
            .zip(&matching)
            .skip(usize::try_from(skip).unwrap_or(0))
        {
            if item(&snapshot.record, snapshot.held()) {
                next = Some(position + 1);
                break;
            }
        }
        if next.is_none() {
            let asked: Vec<u64> = ids
                .iter()
                .filter_map(|id| account::position(id, more))
                .collect();
            let rest = skip.saturating_sub(of_folder)..more;
            let positions: Box<dyn Iterator<Item = u64>> = match ids.is_empty() {
                true => Box::new(rest),
                false => Box::new(
                    asked
                        .into_iter()
                        .filter(move |position| rest.contains(position)),
                ),
            };
            for position in positions {
                let record = account::record(position);
                if is_asked_for(&record) && item(&record, account::held(position)) {
                    next = Some(of_folder + position + 1);
                    break;
                }
            }
        }
        text.push_str("</snapshotSet>");
        if let Some(next) = next.filter(|next| *next < of_folder + more) {
            let token = STANDARD.encode(format!("page {next}"));
            let _ = write!(text, "<nextToken>{token}</nextToken>");
        }
        Ok(text)
    }
}

/// How many snapshots a reply may hold
/// (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSnapshots.html>).
pub(super) fn max_results(form: &QueryForm, by_id: bool) -> Result<usize, Refusal> {
    let Some(text) = form.get("MaxResults") else {
        return Ok(PAGE);
    };
    if by_id {
        let message = "The parameter snapshotSet cannot be used with the parameter maxResults";
        return Err(Refusal::new(
            400,
            "InvalidParameterCombination",
            None,
            message,
        ));
    }
    let max = text.parse().ok().filter(|max| (5..=1000).contains(max));
    max.ok_or_else(|| {
        let message = format!("Value ( {text} ) for parameter maxResults is invalid.");
        Refusal::new(400, "InvalidParameterValue", None, message)
    })
}

pub(super) fn page_start(token: &str) -> Result<u64, Refusal> {
    let text = STANDARD.decode(token).ok();
    let text = text.and_then(|text| String::from_utf8(text).ok());
    let start = text.and_then(|text| text.strip_prefix("page ")?.parse().ok());
    start.ok_or_else(|| {
        let message = format!("The token '{token}' is invalid");
        Refusal::new(400, "InvalidParameterValue", None, message)
    })
}

/// EC2's answer for an unknown id, as recorded: most invented ids are malformed to it. Ids of 8 digits are
/// good, and of those of 17 the ones that begin with 0 and pass a check that nothing has been published of. The emulator
/// lets all pass that but a run or a repetition of digits.
pub(super) fn unknown_snapshot(id: &str) -> Refusal {
    let Some(digits) = id.strip_prefix("snap-") else {
        return not_of_the_form(id);
    };
    if digits.bytes().any(|b| b.is_ascii_uppercase()) {
        return not_of_the_form(id);
    }
    let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
    let passes = match (digits.len(), digits.strip_prefix('0')) {
        (8, _) => true,
        (17, Some(rest)) => !matches!(
            rest,
            "0000000000000000" | "1111111111111111" | "123456789abcdef0"
        ),
        _ => false,
    };
    if is_hex && passes {
        return no_snapshot(id);
    }
    let message = format!("Invalid id: \"{id}\"");
    Refusal::new(400, "InvalidSnapshotID.Malformed", None, message)
}

fn not_of_the_form(id: &str) -> Refusal {
    let message =
        format!("Value ({id}) for parameter snapshotId is invalid. Expected: 'snap-...'.");
    Refusal::new(400, "InvalidParameterValue", None, message)
}

fn no_snapshot(id: &str) -> Refusal {
    let message = format!("The snapshot '{id}' does not exist.");
    Refusal::new(400, "InvalidSnapshot.NotFound", None, message)
}

fn matches(record: &SnapshotRecord, filter: &str, values: &[&str], now: u64) -> bool {
    let is = |text: &str| values.iter().any(|value| matches_pattern(value, text));
    match filter {
        "snapshot-id" => is(&record.id),
        "volume-id" => is(&record.volume_id),
        "status" => is(record.state_at(now).0),
        "description" => is(&record.description),
        "owner-id" => is(&record.owner),
        "encrypted" => is(if record.encrypted { "true" } else { "false" }),
        "storage-tier" => is(&record.tier),
        "volume-size" => is(&record.volume_gib.to_string()),
        "tag-key" => record.tags.keys().any(|key| is(key)),
        _ => filter
            .strip_prefix("tag:")
            .and_then(|key| record.tags.get(key))
            .is_some_and(|value| is(value)),
    }
}

/// A snapshot's fields in the order in which they were recorded.
pub(super) fn snapshot_fields(record: &SnapshotRecord, held: Option<u64>, now: u64) -> String {
    let (state, message) = record.state_at(now);
    let mut text = format!(
        "<snapshotId>{}</snapshotId><volumeId>{}</volumeId><status>{state}</status>",
        record.id, record.volume_id
    );
    if !message.is_empty() {
        let _ = write!(text, "<statusMessage>{}</statusMessage>", escape(message));
    }
    let _ = write!(
        text,
        "<startTime>{}</startTime><progress>{}%</progress><ownerId>{}</ownerId><volumeSize>{}</volumeSize>\
         <description>{}</description><encrypted>{}</encrypted>",
        iso8601(record.start_ms),
        record.percent(now),
        record.owner,
        record.volume_gib,
        escape(&record.description),
        record.encrypted
    );
    if let Some(key) = &record.kms_key {
        let _ = write!(text, "<kmsKeyId>{}</kmsKeyId>", escape(key));
    }
    if !record.tags.is_empty() {
        text.push_str("<tagSet>");
        for (key, value) in &record.tags {
            let (key, value) = (escape(key), escape(value));
            let _ = write!(text, "<item><key>{key}</key><value>{value}</value></item>");
        }
        text.push_str("</tagSet>");
    }
    let _ = write!(
        text,
        "<storageTier>{}</storageTier><transferType>standard</transferType>",
        record.tier
    );
    // Absent while pending.
    if state == "completed" {
        if let Some(settled) = record.settles_ms {
            let time = iso8601(settled);
            let _ = write!(text, "<completionTime>{time}</completionTime>");
        }
        if let Some(held) = held {
            let bytes = held * BLOCK as u64;
            let _ = write!(
                text,
                "<fullSnapshotSizeInBytes>{bytes}</fullSnapshotSizeInBytes>"
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_ids_are_refused_as_recorded() {
        for (id, code) in [
            ("snap-00000000", "InvalidSnapshot.NotFound"),
            ("snap-ffffffff", "InvalidSnapshot.NotFound"),
            ("snap-0ffffffffffffffff", "InvalidSnapshot.NotFound"),
            ("snap-0fedcba9876543210", "InvalidSnapshot.NotFound"),
            ("snap-0400dc0055e85b9bf", "InvalidSnapshot.NotFound"),
            ("snap-00000000000000000", "InvalidSnapshotID.Malformed"),
            ("snap-01111111111111111", "InvalidSnapshotID.Malformed"),
            ("snap-0123456789abcdef0", "InvalidSnapshotID.Malformed"),
            ("snap-fffffffffffffffff", "InvalidSnapshotID.Malformed"),
            ("snap-1400dc0055e85b9bf", "InvalidSnapshotID.Malformed"),
            ("snap-0123", "InvalidSnapshotID.Malformed"),
            ("snap-0400DC0055E85B9BF", "InvalidParameterValue"),
            ("vol-0a", "InvalidParameterValue"),
        ] {
            assert_eq!(unknown_snapshot(id).code, code, "{id}");
        }
    }
}
