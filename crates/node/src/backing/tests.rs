//! What may become a replica, and what must not.

use super::*;

const SIZE: u64 = 16 << 20;

fn place(path: PathBuf) -> Place {
    Place {
        cluster: 7,
        me: NodeId(1),
        size_bytes: SIZE,
        path,
        end: None,
    }
}

fn new(volume: u64) -> NewReplica {
    NewReplica {
        volume: VolumeId(volume),
        incarnation: Incarnation(volume + 100),
        data_nodes: [NodeId(1), NodeId(2)].into_iter().collect(),
        equal: true,
        member: true,
    }
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_missing_file_is_made_and_opens_as_what_it_is() {
    let d = dir();
    let p = place(d.path().join("v"));
    assert_eq!(p.inspect(&[]).unwrap(), Found::Missing);
    p.initialise(&new(5), &[]).unwrap();
    let opened = p.open(VolumeId(5), &BufPool::default(), None).unwrap();
    let s = &opened.recovered.superblock;
    assert_eq!(
        (s.volume, s.incarnation, s.node, s.disk),
        (
            VolumeId(5),
            Incarnation(105),
            NodeId(1),
            DiskState::UpToDate
        )
    );
    assert_eq!(opened.recovered.bitmaps.len(), 1);
    assert!(opened.recovered.bitmaps[0].1.is_empty());
    assert!(opened.store.size_bytes() >= p.bytes_needed());
}

#[test]
fn replicas_that_may_differ_start_all_dirty() {
    let d = dir();
    let p = place(d.path().join("v"));
    p.initialise(
        &NewReplica {
            equal: false,
            ..new(5)
        },
        &[],
    )
    .unwrap();
    let opened = p.open(VolumeId(5), &BufPool::default(), None).unwrap();
    assert_eq!(opened.recovered.bitmaps[0].1.count(), SIZE / 4096);
}

#[test]
fn a_backing_too_small_is_refused_with_the_size_needed() {
    let d = dir();
    let p = place(d.path().join("v"));
    create_file(&p.path, SIZE).unwrap();
    let text = p.inspect(&[]).unwrap_err().to_string();
    assert!(
        text.contains("too small") && text.contains(&p.bytes_needed().to_string()),
        "{text}"
    );
}

#[test]
fn a_backing_with_data_is_refused_and_stays_as_it_is() {
    let d = dir();
    let p = place(d.path().join("v"));
    let mut bytes = vec![0; p.bytes_needed() as usize];
    bytes[1080] = 0x53;
    std::fs::write(&p.path, &bytes).unwrap();
    assert!(matches!(
        p.initialise(&new(5), &[]),
        Err(BackingError::NotBlank { at: 1080, .. })
    ));
    assert_eq!(std::fs::read(&p.path).unwrap(), bytes);
}

#[test]
fn a_backing_of_another_cluster_node_or_volume_is_refused() {
    let d = dir();
    let p = place(d.path().join("v"));
    p.initialise(&new(5), &[]).unwrap();
    let before = std::fs::read(&p.path).unwrap();
    let taken = |p: &Place, recorded: &[VolumeId]| match p.initialise(&new(6), recorded) {
        Err(BackingError::Taken { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert!(
        taken(
            &Place {
                cluster: 8,
                ..p.clone()
            },
            &[]
        )
        .contains("another cluster")
    );
    assert!(
        taken(
            &Place {
                me: NodeId(2),
                ..p.clone()
            },
            &[]
        )
        .contains("node 1")
    );
    assert!(taken(&p, &[VolumeId(5)]).contains("in use"));
    assert_eq!(std::fs::read(&p.path).unwrap(), before);
    // Nobody has recorded it: the creation was not completed, and is begun anew.
    assert_eq!(p.inspect(&[]).unwrap(), Found::Unfinished);
    p.initialise(&new(6), &[]).unwrap();
    assert!(matches!(
        p.open(VolumeId(5), &BufPool::default(), None),
        Err(BackingError::Meta { .. })
    ));
    p.open(VolumeId(6), &BufPool::default(), None).unwrap();
}

#[test]
fn a_replica_that_has_served_is_never_made_anew() {
    let d = dir();
    let p = place(d.path().join("v"));
    p.initialise(&new(5), &[]).unwrap();
    let opened = p.open(VolumeId(5), &BufPool::default(), None).unwrap();
    let mut store = opened.store;
    let mut superblock = opened.recovered.superblock;
    superblock.run = Run(1);
    superblock.update += 1;
    let (offset, page) = superblock.write(&opened.recovered.layout);
    store.write_region(offset, &page).unwrap();
    drop(store);
    let before = std::fs::read(&p.path).unwrap();
    // The state of every node is lost: nothing is recorded.
    assert!(matches!(
        p.initialise(&new(6), &[]),
        Err(BackingError::Taken { .. })
    ));
    assert_eq!(std::fs::read(&p.path).unwrap(), before);
}

#[test]
fn a_lost_backing_is_replaced_by_an_outdated_replica() {
    let d = dir();
    let p = place(d.path().join("v"));
    p.initialise(&new(5), &[]).unwrap();
    let anew = NewReplica {
        member: false,
        equal: false,
        ..new(5)
    };
    assert!(!p.replace(&anew).unwrap(), "there is one");
    std::fs::remove_file(&p.path).unwrap();
    assert!(p.replace(&anew).unwrap());
    let opened = p.open(VolumeId(5), &BufPool::default(), None).unwrap();
    assert_eq!(opened.recovered.superblock.disk, DiskState::Outdated);
    assert_eq!(opened.recovered.bitmaps[0].1.count(), SIZE / 4096);
}

#[test]
fn a_replica_in_use_is_refused_and_a_missing_directory_too() {
    let d = dir();
    let p = place(d.path().join("v"));
    p.initialise(&new(5), &[]).unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&p.path)
        .unwrap()
        .set_len(p.bytes_needed() - 4096)
        .unwrap();
    // Cut short: the metadata is not where it was, and nothing is taken for a replica.
    assert!(p.open(VolumeId(5), &BufPool::default(), None).is_err());
    let nowhere = place(d.path().join("no/such/dir/v"));
    assert!(nowhere.inspect(&[]).is_err());
}

#[test]
fn a_replica_is_found_where_it_ended_before_its_backing_grew() {
    let dir = dir();
    let path = dir.path().join("b");
    let before = place(path.clone());
    before.initialise(&new(9), &[]).unwrap();
    let end = std::fs::metadata(&path).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(2 * end).unwrap();
    let pool = BufPool::new(0);
    // Who does not remember finds nothing at the new end, and must not take it for blank.
    assert!(before.open(VolumeId(9), &pool, None).is_err());
    let after = Place {
        end: Some(end),
        ..before
    };
    assert!(matches!(
        after.inspect(&[VolumeId(9)]),
        Err(BackingError::Taken { .. })
    ));
    let opened = after.open(VolumeId(9), &pool, None).unwrap();
    assert_eq!(opened.recovered.layout.region_end, end);
    assert_eq!(opened.recovered.superblock.geometry.bytes(), SIZE);
}
