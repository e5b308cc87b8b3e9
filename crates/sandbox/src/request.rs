//! Reads the requests of clients as strictly as the published rules allow: no unknown field, no null, no emoji.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::error_response::{ErrorResponse, sub_code};

/// The four names that place a coupon; every call about one carries them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub product_coupon_id: String,
    pub stock_id: String,
    pub appid: String,
    pub brand_id: String,
}

/// The body of `use`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Use {
    pub place: Path,
    pub out_request_no: String,
    /// As the client wrote it.
    pub use_time: String,
    pub order: Order,
    pub saved_amount: Option<u64>,
    pub store_id: Option<String>,
    /// `sequential_coupon_index`: only coupons of the legacy mode have rounds to choose from.
    pub round: Option<u64>,
}

/// The order a redemption belongs to, echoed in the usage detail under its own name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Order {
    /// `associated_order_info` or `associated_pay_score_order_info`.
    pub name: &'static str,
    pub value: Value,
}

/// The body of `return`, `confirm` and `deactivate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub place: Path,
    pub out_request_no: String,
    pub deactivate_reason: Option<String>,
    pub round: Option<u64>,
}

/// The body of `send`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Send {
    pub place: Path,
    pub send_request_no: String,
    pub coupon_code: Option<String>,
    pub attach: Option<String>,
}

impl Use {
    pub(crate) fn read(body: &[u8]) -> Result<Use, ErrorResponse> {
        let mut fields = Fields::of_body(body)?;
        let asked = Use {
            place: Path::take(&mut fields)?,
            out_request_no: fields.text("out_request_no", 6, 40, is_number_character)?,
            use_time: fields.time("use_time")?,
            order: Order::take(&mut fields)?,
            saved_amount: fields.whole("saved_amount")?,
            store_id: fields.maybe_text("store_id", 1, 64, any)?,
            round: fields.whole("sequential_coupon_index")?,
        };
        fields.finish()?;
        Ok(asked)
    }
}

impl Change {
    /// `extra` names the one field that this operation has and the others have not, if there is one.
    pub(crate) fn read(body: &[u8], extra: Option<&str>) -> Result<Change, ErrorResponse> {
        let mut fields = Fields::of_body(body)?;
        let mut asked = Change {
            place: Path::take(&mut fields)?,
            out_request_no: fields.text("out_request_no", 6, 40, is_number_character)?,
            deactivate_reason: None,
            round: None,
        };
        match extra {
            Some("deactivate_reason") => {
                asked.deactivate_reason = Some(fields.text("deactivate_reason", 1, 150, any)?)
            }
            Some("sequential_coupon_index") => asked.round = fields.whole("sequential_coupon_index")?,
            _ => {}
        }
        fields.finish()?;
        Ok(asked)
    }
}

impl Send {
    pub(crate) fn read(body: &[u8]) -> Result<Send, ErrorResponse> {
        let mut fields = Fields::of_body(body)?;
        let asked = Send {
            place: Path::take(&mut fields)?,
            send_request_no: fields.text("send_request_no", 6, 128, is_number_character)?,
            coupon_code: fields.maybe_text("coupon_code", 1, 40, is_number_character)?,
            attach: fields.maybe_text("attach", 1, 150, any)?,
        };
        fields.object("coupon_tag_info")?;
        fields.finish()?;
        Ok(asked)
    }
}

/// The body of `echo`: the message to echo.
pub(super) fn read_echo(body: &[u8]) -> Result<String, ErrorResponse> {
    let mut fields = Fields::of_body(body)?;
    let message = fields.text("echo_message", 1, 1024, any)?;
    fields.maybe_text("encrypted_echo_message", 1, 4096, any)?;
    fields.maybe_text("notify_url", 1, 256, any)?;
    fields.finish()?;
    Ok(message)
}

