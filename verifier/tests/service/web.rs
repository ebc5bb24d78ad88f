//! A small HTTP/1.1 server over TCP or a Unix socket that answers as a test wants, and remembers what it was asked.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The bytes of a whole answer.
pub(crate) fn reply(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

type Answer = Box<dyn FnMut(&Asked, &mut dyn Write) + Send>;

/// The server: threads that live as long as the test's process, and answer for as long as it is there.
pub(crate) struct Web {
    pub(crate) address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    answer: Arc<Mutex<Option<Answer>>>,
}

fn serve<S: Read + Write>(stream: S, asked: &Mutex<Vec<Asked>>, answer: &Mutex<Option<Answer>>) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    if stream.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        if stream.read_line(&mut header).unwrap_or(0) == 0 || header.trim().is_empty() {
            break;
        }
        let (name, value) = header.trim().split_once(':').unwrap();
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut request = Asked { line: line.trim().to_owned(), headers, body: Vec::new() };
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    request.body = vec![0; length];
    if stream.read_exact(&mut request.body).is_err() {
        return;
    }
    asked.lock().unwrap().push(request.clone());
    if let Some(answer) = answer.lock().unwrap().as_mut() {
        answer(&request, stream.get_mut());
    }
}

impl Web {
    fn empty(address: String) -> Self {
        Self { address, asked: Arc::default(), answer: Arc::new(Mutex::new(None)) }
    }

    /// On a free port.
    pub(crate) fn tcp(answer: impl FnMut(&Asked, &mut dyn Write) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let web = Self::empty(format!("http://{}", listener.local_addr().unwrap()));
        web.answers(answer);
        let (asked, answer) = (Arc::clone(&web.asked), Arc::clone(&web.answer));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (asked, answer): (_, Arc<Mutex<_>>) = (Arc::clone(&asked), Arc::clone(&answer));
                thread::spawn(move || serve::<TcpStream>(stream, &asked, &answer));
            }
        });
        web
    }

    /// On a free port, over TLS.
    pub(crate) fn tls(
        config: rustls::ServerConfig,
        answer: impl FnMut(&Asked, &mut dyn Write) + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let web = Self::empty(format!("https://{}", listener.local_addr().unwrap()));
        web.answers(answer);
        let (asked, answer, config) = (Arc::clone(&web.asked), Arc::clone(&web.answer), Arc::new(config));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (asked, answer): (_, Arc<Mutex<_>>) = (Arc::clone(&asked), Arc::clone(&answer));
                let tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                thread::spawn(move || serve(rustls::StreamOwned::new(tls, stream), &asked, &answer));
            }
        });
        web
    }

    /// On a Unix socket.
    pub(crate) fn unix(path: &Path, answer: impl FnMut(&Asked, &mut dyn Write) + Send + 'static) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let web = Self::empty(format!("unix:{}", path.display()));
        web.answers(answer);
        let (asked, answer) = (Arc::clone(&web.asked), Arc::clone(&web.answer));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (asked, answer): (_, Arc<Mutex<_>>) = (Arc::clone(&asked), Arc::clone(&answer));
                thread::spawn(move || serve::<UnixStream>(stream, &asked, &answer));
            }
        });
        web
    }

    /// Answers otherwise from now on.
    pub(crate) fn answers(&self, answer: impl FnMut(&Asked, &mut dyn Write) + Send + 'static) {
        *self.answer.lock().unwrap() = Some(Box::new(answer));
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        // Whoever comes later gets no answer.
        *self.answer.lock().unwrap() = None;
    }
}
