//! `--dedup`: no content is sent that the repository holds, and nothing else is any different.

use std::os::unix::fs::FileExt;

use super::*;

/// An image of blocks that differ in each number: of two images those of one number are the same. None is a hole.
fn image(folder: &Path, name: &str, blocks: impl IntoIterator<Item = Option<u64>>) -> PathBuf {
    image_of(BLOCK as usize, folder, name, blocks)
}

/// The same, and of each block only so many bytes are no zeroes: where they are few, many of them are made quickly.
fn image_of(
    bytes: usize,
    folder: &Path,
    name: &str,
    blocks: impl IntoIterator<Item = Option<u64>>,
) -> PathBuf {
    let path = folder.join(name);
    let file = fs::File::create(&path).unwrap();
    let mut end = 0;
    for number in blocks {
        if let Some(number) = number {
            let mut bytes = vec![0; bytes];
            fastrand::Rng::with_seed(number).fill(&mut bytes);
            file.write_all_at(&bytes, end).unwrap();
        }
        end += BLOCK;
    }
    file.set_len(end).unwrap();
    path
}

/// The index of a repository, beside the state of its runs.
fn index(emulator: &Emulator) -> PathBuf {
    let mut found = Vec::new();
    walk(&emulator.folder.path().join("state"), &mut found);
    found.retain(|path| text(path).ends_with("-index"));
    assert_eq!(found.len(), 1);
    found.remove(0)
}

/// What a repository holds of an image is the image.
fn comes_out(objects: &Objects, emulator: &Emulator, image: &Path, select: &str) {
    let out = objects.folder.path().join("out.raw");
    let _ = fs::remove_file(&out);
    run(&mut objects.take(emulator, select, &[text(&out)]));
    assert_same(&out, image);
}

#[test]
fn blocks_of_another_volume_or_offset_are_not_sent_again() {
    let emulator = Emulator::start();
    let folder = tempfile::tempdir().unwrap();
    for objects in [Objects::folder(), Objects::s3()] {
        let bring = |image: &Path| run(&mut objects.bring(&emulator, &[text(image), "--dedup"]));
        let first = image(folder.path(), "first.raw", (0..300).map(Some));
        bring(&first);
        // The same in another order, with holes and five of its own, one of them many times.
        let moved = (0..300).rev().map(|n| (n % 7 > 0).then_some(n));
        let own = (1000..1005).chain([1004; 400]).map(Some);
        let second = image(folder.path(), "second.raw", moved.chain(own));
        bring(&second);
        comes_out(&objects, &emulator, &second, text(&second));
        let shown = sent(&objects, &emulator);
        assert_eq!(shown[0], 300);
        // Those that are on their way when the next of them comes are sent too.
        assert!((5..5 + 200).contains(&shown[1]), "{shown:?}");
        // Without it another volume's blocks are sent, and with it nothing at all.
        let third = image(folder.path(), "third.raw", (0..20).map(Some));
        run(&mut objects.bring(&emulator, &[text(&third)]));
        let fourth = image(folder.path(), "fourth.raw", (10..30).map(Some));
        bring(&fourth);
        assert_eq!(sent(&objects, &emulator)[2..], [20, 0]);
        comes_out(&objects, &emulator, &fourth, text(&fourth));
        let checked = objects.look_json(&emulator, &["check", "--read-data"]);
        assert_eq!(checked["snapshots"], 4);
    }
}

