//! Who is at the other end: the first bytes of every connection between two nodes.
//!
//! Three messages, each a fixed prefix and a body, as a state machine without I/O:
//!
//! ```text
//! dialer                                  listener
//!   Ask    who, whom, what for, nonce  ->
//!                                      <- Answer  nonce, proof over both     (or a refusal)
//!   Prove  proof over both             ->                                    (or a refusal)
//!                                      <- Accept                             (or a refusal)
//! ```
//!
//! A proof is HMAC-SHA256 under the cluster's secret over a label of the role and the bytes of
//! both messages before it, so neither side's proof can be played back as the other's. A side that
//! refuses says why in one byte and closes; both sides have the same text for their log.
//!
//! Invariants
//! - [`Handshake::want`] says exactly how many bytes come next: nothing of what follows the
//!   handshake is ever read by it;
//! - nothing that depends on the secret is sent to a peer before its version and cluster fit;
//! - the secret never appears in `Debug` output or in a refusal.

use hmac::{Hmac, KeyInit as _, Mac as _};
use holdfast_types::{NodeId, VolumeId};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// First bytes of every message: "Holdfast peer".
const MAGIC: [u8; 8] = *b"HFPEER\r\n";
/// Version of everything nodes say to each other. Raised by every incompatible change.
pub const PROTOCOL_VERSION: u16 = 1;
/// Bytes of the prefix: magic, version, kind, refusal, body length.
const PREFIX_BYTES: usize = 16;
/// Bytes of the body of `Ask`.
const ASK_BYTES: usize = 80;
/// Bytes of the body of `Answer`.
const ANSWER_BYTES: usize = 64;
/// Bytes of the body of `Prove`.
const PROVE_BYTES: usize = 32;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;
/// A body longer than this is no handshake at all.
const BODY_BYTES_MAX: usize = 256;

/// The secret all nodes of a cluster share, reduced to a key.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of a secret. The cluster's id is mixed in, so that two clusters with the same
    /// secret still refuse each other.
    pub fn new(secret: &[u8], cluster: ClusterId) -> Self {
        let mut h = Sha256::new();
        h.update(b"holdfast cluster key 1");
        h.update(cluster.0);
        h.update((secret.len() as u64).to_le_bytes());
        h.update(secret);
        Self(h.finalize().into())
    }

    fn proof(&self, label: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(label);
        for part in parts {
            mac.update(part);
        }
        mac
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Identity of a cluster: a hash of its name, so that it can be compared in a fixed field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterId(pub [u8; 16]);

impl ClusterId {
    /// The id of the cluster of this name.
    pub fn of_name(name: &str) -> Self {
        let hash = Sha256::digest([b"holdfast cluster id 1 ", name.as_bytes()].concat());
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        Self(id)
    }
    /// The id as one number, for places with room for 64 bits.
    pub fn short(self) -> u64 {
        u64::from_le_bytes(self.0[..8].try_into().expect("eight of sixteen bytes"))
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Control-plane messages between two nodes.
    Control,
    /// The write lane of a volume.
    WriteLane(VolumeId),
    /// The bulk lane of a volume.
    BulkLane(VolumeId),
}

impl Purpose {
    fn code(self) -> (u8, u64) {
        match self {
            Self::Control => (0, 0),
            Self::WriteLane(v) => (1, v.0),
            Self::BulkLane(v) => (2, v.0),
        }
    }
    fn decode(code: u8, volume: u64) -> Option<Self> {
        match code {
            0 => Some(Self::Control),
            1 => Some(Self::WriteLane(VolumeId(volume))),
            2 => Some(Self::BulkLane(VolumeId(volume))),
            _ => None,
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.write_str("control"),
            Self::WriteLane(v) => write!(f, "write lane of volume {v}"),
            Self::BulkLane(v) => write!(f, "bulk lane of volume {v}"),
        }
    }
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not one of our messages.
    #[error("the other end does not speak Holdfast's peer protocol")]
    NotHoldfast,
    /// Another protocol version.
    #[error(
        "the other node speaks protocol version {theirs}, this one {PROTOCOL_VERSION}: upgrade the older of the two"
    )]
    Version {
        /// Its version.
        theirs: u16,
    },
    /// Another cluster's name.
    #[error("the other node belongs to another cluster: compare `name` in both cluster.toml files")]
    Cluster,
    /// Its proof is wrong.
    #[error(
        "the two nodes do not have the same cluster secret: compare `secret` in both cluster.toml files"
    )]
    Secret,
    /// It asked for a node with another number.
    #[error(
        "the connection was meant for another node: compare the nodes' addresses in both cluster.toml files"
    )]
    WrongNode,
    /// It says it is a node that the configuration does not have, or this very node.
    #[error(
        "the other node is not in this node's configuration: compare the node lists in both cluster.toml files"
    )]
    UnknownNode,
    /// A purpose this version does not know.
    #[error("the other node asked for something unknown")]
    UnknownPurpose,
    /// No such volume here, or not (yet) open.
    #[error("the volume is not open on the other node")]
    NoVolume,
    /// A refusal this version has no word for.
    #[error("refused for a reason this version does not know (code {0})")]
    Other(u8),
}

