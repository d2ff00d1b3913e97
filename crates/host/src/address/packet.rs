//! The frames of ARP and neighbour discovery: built and recognised here, sent and received by a packet socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::netlink::LinkRow;
use crate::sys;

/// Largest frame handled here: Ethernet + IPv6 + neighbour message with one option, rounded up.
pub(super) const FRAME_BYTES_MAX: usize = 128;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const BROADCAST: [u8; 6] = [0xff; 6];
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const NEXT_HEADER_ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Neighbour messages with another hop limit have been forwarded and are void (RFC 4861).
const HOP_LIMIT: u8 = 255;
/// "Override" in an advertisement: replace a cached entry.
const FLAG_OVERRIDE: u8 = 0x20;
const OPTION_SOURCE_MAC: u8 = 1;
const OPTION_TARGET_MAC: u8 = 2;

/// A frame on the stack.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    bytes: [u8; FRAME_BYTES_MAX],
    len: usize,
}

impl Frame {
    fn new(to: [u8; 6], from: [u8; 6], ethertype: u16) -> Self {
        let mut frame = Self {
            bytes: [0; FRAME_BYTES_MAX],
            len: 0,
        };
        frame.put(&to);
        frame.put(&from);
        frame.put(&ethertype.to_be_bytes());
        frame
    }
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn arp(
    operation: u16,
    mac: [u8; 6],
    sender: Ipv4Addr,
    target_mac: [u8; 6],
    target: Ipv4Addr,
) -> Frame {
    let mut frame = Frame::new(BROADCAST, mac, ETHERTYPE_ARP);
    // Ethernet, IPv4, address lengths 6 and 4.
    frame.put(&[0, 1, 8, 0, 6, 4]);
    frame.put(&operation.to_be_bytes());
    frame.put(&mac);
    frame.put(&sender.octets());
    frame.put(&target_mac);
    frame.put(&target.octets());
    frame
}

fn icmpv6(mac: [u8; 6], from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> Frame {
    let ip = to.octets();
    let mut frame = Frame::new(
        [0x33, 0x33, ip[12], ip[13], ip[14], ip[15]],
        mac,
        ETHERTYPE_IPV6,
    );
    frame.put(&[0x60, 0, 0, 0]);
    frame.put(&(body.len() as u16).to_be_bytes());
    frame.put(&[NEXT_HEADER_ICMPV6, HOP_LIMIT]);
    frame.put(&from.octets());
    frame.put(&ip);
    let at = frame.len;
    frame.put(body);
    let sum = checksum(from, to, body);
    frame.bytes[at + 2..at + 4].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The Internet checksum over the IPv6 pseudo header and `body` (whose checksum field is zero).
fn checksum(from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> u16 {
    let add = |sum: u32, bytes: &[u8]| {
        bytes.chunks(2).fold(sum, |s, c| {
            s + u32::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)]))
        })
    };
    let mut sum = add(add(add(0, &from.octets()), &to.octets()), body);
    sum += body.len() as u32 + u32::from(NEXT_HEADER_ICMPV6);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The frames that tell a segment where `ip` is from now on: for IPv4 both ARP forms, because some gear believes only
/// one of them; for IPv6 an unsolicited advertisement.
pub(super) fn announcements(ip: IpAddr, mac: [u8; 6]) -> impl Iterator<Item = Frame> {
    let frames = match ip {
        IpAddr::V4(ip) => [
            Some(arp(ARP_REQUEST, mac, ip, [0; 6], ip)),
            Some(arp(ARP_REPLY, mac, ip, BROADCAST, ip)),
        ],
        IpAddr::V6(ip) => {
            let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            let mut body = [0; 32];
            body[0] = NEIGHBOUR_ADVERTISEMENT;
            body[4] = FLAG_OVERRIDE;
            body[8..24].copy_from_slice(&ip.octets());
            body[24..26].copy_from_slice(&[OPTION_TARGET_MAC, 1]);
            body[26..].copy_from_slice(&mac);
            [Some(icmpv6(mac, ip, all_nodes, &body)), None]
        }
    };
    frames.into_iter().flatten()
}

/// The question "does anybody have `ip`", asked without claiming it.
pub(super) fn question(ip: IpAddr, mac: [u8; 6]) -> Frame {
    match ip {
        IpAddr::V4(ip) => arp(ARP_REQUEST, mac, Ipv4Addr::UNSPECIFIED, [0; 6], ip),
        IpAddr::V6(ip) => {
            let o = ip.octets();
            let group = Ipv6Addr::from([
                0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, o[13], o[14], o[15],
            ]);
            let mut body = [0; 24];
            body[0] = NEIGHBOUR_SOLICITATION;
            body[8..24].copy_from_slice(&ip.octets());
            // From the unspecified address no source option may be given (RFC 4861 4.3).
            icmpv6(mac, Ipv6Addr::UNSPECIFIED, group, &body)
        }
    }
}

/// The hardware address that claims `ip` in this frame, if it is not `own`.
pub(super) fn claimant(frame: &[u8], ip: IpAddr, own: [u8; 6]) -> Option<[u8; 6]> {
    let ethertype = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    let body = &frame[14..];
    let mac = match (ip, ethertype) {
        (IpAddr::V4(ip), ETHERTYPE_ARP) => {
            if body.len() < 28 || body[..6] != [0, 1, 8, 0, 6, 4] {
                return None;
            }
            let operation = u16::from_be_bytes([body[6], body[7]]);
            let sender: [u8; 4] = body[14..18].try_into().ok()?;
            let target: [u8; 4] = body[24..28].try_into().ok()?;
            let claims = sender == ip.octets();
            // Somebody else probes for the same address at this moment (RFC 5227 2.1.1).
            let probes = operation == ARP_REQUEST && sender == [0; 4] && target == ip.octets();
            if !claims && !probes {
                return None;
            }
            <[u8; 6]>::try_from(&body[8..14]).ok()?
        }
        (IpAddr::V6(ip), ETHERTYPE_IPV6) => {
            let message = body.get(40..)?;
            let genuine =
                body[6] == NEXT_HEADER_ICMPV6 && body[7] == HOP_LIMIT && message.len() >= 24;
            if !genuine || message[8..24] != ip.octets() {
                return None;
            }
            let from = <[u8; 6]>::try_from(&frame[6..12]).ok()?;
            match message[0] {
                NEIGHBOUR_ADVERTISEMENT => {
                    option(&message[24..], OPTION_TARGET_MAC).unwrap_or(from)
                }
                NEIGHBOUR_SOLICITATION if body[8..24] == [0; 16] => {
                    option(&message[24..], OPTION_SOURCE_MAC).unwrap_or(from)
                }
                _ => return None,
            }
        }
        _ => return None,
    };
    (mac != own).then_some(mac)
}

fn option(mut bytes: &[u8], kind: u8) -> Option<[u8; 6]> {
    while bytes.len() >= 8 {
        let len = usize::from(bytes[1]) * 8;
        if len == 0 || len > bytes.len() {
            return None;
        }
        if bytes[0] == kind {
            return bytes[2..8].try_into().ok();
        }
        bytes = &bytes[len..];
    }
    None
}

/// A packet socket on one interface for the frames of one address family.
pub(super) struct Packets {
    fd: OwnedFd,
}

impl Packets {
    pub(super) fn open(link: &LinkRow, ip: IpAddr) -> io::Result<Self> {
        let protocol = if ip.is_ipv4() {
            ETHERTYPE_ARP
        } else {
            ETHERTYPE_IPV6
        }
        .to_be();
        // Made deaf (protocol 0) and bound afterwards, so that no frame of another interface slips in.
        // SAFETY: creates a new descriptor or fails.
        let fd = sys::check(unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0)
        })?;
        // SAFETY: the descriptor has just been made and is owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if ip.is_ipv6() {
            only_neighbour_messages(&fd)?;
        }
        // SAFETY: an all-zero sockaddr_ll is valid.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = protocol;
        to.sll_ifindex = link.index as i32;
        // SAFETY: a valid sockaddr_ll of the given size.
        sys::check(unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        })?;
        if ip.is_ipv6() {
            // Advertisements that answer a question from the unspecified address go to all nodes; be sure to get them.
            // SAFETY: an all-zero packet_mreq is valid.
            let mut member: libc::packet_mreq = unsafe { std::mem::zeroed() };
            member.mr_ifindex = link.index as i32;
            member.mr_type = libc::PACKET_MR_ALLMULTI as u16;
            // SAFETY: a valid packet_mreq of the given size.
            sys::check(unsafe {
                libc::setsockopt(
                    fd.as_raw_fd(),
                    libc::SOL_PACKET,
                    libc::PACKET_ADD_MEMBERSHIP,
                    (&raw const member).cast(),
                    size_of::<libc::packet_mreq>() as libc::socklen_t,
                )
            })?;
        }
        Ok(Self { fd })
    }
    pub(super) fn send(&self, frame: &Frame) -> io::Result<()> {
        sys::write(self.fd.as_fd(), frame.as_bytes()).map(|_| ())
    }
    /// The next frame within `timeout`; empty when there was none.
    pub(super) fn receive<'a>(
        &self,
        buffer: &'a mut [u8],
        timeout: std::time::Duration,
    ) -> io::Result<&'a [u8]> {
        if !sys::readable(self.fd.as_raw_fd(), timeout)? {
            return Ok(&[]);
        }
        let got = sys::read(self.fd.as_fd(), buffer)?;
        Ok(&buffer[..got])
    }
}

/// Lets only neighbour solicitations and advertisements through, so that a busy link does not fill the socket.
fn only_neighbour_messages(fd: &OwnedFd) -> io::Result<()> {
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // Offsets count from the start of the Ethernet frame: next header 14+6, ICMPv6 type 14+40.
    let mut program = [
        step(LOAD_BYTE, 0, 0, 20),
        step(JUMP_EQUAL, 0, 4, NEXT_HEADER_ICMPV6.into()),
        step(LOAD_BYTE, 0, 0, 54),
        step(JUMP_EQUAL, 1, 0, NEIGHBOUR_SOLICITATION.into()),
        step(JUMP_EQUAL, 0, 1, NEIGHBOUR_ADVERTISEMENT.into()),
        step(RETURN, 0, 0, FRAME_BYTES_MAX as u32),
        step(RETURN, 0, 0, 0),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `filter` points at a program of the given length that outlives the call; the kernel copies it.
    sys::check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })
    .map(|_| ())
}
