//! What happened, in sentences for people, each with a fixed word for programs.

use super::{Context, VolumeKey};
use crate::api_types::HistoryLine;
use holdfast_control::state::{Change, Promotion};
use holdfast_control::{
    HostStep, Note as ControlNote, ResourceIx, ResourceStatus, SetChange, Status as ControlStatus,
    StepDownReason,
};
use holdfast_replicator::{Note, Trouble, VerifyReport};
use holdfast_types::{NodeId, NodeSet, Strange};

/// The history of all resources, oldest first within each.
pub(super) fn history(cx: &Context, status: &ControlStatus) -> Vec<HistoryLine> {
    let lines = status
        .resources
        .iter()
        .flat_map(|r| r.history.iter().map(move |h| (r, h)));
    lines
        .map(|(r, h)| HistoryLine {
            resource: r.name.clone(),
            generation: h.generation,
            epoch: h.epoch,
            what: changed(cx, r, &h.change),
        })
        .collect()
}

fn changed(cx: &Context, r: &ResourceStatus, change: &Change) -> String {
    match change {
        Change::Created => "created".into(),
        Change::Primary { node, why } => {
            let why = match why {
                Promotion::Failover => "the former primary was gone".into(),
                Promotion::Restart => "it started again".into(),
                Promotion::Planned => "planned".into(),
                Promotion::Forced { lineage } => {
                    format!(
                        "FORCED by the operator without the newest data; new history {lineage:016x}"
                    )
                }
            };
            format!("{} became primary: {why}", cx.name(*node))
        }
        Change::Set {
            volume,
            in_sync,
            peer,
            why,
        } => {
            let volume = volume_name(r, *volume);
            format!(
                "volume {volume}: {} {}; in sync: {}",
                cx.name(*peer),
                set_change(*why),
                names(cx, *in_sync)
            )
        }
        Change::Growing { volume, size_bytes } => format!(
            "volume {}: to have {size_bytes} bytes",
            volume_name(r, *volume)
        ),
        Change::Resized { volume, size_bytes } => {
            format!("volume {}: has {size_bytes} bytes", volume_name(r, *volume))
        }
        Change::ReplicaAdded { volume, node } => format!(
            "volume {}: {} got a replica",
            volume_name(r, *volume),
            cx.name(*node)
        ),
        Change::ReplicaRemoved { volume, node } => format!(
            "volume {}: the replica on {} was removed",
            volume_name(r, *volume),
            cx.name(*node)
        ),
        Change::Restarted { node } => format!("{} started anew", cx.name(*node)),
        Change::DiskFailed { node } => format!("the disk of {} failed", cx.name(*node)),
        Change::Differed {
            volume,
            differing_bytes,
            repaired_bytes,
        } => format!(
            "copies of volume {} DIFFERED: {differing_bytes} bytes, {repaired_bytes} of them repaired",
            volume_name(r, *volume)
        ),
        Change::Vacated => "stopped by the operator".into(),
        Change::Reasserted => "the primary went on although another node tried to take over".into(),
        Change::VoterReplaced { node } => format!("{} votes under a new identity", cx.name(*node)),
    }
}

fn volume_name(r: &holdfast_control::ResourceStatus, volume: holdfast_control::VolumeIx) -> &str {
    let named = r.volumes.get(usize::from(volume.0));
    named.map_or("?", |v| &v.name)
}

fn set_change(why: SetChange) -> &'static str {
    match why {
        SetChange::Lost => "was removed: not connected",
        SetChange::Slow => "was removed: it did not answer",
        SetChange::DiskFailed => "was removed: its disk failed",
        SetChange::Dismissed => "was dismissed by the operator",
        SetChange::Restarted => "was removed: it started anew and is resynced first",
        SetChange::Strange => {
            "was removed: its disk is another one or went back in time, all of it is compared"
        }
        SetChange::Invalidated => "was removed by the operator",
        SetChange::Synced => "is in sync",
    }
}

/// What is wrong with a disk that is not the one that was seen.
pub(super) fn strange(why: Strange) -> &'static str {
    match why {
        Strange::Replaced => "has another disk than before: all of it is compared and made equal",
        Strange::Recorded => {
            "has a disk that the cluster does not trust (it was replaced or put back): all of it is compared and made equal"
        }
        Strange::WentBack => {
            "has a disk that went back to an earlier state (a snapshot or an old copy was put back): \
             all of it is compared and made equal"
        }
    }
}

