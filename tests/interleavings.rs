//! The orders in which the tasks of one instance may run: lanes, permits, circuit breaker and rate limiter as they are,
//! under shuttle's schedulers, one task at a time and in virtual time.
//!
//! A schedule decides at every wait which task goes on, and whether time passes before the others have gone on: a timer
//! may be late, and a wait may be given up at any moment. What happens between two waits of a task happens at once:
//! threads that meet within a lock are not part of this.
//!
//! Properties: at a stall, when no task can go on before time passes, no command waits that may go; every command
//! ends; none begins before an earlier one of its lane has ended; no more commands work than there are permits; no more
//! calls go than the circuit breaker and the rate limiter grant.
//!
//! `SHUTTLE_RANDOM_SEED` chooses other schedules; the seed is printed.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]
#![allow(clippy::print_stdout, reason = "the seed and the number of schedules are for people")]

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use redeemer::domain::evidence::Operation;
use redeemer::policy::classify::SuspendReason;
use redeemer::runtime::circuit_gate::{
    CallPermit, CallSignal, CircuitCause, CircuitGate, FailureKind, State,
};
use redeemer::runtime::lanes::Lanes;
use redeemer::runtime::permits::{Permit, Permits};
use redeemer::runtime::rate_limiter::{Priority, RateLimiter};
use shuttle::future;
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Schedule, Scheduler, Task, TaskId};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::{Instant, advance, sleep, timeout};

/// How far time goes at once.
const STEP: Duration = Duration::from_millis(250);
/// A command that has not ended when nothing else has happened for this long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(120);
const SEED: u64 = 20_261_130;

/// A scheduler that lets time pass a few times whenever its inner one says so, and else only at a stall: a schedule
/// in which time alone goes on for ever would show nothing.
struct Timed<S> {
    inner: S,
    /// How often time may pass in one schedule although other tasks could go on.
    early_steps: usize,
    early_steps_left: usize,
    is_stall: Arc<AtomicBool>,
}

/// The task that lets time pass is the first one that a world spawns.
fn is_clock(task: TaskId) -> bool {
    task == TaskId::from(1)
}

impl<S: Scheduler> Scheduler for Timed<S> {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.early_steps_left = self.early_steps;
        self.inner.new_execution()
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yields: bool) -> Option<TaskId> {
        let others: Vec<&Task> = runnable.iter().copied().filter(|task| !is_clock(task.id())).collect();
        self.is_stall.store(others.is_empty(), Ordering::Relaxed);
        if others.is_empty() {
            return runnable.first().map(|task| task.id());
        }
        let among = if self.early_steps_left > 0 { runnable } else { &others };
        let chosen = self.inner.next_task(among, current, yields)?;
        self.early_steps_left -= usize::from(is_clock(chosen));
        Some(chosen)
    }

    fn next_u64(&mut self) -> u64 {
        self.inner.next_u64()
    }
}

/// What a call brings, and how long it takes.
#[derive(Debug, Clone, Copy)]
struct Call {
    /// The pause before it, in which the permit is given to others.
    rest: Duration,
    takes: Duration,
    /// Without one, no call is made.
    sign: Option<CallSignal>,
    /// For how long its command waits for a permission to call.
    patience: Duration,
    priority: Priority,
    /// Whether its command is past its deadline, and goes without a call if a crowd waits so already.
    is_late: bool,
}

const WELL: Call = Call {
    rest: Duration::ZERO,
    takes: Duration::from_millis(100),
    sign: Some(CallSignal::Success),
    patience: Duration::from_secs(60),
    priority: Priority::First,
    is_late: false,
};

#[derive(Debug, Clone)]
struct Command {
    number: usize,
    lane: &'static str,
    calls: Vec<Call>,
}

