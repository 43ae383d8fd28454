//! Text from outside as it may stand on a terminal: nothing in it is an instruction to the terminal, nothing turns the
//! writing direction, and its width is known.

use std::time::{Duration, SystemTime};

use unicode_width::UnicodeWidthChar as _;

/// Stands for what can't be shown.
const REPLACEMENT: char = '\u{fffd}';

/// Stands for what had no room.
pub(crate) const CUT: char = '…';

/// How many characters without a width of their own, accents and the like, may stand on one that has.
const MAX_MARKS: usize = 2;

/// The text in at most so many cells; where that cuts it, the last of them holds [`CUT`].
pub(crate) fn shown(text: &str, cells: usize) -> String {
    let mut rows = wrapped(text, cells, 2);
    let mut row = if rows.is_empty() { String::new() } else { rows.swap_remove(0) };
    // Nothing has room where the first character has none.
    let is_cut = !rows.is_empty() || (row.is_empty() && !text.is_empty());
    if is_cut {
        // Room for the sign, which is one cell wide; a wide character gives up both of its own.
        while width(&row) + 1 > cells && row.pop().is_some() {}
        if cells > 0 {
            row.push(CUT);
        }
    }
    row
}

/// The first so many rows of the text, each of at most so many cells. What is behind them is not looked at.
pub(crate) fn wrapped(text: &str, cells: usize, rows: usize) -> Vec<String> {
    let mut done = Vec::new();
    let (mut row, mut used, mut marks) = (String::new(), 0, MAX_MARKS);
    for character in text.chars().filter_map(visible) {
        let wide = cells_of(character);
        if wide == 0 {
            marks += 1;
            if marks <= MAX_MARKS {
                row.push(character);
            }
            continue;
        }
        marks = 0;
        if used + wide > cells {
            done.push(std::mem::take(&mut row));
            used = 0;
            if done.len() >= rows || wide > cells {
                return done;
            }
        }
        row.push(character);
        used += wide;
    }
    if !row.is_empty() && done.len() < rows {
        done.push(row);
    }
    done
}

/// The end of the text in at most so many cells, without characters that have no width.
pub(crate) fn tail(text: &str, cells: usize) -> String {
    let mut used = 0;
    let fits = |character: &char| {
        used += cells_of(*character);
        used <= cells
    };
    let from_the_end = text.chars().rev().filter_map(visible).filter(|character| cells_of(*character) > 0);
    let characters: Vec<char> = from_the_end.take_while(fits).collect();
    characters.into_iter().rev().collect()
}

/// How many cells a text takes that [`shown`] or [`wrapped`] made.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(cells_of).sum()
}

fn cells_of(character: char) -> usize {
    character.width().unwrap_or(0)
}

/// What is shown for a character; nothing for those that only join or vary their neighbours.
fn visible(character: char) -> Option<char> {
    match character {
        '\u{0}'..='\u{1f}' => char::from_u32(0x2400 + u32::from(character)),
        '\u{7f}' => Some('\u{2421}'),
        '\u{200c}' | '\u{200d}' | '\u{fe00}'..='\u{fe0f}' => None,
        // C1 controls, and what is invisible, breaks lines or turns the direction of what follows.
        '\u{80}'..='\u{9f}'
        | '\u{ad}'
        | '\u{61c}'
        | '\u{115f}'..='\u{1160}'
        | '\u{180e}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{3164}'
        | '\u{feff}'
        | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}' => Some(REPLACEMENT),
        other => Some(other),
    }
}

/// The time of day in UTC, as `12:03:44`.
pub(crate) fn clock(at: SystemTime) -> String {
    let seconds = since_epoch(at).as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// A number in five cells at most: `0`, `0.3`, `12`, `1.2k`, `3.4M`.
pub(crate) fn number(value: f64) -> String {
    const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    if !value.is_finite() {
        return "?".into();
    }
    let (mut value, mut unit) = (value, UNITS.iter());
    let mut name = unit.next();
    while value.abs() >= 999.5
        && let Some(next) = unit.next()
    {
        value /= 1000.0;
        name = Some(next);
    }
    let name = name.copied().unwrap_or_default();
    let has_fraction = value.abs() < 9.95 && (!name.is_empty() || value.fract() != 0.0);
    if has_fraction { format!("{value:.1}{name}") } else { format!("{value:.0}{name}") }
}

/// `1 node`, `2 nodes`.
pub(crate) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_characters_are_pictures_of_themselves() {
        assert_eq!(shown("a\x1b[31mb\x07\x7f\n\u{9b}2J", 40), "a␛[31mb␇␡␊\u{fffd}2J");
    }

    #[test]
    fn what_turns_the_direction_or_hides_is_replaced() {
        assert_eq!(shown("a\u{202e}b\u{200b}c\u{2028}d", 40), "a\u{fffd}b\u{fffd}c\u{fffd}d");
    }

    #[test]
    fn what_is_too_long_ends_in_a_sign() {
        for (text, cells, expected) in [
            ("hello", 5, "hello"),
            ("hello!", 5, "hell…"),
            ("日本語", 6, "日本語"),
            ("日本語", 5, "日本…"),
            ("日本語", 4, "日…"),
            ("日", 1, "…"),
            ("x", 0, ""),
            ("", 3, ""),
        ] {
            assert_eq!(shown(text, cells), expected, "{text} in {cells}");
        }
    }

    #[test]
    fn towers_of_accents_are_lopped() {
        let tower = format!("a{}b", "\u{301}".repeat(1000));
        assert_eq!(shown(&tower, 10), "a\u{301}\u{301}b");
        assert_eq!(shown("\u{301}a", 10), "a", "an accent needs something to stand on");
    }

    #[test]
    fn long_texts_are_wrapped() {
        assert_eq!(wrapped("abcdefgh", 3, 9), ["abc", "def", "gh"]);
        assert_eq!(wrapped("abcdefgh", 3, 2), ["abc", "def"]);
        assert_eq!(wrapped("a日本", 2, 9), ["a", "日", "本"]);
    }

    #[test]
    fn a_tail_is_what_fits_from_the_end() {
        assert_eq!((tail("ab日", 3), tail("ab日", 2), tail("ab日", 1)), ("b日".into(), "日".into(), String::new()));
    }

    #[test]
    fn times_and_numbers_are_short() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(86_400_000 + 3_723_045);
        assert_eq!(clock(at), "01:02:03");
        for (value, expected) in [
            (0.0, "0"),
            (0.34, "0.3"),
            (12.4, "12"),
            (999.6, "1.0k"),
            (1234.0, "1.2k"),
            (56_789.0, "57k"),
            (3.4e6, "3.4M"),
            (f64::NAN, "?"),
        ] {
            assert_eq!(number(value), expected, "{value}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_harmless_and_fits(text in any::<String>(), cells in 0_usize..50) {
            let one = shown(&text, cells);
            prop_assert!(width(&one) <= cells, "{one:?}");
            prop_assert!(!one.contains(char::is_control), "{one:?}");
            for row in wrapped(&text, cells, 5) {
                prop_assert!(width(&row) <= cells && !row.contains(char::is_control), "{row:?}");
            }
        }
    }
}
