//! The user who returns coupons as soon as they are used, and the other order that uses every second of them next.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::commands::RETURNED;
use crate::service::Sandbox;

/// How often the user looks.
const LOOKS: Duration = Duration::from_millis(300);

/// Goes on until its runtime ends.
pub(crate) async fn go_on(sandbox: Arc<Sandbox>, returned: Arc<AtomicUsize>) {
    let mut seen = BTreeSet::new();
    loop {
        let effects = sandbox.ask("effects").await;
        for effect in effects.as_array().into_iter().flatten() {
            let code = effect["coupon_code"].as_str().unwrap_or_default();
            if effect["kind"] != "used" || !code.starts_with(RETURNED) || !seen.insert(code.to_owned()) {
                continue;
            }
            let path = format!("coupons/{code}/act");
            sandbox.tell(reqwest::Method::POST, &path, &json!({"do": "return"})).await;
            if returned.fetch_add(1, Ordering::SeqCst) % 2 == 1 {
                let other = json!({"do": "use", "number": format!("OTHER_{code}")});
                sandbox.tell(reqwest::Method::POST, &path, &other).await;
            }
        }
        sleep(LOOKS).await;
    }
}
