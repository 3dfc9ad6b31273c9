//! The EBS direct APIs and EC2's snapshot calls over HTTP on loopback, kept in a folder of disk images.
//!
//! It behaves as AWS does, by AWS's documents, and shares no code with `ebs`: client and server written from one head
//! would agree and be wrong together. Tests, benchmarks and first experiments run on it.
//!
//! | file | subject |
//! | --- | --- |
//! | [`http`] | accepting, routing, latency and broken replies |
//! | [`call`] | what a request asks for |
//! | [`connections`] | idle connections, closed or frozen |
//! | [`guard`] | who may use the control endpoint |
//! | [`reply`] | replies as each of the two services writes them |
//! | [`names`] | header names as AWS spells them |
//! | [`mod@tls`] | HTTPS |
//! | [`auth`] | Signature Version 4, access keys |
//! | [`caller`] | who calls: users and sessions of roles |
//! | [`sessions`] | AssumeRole, temporary keys |
//! | [`policy`] | policies of users, roles, KMS keys and VPC endpoints |
//! | [`direct`] | the read calls of the EBS direct APIs |
//! | [`page`] | one reply of a listing, and its faults |
//! | [`mod@write`] | the calls of the EBS direct APIs that make a snapshot |
//! | [`ec2`] | the EC2 query API |
//! | [`tokens`] | block and page tokens |
//! | [`record`] | what is known of a snapshot besides its blocks |
//! | [`store`] | snapshots and volumes in the folder |
//! | [`view`] | which blocks a snapshot holds, and which differ |
//! | [`synthetic`] | volumes whose bytes are computed |
//! | [`switches`] | latency, limits, faults, and what else can be set at run time |
//! | [`control`] | the endpoint that sets them and reads the counters |

mod auth;
mod call;
mod caller;
mod connections;
mod control;
mod direct;
mod ec2;
mod guard;
mod http;
mod names;
mod page;
mod policy;
mod record;
mod reply;
mod sessions;
mod store;
mod switches;
mod synthetic;
mod tls;
mod tokens;
mod view;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tracing::warn;

use crate::error::{Error, Kind, Result};

use auth::AccessKey;
use connections::Connections;
use policy::AccessPolicies;
use sessions::RoleSessions;
use store::EmulatorStore;
use switches::{Buckets, Switches};
pub(crate) use synthetic::REPETITIVE;
use tokens::Sealer;

/// Bytes of a block.
const BLOCK: usize = 512 * 1024;
/// The Region that the emulator plays, if no switch names another, and its account.
pub(crate) const REGION: &str = "us-east-1";
pub(crate) const ACCOUNT: &str = "111122223333";
/// The profile to use with the `credentials` file in the emulator's folder.
pub(crate) const PROFILE: &str = "default";

/// How often an action was needed, by resource.
type ResourceCounts = BTreeMap<String, u64>;

/// An emulator over one folder.
#[derive(Debug)]
pub struct Emulator {
    folder: PathBuf,
    /// The key of the profile `default` comes first.
    access_keys: Mutex<Arc<Vec<AccessKey>>>,
    /// The policies in force. None: every user may do everything, and actions are not counted.
    policies: Mutex<Option<Arc<AccessPolicies>>>,
    /// Actions that calls needed, by user or role.
    actions: Mutex<BTreeMap<String, BTreeMap<String, ResourceCounts>>>,
    store: Mutex<EmulatorStore>,
    switches: Mutex<Switches>,
    buckets: Mutex<Buckets>,
    counters: Mutex<BTreeMap<String, u64>>,
    /// Requests being answered now.
    at_once: AtomicU64,
    connections: Connections,
    /// When each session token was seen first.
    sessions: Mutex<HashMap<String, SystemTime>>,
    /// The temporary keys of roles.
    role_sessions: Mutex<RoleSessions>,
    /// Whether `/_emulator/blocks/` serves without a signature.
    unsigned_blocks: AtomicBool,
    sealer: Sealer,
    /// Page tokens that lead to each other, by listing and number.
    cycling: Mutex<BTreeMap<(String, u32), String>>,
    /// Tokens made before this are expired.
    tokens_from: Mutex<SystemTime>,
    /// How far its clock is ahead of the machine's.
    ahead: Mutex<Duration>,
}

/// The certificate for HTTPS.
pub struct Tls {
    acceptor: TlsAcceptor,
    authority: PathBuf,
}

impl Tls {
    /// The file with the authority that clients must trust.
    pub(crate) fn authority(&self) -> &Path {
        &self.authority
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tls({})", self.authority.display())
    }
}

impl Emulator {
    /// Opens the folder, making it when it is not there, with its volumes, snapshots and credentials.
    ///
    /// # Errors
    /// `Io` when the folder cannot be used, `Invalid` when a setting is none.
    pub fn open(folder: &Path, settings: &[String]) -> Result<Arc<Self>> {
        let failed = |error| {
            Error::with_source(
                Kind::Io,
                format!("emulator folder {}", folder.display()),
                error,
            )
        };
        for inside in ["volumes", "snapshots"] {
            std::fs::create_dir_all(folder.join(inside)).map_err(failed)?;
        }
        let access_keys = auth::credentials(folder).map_err(failed)?;
        let mut switches = Switches::default();
        for setting in settings {
            let (name, value) = setting.split_once('=').unwrap_or((setting, "1"));
            switches
                .set(name, value)
                .map_err(|what| Error::new(Kind::Invalid, what))?;
        }
        let store = EmulatorStore::load(folder).map_err(failed)?;
        for name in store.misnamed().map_err(failed)? {
            warn!(
                "volumes/{name} is no volume: its name must be vol- and hexadecimal digits, as in vol-0a.raw"
            );
        }
        Ok(Arc::new(Self {
            folder: folder.to_owned(),
            access_keys: Mutex::new(Arc::new(access_keys)),
            policies: Mutex::default(),
            actions: Mutex::default(),
            store: Mutex::new(store),
            switches: Mutex::new(switches),
            buckets: Mutex::default(),
            counters: Mutex::default(),
            at_once: AtomicU64::new(0),
            connections: Connections::default(),
            sessions: Mutex::default(),
            role_sessions: Mutex::default(),
            unsigned_blocks: AtomicBool::new(false),
            sealer: Sealer::new(),
            cycling: Mutex::default(),
            tokens_from: Mutex::new(SystemTime::UNIX_EPOCH),
            ahead: Mutex::new(Duration::ZERO),
        }))
    }

