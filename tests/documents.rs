//! The documents for people, held against the program: links, examples, command lines, names.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap::error::ErrorKind;
use redeemer::amqp::publisher::{PARKED_AT, PARKED_REASON};
use redeemer::cli::Arguments;
use redeemer::config::{self, Config};
use redeemer::domain::evidence::{Evidence, Operation};
use redeemer::domain::outcome::{EstablishedBy, Outcome};
use redeemer::domain::reason::Reason;
use redeemer::domain::redemption::Redemption;
use redeemer::policy::classify::{Authenticity, CallResult, Response, Verdict, classify};
use redeemer::telemetry::metrics::{CallDelay, Metrics};
use redeemer::telemetry::status::ReasonCode;
use redeemer::wechat::response;
use redeemer::wire::{command, result_event, retry_message};
use serde_json::{Value, json};
use toml::Table;

/// A document, taken apart.
struct Page {
    path: PathBuf,
    /// Everything that is not fenced.
    prose: String,
    fences: Vec<Fence>,
}

struct Fence {
    language: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<Page> {
    let mut paths = markdown(root());
    let mut folders = vec![root().join("docs"), root().join("deploy")];
    while let Some(folder) = folders.pop() {
        paths.extend(markdown(&folder));
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        folders.extend(entries.filter(|path| path.is_dir()));
    }
    paths.sort();
    assert!(paths.len() >= 24, "{paths:?}");
    paths.into_iter().map(Page::read).collect()
}

fn markdown(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|ending| ending == "md")).collect()
}

fn page(name: &str) -> Page {
    Page::read(root().join(name))
}

impl Page {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (mut prose, mut fences, mut open) = (String::new(), Vec::new(), None::<Fence>);
        for line in text.lines() {
            match (line.trim_start().strip_prefix("```"), &mut open) {
                (Some(language), None) => {
                    open = Some(Fence { language: language.to_owned(), text: String::new() });
                }
                (Some(_), Some(_)) => fences.extend(open.take()),
                (None, Some(fence)) => fence.text += &format!("{line}\n"),
                (None, None) => prose += &format!("{line}\n"),
            }
        }
        assert!(open.is_none(), "{}: a fence is not closed", path.display());
        Self { path, prose, fences }
    }

    fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap().display().to_string()
    }

    fn fenced(&self, language: &str) -> impl Iterator<Item = &str> {
        let wanted = self.fences.iter().filter(move |fence| fence.language == language);
        wanted.map(|fence| fence.text.as_str())
    }

    /// Prose and fences, in no order.
    fn whole(&self) -> String {
        self.fences.iter().fold(self.prose.clone(), |whole, fence| whole + &fence.text)
    }

    /// What stands in backticks.
    fn quoted(&self) -> Vec<String> {
        let pieces = self.prose.split('`').collect::<Vec<_>>();
        assert!(pieces.len() % 2 == 1, "{}: a backtick has no partner", self.name());
        pieces.into_iter().skip(1).step_by(2).map(|text| text.replace("\\|", "|")).collect()
    }

    /// Targets of `[text](target)`.
    fn links(&self) -> Vec<String> {
        let outside = self.prose.split('`').step_by(2).collect::<Vec<_>>().join("code");
        let after = outside.split("](").skip(1);
        after.map(|rest| rest.split_once(')').unwrap_or((rest, "")).0.to_owned()).collect()
    }

    /// Headings as the names that links use.
    fn anchors(&self) -> BTreeSet<String> {
        let headings = self.prose.lines().filter(|line| line.starts_with('#'));
        let anchor = |line: &str| -> String {
            let words = line.trim_start_matches('#').trim().to_lowercase();
            let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        };
        headings.map(anchor).collect()
    }

    /// First cells of the rows of every table whose head begins with `head`.
    fn first_cells(&self, head: &str) -> Vec<String> {
        let (mut cells, mut inside) = (Vec::new(), false);
        for line in self.prose.lines() {
            match line.strip_prefix('|') {
                None => inside = false,
                Some(row) if row.trim().starts_with(head) => inside = true,
                Some(row) if inside && !row.trim().starts_with("---") => {
                    cells.push(row.replace("\\|", "/").split('|').next().unwrap().trim().to_owned());
                }
                Some(_) => {}
            }
        }
        assert!(!cells.is_empty(), "{}: no table with {head:?}", self.name());
        cells
    }
}

