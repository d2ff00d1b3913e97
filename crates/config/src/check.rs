//! From the file's shape to a sound [`Config`]: every rule about a cluster file is here.

mod nodes;
mod resources;
mod syntax;
mod upkeep;

use crate::error::{Collector, ConfigErrors};
use crate::model::Config;
use crate::secret::{self, Permissions, Secret};
use crate::{Timing, raw};
use std::path::Path;
use toml::Spanned;

/// Longest name of a cluster, node, resource, volume or service, in characters: they become file
/// names, socket names and NBD export names.
const NAME_CHARS_MAX: usize = 32;

pub(crate) fn check(
    text: &str,
    file: &Path,
    permissions: Permissions,
) -> Result<Config, ConfigErrors> {
    let mut problems = Collector::new(text);
    let raw: raw::File = match toml::from_str(text) {
        Ok(raw) => raw,
        Err(error) => {
            syntax::explain(text, &error, &mut problems);
            problems.finish(file)?;
            unreachable!("a parser's error is always a problem");
        }
    };
    let cluster = raw.cluster.as_ref();
    name(&cluster.name, "cluster", &mut problems);
    let secret = secret(&raw.cluster, file, permissions, &mut problems);
    let timing = timing(cluster, raw.timing.as_ref(), &mut problems);
    let nodes = nodes::nodes(&raw.node, &mut problems);
    let resources = resources::resources(&raw.resource, &nodes, &mut problems);
    let cluster = cluster.name.get_ref().clone();
    problems.finish(file)?;
    let secret = secret
        .ok_or_else(|| ConfigErrors::whole_file(file, "no secret".into(), "add secret_file"))?;
    Ok(Config {
        file: file.into(),
        cluster,
        secret,
        timing,
        nodes: nodes.all,
        resources,
    })
}

/// Checks a name; `what` names the kind of thing for the message.
fn name(name: &Spanned<String>, what: &str, problems: &mut Collector<'_>) {
    let text = name.get_ref();
    let first_good = text
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphanumeric());
    let rest_good = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if !first_good || !rest_good || text.len() > NAME_CHARS_MAX {
        problems.at(
            name.span(),
            format!("`{text}` is not a name for a {what}"),
            format!("letters, digits, `-`, `_` and `.`, starting with a letter or digit, at most {NAME_CHARS_MAX}"),
        );
    }
}

fn secret(
    cluster: &Spanned<raw::Cluster>,
    file: &Path,
    permissions: Permissions,
    problems: &mut Collector<'_>,
) -> Option<Secret> {
    let raw = cluster.get_ref();
    let (span, result) = match (&raw.secret, &raw.secret_file) {
        (None, None) => {
            problems.at(
                cluster.span(),
                "the cluster has no secret",
                "add secret_file = \"secret\" with a file of at least 16 random characters, mode 600, the same on every node",
            );
            return None;
        }
        (Some(_), Some(second)) => {
            problems.at(
                second.span(),
                "both `secret` and `secret_file` are given",
                "keep one of the two",
            );
            return None;
        }
        (Some(text), None) => {
            let private = match permissions {
                Permissions::Enforced => secret::private(file),
                Permissions::NotThisFile => Ok(()),
            };
            (
                text.span(),
                private.and_then(|()| secret::from_text(text.get_ref())),
            )
        }
        (None, Some(path)) => {
            let base = file.parent().unwrap_or(Path::new(""));
            (path.span(), secret::from_file(&base.join(path.get_ref())))
        }
    };
    match result {
        Ok(secret) => Some(secret),
        Err((what, fix)) => {
            problems.at(span, what, fix);
            None
        }
    }
}

fn timing(
    cluster: &raw::Cluster,
    raw: Option<&Spanned<raw::Timing>>,
    problems: &mut Collector<'_>,
) -> Timing {
    let mut timing = cluster.profile.timing();
    let Some(table) = raw else { return timing };
    let raw = table.get_ref();
    let keys = [
        ("heartbeat_ms", &raw.heartbeat_ms, &mut timing.heartbeat_ms),
        ("lease_ms", &raw.lease_ms, &mut timing.lease_ms),
        (
            "peer_timeout_ms",
            &raw.peer_timeout_ms,
            &mut timing.peer_timeout_ms,
        ),
        (
            "reconnect_grace_ms",
            &raw.reconnect_grace_ms,
            &mut timing.reconnect_grace_ms,
        ),
        (
            "disk_timeout_ms",
            &raw.disk_timeout_ms,
            &mut timing.disk_timeout_ms,
        ),
    ];
    let mut spans = Vec::new();
    for (key, given, value) in keys {
        if let Some(given) = given {
            *value = *given.get_ref();
            spans.push((key, given.span()));
        }
    }
    if let Some(impossible) = timing.impossible() {
        // The key at fault may come from the profile while another one was overridden: then the
        // first override is the place to look.
        let span = spans
            .iter()
            .find(|(key, _)| *key == impossible.key)
            .or(spans.first())
            .map_or(table.span(), |(_, span)| span.clone());
        problems.at(span, impossible.what, impossible.fix);
    }
    timing
}

#[cfg(test)]
mod tests;
