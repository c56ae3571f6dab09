//! A web server that says which replica answers, and whom it sees asking. One static binary is its whole image.
//!
//! `whoami [PORT]` listens on all addresses, on port 80 unless another is named; a datagram there is answered too. SIGTERM ends it, as it ends any
//! process that is not the first of its namespace; as the first it exits on its own when asked for `/exit`. `/bytes/N` is
//! answered with as many bytes, so that somebody can see whether long packets arrive.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// Bytes of a request that are read; more is nobody's honest question.
const REQUEST_BYTES_MAX: u64 = 16 << 10;

/// Bytes that are sent to whoever asks for that many.
const ANSWER_BYTES_MAX: usize = 16 << 20;

fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(80);
    // Both families by one socket, where there is IPv6.
    let any: [SocketAddr; 2] =
        [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()];
    let listener = TcpListener::bind(&any[..])?;
    eprintln!("listening on port {port}");
    let socket = UdpSocket::bind(&any[..])?;
    std::thread::spawn(move || answer_datagrams(&socket));
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || answer(stream));
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let client = stream.peer_addr()?;
    let request = request_line(&stream)?;
    let body = match bytes_wanted(&request) {
        Some(count) => ".".repeat(count.min(ANSWER_BYTES_MAX)),
        None => format!("{}{request}\n", introduction(client)),
    };
    eprintln!("{request} from {client}");
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    if request.starts_with("GET /exit") {
        std::process::exit(0);
    }
    Ok(())
}

fn bytes_wanted(request: &str) -> Option<usize> {
    request.strip_prefix("GET /bytes/")?.split_whitespace().next()?.parse().ok()
}

fn answer_datagrams(socket: &UdpSocket) {
    let mut bytes = [0; 512];
    while let Ok((_, client)) = socket.recv_from(&mut bytes) {
        // Whoever cannot be answered has gone.
        let _ = socket.send_to(introduction(client).as_bytes(), client);
    }
}

fn introduction(client: SocketAddr) -> String {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let hostname = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    format!("Hostname: {}\nRemoteAddr: {client}\n", hostname.trim())
}

/// The first line; the headers are read and left.
fn request_line(stream: &TcpStream) -> std::io::Result<String> {
    let mut lines = BufReader::new(stream.take(REQUEST_BYTES_MAX)).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    Ok(first)
}
