//! The dashboard of outcomes by brand, against a real PostgreSQL: events-to-postgres follows a service under load, is
//! cut off and killed, and each panel's query then finds exactly what was sent. `make test-ops` runs it.
//!
//! Grafana itself is not here: its macros and variables are expanded as its documents say and its source does
//! (pkg/tsdb/grafana-postgresql-datasource/macros.go).

#![allow(clippy::unwrap_used, clippy::print_stdout)] // in the helpers too; and it reports as it goes

#[path = "support/bed.rs"]
mod bed;
#[path = "support/broker.rs"]
mod broker;
#[path = "support/postgres.rs"]
mod postgres;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bed::{Bed, OPENID, ReceivedEvent, command, next, until};
use broker::Broker;
use jiff::{SignedDuration, Timestamp};
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use postgres::{OWNER, Postgres};
use redeemer::config::Span;
use redeemer::wire::retry_message;
use serde_json::{Value, json};

const MUCH: &str = "120344";
const SOME: &str = "666666";
/// Brands with little; with the two above, three more than panels show by name.
const LITTLE: usize = 11;
/// The data source's role.
const READER: &str = "grafana";

fn text(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana").join(name)).unwrap()
}

fn little(nth: usize) -> String {
    format!("BRAND_{nth:02}")
}

// ---- the program that stores events

/// events-to-postgres, which ends with its value.
struct Sink {
    program: Child,
    log: PathBuf,
}

impl Sink {
    fn start(bed: &Bed, uri: &str, postgres: &Postgres) -> Self {
        Self::start_with(bed, uri, postgres, &[])
    }

    fn start_with(bed: &Bed, uri: &str, postgres: &Postgres, more: &[(&str, &str)]) -> Self {
        let log = bed.dir.join("events-to-postgres.log");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/grafana/events-to-postgres");
        let program = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", script])
            .env("AMQP_URI", uri)
            .env("EXCHANGE", &bed.config.broker.names.results)
            .envs(postgres.environment(OWNER))
            // As where the database's own encoding is not UTF-8.
            .env("PGCLIENTENCODING", "SQL_ASCII")
            .envs(more.iter().copied())
            .stdin(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        Self { program, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until it has connected to both this many times, since the first of it was started.
    async fn follows(&self, times: usize) {
        until("events-to-postgres", async || self.log().matches(" follows ").count() >= times).await;
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log());
        }
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

// ---- the load

/// What was sent, and what is to be found in the end.
#[derive(Default)]
struct Sent {
    /// Brand, outcome and reason of every command that counts, with its request number.
    counted: Vec<(String, &'static str, &'static str, String)>,
    /// How many events are to come.
    events: usize,
}

impl Sent {
    fn counts(&mut self, brand: &str, outcome: &'static str, reason: &'static str, number: &str) {
        self.counted.push((brand.to_owned(), outcome, reason, number.to_owned()));
    }

    fn by<K: Ord>(&self, key: impl Fn(&str, &str, &str) -> Option<K>) -> BTreeMap<K, u64> {
        let mut counts = BTreeMap::new();
        for (brand, outcome, reason, _) in &self.counted {
            if let Some(key) = key(brand, outcome, reason) {
                *counts.entry(key).or_default() += 1;
            }
        }
        counts
    }

    fn of(&self, brand: &str) -> u64 {
        self.by(|it, _, _| (it == brand).then_some(()))[&()]
    }

    async fn publish(&mut self, bed: &Bed, brand: &str, code: &str, headers: FieldTable) -> String {
        let number = format!("USE_{code}");
        let mut command = command(code, &number);
        command["brand_id"] = json!(brand);
        if code.starts_with("INVALID") {
            command["use_time"] = json!("tomorrow");
        }
        let properties = BasicProperties::default().with_headers(headers);
        bed.publish_bytes(command.to_string().as_bytes(), properties).await;
        self.events += 1;
        number
    }

    /// This many commands that are redeemed, find their coupon expired, find none, and are none.
    async fn load(
        &mut self,
        bed: &Bed,
        round: usize,
        brand: &str,
        [good, expired, absent, invalid]: [usize; 4],
    ) {
        for (kind, count, outcome, reason) in [
            ("GOOD", good, "redeemed", ""),
            ("EXPIRED", expired, "refused", "expired"),
            ("ABSENT", absent, "refused", "no_such_coupon"),
            ("INVALID", invalid, "invalid", "invalid_command"),
        ] {
            for nth in 0..count {
                let code = format!("{kind}_{brand}_{round}_{nth}");
                let state = if kind == "EXPIRED" { "EXPIRED" } else { "EFFECTIVE" };
                if kind == "GOOD" || kind == "EXPIRED" {
                    bed.issue(&code, json!({"brand_id": brand, "state": state}));
                }
                let number = self.publish(bed, brand, &code, FieldTable::default()).await;
                self.counts(brand, outcome, reason, &number);
            }
        }
    }
}

/// Waits for the events of everything sent so far: they are then in the queue of events-to-postgres, too.
async fn hear(bed: &mut Bed, sent: &Sent, heard: &mut Vec<ReceivedEvent>) {
    while heard.len() < sent.events {
        heard.push(bed.next_event().await);
    }
}

async fn put(bed: &Bed, queue: &str, bytes: &[u8]) {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let properties = BasicProperties::default();
    let confirm =
        bed.channel().basic_publish("".into(), queue.into(), options, bytes, properties).await.unwrap();
    let confirm = confirm.await.unwrap();
    assert!(confirm.is_ack() && confirm.take_message().is_none(), "nothing takes it: {queue}");
}

/// An event that only a hand can make: its coupon code is longer than an index takes, and cannot be compressed.
fn too_long_for_an_index() -> Vec<u8> {
    let mut event: Value =
        serde_json::from_str(include_str!("../docs/contract/examples/event.refused.json")).unwrap();
    event["id"] = json!("6fd2a5d2-0000-4000-8000-000000000000");
    // Digits of a sequence that does not repeat itself.
    let mut state = 1u64;
    let digit = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'!' + (state >> 58) as u8)
    };
    event["data"]["coupon_code"] = json!((0..8_000).map(digit).collect::<String>());
    event.to_string().into_bytes()
}

#[test]
fn a_uri_that_cannot_be_read_is_not_shown() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/grafana/events-to-postgres");
    let output = Command::new(script).env("AMQP_URI", "amqp://brands:pa#ss@localhost").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("AMQP_URI") && !said.contains("pa#") && !said.contains("'pa'"), "{said}");
}

