//! One account: its configuration, the way to each of its services, credentials, the caller, permissions, the rate.

use std::time::{Duration, SystemTime};

use futures_util::future::{join, join_all, join4};
use hyper::Uri;
use tokio::time::{Instant, timeout};

use super::job::{DoctorAccount, DoctorClients};
use super::making::{self, CreateRows};
use super::network::{self, OriginReach, ServiceOrigin};
use super::permission::{self, ReadRows};
use super::quota::{self, QuotaRow};
use super::refusal;
use super::row::{CheckKind, RowBoard, RowFinding, RowId};
use crate::aws::{Aws, CredentialOrigin, Given, IamAction, Service};
use crate::error::{Error, Result};
use crate::time::{in_words, rfc3339_seconds};

/// How long credentials may take: a program can ask a person.
const CREDENTIALS: Duration = Duration::from_secs(12);
/// Ends of the names of AWS's hosts, of all partitions (`partitions.json` of the AWS SDKs).
const AWS_HOSTS: &[&str] = &[
    ".amazonaws.com",
    ".amazonaws.com.cn",
    ".amazonaws.eu",
    ".api.aws",
    ".api.amazonwebservices.com.cn",
    ".c2s.ic.gov",
    ".sc2s.sgov.gov",
    ".cloud.adc-e.uk",
    ".csp.hci.ic.gov",
];

/// The rows of an account beside those of its services.
struct AccountRows {
    configuration: RowId,
    credentials: RowId,
    identity: Option<RowId>,
    reads: Option<ReadRows>,
    makes: Option<CreateRows>,
    quota: Option<QuotaRow>,
}

impl AccountRows {
    fn plan(board: &RowBoard, account: &DoctorAccount) -> Self {
        let role = account.role.as_str();
        let has = |wanted| account.services.iter().any(|used| used.service == wanted);
        Self {
            configuration: board.plan(CheckKind::Configuration, role),
            credentials: board.plan(CheckKind::Credentials, role),
            identity: has(Service::Sts).then(|| board.plan(CheckKind::Identity, role)),
            reads: account
                .reads
                .as_ref()
                .map(|reads| ReadRows::plan(board, role, reads)),
            makes: account.makes.then(|| CreateRows::plan(board, role)),
            quota: QuotaRow::plan(board, role, account.reads.is_some(), account.is_written),
        }
    }

    /// The rows that need credentials.
    fn signed(&self) -> Vec<RowId> {
        let reads = self.reads.iter().flat_map(ReadRows::all);
        let makes = self.makes.iter().flat_map(CreateRows::all);
        self.identity
            .into_iter()
            .chain(reads)
            .chain(makes)
            .chain(self.quota.iter().map(|row| row.id))
            .collect()
    }
}

