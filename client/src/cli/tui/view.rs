//! How the model of `arborcast tui` looks.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Position, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Widget as _};

use super::super::terminal::line;
use super::super::terminal::paint::{BAR, QUIET, draw_ends, draw_help, popup};
use super::super::terminal::text::{clock, count, number, shown, tail, width, wrapped};
use super::model::{Link, Model, Prompt};
use super::scrollback::{Content, Entry};

/// Cells for a user's name, so that what they say begins in one column.
const USER_CELLS: usize = 12;

const HELP: [&str; 14] = [
    "Enter        send: a JSON object as it is, anything else",
    "             as {\"object\": ...}",
    "↑ ↓          mark a row; the stream stands still meanwhile",
    "PgUp PgDn    the same by pages; Ctrl-Home: the oldest",
    "Ctrl-P       pause, and go on; nothing is lost meanwhile",
    "Ctrl-End Esc follow the newest again",
    "Ctrl-F       search: ↑ Enter above, ↓ below, Esc ends it",
    "Ctrl-Y       copy the marked activity, or the newest",
    "Ctrl-O F2    the marked activity in full",
    "Ctrl-A Ctrl-E Ctrl-U Ctrl-K Ctrl-W  edit the line",
    "Ctrl-L       draw everything anew",
    "Ctrl-C       quit",
    "",
    "any key closes this",
];

/// How many rows of the stream fit into an area.
pub(crate) fn stream_rows(area: Rect) -> usize {
    usize::from(parts(area)[1].height)
}

/// Header, stream, rule, line, keys.
fn parts(area: Rect) -> [Rect; 5] {
    let heights = [1, 0, 1, 1, 1].map(|rows| if rows == 0 { Constraint::Fill(1) } else { Constraint::Max(rows) });
    Layout::vertical(heights).areas(area)
}

/// Draws everything, and says where the cursor is.
pub(crate) fn draw(model: &Model, area: Rect, buffer: &mut Buffer) -> Position {
    let [header, stream, rule, line, keys] = parts(area);
    draw_header(model, header, buffer);
    draw_stream(model, stream, buffer);
    draw_rule(model, rule, buffer);
    let cursor = draw_line(model, line, buffer);
    draw_keys(model, keys, buffer);
    if model.is_detail_shown {
        draw_detail(model, stream, buffer);
    }
    if model.is_help_shown {
        draw_help(&HELP, area, buffer);
    }
    cursor
}

fn draw_header(model: &Model, area: Rect, buffer: &mut Buffer) {
    let (state, style) = match model.link {
        Link::Connected => ("● connected".to_owned(), BAR.fg(Color::LightGreen)),
        Link::Lost(since) => {
            let away = model.now.duration_since(since).unwrap_or_default().as_secs();
            (format!("○ reconnecting, {away} s"), BAR.fg(Color::LightYellow))
        }
    };
    let mut right = vec![Span::styled(state, style.add_modifier(Modifier::BOLD)), " ".into()];
    if area.width >= 60 {
        right.push(format!(" {:>4}/s  {} UTC ", number(model.rate()), clock(model.now)).into());
    }
    let username = shown(&model.username, 20).into();
    let left = match model.link {
        Link::Connected => {
            vec![" arborcast  ".bold(), username, format!(" at {}", shown(&model.server, 60)).into()]
        }
        Link::Lost(_) => vec![" ".into(), username, format!(" was at {}", shown(&model.server, 60)).into()],
    };
    draw_ends(left, right, BAR, area, buffer);
}

fn draw_rule(model: &Model, area: Rect, buffer: &mut Buffer) {
    let mut left = vec![Span::raw("─ ")];
    match model.hold {
        None => left.push("following".into()),
        Some(_) => {
            left.push("paused".fg(Color::Yellow).bold());
            left.push(format!(", {} below", number(model.unseen() as f64)).fg(Color::Yellow));
        }
    }
    if !model.sought.is_empty() {
        left.push(format!(" ─ searching {}", shown(&model.sought, 20)).fg(Color::Magenta));
    }
    left.push(" ".into());
    let mut right = vec![Span::raw(" ")];
    if model.missing > 0 {
        right.push(format!("{} missing ─ ", number(model.missing as f64)).fg(Color::Red));
    }
    if model.unacknowledged > 0 {
        right.push(format!("{} not acknowledged yet ─ ", number(model.unacknowledged as f64)).fg(Color::Yellow));
    }
    right.push(format!("{} kept of {} ─", model.kept.len(), model.arrived).into());
    buffer.set_string(area.x, area.y, "─".repeat(usize::from(area.width)), QUIET);
    draw_ends(left, right, QUIET, area, buffer);
}

