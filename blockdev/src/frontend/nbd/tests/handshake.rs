//! The handshake, option by option.

use super::*;
use crate::frontend::nbd::{OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX, OPTIONS_PER_SESSION_MAX};

const ACK: u32 = 1;
const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_TOO_BIG: u32 = 0x8000_0009;

/// HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, DF, MULTI_CONN, CACHE, FAST_ZERO.
const FLAGS: u16 = 0b1101_1110_1101;

fn kinds(replies: &[(u32, Vec<u8>)]) -> Vec<u32> {
    replies.iter().map(|(kind, _)| *kind).collect()
}

fn export_info(size: u64, flags: u16) -> (u32, Vec<u8>) {
    let mut data = vec![0, 0];
    data.put_u64(size);
    data.put_u16(flags);
    (3, data)
}

#[test]
fn transmission_flags_are_what_is_served() {
    assert_eq!(Export::new("x", 1).transmission_flags(), FLAGS);
    let mut export = Export::new("x", 1);
    export.read_only = true;
    let flags = export.transmission_flags();
    assert_eq!(flags & tflag::READ_ONLY, tflag::READ_ONLY);
    assert_eq!(flags & (tflag::SEND_TRIM | tflag::SEND_WRITE_ZEROES), 0);
}

#[test]
fn export_tables_refuse_what_clients_could_not_tell_apart() {
    use crate::frontend::nbd::ExportError;
    let twice = vec![Export::new("a", 1), Export::new("a", 2)];
    assert_eq!(
        ExportTable::new(twice),
        Err(ExportError::Duplicate("a".to_owned()))
    );
    assert_eq!(ExportTable::new(vec![]), Err(ExportError::Empty));
    let long = vec![Export::new("a".repeat(4097), 1)];
    assert_eq!(ExportTable::new(long), Err(ExportError::TooLong(4097)));
}

#[test]
fn unknown_client_flags_close() {
    let mut wire = Wire::raw();
    assert_eq!(wire.feed(&7u32.to_be_bytes()), Err(Close::ClientFlags(7)));
}

#[test]
fn export_name_answers_with_and_without_zeroes() {
    for (flags, zeroes) in [(3u32, 0), (1, 124), (0, 124)] {
        let mut wire = Wire::raw();
        wire.take();
        let mut bytes = flags.to_be_bytes().to_vec();
        bytes.extend(option_bytes(opt::EXPORT_NAME, b"db/data"));
        assert_eq!(wire.feed(&bytes), Ok(vec![]));
        let mut expected = Vec::new();
        expected.put_u64(SIZE);
        expected.put_u16(FLAGS);
        expected.put_bytes(0, zeroes);
        assert_eq!(wire.take(), expected);
        assert_eq!(wire.session.export(), Some(0));
    }
}

#[test]
fn export_name_of_nothing_closes() {
    let mut wire = Wire::new();
    let bytes = option_bytes(opt::EXPORT_NAME, b"nope");
    assert_eq!(
        wire.feed(&bytes),
        Err(Close::UnknownExport("nope".to_owned()))
    );
    assert_eq!(wire.take(), b"");
}

#[test]
fn list_names_all_exports_and_takes_no_data() {
    let mut wire = Wire::new();
    let replies = wire.option(opt::LIST, &[]);
    assert_eq!(kinds(&replies), [2, 2, 2, ACK]);
    assert_eq!(replies[0].1, b"\0\0\0\x07db/datathe first");
    assert_eq!(replies[1].1, b"\0\0\0\x02ro");
    assert_eq!(kinds(&wire.option(opt::LIST, b"x")), [ERR_INVALID]);
    assert_eq!(kinds(&wire.option(opt::LIST, &[])), [2, 2, 2, ACK]);
}

