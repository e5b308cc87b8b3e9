//! Traces: the service under a sandbox and a real broker, and a collector that reads what a real one would.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::bed;
use crate::bed::{Bed, Service, command, header, until};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Wire;
use opentelemetry_proto::tonic::trace::v1::Span as Sent;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use redeemer::config::Span;
use redeemer::wire::retry_message;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SENDER: &str = "b7ad6b7169203331";

/// What a collector has received.
#[derive(Clone, Default)]
struct Received {
    spans: Arc<Mutex<Vec<ReceivedEvent>>>,
    resources: Arc<Mutex<BTreeSet<String>>>,
}

/// A span as the tests look at it.
#[derive(Debug, Clone)]
struct ReceivedEvent {
    name: String,
    trace: String,
    id: String,
    parent: String,
    kind: SpanKind,
    links: Vec<(String, String)>,
    attributes: BTreeMap<String, String>,
    began: u64,
    ended: u64,
    failed: bool,
}

impl From<Sent> for ReceivedEvent {
    fn from(sent: Sent) -> Self {
        let kind = sent.kind();
        Self {
            name: sent.name,
            trace: hex(&sent.trace_id),
            id: hex(&sent.span_id),
            parent: hex(&sent.parent_span_id),
            kind,
            links: sent.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
            attributes: sent
                .attributes
                .into_iter()
                .map(|pair| (pair.key, text(pair.value.and_then(|value| value.value))))
                .collect(),
            began: sent.start_time_unix_nano,
            ended: sent.end_time_unix_nano,
            failed: sent.status.is_some_and(|status| status.code == 2),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(value: Option<Wire>) -> String {
    match value {
        Some(Wire::StringValue(text)) => text,
        Some(Wire::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

impl Received {
    fn all(&self) -> Vec<ReceivedEvent> {
        self.spans.lock().unwrap().clone()
    }

    fn named(&self, name: &str) -> Vec<ReceivedEvent> {
        let mut spans: Vec<_> = self.all().into_iter().filter(|span| span.name == name).collect();
        spans.sort_by_key(|span| span.began);
        spans
    }

    fn one(&self, name: &str) -> ReceivedEvent {
        let spans = self.named(name);
        assert_eq!(spans.len(), 1, "{name}: {spans:#?}");
        spans[0].clone()
    }

    /// Waits until this many commands' stays have been reported; all that belongs to a stay comes before it.
    async fn stays(&self, count: usize) {
        until(&format!("{count} stays"), async || self.named("take").len() >= count).await;
    }
}

/// A collector that takes OTLP over HTTP on a port of its own.
async fn collector() -> (String, Received, JoinHandle<()>) {
    let received = Received::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/v1/traces", post(take)).with_state(received.clone());
    let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (endpoint, received, task)
}

async fn take(State(received): State<Received>, headers: HeaderMap, body: Bytes) -> StatusCode {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    for resource in request.resource_spans {
        for pair in resource.resource.unwrap_or_default().attributes {
            let value = text(pair.value.and_then(|value| value.value));
            received.resources.lock().unwrap().insert(format!("{}={value}", pair.key));
        }
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        received.spans.lock().unwrap().extend(spans.map(ReceivedEvent::from));
    }
    StatusCode::OK
}

/// A bed whose service sends its spans to `endpoint`, with short waits, all of them in process.
async fn traced(endpoint: &str) -> Bed {
    let mut bed = Bed::new().await;
    let span = |millis| Span(Duration::from_millis(millis));
    bed.config.telemetry.otlp_endpoint = endpoint.to_owned();
    bed.config.telemetry.otlp_every = span(50);
    bed.config.telemetry.otlp_timeout = span(1_000);
    bed.config.retry.initial = span(50);
    bed.config.retry.query_delay = span(200);
    bed.config.retry.in_process_max = span(30_000);
    bed
}

fn with_trace(traceparent: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.into()));
    BasicProperties::default().with_headers(headers)
}

/// A line to the sandbox that writes down the trace context of every call.
async fn recorded(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let notes = seen.clone();
    let task = tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let notes = notes.clone();
            tokio::spawn(async move {
                let far = TcpStream::connect(to).await.unwrap();
                let ((mut near_in, mut near_out), (mut far_in, mut far_out)) =
                    (near.into_split(), far.into_split());
                let back = tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut far_in, &mut near_out).await;
                    let _ = near_out.shutdown().await;
                });
                let mut piece = vec![0; 64 * 1024];
                // One request is one write of the client, well under this size.
                while let Ok(count @ 1..) = near_in.read(&mut piece).await {
                    for line in String::from_utf8_lossy(&piece[..count]).lines() {
                        if let Some(context) = line.strip_prefix("traceparent: ") {
                            notes.lock().unwrap().push(context.to_owned());
                        }
                    }
                    if far_out.write_all(&piece[..count]).await.is_err() {
                        break;
                    }
                }
                let _ = far_out.shutdown().await;
                let _ = back.await;
            });
        }
    });
    (address, seen, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn trace_continues_into_every_call_and_the_event() {
    let (endpoint, received, collecting) = collector().await;
    let mut bed = traced(&endpoint).await;
    let (line, calls, recording) = recorded(bed.sandbox.addr()).await;
    bed.config.wechat.base_url = format!("http://{line}");
    bed.issue("C1_a_long_coupon_code", json!({}));
    bed.faults(json!([{"operation": "use", "first_attempts": 1, "fault": {"kind": "html_502"}}]));
    let bytes = command("C1_a_long_coupon_code", "USE_0001").to_string();
    bed.publish_bytes(bytes.as_bytes(), with_trace(&format!("00-{TRACE}-{SENDER}-01"))).await;
    let service = bed.start().await;
    let reported = bed.next_event().await;
    assert_eq!(reported.gist(), "redeemed - USED");
    received.stays(1).await;

    let take = received.one("take");
    assert_eq!((take.trace.as_str(), take.parent.as_str()), (TRACE, SENDER));
    assert_eq!((take.kind, take.links.len()), (SpanKind::Consumer, 0));
    for (key, value) in [
        ("redemption.out_request_no", "USE_0001"),
        ("redemption.coupon", "C1…code"),
        ("redemption.brand_id", "120344"),
        ("redemption.arrival", "first"),
        ("redemption.outcome", "redeemed"),
        ("redemption.settlement", "finished"),
    ] {
        assert_eq!(take.attributes.get(key).map(String::as_str), Some(value), "{key}: {take:#?}");
    }
    // Asked, and no answer to believe; looked twice, and once more where the machine holds the use up; asked again.
    let (redeems, queries, event) =
        (received.named("redeem"), received.named("query"), received.one("event"));
    assert!(redeems.len() == 2 && (2..=3).contains(&queries.len()), "{redeems:#?}, {queries:#?}");
    let attempts = [&redeems[..1], &queries, &redeems[1..]].concat();
    assert_eq!(take.attributes["redemption.attempts"], attempts.len().to_string());
    let (first, further) = attempts.split_first().unwrap();
    assert!(first.failed && further.iter().all(|attempt| !attempt.failed), "{attempts:#?}");
    assert!(!take.failed);
    for attempt in attempts.iter().chain([&event]) {
        assert_eq!((&attempt.trace, &attempt.parent), (&take.trace, &take.id), "{attempt:#?}");
        assert!(take.began <= attempt.began && attempt.ended <= take.ended, "{attempt:#?} within {take:#?}");
    }
    assert!(attempts.iter().all(|attempt| attempt.kind == SpanKind::Client));
    assert_eq!(event.kind, SpanKind::Producer);
    let answered: Vec<_> =
        attempts.iter().map(|attempt| attempt.attributes["http.response.status_code"].as_str()).collect();
    assert_eq!(answered, [vec!["502"], vec!["200"; further.len()]].concat());
    assert!(redeems[1].attributes["redemption.request_id"].len() > 8);

    let context = |span: &ReceivedEvent| format!("00-{}-{}-01", span.trace, span.id);
    assert_eq!(
        *calls.lock().unwrap(),
        attempts.iter().map(context).collect::<Vec<_>>(),
        "each call carries its own attempt"
    );
    assert_eq!(reported.event["traceparent"], context(&event));
    assert_eq!(header(reported.properties.headers().as_ref().unwrap(), "traceparent"), context(&event));
    let resources = received.resources.lock().unwrap().clone();
    assert!(resources.contains("service.name=redeemer"), "{resources:?}");
    assert!(resources.iter().any(|one| one.starts_with("service.instance.id=")));
    let everything = format!("{:?}", received.all());
    assert!(
        !everything.contains("C1_a_long_coupon_code") && !everything.contains(bed::OPENID),
        "{everything}"
    );
    service.stop().await;
    collecting.abort();
    recording.abort();
}

/// A copy is linked to the stay that put it away, in one trace with it, whether or not the sender began the trace.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_linked_to_the_stay_that_put_it_away() {
    let (endpoint, received, collecting) = collector().await;
    let mut bed = traced(&endpoint).await;
    let span = |millis| Span(Duration::from_millis(millis));
    bed.config.retry.in_process_max = span(800);
    bed.config.retry.delays = vec![span(500), span(1_000)];
    for code in ["C1", "C2"] {
        bed.issue(code, json!({}));
    }
    bed.faults(json!([{"fault": {"kind": "status", "status": 429, "code": "RATELIMIT_EXCEEDED"}}]));
    let service = bed.start().await;
    let sender = format!("00-{TRACE}-{SENDER}-01");
    bed.publish_bytes(command("C1", "USE_0001").to_string().as_bytes(), with_trace(&sender)).await;
    bed.publish(&command("C2", "USE_0002")).await;
    let delayed = service_metric_sum(&service, "redeemer_delayed_retries_total").await;
    until("two copies", async || {
        service_metric_sum(&service, "redeemer_delayed_retries_total").await >= delayed + 2.0
    })
    .await;
    bed.faults(json!([]));
    for _ in 0..2 {
        assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    }
    let ended = |number: &str| {
        let mut stays = received.named("take");
        stays.retain(|stay| stay.attributes["redemption.out_request_no"] == number);
        stays.iter().any(|stay| stay.attributes["redemption.settlement"] == "finished").then_some(stays)
    };
    until("both reported", async || ended("USE_0001").is_some() && ended("USE_0002").is_some()).await;

    for (number, parent) in [("USE_0001", Some(SENDER)), ("USE_0002", None)] {
        let stays = ended(number).unwrap();
        assert!(stays.len() >= 2, "{stays:#?}");
        assert_eq!(stays[0].attributes["redemption.arrival"], "first");
        assert_eq!((stays[0].links.len(), stays[0].parent.as_str()), (0, parent.unwrap_or_default()));
        for pair in stays.windows(2) {
            let [before, after] = pair else { unreachable!() };
            assert_eq!(before.attributes["redemption.settlement"], "delayed");
            assert_eq!(after.attributes["redemption.arrival"], "retry");
            assert_eq!(after.links, [(before.trace.clone(), before.id.clone())], "{stays:#?}");
            assert_eq!(after.trace, before.trace, "one trace for all stays");
            assert_eq!(after.parent, parent.unwrap_or(&stays[0].id), "{stays:#?}");
        }
        if parent.is_some() {
            assert_eq!(stays[0].trace, TRACE);
        }
        let copies = received.named("retry");
        for stay in &stays[..stays.len() - 1] {
            assert!(copies.iter().any(|copy| copy.parent == stay.id && copy.kind == SpanKind::Producer));
        }
    }
    service.stop().await;
    collecting.abort();
}

