//! The processes that the tests of the host crate are about: a daemon with side effects, its fencer, and scenarios that
//! must run as a whole under another identity. Every scenario prints `ok` at its end and fails loudly otherwise.

mod daemon;
mod scenarios;

use std::process::exit;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let rest = args.get(1..).unwrap_or_default();
    match args.first().map(String::as_str) {
        Some("fencer") => holdfast_host::fencer::run(),
        Some("daemon") => daemon::run(rest),
        Some("vip") => scenarios::vip(),
        Some("cable") => scenarios::cable(),
        Some("hold-lab") => scenarios::hold_lab(rest),
        Some("service") => scenarios::service(rest),
        Some("fencing") => scenarios::fencing(rest),
        Some("cut-fuse") => scenarios::cut_fuse(rest),
        Some("fuse-inside") => scenarios::fuse_inside(rest),
        Some("busy") => scenarios::busy(rest),
        Some("busy-inside") => scenarios::busy_inside(rest),
        Some("capability") => println!("{:?}", holdfast_host::machine::capability()),
        other => {
            eprintln!("holdfast-host-aid: {other:?} is nothing the tests ask for");
            exit(2)
        }
    }
}
