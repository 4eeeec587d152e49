use std::io;

use bytes::Bytes;
use prost::Message;
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

use super::MESSAGE_BYTES_MAX;
use super::wire::FollowFrame;
use crate::stream::StreamError;

/// log2 of the window in bytes: a page sent again within the last 8 MiB costs only its difference.
const WINDOW_LOG: u32 = 23;
/// Fast: the stream must keep up with commits.
const LEVEL: i32 = 1;
/// Piece in which output is taken, in bytes.
const OUT_BYTES: usize = 64 << 10;

/// The sending side of one stream's compression.
pub(super) struct Compressor(Encoder<'static>);

impl Compressor {
    pub(super) fn new() -> io::Result<Self> {
        let mut encoder = Encoder::new(LEVEL)?;
        encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
        encoder.set_parameter(CParameter::EnableLongDistanceMatching(true))?;
        Ok(Self(encoder))
    }

    /// Wraps a frame; everything needed to read it is flushed into the result.
    pub(super) fn wrap(&mut self, frame: &FollowFrame) -> io::Result<FollowFrame> {
        let plain = frame.encode_to_vec();
        let mut input = InBuffer::around(&plain);
        let mut out = Vec::with_capacity(plain.len() / 2 + 64);
        let mut piece = vec![0; OUT_BYTES.min(plain.len() + 512)];
        while input.pos() < plain.len() {
            let mut output = OutBuffer::around(&mut piece[..]);
            self.0.run(&mut input, &mut output)?;
            out.extend_from_slice(output.as_slice());
        }
        loop {
            let mut output = OutBuffer::around(&mut piece[..]);
            let left = self.0.flush(&mut output)?;
            out.extend_from_slice(output.as_slice());
            if left == 0 {
                break;
            }
        }
        Ok(FollowFrame { zstd: out.into(), ..FollowFrame::default() })
    }
}

/// The receiving side; bounded in memory whatever the peer sends.
pub(super) struct Decompressor(Decoder<'static>);

impl Decompressor {
    pub(super) fn new() -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
        Ok(Self(decoder))
    }

    /// The frame inside a wrapped one; a plain frame is its own.
    pub(super) fn unwrap(&mut self, frame: FollowFrame) -> Result<FollowFrame, StreamError> {
        if frame.zstd.is_empty() {
            return Ok(frame);
        }
        let broken = |why: String| StreamError::Invalid(format!("compressed frame: {why}"));
        let mut input = InBuffer::around(&frame.zstd[..]);
        let (mut out, mut piece) = (Vec::new(), vec![0; OUT_BYTES]);
        loop {
            let mut output = OutBuffer::around(&mut piece[..]);
            self.0.run(&mut input, &mut output).map_err(|error| broken(error.to_string()))?;
            let full = output.pos() == OUT_BYTES;
            out.extend_from_slice(output.as_slice());
            if out.len() > MESSAGE_BYTES_MAX {
                return Err(broken(format!("unpacks to more than {MESSAGE_BYTES_MAX} bytes")));
            }
            // Output that did not fill its buffer is all there is for this input.
            if input.pos() == frame.zstd.len() && !full {
                break;
            }
        }
        let inner = FollowFrame::decode(Bytes::from(out)).map_err(|error| broken(error.to_string()))?;
        if inner.zstd.is_empty() { Ok(inner) } else { Err(broken("is wrapped twice".into())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::Entry;

    fn frame(seed: u64, bytes: usize) -> FollowFrame {
        let mut state = seed | 1;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        let change: Vec<u8> = (0..bytes).map(|_| random()).collect();
        let entry = Entry { index: seed, change: change.into(), more: false };
        FollowFrame { entries: vec![entry], applied_index: seed, ..FollowFrame::default() }
    }

    #[test]
    fn frames_round_trip_one_by_one_and_a_repeated_page_costs_little() {
        let (mut compressor, mut decompressor) = (Compressor::new().unwrap(), Decompressor::new().unwrap());
        let mut sizes = Vec::new();
        for seed in [1, 2, 1, 3, 1] {
            let plain = frame(seed, 4096);
            let wrapped = compressor.wrap(&plain).unwrap();
            sizes.push(wrapped.zstd.len());
            assert_eq!(decompressor.unwrap(wrapped).unwrap(), plain);
        }
        assert!(sizes[0] > 4000 && sizes[2] < 200 && sizes[4] < 200, "{sizes:?}");
        let large = frame(9, 3 << 20);
        assert_eq!(decompressor.unwrap(compressor.wrap(&large).unwrap()).unwrap(), large);
        assert_eq!(decompressor.unwrap(frame(4, 10)).unwrap(), frame(4, 10), "plain frames pass");
    }

    #[test]
    fn garbage_bombs_and_nesting_are_refused() {
        let wrap = |zstd: Vec<u8>| FollowFrame { zstd: zstd.into(), ..FollowFrame::default() };
        let mut decompressor = Decompressor::new().unwrap();
        assert!(decompressor.unwrap(wrap(vec![7; 100])).is_err());
        let bomb = zstd::encode_all(&vec![0u8; 64 << 20][..], 3).unwrap();
        assert!(bomb.len() < 100_000);
        assert!(Decompressor::new().unwrap().unwrap(wrap(bomb)).is_err());
        let mut compressor = Compressor::new().unwrap();
        let once = compressor.wrap(&frame(1, 10)).unwrap();
        let twice = Compressor::new().unwrap().wrap(&once).unwrap();
        assert!(Decompressor::new().unwrap().unwrap(twice).is_err());
    }
}
