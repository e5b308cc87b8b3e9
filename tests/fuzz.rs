//! Hostile bytes for everything that reads what others wrote: commands, the headers of retry messages, answers of
//! the payment API, their signatures, downloaded certificates.
//!
//! Each campaign starts from sound messages and damages them, bytewise and by structure, because bytes at random are
//! thrown out at the first look. Whatever comes: no panic, memory in proportion to the input, and nothing is believed
//! that was not signed. `CASES` is the number of cases of each campaign (`make fuzz`: a million); `SEED` repeats a run.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]
#![allow(clippy::print_stdout, reason = "seeds and figures are for who reads the run")]

#[path = "fuzz/campaign.rs"]
mod campaign;
#[path = "fuzz/damage.rs"]
mod damage;
#[path = "support/record.rs"]
mod record;

use std::process::{Command, Stdio};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use campaign::{Campaign, Input};
use damage::{bytes, json, text};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::{SignedDuration, Timestamp};
use rand::RngExt as _;
use rand::rngs::StdRng;
use redeemer::domain::evidence::{Evidence, Operation, Rejection};
use redeemer::domain::reason::Reason;
use redeemer::domain::redemption::Redemption;
use redeemer::policy::attempt::{EffectState, Limits, Progress, Step};
use redeemer::policy::classify::{Authenticity, CallResult, NoResponse, Response, Verdict, classify};
use redeemer::wechat::certificates::{self, ApiV3Key};
use redeemer::wechat::client::Prepared;
use redeemer::wechat::keys::{MerchantKey, PublicKeys, VerificationKey};
use redeemer::wechat::response;
use redeemer::wechat::verify::{NONCE, SERIAL, SIGNATURE, TIMESTAMP, verify};
use redeemer::wire::result_event::{EventContext, encode_invalid};
use redeemer::wire::{command, retry_message};
use serde_json::{Value, json as value};

const KEY: &str = include_str!("fixtures/documentation_test_key.pem");
const KEY_ID: &str = "PUB_KEY_ID_0000000000000024101100397200000006";
const NOW: &str = "2026-03-05T05:00:00Z";
const DEADLINE_LIMITS: retry_message::DeadlineLimits = retry_message::DeadlineLimits {
    default: SignedDuration::from_hours(24),
    furthest: SignedDuration::from_hours(72),
};

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn flat() -> Value {
    let mut command: Value =
        serde_json::from_str(include_str!("../docs/contract/examples/command.flat.json")).unwrap();
    command["store_id"] = value!("100000000");
    command["saved_amount"] = value!(100);
    command
}

fn nested() -> Value {
    let mut inner = flat();
    let members = inner.as_object_mut().unwrap();
    let (openid, code) = (members.remove("openid").unwrap(), members.remove("coupon_code").unwrap());
    value!({ "openid": openid, "coupon_code": code, "json": inner })
}

fn redemption() -> Redemption {
    command::decode(flat().to_string().as_bytes()).unwrap()
}

fn coupon() -> Value {
    value!({
        "coupon_code": "123446565767", "coupon_state": "USED", "valid_begin_time": "2025-07-01T00:00:00+08:00",
        "product_coupon_id": "1000000013", "stock_id": "1000000013001", "brand_id": "120344",
        "single_usage_detail": { "use_request_no": "34657_20250101_123456", "use_time": "2025-07-24T00:00:00+08:00" },
        "sequential_usage_detail": { "total_count": 2, "detail_item_list": [
            { "detail_state": "USED", "use_request_no": "34657_20250101_123456" }, { "detail_state": "EFFECTIVE" },
        ]},
        "progressive_bundle_usage_detail": { "count": 1, "return_request_no": "R1" },
    })
}

