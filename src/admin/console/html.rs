//! The pages of the operator console, rendered from plain values. No script: every step is a form.

use std::fmt::Write as _;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use super::auth::Session;
use crate::domain::evidence::Evidence;
use crate::parked::{CouponQuery, CouponStatus, Parked, SignatureWitness, StaysParked};
use crate::telemetry::masking::{Masked, Short, without_openids};
use crate::telemetry::untrusted::{Untrusted, Visible, visible_lines};
use crate::wire::audit_event::OperatorAction;
use crate::wire::command::PartialCommand;
use crate::wire::retry_message;

/// The style of the status page, and of forms.
const STYLE: &str = concat!(include_str!("../page.css"), include_str!("page.css"));

/// The content security policy: browsers may show these pages and send their forms back here.
pub(super) static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; style-src 'sha256-{}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        STANDARD.encode(Sha256::digest(STYLE))
    )
});

/// The reasons that a filter offers.
const REASONS: [&str; 6] = [
    "deadline_passed",
    "attempts_exhausted",
    "query_rejected",
    "invalid_command",
    "corrupt_retry_message",
    "delivery_limit",
];

/// One parked command in the list.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// [`Parked::key`].
    pub id: String,
    /// When it was parked.
    pub at: Option<Timestamp>,
    /// The other cells.
    pub cells: [String; 5],
}

impl Row {
    /// A parked command in the list: its coupon shortened, without an openid.
    pub(super) fn of(parked: &Parked, now: Timestamp) -> Self {
        let PartialCommand { brand_id, coupon_code, out_request_no, .. } = &parked.partial;
        let none = || "\u{2013}".to_owned();
        Self {
            id: parked.key(),
            at: parked.at,
            cells: [
                parked.age(now).map_or_else(none, span),
                Untrusted(&parked.reason.replace('_', " ")).to_string(),
                brand_id.as_ref().map_or_else(none, ToString::to_string),
                coupon_code.as_ref().map_or_else(none, |code| Short(code.as_str()).to_string()),
                out_request_no.as_ref().map_or_else(none, ToString::to_string),
            ],
        }
    }
}

/// The result of one pass over the parked queue.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The selected commands, oldest first.
    pub rows: Vec<Row>,
    /// How many are selected, which may be more than are shown.
    pub selected: usize,
    /// How many are parked.
    pub waiting: u32,
    /// How many were read.
    pub read: usize,
    /// Why the pass ended early.
    pub error: Option<String>,
    /// A warning if the pass has no lock.
    pub unlocked: Option<String>,
}

/// The fields of the filter as they were typed, in this order: reason, older than, newer than, brand, coupon, number.
pub(super) type Typed = [String; 6];

/// The names of these fields.
pub(super) const FILTER_FIELDS: [&str; 6] =
    ["reason", "older_than", "newer_than", "brand", "coupon", "number"];

fn document(title: &str, session: Option<&Session>, inner: &str) -> String {
    let who = session.map_or_else(String::new, |session| {
        format!(
            "<form method=post action=/parked/logout>{}{} <button class=plain>Log out</button></form>",
            hidden(session),
            text(&session.operator)
        )
    });
    let title = text(title);
    format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width, initial-scale=1\"><title>{title} - redeemer</title>\
         <style>{STYLE}</style></head><body class=console><main><div class=top><nav><a href=/>status</a> \
         <a href=/parked>parked commands</a> <a href=/runbook#ParkedCommandsGrowing>runbook</a></nav>{who}</div><h1>{title}</h1>\
         {inner}</main></body></html>"
    )
}

fn hidden(session: &Session) -> String {
    format!("<input type=\"hidden\" name=\"csrf_token\" value=\"{}\">", text(&session.csrf_token))
}

fn result_page(words: &str, class: &str) -> String {
    format!("<p class=\"reported {class}\" role=\"status\">{}</p>", text(words))
}

