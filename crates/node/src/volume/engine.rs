//! The loop itself: waits in the ring, hands events to the replicator, performs its actions.

use super::channel::{Command, Mailbox, VolumeStatus};
use super::clients::Client;
use super::peers::PeerLanes;
use super::{
    DISK_OPS_MAX, LANE_QUEUE_BYTES_MAX, REQUESTS_MAX, Report, VolumeOptions, WRITES_BYTES_MAX,
};
use crate::clock;
use bytes::Bytes;
use holdfast_blockdev::frontend::Op as FrontendOp;
use holdfast_blockdev::frontend::nbd::{Cookie, ExportTable};
use holdfast_blockdev::frontend::port::{PortError, PortReceiver, Reply};
use holdfast_blockdev::store::{StoreError, StoreOp};
use holdfast_replicator::{
    Action, DiskError, DiskOp, Event, FromControl, IoId, Note, Now, ReqId, Request, RequestError,
    ToControl,
};
use holdfast_types::NodeId;
use holdfast_uring::{Completion, Op, Ring, token, token_low, token_tag};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Tags of this loop's ring tokens; the store has its own.
pub(super) const TAG_MAILBOX: u8 = 1;
pub(super) const TAG_PORT: u8 = 2;
pub(super) const TAG_ACCEPT: u8 = 3;
pub(super) const TAG_CLIENT_RECV: u8 = 4;
pub(super) const TAG_CLIENT_SEND: u8 = 5;
pub(super) const TAG_LANE_POLL: u8 = 6;
pub(super) const TAG_LANE_SEND: u8 = 7;

/// POLLIN of poll(2).
pub(super) const POLLIN: u32 = libc::POLLIN as u32;

/// Who waits for the answer to a request.
enum Origin {
    /// An NBD client, perhaps gone by then.
    Client { id: u64, cookie: Cookie },
    /// The in-process frontend.
    Port(Reply),
}

struct OpenRequest {
    origin: Origin,
    write_bytes: u64,
}

/// A listening socket of the NBD frontend.
pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    pub(super) armed: bool,
}

/// See the head of the module above.
pub(super) struct Engine {
    pub(super) o: VolumeOptions,
    pub(super) ring: Ring,
    mailbox: Mailbox,
    port: PortReceiver,
    pub(super) exports: Arc<ExportTable>,
    /// What has happened and was not handled yet, in order.
    pub(super) events: VecDeque<Event>,
    actions: Vec<Action>,
    /// Looked up by key only.
    requests: HashMap<ReqId, OpenRequest>,
    next_request: u64,
    write_bytes: u64,
    /// Disk operations under way and when they began.
    disk: BTreeMap<IoId, Now>,
    stalled: bool,
    pub(super) peers: BTreeMap<NodeId, PeerLanes>,
    pub(super) generation: u32,
    pub(super) isolated: bool,
    pub(super) listeners: Vec<Listener>,
    pub(super) accept_at: Option<Now>,
    pub(super) clients: BTreeMap<u64, Client>,
    pub(super) next_client: u64,
    /// Clients that must be looked at before the next wait.
    pub(super) touched: BTreeSet<u64>,
    /// The replica is open for the application: its [`ToControl::Opened`] until the step down.
    pub(super) serving: bool,
    /// Frontends are not read: something is over its limit.
    throttled: bool,
    port_waiting: bool,
    /// Descriptors to be closed after the next wait, when the kernel has let go of them.
    pub(super) graveyard: Vec<OwnedFd>,
    ending: bool,
}

impl Engine {
    pub(super) fn new(
        o: VolumeOptions,
        ring: Ring,
        mailbox: Mailbox,
        port: PortReceiver,
        exports: Arc<ExportTable>,
    ) -> Self {
        Self {
            o,
            ring,
            mailbox,
            port,
            exports,
            events: VecDeque::new(),
            actions: Vec::new(),
            requests: HashMap::new(),
            next_request: 1,
            write_bytes: 0,
            disk: BTreeMap::new(),
            stalled: false,
            peers: BTreeMap::new(),
            generation: 0,
            isolated: false,
            listeners: Vec::new(),
            accept_at: None,
            clients: BTreeMap::new(),
            next_client: 1,
            touched: BTreeSet::new(),
            serving: false,
            throttled: false,
            port_waiting: false,
            graveyard: Vec::new(),
            ending: false,
        }
    }