fn commands(all: &[(&'static str, &[Call])]) -> Vec<Command> {
    let numbered = all.iter().enumerate();
    numbered.map(|(number, (lane, calls))| Command { number, lane, calls: calls.to_vec() }).collect()
}

/// What a world has seen so far.
#[derive(Default)]
struct Seen {
    /// Commands by lane that have arrived and not begun, in order.
    waiting: BTreeMap<&'static str, Vec<usize>>,
    /// Lanes in which a command is worked on.
    busy: Vec<&'static str>,
    working: usize,
    waiting_for_pass: usize,
    passes: Vec<Granted>,
    /// How often the circuit breaker closed.
    closings: usize,
    /// Calls that went well since it closed after a failure: it starts slowly.
    recovering: Option<usize>,
    calls: usize,
    ended: usize,
}

/// A pass that is neither reported nor dropped.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Granted {
    at: Instant,
    /// Whether its call is to find out, in what the circuit breaker knows now.
    is_probe: bool,
    /// `closings` when it was granted.
    closings: usize,
    command: usize,
}

struct World {
    permits: Permits,
    permit_count: usize,
    circuit_gate: CircuitGate,
    rate_limiter: RateLimiter,
    per_second: u32,
    begun_at: Instant,
    seen: Mutex<Seen>,
}

impl World {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    fn enter_work(&self) {
        let mut seen = self.seen();
        seen.working += 1;
        assert!(seen.working <= self.permit_count, "more commands work than there are permits");
        assert!(self.permits.in_use() >= seen.working, "a command works without a permit");
    }

    /// No task can go on before time passes.
    fn check_stall(&self) {
        let seen = self.seen();
        let may_begin =
            seen.waiting.iter().any(|(lane, waiting)| !waiting.is_empty() && !seen.busy.contains(lane));
        assert!(
            !(may_begin && self.permits.in_use() < self.permit_count),
            "a command waits beside a free permit"
        );
        let has_room = match self.circuit_gate.state() {
            State::Closed => seen.recovering.is_none() || seen.passes.is_empty(),
            State::HalfOpen { probing, .. } => !probing,
            State::Open { .. } => false,
        };
        assert!(!(seen.waiting_for_pass > 0 && has_room), "a call waits though the circuit has room");
    }

    /// A pass for one call, if one is had in time.
    async fn obtain_pass(&self, command: usize, patience: Duration) -> Option<CheckedPass<'_>> {
        self.seen().waiting_for_pass += 1;
        let pass = timeout(patience, self.circuit_gate.acquire()).await;
        let (at, state) = (Instant::now(), self.circuit_gate.state());
        let mut seen = self.seen();
        seen.waiting_for_pass -= 1;
        let pass = pass.ok()?;
        let is_probe = match state {
            State::Open { .. } => panic!("a pass while the circuit is open"),
            State::HalfOpen { cause, .. } => {
                let mut probes = seen.passes.iter().filter(|pass| pass.is_probe);
                match cause {
                    // One more for each second in which none has succeeded; one that failed makes room at once.
                    CircuitCause::Starting => {
                        let seconds = (at - self.begun_at).as_secs() as usize;
                        assert!(probes.count() <= seconds, "more first calls at once than seconds passed");
                    }
                    CircuitCause::Failing(_) => {
                        assert!(probes.all(|pass| at - pass.at >= SECOND), "two calls find out at once");
                    }
                    CircuitCause::Suspended(_) => {
                        assert!(probes.next().is_none(), "two calls find out at once")
                    }
                }
                true
            }
            State::Closed => {
                let since = |pass: &&Granted| !pass.is_probe && pass.closings == seen.closings;
                let out = seen.passes.iter().filter(since).count();
                let allowed = seen.recovering.map_or(usize::MAX, |wells| 2 + wells);
                assert!(out < allowed, "{out} calls at once, and another one, where {allowed} are allowed");
                false
            }
        };
        let granted = Granted { at, is_probe, closings: seen.closings, command };
        seen.passes.push(granted);
        Some(CheckedPass { world: self, pass: Some(pass), granted })
    }

    /// What was let go before says how things were, and finds out nothing more.
    fn forget_probes(seen: &mut Seen) {
        seen.recovering = None;
        seen.passes.iter_mut().for_each(|pass| pass.is_probe = false);
    }

    fn exchange_keys(&self) {
        self.circuit_gate.force_half_open();
        Self::forget_probes(&mut self.seen());
    }

    async fn work(&self, command: &Command, permit: &mut Permit) {
        self.enter_work();
        for call in &command.calls {
            self.seen().working -= 1;
            permit.release_while(call.rest).await;
            self.enter_work();
            let Some(sign) = call.sign else { continue };
            let pass = loop {
                let Some(pass) = self.obtain_pass(command.number, call.patience).await else { break None };
                // The wait for a permission may be given up: the pass goes back unused.
                let limiter = &self.rate_limiter;
                let is_permitted = match call.is_late {
                    true => limiter.acquire_within(call.priority, call.patience).await,
                    false => timeout(call.patience, limiter.acquire(call.priority)).await.is_ok(),
                };
                match is_permitted {
                    false => break None,
                    true if pass.holds() => break Some(pass),
                    true => {}
                }
            };
            let Some(pass) = pass else { continue };
            self.begin_call();
            let sent_at = Instant::now().into_std();
            sleep(call.takes).await;
            self.rate_limiter.record(sent_at, sign == CallSignal::Neutral, call.priority == Priority::Again);
            pass.report(sign);
        }
        self.seen().working -= 1;
    }

    fn begin_call(&self) {
        assert!(!matches!(self.circuit_gate.state(), State::Open { .. }), "a call while the circuit is open");
        let mut seen = self.seen();
        seen.calls += 1;
        let seconds = self.begun_at.elapsed().as_secs_f64();
        let granted = f64::from(self.per_second) * seconds.floor();
        assert!(seen.calls as f64 <= granted, "{} calls after {seconds} s", seen.calls);
    }
}