/// The login page. `refused` is why access was denied; `exposed`: other machines can reach the port.
pub(super) fn login(refused: Option<&str>, exposed: bool) -> String {
    let mut inner = refused.map_or_else(String::new, |words| result_page(words, "bad"));
    if exposed {
        inner += &result_page(
            "Other machines can reach this port, and it does not encrypt: the token can be read on the network. Use a \
             tunnel, such as ssh -L or kubectl port-forward.",
            "warn",
        );
    }
    inner += "<form class=\"card narrow\" method=\"post\" action=\"/parked/login\">\
              <label>Your name, for the audit event<input name=\"operator\" required maxlength=\"200\" \
              autocomplete=\"username\"></label>\
              <label>Token<input name=\"token\" type=\"password\" required maxlength=\"1024\" \
              autocomplete=\"current-password\"></label><button class=\"button\">Log in</button></form>";
    document("Operator console", None, &inner)
}

/// The list with its filter.
pub(super) fn list(
    session: &Session,
    typed: &Typed,
    found: Result<&Found, &str>,
    done: Option<&str>,
) -> String {
    let mut inner = done.map_or_else(String::new, |words| result_page(words, "good"));
    let [reason, older, newer, brand, coupon, of_number] = typed.each_ref().map(|typed| text(typed));
    let mut options = "<option value=\"\">any</option>".to_owned();
    for word in REASONS {
        let chosen = if word == reason { " selected" } else { "" };
        let _ = write!(options, "<option value=\"{word}\"{chosen}>{}</option>", word.replace('_', " "));
    }
    if !reason.is_empty() && !REASONS.contains(&reason.as_str()) {
        let _ = write!(options, "<option value=\"{reason}\" selected>{reason}</option>");
    }
    let _ = write!(
        inner,
        "<form class=\"card filter\" method=\"get\" action=\"/parked\"><label>Reason<select name=\"reason\">{options}\
         </select></label><label>Older than<input name=\"older_than\" value=\"{older}\" placeholder=\"2h\"></label>\
         <label>Newer than<input name=\"newer_than\" value=\"{newer}\" placeholder=\"1d\"></label>\
         <label>Brand<input name=\"brand\" value=\"{brand}\"></label>\
         <label>Coupon code<input name=\"coupon\" value=\"{coupon}\"></label>\
         <label>Request number<input name=\"number\" value=\"{of_number}\"></label>\
         <button class=\"button\">Show</button></form>"
    );
    if let Some(why) = found.ok().and_then(|found| found.unlocked.as_deref()) {
        inner += &result_page(why, "warn");
    }
    match found {
        Err(why) => inner += &result_page(why, "bad"),
        Ok(found) if found.rows.is_empty() => {
            let none = match found.waiting {
                0 => "Nothing is parked.".to_owned(),
                waiting => format!("No match among {}.", count(u64::from(waiting), "parked command")),
            };
            let _ = write!(inner, "<p class=\"soft\">{none}{}</p>", not_all(found));
        }
        Ok(found) => {
            inner += &found.error.as_deref().map_or_else(String::new, |why| result_page(why, "bad"));
            inner += &table(found);
        }
    }
    document("Operator console", Some(session), &inner)
}

/// A note if the pass did not read the whole queue.
fn not_all(found: &Found) -> String {
    if found.read as u64 >= u64::from(found.waiting) {
        return String::new();
    }
    let read = number(found.read as u64);
    format!(" Only the first {read} were read; reload for the next ones. redeemer parked list reads all.")
}

fn table(found: &Found) -> String {
    let summary = format!(
        "{} shown, of {} that match and {} parked.{}",
        number(found.rows.len() as u64),
        number(found.selected as u64),
        number(u64::from(found.waiting)),
        not_all(found)
    );
    let mut table = format!(
        "<div class=\"card scroll\"><table><caption>{summary}</caption><thead><tr>\
         <th scope=\"col\">Parked</th><th scope=\"col\">Age</th><th scope=\"col\">Reason</th><th \
         scope=\"col\">Brand</th><th scope=\"col\">Coupon</th><th scope=\"col\">Request number</th></tr></thead><tbody>"
    );
    for Row { id, at, cells } in &found.rows {
        let when = at
            .map_or_else(|| "at an unknown time".to_owned(), |at| at.strftime("%m-%d %H:%M:%S").to_string());
        let _ = write!(table, "<tr><th scope=\"row\"><a href=\"/parked/{}\">{when}</a></th>", text(id));
        for cell in cells {
            let _ = write!(table, "<td>{}</td>", text(cell));
        }
        table += "</tr>";
    }
    table + "</tbody></table></div>"
}

