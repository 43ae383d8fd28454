//! The terminal while a program has it.

use std::io::{self, IsTerminal as _, Stdout};
use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::clipboard::CopyToClipboard;
use crossterm::event::{DisableBracketedPaste, EnableBracketedPaste, Event, EventStream, KeyEvent, KeyEventKind};
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use crossterm::{cursor, execute};
use futures_util::StreamExt as _;
use ratatui::backend::CrosstermBackend;
use ratatui::{Frame, Terminal};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::super::failure::Failure;
use super::super::interrupt::Interrupt;

/// Whether the terminal is raw and shows the other screen. There is one terminal, and a panic must be able to ask.
static IS_OPEN: AtomicBool = AtomicBool::new(false);

/// What a person does.
#[derive(Debug)]
pub(crate) enum Input {
    Key(KeyEvent),
    Paste(String),
    /// The terminal has another size. It only has to be drawn again.
    Resize,
    /// A signal, or the terminal is gone.
    End,
}

/// The whole terminal. Given back when dropped, and before a panic says what it has to say.
pub(crate) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    events: EventStream,
    interrupt: Interrupt,
    hangup: Signal,
}

impl Screen {
    /// Whether there is a terminal to take.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn check() -> Result<(), Failure> {
        if io::stdin().is_terminal() && io::stdout().is_terminal() { Ok(()) } else { Err(Failure::NoTerminal) }
    }

    /// Takes the terminal.
    ///
    /// # Errors
    /// When there is none, or it can't be set up. It is as it was then.
    pub(crate) fn open() -> Result<Self, Failure> {
        Self::check()?;
        // Before the terminal is touched: from here on no signal ends the program without giving it back.
        let interrupt = Interrupt::new()?;
        let hangup = signal(SignalKind::hangup()).map_err(Failure::Runtime)?;
        give_back_on_panic();
        IS_OPEN.store(true, Ordering::SeqCst);
        let opened = || -> io::Result<Self> {
            enable_raw_mode()?;
            execute!(io::stdout(), EnterAlternateScreen, EnableBracketedPaste)?;
            let terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
            Ok(Self { terminal, events: EventStream::new(), interrupt, hangup })
        };
        opened().map_err(|cause| {
            give_back();
            Failure::Terminal(cause)
        })
    }

    /// What is done next. Nothing is lost when it is dropped while waiting.
    pub(crate) async fn input(&mut self) -> Input {
        loop {
            let event = tokio::select! {
                biased;
                _ = self.interrupt.wait() => return Input::End,
                _ = self.hangup.recv() => return Input::End,
                event = self.events.next() => event,
            };
            match event {
                None | Some(Err(_)) => return Input::End,
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => return Input::Key(key),
                Some(Ok(Event::Paste(text))) => return Input::Paste(text),
                Some(Ok(Event::Resize(..))) => return Input::Resize,
                Some(Ok(_)) => {}
            }
        }
    }

    /// Draws what has changed.
    ///
    /// # Errors
    /// When the terminal can't be written, or was given back because something panicked.
    pub(crate) fn draw(&mut self, view: impl FnOnce(&mut Frame<'_>)) -> Result<(), Failure> {
        if !IS_OPEN.load(Ordering::SeqCst) {
            return Err(Failure::Terminal(io::Error::other("a part of the program has failed")));
        }
        self.terminal.draw(view).map(|_| ()).map_err(Failure::Terminal)
    }

    /// Makes the next [`draw`](Self::draw) draw everything.
    ///
    /// # Errors
    /// When the terminal can't be written.
    pub(crate) fn clear(&mut self) -> Result<(), Failure> {
        self.terminal.clear().map_err(Failure::Terminal)
    }

    /// Asks the terminal to keep a text for pasting (OSC 52). Not all do, and none says so.
    ///
    /// # Errors
    /// When the terminal can't be written.
    pub(crate) fn copy(&self, text: &[u8]) -> Result<(), Failure> {
        execute!(io::stdout(), CopyToClipboard::to_clipboard_from(text)).map_err(Failure::Terminal)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Once only, whoever is first. What can't be undone on a terminal that is gone need not be.
fn give_back() {
    if IS_OPEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(io::stdout(), DisableBracketedPaste, LeaveAlternateScreen, cursor::Show);
        let _ = disable_raw_mode();
    }
}

fn give_back_on_panic() {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        let otherwise = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            give_back();
            otherwise(panicked);
        }));
    });
}
