//! A real Prometheus for tests: the Debian package's program, on a free port, with a folder of its own.
//!
//! It ends when its value is dropped, and with the process that started it. The package's own service stays alone.
#![allow(clippy::unwrap_used)] // a test bed that cannot be made fails the test

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

#[path = "ports.rs"]
mod ports;

/// The longest wait until it listens.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running Prometheus.
pub(crate) struct Prometheus {
    address: String,
    dir: PathBuf,
    program: Child,
    client: reqwest::Client,
}

impl Prometheus {
    /// Starts it on these rules, looking every second, at nothing yet. To be called from a thread that stays.
    pub(crate) fn start(dir: &Path, rules: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("rules.yml"), rules).unwrap();
        fs::write(dir.join("targets.json"), "[]").unwrap();
        let config = "global: { scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }\n\
                      rule_files: [rules.yml]\n\
                      scrape_configs:\n\
                      - job_name: redeemer\n  \
                        file_sd_configs: [{ files: [targets.json], refresh_interval: 1s }]\n";
        fs::write(dir.join("prometheus.yml"), config).unwrap();
        // Another program may take the port before it does; then it ends at once, and gets another one.
        for _ in 0..8 {
            let address = format!("127.0.0.1:{}", ports::unused());
            let mut program = Self::launch(dir, &address);
            let since = Instant::now();
            while TcpStream::connect(&address).is_err() && program.try_wait().unwrap().is_none() {
                assert!(since.elapsed() < PATIENCE, "Prometheus does not listen after {PATIENCE:?}");
                thread::sleep(Duration::from_millis(20));
            }
            let complaint = fs::read_to_string(dir.join("log")).unwrap_or_default();
            match program.try_wait().unwrap() {
                None => {
                    return Self { address, dir: dir.to_owned(), program, client: reqwest::Client::new() };
                }
                Some(_) if complaint.contains("address already in use") => {}
                Some(status) => panic!("Prometheus ended by {status}: {complaint}"),
            }
        }
        panic!("eight ports were taken, one after the other");
    }

    fn launch(dir: &Path, address: &str) -> Child {
        let log = File::create(dir.join("log")).unwrap();
        // Killed, too, when the thread is gone that starts it: a test that is killed leaves nothing behind.
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "prometheus", "--log.level=warn"])
            .arg(format!("--web.listen-address={address}"))
            .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("deploy/local/install prometheus")
    }

    /// Has it look at these admin ports and no others.
    pub(crate) fn scrape(&self, targets: &[&str]) {
        let next = self.dir.join("targets.new");
        fs::write(&next, json!([{ "targets": targets }]).to_string()).unwrap();
        fs::rename(next, self.dir.join("targets.json")).unwrap();
    }

    /// What a query finds: labels and value of each series. Nothing if it does not answer yet.
    ///
    /// # Panics
    /// Where it refuses the query.
    pub(crate) async fn find(&self, query: &str) -> Vec<(Value, f64)> {
        let byte = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        };
        let url = format!(
            "http://{}/api/v1/query?query={}",
            self.address,
            query.bytes().map(byte).collect::<String>()
        );
        let Ok(response) = self.client.get(url).send().await else { return Vec::new() };
        let text = response.text().await.unwrap_or_default();
        // Before it has started it answers in plain words.
        let Ok(answer) = serde_json::from_str::<Value>(&text) else { return Vec::new() };
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let series = answer["data"]["result"].as_array().expect("a query finds series");
        let value = |each: &Value| each["value"][1].as_str().unwrap().parse().unwrap();
        series.iter().map(|each| (each["metric"].clone(), value(each))).collect()
    }

    /// Whether a query finds a number.
    pub(crate) async fn finds(&self, query: &str) -> bool {
        self.find(query).await.iter().any(|(_, value)| value.is_finite())
    }

    /// What it has complained of.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
