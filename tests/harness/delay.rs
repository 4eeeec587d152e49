//! A TCP proxy that holds back everything for a while, as a long line does.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Where the far end of a line is reached; the line ends when dropped.
pub struct DelayingProxy {
    pub addr: SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl DelayingProxy {
    /// A line to `target` on which each byte takes `delay`.
    pub fn start(target: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, stopped) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let stop = stopped.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(far) = TcpStream::connect(target) else { continue };
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { continue };
                carry(near, far_too, delay);
                carry(far, near_too, delay);
            }
        });
        Self { addr, stopped }
    }
}

impl Drop for DelayingProxy {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes it up.
        let _ = TcpStream::connect(self.addr);
    }
}

/// Carries bytes one way: read as they come, written when their time has come.
fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, arrived) = mpsc::channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if sender.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        for (due, bytes) in arrived {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
