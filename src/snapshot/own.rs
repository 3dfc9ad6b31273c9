//! The tag that proves that ebsfs made a snapshot: its own id, which a copied tag does not have.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Descriptions, Snapshot, SnapshotId};
use crate::error::{Kind, Result};

/// The tag whose value is the snapshot's own id: a copied tag has the id of another snapshot.
pub(crate) const SELF_TAG: &str = "ebsfs:self";

/// The tag of an EBS snapshot that ebsfs made by the direct APIs: the volume whose bytes it holds.
pub(crate) const REPLICA_VOLUME_TAG: &str = "ebsfs:volume";

/// How long a new or newly completed snapshot may be unknown to parts of EBS or EC2
/// (github.com/awslabs/coldsnap issues 43 and 141).
pub(crate) const YOUNG: Duration = Duration::from_secs(120);

/// Pause between two attempts to tag a snapshot that EC2 does not know yet.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whether a snapshot has a tag with exactly this value. (A filter of EC2 takes wildcards.)
pub(crate) fn has_tag(snapshot: &Snapshot, key: &str, value: &str) -> bool {
    snapshot.tags.get(key).is_some_and(|found| found == value)
}

/// Whether a snapshot carries its own id.
pub(crate) fn carries_own_id(snapshot: &Snapshot) -> bool {
    has_tag(snapshot, SELF_TAG, snapshot.id.as_str())
}

/// Gives a snapshot its own id as a tag, and the tags `others`. Retries for `retry_for` while EC2 does not know the snapshot.
///
/// # Errors
/// As for [`Descriptions::add_tags`].
pub(crate) async fn tag_with_own_id(
    descriptions: &dyn Descriptions,
    id: &SnapshotId,
    others: &[(String, String)],
    retry_for: Duration,
) -> Result<()> {
    let mut tags = vec![(SELF_TAG.to_owned(), id.to_string())];
    tags.extend_from_slice(others);
    let until = Instant::now() + retry_for;
    loop {
        match descriptions.add_tags(id, &tags).await {
            Err(error) if error.kind() == Kind::NotFound && Instant::now() < until => {
                sleep(LOOK_EVERY).await;
            }
            done => return done,
        }
    }
}
