//! What programs that take the whole screen need: the screen, given back however they end, and what may stand on it.
//!
//! - `screen`: the terminal, its keys, and the signals.
//! - Pure: `line` (what is being typed), `paint` (bars and frames), `text` (whatever comes from outside as it may be shown).

pub(crate) mod line;
pub(crate) mod paint;
mod screen;
pub(crate) mod text;

pub(crate) use screen::{Input, Screen};
