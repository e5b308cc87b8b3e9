//! The forms of the console: bounded, and accepted only from this site.

use crate::admin::console::COOKIE;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};

use crate::admin::console::auth::LoginError;
use crate::admin::server::Peer;
use crate::parked::operator_text::{OperatorTextError, operator_text};

/// The headers and the peer of a request, for authentication.
pub(super) struct FormClient {
    pub(super) headers: HeaderMap,
    pub(super) peer: IpAddr,
}

impl<S: Send + Sync> FromRequestParts<S> for FormClient {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<Peer>();
        // The admin port gives each connection its peer.
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |Peer(address)| address.ip());
        Ok(Self { headers: parts.headers.clone(), peer })
    }
}

/// The fields of a form or a query.
pub(super) struct Fields(HashMap<String, String>);

impl Fields {
    pub(crate) fn read(bytes: &[u8]) -> Self {
        Self(form_urlencoded::parse(bytes).into_owned().collect())
    }

    /// A field, trimmed; empty if it is absent.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", |text| text.trim())
    }

    /// A free text of an operator; empty if it is absent.
    ///
    /// # Errors
    /// [`OperatorTextError`], which names the field.
    pub(crate) fn operator_text(&self, name: &str) -> Result<String, OperatorTextError> {
        let text = self.0.get(name).map_or("", String::as_str);
        operator_text(label(name), text).map(str::to_owned)
    }

    pub(crate) fn is_yes(&self, name: &str) -> bool {
        self.text(name) == "yes"
    }
}

/// What a page calls a field.
fn label(name: &str) -> &str {
    match name {
        "because" => "Why",
        "operator" => "Your name",
        "reason" => "Reason",
        "older_than" => "Older than",
        "newer_than" => "Newer than",
        "brand" => "Brand",
        "coupon" => "Coupon code",
        "number" => "Request number",
        name => name,
    }
}

pub(super) fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';')).find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == COOKIE).then_some(value)
    })
}

/// Whether a browser reports that another site sent this. A client that reports nothing is not a browser of today.
pub(super) fn is_cross_origin(headers: &HeaderMap) -> bool {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"));
    let site = header("sec-fetch-site").is_some_and(|site| !["same-origin", "none"].contains(&site));
    let host = header("host").unwrap_or_default();
    let origin =
        header("origin").is_some_and(|origin| origin.split_once("://").is_none_or(|(_, at)| at != host));
    site || origin
}

pub(super) fn form_words(refused: LoginError) -> &'static str {
    match refused {
        LoginError::WrongToken => "That is not the token.",
        LoginError::NoSession => "Your session has ended. Nothing was done.",
        LoginError::Forged => "That form is not from this console. Nothing was done.",
    }
}