    /// Until told to end, or the ring fails.
    pub(super) fn run(mut self) {
        let result = self.turn_until_end();
        (self.o.report)(Report::Ended(result));
    }

    fn turn_until_end(&mut self) -> Result<(), String> {
        self.arm(TAG_MAILBOX);
        self.arm(TAG_PORT);
        for action in std::mem::take(&mut self.o.first) {
            self.perform(action);
        }
        while !self.ending {
            self.pump();
            self.send_to_peers();
            let timeout = self.timeout();
            self.ring
                .wait(1, timeout)
                .map_err(|e| format!("the ring of volume {} failed: {e}", self.o.name))?;
            self.graveyard.clear();
            if self
                .o
                .machine
                .deadline()
                .is_some_and(|at| at <= clock::now())
            {
                self.events.push_back(Event::Tick);
            }
            while let Some(completion) = self.ring.pop() {
                self.completed(completion);
            }
        }
        Ok(())
    }

    /// How long the ring may sleep.
    fn timeout(&self) -> Option<Duration> {
        let stall = self
            .disk
            .first_key_value()
            .map(|(_, &since)| since.plus_ms(self.o.stall_ms));
        let stall = stall.filter(|_| !self.stalled);
        let at = [self.o.machine.deadline(), stall, self.accept_at]
            .into_iter()
            .flatten()
            .min()?;
        Some(Duration::from_nanos(at.0.saturating_sub(clock::now().0)))
    }

    /// Handles events, and what follows from them, until there is none.
    fn pump(&mut self) {
        loop {
            while let Some(event) = self.events.pop_front() {
                self.handle(event);
            }
            self.collect_store();
            self.check_limits();
            self.look_at_clients();
            if self.events.is_empty() && self.touched.is_empty() {
                break;
            }
        }
        self.poll_peers();
        self.check_stall();
        self.accept_again();
    }

    fn handle(&mut self, event: Event) {
        let step_down = matches!(
            event,
            Event::Control(FromControl::StepDown | FromControl::Stop)
        );
        let mut actions = std::mem::take(&mut self.actions);
        self.o.machine.handle(clock::now(), event, &mut actions);
        for action in actions.drain(..) {
            self.perform(action);
        }
        self.actions = actions;
        if step_down && self.serving {
            self.serving = false;
            self.let_clients_go();
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Disk { io, op } => {
                self.disk.insert(io, clock::now());
                let op = match op {
                    DiskOp::Read { offset, len } => StoreOp::Read { offset, len },
                    DiskOp::Write {
                        offset,
                        data,
                        durable,
                    } => StoreOp::Write {
                        offset,
                        data,
                        durable,
                    },
                    DiskOp::Zero {
                        offset,
                        len,
                        durable,
                    } => StoreOp::Zero {
                        offset,
                        len,
                        durable,
                    },
                    DiskOp::Flush => StoreOp::Flush,
                };
                self.o.store.submit(&mut self.ring, op, io.0);
            }
            Action::Send { peer, frame } => self.queue_frame(peer, &frame),
            Action::Disconnect { peer } => self.close_peer(peer, "as the replica asked"),
            Action::Complete { req, result } => self.complete(req, result),
            Action::Control(message) => {
                if matches!(message, ToControl::Opened { .. }) {
                    self.serving = true;
                }
                if let ToControl::Room { room_bytes, .. } = message {
                    // Peers may send what there is room for.
                    self.o.geometry.blocks = room_bytes / u64::from(self.o.geometry.block_bytes);
                    for lanes in self.peers.values_mut() {
                        lanes.set_geometry(self.o.geometry);
                    }
                }
                if matches!(message, ToControl::DiskFailed { .. }) {
                    self.disk.clear(); // what still comes of it is waited for no more
                }
                (self.o.report)(Report::Control(message));
            }
            Action::Save(save) => (self.o.report)(Report::Save(save)),
            Action::MakeRoom { bytes } => {
                // Once in a long while, and done at once for a file.
                let made = self.o.store.grow(bytes);
                if let Err(e) = &made {
                    tracing::warn!("volume {}: its backing cannot grow: {e}", self.o.name);
                }
                self.events.push_back(Event::Room {
                    store_bytes: made.ok(),
                });
            }
            Action::Note(note) => {
                if let Note::Resized { size_bytes } = note {
                    self.resized(size_bytes);
                }
                (self.o.report)(Report::Note(note));
            }
        }
    }

