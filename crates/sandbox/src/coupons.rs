//! The coupons, their states, and the numbers that redemptions have consumed.
//!
//! Every change of a coupon passes through here, and each leaves one [`Change`] for the ledger. A number is consumed
//! for its brand for good: a return frees the coupon, never the number.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::bundles::{Bundles, MOST_ROUNDS};
use super::coupon::{
    ActionRequest, Bundle, Coupon, CouponAction, CouponState, Mark, NewCoupon, Round, Usage, UsageMode,
};
use super::error_response::{ErrorResponse, sub_code};
use super::issue::{self, generate_name};
use super::ledger::{BodyDigest, Change, EffectKind};
use super::registry::Registry;
use super::request::{self, Order, Path};

/// All coupons of the sandbox.
#[derive(Default)]
pub(super) struct Coupons {
    by_code: HashMap<Arc<str>, Coupon>,
    /// By brand and number.
    consumed: HashMap<(Arc<str>, Arc<str>), Consumed>,
    /// By user, stock and number.
    sends: HashMap<(String, String, String), (BodyDigest, Arc<str>)>,
    bundles: Bundles,
    changes: Vec<Change>,
    pub registry: Registry,
    /// The seed of the coupons' appearance; `None` if all have the plain one.
    pub appearance_seed: Option<u64>,
}

/// The redemption that a number identifies. No body: a use from outside, which no request can repeat.
struct Consumed {
    coupon_code: Arc<str>,
    round: usize,
    body: Option<BodyDigest>,
}

impl Coupons {
    pub(crate) fn all(&self) -> Vec<Coupon> {
        let mut all: Vec<_> = self.by_code.values().cloned().collect();
        all.sort_by(|a, b| a.coupon_code.cmp(&b.coupon_code));
        all
    }

    pub(crate) fn len(&self) -> usize {
        self.by_code.len()
    }

    pub(crate) fn get(&self, code: &str) -> Option<&Coupon> {
        self.by_code.get(code)
    }

    /// How many coupons of the bundle are used.
    pub(crate) fn used_in_bundle(&self, bundle: &Bundle) -> usize {
        self.of_bundle(bundle).filter(|coupon| coupon.state == CouponState::Used).count()
    }

    /// The changes since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Issues all of them, or none and returns the reason.
    pub(crate) fn issue(&mut self, coupons: Vec<NewCoupon>, now: Timestamp) -> Result<(), String> {
        let mut codes = std::collections::HashSet::new();
        for coupon in &coupons {
            let code = &coupon.coupon_code;
            if self.by_code.contains_key(code.as_str()) || !codes.insert(code) {
                return Err(format!("coupon_code {code} exists already"));
            }
            if !(1..=40).contains(&code.chars().count()) {
                return Err(format!("coupon_code {code} must have 1 to 40 characters"));
            }
            if !coupon.rounds.is_none_or(|rounds| (1..=MOST_ROUNDS).contains(&rounds)) {
                return Err(format!("rounds of {code} must be 1 to {MOST_ROUNDS}"));
            }
        }
        self.bundles.check(&coupons)?;
        for coupon in coupons {
            self.add(coupon, now);
        }
        Ok(())
    }

    /// Applies an external action to a coupon.
    pub(crate) fn act(&mut self, code: &str, act: &ActionRequest, now: Timestamp) -> Result<Coupon, String> {
        self.apply_time(code, now);
        let coupon = self.by_code.get(code).ok_or_else(|| format!("coupon_code {code} is unknown"))?;
        let number = act
            .number
            .clone()
            .unwrap_or_else(|| generate_name("SANDBOX_ACT", &format!("{code}_{}", now.as_second())));
        if act.round.is_some_and(|round| round >= coupon.rounds.len()) {
            return Err(format!("coupon {code} has {} rounds", coupon.rounds.len()));
        }
        let refused = |refusal: ErrorResponse| format!("{} {}", refusal.code, refusal.message);
        match act.action {
            CouponAction::Use => {
                let usage = Usage {
                    number: number.as_str().into(),
                    use_time: super::clock::china_time(now),
                    order: None,
                    saved_amount: None,
                };
                self.redeem_round(code, act.round, usage, None).map_err(refused)?;
            }
            CouponAction::Return => {
                self.return_coupon(code, act.round, &number, None, now).map_err(refused)?
            }
            CouponAction::Confirm => self.confirm(code, &number, None, now).map_err(refused)?,
            CouponAction::Deactivate => {
                self.deactivate(code, &number, "by the sandbox", None, now).map_err(refused)?
            }
            CouponAction::Lock => self.lock(code, &number).map_err(refused)?,
            CouponAction::Unlock => self.unlock(code),
            CouponAction::Delete => self.finish_attempt(code, act.round, CouponState::Deleted, now)?,
            CouponAction::Expire => self.finish_attempt(code, act.round, CouponState::Expired, now)?,
        }
        self.by_code.get(code).cloned().ok_or_else(|| format!("coupon_code {code} is unknown"))
    }

