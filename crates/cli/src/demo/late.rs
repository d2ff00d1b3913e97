//! One who insists on writing to the old primary: through its NBD socket, over a connection that was open
//! before the fault, and through the service that ran there. Nothing of that may be acknowledged any more.

use super::cluster::PORT;
use super::signals::Cancel;
use super::{cluster::Cluster, patience};
use crate::record::{ClientOptions as RecordOptions, RecordClient};
use anyhow::Context;
use holdfast_blockdev::frontend::nbd::client::{Client, ClientOp, ClientOptions};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a write.
const BLOCK_BYTES: usize = 4096;
/// How long the write that was sent before the old primary woke may go unanswered.
const FIRST_TIME_MAX: Duration = Duration::from_secs(15);
/// The same for each later one.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(500);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the first write may take to be sent: it goes into the socket's buffer.
const SEND_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the end of the thread is waited for.
const END_TIME_MAX: Duration = Duration::from_secs(30);

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Late {
    /// Writes tried.
    pub(super) attempts: u64,
    /// Writes acknowledged: none is right.
    pub(super) acknowledged: u64,
}

impl Late {
    fn count(&mut self, acknowledged: bool) {
        self.attempts += 1;
        self.acknowledged += u64::from(acknowledged);
    }
}

/// The insisting writer; it ends with the process if it is not asked.
#[derive(Debug)]
pub(super) struct LateWriter {
    begin: Arc<AtomicBool>,
    sent: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Late>,
}

#[derive(Debug)]
struct Ways {
    nbd: PathBuf,
    connected: Client,
    service: Option<RecordClient>,
}

impl LateWriter {
    /// Opens its connections to `node`, which is primary still. `records`: it runs a record server.
    pub(super) fn connect(cluster: &Cluster, node: usize, records: bool) -> anyhow::Result<Self> {
        let nbd = cluster.files().nbd_socket(node);
        let options = ClientOptions {
            timeout: Some(FIRST_TIME_MAX),
            ..ClientOptions::default()
        };
        let connected = Client::connect_unix(&nbd, &options)
            .with_context(|| format!("the volume behind {}", nbd.display()))?;
        // Where nodes have machines of their own, the service answers at the node's own address too.
        let address: SocketAddr = (cluster.site().address(node), PORT).into();
        let service = (records && cluster.site().lan().is_some()).then(|| {
            let options = RecordOptions {
                answer_timeout: ANSWER_TIME_MAX,
                ..RecordOptions::default()
            };
            RecordClient::new(address, holdfast_node::clock::random_u64() >> 1, options)
        });
        let [begin, sent, stop] = [(); 3].map(|()| Arc::new(AtomicBool::new(false)));
        let flags = (begin.clone(), sent.clone(), stop.clone());
        let ways = Ways {
            nbd,
            connected,
            service,
        };
        let thread = cluster.site().in_lan(|| {
            std::thread::Builder::new()
                .name("late writer".into())
                .spawn(move || insist(ways, &flags.0, &flags.1, &flags.2))
        })??;
        Ok(Self {
            begin,
            sent,
            stop,
            thread,
        })
    }

    /// Sends the first write; from then on it insists.
    pub(super) fn begin(&self, cancel: &Cancel) -> anyhow::Result<()> {
        self.begin.store(true, Ordering::Release);
        patience::until(
            cancel,
            "a write is sent to the old primary",
            SEND_TIME_MAX,
            || {
                Ok(if self.sent.load(Ordering::Acquire) {
                    Ok(())
                } else {
                    Err(String::new())
                })
            },
        )
    }

    /// Ends it; what came of it.
    pub(super) fn end(self, cancel: &Cancel) -> anyhow::Result<Late> {
        self.begin.store(true, Ordering::Release);
        self.stop.store(true, Ordering::Release);
        patience::run(
            cancel,
            "the writer at the old primary ends",
            END_TIME_MAX,
            move || {
                self.thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("the late writer's thread failed"))
            },
        )
    }
}

fn insist(mut ways: Ways, begin: &AtomicBool, sent: &AtomicBool, stop: &AtomicBool) -> Late {
    let mut late = Late::default();
    while !begin.load(Ordering::Acquire) {
        std::thread::sleep(PAUSE);
    }
    let offset = ways.connected.size() - BLOCK_BYTES as u64;
    let data = [0xa5; BLOCK_BYTES];
    let request = ClientOp::Write {
        offset,
        data: &data,
        fua: true,
    };
    // An error here is a connection that was cut already: nothing was acknowledged over it.
    let first = ways.connected.send(request);
    sent.store(true, Ordering::Release);
    let answered = first
        .and_then(|_| ways.connected.receive())
        .is_ok_and(|a| a.result.is_ok());
    late.count(answered);
    let options = ClientOptions {
        timeout: Some(ANSWER_TIME_MAX),
        ..ClientOptions::default()
    };
    while !stop.load(Ordering::Acquire) {
        let written = Client::connect_unix(&ways.nbd, &options)
            .and_then(|mut client| client.write_at(offset, &data, true));
        late.count(written.is_ok());
        if let Some(service) = &mut ways.service {
            late.count(service.append(Instant::now()).is_ok());
        }
        std::thread::sleep(PAUSE);
    }
    late
}