    /// Clients that connect from now on see the new size.
    fn resized(&mut self, size_bytes: u64) {
        self.o.size.store(size_bytes, Ordering::Release);
        match super::exports(&self.o.name, size_bytes) {
            Ok(exports) => self.exports = exports,
            Err(e) => tracing::error!("volume {}: {e}", self.o.name),
        }
    }

    fn complete(&mut self, req: ReqId, result: Result<Bytes, RequestError>) {
        let Some(open) = self.requests.remove(&req) else {
            return;
        };
        self.write_bytes -= open.write_bytes;
        match open.origin {
            Origin::Client { id, cookie } => self.answer_client(id, cookie, result),
            Origin::Port(reply) => reply.send(result.map_err(|e| match e {
                RequestError::Io => PortError::Io,
                RequestError::Range => PortError::Range,
                RequestError::NotPrimary => PortError::NotPrimary,
            })),
        }
    }

    /// Hands a client's request on.
    pub(super) fn request_of_client(&mut self, id: u64, cookie: Cookie, op: FrontendOp) {
        self.request(Origin::Client { id, cookie }, op);
    }

    fn request(&mut self, origin: Origin, op: FrontendOp) {
        let req = ReqId(self.next_request);
        self.next_request += 1;
        let mut write_bytes = 0;
        let request = match op {
            FrontendOp::Read { offset, len } => Request::Read { offset, len },
            FrontendOp::Write { offset, data, fua } => {
                write_bytes = data.len() as u64;
                Request::Write { offset, data, fua }
            }
            FrontendOp::Zero {
                offset,
                len,
                fua,
                may_punch: _,
            } => Request::Zero { offset, len, fua },
            FrontendOp::Flush => Request::Flush,
        };
        self.write_bytes += write_bytes;
        self.requests.insert(
            req,
            OpenRequest {
                origin,
                write_bytes,
            },
        );
        self.events.push_back(Event::Request { req, request });
    }

    /// Above a limit frontends are not read; below it again they are looked at anew.
    fn check_limits(&mut self) {
        let over = self.write_bytes >= WRITES_BYTES_MAX
            || self.requests.len() >= REQUESTS_MAX
            || self.disk.len() >= DISK_OPS_MAX
            || self
                .peers
                .values()
                .any(|p| p.queued() >= LANE_QUEUE_BYTES_MAX);
        if std::mem::replace(&mut self.throttled, over) && !over {
            self.touched.extend(self.clients.keys());
        }
        // The port may have been left at a limit that was not yet seen here.
        if !over && std::mem::take(&mut self.port_waiting) {
            self.drain_port();
        }
    }

    pub(super) fn throttled(&self) -> bool {
        self.throttled
    }
    /// Peers are not read while the disk is this far behind.
    pub(super) fn disk_full(&self) -> bool {
        self.disk.len() >= DISK_OPS_MAX
    }

    fn drain_port(&mut self) {
        while self.requests.len() < REQUESTS_MAX && self.write_bytes < WRITES_BYTES_MAX {
            let Some(request) = self.port.try_recv() else {
                return;
            };
            self.request(Origin::Port(request.reply), request.op);
        }
        self.port_waiting = true;
    }

