//! Sets everything up, carries out the plan, waits for the end of all work, and gathers what the oracle needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use redeemer::amqp::topology::delay_name;
use redeemer::config::{Config, Span};
use redeemer::runtime::failpoints::Failpoint;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::broker::Broker;
use crate::commands::{self, Command, Hit};
use crate::dice::Dice;
use crate::oracle::{self, Findings};
use crate::plan::{self, Act, INSTANCES, Place, Size, Standing, Trouble};
use crate::proxy::{Manner, Proxy};
use crate::report;
use crate::returns;
use crate::service::{self, Sandbox, Service, was_killed};
use crate::wires::{self, ReceivedEvent};

/// The share of commands that comes at once when all trouble but the payment API's is over: one in this many.
const BACKLOG_SHARE: usize = 10;
/// How many commands may lag behind the plan.
const LAGGING: usize = 40;
/// How many commands are kept back for the command queue that was deleted, and as many for the delay queues.
const KEPT_BACK: usize = 10;
/// The longest wait for anything to go on.
const PATIENCE: Duration = Duration::from_secs(60);

/// Within what time this many in a hundred must be, from the broker taking connections to the first settled command, and
/// from its end to readiness being denied. What is not optimized shares the machine with whatever else is being tested.
const LIMITS: &[(usize, Duration)] = if cfg!(debug_assertions) {
    &[(50, Duration::from_secs(5))]
} else {
    &[(50, Duration::from_secs(2)), (90, Duration::from_secs(2)), (100, Duration::from_secs(5))]
};
/// When a broker that says nothing must have been noticed: a connection is dead after twice the heartbeat, and a busy
/// machine may be slow. Before a confirm is waited for in vain, which would end the connection, too.
const NOTICED_WITHIN: Duration = Duration::from_secs(8);
/// When some instance must have noticed an alarm: a command that is in hand is reported or delayed by then.
const ALARM_REPORTED_WITHIN: Duration = Duration::from_secs(8);
/// How long trouble is kept up for something to fall upon.
const OCCASION: Duration = Duration::from_secs(20);
/// The metrics that show that the broker is connected, how often it was, and that it takes no messages.
const CONNECTED: &str = "redeemer_broker_connected";
const SESSIONS: &str = "redeemer_broker_sessions_total";
const BLOCKED: &str = "redeemer_broker_blocked";
/// Who the services are at the broker.
const USER: &str = "torture";
/// How often in a row an instance is restarted in good order.
const RESTARTS: usize = 4;
/// How long a standing fault lasts, once the instances feel it.
const STANDING: Duration = Duration::from_secs(3);
/// How long after being let go a call may still be on its way.
const STRAGGLING: SignedDuration = SignedDuration::from_secs(2);

/// Everything that takes part.
pub(crate) struct Rig {
    dir: PathBuf,
    broker: Arc<Broker>,
    sandbox: Arc<Sandbox>,
    config: Config,
    before_broker: Proxy,
    before_provider: Proxy,
    instances: [Service; INSTANCES],
    commands: Vec<Command>,
    acts: Vec<Act>,
    reported: ReceivedEvent,
    allowance: watch::Sender<usize>,
    series: Vec<Vec<String>>,
    figures: Figures,
    size: Size,
    /// How often each rule of the fault script was applied.
    hits: Vec<Hit>,
    /// When calls to the payment API were held up, and then let go all at once.
    muddles: Vec<(Timestamp, Timestamp)>,
    violations: Vec<String>,
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Kills by the failpoint.
    pub kills: BTreeMap<&'static str, usize>,
    /// Stops of the service in good order.
    pub stops: usize,
    /// Kills of the broker.
    pub broker_kills: usize,
    /// Kinds of faults that calls met.
    pub kinds: usize,
    /// Other troubles, by name.
    pub troubles: BTreeMap<String, usize>,
    /// From the broker taking connections again to the first settled command, after each end of the broker.
    pub recoveries: Vec<Duration>,
    /// From the broker's end to the service saying that it is not ready.
    pub unready: Vec<Duration>,
    /// Commands that were not settled when the trouble ended, and how long they took.
    pub backlog: (usize, Duration),
    /// Copies put into delay queues, as far as surviving processes know.
    pub delayed: usize,
    /// Outcomes that superseded `unresolved`.
    pub superseded: usize,
    /// Runs of `parked replay`, two at once.
    pub operators: usize,
    /// Coupons that the user returned.
    pub returned: usize,
    /// Messages whose properties cannot be decoded, among the commands.
    pub undecodable: usize,
    /// The broker's version.
    pub broker_version: String,
    /// Everything, from the start of the broker.
    pub took: Duration,
}

