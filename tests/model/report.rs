//! What was found, for people: sequence diagrams, tables, and the pages that show them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use redeemer::domain::coupon::{Coupon, CouponState, UsageTrace};
use redeemer::domain::evidence::Operation;
use redeemer::domain::outcome::Outcome;
use redeemer::policy::classify::{CallResult, Verdict};

use crate::Found;
use crate::provider::OURS;
use crate::search::{Figures, Model as _};
use crate::state::{Cause, Exception, Message, Stage, State};
use crate::world::{Action, Change, Trouble, World};

// ---- diagrams

/// A path as a Mermaid sequence diagram.
pub(crate) fn diagram(world: &World, first: usize, actions: &[Action]) -> String {
    let mut state = world.first_states()[first].clone();
    let mut drawing = Drawing::default();
    for action in actions {
        let next = world.next(&state, *action);
        drawing.draw(world, &state, *action, &next);
        state = next;
    }
    drawing.finish()
}

#[derive(Default)]
struct Drawing {
    lines: Vec<String>,
    /// Which instance each hand belongs to.
    instances: Vec<usize>,
    waited: u32,
}

impl Drawing {
    fn say(&mut self, line: String) {
        if self.waited > 0 {
            let waited = std::mem::take(&mut self.waited);
            self.lines.push(format!("Note over B: {waited} s later"));
        }
        self.lines.push(line);
    }

    fn note(&mut self, nth: usize, text: &str) {
        self.say(format!("Note over I{}: {text}", self.instances[nth]));
    }

    fn draw(&mut self, world: &World, before: &State, action: Action, after: &State) {
        match action {
            Action::Tick => self.waited += 1,
            Action::TakeEffect(_) => self.say("Note over P: the use takes effect".to_owned()),
            Action::Vanish(_) => {}
            Action::Deliver(nth) => self.deliver(message_word(&before.queue[nth])),
            Action::DeliverDead(_) => self.deliver("dead letter"),
            Action::EndDelay(_) => {}
            Action::EndDelayTwice(_) => self.say("Note over B: the retry message comes twice".to_owned()),
            Action::PublishAgain => self.say("O->>B: the same command once more".to_owned()),
            Action::Replay | Action::ReplayUnacked => {
                self.say("Note over B: an operator replays the parked command".to_owned());
            }
            Action::Change(change) => self.say(change_word(change).to_owned()),
            _ => self.draw_hand(world, before, action, after),
        }
    }

    fn deliver(&mut self, word: &str) {
        let free = (1..).find(|number| !self.instances.contains(number)).unwrap_or(1);
        self.instances.push(free);
        self.say(format!("B->>I{free}: {word}"));
    }

