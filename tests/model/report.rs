//! What was found, for people: sequence diagrams, tables, and the pages that show them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use redeemer::domain::evidence::Operation;

use crate::Found;
use crate::search::{Figures, Model as _};
use crate::state::{Cause, Exception, Stage, State};
use crate::words::{
    Language, Words, cause_word, change_word, exception_word, message_word, operation_word, outcome_word,
    reply_word, trouble_word,
};
use crate::world::{Action, EFFECTS, Trouble, VERDICTS, World};

// ---- diagrams

const TAKES_EFFECT: Words = ("the use takes effect", "核销生效");
const NOT_SENT: Words = (", not sent", "，未能发出");
const SLOWLY: Words = (", slowly", "，迟迟未到达");
const ACK: Words = ("ack", "ack");

/// A path as a Mermaid sequence diagram.
pub(crate) fn diagram(world: &World, first: usize, actions: &[Action], language: Language) -> String {
    let mut state = world.first_states()[first].clone();
    let mut drawing = Drawing { language, lines: Vec::new(), instances: Vec::new(), waited: 0 };
    for action in actions {
        let next = world.next(&state, *action);
        drawing.draw(world, &state, *action, &next);
        state = next;
    }
    drawing.finish()
}

struct Drawing {
    language: Language,
    lines: Vec<String>,
    /// Which instance each hand belongs to.
    instances: Vec<usize>,
    waited: u32,
}

impl Drawing {
    /// One line: who does it, or over whom it is noted, and what.
    fn say_text(&mut self, who: &str, text: &str) {
        if self.waited > 0 {
            let waited = std::mem::take(&mut self.waited);
            let later = self.language.pick((" s later", " 秒后"));
            self.lines.push(format!("Note over B: {waited}{later}"));
        }
        self.lines.push(format!("{who}: {text}"));
    }

    fn say(&mut self, who: &str, words: Words) {
        self.say_text(who, self.language.pick(words));
    }

    fn note(&mut self, nth: usize, words: Words) {
        self.say(&format!("Note over I{}", self.instances[nth]), words);
    }

    fn draw(&mut self, world: &World, before: &State, action: Action, after: &State) {
        match action {
            Action::Tick => self.waited += 1,
            Action::TakeEffect(_) => self.say("Note over P", TAKES_EFFECT),
            Action::Vanish(_) => {}
            Action::Deliver(nth) => self.deliver(message_word(&before.queue[nth])),
            Action::DeliverDead(_) => self.deliver(("dead letter", "死信")),
            Action::EndDelay(_) => {}
            Action::EndDelayTwice(_) => {
                self.say("Note over B", ("the retry message comes twice", "重试消息投递了两次"));
            }
            Action::PublishAgain => self.say("O->>B", ("the same command once more", "再次发布同一条指令")),
            Action::Replay(_) | Action::ReplayUnacked(_) | Action::LookAgain | Action::LookAgainUnacked => {
                let words = match after.look {
                    Some(_) => ("an operator queries the parked command", "操作人查询被搁置的指令"),
                    None => ("an operator replays the parked command", "操作人重放被搁置的指令"),
                };
                self.say("Note over B", words);
                if after.events.len() > before.events.len()
                    && let Some(kind) = after.events.last()
                {
                    self.say_text("Note over B", kind.as_str());
                }
            }
            Action::Change(change) => {
                let (who, words) = change_word(change);
                self.say(who, words);
            }
            _ => self.draw_hand(world, before, action, after),
        }
    }

