//! The host names of the admin port, against DNS rebinding: an attacker's page can let its own name resolve to our
//! address, and its scripts then read our responses as those of their own site; but they cannot choose the `Host` that a
//! browser sends. So requests are accepted only under names that an attacker cannot own.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

/// Suffixes of names that cannot be registered: RFC 6761, RFC 6762, ICANN's `internal`, and those within Kubernetes.
const PRIVATE_ENDS: [&str; 5] = [".localhost", ".local", ".internal", ".svc", ".lan"];

/// Rejects requests for other names, and for two. A request without a `Host` does not come from a browser.
pub(super) async fn check(State(names): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    match verify(&request, &names) {
        Ok(()) => next.run(request).await,
        Err(HostFault::Ambiguous) => {
            (StatusCode::BAD_REQUEST, "a request names one host, and the target names the same\n")
                .into_response()
        }
        Err(HostFault::Strange) => {
            (StatusCode::MISDIRECTED_REQUEST, "not a name of this port: see admin.hosts\n").into_response()
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HostFault {
    /// Several `Host` headers, or a target that names another host: proxies and servers choose differently among them
    /// (RFC 9112, section 3.2).
    Ambiguous,
    /// A name that an attacker may own.
    Strange,
}

fn verify<B>(request: &Request<B>, names: &[String]) -> Result<(), HostFault> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    let target = request.uri().authority();
    let differs = |host: &HeaderValue| {
        target.is_some_and(|target| !target.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()))
    };
    if more.is_some() || host.is_some_and(differs) {
        return Err(HostFault::Ambiguous);
    }
    let is_ours = target.is_none_or(|target| is_ours(target.as_str(), names))
        && host.is_none_or(|host| host.to_str().is_ok_and(|host| is_ours(host, names)));
    if is_ours { Ok(()) } else { Err(HostFault::Strange) }
}

/// Whether an attacker cannot own the name `host`, with or without a port.
fn is_ours(host: &str, names: &[String]) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or_default(),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    is_port
        && (name.parse::<IpAddr>().is_ok()
            || (!name.is_empty() && !name.contains('.'))
            || PRIVATE_ENDS.iter().any(|end| name.ends_with(end))
            || names.iter().any(|ours| ours.eq_ignore_ascii_case(&name)))
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
        for strange in [
            "",
            ":9464",
            "evil.example",
            "evil.example:9464",
            "127.0.0.1.evil.example",
            "svc.evil.com",
            "localhost:80@evil.example",
            "localhost:evil.example",
            "[::1]evil.example",
            "[::1",
        ] {
            assert!(!is_ours(strange, &names), "{strange}");
        }
        assert!(!is_ours("redeemer.example.com", &[]));
    }

    #[test]
    fn request_that_names_two_hosts_is_rejected() {
        let check = |target: &str, hosts: &[&str], expected: Result<(), HostFault>| {
            let mut request = Request::builder().uri(target);
            for host in hosts {
                request = request.header("host", *host);
            }
            assert_eq!(verify(&request.body(()).unwrap(), &[]), expected, "{target} {hosts:?}");
        };
        check("/", &[], Ok(()));
        check("/", &["localhost:9464"], Ok(()));
        check("http://localhost:9464/", &["LOCALHOST:9464"], Ok(()));
        check("http://127.0.0.1/", &[], Ok(()));
        for (target, hosts) in [
            ("/", &["localhost", "localhost"][..]),
            ("/", &["localhost", "evil.example"]),
            ("/", &["evil.example", "localhost"]),
            ("http://localhost/", &["evil.example"]),
            ("http://evil.example/", &["localhost"]),
            ("http://localhost:1/", &["localhost:2"]),
        ] {
            check(target, hosts, Err(HostFault::Ambiguous));
        }
        check("/", &["evil.example"], Err(HostFault::Strange));
        check("http://evil.example/", &["evil.example"], Err(HostFault::Strange));
        check("http://evil.example/", &[], Err(HostFault::Strange));
        check("http://localhost:80@evil.example/", &[], Err(HostFault::Strange));
    }
}