impl Rig {
    /// Starts the broker, the sandbox, the proxies and the service.
    pub(crate) async fn set_up(size: Size, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let (mut commands, mut coupons) =
            commands::make(size.commands.saturating_sub(KEPT_BACK).max(3 * KEPT_BACK), KEPT_BACK, &mut dice);
        let within = commands.len() - 2 * KEPT_BACK;
        coupons.extend(commands::add_returned(&mut commands, size.commands / 60 + 2, within, &mut dice));
        let undecodable = size.commands / 100 + 3;
        coupons.extend(commands::add_undecodable(&mut commands, undecodable, within, &mut dice));
        let acts = plan::make(size, &mut dice);
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("torture-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let sandbox_dir = dir.join("sandbox");
        let (broker, sandbox) =
            tokio::join!(spawn_blocking(Broker::start_counting), Sandbox::start(&sandbox_dir, seed));
        let (broker, sandbox) = (Arc::new(broker.unwrap()), Arc::new(sandbox));
        // A use sent once more without a look has a second effect.
        let harsh = json!({"returned_before_reuse": commands::RETURNED});
        sandbox.tell(reqwest::Method::PUT, "settings", &harsh).await;
        for some in coupons.chunks(1_000) {
            sandbox.tell(reqwest::Method::POST, "coupons", &json!(some)).await;
        }
        // More than is wanted, or chance would often leave less.
        let script = commands::faults(size.faults_percent as f64 * 1.15 / 100.0, size.commands);
        sandbox.tell(reqwest::Method::PUT, "faults", &script).await;

        let port = broker.uri().rsplit_once(':').unwrap().1.split('/').next().unwrap().parse().unwrap();
        let (before_broker, before_provider) = (Proxy::start(port).await, Proxy::start(sandbox.port()).await);
        // The services log in as a user of their own, whose rights can be taken away.
        let setting_up = broker.clone();
        spawn_blocking(move || {
            setting_up.ctl(&["add_user", USER, USER]);
            setting_up.ctl(&["set_permissions", USER, ".*", ".*", ".*"]);
        })
        .await
        .unwrap();
        let through = broker.uri_of(USER, USER);
        let through = through.replace(&format!(":{port}/"), &format!(":{}/", before_broker.port));
        let config = configure(&sandbox_dir, &sandbox.card, through, before_provider.port);
        std::fs::write(dir.join("redeemer.toml"), toml::to_string(&config).unwrap()).unwrap();
        wires::establish(broker.uri(), &config).await;
        let reported = wires::read(broker.uri().to_owned());
        let mut instances = [0, 1].map(|nth| Service::new(&format!("instance-{nth}"), &dir));
        let mut series = Vec::new();
        for instance in &mut instances {
            instance.launch().await;
            series.push(instance.series().await);
        }
        let allowance = watch::Sender::new(0);
        let figures = Figures { broker_version: version(&broker).await, undecodable, ..Figures::default() };
        Self {
            dir,
            broker,
            sandbox,
            config,
            before_broker,
            before_provider,
            instances,
            commands,
            acts,
            reported,
            allowance,
            series,
            figures,
            size,
            hits: Vec::new(),
            muddles: Vec::new(),
            violations: Vec::new(),
        }
    }

    /// Carries out the plan and judges the run.
    pub(crate) async fn run(mut self, begun: Instant) -> (Figures, Findings) {
        let exchange = self.config.broker.names.commands.clone();
        let publishing = wires::publish(
            self.broker.uri().to_owned(),
            exchange,
            self.commands.clone(),
            self.allowance.subscribe(),
        );
        let publishing = tokio::spawn(publishing);
        let returned = Arc::new(AtomicUsize::new(0));
        let returning = tokio::spawn(returns::go_on(self.sandbox.clone(), returned.clone()));
        let last = self.commands.len() - 2 * KEPT_BACK;
        let troubled = last - last / BACKLOG_SHARE;
        let acts = std::mem::take(&mut self.acts);
        let wanted: usize = acts.iter().map(plan::commands_for).sum();
        let mut due = 0;
        for (nth, act) in acts.iter().enumerate() {
            // Commands come as the plan goes on, so that each act finds some to fall upon; those that take long are
            // not waited for.
            self.reach((due * troubled / wanted).saturating_sub(LAGGING)).await;
            due += plan::commands_for(act);
            self.allow(due * troubled / wanted);
            let at = begun.elapsed().as_secs_f64();
            println!(
                "torture: {at:>6.1} s, {} reported, act {nth} of {}: {act}",
                self.progress(),
                acts.len()
            );
            self.carry_out(*act).await;
            self.look_after().await;
        }
        let since = Instant::now();
        self.allow(last);
        let backlog = last.saturating_sub(self.progress());
        self.reach(last).await;
        self.figures.backlog = (backlog, since.elapsed());
        println!(
            "torture: {:>6.1} s: trouble is over, {} reported",
            begun.elapsed().as_secs_f64(),
            self.progress()
        );

        self.hits = commands::hits(&self.sandbox.ask("faults").await);
        self.figures.kinds = commands::kinds(&self.hits);
        self.sandbox.tell(reqwest::Method::PUT, "faults", &json!({"rules": []})).await;
        let names = self.config.broker.names.clone();
        self.delete_queues(&[&names.commands]).await;
        self.allow(last + KEPT_BACK);
        self.reach(last + KEPT_BACK).await;
        let delays = self.config.topology().delays;
        let delays: Vec<_> =
            delays.into_iter().map(|delay| format!("{}.{}", names.retry, delay_name(delay))).collect();
        let reluctant = json!({"rules": [commands::reluctance()]});
        self.sandbox.tell(reqwest::Method::PUT, "faults", &reluctant).await;
        self.delete_queues(&delays.iter().map(String::as_str).collect::<Vec<_>>()).await;
        self.allow(self.commands.len());
        let publication =
            timeout(PATIENCE, publishing).await.expect("everything is published in time").unwrap();
        self.reach(self.commands.len()).await;
        self.wait_empty().await;
        let mut parked = self.parked().await;
        self.resolve_the_unresolved(&parked).await;
        self.settle().await;
        parked.extend(self.parked().await);
        self.stop_all().await;
        self.find_nothing_left().await;
        let ledger = self.sandbox.ask("ledger").await;
        let (seen, twice) = (self.reported.all(), &publication.twice);
        let mut findings = oracle::judge(&self.commands, &seen, &ledger, &parked, twice, &self.muddles);
        oracle::judge_deadlines(&seen, &publication.deadlines, &mut findings);
        self.figures.returned = returned.load(Ordering::SeqCst);
        if returning.is_finished() {
            self.violations.push("the user who returns coupons met an error".to_owned());
        }
        findings.violations.append(&mut self.violations);
        let shortfalls = self.shortfalls(&findings);
        findings.violations.extend(shortfalls);
        let never = Failpoint::ALL.map(Failpoint::as_str).into_iter();
        let never: Vec<_> = never.filter(|point| !self.figures.kills.contains_key(point)).collect();
        if !never.is_empty() && cfg!(any(debug_assertions, feature = "failpoints")) {
            findings.violations.push(format!("never killed {never:?}"));
        }
        self.figures.took = begun.elapsed();
        if findings.violations.is_empty() {
            let _ = std::fs::remove_dir_all(&self.dir);
        } else {
            println!("torture: logs are in {}", self.dir.display());
        }
        let Self { broker, figures, .. } = self;
        spawn_blocking(move || drop(broker)).await.unwrap();
        (figures, findings)
    }

    /// Everything in the parked queue, taken out of it.
    async fn parked(&self) -> Vec<(Vec<u8>, String)> {
        wires::empty(self.broker.uri(), &self.config.broker.names.parked, "x-redemption-parked-reason").await
    }

    /// With every instance stopped, whatever they held is back in its queue: there must be nothing.
    async fn find_nothing_left(&mut self) {
        let names = &self.config.broker.names;
        let mut queues = vec![names.commands.clone(), names.unrouted.clone(), names.dead.clone()];
        let delays = self.config.topology().delays.into_iter();
        queues.extend(delays.map(|delay| format!("{}.{}", names.retry, delay_name(delay))));
        for queue in queues {
            for (body, _) in wires::empty(self.broker.uri(), &queue, "").await {
                let text = String::from_utf8_lossy(&body);
                self.violations.push(format!("left in {queue} after every instance had stopped: {text}"));
            }
        }
    }

    /// What the run should have shown and did not: trouble that never came, limits that were not kept.
    fn shortfalls(&self, findings: &oracle::Findings) -> Vec<String> {
        let mut shortfalls = Vec::new();
        let mut check = |holds: bool, what: String| shortfalls.extend((!holds).then_some(what));
        let (faulty, calls) = findings.at_random;
        let percent = self.size.faults_percent;
        let reported = format!("{faulty} faults at random in {calls} calls, not {percent} %");
        check(faulty * 100 >= calls * percent, reported);
        let ends = self.figures.unready.len();
        for (what, times) in [
            ("from the broker's return to the first settled command", &self.figures.recoveries),
            ("from the broker's end to not ready", &self.figures.unready),
        ] {
            let mut sorted = times.clone();
            sorted.sort();
            check(!sorted.is_empty(), format!("nobody measured the time {what}"));
            for (percent, limit) in LIMITS {
                let time = sorted.get(report::up_to(*percent, sorted.len())).copied().unwrap_or_default();
                check(
                    time <= *limit,
                    format!("{percent} in 100 times {what} are up to {time:?}, not {limit:?}"),
                );
            }
        }
        if self.size.is_long() {
            let (kills, wanted) = (self.figures.kills.values().sum::<usize>(), self.size.kills);
            check(kills >= wanted, format!("{kills} kills, not {wanted}"));
            let never: Vec<_> = self.hits.iter().filter(|hit| hit.times == 0).collect();
            let reported = format!("of {} rules these faults never came: {never:?}", self.hits.len());
            check(never.is_empty() && !self.hits.is_empty(), reported);
            check(findings.superseded > 0, "no command was unresolved and superseded".to_owned());
            let wanted = self.size.broker_kills;
            check(ends >= wanted, format!("{ends} ends of the broker, not {wanted}"));
        }
        shortfalls
    }

    fn progress(&self) -> usize {
        *self.reported.progress().borrow()
    }

    /// Lets this many commands be published.
    fn allow(&self, commands: usize) {
        self.allowance.send_if_modified(|allowed| {
            let more = *allowed < commands;
            *allowed = commands.max(*allowed);
            more
        });
    }

    /// Waits until there are events for this many commands, for as long as there are more and more of them.
    async fn reach(&mut self, commands: usize) {
        let mut progress = self.reported.progress();
        let mut reported = *progress.borrow_and_update();
        while reported < commands {
            if timeout(PATIENCE, progress.wait_for(|now| *now > reported)).await.is_err() {
                let why = format!("{reported} of {commands} commands reported, and none for {PATIENCE:?}");
                let state = self.state().await;
                self.violations.push(format!("{why}; {state}"));
                return;
            }
            reported = self.progress();
        }
    }

    /// Where work is stuck: what each queue holds, who reads it, and what each instance says of itself.
    async fn state(&self) -> String {
        let columns = ["messages_ready", "messages_unacknowledged", "consumers"];
        let (broker, arguments) =
            (self.broker.clone(), [&["-q", "list_queues", "name"], &columns[..]].concat());
        // If it does not answer, that is what there is to report.
        let queues = spawn_blocking(move || broker.ctl(&arguments)).await.unwrap_or_default();
        let mut said = Vec::new();
        for instance in &self.instances {
            let in_flight = instance.metric("redeemer_commands_in_flight").await;
            said.push((instance.name(), instance.get("/readyz").await, in_flight));
        }
        format!("(name, {}) {:?}; {said:?}", columns.join(", "), queues.lines().skip(1).collect::<Vec<_>>())
    }

    async fn carry_out(&mut self, act: Act) {
        match act {
            Act::Kill { point, nth } => self.kill_at(point, nth).await,
            Act::KillAnywhere { instance, after_ms } => {
                sleep(Duration::from_millis(after_ms)).await;
                self.kill_anywhere(instance).await;
            }
            Act::Stop { instance } => {
                self.stop(instance).await;
                self.instances[instance].launch().await;
            }
            Act::Restarts { instance } => {
                self.count(act);
                for _ in 0..RESTARTS {
                    let last = self.commands.len() - 2 * KEPT_BACK;
                    self.allow(last.min(self.progress() + LAGGING));
                    self.instances[instance].wait_ready(true).await;
                    self.stop(instance).await;
                    self.instances[instance].launch().await;
                }
            }
            Act::KillBroker { with } => {
                self.figures.broker_kills += 1;
                self.end_broker(Broker::kill9, with).await;
            }
            Act::StopBroker => {
                self.count(act);
                self.end_broker(Broker::stop, None).await;
            }
            Act::Alarm => {
                self.count(act);
                let mut reported = self.alarm().await;
                for _ in 0..2 {
                    if !reported {
                        // Nobody had anything to publish.
                        let last = self.commands.len() - 2 * KEPT_BACK;
                        self.allow(last.min(self.progress() + LAGGING));
                        reported = self.alarm().await;
                    }
                }
                if !reported {
                    self.violations.push("no instance noticed the memory alarm".to_owned());
                }
            }
            Act::CloseConnections => {
                self.count(act);
                let built = self.sessions().await;
                self.ctl(&["close_all_connections", "closed by the fault rig"]).await;
                self.expect_new_connections(&act, built, INSTANCES).await;
            }
            Act::Network { at, trouble } => {
                self.count(act);
                self.disturb(act, at, trouble).await;
            }
            Act::Standing(fault) => {
                self.count(act);
                self.stand(act, fault).await;
            }
        }
    }

    /// A fault at the broker begins, is felt by new sessions, lasts for a while and is removed. Where every event would meet
    /// it, both instances must say so; afterwards both must be ready again.
    async fn stand(&mut self, act: Act, fault: Standing) {
        let names = self.config.broker.names.clone();
        let results = format!("^(?!{}$).*$", names.results.replace('.', r"\."));
        let size = |bytes: u32| {
            // Channels ask for it of the one place in 3.x, of the other in 4.x.
            format!(
                "application:set_env(rabbit, max_message_size, {bytes}), \
                 persistent_term:put(max_message_size, {bytes})."
            )
        };
        let stops_all = match fault {
            Standing::ResultsRight => {
                self.ctl(&["set_permissions", USER, ".*", &results, ".*"]).await;
                true
            }
            Standing::RefusedKeys => {
                let keys = r"^(?!redemption\.refused\.).*$";
                self.ctl(&["set_topic_permissions", USER, &names.results, keys, ".*"]).await;
                false
            }
            Standing::RetryExchange => {
                wires::delete_exchange(self.broker.uri(), &names.retry).await;
                false
            }
            Standing::MessageSize => {
                self.ctl(&["eval", &size(2_000)]).await;
                false
            }
            Standing::Channels => {
                self.ctl(&["set_user_limits", USER, r#"{"max-channels": 3}"#]).await;
                true
            }
        };
        let felt_by_new_sessions = fault != Standing::RetryExchange;
        if felt_by_new_sessions {
            self.ctl(&["close_all_user_connections", USER, "a fault begins"]).await;
        }
        let [one, other] = &self.instances;
        if stops_all {
            let unready = tokio::join!(one.wait_ready(false), other.wait_ready(false));
            if !matches!(unready, (Some(_), Some(_))) {
                self.violations.push(format!("{act}: not all said so: {}", self.state().await));
            }
        }
        sleep(STANDING).await;
        match fault {
            Standing::ResultsRight => {
                self.ctl(&["set_permissions", USER, ".*", ".*", ".*"]).await;
            }
            Standing::RefusedKeys => {
                self.ctl(&["clear_topic_permissions", USER]).await;
            }
            // The service makes it again when it publishes there.
            Standing::RetryExchange => {}
            Standing::MessageSize => {
                self.ctl(&["eval", &size(134_217_728)]).await;
            }
            Standing::Channels => {
                self.ctl(&["clear_user_limits", USER, "max-channels"]).await;
            }
        }
        // One that the payment API had suspended meanwhile finds out by a command that it is over.
        let last = self.commands.len() - 2 * KEPT_BACK;
        self.allow(last.min(self.progress() + LAGGING));
        let [one, other] = &self.instances;
        let ready = tokio::join!(one.wait_ready(true), other.wait_ready(true));
        if !matches!(ready, (Some(_), Some(_))) {
            self.violations.push(format!("{act}: not all are ready again: {}", self.state().await));
        }
    }

    /// Raises a memory alarm for three seconds, or until it must have been noticed. Whether an instance was: the broker
    /// notifies those who publish.
    async fn alarm(&self) -> bool {
        self.ctl(&["set_vm_memory_high_watermark", "0.0001"]).await;
        let since = Instant::now();
        let [one, other] = &self.instances;
        let is_blocked = |blocked| blocked == 1.0;
        let reported = tokio::select! {
            reported = one.wait_metric(BLOCKED, is_blocked, ALARM_REPORTED_WITHIN) => reported,
            reported = other.wait_metric(BLOCKED, is_blocked, ALARM_REPORTED_WITHIN) => reported,
        };
        sleep(Duration::from_secs(3).saturating_sub(since.elapsed())).await;
        self.ctl(&["set_vm_memory_high_watermark", "0.4"]).await;
        reported.is_some()
    }

    /// How often each instance has connected to the broker, once both are connected.
    async fn sessions(&self) -> [f64; INSTANCES] {
        let [one, other] = &self.instances;
        tokio::join!(one.wait_ready(true), other.wait_ready(true));
        let (one, other) = tokio::join!(
            one.wait_metric(SESSIONS, |_| true, PATIENCE),
            other.wait_metric(SESSIONS, |_| true, PATIENCE)
        );
        // An instance without metrics cannot be seen to connect again.
        [one, other].map(|built| built.unwrap_or(f64::INFINITY))
    }

    /// This many instances at least connect to the broker again, and both are ready again.
    async fn expect_new_connections(&mut self, act: &Act, built: [f64; INSTANCES], wanted: usize) {
        let since = Instant::now();
        loop {
            let mut again = 0;
            for (instance, before) in self.instances.iter().zip(built) {
                again += usize::from(instance.metric(SESSIONS).await.is_some_and(|now| now > before));
            }
            if again >= wanted {
                break;
            }
            if since.elapsed() > PATIENCE {
                self.violations.push(format!("{act}: {again} instances connected again, not {wanted}"));
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        let [one, other] = &self.instances;
        let ready = tokio::join!(one.wait_ready(true), other.wait_ready(true));
        if !matches!(ready, (Some(_), Some(_))) {
            self.violations.push(format!("{act}: not all are ready again: {}", self.state().await));
        }
    }

    fn count(&mut self, act: Act) {
        *self.figures.troubles.entry(act.to_string()).or_default() += 1;
    }

    /// Orders every instance to die there, and takes the order back once one has.
    async fn kill_at(&mut self, point: Failpoint, nth: usize) {
        for instance in &mut self.instances {
            instance.order(point, nth);
        }
        if point == Failpoint::Draining {
            // One that is not connected yet has nothing to drain.
            self.instances[0].wait_ready(true).await;
            self.instances[0].ask_to_stop().await;
        }
        let since = Instant::now();
        let mut dead = false;
        while !dead && since.elapsed() < Duration::from_secs(20) {
            sleep(Duration::from_millis(10)).await;
            for instance in 0..INSTANCES {
                dead |= self.bury(instance, point).await;
            }
        }
        for instance in 0..INSTANCES {
            if self.instances[instance].withdraw() {
                continue;
            }
            // It has taken its order, and is about to die.
            let since = Instant::now();
            while !self.bury(instance, point).await {
                if since.elapsed() > PATIENCE {
                    self.violations.push(format!("instance {instance} took its order and lives"));
                    break;
                }
                sleep(Duration::from_millis(10)).await;
            }
            dead = true;
        }
        if !dead {
            self.kill_anywhere(0).await;
        }
    }

    /// Launches an instance again if it was killed at this point.
    async fn bury(&mut self, instance: usize, point: Failpoint) -> bool {
        let Some(status) = self.instances[instance].ended_by_itself() else { return false };
        if was_killed(status) {
            *self.figures.kills.entry(point.as_str()).or_default() += 1;
        } else {
            let point = point.as_str();
            self.violations.push(format!("instance {instance} should die {point} and ended by {status}"));
        }
        self.instances[instance].launch().await;
        true
    }

    async fn kill_anywhere(&mut self, instance: usize) {
        self.instances[instance].kill().await;
        *self.figures.kills.entry("anywhere").or_default() += 1;
        self.instances[instance].launch().await;
    }

    async fn stop(&mut self, instance: usize) {
        self.gather(instance).await;
        self.instances[instance].ask_to_stop().await;
        self.figures.stops += 1;
        match self.instances[instance].ended(Duration::from_secs(30)).await {
            Some(status) if status.success() => {}
            Some(status) => {
                self.violations.push(format!("instance {instance} was asked to stop and ended by {status}"))
            }
            None => {
                self.violations.push(format!("instance {instance} does not stop when asked"));
                self.instances[instance].kill().await;
            }
        }
    }

    /// What its metrics know dies with a process.
    async fn gather(&mut self, instance: usize) {
        let delayed =
            self.instances[instance].metric(r#"redeemer_commands_settled_total{settlement="delayed"}"#).await;
        self.figures.delayed += delayed.unwrap_or_default() as usize;
    }

    async fn end_broker(&mut self, how: impl FnOnce(&Broker) + Send + 'static, with: Option<usize>) {
        let [one, other] = &self.instances;
        // Who is not ready yet cannot say that it is no longer.
        tokio::join!(one.wait_ready(true), other.wait_ready(true));
        self.before_broker.watch();
        let broker = self.broker.clone();
        let ending = spawn_blocking(move || how(&broker));
        let (ended, one, other) = tokio::join!(ending, one.wait_ready(false), other.wait_ready(false));
        ended.unwrap();
        match (one, other, self.before_broker.broke_at()) {
            (Some(one), Some(other), Some(broke)) => {
                self.figures.unready.push(one.max(other).saturating_duration_since(broke));
            }
            missing => self.violations.push(format!("the end of the broker was not noticed: {missing:?}")),
        }
        if let Some(instance) = with {
            self.kill_anywhere(instance).await;
        }
        let settled = [self.settled(0).await, self.settled(1).await];
        let broker = self.broker.clone();
        let starting = spawn_blocking(move || broker.restart());
        self.takes_connections().await;
        let since = Instant::now();
        let mut recovered = false;
        while !recovered && since.elapsed() < PATIENCE {
            for (instance, before) in settled.into_iter().enumerate() {
                let more = self.settled(instance).await.zip(before);
                recovered |= more.is_some_and(|(now, before)| now > before);
            }
            if recovered {
                self.figures.recoveries.push(since.elapsed());
            } else {
                sleep(Duration::from_millis(20)).await;
            }
        }
        if !recovered {
            self.violations.push(format!("nothing settled within {PATIENCE:?} of the broker's return"));
        }
        starting.await.unwrap();
    }

    /// Commands that an instance has acknowledged, if it answers.
    async fn settled(&self, instance: usize) -> Option<f64> {
        let mut sum = 0.0;
        for how in ["finished", "delayed"] {
            let name = format!(r#"redeemer_commands_settled_total{{settlement="{how}"}}"#);
            sum += self.instances[instance].metric(&name).await?;
        }
        Some(sum)
    }

    /// Waits until the broker answers the greeting.
    async fn takes_connections(&self) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let at = self.broker.uri().rsplit_once('@').unwrap().1.split('/').next().unwrap();
        loop {
            let greeting = async {
                let mut stream = tokio::net::TcpStream::connect(at).await.ok()?;
                stream.write_all(b"AMQP\0\0\x09\x01").await.ok()?;
                (stream.read_u8().await.ok()? == 1).then_some(())
            };
            if let Ok(Some(())) = timeout(Duration::from_secs(2), greeting).await {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn ctl(&self, arguments: &[&str]) -> String {
        let broker = self.broker.clone();
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        spawn_blocking(move || broker.ctl(&arguments.iter().map(String::as_str).collect::<Vec<_>>()))
            .await
            .unwrap()
    }

    async fn disturb(&mut self, act: Act, at: Place, trouble: Trouble) {
        let from = Timestamp::now();
        let before_it = match at {
            Place::Broker => Some(self.sessions().await),
            Place::Provider => None,
        };
        if !self.misbehave(at, trouble).await {
            self.violations.push(format!("{act}: met by nobody"));
        }
        match (before_it, trouble) {
            (None, _) => self.muddles.push((from, Timestamp::now() + STRAGGLING)),
            (Some(_), Trouble::Slowness) => {}
            // Each instance has two connections.
            (Some(built), Trouble::Halve | Trouble::AtAck) => {
                self.expect_new_connections(&act, built, 1).await
            }
            (Some(built), Trouble::Cut | Trouble::Silence | Trouble::Refusal) => {
                self.expect_new_connections(&act, built, INSTANCES).await;
            }
        }
    }

    /// Whether anybody met it.
    async fn misbehave(&mut self, at: Place, trouble: Trouble) -> bool {
        let proxy = match at {
            Place::Broker => &self.before_broker,
            Place::Provider => &self.before_provider,
        };
        let met = || if trouble == Trouble::Cut { proxy.cut_off() } else { proxy.ill_treated() };
        let before = met();
        let since = Instant::now();
        let mut unnoticed = Vec::new();
        match trouble {
            Trouble::Cut => {
                for _ in 0..3 {
                    proxy.cut();
                    sleep(Duration::from_millis(300)).await;
                }
            }
            Trouble::Halve => {
                proxy.halve(4);
                sleep(Duration::from_secs(2)).await;
            }
            Trouble::AtAck => {
                proxy.cut_at_acks(4);
                sleep(Duration::from_secs(2)).await;
            }
            Trouble::Silence => {
                proxy.behave(Manner::Silent);
                if at == Place::Broker {
                    let [one, other] = &self.instances;
                    let noticed = tokio::join!(is_cut_off(one), is_cut_off(other));
                    println!("torture: silence noticed after {:.1?}: {noticed:?}", since.elapsed());
                    unnoticed.extend((!noticed.0).then(|| one.name().to_owned()));
                    unnoticed.extend((!noticed.1).then(|| other.name().to_owned()));
                    // Time for who has noticed to try again, and to be met by silence again.
                    sleep(Duration::from_secs(7).saturating_sub(since.elapsed())).await;
                } else {
                    sleep(Duration::from_secs(3)).await;
                }
            }
            Trouble::Slowness => {
                proxy.behave(Manner::Slow(Duration::from_millis(150)));
                sleep(Duration::from_secs(3)).await;
            }
            Trouble::Refusal => {
                proxy.behave(Manner::Refusing);
                proxy.cut();
                sleep(Duration::from_secs(2)).await;
            }
        }
        while met() == before && since.elapsed() < OCCASION {
            if trouble == Trouble::Cut {
                proxy.cut();
            }
            sleep(Duration::from_millis(50)).await;
        }
        proxy.halve(0);
        proxy.cut_at_acks(0);
        proxy.behave(Manner::Good);
        let is_met = met() > before;
        for instance in unnoticed {
            self.violations.push(format!("{instance} did not notice that the broker was silent"));
        }
        is_met
    }

    /// No instance ends of its own accord.
    async fn look_after(&mut self) {
        for (nth, instance) in self.instances.iter_mut().enumerate() {
            if let Some(status) = instance.ended_by_itself() {
                self.violations.push(format!("instance {nth} ended by itself: {status}"));
                instance.launch().await;
            }
        }
    }

    /// With nothing in them, nothing can be lost. What was deleted must be made again, and work go on.
    async fn delete_queues(&mut self, queues: &[&str]) {
        self.wait_empty().await;
        for queue in queues {
            self.ctl(&["delete_queue", queue]).await;
            let trouble = format!("queue deleted: {queue}");
            *self.figures.troubles.entry(trouble).or_default() += 1;
        }
    }

    /// What people would do: replay what was parked for want of time, as it was parked, two of them at once.
    async fn resolve_the_unresolved(&mut self, parked: &[(Vec<u8>, String)]) {
        let settled: Vec<String> = self
            .reported
            .all()
            .into_iter()
            .filter(|event| event.outcome != "unresolved")
            .map(|event| event.command)
            .collect();
        let mut again: Vec<Command> = self
            .commands
            .iter()
            .filter(|command| command.hopeless && !settled.contains(&command.id))
            .cloned()
            .collect();
        for command in &mut again {
            command.hopeless = false;
            match parked.iter().find(|(body, reason)| *body == command.body && reason == "deadline_passed") {
                Some((body, _)) => command.body.clone_from(body),
                None => self.violations.push(format!("{} is unresolved and not parked", command.id)),
            }
        }
        again.retain(|command| parked.iter().any(|(body, _)| *body == command.body));
        self.figures.superseded = again.len();
        wires::park(self.broker.uri(), &self.config.broker.names.parked, &again).await;
        self.replay_by_two(again.len()).await;
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            let reported = self.reported.all();
            let resolved = |command: &Command| {
                reported.iter().any(|event| event.command == command.id && event.outcome != "unresolved")
            };
            if again.iter().all(resolved) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        self.violations.push(format!("not all of the unresolved were resolved within {PATIENCE:?}"));
    }

    /// Two operators replay everything that is parked, until nothing is left. Between them they do one thing about each.
    async fn replay_by_two(&mut self, parked: usize) {
        let (since, mut done) = (Instant::now(), 0);
        while done < parked && since.elapsed() < PATIENCE {
            let (one, other) = tokio::join!(self.replay("day-shift"), self.replay("night-shift"));
            self.figures.operators += 2;
            done += one + other;
        }
        if done != parked {
            self.violations.push(format!("operators did {done} things about {parked} parked commands"));
        }
    }

    /// How many commands one operator did something about.
    async fn replay(&self, operator: &str) -> usize {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_redeemer"))
            .arg("--config")
            .arg(self.dir.join("redeemer.toml"))
            .args(["parked", "replay", "--yes", "--json", "--operator", operator])
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = timeout(PATIENCE, output).await.expect("an operator's program ends in time").unwrap();
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["did"].is_string()).count()
    }

    /// Queues empty, nothing unacknowledged, nothing unrouted; nothing in flight, the ledger even, no new series.
    async fn settle(&mut self) {
        self.wait_empty().await;
        for nth in 0..INSTANCES {
            let instance = &self.instances[nth];
            for (name, wanted) in
                [("redeemer_unaccounted_deliveries", 0.0), ("redeemer_commands_in_flight", 0.0)]
            {
                let since = Instant::now();
                // The last acknowledgement leaves the queue a moment before it is counted.
                let mut value = instance.metric(name).await;
                while value != Some(wanted) && since.elapsed() < PATIENCE {
                    sleep(Duration::from_millis(50)).await;
                    value = instance.metric(name).await;
                }
                if value != Some(wanted) {
                    self.violations.push(format!("{}: {name} is {value:?}", instance.name()));
                }
            }
            let series = instance.series().await;
            if series != self.series[nth] {
                let new: Vec<_> = series.iter().filter(|name| !self.series[nth].contains(name)).collect();
                self.violations.push(format!("{}: new series {new:?}", instance.name()));
            }
            self.gather(nth).await;
        }
    }

    async fn wait_empty(&mut self) {
        let parked = &self.config.broker.names.parked;
        if let Err(left) = wires::wait_empty(&self.broker, parked, PATIENCE).await {
            self.violations.push(format!("left in queues (name, all, ready, unacknowledged): {left:#?}"));
        }
    }

    async fn stop_all(&mut self) {
        for nth in 0..INSTANCES {
            self.stop(nth).await;
            let log = std::fs::read_to_string(self.instances[nth].log()).unwrap_or_default();
            for line in log.lines().filter(|line| line.contains("defect") || line.contains("panicked")) {
                self.violations.push(format!("instance {nth} logged: {line}"));
            }
        }
        self.figures.stops -= INSTANCES;
    }
}

/// Whether an instance says in time that the broker is gone, and that it is not ready.
async fn is_cut_off(instance: &Service) -> bool {
    let since = Instant::now();
    while since.elapsed() < NOTICED_WITHIN {
        let is_gone = instance.metric(CONNECTED).await == Some(0.0);
        if is_gone && instance.get("/readyz").await.is_some_and(|(status, _)| status == 503) {
            return true;
        }
        sleep(Duration::from_millis(20)).await;
    }
    false
}

fn configure(dir: &Path, card: &Value, broker: String, provider_port: u16) -> Config {
    let ms = |ms| Span(Duration::from_millis(ms));
    let mut config = service::configure(dir, card, provider_port);
    config.broker.uri = broker;
    config.broker.connect_timeout = ms(2_000);
    config.broker.confirm_timeout = ms(10_000);
    config.broker.heartbeat = ms(2_000);
    // Each kill counts against every command that is prefetched; a rig kills more often than anything in service.
    config.broker.delivery_limit = 1_000;
    config.broker.prefetch = 60;
    config.concurrency.commands = 30;
    config.wechat.connect_timeout = ms(500);
    config.wechat.read_timeout = ms(1_000);
    config.wechat.total_timeout = ms(1_000);
    config.retry.initial = ms(50);
    config.retry.in_process_max = ms(1_200);
    config.retry.query_delay = ms(500);
    config.retry.delays = vec![ms(400), ms(1_000), ms(2_000)];
    config.log.filter = "info,lapin=off".to_owned();
    config.shutdown.deadline = ms(10_000);
    config
}

async fn version(broker: &Arc<Broker>) -> String {
    let broker = broker.clone();
    spawn_blocking(move || broker.ctl(&["-q", "version"]).trim().to_owned()).await.unwrap()
}
