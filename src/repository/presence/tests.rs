use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::*;
use crate::repository::catalog::RepositoryCatalog;
use crate::repository::pack::Spot;
use crate::repository::segment::SegmentEntry;
use crate::repository::store::Connection;

const LEN: u32 = 100;

fn pack(number: u16) -> Name {
    Sha256::digest(number.to_le_bytes()).into()
}

/// A repository in a folder with a segment that leads to so many packs, each of [`LEN`] bytes.
struct Packs {
    folder: tempfile::TempDir,
    store: Arc<Store>,
    segment: Segment,
    name: Name,
}

impl Packs {
    async fn new(count: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("file://{}", folder.path().display());
        let connection = Connection::new(Duration::from_secs(5));
        let store = Store::open(&address.parse().unwrap(), &connection).unwrap();
        let store = Arc::new(store);
        RepositoryCatalog::init(Arc::clone(&store)).await.unwrap();
        let spot = Spot {
            offset: LEN - 40,
            length: 40,
        };
        let entry = |number: u16| SegmentEntry {
            pack: pack(number),
            spot,
            digest: [0; 32],
        };
        let segment = Segment::of((0..count).map(|number| (number, entry(number))));
        let stored = segment.encode(&[0; 16]).unwrap();
        let name: Name = Sha256::digest(&stored).into();
        store
            .put(&object("segments", &name), &[stored])
            .await
            .unwrap();
        let packs = Self {
            folder,
            store,
            segment,
            name,
        };
        for number in 0..count {
            packs.write(number, LEN);
        }
        packs
    }

    fn write(&self, number: u16, len: u32) {
        let path = self.folder.path().join(object("packs", &pack(number)));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, vec![0; len as usize]).unwrap();
    }

    fn remove(&self, number: u16) {
        let path = self.folder.path().join(object("packs", &pack(number)));
        std::fs::remove_file(path).unwrap();
    }

    fn needs(&self) -> PackNeeds {
        let mut needs = PackNeeds::default();
        needs.add(&self.segment);
        needs
    }

    /// Why the packs are not proven, or nothing.
    async fn prove(&self) -> String {
        let proven = self.needs().prove(&self.store, vec![self.name]).await;
        proven.map_or_else(|error| error.chain(), |()| String::new())
    }

    /// The same where the listing shows none of them.
    async fn prove_unlisted(&self) -> String {
        let needs = self.needs();
        let proven = needs.prove_unlisted(&self.store, vec![self.name]).await;
        proven.map_or_else(|error| error.chain(), |()| String::new())
    }
}

#[tokio::test]
async fn packs_are_proven_alike_one_by_one_and_by_a_listing() {
    let few = u16::try_from(FEW).unwrap();
    for count in [few, few + 1, 100] {
        let packs = Packs::new(count).await;
        assert_eq!(packs.prove().await, "");
        // Other packs do not replace the needed ones.
        packs.write(count + 1, LEN);
        packs.write(3, LEN - 1);
        let why = packs.prove().await;
        assert!(why.contains("it is cut short"), "{count}: {why}");
        packs.remove(3);
        let why = packs.prove().await;
        assert!(why.contains("it is missing"), "{count}: {why}");
        let name = object("packs", &pack(3));
        assert!(why.contains(&name), "{count}: {why}");
        packs.remove(count - 1);
        let why = packs.prove().await;
        assert!(why.contains("2 packs are missing or cut short"), "{why}");
    }
}

#[tokio::test]
async fn a_listing_without_its_fences_proves_no_pack() {
    let packs = Packs::new(u16::try_from(FEW).unwrap() + 1).await;
    for entry in std::fs::read_dir(packs.folder.path().join("packs")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains("zz-fence-") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let why = packs.prove().await;
    assert!(why.contains("the last fence is not in it"), "{why}");
}

#[tokio::test]
async fn packs_that_a_listing_lacks_are_asked_for_by_name_but_not_without_end() {
    let packs = Packs::new(100).await;
    // All are there: a wrong listing does not condemn a snapshot.
    assert_eq!(packs.prove_unlisted().await, "");
    packs.write(99, LEN - 1);
    let why = packs.prove_unlisted().await;
    assert!(why.contains("it is cut short"), "{why}");
    let packs = Packs::new(u16::try_from(MOST_HEADS).unwrap() + 1).await;
    let why = packs.prove_unlisted().await;
    assert!(why.contains("the listing of packs is incomplete"), "{why}");
}