/// Checks an account.
pub(super) async fn check(
    board: &RowBoard,
    account: &DoctorAccount,
    clients: &dyn DoctorClients,
    until: Instant,
) {
    let rows = AccountRows::plan(board, account);
    let not_tried = |actions: &[IamAction], why| {
        permission::not_tried(board, &account.role, actions, why);
    };
    if account.reads.is_some() {
        not_tried(
            &permission::OF_DELTAS,
            "two snapshots of one volume are needed",
        );
    }
    if account.makes {
        not_tried(&permission::OF_CYCLES, "they need a snapshot of the job");
    }
    if account.is_written {
        not_tried(&permission::OF_NEW_SNAPSHOTS, "each needs a new snapshot");
    }
    let needs_region = !account
        .services
        .iter()
        .all(|used| used.service == Service::S3);
    let loaded = account.settings.clone().load().await;
    let loaded = match (loaded, needs_region) {
        (Ok(aws), true) => aws.with_region(),
        (loaded, _) => loaded,
    };
    let aws = match loaded {
        Ok(aws) => aws,
        Err(error) => {
            board.fill(rows.configuration, RowFinding::of_error(&error));
            let mut rest = rows.signed();
            rest.push(rows.credentials);
            board.skip(&rest, rows.configuration);
            return;
        }
    };
    let finding = configuration(aws.region_given(), aws.profile_given());
    board.fill(rows.configuration, finding);
    let mut origins = origins(board, account, &aws, clients).await;
    let from = aws.credential_origin().await;
    let needs_sts = from.as_ref().is_ok_and(|from| from.needs_sts);
    for origin in &mut origins {
        origin.is_needed |= needs_sts && origin.services.contains(&Service::Sts);
    }
    let checks = origins
        .iter()
        .map(|origin| network::check(board, aws.http(), origin));
    let (reached, keys) = join(join_all(checks), credentials(board, &rows, &aws, from)).await;
    if !keys {
        board.skip(&rows.signed(), rows.credentials);
        return;
    }
    let reach = |service: Service| {
        let mut reached = origins.iter().zip(&reached);
        let found = reached.find(|(origin, _)| origin.services.contains(&service));
        found.map(|(_, reach)| *reach)
    };
    let caller = async {
        let Some(row) = rows.identity else {
            return;
        };
        match reach(Service::Sts) {
            Some(OriginReach::Broken(because)) => board.skip(&[row], because),
            _ => {
                board.start(row);
                let asked = aws.caller().await;
                let found = asked.map(|caller| (caller.arn, caller.account));
                board.fill(row, identity(found));
            }
        }
    };
    let reading = async {
        if let (Some(rows), Some(reads)) = (&rows.reads, &account.reads) {
            let reach = permission::ServiceReach {
                ec2: reach(Service::Ec2),
                ebs: reach(Service::Ebs),
            };
            permission::check(board, rows, reads, &aws, clients, reach, until).await;
        }
    };
    let making = async {
        if let Some(rows) = &rows.makes {
            let ec2 = reach(Service::Ec2);
            making::check(board, rows, &aws, clients, ec2, until).await;
        }
    };
    let asking = async {
        let Some(row) = &rows.quota else {
            return;
        };
        if let Some(OriginReach::Broken(because)) = reach(Service::Ebs) {
            return board.skip(&[row.id], because);
        }
        let mut all = origins.iter();
        let ebs = all.find(|origin| origin.services.contains(&Service::Ebs));
        let Some(host) = ebs.and_then(|origin| origin.url.host()) else {
            let none = RowFinding::unknown("not asked: EBS has no URL here");
            return board.fill(row.id, none);
        };
        let is_given = !matches!(aws.url_given(Service::Quotas), Ok(None));
        let foreign = (!is_given && !is_of_aws(host)).then_some(host);
        quota::check(board, row, &aws, foreign, until).await;
    };
    join4(caller, reading, making, asking).await;
}

/// Loads credentials; whether there are some.
async fn credentials(
    board: &RowBoard,
    rows: &AccountRows,
    aws: &Aws,
    from: Result<CredentialOrigin>,
) -> bool {
    let row = rows.credentials;
    let origin = match from {
        Ok(origin) => origin,
        Err(error) => {
            board.fill(row, RowFinding::of_error(&error));
            return false;
        }
    };
    let loaded = timeout(CREDENTIALS, aws.credential_expiry()).await;
    let Ok(loaded) = loaded else {
        let seen = format!("{}: no result in {}", origin.text, in_words(CREDENTIALS));
        let fix =
            "run the credential program by hand; check the way to STS or to the metadata service";
        board.fill(row, RowFinding::failed(seen, fix));
        return false;
    };
    let finding = keys(&origin.text, &loaded, SystemTime::now());
    board.fill(row, finding);
    loaded.is_ok()
}

