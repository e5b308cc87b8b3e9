//! AMQP 0-9-1 by hand, as far as one publish needs it: for messages that no honest client writes.
#![allow(dead_code)] // each test binary uses its own part of it
#![allow(clippy::unwrap_used)] // a publisher that cannot be had fails the test

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xCE;
/// The header table, and a delivery mode.
const HEADERS_AND_MODE: u16 = 1 << 13 | 1 << 12;
const REPLY_TO: u16 = 1 << 9;
const MESSAGE_ID: u16 = 1 << 7;

/// Properties that no client writes.
#[derive(Debug, Clone, Default)]
pub(super) struct Properties {
    /// The header table, encoded and without its length.
    pub headers: Vec<u8>,
    /// Perhaps no text.
    pub reply_to: Option<Vec<u8>>,
    /// The message's id.
    pub message_id: Option<String>,
}

/// A connection with one channel that confirms.
pub(crate) struct RawPublisher {
    stream: TcpStream,
    frame_max: usize,
}

/// What became of a publish.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// Confirmed.
    Acked,
    /// The broker has closed the channel, with this code.
    Closed(u16),
}

impl RawPublisher {
    /// `uri` is `amqp://user:password@host:port/%2f`.
    pub(crate) fn connect(uri: &str) -> Self {
        let (user, at) = uri.strip_prefix("amqp://").unwrap().split_once('@').unwrap();
        let (user, password) = user.split_once(':').unwrap();
        let mut stream = TcpStream::connect(at.split('/').next().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"AMQP\0\0\x09\x01").unwrap();
        let mut this = Self { stream, frame_max: 4096 };
        this.expect(10, 10);
        let secret = format!("\0{user}\0{password}");
        this.method(0, 10, 11, &[&long(b""), &short("PLAIN"), &long(secret.as_bytes()), &short("en_US")]);
        let tune = this.expect(10, 30);
        this.frame_max = u32::from_be_bytes(tune[2..6].try_into().unwrap()) as usize;
        this.method(0, 10, 31, &[&tune[..6], &[0, 0]]);
        this.method(0, 10, 40, &[&short("/"), &short(""), &[0]]);
        this.expect(10, 41);
        this.method(1, 20, 10, &[&short("")]);
        this.expect(20, 11);
        this.method(1, 85, 10, &[&[0]]);
        this.expect(85, 11);
        this
    }

    /// Publishes a persistent message whose header table is `headers`, encoded and without its length, and waits for
    /// what becomes of it.
    pub(super) fn publish(
        &mut self,
        exchange: &str,
        routing_key: &str,
        headers: &[u8],
        body: &[u8],
    ) -> Published {
        let properties = Properties { headers: headers.to_vec(), ..Properties::default() };
        self.publish_with(exchange, routing_key, &properties, body)
    }

    /// The same with more properties.
    pub(super) fn publish_with(
        &mut self,
        exchange: &str,
        routing_key: &str,
        properties: &Properties,
        body: &[u8],
    ) -> Published {
        self.method(1, 60, 40, &[&[0, 0], &short(exchange), &short(routing_key), &[0]]);
        let length = (body.len() as u64).to_be_bytes();
        let Properties { headers, reply_to, message_id } = properties;
        let flag = |is_there: bool, flag: u16| if is_there { flag } else { 0 };
        let flags =
            HEADERS_AND_MODE | flag(reply_to.is_some(), REPLY_TO) | flag(message_id.is_some(), MESSAGE_ID);
        let mut header = [&[0, 60, 0, 0][..], &length, &flags.to_be_bytes(), &long(headers), &[2]].concat();
        let texts = [reply_to.as_deref(), message_id.as_deref().map(str::as_bytes)];
        header.extend(texts.into_iter().flatten().flat_map(short_bytes));
        self.frame(HEADER, 1, &header);
        for piece in body.chunks(self.frame_max - 8) {
            self.frame(BODY, 1, piece);
        }
        let (kind, payload) = self.read();
        match (kind, &payload[..4]) {
            (METHOD, [0, 60, 0, 80]) => Published::Acked,
            (METHOD, [0, 20, 0, 40]) => Published::Closed(u16::from_be_bytes([payload[4], payload[5]])),
            other => panic!("neither a confirm nor a close: {other:?}"),
        }
    }

    fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[&[u8]]) {
        let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), &arguments.concat()].concat();
        self.frame(METHOD, channel, &payload);
    }

    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap();
        let head = [&[kind][..], &channel.to_be_bytes(), &length.to_be_bytes()].concat();
        // A broker that has closed the channel meanwhile says so if it is asked.
        self.stream.write_all(&[&head, payload, &[FRAME_END]].concat()).unwrap();
    }

    fn read(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 7];
        self.stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes(head[3..7].try_into().unwrap()) as usize;
        let mut payload = vec![0; length + 1];
        self.stream.read_exact(&mut payload).unwrap();
        assert_eq!(payload.pop(), Some(FRAME_END));
        (head[0], payload)
    }

    /// The arguments of the method that comes next, which must be this one.
    fn expect(&mut self, class: u16, method: u16) -> Vec<u8> {
        let (kind, payload) = self.read();
        let name = [class.to_be_bytes(), method.to_be_bytes()].concat();
        assert!(kind == METHOD && payload.starts_with(&name), "not {class}.{method}: {payload:?}");
        payload[4..].to_vec()
    }
}

fn short(text: &str) -> Vec<u8> {
    short_bytes(text.as_bytes())
}

fn short_bytes(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// A header table with the one entry `deep`: arrays (`b'A'`) or tables (`b'F'`) in one another.
pub(crate) fn nested(kind: u8, levels: usize) -> Vec<u8> {
    let mut value = Vec::new();
    for _ in 0..levels {
        let inner = long(&value);
        // A table's only entry has an empty name; the outermost one is `deep`.
        let name: &[u8] = if kind == b'F' { &[0] } else { &[] };
        value = [name, &[kind], &inner].concat();
    }
    [&short("deep")[..], &value[usize::from(kind == b'F')..]].concat()
}
