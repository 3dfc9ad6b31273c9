//! A block that EBS cannot deliver whole ends the run, or is a line `damaged` and zeroes in the digests.

use super::*;

/// The block that the emulator stores wrong; the source holds it.
const BAD: u64 = 17;
const MARK: [&str; 3] = ["--on-damage", "mark", "--image"];

#[test]
fn a_damaged_block_ends_the_run_or_is_marked_and_zero_in_every_digest() {
    let case = Case::of_snapshot();
    // The image with zeroes in place of the damaged block.
    let expected = case.at("expected.raw");
    let image = case.emulator().volume("vol-0a");
    sh(&format!(
        "cp --sparse=always {} {}",
        image.display(),
        expected.display()
    ));
    let zeroes = vec![0; BLOCK as usize];
    writable(&expected)
        .write_all_at(&zeroes, BAD * BLOCK)
        .unwrap();

    case.emulator().set(&format!("rotten_block={BAD}"));
    let folder = case.at("case");
    let (code, said) = ends(&mut case.command(&folder, &[]));
    assert_eq!(code, 8, "{said}");
    assert!(
        said.contains("block 17") && said.contains("--on-damage mark"),
        "{said}"
    );
    assert!(!folder.exists());

    let output = case.command(&folder, &MARK).output().unwrap();
    let (said, errors) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert_eq!(output.status.code(), Some(12), "{errors}");
    assert!(
        said.contains("4 with data, 0 of zeroes, 2043 not held, 1 damaged"),
        "{said}"
    );
    assert!(errors.contains("block 17 is taken as zeroes"), "{errors}");
    assert!(
        errors.contains("1 damaged blocks are zeroes in the digests of the evidence"),
        "{errors}"
    );
    let stated = statement(&folder);
    assert_eq!(stated["blocks"]["damaged"], 1);
    let warning = stated["warnings"][0].as_str().unwrap();
    assert!(
        warning.starts_with("1 damaged blocks could not be read"),
        "{warning}"
    );
    let list = std::fs::read_to_string(folder.join("blocks.csv")).unwrap();
    assert!(list.lines().any(|line| line == "17,1,damaged,,"), "{list}");
    assert_eq!(stated["image"]["sha256"], sum("sha256sum", &expected));
    assert_same(&folder.join("disk.raw"), &expected);

    // The evidence matches that image, and the damaged snapshot itself.
    let (code, said, errors) = verify(&[text(&folder), text(&expected)]);
    assert_eq!(code, 0, "{said}{errors}");
    assert!(said.contains("damaged    1 blocks were not read"), "{said}");
    let words = ["evidence", "verify", text(&folder), &case.source];
    run(&mut case.emulator().ebsfs(&words));
}
