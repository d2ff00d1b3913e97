//! What arrives as text or as bincode: the configuration, requests on the API socket, control messages.

use crate::switches;
use holdfast_config::Config;
use holdfast_control::{Message, durable};
use holdfast_node::api_types::{Reply, Request};
use holdfast_node::daemon::MeshMessage;
use holdfast_node::net::framing;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// A secret that no message may contain.
pub(crate) const SECRET: &str = "never-to-be-seen-in-any-message-at-all";

/// `cluster.toml`.
pub(crate) fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let shown = match Config::parse(text, Path::new("cluster.toml")) {
        Ok(config) => format!("{config:?}"),
        Err(errors) => errors.to_string(),
    };
    assert!(!shown.is_empty());
    // An error may quote a line; the one with the secret only without it.
    let names_it = format!("secret = \"{SECRET}\"");
    if text.contains(&names_it) && text.matches(SECRET).count() == 1 {
        assert!(!shown.contains(SECRET), "the secret is told: {shown}");
    }
}

/// A line of JSON, from a client or from a daemon.
pub(crate) fn api(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(request) = serde_json::from_str::<Request>(text) {
        let again = serde_json::to_string(&request).expect("what was decoded encodes");
        assert_eq!(serde_json::from_str::<Request>(&again).ok(), Some(request));
    }
    if let Ok(reply) = serde_json::from_str::<Reply>(text) {
        let again = serde_json::to_string(&reply).expect("what was decoded encodes");
        let read = serde_json::from_str::<Reply>(&again).expect("what was encoded decodes");
        assert_eq!(serde_json::to_string(&read).ok(), Some(again));
    }
}

/// A message between control planes, alone and framed; the durable state's slots.
pub(crate) fn control(input: &[u8]) {
    let (switches, bytes) = switches(input);
    if let Ok(message) = Message::decode(bytes) {
        let again = message.encode().expect("what was decoded encodes");
        assert!(again.len() <= bytes.len(), "the shortest encoding");
        assert!(!message.word().is_empty());
        assert_eq!(Message::decode(&again), Ok(message));
    }
    let mut framed = Vec::new();
    if switches & 1 != 0 {
        framed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        framed.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    }
    framed.extend_from_slice(bytes);
    let mut stream = &framed[..];
    let mut reading = pin!(framing::read::<MeshMessage>(&mut stream));
    // A stream that is in memory is never waited for.
    match reading
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(Ok(Some(message))) => {
            assert!(framing::encode(&message).is_ok());
        }
        Poll::Ready(Ok(None)) => assert!(framed.is_empty()),
        Poll::Ready(Err(error)) => assert!(!error.to_string().is_empty()),
        Poll::Pending => panic!("bytes in memory are waited for"),
    }
    let middle = bytes.len() / 2;
    if let Ok((Some(payload), slots)) = durable::choose([&bytes[..middle], &bytes[middle..]]) {
        assert!(payload.len() <= durable::SLOT_PAYLOAD_BYTES_MAX && slots.generation > 0);
    }
}
