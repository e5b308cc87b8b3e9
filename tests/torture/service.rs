//! The program under test: `redeemer run` and `redeemer sandbox` as processes of their own.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use redeemer::config::{self, Config};
use redeemer::runtime::failpoints::{FORGET, Failpoint, ORDER, taken};
use serde_json::Value;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{sleep, timeout};

const PROGRAM: &str = env!("CARGO_BIN_EXE_redeemer");
const SIGKILL: i32 = 9;
/// The longest wait for a process to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// One instance of the service, through all its lives.
pub(crate) struct Service {
    name: String,
    dir: PathBuf,
    child: Option<Child>,
    /// Open for as long as we live: the process ends with it.
    leash: Option<ChildStdin>,
    orders: u32,
    admin: String,
    client: reqwest::Client,
}

impl Service {
    /// An instance that is not running yet. Its configuration is `redeemer.toml` in `dir`.
    pub(crate) fn new(name: &str, dir: &Path) -> Self {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(2)).build().unwrap();
        let (name, dir) = (name.to_owned(), dir.to_owned());
        Self { name, dir, child: None, leash: None, orders: 0, admin: String::new(), client }
    }

    /// Starts it, and waits until its admin port is open.
    pub(crate) async fn launch(&mut self) {
        self.forget_orders();
        self.spawn().await;
    }

    /// The same, ordered beforehand to die at the nth time that it reaches this point.
    #[allow(dead_code)] // for `tests/failpoints.rs`
    pub(crate) async fn launch_to_die(&mut self, point: Failpoint, nth: usize) {
        self.forget_orders();
        self.order(point, nth);
        self.spawn().await;
    }

    fn forget_orders(&self) {
        let order = self.file("order");
        let _ = (fs::remove_file(&order), fs::remove_file(taken(&order)));
    }

    async fn spawn(&mut self) {
        let (order, admin) = (self.file("order"), self.file("admin"));
        let _ = fs::remove_file(&admin);
        let log = File::options().append(true).create(true).open(self.log()).unwrap();
        let mut child = Command::new(PROGRAM)
            .args(["--config".as_ref(), self.dir.join("redeemer.toml").as_os_str(), "run".as_ref()])
            .args(["--with-parent".as_ref(), "--admin-address-file".as_ref(), admin.as_os_str()])
            .env(ORDER, &order)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.leash = child.stdin.take();
        self.child = Some(child);
        let up = async {
            loop {
                if let Ok(address) = fs::read_to_string(&admin) {
                    return address;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        self.admin = timeout(PATIENCE, up).await.unwrap_or_else(|_| panic!("{} does not start", self.name));
    }

    /// The pid of the running process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).unwrap()
    }

    /// Orders the running process to die at the nth time that it reaches this point.
    pub(crate) fn order(&mut self, point: Failpoint, nth: usize) {
        self.write_order(point.as_str(), nth);
    }

    /// Orders the running process to forget the next delivery that it takes.
    #[allow(dead_code)] // for `tests/ops.rs`
    pub(crate) fn order_to_forget(&mut self) {
        self.write_order(FORGET, 1);
    }

    fn write_order(&mut self, word: &str, nth: usize) {
        self.orders += 1;
        let (order, half) = (self.file("order"), self.file("order.part"));
        fs::write(&half, format!("{word} {nth} {}", self.orders)).unwrap();
        fs::rename(half, order).unwrap();
    }

    /// Takes the order back. False if the process is about to die by it.
    pub(crate) fn withdraw(&self) -> bool {
        let order = self.file("order");
        let _ = fs::remove_file(&order);
        !taken(&order).exists()
    }

    /// Waits until the process ends; nothing where it lives on.
    pub(crate) async fn ended(&mut self, patience: Duration) -> Option<ExitStatus> {
        let child = self.child.as_mut().unwrap();
        let status = timeout(patience, child.wait()).await.ok()?.unwrap();
        self.child = None;
        Some(status)
    }

    /// Kills it now.
    pub(crate) async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill().await;
        }
    }

    /// Asks it to stop (SIGTERM).
    pub(crate) async fn ask_to_stop(&self) {
        let pid = self.pid();
        let asked = Command::new("sh").args(["-c", &format!("kill -TERM {pid}")]).status().await.unwrap();
        assert!(asked.success(), "SIGTERM to {pid}");
    }

    /// How it ended, if it ended without having been stopped.
    pub(crate) fn ended_by_itself(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap()?;
        self.child = None;
        Some(status)
    }

    /// The address of its admin port.
    #[allow(dead_code)] // for `tests/ops.rs`
    pub(crate) fn admin(&self) -> &str {
        &self.admin
    }

    /// What the admin port answers, if it answers.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        let response = self.client.get(format!("http://{}{path}", self.admin)).send().await.ok()?;
        Some((response.status().as_u16(), response.text().await.ok()?))
    }

    /// The sum of the series whose name begins so; nothing if there is no answer, or no such series.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await?;
        let lines = text.lines().filter(|line| line.starts_with(name));
        let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        values.reduce(|sum, value| sum + value)
    }

    /// The names of all series.
    pub(crate) async fn series(&self) -> Vec<String> {
        let (_, text) = self.get("/metrics").await.unwrap_or_default();
        let lines = text.lines().filter(|line| line.starts_with("redeemer_"));
        lines.filter_map(|line| line.rsplit_once(' ')).map(|(name, _)| name.to_owned()).collect()
    }

    /// Waits until it says that it is ready, or that it is not. Gives the time of this answer, if it ever came.
    pub(crate) async fn wait_ready(&self, ready: bool) -> Option<Instant> {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if self.get("/readyz").await.is_some_and(|(status, _)| (status == 200) == ready) {
                return Some(Instant::now());
            }
            sleep(Duration::from_millis(20)).await;
        }
        None
    }

    /// Waits until a metric is so; nothing if it does not come to that in time.
    pub(crate) async fn wait_metric(
        &self,
        name: &str,
        is_so: impl Fn(f64) -> bool,
        patience: Duration,
    ) -> Option<f64> {
        let since = Instant::now();
        loop {
            match self.metric(name).await {
                Some(value) if is_so(value) => return Some(value),
                _ if since.elapsed() > patience => return None,
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Its name in reports.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Everything that it ever logged.
    pub(crate) fn log(&self) -> PathBuf {
        self.file("log")
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.dir.join(format!("{}.{kind}", self.name))
    }
}

/// Whether this is how a killed process ends.
pub(crate) fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(SIGKILL)
}

/// A sandbox as a process.
pub(crate) struct Sandbox {
    /// What a client must know.
    pub card: Value,
    base_url: String,
    client: reqwest::Client,
    _child: Child,
    _leash: Option<ChildStdin>,
}

impl Sandbox {
    /// Starts one with its files in `dir`.
    pub(crate) async fn start(dir: &Path, seed: u64) -> Self {
        Self::start_with(dir, seed, &[]).await
    }

    /// The same, with further arguments.
    pub(crate) async fn start_with(dir: &Path, seed: u64, more: &[&str]) -> Self {
        fs::create_dir_all(dir).unwrap();
        let log = File::create(dir.join("sandbox.log")).unwrap();
        let mut child = Command::new(PROGRAM)
            .args([
                "sandbox",
                "--with-parent",
                "--listen",
                "127.0.0.1:0",
                "--latency-ms",
                "4",
                "--seed",
                &seed.to_string(),
                "--dir",
            ])
            .arg(dir)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let leash = child.stdin.take();
        let client = reqwest::Client::new();
        let up = async {
            loop {
                let card = fs::read(dir.join("identity.json")).ok();
                if let Some(card) = card.and_then(|card| serde_json::from_slice::<Value>(&card).ok()) {
                    let base_url = card["base_url"].as_str().unwrap().to_owned();
                    if client.get(format!("{base_url}/_sandbox/health")).send().await.is_ok() {
                        return (card, base_url);
                    }
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let (card, base_url) = timeout(PATIENCE, up).await.expect("the sandbox starts");
        Self { card, base_url, client, _child: child, _leash: leash }
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.base_url.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// Puts or posts to its control API.
    pub(crate) async fn tell(&self, method: reqwest::Method, path: &str, body: &Value) {
        let request = self.client.request(method, format!("{}/_sandbox/{path}", self.base_url));
        let response = request.body(body.to_string()).send().await.unwrap();
        assert!(response.status().is_success(), "{path}: {}", response.text().await.unwrap());
    }

    /// Gets from its control API.
    pub(crate) async fn ask(&self, path: &str) -> Value {
        let text = self.client.get(format!("{}/_sandbox/{path}", self.base_url)).send().await.unwrap();
        serde_json::from_str(&text.text().await.unwrap()).unwrap()
    }
}

/// What every rig configures: the payment API of the sandbox with this card, its key files in `keys`, and a free admin
/// port.
pub(crate) fn configure(keys: &Path, card: &Value, sandbox_port: u16) -> Config {
    let text = |name: &str| card[name].as_str().unwrap().to_owned();
    let mut config = config::parse("", "rig", std::iter::empty()).unwrap();
    config.wechat.base_url = format!("http://127.0.0.1:{sandbox_port}");
    config.wechat.backup_base_url = String::new();
    config.wechat.mchid = text("mchid");
    config.wechat.merchant_serial = text("merchant_serial");
    config.wechat.merchant_key_file = keys.join("merchant_key.pem").display().to_string();
    config.wechat.public_keys.insert(text("public_key_id"), keys.join("wechatpay_public_key.pem"));
    config.admin.listen = "127.0.0.1:0".to_owned();
    config
}
