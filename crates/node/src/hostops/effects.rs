//! Mounts, services and virtual IPs of a resource.

use super::device::Devices;
use super::{Fact, Going, Guard, Settings};
use holdfast_config::{Ready, Service as ServiceConfig};
use holdfast_host::address::{self, Vip};
use holdfast_host::fencer::{Record, Undo};
use holdfast_host::mount::{self, Fs, Policy};
use holdfast_host::service::{Plan, Readiness, Service, Spec};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a service may take to become ready.
const READY_TIME_MAX: Duration = Duration::from_secs(30);
/// How often a start that waits is asked whether it should go on.
const GOING_LOOK: Duration = Duration::from_millis(50);
/// First and longest pause before a service that ended by itself is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(30);

struct Running {
    service: Service,
    records: Vec<Record>,
}

/// A service that should run.
#[derive(Default)]
struct Wanted {
    running: Option<Running>,
    note: Option<String>,
    restart_at: Option<Instant>,
    failures: u32,
    /// It is to end: what is still there is not started again.
    stopping: bool,
}

struct HeldVip {
    place: address::Place,
    record: Option<Record>,
    announcing: tokio::task::AbortHandle,
}

/// What is on the host.
#[derive(Default)]
pub(super) struct Effects {
    mounts: BTreeMap<PathBuf, Option<Record>>,
    services: BTreeMap<String, Wanted>,
    vips: BTreeMap<IpAddr, HeldVip>,
}

/// How a filesystem of this kind is told to fill its device.
fn grower(fstype: &str, device: &Path, mounted: &Path) -> Option<Vec<OsString>> {
    let words = |program: &str, args: &[&std::ffi::OsStr]| {
        let program = OsString::from(program);
        Some(
            [program]
                .into_iter()
                .chain(args.iter().map(Into::into))
                .collect(),
        )
    };
    match fstype {
        "ext2" | "ext3" | "ext4" => words("resize2fs", &[device.as_os_str()]),
        "xfs" => words("xfs_growfs", &[mounted.as_os_str()]),
        "btrfs" => words(
            "btrfs",
            &[
                "filesystem".as_ref(),
                "resize".as_ref(),
                "max".as_ref(),
                mounted.as_os_str(),
            ],
        ),
        _ => None,
    }
}

impl Effects {
    /// After a volume's device has grown: the volume's own command, or what its mounted filesystem needs.
    pub(super) fn grow(&self, s: &Settings, volume: &str, device: &Path) -> Result<String, String> {
        let mount = s
            .resource
            .mounts
            .iter()
            .find(|m| m.volume == volume && self.mounts.contains_key(&m.path));
        let own = s.resource.volume(volume).map_or(&[][..], |v| &v.on_resize);
        let command: Vec<OsString> = if own.is_empty() {
            let Some(grower) = mount.and_then(|m| grower(&m.fstype, device, &m.path)) else {
                return Ok(format!("{} has its new size", device.display()));
            };
            grower
        } else {
            own.iter().map(OsString::from).collect()
        };
        let words = || {
            let words: Vec<_> = command.iter().map(|w| w.to_string_lossy()).collect();
            words.join(" ")
        };
        let mut run = std::process::Command::new(&command[0]);
        run.args(&command[1..])
            .env("HOLDFAST_RESOURCE", &s.resource.name)
            .env("HOLDFAST_VOLUME", volume)
            .env("HOLDFAST_DEVICE", device);
        if let Some(mount) = mount {
            run.env("HOLDFAST_MOUNT", &mount.path);
        }
        match run.stdin(std::process::Stdio::null()).output() {
            Ok(out) if out.status.success() => Ok(format!("grown with `{}`", words())),
            Ok(out) => Err(format!(
                "`{}` ended with {}: {}",
                words(),
                out.status,
                String::from_utf8_lossy(&out.stderr).trim()
            )),
            Err(e) => Err(format!("`{}` cannot be run: {e}", words())),
        }
    }

    // ---- mounts