#[test]
fn commands() {
    let seeds = [flat(), nested()];
    assert!(seeds.iter().all(|seed| command::decode(seed.to_string().as_bytes()).is_ok()), "both are sound");
    let telling = EventContext { source: "fuzz", at: now(), traceparent: None, attempts: 0, evidence: &[] };
    let counted = Campaign::new("commands").run(
        |dice| {
            let seed = &seeds[dice.random_range(0..seeds.len())];
            if dice.random_bool(0.5) { json(seed, dice) } else { bytes(seed.to_string().as_bytes(), dice) }
        },
        |input| match command::decode(input) {
            Ok(redemption) => {
                let (prepared, again) = (Prepared::new(&redemption), Prepared::new(&redemption));
                assert_eq!(prepared.body(), again.body());
                let body: Value = serde_json::from_slice(prepared.body()).unwrap();
                assert_eq!(body["out_request_no"], redemption.out_request_no.as_str());
                // What is sent is a command again, in the nested spelling, and means the same.
                let (openid, code) = (redemption.openid.as_str(), redemption.coupon_code.as_str());
                let sent = value!({ "openid": openid, "coupon_code": code, "json": body });
                assert_eq!(command::decode(sent.to_string().as_bytes()).unwrap(), redemption);
                let safe = |text: &str| {
                    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
                };
                assert!(safe(redemption.coupon_code.as_str()) && safe(redemption.openid.as_str()));
                "accepted"
            }
            Err(rejected) => {
                assert!(!rejected.faults.is_empty());
                assert!(
                    rejected
                        .faults
                        .iter()
                        .all(|fault| fault.pointer.is_empty() || fault.pointer.starts_with('/'))
                );
                let event = encode_invalid(&rejected, "0af1", telling);
                assert!(event.body.len() <= 64 * 1024 + 8 * input.len(), "{}", event.body.len());
                "refused"
            }
        },
    );
    assert!(counted["accepted"] > 0 && counted["refused"] > 0, "{counted:?}");
}

/// Key files are the operator's own, so they are not hostile; they may be damaged. One that is read all the same is
/// whole: its two readers agreed on it, or it is the public half of a pair.
#[test]
fn keys() {
    let (private, public) = (KEY, MerchantKey::from_pem(KEY, "test").unwrap().public_der().to_vec());
    let sound = MerchantKey::from_pem(KEY, "test").unwrap();
    let signature = sound.sign(b"text").unwrap();
    let block = private.lines().filter(|line| !line.starts_with('-')).collect::<String>();
    let der = STANDARD.decode(block).unwrap();
    let pem = |kind: &str, der: &[u8]| {
        format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", folded(der)).into_bytes()
    };
    assert!(MerchantKey::from_pem(std::str::from_utf8(&pem("PRIVATE KEY", &der)).unwrap(), "test").is_ok());
    let counted = Campaign::new("keys").run(
        |dice| match dice.random_range(0..4) {
            0 => bytes(private.as_bytes(), dice),
            1 => pem("PRIVATE KEY", &bytes(&der, dice)),
            2 => pem("RSA PRIVATE KEY", &bytes(&der, dice)),
            _ => pem("PUBLIC KEY", &bytes(&public, dice)),
        },
        |input| {
            let (merchant, provider) =
                (MerchantKey::from_pem(input, "test"), VerificationKey::from_public_pem(input, "test"));
            if let Ok(key) = &merchant {
                assert!(key.bits() >= 2048);
                assert_eq!(key.sign(b"text").unwrap(), signature, "another key was made of it");
                return "the key as it was";
            }
            match provider {
                Ok(key) if key.verifies(b"text", &signature) => "the public key as it was",
                Ok(_) => "another public key",
                Err(_) => "no key",
            }
        },
    );
    assert!(counted["no key"] > 0, "{counted:?}");
}

