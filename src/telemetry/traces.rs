//! One span per commit, with a child for each part of its way: capture, propose, append, quorum, apply. Exported by OTLP
//! where that is configured, else nothing of it exists.
//!
//! The ids of a commit's trace follow from its origin, so that what other nodes tell of applying it joins its span.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Instant, SystemTime};

use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
    TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, Sampler, SdkTracer, SdkTracerProvider};

use crate::store::{Change, ChangeKind, Origin};
use crate::types::LogIndex;

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Whether commits are traced.
pub fn wanted() -> bool {
    TRACER.get().is_some()
}

/// What sends traces; ends them when it goes.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::debug!(%error, "the last traces were not sent");
        }
    }
}

/// Sends traces of a share of all commits (0 to 1) to the collector at `endpoint`, by OTLP over gRPC. A second call
/// changes nothing. On the runtime whose threads send them.
///
/// # Errors
/// Where the endpoint is no URL; whether a collector is there is not asked.
pub fn send_traces(endpoint: &str, share: f64, node: &str) -> Result<Traces, String> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint);
    let exporter = exporter.build().map_err(|error| format!("traces endpoint {endpoint:?}: {error}"))?;
    let resource = Resource::builder()
        .with_service_name("skein")
        .with_attribute(KeyValue::new("service.instance.id", node.to_owned()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::TraceIdRatioBased(share))
        .with_id_generator(Ids(RandomIdGenerator::default()))
        .with_resource(resource)
        .build();
    let _only_once = TRACER.set(provider.tracer("skein"));
    Ok(Traces(provider))
}

/// A part of a commit's way.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// When it began.
    pub begun: Instant,
    /// When it ended.
    pub ended: Instant,
}

/// The trace of a commit of this node: the whole, and its parts.
pub fn commit(index: LogIndex, change: &Change, whole: Part, parts: &[Part]) {
    let Some(tracer) = TRACER.get() else { return };
    let (trace, root) = ids(&change.origin);
    NEXT.set(Some((trace, root)));
    let clock = Clock::now();
    let mut span = clock.start(tracer, &whole, SpanKind::Server, attributes(index, change), &Context::new());
    // Where it was not asked for, as for a trace that is not sampled.
    NEXT.set(None);
    let parent = Context::new().with_remote_span_context(span.span_context().clone());
    for part in parts {
        let mut child = clock.start(tracer, part, SpanKind::Internal, Vec::new(), &parent);
        child.end_with_timestamp(clock.of(part.ended));
    }
    span.end_with_timestamp(clock.of(whole.ended));
}

/// Another node's commit was applied here.
pub fn applied(index: LogIndex, change: &Change, begun: Instant) {
    let Some(tracer) = TRACER.get() else { return };
    let (trace, root) = ids(&change.origin);
    let commit = SpanContext::new(trace, root, TraceFlags::SAMPLED, true, TraceState::default());
    let parent = Context::new().with_remote_span_context(commit);
    let part = Part { name: "apply", begun, ended: Instant::now() };
    let clock = Clock::now();
    let mut span = clock.start(tracer, &part, SpanKind::Consumer, attributes(index, change), &parent);
    span.end_with_timestamp(clock.of(part.ended));
}

fn attributes(index: LogIndex, change: &Change) -> Vec<KeyValue> {
    let mut all = vec![KeyValue::new("skein.index", index.to_string())];
    match &change.kind {
        ChangeKind::Commit(sets) => {
            for set in sets {
                all.push(KeyValue::new("skein.db", set.db.to_string()));
                all.push(KeyValue::new("skein.txid", set.range.max().to_string()));
            }
        }
        ChangeKind::Drop(name) => all.push(KeyValue::new("skein.db", name.to_string())),
        ChangeKind::Rename { to, .. } => all.push(KeyValue::new("skein.db", to.to_string())),
        ChangeKind::Create { name, .. } => all.push(KeyValue::new("skein.db", name.to_string())),
        ChangeKind::SetAttributes { path, .. } => all.push(KeyValue::new("skein.path", path.to_string())),
        ChangeKind::MakeDirectory { path, .. }
        | ChangeKind::RemoveDirectory(path)
        | ChangeKind::RenameDirectory { to: path, .. } => {
            all.push(KeyValue::new("skein.path", path.to_string()));
        }
    }
    all
}

/// Turns monotonic times into those of the wall.
struct Clock {
    now: Instant,
    wall: SystemTime,
}

impl Clock {
    fn now() -> Self {
        Self { now: Instant::now(), wall: SystemTime::now() }
    }

    fn of(&self, at: Instant) -> SystemTime {
        self.wall - self.now.saturating_duration_since(at)
    }

    fn start(
        &self,
        tracer: &SdkTracer,
        part: &Part,
        kind: SpanKind,
        attributes: Vec<KeyValue>,
        parent: &Context,
    ) -> opentelemetry_sdk::trace::Span {
        let builder = tracer.span_builder(part.name).with_kind(kind).with_start_time(self.of(part.begun));
        builder.with_attributes(attributes).start_with_context(tracer, parent)
    }
}

thread_local! {
    /// The ids of the span that is made next; none: random ones.
    static NEXT: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

/// Gives the first span of a commit the ids that follow from its origin.
#[derive(Debug)]
struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        NEXT.get().map_or_else(|| self.0.new_trace_id(), |(trace, _)| trace)
    }

    fn new_span_id(&self) -> SpanId {
        // Only the span itself: its children have ids of their own.
        NEXT.get().map_or_else(|| self.0.new_span_id(), |(_, span)| span)
    }
}

/// The ids of a commit's trace and of its span.
fn ids(origin: &Origin) -> (TraceId, SpanId) {
    let high = mix(origin.node.get() ^ mix(origin.run));
    let low = mix(high ^ mix(origin.seq));
    (TraceId::from((u128::from(high) << 64) | u128::from(low | 1)), SpanId::from(mix(low) | 1))
}

/// Spreads a number over all bits, so that a share of the ids is a share of the commits.
///
/// Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", the finalizer of SplitMix64.
fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    #[test]
    fn every_commit_has_ids_of_its_own_that_every_node_can_tell() {
        let origin = |seq| Origin { node: NodeId::new(7), run: 9, seq };
        assert_eq!(ids(&origin(1)), ids(&origin(1)));
        let all: std::collections::HashSet<_> = (0..1000).map(|seq| ids(&origin(seq))).collect();
        assert_eq!(all.len(), 1000);
    }
}
