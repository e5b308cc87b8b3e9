//! The status page, rendered from one snapshot. It works without its script, which only reloads it every two seconds.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::admin::history::{History, Interval};
use crate::domain::outcome::OutcomeKind;
use crate::telemetry::metrics::Snapshot;
use crate::telemetry::status::{NoticeKind, ReasonCode, Status};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const RUNBOOK: &str = include_str!("../../docs/runbook.md");

/// What the page may load and do: its own style and script, by their digests, and itself again.
pub(super) fn content_security_policy() -> String {
    let digest = |text: &str| STANDARD.encode(Sha256::digest(text.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        digest(STYLE),
        digest(SCRIPT)
    )
}

/// The state of the service in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServiceState {
    /// Ready, without a notice.
    Well,
    /// Not ready yet, without a fault so far.
    Starting,
    /// It consumes, with a fault or a notice.
    Degraded,
    /// Calls are held back; the backlog waits.
    Paused,
    /// It cannot consume or publish.
    Broken,
}

impl ServiceState {
    fn of(status: &Status) -> Self {
        match status.reasons.as_slice() {
            [] if status.notices.is_empty() => Self::Well,
            [] => Self::Degraded,
            reasons if reasons.iter().all(|reason| reason.code.is_starting()) => Self::Starting,
            _ if status.consuming => Self::Degraded,
            reasons if reasons.iter().all(|reason| reason.code.is_about_provider()) => Self::Paused,
            _ => Self::Broken,
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Starting => "starting",
            Self::Degraded => "degraded",
            Self::Paused => "paused",
            Self::Broken => "broken",
        }
    }
}

/// Renders the page.
pub(super) fn render(
    status: &Status,
    snapshot: &Snapshot,
    history: &History,
    console: bool,
    now: Timestamp,
) -> String {
    let state = ServiceState::of(status);
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width, initial-scale=1\"><title>{} - redeemer</title>\
         <style>{STYLE}</style><body class={}><main>",
        match state {
            ServiceState::Well => "consuming",
            ServiceState::Starting => "starting",
            ServiceState::Degraded => "consuming, degraded",
            ServiceState::Paused => "paused",
            ServiceState::Broken => "not consuming",
        },
        state.class()
    );
    headline(&mut page, state, status, history);
    let intervals = history.intervals();
    let minute = history.last_minute();
    page.push_str("<div class=cards>");
    outcomes(&mut page, &minute, &intervals, snapshot);
    provider(&mut page, &minute, &intervals, snapshot);
    in_hand(&mut page, status, snapshot);
    queues(&mut page, status, snapshot);
    problems(&mut page, history, now);
    page.push_str("</div>");
    let _ = write!(
        page,
        "<footer><nav><a href=/metrics>metrics</a> <a href=/readyz>readyz</a> <a href=/livez>livez</a> \
         <a href=/status.json>status.json</a> <a href=/runbook>runbook</a>{}</nav>\
         <p>redeemer {} &middot; {}</footer></main><script>{SCRIPT}</script></body></html>",
        if console { " <a href=/parked>parked commands</a>" } else { "" },
        env!("CARGO_PKG_VERSION"),
        now.strftime("%Y-%m-%d %H:%M:%S UTC")
    );
    page
}

