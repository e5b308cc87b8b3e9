//! The layers of the crate, kept by a test: `lib.rs` lists the modules from the ground floor up, and each may name
//! only those before it. Unit tests at the foot of a file are not looked at, nor are comments and texts.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A path as it stands in the source: `crate::domain::reason::Reason`, groups of a `use` taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mention {
    line: usize,
    /// Whether it begins with `::`.
    rooted: bool,
    segments: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Colons,
    Other(char),
}

// ---- reading Rust, as far as paths need it

const KEYWORDS: [&str; 14] = [
    "use", "return", "in", "else", "match", "if", "while", "dyn", "impl", "as", "for", "where", "mut",
    "break",
];

/// Words and signs with their lines; comments, texts, characters and lifetimes are left out.
fn tokens(source: &str) -> Vec<(usize, Token)> {
    let text: Vec<char> = source.chars().collect();
    let at = |n: usize| text.get(n).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut tokens, mut line, mut n) = (Vec::new(), 1, 0);
    while n < text.len() {
        let from = n;
        match (at(n), at(n + 1)) {
            ('/', '/') => {
                while n < text.len() && at(n) != '\n' {
                    n += 1;
                }
            }
            ('/', '*') => {
                let mut depth = 0;
                loop {
                    match (at(n), at(n + 1)) {
                        ('/', '*') => (depth, n) = (depth + 1, n + 2),
                        ('*', '/') => (depth, n) = (depth - 1, n + 2),
                        _ => n += 1,
                    }
                    if depth == 0 || n >= text.len() {
                        break;
                    }
                }
            }
            ('"', _) => {
                n += 1;
                while n < text.len() && at(n) != '"' {
                    n += if at(n) == '\\' { 2 } else { 1 };
                }
                n += 1;
            }
            ('\'', '\\') => {
                n += 3;
                while n < text.len() && at(n) != '\'' {
                    n += 1;
                }
                n += 1;
            }
            ('\'', _) if at(n + 2) == '\'' => n += 3,
            // A lifetime: the mark goes, and its name with it.
            ('\'', _) => {
                n += 1;
                while is_word(at(n)) {
                    n += 1;
                }
            }
            (':', ':') => {
                tokens.push((line, Token::Colons));
                n += 2;
            }
            (c, _) if is_word(c) => {
                while is_word(at(n)) {
                    n += 1;
                }
                let word: String = text[from..n].iter().collect();
                let hashes = (n..).take_while(|n| at(*n) == '#').count();
                if matches!(word.as_str(), "r" | "br" | "cr") && at(n + hashes) == '"' {
                    let end: Vec<char> =
                        std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                    n += hashes + 1;
                    while n < text.len() && !text[n..].starts_with(&end) {
                        n += 1;
                    }
                    n += end.len();
                } else if word == "r" && hashes == 1 {
                    n += 1; // r#type: the word itself follows
                } else {
                    tokens.push((line, Token::Word(word)));
                }
            }
            (c, _) => {
                if !c.is_whitespace() {
                    tokens.push((line, Token::Other(c)));
                }
                n += 1;
            }
        }
        line += text[from..n.min(text.len())].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

/// Every path in a source, single words included.
fn mentions(source: &str) -> Vec<Mention> {
    let tokens = tokens(source);
    let (mut found, mut n) = (Vec::new(), 0);
    while n < tokens.len() {
        let rooted = tokens[n].1 == Token::Colons;
        let begin = n + usize::from(rooted);
        if let Some((line, Token::Word(_))) = tokens.get(begin) {
            let first = Mention { line: *line, rooted, segments: Vec::new() };
            n = path(&tokens, begin, &first, &mut found);
        } else {
            n += 1;
        }
    }
    found
}

/// Reads one path from `n` on behind `before`; gives the place after it.
fn path(tokens: &[(usize, Token)], mut n: usize, before: &Mention, found: &mut Vec<Mention>) -> usize {
    let mut mention = before.clone();
    loop {
        match tokens.get(n) {
            Some((line, Token::Word(word))) => {
                mention.line = *line;
                mention.segments.push(word.clone());
                n += 1;
            }
            Some((line, Token::Other('*'))) => {
                mention.line = *line;
                mention.segments.push("*".to_owned());
                n += 1;
            }
            Some((_, Token::Other('{'))) => {
                n += 1;
                while !matches!(tokens.get(n), None | Some((_, Token::Other('}')))) {
                    if tokens[n].1 == Token::Word("as".to_owned()) {
                        n += 2;
                        continue;
                    }
                    let next = path(tokens, n, &mention, found);
                    // Whatever begins no path, a comma above all, is passed over.
                    n = if next == n { n + 1 } else { next };
                }
                return n + 1;
            }
            _ => {
                if mention.segments.len() > before.segments.len() {
                    found.push(mention);
                }
                return n;
            }
        }
        // Behind a keyword a new path begins: `use ::backoff::X`.
        let keyword = mention.segments.last().is_some_and(|word| KEYWORDS.contains(&word.as_str()));
        let goes_on = !keyword
            && matches!(tokens.get(n), Some((_, Token::Colons)))
            && matches!(tokens.get(n + 1), Some((_, Token::Word(_) | Token::Other('{' | '*'))));
        if !goes_on {
            found.push(mention);
            return n;
        }
        n += 1;
    }
}

/// What stands above the unit tests at the foot.
fn product_code(source: &str) -> &str {
    source.split_once("\n#[cfg(test)]\nmod tests {").map_or(source, |(above, _)| above)
}

// ---- the crate

struct File {
    path: PathBuf,
    /// The module of the first level that it belongs to, and how deep below it.
    module: String,
    depth: usize,
    mentions: Vec<Mention>,
}

impl File {
    fn reported(&self, mention: &Mention, why: &str) -> String {
        let path = mention.segments.join("::");
        format!("{}:{}: {path}: {why}", self.path.display(), mention.line)
    }
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every file of Rust below a folder: its path, the same from there in parts without its ending, and what it mentions.
fn rust_files(root: &Path) -> Vec<(PathBuf, Vec<String>, Vec<Mention>)> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inside = path.strip_prefix(root).unwrap().with_extension("");
                let parts = inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
                let mentions = mentions(product_code(&fs::read_to_string(&path).unwrap()));
                found.push((path, parts, mentions));
            }
        }
    }
    assert!(found.len() > 10, "{}: the source was not found", root.display());
    found
}

