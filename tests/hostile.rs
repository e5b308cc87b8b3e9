//! The HTTP client against peers that mean harm, or are broken: endless, huge, slow, malformed. Whatever they send, a
//! call ends by its deadline, takes little memory, and is never a success nor a refusal.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]
#![allow(clippy::print_stdout, reason = "what each took is worth a line")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use peak_alloc::PeakAlloc;
use redeemer::redemption::Redemption;
use redeemer::verdict::{Question, Reply, Verdict, judge};
use redeemer::wechat::api::{Client, Prepared, Settings};
use redeemer::wechat::keys::{Keyring, MerchantKey, PublicKeys};
use redeemer::wechat::sign::Merchant;
use redeemer::wire::command;
use serde_json::json;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const KEY: &str = include_str!("fixtures/documentation_test_key.pem");
const TOTAL: Duration = Duration::from_secs(2);
const REPLY_BYTES_MAX: usize = 256 * 1024;
/// The peer's own pieces, the client's buffers, and what is read of a reply.
const MEMORY_MAX: usize = 8 * 1024 * 1024;
const MIB: usize = 1024 * 1024;

/// What a peer sends when it has read a request. An error ends it: the client has gone, as it should.
type Script = fn(&mut TcpStream) -> std::io::Result<()>;

fn say(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    stream.write_all(text.as_bytes())
}

/// The same piece for as long as anybody listens.
fn for_ever(stream: &mut TcpStream, piece: &[u8]) -> std::io::Result<()> {
    loop {
        stream.write_all(piece)?;
    }
}

