//! Requests to a bucket as actions of S3 and KMS, and the policies of buckets: of a user, of the endpoint, of the bucket itself.

use super::*;

const BUCKET_KEY: &str = "arn:aws:kms:us-east-1:111122223333:key/0b";
const BUCKET: [&str; 2] = ["--bucket", "bucket/replicas"];

/// The actions that S3 needs for a request, each with its resource, and those of KMS if the objects are encrypted with a key
/// (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html>,
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html>).
///
/// # Panics
/// If a request needs actions that are not in this table.
pub fn actions_of(request: &S3Request, key: Option<&str>) -> Vec<Grant> {
    let known: &[&str] = match request.key.is_empty() {
        true => &[
            "list-type",
            "prefix",
            "delimiter",
            "continuation-token",
            "start-after",
            "max-keys",
            "encoding-type",
            "marker",
        ],
        false => &["x-id"],
    };
    let mut parameters = request.query.keys();
    let headers = ["x-amz-acl", "x-amz-tagging", "x-amz-copy-source"];
    let is_known = parameters.all(|name| known.contains(&name.as_str()))
        && headers.iter().all(|name| request.header(name).is_none());
    let what = format!("{} {} {:?}", request.method, request.key, request.query);
    assert!(is_known, "more actions: {what} {:?}", request.headers);
    if request.key.is_empty() {
        assert!(["GET", "HEAD"].contains(&&*request.method), "{what}");
        return vec![("s3:ListBucket".into(), "arn:aws:s3:::bucket".into())];
    }
    let decrypt = Some("kms:Decrypt");
    // S3 decrypts nothing for a HEAD, unless that asks for the checksum.
    let of_head = decrypt.filter(|_| request.header("x-amz-checksum-mode").is_some());
    let (of_s3, of_kms) = match request.method.as_str() {
        "GET" => ("s3:GetObject", decrypt),
        "HEAD" => ("s3:GetObject", of_head),
        "PUT" => ("s3:PutObject", Some("kms:GenerateDataKey")),
        "DELETE" => ("s3:DeleteObject", None),
        _ => panic!("{what}"),
    };
    let object = format!("arn:aws:s3:::bucket/{}", request.key);
    let mut all = vec![(of_s3.to_owned(), object)];
    if let Some((action, key)) = of_kms.zip(key) {
        all.push((action.to_owned(), key.to_owned()));
    }
    all
}

#[test]
fn a_repository_in_an_encrypted_bucket_needs_exactly_the_policy_with_its_key() {
    let mut site = PolicySite::new();
    site.bucket_key = Some(BUCKET_KEY);
    site.ok(&["repository", "init", REPOSITORY]);
    let image = site.path("image.raw");
    let write = ["sync", &image, REPOSITORY, "--volume", "local"];
    let latest = format!("{REPOSITORY}#latest");
    let copy = site.path("copy.raw");
    let read = ["sync", &latest, &copy];
    let key = ["--bucket-kms", BUCKET_KEY];
    let with_key = |verb: &'static str| [&[verb][..], &BUCKET, &key].concat();
    let change = |content: &[u8]| std::fs::write(&image, content.repeat(BLOCK as usize)).unwrap();
    change(b"a");
    site.check(&with_key("repository-write"), |site| drop(site.ok(&write)));
    site.check(&with_key("repository-read"), |site| drop(site.ok(&read)));
    assert!(std::fs::read(&copy).unwrap() == std::fs::read(&image).unwrap());
    site.check_minimal(&with_key("repository-read"), &read);
    change(b"b");
    site.check_minimal(&with_key("repository-write"), &write);
    site.check(&with_key("repository"), |site| {
        site.ok(&["repository", "check", REPOSITORY]);
        let keep = ["--keep-last", "1", "--grace", "0s"];
        site.ok(&[&["repository", "prune", REPOSITORY][..], &keep].concat());
    });
    change(b"c");
    for (verb, command) in [
        ("repository-read", &read[..]),
        ("repository-write", &write),
        ("repository", &["repository", "check", REPOSITORY]),
    ] {
        let without = printed(&[&[verb][..], &BUCKET].concat());
        site.enforce_for_all(&without);
        let (code, said) = ends_within(LIMIT, &mut site.ebsfs(command));
        assert_eq!(code, 4, "{verb}: {said}");
    }
}

#[test]
fn the_policies_of_a_bucket_and_of_its_endpoint_allow_what_the_user_may_do() {
    let of_s3 = |policy: &Value| -> BTreeSet<Grant> {
        let all = pairs(policy).into_iter();
        all.filter(|pair| pair.0.starts_with("s3:")).collect()
    };
    for verb in ["repository-read", "repository-write", "repository", "sync"] {
        let with = |more: &[&str]| of_s3(&printed(&[&[verb][..], &BUCKET, more].concat()));
        let own = with(&[]);
        assert!(own.len() > 2, "{verb}: {own:?}");
        assert_eq!(with(&["--endpoint=s3"]), own, "{verb}");
        let of_bucket = with(&["--bucket-policy", "--account", "111122223333"]);
        assert_eq!(of_bucket, own, "{verb}");
    }
}