fn headline(page: &mut String, state: ServiceState, status: &Status, history: &History) {
    let ended: u64 = history.last_minute().outcomes.iter().sum();
    let words = match state {
        ServiceState::Well => "Consuming.",
        ServiceState::Starting => "Starting.",
        ServiceState::Degraded
            if status.reasons.iter().any(|reason| reason.code == ReasonCode::PublishingRejected) =>
        {
            "Consuming, but the broker does not accept our messages."
        }
        ServiceState::Degraded if status.reasons.is_empty() => {
            match status.notices.iter().any(|notice| notice.kind == NoticeKind::RateReduced) {
                true => "Consuming at a reduced rate.",
                false => "Consuming, but some responses cannot be verified.",
            }
        }
        ServiceState::Degraded => "Consuming, but degraded.",
        ServiceState::Paused => "Paused for the payment API. The backlog waits in its queue.",
        ServiceState::Broken => match status.reasons.first().map(|reason| reason.code) {
            Some(
                ReasonCode::BrokerUnavailable | ReasonCode::BrokerBlocked | ReasonCode::PublishingRejected,
            ) => "Not consuming: the broker.",
            Some(ReasonCode::NoVerificationKey) => "Not consuming: the keys.",
            Some(ReasonCode::Stopping) => "Stopping.",
            _ => "Not consuming.",
        },
    };
    // Screen readers announce a change, so the script replaces only changed elements.
    let _ = write!(page, "<header><h1 role=status>{words}</h1>");
    if state == ServiceState::Well {
        let _ = match ended {
            0 => write!(page, "<p>No commands in the last minute."),
            1 => write!(page, "<p>One command settled in the last minute."),
            ended => write!(page, "<p>{} commands settled in the last minute.", grouped(ended)),
        };
    }
    for reason in &status.reasons {
        let _ = write!(page, "<p>{}{}", escaped(&reason.words), runbook_link(reason.code));
    }
    for warning in &status.warnings {
        let _ = write!(page, "<p>Warning: {}", escaped(&warning.words));
    }
    for notice in &status.notices {
        let section = notice_section(notice.kind);
        let _ = write!(page, "<p>{} <a href=/runbook#{section}>what to do</a>", escaped(&notice.words));
    }
    page.push_str("</header>");
}

fn notice_section(kind: NoticeKind) -> &'static str {
    match kind {
        NoticeKind::RateReduced => "RateLimitReduced",
        NoticeKind::ResponsesUnverified => "ResponsesUnverified",
    }
}

fn outcomes(page: &mut String, minute: &Interval, intervals: &[Interval], snapshot: &Snapshot) {
    page.push_str("<section><h2>Outcomes</h2>");
    let settled: Vec<_> = intervals.iter().map(split).collect();
    let what = "commands in each 5 s: <i>redeemed</i> <i class=rest>other</i>";
    chart(page, what, "commands", &settled);
    page.push_str("<table><tr><th>outcome<th>last minute<th>since start");
    for (nth, kind) in OutcomeKind::ALL.into_iter().enumerate() {
        let (lately, ever) = (minute.outcomes[nth], snapshot.outcomes[nth]);
        let word = kind.as_str();
        let class = if kind == OutcomeKind::Unresolved && ever > 0 { " class=unresolved" } else { "" };
        let _ = write!(page, "<tr{class}><td>{word}<td>{}<td>{}", grouped(lately), grouped(ever));
    }
    page.push_str("</table></section>");
}

fn provider(page: &mut String, minute: &Interval, intervals: &[Interval], snapshot: &Snapshot) {
    page.push_str("<section><h2>WeChat Pay</h2>");
    let times: Vec<_> = intervals.iter().map(|each| [each.call_ms.unwrap_or_default(), 0.0]).collect();
    chart(page, "mean time of a call in each 5 s", "ms", &times);
    let time = minute.call_ms.map_or_else(|| "no calls".to_owned(), |ms| format!("{ms:.0} ms"));
    page.push_str("<dl>");
    entry(page, "a call takes", &time);
    entry(page, "calls in the last minute", &grouped(minute.calls));
    entry(page, "rate limit of this instance", &format!("{:.0} calls/s", snapshot.rate));
    let circuit_gate = if snapshot.circuit_open { "open" } else { "closed" };
    entry(page, "circuit_gate", circuit_gate);
    if snapshot.clock_skew.abs() >= 3.0 {
        entry(page, "its clock less ours", &format!("{:.0} s", snapshot.clock_skew));
    }
    page.push_str("</dl></section>");
}