/// The result of a query, and the action that the operator may confirm.
#[derive(Debug)]
pub(super) struct Confirmation<'a> {
    /// The query.
    pub query: &'a CouponQuery,
    /// The action of a replay, or why the command stays parked.
    pub assessment: Result<OperatorAction, StaysParked>,
    /// The reason that the operator gave.
    pub because: String,
    /// Whether a refusal would be published.
    pub publish_refused: bool,
}

/// One parked command, whole, with the forms of its actions.
pub(super) fn show(
    session: &Session,
    parked: &Parked,
    confirmation: Option<&Confirmation<'_>>,
    refused: Option<&str>,
    now: Timestamp,
) -> String {
    let mut inner = refused.map_or_else(String::new, |words| result_page(words, "bad"));
    if let Some(confirmation) = confirmation {
        inner += &response_section(session, parked, confirmation);
    }
    inner += "<div class=\"two\">";
    inner += &facts_section(parked, now);
    inner += &action_page(session, parked, confirmation.is_some());
    inner += "</div>";
    inner += &faults_section(parked);
    inner += &calls_section(parked);
    inner += &message_sections(parked);
    document("A parked command", Some(session), &inner)
}

/// When and why it was parked, and its identifying fields.
fn facts_section(parked: &Parked, now: Timestamp) -> String {
    let PartialCommand { openid, coupon_code, brand_id, product_coupon_id, stock_id, appid, out_request_no } =
        &parked.partial;
    let at = parked.at.map_or_else(|| "at an unknown time".to_owned(), |at| format!("{at:.0}"));
    let age = parked.age(now).map_or_else(String::new, |age| format!(", {} ago", span(age)));
    let mut facts = vec![
        ("Parked", format!("{at}{age}")),
        ("Because", Untrusted(&parked.reason.replace('_', " ")).to_string()),
        ("Calls so far", number(u64::from(parked.attempts()))),
    ];
    let fields = [
        ("Request number", out_request_no.as_ref().map(ToString::to_string)),
        ("Coupon", coupon_code.as_ref().map(ToString::to_string)),
        ("Brand", brand_id.as_ref().map(ToString::to_string)),
        ("Product coupon", product_coupon_id.as_ref().map(ToString::to_string)),
        ("Stock", stock_id.as_ref().map(ToString::to_string)),
        ("App", appid.as_ref().map(ToString::to_string)),
        ("User", openid.as_ref().map(|openid| Short(openid.as_str()).to_string())),
    ];
    facts.extend(fields.into_iter().filter_map(|(name, value)| Some((name, value?))));
    facts.push(("SHA-256 of its bytes", parked.sha256.clone()));
    let mut section = "<section><h2>The command</h2><dl>".to_owned();
    for (name, value) in facts {
        let _ = write!(section, "<dt>{name}</dt><dd>{}</dd>", text(&value));
    }
    section + "</dl></section>"
}

fn faults_section(parked: &Parked) -> String {
    let items = parked.faults().iter().map(|fault| {
        format!("<code>{}</code> {}", text(&Masked(&fault.pointer).to_string()), text(&fault.problem))
    });
    list_section("Faults", items)
}

fn calls_section(parked: &Parked) -> String {
    let calls = parked.evidence();
    list_section("Calls so far", calls.iter().map(|attempt| text(&line(attempt, SignatureWitness::Header))))
}

/// A section with a list of HTML; nothing for an empty list.
fn list_section(title: &str, items: impl Iterator<Item = String>) -> String {
    let items: String = items.map(|item| format!("<li>{item}</li>")).collect();
    if items.is_empty() {
        return String::new();
    }
    format!("<section><h2>{title}</h2><ul class=\"plainlist\">{items}</ul></section>")
}

/// Headers and body.
fn message_sections(parked: &Parked) -> String {
    let headers = parked.shown_headers().into_iter().filter(|(name, _)| name != retry_message::EVIDENCE);
    let headers = headers.map(|(name, value)| format!("<code>{}</code> {}", text(&name), text(&value)));
    let (shown, left_out) = parked.masked_body();
    let more = match left_out {
        0 => String::new(),
        left_out => format!("<p class=\"soft\">{} more are not shown.</p>", count(left_out as u64, "byte")),
    };
    format!(
        "{}<section><h2>Body, {}</h2><pre>{}</pre>{more}</section>",
        list_section("Headers", headers),
        count(parked.delivery.body().len() as u64, "byte"),
        preformatted(&shown)
    )
}

