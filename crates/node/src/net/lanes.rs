//! The two lanes of each volume to each peer: dialled, accepted and authenticated on one small
//! thread, then handed over, both at once, to the volume's loop, which knows no handshake.
//!
//! Invariants
//! - a volume's loop gets only pairs of one connection id, both authenticated for its volume and peer;
//! - after a pair was handed over, nothing is dialled for that volume and peer until the loop
//!   says [`Command::Lost`] with the same connection id;
//! - while the node is isolated (fault injection) nothing is dialled and nothing accepted.

use super::connect::{self, ConnectError, Credentials};
use super::handshake::{Ask, Purpose, Refused};
use super::{Backoff, HANDSHAKE_MS_MAX, HANDSHAKES_MAX, Troubles};
use crate::clock;
use holdfast_types::{NodeId, VolumeId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, LocalSet};

/// Both lanes to a peer, authenticated.
#[derive(Debug)]
pub struct Pair {
    /// The other node.
    pub peer: NodeId,
    /// Names this pair in [`Command::Lost`].
    pub connection: u64,
    /// The write lane.
    pub write: std::net::TcpStream,
    /// The bulk lane.
    pub bulk: std::net::TcpStream,
}

/// Where a volume's pairs go. False: the volume's loop is gone.
pub type Sink = Box<dyn Fn(Pair) -> bool + Send>;

/// What the daemon tells the lanes' thread.
pub enum Command {
    /// Connect this volume to these peers from now on, and to no others.
    Serve {
        /// Which volume.
        volume: VolumeId,
        /// For log and status.
        name: String,
        /// The other data nodes and where their lanes listen.
        peers: Vec<(NodeId, String, SocketAddr)>,
        /// Where its pairs go.
        sink: Sink,
    },
    /// The volume is closed.
    Forget {
        /// Which volume.
        volume: VolumeId,
    },
    /// The loop closed this pair: connect anew.
    Lost {
        /// Of this volume.
        volume: VolumeId,
        /// To this peer.
        peer: NodeId,
        /// As it was handed over.
        connection: u64,
    },
    /// Fault injection: behave as if the network were gone, or back.
    Isolate(bool),
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serve { volume, .. } => write!(f, "Serve({volume})"),
            Self::Forget { volume } => write!(f, "Forget({volume})"),
            Self::Lost {
                volume,
                peer,
                connection,
            } => write!(f, "Lost({volume}, {peer}, {connection:x})"),
            Self::Isolate(on) => write!(f, "Isolate({on})"),
        }
    }
}

/// The lanes' thread, as others hold it. The thread ends when the last clone is gone.
#[derive(Clone, Debug)]
pub struct Lanes {
    tx: mpsc::UnboundedSender<Command>,
}

impl Lanes {
    /// Listens and starts the thread. `listen` is this node's data address; `bind` the address to dial from.
    pub fn start(
        cred: Credentials,
        listen: SocketAddr,
        bind: Option<IpAddr>,
        troubles: Troubles,
    ) -> std::io::Result<(Self, SocketAddr)> {
        let listener = std::net::TcpListener::bind(listen).map_err(|e| {
            std::io::Error::new(
                e.kind(),
                format!("cannot listen for peer lanes on {listen}: {e}"),
            )
        })?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (tx, rx) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        crate::vital::spawn("lanes", move || {
            let shared = Rc::new(Shared {
                cred,
                bind,
                troubles,
                volumes: RefCell::new(BTreeMap::new()),
                half: RefCell::new(BTreeMap::new()),
                isolated: Cell::new(false),
                handshakes: Cell::new(0),
            });
            LocalSet::new().block_on(&runtime, run(shared, listener, rx));
        })?;
        Ok((Self { tx }, address))
    }

    /// Tells the thread something. Nothing happens after its end.
    pub fn tell(&self, command: Command) {
        // The thread ends only together with the daemon.
        let _ = self.tx.send(command);
    }
}

struct PeerEntry {
    name: String,
    address: SocketAddr,
    /// The pair the loop has, as far as known here.
    live: Option<u64>,
    dialling: Option<AbortHandle>,
}

struct VolumeEntry {
    name: String,
    peers: BTreeMap<NodeId, PeerEntry>,
    sink: Sink,
}

/// First lane of an accepted pair, waiting for the second.
struct Half {
    purpose: Purpose,
    stream: TcpStream,
}

