//! Messages of the control mesh on a byte stream: length, CRC-32, bincode body.
//!
//! A connection that carries one bad frame is closed: TCP does not damage bytes, so damage means
//! a fault that must not be guessed around.

use serde::{Serialize, de::DeserializeOwned};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Largest message between two nodes' control planes, in bytes: a whole control state with its history fits.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Bytes of length and CRC before each body.
const HEAD_BYTES: usize = 8;

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MESSAGE_BYTES_MAX>,
> = bincode::config::standard().with_limit::<MESSAGE_BYTES_MAX>();

/// The bytes of one message.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let body = bincode::serde::encode_to_vec(message, CONFIG).map_err(io::Error::other)?;
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "a control message of {} bytes is over the limit of {MESSAGE_BYTES_MAX}",
            body.len()
        )));
    }
    let mut out = Vec::with_capacity(HEAD_BYTES + body.len());
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    out.extend_from_slice(&body);
    Ok(out)
}

/// Reads one message. `Ok(None)` is the orderly end of the stream.
pub async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut head = [0; HEAD_BYTES];
    let first = stream.read(&mut head).await?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[first..]).await?;
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    if len > MESSAGE_BYTES_MAX {
        return Err(bad(format!(
            "a frame of {len} bytes, the limit is {MESSAGE_BYTES_MAX}"
        )));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await?;
    if crc32fast::hash(&body) != crc {
        return Err(bad("a frame with a wrong checksum".into()));
    }
    let (message, used) = bincode::serde::decode_from_slice(&body, CONFIG)
        .map_err(|e| bad(format!("a frame that is no message: {e}")))?;
    if used != len {
        return Err(bad(format!(
            "{} bytes after the end of a message",
            len - used
        )));
    }
    Ok(Some(message))
}

fn bad(what: String) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("control connection: the peer sent {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(bytes: &[u8]) -> io::Result<Option<(u32, String)>> {
        let rt = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        rt.block_on(async { read(&mut &bytes[..]).await })
    }

    #[test]
    fn what_goes_in_comes_out() {
        let m = (7_u32, "promote".to_owned());
        assert_eq!(read_all(&encode(&m).unwrap()).unwrap(), Some(m));
        assert_eq!(read_all(&[]).unwrap(), None);
    }

    #[test]
    fn damage_is_noticed_wherever_it_is() {
        let good = encode(&(7_u32, "promote".to_owned())).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            assert!(read_all(&bytes).is_err(), "byte {at}");
        }
        for len in 1..good.len() {
            assert!(read_all(&good[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_huge_length_allocates_nothing() {
        let e = read_all(&[0xff; 8]).unwrap_err();
        assert!(e.to_string().contains("limit"), "{e}");
    }

    #[test]
    fn bytes_after_a_message_are_refused() {
        let body = [
            bincode::serde::encode_to_vec((1_u32, "x"), CONFIG).unwrap(),
            vec![0],
        ]
        .concat();
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        assert!(
            read_all(&bytes)
                .unwrap_err()
                .to_string()
                .contains("after the end")
        );
    }
}
