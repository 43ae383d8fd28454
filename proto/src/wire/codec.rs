//! Bounded lines out of a stream of bytes.

use bytes::{Buf as _, Bytes, BytesMut};

use super::error::WireError;

/// Cuts a byte stream into lines.
///
/// Read into [`buffer_mut`](Self::buffer_mut), then call [`next_line`](Self::next_line) until it returns `None`. Holds at
/// most one incomplete line, which is at most the limit long, plus what was read in one go.
#[derive(Debug)]
pub struct LineDecoder {
    buffer: BytesMut,
    /// How much of `buffer` is known to hold no `\n`, so that a line that trickles in is scanned once, not once a byte.
    scanned: usize,
    max_line: usize,
}

impl LineDecoder {
    /// A decoder for lines of at most `max_line` bytes, line ending not counted.
    pub fn new(max_line: usize) -> Self {
        Self { buffer: BytesMut::new(), scanned: 0, max_line }
    }

    /// Where to append what the socket delivered.
    pub fn buffer_mut(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// How many bytes of an incomplete line are held.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// The next complete line without its `\n` or `\r\n`, or `None` until more has been read.
    ///
    /// # Errors
    /// [`WireError::TooLong`] as soon as the line must exceed the limit, whether or not its end was seen. The stream
    /// cannot be used after that.
    pub fn next_line(&mut self) -> Result<Option<Bytes>, WireError> {
        let unscanned = self.buffer.get(self.scanned..).unwrap_or_default();
        let Some(found) = memchr::memchr(b'\n', unscanned) else {
            self.scanned = self.buffer.len();
            let ending = usize::from(self.buffer.last() == Some(&b'\r'));
            return if self.buffer.len() - ending > self.max_line { Err(self.too_long()) } else { Ok(None) };
        };
        let mut line = self.buffer.split_to(self.scanned + found).freeze();
        self.buffer.advance(1);
        self.scanned = 0;
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        if line.len() > self.max_line { Err(self.too_long()) } else { Ok(Some(line)) }
    }

    fn too_long(&self) -> WireError {
        WireError::TooLong { limit: self.max_line }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(decoder: &mut LineDecoder, input: &[u8]) -> Result<Vec<Bytes>, WireError> {
        decoder.buffer_mut().extend_from_slice(input);
        let mut lines = Vec::new();
        while let Some(line) = decoder.next_line()? {
            lines.push(line);
        }
        Ok(lines)
    }

    #[test]
    fn both_line_endings_are_taken_and_not_part_of_the_line() {
        let mut decoder = LineDecoder::new(100);
        assert_eq!(lines(&mut decoder, b"one\ntwo\r\n\n\r\n\rthree\r").unwrap(), ["one", "two", "", ""]);
        assert_eq!(decoder.pending(), 7);
        assert_eq!(lines(&mut decoder, b"\n").unwrap(), ["\rthree"]);
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_taken_with_either_ending() {
        for input in ["12345\n", "12345\r\n"] {
            assert_eq!(lines(&mut LineDecoder::new(5), input.as_bytes()).unwrap(), ["12345"]);
        }
        let mut decoder = LineDecoder::new(5);
        assert!(lines(&mut decoder, b"12345\r").unwrap().is_empty());
        assert_eq!(lines(&mut decoder, b"\n").unwrap(), ["12345"]);
    }

    #[test]
    fn a_line_over_the_limit_is_refused_before_its_end_is_seen() {
        for input in ["123456", "123456\n", "12345\r\r\n", "123456\r\n"] {
            let refused = lines(&mut LineDecoder::new(5), input.as_bytes());
            assert_eq!(refused, Err(WireError::TooLong { limit: 5 }), "{input:?}");
        }
    }

    proptest! {
        #[test]
        fn the_cut_of_the_stream_does_not_matter(
            texts in prop::collection::vec("[a-z{}\"]{0,12}", 0..20),
            cuts in prop::collection::vec(1_usize..9, 1..50),
        ) {
            let stream: String = texts.iter().map(|text| format!("{text}\n")).collect();
            let mut decoder = LineDecoder::new(12);
            let mut found = Vec::new();
            let mut rest = stream.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                found.extend(lines(&mut decoder, now).unwrap());
                rest = later;
            }
            prop_assert_eq!(found, texts);
            prop_assert_eq!(decoder.pending(), 0);
        }
    }
}
