//! Spans for those who collect them: one for a command's stay, one for each operation, one for each publish.
//!
//! Spans are made by the OpenTelemetry API itself and nowhere but here, so that nothing about them is implicit: a
//! [`CommandSpan`] is handed down the same way as a delivery. Where no collector is configured nothing is recorded, and the
//! trace context that the command brought is handed on as it came. A collector that is slow or gone costs spans,
//! never time: they wait in a bounded queue, a thread of the library sends them, and what finds the queue full is
//! dropped.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use jiff::Timestamp;
use opentelemetry::trace::{
    Link, Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId,
    TraceState, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span,
};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tracing::{info, warn};
use uuid::Uuid;

use super::untrusted::{FRAGMENT_CHARS_MAX, Untrusted, visible_within};

/// Where spans go.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceSettings {
    /// The collector's base URL, such as `http://127.0.0.1:4318`; spans go to `/v1/traces` below it.
    pub endpoint: String,
    /// The share of traces begun here that is recorded, 0 to 1. A trace begun elsewhere keeps its sender's choice.
    pub sample: f64,
    /// The longest wait for the collector to take a batch.
    pub timeout: Duration,
    /// Spans that wait at most; what comes on top is dropped.
    pub queue: usize,
    /// The longest time that a span waits for others to be sent with.
    pub every: Duration,
}

/// Why no spans can be made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TraceSetupError(String);

/// Makes spans, or hands trace context on as it came.
#[derive(Debug, Clone)]
pub struct Traces(Option<(SdkTracer, SdkTracerProvider)>);

impl Traces {
    /// Makes no spans.
    pub fn off() -> Self {
        Self(None)
    }

    /// Begins to send spans. To be called inside the runtime, which carries the calls to the collector.
    ///
    /// # Errors
    /// [`TraceSetupError`] if the endpoint is no URL or the HTTP client cannot be made. A collector that is not there
    /// is no error.
    pub fn start(settings: &TraceSettings) -> Result<Self, TraceSetupError> {
        let exporter = exporter(settings)?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(settings.queue)
            .with_max_export_batch_size(settings.queue.min(512))
            .with_scheduled_delay(settings.every)
            .build();
        let resource = Resource::builder_empty().with_attributes([
            KeyValue::new("service.name", "redeemer"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", Uuid::new_v4().to_string()),
        ]);
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sample)));
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_sampler(sampler)
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            .build();
        Ok(Self(Some((provider.tracer("redeemer"), provider))))
    }

    /// Whether it could be started, without doing so.
    ///
    /// # Errors
    /// As of [`Self::start`].
    pub fn check(settings: &TraceSettings) -> Result<(), TraceSetupError> {
        exporter(settings).map(drop)
    }

    /// A command's stay begins: it was taken from `queue` at `at`.
    pub fn start_command(&self, queue: &str, came: ParentContext<'_>, at: Timestamp) -> CommandSpan {
        let brought = came.traceparent.map(str::to_owned);
        let live = self.0.as_ref().map(|(tracer, _)| {
            let parent = came.traceparent.and_then(parse).map_or_else(Context::new, within);
            let attributes = [
                KeyValue::new("messaging.system", "rabbitmq"),
                KeyValue::new("messaging.operation.type", "process"),
                KeyValue::new("messaging.destination.name", queue.to_owned()),
                KeyValue::new("redemption.arrival", came.arrival),
            ];
            let links = came.left_by.and_then(parse).map(Link::with_context);
            let span = tracer
                .span_builder("take")
                .with_kind(SpanKind::Consumer)
                .with_start_time(system_time(at))
                .with_attributes(attributes)
                .with_links(links.into_iter().collect())
                .start_with_context(tracer, &parent);
            let here = within(span.span_context().clone());
            Live { tracer: tracer.clone(), span, here }
        });
        let here = live.as_ref().map(|live| live.span.span_context().trace_id().to_string());
        let trace_id = here.or_else(|| Some(parse(came.traceparent?)?.trace_id().to_string()));
        CommandSpan { brought, trace_id, live }
    }

    /// Sends what still waits, within `limit`.
    pub async fn finish(self, limit: Duration) {
        let Some((tracer, provider)) = self.0 else { return };
        drop(tracer);
        // It blocks its thread while the last batch is sent.
        let sending = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(limit));
        if let Ok(Ok(Err(error))) = timeout(limit + Duration::from_millis(250), sending).await {
            warn!(%error, "the last spans were not sent");
        }
    }
}

