//! The sandbox over a real socket, asked by a client of a few lines that shares nothing with the crate's own.

use std::ffi::OsString;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rand::SeedableRng;
use rsa::pkcs1v15::{SigningKey, VerifyingKey};
use rsa::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePublicKey, LineEnding};
use rsa::{PrivateKey, PublicKey};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::signature::{request_text, response_text, sign, verifies};
use super::*;

const COUPON: &str = "/v3/marketing/partner/product-coupon/users/oUpF8uMuAJO_M2pxb1Q9zNjWeS6o/coupons/C1";
const QUERY: &str = "?product_coupon_id=p1&stock_id=s1&appid=wx1&brand_id=b1";

/// Keys are slow to make: one set of files serves all tests, each in a directory of its own.
static IDENTITY: LazyLock<Vec<(OsString, Vec<u8>)>> = LazyLock::new(|| {
    let dir = Dir::new();
    Identity::open(&dir.0, 42).unwrap();
    let files = std::fs::read_dir(&dir.0).unwrap().map(Result::unwrap);
    files.map(|file| (file.file_name(), std::fs::read(file.path()).unwrap())).collect()
});

/// A directory that goes with its owner.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("redeemer-sandbox-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Bed {
    sandbox: Sandbox,
    dir: Dir,
    key: SigningKey<Sha256>,
}

/// A reply, or nothing where the connection ended without a byte.
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

struct Operation<'a> {
    method: &'a str,
    target: String,
    body: String,
    /// Replaces or, with an empty value, removes a header.
    headers: Vec<(&'a str, String)>,
    timestamp: i64,
}

impl Bed {
    async fn new() -> Bed {
        Bed::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Bed {
        let dir = Dir::new();
        for (name, content) in &*IDENTITY {
            std::fs::write(dir.0.join(name), content).unwrap();
        }
        let mut settings = Settings { dir: dir.0.clone(), ..Settings::default() };
        change(&mut settings);
        let sandbox = Sandbox::start(settings).await.unwrap();
        sandbox.issue([coupon("C1")]).unwrap();
        let pem = std::fs::read_to_string(dir.join("merchant_key.pem")).unwrap();
        Bed { sandbox, dir, key: SigningKey::new(PrivateKey::from_pkcs8_pem(&pem).unwrap()) }
    }

    fn faulty(&self, fault: Value) {
        let script = serde_json::from_value(json!({ "rules": [{ "fault": fault }] })).unwrap();
        self.sandbox.set_faults(script).unwrap();
    }

    async fn ask(&self, operation: Operation<'_>) -> Option<Reply> {
        send(self.sandbox.addr(), &self.written(operation)).await
    }

    async fn redeem(&self) -> Reply {
        self.ask(redeem("number_1")).await.unwrap()
    }

    async fn control(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let text = format!(
            "{method} /_sandbox/{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let reply = send(self.sandbox.addr(), text.as_bytes()).await.unwrap();
        (reply.status, serde_json::from_slice(&reply.body).unwrap_or(Value::Null))
    }

    fn written(&self, operation: Operation<'_>) -> Vec<u8> {
        let Operation { method, target, body, headers, timestamp } = operation;
        let (timestamp, nonce) = (timestamp.to_string(), "593BEC0C930BF1AFEB40B4A08C8FB242");
        let card = self.sandbox.card();
        let signature =
            sign(&self.key, &request_text(method, &target, &timestamp, nonce, body.as_bytes())).unwrap();
        let mut all = vec![
            ("host", "127.0.0.1".to_owned()),
            ("connection", "close".to_owned()),
            ("user-agent", "test".to_owned()),
            ("accept", "application/json".to_owned()),
            ("content-type", "application/json".to_owned()),
            ("content-length", body.len().to_string()),
            ("wechatpay-serial", card.public_key_id.clone()),
            (
                "authorization",
                format!(
                    "WECHATPAY2-SHA256-RSA2048 mchid=\"{}\",nonce_str=\"{nonce}\",signature=\"{signature}\",timestamp=\"{timestamp}\",serial_no=\"{}\"",
                    card.mchid, card.merchant_serial
                ),
            ),
        ];
        for (name, value) in headers {
            all.retain(|(other, _)| *other != name);
            if !value.is_empty() {
                all.push((name, value));
            }
        }
        let mut text = format!("{method} {target} HTTP/1.1\r\n");
        all.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
        (text + "\r\n" + &body).into_bytes()
    }

    /// Whether the reply carries a right signature of its body by the WeChat Pay key.
    fn is_authentic(&self, reply: &Reply) -> bool {
        let pem = std::fs::read_to_string(self.dir.join("wechatpay_public_key.pem")).unwrap();
        let key = VerifyingKey::new(PublicKey::from_public_key_pem(&pem).unwrap());
        reply.header("wechatpay-serial") == self.sandbox.card().public_key_id && reply.is_signed_by(&key)
    }

    fn uses(&self) -> usize {
        self.sandbox.effects().iter().filter(|effect| effect.kind == EffectKind::Used).count()
    }
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(other, _)| other == name).map_or("", |(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn sub_code(&self) -> u64 {
        self.header("request-id").rsplit_once('-').unwrap().1.parse().unwrap()
    }

    fn is_signed_by(&self, key: &VerifyingKey<Sha256>) -> bool {
        let text =
            response_text(self.header("wechatpay-timestamp"), self.header("wechatpay-nonce"), &self.body);
        verifies(key, &text, self.header("wechatpay-signature"))
    }
}

fn coupon(code: &str) -> NewCoupon {
    NewCoupon {
        openid: "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o".to_owned(),
        coupon_code: code.to_owned(),
        appid: "wx1".to_owned(),
        brand_id: "b1".to_owned(),
        product_coupon_id: "p1".to_owned(),
        stock_id: "s1".to_owned(),
        ..NewCoupon::default()
    }
}

fn operation<'a>(method: &'a str, target: &str, body: &Value) -> Operation<'a> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    Operation {
        method,
        target: target.to_owned(),
        body,
        headers: Vec::new(),
        timestamp: Timestamp::now().as_second(),
    }
}

