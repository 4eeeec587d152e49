//! What parsers make of bytes from outside: a target for each.
//!
//! A target takes bytes that may be anything, and returns: no panic, no memory beyond what its input justifies. The test
//! below runs each on mutations of valid samples, the same ones every time; `tests/fuzz` hands them to libFuzzer, which finds
//! its way by the code that an input reaches (`scripts/fuzz --guided`). The bodies stand beside the parsers.

mod memory;
#[cfg(test)]
mod mutations;

/// A parser, or several that take the same bytes.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Parses what may be anything.
    pub run: fn(&[u8]),
    /// Valid inputs.
    pub samples: fn() -> Vec<Vec<u8>>,
    /// Memory that it may take at a time besides a few times its input, in bytes.
    pub memory_bytes_max: usize,
}

/// SQLite's largest page and the buffers of a decoder.
const BUFFERS: usize = 4 << 20;
/// The largest block of an LZ4 frame, packed and unpacked, and a page more.
const LZ4_BLOCKS: usize = 3 * (4 << 20);
/// A frame that was unpacked, in a vector that has doubled.
const UNPACKED: usize = 3 * crate::rpc::MESSAGE_BYTES_MAX;

const fn target(name: &'static str, run: fn(&[u8]), samples: fn() -> Vec<Vec<u8>>) -> Target {
    Target { name, run, samples, memory_bytes_max: BUFFERS }
}

/// All of them.
pub const TARGETS: [Target; 16] = [
    Target { memory_bytes_max: LZ4_BLOCKS, ..target("ltx", crate::ltx::fuzz::file, crate::ltx::fuzz::files) },
    target("change_set", crate::ltx::fuzz::change_set, crate::ltx::fuzz::change_sets),
    target("header", crate::sqlite::fuzz::header, crate::sqlite::fuzz::headers),
    target("wal", crate::sqlite::fuzz::wal, crate::sqlite::fuzz::wals),
    target("journal", crate::sqlite::fuzz::journal, crate::sqlite::fuzz::journals),
    target("wal_index", crate::sqlite::fuzz::wal_index, crate::sqlite::fuzz::wal_indexes),
    target("log_segment", crate::raft::fuzz::segment, crate::raft::fuzz::segments),
    target("log_entry", crate::raft::fuzz::entry, crate::raft::fuzz::entries),
    target("raft_messages", crate::raft::fuzz::message, crate::raft::fuzz::messages),
    Target {
        memory_bytes_max: UNPACKED,
        ..target("messages", crate::rpc::fuzz::message, crate::rpc::fuzz::messages)
    },
    target("snapshot", crate::rpc::fuzz::snapshot, crate::rpc::fuzz::snapshots),
    target("cookie", crate::proxy::fuzz::cookie, crate::proxy::fuzz::cookies),
    target("hrana", crate::sql::gateway::fuzz::request, crate::sql::gateway::fuzz::requests),
    target("positions", crate::store::fuzz::positions, crate::store::fuzz::position_files),
    target("manifest", crate::backup::fuzz::manifest, crate::backup::fuzz::manifests),
    target("bucket_key", crate::backup::fuzz::key, crate::backup::fuzz::keys),
];

impl Target {
    /// Runs it, which panics where the parser does.
    ///
    /// # Errors
    /// Where it took more memory than its input justifies.
    pub fn check(&self, input: &[u8]) -> Result<(), String> {
        let ((), bytes) = memory::peak_of(|| (self.run)(input));
        let most = self.memory_bytes_max + 16 * input.len();
        if bytes <= most { Ok(()) } else { Err(format!("{bytes} bytes of memory, and {most} are the most")) }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    /// Mutations of each sample; `SKEIN_FUZZ_ROUNDS` sets another number.
    const ROUNDS: u64 = 250;

    fn rounds() -> u64 {
        std::env::var("SKEIN_FUZZ_ROUNDS").map_or(ROUNDS, |text| text.parse().expect("a number of rounds"))
    }

    #[test]
    fn no_target_panics_or_takes_memory_without_bounds() {
        for target in &TARGETS {
            let samples = (target.samples)();
            assert!(!samples.is_empty(), "{} has no sample", target.name);
            for (number, sample) in samples.iter().enumerate() {
                check(target, sample, &format!("sample {number}"));
                let mut random = StdRng::seed_from_u64(number as u64);
                for round in 0..rounds() {
                    let input = mutations::mutate(&mut random, sample, &samples);
                    check(target, &input, &format!("sample {number}, round {round}"));
                }
            }
            check(target, &[], "nothing");
        }
    }

    fn check(target: &Target, input: &[u8], what: &str) {
        let outcome = std::panic::catch_unwind(|| target.check(input));
        let why = outcome.unwrap_or_else(|_| Err("a panic".to_owned()));
        let hex: String = input.iter().take(200).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(why, Ok(()), "{}, {what}; the input begins with {hex}", target.name);
    }
}
