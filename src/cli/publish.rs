//! `redeemer publish`: publishes one command or a file of them, and with `--wait` prints their events.
//!
//! Commands are published unchanged, also invalid ones: the service decides. A line that is obviously not a command is
//! reported.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::{SignedDuration, Timestamp};
use serde::de::IgnoredAny;
use tokio::sync::mpsc;
use tokio::time::sleep_until;
use uuid::Uuid;

use crate::amqp::client::{CommandMessage, Link, Subscription};
use crate::cli::event_view::{EventView, on_one_line, outcome};
use crate::cli::{Failure, print, print_error};
use crate::config::Config;
use crate::domain::outcome::OutcomeKind;
use crate::policy::file_name::Typed;

/// Arguments of `publish`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The command as JSON; `-` reads it from standard input, `@FILE` from a file.
    #[arg(required_unless_present = "lines", conflicts_with = "lines")]
    command: Option<String>,
    /// Commands from a file, one per line; `-` is standard input. Empty lines are skipped.
    #[arg(long, value_name = "FILE")]
    lines: Option<PathBuf>,
    /// The routing key; the service takes every one.
    #[arg(long, default_value = "redemption.use", value_parser = short)]
    routing_key: String,
    /// `message_id` of the one command; a new UUID if absent.
    #[arg(long, value_name = "ID", conflicts_with = "lines", value_parser = short)]
    message_id: Option<String>,
    /// `correlation_id` of the one command, which its event carries; its `message_id` if absent.
    #[arg(long, value_name = "ID", conflicts_with = "lines", value_parser = short)]
    correlation_id: Option<String>,
    /// `reply_to`: a further routing key of the events.
    #[arg(long, value_name = "KEY", value_parser = short)]
    reply_to: Option<String>,
    /// The deadline of the commands: 2026-01-31T12:00:00Z, or 10m from now.
    #[arg(long, value_name = "TIME", value_parser = deadline)]
    deadline: Option<Timestamp>,
    /// Wait for the events and print each as one JSON line.
    #[arg(long)]
    wait: bool,
    /// The longest wait after the last command was published.
    #[arg(long, value_name = "TIME", default_value = "60s", requires = "wait", value_parser = span)]
    timeout: Duration,
    /// Exit with 4 unless every outcome is this one: redeemed, refused, invalid or unresolved.
    #[arg(long, value_name = "OUTCOME", requires = "wait", value_parser = outcome)]
    expect: Option<OutcomeKind>,
}

/// Commands under way to the broker, not confirmed yet.
const WINDOW: usize = 200;
/// The longest line. The file most likely has no lines if it has a longer one.
const LINE_BYTES_MAX: usize = 1024 * 1024;
/// The most lines that warnings and the summary name.
const NAMED_MAX: usize = 10;

