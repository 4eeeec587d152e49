//! The network between voters: Raft's messages over gRPC.
//!
//! Connections are driven by Raft's own thread; each names the cluster and both ends, so that a node that answers at
//! a wrong address does no harm.

mod addresses;
mod client;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod server;
mod ship;
pub(super) mod wire;

pub use addresses::AddressBook;
pub(super) use client::Network;
pub use server::RaftServer;
pub(super) use server::serve_direct;
pub(super) use server::{Heard, RaftService};
pub(super) use ship::{BlobSender, Delivery};

use super::incarnations::Incarnation;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Request, Status};

/// Largest message, in bytes: 4 MiB of entries, or one larger entry.
pub(super) const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Metadata key of [`Route`].
const ROUTE: &str = "skein-raft";
/// Metadata key of an answer that refuses a request because of who runs: `sender` is outdated, `receiver` is, or the
/// receiver's run is `unknown` to the sender.
const MISMATCH: &str = "skein-run-mismatch";
/// Metadata key of the receiver's run in such an answer: number and, in hex, run.
const RUN: &str = "skein-run";

/// Who speaks to whom, in which cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Route {
    /// The cluster's id.
    pub cluster: String,
    /// The speaker.
    pub from: u64,
    /// Who is meant.
    pub to: u64,
    /// Which run of the speaker speaks; not told by older programs.
    pub sender: Incarnation,
    /// The last run of who is meant that the speaker has met.
    pub expected: Incarnation,
}

/// A run as two words say it; what is missing is a run that is not counted.
fn run_of<'a>(words: &mut impl Iterator<Item = &'a str>) -> Incarnation {
    let number = words.next().and_then(|word| word.parse().ok());
    let run = words.next().and_then(|word| u64::from_str_radix(word, 16).ok());
    number.zip(run).map_or_else(Incarnation::default, |(number, run)| Incarnation { number, run })
}

impl Route {
    /// A request that says so.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Ok(value) = self.header() {
            request.metadata_mut().insert(ROUTE, value);
        }
        request
    }

    fn header(&self) -> Result<MetadataValue<Ascii>, tonic::metadata::errors::InvalidMetadataValue> {
        let run = |at: Incarnation| format!("{} {:016x}", at.number, at.run);
        let (sender, expected) = (run(self.sender), run(self.expected));
        format!("1 {} {:016x} {:016x} {sender} {expected}", self.cluster, self.from, self.to).try_into()
    }

    /// What a request says.
    fn of(metadata: &MetadataMap) -> Result<Self, Status> {
        let missing = || Status::invalid_argument("the request does not name its cluster and nodes");
        let text = metadata.get(ROUTE).and_then(|value| value.to_str().ok()).ok_or_else(missing)?;
        let mut parts = text.split(' ');
        let version = parts.next();
        if version != Some("1") {
            return Err(Status::failed_precondition(format!(
                "peer speaks raft protocol {}, this program 1: upgrade the older node",
                version.unwrap_or_default()
            )));
        }
        let cluster = parts.next().ok_or_else(missing)?.to_owned();
        let mut node = || parts.next().and_then(|hex| u64::from_str_radix(hex, 16).ok()).ok_or_else(missing);
        let (from, to) = (node()?, node()?);
        let (sender, expected) = (run_of(&mut parts), run_of(&mut parts));
        Ok(Self { cluster, from, to, sender, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_say_which_runs_they_are_between_and_those_of_older_programs_need_not() {
        let run = |number, run| Incarnation { number, run };
        let route =
            Route { cluster: "c".into(), from: 1, to: u64::MAX, sender: run(3, 0xf), expected: run(0, 0) };
        assert_eq!(Route::of(route.request(()).metadata()).unwrap(), route);
        let mut old = MetadataMap::new();
        old.insert(ROUTE, "1 c 0000000000000001 0000000000000002".parse().unwrap());
        let of_old = Route::of(&old).unwrap();
        assert_eq!((of_old.from, of_old.to, of_old.sender), (1, 2, Incarnation::default()));
        old.insert(ROUTE, "2 c 1 2".parse().unwrap());
        assert!(Route::of(&old).unwrap_err().message().contains("upgrade the older node"));
    }
}
