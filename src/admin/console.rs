//! The operator console: pages about parked commands behind a token, off unless `admin.console_token_file` is set. Its
//! actions are those of [`crate::parked`], as for the command line: the coupon is queried and the result shown before
//! anything is done, for one command at a time.
//!
//! A GET changes nothing. A form is accepted only with a session's cookie (`SameSite=Strict`), with that session's CSRF
//! token, and from this origin.

mod audit_trail;
mod auth;
mod html;
mod passes;
mod denial_log;

mod form;

use crate::admin::console::form::{Fields, FormClient, cookie, form_words, is_cross_origin};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::{get, post};
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{info, warn};

use self::audit_trail::AuditTrail;
pub use self::auth::Auth;
use self::auth::{LoginError, SESSION_SECONDS_MAX, Session};
use self::denial_log::DenialLog;
use self::html::Confirmation;
use self::passes::{Passes, find, list_parked};
use crate::admin::server::read_body;
use crate::amqp::connection::AmqpSettings;
use crate::amqp::parked_queue::{ParkedQueue, check_publishing};
use crate::parked::{self, CouponQuery, CouponStatus, Decision, Filter, Parked};
use crate::runtime::rate_limiter::{Priority, RateLimiter};
use crate::telemetry::metrics::{ConsoleDenial, Metrics};
use crate::wechat::client::Client;
use crate::wire::audit_event::OperatorAction;
use crate::wire::console_event::ConsoleAction;
use crate::wire::retry_message::DeadlineLimits;

/// The longest wait for the rate limit.
const TURN_MAX: Duration = Duration::from_secs(10);
/// Time between two queries of the console.
const QUERY_EVERY: Duration = Duration::from_millis(200);
/// Delay of the response to a wrong token.
const WRONG_TOKEN_PAUSE: Duration = Duration::from_secs(1);
/// The longest form.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// The longest work on one request: it waits for broker and payment API, and ends before its connection does.
const REQUEST_MAX: Duration = Duration::from_secs(50);
const COOKIE: &str = "redeemer_console";

/// What the console needs.
pub struct Setup {
    /// Token and sessions.
    pub auth: Auth,
    /// The broker with the parked queue.
    pub broker: AmqpSettings,
    /// The payment API.
    pub client: Arc<Client>,
    /// The merchant's rate limit, which includes queries of the console.
    pub rate_limiter: RateLimiter,
    /// Counts denials.
    pub metrics: Arc<Metrics>,
    /// `source` of events.
    pub source: String,
    /// The deadline of a command that is sent again, from now.
    pub deadline_limits: DeadlineLimits,
    /// The time after the end of a call from which a negative query counts.
    pub query_delay: SignedDuration,
    /// The longest call of the service.
    pub longest_call: SignedDuration,
    /// Whether other machines can reach the port.
    pub exposed: bool,
}

struct Console {
    setup: Setup,
    passes: Passes,
    refusals: DenialLog,
    audit_trail: Arc<AuditTrail>,
    /// Publishes what the audit trail queues; it ends with the pages.
    _publishing: JoinSet<()>,
}

type Shared = State<Arc<Console>>;

/// The pages, below `/parked`. Starts a task, which ends when the pages are dropped.
pub fn routes(setup: Setup) -> Router {
    let audit_trail = AuditTrail::new(&setup.source);
    let mut publishing = JoinSet::new();
    publishing.spawn(audit_trail.clone().publish_all(setup.broker.clone()));
    Router::new()
        .route("/parked", get(list))
        .route("/parked/login", post(login))
        .route("/parked/logout", post(logout))
        .route("/parked/{id}", get(show))
        .route("/parked/{id}/query", post(confirm_page))
        .route("/parked/{id}/replay", post(replay))
        .route("/parked/{id}/discard", post(discard))
        .with_state(Arc::new(Console {
            setup,
            passes: Passes::default(),
            refusals: DenialLog::default(),
            audit_trail,
            _publishing: publishing,
        }))
        .layer(middleware::from_fn(bounded))
}

/// Bounds the work on a request, and sets the security headers of its response.
async fn bounded(request: Request, next: Next) -> Response {
    let late = |_| (StatusCode::GATEWAY_TIMEOUT, "the request took too long\n").into_response();
    let mut response = match read_body(request, BODY_BYTES_MAX).await {
        Ok(request) => timeout(REQUEST_MAX, next.run(request)).await.unwrap_or_else(late),
        Err(response) => response,
    };
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, html::POLICY.as_str()),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        // Base64, words and quotes: always valid in a header.
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Why a request failed, with the text for the operator.
#[derive(Debug)]
struct ConsoleError(StatusCode, String);