/// Publishes, and with `--wait` waits for the events.
///
/// # Errors
/// [`Failure::Failed`] if a command could not be read or published; [`Failure::Unexpected`] if an event is
/// missing or another than expected.
pub async fn run(arguments: Arguments, config: Config) -> Result<(), Failure> {
    let settings = config.broker_settings()?;
    let source = Source::open(&arguments)?;
    let names = &settings.topology.names;
    let link = Link::connect(&settings, "redeemer publish").await.context("no connection to the broker")?;
    let mut publisher = link.publisher(&names.commands).await.context("cannot publish")?;

    let reply_to = match (&arguments.reply_to, arguments.wait) {
        (Some(key), _) => Some(key.clone()),
        (None, true) => Some(format!("redeemer.publish.{}", Uuid::new_v4())),
        (None, false) => None,
    };
    // Bound before anything is published, or an event could pass before.
    let (reading, mut events) = match (&reply_to, arguments.wait) {
        (Some(key), true) => {
            let link = Link::connect(&settings, "redeemer publish, waiting").await;
            let link = link.context("no second connection to the broker")?;
            let events = link.subscribe(&names.results, std::slice::from_ref(key), None).await;
            (Some(link), Some(events.context("results cannot be read")?))
        }
        _ => (None, None),
    };

    let mut tally = Tally::new(source.bytes, arguments.expect);
    let mut lines = source.lines;
    let mut confirms = FuturesUnordered::new();
    let mut read_whole = false;
    let mut give_up_at: Option<Instant> = None;
    loop {
        if read_whole && confirms.is_empty() {
            give_up_at.get_or_insert_with(|| Instant::now() + arguments.timeout);
            if !arguments.wait || tally.pending.is_empty() {
                break;
            }
        }
        let patience = give_up_at.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            line = lines.recv(), if !read_whole && confirms.len() < WINDOW => match line {
                None => read_whole = true,
                Some(line) => {
                    let Line { number, body } = line.map_err(|error| tally.interrupted(error))?;
                    if source.many {
                        tally.check_line(number, &body);
                    }
                    let message_id = arguments.message_id.clone().unwrap_or_else(|| Uuid::new_v4().to_string());
                    let correlation_id = arguments.correlation_id.clone().unwrap_or_else(|| message_id.clone());
                    let command = CommandMessage {
                        body: &body,
                        routing_key: &arguments.routing_key,
                        message_id: &message_id,
                        correlation_id: &correlation_id,
                        reply_to: reply_to.as_deref(),
                        deadline: arguments.deadline,
                        sent: Some(Timestamp::now()),
                    };
                    let confirm = publisher.publish(command).await;
                    confirms.push(confirm.map_err(|error| tally.interrupted(error.into()))?);
                    tally.record_sent(body.len(), arguments.wait.then_some((correlation_id, number)));
                }
            },
            Some(confirmed) = confirms.next() => {
                confirmed.map_err(|error| tally.interrupted(error.into()))?;
                tally.record_confirmed();
            }
            event = next(&mut events) => match event {
                Some(event) => tally.record_event(event.correlation_id.as_deref(), &event.body)?,
                None => {
                    let lost = match &reading {
                        Some(reading) => reading.lost().await.to_string(),
                        None => String::new(),
                    };
                    return Err(tally.interrupted(anyhow!("connection to the broker lost: {lost}")).into());
                }
            },
            () = sleep_until(patience.into()) => if give_up_at.is_some() { break },
        }
    }
    link.close().await;
    if let Some(reading) = reading {
        reading.close().await;
    }
    tally.conclude(&arguments)
}

async fn next(events: &mut Option<Subscription>) -> Option<crate::amqp::client::ReceivedEvent> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

/// The source of the commands.
struct Source {
    lines: mpsc::Receiver<anyhow::Result<Line>>,
    /// The size of the whole, if it is known.
    bytes: Option<u64>,
    /// Whether it is a file of lines.
    many: bool,
}

struct Line {
    number: usize,
    body: Vec<u8>,
}

impl Source {
    fn open(arguments: &Arguments) -> anyhow::Result<Self> {
        let (sender, lines) = mpsc::channel(WINDOW);
        if let Some(path) = &arguments.lines {
            let (reader, bytes) = open(path)?;
            let path = path.clone();
            // A thread, because a read of standard input cannot be called off.
            std::thread::spawn(move || read_lines(reader, &path, &sender));
            return Ok(Self { lines, bytes, many: true });
        }
        let body = match arguments.command.as_deref().unwrap_or_default() {
            "-" => whole(Path::new("-"))?,
            text => match text.strip_prefix('@') {
                Some(path) => whole(Path::new(path))?,
                // A mark was forgotten: the name itself would be published, and parked.
                None if Path::new(text).is_file() => bail!(
                    "{text} is a file: say @{text} where it holds one command, --lines {text} where it holds one \
                     per line"
                ),
                None => text.as_bytes().to_vec(),
            },
        };
        // There is room for one.
        let _ = sender.try_send(Ok(Line { number: 1, body }));
        Ok(Self { lines, bytes: None, many: false })
    }
}

fn open(path: &Path) -> anyhow::Result<(Box<dyn BufRead + Send>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(BufReader::new(std::io::stdin())), None));
    }
    let unreadable = || format!("{} cannot be read", Typed(path));
    let file = File::open(path).with_context(unreadable)?;
    let metadata = file.metadata().with_context(unreadable)?;
    if metadata.is_dir() {
        bail!("{} is a directory", Typed(path));
    }
    Ok((Box::new(BufReader::new(file)), metadata.is_file().then_some(metadata.len())))
}

fn whole(path: &Path) -> anyhow::Result<Vec<u8>> {
    let (reader, _) = open(path)?;
    let mut body = Vec::new();
    reader
        .take(LINE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut body)
        .with_context(|| format!("{} cannot be read", Typed(path)))?;
    if body.len() > LINE_BYTES_MAX {
        bail!("{} holds more than one command can be: {LINE_BYTES_MAX} bytes at most", Typed(path));
    }
    Ok(body)
}