/// A pass that is counted until it is reported or dropped.
struct CheckedPass<'a> {
    world: &'a World,
    pass: Option<CallPermit>,
    granted: Granted,
}

impl CheckedPass<'_> {
    fn holds(&self) -> bool {
        self.pass.as_ref().is_some_and(CallPermit::is_valid)
    }

    fn report(mut self, sign: CallSignal) {
        let (before, holds) = (self.world.circuit_gate.state(), self.holds());
        self.pass.take().unwrap().report(Operation::Redeem, sign, None);
        let mut seen = self.world.seen();
        match (before, self.world.circuit_gate.state()) {
            (State::HalfOpen { cause, .. }, State::Closed) => {
                seen.closings += 1;
                seen.recovering = (cause != CircuitCause::Starting).then_some(0);
            }
            (State::Closed, State::Closed) if sign == CallSignal::Success && holds => {
                seen.recovering = seen.recovering.map(|wells| wells + 1);
            }
            (State::Closed | State::HalfOpen { .. }, State::Open { .. }) => World::forget_probes(&mut seen),
            _ => {}
        }
    }
}

impl Drop for CheckedPass<'_> {
    fn drop(&mut self) {
        drop(self.pass.take());
        let mut seen = self.world.seen();
        let of_this = |pass: &Granted| pass.command == self.granted.command;
        let place = seen.passes.iter().position(of_this).unwrap();
        seen.passes.remove(place);
    }
}

/// The loop that takes deliveries, as far as it concerns the order of work: `app` has the other one.
async fn consume(world: Arc<World>, mut deliveries: mpsc::UnboundedReceiver<Command>, count: usize) {
    let mut lanes = Lanes::new(usize::MAX);
    let (done, mut finished) = mpsc::unbounded_channel();
    while world.seen().ended < count {
        while let Some(mut permit) = world.permits.acquire() {
            let Some((lane, command)) = lanes.start() else { break };
            {
                let mut seen = world.seen();
                let Command { lane, number, .. } = command;
                assert!(!seen.busy.contains(&lane), "two commands of one lane at once");
                let first = seen.waiting.get_mut(lane).unwrap().remove(0);
                assert_eq!(first, number, "a command overtakes in its lane");
                seen.busy.push(lane);
            }
            let (world, done) = (world.clone(), done.clone());
            drop(future::spawn(async move {
                world.work(&command, &mut permit).await;
                drop(permit);
                let _ = done.send((lane, command.lane));
            }));
        }
        // Not by chance, which no schedule would know of.
        tokio::select! {
            biased;
            Some((lane, name)) = finished.recv() => {
                lanes.finish(lane);
                let mut seen = world.seen();
                seen.busy.retain(|busy| *busy != name);
                seen.ended += 1;
            }
            Some(command) = deliveries.recv() => {
                world.seen().waiting.entry(command.lane).or_default().push(command.number);
                lanes.push(Some(command.lane), command);
            }
            () = world.permits.released() => {}
        }
    }
    assert_eq!(lanes.held(), 0);
}

