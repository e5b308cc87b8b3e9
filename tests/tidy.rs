//! The words of the project and the size of its parts: no word of the glossary's lists is used, no predicate is "is no X",
//! no test has a name of more than 60 characters, no source file is longer than 600 lines, no function longer than 60 but
//! those that are flat lists or matches.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]

use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 60;
const NAME_CHARS_MAX: usize = 60;

/// Flat lists, matches and sequences of steps, by file and function.
const FLAT: [(&str, &str); 12] = [
    ("crates/sandbox/src/response.rs", "write"),
    ("src/amqp/management.rs", "mismatches"),
    ("src/amqp/topology.rs", "plan"),
    ("src/cli/demo/cases.rs", "kinds"),
    ("src/cli/schema/asyncapi.rs", "document"),
    ("src/config/validate.rs", "check"),
    ("src/cli/demo.rs", "run_stage"),
    ("src/cli/publish.rs", "run"),
    ("src/runtime/publishing.rs", "publish_within"),
    ("src/wechat/keys.rs", "load"),
    ("src/wire/command.rs", "read"),
    ("src/wire/coupon.rs", "words"),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file below these places, by its path from the root.
fn files(places: &[&str], endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = places.iter().map(|place| root().join(place)).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let is_text = endings.is_empty()
            || path.extension().is_some_and(|ending| endings.iter().any(|known| ending == *known));
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        if is_text && let Ok(text) = fs::read_to_string(&path) {
            found.push((name, text));
        }
    }
    found.sort();
    found
}

/// The lists of the glossary: words that no file uses, and words that only tests use.
fn unused_words(glossary: &str) -> [Vec<&str>; 2] {
    let section = glossary.split_once("## Words that are not used").unwrap().1;
    let mut lists = section.split("```text\n").skip(1);
    [(); 2].map(|()| lists.next().unwrap().split_once("\n```").unwrap().0.lines().collect())
}

/// Predicates such as "is no error" on a line: say "is not an error".
fn negated_nouns(line: &str) -> usize {
    let words: Vec<String> = line
        .split_whitespace()
        .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase())
        .collect();
    let is_negated = |triple: &[String]| {
        matches!(triple[1].as_str(), "is" | "are")
            && triple[2] == "no"
            && !["there", "this", "if"].contains(&triple[0].as_str())
    };
    let next = |at: usize| words.get(at + 3).map_or("", String::as_str);
    let negated = words.windows(3).enumerate().filter(|(_, triple)| is_negated(triple));
    negated.filter(|(at, _)| !["longer", "more", ""].contains(&next(*at))).count()
}

/// As it is, at the beginning of a sentence, and in capitals.
fn forms(word: &str) -> [String; 3] {
    let (first, rest) = word.split_at(1);
    [word.to_owned(), format!("{}{rest}", first.to_uppercase()), word.to_uppercase()]
}

/// Lines of a text that hold one of the words as a whole; `_` and a line's end part words.
fn uses<'a>(text: &str, words: &[&'a str]) -> Vec<(usize, &'a str)> {
    let is_part = |c: char| c.is_alphanumeric();
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (word, form) in words.iter().flat_map(|word| forms(word).map(|form| (word, form))) {
            let is_whole = |(at, _): (usize, &str)| {
                !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part)
            };
            if line.match_indices(&form).any(is_whole) {
                found.push((number + 1, *word));
            }
        }
    }
    found
}

