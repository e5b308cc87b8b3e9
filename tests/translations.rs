//! The Chinese documents, held against the English ones: the same headings, the same code, the same tables, the same
//! links. What one says and the other does not shows here.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

const PAGES: [(&str, &str); 5] = [
    ("README.md", "README.zh-CN.md"),
    ("docs/contract.md", "docs/zh-CN/contract.md"),
    ("docs/coupon.md", "docs/zh-CN/coupon.md"),
    ("docs/guarantees.md", "docs/zh-CN/guarantees.md"),
    ("docs/operations.md", "docs/zh-CN/operations.md"),
];

/// What diagrams write as it is, beside what is in capitals.
const OUTCOMES: [&str; 4] = ["redeemed", "refused", "invalid", "unresolved"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What must be the same in both languages.
#[derive(Debug, Default)]
struct Shape {
    /// Levels of the headings, with the code that stands in them.
    headings: Vec<(usize, Vec<String>)>,
    /// Fenced blocks whole, with their language; of a diagram what it says in both languages alike.
    fences: Vec<String>,
    /// For each row of a table: cells, and the code in the first of them.
    rows: Vec<(usize, Vec<String>)>,
    /// Items of lists.
    items: usize,
    /// What stands in backticks, and how often.
    code: BTreeMap<String, usize>,
    /// Where links lead: files of the repository, and addresses.
    links: BTreeMap<String, usize>,
}

fn code(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// A fenced block; of a diagram only who does something to whom, and the names and numbers in the text beside it.
fn without_words(fence: &str) -> String {
    if !fence.starts_with("```mermaid\n") {
        return fence.to_owned();
    }
    let is_kept = |word: &&str| {
        let mut letters = word.chars();
        word.contains('_')
            || letters.all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
            || OUTCOMES.contains(word)
    };
    let line = |line: &str| {
        let (who, text) = line.split_once(": ").or_else(|| line.split_once(" as ")).unwrap_or((line, ""));
        let names = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names: Vec<_> = names.filter(|word| !word.is_empty()).filter(is_kept).collect();
        format!("{who}: {}\n", names.join(" "))
    };
    fence.lines().map(line).collect()
}

/// A path without `..`, from the top of the repository.
fn plain(path: &Path) -> String {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => assert!(parts.pop(), "{} leaves the repository", path.display()),
            part => parts.push(part),
        }
    }
    parts.display().to_string()
}

