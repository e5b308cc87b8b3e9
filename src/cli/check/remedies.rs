//! The remedies of findings: commands to run unchanged, for the place that sets the value.

use std::path::Path;

use crate::config::{Config, NAME_NOT_SHOWN, PREFIX, PUBLIC_KEY_ID, check_public_key_id, shown_name};
use crate::policy::file_name::{self, Shown, quote};
use crate::telemetry::untrusted::is_hidden;
use crate::wechat::key_remedy::Remedy;

/// The sources of the configuration, which decide how a key is fixed.
pub(super) struct Origin<'a> {
    /// The file, if there is one.
    pub file: Option<&'a Path>,
    /// The variables of the environment that set keys.
    variables: Vec<String>,
}

impl<'a> Origin<'a> {
    /// Reads the environment.
    pub(super) fn of(file: Option<&'a Path>) -> Self {
        let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        let variables = names.filter(|name| name.starts_with(PREFIX) && name.contains("__")).collect();
        Self { file, variables }
    }

    /// The command that fixes a key, or several with commas between them, at its source.
    pub(super) fn remedies(&self, key: &str, how: &str) -> String {
        if key == NAME_NOT_SHOWN {
            // The sections alone are shown.
            let variables = format!("env | grep -o '^{PREFIX}[A-Z]*__'");
            return match self.file {
                Some(file) => {
                    format!(
                        "${{EDITOR:-vi}} {}; {variables} # one of these: {how}",
                        quote(&Shown(file).to_string())
                    )
                }
                None => format!("{variables} # one of these: {how}"),
            };
        }
        if key == PUBLIC_KEYS {
            return self.naming_public_keys(how);
        }
        let keys: Vec<_> = key.split(", ").collect();
        let names: Vec<_> = keys.iter().map(|key| variable(key)).collect();
        let set = self.set_by(&names);
        let how = how.replace('\n', " ");
        match (set.is_empty(), self.file) {
            (true, Some(file)) => {
                format!("${{EDITOR:-vi}} {} # {key}: {how}", quote(&Shown(file).to_string()))
            }
            (false, _) if !keys.iter().all(|key| is_known(key)) => {
                let may_be_shown = |name: &String| {
                    let key = name.trim_start_matches(PREFIX).replace("__", ".");
                    shown_name(&key) != NAME_NOT_SHOWN
                };
                // The rest of the name may be a secret, so the shell completes it.
                match set.iter().all(may_be_shown) {
                    true => format!("unset {} # {how}", set.join(" ")),
                    false => format!("unset ${{!{}__*}} # {how}", names.join("__*} ${!")),
                }
            }
            _ => format!("{} # {how}", exports(&names)),
        }
    }
}

impl Origin<'_> {
    /// The variables that set any of these, or a part of them.
    fn set_by(&self, names: &[String]) -> Vec<String> {
        let sets = |set: &&String| {
            let set = set.to_uppercase();
            names.iter().any(|name| {
                let name = name.to_uppercase();
                set.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with("__"))
            })
        };
        self.variables.iter().filter(sets).cloned().collect()
    }

    /// The command that sets a key to this value, at its source.
    pub(super) fn setting(&self, key: &str, value: &str) -> String {
        let name = variable(key);
        match (self.set_by(std::slice::from_ref(&name)).is_empty(), self.file) {
            (true, Some(file)) => {
                format!("${{EDITOR:-vi}} {} # {key} = {value:?}", quote(&Shown(file).to_string()))
            }
            _ => format!("export {name}={}", quote(value)),
        }
    }

    /// The command that replaces a file in a list, at its source.
    fn exchanging(&self, key: &str, old: &str, new: &str) -> String {
        let name = variable(key);
        match (self.set_by(std::slice::from_ref(&name)).is_empty(), self.file) {
            (true, Some(file)) => {
                let file = quote(&Shown(file).to_string());
                format!("${{EDITOR:-vi}} {file} # {key}: {new:?} instead of {old:?}")
            }
            _ => {
                let set = std::env::var(&name).ok();
                let set = set.and_then(|text| format!("list = {text}").parse::<toml::Table>().ok());
                let files = set.as_ref().and_then(|table| table["list"].as_array()).into_iter().flatten();
                let files = files.filter_map(toml::Value::as_str);
                let mut files: Vec<_> = files.map(|file| if file == old { new } else { file }).collect();
                if !files.contains(&new) {
                    files = vec![new];
                }
                format!("export {name}={}", quote(&format!("{files:?}")))
            }
        }
    }

    /// The command that removes a key, at its source.
    pub(super) fn removing(&self, key: &str, how: &str) -> String {
        let set = self.set_by(&[variable(key)]);
        match set.is_empty() {
            true => self.remedies(key, &format!("leave it out: {how}")),
            false => format!("unset {} # {how}", set.join(" ")),
        }
    }

    /// The command that fixes a file, or what a key names.
    pub(super) fn remedy(&self, remedy: &Remedy, key: &str) -> String {
        match remedy {
            Remedy::Command(command) => command.clone(),
            Remedy::SetKey(how) => self.remedies(key, how),
            Remedy::Convert { command, file } => {
                // The file that it is made of has no such ending.
                let setting = match (key, file.strip_suffix(".pem")) {
                    (LIST_OF_FILES, Some(old)) => self.exchanging(key, old, file),
                    _ => self.setting(key, file),
                };
                format!("{command} && {setting}")
            }
        }
    }
}