fn in_hand(page: &mut String, status: &Status, snapshot: &Snapshot) {
    page.push_str("<section><h2>In hand</h2>");
    let share = snapshot.busy as f64 / (snapshot.permits.max(1)) as f64;
    let _ = write!(
        page,
        "<svg class=bar viewBox=\"0 0 100 6\" preserveAspectRatio=none role=img aria-label=\"{} of {} permits busy\">\
         <rect class=track width=100 height=6 /><rect width={:.1} height=6 /></svg><dl>",
        snapshot.busy,
        snapshot.permits,
        100.0 * share.clamp(0.0, 1.0)
    );
    entry(page, "permits busy", &format!("{} of {}", snapshot.busy, snapshot.permits));
    entry(page, "commands held", &snapshot.in_flight.to_string());
    entry(page, "instances", &snapshot.consumers.to_string());
    entry(page, "broker", status.broker.as_deref().unwrap_or("not connected"));
    entry(page, "connections built", &snapshot.sessions_started.to_string());
    page.push_str("</dl></section>");
}

fn queues(page: &mut String, status: &Status, snapshot: &Snapshot) {
    page.push_str("<section><h2>Queues</h2><table><tr><th>queue<th>messages");
    for (queue, messages) in &snapshot.depths {
        let shown =
            if messages.is_nan() { "?".to_owned() } else { grouped(messages.max(0.0).round() as u64) };
        let alarming = matches!(queue.as_str(), "parked" | "unrouted") && *messages > 0.0;
        let class = if alarming { " class=unresolved" } else { "" };
        let _ = write!(page, "<tr{class}><td>{}<td>{shown}", escaped(queue));
    }
    page.push_str("</table>");
    if status.broker.is_none() {
        page.push_str("<p class=note>As last counted: the broker is not connected.");
    }
    page.push_str("</section>");
}

fn problems(page: &mut String, history: &History, now: Timestamp) {
    page.push_str("<section class=problems><h2>Last problems</h2>");
    let mut any = false;
    for (at, reason) in history.last_problems() {
        page.push_str(if any { "" } else { "<ol>" });
        any = true;
        let ago = now.duration_since(*at).as_secs().max(0);
        let ago = match ago {
            0..60 => format!("{ago} s ago"),
            60..3_600 => format!("{} min ago", ago / 60),
            _ => format!("{} h ago", ago / 3_600),
        };
        let (words, link) = (escaped(&reason.words), runbook_link(reason.code));
        let _ = write!(page, "<li><time datetime={at}>{ago}</time> {words}{link}");
    }
    page.push_str(if any { "</ol></section>" } else { "<p>None since the start.</section>" });
}

fn entry(page: &mut String, name: &str, value: &str) {
    let _ = write!(page, "<dt>{name}<dd>{}", escaped(value));
}

/// The redeemed commands, and the others that ended.
fn split(interval: &Interval) -> [f64; 2] {
    let mut split = [0.0; 2];
    for (kind, commands) in OutcomeKind::ALL.into_iter().zip(interval.outcomes) {
        split[usize::from(kind != OutcomeKind::Redeemed)] += commands as f64;
    }
    split
}

/// Bars of two parts, the first below the second, the latest bar at the right; the tallest fills the height and is
/// named. `what` is HTML and is written above them.
fn chart(page: &mut String, what: &str, unit: &str, bars: &[[f64; 2]]) {
    const BARS: usize = 119;
    let most = bars.iter().map(|[first, second]| first + second).fold(0.0, f64::max);
    let _ = write!(
        page,
        "<figure><figcaption>{what}</figcaption>\
         <svg class=chart viewBox=\"0 0 {BARS} 30\" preserveAspectRatio=none role=img aria-label=\"at most {} {unit}\">",
        scale(most)
    );
    let from = BARS.saturating_sub(bars.len());
    for (nth, [first, second]) in bars.iter().enumerate().filter(|(_, [first, second])| first + second > 0.0)
    {
        let high = (30.0 * (first + second) / most).max(0.6);
        let low = high * first / (first + second);
        for (class, height, top) in [("", low, low), (" class=rest", high - low, high)] {
            if height > 0.0 {
                let (x, y) = (from + nth, 30.0 - top);
                let _ = write!(page, "<rect{class} x={x} y={y:.1} width=.8 height={height:.1} />");
            }
        }
    }
    let _ = write!(
        page,
        "</svg><p class=scale><span>10 min ago</span><span>most: {} {unit}</span><span>now</span></figure>",
        scale(most)
    );
}

