//! Which of the provider's two domains a call goes to.
//!
//! The primary domain, until the network (never the business) fails there; then the backup, with a small share of
//! calls left on the primary to see it recover. While both are healthy a small share of calls goes to the backup to verify
//! that it works. An operation that the network lost is sent to the other domain next, whatever the record says.
//! The provider asks for this in its page on cross-city disaster recovery. Pure: time and chance are arguments.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

/// One of the two domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Host {
    /// `api.mch.weixin.qq.com`
    Primary,
    /// `api2.mch.weixin.qq.com`
    Backup,
}

impl Host {
    /// Both, for metrics.
    pub const ALL: [Self; 2] = [Self::Primary, Self::Backup];

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Primary => Self::Backup,
            Self::Backup => Self::Primary,
        }
    }
}

/// Results remembered per host, as the provider's page suggests.
const RESULTS_KEPT: usize = 100;
const WINDOW: SignedDuration = SignedDuration::from_mins(10);
/// The window in which a sudden failure counts at once.
const SUDDEN: SignedDuration = SignedDuration::from_secs(5);
/// This many successes in a row make a host healthy again, whatever the window holds.
const RECOVERED_AFTER: usize = 5;
/// The share of calls that tries the backup while the primary is healthy.
const BACKUP_SHARE: f64 = 0.01;
/// The share of calls that tries the primary while it is not healthy.
const PRIMARY_SHARE: f64 = 0.05;

/// The recent results of the network, per host.
#[derive(Debug, Default)]
pub struct HostChoice {
    primary: Record,
    backup: Record,
}

#[derive(Debug, Default)]
struct Record(VecDeque<(Timestamp, bool)>);

impl HostChoice {
    /// Chooses the host of the next call. `chance` is between 0 and 1; `failed` is where the network has just failed the
    /// same command.
    pub fn choose(&self, now: Timestamp, chance: f64, failed: Option<Host>) -> Host {
        if let Some(failed) = failed {
            return failed.other();
        }
        let (preferred, share_of_other) = match (self.primary.is_healthy(now), self.backup.is_healthy(now)) {
            (true, true) => (Host::Primary, BACKUP_SHARE),
            (true, false) => (Host::Primary, 0.0),
            (false, true) => (Host::Backup, PRIMARY_SHARE),
            (false, false) => (Host::Primary, 0.5),
        };
        if chance < share_of_other { preferred.other() } else { preferred }
    }

    /// Records whether the network succeeded in a call that ended `now`. A business error is a success of the network.
    pub fn record(&mut self, host: Host, succeeded: bool, now: Timestamp) {
        let record = match host {
            Host::Primary => &mut self.primary,
            Host::Backup => &mut self.backup,
        };
        record.0.push_back((now, succeeded));
        while record.0.len() > RESULTS_KEPT
            || record.0.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW)
        {
            record.0.pop_front();
        }
    }
}

impl Record {
    fn is_healthy(&self, now: Timestamp) -> bool {
        let within =
            |span: SignedDuration| self.0.iter().filter(move |(at, _)| now.duration_since(*at) <= span);
        let failed = |results: &[bool]| results.iter().filter(|succeeded| !**succeeded).count();
        let lately: Vec<bool> = within(SUDDEN).map(|(_, succeeded)| *succeeded).collect();
        if failed(&lately) * 2 > lately.len() {
            return false;
        }
        let all: Vec<bool> = within(WINDOW).map(|(_, succeeded)| *succeeded).collect();
        let recovered = all.len() >= RECOVERED_AFTER && all.iter().rev().take(RECOVERED_AFTER).all(|ok| *ok);
        recovered || failed(&all) * 10 <= all.len() || all.len() < RECOVERED_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn healthy_primary_is_used_and_the_backup_tried() {
        let hosts = HostChoice::default();
        assert_eq!(hosts.choose(at(0), 0.5, None), Host::Primary);
        assert_eq!(hosts.choose(at(0), 0.005, None), Host::Backup);
    }

    #[test]
    fn network_failure_switches_and_recovery_switches_back() {
        let mut hosts = HostChoice::default();
        for second in 0..20 {
            hosts.record(Host::Primary, false, at(second));
        }
        assert_eq!(hosts.choose(at(20), 0.5, None), Host::Backup);
        assert_eq!(hosts.choose(at(20), 0.01, None), Host::Primary, "a share tries the primary");
        // Time without calls does not make it healthy: the window still holds the failures.
        assert_eq!(hosts.choose(at(60), 0.5, None), Host::Backup);
        for second in 61..66 {
            hosts.record(Host::Primary, true, at(second));
        }
        assert_eq!(hosts.choose(at(66), 0.5, None), Host::Primary);
    }

    #[test]
    fn failing_backup_is_not_tried_beside_a_healthy_primary() {
        let mut hosts = HostChoice::default();
        hosts.record(Host::Backup, false, at(0));
        assert_eq!(hosts.choose(at(1), 0.0, None), Host::Primary);
    }

    #[test]
    fn with_both_down_both_are_tried() {
        let mut hosts = HostChoice::default();
        hosts.record(Host::Primary, false, at(0));
        hosts.record(Host::Backup, false, at(0));
        assert_eq!(hosts.choose(at(1), 0.4, None), Host::Backup);
        assert_eq!(hosts.choose(at(1), 0.6, None), Host::Primary);
    }

    #[test]
    fn operation_lost_at_one_host_is_sent_to_the_other() {
        let mut hosts = HostChoice::default();
        for second in 0..50 {
            hosts.record(Host::Primary, true, at(second));
            hosts.record(Host::Backup, false, at(second));
        }
        assert_eq!(hosts.choose(at(50), 0.5, Some(Host::Primary)), Host::Backup);
        assert_eq!(hosts.choose(at(50), 0.5, Some(Host::Backup)), Host::Primary);
    }

    #[test]
    fn memory_is_bounded() {
        let mut hosts = HostChoice::default();
        for second in 0..10_000 {
            hosts.record(Host::Primary, second % 2 == 0, at(second / 100));
        }
        assert_eq!(hosts.primary.0.len(), RESULTS_KEPT);
    }
}
