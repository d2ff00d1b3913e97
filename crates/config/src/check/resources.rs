//! The resources: who holds them, volumes, mounts, services, virtual IPs.

use super::name;
use super::nodes::Nodes;
use super::upkeep;
use crate::error::{Collector, nearest};
use crate::model::{
    Acknowledge, Frontend, Mount, Nbd, OnNoQuorum, Ready, Resource, Service, UncleanPromotion, Vip,
    Volume,
};
use crate::{raw, units};
use holdfast_types::{BLOCK_BYTES, NodeId, NodeSet};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Smallest volume: below it the metadata would be larger than the data.
const VOLUME_BYTES_MIN: u64 = 1 << 20;
/// Largest volume, in bytes (16 TiB): the limit of the dirty bitmap's layout.
const VOLUME_BYTES_MAX: u64 = 16 << 40;
/// How long a service may take to stop unless said otherwise.
const STOP_TIMEOUT_MS: u64 = 5_000;
/// Longest name of a network interface in Linux.
const DEVICE_CHARS_MAX: usize = 15;

/// What must be unique across resources.
#[derive(Default)]
struct Seen {
    backing: BTreeMap<(NodeId, PathBuf), String>,
    mounts: BTreeMap<PathBuf, String>,
    vips: BTreeMap<IpAddr, String>,
    tcp: BTreeMap<SocketAddr, String>,
}

pub(super) fn resources(
    raw: &[Spanned<raw::Resource>],
    nodes: &Nodes,
    problems: &mut Collector<'_>,
) -> Vec<Resource> {
    let mut all: Vec<Resource> = Vec::new();
    let mut seen = Seen::default();
    for entry in raw {
        let raw = entry.get_ref();
        name(&raw.name, "resource", problems);
        if all.iter().any(|r| &r.name == raw.name.get_ref()) {
            problems.at(
                raw.name.span(),
                format!("two resources are called `{}`", raw.name.get_ref()),
                "give each its own name",
            );
        }
        all.push(resource(entry, nodes, &mut seen, problems));
    }
    all
}

fn resource(
    entry: &Spanned<raw::Resource>,
    nodes: &Nodes,
    seen: &mut Seen,
    problems: &mut Collector<'_>,
) -> Resource {
    let raw = entry.get_ref();
    let holders = holders(raw, nodes, problems);
    let preferred = preferred(raw, nodes, holders, problems);
    if raw.volume.is_empty() {
        problems.at(
            entry.span(),
            format!("resource `{}` has no volume", raw.name.get_ref()),
            "add [[resource.volume]]",
        );
    }
    let mut volumes: Vec<Volume> = Vec::new();
    for entry in &raw.volume {
        let volume = volume(
            entry.get_ref(),
            raw.name.get_ref(),
            nodes,
            holders,
            seen,
            problems,
        );
        if volumes.iter().any(|v| v.name == volume.name) {
            problems.at(
                entry.get_ref().name.span(),
                format!(
                    "two volumes of `{}` are called `{}`",
                    raw.name.get_ref(),
                    volume.name
                ),
                "give each its own name",
            );
        }
        volumes.push(volume);
    }
    refuse_unavailable(
        raw.on_no_quorum.as_ref(),
        "fail",
        "failing I/O without a majority",
        "on_no_quorum = \"hold\", or leave it out: I/O waits until a majority is back",
        problems,
    );
    let on_no_quorum = choice(
        raw.on_no_quorum.as_ref(),
        &[("hold", OnNoQuorum::Hold), ("fail", OnNoQuorum::Fail)],
        problems,
    );
    let unclean_promotion = choice(
        raw.unclean_promotion.as_ref(),
        &[
            ("wait", UncleanPromotion::Wait),
            ("allow", UncleanPromotion::Allow),
        ],
        problems,
    );
    let mounts = raw
        .mount
        .iter()
        .map(|m| mount(m, raw.name.get_ref(), &volumes, seen, problems))
        .collect();
    let mut services: Vec<Service> = Vec::new();
    for entry in &raw.service {
        let service = service(entry, problems);
        if services.iter().any(|s| s.name == service.name) {
            problems.at(
                entry.name.span(),
                format!(
                    "two services of `{}` are called `{}`",
                    raw.name.get_ref(),
                    service.name
                ),
                "give each its own name",
            );
        }
        services.push(service);
    }
    let vips = raw
        .vip
        .iter()
        .filter_map(|v| vip(v, raw.name.get_ref(), nodes, seen, problems))
        .collect();
    Resource {
        name: raw.name.get_ref().clone(),
        nodes: holders,
        preferred,
        on_no_quorum,
        unclean_promotion,
        volumes,
        mounts,
        services,
        vips,
    }
}

