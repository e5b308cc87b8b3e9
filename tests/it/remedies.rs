//! The remedies of `check`, typed as they are printed into each of the shells that people have, on an installation of its
//! own: a broker with TLS, a sandbox, a configuration file. Then the finding is gone, and nothing else is wrong.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::sync::Mutex;

use serde_json::Value;

use crate::authority::Authority;
use crate::broker::Broker;
use crate::programs::{Programs, err, out, redeemer, run, unused_dir};
use crate::typed;

/// One broken configuration.
struct Case {
    /// The finding.
    id: &'static str,
    /// What was done.
    what: &'static str,
    /// The configuration file.
    text: String,
    /// The environment.
    environment: Vec<(&'static str, String)>,
    /// What somebody knows who has to answer, before what everybody knows.
    knows: Vec<(&'static str, String)>,
}

struct Installation {
    programs: Programs,
    broker: Broker,
    dir: PathBuf,
    ours: Authority,
    identity: Value,
    /// As it should be.
    text: String,
    /// A port that another program has.
    taken: TcpListener,
}

const URI: &str = "REDEEMER_BROKER__URI";
const APIV3: &str = "REDEEMER_WECHAT__APIV3_KEY_FILE";
const KEY: &str = "REDEEMER_WECHAT__MERCHANT_KEY_FILE";
const CERTIFICATE: &str = "REDEEMER_WECHAT__MERCHANT_CERTIFICATE_FILE";
const SERIAL: &str = "REDEEMER_WECHAT__MERCHANT_SERIAL";
const BASE_URL: &str = "REDEEMER_WECHAT__BASE_URL";
const MISTYPED: &str = "REDEEMER_WECHAT__PUBLIC_KEYS__PUB_KEY_ID_0123";
const PUBLIC_KEYS: &str = "REDEEMER_WECHAT__PUBLIC_KEYS";
const CERTIFICATES: &str = "REDEEMER_WECHAT__PLATFORM_CERTIFICATES";
/// Of nobody.
const OTHER_SERIAL: &str = "5157F09EFDC096DE15EBE81A47057A7232F1B8E1";

impl Installation {
    fn new() -> Self {
        let dir = unused_dir("remedies");
        let ours = Authority::new(&dir.join("ours"));
        ours.sign("server", "DNS:localhost", "serverAuth");
        ours.sign("client", "DNS:redeemer", "clientAuth");
        let broker = Broker::start_as(&["--tls", &ours.dir.display().to_string()]);
        let mut programs = Programs::start(broker.uri());
        programs.stop_service();
        let text = fs::read_to_string(programs.config_file()).unwrap();
        let home = programs.config_file().parent().unwrap().to_owned();
        let identity = fs::read_to_string(home.join("sandbox/identity.json")).unwrap();
        // What remedies call by name.
        let bin = dir.join("bin");
        fs::create_dir(&bin).unwrap();
        symlink(env!("CARGO_BIN_EXE_redeemer"), bin.join("redeemer")).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/local/rabbitmq");
        let ctl = format!("#!/bin/sh\nexec {script} ctl {} \"$@\"\n", broker.dir().display());
        fs::write(bin.join("rabbitmqctl"), ctl).unwrap();
        fs::set_permissions(bin.join("rabbitmqctl"), fs::Permissions::from_mode(0o755)).unwrap();
        let identity = serde_json::from_str(&identity).unwrap();
        Self { programs, broker, dir, ours, identity, text, taken: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    fn sandbox(&self, name: &str) -> String {
        self.programs.config_file().parent().unwrap().join("sandbox").join(name).display().to_string()
    }

    fn of_identity(&self, name: &str) -> String {
        self.identity[name].as_str().unwrap().to_owned()
    }

    /// A file that only we may read.
    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.dir.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    }

    /// The text with other lines in the place of some.
    fn with(&self, changes: &[(&str, &str)]) -> String {
        changes.iter().fold(self.text.clone(), |text, (key, line)| {
            let is_meant = |one: &&str| one.split('=').next().is_some_and(|name| name.trim() == *key);
            let old = text.lines().find(is_meant).unwrap_or_else(|| panic!("{key} is not in {text}"));
            text.replace(old, line)
        })
    }

    /// The text with more lines in a section.
    fn within(&self, section: &str, lines: &str) -> String {
        let header = format!("[{section}]\n");
        assert!(self.text.contains(&header), "{section}");
        self.text.replace(&header, &format!("{header}{lines}\n"))
    }

    fn without_public_keys(&self) -> String {
        let (before, after) = self.text.split_once("[wechat.public_keys]").unwrap();
        format!("{before}[admin]{}", after.split_once("[admin]").unwrap().1)
    }

    /// What everybody knows who has the merchant platform and the broker at hand.
    fn answer(&self, case: &Case, question: &str) -> Option<String> {
        if let Some((_, answer)) = case.knows.iter().find(|(asked, _)| *asked == question) {
            return Some(answer.clone());
        }
        let (_, address) = self.broker.uri().split_once('@').unwrap();
        Some(match question {
            "wechat.mchid" => self.of_identity("mchid"),
            "wechat.base_url" => self.programs.base_url.clone(),
            "wechat.merchant_key_file" => self.sandbox("merchant_key.pem"),
            "wechat.merchant_certificate_file"
            | "file of the merchant API certificate (apiclient_cert.pem)" => {
                self.sandbox("merchant_cert.pem")
            }
            "wechat.platform_certificates" => self.sandbox("platform_cert.pem"),
            "id of the public key (PUB_KEY_ID_...)" => self.of_identity("public_key_id"),
            "its file" => self.sandbox("wechatpay_public_key.pem"),
            "ID=FILE, with commas between several" => {
                format!("{}={}", self.of_identity("public_key_id"), self.sandbox("wechatpay_public_key.pem"))
            }
            "APIv3 key, 32 characters" => fs::read_to_string(self.sandbox("apiv3_key.txt")).unwrap(),
            "broker.uri" => self.broker.uri().to_owned(),
            "host and port of the broker" => address.split('/').next().unwrap().to_owned(),
            "broker.ca_file" => self.ours.path("ca.pem"),
            "broker.client_certificate_file" => self.ours.path("client.pem"),
            "broker.client_key_file" => self.ours.path("client.key"),
            "broker.prefetch" => "200".to_owned(),
            "retry.delays" => "10s, 1m".to_owned(),
            "admin.listen" => "127.0.0.1:0".to_owned(),
            "configuration file" => self.programs.config_file().display().to_string(),
            question if question.starts_with("instead of ") => self.sandbox("platform_cert.pem"),
            question if question.starts_with("wechat.public_keys.") => {
                self.sandbox("wechatpay_public_key.pem")
            }
            _ => return None,
        })
    }

    /// The findings that are no praise: id and remedy; and the exit code.
    fn check(&self, environment: &[(String, String)]) -> (Vec<(String, String)>, Option<i32>, String) {
        let mut command = redeemer();
        command.args(["check", "--json"]).current_dir(&self.dir).envs(environment.iter().cloned());
        let output = run(&mut command);
        let lines = out(&output);
        let findings = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let bad = findings.filter(|one| one["gravity"] != "ok");
        let bad = bad.map(|one| (text(&one["id"]), text(&one["remedy"])));
        (bad.collect(), output.status.code(), lines + &err(&output))
    }

    /// Breaks the installation, types what `check` says into this shell, and checks again.
    fn try_case(&self, nth: usize, case: &Case, shell: &str) -> Result<(), String> {
        let config = self.dir.join(format!("{shell}-{nth}.toml"));
        fs::write(&config, &case.text).unwrap();
        // A remedy may write the file that is named.
        let named = case.environment.iter().map(|(_, value)| PathBuf::from(value));
        let named: Vec<_> = named.filter(|path| path.starts_with(&self.dir)).collect();
        let before: Vec<_> = named.iter().map(|path| (path, fs::read(path).unwrap())).collect();
        let mut environment = vec![("REDEEMER_CONFIG".to_owned(), config.display().to_string())];
        environment.retain(|_| case.environment.iter().all(|(name, _)| *name != "REDEEMER_CONFIG"));
        environment.extend(case.environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let Case { id, what, .. } = case;
        let (found, _, said) = self.check(&environment);
        let Some((_, remedy)) = found.iter().find(|(found, _)| found == id) else {
            return Err(format!("{id}, {what}: not found\n{said}"));
        };
        let mut typing = typed::shell(shell, remedy);
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REDEEMER_"))
        {
            typing.env_remove(name);
        }
        let path = format!("{}:{}", self.dir.join("bin").display(), std::env::var("PATH").unwrap());
        typing.current_dir(&self.dir).envs(environment).env("PATH", path);
        typing.env("EDITOR", self.dir.join("editor"));
        let answers = typed::answers(remedy, |question| self.answer(case, question))
            .map_err(|question| format!("{id}, {what}: nobody knows {question:?}: {remedy}"))?;
        let (ran, variables) = typed::run(typing, &answers);
        let complaints = String::from_utf8_lossy(&ran.stderr).into_owned();
        if ran.status.code() != Some(0) {
            return Err(format!("{id}, {what}, {shell}: {remedy}\n{complaints}"));
        }
        let (left, code, said) = self.check(&variables);
        for (path, content) in before {
            fs::write(path, content).unwrap();
        }
        match left.iter().any(|(left, _)| left == id) || code != Some(0) {
            true => Err(format!("{id}, {what}, {shell}: does not help: {remedy}\n{complaints}\n{said}")),
            false => Ok(()),
        }
    }
}

fn case(id: &'static str, what: &'static str, text: String, environment: &[(&'static str, &str)]) -> Case {
    let environment = environment.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Case { id, what, text, environment, knows: Vec::new() }
}

/// Values and names of keys.
fn cases_of_the_file(at: &Installation) -> Vec<Case> {
    let fine = || at.text.clone();
    let editor = at.file("editor", "#!/bin/sh\nsed -i \"${1#+}s/.*/# corrected/\" \"$2\"\n");
    fs::set_permissions(editor, fs::Permissions::from_mode(0o755)).unwrap();
    let taken = at.taken.local_addr().unwrap();
    let other_certificate = at.ours.path("client.pem");
    vec![
        case(
            "config_syntax",
            "a quote is missing",
            at.with(&[("uri", "uri = \"amqp://x")]) + "\n",
            &[(URI, at.broker.uri())],
        ),
        case("config_unreadable", "no such file", fine(), &[("REDEEMER_CONFIG", "/nowhere/redeemer.toml")]),
        case("config_unreadable", "a folder", fine(), &[("REDEEMER_CONFIG", "/etc")]),
        case("config_unknown_key", "a typo in the file", at.within("broker", "prefech = 100"), &[]),
        case("config_unknown_key", "a section", at.text.clone() + "[surprise]\nx = 1\ny = [\n 1,\n]\n", &[]),
        case(
            "config_unknown_key",
            "a secret as a name, in the file",
            at.within("wechat", "0f1e2d3c4b5a69788796a5b4c3d2e1f0 = \"x\""),
            &[],
        ),
        case("config_unknown_key", "a typo", fine(), &[("REDEEMER_BROKER__PREFECH", "1")]),
        case(
            "config_unknown_key",
            "a secret as a name",
            fine(),
            &[
                ("REDEEMER_WECHAT__0f1e2d3c4b5a69788796a5b4c3d2e1f0", "x"),
                ("REDEEMER_WECHAT__MCHID", &at.of_identity("mchid")),
            ],
        ),
        case(
            "config_unknown_key",
            "a secret as a name of a section",
            fine(),
            &[("REDEEMER_SURPRISE__0f1e2d3c4b5a69788796a5b4c3d2e1f0", "x"), (URI, at.broker.uri())],
        ),
        case("config_value", "out of range, in the file", at.within("broker", "prefetch = 0 # all"), &[]),
        case("config_value", "out of range", fine(), &[("REDEEMER_BROKER__PREFETCH", "0")]),
        case(
            "config_value",
            "too large for its type",
            fine(),
            &[("REDEEMER_BROKER__PREFETCH", "99999999999")],
        ),
        case("config_value", "a scalar for a list", fine(), &[("REDEEMER_RETRY__DELAYS", "5")]),
        case("config_value", "half a list", fine(), &[("REDEEMER_RETRY__DELAYS", "[\"10s\"")]),
        case(
            "config_value",
            "a scalar for a list, in the file",
            at.text.clone() + "[retry]\ndelays = \"10s\"\n",
            &[],
        ),
        case(
            "config_value",
            "a list of several lines",
            at.text.clone() + "[retry]\ndelays = [\n  \"10x\",\n]\n",
            &[],
        ),
        case(
            "config_value",
            "two of one, in the file",
            at.within("broker", "client_key_file = \"key.pem\""),
            &[(URI, at.broker.uri())],
        ),
        case("config_value", "a merchant number in words", at.with(&[("mchid", "mchid = \"ours\"")]), &[]),
        case(
            "config_value",
            "a short serial",
            at.with(&[("merchant_serial", "merchant_serial = \"5157F0\"")]),
            &[],
        ),
        case("config_value", "a short serial", fine(), &[(SERIAL, "5157F0")]),
        case(
            "config_value",
            "a serial with a blank",
            fine(),
            &[(SERIAL, "5157F09EFDC096DE15EB E81A47057A7232F1B8E1")],
        ),
        case(
            "config_value",
            "an id without its prefix, in the file",
            {
                let id = at.of_identity("public_key_id");
                at.text.replace(&id, id.trim_start_matches("PUB_KEY_ID_"))
            },
            &[],
        ),
        case(
            "config_value",
            "an id without its prefix",
            at.without_public_keys(),
            &[("REDEEMER_WECHAT__PUBLIC_KEYS__KEY_X", &at.sandbox("wechatpay_public_key.pem"))],
        ),
        case(
            "config_value",
            "a secret as an id, beside a key",
            fine(),
            &[
                (
                    "REDEEMER_WECHAT__PUBLIC_KEYS__0f1e2d3c4b5a69788796a5b4c3d2e1f0",
                    &at.sandbox("wechatpay_public_key.pem"),
                ),
                ("REDEEMER_WECHAT__PUBLIC_KEYS__PUB_KEY_ID_00", &at.sandbox("wechatpay_public_key.pem")),
            ],
        ),
        case("config_value", "a scalar for the public keys", fine(), &[(PUBLIC_KEYS, "pub_key.pem")]),
        case(
            "config_not_a_file_name",
            "the key itself",
            fine(),
            &[(KEY, &fs::read_to_string(at.sandbox("merchant_key.pem")).unwrap())],
        ),
        case(
            "config_base_url",
            "no URL, in the file",
            at.with(&[("base_url", "base_url = \"api.mch\"")]),
            &[],
        ),
        case("config_base_url", "not encrypted", fine(), &[(BASE_URL, "http://192.0.2.1")]),
        case(
            "token_too_short",
            "a password",
            fine(),
            &[("REDEEMER_ADMIN__CONSOLE_TOKEN_FILE", &at.file("token.txt", "short"))],
        ),
        case(
            "serial_not_held",
            "of nobody",
            fine(),
            &[("REDEEMER_WECHAT__VERIFICATION_SERIAL", "PUB_KEY_ID_02")],
        ),
        case(
            "serial_not_held",
            "of nobody, in the file",
            at.within("wechat", "verification_serial = \"AB\""),
            &[],
        ),
        case(
            "serial_of_another_certificate",
            "well-formed",
            at.with(&[("merchant_serial", &format!("merchant_serial = {OTHER_SERIAL:?}"))]),
            &[(CERTIFICATE, &at.sandbox("merchant_cert.pem"))],
        ),
        case("certificate_of_another_key", "of the broker", fine(), &[(CERTIFICATE, &other_certificate)]),
        case("admin_listen", "of nobody here", fine(), &[("REDEEMER_ADMIN__LISTEN", "192.0.2.1:9464")]),
        case(
            "admin_port_in_use",
            "of another program",
            at.with(&[("listen", &format!("listen = \"{taken}\""))]),
            &[],
        ),
    ]
}

/// Keys, and what the payment API says of them.
fn cases_of_the_payment_api(at: &Installation) -> Vec<Case> {
    let fine = || at.text.clone();
    let nothing = at.file("empty.pem", "");
    let wrong = |name: &str| at.file(name, "0f1e2d3c4b5a69788796a5b4c3d2e1f0\n");
    let public = at.sandbox("wechatpay_public_key.pem");
    let platform = at.sandbox("platform_cert.pem");
    let (key, certificate) = (at.sandbox("merchant_key.pem"), at.sandbox("merchant_cert.pem"));
    let id = at.of_identity("public_key_id");
    let mistyped = || at.text.replace(&id, "PUB_KEY_ID_0123");
    vec![
        case("merchant_key_missing", "none", at.with(&[("merchant_key_file", "")]), &[]),
        case("verification_key_missing", "none", at.without_public_keys(), &[]),
        case(
            "verification_key_missing",
            "none, without its section",
            at.text.replace(&format!("{id} ="), "# none ="),
            &[],
        ),
        case("key_is_empty", "an empty file", fine(), &[(KEY, &nothing)]),
        case(
            "key_is_empty",
            "an empty file, in the file",
            at.with(&[("merchant_key_file", &format!("merchant_key_file = {nothing:?}"))]),
            &[],
        ),
        case(
            "key_is_empty",
            "one of two certificates",
            fine(),
            &[(CERTIFICATES, &format!("{platform},{nothing}"))],
        ),
        case(
            "key_is_empty",
            "one of two certificates, in the file",
            at.within("wechat", &format!("platform_certificates = [{platform:?}, {nothing:?}]")),
            &[],
        ),
        case("key_unreadable", "a typo in its name", fine(), &[(KEY, "/nowhere/key.pem")]),
        case("key_is_certificate", "the certificate for the key", fine(), &[(KEY, &certificate)]),
        case("key_is_our_own", "our own certificate", fine(), &[(CERTIFICATES, &certificate)]),
        case("apiv3_key_length", "16 characters", fine(), &[(APIV3, &at.file("short.txt", "0f1e2d3c"))]),
        case("download_apiv3_key", "another key", at.without_public_keys(), &[(APIV3, &wrong("wrong.txt"))]),
        case(
            "download_apiv3_key",
            "another key, beside a public key",
            fine(),
            &[(APIV3, &wrong("beside.txt"))],
        ),
        case(
            "download_unauthenticated",
            "another serial",
            at.without_public_keys(),
            &[(APIV3, &at.sandbox("apiv3_key.txt")), (SERIAL, OTHER_SERIAL)],
        ),
        case(
            "download_unreachable",
            "a port of nobody",
            at.without_public_keys(),
            &[(APIV3, &at.sandbox("apiv3_key.txt")), (BASE_URL, "http://127.0.0.1:1")],
        ),
        case("payment_api_unreachable", "a port of nobody", fine(), &[(BASE_URL, "http://127.0.0.1:1")]),
        case(
            "payment_api_unreachable",
            "a port of nobody, in the file",
            at.with(&[("base_url", "base_url = \"http://127.0.0.1:1\"")]),
            &[],
        ),
        case(
            "payment_api_unreachable",
            "an unknown host",
            fine(),
            &[(BASE_URL, "https://no-such-host.invalid")],
        ),
        case("payment_api_unauthenticated", "another serial", fine(), &[(SERIAL, OTHER_SERIAL)]),
        case(
            "payment_api_unauthenticated",
            "another serial, in the file",
            at.with(&[("merchant_serial", &format!("merchant_serial = {OTHER_SERIAL:?}"))]),
            &[],
        ),
        case(
            "payment_api_unauthenticated",
            "another merchant",
            fine(),
            &[("REDEEMER_WECHAT__MCHID", "1900000999"), (CERTIFICATE, &certificate)],
        ),
        case(
            "payment_api_unauthenticated",
            "another merchant, in the file",
            at.with(&[("mchid", "mchid = \"1900000999\"")]),
            &[(CERTIFICATE, &certificate), (KEY, &key)],
        ),
        case(
            "payment_api_serial_not_held",
            "a typo in the id",
            at.without_public_keys(),
            &[(MISTYPED, &public)],
        ),
        case("payment_api_serial_not_held", "a typo in the id, in the file", mistyped(), &[]),
        case(
            "payment_api_serial_not_held",
            "a typo in the id, in one variable",
            at.without_public_keys(),
            &[(PUBLIC_KEYS, &format!("PUB_KEY_ID_0123={public}"))],
        ),
        case(
            "payment_api_serial_not_held",
            "a typo in the id, asked for by name",
            mistyped(),
            &[("REDEEMER_WECHAT__VERIFICATION_SERIAL", "PUB_KEY_ID_0123")],
        ),
        case(
            "payment_api_rejects_headers",
            "a typo in the id, beside a certificate",
            at.without_public_keys(),
            &[(MISTYPED, &public), (CERTIFICATES, &platform)],
        ),
        case(
            "payment_api_rejects_headers",
            "a typo in the id, beside a certificate, in the file",
            mistyped(),
            &[(CERTIFICATES, &platform)],
        ),
    ]
}

/// The broker, without and with TLS.
fn cases_of_the_broker(at: &Installation) -> Vec<Case> {
    let fine = || at.text.clone();
    let uri = at.broker.uri();
    let (user, address) = uri.split_once('@').unwrap();
    let host = address.split('/').next().unwrap();
    let unknown = uri.replace("127.0.0.1", "no-such-host.invalid");
    let closed = uri.replace(host, "127.0.0.1:1");
    let password = uri.replace('@', "x@");
    let in_file = |uri: &str| at.with(&[("uri", &format!("uri = {uri:?}"))]);
    let by_file = |name: &'static str, uri: &str, id: &'static str, what: &'static str| {
        case(id, what, fine(), &[("REDEEMER_BROKER__URI_FILE", &at.file(name, uri))])
    };
    at.broker.ctl(&["add_user", "nobody", "secret"]);
    let nobody = at.broker.uri_of("nobody", "secret");
    let prefix = format!("\"{}.", at.programs.prefix);
    let fresh = fine().replace(&prefix, &format!("{prefix}fresh."));
    let fresh = fresh.replace("[broker]", "[broker]\ntopology = \"verify\"");
    let mut cases = vec![
        case("broker_host_unknown", "a typo", fine(), &[(URI, &unknown)]),
        case("broker_host_unknown", "a typo, in the file", in_file(&unknown), &[]),
        by_file("unknown.uri", &unknown, "broker_host_unknown", "a typo, in the URI's file"),
        case("broker_refused", "a port of nobody", fine(), &[(URI, &closed)]),
        case("broker_refused", "a port of nobody, in the file", in_file(&closed), &[]),
        case("broker_refused", "a wrong password", fine(), &[(URI, &password)]),
        case("broker_refused", "a wrong password, in the file", in_file(&password), &[]),
        by_file("password.uri", &password, "broker_refused", "a wrong password, in the URI's file"),
        case("broker_refused", "no such virtual host", fine(), &[(URI, &uri.replace("%2f", "nowhere"))]),
        case("broker_uri", "no URI", fine(), &[(URI, user.trim_start_matches("amqp://"))]),
        case("broker_uri", "no URI, in the file", in_file("localhost:5672"), &[]),
        by_file("no.uri", "localhost:5672", "broker_uri", "no URI, in the URI's file"),
        case("permissions", "none", fine(), &[(URI, &nobody)]),
        case("topology_missing", "none", fresh, &[]),
    ];
    let (ca, certificate, key) =
        (at.ours.path("ca.pem"), at.ours.path("client.pem"), at.ours.path("client.key"));
    let secure = at.broker.amqps("localhost");
    let address = secure.split_once('@').unwrap().1.split('/').next().unwrap().to_owned();
    let lines = |lines: &[(&str, &str)]| {
        let line = |(key, value): &(&str, &str)| format!("{key} = {value:?}\n");
        let lines: String = lines.iter().map(line).collect();
        at.with(&[("uri", "")]).replace("[broker]\n", &format!("[broker]\n{lines}"))
    };
    let (ca_file, ours, our_key) =
        (("ca_file", &*ca), ("client_certificate_file", &*certificate), ("client_key_file", &*key));
    let bundle = at.file("bundle.pem", fs::read_to_string(&ca).unwrap().repeat(1_000));
    let by_address = at.broker.amqps("127.0.0.1");
    let plain = uri.replace("amqp://", "amqps://").replace("127.0.0.1", "localhost");
    for (id, what, text) in [
        ("broker_tls", "no CA", lines(&[("uri", &secure), ours, our_key])),
        (
            "broker_tls",
            "another CA",
            lines(&[("uri", &secure), ("ca_file", &at.sandbox("platform_cert.pem")), ours, our_key]),
        ),
        ("broker_tls", "no client certificate", lines(&[("uri", &secure), ca_file])),
        ("broker_tls", "another name", lines(&[("uri", &by_address), ca_file, ours, our_key])),
        ("broker_tls", "the port without TLS", lines(&[("uri", &plain), ca_file, ours, our_key])),
        ("key_too_large", "too many CAs", lines(&[("uri", &secure), ("ca_file", &bundle), ours, our_key])),
    ] {
        let mut case = case(id, what, text, &[]);
        case.knows = vec![("host and port of the broker", address.clone())];
        cases.push(case);
    }
    cases
}

#[test]
fn remedy_typed_as_printed_ends_the_finding() {
    let at = Installation::new();
    let cases: Vec<_> = [cases_of_the_file(&at), cases_of_the_payment_api(&at), cases_of_the_broker(&at)]
        .into_iter()
        .flatten()
        .collect();
    // The two shells take turns at a case.
    let jobs = Mutex::new(cases.iter().enumerate());
    let next = || jobs.lock().unwrap().next();
    let work = || {
        let mut failed = Vec::new();
        while let Some((nth, case)) = next() {
            for shell in ["sh", "bash"] {
                if case.id == "permissions" {
                    at.broker.ctl(&["set_permissions", "nobody", "^$", "^$", "^$"]);
                }
                failed.extend(at.try_case(nth, case, shell).err());
                // Made by the first shell.
                if case.id == "topology_missing" {
                    break;
                }
            }
        }
        failed
    };
    let failed: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n----\n"));
    let typed: BTreeSet<_> = cases.iter().map(|case| case.id).collect();
    every_finding_is_accounted_for(&typed);
    fs::remove_dir_all(&at.dir).unwrap();
}

/// Findings whose remedies are typed by `own_faults.rs`, whose `refused` does so with every fault.
const TYPED_BY_OWN_FAULTS: [&str; 17] = [
    "key_exposed",
    "key_is_folder",
    "key_is_encrypted",
    "key_is_pkcs12",
    "key_is_der",
    "key_is_utf16",
    "key_is_binary",
    "key_is_other_text",
    "key_is_damaged",
    "key_is_certificate_request",
    "key_is_public_key",
    "key_is_private_key",
    "key_is_other_algorithm",
    "key_too_short",
    "key_too_large",
    "serial_not_held",
    "apiv3_key_length",
];

/// Findings whose remedies no machine can type to their end, and why.
const NOT_TYPED: [(&str, &str); 36] = [
    ("tls_unavailable", "this machine has the system's certificates"),
    ("key_hidden_from_service", "needs the user of the service, whom this machine may not have"),
    ("key_disagreement", "no file is known that two libraries read differently"),
    (
        "certificate_not_valid_now",
        "the merchant platform makes the next certificate, and the system sets the clock",
    ),
    ("certificate_expires_soon", "the merchant platform makes the next certificate"),
    ("download_other_answers", "asks for the base URL, as download_unreachable does"),
    ("download_not_offered", "the merchant platform has to give out a public key"),
    ("download_refused", "the provider is to be asked again"),
    ("download_unverified", "shows what answers in the provider's place"),
    ("clock_unknown", "follows from another finding"),
    ("clock_skewed", "sets the clock of the machine"),
    ("payment_api_other_answers", "asks for the base URL, as payment_api_unreachable does"),
    ("payment_api_not_authorized", "the merchant platform grants rights"),
    ("payment_api_rejects_call", "asks for the merchant number, as payment_api_unauthenticated does"),
    ("payment_api_throttled", "the provider is to be asked again"),
    ("payment_api_server_error", "the provider is to be asked again"),
    ("payment_api_signature_malformed", "the provider is to be asked again"),
    ("payment_api_signature_stale", "the provider is to be asked again"),
    ("payment_api_signature_mismatch", "the provider is to be asked again"),
    ("payment_api_signature_replayed", "the provider is to be asked again"),
    ("payment_api_unsigned", "the provider is to be asked again"),
    ("broker_file", "a file that breaks between two readings"),
    ("broker_timed_out", "asks for host and port, as broker_refused does"),
    ("broker_lost", "shows the state of a broker that ends connections"),
    ("broker_frame_max", "changes the broker's machine"),
    ("broker_no_confirms", "shows the broker's alarms"),
    ("broker_may_not_publish", "the command of permissions, which comes first"),
    ("broker_version", "another broker is to be installed"),
    ("broker_settings", "typed in check.rs"),
    ("operator_lock", "the command of permissions, with one right more"),
    ("alarm", "memory and disk of the broker's machine"),
    ("topology", "typed in check.rs"),
    ("arguments", "deletes a queue, which is left to people"),
    ("policy", "typed in check.rs"),
    ("consumer_timeout", "changes the broker's machine"),
    ("message_size", "changes the broker's machine"),
];

/// Every finding is in one of the lists, and nothing else is.
fn every_finding_is_accounted_for(typed: &BTreeSet<&str>) {
    let own_faults = include_str!("own_faults.rs");
    for id in TYPED_BY_OWN_FAULTS {
        assert!(own_faults.contains(&format!("\"{id}\"")), "{id}");
    }
    let others = TYPED_BY_OWN_FAULTS.iter().chain(NOT_TYPED.iter().map(|(id, _)| id));
    let known: BTreeSet<_> = typed.iter().chain(others).copied().collect();
    let all: BTreeSet<_> = redeemer::cli::check::ids::ALL.into_iter().collect();
    assert_eq!(known, all);
}
