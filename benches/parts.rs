//! What each part of a command's way costs by itself: `cargo bench --features measure --bench parts`.
//!
//! Everything here is the service's own code on real inputs; nothing waits and nothing is sent. How the whole does is
//! measured by `make bench`. Instructions are counted beside the time if the machine has a counter for them: most virtual
//! ones have none.

#![allow(clippy::unwrap_used, reason = "whatever fails here is a defect of this file")]
#![allow(clippy::print_stdout, reason = "a benchmark talks to people")]

use std::fs;
use std::hint::black_box;
use std::io;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;
use perf_event::events::Hardware;
use perf_event::{Builder, Counter};
use rand::SeedableRng as _;
use redeemer::domain::evidence::{Evidence, Operation};
use redeemer::domain::outcome::{EstablishedBy, Outcome};
use redeemer::domain::redemption::Redemption;
use redeemer::policy::classify::{Authenticity, CallResult, Response, classify};
use redeemer::telemetry::log;
use redeemer::telemetry::masking::Short;
use redeemer::wechat::client::Prepared;
use redeemer::wechat::keys::{MerchantKey, PublicKeys, VerificationKey};
use redeemer::wechat::response;
use redeemer::wechat::sign::{Merchant, sign};
use redeemer::wechat::verify::{NONCE, SERIAL, SIGNATURE, TIMESTAMP, verify};
use redeemer::wire::command::decode;
use redeemer::wire::result_event::{EventContext, encode};
use rsa::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, LineEnding};
use serde_json::{Map, Value, json};
use tracing::dispatcher::{self, Dispatch};
use tracing::info;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;

const PUBLIC_KEY_ID: &str = "PUB_KEY_ID_0119000001092025010100000000000001";
const NOW: i64 = 1_772_685_045;

fn parts(criterion: &mut Criterion) {
    let key = rsa::PrivateKey::new(&mut rand::rngs::StdRng::seed_from_u64(1), 2048).unwrap();
    let key_pem = key.to_pkcs8_pem(LineEnding::LF).unwrap();
    let merchant_key = MerchantKey::from_pem(&key_pem, "a key").unwrap();
    let public_pem = key.to_public_key().to_public_key_pem(LineEnding::LF).unwrap();
    let mut keys = PublicKeys::default();
    keys.insert(PUBLIC_KEY_ID.to_owned(), VerificationKey::from_public_pem(&public_pem, "a key").unwrap());
    let now = Timestamp::from_second(NOW).unwrap();

    let command = command();
    let redemption = decode(&command).unwrap();
    let prepared = Prepared::new(&redemption);
    let body = entity();
    let headers = headers(&merchant_key, &body);
    let answer = reply_of(&body);
    let outcome = Outcome::Redeemed { by: EstablishedBy::Response, coupon: response::coupon(&body).unwrap() };
    let evidence = [evidence(now)];

    let mut parts = Parts::new(criterion);
    parts.measure("command/decode", || decode(black_box(&command)));
    parts.measure("prepare", || Prepared::new(black_box(&redemption)));

    let merchant =
        Merchant { mchid: "1900000109".to_owned(), serial: "5157F09EFDC096DE15EBE81A47057A72".to_owned() };
    let target = "/v3/marketing/partner/product-coupon/users/oUser/coupons/C0001/use";
    parts.measure("sign", || {
        sign(&merchant_key, &merchant, "POST", target, black_box(prepared.body()), now, 1)
    });
    assert_eq!(verify(&headers, &body, &keys, now), Authenticity::Verified);
    parts.measure("verify a 6 KB reply", || verify(black_box(&headers), black_box(&body), &keys, now));

    parts.measure("reply of 6 KB/parse", || response::coupon(black_box(&body)));
    let telling =
        EventContext { source: "/redeemer", at: now, traceparent: None, attempts: 1, evidence: &evidence };
    parts.measure("reply of 6 KB/encode the event", || {
        encode(black_box(&redemption), black_box(&outcome), telling)
    });
    redeemed(&answer, &redemption);
    parts.measure("verdict", || classify(Operation::Redeem, black_box(&answer), black_box(&redemption)));
    log_lines(&mut parts, &redemption);
    parts.write();
}

/// The line of a settled command, written to nowhere: as the service writes it, and without bounds and masking.
fn log_lines(parts: &mut Parts<'_>, redemption: &Redemption) {
    let filter = || EnvFilter::new("info");
    let layer = || tracing_subscriber::fmt::layer().with_ansi(false);
    let bare = tracing_subscriber::registry().with(filter());
    let plain = bare.with(layer().with_target(false).with_writer(io::sink));
    let bare = tracing_subscriber::registry().with(filter());
    let json = bare.with(layer().json().flatten_event(true).with_writer(io::sink));
    let ours = |format| log::subscriber(format, filter(), false, io::sink);
    let mut measure = |name: &str, subscriber: Dispatch| {
        dispatcher::with_default(&subscriber, || {
            parts.measure(name, || {
                info!(
                    out_request_no = %black_box(redemption).out_request_no,
                    coupon = %Short(redemption.coupon_code.as_str()),
                    openid = %Short(redemption.openid.as_str()),
                    brand_id = %redemption.brand_id,
                    attempts = 1,
                    outcome = "redeemed",
                    coupon_state = "USED",
                    trace_id = "0af7651916cd43dd8448eb211c80319c",
                    "settled"
                );
            });
        });
    };
    measure("log line/plain, bare", plain.into());
    measure("log line/plain, masked", ours(log::Format::Plain).into());
    measure("log line/JSON, bare", json.into());
    measure("log line/JSON, masked", ours(log::Format::Json).into());
}

