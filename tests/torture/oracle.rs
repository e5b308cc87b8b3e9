//! Judges a run by what everybody else wrote down: the sandbox its ledger, the broker its queues, the rig its commands.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::commands::{Command, RETURNED, Right, UNSIGNED_429, is_singled_out};
use crate::wires::Seen;

/// How long the service waits for an answer, as every rig configures it (`wechat.total_timeout`), in microseconds.
const WAITED_FOR_US: u64 = 1_000_000;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Commands without any event.
    pub lost: usize,
    /// Request numbers with more than one effect.
    pub doubled: usize,
    /// Commands whose outcome is wrong, or is not one.
    pub wrong: usize,
    /// Commands with two outcomes, of which neither is `unresolved`.
    pub contradictory: usize,
    /// Commands that had no event within a minute of their deadline.
    pub late: usize,
    /// Events, without what the broker handed to the rig twice.
    pub events: usize,
    /// Pairs of a command and an event's id.
    pub distinct: usize,
    /// Events that said what an earlier one had said.
    pub repeats: usize,
    /// Calls to the payment API.
    pub calls: usize,
    /// Calls that a fault hit.
    pub faulty: usize,
    /// Of the coupons that no fault is made for: calls that a fault hit, and all.
    pub at_random: (usize, usize),
    /// Uses that were sent again without having asked what the last one did.
    pub unasked: usize,
    /// Commands that were reported as unresolved, and then as something else.
    pub superseded: usize,
    /// Redemptions in the ledger.
    pub effects: usize,
    /// Everything that is wrong, each with what is needed to look into it.
    pub violations: Vec<String>,
}

/// Compares commands, events, the ledger and the parked messages. Of the numbers in `twice` the broker may have held two
/// commands. In the `muddles` calls may have arrived in another order than they were sent.
pub(crate) fn judge(
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
    for (stranger, reported) in events.iter().filter(|(id, _)| !known.contains(*id)) {
        findings.violations.push(format!("events of no command, correlation {stranger:?}: {reported:#?}"));
    }
    count(seen, &ledger, &mut findings);

    for command in commands {
        let reported = events.get(command.id.as_str()).map_or(&[][..], Vec::as_slice);
        if reported.is_empty() {
            findings.lost += 1;
        }
        findings.superseded += usize::from(is_superseded(reported));
        let outcomes = reported.iter().filter(|event| event.outcome != "unresolved");
        let outcomes: BTreeSet<_> = outcomes.map(|event| (&event.outcome, &event.reason)).collect();
        findings.contradictory += usize::from(outcomes.len() > 1);
        if let Err(why) = outcome(command, reported, &ledger) {
            findings.wrong += usize::from(!reported.is_empty());
            findings.violations.push(with_history(&why, command, reported, &ledger));
        }
    }
    effects(commands, seen, &ledger, twice, &mut findings);
    queries(commands, &ledger, twice, muddles, &mut findings);
    rivals(commands, &events, &mut findings);
    twins(commands, &events, &mut findings);
    aside(commands, &events, parked, &mut findings);
    findings
}

/// How long after its deadline a command has its event at the latest.
const REPORTED_WITHIN: SignedDuration = SignedDuration::from_secs(60);

/// Each command with a deadline has an event within a minute of it, by the time in the event.
#[allow(dead_code)] // for the torture alone
pub(crate) fn judge_deadlines(
    seen: &[Seen],
    deadlines: &BTreeMap<String, Timestamp>,
    findings: &mut Findings,
) {
    for (command, deadline) in deadlines {
        let first =
            seen.iter().filter(|event| event.command == *command).filter_map(|event| event.time).min();
        let late = first.map(|at| at.duration_since(*deadline));
        if late.is_none_or(|late| late > REPORTED_WITHIN) {
            findings.late += 1;
            let (at, deadline) = (first.map(|at| at.to_string()), deadline.to_string());
            findings
                .violations
                .push(format!("{command} has its first event at {at:?}, its deadline was {deadline}"));
        }
    }
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
    for attempt in ledger.attempts {
        let is_faulty = usize::from(attempt["fault"].is_string());
        findings.faulty += is_faulty;
        if !is_singled_out(attempt["coupon_code"].as_str().unwrap_or_default()) {
            findings.at_random.0 += is_faulty;
            findings.at_random.1 += 1;
        }
    }
    findings.effects = ledger.uses.values().map(Vec::len).sum();
}