impl Path {
    /// Reads the query of `query`.
    pub(crate) fn read_query(query: &str) -> Result<Path, ErrorResponse> {
        let mut fields = Fields::of_query(query)?;
        let place = Path::take(&mut fields)?;
        fields.finish()?;
        Ok(place)
    }

    fn take(fields: &mut Fields) -> Result<Path, ErrorResponse> {
        Ok(Path {
            product_coupon_id: fields.text("product_coupon_id", 1, 40, any)?,
            stock_id: fields.text("stock_id", 1, 40, any)?,
            appid: fields.text("appid", 1, 32, any)?,
            brand_id: fields.text("brand_id", 1, 40, any)?,
        })
    }
}

impl Order {
    fn take(fields: &mut Fields) -> Result<Order, ErrorResponse> {
        const PAID: &str = "associated_order_info";
        const SCORED: &str = "associated_pay_score_order_info";
        match (fields.object(PAID)?, fields.object(SCORED)?) {
            (Some(order), None) => Order::check(PAID, order, "transaction_id", ("out_trade_no", 64), any),
            (None, Some(order)) => {
                Order::check(SCORED, order, "order_id", ("out_order_no", 32), is_order_character)
            }
            (Some(_), Some(_)) => Err(fields.fault(
                SCORED,
                Value::Null,
                sub_code::PARAMETERS,
                "give one kind of order, not both",
            )),
            (None, None) => {
                Err(fields.fault(PAID, Value::Null, sub_code::SEE_DETAIL, "give one kind of order"))
            }
        }
    }

    fn check(
        name: &'static str,
        mut fields: Fields,
        theirs: &str,
        (ours, ours_max): (&str, usize),
        allowed: fn(char) -> bool,
    ) -> Result<Order, ErrorResponse> {
        let value = Value::Object(fields.members.clone());
        let theirs_given = fields.maybe_text(theirs, 1, 64, any)?.is_some();
        let ours_given = fields.maybe_text(ours, 1, ours_max, allowed)?.is_some();
        let mchid_given = fields.maybe_text("mchid", 1, 32, any)?.is_some();
        // A merchant that is paid directly has no sub-merchant: the rules call the field "empty" then.
        fields.maybe_text("sub_mchid", 0, 32, any)?;
        if !theirs_given && !ours_given {
            return Err(fields.fault(
                theirs,
                Value::Null,
                sub_code::SEE_DETAIL,
                "one of the two order numbers is required",
            ));
        }
        if ours_given && !mchid_given {
            return Err(fields.fault(
                "mchid",
                Value::Null,
                sub_code::SEE_DETAIL,
                "required with a merchant's order number",
            ));
        }
        fields.finish()?;
        Ok(Order { name, value })
    }
}

/// The members of one object, removed as they are read; the rest is unknown.
struct Fields {
    members: Map<String, Value>,
    /// The JSON pointer of the object itself.
    pointer: String,
    location: &'static str,
}

impl Fields {
    fn of_body(body: &[u8]) -> Result<Fields, ErrorResponse> {
        let whole =
            |issue: &str| ErrorResponse::parameter(sub_code::SEE_DETAIL, "body", "", Value::Null, issue);
        let value: Value =
            serde_json::from_slice(body).map_err(|error| whole(&format!("not JSON: {error}")))?;
        refuse_forbidden(&value, "")?;
        let Value::Object(members) = value else {
            return Err(whole("not an object"));
        };
        Ok(Fields { members, pointer: String::new(), location: "body" })
    }