/// The services of an account by their origins; a row for the URL of each.
async fn origins(
    board: &RowBoard,
    account: &DoctorAccount,
    aws: &Aws,
    clients: &dyn DoctorClients,
) -> Vec<ServiceOrigin> {
    let mut origins: Vec<ServiceOrigin> = Vec::new();
    for used in &account.services {
        let service = used.service;
        let row = board.plan(
            CheckKind::Endpoint,
            format!("{} of {}", service.label(), account.role),
        );
        let given = aws.url_given(service);
        let url = match clients.url(aws, service).await {
            Ok(Some(url)) => url,
            Ok(None) => {
                board.fill(row, RowFinding::unknown("this build has no client of it"));
                continue;
            }
            Err(error) => {
                board.fill(row, RowFinding::of_error(&error));
                continue;
            }
        };
        let given = given.ok().flatten();
        let other = match service {
            Service::S3 => Service::Ebs,
            _ => Service::S3,
        };
        let other = aws.url_given(other).ok().flatten();
        let is_shared = other.is_some_and(|other| Some(&other) == given.as_ref());
        let Ok(parsed) = url.parse::<Uri>() else {
            board.fill(row, RowFinding::of_error(&no_uri(&url)));
            continue;
        };
        let from = given.map(|given| given.from);
        let host = parsed.host().unwrap_or_default();
        board.fill(
            row,
            endpoint(service, &url, host, from.as_deref(), is_shared),
        );
        let same = |origin: &&mut ServiceOrigin| {
            origin.url.scheme() == parsed.scheme() && origin.url.authority() == parsed.authority()
        };
        match origins.iter_mut().find(same) {
            Some(origin) => {
                origin.services.push(service);
                origin.is_needed |= used.is_needed;
            }
            None => origins.push(ServiceOrigin::of_service(
                parsed,
                service,
                used.is_needed,
                from,
            )),
        }
    }
    origins
}

fn no_uri(url: &str) -> Error {
    Error::new(
        crate::error::Kind::Invalid,
        format!("cannot use the URL {url:?}"),
    )
}

/// The row of a configuration.
fn configuration(region: Option<&Given<String>>, profile: Option<&Given<String>>) -> RowFinding {
    let region = region.map_or_else(
        || "no Region".to_owned(),
        |given| format!("Region {} (by {})", given.value, given.from),
    );
    let profile = profile.map_or_else(
        || "the profile default, if there is one".to_owned(),
        |given| format!("profile {} (by {})", given.value, given.from),
    );
    RowFinding::good(format!("{region}, {profile}"))
}

/// Whether a host is one of AWS.
fn is_of_aws(host: &str) -> bool {
    let lower = host.to_ascii_lowercase();
    AWS_HOSTS.iter().any(|end| lower.ends_with(end))
}

/// The row of a URL. `is_shared`: what gives it gives stores the same one.
fn endpoint(
    service: Service,
    url: &str,
    host: &str,
    from: Option<&str>,
    is_shared: bool,
) -> RowFinding {
    let Some(from) = from else {
        return RowFinding::good(format!("{url}, AWS's own"));
    };
    let seen = format!("{url} by {from}");
    let bare = host.trim_matches(['[', ']']);
    let is_here = host.eq_ignore_ascii_case("localhost")
        || bare
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if service == Service::S3 || !is_shared || is_of_aws(host) || is_here {
        return RowFinding::good(seen);
    }
    let seen = format!("{seen}, which holds for every service: {host} is no host of AWS");
    let fix = format!(
        "if it is meant for a store, AWS_ENDPOINT_URL_S3={url} instead of {from}; if {} is there: {}={url}",
        service.label(),
        service.url_variable()
    );
    RowFinding::warning(seen, fix)
}

/// The row of credentials.
fn keys(origin: &str, loaded: &Result<Option<SystemTime>>, now: SystemTime) -> RowFinding {
    match loaded {
        Err(error) => RowFinding::of_error(error),
        Ok(None) => RowFinding::good(origin),
        Ok(Some(expiry)) if *expiry <= now => RowFinding::failed(
            format!("{origin}: expired at {}", rfc3339_seconds(*expiry)),
            "renew them; timedatectl set-ntp true if date -u is wrong",
        ),
        Ok(Some(expiry)) => {
            RowFinding::good(format!("{origin}, until {}", rfc3339_seconds(*expiry)))
        }
    }
}

