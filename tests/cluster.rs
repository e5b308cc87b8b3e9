//! Several instances on a cluster of three nodes, of which one after the other is lost while commands are in flight:
//! the node that leads the command queue, with an instance at the same time, and then the node that took over.
//!
//! The same oracle as the fault rig's judges the end. `make test-cluster` runs it; with `REDEEMER_TEST_BROKER_TREE` on
//! RabbitMQ 4. Anyone who wants other commands sets `CLUSTER_SEED`.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a rig that cannot be set up fails, and it reports as it goes
#![allow(dead_code)] // the fault rig's parts, of which this is a smaller user

#[path = "support/broker.rs"]
mod broker;
#[path = "torture/commands.rs"]
mod commands;
#[path = "torture/dice.rs"]
mod dice;
#[path = "torture/oracle.rs"]
mod oracle;
#[path = "support/record.rs"]
mod record;
#[path = "torture/service.rs"]
mod service;
#[path = "torture/wires.rs"]
mod wires;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use commands::Command;
use redeemer::config::{Config, Span};
use serde_json::{Value, json};
use service::{Sandbox, Service};
use tokio::sync::watch;
use tokio::time::timeout;
use wires::ReceivedEvent;

const NODES: usize = 3;
const INSTANCES: usize = 4;
const COMMANDS: usize = 1_200;
/// How far publishing may run ahead of the results: this many are in flight when a node dies.
const AHEAD: usize = 150;
/// What is set beside `rabbitmq.conf` on a cluster.
const ADVANCED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/rabbitmq/cluster/advanced.config");
/// Where the command queue was without a leader when a copy's wait was over, the broker sends that copy on again after the
/// time that is set there, or up to twice as long.
const PATIENCE: Duration = Duration::from_secs(150);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_nodes_and_instances_are() {
    let seed = std::env::var("CLUSTER_SEED").map_or(20_261_123, |text| text.parse().unwrap());
    let cluster = tokio::task::spawn_blocking(Cluster::start).await.unwrap();
    let version = cluster.ctl(1, &["version"]);
    println!("cluster: {NODES} nodes of RabbitMQ {}, {INSTANCES} instances, seed {seed}", version.trim());

    let mut dice = dice::Dice::new(seed);
    let (mut commands, coupons) = commands::make(COMMANDS, 0, &mut dice);
    // What stays unresolved on purpose is the fault rig's matter.
    commands.retain(|command| !command.hopeless);
    let dir = cluster.dir.join("run");
    let sandbox = Sandbox::start(&dir.join("sandbox"), seed).await;
    for some in coupons.chunks(1_000) {
        sandbox.tell(reqwest::Method::POST, "coupons", &json!(some)).await;
    }
    sandbox.tell(reqwest::Method::PUT, "faults", &commands::faults(0.05, COMMANDS)).await;

    let config = configure(&dir.join("sandbox"), &sandbox, &cluster.uris);
    std::fs::write(dir.join("redeemer.toml"), toml::to_string(&config).unwrap()).unwrap();
    wires::establish(&cluster.uris, &config).await;
    let reported = wires::read(cluster.uris.clone());
    let mut instances: Vec<Service> =
        (0..INSTANCES).map(|nth| Service::new(&format!("instance-{nth}"), &dir)).collect();
    for instance in &mut instances {
        instance.launch().await;
    }
    // Commands wait for their turn here, however long a node takes to come back: some must be in flight when one dies.
    let (turn, turns) = watch::channel(0);
    let (allowance, allowed) = watch::channel(0);
    let allowed_by_now = allowed.clone();
    let exchange = config.broker.names.commands.clone();
    let publishing = tokio::spawn(wires::publish(cluster.uris.clone(), exchange, commands.clone(), allowed));
    let keep_ahead = tokio::spawn(keep_ahead(reported.clone(), turns, allowance));
    let share = |parts: usize| commands.len() * parts / 5;

    turn.send_replace(share(1));
    reach(&reported, share(1), &cluster, &instances).await;
    let leader = cluster.leader(&config.broker.names.commands);
    turn.send_replace(share(2));
    reach(&reported, share(1) + 1, &cluster, &instances).await;
    instances[0].kill().await;
    let flow = Flow { commands: &commands, allowed: allowed_by_now, turn: &turn, reported: &reported };
    let first = lose(&cluster, leader, &flow, share(3)).await;
    println!(
        "cluster: node {leader}, which led the command queue, and an instance killed; first result of what came then after {first:.2?}"
    );

    reach(&reported, share(3), &cluster, &instances).await;
    tokio::task::block_in_place(|| cluster.script("start", leader, &[]));
    instances[0].launch().await;
    cluster.await_members(&config.broker.names.commands).await;
    let second = cluster.leader(&config.broker.names.commands);
    turn.send_replace(share(4));
    reach(&reported, share(3) + 1, &cluster, &instances).await;
    let after = lose(&cluster, second, &flow, commands.len()).await;
    // Anyone who looks at what may be published keeps its channel open.
    drop(flow);
    println!(
        "cluster: node {leader} is back, node {second}, which had taken over, killed; first result of what came then after {after:.2?}"
    );

    tokio::task::block_in_place(|| cluster.script("start", second, &[]));
    reach(&reported, commands.len(), &cluster, &instances).await;
    let twice = publishing.await.unwrap().twice;
    keep_ahead.await.unwrap();
    for instance in &instances {
        settle(instance).await;
    }
    let parked = wires::empty(&cluster.uris, &config.broker.names.parked, "x-redemption-parked-reason").await;
    for instance in &mut instances {
        instance.ask_to_stop().await;
        assert!(instance.ended(PATIENCE).await.is_some_and(|status| status.success()), "{}", instance.name());
    }
    let findings =
        oracle::judge(&commands, &reported.all(), &sandbox.ask("ledger").await, &parked, &twice, &[]);
    println!(
        "cluster: {} commands, {} effects, {} lost, {} doubled, {} wrong, {} events repeated",
        commands.len(),
        findings.effects,
        findings.lost,
        findings.doubled,
        findings.wrong,
        findings.repeats,
    );
    assert!(findings.effects > 0 && findings.distinct >= commands.len(), "{findings:?}");
    assert!(findings.violations.is_empty(), "seed {seed}: {:#?}", findings.violations);
    let figures = format!(
        "{NODES} nodes, {INSTANCES} instances, {} commands; the leader of the command queue and an instance killed, \
         first result of a command published after that {:.2} s later; the node that took over killed, first such result \
         {:.2} s later; {} lost, {} doubled, {} wrong",
        commands.len(),
        first.as_secs_f64(),
        after.as_secs_f64(),
        findings.lost,
        findings.doubled,
        findings.wrong,
    );
    let name = format!("cluster, RabbitMQ {}", version.trim());
    println!("| {name} | {figures} |");
    record::row(&name, &figures);
}

