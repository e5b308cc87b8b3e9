//! Judges a run by what everybody else wrote down: the sandbox its ledger, the broker its queues, the rig its commands.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;

use crate::commands::{Command, Right};
use crate::wires::Seen;

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Commands without any event.
    pub lost: usize,
    /// Request numbers with more than one effect.
    pub doubled: usize,
    /// Commands whose outcome is wrong, or is not one.
    pub wrong: usize,
    /// Events, without what the broker handed to the rig twice.
    pub events: usize,
    /// Pairs of a command and an event's id.
    pub distinct: usize,
    /// Events that said what an earlier one had said.
    pub repeats: usize,
    /// Calls to the payment API.
    pub calls: usize,
    /// Calls that a fault hit, by the fault.
    pub faults: BTreeMap<String, usize>,
    /// Uses that were sent again without having asked what the last one did.
    pub unasked: usize,
    /// Redemptions in the ledger.
    pub effects: usize,
    /// Everything that is wrong, each with what is needed to look into it.
    pub violations: Vec<String>,
}

/// Compares commands, events, the ledger and the parked messages. Of the numbers in `twice` the broker may have held two
/// commands. In the `muddles` calls may have arrived in another order than they were sent.
pub fn judge(
    commands: &[Command],
    seen: &[Seen],
    ledger: &Value,
    parked: &[(Vec<u8>, String)],
    twice: &BTreeSet<String>,
    muddles: &[(Timestamp, Timestamp)],
) -> Findings {
    let mut findings = Findings::default();
    let ledger = Ledger::read(ledger);
    let mut events: BTreeMap<&str, Vec<&Seen>> = BTreeMap::new();
    for event in seen {
        events.entry(&event.command).or_default().push(event);
    }
    let known: BTreeSet<&str> = commands.iter().map(|command| command.id.as_str()).collect();
    for (stranger, told) in events.iter().filter(|(id, _)| !known.contains(*id)) {
        findings.violations.push(format!("events of no command, correlation {stranger:?}: {told:#?}"));
    }
    count(seen, &ledger, &mut findings);

    for command in commands {
        let told = events.get(command.id.as_str()).map_or(&[][..], Vec::as_slice);
        if told.is_empty() {
            findings.lost += 1;
        }
        if let Err(why) = outcome(command, told, &ledger) {
            findings.wrong += usize::from(!told.is_empty());
            findings.violations.push(with_history(&why, command, told, &ledger));
        }
    }
    effects(commands, seen, &ledger, &mut findings);
    inquiries(commands, &ledger, twice, muddles, &mut findings);
    rivals(commands, &events, &mut findings);
    twins(commands, &events, &mut findings);
    aside(commands, &events, parked, &mut findings);
    findings
}

struct Ledger<'a> {
    /// The uses by request number.
    uses: BTreeMap<&'a str, Vec<&'a Value>>,
    attempts: &'a [Value],
    effects: &'a [Value],
}

impl<'a> Ledger<'a> {
    fn read(page: &'a Value) -> Self {
        let list = |name: &str| page[name].as_array().map_or(&[][..], Vec::as_slice);
        let (attempts, effects) = (list("attempts"), list("effects"));
        let mut uses: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for effect in effects.iter().filter(|effect| effect["kind"] == "used") {
            uses.entry(effect["out_request_no"].as_str().unwrap_or_default()).or_default().push(effect);
        }
        Self { uses, attempts, effects }
    }

    fn used(&self, number: &str) -> usize {
        self.uses.get(number).map_or(0, Vec::len)
    }
}

fn count(seen: &[Seen], ledger: &Ledger<'_>, findings: &mut Findings) {
    let mut ids = BTreeSet::new();
    for event in seen {
        // One that the broker marks as delivered again need not have come here before.
        let new = ids.insert((&event.id, &event.command));
        findings.events += usize::from(new || !event.again);
        findings.repeats += usize::from(!new && !event.again);
    }
    findings.distinct = ids.len();
    findings.calls = ledger.attempts.len();
    for fault in ledger.attempts.iter().filter_map(|attempt| attempt["fault"].as_str()) {
        *findings.faults.entry(fault.to_owned()).or_default() += 1;
    }
    findings.effects = ledger.uses.values().map(Vec::len).sum();
}

