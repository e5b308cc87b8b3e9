//! Whether the service can read the files that root can read: root may run `check`, and root reads everything. To read a
//! file, a user must also be able to enter each folder of its path.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Finding;
use super::remedies::{LIST_OF_FILES, Origin};
use crate::config::Config;
use crate::policy::file_name::{Shown, quote};
use crate::wechat::secret_file::{Reader, SERVICE_GROUP, ids_of};

/// The user of the unit that is shipped, by its entry in `passwd`.
fn service_user(passwd: &str) -> Option<(u32, u32)> {
    ids_of(passwd, SERVICE_GROUP).map(|[uid, gid]| (uid, gid))
}

/// To read a file, and to enter a folder, as the lowest class of a mode.
const READ: u32 = 0o4;
const ENTER: u32 = 0o1;

/// Whether a user of this group has this right, by owner, group and mode.
fn may(right: u32, (uid, gid): (u32, u32), (owner, group, mode): (u32, u32, u32)) -> bool {
    let class = match (uid == owner, gid == group) {
        (true, _) => mode >> 6,
        (false, true) => mode >> 3,
        (false, false) => mode,
    };
    class & right != 0
}

/// The first folder on the way to a file that this user may not enter.
fn closed_folder(user: (u32, u32), path: &Path) -> Option<PathBuf> {
    // Both ways, where one of the names is a link.
    let ways = [std::path::absolute(path).ok(), fs::canonicalize(path).ok()];
    let folders = ways.iter().flatten().flat_map(|way| way.ancestors().skip(1));
    let is_closed = |folder: &&Path| {
        let found = fs::metadata(folder);
        found.is_ok_and(|found| !may(ENTER, user, (found.uid(), found.gid(), found.mode())))
    };
    let closed = folders.filter(is_closed);
    // The outermost first: behind it nothing else matters.
    closed.min_by_key(|folder| folder.as_os_str().len()).map(Path::to_path_buf)
}

/// A warning for each file that the configuration names, and for its own `file`, that is hidden from the service, if this is root.
pub(super) fn hidden_files(
    config: &Config,
    origin: &Origin<'_>,
    file: Option<&Path>,
    findings: &mut Vec<Finding>,
) {
    let user = fs::read_to_string("/etc/passwd").ok().and_then(|passwd| service_user(&passwd));
    let Some(user) = user.filter(|_| Reader::current().uid == 0) else { return };
    let named = config.file_names().into_iter().map(|(key, name)| (Some(key), PathBuf::from(name)));
    for (key, path) in named.chain(file.map(|file| (None, file.to_path_buf()))) {
        // A file that root cannot find either is another finding.
        let Ok(found) = fs::metadata(&path) else { continue };
        if let Some(folder) = closed_folder(user, &path) {
            // One folder hides all that is in it, and one command opens it.
            let finding = behind(&folder, &path, |there| match key.as_deref() {
                Some(LIST_OF_FILES) => {
                    origin.exchanging(LIST_OF_FILES, &Shown(&path).to_string(), Some(there))
                }
                Some(key) => origin.setting(key, there),
                None => format!("export REDEEMER_CONFIG={}", quote(there)),
            });
            if findings.iter().all(|other| other.remedy != finding.remedy) {
                findings.push(finding);
            }
        } else if !may(READ, user, (found.uid(), found.gid(), found.mode())) {
            findings.push(hidden(&path));
        }
    }
}

/// A file in a folder that the service may not enter. A home directory stays closed, so the file is moved instead.
fn behind(folder: &Path, path: &Path, naming: impl Fn(&str) -> String) -> Finding {
    let (shown, file) = (Shown(folder).to_string(), Shown(path).to_string());
    let detail = format!(
        "{file}: its folder {shown} can be entered by root and not by the user {SERVICE_GROUP} of the service"
    );
    let is_home = ["/root", "/home"].iter().any(|home| folder.starts_with(home));
    let remedy = match is_home || path.parent() != Some(folder) {
        true => {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let there = format!("/etc/redeemer/{name}");
            let install = format!("install -D -o root -g {SERVICE_GROUP} -m 640 {}", quote(&file));
            format!("{install} {} && {}", quote(&there), naming(&there))
        }
        false => format!("chown :{SERVICE_GROUP} {0}; chmod g+x {0}", quote(&shown)),
    };
    Finding::warning("keys", detail, remedy).with_id("key_hidden_from_service")
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
            assert_eq!(may(READ, user, file), expected, "{file:?}");
        }
    }

    #[test]
    fn closed_folder_hides_what_is_in_it() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};

        let base = std::env::temp_dir().join(format!("redeemer-folders-{}", uuid::Uuid::new_v4().simple()));
        let (closed, open) = (base.join("closed"), base.join("open"));
        fs::create_dir_all(&closed).unwrap();
        fs::create_dir(&open).unwrap();
        let set =
            |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        [(&base, 0o755), (&open, 0o755), (&closed, 0o700)].iter().for_each(|(path, mode)| set(path, *mode));
        for folder in [&closed, &open] {
            fs::write(folder.join("key.pem"), "").unwrap();
        }
        symlink(closed.join("key.pem"), open.join("link.pem")).unwrap();
        // Nobody of this machine.
        let user = (64_990, 64_990);
        assert_eq!(closed_folder(user, &open.join("key.pem")), None);
        assert_eq!(closed_folder(user, &closed.join("key.pem")).as_deref(), Some(&*closed));
        assert_eq!(closed_folder(user, &open.join("link.pem")).as_deref(), Some(&*closed));
        for mode in [0o711, 0o701, 0o755] {
            set(&closed, mode);
            assert_eq!(closed_folder(user, &closed.join("key.pem")), None, "{mode:o}");
        }
        let remedy = |folder: &str, file: &str| {
            behind(Path::new(folder), Path::new(file), |there| format!("name {there}")).remedy.unwrap()
        };
        assert!(
            remedy("/etc/redeemer", "/etc/redeemer/key.pem")
                .starts_with("chown :redeemer /etc/redeemer; chmod g+x")
        );
        for (folder, file) in
            [("/root", "/root/key.pem"), ("/home/lin", "/home/lin/keys/key.pem"), ("/srv", "/srv/a/b.pem")]
        {
            let name = Path::new(file).file_name().unwrap().to_string_lossy();
            let expected = format!(
                "install -D -o root -g redeemer -m 640 {file} /etc/redeemer/{name} && name /etc/redeemer/{name}"
            );
            assert_eq!(remedy(folder, file), expected);
        }
        fs::remove_dir_all(base).unwrap();
    }
}
