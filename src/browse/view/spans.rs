//! Pages of spans, as the parser sends them: what is checked, and how much they are.

use super::super::wire::BrokenFrame;
use super::super::{FsData, FsSpan, SpanPlace};

/// The bytes of the disk in the pages of spans that were requested in order.
#[derive(Debug, Default)]
pub(super) struct FoundData {
    /// The file, and the byte of it where the next page begins.
    next: Option<(FsData, u64)>,
    bytes: u64,
}

impl FoundData {
    /// Adds a page; one of another file or place is the first. Returns the bytes so far.
    pub(super) fn add(&mut self, data: &FsData, offset: u64, spans: &[FsSpan]) -> u64 {
        let is_next = matches!(&self.next, Some((known, next)) if known == data && *next == offset);
        let on_disk = spans
            .iter()
            .filter(|span| matches!(span.place, SpanPlace::Image(_)));
        let here = on_disk.fold(0_u64, |sum, span| sum.saturating_add(span.len));
        self.bytes = if is_next {
            self.bytes.saturating_add(here)
        } else {
            here
        };
        let end = spans
            .last()
            .map_or(offset, |last| last.offset.saturating_add(last.len));
        self.next = Some((data.clone(), end));
        self.bytes
    }
}

/// Checks that spans follow each other from `offset` on, within the file and the image. Returns where they end.
pub(super) fn check_spans(
    spans: &[FsSpan],
    offset: u64,
    size: u64,
    image: u64,
) -> std::result::Result<u64, BrokenFrame> {
    let mut at = offset;
    for span in spans {
        let end = span.offset.checked_add(span.len);
        let end = end.filter(|end| span.offset == at && *end > at && *end <= size);
        let is_inside = match span.place {
            SpanPlace::Image(place) => place.checked_add(span.len).is_some_and(|end| end <= image),
            SpanPlace::Hole | SpanPlace::Parser => true,
        };
        match end {
            Some(end) if is_inside => at = end,
            _ => return Err(BrokenFrame("bytes of a file are at impossible places")),
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_in_order_are_counted_together_and_holes_are_not() {
        let data = |file| FsData {
            file,
            stream: Vec::new(),
            size: 100,
        };
        let part = |offset, len, place| FsSpan { offset, len, place };
        use SpanPlace::{Hole, Image, Parser};
        let mut found = FoundData::default();
        let first = [part(0, 4, Image(0)), part(4, 10, Hole), part(14, 3, Parser)];
        assert_eq!(found.add(&data(1), 0, &first), 4);
        assert_eq!(found.add(&data(1), 17, &[part(17, 5, Image(0))]), 9);
        // Another place, another file.
        assert_eq!(found.add(&data(1), 17, &[part(17, 5, Image(0))]), 5);
        assert_eq!(found.add(&data(2), 22, &[part(22, 6, Image(0))]), 6);
        assert_eq!(
            found.add(&data(2), 28, &[part(28, u64::MAX, Image(0))]),
            u64::MAX
        );
    }

    #[test]
    fn spans_follow_each_other_within_the_file_and_the_image() {
        let part = |offset, len, place| FsSpan { offset, len, place };
        use SpanPlace::{Hole, Image, Parser};
        for (spans, offset, expected) in [
            (vec![part(0, 4, Image(96)), part(4, 6, Hole)], 0, Ok(10)),
            (vec![part(2, 8, Parser)], 2, Ok(10)),
            (vec![part(0, 4, Image(97))], 0, Err(())),
            (vec![part(0, 4, Image(u64::MAX))], 0, Err(())),
            (vec![part(0, 11, Hole)], 0, Err(())),
            (vec![part(1, 4, Hole)], 0, Err(())),
            (vec![part(0, 0, Hole)], 0, Err(())),
            (vec![part(0, 4, Hole), part(5, 1, Hole)], 0, Err(())),
            (vec![part(0, u64::MAX, Hole)], 0, Err(())),
            (vec![], 3, Ok(3)),
        ] {
            let found = check_spans(&spans, offset, 10, 100).map_err(|_| ());
            assert_eq!(found, expected, "{spans:?}");
        }
    }
}
