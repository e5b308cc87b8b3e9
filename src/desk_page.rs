//! The parked desk as pages behind a token, off unless `admin.parked_token_file` is set. What it does it does by
//! [`crate::desk`], as the command line does: an inquiry first, shown before anything is done, one command at a time.
//!
//! Nothing changes by a GET. A form is taken only with a session's cookie (`SameSite=Strict`), with the word of that
//! session in it, and not from another site.

mod door;
mod html;
mod refusal_log;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, RawQuery, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::{get, post};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{info, warn};

pub use self::door::Door;
use self::door::{Refused, SESSION_SECONDS_MAX, Session};
use self::html::{Asked, Found, Row};
use self::refusal_log::RefusalLog;
use crate::admin::Peer;
use crate::broker::Settings;
use crate::broker::parked::{Look, check_publishing};
use crate::desk::{self, Decision, Filter, Inquiry, Parked, Prospect};
use crate::metrics::{DeskRefusal, Metrics};
use crate::pace::{Pacer, Rank};
use crate::telemetry::foreign::is_hidden;
use crate::wechat::api::Client;
use crate::wire::audit::Deed;
use crate::wire::copy::Horizon;

/// Messages looked at for a list, and the time for it; the command line has no such bounds.
const LOOK_MAX: usize = 2_000;
const LOOK_TIME_MAX: Duration = Duration::from_secs(10);
/// The time for finding one command, however far behind it stands.
const FIND_TIME_MAX: Duration = Duration::from_secs(25);
/// Rows of the list.
const ROWS_MAX: usize = 200;
/// The longest wait for somebody else at this desk, or for a call's turn.
const TURN_MAX: Duration = Duration::from_secs(10);
/// Time between two inquiries of this desk.
const INQUIRY_EVERY: Duration = Duration::from_millis(200);
/// How long a wrong token waits for its answer.
const WRONG_TOKEN_PAUSE: Duration = Duration::from_secs(1);
/// The longest reason or name that is taken, in characters.
const WORDS_MAX: usize = 200;
/// The longest form.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// The longest work on one request: it waits for broker and payment API, and ends before its connection does.
const REQUEST_MAX: Duration = Duration::from_secs(50);
const COOKIE: &str = "redeemer_desk";

/// What the desk works with.
pub struct Setup {
    /// Who may sit at it.
    pub door: Door,
    /// The broker with the parked queue.
    pub broker: Settings,
    /// The payment API.
    pub client: Arc<Client>,
    /// The merchant's pace, which its inquiries keep, too.
    pub pacer: Pacer,
    /// Counts who is refused.
    pub metrics: Arc<Metrics>,
    /// `source` of events.
    pub source: String,
    /// How far the deadline of a command that is sent again lies ahead.
    pub horizon: Horizon,
    /// How long after a redeem an inquiry may count as "not executed".
    pub settling: SignedDuration,
    /// The longest that a call of the service may take.
    pub longest_call: SignedDuration,
    /// Whether the port is open beyond this machine.
    pub exposed: bool,
}

struct Desk {
    setup: Setup,
    /// Whoever looks holds it, with the time from which the next inquiry may go.
    turn: Mutex<Instant>,
    refusals: RefusalLog,
}

type Shared = State<Arc<Desk>>;

/// The pages, below `/parked`.
pub fn routes(setup: Setup) -> Router {
    Router::new()
        .route("/parked", get(list))
        .route("/parked/login", post(login))
        .route("/parked/logout", post(logout))
        .route("/parked/{id}", get(show))
        .route("/parked/{id}/ask", post(ask))
        .route("/parked/{id}/replay", post(replay))
        .route("/parked/{id}/discard", post(discard))
        .with_state(Arc::new(Desk {
            setup,
            turn: Mutex::new(Instant::now()),
            refusals: RefusalLog::default(),
        }))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(bounded))
}

/// Bounds the work on a request, and tells browsers what they may do with the answer.
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

/// A request as the door looks at it: its headers, and where it comes from.
struct Visitor {
    headers: HeaderMap,
    peer: IpAddr,
}

impl<S: Send + Sync> FromRequestParts<S> for Visitor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<Peer>();
        // The admin port gives each connection its peer.
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |Peer(address)| address.ip());
        Ok(Self { headers: parts.headers.clone(), peer })
    }
}

/// Why a request is not done; in words for the person.
#[derive(Debug)]
struct Unable(StatusCode, String);

