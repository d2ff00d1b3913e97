//! NBD clients in the loop: accepting, reading, answering, letting go.

use super::engine::{Engine, Listener, TAG_ACCEPT, TAG_CLIENT_RECV, TAG_CLIENT_SEND};
use super::{ACCEPT_RETRY_MS, CLIENTS_MAX};
use crate::clock;
use bytes::Bytes;
use holdfast_blockdev::frontend::nbd::{Cookie, NbdError, Session, Target};
use holdfast_replicator::RequestError;
use holdfast_uring::{BufPool, Completion, Done, Op, token};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

/// One connection.
#[derive(Debug)]
pub(super) struct Client {
    session: Session<BufPool>,
    socket: OwnedFd,
    /// A receive is under way, into this part of its buffer, whole or not.
    receiving: Option<(Range<usize>, bool)>,
    sending: bool,
    /// It is read no more; closed when its answers are out.
    leaving: bool,
}

impl Client {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Engine {
    pub(super) fn listen(&mut self, sockets: Vec<OwnedFd>) {
        self.listeners
            .extend(sockets.into_iter().map(|socket| Listener {
                socket,
                armed: false,
            }));
        self.arm_listeners();
    }

    fn arm_listeners(&mut self) {
        let mut wanted = Vec::new();
        for listener in &mut self.listeners {
            if !listener.armed {
                listener.armed = true;
                wanted.push(listener.socket.as_raw_fd());
            }
        }
        for fd in wanted {
            self.start(
                Op::Accept {
                    fd,
                    multishot: true,
                },
                token(TAG_ACCEPT, fd as u64),
            );
        }
    }

    pub(super) fn unlisten(&mut self) {
        for listener in std::mem::take(&mut self.listeners) {
            self.ring.cancel_fd(listener.socket.as_raw_fd());
            let _ = shutdown(listener.socket.as_raw_fd(), Shutdown::Both);
            self.graveyard.push(listener.socket);
        }
        let ids: Vec<u64> = self.clients.keys().copied().collect();
        for id in ids {
            self.close_client(id, "the volume is closed on this node");
        }
    }

    pub(super) fn accepted(&mut self, low: u64, completion: Completion) {
        match (completion.result, completion.done) {
            (Ok(_), Done::Fd(socket)) => self.new_client(socket),
            (Ok(_), _) => {}
            (Err(e), _) => match e.raw_os_error() {
                Some(libc::ECANCELED | libc::EBADF | libc::EINVAL) => return,
                _ => {
                    tracing::warn!("volume {}: cannot accept NBD clients: {e}", self.o.name);
                    self.accept_at = Some(clock::now().plus_ms(ACCEPT_RETRY_MS));
                }
            },
        }
        if !completion.more
            && let Some(listener) = self
                .listeners
                .iter_mut()
                .find(|l| l.socket.as_raw_fd() as u64 == low)
        {
            listener.armed = false;
            if self.accept_at.is_none() {
                self.arm_listeners();
            }
        }
    }

    /// Accepts again after a pause, when it is over.
    pub(super) fn accept_again(&mut self) {
        if self.accept_at.is_some_and(|at| at <= clock::now()) {
            self.accept_at = None;
            self.arm_listeners();
        }
    }

    fn new_client(&mut self, socket: OwnedFd) {
        if !self.serving || self.clients.len() >= CLIENTS_MAX {
            // Dropping it closes it: clients take that for "not here" and try elsewhere or later.
            tracing::debug!("volume {}: NBD client refused", self.o.name);
            return;
        }
        // On a unix socket there is nothing to set.
        let _ = setsockopt(&socket, sockopt::TcpNoDelay, &true);
        let session = Session::new(self.exports.clone(), self.o.pool.clone());
        let id = self.next_client;
        self.next_client += 1;
        self.clients.insert(
            id,
            Client {
                session,
                socket,
                receiving: None,
                sending: false,
                leaving: false,
            },
        );
        self.touched.insert(id);
    }

