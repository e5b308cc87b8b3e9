//! The members of `data.coupon` in a result event, described in one table.
//!
//! The service itself passes the entity on byte for byte and reads none of this: the schemas and the pages for subscribers
//! are generated from the table. It describes and forbids nothing: unknown members and words are passed on.

mod members;
mod words;

use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

pub use members::MEMBERS;

/// One member of the entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Names from the top, joined by dots; `[]` means the elements of a list.
    pub path: &'static str,
    /// Its type and unit.
    pub kind: Kind,
    /// When it is present, within the object that holds it.
    pub when: When,
    /// Where it is documented.
    pub revision: Revision,
    /// Its meaning.
    pub english: &'static str,
    /// Its meaning, in the provider's own words.
    pub chinese: &'static str,
    /// In Chinese, what the English says beyond the provider's words; empty if it says no more.
    pub chinese_note: &'static str,
    /// Its words, if it is an enumeration; open at its end.
    pub words: &'static [Word],
}

/// A word of an enumeration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// The word as sent.
    pub word: &'static str,
    /// Where it is documented.
    pub revision: Revision,
    /// Its meaning.
    pub english: &'static str,
    /// Its meaning, in the provider's own words.
    pub chinese: &'static str,
    /// In Chinese, what the English says beyond the provider's words; empty if it says no more.
    pub chinese_note: &'static str,
}

/// The revision of the provider's document that has a member or a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revision {
    /// That of September 2025 only.
    Old,
    /// The current one only.
    New,
    /// Both.
    Both,
}

/// Type and unit of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text.
    Text,
    /// A text: an address.
    Url,
    /// A text: a time with its offset. Seconds may be missing, and there may be a fraction.
    Time,
    /// A whole number of fen.
    Fen,
    /// A whole number of percent.
    Percent,
    /// A whole number of days.
    Days,
    /// A whole number of seconds.
    Seconds,
    /// A whole number: seconds since midnight, 0 to 86399.
    SecondOfDay,
    /// A whole number of things.
    Count,
    /// A whole number: a place, counted from 0.
    Index,
    /// True or false.
    Boolean,
    /// An object.
    Object,
    /// A list of objects.
    Objects,
    /// A list of texts.
    Texts,
    /// A list of addresses.
    Urls,
}

/// When a member is present, within the object that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words of each are in `english`")]
pub enum When {
    Always,
    Given,
    Named,
    Confirmed,
    CouponDeactivated,
    ItsStateDeactivated,
    Single,
    Bundle,
    Sequential,
    Used,
    UsedForOrder,
    UsedForPayScore,
    RoundUsed,
    RoundUsedForOrder,
    Returned,
    RoundDeleted,
    NormalAll,
    DiscountAll,
    NormalItem,
    DiscountItem,
    ExchangeItem,
    Normal,
    Discount,
    Exchange,
    ScopeSingle,
    Upload,
    MiniProgram,
    App,
    H5,
    Passcode,
    ApiAttached,
    OtherChannel,
    Member,
    PartnerMode,
}

impl Revision {
    /// In the documents, in either language.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Old => "2025-09",
            Self::New => "current",
            Self::Both => "both",
        }
    }

    /// In the Chinese documents.
    pub fn chinese(self) -> &'static str {
        match self {
            Self::Old => "2025-09 版",
            Self::New => "现行版",
            Self::Both => "两版",
        }
    }
}

impl Kind {
    /// Its JSON type as the provider's document writes it.
    pub fn json_type(self) -> &'static str {
        match self {
            Self::Text | Self::Url | Self::Time => "string",
            Self::Boolean => "boolean",
            Self::Object => "object",
            Self::Objects => "object[]",
            Self::Texts | Self::Urls => "string[]",
            _ => "integer",
        }
    }

    /// Its unit; none if the type says all.
    pub fn unit(self) -> Option<(&'static str, &'static str)> {
        Some(match self {
            Self::Url | Self::Urls => ("a URL", "URL"),
            Self::Time => ("RFC 3339 with offset", "RFC 3339，带时区"),
            Self::Fen => ("fen", "分"),
            Self::Percent => ("percent", "百分比"),
            Self::Days => ("days", "天"),
            Self::Seconds => ("seconds", "秒"),
            Self::SecondOfDay => ("seconds since midnight, 0 to 86399", "当天 00:00:00 起的秒数，0 至 86399"),
            Self::Count => ("a count", "个数"),
            Self::Index => ("from 0", "从 0 开始"),
            Self::Text | Self::Boolean | Self::Object | Self::Objects | Self::Texts => return None,
        })
    }

    /// A member may be null, which says no more than one that is absent.
    fn schema(self) -> Map<String, Value> {
        let value = match self {
            Self::Objects => json!({ "type": ["array", "null"], "items": { "type": "object" } }),
            Self::Texts | Self::Urls => json!({ "type": ["array", "null"], "items": { "type": "string" } }),
            kind => json!({ "type": [kind.json_type(), "null"] }),
        };
        match value {
            Value::Object(members) => members,
            _ => Map::new(),
        }
    }
}

