//! Writes files of the command line: whole or not at all, and never through a link.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use uuid::Uuid;

/// Readable by all users.
pub const PUBLIC: u32 = 0o644;
/// Readable by its owner alone.
pub const PRIVATE: u32 = 0o600;

/// Writes a new temporary file and renames it, so that no reader sees half of it. A link of this name is replaced, not
/// followed. The temporary file must not exist before, so no other process has it open.
///
/// # Errors
/// If the folder cannot be written to.
pub fn write_file(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut part = OsString::from(".");
    part.push(name);
    part.push(format!(".{}.part", Uuid::new_v4().simple()));
    let part = path.with_file_name(part);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
    let written = file.write_all(bytes).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn link_is_replaced_and_not_followed() {
        let dir = std::env::temp_dir().join(format!("redeemer-files-{}", Uuid::new_v4().simple()));
        fs::create_dir(&dir).unwrap();
        let (victim, path) = (dir.join("victim"), dir.join("written"));
        fs::write(&victim, "untouched").unwrap();
        for old in ["written", "written.part"] {
            symlink(&victim, dir.join(old)).unwrap();
        }
        write_file(&path, PRIVATE, b"text").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
        let found = fs::symlink_metadata(&path).unwrap();
        assert!(found.is_file() && found.permissions().mode() & 0o777 == PRIVATE, "{found:?}");
        // A file that stood open to others is replaced as well.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        write_file(&path, PRIVATE, b"again").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE);
        assert!(write_file(&dir.join("absent/file"), PRIVATE, b"").is_err());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3, "nothing is left over");
        fs::remove_dir_all(dir).unwrap();
    }
}