    /// Finds the coupon of a request, or reports which of its names is wrong.
    pub(crate) fn find(
        &mut self,
        openid: &str,
        code: &str,
        place: &Path,
        now: Timestamp,
    ) -> Result<&Coupon, ErrorResponse> {
        self.apply_time(code, now);
        let coupon = self
            .by_code
            .get(code)
            .ok_or_else(|| ErrorResponse::not_found(sub_code::NO_SUCH_COUPON, "券不存在"))?;
        if *coupon.brand_id != *place.brand_id {
            return Err(ErrorResponse::not_found(sub_code::NO_SUCH_OBJECT, "品牌下不存在该商品券"));
        }
        self.registry.check_user(openid, &place.appid, &coupon.appid)?;
        if *coupon.openid != *openid {
            return Err(ErrorResponse::not_found(sub_code::NO_SUCH_COUPON, "券不存在，请检查openid"));
        }
        if *coupon.product_coupon_id != *place.product_coupon_id {
            return Err(ErrorResponse::not_found(sub_code::NO_SUCH_OBJECT, "商品券不存在"));
        }
        if *coupon.stock_id != *place.stock_id {
            return Err(ErrorResponse::not_found(sub_code::NO_SUCH_OBJECT, "商品券批次不存在"));
        }
        Ok(coupon)
    }

    /// Uses a coupon that [`Coupons::find`] found. A repetition of the request that used it succeeds and changes nothing.
    pub(crate) fn redeem(
        &mut self,
        code: &str,
        asked: &request::Use,
        body: BodyDigest,
    ) -> Result<(), ErrorResponse> {
        let Order { name, value } = asked.order.clone();
        let usage = Usage {
            number: asked.out_request_no.as_str().into(),
            use_time: asked.use_time.clone(),
            order: Some((name, value)),
            saved_amount: asked.saved_amount,
        };
        let coupon = self.get_known(code)?;
        if let Some(store_id) = &asked.store_id {
            self.registry.check_store(store_id, &coupon.brand_id, &coupon.stores)?;
        }
        let round = match asked.round {
            None => None,
            Some(_) if coupon.usage_mode != UsageMode::Sequential => {
                return Err(ErrorResponse::rule(
                    sub_code::PARAMETERS,
                    "仅多次优惠券可传入sequential_coupon_index",
                ));
            }
            Some(index) => match usize::try_from(index).ok().filter(|index| *index < coupon.rounds.len()) {
                Some(index) => Some(index),
                None => {
                    return Err(ErrorResponse::parameter(
                        sub_code::OUT_OF_RANGE,
                        "body",
                        "/sequential_coupon_index",
                        index.into(),
                        "the coupon has no such round",
                    ));
                }
            },
        };
        self.redeem_round(code, round, usage, Some(body))
    }

    /// Returns a use: the round becomes usable again if it is still valid, and keeps a trace of it.
    pub(crate) fn return_coupon(
        &mut self,
        code: &str,
        round: Option<usize>,
        number: &str,
        body: Option<BodyDigest>,
        now: Timestamp,
    ) -> Result<(), ErrorResponse> {
        let coupon = self.get_known(code)?;
        if round.is_some_and(|round| round >= coupon.rounds.len()) {
            return Err(ErrorResponse::rule(sub_code::OUT_OF_RANGE, "券没有该轮次"));
        }
        let repeated = |round: &Round| round.returned.as_ref().is_some_and(|mark| *mark.number == *number);
        if coupon.rounds.iter().any(repeated) {
            return Ok(());
        }
        let index = coupon.round_to_return(round);
        if coupon.rounds[index].state != CouponState::Used {
            return Err(ErrorResponse::rule(sub_code::STATE_ILLEGAL, "券当前是可用的"));
        }
        if let Some(bundle) = coupon.bundle.clone()
            && self.is_later_used(&bundle)
        {
            return Err(ErrorResponse::rule(sub_code::STATE_ILLEGAL, "仅可退最近一次核销的券"));
        }
        let coupon = self.get_known_mut(code)?;
        let (whole, round) = (coupon.state, &mut coupon.rounds[index]);
        round.state = match whole {
            // What is over stays over: a return brings back one use, never the coupon.
            over if over.is_over() => over,
            _ if now < round.valid_end => CouponState::Effective,
            _ => CouponState::Expired,
        };
        round.deleted = (round.state == CouponState::Deleted).then_some(now);
        round.returned_use = round.used.take();
        round.returned = Some(Mark { number: number.into(), at: now });
        coupon.update_state();
        self.changed(EffectKind::Returned, code, index, Some(number.into()), body);
        Ok(())
    }