fn files() -> Vec<File> {
    let file = |(path, parts, mentions): (PathBuf, Vec<String>, Vec<Mention>)| {
        let depth = parts.len() - 1 - usize::from(parts.last().is_some_and(|last| last == "mod"));
        File { path, module: parts[0].clone(), depth, mentions }
    };
    let mut found: Vec<File> = rust_files(&src()).into_iter().map(file).collect();
    found.retain(|file| !["lib", "main"].contains(&file.module.as_str()) || file.depth > 0);
    assert!(found.len() > 10, "the source was not found");
    found
}

/// The modules in the order of `lib.rs`.
fn order() -> Vec<String> {
    let source = fs::read_to_string(src().join("lib.rs")).unwrap();
    let tokens = tokens(&source);
    let words: Vec<_> = tokens.iter().map(|(_, token)| token).collect();
    let modules = words.windows(2).filter_map(|pair| match pair {
        [Token::Word(keyword), Token::Word(name)] if keyword == "mod" => Some(name.clone()),
        _ => None,
    });
    modules.collect()
}

fn report(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

fn looks_down(from: &str, to: &str, order: &[String]) -> bool {
    let floor = |name: &str| order.iter().position(|module| module == name);
    from == to || floor(to) < floor(from) && floor(to).is_some()
}

#[test]
fn modules_look_only_downward() {
    let order = order();
    let mut faults = Vec::new();
    for file in files() {
        if !order.contains(&file.module) {
            faults.push(format!("{}: lib.rs does not list it", file.path.display()));
        }
        for mention in &file.mentions {
            let supers = mention.segments.iter().take_while(|segment| *segment == "super").count();
            if supers > file.depth {
                faults.push(file.reported(mention, "leaves its module; say crate::"));
            }
            let [root, module, ..] = &mention.segments[..] else { continue };
            if root == "crate" && !looks_down(&file.module, module, &order) {
                let (from, below) = (&file.module, order.contains(module));
                let why = if below {
                    format!("{from} stands below it in lib.rs")
                } else {
                    "no module of lib.rs".to_owned()
                };
                faults.push(file.reported(mention, &why));
            }
        }
    }
    report(&faults);
}

/// Complains of every mention that `is_meant` if the file is not `allowed` to have it.
fn only(allowed: impl Fn(&File) -> bool, is_meant: impl Fn(&File, &Mention) -> bool, why: &str) {
    let files = files();
    let faults = files.iter().filter(|file| !allowed(file)).flat_map(|file| {
        file.mentions
            .iter()
            .filter(|mention| is_meant(file, mention))
            .map(|mention| file.reported(mention, why))
    });
    report(&faults.collect::<Vec<_>>());
}

fn is_in(modules: &'static [&'static str]) -> impl Fn(&File) -> bool {
    move |file| modules.contains(&file.module.as_str())
}

