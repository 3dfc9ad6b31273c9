//! Lists of the snapshots that a listing must show.

use super::*;

#[test]
fn a_damaged_list_of_required_snapshots_is_named_and_a_repair_writes_it_again() {
    with_seed(7, async {
        let store = HostileStore::new();
        let process = Process::honest(&store);
        process.init().await;
        process.sync(&A, false, &[]).await.unwrap();
        process.sync(&B, false, &[A]).await.unwrap();
        process.prune(GRACE, None).await.unwrap();
        for list in [store.names("latest/")[0].as_str(), "prune/manifests"] {
            store.damage(list);
            // A decision by an absent name is refused.
            let catalog = process.catalog().await.unwrap();
            let refused = catalog.proven_names(None).await.unwrap_err();
            assert_eq!(refused.kind(), Kind::Corrupt, "{list}");
            let refused = process.sync(&B, false, &[A]).await.unwrap_err();
            assert_eq!(refused.kind(), Kind::Corrupt, "{list}");
            let checked = process.check().await.unwrap();
            let named: Vec<&str> = checked.damages.iter().map(|one| &*one.object).collect();
            assert_eq!(named, [list]);
            assert_eq!(checked.snapshots, 2);
            let repaired = process.repair(None).await.unwrap();
            assert!(repaired.left.is_empty(), "{repaired:?}");
            assert!(process.check().await.unwrap().damages.is_empty());
            // It has the same names as before: a manifest that is lost now is missed.
            let manifest = store.names("snapshots/")[0].clone();
            let kept = process.store.get(&manifest).await.unwrap();
            store.lose(&manifest);
            let missed = process.check().await.unwrap().missing;
            assert_eq!(missed.len(), 1, "{list}");
            process.store.put(&manifest, &[kept]).await.unwrap();
        }
    });
}