/// The height of the tallest bar, for the text below a chart.
fn scale(most: f64) -> String {
    if most < 10.0 && most.fract() > 0.0 { format!("{most:.1}") } else { grouped(most.round() as u64) }
}

/// A link to a section of the runbook.
fn runbook_link(code: ReasonCode) -> String {
    runbook_section(code)
        .map_or_else(String::new, |section| format!(" <a href=/runbook#{section}>what to do</a>"))
}

fn runbook_section(code: ReasonCode) -> Option<&'static str> {
    match code {
        ReasonCode::SuspendedUnauthenticated => Some("SuspendedUnauthenticated"),
        ReasonCode::SuspendedUnauthorized => Some("SuspendedUnauthorized"),
        ReasonCode::SuspendedRejected => Some("SuspendedRejected"),
        ReasonCode::ResponsesUnverified => Some("SignatureVerificationFailing"),
        ReasonCode::ProviderUnreachable => Some("ProviderUnreachable"),
        ReasonCode::ProviderFailing => Some("CircuitOpen"),
        ReasonCode::BrokerBlocked => Some("BrokerBlocked"),
        ReasonCode::PublishingRejected | ReasonCode::EventRejected => Some("PublishesReturned"),
        ReasonCode::BrokerUnavailable => Some("BrokerDisconnected"),
        ReasonCode::NoVerificationKey => Some("NotConsuming"),
        ReasonCode::DeadLettersWaiting | ReasonCode::DeadLetterSweepFailed => Some("DeadLettersWaiting"),
        ReasonCode::Starting
        | ReasonCode::Stopping
        | ReasonCode::NotConsuming
        | ReasonCode::MessageSizeUnbounded
        | ReasonCode::KeyFileUnusable => None,
    }
}