/// A world of these commands, from its beginning to its end.
#[derive(Clone)]
struct Plan {
    permits: usize,
    per_second: u32,
    commands: Vec<Command>,
    /// When keys are exchanged.
    exchange_keys: Option<Duration>,
    /// See [`Timed`].
    early_steps: usize,
    /// Whether no task delivers the commands one by one: there are fewer orders to go through then.
    is_delivered: bool,
}

impl Plan {
    /// One schedule.
    fn play(&self, runtime: &Arc<Runtime>, is_stall: &Arc<AtomicBool>) {
        let (rate_limiter, clockwork) =
            RateLimiter::with_clockwork(NonZeroU32::new(self.per_second).unwrap());
        let world = Arc::new(World {
            permits: Permits::new(self.permits, usize::MAX),
            permit_count: self.permits,
            circuit_gate: CircuitGate::default(),
            rate_limiter,
            per_second: self.per_second,
            begun_at: Instant::now(),
            seen: Mutex::default(),
        });
        let ended = Arc::new(AtomicBool::new(false));
        let clock = {
            let (runtime, is_stall) = (runtime.clone(), is_stall.clone());
            let (world, ended) = (world.clone(), ended.clone());
            future::spawn(async move {
                while !ended.load(Ordering::Relaxed) {
                    if is_stall.load(Ordering::Relaxed) {
                        world.check_stall();
                    }
                    assert!(world.begun_at.elapsed() < STUCK_AFTER, "a command is stuck");
                    runtime.block_on(advance(STEP));
                    future::yield_now().await;
                }
            })
        };
        let makes_calls =
            self.commands.iter().flat_map(|command| &command.calls).any(|call| call.sign.is_some());
        let clockwork = makes_calls.then(|| future::spawn(clockwork));
        let (deliver, deliveries) = mpsc::unbounded_channel();
        let commands = self.commands.clone();
        let count = commands.len();
        // The channel stays open, as that of a consumer does.
        let kept_open = deliver.clone();
        if self.is_delivered {
            commands.into_iter().for_each(|command| deliver.send(command).unwrap());
        } else {
            drop(future::spawn(async move {
                for command in commands {
                    deliver.send(command).unwrap();
                    future::yield_now().await;
                }
            }));
        }
        if let Some(after) = self.exchange_keys {
            let world = world.clone();
            drop(future::spawn(async move {
                sleep(after).await;
                world.exchange_keys();
            }));
        }
        future::block_on(consume(world, deliveries, count));
        ended.store(true, Ordering::Relaxed);
        if let Some(clockwork) = clockwork {
            clockwork.abort();
        }
        future::block_on(clock).unwrap();
        drop(kept_open);
    }

    /// All schedules of a scheduler; their number.
    fn check(self, scheduler: impl Scheduler + 'static) -> usize {
        let runtime =
            Arc::new(Builder::new_current_thread().enable_time().start_paused(true).build().unwrap());
        let is_stall = Arc::new(AtomicBool::new(false));
        let scheduler = Timed {
            inner: scheduler,
            early_steps: self.early_steps,
            early_steps_left: 0,
            is_stall: is_stall.clone(),
        };
        let mut config = shuttle::Config::new();
        config.stack_size = 1 << 18;
        let _context = runtime.enter();
        let inner = runtime.clone();
        shuttle::Runner::new(scheduler, config).run(move || self.play(&inner, &is_stall))
    }

