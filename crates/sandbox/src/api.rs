//! The provider API: from a request to its response.
//!
//! A call runs in a task of its own, from arrival to the ledger's last entry, so that a client which disconnects does not
//! affect it. Order: authenticity, format, rate limit, then the fault script, then the business.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Method, Request, StatusCode, header};
use serde_json::{Value, json};

use super::call::{Call, Route};
use super::coupon::{Coupon, NewCoupon};
use super::entity::entity;
use super::error_response::{ErrorResponse, sub_code};
use super::faults::Fault;
use super::ledger::{BodyDigest, Operation, PendingAttempt, ResponseRecord, shortened};
use super::listener::ServerConnection;
use super::request::{self, Path};
use super::response::{self, ResponseDraft, Signer};
use super::signature::{Authorization, request_text, verifies};
use super::world::{State, World};

const BODY_BYTES_MAX: usize = 1024 * 1024;
const CLOCK_TOLERANCE_SECONDS: u64 = 300;

/// What to do with the connection.
enum Ending {
    Answer(Response),
    Cut,
}

/// Responds to one request of the provider API, or closes its connection.
pub(super) async fn serve_call(
    world: Arc<World>,
    connection: ServerConnection,
    request: Request<Body>,
) -> Result<Response, Infallible> {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        return Ok((StatusCode::PAYLOAD_TOO_LARGE, "the body is too large, or it broke off").into_response());
    };
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let call = Call {
        route: Route::read(&parts.method, &target),
        method: parts.method,
        target,
        headers: parts.headers,
        digest: BodyDigest::of(&body),
        body,
    };
    match tokio::spawn(handle(world, call)).await {
        Ok(Ending::Answer(response)) => Ok(response),
        Ok(Ending::Cut) => connection.close_abruptly().await,
        Err(panic) => {
            tracing::error!(%panic, "the sandbox failed to answer: this is a defect of the sandbox");
            Ok((StatusCode::INTERNAL_SERVER_ERROR, "the sandbox is broken: see its log").into_response())
        }
    }
}

async fn handle(world: Arc<World>, call: Call) -> Ending {
    let authorization = read_authorization(&call.headers);
    let (sequence, latency, arrived_us) = {
        let mut state = world.state();
        let moment = world.moment();
        let arrival = PendingAttempt {
            operation: call.route.operation,
            openid: call.route.openid.as_deref().map(shortened),
            coupon_code: call.route.coupon_code.as_deref().map(Arc::from),
            out_request_no: number_in(&call.body),
            body: call.digest,
            mchid: authorization.as_ref().ok().map(|items| items.mchid.as_str().into()),
        };
        (state.ledger.record_arrival(moment, arrival), state.latency, moment.at_us)
    };
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }

    let admitted = admit(&world, &call, authorization).await;
    let authenticated = !matches!(&admitted, Err(refusal) if refusal.status == 401);
    let fault = match &admitted {
        Ok(()) => {
            let coupon = call.route.coupon_code.as_deref().unwrap_or_default();
            world.state().faults.choose(world.seed, call.route.operation, coupon)
        }
        Err(_) => None,
    };
    let draft = match admitted {
        Ok(()) => perform_fault(&world, &call, fault.as_ref()).await,
        Err(refusal) => ResponseDraft::refusal(&refusal),
    };
    let cut = matches!(fault, Some(Fault::CutBeforeEffect {} | Fault::CutAfterEffect {}));
    let (sub_code, answer_sha256) = (draft.sub_code, BodyDigest::of(&draft.body));
    let end = if cut {
        Ending::Cut
    } else {
        Ending::Answer(response::write(&world, &call, sequence, draft, fault.as_ref()).await)
    };

    let mut state = world.state();
    let now_us = world.clock.elapsed_us();
    if let Some(attempt) = state.ledger.attempt(sequence) {
        attempt.took_us = Some(now_us.saturating_sub(arrived_us));
        attempt.authenticated = authenticated;
        attempt.fault = fault.as_ref().map(Fault::name);
        attempt.answer_sha256 = Some(answer_sha256);
        (attempt.answered, attempt.sub_code) = match &end {
            Ending::Answer(response) => (Some(ResponseRecord::Status(response.status().as_u16())), sub_code),
            Ending::Cut => (Some(ResponseRecord::Cut), None),
        };
    }
    drop(state);
    end
}

