//! SHA-256 of many blocks at once.
//!
//! One SHA-256 is a chain that no processor runs faster; several blocks in parallel are. Measured on one core of a Zen 4
//! with 512 KiB blocks: 1.26 GiB/s one by one by its SHA extensions, 2.5 GiB/s by fours; without the extensions (a
//! c5.large has none) 0.2 GiB/s one by one and 1.2 GiB/s by eights over AVX2.
//!
//! Only blocks without a reader wait for a batch: a block that a reader requested is hashed at once, with the blocks that wait.
//! Blocks read ahead wait up to [`BATCH_WAIT`] until the lanes are full, while others are in flight; a reader that
//! reaches such a block waits up to that time too, and gets the blocks after it sooner.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tracing::error;

use crate::block::{BLOCK_SIZE, Digest, ZERO_BLOCK};

/// How long a block without a waiting reader waits for a full batch: at 500 MiB/s ten blocks arrive in this time.
const BATCH_WAIT: Duration = Duration::from_millis(10);

/// The result of comparing a block with its digest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DigestOutcome {
    /// They agree.
    Good,
    /// They agree, and all bytes are zero.
    Zero,
    /// They do not; this is the digest of the bytes.
    Wrong(Digest),
}

/// Hashes the blocks of a process.
#[derive(Debug, Default)]
pub(crate) struct Digester {
    queue: Arc<Mutex<Queue>>,
    /// Set when the batch hasher was found wrong: from then on blocks are hashed one by one.
    distrusted: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<WaitingBlock>,
    /// Whether a thread hashes; it checks the queue again before it ends.
    busy: bool,
    /// Whether a task will start a thread in time for the oldest block.
    awaited: bool,
}

#[derive(Debug)]
struct WaitingBlock {
    bytes: Bytes,
    /// When it is to be hashed, full lanes or not.
    by: Instant,
    answer: oneshot::Sender<Digest>,
}

impl Digester {
    /// Nothing waits yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Compares a block with the digest that it must have.
    pub(crate) async fn check(
        &self,
        bytes: &Bytes,
        promised: &Digest,
        is_wanted: bool,
    ) -> DigestOutcome {
        if *promised == ZERO_BLOCK && bytes.iter().all(|byte| *byte == 0) {
            return DigestOutcome::Zero;
        }
        let digest = self.digest(bytes, is_wanted).await;
        if digest == *promised {
            return DigestOutcome::Good;
        }
        // The batch hasher is new: the usual one must confirm before a block is called wrong.
        let confirmed = one(bytes);
        if confirmed != digest {
            error!("the batch hasher is wrong on this machine: blocks are hashed one by one");
            self.distrusted.store(true, Ordering::Relaxed);
        }
        if confirmed == *promised {
            return DigestOutcome::Good;
        }
        DigestOutcome::Wrong(confirmed)
    }

    /// The digest of a block; only whole blocks are put together.
    pub(crate) async fn digest(&self, bytes: &Bytes, is_wanted: bool) -> Digest {
        if self.distrusted.load(Ordering::Relaxed) || bytes.len() != BLOCK_SIZE as usize {
            return one(bytes);
        }
        let answer = {
            let mut queue = self.queue.lock();
            if is_wanted && queue.waiting.is_empty() && !queue.busy {
                drop(queue);
                return one(bytes);
            }
            let (sender, answer) = oneshot::channel();
            let now = Instant::now();
            queue.waiting.push(WaitingBlock {
                bytes: bytes.clone(),
                by: if is_wanted { now } else { now + BATCH_WAIT },
                answer: sender,
            });
            go_on(&self.queue, &mut queue, now);
            answer
        };
        match answer.await {
            Ok(digest) => digest,
            // The process stops, or the batch hasher failed.
            Err(_) => one(bytes),
        }
    }
}

/// One block's digest by the usual hasher.
fn one(bytes: &[u8]) -> Digest {
    if cfg!(feature = "sha-ni-masked") {
        let mut digests = [[0; 32]];
        tape_sha256::hash_many(&[bytes], &mut digests);
        return digests[0];
    }
    Sha256::digest(bytes).into()
}

/// How many blocks are hashed in parallel here.
fn lanes() -> usize {
    tape_sha256::lane_width().max(1)
}

/// Whether the lanes are full, or one is due.
fn is_due(waiting: &[WaitingBlock], now: Instant) -> bool {
    waiting.len() >= lanes() || waiting.iter().any(|waiting| waiting.by <= now)
}

/// Makes sure that the waiting blocks are hashed in time.
fn go_on(shared: &Arc<Mutex<Queue>>, queue: &mut Queue, now: Instant) {
    if queue.busy || queue.waiting.is_empty() {
        return;
    }
    let shared = Arc::clone(shared);
    if is_due(&queue.waiting, now) {
        queue.busy = true;
        tokio::task::spawn_blocking(move || hash_what_is_due(&shared));
    } else if !queue.awaited
        && let Some(by) = queue.waiting.iter().map(|waiting| waiting.by).min()
    {
        queue.awaited = true;
        tokio::spawn(async move {
            sleep_until(by).await;
            let mut queue = shared.lock();
            queue.awaited = false;
            go_on(&shared, &mut queue, Instant::now());
        });
    }
}

