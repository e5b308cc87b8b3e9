//! The lines of the configuration file that set a key, and the commands of the shell that change them. A command names the
//! line and leaves everything else as it is.

use std::ops::{Range, RangeInclusive};
use std::path::Path;

use toml::de::{DeTable, DeValue};

use crate::config::{Config, NAME_NOT_SHOWN, PUBLIC_KEYS, check_public_key_id, shown_name};
use crate::policy::file_name::{Shown, quote};

/// The file, as far as it can be read.
pub(super) struct ConfigFile {
    /// Its name as a word of the shell.
    name: String,
    text: String,
}

/// Where a key is, or would be. Lines count from one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// These lines hold it and nothing else; they begin with this text.
    Lines(RangeInclusive<usize>, String),
    /// It is missing; this is the header of its section.
    Below(usize),
    /// Its section is missing.
    Missing,
    /// In a form that no command of ours changes.
    Unclear(Option<usize>),
}

impl Place {
    /// The last line that a change of this place moves: changes are made from the end to the beginning.
    pub(super) fn line(&self) -> usize {
        match self {
            Self::Lines(lines, _) => *lines.start(),
            Self::Below(line) => *line,
            Self::Missing | Self::Unclear(_) => usize::MAX,
        }
    }
}

/// A value that a command writes.
pub(super) enum Written<'a> {
    /// This one, in TOML.
    Known(&'a str),
    /// What the shell makes of this text between double quotes.
    Expanded(&'a str),
    /// The text in the variable `VALUE`, which no process may have as an argument.
    Secret,
}

impl ConfigFile {
    pub(super) fn read(path: &Path) -> Self {
        let name = quote(&Shown(path).to_string());
        Self { name, text: std::fs::read_to_string(path).unwrap_or_default() }
    }

    /// Its name as a word of the shell.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The values that the file sets, if it is TOML.
    pub(super) fn table(&self) -> toml::Table {
        self.text.parse().unwrap_or_default()
    }

    /// Where the key is, by its path.
    pub(super) fn place(&self, key: &str) -> Place {
        let Ok(parsed) = DeTable::parse(&self.text) else { return Place::Unclear(None) };
        let mut table = parsed.get_ref();
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            let Some((name, value)) = table.iter().find(|(name, _)| *name.get_ref() == part) else {
                let section = key.rsplit_once('.').map_or("", |(section, _)| section);
                return self.absent(section);
            };
            match (parts.peek(), value.get_ref()) {
                (Some(_), DeValue::Table(inner)) => table = inner,
                (Some(_), _) => return Place::Unclear(Some(self.line_of(name.span().start))),
                (None, DeValue::Table(_)) => return self.section(key, name.span()),
                (None, _) => return self.lines(name.span(), value.span()),
            }
        }
        Place::Unclear(None)
    }

    fn line_of(&self, byte: usize) -> usize {
        1 + self.text[..byte].matches('\n').count()
    }

    /// Whole lines, if they hold nothing but this key and value, and perhaps a comment.
    fn lines(&self, name: Range<usize>, value: Range<usize>) -> Place {
        let start = self.text[..name.start].rfind('\n').map_or(0, |at| at + 1);
        let end = self.text[value.end..].find('\n').map_or(self.text.len(), |at| value.end + at);
        let (begin, rest) = (&self.text[start..value.start], self.text[value.end..end].trim());
        let is_alone = begin.matches('=').count() == 1 && !begin.contains([',', '{', '#', '\n']);
        let (first, last) = (self.line_of(start), self.line_of(value.end));
        match is_alone && (rest.is_empty() || rest.starts_with('#')) {
            true => Place::Lines(first..=last, begin.trim_start().to_owned()),
            false => Place::Unclear(Some(first)),
        }
    }

    /// A section with its header and with those below it.
    fn section(&self, key: &str, name: Range<usize>) -> Place {
        let is_of = |line: &str| {
            let title = line.trim().trim_start_matches('[');
            title.strip_prefix(key).is_some_and(|rest| rest.starts_with([']', '.']))
        };
        let lines: Vec<_> = self.text.lines().collect();
        let is_header = |line: &&str| line.trim_start().starts_with('[');
        let Some(first) = lines.iter().position(|line| is_header(line) && is_of(line)) else {
            return Place::Unclear(Some(self.line_of(name.start)));
        };
        let others = lines[first..].iter().take_while(|line| !is_header(line) || is_of(line));
        Place::Lines(first + 1..=first + others.count(), String::new())
    }

    /// Where a key that is missing would be.
    fn absent(&self, section: &str) -> Place {
        let header = format!("[{section}]");
        let is_header = |line: &str| line.split('#').next().is_some_and(|line| line.trim() == header);
        match self.text.lines().position(is_header) {
            Some(nth) => Place::Below(nth + 1),
            None if format!("{}\n{header}\nx = 0\n", self.text).parse::<toml::Table>().is_ok() => {
                Place::Missing
            }
            None => Place::Unclear(None),
        }
    }

    /// The key that stands in the file under a name that may be a secret.
    pub(super) fn unnamed(&self) -> Option<Place> {
        let parsed = DeTable::parse(&self.text).ok()?;
        let model = toml::Table::try_from(Config::default()).unwrap_or_default();
        self.unnamed_in(parsed.get_ref(), &model, "")
    }

    fn unnamed_in(&self, table: &DeTable<'_>, model: &toml::Table, path: &str) -> Option<Place> {
        table.iter().find_map(|(name, value)| {
            let key = if path.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{path}.{}", name.get_ref())
            };
            match (model.get(name.get_ref().as_ref()), value.get_ref()) {
                _ if key == PUBLIC_KEYS => None,
                (Some(toml::Value::Table(model)), DeValue::Table(inner)) => {
                    self.unnamed_in(inner, model, &key)
                }
                (Some(_), _) => None,
                (None, _) if shown_name(&key) != NAME_NOT_SHOWN => None,
                (None, DeValue::Table(_)) => Some(self.section(&key, name.span())),
                (None, _) => Some(self.lines(name.span(), value.span())),
            }
        })
    }

    /// The first entry of the public keys that has no right name: its line and its file.
    pub(super) fn misnamed_public_key(&self) -> Option<(Place, String)> {
        let parsed = DeTable::parse(&self.text).ok()?;
        let section = PUBLIC_KEYS.split('.').try_fold(parsed.get_ref(), |table, part| {
            let (_, value) = table.iter().find(|(name, _)| *name.get_ref() == part)?;
            value.get_ref().as_table()
        })?;
        let (name, value) = section.iter().find(|(name, _)| check_public_key_id(name.get_ref()).is_err())?;
        let file = value.get_ref().as_str().unwrap_or_default().to_owned();
        Some((self.lines(name.span(), value.span()), file))
    }

    /// The command that gives a key, whose name within its section is the last part, a value.
    pub(super) fn set(&self, key: &str, place: &Place, written: &Written<'_>) -> String {
        let (section, last) = key.rsplit_once('.').unwrap_or(("", key));
        let begin = match place {
            Place::Lines(_, begin) => begin.clone(),
            _ => format!("{last} = "),
        };
        let change = match place {
            Place::Lines(lines, _) => format!("{}c", addresses(lines)),
            Place::Below(line) => format!("{line}a"),
            Place::Missing => return self.append(section, &begin, written),
            Place::Unclear(line) => return self.edit(*line),
        };
        let name = &self.name;
        match written {
            Written::Known(value) => {
                let text = format!("{begin}{value}").replace('\\', r"\\");
                format!("sed -i {} {name}", quote(&format!("{change} {text}")))
            }
            Written::Expanded(value) => {
                format!("sed -i \"{change} {}{value}\" {name}", in_double_quotes(&begin))
            }
            Written::Secret => {
                let format = format!("{change} {}\"%s\"\\n", begin.replace('%', "%%"));
                format!("printf {} \"$VALUE\" | sed -i -f - {name}", quote(&format))
            }
        }
    }

    fn append(&self, section: &str, begin: &str, written: &Written<'_>) -> String {
        let name = &self.name;
        let format = |value: &str| quote(&format!("\\n[{section}]\\n{begin}{value}\\n"));
        match written {
            Written::Known(value) => format!("printf {} {} >> {name}", format("%s"), quote(value)),
            Written::Expanded(value) => format!("printf {} \"{value}\" >> {name}", format("%s")),
            Written::Secret => format!("printf {} \"$VALUE\" >> {name}", format("\"%s\"")),
        }
    }

    /// The command that adds the entry `$ID = "$FILE"` to a section.
    pub(super) fn add_file(&self, section: &str) -> String {
        match self.absent(section) {
            Place::Below(line) => format!(r#"sed -i "{line}a $ID = \"$FILE\"" {}"#, self.name),
            Place::Missing => {
                format!(r#"printf '\n[{section}]\n%s = "%s"\n' "$ID" "$FILE" >> {}"#, self.name)
            }
            Place::Lines(..) | Place::Unclear(_) => self.edit(None),
        }
    }

    /// The command that makes comments of a key's lines.
    pub(super) fn comment_out(&self, place: &Place) -> String {
        match place {
            Place::Lines(lines, _) => format!("sed -i '{}s/^/# /' {}", addresses(lines), self.name),
            Place::Below(line) | Place::Unclear(Some(line)) => self.edit(Some(*line)),
            Place::Missing | Place::Unclear(None) => self.edit(None),
        }
    }

    /// The command that puts another name in the place of a key's: what the shell makes of it between double quotes.
    pub(super) fn rename(&self, place: &Place, to: &str) -> String {
        match place {
            Place::Lines(lines, _) => {
                format!("sed -i \"{}s|^[^=]*|{to} |\" {}", lines.start(), self.name)
            }
            other => self.comment_out(other),
        }
    }

    /// The editor, at this line.
    pub(super) fn edit(&self, line: Option<usize>) -> String {
        let line = line.map(|line| format!("+{line} ")).unwrap_or_default();
        format!("${{EDITOR:-vi}} {line}{}", self.name)
    }

    /// The line of the first error of syntax.
    pub(super) fn line_of_error(&self) -> Option<usize> {
        let error = self.text.parse::<toml::Table>().err()?;
        Some(self.line_of(error.span()?.start))
    }
}

fn addresses(lines: &RangeInclusive<usize>) -> String {
    match lines.start() == lines.end() {
        true => lines.start().to_string(),
        false => format!("{},{}", lines.start(), lines.end()),
    }
}

/// A text without expansions, between double quotes of the shell.
pub(super) fn in_double_quotes(text: &str) -> String {
    let escaped = |letter: char| matches!(letter, '\\' | '"' | '$' | '`').then_some('\\');
    text.chars().flat_map(|letter| escaped(letter).into_iter().chain([letter])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> ConfigFile {
        ConfigFile { name: "c.toml".to_owned(), text: text.to_owned() }
    }

    #[test]
    fn place_of_a_key_is_the_lines_that_hold_it_alone() {
        let text = "[wechat]\nmchid = \"1\" # ours\nplatform_certificates = [\n  \"a.pem\",\n]\n\n[retry]\ndelays = [\"10s\"]\n\
                    [log]\n";
        let file = file(text);
        let lines = |range, begin: &str| Place::Lines(range, begin.to_owned());
        assert_eq!(file.place("wechat.mchid"), lines(2..=2, "mchid = "));
        assert_eq!(file.place("wechat.platform_certificates"), lines(3..=5, "platform_certificates = "));
        assert_eq!(file.place("retry.delays"), lines(8..=8, "delays = "));
        assert_eq!(file.place("log.filter"), Place::Below(9));
        assert_eq!(file.place("admin.listen"), Place::Missing);
        assert_eq!(file.place("retry"), lines(7..=8, ""));
    }

    #[test]
    fn place_is_unclear_where_a_line_holds_more() {
        for (text, key) in [
            ("wechat = { mchid = \"1\" }\n", "wechat.mchid"),
            ("wechat = { mchid = \"1\" }\n", "wechat.merchant_serial"),
            ("wechat.mchid = \"1\"\n", "wechat.merchant_serial"),
            ("[wechat\n", "wechat.mchid"),
            ("wechat = 1\n", "wechat.mchid"),
            ("[wechat.mchid]\nx = 1\nwechat = { a = \"geheim\", b = 1 }\n", "wechat.mchid.wechat.b"),
        ] {
            assert!(
                matches!(file(text).place(key), Place::Unclear(_)),
                "{text}: {:?}",
                file(text).place(key)
            );
        }
        assert_eq!(
            file("wechat.mchid = \"1\"\n").place("wechat.mchid"),
            Place::Lines(1..=1, "wechat.mchid = ".into())
        );
    }
}
