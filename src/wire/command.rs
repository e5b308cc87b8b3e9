//! Decodes a command: bytes to [`Redemption`], or to all its faults at once.
//!
//! Two spellings are accepted. Flat: every field side by side. Nested, as the PHP SDK takes it: `openid` and
//! `coupon_code`, and the rest under `json`. An unknown field is a fault, because a misspelled optional field must
//! not vanish silently; so is a field given twice, because only one of its values could be obeyed.
//!
//! Field rules: the "use" page of the partner product-coupon API, and the types of [`crate::domain::redemption`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::domain::redemption::{
    Appid, AssociatedOrder, BrandId, CouponCode, Mchid, MerchantOrder, Openid, OrderNo, OrderNumbers,
    ProductCouponId, Redemption, RequestNo, SavedAmount, ServiceOrderNo, StockId, StoreId, Unfit, UseTime,
};

/// The longest command, in bytes.
pub const COMMAND_BYTES_MAX: usize = 64 * 1024;

/// The most faults that are reported for one command.
pub const FAULTS_MAX: usize = 32;

/// One thing that is wrong with a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where: a JSON pointer (RFC 6901) into the command; empty for the command as a whole.
    pub pointer: String,
    /// What is wrong and what is expected. Never quotes a value.
    pub problem: String,
}

/// An invalid command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rejected {
    /// Every fault, in the order of the rules; at most [`FAULTS_MAX`].
    pub faults: Vec<Fault>,
    /// The identifying fields that could be read.
    pub partial: PartialCommand,
}

impl Rejected {
    /// A valid command in a message with an invalid property.
    pub fn of_property(problem: String, redemption: &Redemption) -> Self {
        let faults = vec![Fault { pointer: String::new(), problem }];
        Self { faults, partial: PartialCommand::from(redemption) }
    }
}

/// The fields of an invalid command that could be read: only values that are valid by themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartialCommand {
    /// The user.
    pub openid: Option<Openid>,
    /// The coupon.
    pub coupon_code: Option<CouponCode>,
    /// The brand.
    pub brand_id: Option<BrandId>,
    /// The product coupon.
    pub product_coupon_id: Option<ProductCouponId>,
    /// The stock.
    pub stock_id: Option<StockId>,
    /// The app.
    pub appid: Option<Appid>,
    /// The request number.
    pub out_request_no: Option<RequestNo>,
}

impl From<&Redemption> for PartialCommand {
    fn from(redemption: &Redemption) -> Self {
        Self {
            openid: Some(redemption.openid.clone()),
            coupon_code: Some(redemption.coupon_code.clone()),
            brand_id: Some(redemption.brand_id.clone()),
            product_coupon_id: Some(redemption.product_coupon_id.clone()),
            stock_id: Some(redemption.stock_id.clone()),
            appid: Some(redemption.appid.clone()),
            out_request_no: Some(redemption.out_request_no.clone()),
        }
    }
}

/// Reads a command.
///
/// # Errors
/// [`Rejected`] with all faults together.
pub fn decode(bytes: &[u8]) -> Result<Redemption, Box<Rejected>> {
    let whole = |problem: String| {
        let faults = vec![Fault { pointer: String::new(), problem }];
        Box::new(Rejected { faults, partial: PartialCommand::default() })
    };
    if bytes.is_empty() {
        return Err(whole("is empty; send one JSON object".to_owned()));
    }
    if bytes.len() > COMMAND_BYTES_MAX {
        let length = bytes.len();
        return Err(whole(format!("has {length} bytes; at most {COMMAND_BYTES_MAX} are read")));
    }
    if bytes.starts_with("\u{feff}".as_bytes()) {
        return Err(whole("begins with a byte order mark (EF BB BF); send JSON without one".to_owned()));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(whole("begins with the byte order mark of UTF-16; send JSON in UTF-8".to_owned()));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| whole(format!("is not UTF-8 from byte {} on", error.valid_up_to())))?;
    let node = serde_json::from_str::<Node>(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        whole(format!("is not JSON: {} at line {line}, column {column}", kind(&error)))
    })?;
    let Node::Object(members) = node else {
        return Err(whole(format!("must be a JSON object, not {}", node.kind())));
    };
    read(members)
}

fn kind(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Eof => "it ends too early",
        _ => "an unexpected character, or too deep a nesting",
    }
}

