//! The sandbox and the service as programs of their own, as they run in real life, and the command line beside them.
//!
//! Both end when this value is dropped and, through their standard input, at the latest with the test process.
#![allow(dead_code)] // each test binary uses its own part of it

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A sandbox and a service on a broker, with names of their own there.
pub(crate) struct Programs {
    dir: PathBuf,
    /// What the names of exchanges and queues begin with.
    pub prefix: String,
    /// Where the sandbox is.
    pub base_url: String,
    config: PathBuf,
    sandbox: Child,
    service: Option<Child>,
}

impl Programs {
    /// Starts both and waits until the service is ready. Coupons whose code begins with `auto` are there.
    pub(crate) fn start(uri: &str) -> Self {
        let dir = unused_dir("programs");
        let prefix = dir.file_name().expect("it has a name").to_string_lossy().into_owned();
        Self::begin(uri, dir, prefix)
    }

    /// The same under the names that everybody has by default, for a broker of one's own.
    pub(crate) fn start_by_default_names(uri: &str) -> Self {
        Self::begin(uri, unused_dir("programs"), "redemption".to_owned())
    }

    fn begin(uri: &str, dir: PathBuf, prefix: String) -> Self {
        let sandbox = redeemer()
            .args(["sandbox", "--with-parent", "--auto-issue", "--listen", "127.0.0.1:0", "--dir"])
            .arg(dir.join("sandbox"))
            .stdin(Stdio::piped())
            .stdout(log(&dir, "sandbox.log"))
            .stderr(log(&dir, "sandbox.err"))
            .spawn()
            .expect("the sandbox starts");
        let identity: Value = until("the sandbox tells where it is", || {
            let text = fs::read_to_string(dir.join("sandbox/identity.json")).ok()?;
            let identity: Value = serde_json::from_str(&text).ok()?;
            (identity["base_url"] != "").then_some(identity)
        });
        let text = |name: &str| identity[name].as_str().expect("the identity has it").to_owned();
        let config = dir.join("config.toml");
        let file = |name: &str| dir.join("sandbox").join(name).display().to_string();
        let (base_url, public_key_id) = (text("base_url"), text("public_key_id"));
        let lines = format!(
            "[broker]\nuri = {uri:?}\n[broker.names]\ncommands = \"{prefix}.commands\"\n\
             retry = \"{prefix}.retry\"\nresults = \"{prefix}.results\"\nunrouted = \"{prefix}.unrouted\"\n\
             parked = \"{prefix}.parked\"\ndead = \"{prefix}.dead\"\ninstances = \"{prefix}.instances\"\n[wechat]\nbase_url = {base_url:?}\nbackup_base_url = \"\"\n\
             mchid = {:?}\nmerchant_serial = {:?}\nmerchant_key_file = {:?}\n\
             [wechat.public_keys]\n{public_key_id} = {:?}\n[admin]\nlisten = \"127.0.0.1:0\"\n",
            text("mchid"),
            text("merchant_serial"),
            file("merchant_key.pem"),
            file("wechatpay_public_key.pem"),
        );
        fs::write(&config, lines).expect("the configuration is written");
        let mut programs = Self { dir, prefix, base_url, config, sandbox, service: None };
        programs.start_service();
        programs
    }

    /// Starts the service, and waits until it is ready.
    pub(crate) fn start_service(&mut self) {
        let address = self.dir.join("admin.address");
        let _ = fs::remove_file(&address);
        let service = self
            .command(&["run", "--with-parent", "--admin-address-file"])
            .arg(&address)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log(&self.dir, "service.log"))
            .spawn()
            .expect("the service starts");
        self.service = Some(service);
        until("the service is ready", || {
            let address = fs::read_to_string(&address).ok()?;
            get(&address, "/readyz").filter(|answer| answer.starts_with("HTTP/1.1 200"))
        });
    }

    /// Ends the service by SIGTERM; it must exit with 0.
    pub(crate) fn stop_service(&mut self) {
        if let Some(mut service) = self.service.take() {
            terminate(&service);
            let status = ended(&mut service);
            assert_eq!(status.code(), Some(0), "{}", self.log());
        }
    }

    /// Where the service's admin port is.
    pub(crate) fn admin(&self) -> String {
        fs::read_to_string(self.dir.join("admin.address")).expect("the service has reported its address")
    }

    /// What the service has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("service.log")).unwrap_or_default()
    }

    /// A command line with this service's configuration.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = redeemer();
        command.arg("--config").arg(&self.config).args(arguments);
        command
    }

    /// The configuration of the service.
    pub(crate) fn config_file(&self) -> &Path {
        &self.config
    }

    /// Writes a file.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.join(name);
        fs::write(&path, content).expect("the file is written");
        path
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the service's log:\n{}", self.log());
        } else {
            self.stop_service();
        }
        for child in self.service.iter_mut().chain([&mut self.sandbox]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The program under test, without the caller's configuration.
pub(crate) fn redeemer() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redeemer"));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("REDEEMER_") {
            command.env_remove(variable);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// A command for a coupon that the sandbox issues at first sight.
pub(crate) fn command(name: &str) -> Value {
    json!({
        "openid": "oUser-1",
        "coupon_code": format!("auto_{name}"),
        "brand_id": "120344",
        "product_coupon_id": "1000000013",
        "stock_id": "1000000013001",
        "appid": "wx233544546545989",
        "use_time": "2026-03-05T12:30:45+08:00",
        "associated_order_info": { "transaction_id": "4200000000123456789123456789" },
        "out_request_no": format!("number_{name}"),
    })
}

/// Runs it to its end.
pub(crate) fn run(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    child.wait_with_output().expect("the program ends")
}

/// What it wrote on standard output.
pub(crate) fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("the output is text")
}

/// What it wrote on standard error.
pub(crate) fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("the complaints are text")
}

/// Sends SIGTERM.
pub(crate) fn terminate(child: &Child) {
    let sent = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &child.id().to_string()]).status();
    assert!(sent.expect("sh runs").success());
}

/// Waits for its end.
pub(crate) fn ended(child: &mut Child) -> ExitStatus {
    until("the program ends", || child.try_wait().expect("it is our child"))
}

/// Looks again and again until there is something to be seen.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < give_up_at, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The whole answer to a GET; nothing if none exists.
pub(crate) fn get(address: &str, path: &str) -> Option<String> {
    talk(address, &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"))
}

/// The whole answer to a POST of JSON; nothing if none exists.
pub(crate) fn post(address: &str, path: &str, body: &Value) -> Option<String> {
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    talk(address, &format!("{head}content-length: {}\r\n\r\n{body}", body.len()))
}

/// The whole answer to a request; nothing if none exists.
pub(crate) fn talk(address: &str, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// A folder of our own below `target/tmp`, which is there and empty.
pub(crate) fn unused_dir(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{count}", process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("the folder is made");
    dir
}

fn log(dir: &Path, name: &str) -> File {
    File::create(dir.join(name)).expect("the log is opened")
}
