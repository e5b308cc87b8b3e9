//! Authentication of the operator console: the token starts a session, a cookie continues it, and every form carries the
//! session's CSRF token. Comparisons take constant time.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::{constant_time, digest};

/// Sessions at once; with more, the oldest ends.
const SESSIONS_MAX: usize = 16;
/// A session ends after this long without a request.
const IDLE_MAX: Duration = Duration::from_secs(30 * 60);
/// The longest session, in seconds: also the age limit of the cookie.
pub(super) const SESSION_SECONDS_MAX: u64 = 8 * 3_600;

/// Random bytes for one session: its key and its CSRF token.
pub(super) type SessionRandom = [[u8; 32]; 2];

/// Why access is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginError {
    /// The token is wrong.
    WrongToken,
    /// The session is unknown or has ended.
    NoSession,
    /// The form does not carry the session's CSRF token, or comes from another site.
    Forged,
}

/// One operator's session.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    /// The value of the cookie.
    pub key: String,
    /// The CSRF token that every form must carry.
    pub csrf_token: String,
    /// The name that the operator entered, for the audit event.
    pub operator: String,
    begun: Instant,
    seen: Instant,
}

impl Session {
    /// The session's name in the log: distinguishes sessions and cannot be used to log in.
    pub fn name(&self) -> String {
        crate::wechat::client::hex(&sha256(&self.key)[..4])
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("operator", &self.operator).finish_non_exhaustive()
    }
}

/// The token and the sessions.
pub struct Auth {
    /// Only the digest stays in memory. All digests are equally long, so a comparison does not reveal the length either.
    token: [u8; 32],
    sessions: Mutex<VecDeque<Session>>,
}

impl Auth {
    /// With this token, whose length the configuration has checked.
    pub fn new(token: &str) -> Self {
        Self { token: sha256(token.trim()), sessions: Mutex::default() }
    }

    /// Starts a session. It replaces the one whose cookie the browser has, and any with the same operator name.
    ///
    /// # Errors
    /// `LoginError::WrongToken`
    pub fn log_in(
        &self,
        token: &str,
        operator: &str,
        cookie: Option<&str>,
        now: Instant,
        random: SessionRandom,
    ) -> Result<Session, LoginError> {
        constant_time::verify_slices_are_equal(&sha256(token.trim()), &self.token)
            .map_err(|_| LoginError::WrongToken)?;
        let [key, csrf_token] = random.map(|bytes| crate::wechat::client::hex(&bytes));
        let session = Session { key, csrf_token, operator: operator.to_owned(), begun: now, seen: now };
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let replaced = cookie.map(sha256);
        sessions.retain(|other| {
            let is_same =
                |key: &[u8; 32]| constant_time::verify_slices_are_equal(&sha256(&other.key), key).is_ok();
            other.operator != operator && !replaced.as_ref().is_some_and(is_same)
        });
        if sessions.len() >= SESSIONS_MAX {
            sessions.pop_front();
        }
        sessions.push_back(session.clone());
        Ok(session)
    }

    /// The session of this cookie.
    ///
    /// # Errors
    /// `LoginError::NoSession`
    pub fn session(&self, key: Option<&str>, now: Instant) -> Result<Session, LoginError> {
        let key = sha256(key.ok_or(LoginError::NoSession)?);
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|session| {
            now.saturating_duration_since(session.begun) < Duration::from_secs(SESSION_SECONDS_MAX)
                && now.saturating_duration_since(session.seen) < IDLE_MAX
        });
        let mut found = None;
        for session in sessions.iter_mut() {
            if constant_time::verify_slices_are_equal(&sha256(&session.key), &key).is_ok() {
                session.seen = now;
                found = Some(session.clone());
            }
        }
        found.ok_or(LoginError::NoSession)
    }

    /// The session of this cookie, if the form was made by a page of it.
    ///
    /// # Errors
    /// `LoginError::NoSession`, `LoginError::Forged`
    pub fn verify_form(
        &self,
        key: Option<&str>,
        word: Option<&str>,
        now: Instant,
    ) -> Result<Session, LoginError> {
        let session = self.session(key, now)?;
        let word = sha256(word.unwrap_or_default());
        match constant_time::verify_slices_are_equal(&sha256(&session.csrf_token), &word) {
            Ok(()) => Ok(session),
            Err(_) => Err(LoginError::Forged),
        }
    }

    /// Ends a session.
    pub fn log_out(&self, session: &Session) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|other| other.key != session.key);
    }
}

