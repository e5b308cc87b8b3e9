//! The body of a use, written once for a command and borrowed by every attempt.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::domain::redemption::{AssociatedOrder, OrderNumbers, Redemption};

/// A redemption ready to be sent: targets and body, frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    pub(super) redeem_target: String,
    pub(super) query_target: String,
    pub(super) body: Bytes,
    body_sha256: String,
}

impl Prepared {
    /// Writes the targets and the body of a redemption. The same redemption always makes the same bytes.
    pub fn new(redemption: &Redemption) -> Self {
        let Redemption { openid, coupon_code, product_coupon_id, stock_id, appid, brand_id, .. } = redemption;
        // Every one of these has an alphabet that needs no escaping in a path or a query.
        let coupon = format!("/v3/marketing/partner/product-coupon/users/{openid}/coupons/{coupon_code}");
        let body = serde_json::to_vec(&BodyText::from(redemption))
            .expect("the body has string keys only and writes to memory, so it cannot fail");
        let digest = Sha256::digest(&body);
        Self {
            redeem_target: format!("{coupon}/use"),
            query_target: format!(
                "{coupon}?product_coupon_id={product_coupon_id}&stock_id={stock_id}&appid={appid}&brand_id={brand_id}"
            ),
            body: body.into(),
            body_sha256: hex(&digest),
        }
    }

    /// The frozen body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// SHA-256 of the frozen body in hex.
    pub fn body_sha256(&self) -> &str {
        &self.body_sha256
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The body in the order of the provider's page. Absent fields are left out: null is not allowed.
#[derive(Serialize)]
pub(super) struct BodyText<'a> {
    product_coupon_id: &'a str,
    stock_id: &'a str,
    appid: &'a str,
    use_time: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    associated_order_info: BTreeMap<&'static str, &'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    associated_pay_score_order_info: BTreeMap<&'static str, &'a str>,
    out_request_no: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequential_coupon_index: Option<u32>,
    brand_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    store_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    saved_amount: Option<u64>,
}

impl<'a> From<&'a Redemption> for BodyText<'a> {
    fn from(redemption: &'a Redemption) -> Self {
        let (payment, pay_score) = match &redemption.order {
            AssociatedOrder::Payment(order) => {
                (numbers(order, "transaction_id", "out_trade_no"), BTreeMap::new())
            }
            AssociatedOrder::PayScore(order) => (BTreeMap::new(), numbers(order, "order_id", "out_order_no")),
        };
        Self {
            product_coupon_id: redemption.product_coupon_id.as_str(),
            stock_id: redemption.stock_id.as_str(),
            appid: redemption.appid.as_str(),
            use_time: redemption.use_time.as_str(),
            associated_order_info: payment,
            associated_pay_score_order_info: pay_score,
            out_request_no: redemption.out_request_no.as_str(),
            sequential_coupon_index: redemption.sequential_coupon_index,
            brand_id: redemption.brand_id.as_str(),
            store_id: redemption.store_id.as_ref().map(|store| store.as_str()),
            saved_amount: redemption.saved_amount.map(|amount| amount.fen()),
        }
    }
}

pub(super) fn numbers<'a, N: AsRef<str>>(
    order: &'a OrderNumbers<N>,
    provider: &'static str,
    merchant: &'static str,
) -> BTreeMap<&'static str, &'a str> {
    let mut texts = BTreeMap::new();
    if let Some(number) = order.provider() {
        texts.insert(provider, number.as_str());
    }
    if let Some(order) = order.merchant() {
        texts.insert(merchant, order.number.as_ref());
        texts.insert("mchid", order.mchid.as_str());
        if let Some(sub_mchid) = &order.sub_mchid {
            texts.insert("sub_mchid", sub_mchid.as_str());
        }
    }
    texts
}
