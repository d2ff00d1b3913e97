//! The shape of the file, by serde, with the place of everything that can be wrong in meaning.

use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    pub(crate) cluster: Spanned<Cluster>,
    #[serde(default)]
    pub(crate) timing: Option<Spanned<Timing>>,
    #[serde(default)]
    pub(crate) node: Vec<Spanned<Node>>,
    #[serde(default)]
    pub(crate) resource: Vec<Spanned<Resource>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cluster {
    pub(crate) name: Spanned<String>,
    pub(crate) secret: Option<Spanned<String>>,
    pub(crate) secret_file: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) profile: crate::Profile,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Timing {
    pub(crate) heartbeat_ms: Option<Spanned<u64>>,
    pub(crate) lease_ms: Option<Spanned<u64>>,
    pub(crate) peer_timeout_ms: Option<Spanned<u64>>,
    pub(crate) reconnect_grace_ms: Option<Spanned<u64>>,
    pub(crate) disk_timeout_ms: Option<Spanned<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Node {
    pub(crate) name: Spanned<String>,
    pub(crate) id: Spanned<u64>,
    pub(crate) address: Spanned<String>,
    pub(crate) control_port: Option<Spanned<u64>>,
    pub(crate) data_port: Option<Spanned<u64>>,
    #[serde(default)]
    pub(crate) witness: bool,
    pub(crate) state_dir: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resource {
    pub(crate) name: Spanned<String>,
    pub(crate) nodes: Spanned<Vec<Spanned<String>>>,
    pub(crate) preferred: Option<Spanned<String>>,
    pub(crate) on_no_quorum: Option<Spanned<String>>,
    pub(crate) unclean_promotion: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) volume: Vec<Spanned<Volume>>,
    #[serde(default)]
    pub(crate) mount: Vec<Mount>,
    #[serde(default)]
    pub(crate) service: Vec<Service>,
    #[serde(default)]
    pub(crate) vip: Vec<Vip>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Volume {
    pub(crate) name: Spanned<String>,
    pub(crate) size: Spanned<String>,
    pub(crate) backing: Spanned<Backing>,
    pub(crate) acknowledge: Option<Spanned<String>>,
    pub(crate) nbd: Option<Nbd>,
    pub(crate) frontend: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) on_resize: Vec<String>,
    pub(crate) resync_min: Option<Spanned<String>>,
    pub(crate) resync_max: Option<Spanned<String>>,
    pub(crate) scrub: Option<Scrub>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scrub {
    pub(crate) every: Spanned<String>,
    pub(crate) max_rate: Option<Spanned<String>>,
    pub(crate) repair: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nbd {
    pub(crate) unix: Option<Spanned<String>>,
    pub(crate) tcp: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mount {
    pub(crate) volume: Spanned<String>,
    pub(crate) path: Spanned<String>,
    pub(crate) fstype: Option<Spanned<String>>,
    pub(crate) options: Option<String>,
    #[serde(default)]
    pub(crate) format_blank: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Service {
    pub(crate) name: Spanned<String>,
    pub(crate) command: Spanned<Vec<String>>,
    pub(crate) ready: Option<Spanned<String>>,
    pub(crate) stop_timeout: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vip {
    pub(crate) address: Spanned<String>,
    pub(crate) device: Option<Spanned<String>>,
}

/// One path for all nodes, or a table of paths by node name. By hand: an untagged enum would
/// lose the place and the reason of an error.
pub(crate) enum Backing {
    Same(String),
    PerNode(BTreeMap<String, String>),
}

impl<'de> Deserialize<'de> for Backing {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BackingVisitor;
        impl<'de> Visitor<'de> for BackingVisitor {
            type Value = Backing;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or a table of paths by node name like { a = \"/dev/vg/x\", b = \"/dev/vg/y\" }")
            }
            fn visit_str<E: de::Error>(self, path: &str) -> Result<Backing, E> {
                Ok(Backing::Same(path.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Backing, A::Error> {
                let mut paths = BTreeMap::new();
                while let Some((node, path)) = map.next_entry()? {
                    paths.insert(node, path);
                }
                Ok(Backing::PerNode(paths))
            }
        }
        deserializer.deserialize_any(BackingVisitor)
    }
}
