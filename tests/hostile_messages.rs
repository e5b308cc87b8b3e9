//! Messages that somebody wrote who may publish commands and means harm: too deep, too large, forged. The service lives,
//! the commands around them are redeemed, and what is shown of them harms nobody who looks.

#![allow(clippy::unwrap_used)] // in the helpers too

#[path = "support/bed.rs"]
mod bed;
#[path = "support/broker.rs"]
mod broker;
#[path = "support/raw_amqp.rs"]
mod raw_amqp;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use bed::{Bed, Service, command, until};
use broker::{Broker, shared};
use raw_amqp::{Published, RawPublisher, nested};
use redeemer::wechat::api::hex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

/// The longest wait for 21 deliveries.
const PATIENCE: Duration = Duration::from_secs(300);
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Publishes to an exchange with headers that no client writes.
async fn publish_raw(bed: &Bed, exchange: &str, headers: Vec<u8>, body: Vec<u8>) -> Published {
    let (uri, exchange) = (bed.config.broker.uri.clone(), exchange.to_owned());
    let publish = move || RawPublisher::connect(&uri).publish(&exchange, "use", &headers, &body);
    tokio::task::spawn_blocking(publish).await.unwrap()
}

/// Only the message itself is parked, by the broker. Each of its 21 deliveries is a lost connection, after which the
/// broker may take seconds to deliver it again.
async fn only_the_deep_one_is_parked(prefix: &str, kind: u8, levels: usize) {
    let mut bed = Bed::new().await;
    bed.patience = PATIENCE;
    bed.leave_parked().await;
    let names = bed.config.broker.names.clone();
    let codes: BTreeSet<String> = (0..60).map(|nth| format!("{prefix}{nth}")).collect();
    for (nth, code) in codes.iter().enumerate() {
        bed.issue(code, json!({}));
        bed.publish(&command(code, &format!("USE_{code}"))).await;
        if nth == 30 {
            let body = command("NONE", "USE_NONE").to_string().into_bytes();
            let published = publish_raw(&bed, &names.commands, nested(kind, levels), body).await;
            assert_eq!(published, Published::Acked);
        }
    }
    let service = bed.start_unready().await;
    let mut redeemed = BTreeSet::new();
    while redeemed.len() < codes.len() {
        let told = bed.told().await;
        assert_eq!(told.gist(), "redeemed - USED");
        redeemed.insert(told.data("/coupon_code").as_str().unwrap().to_owned());
    }
    assert_eq!(redeemed, codes);
    let since = Instant::now();
    while bed.ready(&names.parked).await == 0 {
        assert!(since.elapsed() < PATIENCE, "the deep one is not parked in {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    service.wait_ready().await;
    assert_eq!(bed.uses().len(), codes.len());
    assert_eq!([bed.ready(&names.commands).await, bed.ready(&names.parked).await], [0, 1]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_arrays_cost_neither_process_nor_neighbors() {
    only_the_deep_one_is_parked("ARRAY", b'A', 1_500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_tables_cost_neither_process_nor_neighbors() {
    only_the_deep_one_is_parked("TABLE", b'F', 2_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_headers_in_the_parked_queue_end_no_program() {
    let bed = bed_with_console(tokio::task::spawn_blocking(shared).await.unwrap()).await;
    let parked = bed.config.broker.names.parked.clone();
    let published = publish_raw(&bed, &parked, nested(b'A', 1_500), b"{}".to_vec()).await;
    assert_eq!(published, Published::Acked);
    for arguments in [&["list"][..], &["show"], &["discard", "--all", "--because", "x"]] {
        let output = run(&bed, &[&["parked"], arguments].concat()).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    }
    let service = bed.start().await;
    let cookie = log_in(&service).await;
    assert_eq!(console(&service, &cookie, "/parked").await.0, 502);
    until("it is still parked", async || bed.ready(&parked).await == 1).await;
    service.stop().await;
}

/// A bed with the parked desk open, and the commands that are parked left there.
async fn bed_with_console(broker: &Broker) -> Bed {
    let mut bed = Bed::on(broker).await;
    let token = bed.dir.join("token");
    std::fs::write(&token, TOKEN).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    bed.config.admin.parked_token_file = token.display().to_string();
    bed.leave_parked().await;
    bed
}

/// Logs in, and gives the session's cookie.
async fn log_in(service: &Service) -> String {
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let login = http.post(service.url("/parked/login")).body(format!("token={TOKEN}&operator=lin"));
    let login = login.send().await.unwrap();
    login.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned()
}

async fn console(service: &Service, cookie: &str, path: &str) -> (u16, String) {
    let page = reqwest::Client::new().get(service.url(path)).header("cookie", cookie).send().await.unwrap();
    (page.status().as_u16(), page.text().await.unwrap())
}

/// A command line on the bed's configuration.
async fn run(bed: &Bed, arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_redeemer"));
    program.arg("--config").arg(bed.config_file()).args(arguments);
    program.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap()
}

/// What `check` says of the size of messages.
async fn checked_message_size(bed: &Bed) -> String {
    let output = run(bed, &["check", "--json"]).await;
    let lines = String::from_utf8(output.stdout).unwrap();
    let findings = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut sizes = findings.filter(|finding| finding["what"] == "message size");
    let finding = sizes.next().unwrap_or_else(|| panic!("no finding in {lines}"));
    finding["gravity"].as_str().unwrap().to_owned()
}

#[test]
fn shipped_broker_files_bound_messages() {
    for file in ["rabbitmq.conf", "cluster/rabbitmq.conf"] {
        let file = format!("{}/deploy/rabbitmq/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.lines().any(|line| line == "max_message_size = 131072"), "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shipped_broker_refuses_a_message_over_128_kib() {
    let bed = Bed::new().await;
    let commands = bed.config.broker.names.commands.clone();
    let size = async |bytes: usize| publish_raw(&bed, &commands, Vec::new(), vec![b' '; bytes]).await;
    assert_eq!(size(128 * 1024).await, Published::Acked);
    assert_eq!(size(128 * 1024 + 1).await, Published::Closed(406));
    let service = bed.start().await;
    assert_eq!(checked_message_size(&bed).await, "ok");
    assert_eq!(service.get("/readyz").await, (200, "ok\n".to_owned()));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_without_message_bound_is_warned_of() {
    let start = || Broker::start_with(&["max_message_size = 134217728"]);
    let broker = tokio::task::spawn_blocking(start).await.unwrap();
    let bed = bed_with_console(&broker).await;
    let service = bed.start().await;
    assert_eq!(checked_message_size(&bed).await, "warning");
    until("a warning in readiness", async || service.get("/readyz").await.1.contains("\nwarning: ")).await;
    assert_eq!(service.get("/readyz").await.0, 200, "it consumes all the same");

    // A body of megabytes is shown in part.
    let body = "\u{202e}<&".repeat(500_000).into_bytes();
    let id = hex(&Sha256::digest(&body));
    let parked = bed.config.broker.names.parked.clone();
    assert_eq!(publish_raw(&bed, &parked, Vec::new(), body).await, Published::Acked);
    let cookie = log_in(&service).await;
    let (status, page) = console(&service, &cookie, &format!("/parked/{id}")).await;
    assert_eq!(status, 200, "{page}");
    assert!(page.len() < 512 * 1024, "{} bytes", page.len());
    for arguments in [&["parked", "show"][..], &["parked", "show", "--json"]] {
        let output = run(&bed, arguments).await;
        let bytes = output.stdout.len();
        assert!(output.status.success() && bytes > 64 * 1024 && bytes < 512 * 1024, "{bytes} bytes");
    }
    service.stop().await;
    drop(bed);
    tokio::task::spawn_blocking(|| drop(broker)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_within_the_depth_bound_are_read() {
    let mut bed = Bed::new().await;
    bed.issue("D1", json!({}));
    let service = bed.start().await;
    // The header table is the first level.
    let body = command("D1", "USE_D1").to_string().into_bytes();
    let commands = bed.config.broker.names.commands.clone();
    assert_eq!(publish_raw(&bed, &commands, nested(b'F', 63), body).await, Published::Acked);
    assert_eq!(bed.told().await.gist(), "redeemed - USED");
    service.stop().await;
}
