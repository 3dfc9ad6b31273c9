//! The way to one origin: name, connection, proxy, TLS, an answer, a request that fills packets, the clock of the other side.

mod cloud;
mod decide;
mod request;

use std::time::{Duration, SystemTime};

use hyper::Uri;

use super::resolver::ResolverFacts;
use super::row::{CheckKind, RowBoard, RowId};
use crate::aws::{ConnectionTrace, Http, Service, TraceStep};
use crate::repository::StoreOrigin;

use cloud::OriginCloud;
use decide::{ConnectionFacts, NameFacts, TlsFacts};
use request::ask;

/// Bytes of the request that fills packets: several of 1,500 bytes, and of 9,001 within a VPC almost one.
const LARGE: usize = 8 << 10;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(4);

/// Services at one origin, or a store that is none of AWS.
#[derive(Clone, Debug)]
pub(super) struct ServiceOrigin {
    /// Scheme, host and port.
    pub(super) url: Uri,
    /// The services; none where it is a store.
    pub(super) services: Vec<Service>,
    /// The store's address, where it is one.
    store: Option<String>,
    cloud: OriginCloud,
    /// Whether the verb fails without it.
    pub(super) is_needed: bool,
    /// Where the URL was given; none for AWS's own.
    pub(super) from: Option<String>,
}

/// How a check of an origin ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum OriginReach {
    /// Something answered.
    Answered,
    /// This row failed.
    Broken(RowId),
}

/// The rows of an origin, in their order; those that it does not need are none.
struct OriginRows {
    name: Option<RowId>,
    connection: RowId,
    proxy: Option<RowId>,
    tls: Option<RowId>,
    answer: RowId,
    packets: RowId,
    clock: RowId,
}

impl ServiceOrigin {
    /// The origin of a service of AWS.
    pub(super) fn of_service(
        url: Uri,
        service: Service,
        is_needed: bool,
        from: Option<String>,
    ) -> Self {
        Self {
            url,
            services: vec![service],
            store: None,
            cloud: OriginCloud::Aws,
            is_needed,
            from,
        }
    }

    /// The origin of a store in another cloud.
    pub(super) fn of_store(address: String, origin: StoreOrigin) -> Self {
        Self {
            url: origin.url,
            services: Vec::new(),
            store: Some(address),
            cloud: origin.cloud.into(),
            is_needed: true,
            from: origin.from.map(str::to_owned),
        }
    }

    /// Host and port.
    pub(super) fn host_port(&self) -> String {
        let is_tls = self.url.scheme_str() == Some("https");
        let port = self.url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        format!("{}:{port}", self.url.host().unwrap_or_default())
    }

    /// Host, port and what is there.
    fn label(&self) -> String {
        let services = self.services.iter().map(|service| service.label());
        let all: Vec<&str> = self.store.as_deref().into_iter().chain(services).collect();
        format!("{} ({})", self.host_port(), all.join(", "))
    }

    /// The variable that gives its first service, or its store, another URL.
    fn variable(&self) -> String {
        let first = self.services.first();
        match self.cloud {
            OriginCloud::Azure => "AZURE_STORAGE_ENDPOINT".to_owned(),
            OriginCloud::Google => "GOOGLE_BASE_URL".to_owned(),
            OriginCloud::Aws => first.map_or_else(
                || "AWS_ENDPOINT_URL".to_owned(),
                |first| first.url_variable(),
            ),
        }
    }
}

impl OriginRows {
    fn plan(board: &RowBoard, origin: &ServiceOrigin, trace: &PlannedConnection) -> Self {
        let label = origin.label();
        let near = trace.proxy.as_ref().map_or_else(
            || label.clone(),
            |proxy| format!("{proxy} (proxy of {})", origin.host_port()),
        );
        Self {
            name: trace
                .has_name
                .then(|| board.plan(CheckKind::Name, near.clone())),
            connection: board.plan(CheckKind::Connection, near),
            proxy: (trace.proxy.is_some() && trace.is_tls)
                .then(|| board.plan(CheckKind::Proxy, label.clone())),
            tls: trace
                .is_tls
                .then(|| board.plan(CheckKind::Tls, label.clone())),
            answer: board.plan(CheckKind::Answer, label.clone()),
            packets: board.plan(CheckKind::Packets, label.clone()),
            clock: board.plan(CheckKind::Clock, label),
        }
    }

    /// The rows behind one of them.
    fn after(&self, row: RowId) -> Vec<RowId> {
        let rows = [
            self.name,
            Some(self.connection),
            self.proxy,
            self.tls,
            Some(self.answer),
            Some(self.packets),
            Some(self.clock),
        ];
        let rows = rows.into_iter().flatten();
        rows.skip_while(|found| *found != row).skip(1).collect()
    }
}