/// The words in backticks of one text.
fn words(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

// ---- links

#[test]
fn every_link_leads_somewhere() {
    for page in pages() {
        for link in page.links() {
            if link.starts_with("https://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let path = match file {
                "" => page.path.clone(),
                file => page.path.parent().unwrap().join(file),
            };
            assert!(path.is_file(), "{}: {link} leads nowhere", page.name());
            if !heading.is_empty() {
                let there = Page::read(path).anchors();
                assert!(there.contains(heading), "{}: {link}: no such heading in {there:?}", page.name());
            }
        }
    }
}

#[test]
fn headings_become_anchors_as_links_write_them() {
    let prose = "# One number, one redemption\n## `Request-ID`: why?\n".to_owned();
    let page = Page { path: PathBuf::new(), prose, fences: Vec::new() };
    assert_eq!(Vec::from_iter(page.anchors()), ["one-number-one-redemption", "request-id-why"]);
}

// ---- commands and events

fn is_event(value: &Value) -> bool {
    value.get("specversion").is_some()
}

fn examples() -> Vec<(String, String, Value)> {
    let mut examples = Vec::new();
    for page in pages() {
        for text in page.fenced("json") {
            let value =
                serde_json::from_str(text).unwrap_or_else(|error| panic!("{}: {error}\n{text}", page.name()));
            examples.push((page.name(), text.to_owned(), value));
        }
    }
    examples
}

fn decoded(text: &str) -> Redemption {
    command::decode(text.as_bytes()).unwrap_or_else(|rejected| panic!("{:#?}\n{text}", rejected.faults))
}

#[test]
fn every_command_shown_is_one() {
    let commands = examples().into_iter().filter(|(_, _, value)| !is_event(value)).collect::<Vec<_>>();
    assert!(commands.len() >= 3, "one in the README, one of each spelling in the contract");
    for (_, text, _) in &commands {
        decoded(text);
    }
    let nested = commands.iter().filter(|(.., value)| value.get("json").is_some()).count();
    assert!(0 < nested && nested < commands.len(), "both spellings are shown");
}

/// The event of the README is made again from the command above it and from what WeChat Pay is said to have answered.
#[test]
fn the_event_shown_is_the_one_that_the_command_shown_leads_to() {
    let readme: Vec<_> = examples().into_iter().filter(|(page, ..)| page == "README.md").collect();
    let (_, text, _) = readme.iter().find(|(.., value)| !is_event(value)).unwrap();
    let (_, _, shown) = readme.iter().find(|(.., value)| is_event(value)).unwrap();
    let redemption = decoded(text);
    let data = &shown["data"];

    let coupon = response::coupon(data["coupon"].to_string().as_bytes()).unwrap();
    let answer = Response {
        status: 200,
        authenticity: Authenticity::Verified,
        code: None,
        sub_code: None,
        coupon: Some(coupon.clone()),
        message: None,
        request_id: None,
    };
    let verdict = classify(Operation::Redeem, &CallResult::Response(answer), &redemption);
    assert_eq!(verdict, Verdict::Redeemed);

    let entry = &data["evidence"][0];
    let text = |field: &str| entry[field].as_str().unwrap().to_owned();
    let evidence = Evidence {
        at: text("at").parse().unwrap(),
        operation: Operation::Redeem.as_str().to_owned(),
        host: text("host"),
        status: Some(200),
        request_id: Some(text("request_id")),
        serial: Some(text("serial")),
        verdict: verdict.as_str().to_owned(),
    };
    let config = Config::default();
    let telling = result_event::EventContext {
        source: &config.event.source,
        at: shown["time"].as_str().unwrap().parse().unwrap(),
        traceparent: None,
        attempts: 1,
        evidence: &[evidence],
    };
    let reported = result_event::encode(
        &redemption,
        &Outcome::Redeemed { by: EstablishedBy::Response, coupon },
        telling,
    );
    assert_eq!(serde_json::from_slice::<Value>(&reported.body).unwrap(), *shown);
    let readme = page("README.md");
    assert!(readme.quoted().contains(&reported.routing_key), "the README names {}", reported.routing_key);
}

fn fields(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

/// The events that the unit tests of `wire::event` have written down.
fn snapshot(name: &str) -> Value {
    let file = format!("src/wire/snapshots/redeemer__wire__result_event__tests__{name}.snap");
    let text = fs::read_to_string(root().join(file)).unwrap();
    serde_json::from_str(&text[text.find("\n{").unwrap()..]).unwrap()
}

#[test]
fn the_event_shown_has_the_fields_of_a_real_one() {
    let real = snapshot("redeemed");
    let events = examples().into_iter().filter(|(_, _, value)| is_event(value)).collect::<Vec<_>>();
    assert!(!events.is_empty());
    for (page, _, shown) in events {
        let mut envelope = fields(&shown);
        // The one field that depends on the command's headers.
        envelope.insert("traceparent".to_owned());
        assert_eq!(envelope, fields(&real), "{page}");
        assert_eq!(fields(&shown["data"]), fields(&real["data"]), "{page}");
        assert_eq!(fields(&shown["data"]["evidence"][0]), fields(&real["data"]["evidence"][0]), "{page}");
    }
}

#[test]
fn the_contract_lists_every_field_of_an_event() {
    let contract = page("docs/contract.md");
    let listed = |head: &str| -> BTreeSet<String> {
        contract.first_cells(head).iter().flat_map(|cell| words(cell)).collect()
    };
    let (redeemed, invalid) = (snapshot("redeemed"), snapshot("invalid"));
    // "field" heads the command's table, too.
    assert!(listed("field |").is_superset(&fields(&redeemed)));
    assert_eq!(listed("field of `data`"), fields(&redeemed["data"]));
    assert_eq!(listed("field of `problem`"), fields(&invalid["data"]["problem"]));
    assert_eq!(listed("field of an `evidence` entry"), fields(&redeemed["data"]["evidence"][0]));
    let quoted = contract.quoted();
    for field in fields(&invalid["data"]["problem"]["faults"][0]) {
        assert!(quoted.contains(&field), "{field}");
    }
    for verdict in Verdict::WORDS {
        assert!(quoted.iter().any(|word| word == verdict), "{verdict}");
    }
}

#[test]
fn the_contract_lists_every_field_of_a_command_and_none_beside() {
    let contract = page("docs/contract.md");
    let mut listed: BTreeSet<String> =
        contract.first_cells("field | required").iter().flat_map(|cell| words(cell)).collect();
    let order = |text: &str, from: usize| -> Vec<String> {
        let head = "| field of `associated_order_info` |";
        let rows = text.split(head).nth(1).unwrap().lines().skip(2).take_while(|line| line.starts_with('|'));
        rows.flat_map(|row| words(row.split('|').nth(from).unwrap())).collect()
    };
    let mut whole = json!({
        "openid": "o1", "coupon_code": "c1", "brand_id": "1", "product_coupon_id": "1", "stock_id": "1", "appid": "wx1",
        "use_time": "2025-07-24T00:00:00Z", "out_request_no": "USE_0001", "store_id": "S1", "saved_amount": 1,
        "sequential_coupon_index": 0,
    });
    for (place, from) in [("associated_order_info", 1), ("associated_pay_score_order_info", 2)] {
        assert!(listed.remove(place), "{place}");
        let numbers = order(&contract.prose, from);
        let numbers: serde_json::Map<_, _> = numbers.into_iter().map(|field| (field, json!("1"))).collect();
        assert_eq!(numbers.len(), 4, "{numbers:?}");
        let mut command = whole.clone();
        command[place] = Value::Object(numbers);
        decoded(&command.to_string());
    }
    assert_eq!(fields(&whole), listed);
    // Those that are called optional are.
    whole["associated_order_info"] = json!({"transaction_id": "1"});
    for row in contract.prose.lines().filter(|line| line.starts_with("| `") && line.contains(" | no | ")) {
        whole.as_object_mut().unwrap().remove(&words(row)[0]).unwrap();
    }
    decoded(&whole.to_string());
    for field in fields(&whole) {
        let mut lacking = whole.clone();
        lacking.as_object_mut().unwrap().remove(&field);
        assert!(command::decode(lacking.to_string().as_bytes()).is_err(), "{field} is wanted");
    }
}

#[test]
fn headers_and_reasons_are_called_by_their_names() {
    let operations = page("docs/operations.md");
    let rows =
        operations.first_cells("reason | what it is").iter().flat_map(|cell| words(cell)).collect::<Vec<_>>();
    for reason in &rows {
        assert!(Reason::parse(reason).is_some(), "{reason}");
    }
    assert!(!rows.is_empty());
    let known = [retry_message::DEADLINE, PARKED_REASON, PARKED_AT, "x-redemption-"];
    for page in pages() {
        for name in page.quoted().iter().filter(|name| name.starts_with("x-redemption")) {
            assert!(known.contains(&name.as_str()), "{}: {name}", page.name());
        }
    }
}

// ---- command lines

/// Splits a line as a shell does, as far as the documents go: quotes, and no expansion. Where its output goes, and
/// that it runs in the background, are left out.
fn split(line: &str) -> Vec<String> {
    let line = line.strip_suffix(" &").unwrap_or(line);
    let line = [" > ", " 2> "].iter().find_map(|to| line.split_once(to)).map_or(line, |(line, _)| line);
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(open)) if c == open => quote = None,
            (' ', None) => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Whether the program would take this line. One that is only mentioned may lack arguments.
fn check_line(page: &Page, line: &str, mentioned: bool) {
    match Arguments::command().try_get_matches_from(split(line)).map_err(|error| error.kind()) {
        Ok(_) | Err(ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {}
        Err(ErrorKind::MissingRequiredArgument | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand)
            if mentioned => {}
        Err(kind) => panic!("{}: {line}: {kind:?}", page.name()),
    }
}

#[test]
fn every_command_line_is_one_that_the_program_takes() {
    let mut seen = 0;
    for page in pages() {
        for line in page.fenced("sh").flat_map(str::lines).filter(|line| line.starts_with("redeemer ")) {
            check_line(&page, line, false);
            seen += 1;
        }
        for line in page.quoted().iter().filter(|text| text.starts_with("redeemer ")) {
            check_line(&page, line, true);
        }
    }
    assert!(seen >= 8, "{seen}");
}

#[test]
fn every_make_target_is_there() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    for page in pages() {
        let quoted = page.quoted();
        let lines = page.fenced("sh").flat_map(str::lines).chain(quoted.iter().map(String::as_str));
        let made = lines.filter_map(|line| line.strip_prefix("make ")?.split_whitespace().next());
        for target in made {
            assert!(makefile.contains(&format!("\n{target}: ")), "{}: make {target}", page.name());
        }
    }
}

#[test]
fn the_readme_has_every_subcommand_and_every_exit_code() {
    let readme = page("README.md");
    let rows: BTreeSet<_> = readme.first_cells("subcommand").iter().flat_map(|cell| words(cell)).collect();
    let program = Arguments::command();
    let known = program.get_subcommands().map(|command| format!("redeemer {}", command.get_name()));
    assert_eq!(rows, known.collect());

    let help = program.get_after_help().unwrap().to_string();
    let codes = help.strip_prefix("Exit codes: ").unwrap().trim_end_matches('.').split("; ");
    let codes: Vec<_> = codes.map(|code| code.split_once(' ').unwrap()).collect();
    assert_eq!(readme.first_cells("exit code"), Vec::from_iter(codes.iter().map(|(code, _)| *code)));
    for (code, meaning) in codes {
        assert!(readme.prose.contains(&format!("| {code} | {meaning} |")), "{code} {meaning}");
    }
}

// ---- configuration

fn default_table() -> Table {
    Table::try_from(Config::default()).unwrap()
}

#[test]
fn every_configuration_shown_is_one() {
    let mut seen = 0;
    for page in pages() {
        for text in page.fenced("toml") {
            let config = config::parse(text, &page.name(), std::iter::empty())
                .unwrap_or_else(|faults| panic!("{faults}"));
            seen += 1;
            // What shows a piece, shows a piece; what shows the payment API, shows all that it needs.
            if !text.contains("[wechat]") {
                continue;
            }
            let faults = config.wechat_settings().err();
            assert!(faults.is_none(), "{}: {faults:?}", page.name());
            assert!(!config.wechat.merchant_key_file.is_empty() && !config.wechat.public_keys.is_empty());
        }
    }
    assert!(seen >= 3, "{seen}");
}

#[test]
fn every_key_named_is_one() {
    let table = default_table();
    let mut seen = BTreeSet::new();
    for page in pages() {
        for key in page.quoted() {
            let Some((section, _)) = key.split_once('.') else { continue };
            let is_key = key.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'.' | b'_'));
            if !table.contains_key(section) || !is_key || key.ends_with(".rs") {
                continue;
            }
            let found = key
                .split('.')
                .try_fold(&toml::Value::Table(table.clone()), |value, name| value.get(name))
                .is_some();
            assert!(found, "{}: {key}", page.name());
            seen.insert(key);
        }
    }
    assert!(seen.len() > 20, "{seen:?}");
}

