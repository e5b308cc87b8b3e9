//! Turns a draft into the response: applies the fault, signs and sends it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use axum::body::{Body, Bytes};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, StatusCode};
use rsa::pkcs1v15::SigningKey;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::call::Call;
use super::clock::{china_time, http_date, shifted};
use super::error_response::{ErrorResponse, sub_code};
use super::fast::FastSigner;
use super::faults::Fault;
use super::identity::hex;
use super::ledger::Operation;
use super::signature::{SCHEME, response_text, sign};
use super::world::World;

const JSON: &str = "application/json; charset=utf-8";
const PROBE: &str = "WECHATPAY/SIGNTEST/";
const STALE_SECONDS: i64 = -600;
const UNKNOWN_SERIAL: &str = "7E57000000000000000000000000000000000000";
const OTHER_NUMBER: &str = "SANDBOX_WRONG_NUMBER";
const YEAR_SECONDS: i64 = 365 * 24 * 3600;

/// A response before it is signed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ResponseDraft {
    pub status: u16,
    pub content_type: &'static str,
    pub body: Bytes,
    /// The end of the `Request-ID`; `None` for the response of a gateway, which has no such header.
    pub sub_code: Option<u64>,
    pub signed: bool,
}

/// The key of a response's signature, and its serial.
pub(super) struct Signer {
    serial: String,
    key: Arc<SigningKey<Sha256>>,
    fast: Option<Arc<FastSigner>>,
}

impl ResponseDraft {
    pub(crate) fn success(body: &Value) -> ResponseDraft {
        ResponseDraft {
            status: 200,
            content_type: JSON,
            body: body.to_string().into(),
            sub_code: Some(0),
            signed: true,
        }
    }

    /// Refusals are signed like successes, except for 401.
    pub(crate) fn refusal(refusal: &ErrorResponse) -> ResponseDraft {
        ResponseDraft {
            status: refusal.status,
            content_type: JSON,
            body: refusal.body().to_string().into(),
            sub_code: Some(refusal.sub_code),
            signed: refusal.status != 401,
        }
    }

    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Puts a member, given as JSON text, before all others. Text, because a value cannot be nested deeply enough.
    fn with_member(self, name: &str, value: &str) -> ResponseDraft {
        self.with_members(&format!("\"{name}\":{value}"))
    }

    fn with_members(mut self, members: &str) -> ResponseDraft {
        if let Some(rest) = self.body.strip_prefix(b"{") {
            let comma = if rest == b"}" { "" } else { "," };
            self.body = [format!("{{{members}{comma}").as_bytes(), rest].concat().into();
        }
        self
    }
}

impl Signer {
    /// The key that the request's `Wechatpay-Serial` selects; `None` where it names no key.
    pub(crate) fn of(world: &World, headers: &HeaderMap) -> Option<Signer> {
        let identity = &world.identity;
        let asked = headers.get("wechatpay-serial").map(|value| value.to_str().unwrap_or_default());
        if asked == Some(&identity.card.public_key_id) {
            return Some(Signer {
                serial: identity.card.public_key_id.clone(),
                key: identity.wechatpay.clone(),
                fast: identity.fast.as_ref().map(|fast| fast.wechatpay.clone()),
            });
        }
        asked.is_none_or(|serial| serial == identity.card.platform_serial).then(|| Signer::platform(world))
    }

    fn platform(world: &World) -> Signer {
        let identity = &world.identity;
        Signer {
            serial: identity.card.platform_serial.clone(),
            key: identity.platform.clone(),
            fast: identity.fast.as_ref().map(|fast| fast.platform.clone()),
        }
    }
}

