use super::*;

fn transfer() -> (Arc<UploadRate>, Arc<Transfer>) {
    let rate = Arc::new(UploadRate::default());
    let transfer = Transfer::new(&rate, &Bandwidth::default());
    (rate, transfer)
}

#[tokio::test(start_paused = true)]
async fn an_attempt_ends_after_silence_and_not_while_bytes_move() {
    let (_, moving) = transfer();
    let slow = async {
        for _ in 0..100 {
            tokio::time::sleep(SILENCE / 2).await;
            moving.received(1);
        }
    };
    assert!(moving.unless_silent(SILENCE, slow).await.is_some());
    assert_eq!(moving.total(), 100);
    let begun = Instant::now();
    let (_, silent) = transfer();
    let never = std::future::pending::<()>();
    assert!(silent.unless_silent(SILENCE, never).await.is_none());
    assert_eq!(begun.elapsed().as_secs(), SILENCE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn buffered_bytes_get_the_time_of_the_slowest_line_or_of_the_measured_one() {
    let upload = |transfer: Arc<Transfer>| async move {
        let body = UploadBody::new(&[Bytes::from(vec![0; 4 << 20])], &transfer);
        let frames = http_body_util::BodyExt::collect(body).await.unwrap();
        assert_eq!(frames.to_bytes().len(), 4 << 20);
        // The reply comes when all of it has left at 256 kbit/s.
        tokio::time::sleep(Duration::from_secs(131)).await;
        transfer.answered(true);
    };
    let (rate, first) = transfer();
    let done = first.unless_silent(SILENCE, upload(Arc::clone(&first)));
    assert!(done.await.is_some());
    let known = rate.get().unwrap();
    assert!((31_000..34_000).contains(&known), "{known}");
    // On a fast line a dead connection is seen soon.
    rate.one.store(100 << 20, Ordering::Relaxed);
    let second = Transfer::new(&rate, &Bandwidth::default());
    let begun = Instant::now();
    let done = second.unless_silent(SILENCE, upload(Arc::clone(&second)));
    assert!(done.await.is_none());
    assert!(begun.elapsed() < SILENCE + Duration::from_secs(1));
    assert!(rate.get().unwrap() < 100 << 20);
}

#[test]
fn a_rate_follows_the_line() {
    let rate = UploadRate::default();
    assert_eq!((rate.get(), rate.of_all()), (None, None));
    rate.sample(1 << 20, Duration::from_secs(1), 4);
    assert_eq!((rate.get(), rate.of_all()), (Some(1 << 20), Some(4 << 20)));
    for _ in 0..30 {
        rate.sample(1 << 10, Duration::from_secs(1), 2);
    }
    assert!(rate.get().unwrap() < 2 << 10);
    assert!(rate.of_all().unwrap() < 4 << 10);
    rate.sample(u64::MAX, Duration::ZERO, u64::MAX);
    assert!(rate.of_all().unwrap() <= MOST_RATE);
}

#[tokio::test(start_paused = true)]
async fn uploads_beside_each_other_are_measured_together() {
    let rate = Arc::new(UploadRate::default());
    let transfers: Vec<_> = (0..4)
        .map(|_| Transfer::new(&rate, &Bandwidth::default()))
        .collect();
    transfers.iter().for_each(|transfer| transfer.sent(1 << 20));
    tokio::time::sleep(Duration::from_secs(4)).await;
    transfers[0].answered(true);
    assert_eq!((rate.get(), rate.of_all()), (Some(1 << 18), Some(1 << 20)));
    // An upload that was given up or answered does not count any more.
    drop(transfers);
    assert_eq!(rate.under_way.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn the_latency_is_that_of_the_shortest_small_answer() {
    let latency = Latency::default();
    assert_eq!(latency.get(), None);
    for (millis, answers, bytes, shortest) in [
        (900, 1, 100, 900),
        (300, 1, 0, 300),
        (10, 2, 0, 300),
        (10, 1, 100_000, 300),
        (400, 1, 0, 300),
    ] {
        let (_, transfer) = transfer();
        tokio::time::sleep(Duration::from_millis(millis)).await;
        (0..answers).for_each(|_| transfer.answered(true));
        transfer.received(bytes);
        latency.sample(&transfer);
        let expected = Duration::from_millis(shortest);
        assert_eq!(latency.get(), Some(expected), "{millis}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_is_neither_silence_nor_the_rate_of_the_line() {
    let rate = Arc::default();
    let slow = Bandwidth::of(1000);
    let upload = async |bandwidth: &Bandwidth, bytes: usize| {
        let transfer = Transfer::new(&rate, bandwidth);
        let pieces = [
            Bytes::from(vec![0; bytes / 2]),
            Bytes::from(vec![1; bytes / 2]),
        ];
        let body = UploadBody::new(&pieces, &transfer);
        let started = Instant::now();
        let work = async {
            let sent = http_body_util::BodyExt::collect(body).await.unwrap();
            assert_eq!(sent.to_bytes(), pieces.concat());
            transfer.answered(true);
        };
        let done = transfer.unless_silent(Duration::from_secs(2), work).await;
        assert!(done.is_some());
        (started.elapsed(), transfer.waited_in_all())
    };
    // Two uploads in parallel at 1,000 bytes a second: each frame waits for that of the other too.
    let both = async { tokio::join!(upload(&slow, 300_000), upload(&slow, 300_000)) };
    let ((one, waited), (two, _)) = both.await;
    for took in [one, two] {
        assert!((590..=600).contains(&took.as_secs()), "{took:?}");
    }
    assert!(waited > Duration::from_secs(580), "{waited:?}");
    assert_eq!(rate.get(), None);
    upload(&Bandwidth::default(), 300_000).await;
    assert!(rate.get().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_reply_is_read_at_the_limit_and_its_waiting_is_no_silence() {
    let transfer = Transfer::new(&Arc::default(), &Bandwidth::of(10_000));
    let frames = (0..20u8).map(|number| Bytes::from(vec![number; 5000]));
    let frames = frames.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
    let inner = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
    let started = Instant::now();
    let body = ReplyBody::new(inner, &transfer);
    let read = http_body_util::BodyExt::collect(body);
    let read = transfer.unless_silent(Duration::from_secs(1), read).await;
    assert_eq!(read.unwrap().unwrap().to_bytes().len(), 100_000);
    let took = started.elapsed().as_millis();
    assert!((9_850..=10_000).contains(&took), "{took}");
    // Bytes that cannot be held back reserve their turns first.
    let started = Instant::now();
    transfer.pay(Direction::Up, 50_000).await;
    let took = started.elapsed().as_millis();
    assert!((4_850..=5_000).contains(&took), "{took}");
}
