//! The report: compares every event with the expected result and with the ledger of the sandbox.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;

use crate::cli::demo::cases::{Case, Expected, rows as rows_in_order};
use crate::cli::event_view::EventView;
use crate::domain::outcome::OutcomeKind;

/// An event of a case, with the time since its command was published.
#[derive(Debug, Clone)]
pub(super) struct Got {
    /// The event; `None` if it could not be read.
    pub reported: Option<EventView>,
    /// From publishing the command to the event in hand.
    pub took: Duration,
}

/// A line of the sandbox's ledger.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Effect {
    kind: String,
    out_request_no: Option<String>,
}

/// The results of all cases.
pub(super) struct Report<'a> {
    /// The cases.
    pub cases: &'a [Case],
    /// Events by case.
    pub got: &'a [Vec<Got>],
    /// The sandbox's ledger.
    pub effects: &'a [Effect],
}

/// One row of the table.
#[derive(Default)]
struct Row {
    sent: usize,
    expected: String,
    got: BTreeMap<String, usize>,
    used: usize,
    wrong: usize,
}

impl Report<'_> {
    /// The faults of a case; empty if its result is as expected.
    fn faults(&self, nth: usize, uses: &BTreeMap<&str, usize>) -> Vec<String> {
        let (case, got) = (&self.cases[nth], &self.got[nth]);
        let mut faults = Vec::new();
        if got.len() != case.times {
            faults.push(format!("{} events for {} messages", got.len(), case.times));
        }
        for Got { reported, .. } in got {
            let Some(reported) = reported else {
                faults.push("an event that cannot be read".to_owned());
                continue;
            };
            let state = reported.data.coupon_state.as_deref();
            if words(reported) != case.expected.words() || state != case.expected.state {
                faults.push(format!("got {}, coupon state {}", words(reported), state.unwrap_or("none")));
            }
            if case.number.is_some() && reported.data.out_request_no != case.number {
                faults.push("an event with another number".to_owned());
            }
        }
        let used = self.uses_of(nth, uses);
        let expected_effects = usize::from(case.expected.outcome == OutcomeKind::Redeemed);
        if used != expected_effects {
            faults.push(format!("{used} effects in the ledger, not {expected_effects}"));
        }
        faults
    }

    fn uses_of(&self, nth: usize, uses: &BTreeMap<&str, usize>) -> usize {
        let number = self.cases[nth].number.as_deref();
        number.and_then(|number| uses.get(number).copied()).unwrap_or(0)
    }

    /// The lines of the table, and every unexpected result.
    pub(super) fn table(&self) -> (Vec<String>, Vec<String>) {
        let uses = self.uses();
        let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (nth, case) in self.cases.iter().enumerate() {
            let row = rows.entry(case.kind).or_default();
            row.expected = case.expected.words();
            row.sent += case.times;
            for Got { reported, .. } in &self.got[nth] {
                let words = reported.as_ref().map_or("unreadable".to_owned(), words);
                *row.got.entry(words).or_default() += 1;
            }
            row.used += self.uses_of(nth, &uses);
            let faults = self.faults(nth, &uses);
            row.wrong += usize::from(!faults.is_empty());
            let name = case.number.as_deref().unwrap_or("without a number");
            wrong.extend(faults.into_iter().map(|fault| format!("{} ({name}): {fault}", case.kind)));
        }
        wrong.extend(self.strangers());

        let head = line("kind of command", "sent", "expected", "got", "used", "");
        let mut lines = vec![head];
        for kind in rows_in_order() {
            let Some(Row { sent, expected, got, used, wrong }) = rows.get(kind) else { continue };
            let got: Vec<_> = got.iter().map(|(words, count)| format!("{count} {words}")).collect();
            let verdict = if *wrong == 0 { "ok" } else { "WRONG" };
            lines.push(line(kind, &sent.to_string(), expected, &got.join(", "), &used.to_string(), verdict));
        }
        (lines, wrong)
    }

    /// Effects by number, of coupons that were used.
    fn uses(&self) -> BTreeMap<&str, usize> {
        let mut uses = BTreeMap::new();
        for effect in self.effects.iter().filter(|effect| effect.kind == "used") {
            if let Some(number) = &effect.out_request_no {
                *uses.entry(number.as_str()).or_default() += 1;
            }
        }
        uses
    }

    /// Effects that no command asked for.
    fn strangers(&self) -> Vec<String> {
        let ours: BTreeSet<_> = self.cases.iter().filter_map(|case| case.number.as_deref()).collect();
        let numbers = self.uses().into_keys();
        let strangers = numbers.filter(|number| !ours.contains(number) && !number.starts_with("another_"));
        strangers.map(|number| format!("the ledger has an effect that nobody asked for: {number}")).collect()
    }

    /// How many numbers were reported `redeemed`, how many of them the ledger has, and the most effects of any number.
    pub(super) fn ledger(&self) -> (usize, usize, usize) {
        let uses = self.uses();
        let redeemed =
            |got: &Got| got.reported.as_ref().is_some_and(|reported| reported.data.outcome == "redeemed");
        let reported = (0..self.cases.len()).filter(|nth| self.got[*nth].iter().any(redeemed));
        let reported: Vec<_> = reported.collect();
        let used = reported.iter().filter(|nth| self.uses_of(**nth, &uses) > 0).count();
        (reported.len(), used, uses.into_values().max().unwrap_or(0))
    }

    /// The time from publishing to the event that this share of commands took at most, of all or of undisturbed ones.
    pub(super) fn quantile(&self, share: f64, undisturbed: bool) -> Duration {
        let of_interest =
            self.cases.iter().zip(self.got).filter(|(case, _)| case.undisturbed || !undisturbed);
        let mut times: Vec<_> = of_interest.flat_map(|(_, got)| got.iter().map(|got| got.took)).collect();
        times.sort_unstable();
        let last = times.len().saturating_sub(1);
        // The nearest rank: a time that some command really took.
        let rank = (share * times.len() as f64).ceil() as usize;
        times.get(rank.saturating_sub(1).min(last)).copied().unwrap_or_default()
    }
}