/// The forms: query first, or discard.
fn action_page(session: &Session, parked: &Parked, queried: bool) -> String {
    let (hidden, id) = (hidden(session), text(&parked.key()));
    let replay = match parked.replayable() {
        Err(why) => format!("<h2>Replay</h2><p class=\"soft\">Not possible: {}.</p>", text(&why.to_string())),
        Ok(_) => {
            let (title, button) =
                if queried { ("Query again", "Query again") } else { ("Replay", "Query WeChat Pay first") };
            format!(
                "<h2>{title}</h2><form method=\"post\" action=\"/parked/{id}/query\">{hidden}<p class=\"soft\">A query \
                 shows the state of the coupon and changes nothing. You confirm the action that follows from it before it \
                 is carried out.</p><label class=\"check\"><input type=\"checkbox\" name=\"publish_refused\" \
                 value=\"yes\"> If it is refused for good: publish that, and remove it from the queue</label>\
                 <button class=\"button\">{button}</button></form>"
            )
        }
    };
    format!(
        "<section>{replay}<h2 class=\"later\">Discard</h2><form method=\"post\" \
         action=\"/parked/{id}/discard\">{hidden}<p class=\"soft\">Removes it from the queue for good. An audit event \
         remains.</p><label>Why<input name=\"because\" required maxlength=\"200\"></label><label class=\"check\"><input \
         type=\"checkbox\" name=\"sure\" value=\"yes\" required> It is no longer needed</label>\
         <button class=\"button danger\">Discard</button></form></section>"
    )
}

/// The result of the query, and the form that confirms the action.
fn response_section(session: &Session, parked: &Parked, confirmation: &Confirmation<'_>) -> String {
    let Confirmation { query, assessment, because, publish_refused } = confirmation;
    let mut card = format!(
        "<section class=\"answer\" aria-labelledby=\"says\"><h2 id=\"says\">{}</h2><p class=\"soft\">{}</p>",
        text(&describe(query)),
        text(&line(&query.evidence, SignatureWitness::ThisProcess))
    );
    match assessment {
        Err(why) => {
            let _ = write!(card, "<p>It stays parked: {}.</p>", text(&why.to_string()));
        }
        Ok(action) => {
            let publishing = if *publish_refused {
                "<input type=\"hidden\" name=\"publish_refused\" value=\"yes\">"
            } else {
                ""
            };
            let _ = write!(
                card,
                "<p>{} Nothing has been done yet.</p><form method=\"post\" action=\"/parked/{}/replay\">{}{publishing}<input \
                 type=\"hidden\" name=\"action\" value=\"{}\"><label>Why, for the audit event<input name=\"because\" \
                 maxlength=\"200\" value=\"{}\"></label><button class=\"button\">{}</button></form>",
                consequence_of(*action),
                text(&parked.key()),
                hidden(session),
                action.effect(),
                text(because),
                button(*action),
            );
        }
    }
    card + "</section>"
}

fn consequence_of(action: OperatorAction) -> &'static str {
    match action {
        OperatorAction::Republished => {
            "It would be sent again under its old number; the service queries once more before it uses the coupon."
        }
        OperatorAction::PublishedRedeemed => {
            "It has taken effect: the event redeemed would be published, and the command removed from the queue."
        }
        OperatorAction::PublishedRefused => {
            "The event refused would be published, and the command removed from the queue."
        }
        OperatorAction::Discarded => "It would be removed from the queue for good.",
    }
}

fn button(action: OperatorAction) -> &'static str {
    match action {
        OperatorAction::Republished => "Send it again",
        OperatorAction::PublishedRedeemed => "Publish as redeemed",
        OperatorAction::PublishedRefused => "Publish as refused",
        OperatorAction::Discarded => "Discard",
    }
}

