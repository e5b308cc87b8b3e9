//! The operator console: pages about parked commands behind a token, off unless `admin.console_token_file` is set. Its
//! actions are those of [`crate::parked`], as for the command line: the coupon is queried and the result shown before
//! anything is done, for one command at a time.
//!
//! A GET changes nothing. A form is accepted only with a session's cookie (`SameSite=Strict`), with that session's CSRF
//! token, and from this origin.

mod auth;
mod html;
mod denial_log;

mod form;

use crate::admin::console::form::{Fields, FormClient, cookie, form_words, is_cross_origin};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::{get, post};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{info, warn};

pub use self::auth::Auth;
use self::auth::{LoginError, SESSION_SECONDS_MAX, Session};
use self::denial_log::DenialLog;
use self::html::{Confirmation, Found, Row};
use crate::amqp::connection::AmqpSettings;
use crate::amqp::parked_queue::{ParkedQueue, check_publishing};
use crate::parked::{self, CouponQuery, CouponStatus, Decision, Filter, Parked};
use crate::runtime::rate_limiter::{Priority, RateLimiter};
use crate::telemetry::metrics::{ConsoleDenial, Metrics};
use crate::telemetry::untrusted::is_hidden;
use crate::wechat::client::Client;
use crate::wire::audit_event::OperatorAction;
use crate::wire::retry_message::DeadlineLimits;

/// Messages looked at for a list, and the time for it; the command line has no such bounds.
const LOOK_MAX: usize = 2_000;
const LOOK_TIME_MAX: Duration = Duration::from_secs(10);
/// The time for finding one command, however far behind it stands.
const FIND_TIME_MAX: Duration = Duration::from_secs(25);
/// Rows of the list.
const ROWS_MAX: usize = 200;
/// The longest wait for another operator's request, or for the rate limit.
const TURN_MAX: Duration = Duration::from_secs(10);
/// Time between two queries of the console.
const QUERY_EVERY: Duration = Duration::from_millis(200);
/// Delay of the response to a wrong token.
const WRONG_TOKEN_PAUSE: Duration = Duration::from_secs(1);
/// The longest reason or name that is taken, in characters.
const WORDS_MAX: usize = 200;
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
    /// The merchant's pace, which its queries keep, too.
    pub rate_limiter: RateLimiter,
    /// Counts who is refused.
    pub metrics: Arc<Metrics>,
    /// `source` of events.
    pub source: String,
    /// How far the deadline of a command that is sent again lies ahead.
    pub deadline_limits: DeadlineLimits,
    /// How long after a redeem a query may count as "not executed".
    pub settling: SignedDuration,
    /// The longest that a call of the service may take.
    pub longest_call: SignedDuration,
    /// Whether the port is open beyond this machine.
    pub exposed: bool,
}

struct Console {
    setup: Setup,
    /// Held by the request that looks at the queue, with the time from which the next query may be sent.
    look_lock: Mutex<Instant>,
    refusals: DenialLog,
}

type Shared = State<Arc<Console>>;

/// The pages, below `/parked`.
pub fn routes(setup: Setup) -> Router {
    Router::new()
        .route("/parked", get(list))
        .route("/parked/login", post(login))
        .route("/parked/logout", post(logout))
        .route("/parked/{id}", get(show))
        .route("/parked/{id}/ask", post(confirm_page))
        .route("/parked/{id}/replay", post(replay))
        .route("/parked/{id}/discard", post(discard))
        .with_state(Arc::new(Console {
            setup,
            look_lock: Mutex::new(Instant::now()),
            refusals: DenialLog::default(),
        }))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(bounded))
}

/// Bounds the work on a request, and sets the headers that say what browsers may do with the answer.
async fn bounded(request: Request, next: Next) -> Response {
    let late = |_| (StatusCode::GATEWAY_TIMEOUT, "it took too long\n").into_response();
    let mut answer = timeout(REQUEST_MAX, next.run(request)).await.unwrap_or_else(late);
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, html::POLICY.as_str()),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        // Base64, words and quotes: always a header's value.
        if let Ok(value) = HeaderValue::from_str(value) {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}

/// Why a request was not done, with the text for the operator.
#[derive(Debug)]
struct ConsoleError(StatusCode, String);

impl ConsoleError {
    fn new(status: StatusCode, words: impl ToString) -> Self {
        Self(status, words.to_string())
    }

    fn page(self, session: &Session) -> Response {
        let Self(status, words) = self;
        (status, Html(html::error_page(Some(session), &words))).into_response()
    }
}