    fn draw_hand(&mut self, world: &World, before: &State, action: Action, after: &State) {
        let Some(nth) = place(action) else { return };
        let (stage, me) = (&before.hands[nth].stage, self.instances[nth]);
        let operation = match stage {
            Stage::Due { operation, .. }
            | Stage::Held { operation, .. }
            | Stage::Calling { operation, .. } => *operation,
            _ => Operation::Query,
        };
        let word = operation_word(operation);
        match action {
            Action::Call(_) => self.draw_call(world, me, operation, after),
            Action::CallInTrouble(_, Trouble::NotSent) => self.say(format!("I{me}-xP: {word}, not sent")),
            Action::CallInTrouble(_, Trouble::Lost) => {
                self.say(format!("I{me}->>P: {word}"));
                self.say(format!("P--xI{me}: no response"));
            }
            Action::CallInTrouble(_, trouble) => {
                self.say(format!("I{me}->>P: {word}"));
                self.say(format!("P->>I{me}: {}", trouble_word(trouble)));
            }
            Action::Send(_) => self.say(format!("I{me}->>P: {word}, slowly")),
            Action::Work(_) if operation == Operation::Redeem && after.card.effects > before.card.effects => {
                self.say("Note over P: the use takes effect".to_owned());
            }
            Action::Work(_) => {}
            Action::Answer(_) => {
                if let Stage::Calling { answer: Some((reply, _)), .. } = stage {
                    self.say(format!("P->>I{me}: {}", reply_word(reply)));
                }
            }
            Action::TimeOut(_) => self.say(format!("P--xI{me}: no response in time")),
            Action::HoldBriefly(_) | Action::HoldLong(_) => self.note(nth, "calls are suspended"),
            Action::EndHold(_) => {
                let attempts = |state: &State| state.hands[nth].progress.attempts;
                if attempts(after) > attempts(before) {
                    self.draw_call(world, me, operation, after);
                }
            }
            Action::Reconsider(_) => self.note(nth, "too late for a use"),
            Action::KeepOut(_) => self.note(nth, "the brand was denied a moment ago"),
            Action::Postpone(_) => self.note(nth, "the retry budget is spent"),
            Action::Crowd(_) => self.note(nth, "too many commands of this coupon"),
            Action::Publish(_) => {
                self.draw_publish(me, stage);
                if after.hands.len() < before.hands.len() {
                    self.say(format!("I{me}->>B: ack"));
                    self.instances.remove(nth);
                }
            }
            Action::Acknowledge(_) => {
                self.say(format!("I{me}->>B: ack"));
                self.instances.remove(nth);
            }
            Action::RejectEvent(_) => self.say(format!("I{me}-xS: the event is rejected")),
            Action::HalfTakeEvent(_) => {
                if let Stage::Conclude(outcome) = stage {
                    self.say(format!("I{me}->>S: {}", outcome_word(outcome)));
                    self.note(nth, "another queue rejected it");
                }
            }
            Action::Crash(_) | Action::CrashToDeadLetter(_) => {
                self.note(nth, "crash");
                self.instances.remove(nth);
                if matches!(action, Action::CrashToDeadLetter(_)) {
                    self.say("Note over B: over the delivery limit".to_owned());
                }
            }
            Action::CutOff(_) => self.note(nth, "connection lost, not noticed yet"),
            Action::Notice(_) => {
                self.note(nth, "notices the lost connection");
                self.instances.remove(nth);
            }
            Action::Stop(_) => self.note(nth, "stops"),
            _ => {}
        }
    }

    fn draw_call(&mut self, world: &World, me: usize, operation: Operation, after: &State) {
        let reply = match operation {
            Operation::Redeem => after.card.answer_use(world.ways),
            Operation::Query => after.card.answer_query(world.ways),
        };
        self.say(format!("I{me}->>P: {}", operation_word(operation)));
        self.say(format!("P->>I{me}: {}", reply_word(&reply)));
    }

    fn draw_publish(&mut self, me: usize, stage: &Stage) {
        match stage {
            Stage::Delay { .. } => self.say(format!("I{me}->>B: retry message")),
            Stage::HandBack => self.say(format!("I{me}->>B: the command, handed back")),
            Stage::Park => self.say(format!("I{me}->>B: parked")),
            Stage::Conclude(outcome) => self.say(format!("I{me}->>S: {}", outcome_word(outcome))),
            _ => {}
        }
    }

    fn finish(self) -> String {
        let mut text = "sequenceDiagram\n".to_owned();
        let drawn = |who: &str| {
            let ends = [format!("{who}-"), format!("x{who}:"), format!(">{who}:"), format!("over {who}:")];
            self.lines
                .iter()
                .any(|line| line.starts_with(&ends[0]) || ends[1..].iter().any(|end| line.contains(end)))
        };
        for (who, name) in [
            ("O", "order service"),
            ("B", "RabbitMQ"),
            ("I1", "instance 1"),
            ("I2", "instance 2"),
            ("P", "WeChat Pay"),
            ("U", "user"),
            ("S", "subscribers"),
        ] {
            if drawn(who) {
                let _ = writeln!(text, "    participant {who} as {name}");
            }
        }
        for line in &self.lines {
            let _ = writeln!(text, "    {line}");
        }
        text
    }
}