#[test]
fn no_word_of_the_list_is_used() {
    let glossary = fs::read_to_string(root().join("docs/glossary.md")).unwrap();
    let [nowhere, only_in_tests] = unused_words(&glossary);
    assert!(nowhere.len() > 30 && only_in_tests.len() > 30, "{nowhere:?} {only_in_tests:?}");
    let tests = ["tests", "benches", "crates/sandbox/src/tests.rs"];
    let places = [
        "src",
        "crates",
        "tests",
        "benches",
        "docs",
        "deploy",
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "config.toml",
        "Makefile",
        "Cargo.toml",
        ".ci",
    ];
    let mut faults = Vec::new();
    for (name, text) in files(&places, &[]) {
        if name == "docs/glossary.md" || name.ends_with("tidy.rs") {
            continue;
        }
        let mut found = uses(&text, &nowhere);
        if !tests.iter().any(|folder| name.starts_with(folder)) {
            found.extend(uses(&text, &only_in_tests));
            let negated = text.lines().enumerate().filter(|(_, line)| negated_nouns(line) > 0);
            found.extend(negated.map(|(number, _)| (number + 1, "is no …")));
        }
        faults.extend(found.into_iter().map(|(line, word)| format!("{name}:{line}: {word}")));
    }
    assert!(faults.is_empty(), "{} uses:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn glossary_has_both_lists() {
    let glossary = "a\n## Words that are not used\nx\n```text\nb\nc\n```\ny\n```text\nd\n```\nz";
    assert_eq!(unused_words(glossary), [vec!["b", "c"], vec!["d"]]);
}

#[test]
fn planted_predicates_are_found() {
    for planted in ["it is no error.", "// Two copies are no fault of ours", "a start Is no \"failure\""] {
        assert_eq!(negated_nouns(planted), 1, "{planted}");
    }
    for plain in ["there is no key", "it is no longer held", "it is not an error", "are no", "this is no\n"] {
        assert_eq!(negated_nouns(plain), 0, "{plain}");
    }
}

#[test]
fn planted_words_are_found() {
    let words = ["told", "put away", "inquiry"];
    assert_eq!(uses("as it was Told\nretold\ntold_of\n", &words), [(1, "told"), (3, "told")]);
    assert_eq!(uses("put away\nPUT AWAY_ALL", &words), [(1, "put away"), (2, "put away")]);
    assert_eq!(uses("an inquiry.", &words), [(1, "inquiry")]);
    assert_eq!(uses("a query", &words), []);
}

/// The source without the unit tests at its end.
fn production(source: &str) -> &str {
    source.split_once("\n#[cfg(test)]\nmod tests").map_or(source, |(code, _)| code)
}

fn sources() -> Vec<(String, String)> {
    let mut sources = files(&["src", "crates"], &["rs"]);
    sources.retain(|(name, _)| !name.ends_with("tests.rs"));
    sources
}

#[test]
fn no_source_file_is_too_long() {
    let long: Vec<_> = sources()
        .into_iter()
        .map(|(name, text)| (production(&text).lines().count(), name))
        .filter(|(lines, name)| *lines > FILE_LINES_MAX && !name.ends_with("members.rs"))
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

/// Functions of a source that are too long, with their lines.
fn long_functions(source: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = production(source).lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let words: Vec<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        let Some(place) = words.iter().position(|word| *word == "fn") else { continue };
        let known = ["pub", "crate", "super", "async", "const", "in", ""];
        if code.starts_with("//") || !words[..place].iter().all(|word| known.contains(word)) {
            continue;
        }
        let close = format!("{}}}", " ".repeat(indent));
        let Some(end) = lines[at..].iter().position(|line| *line == close) else { continue };
        if end + 1 > FUNCTION_LINES_MAX && !line.ends_with('}') {
            found.push((words[place + 1].to_owned(), end + 1));
        }
    }
    found
}

#[test]
fn no_function_is_too_long() {
    let mut faults = Vec::new();
    let mut flat: Vec<(&str, &str)> = FLAT.to_vec();
    for (name, text) in sources() {
        for (function, lines) in long_functions(&text) {
            match flat.iter().position(|known| *known == (name.as_str(), function.as_str())) {
                Some(at) => drop(flat.remove(at)),
                None => faults.push(format!("{name}: {function} has {lines} lines")),
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    assert!(flat.is_empty(), "listed as flat and not long: {flat:?}");
}

#[test]
fn long_function_is_seen() {
    let body = "    let x = 1;\n".repeat(60);
    assert_eq!(long_functions(&format!("pub(super) async fn f() {{\n{body}}}\n")), [("f".to_owned(), 62)]);
    assert_eq!(long_functions("fn g() {\n}\n"), []);
    assert!(Path::new(&root()).join("src/lib.rs").exists());
}

/// Names of functions that are too long: a test's name is its subject, expectation and condition.
fn long_names(source: &str) -> Vec<&str> {
    let names = source.split("fn ").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    });
    names.filter(|name| name.len() > NAME_CHARS_MAX).collect()
}

#[test]
fn no_function_has_a_name_that_is_too_long() {
    let mut faults = Vec::new();
    for (file, source) in files(&["src", "crates", "tests", "benches"], &["rs"]) {
        faults.extend(long_names(&source).into_iter().map(|name| format!("{file}: {name}")));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn planted_long_name_is_found() {
    let (long, short) = ("a".repeat(NAME_CHARS_MAX + 1), "b".repeat(NAME_CHARS_MAX));
    assert_eq!(long_names(&format!("async fn {long}() {{}}\nfn {short}<T>() {{}}")), [&long]);
}

/// A target that was renamed must not leave a command that cannot run.
#[test]
fn every_test_and_bench_of_the_makefile_exists() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let words: Vec<&str> = makefile.split_whitespace().collect();
    let mut named = 0;
    for pair in words.windows(2) {
        let folder = match pair[0] {
            "--test" => "tests",
            "--bench" => "benches",
            _ => continue,
        };
        named += 1;
        let file = root().join(folder).join(format!("{}.rs", pair[1]));
        let main = root().join(folder).join(pair[1]).join("main.rs");
        assert!(file.exists() || main.exists(), "{} {}", pair[0], pair[1]);
    }
    assert!(named > 10, "{named} found");
}

/// In a log of JSON a field named like one of the line's own would stand beside it, and most readers keep the last.
#[test]
fn no_log_field_has_the_name_of_a_part_of_the_line() {
    let own = ["message", "timestamp", "level", "target", "span", "spans"];
    let mut faults = Vec::new();
    for (file, source) in files(&["src"], &["rs"]) {
        for start in ["trace!(", "debug!(", "info!(", "warn!(", "error!("] {
            for (at, _) in source.match_indices(start) {
                let call = &source[at + start.len()..];
                let call = call.split_once(");").map_or(call, |(call, _)| call);
                let fields = call
                    .split([',', '('])
                    .map(|field| field.split(['=', ' ', '\n']).find(|word| !word.is_empty()));
                for field in
                    fields.flatten().filter(|field| own.contains(&field.trim_start_matches(['%', '?'])))
                {
                    faults.push(format!("{file}: {start}{field}"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
