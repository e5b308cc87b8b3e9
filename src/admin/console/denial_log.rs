//! Limits the log lines about denied requests: one for each peer per interval, with bounded memory for any number of
//! peers.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two lines about one peer.
const EVERY: Duration = Duration::from_secs(60);
/// Peers that are distinguished; all further ones share a line.
const PEERS_MAX: usize = 64;
/// The address under which these are counted.
const OTHERS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// A peer since its last line.
#[derive(Debug, Clone, Copy)]
struct Suppressed {
    since: Instant,
    refused: u64,
}

/// Decides which denials are logged.
#[derive(Debug, Default)]
pub(super) struct DenialLog(Mutex<HashMap<IpAddr, Suppressed>>);

impl DenialLog {
    /// Counts a denial. If it is to be logged, returns how many were not logged since the last line about this peer.
    pub(super) fn record(&self, peer: IpAddr, now: Instant) -> Option<u64> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |silence: &Suppressed| now.saturating_duration_since(silence.since) >= EVERY;
        if !peers.contains_key(&peer) && peers.len() >= PEERS_MAX {
            peers.retain(|_, silence| !is_over(silence));
        }
        let has_room = peers.contains_key(&peer) || peers.len() < PEERS_MAX;
        let silence = match peers.get_mut(if has_room { &peer } else { &OTHERS }) {
            Some(silence) => silence,
            None => {
                peers.insert(if has_room { peer } else { OTHERS }, Suppressed { since: now, refused: 0 });
                return Some(0);
            }
        };
        if !is_over(silence) {
            silence.refused += 1;
            return None;
        }
        let refused = silence.refused;
        *silence = Suppressed { since: now, refused: 0 };
        Some(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(nth: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + nth))
    }

    #[test]
    fn flood_of_one_peer_gets_a_line_a_minute() {
        let (log, start) = (DenialLog::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let lines: Vec<_> = (0..180_000).filter_map(|ms| log.record(peer(1), at(ms))).collect();
        assert_eq!(lines, [0, 59_999, 59_999]);
        assert_eq!(log.record(peer(2), at(180_001)), Some(0), "another one is reported apart");
    }

    #[test]
    fn flood_of_many_peers_gets_few_lines_and_little_memory() {
        let (log, now) = (DenialLog::default(), Instant::now());
        let lines = (0..100_000).filter_map(|nth| log.record(peer(nth), now)).count();
        assert_eq!(lines, PEERS_MAX + 1, "each of the first, and one for all others");
        assert!(log.0.lock().unwrap().len() <= PEERS_MAX + 1);
        assert_eq!(log.record(peer(70_000), now + EVERY), Some(0), "old ones make room");
    }
}
