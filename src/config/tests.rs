use toml::{Table, Value};

use super::*;

const SHIPPED: &str = include_str!("../../config.toml");

fn read(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigFaults> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    parse(text, "test", environment)
}

fn keys(result: Result<Config, ConfigFaults>) -> Vec<String> {
    result.unwrap_err().0.into_iter().map(|fault| fault.key).collect()
}

#[test]
fn the_shipped_file_holds_every_key_with_its_default() {
    assert_eq!(read(SHIPPED, &[]).unwrap(), Config::default());
    fn leaves(table: &Table, path: &str, into: &mut Vec<String>) {
        for (name, value) in table {
            match value {
                Value::Table(inner) => leaves(inner, &format!("{path}{name}."), into),
                _ => into.push(format!("{path}{name}")),
            }
        }
    }
    let (mut shipped, mut known) = (Vec::new(), Vec::new());
    leaves(&SHIPPED.parse().unwrap(), "", &mut shipped);
    leaves(&Table::try_from(Config::default()).unwrap(), "", &mut known);
    shipped.sort();
    known.sort();
    assert_eq!(shipped, known);
}

#[test]
fn every_key_of_the_shipped_file_has_a_comment_above_it() {
    let lines: Vec<_> = SHIPPED.lines().collect();
    let bare = lines.windows(2).filter(|pair| {
        let key = pair[1].contains(" = ") && !pair[1].starts_with('#');
        key && (pair[0].is_empty() || pair[0].starts_with('['))
    });
    assert_eq!(bare.count(), 0);
}

#[test]
fn the_environment_overrides_the_file() {
    let config = read(
        "[concurrency]\ncommands = 7\n[broker]\nprefetch = 9",
        &[
            ("REDEEMER_BROKER__URI", "amqp://u:p@h/%2f"),
            ("REDEEMER_CONCURRENCY__COMMANDS", "8"),
            ("REDEEMER_BROKER__NAMES__COMMANDS", "t.commands"),
            ("REDEEMER_RETRY__DELAYS", "[\"1s\", \"2s\"]"),
            ("REDEEMER_WECHAT__MCHID", "1900000109"),
            ("REDEEMER_WECHAT__PUBLIC_KEYS__PUB_KEY_ID_01", "key.pem"),
            ("REDEEMER_MERCHANT_KEY", "not a config key"),
            ("PATH", "/bin"),
        ],
    );
    // A merchant number is all digits, and still a text.
    let config = config.unwrap();
    assert_eq!(config.broker.uri, "amqp://u:p@h/%2f");
    assert_eq!((config.concurrency.commands, config.broker.prefetch), (8, 9));
    assert_eq!(config.topology().names.commands, "t.commands");
    assert_eq!(config.retry.delays, [1, 2].map(Span::seconds));
    assert_eq!(config.wechat.mchid, "1900000109");
    assert_eq!(config.wechat.public_keys["PUB_KEY_ID_01"], Path::new("key.pem"));
}