fn redeem(number: &str) -> Operation<'static> {
    let body = json!({
        "product_coupon_id": "p1", "stock_id": "s1", "appid": "wx1", "brand_id": "b1", "out_request_no": number,
        "use_time": "2026-03-05T12:30:45+08:00",
        "associated_order_info": { "transaction_id": "4200002600202603051234567890" },
    });
    operation("POST", &format!("{COUPON}/use"), &body)
}

fn query() -> Operation<'static> {
    operation("GET", &format!("{COUPON}{QUERY}"), &Value::Null)
}

async fn send(addr: SocketAddr, text: &[u8]) -> Option<Reply> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(text).await.unwrap();
    let mut all = Vec::new();
    // A connection that is cut may end by a reset as well as by an end of file.
    let _ = stream.read_to_end(&mut all).await;
    let end = all.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&all[..end]).unwrap();
    let (first, rest) = head.split_once("\r\n").unwrap();
    let header =
        |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap();
    Some(Reply {
        status: first.split(' ').nth(1).unwrap().parse().unwrap(),
        headers: rest.split("\r\n").map(header).collect(),
        body: all[end + 4..].to_vec(),
    })
}

#[tokio::test]
async fn a_redemption_takes_effect_once_however_often_it_is_asked() {
    let bed = Bed::new().await;
    let operation = || Operation { timestamp: Timestamp::now().as_second() - 299, ..redeem("number_1") };
    for _ in 0..2 {
        let reply = bed.ask(operation()).await.unwrap();
        assert_eq!((reply.status, reply.sub_code()), (200, 0));
        assert!(bed.is_authentic(&reply));
        assert_eq!(reply.json()["coupon_state"], "USED");
        assert_eq!(reply.json()["single_usage_detail"]["use_request_no"], "number_1");
        assert_eq!(reply.header("keep-alive"), "timeout=8");
    }
    let other = bed.ask(redeem("number_2")).await.unwrap();
    assert_eq!((other.status, other.sub_code()), (403, 272_756_745));
    assert!(bed.is_authentic(&other), "refusals are signed");

    let effects = bed.sandbox.effects();
    assert_eq!(effects.len(), 1);
    assert_eq!((effects[0].kind, effects[0].out_request_no.as_deref()), (EffectKind::Used, Some("number_1")));
    let attempts = bed.sandbox.ledger().attempts;
    assert_eq!(attempts.len(), 3);
    assert_eq!(attempts[0].openid.as_deref(), Some("oUp…S6o"));
    assert_eq!(Some(attempts[0].body_sha256), effects[0].body_sha256);
    assert_eq!(attempts[2].answered, Some(ResponseRecord::Status(403)));
    assert!(attempts.iter().all(|attempt| attempt.authenticated && attempt.took_us.is_some()));
}

