//! Writes the audit event of the operator console: who logged in or out, and how many logins were refused. A CloudEvent
//! on the exchange of results, under `audit.console.<word>`, so a subscriber of results does not receive it.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use crate::wire::audit_event::Audit;
use crate::wire::schema_words;

/// The space of ids.
const ID_SPACE: Uuid = Uuid::from_u128(0x3e51_9b0a_7c24_4f18_b6d9_52e8_a10f_c73b);

/// What happened at the login of the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleAction {
    /// Somebody who knows the token started a session.
    LoggedIn,
    /// Somebody ended their session.
    LoggedOut,
    /// A login was refused, or several within a minute.
    LoginRefused,
}

impl ConsoleAction {
    /// Every action, for schemas.
    pub const ALL: [Self; 3] = [Self::LoggedIn, Self::LoggedOut, Self::LoginRefused];

    /// The word in the type and the routing key, and in `data.action`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LoggedIn => "logged_in",
            Self::LoggedOut => "logged_out",
            Self::LoginRefused => "login_refused",
        }
    }

    /// `type` of its event.
    fn kind(self) -> String {
        format!("redemption.console.{}.v1", self.as_str())
    }
}

/// What such an event reports.
#[derive(Debug, Clone, Copy)]
pub struct ConsoleContext<'a> {
    /// The name of the service: `source` of the event.
    pub source: &'a str,
    /// When it happened; of several, the last.
    pub at: Timestamp,
    /// What happened.
    pub action: ConsoleAction,
    /// The name that the operator gave. A refused login has none: it would be a stranger's text.
    pub operator: Option<&'a str>,
    /// The session's name in the log.
    pub session: Option<&'a str>,
    /// The address of the other end of the connection; none of several.
    pub peer: Option<&'a str>,
    /// How many.
    pub count: u64,
    /// When the first of them happened.
    pub first_at: Timestamp,
}

/// The CloudEvent that carries it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "audit event of the operator console", extend("$id" = "urn:redeemer:schema:v1:console"))]
pub struct CloudEvent<'a> {
    /// Always `1.0`.
    #[schemars(extend("const" = "1.0"))]
    specversion: &'static str,
    /// Name-based UUID of source, action, time, session, address and count: equal for repeats of one event.
    #[schemars(schema_with = "schema_words::uuid")]
    id: Uuid,
    /// The name of the service, a URI reference.
    #[schemars(extend("format" = "uri-reference"), length(min = 1))]
    source: &'a str,
    /// `redemption.console.logged_in.v1`, `redemption.console.logged_out.v1` or `redemption.console.login_refused.v1`.
    #[serde(rename = "type")]
    #[schemars(schema_with = "types")]
    kind: &'a str,
    /// When it happened, RFC 3339; of several refused logins, the last.
    #[schemars(schema_with = "schema_words::time")]
    time: Timestamp,
    /// Always `application/json`.
    #[schemars(extend("const" = "application/json"))]
    datacontenttype: &'static str,
    /// What happened.
    data: Data<'a>,
}

/// What happened at the login of the console.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Data<'a> {
    /// `logged_in`, `logged_out` or `login_refused`.
    #[schemars(schema_with = "actions")]
    action: &'static str,
    /// The operator, by the name that they gave; null of a refused login.
    operator: Option<&'a str>,
    /// The name of the session in the log, which cannot be used to log in; null of a refused login.
    #[schemars(with = "Option<String>", regex(pattern = "^[0-9a-f]{8}$"))]
    session: Option<&'a str>,
    /// The address of the client, or of the proxy before the port; null if refused logins came from several.
    peer: Option<&'a str>,
    /// How many; more than one only of refused logins, within a minute.
    #[schemars(range(min = 1))]
    count: u64,
    /// When the first of them happened, RFC 3339.
    #[schemars(schema_with = "schema_words::time")]
    first_at: Timestamp,
}

/// Encodes the event.
pub fn encode(context: ConsoleContext<'_>) -> Audit {
    let ConsoleContext { source, at, action, operator, session, peer, count, first_at } = context;
    let (kind, time, number) = (action.kind(), at.to_string(), count.to_string());
    let parts = [source, action.as_str(), &time, session.unwrap_or("-"), peer.unwrap_or("-"), &number];
    let id = Uuid::new_v5(&ID_SPACE, parts.join("\n").as_bytes());
    let event = CloudEvent {
        specversion: "1.0",
        id,
        source,
        kind: &kind,
        time: at,
        datacontenttype: "application/json",
        data: Data { action: action.as_str(), operator, session, peer, count, first_at },
    };
    let body = serde_json::to_vec(&event)
        .expect("an event has string keys only and writes to memory, so it cannot fail");
    Audit { id, routing_key: format!("audit.console.{}", action.as_str()), kind, body }
}

/// `type` of the event.
fn types(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let types = ConsoleAction::ALL.map(ConsoleAction::kind);
    schemars::json_schema!({ "type": "string", "enum": types.as_slice() })
}

/// `data.action`.
fn actions(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema_words::one_of(ConsoleAction::ALL.map(ConsoleAction::as_str))
}
