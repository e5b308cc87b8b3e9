//! The provider's refusals: status, code, message and the number at the end of the request id.
//!
//! The vendor publishes the numbers but not which status and code go with each. Where that is unknown the pairing here
//! is a guess, and clients must not depend on it.

use serde_json::{Value, json};

/// A refusal before it is written. `code` and `message` are body members, `sub_code` is the end of `Request-ID`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ErrorResponse {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
    pub sub_code: u64,
    pub detail: Option<Value>,
}

/// The numbers of the vendor's troubleshooting manual.
pub(super) mod sub_code {
    pub(crate) const USED_BY_ANOTHER: u64 = 272_756_745;
    pub(crate) const LOCKED: u64 = 272_756_746;
    pub(crate) const STORE: u64 = 268_584_404;
    pub(crate) const OPENID: u64 = 268_578_526;
    pub(crate) const BODY_DIFFERS: u64 = 268_578_927;
    pub(crate) const STATE_ILLEGAL: u64 = 268_578_367;
    pub(crate) const EXPIRED: u64 = 268_578_776;
    pub(crate) const OUTSIDE_VALIDITY: u64 = 272_755_715;
    pub(crate) const DELETED: u64 = 272_756_769;
    pub(crate) const NO_SUCH_COUPON: u64 = 268_578_851;
    pub(crate) const ILLEGAL: u64 = 268_435_461;
    pub(crate) const TOO_LONG: u64 = 268_435_462;
    pub(crate) const TOO_SHORT: u64 = 268_435_463;
    pub(crate) const OUT_OF_RANGE: u64 = 268_435_464;
    pub(crate) const PARAMETERS: u64 = 268_578_101;
    pub(crate) const SEE_DETAIL: u64 = 268_578_224;
    pub(crate) const APPID: u64 = 268_578_704;
    pub(crate) const NO_SUCH_OBJECT: u64 = 268_578_608;
    pub(crate) const NO_PERMISSION: u64 = 268_579_803;
    pub(crate) const TOO_FREQUENT: u64 = 270_924_289;
    pub(crate) const OTHER_SEND_NUMBER: u64 = 272_755_200;
    pub(crate) const SIGNATURE: u64 = 269_546_525;
}

impl ErrorResponse {
    pub(crate) fn new(
        status: u16,
        code: &'static str,
        sub_code: u64,
        message: impl Into<String>,
    ) -> ErrorResponse {
        ErrorResponse { status, code, message: message.into(), sub_code, detail: None }
    }

    /// 400 `PARAM_ERROR` about one field. `field` is a JSON pointer for the body, a name for `url` and `query`.
    pub(crate) fn parameter(
        sub_code: u64,
        location: &str,
        field: &str,
        value: Value,
        issue: &str,
    ) -> ErrorResponse {
        let detail = json!({ "field": field, "value": value, "issue": issue, "location": location });
        ErrorResponse {
            detail: Some(detail), ..ErrorResponse::new(400, "PARAM_ERROR", sub_code, "参数错误")
        }
    }

    pub(crate) fn rule(sub_code: u64, message: &str) -> ErrorResponse {
        ErrorResponse::new(400, "INVALID_REQUEST", sub_code, message)
    }

    pub(crate) fn unusable(sub_code: u64, message: &str) -> ErrorResponse {
        ErrorResponse::new(403, "NOT_ENOUGH", sub_code, message)
    }

    /// Another use of the coupon has begun and not ended.
    pub(crate) fn locked() -> ErrorResponse {
        ErrorResponse::unusable(sub_code::LOCKED, "用户商品券当前无法使用：券正被其他请求核销，请稍后重试")
    }

    pub(crate) fn not_found(sub_code: u64, message: &str) -> ErrorResponse {
        ErrorResponse::new(404, "NOT_FOUND", sub_code, message)
    }

    pub(crate) fn too_frequent() -> ErrorResponse {
        ErrorResponse::new(
            429,
            "RATELIMIT_EXCEEDED",
            sub_code::TOO_FREQUENT,
            "请求超过接口频率限制，请稍后使用原参数重试",
        )
    }

    /// "This number was already used": what becomes of a number that an earlier redemption consumed.
    pub(crate) fn number_already_used() -> ErrorResponse {
        ErrorResponse::rule(sub_code::PARAMETERS, "已使用过此单号核销券")
    }

    /// The 401 that the real provider sends, whose `detail` has another shape than the documented one
    /// (wechatpay-axios-plugin issue 58).
    pub(crate) fn signature(
        issue: &str,
        field: &str,
        method: &str,
        target: &str,
        text: &[u8],
    ) -> ErrorResponse {
        let detail = json!({
            "detail": { "issue": issue },
            "field": field,
            "location": "authorization",
            "sign_information": {
                "method": method,
                "sign_message_length": text.len(),
                "truncated_sign_message": String::from_utf8_lossy(&text[..text.len().min(1024)]),
                "url": target,
            },
        });
        let message = match field {
            "mchid" => "商户号不存在",
            "serial_no" => "商户证书序列号有误",
            "timestamp" => "timestamp与发起请求的时间不得超过5分钟",
            _ => "错误的签名，验签失败",
        };
        let refusal = ErrorResponse::new(401, "SIGN_ERROR", sub_code::SIGNATURE, message);
        ErrorResponse { detail: Some(detail), ..refusal }
    }

    /// The body of the reply.
    pub(crate) fn body(&self) -> Value {
        let mut body = json!({ "code": self.code, "message": self.message });
        if let Some(detail) = &self.detail {
            body["detail"] = detail.clone();
        }
        body
    }
}
