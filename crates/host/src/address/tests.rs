use std::time::Duration;

use super::packet::{announcements, claimant, question};
use super::*;
use crate::Error;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn a_subnet_contains_what_it_contains() {
    for (net, prefix, addr, yes) in [
        ("10.1.2.3", 24, "10.1.2.200", true),
        ("10.1.2.3", 24, "10.1.3.200", false),
        ("10.1.2.3", 32, "10.1.2.3", true),
        ("10.1.2.3", 32, "10.1.2.2", false),
        ("0.0.0.0", 0, "192.0.2.1", true),
        ("fd00::1", 64, "fd00::ffff", true),
        ("fd00::1", 64, "fd00:0:0:1::1", false),
        ("::", 0, "fd00::1", true),
        ("10.1.2.3", 8, "fd00::1", false),
    ] {
        assert_eq!(
            contains(ip(net), prefix, ip(addr)),
            yes,
            "{net}/{prefix} {addr}"
        );
    }
}

#[test]
fn a_loopback_vip_is_everywhere_already() {
    let place = locate(&Vip::new(ip("127.7.7.7"))).expect("loopback");
    assert!(place.is_loopback() && place.undo().is_none());
    assert!(!add(&place).expect("nothing to add") && !remove(&place).expect("nothing to remove"));
    assert!(!announce(&place).expect("nobody to tell"));
    assert_eq!(probe(&place, PROBE_TIME).expect("nobody to ask"), None);
    assert!(is_held(ip("127.7.7.7")).expect("list"));
    assert!(
        remove_leftovers(&[Vip::new(ip("127.0.0.1"))])
            .expect("list")
            .is_empty()
    );
}

#[test]
fn nonsense_is_refused_with_its_name() {
    let vip = Vip {
        prefix: Some(33),
        ..Vip::new(ip("192.0.2.1"))
    };
    assert!(matches!(
        locate(&vip),
        Err(Error::BadPrefix {
            prefix: 33,
            most: 32,
            ..
        })
    ));
    let vip = Vip {
        device: Some("nosuch0".into()),
        ..Vip::new(ip("192.0.2.1"))
    };
    assert!(
        locate(&vip)
            .expect_err("no such device")
            .to_string()
            .contains("nosuch0")
    );
}

#[test]
fn frames_are_recognised_by_the_other_side_only() {
    for vip in [ip("192.0.2.7"), ip("fd00::12:3456")] {
        for frame in announcements(vip, MAC) {
            assert_eq!(claimant(frame.as_bytes(), vip, OTHER), Some(MAC));
            assert_eq!(
                claimant(frame.as_bytes(), vip, MAC),
                None,
                "one's own announcement"
            );
            assert_eq!(claimant(frame.as_bytes(), ip("192.0.2.8"), OTHER), None);
            assert_eq!(claimant(frame.as_bytes(), ip("fd00::8"), OTHER), None);
            for cut in 0..frame.as_bytes().len() {
                // Whatever a cut frame means, it must not be read beyond its end.
                claimant(&frame.as_bytes()[..cut], vip, OTHER);
            }
        }
        let asked = question(vip, MAC);
        assert_eq!(
            claimant(asked.as_bytes(), vip, OTHER),
            Some(MAC),
            "two probe at once"
        );
        assert_eq!(claimant(asked.as_bytes(), vip, MAC), None);
    }
    // Somebody who merely asks where the VIP is does not claim it.
    let arp_who_has = |sender: [u8; 4]| {
        let mut frame = question(ip("192.0.2.7"), MAC).as_bytes().to_vec();
        frame[28..32].copy_from_slice(&sender);
        frame
    };
    assert_eq!(
        claimant(&arp_who_has([192, 0, 2, 9]), ip("192.0.2.7"), OTHER),
        None
    );
    assert_eq!(
        claimant(&arp_who_has([192, 0, 2, 7]), ip("192.0.2.7"), OTHER),
        Some(MAC)
    );
}

#[test]
fn both_arp_forms_are_sent_and_the_advertisement_overrides() {
    let operations: Vec<u8> = announcements(ip("192.0.2.7"), MAC)
        .map(|f| f.as_bytes()[21])
        .collect();
    assert_eq!(operations, [1, 2]);
    let frames: Vec<_> = announcements(ip("fd00::7"), MAC).collect();
    assert_eq!(frames.len(), 1);
    let bytes = frames[0].as_bytes();
    assert_eq!(bytes[..6], [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(bytes[54 + 4] & 0x20, 0x20, "override");
    // Header and pseudo header sum up to all ones when the checksum is right.
    let mut words = bytes[22..]
        .chunks(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c[1]])))
        .sum::<u32>();
    words += (bytes.len() - 54) as u32 + 58;
    while words > 0xffff {
        words = (words & 0xffff) + (words >> 16);
    }
    assert_eq!(words, 0xffff);
}

#[test]
fn the_schedule_is_dense_first_and_never_ends() {
    let waits: Vec<u64> = Schedule::default()
        .take(12)
        .map(|d| d.as_millis() as u64)
        .collect();
    assert_eq!(
        waits,
        [
            0, 200, 200, 200, 200, 1000, 2000, 5000, 10000, 60000, 60000, 60000
        ]
    );
    assert_eq!(Schedule::default().nth(1000), Some(Duration::from_secs(60)));
}

#[test]
fn nothing_is_announced_while_it_may_not_be() {
    let asked = std::cell::Cell::new(0);
    let may_announce = || {
        asked.set(asked.get() + 1);
        asked.get() > 2
    };
    let place = locate(&Vip::new("127.0.0.9".parse().expect("address"))).expect("local");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("runtime");
    // Twice refused and asked again by the schedule; allowed, it finds nobody to tell on this interface, and ends.
    runtime.block_on(keep_announcing(place, may_announce));
    assert_eq!(asked.get(), 3);
}
