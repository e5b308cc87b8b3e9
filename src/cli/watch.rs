//! `redeemer watch`: prints result events as they arrive.

use anyhow::{Context as _, anyhow};
use clap::Args;

use crate::amqp::client::Link;
use crate::cli::event_view::{EventView, on_one_line, outcome};
use crate::cli::{Failure, print, print_error};
use crate::config::Config;
use crate::domain::outcome::OutcomeKind;
use crate::runtime::shutdown;
use crate::telemetry::untrusted::Untrusted;

/// Arguments of `watch`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Show events with these routing keys, redemption.OUTCOME.BRAND: `*` is one word, `#` any number of words.
    #[arg(default_value = "redemption.#", conflicts_with_all = ["outcome", "brand"])]
    pattern: String,
    /// Show only this outcome: redeemed, refused, invalid or unresolved. Repeatable.
    #[arg(long, value_parser = outcome)]
    outcome: Vec<OutcomeKind>,
    /// Show only this brand. Repeatable.
    #[arg(long, value_name = "BRAND_ID")]
    brand: Vec<String>,
    /// Print whole events, one JSON object per line.
    #[arg(long)]
    json: bool,
    /// End after this many events.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// The most events that the broker holds for a slow reader. It drops older ones, so that a forgotten terminal does not
/// fill it.
const HELD_MAX: i32 = 100_000;

/// A binding key for display: a text that is not one may be a secret.
fn shown_key(key: &str) -> &str {
    let is_plain = key.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-*#".contains(letter));
    if is_plain && (key.contains('.') || key.len() <= 16) { key } else { "(a key that is not shown)" }
}

/// Shows events until SIGINT, SIGTERM or the given number.
///
/// # Errors
/// [`Failure::Failed`] if the broker cannot be reached, or is lost.
pub async fn run(arguments: Arguments, config: Config) -> Result<(), Failure> {
    let settings = config.broker_settings()?;
    let link = Link::connect(&settings, "redeemer watch").await.context("no connection to the broker")?;
    let exchange = &settings.topology.names.results;
    let keys = arguments.keys();
    let mut events =
        link.subscribe(exchange, &keys, Some(HELD_MAX)).await.context("results cannot be read")?;
    let names: Vec<_> = keys.iter().map(|key| shown_key(key)).collect();
    print_error(&format!("watching {} on {exchange} at {}", names.join(", "), link.at()));

    let mut stop = Box::pin(shutdown::signal());
    let mut shown = 0;
    while arguments.count.is_none_or(|count| shown < count) {
        let event = tokio::select! {
            event = events.next() => event,
            signal = &mut stop => {
                signal.context("cannot listen for signals")?;
                break;
            }
        };
        let Some(event) = event else {
            return Err(anyhow!("connection to the broker lost: {}", link.lost().await).into());
        };
        let line = match EventView::read(&event.body) {
            _ if arguments.json => on_one_line(&event.body),
            Some(reported) => reported.to_string(),
            None => {
                format!("not an event: {} bytes under {}", event.body.len(), Untrusted(&event.routing_key))
            }
        };
        match print(&line) {
            // `| head` has seen enough.
            Err(error) if is_broken_pipe(&error) => break,
            result => result?,
        }
        shown += 1;
    }
    link.close().await;
    Ok(())
}

impl Arguments {
    /// The binding keys of every outcome with every brand; `*` if none is given.
    fn keys(&self) -> Vec<String> {
        if self.outcome.is_empty() && self.brand.is_empty() {
            return vec![self.pattern.clone()];
        }
        let any = || vec!["*".to_owned()];
        let outcomes: Vec<_> = self.outcome.iter().map(|kind| kind.as_str().to_owned()).collect();
        let outcomes = if outcomes.is_empty() { any() } else { outcomes };
        let brands = if self.brand.is_empty() { any() } else { self.brand.clone() };
        let pairs = outcomes.iter().flat_map(|kind| brands.iter().map(move |brand| (kind, brand)));
        pairs.map(|(kind, brand)| format!("redemption.{kind}.{brand}")).collect()
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<std::io::Error>();
    cause.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_become_routing_keys() {
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: Arguments,
        }
        let keys = |line: &[&str]| {
            let line = std::iter::once("watch").chain(line.iter().copied());
            <Line as clap::Parser>::try_parse_from(line).unwrap().arguments.keys()
        };
        assert_eq!(keys(&[]), ["redemption.#"]);
        assert_eq!(keys(&["redemption.*.7"]), ["redemption.*.7"]);
        assert_eq!(keys(&["--brand", "7"]), ["redemption.*.7"]);
        assert_eq!(
            keys(&["--outcome", "refused", "--outcome", "invalid", "--brand", "7"]),
            ["redemption.refused.7", "redemption.invalid.7"]
        );
    }
}