#[test]
fn info_equals_go_and_may_be_repeated() {
    let mut wire = Wire::new();
    let asked = go("db/data", &[3, 1, 2, 77]);
    let first = wire.option(opt::INFO, &asked);
    assert_eq!(kinds(&first), [3, 3, 3, 3, ACK]);
    assert_eq!(first[0], export_info(SIZE, FLAGS));
    assert_eq!(first[1].1, b"\0\x01db/data");
    assert_eq!(first[2].1, b"\0\x02the first");
    let mut sizes = vec![0, 3];
    sizes.put_u32(1);
    sizes.put_u32(4096);
    sizes.put_u32(32 << 20);
    assert_eq!(first[3].1, sizes);
    assert_eq!(wire.option(opt::INFO, &asked), first);
    assert_eq!(wire.session.export(), None);
    assert_eq!(wire.option(opt::GO, &asked), first);
    assert_eq!(wire.session.export(), Some(0));
}

#[test]
fn the_empty_name_is_the_first_export() {
    let mut wire = Wire::new();
    assert_eq!(
        wire.option(opt::GO, &go("", &[]))[0],
        export_info(SIZE, FLAGS)
    );
    assert_eq!(wire.session.export(), Some(0));
}

#[test]
fn go_to_nothing_stays_in_the_handshake() {
    let mut wire = Wire::new();
    assert_eq!(
        kinds(&wire.option(opt::GO, &go("nope", &[]))),
        [ERR_UNKNOWN]
    );
    assert_eq!(
        kinds(&wire.option(opt::INFO, &go("nope", &[]))),
        [ERR_UNKNOWN]
    );
    assert_eq!(kinds(&wire.option(opt::GO, &go("huge", &[]))), [3, ACK]);
    assert_eq!(wire.session.export(), Some(2));
}

#[test]
fn malformed_info_is_answered_and_the_next_option_parses() {
    let mut wire = Wire::new();
    let good = go("ro", &[3]);
    for len in 0..good.len() {
        assert_eq!(
            kinds(&wire.option(opt::INFO, &good[..len])),
            [ERR_INVALID],
            "cut at {len}"
        );
    }
    let mut long = good.clone();
    long.push(0);
    assert_eq!(kinds(&wire.option(opt::INFO, &long)), [ERR_INVALID]);
    let mut name_too_long = (u32::MAX).to_be_bytes().to_vec();
    name_too_long.extend_from_slice(&good[4..]);
    assert_eq!(kinds(&wire.option(opt::GO, &name_too_long)), [ERR_INVALID]);
    assert_eq!(
        kinds(&wire.option(opt::GO, &go(&"n".repeat(4097), &[]))),
        [ERR_INVALID]
    );
    assert_eq!(kinds(&wire.option(opt::INFO, &good)), [3, 3, ACK]);
}

#[test]
fn unknown_options_of_any_length_are_skipped() {
    let mut wire = Wire::new();
    // STARTTLS, EXTENDED_HEADERS, PEEK_EXPORT and one nobody knows.
    for option in [5, 11, 4, 0xdead_beef] {
        for len in [
            0usize,
            1,
            15,
            16,
            17,
            4096,
            65_535,
            65_536,
            300_000,
            1 << 20,
        ] {
            assert_eq!(
                kinds(&wire.option(option, &vec![0x49; len])),
                [ERR_UNSUP],
                "{option} of {len}"
            );
        }
    }
    assert_eq!(kinds(&wire.option(opt::INFO, &go("ro", &[]))), [3, ACK]);
}

#[test]
fn known_options_too_long_are_skipped_and_absurd_ones_close() {
    let mut wire = Wire::new();
    let data = vec![0; OPTION_BYTES_MAX as usize + 1];
    assert_eq!(kinds(&wire.option(opt::GO, &data)), [ERR_TOO_BIG]);
    assert_eq!(kinds(&wire.option(opt::LIST, &[])), [2, 2, 2, ACK]);
    for option in [opt::GO, 99] {
        let mut wire = Wire::new();
        let mut bytes = option_bytes(option, &[]);
        bytes.truncate(12);
        bytes.put_u32(OPTION_SKIP_BYTES_MAX + 1);
        let len = OPTION_SKIP_BYTES_MAX + 1;
        assert_eq!(wire.feed(&bytes), Err(Close::OptionTooLong { option, len }));
    }
}

