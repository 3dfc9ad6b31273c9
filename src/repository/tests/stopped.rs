//! Stops a sync, a prune, a repair and an init at every request, as SIGSTOP does, while other processes change the repository; then
//! continues or kills it. `EBSFS_HALTS` is the number of stops that are tried (`all`: each), `EBSFS_SEED` chooses them.

use super::*;

/// Where a process is stopped, and whether it is killed or continues.
#[derive(Clone, Copy, Debug)]
struct Halt {
    request: u64,
    moment: StopPoint,
    is_killed: bool,
}

/// A random choice of the halts of a process that sends `requests` requests, each with one of `others`.
fn some_halts<T: Copy>(requests: u64, others: &[T]) -> Vec<(Halt, T)> {
    assert!(requests > 5, "{requests}");
    let mut all = Vec::new();
    for request in 0..requests {
        for moment in [StopPoint::Before, StopPoint::After] {
            for is_killed in [false, true] {
                let halt = Halt {
                    request,
                    moment,
                    is_killed,
                };
                all.extend(others.iter().map(|of| (halt, *of)));
            }
        }
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    if std::env::var("EBSFS_HALTS").is_ok_and(|text| text == "all") {
        return all;
    }
    let seed = number("EBSFS_SEED").unwrap_or_else(|| fastrand::Rng::new().u64(..));
    println!("EBSFS_SEED={seed}");
    let some = usize::try_from(number("EBSFS_HALTS").unwrap_or(30)).unwrap();
    let mut rng = fastrand::Rng::with_seed(seed);
    rng.shuffle(&mut all);
    all.truncate(some);
    all
}

/// Runs `work` of a process, halts it, runs `others`, and continues or kills it. Returns its result, if it was not killed.
async fn halted<T: Send + 'static>(
    process: &Process,
    halt: Halt,
    work: impl Future<Output = Result<T>> + Send + 'static,
    others: impl Future<Output = ()>,
) -> Option<Result<T>> {
    process.client.stop_at(halt.request, halt.moment);
    let mut task = tokio::spawn(work);
    let done = tokio::select! {
        done = &mut task => Some(done.unwrap()),
        () = process.client.stopped() => None,
    };
    others.await;
    match (done, halt.is_killed) {
        (Some(done), _) => Some(done),
        (None, true) => {
            task.abort();
            let _ = task.await;
            None
        }
        (None, false) => {
            process.client.resume();
            Some(task.await.unwrap())
        }
    }
}

const C: Made = Made {
    volume: 0,
    number: 3,
    content: [1, 22, 13, 14, 0, 26, 7, 8],
};

/// A repository with the snapshots A and B.
async fn repository() -> Arc<HostileStore> {
    let store = HostileStore::new();
    let process = Process::honest(&store);
    process.init().await;
    process.sync(&A, false, &[]).await.unwrap();
    process.sync(&B, false, &[A]).await.unwrap();
    store
}

/// Checks that `check` names each listed snapshot that is not whole, and that those in `must` are whole.
async fn is_right(process: &Process, all: &[Made], must: &[&Made]) -> RepositoryCheck {
    let checked = process.check().await.unwrap();
    let names = process.names().await.unwrap();
    for made in must {
        let held = process.read(made).await.unwrap();
        assert_eq!(held, Held::Whole(made.content), "{}", made.id());
    }
    for name in &names {
        let made = all.iter().find(|made| made.id() == name.snapshot).unwrap();
        let is_named = checked
            .damages
            .iter()
            .any(|damage| damage.snapshots.contains(&name.to_string()));
        match process.read(made).await.unwrap() {
            Held::Whole(content) => assert_eq!(content, made.content, "{name}"),
            Held::Damaged => assert!(is_named, "{name} is damaged: {checked:?}"),
        }
    }
    checked
}

/// The work of other processes while one is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// The base is removed; two prunes without a grace, one of them when the lease is over.
    PruneAtOnce,
    /// The base is removed; prunes mark, and sweep after the grace.
    PruneWithGrace,
    /// The same, after the marks and the record of the sweep were deleted too.
    PruneLate,
    /// Another process copies the same snapshot.
    SameSync,
    /// The same, after prunes have swept what the run had written.
    SameSyncLate,
}

impl Others {
    const ALL: [Self; 5] = [
        Self::PruneAtOnce,
        Self::PruneWithGrace,
        Self::PruneLate,
        Self::SameSync,
        Self::SameSyncLate,
    ];