    /// Lets any program of this machine read blocks at `/_emulator/blocks/`, without a signature: for benchmarks.
    pub(crate) fn serve_unsigned_blocks(&self) {
        self.unsigned_blocks.store(true, Ordering::Relaxed);
    }

    /// The Region that it plays.
    pub(crate) fn region(&self) -> String {
        self.switches().region
    }

    /// Where the credentials file is: for AWS_SHARED_CREDENTIALS_FILE.
    pub fn credentials_file(&self) -> PathBuf {
        self.folder.join("credentials")
    }

    /// The access key of the profile [`PROFILE`] and its secret.
    pub(crate) fn keys(&self) -> (String, String) {
        let keys = self.access_keys();
        let first = keys.first().map(|key| (key.id.clone(), key.secret.clone()));
        first.unwrap_or_default()
    }

    /// Puts the policies of a file in force: docs/emulator.md describes it.
    ///
    /// # Errors
    /// `Io` when it cannot be read, `Invalid` when something in it is not known.
    pub(crate) fn load_policies(&self, file: &Path) -> Result<()> {
        let text =
            std::fs::read(file).map_err(|error| Error::of_file(file, "cannot read", error))?;
        self.set_policies(&text).map_err(|why| {
            let what = format!("cannot use the policies of {}: {why}", file.display());
            Error::new(Kind::Invalid, what)
        })
    }

    fn access_keys(&self) -> Arc<Vec<AccessKey>> {
        Arc::clone(&self.access_keys.lock())
    }

    /// CreateSnapshot without a request: takes a volume as it stands, and returns the id of the snapshot.
    ///
    /// # Errors
    /// `Io` with what CreateSnapshot would answer.
    pub(crate) fn make_snapshot(&self, volume: &str, description: &str) -> Result<String> {
        let made = self.create_snapshot(volume, description, BTreeMap::new());
        made.map(|record| record.id).map_err(|refusal| {
            let what = format!("cannot make a snapshot of {volume}: {}", refusal.message);
            Error::new(Kind::Io, what)
        })
    }

    /// Adds a snapshot whose bytes are computed, `gib` large, of whose blocks `density` in a million are held.
    ///
    /// # Errors
    /// `Invalid` when the id is none or is taken, or the size is out of bounds.
    pub fn add_synthetic(&self, id: &str, gib: u32, density: u32, seed: u64) -> Result<()> {
        self.store
            .lock()
            .add_synthetic(id, gib, density, seed, self.now())
            .map_err(|what| Error::new(Kind::Invalid, what))
    }

    /// Adds a snapshot of the volume of a computed one, in which `changed` blocks in a million are other ones.
    ///
    /// # Errors
    /// `Invalid` when the id is none or is taken, or the parent is no computed snapshot.
    pub(crate) fn add_synthetic_child(&self, id: &str, parent: &str, changed: u32) -> Result<()> {
        self.store
            .lock()
            .add_synthetic_child(id, parent, changed, self.now())
            .map_err(|what| Error::new(Kind::Invalid, what))
    }

    /// Serves until the listener fails.
    ///
    /// # Errors
    /// `Io` when it fails.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: Option<Tls>) -> Result<()> {
        http::accept(self, listener, tls.map(|tls| tls.acceptor))
            .await
            .map_err(|error| Error::with_source(Kind::Io, "emulator's listener", error))
    }

    /// What it takes to serve HTTPS, with a certificate made now.
    ///
    /// # Errors
    /// `Io` when the authority to trust cannot be written to the folder.
    pub(crate) fn tls(folder: &Path) -> Result<Tls> {
        let (acceptor, authority) = tls::acceptor(folder)?;
        Ok(Tls {
            acceptor,
            authority,
        })
    }

    /// A listener for [`Self::serve`]. Only on loopback: its keys lie in a file.
    ///
    /// # Errors
    /// `Invalid` for any other address, `Io` when the address cannot be bound.
    pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
        if !address.ip().is_loopback() {
            return Err(Error::new(
                Kind::Invalid,
                format!("the emulator listens on loopback only, not on {address}"),
            ));
        }
        TcpListener::bind(address).await.map_err(|error| {
            Error::with_source(Kind::Io, format!("cannot listen on {address}"), error)
        })
    }

    fn now(&self) -> SystemTime {
        SystemTime::now() + *self.ahead.lock()
    }

    fn switches(&self) -> Switches {
        self.switches.lock().clone()
    }

    fn count(&self, what: &str) {
        *self.counters.lock().entry(what.to_owned()).or_default() += 1;
    }

    /// Counts a request as being answered until the guard is dropped, and remembers how many there were at most.
    fn under_way(self: &Arc<Self>) -> UnderWay {
        let now = self.at_once.fetch_add(1, Ordering::Relaxed) + 1;
        let mut counters = self.counters.lock();
        let most = counters.entry("most_at_once".to_owned()).or_default();
        *most = now.max(*most);
        UnderWay(Arc::clone(self))
    }
}

#[derive(Debug)]
struct UnderWay(Arc<Emulator>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, Ordering::Relaxed);
    }
}
