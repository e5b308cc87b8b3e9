//! What stands in deploy/, held against the program: the image's instructions run in a Debian tree, definitions
//! imported into real nodes, manifests and the unit compared with the configuration. `make test-deploy`.
//!
//! Trees to chroot into come from deploy/local/tree. What cannot be had here is said aloud and left out.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]

#[path = "support/broker.rs"]
mod broker;
#[path = "support/ports.rs"]
mod ports;
#[path = "support/programs.rs"]
mod programs;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use clap::CommandFactory as _;
use redeemer::amqp::topology::Object;
use redeemer::cli::Arguments;
use redeemer::config::{self, Config};
use serde_json::Value;

use broker::Broker;
use programs::{Programs, ended, err, out, redeemer, run, until, unused_dir};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A tool of the repository or the system; its output where it succeeds.
fn reported(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Result<String, Output> {
    let program = program.as_ref();
    let output = Command::new(program).args(arguments).current_dir(root()).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    if output.status.success() { Ok(out(&output)) } else { Err(output) }
}

// ---- the image

/// The instructions of one stage of a Dockerfile.
#[derive(Debug, Default)]
struct Stage {
    instructions: Vec<(String, String)>,
}

/// The stages of a Dockerfile. Reads what ours is written with, and stops at anything else.
fn stages(dockerfile: &str) -> Vec<Stage> {
    let lines = dockerfile.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>();
    let whole = lines.join("\n").replace("\\\n", " ");
    let mut stages = Vec::new();
    for line in whole.lines().filter(|line| !line.trim().is_empty()) {
        let (word, rest) = line.split_once(' ').unwrap();
        match word {
            "ARG" => assert!(stages.is_empty(), "{line}"),
            "FROM" => stages.push(Stage::default()),
            "RUN" | "COPY" | "ENV" | "USER" | "WORKDIR" | "SHELL" | "LABEL" | "EXPOSE" | "HEALTHCHECK"
            | "ENTRYPOINT" | "CMD" => stages
                .last_mut()
                .expect("a stage has begun")
                .instructions
                .push((word.to_owned(), rest.trim().to_owned())),
            word => panic!("{word} is not known here"),
        }
    }
    stages
}

impl Stage {
    fn all(&self, word: &str) -> Vec<&str> {
        let meant = self.instructions.iter().filter(|(is, _)| is == word);
        meant.map(|(_, rest)| rest.as_str()).collect()
    }

    fn one(&self, word: &str) -> &str {
        let [rest] = self.all(word)[..] else { panic!("not one {word}") };
        rest
    }

    /// The words of an instruction in exec form.
    fn words(&self, word: &str) -> Vec<String> {
        let rest = self.one(word);
        serde_json::from_str(&rest[rest.find('[').unwrap()..]).unwrap()
    }

    fn environment(&self) -> Vec<(String, String)> {
        let pairs = self.all("ENV").into_iter().flat_map(str::split_whitespace);
        pairs.map(|pair| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap()).collect()
    }
}

/// The image as a folder, made by the Dockerfile's own instructions, and how its containers run.
struct Image {
    tree: PathBuf,
    volume: PathBuf,
    stage: Stage,
}

impl Image {
    /// Nothing if no tree can be had; that has been said aloud then.
    fn build() -> Option<Self> {
        let base = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("trees").join("trixie");
        if fs::metadata("/proc/self").map_or(1, |this| this.uid()) != 0 {
            eprintln!("the image is NOT tried: a container of our own needs root");
            return None;
        }
        let made = reported("deploy/local/tree", &[base.to_str().unwrap(), "trixie"]);
        if let Err(output) = made {
            assert_eq!(output.status.code(), Some(3), "{}", err(&output));
            eprintln!("the image is NOT tried: {}", err(&output));
            return None;
        }
        let dir = unused_dir("image");
        let (tree, volume) = (dir.join("tree"), dir.join("volume"));
        reported("cp", &["-a", base.to_str().unwrap(), tree.to_str().unwrap()]).unwrap();
        let stage = stages(&text("deploy/Dockerfile")).pop().unwrap();
        for (word, rest) in &stage.instructions {
            match word.as_str() {
                "RUN" => {
                    reported("chroot", &[tree.to_str().unwrap(), "/bin/sh", "-c", rest])
                        .unwrap_or_else(|output| panic!("RUN {rest}: {}", err(&output)));
                }
                "COPY" => {
                    let words = rest.split_whitespace().collect::<Vec<_>>();
                    let ["--from=build", from, to] = words[..] else { panic!("COPY {rest}") };
                    // What the build stage would have: certificates of a Debian, and the program.
                    let from = match from {
                        "/src/target/release/redeemer" => env!("CARGO_BIN_EXE_redeemer"),
                        "/etc/ssl/certs/ca-certificates.crt" => from,
                        from => panic!("COPY {from}"),
                    };
                    let to = tree.join(to.trim_start_matches('/'));
                    fs::create_dir_all(to.parent().unwrap()).unwrap();
                    fs::copy(from, &to).unwrap();
                }
                _ => {}
            }
        }
        fs::create_dir(&volume).unwrap();
        chown(&volume, Some(65_532), Some(65_532)).unwrap();
        Some(Self { tree, volume, stage })
    }

    /// A command in a container: own mounts and processes, a root that cannot be written, no privileges, nothing of
    /// our environment. The network is this machine's.
    fn container(&self, environment: &[(&str, &str)], words: &[&str]) -> Command {
        const ENTER: &str = r#"
            tree=$1 volume=$2 user=$3 home=$4; shift 4
            mount --bind "$tree" "$tree"
            mount --bind "$volume" "$tree$home"
            mount --rbind /dev "$tree/dev"
            mount -o remount,bind,ro "$tree"
            # As systemd hides it from the unit: less of /proc than a container has.
            mount -t proc -o hidepid=invisible,subset=pid proc "$tree/proc"
            cd "$tree"
            exec chroot "$tree" setpriv --reuid="${user%:*}" --regid="${user#*:}" --clear-groups --no-new-privs \
              --bounding-set=-all --inh-caps=-all -- \
              env --ignore-environment --chdir="$home" PATH=/usr/local/bin:/usr/bin:/bin "$@""#;
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
            "bash",
            "-euc",
        ]);
        command.args([ENTER, "bash"]).arg(&self.tree).arg(&self.volume);
        command.args([self.stage.one("USER"), self.stage.one("WORKDIR")]);
        command.args(self.stage.environment().iter().map(|(key, value)| format!("{key}={value}")));
        command.args(environment.iter().map(|(key, value)| format!("{key}={value}"))).args(words);
        command.stdin(Stdio::null());
        command
    }

    /// The program in a container, in the background.
    fn start(&self, environment: &[(&str, &str)], arguments: &[&str], log: &str) -> Container {
        let log = self.volume.with_file_name(log);
        let entry = self.stage.words("ENTRYPOINT");
        let words: Vec<_> = entry.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        let mut command = self.container(environment, &words);
        let file = fs::File::create(&log).unwrap();
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Container { child, log }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.tree.parent().unwrap());
    }
}

