//! The host names of the admin port, against DNS rebinding: an attacker's page can let its own name resolve to our
//! address, and its scripts then read our responses as those of their own site; but they cannot choose the `Host` that a
//! browser sends. So requests are accepted only under names that an attacker cannot own.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

/// Suffixes of names that cannot be registered: RFC 6761, RFC 6762, ICANN's `internal`, and those within Kubernetes.
const PRIVATE_ENDS: [&str; 5] = [".localhost", ".local", ".internal", ".svc", ".lan"];

/// Rejects requests for other names. A request without a `Host` does not come from a browser.
pub(super) async fn check(State(names): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    // A target with an authority counts before the header, and no browser sends one here.
    let is_ours = request.uri().authority().is_none_or(|at| is_ours(at.as_str(), &names))
        && host.is_none_or(|host| host.to_str().is_ok_and(|host| is_ours(host, &names)));
    match is_ours {
        true => next.run(request).await,
        false => {
            (StatusCode::MISDIRECTED_REQUEST, "not a name of this port: see admin.hosts\n").into_response()
        }
    }
}

/// Whether an attacker cannot own the name `host`, with or without a port.
fn is_ours(host: &str, names: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name.parse::<IpAddr>().is_ok()
        || (!name.is_empty() && !name.contains('.'))
        || PRIVATE_ENDS.iter().any(|end| name.ends_with(end))
        || names.iter().any(|ours| ours.eq_ignore_ascii_case(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_no_stranger_can_own_are_ours() {
        let names = ["redeemer.example.com".to_owned()];
        for ours in [
            "127.0.0.1:9464",
            "10.1.2.3",
            "[::1]:9464",
            "[fd00::1]",
            "localhost:9464",
            "redeemer:9464",
            "redeemer.coupons.svc:9464",
            "redeemer.coupons.svc.cluster.local",
            "redeemer.example.com",
            "REDEEMER.Example.com.:9464",
        ] {
            assert!(is_ours(ours, &names), "{ours}");
        }
        for strange in
            ["", ":9464", "evil.example", "evil.example:9464", "127.0.0.1.evil.example", "svc.evil.com"]
        {
            assert!(!is_ours(strange, &names), "{strange}");
        }
        assert!(!is_ours("redeemer.example.com", &[]));
    }
}
