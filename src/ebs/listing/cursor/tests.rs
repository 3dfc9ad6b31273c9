use std::collections::VecDeque;

use futures_util::FutureExt;
use parking_lot::Mutex;

use super::*;
use crate::error::Kind;

type Replies = VecDeque<Result<ListReply<()>, CallFailure>>;

/// Replies in order, and where each was asked from.
struct Script(Mutex<Replies>, Mutex<Vec<ListFrom>>);

impl Script {
    fn new(replies: impl IntoIterator<Item = (Vec<u32>, Option<&'static str>)>) -> Self {
        let reply = |(blocks, next): (Vec<u32>, Option<&str>)| {
            Ok(ListReply {
                blocks: blocks
                    .into_iter()
                    .map(|index| (BlockIndex(index), ()))
                    .collect(),
                expiry: None,
                volume_size: None,
                next: next.map(Token::new),
            })
        };
        Self(
            Mutex::new(replies.into_iter().map(reply).collect()),
            Mutex::default(),
        )
    }

    fn asked(&self) -> Vec<ListFrom> {
        self.1.lock().clone()
    }
}

impl ListCall for Script {
    type Item = ();

    async fn list(&self, from: &ListFrom) -> Result<ListReply<()>, CallFailure> {
        self.1.lock().push(from.clone());
        self.0.lock().pop_front().unwrap()
    }

    fn end(&self) -> Option<u32> {
        Some(100)
    }
}

fn index(at: u32) -> ListFrom {
    ListFrom::Index(BlockIndex(at))
}

fn token(text: &str) -> ListFrom {
    ListFrom::Page(Token::new(text))
}

type Page = (Vec<u32>, u32, bool);

/// The page that a cursor lists.
fn listed(script: &Script, mut cursor: PageCursor<()>) -> Result<ListedPage<()>, ListFault> {
    let page = cursor.page(script).now_or_never().unwrap();
    page.map(Option::unwrap)
}

fn page(script: &Script, start: u32, anchored: bool) -> Result<Page, String> {
    match listed(script, PageCursor::new(start, anchored)) {
        Ok(page) => {
            let blocks = page.blocks.iter().map(|(index, ())| index.0).collect();
            Ok((blocks, page.end, page.more))
        }
        Err(ListFault::Contradiction(what)) => Err(what),
        Err(ListFault::Failed(error)) => panic!("{error}"),
    }
}

#[test]
fn a_page_with_a_next_one_proves_up_to_its_last_block() {
    let script = Script::new([(vec![3, 7], Some("t"))]);
    assert_eq!(page(&script, 0, false), Ok((vec![3, 7], 8, true)));
    assert_eq!(script.asked().len(), 1);
}

#[test]
fn an_end_is_believed_after_one_more_request_that_is_empty_too() {
    let script = Script::new([(vec![3, 7], None), (vec![], None)]);
    assert_eq!(page(&script, 0, false), Ok((vec![3, 7], 100, false)));
    assert_eq!(script.asked(), [index(0), index(8)]);
    let script = Script::new([(vec![], None), (vec![], None)]);
    assert_eq!(page(&script, 9, false), Ok((vec![], 100, false)));
    assert_eq!(script.asked(), [index(9), index(9)]);
    // Nothing can follow the volume's last block.
    let script = Script::new([(vec![99], None)]);
    assert_eq!(page(&script, 9, false), Ok((vec![99], 100, false)));
}

#[test]
fn an_end_behind_the_needed_block_stays_unconfirmed() {
    let script = Script::new([(vec![3, 7], None)]);
    let page = listed(&script, PageCursor::new(0, false).needing(BlockIndex(7))).unwrap();
    assert_eq!((page.end, page.more, page.may_end), (8, true, true));
    let script = Script::new([(vec![3, 7], None), (vec![], None)]);
    let page = listed(&script, PageCursor::new(0, false).needing(BlockIndex(8))).unwrap();
    assert_eq!((page.end, page.more), (100, false));
    // One empty reply confirms it later, and a block refutes it.
    let script = Script::new([(vec![], None)]);
    let page = listed(&script, PageCursor::new(8, false).confirming()).unwrap();
    assert_eq!((page.end, page.more), (100, false));
    let script = Script::new([(vec![50], None)]);
    let page = listed(&script, PageCursor::new(8, false).confirming()).unwrap();
    assert_eq!((page.end, page.more), (51, true));
}

#[test]
fn a_lost_token_costs_one_request_and_no_block() {
    let script = Script::new([(vec![3, 7], None), (vec![50, 60], Some("t"))]);
    assert_eq!(page(&script, 0, false), Ok((vec![3, 7, 50, 60], 61, true)));
    let script = Script::new([(vec![3], None), (vec![50], None)]);
    assert_eq!(page(&script, 0, false), Ok((vec![3, 50], 51, true)));
    // The anchor alone, and then blocks.
    let script = Script::new([(vec![3], None), (vec![4], None)]);
    assert_eq!(page(&script, 3, true), Ok((vec![3, 4], 5, true)));
    // The confirming request may itself pass pages without blocks.
    let script = Script::new([(vec![3], None), (vec![], Some("a")), (vec![], None)]);
    assert_eq!(page(&script, 0, false), Ok((vec![3], 100, false)));
    assert_eq!(script.asked()[2], token("a"));
    let script = Script::new([(vec![3], None), (vec![], Some("a")), (vec![8], None)]);
    assert_eq!(page(&script, 0, false), Ok((vec![3, 8], 9, true)));
}

#[test]
fn pages_without_blocks_and_of_the_anchor_alone_are_passed_by_their_tokens() {
    let script = Script::new([
        (vec![], Some("a")),
        (vec![5], Some("b")),
        (vec![], Some("c")),
        (vec![6, 9], Some("d")),
    ]);
    assert_eq!(page(&script, 5, true), Ok((vec![5, 6, 9], 10, true)));
    let asked = script.asked();
    assert_eq!(asked, [index(5), token("a"), token("b"), token("c")]);
}

#[test]
fn a_dropped_future_keeps_the_position() {
    let script = Script::new([(vec![], Some("a")), (vec![], Some("b")), (vec![99], None)]);
    let mut cursor = PageCursor::new(0, false);
    let stalled = Stalled(&script, Mutex::new(2));
    assert!(cursor.page(&stalled).now_or_never().is_none());
    let page = cursor.page(&script).now_or_never().unwrap().unwrap();
    assert_eq!(page.unwrap().blocks, [(BlockIndex(99), ())]);
    assert_eq!(script.asked()[2], token("b"));
}

/// Answers so often, and then never.
struct Stalled<'a>(&'a Script, Mutex<u32>);

