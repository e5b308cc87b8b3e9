//! A redemption: a command that has been read and validated.
//!
//! Every field is a type that cannot hold a value the payment API would refuse by its own documented rules
//! (`POST /v3/marketing/partner/product-coupon/users/{openid}/coupons/{coupon_code}/use`, partner mode).
//! Nothing here knows about JSON; `wire::command` reads commands and `wechat::client` writes bodies.

use std::fmt;

/// A valid command: use this coupon of this user for this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redemption {
    /// The user, under `appid`.
    pub openid: Openid,
    /// The user's coupon.
    pub coupon_code: CouponCode,
    /// The brand whose coupon it is.
    pub brand_id: BrandId,
    /// The product coupon that the stock belongs to.
    pub product_coupon_id: ProductCouponId,
    /// The stock that the coupon was issued from.
    pub stock_id: StockId,
    /// The app under which `openid` is known, bound to the service provider.
    pub appid: Appid,
    /// When the coupon was used, as the order service says.
    pub use_time: UseTime,
    /// The number of this redemption. The same number with the same body takes effect at most once.
    pub out_request_no: RequestNo,
    /// The order that the coupon was used for.
    pub order: AssociatedOrder,
    /// The store that redeems.
    pub store_id: Option<StoreId>,
    /// What the user saved, in fen.
    pub saved_amount: Option<SavedAmount>,
    /// The round of a legacy sequential coupon, counted from 0.
    pub sequential_coupon_index: Option<u32>,
}

/// The one order that a redemption belongs to. Exactly one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AssociatedOrder {
    /// `associated_order_info`: a WeChat Pay order.
    Payment(OrderNumbers),
    /// `associated_pay_score_order_info`: a pay-score service order.
    PayScore(OrderNumbers<ServiceOrderNo>),
}

/// The numbers of an order: the provider's, the merchant's, or both if both mean the same order. `N` is the merchant's
/// number, whose rule depends on the kind of order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderNumbers<N = OrderNo> {
    /// `transaction_id`, or `order_id` of a pay-score order.
    Provider(OrderNo),
    /// `out_trade_no`, or `out_order_no` of a pay-score order.
    Merchant(MerchantOrder<N>),
    /// Both numbers of one order.
    Both(OrderNo, MerchantOrder<N>),
}

/// A merchant's own order number and the merchant that it is unique for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MerchantOrder<N = OrderNo> {
    /// The merchant's order number.
    pub number: N,
    /// The merchant: the service provider's number if the order was placed in partner mode.
    pub mchid: Mchid,
    /// The sub-merchant, for an order placed in partner mode.
    pub sub_mchid: Option<Mchid>,
}

impl<N> OrderNumbers<N> {
    /// The provider's number, if it is known.
    pub fn provider(&self) -> Option<&OrderNo> {
        match self {
            Self::Provider(number) | Self::Both(number, _) => Some(number),
            Self::Merchant(_) => None,
        }
    }

    /// The merchant's order, if it is known.
    pub fn merchant(&self) -> Option<&MerchantOrder<N>> {
        match self {
            Self::Merchant(order) | Self::Both(_, order) => Some(order),
            Self::Provider(_) => None,
        }
    }
}

/// Why a text is invalid: a lower-case fragment that says what is expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(pub String);