    /// Returns the use of a number, and frees the number as well: the next use under it has an effect again.
    pub(crate) fn forget(&mut self, code: &str, number: &str, now: Timestamp) -> Result<(), ErrorResponse> {
        let coupon = self.get_known(code)?;
        let key = (coupon.brand_id.clone(), Arc::<str>::from(number));
        let Some(consumed) = self.consumed.get(&key).filter(|consumed| *consumed.coupon_code == *code) else {
            return Ok(());
        };
        let round = consumed.round;
        if coupon.rounds[round].used.as_ref().is_some_and(|used| *used.number == *number) {
            let returning = generate_name("SANDBOX_RETURN", &format!("{code}_{}", now.as_microsecond()));
            self.return_coupon(code, Some(round), &returning, None, now)?;
            self.consumed.remove(&key);
        }
        Ok(())
    }

    /// Confirms a sent coupon, which then waits for its time or is usable.
    pub(crate) fn confirm(
        &mut self,
        code: &str,
        number: &str,
        body: Option<BodyDigest>,
        now: Timestamp,
    ) -> Result<(), ErrorResponse> {
        let coupon = self.get_known_mut(code)?;
        if coupon.confirmed.as_ref().is_some_and(|mark| *mark.number == *number) {
            return Ok(());
        }
        if coupon.state != CouponState::Confirming {
            return Err(ErrorResponse::rule(sub_code::STATE_ILLEGAL, "用户券状态非法"));
        }
        for (index, round) in coupon.rounds.iter_mut().enumerate() {
            let usable = index == 0 && round.valid_begin <= now;
            round.state = if usable { CouponState::Effective } else { CouponState::Pending };
        }
        coupon.confirmed = Some(Mark { number: number.into(), at: now });
        coupon.update_state();
        self.changed(EffectKind::Confirmed, code, 0, Some(number.into()), body);
        Ok(())
    }

    /// Withdraws a coupon. What is used, deleted or over stays as it is, without an error.
    pub(crate) fn deactivate(
        &mut self,
        code: &str,
        number: &str,
        reason: &str,
        body: Option<BodyDigest>,
        now: Timestamp,
    ) -> Result<(), ErrorResponse> {
        let coupon = self.get_known_mut(code)?;
        if coupon.usage_mode == UsageMode::ProgressiveBundle {
            return Err(ErrorResponse::rule(sub_code::PARAMETERS, "该商品券需按券组失效"));
        }
        if coupon.state == CouponState::Used || coupon.state.is_over() {
            return Ok(());
        }
        for round in &mut coupon.rounds {
            if round.state != CouponState::Used && !round.state.is_over() {
                round.state = CouponState::Deactivated;
            }
        }
        coupon.deactivated = Some(Mark { number: number.into(), at: now });
        coupon.deactivate_reason = Some(reason.to_owned());
        coupon.update_state();
        self.changed(EffectKind::Deactivated, code, 0, Some(number.into()), body);
        Ok(())
    }

    /// Sends a coupon to a user, who has it in state `CONFIRMING`; returns its code.
    pub(crate) fn send(
        &mut self,
        openid: &str,
        asked: &request::Send,
        body: BodyDigest,
        now: Timestamp,
    ) -> Result<Arc<str>, ErrorResponse> {
        let key = (openid.to_owned(), asked.place.stock_id.clone(), asked.send_request_no.clone());
        if let Some((first, code)) = self.sends.get(&key) {
            return match *first == body {
                true => Ok(code.clone()),
                false => Err(ErrorResponse::new(
                    400,
                    "ALREADY_EXISTS",
                    sub_code::BODY_DIFFERS,
                    "out_request_no 冲突",
                )),
            };
        }
        let code = asked.coupon_code.clone().unwrap_or_else(|| format!("26{:014}", self.by_code.len() + 1));
        if self.by_code.contains_key(code.as_str()) {
            return Err(ErrorResponse::new(
                400,
                "ALREADY_EXISTS",
                sub_code::OTHER_SEND_NUMBER,
                "coupon_code 冲突",
            ));
        }
        self.add(
            NewCoupon { state: CouponState::Confirming, ..NewCoupon::at(openid, &code, &asked.place) },
            now,
        );
        let coupon = self.get_known_mut(&code)?;
        coupon.sent = Mark { number: asked.send_request_no.as_str().into(), at: now };
        // Nothing is valid before it is received.
        coupon.rounds.iter_mut().for_each(|round| round.valid_begin = now);
        coupon.attach.clone_from(&asked.attach);
        let code = coupon.coupon_code.clone();
        self.sends.insert(key, (body, code.clone()));
        self.changed(EffectKind::Sent, &code, 0, Some(asked.send_request_no.as_str().into()), Some(body));
        Ok(code)
    }