    pub(super) fn mount(
        &mut self,
        s: &Settings,
        guard: &Guard,
        going: &Going,
        devices: &Devices,
    ) -> Result<(), String> {
        for m in &s.resource.mounts {
            if self.mounts.contains_key(&m.path) {
                continue;
            }
            going.on()?;
            let device = devices.block_device(&m.volume).ok_or_else(|| {
                format!(
                    "{} cannot be mounted: volume {} has no block device on this node (FUSE and loop devices need root)",
                    m.path.display(),
                    m.volume
                )
            })?;
            let fs: Fs = m
                .fstype
                .parse()
                .map_err(|e: holdfast_host::Error| e.to_string())?;
            if mount::first_data(device)
                .map_err(|e| e.to_string())?
                .is_none()
            {
                if !m.format_blank {
                    return Err(format!(
                        "volume {} holds no filesystem: make one on {}, or set format_blank = true in its mount",
                        m.volume,
                        device.display()
                    ));
                }
                guard.still_leased(&mut None)?;
                let label: String = s.resource.name.chars().take(12).collect();
                mount::make(device, fs, &label).map_err(|e| e.to_string())?;
                s.timeline.add(
                    &s.resource.name,
                    "formatted",
                    format!("{} made on volume {}", m.fstype, m.volume),
                );
            }
            going.on()?;
            guard.still_leased(&mut None)?;
            mount::check(device, fs).map_err(|e| e.to_string())?;
            going.on()?;
            let mut record = guard.register(&Undo::Mount {
                path: m.path.clone(),
            })?;
            let spec = mount::Spec {
                source: device.to_owned(),
                target: m.path.clone(),
                fs,
                options: m.options.clone(),
            };
            guard.still_leased(&mut record)?;
            if let Err(e) = mount::mount(&spec) {
                guard.unregister(record);
                return Err(e.to_string());
            }
            self.mounts.insert(m.path.clone(), record);
            if guard.fenced() {
                return Err("the lease has ended while the filesystem was mounted".into());
            }
        }
        Ok(())
    }

    pub(super) fn unmount(&mut self, guard: &Guard, forced: bool) -> Result<(), String> {
        let policy = if forced {
            Policy {
                tries: 3,
                kill_holders: true,
                lazy: true,
            }
        } else {
            Policy::default()
        };
        while let Some((path, _)) = self.mounts.last_key_value() {
            mount::unmount(path, &policy).map_err(|e| e.to_string())?;
            if let Some((_, record)) = self.mounts.pop_last() {
                guard.unregister(record);
            }
        }
        Ok(())
    }

    pub(super) fn mount_facts(&self, s: &Settings) -> Vec<Fact> {
        let fact = |m: &holdfast_config::Mount| Fact {
            name: m.path.display().to_string(),
            up: self.mounts.contains_key(&m.path),
            note: None,
        };
        s.resource.mounts.iter().map(fact).collect()
    }

    // ---- services

    pub(super) fn start_services(
        &mut self,
        s: &Settings,
        guard: &Guard,
        going: &Going,
    ) -> Result<(), String> {
        for config in &s.resource.services {
            going.on()?;
            let wanted = self.services.entry(config.name.clone()).or_default();
            wanted.stopping = false;
            let alive = wanted
                .running
                .as_mut()
                .is_some_and(|r| r.service.try_wait().is_none());
            if !alive {
                reap(wanted, guard)?;
                wanted.running = Some(start(s, config, guard)?);
            }
            let Some(running) = &mut wanted.running else {
                continue;
            };
            let ready = async {
                let ready = running.service.ready(READY_TIME_MAX);
                let called_off = async {
                    while going.on().is_ok() {
                        tokio::time::sleep(GOING_LOOK).await;
                    }
                };
                tokio::select! {
                    ready = ready => ready.map_err(|e| e.to_string()),
                    () = called_off => Err("called off: the resource stops".into()),
                }
            };
            s.runtime.block_on(ready)?;
            wanted.note = Some(format!("process {}", running.service.pid()));
            wanted.failures = 0;
            wanted.restart_at = None;
        }
        Ok(())
    }