/// What is known of a connection before it is tried.
struct PlannedConnection {
    proxy: Option<String>,
    has_name: bool,
    is_tls: bool,
}

impl PlannedConnection {
    fn of(http: &Http, origin: &ServiceOrigin) -> Self {
        let proxy = http.proxy_of(&origin.url);
        let host = match &proxy {
            Some(proxy) => proxy
                .rsplit_once(':')
                .map_or(proxy.as_str(), |found| found.0),
            None => origin.url.host().unwrap_or_default(),
        };
        let bare = host.trim_matches(['[', ']']);
        Self {
            has_name: bare.parse::<std::net::IpAddr>().is_err(),
            is_tls: origin.url.scheme_str() == Some("https"),
            proxy,
        }
    }
}

/// Checks the way to an origin.
pub(super) async fn check(board: &RowBoard, http: &Http, origin: &ServiceOrigin) -> OriginReach {
    let planned = PlannedConnection::of(http, origin);
    let rows = OriginRows::plan(board, origin, &planned);
    let trace = http.trace(&origin.url).await;
    if let Some(broken) = steps(board, &rows, origin, &trace) {
        board.skip(&rows.after(broken), broken);
        return OriginReach::Broken(broken);
    }
    board.start(rows.answer);
    let small = ask(http, &origin.url, 0, ANSWER).await;
    let finding = decide::answer(&small, planned.proxy.as_deref());
    board.fill(rows.answer, finding.unless_needed(origin.is_needed));
    let Ok(answer) = small else {
        board.skip(&rows.after(rows.answer), rows.answer);
        return OriginReach::Broken(rows.answer);
    };
    let skew = answer.date.map(|date| skew(date, answer.at));
    board.fill_after(rows.clock, decide::clock(skew, origin.cloud), answer.took);
    board.start(rows.packets);
    let large = ask(http, &origin.url, LARGE, ANSWER).await;
    let finding = decide::packets(&large, LARGE);
    board.fill(rows.packets, finding.unless_needed(origin.is_needed));
    OriginReach::Answered
}

/// The rows of a connection; the first one that failed.
fn steps(
    board: &RowBoard,
    rows: &OriginRows,
    origin: &ServiceOrigin,
    trace: &ConnectionTrace,
) -> Option<RowId> {
    let variable = origin.variable();
    let from = origin.from.as_deref();
    let is_needed = origin.is_needed;
    let host = trace.place.rsplit_once(':').map_or("", |found| found.0);
    if let Some(row) = rows.name {
        let facts = NameFacts {
            host,
            cloud: origin.cloud,
            resolver: &ResolverFacts::observe(),
            from,
        };
        let (finding, took) = decide::name(&facts, &trace.resolved)?;
        board.fill_after(row, finding.unless_needed(is_needed), took);
        if matches!(trace.resolved, TraceStep::Failed(..)) {
            return Some(row);
        }
    }
    let addresses = match &trace.resolved {
        TraceStep::Done(addresses, _) => addresses.as_slice(),
        _ => &[],
    };
    let facts = ConnectionFacts {
        host_port: &trace.place,
        cloud: origin.cloud,
        addresses,
        is_proxy: trace.proxy.is_some(),
        from,
        variable: &variable,
    };
    let row = rows.connection;
    let (finding, took) = decide::connection(&facts, &trace.connected)?;
    board.fill_after(row, finding.unless_needed(is_needed), took);
    if matches!(trace.connected, TraceStep::Failed(..)) {
        return Some(row);
    }
    if let (Some(row), Some(proxy)) = (rows.proxy, &trace.proxy) {
        let (finding, took) = decide::proxy(proxy, &origin.host_port(), &trace.tunnel)?;
        board.fill_after(row, finding.unless_needed(is_needed), took);
        if matches!(trace.tunnel, TraceStep::Failed(..)) {
            return Some(row);
        }
    }
    let row = rows.tls?;
    let facts = TlsFacts {
        host: origin.url.host().unwrap_or_default(),
        host_port: &origin.host_port(),
        variable: &variable,
        chain: &trace.chain,
        now: SystemTime::now(),
    };
    let (finding, took) = decide::tls(&facts, &trace.tls)?;
    board.fill_after(row, finding.unless_needed(is_needed), took);
    matches!(trace.tls, TraceStep::Failed(..)).then_some(row)
}

/// Milliseconds by which the other side's clock is ahead.
fn skew(theirs: SystemTime, ours: SystemTime) -> i64 {
    let millis = |off: Duration| i64::try_from(off.as_millis()).unwrap_or(i64::MAX);
    match theirs.duration_since(ours) {
        Ok(ahead) => millis(ahead),
        Err(behind) => -millis(behind.duration()),
    }
}