fn holders(raw: &raw::Resource, nodes: &Nodes, problems: &mut Collector<'_>) -> NodeSet {
    let mut holders = NodeSet::EMPTY;
    let mut named: Vec<&str> = Vec::new();
    for entry in raw.nodes.get_ref() {
        let Some(node) = nodes.by_name(entry.get_ref()) else {
            unknown(entry, "node", nodes.names(), problems);
            continue;
        };
        if node.witness {
            problems.at(
                entry.span(),
                format!("`{}` is a witness: it holds no data", node.name),
                "name data nodes, or take witness = true from that node",
            );
        } else if named.contains(&node.name.as_str()) {
            problems.at(
                entry.span(),
                format!("`{}` is named twice", node.name),
                "name each node once",
            );
        } else if node.id.0 < holdfast_types::NODES_MAX {
            holders = holders.with(node.id);
        }
        named.push(&node.name);
    }
    if raw.nodes.get_ref().is_empty() {
        problems.at(
            raw.nodes.span(),
            "no node holds this resource",
            "name at least one data node, better two",
        );
    }
    holders
}

fn preferred(
    raw: &raw::Resource,
    nodes: &Nodes,
    holders: NodeSet,
    problems: &mut Collector<'_>,
) -> Option<NodeId> {
    let given = raw.preferred.as_ref()?;
    match nodes.by_name(given.get_ref()) {
        Some(node) if holders.has(node.id) => return Some(node.id),
        Some(node) => problems.at(
            given.span(),
            format!(
                "the preferred node `{}` holds no copy of `{}`",
                node.name,
                raw.name.get_ref()
            ),
            "one of the resource's own nodes",
        ),
        None => unknown(given, "node", nodes.names(), problems),
    }
    None
}

/// A reference to something that is not there.
fn unknown<'c>(
    given: &Spanned<String>,
    kind: &str,
    known: impl Iterator<Item = &'c str>,
    problems: &mut Collector<'_>,
) {
    let known: Vec<&str> = known.collect();
    let fix = match nearest(given.get_ref(), known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => format!("add a {kind} with this name"),
        None => format!("known: {}", known.join(", ")),
    };
    problems.at(
        given.span(),
        format!("there is no {kind} `{}`", given.get_ref()),
        fix,
    );
}

/// One of a few words; the first is the default.
/// A word with a meaning that this version does not have yet.
fn refuse_unavailable(
    given: Option<&Spanned<String>>,
    word: &str,
    what: &str,
    fix: &str,
    problems: &mut Collector<'_>,
) {
    if let Some(given) = given.filter(|g| g.get_ref() == word) {
        let problem = format!("{what} is not available in this version");
        problems.at(given.span(), problem, fix);
    }
}

fn choice<T: Copy>(
    given: Option<&Spanned<String>>,
    words: &[(&str, T)],
    problems: &mut Collector<'_>,
) -> T {
    let (default, (_, value)) = (words[0].1, words[0]);
    let Some(given) = given else { return default };
    if let Some((_, value)) = words.iter().find(|(word, _)| word == given.get_ref()) {
        return *value;
    }
    let known: Vec<String> = words
        .iter()
        .map(|(word, _)| format!("\"{word}\""))
        .collect();
    problems.at(
        given.span(),
        format!("unknown value `{}`", given.get_ref()),
        known.join(" or "),
    );
    value
}