/// One command has one outcome, and the right one.
fn outcome(command: &Command, told: &[&Seen], ledger: &Ledger<'_>) -> Result<(), String> {
    // A better outcome supersedes unresolved, and only that.
    let settled: Vec<_> = told.iter().filter(|event| event.outcome != "unresolved").collect();
    let first = settled.first().ok_or(if told.is_empty() { "no event" } else { "never resolved" })?;
    let ids: BTreeSet<_> = settled.iter().map(|event| &event.id).collect();
    if ids.len() != 1 {
        return Err(format!("{} outcomes", ids.len()));
    }
    if settled.len() < told.len() && !command.hopeless {
        return Err("unresolved, although there was time".to_owned());
    }
    let unresolved: BTreeSet<_> =
        told.iter().filter(|event| event.outcome == "unresolved").map(|event| &event.id).collect();
    if unresolved.len() > 1 {
        return Err("unresolved under several ids".to_owned());
    }
    let names_it = settled.iter().all(|event| event.code == command.code && event.number == command.number);
    let gist = (first.outcome.as_str(), first.reason.as_str());
    let right = match command.right {
        Right::Redeemed => gist == ("redeemed", ""),
        Right::Rival => gist == ("redeemed", "") || gist == ("refused", "used_by_another"),
        Right::Refused(reason) => gist == ("refused", reason),
        Right::Invalid => gist == ("invalid", "invalid_command"),
    };
    if !right || !names_it && command.right != Right::Invalid {
        return Err(format!("told as {gist:?} of {}/{}", first.code, first.number));
    }
    let states: BTreeSet<_> = settled.iter().map(|event| event.state.as_str()).collect();
    if states != BTreeSet::from([command.right.state()]) {
        return Err(format!("told with the states {states:?}"));
    }
    let effect = ledger.used(&command.number) > 0;
    if effect != (first.outcome == "redeemed") {
        return Err(format!(
            "told as {} while the ledger {} an effect",
            first.outcome,
            if effect { "has" } else { "lacks" }
        ));
    }
    Ok(())
}

/// A number has one effect at most, of our command, and always the same body.
fn effects(commands: &[Command], seen: &[Seen], ledger: &Ledger<'_>, findings: &mut Findings) {
    let ours: BTreeMap<&str, &str> =
        commands.iter().map(|command| (command.number.as_str(), command.code.as_str())).collect();
    for (number, uses) in &ledger.uses {
        if uses.len() > 1 {
            findings.doubled += 1;
            findings.violations.push(format!("{} effects of {number}: {uses:#?}", uses.len()));
        }
        let code = uses[0]["coupon_code"].as_str().unwrap_or_default();
        if ours.get(number) != Some(&code) {
            findings.violations.push(format!("an effect that nobody asked for: {uses:#?}"));
        }
        if !seen
            .iter()
            .any(|event| event.outcome == "redeemed" && event.number == *number && event.code == code)
        {
            findings.violations.push(format!("an effect that nobody was told of: {uses:#?}"));
        }
    }
    let mut bodies: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for attempt in ledger.attempts.iter().filter(|attempt| attempt["question"] == "use") {
        let number = attempt["out_request_no"].as_str().unwrap_or_default();
        bodies.entry(number).or_default().insert(attempt["body_sha256"].as_str().unwrap_or_default());
    }
    for (number, bodies) in bodies.iter().filter(|(_, bodies)| bodies.len() > 1) {
        findings.violations.push(format!("{number} was sent with {} different bodies", bodies.len()));
    }
    let strangers = ledger.attempts.iter().filter(|attempt| attempt["authenticated"] == false).count();
    if strangers > 0 {
        findings.violations.push(format!("{strangers} calls with a wrong signature"));
    }
    if ledger.effects.iter().any(|effect| effect["kind"] != "used" && effect["kind"] != "expired") {
        findings.violations.push("the ledger has effects other than uses".to_owned());
    }
}

