//! Whether a coupon has the members that the table says are present, and none that it says are absent.

use redeemer::wire::coupon::{MEMBERS, Member, When};
use serde_json::Value;

/// What the table demands of a member in one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Demand {
    Present,
    Absent,
    Nothing,
}

/// Each member that is there and must not be, or is not there and must be.
pub(crate) fn breaks_of_presence(coupon: &Value) -> Vec<String> {
    let mut breaks = Vec::new();
    for member in MEMBERS {
        let parent = member.path.rsplit_once('.').map_or("", |(parent, _)| parent);
        for holder in objects_at(coupon, parent) {
            let demand = demand(member, coupon, holder);
            let is_there = holder.get(member.name()).is_some();
            if demand == Demand::Present && !is_there || demand == Demand::Absent && is_there {
                breaks.push(format!("{} is not as demanded: {demand:?}", member.path));
            }
        }
    }
    breaks
}

/// The objects at a path of the table: one, none, or as many as a list has.
fn objects_at<'a>(coupon: &'a Value, path: &str) -> Vec<&'a Value> {
    let steps = path.split('.').filter(|step| !step.is_empty());
    let found = steps.fold(vec![coupon], |values, step| match step.strip_suffix("[]") {
        Some(list) => {
            let lists = values.into_iter().filter_map(|value| value.get(list)?.as_array());
            lists.flatten().collect()
        }
        None => values.into_iter().filter_map(|value| value.get(step)).collect(),
    });
    found.into_iter().filter(|value| value.is_object()).collect()
}

fn demand(member: &Member, coupon: &Value, holder: &Value) -> Demand {
    let product = &coupon["product_coupon"];
    let exactly_if = |is_so: bool| if is_so { Demand::Present } else { Demand::Absent };
    let at_least_if = |is_so: bool| if is_so { Demand::Present } else { Demand::Nothing };
    let at_most_if = |is_so: bool| if is_so { Demand::Nothing } else { Demand::Absent };
    let has = |list: &str, word: &str| {
        holder[list].as_array().is_some_and(|words| words.iter().any(|known| *known == *word))
    };
    let is_mode = |mode: &str| exactly_if(product["usage_mode"] == *mode);
    let is_type = |kind: &str| exactly_if(product["type"] == *kind);
    let is_offer = |kind: &str, is_single: bool| {
        exactly_if(product["type"] == *kind && (product["scope"] == "SINGLE") == is_single)
    };
    let is_used = coupon["coupon_state"] == "USED" || holder["detail_state"] == "USED";
    let is_returned = holder.get("return_request_no").is_some();
    // Of a use that was returned both is documented: that it is shown, and that it is not.
    let of_use = match (is_used, is_returned) {
        (true, _) => Demand::Present,
        (false, true) => Demand::Nothing,
        (false, false) => Demand::Absent,
    };
    match member.when {
        When::Always | When::PartnerMode => Demand::Present,
        When::Given | When::Named | When::Returned => Demand::Nothing,
        When::Confirmed => exactly_if(coupon["coupon_state"] != "CONFIRMING"),
        When::CouponDeactivated => exactly_if(coupon["coupon_state"] == "DEACTIVATED"),
        When::ItsStateDeactivated => exactly_if(holder["state"] == "DEACTIVATED"),
        When::Single => is_mode("SINGLE"),
        When::Bundle => is_mode("PROGRESSIVE_BUNDLE"),
        When::Sequential => is_mode("SEQUENTIAL"),
        When::Used | When::RoundUsed => of_use,
        When::UsedForOrder | When::UsedForPayScore | When::RoundUsedForOrder => {
            at_most_if(of_use != Demand::Absent)
        }
        When::RoundDeleted => exactly_if(holder["detail_state"] == "DELETED"),
        When::NormalAll => is_offer("NORMAL", false),
        When::DiscountAll => is_offer("DISCOUNT", false),
        When::NormalItem => is_offer("NORMAL", true),
        When::DiscountItem => is_offer("DISCOUNT", true),
        When::ExchangeItem => is_offer("EXCHANGE", true),
        When::Normal => is_type("NORMAL"),
        When::Discount => is_type("DISCOUNT"),
        When::Exchange => is_type("EXCHANGE"),
        When::ScopeSingle => at_least_if(product["scope"] == "SINGLE"),
        When::Upload => exactly_if(holder["coupon_code_mode"] == "UPLOAD"),
        When::MiniProgram => exactly_if(has("coupon_usage_method_list", "MINI_PROGRAM")),
        // The older revision has the way into an app and no word for its kind.
        When::App if product["usage_mode"] == "SEQUENTIAL" => Demand::Nothing,
        When::App => exactly_if(has("coupon_usage_method_list", "APP")),
        When::H5 => at_least_if(holder["app_jump_type"] == "H5"),
        When::Passcode => exactly_if(holder["app_jump_type"] == "PASSCODE_LINK"),
        When::ApiAttached => at_most_if(coupon["send_channel"] == "API"),
        When::OtherChannel => at_most_if(coupon["send_channel"] != "API"),
        When::Member => exactly_if(has("coupon_tag_list", "MEMBER")),
    }
}