    fn of_query(query: &str) -> Result<Fields, ErrorResponse> {
        let whole =
            |issue: &str| ErrorResponse::parameter(sub_code::SEE_DETAIL, "query", "", query.into(), issue);
        let mut members = Map::new();
        let mut seen = HashSet::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) =
                (percent_decoded(name), percent_decoded(&value.replace('+', " ")))
            else {
                return Err(whole("not percent-encoded UTF-8"));
            };
            if !seen.insert(name.clone()) {
                return Err(whole("a parameter is given twice"));
            }
            members.insert(name, Value::String(value));
        }
        Ok(Fields { members, pointer: String::new(), location: "query" })
    }

    fn text(
        &mut self,
        name: &str,
        least: usize,
        most: usize,
        allowed: fn(char) -> bool,
    ) -> Result<String, ErrorResponse> {
        match self.maybe_text(name, least, most, allowed)? {
            Some(text) => Ok(text),
            None => Err(self.fault(name, Value::Null, sub_code::SEE_DETAIL, "required")),
        }
    }

    fn maybe_text(
        &mut self,
        name: &str,
        least: usize,
        most: usize,
        allowed: fn(char) -> bool,
    ) -> Result<Option<String>, ErrorResponse> {
        let text = match self.members.remove(name) {
            None => return Ok(None),
            Some(Value::String(text)) => text,
            Some(other) => return Err(self.fault(name, other, sub_code::ILLEGAL, "not a string")),
        };
        let length = text.chars().count();
        let issue = if length < least {
            Some((sub_code::TOO_SHORT, "too short"))
        } else if length > most {
            Some((sub_code::TOO_LONG, "too long"))
        } else if !text.chars().all(allowed) {
            Some((sub_code::ILLEGAL, "a character is not allowed"))
        } else {
            None
        };
        match issue {
            Some((code, issue)) => Err(self.fault(name, text.into(), code, issue)),
            None => Ok(Some(text)),
        }
    }

    fn time(&mut self, name: &str) -> Result<String, ErrorResponse> {
        let text = self.text(name, 1, 40, any)?;
        if is_rfc3339(&text) {
            Ok(text)
        } else {
            Err(self.fault(name, text.into(), sub_code::ILLEGAL, "not RFC 3339 with seconds and an offset"))
        }
    }

    fn whole(&mut self, name: &str) -> Result<Option<u64>, ErrorResponse> {
        match self.members.remove(name) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) => Ok(Some(number)),
                None if value.is_i64() => {
                    Err(self.fault(name, value, sub_code::OUT_OF_RANGE, "less than zero"))
                }
                None => Err(self.fault(name, value, sub_code::ILLEGAL, "not an integer")),
            },
        }
    }

    fn object(&mut self, name: &str) -> Result<Option<Fields>, ErrorResponse> {
        match self.members.remove(name) {
            None => Ok(None),
            Some(Value::Object(members)) => Ok(Some(Fields {
                members,
                pointer: format!("{}/{name}", self.pointer),
                location: self.location,
            })),
            Some(other) => Err(self.fault(name, other, sub_code::ILLEGAL, "not an object")),
        }
    }

    fn finish(self) -> Result<(), ErrorResponse> {
        match self.members.iter().next() {
            None => Ok(()),
            Some((name, value)) => {
                Err(self.fault(name, value.clone(), sub_code::PARAMETERS, "unknown parameter"))
            }
        }
    }

    fn fault(&self, name: &str, value: Value, code: u64, issue: &str) -> ErrorResponse {
        let field = match self.location {
            "body" => format!("{}/{name}", self.pointer),
            _ => name.to_owned(),
        };
        ErrorResponse::parameter(code, self.location, &field, value, issue)
    }
}

/// Undoes percent-encoding; `None` if it is broken or not UTF-8.
pub(super) fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let (high, low) =
                (char::from(bytes.next()?).to_digit(16)?, char::from(bytes.next()?).to_digit(16)?);
            decoded.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