    /// Begins a use of this number: until it ends, uses of other numbers are refused.
    pub(crate) fn lock(&mut self, code: &str, number: &str) -> Result<(), ErrorResponse> {
        let coupon = self.get_known_mut(code)?;
        if let Some(refusal) = coupon.state.refusal() {
            return Err(refusal);
        }
        if coupon.locked_by.as_deref().is_some_and(|holder| holder != number) {
            return Err(ErrorResponse::locked());
        }
        coupon.locked_by = Some(number.into());
        Ok(())
    }

    /// Ends a use that was begun.
    pub(crate) fn unlock(&mut self, code: &str) {
        if let Some(coupon) = self.by_code.get_mut(code) {
            coupon.locked_by = None;
        }
    }

    /// The whole rule of idempotence is here.
    fn redeem_round(
        &mut self,
        code: &str,
        asked: Option<usize>,
        usage: Usage,
        body: Option<BodyDigest>,
    ) -> Result<(), ErrorResponse> {
        let coupon = self.get_known(code)?;
        let key = (coupon.brand_id.clone(), usage.number.clone());
        if let Some(consumed) = self.consumed.get(&key) {
            let is_same = *consumed.coupon_code == *code
                && coupon.rounds[consumed.round]
                    .used
                    .as_ref()
                    .is_some_and(|used| used.number == usage.number);
            return match (is_same, body.is_some() && consumed.body == body) {
                (true, true) => Ok(()),
                (true, false) => Err(ErrorResponse::rule(sub_code::BODY_DIFFERS, "相同单号但请求数据不一致")),
                (false, _) => Err(ErrorResponse::number_already_used()),
            };
        }
        let index = coupon.round_to_use(asked);
        if let Some(refusal) = coupon.rounds[index].state.refusal() {
            return Err(refusal);
        }
        // After the state: what cannot be used at all is not worth a later attempt.
        if coupon.locked_by.as_ref().is_some_and(|holder| *holder != usage.number) {
            return Err(ErrorResponse::locked());
        }
        let number = usage.number.clone();
        let coupon = self.get_known_mut(code)?;
        // A use that was begun ends here.
        coupon.locked_by = None;
        coupon.rounds[index].state = CouponState::Used;
        coupon.rounds[index].used = Some(usage);
        // The next round opens with this use; intervals between rounds are not simulated.
        if let Some(next) = coupon.rounds.get_mut(index + 1).filter(|next| next.state == CouponState::Pending)
        {
            next.state = CouponState::Effective;
        }
        coupon.update_state();
        self.consumed.insert(key, Consumed { coupon_code: code.into(), round: index, body });
        self.changed(EffectKind::Used, code, index, Some(number), body);
        Ok(())
    }

    fn finish_attempt(
        &mut self,
        code: &str,
        round: Option<usize>,
        state: CouponState,
        now: Timestamp,
    ) -> Result<(), String> {
        let coupon = self.by_code.get_mut(code).ok_or_else(|| format!("coupon_code {code} is unknown"))?;
        let touched = |index: usize| round.is_none_or(|round| round == index);
        let mut ended = Vec::new();
        for (index, round) in coupon.rounds.iter_mut().enumerate().filter(|(index, _)| touched(*index)) {
            if round.state == CouponState::Used || round.state.is_over() {
                continue;
            }
            round.state = state;
            match state {
                CouponState::Deleted => round.deleted = Some(now),
                _ => round.valid_end = round.valid_end.min(now),
            }
            ended.push(index);
        }
        coupon.update_state();
        if ended.is_empty() {
            return Err(format!("coupon {code} is {:?} and cannot become {state:?}", coupon.state));
        }
        let kind = if state == CouponState::Deleted { EffectKind::Deleted } else { EffectKind::Expired };
        for index in ended {
            self.changed(kind, code, index, None, None);
        }
        Ok(())
    }

    /// Lets a coupon begin or expire by the sandbox clock. Later rounds of the legacy mode open by a use, not by time.
    fn apply_time(&mut self, code: &str, now: Timestamp) {
        let Some(coupon) = self.by_code.get_mut(code) else {
            return;
        };
        let mut expired = Vec::new();
        for (index, round) in coupon.rounds.iter_mut().enumerate() {
            match round.state {
                CouponState::Confirming | CouponState::Pending | CouponState::Effective
                    if round.valid_end <= now =>
                {
                    round.state = CouponState::Expired;
                    expired.push(index);
                }
                CouponState::Pending if index == 0 && round.valid_begin <= now => {
                    round.state = CouponState::Effective
                }
                _ => {}
            }
        }
        coupon.update_state();
        for index in expired {
            self.changed(EffectKind::Expired, code, index, None, None);
        }
    }

