//! A page of Markdown that is printed while it is made.

use std::fmt::Display;
use std::fs;
use std::path::Path;

use crate::broker::Broker;
use crate::machine;

/// What was printed so far.
pub(crate) struct Page(String);

impl Page {
    /// Its head: `title`, the target of make that makes it, today's date, the machine.
    pub(crate) fn new(title: &str, target: &str, broker: &Broker) -> Self {
        let mut page = Self(String::new());
        let today = jiff::Timestamp::now().strftime("%Y-%m-%d");
        page.line(format!("# {title}\n\nMade by `make {target}` on {today}.\n"));
        page.line(machine::table(&machine::rows(broker)));
        page
    }

    /// Adds a line, or several.
    pub(crate) fn line(&mut self, line: impl Display) {
        let line = line.to_string();
        println!("{line}");
        self.0 += &line;
        self.0.push('\n');
    }

    /// Writes it as `name` into the folder that the environment variable `folder` names, if it does.
    pub(crate) fn write(&self, folder: &str, name: &str) {
        if let Some(folder) = std::env::var_os(folder) {
            fs::write(Path::new(&folder).join(name), &self.0).unwrap();
        }
    }
}
