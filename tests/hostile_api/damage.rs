//! What is done to a reply, and when.

use std::collections::HashMap;
use std::fmt;

use serde_json::{Value, json};

use crate::support::Emulator;

/// One kind of damage to a list reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The key `Blocks` or `ChangedBlocks` is missing.
    LoseList,
    EmptyBody,
    EmptyObject,
    /// Status 204 without a body.
    NoContent,
    /// The body of an error, with status 200.
    Error200,
    /// A good page with status 500.
    WrongStatus,
    /// The list is null, and the reply has no NextToken.
    NullList,
    /// Half of the body, then the end of the connection.
    CutBody,
    EndlessBody,
    /// NextToken is one that was there before.
    CyclingToken,
    /// All blocks, but no NextToken.
    LostToken,
    /// The reply before this one, once more.
    RepeatedPage,
    /// One block has no token.
    LostBlockToken,
    /// Two blocks have changed places.
    Disorder,
    /// DescribeSnapshots: an empty body with status 200.
    Ec2EmptyBody,
    /// DescribeSnapshots: half of the body.
    Ec2CutBody,
    /// DescribeSnapshots: a body that never ends.
    Ec2EndlessBody,
    /// DescribeSnapshots: RequestLimitExceeded.
    Ec2Throttle,
    /// DescribeSnapshots: the elements of the sizes are missing.
    Ec2NoSizes,
}

/// Kinds that any others may happen beside: each is seen in the reply itself or by one more request.
const PLAIN: [Damage; 18] = [
    Damage::LoseList,
    Damage::EmptyBody,
    Damage::EmptyObject,
    Damage::NoContent,
    Damage::Error200,
    Damage::WrongStatus,
    Damage::CutBody,
    Damage::EndlessBody,
    Damage::CyclingToken,
    Damage::LostToken,
    Damage::RepeatedPage,
    Damage::LostBlockToken,
    Damage::Disorder,
    Damage::Ec2EmptyBody,
    Damage::Ec2CutBody,
    Damage::Ec2EndlessBody,
    Damage::Ec2Throttle,
    Damage::Ec2NoSizes,
];

impl Damage {
    fn is_of_ec2(self) -> bool {
        matches!(
            self,
            Self::Ec2EmptyBody
                | Self::Ec2CutBody
                | Self::Ec2EndlessBody
                | Self::Ec2Throttle
                | Self::Ec2NoSizes
        )
    }
}

/// Which replies are damaged, and how.
pub struct Plan {
    seed: u64,
    kinds: Vec<Damage>,
    /// Of a thousand replies.
    probability: u64,
    /// Sets the emulator's switches back.
    after: Option<Box<dyn Fn() + Send>>,
    /// How often each reply was asked for.
    asked: HashMap<String, u64>,
    /// Page tokens and pages that were sent, by listing.
    tokens: HashMap<String, Vec<String>>,
    pages: HashMap<String, Value>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} in {} of 1000 replies",
            self.kinds, self.probability
        )
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        if let Some(after) = &self.after {
            after();
        }
    }
}

/// What becomes of a reply.
pub enum Fate {
    As,
    /// Another status and body.
    Replaced(u16, Vec<u8>),
    Cut,
    Endless,
}

impl Plan {
    fn new(seed: u64, kinds: Vec<Damage>, probability: u64) -> Self {
        Self {
            seed,
            kinds,
            probability,
            after: None,
            asked: HashMap::new(),
            tokens: HashMap::new(),
            pages: HashMap::new(),
        }
    }

    /// One to three kinds of damage in a twentieth to half of the replies.
    ///
    /// A null list is an empty page by the rules, so that only the counts of EC2 refute it: it comes alone.
    pub fn random(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let probability = [50, 100, 200, 500][random.usize(..4)];
        if random.u32(..16) == 0 {
            return Self::new(seed, vec![Damage::NullList], probability);
        }
        let kinds = (0..random.usize(1..=3)).map(|_| PLAIN[random.usize(..PLAIN.len())]);
        Self::new(seed, kinds.collect(), probability)
    }

    /// This kind of damage in every reply that it fits.
    pub fn always(kind: Damage) -> Self {
        Self::new(0, vec![kind], 1000)
    }

    /// No damage by the relay, but switches of the emulator.
    pub fn switches(emulator: &Emulator, set: &str, reset: &str) -> Self {
        emulator.set(set);
        let (emulator, reset) = (emulator.control(), reset.to_owned());
        let mut plan = Self::new(0, Vec::new(), 0);
        plan.after = Some(Box::new(move || emulator.set(&reset)));
        plan
    }

