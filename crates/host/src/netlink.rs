//! Route netlink, as little of it as the VIP, the fencer and the lab need; synchronous and without allocation.
//!
//! One request is answered by the local kernel within microseconds, so there is nothing to wait for and no runtime is
//! needed: the same code serves the daemon, the fencer's loop and threads in other network namespaces.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::sys;

/// Largest request built here, in bytes.
const REQUEST_BYTES_MAX: usize = 1024;
/// Room for one answer datagram; the kernel sends dumps in pieces of at most 32 KiB.
const ANSWER_BYTES_MAX: usize = 32 << 10;
/// How long the kernel may take to answer, in seconds; it takes microseconds.
const ANSWER_SECONDS_MAX: libc::time_t = 5;

const HEADER_BYTES: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_FLAGS: u16 = 8;
const IFA_PROTO: u16 = 11;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;

/// An address on an interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AddressRow {
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
    pub(crate) ifindex: u32,
    /// Who made it, where the kernel keeps that (5.18 and later), else zero.
    pub(crate) protocol: u8,
    /// The IPv4 label ends in our mark.
    pub(crate) labelled: bool,
}

/// A network interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkRow {
    pub(crate) index: u32,
    pub(crate) flags: u32,
    pub(crate) name: sys::StackStr<16>,
    pub(crate) mac: Option<[u8; 6]>,
}

impl LinkRow {
    pub(crate) fn name_str(&self) -> &str {
        std::str::from_utf8(self.name.as_bytes()).unwrap_or("?")
    }
    pub(crate) fn is_loopback(&self) -> bool {
        self.flags & libc::IFF_LOOPBACK as u32 != 0
    }
    pub(crate) fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP as u32 != 0
    }
    /// Speaks ARP or neighbour discovery.
    pub(crate) fn has_neighbours(&self) -> bool {
        self.flags & (libc::IFF_LOOPBACK | libc::IFF_NOARP | libc::IFF_POINTOPOINT) as u32 == 0
            && self.mac.is_some()
    }
}

/// What goes on an interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewAddress<'a> {
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
    pub(crate) ifindex: u32,
    pub(crate) protocol: u8,
    pub(crate) label: Option<&'a str>,
}

/// A request under construction.
struct Request {
    bytes: [u8; REQUEST_BYTES_MAX],
    len: usize,
}