/// A running container; killed when it is dropped.
struct Container {
    child: Child,
    log: PathBuf,
}

impl Container {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The first process in it, as we see it.
    fn pid(&self) -> String {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        children.trim().to_owned()
    }

    /// SIGTERM to its first process, as `docker stop` sends it.
    fn stop(mut self) -> Option<i32> {
        reported("kill", &["-TERM", &self.pid()]).unwrap();
        ended(&mut self.child).code()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), self.log());
        }
        // Its children die with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_image_works_as_its_dockerfile_says() {
    let Some(image) = Image::build() else { return };
    let node = Broker::start();
    // All that the program wants of the system is there.
    let libraries = run(&mut image.container(&[], &["ldd", "/usr/local/bin/redeemer"]));
    let libraries = format!("{}{}", out(&libraries), err(&libraries));
    assert!(libraries.contains("libc.so.6 => /") && !libraries.contains("not found"), "{libraries}");
    let certificates = fs::read_to_string(image.tree.join("etc/ssl/certs/ca-certificates.crt")).unwrap();
    assert!(certificates.matches("BEGIN CERTIFICATE").count() > 50);
    // It is nobody in particular, and can write nothing but its volume.
    let who = out(&run(&mut image.container(&[], &["sh", "-c", "id -u; id -G; id -un"])));
    assert_eq!(who.lines().collect::<Vec<_>>(), ["65532", "65532", "redeemer"]);
    for place in ["/x", "/tmp/x", "/etc/x"] {
        let written = run(&mut image.container(&[], &["touch", place]));
        assert!(err(&written).contains("Read-only file system"), "{place}: {}", err(&written));
    }
    assert!(run(&mut image.container(&[], &["touch", "here"])).status.success());

    // What the compose file starts, in its words but for the ports.
    let compose = documents(&root().join("deploy/compose.yaml")).remove(0);
    let arguments = |service: &str, from: &str, to: &str| -> Vec<String> {
        let words = compose["services"][service]["command"].as_array().unwrap().iter();
        words.map(|word| word.as_str().unwrap().replace(from, to)).collect()
    };
    let port = ports::unused();
    let at = format!("127.0.0.1:{port}");
    let words = arguments("sandbox", "127.0.0.1:9480", &at);
    let words = words.iter().map(String::as_str).collect::<Vec<_>>();
    let sandbox = image.start(&[], &words, "sandbox.log");
    let healthy = |environment: &[(&str, &str)], words: &[&str]| {
        until(&format!("{words:?} finds health"), || {
            run(&mut image.container(environment, words)).status.success().then_some(())
        });
    };
    let probe = compose["services"]["sandbox"]["healthcheck"]["test"].as_array().unwrap().iter().skip(1);
    let probe: Vec<_> = probe.map(|word| word.as_str().unwrap().replace("127.0.0.1:9480", &at)).collect();
    healthy(&[], &probe.iter().map(String::as_str).collect::<Vec<_>>());

    let listen = format!("0.0.0.0:{}", ports::unused());
    let configured = compose["services"]["redeemer"]["environment"].as_object().unwrap();
    let mut environment: BTreeMap<_, _> =
        configured.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap())).collect();
    environment.insert("REDEEMER_BROKER__URI", node.uri());
    environment.insert("REDEEMER_ADMIN__LISTEN", &listen);
    let environment: Vec<_> = environment.into_iter().collect();
    let within = |words: &[&str]| {
        let words = [&["redeemer"], words].concat();
        run(&mut image.container(&environment, &words))
    };

    let dead = within(&["healthcheck"]);
    assert_eq!(dead.status.code(), Some(1), "{}", err(&dead));
    let made = within(&["topology", "apply"]);
    assert!(made.status.success(), "{}", err(&made));
    let command = image.stage.words("CMD");
    let service =
        image.start(&environment, &command.iter().map(String::as_str).collect::<Vec<_>>(), "service.log");
    let check = image.stage.words("HEALTHCHECK");
    healthy(&environment, &check.iter().map(String::as_str).collect::<Vec<_>>());
    healthy(&environment, &["redeemer", "healthcheck", "--ready"]);
    let words = arguments("publish", "", "");
    let words: Vec<_> = words.iter().map(String::as_str).chain(["--expect", "redeemed"]).collect();
    let published = within(&words);
    assert!(published.status.success(), "{}", err(&published));
    let event: Value = serde_json::from_str(&out(&published)).unwrap();
    assert_eq!(event["data"]["coupon_state"], "USED");

    // It lives while the broker is gone, and says that it is not ready.
    node.kill9();
    until("it is not ready", || (within(&["healthcheck", "--ready"]).status.code() == Some(4)).then_some(()));
    assert!(within(&["healthcheck"]).status.success());
    assert_eq!(service.stop(), Some(0));
    assert_eq!(within(&["healthcheck"]).status.code(), Some(1));
    assert_eq!(sandbox.stop(), Some(0));
}

#[test]
fn secrets_are_read_as_kubernetes_mounts_them() {
    let Some(image) = Image::build() else { return };
    let at = format!("127.0.0.1:{}", ports::unused());
    let sandbox = image.start(&[], &["sandbox", "--listen", &at, "--dir", "."], "sandbox.log");
    let file = image.volume.join("redeemer.toml");
    until("the sandbox has written its files", || file.exists().then_some(()));
    let key = image.volume.join("merchant_key.pem");
    let lent = image.volume.join("lent.pem");
    fs::copy(key, &lent).unwrap();
    let finding = |owner: u32, group: u32, mode: u32| {
        chown(&lent, Some(owner), Some(group)).unwrap();
        fs::set_permissions(&lent, fs::Permissions::from_mode(mode)).unwrap();
        let environment = [
            ("REDEEMER_CONFIG", "redeemer.toml"),
            ("REDEEMER_WECHAT__MERCHANT_KEY_FILE", "lent.pem"),
            ("REDEEMER_BROKER__URI", "amqp://guest:guest@127.0.0.1:1/%2f"),
        ];
        let reported = out(&run(&mut image.container(&environment, &["redeemer", "check", "--json"])));
        let lines = reported.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let about = lines.filter(|line| line["what"] == "keys").collect::<Vec<_>>();
        assert!(!about.is_empty(), "{reported}");
        let fault = about.iter().find(|line| line["gravity"] == "fault");
        fault.map(|line| line["detail"].as_str().unwrap().to_owned()).unwrap_or_default()
    };
    assert_eq!(finding(0, 65_532, 0o440), "", "a secret volume with fsGroup");
    assert_eq!(finding(0, 65_532, 0o640), "", "chown root:redeemer");
    assert_eq!(finding(65_532, 65_532, 0o400), "");
    for (owner, group, mode) in [(0, 65_532, 0o444), (0, 65_532, 0o460), (65_532, 65_532, 0o440)] {
        let fault = finding(owner, group, mode);
        assert!(fault.contains("can be read by others"), "{owner}:{group} {mode:o}: {fault:?}");
    }
    assert_eq!(sandbox.stop(), Some(0));
}

