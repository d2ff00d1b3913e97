//! The control loop: one tokio thread that drives the control plane and everything around it.
//!
//! It turns what happens (messages, replicas' words, ends of host steps, operators' requests, time) into one
//! event each for [`holdfast_control::Node`], and performs the actions that come back, in order. It decides
//! nothing about roles, leases or members.
//!
//! Invariants
//! - nothing on this thread blocks: disks, devices and services have threads of their own;
//! - all state is in `Daemon`; tasks that wait for something (requests of clients) hold a `Context` and
//!   ask the loop by messages, so the loop has one order of everything;
//! - the daemon never outlives a failure to remember (the state file) or to serve (a volume's ring).

mod api;
mod book;
mod context;
mod create;
mod loops;
mod members;
mod message;
mod replicas;
mod requests;
mod sentences;
mod status;
mod timer;
mod upkeep;
mod verify;

pub use book::Book;
pub use message::{Answer, MeshMessage, Question, VolumeKey};

use crate::claim::{self, Claim};
use crate::clock;
use crate::hostops::{self, HostThread, StepDone, leftovers};
use crate::net::Troubles;
use crate::net::connect::Credentials;
use crate::net::handshake::{ClusterId, Key};
use crate::net::lanes::Lanes;
use crate::net::mesh::{Mesh, Peer};
use crate::persist::{PersistError, StateFile};
use crate::settings;
use crate::timeline::Timeline;
use crate::volume::{Report, Volume};
use anyhow::{Context as _, bail};
use holdfast_blockdev::store::FaultPlan;
use holdfast_config::{Config, Node};
use holdfast_control::{AdminId, AdminReply, AdminRequest, HostStep, ResourceIx, Start, Ticket};
use holdfast_host::fencer::{FencerHandle, Slot};
use holdfast_replicator::{Note, Now};
use holdfast_types::{Epoch, NodeId, NodeSet};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, mpsc as std_mpsc};
use tokio::sync::{mpsc, oneshot};

/// Words of the command line that start the fencer, which is this same program.
pub const FENCER_WORD: &str = "fencer";
/// How long an orderly stop may take before the daemon leaves the rest to the fencer, in milliseconds.
pub const ORDERLY_STOP_MS_MAX: u64 = 60_000;

/// How a daemon is started.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The configuration file.
    pub config: PathBuf,
    /// Which of its nodes this is.
    pub name: String,
    /// Instead of the configuration's state directory.
    pub state_dir: Option<PathBuf>,
    /// Fault injection: how the local stores shall misbehave.
    pub fault_plan: Option<String>,
    /// Fault injection: takes the place of the machine's boot id, so that a restart looks like a reboot.
    pub boot_id: Option<u128>,
    /// Fault injection by the API is allowed.
    pub allow_faults: bool,
    /// Arguments that make this executable the fencer. `None`: run without one (tests in one process).
    pub fencer: Option<Vec<OsString>>,
}

impl NodeOptions {
    /// The usual way.
    pub fn new(config: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Self {
            config: config.into(),
            name: name.into(),
            state_dir: None,
            fault_plan: None,
            boot_id: None,
            allow_faults: false,
            fencer: Some(vec![FENCER_WORD.into()]),
        }
    }
}

/// Why the loop ends.
#[derive(Debug)]
enum End {
    /// Everything was stopped in order.
    Orderly,
    /// At once: the second signal, or the orderly stop took too long.
    AtOnce(String),
    /// It cannot go on.
    Failed(anyhow::Error),
}

/// What the loop hears from the daemon's other threads and tasks.
enum Input {
    Report {
        key: VolumeKey,
        report: Report,
    },
    HostDone {
        resource: ResourceIx,
        number: u64,
        step: HostStep,
        result: Result<(), String>,
    },
    Persisted(Result<Ticket, PersistError>),
    Opened {
        key: VolumeKey,
        result: Result<Volume, String>,
        reply: Option<oneshot::Sender<Result<(), String>>>,
    },
    Open {
        key: VolumeKey,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Admin {
        request: AdminRequest,
        reply: oneshot::Sender<AdminReply>,
    },
    Ask {
        to: NodeId,
        question: Question,
        reply: oneshot::Sender<Result<Answer, String>>,
    },
    Answer {
        to: NodeId,
        id: u64,
        result: Result<Answer, String>,
    },
    Facts {
        reply: oneshot::Sender<status::Facts>,
    },
    Watch {
        key: VolumeKey,
        notes: mpsc::UnboundedSender<Note>,
    },
    Isolate {
        on: bool,
        reply: oneshot::Sender<()>,
    },
    Stop,
    FencerDied,
    /// No new one could be started.
    NoFencer(String),
    Fenced {
        resource: ResourceIx,
        over: bool,
    },
}

/// What tasks hold: everything that does not change, and the way to the loop.
#[derive(Clone)]
struct Context {
    config: Arc<Config>,
    /// This node, with the state directory in use.
    me: Arc<Node>,
    book: Arc<Book>,
    timeline: Timeline,
    troubles: Troubles,
    cluster: ClusterId,
    allow_faults: bool,
    input: mpsc::UnboundedSender<Input>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("me", &self.me.name)
            .finish_non_exhaustive()
    }
}

