use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::*;

fn limiter(max_in_flight: u32, max_rps: u32, max_snapshot_rps: u32) -> Limiter {
    Limiter::new(&Limits {
        max_in_flight,
        max_rps,
        max_snapshot_rps,
        max_list_rps: 49,
        hedge: false,
        timeout: Duration::from_secs(90),
    })
}

#[test]
fn limits_of_an_account_are_divided_among_its_programs_and_those_of_a_snapshot_are_not() {
    let whole = Limits::default();
    for (parts, rps, lists) in [
        (1, 1000, 49),
        (4, 250, 12),
        (49, 20, 1),
        (5000, 1, 1),
        (0, 1000, 49),
    ] {
        let part = whole.divided(parts);
        assert_eq!((part.max_rps, part.max_list_rps), (rps, lists), "{parts}");
        assert_eq!(part.max_snapshot_rps, whole.max_snapshot_rps);
        assert_eq!(part.max_in_flight, whole.max_in_flight);
    }
}

fn snapshot(n: u8) -> SnapshotId {
    format!("snap-{n:02x}").parse().unwrap()
}

async fn get(limiter: &Limiter) -> RequestSlot {
    limiter
        .block(&snapshot(1), &Wanted::already())
        .await
        .unwrap()
}

fn places(limiter: &Limiter) -> f64 {
    limiter.gate.lock().places
}

#[tokio::test(start_paused = true)]
async fn requests_a_second_are_kept_to_and_idle_time_is_not_saved_up() {
    let limiter = limiter(8, 200, 1000);
    drop(get(&limiter).await);
    sleep(Duration::from_millis(300)).await;
    let start = Instant::now();
    for _ in 0..50 {
        drop(get(&limiter).await);
    }
    // 50 at 197 a second, less the burst of 50 ms that idling leaves.
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(190), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_at_its_own_limit_does_not_hold_up_another() {
    let limiter = limiter(64, 100_000, 100);
    let start = Instant::now();
    let gets = |n: u8| {
        let limiter = &limiter;
        join_all((0..20).map(move |_| async move {
            limiter
                .block(&snapshot(n), &Wanted::already())
                .await
                .unwrap();
            start.elapsed()
        }))
    };
    let (one, two) = tokio::join!(gets(1), gets(2));
    for all in [one, two] {
        let took = all.into_iter().max().unwrap();
        assert!(took >= Duration::from_millis(140), "{took:?}");
        assert!(took <= Duration::from_millis(1000), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_are_kept_to() {
    let limiter = limiter(2, 100_000, 100_000);
    let (_one, two) = (get(&limiter).await, limiter.list().await.unwrap());
    let third = timeout(Duration::from_millis(20), get(&limiter)).await;
    assert!(third.is_err());
    drop(two);
    timeout(Duration::from_secs(5), get(&limiter))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_waiting_reader_goes_before_readahead_and_so_does_a_block_that_becomes_wanted() {
    let limiter = Arc::new(limiter(1, 100_000, 100_000));
    let first = get(&limiter).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let wanted: Vec<_> = (0..4).map(|_| Wanted::default()).collect();
    let ask = |name: usize, wanted: Wanted| {
        let (limiter, order) = (Arc::clone(&limiter), Arc::clone(&order));
        async move {
            let _place = limiter.block(&snapshot(1), &wanted).await.unwrap();
            order.lock().push(name);
        }
    };
    let mut tasks: Vec<_> = Vec::new();
    for (name, wanted) in wanted.iter().enumerate() {
        tasks.push(tokio::spawn(ask(name, wanted.clone())));
        tokio::task::yield_now().await;
    }
    tasks.push(tokio::spawn(ask(9, Wanted::already())));
    tokio::task::yield_now().await;
    wanted[2].want();
    drop(first);
    join_all(tasks).await;
    assert_eq!(*order.lock(), [2, 9, 0, 1, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_waiter_leaves_its_place_to_the_next() {
    let limiter = limiter(1, 100_000, 100_000);
    let first = get(&limiter).await;
    assert!(
        timeout(Duration::from_millis(5), get(&limiter))
            .await
            .is_err()
    );
    drop(first);
    drop(
        timeout(Duration::from_secs(5), get(&limiter))
            .await
            .unwrap(),
    );
    assert_eq!(limiter.gate.lock().taken, 0);
}

#[tokio::test(start_paused = true)]
async fn places_double_then_follow_the_signs_of_congestion() {
    let limiter = limiter(128, 100_000, 100_000);
    assert_eq!(places(&limiter), FIRST);
    for _ in 0..12 {
        let all =
            join_all((0..128).map(|_| timeout(Duration::from_millis(20), get(&limiter)))).await;
        for place in all.into_iter().flatten() {
            place.served();
        }
    }
    assert_eq!(places(&limiter), 128.0);
    let all = join_all((0..100).map(|_| get(&limiter))).await;
    limiter.throttled();
    limiter.throttled();
    assert_eq!(
        places(&limiter),
        101.0 * PLACES_LEFT,
        "of those in use, once"
    );
    let rate = limiter.gate.lock().rate;
    assert!((rate - RATE_LEFT).abs() < 0.001, "{rate}");
    drop(all);
    let before = places(&limiter);
    let all = join_all((0..80).map(|_| get(&limiter))).await;
    for place in all {
        place.served();
    }
    let grown = places(&limiter) - before;
    assert!(grown > 0.0 && grown <= 1.1, "by one a round trip: {grown}");
    for _ in 0..40 {
        limiter.gate.lock().last_sign = None;
        limiter.throttled();
    }
    assert_eq!(places(&limiter), LEAST);
    assert_eq!(limiter.gate.lock().rate, LEAST_RATE);
}

#[tokio::test(start_paused = true)]
async fn a_slow_link_gets_fewer_requests_at_once() {
    let limiter = limiter(128, 100_000, 100_000);
    let mut all = join_all((0..16).map(|_| get(&limiter))).await;
    for place in &mut all {
        place.since -= 2 * SLOW;
    }
    for place in all {
        place.served();
    }
    assert!(places(&limiter) < FIRST);
}