#[test]
fn every_environment_variable_named_is_one() {
    let table = default_table();
    let text: String = pages().into_iter().map(|page| page.whole()).collect();
    let names = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names: BTreeSet<_> = names.filter_map(|name| name.strip_prefix(config::PREFIX)).collect();
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        let known = ["CONFIG", "MERCHANT_KEY"].contains(&name);
        let whole = toml::Value::Table(table.clone());
        // Below public_keys stand serials.
        let keys = name.split("__").map(str::to_lowercase).take_while(|key| !key.starts_with("pub_key_id"));
        let found = keys.into_iter().try_fold(&whole, |value, key| value.get(key)).is_some();
        assert!(known || found, "{name}");
    }
}

// ---- metrics and readiness

#[test]
fn every_metric_named_is_one() {
    let rendered = Metrics::default().render();
    let known: BTreeSet<_> = rendered
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .filter(|name| name.starts_with("redeemer_"))
        .collect();
    for page in pages() {
        for name in page.quoted().iter().filter(|name| name.starts_with("redeemer_")) {
            assert!(known.contains(name.as_str()), "{}: {name}", page.name());
        }
    }
}

/// The alerts as the rules file spells them, one `- alert:` each.
fn alerts() -> Vec<String> {
    let rules = fs::read_to_string(root().join("deploy/prometheus/redeemer.rules.yml")).unwrap();
    rules.lines().filter_map(|line| Some(line.trim().strip_prefix("- alert: ")?.to_owned())).collect()
}

