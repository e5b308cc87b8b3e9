//! The contract for machines: `docs/contract` is what the program would write, schema and decoder agree,
//! the golden messages are real ones, and nothing breaks those who were built for `v1`.
//!
//! `UPDATE=1 cargo test --test contract` rewrites `docs/contract`. The baseline in `tests/contract/v1` is what
//! others may have built for: replace it by hand, with a release.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]

#[path = "contract/compat.rs"]
mod compat;
#[path = "contract/golden.rs"]
mod golden;
#[path = "contract/members.rs"]
mod members;
#[path = "support/presence.rs"]
mod presence;

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum as _;
use jsonschema::Validator;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config as Runs, TestRunner};
use redeemer::cli::schema::Document;
use redeemer::config::Config;
use redeemer::wire::command::{COMMAND_BYTES_MAX, decode};
use redeemer::wire::schema::{self, Dialect};
use rstest::rstest;
use serde_json::{Value, json};

use compat::{Role, breaks};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn validator(schema: &Value) -> Validator {
    jsonschema::options().should_validate_formats(true).build(schema).unwrap()
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn check_file(path: &Path, now: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, now).unwrap();
    }
    let written = fs::read_to_string(path).unwrap_or_default();
    assert!(written == now, "{} is stale; run: UPDATE=1 cargo test --test contract", path.display());
}

// ---- what is checked in

#[test]
fn the_documents_checked_in_are_what_the_program_writes() {
    let folder = root().join("docs/contract");
    let mut known = vec!["examples".to_owned()];
    for document in Document::value_variants() {
        let now = document.text(&Config::default()).unwrap();
        // One of them embeds the golden messages: a change of theirs needs a second build.
        match document {
            Document::Coupon => check_file(&root().join("docs/coupon.md"), &now),
            Document::CouponChinese => check_file(&root().join("docs/zh-CN/coupon.md"), &now),
            document => {
                check_file(&folder.join(document.file()), &now);
                known.push(document.file().to_owned());
            }
        }
    }
    let there = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    for name in there {
        assert!(known.contains(&name), "{name} is not a document of `redeemer schema`");
    }
}

