use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// Numbers at which parsers go wrong, as they stand in a file, either end first.
const EDGES: [u64; 9] = [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// A sample with one to six things wrong.
pub fn mutate(random: &mut StdRng, sample: &[u8], all: &[Vec<u8>]) -> Vec<u8> {
    let mut input = sample.to_vec();
    for _ in 0..random.random_range(1..=6) {
        if input.is_empty() {
            return input;
        }
        // Headers say how the rest is read, so half of it happens there.
        let reach = if random.random_bool(0.5) { input.len().min(128) } else { input.len() };
        let at = random.random_range(0..reach);
        match random.random_range(0..7) {
            0 => input[at] ^= 1 << random.random_range(0..8),
            1 => input[at] = random.random(),
            2 => put(&mut input, at, *EDGES.choose(random).expect("there are some"), random),
            3 => input.truncate(at),
            4 => {
                let end = (at + random.random_range(1..64)).min(input.len());
                input.drain(at..end);
            }
            5 => {
                let end = (at + random.random_range(1..64)).min(input.len());
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            _ => {
                let other = all.choose(random).expect("there are some");
                input.truncate(at);
                input.extend_from_slice(other.get(at..).unwrap_or_default());
            }
        }
    }
    input
}

fn put(input: &mut [u8], at: usize, number: u64, random: &mut StdRng) {
    let width = *[1, 2, 4, 8].choose(random).expect("there are some");
    let big = number.to_be_bytes();
    let bytes = if random.random_bool(0.5) {
        big[8 - width..].to_vec()
    } else {
        number.to_le_bytes()[..width].to_vec()
    };
    input[at..].iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
}