#[test]
fn every_alert_has_steps_a_section_of_the_runbook_and_its_cases() {
    let rules = fs::read_to_string(root().join("deploy/prometheus/redeemer.rules.yml")).unwrap();
    let runbook = fs::read_to_string(root().join("docs/runbook.md")).unwrap();
    let (runbook, _) = runbook.split_once("\n# ").unwrap();
    let sections: Vec<_> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(sections, alerts(), "sections of docs/runbook.md, in the order of the alerts");
    let lasting = fs::read_to_string(root().join("deploy/prometheus/tests/for.yml")).unwrap();
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap();
        for wanted in ["severity: ", "summary: ", "description: ", "step_1: ", "step_2: ", "step_3: "] {
            assert!(rule.contains(wanted), "{name}: {wanted}");
        }
        let link = format!(
            "runbook_url: '{{{{ $externalLabels.runbooks }}}}docs/runbook.md#{}'\n",
            name.to_lowercase()
        );
        assert!(rule.contains(&link), "{name}: {link}");
        let section = runbook.split(&format!("## {name}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
        let asked: Vec<_> = section.split("```sh\n").skip(1).collect();
        assert_eq!(asked.len(), 3, "{name}: three steps");
        assert!(section.contains("**Resolved when.**"), "{name}");
        let cases = fs::read_to_string(root().join(format!("deploy/prometheus/tests/{name}.yml"))).unwrap();
        let (firing, quiet) =
            cases.split_once("- name: quiet").unwrap_or_else(|| panic!("{name}: no quiet case"));
        let asked = format!("alertname: {name}\n");
        assert!(firing.contains("- name: firing") && firing.contains(&asked), "{name}: no firing case");
        assert!(firing.contains("exp_labels:"), "{name}: the firing case expects nothing");
        assert!(quiet.contains("exp_alerts: []") && quiet.contains(&asked), "{name}: no quiet case");
        let case = format!("\n  - name: '{name}'\n");
        assert!(lasting.contains(&case), "{name}: no case for how long its cause must last");
    }
}

#[test]
fn every_cause_of_an_open_circuit_is_in_the_runbook() {
    let runbook = fs::read_to_string(root().join("docs/runbook.md")).unwrap();
    let (_, causes) = runbook.split_once("\n# While the circuit is open\n").unwrap();
    let sections: Vec<_> = causes.split("\n## ").skip(1).collect();
    let names: Vec<_> = sections.iter().filter_map(|section| section.lines().next()).collect();
    assert_eq!(names, CallDelay::ALL.map(CallDelay::as_str));
    let program = fs::read_to_string(root().join("src/runtime/readiness.rs")).unwrap();
    for (name, section) in names.iter().zip(sections) {
        let said = section.split("`/readyz` says `").nth(1).unwrap().split('`').next().unwrap();
        assert!(program.contains(said), "{name}: {said}");
        assert_eq!(section.split("```sh\n").count(), 4, "{name}: three steps");
        assert!(section.contains("**Resolved when.**"), "{name}");
    }
}

#[test]
fn rules_and_dashboards_name_only_metrics_that_are() {
    let rendered = Metrics::default().render();
    let known: BTreeSet<_> =
        rendered.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let folders = ["deploy/prometheus", "deploy/prometheus/tests", "deploy/grafana/dashboards"];
    let entries = folders.iter().flat_map(|folder| fs::read_dir(root().join(folder)).unwrap());
    let files: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    assert!(files.len() >= 4 + alerts().len() / 2, "{files:?}");
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let names = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in names.filter(|name| name.starts_with("redeemer_")) {
            let base = ["_bucket", "_count", "_sum"].iter().find_map(|ending| name.strip_suffix(ending));
            let is = known.contains(name) || base.is_some_and(|base| known.contains(base));
            assert!(is, "{}: {name}", path.display());
        }
    }
}

