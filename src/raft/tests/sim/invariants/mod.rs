//! What must hold in every simulation, one file each. They only look.

pub mod acked_is_durable;
pub mod integrity_check_ok;
pub mod one_writer_per_term;
pub mod pos_monotonic;
pub mod reads_are_a_prefix;
pub mod same_pos_same_bytes;