/// The content of the response: the genuine one, or that of the fault. `None` means that there was no effect.
pub(super) fn apply_fault(genuine: Option<ResponseDraft>, fault: Option<&Fault>) -> ResponseDraft {
    let refused = || {
        ResponseDraft::refusal(&ErrorResponse::unusable(sub_code::STATE_ILLEGAL, "用户商品券当前无法使用"))
    };
    let genuine = genuine.unwrap_or_else(refused);
    match fault {
        Some(Fault::Status { status, code, message, detail, sub_code, signed, .. }) => {
            let draft = status_draft(*status, code.as_deref(), message.as_deref(), *sub_code, *signed);
            match detail {
                Some(detail) => ResponseDraft { body: patched(&draft.body, &json!({ "detail": detail })), ..draft },
                None => draft,
            }
        }
        Some(Fault::Html502 { .. }) => ResponseDraft {
            status: 502,
            content_type: "text/html",
            body: "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n".into(),
            sub_code: None,
            signed: false,
        },
        Some(Fault::UnsignedRefusal {}) => ResponseDraft { signed: false, ..refused() },
        Some(Fault::NoSignature {} | Fault::ForgedSuccess { signed: false }) => ResponseDraft { signed: false, ..genuine },
        Some(Fault::Unsigned {}) => ResponseDraft { signed: genuine.signed && genuine.is_success(), ..genuine },
        Some(Fault::AlreadyUsedNumber {}) if genuine.is_success() => ResponseDraft::refusal(&ErrorResponse::number_already_used()),
        Some(Fault::WrongNumber {}) => ResponseDraft { body: with_wrong_number(&genuine.body), ..genuine },
        Some(Fault::HugeBody { bytes }) => genuine.with_member("sandbox_padding", &padding(*bytes)),
        Some(Fault::RawMembers { members }) => genuine.with_members(members),
        Some(Fault::PatchedBody { patch }) => ResponseDraft { body: patched(&genuine.body, patch), ..genuine },
        Some(Fault::LeanBody {}) => ResponseDraft { body: without_product_and_stock(&genuine.body), ..genuine },
        Some(Fault::DeepJson { depth }) => {
            genuine.with_member("sandbox_depth", &format!("{}{}", "[".repeat(*depth), "]".repeat(*depth)))
        }
        _ => genuine,
    }
}

/// A body with a patch merged into it; one that is not JSON stays as it is.
fn patched(body: &Bytes, patch: &Value) -> Bytes {
    fn merge(into: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else {
            *into = patch.clone();
            return;
        };
        if !into.is_object() {
            *into = json!({});
        }
        for (name, patch) in patch {
            match patch {
                Value::Null => into.as_object_mut().map_or((), |members| drop(members.remove(name))),
                patch => merge(&mut into[name], patch),
            }
        }
    }
    let Ok(mut value) = serde_json::from_slice(body) else { return body.clone() };
    merge(&mut value, patch);
    value.to_string().into()
}

/// Signs a draft and makes a response of it. Here belong the faults of signatures, headers and transport.
pub(super) async fn write(
    world: &Arc<World>,
    call: &Call,
    sequence: u64,
    draft: ResponseDraft,
    fault: Option<&Fault>,
) -> Response {
    let now = match fault {
        Some(Fault::SkewedClock { seconds }) => shifted(world.clock.now(), *seconds),
        _ => world.clock.now(),
    };
    let unique =
        Sha256::new().chain_update(world.seed.to_be_bytes()).chain_update(sequence.to_be_bytes()).finalize();
    let mut headers = HeaderMap::new();
    let mut put = |name: &'static str, value: &str| {
        // Every value is visible ASCII; another one would be a defect that the missing header shows.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    put("date", &http_date(now));
    put("content-type", draft.content_type);
    put("keep-alive", &format!("timeout={}", world.idle_timeout.as_secs()));
    if let Some(sub_code) = draft.sub_code {
        // The first 16 digits after 08 are the sequence of the attempt in the ledger.
        put("request-id", &format!("08{sequence:016X}{}-{sub_code}", hex(&unique[..8])));
    }
    if draft.signed {
        let signer = match call.route.operation {
            Operation::Certificates => Signer::platform(world),
            _ => Signer::of(world, &call.headers).unwrap_or_else(|| Signer::platform(world)),
        };
        let stale = if matches!(fault, Some(Fault::StaleTimestamp {})) { STALE_SECONDS } else { 0 };
        let timestamp = shifted(now, stale).as_second().to_string();
        let nonce = hex(&unique[8..24]);
        let text = match fault {
            Some(Fault::BadSignature {} | Fault::ForgedSuccess { .. }) => {
                response_text(&timestamp, &nonce, b"something else")
            }
            _ => response_text(&timestamp, &nonce, &draft.body),
        };
        // The faster library takes less time than a change of threads.
        let signature = match signer.fast {
            Some(key) => key.sign(&text),
            None => run_blocking(world, move || sign(&signer.key, &text).ok()).await.flatten(),
        }
        .unwrap_or_default();
        let prefix = if matches!(fault, Some(Fault::ProbeSignature {})) { PROBE } else { "" };
        let serial =
            if matches!(fault, Some(Fault::UnknownSerial {})) { UNKNOWN_SERIAL } else { &signer.serial };
        put("wechatpay-timestamp", &timestamp);
        put("wechatpay-nonce", &nonce);
        put("wechatpay-serial", serial);
        put("wechatpay-signature", &format!("{prefix}{signature}"));
        put("wechatpay-signature-type", SCHEME);
    }
    if matches!(fault, Some(Fault::Gzip {})) {
        put("content-encoding", "gzip");
    }
    if matches!(fault, Some(Fault::CutInBody {})) {
        put("content-length", &draft.body.len().to_string());
    }

    let mut response = Response::new(body(draft.body, fault));
    *response.status_mut() = StatusCode::from_u16(draft.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = headers;
    response
}

/// Runs RSA on a thread that may block; `None` if it panicked.
pub(super) async fn run_blocking<T: Send + 'static>(
    world: &World,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    // The semaphore is never closed, so a permit always comes.
    let permit = world.crypto.clone().acquire_owned().await.ok();
    let done = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work()
    });
    done.await.ok()
}