impl Console {
    fn deny(&self, refused: LoginError, peer: IpAddr) -> Response {
        let why = match refused {
            LoginError::WrongToken => ConsoleDenial::WrongToken,
            LoginError::NoSession => ConsoleDenial::NoSession,
            LoginError::Forged => ConsoleDenial::Forged,
        };
        self.setup.metrics.record_console_denied(why);
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

    async fn lock_parked_queue(&self) -> Result<MutexGuard<'_, Instant>, ConsoleError> {
        let busy = |_| {
            ConsoleError::new(StatusCode::CONFLICT, "Another operator's request is in progress. Try again.")
        };
        timeout(TURN_MAX, self.look_lock.lock()).await.map_err(busy)
    }

    fn decision<'a>(&'a self, operator: &'a str, because: &'a str, publish_refused: bool) -> Decision<'a> {
        Decision {
            source: &self.setup.source,
            operator,
            because: (!because.is_empty()).then_some(because),
            deadline_limits: self.setup.deadline_limits,
            settling: self.setup.settling,
            longest_call: self.setup.longest_call,
            publish_refused,
        }
    }

    async fn list(&self, filter: &Filter) -> Result<Found, ConsoleError> {
        let _lock = self.lock_parked_queue().await?;
        let mut look = ParkedQueue::begin(&self.setup.broker).await.map_err(unreachable)?;
        let (mut found, now) = (Found::default(), Timestamp::now());
        found.unlocked = look.missing_lock();
        let looked = async {
            while found.looked < LOOK_MAX && look.age() < LOOK_TIME_MAX {
                let Some(delivery) = look.next().await.map_err(unreachable)? else { break };
                let parked = Parked::read(delivery);
                found.looked += 1;
                if filter.admits(&parked, now) {
                    found.rows.push(Row::of(&parked, now));
                }
            }
            Ok::<_, ConsoleError>(())
        };
        let looked = looked.await;
        found.waiting = look.waiting();
        look.end().await;
        // What came before a message that cannot be read was seen all the same.
        match looked {
            Err(unable) if found.rows.is_empty() => return Err(unable),
            Err(ConsoleError(_, why)) => found.cut_short = Some(why),
            Ok(()) => {}
        }
        found.meant = found.rows.len();
        found.rows.sort_by_key(|row| row.at);
        found.rows.truncate(ROWS_MAX);
        Ok(found)
    }

    /// Takes one command out, for as long as the look lasts. Once it is found it looks on to the end if that is not
    /// far: what a partial look took comes behind the rest.
    async fn find(&self, look: &mut ParkedQueue, id: &str) -> Result<Parked, ConsoleError> {
        let (mut found, mut looked) = (None, 0);
        let mut ended = false;
        while look.age() < FIND_TIME_MAX && (found.is_none() || looked < LOOK_MAX) {
            let Some(delivery) = look.next().await.map_err(unreachable)? else {
                ended = true;
                break;
            };
            looked += 1;
            let parked = Parked::read(delivery);
            // The bytes alone serve anyone who knows no more.
            if found.is_none() && (parked.key() == id || parked.sha256 == id) {
                found = Some(parked);
            }
        }
        let gone = match ended {
            true => "It is not parked any more.",
            false => "It was not found within the time limit of this page: use redeemer parked show.",
        };
        found.ok_or_else(|| ConsoleError::new(StatusCode::NOT_FOUND, gone))
    }

    /// Asks what is true now, and a second time if a refusal is to be published.
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
        let redemption = parked.replayable().map_err(|why| ConsoleError::new(StatusCode::CONFLICT, why))?;
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

    /// Does what was decided with one command. `promised` is what the person was shown; anything else is not done.
    async fn perform_action(
        &self,
        id: &str,
        session: &Session,
        act: ActionRequest,
    ) -> Result<ActionResult, ConsoleError> {
        let mut next_query = self.lock_parked_queue().await?;
        let mut look = ParkedQueue::begin(&self.setup.broker).await.map_err(unreachable)?;
        let acted = self.perform_on(&mut look, id, session, act, &mut next_query).await;
        look.end().await;
        acted
    }

    async fn perform_on(
        &self,
        look: &mut ParkedQueue,
        id: &str,
        session: &Session,
        act: ActionRequest,
        next_query: &mut Instant,
    ) -> Result<ActionResult, ConsoleError> {
        let parked = self.find(look, id).await?;
        let ActionRequest { promised, because, publish_refused, queries } = act;
        let decision = self.decision(&session.operator, &because, publish_refused);
        let query = if queries { Some(self.query(&parked, &decision, next_query).await?) } else { None };
        let now = Timestamp::now();
        let advice = match &query {
            Some(query) => parked::assess_replay(&parked, query, &decision),
            None => Ok(OperatorAction::Discarded),
        };
        let deed = match (&advice, promised) {
            (Ok(deed), Some(promised)) if *deed == promised => *deed,
            _ => {
                let Some(query) = &query else {
                    return Err(ConsoleError::new(StatusCode::BAD_REQUEST, "Nothing was decided."));
                };
                let changed = promised
                    .is_some()
                    .then_some("The response differs from the one that was shown. Nothing was done.");
                if let CouponStatus::Suspended(_) = query.status {
                    info!(operator = session.operator, "operator console: calls are suspended");
                }
                let asked = Confirmation { query, advice, because, publish_refused };
                return Ok(ActionResult::Shown(html::show(session, &parked, Some(&asked), changed, now)));
            }
        };
        let number = parked.partial.out_request_no.as_ref().map(ToString::to_string);
        check_publishing(&self.setup.broker).await.map_err(unreachable)?;
        look.open_publisher(&self.setup.broker).await.map_err(unreachable)?;
        let done = parked::carry_out(look, parked, deed, query.as_ref(), &decision, now).await;
        done.map_err(|why| {
            let words =
                format!("It did not complete and may still be parked: {why}. It is safe to try again.");
            ConsoleError::new(StatusCode::BAD_GATEWAY, words)
        })?;
        let effect = deed.effect();
        let (operator, name) = (session.operator.as_str(), session.name());
        info!(
            operator,
            session = name,
            id,
            out_request_no = number,
            effect,
            "operator console: action completed"
        );
        Ok(ActionResult::Done(deed))
    }
}

