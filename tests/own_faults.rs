//! Faults of our own, as an integrator makes them on the first day: key material in every form that tools and editors
//! leave behind, serials as people copy them, files that the wrong people may read. `check` names each of them, `run`
//! refuses to start for the same ones, and what `check` says helps.

#![allow(clippy::unwrap_used)] // in the helpers too

#[path = "support/programs.rs"]
mod programs;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use programs::{err, out, redeemer, run, unused_dir};
use serde_json::Value;

const MERCHANT_KEY: &str = "REDEEMER_WECHAT__MERCHANT_KEY_FILE";
const KEY_ITSELF: &str = "REDEEMER_MERCHANT_KEY";
const PUBLIC_KEY: &str = "REDEEMER_WECHAT__PUBLIC_KEYS__PUB_KEY_ID_01";
const CERTIFICATES: &str = "REDEEMER_WECHAT__PLATFORM_CERTIFICATES";
const OWN_CERTIFICATE: &str = "REDEEMER_WECHAT__MERCHANT_CERTIFICATE_FILE";
const OWN_SERIAL: &str = "REDEEMER_WECHAT__MERCHANT_SERIAL";
const SERIAL: &str = "5157F09EFDC096DE15EBE81A47057A7232F1B8E1";

/// Key material made by openssl, and a configuration of it alone: nothing answers where broker and payment API are.
struct Bench {
    dir: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: unused_dir("own-faults") };
        for (key, name) in [("key.pem", "merchant"), ("wechat.pem", "wechat")] {
            bench.openssl(&format!("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out {key}"));
            bench.openssl(&format!("pkey -in {key} -pubout -out {name}_public.pem"));
            let serial = format!("0x{SERIAL}");
            bench.openssl(&format!(
                "req -x509 -new -key {key} -sha256 -days 90 -subj /CN={name} -set_serial {serial} -out {name}_certificate.pem"
            ));
        }
        bench.close("key.pem");
        bench
    }

    fn openssl(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        let ran =
            command.args(arguments.split(' ')).current_dir(&self.dir).stdin(Stdio::null()).output().unwrap();
        assert!(ran.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&ran.stderr));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn at(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Writes a file that nobody else may read.
    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.close(name);
        self.at(name)
    }

    fn close(&self, name: &str) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn command(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
        let mut command = redeemer();
        command.args(arguments).current_dir(&self.dir).envs([
            ("REDEEMER_BROKER__URI", "amqp://u:p@127.0.0.1:1/%2f"),
            ("REDEEMER_WECHAT__BASE_URL", "http://127.0.0.1:1"),
            ("REDEEMER_WECHAT__BACKUP_BASE_URL", ""),
            ("REDEEMER_WECHAT__MCHID", "1900000109"),
            ("REDEEMER_ADMIN__LISTEN", "127.0.0.1:0"),
            (OWN_SERIAL, SERIAL),
        ]);
        command.env(MERCHANT_KEY, self.path("key.pem")).env(PUBLIC_KEY, self.path("wechat_public.pem"));
        for (name, value) in environment {
            match *value {
                "(unset)" => command.env_remove(name),
                value => command.env(name, value),
            };
        }
        command
    }

    /// The faults of keys and configuration: id, detail and remedy; and the exit code.
    fn check(&self, environment: &[(&str, &str)]) -> (Vec<[String; 3]>, Option<i32>) {
        let output = run(&mut self.command(&["check", "--json"], environment));
        let findings: Vec<Value> =
            out(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let is_meant = |finding: &&Value| {
            finding["gravity"] == "fault"
                && matches!(finding["what"].as_str(), Some("keys" | "configuration"))
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let faults = findings.iter().filter(is_meant);
        let faults = faults.map(|one| ["id", "detail", "remedy"].map(|name| text(&one[name]))).collect();
        (faults, output.status.code())
    }

    /// `check` has this one fault, and `run` refuses to start.
    fn refused(&self, environment: &[(&str, &str)], id: &str) -> [String; 3] {
        let (mut faults, code) = self.check(environment);
        let ids: Vec<_> = faults.iter().map(|[id, ..]| id.as_str()).collect();
        assert_eq!(ids, [id], "{faults:#?}");
        assert!(matches!(code, Some(3 | 4)), "{code:?}");
        let started = run(&mut self.command(&["run"], environment));
        assert_eq!(started.status.code(), Some(3), "{id}: {}", err(&started));
        faults.remove(0)
    }

    fn accepted(&self, environment: &[(&str, &str)], what: &str) {
        let (faults, _) = self.check(environment);
        assert!(faults.is_empty(), "{what}: {faults:#?}");
    }

    /// Types a remedy as it is printed, and gives the variables that it sets.
    fn type_in(&self, remedy: &str) -> Vec<(String, String)> {
        let script = format!("set -e\n{remedy}\nenv -0");
        let mut shell = Command::new("bash");
        let shell = shell.args(["-c", &script]).current_dir(&self.dir).stdin(Stdio::null());
        let ran = shell.output().unwrap();
        assert!(ran.status.success(), "{remedy}: {}", String::from_utf8_lossy(&ran.stderr));
        let printed = String::from_utf8_lossy(&ran.stdout).into_owned();
        let variables = printed.split('\0').filter_map(|line| line.trim_start().split_once('='));
        let ours = variables.filter(|(name, _)| name.starts_with("REDEEMER_"));
        ours.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The same block in every form that is read, by name.
fn forms(pem: &str) -> Vec<(&'static str, String)> {
    let mut lines = pem.trim().lines();
    let (begin, end) = (lines.next().unwrap(), lines.next_back().unwrap());
    let body: String = lines.collect();
    let of_width = |width: usize| {
        let lines = body.as_bytes().chunks(width).map(|line| String::from_utf8_lossy(line).into_owned());
        format!("{begin}\n{}\n{end}\n", lines.collect::<Vec<_>>().join("\n"))
    };
    vec![
        ("a byte order mark", format!("\u{feff}{pem}")),
        ("CRLF", pem.replace('\n', "\r\n")),
        ("CR alone", pem.replace('\n', "\r")),
        ("one line", format!("{begin}{body}{end}")),
        ("one line with blanks", pem.trim().replace('\n', " ")),
        ("short lines", of_width(48)),
        ("long lines", of_width(76)),
        ("trailing blanks", pem.replace('\n', " \t\n")),
        ("blank lines", pem.replace('\n', "\n\n")),
        ("indented", pem.replace('\n', "\n    ")),
        (
            "text around",
            format!("Bag Attributes\n    friendlyName: x\nKey Attributes: <No Attributes>\n{pem}the end\n"),
        ),
        ("line feeds spelled out", pem.replace('\n', "\\n")),
        ("line feeds spelled out, in quotes", format!("\"{}\"", pem.replace('\n', "\\r\\n"))),
        ("zero-width spaces", pem.replace('\n', "\u{200b}\n")),
        ("Base64 alone", body),
    ]
}

#[test]
fn key_material_is_read_in_every_form() {
    let bench = Bench::new();
    bench.openssl("rsa -in key.pem -traditional -out pkcs1.pem");
    bench.openssl("rsa -in wechat.pem -RSAPublicKey_out -out pkcs1_public.pem");
    assert!(
        bench.text("pkcs1.pem").contains("BEGIN RSA") && bench.text("pkcs1_public.pem").contains("BEGIN RSA")
    );
    for name in ["key.pem", "pkcs1.pem"] {
        for (form, text) in forms(&bench.text(name)) {
            let file = bench.write("form.pem", &text);
            bench.accepted(&[(MERCHANT_KEY, &file)], &format!("{name}: {form}"));
            bench.accepted(
                &[(MERCHANT_KEY, ""), (KEY_ITSELF, &text)],
                &format!("{name} in the environment: {form}"),
            );
        }
    }
    for name in ["wechat_public.pem", "pkcs1_public.pem"] {
        for (form, text) in forms(&bench.text(name)) {
            bench.accepted(&[(PUBLIC_KEY, &bench.write("form.pem", text))], &format!("{name}: {form}"));
        }
    }
    for (form, text) in forms(&bench.text("wechat_certificate.pem")) {
        let list = format!("[{:?}]", bench.write("form.pem", text));
        bench.accepted(&[(PUBLIC_KEY, "(unset)"), (CERTIFICATES, &list)], form);
    }
    // The label of one form above the content of the other.
    let swapped = bench.text("pkcs1.pem").replace("RSA PRIVATE", "PRIVATE");
    bench.accepted(&[(MERCHANT_KEY, &bench.write("form.pem", swapped))], "PKCS#1 below the label of PKCS#8");
    let swapped = bench.text("key.pem").replace("PRIVATE KEY", "RSA PRIVATE KEY");
    bench.accepted(&[(MERCHANT_KEY, &bench.write("form.pem", swapped))], "PKCS#8 below the label of PKCS#1");
    // A bundle: the certificate before the key.
    let both = bench.text("merchant_certificate.pem") + &bench.text("key.pem");
    bench.accepted(&[(MERCHANT_KEY, &bench.write("form.pem", both))], "certificate and key");
}

#[test]
fn every_certificate_of_a_file_is_read() {
    let bench = Bench::new();
    let mut all = String::new();
    for nth in 1..=3 {
        let files =
            format!("-key wechat.pem -sha256 -days 90 -subj /CN=wechat -set_serial 0xAB{nth} -out one.pem");
        bench.openssl(&format!("req -x509 -new {files}"));
        all += &bench.text("one.pem");
    }
    let list = format!("[{:?}]", bench.write("all.pem", all));
    let output = run(&mut bench.command(&["check"], &[(CERTIFICATES, &list), (PUBLIC_KEY, "(unset)")]));
    for serial in ["0AB1", "0AB2", "0AB3"] {
        assert!(out(&output).contains(&format!("platform certificate {serial}, valid")), "{}", out(&output));
    }
}

/// What is no key of the expected kind, in the place of each kind: its id, and whether its remedy, typed as printed, helps.
#[test]
fn key_material_that_cannot_be_read_is_named_for_what_it_is() {
    let bench = Bench::new();
    bench.openssl("pkcs8 -topk8 -in key.pem -passout pass:geheim -out encrypted.pem");
    bench.openssl("rsa -in key.pem -traditional -aes128 -passout pass:geheim -out encrypted_pkcs1.pem");
    bench.openssl(
        "pkcs12 -export -inkey key.pem -in merchant_certificate.pem -passout pass:geheim -out bundle.p12",
    );
    bench.openssl("pkey -in key.pem -outform DER -out key.der");
    bench.openssl("pkcs8 -topk8 -in key.pem -passout pass:geheim -outform DER -out encrypted.der");
    bench.openssl("pkey -pubin -in wechat_public.pem -outform DER -out public.der");
    bench.openssl("x509 -in wechat_certificate.pem -outform DER -out certificate.der");
    bench.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.pem");
    bench.openssl("ec -in ec.pem -out ec_sec1.pem");
    bench.openssl("req -new -key key.pem -subj /CN=x -out request.pem");
    let utf16 = |text: &str| -> Vec<u8> {
        [0xff, 0xfe].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect()
    };
    bench.write("utf16.pem", utf16(&bench.text("key.pem")));
    bench.write("utf16_public.pem", utf16(&bench.text("wechat_public.pem")));
    bench.write("cut.pem", &bench.text("key.pem")[..600]);
    bench.write("torn.pem", bench.text("key.pem").replacen('M', "*", 1));
    bench.write("empty.pem", "");
    bench.write("blank.pem", " \r\n\t\n\u{feff}");
    bench.write("words.pem", "see the wiki\n");
    bench.write("noise.pem", [0xfe, 0xed, 0xfe, 0xed, 0, 1, 2, 0x80]);
    fs::create_dir(bench.path("folder.pem")).unwrap();

    let key = |name: &str, id: &str, helps: bool| {
        if !name.starts_with("folder") {
            bench.close(name);
        }
        let at = bench.at(name);
        let [_, detail, remedy] = bench.refused(&[(MERCHANT_KEY, &at)], id);
        assert!(
            detail.contains("wechat.merchant_key_file") && !remedy.contains("chmod 600"),
            "{detail}: {remedy}"
        );
        assert!(!remedy.contains("head "), "{remedy}");
        if helps {
            let set = bench.type_in(&remedy);
            let set: Vec<_> = set.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            bench.accepted(&set, &format!("{name}: {remedy}"));
            let mode = fs::metadata(set[0].1).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{remedy}");
        }
    };
    key("key.der", "key_is_der", true);
    key("utf16.pem", "key_is_utf16", true);
    key("encrypted.pem", "key_is_encrypted", false);
    key("encrypted_pkcs1.pem", "key_is_encrypted", false);
    key("encrypted.der", "key_is_encrypted", false);
    key("bundle.p12", "key_is_pkcs12", false);
    key("merchant_certificate.pem", "key_is_certificate", false);
    key("merchant_public.pem", "key_is_public_key", false);
    key("request.pem", "key_is_certificate_request", false);
    key("ec.pem", "key_is_other_algorithm", false);
    key("ec_sec1.pem", "key_is_other_algorithm", false);
    key("cut.pem", "key_is_damaged", false);
    key("torn.pem", "key_is_damaged", false);
    key("empty.pem", "key_is_empty", false);
    key("blank.pem", "key_is_empty", false);
    key("words.pem", "key_is_other_text", false);
    key("noise.pem", "key_is_binary", false);
    key("folder.pem", "key_is_folder", false);

    let public = |name: &str, id: &str, helps: bool| {
        let at = bench.at(name);
        let [_, _, remedy] = bench.refused(&[(PUBLIC_KEY, &at)], id);
        if helps {
            let set = bench.type_in(&remedy);
            let set: Vec<_> = set.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            bench.accepted(&set, &format!("{name}: {remedy}"));
        }
    };
    public("public.der", "key_is_der", true);
    public("utf16_public.pem", "key_is_utf16", true);
    public("wechat_certificate.pem", "key_is_certificate", false);
    public("wechat.pem", "key_is_private_key", false);
    public("empty.pem", "key_is_empty", false);
    public("folder.pem", "key_is_folder", false);
    public("merchant_public.pem", "key_is_our_own", false);

    let certificate = |name: &str, id: &str| {
        let list = format!("[{:?}]", bench.at(name));
        bench.refused(&[(CERTIFICATES, &list)], id);
    };
    certificate("certificate.der", "key_is_der");
    certificate("wechat_public.pem", "key_is_public_key");
    certificate("key.pem", "key_is_private_key");
    certificate("bundle.p12", "key_is_pkcs12");
    certificate("words.pem", "key_is_other_text");
    certificate("merchant_certificate.pem", "key_is_our_own");
    // The key in the environment has no file to convert.
    let cut = bench.text("cut.pem");
    let [_, _, remedy] = bench.refused(&[(MERCHANT_KEY, ""), (KEY_ITSELF, &cut)], "key_is_damaged");
    assert!(remedy.starts_with("export REDEEMER_MERCHANT_KEY=\"$(cat "), "{remedy}");
}

#[test]
fn serials_and_ids_are_told_as_people_copy_them() {
    let bench = Bench::new();
    let certificate = bench.at("merchant_certificate.pem");
    let other = bench.at("wechat_certificate.pem");
    let pub_key = bench.at("wechat_public.pem");
    for serial in ["", "5157F09E", &SERIAL[..39], &format!("{SERIAL}0"), &SERIAL.replace('5', "S"), "x"] {
        bench.refused(&[(OWN_SERIAL, serial)], "config_value");
    }
    for serial in [
        format!(" {SERIAL}"),
        format!("{SERIAL}\u{200b}"),
        SERIAL.replace("57", "57 "),
        format!("{SERIAL}\n"),
    ] {
        bench.refused(&[(OWN_SERIAL, &serial)], "config_value");
    }
    bench.accepted(&[(OWN_SERIAL, &SERIAL.to_lowercase()), (OWN_CERTIFICATE, &certificate)], "small letters");
    bench.accepted(&[(OWN_SERIAL, ""), (OWN_CERTIFICATE, &certificate)], "its certificate alone");
    let another = SERIAL.replace('5', "6");
    bench
        .refused(&[(OWN_SERIAL, &another), (OWN_CERTIFICATE, &certificate)], "serial_of_another_certificate");
    bench.refused(&[(OWN_CERTIFICATE, &other)], "certificate_of_another_key");
    for id in [
        "0116000001",
        "KEY_ID_01",
        "PUB_KEY_ID_",
        "PUB_KEY_ID_01 ",
        "PUB_KEY_ID_0\u{200b}1",
        "PUB_KEY_ID_0-1",
        SERIAL,
    ] {
        let name = format!("REDEEMER_WECHAT__PUBLIC_KEYS__{id}");
        bench.refused(&[(&name, &pub_key)], "config_value");
    }
    let asked = "REDEEMER_WECHAT__VERIFICATION_SERIAL";
    bench.accepted(&[(asked, "PUB_KEY_ID_01")], "a key that is held");
    for serial in ["PUB_KEY_ID_02", SERIAL, "ABCDEF"] {
        bench.refused(&[(asked, serial)], "serial_not_held");
    }
    for serial in ["01", "PUB_KEY_ID_01 ", "PUB_KEY_ID_0\u{feff}1", "pub_key_id_01", "PUB_KEY_ID"] {
        bench.refused(&[(asked, serial)], if serial == "01" { "serial_not_held" } else { "config_value" });
    }
}

/// `key.pem` as root lends it to the group of the service, read as this user and these groups.
fn check_as(bench: &Bench, user: &[&str]) -> (Vec<String>, String) {
    let program = bench.path("redeemer");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_redeemer"), &program).unwrap();
    }
    let inner = bench.command(&["check", "--json"], &[]);
    let mut command = Command::new("setpriv");
    command.args(user).arg(&program).args(inner.get_args());
    command
        .env_clear()
        .current_dir("/")
        .envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = run(&mut command);
    let findings = out(&output);
    assert!(!findings.is_empty(), "{}", err(&output));
    let findings: Vec<Value> = findings.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let keys: Vec<_> =
        findings.iter().filter(|one| one["what"] == "keys" && one["gravity"] == "fault").collect();
    let remedy = keys.first().map(|one| one["remedy"].as_str().unwrap().to_owned()).unwrap_or_default();
    (keys.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect(), remedy)
}

/// As the unit's comment installs it, and as people do; for root, the service, and an operator with its group.
#[test]
fn secret_that_root_lends_to_the_service_is_fine_for_all_who_need_it() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT shown: only root can give a file to another user");
        return;
    }
    const GROUP: u32 = 64_990;
    let mut bench = Bench::new();
    // Where others than root can go.
    let open = std::env::temp_dir().join(format!("redeemer-lent-{}", std::process::id()));
    fs::rename(&bench.dir, &open).or_else(|_| copy_folder(&bench.dir, &open)).unwrap();
    bench.dir = open;
    fs::set_permissions(&bench.dir, fs::Permissions::from_mode(0o755)).unwrap();
    let root: &[&str] = &["--reuid=0"];
    let service: &[&str] = &["--reuid=64990", "--regid=64990", "--clear-groups"];
    let operator: &[&str] = &["--reuid=64991", "--regid=64991", "--groups=64990"];
    let stranger: &[&str] = &["--reuid=64992", "--regid=64992", "--clear-groups"];
    let key = bench.path("key.pem");
    let give = |uid: u32, gid: u32, mode: u32| {
        std::os::unix::fs::chown(&key, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    };
    let fine = |user: &[&str]| assert_eq!(check_as(&bench, user).0, [] as [&str; 0], "{user:?}");
    let told = |user: &[&str], id: &str| {
        let (ids, remedy) = check_as(&bench, user);
        assert_eq!(ids, [id], "{user:?}: {remedy}");
        remedy
    };
    for mode in [0o640, 0o440] {
        give(0, GROUP, mode);
        [root, service, operator].into_iter().for_each(fine);
        told(stranger, "key_unreadable");
    }
    give(GROUP, GROUP, 0o600);
    [root, service].into_iter().for_each(fine);
    told(operator, "key_unreadable");
    // Whatever is wrong, the remedy, typed by root, leaves the service the right to read, and the operator's check agrees.
    for (uid, gid, mode) in [
        (0, GROUP, 0o644),
        (0, GROUP, 0o660),
        (0, GROUP, 0o646),
        (GROUP, GROUP, 0o640),
        (GROUP, GROUP, 0o644),
    ] {
        give(uid, gid, mode);
        let remedy = told(root, "key_exposed");
        if remedy.contains("root:redeemer") {
            // This machine has such a group, and the service here is of another one.
            continue;
        }
        bench.type_in(&remedy);
        fine(root);
        fine(service);
    }
    give(GROUP, GROUP, 0o644);
    bench.type_in(&told(service, "key_exposed"));
    fine(service);
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    fs::remove_dir_all(from)
}
