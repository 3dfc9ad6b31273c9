use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn credentials_are_renewed_before_they_expire_and_failures_rest() {
    let held = Supplies {
        is_held: true,
        ..Supplies::default()
    };
    let aged = |age: u32, life: u32| Supplies {
        age: SECOND * age,
        life: Some(SECOND * life),
        ..held
    };
    let failed = |supplies: Supplies, ago: u32| Supplies {
        failed_ago: Some(SECOND * ago),
        ..supplies
    };
    let stale = Supplies {
        is_stale: true,
        ..held
    };
    for (supplies, expected, rule) in [
        (Supplies::default(), Supply::Load, "none are held"),
        (
            failed(Supplies::default(), 1),
            Supply::Fail,
            "a load just failed",
        ),
        (
            failed(Supplies::default(), 2),
            Supply::Load,
            "a load failed long ago",
        ),
        (held, Supply::Use, "they do not expire"),
        (stale, Supply::Load, "they were refused"),
        (
            failed(stale, 1),
            Supply::Fail,
            "they were refused and no others can be had",
        ),
        (aged(0, 3600), Supply::Use, "they are fresh"),
        (
            aged(3299, 3600),
            Supply::Use,
            "more than 5 minutes are left",
        ),
        (
            aged(3301, 3600),
            Supply::UseAndRenew,
            "less than 5 minutes are left",
        ),
        (
            failed(aged(3301, 3600), 1),
            Supply::Use,
            "the renewal just failed",
        ),
        (
            failed(aged(3599, 3600), 1),
            Supply::Fail,
            "the renewal failed to the end",
        ),
        (aged(3599, 3600), Supply::Load, "they are about to expire"),
        (
            aged(14, 20),
            Supply::Use,
            "a short session is kept for most of its life",
        ),
        (
            aged(16, 20),
            Supply::UseAndRenew,
            "a short session is renewed in its last quarter",
        ),
        (
            aged(0, 0),
            Supply::Use,
            "they come expired, perhaps by a wrong clock",
        ),
    ] {
        assert_eq!(supplies.decide(), expected, "{rule}");
    }
}

/// Credentials whose loads are counted; `text` gives the token of the n-th, or none for a failure.
fn counted(
    token: impl Fn(usize) -> Option<&'static str> + Send + Sync + Copy + 'static,
) -> (Credentials, Arc<AtomicUsize>) {
    let loads = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&loads);
    let credentials = Credentials::new(move || {
        let number = counter.fetch_add(1, Ordering::Relaxed);
        async move {
            tokio::time::sleep(SECOND / 10).await;
            let token = token(number).ok_or_else(none_held)?;
            Ok(Keys::new("id", "secret", Some(token.into()), None, "test"))
        }
        .boxed()
    });
    (credentials, loads)
}

fn token(keys: &Keys) -> &str {
    keys.session_token().unwrap()
}

#[tokio::test]
async fn callers_share_one_load_which_outlives_them() {
    let (credentials, loads) = counted(|_| Some("a"));
    let gave_up = tokio::time::timeout(SECOND / 20, credentials.current()).await;
    assert!(gave_up.is_err());
    let all = futures_util::future::join_all((0..50).map(|_| credentials.current())).await;
    assert!(all.into_iter().all(|usable| usable.is_ok()));
    assert_eq!(loads.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_refusal_loads_others_once_for_all_callers() {
    let (credentials, loads) = counted(|number| Some(["old", "new", "new"][number.min(2)]));
    let old = credentials.current().await.unwrap();
    assert_eq!(token(&old), "old");
    let used = credentials.generation();
    // Many requests were under way with the old ones.
    for _ in 0..50 {
        assert!(credentials.refused(used));
    }
    let new = credentials.current().await.unwrap();
    assert_eq!(token(&new), "new");
    assert!(credentials.refused(used), "others are held already");
    assert_eq!(token(&credentials.current().await.unwrap()), "new");
    assert_eq!(loads.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn the_same_credentials_are_loaded_again_once_and_then_rest() {
    let (credentials, loads) = counted(|_| Some("same"));
    credentials.current().await.unwrap();
    let used = credentials.generation();
    assert!(credentials.refused(used));
    credentials.current().await.unwrap();
    assert_eq!(credentials.generation(), used);
    for _ in 0..50 {
        assert!(!credentials.refused(used), "they came back the same");
    }
    assert_eq!(loads.load(Ordering::Relaxed), 2);
    tokio::time::sleep(PAUSE).await;
    assert!(
        credentials.refused(used),
        "some seconds later there may be others"
    );
    credentials.current().await.unwrap();
    assert_eq!(loads.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_program_that_fails_once_in_the_middle_of_a_run_is_tried_again() {
    let failure = |kind| move || Err(Error::new(kind, "it failed"));
    for (kind, is_held, expected) in [
        (Kind::Unavailable, true, Kind::Unavailable),
        (Kind::Unavailable, false, Kind::Denied),
        (Kind::Denied, true, Kind::Denied),
        (Kind::Denied, false, Kind::Denied),
    ] {
        let loads = Arc::new(AtomicUsize::new(usize::from(!is_held)));
        let failed = failure(kind);
        let credentials = Credentials::new(move || {
            let number = loads.fetch_add(1, Ordering::Relaxed);
            let keys = |token: &str| Keys::new("id", "secret", Some(token.into()), None, "test");
            let loaded = match number {
                0 => Ok(keys("first")),
                1 => failed(),
                _ => Ok(keys("second")),
            };
            async move { loaded }.boxed()
        });
        if is_held {
            credentials.current().await.unwrap();
            assert!(credentials.refused(credentials.generation()));
        }
        let error = credentials.current().await.unwrap_err();
        assert_eq!(error.kind(), expected, "{kind:?}, held: {is_held}");
        let is_retried = matches!(
            crate::aws::ErrorClass::without_credentials(error),
            crate::aws::ErrorClass::Retry(_)
        );
        assert_eq!(is_retried, expected == Kind::Unavailable);
        tokio::time::sleep(PAUSE).await;
        assert_eq!(token(&credentials.current().await.unwrap()), "second");
    }
}

#[tokio::test]
async fn missing_credentials_are_an_immediate_error_for_some_seconds() {
    let (credentials, loads) = counted(|number| (number > 0).then_some("late"));
    for _ in 0..50 {
        let error = credentials.current().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
    }
    assert_eq!(loads.load(Ordering::Relaxed), 1);
    tokio::time::sleep(PAUSE).await;
    assert_eq!(token(&credentials.current().await.unwrap()), "late");
}
