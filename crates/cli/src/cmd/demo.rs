//! `demo`: see [`crate::demo`].

use crate::args::DemoArgs;
use crate::failure::Failure;

pub(super) fn run(args: &DemoArgs, json: bool) -> Result<(), Failure> {
    crate::demo::run(args, json)
}
