//! `status` and `role`.

use crate::args::{RoleArgs, StatusArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::render;
use holdfast_node::api_types::{ClusterStatus, Phase, ResourceInfo};

pub(super) fn status(args: &StatusArgs, json: bool) -> Result<(), Failure> {
    let mut status = Client::find(&args.daemon)?.status()?;
    if let Some(name) = &args.resource {
        resource(&status, name)?;
        status.resources.retain(|r| r.name == *name);
    }
    if json {
        println!("{}", serde_json::json!(status));
    } else {
        print!("{}", render::status(&status, args.verbose));
    }
    Ok(())
}

pub(super) fn role(args: &RoleArgs, json: bool) -> Result<(), Failure> {
    let mut status = Client::find(&args.daemon)?.status()?;
    let one = args.resource.is_some();
    if let Some(name) = &args.resource {
        resource(&status, name)?;
        status.resources.retain(|r| r.name == *name);
    }
    if json {
        let roles: Vec<_> = status
            .resources
            .iter()
            .map(|r| serde_json::json!({ "resource": r.name, "role": role_word(r), "primary": r.primary }))
            .collect();
        println!(
            "{}",
            serde_json::json!({ "node": status.node, "roles": roles })
        );
        return Ok(());
    }
    for resource in &status.resources {
        if one {
            println!("{}", role_word(resource));
        } else {
            println!("{} {}", resource.name, role_word(resource));
        }
    }
    Ok(())
}

/// The role of this node for a resource; `-` where it holds no copy.
fn role_word(resource: &ResourceInfo) -> &'static str {
    render::role(resource.here.and_then(Phase::role))
}

/// The resource with this name.
pub(super) fn resource<'s>(
    status: &'s ClusterStatus,
    name: &str,
) -> Result<&'s ResourceInfo, Failure> {
    status
        .resources
        .iter()
        .find(|r| r.name == name)
        .ok_or_else(|| {
            let known: Vec<&str> = status.resources.iter().map(|r| r.name.as_str()).collect();
            Failure::Usage {
                message: format!("there is no resource `{name}`"),
                fix: if known.is_empty() {
                    "add it to the configuration of every node".into()
                } else {
                    format!("one of {}", known.join(", "))
                },
            }
        })
}