impl Refused {
    fn code(self) -> u8 {
        match self {
            Self::NotHoldfast => 1,
            Self::Version { .. } => 2,
            Self::Cluster => 3,
            Self::Secret => 4,
            Self::WrongNode => 5,
            Self::UnknownNode => 6,
            Self::UnknownPurpose => 7,
            Self::NoVolume => 8,
            Self::Other(code) => code,
        }
    }
    fn decode(code: u8, theirs: u16) -> Self {
        match code {
            1 => Self::NotHoldfast,
            2 => Self::Version { theirs },
            3 => Self::Cluster,
            4 => Self::Secret,
            5 => Self::WrongNode,
            6 => Self::UnknownNode,
            7 => Self::UnknownPurpose,
            8 => Self::NoVolume,
            code => Self::Other(code),
        }
    }
    /// Will trying again soon help? Only what heals by itself is retried quickly and logged quietly.
    pub fn passing(self) -> bool {
        self == Self::NoVolume
    }
}

/// What one connection is: the same on both ends once the handshake is through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Who dials.
    pub from: NodeId,
    /// Who is dialled.
    pub to: NodeId,
    /// What for.
    pub purpose: Purpose,
    /// Joins the connections that belong together (the two lanes of a volume).
    pub connection: u64,
    /// Random number of the dialling daemon's life.
    pub boot: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ask = 1,
    Answer = 2,
    Prove = 3,
    Accept = 4,
}

fn message(kind: Kind, refusal: u8, body: &[u8]) -> Vec<u8> {
    let mut m = Vec::with_capacity(PREFIX_BYTES + body.len());
    m.extend_from_slice(&MAGIC);
    m.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    m.push(kind as u8);
    m.push(refusal);
    m.extend_from_slice(&(body.len() as u32).to_le_bytes());
    m.extend_from_slice(body);
    m
}

/// Checks a prefix; the length of the body that follows.
fn prefix(p: &[u8], kind: Kind) -> Result<usize, Refused> {
    if p.len() != PREFIX_BYTES || p[..8] != MAGIC {
        return Err(Refused::NotHoldfast);
    }
    let version = u16::from_le_bytes([p[8], p[9]]);
    // A refusal is read before the version: it may say that the version is the trouble.
    if p[11] != 0 {
        return Err(Refused::decode(p[11], version));
    }
    if version != PROTOCOL_VERSION {
        return Err(Refused::Version { theirs: version });
    }
    let len = u32::from_le_bytes([p[12], p[13], p[14], p[15]]) as usize;
    if p[10] != kind as u8 || len > BODY_BYTES_MAX {
        return Err(Refused::NotHoldfast);
    }
    Ok(len)
}