/// A path into one of these crates, or the bare name of one.
fn names(crates: &'static [&'static str]) -> impl Fn(&File, &Mention) -> bool {
    move |_, mention| crates.contains(&mention.segments[0].as_str())
}

const WORDS_AND_POLICY: &[&str] = &["domain", "policy"];

#[test]
fn serde_lives_at_the_edges() {
    let modules = is_in(&["wire", "wechat", "config", "admin", "cli"]);
    let edges = |file: &File| {
        modules(file)
            || ["amqp/management.rs", "telemetry/status.rs", "telemetry/json_log.rs"]
                .iter()
                .any(|end| file.path.ends_with(end))
    };
    only(edges, names(&["serde", "serde_json", "schemars"]), "serde lives at the edges only");
}

#[test]
fn words_and_policy_know_no_clock_no_dice_and_no_world() {
    let world =
        names(&["tokio", "rand", "serde", "serde_json", "schemars", "reqwest", "lapin", "axum", "http"]);
    let pure = |file: &File| !is_in(WORDS_AND_POLICY)(file);
    only(pure, world, "words and policy are pure");
    let io = |_: &File, mention: &Mention| {
        let [first, second, ..] = &mention.segments[..] else { return false };
        first == "std" && ["net", "fs", "io", "env", "process", "thread"].contains(&second.as_str())
    };
    only(pure, io, "words and policy do no IO");
    let clock = |_: &File, mention: &Mention| {
        let has = |word: &str| mention.segments.iter().any(|segment| segment == word);
        ["Instant", "SystemTime", "Timestamp", "Zoned"].into_iter().any(has) && (has("now") || has("elapsed"))
    };
    only(pure, clock, "words and policy are given the time");
}

#[test]
fn each_outside_crate_has_its_place() {
    let backoff = |file: &File, mention: &Mention| {
        // The same name means our module if a file has taken it in.
        let ours = file.mentions.iter().any(|mention| mention.segments == ["crate", "policy", "backoff"]);
        mention.segments[0] == "backoff" && mention.segments.len() > 1 && (mention.rooted || !ours)
    };
    only(
        |file: &File| file.path.ends_with("policy/backoff.rs"),
        backoff,
        "the crate is unmaintained and stays in one file",
    );
    only(is_in(&["amqp"]), names(&["lapin"]), "only the broker's edge knows the client");
    // Two more services that speak HTTP: the broker's management API, and the collector of traces.
    let calls = is_in(&["wechat", "cli"]);
    let http = |file: &File| {
        calls(file) || ["amqp/management.rs", "telemetry/spans.rs"].iter().any(|end| file.path.ends_with(end))
    };
    only(http, names(&["reqwest"]), "only the edges that speak HTTP know the client");
}

#[test]
fn nothing_but_main_ends_the_process() {
    let exits = |_: &File, mention: &Mention| {
        let end: Vec<_> = mention.segments.iter().map(String::as_str).collect();
        end.ends_with(&["process", "exit"]) || end.ends_with(&["process", "abort"])
    };
    only(|_| false, exits, "only main ends the process");
}

// ---- files beside each other

/// What each file takes in from other files of the same crate, but for a module and what stands in its own folder: these
/// are one thing in several files.
fn imports(root: &Path, sources: &BTreeMap<Vec<String>, Vec<Mention>>) -> BTreeMap<String, BTreeSet<String>> {
    let name = |module: &[String]| format!("{}/{}", root.display(), module.join("/"));
    let mut graph = BTreeMap::new();
    for (module, mentions) in sources {
        let to = mentions.iter().filter_map(|mention| {
            let supers = mention.segments.iter().take_while(|segment| *segment == "super").count();
            let (above, rest) = match mention.segments.first().map(String::as_str) {
                Some("crate") => (&module[..0], &mention.segments[1..]),
                Some("super") => (&module[..module.len().checked_sub(supers)?], &mention.segments[supers..]),
                _ => return None,
            };
            let path: Vec<String> = above.iter().chain(rest).cloned().collect();
            let longest = (1..=path.len()).rev().find(|length| sources.contains_key(&path[..*length]))?;
            let found = &path[..longest];
            (!found.starts_with(module) && !module.starts_with(found)).then(|| name(found))
        });
        graph.insert(name(module), to.collect());
    }
    graph
}

