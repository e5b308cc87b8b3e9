//! Types the remedy of a finding into a shell as it is printed, and answers what it asks.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

/// The questions of a remedy, in their order: what it prints before it reads.
fn questions(remedy: &str) -> Vec<String> {
    let mut questions = Vec::new();
    for part in remedy.split("printf '").skip(1) {
        let (text, rest) = part.split_once('\'').unwrap_or((part, ""));
        let (argument, then) = rest.split_once("; ").unwrap_or((rest, ""));
        if then.starts_with("read -r ") {
            let question = text.replace("%s", argument.trim().trim_matches('\''));
            questions.push(question.trim_end_matches([':', ' ']).to_owned());
        }
    }
    questions
}

/// What is typed for the questions of a remedy, by one who knows.
///
/// # Errors
/// The question that nobody knows an answer to.
pub(crate) fn answers(remedy: &str, known: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let answer = |question: String| known(&question).map(|answer| answer + "\n").ok_or(question);
    questions(remedy).into_iter().map(answer).collect()
}

/// What stands before the variables.
const MARK: &str = "printf '\\0'; ";

/// A shell that runs a remedy and shows the variables that are set afterwards; its exit code is that of the last command.
pub(crate) fn shell(name: &str, remedy: &str) -> Command {
    // A name that no shell can unset ends with a new shell.
    let remedy = remedy.replace("exec env -u ", &format!("{MARK}exec env -0 -u ")).replace("\"$SHELL\"", "");
    let mut shell = Command::new(name);
    shell.args(["-c", &format!("{remedy}\ncode=$?\n{MARK}env -0\nexit $code")]);
    shell
}

/// Runs it to its end with these answers. Gives the variables of ours as well.
pub(crate) fn run(mut shell: Command, answers: &str) -> (Output, Vec<(String, String)>) {
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = shell.spawn().expect("the shell starts");
    // A command that asks nothing may have ended.
    let _ = child.stdin.take().expect("it is piped").write_all(answers.as_bytes());
    let ran = child.wait_with_output().expect("the shell ends");
    let printed = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    for complaint in ["not found", "yntax error", "bad variable name", "Bad substitution"] {
        assert!(!printed.contains(complaint), "{shell:?}: {printed}");
    }
    let variables = variables(&ran.stdout);
    (ran, variables)
}

/// Our variables in the output of `env -0`, behind what a command printed.
pub(crate) fn variables(printed: &[u8]) -> Vec<(String, String)> {
    let printed = String::from_utf8_lossy(printed).into_owned();
    let entries = printed.split('\0').filter_map(|entry| entry.split_once('='));
    let ours = entries.filter(|(name, _)| name.starts_with("REDEEMER_"));
    ours.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
