//! A payment API that answers to do harm: without end, without sense, too much, too deep, too slow, or more than was
//! asked. Raw listeners play it against the real client.
//!
//! Whatever comes, the call ends in time, memory stays in proportion to the longest answer that is read, and what is
//! concluded is that nothing is known: never a success, never a refusal.

#![allow(clippy::unwrap_used, reason = "a test may; the lint only spares the test functions themselves")]
#![allow(clippy::print_stdout, reason = "what a case took is worth a line")]

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use peak_alloc::PeakAlloc;
use redeemer::domain::evidence::Operation;
use redeemer::domain::redemption::Redemption;
use redeemer::policy::classify::{
    Authenticity, CallResult, NoResponse, NotSent, Response, SignatureFlaw, Verdict, classify,
};
use redeemer::wechat::certificates::{ApiV3Key, NoCertificates};
use redeemer::wechat::client::{CallOutcome, Client, PaymentSettings, Prepared};
use redeemer::wechat::keys::{Keyring, MerchantKey, PublicKeys, VerificationKey};
use redeemer::wechat::sign::Merchant;
use redeemer::wire::command;
use tokio::sync::{Mutex, MutexGuard};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The allocator counts for the whole process, so one call is made at a time, and what it is answered with is built in
/// the same turn.
static ALONE: Mutex<()> = Mutex::const_new(());

const KEY: &str = include_str!("fixtures/documentation_test_key.pem");
const KEY_ID: &str = "PUB_KEY_ID_0000000000000024101100397200000006";
const APIV3_KEY: &str = "0123456789abcdef0123456789ABCDEF";

/// The built-in bound of an answer.
const RESPONSE_BYTES_MAX: usize = 256 * 1024;
/// Between two pieces of what comes drop by drop.
const DRIP: Duration = Duration::from_millis(50);
/// What a busy machine may add to a deadline.
const SLACK: Duration = Duration::from_secs(3);
/// What one call may hold at once: the answer while its buffer grows, the HTTP library's own buffer of 400 KiB while
/// that one grows, and the headers read from it.
const BYTES_MAX: usize = 8 * RESPONSE_BYTES_MAX;
/// The longest wait of a listener for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the client waits.
#[derive(Clone, Copy)]
struct Pace {
    read: Duration,
    total: Duration,
}

impl Pace {
    /// For an answer that only time ends.
    const HURRIED: Self = Self { read: Duration::from_secs(1), total: Duration::from_secs(2) };
    /// For what must come out the same on a machine that is busy with other things.
    const PATIENT: Self = Self { read: Duration::from_secs(15), total: Duration::from_secs(30) };

    fn of(wanted: &[&str]) -> Self {
        if wanted.contains(&"timeout") { Self::HURRIED } else { Self::PATIENT }
    }
}

/// A piece of a flood. It lies in the program, so that sending it takes no memory.
static FLOOD: [u8; 64 * 1024] = [b'['; 64 * 1024];

// ---- the client

fn redemption(code: &str) -> Redemption {
    let command = format!(
        r#"{{"openid": "oUser", "coupon_code": "{code}", "brand_id": "120344",
        "product_coupon_id": "1000000013", "stock_id": "1000000013001", "appid": "wx1",
        "use_time": "2026-03-05T12:30:45+08:00", "out_request_no": "USE_{code}",
        "associated_order_info": {{"transaction_id": "4200000000123456789123456789"}}}}"#
    );
    command::decode(command.as_bytes()).unwrap()
}

/// The coupon as the provider shows it once it is ours.
fn entity(code: &str) -> String {
    format!(
        r#"{{"coupon_code":"{code}","coupon_state":"USED","single_usage_detail":{{"use_request_no":"USE_{code}"}}}}"#
    )
}

