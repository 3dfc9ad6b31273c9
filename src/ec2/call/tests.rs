use super::*;

/// The pauses of a call whose attempts fail like this, each after `takes`, until it is given up, and the time of it all.
fn fail(kinds: &[Kind], takes: Duration, repeat: Repeat) -> (usize, Duration) {
    let start = Instant::now();
    let mut waits = CallAttempts::new(repeat);
    waits.since = start;
    let mut now = start;
    for (attempt, kind) in kinds.iter().cycle().enumerate() {
        now += takes;
        match waits.pause_after(*kind, now) {
            Some(pause) => now += pause,
            None => return (attempt + 1, now - start),
        }
    }
    unreachable!()
}

#[test]
fn a_call_is_repeated_as_long_as_its_failures_are_worth() {
    use Kind::{Throttled, Unavailable};
    let quick = Duration::from_millis(10);
    for (kinds, takes, repeat, limit) in [
        (&[Unavailable][..], quick, Repeat::Single, SILENCE),
        (
            &[Unavailable],
            Duration::from_secs(4),
            Repeat::Single,
            SILENCE,
        ),
        (&[Unavailable], quick, Repeat::Listing, SILENCE_WITHIN),
        (&[Throttled], quick, Repeat::Single, THROTTLED),
        (&[Throttled], quick, Repeat::Listing, THROTTLED),
        (&[Throttled, Unavailable], quick, Repeat::Listing, THROTTLED),
    ] {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        fastrand::seed(seed);
        let (attempts, took) = fail(kinds, takes, repeat);
        assert!(attempts >= 3, "{attempts} attempts");
        let longest = THROTTLE_PAUSES.1 + takes;
        assert!(took <= limit + takes, "{took:?} of {limit:?}");
        assert!(took + longest >= limit, "{took:?} of {limit:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn arriving_bytes_keep_a_call_alive_and_silence_ends_it() {
    let watch = ReplyWatch::default();
    let limit = Duration::from_secs(6);
    let slow = async {
        for _ in 0..50 {
            sleep(Duration::from_secs(5)).await;
            watch.0.fetch_add(1, Ordering::Relaxed);
        }
    };
    assert!(watched(&watch, limit, slow).await.is_some());
    let start = Instant::now();
    let trickle = async {
        loop {
            sleep(Duration::from_secs(5)).await;
            watch.0.fetch_add(1, Ordering::Relaxed);
        }
    };
    let none: Option<()> = watched(&watch, limit, trickle).await;
    assert!(none.is_none() && start.elapsed() < LONGEST + limit);
    let start = Instant::now();
    assert!(
        watched(&watch, limit, std::future::pending::<()>())
            .await
            .is_none()
    );
    assert_eq!(start.elapsed(), limit);
}
