//! Reads the body of an answer: a coupon from a success, a code from an error.
//!
//! Only what judgment needs is read, and everything else is let through: the provider may add fields and values
//! at any time, and three shapes of the usage block are on the wire.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::Deserialize;

use crate::domain::coupon::{Coupon, CouponState, Id, Reduction, Round, Trace, UsageTrace};
use crate::domain::redemption::UseTime;

/// The longest error message that is kept, in bytes: it travels in a header that must stay small.
pub const MESSAGE_BYTES_MAX: usize = 1024;

/// The deepest nesting of a coupon that is passed on. The documented shape has 6 levels; common parsers of
/// subscribers give up at 128, and the event puts two levels around it.
pub const NESTING_MAX: usize = 64;

/// What an error body says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorBody {
    /// The error code.
    pub code: Option<Box<str>>,
    /// The message for people with what its `detail` adds, cut to [`MESSAGE_BYTES_MAX`].
    pub message: Option<Box<str>>,
    /// What it is about, where it says so.
    pub detail: Option<Detail>,
}

/// `detail` of an error body: what the provider names as the cause. Its `value` is left out, for it may be a person's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detail {
    /// A JSON pointer into the body, or the name of a parameter or a header.
    pub field: Box<str>,
    /// `body`, `url`, `query`; seen in the wild: `authorization`, `header`.
    pub location: Box<str>,
    /// What is wrong with it.
    pub issue: Box<str>,
}

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
        let told = [&field, &location, &issue].iter().any(|text| !text.is_empty());
        told.then_some(Self { field, location, issue })
    }

    /// Whether it is about what stands in the head of each of our requests: no command has a part in that.
    pub fn is_about_our_headers(&self) -> bool {
        const HEADERS: [&str; 5] =
            ["authorization", "accept", "accept-language", "user-agent", "content-type"];
        let location = self.location.to_ascii_lowercase();
        let field = self.field.trim_matches('/').to_ascii_lowercase();
        matches!(&*location, "header" | "headers" | "authorization")
            || HEADERS.contains(&&*field)
            || field.starts_with("wechatpay-")
    }

    /// Whether it names a part of the command.
    pub fn names_a_field(&self) -> bool {
        !self.field.is_empty() && !self.is_about_our_headers()
    }

    fn in_words(&self) -> String {
        let parts = [("field", &self.field), ("location", &self.location), ("issue", &self.issue)];
        let told = parts.into_iter().filter(|(_, text)| !text.is_empty());
        told.map(|(name, text)| format!("{name} {text}")).collect::<Vec<_>>().join(", ")
    }
}

/// Reads a coupon; `None` where the body is not one.
pub fn coupon(body: &[u8]) -> Option<Coupon> {
    let Scan { nesting, plain } = scan(body);
    let text = std::str::from_utf8(body).ok()?;
    let text = if plain { Cow::Borrowed(text) } else { with_whole_characters(text) };
    let text = &*text;
    let entity: EntityText = serde_json::from_str(text).ok()?;
    // What a strict subscriber could not read is signed all the same, and says what became of the coupon.
    let reduced = match plain {
        _ if nesting > NESTING_MAX => Some(Reduction::Nesting),
        // Texts are whole by now, so that only a number can be at fault.
        false if serde_json::from_str::<serde_json::Value>(text).is_err() => Some(Reduction::Number),
        _ => None,
    };
    let passed_on = match reduced {
        None => text.trim().into(),
        Some(_) => code_and_state(&entity).into(),
    };
    // An object that does not apply may be there all the same, and empty; so may its list, or be null.
    let rounds =
        entity.sequential_usage_detail.map(|sequential| sequential.detail_item_list.unwrap_or_default());
    let ids = entity.product_coupon.into_iter().chain(entity.stock).flat_map(IdsText::ids);
    let ids = entity.brand_id.map(Id::Brand).into_iter().chain(ids).collect();
    let once = [entity.single_usage_detail, entity.progressive_bundle_usage_detail];
    let usage = match rounds {
        Some(rounds) if !rounds.is_empty() || once.iter().all(Option::is_none) => {
            UsageTrace::Rounds(rounds.into_iter().map(Round::from).collect())
        }
        _ => {
            let mut told = once.into_iter().flatten().map(Trace::from);
            UsageTrace::Single(told.find(|trace| *trace != Trace::default()).unwrap_or_default())
        }
    };
    Some(Coupon {
        code: entity.coupon_code,
        state: CouponState::from_wire(&entity.coupon_state),
        usage,
        ids,
        entity: passed_on,
        reduced,
    })
}

/// Reads an error body; whatever is no JSON (gateways answer HTML) says nothing.
pub fn error(body: &[u8]) -> ErrorBody {
    #[derive(Deserialize)]
    struct ErrorText {
        code: Option<Box<str>>,
        message: Option<String>,
        #[serde(default)]
        detail: serde_json::Value,
    }
    match serde_json::from_slice::<ErrorText>(body) {
        Ok(error) => {
            let detail = Detail::read(&error.detail);
            let words = detail.as_ref().map(Detail::in_words).filter(|words| !words.is_empty());
            let message = match (error.message, words) {
                (Some(message), Some(words)) => Some(format!("{message} ({words})")),
                (message, words) => message.or(words),
            };
            ErrorBody {
                code: error.code.map(|code| cut(&code, 64)),
                message: message.map(|message| cut(&message, MESSAGE_BYTES_MAX)),
                detail,
            }
        }
        Err(_) => ErrorBody::default(),
    }
}