/// The headers of a copy, as their reader sees them: texts that may be missing.
type Headers = Vec<(&'static str, String)>;

fn copies_headers() -> Vec<Headers> {
    let evidence = Evidence {
        at: now(),
        operation: "redeem".to_owned(),
        host: "api.mch.weixin.qq.com".to_owned(),
        status: Some(500),
        request_id: Some("08F78BB8AF0610D302181020-268578704".to_owned()),
        serial: Some(KEY_ID.to_owned()),
        verdict: "unknown".to_owned(),
    };
    let rejection = Rejection {
        http_status: 403,
        code: Some("NOT_ENOUGH".into()),
        sub_code: Some(268_578_704),
        message: Some("用户商品券\n无法使用".into()),
        request_id: None,
    };
    let (first_seen, deadline) = ("2026-03-05T04:30:45Z", "2026-03-06T04:30:45Z");
    let effects = [
        EffectState::NoEffect,
        EffectState::Unknown,
        EffectState::Rejected { reason: Reason::NotUsable, may_be_ours: true },
        EffectState::Rejected { reason: Reason::Expired, may_be_ours: false },
        EffectState::RejectedUnclear { reason: Reason::InvalidParameter },
    ];
    let write = |effect| {
        let (first_seen, deadline) = (first_seen.parse().unwrap(), deadline.parse().unwrap());
        let progress = Progress::resumed(7, 2, effect, first_seen, deadline, Some(rejection.clone()));
        retry_message::write(&progress, &[evidence.clone(), evidence.clone()], "0af1")
    };
    effects.into_iter().map(write).collect()
}

/// A header that a forger would write: sound by itself.
fn forged(dice: &mut StdRng) -> (&'static str, String) {
    let any = |words: &[&str], dice: &mut StdRng| words[dice.random_range(0..words.len())].to_owned();
    let times = [
        "0001-01-01T00:00:00Z",
        "1970-01-01T00:00:00Z",
        "2026-03-05T04:59:59Z",
        "2026-03-05T05:00:01Z",
        "2026-03-06T04:30:45+08:00",
        "9999-12-30T22:00:00Z",
        "-009999-01-02T01:59:59Z",
    ];
    let effects = [
        "no_effect",
        "unknown",
        "rejected not_usable",
        "rejected_unclear not_usable",
        "rejected_unverified expired",
        "redeemed",
    ];
    match dice.random_range(0..5) {
        0 => (retry_message::ATTEMPTS, any(&["0", "1", "999", "1000000", "4294967295"], dice)),
        1 => (retry_message::DELAYS_PASSED, any(&["0", "1", "5", "4294967295"], dice)),
        2 => (retry_message::FIRST_SEEN, any(&times, dice)),
        3 => (retry_message::DEADLINE, any(&times, dice)),
        _ => (retry_message::LAST_VERDICT, any(&effects, dice)),
    }
}

/// Steps until the command leaves the permit. What travels on must not grow without bound.
fn leaves_the_permit(mut progress: Progress) -> &'static str {
    let limits = Limits::default();
    let mut at = now();
    let mut step = progress.start(&limits, at);
    for _ in 0..64 {
        step = match step {
            Step::Send { after, operation } => {
                at = at.saturating_add(after).unwrap();
                progress.follow_verdict(
                    operation,
                    CallResult::NoResponse(NoResponse::Timeout),
                    judge_lost(operation),
                    &limits,
                    at,
                    0.5,
                )
            }
            Step::Delay { .. } => return "delayed",
            Step::Finish(outcome) => {
                assert!(
                    !matches!(outcome.kind().as_str(), "redeemed" | "refused"),
                    "nothing was ever answered"
                );
                return "finished";
            }
            Step::Suspend(fault) => panic!("a lost answer is no fault of ours: {fault:?}"),
        };
    }
    panic!("it is asked for ever");
}

fn judge_lost(operation: Operation) -> Verdict {
    classify(operation, &CallResult::NoResponse(NoResponse::Timeout), &redemption())
}

#[test]
fn copies() {
    let seeds = copies_headers();
    let counted = Campaign::new("headers of copies").run(
        |dice| {
            let mut headers = seeds[dice.random_range(0..seeds.len())].clone();
            for _ in 0..dice.random_range(1..4) {
                let nth = dice.random_range(0..headers.len());
                match dice.random_range(0..8) {
                    0 if headers.len() > 1 => drop(headers.remove(nth)),
                    1 | 2 => headers[nth].1 = text(&headers[nth].1, dice),
                    _ => {
                        let (name, text) = forged(dice);
                        headers.retain(|(key, _)| *key != name);
                        headers.push((name, text));
                    }
                }
            }
            headers
        },
        |headers: &Headers| {
            let header = |name| headers.iter().find(|(key, _)| *key == name).map(|(_, text)| text.as_str());
            match retry_message::read(header, "0af1", now(), DEADLINE_LIMITS) {
                Err(damage) => {
                    assert!(
                        damage.to_string().contains("x-redemption-")
                            || damage == retry_message::CorruptRetryMessage::BodyChanged
                    );
                    "refused"
                }
                Ok(carried) => {
                    let Progress { first_seen, deadline, .. } = carried.progress;
                    assert!(
                        first_seen <= now()
                            && deadline <= first_seen.saturating_add(DEADLINE_LIMITS.furthest).unwrap()
                    );
                    assert!(carried.evidence.len() <= 16);
                    leaves_the_permit(carried.progress)
                }
            }
        },
    );
    assert!(counted["refused"] > 0 && counted["delayed"] > 0 && counted["finished"] > 0, "{counted:?}");
}