/// The runbook, with an anchor at each section.
pub(super) fn runbook() -> String {
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width, initial-scale=1\"><title>runbook - redeemer</title>\
         <style>{STYLE}</style><body><main class=runbook>"
    );
    for line in RUNBOOK.lines() {
        let _ = match line.strip_prefix("## ") {
            Some(section) => write!(page, "<h2 id={section}>{section}</h2>"),
            None => writeln!(page, "{}", escaped(line)),
        };
    }
    page.push_str("</main></body></html>");
    page
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// With a thin space between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            shown.push('\u{2009}');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::status::{Notice, StatusReason};

    fn status(reasons: &[(ReasonCode, &str)]) -> Status {
        let reasons = reasons.iter().map(|(code, words)| StatusReason::new(*code, *words)).collect();
        Status { reasons, ..Status::starting(Timestamp::UNIX_EPOCH) }
    }

    fn page(reasons: &[(ReasonCode, &str)]) -> String {
        let mut history = History::default();
        history.problems(Timestamp::UNIX_EPOCH, &status(reasons).reasons);
        render(&status(reasons), &Snapshot::default(), &history, false, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn headline_shows_the_state_and_its_reasons() {
        assert!(page(&[]).contains("<h1 role=status>Consuming.</h1><p>No commands in the last minute."));
        let paused = page(&[(ReasonCode::SuspendedUnauthenticated, "look at the merchant key")]);
        assert!(paused.contains("<h1 role=status>Paused for") && paused.contains("look at the merchant key"));
        assert!(paused.contains("/runbook#SuspendedUnauthenticated"));
        assert!(
            page(&[(ReasonCode::BrokerUnavailable, "gone"), (ReasonCode::ProviderUnreachable, "silent")])
                .contains("<h1 role=status>Not consuming: the broker.</h1>")
        );
    }

    #[test]
    fn fault_while_consuming_is_shown_as_degraded() {
        let refused = status(&[(ReasonCode::PublishingRejected, "refused")]);
        let consuming = Status { consuming: true, ..refused };
        let page =
            render(&consuming, &Snapshot::default(), &History::default(), false, Timestamp::UNIX_EPOCH);
        assert!(
            page.contains("<h1 role=status>Consuming, but the broker does not accept our messages.</h1>")
        );
        assert!(page.contains("<body class=degraded>") && page.contains("/runbook#PublishesReturned"));
    }

    #[test]
    fn headline_names_a_reduced_rate_and_unverified_responses() {
        for (kind, headline) in [
            (NoticeKind::RateReduced, "Consuming at a reduced rate."),
            (NoticeKind::ResponsesUnverified, "Consuming, but some responses cannot be verified."),
        ] {
            let notices = vec![Notice { kind, words: "last: 429 <b>".to_owned() }];
            let status = Status { consuming: true, notices, ..status(&[]) };
            let page =
                render(&status, &Snapshot::default(), &History::default(), false, Timestamp::UNIX_EPOCH);
            assert!(page.contains(&format!("<h1 role=status>{headline}</h1>")));
            assert!(page.contains("<body class=degraded>") && page.contains("last: 429 &lt;b&gt;"));
            assert!(runbook().contains(&format!("<h2 id={}>", notice_section(kind))));
        }
    }

    #[test]
    fn start_is_not_shown_as_a_fault() {
        let starting = page(&[(ReasonCode::Starting, "not connected to the broker yet")]);
        assert!(
            starting.contains("<h1 role=status>Starting.</h1>") && starting.contains("<body class=starting>")
        );
        assert!(starting.contains("As last counted"), "no broker is known");
        assert_eq!(
            ["0", "2.5", "1\u{2009}200"],
            [scale(0.0), scale(2.5), scale(1_200.0)].each_ref().map(|text| text.as_str())
        );
    }

    #[test]
    fn chart_names_its_unit_and_separates_other_outcomes() {
        let mut history = History::default();
        for (outcomes, calls) in [([0, 0, 0, 0], 0), ([3, 2, 0, 1], 3), ([3, 2, 4, 1], 3)] {
            let call_seconds = 0.2 * calls as f64;
            history.sample(Snapshot { outcomes, calls, call_seconds, ..Snapshot::default() });
        }
        let page = render(&status(&[]), &Snapshot::default(), &history, false, Timestamp::UNIX_EPOCH);
        for words in ["commands in each 5 s: <i>redeemed</i> <i class=rest>other</i>", "mean time of a call"]
        {
            assert!(page.contains(words), "{words}: {page}");
        }
        for most in ["most: 6 commands", "most: 200 ms"] {
            assert!(page.contains(most), "{most}: {page}");
        }
        let bars = "<rect x=117 y=15.0 width=.8 height=15.0 /><rect class=rest x=117 y=0.0 width=.8 height=15.0 />\
                    <rect class=rest x=118 y=10.0 width=.8 height=20.0 />";
        assert!(page.contains(bars), "{page}");
    }

    #[test]
    fn hostile_words_stay_words() {
        let page = page(&[(ReasonCode::BrokerUnavailable, "<script>alert(\"1\")</script>&")]);
        assert!(!page.contains("<script>alert") && page.contains("&lt;script&gt;alert(&quot;1&quot;)"));
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        let page = page(&[]);
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("src="));
        assert!(content_security_policy().starts_with("default-src 'none'; style-src 'sha256-"));
    }

    #[test]
    fn every_section_that_is_linked_is_in_the_runbook() {
        let runbook = runbook();
        for section in ReasonCode::ALL.iter().copied().filter_map(runbook_section) {
            assert!(runbook.contains(&format!("<h2 id={section}>")), "{section}");
        }
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([grouped(0), grouped(999), grouped(1_234_567)], ["0", "999", "1\u{2009}234\u{2009}567"]);
    }
}