async fn service_metric_sum(service: &Service, name: &str) -> f64 {
    let (_, text) = service.get("/metrics").await;
    let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

/// The sender's choice not to record is kept, and what it sent is handed on.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_sender_does_not_record_is_not_recorded_here() {
    let (endpoint, received, collecting) = collector().await;
    let mut bed = traced(&endpoint).await;
    for code in ["C1", "C2", "C3"] {
        bed.issue(code, json!({}));
    }
    let service = bed.start().await;
    let bytes = command("C1", "USE_0001").to_string();
    bed.publish_bytes(bytes.as_bytes(), with_trace(&format!("00-{TRACE}-{SENDER}-00"))).await;
    let reported = bed.next_event().await;
    let handed_on = reported.event["traceparent"].as_str().unwrap();
    assert!(handed_on.starts_with(&format!("00-{TRACE}-")) && handed_on.ends_with("-00"), "{handed_on}");
    // Garbage begins a trace of our own.
    bed.publish_bytes(command("C2", "USE_0002").to_string().as_bytes(), with_trace(&"0".repeat(55))).await;
    let reported = bed.next_event().await;
    let begun = reported.event["traceparent"].as_str().unwrap();
    assert!(begun.ends_with("-01") && !begun.contains(TRACE), "{begun}");
    // A forged link is no more than a link.
    let mut headers = FieldTable::default();
    headers.insert(retry_message::TRACE.into(), AMQPValue::LongString("00-x".into()));
    let properties = BasicProperties::default().with_headers(headers);
    bed.publish_bytes(command("C3", "USE_0003").to_string().as_bytes(), properties).await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    received.stays(2).await;
    let numbers: BTreeSet<_> = received
        .named("take")
        .iter()
        .map(|stay| stay.attributes["redemption.out_request_no"].clone())
        .collect();
    assert_eq!(numbers, BTreeSet::from(["USE_0002".to_owned(), "USE_0003".to_owned()]));
    service.stop().await;
    collecting.abort();
}

