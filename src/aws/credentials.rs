//! Credentials for every client of AWS: loaded once, kept, renewed before they expire, and loaded again when a service
//! refuses them.
//!
//! [`plan`] decides where they come from, by the variables and profiles; [`load`] fetches them, with [`program`] for
//! `credential_process`; this module keeps them. One load runs at a time, in a task of its own: a caller that gives up does
//! not end the program that a person is answering.

mod load;
mod plan;
mod program;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials as Keys;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::error::{Error, Kind, Result};

pub(super) use load::Loader;
pub(super) use plan::plan as credential_plan;

/// Credentials are renewed this long before they expire, or a quarter of their life before.
const RENEW_BEFORE: Duration = Duration::from_secs(300);
/// With less than this left they are not used any more: a request takes time to arrive.
const LEAST_LEFT: Duration = Duration::from_secs(2);
/// Pause after a load that failed, or returned credentials that were refused already.
#[cfg(not(test))]
const PAUSE: Duration = Duration::from_secs(5);
#[cfg(test)]
const PAUSE: Duration = Duration::from_millis(1500);
/// The longest load: a program's 60 s, then a chain of roles.
const LOAD_TIMEOUT: Duration = Duration::from_secs(90);

type Load = dyn Fn() -> BoxFuture<'static, Result<Keys>> + Send + Sync;
type RunningLoad = Shared<BoxFuture<'static, Result<Keys>>>;

/// Which of the credentials that were loaded one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Generation(u64);

/// A cache of credentials; clones share it.
#[derive(Clone)]
pub(crate) struct Credentials {
    shared: Arc<CredentialCache>,
}

struct CredentialCache {
    load: Box<Load>,
    cached: Mutex<Cached>,
}

#[derive(Default)]
struct Cached {
    held: Option<HeldKeys>,
    generation: Generation,
    failure: Option<(Error, Instant)>,
    running: Option<RunningLoad>,
}

/// Credentials in the cache.
struct HeldKeys {
    keys: Keys,
    loaded: Instant,
    /// Between loading and expiry, by the clock at loading; none for credentials that do not expire.
    life: Option<Duration>,
    /// They were refused: load before the next use.
    is_stale: bool,
    /// A load after a refusal returned the same ones.
    was_rechecked: bool,
}

/// What to do for a caller that wants credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Supply {
    /// Use what is held.
    Use,
    /// Use what is held, and load others meanwhile.
    UseAndRenew,
    /// Load, and wait for it.
    Load,
    /// Report the last failure again.
    Fail,
}

/// What is known when a caller wants credentials.
#[derive(Clone, Copy, Debug, Default)]
struct Supplies {
    is_held: bool,
    is_stale: bool,
    /// How long they have been held.
    age: Duration,
    /// How long they live in all; none when they do not expire.
    life: Option<Duration>,
    /// How long ago a load failed, if the last one did.
    failed_ago: Option<Duration>,
}

