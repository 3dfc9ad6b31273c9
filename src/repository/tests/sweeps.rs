//! Objects that are about to be deleted, and objects deleted between two requests of other processes.

use tokio::task::JoinHandle;

use super::super::lease;
use super::super::lines;
use super::super::manifest::{Manifest, manifest_object};
use super::super::swept::Swept;
use super::*;

/// Runs a test with a fixed seed: no client here has random faults.
fn run(test: impl Future<Output = ()>) {
    with_seed(7, test);
}

/// A repository that holds A, and a process that uses it.
async fn with_a() -> (Arc<HostileStore>, Process) {
    let store = HostileStore::new();
    let process = Process::honest(&store);
    process.init().await;
    process.sync(&A, false, &[]).await.unwrap();
    (store, process)
}

/// Puts all packs on record as about to be deleted, by a prune that is paused.
async fn doom_all_packs(store: &Arc<HostileStore>) {
    let process = Process::honest(store);
    let names = store.names("packs/");
    let sweep = lines::encode(&names).into();
    let object = format!("garbage/{}-sweep", random_id());
    process.store.put(&object, &[sweep]).await.unwrap();
}

#[test]
fn an_object_that_is_deleted_while_its_put_is_proven_is_put_again() {
    run(async {
        let store = HostileStore::new();
        let lies = Lies {
            opaque_etags: true,
            ..Lies::default()
        };
        let process = Process::new(&store, lies);
        // PUT, HEAD, HEAD with checksums, and the GET that proves it.
        process.client.stop_at(3, StopPoint::Before);
        let task = tokio::spawn({
            let store = Arc::clone(&process.store);
            async move { store.put("packs/00", &[Bytes::from_static(b"bytes")]).await }
        });
        process.client.stopped().await;
        store.lose("packs/00");
        process.client.resume();
        task.await.unwrap().unwrap();
        assert_eq!(store.names("packs/"), ["packs/00"]);
    });
}

#[test]
fn a_run_relies_on_no_object_that_a_paused_prune_may_still_delete() {
    run(async {
        for (known, dedup) in [(vec![A], false), (Vec::new(), false), (Vec::new(), true)] {
            let (store, process) = with_a().await;
            doom_all_packs(&store).await;
            let doomed = store.names("packs/");
            process.sync(&B, dedup, &known).await.unwrap();
            // A snapshot that is held but doomed is copied again.
            process.sync(&A, dedup, &[]).await.unwrap();
            doomed.iter().for_each(|name| store.lose(name));
            for made in [&A, &B] {
                let held = process.read(made).await.unwrap();
                assert_eq!(held, Held::Whole(made.content), "{known:?} {dedup}");
            }
        }
    });
}

#[test]
fn a_repair_rewrites_objects_that_a_paused_prune_may_still_delete() {
    run(async {
        let (store, process) = with_a().await;
        doom_all_packs(&store).await;
        let doomed = store.names("packs/");
        process.repair(None).await.unwrap();
        doomed.iter().for_each(|name| store.lose(name));
        assert_eq!(process.read(&A).await.unwrap(), Held::Whole(A.content));
    });
}

/// A repository whose next prune deletes the data of B, and B's manifest.
async fn ripe() -> (Arc<HostileStore>, ManifestName, Bytes) {
    let (store, process) = with_a().await;
    process.sync(&B, false, &[A]).await.unwrap();
    let name = process.name_of(&B).await.unwrap();
    let manifest = process.store.get(&manifest_object(&name)).await.unwrap();
    process.remove(&B).await.unwrap();
    for _ in 0..2 {
        process.prune(GRACE, None).await.unwrap();
        tokio::time::sleep(8 * DAY).await;
    }
    (store, name, manifest)
}

