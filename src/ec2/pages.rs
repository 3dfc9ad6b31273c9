//! A listing over pages, whose number, size and tokens are bounded.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use futures_util::future::BoxFuture;

use super::call::CallRefusal;
use crate::aws::IamAction;
use crate::error::{Error, Kind, Result};
use crate::snapshot::{Snapshot, VolumeInfo};

/// The most snapshots or volumes of a listing. The quota of snapshots is 100,000 a Region and can be raised
/// (<https://docs.aws.amazon.com/ebs/latest/userguide/ebs-resource-quotas.html>).
const MAX_ITEMS: usize = 1_000_000;
/// The most pages in a row without an item that is not listed already: filters are applied after what the account has is
/// cut into pages, so that pages may be empty.
const MAX_IDLE_PAGES: u32 = 1_100;

/// What is listed in pages.
pub(super) trait PageItem {
    /// The plural noun of the items, for messages.
    const MANY: &'static str;
    /// The IAM action of the call that lists them.
    const ACTION: &'static str;

    /// Its id.
    fn id(&self) -> &str;
}

impl PageItem for Snapshot {
    const MANY: &'static str = "snapshots";
    const ACTION: &'static str = IamAction::DescribeSnapshots.name();

    fn id(&self) -> &str {
        self.id.as_str()
    }
}

impl PageItem for VolumeInfo {
    const MANY: &'static str = "volumes";
    const ACTION: &'static str = IamAction::DescribeVolumes.name();

    fn id(&self) -> &str {
        &self.id
    }
}

/// One reply.
#[derive(Debug)]
pub(super) struct DescribedPage<T> {
    pub(super) items: Vec<T>,
    /// The token of the next page; none at the end.
    pub(super) next: Option<String>,
}

/// Why a page failed.
#[derive(Debug)]
pub(super) enum PageFailure {
    /// The token is not known any more.
    StaleToken(Error),
    /// Anything else.
    Final(Error),
}

/// Classifies the refusal of a page by EC2's code.
impl From<CallRefusal> for PageFailure {
    fn from(refused: CallRefusal) -> Self {
        match refused.code.as_str() {
            code if code.contains("NextToken") || code.contains("PaginationToken") => {
                Self::StaleToken(refused.error)
            }
            _ => Self::Final(refused.error),
        }
    }
}

