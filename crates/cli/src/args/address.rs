//! `RESOURCE[:NODE][/VOLUME]`, as DRBD users write it.

use std::str::FromStr;

/// What a command is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// Which resource.
    pub(crate) resource: String,
    /// Whose copy.
    pub(crate) node: Option<String>,
    /// Which volume.
    pub(crate) volume: Option<String>,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (front, volume) = match text.split_once('/') {
            Some((front, volume)) => (front, Some(volume)),
            None => (text, None),
        };
        let (resource, node) = match front.split_once(':') {
            Some((resource, node)) => (resource, Some(node)),
            None => (front, None),
        };
        if [Some(resource), node, volume]
            .into_iter()
            .flatten()
            .any(str::is_empty)
        {
            return Err(
                "write RESOURCE, RESOURCE:NODE, RESOURCE/VOLUME or RESOURCE:NODE/VOLUME".into(),
            );
        }
        Ok(Self {
            resource: resource.into(),
            node: node.map(Into::into),
            volume: volume.map(Into::into),
        })
    }
}