    pub(super) fn client_received(&mut self, id: u64, completion: Completion) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let Some((range, whole)) = client.receiving.take() else {
            return;
        };
        self.touched.insert(id);
        let received = match (completion.result, completion.done) {
            (Ok(n), Done::Buf(buf)) => client
                .session
                .received(Target { buf, range, whole }, n as usize)
                .map_err(|e| e.to_string()),
            (Err(e), _) => Err(e.to_string()),
            (Ok(_), _) => Err("a receive came back without its buffer".to_owned()),
        };
        // What came is handed on when the client is looked at, at the end of this pass.
        if let Err(why) = received {
            self.close_client(id, &why);
        }
    }

    pub(super) fn client_sent(&mut self, id: u64, result: io::Result<u32>) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.sending = false;
        self.touched.insert(id);
        if let Err(e) = result {
            self.close_client(id, &e.to_string());
        }
    }

    pub(super) fn answer_client(
        &mut self,
        id: u64,
        cookie: Cookie,
        result: Result<Bytes, RequestError>,
    ) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.session.reply(
            cookie,
            result.map_err(|e| match e {
                RequestError::Io => NbdError::Io,
                RequestError::Range => NbdError::Invalid,
                RequestError::NotPrimary => NbdError::Shutdown,
            }),
        );
        self.touched.insert(id);
    }

    /// The replica serves no more: answers still leave, then each connection is closed.
    pub(super) fn let_clients_go(&mut self) {
        for (&id, client) in &mut self.clients {
            client.leaving = true;
            self.touched.insert(id);
        }
    }

    /// Whatever the touched clients need: requests that limits held back, sends, reads, an end.
    pub(super) fn look_at_clients(&mut self) {
        while let Some(id) = self.touched.pop_first() {
            let throttled = self.throttled();
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            let mut requests = Vec::new();
            if !client.leaving
                && !throttled
                && let Err(why) = drain(&mut client.session, &mut requests)
            {
                self.close_client(id, &why);
                continue;
            }
            let fd = client.fd();
            let mut data = Vec::new();
            if !client.sending && client.session.take_output(&mut data) {
                client.sending = true;
            }
            let quiet = !client.sending && client.session.outstanding() == 0 && requests.is_empty();
            let over = quiet && (client.leaving || client.session.finished());
            let target = if client.receiving.is_none() && !client.leaving && !throttled {
                client.session.take_target()
            } else {
                None
            };
            client.receiving = target
                .as_ref()
                .map(|t| (t.range.clone(), t.whole))
                .or(client.receiving.take());
            for (cookie, op) in requests {
                self.request_of_client(id, cookie, op);
            }
            let sent =
                data.is_empty() || self.start(Op::Send { fd, data }, token(TAG_CLIENT_SEND, id));
            let reading = target.is_none_or(|t| {
                let op = Op::Recv {
                    fd,
                    buf: t.buf,
                    range: t.range,
                    wait_all: t.whole,
                };
                self.start(op, token(TAG_CLIENT_RECV, id))
            });
            if over {
                self.close_client(id, "done");
            } else if !sent || !reading {
                self.close_client(id, "the ring is full");
            }
        }
    }

    /// Cuts a client off. What it asked for goes on; nobody waits for the answers.
    fn close_client(&mut self, id: u64, why: &str) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        tracing::debug!("volume {}: NBD client {id} closed: {why}", self.o.name);
        self.ring.cancel_fd(client.fd());
        let _ = shutdown(client.fd(), Shutdown::Both);
        self.graveyard.push(client.socket);
    }
}

type Asked = (Cookie, holdfast_blockdev::frontend::Op);

fn drain(session: &mut Session<BufPool>, requests: &mut Vec<Asked>) -> Result<(), String> {
    while let Some(request) = session.next_request().map_err(|e| e.to_string())? {
        requests.push((request.cookie, request.op));
    }
    Ok(())
}
