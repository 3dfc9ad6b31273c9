//! Stores that answer what they should not.

use super::proxy::{Fate, Proxy};
use super::*;
use crate::sync::{large_pair, mounted};

/// A store behind a proxy.
fn behind() -> (Objects, Proxy) {
    let mut objects = Objects::s3();
    let (_, address) = objects.server.as_ref().unwrap();
    let proxy = Proxy::before(address);
    objects.front = Some(format!("http://{}", proxy.address));
    (objects, proxy)
}

/// What becomes of each PUT, by its number from 1 on; other requests pass.
fn puts(fate: impl Fn(u32) -> Fate + Send + 'static) -> impl FnMut(&str) -> Fate + Send {
    let mut number = 0;
    move |request| {
        if !request.starts_with("PUT ") {
            return Fate::Pass;
        }
        number += 1;
        fate(number)
    }
}

/// One of so many requests of a verb, or of any.
const FAULTS: [(u64, &str, Fate); 6] = [
    (12, "", Fate::Say(503, "SlowDown")),
    (20, "", Fate::Say(500, "InternalError")),
    (20, "", Fate::Drop),
    (20, "", Fate::Cut),
    (8, "PUT", Fate::Lie),
    (12, "PUT", Fate::Spoil),
];

#[test]
fn an_unreliable_store_ends_up_with_every_byte() {
    let (objects, proxy) = behind();
    // Some 250 blocks, and 125 changes.
    let snapshots = ["snap-0a:1:120000", "snap-0b:snap-0a:60000"];
    let kinds = ["--synthetic", "--synthetic-child"];
    let emulator = Emulator::with(&[kinds[0], snapshots[0], kinds[1], snapshots[1]]);
    proxy.set(|request| {
        let is_its = |fault: &&(u64, &str, Fate)| {
            request.starts_with(fault.1) && fastrand::u64(..fault.0) == 0
        };
        FAULTS
            .iter()
            .find(is_its)
            .map_or(Fate::Pass, |fault| fault.2)
    });
    run(&mut objects.bring(&emulator, &["snap-0a", "--max-in-flight", "16"]));
    run(&mut objects.bring(&emulator, &["snap-0b", "--base", "snap-0a", "--dedup"]));
    let (mount, disk) = mounted(&emulator, "snap-0b");
    let replica = objects.mount(&emulator);
    assert_same(&replica.disk("snap-0b"), &disk);
    drop((mount, replica));
    let checked = objects.look_json(&emulator, &["check", "--read-data"]);
    assert_eq!(checked["snapshots"], 2);
    run(&mut objects.look(&emulator, &["prune", "--keep", "1", "--grace", "0s"]));
    proxy.set(|_| Fate::Pass);
    let checked = objects.look_json(&emulator, &["check", "--read-data"]);
    assert_eq!(checked["snapshots"], 1);
}

#[test]
fn whatever_object_a_store_spoils_the_first_time_is_put_again() {
    let (emulator, id) = three_blocks();
    let (mount, disk) = mounted(&emulator, &id);
    // The header, the run, a pack, a segment, the manifest.
    for which in 1..=5 {
        let (objects, proxy) = behind();
        proxy.set(puts(move |number| match number == which {
            true => Fate::Spoil,
            false => Fate::Pass,
        }));
        run(&mut objects.bring(&emulator, &[&id]));
        let checked = objects.look_json(&emulator, &["check", "--read-data"]);
        assert_eq!(checked["snapshots"], 1, "{which}");
        // A manifest that is damaged later is made whole by bringing the snapshot once more.
        fs::write(&objects.objects("snapshots")[0], "damaged").unwrap();
        run(&mut objects.bring(&emulator, &[&id]));
        let replica = objects.mount(&emulator);
        assert_same(&replica.disk(&id), &disk);
    }
    drop(mount);
}

#[test]
fn a_store_that_loses_or_changes_bytes_is_reported_and_no_snapshot_is_published() {
    let (objects, proxy) = behind();
    let (emulator, id) = three_blocks();
    // Content-MD5 tells the store that it got other bytes than were sent.
    for (fate, words) in [
        (Fate::Lie, "the store has taken it, and it "),
        (Fate::Spoil, "BadDigest"),
    ] {
        // A manifest that is spoiled is damage, which `check` reports.
        proxy.set(move |request| match request.starts_with("PUT ") {
            true if request.contains("/packs/") => fate,
            _ => Fate::Pass,
        });
        let (code, said) = ends(&mut objects.bring(&emulator, &[&id, "--timeout", "2s"]));
        assert_eq!(code, 8, "{said}");
        assert!(said.contains(words), "{said}");
        proxy.set(|_| Fate::Pass);
        let checked = objects.look_json(&emulator, &["check"]);
        assert_eq!(checked["snapshots"], 0);
    }
    run(&mut objects.bring(&emulator, &[&id]));
    let checked = objects.look_json(&emulator, &["check", "--read-data"]);
    assert_eq!(checked["snapshots"], 1);
}