impl Request {
    fn new(kind: u16, flags: u16) -> Self {
        let mut request = Self {
            bytes: [0; REQUEST_BYTES_MAX],
            len: HEADER_BYTES,
        };
        request.bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        request.bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        request
    }
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len = (self.len + bytes.len()).next_multiple_of(4);
    }
    /// struct ifinfomsg
    fn put_link(&mut self, index: u32, flags: u32, change: u32) {
        self.put(&[libc::AF_UNSPEC as u8, 0, 0, 0]);
        self.put(&index.to_ne_bytes());
        self.put(&flags.to_ne_bytes());
        self.put(&change.to_ne_bytes());
    }
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = (4 + value.len()) as u16;
        let mut head = [0; 4];
        head[..2].copy_from_slice(&len.to_ne_bytes());
        head[2..].copy_from_slice(&kind.to_ne_bytes());
        self.put(&head);
        self.put(value);
    }
    fn name(&mut self, kind: u16, name: &str) {
        let mut text = sys::StackStr::<17>::new();
        text.push_bytes(name.as_bytes());
        let mut value = [0; 17];
        let len = text.as_bytes().len();
        value[..len].copy_from_slice(text.as_bytes());
        self.attribute(kind, &value[..=len]);
    }
    fn nest(&mut self, kind: u16) -> usize {
        let at = self.len;
        self.attribute(kind | NLA_F_NESTED, &[]);
        at
    }
    fn end_nest(&mut self, at: usize) {
        let len = (self.len - at) as u16;
        self.bytes[at..at + 2].copy_from_slice(&len.to_ne_bytes());
    }
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: creates a new descriptor or fails.
        let fd = sys::check(unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::NETLINK_ROUTE,
            )
        })?;
        // SAFETY: the descriptor has just been made and is owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let timeout = libc::timeval {
            tv_sec: ANSWER_SECONDS_MAX,
            tv_usec: 0,
        };
        // SAFETY: a valid timeval of the given size.
        sys::check(unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const timeout).cast(),
                size_of::<libc::timeval>() as libc::socklen_t,
            )
        })?;
        Ok(Self { fd, sequence: 0 })
    }

    fn send(&mut self, request: &mut Request) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let len = request.len as u32;
        request.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        request.bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        // An unbound, unconnected netlink socket writes to the kernel.
        let put = sys::write(self.fd.as_fd(), &request.bytes[..request.len])?;
        if put == request.len {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::WriteZero))
        }
    }

    /// Hands each message that answers the last request to `each`; ends at the acknowledgement or the end of a dump.
    fn answers(&mut self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = [0_u8; ANSWER_BYTES_MAX];
        loop {
            let got = match sys::read(self.fd.as_fd(), &mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            let mut rest = &buffer[..got];
            while rest.len() >= HEADER_BYTES {
                let len = u32_at(rest, 0) as usize;
                if len < HEADER_BYTES || len > rest.len() {
                    return Err(io::Error::from(io::ErrorKind::InvalidData));
                }
                let kind = u16_at(rest, 4);
                let mine = u32_at(rest, 8) == self.sequence;
                let body = &rest[HEADER_BYTES..len];
                rest = &rest[len.next_multiple_of(4).min(rest.len())..];
                match kind {
                    _ if !mine => {}
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR if body.len() >= 4 => {
                        let code = u32_at(body, 0) as i32;
                        return if code == 0 {
                            Ok(())
                        } else {
                            Err(io::Error::from_raw_os_error(-code))
                        };
                    }
                    _ => each(kind, body),
                }
            }
        }
    }

    fn request(&mut self, mut request: Request) -> io::Result<()> {
        self.send(&mut request)?;
        self.answers(|_, _| {})
    }

    /// Adds an address; `EEXIST` when it is there.
    pub(crate) fn add_address(&mut self, new: &NewAddress<'_>) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
        put_address(&mut request, new.ip, new.prefix, new.ifindex);
        if let (IpAddr::V4(_), Some(label)) = (new.ip, new.label) {
            request.name(IFA_LABEL, label);
        }
        if new.ip.is_ipv6() {
            // The conflict probe is ours: the address must be usable at once.
            request.attribute(IFA_FLAGS, &libc::IFA_F_NODAD.to_ne_bytes());
        }
        request.attribute(IFA_PROTO, &[new.protocol]);
        self.request(request)
    }

    /// Removes an address; `EADDRNOTAVAIL` or `ENODEV` when there is nothing to remove.
    pub(crate) fn remove_address(
        &mut self,
        ip: IpAddr,
        prefix: u8,
        ifindex: u32,
    ) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_DELADDR, NLM_F_ACK);
        put_address(&mut request, ip, prefix, ifindex);
        self.request(request)
    }

    /// All addresses of this network namespace.
    pub(crate) fn addresses(&mut self, mut each: impl FnMut(AddressRow)) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_GETADDR, NLM_F_DUMP);
        request.put(&[libc::AF_UNSPEC as u8, 0, 0, 0]);
        request.put(&[0; 4]);
        self.send(&mut request)?;
        self.answers(|kind, body| {
            if kind == libc::RTM_NEWADDR
                && let Some(row) = parse_address(body)
            {
                each(row);
            }
        })
    }

    /// All interfaces of this network namespace.
    pub(crate) fn links(&mut self, mut each: impl FnMut(LinkRow)) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_GETLINK, NLM_F_DUMP);
        request.put_link(0, 0, 0);
        self.send(&mut request)?;
        self.answers(|kind, body| {
            if kind == libc::RTM_NEWLINK
                && let Some(row) = parse_link(body)
            {
                each(row);
            }
        })
    }

    /// The interface called `name`.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<Option<LinkRow>> {
        let mut found = None;
        self.links(|row| {
            if row.name_str() == name {
                found = Some(row);
            }
        })?;
        Ok(found)
    }

    /// Makes a bridge.
    pub(crate) fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
        request.put_link(0, 0, 0);
        request.name(IFLA_IFNAME, name);
        let info = request.nest(IFLA_LINKINFO);
        request.name(IFLA_INFO_KIND, "bridge");
        request.end_nest(info);
        self.request(request)
    }

    /// Makes a pair of connected interfaces: `name` here, `peer_name` in the namespace of `peer_netns`.
    pub(crate) fn add_veth(
        &mut self,
        name: &str,
        peer_name: &str,
        peer_netns: RawFd,
    ) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
        request.put_link(0, 0, 0);
        request.name(IFLA_IFNAME, name);
        let info = request.nest(IFLA_LINKINFO);
        request.name(IFLA_INFO_KIND, "veth");
        let data = request.nest(IFLA_INFO_DATA);
        let peer = request.nest(VETH_INFO_PEER);
        request.put_link(0, 0, 0);
        request.name(IFLA_IFNAME, peer_name);
        request.attribute(IFLA_NET_NS_FD, &peer_netns.to_ne_bytes());
        request.end_nest(peer);
        request.end_nest(data);
        request.end_nest(info);
        self.request(request)
    }

    /// Brings an interface up or down.
    pub(crate) fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let flag = libc::IFF_UP as u32;
        let mut request = Request::new(libc::RTM_NEWLINK, NLM_F_ACK);
        request.put_link(index, if up { flag } else { 0 }, flag);
        self.request(request)
    }

    /// Makes an interface a port of bridge `master`.
    pub(crate) fn set_master(&mut self, index: u32, master: u32) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_NEWLINK, NLM_F_ACK);
        request.put_link(index, 0, 0);
        request.attribute(IFLA_MASTER, &master.to_ne_bytes());
        self.request(request)
    }
}