/// Lets the effect happen if and when the fault allows it, and drafts the response of the fault.
async fn perform_fault(world: &Arc<World>, call: &Call, fault: Option<&Fault>) -> ResponseDraft {
    let wait = |ms: &u64| tokio::time::sleep(Duration::from_millis(*ms));
    let mut locked = false;
    if let Some(Fault::Slow { ms, late_effect: true }) = fault {
        // A use that takes this long holds its coupon meanwhile.
        locked = lock(world, call);
        wait(ms).await;
    }
    let genuine = match fault {
        Some(Fault::ForgedSuccess { .. }) => Some(forged_success(world, call)),
        Some(fault) if fault.prevents_effect() => None,
        _ => Some(perform(world, call).unwrap_or_else(|refusal| ResponseDraft::refusal(&refusal))),
    };
    if let (true, Some(code)) = (locked, &call.route.coupon_code) {
        world.state().coupons.unlock(code);
    }
    if let Some(Fault::Slow { ms, late_effect: false }) = fault {
        wait(ms).await;
    }
    response::apply_fault(genuine, fault)
}

/// Whether this call is a use that now holds its coupon.
fn lock(world: &World, call: &Call) -> bool {
    let (Operation::Use, Some(code), Some(openid)) =
        (call.route.operation, &call.route.coupon_code, &call.route.openid)
    else {
        return false;
    };
    let Ok(asked) = request::Use::read(&call.body) else { return false };
    world.with_coupons(|state, now| {
        let free = state
            .coupons
            .find(openid, code, &asked.place, now)
            .is_ok_and(|coupon| coupon.locked_by.is_none());
        free && state.coupons.lock(code, &asked.out_request_no).is_ok()
    })
}

/// The coupon as it would be after a successful request.
fn forged_success(world: &World, call: &Call) -> ResponseDraft {
    let code = call.route.coupon_code.as_deref().unwrap_or_default();
    let number = number_in(&call.body).or_else(|| world.state().ledger.last_number_of(code));
    ResponseDraft::success(&json!({
        "coupon_code": code,
        "coupon_state": "USED",
        "single_usage_detail": { "use_request_no": number },
    }))
}

/// Authenticity, format and rate limit, in this order.
async fn admit(
    world: &Arc<World>,
    call: &Call,
    authorization: Result<Authorization, &'static str>,
) -> Result<(), ErrorResponse> {
    let items = authenticate(world, call, authorization).await?;
    if call.route.operation == Operation::Unknown {
        return Err(ErrorResponse::not_found(sub_code::PARAMETERS, "请求的资源不存在"));
    }
    check_headers(world, call)?;
    let second = world.clock.elapsed_us() / 1_000_000;
    match world.state().admit_call(&items.mchid, second) {
        true => Ok(()),
        false => Err(ErrorResponse::too_frequent()),
    }
}

async fn authenticate(
    world: &Arc<World>,
    call: &Call,
    authorization: Result<Authorization, &'static str>,
) -> Result<Authorization, ErrorResponse> {
    let method = call.method.as_str();
    let refused = |field, issue: &str, text: &[u8]| {
        Err(ErrorResponse::signature(issue, field, method, &call.target, text))
    };
    let items = match authorization {
        Ok(items) => items,
        Err(issue) => return refused("authorization", issue, b""),
    };
    let text = request_text(method, &call.target, &items.timestamp, &items.nonce_str, &call.body);
    let merchant = world.merchant();
    if items.mchid != world.identity.card.mchid {
        return refused("mchid", "mchid is unknown", &text);
    }
    if items.serial_no != merchant.serial {
        return refused("serial_no", "serial_no is not of this merchant's certificate", &text);
    }
    let age =
        items.timestamp.parse::<u32>().map(|then| world.clock.now().as_second().abs_diff(i64::from(then)));
    if age.is_err() || age.is_ok_and(|age| age > CLOCK_TOLERANCE_SECONDS) {
        return refused("timestamp", "timestamp is more than 5 minutes off", &text);
    }
    let matches = match merchant.fast {
        Some(key) => Some(key.verifies(&text, &items.signature)),
        None => {
            let (signed, signature) = (text.clone(), items.signature.clone());
            response::run_blocking(world, move || verifies(&merchant.key, &signed, &signature)).await
        }
    };
    match matches {
        Some(true) => Ok(items),
        _ => refused("signature", "sign not match", &text),
    }
}

