use super::super::room;
use crate::error::Kind;

const MIB: u64 = 1 << 20;

#[test]
fn a_clone_and_the_reserve_must_fit_and_blocks_may_not() {
    // free, clone, blocks, reserve (MiB, blocks of half a MiB): refused (with these words), said, or silent
    let refused = |words: &'static [&'static str]| Some(words);
    for (free, clone, blocks, reserve, error, says) in [
        (10, 0, 0, 0, None, false),
        (0, 0, 0, 0, None, false),
        (10, 0, 20, 0, None, false),
        (10, 0, 21, 0, None, true),
        (10, 10, 0, 0, None, false),
        (10, 10, 1, 0, None, true),
        (
            10,
            11,
            0,
            0,
            refused(&["a copy of the old image takes 11.0 MiB"]),
            false,
        ),
        (10, 0, 0, 10, None, false),
        (10, 0, 1, 10, None, true),
        (10, 0, 0, 11, refused(&["11.0 MiB are to stay free"]), false),
        (10, 5, 0, 5, None, false),
        (10, 5, 1, 5, None, true),
        (
            10,
            5,
            0,
            6,
            refused(&["takes 5.0 MiB", "6.0 MiB are to stay free"]),
            false,
        ),
        (10, 4, 4, 4, None, false),
        (10, 4, 5, 4, None, true),
    ] {
        let row = format!("{free} {clone} {blocks} {reserve}");
        match (
            room("/a", free * MIB, clone * MIB, blocks, reserve * MIB),
            error,
        ) {
            (Ok(said), None) => assert_eq!(said.is_some(), says, "{row}: {said:?}"),
            (Err(error), Some(words)) => {
                assert_eq!(error.kind(), Kind::NoSpace);
                let text = error.to_string();
                assert!(
                    text.starts_with("cannot write /a: 10.0 MiB are free there"),
                    "{text}"
                );
                assert!(words.iter().all(|word| text.contains(word)), "{text}");
            }
            (found, error) => panic!("{row}: {found:?}, not {error:?}"),
        }
    }
}

#[test]
fn room_is_reckoned_without_overflow() {
    let most = u64::MAX;
    assert!(room("/a", most, 0, most, most).unwrap().is_none());
    assert!(room("/a", most - 1, most, 0, most).is_err());
    assert!(room("/a", most - 1, 0, most, 0).unwrap().is_some());
}
