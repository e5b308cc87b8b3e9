//! A real PostgreSQL for tests: the Debian package's programs, on a Unix socket in a folder of its own.
//!
//! It ends when its value is dropped, and with the process that started it. The package's own service stays alone.
#![allow(clippy::unwrap_used)] // a test bed that cannot be made fails the test

use std::env;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

/// The longest wait until it answers.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who owns what is made in it.
pub(crate) const OWNER: &str = "redeemer";

/// A running server with one database.
pub(crate) struct Postgres {
    dir: PathBuf,
    database: String,
    program: Child,
}

/// A table that nobody else can use until this is dropped.
pub(crate) struct Lock {
    session: Child,
}

impl Postgres {
    /// Makes a server with an empty database of this name. To be called from a thread that stays.
    pub(crate) fn start(database: &str) -> Self {
        // Not below the target folder: PostgreSQL refuses root, and whom it runs as may not get there.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let nth = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = env::temp_dir().join(format!("redeemer-postgres-{}-{nth}", process::id()));
        let _ = fs::remove_dir_all(&dir);
        let mut install = Command::new("install");
        install.args(["-d", "-m", "700"]);
        if geteuid().is_root() {
            install.args(["-o", "postgres", "-g", "postgres"]);
        }
        succeeds(install.arg(&dir));
        let data = dir.join("data");
        succeeds(as_owner("initdb").arg("-D").arg(&data).args([
            "--username",
            OWNER,
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]));
        let log = File::create(dir.join("log")).unwrap();
        let program = as_owner("postgres")
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(&dir)
            .args(["-c", "listen_addresses=", "-c", "fsync=off"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Self { dir, database: "postgres".to_owned(), program };
        let since = Instant::now();
        while server.try_ask(OWNER, "SELECT 1").is_err() {
            let ended = server.program.try_wait().unwrap();
            assert!(ended.is_none() && since.elapsed() < PATIENCE, "{ended:?}: {}", server.log());
            thread::sleep(Duration::from_millis(20));
        }
        server.tell(&format!("CREATE DATABASE {database}"));
        server.database = database.to_owned();
        server
    }

    /// What libpq finds it by.
    pub(crate) fn environment(&self, user: &str) -> [(&'static str, String); 3] {
        let dir = self.dir.display().to_string();
        [("PGHOST", dir), ("PGDATABASE", self.database.clone()), ("PGUSER", user.to_owned())]
    }

    fn psql(&self, user: &str) -> Command {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]).envs(self.environment(user));
        psql
    }

    /// What a user gets for a statement, or the server's complaint.
    pub(crate) fn try_ask(&self, user: &str, sql: &str) -> Result<String, String> {
        let output = self.psql(user).arg("-c").arg(sql).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// The rows of a query, as objects.
    pub(crate) fn rows(&self, user: &str, query: &str) -> Vec<Value> {
        let sql = format!("SELECT coalesce(json_agg(r), '[]') FROM ({query}) AS r");
        let json = self.try_ask(user, &sql).unwrap_or_else(|fault| panic!("{query}: {fault}"));
        serde_json::from_str(&json).unwrap()
    }

    /// One number.
    pub(crate) fn count(&self, query: &str) -> usize {
        self.try_ask(OWNER, query).unwrap().parse().unwrap()
    }

    /// Does what statements say, as the owner.
    pub(crate) fn tell(&self, sql: &str) {
        self.try_ask(OWNER, sql).unwrap_or_else(|fault| panic!("{sql}: {fault}"));
    }

    /// Has everybody else wait who wants this table.
    pub(crate) fn lock(&self, table: &str) -> Lock {
        let session = self.psql(OWNER).stdin(Stdio::piped()).spawn().unwrap();
        writeln!(session.stdin.as_ref().unwrap(), "BEGIN; LOCK TABLE {table};").unwrap();
        let held = format!(
            "SELECT count(*) FROM pg_locks WHERE relation = '{table}'::regclass AND mode = 'AccessExclusiveLock' AND granted"
        );
        let since = Instant::now();
        while self.count(&held) == 0 {
            assert!(since.elapsed() < PATIENCE, "{table} is not locked");
            thread::sleep(Duration::from_millis(20));
        }
        Lock { session }
    }

    /// What it has complained of.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        drop(self.session.stdin.take());
        let _ = self.session.wait();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its fast shutdown: sessions are ended, and its shared memory is given back.
        let pid = Pid::from_child(&self.program);
        let _ = kill_process(pid, Signal::INT);
        let _ = self.program.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A program of the newest PostgreSQL here, as a user whom it takes. It is ended when the thread is gone that
/// starts it: a test that is killed leaves nothing running.
fn as_owner(program: &str) -> Command {
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let versions =
        versions.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| version(path).is_some());
    let newest = versions.max_by_key(|path| version(path)).expect("deploy/local/install postgresql");
    let mut command = Command::new("setpriv");
    if geteuid().is_root() {
        // Twice, for a change of user would take back what is to happen at the parent's end.
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "setpriv"]);
    }
    command.args(["--pdeathsig", "INT"]).arg(newest.join("bin").join(program)).current_dir("/");
    command
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
