//! What came of it: every event against what was expected and against the sandbox's ledger, as a table.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;

use crate::attempt::OutcomeKind;
use crate::cli::demo::cases::{Case, Expected, rows as rows_in_order};
use crate::cli::told::Told;

/// An event of a case, and how long after its publishing it came.
#[derive(Debug, Clone)]
pub struct Got {
    /// The event; nothing where it could not be read.
    pub told: Option<Told>,
    /// From publishing the command to the event in hand.
    pub took: Duration,
}

/// A line of the sandbox's ledger.
#[derive(Debug, Clone, Deserialize)]
pub struct Effect {
    kind: String,
    out_request_no: Option<String>,
}

/// Everything that came of the cases.
pub struct Report<'a> {
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
    /// What is wrong with a case: nothing, if all is well.
    fn faults(&self, nth: usize, uses: &BTreeMap<&str, usize>) -> Vec<String> {
        let (case, got) = (&self.cases[nth], &self.got[nth]);
        let mut faults = Vec::new();
        if got.len() != case.times {
            faults.push(format!("{} events for {} messages", got.len(), case.times));
        }
        for Got { told, .. } in got {
            let Some(told) = told else {
                faults.push("an event that cannot be read".to_owned());
                continue;
            };
            let state = told.data.coupon_state.as_deref();
            if words(told) != case.expected.words() || state != case.expected.state {
                faults.push(format!("got {}, coupon state {}", words(told), state.unwrap_or("none")));
            }
            if case.number.is_some() && told.data.out_request_no != case.number {
                faults.push("an event with another number".to_owned());
            }
        }
        let used = self.uses_of(nth, uses);
        let wanted = usize::from(case.expected.outcome == OutcomeKind::Redeemed);
        if used != wanted {
            faults.push(format!("{used} effects in the ledger, not {wanted}"));
        }
        faults
    }

    fn uses_of(&self, nth: usize, uses: &BTreeMap<&str, usize>) -> usize {
        let number = self.cases[nth].number.as_deref();
        number.and_then(|number| uses.get(number).copied()).unwrap_or(0)
    }

    /// The lines of the table, and everything that is not as it must be.
    pub fn table(&self) -> (Vec<String>, Vec<String>) {
        let uses = self.uses();
        let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (nth, case) in self.cases.iter().enumerate() {
            let row = rows.entry(case.kind).or_default();
            row.expected = case.expected.words();
            row.sent += case.times;
            for Got { told, .. } in &self.got[nth] {
                let words = told.as_ref().map_or("unreadable".to_owned(), words);
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

    /// How many numbers were told `redeemed`, and the most effects that any number has.
    pub fn ledger(&self) -> (usize, usize) {
        let redeemed = |got: &Got| got.told.as_ref().is_some_and(|told| told.data.outcome == "redeemed");
        let told = self.got.iter().filter(|got| got.iter().any(redeemed)).count();
        (told, self.uses().into_values().max().unwrap_or(0))
    }

    /// The time from publishing to the event that this share of commands took at most, of all or of undisturbed ones.
    pub fn quantile(&self, share: f64, undisturbed: bool) -> Duration {
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

fn words(told: &Told) -> String {
    match told.reason() {
        Some(reason) if told.data.outcome != "invalid" => format!("{}: {reason}", told.data.outcome),
        _ => told.data.outcome.clone(),
    }
}

fn line(kind: &str, sent: &str, expected: &str, got: &str, used: &str, verdict: &str) -> String {
    format!("  {kind:<30} {sent:>5}  {expected:<25} {got:<29} {used:>5}  {verdict}").trim_end().to_owned()
}

/// A time as people read it.
pub fn short(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

/// The sum of all series of a metric whose labels hold `label`.
pub fn metric(text: &str, name: &str, label: &str) -> f64 {
    let series = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let rest = series.strip_prefix(name)?;
        let whole = rest.is_empty() || rest.starts_with('{');
        if whole && rest.contains(label) { value.parse::<f64>().ok() } else { None }
    });
    series.sum()
}