/// A host step under way.
struct RunningStep {
    number: u64,
    step: HostStep,
    until: Now,
}

struct HostSide {
    thread: HostThread,
    running: Option<RunningStep>,
    /// Something may be on the host: a start step was sent since the last lease ended.
    held: bool,
    /// The fencer has undone it while the lease still ran.
    fenced: bool,
}

/// See the head of the module.
struct Daemon {
    cx: Context,
    node: holdfast_control::Node,
    mesh: Mesh<MeshMessage>,
    lanes: Lanes,
    writer: std_mpsc::Sender<(Ticket, Vec<u8>)>,
    /// By position of the resource; none on a witness.
    hosts: Vec<Option<HostSide>>,
    volumes: BTreeMap<VolumeKey, Volume>,
    /// The nodes that hold their other replicas, by the record.
    peers: BTreeMap<VolumeKey, NodeSet>,
    /// Why a replica of this node is not open.
    closed: BTreeMap<VolumeKey, String>,
    fencer: Option<Arc<FencerHandle>>,
    fault: Option<FaultPlan>,
    boot_id: u128,
    admin: BTreeMap<AdminId, oneshot::Sender<AdminReply>>,
    questions: BTreeMap<u64, oneshot::Sender<Result<Answer, String>>>,
    next_id: u64,
    watchers: Vec<(VolumeKey, mpsc::UnboundedSender<Note>)>,
    /// End of the lease this node holds, by position of the resource.
    leases: BTreeMap<ResourceIx, Now>,
    /// Volumes whose disks do not answer.
    stalled: BTreeSet<VolumeKey>,
    /// Latest promotion told of, by position of the resource.
    epochs: BTreeMap<ResourceIx, Epoch>,
    isolated: bool,
    stopping: Option<Now>,
    end: Option<End>,
}

/// Runs a daemon until it is told to stop.
///
/// # Errors
/// It cannot start, or cannot go on; the message says what to do.
pub fn run(options: NodeOptions) -> anyhow::Result<()> {
    let config = Config::load(&options.config).map_err(|e| anyhow::anyhow!("{e}"))?;
    let Some(me) = config.node(&options.name) else {
        let names: Vec<&str> = config.nodes.iter().map(|n| n.name.as_str()).collect();
        bail!(
            "{} has no node named {:?}; its nodes are: {}",
            options.config.display(),
            options.name,
            names.join(", ")
        );
    };
    let mut me = me.clone();
    if let Some(dir) = &options.state_dir {
        me.state_dir.clone_from(dir);
    }
    let fault = options
        .fault_plan
        .as_deref()
        .map(str::parse::<FaultPlan>)
        .transpose()?;
    let boot_id = match options.boot_id {
        Some(id) => id,
        None => boot_id()?,
    };
    let claim = Claim::take(
        &me.state_dir,
        &config.cluster,
        &me.name,
        me.id,
        claim::PATIENCE,
    )?;
    let timeline = Timeline::default();
    timeline.add(
        "",
        "starting",
        format!(
            "{} of cluster {}, state in {}",
            me.name,
            config.cluster,
            me.state_dir.display()
        ),
    );
    let left = leftovers::remove(&config, &me, &me.state_dir).map_err(|e| anyhow::anyhow!(e))?;
    for what in left {
        timeline.add("", "leftover", format!("{what} of a former life removed"));
    }
    if let Err(e) = holdfast_host::service::become_subreaper() {
        tracing::warn!("{e}");
    }
    let fencer = match &options.fencer {
        Some(args) => {
            let exe =
                std::env::current_exe().context("cannot find this executable for the fencer")?;
            Some(Arc::new(FencerHandle::spawn(
                &exe,
                args,
                Some(claim.lock()),
            )?))
        }
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let parts = Parts {
        config,
        me,
        fault,
        boot_id,
        claim: &claim,
        timeline,
        fencer,
        allow_faults: options.allow_faults,
    };
    let end = runtime.block_on(async {
        let (daemon, inputs, events, timer) = build(parts).await?;
        Ok::<End, anyhow::Error>(daemon.turn(inputs, events, timer).await)
    });
    // Blocking tasks may hang in the system; the fencer sees to what they hold.
    runtime.shutdown_background();
    match end? {
        End::Orderly => Ok(()),
        End::AtOnce(why) => bail!("{why}"),
        End::Failed(e) => Err(e),
    }
}

/// The machine's boot id as a number.
fn boot_id() -> anyhow::Result<u128> {
    let text = holdfast_host::claim::boot_id()?.replace('-', "");
    u128::from_str_radix(&text, 16)
        .with_context(|| format!("the kernel's boot id {text:?} is no number"))
}

struct Parts<'a> {
    config: Config,
    me: Node,
    fault: Option<FaultPlan>,
    boot_id: u128,
    claim: &'a Claim,
    timeline: Timeline,
    fencer: Option<Arc<FencerHandle>>,
    allow_faults: bool,
}

