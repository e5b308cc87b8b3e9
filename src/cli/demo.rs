//! `redeemer demo`: runs the service against a sandbox and compares every outcome with its ledger.
//!
//! Sandbox and service are processes of their own, as in production; the demo is the order service and the subscriber. It
//! uses its own names on the broker and deletes everything at the end.

mod cases;
mod children;
mod report;

use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use indicatif::ProgressBar;
use reqwest::Method;
use tokio::time::sleep;
use uuid::Uuid;

use crate::amqp::client::{CommandMessage, CommandPublisher, Link, LinkError, ReceivedEvent, Subscription};
use crate::cli::demo::cases::{Case, Program};
use crate::cli::demo::children::{Http, Running};
use crate::cli::demo::report::{Effect, Got, Report, metric, short};
use crate::cli::event_view::EventView;
use crate::cli::files::{PRIVATE, write_file};
use crate::cli::publish::style;
use crate::cli::{Failure, print, print_error};
use crate::config::{Config, NamesConfig, Span};
use crate::domain::outcome::OutcomeKind;
use crate::policy::file_name::Typed;
use crate::runtime::shutdown;
use redeemer_sandbox::{Card, Script};

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The broker. The demo uses its own exchanges and queues, and deletes them at the end.
    #[arg(long, value_name = "URI", env = "REDEEMER_BROKER__URI", hide_env_values = true)]
    broker_uri: String,
    /// The folder for keys, configuration and logs: empty, or not created yet. It is removed at the end, unless a result
    /// was unexpected.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Commands to publish after the vendor's example.
    #[arg(long, default_value_t = 200)]
    commands: usize,
    /// The seed of all random choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The prefix of exchanges and queues.
    #[arg(long, value_name = "NAME")]
    prefix: Option<String>,
    /// Keep the folder and the objects on the broker.
    #[arg(long)]
    keep: bool,
}

/// No event for this long means that none will come.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Commands under way to the broker, not confirmed yet.
const WINDOW: usize = 100;
/// The response time of the payment API.
const LATENCY_MS: &str = "20";

/// Runs the demo.
///
/// # Errors
/// [`Failure::Unexpected`] if an outcome, a count or an exit code is unexpected.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let dir = make_folder(arguments.dir.as_deref())?;
    let mut stage = Stage::default();
    let mut ended = tokio::select! {
        ended = run_stage(&arguments, &dir, &mut stage) => ended,
        signal = shutdown::signal() => Err(anyhow!("ended by {}", signal.unwrap_or("a signal")).into()),
    };
    if let Err(error) = stage.clear(arguments.keep).await
        && ended.is_ok()
    {
        ended = Err(Failure::Unexpected(format!("{error:#}")));
    }
    let kept = arguments.keep || matches!(ended, Err(Failure::Unexpected(_)));
    if kept {
        print_error(&format!("logs, keys and configuration are kept in {}", dir.display()));
    } else if let Err(error) = fs::remove_dir_all(&dir) {
        print_error(&format!("{} cannot be removed: {error}", dir.display()));
    }
    ended
}

/// Programs and broker objects that must be removed at the end.
#[derive(Default)]
struct Stage {
    service: Option<Running>,
    sandbox: Option<Running>,
    config: Config,
    link: Option<Link>,
}

impl Stage {
    /// Ends both programs by SIGTERM, and deletes the objects on the broker.
    async fn clear(self, keep: bool) -> anyhow::Result<()> {
        let Self { service, sandbox, config, link } = self;
        let mut ended = Ok(());
        for program in [service, sandbox].into_iter().flatten() {
            ended = ended.and(program.stop().await);
        }
        if let Some(link) = link {
            if !keep {
                ended = ended.and(link.delete(&config.topology()).await.map_err(Into::into));
            }
            link.close().await;
        }
        ended
    }
}

/// Creates the folder, readable only by its owner: it will hold keys.
fn make_folder(expected: Option<&Path>) -> anyhow::Result<PathBuf> {
    let dir = match expected {
        Some(dir) => dir.to_owned(),
        None => std::env::temp_dir().join(format!("redeemer-demo-{}", Uuid::new_v4())),
    };
    let unusable = || format!("--dir {}", Typed(&dir));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).with_context(unusable)?;
    if fs::read_dir(&dir).with_context(unusable)?.next().is_some() {
        bail!("--dir {} is not empty, and everything in it would be removed at the end", Typed(&dir));
    }
    dir.canonicalize().with_context(unusable)
}