impl ConsoleError {
    fn new(status: StatusCode, words: impl ToString) -> Self {
        Self(status, words.to_string())
    }

    fn page(self, session: &Session) -> Response {
        let Self(status, words) = self;
        respond_with(status, html::error_page(Some(session), &words))
    }
}

/// A page under a status; 503 with the time after which to try again.
fn respond_with(status: StatusCode, page: String) -> Response {
    let mut response = (status, Html(page)).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}

impl Console {
    fn deny(&self, refused: LoginError, peer: IpAddr) -> Response {
        let why = match refused {
            LoginError::WrongToken => ConsoleDenial::WrongToken,
            LoginError::NoSession => ConsoleDenial::NoSession,
            LoginError::Forged => ConsoleDenial::Forged,
        };
        self.setup.metrics.console.record_console_denied(why);
        if let Some(not_logged) = self.refusals.record(peer, Instant::now()) {
            warn!(why = why.as_str(), %peer, not_logged, "operator console: access denied");
        }
        let page = html::login(Some(form_words(refused)), self.setup.exposed);
        (StatusCode::FORBIDDEN, Html(page)).into_response()
    }

    /// The session of a GET, or the login page.
    fn session(&self, headers: &HeaderMap) -> Result<Session, Box<Response>> {
        let session = self.setup.auth.session(cookie(headers), Instant::now());
        session.map_err(|_| Box::new(Html(html::login(None, self.setup.exposed)).into_response()))
    }

    /// The session of a form.
    fn form(&self, client: &FormClient, fields: &Fields) -> Result<Session, Box<Response>> {
        let headers = &client.headers;
        let form = match is_cross_origin(headers) {
            true => Err(LoginError::Forged),
            false => {
                self.setup.auth.verify_form(cookie(headers), Some(fields.text("csrf_token")), Instant::now())
            }
        };
        form.map_err(|refused| Box::new(self.deny(refused, client.peer)))
    }

    fn decision<'a>(&'a self, operator: &'a str, because: &'a str, publish_refused: bool) -> Decision<'a> {
        Decision {
            source: &self.setup.source,
            operator,
            because: (!because.is_empty()).then_some(because),
            deadline_limits: self.setup.deadline_limits,
            query_delay: self.setup.query_delay,
            longest_call: self.setup.longest_call,
            publish_refused,
        }
    }

    /// Queries the coupon, and queries again if a refusal is to be published.
    async fn query(
        &self,
        parked: &Parked,
        decision: &Decision<'_>,
        next: &mut Instant,
    ) -> Result<CouponQuery, ConsoleError> {
        let first = self.query_once(parked, next).await?;
        match parked::confirm_after(parked, &first, decision) {
            None => Ok(first),
            Some(wait) => {
                sleep(wait).await;
                Ok(self.query_once(parked, next).await?.following(first))
            }
        }
    }

    async fn query_once(&self, parked: &Parked, next: &mut Instant) -> Result<CouponQuery, ConsoleError> {
        let redemption =
            parked.replayable().map_err(|why| ConsoleError::new(StatusCode::CONFLICT, why.to_string()))?;
        sleep_until((*next).into()).await;
        *next = Instant::now() + QUERY_EVERY;
        let late = |_| {
            let words = "The rate limit leaves no room for a query now. Try again.";
            ConsoleError::new(StatusCode::SERVICE_UNAVAILABLE, words)
        };
        timeout(TURN_MAX, self.setup.rate_limiter.acquire(Priority::Query)).await.map_err(late)?;
        let (nonce, chance) = (rand::random(), rand::random());
        Ok(parked::query(&self.setup.client, redemption, Timestamp::now(), nonce, chance).await)
    }

    /// Carries out an action on one command, if it is the action that the operator confirmed.
    async fn perform_action(
        &self,
        id: &str,
        session: &Session,
        request: ActionRequest,
    ) -> Result<ActionResult, ConsoleError> {
        let mut next_query = self.passes.lock().await?;
        let mut queue = ParkedQueue::begin(&self.setup.broker).await.map_err(unreachable)?;
        let acted = self.perform_on(&mut queue, id, session, request, &mut next_query).await;
        queue.end().await;
        acted
    }

    async fn perform_on(
        &self,
        queue: &mut ParkedQueue,
        id: &str,
        session: &Session,
        request: ActionRequest,
        next_query: &mut Instant,
    ) -> Result<ActionResult, ConsoleError> {
        let parked = find(queue, id).await?;
        let ActionRequest { confirmed, because, publish_refused, queries } = request;
        let decision = self.decision(&session.operator, &because, publish_refused);
        let query = if queries { Some(self.query(&parked, &decision, next_query).await?) } else { None };
        let now = Timestamp::now();
        let assessment = match &query {
            Some(query) => parked::assess_replay(&parked, query, &decision),
            None => Ok(OperatorAction::Discarded),
        };
        let action = match (&assessment, confirmed) {
            (Ok(action), Some(confirmed)) if *action == confirmed => *action,
            _ => {
                let Some(query) = &query else {
                    return Err(ConsoleError::new(StatusCode::BAD_REQUEST, "Nothing was decided."));
                };
                let changed = confirmed
                    .is_some()
                    .then_some("The response differs from the one that was shown. Nothing was done.");
                if let CouponStatus::Suspended(_) = query.status {
                    info!(operator = session.operator, "operator console: calls are suspended");
                }
                let confirmation = Confirmation { query, assessment, because, publish_refused };
                return Ok(ActionResult::Shown(html::show(
                    session,
                    &parked,
                    Some(&confirmation),
                    changed,
                    now,
                )));
            }
        };
        let number = parked.partial.out_request_no.as_ref().map(ToString::to_string);
        check_publishing(&self.setup.broker).await.map_err(unreachable)?;
        queue.open_publisher(&self.setup.broker).await.map_err(unreachable)?;
        let done = parked::carry_out(queue, parked, action, query.as_ref(), &decision, now).await;
        done.map_err(|why| {
            let words =
                format!("It did not complete and may still be parked: {why}. It is safe to try again.");
            ConsoleError::new(StatusCode::BAD_GATEWAY, words)
        })?;
        let effect = action.effect();
        let (operator, name) = (session.operator.as_str(), session.name());
        info!(
            operator,
            session = name,
            id,
            out_request_no = number,
            effect,
            "operator console: action completed"
        );
        Ok(ActionResult::Done(action))
    }
}