fn client(base_url: &str, pace: Pace) -> Client {
    let merchant = MerchantKey::from_pem(KEY, "test").unwrap();
    let der = STANDARD.encode(merchant.public_der());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", folded(&der));
    let mut public = PublicKeys::default();
    // The same key signs requests and answers: what is tried here is what surrounds a signature.
    public.insert(KEY_ID.to_owned(), VerificationKey::from_public_pem(&pem, "test").unwrap());
    let keyring =
        Keyring { merchant, merchant_serial: None, merchant_expires: None, left_out: vec![], public };
    let settings = PaymentSettings {
        merchant: Merchant { mchid: "1".to_owned(), serial: "2".to_owned() },
        verification_serial: Some(KEY_ID.to_owned()),
        base_url: base_url.to_owned(),
        backup_base_url: None,
        connect_timeout: Duration::from_secs(10),
        read_timeout: pace.read,
        total_timeout: pace.total,
        response_bytes_max: RESPONSE_BYTES_MAX,
    };
    Client::new(settings, Arc::new(RwLock::new(Arc::new(keyring)))).unwrap()
}

fn folded(text: &str) -> String {
    let lines = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

// ---- the listener

/// Plays an answer to anyone who asked; ends when it is reported, or when the client has hung up.
type Act = Box<dyn FnOnce(&mut TcpStream) -> io::Result<()> + Send>;

fn act(play: impl FnOnce(&mut TcpStream) -> io::Result<()> + Send + 'static) -> Act {
    Box::new(play)
}

fn say(bytes: impl Into<Vec<u8>>) -> Act {
    let bytes = bytes.into();
    act(move |stream| stream.write_all(&bytes))
}

/// Says the beginning, and the rest for ever.
fn for_ever(beginning: &'static str, rest: &'static [u8]) -> Act {
    act(move |stream| {
        stream.write_all(beginning.as_bytes())?;
        loop {
            stream.write_all(rest)?;
        }
    })
}

/// Says the beginning, and then one piece after the other, each well within the longest wait between two.
fn drip(beginning: &'static str, piece: &'static [u8]) -> Act {
    act(move |stream| {
        stream.write_all(beginning.as_bytes())?;
        loop {
            stream.write_all(piece)?;
            std::thread::sleep(DRIP);
        }
    })
}

/// Answers one operation on each connection, in this order.
fn listen(acts: Vec<Act>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let played = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for play in acts {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            asked.push(operation(&mut stream));
            // Whether the client hangs up in the midst is its own affair.
            if let Err(error) = play(&mut stream) {
                let kind = error.kind();
                let hung_up = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset].contains(&kind);
                assert!(hung_up, "the client neither reads nor hangs up: {error}");
            }
        }
        asked
    });
    (url, played)
}

/// Waits for a listener to end. The client's connections must have their turn meanwhile, to hang up.
async fn ended<T: Send + 'static>(played: JoinHandle<T>) -> T {
    tokio::task::spawn_blocking(|| played.join().unwrap()).await.unwrap()
}

/// Reads one operation to its end.
fn operation(stream: &mut TcpStream) -> String {
    let mut asked = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).unwrap();
        asked.extend_from_slice(&piece[..read]);
        let text = std::str::from_utf8(&asked).unwrap();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() == length.map_or(0, |length| length.parse().unwrap()) {
                return text.to_owned();
            }
        }
        assert_ne!(read, 0, "the operation ended too early: {text}");
    }
}

/// An answer with the provider's signature over `signed`, and `said` as its body.
fn answer(more: &str, signed: &[u8], said: &[u8]) -> Vec<u8> {
    let timestamp = Timestamp::now().as_second();
    let mut message = format!("{timestamp}\nn\n").into_bytes();
    message.extend_from_slice(signed);
    message.push(b'\n');
    let key = MerchantKey::from_pem(KEY, "test").unwrap();
    let signature = STANDARD.encode(key.sign(&message).unwrap());
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nwechatpay-timestamp: {timestamp}\r\nwechatpay-nonce: n\r\nwechatpay-serial: {KEY_ID}\r\n\
         wechatpay-signature: {signature}\r\n{more}\r\n"
    )
    .into_bytes();
    answer.extend_from_slice(said);
    answer
}

/// An answer that is right in everything, with the length of its body.
fn sound(more: &str, body: &[u8]) -> Vec<u8> {
    answer(&format!("content-length: {}\r\n{more}", body.len()), body, body)
}

// ---- what is made of it

