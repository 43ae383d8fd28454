//! What all that is drawn on the whole terminal has in common.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Clear, Padding, Paragraph, Widget as _};

/// Colours that are read on dark and on light backgrounds.
pub(crate) const QUIET: Style = Style::new().fg(Color::DarkGray);
pub(crate) const BAR: Style = Style::new().fg(Color::White).bg(Color::Blue);

/// Both, and where they have no room together all of the one on the right.
pub(crate) fn draw_ends(left: Vec<Span<'_>>, right: Vec<Span<'_>>, style: Style, area: Rect, buffer: &mut Buffer) {
    let (left, right) = (Line::from(left), Line::from(right));
    let cells = |line: &Line<'_>| u16::try_from(line.width()).unwrap_or(u16::MAX);
    let right_width = cells(&right).min(area.width);
    let left_width = cells(&left).min(area.width - right_width);
    buffer.set_style(area, style);
    left.render(Rect { width: left_width, ..area }, buffer);
    right.render(Rect { x: area.right() - right_width, width: right_width, ..area }, buffer);
}

/// Lines in a frame, over what is there.
pub(crate) fn popup(title: &str, lines: Vec<Line<'_>>, area: Rect, buffer: &mut Buffer) {
    let block = Block::bordered().border_type(BorderType::Rounded).title(title).border_style(Color::Blue);
    Clear.render(area, buffer);
    Paragraph::new(lines).block(block.padding(Padding::horizontal(1))).render(area, buffer);
}

/// The keys and what they do, in the middle.
pub(crate) fn draw_help(help: &[&str], area: Rect, buffer: &mut Buffer) {
    let wanted = u16::try_from(help.len()).unwrap_or(u16::MAX).saturating_add(2);
    let (width, height) = (62.min(area.width), wanted.min(area.height));
    let area = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    popup(" keys ", help.iter().map(|line| Line::from(*line)).collect(), area, buffer);
}
