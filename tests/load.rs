//! The service under load, with much waiting. Each test has the machine to itself.

#![allow(clippy::unwrap_used)] // in the helpers too
#![allow(clippy::print_stdout)] // what was measured is worth a line

#[path = "support/bed.rs"]
mod bed;
#[path = "support/broker.rs"]
mod broker;

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bed::{Bed, PATIENCE, command, until};
use jiff::{SignedDuration, Timestamp};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use redeemer::config::Span;
use redeemer::policy::attempt::{EffectState, Progress};
use redeemer::wechat::client::Prepared;
use redeemer::wire::command::decode;
use redeemer::wire::retry_message;
use serde_json::{Value, json};
use tokio::sync::Mutex;

/// What is measured here must not be disturbed by its neighbors.
static ALONE: Mutex<()> = Mutex::const_new(());

fn span(millis: u64) -> Span {
    Span(Duration::from_millis(millis))
}

/// The program itself, ended with the value.
struct Program {
    child: Child,
    admin: String,
}

impl Program {
    async fn start(bed: &Bed) -> Self {
        let config = &bed.config;
        let names = &config.broker.names;
        let card = bed.sandbox.card();
        let text = format!(
            "[broker]\nuri = {:?}\n[broker.names]\ncommands = {:?}\nretry = {:?}\nresults = {:?}\nunrouted = {:?}\n\
             parked = {:?}\ndead = {:?}\ninstances = {:?}\n[wechat]\nbase_url = {:?}\nbackup_base_url = \"\"\nmchid = {:?}\nmerchant_serial = {:?}\n\
             merchant_key_file = {:?}\n[wechat.public_keys]\n{} = {:?}\n[retry]\ninitial = \"10ms\"\n\
             query_delay = \"5ms\"\nin_process_max = \"10ms\"\ndelays = [\"30s\", \"1h\"]\n[rate_limit]\ncalls_per_second = 5000\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n[log]\nfilter = \"warn\"\n",
            config.broker.uri,
            names.commands,
            names.retry,
            names.results,
            names.unrouted,
            names.parked,
            names.dead,
            names.instances,
            config.wechat.base_url,
            card.mchid,
            card.merchant_serial,
            config.wechat.merchant_key_file,
            card.public_key_id,
            bed.dir.join("wechatpay_public_key.pem").display().to_string(),
        );
        let (file, address) = (bed.dir.join("config.toml"), bed.dir.join("admin.address"));
        std::fs::write(&file, text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_redeemer"))
            .arg("--config")
            .arg(&file)
            .args(["run", "--with-parent", "--admin-address-file"])
            .arg(&address)
            // Open as long as the value lives: the program ends with us at the latest.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut program = Self { child, admin: String::new() };
        until("the admin port", async || address.exists()).await;
        program.admin = std::fs::read_to_string(&address).unwrap();
        program
    }

    async fn metric(&self, name: &str) -> f64 {
        let text =
            reqwest::get(format!("http://{}/metrics", self.admin)).await.unwrap().text().await.unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    /// Resident memory in KiB.
    fn resident(&self) -> u64 {
        self.kib("VmRSS:")
    }

    /// The most that was ever resident, in KiB.
    fn resident_max(&self) -> u64 {
        self.kib("VmHWM:")
    }

    fn kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_commands_in_wait_queues_cost_no_memory() {
    const WARM: usize = 2_000;
    const WAITING: usize = 10_000;
    let _alone = ALONE.lock().await;
    let bed = Bed::new().await;
    // Locked by a concurrent use, says the provider of every coupon, and signs it: unsigned it would not be believed.
    let locked = json!({"kind": "status", "status": 403, "code": "NOT_ENOUGH", "sub_code": 272_756_746, "signed": true});
    bed.faults(json!([{"coupon_prefix": "C", "fault": locked}]));
    let program = Program::start(&bed).await;
    // The first call goes alone until one was answered well.
    bed.issue("WELL", json!({}));
    bed.publish(&command("WELL", "USE_WELL")).await;
    let redeemed = r#"redeemer_outcomes_total{outcome="redeemed",reason=""}"#;
    until("a first success", async || program.metric(redeemed).await == 1.0).await;
    let delayed = async |count: usize| {
        let delayed =
            async || program.metric(r#"redeemer_commands_settled_total{settlement="delayed"}"#).await;
        let patience = Instant::now() + 2 * PATIENCE;
        while delayed().await < count as f64 {
            assert!(Instant::now() < patience, "{} of {count} delayed", delayed().await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        until("an empty hand", async || program.metric("redeemer_commands_in_flight").await == 0.0).await;
    };
    let publish = async |from: usize, to: usize| {
        for nth in from..to {
            let text = command(&format!("C{nth}"), &format!("USE_{nth:05}")).to_string();
            // Each has been in the first queue, and is delayed in the second one, for an hour.
            let prepared = Prepared::new(&decode(text.as_bytes()).unwrap());
            let (now, day) = (Timestamp::now(), SignedDuration::from_hours(24));
            let progress = Progress::resumed(1, 1, EffectState::NoEffect, now, now + day, None);
            let mut headers = FieldTable::default();
            for (name, text) in retry_message::write(&progress, &[], prepared.body_sha256()) {
                headers.insert(name.into(), AMQPValue::LongString(text.into()));
            }
            let properties = BasicProperties::default().with_headers(headers);
            bed.publish_bytes(text.as_bytes(), properties).await;
        }
    };
    publish(0, WARM).await;
    delayed(WARM).await;
    let before = program.resident();
    publish(WARM, WARM + WAITING).await;
    delayed(WARM + WAITING).await;
    let after = program.resident();
    let waiting = bed.ready(&format!("{}.1h", bed.config.broker.names.retry)).await;
    assert_eq!(waiting as usize, WARM + WAITING);
    println!("resident: {before} KiB, and {after} KiB with {WAITING} more commands waiting");
    // The messages alone, held in any form, would be 16 MiB; what is remembered against replayed responses is less.
    assert!(after < before + 12_288, "{before} KiB before, {after} KiB after");
}

/// Bodies of the longest that is read and of twice that, with a sound command among every ten.
#[tokio::test(flavor = "multi_thread")]
async fn flood_of_longest_bodies_delays_only_prefetched_ones() {
    const FLOOD: usize = 2_000;
    const LONGEST: usize = 64 * 1024;
    let _alone = ALONE.lock().await;
    let mut bed = Bed::new().await;
    bed.leave_parked().await;
    let program = Program::start(&bed).await;
    bed.issue("WELL", json!({}));
    bed.publish(&command("WELL", "USE_WELL")).await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    let before = program.resident();
    let (longest, too_long) = ("[".repeat(LONGEST), "x".repeat(2 * LONGEST));
    for nth in 0..FLOOD {
        if nth % 10 == 0 {
            bed.issue(&format!("C{nth}"), json!({}));
            bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:05}"))).await;
        } else {
            let body = if nth % 2 == 0 { &longest } else { &too_long };
            bed.publish_bytes(body.as_bytes(), lapin::BasicProperties::default()).await;
        }
    }
    let mut gists: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..FLOOD {
        *gists.entry(bed.next_event().await.gist()).or_default() += 1;
    }
    let expected = [("invalid invalid_command -", FLOOD * 9 / 10), ("redeemed - USED", FLOOD / 10)];
    assert_eq!(gists, expected.map(|(gist, count)| (gist.to_owned(), count)).into());
    assert_eq!(bed.uses().len(), 1 + FLOOD / 10);
    let parked = &bed.config.broker.names.parked;
    until("all of them parked", async || bed.ready(parked).await as usize == FLOOD * 9 / 10).await;
    let most = program.resident_max();
    println!("resident: {before} KiB, and at most {most} KiB under the flood");
    // Each is held as it came in, as it waits to be parked, and as it goes out.
    let prefetched = u64::from(bed.config.broker.prefetch) * 2 * LONGEST as u64 / 1024;
    assert!(most < before + 3 * prefetched, "{before} KiB before, at most {most} KiB");
}

/// Commands of ever-new brands that have not authorized us: each is denied for the first time, and each costs its own call at
/// most twice. The commands of a brand that lets us in are redeemed as they come, not after the flood.
#[tokio::test(flavor = "multi_thread")]
async fn flood_of_denying_brands_delays_no_allowing_brand() {
    const BEFORE: usize = 800;
    const AMONG: usize = 1_000;
    const AFTER: usize = 1_200;
    const GOOD: usize = 200;
    let _alone = ALONE.lock().await;
    let mut bed = Bed::new().await;
    bed.config.retry.delays = vec![span(10_000), span(60_000)];
    bed.faults(json!([{"coupon_prefix": "X", "fault":
        {"kind": "status", "status": 403, "code": "NO_AUTH", "signed": true}}]));
    let mut commands = Vec::new();
    for nth in 0..BEFORE + AMONG + AFTER {
        let mut stranger = command(&format!("X{nth}"), &format!("USE_X{nth:04}"));
        stranger["brand_id"] = format!("{}", 1_000_000 + nth).into();
        commands.push(stranger);
        let among = (BEFORE..BEFORE + AMONG).contains(&nth) && nth % (AMONG / GOOD) == 0;
        if among {
            let good = format!("GOOD{nth}");
            bed.issue(&good, json!({}));
            commands.push(command(&good, &format!("USE_{good}")));
        }
    }
    for some in commands.chunks(200) {
        futures_util::future::join_all(some.iter().map(|command| bed.publish(command))).await;
    }
    let (begun, service) = (Instant::now(), bed.start_unready().await);
    let (mut redeemed, mut refused) = (0, 0);
    while redeemed < GOOD {
        let reported = bed.next_event().await;
        match (reported.gist().as_str(), reported.data("/brand_id") == "120344") {
            ("redeemed - USED", true) => redeemed += 1,
            ("refused not_authorized -", false) => refused += 1,
            other => panic!("{other:?}: {:#}", reported.event),
        }
    }
    println!("{redeemed} redeemed after {:?}, {refused} refused by then", begun.elapsed());
    assert!(refused < BEFORE + AMONG + AFTER, "the flood ended first");
    // In the order in which they were published: the flood costs its calls, and holds up nobody.
    let attempts = bed.ledger()["attempts"].as_array().unwrap().clone();
    let is_good = |call: &Value| call["coupon_code"].as_str().is_some_and(|code| code.starts_with("GOOD"));
    let last = attempts.iter().rposition(is_good).unwrap();
    let calls = attempts[..=last].iter().filter(|call| !is_good(call)).count();
    assert!(calls <= 2 * (BEFORE + AMONG), "{calls} calls of the flood before the last good one");
    let own = attempts.iter().filter(|call| is_good(call)).count();
    assert!(own <= GOOD + GOOD / 10, "{own} calls for {GOOD} good commands");
    assert_eq!(service.metric(r#"redeemer_suspended{reason="unauthorized"}"#).await, 0.0);
    service.stop().await;
}