#[test]
fn bad_option_magic_closes() {
    let mut wire = Wire::new();
    let place = "IHAVEOPT of an option";
    assert_eq!(
        wire.feed(&[0; 16]),
        Err(Close::BadMagic { found: 0, place })
    );
}

#[test]
fn endless_options_close() {
    let mut wire = Wire::new();
    for _ in 0..OPTIONS_PER_SESSION_MAX {
        wire.option(77, &[]);
    }
    assert_eq!(
        wire.feed(&option_bytes(77, &[])),
        Err(Close::TooManyOptions)
    );
}

#[test]
fn abort_is_acknowledged_and_ends() {
    let mut wire = Wire::new();
    assert_eq!(wire.option(opt::ABORT, &[]), [(ACK, vec![])]);
    assert!(wire.session.finished());
    assert!(wire.session.take_target().is_none());
}

#[test]
fn structured_replies_take_no_data() {
    let mut wire = Wire::new();
    assert_eq!(
        kinds(&wire.option(opt::STRUCTURED_REPLY, b"x")),
        [ERR_INVALID]
    );
    assert_eq!(wire.option(opt::STRUCTURED_REPLY, &[]), [(ACK, vec![])]);
    assert_eq!(wire.option(opt::STRUCTURED_REPLY, &[]), [(ACK, vec![])]);
}

#[test]
fn metadata_contexts_need_structured_replies() {
    let mut wire = Wire::new();
    let data = queries("", &[b"base:allocation"]);
    for option in [opt::SET_META_CONTEXT, opt::LIST_META_CONTEXT] {
        assert_eq!(kinds(&wire.option(option, &data)), [ERR_INVALID]);
    }
}

#[test]
fn metadata_contexts_are_listed_and_selected() {
    let mut wire = Wire::new();
    wire.option(opt::STRUCTURED_REPLY, &[]);
    let allocation = |id: u8| {
        let mut data = vec![0, 0, 0, id];
        data.extend_from_slice(b"base:allocation");
        (4, data)
    };
    let cases: [(&[&[u8]], bool, bool); 6] = [
        (&[], true, false),
        (&[b"base:"], true, false),
        (&[b"base:allocation"], true, true),
        (&[b"base:alloc"], false, false),
        (&[b"qemu:dirty-bitmap:x", b"base:allocation"], true, true),
        (&[b""], false, false),
    ];
    for (asked, listed, selected) in cases {
        let data = queries("ro", asked);
        let list = wire.option(opt::LIST_META_CONTEXT, &data);
        let set = wire.option(opt::SET_META_CONTEXT, &data);
        let expected = |id: u8, found: bool| {
            let mut replies = if found { vec![allocation(id)] } else { vec![] };
            replies.push((ACK, vec![]));
            replies
        };
        assert_eq!(list, expected(0, listed), "{asked:?}");
        assert_eq!(set, expected(1, selected), "{asked:?}");
    }
    let unknown = queries("nope", &[b"base:"]);
    assert_eq!(
        kinds(&wire.option(opt::SET_META_CONTEXT, &unknown)),
        [ERR_UNKNOWN]
    );
}

#[test]
fn malformed_metadata_queries_are_answered_and_the_next_option_parses() {
    let mut wire = Wire::new();
    wire.option(opt::STRUCTURED_REPLY, &[]);
    let good = queries("ro", &[b"base:allocation", b"x:y"]);
    for len in 0..good.len() {
        let replies = wire.option(opt::SET_META_CONTEXT, &good[..len]);
        assert_eq!(kinds(&replies), [ERR_INVALID], "cut at {len}");
    }
    let mut many = good.clone();
    many[6..10].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(
        kinds(&wire.option(opt::LIST_META_CONTEXT, &many)),
        [ERR_INVALID]
    );
    assert_eq!(kinds(&wire.option(opt::SET_META_CONTEXT, &good)), [4, ACK]);
}