/// The response of `GET /v3/certificates`: the platform certificate, encrypted with the APIv3 key.
pub(super) fn certificates(world: &World) -> Result<ResponseDraft, ErrorResponse> {
    const ASSOCIATED_DATA: &str = "certificate";
    let identity = &world.identity;
    let failed = || ErrorResponse::new(500, "SYSTEM_ERROR", 0, "系统异常，请稍后重试");
    let now = world.clock.now();
    // A nonce that depends on the content's only variable part, time, is fresh enough for a key that protects nothing.
    let nonce = hex(&Sha256::digest(now.as_nanosecond().to_be_bytes())[..6]);
    let cipher = Aes256Gcm::new(&identity.apiv3_key.into());
    let payload = Payload { msg: identity.platform_cert_pem.as_bytes(), aad: ASSOCIATED_DATA.as_bytes() };
    let nonce_bytes: [u8; 12] = nonce.as_bytes().try_into().map_err(|_| failed())?;
    let sealed = cipher.encrypt(&nonce_bytes.into(), payload).map_err(|_| failed())?;
    Ok(ResponseDraft::success(&json!({
        "data": [{
            "serial_no": identity.card.platform_serial,
            "effective_time": china_time(shifted(now, -YEAR_SECONDS)),
            "expire_time": china_time(shifted(now, 4 * YEAR_SECONDS)),
            "encrypt_certificate": {
                "algorithm": "AEAD_AES_256_GCM",
                "nonce": nonce,
                "associated_data": ASSOCIATED_DATA,
                "ciphertext": STANDARD.encode(sealed),
            },
        }],
    })))
}

/// Absent members are those that the provider usually sends with this status.
fn status_draft(
    status: u16,
    code: Option<&str>,
    message: Option<&str>,
    number: Option<u64>,
    signed: Option<bool>,
) -> ResponseDraft {
    let (usual_code, usual_number) = match status {
        401 => ("SIGN_ERROR", sub_code::SIGNATURE),
        403 => ("NOT_ENOUGH", sub_code::STATE_ILLEGAL),
        404 => ("NOT_FOUND", sub_code::NO_SUCH_COUPON),
        429 => ("RATELIMIT_EXCEEDED", sub_code::TOO_FREQUENT),
        502 | 503 => ("SERVICE_UNAVAILABLE", sub_code::PARAMETERS),
        _ if status < 500 => ("INVALID_REQUEST", sub_code::PARAMETERS),
        _ => ("SYSTEM_ERROR", sub_code::PARAMETERS),
    };
    let code = code.unwrap_or(usual_code);
    let usual_number = if code == "NO_AUTH" { sub_code::NO_PERMISSION } else { usual_number };
    let body = match status {
        204 | 304 => Bytes::new(),
        200..300 => "{}".into(),
        _ => json!({ "code": code, "message": message.unwrap_or("沙箱按脚本返回") }).to_string().into(),
    };
    let usual_number = if status < 300 { 0 } else { usual_number };
    ResponseDraft {
        status,
        content_type: JSON,
        body,
        sub_code: Some(number.unwrap_or(usual_number)),
        signed: signed.unwrap_or(status != 401 && status < 500),
    }
}

/// A list of this many bytes, brackets included, of small objects: the padding costs its reader as much as real members
/// would.
fn padding(bytes: usize) -> String {
    const ITEM: &str = r#"{"name":"满100减20","available":true,"days":[1,2,3],"limit":10},"#;
    const REST: usize = "[\"\"]".len();
    let items = ITEM.repeat(bytes.saturating_sub(REST) / ITEM.len());
    let filler = "x".repeat(bytes.saturating_sub(REST + items.len()));
    format!("[{items}\"{filler}\"]")
}