const SCRIPTS: [(&str, Script); 19] = [
    ("a body of 100 MB, announced", |stream| {
        say(stream, "HTTP/1.1 200 OK\r\ncontent-length: 104857600\r\n\r\n")?;
        (0..100).try_for_each(|_| stream.write_all(&[b' '; MIB]))
    }),
    ("an endless body, in chunks", |stream| {
        say(stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
        for_ever(
            stream,
            b"1000\r\n".iter().chain(&[b'x'; 0x1000]).chain(b"\r\n").copied().collect::<Vec<_>>().as_slice(),
        )
    }),
    ("an endless body, without a length", |stream| {
        say(stream, "HTTP/1.1 200 OK\r\n\r\n")?;
        for_ever(stream, &[b'['; 0x1000])
    }),
    ("chunks of one byte", |stream| {
        say(stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
        for_ever(stream, b"1\r\nx\r\n")
    }),
    ("a chunk of more bytes than there are", |stream| {
        say(stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n")?;
        for_ever(stream, &[b'x'; 0x1000])
    }),
    ("headers without end", |stream| {
        say(stream, "HTTP/1.1 200 OK\r\n")?;
        for_ever(stream, b"x-more: and more\r\n")
    }),
    ("a header of 1 MB", |stream| {
        say(stream, "HTTP/1.1 200 OK\r\nwechatpay-signature: ")?;
        stream.write_all(&vec![b'A'; MIB])?;
        say(stream, "\r\ncontent-length: 2\r\n\r\n{}")
    }),
    ("a status line without end", |stream| {
        say(stream, "HTTP/1.1 200 ")?;
        for_ever(stream, &[b'O'; 0x1000])
    }),
    ("one byte at a time", |stream| {
        say(stream, "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")?;
        loop {
            stream.write_all(b" ")?;
            stream.flush()?;
            thread::sleep(Duration::from_millis(20));
        }
    }),
    ("silence", |stream| stream.read(&mut [0]).map(drop)),
    // The HTTP library reads these without a pause for as long as its buffer holds some, and keeps a thread meanwhile:
    // without end they would slow all calls of a debug build by seconds at a time. The peer is the provider, by TLS.
    ("a hundred thousand provisional answers", |stream| {
        (0..100).try_for_each(|_| stream.write_all(&b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1_000)))?;
        stream.read(&mut [0]).map(drop)
    }),
    ("less than was announced", |stream| {
        say(stream, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"coupon_code\":")
    }),
    ("more than was announced", |stream| {
        say(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}{\"coupon_state\":\"USED\"}HTTP/1.1 200 OK\r\n\r\n",
        )
    }),
    ("two lengths", |stream| {
        say(stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 200\r\n\r\n{}")
    }),
    ("no HTTP", |stream| stream.write_all(&(0..=255).cycle().take(0x10000).collect::<Vec<u8>>())),
    ("headers that are no text", |stream| {
        let head = b"HTTP/1.1 200 OK\r\nwechatpay-serial: \xff\xfe\r\nrequest-id: \xf0\x9f\x98\x80\r\ncontent-length: 2\r\n\r\n{}";
        stream.write_all(head)
    }),
    ("JSON of a hundred thousand levels", |stream| {
        say(stream, "HTTP/1.1 403 Forbidden\r\ncontent-length: 200000\r\n\r\n")?;
        stream.write_all(&[b'['; 100_000])?;
        stream.write_all(&[b']'; 100_000])
    }),
    ("a bomb of gzip", |stream| {
        // Said to be compressed; we ask for no encoding and open none.
        say(stream, "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 200000\r\n\r\n")?;
        stream.write_all(b"\x1f\x8b\x08\0\0\0\0\0\0\x03")?;
        stream.write_all(&[0xec; 199_990])
    }),
    ("a way elsewhere", |stream| {
        say(
            stream,
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n",
        )
    }),
];

fn redemption() -> Redemption {
    let command = json!({
        "openid": "oh-394z-6CGkNoJrsDLTTUKiAnp4", "coupon_code": "123446565767", "brand_id": "120344",
        "product_coupon_id": "1000000013", "stock_id": "1000000013001", "appid": "wx233544546545989",
        "use_time": "2025-07-24T00:00:00+08:00", "out_request_no": "34657_20250101_123456",
        "associated_order_info": {"transaction_id": "4200000000123456789123456789"},
    });
    command::decode(command.to_string().as_bytes()).unwrap()
}

fn client(port: u16) -> Client {
    let keys = Keyring {
        merchant: MerchantKey::from_pem(KEY, "the documentation").unwrap(),
        merchant_serial: None,
        merchant_expires: None,
        left_out: vec![],
        public: PublicKeys::default(),
    };
    let settings = Settings {
        merchant: Merchant { mchid: "1".to_owned(), serial: "2".to_owned() },
        verification_serial: Some("PUB_KEY_ID_1".to_owned()),
        base_url: format!("http://127.0.0.1:{port}"),
        backup_base_url: None,
        connect_timeout: Duration::from_secs(1),
        read_timeout: Duration::from_secs(1),
        total_timeout: TOTAL,
        reply_bytes_max: REPLY_BYTES_MAX,
    };
    Client::new(settings, Arc::new(RwLock::new(Arc::new(keys)))).unwrap()
}

/// Answers every connection by the script, each on a thread of its own, until the client leaves.
fn peer(script: Script) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut request = [0; 16 * 1024];
                // One read takes the request, which is small; what is left of it harms nobody.
                if stream.read(&mut request).is_ok_and(|read| read > 0) {
                    let _ = script(&mut stream);
                }
            });
        }
    });
    port
}

// One after the other: the allocator counts for the whole process. Several threads, as the service has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_peer_sends_a_call_ends_in_time_with_little_memory_and_proves_nothing() {
    let redemption = redemption();
    let prepared = Prepared::new(&redemption);
    for (name, script) in SCRIPTS {
        let client = client(peer(script));
        for question in [Question::Redeem, Question::Inquire] {
            MEMORY.reset_peak_usage();
            let (before, since) = (MEMORY.current_usage(), Instant::now());
            let heard = client.ask(question, &prepared, None, Timestamp::now(), 1, 0.5).await;
            let (took, memory) = (since.elapsed(), MEMORY.peak_usage().saturating_sub(before));
            let verdict = judge(question, &heard.reply, &redemption);
            println!("{name}: {verdict:?} after {took:.1?}, {} KiB", memory / 1024);
            assert!(took < TOTAL + Duration::from_secs(3), "{name}: {took:?}");
            assert!(memory < MEMORY_MAX, "{name}: {memory} bytes");
            let proves_nothing = match verdict {
                Verdict::Unsure(_) | Verdict::NotSent => true,
                // An unsigned refusal is asked about, and sent once more where the coupon is usable.
                Verdict::Objected { signed, .. } => !signed,
                _ => false,
            };
            assert!(proves_nothing, "{name}: {verdict:?} on {:?}", heard.reply);
            assert!(!matches!(heard.reply, Reply::NotSent(_)), "{name}: it was sent");
        }
    }
}