/// The hand that an action is about.
fn place(action: Action) -> Option<usize> {
    match action {
        Action::Call(nth)
        | Action::CallInTrouble(nth, _)
        | Action::Send(nth)
        | Action::Work(nth)
        | Action::Answer(nth)
        | Action::TimeOut(nth)
        | Action::HoldBriefly(nth)
        | Action::HoldLong(nth)
        | Action::EndHold(nth)
        | Action::Reconsider(nth)
        | Action::KeepOut(nth)
        | Action::Postpone(nth)
        | Action::Crowd(nth)
        | Action::Publish(nth)
        | Action::Acknowledge(nth)
        | Action::RejectEvent(nth)
        | Action::HalfTakeEvent(nth)
        | Action::Crash(nth)
        | Action::CrashToDeadLetter(nth)
        | Action::CutOff(nth)
        | Action::Notice(nth)
        | Action::Stop(nth) => Some(nth),
        _ => None,
    }
}

fn message_word(message: &Message) -> &'static str {
    match (&message.headers, message.redelivered, message.handed_back.is_some()) {
        (Some(_), false, _) => "retry message",
        (Some(_), true, _) => "retry message, again",
        (None, true, _) => "command, again",
        (None, false, true) => "command, handed back before",
        (None, false, false) => "command",
    }
}

fn change_word(change: Change) -> &'static str {
    match change {
        Change::Return => "U->>P: return",
        Change::Delete => "U->>P: delete",
        Change::UseByOther => "Note over P: used for another order",
        Change::Expire => "Note over P: expires",
        Change::Activate => "Note over P: becomes valid",
    }
}

fn operation_word(operation: Operation) -> &'static str {
    match operation {
        Operation::Redeem => "use",
        Operation::Query => "query",
    }
}

fn trouble_word(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::Lost | Trouble::NotSent => "no response",
        Trouble::NotAccepted => "429, signed",
        Trouble::UnsignedRejection => "403, no signature",
        Trouble::Forged => "200, no signature",
        Trouble::Unauthenticated => "401, signed",
        Trouble::UnsignedUnauthenticated => "401, no signature",
        Trouble::AlreadyUsed => "400 PARAM_ERROR, signed",
        Trouble::Unnamed => "200, no request number",
        Trouble::BrandDenied | Trouble::BrandDeniedFirst | Trouble::AllDenied => "403 NO_AUTH, signed",
    }
}

fn reply_word(reply: &CallResult) -> String {
    match reply {
        CallResult::Response(answer) => match (&answer.coupon, &answer.code) {
            (Some(coupon), _) => coupon_word(coupon),
            (None, Some(code)) => format!("{} {code}", answer.status),
            (None, None) => answer.status.to_string(),
        },
        CallResult::NoResponse(_) | CallResult::NotSent(_) => "no response".to_owned(),
    }
}

fn coupon_word(coupon: &Coupon) -> String {
    let one = |state: &CouponState, trace: &redeemer::domain::coupon::Trace| {
        let user = match trace.use_request_no.as_deref().filter(|_| *state == CouponState::Used) {
            Some(number) if number == OURS => " by us",
            Some(_) => " by another",
            None => "",
        };
        let returned = if trace.return_request_no.is_some() && user.is_empty() { ", returned" } else { "" };
        format!("{state}{user}{returned}")
    };
    match &coupon.usage {
        UsageTrace::Single(trace) => one(&coupon.state, trace),
        UsageTrace::Rounds(rounds) => {
            rounds.iter().map(|round| one(&round.state, &round.trace)).collect::<Vec<_>>().join(" and ")
        }
    }
}

fn outcome_word(outcome: &Outcome) -> String {
    let reason = outcome.reason().map(|reason| format!(" ({})", reason.as_str())).unwrap_or_default();
    format!("{}{reason}", outcome.kind().as_str())
}

// ---- words for what was found

fn exception_word(exception: Exception) -> &'static str {
    match exception {
        Exception::TwoEffects => "Two effects under one number",
        Exception::RedeemedThenRefused => "`redeemed`, then `refused`",
        Exception::RedeemedThenUnresolved => "`redeemed`, then `unresolved`",
        Exception::RefusedThenRedeemed => "`refused`, then `redeemed`",
        Exception::RefusedThenUnresolved => "`refused`, then `unresolved`",
        Exception::EffectAfterRefused => "`refused`, then an effect",
        Exception::RefusedWhileUsed => "`refused`, though the coupon is used by us",
        Exception::RefusedInTheEnd => "`refused` as the last event, though the coupon is used by us",
    }
}