/// Between two uses of one number somebody asked what the first one did, but where that was told not to have been
/// accepted: then a copy may say so, too. And where the second came while the first was under way: the broker gives a
/// command to another instance before the first one learns that its connection is gone, and for a moment both have it in
/// hand. Numbers that were published more than once are left out.
fn inquiries(
    commands: &[Command],
    ledger: &Ledger<'_>,
    twice: &BTreeSet<String>,
    muddles: &[(Timestamp, Timestamp)],
    findings: &mut Findings,
) {
    let mut published: BTreeMap<&str, usize> = BTreeMap::new();
    for command in commands {
        // The unresolved are published anew.
        *published.entry(&command.number).or_default() +=
            1 + usize::from(command.hopeless || twice.contains(&command.number));
    }
    let mut by_coupon: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for attempt in ledger.attempts {
        by_coupon.entry(attempt["coupon_code"].as_str().unwrap_or_default()).or_default().push(attempt);
    }
    let muddled = |attempt: &Value| {
        let at = attempt["at"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
        at.is_none_or(|at| muddles.iter().any(|(from, to)| (*from..=*to).contains(&at)))
    };
    for attempts in by_coupon.values() {
        // The numbers of uses that nobody has asked about since, and of those that were not accepted.
        let (mut open, mut declined) = (BTreeMap::new(), BTreeSet::new());
        for attempt in attempts {
            if attempt["question"] != "use" {
                open.clear();
                continue;
            }
            let number = attempt["out_request_no"].as_str().unwrap_or_default();
            let before = open.insert(number, *attempt);
            let once = published.get(number) == Some(&1) && !declined.contains(number);
            if is_declined(attempt) {
                declined.insert(number);
            }
            let unasked = |before: &&Value| once && !muddled(before) && !is_under_way(before, attempt);
            if let Some(before) = before.filter(unasked) {
                findings.unasked += 1;
                findings.violations.push(format!("used again without an inquiry: {before:#} {attempt:#}"));
            }
        }
    }
}

/// Whether the first had not been answered when the second came.
fn is_under_way(first: &Value, second: &Value) -> bool {
    let us = |attempt: &Value, name: &str| attempt[name].as_u64();
    let answered_at = us(first, "at_us").zip(us(first, "took_us")).map(|(at, took)| at + took);
    answered_at.zip(us(second, "at_us")).is_some_and(|(answered, came)| came < answered)
}

/// Whether a use was answered by "not now".
fn is_declined(attempt: &Value) -> bool {
    let locked = attempt["sub_code"] == 272_756_746;
    locked || [202, 401, 429].iter().any(|status| attempt["answered"] == *status)
}

/// The same command, published twice, is told under one id.
fn twins(commands: &[Command], events: &BTreeMap<&str, Vec<&Seen>>, findings: &mut Findings) {
    let mut ids: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for command in commands.iter().filter(|command| command.right != Right::Invalid) {
        let told = events.get(command.id.as_str()).map_or(&[][..], Vec::as_slice);
        let settled =
            told.iter().filter(|event| event.outcome != "unresolved").map(|event| event.id.as_str());
        ids.entry((&command.code, &command.number)).or_default().extend(settled);
    }
    for ((code, number), ids) in ids.iter().filter(|(_, ids)| ids.len() > 1) {
        findings.wrong += 1;
        findings.violations.push(format!("{code}/{number} is told under several ids: {ids:?}"));
    }
}

/// Of two commands about one coupon one wins.
fn rivals(commands: &[Command], events: &BTreeMap<&str, Vec<&Seen>>, findings: &mut Findings) {
    let mut winners: BTreeMap<&str, usize> = BTreeMap::new();
    for command in commands.iter().filter(|command| command.right == Right::Rival) {
        let told = events.get(command.id.as_str()).map_or(&[][..], Vec::as_slice);
        let won = told.iter().any(|event| event.outcome == "redeemed");
        *winners.entry(&command.code).or_default() += usize::from(won);
    }
    for (code, winners) in winners.iter().filter(|(_, winners)| **winners != 1) {
        findings.wrong += 1;
        findings.violations.push(format!("{winners} winners among the rivals for {code}"));
    }
}

/// Parked is what is invalid or was unresolved, byte for byte, and nothing else.
fn aside(
    commands: &[Command],
    events: &BTreeMap<&str, Vec<&Seen>>,
    parked: &[(Vec<u8>, String)],
    findings: &mut Findings,
) {
    let mut wanted: BTreeMap<&[u8], (&Command, bool)> = BTreeMap::new();
    for command in commands {
        if command.right == Right::Invalid || command.hopeless {
            wanted.insert(&command.body, (command, false));
        }
    }
    for (body, reason) in parked {
        match wanted.get_mut(body.as_slice()) {
            Some((command, found)) => {
                *found = true;
                let right = if command.hopeless { "deadline_passed" } else { "invalid_command" };
                if reason != right {
                    findings.violations.push(format!("{} is parked as {reason:?}", command.id));
                }
            }
            None => {
                let text = String::from_utf8_lossy(body);
                findings.violations.push(format!("parked as {reason:?}, and should not be: {text}"));
            }
        }
    }
    let unresolved = |command: &Command| {
        let told = events.get(command.id.as_str()).map_or(&[][..], Vec::as_slice);
        told.iter().any(|event| event.outcome == "unresolved")
    };
    for (command, _) in wanted.values().filter(|(_, found)| !found) {
        if command.right == Right::Invalid || unresolved(command) {
            findings.violations.push(format!("{} is invalid or unresolved, and not parked", command.id));
        }
    }
}

fn with_history(why: &str, command: &Command, told: &[&Seen], ledger: &Ledger<'_>) -> String {
    let of_it = |entry: &&Value| entry["coupon_code"] == command.code.as_str();
    let line = |entry: &Value| {
        format!(
            "    {} {} {} {} fault {} answered {} sub_code {}",
            entry["at"],
            entry["question"],
            entry["kind"],
            entry["out_request_no"],
            entry["fault"],
            entry["answered"],
            entry["sub_code"]
        )
    };
    let mut entries: Vec<_> = ledger.attempts.iter().chain(ledger.effects).filter(of_it).collect();
    entries.sort_by_key(|entry| entry["sequence"].as_u64());
    let events: Vec<_> = told.iter().map(|event| format!("    {event:?}")).collect();
    let entries: Vec<_> = entries.into_iter().map(line).collect();
    format!(
        "{}: {why} (right: {:?})\n  command {}\n  events\n{}\n  ledger\n{}",
        command.id,
        command.right,
        String::from_utf8_lossy(&command.body),
        events.join("\n"),
        entries.join("\n")
    )
}
