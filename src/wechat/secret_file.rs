//! Who may read a file with a secret: its owner, or the group that root grants it to.
//!
//! `install -m 640 -g redeemer`, and `fsGroup` of Kubernetes, make a secret that the service may read and not write. The same file must be good for root, too, who runs `redeemer check` beside the service,
//! and for an operator who has the group among the supplementary ones. No remedy takes the service's right to read away.

use std::fmt;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::policy::file_name::{Shown, quote};

/// The group of the unit that is shipped, and its user.
pub const SERVICE_GROUP: &str = "redeemer";

/// The ids of a process for the access to files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// The effective user.
    pub uid: u32,
    /// The effective group.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

impl Reader {
    /// This process.
    pub fn current() -> Self {
        use rustix::process::{getegid, geteuid, getgroups};
        // Not by /proc/self: that is root's, because this process is not dumpable.
        let groups = getgroups().unwrap_or_default().into_iter().map(rustix::process::Gid::as_raw).collect();
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups }
    }

    fn is_in(&self, group: u32) -> bool {
        self.gid == group || self.groups.contains(&group)
    }
}

/// Owner, group and mode of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions {
    /// The owner's user id.
    pub uid: u32,
    /// The group's id.
    pub gid: u32,
    /// The lowest nine bits of the mode.
    pub mode: u32,
}

impl Permissions {
    fn of(found: &Metadata) -> Self {
        Self { uid: found.uid(), gid: found.gid(), mode: found.mode() & 0o777 }
    }

    /// Whether a secret may have these permissions if `reader` reads it.
    pub fn admit(self, reader: &Reader) -> bool {
        let Self { uid, gid, mode } = self;
        // Lent by root to one group, which may do no more than read. Root itself may be of any group.
        let lent = uid == 0 && mode & 0o037 == 0 && (reader.uid == 0 || gid != 0 && reader.is_in(gid));
        mode & 0o077 == 0 || lent
    }
}

/// Why a file is not admitted: who may read it beside those who must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// Of the file.
    pub permissions: Permissions,
    /// The process that found it.
    pub reader: Reader,
    /// The group of the service's usual name, if there is one.
    pub service_group: Option<u32>,
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Permissions { uid, gid, mode } = self.permissions;
        write!(f, "can be read by others (mode {mode:03o}, owner {uid}, group {gid})")
    }
}

impl Exposure {
    /// The command that denies others and leaves the service the right to read.
    pub fn remedy(&self, path: &Path) -> String {
        let Self { permissions: Permissions { uid, gid, .. }, reader, service_group } = self;
        let path = quote(&Shown(path).to_string());
        match (reader.uid, *uid) {
            // Root lends it to the service already: the group stays.
            (0, 0) if *service_group == Some(*gid) => format!("chmod 640 {path}"),
            (0, 0) if *gid != 0 && service_group.is_none() => {
                format!("chmod 640 {path} # its group must be that of the service, and of nobody else")
            }
            (0, _) if service_group.is_some() => {
                format!(
                    "chown root:{SERVICE_GROUP} {path}; chmod 640 {path} # {SERVICE_GROUP}: the service's group"
                )
            }
            // Only its owner is known.
            (0, _) => format!("chmod 600 {path} # its owner must be the user of the service"),
            (reader, owner) if reader == owner => format!("chmod 600 {path}"),
            _ => {
                let group = reader.gid;
                format!(
                    "sudo chown root:{group} {path}; sudo chmod 640 {path} # {group}: the group of this process"
                )
            }
        }
    }
}

/// Why a file with a secret is not read.
#[derive(Debug)]
pub enum NotOpened {
    /// We may not, or it is not there.
    Unreadable(std::io::Error),
    /// It is a folder.
    Folder,
    /// Others may read it.
    Exposed(Exposure),
}

/// Opens a file with a secret, if nobody else may read it.
///
/// # Errors
/// [`NotOpened`]
pub fn open(path: &Path) -> Result<File, NotOpened> {
    let file = File::open(path).map_err(NotOpened::Unreadable)?;
    // The mode of the opened file, not of the path, which could be replaced in between.
    let found = file.metadata().map_err(NotOpened::Unreadable)?;
    if found.is_dir() {
        // The mode of a folder shows nothing about a secret, and closing it to others would do harm.
        return Err(NotOpened::Folder);
    }
    let (permissions, reader) = (Permissions::of(&found), Reader::current());
    if permissions.admit(&reader) {
        return Ok(file);
    }
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let service_group = group_id(&groups, SERVICE_GROUP);
    Err(NotOpened::Exposed(Exposure { permissions, reader, service_group }))
}

