//! The table of the coupon's members, compared with the requester's list, and the schema made from it.

use redeemer::cli::schema::Document;
use redeemer::wire::coupon::{Kind, MEMBERS, Member, Revision};
use redeemer::wire::schema::{self, Dialect};
use rstest::rstest;
use serde_json::{Value, json};

use crate::{golden, parsed, presence, root, validator};

/// Name, type and Chinese meaning with its words, a member a line, as the requester's document has them.
const REQUESTED: &str = include_str!("seed-members.txt");

/// A member as the requester's list writes it.
fn line(member: &Member) -> String {
    let words: Vec<_> =
        member.words.iter().filter(|word| word.revision != Revision::New).map(|word| word.word).collect();
    let list = match words.is_empty() {
        true => String::new(),
        false => format!("{} 枚举值之一", words.join(" | ")),
    };
    format!("{}\t{}\t{}{list}", member.name(), member.kind.json_type(), member.chinese)
}

#[test]
fn the_table_is_the_requested_list_and_what_is_newer() {
    let requested: Vec<_> = REQUESTED.lines().collect();
    assert_eq!(requested.len(), 174);
    let ours: Vec<_> = MEMBERS.iter().filter(|member| member.revision != Revision::New).map(line).collect();
    let missing: Vec<_> = requested.iter().filter(|line| !ours.iter().any(|ours| ours == **line)).collect();
    let surplus: Vec<_> = ours.iter().filter(|line| !requested.contains(&line.as_str())).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "missing: {missing:#?}\nsurplus: {surplus:#?}");
    assert_eq!(ours, requested, "the order, too, and how often each is there");
}

#[test]
fn each_member_stands_in_an_object_and_once() {
    let paths: Vec<_> = MEMBERS.iter().map(|member| member.path).collect();
    for (place, member) in MEMBERS.iter().enumerate() {
        assert!(!paths[..place].contains(&member.path), "{} twice", member.path);
        assert!(!member.english.is_empty() && !member.chinese.is_empty(), "{}", member.path);
        if let Some((parent, _)) = member.path.rsplit_once('.') {
            let (parent, kind) = match parent.strip_suffix("[]") {
                Some(list) => (list, Kind::Objects),
                None => (parent, Kind::Object),
            };
            let holder = MEMBERS[..place].iter().find(|member| member.path == parent);
            assert_eq!(holder.map(|holder| holder.kind), Some(kind), "{}", member.path);
        }
        let (english, chinese) = member.when.words();
        assert!(!english.is_empty() && !chinese.is_empty(), "{}", member.path);
    }
}

fn coupon_schema(dialect: Dialect) -> Value {
    schema::event(dialect).pointer("/properties/data/properties/coupon").unwrap().clone()
}

/// Every path that a schema describes, lists marked.
fn described(schema: &Value, path: &str, found: &mut Vec<String>) {
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        found.push(path.clone());
        described(member, &path, found);
        described(&member["items"], &format!("{path}[]"), found);
    }
}

#[test]
fn both_schemas_describe_every_member() {
    for dialect in [Dialect::Draft2020, Dialect::Draft07] {
        let mut found = Vec::new();
        described(&coupon_schema(dialect), "", &mut found);
        let mut paths: Vec<_> = MEMBERS.iter().map(|member| member.path.to_owned()).collect();
        found.sort();
        paths.sort();
        assert_eq!(found, paths, "{dialect:?}");
    }
}

/// Type generators take their names from these titles.
#[test]
fn each_object_has_a_title_of_its_own() {
    fn titles(schema: &Value, found: &mut Vec<String>) {
        if schema.get("properties").is_some() {
            found.push(schema["title"].as_str().unwrap().to_owned());
        }
        for member in schema["properties"].as_object().into_iter().flat_map(|members| members.values()) {
            titles(member, found);
            titles(&member["items"], found);
        }
    }
    let mut found = Vec::new();
    titles(&coupon_schema(Dialect::Draft2020), &mut found);
    let objects = MEMBERS.iter().filter(|member| matches!(member.kind, Kind::Object | Kind::Objects)).count();
    assert_eq!(found.len(), objects + 1);
    let distinct: std::collections::BTreeSet<_> = found.iter().collect();
    assert_eq!(distinct.len(), found.len(), "{found:?}");
    for name in ["Coupon", "Stock", "SingleUsageDetail", "SingleUsageRuleCouponAvailablePeriod"] {
        assert!(distinct.contains(&name.to_owned()), "{name}: {found:?}");
    }
}

