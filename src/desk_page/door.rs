//! Who may sit at the desk: a token opens it, a session keeps it open, and every form carries a word that only its
//! own page knew. Comparisons take the same time however much of a guess is right.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::{constant_time, digest};

/// Sessions at once; with more, the oldest ends.
const SESSIONS_MAX: usize = 16;
/// A session ends after so long without a request.
const IDLE_MAX: Duration = Duration::from_secs(30 * 60);
/// The longest session, in seconds: also what the browser is told.
pub const SESSION_SECONDS_MAX: u64 = 8 * 3_600;

/// Secret chance for one session: who it is, and what its forms carry.
pub type Dice = [[u8; 32]; 2];

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The token is another one.
    WrongToken,
    /// Nobody knows this session, or it has ended.
    NoSession,
    /// The form was not made by a page of this session.
    Forged,
}

/// One person at the desk.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    /// What the browser keeps: the value of the cookie.
    pub key: String,
    /// What every form must carry.
    pub form_word: String,
    /// The name that the person gave, for the audit event.
    pub operator: String,
    begun: Instant,
    seen: Instant,
}

impl Session {
    /// What the log calls it: tells sessions apart and opens none.
    pub fn name(&self) -> String {
        crate::wechat::api::hex(&sha256(&self.key)[..4])
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("operator", &self.operator).finish_non_exhaustive()
    }
}

/// Lets people in.
pub struct Door {
    /// Only the digest stays in memory. All digests are equally long, so a comparison does not tell the length either.
    token: [u8; 32],
    sessions: Mutex<VecDeque<Session>>,
}

impl Door {
    /// A door with this token, which the configuration has found long enough.
    pub fn new(token: &str) -> Self {
        Self { token: sha256(token.trim()), sessions: Mutex::default() }
    }

    /// Begins a session. It takes the place of the one whose cookie the browser has, and of any under the same name.
    ///
    /// # Errors
    /// `Refused::WrongToken`
    pub fn open(
        &self,
        token: &str,
        operator: &str,
        cookie: Option<&str>,
        now: Instant,
        dice: Dice,
    ) -> Result<Session, Refused> {
        constant_time::verify_slices_are_equal(&sha256(token.trim()), &self.token)
            .map_err(|_| Refused::WrongToken)?;
        let [key, form_word] = dice.map(|bytes| crate::wechat::api::hex(&bytes));
        let session = Session { key, form_word, operator: operator.to_owned(), begun: now, seen: now };
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
    /// `Refused::NoSession`
    pub fn session(&self, key: Option<&str>, now: Instant) -> Result<Session, Refused> {
        let key = sha256(key.ok_or(Refused::NoSession)?);
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
        found.ok_or(Refused::NoSession)
    }

    /// The session of this cookie, where the form was made by a page of it.
    ///
    /// # Errors
    /// `Refused::NoSession`, `Refused::Forged`
    pub fn form(&self, key: Option<&str>, word: Option<&str>, now: Instant) -> Result<Session, Refused> {
        let session = self.session(key, now)?;
        let word = sha256(word.unwrap_or_default());
        match constant_time::verify_slices_are_equal(&sha256(&session.form_word), &word) {
            Ok(()) => Ok(session),
            Err(_) => Err(Refused::Forged),
        }
    }

    /// Ends a session.
    pub fn close(&self, session: &Session) {
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

    fn dice(nth: u8) -> Dice {
        [[nth; 32], [nth.wrapping_add(128); 32]]
    }

    #[test]
    fn only_the_token_opens() {
        let (door, now) = (Door::new(&format!("  {TOKEN}\n")), Instant::now());
        assert!(door.open(TOKEN, "lin", None, now, dice(1)).is_ok());
        for wrong in ["", "a", &TOKEN[1..], &format!("{TOKEN}x"), &TOKEN.to_uppercase()] {
            assert_eq!(door.open(wrong, "lin", None, now, dice(1)), Err(Refused::WrongToken), "{wrong}");
        }
    }

    #[test]
    fn a_session_ends_when_it_is_idle_old_or_closed() {
        let (door, start) = (Door::new(TOKEN), Instant::now());
        let at = |minutes: u64| start + Duration::from_secs(minutes * 60);
        let session = door.open(TOKEN, "lin", None, start, dice(1)).unwrap();
        let key = Some(session.key.as_str());
        for minute in (0..480).step_by(29) {
            assert_eq!(door.session(key, at(minute)).unwrap().operator, "lin");
        }
        assert_eq!(door.session(key, at(481)), Err(Refused::NoSession), "eight hours");
        let session = door.open(TOKEN, "lin", None, start, dice(2)).unwrap();
        assert_eq!(door.session(Some(&session.key), at(30)), Err(Refused::NoSession), "idle");
        let session = door.open(TOKEN, "lin", None, start, dice(3)).unwrap();
        door.close(&session);
        for key in [Some(session.key.as_str()), Some(""), None] {
            assert_eq!(door.session(key, start), Err(Refused::NoSession), "{key:?}");
        }
    }

    #[test]
    fn a_form_needs_the_word_of_its_own_session() {
        let (door, now) = (Door::new(TOKEN), Instant::now());
        let (one, other) = (
            door.open(TOKEN, "lin", None, now, dice(1)).unwrap(),
            door.open(TOKEN, "wu", None, now, dice(2)).unwrap(),
        );
        let form = |word| door.form(Some(&one.key), word, now);
        assert_eq!(form(Some(&one.form_word)).unwrap().operator, "lin");
        for word in [Some(other.form_word.as_str()), Some(one.key.as_str()), Some(""), None] {
            assert_eq!(form(word), Err(Refused::Forged), "{word:?}");
        }
        assert_eq!(door.form(None, Some(&one.form_word), now), Err(Refused::NoSession));
    }

    #[test]
    fn new_login_ends_the_old_session() {
        let (door, now) = (Door::new(TOKEN), Instant::now());
        let open = |name, cookie, nth| door.open(TOKEN, name, cookie, now, dice(nth)).unwrap();
        let is_open = |session: &Session| door.session(Some(&session.key), now).is_ok();
        let lin = open("lin", None, 1);
        let wu = open("wu", None, 2);
        let again = open("lin", None, 3);
        assert_eq!([&lin, &wu, &again].map(is_open), [false, true, true], "by name");
        let other = open("zhou", Some(&again.key), 4);
        assert_eq!([&wu, &again, &other].map(is_open), [true, false, true], "by cookie");
        assert_eq!(door.open("wrong", "wu", Some(&wu.key), now, dice(5)), Err(Refused::WrongToken));
        assert!(is_open(&wu), "who is refused ends nobody's session");
        assert!(!wu.key.contains(&wu.name()) && wu.name() != other.name());
    }

    #[test]
    fn sessions_are_bounded_and_show_no_secret() {
        let (door, now) = (Door::new(TOKEN), Instant::now());
        let first = door.open(TOKEN, "lin", None, now, dice(0)).unwrap();
        for nth in 1..=SESSIONS_MAX {
            door.open(TOKEN, &format!("lin {nth}"), None, now, dice(nth as u8)).unwrap();
        }
        assert_eq!(door.session(Some(&first.key), now), Err(Refused::NoSession));
        assert!(!format!("{first:?}").contains(&first.key));
    }
}
