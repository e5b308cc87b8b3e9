//! `redeemer healthcheck`: checks a running service by one GET on its admin port.
//!
//! An image needs no other program for its health check.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use axum::body::{Body, to_bytes};
use clap::Args;
use http::{Request, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cli::{Failure, print};
use crate::config::Config;

/// The longest response that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Arguments of `healthcheck`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Check readiness instead of liveness. A service that is not ready need not be restarted.
    #[arg(long)]
    ready: bool,
    /// Check this address and path instead of admin.listen, such as 127.0.0.1:9480/_sandbox/health.
    #[arg(long, value_name = "ADDRESS/PATH", conflicts_with = "ready", value_parser = place)]
    at: Option<Place>,
    /// The longest wait for the response, in seconds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
}

/// The address and the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub address: SocketAddr,
    pub path: String,
}

fn place(text: &str) -> Result<Place, String> {
    let (address, path) = text.split_once('/').ok_or("lacks a path")?;
    let address = address.parse().map_err(|_| "must begin with an address such as 127.0.0.1:9480")?;
    Ok(Place { address, path: format!("/{path}") })
}

/// Sends one request and reports the response.
///
/// # Errors
/// [`Failure::Unexpected`] if the status is not 200, [`Failure::Failed`] without a response.
pub async fn run(arguments: Arguments, config: Config) -> Result<(), Failure> {
    let path = if arguments.ready { "/readyz" } else { "/livez" };
    let here = || Place { address: reachable(config.admin_listen()), path: path.to_owned() };
    let place = arguments.at.unwrap_or_else(here);
    let received = timeout(Duration::from_secs(arguments.timeout), ask(&place)).await;
    let response =
        received.map_err(|_| anyhow!("no response within {} s", arguments.timeout)).and_then(|it| it);
    let Place { address, path } = &place;
    let (status, text) = response.with_context(|| format!("cannot check {address}{path}"))?;
    if status != 200 {
        return Err(Failure::Unexpected(format!("{path} responded with {status}: {}", text.trim_end())));
    }
    Ok(print(text.trim_end())?)
}

pub(super) async fn ask(place: &Place) -> anyhow::Result<(u16, String)> {
    let stream = TcpStream::connect(place.address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the sender.
    tokio::spawn(connection);
    let request = Request::get(&place.path).header(header::HOST, place.address.to_string());
    let response = sender.send_request(request.body(Body::empty())?).await?;
    let status = response.status().as_u16();
    let body = to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// A service that listens on all addresses is checked on loopback.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_listens_everywhere_is_asked_on_loopback() {
        let check = |listens: &str, received: &str| {
            assert_eq!(reachable(listens.parse().unwrap()).to_string(), received);
        };
        check("0.0.0.0:9464", "127.0.0.1:9464");
        check("[::]:9464", "[::1]:9464");
        check("10.1.2.3:80", "10.1.2.3:80");
    }

    #[test]
    fn another_place_is_an_address_and_a_path() {
        let there = place("127.0.0.1:9480/_sandbox/health").unwrap();
        assert_eq!((there.address.port(), there.path.as_str()), (9480, "/_sandbox/health"));
        assert!(place("127.0.0.1:9480").is_err());
        assert!(place("localhost/livez").is_err());
    }
}
