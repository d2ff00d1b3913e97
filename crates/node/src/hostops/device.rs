//! Ways into the volumes of a resource: the NBD sockets always, a block device (FUSE and loop) where
//! wanted and possible.

use super::{Going, Guard, Settings, VolumeLink, device_root};
use crate::volume::Command;
use holdfast_blockdev::frontend::fuse::{FuseMount, clear_leftover};
use holdfast_blockdev::frontend::loopdev::LoopDevice;
use holdfast_config::{Frontend, Volume};
use holdfast_host::fencer::{Record, Undo};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

/// How long a volume loop may take to let go of its NBD clients: it does so at its next turn.
const UNLISTEN_TIME_MAX: Duration = Duration::from_secs(5);
/// Times an unmount of the FUSE file is tried while the loop device lets go of it, and the pause between.
const FUSE_TRIES: u32 = 100;
const FUSE_PAUSE: Duration = Duration::from_millis(20);

/// A block device made of FUSE and loop, in the order it is taken apart.
#[derive(Debug)]
struct Block {
    loop_device: Option<(LoopDevice, Option<Record>)>,
    fuse: FuseMount,
    fuse_record: Option<Record>,
}

#[derive(Debug)]
struct Open {
    unix: PathBuf,
    tcp: Option<std::net::SocketAddr>,
    block: Option<Block>,
}

/// What is open.
#[derive(Debug, Default)]
pub(super) struct Devices {
    links: BTreeMap<String, VolumeLink>,
    open: BTreeMap<String, Open>,
}

/// Can this process make loop devices over FUSE?
fn block_possible() -> Result<(), String> {
    for path in ["/dev/fuse", "/dev/loop-control"] {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| format!("{path}: {e}"))?;
    }
    Ok(())
}

impl Devices {
    pub(super) fn add_volume(&mut self, name: String, link: VolumeLink) {
        self.links.insert(name, link);
    }

    /// Lets a volume's device take the volume's size. `None`: there is no device here.
    pub(super) fn resize(&mut self, volume: &str) -> Result<Option<PathBuf>, String> {
        let (Some(link), Some(block)) = (
            self.links.get(volume),
            self.open.get(volume).and_then(|o| o.block.as_ref()),
        ) else {
            return Ok(None);
        };
        let size = link.size.load(Ordering::Acquire);
        let file = block.fuse.file();
        block
            .fuse
            .resize(size)
            .map_err(|e| format!("{} does not take the new size: {e}", file.display()))?;
        let Some((device, _)) = &block.loop_device else {
            return Ok(None);
        };
        device.take_size().map_err(|e| e.to_string())?;
        Ok(Some(device.path().to_owned()))
    }

    /// The block device of a volume.
    pub(super) fn block_device(&self, volume: &str) -> Option<&Path> {
        let block = self.open.get(volume)?.block.as_ref()?;
        block.loop_device.as_ref().map(|(device, _)| device.path())
    }

    pub(super) fn open(
        &mut self,
        s: &Settings,
        guard: &Guard,
        going: &Going,
    ) -> Result<(), String> {
        for volume in &s.resource.volumes {
            going.on()?;
            if !self.open.contains_key(&volume.name) {
                let link =
                    self.links.get(&volume.name).cloned().ok_or_else(|| {
                        format!("volume {} is not open on this node", volume.name)
                    })?;
                let open = listen(s, volume, &link)?;
                self.open.insert(volume.name.clone(), open);
            }
            self.open_block(s, volume, guard)?;
        }
        Ok(())
    }

