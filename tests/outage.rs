//! An outage of the payment API, from before it begins until the last command that it delayed is settled: two minutes of
//! waiting, so `make soak` runs it.

#![allow(clippy::unwrap_used)] // in the helpers too
#![allow(clippy::print_stdout)] // what was measured is worth a line
#![allow(dead_code)] // the bed's other parts

#[path = "support/bed.rs"]
mod bed;
#[path = "support/broker.rs"]
mod broker;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use bed::{Bed, command, until};
use redeemer::config::Span;
use serde_json::{Value, json};

fn span(millis: u64) -> Span {
    Span(Duration::from_millis(millis))
}

/// One minute is one second here: ten minutes of outage are ten seconds, the delays of 10s, 1m, 5m, 30m and 2h and the
/// waits in process a sixtieth of themselves. The circuit breaker keeps its own seconds, so it is slower than life.
#[tokio::test(flavor = "multi_thread")]
async fn scaled_ten_minute_outage_loses_and_repeats_nothing() {
    const BEFORE: usize = 600;
    const DURING: usize = 1_400;
    const OUTAGE: Duration = Duration::from_secs(10);
    let mut bed = Bed::new().await;
    bed.config.retry.delays = vec![span(167), span(1_000), span(5_000), span(30_000), span(120_000)];
    bed.config.retry.initial = span(17);
    bed.config.retry.max_interval = span(500);
    bed.config.retry.query_delay = span(33);
    bed.config.retry.in_process_max = span(133);
    // The last delay queue alone takes two minutes.
    bed.patience = Duration::from_secs(180);
    // Every coupon has two commands, one right after the other: who comes first uses it.
    let commands: Vec<Value> = (0..(BEFORE + DURING) / 2)
        .flat_map(|nth| {
            let code = format!("C{nth}");
            bed.issue(&code, json!({}));
            [command(&code, &format!("FIRST_{nth:04}")), command(&code, &format!("SECOND_{nth:04}"))]
        })
        .collect();
    let (before, during) = commands.split_at(BEFORE);
    for command in before {
        bed.publish(command).await;
    }
    let service = bed.start().await;
    until("some done", async || bed.uses().len() >= 50).await;

    bed.faults(json!([
        {"operation": "use", "share": 0.2, "fault": {"kind": "cut_after_effect"}},
        {"share": 0.3, "fault": {"kind": "cut_before_effect"}},
        {"fault": {"kind": "html_502"}},
    ]));
    let outage = Instant::now();
    let publishing = async {
        for (nth, command) in during.iter().enumerate() {
            bed.publish(command).await;
            let due = OUTAGE.mul_f64(nth as f64 / DURING as f64);
            tokio::time::sleep(due.saturating_sub(outage.elapsed())).await;
        }
    };
    // Its length is that of the clock, however long publishing takes.
    let lasting = async {
        tokio::time::sleep(OUTAGE).await;
        let done_during = bed.uses().len();
        bed.faults(json!([]));
        done_during
    };
    let ((), done_during) = tokio::join!(publishing, lasting);
    assert!(done_during < BEFORE, "that was no outage: {done_during} effects");

    // One distinct outcome each.
    let mut outcomes: HashMap<String, (String, String)> = HashMap::new();
    while outcomes.len() < commands.len() {
        let reported = bed.next_event().await;
        let number = reported.data("/out_request_no").as_str().unwrap().to_owned();
        let outcome = (reported.event["id"].as_str().unwrap().to_owned(), reported.gist());
        let before = outcomes.insert(number.clone(), outcome.clone());
        assert!(before.is_none_or(|before| before == outcome), "two outcomes of {number}");
    }
    let took = outage.elapsed();
    assert!(service.metric(r#"redeemer_commands_settled_total{settlement="delayed"}"#).await > 0.0);

    // One effect each.
    let mut used: BTreeMap<String, String> = BTreeMap::new();
    for (code, number) in bed.uses() {
        let twice = used.insert(code, number);
        assert_eq!(twice, None, "a coupon was used twice");
    }
    assert_eq!(used.len(), commands.len() / 2);
    for command in &commands {
        let (code, number) = (command["coupon_code"].as_str().unwrap(), &command["out_request_no"]);
        let expected = match used[code] == *number {
            true => "redeemed - USED",
            false => "refused used_by_another USED",
        };
        assert_eq!(outcomes[number.as_str().unwrap()].1, expected, "{command}");
    }
    lanes_were_kept(&bed, &used);
    let wait_queues = &bed.config.broker.names.retry;
    for delay in ["167ms", "1s", "5s", "30s", "2m"] {
        assert_eq!(bed.ready(&format!("{wait_queues}.{delay}")).await, 0, "nothing is left in {delay}");
    }
    service.stop().await;
    assert_eq!(bed.ready(&bed.config.broker.names.commands).await, 0);
    assert_eq!(bed.ready(&bed.config.broker.names.parked).await, 0);
    println!("all reported {took:?} after the outage began");
}

/// Calls about one coupon never overlap and its bodies never change. How often the first command was asked first is
/// reported, not demanded: one that was delayed leaves its lane.
fn lanes_were_kept(bed: &Bed, used: &BTreeMap<String, String>) {
    let ledger = bed.ledger();
    let mut by_coupon: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for attempt in ledger["attempts"].as_array().unwrap() {
        by_coupon.entry(attempt["coupon_code"].as_str().unwrap()).or_default().push(attempt);
    }
    let mut in_order = 0;
    for (code, attempts) in by_coupon {
        for pair in attempts.windows(2) {
            let ended = pair[0]["at_us"].as_u64().unwrap() + pair[0]["took_us"].as_u64().unwrap_or(0);
            assert!(ended <= pair[1]["at_us"].as_u64().unwrap(), "two calls at once: {pair:#?}");
        }
        let uses: Vec<_> = attempts.iter().filter(|attempt| attempt["operation"] == "use").collect();
        let bodies: BTreeSet<_> = uses
            .iter()
            .map(|attempt| (attempt["out_request_no"].to_string(), attempt["body_sha256"].to_string()))
            .collect();
        let numbers: BTreeSet<_> = bodies.iter().map(|(number, _)| number).collect();
        assert_eq!(bodies.len(), numbers.len(), "a body changed: {bodies:?}");
        if attempts.iter().all(|attempt| attempt["fault"].is_null()) {
            let first = uses[0]["out_request_no"].as_str().unwrap();
            in_order += usize::from(first.starts_with("FIRST") && used[code] == first);
        }
    }
    println!("{in_order} of {} coupons without a fault had their first command first", used.len());
}