/// What is wrong with the identity of a peer's replica.
pub(super) fn trouble(cx: &Context, peer: NodeId, trouble: Trouble) -> String {
    let name = cx.name(peer);
    match trouble {
        Trouble::Strange(why) => format!("{name} {}", strange(why)),
        Trouble::Split { theirs, ours } => split(&name, ours, theirs),
        Trouble::Cloned { of } => format!(
            "{name} has a copy of the disk of {}: it is refused; wipe the copy, and a replica is made anew there",
            cx.name(of)
        ),
    }
}

/// Two lines of history.
pub(super) fn split(peer: &str, ours: u64, theirs: u64) -> String {
    format!(
        "split: {peer} has another line of history ({theirs:016x}, here {ours:016x}); each keeps its data until the \
         operator says which one stays: holdfast resolve RESOURCE --keep NODE"
    )
}

fn names(cx: &Context, set: NodeSet) -> String {
    set.iter()
        .map(|n| cx.name(n))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Resource, kind and sentence of a control-plane note; `None` for what is not worth a line.
pub(super) fn describe_control(
    cx: &Context,
    note: &ControlNote,
) -> Option<(String, &'static str, String)> {
    let r = |ix: &ResourceIx| {
        cx.config
            .resources
            .get(usize::from(ix.0))
            .map_or_else(|| ix.0.to_string(), |r| r.name.clone())
    };
    let me = &cx.me.name;
    let nobody = String::new;
    Some(match note {
        ControlNote::Formed => (nobody(), "formed", "a new cluster was formed".into()),
        ControlNote::Leader { leader, term } => {
            let who = leader.map_or_else(|| "nobody".into(), |n| cx.name(n));
            (
                nobody(),
                "leader",
                format!("{who} leads the control plane (term {term})"),
            )
        }
        ControlNote::VoterAdmitted { node } => (
            nobody(),
            "voter-admitted",
            format!("{} counts again as a voter", cx.name(*node)),
        ),
        ControlNote::Detected { resource, holder } => (
            r(resource),
            "detected",
            format!("the primary {} is silent", cx.name(*holder)),
        ),
        ControlNote::Candidate { resource, epoch } => (
            r(resource),
            "candidate",
            format!("{me} tries to become primary in epoch {epoch}"),
        ),
        ControlNote::Withdrawn { resource, epoch } => (
            r(resource),
            "withdrawn",
            format!("epoch {epoch} came to nothing"),
        ),
        ControlNote::Promoted {
            resource,
            epoch,
            node,
        } => (
            r(resource),
            "promoted",
            format!("{} is primary in epoch {epoch}", cx.name(*node)),
        ),
        ControlNote::Opened { resource, epoch } => (
            r(resource),
            "opened",
            format!("reconciled, epoch {epoch} may serve"),
        ),
        ControlNote::Step { resource, step } => (r(resource), step_word(*step), "done".into()),
        ControlNote::StepFailed {
            resource,
            step,
            error,
        } => (
            r(resource),
            "step-failed",
            format!("{}: {error}", step_word(*step)),
        ),
        ControlNote::Up { resource, epoch } => (
            r(resource),
            "up",
            format!("everything is up on {me} in epoch {epoch}"),
        ),
        ControlNote::SteppingDown {
            resource,
            epoch,
            why,
        } => (
            r(resource),
            "stepping-down",
            format!("epoch {epoch} on {me}: {}", step_down(cx, *why)),
        ),
        ControlNote::SteppedDown { resource, epoch } => (
            r(resource),
            "stepped-down",
            format!("nothing of epoch {epoch} is left on {me}"),
        ),
        ControlNote::SetChanged {
            resource,
            volume,
            in_sync,
            why,
        } => {
            let (_, v) = cx.names(VolumeKey {
                resource: *resource,
                volume: *volume,
            });
            let text = format!(
                "volume {v}: in sync: {} ({})",
                names(cx, *in_sync),
                set_change(*why)
            );
            (r(resource), "in-sync", text)
        }
        ControlNote::Protocol { .. } => return None,
    })
}

fn step_down(cx: &Context, why: StepDownReason) -> String {
    match why {
        StepDownReason::LeaseLost => "the lease could not be renewed".into(),
        StepDownReason::Deposed => "another node leads a newer epoch".into(),
        StepDownReason::HandOver { to } => format!("handed over to {}", cx.name(to)),
        StepDownReason::Demoted => "stopped by the operator".into(),
        StepDownReason::Restarted => "the replica started anew".into(),
        StepDownReason::DiskFailed => "the local disk failed".into(),
        StepDownReason::Shutdown => "the daemon stops".into(),
    }
}

/// Words for programs; the demo's timeline looks for them.
fn step_word(step: HostStep) -> &'static str {
    use HostStep as S;
    match step {
        S::OpenDevice => "device-open",
        S::Mount => "mounted",
        S::StartServices => "services-up",
        S::AddVips => "vip-up",
        S::RemoveVips { .. } => "vip-down",
        S::StopServices { .. } => "services-down",
        S::Unmount { .. } => "unmounted",
        S::CloseDevice { .. } => "device-closed",
    }
}