/// A reply in a word.
fn gist(reply: &CallResult) -> &'static str {
    match reply {
        CallResult::NotSent(NotSent::Connect) => "not sent",
        CallResult::NoResponse(NoResponse::Timeout) => "timeout",
        CallResult::NoResponse(NoResponse::Reset) => "reset",
        CallResult::NoResponse(NoResponse::TooLarge) => "too large",
        CallResult::Response(answer) => match (answer.authenticity, &answer.coupon) {
            (Authenticity::Unsigned, _) => "unsigned",
            (Authenticity::Invalid(SignatureFlaw::Malformed), _) => "malformed signature",
            (Authenticity::Invalid(_), _) => "unconvincing",
            (Authenticity::Verified, None) => "verified, no coupon",
            (Authenticity::Verified, Some(_)) => "verified",
        },
    }
}

/// Asks once, with time and memory measured.
async fn ask(name: &str, client: &Client, pace: Pace, _alone: &MutexGuard<'_, ()>) -> CallOutcome {
    let prepared = Prepared::new(&redemption("C1"));
    let since = Instant::now();
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let heard = client.send(Operation::Redeem, &prepared, None, Timestamp::now(), 7, 0.5).await;
    let taken = MEMORY.peak_usage().saturating_sub(before);
    let took = since.elapsed();
    println!("{name}: {} after {took:.1?}, at most {} KiB", gist(&heard.result), taken / 1024);
    assert!(taken <= BYTES_MAX, "{name}: {taken} bytes");
    assert!(took < pace.total + SLACK, "{name}: {took:?}");
    heard
}

/// The answer is heard as one of these, and nothing is concluded from it.
async fn check(alone: &MutexGuard<'_, ()>, name: &str, play: Act, wanted: &[&str]) {
    let (url, played) = listen(vec![play]);
    let pace = Pace::of(wanted);
    let client = client(&url, pace);
    let heard = ask(name, &client, pace, alone).await;
    assert!(wanted.contains(&gist(&heard.result)), "{name}: {heard:?}");
    for operation in [Operation::Redeem, Operation::Query] {
        let verdict = classify(operation, &heard.result, &redemption("C1"));
        assert!(matches!(verdict, Verdict::Unknown(_)), "{name}: {operation:?}: {verdict:?}");
    }
    drop(client);
    let asked = ended(played).await;
    assert!(!asked[0].to_ascii_lowercase().contains("accept-encoding"), "{}", asked[0]);
}

#[tokio::test]
async fn the_listener_is_believed_when_it_is_honest() {
    let alone = ALONE.lock().await;
    let (url, played) = listen(vec![say(sound("", entity("C1").as_bytes()))]);
    let heard = ask("honest", &client(&url, Pace::PATIENT), Pace::PATIENT, &alone).await;
    assert_eq!(classify(Operation::Redeem, &heard.result, &redemption("C1")), Verdict::Redeemed, "{heard:?}");
    ended(played).await;
}

#[tokio::test]
async fn a_body_without_measure_is_not_read_to_its_end() {
    let alone = ALONE.lock().await;
    const HUGE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 104857600\r\n\r\n";
    let hundred_megabytes = act(|stream| {
        stream.write_all(HUGE.as_bytes())?;
        (0..1_600).try_for_each(|_| stream.write_all(&FLOOD))
    });
    check(&alone, "100 MB", hundred_megabytes, &["too large"]).await;
    check(
        &alone,
        "to the end of the connection",
        for_ever("HTTP/1.1 200 OK\r\n\r\n", &FLOOD),
        &["too large"],
    )
    .await;
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    // They cost more time than memory.
    check(&alone, "chunks of a byte", for_ever(CHUNKED, b"1\r\n[\r\n"), &["too large", "timeout"]).await;
    const ONE_CHUNK: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFF\r\n";
    check(&alone, "one chunk of an exabyte", for_ever(ONE_CHUNK, &FLOOD), &["too large"]).await;
    const TOO_MANY: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n";
    check(&alone, "a chunk of 2^72 bytes", for_ever(TOO_MANY, &FLOOD), &["reset"]).await;
    const EXTENDED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;";
    check(&alone, "an endless chunk extension", for_ever(EXTENDED, &FLOOD), &["reset"]).await;
    const TRAILED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n";
    check(&alone, "endless trailers", for_ever(TRAILED, b"x: y\r\n"), &["reset"]).await;
    const ENDLESS_ERROR: &str = "HTTP/1.1 502 Bad Gateway\r\n\r\n{\"message\":\"";
    check(&alone, "an endless error", for_ever(ENDLESS_ERROR, &FLOOD), &["too large"]).await;
}