async fn run_stage(arguments: &Arguments, dir: &Path, stage: &mut Stage) -> Result<(), Failure> {
    let begun = Instant::now();
    let program = cases::program(arguments.commands, arguments.seed);
    let http = Http::new()?;

    // First of all, because without a broker there is no demo.
    stage.config = names_of_its_own(arguments, dir)?;
    let settings = stage.config.broker_settings()?;
    let names = &settings.topology.names;
    let link = Link::connect(&settings, "redeemer demo").await.context("no connection to the broker")?;

    match link.publisher(&names.commands).await {
        Err(LinkError::NoExchange(_)) => {}
        // Other commands would mix with those of the demo, and be deleted with them.
        Ok(_) => {
            return Err(
                anyhow!("exchange {} is there already: choose another --prefix", names.commands).into()
            );
        }
        Err(fault) => return Err(anyhow!(fault).into()),
    }

    let spinner = ProgressBar::new_spinner().with_style(style("{spinner} {msg}"));
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner.set_message("starting the sandbox, which makes its keys first");
    let (sandbox, card) = start_sandbox(dir, arguments.seed, &http).await.map_err(unexpected)?;
    let control = format!("{}/_sandbox", card.base_url);
    stage.sandbox = Some(sandbox);
    issue_coupons(&http, &control, &program).await.context("the sandbox cannot be furnished")?;

    spinner.set_message("starting the service");
    configure(&mut stage.config, dir, &card)?;
    // From here on there is something to clean up.
    let link = stage.link.insert(link);
    let (service, admin) = start_service(dir, &http).await.map_err(unexpected)?;
    stage.service = Some(service);
    spinner.finish_and_clear();

    let mut publisher = link.publisher(&names.commands).await.context("cannot publish")?;
    let reading = Link::connect(&settings, "redeemer demo, reading").await;
    let reading = reading.context("no second connection to the broker")?;
    let mut events = reading
        .subscribe(&names.results, &["redemption.#".to_owned()], None)
        .await
        .context("results cannot be read")?;

    let log = |name: &str| dir.join(name).display().to_string();
    print(&format!(
        "redeemer {}: {} commands against a simulated payment API, seed {}\n",
        env!("CARGO_PKG_VERSION"),
        arguments.commands.saturating_add(1),
        arguments.seed
    ))?;
    print(&format!("sandbox   {}  (a simulated payment API, {LATENCY_MS} ms away)", card.base_url))?;
    print(&format!("service   http://{admin}/metrics  /readyz  /livez"))?;
    print(&format!(
        "broker    {}, queue {}, results at exchange {}",
        link.at(),
        names.commands,
        names.results
    ))?;
    print(&format!("logs      {}  {}", log("service.log"), log("sandbox.log")))?;

    let mut wave = Wave::new(&program.cases);
    let (service, sandbox) = (&mut stage.service, &mut stage.sandbox);
    let played = async {
        print("\nThe vendor's example, word for word:")?;
        for line in cases::EXAMPLE.lines() {
            print(&format!("  {line}"))?;
        }
        wave.publish_cases(0..1, &mut publisher, &mut events).await?;
        match wave.got[0].first().and_then(|got| got.reported.as_ref()) {
            Some(reported) => print(&format!("  -> {reported}"))?,
            None => print("  -> no event")?,
        }
        let rest = 1..program.cases.len();
        print(&format!("\n{} more commands of every kind", arguments.commands))?;
        wave.publish_cases(rest, &mut publisher, &mut events).await
    };
    tokio::select! {
        played = played => played?,
        error = check_ended(service) => return Err(unexpected(error)),
        error = check_ended(sandbox) => return Err(unexpected(error)),
    }
    reading.close().await;

    let played = PlayedCase { http: &http, control: &control, admin: &admin, program: &program, wave: &wave };
    let mut wrong = played.report().await?;
    let malformed = program.cases.iter().filter(|case| case.number.is_none()).count();
    let expected = [(&names.commands, 0), (&names.parked, malformed), (&names.unrouted, 0)];
    wrong.extend(wrong_depths(link, &expected).await?);
    if wrong.is_empty() {
        let sent: usize = program.cases.iter().map(|case| case.times).sum();
        let took = begun.elapsed().as_secs_f64();
        print(&format!("\nAll {sent} commands ended as expected, {took:.1} s after the start."))?;
        return Ok(());
    }
    for fault in &wrong {
        print_error(fault);
    }
    Err(Failure::Unexpected(format!("{} things are not as expected", wrong.len())))
}