    fn add(&mut self, new: NewCoupon, now: Timestamp) {
        let coupon = issue::issued(new, self.appearance_seed, now);
        let code = coupon.coupon_code.clone();
        if let Some(bundle) = &coupon.bundle {
            self.bundles.add(bundle, code.clone());
        }
        if let Some(used) = &coupon.rounds[0].used {
            let key = (coupon.brand_id.clone(), used.number.clone());
            self.consumed.insert(key, Consumed { coupon_code: code.clone(), round: 0, body: None });
        }
        self.by_code.insert(code, coupon);
    }

    fn is_later_used(&self, bundle: &Bundle) -> bool {
        self.of_bundle(bundle).any(|other| {
            other.state == CouponState::Used
                && other.bundle.as_ref().is_some_and(|place| place.index > bundle.index)
        })
    }

    fn of_bundle(&self, bundle: &Bundle) -> impl Iterator<Item = &Coupon> {
        self.bundles.codes_of(&bundle.id).filter_map(|code| self.by_code.get(code))
    }

    fn get_known(&self, code: &str) -> Result<&Coupon, ErrorResponse> {
        self.by_code.get(code).ok_or_else(|| ErrorResponse::not_found(sub_code::NO_SUCH_COUPON, "券不存在"))
    }

    fn get_known_mut(&mut self, code: &str) -> Result<&mut Coupon, ErrorResponse> {
        self.by_code
            .get_mut(code)
            .ok_or_else(|| ErrorResponse::not_found(sub_code::NO_SUCH_COUPON, "券不存在"))
    }

    fn changed(
        &mut self,
        kind: EffectKind,
        code: &str,
        round: usize,
        number: Option<Arc<str>>,
        body: Option<BodyDigest>,
    ) {
        self.changes.push(Change { kind, coupon_code: code.into(), round, out_request_no: number, body });
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::DAY;
    use super::super::clock::shifted;
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-03-05T04:30:45Z".parse().unwrap()
    }

    fn place() -> Path {
        Path { product_coupon_id: "p".into(), stock_id: "s".into(), appid: "wx".into(), brand_id: "b".into() }
    }

    fn with(change: impl FnOnce(&mut NewCoupon)) -> Coupons {
        let mut new = NewCoupon::at("o1", "C1", &place());
        change(&mut new);
        let mut coupons = Coupons::default();
        coupons.issue(vec![new, NewCoupon::at("o1", "C2", &place())], now()).unwrap();
        coupons
    }

    fn digest(of: &str) -> BodyDigest {
        BodyDigest::of(of.as_bytes())
    }

    fn redeem(
        coupons: &mut Coupons,
        code: &str,
        number: &str,
        round: Option<u64>,
        body: &str,
    ) -> Result<(), u64> {
        let asked = request::Use {
            place: place(),
            out_request_no: number.to_owned(),
            use_time: "2026-03-05T12:30:45+08:00".to_owned(),
            order: Order { name: "associated_order_info", value: json!({"transaction_id": "1"}) },
            saved_amount: None,
            store_id: None,
            round,
        };
        coupons.find("o1", code, &place(), now()).map_err(|refusal| refusal.sub_code)?;
        coupons.redeem(code, &asked, digest(body)).map_err(|refusal| {
            assert_eq!(refusal.code, if refusal.status == 403 { "NOT_ENOUGH" } else { "INVALID_REQUEST" });
            refusal.sub_code
        })
    }

    fn act(coupons: &mut Coupons, action: CouponAction, number: Option<&str>) -> Result<Coupon, String> {
        coupons.act("C1", &ActionRequest { action, number: number.map(str::to_owned), round: None }, now())
    }

    fn uses(coupons: &mut Coupons) -> usize {
        coupons.take_changes().iter().filter(|change| change.kind == EffectKind::Used).count()
    }

    #[test]
    fn a_repetition_succeeds_and_has_no_second_effect() {
        let mut coupons = with(|_| {});
        for _ in 0..3 {
            assert_eq!(redeem(&mut coupons, "C1", "number_1", None, "body"), Ok(()));
        }
        assert_eq!(uses(&mut coupons), 1);
    }