/// All pages, from the first to the end. `seen` learns how many items there are so far.
///
/// # Errors
/// `Unavailable` when the pages do not end; else why a page failed.
pub(super) async fn list_pages<'a, T: PageItem>(
    seen: &(dyn Fn(usize) + Send + Sync),
    fetch: impl Fn(Option<String>) -> BoxFuture<'a, std::result::Result<DescribedPage<T>, PageFailure>>,
) -> Result<Vec<T>> {
    let many = T::MANY;
    let broken = |why: &str| {
        let what = format!("cannot list {many}: {} {why}", T::ACTION);
        Error::new(Kind::Unavailable, what)
    };
    let mut items = Vec::new();
    let mut ids: HashSet<String> = HashSet::new();
    let hasher = RandomState::new();
    let mut tokens = HashSet::new();
    let (mut next, mut idle, mut has_restarted) = (None::<String>, 0u32, false);
    loop {
        let page = match fetch(next.clone()).await {
            Ok(page) => page,
            // How long a token lives is not documented. What is listed already stays; each is listed once.
            Err(PageFailure::StaleToken(_)) if next.is_some() && !has_restarted => {
                has_restarted = true;
                next = None;
                tokens.clear();
                continue;
            }
            Err(PageFailure::StaleToken(error) | PageFailure::Final(error)) => return Err(error),
        };
        let before = items.len();
        let new = page.items.into_iter();
        items.extend(new.filter(|item| ids.insert(item.id().to_owned())));
        seen(items.len());
        let Some(token) = page.next else {
            return Ok(items);
        };
        if !tokens.insert(hasher.hash_one(&token)) {
            return Err(broken("repeats a page token"));
        }
        idle = if items.len() > before { 0 } else { idle + 1 };
        if idle > MAX_IDLE_PAGES {
            return Err(broken(&format!("sends {idle} pages without new {many}")));
        }
        if items.len() > MAX_ITEMS {
            return Err(broken(&format!("sends more than {MAX_ITEMS} {many}")));
        }
        next = Some(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::future::ready;

    use futures_util::FutureExt;

    fn snapshot(number: usize) -> Snapshot {
        Snapshot::unknown(format!("snap-{number:x}").parse().unwrap())
    }

    /// A listing of a service that answers the n-th request, from 0, with these numbers and token.
    async fn list(
        answer: impl Fn(usize, Option<&str>) -> Option<(Vec<usize>, Option<String>)>,
    ) -> (Result<Vec<Snapshot>>, usize) {
        let calls = Cell::new(0);
        let fetch = |token: Option<String>| {
            let call = calls.replace(calls.get() + 1);
            let page = match answer(call, token.as_deref()) {
                Some((numbers, next)) => Ok(DescribedPage {
                    items: numbers.into_iter().map(snapshot).collect(),
                    next,
                }),
                None => Err(PageFailure::StaleToken(Error::new(Kind::Invalid, "stale"))),
            };
            ready(page).boxed()
        };
        let listed = list_pages(&|_| {}, fetch).await;
        (listed, calls.get())
    }

    #[tokio::test]
    async fn pages_end_where_there_is_no_token_and_may_be_empty_before() {
        let (listed, calls) = list(|call, token| {
            assert_eq!(
                token.map(str::to_owned),
                call.checked_sub(1).map(|n| n.to_string())
            );
            let numbers = if call == 150 { vec![7] } else { vec![] };
            Some((numbers, (call < 200).then(|| call.to_string())))
        })
        .await;
        assert_eq!((listed.unwrap().len(), calls), (1, 201));
    }

    #[tokio::test]
    async fn tokens_that_repeat_or_alternate_are_an_error_and_not_a_loop() {
        for period in [1, 2, 3, 7] {
            let (listed, calls) =
                list(|call, _| Some((vec![call], Some(format!("t{}", call % period))))).await;
            let error = listed.unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable);
            assert!(error.chain().contains("repeats a page token"), "{error:?}");
            assert_eq!(calls, period + 1);
        }
    }

    #[tokio::test]
    async fn pages_without_end_are_an_error() {
        let (listed, calls) = list(|call, _| Some((vec![1], Some(call.to_string())))).await;
        assert_eq!(listed.unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(calls, MAX_IDLE_PAGES as usize + 2);
        let page = |call: usize| (call * 10_000..(call + 1) * 10_000).collect();
        let (listed, calls) = list(|call, _| Some((page(call), Some(call.to_string())))).await;
        assert_eq!(listed.unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(calls, MAX_ITEMS / 10_000 + 1);
    }

    #[tokio::test]
    async fn a_listing_whose_token_has_expired_starts_again_once_and_lists_each_once() {
        let pages = |call: usize| match call {
            0 | 3 => Some((vec![1, 2], Some("a".into()))),
            1 | 4 => Some((vec![3], Some("b".into()))),
            2 => None,
            _ => Some((vec![4], None)),
        };
        let (listed, calls) = list(|call, _| pages(call)).await;
        assert_eq!((listed.unwrap().len(), calls), (4, 6));
        let (listed, calls) = list(|call, _| if call % 2 == 0 { pages(0) } else { None }).await;
        assert_eq!((listed.unwrap_err().kind(), calls), (Kind::Invalid, 4));
        // Without a token there is nothing to start again from.
        let (listed, calls) = list(|_, _| None).await;
        assert_eq!((listed.unwrap_err().kind(), calls), (Kind::Invalid, 1));
    }
}