/// A cycle in a graph, if it has one.
fn cycle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn visit(
        at: &String,
        graph: &BTreeMap<String, BTreeSet<String>>,
        path: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(begin) = path.iter().position(|passed| passed == at) {
            return Some(path[begin..].to_vec());
        }
        if !done.insert(at.clone()) {
            return None;
        }
        path.push(at.clone());
        let found = graph.get(at).into_iter().flatten().find_map(|next| visit(next, graph, path, done));
        path.pop();
        found
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|at| visit(at, graph, &mut Vec::new(), &mut done))
}

#[test]
fn no_two_files_import_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for root in [root.join("src"), root.join("crates/sandbox/src")] {
        let mut sources = BTreeMap::new();
        for (_, mut module, mentions) in rust_files(&root) {
            module.retain(|part| part != "mod");
            let is_root = ["lib", "main"].contains(&module[0].as_str()) && module.len() == 1;
            if !is_root && module.last().is_none_or(|last| last != "tests") {
                sources.insert(module, mentions);
            }
        }
        assert_eq!(cycle(&imports(&root, &sources)), None);
    }
}

#[test]
fn a_cycle_is_found() {
    let sources = |files: &[(&str, &str)]| {
        let read = |(module, source): &(&str, &str)| {
            (module.split("::").map(str::to_owned).collect::<Vec<_>>(), mentions(source))
        };
        files.iter().map(read).collect::<BTreeMap<_, _>>()
    };
    let is_found = |files: &[(&str, &str)]| cycle(&imports(Path::new(""), &sources(files))).is_some();
    assert!(is_found(&[("a::b", "use crate::a::c::X;"), ("a::c", "use super::b::Y;")]));
    assert!(is_found(&[("a", "use crate::b::X;"), ("b", "use crate::c::Y;"), ("c", "crate::a::f()")]));
    assert!(!is_found(&[("a", "use crate::b::X;"), ("b", "use crate::c::Y;"), ("c", "")]));
    assert!(!is_found(&[("a", "use crate::a::b::X;"), ("a::b", "use super::Y;")]), "one thing in two files");
}

// ---- the reader itself

#[test]
fn paths_are_read_as_rust_means_them() {
    let check = |source: &str, wanted: &[&str]| {
        let reported: Vec<_> = mentions(source)
            .into_iter()
            .map(|mention| {
                format!("{}{}", if mention.rooted { "::" } else { "" }, mention.segments.join("::"))
            })
            .collect();
        assert_eq!(reported, wanted, "{source}");
    };
    check("use crate::domain::reason::Reason;", &["use", "crate::domain::reason::Reason"]);
    check("use crate::{a::{B, c::*}, d};", &["use", "crate::a::B", "crate::a::c::*", "crate::d"]);
    check("use crate::a::{self, B as C};", &["use", "crate::a::self", "crate::a::B"]);
    check("use ::backoff::X;", &["use", "::backoff::X"]);
    check("let x: Vec<crate::a::B> = f();", &["let", "x", "Vec", "crate::a::B", "f"]);
    check("a.backoff.wait()", &["a", "backoff", "wait"]);
    check("Vec::<u8>::new()", &["Vec", "u8", "::new"]);
    check("// crate::a\n/* crate::b /* c */ d */ e \"crate::f\" r#\"crate::\"g\"# '\"' h", &["e", "h"]);
    check(
        "fn f<'a>(x: &'a str, c: char) { g('x', '\\'', b'\\n') }",
        &["fn", "f", "x", "str", "c", "char", "g", "b"],
    );
    check("{ crate::a::B { c: 1 } }", &["crate::a::B", "c", "1"]);
    let lines: Vec<_> =
        mentions("a\n\"x\ny\"\nuse b::{\n c,\n d};").into_iter().map(|mention| mention.line).collect();
    assert_eq!(lines, [1, 4, 5, 6]);
}

#[test]
fn a_look_upward_is_seen() {
    let order = ["domain", "policy", "wire"].map(str::to_owned);
    let check = |from: &str, to: &str, lawful: bool| {
        assert_eq!(looks_down(from, to, &order), lawful, "{from} -> {to}")
    };
    check("wire", "policy", true);
    check("wire", "wire", true);
    check("policy", "wire", false);
    check("domain", "policy", false);
    check("wire", "nowhere", false);
}

#[test]
fn the_order_of_the_modules_is_found() {
    let order = order();
    let places: BTreeSet<_> = WORDS_AND_POLICY
        .iter()
        .map(|name| {
            order.iter().position(|module| module == name).unwrap_or_else(|| panic!("{name}: {order:?}"))
        })
        .collect();
    assert!(
        places.iter().copied().eq(0..WORDS_AND_POLICY.len()),
        "words and policy are the ground floor: {order:?}"
    );
}