    #[test]
    fn number_belongs_to_one_body_on_one_coupon() {
        let mut coupons = with(|_| {});
        redeem(&mut coupons, "C1", "number_1", None, "body").unwrap();
        assert_eq!(redeem(&mut coupons, "C1", "number_1", None, "other"), Err(sub_code::BODY_DIFFERS));
        assert_eq!(redeem(&mut coupons, "C1", "number_2", None, "body"), Err(sub_code::USED_BY_ANOTHER));
        assert_eq!(redeem(&mut coupons, "C2", "number_1", None, "body"), Err(sub_code::PARAMETERS));
        assert_eq!(uses(&mut coupons), 1);
    }

    #[test]
    fn a_return_frees_the_coupon_and_not_the_number() {
        let mut coupons = with(|_| {});
        redeem(&mut coupons, "C1", "number_1", None, "body").unwrap();
        let coupon = act(&mut coupons, CouponAction::Return, Some("return_1")).unwrap();
        assert_eq!(coupon.state, CouponState::Effective);
        assert!(coupon.rounds[0].used.is_none() && coupon.rounds[0].returned.is_some());
        act(&mut coupons, CouponAction::Return, Some("return_1")).unwrap();
        act(&mut coupons, CouponAction::Return, Some("return_2")).unwrap_err();
        assert_eq!(redeem(&mut coupons, "C1", "number_1", None, "body"), Err(sub_code::PARAMETERS));
        assert_eq!(redeem(&mut coupons, "C1", "number_2", None, "body"), Ok(()));
        assert!(coupons.get("C1").unwrap().rounds[0].returned.is_some(), "a later use keeps the trace");
    }

    #[test]
    fn a_return_revives_no_coupon_that_is_over() {
        for (action, over) in [
            (Some(CouponAction::Deactivate), CouponState::Deactivated),
            (Some(CouponAction::Delete), CouponState::Deleted),
            (Some(CouponAction::Expire), CouponState::Expired),
            (None, CouponState::Expired),
        ] {
            let mut coupons = with(|new| new.usage_mode = UsageMode::Sequential);
            redeem(&mut coupons, "C1", "number_1", Some(0), "a").unwrap();
            redeem(&mut coupons, "C1", "number_2", Some(1), "b").unwrap();
            if let Some(action) = action {
                act(&mut coupons, action, None).unwrap();
            }
            let end = shifted(now(), if action.is_some() { 0 } else { 32 * DAY });
            for (round, number) in [(0, "return_1"), (1, "return_2")] {
                let returning = ActionRequest {
                    action: CouponAction::Return,
                    number: Some(number.to_owned()),
                    round: Some(round),
                };
                let coupon = coupons.act("C1", &returning, end).unwrap();
                assert_eq!(coupon.state, over, "{action:?}");
                assert_eq!(coupon.rounds[round].state, over, "{action:?}");
                assert!(coupon.rounds[round].returned.is_some(), "{action:?}");
                assert_eq!(coupon.rounds[round].deleted.is_some(), over == CouponState::Deleted);
            }
            let refused = redeem(&mut coupons, "C1", "number_3", Some(0), "c").unwrap_err();
            assert_eq!(refused, over.refusal().unwrap().sub_code, "{action:?}");
        }
    }

    #[test]
    fn a_lock_ends_with_the_use_that_took_it() {
        for (mode, left) in [(UsageMode::Single, false), (UsageMode::Sequential, true)] {
            let mut coupons = with(|new| new.usage_mode = mode);
            act(&mut coupons, CouponAction::Lock, Some("number_1")).unwrap();
            assert_eq!(redeem(&mut coupons, "C1", "number_2", None, "b"), Err(sub_code::LOCKED));
            assert_eq!(redeem(&mut coupons, "C1", "number_1", None, "a"), Ok(()));
            assert!(coupons.get("C1").unwrap().locked_by.is_none(), "{mode:?}");
            let expected = if left { Ok(()) } else { Err(sub_code::USED_BY_ANOTHER) };
            assert_eq!(redeem(&mut coupons, "C1", "number_2", None, "b"), expected, "{mode:?}");
            act(&mut coupons, CouponAction::Return, Some("return_1")).unwrap();
            assert_eq!(redeem(&mut coupons, "C1", "number_3", None, "c"), Ok(()), "{mode:?}");
        }
    }

    #[test]
    fn a_lock_hides_no_state_that_refuses() {
        for (action, expected) in [
            (CouponAction::Expire, sub_code::EXPIRED),
            (CouponAction::Delete, sub_code::DELETED),
            (CouponAction::Deactivate, sub_code::STATE_ILLEGAL),
        ] {
            let mut coupons = with(|_| {});
            act(&mut coupons, CouponAction::Lock, Some("number_1")).unwrap();
            act(&mut coupons, action, None).unwrap();
            for number in ["number_1", "number_2"] {
                assert_eq!(redeem(&mut coupons, "C1", number, None, "a"), Err(expected), "{action:?}");
            }
        }
    }