    fn completed(&mut self, completion: Completion) {
        if self.o.store.owns(completion.token) {
            if let Some((io, result)) = self.o.store.on_completion(&mut self.ring, completion) {
                self.disk_done(io, result);
            }
            return;
        }
        let low = token_low(completion.token);
        match token_tag(completion.token) {
            TAG_MAILBOX => {
                self.mailbox.clear_wake();
                while let Some(command) = self.mailbox.try_recv() {
                    self.command(command);
                    // Its consequences come before the next command's.
                    self.drain_events();
                    if self.ending {
                        return;
                    }
                }
                self.arm(TAG_MAILBOX);
            }
            TAG_PORT => {
                self.port.clear_wake();
                if self.throttled {
                    self.port_waiting = true;
                } else {
                    self.drain_port();
                }
                self.arm(TAG_PORT);
            }
            TAG_ACCEPT => self.accepted(low, completion),
            TAG_CLIENT_RECV => self.client_received(low, completion),
            TAG_CLIENT_SEND => self.client_sent(low, completion.result),
            TAG_LANE_POLL => self.lane_readable(low),
            TAG_LANE_SEND => self.lane_sent(low, completion.result),
            other => tracing::error!(
                "volume {}: an answer of the ring with unknown tag {other}",
                self.o.name
            ),
        }
    }

    /// Handles events only, until there is none.
    pub(super) fn drain_events(&mut self) {
        while let Some(event) = self.events.pop_front() {
            self.handle(event);
        }
    }

    fn collect_store(&mut self) {
        while let Some((io, result)) = self.o.store.take_ready() {
            self.disk_done(io, result);
        }
    }

    fn disk_done(&mut self, io: u64, result: Result<Bytes, StoreError>) {
        let io = IoId(io);
        self.disk.remove(&io);
        if let Err(e) = &result {
            tracing::error!("volume {}: disk operation failed: {e}", self.o.name);
        }
        let result = result.map_err(|e| match e {
            StoreError::NoSpace => DiskError::NoSpace,
            StoreError::Io | StoreError::Range => DiskError::Io,
        });
        self.events.push_back(Event::DiskDone { io, result });
    }

    /// Says when the oldest disk operation takes too long, and when that is over.
    fn check_stall(&mut self) {
        let now = clock::now();
        let stalled = self
            .disk
            .first_key_value()
            .is_some_and(|(_, since)| now.ms_since(*since) >= self.o.stall_ms);
        if stalled != self.stalled {
            self.stalled = stalled;
            (self.o.report)(Report::Stalled(stalled));
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Control(message) => self.events.push_back(Event::Control(message)),
            Command::Saved { save, result } => {
                self.events.push_back(Event::Saved { save, result });
            }
            Command::Lanes(pair) => self.take_pair(pair),
            Command::Status(done) => {
                done(VolumeStatus {
                    replica: self.o.machine.status(),
                    clients: self.clients.len() as u32,
                });
            }
            Command::Listen(sockets) => self.listen(sockets),
            Command::Unlisten(done) => {
                self.unlisten();
                done(());
            }
            Command::Isolate(on) => self.isolate(on),
            Command::End => self.ending = true,
        }
    }

    fn arm(&mut self, tag: u8) {
        let fd = match tag {
            TAG_MAILBOX => self.mailbox.wake_fd().as_raw_fd(),
            _ => self.port.wake_fd().as_raw_fd(),
        };
        self.start(
            Op::Poll {
                fd,
                events: POLLIN,
                multishot: false,
            },
            token(tag, 0),
        );
    }

    /// Starts an operation. False: the ring is full, which its limits rule out in practice; the
    /// caller treats it like a failed operation.
    pub(super) fn start(&mut self, op: Op, token: u64) -> bool {
        match self.ring.submit(op, token) {
            Ok(_) => true,
            Err(e) => {
                tracing::error!("volume {}: {e}", self.o.name);
                false
            }
        }
    }
}