/// Drops the queue when hashing panics: each waiter then hashes its own block.
struct Hashing<'a>(&'a Mutex<Queue>);

impl Drop for Hashing<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut queue = self.0.lock();
            queue.busy = false;
            queue.waiting.clear();
        }
    }
}

fn hash_what_is_due(shared: &Arc<Mutex<Queue>>) {
    let _hashing = Hashing(shared);
    loop {
        let batch: Vec<WaitingBlock> = {
            let mut queue = shared.lock();
            let now = Instant::now();
            if !is_due(&queue.waiting, now) {
                queue.busy = false;
                return go_on(shared, &mut queue, now);
            }
            let full = queue.waiting.len().min(lanes());
            queue.waiting.drain(..full).collect()
        };
        let messages: Vec<&[u8]> = batch.iter().map(|waiting| &waiting.bytes[..]).collect();
        let mut digests = vec![[0; 32]; batch.len()];
        tape_sha256::hash_many(&messages, &mut digests);
        for (waiting, digest) in batch.into_iter().zip(digests) {
            // The waiter may have given up.
            let _ = waiting.answer.send(digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tape_sha256::{Message, backends};

    use super::*;

    fn blocks(count: u8) -> Vec<Bytes> {
        (1..=count)
            .map(|n| {
                let byte = |at: usize| n.wrapping_mul(31) ^ u8::try_from(at % 251).unwrap_or(0);
                (0..BLOCK_SIZE as usize).map(byte).collect()
            })
            .collect()
    }

    #[test]
    fn the_digest_of_a_block_of_zeroes_is_the_known_one() {
        assert_eq!(one(&vec![0; BLOCK_SIZE as usize]), ZERO_BLOCK);
    }

    #[test]
    #[expect(
        unsafe_code,
        reason = "each backend that the processor has, chosen or not"
    )]
    fn every_backend_of_this_machine_agrees_with_sha2() {
        type Backend = fn(&[Message<'_>], &mut [Digest]);
        let mut tried: Vec<Backend> = vec![backends::portable8, backends::serial];
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: each only where the processor has what it needs.
            if is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1") {
                tried.push(|blocks, out| unsafe { backends::shani_x4(blocks, out) });
            }
            if is_x86_feature_detected!("avx2") {
                tried.push(|blocks, out| unsafe { backends::avx2_8(blocks, out) });
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                tried.push(|blocks, out| unsafe { backends::avx512_16(blocks, out) });
                tried.push(|blocks, out| unsafe { backends::avx512_16x2(blocks, out) });
            }
        }
        let mut blocks = blocks(33);
        // A volume's last block can be short.
        blocks.push(blocks[0].slice(..1000));
        let expected: Vec<_> = blocks.iter().map(|block| one(block)).collect();
        for count in [1, 2, 3, 4, 7, 8, 16, 17, 34] {
            let messages: Vec<_> = blocks[34 - count..]
                .iter()
                .map(|b| Message::new(b))
                .collect();
            for backend in &tried {
                let mut digests = vec![[0; 32]; count];
                backend(&messages, &mut digests);
                assert_eq!(digests, expected[34 - count..]);
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn blocks_are_classified_good_wrong_and_zero_at_any_batch_size() {
        let digester = Digester::new();
        let blocks = blocks(40);
        let checks = blocks.iter().enumerate().map(|(n, block)| {
            let digester = &digester;
            async move {
                let promised = one(block);
                let good = digester.check(block, &promised, n % 3 == 0).await;
                assert_eq!(good, DigestOutcome::Good);
                let wrong = digester.check(block, &ZERO_BLOCK, n % 3 == 0).await;
                assert_eq!(wrong, DigestOutcome::Wrong(promised));
            }
        });
        join_all(checks).await;
        let zeroes = Bytes::from(vec![0; BLOCK_SIZE as usize]);
        assert_eq!(
            digester.check(&zeroes, &ZERO_BLOCK, true).await,
            DigestOutcome::Zero
        );
        assert!(!digester.distrusted.load(Ordering::Relaxed));
        // The hashing thread looks again after its last answer.
        let start = Instant::now();
        while digester.queue.lock().busy {
            assert!(start.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(digester.queue.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn a_block_waits_for_a_batch_only_without_a_waiting_reader() {
        let digester = Digester::new();
        let block = &blocks(1)[0];
        let promised = one(block);
        for (is_wanted, waits) in [(true, false), (false, true)] {
            let start = Instant::now();
            let check = digester.check(block, &promised, is_wanted);
            let mut check = std::pin::pin!(check);
            let first = futures_util::poll!(check.as_mut());
            assert_eq!(first.is_pending(), waits);
            if first.is_pending() {
                check.await;
                assert!(start.elapsed() >= BATCH_WAIT);
            }
        }
    }
}