#[test]
fn the_command_line_prints_one_document_or_writes_them_all() {
    let redeemer = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_redeemer"))
            .env_remove("REDEEMER_CONFIG")
            .args(arguments)
            .output()
            .unwrap()
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("schema-{}", std::process::id()));
    let written = redeemer(&["schema", "--write", folder.to_str().unwrap()]);
    assert_eq!(written.status.code(), Some(0), "{written:?}");
    for document in Document::value_variants() {
        let now = document.text(&Config::default()).unwrap();
        assert_eq!(fs::read_to_string(folder.join(document.file())).unwrap(), now);
        let word = document.to_possible_value().unwrap();
        assert_eq!(redeemer(&["schema", word.get_name()]).stdout, now.as_bytes());
    }
    fs::remove_dir_all(folder).unwrap();
    for wrong in [&["schema"][..], &["schema", "event", "--write", "x"], &["schema", "evnt"]] {
        assert_eq!(redeemer(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn the_golden_events_are_what_the_program_writes() {
    for (name, now) in golden::events() {
        check_file(&root().join("docs/contract/examples").join(name), &now);
    }
}

#[test]
fn every_golden_message_keeps_its_schema_in_both_dialects() {
    let mut seen = 0;
    for dialect in [Dialect::Draft2020, Dialect::Draft07] {
        let (command, event, audit, console) = (
            validator(&schema::command(dialect)),
            validator(&schema::event(dialect)),
            validator(&schema::audit(dialect)),
            validator(&schema::console(dialect)),
        );
        for entry in fs::read_dir(root().join("docs/contract/examples")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let value = parsed(&fs::read_to_string(&path).unwrap());
            let schema = match name.split('.').next().unwrap() {
                "command" => &command,
                "event" => &event,
                "audit" => &audit,
                "console" => &console,
                _ => panic!("{name} is a message of no kind"),
            };
            let faults: Vec<_> = schema.iter_errors(&value).map(|fault| fault.to_string()).collect();
            assert_eq!(faults.is_empty(), name != "command.invalid.json", "{name}: {faults:?}");
            seen += 1;
        }
    }
    assert_eq!(seen, 2 * (golden::COMMANDS.len() + 1 + golden::events().len()));
}

#[test]
fn the_documents_show_the_golden_messages() {
    let shown = |page: &str| {
        let text = fs::read_to_string(root().join(page)).unwrap();
        let fences = text.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
        fences.map(parsed).collect::<Vec<_>>()
    };
    let golden =
        |name: &str| parsed(&fs::read_to_string(root().join("docs/contract/examples").join(name)).unwrap());
    assert_eq!(shown("README.md"), [golden("command.nested.json"), golden("event.redeemed.json")]);
    let contract = [
        "command.flat.json",
        "command.pay-score.json",
        "event.redeemed.single.json",
        "event.redeemed.bundle.json",
        "event.redeemed.sequential.json",
        "event.refused.json",
    ];
    assert_eq!(shown("docs/contract.md"), contract.map(golden));
}

/// Ways to break an event; the schema must reject each.
#[rstest]
#[case("/specversion", json!("1.1"))]
#[case("/id", json!("335e2c98-517d-4e1a-9cda-cbee66bf8788"))]
#[case("/source", json!(""))]
#[case("/type", json!("redemption.refused.v1"))]
#[case("/subject", json!("a/b"))]
#[case("/time", json!("2026-03-05T12:30:45+08:00"))]
#[case("/time", json!("yesterdayZ"))]
#[case("/data/outcome", json!("refused"))]
#[case("/data/outcome", json!("done"))]
#[case("/data/openid", Value::Null)]
#[case("/data/coupon", Value::Null)]
#[case("/data/coupon_state", Value::Null)]
#[case("/data/problem", json!({}))]
#[case("/data/established_by", json!("deadline"))]
#[case("/data/attempts", json!(-1))]
#[case("/data/evidence/0/status", json!(99))]
#[case("/data/evidence/0/operation", json!("ask"))]
#[case("/data/evidence/0/verdict", json!("fine"))]
#[case("/data/evidence/0/at", json!("2026"))]
#[case("/data/evidence", json!([Value::Null]))]
fn a_broken_event_is_rejected(#[case] pointer: &str, #[case] value: Value) {
    for dialect in [Dialect::Draft2020, Dialect::Draft07] {
        let schema = validator(&schema::event(dialect));
        let (_, text) = &golden::events()[0];
        let mut event = parsed(text);
        // What passes through from the provider, and what a later version adds, is no fault.
        event["data"]["coupon"]["surprise"] = json!([1]);
        event["data"]["evidence"][0]["surprise"] = json!({});
        event["surprise"] = json!(true);
        assert!(schema.is_valid(&event));
        *event.pointer_mut(pointer).unwrap() = value.clone();
        assert!(!schema.is_valid(&event), "{pointer} = {value}");
    }
}

#[test]
fn every_field_of_an_event_is_required() {
    let schema = validator(&schema::event(Dialect::Draft2020));
    let (_, text) = &golden::events()[1];
    let whole = parsed(text);
    for place in ["", "/data", "/data/problem", "/data/evidence/0"] {
        let fields: Vec<_> = whole.pointer(place).unwrap().as_object().unwrap().keys().cloned().collect();
        for field in fields {
            let mut lacking = whole.clone();
            lacking.pointer_mut(place).unwrap().as_object_mut().unwrap().remove(&field);
            assert_eq!(schema.is_valid(&lacking), field == "subject", "{place}/{field}");
        }
    }
}

// ---- the AsyncAPI document

/// The parser judges the document, but not its examples.
#[test]
fn every_example_of_the_asyncapi_document_keeps_its_schema() {
    let document = parsed(&Document::Asyncapi.text(&Config::default()).unwrap());
    let mut seen = 0;
    for (name, message) in document["components"]["messages"].as_object().unwrap() {
        let check = |part: &str, value: &Value| {
            let schema = validator(&message[part]);
            let faults: Vec<_> = schema.iter_errors(value).map(|fault| fault.to_string()).collect();
            assert!(faults.is_empty(), "{name}: {part}: {faults:?}");
        };
        for example in message["examples"].as_array().unwrap() {
            check("payload", &example["payload"]);
            if example.get("headers").is_some() {
                check("headers", &example["headers"]);
            }
            seen += 1;
        }
    }
    assert_eq!(seen, golden::COMMANDS.len() + golden::events().len());
}

#[test]
fn the_asyncapi_document_follows_the_topology() {
    let text = "[broker]\ndelivery_limit = 7\n[retry]\ndelays = [\"9s\"]\n[broker.names]\ncommands = \"c1\"\n\
                retry = \"r1\"\nresults = \"e1\"\nunrouted = \"u1\"\nparked = \"p1\"\n";
    let config = redeemer::config::parse(text, "test", std::iter::empty()).unwrap();
    let document = parsed(&Document::Asyncapi.text(&config).unwrap());
    let at = |pointer: &str| document.pointer(pointer).unwrap_or(&Value::Null).clone();
    assert_eq!(at("/channels/commands/bindings/amqp/exchange/name"), "c1");
    assert_eq!(at("/channels/results/bindings/amqp/exchange/name"), "e1");
    assert_eq!(at("/channels/results/bindings/amqp/exchange/type"), "topic");
    assert_eq!(at("/channels/parked/bindings/amqp/queue/name"), "p1");
    assert_eq!(at("/channels/command_queue/x-queue-arguments/x-delivery-limit"), 7);
    assert_eq!(at("/x-topology/delayQueues"), json!(["r1.9s"]));
    assert_eq!(at("/x-topology/objects").as_array().unwrap().len(), config.topology().plan().len());
    assert!(!document.to_string().contains("redemption.commands"), "a default name is left");
}

// ---- schema and decoder

/// What the schema accepts and the decoder rejects, if both read the same JSON value.
fn beyond_the_schema(command: &Value, pointer: &str) -> bool {
    let value = command.pointer(pointer).unwrap_or(&Value::Null);
    let field = pointer.rsplit('/').next().unwrap();
    match field {
        // The calendar: a shape is not a date.
        "use_time" => value.is_string(),
        // A whole number that is not spelled as one: 1.0, 1e3, -0.
        "saved_amount" | "sequential_coupon_index" => {
            value.as_f64().is_some_and(|x| x.fract() == 0.0) && value.is_f64()
        }
        _ => false,
    }
}

/// Both must say the same, but for [`beyond_the_schema`]. Gives what the decoder says.
fn agree(schemas: &[Validator], command: &Value) -> bool {
    let text = command.to_string();
    let decoded = decode(text.as_bytes());
    for schema in schemas {
        match (schema.is_valid(command), &decoded) {
            (true, Ok(_)) | (false, Err(_)) => {}
            (true, Err(rejected)) => {
                for fault in &rejected.faults {
                    let excused = beyond_the_schema(command, &fault.pointer);
                    assert!(excused, "only the decoder refuses {}: {}\n{text}", fault.pointer, fault.problem);
                }
            }
            (false, Ok(_)) => {
                let faults: Vec<_> = schema.iter_errors(command).map(|fault| fault.to_string()).collect();
                panic!("only the schema refuses {text}\n{faults:?}");
            }
        }
    }
    decoded.is_ok()
}

fn command_schemas() -> [Validator; 2] {
    [Dialect::Draft2020, Dialect::Draft07].map(|dialect| validator(&schema::command(dialect)))
}

const FIELDS: [&str; 20] = [
    "openid",
    "coupon_code",
    "json",
    "brand_id",
    "product_coupon_id",
    "stock_id",
    "appid",
    "use_time",
    "out_request_no",
    "associated_order_info",
    "associated_pay_score_order_info",
    "store_id",
    "saved_amount",
    "sequential_coupon_index",
    "transaction_id",
    "out_trade_no",
    "order_id",
    "out_order_no",
    "mchid",
    "sub_mchid",
];

fn values() -> impl Strategy<Value = Value> {
    let lengths = select(vec![0_usize, 1, 5, 6, 32, 33, 40, 41, 64, 65, 128, 129]);
    let alphabet = select(vec!["7", "a", "_", "-", "|", "*", "é", "/", " ", "\n", "\u{0}"]);
    let numbers = select(vec![0_u64, 1, 999, 1_000, 10_000_000_000, 10_000_000_001, u64::MAX]);
    let floats = select(vec![0.0, -0.0, 1.0, 1.5, 1e3, 1e10, 1e11, -1.0, 1e300]);
    let order = select(vec![
        json!({"transaction_id": "1"}),
        json!({"order_id": "1"}),
        json!({"out_trade_no": "1", "mchid": "1"}),
        json!({"out_order_no": "1", "mchid": "1", "sub_mchid": "1"}),
        json!({"out_order_no": "1"}),
        json!({"mchid": "1"}),
        json!({}),
    ]);
    prop_oneof![
        1 => Just(Value::Null),
        1 => Just(json!(true)),
        1 => Just(json!(-1)),
        1 => Just(json!([])),
        2 => floats.prop_map(|float| json!(float)),
        2 => numbers.prop_map(|number| json!(number)),
        3 => order,
        4 => (lengths, alphabet).prop_map(|(length, letter)| json!(letter.repeat(length))),
        4 => times().prop_map(Value::String),
    ]
}

/// Times around the edges of the calendar and of the shape.
fn times() -> impl Strategy<Value = String> {
    let day = (select(vec![0, 1, 1970, 2024, 2025, 9999]), 0..14, select(vec![0, 1, 28, 29, 30, 31, 32]));
    let minute = (select(vec![0, 12, 23, 24, 25]), select(vec![0, 59, 60]));
    let second = select(vec![
        "",
        ":",
        ":00",
        ":59",
        ":60",
        ":61",
        ":5",
        ":00.",
        ":00.1",
        ":00.123456789",
        ":00.1234567890",
    ]);
    let zone = select(vec![
        "Z", "z", "+08:00", "-23:59", "+24:00", "+25:59", "-25:59", "+26:00", "+0800", "+08:60", "", " Z",
    ]);
    (day, minute, second, zone).prop_map(|((year, month, day), (hour, minute), second, zone)| {
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}{second}{zone}")
    })
}

/// One thing done to a command: at the `place`th of its objects, set, remove or move a field.
#[derive(Debug, Clone)]
enum Change {
    Set(Index, &'static str, Value),
    Replace(Index, Index, Value),
    Remove(Index, Index),
    Rename(Index, Index, &'static str),
}

fn changes() -> impl Strategy<Value = Change> {
    let field = || prop_oneof![9 => select(FIELDS.to_vec()), 1 => Just("surprise")];
    let (place, which) = (any::<Index>, any::<Index>);
    prop_oneof![
        (place(), field(), values()).prop_map(|(place, field, value)| Change::Set(place, field, value)),
        (place(), which(), values()).prop_map(|(place, which, value)| Change::Replace(place, which, value)),
        (place(), which()).prop_map(|(place, which)| Change::Remove(place, which)),
        (place(), which(), field()).prop_map(|(place, which, field)| Change::Rename(place, which, field)),
    ]
}

fn objects(value: &Value, path: &str, found: &mut Vec<String>) {
    if let Value::Object(members) = value {
        found.push(path.to_owned());
        for (name, member) in members {
            objects(member, &format!("{path}/{name}"), found);
        }
    }
}

fn change(command: &mut Value, change: &Change) {
    let mut places = Vec::new();
    objects(command, "", &mut places);
    let (Change::Set(place, ..)
    | Change::Replace(place, ..)
    | Change::Remove(place, _)
    | Change::Rename(place, ..)) = change;
    let place = &places[place.index(places.len())];
    let object = command.pointer_mut(place).unwrap().as_object_mut().unwrap();
    let nth = |which: &Index| object.keys().nth(which.index(object.len().max(1))).cloned();
    match change {
        Change::Set(_, field, value) => {
            object.insert((*field).to_owned(), value.clone());
        }
        Change::Replace(_, which, value) => {
            if let Some(name) = nth(which) {
                object.insert(name, value.clone());
            }
        }
        Change::Remove(_, which) => {
            if let Some(name) = nth(which) {
                object.remove(&name);
            }
        }
        Change::Rename(_, which, field) => {
            if let Some(name) = nth(which) {
                let value = object.remove(&name).unwrap();
                object.insert((*field).to_owned(), value);
            }
        }
    }
}

#[test]
fn schema_and_decoder_agree_on_every_changed_command() {
    let schemas = command_schemas();
    let commands: Vec<Value> = golden::COMMANDS.iter().map(|(_, text)| parsed(text)).collect();
    let (taken, refused) = (Cell::new(0), Cell::new(0));
    let strategy = (select(commands), prop::collection::vec(changes(), 0..4));
    let mut runner = TestRunner::new(Runs { cases: 6_000, failure_persistence: None, ..Runs::default() });
    runner
        .run(&strategy, |(mut command, done)| {
            for one in &done {
                change(&mut command, one);
            }
            let counter = if agree(&schemas, &command) { &taken } else { &refused };
            counter.set(counter.get() + 1);
            Ok(())
        })
        .unwrap();
    let (taken, refused) = (taken.get(), refused.get());
    assert!(
        taken > 1_000 && refused > 1_000,
        "{taken} were taken, {refused} refused: one side is hardly tried"
    );
}

#[test]
fn schema_and_decoder_agree_on_times() {
    let schemas = command_schemas();
    let taken = Cell::new(0);
    let mut runner = TestRunner::new(Runs { cases: 6_000, failure_persistence: None, ..Runs::default() });
    runner
        .run(&times(), |time| {
            let mut command = parsed(golden::COMMANDS[1].1);
            command["use_time"] = json!(time);
            taken.set(taken.get() + u32::from(agree(&schemas, &command)));
            Ok(())
        })
        .unwrap();
    assert!(taken.get() > 100, "{}", taken.get());
}

#[test]
fn schema_and_decoder_agree_on_every_value_in_every_field() {
    let schemas = command_schemas();
    let lengths = [0, 1, 5, 6, 32, 33, 40, 41, 64, 65, 128, 129].map(|length| json!("7".repeat(length)));
    let values =
        [Value::Null, json!(true), json!(-1), json!(0), json!(1.5), json!([]), json!({}), json!("é")];
    for (_, text) in golden::COMMANDS {
        let whole = parsed(text);
        let mut places = Vec::new();
        objects(&whole, "", &mut places);
        for (place, field) in places.iter().flat_map(|place| FIELDS.map(|field| (place, field))) {
            for value in lengths.iter().chain(&values) {
                let mut command = whole.clone();
                command.pointer_mut(place).unwrap()[field] = value.clone();
                agree(&schemas, &command);
            }
            let mut command = whole.clone();
            command.pointer_mut(place).unwrap().as_object_mut().unwrap().remove(field);
            agree(&schemas, &command);
        }
    }
}

/// What JSON Schema cannot say, each by name: the schema accepts these and the decoder does not.
#[rstest]
#[case::a_day_that_is_not_in_the_calendar("2025-07-24T00:00:00+08:00", "2025-02-30T00:00:00+08:00")]
#[case::a_whole_number_with_a_fraction("\"sequential_coupon_index\": 0", "\"sequential_coupon_index\": 0.0")]
#[case::a_whole_number_with_an_exponent("\"sequential_coupon_index\": 0", "\"sequential_coupon_index\": 1e2")]
#[case::a_negative_nothing("\"sequential_coupon_index\": 0", "\"sequential_coupon_index\": -0")]
#[case::a_field_given_twice("\"brand_id\"", "\"brand_id\": \"120344\", \"brand_id\"")]
#[case::more_than_64_kib("{\n", &format!("{{{}\n", " ".repeat(COMMAND_BYTES_MAX)))]
fn beyond_what_a_schema_can_say(#[case] from: &str, #[case] to: &str) {
    let (_, text) = golden::COMMANDS[1];
    assert!(text.contains(from), "{from}");
    let altered = text.replacen(from, to, 1);
    assert!(decode(text.as_bytes()).is_ok());
    assert!(decode(altered.as_bytes()).is_err());
    for schema in command_schemas() {
        assert!(schema.is_valid(&parsed(&altered)));
    }
}

// ---- compatibility

#[test]
fn nothing_breaks_those_who_were_built_for_v1() {
    for (document, role, now) in [
        (Document::Command, Role::Command, schema::command(Dialect::Draft2020)),
        (Document::Event, Role::Event, schema::event(Dialect::Draft2020)),
        (Document::Audit, Role::Event, schema::audit(Dialect::Draft2020)),
        (Document::Console, Role::Event, schema::console(Dialect::Draft2020)),
    ] {
        let path: PathBuf = root().join("tests/contract/v1").join(document.file());
        let released = parsed(&fs::read_to_string(&path).unwrap());
        let broken = breaks(role, &released, &now);
        assert!(broken.is_empty(), "{} breaks v1:\n{}", document.file(), broken.join("\n"));
    }
}

fn object(properties: Value, required: Value) -> Value {
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// One case for each rule: role, before, after, and the reported break; empty if the change is allowed.
#[rstest]
// Both: fields.
#[case::a_field_of_a_command_goes(Role::Command, object(json!({"a": {}, "b": {}}), json!([])), object(json!({"a": {}}), json!([])), "the field b is gone")]
#[case::a_field_of_an_event_goes(Role::Event, object(json!({"a": {}, "b": {}}), json!([])), object(json!({"a": {}}), json!([])), "the field b is gone")]
#[case::a_command_gains_an_optional_field(Role::Command, object(json!({"a": {}}), json!([])), object(json!({"a": {}, "b": {}}), json!([])), "")]
#[case::an_event_gains_a_field(Role::Event, object(json!({"a": {}}), json!(["a"])), object(json!({"a": {}, "b": {}}), json!(["a", "b"])), "")]
#[case::a_command_wants_a_field_more(Role::Command, object(json!({"a": {}}), json!([])), object(json!({"a": {}}), json!(["a"])), "a is required now")]
#[case::a_command_wants_a_field_less(Role::Command, object(json!({"a": {}}), json!(["a"])), object(json!({"a": {}}), json!([])), "")]
#[case::an_event_may_lack_a_field(Role::Event, object(json!({"a": {}}), json!(["a"])), object(json!({"a": {}}), json!([])), "a may be absent now")]
#[case::a_field_deep_inside_goes(Role::Event, json!({"properties": {"a": {"items": {"properties": {"b": {}}}}}}), json!({"properties": {"a": {"items": {"properties": {}}}}}), "/a/items: the field b is gone")]
#[case::a_command_grows_strict(Role::Command, json!({"type": "object"}), json!({"type": "object", "additionalProperties": false}), "unknown fields")]
#[case::a_command_grows_lax(Role::Command, json!({"additionalProperties": false}), json!({}), "")]
#[case::an_event_was_strict(Role::Event, json!({"additionalProperties": false}), json!({}), "unknown fields")]
// Types.
#[case::another_type_on_a_command(Role::Command, json!({"type": "string"}), json!({"type": "integer"}), "type was")]
#[case::a_further_type_on_a_command(Role::Command, json!({"type": "string"}), json!({"type": ["string", "integer"]}), "")]
#[case::a_type_less_on_a_command(Role::Command, json!({"type": ["string", "null"]}), json!({"type": "string"}), "type was")]
#[case::a_type_where_there_was_none(Role::Command, json!({}), json!({"type": "string"}), "type was")]
#[case::an_event_may_be_null_now(Role::Event, json!({"type": "string"}), json!({"type": ["string", "null"]}), "type was")]
#[case::an_event_is_null_no_more(Role::Event, json!({"type": ["string", "null"]}), json!({"type": "string"}), "")]
#[case::an_event_of_any_type(Role::Event, json!({"type": "string"}), json!({}), "type was")]
// Words.
#[case::a_word_less_on_a_command(Role::Command, json!({"enum": ["x", "y"]}), json!({"enum": ["x"]}), "the word y is gone")]
#[case::a_word_more_on_a_command(Role::Command, json!({"enum": ["x"]}), json!({"enum": ["x", "y"]}), "")]
#[case::words_where_all_were_free(Role::Command, json!({}), json!({"enum": ["x"]}), "enum was absent")]
#[case::a_word_less_on_an_event(Role::Event, json!({"properties": {"reason": {"enum": ["x", "y"]}}}), json!({"properties": {"reason": {"enum": ["x"]}}}), "/reason: the word y is gone")]
#[case::a_reason_more(Role::Event, json!({"properties": {"reason": {"enum": ["x"]}}}), json!({"properties": {"reason": {"enum": ["x", "y"]}}}), "")]
#[case::an_outcome_more(Role::Event, json!({"properties": {"outcome": {"enum": ["x"]}}}), json!({"properties": {"outcome": {"enum": ["x", "y"]}}}), "closed list")]
#[case::an_event_of_free_words(Role::Event, json!({"enum": ["x"]}), json!({}), "is absent")]
// Bounds and patterns.
#[case::a_shorter_command(Role::Command, json!({"maxLength": 40}), json!({"maxLength": 32}), "maxLength was 40, is 32")]
#[case::a_longer_command(Role::Command, json!({"maxLength": 40}), json!({"maxLength": 64}), "")]
#[case::a_command_without_a_bound(Role::Command, json!({"maxLength": 40}), json!({}), "")]
#[case::a_command_with_a_new_bound(Role::Command, json!({}), json!({"minimum": 1}), "minimum was absent")]
#[case::a_higher_floor(Role::Command, json!({"minLength": 1}), json!({"minLength": 2}), "minLength was 1")]
#[case::a_lower_floor(Role::Command, json!({"minimum": 1}), json!({"minimum": 0}), "")]
#[case::a_longer_event(Role::Event, json!({"maxItems": 16}), json!({"maxItems": 32}), "maxItems was 16")]
#[case::a_shorter_event(Role::Event, json!({"maxItems": 16}), json!({"maxItems": 8}), "")]
#[case::an_event_without_a_bound(Role::Event, json!({"maximum": 9}), json!({}), "maximum was 9")]
#[case::a_narrower_pattern(Role::Command, json!({"pattern": "^[a-z]+$"}), json!({"pattern": "^[a-y]+$"}), "pattern was")]
#[case::a_pattern_more_on_a_command(Role::Command, json!({}), json!({"pattern": "x"}), "pattern was absent")]
#[case::a_pattern_less_on_a_command(Role::Command, json!({"pattern": "x"}), json!({}), "")]
#[case::a_pattern_less_on_an_event(Role::Event, json!({"pattern": "x"}), json!({}), "pattern was")]
#[case::another_constant(Role::Event, json!({"const": "1.0"}), json!({"const": "2.0"}), "const was")]
#[case::another_format(Role::Event, json!({"format": "date-time"}), json!({"format": "date"}), "format was")]
// Rules that go together.
#[case::a_spelling_more(Role::Command, json!({"anyOf": [{}]}), json!({"anyOf": [{}, {}]}), "")]
#[case::a_spelling_less(Role::Command, json!({"anyOf": [{}, {}]}), json!({"anyOf": [{}]}), "had 2 schemas, has 1")]
#[case::an_exclusive_choice_more(Role::Command, json!({"oneOf": [{}]}), json!({"oneOf": [{}, {}]}), "had 1 schemas")]
#[case::a_choice_that_wants_more(Role::Command, json!({"anyOf": [{}]}), json!({"anyOf": [{"required": ["a"]}]}), "a is required now")]
#[case::a_field_that_wants_another(Role::Command, json!({}), json!({"dependentRequired": {"a": ["b"]}}), "dependentRequired was absent")]
#[case::a_rule_more_on_an_event(Role::Event, json!({"allOf": [{}]}), json!({"allOf": [{}, {}]}), "")]
#[case::a_rule_less_on_an_event(Role::Event, json!({"allOf": [{}, {}]}), json!({"allOf": [{}]}), "had 2 schemas")]
#[case::another_condition(Role::Event, json!({"if": {"const": 1}}), json!({"if": {"const": 2}}), "if was")]
#[case::a_weaker_consequence(Role::Event, json!({"then": {"type": "null"}}), json!({"then": {}}), "/then: type was")]
// Words for people.
#[case::other_words(Role::Command, json!({"title": "a", "description": "a", "$id": "a"}), json!({"title": "b"}), "")]
fn a_breaking_change_is_reported_and_no_other(
    #[case] role: Role,
    #[case] old: Value,
    #[case] new: Value,
    #[case] wanted: &str,
) {
    let reported = breaks(role, &old, &new);
    assert_eq!(breaks(role, &old, &old), Vec::<String>::new());
    match wanted {
        "" => assert_eq!(reported, Vec::<String>::new()),
        wanted => assert!(matches!(&reported[..], [one] if one.contains(wanted)), "{reported:?}"),
    }
}
