//! Whether another program has the port of `admin.listen`: then the service cannot start. The service itself may have it, for
//! `check` is run beside it.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Finding;
use super::remedies::Origin;
use crate::cli::healthcheck::{Place, ask, reachable};
use crate::config::Config;

/// The longest wait for the program that has the port.
const WAIT: Duration = Duration::from_secs(2);

/// A finding if anything listens there.
pub(super) async fn in_use(config: &Config, origin: &Origin<'_>) -> Option<Finding> {
    const WHAT: &str = "admin port";
    let listen = config.admin_listen();
    if listen.port() == 0 {
        return None;
    }
    let address = reachable(listen);
    // Connected to, not opened: for that moment a service could not start.
    let connected = timeout(WAIT, TcpStream::connect(address)).await;
    if !matches!(connected, Ok(Ok(_))) {
        return None;
    }
    let response = timeout(WAIT, ask(&Place { address, path: "/metrics".to_owned() })).await;
    let is_redeemer = matches!(response, Ok(Ok((200, metrics))) if metrics.contains("redeemer_build_info"));
    Some(match is_redeemer {
        true => Finding::ok(WHAT, format!("a service runs at {address}")),
        false => {
            let port = address.port();
            let remedy = origin.remedies(
                "admin.listen",
                &format!("another port; ss -ltnp sport = :{port} shows who has this one"),
            );
            let detail = format!("admin.listen = {listen}: another program has this port");
            Finding::fault(WHAT, detail, remedy).with_id("admin_port_in_use")
        }
    })
}