#[test]
fn removed_blocks_are_sent_again_and_a_damaged_index_is_rebuilt() {
    let emulator = Emulator::start();
    let folder = tempfile::tempdir().unwrap();
    let objects = Objects::folder();
    let bring = |image: &Path| run(&mut objects.bring(&emulator, &[text(image), "--dedup"]));
    let first = image(folder.path(), "first.raw", (0..200).map(Some));
    bring(&first);
    let second = image(folder.path(), "second.raw", (100..300).map(Some));
    bring(&second);
    assert_eq!(sent(&objects, &emulator), [200, 100]);
    // The second counts on packs that the first has brought.
    objects.remove(&emulator, text(&first));
    std::thread::sleep(std::time::Duration::from_millis(20));
    run(&mut objects.look(&emulator, &["prune", "--grace", "0s"]));
    comes_out(&objects, &emulator, &second, text(&second));
    let third = image(folder.path(), "third.raw", (0..300).map(Some));
    bring(&third);
    // What is left in packs that the second needs is known too.
    let shown = sent(&objects, &emulator);
    assert!(
        shown[0] == 100 && (37..=100).contains(&shown[1]),
        "{shown:?}"
    );
    objects.empty(&emulator);
    bring(&first);
    assert_eq!(sent(&objects, &emulator), [200]);
    for damage in 0..6u8 {
        let path = index(&emulator);
        let mut bytes = fs::read(&path).unwrap();
        let at = fastrand::usize(..bytes.len());
        match damage % 3 {
            0 => bytes[at] ^= 0x10,
            1 => bytes.truncate(at),
            _ => bytes.fill(0),
        }
        fs::write(&path, &bytes).unwrap();
        let more = (0..=u64::from(damage)).map(|n| Some(5000 + n));
        let other = image(folder.path(), "other.raw", (0..200).map(Some).chain(more));
        bring(&other);
        comes_out(&objects, &emulator, &other, text(&other));
    }
    objects.look_json(&emulator, &["check", "--read-data"]);
    // What the store has lost is not counted on: it is sent, once more.
    for pack in objects.objects("packs") {
        fs::remove_file(pack).unwrap();
    }
    let again = image(folder.path(), "again.raw", (0..200).rev().map(Some));
    bring(&again);
    comes_out(&objects, &emulator, &again, text(&again));
    assert_eq!(sent(&objects, &emulator).last(), Some(&200));
    let (code, said) = ends(&mut objects.sync(&emulator, &[text(&first), "/dev/shm/x", "--dedup"]));
    assert!(code == 2 && said.contains("--dedup"), "{said}");
}

#[test]
fn a_resumed_sync_uses_its_own_blocks_and_those_of_other_runs() {
    let emulator = Emulator::start();
    let folder = tempfile::tempdir().unwrap();
    let objects = Objects::folder();
    let first = image_of(8, folder.path(), "first.raw", (0..1500).rev().map(Some));
    run(&mut objects.bring(&emulator, &[text(&first), "--dedup"]));
    // Of others, its own, and its own a second time, in turn.
    let mixed = (0..3000).map(|n| match n % 3 {
        0 => n / 3,
        1 => 10_000 + n,
        _ => 10_000 + n / 2 / 3 * 3 + 1,
    });
    let second = image_of(8, folder.path(), "second.raw", mixed.map(Some));
    let kills = crate::sync::kill_until_done(
        || objects.bring(&emulator, &[text(&second), "--dedup"]),
        1500,
        || drop(objects.look_json(&emulator, &["check"])),
    );
    println!("{kills} kills");
    comes_out(&objects, &emulator, &second, text(&second));
    objects.remove(&emulator, text(&first));
    std::thread::sleep(std::time::Duration::from_millis(20));
    run(&mut objects.look(&emulator, &["prune", "--grace", "0s"]));
    objects.look_json(&emulator, &["check", "--read-data"]);
    comes_out(&objects, &emulator, &second, text(&second));
}

#[test]
fn two_that_bring_and_one_that_prunes_at_once_are_not_in_each_others_way() {
    let emulator = Emulator::start();
    let folder = tempfile::tempdir().unwrap();
    let objects = Objects::folder();
    for round in 0..4u64 {
        let at = round * 50;
        let images = [0, 100].map(|from| {
            let name = format!("image-{round}-{from}.raw");
            image(folder.path(), &name, (at + from..at + from + 200).map(Some))
        });
        let mut running = images.each_ref().map(|image| {
            let mut bring = objects.bring(&emulator, &[text(image), "--dedup"]);
            bring
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        });
        if round > 0 {
            // The runs may hold something back.
            let prune = || {
                let prune = ["prune", "--keep", "1", "--grace", "0s"];
                let (code, said) = ends(&mut objects.look(&emulator, &prune));
                assert!(matches!(code, 0 | 10), "{code} {said}");
            };
            prune();
            // The oldest ones go.
            let shown = objects.look_json(&emulator, &["ls"]);
            let oldest = shown[0]["snapshot"].as_str().unwrap();
            objects.remove(&emulator, oldest);
            prune();
        }
        for child in &mut running {
            assert!(child.wait().unwrap().success());
        }
        objects.look_json(&emulator, &["check", "--read-data"]);
        for image in &images {
            comes_out(&objects, &emulator, image, text(image));
        }
    }
}
