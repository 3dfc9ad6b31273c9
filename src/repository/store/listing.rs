//! Checks that pages form a listing: keys of the prefix, in the order of their bytes, none twice, until an end. A listing
//! that is cut or repeats would make a prune delete objects that snapshots need.

use super::backend::{ListCursor, StorePage};

/// Pages in a row that hold no key; servers that skip deleted keys send some.
const MOST_EMPTY: usize = 1000;

/// The state after the pages so far.
#[derive(Debug)]
pub(super) struct ListingCheck {
    prefix: String,
    last: Option<String>,
    empty: usize,
}

impl ListingCheck {
    pub(super) fn new(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            last: None,
            empty: 0,
        }
    }

    /// Takes the page that `from` led to. The error names the fault of the page.
    pub(super) fn take(&mut self, from: &ListCursor, page: &StorePage) -> Result<(), String> {
        for listed in &page.keys {
            let key = &listed.key;
            if !key.starts_with(&self.prefix) {
                return Err(format!(
                    "it holds {key:?}, which does not begin with what was asked for"
                ));
            }
            if let Some(last) = self.last.as_ref().filter(|last| *last >= key) {
                return Err(format!(
                    "{key:?} comes behind {last:?}: a page repeats or is not sorted"
                ));
            }
            self.last = Some(key.clone());
        }
        if page.next.is_some() && page.next.as_ref() == Some(from) {
            return Err("a page leads to itself".into());
        }
        self.empty = if page.keys.is_empty() {
            self.empty + 1
        } else {
            0
        };
        if self.empty > MOST_EMPTY {
            return Err(format!("{MOST_EMPTY} pages in a row hold no key"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::repository::store::backend::ListedKey;

    fn page(keys: &[&str], next: Option<&str>) -> StorePage {
        let keys = keys.iter().map(|key| ListedKey {
            key: (*key).to_owned(),
            size: 0,
            modified: SystemTime::UNIX_EPOCH,
        });
        StorePage {
            keys: keys.collect(),
            next: next.map(|token| ListCursor::Token(token.to_owned())),
        }
    }

    #[test]
    fn a_page_that_repeats_is_unsorted_or_foreign_is_refused() {
        let start = ListCursor::Start;
        let token = ListCursor::Token("t".into());
        let mut check = ListingCheck::new("p/");
        assert!(
            check
                .take(&start, &page(&["p/a", "p/b"], Some("t")))
                .is_ok()
        );
        assert!(
            check
                .take(&token, &page(&["p/b"], None))
                .unwrap_err()
                .contains("repeats")
        );
        assert!(
            check
                .take(&token, &page(&["p/c"], Some("t")))
                .unwrap_err()
                .contains("itself")
        );
        let mut check = ListingCheck::new("p/");
        assert!(check.take(&start, &page(&["p/b", "p/a"], None)).is_err());
        let mut check = ListingCheck::new("p/");
        assert!(check.take(&start, &page(&["q/a"], None)).is_err());
        let mut check = ListingCheck::new("p/");
        let mut turns = ["a", "b"].iter().cycle();
        let endless = (0..=MOST_EMPTY).map(|_| {
            let from = ListCursor::Token("c".into());
            check.take(&from, &page(&[], turns.next().copied()))
        });
        assert!(endless.last().unwrap().is_err());
    }
}
