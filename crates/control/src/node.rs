//! The node: ties consensus, leases, resources and operators together.
use crate::api::*;

/// Why a node does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The stored state.
    #[error(transparent)]
    Durable(#[from] crate::durable::DurableError),
}

/// One node of the control plane.
#[derive(Debug)]
pub struct Node {
    config: Config,
}

impl Node {
    /// A node, and what it wants done first.
    ///
    /// # Errors
    /// A configuration that cannot work, or a stored state that cannot be read.
    pub fn start(
        config: Config,
        _start: Start,
        _now: Now,
    ) -> Result<(Self, Vec<Action>), StartError> {
        config.validate()?;
        Ok((Self { config }, Vec::new()))
    }
    /// Takes in what happened.
    pub fn handle(&mut self, _now: Now, _event: Event) -> Vec<Action> {
        Vec::new()
    }
    /// When [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Now> {
        None
    }
    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }
}