fn draw_stream(model: &Model, area: Rect, buffer: &mut Buffer) {
    let Some(last) = model.kept.last() else {
        let words = "Nothing has arrived yet. Type something and press Enter.";
        return Paragraph::new(Line::from(words).style(QUIET).centered()).render(middle(area), buffer);
    };
    let held = model.held();
    let bottom = held.map_or(last, |hold| hold.bottom);
    for (row, id) in area.rows().rev().zip((model.kept.first()..=bottom).rev()) {
        let Some(entry) = model.kept.get(id) else { break };
        draw_entry(model, entry, row, buffer);
        if held.is_some_and(|hold| hold.selected == id) {
            buffer.set_style(row, Style::new().add_modifier(Modifier::REVERSED));
        }
    }
}

fn middle(area: Rect) -> Rect {
    Rect { y: area.y + area.height / 2, height: area.height.min(1), ..area }
}

fn draw_entry(model: &Model, entry: &Entry, area: Rect, buffer: &mut Buffer) {
    let row = entry.row();
    let time = format!("{} ", clock(entry.at));
    let mut spans = vec![Span::styled(time, QUIET)];
    let mut text_style = Style::new();
    match entry.content {
        Content::Notice(_) => {
            spans.push(Span::styled("── ", Color::Yellow));
            text_style = Style::new().fg(Color::Yellow);
        }
        Content::Activity(_) => {
            let name = shown(&row.user, USER_CELLS);
            let fill = " ".repeat(USER_CELLS + 1 - width(&name).min(USER_CELLS));
            spans.push(Span::styled(format!("{name}{fill}"), colour_of(&row.user)));
            if !row.is_words {
                text_style = Style::new().fg(Color::Cyan);
            }
        }
    }
    let used: usize = spans.iter().map(Span::width).sum();
    spans.push(Span::styled(shown(&row.text, usize::from(area.width).saturating_sub(used)), text_style));
    Line::from(spans).render(area, buffer);
    if entry.contains(&model.sought) {
        mark(&model.sought, area, buffer);
    }
}

/// Shows where the text stands in a row; where only a part that is not seen has it, the time.
fn mark(sought: &str, area: Rect, buffer: &mut Buffer) {
    let style = Style::new().fg(Color::Black).bg(Color::Yellow);
    let cells: Vec<&str> = area.columns().filter_map(|cell| Some(buffer.cell(cell.as_position())?.symbol())).collect();
    // In cells: the text as it would be drawn, so that a wide character takes two.
    let mut wanted =
        Buffer::empty(Rect::new(0, 0, u16::try_from(width(sought)).unwrap_or(u16::MAX).min(area.width), 1));
    wanted.set_string(0, 0, sought, Style::new());
    let wanted: Vec<&str> = wanted.content().iter().map(|cell| cell.symbol()).collect();
    let is_same = |window: &&[&str]| window.iter().zip(&wanted).all(|(a, b)| a.eq_ignore_ascii_case(b));
    let places = cells.windows(wanted.len().max(1)).enumerate().filter(|(_, window)| is_same(window));
    let mut places: Vec<usize> = places.map(|(place, _)| place).collect();
    let length = if places.is_empty() { "12:34:56".len() } else { wanted.len() };
    if places.is_empty() {
        places.push(0);
    }
    for place in places {
        let x = area.x.saturating_add(u16::try_from(place).unwrap_or(u16::MAX));
        let width = u16::try_from(length).unwrap_or(u16::MAX);
        buffer.set_style(Rect { x, width, ..area }.intersection(area), style);
    }
}

/// The same name always has the same.
fn colour_of(user: &str) -> Style {
    const COLOURS: [Color; 6] =
        [Color::Green, Color::Blue, Color::Magenta, Color::LightRed, Color::LightBlue, Color::LightMagenta];
    let sum = user.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
    let colour = COLOURS.get(sum % COLOURS.len()).copied().unwrap_or_default();
    Style::new().fg(colour).add_modifier(Modifier::BOLD)
}