    #[test]
    fn a_number_that_was_forgotten_has_a_second_effect() {
        let mut coupons = with(|_| {});
        coupons.forget("C1", "number_1", now()).unwrap();
        redeem(&mut coupons, "C1", "number_1", None, "body").unwrap();
        coupons.forget("C1", "number_2", now()).unwrap();
        assert_eq!(redeem(&mut coupons, "C1", "number_1", None, "body"), Ok(()));
        assert_eq!(uses(&mut coupons), 1);
        coupons.forget("C1", "number_1", now()).unwrap();
        assert_eq!(redeem(&mut coupons, "C1", "number_1", None, "body"), Ok(()));
        assert_eq!(uses(&mut coupons), 1, "one more than before");
    }

    #[test]
    fn only_an_effective_coupon_can_be_used() {
        for (state, expected) in [
            (CouponState::Confirming, Err(sub_code::STATE_ILLEGAL)),
            (CouponState::Pending, Err(sub_code::OUTSIDE_VALIDITY)),
            (CouponState::Effective, Ok(())),
            (CouponState::Used, Err(sub_code::USED_BY_ANOTHER)),
            (CouponState::Expired, Err(sub_code::EXPIRED)),
            (CouponState::Deleted, Err(sub_code::DELETED)),
            (CouponState::Deactivated, Err(sub_code::STATE_ILLEGAL)),
        ] {
            let mut coupons = with(|new| new.state = state);
            assert_eq!(coupons.get("C1").unwrap().state, state);
            assert_eq!(redeem(&mut coupons, "C1", "number_1", None, "body"), expected, "{state:?}");
        }
    }

    #[test]
    fn external_actions_lead_to_their_states() {
        for (action, from, to) in [
            (CouponAction::Delete, CouponState::Effective, Some(CouponState::Deleted)),
            (CouponAction::Expire, CouponState::Effective, Some(CouponState::Expired)),
            (CouponAction::Deactivate, CouponState::Effective, Some(CouponState::Deactivated)),
            (CouponAction::Confirm, CouponState::Confirming, Some(CouponState::Effective)),
            (CouponAction::Use, CouponState::Effective, Some(CouponState::Used)),
            (CouponAction::Return, CouponState::Used, Some(CouponState::Effective)),
            (CouponAction::Delete, CouponState::Used, None),
            (CouponAction::Confirm, CouponState::Effective, None),
            (CouponAction::Use, CouponState::Deleted, None),
            (CouponAction::Return, CouponState::Effective, None),
        ] {
            let mut coupons = with(|new| new.state = from);
            assert_eq!(
                act(&mut coupons, action, None).ok().map(|coupon| coupon.state),
                to,
                "{action:?} from {from:?}"
            );
        }
    }

    #[test]
    fn time_begins_and_ends_a_coupon() {
        let mut coupons = with(|new| new.state = CouponState::Pending);
        let state = |coupons: &mut Coupons, days| {
            coupons.find("o1", "C1", &place(), shifted(now(), days * DAY)).unwrap().state
        };
        assert_eq!(state(&mut coupons, 0), CouponState::Pending);
        assert_eq!(state(&mut coupons, 2), CouponState::Effective);
        assert_eq!(state(&mut coupons, 32), CouponState::Expired);
        assert_eq!(coupons.take_changes().len(), 1);
    }

    #[test]
    fn each_wrong_name_has_its_own_answer() {
        let mut coupons = with(|_| {});
        let mut wrong = |openid: &str, code: &str, change: fn(&mut Path)| {
            let mut place = place();
            change(&mut place);
            let refusal = coupons.find(openid, code, &place, now()).unwrap_err();
            (refusal.status, refusal.sub_code)
        };
        assert_eq!(wrong("o1", "C9", |_| {}), (404, sub_code::NO_SUCH_COUPON));
        assert_eq!(wrong("o9", "C1", |_| {}), (404, sub_code::NO_SUCH_COUPON));
        assert_eq!(wrong("o1", "C1", |place| place.brand_id.push('x')), (404, sub_code::NO_SUCH_OBJECT));
        assert_eq!(wrong("o1", "C1", |place| place.stock_id.push('x')), (404, sub_code::NO_SUCH_OBJECT));
        assert_eq!(
            wrong("o1", "C1", |place| place.product_coupon_id.push('x')),
            (404, sub_code::NO_SUCH_OBJECT)
        );
        assert_eq!(wrong("o1", "C1", |place| place.appid.push('x')), (400, sub_code::APPID));
    }