#[tokio::test]
async fn a_head_without_measure_is_not_read_to_its_end() {
    let alone = ALONE.lock().await;
    check(&alone, "endless headers", for_ever("HTTP/1.1 200 OK\r\n", b"x: y\r\n"), &["reset"]).await;
    check(&alone, "an endless header", for_ever("HTTP/1.1 200 OK\r\nx: ", &FLOOD), &["reset"]).await;
    check(&alone, "an endless status", for_ever("HTTP/1.1 200 ", &FLOOD), &["reset"]).await;
    check(&alone, "an endless name of a header", for_ever("HTTP/1.1 200 OK\r\n", &[b'x'; 4096]), &["reset"])
        .await;
    let headers = |bytes: usize, of: usize| {
        let count = bytes / of;
        let line = |nth: usize| format!("x-{nth}: {}\r\n", "y".repeat(of));
        let more: String = (0..count).map(line).collect();
        say(sound(&more, entity("C1").as_bytes()))
    };
    check(&alone, "headers of 1 MB, one", headers(1_048_576, 1_048_576), &["reset"]).await;
    check(&alone, "headers of 1 MB, 64", headers(1_048_576, 16_384), &["reset"]).await;
    check(&alone, "a thousand headers", headers(10_000, 10), &["reset"]).await;
    let long = format!("HTTP/1.1 200 OK\r\nwechatpay-signature: {}\r\n\r\n", "QUJD".repeat(75_000));
    check(&alone, "a signature of 300 KB", say(long), &["malformed signature"]).await;
    let long =
        format!("HTTP/1.1 200 OK\r\nrequest-id: {}-1\r\ncontent-length: 0\r\n\r\n", "9".repeat(300_000));
    check(&alone, "a request id of 300 KB", say(long), &["unsigned"]).await;
}

#[tokio::test]
async fn who_answers_slowly_is_not_waited_for() {
    let alone = ALONE.lock().await;
    const LENGTH: &str = "HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n{";
    check(&alone, "a body drop by drop", drip(LENGTH, b" "), &["timeout"]).await;
    check(&alone, "a head drop by drop", drip("HTTP/1.1 200 OK\r\nx: ", b"y"), &["timeout"]).await;
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    check(&alone, "chunks drop by drop", drip(CHUNKED, b"1\r\n \r\n"), &["timeout"]).await;
    let silent = |said: &'static str| {
        act(move |stream| {
            stream.write_all(said.as_bytes())?;
            // Until the client hangs up.
            stream.read(&mut [0; 1]).map(drop)
        })
    };
    check(&alone, "silence after the operation", silent(""), &["timeout"]).await;
    check(&alone, "silence in the head", silent("HTTP/1.1 200 OK\r\n"), &["timeout"]).await;
    check(&alone, "silence in the body", silent(LENGTH), &["timeout"]).await;
}

#[tokio::test]
async fn interim_answers_lead_nowhere() {
    let alone = ALONE.lock().await;
    const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n";
    check(&alone, "a flood of 100", interim(CONTINUE), &["timeout"]).await;
    check(&alone, "a flood of 103", interim(HINTS), &["timeout"]).await;
    check(&alone, "100 drop by drop", drip("", CONTINUE.as_bytes()), &["timeout"]).await;
    let switched = "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
    check(&alone, "another protocol", for_ever(switched, &FLOOD), &["unsigned", "reset", "too large"]).await;
}

/// Interim answers without end; without optimization 100,000 of them, and then silence. The HTTP library reads some
/// 50 MB of them before it lets others have their turn: half a second, or ten seconds if it is not optimized.
fn interim(answer: &str) -> Act {
    let thousand = answer.repeat(1_000);
    act(move |stream| {
        let floods = if cfg!(debug_assertions) { 100 } else { usize::MAX };
        (0..floods).try_for_each(|_| stream.write_all(thousand.as_bytes()))?;
        stream.read(&mut [0; 1]).map(drop)
    })
}