fn draw_line(model: &Model, area: Rect, buffer: &mut Buffer) -> Position {
    let (sign, line, style) = match model.prompt {
        Prompt::Send => ("> ", &model.sending, Style::new().fg(Color::Green).add_modifier(Modifier::BOLD)),
        Prompt::Search => ("/ ", &model.searching, Style::new().fg(Color::Magenta).add_modifier(Modifier::BOLD)),
    };
    let room = usize::from(area.width).saturating_sub(sign.len() + 1);
    let (before, behind) = halves(line, room);
    let x = area.x + u16::try_from(sign.len() + width(&before)).unwrap_or(u16::MAX).min(area.width.saturating_sub(1));
    Line::from(vec![Span::styled(sign, style), before.into(), behind.into()]).render(area, buffer);
    Position { x, y: area.y }
}

/// As much as is seen of what stands before and behind the cursor.
fn halves(line: &line::Line, room: usize) -> (String, String) {
    let (before, behind) = line.halves();
    let before = tail(before, room);
    let behind = shown(behind, (room + 1).saturating_sub(width(&before)));
    (before, behind)
}

fn draw_keys(model: &Model, area: Rect, buffer: &mut Buffer) {
    let line = match &model.message {
        Some(message) => Line::from(shown(message, usize::from(area.width))).style(Style::new().fg(Color::Yellow)),
        None if model.prompt == Prompt::Search => Line::from("Enter ↑ above  ↓ below  Esc back").style(QUIET),
        None => {
            Line::from("Enter send  ↑↓ mark  ^F search  ^P pause  ^Y copy  ^O whole  F1 help  ^C quit").style(QUIET)
        }
    };
    line.render(area, buffer);
}

