//! Connections between nodes: who is there ([`handshake`]), how one is made ([`connect`]), what
//! travels on the control ones ([`framing`], [`mesh`]) and the pairs of lanes of each volume ([`lanes`]).
//!
//! Every pair of nodes has one control connection, and two lanes per common volume. The node with
//! the lower number dials. A connection that ends for any reason is dialled again, after a pause
//! that grows from [`BACKOFF_MS_MIN`] to [`BACKOFF_MS_MAX`].

pub mod connect;
pub mod framing;
pub mod handshake;
pub mod lanes;
pub mod mesh;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// First pause before a lost connection is dialled again, in milliseconds.
pub const BACKOFF_MS_MIN: u64 = 50;
/// Longest pause before a lost connection is dialled again, in milliseconds.
pub const BACKOFF_MS_MAX: u64 = 1000;
/// How long a TCP connect may take, in milliseconds.
pub const CONNECT_MS_MAX: u64 = 1000;
/// How long a handshake may take, in milliseconds.
pub const HANDSHAKE_MS_MAX: u64 = 2000;
/// How long sent bytes may stay unconfirmed before the kernel gives a connection up, in milliseconds.
pub const TCP_USER_TIMEOUT_MS: u32 = 5000;
/// Handshakes under way at a listener at the most: more are closed unread.
pub const HANDSHAKES_MAX: usize = 64;

/// The key under which trouble with callers from an address is kept.
pub fn source_key(from: std::net::IpAddr) -> String {
    format!("from {from}")
}

/// The pause before the next try.
#[derive(Debug)]
pub(crate) struct Backoff(u64);

impl Backoff {
    pub(crate) const fn new() -> Self {
        Self(BACKOFF_MS_MIN)
    }
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (self.0 * 2).min(BACKOFF_MS_MAX);
        Duration::from_millis(pause)
    }
    pub(crate) const fn reset(&mut self) {
        self.0 = BACKOFF_MS_MIN;
    }
}

/// Why a peer is not connected, in words, for `status`; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Troubles(Arc<Mutex<BTreeMap<String, String>>>);

impl Troubles {
    /// Notes trouble with `who`. True if it is news: the caller logs it then, and only then.
    pub fn set(&self, who: &str, what: &str) -> bool {
        let mut map = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        map.insert(who.to_owned(), what.to_owned())
            .is_none_or(|old| old != what)
    }
    /// The trouble with `who` is over.
    pub fn clear(&self, who: &str) {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .remove(who);
    }
    /// The trouble with `who`, if any.
    pub fn get(&self, who: &str) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .get(who)
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_to_its_limit_and_starts_anew() {
        let mut b = Backoff::new();
        let pauses: Vec<u64> = (0..7).map(|_| b.next().as_millis() as u64).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
        b.reset();
        assert_eq!(b.next().as_millis() as u64, BACKOFF_MS_MIN);
    }

    #[test]
    fn trouble_is_news_once() {
        let t = Troubles::default();
        assert!(t.set("b", "wrong secret"));
        assert!(!t.set("b", "wrong secret"));
        assert!(t.set("b", "refused"));
        assert_eq!(t.get("b").as_deref(), Some("refused"));
        t.clear("b");
        assert_eq!(t.get("b"), None);
    }
}