    /// By chance: which task goes on at each step, and at which few steps another one is preferred.
    fn check_by_chance(self, schedules: usize) {
        println!("seed {SEED}, unless SHUTTLE_RANDOM_SEED is set");
        self.clone().check(RandomScheduler::new_from_seed(SEED, schedules));
        self.check(PctScheduler::new_from_seed(SEED, 3, schedules));
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// More schedules than this of a small world are no small world.
const SMALL: usize = 40_000;

/// The very small worlds are gone through in every order.
fn check_every_order(plan: Plan) {
    let schedules = plan.check(DfsScheduler::new(Some(SMALL), false));
    println!("{schedules} schedules are all there are");
    assert!(schedules < SMALL, "not gone through to the end");
}

/// A pause, and no call after it.
const fn pause(rest: Duration) -> Call {
    Call { rest, sign: None, ..WELL }
}

fn resting(rest: Duration) -> Call {
    Call { rest, ..WELL }
}

fn ending(sign: CallSignal) -> Call {
    Call { sign: Some(sign), ..WELL }
}

const LOST: CallSignal = CallSignal::Failing(FailureKind::NoResponse);
const DENIED: CallSignal = CallSignal::Suspended(SuspendReason::Unauthenticated);

fn plan(permits: usize, per_second: u32, all: &[(&'static str, &[Call])]) -> Plan {
    Plan {
        permits,
        per_second,
        commands: commands(all),
        exchange_keys: None,
        early_steps: 3,
        is_delivered: false,
    }
}

#[test]
fn lanes_and_permits_hold_in_every_order() {
    let paused = &[pause(STEP)];
    let world = plan(1, 1_000, &[("a", paused), ("a", &[]), ("b", paused)]);
    check_every_order(Plan { early_steps: 1, is_delivered: true, ..world });
}

#[test]
fn a_call_that_is_given_up_leaves_its_place_in_every_order() {
    let hasty = Call { patience: STEP, ..WELL };
    let world = plan(1, 1_000, &[("a", &[hasty]), ("b", &[WELL])]);
    check_every_order(Plan { early_steps: 0, is_delivered: true, ..world });
}

/// It opens, finds out with one call at a time, and starts slowly, while keys are exchanged.
#[test]
fn an_open_circuit_lets_one_call_find_out_and_starts_slowly() {
    let hanging = Call { takes: SECOND * 3, sign: Some(LOST), ..WELL };
    let world = plan(
        6,
        1_000,
        &[
            ("a", &[WELL, ending(DENIED), WELL]),
            ("b", &[ending(DENIED), WELL]),
            ("c", &[WELL, WELL]),
            ("d", &[hanging, WELL]),
            ("e", &[Call { patience: SECOND, ..WELL }, WELL]),
            ("f", &[WELL, hanging]),
        ],
    );
    Plan { exchange_keys: Some(SECOND * 2), ..world }.check_by_chance(1_500);
}

/// More commands than permits and than calls per second, some of which rest, fail or give up.
#[test]
fn all_of_it_together_lets_every_command_end() {
    let hasty = Call { patience: Duration::from_millis(600), ..WELL };
    let world = plan(
        2,
        3,
        &[
            ("a", &[ending(LOST), resting(SECOND)]),
            ("a", &[hasty, resting(SECOND / 2)]),
            ("b", &[WELL, Call { rest: SECOND, sign: Some(DENIED), ..WELL }]),
            ("c", &[resting(SECOND * 2)]),
            ("a", &[WELL]),
            ("b", &[hasty]),
            ("d", &[ending(CallSignal::Neutral), WELL]),
        ],
    );
    Plan { exchange_keys: Some(SECOND * 3), ..world }.check_by_chance(1_500);
}

/// First attempts, other attempts and queries, on time and late, wait for few calls per second, some of which are throttled.
#[test]
fn calls_of_every_priority_go_as_granted_and_all_end() {
    let of = |priority| Call { priority, ..WELL };
    let (again, query) = (of(Priority::Again), of(Priority::Query));
    let late = Call { is_late: true, patience: SECOND * 3, ..query };
    let throttled = ending(CallSignal::Neutral);
    let world = plan(
        4,
        2,
        &[
            ("a", &[WELL, query, again]),
            ("b", &[throttled, query, again]),
            ("c", &[query, query]),
            ("d", &[late, late]),
            ("a", &[Call { patience: SECOND, ..query }, WELL]),
            ("e", &[WELL, throttled]),
        ],
    );
    world.check_by_chance(1_000);
}
