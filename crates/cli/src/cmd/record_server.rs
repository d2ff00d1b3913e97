//! `record-server`: see [`crate::record`].

use crate::args::RecordServerArgs;
use crate::failure::Failure;

pub(super) fn run(args: &RecordServerArgs) -> Result<(), Failure> {
    Ok(crate::record::serve(
        args.listen,
        args.log.file.as_deref(),
        args.log.nbd_unix.as_deref(),
    )?)
}