fn unexpected(error: anyhow::Error) -> Failure {
    Failure::Unexpected(format!("{error:#}"))
}

/// Collects the results, once all events have arrived.
struct PlayedCase<'a> {
    http: &'a Http,
    control: &'a str,
    admin: &'a str,
    program: &'a Program,
    wave: &'a Wave<'a>,
}

impl PlayedCase<'_> {
    /// Prints the table and the numbers; returns every unexpected result.
    async fn report(&self) -> anyhow::Result<Vec<String>> {
        let Self { http, control, admin, program, wave } = self;
        let effects: Vec<Effect> = http.read(&format!("{control}/effects")).await?;
        let report = Report { cases: &program.cases, got: &wave.got, effects: &effects };
        let (table, mut wrong) = report.table();
        for line in table {
            print(&line)?;
        }
        let time = |share, undisturbed| short(report.quantile(share, undisturbed));
        let (all, calm) =
            ([0.5, 0.99].map(|share| time(share, false)), [0.5, 0.99].map(|share| time(share, true)));
        print(&format!(
            "\nlatency   from command to event: p50 {}, p99 {}; undisturbed ones: p50 {}, p99 {}",
            all[0], all[1], calm[0], calm[1]
        ))?;
        let (reported, used, most) = report.ledger();
        print(&format!(
            "ledger    {reported} numbers reported redeemed, {used} of them used there; at most {most} effect per number"
        ))?;

        let metrics = settled_metrics(http, admin).await?;
        let count = |name: &str, label: &str| metric(&metrics, name, label);
        let residue = count("redeemer_unaccounted_deliveries", "");
        print(&format!(
            "metrics   {} deliveries taken, {} of them back from a delay queue; {} calls, {} of them queries; \
             residue {residue}; {:.0} MB",
            count("redeemer_commands_taken_total", ""),
            count("redeemer_commands_taken_total", "retry"),
            count("redeemer_attempts_total", ""),
            count("redeemer_attempts_total", "query"),
            count("process_resident_memory_bytes", "") / 1e6,
        ))?;
        if wave.repeats > 0 {
            print(&format!("repeats   {} events came more than once, which is allowed", wave.repeats))?;
        }

        if residue != 0.0 {
            wrong.push(format!("redeemer_unaccounted_deliveries is {residue}, not 0"));
        }
        if count("redeemer_commands_in_flight", "") != 0.0 {
            wrong.push("there are commands in flight although all have ended".to_owned());
        }
        wrong.extend(wave.strangers.iter().map(|key| format!("an event of no command of ours, under {key}")));
        Ok(wrong)
    }
}

async fn start_sandbox(dir: &Path, seed: u64, http: &Http) -> anyhow::Result<(Running, Card)> {
    let identity = dir.join("sandbox");
    let mut arguments = ["sandbox", "--with-parent", "--listen", "127.0.0.1:0"].map(Into::into).to_vec();
    arguments.extend(["--latency-ms", LATENCY_MS, "--seed"].map(Into::into));
    arguments.push(seed.to_string().into());
    arguments.push("--dir".into());
    arguments.push(identity.clone().into());
    let mut sandbox = Running::start("the sandbox", arguments, &dir.join("sandbox.log"))?;
    let card = sandbox
        .until("sign of life", async || {
            let text = fs::read_to_string(identity.join("identity.json")).ok()?;
            let card: Card = serde_json::from_str(&text).ok()?;
            // The file is there before the address is known.
            http.get(&format!("{}/_sandbox/health", card.base_url)).await.ok()?;
            Some(card)
        })
        .await?;
    Ok((sandbox, card))
}