#[tokio::test]
async fn unauthenticated_request_gets_an_unsigned_401_and_no_effect() {
    let bed = Bed::new().await;
    let now = Timestamp::now().as_second();
    let tampered = |part: &str, with: &str| {
        let text = String::from_utf8(bed.written(redeem("number_1"))).unwrap();
        assert!(text.contains(part), "{part}");
        text.replace(part, with).into_bytes()
    };
    let card = bed.sandbox.card().clone();
    for (field, text) in [
        (
            "authorization",
            bed.written(Operation { headers: vec![("authorization", String::new())], ..redeem("number_1") }),
        ),
        ("authorization", tampered("WECHATPAY2-SHA256", "WECHATPAY2-SM2-WITH")),
        ("authorization", tampered("\",nonce_str", "\", nonce_str")),
        ("mchid", tampered(&card.mchid, "1900000000")),
        ("serial_no", tampered(&card.merchant_serial, &card.platform_serial)),
        ("timestamp", bed.written(Operation { timestamp: now - 310, ..redeem("number_1") })),
        ("timestamp", bed.written(Operation { timestamp: now + 310, ..redeem("number_1") })),
        ("signature", tampered("nonce_str=\"593", "nonce_str=\"594")),
        ("signature", tampered("/C1/use", "/%431/use")),
        ("signature", tampered("number_1", "number_2")),
        ("signature", tampered("signature=\"", "signature=\"WECHATPAY/SIGNTEST/")),
    ] {
        let reply = send(bed.sandbox.addr(), &text).await.unwrap();
        assert_eq!((reply.status, &reply.json()["code"]), (401, &json!("SIGN_ERROR")), "{field}");
        assert_eq!(reply.json()["detail"]["field"], field);
        assert_eq!(reply.header("wechatpay-signature"), "");
        assert_ne!(reply.header("date"), "", "a client measures its clock by this");
    }
    assert_eq!(bed.uses(), 0);
    let summary = bed.sandbox.summary();
    assert_eq!((summary.unauthenticated, summary.by_status["401"]), (11, 11));
}

#[tokio::test]
async fn another_merchant_key_can_be_registered_and_taken_back() {
    let bed = Bed::new().await;
    let other = PrivateKey::from_pkcs8_pem(
        &std::fs::read_to_string(bed.dir.join("platform_private_key.pem")).unwrap(),
    )
    .unwrap();
    let pem = other.to_public_key().to_public_key_pem(LineEnding::LF).unwrap();
    assert_eq!(bed.control("PUT", "merchant_key", &pem).await.0, 200);
    assert_eq!(bed.redeem().await.status, 401);
    let pem = std::fs::read_to_string(bed.dir.join("merchant_cert.pem")).unwrap();
    let (status, shown) = bed.control("PUT", "merchant_key", &pem).await;
    assert_eq!((status, &shown["merchant_serial"]), (200, &json!(bed.sandbox.card().merchant_serial)));
    assert_eq!(bed.redeem().await.status, 200);
    assert_eq!(bed.control("PUT", "merchant_key", "no key").await.0, 400);
}

