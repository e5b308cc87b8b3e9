//! The status page in a real browser: quiet, busy, paused and broken; on a wall and on a phone; light and dark. `make test-ops` runs it. With `SCREENSHOTS=DIR` it leaves its pictures there.

#![allow(clippy::unwrap_used)] // in the helpers too

#[path = "support/bed.rs"]
mod bed;
#[path = "support/broker.rs"]
mod broker;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bed::{Bed, PATIENCE, Service, command};
use broker::Broker;
use serde_json::json;

const WALL: (u32, u32) = (1280, 900);
const PHONE: (u32, u32) = (500, 1400);

/// Chromium, without a window, with a profile of its own.
struct Browser {
    dir: PathBuf,
}

impl Browser {
    fn run(&self, url: &str, more: &[&str]) -> Vec<u8> {
        let mut child = Command::new("timeout");
        child
            .args(["--kill-after=5", "60", "chromium"])
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--hide-scrollbars",
            ])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg(format!("--user-data-dir={}", self.dir.display()))
            .args(more)
            .arg(url)
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        // `timeout` ends it with all that it started; a browser that hangs must not hang the tests.
        let output = child.output().expect("chromium is needed: make test-ops installs it");
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    /// The page as it stands in the browser, its script at work.
    fn dom(&self, url: &str) -> String {
        String::from_utf8(self.run(url, &["--dump-dom"])).unwrap()
    }

    fn picture(&self, url: &str, (width, height): (u32, u32), dark: bool, to: &Path) {
        let scheme = format!("--blink-settings=preferredColorScheme={}", u8::from(!dark));
        let (size, to_file) =
            (format!("--window-size={width},{height}"), format!("--screenshot={}", to.display()));
        self.run(url, &[&size, &scheme, &to_file]);
        let png = std::fs::read(to).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 5_000, "{}: {} bytes", to.display(), png.len());
    }
}

/// Waits for words on the page as the service sends it, which is all that a browser without scripts has, then looks
/// whether a browser shows them, too, and takes pictures.
async fn look(browser: &Browser, service: &Service, name: &str, words: &[&str], pictures: &Path) {
    let since = Instant::now();
    loop {
        let (_, page) = service.get("/").await;
        if words.iter().all(|word| page.contains(word)) {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "{name}: not {words:?} in {page}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let url = service.url("/");
    tokio::task::block_in_place(|| {
        let dom = browser.dom(&url);
        for word in words {
            assert!(dom.contains(word), "{name}: no {word:?} in {dom}");
        }
        browser.picture(&url, WALL, false, &pictures.join(format!("{name}.png")));
        browser.picture(&url, WALL, true, &pictures.join(format!("{name}-dark.png")));
        browser.picture(&url, PHONE, false, &pictures.join(format!("{name}-phone.png")));
        browser.picture(&url, PHONE, true, &pictures.join(format!("{name}-phone-dark.png")));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_says_how_it_stands() {
    let broker = tokio::task::spawn_blocking(Broker::start).await.unwrap();
    let mut bed = Bed::on(&broker).await;
    let browser = Browser { dir: bed.dir.join("chromium") };
    let pictures = std::env::var("SCREENSHOTS").map_or_else(|_| bed.dir.clone(), PathBuf::from);
    let service = bed.start().await;
    look(
        &browser,
        &service,
        "quiet",
        &["Consuming.", "No commands in the last minute.", "None since the start."],
        &pictures,
    )
    .await;

    // Long enough for a few bars.
    let (begun, mut sent) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(15) {
        for _ in 0..8 {
            let more = if sent % 9 == 0 { json!({"state": "EXPIRED"}) } else { json!({}) };
            bed.issue(&format!("C{sent}"), more);
            bed.publish(&command(&format!("C{sent}"), &format!("USE_{sent:05}"))).await;
            sent += 1;
        }
        bed.publish_bytes(b"no command", lapin::BasicProperties::default()).await;
        for _ in 0..9 {
            bed.told().await;
        }
    }
    look(&browser, &service, "busy", &["commands settled in the last minute", "<td>redeemed"], &pictures)
        .await;

    bed.faults(json!([{"fault": {"kind": "status", "status": 401, "code": "SIGN_ERROR"}}]));
    bed.issue("CX", json!({}));
    bed.publish(&command("CX", "USE_00000X")).await;
    let paused = ["Paused for the payment API.", "rejects our signature", "/runbook#StoppedUnauthenticated"];
    look(&browser, &service, "paused", &paused, &pictures).await;

    tokio::task::block_in_place(|| broker.kill9());
    look(
        &browser,
        &service,
        "broken",
        &["Not consuming: the broker.", "As last counted", "broker:", "/runbook#BrokerDisconnected"],
        &pictures,
    )
    .await;
    let runbook = tokio::task::block_in_place(|| browser.dom(&service.url("/runbook")));
    assert!(runbook.contains("id=\"BrokerDisconnected\""), "{runbook}");
    service.stop().await;
    tokio::task::block_in_place(|| drop(broker));
}