impl Supplies {
    fn decide(self) -> Supply {
        let rests = self.failed_ago.is_some_and(|ago| ago < PAUSE);
        let must_load = if rests { Supply::Fail } else { Supply::Load };
        if !self.is_held || self.is_stale {
            return must_load;
        }
        let Some(life) = self.life else {
            return Supply::Use;
        };
        let left = life.saturating_sub(self.age);
        // A wrong clock, or credentials that were served from a cache elsewhere, can bring some that seem to be expired. They
        // are used: the service knows better.
        if left < LEAST_LEFT && (self.age >= PAUSE || life >= PAUSE) {
            return must_load;
        }
        let renew = RENEW_BEFORE.min(life / 4);
        if left < renew && !rests {
            return Supply::UseAndRenew;
        }
        Supply::Use
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// How often a call may have its credentials refused: by old ones that many calls still use while others are loaded, by the
    /// loaded ones, and by those of a rotation meanwhile.
    pub(crate) const MAX_REFUSALS: u32 = 3;

    pub(super) fn new(
        load: impl Fn() -> BoxFuture<'static, Result<Keys>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            shared: Arc::new(CredentialCache {
                load: Box::new(load),
                cached: Mutex::default(),
            }),
        }
    }

    /// Keys that are known and never change, for tests and benches.
    pub(crate) fn fixed(key_id: &str, secret: &str) -> Self {
        let keys = Keys::new(key_id, secret, None, None, "fixed");
        Self::new(move || {
            let keys = keys.clone();
            async move { Ok(keys) }.boxed()
        })
    }

    /// Credentials to sign a request with now. Where they must be loaded, callers wait for the one load.
    ///
    /// # Errors
    /// `Denied` when there are none, `Unavailable` when there were some and the next load may bring others; at once for some
    /// seconds after a failed load.
    pub(crate) async fn current(&self) -> Result<Keys> {
        let load = {
            let mut cached = self.shared.cached.lock();
            match cached.supplies().decide() {
                Supply::Use => return cached.keys(),
                Supply::UseAndRenew => {
                    drop(self.begin_load(&mut cached));
                    return cached.keys();
                }
                Supply::Fail => {
                    let failure = cached.failure.as_ref().map(|(error, _)| error.clone());
                    return Err(failure.unwrap_or_else(none_held));
                }
                Supply::Load => self.begin_load(&mut cached),
            }
        };
        load.await
    }

    /// The credentials that the next request is signed with, as far as they are loaded.
    pub(crate) fn generation(&self) -> Generation {
        self.shared.cached.lock().generation
    }

    /// A service refused these credentials as expired or unknown. Whether to try again: others are held by now, or the next
    /// [`Credentials::current`] reads files and runs programs again. Not so when that was just done and brought the same.
    pub(crate) fn refused(&self, used: Generation) -> bool {
        let mut cached = self.shared.cached.lock();
        if cached.generation != used {
            return true;
        }
        let Some(held) = &mut cached.held else {
            return true;
        };
        if held.is_stale {
            return true;
        }
        if held.was_rechecked && held.loaded.elapsed() < PAUSE {
            return false;
        }
        debug!("the credentials were refused: loading them again");
        held.is_stale = true;
        true
    }

    /// Starts a load unless one runs.
    fn begin_load(&self, cached: &mut Cached) -> RunningLoad {
        if let Some(running) = &cached.running {
            return running.clone();
        }
        let shared = Arc::clone(&self.shared);
        let task = tokio::spawn(async move {
            let loaded = tokio::time::timeout(LOAD_TIMEOUT, (shared.load)()).await;
            let loaded = loaded.unwrap_or_else(|_| {
                let what = format!("no AWS credentials within {LOAD_TIMEOUT:?}");
                Err(Error::new(Kind::Unavailable, what))
            });
            shared.cached.lock().take(loaded)
        });
        let running = async move {
            let ended = |_| {
                Err(Error::new(
                    Kind::Denied,
                    "loading the credentials ended early",
                ))
            };
            task.await.unwrap_or_else(ended)
        };
        let running = running.boxed().shared();
        cached.running = Some(running.clone());
        running
    }
}

fn none_held() -> Error {
    Error::new(Kind::Denied, "no AWS credentials")
}

impl Cached {
    fn supplies(&self) -> Supplies {
        let failed_ago = self.failure.as_ref().map(|(_, at)| at.elapsed());
        let Some(held) = &self.held else {
            return Supplies {
                failed_ago,
                ..Supplies::default()
            };
        };
        Supplies {
            is_held: true,
            is_stale: held.is_stale,
            age: held.loaded.elapsed(),
            life: held.life,
            failed_ago,
        }
    }

    fn keys(&self) -> Result<Keys> {
        let held = self.held.as_ref();
        held.map(|held| held.keys.clone()).ok_or_else(none_held)
    }

    /// A failed load as its callers see it. In the middle of a run a program or a service that fails may do better the next
    /// time, and they try until their deadline; before there were any credentials it is a mistake of the set-up.
    fn of_caller(&self, error: Error) -> Error {
        match (error.kind(), self.held.is_some()) {
            (Kind::Unavailable, true) => error.context("cannot renew the AWS credentials"),
            (Kind::Unavailable, false) => error.with_kind(Kind::Denied),
            _ => error,
        }
    }

    /// Puts what a load brought into the cache.
    fn take(&mut self, loaded: Result<Keys>) -> Result<Keys> {
        self.running = None;
        let keys = match loaded {
            Ok(keys) => keys,
            Err(error) => {
                let is_waited_for = self.held.as_ref().is_none_or(|held| held.is_stale);
                if !is_waited_for {
                    warn!(
                        "the AWS credentials could not be renewed: {}",
                        error.chain()
                    );
                }
                let error = self.of_caller(error);
                self.failure = Some((error.clone(), Instant::now()));
                return Err(error);
            }
        };
        self.failure = None;
        let is_same = |held: &&HeldKeys| {
            let known = &held.keys;
            known.access_key_id() == keys.access_key_id()
                && known.secret_access_key() == keys.secret_access_key()
                && known.session_token() == keys.session_token()
        };
        let same = self.held.as_ref().filter(is_same);
        let was_rechecked = same.is_some_and(|held| held.is_stale || held.was_rechecked);
        if same.is_none() {
            self.generation = Generation(self.generation.0 + 1);
        }
        let life = keys.expiry().map(|expiry| {
            let left = expiry.duration_since(SystemTime::now());
            left.unwrap_or_default()
        });
        self.held = Some(HeldKeys {
            keys: keys.clone(),
            loaded: Instant::now(),
            life,
            is_stale: false,
            was_rechecked,
        });
        Ok(keys)
    }
}

impl ProvideCredentials for Credentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let keys = self.current().await;
            keys.map_err(CredentialsError::provider_error)
        })
    }
}

#[cfg(test)]
mod tests;
