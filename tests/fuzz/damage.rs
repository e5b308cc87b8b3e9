//! Damages sound messages, by bytes and by structure.

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

/// A little over what a command may have, so that the limit itself is met.
const BYTES_MAX: usize = 70 * 1024;

/// Pieces that parsers stumble over.
const PIECES: [&str; 28] = [
    "\"",
    "\\",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "1e999",
    "0.1",
    "18446744073709551616",
    "\\u0000",
    "\\ud800",
    "\u{0}",
    "\n",
    "\r\n",
    "😀",
    "../",
    "%2f",
    "=",
    "+08:00",
    "9999-12-31T23:59:60Z",
    "-----BEGIN",
    " ",
    "\u{feff}",
];

/// Damages bytes anywhere.
pub(crate) fn bytes(sound: &[u8], dice: &mut StdRng) -> Vec<u8> {
    let mut damaged = sound.to_vec();
    for _ in 0..dice.random_range(1..=6) {
        let at = dice.random_range(0..=damaged.len());
        let end = (at + dice.random_range(0..32usize)).min(damaged.len());
        match dice.random_range(0..9) {
            0 | 1 if at < damaged.len() => damaged[at] ^= 1 << dice.random_range(0..8),
            2 if at < damaged.len() => damaged[at] = dice.random(),
            3 => drop(damaged.drain(at..end)),
            4 => {
                let again = damaged[at..end].to_vec();
                damaged.splice(at..at, again);
            }
            5 => damaged.truncate(at),
            6 => {
                let piece = PIECES[dice.random_range(0..PIECES.len())].as_bytes();
                // Mostly one; sometimes this many that depth and length are tried as well.
                let times = if dice.random_bool(0.02) { dice.random_range(1..20_000) } else { 1 };
                damaged.splice(at..at, piece.repeat(times));
            }
            _ => {
                let piece = PIECES[dice.random_range(0..PIECES.len())].as_bytes();
                damaged.splice(at..end, piece.iter().copied());
            }
        }
        damaged.truncate(BYTES_MAX);
    }
    damaged
}

/// Damages a text, which stays one.
pub(crate) fn text(sound: &str, dice: &mut StdRng) -> String {
    String::from_utf8_lossy(&bytes(sound.as_bytes(), dice)).into_owned()
}

/// Damages JSON by its structure: members are lost, renamed, doubled, or become something else.
pub(crate) fn json(sound: &Value, dice: &mut StdRng) -> Vec<u8> {
    let mut damaged = sound.clone();
    for _ in 0..dice.random_range(1..=2) {
        change(&mut damaged, dice);
    }
    damaged.to_string().into_bytes()
}

fn change(value: &mut Value, dice: &mut StdRng) {
    match value {
        Value::Object(members) if !members.is_empty() && dice.random_bool(0.9) => {
            let nth = dice.random_range(0..members.len());
            let name = members.keys().nth(nth).cloned().unwrap_or_default();
            match dice.random_range(0..6) {
                0 => drop(members.remove(&name)),
                1 => {
                    let moved = members.remove(&name).unwrap_or_default();
                    members.insert(text(&name, dice), moved);
                }
                2 => {
                    let copied = members[&name].clone();
                    members.insert(text(&name, dice), copied);
                }
                _ => change(&mut members[&name], dice),
            }
        }
        Value::Array(values) if !values.is_empty() && dice.random_bool(0.9) => {
            let nth = dice.random_range(0..values.len());
            match dice.random_range(0..4) {
                0 => drop(values.remove(nth)),
                1 => values.extend_from_within(nth..),
                _ => change(&mut values[nth], dice),
            }
        }
        Value::String(words) if dice.random_bool(0.6) => *words = text(words, dice),
        _ => *value = other(dice),
    }
}

fn other(dice: &mut StdRng) -> Value {
    match dice.random_range(0..10) {
        0 => Value::Null,
        1 => json!(dice.random_bool(0.5)),
        2 => json!(dice.random::<i64>()),
        3 => json!(dice.random::<f64>() * 1e300),
        4 => json!("x".repeat(dice.random_range(0..5_000))),
        5 => json!({}),
        6 => json!([]),
        7 => (0..dice.random_range(1..120)).fold(json!(1), |inner, _| json!([inner])),
        8 => (0..dice.random_range(1..120)).fold(json!(1), |inner, _| json!({ "json": inner })),
        _ => json!(PIECES[dice.random_range(0..PIECES.len())]),
    }
}
