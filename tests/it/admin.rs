//! The admin port before clients that mean harm, or are broken. It serves on, and it serves nothing secret.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::bed::{Bed, Service, command};
use redeemer::config::Config;
use serde_json::json;

/// A slow head is waited for no longer than this, with something to spare.
const PATIENCE: Duration = Duration::from_secs(60);
/// A connection lives no longer than a minute; one that had to make room is gone well before.
const BEFORE_ITS_DEADLINE: Duration = Duration::from_secs(40);
/// How much a greedy client asks for at once.
const GREED: usize = 1_000;

fn connect(service: &Service) -> TcpStream {
    let url = service.url("");
    let stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What comes back, to the end of the connection; a connection that is reset says nothing.
fn answer(service: &Service, request: &[u8]) -> String {
    let mut stream = connect(service);
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_port_survives_hostile_requests() {
    let bed = Bed::new().await;
    let service = bed.start().await;
    tokio::task::block_in_place(|| {
        let malformed = answer(&service, b"\x16\x03\x01 no http at all\r\n\r\n");
        assert!(malformed.is_empty() || malformed.starts_with("HTTP/1.1 400"), "{malformed}");
        let huge =
            [b"GET / HTTP/1.1\r\nhost: x\r\nx-huge: ".as_slice(), &[b'a'; 1024 * 1024], b"\r\n\r\n"].concat();
        let huge = answer(&service, &huge);
        assert!(huge.is_empty() || huge.starts_with("HTTP/1.1 431"), "{}", huge.lines().next().unwrap_or(""));
        let posted = [
            b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 8388608\r\n\r\n".as_slice(),
            &[b'a'; 8 * 1024 * 1024],
        ];
        let posted = answer(&service, &posted.concat());
        assert!(
            posted.is_empty() || posted.starts_with("HTTP/1.1 405"),
            "{}",
            posted.lines().next().unwrap_or("")
        );
        let elsewhere =
            answer(&service, b"GET /../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(elsewhere.starts_with("HTTP/1.1 404"), "{elsewhere}");

        // More connections than are served at once, each with half a request.
        let slow: Vec<TcpStream> = (0..300)
            .map(|_| {
                let mut stream = connect(&service);
                stream.write_all(b"GET / HTTP/1.1\r\nhost:").unwrap();
                stream
            })
            .collect();
        let since = Instant::now();
        let ready = answer(&service, b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(ready.starts_with("HTTP/1.1 200"), "after {:?}: {ready}", since.elapsed());
        drop(slow);
    });
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let ask = || answer(&service, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            let many: Vec<_> = (0..200).map(|_| scope.spawn(ask)).collect();
            for page in many {
                let page = page.join().unwrap();
                assert!(page.starts_with("HTTP/1.1 200") && page.contains("Consuming"), "{page}");
            }
        });
    });
    service.stop().await;
}

#[test]
fn admin_port_is_local_unless_configured_otherwise() {
    let listen: std::net::SocketAddr = Config::default().admin.listen.parse().unwrap();
    assert!(listen.ip().is_loopback(), "{listen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_it_serves_is_secret() {
    let mut bed = Bed::new().await;
    let service = bed.start().await;
    bed.issue("C1_SECRET_CODE_OF_A_COUPON", json!({}));
    bed.publish(&command("C1_SECRET_CODE_OF_A_COUPON", "USE_0001")).await;
    assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    let key = std::fs::read_to_string(&bed.config.wechat.merchant_key_file).unwrap();
    let password = bed.config.broker.uri.split(['/', ':', '@']).nth(4).unwrap().to_owned();
    let command = command("C1_SECRET_CODE_OF_A_COUPON", "USE_0001");
    let secrets = [
        key.lines().nth(1).unwrap(),
        &password,
        command["openid"].as_str().unwrap(),
        "C1_SECRET_CODE_OF_A_COUPON",
    ];
    assert!(secrets.iter().all(|secret| secret.len() >= 16), "{secrets:?}");
    for path in ["/", "/metrics", "/readyz", "/livez", "/status.json", "/runbook"] {
        let (status, body) = service.get(path).await;
        assert_eq!(status, 200, "{path}");
        for secret in secrets {
            assert!(!body.contains(secret), "{path} shows a secret");
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_ask_and_never_read_shut_nobody_out() {
    let bed = Bed::new().await;
    let service = bed.start().await;
    tokio::task::block_in_place(|| {
        // Each asks for so much that what it does not read fills every buffer on the way, and holds its connection.
        let greedy = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(GREED);
        let mut slow: Vec<TcpStream> = (0..300)
            .map(|_| {
                let mut stream = connect(&service);
                stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
                let _ = stream.write_all(&greedy);
                stream
            })
            .collect();
        let ready = answer(&service, b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        // The first had to make room, long before its own deadline: what it was sent comes to an end, and it was not
        // sent all that it asked for.
        slow[0].set_read_timeout(Some(BEFORE_ITS_DEADLINE)).unwrap();
        let (mut rest, since) = (Vec::new(), Instant::now());
        let ended = slow[0].read_to_end(&mut rest);
        let waits = |kind| matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut);
        assert!(!ended.is_err_and(|error| waits(error.kind())), "held for {:?}", since.elapsed());
        let answers = String::from_utf8_lossy(&rest).matches("HTTP/1.1 200").count();
        assert!(answers < GREED, "{answers} answers after {:?}", since.elapsed());
    });
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_comes_drop_by_drop_ends_by_its_deadline() {
    let bed = Bed::new().await;
    let service = bed.start().await;
    tokio::task::block_in_place(|| {
        let (mut stream, since) = (connect(&service), Instant::now());
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        // A byte now and then keeps any timeout between two bytes from passing.
        let head = b"GET / HTTP/1.1\r\nhost: x\r\nx: ".iter().chain(std::iter::repeat(&b'a'));
        for byte in head {
            let ended = match stream.write_all(&[*byte]).and_then(|()| stream.read(&mut [0; 64])) {
                Ok(read) => read == 0,
                Err(error) => {
                    !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
                }
            };
            if ended {
                break;
            }
            assert!(since.elapsed() < PATIENCE, "it is still waited for");
        }
    });
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_of_a_stranger_cannot_read_the_port_under_its_name() {
    let mut bed = Bed::new().await;
    bed.config.admin.hosts = vec!["redeemer.example.com".to_owned()];
    let service = bed.start().await;
    let status = async |host: &str, path: &str| {
        let request = reqwest::Client::new().get(service.url(path)).header("host", host);
        request.send().await.unwrap().status().as_u16()
    };
    for path in ["/", "/metrics", "/readyz", "/status.json", "/runbook", "/livez"] {
        for strange in ["evil.example", "evil.example:9464", "127.0.0.1.nip.example"] {
            assert_eq!(status(strange, path).await, 421, "{strange}{path}");
        }
        for ours in ["localhost:9464", "[::1]", "redeemer.example.com", "redeemer:9464", "10.0.0.7:9464"] {
            assert_eq!(status(ours, path).await, 200, "{ours}{path}");
        }
    }
    service.stop().await;
}

/// Who sends a request's body byte by byte holds a connection no longer than the deadline of a body.
#[tokio::test(flavor = "multi_thread")]
async fn body_that_comes_byte_by_byte_ends_by_its_deadline() {
    use std::os::unix::fs::PermissionsExt as _;

    const BODY_DEADLINE: Duration = Duration::from_secs(10);
    let mut bed = Bed::new().await;
    let token = bed.dir.join("token");
    std::fs::write(&token, "0123456789abcdef0123456789abcdef").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    bed.config.admin.console_token_file = token.display().to_string();
    let service = bed.start().await;
    let slow = |request: &str| {
        let (mut stream, since) = (connect(&service), Instant::now());
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            match stream.write_all(b"a").and_then(|()| stream.read(&mut buffer)) {
                Ok(0) => break,
                Ok(read) => answer.extend_from_slice(&buffer[..read]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => break,
            }
            assert!(since.elapsed() < PATIENCE, "it is still waited for");
        }
        (since.elapsed(), String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let request = |line: &str, rest: &str| format!("{line} HTTP/1.1\r\nhost: x\r\n{rest}");
            let (long, chunked) = ("content-length: 16000\r\n\r\n", "transfer-encoding: chunked\r\n\r\n");
            let requests = [
                (request("POST /parked/login", long), "408"),
                (request("POST /parked/x/discard", long), "408"),
                (request("POST /parked/login", &format!("{chunked}3e80\r\n")), "408"),
                (request("POST /parked/login", &format!("{chunked}-1\r\n")), "400"),
                (request("POST /parked/login", &format!("{chunked}4e20\r\n{}", "a".repeat(20_000))), "413"),
                (request("POST /", long), "405"),
                (request("GET /metrics", long), "200"),
            ];
            let slow = &slow;
            let all = requests.map(|(request, status)| (scope.spawn(move || slow(&request)), status));
            for (one, status) in all {
                let (took, answer) = one.join().unwrap();
                // Twice the deadline, for a busy machine; the life of a connection is 60 s.
                assert!(took < 2 * BODY_DEADLINE, "{took:?}: {answer}");
                assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
            }
        });
    });
    service.stop().await;
}

/// What a proxy and this port may read differently is not served.
#[tokio::test(flavor = "multi_thread")]
async fn request_that_names_two_hosts_is_not_served() {
    let mut bed = Bed::new().await;
    bed.config.admin.hosts = vec!["redeemer.example.com".to_owned()];
    let service = bed.start().await;
    tokio::task::block_in_place(|| {
        let check = |target: &str, hosts: &[&str], status: &str| {
            let hosts: String = hosts.iter().map(|host| format!("host: {host}\r\n")).collect();
            let request = format!("GET {target} HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
            let answer = answer(&service, request.as_bytes());
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}{answer}");
        };
        check("/readyz", &["localhost"], "200");
        check("http://localhost/readyz", &["localhost"], "200");
        check("http://REDEEMER.example.com/readyz", &["redeemer.example.com"], "200");
        check("/readyz", &["localhost", "evil.example"], "400");
        check("/readyz", &["evil.example", "localhost"], "400");
        check("/readyz", &["localhost", "localhost"], "400");
        check("http://evil.example/readyz", &["localhost"], "400");
        check("http://localhost/readyz", &["evil.example"], "400");
        check("http://localhost:1@evil.example/readyz", &["localhost:1@evil.example"], "421");
        check("/readyz", &["localhost:1@evil.example"], "421");
        check("http://evil.example/readyz", &["evil.example"], "421");
    });
    service.stop().await;
}
