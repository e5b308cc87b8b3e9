//! Traces: one span for each delivery of a command, with a child span for each call and each publish.
//!
//! Only this file makes spans, by the OpenTelemetry API itself: a [`CommandSpan`] is passed on like a delivery. Without a
//! collector nothing is recorded, and the trace context of a command is passed on unchanged. A slow or unavailable
//! collector costs spans and never time: they wait in a bounded queue, a thread of the library exports them, and further
//! spans are dropped.

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

/// The settings of the export.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceSettings {
    /// The collector's base URL, such as `http://127.0.0.1:4318`; spans go to `/v1/traces` below it.
    pub endpoint: String,
    /// The share of new traces that is recorded, 0 to 1. A continued trace keeps the choice of its sender.
    pub sample: f64,
    /// The longest wait for the collector to accept a batch.
    pub timeout: Duration,
    /// The most spans that wait; further ones are dropped.
    pub queue: usize,
    /// The longest time that a span waits for its batch.
    pub every: Duration,
}

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TraceSetupError(String);

/// Makes spans, or passes trace context on unchanged.
#[derive(Debug, Clone)]
pub struct Traces(Option<(SdkTracer, SdkTracerProvider)>);

impl Traces {
    /// Makes no spans.
    pub fn off() -> Self {
        Self(None)
    }

    /// Starts the export. It must be called within the runtime that makes the calls to the collector.
    ///
    /// # Errors
    /// [`TraceSetupError`] if the endpoint is not a URL or the HTTP client cannot be created. An unavailable collector
    /// is not an error.
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

    /// Checks whether the export could be started.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn check(settings: &TraceSettings) -> Result<(), TraceSetupError> {
        exporter(settings).map(drop)
    }

    /// Starts the span of a command that was taken from `queue` at `at`.
    pub fn start_command(
        &self,
        queue: &str,
        parent_context: ParentContext<'_>,
        at: Timestamp,
    ) -> CommandSpan {
        let brought = parent_context.traceparent.map(str::to_owned);
        let live = self.0.as_ref().map(|(tracer, _)| {
            let parent = parent_context.traceparent.and_then(parse).map_or_else(Context::new, within);
            let attributes = [
                KeyValue::new("messaging.system", "rabbitmq"),
                KeyValue::new("messaging.operation.type", "process"),
                KeyValue::new("messaging.destination.name", queue.to_owned()),
                KeyValue::new("redemption.arrival", parent_context.arrival),
            ];
            let links = parent_context.delayed_by.and_then(parse).map(Link::with_context);
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
        let trace_id = here.or_else(|| Some(parse(parent_context.traceparent?)?.trace_id().to_string()));
        CommandSpan { brought, trace_id, live }
    }

    /// Exports the spans that still wait, within `limit`.
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

/// The exporter.
fn exporter(settings: &TraceSettings) -> Result<SpanExporter, TraceSetupError> {
    let http = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .timeout(settings.timeout)
        .build()
        .map_err(|error| TraceSetupError(error.to_string()))?;
    let exporting = Exporter { http, runtime: Handle::current(), failing: AtomicBool::new(false) };
    SpanExporter::builder()
        .with_http()
        .with_http_client(exporting)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{}/v1/traces", settings.endpoint.trim_end_matches('/')))
        .with_timeout(settings.timeout)
        .build()
        .map_err(|error| TraceSetupError(error.to_string()))
}

/// The trace context of a delivery.
#[derive(Debug, Clone, Copy)]
pub struct ParentContext<'a> {
    /// Its own trace context: the parent of its span.
    pub traceparent: Option<&'a str>,
    /// The span that delayed it, if it is a retry message: its span is linked to that one.
    pub delayed_by: Option<&'a str>,
    /// How it arrived.
    pub arrival: &'static str,
}

/// The span of one delivery of a command, until it is settled.
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
    /// The parent of child spans.
    here: Context,
}

impl CommandSpan {
    /// The id of the trace, for the log: 32 hex digits.
    pub fn trace_id(&self) -> Option<&str> {
        self.trace_id.as_deref()
    }

    /// Sets an attribute.
    pub fn set_attribute(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        if let Some(live) = &mut self.live {
            live.span.set_attribute(KeyValue::new(key, visible(value.into())));
        }
    }

    /// Records a failure, in words without a secret.
    pub fn record_failure(&mut self, why: &str) {
        if let Some(live) = &mut self.live {
            live.span.set_status(Status::error(Untrusted(why).to_string()));
        }
    }

    /// Starts the span of a call.
    pub fn start_call(&self, operation: &'static str) -> ChildSpan {
        self.child(operation, SpanKind::Client)
    }

    /// Starts the span of a publish.
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

    /// The trace contexts that a retry message carries: that of the command, which its next span continues, and that of this
    /// span, to which the next one is linked. `None` without a collector.
    pub fn propagated(&self) -> Option<(String, String)> {
        let live = self.live.as_ref()?;
        let here = write(live.span.span_context());
        Some((self.brought.clone().unwrap_or_else(|| here.clone()), here))
    }
}

/// The span of one call or one publish. It ends when this is dropped.
#[derive(Debug)]
pub struct ChildSpan {
    traceparent: Option<String>,
    span: Option<Span>,
}

impl ChildSpan {
    /// The trace context that is passed on.
    pub fn traceparent(&self) -> Option<&str> {
        self.traceparent.as_deref()
    }

    /// Sets an attribute.
    pub fn set_attribute(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        if let Some(span) = &mut self.span {
            span.set_attribute(KeyValue::new(key, visible(value.into())));
        }
    }

    /// Records a failure, in words without a secret.
    pub fn record_failure(&mut self, why: &str) {
        if let Some(span) = &mut self.span {
            span.set_status(Status::error(Untrusted(why).to_string()));
        }
    }
}

/// A value with its texts on one line and bounded.
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

/// Sends batches to the collector. The thread of the library has no runtime of its own, so the call is made on ours.
struct Exporter {
    http: reqwest::Client,
    runtime: Handle,
    /// Whether the last export failed: only changes are logged.
    failing: AtomicBool,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Courier").finish_non_exhaustive()
    }
}

/// The longest response of a collector that is read, in bytes.
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
            let response = self.send(request).await;
            self.export(match &response {
                Ok(response) if response.status().is_success() => None,
                Ok(response) => Some(format!("status {}", response.status())),
                Err(error) => Some(error.to_string()),
            });
            response
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
        let parent_context = |traceparent| ParentContext { traceparent, delayed_by: None, arrival: "first" };
        let stay =
            Traces::off().start_command("commands", parent_context(Some(TRACE)), Timestamp::UNIX_EPOCH);
        assert_eq!(stay.start_call("redeem").traceparent(), Some(TRACE));
        assert_eq!(stay.start_publish("event").traceparent(), Some(TRACE));
        assert_eq!(stay.trace_id(), Some("0af7651916cd43dd8448eb211c80319c"));
        assert_eq!(stay.propagated(), None);
        let stay = Traces::off().start_command("commands", parent_context(None), Timestamp::UNIX_EPOCH);
        assert_eq!((stay.start_call("redeem").traceparent(), stay.trace_id()), (None, None));
    }
}