type Built = (
    Daemon,
    mpsc::UnboundedReceiver<Input>,
    mpsc::Receiver<crate::net::mesh::MeshEvent<MeshMessage>>,
    timer::BootTimer,
);

async fn build(p: Parts<'_>) -> anyhow::Result<Built> {
    let cluster = ClusterId::of_name(&p.config.cluster);
    let cred = Credentials {
        me: p.me.id,
        cluster,
        key: Key::new(p.config.secret.bytes(), cluster),
        boot: clock::random_u64(),
    };
    let (input, inputs) = mpsc::unbounded_channel();
    let book = Book::open(&p.me.state_dir)?;
    let (file, stored) = StateFile::open(&p.claim.control_state())?;
    let done = input.clone();
    let writer = file.writer(move |result| {
        // The loop may have ended.
        let _ = done.send(Input::Persisted(result));
    })?;
    let troubles = Troubles::default();
    let control_address = p.me.control_address();
    let listener = std::net::TcpListener::bind(control_address)
        .with_context(|| format!("cannot listen for the control plane on {control_address}"))?;
    let peers = p
        .config
        .nodes
        .iter()
        .filter(|n| n.id != p.me.id)
        .map(|n| Peer {
            id: n.id,
            name: n.name.clone(),
            address: n.control_address(),
        })
        .collect();
    let (mesh, events) = Mesh::start(
        cred.clone(),
        listener,
        Some(p.me.address),
        peers,
        troubles.clone(),
    )?;
    let (lanes, _) = Lanes::start(
        cred,
        p.me.data_address(),
        Some(p.me.address),
        troubles.clone(),
    )?;
    let api_socket = p.claim.api_socket();
    let cx = Context {
        config: Arc::new(p.config),
        me: Arc::new(p.me),
        book: Arc::new(book),
        timeline: p.timeline,
        troubles,
        cluster,
        allow_faults: p.allow_faults,
        input,
    };
    let hosts = host_sides(&cx, p.fencer.as_ref())?;
    let start = Start {
        stored,
        random: clock::random_u64(),
    };
    let config = settings::control_config(&cx.config, cx.me.id);
    let (node, first) = holdfast_control::Node::start(config, start, clock::now())?;
    api::serve(&api_socket, cx.clone())?;
    tokio::spawn(upkeep::calendar(cx.clone()));
    if let Some(fencer) = &p.fencer {
        watch_fencer(fencer.clone(), cx.input.clone());
    }
    let mut daemon = Daemon {
        cx,
        node,
        mesh,
        lanes,
        writer,
        hosts,
        volumes: BTreeMap::new(),
        peers: BTreeMap::new(),
        closed: BTreeMap::new(),
        fencer: p.fencer,
        fault: p.fault,
        boot_id: p.boot_id,
        admin: BTreeMap::new(),
        questions: BTreeMap::new(),
        next_id: 1,
        watchers: Vec::new(),
        leases: BTreeMap::new(),
        stalled: BTreeSet::new(),
        epochs: BTreeMap::new(),
        isolated: false,
        stopping: None,
        end: None,
    };
    daemon.perform_all(first);
    daemon.open_noted_replicas();
    Ok((daemon, inputs, events, timer::BootTimer::new()?))
}

fn host_sides(
    cx: &Context,
    fencer: Option<&Arc<FencerHandle>>,
) -> anyhow::Result<Vec<Option<HostSide>>> {
    let mut hosts = Vec::new();
    for (at, resource) in cx.config.resources.iter().enumerate() {
        // It may be given a replica at any time.
        if cx.me.witness {
            hosts.push(None);
            continue;
        }
        let fencer = match fencer {
            Some(fencer) => {
                let slot = Slot::new(at)?;
                fencer.name(slot, &resource.name);
                Some((fencer.clone(), slot))
            }
            None => None,
        };
        let settings = hostops::Settings {
            resource: resource.clone(),
            node: (*cx.me).clone(),
            state_dir: cx.me.state_dir.clone(),
            fencer,
            runtime: tokio::runtime::Handle::current(),
            timeline: cx.timeline.clone(),
        };
        let input = cx.input.clone();
        let index = ResourceIx(at as u16);
        let done: StepDone = Box::new(move |number, step, result| {
            // The loop may have ended.
            let _ = input.send(Input::HostDone {
                resource: index,
                number,
                step,
                result,
            });
        });
        hosts.push(Some(HostSide {
            thread: HostThread::start(settings, done)?,
            running: None,
            held: false,
            fenced: false,
        }));
    }
    Ok(hosts)
}

fn watch_fencer(fencer: Arc<FencerHandle>, input: mpsc::UnboundedSender<Input>) {
    tokio::spawn(async move {
        while fencer.died().await.is_ok() {
            if input.send(Input::FencerDied).is_err() {
                return;
            }
            // The loop has a new one started; looking again at once would see the old one's end.
            while !fencer.is_alive() {
                tokio::time::sleep(std::time::Duration::from_millis(crate::net::BACKOFF_MS_MIN))
                    .await;
            }
        }
    });
}

#[cfg(test)]
mod tests;
