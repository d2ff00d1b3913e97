//! What `resolve` saved: listed, shown, read back. Works on files, without a daemon.

use crate::args::SavedCommand;
use crate::failure::Failure;
use crate::render::units;
use holdfast_node::saved::{Summary, extract, list, show};
use std::path::Path;

pub(super) fn run(command: &SavedCommand, json: bool) -> Result<(), Failure> {
    let broken = |path: &Path| {
        let path = path.display().to_string();
        move |e: std::io::Error| Failure::CheckFailed(format!("{path}: {e}"))
    };
    match command {
        SavedCommand::List { dir } => {
            let files = list(dir).map_err(broken(dir))?;
            if json {
                println!("{}", serde_json::json!({ "files": files }));
            } else {
                files.iter().for_each(|f| println!("{}", f.display()));
            }
        }
        SavedCommand::Show { file } => print(&show(file).map_err(broken(file))?, json),
        SavedCommand::Extract { file, onto } => {
            print(&extract(file, onto).map_err(broken(file))?, json);
        }
    }
    Ok(())
}

fn print(s: &Summary, json: bool) {
    if json {
        println!("{}", serde_json::json!(s));
        return;
    }
    let h = &s.header;
    let bytes = |blocks: u64| units::bytes(blocks * u64::from(h.block_bytes));
    println!(
        "volume  {} ({}) on node {}",
        h.name,
        bytes(h.blocks),
        h.node
    );
    println!(
        "lost    line {:016x}, last in epoch {}; kept: line {:016x}",
        h.lost, h.epoch, h.keep
    );
    println!(
        "saved   {}, of which {} are zeroes",
        bytes(s.saved_blocks),
        bytes(s.zero_blocks)
    );
}