    fn deliver(&mut self, words: Words) {
        let free = (1..).find(|number| !self.instances.contains(number)).unwrap_or(1);
        self.instances.push(free);
        self.say(&format!("B->>I{free}"), words);
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
        let word = self.language.pick(operation_word(operation));
        match action {
            Action::Call(_) | Action::CallUnclear(_) | Action::CallCommon(_) => {
                self.draw_call(world, me, operation, after);
            }
            Action::CallInTrouble(_, Trouble::NotSent) => {
                self.say_text(&format!("I{me}-xP"), &format!("{word}{}", self.language.pick(NOT_SENT)));
            }
            Action::CallInTrouble(_, Trouble::Lost) => {
                self.say_text(&format!("I{me}->>P"), word);
                self.say(&format!("P--xI{me}"), trouble_word(Trouble::Lost));
            }
            Action::CallInTrouble(_, trouble) => {
                self.say_text(&format!("I{me}->>P"), word);
                self.say(&format!("P->>I{me}"), trouble_word(trouble));
            }
            Action::Send(_) => {
                self.say_text(&format!("I{me}->>P"), &format!("{word}{}", self.language.pick(SLOWLY)));
            }
            Action::Work(_) if operation == Operation::Redeem && after.card.effects > before.card.effects => {
                self.say("Note over P", TAKES_EFFECT);
            }
            Action::Work(_) => {}
            Action::Answer(_) => {
                if let Stage::Calling { answer: Some((reply, _)), .. } = stage {
                    self.say_text(&format!("P->>I{me}"), &reply_word(reply, self.language));
                }
            }
            Action::TimeOut(_) => {
                self.say(&format!("P--xI{me}"), ("no response in time", "超时，未收到应答"))
            }
            Action::HoldBriefly(_) | Action::HoldLong(_) => {
                self.note(nth, ("calls are suspended", "调用已暂停"))
            }
            Action::EndHold(_) => {
                let attempts = |state: &State| state.hands[nth].progress.attempts;
                if attempts(after) > attempts(before) {
                    self.draw_call(world, me, operation, after);
                }
            }
            Action::Reconsider(_) => self.note(nth, ("too late for a use", "已来不及核销")),
            Action::KeepOut(_) => self.note(nth, ("the brand was denied a moment ago", "该品牌刚被拒绝授权")),
            Action::StepAside(_) => self.note(nth, ("another command finds out", "由另一条指令探测")),
            Action::GiveUp(_) => self.note(nth, ("no query can be made in time", "已来不及查询")),
            Action::Postpone(_) => self.note(nth, ("the retry budget is spent", "重试预算已用完")),
            Action::Crowd(_) => self.note(nth, ("too many commands of this coupon", "这张券的指令过多")),
            Action::Publish(_) => {
                self.draw_publish(me, stage);
                if after.hands.len() < before.hands.len() {
                    self.say(&format!("I{me}->>B"), ACK);
                    self.instances.remove(nth);
                }
            }
            Action::PublishUnconfirmed(_) => {
                self.draw_publish(me, stage);
                self.note(nth, ("no confirmation in time", "未及时收到发布确认"));
            }
            Action::PublishUnacked(_) | Action::PublishUnackedToDeadLetter(_) => {
                self.draw_publish(me, stage);
                self.draw_crash(nth, matches!(action, Action::PublishUnackedToDeadLetter(_)));
            }
            Action::RejectEvent(_) => self.say(&format!("I{me}-xS"), ("the event is rejected", "事件被拒收")),
            Action::HalfTakeEvent(_) => {
                if let Stage::Conclude(outcome) = stage {
                    self.say_text(&format!("I{me}->>S"), &outcome_word(outcome, self.language));
                    self.note(nth, ("another queue rejected it", "另一个队列拒收"));
                }
            }
            Action::Crash(_) | Action::CrashToDeadLetter(_) => {
                self.draw_crash(nth, matches!(action, Action::CrashToDeadLetter(_)));
            }
            Action::CutOff(_) => self.note(nth, ("connection lost, not noticed yet", "连接已断开，尚未察觉")),
            Action::Notice(_) => {
                self.note(nth, ("notices the lost connection", "察觉连接已断开"));
                self.instances.remove(nth);
            }
            Action::Stop(_) => self.note(nth, ("stops", "停止")),
            _ => {}
        }
    }

    fn draw_crash(&mut self, nth: usize, to_dead_letter: bool) {
        self.note(nth, ("crash", "崩溃"));
        self.instances.remove(nth);
        if to_dead_letter {
            self.say("Note over B", ("over the delivery limit", "超过投递次数上限"));
        }
    }

