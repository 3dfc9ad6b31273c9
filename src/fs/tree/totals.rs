//! Facts about a whole mount: the sizes that `df` shows, and the origin of an image in the log.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::timeout;

use super::Tree;
use super::names::File;
use super::nodes::Node;
use super::partitions::path_of;
use crate::fs::opened::Custodian;
use crate::snapshot::SnapshotId;

/// How long `df` waits for a listing.
const TOTALS_WAIT: Duration = Duration::from_secs(1);

/// Where a mount's snapshots come from, for its log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Provenance {
    /// Region and endpoint, or `repository URL`.
    pub(crate) place: String,
    /// ARN of the caller, or `unknown (REASON)`; empty until STS has answered.
    pub(crate) caller: Arc<OnceLock<String>>,
    /// Records who opens images; none: nothing is recorded.
    pub(crate) custodian: Option<Arc<dyn Custodian>>,
}

/// What `df` shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::fs) struct MountTotals {
    /// Sum of the volume sizes of all snapshots in bytes, holes included; a volume counts once for each of its snapshots.
    pub(in crate::fs) bytes: u64,
    /// Number of snapshots.
    pub(in crate::fs) snapshots: u64,
}

impl Tree {
    /// What records who opens images.
    pub(in crate::fs) fn custodian(&self) -> Option<Arc<dyn Custodian>> {
        self.origin.custodian.clone()
    }

    /// The ids and the origin of a file with bytes of a volume, for the log; `None` for any other file.
    pub(in crate::fs) fn provenance(&self, ino: u64) -> Option<String> {
        let node = self.nodes.lock().get(ino);
        let (name, head) = match node? {
            Node::File(subject, File::Disk) => (subject.to_string(), subject.head),
            Node::File(subject, File::Vhd) => (format!("{subject}/disk.vhd"), subject.head),
            Node::File(subject, File::Overlay) => {
                (format!("{subject}/overlay.qcow2"), subject.head)
            }
            Node::Partition(node) if node.is_image() => (path_of(&node), Arc::clone(&node.head)),
            _ => return None,
        };
        let known = self.known(&head);
        let or_unknown = |value: &Option<String>| value.clone().unwrap_or("unknown".into());
        let caller = self.origin.caller.get().map_or("unknown", String::as_str);
        Some(format!(
            "{name} (volume {}, account {}, {}, caller {caller})",
            or_unknown(&known.volume_id),
            or_unknown(&known.owner_id),
            self.origin.place
        ))
    }

    /// Totals of the listed snapshots, or of those in use if there is no listing within a second.
    pub(in crate::fs) async fn totals(&self) -> MountTotals {
        let listed = timeout(TOTALS_WAIT, self.listing.get(&*self.catalog)).await;
        let listing = listed.ok().and_then(Result::ok);
        let in_use: Vec<_> = self.nodes.lock().entries().collect();
        let Some(listing) = listing.or_else(|| self.listing.last()) else {
            let sizes = in_use.iter().map(|entry| self.known(entry).volume_size);
            return MountTotals {
                bytes: sizes.flatten().fold(0, u64::saturating_add),
                snapshots: in_use.len() as u64,
            };
        };
        let opened_size = |id: &SnapshotId| {
            let entry = in_use.iter().find(|entry| entry.id == *id)?;
            self.known(entry).volume_size
        };
        let sizes = listing
            .snapshots
            .iter()
            .filter_map(|snapshot| snapshot.volume_size.or_else(|| opened_size(&snapshot.id)));
        MountTotals {
            bytes: sizes.fold(0, u64::saturating_add),
            snapshots: listing.snapshots.len() as u64,
        }
    }
}
