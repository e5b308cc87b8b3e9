//! Faults of our own, as an integrator makes them on the first day: key material in every form that context and editors
//! leave behind, serials as people copy them, files that the wrong people may read. `check` names each of them, `run`
//! refuses to start for the same ones, and what `check` says helps.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::broker;
use crate::programs::{self, Programs, err, out, redeemer, run, unused_dir};
use crate::typed;
use serde_json::{Value, json};

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
        let bench = Self { dir: unused_dir("own faults") };
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
        let reported = faults.remove(0);
        self.try_remedy(environment, &reported);
        reported
    }

    /// What somebody answers who has what a remedy asks for.
    fn answers(&self, remedy: &str) -> String {
        let answers = typed::answers(remedy, |question| {
            Some(match question {
                "wechat.merchant_key_file" | "file with the merchant key" => self.at("key.pem"),
                "wechat.merchant_certificate_file"
                | "file of the merchant API certificate (apiclient_cert.pem)" => {
                    self.at("merchant_certificate.pem")
                }
                "wechat.platform_certificates" => self.at("wechat_certificate.pem"),
                "wechat.verification_serial" => "PUB_KEY_ID_01".to_owned(),
                "wechat.apiv3_key_file" => self.at("apiv3.txt"),
                "APIv3 key, 32 characters" => "0123456789abcdef0123456789abcdef".to_owned(),
                "broker.prefetch" => "200".to_owned(),
                "admin.listen" => "127.0.0.1:0".to_owned(),
                "telemetry.otlp_endpoint" => "http://127.0.0.1:1".to_owned(),
                "id of the public key (PUB_KEY_ID_...)" => "PUB_KEY_ID_03".to_owned(),
                "its file" => self.at("wechat_public.pem"),
                "passphrase of the key" | "password of the bundle (the merchant number)" => {
                    "geheim".to_owned()
                }
                question if question.starts_with("wechat.public_keys.") => self.at("wechat_public.pem"),
                question if question.starts_with("instead of ") => self.at("wechat_certificate.pem"),
                _ => return None,
            })
        });
        answers.unwrap_or_else(|question| panic!("nobody knows {question:?}: {remedy}"))
    }

    /// Types a remedy as it is printed, if the fault was found, and answers what it asks: then the fault is gone.
    fn try_remedy(&self, environment: &[(&str, &str)], [id, _, remedy]: &[String; 3]) {
        let before = self.files();
        let (variables, code) = self.type_at(environment, remedy, &self.answers(remedy));
        let made: Vec<_> = self.files().into_keys().filter(|path| !before.contains_key(path)).collect();
        assert_eq!(code, Some(0), "{id}: {remedy}");
        if id == "key_too_short" {
            // The first step: what follows is done by people.
            made.iter().for_each(|path| fs::remove_file(path).unwrap());
            return assert_eq!(made, [self.path("apiclient_key.new.pem")]);
        }
        let after: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let unset = environment.iter().filter(|(name, _)| after.iter().all(|(set, _)| set != name));
        let unset: Vec<_> = unset.map(|(name, _)| (*name, "(unset)")).collect();
        let (faults, _) = self.check(&[after, unset].concat());
        assert!(faults.is_empty(), "{id} after {remedy}: {faults:#?}");
        for path in made {
            // For the same readers as what it is made of.
            if let Some((_, mode)) = before.get(&path.with_extension("")) {
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, *mode, "{remedy}");
            }
            fs::remove_file(path).unwrap();
        }
        for (path, (content, mode)) in before {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    /// Every file of the folder, with content and mode.
    fn files(&self) -> BTreeMap<PathBuf, (Vec<u8>, u32)> {
        let paths = fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().path());
        let files = paths.filter(|path| path.is_file());
        let read = |path: PathBuf| {
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            (path.clone(), (fs::read(path).unwrap(), mode))
        };
        files.map(read).collect()
    }

    fn accepted(&self, environment: &[(&str, &str)], what: &str) {
        let (faults, _) = self.check(environment);
        assert!(faults.is_empty(), "{what}: {faults:#?}");
    }

    /// Types a remedy as it is printed, and gives the variables that it sets.
    fn type_in(&self, remedy: &str) -> Vec<(String, String)> {
        let script = format!("set -e\n{remedy}\nprintf '\\0'; env -0");
        let mut shell = Command::new("sh");
        let shell = shell.args(["-c", &script]).current_dir(&self.dir).stdin(Stdio::null());
        let ran = shell.output().unwrap();
        assert!(ran.status.success(), "{remedy}: {}", String::from_utf8_lossy(&ran.stderr));
        typed::variables(&ran.stdout)
    }

    /// Types a remedy in a shell that has the environment of the fault, and answers what it asks. Gives the variables that are
    /// set afterwards, and the exit code of the last command.
    fn type_at(
        &self,
        environment: &[(&str, &str)],
        remedy: &str,
        answers: &str,
    ) -> (Vec<(String, String)>, Option<i32>) {
        let inner = self.command(&[], environment);
        let mut shell = typed::shell("sh", remedy);
        shell.current_dir(&self.dir).env_remove(PUBLIC_KEY);
        shell.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let (ran, variables) = typed::run(shell, answers);
        let printed = format!("{}{}", String::from_utf8_lossy(&ran.stdout), err(&ran));
        assert!(!printed.contains("geheim"), "{remedy} shows a secret: {printed}");
        (variables, ran.status.code())
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
    // Text around a block in whatever encoding: names of the platform's archive in GBK, a note in Latin-1.
    let named = |bytes: &[u8], name: &str| [bytes, b"\n", bench.text(name).as_bytes(), bytes].concat();
    for bytes in [&b"friendlyName: \xcc\xda\xd1\xb6"[..], b"cl\xe9 priv\xe9e", b"\xff"] {
        let file = bench.write("form.pem", named(bytes, "key.pem"));
        bench.accepted(&[(MERCHANT_KEY, &file)], "a key among other bytes");
        let file = bench.write("form.pem", named(bytes, "wechat_public.pem"));
        bench.accepted(&[(PUBLIC_KEY, &file)], "a public key among other bytes");
    }
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

/// As many as a machine trusts, with the one that matters at the end.
#[test]
fn bundle_of_authorities_is_read_to_its_end() {
    let bench = Bench::new();
    let one = bench.text("merchant_certificate.pem");
    let bundle = |bytes: usize| one.repeat(bytes / one.len()) + &bench.text("wechat_certificate.pem");
    let client = [("REDEEMER_BROKER__URI", "amqps://u:p@127.0.0.1:1/%2f")];
    for (bytes, id) in [(100_000, ""), (219_000, ""), (1_000_000, ""), (1_100_000, "key_too_large")] {
        let file = bench.write("authorities.pem", bundle(bytes));
        let output = run(&mut bench
            .command(&["check", "--json"], &[client[0], ("REDEEMER_BROKER__CA_FILE", file.as_str())]));
        let found: Vec<Value> =
            out(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of_file = found.iter().filter(|one| one["detail"].as_str().unwrap().contains("broker.ca_file"));
        let ids: Vec<_> = of_file.map(|one| one["id"].as_str().unwrap()).collect();
        assert_eq!(ids.join(", "), id, "{bytes}: {found:#?}");
        // The last one counts: as platform certificates, the merchant's own before it are faults, and it is not among them.
    }
    let list = format!("[{:?}]", bench.write("authorities.pem", bundle(219_000)));
    let (faults, _) = bench.check(&[(CERTIFICATES, &list)]);
    assert!(faults.iter().all(|[id, ..]| id == "key_is_our_own") && !faults.is_empty(), "{faults:#?}");
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
    // What stands beside a key that cannot be used says less.
    for (name, beside) in
        [("encrypted.pem", "beside_encrypted.pem"), ("encrypted_pkcs1.pem", "beside_pkcs1.pem")]
    {
        bench.write(beside, bench.text("merchant_certificate.pem") + &bench.text(name));
        key(beside, "key_is_encrypted", false);
        fs::set_permissions(bench.path(beside), fs::Permissions::from_mode(0o644)).unwrap();
        // That others may read it comes first; which key it is comes once that is fixed.
        let (faults, _) = bench.check(&[(MERCHANT_KEY, &bench.at(beside))]);
        assert!(matches!(&faults[..], [[id, ..]] if id == "key_exposed"), "{faults:#?}");
    }
    bench.write("beside_ec.pem", bench.text("merchant_certificate.pem") + &bench.text("ec_sec1.pem"));
    key("beside_ec.pem", "key_is_other_algorithm", false);
    bench.write("huge.pem", "x".repeat(64 * 1024) + &bench.text("key.pem"));
    key("huge.pem", "key_too_large", false);
    key("merchant_certificate.pem", "key_is_certificate", false);
    key("merchant_public.pem", "key_is_public_key", false);
    // That others may read it is beside the point.
    fs::set_permissions(bench.path("merchant_certificate.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let open = bench.at("merchant_certificate.pem");
    bench.refused(&[(MERCHANT_KEY, &open)], "key_is_certificate");
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
    public("key.der", "key_is_der", false);
    public("certificate.der", "key_is_der", false);
    public("encrypted.pem", "key_is_encrypted", false);
    public("encrypted.der", "key_is_encrypted", false);
    public("bundle.p12", "key_is_pkcs12", false);
    public("request.pem", "key_is_certificate_request", false);
    public("ec.pem", "key_is_private_key", false);
    public("noise.pem", "key_is_binary", false);
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
    certificate("public.der", "key_is_der");
    certificate("encrypted.pem", "key_is_encrypted");
    certificate("request.pem", "key_is_certificate_request");
    certificate("words.pem", "key_is_other_text");
    certificate("merchant_certificate.pem", "key_is_our_own");
    // The remedy is about the list, whatever else names the same file.
    let (own, list) =
        (bench.at("merchant_certificate.pem"), format!("[{:?}]", bench.at("merchant_certificate.pem")));
    let [_, detail, remedy] =
        bench.refused(&[(CERTIFICATES, &list), (OWN_CERTIFICATE, &own)], "key_is_our_own");
    assert!(
        detail.starts_with("wechat.platform_certificates: ") && !remedy.contains("MERCHANT"),
        "{detail}: {remedy}"
    );
    // Where its own certificate is expected, the bundle is what has it.
    let bundle = bench.at("bundle.p12");
    bench.refused(&[(OWN_CERTIFICATE, &bundle)], "key_is_pkcs12");
    // One of several, of which the others stay.
    let several = format!("[{:?}, {:?}]", bench.at("wechat_certificate.pem"), bench.at("certificate.der"));
    let [_, _, remedy] = bench.refused(&[(CERTIFICATES, &several)], "key_is_der");
    assert!(remedy.contains("wechat_certificate.pem"), "{remedy}");
    // As the merchant platform packs it, if this machine has the old algorithms.
    let mut pack = Command::new("openssl");
    pack.args(["pkcs12", "-export", "-legacy", "-inkey", "key.pem", "-in", "merchant_certificate.pem"]);
    pack.args(["-passout", "pass:geheim", "-out", "legacy.p12"]).current_dir(&bench.dir);
    if pack.output().unwrap().status.success() {
        key("legacy.p12", "key_is_pkcs12", false);
    }
    // The key in the environment has no file to convert.
    let encrypted = bench.text("encrypted.pem");
    bench.refused(&[(MERCHANT_KEY, ""), (KEY_ITSELF, &encrypted)], "key_is_encrypted");
    fs::copy(bench.path("key.pem"), bench.path("apiclient_key.pem")).unwrap();
    let cut = bench.text("cut.pem");
    let [_, _, remedy] = bench.refused(&[(MERCHANT_KEY, ""), (KEY_ITSELF, &cut)], "key_is_damaged");
    assert!(remedy.contains("export REDEEMER_MERCHANT_KEY=\"$(cat "), "{remedy}");
}

#[test]
fn serials_and_ids_are_reported_as_people_copy_them() {
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
    for (id, meant) in [
        ("0116000001", "PUB_KEY_ID_0116000001"),
        ("KEY_ID_02", "PUB_KEY_ID_02"),
        ("PUB_KEY_ID_", "read -r ID"),
        ("PUB_KEY_ID_02 ", "PUB_KEY_ID_02"),
        ("PUB_KEY_ID_0\u{200b}2", "PUB_KEY_ID_02"),
        ("PUB_KEY_ID_0-2", "read -r ID"),
        (SERIAL, "read -r ID"),
        ("0f1e2d3c4b5a69788796a5b4c3d2e1f0", "read -r ID"),
    ] {
        let name = format!("REDEEMER_WECHAT__PUBLIC_KEYS__{id}");
        // Beside a key that is named as it should be, and alone.
        for environment in [&[(&*name, &*pub_key)][..], &[(&*name, &*pub_key), (PUBLIC_KEY, "(unset)")]] {
            let [_, detail, remedy] = bench.refused(environment, "config_value");
            assert!(detail.starts_with("wechat.public_keys: ") && remedy.contains(meant), "{id}: {remedy}");
            assert!(!format!("{detail}{remedy}").contains("0f1e2d3c4b5a69788796a5b4c3d2e1f0"), "{remedy}");
        }
        // In the file, while the environment names another one: the line is named, and nothing of the environment is.
        let text =
            format!("[admin]\nlisten = \"127.0.0.1:0\"\n\n[wechat.public_keys]\n\"{id}\" = {pub_key:?}\n");
        let file = bench.write("redeemer.toml", text);
        let [_, _, remedy] = bench.refused(&[("REDEEMER_CONFIG", &file)], "config_value");
        assert!(remedy.contains("sed -i \"5s|") && !remedy.contains("REDEEMER_WECHAT"), "{id}: {remedy}");
    }
    // A platform certificate is no public key, under whatever name: it moves to the list.
    let named = "REDEEMER_WECHAT__PUBLIC_KEYS__0A0B";
    let [_, _, remedy] = bench.refused(&[(named, &other)], "config_value");
    assert!(remedy.contains("PLATFORM_CERTIFICATES="), "{remedy}");
    let asked = "REDEEMER_WECHAT__VERIFICATION_SERIAL";
    bench.accepted(&[(asked, "PUB_KEY_ID_01")], "a key that is held");
    for serial in ["PUB_KEY_ID_02", SERIAL, "ABCDEF"] {
        bench.refused(&[(asked, serial)], "serial_not_held");
    }
    for serial in ["01", "PUB_KEY_ID_01 ", "PUB_KEY_ID_0\u{feff}1", "pub_key_id_01", "PUB_KEY_ID"] {
        bench.refused(&[(asked, serial)], if serial == "01" { "serial_not_held" } else { "config_value" });
    }
}

/// What is neither a key nor a serial, each with a remedy that is tried.
#[test]
fn remedy_of_a_value_helps_as_it_is_printed() {
    let bench = Bench::new();
    bench.refused(&[("REDEEMER_WECHAT__MCHIDD", "1900000109")], "config_unknown_key");
    bench.refused(&[("REDEEMER_BROKER__PREFETCH", "0")], "config_value");
    bench.refused(&[("REDEEMER_WECHAT__VERIFICATION_SERIAL", "PUB_KEY_ID_02")], "serial_not_held");
    let token = bench.write("token", "short");
    let [_, _, remedy] = bench.refused(&[("REDEEMER_ADMIN__CONSOLE_TOKEN_FILE", &token)], "token_too_short");
    assert!(remedy.starts_with("openssl rand"), "{remedy}");
    let short = bench.write("apiv3.txt", "0123456789abcdef");
    bench.refused(&[("REDEEMER_WECHAT__APIV3_KEY_FILE", &short)], "apiv3_key_length");
    bench.refused(&[(MERCHANT_KEY, &bench.at("nowhere.pem"))], "key_unreadable");
    bench.refused(&[(OWN_CERTIFICATE, &bench.at("wechat_certificate.pem"))], "certificate_of_another_key");
    bench.openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out small.pem");
    bench.close("small.pem");
    bench.refused(&[(MERCHANT_KEY, &bench.at("small.pem"))], "key_too_short");
}

/// What `run` refuses beside keys and values is a finding of `check`.
#[test]
fn whatever_refuses_a_start_is_a_finding() {
    let bench = Bench::new();
    let apiv3 = bench.write("apiv3.txt", "0123456789abcdef0123456789abcdef\n");
    let listen = "REDEEMER_ADMIN__LISTEN";
    // Addresses of nobody here: of documents, of a neighbor, of everybody at once.
    for address in
        ["192.0.2.1:9464", "192.0.2.1:0", "198.51.100.7:9464", "203.0.113.9:80", "[2001:db8::1]:9464"]
    {
        bench.refused(&[(listen, address)], "admin_listen");
    }
    for endpoint in ["http://127.0.0.1:4318/a b", "http://127.0.0.1:4318/<x>", "http://127.0.0.1:4318/x>"] {
        bench.refused(&[("REDEEMER_TELEMETRY__OTLP_ENDPOINT", endpoint)], "config_value");
    }
    // A download never brings a public key.
    let downloads = ("REDEEMER_WECHAT__APIV3_KEY_FILE", apiv3.as_str());
    let asked = "REDEEMER_WECHAT__VERIFICATION_SERIAL";
    for serial in ["PUB_KEY_ID_02", "PUB_KEY_ID_0", "PUB_KEY_ID_0116000001"] {
        let (faults, _) = bench.check(&[(asked, serial), downloads]);
        let found = faults.iter().filter(|[id, ..]| id == "serial_not_held").count();
        assert_eq!(found, 1, "{serial}: {faults:#?}");
        let started = run(&mut bench.command(&["run"], &[(asked, serial), downloads]));
        assert_eq!(started.status.code(), Some(3), "{serial}: {}", err(&started));
    }
    // A port that somebody else has.
    let taken = answering(&response("200 OK", "hello"));
    let (found, code) = findings(&bench, &[(listen, &taken)], "admin port");
    assert_eq!((found.len(), found[0][0].as_str(), found[0][1].as_str()), (1, "admin_port_in_use", "fault"));
    assert_eq!(code, Some(4));
    assert_eq!(run(&mut bench.command(&["run"], &[(listen, &taken)])).status.code(), Some(1));
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
fn secret_lent_by_root_is_accepted_for_each_reader() {
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
    // Every subcommand of the runbook reads such a file; that nobody answers is another matter.
    let uri = bench.write("broker.uri", "amqp://u:p@127.0.0.1:1/%2f\n");
    std::os::unix::fs::chown(&uri, Some(0), Some(GROUP)).unwrap();
    fs::set_permissions(&uri, fs::Permissions::from_mode(0o640)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_redeemer"), bench.path("redeemer")).unwrap();
    for (user, code) in [(root, 1), (service, 1), (operator, 1), (stranger, 3)] {
        for subcommand in
            SUBCOMMANDS.iter().filter(|words| ["publish", "watch", "parked", "topology"].contains(&words[0]))
        {
            if subcommand == &["topology", "plan"] || subcommand == &["parked", "replay"] {
                continue; // they read no URI, or the merchant key before it
            }
            let inner = bench.command(subcommand, &[("REDEEMER_BROKER__URI_FILE", &uri)]);
            let mut command = Command::new("setpriv");
            command
                .args(user)
                .arg(bench.path("redeemer"))
                .args(inner.get_args())
                .env_clear()
                .current_dir("/");
            command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
            let output = run(&mut command);
            assert_eq!(output.status.code(), Some(code), "{user:?} {subcommand:?}: {}", err(&output));
        }
    }
    let fine = |user: &[&str]| assert_eq!(check_as(&bench, user).0, [] as [&str; 0], "{user:?}");
    let reported = |user: &[&str], id: &str| {
        let (ids, remedy) = check_as(&bench, user);
        assert_eq!(ids, [id], "{user:?}: {remedy}");
        remedy
    };
    for mode in [0o640, 0o440] {
        give(0, GROUP, mode);
        [root, service, operator].into_iter().for_each(fine);
        reported(stranger, "key_unreadable");
    }
    give(GROUP, GROUP, 0o600);
    [root, service].into_iter().for_each(fine);
    reported(operator, "key_unreadable");
    // Whatever is wrong, the remedy, typed by root, leaves the service the right to read, and the operator's check agrees.
    for (uid, gid, mode) in [
        (0, GROUP, 0o644),
        (0, GROUP, 0o660),
        (0, GROUP, 0o646),
        (GROUP, GROUP, 0o640),
        (GROUP, GROUP, 0o644),
    ] {
        give(uid, gid, mode);
        let remedy = reported(root, "key_exposed");
        if remedy.contains("root:redeemer") {
            // This machine has such a group, and the service here is of another one.
            continue;
        }
        bench.type_in(&remedy);
        fine(root);
        fine(service);
    }
    give(GROUP, GROUP, 0o644);
    bench.type_in(&reported(service, "key_exposed"));
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

// ---- what answers in the provider's place

/// Answers every connection with these bytes, until the test ends. Gives its address.
fn answering(response: &str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let response = response.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n")
                && std::io::Read::read(&mut stream, &mut byte).is_ok_and(|read| read > 0)
            {
                head.push(byte[0]);
            }
            let _ = std::io::Write::write_all(&mut stream, response.as_bytes());
        }
    });
    address
}

fn response(head: &str, body: &str) -> String {
    format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// The findings about something: id, gravity, detail and remedy.
fn findings(bench: &Bench, environment: &[(&str, &str)], what: &str) -> (Vec<[String; 4]>, Option<i32>) {
    let output = run(&mut bench.command(&["check", "--json"], environment));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let lines = out(&output);
    let findings = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let about = findings.filter(|one| one["what"] == what);
    let reported = about.map(|one| ["id", "gravity", "detail", "remedy"].map(|name| text(&one[name])));
    (reported.collect(), output.status.code())
}

const PROXY: &str = "server: squid/5.7\r\ncontent-type: text/html";

#[test]
fn answer_of_something_else_is_a_fault_of_check_on_either_host() {
    let bench = Bench::new();
    let html = "<html><head><title>Access denied</title></head><body>by policy</body></html>";
    let id = "request-id: 08E68E97CC0610DF-268578851";
    for (head, body, shown) in [
        (format!("403 Forbidden\r\n{PROXY}"), html, "Server squid/5.7"),
        (format!("200 OK\r\n{PROXY}"), html, "<html><head><title>Access denied"),
        (format!("502 Bad Gateway\r\n{PROXY}"), html, "502"),
        (format!("401 Unauthorized\r\n{PROXY}"), html, "squid"),
        // A gateway of one's own speaks JSON, too.
        (
            "401 Unauthorized\r\nserver: kong/3.4\r\ncontent-type: application/json".to_owned(),
            r#"{"code":"UNAUTHORIZED","message":"no API key found"}"#,
            "Server kong/3.4",
        ),
        ("401 Unauthorized".to_owned(), r#"{"code":"SIGN_ERROR","message":"x"}"#, "SIGN_ERROR"),
        (format!("407 Proxy Authentication Required\r\n{PROXY}"), html, "407"),
        ("403 Forbidden".to_owned(), "", "an empty body"),
        ("302 Found\r\nlocation: http://portal.example/login".to_owned(), "", "302"),
        (
            "404 Not Found\r\ncontent-type: application/json".to_owned(),
            r#"{"code":"NOT_FOUND","message":"no"}"#,
            "NOT_FOUND",
        ),
        (format!("404 Not Found\r\n{id}"), r#"{"error":"no route"}"#, "no route"),
        (format!("200 OK\r\n{id}"), r#"{"coupon_code":"x","coupon_state":"USED"}"#, "coupon_code"),
        (format!("400 Bad Request\r\n{id}"), r#"{"code":"PARAM_ERROR","message":"no"}"#, "PARAM_ERROR: no"),
        ("403 Forbidden\r\nserver: \u{202e}x".to_owned(), "\u{1b}[2Joh-394z-6CGkNoJrsDLTTUKiAnp4", "…Anp4"),
    ] {
        let address = answering(&response(&head, body));
        let url = format!("http://{address}");
        let (reported, code) = findings(
            &bench,
            &[("REDEEMER_WECHAT__BASE_URL", &url), ("REDEEMER_WECHAT__BACKUP_BASE_URL", &url)],
            "payment API",
        );
        assert_eq!((reported.len(), code), (2, Some(4)), "{head}: {reported:#?}");
        for [finding, gravity, detail, remedy] in &reported {
            assert_eq!(
                (finding.as_str(), gravity.as_str()),
                ("payment_api_other_answers", "fault"),
                "{head}: {detail}"
            );
            assert!(detail.contains(shown) && !detail.contains(['\u{1b}', '\u{202e}']), "{head}: {detail}");
            assert!(!detail.contains("oh-394z") && remedy.contains("base_url: "), "{detail}: {remedy}");
        }
    }
    // The provider's own error without its signature proves nothing, and is its word all the same.
    let own = answering(&response(
        &format!("404 Not Found\r\n{id}"),
        r#"{"code":"NOT_FOUND","message":"券不存在"}"#,
    ));
    let (reported, _) =
        findings(&bench, &[("REDEEMER_WECHAT__BASE_URL", &format!("http://{own}"))], "payment API");
    assert_eq!(
        (reported.len(), reported[0][0].as_str(), reported[0][1].as_str()),
        (1, "payment_api_unsigned", "warning")
    );
    // A 401 says why.
    let denied = r#"{"code":"SIGN_ERROR","message":"商户证书序列号有误","detail":{"field":"serial_no","location":"authorization","detail":{"issue":"not found"},"sign_information":{"url":"/oh-394z-6CGkNoJrsDLTTUKiAnp4"}}}"#;
    let denied = answering(&response(&format!("401 Unauthorized\r\n{id}"), denied));
    let (reported, _) =
        findings(&bench, &[("REDEEMER_WECHAT__BASE_URL", &format!("http://{denied}"))], "payment API");
    assert_eq!(reported[0][0], "payment_api_unauthenticated");
    let expected =
        "SIGN_ERROR: 商户证书序列号有误 (field serial_no, location authorization, issue not found)";
    assert!(reported[0][2].contains(expected) && !reported[0][2].contains("oh"), "{reported:#?}");
    // An answer that claims a serial which nobody holds.
    let signed = format!(
        "404 Not Found\r\n{id}\r\nwechatpay-serial: PUB_KEY_ID_99\r\nwechatpay-timestamp: 1\r\nwechatpay-nonce: n\r\n\
         wechatpay-signature: AAAA"
    );
    let stranger = answering(&response(&signed, r#"{"code":"NOT_FOUND"}"#));
    let (reported, _) =
        findings(&bench, &[("REDEEMER_WECHAT__BASE_URL", &format!("http://{stranger}"))], "payment API");
    assert_eq!(reported[0][0], "payment_api_serial_not_held");
    assert!(["PUB_KEY_ID_99", "PUB_KEY_ID_01"].iter().all(|id| reported[0][2].contains(id)), "{reported:#?}");
    // The one that is configured gets this id.
    let url = format!("http://{stranger}");
    let (set, _) = bench.type_at(&[("REDEEMER_WECHAT__BASE_URL", &url)], &reported[0][3], "");
    let keys: Vec<_> = set.iter().filter(|(name, _)| name.contains("PUBLIC_KEYS")).collect();
    let renamed = ("REDEEMER_WECHAT__PUBLIC_KEYS__PUB_KEY_ID_99".to_owned(), bench.at("wechat_public.pem"));
    assert_eq!(keys, [&renamed]);
    // More than is read.
    let long = answering(&response("200 OK", &"x".repeat(5_000)));
    let url = format!("http://{long}");
    let environment =
        [("REDEEMER_WECHAT__BASE_URL", url.as_str()), ("REDEEMER_WECHAT__RESPONSE_BYTES_MAX", "1024")];
    let (reported, _) = findings(&bench, &environment, "payment API");
    assert!(reported[0][2].contains("wechat.response_bytes_max = 1024"), "{reported:#?}");
}

#[test]
fn download_that_brings_nothing_is_reported_by_its_cause() {
    let bench = Bench::new();
    let key = bench.write("apiv3.txt", "0123456789abcdef0123456789abcdef\n");
    let id = "request-id: 08E68E97CC0610DF-268578851";
    let json = |code: &str, message: &str| format!(r#"{{"code":"{code}","message":"{message}"}}"#);
    let advice = "无可用的平台证书，请在商户平台-API安全申请使用微信支付公钥";
    for (head, body, finding, shown, remedy) in [
        (format!("404 Not Found\r\n{id}"), json("RESOURCE_NOT_EXISTS", advice), "download_not_offered", advice, "PUBLIC_KEYS"),
        (format!("403 Forbidden\r\n{id}"), json("NO_AUTH", "no"), "download_not_offered", "NO_AUTH", "PUBLIC_KEYS"),
        (format!("401 Unauthorized\r\n{id}"), json("SIGN_ERROR", "错误的签名"), "download_unauthenticated", "错误的签名", "openssl x509 -noout -serial"),
        (format!("429 Too Many\r\n{id}"), json("FREQUENCY_LIMITED", "slow"), "download_refused", "slow", "redeemer check"),
        (format!("503 Unavailable\r\n{id}"), json("SYSTEM_ERROR", "later"), "download_refused", "later", "redeemer check"),
        (format!("403 Forbidden\r\n{PROXY}"), "<html>".to_owned(), "download_other_answers", "403", "wechat.base_url"),
        (format!("200 OK\r\n{PROXY}"), "<html>".to_owned(), "download_other_answers", "not a list", "wechat.base_url"),
        (
            format!("200 OK\r\n{id}"),
            r#"{"data":[{"serial_no":"AB","encrypt_certificate":{"nonce":"123456789012","ciphertext":"AAAA"}}]}"#.to_owned(),
            "download_apiv3_key",
            "does not decrypt",
            "read -r SECRET",
        ),
    ] {
        let url = format!("http://{}", answering(&response(&head, &body)));
        let environment = [
            ("REDEEMER_WECHAT__BASE_URL", url.as_str()),
            ("REDEEMER_WECHAT__APIV3_KEY_FILE", key.as_str()),
            (PUBLIC_KEY, "(unset)"),
        ];
        let (reported, code) = findings(&bench, &environment, "keys");
        let faults: Vec<_> = reported.iter().filter(|[_, gravity, ..]| gravity == "fault").collect();
        assert_eq!((faults.len(), code), (1, Some(4)), "{head}: {reported:#?}");
        assert_eq!(faults[0][0], finding, "{head}");
        assert!(faults[0][2].contains(shown) && faults[0][3].contains(remedy), "{head}: {faults:#?}");
    }
    let environment = [("REDEEMER_WECHAT__APIV3_KEY_FILE", key.as_str()), (PUBLIC_KEY, "(unset)")];
    let (reported, _) = findings(&bench, &environment, "keys");
    assert!(reported.iter().any(|[id, ..]| id == "download_unreachable"), "{reported:#?}");
    for wrong in ["0123456789abcdef", "", "0123456789abcdef0123456789abcdef0"] {
        let key = bench.write("short.txt", wrong);
        bench.refused(&[("REDEEMER_WECHAT__APIV3_KEY_FILE", &key)], "apiv3_key_length");
    }
}

// ---- secrets

/// Whatever is configured where nothing secret is expected: every key of the shipped file, as the environment sets it.
fn all_variables() -> Vec<String> {
    fn leaves(table: &toml::Table, path: &str, into: &mut Vec<String>) {
        for (name, value) in table {
            match value {
                toml::Value::Table(inner) => leaves(inner, &format!("{path}{name}__"), into),
                _ => into.push(format!("REDEEMER_{path}{name}").to_uppercase()),
            }
        }
    }
    let mut variables = Vec::new();
    leaves(&include_str!("../../config.toml").parse().unwrap(), "", &mut variables);
    variables.extend([PUBLIC_KEY.to_owned(), KEY_ITSELF.to_owned(), "REDEEMER_CONFIG".to_owned()]);
    variables.extend(["REDEEMER_SURPRISE__KEY", "REDEEMER_WECHAT__PUBLIC_KEYS"].map(str::to_owned));
    variables
}

/// Every subcommand, as far as it can go where nothing answers.
pub(crate) const SUBCOMMANDS: [&[&str]; 16] = [
    &["check"],
    &["check", "--json"],
    &["run"],
    &["publish", "{}"],
    &["watch"],
    &["topology", "plan"],
    &["topology", "verify"],
    &["topology", "apply"],
    &["parked", "list"],
    &["parked", "show"],
    &["parked", "replay"],
    &["parked", "discard", "--because", "x", "--all"],
    &["healthcheck"],
    &["schema", "command"],
    &["sandbox", "--listen", "127.0.0.1:0", "--dir", "./sandbox"],
    &["demo", "--commands", "1"],
];

/// The names of exchanges and queues, the source of events and what the shell shows anyway are no secrets: they are
/// written where everybody sees them.
fn is_shown_by_purpose(variable: &str) -> bool {
    variable.starts_with("REDEEMER_BROKER__NAMES__") || variable == "REDEEMER_EVENT__SOURCE"
}

#[test]
fn no_output_holds_a_secret_that_was_put_in_a_wrong_place() {
    let bench = Bench::new();
    let pem = bench.text("key.pem");
    let body: String = pem.lines().filter(|line| !line.starts_with("---")).collect();
    let words =
        ["geheim-4711-kennwort", &body[100..140], &body[1_000..1_040], "0f1e2d3c4b5a69788796a5b4c3d2e1f0"];
    let secrets = [
        ("the key", pem.clone()),
        ("the key on one line", pem.replace('\n', "\\n")),
        ("its Base64", body.clone()),
        ("a broker URI", "amqps://redeemer:geheim-4711-kennwort@rabbit.example.com:5671/%2f".to_owned()),
        ("a URI without its scheme", "redeemer:geheim-4711-kennwort@rabbit.example.com".to_owned()),
        ("a password", "geheim-4711-kennwort".to_owned()),
        ("an APIv3 key", "0f1e2d3c4b5a69788796a5b4c3d2e1f0".to_owned()),
    ];
    let mut jobs = Vec::new();
    for variable in all_variables() {
        let names_a_file =
            variable.ends_with("_FILE") || variable.ends_with("CERTIFICATES") || variable == PUBLIC_KEY;
        for (what, secret) in &secrets {
            for (nth, subcommand) in SUBCOMMANDS.iter().enumerate() {
                // Every subcommand reads the same configuration: whatever is no file name goes through two of them.
                if names_a_file || variable == "REDEEMER_CONFIG" || nth == 1 || nth == 2 {
                    jobs.push((variable.clone(), *what, secret.clone(), *subcommand));
                }
            }
        }
    }
    let jobs = std::sync::Mutex::new(jobs.into_iter());
    let next = || jobs.lock().unwrap().next();
    let look = || {
        let mut found = Vec::new();
        while let Some((variable, what, secret, subcommand)) = next() {
            let value = match variable.ends_with("CERTIFICATES") {
                true => format!("[{secret:?}]"),
                false => secret,
            };
            // What is a filter for the log, a list of hosts or a time is no fault: then nothing ends the service.
            let mut command = Command::new("timeout");
            let inner = bench.command(subcommand, &[(&variable, &value)]);
            command.args(["-s", "TERM", "-k", "20", "3"]).arg(inner.get_program()).args(inner.get_args());
            command
                .current_dir(&bench.dir)
                .envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
            let output = run(command.stdin(Stdio::null()));
            let text = format!("{}{}", out(&output), err(&output));
            if let Some(word) =
                words.iter().find(|word| text.contains(**word)).filter(|_| !is_shown_by_purpose(&variable))
            {
                found.push(format!("{what} as {variable} in {subcommand:?}: {word}"));
            }
            assert!(!text.contains("panicked"), "{variable} {subcommand:?}: {text}");
        }
        found
    };
    let found: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(look)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(found.is_empty(), "{found:#?}");
}

/// What the provider names as the cause of a rejection reaches those who have to act on it, and the value that
/// it quotes does not.
#[test]
fn detail_of_a_rejection_reaches_the_event_and_the_log() {
    let programs = Programs::start(broker::shared().uri());
    for (nth, (field, location, issue)) in [
        ("/appid", "body", "wrong form"),
        ("stock_id", "query", "not of this brand"),
        ("/associated_order_info/mchid", "body", "商户号有误"),
        ("out_request_no", "", "too long"),
        ("/use_time", "body", ""),
        ("openid", "url", "another app"),
    ]
    .into_iter()
    .enumerate()
    {
        let value = "oh-394z-6CGkNoJrsDLTTUKiAnp4";
        let detail = json!({"field": field, "location": location, "issue": issue, "value": value});
        let fault = json!({"kind": "status", "status": 400, "code": "PARAM_ERROR", "sub_code": 268_435_461,
            "signed": true, "message": "参数错误", "detail": detail});
        crate::check::put(&programs, "faults", &json!({"rules": [{"operation": "use", "fault": fault}]}));
        let command = programs::command(&format!("detail{nth}")).to_string();
        let output = run(&mut programs.command(&["publish", "--wait", &command]));
        let event: Value = serde_json::from_str(out(&output).trim()).unwrap();
        let problem = &event["data"]["problem"];
        assert_eq!(
            (&problem["reason"], &problem["code"]),
            (&json!("invalid_parameter"), &json!("PARAM_ERROR"))
        );
        let number = format!("number_detail{nth}");
        let log = programs::until("the line of the outcome", || {
            let log = programs.log();
            let lines: Vec<_> =
                log.lines().filter(|line| line.contains(&number)).map(str::to_owned).collect();
            lines.iter().any(|line| line.contains("outcome=")).then_some(lines)
        });
        let settled = log.iter().find(|line| line.contains("outcome=")).unwrap();
        for (name, text) in [("field", field), ("location", location), ("issue", issue)] {
            let said = format!("{name} {text}");
            if !text.is_empty() {
                assert!(problem["message"].as_str().unwrap().contains(&said), "{said}: {problem}");
                assert!(settled.contains(&said), "{said}: {settled}");
            }
        }
        assert!(
            !problem.to_string().contains(value) && log.iter().all(|line| !line.contains(value)),
            "{log:?}"
        );
    }
}

/// Whatever somebody types or writes where something else is expected: on the command line, and in the file on either side
/// of the `=`.
#[test]
fn no_output_holds_a_secret_of_the_command_line_or_the_file() {
    let bench = Bench::new();
    let body: String = bench.text("key.pem").lines().filter(|line| !line.starts_with("---")).collect();
    let words = ["geheim-4711-kennwort", &body[100..140], "0f1e2d3c4b5a69788796a5b4c3d2e1f0"];
    let secrets = [
        "amqp://redeemer:geheim-4711-kennwort@rabbit.example.com:5671/%2f",
        "redeemer:geheim-4711-kennwort@rabbit.example.com",
        "geheim-4711-kennwort",
        "--geheim-4711-kennwort",
        "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
        &bench.text("key.pem"),
        &body,
    ];
    let check = |command: &mut Command, what: &str| {
        let output = run(command.stdin(Stdio::null()));
        let text = format!("{}{}", out(&output), err(&output));
        let found = words.iter().find(|word| text.contains(**word));
        assert!(found.is_none() && !text.contains("panic"), "{what}: {text}");
        output.status.code()
    };
    // A single word behind each place of the command line; what it can be is another matter.
    const PLACES: [&str; 24] = [
        "",
        "check",
        "run",
        "topology",
        "topology plan",
        "parked",
        "parked list",
        "parked list --brand",
        "parked list --older",
        "parked discard --because x --all",
        "schema",
        "schema --write /nowhere/",
        "healthcheck",
        "healthcheck --at",
        "healthcheck --timeout",
        "publish --lines",
        "publish {} --deadline",
        "publish {} --wait --expect",
        "publish {}",
        "watch --outcome",
        "watch",
        "sandbox --listen",
        "demo --commands",
        "--config",
    ];
    for secret in secrets {
        for place in PLACES {
            let mut words: Vec<&str> = place.split(' ').filter(|word| !word.is_empty()).collect();
            words.push(secret);
            if place == "--config" {
                words.push("check");
            }
            check(&mut bench.command(&words, &[]), place);
        }
        let at = format!("@{secret}");
        check(&mut bench.command(&["publish", &at], &[]), "publish @");
        let option = format!("--{secret}");
        check(&mut bench.command(&["check", &option], &[]), "an option");
    }
    let line = secrets.map(|secret| secret.replace('\n', ""));
    let mut texts = Vec::new();
    for secret in &line {
        texts.extend([
            secret.clone(),
            format!("\"{secret}\" = 1"),
            format!("\"{secret}\" = 1\n\"{secret}\" = 2"),
            format!("[\"{secret}\"]\nx = 1"),
            format!("[broker]\n\"{secret}\" = \"x\""),
            format!("[wechat]\n{} = \"x\"", secret.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-")),
            format!("[wechat.public_keys]\n\"{secret}\" = 1"),
            format!("[wechat.public_keys]\n\"{secret}\" = \"x.pem\""),
            format!("[wechat]\nplatform_certificates = [\"{secret}\"]\n[admin]\nhosts = \"{secret}\""),
            format!("[broker]\nprefetch = \"{secret}\"\nheartbeat = \"{secret}\"\n[retry]\ndelays = [\"{secret}\"]"),
            format!("[broker]\nuri = {secret}\n"),
            format!("broker.uri = \"{secret}\"\nbroker.uri.x = 1"),
            format!("[log]\nformat = \"{secret}\"\nfilter = \"{secret}=\"\n[admin]\nlisten = \"{secret}\""),
        ]);
    }
    for text in texts {
        let file = bench.write("redeemer.toml", &text);
        for subcommand in ["check", "run"] {
            let code = check(&mut bench.command(&["--config", &file, subcommand], &[]), &text);
            assert_eq!(code, Some(3), "{subcommand}: {text}");
        }
    }
    for secret in
        ["0f1e2d3c4b5a69788796a5b4c3d2e1f0", "geheim-4711-kennwort", "geheim_4711_kennwort_0123456789"]
    {
        for name in [
            format!("REDEEMER_WECHAT__{secret}"),
            format!("REDEEMER_SURPRISE__{secret}"),
            format!("REDEEMER_{secret}__X"),
            format!("REDEEMER_BROKER__NAMES__{secret}"),
            format!("REDEEMER_WECHAT__PUBLIC_KEYS__{secret}"),
        ] {
            for subcommand in ["check", "run", "schema"] {
                let arguments =
                    if subcommand == "schema" { vec!["schema", "command"] } else { vec![subcommand] };
                let output = run(&mut bench.command(&arguments, &[(&name, "x.pem")]));
                let text = format!("{}{}", out(&output), err(&output)).to_lowercase();
                assert!(!text.contains(secret), "{name}: {text}");
                assert_eq!(output.status.code(), Some(3), "{name}: {text}");
            }
        }
    }
    bench.refused(&[("REDEEMER_SURPRISE__0f1e2d3c4b5a69788796a5b4c3d2e1f0", "x")], "config_unknown_key");
    // A word that is near to one of ours is shown: it is a typo.
    let typo = run(&mut bench.command(&["chekc"], &[]));
    assert_eq!(typo.status.code(), Some(2));
    assert!(err(&typo).contains("'chekc'") && err(&typo).contains("'check'"), "{}", err(&typo));
}

// ---- manners

/// Runs a line of the shell with the program as `$0`.
fn shell(bench: &Bench, line: &str, environment: &[(&str, &str)]) -> std::process::Output {
    let inner = bench.command(&[], environment);
    let mut command = Command::new("bash");
    command.args(["-c", line, env!("CARGO_BIN_EXE_redeemer")]).current_dir(&bench.dir);
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    run(&mut command)
}

/// The subcommands that `--help` lists behind these words, down to those that have none of their own.
fn listed(words: &[String]) -> Vec<Vec<String>> {
    let output = run(redeemer().args(words).arg("--help"));
    assert_eq!(output.status.code(), Some(0), "{words:?}: {}", err(&output));
    let help = out(&output);
    let lines =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names: Vec<_> =
        lines.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect();
    match names.is_empty() {
        true => vec![words.to_vec()],
        false => names.into_iter().flat_map(|name| listed(&[words, &[name.to_owned()]].concat())).collect(),
    }
}

/// The tests of everything that can be missing try whatever there is.
#[test]
fn every_subcommand_of_the_help_is_tried() {
    let listed = listed(&[]);
    assert!(listed.len() >= 10, "{listed:?}");
    for words in listed {
        let is_tried = SUBCOMMANDS
            .iter()
            .any(|tried| tried.starts_with(&words.iter().map(String::as_str).collect::<Vec<_>>()));
        assert!(is_tried, "{words:?} is not among SUBCOMMANDS");
    }
}

#[test]
fn no_subcommand_panics_whatever_is_missing() {
    let bench = Bench::new();
    // What is missing, and the exit code of each subcommand in the order of the list; `run` is left to itself for a second.
    let down: [i32; 16] = [4, 4, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1];
    // Sandbox and demo have a configuration of their own.
    let no_file: [i32; 16] = [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 0, 1];
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], [i32; SUBCOMMANDS.len()]);
    let cases: [Case<'_>; 4] = [
        ("the broker", &[], down),
        ("a name server's answer", &[("REDEEMER_BROKER__URI", "amqp://u:p@no-such-host.invalid/%2f")], down),
        ("the configuration file", &[("REDEEMER_CONFIG", "/nowhere/redeemer.toml")], no_file),
        ("a configuration that is text", &[("REDEEMER_CONFIG", "/etc")], no_file),
    ];
    for (what, environment, codes) in cases {
        for (subcommand, code) in SUBCOMMANDS.iter().zip(codes) {
            let quoted = subcommand.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
            let line = match subcommand[0] {
                "run" | "sandbox" => format!(
                    "timeout -s TERM 2 \"$0\" {quoted}; code=$?; [ $code = 124 ] && exit 0; exit $code"
                ),
                _ => format!("\"$0\" {quoted}"),
            };
            let output = shell(&bench, &line, environment);
            let text = format!("{}{}", out(&output), err(&output));
            assert_eq!(output.status.code(), Some(code), "{subcommand:?} without {what}: {text}");
            assert!(!text.contains("panic"), "{subcommand:?} without {what}: {text}");
            assert!(!text.is_empty(), "{subcommand:?} without {what} says something");
        }
    }
}

#[test]
fn closed_output_ends_every_subcommand_without_a_word() {
    let bench = Bench::new();
    for subcommand in SUBCOMMANDS {
        let quoted = subcommand.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        // Nobody ever reads: the first line meets a pipe that is closed.
        let line =
            format!("exec 3> >(true); wait $!; timeout -s TERM 2 \"$0\" {quoted} >&3; echo \"$?\" >code");
        let output = shell(&bench, &line, &[]);
        let text = err(&output);
        let code: i32 = fs::read_to_string(bench.path("code")).unwrap().trim().parse().unwrap();
        assert!(!text.contains("panic") && !text.contains("standard output"), "{subcommand:?}: {text}");
        match subcommand[0] {
            "check" | "schema" => assert_eq!((code, text.as_str()), (1, ""), "{subcommand:?}"),
            "topology" if subcommand[1] == "plan" => assert_eq!((code, text.as_str()), (1, "")),
            _ => assert!([0, 1, 3, 124].contains(&code), "{subcommand:?}: {code}"),
        }
        // Nor does standard error, or both.
        for closed in ["2>&3", ">&3 2>&3"] {
            let line = format!(
                "exec 3> >(true); wait $!; timeout -s TERM 2 \"$0\" {quoted} {closed}; echo \"$?\" >code"
            );
            shell(&bench, &line, &[]);
            let code: i32 = fs::read_to_string(bench.path("code")).unwrap().trim().parse().unwrap();
            assert!([0, 1, 3, 4, 124].contains(&code), "{subcommand:?} {closed}: {code}");
        }
    }
}

#[test]
fn no_subcommand_panics_with_few_files_or_foreign_bytes() {
    let bench = Bench::new();
    for limit in [4, 8, 14, 20, 30, 40, 50, 60, 63, 64, 65, 70, 80] {
        for subcommand in SUBCOMMANDS {
            let quoted = subcommand.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
            let lasts = matches!(subcommand[0], "run" | "sandbox") && limit >= 64;
            let seconds = if lasts { 1 } else { 20 };
            let line = format!("ulimit -n {limit}; exec timeout -s TERM {seconds} \"$0\" {quoted}");
            let output = shell(&bench, &line, &[]);
            let text = format!("{}{}", out(&output), err(&output));
            let code = output.status.code();
            let fits = match (limit, subcommand[0]) {
                // Below what the loader itself needs.
                (..8, _) => matches!(code, Some(3 | 127)),
                (..64, _) => code == Some(3),
                (_, "run" | "sandbox") => code == Some(124),
                (_, "schema") => code == Some(0),
                (_, "topology") if subcommand[1] == "plan" => code == Some(0),
                (_, "check") => code == Some(4),
                _ => code == Some(1),
            };
            assert!(fits, "{limit} {subcommand:?}: {code:?} {text}");
            assert!(!text.contains("panic"), "{limit} {subcommand:?}: {text}");
        }
    }
    // A variable that is no text, beside ours.
    let line = "export FOREIGN=$'\\xff\\xfe' REDEEMER_CONCURRENCY__COMMANDS=$'\\xff'; exec \"$0\" check";
    let output = shell(&bench, line, &[]);
    assert_eq!(output.status.code(), Some(4), "{}", err(&output));
}
