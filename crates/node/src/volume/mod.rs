//! The volume loop: one thread and one io_uring per volume, the only place that does its data-path I/O.
//!
//! It turns what happens (a client's request, a peer's frame, a disk's answer, a word of the control
//! plane) into one event each for the replicator, and performs the actions that come back, in
//! order. It decides nothing about data.
//!
//! Invariants
//! - the thread never blocks but in its ring;
//! - one `handle` call per event; events wait in one queue, so their order is the order they were seen in;
//! - each socket has at most one send under way; what gathers meanwhile leaves as one vectored send;
//! - nothing grows without bound: above the limits below, the frontends' sockets are not read.

mod channel;
mod clients;
mod engine;
mod lane;
mod machine;
mod peers;

pub use channel::{Command, Commands, Mailbox, VolumeStatus};
pub use machine::Machine;

use crate::net::lanes::Lanes;
use crate::vital;
use holdfast_blockdev::frontend::nbd::{ExportError, ExportTable};
use holdfast_blockdev::frontend::port::{PortSender, port};
use holdfast_blockdev::store::Store;
use holdfast_replicator::{Action, Note, ToControl};
use holdfast_types::{Geometry, NodeId, VolumeId};
use holdfast_uring::{BufPool, Ring, RingConfig};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;

/// Client connections to one volume at the most; more are closed at once.
pub const CLIENTS_MAX: usize = 64;
/// Bytes of writes handed to the replicator and not yet answered, above which no more is read from
/// frontends: eight of the largest requests.
pub const WRITES_BYTES_MAX: u64 = 256 << 20;
/// Requests handed to the replicator and not yet answered, above which no more is read from frontends.
pub const REQUESTS_MAX: usize = 4096;
/// Bytes waiting for one peer's socket above which no more is read from frontends.
pub const LANE_QUEUE_BYTES_MAX: u64 = 64 << 20;
/// Disk operations under way above which neither frontends nor peers are read.
pub const DISK_OPS_MAX: usize = 8192;
/// Bytes taken from one socket before the others have their turn.
pub const READ_TURN_BYTES: usize = 4 << 20;
/// Pause before accepting again after the system ran out of descriptors or memory, in milliseconds.
pub const ACCEPT_RETRY_MS: u64 = 100;

/// What a volume loop says to its daemon, in the order it happens.
#[derive(Debug)]
pub enum Report {
    /// For the control plane.
    Control(ToControl),
    /// Worth telling.
    Note(Note),
    /// Save these blocks of the backing; answered by [`Command::Saved`].
    Save(holdfast_replicator::Save),
    /// Disk operations make progress no more, or again.
    Stalled(bool),
    /// The thread has ended: because it was told to, or with the error that made it.
    Ended(Result<(), String>),
}

/// Where a loop's reports go; called on its thread, must not block.
pub type ReportSink = Box<dyn Fn(Report) + Send>;

/// What a loop is made of.
pub struct VolumeOptions {
    /// The replication state machine.
    pub machine: Box<dyn Machine>,
    /// What it wants done before anything happens.
    pub first: Vec<Action>,
    /// Where its bytes rest.
    pub store: Box<dyn Store>,
    /// Where buffers come from; the store's own.
    pub pool: BufPool,
    /// The volume.
    pub volume: VolumeId,
    /// What it has room for, and its unit.
    pub geometry: Geometry,
    /// Bytes the application sees; kept up to date.
    pub size: Arc<AtomicU64>,
    /// This node.
    pub me: NodeId,
    /// `resource/volume`, for log and thread name.
    pub name: String,
    /// Told when a pair of lanes is lost. `None` in tests that bring their own.
    pub lanes: Option<Lanes>,
    /// A disk operation that takes longer is a stall, in milliseconds.
    pub stall_ms: u64,
    /// Where reports go.
    pub report: ReportSink,
}

impl std::fmt::Debug for VolumeOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeOptions")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What NBD clients are offered.
fn exports(name: &str, size_bytes: u64) -> Result<Arc<ExportTable>, ExportError> {
    let export = holdfast_blockdev::frontend::nbd::Export::new(name, size_bytes);
    ExportTable::new(vec![export]).map(Arc::new)
}

/// A running volume loop.
#[derive(Debug)]
pub struct Volume {
    commands: Commands,
    port: PortSender,
    size: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Volume {
    /// Starts the thread. Fails if the kernel has no io_uring for us.
    pub fn spawn(options: VolumeOptions) -> anyhow::Result<Self> {
        let (commands, mailbox) = channel::channel()?;
        let (sender, receiver) = port()?;
        let size = options.size.clone();
        let exports = exports(&options.name, size.load(Ordering::Acquire))?;
        let (ready, started) = std_mpsc::sync_channel(1);
        let name = format!("vol {}", options.name);
        let thread = vital::spawn(&name, move || {
            // The ring belongs to the thread that made it.
            let ring = match Ring::new(RingConfig::default()) {
                Ok(ring) => ring,
                Err(e) => {
                    let _ = ready.send(Err(e));
                    return;
                }
            };
            let _ = ready.send(Ok(()));
            engine::Engine::new(options, ring, mailbox, receiver, exports).run();
        })?;
        started.recv()??;
        Ok(Self {
            commands,
            port: sender,
            size,
            thread: Some(thread),
        })
    }

    /// The way to the loop.
    pub fn commands(&self) -> &Commands {
        &self.commands
    }
    /// The in-process frontend's way to the loop.
    pub fn port(&self) -> PortSender {
        self.port.clone()
    }
    /// Bytes the application sees, kept up to date.
    pub fn size(&self) -> Arc<AtomicU64> {
        self.size.clone()
    }
    /// Ends the thread: everything under way is dropped. For an orderly stop the control plane has
    /// made the replica stop before.
    pub fn end(mut self) {
        self.commands.send(Command::End);
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod pair_tests;
#[cfg(test)]
mod tests;