fn encode_ask(ask: &Ask, cluster: ClusterId, nonce: [u8; NONCE_BYTES]) -> [u8; ASK_BYTES] {
    let mut b = [0; ASK_BYTES];
    let (code, volume) = ask.purpose.code();
    b[..16].copy_from_slice(&cluster.0);
    b[16] = ask.from.0;
    b[17] = ask.to.0;
    b[18] = code;
    b[24..32].copy_from_slice(&volume.to_le_bytes());
    b[32..40].copy_from_slice(&ask.connection.to_le_bytes());
    b[40..48].copy_from_slice(&ask.boot.to_le_bytes());
    b[48..80].copy_from_slice(&nonce);
    b
}

fn decode_ask(b: &[u8], cluster: ClusterId) -> Result<Ask, Refused> {
    if b.len() != ASK_BYTES {
        return Err(Refused::NotHoldfast);
    }
    if b[..16] != cluster.0 {
        return Err(Refused::Cluster);
    }
    let u64_at = |i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("eight bytes"));
    let purpose = Purpose::decode(b[18], u64_at(24)).ok_or(Refused::UnknownPurpose)?;
    Ok(Ask {
        from: NodeId(b[16]),
        to: NodeId(b[17]),
        purpose,
        connection: u64_at(32),
        boot: u64_at(40),
    })
}

/// What one step of a handshake asks its driver to do.
#[derive(Debug)]
pub enum Step {
    /// Send these bytes (if any), then read [`Handshake::want`] bytes and feed them.
    Continue(Vec<u8>),
    /// Send these bytes (if any); the connection is then ready and is what the `Ask` says.
    Done(Vec<u8>, Ask),
    /// Send these bytes if possible, then close.
    Refuse(Vec<u8>, Refused),
}

#[derive(Debug)]
enum State {
    /// Dialer: waiting for the answer.
    Answer { ask: Ask, sent: Vec<u8> },
    /// Dialer: waiting for the acceptance.
    Accept { ask: Ask },
    /// Listener: waiting for the question.
    Ask { nonce: [u8; NONCE_BYTES] },
    /// Listener: waiting for the proof.
    Prove {
        ask: Ask,
        asked: Vec<u8>,
        answered: Vec<u8>,
    },
    /// Over.
    Over,
}

/// One side of one handshake.
#[derive(Debug)]
pub struct Handshake {
    key: Key,
    cluster: ClusterId,
    me: NodeId,
    state: State,
    body: Option<usize>,
    got: Vec<u8>,
}

const DIALER: &[u8] = b"holdfast dialer proof";
const LISTENER: &[u8] = b"holdfast listener proof";

impl Handshake {
    /// The dialling side, and the first bytes to send.
    pub fn dial(
        key: Key,
        cluster: ClusterId,
        ask: Ask,
        nonce: [u8; NONCE_BYTES],
    ) -> (Self, Vec<u8>) {
        let sent = message(Kind::Ask, 0, &encode_ask(&ask, cluster, nonce));
        let state = State::Answer {
            ask,
            sent: sent.clone(),
        };
        (
            Self {
                key,
                cluster,
                me: ask.from,
                state,
                body: None,
                got: Vec::new(),
            },
            sent,
        )
    }

    /// The listening side.
    pub fn listen(key: Key, cluster: ClusterId, me: NodeId, nonce: [u8; NONCE_BYTES]) -> Self {
        Self {
            key,
            cluster,
            me,
            state: State::Ask { nonce },
            body: None,
            got: Vec::new(),
        }
    }

    /// How many bytes the next [`Handshake::feed`] takes. Zero once it is over.
    pub fn want(&self) -> usize {
        match self.state {
            State::Over => 0,
            _ => self.body.unwrap_or(PREFIX_BYTES),
        }
    }

