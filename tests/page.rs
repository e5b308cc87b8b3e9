//! The status page in a real browser: quiet, busy, paused and broken; on a wall and on a phone; light and dark; whole,
//! from top to bottom; and its script at work. `make test-ops` runs it. With `SCREENSHOTS=DIR` it leaves there the
//! pictures that the documents show.

#![allow(clippy::unwrap_used)] // in the helpers too

#[path = "support/bed.rs"]
mod bed;
#[path = "support/broker.rs"]
mod broker;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::RawQuery;
use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use bed::{Bed, PATIENCE, Service, command};
use broker::Broker;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Widths in pixels of the page.
const WALL: u32 = 1280;
const PHONE: u32 = 390;
/// The narrowest window that Chromium opens; what is narrower is shown larger in it.
const WINDOW_MIN: u32 = 500;
/// What the style lays the page on, in light.
const GROUND: &str = "rgb(246, 247, 249)";
/// Commands in hand when it is busy.
const IN_HAND: usize = 12;
/// The pictures of the documents.
const SHOWN: [&str; 6] = ["quiet", "busy", "paused", "broken", "busy-phone", "paused-dark"];

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

    /// The page as it stands in the browser.
    fn dom(&self, url: &str) -> String {
        String::from_utf8(self.run(url, &["--dump-dom"])).unwrap()
    }

    /// The page as it stands after its script has been at work for seven seconds, of the browser's own time.
    fn later(&self, url: &str) -> String {
        String::from_utf8(self.run(url, &["--virtual-time-budget=7000", "--dump-dom"])).unwrap()
    }

    /// A picture of the whole page at this width, and that nothing of it is cut off at the side.
    fn picture(&self, still: &Still, width: u32, dark: bool, to: &Path) {
        let frame = still.frame(width, 2_000);
        let dom = self.dom(&frame);
        let reported = |name: &str| -> u32 {
            let (_, rest) =
                dom.split_once(&format!("{name}=\"")).unwrap_or_else(|| panic!("no {name} in {dom}"));
            rest.split('"').next().unwrap().parse().unwrap()
        };
        assert!(reported("data-wide") <= width, "{}: {} px wide", to.display(), reported("data-wide"));
        assert!(dom.contains(&format!("data-ground=\"{GROUND}\"")), "its style is not applied: {dom}");
        let height = reported("data-high");
        let window = width.max(WINDOW_MIN);
        let scheme = format!("--blink-settings=preferredColorScheme={}", u8::from(!dark));
        let size = format!("--window-size={window},{}", (height * window).div_ceil(width));
        let to_file = format!("--screenshot={}", to.display());
        self.run(&still.frame(width, height), &[&size, &scheme, &to_file]);
        let png = std::fs::read(to).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 5_000, "{}: {} bytes", to.display(), png.len());
    }
}

/// A page as the service has sent it.
#[derive(Clone)]
struct Sent {
    text: String,
    /// What the service lets a browser load and run: its `Content-Security-Policy`.
    policy: String,
}

impl Sent {
    async fn by(service: &Service) -> Self {
        let answer = reqwest::get(service.url("/")).await.unwrap();
        let policy = answer.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
        Self { text: answer.text().await.unwrap(), policy }
    }

    /// The same for a frame of ours, and for nothing else: the service allows none.
    fn framed(mut self) -> Self {
        assert!(self.policy.contains("frame-ancestors 'none'"), "{}", self.policy);
        self.policy = self.policy.replace("frame-ancestors 'none'", "frame-ancestors 'self'");
        self
    }
}

impl IntoResponse for Sent {
    fn into_response(self) -> Response {
        ([(CONTENT_SECURITY_POLICY, self.policy)], Html(self.text)).into_response()
    }
}

