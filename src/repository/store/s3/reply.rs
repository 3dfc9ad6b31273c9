//! Whether the reply to a list request is a listing. The SDK accepts a document without its end, which would count as a whole
//! listing; it also hides the text of a document that it refuses.

/// The fault of a listing whose end is missing: the connection can be the reason.
pub(super) const BREAKS_OFF: &str = "it breaks off";

/// The fault of a body that is no whole `ListBucketResult`.
pub(super) fn listing_fault(body: &[u8]) -> Option<String> {
    let text = match std::str::from_utf8(body) {
        Ok(text) => text.trim_start_matches('\u{feff}').trim(),
        Err(_) => return Some("it is not UTF-8".into()),
    };
    if text.is_empty() {
        return Some("it is empty".into());
    }
    let Some(root) = root_name(text) else {
        return Some(format!("it is no XML: {}", beginning(text)));
    };
    if root.rsplit(':').next() != Some("ListBucketResult") {
        return Some(format!("it is <{root}>: {}", beginning(text)));
    }
    let is_whole = text.ends_with(&format!("</{root}>"));
    (!is_whole).then(|| BREAKS_OFF.to_owned())
}

/// The name of the document's first element.
fn root_name(mut text: &str) -> Option<&str> {
    loop {
        text = text.trim_start();
        let rest = text.strip_prefix('<')?;
        let end = match rest.as_bytes().first()? {
            b'?' => "?>",
            b'!' if rest.starts_with("!--") => "-->",
            b'!' => ">",
            _ => {
                let is_end = |c: char| c.is_whitespace() || c == '>' || c == '/';
                return rest.split(is_end).next().filter(|name| !name.is_empty());
            }
        };
        text = rest.split_once(end)?.1;
    }
}

/// The first characters, for people.
fn beginning(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_list_bucket_result_is_a_listing() {
        for whole in [
            "<ListBucketResult></ListBucketResult>",
            "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"x\"><Name>b</Name></ListBucketResult>\n",
            "<!-- c --><s3:ListBucketResult xmlns:s3=\"x\"></s3:ListBucketResult>",
        ] {
            assert_eq!(listing_fault(whole.as_bytes()), None, "{whole}");
        }
        for (wrong, why) in [
            ("", "empty"),
            (" \n", "empty"),
            ("{}", "no XML"),
            ("<!DOCTYPE html><html><body>hello</body></html>", "<html>"),
            (
                "<?xml version=\"1.0\"?><Error><Code>InternalError</Code></Error>",
                "<Error>",
            ),
            ("<ListBucketResult><Contents>", "breaks off"),
            ("<ListBucketResult/>", "breaks off"),
            ("<", "no XML"),
            ("<?xml", "no XML"),
        ] {
            let fault = listing_fault(wrong.as_bytes()).unwrap();
            assert!(fault.contains(why), "{wrong}: {fault}");
        }
        assert!(listing_fault(b"\xff").is_some());
    }
}