/// Issues the coupons, applies their earlier actions, and sets the faults.
async fn issue_coupons(http: &Http, control: &str, program: &Program) -> anyhow::Result<()> {
    http.send(Method::POST, &format!("{control}/coupons"), &program.coupons).await?;
    for (code, act) in &program.acts {
        http.send(Method::POST, &format!("{control}/coupons/{code}/act"), act).await?;
    }
    let script = Script::of(program.rules.iter().cloned());
    http.send(Method::PUT, &format!("{control}/faults"), &script).await
}

/// The shipped configuration with names of its own on the broker; the URI is in a file that only its owner may read.
fn names_of_its_own(arguments: &Arguments, dir: &Path) -> anyhow::Result<Config> {
    let uri_file = dir.join("broker.uri");
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&uri_file)
        .and_then(|mut file| file.write_all(arguments.broker_uri.as_bytes()))
        .with_context(|| format!("{} cannot be written", uri_file.display()))?;
    let prefix = arguments.prefix.clone().unwrap_or_else(|| {
        let chance = Uuid::new_v4().simple().to_string();
        format!("demo-{}", &chance[..8])
    });
    let mut config = Config::default();
    config.broker.uri = String::new();
    config.broker.uri_file = uri_file.display().to_string();
    let NamesConfig { commands, retry, results, unrouted, parked, dead, instances } =
        &mut config.broker.names;
    for name in [commands, retry, results, unrouted, parked, dead, instances] {
        *name = name.replacen("redemption", &prefix, 1);
    }
    // The demo must not take two hours, and some commands must pass through a delay queue.
    config.retry.delays = [2, 4].map(|seconds| Span(Duration::from_secs(seconds))).to_vec();
    config.retry.in_process_max = Span(Duration::from_secs(5));
    config.admin.listen = "127.0.0.1:0".to_owned();
    Ok(config)
}

/// Adds the identity of the sandbox and writes the configuration of the service.
fn configure(config: &mut Config, dir: &Path, card: &Card) -> anyhow::Result<()> {
    let file = |name: &str| dir.join("sandbox").join(name);
    config.wechat.base_url.clone_from(&card.base_url);
    config.wechat.backup_base_url = String::new();
    config.wechat.mchid.clone_from(&card.mchid);
    config.wechat.merchant_serial.clone_from(&card.merchant_serial);
    config.wechat.merchant_key_file = file("merchant_key.pem").display().to_string();
    config.wechat.public_keys.insert(card.public_key_id.clone(), file("wechatpay_public_key.pem"));
    let text = toml::to_string(config).context("the configuration cannot be written")?;
    let path = dir.join("config.toml");
    write_file(&path, PRIVATE, text.as_bytes())
        .with_context(|| format!("{} cannot be written", path.display()))
}

async fn start_service(dir: &Path, http: &Http) -> anyhow::Result<(Running, String)> {
    let address = dir.join("admin.address");
    let mut arguments = ["run", "--with-parent", "--config"].map(Into::into).to_vec();
    arguments.push(dir.join("config.toml").into());
    arguments.push("--admin-address-file".into());
    arguments.push(address.clone().into());
    let mut service = Running::start("the service", arguments, &dir.join("service.log"))?;
    let admin = service
        .until("readiness", async || {
            let admin = fs::read_to_string(&address).ok()?;
            http.get(&format!("http://{admin}/readyz")).await.ok()?;
            Some(admin)
        })
        .await?;
    Ok((service, admin))
}

async fn check_ended(program: &mut Option<Running>) -> anyhow::Error {
    match program {
        Some(program) => program.wait_ended().await,
        None => std::future::pending().await,
    }
}