/// A header table in the encoding of AMQP 0-9-1, without its length: at most this many levels below it.
fn header_table(levels: usize, dice: &mut StdRng) -> Vec<u8> {
    let mut table = Vec::new();
    for _ in 0..dice.random_range(0..4) {
        table.extend([2, b'x', dice.random_range(b'a'..=b'z')]);
        table.extend(header_value(levels, dice));
    }
    table
}

fn header_value(levels: usize, dice: &mut StdRng) -> Vec<u8> {
    let long = |kind: u8, inner: &[u8]| {
        [&[kind][..], &u32::try_from(inner.len()).unwrap().to_be_bytes(), inner].concat()
    };
    match dice.random_range(0..6) {
        0 => vec![b'V'],
        1 => vec![b't', 1],
        2 => [&[b'l'][..], &dice.random::<[u8; 8]>()].concat(),
        3 => long(b'S', &dice.random::<[u8; 12]>()),
        4 if levels > 0 => long(b'F', &header_table(levels - 1, dice)),
        5 if levels > 0 => long(b'A', &header_value(levels - 1, dice)),
        _ => long(b'S', b"text"),
    }
}

/// What stands in a table or an array of its own, this many times.
fn wrapped(mut table: Vec<u8>, levels: usize, dice: &mut StdRng) -> Vec<u8> {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_be_bytes();
    for _ in 0..levels {
        table = match dice.random_bool(0.5) {
            true => [&[0, b'F'][..], &length(&table), &table].concat(),
            false => {
                let entry = [&[b'F'][..], &length(&table), &table].concat();
                [&[0, b'A'][..], &length(&entry), &entry].concat()
            }
        };
    }
    table
}

/// Headers of a message as the broker's client reads them, on a thread with a stack of its own.
#[test]
fn message_headers() {
    let counted = Campaign::new("message headers").run(
        |dice| {
            let table = header_table(6, dice);
            let levels = if dice.random_bool(0.2) { dice.random_range(0..3_000) } else { 0 };
            let table = wrapped(table, levels, dice);
            if dice.random_bool(0.7) { bytes(&table, dice) } else { table }
        },
        |input| {
            let framed = [&u32::try_from(input.len()).unwrap().to_be_bytes()[..], input].concat();
            match amq_protocol_types::parsing::parse_field_table(&framed[..]) {
                Ok((_, table)) => {
                    // Anyone who reads it goes down as far again.
                    let text = format!("{:?}", table.clone());
                    assert!(text.len() >= table.inner().len());
                    if text.contains(amq_protocol_types::parsing::UNDECODABLE) { "in part" } else { "whole" }
                }
                // It would end the connection.
                Err(error) => panic!("a parse error: {error:?}"),
            }
        },
    );
    assert!(counted["whole"] > 0 && counted["in part"] > 0, "{counted:?}");
}

#[test]
fn replies() {
    let redemption = redemption();
    let error = value!({"code": "NOT_ENOUGH", "message": "用户商品券不可用", "detail": {"field": "x", "value": [1, 2]}});
    let seeds = [coupon(), error];
    assert!(response::coupon(seeds[0].to_string().as_bytes()).is_some(), "damage begins with what is sound");
    let counted = Campaign::new("replies").run(
        |dice| {
            let seed = &seeds[dice.random_range(0..seeds.len())];
            if dice.random_bool(0.5) { json(seed, dice) } else { bytes(seed.to_string().as_bytes(), dice) }
        },
        |input| {
            let (coupon, error) = (response::coupon(input), response::error(input));
            assert!(
                error.message.as_ref().is_none_or(|message| message.len() <= response::MESSAGE_BYTES_MAX)
            );
            let _ = response::sub_code(&String::from_utf8_lossy(input));
            if let Some(coupon) = &coupon {
                serde_json::from_str::<Value>(&coupon.entity).unwrap();
            }
            let read = if coupon.is_some() { "a coupon" } else { "no coupon" };
            for operation in [Operation::Redeem, Operation::Query] {
                for status in [200, 202, 403, 404, 500] {
                    let response::ErrorBody { code, message, .. } = error.clone();
                    let (coupon, request_id) = (coupon.clone(), None);
                    let authenticity = Authenticity::Unsigned;
                    let answer =
                        Response { status, authenticity, code, sub_code: None, coupon, message, request_id };
                    let verdict = classify(operation, &CallResult::Response(answer), &redemption);
                    assert!(!matches!(verdict, Verdict::Redeemed), "an unsigned answer was believed");
                }
            }
            read
        },
    );
    assert!(counted["a coupon"] > 0 && counted["no coupon"] > 0, "{counted:?}");
}

