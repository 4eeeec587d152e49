//! A small HTTP/1.1 client: one request per connection, nothing shared with the program under test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub content_type: String,
    /// Values of `Set-Cookie`.
    pub cookies: Vec<String>,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A database's name as one path component.
pub fn encode(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F").replace(' ', "%20")
}

/// The JSON document at `path`.
pub fn get_json(address: SocketAddr, path: &str) -> Result<Value, String> {
    let reply = request(address, "GET", path, &[])?;
    if reply.status != 200 {
        return Err(format!("GET {path}: {} {}", reply.status, reply.text()));
    }
    serde_json::from_slice(&reply.body).map_err(|error| format!("GET {path}: {error}: {}", reply.text()))
}

/// Sends a request and reads the answer to its end.
pub fn request(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> Result<Reply, String> {
    request_with(address, method, path, "", body)
}

/// As [`request`], with more header lines, each with its end.
pub fn request_with(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> Result<Reply, String> {
    exchange(address, method, path, headers, body).map_err(|error| format!("{method} {path}: {error}"))
}

fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> std::io::Result<Reply> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    let mut input = BufReader::new(stream);
    let mut line = String::new();
    input.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let (mut chunked, mut length, mut content_type, mut cookies) = (false, None, String::new(), Vec::new());
    let mut headers = Vec::new();
    loop {
        line.clear();
        input.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        let value = value.trim();
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
        match name.to_ascii_lowercase().as_str() {
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            "content-length" => length = value.parse::<usize>().ok(),
            "content-type" => content_type = value.to_owned(),
            "set-cookie" => cookies.push(value.to_owned()),
            _ => {}
        }
    }
    let body = if chunked { read_chunks(&mut input)? } else { read_plain(&mut input, length)? };
    Ok(Reply { status, content_type, cookies, headers, body })
}

fn read_plain(input: &mut impl Read, length: Option<usize>) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    input.read_to_end(&mut body)?;
    match length {
        Some(length) if length != body.len() => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(body),
    }
}

/// A stream that the server breaks off has no last chunk: an error, not a short body.
fn read_chunks(input: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let size = usize::from_str_radix(line.trim(), 16)
            .map_err(|_| std::io::Error::other(format!("chunk size {line:?}")))?;
        let start = body.len();
        body.resize(start + size, 0);
        input.read_exact(&mut body[start..])?;
        input.read_line(&mut String::new())?;
        if size == 0 {
            return Ok(body);
        }
    }
}