impl When {
    /// In English and in Chinese; text in backticks is the same in both.
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Always => ("always", "必有"),
            Self::Given => ("if it was set", "设置过才有"),
            Self::Named => ("if the use named it", "核销时填了才有"),
            Self::Confirmed => ("if the coupon was confirmed", "确认发放之后"),
            Self::CouponDeactivated => {
                ("if `coupon_state` is `DEACTIVATED`", "`coupon_state` 为 `DEACTIVATED` 时")
            }
            Self::ItsStateDeactivated => ("if `state` is `DEACTIVATED`", "`state` 为 `DEACTIVATED` 时"),
            Self::Single => ("if `usage_mode` is `SINGLE`", "`usage_mode` 为 `SINGLE` 时"),
            Self::Bundle => {
                ("if `usage_mode` is `PROGRESSIVE_BUNDLE`", "`usage_mode` 为 `PROGRESSIVE_BUNDLE` 时")
            }
            Self::Sequential => ("if `usage_mode` is `SEQUENTIAL`", "`usage_mode` 为 `SEQUENTIAL` 时"),
            Self::Used => (
                "if `coupon_state` is `USED`; may still be shown after a return",
                "`coupon_state` 为 `USED` 时；退券之后也可能仍然返回",
            ),
            Self::UsedForOrder => (
                "if `coupon_state` is `USED` and the use named a WeChat Pay order; may still be shown after a return",
                "`coupon_state` 为 `USED` 且核销时填的是微信支付订单；退券之后也可能仍然返回",
            ),
            Self::UsedForPayScore => (
                "if `coupon_state` is `USED` and the use named a pay-score service order; may still be shown after a return",
                "`coupon_state` 为 `USED` 且核销时填的是支付分订单；退券之后也可能仍然返回",
            ),
            Self::RoundUsedForOrder => (
                "if `detail_state` is `USED` and the use named a WeChat Pay order; may still be shown after a return",
                "`detail_state` 为 `USED` 且核销时填的是微信支付订单；退券之后也可能仍然返回",
            ),
            Self::RoundUsed => (
                "if `detail_state` is `USED`; may still be shown after a return",
                "`detail_state` 为 `USED` 时；退券之后也可能仍然返回",
            ),
            Self::Returned => {
                ("once a use was returned; stays after a later use", "发生过退券才有；再次核销后仍保留")
            }
            Self::RoundDeleted => ("if `detail_state` is `DELETED`", "`detail_state` 为 `DELETED` 时"),
            Self::NormalAll => (
                "if `type` is `NORMAL` and `scope` is `ALL` or `CATEGORY`",
                "`type` 为 `NORMAL` 且 `scope` 为 `ALL` 或 `CATEGORY` 时",
            ),
            Self::DiscountAll => (
                "if `type` is `DISCOUNT` and `scope` is `ALL` or `CATEGORY`",
                "`type` 为 `DISCOUNT` 且 `scope` 为 `ALL` 或 `CATEGORY` 时",
            ),
            Self::NormalItem => (
                "if `type` is `NORMAL` and `scope` is `SINGLE`",
                "`type` 为 `NORMAL` 且 `scope` 为 `SINGLE` 时",
            ),
            Self::DiscountItem => (
                "if `type` is `DISCOUNT` and `scope` is `SINGLE`",
                "`type` 为 `DISCOUNT` 且 `scope` 为 `SINGLE` 时",
            ),
            Self::ExchangeItem => (
                "if `type` is `EXCHANGE` and `scope` is `SINGLE`",
                "`type` 为 `EXCHANGE` 且 `scope` 为 `SINGLE` 时",
            ),
            Self::Normal => ("if `type` is `NORMAL`", "`type` 为 `NORMAL` 时"),
            Self::Discount => ("if `type` is `DISCOUNT`", "`type` 为 `DISCOUNT` 时"),
            Self::Exchange => ("if `type` is `EXCHANGE`", "`type` 为 `EXCHANGE` 时"),
            Self::ScopeSingle => {
                ("if `scope` is `SINGLE`; else if it was set", "`scope` 为 `SINGLE` 时；否则设置过才有")
            }
            Self::Upload => ("if `coupon_code_mode` is `UPLOAD`", "`coupon_code_mode` 为 `UPLOAD` 时"),
            Self::MiniProgram => (
                "if `coupon_usage_method_list` has `MINI_PROGRAM`",
                "`coupon_usage_method_list` 含 `MINI_PROGRAM` 时",
            ),
            Self::App => {
                ("if `coupon_usage_method_list` has `APP`", "`coupon_usage_method_list` 含 `APP` 时")
            }
            Self::H5 => ("if `app_jump_type` is `H5`", "`app_jump_type` 为 `H5` 时"),
            Self::Passcode => {
                ("if `app_jump_type` is `PASSCODE_LINK`", "`app_jump_type` 为 `PASSCODE_LINK` 时")
            }
            Self::ApiAttached => {
                ("if `send_channel` is `API` and the sender set it", "`send_channel` 为 `API` 且发券时设置过")
            }
            Self::OtherChannel => (
                "if `send_channel` is not `API` and the channel set it",
                "`send_channel` 不为 `API` 且渠道设置过",
            ),
            Self::Member => ("if `coupon_tag_list` has `MEMBER`", "`coupon_tag_list` 含 `MEMBER` 时"),
            Self::PartnerMode => {
                ("for partners; absent for brands that call themselves", "服务商模式；品牌自行调用时没有")
            }
        }
    }
}

