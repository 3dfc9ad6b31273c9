use serde_json::json;

use super::*;

fn good() -> Value {
    json!({
        "format": "ebsfs-evidence",
        "version": 1,
        "image": {
            "bytes": (3 << 19) + 5,
            "block_bytes": 1 << 19,
            "sha256": "a".repeat(64),
            "sha1": "b".repeat(40),
            "md5": "c".repeat(32),
        },
        "blocks": {"data": 1, "zero": 1, "hole": 2},
        "source": {
            "name": "snap-1",
            "kind": "ebs",
            "snapshot": {"id": "snap-1", "tags": {}},
            "region": "us-east-1",
            "endpoint": "EBS in us-east-1",
        },
        "caller": {"account": "111122223333", "arn": "arn:aws:iam::111122223333:user/x", "user_id": null},
        "caller_unknown": null,
        "program": {"name": "ebsfs", "version": "0.1.0", "path": "/usr/bin/ebsfs", "sha256": "d".repeat(64)},
        "machine": {"host": "h", "user": "root", "uid": 0, "kernel": "Linux", "architecture": "x86_64"},
        "started": "2026-06-30T12:00:00.000Z",
        "ended": "2026-06-30T12:00:01.000Z",
        "clocks": [{"host": "h", "answers": 2, "ahead_ms_least": -3, "ahead_ms_most": 4}],
        "requests": {"ebs:GetSnapshotBlock": {"sent": 2, "retries": 0, "hedges": 0, "throttles": 0}},
        "requests_listed": 4,
        "warnings": [],
        "files": [
            {"name": "blocks.csv", "bytes": 10, "sha256": "e".repeat(64)},
            {"name": "requests.jsonl", "bytes": 0, "sha256": "f".repeat(64)},
        ],
        "signature": {"format": "SSHSIG", "namespace": "ebsfs-evidence"},
    })
}

fn decoded(value: &Value) -> Result<EvidenceStatement> {
    EvidenceStatement::decode(value.to_string().as_bytes())
}

#[test]
fn a_statement_reads_as_it_was_written() {
    let statement = decoded(&good()).unwrap();
    let again = EvidenceStatement::decode(&statement.encoded()).unwrap();
    assert_eq!(statement, again);
    assert_eq!(statement.geometry().unwrap().size(), (3 << 19) + 5);
}

#[test]
fn what_version_1_does_not_have_is_refused() {
    let image = json!({"name": "disk.raw", "bytes": (3 << 19) + 5, "sha256": "a".repeat(64)});
    let mut with_image = good();
    with_image["files"].as_array_mut().unwrap().push(image);
    assert!(decoded(&with_image).is_ok());
    // Each change, and the words of the refusal.
    let rows: [(&str, Value, &str); 16] = [
        ("/extra", json!(1), "malformed"),
        ("/image/extra", json!(1), "malformed"),
        ("/format", json!("other"), "no statement"),
        ("/version", json!("1"), "no version"),
        ("/version", json!(0), "no version"),
        ("/image/bytes", json!(0), "size"),
        ("/image/bytes", json!(u64::MAX), "size"),
        ("/image/block_bytes", json!(4096), "size"),
        ("/image/sha256", json!("A".repeat(64)), "digest"),
        ("/image/md5", json!("c".repeat(31)), "digest"),
        ("/blocks/hole", json!(3), "counts"),
        ("/blocks/hole", json!(u64::MAX), "counts"),
        ("/files/0/name", json!("../blocks.csv"), "other files"),
        ("/files/0/sha256", json!(""), "digest"),
        ("/files", json!([]), "other files"),
        ("/signature/namespace", json!("file"), "kind of signature"),
    ];
    for (at, value, words) in rows {
        let mut changed = good();
        match changed.pointer_mut(at) {
            Some(place) => *place = value,
            None => {
                let (parent, name) = at.rsplit_once('/').unwrap();
                changed.pointer_mut(parent).unwrap()[name] = value;
            }
        }
        let error = decoded(&changed).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{at}");
        assert!(error.chain().contains(words), "{at}: {}", error.chain());
    }
    let mut later = good();
    later["version"] = json!(2);
    assert_eq!(decoded(&later).unwrap_err().kind(), Kind::Invalid);
    let mut copy = with_image;
    copy["files"][2]["sha256"] = json!("0".repeat(64));
    assert!(decoded(&copy).unwrap_err().chain().contains("copy"));
    let mut hostile = good();
    hostile[format!("\u{1b}[2J{}", "x".repeat(10_000))] = json!(1);
    let said = decoded(&hostile).unwrap_err().chain();
    assert!(!said.contains('\u{1b}') && said.len() < 400, "{said}");
    // A member that is there twice: readers would disagree which one counts.
    let text = good().to_string();
    let twice = text.replacen('{', "{\"started\":\"x\",", 1);
    let error = EvidenceStatement::decode(twice.as_bytes()).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
}

#[test]
fn no_text_panics() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    fastrand::seed(seed);
    let text = good().to_string().into_bytes();
    for _ in 0..2000 {
        let mut changed = text.clone();
        for _ in 0..fastrand::usize(1..4) {
            let at = fastrand::usize(..changed.len());
            changed[at] = fastrand::u8(..);
        }
        changed.truncate(fastrand::usize(1..=changed.len()));
        let _ = EvidenceStatement::decode(&changed);
    }
    let deep = "[".repeat(100_000);
    assert!(EvidenceStatement::decode(deep.as_bytes()).is_err());
}