/// What a person decided.
struct ActionRequest {
    /// What they were shown that it would do; nothing while they only ask.
    promised: Option<OperatorAction>,
    because: String,
    publish_refused: bool,
    /// Whether the payment API is asked first.
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
        return console.deny(LoginError::Forged, peer);
    }
    let fields = Fields::read(&body);
    let operator = match operator(fields.text("operator")) {
        Ok(operator) => operator,
        Err(why) => {
            let page = html::login(Some(why), console.setup.exposed);
            return (StatusCode::BAD_REQUEST, Html(page)).into_response();
        }
    };
    let now = Instant::now();
    match console.setup.auth.log_in(fields.text("token"), operator, cookie(&headers), now, rand::random()) {
        Ok(session) => {
            info!(operator, session = session.name(), %peer, "operator console: logged in");
            let key = &session.key;
            let cookie = format!(
                "{COOKIE}={key}; Path=/parked; HttpOnly; SameSite=Strict; Max-Age={SESSION_SECONDS_MAX}"
            );
            see_other("/parked", Some(cookie))
        }
        Err(refused) => {
            sleep(WRONG_TOKEN_PAUSE).await;
            console.deny(refused, peer)
        }
    }
}

/// The name of a person, as the audit event will carry it: one that another person can read and distinguish from others.
fn operator(name: &str) -> Result<&str, &'static str> {
    if name.is_empty() {
        return Err("Enter your name: the audit event contains it.");
    }
    if name.chars().any(is_hidden) || name.chars().count() > WORDS_MAX {
        return Err("A name has at most 200 characters and no invisible ones.");
    }
    Ok(name)
}

async fn logout(State(console): Shared, client: FormClient, body: Bytes) -> Response {
    match console.form(&client, &Fields::read(&body)) {
        Err(answer) => *answer,
        Ok(session) => {
            console.setup.auth.log_out(&session);
            let (operator, peer) = (session.operator.as_str(), client.peer);
            info!(operator, session = session.name(), %peer, "operator console: logged out");
            let gone = format!("{COOKIE}=; Path=/parked; HttpOnly; SameSite=Strict; Max-Age=0");
            see_other("/parked", Some(gone))
        }
    }
}

fn see_other(to: &str, cookie: Option<String>) -> Response {
    let mut answer = (StatusCode::SEE_OTHER, [(header::LOCATION, to.to_owned())]).into_response();
    // Hex and fixed words: always a header's value.
    if let Some(Ok(cookie)) = cookie.map(|cookie| cookie.parse()) {
        answer.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    answer
}

async fn list(State(console): Shared, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let session = match console.session(&headers) {
        Ok(session) => session,
        Err(page) => return *page,
    };
    let fields = Fields::read(query.as_deref().unwrap_or_default().as_bytes());
    let typed = html::FILTER_FIELDS.map(|name| fields.words(name));
    let deeds = [
        OperatorAction::Republished,
        OperatorAction::PublishedRedeemed,
        OperatorAction::PublishedRefused,
        OperatorAction::Discarded,
    ];
    let done = deeds.into_iter().find(|deed| deed.effect() == fields.text("done")).map(html::result_of);
    let found = match filter(&typed) {
        Err(why) => Err(ConsoleError::new(StatusCode::BAD_REQUEST, why)),
        Ok(filter) => console.list(&filter).await,
    };
    match found {
        Ok(found) => Html(html::list(&session, &typed, Ok(&found), done)).into_response(),
        Err(ConsoleError(status, why)) => {
            (status, Html(html::list(&session, &typed, Err(&why), done))).into_response()
        }
    }
}

/// The filter that was typed.
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
        let _lock = console.lock_parked_queue().await?;
        let mut look = ParkedQueue::begin(&console.setup.broker).await.map_err(unreachable)?;
        let found = console.find(&mut look, &id).await;
        let unlocked = look.missing_lock();
        look.end().await;
        Ok(html::show(&session, &found?, None, unlocked.as_deref(), Timestamp::now()))
    };
    match shown.await {
        Ok(page) => Html(page).into_response(),
        Err(unable) => ConsoleError::page(unable, &session),
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
        Ok(ActionRequest { promised: None, because: fields.words("because"), publish_refused, queries: true })
    })
    .await
}