fn sha256(text: &str) -> [u8; 32] {
    let mut whole = [0; 32];
    whole.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "a-token-of-thirty-two-characters";

    fn random(nth: u8) -> SessionRandom {
        [[nth; 32], [nth.wrapping_add(128); 32]]
    }

    #[test]
    fn only_the_token_opens() {
        let (auth, now) = (Auth::new(&format!("  {TOKEN}\n")), Instant::now());
        assert!(auth.log_in(TOKEN, "lin", None, now, random(1)).is_ok());
        for wrong in ["", "a", &TOKEN[1..], &format!("{TOKEN}x"), &TOKEN.to_uppercase()] {
            assert_eq!(
                auth.log_in(wrong, "lin", None, now, random(1)),
                Err(LoginError::WrongToken),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_session_ends_when_it_is_idle_old_or_closed() {
        let (auth, start) = (Auth::new(TOKEN), Instant::now());
        let at = |minutes: u64| start + Duration::from_secs(minutes * 60);
        let session = auth.log_in(TOKEN, "lin", None, start, random(1)).unwrap();
        let key = Some(session.key.as_str());
        for minute in (0..480).step_by(29) {
            assert_eq!(auth.session(key, at(minute)).unwrap().operator, "lin");
        }
        assert_eq!(auth.session(key, at(481)), Err(LoginError::NoSession), "eight hours");
        let session = auth.log_in(TOKEN, "lin", None, start, random(2)).unwrap();
        assert_eq!(auth.session(Some(&session.key), at(30)), Err(LoginError::NoSession), "idle");
        let session = auth.log_in(TOKEN, "lin", None, start, random(3)).unwrap();
        auth.log_out(&session);
        for key in [Some(session.key.as_str()), Some(""), None] {
            assert_eq!(auth.session(key, start), Err(LoginError::NoSession), "{key:?}");
        }
    }

    #[test]
    fn a_form_needs_the_word_of_its_own_session() {
        let (auth, now) = (Auth::new(TOKEN), Instant::now());
        let (one, other) = (
            auth.log_in(TOKEN, "lin", None, now, random(1)).unwrap(),
            auth.log_in(TOKEN, "wu", None, now, random(2)).unwrap(),
        );
        let form = |word| auth.verify_form(Some(&one.key), word, now);
        assert_eq!(form(Some(&one.csrf_token)).unwrap().operator, "lin");
        for word in [Some(other.csrf_token.as_str()), Some(one.key.as_str()), Some(""), None] {
            assert_eq!(form(word), Err(LoginError::Forged), "{word:?}");
        }
        assert_eq!(auth.verify_form(None, Some(&one.csrf_token), now), Err(LoginError::NoSession));
    }

    #[test]
    fn new_login_ends_the_old_session() {
        let (auth, now) = (Auth::new(TOKEN), Instant::now());
        let open = |name, cookie, nth| auth.log_in(TOKEN, name, cookie, now, random(nth)).unwrap();
        let is_open = |session: &Session| auth.session(Some(&session.key), now).is_ok();
        let lin = open("lin", None, 1);
        let wu = open("wu", None, 2);
        let again = open("lin", None, 3);
        assert_eq!([&lin, &wu, &again].map(is_open), [false, true, true], "by name");
        let other = open("zhou", Some(&again.key), 4);
        assert_eq!([&wu, &again, &other].map(is_open), [true, false, true], "by cookie");
        assert_eq!(auth.log_in("wrong", "wu", Some(&wu.key), now, random(5)), Err(LoginError::WrongToken));
        assert!(is_open(&wu), "who is refused ends nobody's session");
        assert!(!wu.key.contains(&wu.name()) && wu.name() != other.name());
    }

    #[test]
    fn sessions_are_bounded_and_show_no_secret() {
        let (auth, now) = (Auth::new(TOKEN), Instant::now());
        let first = auth.log_in(TOKEN, "lin", None, now, random(0)).unwrap();
        for nth in 1..=SESSIONS_MAX {
            auth.log_in(TOKEN, &format!("lin {nth}"), None, now, random(nth as u8)).unwrap();
        }
        assert_eq!(auth.session(Some(&first.key), now), Err(LoginError::NoSession));
        assert!(!format!("{first:?}").contains(&first.key));
    }
}