/// Sends every line that is not empty, until the file ends, the receiver is dropped or a line is too long.
fn read_lines(mut reader: impl BufRead, path: &Path, lines: &mpsc::Sender<anyhow::Result<Line>>) {
    for number in 1.. {
        let mut body = Vec::new();
        let read = reader.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut body);
        let line = match read {
            Ok(0) => return,
            Ok(bytes) if bytes > LINE_BYTES_MAX => Err(anyhow!(
                "{} line {number} is longer than {LINE_BYTES_MAX} bytes: has the file one command per line?",
                Typed(path)
            )),
            Ok(_) => {
                let end = body.trim_ascii_end().len();
                body.truncate(end);
                Ok(Line { number, body })
            }
            Err(error) => Err(anyhow!(error).context(format!("{} cannot be read", Typed(path)))),
        };
        if matches!(&line, Ok(line) if line.body.is_empty()) {
            continue;
        }
        let last = line.is_err();
        if lines.blocking_send(line).is_err() || last {
            return;
        }
    }
}

/// The commands sent, their events, and the progress.
struct Tally {
    bar: ProgressBar,
    begun: Instant,
    published: u64,
    confirmed: u64,
    unreadable: usize,
    /// Lines by correlation id, without an event so far.
    pending: HashMap<String, usize>,
    outcomes: BTreeMap<String, u64>,
    expect: Option<OutcomeKind>,
    /// Lines with another outcome than expected.
    unexpected: Vec<String>,
    unexpected_more: usize,
}

impl Tally {
    fn new(bytes: Option<u64>, expect: Option<OutcomeKind>) -> Self {
        // Draws on standard error, and only if that is a terminal.
        let bar = match bytes {
            Some(bytes) => {
                ProgressBar::new(bytes).with_style(style("{bar:30} {percent}% of the file  {msg}  {elapsed}"))
            }
            None => ProgressBar::new_spinner().with_style(style("{spinner} {msg}  {elapsed}")),
        };
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            bar,
            begun: Instant::now(),
            published: 0,
            confirmed: 0,
            unreadable: 0,
            pending: HashMap::new(),
            outcomes: BTreeMap::new(),
            expect,
            unexpected: Vec::new(),
            unexpected_more: 0,
        }
    }

    /// Warns of a line that is obviously not a command.
    fn check_line(&mut self, number: usize, body: &[u8]) {
        let problem = match serde_json::from_slice::<IgnoredAny>(body) {
            Ok(_) if body.trim_ascii_start().starts_with(b"{") => return,
            Ok(_) => "is JSON, but not an object".to_owned(),
            Err(error) => format!("is not JSON (column {})", error.column()),
        };
        self.unreadable += 1;
        if self.unreadable <= NAMED_MAX {
            self.bar.suspend(|| print_error(&format!("line {number} {problem}; published unchanged")));
        }
    }

    fn record_sent(&mut self, bytes: usize, awaited: Option<(String, usize)>) {
        self.published += 1;
        self.pending.extend(awaited);
        self.bar.inc(bytes as u64 + 1);
        self.show();
    }

    fn record_confirmed(&mut self) {
        self.confirmed += 1;
        self.show();
    }

    fn record_event(&mut self, correlation_id: Option<&str>, body: &[u8]) -> anyhow::Result<()> {
        // A repeat, or an event for another command under the same key.
        let Some(number) = correlation_id.and_then(|id| self.pending.remove(id)) else { return Ok(()) };
        let reported = EventView::read(body);
        let outcome = reported.as_ref().map_or("unreadable", |reported| reported.data.outcome.as_str());
        *self.outcomes.entry(outcome.to_owned()).or_default() += 1;
        if self.expect.is_some_and(|expected| expected.as_str() != outcome) {
            if self.unexpected.len() < NAMED_MAX {
                let reason = reported.as_ref().and_then(EventView::reason).unwrap_or("-");
                self.unexpected.push(format!("line {number} {outcome} ({reason})"));
            } else {
                self.unexpected_more += 1;
            }
        }
        self.show();
        self.bar.suspend(|| print(&on_one_line(body)))
    }

    fn show(&self) {
        self.bar.set_message(self.counts());
    }

    fn counts(&self) -> String {
        let mut text = format!("{} published", self.published);
        for (outcome, count) in &self.outcomes {
            text += &format!(", {count} {outcome}");
        }
        text
    }

    /// The reason why publishing ended early, with how far it came.
    fn interrupted(&self, error: anyhow::Error) -> anyhow::Error {
        self.bar.finish_and_clear();
        let (confirmed, published) = (self.confirmed, self.published);
        error.context(format!("stopped with {confirmed} of {published} commands confirmed by the broker"))
    }

    fn conclude(self, arguments: &Arguments) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        if self.unreadable > NAMED_MAX {
            print_error(&format!("{} lines are not JSON objects", self.unreadable));
        }
        print_error(&format!("{} in {:.1} s", self.counts(), self.begun.elapsed().as_secs_f64()));
        let mut wrong = Vec::new();
        if arguments.wait && !self.pending.is_empty() {
            let mut lines: Vec<_> = self.pending.into_values().collect();
            lines.sort_unstable();
            let more = lines.len().saturating_sub(NAMED_MAX);
            let named = lines.iter().take(NAMED_MAX).map(|line| format!("line {line}")).collect();
            let within = arguments.timeout;
            wrong.push(format!(
                "{} without an event within {within:?}: {}",
                lines.len(),
                listed(named, more)
            ));
        }
        if let Some(expected) = self.expect
            && !self.unexpected.is_empty()
        {
            let named = listed(self.unexpected, self.unexpected_more);
            wrong.push(format!("not {}: {named}", expected.as_str()));
        }
        if wrong.is_empty() { Ok(()) } else { Err(Failure::Unexpected(wrong.join("; "))) }
    }
}