fn check_headers(world: &World, call: &Call) -> Result<(), ErrorResponse> {
    let text = |name| call.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let fault = |status, name: &str, issue| {
        let refusal = ErrorResponse::parameter(sub_code::PARAMETERS, "header", name, Value::Null, issue);
        Err(ErrorResponse { status, ..refusal })
    };
    if text(header::USER_AGENT).is_empty() {
        return fault(400, "User-Agent", "required");
    }
    let kinds = text(header::ACCEPT);
    let accepts = |kind: &str| {
        matches!(
            kind.split(';').next().unwrap_or_default().trim(),
            "application/json" | "application/*" | "*/*"
        )
    };
    if !kinds.split(',').any(accepts) {
        return fault(406, "Accept", "must include application/json");
    }
    let sent = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if call.method == Method::POST && sent != "application/json" {
        return fault(400, "Content-Type", "must be application/json");
    }
    match (Signer::of(world, &call.headers), call.route.operation) {
        (None, _) => fault(400, "Wechatpay-Serial", "names no key of this platform"),
        (_, Operation::Echo) if !call.headers.contains_key("wechatpay-serial") => {
            fault(400, "Wechatpay-Serial", "required")
        }
        _ => Ok(()),
    }
}

/// The business itself: reads the request, applies it, drafts the genuine response.
fn perform(world: &World, call: &Call) -> Result<ResponseDraft, ErrorResponse> {
    let body = call.body.as_ref();
    match call.route.operation {
        Operation::Use => {
            let asked = request::Use::read(body)?;
            about_coupon(world, call, &asked.place, |state, code, now| {
                if state.is_returned_before_reuse(code) {
                    state.coupons.forget(code, &asked.out_request_no, now)?;
                }
                state.coupons.redeem(code, &asked, call.digest)
            })
        }
        Operation::Query => {
            let place = Path::read_query(&call.route.query)?;
            about_coupon(world, call, &place, |_, _, _| Ok(()))
        }
        Operation::Return => {
            let asked = request::Change::read(body, Some("sequential_coupon_index"))?;
            let round = asked.round.and_then(|round| usize::try_from(round).ok());
            about_coupon(world, call, &asked.place, |state, code, now| {
                state.coupons.return_coupon(code, round, &asked.out_request_no, Some(call.digest), now)
            })
        }
        Operation::Confirm => {
            let asked = request::Change::read(body, None)?;
            about_coupon(world, call, &asked.place, |state, code, now| {
                state.coupons.confirm(code, &asked.out_request_no, Some(call.digest), now)
            })
        }
        Operation::Deactivate => {
            let asked = request::Change::read(body, Some("deactivate_reason"))?;
            let reason = asked.deactivate_reason.as_deref().unwrap_or_default();
            about_coupon(world, call, &asked.place, |state, code, now| {
                state.coupons.deactivate(code, &asked.out_request_no, reason, Some(call.digest), now)
            })
        }
        Operation::Send => {
            let asked = request::Send::read(body)?;
            let openid = call.route.openid.as_deref().unwrap_or_default();
            world
                .with_coupons(|state, now| {
                    refuse_unauthorized(state, &asked.place)?;
                    let code = state.coupons.send(openid, &asked, call.digest, now)?;
                    found(state, &code)
                })
                .map(|(coupon, used_in_bundle)| ResponseDraft::success(&entity(&coupon, used_in_bundle)))
        }
        Operation::Certificates => response::certificates(world),
        Operation::Echo => Ok(ResponseDraft::success(&json!({ "echo_message": request::read_echo(body)? }))),
        Operation::Unknown => Err(ErrorResponse::not_found(sub_code::PARAMETERS, "请求的资源不存在")),
    }
}

