//! Whether one schema may follow another within `v1`: the rules of docs/contract.md, "Compatibility", as a function.
//!
//! What a publisher may send must stay acceptable; what a subscriber relies on must stay true. A difference
//! that cannot be compared counts as broken.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// The direction of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Others write it: the schema may accept more, never less.
    Command,
    /// Others read it: the schema may promise more, never less.
    Event,
}

/// Fields of events whose lists of words may grow.
const GROWING: [&str; 2] = ["reason", "verdict"];

/// Words for people, and the file's own names.
const SILENT: [&str; 6] = ["title", "description", "examples", "$comment", "$schema", "$id"];

/// Bounds: the name, and whether a larger value takes in more.
const BOUNDS: [(&str, bool); 6] = [
    ("minLength", false),
    ("maxLength", true),
    ("minimum", false),
    ("maximum", true),
    ("minItems", false),
    ("maxItems", true),
];

/// The breaks of `new` for clients built for `old`: one line each, a JSON pointer and the break.
pub(crate) fn breaks(role: Role, old: &Value, new: &Value) -> Vec<String> {
    let mut comparison = Comparison { role, found: Vec::new() };
    comparison.schemas("", old, new);
    comparison.found
}

struct Comparison {
    role: Role,
    found: Vec<String>,
}

impl Comparison {
    fn broken(&mut self, path: &str, what: impl std::fmt::Display) {
        self.found.push(format!("{path}: {what}"));
    }

    fn schemas(&mut self, path: &str, old: &Value, new: &Value) {
        let (Value::Object(old), Value::Object(new)) = (old, new) else {
            if old != new {
                self.broken(path, "another kind of schema");
            }
            return;
        };
        let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for key in keys {
            let pair = (old.get(key), new.get(key));
            if SILENT.contains(&key.as_str()) || pair.0 == pair.1 {
                continue;
            }
            match (key.as_str(), pair) {
                ("type", (old, new)) => self.types(path, &set(old), &set(new)),
                ("required", (old, new)) => self.required(path, &set(old), &set(new)),
                ("enum", (Some(old), Some(new))) => self.words(path, &set(Some(old)), &set(Some(new))),
                ("properties", (Some(Value::Object(old)), Some(Value::Object(new)))) => {
                    self.properties(path, old, new);
                }
                ("additionalProperties", pair) => {
                    let narrower = pair.1 == Some(&Value::Bool(false));
                    if self.role == Role::Command && narrower || self.role == Role::Event && !narrower {
                        self.broken(path, "unknown fields are treated otherwise");
                    }
                }
                ("items" | "then" | "else", (Some(old), Some(new))) => {
                    self.schemas(&format!("{path}/{key}"), old, new);
                }
                ("allOf" | "anyOf" | "oneOf", (Some(Value::Array(old)), Some(Value::Array(new)))) => {
                    self.alternatives(&format!("{path}/{key}"), key, old, new);
                }
                (key, pair) => match BOUNDS.iter().find(|(name, _)| *name == key) {
                    Some((_, upper)) => self.bound(path, key, *upper, pair),
                    None => self.other(path, key, pair),
                },
            }
        }
    }

    fn types(&mut self, path: &str, old: &BTreeSet<String>, new: &BTreeSet<String>) {
        let (kept, all) = match self.role {
            Role::Command => (old, new),
            Role::Event => (new, old),
        };
        // No type means every type.
        if !all.is_empty() && (kept.is_empty() || !kept.is_subset(all)) {
            self.broken(path, format!("type was {old:?}, is {new:?}"));
        }
    }

    fn required(&mut self, path: &str, old: &BTreeSet<String>, new: &BTreeSet<String>) {
        let (fields, what) = match self.role {
            Role::Command => (new - old, "is required now"),
            Role::Event => (old - new, "may be absent now"),
        };
        for field in fields {
            self.broken(path, format!("{field} {what}"));
        }
    }

    fn words(&mut self, path: &str, old: &BTreeSet<String>, new: &BTreeSet<String>) {
        for word in old - new {
            self.broken(path, format!("the word {word} is gone"));
        }
        let grows = GROWING.iter().any(|name| path.ends_with(&format!("/{name}")));
        if self.role == Role::Event && !grows {
            for word in new - old {
                self.broken(path, format!("the word {word} is new in a closed list"));
            }
        }
    }

    fn properties(&mut self, path: &str, old: &Map<String, Value>, new: &Map<String, Value>) {
        for (name, was) in old {
            match new.get(name) {
                Some(is) => self.schemas(&format!("{path}/{name}"), was, is),
                None => self.broken(path, format!("the field {name} is gone")),
            }
        }
    }

    /// Compares elements by position. A new alternative accepts more, a new rule less.
    fn alternatives(&mut self, path: &str, key: &str, old: &[Value], new: &[Value]) {
        let may_grow = matches!((key, self.role), ("anyOf", Role::Command) | ("allOf", Role::Event));
        if new.len() < old.len() || new.len() > old.len() && !may_grow {
            self.broken(path, format!("had {} schemas, has {}", old.len(), new.len()));
        }
        for (place, (old, new)) in old.iter().zip(new).enumerate() {
            self.schemas(&format!("{path}/{place}"), old, new);
        }
    }

    fn bound(&mut self, path: &str, key: &str, upper: bool, (old, new): (Option<&Value>, Option<&Value>)) {
        let widens = match (old.and_then(Value::as_u64), new.and_then(Value::as_u64)) {
            (Some(old), Some(new)) => (new > old) == upper,
            (Some(_), None) => true,
            _ => false,
        };
        if widens != (self.role == Role::Command) {
            self.broken(path, format!("{key} was {}, is {}", reported(old), reported(new)));
        }
    }

    /// A rule that can only be the same or gone: `pattern`, `const`, `format`, `if`, `dependentRequired` …
    fn other(&mut self, path: &str, key: &str, (old, new): (Option<&Value>, Option<&Value>)) {
        let lawful = match self.role {
            Role::Command => new.is_none(),
            Role::Event => old.is_none(),
        };
        if !lawful {
            self.broken(path, format!("{key} was {}, is {}", reported(old), reported(new)));
        }
    }
}

fn set(value: Option<&Value>) -> BTreeSet<String> {
    match value {
        Some(Value::Array(values)) => values
            .iter()
            .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
            .collect(),
        Some(Value::String(word)) => BTreeSet::from([word.clone()]),
        _ => BTreeSet::new(),
    }
}

fn reported(value: Option<&Value>) -> String {
    value.map_or_else(|| "absent".to_owned(), Value::to_string)
}
