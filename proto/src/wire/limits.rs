//! The numbers that bound what a line may be.

/// Longest line in bytes, without its line ending, unless a server is configured otherwise (protocol, Transport).
pub const DEFAULT_MAX_LINE: usize = 1 << 20;

/// Smallest line limit that can be configured: every message that is not an activity must fit with room to spare.
pub const MIN_MAX_LINE: usize = 4 << 10;

/// Deepest nesting of objects and arrays, the message itself included (protocol, Transport: "nesting too deep").
///
/// Recursive JSON parsers give up near this depth, so passing on anything deeper would break other people's clients.
pub const MAX_DEPTH: usize = 127;

/// Longest piece of a peer's own text that is quoted back in an `info`, in characters.
pub const MAX_QUOTE: usize = 128;

/// Shortens what a peer sent to [`MAX_QUOTE`] characters, so that an answer never outgrows the line limit.
pub fn quote(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTE) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_is_cut_at_a_character_and_never_inside_one() {
        assert_eq!(quote("aaron"), "aaron");
        let long = "é".repeat(MAX_QUOTE + 1);
        assert_eq!(quote(&long), format!("{}...", "é".repeat(MAX_QUOTE)));
        assert_eq!(quote(&"é".repeat(MAX_QUOTE)), "é".repeat(MAX_QUOTE));
    }
}
