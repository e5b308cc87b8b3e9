//! Reads the body of a response: a coupon from a success, a code from an error.
//!
//! Only the members that a verdict needs are read; everything else is passed through: the provider may add fields and
//! values at any time, and three forms of the usage block exist.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::domain::coupon::{Coupon, CouponState, Id, Reduction, Round, Trace, UsageTrace};
use crate::domain::redemption::UseTime;
use crate::telemetry::masking::beginning;

/// The longest error message that is kept, in bytes: it travels in a header that must stay small.
pub const MESSAGE_BYTES_MAX: usize = 1024;

/// The deepest nesting of a coupon that is passed on. The documented shape has 6 levels; common parsers of
/// subscribers give up at 128, and the event puts two levels around it.
pub const NESTING_MAX: usize = 64;

/// The content of an error body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorBody {
    /// The error code.
    pub code: Option<Box<str>>,
    /// The message for people with the additions of its `detail`, shortened to [`MESSAGE_BYTES_MAX`].
    pub message: Option<Box<str>>,
    /// The cause, if it names one.
    pub detail: Option<Detail>,
}

/// `detail` of an error body: the cause by the provider. Its `value` is left out, because it may be personal data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detail {
    /// A JSON pointer into the body, or the name of a parameter or a header.
    pub field: Box<str>,
    /// `body`, `url`, `query`; seen in the wild: `authorization`, `header`.
    pub location: Box<str>,
    /// What is wrong with it.
    pub issue: Box<str>,
}

/// What every request sends of its command, in its path, its query or the first level of its body, and the numbers of its
/// order. Not `mchid`, which is ours unless it is within the order.
const FIELDS: [&str; 17] = [
    "openid",
    "coupon_code",
    "product_coupon_id",
    "stock_id",
    "appid",
    "brand_id",
    "use_time",
    "out_request_no",
    "store_id",
    "saved_amount",
    "sequential_coupon_index",
    "associated_order_info",
    "associated_pay_score_order_info",
    "transaction_id",
    "out_trade_no",
    "order_id",
    "out_order_no",
];

/// The locations that a detail may name.
const PLACES: [&str; 4] = ["body", "query", "path", "url"];

/// The longest text of a detail, in bytes.
const DETAIL_BYTES_MAX: usize = 200;

impl Detail {
    fn read(detail: &serde_json::Value) -> Option<Self> {
        let text = |value: &serde_json::Value| cut(value.as_str().unwrap_or_default(), DETAIL_BYTES_MAX);
        let [field, location, mut issue] = ["field", "location", "issue"].map(|name| text(&detail[name]));
        if issue.is_empty() {
            // wechatpay-axios-plugin issue 58.
            issue = text(&detail["detail"]["issue"]);
        }
        let reported = [&field, &location, &issue].iter().any(|text| !text.is_empty());
        reported.then_some(Self { field, location, issue })
    }

    /// Whether it is about the headers of every request of ours, which no command influences.
    pub fn is_about_our_headers(&self) -> bool {
        const HEADERS: [&str; 5] =
            ["authorization", "accept", "accept-language", "user-agent", "content-type"];
        let location = self.location.to_ascii_lowercase();
        let field = self.field.trim_matches('/').to_ascii_lowercase();
        matches!(&*location, "header" | "headers" | "authorization")
            || HEADERS.contains(&&*field)
            || field.starts_with("wechatpay-")
    }

    /// Whether it names a part of the command, as a request sends it. Anything else, such as a merchant number on its own or
    /// a name that no request has, may be what every command has in common.
    pub fn names_a_field(&self) -> bool {
        let is_between = |letter: char| !letter.is_alphanumeric() && letter != '_';
        let mut parts = self.field.split(is_between).filter(|part| !part.is_empty());
        // A path may begin with the place that it leads into.
        let first = parts.by_ref().find(|part| !PLACES.contains(part));
        first.is_some_and(|part| FIELDS.contains(&part)) && !self.is_about_our_headers()
    }

    fn in_words(&self) -> String {
        let parts = [("field", &self.field), ("location", &self.location), ("issue", &self.issue)];
        let reported = parts.into_iter().filter(|(_, text)| !text.is_empty());
        reported.map(|(name, text)| format!("{name} {text}")).collect::<Vec<_>>().join(", ")
    }
}