async fn replay(State(console): Shared, client: FormClient, Path(id): Path<String>, body: Bytes) -> Response {
    perform(console, client, id, body, |fields| {
        let deeds = [
            OperatorAction::Republished,
            OperatorAction::PublishedRedeemed,
            OperatorAction::PublishedRefused,
        ];
        let promised = deeds.into_iter().find(|deed| deed.effect() == fields.text("deed"));
        let publish_refused = fields.is_yes("publish_refused");
        match promised {
            None => Err("Query first: the page shows what would be done."),
            promised => Ok(ActionRequest {
                promised,
                because: fields.words("because"),
                publish_refused,
                queries: true,
            }),
        }
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
        let (because, promised) = (fields.words("because"), Some(OperatorAction::Discarded));
        if because.is_empty() || !fields.is_yes("sure") {
            return Err("Give a reason and confirm that it is not needed any more. Nothing was done.");
        }
        Ok(ActionRequest { promised, because, publish_refused: false, queries: false })
    })
    .await
}

/// Takes a form, and does what it says to its end, even if the browser does not wait for it.
async fn perform(
    console: Arc<Console>,
    client: FormClient,
    id: String,
    body: Bytes,
    read: impl FnOnce(&Fields) -> Result<ActionRequest, &'static str>,
) -> Response {
    let fields = Fields::read(&body);
    let session = match console.form(&client, &fields) {
        Ok(session) => session,
        Err(answer) => return *answer,
    };
    let act = match read(&fields) {
        Ok(act) => act,
        Err(why) => return ConsoleError::new(StatusCode::BAD_REQUEST, why).page(&session),
    };
    let (acting_console, person) = (console.clone(), session.clone());
    let acting = tokio::spawn(async move { acting_console.perform_action(&id, &person, act).await });
    match acting.await {
        Ok(Ok(ActionResult::Shown(page))) => Html(page).into_response(),
        Ok(Ok(ActionResult::Done(deed))) => see_other(&format!("/parked?done={}", deed.effect()), None),
        Ok(Err(unable)) => unable.page(&session),
        Err(_) => {
            let words = "It was interrupted; check if it is still parked. It is safe to try again.";
            ConsoleError::new(StatusCode::INTERNAL_SERVER_ERROR, words).page(&session)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_form_from_another_site_is_known_by_what_browsers_say() {
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
    fn the_cookie_is_found_among_others() {
        let cookies = headers(&[("cookie", "a=1; redeemer_console=abc; redeemer_console2=x")]);
        assert_eq!(cookie(&cookies), Some("abc"));
        assert_eq!(cookie(&headers(&[("cookie", "xredeemer_console=abc")])), None);
    }

    #[test]
    fn what_is_typed_becomes_a_filter() {
        let typed = |older: &str| ["", older, "", "120344", "", ""].map(str::to_owned);
        let two_hours = filter(&typed("2h")).unwrap();
        assert_eq!(two_hours.older_than, Some(SignedDuration::from_hours(2)));
        assert_eq!((two_hours.brand.as_deref(), two_hours.coupon), (Some("120344"), None));
        for wrong in ["soon", "-2h", "2"] {
            assert!(filter(&typed(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn operator_name_must_be_readable() {
        for name in ["lin", "林 晓", "O\u{2019}Neill", "night shift"] {
            assert_eq!(operator(name), Ok(name));
        }
        let long = "x".repeat(WORDS_MAX + 1);
        for name in ["", "\u{200b}", "lin\u{200b}", "\u{202e}nil", "lin\n", "lin\u{a0}", "\u{3164}", &long] {
            assert!(operator(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn words_of_a_form_are_one_bounded_line() {
        let fields = Fields::read(b"because=a%0d%0aSet-Cookie%3A+b&x=%ff&long=" as &[u8]);
        assert_eq!(fields.words("because"), "a  Set-Cookie: b");
        let long = format!("because={}", "y".repeat(1_000));
        assert_eq!(Fields::read(long.as_bytes()).words("because").len(), WORDS_MAX);
    }
}
