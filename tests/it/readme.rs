//! The README's way to a first success, in both languages: what stands in its `sh` blocks is typed, line by line, in a
//! copy of a clean clone.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::broker;
use rstest::rstest;
use serde_json::Value;

use crate::ports;
use crate::programs::{ended, unused_dir};

/// What stands here for the program that a reader installs.
const INSTALL: &str = "cargo install --locked --path .";
/// Where the reader's broker is.
const BROKER: &str = "target/try/broker";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The `sh` blocks of the section that begins with the installation; those for an engine are left out.
fn typed(page: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let section = text.split("\n## ").find(|section| section.contains(INSTALL));
    let section = section.unwrap_or_else(|| panic!("{page}: nothing installs the program"));
    let blocks = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    let (engine, blocks): (Vec<_>, Vec<_>) = blocks.partition(|block| block.starts_with("docker "));
    for block in engine {
        eprintln!("{page}: NOT typed, for it wants an engine:\n{block}");
    }
    blocks
}

/// A clone, the shell in it, and whatever that started.
struct Reader {
    clone: PathBuf,
    shell: Option<Child>,
}

impl Reader {
    fn new() -> Self {
        let clone = unused_dir("readme");
        // A clone has what the repository holds, and no `target`.
        for name in ["Cargo.toml", "Cargo.lock", "config.toml", "deploy", "docs", "src"] {
            let from = root().join(name);
            let copied = Command::new("cp").arg("-R").arg(from).arg(&clone).status().unwrap();
            assert!(copied.success(), "{name}");
        }
        fs::create_dir(clone.join("bin")).unwrap();
        symlink(env!("CARGO_BIN_EXE_redeemer"), clone.join("bin/redeemer")).unwrap();
        Self { clone, shell: None }
    }

    /// Types it all; what came on standard output.
    fn type_in(&mut self, lines: &str) -> String {
        let own = |name: &str| fs::File::create(self.clone.join(name)).unwrap();
        let path = format!("{}/bin:{}", self.clone.display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("bash");
        // As a person would, who stops where something fails; the name of each line stands before its output.
        shell.args(["-euxc", lines]).current_dir(&self.clone).env("PATH", path).process_group(0);
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REDEEMER_"))
        {
            shell.env_remove(name);
        }
        // Another service of this machine may have the port; the blocks name none, so the environment may.
        shell.env("REDEEMER_ADMIN__LISTEN", format!("127.0.0.1:{}", ports::unused()));
        shell.stdin(Stdio::null()).stdout(own("typed.out")).stderr(own("typed.err"));
        let shell = self.shell.insert(shell.spawn().unwrap());
        let status = ended(shell);
        let said = |name: &str| fs::read_to_string(self.clone.join(name)).unwrap_or_default();
        let (out, err) = (said("typed.out"), said("typed.err"));
        let log = said("target/try/run.log");
        assert!(status.success(), "{status}\n{out}\n{err}\n{log}");
        out
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // What the shell left behind where a line failed.
        if let Some(shell) = &self.shell {
            let group = format!("-{}", shell.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        }
        let _ = broker::run("remove", &self.clone.join(BROKER), &[]);
        let _ = fs::remove_dir_all(&self.clone);
    }
}

#[rstest]
#[case("README.md")]
#[case("README.zh-CN.md")]
fn a_newcomer_types_what_the_readme_says_and_it_works(#[case] page: &str) {
    let blocks = typed(page);
    assert!(blocks.len() >= 3, "{page}: {blocks:#?}");
    let lines = blocks.concat();
    assert!(lines.contains(BROKER) && !lines.contains("9464"), "{page}");
    eprintln!("{page}: NOT typed, for the program is built already: {INSTALL}");
    let mut reader = Reader::new();
    let out = reader.type_in(&lines.replace(INSTALL, "redeemer --version"));
    let events = out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let outcomes: Vec<_> =
        events.map(|event| event["data"]["outcome"].as_str().unwrap().to_owned()).collect();
    assert_eq!(outcomes, ["redeemed", "redeemed", "redeemed", "redeemed", "refused"], "{page}: {out}");
    assert!(!reader.clone.join("target/try").exists(), "{page}: what was tried is gone");
}
