//! What a resource does to this host, on a thread of its own: device, mounts, services, virtual IPs.
//!
//! The control loop sends one step at a time and is answered once for each. A step may take long or hang
//! (a filesystem check, a service that does not end): that holds up this resource's thread only,
//! and the control loop stops waiting after [`START_MS_MAX`] or [`STOP_MS_MAX`].
//!
//! Invariants
//! - every step may be repeated and does nothing where nothing is to be done;
//! - how to undo a side effect is registered with the fencer before the side effect is made, and
//!   taken off after it is gone;
//! - nothing is made without a lease that lasts, which the fencer's slot tells;
//! - a stop step that was sent cancels the start steps sent before it, also one that runs;
//! - nothing here decides who may hold a side effect.

mod device;
mod effects;
pub mod leftovers;

use crate::timeline::Timeline;
use crate::vital;
use crate::volume::Commands;
use device::Devices;
use effects::Effects;
use holdfast_blockdev::frontend::port::PortSender;
use holdfast_config::{Node, Resource};
use holdfast_control::HostStep;
use holdfast_host::fencer::{FencerHandle, Record, Slot, Undo};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A start step that takes longer counts as failed, in milliseconds.
pub const START_MS_MAX: u64 = 60_000;
/// A stop step that takes longer counts as failed, in milliseconds.
pub const STOP_MS_MAX: u64 = 60_000;
/// How often services are looked at while there is nothing else to do.
const LOOK: Duration = Duration::from_millis(250);

/// Is it a step that makes something?
pub const fn is_start(step: HostStep) -> bool {
    matches!(
        step,
        HostStep::OpenDevice | HostStep::Mount | HostStep::StartServices | HostStep::AddVips
    )
}

/// A volume of the resource as its host steps need it.
#[derive(Clone, Debug)]
pub struct VolumeLink {
    /// The loop, for its NBD listeners.
    pub commands: Commands,
    /// The way in for FUSE.
    pub port: PortSender,
    /// Bytes the application sees, kept up to date.
    pub size: Arc<AtomicU64>,
}

/// One thing on the host, for `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fact {
    /// Path, name or address.
    pub name: String,
    /// It is there.
    pub up: bool,
    /// More about it.
    pub note: Option<String>,
}

/// What is on the host for a resource, for `status`.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Kind and path of each way into a volume, by the volume's name.
    pub frontends: Vec<(String, &'static str, PathBuf)>,
    /// Mounts.
    pub mounts: Vec<Fact>,
    /// Services.
    pub services: Vec<Fact>,
    /// Virtual IPs.
    pub vips: Vec<Fact>,
}

/// What the thread needs to know.
#[derive(Clone)]
pub struct Settings {
    /// The resource.
    pub resource: Resource,
    /// This node.
    pub node: Node,
    /// Its state directory.
    pub state_dir: PathBuf,
    /// The fencer, and the resource's slot there. `None`: no fencer (tests).
    pub fencer: Option<(Arc<FencerHandle>, Slot)>,
    /// Runs what goes on by itself (announcements).
    pub runtime: tokio::runtime::Handle,
    /// Where events go.
    pub timeline: Timeline,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("resource", &self.resource.name)
            .finish_non_exhaustive()
    }
}

enum Job {
    Step { number: u64, step: HostStep },
    Volume { name: String, link: VolumeLink },
    Resized { name: String },
    End,
}

/// Called on the resource's thread with the number of the step and how it ended.
pub type StepDone = Box<dyn Fn(u64, HostStep, Result<(), String>) + Send>;

