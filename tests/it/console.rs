//! The pages of the parked console, against a real broker, the service and the sandbox: who is let in, what is shown, and
//! what is done only after it was shown.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use crate::bed;
use crate::bed::{Bed, OPENID, Service, command, until};
use crate::broker;
use crate::proxy::{Manner, Proxy};
use jiff::{SignedDuration, Timestamp};
use lapin::options::{BasicAckOptions, BasicPublishOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Consumer};
use redeemer::config::Span;
use redeemer::wechat::client::hex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A bed whose parked commands stay, with the console open.
async fn bed() -> Bed {
    let mut bed = Bed::new().await;
    bed.config.retry.query_delay = Span(Duration::from_millis(100));
    bed.config.retry.initial = Span(Duration::from_millis(50));
    bed.config.admin.console_token_file = token_file(&bed, TOKEN, 0o600);
    bed.leave_parked().await;
    bed
}

fn token_file(bed: &Bed, token: &str, mode: u32) -> String {
    let file = bed.dir.join(format!("token-{mode:o}-{}", token.len()));
    std::fs::write(&file, format!("{token}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    file.display().to_string()
}

/// Sets bytes aside as the service does, and gives their id.
async fn park(bed: &Bed, bytes: &[u8], reason: &str, ago: Duration) -> String {
    let at = Timestamp::now() - SignedDuration::try_from(ago).unwrap();
    let mut headers = FieldTable::default();
    for (name, text) in
        [("x-redemption-parked-reason", reason.to_owned()), ("x-redemption-parked-at", at.to_string())]
    {
        headers.insert(name.into(), AMQPValue::LongString(text.into()));
    }
    let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    let exchange = bed.config.broker.names.parked.as_str();
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let confirm = bed.channel().basic_publish(exchange.into(), "".into(), options, bytes, properties);
    assert!(confirm.await.unwrap().await.unwrap().is_ack());
    hex(&Sha256::digest(bytes))
}

async fn park_command(bed: &Bed, code: &str) -> String {
    let bytes = command(code, &format!("USE_{code}")).to_string();
    park(bed, bytes.as_bytes(), "deadline_passed", Duration::from_secs(3_600)).await
}

/// A browser of few words: no redirects are followed, and cookies are set by hand.
struct Browser {
    http: reqwest::Client,
    at: String,
    cookie: String,
    word: String,
}

struct Page {
    status: u16,
    location: String,
    set_cookie: String,
    text: String,
}

impl Browser {
    fn new(service: &Service) -> Self {
        // Each request by a connection of its own: the service bounds how long one lives.
        let http = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        let at = format!("http://{}", service.admin);
        Self { http, at, cookie: String::new(), word: String::new() }
    }

    /// Logs in.
    async fn log_in(service: &Service) -> Self {
        let mut browser = Self::new(service);
        let page = browser.post("/parked/login", &[("token", TOKEN), ("operator", "night shift")]).await;
        assert_eq!((page.status, page.location.as_str()), (303, "/parked"), "{}", page.text);
        for attribute in ["HttpOnly", "SameSite=Strict", "Path=/parked"] {
            assert!(page.set_cookie.contains(attribute), "{}", page.set_cookie);
        }
        browser.cookie = page.set_cookie.split(';').next().unwrap().to_owned();
        let list = browser.get("/parked").await;
        browser.word = between(&list.text, "name=\"csrf_token\" value=\"", "\"").to_owned();
        browser
    }

    async fn get(&self, path: &str) -> Page {
        self.send(self.http.get(format!("{}{path}", self.at))).await
    }

    async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Page {
        self.post_with(path, fields, &[]).await
    }

    async fn post_with(&self, path: &str, fields: &[(&str, &str)], headers: &[(&str, &str)]) -> Page {
        let mut body = form_urlencoded::Serializer::new(String::new());
        body.append_pair("csrf_token", &self.word).extend_pairs(fields);
        let mut request = self.http.post(format!("{}{path}", self.at)).body(body.finish());
        request = request.header("content-type", "application/x-www-form-urlencoded");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request).await
    }

    async fn send(&self, mut request: reqwest::RequestBuilder) -> Page {
        if !self.cookie.is_empty() {
            request = request.header("cookie", &self.cookie);
        }
        let answer = request.send().await.unwrap();
        let header = |name: &str| {
            answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
        };
        let (location, set_cookie) = (header("location"), header("set-cookie"));
        Page { status: answer.status().as_u16(), location, set_cookie, text: answer.text().await.unwrap() }
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before} in\n{text}"));
    rest.split_once(after).unwrap().0
}

fn asked(bed: &Bed, operation: &str) -> usize {
    let ledger = bed.ledger();
    ledger["attempts"].as_array().unwrap().iter().filter(|attempt| attempt["operation"] == operation).count()
}

async fn audit(audits: &mut Consumer) -> Value {
    let delivery = bed::next(audits, "an audit event").await;
    delivery.ack(BasicAckOptions::default()).await.unwrap();
    let event = serde_json::from_slice(&delivery.data).unwrap();
    bed::keeps_the_contract(&event);
    event
}

#[tokio::test(flavor = "multi_thread")]
async fn console_is_off_without_a_token_and_a_bad_one_is_refused() {
    let mut bed = Bed::new().await;
    let service = bed.start().await;
    for path in ["/parked", "/parked/login", &format!("/parked/{}", "a".repeat(64))] {
        assert_eq!(service.get(path).await.0, 404, "{path}");
    }
    assert!(!service.get("/").await.1.contains("/parked"));
    service.stop().await;
    for (token, mode) in [(TOKEN, 0o644), (&TOKEN[1..], 0o600), ("", 0o600)] {
        bed.config.admin.console_token_file = token_file(&bed, token, mode);
        let fault = bed.config.console_token().unwrap_err();
        assert_eq!(fault.key, "admin.console_token_file");
        assert!(token.is_empty() || !fault.problem.contains(token), "{}", fault.problem);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn login_requires_the_token_and_denials_are_counted() {
    let bed = bed().await;
    let id = park_command(&bed, "C1").await;
    let service = bed.start().await;
    let refused =
        async |why: &str| service.metric(&format!("redeemer_console_denied_total{{reason=\"{why}\"}}")).await;
    let stranger = Browser::new(&service);

    // Without a session every path shows the login page and nothing else.
    for path in ["/parked", "/parked?reason=deadline_passed", &format!("/parked/{id}")] {
        let page = stranger.get(path).await;
        assert!(page.text.contains("name=\"token\"") && !page.text.contains("USE_C1"), "{path}");
    }
    for wrong in ["", "x", &TOKEN[1..], "0123456789abcdef0123456789abcdeg"] {
        let since = Instant::now();
        let page = stranger.post("/parked/login", &[("token", wrong), ("operator", "lin")]).await;
        assert_eq!((page.status, page.set_cookie.as_str()), (403, ""), "{wrong}");
        assert!(page.text.contains("That is not the token.") && !page.text.contains(TOKEN));
        assert!(since.elapsed() >= Duration::from_secs(1), "a guess costs time");
    }
    assert_eq!(refused("wrong_token").await, 4.0);
    assert_eq!(stranger.post("/parked/login", &[("token", TOKEN), ("operator", " ")]).await.status, 400);

    // A form without a session, with another's, or from another site is denied.
    let forms = ["query", "replay", "discard"].map(|what| format!("/parked/{id}/{what}"));
    let good = [("because", "b"), ("sure", "yes"), ("action", "republished")];
    for form in &forms {
        assert_eq!(stranger.post(form, &good).await.status, 403);
    }
    assert_eq!(refused("no_session").await, 3.0);
    let person = Browser::log_in(&service).await;
    let mut forger = Browser::new(&service);
    forger.cookie.clone_from(&person.cookie);
    for form in &forms {
        assert_eq!(forger.post(form, &good).await.status, 403, "the cookie alone");
        for (name, value) in
            [("origin", "http://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")]
        {
            assert_eq!(person.post_with(form, &good, &[(name, value)]).await.status, 403, "{name}");
        }
    }
    assert_eq!(refused("forged").await, 12.0);
    let login = [("token", TOKEN), ("operator", "lin")];
    let elsewhere = [("origin", "http://evil.example")];
    assert_eq!(stranger.post_with("/parked/login", &login, &elsewhere).await.status, 403);
    // A GET never does anything.
    for form in &forms {
        assert_eq!(person.get(form).await.status, 405);
    }
    let huge = "x".repeat(20_000);
    assert_eq!(person.post(&forms[2], &[("because", &huge), ("sure", "yes")]).await.status, 413);

    // Nothing of all that has touched the command, and anyone who leaves is out.
    assert_eq!(asked(&bed, "query") + asked(&bed, "use"), 0);
    assert!(person.get("/parked").await.text.contains("USE_C1"));
    assert_eq!(person.post("/parked/logout", &[]).await.status, 303);
    assert!(!person.get("/parked").await.text.contains("USE_C1"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn console_lists_and_shows_commands_without_an_openid() {
    let bed = bed().await;
    let hour = Duration::from_secs(3_600);
    let other_brand = command("C2", "USE_C2").to_string().replace("120344", "99");
    park(&bed, command("C1", "USE_C1").to_string().as_bytes(), "deadline_passed", 50 * hour).await;
    park(&bed, other_brand.as_bytes(), "deadline_passed", 3 * hour).await;
    park(&bed, command("C3", "USE_C3").to_string().as_bytes(), "corrupt_retry_message", hour).await;
    let hostile = b"<script>alert(1)</script>\xff";
    let strange = park(&bed, hostile, "<b>odd</b>", Duration::ZERO).await;
    // An openid in bytes that are no command, as the name of a field, and spelled with an escape.
    let cut = format!("{{\"openid\": \"{OPENID}\", ");
    let mut named = command("C4", "USE_C4");
    named[OPENID] = json!(1);
    let escaped = command("C5", "USE_C5").to_string().replace(OPENID, &format!("\\u006f{}", &OPENID[1..]));
    let mut discreet = Vec::new();
    for bytes in [cut, named.to_string(), escaped] {
        discreet.push(park(&bed, bytes.as_bytes(), "invalid_command", Duration::ZERO).await);
    }
    let service = bed.start().await;
    let person = Browser::log_in(&service).await;

    let check = async |query: &str, wanted: &[&str]| {
        let page = person.get(&format!("/parked{query}")).await;
        assert_eq!(page.status, 200, "{query}: {}", page.text);
        let there: Vec<_> = ["USE_C1", "USE_C2", "USE_C3"]
            .into_iter()
            .filter(|number| page.text.contains(&format!(">{number}<")))
            .collect();
        assert_eq!(there, wanted, "{query}");
        assert!(!page.text.contains(OPENID), "{query}");
    };
    check("", &["USE_C1", "USE_C2", "USE_C3"]).await;
    check("?reason=deadline_passed", &["USE_C1", "USE_C2"]).await;
    check("?reason=deadline_passed&older_than=48h", &["USE_C1"]).await;
    check("?newer_than=2h", &["USE_C3"]).await;
    check("?brand=99", &["USE_C2"]).await;
    check("?coupon=C3", &["USE_C3"]).await;
    check("?number=USE_C9", &[]).await;
    assert_eq!(person.get("/parked?older_than=soon").await.status, 400);

    let id = hex(&Sha256::digest(other_brand.as_bytes()));
    let page = person.get(&format!("/parked/{id}")).await;
    assert!(page.text.contains("USE_C2") && page.text.contains("oh…Anp4"), "{}", page.text);
    assert!(!page.text.contains(OPENID), "{}", page.text);
    let page = person.get(&format!("/parked/{strange}")).await;
    assert!(page.text.contains("&lt;script&gt;alert(1)&lt;/script&gt;\\xff"), "{}", page.text);
    assert!(!page.text.contains("<script") && !page.text.contains("<b>odd"), "{}", page.text);
    for id in discreet {
        let page = person.get(&format!("/parked/{id}")).await;
        assert!(page.status == 200 && page.text.contains("Anp4"), "{}", page.text);
        assert!(!page.text.contains(&OPENID[1..]), "{}", page.text);
    }
    assert_eq!(person.get(&format!("/parked/{}", "0".repeat(64))).await.status, 404);
    // Looking has changed nothing, and the status page leads here.
    check("", &["USE_C1", "USE_C2", "USE_C3"]).await;
    assert!(service.get("/").await.1.contains("href=/parked>"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_shown_first_and_then_done_and_audited() {
    let mut bed = bed().await;
    let mut audits = bed.bind_results("audit.parked.#").await;
    bed.issue("C1", json!({}));
    let id = park_command(&bed, "C1").await;
    let service = bed.start().await;
    let person = Browser::log_in(&service).await;
    let at = |what: &str| format!("/parked/{id}/{what}");

    // An action that was not shown is not carried out.
    assert_eq!(person.post(&at("replay"), &[]).await.status, 400);
    let confirmed_otherwise = person.post(&at("replay"), &[("action", "published_redeemed")]).await;
    assert!(confirmed_otherwise.text.contains("Nothing was done."), "{}", confirmed_otherwise.text);
    assert_eq!((asked(&bed, "query"), asked(&bed, "use")), (1, 0));

    let shown = person.post(&at("query"), &[]).await;
    assert_eq!(shown.status, 200, "{}", shown.text);
    assert!(shown.text.contains("still usable (EFFECTIVE)"), "{}", shown.text);
    assert!(shown.text.contains("Nothing has been done yet."), "{}", shown.text);
    let action = between(&shown.text, "name=\"action\" value=\"", "\"");
    assert_eq!((action, asked(&bed, "use")), ("republished", 0));

    let because = "provider outage <of 5 March>";
    let done = person.post(&at("replay"), &[("action", action), ("because", because)]).await;
    assert_eq!((done.status, done.location.as_str()), (303, "/parked?done=republished"), "{}", done.text);
    assert!(person.get(&done.location).await.text.contains("Sent again."));
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    assert_eq!(bed.uses(), [("C1".to_owned(), "USE_C1".to_owned())]);
    assert_eq!(asked(&bed, "use"), 1);
    let event = audit(&mut audits).await;
    assert_eq!(event["data"]["operator"], "night shift");
    assert_eq!(event["data"]["effect"], "republished");
    assert!(event["data"].to_string().contains(because), "{event}");
    until("an empty parked queue", async || person.get("/parked").await.text.contains("Nothing is parked."))
        .await;
    // The same form once more, as by a reload: the command is no longer parked, and nothing happens twice.
    let again = person.post(&at("replay"), &[("action", action), ("because", because)]).await;
    assert_eq!(again.status, 404);
    assert_eq!(bed.uses().len(), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn console_publishes_a_refusal_only_if_requested() {
    let mut bed = bed().await;
    let mut audits = bed.bind_results("audit.parked.#").await;
    bed.issue("C1", json!({"state": "USED", "used_by": "USE_C1"}));
    bed.issue("C2", json!({"state": "EXPIRED"}));
    let (used, expired) = (park_command(&bed, "C1").await, park_command(&bed, "C2").await);
    let service = bed.start().await;
    let person = Browser::log_in(&service).await;

    let shown = person.post(&format!("/parked/{used}/query"), &[]).await;
    assert!(shown.text.contains("used under this number (USED)"), "{}", shown.text);
    let done = person.post(&format!("/parked/{used}/replay"), &[("action", "published_redeemed")]).await;
    assert_eq!(done.location, "/parked?done=published_redeemed", "{}", done.text);
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    assert_eq!(audit(&mut audits).await["data"]["effect"], "published_redeemed");

    let shown = person.post(&format!("/parked/{expired}/query"), &[]).await;
    assert!(shown.text.contains("It stays parked: refused (expired)"), "{}", shown.text);
    assert!(!shown.text.contains("name=\"action\""));
    let publishing = ("publish_refused", "yes");
    let shown = person.post(&format!("/parked/{expired}/query"), &[publishing]).await;
    assert_eq!(between(&shown.text, "name=\"action\" value=\"", "\""), "published_refused");
    let done = person
        .post(&format!("/parked/{expired}/replay"), &[("action", "published_refused"), publishing])
        .await;
    assert_eq!(done.location, "/parked?done=published_refused", "{}", done.text);
    assert_eq!(bed.next_event().await.gist(), "refused expired EXPIRED");
    assert_eq!(asked(&bed, "use"), 0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discard_needs_a_reason_and_leaves_an_audit_event() {
    let bed = bed().await;
    let mut audits = bed.bind_results("audit.parked.#").await;
    let id = park(&bed, b"not a command", "invalid_command", Duration::from_secs(60)).await;
    let service = bed.start().await;
    let person = Browser::log_in(&service).await;
    let discard = format!("/parked/{id}/discard");
    for fields in [&[][..], &[("because", " ")], &[("because", "b")], &[("sure", "yes")]] {
        assert_eq!(person.post(&discard, fields).await.status, 400, "{fields:?}");
    }
    // A message that is not a command is not queried.
    assert_eq!(person.post(&format!("/parked/{id}/query"), &[]).await.status, 409);
    let done = person.post(&discard, &[("because", "publisher fixed"), ("sure", "yes")]).await;
    assert_eq!(done.location, "/parked?done=discarded", "{}", done.text);
    let event = audit(&mut audits).await;
    assert_eq!(
        (&event["data"]["effect"], &event["data"]["operator"]),
        (&json!("discarded"), &json!("night shift"))
    );
    assert!(person.get("/parked").await.text.contains("Nothing is parked."));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn impatient_operator_does_not_query_faster_than_the_console() {
    let bed = bed().await;
    bed.issue("C1", json!({}));
    let id = park_command(&bed, "C1").await;
    let service = bed.start().await;
    let person = Browser::log_in(&service).await;
    for _ in 0..7 {
        assert_eq!(person.post(&format!("/parked/{id}/query"), &[]).await.status, 200);
    }
    // The first may have been long on its way. The second left after it had come, and five more each after 200 ms.
    let ledger = bed.ledger();
    let queries = ledger["attempts"].as_array().unwrap().iter().filter(|each| each["operation"] == "query");
    let at: Vec<_> = queries.map(|each| each["at_us"].as_u64().unwrap()).collect();
    assert!(at.len() == 7 && at[6] - at[0] >= 1_000_000, "{at:?}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_equal_bytes_have_pages_of_their_own() {
    let bed = bed().await;
    let body = command("C1", "USE_C1_0001").to_string();
    for (nth, reason) in ["deadline_passed", "attempts_exhausted"].into_iter().enumerate() {
        park(&bed, body.as_bytes(), reason, Duration::from_secs(60 * (nth as u64 + 1))).await;
    }
    let service = bed.start().await;
    let person = Browser::log_in(&service).await;
    let list = person.get("/parked").await.text;
    let links: Vec<_> =
        list.split("href=\"/parked/").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(links.len() == 2 && links[0] != links[1], "{links:?}");
    let mut shown = Vec::new();
    for link in links {
        let page = person.get(&format!("/parked/{link}")).await.text;
        shown.push(page.contains("deadline passed"));
    }
    shown.sort_unstable();
    assert_eq!(shown, [false, true], "each page is of its own message");
    service.stop().await;
}

/// How many parked commands a page has read, if not all.
fn commands_read(page: &str) -> u32 {
    let (_, rest) = page.split_once("Only the first ").expect("not all were read");
    let digits: String = rest.chars().take_while(|each| *each != ' ').filter(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

/// More than a list reads.
#[tokio::test(flavor = "multi_thread")]
async fn of_very_many_the_first_are_listed_and_each_is_found() {
    let bed = bed().await;
    let all: Vec<_> = (0..2_100).map(|nth| format!("not a command, number {nth}")).collect();
    let mut ids = Vec::new();
    for some in all.chunks(100) {
        let parking =
            some.iter().map(|bytes| park(&bed, bytes.as_bytes(), "invalid_command", Duration::ZERO));
        ids.extend(futures_util::future::join_all(parking).await);
    }
    let service = bed.start().await;
    let person = Browser::log_in(&service).await;
    // A partial pass puts its messages behind the others, so each of them was beyond the bound at some time.
    for id in [&ids[2_099], &ids[0], &ids[1_000]] {
        let page = person.get(&format!("/parked/{id}")).await;
        assert_eq!(page.status, 200, "{}", page.text);
    }
    let list = person.get("/parked").await.text;
    // Fewer than that if they cannot be read in time.
    let first = commands_read(&list);
    assert!(list.contains("2,100 parked.") && (200..=2_000).contains(&first), "{first}: {list}");
    let none = person.get("/parked?coupon=ABSENT").await.text;
    let first = commands_read(&none);
    assert!(none.contains("No match among 2,100") && (200..=2_000).contains(&first), "{first}: {none}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_wait_for_each_other() {
    let bed = bed().await;
    park_command(&bed, "C1").await;
    let service = bed.start().await;
    let person = Browser::log_in(&service).await;
    let looks = (0..6).map(|_| person.get("/parked"));
    for page in futures_util::future::join_all(looks).await {
        assert_eq!(page.status, 200, "{}", page.text);
        assert!(page.text.contains("USE_C1"));
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_whose_look_is_lost_does_not_send_again() {
    let mut bed = bed().await;
    let mut audits = bed.bind_results("audit.parked.#").await;
    bed.issue("C1", json!({}));
    let id = park_command(&bed, "C1").await;
    let direct = bed.config.wechat.base_url.clone();
    let port = direct.trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap();
    let held = Proxy::start(port).await;
    bed.config.wechat.base_url = format!("http://127.0.0.1:{}", held.port);
    bed.config.wechat.read_timeout = Span(Duration::from_secs(60));
    bed.config.wechat.total_timeout = Span(Duration::from_secs(60));
    let service = bed.start().await;
    let person = Browser::log_in(&service).await;
    held.behave(Manner::Silent);
    let before = held.ill_treated();
    let form = [("action", "republished")];
    let path = format!("/parked/{id}/replay");
    let first = person.post(&path, &form);
    let second = async {
        until("the call is under way", async || held.ill_treated() > before).await;
        let lock = format!("{}.lock", bed.config.broker.names.parked);
        tokio::task::block_in_place(|| broker::shared().close_owner(&lock));
        let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_redeemer"));
        program.arg("--config").arg(bed.config_file()).args(["parked", "discard", "--all", "--yes"]);
        let discarded = program.args(["--because", "refunded", "--operator", "lin"]).output().await.unwrap();
        assert_eq!(discarded.status.code(), Some(0), "{discarded:?}");
        held.behave(Manner::Good);
    };
    let (page, ()) = tokio::join!(first, second);
    assert_eq!(page.status, 502, "{}", page.text);
    assert_eq!(audit(&mut audits).await["data"]["effect"], "discarded");
    assert_eq!(person.get(&format!("/parked/{id}")).await.status, 404);
    // The next audit event is that of another command: nothing was published in between.
    let other = park_command(&bed, "C2").await;
    let sure = [("because", "a test"), ("sure", "yes")];
    let done = person.post(&format!("/parked/{other}/discard"), &sure).await;
    assert_eq!(done.status, 303, "{}", done.text);
    let next = audit(&mut audits).await;
    assert_eq!((&next["data"]["effect"], &next["subject"]), (&json!("discarded"), &json!("C2")));
    assert!(bed.uses().is_empty());
    service.stop().await;
}

/// A text with a character that shows nothing of itself is rejected where it was entered, and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn operator_text_with_hidden_characters_is_rejected() {
    let bed = bed().await;
    let mut audits = bed.bind_results("audit.parked.#").await;
    bed.issue("C1", json!({}));
    let id = park_command(&bed, "C1").await;
    let service = bed.start().await;
    let person = Browser::log_in(&service).await;
    for hidden in ["refunded\u{202e}dednufer", "a\r\nb", "a\u{200b}b", "a\u{1b}[31m", "tab\t"] {
        let because = ("because", hidden);
        for (what, more) in
            [("query", None), ("replay", Some(("action", "republished"))), ("discard", Some(("sure", "yes")))]
        {
            let fields: Vec<_> = [because].into_iter().chain(more).collect();
            let page = person.post(&format!("/parked/{id}/{what}"), &fields).await;
            assert_eq!(page.status, 400, "{what} {hidden:?}");
            assert!(page.text.contains("Why contains the invisible character U+"), "{what} {hidden:?}");
        }
        let login = [("token", TOKEN), ("operator", hidden)];
        assert_eq!(Browser::new(&service).post("/parked/login", &login).await.status, 400, "{hidden:?}");
        let query: String = form_urlencoded::byte_serialize(hidden.as_bytes()).collect();
        for field in ["reason", "brand", "coupon", "number", "older_than"] {
            assert_eq!(person.get(&format!("/parked?{field}={query}")).await.status, 400, "{field}");
        }
    }
    let long = "y".repeat(201);
    let discard = format!("/parked/{id}/discard");
    assert_eq!(person.post(&discard, &[("because", &long), ("sure", "yes")]).await.status, 400);
    assert_eq!(asked(&bed, "query") + asked(&bed, "use"), 0);
    // What is accepted reaches the audit event as it was entered.
    let because = "\u{9000}\u{6b3e} \u{201c}by hand\u{201d}";
    assert_eq!(person.post(&discard, &[("because", because), ("sure", "yes")]).await.status, 303);
    assert_eq!(audit(&mut audits).await["data"]["because"], because);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_and_logouts_leave_audit_events() {
    let bed = bed().await;
    let mut audits = bed.bind_results("audit.console.#").await;
    let service = bed.start().await;
    let person = Browser::log_in(&service).await;
    assert_eq!(person.post("/parked/logout", &[]).await.status, 303);
    let (login, logout) = (audit(&mut audits).await, audit(&mut audits).await);
    assert_eq!(login["type"], "redemption.console.logged_in.v1");
    assert_eq!(logout["type"], "redemption.console.logged_out.v1");
    for event in [&login, &logout] {
        assert_eq!(event["data"]["operator"], "night shift");
        assert_eq!((&event["data"]["peer"], &event["data"]["count"]), (&json!("127.0.0.1"), &json!(1)));
    }
    assert_eq!(login["data"]["session"], logout["data"]["session"]);
    assert!(
        !login.to_string().contains(TOKEN)
            && !person.cookie.contains(login["data"]["session"].as_str().unwrap())
    );

    // A flood of refused logins is one event, and one more after a minute.
    let stranger = Browser::new(&service);
    let refused = (0..40).map(|nth| {
        let stranger = &stranger;
        async move {
            let token = format!("wrong {nth}");
            let page = stranger.post("/parked/login", &[("token", &token), ("operator", "lin")]).await;
            assert_eq!(page.status, 403);
        }
    });
    futures_util::future::join_all(refused).await;
    let event = audit(&mut audits).await;
    assert_eq!(event["type"], "redemption.console.login_refused.v1");
    assert_eq!((&event["data"]["operator"], &event["data"]["count"]), (&Value::Null, &json!(1)));
    Browser::log_in(&service).await;
    assert_eq!(audit(&mut audits).await["type"], "redemption.console.logged_in.v1", "nothing in between");
    service.stop().await;
}

/// More bytes than a list reads, in messages as large as the broker takes.
#[tokio::test(flavor = "multi_thread")]
async fn list_of_large_messages_reads_a_bounded_part() {
    const MESSAGES: usize = 160;
    let bed = bed().await;
    let large: Vec<_> = (0..MESSAGES).map(|nth| format!("{nth} {}", "x".repeat(120 * 1024))).collect();
    for some in large.chunks(20) {
        let parking =
            some.iter().map(|bytes| park(&bed, bytes.as_bytes(), "invalid_command", Duration::ZERO));
        futures_util::future::join_all(parking).await;
    }
    let service = bed.start().await;
    let person = Browser::log_in(&service).await;
    let list = person.get("/parked").await;
    assert_eq!(list.status, 200);
    // 8 MiB are 68 of them and a part; fewer if they cannot be looked at in time.
    assert!((1..=69).contains(&commands_read(&list.text)), "{}", list.text);
    // Nothing of the rest is out of reach.
    let last = hex(&Sha256::digest(large[MESSAGES - 1].as_bytes()));
    assert_eq!(person.get(&format!("/parked/{last}")).await.status, 200);
    service.stop().await;
}

/// More requests than may wait.
#[tokio::test(flavor = "multi_thread")]
async fn crowd_that_looks_is_answered_at_once() {
    let bed = bed().await;
    park_command(&bed, "C1").await;
    let service = bed.start().await;
    let person = Browser::log_in(&service).await;
    let pages = futures_util::future::join_all((0..60).map(|_| person.get("/parked"))).await;
    let of = |status: u16| pages.iter().filter(|page| page.status == status).count();
    assert!(of(200) > 0 && of(503) > 0 && of(200) + of(503) == 60, "{} and {}", of(200), of(503));
    assert_eq!(person.get("/parked").await.status, 200, "the next one is served");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_of_a_large_message_shows_its_beginning() {
    const BYTES: usize = 120 * 1024;
    const SHOWN: usize = 64 * 1024;
    let bed = bed().await;
    let large = format!("begins {} ends", "x ".repeat((BYTES - 12) / 2));
    let id = park(&bed, large.as_bytes(), "invalid_command", Duration::ZERO).await;
    let service = bed.start().await;
    let person = Browser::log_in(&service).await;
    let page = person.get(&format!("/parked/{id}")).await;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("begins x x") && !page.text.contains(" ends"));
    assert!((SHOWN..2 * SHOWN).contains(&page.text.len()), "{}", page.text.len());
    service.stop().await;
}