/// One command has one outcome, and the right one.
fn outcome(command: &Command, reported: &[&Seen], ledger: &Ledger<'_>) -> Result<(), String> {
    // A better outcome supersedes unresolved, and only that.
    let settled: Vec<_> = reported.iter().filter(|event| event.outcome != "unresolved").collect();
    let first = settled.first().ok_or(if reported.is_empty() { "no event" } else { "never resolved" })?;
    let ids: BTreeSet<_> = settled.iter().map(|event| &event.id).collect();
    if ids.len() != 1 {
        return Err(format!("{} outcomes", ids.len()));
    }
    if settled.len() < reported.len() && !command.hopeless {
        return Err("unresolved, although there was time".to_owned());
    }
    if is_taken_back(reported) {
        return Err("unresolved after an outcome".to_owned());
    }
    let unresolved: BTreeSet<_> =
        reported.iter().filter(|event| event.outcome == "unresolved").map(|event| &event.id).collect();
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
        Right::Returned => {
            gist == ("redeemed", "")
                || gist == ("refused", "returned_since")
                || gist == ("refused", "used_by_another")
        }
    };
    if !right || !names_it && command.right != Right::Invalid {
        return Err(format!("reported as {gist:?} of {}/{}", first.code, first.number));
    }
    let states: BTreeSet<_> = settled.iter().map(|event| event.state.as_str()).collect();
    let state = match (command.right, gist.1) {
        (Right::Returned, "returned_since") => "EFFECTIVE",
        (Right::Returned, _) => "USED",
        (right, _) => right.state(),
    };
    if states != BTreeSet::from([state]) {
        return Err(format!("reported with the states {states:?}"));
    }
    let effect = ledger.used(&command.number) > 0;
    // What was returned was used.
    let expected = first.outcome == "redeemed" || command.right == Right::Returned;
    if effect != expected {
        return Err(format!(
            "reported as {} while the ledger {} an effect",
            first.outcome,
            if effect { "has" } else { "lacks" }
        ));
    }
    Ok(())
}

/// Whether a command was reported as unresolved for the first time after it had been reported as something else. What the broker
/// hands over again may come late.
fn is_taken_back(reported: &[&Seen]) -> bool {
    let is_settled = |event: &&&Seen| event.outcome != "unresolved";
    let unresolved_before = reported.iter().take_while(|event| !is_settled(event)).count() > 0;
    let mut after = reported.iter().skip_while(|event| !is_settled(event));
    !unresolved_before && after.any(|event| event.outcome == "unresolved" && !event.again)
}

/// Whether a command was reported as unresolved first, and then as something else.
fn is_superseded(reported: &[&Seen]) -> bool {
    let mut later = reported.iter().skip_while(|event| event.outcome != "unresolved");
    later.any(|event| event.outcome != "unresolved")
}