/// The number after the last `-` of a `Request-ID`.
pub fn sub_code(request_id: &str) -> Option<u64> {
    let (_, number) = request_id.rsplit_once('-')?;
    number.parse().ok()
}

/// What a look at the bytes tells before they are parsed.
struct Scan {
    /// How deep objects and arrays are nested, by their brackets outside of texts.
    nesting: usize,
    /// Whether nothing is in it that is skipped without a check where it stands in a member that is not read: half of
    /// a surrogate pair, a number that no machine holds. The entity is passed on as it came, and a strict subscriber
    /// could not read the event that holds one.
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

/// Skips the rest of a text, its closing mark included: most of an entity, so nothing else is asked of a byte here.
/// Tells whether nothing in it is escaped by number.
fn skip_text(rest: &mut &[u8]) -> bool {
    let mut plain = true;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) {
        let (mark, after) = (rest[at], &rest[at + 1..]);
        if mark == b'"' {
            *rest = after;
            return plain;
        }
        // Whatever is escaped is no mark.
        plain &= after.first() != Some(&b'u');
        *rest = after.get(1..).unwrap_or_default();
    }
    *rest = &[];
    plain
}

/// What is passed on of an entity that is not passed on as it came.
fn code_and_state(entity: &EntityText) -> String {
    serde_json::json!({ "coupon_code": entity.coupon_code, "coupon_state": entity.coupon_state }).to_string()
}

/// Puts U+FFFD in place of each half of a surrogate pair that stands alone: no strict reader takes one, and nobody can
/// say which character it was.
fn with_whole_characters(json: &str) -> Cow<'_, str> {
    const REPLACEMENT: &str = "\\ufffd";
    let unit = |at: usize| {
        let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok()
    };
    let (mut repaired, mut kept, mut at) = (String::new(), 0, 0);
    // Whatever is escaped stands in a text, and is two bytes long or six.
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
            // The next byte may begin a longer character, where it is no JSON anyway.
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
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].into()
}

#[derive(Deserialize)]
struct EntityText {
    coupon_code: Box<str>,
    coupon_state: Box<str>,
    single_usage_detail: Option<TraceText>,
    progressive_bundle_usage_detail: Option<TraceText>,
    sequential_usage_detail: Option<SequentialText>,
    product_coupon: Option<IdsText>,
    stock: Option<IdsText>,
    brand_id: Option<Box<str>>,
}

/// What the product coupon and the stock say of what they belong to.
#[derive(Deserialize)]
struct IdsText {
    brand_id: Option<Box<str>>,
    product_coupon_id: Option<Box<str>>,
    stock_id: Option<Box<str>>,
}

impl IdsText {
    fn ids(self) -> impl Iterator<Item = Id> {
        let Self { brand_id, product_coupon_id, stock_id } = self;
        let product = product_coupon_id.map(Id::ProductCoupon);
        [brand_id.map(Id::Brand), product, stock_id.map(Id::Stock)].into_iter().flatten()
    }
}

#[derive(Deserialize)]
struct TraceText {
    use_request_no: Option<Box<str>>,
    return_request_no: Option<Box<str>>,
    return_time: Option<Box<str>>,
}

#[derive(Deserialize)]
struct SequentialText {
    detail_item_list: Option<Vec<RoundText>>,
}

#[derive(Deserialize)]
struct RoundText {
    detail_state: Box<str>,
    #[serde(flatten)]
    trace: TraceText,
}

impl From<TraceText> for Trace {
    fn from(text: TraceText) -> Self {
        // An empty text stands for "none" in the provider's own samples of other products.
        let told = |text: Option<Box<str>>| text.filter(|text| !text.is_empty());
        Self {
            use_request_no: told(text.use_request_no),
            return_request_no: told(text.return_request_no),
            return_time: text.return_time.as_deref().and_then(time),
        }
    }
}

/// A time as the provider writes one: its samples leave out the seconds here and there.
fn time(text: &str) -> Option<Timestamp> {
    UseTime::parse(text).ok()?.as_str().parse().ok()
}

impl From<RoundText> for Round {
    fn from(text: RoundText) -> Self {
        Self { state: CouponState::from_wire(&text.detail_state), trace: text.trace.into() }
    }
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
        for (more, told) in [
            (r#""\ud800""#, r#""\ufffd""#),
            (r#""a\uDFFFb""#, r#""a\ufffdb""#),
            (r#""\ud800\u0041""#, r#""\ufffd\u0041""#),
            (r#""\ud800\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\ude00\ud83d""#, r#""\ufffd\ufffd""#),
            (r#"{"\ud800": 1}"#, r#"{"\ufffd": 1}"#),
        ] {
            assert_eq!(with(more), repaired(told), "{more}");
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