/// A server that shows pages as the service has sent them: each of them once, one after the other, and the last one
/// from then on.
struct Still {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Still {
    async fn of(pages: Vec<Sent>) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let page = move || {
            let nth = asked.fetch_add(1, Ordering::Relaxed);
            let page = pages[nth.min(pages.len() - 1)].clone();
            async move { page }
        };
        let router = Router::new().route("/", get(page)).route("/frame", get(frame));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, task }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// The page in a frame of this size, which says how wide and high the page is.
    fn frame(&self, width: u32, height: u32) -> String {
        format!("{}frame?{width}x{height}", self.url())
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn frame(RawQuery(size): RawQuery) -> Html<String> {
    let size = size.unwrap();
    let (width, height) = size.split_once('x').unwrap();
    let scale = f64::from(width.parse::<u32>().unwrap().max(WINDOW_MIN)) / width.parse::<f64>().unwrap();
    Html(format!(
        "<!doctype html><style>html{{overflow:hidden}}body{{margin:0}}iframe{{border:0;width:{width}px;height:{height}px;\
         transform:scale({scale});transform-origin:0 0}}</style><iframe src=/ scrolling=no></iframe><script>\
         document.querySelector('iframe').onload=event=>{{const page=event.target.contentDocument;\
         document.body.dataset.wide=page.documentElement.scrollWidth;\
         document.body.dataset.ground=event.target.contentWindow.getComputedStyle(page.body).backgroundColor;\
         document.body.dataset.high=Math.ceil(page.body.getBoundingClientRect().height)}}</script>"
    ))
}

/// Waits for words on the page as the service sends it, which is all that a browser without scripts has, then looks
/// whether a browser shows them, too, and takes pictures. Gives the page.
async fn look(browser: &Browser, service: &Service, name: &str, words: &[&str], pictures: &Path) -> Sent {
    let since = Instant::now();
    let page = loop {
        let page = Sent::by(service).await;
        if words.iter().all(|word| page.text.contains(word)) {
            break page;
        }
        assert!(since.elapsed() < PATIENCE, "{name}: not {words:?} in {}", page.text);
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let url = service.url("/");
    let still = Still::of(vec![page.clone().framed()]).await;
    tokio::task::block_in_place(|| {
        let dom = browser.dom(&url);
        for word in words {
            assert!(dom.contains(word), "{name}: no {word:?} in {dom}");
        }
        for (kind, width, dark) in
            [("", WALL, false), ("-dark", WALL, true), ("-phone", PHONE, false), ("-phone-dark", PHONE, true)]
        {
            let name = format!("{name}{kind}");
            let shown = SHOWN.contains(&name.as_str());
            let dir = if shown { pictures } else { browser.dir.parent().unwrap() };
            browser.picture(&still, width, dark, &dir.join(format!("{name}.png")));
        }
    });
    page
}

/// That the script brings the page up to date by itself, under the service's own policy: the browser loads it once, and
/// it shows what came after that.
async fn the_script_is_at_work(browser: &Browser, quiet: &Sent, busy: &Sent) {
    let still = Still::of(vec![quiet.clone(), busy.clone()]).await;
    let dom = tokio::task::block_in_place(|| browser.later(&still.url()));
    assert!(dom.contains("commands settled in the last minute"), "{dom}");
    assert!(!dom.contains("No commands in the last minute."), "{dom}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_says_how_it_stands() {
    let broker = tokio::task::spawn_blocking(Broker::start).await.unwrap();
    let mut bed = Bed::on(&broker).await;
    let browser = Browser { dir: bed.dir.join("chromium") };
    let pictures = std::env::var("SCREENSHOTS").map_or_else(|_| bed.dir.clone(), PathBuf::from);
    let service = bed.start().await;
    let quiet = look(
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
            bed.next_event().await;
        }
    }
    // And for as long as the pictures take, work in hand.
    bed.faults(json!([{"fault": {"kind": "slow", "ms": 4_000}}]));
    for nth in 0..IN_HAND {
        bed.issue(&format!("S{nth}"), json!({}));
        bed.publish(&command(&format!("S{nth}"), &format!("USE_S{nth:04}"))).await;
    }
    let in_hand = format!("<dd>{IN_HAND} of ");
    let words = ["commands settled in the last minute", "<td>redeemed", "commands in each 5 s: ", &in_hand];
    let busy = look(&browser, &service, "busy", &words, &pictures).await;
    bed.faults(json!([]));
    for _ in 0..IN_HAND {
        assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    }
    the_script_is_at_work(&browser, &quiet, &busy).await;

    // The provider's own words are Chinese, for which a browser may have no letters.
    let refusal =
        json!({"kind": "status", "status": 401, "code": "SIGN_ERROR", "message": "wrong signature"});
    bed.faults(json!([{ "fault": refusal }]));
    bed.issue("CX", json!({}));
    bed.publish(&command("CX", "USE_00000X")).await;
    let paused =
        ["Paused for the payment API.", "rejects our signature", "/runbook#SuspendedUnauthenticated"];
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