/// The metrics, once the last acknowledgement has been counted too.
async fn settled_metrics(http: &Http, admin: &str) -> anyhow::Result<String> {
    let give_up_at = Instant::now() + Duration::from_secs(5);
    loop {
        let text = http.get(&format!("http://{admin}/metrics")).await?;
        if metric(&text, "redeemer_commands_in_flight", "") == 0.0 || Instant::now() > give_up_at {
            return Ok(text);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Queues with an unexpected depth, after the last acknowledgement.
async fn wrong_depths(link: &Link, expected: &[(&String, usize)]) -> anyhow::Result<Vec<String>> {
    let give_up_at = Instant::now() + Duration::from_secs(10);
    loop {
        let mut wrong = Vec::new();
        for (queue, count) in expected {
            let depth = link.depth(queue).await?;
            if depth as usize != *count {
                wrong.push(format!("{depth} messages in {queue}, not {count}"));
            }
        }
        if wrong.is_empty() || Instant::now() > give_up_at {
            return Ok(wrong);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The commands under way and their events.
struct Wave<'a> {
    cases: &'a [Case],
    got: Vec<Vec<Got>>,
    /// By correlation id, without an event so far: which case, published when.
    awaited: HashMap<String, (usize, Instant)>,
    reported: HashSet<String>,
    repeats: usize,
    strangers: Vec<String>,
}

impl<'a> Wave<'a> {
    fn new(cases: &'a [Case]) -> Self {
        let got = vec![Vec::new(); cases.len()];
        Self {
            cases,
            got,
            awaited: HashMap::new(),
            reported: HashSet::new(),
            repeats: 0,
            strangers: Vec::new(),
        }
    }

    /// Publishes these cases and waits for their events, or for a long silence.
    async fn publish_cases(
        &mut self,
        range: std::ops::Range<usize>,
        publisher: &mut CommandPublisher,
        events: &mut Subscription,
    ) -> anyhow::Result<()> {
        let cases = self.cases;
        let messages: Vec<_> = range.flat_map(|nth| std::iter::repeat_n(nth, cases[nth].times)).collect();
        let bar = ProgressBar::new(messages.len() as u64)
            .with_style(style("{bar:40} {pos} of {len} events  {elapsed}  {msg}"));
        let mut messages = messages.into_iter().peekable();
        let mut missing = messages.len();
        let mut confirms = FuturesUnordered::new();
        let mut seen = HashMap::<&'static str, usize>::new();
        let mut last_sign = Instant::now();
        while missing > 0 || messages.peek().is_some() || !confirms.is_empty() {
            let silence = last_sign + SILENCE_MAX;
            tokio::select! {
                () = std::future::ready(()), if messages.peek().is_some() && confirms.len() < WINDOW => {
                    let Some(nth) = messages.next() else { continue };
                    let id = Uuid::new_v4().to_string();
                    let command = CommandMessage {
                        body: &cases[nth].body,
                        routing_key: "redemption.use",
                        message_id: &id,
                        correlation_id: &id,
                        sent: Some(jiff::Timestamp::now()),
                        ..CommandMessage::default()
                    };
                    self.awaited.insert(id.clone(), (nth, Instant::now()));
                    confirms.push(publisher.publish(command).await?);
                }
                Some(confirmed) = confirms.next() => confirmed?,
                event = events.next() => {
                    let event = event.ok_or_else(|| anyhow!("connection to the broker lost"))?;
                    last_sign = Instant::now();
                    if let Some(outcome) = self.receive(event) {
                        missing -= 1;
                        *seen.entry(outcome).or_default() += 1;
                        let mut counts: Vec<_> = seen.iter().map(|(word, n)| format!("{n} {word}")).collect();
                        counts.sort_unstable();
                        bar.set_message(counts.join(", "));
                        bar.inc(1);
                    }
                }
                () = tokio::time::sleep_until(silence.into()) => break,
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Enters an event; gives its outcome if it is the first of its message.
    fn receive(&mut self, event: ReceivedEvent) -> Option<&'static str> {
        let id = event.correlation_id.unwrap_or_default();
        let Some((nth, published)) = self.awaited.remove(&id) else {
            match self.reported.contains(&id) {
                true => self.repeats += 1,
                false => self.strangers.push(event.routing_key),
            }
            return None;
        };
        self.reported.insert(id);
        let took = published.elapsed();
        let reported = EventView::read(&event.body);
        let known = OutcomeKind::ALL
            .into_iter()
            .find(|kind| reported.as_ref().is_some_and(|reported| reported.data.outcome == kind.as_str()));
        self.got[nth].push(Got { reported, took });
        Some(known.map_or("unreadable", |kind| kind.as_str()))
    }
}