    /// Takes exactly [`Handshake::want`] bytes. `known` judges what a dialer asks for, after its
    /// cluster is known and before its proof.
    pub fn feed(&mut self, bytes: &[u8], known: impl FnOnce(&Ask) -> Result<(), Refused>) -> Step {
        match self.step(bytes, known) {
            Ok(step) => step,
            Err(why) => {
                let kind = match self.state {
                    State::Answer { .. } => Kind::Prove,
                    State::Ask { .. } => Kind::Answer,
                    _ => Kind::Accept,
                };
                self.state = State::Over;
                Step::Refuse(message(kind, why.code(), &[]), why)
            }
        }
    }

    fn step(
        &mut self,
        bytes: &[u8],
        known: impl FnOnce(&Ask) -> Result<(), Refused>,
    ) -> Result<Step, Refused> {
        let kind = match self.state {
            State::Answer { .. } => Kind::Answer,
            State::Accept { .. } => Kind::Accept,
            State::Ask { .. } => Kind::Ask,
            State::Prove { .. } => Kind::Prove,
            State::Over => return Err(Refused::NotHoldfast),
        };
        if bytes.len() != self.want() {
            return Err(Refused::NotHoldfast);
        }
        if self.body.is_none() {
            let len = prefix(bytes, kind)?;
            self.got = bytes.to_vec();
            if len > 0 {
                self.body = Some(len);
                return Ok(Step::Continue(Vec::new()));
            }
        } else {
            self.body = None;
            self.got.extend_from_slice(bytes);
        }
        let whole = std::mem::take(&mut self.got);
        self.complete(&whole, known)
    }

    /// A whole message has arrived.
    fn complete(
        &mut self,
        whole: &[u8],
        known: impl FnOnce(&Ask) -> Result<(), Refused>,
    ) -> Result<Step, Refused> {
        let body = &whole[PREFIX_BYTES..];
        match &self.state {
            State::Ask { nonce } => {
                let nonce = *nonce;
                let ask = decode_ask(body, self.cluster)?;
                if ask.to != self.me {
                    return Err(Refused::WrongNode);
                }
                known(&ask)?;
                let mut answer = [0; ANSWER_BYTES];
                answer[..32].copy_from_slice(&nonce);
                let proof = self
                    .key
                    .proof(LISTENER, &[whole, &nonce])
                    .finalize()
                    .into_bytes();
                answer[32..].copy_from_slice(&proof);
                let answered = message(Kind::Answer, 0, &answer);
                self.state = State::Prove {
                    ask,
                    asked: whole.to_vec(),
                    answered: answered.clone(),
                };
                Ok(Step::Continue(answered))
            }
            State::Answer { ask, sent } => {
                let ask = *ask;
                if body.len() != ANSWER_BYTES {
                    return Err(Refused::NotHoldfast);
                }
                let (nonce, proof) = body.split_at(NONCE_BYTES);
                self.key
                    .proof(LISTENER, &[sent, nonce])
                    .verify_slice(proof)
                    .map_err(|_| Refused::Secret)?;
                let mine = self
                    .key
                    .proof(DIALER, &[sent, whole])
                    .finalize()
                    .into_bytes();
                self.state = State::Accept { ask };
                Ok(Step::Continue(message(Kind::Prove, 0, &mine)))
            }
            State::Prove {
                ask,
                asked,
                answered,
            } => {
                let ask = *ask;
                if body.len() != PROVE_BYTES {
                    return Err(Refused::NotHoldfast);
                }
                self.key
                    .proof(DIALER, &[asked, answered])
                    .verify_slice(body)
                    .map_err(|_| Refused::Secret)?;
                self.state = State::Over;
                Ok(Step::Done(message(Kind::Accept, 0, &[]), ask))
            }
            State::Accept { ask } => {
                let ask = *ask;
                self.state = State::Over;
                Ok(Step::Done(Vec::new(), ask))
            }
            State::Over => Err(Refused::NotHoldfast),
        }
    }
}

#[cfg(test)]
mod tests;
