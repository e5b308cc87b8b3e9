//! The registered stores and apps: the stores of the brands, and the users of the apps.
//!
//! A brand without any store here has not registered its stores, and every store is accepted; the same holds for apps.
//! Registered entries are enforced.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::error_response::{ErrorResponse, sub_code};

/// A store of a brand: an element of `PUT /_sandbox/stores`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Unique over the whole sandbox.
    pub store_id: String,
    /// The brand that it belongs to.
    pub brand_id: String,
    /// Whether it is in business; true if absent.
    #[serde(default = "is_open_by_default")]
    pub open: bool,
}

/// An app that is bound to the merchant: an element of `PUT /_sandbox/apps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// Its id.
    pub appid: String,
    /// Its users; an openid belongs to one app only.
    #[serde(default)]
    pub openids: BTreeSet<String>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Registry {
    stores: BTreeMap<String, Store>,
    apps: BTreeMap<String, BTreeSet<String>>,
}

impl Registry {
    /// Replaces the stores, or reports which is listed twice.
    pub(crate) fn replace_stores(&mut self, stores: Vec<Store>) -> Result<(), String> {
        let mut by_id = BTreeMap::new();
        for store in stores {
            if let Some(twice) = by_id.insert(store.store_id.clone(), store) {
                return Err(format!("store_id {} is listed twice", twice.store_id));
            }
        }
        self.stores = by_id;
        Ok(())
    }

    /// Replaces the apps, or reports an entry that belongs to two of them.
    pub(crate) fn replace_apps(&mut self, apps: Vec<App>) -> Result<(), String> {
        let (mut by_id, mut seen) = (BTreeMap::new(), BTreeSet::new());
        for App { appid, openids } in apps {
            if let Some(openid) = openids.iter().find(|openid| !seen.insert((*openid).clone())) {
                let tail: String = openid.chars().skip(openid.chars().count().saturating_sub(3)).collect();
                return Err(format!("the openid that ends in {tail} belongs to two apps"));
            }
            if by_id.insert(appid.clone(), openids).is_some() {
                return Err(format!("appid {appid} is listed twice"));
            }
        }
        self.apps = by_id;
        Ok(())
    }

    pub(crate) fn stores(&self) -> Vec<Store> {
        self.stores.values().cloned().collect()
    }

    pub(crate) fn apps(&self) -> Vec<App> {
        let app = |(appid, openids): (&String, &BTreeSet<String>)| App {
            appid: appid.clone(),
            openids: openids.clone(),
        };
        self.apps.iter().map(app).collect()
    }

    /// Whether a coupon of this app may be named under `appid` by this user.
    pub(crate) fn check_user(
        &self,
        openid: &str,
        appid: &str,
        coupon_appid: &str,
    ) -> Result<(), ErrorResponse> {
        let unknown = || Err(ErrorResponse::rule(sub_code::APPID, "AppID非法"));
        let foreign =
            || Err(ErrorResponse::rule(sub_code::OPENID, "openid解析失败，请检查openid与appid是否匹配"));
        let is_of_another = |app: (&String, &BTreeSet<String>)| app.0 != appid && app.1.contains(openid);
        match self.apps.get(appid) {
            None if !self.apps.is_empty() => unknown(),
            _ if self.apps.iter().any(is_of_another) => foreign(),
            None if appid != coupon_appid => unknown(),
            // The app is bound, and the coupon's user is known under another one.
            Some(_) if appid != coupon_appid => foreign(),
            _ => Ok(()),
        }
    }

    /// Whether a coupon of this brand, and of a stock that is linked to these stores if to any, may be used there.
    pub(crate) fn check_store(
        &self,
        store_id: &str,
        brand_id: &str,
        linked: &[String],
    ) -> Result<(), ErrorResponse> {
        let registered = self.stores.values().any(|store| store.brand_id == brand_id);
        let known = self.stores.get(store_id).is_some_and(|store| store.open && store.brand_id == brand_id);
        let allowed = linked.is_empty() || linked.iter().any(|linked| linked == store_id);
        // A store of another brand is known, whether or not this one has registered any.
        let foreign = self.stores.get(store_id).is_some_and(|store| store.brand_id != brand_id);
        match allowed && !foreign && (known || !registered) {
            true => Ok(()),
            false => Err(ErrorResponse::rule(sub_code::STORE, "核销门店非法")),
        }
    }
}

fn is_open_by_default() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(id: &str, brand: &str, open: bool) -> Store {
        Store { store_id: id.to_owned(), brand_id: brand.to_owned(), open }
    }

    #[test]
    fn registered_stores_are_law() {
        let mut registry = Registry::default();
        let codes = |registry: &Registry, linked: &[String]| {
            ["S1", "S2", "S3", "S9"].map(|id| {
                registry.check_store(id, "B", linked).err().map(|refusal| (refusal.status, refusal.sub_code))
            })
        };
        let no = Some((400, sub_code::STORE));
        assert_eq!(codes(&registry, &[]), [None; 4]);
        assert_eq!(codes(&registry, &["S1".to_owned()]), [None, no, no, no]);
        registry
            .replace_stores(vec![store("S1", "B", true), store("S2", "B", false), store("S3", "C", true)])
            .unwrap();
        assert_eq!(codes(&registry, &[]), [None, no, no, no]);
        assert_eq!(registry.stores().len(), 3);
        registry.replace_stores(vec![store("S3", "C", true)]).unwrap();
        assert_eq!(codes(&registry, &[]), [None, None, no, None], "a store of another brand");
        registry.replace_stores(vec![store("S1", "B", true), store("S1", "B", true)]).unwrap_err();
    }

    #[test]
    fn a_user_belongs_to_one_app() {
        let app = |appid: &str, openids: &[&str]| App {
            appid: appid.to_owned(),
            openids: openids.iter().map(|openid| (*openid).to_owned()).collect(),
        };
        let mut registry = Registry::default();
        let code = |registry: &Registry, openid: &str, appid: &str| {
            registry.check_user(openid, appid, "wx1").err().map(|refusal| refusal.sub_code)
        };
        assert_eq!(code(&registry, "o1", "wx1"), None);
        assert_eq!(code(&registry, "o1", "wx2"), Some(sub_code::APPID));
        registry.replace_apps(vec![app("wx1", &["o1"]), app("wx2", &["o2"])]).unwrap();
        assert_eq!(code(&registry, "o1", "wx1"), None);
        assert_eq!(code(&registry, "o3", "wx1"), None, "a user nobody has registered");
        assert_eq!(code(&registry, "o2", "wx1"), Some(sub_code::OPENID));
        assert_eq!(code(&registry, "o1", "wx2"), Some(sub_code::OPENID));
        assert_eq!(code(&registry, "o1", "wx3"), Some(sub_code::APPID));
        assert_eq!(registry.apps().len(), 2);
        registry.replace_apps(vec![app("wx1", &["o1"]), app("wx2", &["o1"])]).unwrap_err();
        registry.replace_apps(vec![app("wx1", &[]), app("wx1", &[])]).unwrap_err();
    }
}