/// What sends spans to the collector.
fn exporter(settings: &TraceSettings) -> Result<SpanExporter, TraceSetupError> {
    let http = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .timeout(settings.timeout)
        .build()
        .map_err(|error| TraceSetupError(error.to_string()))?;
    let courier = Exporter { http, runtime: Handle::current(), failing: AtomicBool::new(false) };
    SpanExporter::builder()
        .with_http()
        .with_http_client(courier)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{}/v1/traces", settings.endpoint.trim_end_matches('/')))
        .with_timeout(settings.timeout)
        .build()
        .map_err(|error| TraceSetupError(error.to_string()))
}

/// What a command brought of a trace.
#[derive(Debug, Clone, Copy)]
pub struct ParentContext<'a> {
    /// Its own trace context: the stay becomes a child of it.
    pub traceparent: Option<&'a str>,
    /// The stay that put it away, if it is a copy: the stay is linked to it.
    pub left_by: Option<&'a str>,
    /// How it came.
    pub arrival: &'static str,
}

/// One stay of a command: from being taken to being settled.
#[derive(Debug)]
pub struct CommandSpan {
    brought: Option<String>,
    trace_id: Option<String>,
    live: Option<Live>,
}

#[derive(Debug)]
struct Live {
    tracer: SdkTracer,
    span: Span,
    /// What is begun within this stay has it as parent.
    here: Context,
}

impl CommandSpan {
    /// The trace's id, for the log: 32 hex digits.
    pub fn trace_id(&self) -> Option<&str> {
        self.trace_id.as_deref()
    }

    /// What is worth knowing of the stay.
    pub fn set_attribute(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        if let Some(live) = &mut self.live {
            live.span.set_attribute(KeyValue::new(key, visible(value.into())));
        }
    }

    /// The stay ends without success, in words that hold no secret.
    pub fn failed(&mut self, why: &str) {
        if let Some(live) = &mut self.live {
            live.span.set_status(Status::error(Untrusted(why).to_string()));
        }
    }

    /// An operation is sent.
    pub fn start_call(&self, operation: &'static str) -> ChildSpan {
        self.child(operation, SpanKind::Client)
    }

    /// Something is published.
    pub fn start_publish(&self, name: &'static str) -> ChildSpan {
        self.child(name, SpanKind::Producer)
    }

    fn child(&self, name: &'static str, kind: SpanKind) -> ChildSpan {
        let Some(Live { tracer, here, .. }) = &self.live else {
            return ChildSpan { traceparent: self.brought.clone(), span: None };
        };
        let span = tracer.span_builder(name).with_kind(kind).start_with_context(tracer, here);
        ChildSpan { traceparent: Some(write(span.span_context())), span: Some(span) }
    }

    /// What a copy carries so that its next stay joins the same trace, and is linked to this one: the trace context
    /// of the command, and that of this stay. Nothing if no spans are made.
    pub fn propagated(&self) -> Option<(String, String)> {
        let live = self.live.as_ref()?;
        let here = write(live.span.span_context());
        Some((self.brought.clone().unwrap_or_else(|| here.clone()), here))
    }
}

/// One operation or one publish. Its span ends with it.
#[derive(Debug)]
pub struct ChildSpan {
    traceparent: Option<String>,
    span: Option<Span>,
}

impl ChildSpan {
    /// What is handed on with it.
    pub fn traceparent(&self) -> Option<&str> {
        self.traceparent.as_deref()
    }

    /// What is worth knowing of it.
    pub fn set_attribute(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        if let Some(span) = &mut self.span {
            span.set_attribute(KeyValue::new(key, visible(value.into())));
        }
    }

    /// It did not succeed, in words that hold no secret.
    pub fn failed(&mut self, why: &str) {
        if let Some(span) = &mut self.span {
            span.set_status(Status::error(Untrusted(why).to_string()));
        }
    }
}