    #[test]
    fn rounds_of_the_legacy_mode_are_used_in_turn() {
        let mut coupons = with(|new| new.usage_mode = UsageMode::Sequential);
        let states = |coupons: &Coupons| {
            coupons.get("C1").unwrap().rounds.iter().map(|round| round.state).collect::<Vec<_>>()
        };
        use CouponState::{Effective, Pending, Used};
        assert_eq!(states(&coupons), [Effective, Pending, Pending]);
        assert_eq!(redeem(&mut coupons, "C1", "number_1", Some(1), "a"), Err(sub_code::OUTSIDE_VALIDITY));
        assert_eq!(redeem(&mut coupons, "C1", "number_1", Some(0), "a"), Ok(()));
        assert_eq!(states(&coupons), [Used, Effective, Pending]);
        assert_eq!(redeem(&mut coupons, "C1", "number_2", Some(0), "b"), Err(sub_code::USED_BY_ANOTHER));
        assert_eq!(
            redeem(&mut coupons, "C1", "number_2", None, "b"),
            Ok(()),
            "without an index, the next usable round"
        );
        assert_eq!(redeem(&mut coupons, "C1", "number_2", None, "b"), Ok(()), "repeated, not used once more");
        assert_eq!(states(&coupons), [Used, Used, Effective]);
        assert_eq!(redeem(&mut coupons, "C1", "number_3", Some(2), "c"), Ok(()));
        assert_eq!(coupons.get("C1").unwrap().state, Used);
        assert_eq!(redeem(&mut coupons, "C1", "number_4", None, "d"), Err(sub_code::USED_BY_ANOTHER));
        assert_eq!(uses(&mut coupons), 3);
    }

    #[test]
    fn only_the_latest_use_of_a_bundle_is_returned() {
        let mut coupons = Coupons::default();
        let bundled = |code: &str, index| NewCoupon {
            usage_mode: UsageMode::ProgressiveBundle,
            bundle_id: Some("B".to_owned()),
            bundle_index: index,
            ..NewCoupon::at("o1", code, &place())
        };
        coupons.issue(vec![bundled("C1", 0), bundled("C2", 1)], now()).unwrap();
        redeem(&mut coupons, "C1", "number_1", None, "a").unwrap();
        redeem(&mut coupons, "C2", "number_2", None, "b").unwrap();
        let bundle = coupons.get("C1").unwrap().bundle.clone().unwrap();
        assert_eq!(coupons.used_in_bundle(&bundle), 2);
        coupons.return_coupon("C1", None, "return_1", None, now()).unwrap_err();
        coupons.return_coupon("C2", None, "return_2", None, now()).unwrap();
        coupons.return_coupon("C1", None, "return_1", None, now()).unwrap();
        assert_eq!(coupons.used_in_bundle(&bundle), 0);
    }

    #[test]
    fn no_bundle_is_issued_that_cannot_be() {
        let of = |code: &str, index, rounds, id: Option<&str>| NewCoupon {
            usage_mode: UsageMode::ProgressiveBundle,
            bundle_id: id.map(str::to_owned),
            bundle_index: index,
            rounds,
            ..NewCoupon::at("o1", code, &place())
        };
        let mut coupons = Coupons::default();
        for (index, rounds) in
            [(0, Some(1)), (0, Some(2)), (0, Some(16)), (3, None), (3, Some(3)), (15, Some(15))]
        {
            coupons.issue(vec![of("C1", index, rounds, None)], now()).unwrap_err();
        }
        coupons.issue(vec![of("C1", 14, Some(15), None), of("C2", 2, None, Some("B"))], now()).unwrap();
        coupons.issue(vec![of("C3", 2, None, Some("B"))], now()).unwrap_err();
        coupons.issue(vec![of("C3", 1, Some(4), Some("B"))], now()).unwrap_err();
        coupons.issue(vec![of("C3", 0, None, Some("D")), of("C4", 0, None, Some("D"))], now()).unwrap_err();
        coupons
            .issue(vec![of("C3", 0, None, Some("D")), of("C4", 1, Some(5), Some("D"))], now())
            .unwrap_err();
        assert_eq!(coupons.len(), 2);
        coupons.issue(vec![of("C3", 1, None, Some("B")), of("C4", 0, None, None)], now()).unwrap();
    }

    #[test]
    fn issuing_is_all_or_nothing() {
        let mut coupons = with(|_| {});
        let new = |code: &str| NewCoupon::at("o1", code, &place());
        coupons.issue(vec![new("C3"), new("C1")], now()).unwrap_err();
        coupons.issue(vec![new("C4"), new("C4")], now()).unwrap_err();
        assert_eq!(coupons.len(), 2);
        coupons.issue(vec![new("C3")], now()).unwrap();
    }
}
