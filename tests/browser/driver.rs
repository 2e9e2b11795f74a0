//! Chromium, driven by the W3C's WebDriver protocol: JSON over HTTP, of which these tests need a dozen calls.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use base64::Engine;
use millrace_tests::{
    Stack, eventually,
    http::{Request, get, post},
    process::{Process, command, free_port, tail},
};
use serde_json::{Value, json};

/// Longest wait for one call.
const LIMIT: Duration = Duration::from_secs(60);

/// A window's size in pixels, and whether it is one of a phone.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    pub name: &'static str,
    pub width: u32,
    pub height: u32,
    pub phone: bool,
}

pub const DESKTOP: Screen = Screen { name: "desktop", width: 1280, height: 900, phone: false };
pub const PHONE: Screen = Screen { name: "phone", width: 390, height: 844, phone: true };

/// A browser with one window; both end with it.
pub struct Browser {
    session: String,
    // Chromium ends with it: its commands come through a pipe of the driver.
    _driver: Process,
    log: PathBuf,
}

impl Browser {
    /// Starts it, without any state of its own.
    pub fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let stack = Stack::shared();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let (port, log) = (free_port(), stack.log(&format!("chromedriver-{number}")));
        let mut driver = command(find(&["chromedriver"]));
        driver.arg(format!("--port={port}"));
        let driver = Process::start(&driver, &log);
        let base = format!("http://127.0.0.1:{port}");
        eventually("chromedriver that is ready", || match get(&format!("{base}/status")).try_send()?.json() {
            status if status["value"]["ready"] == true => Ok(()),
            status => Err(status.to_string()),
        });
        let profile = stack.dir.join(format!("chromium-{number}"));
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"binary": find(&["chromium", "google-chrome"]), "args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic",
                "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
                "--hide-scrollbars", "--lang=en-GB", "--remote-debugging-pipe",
                format!("--user-data-dir={}", profile.display()),
            ]},
        }}});
        let answer = post(&format!("{base}/session")).json(&capabilities).within(LIMIT).send();
        let id = answer.json()["value"]["sessionId"].as_str().map(str::to_owned);
        let id = id.unwrap_or_else(|| panic!("Chromium can't be started: {answer:?}\n{}", tail(&log, 20)));
        let browser = Self { session: format!("{base}/session/{id}"), _driver: driver, log };
        browser.resize(DESKTOP);
        browser
    }

    /// One call of the protocol.
    #[track_caller]
    fn call(&self, path: &str, body: &Value) -> Value {
        self.try_call(path, body).unwrap_or_else(|error| panic!("{path} {body}: {error}\n{}", tail(&self.log, 5)))
    }

    fn try_call(&self, path: &str, body: &Value) -> Result<Value, String> {
        let answer = post(&format!("{}/{path}", self.session)).json(body).within(LIMIT).try_send()?;
        if answer.status == 200 { Ok(answer.json()["value"].take()) } else { Err(answer.text()) }
    }

    /// Opens an address.
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.call("url", &json!({"url": url}));
    }

    /// Runs a function's body in the page.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.call("execute/sync", &json!({"script": script, "args": []}))
    }

    /// The text that people see of the first element that fits; `None` where there is none.
    #[track_caller]
    pub fn text(&self, selector: &str) -> Option<String> {
        let script = format!("return document.querySelector({})?.innerText", json!(selector));
        self.run(&script).as_str().map(str::to_owned)
    }

    /// Waits until the text of an element is good.
    #[track_caller]
    pub fn wait_for_text(&self, selector: &str, good: impl Fn(&str) -> bool) -> String {
        eventually(&format!("right text at {selector}"), || match self.text(selector) {
            Some(text) if good(&text) => Ok(text),
            other => Err(format!("{other:?}; the page: {:?}", self.text("body"))),
        })
    }

    /// Waits until a script returns true.
    #[track_caller]
    pub fn wait_until(&self, what: &str, script: &str) {
        eventually(what, || match self.run(&format!("return {script}")) {
            Value::Bool(true) => Ok(()),
            other => Err(format!("{other}; the page: {:?}", self.text("body"))),
        });
    }

    /// Presses the mouse's button over an element, as somebody does.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        let element = self.find(selector);
        self.call(&format!("element/{element}/click"), &json!({}));
    }

    /// Types keys, as somebody does who has an element in focus.
    #[track_caller]
    pub fn keys(&self, selector: &str, keys: &str) {
        let element = self.find(selector);
        self.call(&format!("element/{element}/value"), &json!({"text": keys}));
    }

    #[track_caller]
    fn find(&self, selector: &str) -> String {
        eventually(&format!("element {selector}"), || {
            let found = self.try_call("element", &json!({"using": "css selector", "value": selector}))?;
            let id = found.as_object().and_then(|found| found.values().next()?.as_str());
            id.map(str::to_owned).ok_or_else(|| found.to_string())
        })
    }

    #[track_caller]
    fn devtools(&self, command: &str, parameters: &Value) {
        self.call("goog/cdp/execute", &json!({"cmd": command, "params": parameters}));
    }

    /// Gives the window another size.
    #[track_caller]
    pub fn resize(&self, screen: Screen) {
        let Screen { width, height, phone, .. } = screen;
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// `light` or `dark`.
    #[track_caller]
    pub fn prefer(&self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.devtools("Emulation.setEmulatedMedia", &json!({"features": features}));
    }

    /// Keeps a picture of the window in `target/screenshots`.
    #[track_caller]
    pub fn keep_picture(&self, name: &str) {
        let answer = Request::new("GET", &format!("{}/screenshot", self.session)).within(LIMIT).send().json();
        let picture = answer["value"].as_str().and_then(|text| base64::prelude::BASE64_STANDARD.decode(text).ok());
        let own = std::env::current_exe().expect("a program knows its own path");
        // target/release/deps/browser-<hash>
        let folder = own.ancestors().nth(3).unwrap_or(Path::new(".")).join("screenshots");
        fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let path = folder.join(format!("{name}.png"));
        fs::write(&path, picture.expect("a picture")).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// What the page wrote to its console since this was asked last, and what the browser had to complain about it.
    #[track_caller]
    pub fn console(&self) -> Vec<String> {
        let entries = self.call("se/log", &json!({"type": "browser"}));
        let text = |entry: &Value| format!("{} {}", entry["level"], entry["message"]);
        entries.as_array().map(|entries| entries.iter().map(text).collect()).unwrap_or_default()
    }

    /// Fails when there is anything on the console.
    #[track_caller]
    pub fn console_is_empty(&self) {
        let said = self.console();
        assert!(said.is_empty(), "the console says {said:#?}");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = Request::new("DELETE", &self.session).within(LIMIT).try_send();
    }
}

/// The first of these programs that is installed.
fn find(names: &[&str]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        names.iter().find_map(|name| std::env::split_paths(&path).map(|dir| dir.join(name)).find(|at| at.is_file()));
    found.unwrap_or_else(|| {
        panic!(
            "{names:?} can't be found: these tests drive a real browser. deploy/local/install --tests installs Debian's"
        )
    })
}