#[tokio::test]
async fn a_request_needs_its_headers() {
    let bed = Bed::new().await;
    for (header, value, status) in [
        ("user-agent", "", 400),
        ("accept", "", 406),
        ("accept", "text/html", 406),
        ("content-type", "", 400),
        ("content-type", "text/plain", 400),
        ("wechatpay-serial", "PUB_KEY_ID_nobodys", 400),
    ] {
        let reply = bed
            .ask(Operation { headers: vec![(header, value.to_owned())], ..redeem("number_1") })
            .await
            .unwrap();
        assert_eq!(
            (reply.status, &reply.json()["code"]),
            (status, &json!("PARAM_ERROR")),
            "{header} {value}"
        );
    }
    assert_eq!(bed.uses(), 0);
    let typed = ("content-type", "application/json; charset=utf-8".to_owned());
    let reply = bed
        .ask(Operation { headers: vec![("accept", "*/*".to_owned()), typed], ..redeem("number_1") })
        .await
        .unwrap();
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn invalid_body_gets_a_signed_refusal_that_names_the_field() {
    let bed = Bed::new().await;
    let mut operation = redeem("number_1");
    operation.body = operation.body.replace("stock_id", "stok_id");
    let reply = bed.ask(operation).await.unwrap();
    assert_eq!((reply.status, &reply.json()["detail"]["field"]), (400, &json!("/stock_id")));
    assert!(bed.is_authentic(&reply));
    assert_eq!(bed.sandbox.ledger().attempts[0].out_request_no.as_deref(), Some("number_1"));
}

#[tokio::test]
async fn the_requests_serial_selects_the_signing_key() {
    let bed = Bed::new().await;
    let pem = std::fs::read_to_string(bed.dir.join("platform_cert.pem")).unwrap();
    let platform = identity::Registered::from_pem(&pem, "").unwrap();
    for asked in ["", &platform.serial] {
        let reply = bed
            .ask(Operation { headers: vec![("wechatpay-serial", asked.to_owned())], ..query() })
            .await
            .unwrap();
        assert_eq!(reply.header("wechatpay-serial"), platform.serial);
        assert!(reply.is_signed_by(&platform.key));
    }
    let reply = bed.ask(query()).await.unwrap();
    assert!(bed.is_authentic(&reply) && !reply.is_signed_by(&platform.key));
}

#[tokio::test]
async fn the_platform_certificate_is_sealed_with_the_apiv3_key() {
    let bed = Bed::new().await;
    let reply = bed.ask(operation("GET", "/v3/certificates", &Value::Null)).await.unwrap();
    let entry = &reply.json()["data"][0];
    let sealed = &entry["encrypt_certificate"];
    let key: [u8; 32] = std::fs::read(bed.dir.join("apiv3_key.txt")).unwrap().try_into().unwrap();
    let nonce: [u8; 12] = sealed["nonce"].as_str().unwrap().as_bytes().try_into().unwrap();
    let payload = Payload {
        msg: &STANDARD.decode(sealed["ciphertext"].as_str().unwrap()).unwrap(),
        aad: sealed["associated_data"].as_str().unwrap().as_bytes(),
    };
    let pem = Aes256Gcm::new(&key.into()).decrypt(&nonce.into(), payload).unwrap();
    let platform = identity::Registered::from_pem(std::str::from_utf8(&pem).unwrap(), "").unwrap();
    assert_eq!(entry["serial_no"], platform.serial);
    assert!(reply.is_signed_by(&platform.key), "whatever serial the request named");
}

#[tokio::test]
async fn the_neighbors_of_use_work_together() {
    let bed = Bed::new().await;
    let users = COUPON.trim_end_matches("/C1");
    let named = |extra: Value| {
        let mut body =
            json!({ "product_coupon_id": "p1", "stock_id": "s1", "appid": "wx1", "brand_id": "b1" });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let ask = async |path: &str, body: Value| {
        let reply = bed.ask(operation("POST", &format!("{users}{path}"), &body)).await.unwrap();
        (reply.status, reply.json())
    };
    let (status, sent) = ask("", named(json!({ "send_request_no": "send_1", "coupon_code": "C7" }))).await;
    assert_eq!((status, &sent["coupon_state"]), (200, &json!("CONFIRMING")));
    let (status, _) = ask("", named(json!({ "send_request_no": "send_2", "coupon_code": "C7" }))).await;
    assert_eq!(status, 400);
    let number = |number: &str| named(json!({ "out_request_no": number }));
    assert_eq!(ask("/C7/confirm", number("confirm_1")).await.1["coupon_state"], "EFFECTIVE");
    bed.redeem().await;
    let (status, returned) = ask("/C1/return", number("return_1")).await;
    assert_eq!((status, &returned["coupon_state"]), (200, &json!("EFFECTIVE")));
    assert_eq!(returned["single_usage_detail"]["return_request_no"], "return_1");
    let late = bed.redeem().await;
    assert_eq!((late.status, &late.json()["message"]), (400, &json!("已使用过此单号核销券")));
    let gone = named(json!({ "out_request_no": "deact_1", "deactivate_reason": "over" }));
    assert_eq!(ask("/C7/deactivate", gone).await.1["coupon_state"], "DEACTIVATED");
    let echo = operation("POST", "/v3/security/echo", &json!({ "echo_message": "hello" }));
    assert_eq!(bed.ask(echo).await.unwrap().json()["echo_message"], "hello");
    assert_eq!(bed.ask(operation("GET", "/v3/nothing", &Value::Null)).await.unwrap().status, 404);
}

#[tokio::test]
async fn brands_lose_authorization_and_unknown_codes_are_issued() {
    let bed = Bed::with(|settings| settings.auto_issue = true).await;
    let (_, settings) = bed.control("PUT", "settings", r#"{"unauthorized_brands": ["b1"]}"#).await;
    assert_eq!(
        settings,
        json!({
            "latency_ms": 0, "calls_per_second": 0, "auto_issue": true, "unauthorized_brands": ["b1"],
            "returned_before_reuse": "", "vary_looks": false,
        })
    );
    let refused = bed.redeem().await;
    assert_eq!(
        (refused.status, &refused.json()["code"], refused.sub_code()),
        (403, &json!("NO_AUTH"), 268_579_803)
    );
    bed.control("PUT", "settings", r#"{"unauthorized_brands": []}"#).await;
    let other = |code: &str| {
        let operation = redeem(&format!("number_{code}"));
        Operation { target: operation.target.replace("C1", code), ..operation }
    };
    assert_eq!(bed.ask(other("auto_77")).await.unwrap().status, 200);
    assert_eq!(bed.ask(other("else_77")).await.unwrap().sub_code(), 268_578_851);
    assert_eq!(bed.control("PUT", "settings", r#"{"latency": 1}"#).await.0, 400);
}

#[tokio::test]
async fn a_cut_connection_ends_without_a_byte() {
    let bed = Bed::new().await;
    bed.faulty(json!({ "kind": "cut_before_effect" }));
    assert!(bed.ask(redeem("number_1")).await.is_none());
    assert_eq!(bed.uses(), 0);
    bed.faulty(json!({ "kind": "cut_after_effect" }));
    assert!(bed.ask(redeem("number_1")).await.is_none());
    assert_eq!(bed.uses(), 1);
    let attempts = bed.sandbox.ledger().attempts;
    assert!(attempts.iter().all(|attempt| attempt.answered == Some(ResponseRecord::Cut)));
    assert_eq!(attempts[1].fault, Some("cut_after_effect"));

    bed.faulty(json!({ "kind": "cut_in_body" }));
    let reply = bed.ask(query()).await.unwrap();
    let promised: usize = reply.header("content-length").parse().unwrap();
    assert_eq!((reply.status, reply.body.len()), (200, promised / 2));
}

#[tokio::test]
async fn distorted_answers_are_distorted_in_one_way_only() {
    let authentic = |bed: &Bed, reply: &Reply| bed.is_authentic(reply);
    // Fault; status; whether the signature is right; whether the effect happens; what else is to be seen.
    type See = fn(&Bed, &Reply) -> bool;
    let cases: [(Value, u16, bool, usize, See); 24] = [
        (json!({"kind": "slow", "ms": 1}), 200, true, 1, |_, _| true),
        (json!({"kind": "probe_signature"}), 200, false, 1, |_, reply| {
            reply.header("wechatpay-signature").len() == 19 + 344
        }),
        (json!({"kind": "unknown_serial"}), 200, false, 1, |_, reply| {
            reply.header("wechatpay-serial").len() == 40
        }),
        (json!({"kind": "bad_signature"}), 200, false, 1, |_, reply| {
            reply.header("wechatpay-signature").len() == 344
        }),
        (json!({"kind": "no_signature"}), 200, false, 1, |_, reply| {
            reply.header("wechatpay-serial").is_empty()
        }),
        (json!({"kind": "stale_timestamp"}), 200, true, 1, |_, reply| age(reply) > 590),
        (json!({"kind": "skewed_clock", "seconds": -400}), 200, true, 1, |_, reply| age(reply) > 390),
        (json!({"kind": "unsigned_refusal"}), 403, false, 0, |_, reply| reply.json()["code"] == "NOT_ENOUGH"),
        (json!({"kind": "unsigned"}), 200, true, 1, |_, _| true),
        (json!({"kind": "huge_body", "bytes": 3_000_000}), 200, true, 1, |_, reply| {
            reply.body.len() > 3_000_000
        }),
        (json!({"kind": "lean_body"}), 200, true, 1, |_, reply| reply.json().get("product_coupon").is_none()),
        (json!({"kind": "deep_json"}), 200, true, 1, |_, reply| reply.body.len() > 200_000),
        (json!({"kind": "gzip"}), 200, false, 1, |_, reply| reply.header("content-encoding") == "gzip"),
        (json!({"kind": "truncated_body"}), 200, false, 1, |_, reply| {
            serde_json::from_slice::<Value>(&reply.body).is_err()
        }),
        (json!({"kind": "wrong_number"}), 200, true, 1, |_, reply| {
            reply.json()["single_usage_detail"]["use_request_no"] == "SANDBOX_WRONG_NUMBER"
        }),
        (json!({"kind": "already_used_number"}), 400, true, 1, |_, reply| {
            reply.json()["message"] == "已使用过此单号核销券"
        }),
        (json!({"kind": "html_502"}), 502, false, 0, |_, reply| reply.header("content-type") == "text/html"),
        (json!({"kind": "html_502", "effect": true}), 502, false, 1, |_, reply| {
            reply.header("request-id").is_empty()
        }),
        (json!({"kind": "status", "status": 202}), 202, true, 0, |_, reply| reply.body == b"{}"),
        (json!({"kind": "status", "status": 429}), 429, true, 0, |_, reply| {
            reply.json()["code"] == "RATELIMIT_EXCEEDED"
        }),
        (json!({"kind": "status", "status": 500, "effect": true}), 500, false, 1, |_, reply| {
            reply.json()["code"] == "SYSTEM_ERROR"
        }),
        (json!({"kind": "status", "status": 403, "sub_code": 272_756_746_u64}), 403, true, 0, |_, reply| {
            reply.sub_code() == 272_756_746
        }),
        (
            json!({"kind": "status", "status": 403, "code": "NO_AUTH", "signed": false}),
            403,
            false,
            0,
            |_, reply| reply.sub_code() == 268_579_803 && reply.json()["code"] == "NO_AUTH",
        ),
        (json!({"kind": "status", "status": 204}), 204, true, 0, |_, reply| reply.body.is_empty()),
    ];
    for (fault, status, signed, uses, see) in cases {
        let bed = Bed::new().await;
        bed.faulty(fault.clone());
        let reply = bed.redeem().await;
        assert_eq!(reply.status, status, "{fault}");
        assert_eq!(authentic(&bed, &reply), signed, "{fault}");
        assert_eq!(bed.uses(), uses, "{fault}");
        assert!(see(&bed, &reply), "{fault}");
        assert_eq!(bed.sandbox.faults().applied, [1]);
    }
}

fn age(reply: &Reply) -> i64 {
    Timestamp::now().as_second() - reply.header("wechatpay-timestamp").parse::<i64>().unwrap()
}

#[tokio::test]
async fn a_gzipped_body_unpacks_to_what_was_signed() {
    let bed = Bed::new().await;
    bed.faulty(json!({ "kind": "gzip" }));
    let mut reply = bed.redeem().await;
    let packed = bed.dir.join("body.gz");
    std::fs::write(&packed, &reply.body).unwrap();
    reply.body = std::process::Command::new("gzip").args(["-dc"]).arg(packed).output().unwrap().stdout;
    assert!(bed.is_authentic(&reply));
}

#[tokio::test]
async fn an_unsigned_truth_is_unsigned_only_where_it_refuses() {
    let bed = Bed::new().await;
    bed.faulty(json!({ "kind": "unsigned" }));
    assert!(bed.is_authentic(&bed.redeem().await));
    let refused = bed.ask(redeem("number_2")).await.unwrap();
    assert_eq!((refused.status, refused.sub_code()), (403, 272_756_745));
    assert_eq!(refused.header("wechatpay-signature"), "");
}

#[tokio::test]
async fn an_endless_body_goes_on_until_the_client_leaves() {
    let bed = Bed::new().await;
    bed.faulty(json!({ "kind": "endless_body" }));
    let mut stream = TcpStream::connect(bed.sandbox.addr()).await.unwrap();
    stream.write_all(&bed.written(redeem("number_1"))).await.unwrap();
    let mut buffer = vec![0; 5_000_000];
    stream.read_exact(&mut buffer).await.unwrap();
    drop(stream);
    assert_eq!(bed.uses(), 1);
    bed.sandbox.set_faults(Script::default()).unwrap();
    assert_eq!(bed.redeem().await.status, 200);
}

#[tokio::test]
async fn a_late_effect_happens_though_the_client_has_hung_up() {
    let bed = Bed::new().await;
    bed.faulty(json!({ "kind": "slow", "ms": 1_000, "late_effect": true }));
    let mut stream = TcpStream::connect(bed.sandbox.addr()).await.unwrap();
    stream.write_all(&bed.written(redeem("number_1"))).await.unwrap();
    // An attempt is entered on arrival, before its signature is looked at and its fault is chosen.
    until(|| bed.sandbox.faults().applied == [1]).await;
    drop(stream);
    bed.sandbox.set_faults(Script::default()).unwrap();
    assert_eq!(bed.ask(query()).await.unwrap().json()["coupon_state"], "EFFECTIVE");
    until(|| bed.uses() == 1).await;
    until(|| bed.sandbox.summary().by_fault.get("slow") == Some(&1)).await;
}

#[tokio::test]
async fn calls_beyond_the_limit_are_not_accepted() {
    let bed = Bed::with(|settings| settings.calls_per_second = 2).await;
    let mut statuses = Vec::new();
    // Six calls cannot fall into more than a few seconds, and each second takes two.
    for _ in 0..6 {
        statuses.push(bed.ask(query()).await.unwrap().status);
    }
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
    assert_eq!(bed.sandbox.calls_by_second().values().sum::<u64>(), 6);
}

#[tokio::test]
async fn wrong_clock_refuses_genuine_clients_and_shows_in_date() {
    let bed = Bed::new().await;
    assert_eq!(bed.control("PUT", "clock", r#"{"offset_seconds": 900}"#).await.0, 200);
    let reply = bed.redeem().await;
    assert_eq!((reply.status, &reply.json()["detail"]["field"]), (401, &json!("timestamp")));
    let shown = jiff::fmt::rfc2822::parse(reply.header("date")).unwrap().timestamp();
    assert!((895..905).contains(&(shown.as_second() - Timestamp::now().as_second())));
    bed.sandbox.set_clock_offset(0);
    assert_eq!(bed.redeem().await.status, 200);
}

#[tokio::test]
async fn everything_can_be_arranged_and_read_by_http() {
    let bed = Bed::new().await;
    assert_eq!(bed.control("GET", "health", "").await.1["identity"]["mchid"], MCHID);
    let new = json!([{
        "openid": "o2", "coupon_code": "S1", "appid": "wx1", "brand_id": "b1", "product_coupon_id": "p1", "stock_id": "s1",
        "usage_mode": "SEQUENTIAL", "rounds": 4, "state": "USED", "used_by": "someone_1",
    }]);
    assert_eq!(bed.control("POST", "coupons", &new.to_string()).await, (200, json!({"issued": 1})));
    assert_eq!(bed.control("POST", "coupons", &new.to_string()).await.0, 400);
    let (status, coupon) =
        bed.control("POST", "coupons/S1/act", r#"{"do": "use", "number": "someone_2", "round": 1}"#).await;
    assert_eq!((status, &coupon["rounds"][1]["used"]["number"]), (200, &json!("someone_2")));
    assert_eq!(bed.control("GET", "ledgers", "").await.0, 404);
    assert_eq!(bed.control("POST", "coupons/S9/act", r#"{"do": "use"}"#).await.0, 400);

    let script =
        json!({ "rules": [{ "operation": "use", "times": 1, "fault": { "kind": "cut_before_effect" } }] });
    assert_eq!(bed.control("PUT", "faults", &script.to_string()).await.0, 200);
    assert!(bed.ask(redeem("number_1")).await.is_none());
    let (_, read) = bed.control("GET", "faults", "").await;
    assert_eq!(read["applied"], json!([1]));
    assert_eq!(bed.control("PUT", "faults", &read.to_string()).await.0, 200, "what was read can be written");
    assert_eq!(bed.control("PUT", "faults", r#"{"rules": [{"fault": {"kind": "?"}}]}"#).await.0, 400);

    let (_, ledger) = bed.control("GET", "ledger", "").await;
    assert_eq!(ledger["attempts"][0]["answered"], "cut");
    assert_eq!(ledger["coupons"][1]["coupon_code"], "S1");
    let (_, effects) = bed.control("GET", "effects", "").await;
    assert_eq!((&effects[0]["kind"], &effects[0]["round"]), (&json!("used"), &json!(1)));
    let (_, summary) = bed.control("GET", "summary", "").await;
    assert_eq!((&summary["by_status"]["cut"], &summary["effects_by_kind"]["used"]), (&json!(1), &json!(1)));
    assert_eq!(bed.control("DELETE", "ledger", "").await.0, 200);
    let (_, summary) = bed.control("GET", "summary", "").await;
    assert_eq!(
        (&summary["attempts"], &summary["effects"], &summary["busiest_second"]["calls"]),
        (&json!(0), &json!(1), &json!(1))
    );
}

#[tokio::test]
async fn stores_and_apps_are_arranged_and_read_by_http() {
    let bed = Bed::new().await;
    let stores = json!([{ "store_id": "S1", "brand_id": "b1", "open": true }]);
    assert_eq!(bed.control("PUT", "stores", &stores.to_string()).await, (200, stores.clone()));
    assert_eq!(bed.control("GET", "stores", "").await, (200, stores.clone()));
    let twice = json!([stores[0], stores[0]]);
    assert_eq!(bed.control("PUT", "stores", &twice.to_string()).await.0, 400);
    let apps = json!([{ "appid": "wx1", "openids": ["oOther1", "oOther2"] }]);
    assert_eq!(bed.control("PUT", "apps", &apps.to_string()).await, (200, apps.clone()));
    assert_eq!(bed.control("GET", "apps", "").await, (200, apps));
    assert_eq!(bed.control("PUT", "apps", r#"[{"appid": "wx1", "name": "x"}]"#).await.0, 400);

    let in_store = |id: &str| {
        let mut asked = redeem("number_1");
        let mut body: Value = serde_json::from_str(&asked.body).unwrap();
        body["store_id"] = json!(id);
        asked.body = body.to_string();
        asked
    };
    let reply = bed.ask(in_store("S2")).await.unwrap();
    assert_eq!((reply.status, reply.sub_code()), (400, 268_584_404));
    assert_eq!(bed.ask(in_store("S1")).await.unwrap().status, 200);
}

#[tokio::test]
async fn looks_are_the_seeds_once_the_settings_say_so() {
    let bed = Bed::new().await;
    assert_eq!(bed.control("PUT", "settings", r#"{"vary_looks": true}"#).await.1["vary_looks"], true);
    bed.sandbox.issue([coupon("C2"), NewCoupon { look: Some(3), ..coupon("C3") }]).unwrap();
    let (_, ledger) = bed.control("GET", "ledger", "").await;
    let looks: Vec<_> = (0..3).map(|n| ledger["coupons"][n]["look"].clone()).collect();
    assert_eq!(looks, [Value::Null, json!(appearance::by_seed(1, "C2")), json!(3)]);
}

#[tokio::test]
async fn a_use_that_takes_long_locks_its_coupon_against_other_numbers() {
    let bed = Bed::new().await;
    bed.faulty(json!({ "kind": "slow", "ms": 1_000_000, "late_effect": true }));
    let mut stream = TcpStream::connect(bed.sandbox.addr()).await.unwrap();
    stream.write_all(&bed.written(redeem("number_1"))).await.unwrap();
    // The lock itself is the fact that is waited for.
    let locked = async || bed.control("GET", "ledger", "").await.1["coupons"][0]["locked_by"] == "number_1";
    let waited = async {
        while !locked().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited).await.unwrap();
    bed.sandbox.set_faults(Script::default()).unwrap();
    let reply = bed.ask(redeem("number_2")).await.unwrap();
    assert_eq!((reply.status, reply.sub_code()), (403, 272_756_746));
    assert_eq!(bed.ask(redeem("number_1")).await.unwrap().status, 200, "the same number goes on");

    bed.sandbox.issue([coupon("C2")]).unwrap();
    let act = |action| ActionRequest { action, number: Some("number_3".to_owned()), round: None };
    bed.sandbox.act("C2", &act(CouponAction::Lock)).unwrap();
    bed.sandbox
        .act("C2", &ActionRequest { number: Some("number_4".to_owned()), ..act(CouponAction::Lock) })
        .unwrap_err();
    bed.sandbox
        .act("C2", &ActionRequest { number: Some("number_4".to_owned()), ..act(CouponAction::Use) })
        .unwrap_err();
    bed.sandbox.act("C2", &act(CouponAction::Unlock)).unwrap();
    bed.sandbox
        .act("C2", &ActionRequest { number: Some("number_4".to_owned()), ..act(CouponAction::Use) })
        .unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let bed = Bed::with(|settings| settings.idle_timeout = Duration::from_millis(300)).await;
    let mut stream = TcpStream::connect(bed.sandbox.addr()).await.unwrap();
    let keep = Operation { headers: vec![("connection", "keep-alive".to_owned())], ..query() };
    stream.write_all(&bed.written(keep)).await.unwrap();
    let mut all = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut all)).await.unwrap().unwrap();
    let text = String::from_utf8(all).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"));
    assert_eq!(text.matches("HTTP/1.1").count(), 1, "closed without a word");
}

#[tokio::test]
async fn a_shut_sandbox_leaves_the_port_and_its_connections() {
    let bed = Bed::new().await;
    let addr = bed.sandbox.addr();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    until(|| true).await;
    bed.sandbox.shutdown().await;
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty());
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn a_burst_on_one_coupon_has_one_effect_and_loses_no_attempt() {
    let bed = Bed::new().await;
    bed.sandbox.set_faults(Script::of([Rule { share: 0.3, ..Rule::new(Fault::CutAfterEffect {}) }])).unwrap();
    let numbers = (0..60).map(|number| format!("number_{}", number % 6)).collect::<Vec<_>>();
    let asked = numbers.iter().map(|number| bed.ask(redeem(number)));
    let answered = futures_util::future::join_all(asked).await;
    assert_eq!(bed.uses(), 1);
    let winner = bed.sandbox.effects()[0].out_request_no.clone().unwrap();
    for (number, reply) in numbers.iter().zip(answered) {
        let Some(reply) = reply else { continue };
        assert_eq!(reply.status, if **number == *winner { 200 } else { 403 }, "{number}");
    }
    let summary = bed.sandbox.summary();
    assert_eq!((summary.attempts, summary.unanswered), (60, 0));
    assert_eq!(summary.by_status["cut"], summary.by_fault["cut_after_effect"]);
}

#[tokio::test]
async fn fast_signatures_are_the_same_signatures() {
    let bed = Bed::with(|settings| settings.fast_signatures = true).await;
    let reply = bed.redeem().await;
    assert_eq!(reply.status, 200);
    assert!(bed.is_authentic(&reply));
    let forged =
        bed.ask(Operation { headers: vec![("authorization", String::new())], ..query() }).await.unwrap();
    assert_eq!(forged.status, 401);
    let other = PrivateKey::new(&mut rand::rngs::StdRng::seed_from_u64(9), 2048).unwrap();
    let wrong = Bed { key: SigningKey::new(other), ..bed };
    assert_eq!(wrong.ask(query()).await.unwrap().status, 401, "another key's signature does not count");
}

#[tokio::test]
async fn a_taken_port_is_said_so() {
    let bed = Bed::new().await;
    let settings = Settings { listen: bed.sandbox.addr(), dir: bed.dir.0.clone(), ..Settings::default() };
    assert!(matches!(Sandbox::start(settings).await, Err(StartError::Listen { .. })));
}

/// The client signs with aws-lc-rs. One file uses it too, for speed, and only if the settings ask for that.
#[test]
fn sandbox_signs_with_other_code_than_the_client() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files: Vec<_> = std::fs::read_dir(sources).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() > 10);
    for file in files.iter().filter(|file| !file.ends_with("fast.rs")) {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(!text.contains(concat!("aws", "_lc_rs")), "{}", file.display());
    }
}

/// Waits for a fact, and fails if it does not come true in ten seconds.
async fn until(fact: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while !fact() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("the fact did not come true");
}