    fn draw_call(&mut self, world: &World, me: usize, operation: Operation, after: &State) {
        let reply = match operation {
            Operation::Redeem => after.card.answer_use(world.ways),
            Operation::Query => after.card.answer_query(world.ways),
        };
        self.say(&format!("I{me}->>P"), operation_word(operation));
        self.say_text(&format!("P->>I{me}"), &reply_word(&reply, self.language));
    }

    fn draw_publish(&mut self, me: usize, stage: &Stage) {
        match stage {
            Stage::Delay { .. } => self.say(&format!("I{me}->>B"), ("retry message", "重试消息")),
            Stage::HandBack => self.say(&format!("I{me}->>B"), ("the command, handed back", "交还指令")),
            Stage::Park => self.say(&format!("I{me}->>B"), ("parked", "搁置")),
            Stage::Conclude(outcome) => {
                self.say_text(&format!("I{me}->>S"), &outcome_word(outcome, self.language));
            }
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
            ("O", ("order service", "订单系统")),
            ("B", ("RabbitMQ", "RabbitMQ")),
            ("I1", ("instance 1", "实例 1")),
            ("I2", ("instance 2", "实例 2")),
            ("P", ("WeChat Pay", "微信支付")),
            ("U", ("user", "用户")),
            ("S", ("subscribers", "订阅方")),
        ] {
            if drawn(who) {
                let _ = writeln!(text, "    participant {who} as {}", self.language.pick(name));
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
        | Action::CallUnclear(nth)
        | Action::CallCommon(nth)
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
        | Action::StepAside(nth)
        | Action::GiveUp(nth)
        | Action::Publish(nth)
        | Action::PublishUnconfirmed(nth)
        | Action::PublishUnacked(nth)
        | Action::PublishUnackedToDeadLetter(nth)
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

// ---- tables and pages

pub(crate) fn in_words(figures: &Figures) -> String {
    let Figures { states, transitions, depth, took, .. } = figures;
    format!(
        "{states:>9} states, {transitions:>9} transitions, {depth:>3} deep, {:>6.1} s",
        took.as_secs_f64()
    )
}

/// The shortest path to each exception by each cause alone.
fn by_cause(found: &[Found]) -> BTreeMap<(Exception, Cause), &crate::Shortest> {
    let mut shortest: BTreeMap<_, &crate::Shortest> = BTreeMap::new();
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

fn exceptions(found: &[Found], language: Language) -> String {
    let shortest = by_cause(found);
    let head = ("exception | takes | shortest path", "例外 | 起因 | 最短路径");
    let mut text = format!("| {} |\n|---|---|---|\n", language.pick(head));
    for ((exception, cause), path) in &shortest {
        let exception = language.pick(exception_word(*exception));
        let (cause, steps) = (language.pick(cause_word(*cause)), language.pick(("steps", "步")));
        let _ = writeln!(text, "| {exception} | {cause} | {} {steps} |", path.actions);
    }
    let mut best: BTreeMap<Exception, ((bool, usize), &crate::Shortest)> = BTreeMap::new();
    for ((exception, cause), path) in &shortest {
        // Who publishes twice asks for it: shown where nothing else leads there.
        let rank = (*cause == Cause::PublishedTwice, path.actions);
        let known = best.entry(*exception).or_insert((rank, path));
        if rank < known.0 {
            *known = (rank, path);
        }
    }
    for (exception, (_, path)) in best {
        let (title, colon) = (language.pick(exception_word(exception)), language.pick((":", "：")));
        let diagram = language.pick((&path.diagrams.0, &path.diagrams.1));
        let _ = write!(text, "\n{title}{colon}\n\n```mermaid\n{diagram}```\n");
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
const PAGES: [(&str, &str, Writer); 6] = [
    ("docs/guarantees.md", "causes", |found| causes(found, Language::English)),
    ("docs/zh-CN/guarantees.md", "causes", |found| causes(found, Language::Chinese)),
    ("docs/guarantees.md", "exceptions", |found| exceptions(found, Language::English)),
    ("docs/zh-CN/guarantees.md", "exceptions", |found| exceptions(found, Language::Chinese)),
    ("docs/reliability.md", "figures", figures),
    ("tests/torture/reliability.md", "figures", figures),
];

/// Holds the pages against what was found. With `UPDATE` set it writes them.
pub(crate) fn check_pages(found: &[Found]) {
    for (page, what, write) in PAGES {
        let begin = format!("<!-- begin of the {what} that tests/model writes -->\n");
        let end = format!("<!-- end of the {what} that tests/model writes -->\n");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{page}: {error}"));
        let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{page} has no {begin}"));
        let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{page} has no {end}"));
        let expected = format!("{before}{begin}\n{}\n{end}{after}", write(found));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, expected).unwrap_or_else(|error| panic!("{page}: {error}"));
        } else if text != expected {
            if what == "exceptions" {
                print_unlisted(found, &text);
            }
            panic!("the {what} of {page} are not current: run UPDATE=1 cargo test --test model");
        }
    }
}

/// Names each exception that was found and has no row in a page.
fn print_unlisted(found: &[Found], page: &str) {
    for (exception, cause) in by_cause(found).keys() {
        let row = |language: Language| {
            let words = (exception_word(*exception), cause_word(*cause));
            format!("| {} | {} |", language.pick(words.0), language.pick(words.1))
        };
        if ![Language::English, Language::Chinese].into_iter().any(|language| page.contains(&row(language))) {
            println!("not listed for {cause:?}: {exception:?}");
        }
    }
}

/// What may put two deliveries of one command to work.
fn causes(found: &[Found], language: Language) -> String {
    let causes: BTreeSet<Cause> = by_cause(found).into_keys().map(|(_, cause)| cause).collect();
    let (between, end) = language.pick(((";", "."), ("；", "。")));
    let last = causes.last().copied();
    let line = |cause: Cause| {
        let mark = if Some(cause) == last { end } else { between };
        format!("- {}{mark}\n", language.pick(cause_word(cause)))
    };
    causes.into_iter().map(line).collect()
}

/// What the attempt machine is never seen to do, and why: operation, effects, verdict.
const UNREACHED: [(Operation, &[&str], &str, &str); 9] = [
    (Operation::Redeem, &EFFECTS, "used by another or returned", "a use is refused by a rejection alone"),
    (Operation::Redeem, &EFFECTS, "no such coupon", "a use is refused by a rejection alone"),
    (Operation::Redeem, &EFFECTS, "not usable", "a use is refused by a rejection alone"),
    (Operation::Redeem, &EFFECTS, "not executed", "`classify` says so of queries alone"),
    (Operation::Redeem, &EFFECTS, "used under no number", "as the response to a use it is a success"),
    (
        Operation::Query,
        &EFFECTS,
        "not authorized so far",
        "a query denied to one brand decides nothing for others",
    ),
    (
        Operation::Query,
        &["no_effect", "unknown", "used"],
        "may be common",
        "a query is rejected alike if a rejection of the use stands",
    ),
    (
        Operation::Query,
        &["rejected"],
        "may be common",
        "a rejection that may be common may report a use of ours, and is unverified",
    ),
    (Operation::Query, &["used"], "no such coupon", "a provider of these worlds does not forget a coupon"),
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
    // Nothing but a command without an effect is sent.
    let operations = [(Operation::Redeem, "no_effect")].into_iter();
    let operations = operations.chain(EFFECTS.map(|effect| (Operation::Query, effect)));
    for (operation, effect) in operations {
        for verdict in VERDICTS {
            let is_listed = UNREACHED
                .iter()
                .any(|(of, effects, it, _)| *of == operation && *it == verdict && effects.contains(&effect));
            let is_reached = reached.contains_key(&[operation.as_str(), effect, verdict]);
            let key = format!("{}, {effect}, {verdict}", operation.as_str());
            assert!(
                is_reached != is_listed,
                "{key}: reached: {is_reached}, listed as unreached: {is_listed}"
            );
        }
    }
    for (operation, effects, verdict, why) in UNREACHED {
        println!("not reached: {}, {}, {verdict}: {why}", operation.as_str(), effects.join(" | "));
    }
}