/// The thread, as the control loop holds it.
#[derive(Debug)]
pub struct HostThread {
    tx: Sender<Job>,
    next: u64,
    cancelled_below: Arc<AtomicU64>,
    facts: Arc<Mutex<Facts>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl HostThread {
    /// Starts it.
    pub fn start(settings: Settings, done: StepDone) -> std::io::Result<Self> {
        let (tx, rx) = mpsc::channel();
        let cancelled_below = Arc::new(AtomicU64::new(0));
        let facts = Arc::new(Mutex::new(Facts::default()));
        let name = format!("host {}", settings.resource.name);
        let mut worker = Worker {
            devices: Devices::default(),
            effects: Effects::default(),
            cancelled_below: cancelled_below.clone(),
            facts: facts.clone(),
            s: settings,
        };
        let thread = vital::spawn(&name, move || worker.run(&rx, &done))?;
        Ok(Self {
            tx,
            next: 1,
            cancelled_below,
            facts,
            thread: Some(thread),
        })
    }

    /// Sends a step; the number comes back with its end.
    pub fn step(&mut self, step: HostStep) -> u64 {
        let number = self.next;
        self.next += 1;
        if !is_start(step) {
            self.cancelled_below.store(number, Ordering::Release);
        }
        self.send(Job::Step { number, step });
        number
    }
    /// A volume is open here from now on.
    pub fn volume(&self, name: &str, link: VolumeLink) {
        self.send(Job::Volume {
            name: name.to_owned(),
            link,
        });
    }
    /// A volume has another size: its device follows, and the filesystem on it grows.
    pub fn resized(&self, name: &str) {
        self.send(Job::Resized {
            name: name.to_owned(),
        });
    }
    /// What is there.
    pub fn facts(&self) -> Facts {
        self.facts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
    fn send(&self, job: Job) {
        // The thread ends only when told to, by `end`.
        let _ = self.tx.send(job);
    }
    /// Ends the thread, if it is not stuck in the system. What the resource still has on the host stays.
    pub fn end(mut self, patience: Duration) {
        self.cancelled_below.store(u64::MAX, Ordering::Release);
        self.send(Job::End);
        let Some(thread) = self.thread.take() else {
            return;
        };
        let until = std::time::Instant::now() + patience;
        while !thread.is_finished() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Says whether a step should go on.
#[derive(Clone, Debug)]
struct Going {
    number: u64,
    cancelled_below: Arc<AtomicU64>,
}

impl Going {
    fn on(&self) -> Result<(), String> {
        if self.cancelled_below.load(Ordering::Acquire) > self.number {
            return Err("called off: the resource stops".into());
        }
        Ok(())
    }
}

/// Registers with the fencer.
#[derive(Clone)]
struct Guard(Option<(Arc<FencerHandle>, Slot)>);

impl Guard {
    fn register(&self, undo: &Undo) -> Result<Option<Record>, String> {
        let Some((fencer, slot)) = &self.0 else {
            return Ok(None);
        };
        fencer
            .register(*slot, undo)
            .map(Some)
            .map_err(|e| e.to_string())
    }
    fn unregister(&self, record: Option<Record>) {
        if let (Some((fencer, _)), Some(record)) = (&self.0, record) {
            fencer.unregister(record);
        }
    }
    /// The lease lasts at this instant. Asked right before each side effect is made: the thread, or the whole
    /// machine, may have slept since the last look.
    fn leased(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|(fencer, slot)| fencer.may_hold(*slot))
    }
    /// [`leased`](Self::leased) as a result; a record for what is then not made is taken off.
    fn still_leased(&self, record: &mut Option<Record>) -> Result<(), String> {
        if self.leased() {
            return Ok(());
        }
        self.unregister(record.take());
        Err("the lease has ended: nothing is made".into())
    }
    /// The fencer has begun to undo everything: nothing may be made.
    fn fenced(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|(fencer, slot)| fencer.is_fenced(*slot))
    }
}

struct Worker {
    s: Settings,
    devices: Devices,
    effects: Effects,
    cancelled_below: Arc<AtomicU64>,
    facts: Arc<Mutex<Facts>>,
}

impl Worker {
    fn run(&mut self, rx: &Receiver<Job>, done: &StepDone) {
        self.publish();
        loop {
            match rx.recv_timeout(LOOK) {
                Ok(Job::Step { number, step }) => {
                    let result = self.step(number, step);
                    self.publish();
                    done(number, step, result);
                }
                Ok(Job::Volume { name, link }) => self.devices.add_volume(name, link),
                Ok(Job::Resized { name }) => self.resized(&name),
                Ok(Job::End) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    let guard = self.guard();
                    if self.effects.look_after_services(&self.s, &guard) {
                        self.publish();
                    }
                }
            }
        }
    }

    /// The device takes the volume's size; then the filesystem takes the device's.
    fn resized(&mut self, name: &str) {
        let told = match self.devices.resize(name) {
            Ok(None) => return,
            Ok(Some(device)) => match self.effects.grow(&self.s, name, &device) {
                Ok(done) => ("volume-resized", done),
                Err(e) => ("resize-failed", e),
            },
            Err(e) => ("resize-failed", e),
        };
        let text = format!("volume {name}: {}", told.1);
        if told.0 == "resize-failed" {
            tracing::error!("{text}");
        }
        self.s.timeline.add(&self.s.resource.name, told.0, text);
    }

    fn guard(&self) -> Guard {
        Guard(self.s.fencer.clone())
    }

    fn step(&mut self, number: u64, step: HostStep) -> Result<(), String> {
        let guard = self.guard();
        let going = Going {
            number,
            cancelled_below: self.cancelled_below.clone(),
        };
        if is_start(step) {
            going.on()?;
            self.recover_from_fencing(&guard)?;
        }
        let s = &self.s;
        match step {
            HostStep::OpenDevice => self.devices.open(s, &guard, &going),
            HostStep::Mount => self.effects.mount(s, &guard, &going, &self.devices),
            HostStep::StartServices => self.effects.start_services(s, &guard, &going),
            HostStep::AddVips => self.effects.add_vips(s, &guard, &going),
            HostStep::RemoveVips { forced: _ } => self.effects.remove_vips(&guard),
            HostStep::StopServices { forced } => self.effects.stop_services(s, &guard, forced),
            HostStep::Unmount { forced } => self.effects.unmount(&guard, forced),
            HostStep::CloseDevice { forced } => self.devices.close(s, &guard, forced),
        }
    }

    /// After the fencer has undone everything: forgets it too, so that it can be made anew.
    fn recover_from_fencing(&mut self, guard: &Guard) -> Result<(), String> {
        if !guard.fenced() {
            return Ok(());
        }
        self.effects.remove_vips(guard)?;
        self.effects.stop_services(&self.s, guard, true)?;
        self.effects.unmount(guard, true)?;
        self.devices.close(&self.s, guard, true)?;
        match &self.s.fencer {
            Some((fencer, slot)) if !fencer.rearm(*slot) => {
                Err("the fencer is still undoing what was there before".into())
            }
            _ => Ok(()),
        }
    }

    fn publish(&self) {
        let facts = Facts {
            frontends: self.devices.facts(&self.s),
            mounts: self.effects.mount_facts(&self.s),
            services: self.effects.service_facts(&self.s),
            vips: self.effects.vip_facts(&self.s),
        };
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = facts;
    }
}

/// Where a resource's FUSE mount points are.
pub(crate) fn device_root(state_dir: &Path) -> PathBuf {
    state_dir.join("dev")
}

#[cfg(test)]
mod tests;