/// An action that an operator requests.
struct ActionRequest {
    /// The action that the page showed and the operator confirmed; `None` for a query.
    confirmed: Option<OperatorAction>,
    because: String,
    publish_refused: bool,
    /// Whether the coupon is queried first.
    queries: bool,
}

enum ActionResult {
    Shown(String),
    Done(OperatorAction),
}

fn unreachable(why: impl std::fmt::Display) -> ConsoleError {
    ConsoleError::new(StatusCode::BAD_GATEWAY, format!("The parked queue cannot be reached: {why}"))
}

async fn login(State(console): Shared, client: FormClient, body: Bytes) -> Response {
    let FormClient { headers, peer } = client;
    if is_cross_origin(&headers) {
        console.audit_trail.record_refused(peer);
        return console.deny(LoginError::Forged, peer);
    }
    let fields = Fields::read(&body);
    let operator = match operator(&fields) {
        Ok(operator) => operator,
        Err(why) => {
            let page = html::login(Some(&why), console.setup.exposed);
            return (StatusCode::BAD_REQUEST, Html(page)).into_response();
        }
    };
    let now = Instant::now();
    match console.setup.auth.log_in(fields.text("token"), &operator, cookie(&headers), now, rand::random()) {
        Ok(session) => {
            info!(operator, session = session.name(), %peer, "operator console: logged in");
            console.audit_trail.record(ConsoleAction::LoggedIn, &session, peer);
            let key = &session.key;
            let cookie = format!(
                "{COOKIE}={key}; Path=/parked; HttpOnly; SameSite=Strict; Max-Age={SESSION_SECONDS_MAX}"
            );
            see_other("/parked", Some(cookie))
        }
        Err(refused) => {
            console.audit_trail.record_refused(peer);
            sleep(WRONG_TOKEN_PAUSE).await;
            console.deny(refused, peer)
        }
    }
}

/// The name of an operator for the audit event.
fn operator(fields: &Fields) -> Result<String, String> {
    match fields.operator_text("operator") {
        Ok(name) if name.is_empty() => Err("Enter your name: the audit event contains it.".to_owned()),
        named => named.map_err(|error| error.to_string()),
    }
}

async fn logout(State(console): Shared, client: FormClient, body: Bytes) -> Response {
    match console.form(&client, &Fields::read(&body)) {
        Err(response) => *response,
        Ok(session) => {
            console.setup.auth.log_out(&session);
            let (operator, peer) = (session.operator.as_str(), client.peer);
            info!(operator, session = session.name(), %peer, "operator console: logged out");
            console.audit_trail.record(ConsoleAction::LoggedOut, &session, peer);
            let expired = format!("{COOKIE}=; Path=/parked; HttpOnly; SameSite=Strict; Max-Age=0");
            see_other("/parked", Some(expired))
        }
    }
}

