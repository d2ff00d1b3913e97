use super::*;
use crate::check::history::stamp;
use holdfast_types::{Epoch, Incarnation, Run, Seq, SessionId, VolumeId};

const PLACED: NodeSet = NodeSet(7);
const G: Geometry = Geometry {
    block_bytes: 64,
    blocks: 16,
    extent_blocks: 4,
};

pub(crate) fn stored(active: &[u32]) -> Stored {
    Stored {
        superblock: Superblock {
            version: holdfast_meta::FORMAT_VERSION,
            cluster: 1,
            volume: VolumeId(2),
            node: NodeId(1),
            geometry: G,
            capacity: G.blocks,
            tail_unknown: false,
            page_bytes: 512,
            incarnation: Incarnation(7),
            run: Run(3),
            boot_id: 1,
            clean: false,
            promised: Epoch(4),
            epoch: Epoch(4),
            disk: DiskState::Syncing,
            lineage: 0,
            log_slots: 4,
            log_floor: 0,
            peer_slots: Default::default(),
            seen: Default::default(),
            found: Default::default(),
            update: 1,
        },
        active: active.to_vec(),
        log_number: 1,
    }
}

const STAMP: Stamp = Stamp {
    epoch: Epoch(4),
    session: SessionId(9),
};

fn write(offset: u64, data: Vec<u8>) -> DiskOp {
    DiskOp::Write {
        offset,
        data: data.into(),
        durable: false,
    }
}

#[test]
fn a_data_write_needs_its_extents_in_the_durable_log() {
    let mut o = Order::default();
    o.submits(&G, IoId(1), &write(64 * 4, vec![1; 128]), &stored(&[1]))
        .unwrap();
    assert!(
        o.submits(&G, IoId(2), &write(64 * 7, vec![1; 128]), &stored(&[1]))
            .is_err()
    );
    o.submits(&G, IoId(3), &write(64 * 7, vec![1; 128]), &stored(&[1, 2]))
        .unwrap();
    let metadata = write(G.bytes(), vec![0; 512]);
    o.submits(&G, IoId(4), &metadata, &stored(&[])).unwrap();
    o.log_landed(&stored(&[1, 2, 3])).unwrap();
    assert!(
        o.log_landed(&stored(&[1])).is_err(),
        "extent 2 is being written"
    );
    o.ended(IoId(2));
    o.ended(IoId(3));
    o.log_landed(&stored(&[1])).unwrap();
}

#[test]
fn answers_come_after_what_they_answer() {
    let mut h = History::new(64);
    let id = h.begin(10, 4, 0, 1, false);
    let data: Vec<u8> = (0..4)
        .flat_map(|c| if c == 0 { stamp(id, 0) } else { [0; 16] })
        .collect();
    let meta = stored(&[0]);
    let (old, mut new) = (vec![0; 2048], vec![0; 2048]);
    new[..64].copy_from_slice(&data);
    let frame = |fua| Frame::Write {
        stamp: STAMP,
        seq: Seq(1),
        range: BlockRange::new(0, 1),
        fua,
        data: data.clone().into(),
    };
    let ack = Frame::Ack {
        log: 0,
        stamp: STAMP,
        seq: Seq(1),
    };
    let try_ack = |fua, cached, stable| {
        let mut o = Order::default();
        o.received(&frame(fua), 0, PLACED);
        let disk = Disk {
            cached,
            stable,
            oldest_unstable: None,
            stored: &meta,
        };
        o.sends(&ack, &G, disk, &h)
    };
    try_ack(false, &new, &old).unwrap();
    assert!(try_ack(false, &old, &old).is_err());
    assert!(try_ack(true, &new, &old).is_err());
    try_ack(true, &new, &new).unwrap();

    let flushed = |oldest| {
        let mut o = Order::default();
        o.received(
            &Frame::Flush {
                stamp: STAMP,
                token: 5,
            },
            20,
            PLACED,
        );
        let disk = Disk {
            cached: &new,
            stable: &old,
            oldest_unstable: oldest,
            stored: &meta,
        };
        o.sends(
            &Frame::Flushed {
                log: 0,
                stamp: STAMP,
                token: 5,
            },
            &G,
            disk,
            &h,
        )
    };
    flushed(None).unwrap();
    flushed(Some(21)).unwrap();
    assert!(flushed(Some(20)).is_err());
}

#[test]
fn promises_runs_and_marks_are_durable_before_they_are_told() {
    let mut o = Order::default();
    let mut meta = stored(&[0]);
    let says = |o: &Order, meta: &Stored, msg| o.clone().says(&msg, meta, false);
    says(&o, &meta, ToControl::Promised { epoch: Epoch(4) }).unwrap();
    assert!(says(&o, &meta, ToControl::Promised { epoch: Epoch(5) }).is_err());
    o.submits(&G, IoId(1), &write(0, vec![1; 64]), &meta)
        .unwrap();
    assert!(
        says(&o, &meta, ToControl::Promised { epoch: Epoch(4) }).is_err(),
        "rule 18"
    );
    says(&o, &meta, ToControl::Stopped).unwrap();
    let started = |run| ToControl::Started {
        volume: VolumeId(2),
        incarnation: Incarnation(7),
        run: Run(run),
        unclean: false,
        disk: DiskState::Syncing,
        promised: Epoch(4),
    };
    assert!(says(&o, &meta, started(4)).is_err());
    o.says(&started(3), &meta, false).unwrap();
    assert!(says(&o, &meta, ToControl::Stopped).is_err());
    meta.superblock.clean = true;
    says(&o, &meta, ToControl::Stopped).unwrap();
    let image = vec![0; 2048];
    let h = History::new(64);
    let mut attached = |epoch| {
        let stamp = Stamp {
            epoch: Epoch(epoch),
            session: SessionId(1),
        };
        let disk = Disk {
            cached: &image,
            stable: &image,
            oldest_unstable: None,
            stored: &meta,
        };
        o.sends(
            &Frame::Attached {
                log: 0,
                stamp,
                report: Vec::new(),
            },
            &G,
            disk,
            &h,
        )
    };
    attached(4).unwrap();
    assert!(attached(5).is_err());
}

#[test]
fn a_resync_block_goes_to_a_disk_that_says_syncing() {
    let mut meta = stored(&[0]);
    let data = Bytes::from(vec![3; 64]);
    let resync = Frame::Resync {
        stamp: STAMP,
        token: 1,
        range: BlockRange::new(2, 1),
        data: Some(data.clone()),
    };
    let op = DiskOp::Write {
        offset: 128,
        data,
        durable: false,
    };
    let mut o = Order::default();
    o.received(&resync, 0, PLACED);
    o.submits(&G, IoId(1), &op, &meta).unwrap();
    assert!(o.is_resync(IoId(1)));
    assert!(o.ended(IoId(1)));
    meta.superblock.disk = DiskState::UpToDate;
    o.submits(&G, IoId(2), &op, &meta).unwrap();
    o.received(&resync, 0, PLACED);
    assert!(o.submits(&G, IoId(3), &op, &meta).is_err());
}