/// Commands on their way.
struct Flow<'a> {
    /// All, in the order in which they are published.
    commands: &'a [Command],
    /// How many may have been published so far.
    allowed: watch::Receiver<usize>,
    /// How many may be published, whatever is reported of them.
    turn: &'a watch::Sender<usize>,
    reported: &'a ReceivedEvent,
}

/// Kills a node while commands are in flight, lets more of them come, up to `turn_after`, and gives the time from the
/// node's end to the first result of a command that was published after it: no other proves that work goes on.
async fn lose(cluster: &Cluster, node: usize, flow: &Flow<'_>, turn_after: usize) -> Duration {
    tokio::task::block_in_place(|| cluster.script("kill", node, &[]));
    let since = Instant::now();
    let later = &flow.commands[*flow.allowed.borrow()..];
    let later: BTreeSet<&str> = later.iter().map(|command| command.id.as_str()).collect();
    flow.turn.send_replace(turn_after);
    let mut progress = flow.reported.progress();
    loop {
        progress.borrow_and_update();
        if flow.reported.all().iter().any(|event| later.contains(event.command.as_str())) {
            return since.elapsed();
        }
        let left = PATIENCE.saturating_sub(since.elapsed());
        timeout(left, progress.changed()).await.expect("results go on").unwrap();
    }
}

/// Lets the publisher run so far ahead of the results, and never beyond its turn.
async fn keep_ahead(
    reported: ReceivedEvent,
    mut turns: watch::Receiver<usize>,
    allowance: watch::Sender<usize>,
) {
    let mut progress = reported.progress();
    // Ends with the publisher, who holds the other end.
    while allowance.send((*progress.borrow_and_update() + AHEAD).min(*turns.borrow_and_update())).is_ok() {
        tokio::select! {
            changed = progress.changed() => changed.unwrap(),
            Ok(()) = turns.changed() => {}
            () = allowance.closed() => {}
        }
    }
}

