//! A real browser without a window: Chromium, driven through chromedriver by the WebDriver protocol.

use std::env;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::Process;
use crate::wait::{self, PATIENCE};

/// How long one command may take: starting a browser on a busy machine takes longest.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

/// How the WebDriver protocol marks an element in JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys, as the WebDriver protocol names them.
pub mod keys {
    /// Enter.
    pub const ENTER: &str = "\u{e007}";
    /// Escape.
    pub const ESCAPE: &str = "\u{e00c}";
    /// Arrow up.
    pub const UP: &str = "\u{e013}";
    /// Arrow down.
    pub const DOWN: &str = "\u{e015}";
    /// To the beginning.
    pub const HOME: &str = "\u{e011}";
    /// Arrow to the left.
    pub const LEFT: &str = "\u{e012}";
    /// Arrow to the right.
    pub const RIGHT: &str = "\u{e014}";
}

/// A browser with one page. Ended when dropped.
#[derive(Debug)]
pub struct Browser {
    driver: SocketAddr,
    session: String,
    // Dropped in this order: the driver ends before the folder that it and the browser write to goes.
    _process: Process,
    _folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// Where a program is.
fn find(name: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

impl Browser {
    /// A browser with a window of this size; only one at a time in a test program, since it is a heavy load. A CI without one is broken; elsewhere the test says what it needs, and gets
    /// none.
    #[track_caller]
    pub fn start(width: u32, height: u32) -> Option<Self> {
        let (Some(driver), Some(chromium)) = (find("chromedriver"), find("chromium")) else {
            assert_ne!(
                env::var_os("CI").unwrap_or_default(),
                "true",
                "CI must have chromium and chromedriver on its PATH"
            );
            println!("skipped: chromium and chromedriver are not installed (apt-get install chromium chromium-driver)");
            return None;
        };
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = TempDir::new().expect("a folder can be made");
        let mut command = Command::new(driver);
        command.arg("--port=0").stdin(Stdio::null());
        for name in ["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
            command.env(name, folder.path());
        }
        let process = Process::start_command(&mut command);
        let port = process.stdout_line_matching("port of chromedriver", |line| {
            line.split("started successfully on port ").nth(1)?.trim_end_matches('.').parse().ok()
        });
        let arguments = [
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            format!("--window-size={width},{height}"),
        ];
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "pageLoadStrategy": "eager",
            "goog:chromeOptions": { "binary": chromium, "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let driver = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let answer = call(driver, "POST", "/session", &capabilities).expect("the browser starts");
        let session = answer["sessionId"].as_str().expect("a session has an id").to_owned();
        Some(Self { driver, session, _process: process, _folder: folder, _turn: turn })
    }

    /// Opens a page, and does not wait for all of it.
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.command("/url", &json!({ "url": url }));
    }

    /// What a script returns.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.command("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// What an expression is.
    #[track_caller]
    pub fn value(&self, expression: &str) -> Value {
        self.run(&format!("return {expression};"))
    }

    /// The text of the first element that a CSS selector finds, as a person sees it.
    #[track_caller]
    pub fn text(&self, selector: &str) -> String {
        let text = self.value(&format!("document.querySelector({})?.textContent ?? ''", json!(selector)));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression holds.
    #[track_caller]
    pub fn wait_until(&self, expression: &str) {
        wait::until(PATIENCE, || match self.value(&format!("!!({expression})")) {
            Value::Bool(true) => Ok(()),
            _ => Err(format!("{expression} does not hold; the page says:\n{:.1500}", self.visible_text())),
        });
    }

    /// Waits until the page shows a text anywhere.
    #[track_caller]
    pub fn wait_for_text(&self, text: &str) {
        wait::until(PATIENCE, || match self.visible_text() {
            page if page.contains(text) => Ok(()),
            page => Err(format!("no {text:?} in:\n{page}")),
        });
    }

    fn visible_text(&self) -> String {
        self.value("document.body.innerText").as_str().unwrap_or_default().to_owned()
    }

    /// Clicks on the first element that a CSS selector finds, as a person would.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        let element = self.element(selector);
        self.command(&format!("/element/{element}/click"), &json!({}));
    }

    /// Types into the first element that a CSS selector finds.
    #[track_caller]
    pub fn type_into(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        self.command(&format!("/element/{element}/value"), &json!({ "text": text }));
    }

    /// Presses keys, wherever the keyboard is.
    #[track_caller]
    pub fn press(&self, keys: &[&str]) {
        let strokes =
            keys.iter().flat_map(|key| ["keyDown", "keyUp"].map(|what| json!({ "type": what, "value": key })));
        let actions = json!([{ "type": "key", "id": "keyboard", "actions": strokes.collect::<Value>() }]);
        self.command("/actions", &json!({ "actions": actions }));
    }

    /// Asks the browser for something that only this one can do, by the Chrome DevTools Protocol.
    #[track_caller]
    pub fn devtools(&self, method: &str, parameters: &Value) -> Value {
        self.command("/goog/cdp/execute", &json!({ "cmd": method, "params": parameters }))
    }

    /// What scripts complained of, and what was blocked, since it was asked last.
    #[track_caller]
    pub fn complaints(&self) -> Vec<String> {
        let entries = self.command("/se/log", &json!({ "type": "browser" }));
        let entries = entries.as_array().into_iter().flatten();
        entries.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// The page as it looks, as a PNG in base64.
    #[track_caller]
    pub fn screenshot(&self) -> String {
        let picture = self.devtools("Page.captureScreenshot", &json!({ "format": "png" }));
        picture["data"].as_str().expect("a picture").to_owned()
    }

    #[track_caller]
    fn element(&self, selector: &str) -> String {
        let found = self.command("/element", &json!({ "using": "css selector", "value": selector }));
        found[ELEMENT].as_str().expect("an element has an id").to_owned()
    }

    #[track_caller]
    fn command(&self, path: &str, body: &Value) -> Value {
        match call(self.driver, "POST", &format!("/session/{}{path}", self.session), body) {
            Ok(value) => value,
            Err(error) => panic!("{path} {body}: {error}"),
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Else the browser would outlive its driver.
        let _ = call(self.driver, "DELETE", &format!("/session/{}", self.session), &Value::Null);
    }
}

/// One command of the WebDriver protocol.
fn call(driver: SocketAddr, method: &str, path: &str, body: &Value) -> io::Result<Value> {
    let mut stream = TcpStream::connect(driver)?;
    stream.set_read_timeout(Some(COMMAND_PATIENCE))?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {driver}\r\nContent-Type: application/json; charset=utf-8");
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    let mut stream = BufReader::new(stream);
    let mut length = None;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok();
        }
    }
    let mut answer = vec![0; length.ok_or_else(|| io::Error::other("an answer without a length"))?];
    stream.read_exact(&mut answer)?;
    let mut answer: Value = serde_json::from_slice(&answer)?;
    let value = answer["value"].take();
    match value.get("error") {
        Some(error) => Err(io::Error::other(format!("{error}: {}", value["message"]))),
        None => Ok(value),
    }
}