fn cause_word(cause: Cause) -> &'static str {
    match cause {
        Cause::EventUnacked => {
            "a crash or a lost connection between the confirmation of the event and the ack"
        }
        Cause::RetryUnacked => {
            "a crash or a lost connection between the confirmation of a retry message and the ack"
        }
        Cause::RetryTwice => "a delay queue that delivers a retry message twice",
        Cause::CutOff => "a call that an instance begins before it notices that its connection is lost",
        Cause::EventHalfTaken => "an event that one queue accepts and another rejects",
        Cause::PublishedTwice => "the same command published twice",
        Cause::Replayed => "a replay by an operator",
    }
}

// ---- tables and pages

pub(crate) fn in_words(figures: &Figures) -> String {
    let Figures { states, transitions, depth, took, .. } = figures;
    format!(
        "{states:>9} states, {transitions:>9} transitions, {depth:>3} deep, {:>6.1} s",
        took.as_secs_f64()
    )
}

/// The shortest path to each exception by each cause alone.
fn by_cause(found: &[Found]) -> BTreeMap<(Exception, Cause), &crate::Path> {
    let mut shortest: BTreeMap<_, &crate::Path> = BTreeMap::new();
    for ((exception, causes), path) in found.iter().flat_map(|found| &found.exceptions) {
        if let [cause] = causes[..] {
            let known = shortest.entry((*exception, cause)).or_insert(path);
            if path.actions < known.actions {
                *known = path;
            }
        }
    }
    shortest
}

/// Exceptions that took several causes at once, none of which makes them alone.
pub(crate) fn joint(found: &[Found]) -> Vec<(Exception, Vec<Cause>)> {
    let alone = by_cause(found);
    let mut joint: Vec<_> = found
        .iter()
        .flat_map(|found| found.exceptions.keys())
        .filter(|(exception, causes)| !causes.iter().any(|cause| alone.contains_key(&(*exception, *cause))))
        .cloned()
        .collect();
    joint.sort();
    joint.dedup();
    joint
}

/// Exceptions, each with one cause, that were found here and not there.
pub(crate) fn beyond(found: &[Found], known: &[Found]) -> Vec<(Exception, Cause)> {
    let known = by_cause(known);
    by_cause(found).into_keys().filter(|key| !known.contains_key(key)).collect()
}

fn exceptions(found: &[Found]) -> String {
    let shortest = by_cause(found);
    let mut text = "| exception | takes | shortest path |\n|---|---|---|\n".to_owned();
    for ((exception, cause), path) in &shortest {
        let (exception, cause) = (exception_word(*exception), cause_word(*cause));
        let _ = writeln!(text, "| {exception} | {cause} | {} steps |", path.actions);
    }
    let mut best: BTreeMap<Exception, ((bool, usize), &crate::Path)> = BTreeMap::new();
    for ((exception, cause), path) in &shortest {
        // Who publishes twice asks for it: shown where nothing else leads there.
        let rank = (*cause == Cause::PublishedTwice, path.actions);
        let known = best.entry(*exception).or_insert((rank, path));
        if rank < known.0 {
            *known = (rank, path);
        }
    }
    for (exception, (_, path)) in best {
        let _ = write!(text, "\n{}:\n\n```mermaid\n{}```\n", exception_word(exception), path.diagram);
    }
    text
}

fn figures(found: &[Found]) -> String {
    let mut text = "| world | states | transitions | longest path |\n|---|---|---|---|\n".to_owned();
    for Found { name, figures, .. } in found {
        let Figures { states, transitions, depth, .. } = figures;
        let _ = writeln!(text, "| {name} | {states} | {transitions} | {depth} |");
    }
    let sum = |count: fn(&Figures) -> usize| found.iter().map(|found| count(&found.figures)).sum::<usize>();
    let (states, transitions) = (sum(|figures| figures.states), sum(|figures| figures.transitions));
    let longest = found.iter().map(|found| found.figures.depth).max().unwrap_or_default();
    let _ = writeln!(text, "| all | {states} | {transitions} | {longest} |");
    text
}

