//! The test bed's broker, tested: every other broker test believes what is shown here.

#[path = "support/broker.rs"]
mod broker;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::panic;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use broker::Broker;

#[test]
fn killed_node_restarts_with_its_ports_and_data() {
    let node = Broker::start();
    let uri = node.uri().to_owned();
    node.ctl(&["add_vhost", "kept"]);

    node.kill9();
    assert!(!answers(&uri), "still answers after kill -9");
    node.restart();

    assert_eq!(node.uri(), uri);
    assert!(answers(&uri));
    assert!(node.ctl(&["-q", "list_vhosts"]).lines().any(|vhost| vhost == "kept"));

    node.stop();
    assert!(!answers(&uri), "still answers after stop");
    node.restart();
    assert!(node.ctl(&["-q", "list_vhosts"]).lines().any(|vhost| vhost == "kept"));
}

#[test]
fn two_nodes_started_at_once_know_nothing_of_each_other() {
    let (one, other) = thread::scope(|scope| {
        let one = scope.spawn(|| Broker::start_with(&["heartbeat = 7"]));
        let other = scope.spawn(|| Broker::start_with(&["heartbeat = 9"]));
        (one.join().expect("one starts"), other.join().expect("the other starts"))
    });
    assert_ne!(one.uri(), other.uri());
    for (node, heartbeat) in [(&one, "{heartbeat,7}"), (&other, "{heartbeat,9}")] {
        assert!(node.ctl(&["environment"]).contains(heartbeat), "no {heartbeat}");
    }
    one.kill9();
    assert!(answers(other.uri()));
}

#[test]
fn a_panic_ends_the_node_and_removes_its_folder() {
    let mut seen = None;
    let panicked = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        let node = Broker::start();
        seen = Some((node.uri().to_owned(), node.dir().to_owned()));
        panic!("as a failing test would");
    }));
    assert!(panicked.is_err());
    let (uri, dir) = seen.expect("the node started");
    assert!(!answers(&uri));
    assert!(!dir.exists());
}

#[test]
fn a_node_ends_with_the_process_that_wanted_it() {
    let mut parent = Command::new("sleep").arg("600").spawn().expect("sleep runs");
    let dir = broker::unused_dir();
    let uri = broker::run("start", &dir, &["--parent", &parent.id().to_string()]).expect("the node starts");
    assert!(answers(uri.trim()));

    parent.kill().expect("sleep is killed");
    parent.wait().expect("sleep is reaped");

    eventually("the node is gone", || !answers(uri.trim()));
    eventually("its folder is gone", || !dir.exists());
}

#[test]
fn a_node_that_cannot_start_says_why() {
    let complaint =
        panic::catch_unwind(|| Broker::start_with(&["no.such.key = 1"])).err().expect("it cannot start");
    let complaint = complaint.downcast_ref::<String>().expect("the complaint is text");
    assert!(complaint.contains("no.such.key"), "{complaint}");
}

#[test]
fn the_shared_broker_is_one() {
    assert!(std::ptr::eq(broker::shared(), broker::shared()));
    assert!(answers(broker::shared().uri()));
}

/// Whether a broker greets back: it answers the protocol header with a method frame, whose first byte is 1.
fn answers(uri: &str) -> bool {
    let address = uri.split(['@', '/']).find(|part| part.starts_with("127.0.0.1:"));
    let Ok(mut stream) = TcpStream::connect(address.expect("the URI has an address")) else {
        return false;
    };
    let timeout = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let mut first = [0];
    timeout.is_ok()
        && stream.write_all(b"AMQP\0\0\x09\x01").is_ok()
        && stream.read_exact(&mut first).is_ok()
        && first == [1]
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