/// A prune that is stopped as soon as its sweep is on record; nothing is deleted by then.
async fn stopped_prune(
    ready: &HostileStore,
) -> (Arc<HostileStore>, Process, JoinHandle<Result<Pruned>>) {
    let objects = |store: &HostileStore| [store.names("packs/"), store.names("segments/")];
    for request in 0.. {
        let store = ready.copy();
        let process = Process::honest(&store);
        process.client.stop_at(request, StopPoint::After);
        let work = tokio::spawn({
            let process = process.clone();
            async move { process.prune(GRACE, None).await }
        });
        process.client.stopped().await;
        if store
            .names("garbage/")
            .iter()
            .any(|name| name.ends_with("-sweep"))
        {
            assert_eq!(objects(&store), objects(ready));
            return (store, process, work);
        }
        work.abort();
    }
    unreachable!("the prune puts a sweep");
}

#[test]
fn a_prune_that_was_paused_for_days_deletes_no_object_that_it_found_before() {
    run(async {
        let (ready, ..) = ripe().await;
        let (store, process, work) = stopped_prune(&ready).await;
        tokio::time::sleep(4 * DAY).await;
        process.client.resume();
        let error = work.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), Kind::Busy, "{}", error.chain());
        for folder in ["packs/", "segments/"] {
            assert_eq!(store.names(folder), ready.names(folder));
        }
        let pruned = Process::honest(&store).prune(GRACE, None).await.unwrap();
        assert!(pruned.swept > 0);
    });
}

/// Whether a sweep on record names a segment that a manifest needs.
async fn is_swept(process: &Process, manifest: &[u8]) -> bool {
    let swept = Swept::on_record(&process.store).await.unwrap();
    let manifest = Manifest::read(manifest).unwrap().unwrap();
    manifest.segments.iter().any(|of| swept.has(&of.name))
}

#[test]
fn an_object_that_a_prune_spares_is_removed_from_its_sweep() {
    run(async {
        let (ready, name, manifest) = ripe().await;
        let (store, process, work) = stopped_prune(&ready).await;
        let honest = Process::honest(&store);
        assert!(is_swept(&honest, &manifest).await);
        honest
            .store
            .put(&manifest_object(&name), std::slice::from_ref(&manifest))
            .await
            .unwrap();
        process.client.resume();
        assert_eq!(work.await.unwrap().unwrap().swept, 0);
        assert!(!is_swept(&honest, &manifest).await);
        assert_eq!(honest.read(&B).await.unwrap(), Held::Whole(B.content));
    });
}

#[test]
fn a_removal_that_was_paused_deletes_no_manifest_that_it_has_not_kept() {
    run(async {
        let (ready, _) = with_a().await;
        let pack = ready.names("packs/").remove(0);
        let process = Process::honest(&ready.copy());
        process.remove(&A).await.unwrap();
        // The last two requests are the last look and the deletion: between them a removal must not be paused.
        for request in 0..process.client.requests() - 2 {
            let store = ready.copy();
            let process = Process::honest(&store);
            process.client.stop_at(request, StopPoint::After);
            let work = tokio::spawn({
                let process = process.clone();
                async move { process.remove(&A).await }
            });
            process.client.stopped().await;
            store.damage(&pack);
            Process::honest(&store).repair(Some(&A)).await.unwrap();
            process.client.resume();
            work.await.unwrap().unwrap();
            let honest = Process::honest(&store);
            assert!(honest.names().await.unwrap().is_empty());
            // The manifest that was there at first, and the one that has replaced it.
            assert_eq!(store.names("removed/").len(), 2, "{request}");
        }
    });
}

#[test]
fn a_lease_is_renewed_while_a_pack_is_uploaded_for_hours() {
    run(async {
        let store = HostileStore::new();
        Process::honest(&store).init().await;
        let lies = Lies {
            slow_in: Some("packs"),
            ..Lies::default()
        };
        let process = Process::new(&store, lies);
        let work = tokio::spawn({
            let process = process.clone();
            async move { process.sync(&A, false, &[]).await }
        });
        tokio::time::sleep(Duration::from_hours(2)).await;
        let honest = Process::honest(&store);
        let runs = lease::runs(&honest.store).await.unwrap();
        let now = runs[0].renewed + Duration::from_mins(31);
        assert!(runs[0].renewed > runs[0].started + Duration::from_mins(90));
        assert!(runs[0].is_alive(now));
        work.await.unwrap().unwrap();
        assert_eq!(process.read(&A).await.unwrap(), Held::Whole(A.content));
    });
}
