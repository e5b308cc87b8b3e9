//! Which coupons make a bundle, and what no bundle can be.

use std::collections::HashMap;
use std::sync::Arc;

use super::coupon::{Bundle, NewCoupon, UsageMode};

/// Rounds where a coupon does not say.
pub(super) const ROUNDS: usize = 3;
pub(super) const MOST_ROUNDS: usize = 15;
/// `progressive_bundle_usage_info.count` of the provider's document is 3 to 15.
const LEAST_OF_A_BUNDLE: usize = 3;

/// Every bundle that has a coupon, by its id.
#[derive(Default)]
pub(super) struct Bundles(HashMap<Arc<str>, Vec<Place>>);

struct Place {
    code: Arc<str>,
    index: usize,
    total: usize,
}

impl Bundles {
    pub(super) fn add(&mut self, bundle: &Bundle, code: Arc<str>) {
        let place = Place { code, index: bundle.index, total: bundle.total };
        self.0.entry(bundle.id.clone()).or_default().push(place);
    }

    pub(super) fn codes_of(&self, id: &str) -> impl Iterator<Item = &Arc<str>> {
        self.0.get(id).into_iter().flatten().map(|place| &place.code)
    }

    /// A bundle has 3 to 15 places, each with at most one coupon, and its coupons agree on how many there are.
    pub(super) fn check(&self, coupons: &[NewCoupon]) -> Result<(), String> {
        let mut known: HashMap<&str, Vec<(usize, usize)>> = HashMap::new();
        for new in coupons.iter().filter(|new| new.usage_mode == UsageMode::ProgressiveBundle) {
            let (code, total, index) = (&new.coupon_code, new.rounds.unwrap_or(ROUNDS), new.bundle_index);
            if total < LEAST_OF_A_BUNDLE {
                return Err(format!(
                    "rounds of {code} are not {LEAST_OF_A_BUNDLE} to {MOST_ROUNDS} of a bundle"
                ));
            }
            if index >= total {
                return Err(format!("bundle_index of {code} is not 0 to {}", total - 1));
            }
            let Some(id) = new.bundle_id.as_deref() else { continue };
            let known = known.entry(id).or_insert_with(|| {
                self.0.get(id).into_iter().flatten().map(|place| (place.total, place.index)).collect()
            });
            if let Some((others, _)) = known.iter().find(|(others, _)| *others != total) {
                return Err(format!(
                    "rounds of {code} are {total}, and {others} of other coupons of bundle {id}"
                ));
            }
            if known.iter().any(|(_, taken)| *taken == index) {
                return Err(format!("bundle_index {index} of bundle {id} is another coupon's, not {code}'s"));
            }
            known.push((total, index));
        }
        Ok(())
    }
}
