//! The remedies of findings: commands to run unchanged in any POSIX shell, for the place that sets the value. A value that only
//! a person knows is requested by the command.

use std::path::Path;

use super::config_file::{ConfigFile, Place, Written, in_double_quotes};
use crate::config::{
    Config, NAME_NOT_SHOWN, PREFIX, PUBLIC_KEY_ID, PUBLIC_KEYS, check_public_key_id, shown_name,
};
use crate::policy::file_name::{self, quote};
use crate::telemetry::untrusted::is_hidden;
use crate::wechat::key_remedy::Remedy;

/// The sources of the configuration, which decide how a key is fixed.
pub(super) struct Origin<'a> {
    /// The file, if there is one.
    pub file: Option<&'a Path>,
    config_file: Option<ConfigFile>,
    /// The variables of the environment that begin as ours do, in the order of their bytes.
    variables: Vec<String>,
}

/// The values of these keys may hold a password.
const SECRETS: [&str; 2] = ["broker.uri", "broker.management_uri"];

impl<'a> Origin<'a> {
    /// Reads the environment and the file.
    pub(super) fn of(file: Option<&'a Path>) -> Self {
        let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        let mut variables: Vec<_> = names.filter(|name| name.starts_with(PREFIX)).collect();
        variables.sort();
        Self { file, config_file: file.map(ConfigFile::read), variables }
    }

    /// The command that requests the value of a key, or of several with commas between them, and sets it at its source; one
    /// that removes an unknown key.
    pub(super) fn remedies(&self, key: &str, how: &str) -> String {
        let how = how.replace('\n', " ");
        if key == NAME_NOT_SHOWN {
            return format!("{} # {how}", self.removing_unnamed());
        }
        if key == PUBLIC_KEYS {
            return self.naming_public_keys(&how);
        }
        let keys: Vec<_> = key.split(", ").collect();
        if !keys.iter().all(|key| is_known(key)) {
            return self.removing(key, &how);
        }
        let mut asking: Vec<_> = keys.iter().map(|key| (self.last_line(key), self.asking(key))).collect();
        // A line that is added moves those behind it.
        asking.sort_by_key(|(line, _)| std::cmp::Reverse(*line));
        let asking: Vec<_> = asking.into_iter().map(|(_, command)| command).collect();
        format!("{} # {how}", asking.join("; "))
    }

    fn last_line(&self, key: &str) -> usize {
        self.file_of(key).map_or(0, |file| file.place(key).line())
    }

