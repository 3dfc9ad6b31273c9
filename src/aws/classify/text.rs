//! A server's message, made safe for a terminal and a log: tokens blanked, control characters escaped, length limited.

use std::error::Error as StdError;

/// The most characters of a server's message that are shown. An encoded authorization failure message, which its owner can
/// decode, has up to some thousands.
const MAX_MESSAGE: usize = 4000;
/// Longer words can be block or page tokens: those of EBS have 80 and more, ids, names and digests at most 64.
const LONGEST_WORD: usize = 64;
/// Behind a label shorter words can be tokens too; none of a message's own words has as many letters.
const LONGEST_AFTER_LABEL: usize = 20;
/// The text before a word that is no token, even a long one.
const ENCODED: &str = "ncoded authorization failure message:";

/// A server's message without what could be a token, safe to print.
pub(crate) fn presentable(message: &str) -> String {
    printable(&redact(message), MAX_MESSAGE)
}

/// Text in which control characters and what is not ASCII are escaped, cut at `most` characters.
pub(in crate::aws) fn printable(text: &str, most: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(most));
    for c in text.chars() {
        if shown.len() >= most {
            shown.push_str("...");
            break;
        }
        match c {
            ' '..='~' => shown.push(c),
            '\n' | '\r' | '\t' => shown.push(' '),
            c => shown.extend(c.escape_default()),
        }
    }
    shown
}

/// The message without what could be a token: validation errors quote the value that they refuse.
fn redact(message: &str) -> String {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "+/=_-%".contains(c);
    let mut text = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(start) = rest.find(is_token) {
        let (before, word) = rest.split_at(start);
        let end = word.find(|c| !is_token(c)).unwrap_or(word.len());
        let (word, after) = word.split_at(end);
        text.push_str(before);
        let is_secret = match word.len() {
            ..=LONGEST_WORD => word.len() > LONGEST_AFTER_LABEL && is_token_label(&text),
            _ => !is_arn_part(&text, word) && !text.trim_end().ends_with(ENCODED),
        };
        text.push_str(if is_secret { "***" } else { word });
        rest = after;
    }
    text + rest
}

/// Whether `text` announces a token as the next word: `token: `, `"blockToken":"`.
fn is_token_label(text: &str) -> bool {
    let text = text.trim_end_matches([' ', '"', '\'']);
    let label = text
        .strip_suffix(':')
        .map(|label| label.trim_end_matches(['"', '\'']));
    label.is_some_and(|label| label.to_ascii_lowercase().ends_with("token"))
}

/// Whether a word is a part of an ARN after a colon: a role's path and session name.
fn is_arn_part(text: &str, word: &str) -> bool {
    let before = text.rsplit(char::is_whitespace).next().unwrap_or_default();
    let is_in_arn = before.ends_with(':') && before.contains("arn:");
    is_in_arn && word.contains('/') && !word.contains(['%', '+', '='])
}

/// An error and its causes on one line.
pub(crate) fn causes_of(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Errors of the SDK repeat their cause in their own text.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    printable(&text, MAX_MESSAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_a_message_quotes_is_not_repeated() {
        let token = "AlMB_Ha-".repeat(12);
        let message = redact(&format!(
            "Value '{token}' at 'blockToken' of snap-0123456789abcdef0"
        ));
        assert_eq!(
            message,
            "Value '***' at 'blockToken' of snap-0123456789abcdef0"
        );
        let escaped = format!("blockToken={}", "AlMB%2FHa%2B".repeat(12));
        assert_eq!(redact(&escaped), "***");
        let slashed = format!("token: {}", "AlMB/Ha+".repeat(12));
        assert_eq!(redact(&slashed), "token: ***");
    }

    #[test]
    fn a_token_behind_a_colon_is_not_repeated() {
        let long = "AlMB/Ha-".repeat(12);
        let short = "AlMB/Ha-".repeat(3);
        for (before, after) in [
            ("Token:", ""),
            ("token: ", ""),
            ("the blockToken:", " is bad"),
            ("{\"pageToken\":\"", "\"}"),
            ("{\"pageToken\": \"", "\"}"),
            ("X-Amz-Security-Token: ", ""),
        ] {
            for token in [&long, &short] {
                let message = format!("{before}{token}{after}");
                assert_eq!(redact(&message), format!("{before}***{after}"), "{message}");
            }
        }
        let anything = format!("value:{long}");
        assert_eq!(redact(&anything), "value:***");
        let plain = "Invalid token: expired at 2026-06-30T12:00:00Z";
        assert_eq!(redact(plain), plain);
    }

    #[test]
    fn ids_and_encoded_messages_are_kept() {
        let arn = format!(
            "User: arn:aws:sts::111122223333:assumed-role/{}/session is not authorized",
            "long-role-name-".repeat(5)
        );
        assert_eq!(redact(&arn), arn);
        let encoded = format!(
            "You are not authorized. Encoded authorization failure message: {} (code)",
            "aB3_-".repeat(100)
        );
        assert_eq!(redact(&encoded), encoded);
    }

    #[test]
    fn a_message_cannot_command_a_terminal() {
        assert_eq!(
            presentable("a\u{1b}[2Jb\r\nc\u{9b}\u{e9}"),
            "a\\u{1b}[2Jb  c\\u{9b}\\u{e9}"
        );
        let long = presentable(&"word ".repeat(10_000));
        assert!(long.len() < MAX_MESSAGE + 20 && long.ends_with("..."));
    }
}