#[tokio::test]
async fn a_signature_over_nonsense_makes_no_success() {
    let alone = ALONE.lock().await;
    let with = |member: &str| entity("C1").replacen('{', &format!("{{\"x\":{member},"), 1);
    for (name, body) in [
        ("brackets alone", "[".repeat(200_000)),
        ("two coupons", entity("C1") + &entity("C1")),
        ("a state twice", with("1").replacen('{', r#"{"coupon_state":"EFFECTIVE","#, 1)),
        ("a list", format!("[{}]", entity("C1"))),
        ("a byte order mark", format!("\u{feff}{}", entity("C1"))),
        ("nothing", String::new()),
        ("HTML", "<html><body>OK</body></html>".to_owned()),
    ] {
        check(&alone, name, say(sound("", body.as_bytes())), &["verified, no coupon"]).await;
    }
    let mut broken = entity("C1").into_bytes();
    broken[20] = 0xff;
    check(&alone, "not UTF-8", say(sound("", &broken)), &["verified, no coupon"]).await;
    let utf16: Vec<u8> = entity("C1").encode_utf16().flat_map(u16::to_be_bytes).collect();
    check(&alone, "UTF-16", say(sound("", &utf16)), &["verified, no coupon"]).await;
}

/// It is signed, so it is true; what is passed on of it is what every subscriber can read.
#[tokio::test]
async fn a_signed_coupon_is_read_whatever_hides_in_it() {
    let alone = ALONE.lock().await;
    let with = |member: &str| entity("C1").replacen('{', &format!("{{\"x\":{member},"), 1);
    let deep =
        |open: &str, close: &str, depth: usize| with(&(open.repeat(depth) + "1" + &close.repeat(depth)));
    for (name, body) in [
        ("nested 100 deep", deep("[", "]", 100)),
        ("nested 100,000 deep", deep("[", "]", 100_000)),
        ("objects 30,000 deep", deep("{\"a\":", "}", 30_000)),
        ("half of a surrogate pair", with(r#""\ud800""#)),
        ("a number that no machine holds", with("1e999999")),
        ("a number of 200,000 digits", with(&"9".repeat(200_000))),
    ] {
        let (url, played) = listen(vec![say(sound("", body.as_bytes()))]);
        let heard = ask(name, &client(&url, Pace::PATIENT), Pace::PATIENT, &alone).await;
        assert_eq!(
            classify(Operation::Redeem, &heard.result, &redemption("C1")),
            Verdict::Redeemed,
            "{name}"
        );
        let CallResult::Response(Response { coupon: Some(coupon), .. }) = &heard.result else {
            panic!("{name}: {heard:?}")
        };
        let passed_on: serde_json::Value = serde_json::from_str(&coupon.entity).unwrap();
        assert_eq!(
            (&passed_on["coupon_code"], &passed_on["coupon_state"]),
            (&"C1".into(), &"USED".into()),
            "{name}"
        );
        ended(played).await;
    }
}

#[tokio::test]
async fn what_is_compressed_is_not_unpacked() {
    let alone = ALONE.lock().await;
    let bomb = packed(100 * 1024 * 1024, b' ');
    assert!(bomb.len() < RESPONSE_BYTES_MAX, "{}", bomb.len());
    let gzip = "content-encoding: gzip\r\n";
    check(&alone, "a bomb", say(sound(gzip, &bomb)), &["verified, no coupon"]).await;
    check(
        &alone,
        "a bomb under another name",
        say(sound("content-encoding: gzip, gzip\r\n", &bomb)),
        &["verified, no coupon"],
    )
    .await;
    let length = format!("transfer-encoding: gzip, chunked\r\n\r\n{:x}\r\n", bomb.len());
    let mut said = format!("HTTP/1.1 200 OK\r\n{length}").into_bytes();
    said.extend_from_slice(&bomb);
    said.extend_from_slice(b"\r\n0\r\n\r\n");
    check(&alone, "a bomb as a transfer encoding", say(said), &["unsigned", "reset"]).await;
}

/// So much of one byte, packed by the gzip program.
fn packed(bytes: usize, of: u8) -> Vec<u8> {
    let mut gzip = Command::new("gzip")
        .args(["-9", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the gzip program is needed for this test");
    let mut input = gzip.stdin.take().unwrap();
    let fed = std::thread::spawn(move || {
        let piece = [of; 64 * 1024];
        (0..bytes / piece.len()).try_for_each(|_| input.write_all(&piece))
    });
    let packed = gzip.wait_with_output().unwrap();
    fed.join().unwrap().unwrap();
    assert!(packed.status.success());
    packed.stdout
}

#[tokio::test]
async fn a_lie_about_the_length_makes_no_success() {
    let alone = ALONE.lock().await;
    let body = entity("C1");
    let body = body.as_bytes();
    let length = |said: &str| answer(&format!("content-length: {said}\r\n"), body, body);
    let (less, more) = ((body.len() - 1).to_string(), (body.len() + 1).to_string());
    check(&alone, "a byte less", say(length(&less)), &["unconvincing"]).await;
    check(&alone, "none", say(length("0")), &["unconvincing"]).await;
    check(&alone, "a byte more", say(length(&more)), &["reset"]).await;
    check(&alone, "all there is", say(length("18446744073709551615")), &["reset"]).await;
    check(&alone, "more than there is", say(length("18446744073709551616")), &["reset"]).await;
    check(&alone, "less than nothing", say(length("-1")), &["reset"]).await;
    check(&alone, "a word", say(length("long")), &["reset"]).await;
    let two = format!("{less}\r\ncontent-length: {more}");
    check(&alone, "two lengths", say(length(&two)), &["reset"]).await;
    let both = format!("{}\r\ntransfer-encoding: chunked", body.len());
    check(&alone, "a length and chunks that are none", say(length(&both)), &["reset"]).await;
    check(
        &alone,
        "a chunk that is cut",
        say(answer("transfer-encoding: chunked\r\n", body, b"ff\r\n{")),
        &["reset"],
    )
    .await;
    let signed_twice = format!("wechatpay-nonce: m\r\ncontent-length: {}\r\n", body.len());
    check(&alone, "two nonces", say(answer(&signed_twice, body, body)), &["malformed signature"]).await;
}

#[tokio::test]
async fn what_is_no_http_is_no_answer() {
    let alone = ALONE.lock().await;
    for (name, said) in [
        ("a TLS alert", &b"\x15\x03\x01\x00\x02\x02\x28"[..]),
        ("an HTTP/2 preface", b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80"),
        ("the body alone", b"{\"coupon_code\":\"C1\",\"coupon_state\":\"USED\"}"),
        ("status 99", b"HTTP/1.1 99 OK\r\n\r\n"),
        ("status 2000", b"HTTP/1.1 2000 OK\r\n\r\n"),
        ("HTTP/3.0", b"HTTP/3.0 200 OK\r\ncontent-length: 0\r\n\r\n"),
        ("a zero byte in a header", b"HTTP/1.1 200 OK\r\nx: \0\r\ncontent-length: 0\r\n\r\n"),
        ("a header without a name", b"HTTP/1.1 200 OK\r\n: x\r\ncontent-length: 0\r\n\r\n"),
        ("a header that goes on", b"HTTP/1.1 200 OK\r\nx: y\r\n z\r\ncontent-length: 0\r\n\r\n"),
    ] {
        check(&alone, name, say(said), &["reset"]).await;
    }
    check(&alone, "noise for ever", for_ever("", &FLOOD), &["reset"]).await;
    let every_byte: Vec<u8> = (0..=255).cycle().take(0x10000).collect();
    check(&alone, "every byte there is", say(every_byte), &["reset"]).await;
    let no_text = b"HTTP/1.1 200 OK\r\nwechatpay-serial: \xff\xfe\r\nrequest-id: \xf0\x9f\x98\x80\r\ncontent-length: 2\r\n\r\n{}";
    check(&alone, "headers that are no text", say(*no_text), &["malformed signature"]).await;
    let elsewhere =
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n";
    check(&alone, "a way elsewhere", say(elsewhere), &["unsigned"]).await;
    let unassigned = "HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n";
    check(&alone, "status 999", say(unassigned), &["unsigned"]).await;
}

/// A whole, sound, signed answer that nobody asked for follows the first one on the same connection.
#[tokio::test]
async fn an_answer_before_its_operation_is_not_taken_for_the_next() {
    let alone = ALONE.lock().await;
    let (reported, waits) = mpsc::channel::<()>();
    let mut stuffed = sound("request-id: first\r\n", entity("C1").as_bytes());
    stuffed.extend(sound("request-id: unasked\r\n", entity("C2").as_bytes()));
    let keeps_open = act(move |stream| {
        stream.write_all(&stuffed)?;
        // Open for the next operation, until that was answered.
        let _ = waits.recv_timeout(PATIENCE);
        Ok(())
    });
    let (url, first) = listen_apart(keeps_open, say(sound("request-id: second\r\n", b"{}")));
    let client = client(&url, Pace::PATIENT);
    let heard = ask("the first", &client, Pace::PATIENT, &alone).await;
    assert_eq!(classify(Operation::Redeem, &heard.result, &redemption("C1")), Verdict::Redeemed);
    let next = Prepared::new(&redemption("C2"));
    let heard = client.send(Operation::Redeem, &next, None, Timestamp::now(), 8, 0.5).await;
    drop(reported);
    if let CallResult::Response(answer) = &heard.result {
        assert_eq!(answer.request_id.as_deref(), Some("second"), "{heard:?}");
    }
    let verdict = classify(Operation::Redeem, &heard.result, &redemption("C2"));
    assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
    drop(client);
    ended(first).await;
}

/// Like [`listen`], but both connections are open at once.
fn listen_apart(first: Act, second: Act) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let played = std::thread::spawn(move || {
        let plays = [first, second].map(|play| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            std::thread::spawn(move || {
                operation(&mut stream);
                play(&mut stream).unwrap();
            })
        });
        plays.into_iter().for_each(|play| play.join().unwrap());
    });
    (url, played)
}

#[tokio::test]
async fn a_download_of_certificates_has_the_same_bounds() {
    let key = ApiV3Key::parse(APIV3_KEY).unwrap();
    let alone = ALONE.lock().await;
    let nested = format!("{{\"data\":{}", "[".repeat(200_000));
    let bomb = packed(100 * 1024 * 1024, b' ');
    const DRIPPING: &str = "HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n{";
    for (name, play, answered) in [
        ("endless certificates", for_ever("HTTP/1.1 200 OK\r\n\r\n", &FLOOD), false),
        ("endless headers", for_ever("HTTP/1.1 200 OK\r\n", b"x: y\r\n"), false),
        ("certificates drop by drop", drip(DRIPPING, b" "), false),
        ("nested certificates", say(sound("", nested.as_bytes())), true),
        ("packed certificates", say(sound("content-encoding: gzip\r\n", &bomb)), true),
    ] {
        let (url, played) = listen(vec![play]);
        let pace = if answered { Pace::PATIENT } else { Pace::HURRIED };
        let client = client(&url, pace);
        MEMORY.reset_peak_usage();
        let (before, since) = (MEMORY.current_usage(), Instant::now());
        let brought = client.certificates(&key, Timestamp::now(), 7).await;
        let (taken, took) = (MEMORY.peak_usage().saturating_sub(before), since.elapsed());
        assert!(taken <= BYTES_MAX && took < pace.total + SLACK, "{name}: {taken} bytes, {took:?}");
        match brought {
            Err(NoCertificates::NoResponse(_)) => assert!(!answered, "{name}"),
            Err(_) => assert!(answered, "{name}"),
            Ok(keys) => panic!("{name}: {keys:?}"),
        }
        drop(client);
        ended(played).await;
    }
    drop(alone);
}

/// A kept download could bring back a certificate that was withdrawn.
#[tokio::test]
async fn kept_download_of_certificates_is_accepted_once() {
    let key = ApiV3Key::parse(APIV3_KEY).unwrap();
    let alone = ALONE.lock().await;
    let kept = sound("", b"{\"data\":[]}");
    let (url, played) = listen(vec![say(kept.clone()), say(kept.clone()), say(kept)]);
    let client = client(&url, Pace::PATIENT);
    let brought = client.certificates(&key, Timestamp::now(), 7).await;
    assert!(matches!(&brought, Ok(keys) if keys.is_empty()), "{brought:?}");
    for nonce in [8, 9] {
        let brought = client.certificates(&key, Timestamp::now(), nonce).await;
        let replayed = matches!(brought, Err(NoCertificates::Unverified(Some(SignatureFlaw::Replayed))));
        assert!(replayed, "{brought:?}");
    }
    drop(client);
    ended(played).await;
    drop(alone);
}