/// Finds the coupon of the path, applies `work`, and returns its new state.
fn about_coupon(
    world: &World,
    call: &Call,
    place: &Path,
    work: impl FnOnce(&mut State, &str, jiff::Timestamp) -> Result<(), ErrorResponse>,
) -> Result<ResponseDraft, ErrorResponse> {
    let openid = call.route.openid.as_deref().unwrap_or_default();
    let code = call.route.coupon_code.as_deref().unwrap_or_default();
    if code.chars().count() > 40 {
        return Err(ErrorResponse::parameter(
            sub_code::TOO_LONG,
            "url",
            "coupon_code",
            code.into(),
            "too long",
        ));
    }
    world
        .with_coupons(|state, now| {
            refuse_unauthorized(state, place)?;
            if state.auto_issue && code.starts_with("auto") && state.coupons.get(code).is_none() {
                // The code is new and short enough, so issuing cannot fail; were it to, the coupon would be "not found".
                let _ = state.coupons.issue(vec![NewCoupon::at(openid, code, place)], now);
            }
            state.coupons.find(openid, code, place, now)?;
            work(state, code, now)?;
            found(state, code)
        })
        .map(|(coupon, used_in_bundle)| ResponseDraft::success(&entity(&coupon, used_in_bundle)))
}

fn refuse_unauthorized(state: &State, place: &Path) -> Result<(), ErrorResponse> {
    match state.is_unauthorized(&place.brand_id) {
        true => Err(ErrorResponse::new(403, "NO_AUTH", sub_code::NO_PERMISSION, "服务商没有此接口权限")),
        false => Ok(()),
    }
}

/// A copy for the entity, so that it is written without the lock.
fn found(state: &State, code: &str) -> Result<(Coupon, usize), ErrorResponse> {
    let coupon = state
        .coupons
        .get(code)
        .ok_or_else(|| ErrorResponse::not_found(sub_code::NO_SUCH_COUPON, "券不存在"))?;
    let used_in_bundle = coupon.bundle.as_ref().map_or(0, |bundle| state.coupons.used_in_bundle(bundle));
    Ok((coupon.clone(), used_in_bundle))
}

fn read_authorization(headers: &HeaderMap) -> Result<Authorization, &'static str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    match (all.next(), all.next()) {
        (None, _) => Err("no Authorization header"),
        (Some(_), Some(_)) => Err("more than one Authorization header"),
        (Some(only), None) => {
            Authorization::parse(only.to_str().map_err(|_| "the Authorization header is not ASCII")?)
        }
    }
}

/// The request number in a body, if it has one, however wrong the rest is.
fn number_in(body: &[u8]) -> Option<Arc<str>> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let number = value.get("out_request_no").or_else(|| value.get("send_request_no"))?;
    Some(number.as_str()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::COUPON_API;

    #[test]
    fn every_operation_has_its_path() {
        let check = |method: &str, path: &str, operation| {
            let path = path.replace('~', COUPON_API.trim_end_matches('/'));
            let route = Route::read(&method.parse().unwrap(), &path);
            assert_eq!(route.operation, operation, "{method} {path}");
            route
        };
        let route = check("POST", "~/oU%5F1/coupons/C1/use?x=1", Operation::Use);
        assert_eq!((route.openid.as_deref(), route.coupon_code.as_deref()), (Some("oU_1"), Some("C1")));
        assert_eq!(route.query, "x=1");
        check("GET", "~/o1/coupons/C1?appid=1", Operation::Query);
        check("POST", "~/o1/coupons/C1/return", Operation::Return);
        check("POST", "~/o1/coupons/C1/confirm", Operation::Confirm);
        check("POST", "~/o1/coupons/C1/deactivate", Operation::Deactivate);
        check("POST", "~/o1/coupons", Operation::Send);
        check("GET", "/v3/certificates", Operation::Certificates);
        check("POST", "/v3/security/echo", Operation::Echo);
        check("GET", "~/o1/coupons/C1/use", Operation::Unknown);
        check("POST", "~/o1/coupons//use", Operation::Unknown);
        check("POST", "~//coupons/C1/use", Operation::Unknown);
        check("POST", "~/o1/coupons/C1/use/", Operation::Unknown);
        check("POST", "/brand/marketing/product-coupon/users/o1/coupons/C1/use", Operation::Unknown);
    }
}