    /// What becomes of the reply to a request. `listing` names the listing, `query` the request in it.
    pub fn fate(&mut self, listing: &str, query: &str, ec2: bool, body: &[u8]) -> Fate {
        let page: Option<Value> = serde_json::from_slice(body).ok();
        let list = page.as_ref().and_then(list_of);
        if !ec2 && list.is_none() {
            // No page: a refusal, perhaps.
            return Fate::As;
        }
        // Tokens differ from run to run; where a page begins does not.
        let begins = list.and_then(|list| list.first()?.get("BlockIndex")?.as_u64());
        let starts = query
            .split('&')
            .find(|part| part.starts_with("startingBlockIndex"));
        let name = format!("{listing} {starts:?} {begins:?}");
        let times = self.asked.entry(name.clone()).or_default();
        *times += 1;
        let mut random = fastrand::Rng::with_seed(self.seed ^ hash(&format!("{name} {times}")));
        let strikes = random.u64(..1000) < self.probability;
        let kinds: Vec<Damage> = self
            .kinds
            .iter()
            .copied()
            .filter(|kind| kind.is_of_ec2() == ec2)
            .collect();
        let kind = (strikes && !kinds.is_empty()).then(|| kinds[random.usize(..kinds.len())]);
        if ec2 {
            return kind.map_or(Fate::As, |kind| ec2_fate(kind, body));
        }
        let page = page.unwrap_or_default();
        let before = self.pages.get(listing).cloned();
        if let Some(token) = page["NextToken"].as_str() {
            let tokens = self.tokens.entry(listing.to_owned()).or_default();
            tokens.push(token.to_owned());
            tokens.truncate(8);
        }
        let fate = kind.map_or(Fate::As, |kind| {
            self.list_fate(kind, listing, page.clone(), before, &mut random)
        });
        if begins.is_some() {
            self.pages.insert(listing.to_owned(), page);
        }
        fate
    }

    fn list_fate(
        &self,
        kind: Damage,
        listing: &str,
        mut page: Value,
        before: Option<Value>,
        random: &mut fastrand::Rng,
    ) -> Fate {
        let key = key_of(&page).unwrap_or("Blocks");
        let replaced = |page: &Value| Fate::Replaced(200, page.to_string().into_bytes());
        match kind {
            Damage::LoseList => {
                page.as_object_mut().unwrap().remove(key);
                replaced(&page)
            }
            Damage::EmptyBody => Fate::Replaced(200, Vec::new()),
            Damage::EmptyObject => replaced(&json!({})),
            Damage::NoContent => Fate::Replaced(204, Vec::new()),
            Damage::Error200 => replaced(&json!({"Message": "Internal server error"})),
            Damage::WrongStatus => Fate::Replaced(500, page.to_string().into_bytes()),
            Damage::NullList => {
                page[key] = Value::Null;
                page["NextToken"] = Value::Null;
                replaced(&page)
            }
            Damage::CutBody => Fate::Cut,
            Damage::EndlessBody => Fate::Endless,
            Damage::CyclingToken => {
                let tokens = self.tokens.get(listing).cloned().unwrap_or_default();
                let Some(token) = tokens.get(random.usize(..tokens.len().max(1))) else {
                    return Fate::As;
                };
                page["NextToken"] = token.as_str().into();
                replaced(&page)
            }
            Damage::LostToken => {
                page["NextToken"] = Value::Null;
                replaced(&page)
            }
            Damage::RepeatedPage => before.map_or(Fate::As, |before| replaced(&before)),
            Damage::LostBlockToken => {
                let list = page[key].as_array_mut().unwrap();
                if list.is_empty() {
                    return Fate::As;
                }
                let at = random.usize(..list.len());
                let index = list[at]["BlockIndex"].clone();
                list[at] = json!({ "BlockIndex": index });
                replaced(&page)
            }
            Damage::Disorder => {
                let list = page[key].as_array_mut().unwrap();
                if list.len() < 2 {
                    return Fate::As;
                }
                let at = random.usize(1..list.len());
                list.swap(at - 1, at);
                replaced(&page)
            }
            _ => Fate::As,
        }
    }
}

fn ec2_fate(kind: Damage, body: &[u8]) -> Fate {
    match kind {
        Damage::Ec2EmptyBody => Fate::Replaced(200, Vec::new()),
        Damage::Ec2CutBody => Fate::Cut,
        Damage::Ec2EndlessBody => Fate::Endless,
        Damage::Ec2Throttle => Fate::Replaced(
            503,
            b"<Response><Errors><Error><Code>RequestLimitExceeded</Code><Message>Request limit exceeded.</Message>\
              </Error></Errors><RequestID>1</RequestID></Response>"
                .to_vec(),
        ),
        Damage::Ec2NoSizes => {
            let mut text = String::from_utf8_lossy(body).into_owned();
            for name in ["fullSnapshotSizeInBytes", "volumeSize"] {
                let (open, close) = (format!("<{name}>"), format!("</{name}>"));
                while let (Some(from), Some(to)) = (text.find(&open), text.find(&close)) {
                    text.replace_range(from..to + close.len(), "");
                }
            }
            Fate::Replaced(200, text.into_bytes())
        }
        _ => Fate::As,
    }
}

fn key_of(page: &Value) -> Option<&'static str> {
    ["Blocks", "ChangedBlocks"]
        .into_iter()
        .find(|key| page.get(key).is_some())
}

fn list_of(page: &Value) -> Option<&Vec<Value>> {
    page.get(key_of(page)?)?.as_array()
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}