fn listed(mut named: Vec<String>, more: usize) -> String {
    if more > 0 {
        named.push(format!("and {more} more"));
    }
    named.join(", ")
}

/// The style of a progress bar.
///
/// # Panics
/// Never: templates are constants, and the tests draw them.
pub(super) fn style(template: &'static str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("templates are constants that a test has read")
}

/// AMQP's short strings end at 255 bytes.
fn short(text: &str) -> Result<String, String> {
    if text.len() <= 255 { Ok(text.to_owned()) } else { Err("must be 255 bytes at most".to_owned()) }
}

fn span(text: &str) -> Result<Duration, String> {
    let span: Result<SignedDuration, _> = text.parse();
    span.ok()
        .filter(SignedDuration::is_positive)
        .map(|span| span.unsigned_abs())
        .ok_or_else(|| "must be a time such as 30s or 5m".to_owned())
}

fn deadline(text: &str) -> Result<Timestamp, String> {
    let from_now = || Timestamp::now().checked_add(span(text).ok()?).ok();
    text.parse()
        .ok()
        .or_else(from_now)
        .ok_or_else(|| "must be a time such as 2026-01-31T12:00:00Z, or a span such as 10m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(content: &[u8]) -> Vec<Result<(usize, Vec<u8>), String>> {
        let (sender, mut receiver) = mpsc::channel(100);
        read_lines(content, Path::new("orders.jsonl"), &sender);
        drop(sender);
        let mut lines = Vec::new();
        while let Ok(line) = receiver.try_recv() {
            lines.push(line.map(|line| (line.number, line.body)).map_err(|error| error.to_string()));
        }
        lines
    }

    #[test]
    fn lines_keep_their_numbers_and_empty_ones_are_skipped() {
        assert_eq!(
            lines(b"a\n\n \t\r\nb\r\nc"),
            [Ok((1, b"a".to_vec())), Ok((4, b"b".to_vec())), Ok((5, b"c".to_vec()))]
        );
        assert_eq!(lines(b""), []);
    }

    #[test]
    fn a_line_without_an_end_ends_the_reading() {
        let mut content = b"a\n".to_vec();
        content.extend(vec![b'x'; 3 * LINE_BYTES_MAX]);
        let lines = lines(&content);
        assert_eq!(lines.len(), 2);
        assert!(lines[1].as_ref().is_err_and(|error| error.contains("line 2 is longer than")), "{lines:?}");
    }

    #[test]
    fn the_templates_of_all_bars_can_be_read() {
        for bytes in [None, Some(100)] {
            let tally = Tally::new(bytes, None);
            assert_eq!(tally.counts(), "0 published");
        }
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(span("5m"), Ok(Duration::from_secs(300)));
        for text in ["", "0s", "-5s", "soon", "5"] {
            span(text).expect_err(text);
        }
        assert_eq!(deadline("2026-01-31T12:00:00Z"), Ok("2026-01-31T12:00:00Z".parse().unwrap()));
        let ahead = deadline("10m").unwrap().duration_since(Timestamp::now());
        assert!((590..=600).contains(&ahead.as_secs()), "{ahead}");
        deadline("yesterday").unwrap_err();
    }
}
