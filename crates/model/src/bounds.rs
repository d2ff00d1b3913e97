//! How much may happen in one schedule. Everything within the bounds is tried, in every order.

use crate::state::{BLOCKS, NODES};

/// Limits of a search. What is zero or false does not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Data nodes, at most [`NODES`].
    pub nodes: u8,
    /// Blocks (each an extent of its own), at most [`BLOCKS`].
    pub blocks: u8,
    /// The last node starts outside the in-sync set, with equal content.
    pub absent: bool,
    /// Writes of the application, at most seven.
    pub writes: u8,
    /// Flushes of the application.
    pub flushes: u8,
    /// Crashes, of the kinds below.
    pub crashes: u8,
    /// A crash may be a process death: the disk and its cache live on.
    pub kills: bool,
    /// A crash may be a loss of power: any part of the disk's cache may be gone.
    pub power: bool,
    /// Connections that break between two living nodes.
    pub drops: u8,
    /// Candidacies, with or without need.
    pub promotions: u8,
    /// Removals proposed, with or without need.
    pub removals: u8,
    /// Cuts made.
    pub grows: u8,
    /// Orderly stops.
    pub stops: u8,
    /// Primaries told to step down, for want of a lease or by wish.
    pub demotions: u8,
    /// Crashes, drops, candidacies, stops and demotions together.
    pub faults: u8,
    /// Disk writes take a while: they can land after the session, the epoch or the process is gone.
    pub in_flight: bool,
    /// Bitmaps may be saved at any time, not only when the log evicts.
    pub saves: bool,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            nodes: 2,
            blocks: 1,
            absent: false,
            writes: 1,
            flushes: 0,
            crashes: 1,
            kills: true,
            power: false,
            drops: 0,
            promotions: 1,
            removals: 1,
            grows: 1,
            stops: 0,
            demotions: 0,
            faults: u8::MAX,
            in_flight: false,
            saves: false,
        }
    }
}

impl Bounds {
    /// Sets the limit of this name.
    ///
    /// # Errors
    /// Says what is wrong with the name or the value.
    pub fn set(&mut self, name: &str, value: u8) -> Result<(), String> {
        let limit = |max: usize| {
            let fits = usize::from(value) <= max;
            fits.then_some(value)
                .ok_or_else(|| format!("{name}: at most {max}"))
        };
        match name {
            "nodes" | "replicas" => self.nodes = limit(NODES)?,
            "blocks" => self.blocks = limit(BLOCKS)?,
            "absent" => self.absent = value > 0,
            "writes" => self.writes = limit(7)?,
            "flushes" => self.flushes = value,
            "crashes" => self.crashes = value,
            "kills" => self.kills = value > 0,
            "power" => self.power = value > 0,
            "drops" => self.drops = value,
            "promotions" => self.promotions = value,
            "removals" => self.removals = value,
            "grows" => self.grows = value,
            "stops" => self.stops = value,
            "demotions" => self.demotions = value,
            "faults" => self.faults = value,
            "in-flight" => self.in_flight = value > 0,
            "saves" => self.saves = value > 0,
            _ => return Err(format!("no bound is named {name}")),
        }
        Ok(())
    }
}