/// Runs of a part of which the instructions are counted.
const COUNTED: u32 = 200;

/// Measures one part after the other.
struct Parts<'a> {
    criterion: &'a mut Criterion,
    counter: Option<Counter>,
    /// Of one run, by name.
    instructions: Map<String, Value>,
}

impl<'a> Parts<'a> {
    fn new(criterion: &'a mut Criterion) -> Self {
        let counter = Builder::new(Hardware::INSTRUCTIONS).build();
        if let Err(why) = &counter {
            println!("instructions are not counted: no counter is given to us here ({why})");
        }
        Self { criterion, counter: counter.ok(), instructions: Map::new() }
    }

    fn measure<T>(&mut self, name: &str, mut part: impl FnMut() -> T) {
        match name.split_once('/') {
            Some((group, name)) => {
                let mut group = self.criterion.benchmark_group(group);
                group.bench_function(name, |bencher| bencher.iter(&mut part));
                group.finish();
            }
            None => {
                self.criterion.bench_function(name, |bencher| bencher.iter(&mut part));
            }
        }
        if let Some(counter) = &mut self.counter {
            counter.reset().unwrap();
            counter.enable().unwrap();
            for _ in 0..COUNTED {
                black_box(part());
            }
            counter.disable().unwrap();
            let each = counter.read().unwrap() / u64::from(COUNTED);
            println!("{name}: {each} instructions");
            self.instructions.insert(name.to_owned(), each.into());
        }
    }

    /// Beside what criterion leaves, for the report of `make bench`; empty if nothing was counted.
    fn write(self) {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../criterion");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("instructions.json"), Value::Object(self.instructions).to_string()).unwrap();
    }
}

/// What is measured must be the good way.
fn redeemed(answer: &CallResult, redemption: &Redemption) {
    assert_eq!(
        classify(Operation::Redeem, answer, redemption),
        redeemer::policy::classify::Verdict::Redeemed
    );
}

fn command() -> Vec<u8> {
    json!({
        "openid": "oh-394z-6CGkNoJrsDLTTUKiAnp4", "coupon_code": "C0001", "brand_id": "120344",
        "product_coupon_id": "1000000013", "stock_id": "1000000013001", "appid": "wx233544546545989",
        "use_time": "2026-03-05T12:30:45+08:00", "out_request_no": "USE_0001", "saved_amount": 2000,
        "associated_order_info": {
            "transaction_id": "4200000000123456789123456789", "out_trade_no": "trade_0001", "mchid": "1900000109",
        },
    })
    .to_string()
    .into_bytes()
}

/// A coupon as the provider shows it, with texts that bring it to 6 KB.
fn entity() -> Vec<u8> {
    let picture =
        "https://wxpaylogo.qpic.cn/wxpaylogo/PiajxSqBRaEIPAeia7ImvtsmBgADN5dCbCZlGmCLbgNMJ7lVhRrMPDaA/0";
    let rule = json!({ "name": "满100减20", "image_url": picture, "usage_limit": { "max_count": 10, "days": [1, 2, 3] } });
    let mut coupon = json!({
        "coupon_code": "C0001", "coupon_state": "USED", "valid_begin_time": "2026-01-01T00:00:00+08:00",
        "valid_end_time": "2026-12-31T23:59:59+08:00", "receive_time": "2026-02-01T10:00:00+08:00",
        "send_request_no": "SEND_0001", "send_channel": "API", "brand_id": "120344",
        "single_usage_detail": {
            "use_request_no": "USE_0001", "use_time": "2026-03-05T12:30:45+08:00",
            "associated_order_info": { "transaction_id": "4200000000123456789123456789" },
        },
        "product_coupon": { "product_coupon_id": "1000000013", "scope": "ALL", "type": "NORMAL", "rules": [] },
    });
    while coupon.to_string().len() < 6_000 {
        if let Some(rules) = coupon["product_coupon"]["rules"].as_array_mut() {
            rules.push(rule.clone());
        }
    }
    coupon.to_string().into_bytes()
}

fn headers(key: &MerchantKey, body: &[u8]) -> HeaderMap {
    let text = [format!("{NOW}\nNONCE\n").as_bytes(), body, b"\n"].concat();
    let signature = STANDARD.encode(key.sign(&text).unwrap());
    let pairs = [
        (TIMESTAMP, NOW.to_string()),
        (NONCE, "NONCE".to_owned()),
        (SIGNATURE, signature),
        (SERIAL, PUBLIC_KEY_ID.to_owned()),
    ];
    pairs
        .into_iter()
        .map(|(name, value)| (name.parse().unwrap(), HeaderValue::try_from(value).unwrap()))
        .collect()
}

fn reply_of(body: &[u8]) -> CallResult {
    CallResult::Response(Response {
        status: 200,
        authenticity: Authenticity::Verified,
        code: None,
        sub_code: Some(0),
        coupon: response::coupon(body),
        message: None,
        request_id: Some("08E68E97CC06-0".into()),
    })
}

fn evidence(at: Timestamp) -> Evidence {
    Evidence {
        at,
        operation: "redeem".to_owned(),
        host: "api.mch.weixin.qq.com".to_owned(),
        status: Some(200),
        request_id: Some("08E68E97CC06-0".to_owned()),
        serial: Some(PUBLIC_KEY_ID.to_owned()),
        verdict: "redeemed".to_owned(),
    }
}

criterion_group! {
    name = all;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = parts
}
criterion_main!(all);