/// A server that the machine's own certificates do not vouch for is believed once the image's file does.
#[test]
fn tls_trusts_the_certificates_in_the_image_and_no_others() {
    let Some(image) = Image::build() else { return };
    let at = format!("127.0.0.1:{}", ports::unused());
    let sandbox = image.start(&[], &["sandbox", "--listen", &at, "--dir", "."], "sandbox.log");
    let file = image.volume.join("redeemer.toml");
    until("the sandbox has written its files", || file.exists().then_some(()));
    let dir = unused_dir("tls");
    let own = |name: &str| dir.join(name).display().to_string();
    let (ca, ca_key, cert, key) = (own("ca.pem"), own("ca.key"), own("cert.pem"), own("cert.key"));
    let certify = |more: &[&str]| {
        let common = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=deploy"];
        reported("openssl", &[&common, more].concat()).unwrap_or_else(|output| panic!("{}", err(&output)));
    };
    certify(&["-keyout", &ca_key, "-out", &ca, "-addext", "keyUsage=critical,keyCertSign"]);
    let names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
    certify(&[&["-keyout", &key, "-out", &cert, "-CA", &ca, "-CAkey", &ca_key], &names[..]].concat());
    let port = ports::unused().to_string();
    let mut server = Command::new("openssl");
    server.args(["s_server", "-quiet", "-www", "-accept", &port, "-cert", &cert, "-key", &key]);
    let child = server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let server = Container { child, log: dir.join("server.log") };
    let base_url = format!("https://127.0.0.1:{port}");
    let detail = || {
        let environment = [
            ("REDEEMER_CONFIG", "redeemer.toml"),
            ("REDEEMER_WECHAT__BASE_URL", base_url.as_str()),
            ("REDEEMER_BROKER__URI", "amqp://guest:guest@127.0.0.1:1/%2f"),
        ];
        let reported = out(&run(&mut image.container(&environment, &["redeemer", "check", "--json"])));
        let mut lines = reported.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let about = lines.find(|line| line["what"] == "payment API");
        about.unwrap_or_else(|| panic!("{reported}"))["detail"].as_str().unwrap().to_owned()
    };
    let stranger = until("the server is asked", || {
        Some(detail()).filter(|detail| !detail.contains("Connection refused"))
    });
    assert!(stranger.contains("UnknownIssuer"), "{stranger}");
    let trusted = image.tree.join("etc/ssl/certs/ca-certificates.crt");
    let all = fs::read_to_string(&trusted).unwrap() + &fs::read_to_string(&ca).unwrap();
    fs::write(&trusted, all).unwrap();
    assert!(detail().contains("responded with 200"), "{}", detail());
    drop(server);
    assert_eq!(sandbox.stop(), Some(0));
    fs::remove_dir_all(dir).unwrap();
}

/// What the ignore file lets into the build. Reads what ours is written with, and stops at anything else.
struct Context {
    kept: Vec<String>,
}

impl Context {
    fn read() -> Self {
        let text = text("deploy/Dockerfile.dockerignore");
        let mut patterns = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        assert_eq!(patterns.next(), Some("*"), "everything is left out first");
        let kept = patterns.map(|pattern| {
            let kept = pattern.strip_prefix('!').unwrap_or_else(|| panic!("{pattern} is not known here"));
            assert!(!kept.contains(['*', '?', '[', '!', '\\']) && root().join(kept).exists(), "{pattern}");
            kept.to_owned()
        });
        Self { kept: kept.collect() }
    }

    fn has(&self, path: &str) -> bool {
        self.kept.iter().any(|kept| Path::new(path).starts_with(kept))
    }

    /// `COPY . .`
    fn copy_to(&self, dir: &Path) {
        for kept in &self.kept {
            let to = dir.join(kept);
            let parent = to.parent().unwrap();
            fs::create_dir_all(parent).unwrap();
            reported("cp", &["-RT", kept, to.to_str().unwrap()])
                .unwrap_or_else(|output| panic!("{}", err(&output)));
        }
    }
}

/// Every file below a folder of the repository, by its path in it.
fn files_below(folder: &str) -> Vec<String> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

