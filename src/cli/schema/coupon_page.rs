//! The page about `data.coupon` for people, in English and in Chinese, made from the table of members.

use std::fmt::Write as _;

use crate::wechat::response::NESTING_MAX;
use crate::wire::coupon::{MEMBERS, Member, Word, chinese_meaning};
use crate::wire::result_event::ENTITY_BYTES_MAX;

/// The languages of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    /// docs/coupon.md
    English,
    /// docs/zh-CN/coupon.md
    Chinese,
}

/// The text before the tables, without the bounds.
const HEADS: [&str; 2] = [include_str!("coupon_page/head.en.md"), include_str!("coupon_page/head.zh-CN.md")];

/// The page, which ends with a line feed.
pub(super) fn page(language: Language) -> String {
    let head = language.choose(HEADS[0], HEADS[1]);
    let mut page =
        head.replace("{bytes}", &grouped(ENTITY_BYTES_MAX)).replace("{levels}", &NESTING_MAX.to_string());
    for section in sections() {
        let title = language.choose("The coupon itself", "用户商品券本身");
        match section {
            "" => page += &format!("\n### {title}\n\n"),
            section => page += &format!("\n### `{section}`\n\n"),
        }
        members(&mut page, language, section);
    }
    page += language.choose("\n## Words\n\n", "\n## 枚举值\n\n");
    page += language.choose(
        "Every list is open: treat a word that you do not know as one that you do not know, never as an error.\n",
        "所有枚举都是开放的：遇到不认识的值，就按未知处理，不要当作错误。\n",
    );
    for member in enumerations() {
        let _ = write!(page, "\n### `{}`\n\n", member.path);
        words(&mut page, language, member.words);
    }
    page
}

impl Language {
    fn choose<'a>(self, english: &'a str, chinese: &'a str) -> &'a str {
        match self {
            Self::English => english,
            Self::Chinese => chinese,
        }
    }
}

/// The top, and every object at the top, in the order of the table.
fn sections() -> Vec<&'static str> {
    let mut sections = vec![""];
    for member in MEMBERS {
        if let Some((section, _)) = member.path.split_once('.')
            && !sections.contains(&section)
        {
            sections.push(section);
        }
    }
    sections
}

fn members(page: &mut String, language: Language, section: &str) {
    *page += language.choose(
        "| member | type | present | revision | meaning |\n| --- | --- | --- | --- | --- |\n",
        "| 字段 | 类型 | 何时返回 | 版本 | 含义 |\n| --- | --- | --- | --- | --- |\n",
    );
    for member in MEMBERS {
        let (parent, path) = member.path.split_once('.').unwrap_or(("", member.path));
        if parent != section {
            continue;
        }
        let mut kind = member.kind.json_type().to_owned();
        if let Some((english, chinese)) = member.kind.unit() {
            kind += language.choose(&format!(", {english}"), &format!("，{chinese}"));
        }
        let (english, chinese) = member.when.words();
        let _ = writeln!(
            page,
            "| `{path}` | {kind} | {} | {} | {} |",
            language.choose(english, chinese),
            language.choose(member.revision.as_str(), member.revision.chinese()),
            language.choose(member.english, &chinese_meaning(member.chinese, member.chinese_note)),
        );
    }
}

/// The first member of each enumeration.
fn enumerations() -> Vec<&'static Member> {
    let mut found: Vec<&Member> = Vec::new();
    for member in MEMBERS.iter().filter(|member| !member.words.is_empty()) {
        if found.iter().all(|other| other.words != member.words) {
            found.push(member);
        }
    }
    found
}

fn words(page: &mut String, language: Language, words: &[Word]) {
    *page += language.choose(
        "| word | revision | meaning |\n| --- | --- | --- |\n",
        "| 值 | 版本 | 含义 |\n| --- | --- | --- |\n",
    );
    for word in words {
        let _ = writeln!(
            page,
            "| `{}` | {} | {} |",
            word.word,
            language.choose(word.revision.as_str(), word.revision.chinese()),
            language.choose(word.english, &chinese_meaning(word.chinese, word.chinese_note)),
        );
    }
}

fn grouped(number: usize) -> String {
    match number / 1000 {
        0 => number.to_string(),
        thousands => format!("{},{:03}", grouped(thousands), number % 1000),
    }
}
