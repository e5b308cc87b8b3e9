//! How a finding of `check` is fixed: by a command that can be typed as it stands, there where the value is set.

use std::path::Path;

use crate::config::{Config, PREFIX};
use crate::policy::file_name::{Shown, quote};
use crate::wechat::key_remedy::Remedy;

/// Where the configuration comes from, which decides how a key is fixed.
pub(super) struct Origin<'a> {
    /// The file, if there is one.
    pub file: Option<&'a Path>,
    /// The variables of the environment that set keys.
    variables: Vec<String>,
}

impl<'a> Origin<'a> {
    /// Looks at the environment.
    pub(super) fn of(file: Option<&'a Path>) -> Self {
        let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        let variables = names.filter(|name| name.starts_with(PREFIX) && name.contains("__")).collect();
        Self { file, variables }
    }

    /// The command that fixes a key, or several with commas between them, there where it is set.
    pub(super) fn remedies(&self, key: &str, how: &str) -> String {
        let keys: Vec<_> = key.split(", ").collect();
        let names: Vec<_> = keys.iter().map(|key| variable(key)).collect();
        let set = self.set_by(&names);
        let how = how.replace('\n', " ");
        match (set.is_empty(), self.file) {
            (true, Some(file)) => {
                format!("${{EDITOR:-vi}} {} # {key}: {how}", quote(&Shown(file).to_string()))
            }
            (false, _) if !keys.iter().all(|key| is_known(key)) => format!("unset {} # {how}", set.join(" ")),
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

    /// The command that gives a key this value, there where it is set.
    pub(super) fn setting(&self, key: &str, value: &str) -> String {
        let name = variable(key);
        match (self.set_by(std::slice::from_ref(&name)).is_empty(), self.file) {
            (true, Some(file)) => {
                format!("${{EDITOR:-vi}} {} # {key} = {value:?}", quote(&Shown(file).to_string()))
            }
            _ => format!("export {name}={}", quote(value)),
        }
    }

    /// The command that puts a file in the place of another one in a list, there where it is set.
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

    /// The command that leaves a key out, there where it is set.
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
                format!("{command}; {setting}")
            }
        }
    }
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