    pub(super) fn stop_services(
        &mut self,
        s: &Settings,
        guard: &Guard,
        forced: bool,
    ) -> Result<(), String> {
        let forced = forced || guard.fenced();
        for config in s.resource.services.iter().rev() {
            let Some(wanted) = self.services.get_mut(&config.name) else {
                continue;
            };
            wanted.stopping = true;
            if let Some(running) = &mut wanted.running {
                let stopped = if forced {
                    running.service.kill()
                } else {
                    let grace = Duration::from_millis(config.stop_timeout_ms);
                    running.service.stop_blocking(grace)
                };
                // What could not be ended stays known, here for the next try and with the fencer.
                stopped.map_err(|e| e.to_string())?;
            }
            forget(wanted, guard);
            self.services.remove(&config.name);
        }
        Ok(())
    }

    /// Starts services again that ended by themselves. True: something changed.
    pub(super) fn look_after_services(&mut self, s: &Settings, guard: &Guard) -> bool {
        if !guard.leased() {
            return false;
        }
        let mut changed = false;
        for config in &s.resource.services {
            let Some(wanted) = self.services.get_mut(&config.name) else {
                continue;
            };
            if wanted.stopping {
                continue;
            }
            if let Some(status) = wanted.running.as_mut().and_then(|r| r.service.try_wait()) {
                // Set while there is something left of it that could not be ended.
                match wanted.restart_at {
                    Some(at) if at > Instant::now() => continue,
                    Some(_) => {}
                    None => {
                        let text = format!(
                            "service {} has ended by itself ({status}); it is started again",
                            config.name
                        );
                        s.timeline.add(&s.resource.name, "service-ended", text);
                        let pause = RESTART_PAUSE
                            .saturating_mul(1 << wanted.failures.min(5))
                            .min(RESTART_PAUSE_MAX);
                        wanted.failures += 1;
                        wanted.restart_at = Some(Instant::now() + pause);
                        wanted.note = Some(format!("ended by itself ({status})"));
                        changed = true;
                    }
                }
                if let Err(e) = reap(wanted, guard) {
                    tracing::warn!("service {}: {e}", config.name);
                    wanted.note = Some(e);
                    wanted.restart_at = Some(Instant::now() + RESTART_PAUSE_MAX);
                    changed = true;
                    continue;
                }
            }
            if wanted.running.is_none() && wanted.restart_at.is_some_and(|at| at <= Instant::now())
            {
                wanted.restart_at = None;
                match start(s, config, guard) {
                    Ok(running) => {
                        wanted.note =
                            Some(format!("process {}, started again", running.service.pid()));
                        wanted.running = Some(running);
                    }
                    Err(e) => {
                        wanted.note = Some(e);
                        wanted.restart_at = Some(Instant::now() + RESTART_PAUSE_MAX);
                    }
                }
                changed = true;
            }
        }
        changed
    }

    pub(super) fn service_facts(&self, s: &Settings) -> Vec<Fact> {
        let fact = |c: &ServiceConfig| {
            let wanted = self.services.get(&c.name);
            Fact {
                name: c.name.clone(),
                up: wanted.is_some_and(|w| w.running.is_some()),
                note: wanted.and_then(|w| w.note.clone()),
            }
        };
        s.resource.services.iter().map(fact).collect()
    }

    // ---- virtual IPs

    pub(super) fn add_vips(
        &mut self,
        s: &Settings,
        guard: &Guard,
        going: &Going,
    ) -> Result<(), String> {
        for vip in &s.resource.vips {
            if self.vips.contains_key(&vip.address) {
                continue;
            }
            going.on()?;
            let vip = Vip {
                addr: vip.address,
                prefix: Some(vip.prefix),
                device: vip.device.clone(),
            };
            let place = address::locate(&vip).map_err(|e| e.to_string())?;
            let mut record = match place.undo() {
                Some(undo) => guard.register(&undo)?,
                None => None,
            };
            guard.still_leased(&mut record)?;
            if let Err(e) = address::add(&place) {
                guard.unregister(record);
                return Err(e.to_string());
            }
            let announcing = s
                .runtime
                .spawn(address::keep_announcing(place.clone(), {
                    let guard = guard.clone();
                    move || guard.leased()
                }))
                .abort_handle();
            self.look_for_conflict(s, place.clone());
            self.vips.insert(
                place.addr,
                HeldVip {
                    place,
                    record,
                    announcing,
                },
            );
            if guard.fenced() {
                return Err("the lease has ended while the virtual IP was added".into());
            }
        }
        Ok(())
    }

