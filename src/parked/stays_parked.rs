//! Why a command stays parked.

use crate::domain::reason::Reason;
use crate::telemetry::masking::Masked;
use crate::wire::command::Fault;

/// Why a command stays parked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StaysParked {
    /// Its bytes are not a command.
    #[error("it is not a command: {}", faults_in_words(.0))]
    NotACommand(Vec<Fault>),
    /// It is invalid.
    #[error("its sender was sent the outcome invalid, which is final")]
    OutcomeFinal,
    /// It would be refused again, and the operator does not publish refusals.
    #[error("refused ({}); it would be refused again", .0.as_str())]
    Refused(Reason),
    /// A call of the service may be under way.
    #[error("refused, but it was parked a moment ago and may still be under way")]
    UnderWay,
    /// A second query must confirm the refusal.
    #[error("refused, but by one query only")]
    RefusalUnconfirmed,
    /// The response does not show the state of the coupon.
    #[error("nothing is known; {host} responded with {status}: {verdict}")]
    UnknownByResponse {
        /// The host that responded.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The verdict in one word.
        verdict: String,
    },
    /// No whole response was received.
    #[error("nothing is known; {host}{}", no_response_in_words(trouble.as_deref()))]
    NoResponse {
        /// The host that was called.
        host: String,
        /// The network error.
        trouble: Option<String>,
    },
}

fn faults_in_words(faults: &[Fault]) -> String {
    let faults = faults.iter().map(|fault| format!("{} {}", Masked(&fault.pointer), fault.problem));
    faults.collect::<Vec<_>>().join("; ")
}

fn no_response_in_words(trouble: Option<&str>) -> String {
    trouble.map_or_else(|| " sent no complete response".to_owned(), |trouble| format!(": {trouble}"))
}

impl StaysParked {
    /// The code in output.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotACommand(_) => "not_a_command",
            Self::OutcomeFinal => "outcome_final",
            Self::Refused(_) => "refused",
            Self::UnderWay => "under_way",
            Self::RefusalUnconfirmed => "refusal_unconfirmed",
            Self::UnknownByResponse { .. } | Self::NoResponse { .. } => "unknown",
        }
    }
}