/// A minimal entity with a member at a path.
fn entity_with(path: &str, value: Value) -> Value {
    let mut value = value;
    for step in path.split('.').rev() {
        value = match step.strip_suffix("[]") {
            Some(name) => json!({ name: [value] }),
            None => json!({ step: value }),
        };
    }
    value["coupon_code"] = value.get("coupon_code").cloned().unwrap_or(json!("C1"));
    value["coupon_state"] = value.get("coupon_state").cloned().unwrap_or(json!("USED"));
    value
}

fn good_and_bad(kind: Kind) -> (Vec<Value>, Value) {
    match kind {
        Kind::Time => {
            let times = ["2026-01-01T00:00+08:00", "2026-01-01T00:00:00+08:00", "2026-01-01T00:00:00.120Z"];
            (times.map(|time| json!(time)).to_vec(), json!(1))
        }
        Kind::Text | Kind::Url => (vec![json!(""), json!("A_NEW_WORD")], json!(1)),
        Kind::Boolean => (vec![json!(true)], json!("true")),
        Kind::Object => (vec![json!({}), json!({ "surprise": [null] })], json!([])),
        Kind::Objects => (vec![json!([]), json!([{ "surprise": 1 }])], json!({})),
        Kind::Texts | Kind::Urls => (vec![json!([]), json!(["A_NEW_WORD"])], json!("A_NEW_WORD")),
        _ => {
            let numbers = [json!(0), json!(-1), json!(9_007_199_254_740_993_u64), json!(u64::MAX)];
            (numbers.to_vec(), json!("1"))
        }
    }
}

#[test]
fn the_schema_is_open_and_says_the_documented_types() {
    for dialect in [Dialect::Draft2020, Dialect::Draft07] {
        let schema = validator(&coupon_schema(dialect));
        for member in MEMBERS {
            let (good, bad) = good_and_bad(member.kind);
            for value in good {
                assert!(
                    schema.is_valid(&entity_with(member.path, value.clone())),
                    "{}: {value}",
                    member.path
                );
            }
            assert!(!schema.is_valid(&entity_with(member.path, bad.clone())), "{}: {bad}", member.path);
            let is_required = ["coupon_code", "coupon_state"].contains(&member.path);
            let null = entity_with(member.path, Value::Null);
            assert_eq!(schema.is_valid(&null), !is_required, "{}: null", member.path);
        }
        assert!(schema.is_valid(&Value::Null));
        assert!(schema.is_valid(&json!({ "coupon_code": "C1", "coupon_state": "FROZEN", "surprise": {} })));
        for field in ["coupon_code", "coupon_state"] {
            assert!(!schema.is_valid(&json!({ field: "C1" })), "only {field}");
        }
    }
}

/// Numbers and names in backticks.
fn facts(text: &str) -> Vec<String> {
    let names = text.split('`').skip(1).step_by(2).map(str::to_owned);
    let plain: String = text.split('`').step_by(2).collect::<Vec<_>>().join(" ");
    let numbers = plain.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let mut facts: Vec<_> = names.chain(numbers.map(str::to_owned)).collect();
    facts.sort();
    facts.dedup();
    facts
}