impl Unable {
    fn new(status: StatusCode, words: impl ToString) -> Self {
        Self(status, words.to_string())
    }

    fn page(self, session: &Session) -> Response {
        let Self(status, words) = self;
        (status, Html(html::said(Some(session), &words))).into_response()
    }
}

/// The fields of a form or a query.
struct Fields(HashMap<String, String>);

impl Fields {
    fn read(bytes: &[u8]) -> Self {
        Self(form_urlencoded::parse(bytes).into_owned().collect())
    }

    /// A field, trimmed; empty where it is absent.
    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", |text| text.trim())
    }

    /// A field that a person wrote for others to read: bounded, and one line.
    fn words(&self, name: &str) -> String {
        let one_line = self.text(name).chars().map(|c| if is_hidden(c) { ' ' } else { c });
        one_line.take(WORDS_MAX).collect::<String>().trim().to_owned()
    }

    fn is_yes(&self, name: &str) -> bool {
        self.text(name) == "yes"
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';')).find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == COOKIE).then_some(value)
    })
}

/// Whether a browser says that another site sent this. One that says nothing is no browser of today, and has no cookie
/// that it did not mean to send.
fn from_elsewhere(headers: &HeaderMap) -> bool {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"));
    let site = header("sec-fetch-site").is_some_and(|site| !["same-origin", "none"].contains(&site));
    let host = header("host").unwrap_or_default();
    let origin =
        header("origin").is_some_and(|origin| origin.split_once("://").is_none_or(|(_, at)| at != host));
    site || origin
}

fn words_of(refused: Refused) -> &'static str {
    match refused {
        Refused::WrongToken => "That is not the token.",
        Refused::NoSession => "Your session has ended. Nothing was done.",
        Refused::Forged => "That form was not made by a page of this desk. Nothing was done.",
    }
}

impl Desk {
    fn refuse(&self, refused: Refused, peer: IpAddr) -> Response {
        let why = match refused {
            Refused::WrongToken => DeskRefusal::WrongToken,
            Refused::NoSession => DeskRefusal::NoSession,
            Refused::Forged => DeskRefusal::Forged,
        };
        self.setup.metrics.desk_refused(why);
        if let Some(not_logged) = self.refusals.record(peer, Instant::now()) {
            warn!(why = why.as_str(), %peer, not_logged, "parked desk: refused");
        }
        let page = html::login(Some(words_of(refused)), self.setup.exposed);
        (StatusCode::FORBIDDEN, Html(page)).into_response()
    }

    /// The session of a GET, or the door.
    fn guest(&self, headers: &HeaderMap) -> Result<Session, Box<Response>> {
        let session = self.setup.door.session(cookie(headers), Instant::now());
        session.map_err(|_| Box::new(Html(html::login(None, self.setup.exposed)).into_response()))
    }

    /// The session of a form.
    fn form(&self, visitor: &Visitor, fields: &Fields) -> Result<Session, Box<Response>> {
        let headers = &visitor.headers;
        let form = match from_elsewhere(headers) {
            true => Err(Refused::Forged),
            false => self.setup.door.form(cookie(headers), Some(fields.text("word")), Instant::now()),
        };
        form.map_err(|refused| Box::new(self.refuse(refused, visitor.peer)))
    }