    async fn run(self, store: &Arc<HostileStore>) {
        let process = Process::honest(store);
        if self != Self::SameSync {
            // A repair that is stopped can be replacing it.
            let _ = process.remove(&B).await;
        }
        let (pauses, grace): (&[u32], _) = match self {
            Self::PruneAtOnce => (&[0, 1, 0], Duration::ZERO),
            Self::PruneWithGrace => (&[0, 8, 8], GRACE),
            Self::PruneLate => (&[0, 8, 8, 20, 8], GRACE),
            Self::SameSync => (&[], GRACE),
            Self::SameSyncLate => (&[0, 8, 8], GRACE),
        };
        for days in pauses {
            tokio::time::sleep(*days * DAY).await;
            // Damage that a killed run left can stop a prune: it deletes nothing then.
            let _ = process.prune(grace, None).await;
        }
        if matches!(self, Self::SameSync | Self::SameSyncLate) {
            process.sync(&C, false, &[A, B]).await.unwrap();
        }
    }
}

#[test]
fn a_stopped_sync_publishes_a_whole_snapshot_or_nothing_and_a_killed_one_is_named() {
    with_seed(1, async {
        let ready = repository().await;
        for (known, dedup) in [(vec![A, B], false), (Vec::new(), true)] {
            let process = Process::honest(&ready.copy());
            process.sync(&C, dedup, &known).await.unwrap();
            let requests = process.client.requests();
            for (halt, others) in some_halts(requests, &Others::ALL) {
                let store = ready.copy();
                let process = Process::honest(&store);
                let work = {
                    let (process, known) = (process.clone(), known.clone());
                    async move { process.sync(&C, dedup, &known).await }
                };
                let done = halted(&process, halt, work, others.run(&store)).await;
                let honest = Process::honest(&store);
                let is_copied = matches!(others, Others::SameSync | Others::SameSyncLate);
                let must: &[&Made] = if is_copied || matches!(done, Some(Ok(()))) {
                    &[&A, &C]
                } else {
                    &[&A]
                };
                let checked = is_right(&honest, &[A, B, C], must).await;
                if done.is_some() {
                    assert!(
                        checked.damages.is_empty(),
                        "{halt:?} {others:?} {done:?} {checked:?}"
                    );
                }
                // The next run makes it whole.
                honest.sync(&C, dedup, &known).await.unwrap();
                let checked = is_right(&honest, &[A, B, C], &[&A, &C]).await;
                assert!(
                    checked.damages.is_empty(),
                    "{halt:?} {others:?} {checked:?}"
                );
            }
        }
    });
}

#[test]
fn a_stopped_prune_deletes_nothing_that_was_published_meanwhile() {
    with_seed(2, async {
        let ready = repository().await;
        let process = Process::honest(&ready);
        process.remove(&B).await.unwrap();
        process.prune(GRACE, None).await.unwrap();
        tokio::time::sleep(8 * DAY).await;
        let process = Process::honest(&ready.copy());
        let pruned = process.prune(GRACE, None).await.unwrap();
        assert!(pruned.swept + pruned.waiting > 0);
        let requests = process.client.requests();
        for (halt, late) in some_halts(requests, &[Duration::ZERO, 9 * DAY]) {
            let store = ready.copy();
            let process = Process::honest(&store);
            let work = {
                let process = process.clone();
                async move { process.prune(GRACE, None).await }
            };
            let undeleted = std::cell::Cell::new(false);
            let others = async {
                let honest = Process::honest(&store);
                let catalog = honest.catalog().await.unwrap();
                let back = undelete(&catalog, B.id().as_str()).await;
                undeleted.set(back.is_ok());
                // Of the same content as the removed one, and by its index.
                let same = Made { number: 3, ..B };
                honest.sync(&same, true, &[]).await.unwrap();
                tokio::time::sleep(late).await;
                honest.prune(GRACE, None).await.unwrap();
            };
            halted(&process, halt, work, others).await;
            let same = Made { number: 3, ..B };
            let honest = Process::honest(&store);
            for _ in 0..2 {
                let must: &[&Made] = if undeleted.get() {
                    &[&A, &B, &same]
                } else {
                    &[&A, &same]
                };
                let checked = is_right(&honest, &[A, B, same.clone()], must).await;
                assert!(checked.damages.is_empty(), "{halt:?} {late:?} {checked:?}");
                honest.prune(Duration::ZERO, None).await.unwrap();
            }
        }
    });
}