/// A collector that is not there, refuses, or takes a connection and says nothing: commands go their way, at their
/// pace, and the service stops in time.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_fails_costs_spans_and_no_time() {
    const COMMANDS: usize = 60;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let (refusing, _, collecting) = collector().await;
    let silent_at = format!("http://{}", silent.local_addr().unwrap());
    let mut took = Vec::new();
    for endpoint in ["", &silent_at, &format!("http://{gone}"), &format!("{refusing}/elsewhere")] {
        let mut bed = traced(endpoint).await;
        // One span fits: all others find the queue full.
        bed.config.telemetry.otlp_queue = 1;
        for nth in 0..COMMANDS {
            bed.issue(&format!("C{nth}"), json!({}));
        }
        let service = bed.start().await;
        let begun = Instant::now();
        for nth in 0..COMMANDS {
            bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:04}"))).await;
        }
        for _ in 0..COMMANDS {
            assert_eq!(bed.next_event().await.gist(), "redeemed - USED", "{endpoint}");
        }
        took.push(begun.elapsed());
        let stopping = Instant::now();
        service.stop().await;
        let bound = Duration::from_secs(10);
        assert!(stopping.elapsed() < bound, "{endpoint}: stopping took {:?}", stopping.elapsed());
    }
    // Not a measurement: a single command that waited for the collector would be later than its deadline of 1 s, and
    // 60 in a row by a minute.
    let bound = took[0] + Duration::from_secs(20);
    assert!(took.iter().all(|took| *took < bound), "{took:?}");
    collecting.abort();
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_the_context_is_handed_on_as_it_came() {
    let mut bed = traced("").await;
    bed.issue("C1", json!({}));
    bed.issue("C2", json!({}));
    let service = bed.start().await;
    let sender = format!("00-{TRACE}-{SENDER}-01");
    bed.publish_bytes(command("C1", "USE_0001").to_string().as_bytes(), with_trace(&sender)).await;
    let reported = bed.next_event().await;
    assert_eq!(reported.event["traceparent"], sender);
    assert_eq!(header(reported.properties.headers().as_ref().unwrap(), "traceparent"), sender);
    bed.publish(&command("C2", "USE_0002")).await;
    let reported = bed.next_event().await;
    assert_eq!(reported.event.get("traceparent"), None::<&Value>);
    service.stop().await;
}