struct Shared {
    cred: Credentials,
    bind: Option<IpAddr>,
    troubles: Troubles,
    volumes: RefCell<BTreeMap<VolumeId, VolumeEntry>>,
    half: RefCell<BTreeMap<(NodeId, VolumeId, u64), Half>>,
    isolated: Cell<bool>,
    handshakes: Cell<usize>,
}

async fn run(
    shared: Rc<Shared>,
    listener: std::net::TcpListener,
    mut rx: mpsc::UnboundedReceiver<Command>,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(e) => {
            tracing::error!("peer lanes: {e}");
            return;
        }
    };
    loop {
        tokio::select! {
            command = rx.recv() => match command {
                Some(command) => handle(&shared, command),
                None => return,
            },
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    if shared.isolated.get() || shared.handshakes.get() >= HANDSHAKES_MAX {
                        continue;
                    }
                    shared.handshakes.set(shared.handshakes.get() + 1);
                    let shared = shared.clone();
                    tokio::task::spawn_local(async move {
                        accepted_one(&shared, stream, from).await;
                        shared.handshakes.set(shared.handshakes.get() - 1);
                    });
                }
                Err(e) => {
                    // Out of descriptors, most likely: it passes, and must not spin meanwhile.
                    tracing::warn!("peer lanes: cannot accept: {e}");
                    tokio::time::sleep(Duration::from_millis(super::BACKOFF_MS_MIN)).await;
                }
            },
        }
    }
}

fn handle(shared: &Rc<Shared>, command: Command) {
    match command {
        Command::Serve {
            volume,
            name,
            peers,
            sink,
        } => {
            // Served anew when who holds its replicas has changed: who stays keeps what it has.
            let mut before = shared
                .volumes
                .borrow_mut()
                .remove(&volume)
                .map_or_else(BTreeMap::new, |v| v.peers);
            let peers: BTreeMap<NodeId, PeerEntry> = peers
                .into_iter()
                .map(|(id, name, address)| {
                    let fresh = PeerEntry {
                        name,
                        address,
                        live: None,
                        dialling: None,
                    };
                    (id, before.remove(&id).unwrap_or(fresh))
                })
                .collect();
            for gone in before.into_values() {
                shared.troubles.clear(&trouble_key(&name, &gone.name));
                if let Some(task) = gone.dialling {
                    task.abort();
                }
            }
            let ids: Vec<NodeId> = peers.keys().copied().collect();
            shared
                .volumes
                .borrow_mut()
                .insert(volume, VolumeEntry { name, peers, sink });
            for peer in ids {
                dial(shared, volume, peer);
            }
        }
        Command::Forget { volume } => {
            if let Some(entry) = shared.volumes.borrow_mut().remove(&volume) {
                entry
                    .peers
                    .into_values()
                    .filter_map(|p| p.dialling)
                    .for_each(|task| task.abort());
            }
        }
        Command::Lost {
            volume,
            peer,
            connection,
        } => {
            if let Some(entry) = shared
                .volumes
                .borrow_mut()
                .get_mut(&volume)
                .and_then(|v| v.peers.get_mut(&peer))
            {
                if entry.live != Some(connection) {
                    return;
                }
                entry.live = None;
            }
            dial(shared, volume, peer);
        }
        Command::Isolate(on) => {
            shared.isolated.set(on);
            shared.half.borrow_mut().clear();
        }
    }
}