    fn open_block(&mut self, s: &Settings, volume: &Volume, guard: &Guard) -> Result<(), String> {
        let (Some(open), Some(link)) = (
            self.open.get_mut(&volume.name),
            self.links.get(&volume.name),
        ) else {
            return Ok(());
        };
        if open.block.as_ref().is_some_and(|b| b.loop_device.is_some()) {
            return Ok(());
        }
        match volume.frontend {
            Frontend::None => return Ok(()),
            Frontend::Nbd => {
                return Err(format!(
                    "volume {}: this version attaches no kernel NBD device: set frontend = \"fuse\" or \"none\"",
                    volume.name
                ));
            }
            Frontend::Auto => {
                if let Err(why) = block_possible() {
                    tracing::info!(
                        "volume {}: no block device here ({why}); NBD socket only",
                        volume.name
                    );
                    return Ok(());
                }
            }
            Frontend::Fuse => {
                block_possible().map_err(|why| format!("volume {}: {why}", volume.name))?
            }
        }
        let dir = device_root(&s.state_dir).join(format!("{}-{}", s.resource.name, volume.name));
        fs::create_dir_all(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
        // Left by an earlier try that ended half-way.
        if let Some(block) = &mut open.block {
            close_block(block, guard, true)?;
            let record = open.block.take().and_then(|b| b.fuse_record);
            guard.unregister(record);
        }
        let mut fuse_record = guard.register(&Undo::Fuse { path: dir.clone() })?;
        guard.still_leased(&mut fuse_record)?;
        let fuse =
            match FuseMount::mount(&dir, link.port.clone(), link.size.load(Ordering::Acquire)) {
                Ok(fuse) => fuse,
                Err(e) => {
                    guard.unregister(fuse_record);
                    return Err(format!(
                        "cannot mount the FUSE file at {}: {e}",
                        dir.display()
                    ));
                }
            };
        let file = fuse.file();
        let block = open.block.insert(Block {
            loop_device: None,
            fuse,
            fuse_record,
        });
        guard.still_leased(&mut None)?;
        // Its number is known only when it is there; until then the FUSE record covers it, for the
        // device detaches by itself when its file is gone.
        let device = LoopDevice::attach(&file).map_err(|e| e.to_string())?;
        let record = guard.register(&Undo::Loop {
            path: device.path().to_owned(),
        })?;
        block.loop_device = Some((device, record));
        Ok(())
    }

    pub(super) fn close(
        &mut self,
        s: &Settings,
        guard: &Guard,
        forced: bool,
    ) -> Result<(), String> {
        let fenced = guard.fenced();
        for volume in s.resource.volumes.iter().rev() {
            let Some(open) = self.open.get_mut(&volume.name) else {
                continue;
            };
            if let Some(block) = &mut open.block {
                close_block(block, guard, forced || fenced)?;
                let record = open.block.take().and_then(|b| b.fuse_record);
                guard.unregister(record);
            }
            if let Some(link) = self.links.get(&volume.name) {
                let (tx, rx) = mpsc::channel();
                let told = link.commands.send(Command::Unlisten(Box::new(move |()| {
                    // The step may have given up waiting.
                    let _ = tx.send(());
                })));
                if told && rx.recv_timeout(UNLISTEN_TIME_MAX).is_err() {
                    return Err(format!("volume {}: its loop does not answer", volume.name));
                }
            }
            // It may never have been made, or be gone already.
            let _ = fs::remove_file(&open.unix);
            self.open.remove(&volume.name);
        }
        Ok(())
    }

    pub(super) fn facts(&self, s: &Settings) -> Vec<(String, &'static str, PathBuf)> {
        let mut facts = Vec::new();
        for volume in &s.resource.volumes {
            let Some(open) = self.open.get(&volume.name) else {
                continue;
            };
            facts.push((volume.name.clone(), "nbd-unix", open.unix.clone()));
            if let Some(tcp) = open.tcp {
                facts.push((volume.name.clone(), "nbd-tcp", tcp.to_string().into()));
            }
            if let Some(device) = self.block_device(&volume.name) {
                facts.push((volume.name.clone(), "loop", device.to_owned()));
            }
        }
        facts
    }
}

fn listen(s: &Settings, volume: &Volume, link: &VolumeLink) -> Result<Open, String> {
    let mut node = s.node.clone();
    node.state_dir.clone_from(&s.state_dir);
    let unix = volume.nbd_socket(&s.resource.name, &node);
    let fail =
        |e: std::io::Error| format!("cannot listen for NBD clients on {}: {e}", unix.display());
    // A socket file is left behind by a daemon that was killed.
    match fs::remove_file(&unix) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(fail(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&unix).map_err(fail)?;
    fs::set_permissions(&unix, Permissions::from_mode(0o600)).map_err(fail)?;
    let mut sockets: Vec<OwnedFd> = vec![listener.into()];
    if let Some(tcp) = volume.nbd.tcp {
        let listener = std::net::TcpListener::bind(tcp).map_err(|e| {
            format!(
                "volume {}: cannot listen for NBD clients on {tcp}: {e}",
                volume.name
            )
        })?;
        sockets.push(listener.into());
    }
    if !link.commands.send(Command::Listen(sockets)) {
        return Err(format!("the loop of volume {} has ended", volume.name));
    }
    Ok(Open {
        unix,
        tcp: volume.nbd.tcp,
        block: None,
    })
}

fn close_block(block: &mut Block, guard: &Guard, forced: bool) -> Result<(), String> {
    if forced {
        // First, so that nothing below waits for an answer that will not come.
        block
            .fuse
            .abort()
            .map_err(|e| format!("cannot abort FUSE at {}: {e}", block.fuse.dir().display()))?;
    }
    if let Some((device, record)) = block.loop_device.take() {
        match device.detach() {
            Ok(()) => {}
            // Gone already: the fencer, or its autoclear.
            Err(e) if forced => tracing::debug!("{e}"),
            Err(e) => return Err(e.to_string()),
        }
        guard.unregister(record);
    }
    if !forced {
        let mut tries = 0;
        while let Err(e) = block.fuse.unmount() {
            tries += 1;
            if tries >= FUSE_TRIES {
                return Err(format!(
                    "cannot unmount FUSE at {}: {e}",
                    block.fuse.dir().display()
                ));
            }
            std::thread::sleep(FUSE_PAUSE);
        }
    }
    clear_leftover(block.fuse.dir());
    Ok(())
}