fn read(members: Vec<(String, Node)>) -> Result<Redemption, Box<Rejected>> {
    let mut faults = Faults::default();
    let mut outer = Fields::new("", members, &mut faults);
    // The nested spelling moves everything but the two path parameters one level down.
    let nested = outer.has("json");
    let mut inner = outer.object("json", &mut faults);

    let openid = outer.text("openid", Openid::parse, &mut faults);
    let coupon_code = outer.text("coupon_code", CouponCode::parse, &mut faults);
    // If `json` is not an object, the intended spelling is unknown: the fields beside it are read, none is reported missing.
    outer.partial = nested && inner.is_none();
    let body = inner.as_mut().unwrap_or(&mut outer);
    let brand_id = body.text("brand_id", BrandId::parse, &mut faults);
    let product_coupon_id = body.text("product_coupon_id", ProductCouponId::parse, &mut faults);
    let stock_id = body.text("stock_id", StockId::parse, &mut faults);
    let appid = body.text("appid", Appid::parse, &mut faults);
    let use_time = body.text("use_time", UseTime::parse, &mut faults);
    let out_request_no = body.text("out_request_no", RequestNo::parse, &mut faults);
    let order = order(body, &mut faults);
    let store_id = body.optional_text("store_id", StoreId::parse, &mut faults);
    let saved_amount = body.optional_number("saved_amount", SavedAmount::parse, &mut faults);
    let sequential_coupon_index = body.optional_number("sequential_coupon_index", round, &mut faults);
    outer.finish(&mut faults);
    if let Some(inner) = inner {
        inner.finish(&mut faults);
    }

    let partial = |faults| Rejected {
        faults,
        partial: PartialCommand {
            openid: openid.clone(),
            coupon_code: coupon_code.clone(),
            brand_id: brand_id.clone(),
            product_coupon_id: product_coupon_id.clone(),
            stock_id: stock_id.clone(),
            appid: appid.clone(),
            out_request_no: out_request_no.clone(),
        },
    };
    if !faults.0.is_empty() {
        return Err(Box::new(partial(faults.joined())));
    }
    match (openid, coupon_code, brand_id, product_coupon_id, stock_id, appid, use_time, out_request_no, order)
    {
        (
            Some(openid),
            Some(coupon_code),
            Some(brand_id),
            Some(product_coupon_id),
            Some(stock_id),
            Some(appid),
            Some(use_time),
            Some(out_request_no),
            Some(order),
        ) => Ok(Redemption {
            openid,
            coupon_code,
            brand_id,
            product_coupon_id,
            stock_id,
            appid,
            use_time,
            out_request_no,
            order,
            store_id,
            saved_amount,
            sequential_coupon_index,
        }),
        // Every `None` above has added a fault, so this arm is unreachable; it still reports all of them.
        _ => Err(Box::default()),
    }
}

fn round(index: u64) -> Result<u32, Unfit> {
    u32::try_from(index)
        .ok()
        .filter(|index| *index < 1_000)
        .ok_or_else(|| Unfit("must be 0 to 999, counted from 0".to_owned()))
}

const PAYMENT: &str = "associated_order_info";
const PAY_SCORE: &str = "associated_pay_score_order_info";

fn order(body: &mut Fields, faults: &mut Faults) -> Option<AssociatedOrder> {
    let (payment, pay_score) = (body.has(PAYMENT), body.has(PAY_SCORE));
    if payment == pay_score && (payment || !body.partial) {
        let found = if payment { "both are" } else { "neither is" };
        let problem = format!("exactly one of {PAYMENT} and {PAY_SCORE} is required; {found} given");
        faults.add(body.pointer(if payment { PAY_SCORE } else { PAYMENT }), problem);
    }
    let payment = body
        .object(PAYMENT, faults)
        .and_then(|order| numbers(order, "transaction_id", "out_trade_no", OrderNo::parse, faults));
    let pay_score = body
        .object(PAY_SCORE, faults)
        .and_then(|order| numbers(order, "order_id", "out_order_no", ServiceOrderNo::parse, faults));
    payment.map(AssociatedOrder::Payment).or(pay_score.map(AssociatedOrder::PayScore))
}

