//! The way to stores in Azure and Google.

use super::*;

/// A sync to a store of this address, which is where these variables say.
fn to(site: &DoctorSite, variables: &[(&str, &str)]) -> Command {
    let mut command = site.ebsfs();
    for (name, _) in std::env::vars() {
        if name.starts_with("AZURE_") || name.starts_with("GOOGLE_") {
            command.env_remove(name);
        }
    }
    command.envs(variables.iter().copied());
    command
}

fn verb<'a>(site: &'a DoctorSite, address: &'a str) -> Vec<&'a str> {
    vec!["sync", &site.snapshot, address, "--timeout", "2s"]
}

const KEY: &str = "c2VjcmV0LWtleS1vZi1henVyZQ==";

#[test]
fn a_store_of_azure_or_google_has_the_rows_of_its_connection() {
    let site = DoctorSite::new();
    let server = crate::aws::server::Server::start(|_| (404, "{}".into()));
    let url = server.url();
    let azure = [
        ("AZURE_STORAGE_ACCOUNT_NAME", "replicas"),
        ("AZURE_STORAGE_ACCOUNT_KEY", KEY),
        ("AZURE_STORAGE_ENDPOINT", &url),
    ];
    let google = [
        ("GOOGLE_BASE_URL", url.as_str()),
        ("GOOGLE_SKIP_SIGNATURE", "true"),
    ];
    for (variables, address) in [(&azure[..], "az://box/p"), (&google[..], "gs://box/p")] {
        let found = examined(to(&site, variables), &[], &verb(&site, address));
        let object = format!("127.0.0.1:{} ({address})", server.port);
        for check in ["connection", "answer", "packets"] {
            assert_eq!(
                found.row(check, &object)["state"],
                "good",
                "{check} {address}"
            );
        }
        // The stand-in states no time, and is no repository.
        assert_eq!(found.row("clock", &object)["state"], "unknown");
        assert_eq!(
            found.row("store", &format!("read of {address}"))["state"],
            "failed"
        );
        assert!(!found.report.to_string().contains(KEY));
        let large = server
            .asked()
            .into_iter()
            .filter(|one| one.body.len() >= 8 << 10);
        assert_eq!(large.count(), 1);
    }
}

#[test]
fn what_breaks_the_way_to_a_store_of_azure_or_google_is_its_first_failed_row() {
    let site = DoctorSite::new();
    let account = [
        ("AZURE_STORAGE_ACCOUNT_NAME", "replicas"),
        ("AZURE_STORAGE_ACCOUNT_KEY", KEY),
    ];
    let azure = |url| [&account[..], &[("AZURE_STORAGE_ENDPOINT", url)]].concat();
    let found = examined(
        to(&site, &azure("http://127.0.0.1:9")),
        &[],
        &verb(&site, "az://box/p"),
    );
    found.fails(
        "connection",
        "127.0.0.1:9 (az://box/p)",
        "refuses connections at port 9",
        "correct the URL of AZURE_STORAGE_ENDPOINT",
    );
    let google = [
        ("GOOGLE_BASE_URL", "https://gcs.invalid"),
        ("GOOGLE_SKIP_SIGNATURE", "true"),
    ];
    let found = examined(to(&site, &google), &[], &verb(&site, "gs://box/p"));
    found.fails(
        "name",
        "gcs.invalid:443 (gs://box/p)",
        "asked ",
        "check the name in GOOGLE_BASE_URL",
    );
    // A proxy that refuses has its own row here too.
    let proxy = crate::aws::server::Server::start(|_| (407, String::new()));
    let through = format!("http://u:hush@127.0.0.1:{}", proxy.port);
    let mut command = to(&site, &azure("https://blob.example"));
    command.env("HTTPS_PROXY", &through);
    let found = examined(command, &[], &verb(&site, "az://box/p"));
    found.fails(
        "proxy",
        "blob.example:443 (az://box/p)",
        "HTTP 407",
        "USER:PASSWORD@HOST:PORT",
    );
    assert!(!found.report.to_string().contains("hush"));
}