/// A text type with a rule: an alphabet, and a length in bytes (every alphabet here is ASCII).
macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident: $min:literal..=$max:literal of $alphabet:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// Length in characters, shortest and longest.
            pub const LENGTH: (usize, usize) = ($min, $max);

            /// The characters it may have, as a regular-expression class.
            pub const ALPHABET: &str = $alphabet.class;

            /// Accepts a text that follows the rule.
            ///
            /// # Errors
            /// [`Unfit`] names the rule that the text breaks.
            pub fn parse(text: &str) -> Result<Self, Unfit> {
                fit(text, $min, $max, &$alphabet)?;
                Ok(Self(text.into()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

texts! {
    /// A user's OpenID. It is part of the path, so its alphabet is closed.
    Openid: 1..=128 of WORD;
    /// A user coupon's code: at most 40 characters. It is part of the path, so its alphabet is closed.
    CouponCode: 1..=40 of WORD;
    /// A brand.
    BrandId: 1..=40 of WORD;
    /// A product coupon.
    ProductCouponId: 1..=40 of WORD;
    /// A stock of a product coupon.
    StockId: 1..=40 of WORD;
    /// A WeChat app.
    Appid: 1..=32 of WORD;
    /// The number of a redemption request, unique on the brand's side.
    RequestNo: 6..=40 of WORD;
    /// A store of the brand.
    StoreId: 1..=64 of WORD;
    /// A merchant number.
    Mchid: 1..=32 of DIGITS;
    /// An order number, the provider's or the merchant's.
    OrderNo: 1..=64 of ORDER;
    /// A merchant's number of a pay-score service order: at most 32 characters.
    ServiceOrderNo: 1..=32 of SERVICE_ORDER;
}

struct Alphabet {
    class: &'static str,
    words: &'static str,
    has: fn(u8) -> bool,
}

const WORD: Alphabet = Alphabet {
    class: "[0-9A-Za-z_-]",
    words: "digits, letters, '_' and '-'",
    has: |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'),
};
const ORDER: Alphabet = Alphabet {
    class: "[0-9A-Za-z_|*@-]",
    words: "digits, letters, '_', '-', '|', '*' and '@'",
    has: |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'|' | b'*' | b'@'),
};
const SERVICE_ORDER: Alphabet = Alphabet {
    class: "[0-9A-Za-z_|-]",
    words: "digits, letters, '_', '-' and '|'",
    has: |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'|'),
};
const DIGITS: Alphabet = Alphabet { class: "[0-9]", words: "digits", has: |byte| byte.is_ascii_digit() };

fn fit(text: &str, min: usize, max: usize, alphabet: &Alphabet) -> Result<(), Unfit> {
    let known = text.bytes().all(alphabet.has);
    if known && (min..=max).contains(&text.len()) {
        return Ok(());
    }
    let words = alphabet.words;
    Err(Unfit(format!("must be {min} to {max} of {words}")))
}

/// When a coupon was used: RFC 3339 with seconds, `2025-07-24T00:00:00+08:00`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UseTime(Box<str>);

impl UseTime {
    /// Takes an RFC 3339 time. One without seconds, as the vendor's own samples have it, is completed with `:00`;
    /// everything else stays as written, because the body must never change.
    ///
    /// # Errors
    /// [`Unfit`] if the format or the calendar is wrong.
    pub fn parse(text: &str) -> Result<Self, Unfit> {
        let unfit = || Unfit("must be an RFC 3339 time such as 2025-07-24T00:00:00+08:00".to_owned());
        let completed = complete_seconds(text).ok_or_else(unfit)?;
        completed.parse::<jiff::Timestamp>().map_err(|_| unfit())?;
        Ok(Self(completed.into()))
    }

    /// The text that is sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Checks the shape `yyyy-MM-ddTHH:mm[:ss[.SSS]](Z|±HH:MM)` and fills in missing seconds. The calendar is not
/// checked. The general parser accepts more than the payment API, hence a check of our own.
fn complete_seconds(text: &str) -> Option<String> {
    let minutes = text.get(..16)?;
    let rest = &text[16..];
    if !shaped(minutes, "dddd-dd-ddTdd:dd") {
        return None;
    }
    let (seconds, zone) = match rest.strip_prefix(':') {
        Some(_) => {
            let end = rest.find(['Z', '+', '-'])?;
            rest.split_at(end)
        }
        None => (":00", rest),
    };
    let second_fits = match seconds.split_once('.') {
        None => shaped(seconds, ":dd"),
        Some((whole, fraction)) => {
            shaped(whole, ":dd")
                && (1..=9).contains(&fraction.len())
                && fraction.bytes().all(|byte| byte.is_ascii_digit())
        }
    };
    // The general parser would accept a leap second and an offset of a day.
    let second_fits = second_fits && !seconds.starts_with(":60");
    let offset = shaped(zone, "+dd:dd") || shaped(zone, "-dd:dd");
    let zone_fits = zone == "Z" || offset && zone[1..] <= *"23:59" && zone[4..] <= *"59";
    (second_fits && zone_fits).then(|| format!("{minutes}{seconds}{zone}"))
}

/// Whether `text` has the shape of `pattern`, in which `d` means a digit.
fn shaped(text: &str, pattern: &str) -> bool {
    text.len() == pattern.len()
        && text.bytes().zip(pattern.bytes()).all(|(byte, expected)| match expected {
            b'd' => byte.is_ascii_digit(),
            _ => byte == expected,
        })
}

/// What the user saved, in fen. Never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedAmount(u64);

impl SavedAmount {
    /// The largest valid amount: a hundred million yuan.
    pub const MAX: u64 = 10_000_000_000;

    /// Takes an amount in fen.
    ///
    /// # Errors
    /// [`Unfit`] above [`SavedAmount::MAX`].
    pub fn parse(fen: u64) -> Result<Self, Unfit> {
        if fen <= Self::MAX {
            return Ok(Self(fen));
        }
        Err(Unfit(format!("must be 0 to {} fen", Self::MAX)))
    }

    /// The amount in fen.
    pub fn fen(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_keep_their_length_and_alphabet() {
        assert!(RequestNo::parse("34657_20250101_123456").is_ok());
        assert!(RequestNo::parse("12345").is_err());
        assert!(RequestNo::parse(&"x".repeat(41)).is_err());
        assert!(Mchid::parse("1900000109").is_ok());
        assert!(Mchid::parse("19a").is_err());
        for order in ["a|b*c-d_e@f", "@", "T@1", "a|b", "a*b", "20250724-1_2@x"] {
            assert!(OrderNo::parse(order).is_ok(), "{order}");
        }
        assert!(ServiceOrderNo::parse("a@b").is_err());
        assert!(ServiceOrderNo::parse("a|b-c_d").is_ok());
        assert!(ServiceOrderNo::parse("a*b").is_err());
        assert!(ServiceOrderNo::parse(&"x".repeat(33)).is_err());
        for hostile in ["", "..", "../x", "a%2fb", "a/b", "a b", "a\u{1F600}", "a\0", "a\n", "a?b", "中"] {
            assert!(CouponCode::parse(hostile).is_err(), "{hostile:?}");
            assert!(Openid::parse(hostile).is_err(), "{hostile:?}");
        }
    }

    #[test]
    fn use_time_is_completed_only_if_it_has_no_seconds() {
        let check = |text: &str, sent: &str| assert_eq!(UseTime::parse(text).unwrap().as_str(), sent);
        check("2025-07-24T00:00+08:00", "2025-07-24T00:00:00+08:00");
        check("2025-07-24T00:00Z", "2025-07-24T00:00:00Z");
        check("2025-07-24T00:00:59+23:59", "2025-07-24T00:00:59+23:59");
        check("2025-07-24T01:02:03+08:00", "2025-07-24T01:02:03+08:00");
        check("2025-07-24T01:02:03.120-03:30", "2025-07-24T01:02:03.120-03:30");
    }

    #[test]
    fn a_use_time_of_another_shape_is_unfit() {
        for text in [
            "",
            "2025-07-24",
            "2025-07-24 00:00:00+08:00",
            "2025-07-24T00:00:00",
            "2025-07-24t00:00:00Z",
            "2025-02-30T00:00:00Z",
            "2025-07-24T25:00:00Z",
            "2025-07-24T00:00:00+0800",
            "2025-07-24T00:00:00.Z",
            "2025-07-24T00:00:00z",
            "1753286400",
            "2025-07-24T00:00:00+08:00[Asia/Shanghai]",
            "２０２５-07-24T00:00Z",
            "2025-07-24T00:00:0+08:00",
            "2025-07-24T00:00:00.1234567890Z",
            "2025-07-24T00:00:60Z",
            "2025-07-24T23:59:60+08:00",
            "2025-07-24T00:00:60.5Z",
            "2025-07-24T00:00:00+24:00",
            "2025-07-24T00:00:00-24:00",
            "2025-07-24T00:00:00+25:59",
            "2025-07-24T00:00:00+08:60",
            "2025-07-24T00:00:00-99:99",
        ] {
            assert!(UseTime::parse(text).is_err(), "{text:?}");
        }
    }
}