/// Reads a coupon; `None` if the body is not one.
///
/// Strictly read is what decides: code, state, and the numbers of uses and returns. What the coupon belongs to can only
/// contradict, so each mention of it is compared. Other members of the body do not matter.
pub fn coupon(body: &[u8]) -> Option<Coupon> {
    let Scan { nesting, plain } = scan(body);
    let (text, plain) = readable(body, plain);
    let text = &*text;
    let entity = Members::read(text)?;
    let [code, state] = ["coupon_code", "coupon_state"].map(|name| entity.one(name).ok().flatten());
    let (code, state) = (read_text(code?)?, read_text(state?)?);
    let usage = read_usage(&entity)?;
    let ids = read_ids(&entity).into();
    // An entity that a strict subscriber cannot read is signed all the same, and shows the state of the coupon.
    let reduced = match plain {
        _ if nesting > NESTING_MAX => Some(Reduction::Nesting),
        // Texts are whole by now, so that only a number can be at fault.
        false if serde_json::from_str::<serde_json::Value>(text).is_err() => Some(Reduction::Number),
        _ => None,
    };
    let passed_on = match reduced {
        None => text.trim().into(),
        Some(_) => code_and_state(&code, &state).into(),
    };
    Some(Coupon { state: CouponState::from_wire(&state), code, usage, ids, entity: passed_on, reduced })
}

/// Reads an error body; one that is not JSON (gateways send HTML) is empty. The code alone is read strictly.
pub fn error(body: &[u8]) -> ErrorBody {
    let (text, _) = readable(body, scan(body).plain);
    let Some(error) = Members::read(&text) else { return ErrorBody::default() };
    let value = |raw: &RawValue| serde_json::from_str::<serde_json::Value>(raw.get()).ok();
    let detail = error.every("detail").find_map(value).as_ref().and_then(Detail::read);
    let words = detail.as_ref().map(Detail::in_words).filter(|words| !words.is_empty());
    let message = match (error.every("message").find_map(read_text), words) {
        (Some(message), Some(words)) => Some(format!("{message} ({words})")),
        (message, words) => message.map(String::from).or(words),
    };
    let code = error.one("code").ok().flatten().and_then(read_text);
    ErrorBody {
        code: code.map(|code| cut(&code, 64)),
        message: message.map(|message| cut(&message, MESSAGE_BYTES_MAX)),
        detail,
    }
}

/// The number after the last `-` of a `Request-ID`.
pub fn sub_code(request_id: &str) -> Option<u64> {
    let (_, number) = request_id.rsplit_once('-')?;
    number.parse().ok()
}

/// The result of a scan of the bytes before they are parsed.
struct Scan {
    /// How deep objects and arrays are nested, by their brackets outside of texts.
    nesting: usize,
    /// Whether nothing is in it that a strict reader may reject: half of a surrogate pair, a control character in a text,
    /// a number that no machine holds. The entity is passed on as it came, and a strict subscriber could not read the
    /// event that holds one.
    plain: bool,
}

/// Numbers with fewer digits are within the range of a double.
const DIGITS_MAX: usize = 300;

fn scan(json: &[u8]) -> Scan {
    let (mut depth, mut nesting, mut plain, mut digits) = (0usize, 0, true, 0);
    let mut rest = json;
    while let [byte, after @ ..] = rest {
        rest = after;
        match byte {
            b'"' => plain &= skip_text(&mut rest),
            b'{' | b'[' => {
                depth += 1;
                nesting = nesting.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'e' | b'E' if digits > 0 => plain = false,
            _ => {}
        }
        digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
        plain &= digits <= DIGITS_MAX;
    }
    Scan { nesting, plain }
}

/// Skips the rest of a text, its closing mark included. Texts are most of an entity, so only this is checked per byte.
/// Returns whether it has no numeric escape and no control character.
fn skip_text(rest: &mut &[u8]) -> bool {
    let mut plain = true;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..=0x1f)) {
        let (mark, after) = (rest[at], &rest[at + 1..]);
        if mark < b' ' {
            plain = false;
            *rest = after;
            continue;
        }
        if mark == b'"' {
            *rest = after;
            return plain;
        }
        // An escaped character does not close the text.
        plain &= after.first() != Some(&b'u');
        *rest = after.get(1..).unwrap_or_default();
    }
    *rest = &[];
    plain
}