#[test]
fn a_sync_that_continues_beside_a_stopped_prune_publishes_a_whole_snapshot_or_nothing() {
    with_seed(5, async {
        let ready = repository().await;
        let process = Process::honest(&ready.copy());
        process.sync(&C, false, &[A, B]).await.unwrap();
        let of_sync = process.client.requests();
        // Enough for the listing of manifests, the sweep and the second listing of any prune here.
        let of_prune = 150;
        // From its last packs on.
        let wakings: Vec<u64> = (of_sync.saturating_sub(24)..of_sync).collect();
        for (halt, waking) in some_halts(of_prune, &wakings) {
            let store = ready.copy();
            let sync = Process::honest(&store);
            sync.client.stop_at(waking, StopPoint::Before);
            let mut task = {
                let sync = sync.clone();
                tokio::spawn(async move { sync.sync(&C, false, &[A, B]).await })
            };
            tokio::select! {
                // This time it sent fewer requests and was not stopped.
                _ = &mut task => continue,
                () = sync.client.stopped() => {}
            }
            let honest = Process::honest(&store);
            tokio::time::sleep(DAY / 2).await;
            honest.prune(GRACE, None).await.unwrap();
            tokio::time::sleep(8 * DAY).await;
            let process = Process::honest(&store);
            let work = {
                let process = process.clone();
                async move { process.prune(GRACE, None).await }
            };
            let mut done = None;
            let others = async {
                sync.client.resume();
                done = Some(task.await.unwrap());
            };
            halted(&process, halt, work, others).await;
            let must: &[&Made] = if matches!(done, Some(Ok(()))) {
                &[&A, &B, &C]
            } else {
                &[&A, &B]
            };
            let checked = is_right(&honest, &[A, B, C], must).await;
            assert!(
                checked.damages.is_empty(),
                "{halt:?} {waking} {done:?} {checked:?}"
            );
        }
    });
}

#[test]
fn a_stopped_repair_leaves_each_snapshot_unchanged_or_replaced() {
    with_seed(3, async {
        let ready = repository().await;
        // The pack of B alone, and one that both need.
        let packs = ready.names("packs/");
        for pack in &packs {
            let ready = ready.copy();
            ready.damage(pack);
            let process = Process::honest(&ready.copy());
            process.repair(Some(&B)).await.unwrap();
            let requests = process.client.requests();
            for (halt, others) in some_halts(requests, &Others::ALL[..2]) {
                let store = ready.copy();
                let process = Process::honest(&store);
                let work = {
                    let process = process.clone();
                    async move { process.repair(Some(&B)).await }
                };
                let done = halted(&process, halt, work, others.run(&store)).await;
                let honest = Process::honest(&store);
                let checked = is_right(&honest, &[A, B], &[]).await;
                // A snapshot that it reports as damaged can have been removed since.
                if let Some(Ok(repaired)) = &done {
                    assert!(
                        !repaired.left.is_empty() || checked.damages.is_empty(),
                        "{halt:?} {others:?} {repaired:?} {checked:?}"
                    );
                }
                // A repair with the sources of both loses nothing.
                for made in [&A, &B] {
                    honest.repair(Some(made)).await.unwrap();
                }
                let there = honest.names().await.unwrap();
                let all = [A, B];
                let there: Vec<&Made> = all
                    .iter()
                    .filter(|made| there.iter().any(|name| name.snapshot == made.id()))
                    .collect();
                assert!(there.contains(&&A));
                let checked = is_right(&honest, &[A, B], &there).await;
                assert!(
                    checked.damages.is_empty(),
                    "{halt:?} {others:?} {checked:?}"
                );
            }
        }
    });
}

#[test]
fn a_stopped_init_makes_one_repository_or_none() {
    with_seed(4, async {
        let process = Process::honest(&HostileStore::new());
        process.init().await;
        for (halt, ()) in some_halts(process.client.requests(), &[()]) {
            let store = HostileStore::new();
            let process = Process::honest(&store);
            let work = {
                let store = Arc::clone(&process.store);
                async move {
                    RepositoryCatalog::init(store)
                        .await
                        .map(|made| made.id().to_owned())
                }
            };
            let honest = Process::honest(&store);
            let second = std::cell::RefCell::new(None);
            let others = async {
                let made = RepositoryCatalog::init(Arc::clone(&honest.store)).await;
                *second.borrow_mut() = Some(made.map(|made| made.id().to_owned()));
            };
            let first = halted(&process, halt, work, others).await;
            let id = honest.catalog().await.unwrap().id().to_owned();
            let made: Vec<String> = [first, second.take()]
                .into_iter()
                .flatten()
                .filter_map(Result::ok)
                .collect();
            assert!(
                made.iter().all(|made| *made == id),
                "{halt:?} {made:?} {id}"
            );
            assert!(
                made.len() <= 1 && (halt.is_killed || made.len() == 1),
                "{halt:?} {made:?}"
            );
            honest.sync(&A, false, &[]).await.unwrap();
            is_right(&honest, &[A], &[&A]).await;
        }
    });
}