impl Expected {
    /// Outcome and reason, as the table has them.
    fn words(&self) -> String {
        match self.reason {
            // The table has a row for malformed ones, which all have this one reason.
            Some(reason) if self.outcome != OutcomeKind::Invalid => {
                format!("{}: {}", self.outcome.as_str(), reason.as_str())
            }
            _ => self.outcome.as_str().to_owned(),
        }
    }
}

fn words(reported: &EventView) -> String {
    match reported.reason() {
        Some(reason) if reported.data.outcome != "invalid" => format!("{}: {reason}", reported.data.outcome),
        _ => reported.data.outcome.clone(),
    }
}

fn line(kind: &str, sent: &str, expected: &str, got: &str, used: &str, verdict: &str) -> String {
    format!("  {kind:<30} {sent:>5}  {expected:<25} {got:<29} {used:>5}  {verdict}").trim_end().to_owned()
}

/// A time for display.
pub(super) fn short(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

/// The sum of all series of a metric whose labels hold `label`.
pub(super) fn metric(text: &str, name: &str, label: &str) -> f64 {
    let series = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let rest = series.strip_prefix(name)?;
        let whole = rest.is_empty() || rest.starts_with('{');
        if whole && rest.contains(label) { value.parse::<f64>().ok() } else { None }
    });
    series.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::cases::program;

    fn effect(number: &str) -> Effect {
        Effect { kind: "used".to_owned(), out_request_no: Some(number.to_owned()) }
    }

    /// The faults of the vendor's example alone, with these events and effects.
    fn faults(events: &[(&str, &str)], effects: &[&str]) -> Vec<String> {
        let program = program(0, 1);
        let got = events.iter().map(|(outcome, state)| {
            let body = format!(
                r#"{{"data": {{"outcome": "{outcome}", "coupon_state": "{state}",
                    "out_request_no": "34657_20250101_123456"}}}}"#
            );
            Got { reported: EventView::read(body.as_bytes()), took: Duration::from_millis(1) }
        });
        let effects: Vec<_> = effects.iter().map(|number| effect(number)).collect();
        let report = Report { cases: &program.cases, got: &[got.collect()], effects: &effects };
        let (table, wrong) = report.table();
        let row = table.last().expect("there is a row");
        let strangers = wrong.iter().filter(|fault| fault.contains("nobody asked for")).count();
        assert_eq!(row.ends_with("  ok"), wrong.len() == strangers, "{row}");
        wrong
    }

    #[test]
    fn events_and_ledger_must_both_agree() {
        let (ours, well) = ("34657_20250101_123456", ("redeemed", "EFFECTIVE"));
        assert_eq!(faults(&[well], &[ours]), [""; 0]);
        assert_eq!(faults(&[well], &[ours, "another_1"]), [""; 0]);
        let check = |events: &[_], effects: &[_], reported: &str| {
            let found = faults(events, effects);
            assert!(found.iter().any(|fault| fault.contains(reported)), "no {reported:?} in {found:?}");
        };
        check(&[], &[ours], "0 events for 1 messages");
        check(&[well, well], &[ours], "2 events for 1 messages");
        check(&[well], &[], "0 effects in the ledger, not 1");
        check(&[well], &[ours, ours], "2 effects in the ledger, not 1");
        check(&[("refused", "EFFECTIVE")], &[ours], "got refused, coupon state EFFECTIVE");
        check(&[("redeemed", "USED")], &[ours], "got redeemed, coupon state USED");
        check(&[well], &[ours, "stranger"], "nobody asked for: stranger");
    }

    #[test]
    fn a_quantile_is_a_time_that_was_taken() {
        let program = program(99, 1);
        let got: Vec<_> = (1..=program.cases.len() as u64)
            .map(|n| vec![Got { reported: None, took: Duration::from_millis(n) }])
            .collect();
        let report = Report { cases: &program.cases, got: &got, effects: &[] };
        let count = program.cases.len() as f64;
        assert_eq!(report.quantile(0.5, false), Duration::from_millis((count / 2.0).ceil() as u64));
        assert_eq!(report.quantile(1.0, false), Duration::from_millis(count as u64));
        assert_eq!(Report { got: &[], ..report }.quantile(0.5, false), Duration::ZERO);
    }

    #[test]
    fn metrics_are_summed_over_their_labels() {
        let text = "# HELP a b\na 7\nab 9\ntaken{settlement=\"first\"} 3\ntaken{settlement=\"copy\"} 2\n";
        let sum = |name, label| metric(text, name, label);
        assert_eq!(
            [sum("a", ""), sum("taken", ""), sum("taken", "copy"), sum("none", "")],
            [7.0, 5.0, 2.0, 0.0]
        );
    }
}