/// The row of the caller: ARN and account. The verb can do without STS, but not with keys that STS refuses.
fn identity(found: Result<(String, Option<String>)>) -> RowFinding {
    match found {
        Ok((arn, _)) => RowFinding::good(arn),
        Err(error) => {
            let text = error.chain();
            let is_refused = refusal::is_of_credentials(&text);
            let fix = match is_refused || text.contains("not authorized") {
                true => refusal::advice(&text, IamAction::GetCallerIdentity.name()),
                false => "the verb does without it; it only names the caller".to_owned(),
            };
            RowFinding::failed(text, fix).unless_needed(is_refused)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::row::RowState;
    use crate::error::Kind;

    #[test]
    fn a_url_for_a_store_that_redirects_ebs_warns() {
        let minio = "https://minio.corp:9000";
        let vpce = "https://vpce-0a.ebs.eu-west-1.vpce.amazonaws.com";
        for (service, url, host, from, is_shared, state) in [
            (
                Service::Ebs,
                minio,
                "minio.corp",
                Some("AWS_ENDPOINT_URL"),
                true,
                RowState::Warning,
            ),
            (
                Service::Ec2,
                minio,
                "minio.corp",
                Some("AWS_ENDPOINT_URL"),
                true,
                RowState::Warning,
            ),
            (
                Service::S3,
                minio,
                "minio.corp",
                Some("AWS_ENDPOINT_URL"),
                true,
                RowState::Good,
            ),
            (
                Service::Ebs,
                minio,
                "minio.corp",
                Some("AWS_ENDPOINT_URL_EBS"),
                false,
                RowState::Good,
            ),
            (
                Service::Ebs,
                vpce,
                "vpce-0a.ebs.eu-west-1.vpce.amazonaws.com",
                Some("AWS_ENDPOINT_URL"),
                true,
                RowState::Good,
            ),
            (
                Service::Ebs,
                "http://127.0.0.1:1",
                "127.0.0.1",
                Some("AWS_ENDPOINT_URL"),
                true,
                RowState::Good,
            ),
            (
                Service::Ebs,
                "http://[::1]:1",
                "[::1]",
                Some("AWS_ENDPOINT_URL"),
                true,
                RowState::Good,
            ),
            (
                Service::Ebs,
                "https://ebs.eu-west-1.amazonaws.com",
                "ebs.eu-west-1.amazonaws.com",
                None,
                false,
                RowState::Good,
            ),
        ] {
            let found = endpoint(service, url, host, from, is_shared);
            assert_eq!(found.state, state, "{url}: {found:?}");
        }
    }

    #[test]
    fn credentials_say_where_they_come_from_and_until_when() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let later = Some(now + Duration::from_secs(60));
        let none = Error::new(Kind::Denied, "no AWS credentials (x)");
        for (loaded, state, words) in [
            (Ok(None), RowState::Good, "keys of the profile a"),
            (Ok(later), RowState::Good, "until 2027-01-15T08:01:00Z"),
            (Ok(Some(now)), RowState::Failed, "expired at"),
            (Err(none), RowState::Failed, "no AWS credentials"),
        ] {
            let found = keys("keys of the profile a", &loaded, now);
            assert_eq!(found.state, state, "{found:?}");
            assert!(found.seen.contains(words), "{found:?}");
        }
    }

    #[test]
    fn sts_that_does_not_answer_warns_and_keys_that_it_refuses_fail() {
        let failed = |why: &str| Err(Error::new(Kind::Unavailable, why));
        for (found, state) in [
            (
                Ok(("arn:aws:iam::1:user/a".to_owned(), None)),
                RowState::Good,
            ),
            (failed("no answer"), RowState::Warning),
            (
                failed("(HTTP 403); the credentials were refused: check"),
                RowState::Failed,
            ),
            (
                failed("the credentials have expired: renew them"),
                RowState::Failed,
            ),
        ] {
            assert_eq!(identity(found).state, state);
        }
    }
}