#[test]
fn dashboards_are_readable_and_keep_their_names() {
    for (name, query) in
        [("overview", "expr"), ("provider", "expr"), ("broker", "expr"), ("brands", "rawSql")]
    {
        let path = root().join(format!("deploy/grafana/dashboards/{name}.json"));
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(dashboard["uid"], format!("redeemer-{name}"));
        let panels = dashboard["panels"].as_array().unwrap();
        assert!(panels.len() >= 8, "{name}");
        for panel in panels {
            let query = format!("/targets/0/{query}");
            for pointer in ["/title", "/description", "/fieldConfig/defaults/unit", &query] {
                let text = panel.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
                assert!(!text.is_empty(), "{name}: {}: {pointer}", panel["title"]);
            }
        }
    }
}

/// `UPDATE=1 cargo test --test documents` writes it again.
#[test]
fn the_list_of_metrics_is_what_the_registry_holds() {
    let (path, now) = (root().join("docs/metrics.md"), list_of_metrics(&Metrics::default().render()));
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &now).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap();
    assert_eq!(written, now, "run: UPDATE=1 cargo test --test documents");
}

/// The document from the text format: one section per metric, with the values of each label.
fn list_of_metrics(rendered: &str) -> String {
    let mut page = "# Metrics\n\nThis page is generated from the registry. Every series exists from the start, at zero \
                    (queue depths: NaN until first\ncounted). No label holds an id, so no input can add a series. The \
                    delays in `queue` are those of the default\nconfiguration. On Linux there are also `process_*` \
                    series: CPU time, memory, open files, start time.\n"
        .to_owned();
    let lines: Vec<_> = rendered.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) else {
            continue;
        };
        if !name.starts_with("redeemer_") {
            continue;
        }
        let kind = lines[at + 1].rsplit(' ').next().unwrap();
        page += &format!("\n## `{name}`\n\n{help} ({kind})\n");
        let mut labels: Vec<(String, BTreeSet<String>)> = Vec::new();
        let series = lines[at + 2..].iter().take_while(|line| !line.starts_with('#'));
        for (label, value) in series
            .filter_map(|line| line.split_once('{')?.1.rsplit_once('}'))
            .flat_map(|(all, _)| all.split(',').filter_map(|pair| pair.split_once('=')).collect::<Vec<_>>())
        {
            let value = value.trim_matches('"').to_owned();
            match labels.iter_mut().find(|(known, _)| known == label) {
                _ if label == "le" || label == "version" => {}
                Some((_, values)) => {
                    values.insert(value);
                }
                None => labels.push((label.to_owned(), BTreeSet::from([value]))),
            }
        }
        for (label, values) in labels {
            let values = values.iter().map(|value| match value.as_str() {
                "" => "empty".to_owned(),
                value => format!("`{value}`"),
            });
            page += &format!("\n- `{label}`: {}\n", values.collect::<Vec<_>>().join(", "));
        }
    }
    page
}

