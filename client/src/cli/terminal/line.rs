//! The line that is being typed.

use std::mem;

/// Text with a cursor in it, at most so many bytes long.
#[derive(Debug)]
pub(crate) struct Line {
    text: String,
    /// A position between two characters, in bytes.
    cursor: usize,
    max_bytes: usize,
}

impl Line {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { text: String::new(), cursor: 0, max_bytes }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// What stands before the cursor, and what behind it.
    pub(crate) fn halves(&self) -> (&str, &str) {
        self.text.split_at_checked(self.cursor).unwrap_or((&self.text, ""))
    }

    /// Puts text where the cursor is, all of it or, where there is no room, nothing; says which. Line breaks become spaces,
    /// which mean the same in JSON.
    pub(crate) fn insert(&mut self, text: &str) -> bool {
        if self.text.len() + text.len() > self.max_bytes {
            return false;
        }
        let text = text.replace(['\n', '\r', '\t'], " ");
        self.text.insert_str(self.cursor, &text);
        self.cursor += text.len();
        true
    }

    /// Takes the whole text out.
    pub(crate) fn take(&mut self) -> String {
        self.cursor = 0;
        mem::take(&mut self.text)
    }

    /// Replaces the whole text. The cursor is behind it.
    pub(crate) fn set(&mut self, text: String) {
        self.cursor = text.len();
        self.text = text;
    }

    pub(crate) fn left(&mut self) {
        self.cursor -= self.before();
    }

    pub(crate) fn right(&mut self) {
        self.cursor += self.behind();
    }

    pub(crate) fn home(&mut self) {
        self.cursor = 0;
    }

    pub(crate) fn end(&mut self) {
        self.cursor = self.text.len();
    }

    pub(crate) fn delete_before(&mut self) {
        let length = self.before();
        self.cut(self.cursor - length, self.cursor);
    }

    pub(crate) fn delete_behind(&mut self) {
        self.cut(self.cursor, self.cursor + self.behind());
    }

    /// Deletes the word before the cursor, and the spaces between.
    pub(crate) fn delete_word(&mut self) {
        let (before, _) = self.halves();
        let kept = before.trim_end().rfind(char::is_whitespace).map_or(0, |space| {
            space + before.get(space..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8)
        });
        self.cut(kept, self.cursor);
    }

    pub(crate) fn delete_to_start(&mut self) {
        self.cut(0, self.cursor);
    }

    pub(crate) fn delete_to_end(&mut self) {
        self.text.truncate(self.cursor);
    }

    fn cut(&mut self, from: usize, to: usize) {
        self.text.replace_range(from..to, "");
        self.cursor = from;
    }

    fn before(&self) -> usize {
        self.halves().0.chars().next_back().map_or(0, char::len_utf8)
    }

    fn behind(&self) -> usize {
        self.halves().1.chars().next().map_or(0, char::len_utf8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        let mut line = Line::new(20);
        line.set(text.into());
        line
    }

    #[test]
    fn editing_keeps_to_whole_characters() {
        let mut line = line("aé日");
        line.left();
        line.delete_before();
        assert_eq!(line.halves(), ("a", "日"));
        line.delete_behind();
        line.delete_behind();
        line.home();
        line.delete_before();
        line.left();
        line.insert("ü\n");
        line.end();
        line.right();
        assert_eq!(line.halves(), ("ü a", ""));
    }

    #[test]
    fn words_and_ends_can_be_deleted() {
        let mut it = line("one two\u{3000}é ");
        it.delete_word();
        assert_eq!(it.text(), "one two\u{3000}");
        it.delete_word();
        assert_eq!(it.text(), "one ");
        it.delete_word();
        it.delete_word();
        assert!(it.is_empty());
        let mut it = line("abcd");
        it.left();
        it.left();
        it.delete_to_end();
        assert_eq!(it.text(), "ab");
        it.left();
        it.delete_to_start();
        assert_eq!(it.take(), "b");
    }

    #[test]
    fn what_has_no_room_is_not_taken() {
        let mut line = line("0123456789");
        assert!(!line.insert("0123456789!"));
        assert!(line.insert("0123456789"));
        assert_eq!(line.text().len(), 20);
    }
}