#[test]
fn whatever_the_sources_include_gets_into_the_build() {
    let context = Context::read();
    let mut seen = 0;
    for source in files_below("src") {
        assert!(context.has(&source), "{source}");
        if !source.ends_with(".rs") {
            continue;
        }
        let code = text(&source);
        for rest in ["include_str!(", "include_bytes!("].iter().flat_map(|word| code.split(word).skip(1)) {
            // A literal, or the first one of a concat!: then the folder.
            let target = rest.split('"').nth(1).unwrap();
            let whole = root().join(&source).parent().unwrap().join(target).canonicalize();
            let whole = whole.unwrap_or_else(|error| panic!("{source}: {target}: {error}"));
            let path = whole.strip_prefix(root()).unwrap().to_str().unwrap();
            assert!(context.has(path), "{source} includes {path}, which the ignore file leaves out");
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen}");
}

/// The build's steps but for the compiler: the layer of the dependencies, which comes before the sources, and the
/// sources over it.
#[test]
fn cargo_accepts_the_manifest_with_and_without_sources() {
    let stages = stages(&text("deploy/Dockerfile"));
    let build = &stages[0];
    let dir = unused_dir("layer");
    let targets = || -> BTreeSet<String> {
        let cargo = ["metadata", "--format-version", "1", "--locked", "--offline", "--no-deps"];
        let read = Command::new(env!("CARGO")).args(cargo).current_dir(&dir).output().unwrap();
        assert!(read.status.success(), "{}", err(&read));
        let metadata: Value = serde_json::from_slice(&read.stdout).unwrap();
        let packages = metadata["packages"].as_array().unwrap().iter();
        let targets = packages.flat_map(|package| package["targets"].as_array().unwrap());
        let bare = fs::canonicalize(&dir).unwrap();
        targets
            .map(|target| {
                let path = Path::new(target["src_path"].as_str().unwrap());
                path.strip_prefix(&bare).unwrap().display().to_string()
            })
            .collect()
    };
    let shell = build.words("SHELL");
    let (mut layers, mut built) = (Vec::new(), 0);
    let work = build.instructions.iter().skip_while(|(word, _)| word != "COPY");
    for (word, rest) in work {
        match (word.as_str(), rest.as_str()) {
            ("COPY", ". .") => Context::read().copy_to(&dir),
            ("COPY", "vendor vendor") => {
                assert!(Context::read().has("vendor"));
                fs::create_dir_all(dir.join("vendor")).unwrap();
                reported("cp", &["-RT", "vendor", dir.join("vendor").to_str().unwrap()])
                    .unwrap_or_else(|output| panic!("{}", err(&output)));
            }
            ("COPY", "crates/sandbox/Cargo.toml crates/sandbox/") => {
                assert!(Context::read().has("crates/sandbox/Cargo.toml"));
                fs::create_dir_all(dir.join("crates/sandbox")).unwrap();
                let manifest = "crates/sandbox/Cargo.toml";
                fs::copy(root().join(manifest), dir.join(manifest)).unwrap();
            }
            ("COPY", files) => {
                for name in files.strip_suffix(" ./").unwrap().split(' ') {
                    assert!(Context::read().has(name), "{name}");
                    fs::copy(root().join(name), dir.join(name)).unwrap();
                }
            }
            ("RUN", steps) => {
                // What stands before the compiler is run; in its place cargo says what it would build.
                let before = steps.split("cargo build --release --locked").next().unwrap();
                let before = before.trim_end().trim_end_matches("&&");
                let run = Command::new(&shell[0]).args(&shell[1..]).arg(before).current_dir(&dir).output();
                let run = run.unwrap();
                assert!(run.status.success(), "RUN {before}: {}", err(&run));
                if before.len() < steps.len() {
                    layers.push(targets());
                    built += 1;
                }
            }
            (word, rest) => panic!("{word} {rest} is not known here"),
        }
    }
    assert_eq!(built, 2, "dependencies, then the program");
    assert_eq!(layers[0], layers[1], "the sources bring no target and take none away");
    assert!(layers[1].contains("src/main.rs") && layers[1].contains("src/lib.rs"), "{layers:?}");
    let main = fs::read_to_string(dir.join("src/main.rs")).unwrap();
    assert_eq!(main, text("src/main.rs"), "the empty file was replaced");
    fs::remove_dir_all(dir).unwrap();
    // The program is asked for what it was built with, and the image names the same.
    let manifest = text("Cargo.toml");
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")).unwrap();
    let wanted = format!("ARG RUST_IMAGE=rust:{}-slim-", version.trim_end_matches('"'));
    assert!(text("deploy/Dockerfile").contains(&wanted), "{wanted}");
}

/// The real thing, if an engine is at hand.
#[test]
fn an_engine_builds_the_image() {
    match Command::new("docker").arg("info").stdin(Stdio::null()).output() {
        Ok(info) if info.status.success() => {}
        Ok(info) => {
            eprintln!("the image is NOT built by docker: {}", err(&info).trim());
            return;
        }
        Err(error) => {
            eprintln!("the image is NOT built by docker: {error}");
            return;
        }
    }
    let tag = format!("redeemer:test-{}", std::process::id());
    let built = reported("docker", &["build", "--file", "deploy/Dockerfile", "--tag", &tag, "."]);
    built.unwrap_or_else(|output| panic!("{}", err(&output)));
    let version = reported("docker", &["run", "--rm", "--read-only", "--network", "none", &tag, "--version"]);
    let removed = reported("docker", &["image", "rm", &tag]);
    assert_eq!(version.map_err(|output| err(&output)), Ok(out(&run(redeemer().arg("--version")))));
    assert!(removed.is_ok(), "{}", err(&removed.unwrap_err()));
}

// ---- RabbitMQ

fn program(uri: &str, arguments: &[&str]) -> Output {
    run(redeemer().env("REDEEMER_BROKER__URI", uri).args(arguments))
}

#[test]
fn definitions_are_imported_and_verified_by_the_service() {
    let node = Broker::start();
    let file = root().join("deploy/rabbitmq/definitions.json");
    let copy = node.dir().join("definitions.json");
    fs::copy(file, &copy).unwrap();
    node.ctl(&["import_definitions", copy.to_str().unwrap()]);
    let output = program(node.uri(), &["topology", "verify"]);
    assert!(output.status.success(), "{}{}", out(&output), err(&output));
}

/// Three nodes of RabbitMQ 4, in the tree that deploy/local/rabbitmq4 makes.
struct Cluster(PathBuf);

impl Cluster {
    fn script(&self, command: &str, member: &str, arguments: &[&str]) -> String {
        broker::run(command, &self.0.join(member), arguments)
            .unwrap_or_else(|complaint| panic!("{complaint}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = broker::run("remove", &self.0, &[]);
    }
}

#[test]
fn cluster_of_three_nodes_replicates_every_queue() {
    let tree = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("rabbitmq4");
    if let Err(output) = reported("deploy/local/rabbitmq4", &[tree.to_str().unwrap()]) {
        assert_eq!(output.status.code(), Some(3), "{}", err(&output));
        eprintln!("the cluster is NOT tried: {}", err(&output));
        return;
    }
    let conf = text("deploy/rabbitmq/cluster/rabbitmq.conf");
    // The names of the nodes are this machine's.
    let lines: Vec<_> = conf
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("cluster_formation."))
        .collect();
    assert!(lines.len() >= 6, "{lines:?}");
    let cluster = Cluster(broker::unused_dir());
    let parent = std::process::id().to_string();
    let advanced = root().join("deploy/rabbitmq/cluster/advanced.config");
    let mut options = vec!["3", "--parent", &parent, "--root", tree.to_str().unwrap()];
    options.extend(["--advanced", advanced.to_str().unwrap()]);
    options.extend(lines.iter().flat_map(|line| ["--config", line]));
    cluster.script("cluster", "", &options);
    let in_force = "application:get_env(rabbit, dead_letter_worker_publisher_confirm_timeout).";
    for member in ["1", "2", "3"] {
        let reported = cluster.script("ctl", member, &["-q", "eval", in_force]);
        assert_eq!(reported.trim(), "{ok,30000}", "node {member}");
    }
    for name in ["definitions.json", "cluster/policies.json"] {
        let copy = cluster.0.join("1").join(Path::new(name).file_name().unwrap());
        fs::copy(root().join("deploy/rabbitmq").join(name), &copy).unwrap();
        cluster.script("ctl", "1", &["import_definitions", copy.to_str().unwrap()]);
    }
    let uri = cluster.script("uri", "1", &[]);
    let output = program(uri.trim(), &["topology", "verify"]);
    assert!(output.status.success(), "{}{}", out(&output), err(&output));
    let queues = Config::default().topology().plan();
    let wanted = queues.iter().filter(|object| matches!(object, Object::Queue { .. })).count();
    until("every queue has three members and the policy", || {
        let list = ["-q", "list_queues", "--no-table-headers", "name", "policy", "members"];
        let queues = cluster.script("ctl", "1", &list);
        let good = queues.lines().filter(|line| {
            line.contains("\tredemption-members\t") && line.matches("@localhost").count() == 3
        });
        (good.count() == wanted).then_some(())
    });
}

// ---- manifests, compose file and unit, held against the configuration

/// Every document of a YAML file. There is one reader of YAML here, Debian's for Python.
fn documents(file: &Path) -> Vec<Value> {
    const READ: &str =
        "import json, sys, yaml; json.dump(list(yaml.safe_load_all(open(sys.argv[1]))), sys.stdout)";
    let read = reported("/usr/bin/python3", &["-c", READ, file.to_str().unwrap()]);
    serde_json::from_str(&read.unwrap_or_else(|output| panic!("{}", err(&output)))).unwrap()
}

/// Whether the program takes these words.
fn taken(words: &[&str]) {
    let words = [&["redeemer"], words].concat();
    if let Err(error) = Arguments::command().try_get_matches_from(words) {
        panic!("{error}");
    }
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

/// Longer than the service takes to stop: ten seconds more than it gives its work.
fn gives_time_to_stop(config: &Config, grace: Duration, what: &str) {
    assert!(grace >= config.shutdown.deadline.0 + Duration::from_secs(10), "{what}: {grace:?}");
}

fn configured(text: &str, name: &str, environment: &[(String, String)]) -> Config {
    config::parse(text, name, environment.iter().cloned()).unwrap_or_else(|faults| panic!("{faults}"))
}

#[test]
fn the_overlays_are_hardened_and_keep_to_the_merchants_limit() {
    if Command::new("kubectl").args(["kustomize", "--help"]).output().is_err() {
        eprintln!("the overlays are NOT tried: no kubectl to put them together");
        return;
    }
    let mut calls = 0;
    let mut tried = 0;
    for overlay in fs::read_dir(root().join("deploy/kubernetes/overlays")).unwrap() {
        let overlay = overlay.unwrap().path();
        let name = overlay.file_name().unwrap().to_str().unwrap().to_owned();
        let whole = reported("kubectl", &["kustomize", overlay.to_str().unwrap()]);
        let dir = unused_dir("overlay");
        let file = dir.join("whole.yaml");
        fs::write(&file, whole.unwrap_or_else(|output| panic!("{name}: {}", err(&output)))).unwrap();
        let resources = documents(&file);
        fs::remove_dir_all(dir).unwrap();
        let one = |kind: &str| {
            let mut all = resources.iter().filter(|one| one["kind"] == kind);
            let first = all.next().unwrap_or_else(|| panic!("{name}: no {kind}"));
            assert!(all.next().is_none(), "{name}: more than one {kind}");
            first
        };
        assert!(resources.iter().all(|one| one["kind"] != "Secret"), "{name}: secrets are only referred to");

        // The configuration is one, and names files that are mounted.
        let pod = &one("Deployment")["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        taken(&strings(&container["args"]));
        let entry = |entry: &Value| {
            let text = |key: &str| entry[key].as_str().unwrap().to_owned();
            (text("name"), text("value"))
        };
        let environment: Vec<_> = container["env"].as_array().unwrap().iter().map(entry).collect();
        let settings: Vec<_> =
            environment.iter().filter(|(key, _)| key != "REDEEMER_CONFIG").cloned().collect();
        let config =
            configured(one("ConfigMap")["data"]["redeemer.toml"].as_str().unwrap(), &name, &settings);
        assert!(config.wechat_settings().is_ok(), "{name}");
        let mounts: Vec<_> = container["volumeMounts"].as_array().unwrap().iter().collect();
        let (_, file) = environment.iter().find(|(key, _)| key == "REDEEMER_CONFIG").unwrap();
        let keys = config.wechat.public_keys.values().map(|path| path.to_str().unwrap());
        let files = [file.as_str(), &config.broker.uri_file, &config.wechat.merchant_key_file];
        for file in files.into_iter().chain(keys) {
            let (folder, _) = file.rsplit_once('/').unwrap();
            let mount = mounts.iter().find(|mount| mount["mountPath"] == folder);
            assert_eq!(mount.unwrap_or_else(|| panic!("{name}: {file} is not mounted"))["readOnly"], true);
        }

        // Spread over nodes that take it, each revision by itself: the old one's pods must not keep the new one's out.
        let spread = &pod["topologySpreadConstraints"][0];
        assert_eq!(spread["nodeTaintsPolicy"], "Honor", "{name}");
        assert_eq!(spread["matchLabelKeys"], serde_json::json!(["pod-template-hash"]), "{name}");

        // It is stopped gently, asked where it listens, and may do nothing beyond.
        let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
        gives_time_to_stop(&config, grace, &name);
        let dockerfile = stages(&text("deploy/Dockerfile")).pop().unwrap();
        let listen = dockerfile.environment().into_iter().find(|(key, _)| key == "REDEEMER_ADMIN__LISTEN");
        let port = listen.unwrap().1.rsplit_once(':').unwrap().1.parse::<u64>().unwrap();
        assert_eq!(container["ports"][0]["containerPort"], port);
        for (probe, path) in
            [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
        {
            assert_eq!(container[probe]["httpGet"]["path"], path, "{name}: {probe}");
        }
        assert!(container["image"].as_str().unwrap().contains(":0"), "{name}: a version, not the newest");
        let (of_pod, of_container) = (&pod["securityContext"], &container["securityContext"]);
        let user = format!("{}:{}", of_pod["runAsUser"], of_pod["runAsGroup"]);
        assert_eq!(user, dockerfile.one("USER"));
        assert_eq!(of_pod["fsGroup"], of_pod["runAsGroup"], "{name}: secrets are lent to our own group");
        assert_eq!(
            (&of_pod["runAsNonRoot"], &of_container["readOnlyRootFilesystem"]),
            (&true.into(), &true.into())
        );
        assert_eq!(of_container["allowPrivilegeEscalation"], false);
        assert_eq!(of_container["capabilities"]["drop"][0], "ALL");
        assert_eq!(of_pod["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["automountServiceAccountToken"], false);
        let namespace = &one("Namespace")["metadata"]["labels"];
        assert_eq!(namespace["pod-security.kubernetes.io/enforce"], "restricted");

        // Anyone who selects, selects our pods.
        let labels = one("Deployment")["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
        for (kind, selector) in [
            ("Deployment", &one("Deployment")["spec"]["selector"]["matchLabels"]),
            ("Service", &one("Service")["spec"]["selector"]),
            ("PodDisruptionBudget", &one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]),
            ("NetworkPolicy", &one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]),
            ("ServiceMonitor", &one("ServiceMonitor")["spec"]["selector"]["matchLabels"]),
        ] {
            let selector = selector.as_object().unwrap();
            assert!(!selector.is_empty(), "{name}: {kind} selects everything");
            assert!(selector.iter().all(|(key, value)| labels.get(key) == Some(value)), "{name}: {kind}");
        }

        admits_no_whole_namespace(one("NetworkPolicy"), &name);

        // Instances share the merchant's limit: with answers that take a second no more of them can be fed.
        let scaled = &one("ScaledObject")["spec"];
        let most = scaled["maxReplicaCount"].as_u64().unwrap();
        let limit = u64::from(config.rate_limit.calls_per_second);
        assert!(most * config.concurrency.commands as u64 <= limit, "{name}: {most} instances for {limit}/s");
        assert!(scaled["minReplicaCount"].as_u64().unwrap() >= 1, "{name}: nobody would take a command");
        assert_eq!(scaled["triggers"][0]["metadata"]["queueName"], config.broker.names.commands.as_str());
        assert_eq!(one("Deployment")["spec"].get("replicas"), None, "{name}: KEDA sets them");
        calls += limit;
        tried += 1;
    }
    assert!(tried >= 2);
    // One merchant number, one limit.
    assert!(calls <= u64::from(Config::default().rate_limit.calls_per_second), "{calls}");
}

#[test]
fn the_compose_file_starts_what_there_is() {
    let compose = documents(&root().join("deploy/compose.yaml")).remove(0);
    let services = compose["services"].as_object().unwrap();
    for name in ["rabbitmq", "sandbox", "redeemer", "prometheus", "grafana", "postgres", "brands"] {
        assert!(services.contains_key(name), "{name}");
        let optional = ["postgres", "brands"].contains(&name);
        assert_eq!(
            services[name]["profiles"][0] == "brands",
            optional,
            "{name}: who wants no brands gets none"
        );
    }
    for (name, service) in services {
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port} is open to others");
        }
        let tag = service["image"].as_str().unwrap().rsplit_once(':').map(|(_, tag)| tag);
        assert!(tag.is_some_and(|tag| tag != "latest"), "{name}");
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let source = volume.as_str().unwrap().split_once(':').unwrap().0;
            let Some(path) = source.strip_prefix("./") else { continue };
            assert!(root().join("deploy").join(path).exists(), "{name}: deploy/{path} is not there");
        }
        if let Some(context) = service["build"]["context"].as_str() {
            let file = service["build"]["dockerfile"].as_str().unwrap_or("Dockerfile");
            let file = root().join("deploy").join(context).join(file);
            assert!(file.is_file(), "{name}: {} is not there", file.display());
        }
        if service["image"] != "redeemer:local" {
            continue;
        }
        assert_eq!((&service["read_only"], &service["cap_drop"][0]), (&true.into(), &"ALL".into()), "{name}");
        match service.get("command") {
            Some(command) => taken(&strings(command)),
            None => assert_eq!(name, "redeemer", "the image's own command"),
        }
        let environment = service["environment"].as_object().unwrap().iter();
        let environment: Vec<_> = environment
            .filter(|(key, _)| *key != "REDEEMER_CONFIG")
            .map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
            .collect();
        let config = configured("", name, &environment);
        if let Some(grace) = service["stop_grace_period"].as_str() {
            let grace = grace.strip_suffix('s').unwrap().parse().unwrap();
            gives_time_to_stop(&config, Duration::from_secs(grace), name);
        }
    }
    assert!(services["redeemer"]["stop_grace_period"].is_string());
    // The command is a golden one, but for a coupon that the sandbox issues, which is used once and has no rounds.
    let published = strings(&services["publish"]["command"]).pop().unwrap();
    let mut golden: Value = serde_json::from_str(&text("docs/contract/examples/command.flat.json")).unwrap();
    golden["coupon_code"] = "auto_1".into();
    golden.as_object_mut().unwrap().remove("sequential_coupon_index");
    assert_eq!(serde_json::from_str::<Value>(published).unwrap(), golden);
}

#[test]
fn the_unit_starts_the_service_and_gives_it_time_to_stop() {
    let unit = text("deploy/systemd/redeemer.service");
    let setting = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(&format!("{key}=")));
        line.unwrap_or_else(|| panic!("no {key}"))
    };
    let words: Vec<_> = setting("ExecStart").split(' ').collect();
    assert_eq!(words[0], "/usr/local/bin/redeemer");
    taken(&words[1..]);
    let grace = setting("TimeoutStopSec").strip_suffix('s').unwrap().parse().unwrap();
    gives_time_to_stop(&Config::default(), Duration::from_secs(grace), "redeemer.service");
    // Its user is one that systemd makes of the other file.
    let dir = unused_dir("sysusers");
    fs::create_dir(dir.join("etc")).unwrap();
    let users = root().join("deploy/systemd/redeemer.sysusers");
    let made = reported("systemd-sysusers", &[&format!("--root={}", dir.display()), users.to_str().unwrap()]);
    assert!(made.is_ok(), "{}", err(&made.unwrap_err()));
    let users = fs::read_to_string(dir.join("etc/passwd")).unwrap();
    assert!(users.lines().any(|line| line.starts_with(&format!("{}:", setting("User")))), "{users}");
    fs::remove_dir_all(dir).unwrap();
}

/// This machine with folders of its own if the service is installed: a mount namespace, and nothing outside changes.
struct Machine {
    dir: PathBuf,
}

/// Who runs a command there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Root,
    /// The user of the unit.
    Service,
    /// A user of the machine who has the service's group among the supplementary ones.
    Operator,
}