/// Nulls, and characters that need four bytes of UTF-8, are forbidden at every depth, in names and in values.
fn refuse_forbidden(value: &Value, pointer: &str) -> Result<(), ErrorResponse> {
    let four_bytes = |text: &str| text.chars().any(|character| character > '\u{FFFF}');
    let fault =
        |issue| Err(ErrorResponse::parameter(sub_code::ILLEGAL, "body", pointer, value.clone(), issue));
    match value {
        Value::Null => fault("null is not allowed"),
        Value::String(text) if four_bytes(text) => fault("a character needs four bytes of UTF-8"),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| refuse_forbidden(item, &format!("{pointer}/{index}"))),
        Value::Object(members) => members.iter().try_for_each(|(name, member)| {
            if four_bytes(name) {
                return fault("a name needs four bytes of UTF-8");
            }
            refuse_forbidden(member, &format!("{pointer}/{name}"))
        }),
        _ => Ok(()),
    }
}

fn is_rfc3339(text: &str) -> bool {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00";
    let Some((moment, rest)) = text.as_bytes().split_at_checked(SHAPE.len()) else {
        return false;
    };
    let shaped = moment
        .iter()
        .zip(SHAPE)
        .all(|(byte, like)| if *like == b'0' { byte.is_ascii_digit() } else { byte == like });
    let zone = match rest.strip_prefix(b".") {
        None => rest,
        Some(fraction) => {
            let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if !(1..=9).contains(&digits) {
                return false;
            }
            &fraction[digits..]
        }
    };
    let zoned = match zone {
        b"Z" => true,
        [b'+' | b'-', a, b, b':', c, d] => [a, b, c, d].iter().all(|digit| digit.is_ascii_digit()),
        _ => false,
    };
    shaped && zoned && text.parse::<Timestamp>().is_ok()
}

fn any(_: char) -> bool {
    true
}

fn is_number_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '-')
}

