//! The control connections: one to every other node, dialled by the lower number, carrying
//! messages of one type both ways.
//!
//! Nothing is resent and nothing waits for a connection: what cannot be sent now is dropped, as the
//! control plane's contract wants it. A peer that does not drain its connection loses it.
//!
//! Invariants
//! - at most one connection per peer is live; a newer one replaces it, with `Down` before `Up`;
//! - while the node is isolated (fault injection) bytes are neither sent nor believed, and at its
//!   end every connection is closed, so that no old message comes out late.

use super::connect::{self, ConnectError, Credentials};
use super::handshake::{Ask, Purpose, Refused};
use super::{Backoff, HANDSHAKES_MAX, Troubles, framing};
use crate::clock;
use holdfast_types::NodeId;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// Messages waiting for one peer's socket at the most; a peer that is further behind is cut off.
pub const OUTBOX_MESSAGES_MAX: usize = 1024;
/// Messages waiting for the control loop at the most; the sockets wait then.
pub const INBOX_MESSAGES_MAX: usize = 256;

/// Another node.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its number.
    pub id: NodeId,
    /// Its name, for log and status.
    pub name: String,
    /// Where its control plane listens.
    pub address: SocketAddr,
}

/// What comes from the mesh.
#[derive(Debug)]
pub enum MeshEvent<M> {
    /// A connection to this node is up; `boot` changes when its daemon starts anew.
    Up {
        /// Which node.
        node: NodeId,
        /// Random number of its daemon's life (zero when this side dialled and does not know it).
        boot: u64,
    },
    /// It is gone.
    Down {
        /// Which node.
        node: NodeId,
    },
    /// A message.
    Message {
        /// From whom, authenticated.
        from: NodeId,
        /// What.
        message: M,
    },
}

#[derive(Debug)]
struct Live {
    number: u64,
    outbox: mpsc::Sender<Vec<u8>>,
    /// Dropped to end the connection's tasks.
    _end: watch::Sender<()>,
}

#[derive(Debug)]
struct Shared<M> {
    cred: Credentials,
    bind: Option<IpAddr>,
    peers: Vec<Peer>,
    troubles: Troubles,
    live: Mutex<BTreeMap<NodeId, Live>>,
    events: mpsc::Sender<MeshEvent<M>>,
    isolated: watch::Sender<bool>,
    handshakes: AtomicUsize,
}

/// The mesh, as its owner holds it.
#[derive(Debug)]
pub struct Mesh<M>(Arc<Shared<M>>);

impl<M> Clone for Mesh<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Serialize + DeserializeOwned + Send + 'static> Mesh<M> {
    /// Listens and dials, on the runtime of the caller.
    pub fn start(
        cred: Credentials,
        listener: std::net::TcpListener,
        bind: Option<IpAddr>,
        peers: Vec<Peer>,
        troubles: Troubles,
    ) -> std::io::Result<(Self, mpsc::Receiver<MeshEvent<M>>)> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let (events, rx) = mpsc::channel(INBOX_MESSAGES_MAX);
        let shared = Arc::new(Shared {
            cred,
            bind,
            peers,
            troubles,
            live: Mutex::new(BTreeMap::new()),
            events,
            isolated: watch::Sender::new(false),
            handshakes: AtomicUsize::new(0),
        });
        tokio::spawn(listen(shared.clone(), listener));
        for peer in shared.peers.iter().filter(|p| p.id > shared.cred.me) {
            tokio::spawn(keep_dialling(shared.clone(), peer.clone()));
        }
        Ok((Self(shared), rx))
    }

    /// Sends a message if the peer is connected. False: it was dropped.
    pub fn send(&self, to: NodeId, message: &M) -> bool {
        if *self.0.isolated.borrow() {
            return false;
        }
        let mut live = self.0.live();
        let Some(connection) = live.get(&to) else {
            return false;
        };
        let bytes = match framing::encode(message) {
            Ok(bytes) => bytes,
            Err(e) => {
                tracing::error!("message to {to} cannot be sent: {e}");
                return false;
            }
        };
        if connection.outbox.try_send(bytes).is_err() {
            tracing::warn!(
                "control connection to {to}: {OUTBOX_MESSAGES_MAX} messages behind, closed"
            );
            live.remove(&to);
            return false;
        }
        true
    }

    /// Is there a connection to that node?
    pub fn connected(&self, node: NodeId) -> bool {
        !*self.0.isolated.borrow() && self.0.live().contains_key(&node)
    }

    /// Fault injection: behave as if the network were gone, or back.
    pub fn isolate(&self, on: bool) {
        self.0.isolated.send_replace(on);
        if !on {
            self.0.live().clear();
        }
    }
}