/// The values that a list may have in the environment.
#[test]
fn list_in_the_environment_has_commas_or_toml() {
    let delays =
        |value: &str| read("", &[("REDEEMER_RETRY__DELAYS", value)]).map(|config| config.retry.delays);
    let of = |seconds: &[u64]| seconds.iter().map(|second| Span::seconds(*second)).collect::<Vec<_>>();
    for (value, seconds) in [
        ("10s,1m", &[10, 60][..]),
        (" 10s , 1m, 5m ", &[10, 60, 300]),
        ("10s", &[10]),
        ("", &[]),
        (r#"["10s", "1m"]"#, &[10, 60]),
        ("[]", &[]),
    ] {
        assert_eq!(delays(value).unwrap(), of(seconds), "{value}");
    }
    for value in ["10s;1m", "10s 1m", "10s,", "1m,10s", "5", "10", r#"["10s""#, "[10]", "{}"] {
        let faults = keys(read("", &[("REDEEMER_RETRY__DELAYS", value)]));
        assert!(!faults.is_empty() && faults.iter().all(|key| key == "retry.delays"), "{value}: {faults:?}");
    }
    // A file name with a comma needs TOML.
    let variable = "REDEEMER_WECHAT__PLATFORM_CERTIFICATES";
    let files = |value: &str| read("", &[(variable, value)]).unwrap().wechat.platform_certificates;
    assert_eq!(files("/a.pem, /b.pem"), [PathBuf::from("/a.pem"), "/b.pem".into()]);
    assert_eq!(files(r#"["/a,b.pem"]"#), [PathBuf::from("/a,b.pem")]);
}

#[test]
fn public_keys_in_the_environment_join_those_of_the_file() {
    let text = "[wechat.public_keys]\nPUB_KEY_ID_01 = \"one.pem\"\n";
    let all = "REDEEMER_WECHAT__PUBLIC_KEYS";
    let ids = |environment: &[(&str, &str)]| {
        read(text, environment).map(|config| config.wechat.public_keys.into_keys().collect::<Vec<_>>())
    };
    for (value, expected) in [
        ("PUB_KEY_ID_02=two.pem", &["PUB_KEY_ID_01", "PUB_KEY_ID_02"][..]),
        (
            "PUB_KEY_ID_02=two.pem, PUB_KEY_ID_03=/x=y.pem",
            &["PUB_KEY_ID_01", "PUB_KEY_ID_02", "PUB_KEY_ID_03"],
        ),
        ("PUB_KEY_ID_01=two.pem", &["PUB_KEY_ID_01"]),
        (r#"{PUB_KEY_ID_02 = "two.pem"}"#, &["PUB_KEY_ID_01", "PUB_KEY_ID_02"]),
        ("", &["PUB_KEY_ID_01"]),
    ] {
        assert_eq!(ids(&[(all, value)]).unwrap(), expected, "{value}");
    }
    let own = ("REDEEMER_WECHAT__PUBLIC_KEYS__PUB_KEY_ID_03", "three.pem");
    for environment in [[(all, "PUB_KEY_ID_02=two.pem"), own], [own, (all, "PUB_KEY_ID_02=two.pem")]] {
        assert_eq!(ids(&environment).unwrap().len(), 3, "{environment:?}");
    }
    for value in ["two.pem", "PUB_KEY_ID_02:two.pem", "PUB_KEY_ID_02=two.pem,three.pem", "[1]"] {
        assert_eq!(keys(read(text, &[(all, value)])), ["wechat.public_keys"], "{value}");
    }
    assert_eq!(keys(read(text, &[(all, "0116=two.pem")])), ["wechat.public_keys"]);
}

#[test]
fn value_too_large_for_its_key_is_reported_by_its_name() {
    for (key, value) in [
        ("broker.prefetch", "99999999999"),
        ("broker.delivery_limit", "99999999999"),
        ("rate_limit.calls_per_second", "4294967296"),
        ("retry.attempts_max", "4294967296"),
    ] {
        let variable = format!("REDEEMER_{}", key.to_uppercase().replace('.', "__"));
        assert_eq!(keys(read("", &[(&variable, value)])), [key]);
    }
}

#[test]
fn all_faults_are_reported_at_once_by_the_name_of_the_key() {
    let text = r#"
        surprise = 1
        [broker]
        prefetch = "many"
        uri = 5
        heartbeat = "soon"
        [broker.names]
        comands = "x"
        [concurrency]
        commands = -1
        [retry]
        delays = ["1s", 2]
        multiplier = 2
    "#;
    let mut found = keys(read(text, &[]));
    found.sort();
    assert_eq!(
        found,
        [
            "broker.heartbeat",
            "broker.names.comands",
            "broker.prefetch",
            "broker.uri",
            "concurrency.commands",
            "retry.delays",
            "surprise",
        ]
    );
    let ranges = "[broker]\nprefetch = 0\ntopology = \"maybe\"\n[retry]\ndelays = [\"2s\", \"1s\"]\njitter = 3.0\n\
         query_delay = \"5s\"\n";
    assert_eq!(
        keys(read(ranges, &[])),
        [
            "broker.prefetch",
            "broker.topology",
            "retry.initial, retry.multiplier, retry.jitter, retry.max_interval",
            "retry.delays",
            "retry.in_process_max",
        ]
    );
}

/// While calls are suspended a command waits in the shortest queue, also at its deadline.
#[test]
fn shortest_delay_is_bounded() {
    let fault = read("[retry]\ndelays = [\"31s\", \"1m\"]\n", &[]).unwrap_err().to_string();
    assert!(fault.contains("retry.delays") && fault.contains("30s"), "{fault}");
    for delays in ["[\"30s\", \"24h\"]", "[]"] {
        read(&format!("[retry]\ndelays = {delays}\n"), &[]).unwrap();
    }
}

#[test]
fn a_fault_of_syntax_names_the_line_and_quotes_nothing() {
    let fault = read("[broker]\nuri = \"amqp://u:geheim@h\n", &[]).unwrap_err();
    assert!(fault.to_string().contains("line 2"), "{fault}");
    assert!(!fault.to_string().contains("geheim"), "{fault}");
}

#[test]
fn what_must_be_set_is_reported_by_name() {
    let faults = Config::default().wechat_settings().unwrap_err();
    let keys: Vec<_> = faults.0.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(keys, ["wechat.mchid", "wechat.merchant_serial"]);
}