/// struct ifaddrmsg and the address itself.
fn put_address(request: &mut Request, ip: IpAddr, prefix: u8, ifindex: u32) {
    let family = if ip.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    request.put(&[family as u8, prefix, 0, 0]);
    request.put(&ifindex.to_ne_bytes());
    match ip {
        IpAddr::V4(v4) => {
            request.attribute(IFA_LOCAL, &v4.octets());
            request.attribute(IFA_ADDRESS, &v4.octets());
        }
        IpAddr::V6(v6) => request.attribute(IFA_ADDRESS, &v6.octets()),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Hands each attribute to `each`; stops at the first that does not fit.
fn attributes(mut bytes: &[u8], mut each: impl FnMut(u16, &[u8])) {
    while bytes.len() >= 4 {
        let len = u16_at(bytes, 0) as usize;
        if len < 4 || len > bytes.len() {
            return;
        }
        each(u16_at(bytes, 2) & !NLA_F_NESTED, &bytes[4..len]);
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
    }
}

fn ip_of(family: u8, value: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => <[u8; 4]>::try_from(value)
            .ok()
            .map(|b| IpAddr::V4(Ipv4Addr::from(b))),
        libc::AF_INET6 => <[u8; 16]>::try_from(value)
            .ok()
            .map(|b| IpAddr::V6(Ipv6Addr::from(b))),
        _ => None,
    }
}

fn parse_address(body: &[u8]) -> Option<AddressRow> {
    if body.len() < 8 {
        return None;
    }
    let (family, prefix, ifindex) = (body[0], body[1], u32_at(body, 4));
    let (mut local, mut address, mut protocol, mut labelled) = (None, None, 0, false);
    attributes(&body[8..], |kind, value| match kind {
        IFA_LOCAL => local = ip_of(family, value),
        IFA_ADDRESS => address = ip_of(family, value),
        IFA_PROTO => protocol = value.first().copied().unwrap_or(0),
        IFA_LABEL => {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            labelled = text.ends_with(crate::address::LABEL_MARK.as_bytes());
        }
        _ => {}
    });
    // On a point-to-point link `address` is the other end.
    Some(AddressRow {
        ip: local.or(address)?,
        prefix,
        ifindex,
        protocol,
        labelled,
    })
}

fn parse_link(body: &[u8]) -> Option<LinkRow> {
    if body.len() < 16 {
        return None;
    }
    let mut row = LinkRow {
        index: u32_at(body, 4),
        flags: u32_at(body, 8),
        name: sys::StackStr::new(),
        mac: None,
    };
    attributes(&body[16..], |kind, value| match kind {
        IFLA_IFNAME => row
            .name
            .push_bytes(value.strip_suffix(&[0]).unwrap_or(value)),
        IFLA_ADDRESS => row.mac = <[u8; 6]>::try_from(value).ok(),
        _ => {}
    });
    Some(row)
}