/// The provider's Chinese is short: whatever the English adds to it, the Chinese page must say too.
#[test]
fn each_fact_of_an_english_meaning_is_in_the_chinese_page() {
    let page = |document: Document| document.text(&redeemer::config::Config::default()).unwrap();
    let rows = |text: &str| -> Vec<(String, String)> {
        let tables = text.split("\n## ").skip(3);
        let cells = tables.flat_map(str::lines).filter(|line| line.starts_with("| `")).map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split(" | ").collect();
            (cells[0].trim().to_owned(), cells[cells.len() - 1].trim().to_owned())
        });
        cells.collect()
    };
    let (english, chinese) = (rows(&page(Document::Coupon)), rows(&page(Document::CouponChinese)));
    let words: usize = redeemer::wire::coupon::MEMBERS.iter().map(|member| member.words.len()).sum();
    assert!(english.len() > MEMBERS.len() && english.len() <= MEMBERS.len() + words);
    let mut poorer = Vec::new();
    for ((name, ours), (twin, theirs)) in english.iter().zip(&chinese) {
        assert_eq!(name, twin);
        let is_of_parts = |text: &str, marks: &[char]| text.contains(marks);
        let said = facts(theirs);
        let is_poorer = !facts(ours).iter().all(|fact| said.contains(fact))
            || is_of_parts(ours, &[';', ':']) && !is_of_parts(theirs, &['。', '，', '：', '（']);
        if is_poorer {
            poorer.push(format!("{name}: {ours} / {theirs}"));
        }
    }
    assert!(poorer.is_empty(), "{} of {}:\n{}", poorer.len(), english.len(), poorer.join("\n"));
}

/// The provider's words are short and plain: what explains them is ours, and stands in the note.
#[test]
fn no_word_of_the_provider_is_explained_within() {
    for word in MEMBERS.iter().flat_map(|member| member.words) {
        assert!(
            !word.chinese.contains(['（', '；', '，', '。', '：', '的']),
            "{}: {}",
            word.word,
            word.chinese
        );
    }
}

/// The schema is read in both languages, too.
#[test]
fn the_schema_says_unit_presence_and_words_in_chinese() {
    for member in MEMBERS {
        let pointer: String = member
            .path
            .split('.')
            .map(|step| match step.strip_suffix("[]") {
                Some(list) => format!("/properties/{list}/items"),
                None => format!("/properties/{step}"),
            })
            .collect();
        let schema = coupon_schema(Dialect::Draft2020);
        let comment = schema.pointer(&pointer).unwrap()["$comment"].as_str().unwrap().to_owned();
        assert!(comment.starts_with(member.chinese), "{}: {comment}", member.path);
        let unit = member.kind.unit().map_or("", |(_, chinese)| chinese);
        let words = member.words.iter().map(|word| word.word);
        for part in [unit, member.when.words().1, member.chinese_note].into_iter().chain(words) {
            assert!(comment.contains(part), "{}: {part} is not in {comment}", member.path);
        }
    }
}

/// Each order is shown for its own kind only: the provider returns the one that the use named.
#[test]
fn an_order_is_present_by_the_kind_of_order() {
    for (name, order) in [
        ("associated_order_info", "a WeChat Pay order"),
        ("associated_pay_score_order_info", "a pay-score service order"),
    ] {
        let members = MEMBERS.iter().filter(|member| member.name() == name);
        let presences: Vec<_> = members.map(|member| member.when.words().0).collect();
        assert!(presences.len() >= 2 && presences.iter().all(|words| words.contains(order)), "{presences:?}");
    }
}

/// What the pages teach must be in the coupons that the contract shows. Those of `event.redeemed.json`, the sample of the
/// README, are shortened, and so not whole.
#[rstest]
#[case("event.redeemed.single.json")]
#[case("event.redeemed.bundle.json")]
#[case("event.redeemed.sequential.json")]
#[case("event.refused.json")]
fn each_golden_coupon_is_whole_and_of_the_table(#[case] name: &str) {
    let text = std::fs::read_to_string(root().join("docs/contract/examples").join(name)).unwrap();
    let coupon = &parsed(&text)["data"]["coupon"];
    for object in ["product_coupon", "stock"] {
        assert!(coupon[object].is_object(), "{object}");
    }
    assert!(golden::members_of(coupon).iter().all(|path| MEMBERS.iter().any(|member| member.path == path)));
    assert_eq!(presence::breaks_of_presence(coupon), Vec::<String>::new());
}