    async fn turn(&self) -> Result<MutexGuard<'_, Instant>, Unable> {
        let busy = |_| Unable::new(StatusCode::CONFLICT, "Somebody else is busy at this desk. Try again.");
        timeout(TURN_MAX, self.turn.lock()).await.map_err(busy)
    }

    fn decision<'a>(&'a self, operator: &'a str, because: &'a str, tell_refused: bool) -> Decision<'a> {
        Decision {
            source: &self.setup.source,
            operator,
            because: (!because.is_empty()).then_some(because),
            horizon: self.setup.horizon,
            settling: self.setup.settling,
            longest_call: self.setup.longest_call,
            tell_refused,
        }
    }

    async fn list(&self, filter: &Filter) -> Result<Found, Unable> {
        let _turn = self.turn().await?;
        let mut look = Look::begin(&self.setup.broker).await.map_err(unreachable)?;
        let (mut found, now) = (Found::default(), Timestamp::now());
        let looked = async {
            while found.looked < LOOK_MAX && look.age() < LOOK_TIME_MAX {
                let Some(delivery) = look.next().await.map_err(unreachable)? else { break };
                let parked = Parked::read(delivery);
                found.looked += 1;
                if filter.admits(&parked, now) {
                    found.rows.push(Row::of(&parked, now));
                }
            }
            Ok::<_, Unable>(())
        };
        let looked = looked.await;
        found.waiting = look.waiting();
        look.end().await;
        // What came before a message that cannot be read was seen all the same.
        match looked {
            Err(unable) if found.rows.is_empty() => return Err(unable),
            Err(Unable(_, why)) => found.cut_short = Some(why),
            Ok(()) => {}
        }
        found.meant = found.rows.len();
        found.rows.sort_by_key(|row| row.at);
        found.rows.truncate(ROWS_MAX);
        Ok(found)
    }

    /// Takes one command out, for as long as the look lasts. Once it is found it looks on to the end where that is not
    /// far: what a partial look took comes behind the rest.
    async fn find(&self, look: &mut Look, id: &str) -> Result<Parked, Unable> {
        let (mut found, mut looked) = (None, 0);
        let mut ended = false;
        while look.age() < FIND_TIME_MAX && (found.is_none() || looked < LOOK_MAX) {
            let Some(delivery) = look.next().await.map_err(unreachable)? else {
                ended = true;
                break;
            };
            looked += 1;
            let parked = Parked::read(delivery);
            if found.is_none() && parked.sha256 == id {
                found = Some(parked);
            }
        }
        let gone = match ended {
            true => "It is not parked any more.",
            false => "It was not found in the time that this page has: see redeemer parked show.",
        };
        found.ok_or_else(|| Unable::new(StatusCode::NOT_FOUND, gone))
    }

    /// Asks what is true now, and a second time where a refusal is to be told.
    async fn inquire(
        &self,
        parked: &Parked,
        decision: &Decision<'_>,
        next: &mut Instant,
    ) -> Result<Inquiry, Unable> {
        let first = self.inquire_once(parked, next).await?;
        match desk::confirm_after(parked, &first, decision, Timestamp::now()) {
            None => Ok(first),
            Some(wait) => {
                sleep(wait).await;
                Ok(self.inquire_once(parked, next).await?.following(first))
            }
        }
    }

    async fn inquire_once(&self, parked: &Parked, next: &mut Instant) -> Result<Inquiry, Unable> {
        let redemption = parked.replayable().map_err(|why| Unable::new(StatusCode::CONFLICT, why))?;
        sleep_until((*next).into()).await;
        *next = Instant::now() + INQUIRY_EVERY;
        let late = |_| {
            let words = "The service's own calls leave no room for an inquiry now. Try again.";
            Unable::new(StatusCode::SERVICE_UNAVAILABLE, words)
        };
        timeout(TURN_MAX, self.setup.pacer.turn(Rank::Inquiry)).await.map_err(late)?;
        let (nonce, chance) = (rand::random(), rand::random());
        Ok(desk::inquire(&self.setup.client, redemption, Timestamp::now(), nonce, chance).await)
    }

    /// Does what was decided with one command. `promised` is what the person was shown; anything else is not done.
    async fn act(&self, id: &str, session: &Session, act: Act) -> Result<Acted, Unable> {
        let mut next_inquiry = self.turn().await?;
        let mut look = Look::begin(&self.setup.broker).await.map_err(unreachable)?;
        let acted = self.act_on(&mut look, id, session, act, &mut next_inquiry).await;
        look.end().await;
        acted
    }

    async fn act_on(
        &self,
        look: &mut Look,
        id: &str,
        session: &Session,
        act: Act,
        next_inquiry: &mut Instant,
    ) -> Result<Acted, Unable> {
        let parked = self.find(look, id).await?;
        let Act { promised, because, tell_refused, inquires } = act;
        let decision = self.decision(&session.operator, &because, tell_refused);
        let inquiry =
            if inquires { Some(self.inquire(&parked, &decision, next_inquiry).await?) } else { None };
        let now = Timestamp::now();
        let advice = match &inquiry {
            Some(inquiry) => desk::advise(&parked, inquiry, &decision, now),
            None => Ok(Deed::Discarded),
        };
        let deed = match (&advice, promised) {
            (Ok(deed), Some(promised)) if *deed == promised => *deed,
            _ => {
                let Some(inquiry) = &inquiry else {
                    return Err(Unable::new(StatusCode::BAD_REQUEST, "Nothing was decided."));
                };
                let changed =
                    promised.is_some().then_some("The answer is another one than before. Nothing was done.");
                if let Prospect::Stop(_) = inquiry.prospect {
                    info!(operator = session.operator, "parked desk: every call fails");
                }
                let asked = Asked { inquiry, advice, because, tell_refused };
                return Ok(Acted::Shown(html::show(session, &parked, Some(&asked), changed, now)));
            }
        };
        let number = parked.legible.out_request_no.as_ref().map(ToString::to_string);
        check_publishing(&self.setup.broker).await.map_err(unreachable)?;
        look.open_publisher(&self.setup.broker).await.map_err(unreachable)?;
        let done = desk::carry_out(look, parked, deed, inquiry.as_ref(), &decision, now).await;
        done.map_err(|why| {
            let words =
                format!("It was not finished and may still be parked: {why}. Doing it again is safe.");
            Unable::new(StatusCode::BAD_GATEWAY, words)
        })?;
        let effect = deed.effect();
        let (operator, name) = (session.operator.as_str(), session.name());
        info!(operator, session = name, id, out_request_no = number, effect, "parked desk: done");
        Ok(Acted::Done(deed))
    }
}

