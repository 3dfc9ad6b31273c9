//! Ways to a store: by a proxy, with the bucket before the host, over TLS with an authority of its own.

use super::proxy::{Fate, Proxy};
use super::*;

/// A snapshot of three blocks is brought in, and what is taken out is its image.
fn goes_in_and_out(objects: &Objects, more: impl Fn(Command) -> Command) {
    let (emulator, id) = three_blocks();
    run(&mut more(objects.bring(&emulator, &[&id])));
    let out = emulator.folder.path().join("out.raw");
    run(&mut more(objects.take(&emulator, "latest", &[text(&out)])));
    let (mount, disk) = crate::sync::mounted(&emulator, &id);
    assert_same(&out, &disk);
    drop(mount);
}

#[test]
fn a_bucket_before_the_host_is_reached_by_a_proxy() {
    let mut objects = Objects::s3_with(vec!["--force-path-style=false".into()]);
    let (_, address) = objects.server.as_ref().unwrap();
    let proxy = Proxy::before(address);
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = std::sync::Arc::clone(&asked);
    proxy.set(move |_| {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Fate::Pass
    });
    // Only the proxy knows this host.
    objects.front = Some("http://obs.example".into());
    goes_in_and_out(&objects, |mut command| {
        command.args(["--bucket-style", "host"]);
        command.env("HTTP_PROXY", format!("http://{}", proxy.address));
        command.env("NO_PROXY", "127.0.0.1");
        command
    });
    assert!(asked.load(std::sync::atomic::Ordering::Relaxed) > 10);
    assert!(!objects.objects("packs").is_empty());
}

#[test]
fn a_private_authority_of_a_store_is_trusted_only_when_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        text(&path).to_owned()
    };
    let key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let own = authority.self_signed(&key).unwrap();
    let bundle = file("ca.pem", &own.pem());
    let issuer = rcgen::Issuer::new(authority, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let server = server.signed_by(&key, &issuer).unwrap();
    let certificate = file("server.pem", &server.pem());
    let key = file("server.key", &key.serialize_pem());
    let mut objects = Objects::s3_with(vec!["--cert".into(), certificate, "--key".into(), key]);
    let (_, address) = objects.server.as_ref().unwrap();
    let port = address.rsplit(':').next().unwrap();
    objects.front = Some(format!("https://localhost:{port}"));
    goes_in_and_out(&objects, |mut command| {
        let is_target = command.get_args().any(|arg| arg == "--to-endpoint-url");
        let option = if is_target {
            "--to-ca-bundle"
        } else {
            "--ca-bundle"
        };
        command.args([option, &bundle]);
        command
    });
    let emulator = Emulator::start();
    let (code, said) = ends(&mut objects.look(&emulator, &["ls"]));
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("AWS_CA_BUNDLE names a file"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}
