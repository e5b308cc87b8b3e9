//! A program in another language, with the usual AMQP library, gets an answer to a command.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::broker;
use crate::programs;
use serde_json::{Value, json};

use crate::programs::Programs;

/// Debian's own: an interpreter found earlier on PATH does not have Debian's packages.
const PYTHON: &str = "/usr/bin/python3";

/// Publishes a command from Python and gives what came back.
fn order_service(programs: &Programs, command: &str, id: &str) -> Value {
    let pika = Command::new(PYTHON).args(["-c", "import pika"]).output();
    assert!(
        pika.is_ok_and(|tried| tried.status.success()),
        "{PYTHON} has no pika: `make test` installs it, or deploy/local/install python3-pika"
    );
    let asked = json!({
        "uri": broker::shared().uri(),
        "commands": format!("{}.commands", programs.prefix),
        "results": format!("{}.results", programs.prefix),
        "reply_to": format!("orders.{id}"),
        "correlation_id": format!("order-{id}"),
        "message_id": format!("message-{id}"),
        "command": command,
    });
    let mut child = Command::new(PYTHON)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/order_service.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(asked.to_string().as_bytes()).expect("python reads");
    drop(stdin);
    let output = child.wait_with_output().expect("python ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("python writes JSON")
}

#[test]
fn python_order_service_receives_its_event() {
    let programs = Programs::start(broker::shared().uri());

    let got = order_service(&programs, &programs::command("python").to_string(), "17");
    assert_eq!(got["exchange"], format!("{}.results", programs.prefix));
    assert_eq!(got["routing_key"], "redemption.redeemed.120344");
    assert_eq!(got["cc"], json!(["orders.17"]));
    assert_eq!(got["correlation_id"], "order-17");
    assert_eq!(got["content_type"], "application/cloudevents+json");
    assert_eq!(got["delivery_mode"], 2);
    let event = &got["event"];
    assert_eq!(event["id"], got["message_id"]);
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["type"], "redemption.redeemed.v1");
    assert_eq!(event["subject"], "auto_python");
    let data = &event["data"];
    assert_eq!(data["outcome"], "redeemed");
    assert_eq!(data["coupon_state"], "USED");
    assert_eq!(data["established_by"], "response");
    assert_eq!(data["out_request_no"], "number_python");
    assert_eq!(data["coupon"]["coupon_code"], "auto_python");
    assert_eq!(data["problem"], Value::Null);
    assert_eq!(data["attempts"], 1);

    // The same command again is the same result under the same id, anyone who asks.
    let again = order_service(&programs, &programs::command("python").to_string(), "18");
    assert_eq!(again["correlation_id"], "order-18");
    assert_eq!(again["event"]["id"], got["event"]["id"]);

    // Another order for the same coupon learns that it came too late.
    let mut late = programs::command("python");
    late["out_request_no"] = json!("number_late");
    let late = order_service(&programs, &late.to_string(), "19");
    assert_eq!(late["routing_key"], "redemption.refused.120344");
    assert_eq!(late["event"]["data"]["coupon_state"], "USED");
    assert_eq!(late["event"]["data"]["problem"]["reason"], "used_by_another");
    assert_ne!(late["event"]["id"], got["event"]["id"]);

    // And what is no command is answered too.
    let invalid = order_service(&programs, "please", "20");
    assert_eq!(invalid["routing_key"], "redemption.invalid.unknown");
    assert_eq!(invalid["correlation_id"], "order-20");
    assert_eq!(invalid["event"]["data"]["coupon_state"], Value::Null);
    assert_eq!(invalid["event"]["data"]["problem"]["faults"][0]["pointer"], "");
}
