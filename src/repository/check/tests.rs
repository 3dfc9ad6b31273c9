use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::*;
use crate::block::{BlockIndex, Digest};
use crate::progress::Progress;
use crate::repository::manifest::{FORMAT, SegmentOf, manifest_object};
use crate::repository::pack::{OpenPack, Packer, Spot};
use crate::repository::segment::{Segment, SegmentEntry};
use crate::repository::store::Connection;

/// A repository in a folder, and the store that it is in.
async fn repository(folder: &std::path::Path) -> RepositoryCatalog {
    let connection = Connection::new(std::time::Duration::from_secs(5));
    let address = format!("file://{}", folder.display()).parse().unwrap();
    let store = Arc::new(Store::open(&address, &connection).unwrap());
    RepositoryCatalog::init(store).await.unwrap()
}

async fn put_manifest(store: &Store, snapshot: &str, segment: &Segment) {
    let stored = segment.encode(&[0; 16]).unwrap();
    let of = SegmentOf {
        number: 0,
        name: Sha256::digest(&stored).into(),
        blocks: 2,
    };
    let manifest = Manifest {
        format: FORMAT,
        run: "run".into(),
        snapshot: snapshot.parse().unwrap(),
        volume: Some("vol-0a".into()),
        volume_key: crate::target::VolumeKey::of_volume("vol-0a"),
        time: SystemTime::UNIX_EPOCH,
        volume_bytes: 1 << 30,
        base: None,
        description: None,
        tags: BTreeMap::new(),
        written: SystemTime::UNIX_EPOCH,
        encrypted: None,
        blocks: 2,
        sent_blocks: 2,
        sent_bytes: 2 << 19,
        stored_bytes: 2 << 19,
        damaged: Vec::new(),
        segments: vec![of],
    };
    let name = object("segments", &of.name);
    store.put(&name, &[stored]).await.unwrap();
    let name = manifest_object(&manifest.name());
    store.put(&name, &[manifest.encode().into()]).await.unwrap();
}

#[tokio::test]
async fn a_segment_with_entries_that_no_pack_holds_damages_only_its_own_snapshots() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = repository(folder.path()).await;
    let store = catalog.store();
    let places = Arc::new(Semaphore::new(2));
    let (mut filling, mut packer) = (OpenPack::default(), Packer::new().unwrap());
    for number in 1..=2u8 {
        let block = Bytes::from(vec![number; 1 << 19]);
        let digest = Sha256::digest(&block).into();
        let place = Arc::clone(&places).try_acquire_owned().unwrap();
        let stored = packer.pack(block);
        filling.push(BlockIndex(number.into()), digest, stored, place);
    }
    let packed = filling.pack(&[7; 16]);
    let name = object("packs", &packed.name);
    store.put(&name, &packed.pieces).await.unwrap();
    let [(_, one, at_one), (_, two, at_two)] = packed.spots[..] else {
        panic!("two blocks");
    };
    let segment = |blocks: [(Digest, Spot); 2]| {
        let entries = blocks.map(|(digest, spot)| SegmentEntry {
            pack: packed.name,
            spot,
            digest,
        });
        Segment::of((0..).zip(entries))
    };
    put_manifest(store, "snap-0a", &segment([(one, at_one), (two, at_two)])).await;
    // All objects are there, and one entry points to the other block.
    put_manifest(store, "snap-0b", &segment([(one, at_one), (one, at_two)])).await;
    let checked = check(&catalog, ReadData::None, &Progress::default())
        .await
        .unwrap();
    assert_eq!((checked.snapshots, checked.damages.len()), (2, 0));
    let checked = check(&catalog, ReadData::All, &Progress::default())
        .await
        .unwrap();
    let [damage] = &checked.damages[..] else {
        panic!("{checked:?}");
    };
    assert!(damage.object.starts_with("segments/"), "{damage:?}");
    assert_eq!(damage.snapshots, ["19700101T000000000Z.vol-0a.snap-0b"]);
}

#[tokio::test]
async fn a_listing_that_lacks_an_existing_pack_is_no_proof_of_damage() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = repository(folder.path()).await;
    let store = catalog.store();
    let (there, missing) = ([1; 32], [2; 32]);
    store
        .put(&object("packs", &there), &[Bytes::from_static(b"12345")])
        .await
        .unwrap();
    let settle = async |doubted: &[(Name, u64)]| {
        let mut check = Check {
            store,
            progress: &Progress::default(),
            manifests: Vec::new(),
            segments: BTreeMap::new(),
            damages: Damages::new(),
            suffering: BTreeSet::new(),
            suspects: SuspectObjects::default(),
        };
        let doubts = doubted.iter().map(|(name, end)| {
            let doubt = UnlistedPack {
                end: *end,
                manifests: BTreeSet::new(),
                lack: PackFault::Missing,
            };
            (*name, doubt)
        });
        let settled = check.settle(doubts.collect()).await;
        (settled, check.damages)
    };
    // A pack that exists shows that the listing is wrong, even if other packs are missing.
    let (settled, damages) = settle(&[(there, 5), (missing, 5)]).await;
    let error = settled.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.chain().contains("the listing of packs is incomplete"));
    assert!(damages.is_empty());
    // None is: the one is missing, and the other too short, which a listing may show as missing too.
    let (settled, damages) = settle(&[(there, 6), (missing, 5)]).await;
    settled.unwrap();
    let whats: Vec<&str> = damages.values().map(|(what, ..)| &**what).collect();
    assert_eq!(whats, ["it is cut short", "it is missing"]);
}
