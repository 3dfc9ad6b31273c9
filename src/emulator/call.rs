//! What a request asks for.

use hyper::Method;
use hyper::http::request::Parts;

use super::reply::{Refusal, Reply};

/// The actions of STS, whose API is a query API too.
const STS_ACTIONS: [&str; 2] = ["AssumeRole", "GetCallerIdentity"];

/// What a request asks for.
#[derive(Debug)]
pub(super) enum EmulatedCall {
    ListSnapshotBlocks(String),
    ListChangedBlocks(String),
    GetSnapshotBlock(String, String),
    StartSnapshot,
    PutSnapshotBlock(String, String),
    CompleteSnapshot(String),
    /// An action of the EC2 query API, or of STS.
    Ec2(String),
    Unknown,
}

impl EmulatedCall {
    pub(super) fn of(parts: &Parts, body: &[u8]) -> Self {
        let steps: Vec<&str> = parts
            .uri
            .path()
            .split('/')
            .filter(|step| !step.is_empty())
            .collect();
        let own = str::to_owned;
        match (&parts.method, &steps[..]) {
            (&Method::GET, ["snapshots", id, "blocks"]) => Self::ListSnapshotBlocks(own(id)),
            (&Method::GET, ["snapshots", id, "changedblocks"]) => Self::ListChangedBlocks(own(id)),
            (&Method::GET, ["snapshots", id, "blocks", index]) => {
                Self::GetSnapshotBlock(own(id), own(index))
            }
            (&Method::PUT, ["snapshots", id, "blocks", index]) => {
                Self::PutSnapshotBlock(own(id), own(index))
            }
            (&Method::POST, ["snapshots"]) => Self::StartSnapshot,
            (&Method::POST, ["snapshots", "completion", id]) => Self::CompleteSnapshot(own(id)),
            (&Method::POST, []) => form_urlencoded::parse(body)
                .find(|(name, _)| name == "Action")
                .map_or(Self::Unknown, |(_, action)| Self::Ec2(action.into_owned())),
            _ => Self::Unknown,
        }
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::ListSnapshotBlocks(_) => "ListSnapshotBlocks",
            Self::ListChangedBlocks(_) => "ListChangedBlocks",
            Self::GetSnapshotBlock(..) => "GetSnapshotBlock",
            Self::StartSnapshot => "StartSnapshot",
            Self::PutSnapshotBlock(..) => "PutSnapshotBlock",
            Self::CompleteSnapshot(_) => "CompleteSnapshot",
            Self::Ec2(action) => action,
            Self::Unknown => "unknown",
        }
    }

    /// Whether it lists something, in pages.
    pub(super) fn is_list(&self) -> bool {
        match self {
            Self::ListSnapshotBlocks(_) | Self::ListChangedBlocks(_) => true,
            Self::Ec2(action) => action == "DescribeSnapshots",
            _ => false,
        }
    }

    /// Whether it makes snapshots of volumes.
    pub(super) fn makes_snapshots(&self) -> bool {
        matches!(self, Self::Ec2(action) if action == "CreateSnapshot" || action == "CreateSnapshots")
    }

    /// The service that a client signs it for.
    pub(super) fn service(&self) -> &'static str {
        match self {
            Self::Ec2(action) if STS_ACTIONS.contains(&action.as_str()) => "sts",
            Self::Ec2(_) => "ec2",
            _ => "ebs",
        }
    }

    pub(super) fn refuse(&self, refusal: &Refusal) -> Reply {
        match self {
            Self::Ec2(_) if self.service() == "sts" => refusal.sts_xml(),
            Self::Ec2(_) => refusal.ec2_xml(),
            _ => refusal.rest_json(),
        }
    }
}