fn numbers<N>(
    mut order: Fields,
    ours: &str,
    theirs: &str,
    parse: fn(&str) -> Result<N, Unfit>,
    faults: &mut Faults,
) -> Option<OrderNumbers<N>> {
    // Rules across fields depend on which fields are present, not on their values: a fault of one must not hide another's.
    let [ours_given, theirs_given, mchid_given, sub_mchid_given] =
        [ours, theirs, "mchid", "sub_mchid"].map(|field| order.has(field));
    let provider = order.optional_text(ours, OrderNo::parse, faults);
    let merchant = order.optional_text(theirs, parse, faults);
    let mchid = order.optional_text("mchid", Mchid::parse, faults);
    let sub_mchid = order.optional_text("sub_mchid", Mchid::parse, faults);
    let pointer = |field| order.pointer(field);
    if !ours_given && !theirs_given {
        faults.add(order.path.clone(), format!("at least one of {ours} and {theirs} is required"));
    }
    if theirs_given && !mchid_given {
        faults.add(pointer("mchid"), format!("is required with {theirs}"));
    }
    if !theirs_given && mchid_given {
        faults.add(pointer("mchid"), format!("goes with {theirs}, which is not given"));
    }
    if !theirs_given && sub_mchid_given {
        faults.add(pointer("sub_mchid"), format!("goes with {theirs}, which is not given"));
    }
    order.finish(faults);
    let merchant = merchant.zip(mchid).map(|(number, mchid)| MerchantOrder { number, mchid, sub_mchid });
    match (provider, merchant) {
        (Some(provider), Some(merchant)) => Some(OrderNumbers::Both(provider, merchant)),
        (Some(provider), None) => Some(OrderNumbers::Provider(provider)),
        (None, Some(merchant)) => Some(OrderNumbers::Merchant(merchant)),
        (None, None) => None,
    }
}

#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, pointer: String, problem: impl Into<String>) {
        self.0.push(Fault { pointer, problem: problem.into() });
    }

    fn joined(mut self) -> Vec<Fault> {
        let more = self.0.len().saturating_sub(FAULTS_MAX);
        if more > 0 {
            self.0.truncate(FAULTS_MAX - 1);
            self.add(String::new(), format!("has {} further faults", more + 1));
        }
        self.0
    }
}

/// The members of one object, removed as they are read; the rest is unknown.
struct Fields {
    path: String,
    members: BTreeMap<String, Node>,
    /// Whether a field may have been put at the wrong level, so that no field is reported missing here.
    partial: bool,
}

impl Fields {
    fn new(path: &str, members: Vec<(String, Node)>, faults: &mut Faults) -> Self {
        let mut fields = Self { path: path.to_owned(), members: BTreeMap::new(), partial: false };
        for (name, node) in members {
            match fields.members.entry(name) {
                Entry::Vacant(vacant) => {
                    vacant.insert(node);
                }
                Entry::Occupied(occupied) => {
                    let pointer = pointer(path, occupied.key());
                    faults.add(pointer, "is given twice");
                }
            }
        }
        fields
    }

    fn pointer(&self, name: &str) -> String {
        pointer(&self.path, name)
    }

    fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    fn take(&mut self, name: &str) -> Option<Node> {
        self.members.remove(name)
    }

    fn object(&mut self, name: &str, faults: &mut Faults) -> Option<Fields> {
        match self.take(name)? {
            Node::Object(members) => Some(Fields::new(&self.pointer(name), members, faults)),
            other => {
                faults.add(self.pointer(name), format!("must be an object, not {}", other.kind()));
                None
            }
        }
    }

    fn text<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, Unfit>,
        faults: &mut Faults,
    ) -> Option<T> {
        if !self.has(name) && !self.partial {
            faults.add(self.pointer(name), "is missing");
        }
        self.optional_text(name, parse, faults)
    }

    fn optional_text<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, Unfit>,
        faults: &mut Faults,
    ) -> Option<T> {
        let read = match self.take(name)? {
            Node::Text(text) => parse(&text),
            Node::Null => Err(Unfit("must not be null; leave the field out".to_owned())),
            other => Err(Unfit(format!("must be a string, not {}", other.kind()))),
        };
        read.map_err(|unfit| faults.add(self.pointer(name), unfit.0)).ok()
    }

    fn optional_number<T>(
        &mut self,
        name: &str,
        parse: impl Fn(u64) -> Result<T, Unfit>,
        faults: &mut Faults,
    ) -> Option<T> {
        let read = match self.take(name)? {
            Node::Natural(number) => parse(number),
            Node::Null => Err(Unfit("must not be null; leave the field out".to_owned())),
            other => Err(Unfit(format!("must be a whole number from 0, not {}", other.kind()))),
        };
        read.map_err(|unfit| faults.add(self.pointer(name), unfit.0)).ok()
    }

    fn finish(self, faults: &mut Faults) {
        for name in self.members.keys() {
            faults.add(self.pointer(name), "is not a field of this command");
        }
    }
}

