//! A browser in a namespace: Chromium without a window, by WebDriver.

use std::{
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fantoccini::{Client, ClientBuilder, error::CmdError, wd::WebDriverCompatibleCommand};
use http::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use url::{ParseError, Url};

use crate::{binaries, netns::Namespace, python, running::Running, sys, wait};

/// Where the driver listens, in a namespace of its own.
const DRIVER: &str = "127.0.0.1:9515";
/// The rules of accessibility, in a package of PyPI.
const AXE: (&str, &str) = ("axe-playwright-python==0.1.8", "axe_playwright_python/axe.min.js");
/// For the driver to listen.
const START: Duration = Duration::from_secs(20);

static RULES: OnceLock<Result<PathBuf, String>> = OnceLock::new();

/// Whether this machine has a browser and its driver.
pub fn is_there() -> Result<(), String> {
    let found = |program: &str| {
        let asked = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    };
    if !found("chromedriver") || !found("chromium") {
        return Err("there is no chromium with chromedriver (Debian: apt-get install chromium-driver)".into());
    }
    python::is_there()
}

/// Gets the rules of accessibility, while packages can still be had: behind [`python::prepare`].
pub fn prepare() {
    if is_there().is_ok() {
        RULES.get_or_init(|| python::file_of(AXE.0, AXE.1).map_err(|error| format!("{error:#}")));
    }
}

/// Where screenshots are kept, for people to look at.
pub fn screenshots() -> io::Result<PathBuf> {
    let directory = binaries::directory()?.join("screenshots");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// A page in a browser.
#[derive(Debug, Clone)]
pub struct Page {
    client: Client,
}

/// How a page is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// In CSS pixels.
    pub width: u32,
    /// In CSS pixels.
    pub height: u32,
    /// Whether dark colours are preferred.
    pub dark: bool,
}

/// Has `work` done with a browser inside of the namespace.
pub fn inside(
    namespace: &Namespace,
    url: &str,
    work: impl AsyncFnOnce(&Page) -> anyhow::Result<()> + Send,
) -> anyhow::Result<()> {
    let home = tempfile::tempdir()?;
    let mut command = namespace.command("chromedriver")?;
    let port = DRIVER.rsplit_once(':').map(|(_, port)| port).context("a port")?;
    command.arg(format!("--port={port}")).env("HOME", home.path());
    let _driver = Driver(Running::start(command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()))?);
    namespace.enter(|| {
        wait::until("the driver listens", START, || std::net::TcpStream::connect(DRIVER).is_ok());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let page = Page::open(url, home.path()).await?;
            let done = work(&page).await;
            page.client.close().await?;
            done
        })
    })
}

/// The driver and the browsers that it has started.
struct Driver(Running);

impl Drop for Driver {
    fn drop(&mut self) {
        // They may have ended.
        drop(sys::signal_group(self.0.0.id(), Signal::KILL));
    }
}

impl Page {
    async fn open(url: &str, profile: &Path) -> anyhow::Result<Self> {
        let arguments = [
            "--headless=new".to_owned(),
            // In a user namespace it can make none of its own.
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            format!("--user-data-dir={}", profile.display()),
        ];
        let capabilities =
            json!({ "goog:chromeOptions": { "args": arguments }, "goog:loggingPrefs": { "browser": "ALL" } });
        let Value::Object(capabilities) = capabilities else { anyhow::bail!("capabilities are an object") };
        let mut builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
        let client = builder.capabilities(capabilities).connect(&format!("http://{DRIVER}")).await?;
        client.goto(url).await?;
        Ok(Self { client })
    }

    /// The value of an expression in the page.
    pub async fn value(&self, expression: &str) -> anyhow::Result<Value> {
        Ok(self.client.execute(&format!("return {expression}"), Vec::new()).await?)
    }

    /// Waits until an expression is true.
    pub async fn wait(&self, what: &str, expression: &str, timeout: Duration) -> anyhow::Result<()> {
        let is_true = async {
            // Each question goes to the browser and back.
            while self.value(expression).await? != Value::Bool(true) {}
            anyhow::Ok(())
        };
        tokio::time::timeout(timeout, is_true).await.with_context(|| format!("{what}: not within {timeout:?}"))?
    }

    /// Presses a key, or writes, wherever the focus is.
    pub async fn press(&self, keys: &str) -> anyhow::Result<()> {
        Ok(self.client.active_element().await?.send_keys(keys).await?)
    }

    /// Changes how it is looked at.
    pub async fn look(&self, look: Look) -> anyhow::Result<()> {
        let Look { width, height, dark } = look;
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await?;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", features).await
    }

    /// Looks at it, and keeps a picture of all of the page.
    pub async fn keep(&self, name: &str, look: Look) -> anyhow::Result<()> {
        self.look(look).await?;
        let height = self.value("document.documentElement.scrollHeight").await?.as_u64().context("a height")?;
        self.look(Look { height: u32::try_from(height)?, ..look }).await?;
        fs::write(screenshots()?.join(format!("{name}.png")), self.client.screenshot().await?)?;
        self.look(look).await
    }

    /// Looks for what keeps people from reading it: contrast, names, structure (WCAG 2.2, by axe-core).
    pub async fn check_accessibility(&self) -> anyhow::Result<()> {
        let rules = RULES.get().context("nobody has got the rules")?.clone().map_err(anyhow::Error::msg)?;
        let script = format!(
            "{}; const done = arguments[arguments.length - 1]; axe.run().then(done)",
            fs::read_to_string(rules)?
        );
        let found = self.client.execute_async(&script, Vec::new()).await?;
        let violations = found["violations"].as_array().context("no result")?;
        ensure!(found["passes"].as_array().is_some_and(|passes| passes.len() > 10), "hardly anything was looked at");
        ensure!(violations.is_empty(), "{violations:#?}");
        Ok(())
    }

    /// What the browser has complained of since it was asked last.
    pub async fn complaints(&self) -> anyhow::Result<Vec<String>> {
        let log = self.issue(Order { path: "se/log", body: json!({ "type": "browser" }) }).await?;
        let log = log.as_array().context("a log")?;
        Ok(log.iter().map(|entry| entry["message"].to_string()).collect())
    }

    async fn devtools(&self, method: &str, parameters: Value) -> anyhow::Result<()> {
        Ok(self.issue(Order::devtools(method, parameters)).await.map(drop)?)
    }

    async fn issue(&self, order: Order) -> Result<Value, CmdError> {
        self.client.issue_cmd(order).await
    }
}

/// What Chromium's driver does beyond WebDriver.
#[derive(Debug)]
struct Order {
    path: &'static str,
    body: Value,
}

impl Order {
    fn devtools(method: &str, parameters: Value) -> Self {
        Self { path: "goog/cdp/execute", body: json!({ "cmd": method, "params": parameters }) }
    }
}

impl WebDriverCompatibleCommand for Order {
    fn endpoint(&self, base_url: &Url, session_id: Option<&str>) -> Result<Url, ParseError> {
        base_url.join(&format!("session/{}/{}", session_id.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}