fn see_other(to: &str, cookie: Option<String>) -> Response {
    let mut response = (StatusCode::SEE_OTHER, [(header::LOCATION, to.to_owned())]).into_response();
    // Hex and fixed words: always valid in a header.
    if let Some(Ok(cookie)) = cookie.map(|cookie| cookie.parse()) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

async fn list(State(console): Shared, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let session = match console.session(&headers) {
        Ok(session) => session,
        Err(page) => return *page,
    };
    let fields = Fields::read(query.as_deref().unwrap_or_default().as_bytes());
    let entered = html::FILTER_FIELDS.map(|name| fields.operator_text(name));
    let typed = html::FILTER_FIELDS.map(|name| fields.text(name).to_owned());
    let actions = [
        OperatorAction::Republished,
        OperatorAction::PublishedRedeemed,
        OperatorAction::PublishedRefused,
        OperatorAction::Discarded,
    ];
    let done = actions.into_iter().find(|action| action.effect() == fields.text("done")).map(html::result_of);
    let wrong = entered.iter().find_map(|entered| entered.as_ref().err()).map(ToString::to_string);
    let found = match wrong.map_or_else(|| filter(&typed), Err) {
        Err(why) => Err(ConsoleError::new(StatusCode::BAD_REQUEST, why)),
        Ok(filter) => list_parked(&console.passes, &console.setup.broker, &filter).await,
    };
    match found {
        Ok(found) => Html(html::list(&session, &typed, Ok(&found), done)).into_response(),
        Err(ConsoleError(status, why)) => respond_with(status, html::list(&session, &typed, Err(&why), done)),
    }
}

/// The filter of a form.
fn filter(typed: &html::Typed) -> Result<Filter, String> {
    let [reason, older, newer, brand, coupon, number] = typed.clone();
    let set = |text: String| (!text.is_empty()).then_some(text);
    let span = |text: String, name: &str| match set(text) {
        None => Ok(None),
        Some(text) => match text.parse::<SignedDuration>() {
            Ok(span) if span.is_positive() => Ok(Some(span)),
            _ => Err(format!("{name} must be a time such as 30m, 2h or 48h.")),
        },
    };
    Ok(Filter {
        reasons: set(reason).into_iter().collect(),
        older_than: span(older, "\u{201c}Older than\u{201d}")?,
        newer_than: span(newer, "\u{201c}Newer than\u{201d}")?,
        brand: set(brand),
        coupon: set(coupon),
        number: set(number),
        id: None,
    })
}

async fn show(State(console): Shared, headers: HeaderMap, Path(id): Path<String>) -> Response {
    let session = match console.session(&headers) {
        Ok(session) => session,
        Err(page) => return *page,
    };
    let shown = async {
        let _lock = console.passes.lock().await?;
        let mut queue = ParkedQueue::begin(&console.setup.broker).await.map_err(unreachable)?;
        let found = find(&mut queue, &id).await;
        let unlocked = queue.missing_lock();
        queue.end().await;
        Ok(html::show(&session, &found?, None, unlocked.as_deref(), Timestamp::now()))
    };
    match shown.await {
        Ok(page) => Html(page).into_response(),
        Err(error) => ConsoleError::page(error, &session),
    }
}

async fn confirm_page(
    State(console): Shared,
    client: FormClient,
    Path(id): Path<String>,
    body: Bytes,
) -> Response {
    perform(console, client, id, body, |fields| {
        let publish_refused = fields.is_yes("publish_refused");
        let because = because(fields)?;
        Ok(ActionRequest { confirmed: None, because, publish_refused, queries: true })
    })
    .await
}

async fn replay(State(console): Shared, client: FormClient, Path(id): Path<String>, body: Bytes) -> Response {
    perform(console, client, id, body, |fields| {
        let actions = [
            OperatorAction::Republished,
            OperatorAction::PublishedRedeemed,
            OperatorAction::PublishedRefused,
        ];
        let confirmed = actions.into_iter().find(|action| action.effect() == fields.text("action"));
        let publish_refused = fields.is_yes("publish_refused");
        if confirmed.is_none() {
            return Err("Query first: the page shows what would be done.".to_owned());
        }
        Ok(ActionRequest { confirmed, because: because(fields)?, publish_refused, queries: true })
    })
    .await
}

async fn discard(
    State(console): Shared,
    client: FormClient,
    Path(id): Path<String>,
    body: Bytes,
) -> Response {
    perform(console, client, id, body, |fields| {
        let (because, confirmed) = (because(fields)?, Some(OperatorAction::Discarded));
        if because.is_empty() || !fields.is_yes("sure") {
            let words = "Give a reason and confirm that it is not needed any more. Nothing was done.";
            return Err(words.to_owned());
        }
        Ok(ActionRequest { confirmed, because, publish_refused: false, queries: false })
    })
    .await
}

/// Why, for the audit event; may be empty.
fn because(fields: &Fields) -> Result<String, String> {
    fields.operator_text("because").map_err(|error| format!("{error}. Nothing was done."))
}

/// Reads a form and carries out its action to the end, even if the browser does not wait for it.
async fn perform(
    console: Arc<Console>,
    client: FormClient,
    id: String,
    body: Bytes,
    read: impl FnOnce(&Fields) -> Result<ActionRequest, String>,
) -> Response {
    let fields = Fields::read(&body);
    let session = match console.form(&client, &fields) {
        Ok(session) => session,
        Err(response) => return *response,
    };
    let request = match read(&fields) {
        Ok(request) => request,
        Err(why) => return ConsoleError::new(StatusCode::BAD_REQUEST, why).page(&session),
    };
    let (acting_console, operator) = (console.clone(), session.clone());
    let action = tokio::spawn(async move { acting_console.perform_action(&id, &operator, request).await });
    match action.await {
        Ok(Ok(ActionResult::Shown(page))) => Html(page).into_response(),
        Ok(Ok(ActionResult::Done(action))) => see_other(&format!("/parked?done={}", action.effect()), None),
        Ok(Err(error)) => error.page(&session),
        Err(_) => {
            let words = "It was interrupted; check whether it is still parked. It is safe to try again.";
            ConsoleError::new(StatusCode::INTERNAL_SERVER_ERROR, words).page(&session)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parked::operator_text::OperatorTextError;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn form_from_another_site_is_denied_by_its_headers() {
        let check = |pairs: &[(&'static str, &'static str)], elsewhere| {
            assert_eq!(is_cross_origin(&headers(pairs)), elsewhere, "{pairs:?}");
        };
        check(&[("host", "127.0.0.1:9464")], false);
        check(&[("host", "127.0.0.1:9464"), ("origin", "http://127.0.0.1:9464")], false);
        check(&[("host", "127.0.0.1:9464"), ("sec-fetch-site", "same-origin")], false);
        check(&[("host", "127.0.0.1:9464"), ("origin", "http://127.0.0.1:9465")], true);
        check(&[("host", "127.0.0.1:9464"), ("origin", "null")], true);
        check(&[("host", "127.0.0.1:9464"), ("sec-fetch-site", "cross-site")], true);
        check(&[("host", "127.0.0.1:9464"), ("sec-fetch-site", "same-site")], true);
        check(&[("origin", "http://evil.example")], true);
    }

    #[test]
    fn cookie_is_found_among_others() {
        let cookies = headers(&[("cookie", "a=1; redeemer_console=abc; redeemer_console2=x")]);
        assert_eq!(cookie(&cookies), Some("abc"));
        assert_eq!(cookie(&headers(&[("cookie", "xredeemer_console=abc")])), None);
    }

    #[test]
    fn form_becomes_a_filter() {
        let typed = |older: &str| ["", older, "", "120344", "", ""].map(str::to_owned);
        let two_hours = filter(&typed("2h")).unwrap();
        assert_eq!(two_hours.older_than, Some(SignedDuration::from_hours(2)));
        assert_eq!((two_hours.brand.as_deref(), two_hours.coupon), (Some("120344"), None));
        for wrong in ["soon", "-2h", "2"] {
            assert!(filter(&typed(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn operator_text_with_a_hidden_character_is_rejected_by_name() {
        for (name, label) in [("because", "Why"), ("operator", "Your name"), ("coupon", "Coupon code")] {
            for hidden in ["a%0d%0aSet-Cookie%3A+b", "lin%e2%80%8b", "%e2%80%aenil", "lin%0a", "lin%c2%a0"] {
                let form = format!("{name}={hidden}");
                let error = Fields::read(form.as_bytes()).operator_text(name).unwrap_err();
                assert!(matches!(error, OperatorTextError::Hidden { field, .. } if field == label), "{form}");
            }
            let form = format!("{name}={}", "y".repeat(201));
            let error = Fields::read(form.as_bytes()).operator_text(name).unwrap_err();
            assert!(matches!(error, OperatorTextError::TooLong { chars: 201, .. }), "{form}");
        }
        assert_eq!(operator(&Fields::read(b"operator=+lin+")).as_deref(), Ok("lin"));
        assert!(operator(&Fields::read(b"operator=+&because=x")).is_err(), "a name is required");
        assert_eq!(because(&Fields::read(b"x=%ff")).as_deref(), Ok(""));
    }
}
