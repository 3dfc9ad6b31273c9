//! One reply of a listing: its start, its blocks, and the faults that a switch adds.
//!
//! The common part of the list calls is here; [`super::direct`] knows which blocks they list.

use std::time::{Duration, SystemTime};

use super::direct::Query;
use super::record::millis;
use super::reply::{Refusal, Reply, json_text, object, reply, seconds, text_or_null};
use super::switches::{Switches, happens};
use super::tokens::TokenKind;
use super::{BLOCK, Emulator};

/// Seconds that block tokens lived in recorded replies: 6.4 to 7.35 days, each reply its own. Documented: 7 days.
const RECORDED_LIFE_S: std::ops::RangeInclusive<u64> = 552_960..=635_040;
/// The number of a page that only leads on to itself and back.
const CYCLING: u32 = u32::MAX;

/// A list call, as far as its pages depend on it.
#[derive(Debug)]
pub(super) struct ListRequest {
    /// What a page token is bound to.
    pub(super) scope: String,
    /// The name of the list in a reply.
    pub(super) key: &'static str,
    pub(super) token: TokenKind,
    pub(super) volume_gib: u32,
    /// How long the block tokens of the reply live.
    pub(super) life: Duration,
}

/// Where a page is asked to begin, and how much it may hold.
#[derive(Debug)]
pub(super) struct AskedPage {
    pub(super) start: u32,
    pub(super) max: usize,
    /// The first page of a listing is 1; a listing begins without a page token.
    pub(super) number: u32,
    /// Whether other blocks come before this page.
    pub(super) goes_on: bool,
}

/// The blocks of a page, and where the next one begins.
#[derive(Debug)]
pub(super) struct PageBlocks {
    pub(super) start: u32,
    pub(super) indexes: Vec<u32>,
    pub(super) next: Option<u32>,
}

/// A block of a page: its index and its tokens by name, null where it has none.
#[derive(Debug)]
pub(super) struct PageEntry {
    pub(super) index: u32,
    pub(super) tokens: Vec<(&'static str, Option<String>)>,
}

impl PageEntry {
    fn json(&self) -> String {
        let index = ("BlockIndex", self.index.to_string());
        let tokens = self.tokens.iter();
        let tokens = tokens.map(|(name, token)| (*name, text_or_null(token.as_deref())));
        let fields: Vec<(&str, String)> = std::iter::once(index).chain(tokens).collect();
        object(&fields)
    }
}

impl Emulator {
    /// The page that is asked for; the page token wins over the index.
    pub(super) fn asked_page(
        &self,
        query: &Query,
        call: &ListRequest,
        now: SystemTime,
        switches: &Switches,
    ) -> Result<AskedPage, Refusal> {
        let max = query.number("maxResults")?.unwrap_or(100);
        if max < 100 {
            let must = "have value greater than or equal to 100";
            return Err(Refusal::constraint("maxResults", max, must));
        }
        if max > 10_000 {
            let must = "have value less than or equal to 10000";
            return Err(Refusal::constraint("maxResults", max, must));
        }
        let start = query.number("startingBlockIndex")?.unwrap_or(0);
        if start < 0 {
            let must = "have value greater than or equal to 0";
            return Err(Refusal::constraint("startingBlockIndex", start, must));
        }
        let token = query.get("pageToken").filter(|token| !token.is_empty());
        let (start, number) = match token {
            None => (u32::try_from(start).unwrap_or(u32::MAX), 1),
            Some(token) => {
                let opened = self.sealer.open(
                    call.token,
                    &call.scope,
                    token,
                    now,
                    *self.tokens_from.lock(),
                );
                let payload = opened.map_err(|_| {
                    let message = format!("The pagination token {token} is invalid.");
                    Refusal::invalid("INVALID_PAGE_TOKEN", message)
                })?;
                let part = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
                (part(payload), part(payload >> 32))
            }
        };
        let max = usize::try_from(max).unwrap_or(100);
        Ok(AskedPage {
            start,
            max: match switches.page_blocks {
                0 => max,
                most => max.min(most),
            },
            number,
            goes_on: token.is_some() || start > 0,
        })
    }

    /// How long the block tokens of one reply live.
    pub(super) fn token_life(switches: &Switches) -> Duration {
        let life = switches.token_life_s;
        Duration::from_secs(life.unwrap_or_else(|| fastrand::u64(RECORDED_LIFE_S)))
    }

