//! Loading: the defaults, the file and the environment become one [`Config`], and unknown keys are reported by name.

use std::path::Path;

use toml::{Table, Value};

use super::*;

/// The replacement of a name that may be a secret.
pub const NAME_NOT_SHOWN: &str = "(a name that is not shown)";

/// Reads the configuration: defaults, then the file, then the environment.
///
/// # Errors
/// [`ConfigFaults`] with every fault at once.
pub fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Config, ConfigFaults> {
    let text = match file {
        None => String::new(),
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            let key = file_name::Shown(path).to_string();
            ConfigFaults(vec![
                ConfigFault::new(key, format!("cannot be read: {error}")).with_id("config_unreadable"),
            ])
        })?,
    };
    let name = file.map_or_else(String::new, |path| file_name::Shown(path).to_string());
    parse(&text, &name, environment)
}

/// Reads the configuration from a text. `name` identifies it in faults.
///
/// # Errors
/// [`ConfigFaults`] with every fault at once.
pub fn parse(
    text: &str,
    name: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Config, ConfigFaults> {
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
        // The general message quotes the line, which may hold a password.
        let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
        let problem = format!("is not TOML at line {line}: {}", error.message());
        ConfigFaults(vec![ConfigFault::new(name, problem).with_id("config_syntax")])
    })?;
    let mut faults = Vec::new();
    let model = Table::try_from(Config::default()).unwrap_or_default();
    for (variable, value) in environment {
        if let Some(place) = variable.strip_prefix(PREFIX)
            && place.contains("__")
        {
            override_by(&mut table, &model, place, value);
        }
    }
    compare(&table, &model, "", &mut faults);
    if !faults.is_empty() {
        return Err(ConfigFaults(faults));
    }
    let config: Config = table.clone().try_into().map_err(|error: toml::de::Error| {
        let key = misfit(&table, &model, "").unwrap_or_else(|| name.to_owned());
        ConfigFaults(vec![ConfigFault::new(key, error.message())])
    })?;
    config.check(&mut faults);
    if faults.is_empty() { Ok(config) } else { Err(ConfigFaults(faults)) }
}