fn volume(
    raw: &raw::Volume,
    resource: &str,
    nodes: &Nodes,
    holders: NodeSet,
    seen: &mut Seen,
    problems: &mut Collector<'_>,
) -> Volume {
    name(&raw.name, "volume", problems);
    let acknowledge = match raw.acknowledge.as_ref() {
        Some(level) if matches!(level.get_ref().as_str(), "A" | "B") => {
            problems.at(
                level.span(),
                format!(
                    "acknowledgement level {} is not available in this version",
                    level.get_ref()
                ),
                "acknowledge = \"C\", or leave it out",
            );
            Acknowledge::C
        }
        other => choice(other, &[("C", Acknowledge::C)], problems),
    };
    refuse_unavailable(
        raw.frontend.as_ref(),
        "nbd",
        "a kernel NBD device",
        "frontend = \"auto\" or \"fuse\" (the volume's NBD socket is always there)",
        problems,
    );
    let frontend = choice(
        raw.frontend.as_ref(),
        &[
            ("auto", Frontend::Auto),
            ("nbd", Frontend::Nbd),
            ("fuse", Frontend::Fuse),
            ("none", Frontend::None),
        ],
        problems,
    );
    let nbd = raw
        .nbd
        .as_ref()
        .map_or_else(Nbd::default, |raw| nbd(raw, resource, seen, problems));
    Volume {
        name: raw.name.get_ref().clone(),
        size_bytes: size(&raw.size, problems),
        backing: backing(raw, resource, nodes, holders, seen, problems),
        acknowledge,
        nbd,
        frontend,
        resync: upkeep::resync(raw, problems),
        scrub: upkeep::scrub(raw, problems),
        on_resize: raw.on_resize.clone(),
    }
}

fn size(raw: &Spanned<String>, problems: &mut Collector<'_>) -> u64 {
    let refusal = match units::parse_size(raw.get_ref()) {
        Err(what) => (what, "a size like \"512MiB\" or \"1GiB\"".to_owned()),
        Ok(bytes) if !bytes.is_multiple_of(u64::from(BLOCK_BYTES)) => (
            format!("{bytes} bytes are not whole blocks of {BLOCK_BYTES}"),
            format!(
                "a multiple of {BLOCK_BYTES}, for example {}",
                bytes.next_multiple_of(u64::from(BLOCK_BYTES))
            ),
        ),
        Ok(bytes) if bytes < VOLUME_BYTES_MIN => (
            format!("a volume of {bytes} bytes is too small"),
            "at least 1MiB".to_owned(),
        ),
        Ok(bytes) if bytes > VOLUME_BYTES_MAX => (
            format!("a volume of {bytes} bytes is too large"),
            "at most 16TiB".to_owned(),
        ),
        Ok(bytes) => return bytes,
    };
    problems.at(raw.span(), refusal.0, refusal.1);
    VOLUME_BYTES_MIN
}