/// A number has one effect at most, of our command, and always the same body.
fn effects(
    commands: &[Command],
    seen: &[Seen],
    ledger: &Ledger<'_>,
    twice: &BTreeSet<String>,
    findings: &mut Findings,
) {
    let ours: BTreeMap<&str, &str> =
        commands.iter().map(|command| (command.number.as_str(), command.code.as_str())).collect();
    for (number, uses) in &ledger.uses {
        let code = uses[0]["coupon_code"].as_str().unwrap_or_default();
        let is_returned = code.starts_with(RETURNED);
        // Of a returned coupon the simulator makes as many uses as are sent: of two commands with one number, too.
        if uses.len() > 1 && !(is_returned && twice.contains(*number)) {
            findings.doubled += 1;
            let attempts = ledger.attempts.iter().filter(|attempt| attempt["coupon_code"] == code);
            let way: Vec<_> = attempts.map(reported_of).collect();
            let effects = uses.len();
            findings
                .violations
                .push(format!("{effects} effects of {number}: {uses:#?}; all calls:\n{}", way.join("\n")));
        }
        if is_returned {
            continue;
        }
        if ours.get(number) != Some(&code) {
            findings.violations.push(format!("an effect that nobody asked for: {uses:#?}"));
        }
        if !seen
            .iter()
            .any(|event| event.outcome == "redeemed" && event.number == *number && event.code == code)
        {
            findings.violations.push(format!("an effect without an event: {uses:#?}"));
        }
    }
    let mut bodies: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for attempt in ledger.attempts.iter().filter(|attempt| attempt["operation"] == "use") {
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
    let is_returned = |effect: &&Value| {
        effect["kind"] == "returned"
            && effect["coupon_code"].as_str().is_some_and(|code| code.starts_with(RETURNED))
    };
    let others = ledger.effects.iter().filter(|effect| !is_returned(effect));
    if others.into_iter().any(|effect| effect["kind"] != "used" && effect["kind"] != "expired") {
        findings.violations.push("the ledger has effects other than uses".to_owned());
    }
}

/// Between two uses of one number somebody asked what the first one did and got an answer, but if that one was answered by
/// "not now": then a copy may say so, too. And where the second came while the first was under way: the broker gives a
/// command to another instance before the first one learns that its connection is gone, and for a moment both have it in
/// hand. Numbers that were published more than once are left out.
fn queries(
    commands: &[Command],
    ledger: &Ledger<'_>,
    twice: &BTreeSet<String>,
    muddles: &[(Timestamp, Timestamp)],
    findings: &mut Findings,
) {
    let mut published: BTreeMap<&str, usize> = BTreeMap::new();
    for command in commands {
        // The unresolved are published again.
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
        // The last use of each number whose effect nobody has learned since.
        let mut open: BTreeMap<&str, &Value> = BTreeMap::new();
        for attempt in attempts {
            if attempt["operation"] != "use" {
                if is_reported(attempt) {
                    open.clear();
                }
                continue;
            }
            let number = attempt["out_request_no"].as_str().unwrap_or_default();
            let before = open.insert(number, *attempt);
            let once = published.get(number) == Some(&1);
            let unasked = |before: &&Value| {
                once && !is_declined(before) && !muddled(before) && !is_under_way(before, attempt)
            };
            if let Some(before) = before.filter(unasked) {
                findings.unasked += 1;
                let way: Vec<_> = attempts.iter().map(|attempt| reported_of(attempt)).collect();
                let places = [before, attempt].map(|attempt| attempt["sequence"].to_string()).join(" and ");
                let why = format!("{number} was used again without an query, {places}");
                findings.violations.push(format!("{why}; all calls:\n{}", way.join("\n")));
            }
        }
    }
}

/// Whether a query was answered by the coupon, in time, whole, and under a good signature. Of the faults only these
/// leave it so: a short delay, signatures missing from refusals alone, and depth that nobody has to look into.
fn is_reported(query: &Value) -> bool {
    let harmless = matches!(query["fault"].as_str(), None | Some("slow" | "unsigned" | "deep_json"));
    let in_time = query["took_us"].as_u64().is_some_and(|took| took < WAITED_FOR_US);
    query["operation"] == "query" && query["answered"] == 200 && harmless && in_time
}

/// Whether the first had not been answered when the second came.
fn is_under_way(first: &Value, second: &Value) -> bool {
    let us = |attempt: &Value, name: &str| attempt[name].as_u64();
    let answered_at = us(first, "at_us").zip(us(first, "took_us")).map(|(at, took)| at + took);
    answered_at.zip(us(second, "at_us")).is_some_and(|(answered, came)| came < answered)
}

/// Whether a use was answered by "not now". A 202 promises nothing, and neither does a 401, which is not signed.
fn is_declined(attempt: &Value) -> bool {
    attempt["sub_code"] == 272_756_746 || attempt["answered"] == 429 && attempt["sub_code"] != UNSIGNED_429
}

/// The same command, published twice, is reported under one id.
fn twins(commands: &[Command], events: &BTreeMap<&str, Vec<&Seen>>, findings: &mut Findings) {
    let mut ids: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for command in commands.iter().filter(|command| command.right != Right::Invalid) {
        let reported = events.get(command.id.as_str()).map_or(&[][..], Vec::as_slice);
        let settled =
            reported.iter().filter(|event| event.outcome != "unresolved").map(|event| event.id.as_str());
        ids.entry((&command.code, &command.number)).or_default().extend(settled);
    }
    for ((code, number), ids) in ids.iter().filter(|(_, ids)| ids.len() > 1) {
        findings.wrong += 1;
        findings.violations.push(format!("{code}/{number} is reported under several ids: {ids:?}"));
    }
}

/// Of two commands about one coupon one wins.
fn rivals(commands: &[Command], events: &BTreeMap<&str, Vec<&Seen>>, findings: &mut Findings) {
    let mut winners: BTreeMap<&str, usize> = BTreeMap::new();
    for command in commands.iter().filter(|command| command.right == Right::Rival) {
        let reported = events.get(command.id.as_str()).map_or(&[][..], Vec::as_slice);
        let won = reported.iter().any(|event| event.outcome == "redeemed");
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
        let reported = events.get(command.id.as_str()).map_or(&[][..], Vec::as_slice);
        reported.iter().any(|event| event.outcome == "unresolved")
    };
    for (command, _) in wanted.values().filter(|(_, found)| !found) {
        if command.right == Right::Invalid || unresolved(command) {
            findings.violations.push(format!("{} is invalid or unresolved, and not parked", command.id));
        }
    }
}

/// A call or an effect in a line.
fn reported_of(entry: &Value) -> String {
    format!(
        "    {} {} {} {} {} fault {} answered {} after {} us sub_code {}",
        entry["sequence"],
        entry["at"],
        entry["operation"],
        entry["kind"],
        entry["out_request_no"],
        entry["fault"],
        entry["answered"],
        entry["took_us"],
        entry["sub_code"]
    )
}

fn with_history(why: &str, command: &Command, reported: &[&Seen], ledger: &Ledger<'_>) -> String {
    let of_it = |entry: &&Value| entry["coupon_code"] == command.code.as_str();
    let mut entries: Vec<_> = ledger.attempts.iter().chain(ledger.effects).filter(of_it).collect();
    entries.sort_by_key(|entry| entry["sequence"].as_u64());
    let events: Vec<_> = reported.iter().map(|event| format!("    {event:?}")).collect();
    let entries: Vec<_> = entries.into_iter().map(reported_of).collect();
    format!(
        "{}: {why} (right: {:?})\n  command {}\n  events\n{}\n  ledger\n{}",
        command.id,
        command.right,
        String::from_utf8_lossy(&command.body),
        events.join("\n"),
        entries.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const USE: &str = "use";
    const QUERY: &str = "query";

    fn command() -> Command {
        let (id, code, number) = ("m-1".to_owned(), "C1".to_owned(), "USE_1".to_owned());
        Command { id, code, number, body: Vec::new(), right: Right::Redeemed, hopeless: false, raw: None }
    }

    /// How many uses were sent again unasked, of these calls: operation, fault, what was answered. They come two seconds
    /// after one another.
    fn unasked(calls: &[(&str, Option<&str>, Value)]) -> usize {
        let attempts: Vec<Value> = (0_u64..)
            .zip(calls)
            .map(|(nth, (operation, fault, answered))| {
                json!({
                    "sequence": nth + 1, "at": "2026-01-01T00:00:00Z", "at_us": nth * 2_000_000, "took_us": 5_000,
                    "operation": operation, "fault": fault, "answered": answered, "coupon_code": "C1",
                    "out_request_no": (*operation == USE).then_some("USE_1"),
                })
            })
            .collect();
        judged(&attempts)
    }

    fn judged(attempts: &[Value]) -> usize {
        let (page, mut findings) = (json!({"attempts": attempts, "effects": []}), Findings::default());
        queries(&[command()], &Ledger::read(&page), &BTreeSet::new(), &[], &mut findings);
        assert_eq!(findings.unasked, findings.violations.len());
        findings.unasked
    }

    #[test]
    fn only_an_query_that_was_answered_well_allows_another_use() {
        let cut = || (USE, Some("cut_after_effect"), json!("cut"));
        let check = |query: Option<&str>, answered: Value, wanted| {
            let calls = [cut(), (QUERY, query, answered), cut()];
            assert_eq!(unasked(&calls), wanted, "{calls:?}");
        };
        assert_eq!(unasked(&[cut()]), 0);
        assert_eq!(unasked(&[cut(), cut()]), 1);
        check(None, json!(200), 0);
        check(Some("slow"), json!(200), 0);
        check(Some("unsigned"), json!(200), 0);
        check(Some("deep_json"), json!(200), 0);
        check(None, json!(404), 1);
        check(None, json!(429), 1);
        check(None, Value::Null, 1);
        check(Some("cut_before_effect"), json!("cut"), 1);
        check(Some("cut_after_effect"), json!("cut"), 1);
        check(Some("html_502"), json!(502), 1);
        for status in [202, 401, 429, 500, 503] {
            check(Some("status"), json!(status), 1);
        }
        for nothing_said in [
            "bad_signature",
            "cut_in_body",
            "endless_body",
            "forged_success",
            "gzip",
            "huge_body",
            "no_signature",
            "probe_signature",
            "skewed_clock",
            "stale_timestamp",
            "truncated_body",
            "unknown_serial",
        ] {
            check(Some(nothing_said), json!(200), 1);
        }
    }

    #[test]
    fn an_query_that_was_answered_too_late_reported_nobody() {
        let call = |operation, at_us: u64, took_us: u64, fault| {
            json!({
                "at": "2026-01-01T00:00:00Z", "at_us": at_us, "took_us": took_us, "operation": operation,
                "fault": fault, "answered": 200, "coupon_code": "C1", "out_request_no": "USE_1",
            })
        };
        let with = |took_us| {
            let query = call(QUERY, 2_000_000, took_us, Some("slow"));
            judged(&[call(USE, 0, 9, Some("no_signature")), query, call(USE, 9_000_000, 9, None)])
        };
        assert_eq!((with(300_000), with(1_300_000)), (0, 1));
    }

    #[test]
    fn a_use_that_was_declined_may_be_republished_and_no_other() {
        let declined = |status: u16| (USE, Some("status"), json!(status));
        assert_eq!(unasked(&[declined(429), declined(429), (USE, None, json!(200))]), 0);
        for status in [202, 401, 500] {
            assert_eq!(unasked(&[declined(status), (USE, None, json!(200))]), 1, "{status}");
        }
        let unsigned = json!({
            "at": "2026-01-01T00:00:00Z", "at_us": 0, "took_us": 9, "operation": USE, "fault": "status",
            "answered": 429, "sub_code": UNSIGNED_429, "coupon_code": "C1", "out_request_no": "USE_1",
        });
        let mut again = unsigned.clone();
        again["at_us"] = json!(2_000_000);
        assert_eq!(judged(&[unsigned, again]), 1, "nobody need have been the provider");
        // That it was declined once says nothing about the next one.
        let cut = || (USE, Some("cut_after_effect"), json!("cut"));
        assert_eq!(unasked(&[declined(429), cut(), cut()]), 1);
        assert_eq!(unasked(&[declined(429), cut(), declined(429), cut()]), 1);
    }

    #[test]
    fn a_use_while_the_last_one_was_under_way_is_another_instances() {
        let used = |at_us: u64| {
            json!({
                "at": "2026-01-01T00:00:00Z", "at_us": at_us, "took_us": 1_000, "operation": USE,
                "answered": 200, "coupon_code": "C1", "out_request_no": "USE_1",
            })
        };
        assert_eq!((judged(&[used(0), used(999)]), judged(&[used(0), used(1_001)])), (0, 1));
    }

    #[test]
    fn only_what_is_unresolved_is_superseded() {
        let check = |story: &[(&str, bool)], taken_back: bool, superseded: bool| {
            let reported: Vec<Seen> = story
                .iter()
                .map(|(outcome, again)| Seen {
                    command: "m-1".to_owned(),
                    id: format!("id of {outcome}"),
                    outcome: (*outcome).to_owned(),
                    reason: String::new(),
                    state: "USED".to_owned(),
                    code: "C1".to_owned(),
                    number: "USE_1".to_owned(),
                    time: None,
                    again: *again,
                })
                .collect();
            let reported: Vec<&Seen> = reported.iter().collect();
            assert_eq!(
                (is_taken_back(&reported), is_superseded(&reported)),
                (taken_back, superseded),
                "{story:?}"
            );
            let page = json!({"effects": [{"kind": "used", "out_request_no": "USE_1"}]});
            let hopeless = Command { hopeless: true, ..command() };
            assert_eq!(outcome(&hopeless, &reported, &Ledger::read(&page)).is_err(), taken_back, "{story:?}");
        };
        let (redeemed, unresolved) = (("redeemed", false), ("unresolved", false));
        check(&[redeemed], false, false);
        check(&[redeemed, redeemed], false, false);
        check(&[unresolved, redeemed], false, true);
        check(&[unresolved, unresolved, redeemed], false, true);
        check(&[redeemed, unresolved], true, false);
        check(&[redeemed, unresolved, redeemed], true, true);
        // A subscriber drops what it has seen.
        check(&[unresolved, redeemed, unresolved], false, true);
        // Nobody knows how long that was on its way.
        check(&[redeemed, ("unresolved", true)], false, false);
    }
}
