//! A volume as an application sees it, through its NBD socket.

use crate::cluster::PATIENCE;
use anyhow::{Context, Result, ensure};
use holdfast_blockdev::frontend::nbd::client::{Client, ClientOptions};
use std::path::Path;
use std::time::Instant;

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 4096;

/// An open volume.
#[derive(Debug)]
pub(crate) struct Volume(Client);

impl Volume {
    /// Connects; the socket may come a little after the node became primary.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let start = Instant::now();
        let options = ClientOptions {
            timeout: Some(PATIENCE),
            ..ClientOptions::default()
        };
        loop {
            match Client::connect_unix(socket, &options) {
                Ok(client) => return Ok(Self(client)),
                Err(error) if start.elapsed() > PATIENCE => {
                    return Err(error)
                        .with_context(|| format!("no volume at {}", socket.display()));
                }
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
            }
        }
    }

    /// Bytes it has.
    pub(crate) fn size(&self) -> u64 {
        self.0.size()
    }

    /// Writes `blocks` blocks from `first`, each with the pattern of its number and `tag`, durably.
    pub(crate) fn write(&mut self, first: u64, blocks: u64, tag: u64) -> Result<()> {
        let bytes: Vec<u8> = (first..first + blocks)
            .flat_map(|b| pattern(b, tag))
            .collect();
        self.0
            .write_at(first * BLOCK, &bytes, true)
            .with_context(|| format!("writing {blocks} blocks at {first}"))
    }

    /// The blocks must have that pattern.
    pub(crate) fn check(&mut self, first: u64, blocks: u64, tag: u64) -> Result<()> {
        for block in first..first + blocks {
            let bytes = self.0.read_at(block * BLOCK, BLOCK as u32)?;
            ensure!(
                bytes == pattern(block, tag),
                "block {block} is not as it was written (pattern {tag})"
            );
        }
        Ok(())
    }

    /// Does this block have this pattern?
    pub(crate) fn has(&mut self, block: u64, tag: u64) -> Result<bool> {
        Ok(self.0.read_at(block * BLOCK, BLOCK as u32)? == pattern(block, tag))
    }

    /// Zeroes `blocks` blocks from `first`.
    pub(crate) fn zero(&mut self, first: u64, blocks: u32) -> Result<()> {
        Ok(self.0.zero(first * BLOCK, blocks * BLOCK as u32, true)?)
    }

    /// The blocks must be zero.
    pub(crate) fn check_zero(&mut self, first: u64, blocks: u32) -> Result<()> {
        let bytes = self.0.read_at(first * BLOCK, blocks * BLOCK as u32)?;
        ensure!(
            bytes.iter().all(|b| *b == 0),
            "blocks {first} to {} are not all zero",
            first + u64::from(blocks)
        );
        Ok(())
    }

    /// A flush.
    pub(crate) fn flush(&mut self) -> Result<()> {
        Ok(self.0.flush()?)
    }
}

/// Different in every block and for every tag.
fn pattern(block: u64, tag: u64) -> Vec<u8> {
    let mut state = block.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ tag.rotate_left(40) | 1;
    let mut bytes = Vec::with_capacity(BLOCK as usize);
    while bytes.len() < BLOCK as usize {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}