// ---- the names of public keys

/// The table of WeChat Pay's public keys. One variable cannot set it.
pub(super) const PUBLIC_KEYS: &str = "wechat.public_keys";

impl Origin<'_> {
    /// The command that removes public keys with invalid names, at their source.
    fn naming_public_keys(&self, how: &str) -> String {
        let how = how.replace('\n', " ");
        let prefix = variable(PUBLIC_KEYS) + "__";
        let ids = self.variables.iter().filter_map(|name| name.strip_prefix(&prefix));
        let wrong: Vec<_> = ids.filter(|id| check_public_key_id(id).is_err()).collect();
        match (wrong.first(), self.file) {
            (Some(id), _) => format!("{} # {how}", renaming(&prefix, id)),
            (None, Some(file)) => {
                let line = std::fs::read_to_string(file).ok().and_then(|text| line_of_wrong_name(&text));
                let line = line.map(|line| format!("+{line} ")).unwrap_or_default();
                format!("${{EDITOR:-vi}} {line}{} # [{PUBLIC_KEYS}]: {how}", quote(&Shown(file).to_string()))
            }
            (None, None) => format!("export {prefix}{PUBLIC_KEY_ID}…=… # {how}"),
        }
    }
}

/// The commands that replace a variable with an invalid name.
fn renaming(prefix: &str, id: &str) -> String {
    let name = format!("{prefix}{id}");
    let file = std::env::var(&name).ok().filter(|file| file_name::check(file).is_ok());
    let file = file.map_or_else(|| "…".to_owned(), |file| quote(&file));
    let clean: String = id.chars().filter(|letter| !letter.is_whitespace() && !is_hidden(*letter)).collect();
    let digits = clean.trim_start_matches(|letter: char| letter.is_ascii_uppercase() || letter == '_');
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    // Anything else may be a secret on the wrong side of the `=`.
    let is_serial = clean.len() == 40 && clean.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_harmless = is_number || is_serial || clean.strip_prefix(PUBLIC_KEY_ID).is_some();
    let setting = match is_serial {
        true => format!("export {}=…", variable(LIST_OF_FILES)),
        false if is_number => format!("export {prefix}{PUBLIC_KEY_ID}{digits}={file}"),
        false => format!("export {prefix}{PUBLIC_KEY_ID}…={file}"),
    };
    let is_name = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match (is_harmless, is_name) {
        (true, true) => format!("unset {name}; {setting}"),
        // No shell can unset it: it comes from the unit or the container.
        (true, false) => format!("{setting}; exec env -u {} \"$SHELL\"", quote(&name)),
        (false, _) => format!("unset ${{!{prefix}*}}; {setting}"),
    }
}

/// The number of the first line of a file with an invalid name of a public key.
fn line_of_wrong_name(text: &str) -> Option<usize> {
    let mut is_inside = false;
    text.lines().enumerate().find_map(|(nth, line)| {
        let line = line.trim();
        if line.starts_with('[') {
            is_inside = line.trim_matches(['[', ']', ' ']) == PUBLIC_KEYS;
            return None;
        }
        let (name, _) = line.split_once('=').filter(|_| is_inside && !line.starts_with('#'))?;
        let name = name.trim().trim_matches(['"', '\'']);
        check_public_key_id(name).is_err().then_some(nth + 1)
    })
}

/// The key that names several files.
const LIST_OF_FILES: &str = "wechat.platform_certificates";

fn exports(names: &[String]) -> String {
    let each: Vec<_> = names.iter().map(|name| format!("export {name}=…")).collect();
    each.join("; ")
}

fn is_known(key: &str) -> bool {
    if key.starts_with("wechat.public_keys.") {
        return true;
    }
    toml::Value::try_from(Config::default())
        .is_ok_and(|model| key.split('.').try_fold(&model, |section, name| section.get(name)).is_some())
}

/// The command that sets a key of the configuration.
pub(super) fn setting(key: &str) -> String {
    format!("export {}=…", variable(key))
}

/// The variable of the environment that sets a key. The ids of public keys are written as they are.
fn variable(key: &str) -> String {
    match key.strip_prefix("wechat.public_keys.") {
        Some(id) => format!("{PREFIX}WECHAT__PUBLIC_KEYS__{id}"),
        None => format!("{PREFIX}{}", key.to_uppercase().replace('.', "__")),
    }
}