/// Kind and sentence of a replica's note.
pub(super) fn describe_replica(cx: &Context, note: &Note) -> (&'static str, String) {
    match note {
        Note::Resized { size_bytes } => ("resized", format!("has {size_bytes} bytes now")),
        Note::Attached {
            peer,
            member,
            dirty_blocks,
        } => {
            let what = if *member {
                "a member"
            } else {
                "to be resynced"
            };
            (
                "attached",
                format!(
                    "{} is attached, {what}, {dirty_blocks} blocks to look at",
                    cx.name(*peer)
                ),
            )
        }
        Note::Detached { peer } => ("detached", format!("{} is detached", cx.name(*peer))),
        Note::Distrusted { peer, why } => (
            "distrusted",
            format!("{} {}", cx.name(*peer), strange(*why)),
        ),
        Note::Split { peer, ours, theirs } => ("split", split(&cx.name(*peer), *ours, *theirs)),
        Note::Discarded { peer, done, text } => {
            let what = if *done {
                "gave up its line of history"
            } else {
                "keeps its line of history"
            };
            ("discarded", format!("{} {what}: {text}", cx.name(*peer)))
        }
        Note::Resynced {
            peer,
            sent_bytes,
            zero_blocks,
            equal_blocks,
        } => (
            "resynced",
            format!(
                "{} is equal: {sent_bytes} bytes sent, {zero_blocks} blocks went as zeroes, \
                 {equal_blocks} blocks were equal",
                cx.name(*peer)
            ),
        ),
        Note::Reconciled { blocks } => {
            ("reconciled", format!("{blocks} blocks in doubt made equal"))
        }
        Note::Verified(report) => ("verified", verified(cx, report)),
        Note::Repaired {
            range,
            source,
            wrong,
        } => {
            let wrong: Vec<String> = wrong.iter().map(|n| cx.name(n)).collect();
            (
                "repaired",
                format!(
                    "{} blocks at block {} differed: the copy of {} was right, that of {} is overwritten",
                    range.count,
                    range.first,
                    cx.name(*source),
                    wrong.join(" and ")
                ),
            )
        }
        Note::Protocol { peer, what } => (
            "protocol",
            format!("{} was disconnected: {what}", cx.name(*peer)),
        ),
        Note::DiskFailed { why, what } => (
            "disk-failed",
            format!("the local disk is used no more: {why} ({what})"),
        ),
        Note::Unreadable { range } => (
            "unreadable",
            format!(
                "{} blocks from block {} on cannot be read from the local disk",
                range.count, range.first
            ),
        ),
        Note::Healed { range, from } => (
            "healed",
            format!(
                "{} blocks from block {} on, unreadable here, were fetched from {} and written anew",
                range.count,
                range.first,
                cx.name(*from)
            ),
        ),
    }
}

fn verified(cx: &Context, report: &VerifyReport) -> String {
    if let Some(why) = &report.refused {
        return format!("no comparison: {why}");
    }
    let peers = report.peers.iter().map(|p| {
        let name = cx.name(p.node);
        let mut text = match p.differing_blocks {
            0 => format!("{name} is equal"),
            n => format!("{n} blocks of {name} DIFFER"),
        };
        if p.differing_blocks > 0 && report.order.repair.is_some() {
            text += &format!(
                ", {} repaired, {} undecided",
                p.repaired_blocks, p.undecided_blocks
            );
        }
        if !p.complete {
            text += " as far as it was compared before it left";
        }
        text
    });
    let peers: Vec<String> = peers.collect();
    format!(
        "{} bytes were compared: {}",
        report.compared_bytes,
        peers.join("; ")
    )
}