impl Machine {
    /// Nothing if this process cannot have a namespace; that has been said aloud then.
    fn build() -> Option<Self> {
        let dir = unused_dir("machine");
        let machine = Self { dir };
        for folder in ["bin", "sysusers", "staging"] {
            fs::create_dir(machine.dir.join(folder)).unwrap();
        }
        reported("cp", &["-a", "/etc", machine.dir.join("etc").to_str().unwrap()]).unwrap();
        fs::create_dir_all(machine.dir.join("etc/systemd/system")).unwrap();
        let tried = machine.run(Who::Root, "true");
        if !tried.status.success() {
            eprintln!("the unit's installation is NOT tried, it needs root: {}", err(&tried));
            return None;
        }
        Some(machine)
    }

    fn staged(&self, name: &str) -> PathBuf {
        self.dir.join("staging").join(name)
    }

    /// Runs a line of a shell, in the folder with what is to be installed.
    fn run(&self, who: Who, line: &str) -> Output {
        const ENTER: &str = r#"
            dir=$1 line=$2; shift 2
            mount --bind "$dir/etc" /etc
            mount --bind "$dir/bin" /usr/local/bin
            mount --bind "$dir/sysusers" /usr/lib/sysusers.d
            cd "$dir/staging"
            case "$1" in
              Service) as="--reuid=redeemer --regid=redeemer --clear-groups"; cd / ;;
              Operator) as="--reuid=64991 --regid=64991 --groups=$(getent group redeemer | cut -d: -f3)"; cd / ;;
              *) as= ;;
            esac
            exec setpriv $as env --ignore-environment PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin bash -c "$line""#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "bash", "-euc", ENTER, "bash"]);
        run(command.arg(&self.dir).arg(line).arg(format!("{who:?}")).stdin(Stdio::null()))
    }

    /// The ids of faults and warnings, as `check` prints them for people, and the remedies.
    fn findings(&self, who: Who, line: &str) -> (Vec<(String, String)>, Option<i32>) {
        let output = self.run(who, line);
        let printed = out(&output);
        let mut findings: Vec<(String, String)> = Vec::new();
        for line in printed.lines() {
            if let Some(remedy) = line.trim_start().strip_prefix("remedy: ") {
                findings.last_mut().unwrap().1 = remedy.to_owned();
            } else if !line.starts_with("ok ") {
                let id = line.split_once(" [").and_then(|(_, rest)| rest.split_once("]: "));
                findings.push((id.unwrap_or_else(|| panic!("{printed}")).0.to_owned(), String::new()));
            }
        }
        (findings, output.status.code())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The lines of the runbook that begin with the program's name.
fn steps_of_the_runbook() -> BTreeSet<String> {
    let runbook = text("docs/runbook.md");
    let steps = runbook.split("```sh\n").skip(1).flat_map(|fence| fence.split("```").next().unwrap().lines());
    steps.filter(|line| line.starts_with("redeemer ")).map(str::to_owned).collect()
}

/// As its own comment says, line by line; then each step of the runbook, by everybody who may take it.
#[test]
fn installation_by_the_unit_passes_every_runbook_step() {
    let Some(machine) = Machine::build() else { return };
    let node = Broker::start();
    let programs = Programs::start_by_default_names(node.uri());
    let config = fs::read_to_string(programs.config_file()).unwrap();
    let mut config: toml::Table = config.parse().unwrap();
    let key = config["wechat"]["merchant_key_file"].as_str().unwrap().to_owned();
    let public_keys = config["wechat"]["public_keys"].as_table_mut().unwrap();
    let (_, public_key) = public_keys.iter_mut().next().unwrap();
    let public = std::mem::replace(public_key, "/etc/redeemer/wechatpay_public_key.pem".into());
    config["wechat"]
        .as_table_mut()
        .unwrap()
        .insert("merchant_key_file".to_owned(), "/etc/redeemer/apiclient_key.pem".into());
    let broker = config["broker"].as_table_mut().unwrap();
    broker.remove("uri");
    broker.insert("uri_file".to_owned(), "/etc/redeemer/broker.uri".into());
    fs::copy(key, machine.staged("apiclient_key.pem")).unwrap();
    fs::copy(public.as_str().unwrap(), machine.staged("wechatpay_public_key.pem")).unwrap();
    fs::write(machine.staged("broker.uri"), format!("{}\n", node.uri())).unwrap();
    fs::write(machine.staged("redeemer.toml"), toml::to_string(&config).unwrap()).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_redeemer"), machine.staged("redeemer")).unwrap();
    std::os::unix::fs::symlink(root().join("deploy"), machine.staged("deploy")).unwrap();

    let unit = text("deploy/systemd/redeemer.service");
    let lines: Vec<_> = unit.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
    assert!(lines.len() >= 5, "{lines:?}");
    for line in lines {
        // There is no systemd here to start it.
        let line = line.split(" && systemctl ").next().unwrap();
        let installed = machine.run(Who::Root, line);
        assert!(installed.status.success(), "{line}: {}", err(&installed));
    }

    let everybody = [Who::Root, Who::Service, Who::Operator];
    let steps = steps_of_the_runbook();
    assert!(steps.len() >= 3 && steps.iter().any(|step| step.contains(" check ")), "{steps:?}");
    for step in &steps {
        for who in everybody {
            let done = machine.run(who, step);
            assert_eq!(done.status.code(), Some(0), "{step} by {who:?}: {}{}", out(&done), err(&done));
        }
    }
    let check = "redeemer check --config /etc/redeemer/redeemer.toml";
    // What is not seen without the management API, and what this broker lets through, is about no file.
    let about_files = |who: Who| {
        let (found, code) = machine.findings(who, check);
        let others = ["broker_settings", "consumer_timeout", "message_size"];
        let found: Vec<_> = found.into_iter().filter(|(id, _)| !others.contains(&id.as_str())).collect();
        (found, code)
    };
    let all_is_well = |what: &str| {
        for who in everybody {
            assert_eq!(about_files(who), (Vec::new(), Some(0)), "{what}, by {who:?}");
        }
    };
    let root_sees_and_fixes = |what: &str| {
        let (found, code) = about_files(Who::Root);
        let ids: Vec<_> = found.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!((ids, code), (vec!["key_hidden_from_service"], Some(0)), "{what}");
        let typed = machine.run(Who::Root, &found[0].1);
        assert!(typed.status.success(), "{what}: {}", err(&typed));
        all_is_well(&format!("{what}, after {}", found[0].1));
    };
    all_is_well("as installed");

    // What people make of it: each remedy that root reads is typed as printed, and takes nobody's right to read.
    for file in ["apiclient_key.pem", "broker.uri"] {
        let file = format!("/etc/redeemer/{file}");
        for (owner, mode) in [
            ("root:redeemer", "644"),
            ("root:redeemer", "660"),
            ("root:redeemer", "641"),
            ("root:root", "644"),
            // Not the service's group: by the mode alone it would be shut out.
            ("root:users", "644"),
            ("nobody:users", "664"),
            ("redeemer:redeemer", "640"),
            ("redeemer:redeemer", "644"),
            ("nobody:redeemer", "640"),
            ("nobody:nogroup", "644"),
        ] {
            let what = format!("{file}, {owner} {mode}");
            let spoil = || {
                let spoiled = machine.run(Who::Root, &format!("chown {owner} {file}; chmod {mode} {file}"));
                assert!(spoiled.status.success(), "{what}: {}", err(&spoiled));
            };
            for who in [Who::Root, Who::Service] {
                spoil();
                let (found, _) = about_files(who);
                let ids: Vec<_> = found.iter().map(|(id, _)| id.as_str()).collect();
                assert_eq!(ids, ["key_exposed"], "{what}, by {who:?}");
                // The service itself may not change what is root's: root types that, and needs no sudo.
                let remedy = found[0].1.replace("sudo ", "");
                let typist = if found[0].1.contains("sudo ") { Who::Root } else { who };
                let typed = machine.run(typist, &remedy);
                assert!(typed.status.success(), "{what}, {remedy}: {}", err(&typed));
                for reader in [Who::Root, Who::Service] {
                    assert_eq!(
                        about_files(reader),
                        (Vec::new(), Some(0)),
                        "{what}, by {reader:?} after {remedy}"
                    );
                }
                if who == Who::Root {
                    all_is_well(&format!("{what}, after {remedy}"));
                }
            }
        }
        // Good for root, and the service would not start.
        for (owner, mode) in [("root:root", "600"), ("root:root", "640"), ("root:redeemer", "600")] {
            let what = format!("{file}, {owner} {mode}");
            let spoiled = machine.run(Who::Root, &format!("chown {owner} {file}; chmod {mode} {file}"));
            assert!(spoiled.status.success(), "{what}: {}", err(&spoiled));
            let found = about_files(Who::Service);
            assert_eq!((found.0[0].0.as_str(), found.0.len()), ("key_unreadable", 1), "{what}: {found:?}");
            root_sees_and_fixes(&what);
        }
        let restored = machine.run(Who::Root, &format!("chown root:redeemer {file}; chmod 640 {file}"));
        assert!(restored.status.success(), "{}", err(&restored));
    }
    all_is_well("as installed, again");
    // A folder that only root may enter, above files that the service may read.
    for (owner, mode) in [("root:root", "700"), ("root:users", "750"), ("root:redeemer", "740")] {
        let what = format!("/etc/redeemer, {owner} {mode}");
        let spoil = format!("chown {owner} /etc/redeemer; chmod {mode} /etc/redeemer");
        let spoiled = machine.run(Who::Root, &spoil);
        assert!(spoiled.status.success(), "{what}: {}", err(&spoiled));
        assert_eq!(machine.findings(Who::Service, check).1, Some(3), "{what}");
        root_sees_and_fixes(&what);
    }
}

/// The system calls of a set of systemd's, sets in it taken apart.
fn system_calls(set: &str) -> BTreeSet<String> {
    let listed = reported("systemd-analyze", &["syscall-filter", set])
        .unwrap_or_else(|output| panic!("{}", err(&output)));
    let entries =
        listed.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let apart = |entry: &str| match entry.starts_with('@') {
        true => system_calls(entry),
        false => BTreeSet::from([entry.to_owned()]),
    };
    entries.flat_map(apart).collect()
}

/// Nothing here runs under systemd, so the service is watched instead, from its start through its work to its end.
#[test]
fn the_unit_forbids_nothing_that_the_service_does() {
    let unit = text("deploy/systemd/redeemer.service");
    let mut allowed = BTreeSet::new();
    for filter in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        for set in filter.trim_start_matches('~').split(' ') {
            match filter.starts_with('~') {
                false => allowed.extend(system_calls(set)),
                true => allowed.retain(|call| !system_calls(set).contains(call)),
            }
        }
    }
    assert!(allowed.contains("read") && !allowed.contains("mount") && !allowed.contains("setrlimit"));

    let node = Broker::start();
    let mut programs = Programs::start(node.uri());
    programs.stop_service();
    let dir = unused_dir("trace");
    let (trace, address) = (dir.join("trace"), dir.join("admin.address"));
    let service = programs.command(&["run", "--admin-address-file", address.to_str().unwrap()]);
    let mut watched = Command::new("strace");
    watched.args(["-f", "-qq", "-o"]).arg(&trace).arg(service.get_program()).args(service.get_args());
    for (key, value) in service.get_envs() {
        match value {
            Some(value) => watched.env(key, value),
            None => watched.env_remove(key),
        };
    }
    let log = dir.join("service.log");
    watched.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
    let service = Container { child: watched.spawn().unwrap(), log };
    let command = programs::command("watched").to_string();
    let reported = run(&mut programs.command(&["publish", "--wait", "--expect", "redeemed", &command]));
    assert!(reported.status.success(), "{}", err(&reported));
    let admin = fs::read_to_string(&address).unwrap();
    assert!(programs::get(&admin, "/metrics").unwrap().contains("process_start_time_seconds"));
    assert_eq!(service.stop(), Some(0));

    let trace = fs::read_to_string(trace).unwrap();
    let mut seen = BTreeSet::new();
    for line in trace.lines() {
        let Some((_, rest)) = line.split_once(' ') else { continue };
        let Some((call, arguments)) = rest.trim_start().split_once('(') else { continue };
        if !call.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_') {
            continue;
        }
        seen.insert(call.to_owned());
        // MemoryDenyWriteExecute and RestrictAddressFamilies.
        let executable = arguments.contains("PROT_EXEC");
        assert!(!(executable && (call == "mprotect" || arguments.contains("PROT_WRITE"))), "{line}");
        if call == "socket" {
            let family = arguments.split(',').next().unwrap();
            let families =
                unit.lines().find_map(|line| line.strip_prefix("RestrictAddressFamilies=")).unwrap();
            assert!(families.split(' ').any(|known| known == family), "{line}");
        }
    }
    assert!(seen.len() > 30 && seen.contains("epoll_wait"), "{seen:?}");
    let forbidden: Vec<_> = seen.difference(&allowed).collect();
    assert!(forbidden.is_empty(), "{forbidden:?}");
    fs::remove_dir_all(dir).unwrap();
}