/// Waits for this many commands with results. If they do not come, says where the rest is.
async fn reach(reported: &ReceivedEvent, commands: usize, cluster: &Cluster, instances: &[Service]) {
    let mut progress = reported.progress();
    if timeout(PATIENCE, progress.wait_for(|reported| *reported >= commands)).await.is_ok() {
        return;
    }
    let reported = *progress.borrow();
    for queue in cluster.queues() {
        println!("cluster: {queue}");
    }
    for instance in instances {
        let held = instance.metric("redeemer_commands_in_flight").await;
        println!("cluster: {} holds {held:?}; its log: {}", instance.name(), instance.log().display());
    }
    panic!("{reported} of {commands} commands reported after {PATIENCE:?}");
}

/// Waits until an instance has nothing in hand.
async fn settle(instance: &Service) {
    let since = Instant::now();
    while instance.metric("redeemer_commands_in_flight").await != Some(0.0) {
        assert!(since.elapsed() < PATIENCE, "{} still holds commands", instance.name());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn configure(keys: &Path, sandbox: &Sandbox, uris: &str) -> Config {
    let ms = |ms| Span(Duration::from_millis(ms));
    let mut config = service::configure(keys, &sandbox.card, sandbox.port());
    config.broker.uri = uris.to_owned();
    config.broker.connect_timeout = ms(2_000);
    config.broker.heartbeat = ms(2_000);
    config.broker.prefetch = 50;
    config.concurrency.commands = 25;
    config.wechat.read_timeout = ms(1_000);
    config.wechat.total_timeout = ms(1_000);
    config.retry.initial = ms(50);
    config.retry.in_process_max = ms(1_200);
    config.retry.query_delay = ms(500);
    config.retry.delays = vec![ms(400), ms(1_000), ms(2_000)];
    config.log.filter = "info,lapin=off".to_owned();
    config
}

/// Three nodes of `deploy/local/rabbitmq cluster`, counted from 1.
struct Cluster {
    dir: PathBuf,
    /// One URI for each node.
    uris: String,
}

impl Cluster {
    fn start() -> Self {
        let dir = broker::unused_dir();
        let (nodes, parent) = (NODES.to_string(), std::process::id().to_string());
        let tree = std::env::var("REDEEMER_TEST_BROKER_TREE").ok();
        let mut options = vec![nodes.as_str(), "--parent", &parent, "--advanced", ADVANCED];
        options.extend(tree.iter().flat_map(|tree| ["--root", tree]));
        let mut cluster = Self { dir, uris: String::new() };
        let uris = broker::run("cluster", &cluster.dir, &options).unwrap();
        cluster.uris = uris.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(cluster.uris.split(' ').count(), NODES, "{uris}");
        std::fs::create_dir_all(cluster.dir.join("run")).unwrap();
        cluster
    }

    fn script(&self, command: &str, node: usize, arguments: &[&str]) -> String {
        broker::run(command, &self.dir.join(node.to_string()), arguments).unwrap()
    }

    fn ctl(&self, node: usize, arguments: &[&str]) -> String {
        self.script("ctl", node, arguments)
    }

    /// What the first node that answers says of each queue: what is in it, who leads it, which members are online.
    fn queues(&self) -> Vec<Value> {
        let columns = [
            "list_queues",
            "--quiet",
            "--formatter",
            "json",
            "name",
            "messages_ready",
            "messages_unacknowledged",
            "consumers",
            "leader",
            "members",
            "online",
        ];
        let listed = (1..=NODES)
            .find_map(|node| broker::run("ctl", &self.dir.join(node.to_string()), &columns).ok())
            .expect("a node answers");
        let queues: Value = serde_json::from_str(&listed).unwrap_or_else(|_| panic!("{listed}"));
        queues.as_array().unwrap().clone()
    }

    /// The same of one queue.
    fn queue(&self, name: &str) -> Value {
        let queues = self.queues();
        let found = queues.iter().find(|queue| queue["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {queues:?}")).clone()
    }

    /// The node that leads a queue.
    fn leader(&self, queue: &str) -> usize {
        let queue = tokio::task::block_in_place(|| self.queue(queue));
        let leader = queue["leader"].as_str().unwrap();
        leader
            .trim_start_matches('n')
            .split('@')
            .next()
            .unwrap()
            .parse()
            .unwrap_or_else(|_| panic!("{queue}"))
    }

    /// Waits until every node holds the queue again: only then may the next one be lost.
    async fn await_members(&self, queue: &str) {
        let since = Instant::now();
        loop {
            let standing = tokio::task::block_in_place(|| self.queue(queue));
            if standing["online"].as_array().is_some_and(|online| online.len() == NODES) {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "{standing}");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let removed = broker::run("remove", &self.dir, &[]);
        let _ = std::fs::remove_dir_all(&self.dir);
        if let (Err(complaint), false) = (removed, std::thread::panicking()) {
            panic!("{complaint}");
        }
    }
}