impl ListCall for Stalled<'_> {
    type Item = ();

    async fn list(&self, from: &ListFrom) -> Result<ListReply<()>, CallFailure> {
        let left = self.1.lock().checked_sub(1);
        let Some(left) = left else {
            return std::future::pending().await;
        };
        *self.1.lock() = left;
        self.0.list(from).await
    }

    fn end(&self) -> Option<u32> {
        self.0.end()
    }
}

#[test]
fn a_refused_token_restarts_the_page_a_hundred_times_at_most() {
    let stale = || {
        let error = Error::new(Kind::Invalid, "INVALID_PAGE_TOKEN");
        Err(CallFailure::StaleToken(error))
    };
    let script = Script::new([(vec![5], Some("a")), (vec![5, 99], None)]);
    script.0.lock().insert(1, stale());
    assert_eq!(page(&script, 5, true), Ok((vec![5, 99], 100, false)));
    let script = Script::new((0..200).map(|_| (vec![], Some("a"))));
    for n in 0..200 {
        script.0.lock().insert(2 * n + 1, stale());
    }
    let mut cursor = PageCursor::new(5, false);
    let page = cursor.page(&script).now_or_never().unwrap();
    assert!(matches!(page, Err(ListFault::Failed(_))), "{page:?}");
}

#[test]
fn a_listing_that_contradicts_itself_is_an_error() {
    let of = |blocks: &[u32], anchored| {
        page(&Script::new([(blocks.to_vec(), None)]), 5, anchored).unwrap_err()
    };
    assert!(of(&[4], false).contains("block 4"));
    assert!(of(&[7, 7], false).contains("8 to 99"));
    assert!(of(&[100], false).contains("block 100"));
    assert!(of(&[6], true).contains("block 5 was listed"));
    assert!(of(&[], true).contains("block 5 was listed"));
}

#[test]
fn tokens_that_cycle_and_pages_that_never_end_are_an_error() {
    for cycle in [&["a", "a"][..], &["a", "b", "a"], &["a", "b", "c", "b"]] {
        let script = Script::new(cycle.iter().map(|token| (vec![], Some(*token))));
        assert!(page(&script, 0, false).unwrap_err().contains("for ever"));
    }
    let names: Vec<&'static str> = (0..1100).map(|n| &*format!("{n}").leak()).collect();
    let script = Script::new(names.iter().map(|name| (vec![], Some(*name))));
    assert!(page(&script, 0, false).unwrap_err().contains("in a row"));
    assert_eq!(script.asked().len(), 1002);
}

#[test]
fn a_token_never_prints() {
    assert_eq!(format!("{:?}", token("secret")), "Page(Token)");
}
