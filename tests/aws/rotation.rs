//! Credentials that expire, rotate and fail while a mount is read.

use std::time::{Duration, Instant};

use super::*;

/// A mount whose static session has this token, and the file that holds it.
struct Session {
    person: Person,
    mount: Mount,
}

fn write_token(person: &Person, token: &str) {
    let (id, secret) = person.emulator.keys();
    person.write(
        ".aws/credentials",
        &format!(
            "[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\naws_session_token = {token}\n"
        ),
    );
}

impl Session {
    /// Each of the volume's blocks is read from the service once.
    fn start() -> Self {
        let person = Person::new();
        person.emulator.make_volume("vol-0b", 64, 0..64);
        let snapshot = person.emulator.snapshot("vol-0b");
        write_token(&person, "one");
        let mut command = person.ebsfs(&["mount", "--timeout", "20s"]);
        command.env_remove("AWS_EC2_METADATA_SERVICE_ENDPOINT");
        let mount = Mount::start(command, &[&snapshot]);
        let person = Person { snapshot, ..person };
        Self { person, mount }
    }

    /// Reads a block: whether it has its bytes, and how long that took.
    fn read(&self, index: u64) -> (bool, Duration) {
        use std::os::unix::fs::FileExt;
        let since = Instant::now();
        let mut bytes = vec![0; 4096];
        let disk = open(&self.mount.disk(&self.person.snapshot));
        let is_read = disk.read_exact_at(&mut bytes, index * BLOCK).is_ok();
        let expected = content("vol-0b", index);
        (is_read && bytes == expected[..4096], since.elapsed())
    }
}

#[test]
fn a_session_that_rotates_in_its_file_is_read_again_without_an_error() {
    let session = Session::start();
    assert!(session.read(0).0);
    write_token(&session.person, "two");
    session.person.emulator.set("expired_sessions=one");
    // Listings and blocks alike.
    assert!(session.read(40).0, "{}", session.mount.log());
    assert!(session.read(63).0, "{}", session.mount.log());
}

#[test]
fn a_session_that_expires_is_refused_at_once_and_serves_again_when_renewed() {
    let session = Session::start();
    assert!(session.read(0).0);
    session.person.emulator.set("expired_sessions=one");
    session.person.emulator.reset();
    for index in 40..44 {
        let (is_read, took) = session.read(index);
        assert!(!is_read && took < Duration::from_secs(3), "{took:?}");
    }
    write_token(&session.person, "two");
    // Files are read again some seconds after they last brought what was refused.
    std::thread::sleep(Duration::from_secs(6));
    assert!(session.read(50).0, "{}", session.mount.log());
}

#[test]
fn a_program_that_renews_a_short_session_is_run_before_it_expires() {
    let person = Person::new();
    person.emulator.make_volume("vol-0b", 64, 0..64);
    let snapshot = person.emulator.snapshot("vol-0b");
    let (id, secret) = person.emulator.keys();
    let home = person.home.path().display();
    let script = format!(
        "n=$(cat {home}/n 2>/dev/null || echo 0); echo $((n + 1)) > {home}/n\n\
         echo '{{\"Version\":1,\"AccessKeyId\":\"{id}\",\"SecretAccessKey\":\"{secret}\",\"SessionToken\":\"'$n'\",\
         \"Expiration\":\"'$(date -u -d '+8 seconds' +%FT%TZ)'\"}}'\n"
    );
    let script = person.write("program.sh", &script);
    person.write(
        ".aws/config",
        &format!(
            "[profile short]\ncredential_process = sh {}\n",
            script.display()
        ),
    );
    let mut command = person.ebsfs(&["mount"]);
    command.env("AWS_PROFILE", "short");
    let mount = Mount::start(command, &[&snapshot]);
    let disk = mount.disk(&snapshot);
    for index in 0..20 {
        assert_eq!(
            read_at(&disk, index * BLOCK, 16),
            content("vol-0b", index)[..16]
        );
        // Each session ends 8 seconds after it began.
        person
            .emulator
            .set(&format!("expired_sessions={}", index / 16));
        std::thread::sleep(Duration::from_secs(1));
    }
    let runs = std::fs::read_to_string(person.home.path().join("n")).unwrap();
    let runs: u32 = runs.trim().parse().unwrap();
    assert!((3..=6).contains(&runs), "{runs} sessions in 20 seconds");
}

#[test]
fn a_program_that_fails_once_does_not_end_a_copy_whose_session_has_expired() {
    let person = Person::new();
    let volume = person.emulator.make_volume("vol-0b", 64, 0..64);
    let snapshot = person.emulator.snapshot("vol-0b");
    let (id, secret) = person.emulator.keys();
    let home = person.home.path().display();
    let script = format!(
        "n=$(($(cat {home}/n 2>/dev/null || echo 0) + 1)); echo $n > {home}/n\n\
         if [ $n = 2 ]; then exit 7; fi\n\
         echo '{{\"Version\":1,\"AccessKeyId\":\"{id}\",\"SecretAccessKey\":\"{secret}\",\"SessionToken\":\"'$n'\",\
         \"Expiration\":\"'$(date -u -d '+4 seconds' +%FT%TZ)'\"}}'\n"
    );
    let script = person.write("program.sh", &script);
    person.write(
        ".aws/config",
        &format!(
            "[profile failing]\ncredential_process = sh {}\n",
            script.display()
        ),
    );
    person.emulator.set("latency_ms=400");
    let image = person.home.path().join("image.raw");
    let mut command = person.ebsfs(&["sync", &snapshot, image.to_str().unwrap()]);
    command
        .args(["--max-in-flight", "2"])
        .env("AWS_PROFILE", "failing");
    let (code, said) = ends_within(Duration::from_secs(60), &mut command);
    let runs = std::fs::read_to_string(person.home.path().join("n")).unwrap();
    assert!(runs.trim().parse::<u32>().unwrap() > 2, "{runs} {said}");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("cannot renew the AWS credentials"), "{said}");
    assert!(
        std::fs::read(&image).unwrap()[..64 * BLOCK as usize] == std::fs::read(&volume).unwrap()
    );
}
