//! The contract of targets and sinks over an EBS account that the emulator plays: only this row knows both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tempfile::TempDir;

use crate::aws::ServiceConfig;
use crate::block::Geometry;
use crate::ebs::{Client, EbsCatalog, Limits};
use crate::emulator::Emulator;
use crate::snapshot::{Descriptions, Snapshot};
use crate::target::contract::{self, ContractFixture};
use crate::target::{SourceInfo, Target};
use crate::targets::{EbsAccount, EbsJob, EbsTarget};

struct Account {
    folder: TempDir,
    place: EbsAccount,
    /// Another source each time: the same command finds what it has made.
    source: AtomicU32,
}

#[cfg(feature = "ec2")]
fn described_by(service: &ServiceConfig) -> Option<Arc<dyn Descriptions>> {
    Some(Arc::new(crate::ec2::Ec2::new(service)))
}

#[cfg(not(feature = "ec2"))]
fn described_by(_service: &ServiceConfig) -> Option<Arc<dyn Descriptions>> {
    None
}

impl Account {
    async fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let emulator = Emulator::open(folder.path(), &[]).unwrap();
        let keys = std::fs::read_to_string(emulator.credentials_file()).unwrap();
        let key = |name: &str| {
            let line = keys.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_once('=').unwrap().1.trim().to_owned()
        };
        let (id, secret) = (key("aws_access_key_id"), key("aws_secret_access_key"));
        let listener = Emulator::listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(emulator.serve(listener, None));
        let service = ServiceConfig::fixed(&endpoint, "us-east-1", &id, &secret).unwrap();
        let descriptions = described_by(&service)?;
        let client = Arc::new(Client::new(&service, &Limits::default()));
        let described = Some(Arc::clone(&descriptions));
        let catalog = EbsCatalog::new(Arc::clone(&client), described, Vec::new());
        let catalog = Arc::new(catalog);
        let place = EbsAccount {
            region: "us-east-1".into(),
            account: "here".into(),
            client,
            descriptions,
            catalog,
        };
        Some(Self {
            folder,
            place,
            source: AtomicU32::new(1),
        })
    }
}

impl ContractFixture for Account {
    fn target(&self) -> BoxFuture<'_, Arc<dyn Target>> {
        let (place, job) = (self.place.clone(), EbsJob::default());
        let target = EbsTarget::new(place, job, &self.source(), self.folder.path()).unwrap();
        std::future::ready(Arc::new(target) as Arc<dyn Target>).boxed()
    }

    fn source(&self) -> SourceInfo {
        let name = format!("snap-{:08x}", self.source.load(Ordering::Relaxed));
        SourceInfo {
            geometry: Geometry::new(1 << 30).unwrap(),
            size: None,
            mark: None,
            volume: Some("vol-0a".into()),
            volume_key: crate::target::VolumeKey::default(),
            encrypted: Some(false),
            snapshot: Some(Snapshot::unknown(name.parse().unwrap())),
            has_changes: true,
            damaged_in_source: 0,
            name,
        }
    }

    fn reads_back(&self) -> bool {
        false
    }

    fn renew(&self) {
        self.source.fetch_add(1, Ordering::Relaxed);
    }
}

/// A test of the contract.
macro_rules! contract {
    ($($rule:ident),* $(,)?) => {$(
        #[test]
        fn $rule() {
            contract::run(async {
                if let Some(account) = Account::new().await {
                    contract::$rule(&account).await;
                }
            });
        }
    )*};
}

contract![
    names_first_and_publishes_every_byte,
    survives_a_crash_between_any_two_calls,
    resumes_after_a_drop_at_any_await,
    publishes_twice_with_a_mark_that_tells_foreign_writes,
];
