//! `redeemer parked`: lists, shows, replays and discards parked commands.
//!
//! Each message is taken and requeued; an interruption loses nothing. A replay or a discard is a dry run without `--yes`.

mod operator_run;

use crate::cli::parked::operator_run::{OperatorRun, ReplayRate, query};
use std::sync::{Arc, RwLock};

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::amqp::parked_queue::{ParkedQueue, ParkedQueueError};
use crate::app::merchant_key_from_environment;
use crate::cli::{Failure, print, print_error};
use crate::config::Config;
use crate::parked::operator_text::operator_text;
use crate::parked::{CouponQuery, CouponStatus, Filter, Parked, SignatureWitness};
use crate::telemetry::masking::{Masked, Short, without_openids};
use crate::telemetry::untrusted::{Untrusted, Visible};
use crate::wechat::client::Client;
use crate::wechat::keys::Keyring;
use crate::wire::command::PartialCommand;
use crate::wire::result_event::Entry;

/// Arguments of `parked`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List parked commands, oldest first.
    List {
        #[command(flatten)]
        which: Which,
        /// Show this many at most.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u64,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Show parked commands whole: headers, bytes, faults, evidence.
    Show {
        #[command(flatten)]
        which: Which,
        /// Show this many at most.
        #[arg(long, value_name = "N", default_value_t = 10)]
        limit: u64,
        /// Query the payment API for the state of each coupon. Changes nothing.
        #[arg(long)]
        query: bool,
        /// Queries per second, at most.
        #[arg(long, value_name = "N", default_value = "5", value_parser = rate)]
        per_second: f64,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Query each coupon, then publish its result or send the command again. Without --yes a dry run.
    Replay {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        deciding: DecisionArguments,
        /// Why, for the audit event.
        #[arg(long, value_name = "TEXT", value_parser = text)]
        because: Option<String>,
        /// If two queries in a row find that it is refused for good: publish that, and remove the command from the queue.
        #[arg(long)]
        publish_refused: bool,
        /// Commands per second, at most.
        #[arg(long, value_name = "N", default_value = "5", value_parser = rate)]
        per_second: f64,
    },
    /// Remove commands from the queue for good; an audit event remains. Without --yes a dry run.
    Discard {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        deciding: DecisionArguments,
        /// Why, for the audit event.
        #[arg(long, value_name = "TEXT", value_parser = text)]
        because: String,
        /// Discard every parked command; required if no filter is given.
        #[arg(long)]
        all: bool,
    },
}

/// The filter.
#[derive(Debug, Args)]
struct Which {
    /// Parked for this reason, such as deadline_passed, invalid_command or delivery_limit. Repeatable.
    #[arg(long, value_name = "WORD", value_parser = text)]
    reason: Vec<String>,
    /// Parked longer ago than this, such as 2h.
    #[arg(long, value_name = "TIME", value_parser = span)]
    older_than: Option<SignedDuration>,
    /// Parked more recently than this, such as 30m.
    #[arg(long, value_name = "TIME", value_parser = span)]
    newer_than: Option<SignedDuration>,
    /// Of this brand.
    #[arg(long, value_name = "BRAND_ID", value_parser = text)]
    brand: Option<String>,
    /// Of this coupon.
    #[arg(long, value_name = "COUPON_CODE", value_parser = text)]
    coupon: Option<String>,
    /// With this request number.
    #[arg(long, value_name = "OUT_REQUEST_NO", value_parser = text)]
    number: Option<String>,
    /// With an id (SHA-256 of the bytes, as list shows it) that begins like this.
    #[arg(long, value_name = "HEX", value_parser = text)]
    id: Option<String>,
}

impl From<Which> for Filter {
    fn from(which: Which) -> Self {
        let Which { reason, older_than, newer_than, brand, coupon, number, id } = which;
        Self { reasons: reason, older_than, newer_than, brand, coupon, number, id }
    }
}

/// The decision.
#[derive(Debug, Args)]
struct DecisionArguments {
    /// Carry it out.
    #[arg(long)]
    yes: bool,
    /// Your name, for the audit event; required with --yes.
    #[arg(long, value_name = "NAME", env = "USER", value_parser = text)]
    operator: Option<String>,
    /// Process this many at most.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
    /// Hold messages this long at most before they are requeued and taken again; keep it below the broker's
    /// consumer_timeout.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = span)]
    hold: SignedDuration,
}

/// # Errors
/// [`Failure::Unexpected`] if a selected command stays parked.
pub async fn run(arguments: Arguments, config: Config) -> Result<(), Failure> {
    match arguments.command {
        Command::List { which, limit, json } => list(&config, &which.into(), limit, json).await,
        Command::Show { which, limit, query, per_second, json } => {
            let client = if query { Some(client(&config).await?) } else { None };
            show(&config, &which.into(), limit, client, per_second, json).await
        }
        Command::Replay { which, deciding, because, publish_refused, per_second } => {
            let client = client(&config).await?;
            let run =
                OperatorRun::new(&config, which.into(), &deciding, because.as_deref(), publish_refused)?;
            run.process_all(Some((&client, ReplayRate::new(per_second)))).await
        }
        Command::Discard { which, deciding, because, all } => {
            let filter = Filter::from(which);
            if filter.is_empty() && !all {
                let why = "discard: give a filter, or --all for every parked command";
                return Err(Failure::Failed(anyhow!(why)));
            }
            OperatorRun::new(&config, filter, &deciding, Some(&because), false)?.process_all(None).await
        }
    }
}

async fn list(config: &Config, filter: &Filter, limit: u64, as_lines: bool) -> Result<(), Failure> {
    let settings = config.broker_settings()?;
    let now = Timestamp::now();
    let Scan { mut found, waiting, at, ended } = scan(&settings, |parked| {
        let line = || if as_lines { Line::Json(summary(&parked, now)) } else { Line::Row(row(&parked, now)) };
        filter.admits(&parked, now).then(line)
    })
    .await?;
    let selected = found.len();
    found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let shown = found.len();
    let mut rows = vec![HEAD.map(str::to_owned)];
    for (_, line) in found {
        match line {
            Line::Json(line) => print(&line.to_string())?,
            Line::Row(row) => rows.push(row),
        }
    }
    if rows.len() > 1 {
        for line in table(&rows) {
            print(&line)?;
        }
    }
    let more = if shown < selected { format!(" ({selected} match, see --limit)") } else { String::new() };
    print_error(&format!("{shown} shown{more} of {waiting} parked at {at}"));
    Ok(ended.context(CANNOT_READ)?)
}

const HEAD: [&str; 8] = ["ID", "PARKED", "AGE", "REASON", "BRAND", "COUPON", "NUMBER", "BYTES"];

enum Line {
    Json(Value),
    Row([String; 8]),
}

const CANNOT_READ: &str = "the parked queue cannot be read";

/// The result of one pass over the parked queue.
struct Scan<T> {
    /// What `choose` returned, with the time of parking, oldest first.
    found: Vec<(Option<Timestamp>, T)>,
    /// How many are parked.
    waiting: u32,
    /// Host, port and virtual host.
    at: String,
    /// Why the pass ended early, such as a message that cannot be read.
    ended: Result<(), ParkedQueueError>,
}

/// Reads every parked command once. Always the whole queue, because a partial pass changes its order.
async fn scan<T>(
    settings: &crate::amqp::connection::AmqpSettings,
    choose: impl Fn(Parked) -> Option<T>,
) -> anyhow::Result<Scan<T>> {
    let mut queue = ParkedQueue::begin(settings).await.context(CANNOT_READ)?;
    if let Some(why) = queue.missing_lock() {
        print_error(&why);
    }
    let mut found = Vec::new();
    let ended = loop {
        match queue.next().await {
            Ok(Some(delivery)) => {
                let parked = Parked::read(delivery);
                let at = parked.at;
                found.extend(choose(parked).map(|chosen| (at, chosen)));
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    let (waiting, at) = (queue.waiting(), queue.at().to_owned());
    queue.end().await;
    found.sort_by_key(|(at, _)| *at);
    Ok(Scan { found, waiting, at, ended })
}

fn row(parked: &Parked, now: Timestamp) -> [String; 8] {
    let PartialCommand { brand_id, coupon_code, out_request_no, .. } = &parked.partial;
    let none = || "-".to_owned();
    [
        parked.sha256.chars().take(12).collect(),
        parked.at.map_or_else(none, |at| format!("{:.0}", at)),
        parked.age(now).map_or_else(none, short_span),
        Untrusted(&parked.reason).to_string(),
        brand_id.as_ref().map_or_else(none, ToString::to_string),
        coupon_code.as_ref().map_or_else(none, |code| Short(code.as_str()).to_string()),
        out_request_no.as_ref().map_or_else(none, ToString::to_string),
        parked.delivery.body().len().to_string(),
    ]
}

fn table<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn summary(parked: &Parked, now: Timestamp) -> Value {
    let PartialCommand { brand_id, coupon_code, out_request_no, openid, .. } = &parked.partial;
    json!({
        "id": parked.sha256,
        "parked_at": parked.at.map(|at| at.to_string()),
        "age_seconds": parked.age(now).map(|age| age.as_secs()),
        "reason": parked.reason,
        "openid": openid.as_ref().map(|it| it.as_str()),
        "coupon_code": coupon_code.as_ref().map(|it| it.as_str()),
        "brand_id": brand_id.as_ref().map(|it| it.as_str()),
        "out_request_no": out_request_no.as_ref().map(|it| it.as_str()),
        "attempts": parked.attempts(),
        "bytes": parked.delivery.body().len(),
    })
}

async fn show(
    config: &Config,
    filter: &Filter,
    limit: u64,
    client: Option<Client>,
    per_second: f64,
    as_lines: bool,
) -> Result<(), Failure> {
    let settings = config.broker_settings()?;
    let now = Timestamp::now();
    // Queries take long, so the pass ends before them: other operators need not wait.
    let Scan { mut found, waiting, at, ended } =
        scan(&settings, |parked| filter.admits(&parked, now).then_some(parked)).await?;
    let selected = found.len();
    found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let shown = found.len();
    let mut rate = ReplayRate::new(per_second);
    for (_, parked) in found {
        let query = match (&client, parked.command.as_ref()) {
            (Some(client), Ok(redemption)) => {
                rate.wait().await;
                Some(query(client, redemption).await)
            }
            _ => None,
        };
        if as_lines {
            print(&whole(&parked, query.as_ref(), now).to_string())?;
        } else {
            print(&published_event(&parked, query.as_ref(), now))?;
        }
    }
    let more = if shown < selected { format!(" ({selected} match, see --limit)") } else { String::new() };
    print_error(&format!("{shown} shown{more} of {waiting} parked at {at}"));
    Ok(ended.context(CANNOT_READ)?)
}

fn whole(parked: &Parked, query: Option<&CouponQuery>, now: Timestamp) -> Value {
    let mut whole = summary(parked, now);
    whole["headers"] = parked.delivery.visible_headers().into_iter().collect();
    let (body, left_out) = parked.shown_body();
    match std::str::from_utf8(body) {
        Ok(text) => whole["body"] = json!(text),
        Err(_) => {
            use base64::Engine as _;
            let text = base64::engine::general_purpose::STANDARD.encode(body);
            whole["body_base64"] = json!(text);
        }
    }
    if left_out > 0 {
        whole["body_bytes_left_out"] = json!(left_out);
    }
    let faults = parked.faults().iter();
    whole["faults"] =
        faults.map(|fault| json!({"pointer": fault.pointer, "problem": fault.problem})).collect();
    whole["evidence"] = parked.evidence().iter().map(|entry| json!(Entry::from(entry))).collect();
    if let Some(query) = query {
        whole["query"] = queried(query);
    }
    whole
}

fn queried(query: &CouponQuery) -> Value {
    let reason = match &query.status {
        CouponStatus::Refused { reason, .. } => Some(reason.as_str()),
        CouponStatus::Suspended(fault) => Some(fault.as_str()),
        _ => None,
    };
    json!({
        "status": query.status.as_str(),
        "reason": reason,
        "coupon_state": query.coupon.as_ref().map(|coupon| coupon.state.as_str()),
        "evidence": Entry::from(&query.evidence),
        "error": query.trouble,
    })
}

fn published_event(parked: &Parked, query: Option<&CouponQuery>, now: Timestamp) -> String {
    let mut lines = vec![format!("id        {}", parked.sha256)];
    let age = parked.age(now).map_or_else(String::new, |age| format!(", {} ago", short_span(age)));
    let at = parked.at.map_or_else(|| "at an unknown time".to_owned(), |at| at.to_string());
    lines.push(format!("parked    {at}{age}, because: {}", Untrusted(&parked.reason)));
    for (name, value) in parked.shown_headers() {
        // Evidence has its own lines below.
        if name != crate::wire::retry_message::EVIDENCE {
            lines.push(format!("header    {name}: {value}"));
        }
    }
    for fault in parked.faults() {
        lines.push(format!("fault     {} {}", Masked(&fault.pointer), fault.problem));
    }
    for attempt in parked.evidence() {
        lines.push(format!("attempt   {}", evidence_line(&attempt, SignatureWitness::Header)));
    }
    if let Some(query) = query {
        lines.push(format!(
            "now       {}: {}",
            describe(query),
            evidence_line(&query.evidence, SignatureWitness::ThisProcess)
        ));
    }
    let (body, left_out) = parked.masked_body();
    lines.push(format!("body      {} bytes: {body}", parked.delivery.body().len()));
    if left_out > 0 {
        lines.push(format!("          {left_out} more bytes are not shown"));
    }
    lines.iter().map(|line| Visible(line).to_string()).collect::<Vec<_>>().join("\n") + "\n"
}

fn evidence_line(evidence: &crate::domain::evidence::Evidence, witness: SignatureWitness) -> String {
    let status = evidence.status.map_or_else(|| "no response".to_owned(), |status| status.to_string());
    let request_id = evidence.request_id.as_deref().unwrap_or("-");
    let verified = witness.signature(evidence);
    let crate::domain::evidence::Evidence { at, operation, host, verdict, .. } = evidence;
    // A header may be forged.
    let line = format!("{at} {operation} {host} {status} {verdict}, {verified}, request {request_id}");
    without_openids(&line).into_owned()
}

fn describe(query: &CouponQuery) -> String {
    let state = query.coupon.as_ref().map_or("state unknown", |coupon| coupon.state.as_str());
    match &query.status {
        CouponStatus::Redeemed(_) => format!("redeemed under this number ({state})"),
        CouponStatus::Usable => format!("usable ({state})"),
        CouponStatus::Refused { reason, .. } => format!("refused: {} ({state})", reason.as_str()),
        CouponStatus::Unknown => "unknown".to_owned(),
        CouponStatus::Suspended(fault) => format!("every call fails: {}", fault.as_str()),
    }
}

/// The client of the payment API, with keys downloaded if there are none.
async fn client(config: &Config) -> Result<Client, Failure> {
    let from_environment = merchant_key_from_environment();
    let from_environment = from_environment.as_ref().map(|key| key.expose_secret());
    let now = Timestamp::now();
    let wrong = |faults: Vec<String>| Failure::Misconfigured(faults.join("\n"));
    let load = || {
        Keyring::load(&config.key_files(), from_environment, now)
            .map_err(|faults| wrong(faults.iter().map(ToString::to_string).collect()))
    };
    let keyring = load()?;
    let without_keys = keyring.public.is_empty();
    let shared = Arc::new(RwLock::new(Arc::new(keyring)));
    let client = Client::new(config.wechat_settings()?, shared.clone())
        .map_err(|fault| wrong(vec![fault.to_string()]))?;
    if without_keys && let Some(key) = config.apiv3_key()? {
        let brought = client
            .certificates(&key, now, rand::random())
            .await
            .context("no key to verify responses with: platform certificates could not be downloaded")?;
        let mut keyring = load()?;
        keyring.public.extend(brought);
        *shared.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(keyring);
    }
    Ok(client)
}

fn short_span(span: SignedDuration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn span(text: &str) -> Result<SignedDuration, String> {
    let span: Result<SignedDuration, _> = text.parse();
    span.ok()
        .filter(SignedDuration::is_positive)
        .ok_or_else(|| "must be a time such as 30s, 5m or 2h".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.01..=100.0).contains(rate));
    rate.ok_or_else(|| "must be 0.01 to 100".to_owned())
}

fn text(text: &str) -> Result<String, String> {
    match operator_text("the text", text) {
        Ok("") => Err("the text is empty".to_owned()),
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
