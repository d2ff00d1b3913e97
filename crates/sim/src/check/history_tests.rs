use super::*;

const CELLS: u64 = 4;

fn image(contents: [WriteId; CELLS as usize]) -> Vec<u8> {
    let cell = |(at, &id): (usize, &WriteId)| {
        if id == 0 {
            [0; 16]
        } else {
            stamp(id, at as u64)
        }
    };
    contents.iter().enumerate().flat_map(cell).collect()
}
fn read(
    h: &mut History,
    now: u64,
    begun: u64,
    contents: [WriteId; CELLS as usize],
) -> Result<(), String> {
    h.read(now, begun, 0, &image(contents))
}

#[test]
fn an_acknowledged_write_is_read_until_a_newer_one() {
    let mut h = History::new(CELLS);
    let a = h.begin(10, 1, 0, 2, false);
    read(&mut h, 11, 11, [0, a, 0, 0]).unwrap();
    h.ack(12, a).unwrap();
    read(&mut h, 14, 13, [a, a, 0, 0]).unwrap();
    assert!(read(&mut h, 16, 15, [0, a, 0, 0]).is_err(), "lost");
    let b = h.begin(20, 1, 0, 1, false);
    h.ack(30, b).unwrap();
    assert!(
        read(&mut h, 32, 31, [a, a, 0, 0]).is_err(),
        "older content came back"
    );
    read(&mut h, 32, 25, [a, a, 0, 0]).unwrap();
    read(&mut h, 33, 31, [b, a, 0, 0]).unwrap();
}

#[test]
fn concurrent_writes_end_in_either_order_and_stay() {
    let mut h = History::new(CELLS);
    let (a, b) = (h.begin(10, 1, 0, 1, false), h.begin(11, 1, 0, 1, false));
    h.ack(12, b).unwrap();
    h.ack(13, a).unwrap();
    let mut other = h.clone();
    read(&mut h, 15, 14, [a, 0, 0, 0]).unwrap();
    assert!(read(&mut h, 17, 16, [b, 0, 0, 0]).is_err(), "a read pins");
    read(&mut other, 15, 14, [b, 0, 0, 0]).unwrap();
    assert!(read(&mut other, 17, 16, [a, 0, 0, 0]).is_err());
}

#[test]
fn a_write_in_doubt_is_there_or_not_and_then_stays_so() {
    let mut h = History::new(CELLS);
    let a = h.begin(10, 1, 0, 1, false);
    h.forget(20, a);
    let mut not = h.clone();
    read(&mut h, 31, 30, [a, 0, 0, 0]).unwrap();
    assert!(read(&mut h, 33, 32, [0, 0, 0, 0]).is_err(), "G6");
    read(&mut not, 31, 30, [0, 0, 0, 0]).unwrap();
    assert!(read(&mut not, 33, 32, [a, 0, 0, 0]).is_err());
}

#[test]
fn a_stale_primary_acknowledges_only_what_is_in_the_newer_history() {
    let mut h = History::new(CELLS);
    let a = h.begin(10, 1, 0, 1, false);
    let b = h.begin(11, 1, 1, 1, false);
    h.opened(20, 2);
    let c = h.begin(25, 2, 1, 1, false);
    h.ack(26, c).unwrap();
    read(&mut h, 31, 30, [0, c, 0, 0]).unwrap();
    h.ack(40, b).unwrap();
    assert!(
        h.ack(40, a).is_ok(),
        "zero is not an acknowledged write: nothing refutes a by itself"
    );

    let mut h = History::new(CELLS);
    let old = h.begin(5, 1, 0, 1, false);
    h.ack(6, old).unwrap();
    let a = h.begin(10, 1, 0, 1, false);
    h.opened(20, 2);
    read(&mut h, 31, 30, [old, 0, 0, 0]).unwrap();
    assert!(h.ack(40, a).is_err());
}

#[test]
fn members_must_hold_what_is_acknowledged() {
    let mut h = History::new(CELLS);
    let a = h.begin(10, 1, 0, 2, false);
    h.ack(20, a).unwrap();
    let b = h.begin(30, 1, 1, 1, true);
    let c = h.begin(31, 1, 0, 1, false);
    h.ack(40, b).unwrap();
    h.holds(a, &image([a, 0, 0, 0])).unwrap();
    h.holds(a, &image([c, a, 0, 0])).unwrap();
    assert!(h.holds(a, &image([0, a, 0, 0])).is_err());
    assert!(h.holds(b, &image([a, a, 0, 0])).is_err());
    let mut torn = image([a, 0, 0, 0]);
    torn[9] ^= 1;
    assert!(h.holds(a, &torn).is_err());
}

#[test]
fn a_flush_covers_what_was_acknowledged_before_it() {
    let mut h = History::new(CELLS);
    let a = h.begin(10, 1, 0, 1, false);
    h.ack(20, a).unwrap();
    let covered = h.flush_begins();
    let b = h.begin(30, 1, 0, 1, false);
    h.ack(40, b).unwrap();
    h.holds_flushed(&covered, &image([a, 0, 0, 0])).unwrap();
    h.holds_flushed(&covered, &image([b, 0, 0, 0])).unwrap();
    assert!(h.holds_flushed(&covered, &image([0, 0, 0, 0])).is_err());
    h.flushed(&covered);
    h.rollback();
    let mut flushed = h.clone();
    read(&mut flushed, 51, 50, [a, 0, 0, 0]).unwrap();
    read(&mut h.clone(), 51, 50, [b, 0, 0, 0]).unwrap();
    assert!(
        read(&mut h, 51, 50, [0, 0, 0, 0]).is_err(),
        "flushed writes outlive any loss"
    );
}

#[test]
fn a_new_member_holds_everything() {
    let mut h = History::new(CELLS);
    let a = h.begin(10, 1, 0, 1, false);
    h.ack(20, a).unwrap();
    let (with, without) = (image([a, 0, 0, 0]), image([0, 0, 0, 0]));
    h.holds_all(&with, &without).unwrap();
    assert!(h.holds_all(&without, &without).is_err());
    h.flushed(&h.flush_begins());
    assert!(h.holds_all(&with, &without).is_err(), "only in its cache");
    h.holds_all(&with, &with).unwrap();
}
