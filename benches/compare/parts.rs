//! What `make bench-parts` measured last, as criterion left it.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// One part.
pub(crate) struct Part {
    pub name: String,
    /// Of one run, with the bounds of its confidence interval.
    pub nanos: [f64; 3],
    /// Of one run, where the machine counts them.
    pub instructions: Option<u64>,
}

/// The parts by name.
pub(crate) fn read() -> Vec<Part> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../criterion");
    let mut parts = Vec::new();
    collect(&folder, &mut parts);
    parts.sort_by(|one, other| one.0.cmp(&other.0));
    let counted = fs::read_to_string(folder.join("instructions.json")).ok();
    let counted: Value = counted.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let part = |(name, nanos): (String, _)| Part { instructions: counted[&name].as_u64(), name, nanos };
    parts.into_iter().map(part).collect()
}

fn collect(folder: &Path, parts: &mut Vec<(String, [f64; 3])>) {
    parts.extend(part(&folder.join("new")));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            collect(&entry.path(), parts);
        }
    }
}

fn part(folder: &Path) -> Option<(String, [f64; 3])> {
    let read = |name: &str| -> Option<Value> {
        serde_json::from_str(&fs::read_to_string(folder.join(name)).ok()?).ok()
    };
    let name = read("benchmark.json")?["full_id"].as_str()?.to_owned();
    let estimates = read("estimates.json")?;
    // The slope is the better estimate; criterion has none where it took each sample alone.
    let estimate =
        [&estimates["slope"], &estimates["mean"]].into_iter().find(|estimate| estimate.is_object())?;
    let interval = &estimate["confidence_interval"];
    Some((
        name,
        [
            estimate["point_estimate"].as_f64()?,
            interval["lower_bound"].as_f64()?,
            interval["upper_bound"].as_f64()?,
        ],
    ))
}