fn backing(
    raw: &raw::Volume,
    resource: &str,
    nodes: &Nodes,
    holders: NodeSet,
    seen: &mut Seen,
    problems: &mut Collector<'_>,
) -> BTreeMap<NodeId, PathBuf> {
    let span = raw.backing.span();
    let mut paths = BTreeMap::new();
    match raw.backing.get_ref() {
        raw::Backing::Same(path) => {
            paths.extend(holders.iter().map(|id| (id, PathBuf::from(path))))
        }
        raw::Backing::PerNode(table) => {
            for (node, path) in table {
                match nodes.by_name(node) {
                    Some(node) if holders.has(node.id) => {
                        paths.insert(node.id, PathBuf::from(path));
                    }
                    Some(_) => problems.at(
                        span.clone(),
                        format!("a backing for `{node}`, which holds no copy of `{resource}`"),
                        format!("take it out, or add \"{node}\" to the resource's nodes"),
                    ),
                    None => problems.at(
                        span.clone(),
                        format!("a backing for `{node}`, which is no node"),
                        match nearest(node, nodes.names()) {
                            Some(near) => format!("did you mean `{near}`?"),
                            None => "the name of one of the resource's nodes".into(),
                        },
                    ),
                }
            }
            for node in nodes
                .all
                .iter()
                .filter(|n| holders.has(n.id) && !table.contains_key(&n.name))
            {
                problems.at(
                    span.clone(),
                    format!("no backing for `{}`", node.name),
                    format!("add {} = \"/path\"", node.name),
                );
            }
        }
    }
    let owner = format!("{resource}/{}", raw.name.get_ref());
    for (id, path) in &paths {
        if !path.is_absolute() {
            problems.at(
                span.clone(),
                format!("the backing `{}` is not an absolute path", path.display()),
                "a path that starts with /",
            );
            break;
        }
        if let Some(other) = seen.backing.insert((*id, path.clone()), owner.clone()) {
            let node = nodes
                .all
                .iter()
                .find(|n| n.id == *id)
                .map_or("?", |n| n.name.as_str());
            problems.at(
                span.clone(),
                format!(
                    "`{}` on `{node}` backs both `{other}` and `{owner}`",
                    path.display()
                ),
                "a file or device of its own for each volume",
            );
            break;
        }
    }
    paths
}

fn nbd(raw: &raw::Nbd, resource: &str, seen: &mut Seen, problems: &mut Collector<'_>) -> Nbd {
    let tcp = raw
        .tcp
        .as_ref()
        .and_then(|given| match given.get_ref().parse::<SocketAddr>() {
            Ok(address) => {
                if let Some(other) = seen.tcp.insert(address, resource.into()) {
                    problems.at(
                        given.span(),
                        format!("{address} is already the NBD address of a volume of `{other}`"),
                        "another port",
                    );
                }
                Some(address)
            }
            Err(_) => {
                problems.at(
                    given.span(),
                    format!("`{}` is not an address and a port", given.get_ref()),
                    "for example \"127.0.0.1:10809\"",
                );
                None
            }
        });
    Nbd {
        unix: raw.unix.as_ref().map(|s| PathBuf::from(s.get_ref())),
        tcp,
    }
}

fn mount(
    raw: &raw::Mount,
    resource: &str,
    volumes: &[Volume],
    seen: &mut Seen,
    problems: &mut Collector<'_>,
) -> Mount {
    match volumes.iter().find(|v| &v.name == raw.volume.get_ref()) {
        None => unknown(
            &raw.volume,
            "volume",
            volumes.iter().map(|v| v.name.as_str()),
            problems,
        ),
        Some(volume) if volume.frontend == Frontend::None => problems.at(
            raw.volume.span(),
            format!(
                "volume `{}` has frontend = \"none\": there is no device to mount",
                volume.name
            ),
            "frontend = \"auto\" for that volume",
        ),
        Some(_) => {}
    }
    let path = PathBuf::from(raw.path.get_ref());
    if !path.is_absolute() || path == Path::new("/") {
        problems.at(
            raw.path.span(),
            format!("`{}` is not a place for a mount", path.display()),
            "an absolute path of an empty directory",
        );
    }
    if let Some(other) = seen.mounts.insert(path.clone(), resource.into()) {
        problems.at(
            raw.path.span(),
            format!("`{}` is already a mount of `{other}`", path.display()),
            "a directory of its own for each mount",
        );
    }
    let fstype = raw.fstype.as_ref().map_or("ext4", |s| s.get_ref());
    if fstype.is_empty()
        || !fstype
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
    {
        let span = raw.fstype.as_ref().map_or(raw.path.span(), Spanned::span);
        problems.at(
            span,
            format!("`{fstype}` is not a file system type"),
            "for example \"ext4\" or \"xfs\"",
        );
    }
    Mount {
        volume: raw.volume.get_ref().clone(),
        path,
        fstype: fstype.into(),
        options: raw.options.clone().unwrap_or_default(),
        format_blank: raw.format_blank,
    }
}