/// The days that a bundle's earlier coupons must have taken had passed when this one was received.
#[test]
fn the_golden_bundle_has_come_this_far() {
    let text =
        std::fs::read_to_string(root().join("docs/contract/examples/event.redeemed.bundle.json")).unwrap();
    let coupon = &parsed(&text)["data"]["coupon"];
    let index = coupon["user_product_coupon_bundle_info"]["user_coupon_bundle_index"].as_i64().unwrap();
    let interval =
        coupon["product_coupon"]["progressive_bundle_usage_info"]["interval_days"].as_i64().unwrap();
    let period = &coupon["stock"]["progressive_bundle_usage_rule"]["coupon_available_period"];
    // Used on the first day, the next one is possible `interval_days` later from 00:00 on.
    let days =
        time(&coupon["receive_time"]).duration_since(time(&period["available_begin_time"])).as_hours() / 24;
    assert!(index > 0 && days >= index * interval, "{days} days for {index} uses");
    assert_eq!(coupon["stock"]["stock_bundle_info"]["stock_bundle_index"], index);
}

/// A time, with or without seconds.
fn time(value: &Value) -> jiff::Timestamp {
    let text = value.as_str().unwrap();
    let whole = if text.matches(':').count() == 2 { text.replace('+', ":00+") } else { text.to_owned() };
    whole.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Who reads the examples reads their dates, too.
#[rstest]
#[case("event.redeemed.json")]
#[case("event.redeemed.single.json")]
#[case("event.redeemed.bundle.json")]
#[case("event.redeemed.sequential.json")]
#[case("event.refused.json")]
fn the_dates_of_each_golden_coupon_are_in_order(#[case] name: &str) {
    let text = std::fs::read_to_string(root().join("docs/contract/examples").join(name)).unwrap();
    let event = parsed(&text);
    let coupon = &event["data"]["coupon"];
    let (begin, end) = (time(&coupon["valid_begin_time"]), time(&coupon["valid_end_time"]));
    let in_order = |what: &str, times: &[jiff::Timestamp]| assert!(times.is_sorted(), "{what}: {times:?}");
    let rules = ["single_usage_rule", "progressive_bundle_usage_rule", "sequential_usage_rule"];
    for rule in rules.into_iter().filter_map(|rule| coupon["stock"].get(rule)) {
        let period = &rule["coupon_available_period"];
        let (from, until) = (time(&period["available_begin_time"]), time(&period["available_end_time"]));
        in_order("the coupon and its stock", &[from, begin, end, until]);
    }
    let rounds = coupon["sequential_usage_detail"]["detail_item_list"].as_array();
    let once = ["single_usage_detail", "progressive_bundle_usage_detail"];
    let usages = once.into_iter().filter_map(|usage| coupon.get(usage));
    for usage in usages.chain(rounds.into_iter().flatten()) {
        let window = |name: &str, whole| usage.get(name).map_or(whole, time);
        let (from, until) = (window("valid_begin_time", begin), window("valid_end_time", end));
        in_order("the round and its coupon", &[begin, from, until, end]);
        if let Some(used) = usage.get("use_time").map(time) {
            in_order("the use", &[from, used, until]);
            let known = [time(&coupon["receive_time"]), used, time(&event["time"])];
            in_order("the event", &known);
        }
    }
    let Some(rounds) = rounds.filter(|rounds| rounds.len() > 1) else { return };
    let detail = &coupon["sequential_usage_detail"];
    assert_eq!(detail["total_count"], rounds.len());
    let used = rounds.iter().filter(|round| round["detail_state"] == "USED").count();
    assert_eq!(detail["used_count"], used);
    let turn =
        |round: &Value| ["USED", "EFFECTIVE", "PENDING"].iter().position(|s| round["detail_state"] == *s);
    assert!(rounds.is_sorted_by_key(|round| (turn(round), time(&round["valid_begin_time"]))));
    let offers = coupon["stock"]["sequential_usage_rule"]["normal_coupon_list"].as_array().unwrap();
    assert_eq!(offers.len(), rounds.len(), "an offer for each round");
    if coupon["product_coupon"]["sequential_usage_info"]["type"] == "INCREMENTAL" {
        assert!(offers.is_sorted_by_key(|offer| offer["discount_amount"].as_u64()), "{offers:?}");
    }
}
