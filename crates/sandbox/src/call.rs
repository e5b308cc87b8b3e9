//! A request to the provider API, and what it asks.

use axum::body::Bytes;
use http::{HeaderMap, Method};

use super::ledger::{BodyDigest, Operation};
use super::request::percent_decoded;

pub(super) const COUPON_API: &str = "/v3/marketing/partner/product-coupon/users/";

/// A complete request.
pub(super) struct Call {
    pub method: Method,
    /// Path and query exactly as received: this is what was signed.
    pub target: String,
    pub route: Route,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub digest: BodyDigest,
}

/// The operation by method and path, and its subject.
pub(super) struct Route {
    pub operation: Operation,
    pub openid: Option<String>,
    pub coupon_code: Option<String>,
    pub query: String,
}

impl Route {
    pub(super) fn read(method: &Method, target: &str) -> Route {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let route = |operation, openid: Option<&str>, coupon_code: Option<&str>| Route {
            operation,
            openid: openid.and_then(percent_decoded),
            coupon_code: coupon_code.and_then(percent_decoded),
            query: query.to_owned(),
        };
        let segments: Vec<&str> = match path.strip_prefix(COUPON_API) {
            Some(rest) => rest.split('/').collect(),
            None => Vec::new(),
        };
        match (method.as_str(), segments.as_slice()) {
            (_, segments) if segments.iter().any(|segment| segment.is_empty()) => {
                route(Operation::Unknown, None, None)
            }
            ("POST", [openid, "coupons", code, "use"]) => route(Operation::Use, Some(openid), Some(code)),
            ("GET", [openid, "coupons", code]) => route(Operation::Query, Some(openid), Some(code)),
            ("POST", [openid, "coupons", code, "return"]) => {
                route(Operation::Return, Some(openid), Some(code))
            }
            ("POST", [openid, "coupons", code, "confirm"]) => {
                route(Operation::Confirm, Some(openid), Some(code))
            }
            ("POST", [openid, "coupons", code, "deactivate"]) => {
                route(Operation::Deactivate, Some(openid), Some(code))
            }
            ("POST", [openid, "coupons"]) => route(Operation::Send, Some(openid), None),
            ("GET", _) if path == "/v3/certificates" => route(Operation::Certificates, None, None),
            ("POST", _) if path == "/v3/security/echo" => route(Operation::Echo, None, None),
            _ => route(Operation::Unknown, None, None),
        }
    }
}