/// A value that holds text, on one line and bounded.
fn visible(value: Value) -> Value {
    match value {
        Value::String(text) => visible_within(text.as_str(), FRAGMENT_CHARS_MAX).into(),
        value => value,
    }
}

fn system_time(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(at.as_microsecond()).unwrap_or_default())
}

fn within(context: SpanContext) -> Context {
    Context::new().with_remote_span_context(context)
}

/// Reads `traceparent` of W3C Trace Context, level 1.
fn parse(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let sizes = (version.len(), trace.len(), span.len(), flags.len()) == (2, 32, 16, 2);
    let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if !sizes || !hex || version.eq_ignore_ascii_case("ff") || parts.next().is_some() {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & 1);
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

fn write(context: &SpanContext) -> String {
    let flags = context.trace_flags().to_u8() & 1;
    format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id())
}

/// Carries batches to the collector. The library's thread has no runtime of its own, so the call is made on ours.
struct Exporter {
    http: reqwest::Client,
    runtime: Handle,
    /// Reported once when it begins to fail and once when it is over, not with every batch.
    failing: AtomicBool,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Courier").finish_non_exhaustive()
    }
}

/// The longest answer of a collector that is looked at, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

impl Exporter {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request)?;
        let http = self.http.clone();
        let call = async move {
            let mut response = http.execute(request).await?;
            let status = response.status();
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                body.extend_from_slice(&chunk[..chunk.len().min(ANSWER_BYTES_MAX - body.len())]);
                if body.len() == ANSWER_BYTES_MAX {
                    break;
                }
            }
            Ok::<_, reqwest::Error>((status, body))
        };
        let (status, body) = self.runtime.spawn(call).await?.map_err(reqwest::Error::without_url)?;
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        Ok(response)
    }

    fn export(&self, trouble: Option<String>) {
        match (trouble, self.failing.load(Ordering::Relaxed)) {
            (Some(why), false) => {
                self.failing.store(true, Ordering::Relaxed);
                warn!(
                    why,
                    "telemetry: the collector does not take spans; they are dropped, and nothing waits"
                );
            }
            (None, true) => {
                self.failing.store(false, Ordering::Relaxed);
                info!("telemetry: the collector takes spans again");
            }
            (Some(_), true) | (None, false) => {}
        }
    }
}

impl HttpClient for Exporter {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let answer = self.send(request).await;
            self.export(match &answer {
                Ok(answer) if answer.status().is_success() => None,
                Ok(answer) => Some(format!("it answers {}", answer.status())),
                Err(error) => Some(error.to_string()),
            });
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_strictly_and_written_as_it_was() {
        assert_eq!(write(&parse(TRACE).unwrap()), TRACE);
        // Another version has the same four parts; of the flags only "sampled" is known.
        assert_eq!(write(&parse(&TRACE.replacen("00-", "cc-", 1).replace("-01", "-03")).unwrap()), TRACE);
        for wrong in [
            "",
            "00",
            &TRACE[..54],
            &TRACE.replacen("00-", "ff-", 1),
            &TRACE.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &TRACE.replace("b7ad6b7169203331", &"0".repeat(16)),
            &TRACE.replace("0af7", "0ag7"),
            &TRACE.replace("0af7", "+af7"),
            &format!("{TRACE}-"),
        ] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn without_a_collector_the_context_is_handed_on_as_it_came() {
        let came = |traceparent| ParentContext { traceparent, left_by: None, arrival: "first" };
        let stay = Traces::off().start_command("commands", came(Some(TRACE)), Timestamp::UNIX_EPOCH);
        assert_eq!(stay.start_call("redeem").traceparent(), Some(TRACE));
        assert_eq!(stay.start_publish("event").traceparent(), Some(TRACE));
        assert_eq!(stay.trace_id(), Some("0af7651916cd43dd8448eb211c80319c"));
        assert_eq!(stay.propagated(), None);
        let stay = Traces::off().start_command("commands", came(None), Timestamp::UNIX_EPOCH);
        assert_eq!((stay.start_call("redeem").traceparent(), stay.trace_id()), (None, None));
    }
}