/// The id of a group, by its line in the text of `/etc/group`.
fn group_id(groups: &str, name: &str) -> Option<u32> {
    let [id] = ids_of(groups, name)?;
    Some(id)
}

/// The ids behind name and password in the line of this name, in the text of `/etc/passwd` or `/etc/group`.
pub fn ids_of<const N: usize>(text: &str, name: &str) -> Option<[u32; N]> {
    let mut lines = text.lines().map(|line| line.split(':'));
    let fields = lines.find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
    let ids: Vec<u32> = fields.skip(1).take(N).map(|id| id.parse().ok()).collect::<Option<_>>()?;
    ids.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: u32 = 990;
    const OPERATOR: u32 = 1_000;

    fn reader(uid: u32, gid: u32, groups: &[u32]) -> Reader {
        Reader { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn secret_is_admitted_for_whom_it_is_meant() {
        let root = reader(0, 0, &[0]);
        let service = reader(SERVICE, SERVICE, &[]);
        let operator = reader(OPERATOR, OPERATOR, &[27, SERVICE]);
        let stranger = reader(OPERATOR, OPERATOR, &[27]);
        let check = |uid, gid, mode, admitted: [bool; 4]| {
            let permissions = Permissions { uid, gid, mode };
            let found = [&root, &service, &operator, &stranger].map(|reader| permissions.admit(reader));
            assert_eq!(found, admitted, "{permissions:?}");
        };
        // As the unit's comment installs it.
        check(0, SERVICE, 0o640, [true, true, true, false]);
        check(0, SERVICE, 0o440, [true, true, true, false]);
        check(SERVICE, SERVICE, 0o600, [true; 4]);
        check(0, 0, 0o600, [true; 4]);
        check(0, 0, 0o640, [true, false, false, false]);
        for mode in [0o644, 0o660, 0o650, 0o641, 0o642, 0o604] {
            check(0, SERVICE, mode, [false; 4]);
            check(SERVICE, SERVICE, mode, [false; 4]);
        }
        // Anyone who owns it can give it to others again.
        check(OPERATOR, SERVICE, 0o640, [false; 4]);
    }

    #[test]
    fn remedy_leaves_the_service_the_right_to_read() {
        let path = Path::new("/etc/redeemer/key.pem");
        let check = |reader: Reader, uid, gid, service_group: Option<u32>, commands: &str| {
            let permissions = Permissions { uid, gid, mode: 0o644 };
            let remedy = Exposure { permissions, reader, service_group }.remedy(path);
            assert_eq!(remedy.split(" # ").next().unwrap(), commands);
        };
        let root = || reader(0, 0, &[]);
        let (known, users) = (Some(SERVICE), 100);
        let lend = "chown root:redeemer /etc/redeemer/key.pem; chmod 640 /etc/redeemer/key.pem";
        check(root(), 0, SERVICE, known, "chmod 640 /etc/redeemer/key.pem");
        check(root(), 0, SERVICE, None, "chmod 640 /etc/redeemer/key.pem");
        check(root(), 0, 0, known, lend);
        // Read by way of everybody so far: without the group the mode alone would shut the service out.
        check(root(), 0, users, known, lend);
        check(root(), OPERATOR, users, known, lend);
        check(root(), OPERATOR, OPERATOR, known, lend);
        check(root(), SERVICE, SERVICE, known, lend);
        check(root(), SERVICE, SERVICE, None, "chmod 600 /etc/redeemer/key.pem");
        check(reader(SERVICE, SERVICE, &[]), SERVICE, SERVICE, known, "chmod 600 /etc/redeemer/key.pem");
        check(
            reader(SERVICE, SERVICE, &[]),
            0,
            0,
            known,
            "sudo chown root:990 /etc/redeemer/key.pem; sudo chmod 640 /etc/redeemer/key.pem",
        );
    }

    #[test]
    fn group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\nredeemers:x:1:\nredeemer:x:990:lin\n";
        assert_eq!(group_id(groups, "redeemer"), Some(990));
        for other in ["", "root:x:0:\n", "redeemer:x\n", "redeemer:x:\n", "redeemer:x:a:\n"] {
            assert_eq!(group_id(other, "redeemer"), None, "{other:?}");
        }
    }
}