impl Shape {
    fn of(page: &str) -> Self {
        let text = fs::read_to_string(root().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        let (mut shape, mut fence) = (Self::default(), None::<String>);
        let mut prose = String::new();
        for line in text.lines() {
            match (line.trim_start().starts_with("```"), &mut fence) {
                (true, None) => fence = Some(format!("{line}\n")),
                (true, Some(_)) => shape.fences.extend(fence.take().map(|text| without_words(&text))),
                (false, Some(fence)) => *fence += &format!("{line}\n"),
                (false, None) => {
                    shape.line(line);
                    prose += &format!("{line}\n");
                }
            }
        }
        for word in code(&prose) {
            *shape.code.entry(word).or_default() += 1;
        }
        let bare = prose.split('`').step_by(2).collect::<Vec<_>>().join("code");
        for rest in bare.split("](").skip(1) {
            let target = rest.split_once(')').unwrap().0;
            *shape.links.entry(shape.leads_to(page, target)).or_default() += 1;
        }
        shape
    }

    fn line(&mut self, line: &str) {
        let hashes = line.bytes().take_while(|byte| *byte == b'#').count();
        if hashes > 0 {
            self.headings.push((hashes, code(line)));
        } else if line.starts_with('|') && !line.starts_with("| ---") {
            let cells = line.replace("\\|", "/");
            let mut cells = cells.trim_matches('|').split('|');
            self.rows.push((cells.clone().count(), code(cells.next().unwrap())));
        } else if line.starts_with("- ")
            || line.split_once(". ").is_some_and(|(n, _)| n.parse::<u8>().is_ok())
        {
            self.items += 1;
        }
    }

    /// A translated page counts as the page it translates; anchors are in its own language, so only their presence
    /// counts.
    fn leads_to(&self, page: &str, target: &str) -> String {
        if target.starts_with("https://") {
            return target.to_owned();
        }
        let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
        let path = match file {
            "" => page.to_owned(),
            file => plain(&Path::new(page).parent().unwrap().join(file)),
        };
        let known = PAGES.iter().find(|(english, chinese)| [*english, *chinese].contains(&path.as_str()));
        let path = known.map_or(path, |(english, _)| (*english).to_owned());
        format!("{path}{}", if anchor.is_empty() { "" } else { "#" })
    }
}

/// What one has more often than the other.
fn differences(english: &BTreeMap<String, usize>, chinese: &BTreeMap<String, usize>) -> Vec<String> {
    let all = english.keys().chain(chinese.keys().filter(|key| !english.contains_key(*key)));
    let times = |map: &BTreeMap<String, usize>, key: &String| map.get(key).copied().unwrap_or(0);
    let counted = all.map(|key| (key, times(english, key), times(chinese, key)));
    let uneven = counted.filter(|(_, left, right)| left != right);
    uneven.map(|(key, left, right)| format!("{key:?}: {left} in English, {right} in Chinese")).collect()
}

#[test]
fn both_languages_have_the_same_headings_and_the_same_code() {
    for (english, chinese) in PAGES {
        let (left, right) = (Shape::of(english), Shape::of(chinese));
        assert!(left.headings.len() >= 8 && !left.fences.is_empty() && !left.rows.is_empty(), "{english}");
        assert_eq!(left.headings, right.headings, "headings of {chinese}");
        for (ours, theirs) in left.fences.iter().zip(&right.fences) {
            assert!(ours == theirs, "{chinese}: in English\n{ours}\nin Chinese\n{theirs}");
        }
        assert_eq!(left.fences.len(), right.fences.len(), "blocks of code in {chinese}");
        for (ours, theirs) in left.rows.iter().zip(&right.rows) {
            assert_eq!(ours, theirs, "a row of a table in {chinese}");
        }
        assert_eq!(left.rows.len(), right.rows.len(), "rows of tables in {chinese}");
        assert_eq!(left.items, right.items, "items of lists in {chinese}");
        let code = differences(&left.code, &right.code);
        assert!(code.is_empty(), "what stands in backticks in {chinese}:\n{}", code.join("\n"));
        let links = differences(&left.links, &right.links);
        assert!(links.is_empty(), "links in {chinese}:\n{}", links.join("\n"));
    }
}

#[test]
fn each_names_the_other_at_its_top() {
    for (english, chinese) in PAGES {
        for (page, other) in [(english, chinese), (chinese, english)] {
            let text = fs::read_to_string(root().join(page)).unwrap();
            let head: Vec<_> = text.lines().take(4).collect();
            let name = Path::new(other).file_name().unwrap().to_str().unwrap();
            assert!(head.iter().any(|line| line.contains(&format!("{name})"))), "{page}: {head:?}");
        }
    }
}

#[test]
fn diagrams_are_equal_in_both_languages() {
    let drawn = |arrow: &str, user: &str, text: &str| {
        without_words(&format!("```mermaid\n    participant U as {user}\n    I1{arrow}S: {text}\n"))
    };
    let english = drawn("->>", "user", "refused (returned_since) 403");
    assert_eq!(english, drawn("->>", "用户", "refused（returned_since），403"));
    for (arrow, text) in [
        ("-x", "refused（returned_since），403"),
        ("->>", "redeemed（returned_since），403"),
        ("->>", "refused（used_by_another），403"),
        ("->>", "refused（returned_since），401"),
    ] {
        assert_ne!(english, drawn(arrow, "用户", text), "{arrow} {text}");
    }
}

/// A page that was never translated would pass everything above if it were copied.
#[test]
fn the_chinese_is_chinese() {
    for (_, chinese) in PAGES {
        let text = fs::read_to_string(root().join(chinese)).unwrap();
        let headings = text.lines().filter(|line| line.starts_with("## ") && !line.contains('`'));
        for heading in headings {
            assert!(heading.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c)), "{chinese}: {heading}");
        }
    }
}
