//! A program on a terminal of its own: a pseudo-terminal with somebody who types at its other end, and reads the screen.

use std::ffi::OsStr;
use std::io::{Read as _, Write};
use std::num::NonZeroU16;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use portable_pty::{Child, CommandBuilder, ExitStatus, MasterPty, PtyPair, PtySize, native_pty_system};
use vt100::{Callbacks, Parser, Screen};

use crate::wait::{self, PATIENCE};

/// A program and its terminal. Killed and reaped when dropped.
pub struct Terminal {
    pair: PtyPair,
    keyboard: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    seen: Arc<Mutex<Seen>>,
    modes_before: Modes,
}

/// What has come out of the program.
struct Seen {
    parser: Parser<Asked>,
    bytes: Vec<u8>,
}

/// What the program has asked the terminal for, beside showing text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// To be kept for pasting, as the terminal got it: in base64.
    pub clipboard: Vec<Vec<u8>>,
    /// To be the title of the window, or of its icon.
    pub titles: Vec<Vec<u8>>,
    /// How often it was to ring.
    pub bells: usize,
}

impl Callbacks for Asked {
    fn audible_bell(&mut self, _: &mut Screen) {
        self.bells += 1;
    }

    fn set_window_icon_name(&mut self, _: &mut Screen, name: &[u8]) {
        self.titles.push(name.to_owned());
    }

    fn set_window_title(&mut self, _: &mut Screen, title: &[u8]) {
        self.titles.push(title.to_owned());
    }

    fn copy_to_clipboard(&mut self, _: &mut Screen, _: &[u8], data: &[u8]) {
        self.clipboard.push(data.to_owned());
    }
}

/// The modes of a terminal, in the order of `termios`. Equal ones behave alike.
type Modes = [u64; 3];

impl Terminal {
    /// Starts a program on a terminal of 80 columns and 24 rows.
    #[track_caller]
    pub fn start(binary: &Path, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let pair = native_pty_system().openpty(size(80, 24)).expect("the system has pseudo-terminals");
        let mut command = CommandBuilder::new(binary);
        command.args(arguments);
        command.env("TERM", "xterm-256color");
        command.env_remove("NO_COLOR");
        let modes_before = modes(pair.master.as_ref());
        let child = pair.slave.spawn_command(command).expect("the binary can be started");
        let parser = Parser::new_with_callbacks(cells(24), cells(80), 0, Asked::default());
        let seen = Arc::new(Mutex::new(Seen { parser, bytes: Vec::new() }));
        let mut output = pair.master.try_clone_reader().expect("a new terminal can be read");
        let keyboard = pair.master.take_writer().expect("a new terminal can be written");
        let writer = Arc::clone(&seen);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                let mut seen = writer.lock().unwrap_or_else(PoisonError::into_inner);
                seen.parser.process(&buffer[..length]);
                seen.bytes.extend_from_slice(&buffer[..length]);
            }
        });
        Self { pair, keyboard, child, seen, modes_before }
    }

    /// Presses keys, as a terminal says it.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal takes what is typed");
        self.keyboard.flush().expect("the terminal takes what is typed");
    }

    /// Gives the terminal another size.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        self.locked(|seen| seen.parser.set_size(cells(rows), cells(columns)));
        self.pair.master.resize(size(columns, rows)).expect("a terminal can be resized");
    }

    /// The rows of the screen, as they are now, without the blanks at their ends.
    pub fn rows(&self) -> Vec<String> {
        self.locked(|seen| {
            let screen = seen.parser.screen();
            screen.rows(0, screen.size().1.get()).map(|row| row.trim_end().to_owned()).collect()
        })
    }

    /// What the program has asked the terminal for until now.
    pub fn asked(&self) -> Asked {
        self.locked(|seen| seen.parser.callbacks().clone())
    }

    /// Whether these bytes stand anywhere in what has come out of the program.
    pub fn has_written(&self, bytes: &[u8]) -> bool {
        self.locked(|seen| seen.bytes.windows(bytes.len()).any(|window| window == bytes))
    }

    /// Waits until `find` makes something of the screen.
    #[track_caller]
    pub fn wait_for<T>(&self, what: &str, find: impl Fn(&[String]) -> Option<T>) -> T {
        wait::until(PATIENCE, || {
            let rows = self.rows();
            find(&rows).ok_or_else(|| format!("no {what} on the screen:\n{}", rows.join("\n")))
        })
    }

    /// Waits until a row of the screen has this text, and returns that row.
    #[track_caller]
    pub fn wait_for_row(&self, text: &str) -> String {
        self.wait_for(&format!("{text:?}"), |rows| rows.iter().find(|row| row.contains(text)).cloned())
    }

    /// Sends a signal to the program.
    pub fn signal(&mut self, signal: Signal) {
        // Not reaped before it is waited for here, so the id can't be another's.
        let id = self.child.process_id().expect("the program runs");
        signal::kill(Pid::from_raw(id.try_into().expect("process ids fit")), signal).expect("it can be signalled");
    }

    /// Waits until the program has ended and the terminal is as it was before: its modes, the screen and the cursor.
    #[track_caller]
    pub fn wait_until_given_back(&mut self) -> ExitStatus {
        let status = wait::until(PATIENCE, || {
            let ended = self.child.try_wait().expect("our own child can be waited for");
            ended.ok_or_else(|| format!("the program has not ended:\n{}", self.rows().join("\n")))
        });
        assert_eq!(modes(self.pair.master.as_ref()), self.modes_before, "the modes of the terminal");
        wait::until(PATIENCE, || {
            let is_given_back = self.locked(|seen| {
                let screen = seen.parser.screen();
                !screen.alternate_screen() && !screen.hide_cursor() && !screen.bracketed_paste()
            });
            is_given_back.then_some(()).ok_or_else(|| format!("not given back:\n{}", self.rows().join("\n")))
        });
        status
    }

    /// Whether the program has the terminal: raw, with the other screen.
    pub fn is_taken(&self) -> bool {
        let has_other_screen = self.locked(|seen| seen.parser.screen().alternate_screen());
        has_other_screen && modes(self.pair.master.as_ref()) != self.modes_before
    }

    fn locked<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the screen:\n{}", self.rows().join("\n"));
        }
        // Fails only for one that has ended and was reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(cols: u16, rows: u16) -> PtySize {
    PtySize { rows, cols, pixel_width: 0, pixel_height: 0 }
}

fn cells(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("a terminal has rows and columns")
}

fn modes(terminal: &dyn MasterPty) -> Modes {
    let modes = terminal.get_termios().expect("a terminal has modes");
    [modes.input_flags.bits(), modes.output_flags.bits(), modes.local_flags.bits()].map(u64::from)
}
