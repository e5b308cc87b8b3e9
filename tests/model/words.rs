//! The words for what is found, in the languages of the documents.

use redeemer::domain::coupon::{Coupon, CouponState, Trace, UsageTrace};
use redeemer::domain::evidence::Operation;
use redeemer::domain::outcome::Outcome;
use redeemer::policy::classify::CallResult;

use crate::provider::OURS;
use crate::state::{Cause, Exception, Message};
use crate::world::{Change, Trouble};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Language {
    English,
    Chinese,
}

/// The same in English and in Chinese.
pub(crate) type Words = (&'static str, &'static str);

impl Language {
    pub(crate) fn pick<T>(self, (english, chinese): (T, T)) -> T {
        match self {
            Self::English => english,
            Self::Chinese => chinese,
        }
    }
}

// ---- words of diagrams

pub(crate) fn message_word(message: &Message) -> Words {
    match (&message.headers, message.redelivered, message.handed_back.is_some()) {
        (Some(_), false, _) => ("retry message", "重试消息"),
        (Some(_), true, _) => ("retry message, again", "重试消息，重新投递"),
        (None, true, _) => ("command, again", "指令，重新投递"),
        (None, false, true) => ("command, handed back before", "曾被交还的指令"),
        (None, false, false) => ("command", "指令"),
    }
}

/// Whose doing a change is, and what it is.
pub(crate) fn change_word(change: Change) -> (&'static str, Words) {
    match change {
        Change::Return => ("U->>P", ("return", "退券")),
        Change::Delete => ("U->>P", ("delete", "删除券")),
        Change::UseByOther => ("Note over P", ("used for another order", "被另一笔订单核销")),
        Change::Expire => ("Note over P", ("expires", "券过期")),
        Change::Activate => ("Note over P", ("becomes valid", "券进入有效期")),
    }
}

pub(crate) fn operation_word(operation: Operation) -> Words {
    match operation {
        Operation::Redeem => ("use", "核销"),
        Operation::Query => ("query", "查询"),
    }
}

pub(crate) fn trouble_word(trouble: Trouble) -> Words {
    match trouble {
        Trouble::Lost | Trouble::NotSent => ("no response", "无应答"),
        Trouble::NotAccepted => ("429, signed", "429，有签名"),
        Trouble::UnsignedRejection => ("403, no signature", "403，无签名"),
        Trouble::Forged => ("200, no signature", "200，无签名"),
        Trouble::Unauthenticated => ("401, signed", "401，有签名"),
        Trouble::UnsignedUnauthenticated => ("401, no signature", "401，无签名"),
        Trouble::AlreadyUsed | Trouble::AlreadyUsedUnclear | Trouble::AlreadyUsedCommon => {
            ("400 PARAM_ERROR, signed", "400 PARAM_ERROR，有签名")
        }
        Trouble::Unnamed => ("200, no request number", "200，未带请求单号"),
        Trouble::BrandDenied | Trouble::BrandDeniedFirst | Trouble::AllDenied => {
            ("403 NO_AUTH, signed", "403 NO_AUTH，有签名")
        }
    }
}

pub(crate) fn reply_word(reply: &CallResult, language: Language) -> String {
    match reply {
        CallResult::Response(answer) => match (&answer.coupon, &answer.code) {
            (Some(coupon), _) => coupon_word(coupon, language),
            (None, Some(code)) => format!("{} {code}", answer.status),
            (None, None) => answer.status.to_string(),
        },
        CallResult::NoResponse(_) | CallResult::NotSent(_) => {
            language.pick(trouble_word(Trouble::Lost)).to_owned()
        }
    }
}

fn coupon_word(coupon: &Coupon, language: Language) -> String {
    let one = |state: &CouponState, trace: &Trace| {
        let user = match trace.use_request_no.as_deref().filter(|_| *state == CouponState::Used) {
            Some(number) if number == OURS => language.pick((" by us", "，由我们核销")),
            Some(_) => language.pick((" by another", "，由他人核销")),
            None => "",
        };
        let is_returned = trace.return_request_no.is_some() && user.is_empty();
        let returned = if is_returned { language.pick((", returned", "，已退券")) } else { "" };
        format!("{state}{user}{returned}")
    };
    match &coupon.usage {
        UsageTrace::Single(trace) => one(&coupon.state, trace),
        UsageTrace::Rounds(rounds) => {
            let rounds: Vec<_> = rounds.iter().map(|round| one(&round.state, &round.trace)).collect();
            rounds.join(language.pick((" and ", " 和 ")))
        }
    }
}

pub(crate) fn outcome_word(outcome: &Outcome, language: Language) -> String {
    let (open, close) = language.pick(((" (", ")"), ("（", "）")));
    let reason = outcome.reason().map(|reason| format!("{open}{}{close}", reason.as_str()));
    format!("{}{}", outcome.kind().as_str(), reason.unwrap_or_default())
}

// ---- words for what was found

pub(crate) fn exception_word(exception: Exception) -> Words {
    match exception {
        Exception::TwoEffects => ("Two effects under one number", "同一请求单号生效两次"),
        Exception::RedeemedThenRefused => ("`redeemed`, then `refused`", "先 `redeemed`，后 `refused`"),
        Exception::RedeemedThenUnresolved => {
            ("`redeemed`, then `unresolved`", "先 `redeemed`，后 `unresolved`")
        }
        Exception::RefusedThenRedeemed => ("`refused`, then `redeemed`", "先 `refused`，后 `redeemed`"),
        Exception::RefusedThenUnresolved => ("`refused`, then `unresolved`", "先 `refused`，后 `unresolved`"),
        Exception::EffectAfterRefused => ("`refused`, then an effect", "先 `refused`，后核销生效"),
        Exception::RefusedWhileUsed => {
            ("`refused`, though the coupon is used by us", "报告 `refused`，而券已由我们核销")
        }
        Exception::RefusedInTheEnd => (
            "`refused` as the last event, though the coupon is used by us",
            "最后一个事件是 `refused`，而券已由我们核销",
        ),
    }
}

pub(crate) fn cause_word(cause: Cause) -> Words {
    match cause {
        Cause::EventUnacked => (
            "a crash or a lost connection between the confirmation of the event and the ack",
            "在事件得到发布确认之后、ack 之前，进程崩溃或连接断开",
        ),
        Cause::RetryUnacked => (
            "a crash or a lost connection between the confirmation of a retry message and the ack",
            "在重试消息得到发布确认之后、ack 之前，进程崩溃或连接断开",
        ),
        Cause::RetryTwice => {
            ("a delay queue that delivers a retry message twice", "延迟队列把同一条重试消息投递了两次")
        }
        Cause::CutOff => (
            "a call that an instance begins before it notices that its connection is lost",
            "实例尚未察觉连接已断开，又发起了一次调用",
        ),
        Cause::EventHalfTaken => {
            ("an event that one queue accepts and another rejects", "事件被一个队列接收，却被另一个拒收")
        }
        Cause::PublishedTwice => ("the same command published twice", "同一条指令发布了两次"),
        Cause::Replayed => ("a replay by an operator", "操作人重放"),
        Cause::Unconfirmed => (
            "a message that the broker stores but does not confirm in time, and that is published once more",
            "RabbitMQ 已存储但未及时确认、因而又发布了一次的消息",
        ),
    }
}