    /// The reply that carries these blocks, unless a switch says otherwise.
    pub(super) fn page_reply(
        &self,
        call: &ListRequest,
        asked: &AskedPage,
        mut entries: Vec<PageEntry>,
        next: Option<u32>,
        now: SystemTime,
        switches: &Switches,
    ) -> Reply {
        if let Some(reply) = hollow(switches) {
            return reply;
        }
        let cycles = happens(switches.cycle);
        if cycles {
            entries.clear();
        } else if happens(switches.null_token)
            && let Some(last) = entries.last_mut()
        {
            for (_, token) in &mut last.tokens {
                *token = None;
            }
        }
        let next = match next {
            _ if cycles => Some(self.cycling_token(call, asked, now, switches)),
            None => None,
            Some(_) if switches.lose_token_at == Some(asked.number) => None,
            Some(next) => {
                let payload = u64::from(next) | u64::from(asked.number + 1) << 32;
                let life = Duration::from_secs(switches.page_token_life_s);
                let token = self
                    .sealer
                    .seal(call.token, &call.scope, payload, now, life);
                Some(token)
            }
        };
        let changed = call.token == TokenKind::ChangedPage;
        let list: Vec<String> = entries.iter().map(PageEntry::json).collect();
        let list = match happens(switches.null_list) {
            true => "null".to_owned(),
            false => format!("[{}]", list.join(",")),
        };
        // The last page of a comparison is bare when it is empty; a switch makes others so.
        let bare =
            next.is_none() && (changed && entries.is_empty() || happens(switches.bare_last_page));
        let mut fields = Vec::new();
        if !bare {
            fields.push(("BlockSize", BLOCK.to_string()));
        }
        if !happens(switches.lose_list) {
            fields.push((call.key, list));
        }
        if !bare {
            let expiry = match (happens(switches.nulls), entries.is_empty()) {
                (true, _) => "null".to_owned(),
                // No token that could expire later.
                (false, true) => seconds(millis(now)),
                (false, false) => seconds(millis(now + call.life)),
            };
            fields.push(("ExpiryTime", expiry));
            if changed || happens(switches.nulls) {
                fields.push(("LastEvaluatedBlockIndex", "null".to_owned()));
            }
            fields.push(("NextToken", text_or_null(next.as_deref())));
            fields.push(("VolumeSize", call.volume_gib.to_string()));
        }
        json_text(200, &[], object(&fields))
    }

    /// One of two tokens, each of which leads to the other: both stay the same for as long as the emulator runs.
    fn cycling_token(
        &self,
        call: &ListRequest,
        asked: &AskedPage,
        now: SystemTime,
        switches: &Switches,
    ) -> String {
        let odd = if asked.number == CYCLING - 1 {
            CYCLING
        } else {
            CYCLING - 1
        };
        let mut tokens = self.cycling.lock();
        let token = tokens.entry((call.scope.clone(), odd)).or_insert_with(|| {
            let payload = u64::from(asked.start) | u64::from(odd) << 32;
            let life = Duration::from_secs(switches.page_token_life_s);
            self.sealer
                .seal(call.token, &call.scope, payload, now, life)
        });
        token.clone()
    }
}

/// A reply of status 2xx without a page.
fn hollow(switches: &Switches) -> Option<Reply> {
    if happens(switches.empty_body) {
        return Some(json_text(200, &[], String::new()));
    }
    if happens(switches.empty_object) {
        return Some(json_text(200, &[], "{}".to_owned()));
    }
    if happens(switches.no_content) {
        return Some(reply(204, "application/json", &[], bytes::Bytes::new()));
    }
    happens(switches.error_200).then(|| {
        let body = r#"{"Message":"Internal server error"}"#;
        json_text(200, &[], body.to_owned())
    })
}

impl PageBlocks {
    /// At most `asked.max` blocks of those that `list` gives, from where a switch lets the page begin.
    pub(super) fn collect(
        asked: &AskedPage,
        switches: &Switches,
        list: impl Fn(u32, usize) -> Vec<u32>,
    ) -> Self {
        let start = faulty_start(asked, switches, |max| {
            list(asked.start, max + 1).last().copied()
        });
        let mut indexes = list(start, asked.max + 1);
        let next = (indexes.len() > asked.max).then(|| indexes.pop()).flatten();
        let mut page = Self {
            start,
            indexes,
            next,
        };
        page.shorten(switches);
        page
    }

    /// Cuts the page to nothing, to one block or to half, if a switch is set.
    fn shorten(&mut self, switches: &Switches) {
        if happens(switches.empty_page) {
            self.next = Some(self.start);
            self.indexes.clear();
        } else if happens(switches.short_page)
            && let Some(second) = self.indexes.get(1)
        {
            self.next = Some(*second);
            self.indexes.truncate(1);
        }
        if happens(switches.lost_next) {
            self.next = None;
            // A page of one block keeps it: the fault is in the token, and all blocks can still be listed.
            self.indexes.truncate(self.indexes.len().div_ceil(2));
        }
    }
}

/// Where a page really begins when it is to be dropped or doubled. `after` gives the block after a number of blocks.
fn faulty_start(
    asked: &AskedPage,
    switches: &Switches,
    after: impl Fn(usize) -> Option<u32>,
) -> u32 {
    let dropped = switches.drop_at == Some(asked.start);
    if !asked.goes_on && !dropped {
        return asked.start;
    }
    if dropped || happens(switches.drop_page) {
        return after(asked.max).unwrap_or(asked.start);
    }
    if happens(switches.double_page) {
        let max = u32::try_from(asked.max).unwrap_or(0);
        return asked.start.saturating_sub(max);
    }
    asked.start
}
