//! Whether the service can read what root can read: `check` is run by root beside it, and root reads everything.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::config::Config;
use crate::policy::file_name::{Shown, quote};
use crate::wechat::secret_file::{Reader, SERVICE_GROUP};

/// The user of the unit that is shipped, by its entry in `passwd`.
fn service_user(passwd: &str) -> Option<(u32, u32)> {
    let mut fields = passwd.lines().map(|line| line.split(':')).find_map(|mut fields| {
        let is_named_so = fields.next() == Some(SERVICE_GROUP);
        is_named_so.then_some(fields)
    })?;
    // Behind the password.
    fields.next();
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Whether a user of this group may read a file, by its owner, group and mode.
fn may_read((uid, gid): (u32, u32), (owner, group, mode): (u32, u32, u32)) -> bool {
    match (uid == owner, gid == group) {
        (true, _) => mode & 0o400 != 0,
        (false, true) => mode & 0o040 != 0,
        (false, false) => mode & 0o004 != 0,
    }
}

/// A warning for each file that the configuration names, and for its own `file`, that is hidden from the service, if this is root.
pub(super) fn hidden_files(config: &Config, file: Option<&Path>, findings: &mut Vec<Finding>) {
    let user = fs::read_to_string("/etc/passwd").ok().and_then(|passwd| service_user(&passwd));
    let Some(user) = user.filter(|_| Reader::current().uid == 0) else { return };
    let wechat = &config.wechat;
    let named = [
        &wechat.merchant_key_file,
        &wechat.merchant_certificate_file,
        &wechat.apiv3_key_file,
        &config.broker.uri_file,
        &config.broker.ca_file,
        &config.broker.client_certificate_file,
        &config.broker.client_key_file,
        &config.admin.console_token_file,
    ];
    let named = named.into_iter().filter(|name| !name.is_empty()).map(PathBuf::from);
    let keys = wechat.public_keys.values().chain(&wechat.platform_certificates).cloned();
    for path in named.chain(keys).chain(file.map(Path::to_path_buf)) {
        // A file that root cannot find either is another finding.
        let Ok(found) = fs::metadata(&path) else { continue };
        if !may_read(user, (found.uid(), found.gid(), found.mode())) {
            findings.push(hidden(&path));
        }
    }
}

fn hidden(path: &Path) -> Finding {
    let shown = Shown(path).to_string();
    let file = quote(&shown);
    let detail = format!("{shown} can be read by root and not by the user {SERVICE_GROUP} of the service");
    let remedy = format!("chown root:{SERVICE_GROUP} {file}; chmod 640 {file}");
    Finding::warning("keys", detail, remedy).with_id("key_hidden_from_service")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_user_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0::/:/bin/sh\nredeemers:x:1:1::/:\nredeemer:x:990:991::/:/usr/sbin/nologin\n";
        assert_eq!(service_user(passwd), Some((990, 991)));
        for other in ["", "root:x:0:0::/:/bin/sh\n", "redeemer:x\n", "redeemer:x:a:b\n"] {
            assert_eq!(service_user(other), None, "{other:?}");
        }
    }

    #[test]
    fn nearest_class_alone_decides_who_may_read() {
        let user = (990, 991);
        for (file, expected) in [
            ((0, 991, 0o640), true),
            ((0, 991, 0o600), false),
            ((0, 0, 0o640), false),
            ((0, 0, 0o644), true),
            ((990, 0, 0o600), true),
            ((990, 991, 0o044), false),
            ((0, 991, 0o604), false),
        ] {
            assert_eq!(may_read(user, file), expected, "{file:?}");
        }
    }
}