/// What a person decided.
struct Act {
    /// What they were shown that it would do; nothing while they only ask.
    promised: Option<Deed>,
    because: String,
    tell_refused: bool,
    /// Whether the payment API is asked first.
    inquires: bool,
}

enum Acted {
    Shown(String),
    Done(Deed),
}

fn unreachable(why: impl std::fmt::Display) -> Unable {
    Unable::new(StatusCode::BAD_GATEWAY, format!("The parked queue cannot be reached: {why}"))
}

async fn login(State(desk): Shared, visitor: Visitor, body: Bytes) -> Response {
    let Visitor { headers, peer } = visitor;
    if from_elsewhere(&headers) {
        return desk.refuse(Refused::Forged, peer);
    }
    let fields = Fields::read(&body);
    let operator = match operator(fields.text("operator")) {
        Ok(operator) => operator,
        Err(why) => {
            let page = html::login(Some(why), desk.setup.exposed);
            return (StatusCode::BAD_REQUEST, Html(page)).into_response();
        }
    };
    let now = Instant::now();
    match desk.setup.door.open(fields.text("token"), operator, cookie(&headers), now, rand::random()) {
        Ok(session) => {
            info!(operator, session = session.name(), %peer, "parked desk: logged in");
            let key = &session.key;
            let cookie = format!(
                "{COOKIE}={key}; Path=/parked; HttpOnly; SameSite=Strict; Max-Age={SESSION_SECONDS_MAX}"
            );
            seen_other("/parked", Some(cookie))
        }
        Err(refused) => {
            sleep(WRONG_TOKEN_PAUSE).await;
            desk.refuse(refused, peer)
        }
    }
}

/// The name of a person, as the audit event will carry it: one that another person can read and tell from others.
fn operator(name: &str) -> Result<&str, &'static str> {
    if name.is_empty() {
        return Err("Say who you are: the audit event names you.");
    }
    if name.chars().any(is_hidden) || name.chars().count() > WORDS_MAX {
        return Err("A name is 200 characters at most, and none of them is invisible.");
    }
    Ok(name)
}

async fn logout(State(desk): Shared, visitor: Visitor, body: Bytes) -> Response {
    match desk.form(&visitor, &Fields::read(&body)) {
        Err(answer) => *answer,
        Ok(session) => {
            desk.setup.door.close(&session);
            let (operator, peer) = (session.operator.as_str(), visitor.peer);
            info!(operator, session = session.name(), %peer, "parked desk: logged out");
            let gone = format!("{COOKIE}=; Path=/parked; HttpOnly; SameSite=Strict; Max-Age=0");
            seen_other("/parked", Some(gone))
        }
    }
}

