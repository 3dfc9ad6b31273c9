//! Inits killed at any moment: there is a repository, or nothing that a second init does not finish, and never a second id.

use super::*;

/// The id of the repository that is there.
fn id_of(objects: &Objects) -> Option<String> {
    let bytes = fs::read(objects.files().join("ebsfs-repository.json")).ok()?;
    let header: Value = serde_json::from_slice(&bytes).unwrap();
    Some(header["id"].as_str().unwrap().to_owned())
}

/// What is there is a sound, empty repository, or none.
fn look(objects: &Objects, emulator: &Emulator) -> Option<String> {
    let id = id_of(objects);
    let (code, said) = finishes(&mut objects.look(emulator, &["check"]));
    match id {
        Some(_) => assert_eq!(code, 0, "{said}"),
        None => assert!(code == 3 && said.contains("is no repository"), "{said}"),
    }
    id
}

/// Where no rename to a free name can be had, a killed init has perhaps claimed the name and written nothing.
#[test]
fn an_init_finishes_a_header_that_is_empty_and_no_other() {
    let objects = Objects::folder();
    let (emulator, _) = three_blocks();
    let header = objects.files().join("ebsfs-repository.json");
    fs::create_dir(objects.files()).unwrap();
    fs::write(&header, "").unwrap();
    let (code, said) = finishes(&mut objects.look(&emulator, &["ls"]));
    assert!(code == 3 && said.contains("is no repository"), "{said}");
    run(&mut objects.look(&emulator, &["init"]));
    let id = look(&objects, &emulator);
    assert!(id.is_some());
    for foreign in ["{", "{\"format\":3}"] {
        fs::write(&header, foreign).unwrap();
        let (code, said) = finishes(&mut objects.look(&emulator, &["init"]));
        assert!(code == 2 && said.contains("is one"), "{code}: {said}");
        assert_eq!(fs::read_to_string(&header).unwrap(), foreign);
    }
}

fn remove_all(objects: &mut Objects) {
    let files = objects.files();
    // A server remembers what it has served.
    let address = objects.server.is_some().then(|| objects.stop());
    let _ = fs::remove_dir_all(&files);
    if let Some(address) = address {
        fs::create_dir(&files).unwrap();
        objects.serve(&address);
    }
}

fn an_init_is_killed(mut objects: Objects) {
    let (emulator, snapshot) = three_blocks();
    let init = ["init"];
    let start = Instant::now();
    run(&mut objects.look(&emulator, &init));
    let whole = start.elapsed();
    let (mut kills, mut inits) = (0, 0);
    while kills < enough() {
        remove_all(&mut objects);
        let (mut id, mut patience) = (None, 1.2);
        loop {
            let mut child = objects
                .look(&emulator, &init)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(whole.mul_f64(fastrand::f64() * patience));
            // The machine may have become slower.
            patience *= 1.1;
            let ended = child.try_wait().unwrap();
            let _ = child.kill();
            child.wait().unwrap();
            settle();
            if let Some(status) = ended {
                assert_eq!(status.success(), id.is_none(), "{status} {id:?}");
            }
            kills += u64::from(ended.is_none());
            let now = look(&objects, &emulator);
            assert!(id.is_none() || id == now, "{id:?} is {now:?} now");
            assert!(now.is_some() || ended.is_none());
            id = now;
            // A repository is there: a second init ends by itself, if it has the time.
            if id.is_some() && ended.is_some() {
                break;
            }
        }
        inits += 1;
        let (code, said) = finishes(&mut objects.look(&emulator, &init));
        assert!(code == 2 && said.contains("is one"), "{code}: {said}");
        println!("{}: {kills} kills of {inits} inits", objects.url());
    }
    // What a killed init has left harms nothing.
    let id = id_of(&objects);
    run(&mut objects.bring(&emulator, &[&snapshot]));
    run(&mut objects.look(&emulator, &["prune", "--grace", "0s"]));
    is_whole(&objects, &emulator, 1);
    let (mount, disk) = mounted(&emulator, &snapshot);
    let replica = objects.mount(&emulator);
    assert_same(&replica.disk(&snapshot), &disk);
    drop((mount, replica));
    assert_eq!(id_of(&objects), id);
}

#[test]
fn an_init_in_a_folder_that_is_killed_is_finished_by_the_next_one() {
    an_init_is_killed(Objects::folder());
}

#[test]
fn an_init_in_a_store_that_is_killed_is_finished_by_the_next_one() {
    an_init_is_killed(Objects::s3());
}