fn is_order_character(character: char) -> bool {
    is_number_character(character) || character == '|'
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn body() -> Value {
        json!({
            "product_coupon_id": "1000000013", "stock_id": "1000000013001", "appid": "wx233544546545989",
            "use_time": "2025-07-24T00:00:00+08:00", "out_request_no": "MCHUSE202003101234", "brand_id": "120344",
            "associated_order_info": { "transaction_id": "4200000000123456789123456789" },
        })
    }

    fn read(change: impl FnOnce(&mut Value)) -> Result<Use, (u64, Value)> {
        let mut body = body();
        change(&mut body);
        Use::read(body.to_string().as_bytes()).map_err(|refusal| {
            assert_eq!((refusal.status, refusal.code), (400, "PARAM_ERROR"));
            (refusal.sub_code, refusal.detail.unwrap()["field"].clone())
        })
    }

    #[track_caller]
    fn refused(field: &str, code: u64, change: impl FnOnce(&mut Value)) {
        assert_eq!(read(change).unwrap_err(), (code, Value::from(field)));
    }

    #[test]
    fn a_body_by_the_rules_is_taken() {
        read(|_| {}).unwrap();
        read(|body| body["saved_amount"] = json!(0)).unwrap();
        read(|body| body["store_id"] = json!("1")).unwrap();
        read(|body| body["use_time"] = json!("2025-07-24T00:00:00.123Z")).unwrap();
        read(|body| {
            body["associated_order_info"] = json!({"out_trade_no": "a", "mchid": "1", "sub_mchid": ""})
        })
        .unwrap();
        let scored = read(|body| {
            body.as_object_mut().unwrap().remove("associated_order_info");
            body["associated_pay_score_order_info"] = json!({"out_order_no": "a|b", "mchid": "1"});
        });
        assert_eq!(scored.unwrap().order.name, "associated_pay_score_order_info");
    }

    #[test]
    fn every_field_is_taken_at_its_longest() {
        for (pointer, length) in [
            ("/product_coupon_id", 40),
            ("/stock_id", 40),
            ("/appid", 32),
            ("/brand_id", 40),
            ("/out_request_no", 40),
            ("/store_id", 64),
            ("/associated_order_info/transaction_id", 64),
            ("/associated_order_info/out_trade_no", 64),
            ("/associated_order_info/mchid", 32),
            ("/associated_order_info/sub_mchid", 32),
        ] {
            let set = |body: &mut Value, length: usize| {
                body["associated_order_info"]["mchid"] = json!("1");
                let (parent, name) = pointer.rsplit_once('/').unwrap();
                body.pointer_mut(parent).unwrap()[name] = json!("7".repeat(length));
            };
            read(|body| set(body, length)).unwrap();
            refused(pointer, sub_code::TOO_LONG, |body| set(body, length + 1));
        }
        read(|body| body["saved_amount"] = json!(10_000_000_000_u64)).unwrap();
        read(|body| body["sequential_coupon_index"] = json!(999)).unwrap();
    }

    #[test]
    fn a_body_against_the_rules_is_refused_by_field() {
        refused("/stock_id", sub_code::SEE_DETAIL, |body| {
            drop(body.as_object_mut().unwrap().remove("stock_id"))
        });
        refused("/stock_id", sub_code::ILLEGAL, |body| body["stock_id"] = json!(1));
        refused("/stock_id", sub_code::ILLEGAL, |body| body["stock_id"] = Value::Null);
        refused("/stock_id", sub_code::ILLEGAL, |body| body["stock_id"] = json!("😀"));
        refused("/stok_id", sub_code::PARAMETERS, |body| body["stok_id"] = json!("1"));
        refused("/out_request_no", sub_code::TOO_SHORT, |body| body["out_request_no"] = json!("12345"));
        refused("/out_request_no", sub_code::TOO_LONG, |body| body["out_request_no"] = json!("1".repeat(41)));
        refused("/out_request_no", sub_code::ILLEGAL, |body| body["out_request_no"] = json!("1234567|"));
        refused("/saved_amount", sub_code::OUT_OF_RANGE, |body| body["saved_amount"] = json!(-1));
        refused("/saved_amount", sub_code::ILLEGAL, |body| body["saved_amount"] = json!("1"));
        refused("/associated_order_info/mchid", sub_code::SEE_DETAIL, |body| {
            body["associated_order_info"]["out_trade_no"] = json!("a");
        });
        refused("/associated_order_info/transaction_id", sub_code::SEE_DETAIL, |body| {
            body["associated_order_info"] = json!({});
        });
        refused("/associated_order_info/order", sub_code::PARAMETERS, |body| {
            body["associated_order_info"]["order"] = json!("a")
        });
        refused("/associated_pay_score_order_info", sub_code::PARAMETERS, |body| {
            body["associated_pay_score_order_info"] = json!({"order_id": "1"});
        });
        refused("/associated_order_info", sub_code::SEE_DETAIL, |body| {
            body.as_object_mut().unwrap().remove("associated_order_info");
        });
    }

    #[test]
    fn use_times_need_seconds_and_an_offset() {
        for wrong in [
            "2025-07-24T00:00+08:00",
            "2025-07-24T00:00:00",
            "2025-07-24 00:00:00+08:00",
            "2025-13-24T00:00:00+08:00",
            "2025-07-24T00:00:00.+08:00",
            "2025-07-24T00:00:00+0800",
            "2025-07-24T00:00:00+08:00[Asia/Shanghai]",
            "today",
        ] {
            refused("/use_time", sub_code::ILLEGAL, |body| body["use_time"] = json!(wrong));
        }
    }

    #[test]
    fn a_query_is_read_as_strictly() {
        let place = Path::read_query("product_coupon_id=1&stock_id=2&appid=wx%31&brand_id=4").unwrap();
        assert_eq!(place.appid, "wx1");
        for wrong in [
            "",
            "product_coupon_id=1&stock_id=2&appid=3",
            "product_coupon_id=1&stock_id=2&appid=3&brand_id=4&x=1",
            "product_coupon_id=1&stock_id=2&appid=3&brand_id=4&appid=3",
            "product_coupon_id=%zz&stock_id=2&appid=3&brand_id=4",
        ] {
            assert_eq!(Path::read_query(wrong).unwrap_err().code, "PARAM_ERROR", "{wrong}");
        }
    }
}