impl Member {
    /// Its own name, without the objects that hold it.
    pub fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }

    /// A name for the type of an object or of a list's elements, for those who generate types: as many of the last names
    /// of its path as distinguish it from all others.
    fn type_name(&self) -> String {
        let names: Vec<_> = self.path.split('.').rev().collect();
        let is_of_same_end = |count: usize, other: &Self| {
            matches!(other.kind, Kind::Object | Kind::Objects)
                && other.path.split('.').rev().take(count).eq(names.iter().take(count).copied())
        };
        let count = (1..names.len())
            .find(|count| MEMBERS.iter().filter(|other| is_of_same_end(*count, other)).count() == 1)
            .unwrap_or(names.len());
        names
            .iter()
            .take(count)
            .rev()
            .flat_map(|name| name.trim_end_matches("[]").split('_'))
            .map(capitalized)
            .collect()
    }

    /// Its description in a schema: meaning, unit, condition, words.
    fn description(&self) -> String {
        let mut text = self.english.to_owned();
        if let Some((unit, _)) = self.kind.unit() {
            text += &format!(" Unit: {unit}.");
        }
        text += &format!(" Present: {}.", self.when.words().0);
        if !self.words.is_empty() {
            let words = self.words.iter().map(|word| format!("`{}`: {}", word.word, word.english));
            text += &format!(" Known words: {}; others may come.", words.collect::<Vec<_>>().join(", "));
        }
        match self.revision {
            Revision::Both => text,
            revision => text + &format!(" Revision: {}.", revision.as_str()),
        }
    }

    /// The same in Chinese.
    fn chinese_description(&self) -> String {
        let mut text = format!("{}。", chinese_meaning(self.chinese, self.chinese_note));
        if let Some((_, unit)) = self.kind.unit() {
            text += &format!("单位：{unit}。");
        }
        text += &format!("何时返回：{}。", self.when.words().1);
        if !self.words.is_empty() {
            let words = self.words.iter().map(|word| format!("`{}` {}", word.word, word.chinese));
            text += &format!("已知的值：{}；今后可能新增。", words.collect::<Vec<_>>().join("，"));
        }
        match self.revision {
            Revision::Both => text,
            revision => text + &format!("版本：{}。", revision.chinese()),
        }
    }

    /// Its schema without the members it holds. The words of an enumeration are examples: others pass.
    fn schema(&self) -> Map<String, Value> {
        let mut schema = self.kind.schema();
        schema.insert("description".to_owned(), json!(self.description()));
        schema.insert("$comment".to_owned(), json!(self.chinese_description()));
        match (self.kind, schema.get_mut("items")) {
            (Kind::Object, _) => drop(schema.insert("title".to_owned(), json!(self.type_name()))),
            (Kind::Objects, Some(Value::Object(items))) => {
                items.insert("title".to_owned(), json!(self.type_name()));
            }
            _ => {}
        }
        let words: Vec<_> = self.words.iter().map(|word| word.word).collect();
        match (self.kind, schema.get_mut("items")) {
            _ if words.is_empty() => {}
            (Kind::Texts, Some(Value::Object(items))) => {
                drop(items.insert("examples".to_owned(), json!(words)))
            }
            _ => drop(schema.insert("examples".to_owned(), json!(words))),
        }
        schema
    }
}

/// A meaning in Chinese: the provider's words, then what is added to them.
pub fn chinese_meaning(chinese: &str, note: &str) -> String {
    match note {
        "" => chinese.to_owned(),
        note => format!("{chinese}。{note}"),
    }
}

fn capitalized(word: &str) -> String {
    let mut rest = word.chars();
    let first = rest.next();
    first.into_iter().flat_map(char::to_uppercase).chain(rest).collect()
}

/// The members that the service itself reads, and the only ones of a reduced entity.
const REQUIRED: [&str; 2] = ["coupon_code", "coupon_state"];

/// The schema of the entity, or null: every documented member, and room for all others.
pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
    let mut root = json!({
        "title": "Coupon",
        "type": ["object", "null"],
        "required": REQUIRED,
        "additionalProperties": true,
        "properties": {},
    });
    for member in MEMBERS {
        let mut place = &mut root;
        let (parents, name) = member.path.rsplit_once('.').unwrap_or(("", member.path));
        for parent in parents.split('.').filter(|parent| !parent.is_empty()) {
            place = match parent.strip_suffix("[]") {
                Some(list) => &mut place["properties"][list]["items"],
                None => &mut place["properties"][parent],
            };
        }
        place["properties"][name] = Value::Object(member.schema());
    }
    for name in REQUIRED {
        root["properties"][name]["type"] = json!("string");
    }
    Schema::try_from(root).unwrap_or_default()
}