/// What a viewer of a dashboard may put to its data source.
#[tokio::test(flavor = "multi_thread")]
async fn reader_cannot_lift_its_bounds() {
    let bed = Bed::new().await;
    let postgres = Postgres::start("bounds");
    postgres.tell(&text("reader.sql"));
    let service = bed.start().await;
    let sink = Sink::start_with(&bed, &bed.config.broker.uri, &postgres, &[("READER_SECONDS_MAX", "2")]);
    sink.follows(1).await;
    let ask = |sql: &str| postgres.try_ask(READER, sql);
    assert_eq!(ask("SELECT count(*) FROM outcomes"), Ok("0".to_owned()));
    let lift = "SET transaction_read_only = off; SET statement_timeout = 0; ";
    for forbidden in [
        "CREATE TEMPORARY TABLE t (x text)",
        "CREATE TEMPORARY SEQUENCE s",
        "SELECT 1 AS x INTO TEMPORARY t",
        "CREATE TABLE t (x text)",
        "CREATE SCHEMA s",
        "SELECT lo_create(0)",
        "SELECT lo_creat(-1)",
        "SELECT lo_from_bytea(0, 'x')",
        "SET temp_file_limit = -1",
        "SELECT pg_sleep(1)",
        "SELECT pg_advisory_lock(1)",
        "SELECT * FROM events",
        "SET ROLE redeemer",
    ] {
        let answer = ask(&format!("{lift}{forbidden}"));
        assert!(
            answer.as_ref().is_err_and(|why| why.contains("permission denied")),
            "{forbidden}: {answer:?}"
        );
    }
    assert_eq!(postgres.count("SELECT count(*) FROM pg_largeobject_metadata"), 0);

    // The timeout it can lift; then the query is ended from outside.
    let endless = format!("{lift}DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$");
    let ended = ask(&endless).unwrap_err();
    assert!(ended.contains("terminating connection"), "{ended}");
    drop(sink);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn panels_by_brand_agree_with_what_was_sent() {
    let node = Broker::start();
    let mut bed = Bed::on(&node).await;
    let span = |millis| Span(Duration::from_millis(millis));
    bed.config.retry.initial = span(50);
    bed.config.retry.query_delay = span(200);
    bed.config.retry.in_process_max = span(800);
    bed.config.retry.delays = vec![span(500)];
    let postgres = Postgres::start("brands");
    postgres.tell(&text("reader.sql"));
    // What docs/operations.md gives a subscriber, for other names.
    node.ctl(&["add_user", "brands", "brands"]);
    let (own, read) = (r"^brands\.", format!(r"^(brands\.|{}$)", bed.config.broker.names.results));
    node.ctl(&["set_permissions", "-p", "/", "brands", own, own, &read]);
    let uri = node.uri_of("brands", "brands");
    let service = bed.start().await;
    let mut sink = Sink::start(&bed, &uri, &postgres);
    sink.follows(1).await;

    // Every outcome, some of which change: two commands end unresolved, then the truth about one comes to light.
    let (mut sent, mut heard) = (Sent::default(), Vec::new());
    bed.faults(json!([{"coupon_prefix": "LOST", "fault": {"kind": "cut_before_effect"}}]));
    for (brand, code) in [(MUCH, "LOST_FOUND"), (SOME, "LOST_FOR_GOOD")] {
        bed.issue(code, json!({"brand_id": brand}));
        let soon = (Timestamp::now() + SignedDuration::from_secs(1)).to_string();
        let mut headers = FieldTable::default();
        headers.insert(retry_message::DEADLINE.into(), AMQPValue::LongString(soon.into()));
        sent.publish(&bed, brand, code, headers).await;
    }
    sent.load(&bed, 1, MUCH, [20, 3, 2, 1]).await;
    sent.load(&bed, 1, SOME, [10, 0, 2, 0]).await;
    hear(&mut bed, &sent, &mut heard).await;
    until("the first rows", async || postgres.count("SELECT count(*) FROM events") == sent.events).await;
    assert_eq!(postgres.count("SELECT count(*) FROM outcomes WHERE outcome = 'unresolved'"), 2);
    bed.faults(json!([]));
    let number = sent.publish(&bed, MUCH, "LOST_FOUND", FieldTable::default()).await;
    sent.counts(MUCH, "redeemed", "", &number);
    sent.counts(SOME, "unresolved", "deadline_passed", "USE_LOST_FOR_GOOD");
    hear(&mut bed, &sent, &mut heard).await;
    println!("every outcome, and one of them superseded");

    // Cut off from the broker and from the database, it goes on by itself.
    until("the row that supersedes", async || postgres.count("SELECT count(*) FROM events") == sent.events)
        .await;
    node.ctl(&["close_all_user_connections", "brands", "a test"]);
    sink.follows(2).await;
    let others = format!(
        "FROM pg_stat_activity WHERE usename = '{OWNER}' AND pid <> pg_backend_pid() AND datname = 'brands'"
    );
    postgres.tell(&format!("SELECT pg_terminate_backend(pid) {others}"));
    for nth in 0..LITTLE {
        sent.load(&bed, 1, &little(nth), [2, 0, 0, 0]).await;
    }
    sink.follows(3).await;
    hear(&mut bed, &sent, &mut heard).await;
    until("the rows of little", async || postgres.count("SELECT count(*) FROM events") == sent.events).await;
    assert!(sink.program.try_wait().unwrap().is_none());
    println!("cut off twice, and back twice");

    // Killed in the middle: it has a batch in hand that is not committed, and more waits in its queue. Among them are
    // repeats, a message that is no event, and one with what PostgreSQL cannot store.
    let stored = sent.events;
    let lock = postgres.lock("events");
    sent.load(&bed, 2, MUCH, [20, 3, 2, 1]).await;
    put(&bed, "brands.events", b"{\"id\": 1}").await;
    put(&bed, "brands.events", &too_long_for_an_index()).await;
    let mut odd: Value =
        serde_json::from_str(include_str!("../docs/contract/examples/event.refused.json")).unwrap();
    odd["time"] = json!(Timestamp::now().to_string());
    odd["data"]["brand_id"] = json!(SOME);
    odd["data"]["openid"] = json!(OPENID);
    let code = odd["data"]["coupon_code"].as_str().unwrap().to_owned();
    odd["data"]["problem"]["message"] = json!(format!("{OPENID} has no {code}, and a NUL: ODD"));
    let reason = odd["data"]["problem"]["reason"].as_str().unwrap().to_owned();
    let odd_number = odd["data"]["out_request_no"].as_str().unwrap().to_owned();
    put(&bed, "brands.events", odd.to_string().replace("ODD", r"\u0000\ud800").as_bytes()).await;
    until("a batch in hand", async || {
        postgres
            .count(&format!("SELECT count(*) {others} AND wait_event_type = 'Lock' AND query LIKE 'INSERT%'"))
            == 1
    })
    .await;
    sent.load(&bed, 2, SOME, [10, 0, 2, 0]).await;
    for code in ["GOOD_120344_1_0", "GOOD_120344_2_0"] {
        sent.publish(&bed, MUCH, code, FieldTable::default()).await;
    }
    bed.publish(&json!({})).await;
    sent.events += 1;
    sent.counts("unknown", "invalid", "invalid_command", "");
    hear(&mut bed, &sent, &mut heard).await;
    sink.program.kill().unwrap();
    sink.program.wait().unwrap();
    drop(lock);
    until("the end of what it had begun", async || postgres.count(&format!("SELECT count(*) {others}")) == 0)
        .await;
    assert_eq!(postgres.count("SELECT count(*) FROM events"), stored);
    // More than it deletes at once.
    postgres.tell(
        "INSERT INTO events (id, time, outcome, brand_id, attempts) \
         SELECT gen_random_uuid(), now() - interval '401 days', 'redeemed', 'of old', 1 \
         FROM generate_series(1, 25000)",
    );
    drop(sink);
    let mut sink = Sink::start(&bed, &uri, &postgres);
    sink.follows(4).await;
    // One more behind all that: once it is stored, so is everything before it.
    sent.load(&bed, 3, SOME, [1, 0, 0, 0]).await;
    hear(&mut bed, &sent, &mut heard).await;
    let last = "SELECT count(*) FROM events WHERE out_request_no = 'USE_GOOD_666666_3_0'";
    until("the last row", async || postgres.count(last) == 1).await;
    let old = "SELECT count(*) FROM events WHERE brand_id = 'of old'";
    until("the end of what is old", async || postgres.count(old) == 0).await;
    let ids: BTreeSet<_> = heard.iter().map(|reported| reported.event["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), heard.len() - 2, "two are repeats");
    assert_eq!(
        postgres.count("SELECT count(*) FROM events"),
        ids.len() + 1,
        "and the odd one; nothing of old"
    );
    assert_eq!(postgres.count("SELECT count(*) FROM outcomes"), sent.counted.len() + 1);
    let (_connection, mut unreadable) = bed.consume_elsewhere("brands.unreadable").await;
    assert_eq!(next(&mut unreadable, "what is no event").await.data, b"{\"id\": 1}");
    assert_eq!(next(&mut unreadable, "what no index takes").await.data, too_long_for_an_index());
    let reason = match reason.as_str() {
        "no_such_coupon" => "no_such_coupon",
        "expired" => "expired",
        other => panic!("the golden refusal is of {other} now: name it here"),
    };
    sent.counts(SOME, "refused", reason, &odd_number);
    println!("killed with a batch in hand, and started again: {} rows", ids.len() + 1);

    judge(&postgres, &sent, &heard);

    // What was stored was acknowledged: nothing comes again to who reads the queue next.
    sink.program.kill().unwrap();
    sink.program.wait().unwrap();
    let (_connection, mut queue) = bed.consume_elsewhere("brands.events").await;
    put(&bed, "brands.events", b"after all").await;
    assert_eq!(next(&mut queue, "the message after all").await.data, b"after all");
    println!("{}", sink.log());
    service.stop().await;
    drop((sink, bed));
    tokio::task::spawn_blocking(move || drop(node)).await.unwrap();
}

// ---- the panels

/// A query as Grafana sends it to the database.
fn expanded(sql: &str, brands: &str, interval: &str, [from, to]: [Timestamp; 2]) -> String {
    let sql = sql.replace("${brand:sqlstring}", brands).replace("$__interval", interval);
    let (mut whole, mut rest) = (String::new(), sql.as_str());
    while let Some((before, macros)) = rest.split_once('$') {
        let (name, after) = macros.split_once('(').unwrap();
        let (arguments, after) = after.split_once(')').unwrap();
        let arguments: Vec<_> = arguments.split(',').map(str::trim).collect();
        whole += before;
        whole += &match (name, arguments.as_slice()) {
            ("__timeFilter", [column]) => format!("{column} BETWEEN '{from}' AND '{to}'"),
            ("__timeGroupAlias", [column, interval]) => {
                let seconds = match *interval {
                    "1m" => 60,
                    "1000d" => 86_400_000,
                    other => panic!("{other}"),
                };
                format!("floor(extract(epoch from {column})/{seconds})*{seconds} AS \"time\"")
            }
            (name, arguments) => panic!("{name} {arguments:?} is not known here"),
        };
        rest = after;
    }
    whole + rest
}

fn word(row: &Value, column: &str) -> String {
    row[column].as_str().unwrap_or_else(|| panic!("{column} in {row}")).to_owned()
}

fn number(row: &Value, column: &str) -> f64 {
    row[column].as_f64().unwrap_or_else(|| panic!("{column} in {row}"))
}

/// The sum of a column, by another.
fn sums(rows: &[Value], by: &str, column: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for row in rows {
        *sums.entry(word(row, by)).or_default() += row[column].as_u64().unwrap();
    }
    sums
}

fn is(left: f64, right: f64) -> bool {
    (left - right).abs() < 1e-9
}

/// Runs every query of the dashboard, for all brands and for chosen ones, and compares what it finds.
fn judge(postgres: &Postgres, sent: &Sent, heard: &[ReceivedEvent]) {
    let dashboard: Value = serde_json::from_str(&text("dashboards/brands.json")).unwrap();
    let source = dashboard["panels"][0]["datasource"].clone();
    let provisioned = text("provisioning/datasources/redeemer.yml");
    let (uid, kind) = (word(&source, "uid"), word(&source, "type"));
    assert!(provisioned.contains(&format!("uid: {uid}\n    type: {kind}\n")), "{uid}, {kind}");
    assert!(provisioned.contains(&format!("user: {READER}\n")) && provisioned.contains("database: brands\n"));
    let now = Timestamp::now();
    let (hour, tomorrow) = (SignedDuration::from_hours(1), SignedDuration::from_hours(24));
    let (range, before) = ([now - hour, now + hour], [now - tomorrow, now - hour]);

    let variable = &dashboard["templating"]["list"][0];
    let all = variable["allValue"].as_str().unwrap();
    assert_eq!((&variable["name"], &variable["datasource"]), (&json!("brand"), &source));
    let listed = expanded(variable["query"].as_str().unwrap(), "", "", range);
    let listed: Vec<_> = postgres.rows(READER, &listed).iter().map(|row| word(row, "brand_id")).collect();
    let brands = sent.by(|brand, _, _| Some(brand.to_owned()));
    assert_eq!(listed, brands.keys().cloned().collect::<Vec<_>>());

    let mut biggest: Vec<_> =
        brands.iter().map(|(brand, count)| (u64::MAX - count, brand.as_str())).collect();
    biggest.sort_unstable();
    let named: BTreeSet<_> = biggest.iter().take(10).map(|(_, brand)| *brand).collect();
    assert!(named.contains(MUCH) && named.contains(SOME) && brands.len() > 10 + 1);
    let share = |brand: &str, reason: Option<&str>| {
        let meant = |it: &str, outcome: &str, why: &str| {
            (it == brand && outcome == "refused" && reason.is_none_or(|reason| reason == why)).then_some(())
        };
        *sent.by(meant).get(&()).unwrap_or(&0) as f64 / sent.of(brand) as f64
    };

    let panels = dashboard["panels"].as_array().unwrap();
    let titles: BTreeSet<_> = panels.iter().map(|panel| word(panel, "title")).collect();
    assert!(titles.len() == panels.len() && panels.len() == 8, "{titles:?}");
    for panel in panels {
        let title = word(panel, "title");
        assert_eq!(panel["datasource"], source, "{title}");
        let [target] = panel["targets"].as_array().unwrap().as_slice() else { panic!("{title}") };
        assert_eq!(target["datasource"], source, "{title}");
        let over_time = panel["type"] == "timeseries";
        assert_eq!(target["format"], if over_time { "time_series" } else { "table" }, "{title}");
        let sql = target["rawSql"].as_str().unwrap();
        let ask = |brands: &str, interval: &str, range| {
            postgres.rows(READER, &expanded(sql, brands, interval, range))
        };
        let rows = ask(all, "1m", range);
        assert!(!rows.is_empty(), "{title}: no data");
        if over_time {
            let times: Vec<_> = rows.iter().map(|row| number(row, "time")).collect();
            assert!(times.is_sorted() && times.iter().all(|time| time % 60.0 == 0.0), "{title}: {times:?}");
        }
        assert_eq!(ask(all, "1m", before).is_empty(), title != "Unresolved now", "{title}: an hour before");
        assert!(ask("'none of them'", "1m", range).is_empty(), "{title}: for no brand");
        // All that is reported lies in one interval this long.
        let whole = || ask(all, "1000d", range);
        match title.as_str() {
            "Outcomes" => {
                let outcomes = sent.by(|_, outcome, _| Some(outcome.to_owned()));
                assert_eq!(sums(&rows, "metric", "outcomes"), outcomes);
                let of_some = sent.by(|brand, outcome, _| (brand == SOME).then(|| outcome.to_owned()));
                assert_eq!(sums(&ask(&format!("'{SOME}'"), "1m", range), "metric", "outcomes"), of_some);
                let both = format!("'{SOME}','{MUCH}'");
                let of_both =
                    sent.by(|brand, outcome, _| [SOME, MUCH].contains(&brand).then(|| outcome.to_owned()));
                assert_eq!(sums(&ask(&both, "1m", range), "metric", "outcomes"), of_both);
            }
            "Outcomes of each brand" => {
                let name =
                    |brand: &str| if named.contains(brand) { brand.to_owned() } else { "others".to_owned() };
                let outcomes = sent.by(|brand, outcome, _| Some(format!("{}: {outcome}", name(brand))));
                assert_eq!(sums(&rows, "metric", "outcomes"), outcomes);
            }
            "Brands" => {
                let found: Vec<_> = rows.iter().map(|row| word(row, "brand")).collect();
                assert_eq!(found, biggest.iter().map(|(_, brand)| *brand).collect::<Vec<_>>());
                for row in &rows {
                    let brand = word(row, "brand");
                    assert_eq!(row["commands"], sent.of(&brand), "{brand}");
                    for outcome in ["redeemed", "refused", "invalid", "unresolved"] {
                        let counts = sent.by(|it, was, _| (it == brand && was == outcome).then_some(()));
                        assert_eq!(row[outcome], *counts.get(&()).unwrap_or(&0), "{brand}: {outcome}");
                    }
                    assert!(is(number(row, "share refused"), share(&brand, None)), "{row}");
                }
            }
            "Share refused" => {
                let rows = whole();
                let found: BTreeSet<_> = rows.iter().map(|row| row["metric"].as_str().unwrap()).collect();
                assert_eq!((&found, rows.len()), (&named, named.len()));
                for row in &rows {
                    assert!(is(number(row, "refused"), share(&word(row, "metric"), None)), "{row}");
                }
            }
            "Refused, by brand and reason" => {
                let refused = sent.by(|brand, outcome, reason| {
                    (outcome == "refused").then(|| (brand.to_owned(), reason.to_owned()))
                });
                let found: BTreeMap<_, _> = rows
                    .iter()
                    .map(|row| ((word(row, "brand"), word(row, "reason")), row["refused"].as_u64().unwrap()))
                    .collect();
                assert_eq!((&found, rows.len()), (&refused, refused.len()));
                for row in &rows {
                    let share = share(&word(row, "brand"), Some(&word(row, "reason")));
                    assert!(is(number(row, "share"), share), "{row}");
                }
            }
            "From the first call to the outcome" => {
                let rows = whole();
                let found: BTreeSet<_> = rows.iter().map(|row| row["metric"].as_str().unwrap()).collect();
                assert_eq!(found, named);
                let row = rows.iter().find(|row| row["metric"] == little(0)).unwrap();
                // Of two: a twentieth of the way from the longer to the shorter.
                let mut took: Vec<_> = heard
                    .iter()
                    .filter(|reported| reported.data("/brand_id") == &json!(little(0)))
                    .map(took)
                    .collect();
                took.sort_by(f64::total_cmp);
                let [short, long] = took.as_slice() else { panic!("{took:?}") };
                let expected = long - (long - short) * 0.05;
                assert!((number(row, "seconds") - expected).abs() < 1e-5, "{row}, {expected}");
            }
            "Unresolved now" => {
                assert_eq!(sums(&rows, "brand", "unresolved"), [(SOME.to_owned(), 1)].into());
                let lost =
                    heard.iter().find(|reported| reported.data("/coupon_code") == "LOST_FOR_GOOD").unwrap();
                let reported: Timestamp = word(&lost.event, "time").parse().unwrap();
                let oldest: Timestamp = word(&rows[0], "oldest").parse().unwrap();
                assert!(
                    reported.duration_since(oldest).abs() < SignedDuration::from_millis(1),
                    "{reported} {oldest}"
                );
            }
            "Last refusals" => {
                let refused = |(brand, outcome, reason, number): &(String, &str, &str, String)| {
                    (*outcome == "refused").then(|| [brand.clone(), (*reason).to_owned(), number.clone()])
                };
                let refused: BTreeSet<_> = sent.counted.iter().filter_map(refused).collect();
                let reported = |row: &Value| ["brand", "reason", "number"].map(|column| word(row, column));
                assert_eq!(rows.iter().map(reported).collect::<BTreeSet<_>>(), refused);
                for row in &rows {
                    assert!(number(row, "status") >= 400.0 && !word(row, "message").is_empty(), "{row}");
                    assert!(!word(row, "code").is_empty(), "{row}");
                }
                assert!(rows.iter().any(|row| row["message"] == "… has no …, and a NUL: ?"), "{rows:?}");
            }
            other => panic!("{other:?} is judged by nobody"),
        }
        println!("{title}: {} rows", rows.len());
    }

    // Who looks at dashboards sees no more than they show, and no user is in the table at all.
    let complaint = postgres.try_ask(READER, "SELECT coupon_code FROM events").unwrap_err();
    assert!(complaint.contains("permission denied"), "{complaint}");
    // An id is made of the code and of what the view shows: a short code could be guessed.
    let complaint = postgres.try_ask(READER, "SELECT id FROM outcomes").unwrap_err();
    assert!(complaint.contains("does not exist"), "{complaint}");
    let users = format!("SELECT count(*) FROM events WHERE events::text LIKE '%{OPENID}%'");
    assert_eq!(postgres.count(&users), 0);
    assert_eq!(postgres.count("SELECT count(*) FROM events WHERE events::text LIKE '%GOOD_120344_1_0%'"), 1);
}

/// Seconds from the oldest call that an event remembers to its outcome.
fn took(reported: &ReceivedEvent) -> f64 {
    let at = |text: &Value| text.as_str().unwrap().parse::<Timestamp>().unwrap();
    at(&reported.event["time"]).duration_since(at(reported.data("/evidence/0/at"))).as_secs_f64()
}