impl<M> Shared<M> {
    fn live(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Live>> {
        self.live
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
    fn name(&self, id: NodeId) -> &str {
        self.peers
            .iter()
            .find(|p| p.id == id)
            .map_or("?", |p| &p.name)
    }
}

/// The key under which trouble with the control connection to a peer is kept.
pub fn trouble_key(peer: &str) -> String {
    format!("control/{peer}")
}

async fn keep_dialling<M: Serialize + DeserializeOwned + Send + 'static>(
    shared: Arc<Shared<M>>,
    peer: Peer,
) {
    let mut backoff = Backoff::new();
    let who = trouble_key(&peer.name);
    while !shared.events.is_closed() {
        if !*shared.isolated.borrow() {
            let ask = Ask {
                from: shared.cred.me,
                to: peer.id,
                purpose: Purpose::Control,
                connection: clock::random_u64(),
                boot: shared.cred.boot,
            };
            match connect::dial(&shared.cred, shared.bind, peer.address, ask).await {
                Ok(stream) => {
                    shared.troubles.clear(&who);
                    backoff.reset();
                    serve(&shared, peer.id, 0, stream).await;
                }
                Err(e) => {
                    if shared.troubles.set(&who, &e.to_string()) {
                        match &e {
                            ConnectError::Refused(_) => {
                                tracing::warn!("control connection to {} refused: {e}", peer.name);
                            }
                            _ => tracing::info!("control connection to {}: {e}", peer.name),
                        }
                    }
                }
            }
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn listen<M: Serialize + DeserializeOwned + Send + 'static>(
    shared: Arc<Shared<M>>,
    listener: TcpListener,
) {
    loop {
        let (mut stream, from) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!("control connections: cannot accept: {e}");
                    tokio::time::sleep(std::time::Duration::from_millis(super::BACKOFF_MS_MIN)).await;
                    continue;
                }
            },
            () = shared.events.closed() => return,
        };
        if *shared.isolated.borrow() || shared.handshakes.load(Ordering::Relaxed) >= HANDSHAKES_MAX
        {
            continue;
        }
        let shared = shared.clone();
        shared.handshakes.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let known = |ask: &Ask| match ask.purpose {
                Purpose::Control
                    if ask.from < shared.cred.me
                        && shared.peers.iter().any(|p| p.id == ask.from) =>
                {
                    Ok(())
                }
                Purpose::Control => Err(Refused::UnknownNode),
                _ => Err(Refused::UnknownPurpose),
            };
            let result = connect::accept(&shared.cred, &mut stream, known).await;
            shared.handshakes.fetch_sub(1, Ordering::Relaxed);
            let source = super::source_key(from.ip());
            match result {
                Ok(ask) => {
                    shared.troubles.clear(&source);
                    shared.troubles.clear(&trouble_key(shared.name(ask.from)));
                    serve(&shared, ask.from, ask.boot, stream).await;
                }
                Err(ConnectError::Refused(why)) => {
                    if shared.troubles.set(&source, &why.to_string()) {
                        tracing::warn!("control connection from {from} refused: {why}");
                    }
                }
                Err(e) => tracing::debug!("control connection from {from}: {e}"),
            }
        });
    }
}

/// Carries messages both ways until the connection ends.
async fn serve<M: Serialize + DeserializeOwned + Send + 'static>(
    shared: &Arc<Shared<M>>,
    peer: NodeId,
    boot: u64,
    stream: TcpStream,
) {
    let (outbox, mut outgoing) = mpsc::channel::<Vec<u8>>(OUTBOX_MESSAGES_MAX);
    let (end, mut ended) = watch::channel(());
    let number = clock::random_u64();
    let replaced = shared
        .live()
        .insert(
            peer,
            Live {
                number,
                outbox,
                _end: end,
            },
        )
        .is_some();
    if replaced {
        let _ = shared.events.send(MeshEvent::Down { node: peer }).await;
    }
    if shared
        .events
        .send(MeshEvent::Up { node: peer, boot })
        .await
        .is_err()
    {
        return;
    }
    tracing::debug!("control connection to {} is up", shared.name(peer));
    let (read, mut write) = stream.into_split();
    let mut read = tokio::io::BufReader::new(read);
    let reader = async {
        loop {
            match framing::read::<M>(&mut read).await {
                Ok(Some(_)) if *shared.isolated.borrow() => {}
                Ok(Some(message)) => {
                    if shared
                        .events
                        .send(MeshEvent::Message {
                            from: peer,
                            message,
                        })
                        .await
                        .is_err()
                    {
                        return "the daemon stops".to_owned();
                    }
                }
                Ok(None) => return "the peer closed it".to_owned(),
                Err(e) => return e.to_string(),
            }
        }
    };
    let writer = async {
        while let Some(mut bytes) = outgoing.recv().await {
            // What else waits goes with it in one system call.
            while bytes.len() < 64 << 10 {
                match outgoing.try_recv() {
                    Ok(more) => bytes.extend_from_slice(&more),
                    Err(_) => break,
                }
            }
            if *shared.isolated.borrow() {
                continue;
            }
            if let Err(e) = write.write_all(&bytes).await {
                return e.to_string();
            }
        }
        "closed".to_owned()
    };
    let why = tokio::select! {
        why = reader => why,
        why = writer => why,
        _ = ended.changed() => "replaced or closed".to_owned(),
    };
    tracing::debug!("control connection to {} ended: {why}", shared.name(peer));
    let mine = {
        let mut live = shared.live();
        let mine = live.get(&peer).is_none_or(|l| l.number == number);
        if mine {
            live.remove(&peer);
        }
        mine
    };
    if mine {
        let _ = shared.events.send(MeshEvent::Down { node: peer }).await;
    }
}

#[cfg(test)]
mod tests;