/// The text of every source file below a folder.
fn sources(folder: &Path) -> String {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let texts = entries.map(|path| match path.is_dir() {
        true => sources(&path),
        false => fs::read_to_string(path).unwrap(),
    });
    texts.collect()
}

#[test]
fn every_reason_for_not_being_ready_is_said_by_the_program() {
    let source =
        ["src/runtime", "src/telemetry", "src/amqp"].map(|folder| sources(&root().join(folder))).concat();
    for reason in page("docs/operations.md").first_cells("reason begins").iter().flat_map(|cell| words(cell))
    {
        let code = reason.strip_prefix('[').and_then(|code| code.strip_suffix(']'));
        match code {
            Some(code) => assert!(ReasonCode::ALL.iter().any(|known| known.as_str() == code), "{code}"),
            None => assert!(source.contains(&reason), "{reason}"),
        }
    }
}

/// The names of all test functions below a folder.
fn test_names(folder: &Path, names: &mut BTreeSet<String>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            test_names(&path, names);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(path).unwrap();
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                let attributes = ["#[test]", "#[tokio::test", "#[rstest]"];
                is_test |= attributes.iter().any(|attribute| line.starts_with(attribute));
                let function = line.trim_start_matches("async ").strip_prefix("fn ");
                if let Some(name) =
                    function.and_then(|rest| rest.split(['(', '<']).next()).filter(|_| is_test)
                {
                    names.insert(name.to_owned());
                    is_test = false;
                }
            }
        }
    }
}

