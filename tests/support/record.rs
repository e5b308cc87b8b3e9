//! Writes what a long run measured into the pages that report it.

use std::fs;

/// The end of the table that the rows stand in.
const END: &str = "<!-- end of the long runs -->";

/// Puts a row into the table of long runs, in place of the one with this name, and says the day, in UTC. `RECORD` lists
/// the pages, with `:` between them; without it nothing is written.
pub(crate) fn row(name: &str, figures: &str) {
    let Ok(pages) = std::env::var("RECORD") else { return };
    let figures = format!("on {}: {figures}", jiff::Timestamp::now().strftime("%F"));
    for page in pages.split(':') {
        let text = fs::read_to_string(page).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(END), "{page} has no table of long runs");
        fs::write(page, with_row(&text, name, &figures)).unwrap_or_else(|error| panic!("{page}: {error}"));
    }
}

fn with_row(text: &str, name: &str, figures: &str) -> String {
    let (row, begin) = (format!("| {name} | {figures} |"), format!("| {name} |"));
    let known = text.lines().any(|line| line.starts_with(&begin));
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines() {
        match line {
            line if line.starts_with(&begin) => lines.push(&row),
            END if !known => lines.extend([row.as_str(), END]),
            line => lines.push(line),
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn a_row_takes_the_place_of_its_elder_or_the_end_of_the_table() {
    let page = format!("before\n|---|---|\n| a | 1 |\n| b | 2 |\n{END}\nafter\n");
    let wanted = |rows: &str| format!("before\n|---|---|\n{rows}\n{END}\nafter\n");
    assert_eq!(with_row(&page, "a", "3"), wanted("| a | 3 |\n| b | 2 |"));
    assert_eq!(with_row(&page, "c", "3"), wanted("| a | 1 |\n| b | 2 |\n| c | 3 |"));
}
