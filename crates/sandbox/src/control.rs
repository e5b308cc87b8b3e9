//! The control API under `/_sandbox/`: how tests and people arrange the sandbox and read its ledger.
//!
//! No authentication: it is a tool for the loopback interface. A refusal is 400 `{"error": "…"}`.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post, put};
use http::{StatusCode, header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::coupon::{ActionRequest, NewCoupon};
use super::faults::Script;
use super::registry::{App, Store};
use super::world::{Tuning, World};

/// The body of `PUT /_sandbox/clock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockOffset {
    offset_seconds: i64,
}

pub(super) fn router(world: Arc<World>) -> Router {
    Router::new()
        .route("/_sandbox/health", get(health))
        .route("/_sandbox/coupons", post(issue))
        .route("/_sandbox/coupons/{code}/act", post(act))
        .route("/_sandbox/stores", get(read_stores).put(replace_stores))
        .route("/_sandbox/apps", get(read_apps).put(replace_apps))
        .route("/_sandbox/faults", get(read_faults).put(replace_faults))
        .route("/_sandbox/clock", get(read_clock).put(set_clock))
        .route("/_sandbox/settings", get(read_settings).put(tune))
        .route("/_sandbox/merchant_key", put(register_merchant))
        .route("/_sandbox/ledger", get(ledger).delete(clear))
        .route("/_sandbox/effects", get(effects))
        .route("/_sandbox/summary", get(summary))
        .route("/_sandbox/seconds", get(seconds))
        // A misspelled path must not look like a call of the provider API, nor enter its ledger.
        .route("/_sandbox/{*rest}", any(no_content))
        // A million coupons are issued in a few requests.
        .layer(DefaultBodyLimit::disable())
        .with_state(world)
}

async fn health(State(world): State<Arc<World>>) -> Response {
    display(&json!({ "status": "ok", "identity": world.identity.card }))
}

async fn issue(State(world): State<Arc<World>>, body: Bytes) -> Response {
    updated(read::<Vec<NewCoupon>>(&body).and_then(|coupons| {
        let count = coupons.len();
        world.issue(coupons).map(|()| json!({ "issued": count }))
    }))
}

async fn act(State(world): State<Arc<World>>, Path(code): Path<String>, body: Bytes) -> Response {
    updated(read::<ActionRequest>(&body).and_then(|act| world.act(&code, &act)))
}

async fn read_stores(State(world): State<Arc<World>>) -> Response {
    display(&world.state().coupons.registry.stores())
}

async fn replace_stores(State(world): State<Arc<World>>, body: Bytes) -> Response {
    updated(
        read::<Vec<Store>>(&body)
            .and_then(|stores| world.set_stores(stores))
            .map(|()| world.state().coupons.registry.stores()),
    )
}

async fn read_apps(State(world): State<Arc<World>>) -> Response {
    display(&world.state().coupons.registry.apps())
}

async fn replace_apps(State(world): State<Arc<World>>, body: Bytes) -> Response {
    updated(
        read::<Vec<App>>(&body)
            .and_then(|apps| world.set_apps(apps))
            .map(|()| world.state().coupons.registry.apps()),
    )
}

async fn read_faults(State(world): State<Arc<World>>) -> Response {
    display(&world.state().faults.script())
}

async fn replace_faults(State(world): State<Arc<World>>, body: Bytes) -> Response {
    updated(
        read::<Script>(&body)
            .and_then(|script| world.set_faults(script))
            .map(|()| world.state().faults.script()),
    )
}

async fn read_clock(State(world): State<Arc<World>>) -> Response {
    display(&json!({ "offset_seconds": world.clock.offset(), "now": world.clock.now().to_string() }))
}

async fn set_clock(State(world): State<Arc<World>>, body: Bytes) -> Response {
    updated(read::<ClockOffset>(&body).inspect(|clock| world.clock.set_offset(clock.offset_seconds)))
}

async fn read_settings(State(world): State<Arc<World>>) -> Response {
    display(&world.state().tuning())
}

async fn tune(State(world): State<Arc<World>>, body: Bytes) -> Response {
    updated(read::<Tuning>(&body).map(|tuning| world.tune(tuning)))
}

async fn register_merchant(State(world): State<Arc<World>>, pem: String) -> Response {
    updated(world.register_merchant(&pem).map(|()| json!({ "merchant_serial": world.merchant().serial })))
}

async fn ledger(State(world): State<Arc<World>>) -> Response {
    // A million attempts take a second to write out.
    accept_seconds(move || serde_json::to_vec(&world.ledger())).await
}

async fn effects(State(world): State<Arc<World>>) -> Response {
    accept_seconds(move || serde_json::to_vec(&world.effects())).await
}

async fn summary(State(world): State<Arc<World>>) -> Response {
    accept_seconds(move || serde_json::to_vec(&world.summary())).await
}

async fn seconds(State(world): State<Arc<World>>) -> Response {
    display(&world.calls_by_second())
}

async fn clear(State(world): State<Arc<World>>) -> Response {
    world.state().ledger.clear_attempts();
    display(&json!({}))
}

async fn no_content() -> Response {
    (StatusCode::NOT_FOUND, "no such control path\n").into_response()
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn updated(result: Result<impl Serialize, String>) -> Response {
    match result {
        Ok(value) => display(&value),
        Err(error) => {
            let mut response = display(&json!({ "error": error }));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        }
    }
}

fn display(value: &impl Serialize) -> Response {
    json_response(serde_json::to_vec(value))
}

async fn accept_seconds(write: impl FnOnce() -> serde_json::Result<Vec<u8>> + Send + 'static) -> Response {
    match tokio::task::spawn_blocking(write).await {
        Ok(written) => json_response(written),
        Err(panic) => (StatusCode::INTERNAL_SERVER_ERROR, panic.to_string()).into_response(),
    }
}

fn json_response(written: serde_json::Result<Vec<u8>>) -> Response {
    match written {
        Ok(bytes) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