fn draw_detail(model: &Model, area: Rect, buffer: &mut Buffer) {
    let Some(hold) = model.held() else { return };
    let Some(entry) = model.kept.get(hold.selected) else { return };
    let inside = usize::from(area.width.saturating_sub(4));
    let text = String::from_utf8_lossy(entry.text());
    let rows = wrapped(&text, inside, usize::from(area.height.saturating_sub(2)));
    let height = u16::try_from(rows.len()).unwrap_or(u16::MAX).saturating_add(2).min(area.height);
    // Where it does not cover the row that it is about, if that can be.
    let is_low = hold.bottom.saturating_sub(hold.selected) < u64::from(area.height / 2);
    let y = if is_low { area.y } else { area.bottom() - height };
    let area = Rect { y, height, ..area };
    let title = format!(" {} UTC, {} ", clock(entry.at), count(entry.text().len(), "byte"));
    popup(&title, rows.into_iter().map(Line::from).collect(), area, buffer);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use arborcast_client::{Activity, Error, Event};
    use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn model(activities: &[&str]) -> Model {
        let mut model = Model::new("aaron".into(), "tree1.example.org:3780".into(), at(0));
        let activities: Vec<_> = activities.iter().map(|text| Activity::parse(text).unwrap()).collect();
        if !activities.is_empty() {
            model.handle_event(Event::Activities(activities), at(43_424));
        }
        model
    }

    fn rows(model: &mut Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let frame = terminal.draw(|frame| {
            model.set_rows(stream_rows(frame.area()));
            let cursor = draw(model, frame.area(), frame.buffer_mut());
            frame.set_cursor_position(cursor);
        });
        let buffer = frame.unwrap().buffer;
        let row = |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect::<String>();
        buffer.content().chunks(usize::from(width.max(1))).map(row).collect()
    }

    #[test]
    fn a_screen_says_who_where_and_what() {
        let mut model = model(&[
            r#"{"object":"good morning","authenticated_user":"barbara"}"#,
            r#"{"verb":"post","n":1.00,"authenticated_user":"aaron"}"#,
        ]);
        model.sending.set("hello".into());
        let rows = rows(&mut model, 80, 24);
        println!("{}", rows.join("\n"));
        assert!(rows[0].starts_with(" arborcast  aaron at tree1.example.org:3780 "));
        assert!(rows[0].ends_with("● connected     0/s  12:03:44 UTC "));
        assert_eq!(rows[19].trim_end(), "12:03:44 barbara      good morning");
        assert_eq!(rows[20].trim_end(), r#"12:03:44 aaron        {"verb":"post","n":1.00}"#);
        assert!(rows[21].starts_with("─ following ──") && rows[21].ends_with("─ 2 kept of 2 ─"), "{}", rows[21]);
        assert_eq!(rows[22].trim_end(), "> hello");
        assert!(rows[23].contains("^C quit"));
    }

    #[test]
    fn a_lost_connection_is_seen_at_the_top_and_in_the_stream() {
        let mut model = model(&["{}"]);
        let server = "tree1.example.org:3780".parse().unwrap();
        let error = Error::Ended;
        model.handle_event(Event::Lost { server, error }, at(43_424));
        model.tick(at(43_431));
        let rows = rows(&mut model, 80, 24);
        println!("{}", rows.join("\n"));
        assert!(
            rows[0].contains("was at tree1.example.org:3780") && rows[0].contains("○ reconnecting, 7 s"),
            "{}",
            rows[0]
        );
        assert!(rows[20].contains("looking for another server"));
    }

    #[test]
    fn hostile_activities_are_text() {
        let mut model = model(&[
            "{\"object\":\"\\u001b[2J\\u001b]0;owned\\u0007\",\"authenticated_user\":\"\\u001b[31mroot\"}",
            "{\"k\u{9b}2J\":\"\u{202e}evil\u{7f}\"}",
            &format!("{{\"object\":\"{}\"}}", "日本".repeat(100_000)),
            &format!("{{\"object\":\"a{}\"}}", "\u{301}".repeat(100_000)),
        ]);
        model.is_detail_shown = true;
        for shown_in_full in 0..4 {
            let rows = rows(&mut model, 80, 24);
            println!("{}", rows.join("\n"));
            assert!(
                rows.iter().all(|row| !row.contains(|c: char| c.is_control() || c == '\u{202e}')),
                "{shown_in_full}"
            );
            assert!(rows.iter().all(|row| row.len() < 80 * 10), "{shown_in_full}: few bytes in each cell");
            model.handle_key(KeyEvent::new(KeyCode::Up, KeyModifiers::NONE));
        }
        model.is_detail_shown = false;
        let rows = rows(&mut model, 80, 24);
        assert!(rows[17].contains("␛[31mroot") && rows[17].contains("␛[2J␛]0;owned␇"), "{}", rows[17]);
    }

    #[test]
    fn what_is_sought_is_marked() {
        let mut model = model(&[r#"{"object":"日本 Hello","authenticated_user":"b"}"#]);
        model.sought = "hello".into();
        let mut buffer = Buffer::empty(Rect::new(0, 0, 80, 24));
        draw(&model, buffer.area, &mut buffer);
        let marked = (0..80).filter(|x| buffer[(*x, 20)].bg == Color::Yellow).collect::<Vec<_>>();
        assert_eq!(marked, (27..32).collect::<Vec<_>>(), "behind 22 cells of time and name, and 5 of the words");
        model.sought = "authenticated".into();
        draw(&model, buffer.area, &mut buffer);
        assert_eq!(buffer[(0, 20)].bg, Color::Yellow, "it stands where it is not seen");
    }

    #[test]
    fn no_size_is_too_small() {
        for (width, height) in [(0, 0), (1, 1), (3, 2), (10, 5), (20, 3), (300, 100)] {
            let mut model = model(&[r#"{"object":"日本語"}"#, "{}"]);
            model.sending.set("日本語 日本語 日本語 日本語".into());
            model.sought = "日".into();
            (model.is_help_shown, model.is_detail_shown) = (true, true);
            model.handle_key(KeyEvent::new(KeyCode::Up, KeyModifiers::NONE));
            model.is_help_shown = true;
            rows(&mut model, width, height);
        }
    }

    #[test]
    fn the_cursor_is_always_seen() {
        let mut model = model(&[]);
        model.sending.set("x".repeat(200) + "日本");
        let mut buffer = Buffer::empty(Rect::new(0, 0, 80, 24));
        for back in 0..202 {
            let cursor = draw(&model, buffer.area, &mut buffer);
            assert!(cursor.x < 80 && cursor.y == 22, "{back}: {cursor}");
            model.sending.left();
        }
        assert_eq!(draw(&model, buffer.area, &mut buffer), Position { x: 2, y: 22 });
    }
}