#[test]
fn a_listed_but_absent_manifest_is_damage_and_nothing_is_swept() {
    let (objects, proxy) = behind();
    let (emulator, id) = three_blocks();
    run(&mut objects.bring(&emulator, &[&id]));
    let kept = [objects.objects("packs"), objects.objects("segments")];
    proxy.set(|request| match request.contains("/snapshots/2") {
        true => Fate::Say(404, "NoSuchKey"),
        false => Fate::Pass,
    });
    let checked = objects.look(&emulator, &["check"]).output().unwrap();
    let said = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(8), "{said}");
    assert!(said.contains(&id), "{said}");
    let (code, said) = ends(&mut objects.look(&emulator, &["ls"]));
    assert!(code == 3 && said.contains(&id), "{said}");
    // The store's times are whole seconds.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let (code, said) = ends(&mut objects.look(&emulator, &["prune", "--grace", "0s"]));
    assert!(code == 3 && said.contains(&id), "{said}");
    assert_eq!(
        kept,
        [objects.objects("packs"), objects.objects("segments")]
    );
}

#[test]
fn credentials_refused_by_the_store_during_a_sync_are_named_and_the_same_command_resumes() {
    let (objects, proxy) = behind();
    let emulator = large_pair();
    let bring = ["snap-0a", "--max-in-flight", "8"];
    // To a HEAD nothing is said but 403.
    for (code, words) in [
        ("ExpiredToken", "expired"),
        ("InvalidAccessKeyId", "not the store's"),
    ] {
        let mut requests = 0;
        proxy.set(move |_| {
            requests += 1;
            match requests {
                ..20 => Fate::Pass,
                _ => Fate::Say(403, code),
            }
        });
        let mut command = objects.bring(&emulator, &bring);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(said.contains(words), "{said}");
        let lines = said.lines().filter(|line| line.starts_with("ebsfs:"));
        assert_eq!(lines.count(), 1, "{said}");
    }
    proxy.set(|_| Fate::Pass);
    run(&mut objects.bring(&emulator, &bring));
    let (mount, disk) = mounted(&emulator, "snap-0a");
    let replica = objects.mount(&emulator);
    // A reader gets an error, no wrong byte, and can continue.
    proxy.set(|_| Fate::Say(403, "ExpiredToken"));
    let copy = replica.disk("snap-0a");
    assert!(fs::read(&copy).is_err());
    proxy.set(|_| Fate::Pass);
    assert_same(&copy, &disk);
    drop((mount, replica));
}

#[test]
fn every_answer_of_a_store_is_reported_in_one_line() {
    let (objects, proxy) = behind();
    let (emulator, id) = three_blocks();
    for (status, code, exit, words) in [
        (503, "SlowDown", 7, "SlowDown"),
        (500, "InternalError", 7, "gave up"),
        (429, "TooManyRequests", 7, "gave up"),
        (403, "AccessDenied", 4, "lack the permission"),
        (403, "RequestTimeTooSkewed", 4, "the clock is wrong"),
        (403, "SignatureDoesNotMatch", 4, "not the store's"),
        (301, "PermanentRedirect", 2, "another Region"),
        (307, "TemporaryRedirect", 2, "another Region"),
        (400, "AuthorizationHeaderMalformed", 2, "another Region"),
        (400, "InvalidRequest", 2, "InvalidRequest"),
        (404, "NoSuchBucket", 3, "make the bucket first"),
    ] {
        proxy.set(move |_| Fate::Say(status, code));
        let (got, said) = ends(&mut objects.bring(&emulator, &[&id, "--timeout", "2s"]));
        assert_eq!(got, exit, "{code}: {said}");
        assert!(said.contains(words), "{code}: {said}");
        let lines = said.lines().filter(|line| line.starts_with("ebsfs:"));
        assert_eq!(lines.count(), 1, "{code}: {said}");
        assert!(!said.contains(SECRET), "{code}: {said}");
    }
}

#[test]
fn a_run_that_ends_between_its_manifest_and_its_record_is_continued() {
    let (objects, proxy) = behind();
    let (emulator, id) = three_blocks();
    proxy.set(
        |request| match request.starts_with("DELETE ") && request.contains("/runs/") {
            true => Fate::Say(503, "SlowDown"),
            false => Fate::Pass,
        },
    );
    let (code, said) = ends(&mut objects.bring(&emulator, &[&id, "--timeout", "2s"]));
    assert_ne!(code, 0, "{said}");
    assert_eq!(objects.objects("snapshots").len(), 1, "{said}");
    proxy.set(|_| Fate::Pass);
    emulator.reset();
    let (code, said) = ends(&mut objects.bring(&emulator, &[&id]));
    assert_eq!(code, 0, "{said}");
    assert_eq!(emulator.gets(), 0, "{said}");
    assert!(objects.objects("runs").is_empty());
}