fn without_product_and_stock(body: &Bytes) -> Bytes {
    let Ok(Value::Object(mut members)) = serde_json::from_slice(body) else { return body.clone() };
    members.remove("product_coupon");
    members.remove("stock");
    Value::Object(members).to_string().into()
}

fn with_wrong_number(body: &[u8]) -> Bytes {
    fn replace(value: &mut Value) {
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    match name.as_str() {
                        "use_request_no" => *member = OTHER_NUMBER.into(),
                        _ => replace(member),
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(replace),
            _ => {}
        }
    }
    match serde_json::from_slice::<Value>(body) {
        Ok(mut value) => {
            replace(&mut value);
            value.to_string().into()
        }
        Err(_) => Bytes::copy_from_slice(body),
    }
}

fn body(bytes: Bytes, fault: Option<&Fault>) -> Body {
    let half = bytes.len() / 2;
    match fault {
        Some(Fault::TruncatedBody {}) => Body::from(bytes.slice(..half)),
        Some(Fault::Gzip {}) => Body::from(gzip(&bytes)),
        Some(Fault::CutInBody {}) => {
            Body::from_stream(stream::unfold(Some(bytes.slice(..half)), async |part| match part {
                Some(part) if !part.is_empty() => Some((Ok(part), Some(Bytes::new()))),
                Some(_) => {
                    // The pause lets the first half leave before the connection falls.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Some((Err(io::Error::from(io::ErrorKind::ConnectionAborted)), None))
                }
                None => None,
            }))
        }
        Some(Fault::EndlessBody {}) => Body::from_stream(stream::unfold((), async |()| {
            tokio::task::yield_now().await;
            Some((Ok::<_, io::Error>(Bytes::from_static(&[b' '; 8192])), ()))
        })),
        _ => Body::from(bytes),
    }
}

/// Gzip without compressing (RFC 1952 around stored blocks of RFC 1951): what counts is that the bytes differ.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let blocks = bytes.chunks(0xFFFF);
    let last = blocks.len().saturating_sub(1);
    for (index, block) in blocks.enumerate() {
        // A chunk is at most 0xFFFF bytes long.
        let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
        packed.push(u8::from(index == last));
        packed.extend(length.to_le_bytes());
        packed.extend((!length).to_le_bytes());
        packed.extend(block);
    }
    packed.extend(crc32(bytes).to_le_bytes());
    packed.extend((bytes.len() as u32).to_le_bytes());
    packed
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 }
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_of_gzip_is_the_known_one() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn members_are_put_in_front() {
        let draft =
            |body: &'static str| ResponseDraft { body: body.into(), ..ResponseDraft::success(&Value::Null) };
        assert_eq!(draft("{\"a\":1}").with_member("b", "[]").body, "{\"b\":[],\"a\":1}");
        assert_eq!(draft("{}").with_member("b", "[]").body, "{\"b\":[]}");
    }

    #[test]
    fn padding_is_json_of_the_size_asked_for() {
        for bytes in [4, 5, 80, 81, 1_300, 60_000] {
            let padding = padding(bytes);
            assert_eq!(padding.len(), bytes);
            serde_json::from_str::<Vec<Value>>(&padding).unwrap();
        }
    }

    #[test]
    fn a_scripted_status_is_signed_as_the_provider_would() {
        for (status, signed) in [
            (200, true),
            (202, true),
            (400, true),
            (401, false),
            (403, true),
            (429, true),
            (500, false),
            (503, false),
        ] {
            assert_eq!(status_draft(status, None, None, None, None).signed, signed, "{status}");
        }
        assert_eq!(
            status_draft(403, Some("NO_AUTH"), None, None, None).sub_code,
            Some(sub_code::NO_PERMISSION)
        );
        assert_eq!(status_draft(500, None, None, Some(7), Some(true)).sub_code, Some(7));
    }

    #[test]
    fn a_wrong_number_is_put_wherever_there_is_one() {
        let body = br#"{"a":[{"use_request_no":"mine"}],"single_usage_detail":{"use_request_no":"mine"}}"#;
        let wrong: Value = serde_json::from_slice(&with_wrong_number(body)).unwrap();
        assert_eq!(wrong["a"][0]["use_request_no"], OTHER_NUMBER);
        assert_eq!(wrong["single_usage_detail"]["use_request_no"], OTHER_NUMBER);
    }
}