#[derive(Debug, Clone, PartialEq)]
struct Signed {
    headers: Vec<(&'static str, Vec<u8>)>,
    body: Vec<u8>,
}

impl Signed {
    fn new(key: &MerchantKey, serial: &str, body: &[u8]) -> Self {
        let (timestamp, nonce) = (now().as_second().to_string(), "fzLZ5E8pHKkOP1VFIDu31DDUNqzKCtDA");
        let mut message = format!("{timestamp}\n{nonce}\n").into_bytes();
        message.extend_from_slice(body);
        message.push(b'\n');
        let signature = STANDARD.encode(key.sign(&message).unwrap());
        let headers =
            [(TIMESTAMP, timestamp.as_str()), (NONCE, nonce), (SIGNATURE, &signature), (SERIAL, serial)];
        Self {
            headers: headers.map(|(name, text)| (name, text.as_bytes().to_vec())).to_vec(),
            body: body.to_vec(),
        }
    }

    fn damaged(&self, dice: &mut StdRng) -> Self {
        let mut damaged = self.clone();
        match dice.random_range(0..8) {
            0 => damaged.body = bytes(&damaged.body, dice),
            1 => drop(damaged.headers.remove(dice.random_range(0..4))),
            2 => {
                let (one, other) = (dice.random_range(0..4), dice.random_range(0..4));
                let moved = damaged.headers[one].1.clone();
                damaged.headers[other].1 = moved;
            }
            3 => {
                let (name, other) = (damaged.headers[dice.random_range(0..4)].0, dice.random_range(0..4));
                damaged.headers.push((name, damaged.headers[other].1.clone()));
            }
            _ => {
                let nth = dice.random_range(0..4);
                damaged.headers[nth].1 = bytes(&damaged.headers[nth].1, dice);
            }
        }
        damaged
    }

    fn map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, text) in &self.headers {
            // What cannot stand in a header never arrives.
            if let Ok(header) = HeaderValue::from_bytes(text) {
                map.append(HeaderName::from_static(name), header);
            }
        }
        map
    }
}

impl Input for Signed {
    fn bytes(&self) -> usize {
        self.body.len() + self.headers.iter().map(|(_, text)| text.len()).sum::<usize>()
    }

    fn shown(&self) -> String {
        let header = |(name, text): &(&str, Vec<u8>)| format!("{name}: {}\n", text.escape_ascii());
        format!("{}\n{}", self.headers.iter().map(header).collect::<String>(), self.body.escape_ascii())
    }
}

#[test]
fn signatures() {
    let key = MerchantKey::from_pem(KEY, "test").unwrap();
    let mut keys = PublicKeys::default();
    let public =
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", folded(key.public_der()));
    keys.insert(KEY_ID.to_owned(), VerificationKey::from_public_pem(&public, "test").unwrap());
    let sound = Signed::new(&key, KEY_ID, coupon().to_string().as_bytes());
    assert_eq!(verify(&sound.map(), &sound.body, &keys, now()), Authenticity::Verified);
    let counted = Campaign::new("signatures").run(
        |dice| sound.damaged(dice),
        |damaged: &Signed| match verify(&damaged.map(), &damaged.body, &keys, now()) {
            Authenticity::Verified => {
                assert_eq!(damaged.body, sound.body, "another body was believed");
                assert_eq!(damaged.map(), sound.map(), "other headers were believed");
                "as it was"
            }
            Authenticity::Unsigned => "unsigned",
            Authenticity::Invalid(_) => "unconvincing",
        },
    );
    assert!(counted["unconvincing"] > 0, "{counted:?}");
}

