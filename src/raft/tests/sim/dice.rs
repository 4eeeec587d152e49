//! All chance of a simulation, from one seed.

use std::cell::Cell;
use std::convert::Infallible;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::impls::TokioRuntime;
use rand_core::{Rng, TryRng};

thread_local! {
    /// SplitMix64's state while this thread runs a simulation.
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Begins a simulation on this thread, or ends it.
pub fn seed(seed: Option<u64>) {
    STATE.set(seed.map(|seed| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5ee1_u64));
}

/// Whether this thread runs a simulation.
pub fn is_simulated() -> bool {
    STATE.get().is_some()
}

/// The next 64 bits. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators".
pub fn draw() -> u64 {
    let Some(before) = STATE.get() else { return TokioRuntime::thread_rng().next_u64() };
    let state = before.wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(Some(state));
    let mut word = state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A number below `bound`.
pub fn below(bound: u64) -> u64 {
    draw() % bound.max(1)
}

/// True once in `times` on average.
pub fn one_in(times: u64) -> bool {
    below(times) == 0
}

/// Milliseconds from `low` to below `high`.
pub fn millis(low: u64, high: u64) -> Duration {
    Duration::from_millis(low + below(high - low))
}

/// One of several.
pub fn pick<T: Clone>(of: &[T]) -> Option<T> {
    (!of.is_empty()).then(|| of[below(of.len() as u64) as usize].clone())
}

/// Random numbers for openraft: the simulation's, or the system's where there is none.
#[derive(Debug)]
pub struct Draws;

impl TryRng for Draws {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((draw() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(draw())
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        out.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&draw().to_le_bytes()[..chunk.len()]));
        Ok(())
    }
}