/// Starts to dial `peer` for `volume`, if it is this node's part and nobody does yet.
fn dial(shared: &Rc<Shared>, volume: VolumeId, peer: NodeId) {
    if shared.cred.me > peer {
        return;
    }
    let mut volumes = shared.volumes.borrow_mut();
    let Some(v) = volumes.get_mut(&volume) else {
        return;
    };
    let volume_name = v.name.clone();
    let Some(entry) = v.peers.get_mut(&peer) else {
        return;
    };
    if entry.live.is_some()
        || entry
            .dialling
            .as_ref()
            .is_some_and(|task| !task.is_finished())
    {
        return;
    }
    let who = trouble_key(&volume_name, &entry.name);
    let address = entry.address;
    let shared = shared.clone();
    let task = tokio::task::spawn_local(async move {
        let mut backoff = Backoff::new();
        loop {
            if !shared.isolated.get() {
                match dial_pair(&shared, address, volume, peer).await {
                    Ok(pair) => {
                        shared.troubles.clear(&who);
                        hand_over(&shared, volume, pair);
                        return;
                    }
                    Err(e) => report(&shared.troubles, &who, &e),
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
    });
    entry.dialling = Some(task.abort_handle());
}

/// The key under which trouble with the lanes of a volume to a peer is kept.
pub fn trouble_key(volume: &str, peer: &str) -> String {
    format!("{volume}/{peer}")
}

fn report(troubles: &Troubles, who: &str, e: &ConnectError) {
    if troubles.set(who, &e.to_string()) {
        match e {
            ConnectError::Refused(why) if !why.passing() => {
                tracing::warn!("lanes {who}: refused: {why}")
            }
            _ => tracing::info!("lanes {who}: {e}"),
        }
    }
}

async fn dial_pair(
    shared: &Shared,
    to: SocketAddr,
    volume: VolumeId,
    peer: NodeId,
) -> Result<Pair, ConnectError> {
    let connection = clock::random_u64();
    let ask = Ask {
        from: shared.cred.me,
        to: peer,
        purpose: Purpose::WriteLane(volume),
        connection,
        boot: shared.cred.boot,
    };
    let write = connect::dial(&shared.cred, shared.bind, to, ask).await?;
    let ask = Ask {
        purpose: Purpose::BulkLane(volume),
        ..ask
    };
    let bulk = connect::dial(&shared.cred, shared.bind, to, ask).await?;
    Ok(Pair {
        peer,
        connection,
        write: write.into_std()?,
        bulk: bulk.into_std()?,
    })
}

fn hand_over(shared: &Rc<Shared>, volume: VolumeId, pair: Pair) {
    let mut volumes = shared.volumes.borrow_mut();
    let Some(v) = volumes.get_mut(&volume) else {
        return;
    };
    let Some(entry) = v.peers.get_mut(&pair.peer) else {
        return;
    };
    entry.live = Some(pair.connection);
    entry.dialling = None;
    if !(v.sink)(pair) {
        volumes.remove(&volume);
    }
}

async fn accepted_one(shared: &Rc<Shared>, mut stream: TcpStream, from: SocketAddr) {
    let known = |ask: &Ask| {
        let volume = match ask.purpose {
            Purpose::WriteLane(v) | Purpose::BulkLane(v) => v,
            Purpose::Control => return Err(Refused::UnknownPurpose),
        };
        let volumes = shared.volumes.borrow();
        let v = volumes.get(&volume).ok_or(Refused::NoVolume)?;
        if ask.from < shared.cred.me && v.peers.contains_key(&ask.from) {
            Ok(())
        } else {
            Err(Refused::UnknownNode)
        }
    };
    let ask = match connect::accept(&shared.cred, &mut stream, known).await {
        Ok(ask) => ask,
        Err(ConnectError::Refused(why)) => {
            if !why.passing()
                && shared
                    .troubles
                    .set(&super::source_key(from.ip()), &why.to_string())
            {
                tracing::warn!("lanes: connection from {from} refused: {why}");
            }
            return;
        }
        Err(e) => {
            tracing::debug!("lanes: connection from {from}: {e}");
            return;
        }
    };
    shared.troubles.clear(&super::source_key(from.ip()));
    let (Purpose::WriteLane(volume) | Purpose::BulkLane(volume)) = ask.purpose else {
        return;
    };
    let key = (ask.from, volume, ask.connection);
    let other = shared.half.borrow_mut().remove(&key);
    let Some(other) = other else {
        shared.half.borrow_mut().insert(
            key,
            Half {
                purpose: ask.purpose,
                stream,
            },
        );
        let shared = shared.clone();
        tokio::task::spawn_local(async move {
            // The second lane comes within one handshake, or never.
            tokio::time::sleep(Duration::from_millis(2 * HANDSHAKE_MS_MAX)).await;
            shared.half.borrow_mut().remove(&key);
        });
        return;
    };
    if other.purpose == ask.purpose {
        tracing::warn!(
            "lanes: {} opened the same lane of volume {volume} twice; both are closed",
            ask.from
        );
        return;
    }
    let (write, bulk) = match ask.purpose {
        Purpose::WriteLane(_) => (stream, other.stream),
        _ => (other.stream, stream),
    };
    match (write.into_std(), bulk.into_std()) {
        (Ok(write), Ok(bulk)) => {
            hand_over(
                shared,
                volume,
                Pair {
                    peer: ask.from,
                    connection: ask.connection,
                    write,
                    bulk,
                },
            );
        }
        (Err(e), _) | (_, Err(e)) => tracing::warn!("lanes: {e}"),
    }
}

#[cfg(test)]
mod tests;