/// What a run with wider bounds came to, for the table of long runs.
pub(crate) fn row(found: &[Found], more: u8) -> String {
    let sum = |count: fn(&Figures) -> usize| found.iter().map(|found| count(&found.figures)).sum::<usize>();
    let (states, transitions) = (sum(|figures| figures.states), sum(|figures| figures.transitions));
    let longest = found.iter().map(|found| found.figures.depth).max().unwrap_or_default();
    let took = found.iter().map(|found| found.figures.took.as_secs()).sum::<u64>();
    let exceptions = by_cause(found).len();
    format!(
        "{} worlds, {more} more of the main trouble in each than in `make test`: {states} states, {transitions} transitions, \
         the longest path {longest} steps, {took} s in all; every promise held but for {exceptions} listed \
         exceptions",
        found.len()
    )
}

/// Writes what stands between the marks of a page.
type Writer = fn(&[Found]) -> String;

/// The pages, and what stands between the marks of each.
const PAGES: [(&str, Writer); 3] = [
    ("docs/guarantees.md", exceptions),
    ("docs/reliability.md", figures),
    ("tests/torture/reliability.md", figures),
];
const BEGIN: &str = "<!-- begin of what tests/model writes -->\n";
const END: &str = "<!-- end of what tests/model writes -->\n";

/// Holds the pages against what was found. With `UPDATE` set it writes them.
pub(crate) fn check_pages(found: &[Found]) {
    for (page, write) in PAGES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{page}: {error}"));
        let (before, rest) = text.split_once(BEGIN).unwrap_or_else(|| panic!("{page} has no {BEGIN}"));
        let (_, after) = rest.split_once(END).unwrap_or_else(|| panic!("{page} has no {END}"));
        let expected = format!("{before}{BEGIN}\n{}\n{END}{after}", write(found));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, expected).unwrap_or_else(|error| panic!("{page}: {error}"));
        } else {
            assert!(text == expected, "{page} is not current: run UPDATE=1 cargo test --test model");
        }
    }
}

/// What the attempt machine is never seen to do, and why: operation, effect, verdict.
const UNREACHED: [([&str; 3], &str); 3] = [
    (["redeem", "no_effect", "refused"], "`judge` refuses no use but by a rejection"),
    (["redeem", "no_effect", "not_executed"], "`judge` says so of queries alone"),
    (
        ["query", "used", "rejected"],
        "a provider of these worlds rejects a coupon always or never, and shows no use of one",
    ),
];

/// Holds what the attempt machine was seen to do against every verdict that it can be given.
pub(crate) fn check_coverage(found: &[Found]) {
    let mut reached: BTreeMap<[&str; 3], Vec<&str>> = BTreeMap::new();
    for [operation, effect, verdict, step] in found.iter().flat_map(|found| &found.covered) {
        let steps = reached.entry([operation, effect, verdict]).or_default();
        if !steps.contains(step) {
            steps.push(step);
        }
    }
    for (key, steps) in &reached {
        println!("{}: {}", key.join(", "), steps.join(" | "));
    }
    let effects = ["no_effect", "unknown", "used", "rejected", "rejected_unverified"];
    let queries = effects.map(|effect| (Operation::Query, effect));
    let reported = [(Operation::Redeem, "no_effect")].into_iter().chain(queries);
    let missed: Vec<_> = reported
        .flat_map(|(operation, effect)| Verdict::WORDS.map(|verdict| [operation.as_str(), effect, verdict]))
        .filter(|key| !reached.contains_key(key))
        .collect();
    let listed: Vec<_> = UNREACHED.iter().map(|(key, _)| *key).collect();
    assert_eq!(missed, listed, "what is not reached is listed, with a reason, in this order");
}