fn service(raw: &raw::Service, problems: &mut Collector<'_>) -> Service {
    name(&raw.name, "service", problems);
    if raw.command.get_ref().first().is_none_or(String::is_empty) {
        problems.at(
            raw.command.span(),
            format!("service `{}` has no command", raw.name.get_ref()),
            "command = [\"/usr/bin/program\", \"argument\"]",
        );
    }
    let ready = raw.ready.as_ref().and_then(|given| {
        let address = given
            .get_ref()
            .strip_prefix("tcp:")
            .and_then(|a| a.parse().ok());
        if address.is_none() {
            problems.at(
                given.span(),
                format!("`{}` is not a readiness check", given.get_ref()),
                "ready = \"tcp:127.0.0.1:5060\": up when this address accepts a connection",
            );
        }
        address.map(Ready::Tcp)
    });
    let stop_timeout_ms = raw.stop_timeout.as_ref().map_or(STOP_TIMEOUT_MS, |given| {
        units::parse_duration_ms(given.get_ref()).unwrap_or_else(|what| {
            problems.at(given.span(), what, "stop_timeout = \"10s\"");
            STOP_TIMEOUT_MS
        })
    });
    Service {
        name: raw.name.get_ref().clone(),
        command: raw.command.get_ref().clone(),
        ready,
        stop_timeout_ms,
    }
}

fn vip(
    raw: &raw::Vip,
    resource: &str,
    nodes: &Nodes,
    seen: &mut Seen,
    problems: &mut Collector<'_>,
) -> Option<Vip> {
    let span = raw.address.span();
    let text = raw.address.get_ref();
    let (address, prefix) = match parse_vip(text) {
        Ok(parsed) => parsed,
        Err((what, fix)) => {
            problems.at(span, what, fix);
            return None;
        }
    };
    if let Some(node) = nodes.all.iter().find(|n| n.address == address) {
        problems.at(
            span.clone(),
            format!(
                "{address} is the address of the node `{}` itself",
                node.name
            ),
            "an address that no machine has",
        );
    }
    if let Some(other) = seen.vips.insert(address, resource.into()) {
        problems.at(
            span,
            format!("{address} is already a virtual IP of `{other}`"),
            "an address of its own for each [[resource.vip]]",
        );
    }
    let device = raw.device.as_ref().map(|d| {
        let device = d.get_ref();
        if device.is_empty()
            || device.len() > DEVICE_CHARS_MAX
            || device.contains(|c: char| c == '/' || c.is_whitespace())
        {
            problems.at(
                d.span(),
                format!("`{device}` is not a network interface"),
                "for example \"eth0\"",
            );
        }
        device.clone()
    });
    Some(Vip {
        address,
        prefix,
        device,
    })
}

/// Address and prefix of `"10.0.0.100/24"`, or what is wrong and the fix.
fn parse_vip(text: &str) -> Result<(IpAddr, u8), (String, String)> {
    let example = "an address with its network prefix, for example \"10.0.0.100/24\"".to_owned();
    let Some((ip, prefix)) = text.split_once('/') else {
        return Err((
            format!("the virtual IP `{text}` has no network prefix"),
            example,
        ));
    };
    let not_one = || format!("`{text}` is not a virtual IP");
    let ip: IpAddr = ip.parse().map_err(|_| (not_one(), example.clone()))?;
    let prefix: u8 = prefix.parse().map_err(|_| (not_one(), example.clone()))?;
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    if prefix == 0 || prefix > bits {
        return Err((
            format!("a network prefix of {prefix} bits is impossible"),
            format!("1 to {bits}, for example /24"),
        ));
    }
    let host_of_its_own = match ip {
        IpAddr::V4(v4) if prefix <= 30 => {
            let mask = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            let host = u32::from(v4) & mask;
            host != 0 && host != mask
        }
        IpAddr::V4(v4) => v4 != Ipv4Addr::BROADCAST,
        IpAddr::V6(_) => true,
    };
    if ip.is_unspecified() || ip.is_multicast() || !host_of_its_own {
        return Err((
            format!("{ip}/{prefix} is a network, broadcast or multicast address, not a host's"),
            example,
        ));
    }
    Ok((ip, prefix))
}
