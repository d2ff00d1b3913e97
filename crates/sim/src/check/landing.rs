//! Resync against writes: nothing that reaches a disk replaces something newer there.
//!
//! Looked at where it counts, when bytes land: on a member whatever lands, on any other replica what resync brings. (To a
//! replica that does not count, the primary may send unanswered writes again, oldest first, over newer ones.)
//! Newer means: a write at or below the last acknowledged one of that cell, whose beginning comes after the end of
//! the one that lands.

use super::history::{CELL_BYTES, History};

/// Bytes land at `offset` over `held`.
pub fn landed(history: &History, offset: u64, bytes: &[u8], held: &[u8]) -> Result<(), String> {
    if bytes == held {
        return Ok(());
    }
    history
        .replaces_newer(offset / CELL_BYTES, bytes, held)
        .map_err(|e| format!("landing: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::history::stamp;

    #[test]
    fn older_content_over_newer_is_named() {
        let mut h = History::new(4);
        let a = h.begin(10, 1, 1, 1, false);
        h.ack(11, a).unwrap();
        let b = h.begin(20, 1, 1, 1, false);
        let (one, two, none) = (stamp(a, 1), stamp(b, 1), [0; 16]);
        landed(&h, 16, &two, &one).unwrap();
        landed(&h, 16, &one, &two).unwrap();
        h.ack(21, b).unwrap();
        landed(&h, 16, &two, &one).unwrap();
        assert!(
            landed(&h, 16, &one, &two).is_err(),
            "b is acknowledged and newer"
        );
        assert!(
            landed(&h, 16, &none, &two).is_err(),
            "and so against zeroes"
        );
        h.rollback();
        landed(&h, 16, &one, &two).unwrap();
        let c = h.begin(30, 1, 1, 1, false);
        h.ack(31, c).unwrap();
        landed(&h, 16, &one, &two).unwrap(); // b is no more for what came after
        assert!(landed(&h, 16, &two, &stamp(c, 1)).is_err(), "c is");
    }
}