/// The items of the lists that begin with "Holds:", each as one line.
fn items_that_hold(text: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    let mut holds = false;
    for line in text.lines() {
        match line {
            "Holds:" => holds = true,
            _ if line.starts_with("Does not hold:") || line.starts_with('#') => holds = false,
            _ if holds && line.starts_with("- ") => items.push(line.to_owned()),
            _ if holds && line.starts_with("  ") => items.last_mut().unwrap().push_str(&line[1..]),
            _ => {}
        }
    }
    items
}

/// A promise of the threat model is worth its test.
#[test]
fn every_item_that_holds_names_tests_that_exist() {
    let text = fs::read_to_string(root().join("docs/security.md")).unwrap();
    let mut names = BTreeSet::new();
    for folder in ["src", "tests", "crates"] {
        test_names(&root().join(folder), &mut names);
    }
    let items = items_that_hold(&text);
    assert!(items.len() > 25 && names.len() > 500, "{} items, {} tests", items.len(), names.len());
    assert_eq!(text.matches("\nHolds").count(), text.matches("\nHolds:\n").count(), "each is a list");
    for item in items {
        let named = item.split_once(" Test: ").or_else(|| item.split_once(" Tests: "));
        let (_, named) = named.unwrap_or_else(|| panic!("no test: {item}"));
        let named: Vec<_> =
            named.trim_end_matches('.').split(", ").map(|name| name.trim_matches('`')).collect();
        let absent: Vec<_> = named.iter().filter(|name| !names.contains(**name)).collect();
        assert!(absent.is_empty(), "{absent:?} of {item}");
    }
}

#[test]
fn every_finding_of_check_is_explained() {
    let explained: Vec<_> = page("docs/findings.md")
        .first_cells("id")
        .iter()
        .map(|cell| cell.trim_matches('`').to_owned())
        .collect();
    assert_eq!(explained, redeemer::cli::check::ids::ALL);
}

#[test]
fn a_line_is_split_as_a_shell_does() {
    assert_eq!(split("a 'b c' --d=\"e f\" ''"), ["a", "b c", "--d=e f", ""]);
    assert_eq!(split("a b > c.log &"), ["a", "b"]);
    assert_eq!(split("a b 2> c.log &"), ["a", "b"]);
}