    /// The command that asks for the value of one key.
    pub(super) fn asking(&self, key: &str) -> String {
        if SECRETS.contains(&key) {
            return self.asking_secret(key);
        }
        let asks = |variable: &str| format!("printf '{key}: '; read -r {variable}");
        let Some(file) = self.file_of(key) else {
            let name = self.variable_of(key);
            return format!("{}; export {name}", asks(&name));
        };
        let value = match default_of(key) {
            Some(toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_)) => "$VALUE",
            Some(toml::Value::Array(_)) => r#"[\"$(printf %s "$VALUE" | sed 's/ *, */", "/g')\"]"#,
            _ => r#"\"$VALUE\""#,
        };
        format!("{}; {}", asks("VALUE"), file.set(key, &file.place(key), &Written::Expanded(value)))
    }

    /// As [`Origin::asking`], without showing what is typed; no process has it as an argument.
    fn asking_secret(&self, key: &str) -> String {
        let Some(file) = self.file_of(key) else {
            let name = self.variable_of(key);
            return format!("{}; export {name}", read_secret(key, &name));
        };
        format!("{}; {}", read_secret(key, "VALUE"), file.set(key, &file.place(key), &Written::Secret))
    }

    /// The file, if a key is to be set there: no variable sets it, which would win.
    fn file_of(&self, key: &str) -> Option<&ConfigFile> {
        self.config_file.as_ref().filter(|_| self.set_by(key).is_empty())
    }

    /// The variables that set this key, or a part of it.
    fn set_by(&self, key: &str) -> Vec<&String> {
        let name = variable(key).to_uppercase();
        let sets = |set: &&String| {
            let set = set.to_uppercase();
            set.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with("__"))
        };
        self.variables.iter().filter(|name| name.contains("__")).filter(sets).collect()
    }

    /// The variable that sets this key.
    fn variable_of(&self, key: &str) -> String {
        self.set_by(key).first().map_or_else(|| variable(key), |name| (*name).clone())
    }

    /// The command that sets a key to this value, at its source.
    pub(super) fn setting(&self, key: &str, value: &str) -> String {
        let literal = toml::Value::from(value).to_string();
        match self.file_of(key) {
            Some(file) => file.set(key, &file.place(key), &Written::Known(&literal)),
            None => format!("export {}={}", self.variable_of(key), quote(value)),
        }
    }

    /// The command that sets a key to the expansion of this text between double quotes.
    fn setting_to(&self, key: &str, expanded: &str) -> String {
        match self.file_of(key) {
            Some(file) => {
                let value = format!(r#"\"{expanded}\""#);
                file.set(key, &file.place(key), &Written::Expanded(&value))
            }
            None => format!("export {}=\"{expanded}\"", self.variable_of(key)),
        }
    }

    /// The files of a list, at its source.
    fn list(&self, key: &str) -> Vec<String> {
        let list = match self.file_of(key) {
            Some(file) => key
                .split('.')
                .try_fold(toml::Value::Table(file.table()), |section, part| section.get(part).cloned()),
            None => std::env::var(self.variable_of(key)).ok().and_then(|text| match text.starts_with('[') {
                true => format!("list = {text}").parse::<toml::Table>().ok()?.remove("list"),
                false => Some(toml::Value::Array(text.split(',').map(|item| item.trim().into()).collect())),
            }),
        };
        let items = list.as_ref().and_then(toml::Value::as_array).into_iter().flatten();
        items.filter_map(toml::Value::as_str).map(str::to_owned).collect()
    }

    /// The command that replaces one file of a list by the expansion of a text, or removes it.
    pub(super) fn exchanging(&self, key: &str, old: &str, new: Option<&str>) -> String {
        let files = self.list(key);
        let kept = files.into_iter().filter_map(|file| match (file == old, new) {
            (true, new) => new.map(str::to_owned),
            (false, _) => Some(in_double_quotes(&file)),
        });
        let files: Vec<_> = kept.collect();
        match self.file_of(key) {
            Some(config) => {
                let items: Vec<_> = files.iter().map(|file| format!(r#"\"{file}\""#)).collect();
                let list = format!("[{}]", items.join(", "));
                config.set(key, &config.place(key), &Written::Expanded(&list))
            }
            None => format!("export {}=\"{}\"", self.variable_of(key), files.join(",")),
        }
    }

    /// The command that removes a key, at its source, and why.
    pub(super) fn removing(&self, key: &str, how: &str) -> String {
        format!("{} # {how}", self.leaving_out(key))
    }

    /// The command that removes a key, at its source.
    pub(super) fn leaving_out(&self, key: &str) -> String {
        let set = self.set_by(key);
        let may_be_shown = |name: &&String| {
            shown_name(&name.trim_start_matches(PREFIX).replace("__", ".")) != NAME_NOT_SHOWN
        };
        match (set.first(), &self.config_file) {
            (Some(_), _) => {
                let (shown, hidden): (Vec<_>, Vec<_>) = set.into_iter().partition(may_be_shown);
                let hidden = hidden.into_iter().map(|name| format!("unset {}", self.nth_name(name)));
                let names: Vec<_> = shown.into_iter().map(String::as_str).collect();
                let shown = (!names.is_empty()).then(|| format!("unset {}", names.join(" ")));
                let commands: Vec<_> = shown.into_iter().chain(hidden).collect();
                commands.join("; ")
            }
            (None, Some(file)) => file.comment_out(&file.place(key)),
            (None, None) => format!("unset {}", variable(key)),
        }
    }

    /// The same for the key whose name is not shown.
    fn removing_unnamed(&self) -> String {
        let is_meant = |name: &&String| {
            let key = name.trim_start_matches(PREFIX).to_lowercase().replace("__", ".");
            let is_public_key = key.starts_with(PUBLIC_KEYS);
            name.contains("__") && !is_public_key && !is_known(&key) && shown_name(&key) == NAME_NOT_SHOWN
        };
        match (self.variables.iter().find(is_meant), &self.config_file) {
            (Some(name), _) => format!("unset {}", self.nth_name(name)),
            (None, Some(file)) => {
                file.unnamed().map_or_else(|| file.edit(None), |place| file.comment_out(&place))
            }
            (None, None) => format!("env | grep -o '^{PREFIX}[A-Z]*__'"),
        }
    }

    /// A variable's name for the shell to find, because it may be a secret itself.
    fn nth_name(&self, name: &str) -> String {
        // Not every shell keeps variables that it could not set.
        let (list, is_of): (_, fn(&str) -> bool) = match is_name_of_shell(name) {
            true => (format!("grep -o '^{PREFIX}[A-Za-z0-9_]*=' | tr -d ="), is_name_of_shell),
            false => {
                (format!("grep -o '^{PREFIX}[^=]*' | grep '[^A-Za-z0-9_]'"), |name| !is_name_of_shell(name))
            }
        };
        let before = self.variables.iter().filter(|one| is_of(one) && one.as_str() < name).count();
        format!("\"$(env | {list} | LC_ALL=C sort | sed -n {}p)\"", before + 1)
    }

    /// The command that fixes a file, or what a key names.
    pub(super) fn remedy(&self, remedy: &Remedy, key: &str) -> String {
        match remedy {
            Remedy::Command(command) => command.clone(),
            Remedy::SetKey { how, file: Some(file) } if key == LIST_OF_FILES && self.list(key).len() > 1 => {
                let how = how.replace('\n', " ");
                let exchange = self.exchanging(key, file, Some("$VALUE"));
                format!("printf 'instead of %s: ' {}; read -r VALUE; {exchange} # {how}", quote(file))
            }
            Remedy::SetKey { how, .. } => self.remedies(key, how),
            Remedy::AddPublicKey => self.adding_public_key(),
            Remedy::Convert { command, file } => {
                // The file that it is made of has no such ending.
                let setting = match (key, file.strip_suffix(".pem")) {
                    (LIST_OF_FILES, Some(old)) => self.exchanging(key, old, Some(&in_double_quotes(file))),
                    _ => self.setting(key, file),
                };
                format!("{command} && {setting}")
            }
        }
    }

    /// The command that corrects the file as a whole, which is not TOML or cannot be read.
    pub(super) fn correcting_file(&self, id: &str) -> String {
        match (&self.config_file, self.file) {
            (Some(file), Some(path)) if id != "config_unreadable" || path.is_file() => {
                match std::fs::File::open(path) {
                    Ok(_) => file.edit(file.line_of_error()),
                    Err(_) => format!("sudo chgrp \"$(id -g)\" {0}; sudo chmod g+r {0}", file.name()),
                }
            }
            // The option of the command line wins over a variable.
            (Some(_), _) if !self.variables.iter().any(|name| name == CONFIG) => {
                "printf 'configuration file: '; read -r FILE; redeemer --config \"$FILE\" check".to_owned()
            }
            (Some(_), _) => format!("printf 'configuration file: '; read -r {CONFIG}; export {CONFIG}"),
            (None, _) => format!("env | grep -o '^{PREFIX}[^=]*'"),
        }
    }

    /// The command that corrects host and port of a node of the broker, wherever its URI is.
    pub(super) fn asking_host(&self, config: &Config, host: &str) -> String {
        const KEY: &str = "broker.uri";
        let is_plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
        let ask = "printf 'host and port of the broker: '; read -r HOST";
        let change = |at: &str| format!(r#"sed{at} "s|\([/@]\){host}\(:[0-9]*\)*|\1$HOST|""#);
        let uri_file = config.broker.uri_file.as_str();
        match (is_plain, self.file_of(KEY)) {
            (true, _) if !uri_file.is_empty() => format!("{ask}; {} {}", change(" -i"), quote(uri_file)),
            (true, None) if !self.set_by(KEY).is_empty() => {
                let name = self.variable_of(KEY);
                format!("{ask}; export {name}=\"$(printf %s \"${name}\" | {})\"", change(""))
            }
            (true, Some(file)) => match file.place(KEY) {
                Place::Lines(lines, _) => {
                    let at = format!("{}s|", lines.start());
                    format!("{ask}; {} {}", change(" -i").replace("\"s|", &format!("\"{at}")), file.name())
                }
                _ => self.asking_uri(config),
            },
            _ => self.asking_uri(config),
        }
    }

    /// The command that asks for the whole URI of the broker.
    pub(super) fn asking_uri(&self, config: &Config) -> String {
        match config.broker.uri_file.as_str() {
            "" => self.asking_secret("broker.uri"),
            file => writing_secret("broker.uri", file),
        }
    }
}

/// The variable that names the configuration file.
const CONFIG: &str = "REDEEMER_CONFIG";

/// The key of the serial that signs.
pub(super) const MERCHANT_SERIAL: &str = "wechat.merchant_serial";

/// The command that reads the merchant's serial from its certificate, and sets it.
pub(super) fn merchant_serial(origin: &Origin) -> String {
    let serial = "$(openssl x509 -noout -serial -in \"$FILE\" | cut -d= -f2)";
    format!(
        "printf 'file of the merchant API certificate (apiclient_cert.pem): '; read -r FILE; {} # or name this file in \
         wechat.merchant_certificate_file",
        origin.setting_to(MERCHANT_SERIAL, serial)
    )
}

/// The command that writes the APIv3 key into its file.
pub(super) fn apiv3_key(config: &Config) -> String {
    let write = writing_secret("APIv3 key, 32 characters", &config.wechat.apiv3_key_file);
    format!("{write} # as set on the merchant platform: API security, APIv3 key")
}

/// Reads a line into a variable of the shell without showing it.
fn read_secret(what: &str, variable: &str) -> String {
    format!("stty -echo; printf '{what}: '; read -r {variable}; stty echo")
}

/// The command that asks for a secret and writes it into a file that is there: its owner and mode stay.
fn writing_secret(what: &str, file: &str) -> String {
    let read = read_secret(what, "SECRET");
    format!("(umask 077; {read}; printf '%s\\n' \"$SECRET\" > {})", quote(file))
}

// ---- the names of public keys

/// The question for the id of a public key.
const ASK_ID: &str = "printf 'id of the public key (PUB_KEY_ID_...): '; read -r ID";

impl Origin<'_> {
    /// The command that replaces invalid names of public keys, at their source.
    fn naming_public_keys(&self, how: &str) -> String {
        let prefix = variable(PUBLIC_KEYS) + "__";
        let is_wrong =
            |name: &&String| name.strip_prefix(&prefix).is_some_and(|id| check_public_key_id(id).is_err());
        if let Some(name) = self.variables.iter().find(is_wrong) {
            return format!("{} # {how}", self.renaming_variable(&prefix, name));
        }
        let all = variable(PUBLIC_KEYS);
        let misnamed = self.config_file.as_ref().and_then(|file| Some((file, file.misnamed_public_key()?)));
        match (misnamed, &self.config_file) {
            _ if self.variables.contains(&all) => {
                format!(
                    "printf 'ID=FILE, with commas between several: '; read -r {all}; export {all} # {how}"
                )
            }
            (Some((file, (place, path))), _) if is_certificate(&path) => {
                // It is not a public key: it belongs to the list.
                let mut files = self.list(LIST_OF_FILES);
                files.push(path);
                let list = toml::Value::from(files).to_string();
                let key = file.place(LIST_OF_FILES);
                let add = file.set(LIST_OF_FILES, &key, &Written::Known(&list));
                format!("{}; {add} # [{PUBLIC_KEYS}]: {how}", file.comment_out(&place))
            }
            (Some((file, (place, _))), _) => {
                format!("{ASK_ID}; {} # [{PUBLIC_KEYS}]: {how}", file.rename(&place, "$ID"))
            }
            (None, Some(file)) => {
                format!("{} # [{PUBLIC_KEYS}]: {how}", file.comment_out(&file.place(PUBLIC_KEYS)))
            }
            (None, None) => format!("{} # {how}", self.adding_public_key()),
        }
    }

    /// The commands that replace a variable with an invalid name.
    fn renaming_variable(&self, prefix: &str, name: &str) -> String {
        let id = name.trim_start_matches(prefix);
        let file = std::env::var(name).ok().filter(|file| file_name::check(file).is_ok());
        let clean: String =
            id.chars().filter(|letter| !letter.is_whitespace() && !is_hidden(*letter)).collect();
        let digits = clean.trim_start_matches(|letter: char| letter.is_ascii_uppercase() || letter == '_');
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        // Anything else may be a secret on the wrong side of the `=`.
        let is_serial = clean.len() == 40 && clean.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_harmless = is_number || is_serial || clean.strip_prefix(PUBLIC_KEY_ID).is_some();
        let set = match (file, is_number && !is_serial) {
            (Some(file), _) if is_certificate(&file) => {
                let mut files = self.list(LIST_OF_FILES);
                files.push(file);
                format!("export {}={}", self.variable_of(LIST_OF_FILES), quote(&files.join(",")))
            }
            (Some(file), true) => format!("export {prefix}{PUBLIC_KEY_ID}{digits}={}", quote(&file)),
            (Some(file), false) => {
                format!("{ASK_ID}; export \"{prefix}$ID={}\"", in_double_quotes(&file))
            }
            (None, _) => format!("{ASK_ID}; printf 'its file: '; read -r FILE; export \"{prefix}$ID=$FILE\""),
        };
        let old = if is_harmless { quote(name) } else { self.nth_name(name) };
        match is_name_of_shell(name) {
            true => format!("unset {old}; {set}"),
            // No shell can unset it: it comes from the unit or the container.
            false => format!("{set}; exec env -u {old} \"$SHELL\""),
        }
    }

    /// The command that adds a public key.
    pub(super) fn adding_public_key(&self) -> String {
        let ask = format!("{ASK_ID}; printf 'its file: '; read -r FILE");
        match self.file_of(PUBLIC_KEYS) {
            None => format!("{ask}; export \"{}__$ID=$FILE\"", variable(PUBLIC_KEYS)),
            Some(file) => format!("{ask}; {}", file.add_file(PUBLIC_KEYS)),
        }
    }

    /// The command that gives a public key this id, or one that it requests, at its source.
    pub(super) fn renaming_public_key(&self, old: &str, new: Option<&str>) -> String {
        let key = format!("{PUBLIC_KEYS}.{old}");
        let (ask, to) = match new {
            Some(id) => (String::new(), id),
            None => (format!("{ASK_ID}; "), "$ID"),
        };
        let (name, all) = (variable(&key), variable(PUBLIC_KEYS));
        match &self.config_file {
            _ if self.variables.contains(&name) => {
                let new = format!("{all}__{to}");
                format!("{ask}FILE=\"${name}\"; unset {name}; export \"{new}=$FILE\"")
            }
            _ if self.variables.contains(&all) => {
                format!("{ask}export {all}=\"$(printf %s \"${all}\" | sed \"s|{old}|{to}|\")\"")
            }
            Some(file) => format!("{ask}{}", file.rename(&file.place(&key), to)),
            None => self.adding_public_key(),
        }
    }
}

fn is_name_of_shell(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_certificate(file: &str) -> bool {
    let read = crate::wechat::keys::read_public(Path::new(file));
    read.is_ok_and(|bytes| crate::wechat::pem::certificates(&bytes).is_ok())
}

/// The key that names several files.
pub(super) const LIST_OF_FILES: &str = "wechat.platform_certificates";

fn default_of(key: &str) -> Option<toml::Value> {
    let model = toml::Value::try_from(Config::default()).ok()?;
    key.split('.').try_fold(model, |section, name| section.get(name).cloned())
}

fn is_known(key: &str) -> bool {
    key.starts_with("wechat.public_keys.") || default_of(key).is_some()
}

/// The variable of the environment that sets a key. The ids of public keys are written as they are.
fn variable(key: &str) -> String {
    match key.strip_prefix("wechat.public_keys.") {
        Some(id) => format!("{PREFIX}WECHAT__PUBLIC_KEYS__{id}"),
        None => format!("{PREFIX}{}", key.to_uppercase().replace('.', "__")),
    }
}