/// Each peer of a policy that names a namespace names pods in it, too: anyone who may start a pod there would be let in.
fn admits_no_whole_namespace(policy: &serde_json::Value, name: &str) {
    let rules = |key: &str| policy["spec"][key].as_array().cloned().unwrap_or_default();
    let mut tried = 0;
    for (rule, peers) in rules("ingress")
        .iter()
        .map(|rule| (rule, &rule["from"]))
        .chain(rules("egress").iter().map(|rule| (rule, &rule["to"])))
    {
        let peers = peers.as_array().unwrap_or_else(|| panic!("{name}: {rule} is open to everybody"));
        assert!(!peers.is_empty(), "{name}: {rule} is open to everybody");
        for peer in peers {
            if peer.get("ipBlock").is_some() {
                continue;
            }
            for selector in ["namespaceSelector", "podSelector"] {
                let labels = peer[selector]["matchLabels"].as_object();
                assert!(labels.is_some_and(|labels| !labels.is_empty()), "{name}: {selector} of {peer}");
            }
            tried += 1;
        }
    }
    assert!(tried >= 3, "{name}: {tried} peers");
}

/// A message is buffered whole before its length can be checked, so the memory of the process has a limit wherever it runs,
/// and the same one.
#[test]
fn memory_is_limited_in_unit_compose_file_and_deployment() {
    let unit = text("deploy/systemd/redeemer.service");
    let limits: Vec<_> = unit.lines().filter_map(|line| line.strip_prefix("MemoryMax=")).collect();
    assert_eq!(limits, ["512M"]);
    let compose: serde_json::Value = documents(&root().join("deploy/compose.yaml")).remove(0);
    assert_eq!(compose["services"]["redeemer"]["mem_limit"], "512m");
    let deployment: serde_json::Value =
        documents(&root().join("deploy/kubernetes/base/deployment.yaml")).remove(0);
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["resources"]["limits"]["memory"], "512Mi");
}
