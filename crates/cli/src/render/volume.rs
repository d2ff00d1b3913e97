//! Volumes in the status: the local replica, and each peer's.

use super::{line, role, units};
use holdfast_node::api_types::{
    ClusterStatus, LocalStatus, Phase, ResourceInfo, ResourceNode, Transfer, TransferKind,
    VolumeInfo,
};
use holdfast_types::DiskState;

/// The replica on the telling node.
pub(super) fn local(out: &mut String, v: &VolumeInfo, several: bool, verbose: bool) {
    let Some(local) = &v.local else { return };
    let mut text = if several || verbose {
        format!("volume:{} ", v.name)
    } else {
        String::new()
    };
    text += &format!("disk:{:?}", local.disk);
    if local.open {
        text += " open:yes";
    }
    if local.held.is_some() {
        text += " suspended:yes";
    }
    line(out, 1, &text);
    if let Some(held) = &local.held {
        line(out, 2, &format!("why: I/O waits: {held}"));
    }
    if verbose {
        figures(out, v, local);
    }
    care(out, v, verbose);
    for frontend in &v.frontends {
        let clients = frontend
            .clients
            .map(|n| format!(" clients:{n}"))
            .unwrap_or_default();
        line(
            out,
            2,
            &format!("{}:{}{clients}", frontend.kind, frontend.path.display()),
        );
    }
}

/// What the operator set for resync, and how the last comparison went.
fn care(out: &mut String, v: &VolumeInfo, verbose: bool) {
    if let Some(resync) = &v.resync {
        let mut text = String::new();
        if resync.paused {
            text += " paused";
        }
        if let Some(max) = resync.max_bytes_per_second {
            text += &format!(" max:{}/s", units::bytes(max));
        }
        if verbose {
            text += &format!(" min:{}/s", units::bytes(resync.min_bytes_per_second));
        }
        if let Some(held) = resync
            .held_to_bytes_per_second
            .filter(|_| !v.transfers.is_empty())
        {
            text += &format!(" held-to:{}/s", units::bytes(held));
        }
        if !text.is_empty() {
            line(out, 2, &format!("resync:{text}"));
        }
    }
    let wrong = |bytes: u64, repaired: u64| bytes > repaired;
    if let Some(last) = &v.verified
        && (verbose || wrong(last.differing_bytes, last.repaired_bytes))
    {
        let what = if last.scrub { "scrubbed" } else { "verified" };
        let mut text = format!("{what}:{}", units::bytes(last.compared_bytes));
        if last.differing_bytes > 0 {
            text += &format!(
                " differing:{} repaired:{}",
                units::bytes(last.differing_bytes),
                units::bytes(last.repaired_bytes)
            );
        }
        line(out, 2, &text);
    }
}

fn figures(out: &mut String, v: &VolumeInfo, local: &LocalStatus) {
    line(
        out,
        2,
        &format!(
            "size:{} read:{} written:{} requests:{} open-writes:{} al-writes:{}",
            units::bytes(v.size_bytes),
            units::bytes(local.read_bytes),
            units::bytes(local.written_bytes),
            local.requests,
            local.open_writes,
            local.log_writes
        ),
    );
    line(
        out,
        2,
        &format!(
            "in-sync:{} epoch:{} run:{} incarnation:{:016x}",
            v.in_sync.join(","),
            local.epoch,
            local.run,
            local.incarnation.0
        ),
    );
}

/// Another node of the resource, and its replicas.
pub(super) fn peer(
    out: &mut String,
    status: &ClusterStatus,
    r: &ResourceInfo,
    n: &ResourceNode,
    several: bool,
    verbose: bool,
) {
    let id = status
        .nodes
        .iter()
        .find(|info| info.name == n.node)
        .map(|info| info.id);
    let session = |v: &VolumeInfo| {
        let local = v.local.as_ref()?;
        local.peers.iter().find(|p| Some(p.node.0) == id).cloned()
    };
    let mut head = n.node.clone();
    let apart = r.volumes.iter().filter_map(session).any(|p| !p.connected);
    if apart {
        head += " connection:Connecting";
    }
    if !apart || n.phase != Phase::Unknown {
        head += &format!(
            " role:{}",
            if n.phase == Phase::Unknown {
                "Unknown"
            } else {
                role(n.phase.role())
            }
        );
    }
    line(out, 1, &head);
    for v in &r.volumes {
        let session = session(v);
        let disk = v
            .replicas
            .iter()
            .find(|replica| replica.node == n.node)
            .map(|replica| replica.disk)
            .or(session.as_ref().map(|p| p.disk))
            .unwrap_or(DiskState::Diskless);
        let mut text = if several || verbose {
            format!("volume:{} ", v.name)
        } else {
            String::new()
        };
        text += &format!("peer-disk:{disk:?}");
        for transfer in v.transfers.iter().filter(|t| t.peer == n.node) {
            text += &running(transfer);
        }
        if let Some(p) = session {
            if p.out_of_sync_bytes > 0 {
                text += &format!(" out-of-sync:{}", units::bytes(p.out_of_sync_bytes));
            }
            if verbose {
                text += &format!(
                    " resync-sent:{} resync-equal:{}",
                    units::bytes(p.resync_sent_bytes),
                    units::bytes(p.resync_equal_bytes)
                );
            }
        }
        line(out, 2, &text);
    }
}

fn running(t: &Transfer) -> String {
    let verb = match t.kind {
        TransferKind::Resync => "resync",
        TransferKind::Verify => "verify",
    };
    let mut text = format!(" {verb}:{}", units::percent(t.done_bytes, t.total_bytes));
    if t.bytes_per_second > 0 {
        text += &format!(" rate:{}/s", units::bytes(t.bytes_per_second));
    }
    if let Some(left) = t.eta_seconds() {
        text += &format!(" left:{}", units::duration(left));
    }
    text
}
