//! Makes one connection between two nodes: TCP, options, handshake.

use super::handshake::{Ask, ClusterId, Handshake, Key, Refused, Step};
use super::{CONNECT_MS_MAX, HANDSHAKE_MS_MAX, TCP_USER_TIMEOUT_MS};
use crate::clock;
use holdfast_types::NodeId;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The network or the other end's kernel.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// No answer in time.
    #[error("no answer within {0} ms")]
    Timeout(u64),
    /// One of the two sides does not want it.
    #[error("{0}")]
    Refused(Refused),
}

/// What this node shows to every other.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// This node.
    pub me: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// The cluster's key.
    pub key: Key,
    /// Random number of this daemon's life.
    pub boot: u64,
}

/// Options of every connection between nodes: no delay, and an end in bounded time.
fn set_options(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    set_user_timeout(stream, TCP_USER_TIMEOUT_MS)
}

fn set_user_timeout(stream: &TcpStream, ms: u32) -> std::io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(&stream.as_fd(), sockopt::TcpUserTimeout, &ms).map_err(|e| {
        std::io::Error::other(format!(
            "TCP_USER_TIMEOUT on socket {}: {e}",
            stream.as_raw_fd()
        ))
    })
}

/// Dials a node from this node's own address and proves who is calling.
pub async fn dial(
    cred: &Credentials,
    from: Option<IpAddr>,
    to: SocketAddr,
    ask: Ask,
) -> Result<TcpStream, ConnectError> {
    let connect = async {
        let socket = if to.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        if let Some(from) = from {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        socket.connect(to).await
    };
    let mut stream = timeout(Duration::from_millis(CONNECT_MS_MAX), connect)
        .await
        .map_err(|_| ConnectError::Timeout(CONNECT_MS_MAX))??;
    set_options(&stream)?;
    let (shake, first) =
        Handshake::dial(cred.key.clone(), cred.cluster, ask, clock::random_bytes());
    let run = async {
        stream.write_all(&first).await?;
        drive(&mut stream, shake, |_| Ok(())).await
    };
    timeout(Duration::from_millis(HANDSHAKE_MS_MAX), run)
        .await
        .map_err(|_| ConnectError::Timeout(HANDSHAKE_MS_MAX))??;
    Ok(stream)
}

/// Hears who is calling; `known` judges what the caller asks for.
pub async fn accept(
    cred: &Credentials,
    stream: &mut TcpStream,
    known: impl FnOnce(&Ask) -> Result<(), Refused>,
) -> Result<Ask, ConnectError> {
    set_options(stream)?;
    let shake = Handshake::listen(
        cred.key.clone(),
        cred.cluster,
        cred.me,
        clock::random_bytes(),
    );
    timeout(
        Duration::from_millis(HANDSHAKE_MS_MAX),
        drive(stream, shake, known),
    )
    .await
    .map_err(|_| ConnectError::Timeout(HANDSHAKE_MS_MAX))?
}

async fn drive(
    stream: &mut TcpStream,
    mut shake: Handshake,
    known: impl FnOnce(&Ask) -> Result<(), Refused>,
) -> Result<Ask, ConnectError> {
    let mut known = Some(known);
    loop {
        let mut bytes = vec![0; shake.want()];
        stream.read_exact(&mut bytes).await?;
        let step = shake.feed(&bytes, |ask| {
            known
                .take()
                .map_or(Err(Refused::NotHoldfast), |known| known(ask))
        });
        match step {
            Step::Continue(out) => stream.write_all(&out).await?,
            Step::Done(out, ask) => {
                stream.write_all(&out).await?;
                return Ok(ask);
            }
            Step::Refuse(out, why) => {
                // The other side's log line is worth a try, no more: it may be gone.
                if stream.write_all(&out).await.is_ok() {
                    let _ = stream.shutdown().await;
                }
                return Err(ConnectError::Refused(why));
            }
        }
    }
}