/// Sets `A__B__KEY` to a value: unchanged where the model has a text, as TOML where it has a number, with commas between the
/// items where it has a list, as TOML has it or not.
fn override_by(table: &mut Table, model: &Table, place: &str, text: String) {
    let mut keys: Vec<String> = place.split("__").map(str::to_lowercase).collect();
    // Serials are the one kind of key that is not lower case.
    if keys.len() == 3 && keys[1] == "public_keys" {
        keys[2] = place.rsplit("__").next().unwrap_or_default().to_owned();
    }
    let Some(last) = keys.pop() else { return };
    let (mut section, mut model) = (table, Some(model));
    for key in keys {
        model = model.and_then(|model| model.get(&key)).and_then(Value::as_table);
        let entry = section.entry(key).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(inner) = entry else { return };
        section = inner;
    }
    let value = match model.and_then(|model| model.get(&last)) {
        None | Some(Value::String(_)) => None,
        Some(Value::Array(_)) if !text.trim_start().starts_with('[') => Some(list_in_words(&text)),
        Some(Value::Table(_)) if !text.trim_start().starts_with('{') => files_by_name(&text),
        Some(_) => format!("v = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("v")),
    };
    match (section.get_mut(&last), value) {
        // Other variables, or the file, name others of them.
        (Some(Value::Table(there)), Some(Value::Table(more))) => there.extend(more),
        (_, value) => {
            section.insert(last, value.unwrap_or(Value::String(text)));
        }
    }
}

/// A list as the environment may have it: items with commas between them.
fn list_in_words(text: &str) -> Value {
    let items = text.split(',').map(str::trim).filter(|_| !text.trim().is_empty());
    Value::Array(items.map(Value::from).collect())
}

/// Public keys as the environment may have them: `ID=FILE`, with commas between them.
fn files_by_name(text: &str) -> Option<Value> {
    let pairs = text.split(',').map(str::trim).filter(|_| !text.trim().is_empty());
    let pair = |pair: &str| {
        let (name, file) = pair.split_once('=')?;
        Some((name.trim().to_owned(), Value::from(file.trim())))
    };
    Some(Value::Table(pairs.map(pair).collect::<Option<Table>>()?))
}

/// Reports every key that the model does not have, and every value of another type than the model's.
fn compare(table: &Table, model: &Table, path: &str, faults: &mut Vec<ConfigFault>) {
    for (name, value) in table {
        let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let mut fault = |problem: String| faults.push(ConfigFault::new(key.clone(), problem));
        match (model.get(name), value) {
            (None, _) => {
                let problem = "is not a key; see config.toml for all of them";
                faults.push(ConfigFault::new(shown_name(&key), problem).with_id("config_unknown_key"));
            }
            (Some(Value::Table(_)), Value::Table(files)) if key == PUBLIC_KEYS => {
                for (serial, file) in files.iter().filter(|(_, file)| !file.is_str()) {
                    let serial = shown_name(serial);
                    fault(format!("{serial} must be a file name in quotes, not {}", file.type_str()));
                }
            }
            (Some(Value::Table(model)), Value::Table(table)) => compare(table, model, &key, faults),
            (Some(Value::Float(_)), Value::Integer(_) | Value::Float(_)) => {}
            (Some(Value::Integer(_)), Value::Integer(number)) if *number < 0 => {
                fault("must not be negative".to_owned());
            }
            (Some(model @ Value::String(span)), Value::String(text)) => {
                if is_span(model) && Span::parse(text).is_none() {
                    fault(format!("must be a time such as {span}"));
                }
            }
            (Some(Value::Array(model)), Value::Array(items)) => {
                let spans = model.iter().any(is_span);
                let fits = |item: &Value| match item.as_str() {
                    Some(text) => !spans || Span::parse(text).is_some(),
                    None => false,
                };
                if !items.iter().all(fits) {
                    let expected = if spans { "times such as 10s" } else { "texts" };
                    fault(format!("must be a list of {expected}"));
                }
            }
            (Some(model), value) if model.same_type(value) => {}
            (Some(Value::Array(model)), _) => {
                let example = if model.iter().any(is_span) { ["10s", "1m"] } else { ["A", "B"] };
                let [first, second] = example;
                fault(format!(
                    "must be a list such as [\"{first}\", \"{second}\"], or {first},{second} in the environment"
                ));
            }
            (Some(Value::Table(_)), _) if key == PUBLIC_KEYS => {
                fault("must be a section with an id and a file in each line, or ID=FILE,ID=FILE in the environment".to_owned());
            }
            (Some(model), value) => {
                fault(format!("must be {}, not {}", kind(model), kind(value)));
            }
        }
    }
}

/// The key whose value alone does not fit into [`Config`], such as a number that is too large.
fn misfit(table: &Table, model: &Table, path: &str) -> Option<String> {
    table.iter().find_map(|(name, value)| {
        let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match (value, model.get(name)) {
            (Value::Table(inner), Some(Value::Table(model))) => misfit(inner, model, &key),
            _ => {
                let alone = key.rsplit('.').fold(value.clone(), |inner, part| {
                    Value::Table([(part.to_owned(), inner)].into_iter().collect())
                });
                alone.try_into::<Config>().is_err().then_some(key)
            }
        }
    })
}

/// The longest part of a name that is shown: no key has a longer one, and an APIv3 key has 32 characters.
const NAME_CHARS_MAX: usize = 28;

/// The name of a key as it may be shown: it may be a secret on the wrong side of the `=`.
pub fn shown_name(key: &str) -> String {
    let is_word = |part: &str| {
        let digits = part.bytes().filter(u8::is_ascii_digit).count();
        part.len() <= NAME_CHARS_MAX
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && (digits <= 2 || part.strip_prefix(PUBLIC_KEY_ID).is_some())
    };
    match key.len() <= 64 && key.split('.').all(is_word) {
        true => key.to_owned(),
        false => NAME_NOT_SHOWN.to_owned(),
    }
}

/// Whether the model's text is a time: no other default looks like one.
fn is_span(model: &Value) -> bool {
    model.as_str().is_some_and(|text| Span::parse(text).is_some())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text in quotes",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
    }
}