/// The result of an action, above the list.
pub(super) fn result_of(action: OperatorAction) -> &'static str {
    match action {
        OperatorAction::Republished => "Sent again. An audit event was published.",
        OperatorAction::PublishedRedeemed => {
            "Published as redeemed, and removed from the queue. An audit event was published."
        }
        OperatorAction::PublishedRefused => {
            "Published as refused, and removed from the queue. An audit event was published."
        }
        OperatorAction::Discarded => "Discarded. An audit event was published.",
    }
}

fn describe(query: &CouponQuery) -> String {
    let state = query.coupon.as_ref().map_or("state unknown", |coupon| coupon.state.as_str());
    match &query.status {
        CouponStatus::Redeemed(_) => format!("WeChat Pay: used under this number ({state})"),
        CouponStatus::Usable => format!("WeChat Pay: still usable ({state})"),
        CouponStatus::Refused { reason, .. } => {
            format!("WeChat Pay: refused, {} ({state})", reason.as_str().replace('_', " "))
        }
        CouponStatus::Unknown => "The state of the coupon is unknown".to_owned(),
        CouponStatus::Suspended(fault) => format!("Every call fails: {}", fault.as_str()),
    }
}

fn line(evidence: &Evidence, witness: SignatureWitness) -> String {
    let Evidence { at, operation, host, verdict, .. } = evidence;
    let status = evidence.status.map_or_else(|| "no response".to_owned(), |status| status.to_string());
    let verified = witness.signature(evidence);
    let request_id = evidence.request_id.as_deref().unwrap_or("\u{2013}");
    // A header may be forged.
    let line = format!("{at:.0}  {operation} {host} {status} {verdict}, {verified}, request {request_id}");
    without_openids(&line).into_owned()
}

/// A page with one sentence.
pub(super) fn error_page(session: Option<&Session>, words: &str) -> String {
    let back = "<p><a href=\"/parked\">Back to the list</a></p>";
    document("Operator console", session, &(result_page(words, "bad") + back))
}

/// A text escaped for an element or a quoted attribute of HTML, on one line and with hidden characters visible.
fn text(text: &str) -> String {
    preformatted(&Visible(text).to_string())
}

/// The same with its line feeds.
fn preformatted(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in visible_lines(text).chars() {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            c => safe.push(c),
        }
    }
    safe
}

/// 12,345
fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// 1 byte, 12 bytes
fn count(of: u64, noun: &str) -> String {
    format!("{} {noun}{}", number(of), if of == 1 { "" } else { "s" })
}

/// A span in its largest unit: 42 s, 6 min, 3 h, 2 d.
fn span(span: SignedDuration) -> String {
    match span.as_secs().max(0) {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_escaped() {
        let hostile = "<script>\"'&\u{202e}\u{1b}[2J";
        assert_eq!(text(hostile), "&lt;script&gt;&quot;&#39;&amp;\\u202e\\u001b[2J");
        assert!(!login(Some(hostile), true).contains("<script"));
        let session_less = error_page(None, hostile);
        assert!(session_less.contains("&lt;script&gt;") && !session_less.contains("<script"));
    }

    #[test]
    fn forged_header_is_never_called_verified() {
        let evidence = Evidence {
            at: Timestamp::UNIX_EPOCH,
            operation: "redeem".to_owned(),
            host: "api.mch.weixin.qq.com".to_owned(),
            status: Some(200),
            request_id: None,
            serial: Some("PUB_KEY_ID_1".to_owned()),
            verdict: "redeemed".to_owned(),
        };
        assert!(!line(&evidence, SignatureWitness::Header).contains("verified"));
        assert!(line(&evidence, SignatureWitness::ThisProcess).contains(" redeemed, verified,"));
    }

    #[test]
    fn policy_admits_the_one_style_and_no_script() {
        let page = login(None, false);
        let style = page.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
        assert!(POLICY.contains(&format!("'sha256-{}'", STANDARD.encode(Sha256::digest(style)))));
        assert!(!POLICY.contains("script-src") && !page.contains("<script") && !page.contains(" style="));
    }

    #[test]
    fn login_page_warns_if_the_port_is_exposed() {
        assert!(
            login(None, true).contains("does not encrypt")
                && !login(None, false).contains("does not encrypt")
        );
    }
}