fn folded(der: &[u8]) -> String {
    let text = STANDARD.encode(der).into_bytes();
    text.chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect::<Vec<_>>().join("\n")
}

const APIV3_KEY: &[u8; 32] = b"0123456789abcdef0123456789ABCDEF";
const SEAL_NONCE: &[u8; 12] = b"61f9c719728a";

fn sealed(pem: &[u8]) -> String {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, APIV3_KEY).unwrap());
    let mut text = pem.to_vec();
    let nonce = Nonce::assume_unique_for_key(*SEAL_NONCE);
    key.seal_in_place_append_tag(nonce, Aad::from(b"certificate"), &mut text).unwrap();
    STANDARD.encode(text)
}

fn list(serial: &str, pem: &[u8]) -> Value {
    value!({ "data": [{
        "serial_no": serial, "effective_time": "2026-01-01T00:00:00+08:00", "expire_time": "2031-01-01T00:00:00+08:00",
        "encrypt_certificate": {
            "algorithm": "AEAD_AES_256_GCM", "nonce": std::str::from_utf8(SEAL_NONCE).unwrap(),
            "associated_data": "certificate", "ciphertext": sealed(pem),
        },
    }]})
}

/// A certificate of the test key, made by openssl.
fn certificate(serial: &str) -> Vec<u8> {
    let arguments =
        ["req", "-x509", "-new", "-sha256", "-days", "3650", "-subj", "/CN=platform", "-set_serial"];
    let made = Command::new("openssl")
        .args(arguments)
        .arg(format!("0x{serial}"))
        .args(["-key", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/documentation_test_key.pem")])
        .stdin(Stdio::null())
        .output()
        .expect("the openssl program is needed for this test");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    made.stdout
}

#[test]
fn certificates() {
    const SERIAL_NO: &str = "5157F09EFDC096DE15EBE81A47057A7232F1B8E1";
    let pem = certificate(SERIAL_NO);
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    let der = block.contents;
    let key = MerchantKey::from_pem(KEY, "test").unwrap();
    let apiv3_key = ApiV3Key::parse(std::str::from_utf8(APIV3_KEY).unwrap()).unwrap();
    // Valid from the moment at which openssl made it.
    let now = Timestamp::now();
    let sound = list(SERIAL_NO, &pem);
    let held = PublicKeys::default();
    let counted = Campaign::new("certificates").run(
        |dice| match dice.random_range(0..4) {
            // Damage under the seal reaches the certificate parser; damage around it the list's.
            0 => list(SERIAL_NO, &bytes(&pem, dice)).to_string().into_bytes(),
            1 | 2 => {
                let block = folded(&bytes(&der, dice));
                let pem = format!("-----BEGIN CERTIFICATE-----\n{block}\n-----END CERTIFICATE-----\n");
                list(SERIAL_NO, pem.as_bytes()).to_string().into_bytes()
            }
            _ => json(&sound, dice),
        },
        |body| match certificates::read(&HeaderMap::new(), body, &apiv3_key, &held, now) {
            Ok(_) => panic!("an unsigned list was believed"),
            Err(certificates::NoCertificates::Unverified(None)) => "readable, unsigned",
            Err(_) => "unreadable",
        },
    );
    assert!(counted["unreadable"] > 0 && counted["readable, unsigned"] > 0, "{counted:?}");
    // The sound one, signed, is taken.
    let body = sound.to_string().into_bytes();
    let timely = Signed { headers: Vec::new(), body: body.clone() };
    assert!(certificates::read(&timely.map(), &body, &apiv3_key, &held, now).is_err());
    let mut message = format!("{}\nn\n", now.as_second()).into_bytes();
    message.extend_from_slice(&body);
    message.push(b'\n');
    let signature = STANDARD.encode(key.sign(&message).unwrap());
    let headers = [
        (TIMESTAMP, now.as_second().to_string()),
        (NONCE, "n".to_owned()),
        (SIGNATURE, signature),
        (SERIAL, SERIAL_NO.to_owned()),
    ];
    let headers = headers.map(|(name, text)| (name, text.into_bytes())).to_vec();
    let signed = Signed { headers, body };
    certificates::read(&signed.map(), &signed.body, &apiv3_key, &held, now).unwrap();
}