    /// Somebody else having the address is an alarm; the holder of the lease keeps it.
    fn look_for_conflict(&self, s: &Settings, place: address::Place) {
        if place.is_loopback() {
            return;
        }
        let (timeline, resource) = (s.timeline.clone(), s.resource.name.clone());
        s.runtime.spawn(async move {
            match address::probe_async(place.clone(), address::PROBE_TIME).await {
                Ok(Some(conflict)) => {
                    let text = format!(
                        "the virtual IP {} is also claimed by {conflict}: find that machine",
                        place.addr
                    );
                    timeline.add(&resource, "vip-conflict", text);
                }
                Ok(None) => {}
                Err(e) => tracing::debug!("no look for conflicts: {e}"),
            }
        });
    }

    pub(super) fn remove_vips(&mut self, guard: &Guard) -> Result<(), String> {
        while let Some((_, held)) = self.vips.last_key_value() {
            held.announcing.abort();
            address::remove(&held.place).map_err(|e| e.to_string())?;
            if let Some((_, held)) = self.vips.pop_last() {
                guard.unregister(held.record);
            }
        }
        Ok(())
    }

    pub(super) fn vip_facts(&self, s: &Settings) -> Vec<Fact> {
        let fact = |v: &holdfast_config::Vip| {
            let held = self.vips.get(&v.address);
            Fact {
                name: v.address.to_string(),
                up: held.is_some(),
                note: held.map(|h| format!("on {}", h.place.device)),
            }
        };
        s.resource.vips.iter().map(fact).collect()
    }
}

/// The name a service's log and cgroup carry: unique among the daemons of one machine, for they may share it.
pub(super) fn unit_name(node: &str, resource: &str, service: &str) -> String {
    format!("{node}.{resource}.{service}")
}

/// Ends whatever is left of a service whose first process has ended; it stays known until that is gone.
fn reap(wanted: &mut Wanted, guard: &Guard) -> Result<(), String> {
    if let Some(running) = &mut wanted.running {
        running.service.kill().map_err(|e| e.to_string())?;
    }
    forget(wanted, guard);
    Ok(())
}

/// Nothing of the service is left.
fn forget(wanted: &mut Wanted, guard: &Guard) {
    let records = wanted.running.take().map(|r| r.records);
    records
        .into_iter()
        .flatten()
        .for_each(|r| guard.unregister(Some(r)));
}

fn start(s: &Settings, config: &ServiceConfig, guard: &Guard) -> Result<Running, String> {
    let log_dir = s.state_dir.join("log");
    std::fs::create_dir_all(&log_dir)
        .map_err(|e| format!("cannot make {}: {e}", log_dir.display()))?;
    let mut spec = Spec::new(
        unit_name(&s.node.name, &s.resource.name, &config.name),
        config.command.clone(),
    );
    // By this the next daemon finds it, should this one and its fencer die together.
    spec.env.push((
        holdfast_host::service::HOME_VARIABLE.into(),
        s.state_dir.display().to_string(),
    ));
    spec.ready = match config.ready {
        Some(Ready::Tcp(address)) => Readiness::Tcp(address),
        None => Readiness::None,
    };
    let plan = Plan::new(spec, &log_dir).map_err(|e| e.to_string())?;
    let mut records = Vec::new();
    let mut cell = None;
    for undo in plan.undo() {
        match guard.register(&undo) {
            Ok(Some(record)) => {
                if let (Undo::Service { .. }, Some((fencer, _))) = (&undo, &guard.0) {
                    cell = Some(fencer.pid_cell(&record));
                }
                records.push(record);
            }
            Ok(None) => {}
            Err(e) => {
                records.into_iter().for_each(|r| guard.unregister(Some(r)));
                return Err(e);
            }
        }
    }
    if let Err(e) = guard.still_leased(&mut None) {
        records.into_iter().for_each(|r| guard.unregister(Some(r)));
        return Err(e);
    }
    match Service::start(plan, cell) {
        Ok(service) => {
            if let (Some((fencer, _)), Some(record)) = (&guard.0, records.first()) {
                fencer.service_started(record, service.pid());
            }
            Ok(Running { service, records })
        }
        Err(e) => {
            records.into_iter().for_each(|r| guard.unregister(Some(r)));
            Err(e.to_string())
        }
    }
}
