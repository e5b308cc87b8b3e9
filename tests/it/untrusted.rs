//! Words of the provider, or of a server in its place, on their way to people: no openid in them is shown whole, wherever
//! the words end up.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use crate::bed::{Bed, PATIENCE, until};
use crate::limits::{Program, all_redeemed, publish};
use serde_json::json;
use tokio::time::Instant;

/// Of a user whom no command of the test is about.
const STRANGER: &str = "oZz9-Other_Person-0123456789";
const MASKED: &str = "oZ…6789";

/// Each response that is quoted somewhere: as a notice, a reason, or a line of the log.
#[rstest::rstest]
#[case::signed_401(401, true, "plain")]
#[case::unsigned_401(401, false, "json")]
#[case::signed_403(403, true, "json")]
#[case::unsigned_403(403, false, "plain")]
#[case::signed_429(429, true, "plain")]
#[case::unsigned_429(429, false, "json")]
#[case::signed_503(503, true, "json")]
#[case::unsigned_503(503, false, "plain")]
#[tokio::test(flavor = "multi_thread")]
async fn openid_in_a_response_is_shown_whole_nowhere(
    #[case] status: u16,
    #[case] signed: bool,
    #[case] format: &str,
) {
    let mut bed = Bed::new().await;
    publish(&bed, "WELL", 20).await;
    let environment = [("REDEEMER_LOG__FORMAT", format), ("REDEEMER_LOG__FILTER", "redeemer=trace")];
    let program = Program::start_with(&bed, &environment).await;
    all_redeemed(&mut bed, 20).await;
    let message = format!("user {STRANGER} of openid={STRANGER}");
    let code = if status == 429 { "FREQUENCY_LIMIT_EXCEED" } else { STRANGER };
    bed.faults(json!([{"fault": {
        "kind": "status", "status": status, "code": code, "message": message, "signed": signed
    }}]));
    publish(&bed, "C", 60).await;
    // A signed 403 is about its commands, and an event quotes it: it is no concern of the service's.
    let is_quoted = !(status == 403 && signed);
    // Readiness says that the circuit is open; which words came with the last response is in the log.
    let at_port = is_quoted && !matches!((status, signed), (503, _) | (429, false));
    let calls = || bed.ledger()["attempts"].as_array().unwrap().len();
    until("many calls", async || calls() > 30).await;
    let (mut shown, deadline) = (String::new(), Instant::now() + PATIENCE);
    for nth in 0.. {
        if status == 429 {
            // The rate is reduced once 429s have lasted for a while.
            publish(&bed, &format!("M{nth}X"), 20).await;
        }
        for path in ["/readyz", "/status.json", "/", "/metrics"] {
            shown.push_str(&program.get(path).await);
        }
        let log = std::fs::read_to_string(&program.log).unwrap();
        let quoted = (shown.contains(MASKED) || !at_port, log.contains(MASKED) || !is_quoted);
        for (place, text) in [("the port", &shown), ("the log", &log)] {
            let whole = text.lines().find(|line| line.contains(STRANGER));
            assert_eq!(whole, None, "whole in {place}");
        }
        if quoted == (true, true) {
            break;
        }
        assert!(Instant::now() < deadline, "quoted at the port and in the log: {quoted:?}\n{log}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// What operators do is in the log with session and address; what strangers try is, too, and fills it not.
#[tokio::test(flavor = "multi_thread")]
async fn console_logs_sessions_and_one_line_for_a_flood() {
    let mut bed = Bed::new().await;
    let token = bed.dir.join("token");
    std::fs::write(&token, TOKEN).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    bed.config.admin.console_token_file = token.display().to_string();
    let program = Program::start_with(&bed, &[("REDEEMER_LOG__FORMAT", "json")]).await;
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let url = |path: &str| format!("http://{}{path}", program.admin);
    let origin = format!("http://{}", program.admin);
    for _ in 0..300 {
        let forged = http.post(url("/parked/x/discard")).body("csrf_token=x&because=x&sure=yes").send();
        assert!(forged.await.unwrap().status().is_client_error());
    }
    let login = http.post(url("/parked/login")).header("origin", &origin);
    let login = login.body(format!("token={TOKEN}&operator=lin")).send().await.unwrap();
    let cookie = login.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let page = http.get(url("/parked")).header("cookie", &cookie).send().await.unwrap().text().await.unwrap();
    let (_, rest) = page.split_once("name=\"csrf_token\" value=\"").unwrap();
    let csrf = rest.split('"').next().unwrap().to_owned();
    let logout = http.post(url("/parked/logout")).header("cookie", &cookie).header("origin", &origin);
    let logout = logout.body(format!("csrf_token={csrf}")).send().await.unwrap();
    assert_eq!(logout.status().as_u16(), 303);

    let log = std::fs::read_to_string(&program.log).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |message: &str| -> Vec<&serde_json::Value> {
        lines.iter().filter(|line| line["message"] == format!("operator console: {message}")).collect()
    };
    let (denied, logged_in, logged_out) = (of("access denied"), of("logged in"), of("logged out"));
    assert_eq!((denied.len(), logged_in.len(), logged_out.len()), (1, 1, 1), "{log}");
    for line in [denied[0], logged_in[0], logged_out[0]] {
        assert_eq!(line["peer"], "127.0.0.1", "{line}");
    }
    assert_eq!(logged_in[0]["session"], logged_out[0]["session"]);
    assert_eq!((&logged_in[0]["operator"], &logged_out[0]["operator"]), (&json!("lin"), &json!("lin")));
    let (_, session) = cookie.split_once('=').unwrap();
    assert!(!log.contains(session) && !log.contains(TOKEN) && !log.contains(&csrf), "a secret is in the log");
}