fn seen_other(to: &str, cookie: Option<String>) -> Response {
    let mut answer = (StatusCode::SEE_OTHER, [(header::LOCATION, to.to_owned())]).into_response();
    // Hex and fixed words: always a header's value.
    if let Some(Ok(cookie)) = cookie.map(|cookie| cookie.parse()) {
        answer.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    answer
}

async fn list(State(desk): Shared, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let session = match desk.guest(&headers) {
        Ok(session) => session,
        Err(door) => return *door,
    };
    let fields = Fields::read(query.as_deref().unwrap_or_default().as_bytes());
    let typed = html::FILTER_FIELDS.map(|name| fields.words(name));
    let deeds = [Deed::SentAgain, Deed::ToldRedeemed, Deed::ToldRefused, Deed::Discarded];
    let done = deeds.into_iter().find(|deed| deed.effect() == fields.text("done")).map(html::done);
    let found = match filter(&typed) {
        Err(why) => Err(Unable::new(StatusCode::BAD_REQUEST, why)),
        Ok(filter) => desk.list(&filter).await,
    };
    match found {
        Ok(found) => Html(html::list(&session, &typed, Ok(&found), done)).into_response(),
        Err(Unable(status, why)) => {
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

async fn show(State(desk): Shared, headers: HeaderMap, Path(id): Path<String>) -> Response {
    let session = match desk.guest(&headers) {
        Ok(session) => session,
        Err(door) => return *door,
    };
    let shown = async {
        let _turn = desk.turn().await?;
        let mut look = Look::begin(&desk.setup.broker).await.map_err(unreachable)?;
        let found = desk.find(&mut look, &id).await;
        look.end().await;
        Ok(html::show(&session, &found?, None, None, Timestamp::now()))
    };
    match shown.await {
        Ok(page) => Html(page).into_response(),
        Err(unable) => Unable::page(unable, &session),
    }
}

async fn ask(State(desk): Shared, visitor: Visitor, Path(id): Path<String>, body: Bytes) -> Response {
    perform(desk, visitor, id, body, |fields| {
        let tell_refused = fields.is_yes("tell_refused");
        Ok(Act { promised: None, because: fields.words("because"), tell_refused, inquires: true })
    })
    .await
}

async fn replay(State(desk): Shared, visitor: Visitor, Path(id): Path<String>, body: Bytes) -> Response {
    perform(desk, visitor, id, body, |fields| {
        let deeds = [Deed::SentAgain, Deed::ToldRedeemed, Deed::ToldRefused];
        let promised = deeds.into_iter().find(|deed| deed.effect() == fields.text("deed"));
        let tell_refused = fields.is_yes("tell_refused");
        match promised {
            None => Err("Ask first: what would be done is shown before anything is."),
            promised => Ok(Act { promised, because: fields.words("because"), tell_refused, inquires: true }),
        }
    })
    .await
}

async fn discard(State(desk): Shared, visitor: Visitor, Path(id): Path<String>, body: Bytes) -> Response {
    perform(desk, visitor, id, body, |fields| {
        let (because, promised) = (fields.words("because"), Some(Deed::Discarded));
        if because.is_empty() || !fields.is_yes("sure") {
            return Err("Say why, and that it is not needed any more. Nothing was done.");
        }
        Ok(Act { promised, because, tell_refused: false, inquires: false })
    })
    .await
}

/// Takes a form, and does what it says to its end, even where the browser does not wait for it.
async fn perform(
    desk: Arc<Desk>,
    visitor: Visitor,
    id: String,
    body: Bytes,
    read: impl FnOnce(&Fields) -> Result<Act, &'static str>,
) -> Response {
    let fields = Fields::read(&body);
    let session = match desk.form(&visitor, &fields) {
        Ok(session) => session,
        Err(answer) => return *answer,
    };
    let act = match read(&fields) {
        Ok(act) => act,
        Err(why) => return Unable::new(StatusCode::BAD_REQUEST, why).page(&session),
    };
    let (at_desk, person) = (desk.clone(), session.clone());
    let acting = tokio::spawn(async move { at_desk.act(&id, &person, act).await });
    match acting.await {
        Ok(Ok(Acted::Shown(page))) => Html(page).into_response(),
        Ok(Ok(Acted::Done(deed))) => seen_other(&format!("/parked?done={}", deed.effect()), None),
        Ok(Err(unable)) => unable.page(&session),
        Err(_) => {
            let words = "It was cut short; look whether it is still parked. Doing it again is safe.";
            Unable::new(StatusCode::INTERNAL_SERVER_ERROR, words).page(&session)
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
            assert_eq!(from_elsewhere(&headers(pairs)), elsewhere, "{pairs:?}");
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
        let cookies = headers(&[("cookie", "a=1; redeemer_desk=abc; redeemer_desk2=x")]);
        assert_eq!(cookie(&cookies), Some("abc"));
        assert_eq!(cookie(&headers(&[("cookie", "xredeemer_desk=abc")])), None);
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