/// The replacement of an entity that is not passed on unchanged.
fn code_and_state(code: &str, state: &str) -> String {
    serde_json::json!({ "coupon_code": code, "coupon_state": state }).to_string()
}

/// The text of a body as a strict reader can read it, and whether that is how it came.
fn readable(body: &[u8], plain: bool) -> (Cow<'_, str>, bool) {
    let text = String::from_utf8_lossy(body);
    match (plain, text) {
        (true, Cow::Borrowed(text)) => (Cow::Borrowed(text), true),
        (true, Cow::Owned(text)) => (Cow::Owned(text), false),
        (false, text) => {
            let text = with_escaped_controls(&text).into_owned();
            (Cow::Owned(with_whole_characters(&text).into_owned()), false)
        }
    }
}

/// Escapes each control character in a text.
fn with_escaped_controls(json: &str) -> Cow<'_, str> {
    let (mut repaired, mut kept) = (String::new(), 0);
    let (mut in_text, mut escaped) = (false, false);
    for (at, byte) in json.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_text,
            b'"' => in_text = !in_text,
            ..=0x1f if in_text => {
                repaired.push_str(&json[kept..at]);
                repaired.push_str(&format!("\\u{byte:04x}"));
                kept = at + 1;
            }
            _ => {}
        }
    }
    if kept == 0 {
        return Cow::Borrowed(json);
    }
    repaired.push_str(&json[kept..]);
    Cow::Owned(repaired)
}

/// Puts U+FFFD in place of each unpaired half of a surrogate pair: no strict parser accepts one, and it is unknown
/// which character it was.
fn with_whole_characters(json: &str) -> Cow<'_, str> {
    const REPLACEMENT: &str = "\\ufffd";
    let unit = |at: usize| {
        let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok()
    };
    let (mut repaired, mut kept, mut at) = (String::new(), 0, 0);
    // Escapes occur only in texts, and are two bytes long or six.
    while let Some(found) = json.get(at..).and_then(|rest| rest.find('\\')) {
        at += found;
        match (unit(at), unit(at + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => at += 12,
            (Some(0xd800..=0xdfff), _) => {
                repaired.push_str(&json[kept..at]);
                repaired.push_str(REPLACEMENT);
                at += 6;
                kept = at;
            }
            (Some(_), _) => at += 6,
            // The next byte may begin a longer character, though it is not JSON anyway.
            (None, _) => at += 1 + json[at + 1..].chars().next().map_or(1, char::len_utf8),
        }
    }
    if kept == 0 {
        return Cow::Borrowed(json);
    }
    repaired.push_str(&json[kept..]);
    Cow::Owned(repaired)
}

fn cut(text: &str, bytes: usize) -> Box<str> {
    let kept = &text[..text.floor_char_boundary(bytes)];
    if kept.len() == text.len() { text.into() } else { beginning(text, kept.chars().count()).into() }
}

/// The members of an object that are read at all, in order, each as often as it is there.
struct Members<'a>(Vec<(&'static str, &'a RawValue)>);

/// Every name that is read, in any object.
const READ: [&str; 18] = [
    "coupon_code",
    "coupon_state",
    "single_usage_detail",
    "progressive_bundle_usage_detail",
    "sequential_usage_detail",
    "detail_item_list",
    "detail_state",
    "use_request_no",
    "return_request_no",
    "return_time",
    "product_coupon",
    "stock",
    "brand_id",
    "product_coupon_id",
    "stock_id",
    "code",
    "message",
    "detail",
];

/// A decisive member is duplicate or invalid.
#[derive(Debug)]
struct Malformed;

impl<'a> Members<'a> {
    /// The members of this object; `None` if it is not one. An empty list counts as an empty object, as some languages
    /// write one.
    fn read(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }

    fn every(&self, name: &'static str) -> impl Iterator<Item = &'a RawValue> {
        self.0.iter().filter(move |(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// The one member of this name; null counts as none.
    fn one(&self, name: &'static str) -> Result<Option<&'a RawValue>, Malformed> {
        let mut every = self.every(name);
        match (every.next(), every.next()) {
            (_, Some(_)) => Err(Malformed),
            (value, None) => Ok(value.filter(|value| value.get() != "null")),
        }
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(Name(name)) = map.next_key()? {
                    match READ.into_iter().find(|known| *known == name) {
                        Some(known) => members.push((known, map.next_value()?)),
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Members(members))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                match list.next_element::<IgnoredAny>()? {
                    None => Ok(Members(Vec::new())),
                    Some(_) => Err(A::Error::custom("a list is not an object")),
                }
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// The name of a member.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

fn read_text(value: &RawValue) -> Option<Box<str>> {
    serde_json::from_str(value.get()).ok()
}

/// A text, or a number as it is written; nothing if it is anything else or empty.
fn read_id(value: &RawValue) -> Option<Box<str>> {
    let is_number = value.get().starts_with(|first: char| first.is_ascii_digit() || first == '-');
    let id = if is_number { Some(value.get().into()) } else { read_text(value) };
    id.filter(|id| !id.is_empty())
}

/// The brand, the product coupon and the stock, wherever they are named.
fn read_ids(entity: &Members<'_>) -> Vec<Id> {
    let mut ids: Vec<_> = entity.every("brand_id").filter_map(read_id).map(Id::Brand).collect();
    let parts = entity.every("product_coupon").chain(entity.every("stock"));
    for part in parts.filter_map(|part| Members::read(part.get())) {
        ids.extend(part.every("brand_id").filter_map(read_id).map(Id::Brand));
        ids.extend(part.every("product_coupon_id").filter_map(read_id).map(Id::ProductCoupon));
        ids.extend(part.every("stock_id").filter_map(read_id).map(Id::Stock));
    }
    ids
}

/// Of the three blocks the one with content decides; the others may be anything. An object that does not
/// apply may be there all the same, and empty; so may its list, or be null.
fn read_usage(entity: &Members<'_>) -> Option<UsageTrace> {
    let once = ["single_usage_detail", "progressive_bundle_usage_detail"]
        .map(|name| entity.one(name).and_then(|block| block.map(read_trace).transpose()));
    let rounds = entity.one("sequential_usage_detail").and_then(|block| block.map(read_rounds).transpose());
    let mut traces = once.iter().filter_map(|block| block.as_ref().ok()?.as_ref());
    let reported = traces.find(|trace| **trace != Trace::default()).cloned();
    match (rounds, reported) {
        (Ok(Some(rounds)), _) if !rounds.is_empty() => Some(UsageTrace::Rounds(rounds)),
        (_, Some(trace)) => Some(UsageTrace::Single(trace)),
        (Err(Malformed), None) => None,
        _ if once.iter().any(Result::is_err) => None,
        (Ok(Some(_)), None) if once.iter().all(|block| matches!(block, Ok(None))) => {
            Some(UsageTrace::Rounds(Vec::new()))
        }
        (Ok(_), None) => Some(UsageTrace::Single(Trace::default())),
    }
}

fn read_trace(block: &RawValue) -> Result<Trace, Malformed> {
    let members = Members::read(block.get()).ok_or(Malformed)?;
    // An empty text means "none" in the provider's own samples of other products.
    let given = |number: Box<str>| (!number.is_empty()).then_some(number);
    let use_request_no = members.one("use_request_no")?.map(|number| read_text(number).ok_or(Malformed));
    let use_request_no = use_request_no.transpose()?.and_then(given);
    if use_request_no.as_ref().is_some_and(|number| number.contains(|sign: char| !sign.is_ascii_graphic())) {
        // No number contains this character unless it was decoded wrongly: then its owner is unknown.
        return Err(Malformed);
    }
    // Whose number a return has decides nothing, that there is one does.
    let is_number = |number: &RawValue| number.get().starts_with(|first: char| first.is_ascii_digit());
    let return_request_no = members.one("return_request_no")?.map(|number| match is_number(number) {
        true => Ok(number.get().into()),
        false => read_text(number).ok_or(Malformed),
    });
    let return_request_no = return_request_no.transpose()?.and_then(given);
    // So does its time alone, readable or not; an empty one means "none", as above.
    let shows_return_time = members.every("return_time").any(|text| !["null", r#""""#].contains(&text.get()));
    let return_time = members.one("return_time").ok().flatten().and_then(read_text);
    let return_time = return_time.as_deref().and_then(time);
    Ok(Trace { use_request_no, return_request_no, return_time, shows_return_time })
}

fn read_rounds(block: &RawValue) -> Result<Vec<Round>, Malformed> {
    let members = Members::read(block.get()).ok_or(Malformed)?;
    let Some(list) = members.one("detail_item_list")? else { return Ok(Vec::new()) };
    let list: Vec<&RawValue> = serde_json::from_str(list.get()).map_err(|_| Malformed)?;
    list.into_iter().map(read_round).collect()
}

/// A round. One that does not say its state decides nothing, unless it is the one meant.
fn read_round(round: &RawValue) -> Result<Round, Malformed> {
    let unknown_state = || CouponState::Other("".into());
    if round.get() == "null" {
        return Ok(Round { state: unknown_state(), trace: Trace::default() });
    }
    let members = Members::read(round.get()).ok_or(Malformed)?;
    let state = members.one("detail_state").ok().flatten().and_then(read_text);
    let state = state.map_or_else(unknown_state, |word| CouponState::from_wire(&word));
    Ok(Round { state, trace: read_trace(round)? })
}

/// A time as the provider writes one: its samples leave out the seconds here and there.
fn time(text: &str) -> Option<Timestamp> {
    UseTime::parse(text).ok()?.as_str().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REDUCED: &str = r#"{"coupon_code":"C","coupon_state":"USED"}"#;

    #[test]
    fn nesting_is_counted_outside_of_texts() {
        let depth = |text: &str| scan(text.as_bytes()).nesting;
        assert_eq!([depth("{}"), depth(r#"{"a":[{}]}"#), depth(r#"{"a":"[[\"[["}"#)], [1, 3, 1]);
        let deep = format!(
            r#"{{"coupon_code":"C","coupon_state":"USED","x":{}{}}}"#,
            "[".repeat(63),
            "]".repeat(63)
        );
        let passed_on = |text: &str| *coupon(text.as_bytes()).unwrap().entity == *text;
        assert!(passed_on(&deep));
        // What is deeper is not passed on, and read all the same.
        for levels in [64, 1_000, 100_000] {
            let deeper = deep.replacen('[', &"[".repeat(levels), 1).replacen(']', &"]".repeat(levels), 1);
            let coupon = coupon(deeper.as_bytes()).unwrap();
            assert_eq!((coupon.state, &*coupon.entity), (CouponState::Used, REDUCED), "{levels}");
            assert_eq!(coupon.reduced, Some(Reduction::Nesting), "{levels}");
        }
    }

    #[test]
    fn a_signed_body_is_read_whatever_its_texts_and_numbers_hold() {
        let with = |more: &str| {
            let body = format!(r#"{{"coupon_code":"C","coupon_state":"USED","x":{more}}}"#);
            let coupon = coupon(body.as_bytes()).unwrap_or_else(|| panic!("not read: {body}"));
            assert_eq!((&*coupon.code, coupon.state), ("C", CouponState::Used), "{body}");
            assert!(serde_json::from_str::<serde_json::Value>(&coupon.entity).is_ok(), "{}", coupon.entity);
            assert_eq!(coupon.reduced, (*coupon.entity == *REDUCED).then_some(Reduction::Number), "{body}");
            (*coupon.entity != *REDUCED).then(|| coupon.entity.replacen(more, "AS IT CAME", 1))
        };
        let as_it_came = Some(r#"{"coupon_code":"C","coupon_state":"USED","x":AS IT CAME}"#.to_owned());
        for more in [r#""\u4e2d \ud83d\ude00""#, r#""\\ud800""#, r#""\\\"\u0041""#, "1e9", "true"] {
            assert_eq!(with(more), as_it_came, "{more}");
        }
        assert_eq!(with(&"1".repeat(300)), as_it_came);
        let repaired =
            |text: &str| Some(format!(r#"{{"coupon_code":"C","coupon_state":"USED","x":{text}}}"#));
        for (more, reported) in [
            (r#""\ud800""#, r#""\ufffd""#),
            (r#""a\uDFFFb""#, r#""a\ufffdb""#),
            (r#""\ud800\u0041""#, r#""\ufffd\u0041""#),
            (r#""\ud800\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\ude00\ud83d""#, r#""\ufffd\ufffd""#),
            (r#"{"\ud800": 1}"#, r#"{"\ufffd": 1}"#),
        ] {
            assert_eq!(with(more), repaired(reported), "{more}");
        }
        for no_machine_holds in ["1.5e999", "-1E999"] {
            assert_eq!(with(no_machine_holds), None, "{no_machine_holds}");
        }
        assert_eq!(with(&"1".repeat(400)), None);
    }

    #[test]
    fn half_a_pair_in_a_member_that_is_read_hides_no_other() {
        let body = br#"{"coupon_code":"C","coupon_state":"USED","single_usage_detail":{"use_request_no":"U",
            "return_request_no":"\ud800"}}"#;
        let usage = coupon(body).unwrap().usage;
        let UsageTrace::Single(trace) = usage else { panic!("{usage:?}") };
        assert_eq!(
            (trace.use_request_no.as_deref(), trace.return_request_no.as_deref()),
            (Some("U"), Some("\u{fffd}"))
        );
    }

    #[test]
    fn the_time_of_a_return_is_read_with_seconds_or_without() {
        let time = |text: &str| {
            let body = format!(
                r#"{{"coupon_code":"C","coupon_state":"EFFECTIVE","single_usage_detail":{{"return_request_no":"R1",
                "return_time":"{text}"}}}}"#
            );
            let usage = coupon(body.as_bytes()).unwrap().usage;
            let UsageTrace::Single(trace) = usage else { panic!("{usage:?}") };
            trace.return_time.map(|at| at.to_string())
        };
        assert_eq!(time("2026-03-06T08:00+08:00").as_deref(), Some("2026-03-06T00:00:00Z"));
        assert_eq!(time("2026-03-06T08:00:01.5+08:00").as_deref(), Some("2026-03-06T00:00:01.5Z"));
        assert_eq!(time("yesterday"), None);
    }

    /// The number of a return that is missing, null or empty does not make the coupon one that was never returned.
    #[test]
    fn a_return_is_read_by_its_time_alone() {
        let is_returned = |members: &str| {
            let body = format!(
                r#"{{"coupon_code":"C","coupon_state":"EFFECTIVE","single_usage_detail":{{{members}}}}}"#
            );
            let usage = coupon(body.as_bytes()).unwrap().usage;
            let UsageTrace::Single(trace) = usage else { panic!("{usage:?}") };
            trace.is_returned()
        };
        for time in [r#""2026-03-06T08:00+08:00""#, r#""yesterday""#, "1772685045", "{}"] {
            for number in ["", r#""return_request_no":null,"#, r#""return_request_no":"","#] {
                assert!(is_returned(&format!(r#"{number}"return_time":{time}"#)), "{number} {time}");
            }
        }
        assert!(is_returned(r#""return_time":"x","return_time":[]"#));
        for none in
            [r#""return_time":null"#, r#""return_time":"""#, r#""return_request_no":"","return_time":"""#]
        {
            assert!(!is_returned(none), "{none}");
        }
    }

    #[test]
    fn what_is_null_is_not_there() {
        let usage = |more: &str| {
            let body = format!(r#"{{"coupon_code":"C","coupon_state":"USED",{more}}}"#);
            coupon(body.as_bytes()).unwrap().usage
        };
        let once = |use_request_no: Option<&str>| {
            UsageTrace::Single(Trace { use_request_no: use_request_no.map(Into::into), ..Trace::default() })
        };
        let ours = r#""single_usage_detail":{"use_request_no":"U","return_request_no":null}"#;
        let list = r#""sequential_usage_detail":{"detail_item_list":null}"#;
        assert_eq!(usage(&format!("{ours},{list}")), once(Some("U")));
        assert_eq!(usage(&format!(r#"{ours},"sequential_usage_detail":null"#)), once(Some("U")));
        assert_eq!(usage(r#""single_usage_detail":{"use_request_no":null}"#), once(None));
        assert_eq!(usage(r#""single_usage_detail":null"#), once(None));
        assert_eq!(usage(list), UsageTrace::Rounds(vec![]));
        assert_eq!(error(br#"{"code":null,"message":null}"#), ErrorBody::default());
    }

    #[test]
    fn messages_are_cut_at_a_character() {
        let body = format!(r#"{{"code":"X","message":"{}"}}"#, "中".repeat(1_000));
        let message = error(body.as_bytes()).message.unwrap();
        assert_eq!(message.len(), 1_023);
    }
}
