//! A disk in memory behind our NBD server, to try clients against:
//! `nbd_mem --socket PATH [--tcp ADDR] [--size BYTES] [--export NAME]`.

#[allow(dead_code)]
mod support;

use holdfast_blockdev::frontend::nbd::{Export, ExportTable};
use std::error::Error;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

/// Size of the disk unless told otherwise: 256 MiB.
const SIZE_DEFAULT: u64 = 256 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (mut socket, mut tcp, mut size, mut name) = (None, None, SIZE_DEFAULT, "mem".to_owned());
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--socket" => socket = Some(value),
            "--tcp" => tcp = Some(value),
            "--size" => size = value.parse()?,
            "--export" => name = value,
            _ => return Err(format!("unknown option {arg}").into()),
        }
    }
    let mut export = Export::new(name, size);
    export.description = "a disk in memory".to_owned();
    let exports = Arc::new(ExportTable::new(vec![export])?);
    let (port, _) = support::memory_disk(size)?;
    if let Some(path) = socket {
        let listener = UnixListener::bind(&path)?;
        let accept = move || Ok(OwnedFd::from(listener.accept()?.0));
        support::serve_all(accept, Arc::clone(&exports), vec![port.clone()]);
        println!("nbd+unix:///?socket={path}");
    }
    if let Some(addr) = tcp {
        let listener = TcpListener::bind(&addr)?;
        println!("nbd://{}", listener.local_addr()?);
        let accept = move || {
            let (stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            Ok(OwnedFd::from(stream))
        };
        support::serve_all(accept, exports, vec![port.clone()]);
    }
    loop {
        std::thread::park();
    }
}
