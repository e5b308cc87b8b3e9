//! The table of the coupon's members, compared with the requester's list, and the schema made from it.

use redeemer::wire::coupon::{Kind, MEMBERS, Member, Revision};
use redeemer::wire::schema::{self, Dialect};
use rstest::rstest;
use serde_json::{Value, json};

use crate::{golden, parsed, root, validator};

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
        if schema["type"] != "array" && schema.get("properties").is_some() {
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
        }
        assert!(schema.is_valid(&Value::Null));
        assert!(schema.is_valid(&json!({ "coupon_code": "C1", "coupon_state": "FROZEN", "surprise": {} })));
        for field in ["coupon_code", "coupon_state"] {
            assert!(!schema.is_valid(&json!({ field: "C1" })), "only {field}");
        }
    }
}

/// The coupons in the contract must have the members that the pages describe.
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
}
