//! Activities from standard input, one per line.

use arborcast_client::{Activity, Options};
use arborcast_proto::wire::{LineDecoder, WireError};
use tokio::io::{AsyncRead, AsyncReadExt as _, Stdin};

use super::failure::Failure;

/// The least room for one read.
const READ_SIZE: usize = 64 << 10;

/// A line that is not blank.
#[derive(Debug)]
pub(crate) struct Line {
    /// Counted from 1, blank lines included.
    pub(crate) number: u64,
    /// What stands there, or what it is instead: "not JSON".
    pub(crate) activity: Result<Activity, String>,
}

/// The lines of a source. A last line without its `\n` is one as well. A line that is too long ends it, since there is
/// no telling what it was.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    source: R,
    decoder: LineDecoder,
    number: u64,
    is_at_end: bool,
}

impl Lines<Stdin> {
    pub(crate) fn of_stdin() -> Self {
        Self::new(tokio::io::stdin(), Options::default().max_line)
    }
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(source: R, max_line: usize) -> Self {
        Self { source, decoder: LineDecoder::new(max_line), number: 0, is_at_end: false }
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Line>, Failure> {
        loop {
            let text = match self.decoder.next_line() {
                Ok(Some(text)) => text,
                Ok(None) if self.is_at_end && self.decoder.pending() == 0 => return Ok(None),
                Ok(None) if self.is_at_end => self.decoder.buffer_mut().split().freeze(),
                Ok(None) => {
                    self.decoder.buffer_mut().reserve(READ_SIZE);
                    let read = self.source.read_buf(self.decoder.buffer_mut()).await.map_err(Failure::Input)?;
                    self.is_at_end = read == 0;
                    continue;
                }
                Err(error) => {
                    self.decoder = LineDecoder::new(0);
                    self.is_at_end = true;
                    return Ok(Some(Line { number: self.number + 1, activity: Err(what_instead(&error)) }));
                }
            };
            self.number += 1;
            if !text.trim_ascii().is_empty() {
                let text = str::from_utf8(&text).map_err(|_| WireError::NotUtf8);
                let activity = text.and_then(Activity::parse).map_err(|error| what_instead(&error));
                return Ok(Some(Line { number: self.number, activity }));
            }
        }
    }
}

/// What a text is that is no activity, to be said after "line 3 is".
pub(crate) fn what_instead(error: &WireError) -> String {
    match error {
        WireError::Empty => "empty".into(),
        WireError::NotAnObject => "not a JSON object on one line".into(),
        WireError::NotJson(cause) => format!("not JSON ({})", cause.replace(" at line 1 column", " at column")),
        WireError::NotUtf8 => "not UTF-8".into(),
        WireError::TooDeep => "nested too deep".into(),
        WireError::TooLong { limit } => format!("longer than {limit} bytes"),
        other => format!("not an activity ({other})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(input: &[u8], max_line: usize) -> Vec<String> {
        let mut lines = Lines::new(input, max_line);
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            found.push(format!(
                "{} {}",
                line.number,
                line.activity.map_or_else(|e| e, |activity| activity.to_string())
            ));
        }
        found
    }

    #[tokio::test]
    async fn lines_are_numbered_as_an_editor_numbers_them() {
        assert_eq!(
            read(b"{\"a\":1}\r\n\n  \n[]\n{\"b\":2}", 100).await,
            ["1 {\"a\":1}", "4 not a JSON object on one line", "5 {\"b\":2}"]
        );
    }

    #[tokio::test]
    async fn a_bad_line_is_told_by_what_it_is() {
        let found = read(b"hello\n{\"a\":\xff}\n{\"a\"}\n", 100).await;
        assert_eq!(
            found,
            ["1 not JSON (expected value at column 1)", "2 not UTF-8", "3 not JSON (expected `:` at column 5)"]
        );
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_the_last() {
        assert_eq!(read(b"{}\n{\"a\":12345}\n{}\n", 10).await, ["1 {}", "2 longer than 10 bytes"]);
    }
}