/// The pointer to member `name` of the object at `path`. The name is the sender's: it is escaped and shortened.
fn pointer(path: &str, name: &str) -> String {
    let mut escaped = name.replace('~', "~0").replace('/', "~1");
    if let Some((end, _)) = escaped.char_indices().nth(64) {
        escaped.truncate(end);
        escaped.push('…');
    }
    format!("{path}/{escaped}")
}

/// A JSON value that keeps duplicate members.
enum Node {
    Null,
    Bool,
    Natural(u64),
    /// Whole, and written with a decimal point or an exponent.
    WholeFloat,
    OtherNumber,
    Text(String),
    List,
    Object(Vec<(String, Node)>),
}

impl Node {
    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "a boolean",
            Self::Natural(_) => "a number",
            Self::WholeFloat => "a number written with a decimal point or an exponent",
            Self::OtherNumber => "a negative or broken number",
            Self::Text(_) => "a string",
            Self::List => "an array",
            Self::Object(_) => "an object",
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Bool)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
        Ok(Node::Natural(number))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::OtherNumber)
    }

    fn visit_f64<E>(self, number: f64) -> Result<Node, E> {
        Ok(if number >= 0.0 && number.fract() == 0.0 { Node::WholeFloat } else { Node::OtherNumber })
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Node, E> {
        Ok(Node::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        // No field is a list, so nothing of it is kept, but all of it must be JSON.
        while list.next_element::<Node>()?.is_some() {}
        Ok(Node::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry::<String, Node>()? {
            members.push(member);
        }
        Ok(Node::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vendor's published example, word for word, in the spelling of the PHP SDK.
    const NESTED: &str = include_str!("../../docs/contract/examples/command.nested.json");

    /// The same redemption, flat.
    const FLAT: &str = include_str!("../../docs/contract/examples/command.flat.json");

    const NUMBERS: &str = r#"{
    "transaction_id": "4200000000123456789123456789",
    "out_trade_no": "trade_no_20250724123456",
    "mchid": "1234567890",
    "sub_mchid": "1234567890"
  }"#;

    fn faults(text: &str) -> Vec<(String, String)> {
        let rejected = decode(text.as_bytes()).expect_err(text);
        rejected.faults.into_iter().map(|fault| (fault.pointer, fault.problem)).collect()
    }

    fn pointers(text: &str) -> Vec<String> {
        faults(text).into_iter().map(|(pointer, _)| pointer).collect()
    }

    fn altered(from: &str, to: &str) -> String {
        assert!(FLAT.contains(from), "{from}");
        FLAT.replace(from, to)
    }

    #[test]
    fn both_spellings_are_one_redemption() {
        let nested = decode(NESTED.as_bytes()).unwrap();
        assert_eq!(nested, decode(FLAT.as_bytes()).unwrap());
        assert_eq!(nested.use_time.as_str(), "2025-07-24T00:00:00+08:00");
        assert_eq!(nested.sequential_coupon_index, Some(0));
        assert!(matches!(nested.order, AssociatedOrder::Payment(OrderNumbers::Both(..))));
    }

    #[test]
    fn optional_fields_are_read() {
        let text = altered(r#""sequential_coupon_index": 0"#, r#""store_id": "S1", "saved_amount": 2000"#);
        let redemption = decode(text.as_bytes()).unwrap();
        assert_eq!(redemption.store_id.unwrap().as_str(), "S1");
        assert_eq!(redemption.saved_amount.unwrap().fen(), 2000);
        assert_eq!(redemption.sequential_coupon_index, None);
    }

    #[test]
    fn non_object_is_one_fault_of_the_whole() {
        for text in ["", "nonsense", "[]", "null", "42", "\"x\"", "{", "{\"a\":}", "{} {}", "\u{0}"] {
            assert_eq!(pointers(text), [""], "{text:?}");
        }
        assert_eq!(decode(b"\xff{}").unwrap_err().faults[0].problem, "is not UTF-8 from byte 0 on");
        for (mark, named) in
            [(&b"\xef\xbb\xbf"[..], "(EF BB BF)"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")]
        {
            let faults = decode(&[mark, FLAT.as_bytes()].concat()).unwrap_err().faults;
            assert!(faults.len() == 1 && faults[0].problem.contains(named), "{faults:?}");
        }
        let long = vec![b' '; COMMAND_BYTES_MAX + 1];
        assert!(decode(&long).unwrap_err().faults[0].problem.contains("65537 bytes"));
        let deep = "[".repeat(50_000);
        assert_eq!(pointers(&deep), [""]);
    }

    #[test]
    fn all_faults_are_reported_together() {
        let text = r#"{"openid": "../x", "coupon_code": 7, "brand_id": null, "stok_id": "1",
            "associated_order_info": {"out_trade_no": "T1", "surprise": true}, "saved_amount": -5,
            "use_time": "yesterday", "out_request_no": "a%2fb", "appid": "wx😀", "sequential_coupon_index": 1.5}"#;
        assert_eq!(
            pointers(text),
            [
                "/openid",
                "/coupon_code",
                "/brand_id",
                "/product_coupon_id",
                "/stock_id",
                "/appid",
                "/use_time",
                "/out_request_no",
                "/associated_order_info/mchid",
                "/associated_order_info/surprise",
                "/saved_amount",
                "/sequential_coupon_index",
                "/stok_id",
            ]
        );
    }

    #[test]
    fn pointers_follow_the_spelling() {
        let text = NESTED.replace("\"120344\"", "null").replace("\"json\": {", "\"json\": {\"x/y~z\": 1,");
        assert_eq!(pointers(&text), ["/json/brand_id", "/json/x~1y~0z"]);
    }

    #[test]
    fn whole_number_written_as_a_float_is_reported_as_one() {
        for (field, pointer) in
            [("saved_amount", "/saved_amount"), ("sequential_coupon_index", "/sequential_coupon_index")]
        {
            for float in ["5.0", "0.0", "-0.0", "5e0", "1E3", "2000.000"] {
                let text = altered(r#""sequential_coupon_index": 0"#, &format!("\"{field}\": {float}"));
                let reported = faults(&text);
                let [(at, problem)] = &reported[..] else { panic!("{float}: {reported:?}") };
                assert_eq!(at, pointer, "{float}");
                assert!(problem.ends_with(Node::WholeFloat.kind()), "{float}: {problem}");
            }
            // A number that is not whole has another fault.
            for other in ["5.5", "-5", "1e-1"] {
                let text = altered(r#""sequential_coupon_index": 0"#, &format!("\"{field}\": {other}"));
                let reported = faults(&text);
                assert_eq!(reported[0].0, pointer, "{other}");
                assert!(reported[0].1.ends_with(Node::OtherNumber.kind()), "{other}: {reported:?}");
            }
        }
    }

    #[test]
    fn byte_order_mark_before_a_command_is_its_one_fault() {
        let utf16 = |little: bool| -> Vec<u8> {
            let units = ['\u{feff}'].into_iter().chain(FLAT.chars()).collect::<String>();
            units
                .encode_utf16()
                .flat_map(|unit| if little { unit.to_le_bytes() } else { unit.to_be_bytes() })
                .collect()
        };
        for bytes in [
            format!("\u{feff}{FLAT}").into_bytes(),
            format!("\u{feff}{NESTED}").into_bytes(),
            "\u{feff}".as_bytes().to_vec(),
            b"\xef\xbb\xbf{}".to_vec(),
            utf16(true),
            utf16(false),
        ] {
            let rejected = decode(&bytes).unwrap_err();
            let [Fault { pointer, problem }] = &rejected.faults[..] else { panic!("{:?}", rejected.faults) };
            assert_eq!(pointer, "");
            assert!(problem.contains("byte order mark"), "{problem}");
        }
    }

    #[test]
    fn fields_beside_the_nested_body_are_unknown() {
        let text = NESTED.replace("\"json\": {", "\"brand_id\": \"120344\", \"json\": {");
        assert_eq!(pointers(&text), ["/brand_id"]);
    }

    #[test]
    fn json_member_that_is_no_object_is_one_fault() {
        for json in ["null", "5", "\"{}\"", "[]", "true"] {
            let reported = |beside: &str| pointers(&format!(r#"{{"json": {json}, {beside}}}"#));
            let path = r#""openid": "oUser", "coupon_code": "C1""#;
            assert_eq!(reported(path), ["/json"]);
            assert_eq!(reported(r#""openid": 5"#), ["/json", "/openid", "/coupon_code"]);
            assert_eq!(reported(&format!(r#"{path}, "stok_id": "1""#)), ["/json", "/stok_id"]);
            // Faults of the fields beside it are reported all the same, but none is called missing or unknown.
            assert_eq!(reported(&format!(r#"{path}, "brand_id": "120344""#)), ["/json"]);
            assert_eq!(reported(&format!(r#"{path}, "brand_id": "no!""#)), ["/json", "/brand_id"]);
            let order = r#""associated_order_info": {"out_trade_no": "T1"}"#;
            assert_eq!(reported(&format!("{path}, {order}")), ["/json", "/associated_order_info/mchid"]);
        }
        let flat = altered("\"openid\"", "\"json\": null, \"openid\"");
        let rejected = decode(flat.as_bytes()).unwrap_err();
        assert_eq!(rejected.faults.len(), 1, "{:?}", rejected.faults);
        assert_eq!(rejected.partial, PartialCommand::from(&decode(FLAT.as_bytes()).unwrap()));
    }

    #[test]
    fn a_field_given_twice_is_a_fault() {
        let text = altered("\"appid\"", "\"out_request_no\": \"34657_20250101_999999\", \"appid\"");
        assert_eq!(faults(&text), [("/out_request_no".to_owned(), "is given twice".to_owned())]);
    }

    #[test]
    fn exactly_one_order_is_required() {
        let both = altered(
            r#""sequential_coupon_index": 0"#,
            r#""associated_pay_score_order_info": {"order_id": "1"}"#,
        );
        assert_eq!(pointers(&both), ["/associated_pay_score_order_info"]);
        let neither = FLAT.replace("associated_order_info", "store_id");
        assert_eq!(pointers(&neither), ["/associated_order_info", "/store_id"]);
        let score = FLAT
            .replace("associated_order_info", PAY_SCORE)
            .replace("transaction_id", "order_id")
            .replace("out_trade_no", "out_order_no");
        let redemption = decode(score.as_bytes()).unwrap();
        assert!(matches!(redemption.order, AssociatedOrder::PayScore(OrderNumbers::Both(..))));
        assert_eq!(pointers(&altered(NUMBERS, "{}")), ["/associated_order_info"]);
        assert_eq!(
            pointers(&altered(NUMBERS, r#"{"transaction_id": "1", "mchid": "1", "sub_mchid": "2"}"#)),
            ["/associated_order_info/mchid", "/associated_order_info/sub_mchid"]
        );
    }

    #[test]
    fn a_fault_in_an_order_hides_no_other_and_makes_none() {
        let check = |order: &str, expected: &[&str]| {
            let reported = pointers(&altered(NUMBERS, order));
            let expected: Vec<_> =
                expected.iter().map(|field| format!("/associated_order_info{field}")).collect();
            assert_eq!(reported, expected, "{order}");
        };
        check(r#"{"out_trade_no": "T1", "sub_mchid": 5}"#, &["/sub_mchid", "/mchid"]);
        check(r#"{"transaction_id": 5, "out_trade_no": "T1"}"#, &["/transaction_id", "/mchid"]);
        check(r#"{"transaction_id": "1", "mchid": "x"}"#, &["/mchid", "/mchid"]);
        check(r#"{"mchid": null, "sub_mchid": "1"}"#, &["/mchid", "", "/mchid", "/sub_mchid"]);
        check(r#"{"mchid": "1", "mchid": "2"}"#, &["/mchid", "", "/mchid"]);
        // A field that is present counts as such, however invalid.
        check(r#"{"transaction_id": ""}"#, &["/transaction_id"]);
        check(r#"{"out_trade_no": 5, "mchid": "1", "sub_mchid": "2"}"#, &["/out_trade_no"]);
        check(r#"{"out_trade_no": "T1", "mchid": 5}"#, &["/mchid"]);
        check(r#"{"out_trade_no": "a b"}"#, &["/out_trade_no", "/mchid"]);
    }

    #[test]
    fn readable_fields_of_an_invalid_command_are_kept() {
        let text = altered("\"120344\"", "\"no brand!\"");
        let partial = decode(text.as_bytes()).unwrap_err().partial;
        assert_eq!(partial.coupon_code.unwrap().as_str(), "123446565767");
        assert_eq!(partial.brand_id, None);
    }

    #[test]
    fn faults_beyond_the_maximum_are_counted() {
        let members: Vec<_> = (0..500).map(|n| format!("\"x{n}\": 1")).collect();
        let reported = faults(&format!("{{{}}}", members.join(",")));
        assert_eq!(reported.len(), FAULTS_MAX);
        assert!(reported[FAULTS_MAX - 1].1.starts_with("has 478 further faults"), "{reported:?}");
    }
}
