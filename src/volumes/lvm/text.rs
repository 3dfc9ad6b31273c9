//! The text of LVM metadata: sections, assignments, comments. The parser keeps a limit of depth and of values, so that no text takes
//! more than some MB or a deep stack.

/// Sections in sections, at most: a group has four levels.
const MOST_DEPTH: u32 = 8;
/// Values, keys and sections of a text, at most.
const MOST_VALUES: usize = 100_000;

/// A value of a section.
#[derive(Debug)]
enum LvmValue {
    Text(String),
    Number(u64),
    /// Texts and numbers.
    List(Vec<LvmValue>),
    Section(LvmSection),
}

/// A section: its keys and values, in their order.
#[derive(Debug, Default)]
pub(super) struct LvmSection(Vec<(String, LvmValue)>);

impl LvmSection {
    fn get(&self, key: &str) -> Option<&LvmValue> {
        let found = self.0.iter().find(|(known, _)| known == key);
        found.map(|(_, value)| value)
    }

    /// The sections in it.
    pub(super) fn sections(&self) -> impl Iterator<Item = (&str, &LvmSection)> {
        self.0.iter().filter_map(|(key, value)| match value {
            LvmValue::Section(section) => Some((key.as_str(), section)),
            _ => None,
        })
    }

    pub(super) fn section(&self, key: &str) -> Option<&LvmSection> {
        match self.get(key)? {
            LvmValue::Section(section) => Some(section),
            _ => None,
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            LvmValue::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            LvmValue::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The texts of a list.
    pub(super) fn texts(&self, key: &str) -> Vec<&str> {
        let Some(LvmValue::List(values)) = self.get(key) else {
            return Vec::new();
        };
        let texts = values.iter().filter_map(|value| match value {
            LvmValue::Text(text) => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    /// A list of a text and a number.
    pub(super) fn pair(&self, key: &str) -> Option<(&str, u64)> {
        match self.get(key)? {
            LvmValue::List(values) => match &values[..] {
                [LvmValue::Text(text), LvmValue::Number(number)] => Some((text, *number)),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The sections of a text; none if it breaks the syntax or a limit.
pub(super) fn parse(bytes: &[u8]) -> Option<LvmSection> {
    let mut reader = TextReader {
        rest: bytes,
        values: 0,
    };
    reader.section(0)
}

struct TextReader<'a> {
    rest: &'a [u8],
    values: usize,
}

impl TextReader<'_> {
    /// Assignments up to a closing brace, or at the outermost level to the end.
    fn section(&mut self, depth: u32) -> Option<LvmSection> {
        let mut section = LvmSection::default();
        loop {
            match self.next() {
                None => return (depth == 0).then_some(section),
                Some(b'}') => {
                    self.skip(1);
                    return (depth > 0).then_some(section);
                }
                Some(_) => {}
            }
            let key = self.key()?;
            self.count()?;
            let value = match self.next()? {
                b'{' if depth < MOST_DEPTH => {
                    self.skip(1);
                    LvmValue::Section(self.section(depth + 1)?)
                }
                b'=' => {
                    self.skip(1);
                    self.value()?
                }
                _ => return None,
            };
            section.0.push((key, value));
        }
    }

    fn value(&mut self) -> Option<LvmValue> {
        if self.next()? != b'[' {
            return self.scalar();
        }
        self.skip(1);
        let mut values = Vec::new();
        loop {
            match self.next()? {
                b']' => {
                    self.skip(1);
                    return Some(LvmValue::List(values));
                }
                b',' => self.skip(1),
                _ => {
                    self.count()?;
                    values.push(self.scalar()?);
                }
            }
        }
    }

    /// A text or a number. A number that is negative or no integer is kept as a text.
    fn scalar(&mut self) -> Option<LvmValue> {
        if self.next()? == b'"' {
            self.skip(1);
            return self.quoted().map(LvmValue::Text);
        }
        let word = self.word(|byte| byte.is_ascii_alphanumeric() || b"+-._@".contains(byte))?;
        Some(match word.parse() {
            Ok(number) => LvmValue::Number(number),
            Err(_) => LvmValue::Text(word),
        })
    }

    /// The rest of a text in quotation marks, where a backslash quotes the byte behind it.
    fn quoted(&mut self) -> Option<String> {
        let mut text = Vec::new();
        loop {
            let byte = *self.rest.first()?;
            self.skip(1);
            match byte {
                b'"' => return Some(String::from_utf8_lossy(&text).into_owned()),
                b'\\' => {
                    text.push(*self.rest.first()?);
                    self.skip(1);
                }
                byte => text.push(byte),
            }
        }
    }

    fn key(&mut self) -> Option<String> {
        match self.next()? {
            b'"' => {
                self.skip(1);
                self.quoted()
            }
            _ => self.word(|byte| byte.is_ascii_alphanumeric() || b"+-._/@:".contains(byte)),
        }
    }

    fn word(&mut self, is_in_it: impl Fn(&u8) -> bool) -> Option<String> {
        let len = self.rest.iter().take_while(|byte| is_in_it(byte)).count();
        let word = String::from_utf8_lossy(self.rest.get(..len)?).into_owned();
        self.skip(len);
        (len > 0).then_some(word)
    }

    /// The next byte that is neither blank nor in a comment.
    fn next(&mut self) -> Option<u8> {
        loop {
            match *self.rest.first()? {
                b'#' => {
                    let line = self.rest.iter().take_while(|byte| **byte != b'\n').count();
                    self.skip(line);
                }
                byte if byte.is_ascii_whitespace() || byte == 0 => self.skip(1),
                byte => return Some(byte),
            }
        }
    }

    fn skip(&mut self, len: usize) {
        self.rest = self.rest.get(len..).unwrap_or_default();
    }

    /// Counts a value; none beyond the limit.
    fn count(&mut self) -> Option<()> {
        self.values += 1;
        (self.values <= MOST_VALUES).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_lists_texts_and_comments_are_read() {
        let text = b"vg { # a group\nid = \"a\\\"b\"\nflags = []\nextent_size = 8192\nfloat = 0.5\n\
            lv { stripes = [\"pv0\", 7]\nstatus = [\"READ\", \"VISIBLE\"] } }\n# end\ncontents = \"x\"\n\0";
        let root = parse(text).unwrap();
        let (name, group) = root.sections().next().unwrap();
        assert_eq!(name, "vg");
        assert_eq!(group.text("id"), Some("a\"b"));
        assert_eq!(group.number("extent_size"), Some(8192));
        assert_eq!(
            (group.number("float"), group.text("float")),
            (None, Some("0.5"))
        );
        let volume = group.section("lv").unwrap();
        assert_eq!(volume.pair("stripes"), Some(("pv0", 7)));
        assert_eq!(volume.texts("status"), ["READ", "VISIBLE"]);
        assert_eq!(group.pair("flags"), None);
    }

    #[test]
    fn a_text_that_breaks_the_syntax_or_a_limit_is_refused() {
        let deep = "a { ".repeat(1_000_000);
        let many = "a = 1\n".repeat(MOST_VALUES + 1);
        let list = format!("a = [{}]", "1,".repeat(MOST_VALUES + 1));
        for wrong in [
            "}", "a", "a =", "a = \"", "a = \"\\", "a {", "a = [1", "= 1", "a = {", "a b", &deep,
            &many, &list,
        ] {
            let shown = &wrong[..wrong.len().min(20)];
            assert!(parse(wrong.as_bytes()).is_none(), "{shown}");
        }
    }
}
